/* The families, and which config each can express. */
#include "experiments/convert_impl.h"

#include <stdio.h>
#include <string.h>

#include "core/memory.h"

/* ---- finding one ---- */

/* Those that tell themselves by other keys than model_type stand last. */
const wf_family *const wf_families[] = {&wf_family_gpt2,
                                        &wf_family_llama,
                                        &wf_family_mamba,
                                        &wf_family_mamba2,
                                        &wf_family_retnet,
                                        &wf_family_gla,
                                        &wf_family_hgrn2,
                                        &wf_family_deltanet,
                                        &wf_family_gated_deltanet,
                                        &wf_family_kda,
                                        &wf_family_xlstm_large,
                                        &wf_family_xlstm,
                                        &wf_family_xlstm_cuda,
                                        &wf_family_mamba_original,
                                        &wf_family_mamba2_original,
                                        NULL};

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

/* ---- which can express a config: each check adds why not to `why` ---- */

/* A block's half and the family's word on it. */
typedef struct half {
  const wf_config_part *part;
  const char *which; /* "mixer", "mlp" */
  const char *type;  /* NULL: none */
  const wf_family_need *needs;
  const wf_family_key *keys;
  char path[16]; /* of its options in the keys: "mixer", "mlp1" */
  int block;     /* its number */
} half;

static half half_of(const wf_family *f, int kind, const wf_config_block *b, int number, bool mlp) {
  const wf_family_block *k = &f->block[kind];
  half h = {.part = mlp ? &b->mlp : &b->mixer,
            .which = mlp ? "mlp" : "mixer",
            .type = mlp ? k->mlp : k->mixer,
            .needs = mlp ? k->mlp_needs : k->mixer_needs,
            .keys = f->keys,
            .block = number};
  snprintf(h.path, sizeof h.path, kind ? "%s%d" : "%s", h.which, kind);
  return h;
}

/* Whether any value of the option will do: it has a key in the config, or a need says so. */
static bool is_free(const half *h, const char *option) {
  char path[64];
  snprintf(path, sizeof path, "%s.%s", h->path, option);
  for (const wf_family_need *n = h->needs; n && n->option; n++)
    if (!n->value && strcmp(n->option, option) == 0) return true;
  for (const wf_family_key *k = h->keys; k->theirs; k++)
    if (k->ours && strcmp(k->ours, path) == 0) return true;
  return false;
}

/* Defaults and needed values in a struct of their own, compared with what the config has. */
static wf_status compare_options(const half *h, void *wanted, wf_text *why) {
  char has[64], wants[64];
  const wf_option *table = h->part->table;
  WF_TRY(wf_options_defaults(table, wanted));
  for (const wf_family_need *n = h->needs; n && n->option; n++)
    if (n->value) WF_TRY(wf_options_set(table, wanted, n->option, n->value));
  for (const wf_option *o = table; o->name && why->n == 0; o++) {
    if (is_free(h, o->name) || wf_options_equal(o, h->part->options, wanted)) continue;
    wf_options_print(o, h->part->options, has, sizeof has);
    wf_options_print(o, wanted, wants, sizeof wants);
    wf_text_add(why, "block %d: %s.%s is %s, not %s", h->block, h->which, o->name, has, wants);
  }
  return why->status;
}

static bool is_type(const wf_config_part *part, const char *type) {
  return part->type && type ? strcmp(part->type, type) == 0 : !part->type && !type;
}

static wf_status check_half(const half *h, wf_text *why) {
  const char *has = h->part->type;
  if (!is_type(h->part, h->type)) {
    wf_text_add(why, "block %d: the %s is %s, not %s", h->block, h->which, has ? has : "none",
                h->type ? h->type : "none");
    return why->status;
  }
  if (!h->type) return WF_OK;
  wf_config_type found;
  wf_config_kind kind = h->which[1] == 'l' ? WF_CONFIG_MLP : WF_CONFIG_MIXER;
  if (!wf_config_find_type(wf_types, kind, h->type, &found))
    return WF_FAIL(WF_EINTERNAL, "this build has no %s", h->type);
  void *wanted = wf_calloc("convert", 1, found.options_size);
  if (!wanted) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  wf_status s = compare_options(h, wanted, why);
  wf_options_free(h->part->table, wanted);
  wf_free(wanted);
  return s;
}

