/* xLSTM: the large form (Hugging Face's xLSTMForCausalLM, xLSTM 7B) and the xlstm package's xLSTMLMModel
 * (NeurIPS 2024), whose config.json is its configuration's fields as a dictionary. */
#include "experiments/convert_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const ignored[] = {NULL};
#define MIXER(i) "blocks.#.mixer." i

/* ---- the large form ---- */

#define BLOCK(i) "backbone.blocks.#." i
#define LAYER(i) "backbone.blocks.#.mlstm_layer." i

static const wf_family_rule large_rules[] = {
    {.theirs = "backbone.embeddings.weight", .older = "embedding.weight", .ours = {"embedding.weight"}},
    WF_SAME(BLOCK("norm_mlstm.weight"), "blocks.#.norm1.weight"),
    WF_SAME(LAYER("q.weight"), MIXER("q.weight")),
    WF_SAME(LAYER("k.weight"), MIXER("k.weight")),
    WF_SAME(LAYER("v.weight"), MIXER("v.weight")),
    WF_SAME(LAYER("ogate_preact.weight"), MIXER("ogate_preact.weight")),
    WF_SAME_WITH_BIAS(LAYER("igate_preact"), MIXER("igate_preact")),
    WF_SAME_WITH_BIAS(LAYER("fgate_preact"), MIXER("fgate_preact")),
    WF_SAME(LAYER("multihead_norm.weight"), MIXER("norm.weight")),
    WF_SAME(LAYER("out_proj.weight"), MIXER("out.weight")),
    WF_SAME(BLOCK("norm_ffn.weight"), "blocks.#.norm2.weight"),
    WF_SAME(BLOCK("ffn.proj_up_gate.weight"), "blocks.#.mlp.gate.weight"),
    WF_SAME(BLOCK("ffn.proj_up.weight"), "blocks.#.mlp.up.weight"),
    WF_SAME(BLOCK("ffn.proj_down.weight"), "blocks.#.mlp.down.weight"),
    WF_SAME("backbone.out_norm.weight", "norm.weight"),
    WF_SAME("lm_head.weight", "head.weight"),
    {0}};

static const wf_family_key large_keys[] = {
    WF_KEY("embedding_dim", "model.d_model", .missing = WF_KEEP),
    WF_KEY("hidden_size", "model.d_model", .missing = WF_KEEP),
    WF_KEY("num_blocks", "repeat", .missing = WF_KEEP),
    WF_KEY("num_hidden_layers", "repeat", .missing = WF_KEEP),
    WF_KEY("num_heads", "mixer.heads", .missing = "8"),
    WF_KEY("vocab_size", "model.vocab", .value = wf_family_vocab),
    WF_KEY("norm_eps", "model.norm_eps", .missing = "1e-6", .value = wf_family_norm_eps),
    WF_KEY("tie_word_embeddings", "model.tie_embeddings", .missing = "false"),
    WF_KEY("qk_dim_factor", "mixer.qk_factor", .missing = "0.5"),
    WF_KEY("gate_soft_cap", "mixer.gate_cap", .missing = "15"),
    WF_KEY("output_logit_soft_cap", "model.logit_softcap", .missing = "30"),
    WF_KEY("v_dim_factor", NULL, .missing = "1.0"),
    WF_KEY("eps", NULL, .missing = "1e-6"),
    WF_KEY("use_bias", NULL, .missing = "false"),
    WF_KEY("add_out_norm", NULL, .missing = "true"),
    WF_KEY("weight_mode", NULL, .missing = "single"),
    WF_KEY("chunkwise_kernel", NULL, .missing = "chunkwise--native_autograd", .use = WF_KEY_WRITE),
    WF_KEY("sequence_kernel", NULL, .missing = "native_sequence__native", .use = WF_KEY_WRITE),
    WF_KEY("step_kernel", NULL, .missing = "native", .use = WF_KEY_WRITE),
    WF_KEY("autocast_kernel_dtype", NULL, .missing = "float32", .use = WF_KEY_WRITE),
    {0}};

static const wf_family_need large_mixer[] = {
    {"form", "large"}, {"expand", NULL}, {"qkv_block", NULL}, {"conv_width", NULL}, {0}};

