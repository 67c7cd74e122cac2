/* Mamba and Mamba-2: blocks of an RMS norm and a mixer. Hugging Face's configs are read and written, those of
 * the original package (state-spaces) read: the tensors are the same. */
#include "experiments/convert_impl.h"

#include <string.h>

#define LAYER(i) "backbone.layers.#." i
#define MIXER(i) "backbone.layers.#.mixer." i
#define OURS(i)  "blocks.#.mixer." i

/* What both have, and most others call embeddings the public code calls embedding. */
#define COMMON                                                                                               \
  {.theirs = "backbone.embeddings.weight",                                                                   \
   .older = "backbone.embedding.weight",                                                                     \
   .ours = {"embedding.weight"}},                                                                            \
      WF_SAME(LAYER("norm.weight"), "blocks.#.norm1.weight"),                                                \
      WF_SAME("backbone.norm_f.weight", "norm.weight"), WF_SAME("lm_head.weight", "head.weight"),            \
      WF_SAME(MIXER("in_proj.weight"), OURS("in.weight")), WF_SAME_WITH_BIAS(MIXER("conv1d"), OURS("conv")), \
      WF_SAME(MIXER("A_log"), OURS("A_log")), WF_SAME(MIXER("D"), OURS("D")),                                \
      WF_SAME(MIXER("out_proj.weight"), OURS("out.weight"))

#define COMMON_KEYS                                                                                   \
  WF_KEY("hidden_size", "model.d_model"), WF_KEY("num_hidden_layers", "repeat"),                      \
      WF_KEY("vocab_size", "model.vocab", .value = wf_family_vocab),                                  \
      WF_KEY("layer_norm_epsilon", "model.norm_eps", .missing = "1e-5", .value = wf_family_norm_eps), \
      WF_KEY("expand", "mixer.expand", .missing = "2", .whole = true),                                \
      WF_KEY("conv_kernel", "mixer.conv_width", .missing = "4"),                                      \
      WF_KEY("time_step_min", "mixer.dt_min", .missing = "0.001"),                                    \
      WF_KEY("time_step_max", "mixer.dt_max", .missing = "0.1"),                                      \
      WF_KEY("use_bias", NULL, .missing = "false"), WF_KEY("use_conv_bias", NULL, .missing = "true"), \
      WF_KEY("hidden_act", NULL, .missing = "silu")

static const char *const ignored[] = {NULL};

/* Their inner width is a whole multiple of the model's. */
static void check_expand(const wf_family_model *m, wf_text *why) {
  double expand = wf_part_f64(&m->block[0]->mixer, "expand");
  if (expand != (double)(int64_t)expand) wf_text_add(why, "mixer.expand is %g, not whole", expand);
}

/* ---- Mamba ---- */

static const wf_family_rule mamba_rules[] = {COMMON,
                                             WF_SAME(MIXER("x_proj.weight"), OURS("x.weight")),
                                             WF_SAME_WITH_BIAS(MIXER("dt_proj"), OURS("dt")),
                                             {0}};

static double rank(const wf_family_model *m) {
  return (double)wf_params_find(m->params, "blocks.0.mixer.dt.weight")->shape[1];
}

static const wf_family_key mamba_keys[] = {
    COMMON_KEYS,
    WF_KEY("tie_word_embeddings", "model.tie_embeddings", .missing = "true"),
    WF_KEY("state_size", "mixer.state", .missing = "16"),
    WF_KEY("time_step_rank", "mixer.dt_rank", .missing = WF_KEEP, .value = rank),
    {0}};

const wf_family wf_family_mamba = {.name = "mamba",
                                   .title = "Mamba",
                                   .architecture = "MambaForCausalLM",
                                   .prefix = "backbone.",
                                   .rules = mamba_rules,
                                   .keys = mamba_keys,
                                   .ignored = ignored,
                                   .block = {{"mamba", NULL, NULL, NULL}},
                                   .norm = WF_NORM_RMS,
                                   .check = check_expand};

