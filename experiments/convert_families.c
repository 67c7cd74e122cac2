/* The tables of the families, and which config each can express. */
#include "experiments/convert_impl.h"

#include <string.h>

#include "core/memory.h"
#include "experiments/text.h"
#include "layers/layer.h"

/* ---- GPT-2 ---- */

#define BLOCK(i) "transformer.h.#." i
#define NORM(theirs, ours)                       \
  {theirs ".weight", {ours ".weight"}, false}, { \
    theirs ".bias", {ours ".bias"}, false        \
  }
#define CONV1D(theirs, ours)                    \
  {theirs ".weight", {ours ".weight"}, true}, { \
    theirs ".bias", {ours ".bias"}, false       \
  }
#define MIXER "blocks.#.mixer."

static const wf_family_rule gpt2_rules[] = {
    {"transformer.wte.weight", {"embedding.weight"}, false},
    {"transformer.wpe.weight", {"positions.weight"}, false},
    NORM(BLOCK("ln_1"), "blocks.#.norm1"),
    {BLOCK("attn.c_attn.weight"), {MIXER "q.weight", MIXER "k.weight", MIXER "v.weight"}, true},
    {BLOCK("attn.c_attn.bias"), {MIXER "q.bias", MIXER "k.bias", MIXER "v.bias"}, false},
    CONV1D(BLOCK("attn.c_proj"), "blocks.#.mixer.o"),
    NORM(BLOCK("ln_2"), "blocks.#.norm2"),
    CONV1D(BLOCK("mlp.c_fc"), "blocks.#.mlp.up"),
    CONV1D(BLOCK("mlp.c_proj"), "blocks.#.mlp.down"),
    NORM("transformer.ln_f", "norm"),
    {"lm_head.weight", {"head.weight"}, false},
    {0}};

static const wf_family_need gpt2_mixer[] = {
    {"heads", NULL},         {"kv_heads", NULL},      {"head_dim", NULL}, {"rope_base", NULL},
    {"rope_fraction", NULL}, {"position", "learned"}, {"bias", "true"},   {0}};
static const wf_family_need gpt2_mlp[] = {{"width", NULL}, {"tanh", NULL}, {"bias", "true"}, {0}};
static const char *const gpt2_ignored[] = {".attn.bias", ".attn.masked_bias", NULL};

const wf_family wf_family_gpt2 = {.name = "gpt2",
                                  .title = "GPT-2",
                                  .architecture = "GPT2LMHeadModel",
                                  .prefix = "transformer.",
                                  .rules = gpt2_rules,
                                  .ignored = gpt2_ignored,
                                  .norm = WF_NORM_LAYER,
                                  .plain_heads = true,
                                  .mixer = "attention",
                                  .mlp = "gelu",
                                  .mixer_needs = gpt2_mixer,
                                  .mlp_needs = gpt2_mlp};

/* ---- Llama ---- */

#define LAYER(i) "model.layers.#." i
#define LINEAR(theirs, ours)                     \
  {theirs ".weight", {ours ".weight"}, false}, { \
    theirs ".bias", {ours ".bias"}, false        \
  }

static const wf_family_rule llama_rules[] = {
    {"model.embed_tokens.weight", {"embedding.weight"}, false},
    {LAYER("input_layernorm.weight"), {"blocks.#.norm1.weight"}, false},
    LINEAR(LAYER("self_attn.q_proj"), "blocks.#.mixer.q"),
    LINEAR(LAYER("self_attn.k_proj"), "blocks.#.mixer.k"),
    LINEAR(LAYER("self_attn.v_proj"), "blocks.#.mixer.v"),
    LINEAR(LAYER("self_attn.o_proj"), "blocks.#.mixer.o"),
    {LAYER("post_attention_layernorm.weight"), {"blocks.#.norm2.weight"}, false},
    LINEAR(LAYER("mlp.gate_proj"), "blocks.#.mlp.gate"),
    LINEAR(LAYER("mlp.up_proj"), "blocks.#.mlp.up"),
    LINEAR(LAYER("mlp.down_proj"), "blocks.#.mlp.down"),
    {"model.norm.weight", {"norm.weight"}, false},
    {"lm_head.weight", {"head.weight"}, false},
    {0}};