static void check_same(const half *h, const half *first, wf_text *why) {
  for (const wf_option *o = h->part->table; h->type && o->name && why->n == 0; o++)
    if (!wf_options_equal(o, first->part->options, h->part->options))
      wf_text_add(why, "blocks %d and %d differ in %s.%s", first->block, h->block, h->which, o->name);
}

/* The kind of block with this mixer; the first where there is none. */
static int kind_with(const wf_family *f, const wf_config_block *b) {
  for (int k = 0; k < WF_FAMILY_BLOCKS; k++)
    if (f->block[k].mixer && is_type(&b->mixer, f->block[k].mixer)) return k;
  return 0;
}

static wf_status check_blocks(const wf_family_model *m, wf_text *why) {
  const wf_family *f = m->family;
  int first[WF_FAMILY_BLOCKS] = {-1, -1};
  for (int i = 0; i < (int)m->n_blocks && why->n == 0; i++) {
    const wf_config_block *b = m->block[i];
    int norm = b->norm < 0 ? m->cfg->model.norm : b->norm, kind = kind_with(f, b);
    if (b->n_beside) wf_text_add(why, "block %d has mixers beside each other", i);
    if (why->n == 0 && b->share) wf_text_add(why, "block %d shares its weights", i);
    if (first[kind] < 0) first[kind] = i;
    for (int k = 0; k < 2 && why->n == 0; k++) {
      half h = half_of(f, kind, b, i, k), one = half_of(f, kind, m->block[first[kind]], first[kind], k);
      WF_TRY(check_half(&h, why));
      if (why->n == 0) check_same(&h, &one, why);
    }
    if (why->n == 0 && norm != f->norm) wf_text_add(why, "block %d has another norm", i);
  }
  return why->status;
}

static wf_status why_not(wf_family_model *m, wf_text *why) {
  const wf_family *f = m->family;
  const wf_config_model *model = &m->cfg->model;
  if (model->norm != f->norm)
    wf_text_add(why, "the norm is %s", model->norm == WF_NORM_RMS ? "rmsnorm" : "layernorm");
  else if (f->norm == WF_NORM_LAYER && model->norm_bias == f->bare_norms)
    wf_text_add(why, "the norms have %s bias", f->bare_norms ? "a" : "no");
  else if (model->logit_softcap > 0 && !f->softcap)
    wf_text_add(why, "the logits are capped");
  if (why->n == 0) WF_TRY(check_blocks(m, why));
  if (why->n == 0 && m->n_blocks > 0 && f->check) f->check(m, why);
  return why->status;
}

/* Whether the first block could be one of the family's: only then is it worth saying why others are not. */
static bool concerns(const wf_family_model *m) {
  if (m->n_blocks == 0) return true;
  const wf_config_block *b = m->block[0];
  return is_type(&b->mixer, m->family->block[kind_with(m->family, b)].mixer);
}

static wf_status find_family(wf_family_model *m, wf_text *all, const wf_family **out) {
  for (int i = 0; wf_families[i] && !*out; i++) {
    wf_text why = {0};
    m->family = wf_families[i];
    if (m->family->read_only || !concerns(m)) continue;
    wf_status s = why_not(m, &why);
    if (s == WF_OK && why.n == 0) *out = wf_families[i];
    if (why.n) wf_text_add(all, "%s%s: %s", all->n ? "; " : "", wf_families[i]->title, why.p);
    wf_text_free(&why);
    if (s != WF_OK) return s;
  }
  if (*out || all->status != WF_OK) return all->status;
  if (!all->n)
    wf_text_add(all, "none has the mixer %s", m->block[0]->mixer.type ? m->block[0]->mixer.type : "none");
  return wf_hint(
      WF_FAIL(WF_EUNSUPPORTED, "no reference's layout can hold this model (%s)", all->p ? all->p : ""),
      "Weft's own checkpoint holds every model; h5py reads it");
}

wf_status wf_family_of(const wf_config *cfg, const wf_family **out) {
  wf_text all = {0};
  const wf_config_block **block;
  wf_family_model m = {.cfg = cfg};
  *out = NULL;
  WF_TRY(wf_config_layers(cfg, &block, &m.n_blocks));
  m.block = block;
  wf_status s = find_family(&m, &all, out);
  wf_text_free(&all);
  wf_free(block);
  return s;
}
