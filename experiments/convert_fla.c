/* The models of flash-linear-attention: RMS norm, a linear-attention mixer, SwiGLU. */
#include "experiments/convert_impl.h"

#include <math.h>

#define LAYER(i)          "model.layers.#." i
#define MIXER(i)          "blocks.#.mixer." i
#define PROJECTION(name)  WF_SAME(LAYER("attn." name "_proj.weight"), MIXER(name ".weight"))
#define CONVOLUTION(name) WF_SAME(LAYER("attn." name "_conv1d.weight"), MIXER(name "_conv.weight"))

/* `norm`: their name for the norm of the mixer's output; g_norm where it is not fused with the gate. */
#define RULES(norm)                                                                          \
  WF_SAME("model.embeddings.weight", "embedding.weight"),                                    \
      WF_SAME(LAYER("attn_norm.weight"), "blocks.#.norm1.weight"),                           \
      WF_SAME(LAYER("mlp_norm.weight"), "blocks.#.norm2.weight"),                            \
      WF_SAME(LAYER("mlp.gate_proj.weight"), "blocks.#.mlp.gate.weight"),                    \
      WF_SAME(LAYER("mlp.up_proj.weight"), "blocks.#.mlp.up.weight"),                        \
      WF_SAME(LAYER("mlp.down_proj.weight"), "blocks.#.mlp.down.weight"),                    \
      WF_SAME("model.norm.weight", "norm.weight"), WF_SAME("lm_head.weight", "head.weight"), \
      PROJECTION("q"), PROJECTION("k"), PROJECTION("v"), PROJECTION("g"), PROJECTION("o"), { \
    .theirs = LAYER("attn." norm ".weight"), .older = LAYER("attn.g_norm.weight"), .ours = { \
      MIXER("norm.weight")                                                                   \
    }                                                                                        \
  }

#define KEYS                                                                                                 \
  WF_KEY("hidden_size", "model.d_model"), WF_KEY("num_hidden_layers", "repeat"),                             \
      WF_KEY("vocab_size", "model.vocab", .missing = "32000", .value = wf_family_vocab),                     \
      WF_KEY("norm_eps", "model.norm_eps", .missing = "1e-6", .value = wf_family_norm_eps),                  \
      WF_KEY("tie_word_embeddings", "model.tie_embeddings", .missing = "false"),                             \
      WF_KEY("intermediate_size", "mlp.width", .missing = WF_KEEP, .value = wf_family_mlp_width),            \
      WF_KEY("hidden_act", NULL, .missing = "swish"), WF_KEY("elementwise_affine", NULL, .missing = "true"), \
      WF_KEY("attn", NULL, .missing = "null", .use = WF_KEY_READ),                                           \
      WF_KEY("attnres_block_size", NULL, .missing = "null", .use = WF_KEY_READ)

static const char *const ignored[] = {NULL};
static const wf_family_need swiglu[] = {{"expand", NULL}, {"multiple", NULL}, {0}};

/* The MLP's width, where only hidden_ratio says it. */
static wf_status mlp_width(const json_t *config, wf_family_values *v, double usual_ratio) {
  if (wf_values_get(v, "mlp.width")) return WF_OK;
  int64_t d;
  const json_t *ratio = wf_json_value(config, "hidden_ratio");
  WF_TRY(wf_json_size(config, "hidden_size", 1, &d));
  double width = floor((double)d * (json_is_number(ratio) ? json_number_value(ratio) : usual_ratio) * 2 / 3);
  return wf_values_set(v, "mlp.width", "%.0f", 256 * ceil(width / 256));
}

static wf_status usual_width(const json_t *config, wf_family_values *v) {
  return mlp_width(config, v, 4);
}

#define SHORT_CONVOLUTION(usual)                              \
  WF_KEY("use_short_conv", "mixer.conv", .missing = (usual)), \
      WF_KEY("conv_size", "mixer.conv_width", .missing = "4")