static const wf_family_need llama_mixer[] = {{"heads", NULL},
                                             {"kv_heads", NULL},
                                             {"head_dim", NULL},
                                             {"rope_base", NULL},
                                             {"position", "rope"},
                                             {"bias", NULL},
                                             {0}};
static const wf_family_need llama_mlp[] = {{"width", NULL}, {"bias", NULL}, {0}};
static const char *const llama_ignored[] = {".rotary_emb.inv_freq", NULL};

const wf_family wf_family_llama = {.name = "llama",
                                   .title = "Llama",
                                   .architecture = "LlamaForCausalLM",
                                   .prefix = "model.",
                                   .rules = llama_rules,
                                   .ignored = llama_ignored,
                                   .norm = WF_NORM_RMS,
                                   .mixer = "attention",
                                   .mlp = "swiglu",
                                   .mixer_needs = llama_mixer,
                                   .mlp_needs = llama_mlp};

/* ---- finding one ---- */

const wf_family *const wf_families[] = {&wf_family_gpt2, &wf_family_llama, NULL};

const wf_family *wf_family_find(const char *name) {
  for (int i = 0; wf_families[i]; i++)
    if (strcmp(wf_families[i]->name, name) == 0) return wf_families[i];
  return NULL;
}

const char *wf_family_name(const wf_family *f) {
  return f->name;
}

int64_t wf_part_i64(const wf_config_part *part, const char *name, int64_t automatic) {
  int64_t value = *(const int64_t *)(const void *)((const char *)part->options +
                                                   wf_options_find(part->table, name)->offset);
  return value == WF_AUTO_I64 ? automatic : value;
}
double wf_part_f64(const wf_config_part *part, const char *name) {
  return *(const double *)(const void *)((const char *)part->options +
                                         wf_options_find(part->table, name)->offset);
}
bool wf_part_bool(const wf_config_part *part, const char *name) {
  return *(const bool *)((const char *)part->options + wf_options_find(part->table, name)->offset);
}

/* ---- which can express a config: each check adds why not to `why` ---- */

static const wf_family_need *need_of(const wf_family_need *needs, const char *option) {
  for (; needs->option; needs++)
    if (strcmp(needs->option, option) == 0) return needs;
  return NULL;
}

/* Defaults and needed values in a struct of their own, compared with what the config has. */
static wf_status compare_options(const wf_config_part *part, void *wanted, const wf_family_need *needs,
                                 wf_text *why, int block, const char *which) {
  char has[64], wants[64];
  WF_TRY(wf_options_defaults(part->table, wanted));
  for (const wf_family_need *n = needs; n->option; n++)
    if (n->value) WF_TRY(wf_options_set(part->table, wanted, n->option, n->value));
  for (const wf_option *o = part->table; o->name && why->n == 0; o++) {
    const wf_family_need *need = need_of(needs, o->name);
    if ((need && !need->value) || wf_options_equal(o, part->options, wanted)) continue;
    wf_options_print(o, part->options, has, sizeof has);
    wf_options_print(o, wanted, wants, sizeof wants);
    wf_text_add(why, "block %d: %s.%s is %s, not %s", block, which, o->name, has, wants);
  }
  return why->status;
}

static wf_status check_part(const wf_config_part *part, wf_config_kind kind, const char *type,
                            const wf_family_need *needs, int block, wf_text *why) {
  const char *which = wf_config_kind_name(kind);
  wf_config_type found;
  if (!part->type || strcmp(part->type, type) != 0) {
    wf_text_add(why, "block %d: the %s is %s, not %s", block, which, part->type ? part->type : "none", type);
    return why->status;
  }
  if (!wf_config_find_type(wf_types, kind, type, &found))
    return WF_FAIL(WF_EINTERNAL, "this build has no %s", type);
  void *wanted = wf_calloc("convert", 1, found.options_size);
  if (!wanted) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  wf_status s = compare_options(part, wanted, needs, why, block, which);
  wf_options_free(part->table, wanted);
  wf_free(wanted);
  return s;
}