/* ---- Mamba-2 ---- */

static const wf_family_rule mamba2_rules[] = {COMMON,
                                              WF_SAME(MIXER("dt_bias"), OURS("dt_bias")),
                                              WF_SAME(MIXER("norm.weight"), OURS("norm.weight")),
                                              {0}};

static double heads(const wf_family_model *m) {
  return (double)wf_rows_of(m->params, "blocks.0.mixer.A_log");
}

static const wf_family_key mamba2_keys[] = {
    COMMON_KEYS,
    WF_KEY("tie_word_embeddings", "model.tie_embeddings", .missing = "false"),
    WF_KEY("state_size", "mixer.state", .missing = "128"),
    WF_KEY("head_dim", "mixer.head_dim", .missing = "64"),
    WF_KEY("n_groups", "mixer.groups", .missing = "8"),
    {0}};

static const wf_family_need mamba2_mixer[] = {{"dt_limit_low", NULL}, {"dt_limit_high", NULL}, {0}};

/* time_step_limit: [low, high], where transformers writes infinity as an object. */
static wf_status read_limits(const json_t *config, wf_family_values *v) {
  static const char *const ours[] = {"mixer.dt_limit_low", "mixer.dt_limit_high"};
  const json_t *limits = wf_json_value(config, "time_step_limit");
  if (limits && json_array_size(limits) != 2)
    return WF_FAIL(WF_EFORMAT, "time_step_limit is not a list of two numbers");
  for (size_t i = 0; i < 2 && limits; i++) {
    const json_t *x = json_array_get(limits, i);
    double limit = json_is_number(x) ? json_number_value(x) : 1e30;
    WF_TRY(wf_values_set(v, ours[i], "%.17g", limit < 1e30 ? limit : 1e30));
  }
  int64_t n, dim, d, expand;
  WF_TRY(wf_json_size(config, "num_heads", 128, &n));
  WF_TRY(wf_json_size(config, "head_dim", 64, &dim));
  WF_TRY(wf_json_size(config, "hidden_size", 4096, &d));
  WF_TRY(wf_json_size(config, "expand", 2, &expand));
  return n * dim == d * expand
             ? WF_OK
             : WF_FAIL(WF_EFORMAT, "%lld heads of %lld are not %lld times hidden_size %lld wide",
                       (long long)n, (long long)dim, (long long)expand, (long long)d);
}

static bool write_limits(json_t *config, const wf_family_model *m) {
  const wf_config_part *mixer = &m->block[0]->mixer;
  double low = wf_part_f64(mixer, "dt_limit_low"), high = wf_part_f64(mixer, "dt_limit_high");
  bool good = wf_json_put(config, "num_heads", json_integer((json_int_t)heads(m)));
  if (low == 0 && high >= 1e30) return good;
  json_t *top = high < 1e30 ? json_real(high) : json_pack("{s:s}", "__float__", "Infinity");
  return good && wf_json_put(config, "time_step_limit", json_pack("[f, o]", low, top));
}

const wf_family wf_family_mamba2 = {.name = "mamba2",
                                    .title = "Mamba-2",
                                    .architecture = "Mamba2ForCausalLM",
                                    .prefix = "backbone.",
                                    .rules = mamba2_rules,
                                    .keys = mamba2_keys,
                                    .ignored = ignored,
                                    .block = {{"mamba2", NULL, mamba2_mixer, NULL}},
                                    .norm = WF_NORM_RMS,
                                    .derive = read_limits,
                                    .finish = write_limits,
                                    .check = check_expand};

/* ---- the original package's configs ---- */