#define FAMILY(id, name_, title_, class_, keys_, mixer, derive_, needs)          \
  const wf_family wf_family_##id = {.name = (name_),                             \
                                    .title = (title_),                           \
                                    .architecture = (class_),                    \
                                    .prefix = "model.",                          \
                                    .rules = id##_rules,                         \
                                    .keys = keys_,                               \
                                    .ignored = ignored,                          \
                                    .block = {{mixer, "swiglu", needs, swiglu}}, \
                                    .norm = WF_NORM_RMS,                         \
                                    .derive = derive_}

/* ---- RetNet ---- */

static const wf_family_rule retnet_rules[] = {RULES("g_norm_swish_gate"), {0}};

static const wf_family_key retnet_keys[] = {
    KEYS,
    WF_KEY("num_heads", "mixer.heads", .missing = "8"),
    WF_KEY("num_kv_heads", "mixer.kv_heads", .missing = WF_KEEP, .value = wf_family_kv_heads),
    WF_KEY("expand_k", "mixer.expand_k", .missing = "1"),
    WF_KEY("expand_v", "mixer.expand_v", .missing = "2"),
    WF_KEY("use_short_conv", NULL, .missing = "false"),
    WF_KEY("use_output_gate", NULL, .missing = "true"),
    WF_KEY("feature_map", NULL, .missing = "null", .use = WF_KEY_READ),
    {0}};

static wf_status retnet_width(const json_t *config, wf_family_values *v) {
  return mlp_width(config, v, 2);
}

FAMILY(retnet, "retnet", "fla's RetNet", "RetNetForCausalLM", retnet_keys, "retnet", retnet_width, NULL);

/* ---- GLA ---- */

static const wf_family_rule gla_rules[] = {RULES("g_norm_swish_gate"),
                                           CONVOLUTION("q"),
                                           CONVOLUTION("k"),
                                           CONVOLUTION("v"),
                                           WF_SAME(LAYER("attn.gk_proj.0.weight"), MIXER("gk.0.weight")),
                                           WF_SAME_WITH_BIAS(LAYER("attn.gk_proj.1"), MIXER("gk.1")),
                                           {0}};

static const wf_family_key gla_keys[] = {
    KEYS,
    SHORT_CONVOLUTION("false"),
    WF_KEY("num_heads", "mixer.heads", .missing = "4"),
    WF_KEY("expand_k", "mixer.expand_k", .missing = "0.5"),
    WF_KEY("expand_v", "mixer.expand_v", .missing = "1"),
    WF_KEY("use_output_gate", NULL, .missing = "true"),
    WF_KEY("num_kv_heads", "mixer.kv_heads", .missing = WF_KEEP, .value = wf_family_kv_heads),
    WF_KEY("feature_map", NULL, .missing = "null", .use = WF_KEY_READ),
    WF_KEY("clamp_min", NULL, .missing = "null", .use = WF_KEY_READ),
    {0}};

FAMILY(gla, "gla", "fla's GLA", "GLAForCausalLM", gla_keys, "gla", usual_width, NULL);

/* ---- HGRN2 ---- */

static const wf_family_rule hgrn2_rules[] = {RULES("g_norm"),
                                             PROJECTION("f"),
                                             PROJECTION("i"),
                                             CONVOLUTION("q"),
                                             CONVOLUTION("f"),
                                             CONVOLUTION("i"),
                                             WF_SAME("model.lower_bounds", "lower_bounds"),
                                             {0}};

static const wf_family_key hgrn2_keys[] = {KEYS,
                                           SHORT_CONVOLUTION("false"),
                                           WF_KEY("expand_ratio", "mixer.expand_ratio", .missing = WF_KEEP),
                                           WF_KEY("use_lower_bound", NULL, .missing = "true"),
                                           {0}};

/* The size of a head, or their number. */
static wf_status hgrn2_heads(const json_t *config, wf_family_values *v) {
  int64_t d, heads;
  WF_TRY(usual_width(config, v));
  if (wf_values_get(v, "mixer.expand_ratio")) return WF_OK;
  WF_TRY(wf_json_size(config, "hidden_size", 1, &d));
  WF_TRY(wf_json_size(config, "num_heads", (d + 127) / 128, &heads));
  return wf_values_set(v, "mixer.expand_ratio", "%lld", (long long)(d / heads));
}