/* The MLP is ffn_proj_factor times as wide, rounded up. */
static wf_status large_width(const json_t *config, wf_family_values *v) {
  int64_t step;
  const char *d = wf_values_get(v, "model.d_model");
  const json_t *factor = wf_json_value(config, "ffn_proj_factor");
  if (!d || !wf_values_get(v, "repeat"))
    return WF_FAIL(WF_EFORMAT, "%s is missing", d ? "num_blocks" : "hidden_size");
  if (factor && !json_is_number(factor)) return WF_FAIL(WF_EFORMAT, "ffn_proj_factor is not a number");
  WF_TRY(wf_json_size(config, "ffn_round_up_to_multiple_of", 64, &step));
  double width = strtod(d, NULL) * (factor ? json_number_value(factor) : 2.667) + (double)(step - 1);
  return wf_values_set(v, "mlp.width", "%.0f", floor(width / (double)step) * (double)step);
}

/* A factor that gives the width exactly: theirs is rounded down to a multiple of 1. */
static bool write_width(json_t *config, const wf_family_model *m) {
  double factor = (wf_family_mlp_width(m) + 0.25) / (double)m->cfg->model.d_model;
  return wf_json_put(config, "ffn_proj_factor", json_real(factor)) &&
         wf_json_put(config, "ffn_round_up_to_multiple_of", json_integer(1));
}

static const wf_family_need large_mlp[] = {{"width", NULL}, {"expand", NULL}, {"multiple", NULL}, {0}};

const wf_family wf_family_xlstm_large = {.name = "xlstm",
                                         .title = "xLSTM large",
                                         .architecture = "xLSTMForCausalLM",
                                         .prefix = "backbone.",
                                         .rules = large_rules,
                                         .keys = large_keys,
                                         .ignored = ignored,
                                         .block = {{"mlstm", "swiglu", large_mixer, large_mlp}},
                                         .norm = WF_NORM_RMS,
                                         .softcap = true,
                                         .derive = large_width,
                                         .finish = write_width};

/* ---- the package's blocks: mLSTM, and sLSTM with a gated MLP ---- */

#undef BLOCK
#undef LAYER
#define BLOCK(i)             "xlstm_block_stack.blocks.#." i
#define LAYER(i)             "xlstm_block_stack.blocks.#.xlstm." i
#define NORM(theirs_, ours_) WF_RULE(WF_FORM_MINUS_ONE, theirs_ ".weight", ours_ ".weight")
#define MLSTM(theirs_, ours_) \
  { .theirs = LAYER(theirs_), .ours = {MIXER(ours_)}, .where = MIXER("learnable_skip") }
#define SLSTM(form_, theirs_, ours_) \
  { .theirs = LAYER(theirs_), .ours = {MIXER(ours_)}, .form = (form_), .where = MIXER("recurrent_kernel") }

/* Their sLSTM's fgate feeds the input gate and igate the forget gate; biases and the recurrent kernel are in
 * the order i, f, z, o, laid out as the backend likes. */
#define RULES(kernel, bias)                                                                           \
  WF_SAME("token_embedding.weight", "embedding.weight"), NORM(BLOCK("xlstm_norm"), "blocks.#.norm1"), \
      WF_SAME_WITH_BIAS(LAYER("conv1d.conv"), MIXER("conv")), MLSTM("proj_up.weight", "up.weight"),   \
      MLSTM("q_proj.weight", "q.weight"), MLSTM("k_proj.weight", "k.weight"),                         \
      MLSTM("v_proj.weight", "v.weight"), MLSTM("mlstm_cell.igate.weight", "igate.weight"),           \
      MLSTM("mlstm_cell.igate.bias", "igate.bias"), MLSTM("mlstm_cell.fgate.weight", "fgate.weight"), \
      MLSTM("mlstm_cell.fgate.bias", "fgate.bias"), MLSTM("learnable_skip", "learnable_skip"),        \
      MLSTM("proj_down.weight", "down.weight"),                                                       \
      {.theirs = LAYER("mlstm_cell.outnorm.weight"),                                                  \
       .ours = {MIXER("norm.weight")},                                                                \
       .form = WF_FORM_MINUS_ONE,                                                                     \
       .where = MIXER("learnable_skip")},                                                             \
      SLSTM(WF_FORM_SAME, "fgate.weight", "igate.weight"),                                            \
      SLSTM(WF_FORM_SAME, "igate.weight", "fgate.weight"),                                            \
      SLSTM(WF_FORM_SAME, "zgate.weight", "zgate.weight"),                                            \
      SLSTM(WF_FORM_SAME, "ogate.weight", "ogate.weight"),                                            \
      SLSTM(kernel, "slstm_cell._recurrent_kernel_", "recurrent_kernel"),                             \
      SLSTM(bias, "slstm_cell._bias_", "bias"),                                                       \
      SLSTM(WF_FORM_MINUS_ONE, "group_norm.weight", "norm.weight"),                                   \
      NORM(BLOCK("ffn_norm"), "blocks.#.norm2"),                                                      \
      WF_SAME(BLOCK("ffn.proj_up.weight"), "blocks.#.mlp.gate.weight", "blocks.#.mlp.up.weight"),     \
      WF_SAME(BLOCK("ffn.proj_down.weight"), "blocks.#.mlp.down.weight"),                             \
      NORM("xlstm_block_stack.post_blocks_norm", "norm"), WF_SAME("lm_head.weight", "head.weight")