#define ORIGINAL_KEYS                                                                                        \
  WF_KEY("d_model", "model.d_model"), WF_KEY("n_layer", "repeat"), WF_KEY("vocab_size", "model.vocab"),      \
      WF_KEY("tie_embeddings", "model.tie_embeddings", .missing = "true"),                                   \
      WF_KEY("norm_epsilon", "model.norm_eps", .missing = "1e-5"),                                           \
      WF_KEY("rms_norm", NULL, .missing = "true"), WF_KEY("ssm_cfg.expand", "mixer.expand", .missing = "2"), \
      WF_KEY("ssm_cfg.d_conv", "mixer.conv_width", .missing = "4"),                                          \
      WF_KEY("ssm_cfg.dt_min", "mixer.dt_min", .missing = "0.001"),                                          \
      WF_KEY("ssm_cfg.dt_max", "mixer.dt_max", .missing = "0.1")

static const wf_family_key original_keys[] = {ORIGINAL_KEYS,
                                              WF_KEY("ssm_cfg.d_state", "mixer.state", .missing = "16"),
                                              WF_KEY("ssm_cfg.dt_rank", "mixer.dt_rank", .missing = WF_KEEP),
                                              {0}};
static const wf_family_key original2_keys[] = {ORIGINAL_KEYS,
                                               WF_KEY("ssm_cfg.d_state", "mixer.state", .missing = "128"),
                                               WF_KEY("ssm_cfg.headdim", "mixer.head_dim", .missing = "64"),
                                               WF_KEY("ssm_cfg.ngroups", "mixer.groups", .missing = "1"),
                                               {0}};

static bool is_original(const json_t *config, const char *layer) {
  const json_t *own = wf_json_value(config, "ssm_cfg.layer");
  return !wf_json_value(config, "model_type") && json_is_object(wf_json_value(config, "ssm_cfg")) &&
         strcmp(json_is_string(own) ? json_string_value(own) : "Mamba1", layer) == 0;
}
static bool is_mamba(const json_t *config) {
  return is_original(config, "Mamba1");
}
static bool is_mamba2(const json_t *config) {
  return is_original(config, "Mamba2");
}

/* The rows of the embedding are padded to a multiple. Blocks of attention or with MLPs are something else. */
static wf_status pad_vocabulary(const json_t *config, wf_family_values *v) {
  int64_t rows, multiple, width = 0;
  const json_t *attention = wf_json_value(config, "attn_layer_idx"),
               *mlp = wf_json_value(config, "d_intermediate");
  if (json_is_integer(mlp)) width = json_integer_value(mlp);
  if (json_array_size(attention) > 0 || width > 0)
    return WF_FAIL(WF_EUNSUPPORTED, "%s is not empty, which Weft does not read",
                   width > 0 ? "d_intermediate" : "attn_layer_idx");
  WF_TRY(wf_json_size(config, "vocab_size", 1, &rows));
  WF_TRY(wf_json_size(config, "pad_vocab_size_multiple", 8, &multiple));
  return wf_values_set(v, "model.vocab", "%lld", (long long)((rows + multiple - 1) / multiple * multiple));
}

const wf_family wf_family_mamba_original = {.name = "state-spaces mamba",
                                            .title = "state-spaces' Mamba",
                                            .prefix = "backbone.",
                                            .rules = mamba_rules,
                                            .keys = original_keys,
                                            .ignored = ignored,
                                            .block = {{"mamba", NULL, NULL, NULL}},
                                            .norm = WF_NORM_RMS,
                                            .read_only = true,
                                            .knows = is_mamba,
                                            .derive = pad_vocabulary};
const wf_family wf_family_mamba2_original = {.name = "state-spaces mamba2",
                                             .title = "state-spaces' Mamba-2",
                                             .prefix = "backbone.",
                                             .rules = mamba2_rules,
                                             .keys = original2_keys,
                                             .ignored = ignored,
                                             .block = {{"mamba2", NULL, NULL, NULL}},
                                             .norm = WF_NORM_RMS,
                                             .read_only = true,
                                             .knows = is_mamba2,
                                             .derive = pad_vocabulary};
