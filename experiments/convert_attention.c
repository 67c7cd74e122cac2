/* Hugging Face's GPT-2 and Llama. */
#include "experiments/convert_impl.h"

#define MIXER "blocks.#.mixer."

/* ---- GPT-2: layer norm, learned positions, biases, weights (in, out), q k v in one ---- */

#define BLOCK(i) "transformer.h.#." i
#define CONV1D(theirs, ours) \
  WF_RULE(WF_FORM_TRANSPOSED, theirs ".weight", ours ".weight"), WF_SAME(theirs ".bias", ours ".bias")

static const wf_family_rule gpt2_rules[] = {
    WF_SAME("transformer.wte.weight", "embedding.weight"),
    WF_SAME("transformer.wpe.weight", "positions.weight"),
    WF_SAME_WITH_BIAS(BLOCK("ln_1"), "blocks.#.norm1"),
    WF_RULE(WF_FORM_TRANSPOSED, BLOCK("attn.c_attn.weight"), MIXER "q.weight", MIXER "k.weight",
            MIXER "v.weight"),
    WF_SAME(BLOCK("attn.c_attn.bias"), MIXER "q.bias", MIXER "k.bias", MIXER "v.bias"),
    CONV1D(BLOCK("attn.c_proj"), "blocks.#.mixer.o"),
    WF_SAME_WITH_BIAS(BLOCK("ln_2"), "blocks.#.norm2"),
    CONV1D(BLOCK("mlp.c_fc"), "blocks.#.mlp.up"),
    CONV1D(BLOCK("mlp.c_proj"), "blocks.#.mlp.down"),
    WF_SAME_WITH_BIAS("transformer.ln_f", "norm"),
    WF_SAME("lm_head.weight", "head.weight"),
    {0}};

static const char *const gelus[] = {"gelu_new", "true", "gelu_pytorch_tanh", "true", "gelu", "false", NULL};

static const wf_family_key gpt2_keys[] = {
    WF_KEY("n_embd", "model.d_model"),
    WF_KEY("n_layer", "repeat"),
    WF_KEY("n_head", "mixer.heads"),
    WF_KEY("n_positions", "model.max_positions", .value = wf_family_positions),
    WF_KEY("vocab_size", "model.vocab", .value = wf_family_vocab),
    WF_KEY("n_inner", "mlp.width", .missing = WF_KEEP, .value = wf_family_mlp_width),
    WF_KEY("layer_norm_epsilon", "model.norm_eps", .missing = "1e-5", .value = wf_family_norm_eps),
    WF_KEY("resid_pdrop", "model.dropout", .missing = "0"),
    WF_KEY("embd_pdrop", "model.dropout", .use = WF_KEY_WRITE),
    WF_KEY("attn_pdrop", NULL, .missing = "0.0", .use = WF_KEY_WRITE),
    WF_KEY("tie_word_embeddings", "model.tie_embeddings", .missing = "true"),
    WF_KEY("activation_function", "mlp.tanh", .missing = "gelu_new", .words = gelus),
    WF_KEY("scale_attn_weights", NULL, .missing = "true"),
    WF_KEY("scale_attn_by_inverse_layer_idx", NULL, .missing = "false"),
    WF_KEY("add_cross_attention", NULL, .missing = "false"),
    {0}};

static const wf_family_need gpt2_mixer[] = {{"kv_heads", NULL},
                                            {"head_dim", NULL},
                                            {"rope_base", NULL},
                                            {"rope_fraction", NULL},
                                            {"position", "learned"},
                                            {"bias", "true"},
                                            {0}};
static const wf_family_need gpt2_mlp[] = {{"bias", "true"}, {0}};
static const char *const gpt2_ignored[] = {".attn.bias", ".attn.masked_bias", NULL};

/* Each head has its own keys and values, d_model / heads wide. */
static void gpt2_check(const wf_family_model *m, wf_text *why) {
  const wf_config_part *mixer = &m->block[0]->mixer;
  int64_t d = m->cfg->model.d_model, heads = wf_part_i64(mixer, "heads", 0),
          kv = wf_part_i64(mixer, "kv_heads", heads),
          width = heads * wf_part_i64(mixer, "head_dim", d / heads);
  if (kv != heads)
    wf_text_add(why, "%lld key and value heads for %lld heads", (long long)kv, (long long)heads);
  else if (width != d)
    wf_text_add(why, "the heads are %lld wide together, not %lld", (long long)width, (long long)d);
}

const wf_family wf_family_gpt2 = {.name = "gpt2",
                                  .title = "GPT-2",
                                  .architecture = "GPT2LMHeadModel",
                                  .prefix = "transformer.",
                                  .rules = gpt2_rules,
                                  .keys = gpt2_keys,
                                  .ignored = gpt2_ignored,
                                  .block = {{"attention", "gelu", gpt2_mixer, gpt2_mlp}},
                                  .norm = WF_NORM_LAYER,
                                  .check = gpt2_check};