static const wf_family_rule vanilla_rules[] = {RULES(WF_FORM_SAME, WF_FORM_SAME), {0}};
static const wf_family_rule cuda_rules[] = {RULES(WF_FORM_TURNED, WF_FORM_HEADS_FIRST), {0}};

static const wf_family_key block_keys[] = {
    WF_KEY("embedding_dim", "model.d_model"),
    WF_KEY("num_blocks", "repeat"),
    WF_KEY("vocab_size", "model.vocab", .value = wf_family_vocab),
    WF_KEY("context_length", "model.max_positions", .value = wf_family_positions),
    WF_KEY("tie_weights", "model.tie_embeddings", .missing = "false"),
    WF_KEY("dropout", "model.dropout", .missing = "0"),
    WF_KEY("bias", NULL, .missing = "false"),
    WF_KEY("add_post_blocks_norm", NULL, .missing = "true"),
    WF_KEY("add_embedding_dropout", NULL, .missing = "true", .use = WF_KEY_WRITE),
    WF_KEY("mlstm_block.mlstm.num_heads", "mixer.heads", .missing = "4"),
    WF_KEY("mlstm_block.mlstm.conv1d_kernel_size", "mixer.conv_width", .missing = "4"),
    WF_KEY("mlstm_block.mlstm.qkv_proj_blocksize", "mixer.qkv_block", .missing = "4"),
    WF_KEY("mlstm_block.mlstm.proj_factor", "mixer.expand", .missing = "2"),
    WF_KEY("mlstm_block.mlstm.round_proj_up_to_multiple_of", NULL, .missing = "64"),
    WF_KEY("mlstm_block.mlstm.round_proj_up_dim_up", NULL, .missing = "true"),
    WF_KEY("slstm_block.slstm.num_heads", "mixer1.heads", .missing = "4"),
    WF_KEY("slstm_block.slstm.conv1d_kernel_size", "mixer1.conv_width", .missing = "4"),
    WF_KEY("slstm_block.slstm.function", NULL, .missing = "slstm"),
    WF_KEY("slstm_block.slstm.group_norm_weight", NULL, .missing = "true"),
    WF_KEY("slstm_block.slstm.backend", NULL, .missing = "vanilla", .use = WF_KEY_WRITE),
    WF_KEY("slstm_block.slstm.dtype", NULL, .missing = "float32", .use = WF_KEY_WRITE),
    WF_KEY("slstm_block.feedforward.act_fn", NULL, .missing = "gelu"),
    WF_KEY("slstm_block.feedforward.ff_type", NULL, .missing = "ffn_gated"),
    WF_KEY("slstm_block.feedforward.round_proj_up_dim_up", NULL, .missing = "true"),
    {0}};

static const wf_family_need mlstm_mixer[] = {{"qk_factor", NULL}, {"gate_cap", NULL}, {0}};
static const wf_family_need slstm_mixer[] = {{"recurrent_init", NULL}, {0}};
static const wf_family_need slstm_mlp[] = {{"width", NULL}, {"expand", NULL}, {"multiple", NULL}, {0}};