static void check_same(const wf_config_part *a, const wf_config_part *b, int block, const char *which,
                       wf_text *why) {
  for (const wf_option *o = a->table; o->name && why->n == 0; o++)
    if (!wf_options_equal(o, a->options, b->options))
      wf_text_add(why, "blocks 0 and %d differ in %s.%s", block, which, o->name);
}

static void check_heads(const wf_config *cfg, const wf_config_part *mixer, wf_text *why) {
  int64_t heads = wf_part_i64(mixer, "heads", 0), kv = wf_part_i64(mixer, "kv_heads", heads);
  int64_t width = heads * wf_part_i64(mixer, "head_dim", cfg->model.d_model / heads);
  if (kv != heads)
    wf_text_add(why, "%lld key and value heads for %lld heads", (long long)kv, (long long)heads);
  else if (width != cfg->model.d_model)
    wf_text_add(why, "the heads are %lld wide together, not %lld", (long long)width,
                (long long)cfg->model.d_model);
}

static wf_status check_blocks(const wf_family *f, const wf_config *cfg, const wf_config_block *const *block,
                              size_t n, wf_text *why) {
  for (size_t i = 0; i < n && why->n == 0; i++) {
    const wf_config_block *b = block[i];
    int norm = b->norm < 0 ? cfg->model.norm : b->norm;
    if (b->n_beside) wf_text_add(why, "block %zu has mixers beside each other", i);
    if (why->n == 0 && b->share) wf_text_add(why, "block %zu shares its weights", i);
    if (why->n) break;
    WF_TRY(check_part(&b->mixer, WF_CONFIG_MIXER, f->mixer, f->mixer_needs, (int)i, why));
    if (why->n == 0) WF_TRY(check_part(&b->mlp, WF_CONFIG_MLP, f->mlp, f->mlp_needs, (int)i, why));
    if (why->n == 0 && norm != f->norm) wf_text_add(why, "block %zu has another norm", i);
    if (why->n == 0) check_same(&block[0]->mixer, &b->mixer, (int)i, "mixer", why);
    if (why->n == 0) check_same(&block[0]->mlp, &b->mlp, (int)i, "mlp", why);
  }
  if (why->n == 0 && n > 0 && f->plain_heads) check_heads(cfg, &block[0]->mixer, why);
  return why->status;
}

static wf_status why_not(const wf_family *f, const wf_config *cfg, wf_text *why) {
  const wf_config_block **block;
  size_t n;
  if (cfg->model.norm != f->norm) {
    wf_text_add(why, "the norm is %s", cfg->model.norm == WF_NORM_RMS ? "rmsnorm" : "layernorm");
    return why->status;
  }
  WF_TRY(wf_config_layers(cfg, &block, &n));
  wf_status s = check_blocks(f, cfg, block, n, why);
  wf_free(block);
  return s;
}

wf_status wf_family_of(const wf_config *cfg, const wf_family **out) {
  wf_text all = {0};
  wf_status s = WF_OK;
  *out = NULL;
  for (int i = 0; wf_families[i] && !*out && s == WF_OK; i++) {
    wf_text why = {0};
    s = why_not(wf_families[i], cfg, &why);
    if (s == WF_OK && why.n == 0) *out = wf_families[i];
    if (why.n) wf_text_add(&all, "%s%s: %s", all.n ? "; " : "", wf_families[i]->title, why.p);
    wf_text_free(&why);
  }
  if (s == WF_OK) s = all.status;
  if (s == WF_OK && !*out)
    s = wf_hint(WF_FAIL(WF_EUNSUPPORTED, "no layout of Hugging Face can hold this model (%s)", all.p),
                "Weft's own checkpoint holds every model; h5py reads it");
  wf_text_free(&all);
  return s;
}