/* ---- Llama: RMS norm, rotary positions on half-split channels, grouped queries, SwiGLU ---- */

#define LAYER(i) "model.layers.#." i

static const wf_family_rule llama_rules[] = {
    WF_SAME("model.embed_tokens.weight", "embedding.weight"),
    WF_SAME(LAYER("input_layernorm.weight"), "blocks.#.norm1.weight"),
    WF_SAME_WITH_BIAS(LAYER("self_attn.q_proj"), "blocks.#.mixer.q"),
    WF_SAME_WITH_BIAS(LAYER("self_attn.k_proj"), "blocks.#.mixer.k"),
    WF_SAME_WITH_BIAS(LAYER("self_attn.v_proj"), "blocks.#.mixer.v"),
    WF_SAME_WITH_BIAS(LAYER("self_attn.o_proj"), "blocks.#.mixer.o"),
    WF_SAME(LAYER("post_attention_layernorm.weight"), "blocks.#.norm2.weight"),
    WF_SAME_WITH_BIAS(LAYER("mlp.gate_proj"), "blocks.#.mlp.gate"),
    WF_SAME_WITH_BIAS(LAYER("mlp.up_proj"), "blocks.#.mlp.up"),
    WF_SAME_WITH_BIAS(LAYER("mlp.down_proj"), "blocks.#.mlp.down"),
    WF_SAME("model.norm.weight", "norm.weight"),
    WF_SAME("lm_head.weight", "head.weight"),
    {0}};

static double head_dim(const wf_family_model *m) {
  const wf_config_part *mixer = &m->block[0]->mixer;
  return (double)wf_part_i64(mixer, "head_dim", m->cfg->model.d_model / wf_part_i64(mixer, "heads", 1));
}

/* The rotary base stands at the top, or in rope_parameters since transformers 5. */
static const wf_family_key llama_keys[] = {
    WF_KEY("hidden_size", "model.d_model"),
    WF_KEY("num_hidden_layers", "repeat"),
    WF_KEY("num_attention_heads", "mixer.heads"),
    WF_KEY("num_key_value_heads", "mixer.kv_heads", .missing = WF_KEEP, .value = wf_family_kv_heads),
    WF_KEY("head_dim", "mixer.head_dim", .missing = WF_KEEP, .value = head_dim),
    WF_KEY("max_position_embeddings", "model.max_positions", .missing = "2048", .value = wf_family_positions),
    WF_KEY("vocab_size", "model.vocab", .value = wf_family_vocab),
    WF_KEY("intermediate_size", "mlp.width", .value = wf_family_mlp_width),
    WF_KEY("rms_norm_eps", "model.norm_eps", .missing = "1e-6", .value = wf_family_norm_eps),
    WF_KEY("tie_word_embeddings", "model.tie_embeddings", .missing = "false"),
    WF_KEY("attention_bias", "mixer.bias", .missing = "false"),
    WF_KEY("mlp_bias", "mlp.bias", .missing = "false"),
    WF_KEY("attention_dropout", NULL, .missing = "0.0", .use = WF_KEY_WRITE),
    WF_KEY("hidden_act", NULL, .missing = "silu"),
    WF_KEY("rope_theta", "mixer.rope_base", .missing = "10000"),
    WF_KEY("rope_parameters.rope_theta", "mixer.rope_base", .missing = WF_KEEP),
    WF_KEY("rope_scaling.rope_theta", "mixer.rope_base", .missing = WF_KEEP, .use = WF_KEY_READ),
    WF_KEY("rope_parameters.rope_type", NULL, .missing = "default"),
    WF_KEY("rope_parameters.type", NULL, .missing = "default", .use = WF_KEY_READ),
    WF_KEY("rope_scaling.rope_type", NULL, .missing = "default", .use = WF_KEY_READ),
    WF_KEY("rope_scaling.type", NULL, .missing = "default", .use = WF_KEY_READ),
    WF_KEY("partial_rotary_factor", NULL, .missing = "1", .use = WF_KEY_READ),
    WF_KEY("rope_parameters.partial_rotary_factor", NULL, .missing = "1", .use = WF_KEY_READ),
    {0}};

static const wf_family_need llama_mlp[] = {{"expand", NULL}, {"multiple", NULL}, {0}};
static const char *const llama_ignored[] = {".rotary_emb.inv_freq", NULL};

const wf_family wf_family_llama = {.name = "llama",
                                   .title = "Llama",
                                   .architecture = "LlamaForCausalLM",
                                   .prefix = "model.",
                                   .rules = llama_rules,
                                   .keys = llama_keys,
                                   .ignored = llama_ignored,
                                   .block = {{"attention", "swiglu", NULL, llama_mlp}},
                                   .norm = WF_NORM_RMS};