static bool is_block_stack(const json_t *config) {
  return wf_json_value(config, "embedding_dim") && wf_json_value(config, "num_blocks") &&
         (wf_json_value(config, "mlstm_block") || wf_json_value(config, "slstm_block"));
}

/* The backend that the sLSTM's tensors are laid out for; the package's default is cuda. */
static bool is_vanilla(const json_t *config) {
  const json_t *backend = wf_json_value(config, "slstm_block.slstm.backend");
  return is_block_stack(config) &&
         (!wf_json_value(config, "slstm_block") ||
          (json_is_string(backend) && strcmp(json_string_value(backend), "vanilla") == 0));
}

/* slstm_at: "all", or a list of the sLSTM blocks' numbers. Without mLSTM blocks all are sLSTM's. */
static int kind_of_block(const json_t *config, int64_t block) {
  const json_t *at = wf_json_value(config, "slstm_at");
  if (!wf_json_value(config, "mlstm_block") || json_is_string(at)) return 1;
  for (size_t i = 0; i < json_array_size(at); i++)
    if (json_integer_value(json_array_get(at, i)) == block) return 1;
  return 0;
}

static wf_status block_width(const json_t *config, wf_family_values *v) {
  int64_t step;
  const json_t *factor = wf_json_value(config, "slstm_block.feedforward.proj_factor");
  WF_TRY(wf_json_size(config, "slstm_block.feedforward.round_proj_up_to_multiple_of", 64, &step));
  double width = strtod(wf_values_get(v, "model.d_model"), NULL) *
                 (json_is_number(factor) ? json_number_value(factor) : 1.3);
  return wf_values_set(v, "mlp1.width", "%.0f", ceil(width / (double)step) * (double)step);
}

/* The numbers of the sLSTM blocks, and a factor that gives their MLPs' width exactly: theirs is rounded up to
 * a multiple of 1. A kind that the model has not is null. */
static bool write_blocks(json_t *config, const wf_family_model *m) {
  json_t *at = json_array();
  int64_t width = 0;
  size_t slstm = 0;
  for (size_t i = 0; at && i < m->n_blocks; i++) {
    char name[64];
    if (strcmp(m->block[i]->mixer.type, "slstm") != 0) continue;
    snprintf(name, sizeof name, "blocks.%zu.mlp.up.weight", i);
    width = wf_rows_of(m->params, name);
    slstm++;
    json_array_append_new(at, json_integer((json_int_t)i));
  }
  if (!wf_json_put(config, "slstm_at", at)) return false;
  if (slstm == 0) return wf_json_put(config, "slstm_block", json_null());
  if (slstm == m->n_blocks && !wf_json_put(config, "mlstm_block", json_null())) return false;
  double factor = ((double)width - 0.25) / (double)m->cfg->model.d_model;
  return wf_json_put(config, "slstm_block.feedforward.proj_factor", json_real(factor)) &&
         wf_json_put(config, "slstm_block.feedforward.round_proj_up_to_multiple_of", json_integer(1));
}

/* Its layer norms add 1e-5. */
static void check_eps(const wf_family_model *m, wf_text *why) {
  double eps = wf_config_norm_eps(m->cfg);
  if (eps != 1e-5) wf_text_add(why, "model.norm_eps is %g, not 1e-5", eps);
}

#define BLOCK_STACK(rules_, knows_)                                                                   \
  .name = "xlstm_block_stack", .prefix = "", .rules = rules_, .keys = block_keys, .ignored = ignored, \
  .block = {{"mlstm", NULL, mlstm_mixer, NULL}, {"slstm", "geglu", slstm_mixer, slstm_mlp}},          \
  .norm = WF_NORM_LAYER, .bare_norms = true, .knows = knows_, .kind = kind_of_block, .derive = block_width

const wf_family wf_family_xlstm = {BLOCK_STACK(vanilla_rules, is_vanilla), .title = "xLSTM",
                                   .finish = write_blocks, .check = check_eps};
const wf_family wf_family_xlstm_cuda = {BLOCK_STACK(cuda_rules, is_block_stack), .title = "xLSTM for CUDA",
                                        .read_only = true};
