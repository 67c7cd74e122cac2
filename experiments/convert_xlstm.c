/* xLSTM: the large form (Hugging Face's xLSTMForCausalLM, xLSTM 7B) and the xlstm package's xLSTMLMModel
 * (NeurIPS 2024), whose config.json is its configuration's fields as a dictionary. */
#include "experiments/convert_impl.h"

#include <math.h>

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

static const wf_family_need large_mlp[] = {{"width", NULL}, {0}};

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

static const wf_family_rule block_rules[] = {
    WF_SAME("token_embedding.weight", "embedding.weight"),
    NORM(BLOCK("xlstm_norm"), "blocks.#.norm1"),
    WF_SAME_WITH_BIAS(LAYER("conv1d.conv"), MIXER("conv")),
    MLSTM("proj_up.weight", "up.weight"),
    MLSTM("q_proj.weight", "q.weight"),
    MLSTM("k_proj.weight", "k.weight"),
    MLSTM("v_proj.weight", "v.weight"),
    MLSTM("mlstm_cell.igate.weight", "igate.weight"),
    MLSTM("mlstm_cell.igate.bias", "igate.bias"),
    MLSTM("mlstm_cell.fgate.weight", "fgate.weight"),
    MLSTM("mlstm_cell.fgate.bias", "fgate.bias"),
    NORM(LAYER("mlstm_cell.outnorm"), MIXER("norm")),
    MLSTM("learnable_skip", "learnable_skip"),
    MLSTM("proj_down.weight", "down.weight"),
    NORM(BLOCK("ffn_norm"), "blocks.#.norm2"),
    WF_SAME(BLOCK("ffn.proj_up.weight"), "blocks.#.mlp.gate.weight", "blocks.#.mlp.up.weight"),
    WF_SAME(BLOCK("ffn.proj_down.weight"), "blocks.#.mlp.down.weight"),
    NORM("xlstm_block_stack.post_blocks_norm", "norm"),
    WF_SAME("lm_head.weight", "head.weight"),
    {0}};

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
    {0}};

static const wf_family_need mlstm_mixer[] = {{"qk_factor", NULL}, {"gate_cap", NULL}, {0}};

static bool is_block_stack(const json_t *config) {
  return wf_json_value(config, "embedding_dim") && wf_json_value(config, "num_blocks") &&
         (wf_json_value(config, "mlstm_block") || wf_json_value(config, "slstm_block"));
}

/* Its layer norms add 1e-5. */
static void check_eps(const wf_family_model *m, wf_text *why) {
  double eps = wf_config_norm_eps(m->cfg);
  if (eps != 1e-5) wf_text_add(why, "model.norm_eps is %g, not 1e-5", eps);
}

const wf_family wf_family_xlstm = {.name = "xlstm_block_stack",
                                   .title = "xLSTM",
                                   .prefix = "",
                                   .rules = block_rules,
                                   .keys = block_keys,
                                   .ignored = ignored,
                                   .block = {{"mlstm", NULL, mlstm_mixer, NULL}},
                                   .norm = WF_NORM_LAYER,
                                   .bare_norms = true,
                                   .knows = is_block_stack,
                                   .check = check_eps};