FAMILY(hgrn2, "hgrn2", "fla's HGRN2", "HGRN2ForCausalLM", hgrn2_keys, "hgrn2", hgrn2_heads, NULL);

/* ---- DeltaNet, Gated DeltaNet, KDA ---- */

#define DELTA_RULES RULES("o_norm"), PROJECTION("b"), CONVOLUTION("q"), CONVOLUTION("k"), CONVOLUTION("v")
#define DELTA_KEYS                 \
  KEYS, SHORT_CONVOLUTION("true"), \
      WF_KEY("allow_neg_eigval", "mixer.negative_eigenvalues", .missing = "false")
#define GATED_RULES \
  DELTA_RULES, WF_SAME(LAYER("attn.A_log"), MIXER("A_log")), WF_SAME(LAYER("attn.dt_bias"), MIXER("dt_bias"))

static const wf_family_rule deltanet_rules[] = {DELTA_RULES, {0}};
static const wf_family_rule gated_deltanet_rules[] = {GATED_RULES, PROJECTION("a"), {0}};
static const wf_family_rule kda_rules[] = {GATED_RULES,
                                           WF_SAME(LAYER("attn.f_proj.0.weight"), MIXER("f.0.weight")),
                                           WF_SAME(LAYER("attn.f_proj.1.weight"), MIXER("f.1.weight")),
                                           WF_SAME(LAYER("attn.g_proj.0.weight"), MIXER("g.0.weight")),
                                           WF_SAME_WITH_BIAS(LAYER("attn.g_proj.1"), MIXER("g.1")),
                                           {0}};

static const wf_family_key deltanet_keys[] = {DELTA_KEYS,
                                              WF_KEY("num_heads", "mixer.heads", .missing = "16"),
                                              WF_KEY("expand_k", "mixer.expand_k", .missing = "1"),
                                              WF_KEY("expand_v", "mixer.expand_v", .missing = "1"),
                                              WF_KEY("use_gate", "mixer.use_gate", .missing = "false"),
                                              WF_KEY("use_beta", NULL, .missing = "true"),
                                              WF_KEY("use_output_norm", NULL, .missing = "true"),
                                              WF_KEY("qk_norm", NULL, .missing = "l2"),
                                              WF_KEY("qk_activation", NULL, .missing = "silu"),
                                              {0}};

/* Value heads, and the width of a head of keys, where ours say auto. */
static double v_heads(const wf_family_model *m) {
  return (double)wf_rows_of(m->params, "blocks.0.mixer.b.weight");
}
static double key_width(const wf_family_model *m) {
  return (double)(wf_rows_of(m->params, "blocks.0.mixer.q.weight") /
                  wf_part_i64(&m->block[0]->mixer, "heads", 1));
}

#define HEADS(heads, dim, expand)                                                   \
  WF_KEY("num_heads", "mixer.heads", .missing = (heads)),                           \
      WF_KEY("num_v_heads", "mixer.v_heads", .missing = WF_KEEP, .value = v_heads), \
      WF_KEY("head_dim", "mixer.head_dim", .missing = (dim), .value = key_width),   \
      WF_KEY("expand_v", "mixer.expand_v", .missing = (expand))

static const wf_family_key gated_deltanet_keys[] = {
    DELTA_KEYS,
    HEADS("6", "256", "2"),
    WF_KEY("use_gate", "mixer.use_gate", .missing = "true"),
    WF_KEY("output_gate_activation", NULL, .missing = "swish"),
    {0}};
static const wf_family_key kda_keys[] = {
    DELTA_KEYS, HEADS("16", "128", "1"), WF_KEY("safe_gate", NULL, .missing = "false"), {0}};

FAMILY(deltanet, "delta_net", "fla's DeltaNet", "DeltaNetForCausalLM", deltanet_keys, "deltanet", usual_width,
       NULL);
FAMILY(gated_deltanet, "gated_deltanet", "fla's Gated DeltaNet", "GatedDeltaNetForCausalLM",
       gated_deltanet_keys, "gated_deltanet", usual_width, NULL);
FAMILY(kda, "kda", "fla's KDA", "KDAForCausalLM", kda_keys, "kda", usual_width, NULL);
