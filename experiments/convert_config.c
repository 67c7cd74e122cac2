/* config.json to a Weft config and back, through a family's table of keys. */
#include "experiments/convert_impl.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

enum { SEQ_LEN = 1024 }; /* at most, of the config made for an imported model */

const char WF_KEEP[] = "";

/* ---- values by our names ---- */

wf_status wf_values_set(wf_family_values *v, const char *ours, const char *fmt, ...) {
  int i = 0, n;
  while (i < v->n && strcmp(v->item[i].ours, ours) != 0) i++;
  if (i == (int)(sizeof v->item / sizeof *v->item)) return WF_FAIL(WF_EINTERNAL, "too many keys");
  va_list args;
  va_start(args, fmt);
  n = vsnprintf(v->item[i].text, sizeof v->item[i].text, fmt, args);
  va_end(args);
  v->item[i].ours = ours;
  if (i == v->n) v->n++;
  return n < (int)sizeof v->item[i].text ? WF_OK
                                         : WF_FAIL(WF_EFORMAT, "%.60s... is too long", v->item[i].text);
}

const char *wf_values_get(const wf_family_values *v, const char *ours) {
  for (int i = 0; i < v->n; i++)
    if (strcmp(v->item[i].ours, ours) == 0) return v->item[i].text;
  return NULL;
}

/* `path` without `part` and its dot; NULL where it begins with something else. */
static const char *within(const char *path, const char *part) {
  size_t n = strlen(part);
  return strncmp(path, part, n) == 0 && path[n] == '.' ? path + n + 1 : NULL;
}

/* "mixer", 1 -> "mixer1": the parts of the second kind of block. */
static const char *part_name(wf_config_kind kind, int block, char out[16]) {
  snprintf(out, 16, block ? "%s%d" : "%s", wf_config_kind_name(kind), block);
  return out;
}

/* The table that describes what stands at `path`, and the name in it. NULL: repeat. */
static wf_status option_of(const wf_family *f, const char *path, const wf_option **out) {
  const char *name = within(path, "model");
  const wf_option *table = NULL;
  wf_config_type type;
  char part[16];
  *out = NULL;
  if (strcmp(path, "repeat") == 0) return WF_OK;
  for (const wf_config_section *s = wf_config_sections; name && s->name; s++)
    if (strcmp(s->name, "model") == 0) table = s->table;
  for (int i = 0; !name && i < 2 * WF_FAMILY_BLOCKS; i++) {
    wf_config_kind kind = i % 2 ? WF_CONFIG_MLP : WF_CONFIG_MIXER;
    const wf_family_block *b = &f->block[i / 2];
    name = within(path, part_name(kind, i / 2, part));
    if (name && wf_config_find_type(wf_types, kind, i % 2 ? b->mlp : b->mixer, &type)) table = type.options;
  }
  *out = name && table ? wf_options_find(table, name) : NULL;
  return *out ? WF_OK : WF_FAIL(WF_EINTERNAL, "%s: this build has no %s", f->title, path);
}

/* ---- reading ---- */

const json_t *wf_json_value(const json_t *o, const char *key) {
  char head[64];
  const char *dot = strchr(key, '.');
  if (!dot) {
    const json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v;
  }
  snprintf(head, sizeof head, "%.*s", (int)(dot - key), key);
  return wf_json_value(json_object_get(o, head), dot + 1);
}

wf_status wf_json_size(const json_t *o, const char *key, int64_t missing, int64_t *out) {
  const json_t *v = wf_json_value(o, key);
  *out = v ? json_integer_value(v) : missing;
  return !v || (json_is_integer(v) && *out > 0) ? WF_OK
                                                : WF_FAIL(WF_EFORMAT, "%s is not a positive integer", key);
}

static wf_status text_of(const char *key, const json_t *v, char out[64]) {
  int n = 0;
  if (json_is_integer(v))
    n = snprintf(out, 64, "%lld", (long long)json_integer_value(v));
  else if (json_is_real(v))
    n = snprintf(out, 64, "%.17g", json_real_value(v));
  else if (json_is_boolean(v))
    n = snprintf(out, 64, json_is_true(v) ? "true" : "false");
  else if (json_is_string(v))
    n = snprintf(out, 64, "%s", json_string_value(v));
  else
    n = snprintf(out, 64, json_is_array(v) ? "a list" : "an object");
  return n < 64 ? WF_OK : WF_FAIL(WF_EFORMAT, "%s is too long: %.60s", key, out);
}

static wf_status check_kind(const char *key, const json_t *v, const wf_option *o) {
  if (o && o->flags & WF_OPT_AUTO && json_is_string(v) && strcmp(json_string_value(v), "auto") == 0)
    return WF_OK;
  if (!o || o->type == WF_OPT_TYPE_I64)
    return json_is_integer(v) && (double)json_integer_value(v) >= (o ? o->min : 1)
               ? WF_OK
               : WF_FAIL(WF_EFORMAT, "%s is not a positive integer", key);
  if (o->type == WF_OPT_TYPE_F64)
    return json_is_number(v) ? WF_OK : WF_FAIL(WF_EFORMAT, "%s is not a number", key);
  if (o->type == WF_OPT_TYPE_BOOL)
    return json_is_boolean(v) ? WF_OK : WF_FAIL(WF_EFORMAT, "%s is not true or false", key);
  return WF_OK;
}

static wf_status unsupported(const wf_family_key *k, const char *has) {
  wf_status s = WF_FAIL(WF_EUNSUPPORTED, "%s is %s, which Weft's layers have not", k->theirs, has);
  return k->ours ? s : wf_hint(s, "they have only %s", k->missing);
}

/* Their text in our words. */
static wf_status translate(const wf_family_key *k, char text[64]) {
  for (const char *const *w = k->words; *w; w += 2)
    if (strcmp(w[0], text) == 0) {
      snprintf(text, 64, "%s", w[1]);
      return WF_OK;
    }
  return unsupported(k, text);
}

/* Equal as text or, both being numbers, as numbers. */
static bool same(const char *a, const char *b) {
  char *end_a, *end_b;
  double x = strtod(a, &end_a), y = strtod(b, &end_b);
  return strcmp(a, b) == 0 || (*a && *b && !*end_a && !*end_b && x == y);
}

static wf_status read_key(const wf_family *f, const wf_family_key *k, const json_t *o,
                          wf_family_values *out) {
  const json_t *v = wf_json_value(o, k->theirs);
  const wf_option *option = NULL;
  char text[64];
  if (k->use == WF_KEY_WRITE || (!v && k->missing == WF_KEEP)) return WF_OK;
  if (!v && !k->missing) return WF_FAIL(WF_EFORMAT, "%s is missing", k->theirs);
  if (k->ours) WF_TRY(option_of(f, k->ours, &option));
  if (v && k->ours && !k->words) WF_TRY(check_kind(k->theirs, v, option));
  if (v)
    WF_TRY(text_of(k->theirs, v, text));
  else
    snprintf(text, sizeof text, "%s", k->missing);
  if (!k->ours) return same(text, k->missing) ? WF_OK : unsupported(k, text);
  if (k->words) WF_TRY(translate(k, text));
  return wf_values_set(out, k->ours, "%s", text);
}

/* {type: gla, heads: 4}: what the family needs, and what the config.json says. */
static void add_part(wf_text *t, const wf_family_values *v, wf_config_kind kind, int block, const char *type,
                     const wf_family_need *needs) {
  char part[16];
  wf_text_add(t, "      %s: {type: %s", wf_config_kind_name(kind), type);
  for (; needs && needs->option; needs++)
    if (needs->value) wf_text_add(t, ", %s: %s", needs->option, needs->value);
  for (int i = 0; i < v->n; i++) {
    const char *name = within(v->item[i].ours, part_name(kind, block, part));
    if (name) wf_text_add(t, ", %s: %s", name, v->item[i].text);
  }
  wf_text_add(t, "}\n");
}

static int kind_of(const wf_family *f, const json_t *o, int64_t block) {
  return f->kind ? f->kind(o, block) : 0;
}

static void add_blocks(wf_text *t, const wf_family *f, const json_t *o, const wf_family_values *v) {
  int64_t n = strtoll(wf_values_get(v, "repeat"), NULL, 10);
  wf_text_add(t, "  blocks:\n");
  for (int64_t i = 0, end; i < n; i = end) {
    int kind = kind_of(f, o, i);
    end = f->kind ? i + 1 : n;
    while (end < n && kind_of(f, o, end) == kind) end++;
    wf_text_add(t, "    - repeat: %lld\n", (long long)(end - i));
    const wf_family_block *b = &f->block[kind];
    add_part(t, v, WF_CONFIG_MIXER, kind, b->mixer, b->mixer_needs);
    if (b->mlp) add_part(t, v, WF_CONFIG_MLP, kind, b->mlp, b->mlp_needs);
  }
}

/* The sections beside the model are those of a model that was not trained here. */
static wf_status to_yaml(const wf_family *f, const json_t *o, const wf_family_values *v, wf_text *t) {
  const char *positions = wf_values_get(v, "model.max_positions");
  long long seq = positions ? strtoll(positions, NULL, 10) : SEQ_LEN;
  if (seq > SEQ_LEN) seq = SEQ_LEN;
  wf_text_add(t, "model:\n  norm: %s\n  norm_bias: %s\n", f->norm == WF_NORM_RMS ? "rmsnorm" : "layernorm",
              f->bare_norms ? "false" : "true");
  for (int i = 0; i < v->n; i++) {
    const char *name = within(v->item[i].ours, "model");
    if (name) wf_text_add(t, "  %s: %s\n", name, v->item[i].text);
  }
  add_blocks(t, f, o, v);
  wf_text_add(t, "data: {store: store.h5, seq_len: %lld}\n", seq);
  wf_text_add(t, "train: {steps: 1000, batch_tokens: %lld, optimizer: {type: adamw, lr: 1.0e-4}}\n", 8 * seq);
  return t->status;
}

static wf_status find_family(const json_t *o, const wf_family **f) {
  const json_t *type = wf_json_value(o, "model_type");
  for (int i = 0; wf_families[i]; i++) {
    *f = wf_families[i];
    if ((*f)->knows ? (*f)->knows(o)
                    : type && json_is_string(type) && strcmp(json_string_value(type), (*f)->name) == 0)
      return WF_OK;
  }
  if (!type) return WF_FAIL(WF_EFORMAT, "model_type is missing");
  wf_text names = {0};
  for (int i = 0; wf_families[i]; i++) wf_text_add(&names, "%s%s", i ? ", " : "", wf_families[i]->name);
  wf_status s = wf_hint(WF_FAIL(WF_EUNSUPPORTED, "model_type is %s, an architecture that Weft does not read",
                                json_is_string(type) ? json_string_value(type) : "no text"),
                        "these are read: %s", names.p ? names.p : "");
  wf_text_free(&names);
  return s;
}

static wf_status read_root(const json_t *o, const wf_family **f, wf_text *t) {
  wf_family_values v = {.n = 0};
  if (!json_is_object(o)) return WF_FAIL(WF_EFORMAT, "not an object");
  WF_TRY(find_family(o, f));
  for (const wf_family_key *k = (*f)->keys; k->theirs; k++) WF_TRY(read_key(*f, k, o, &v));
  if ((*f)->derive) WF_TRY((*f)->derive(o, &v));
  return to_yaml(*f, o, &v, t);
}

/* Python writes Infinity and NaN, which JSON has not: a number as wide in their place, outside of strings. */
static void replace_infinities(char *json, size_t n) {
  static const char *const words[] = {"Infinity", "1.0e+308", "NaN", "0.0"};
  bool quoted = false;
  for (size_t i = 0; i < n; i++) {
    if (json[i] == '"') quoted = !quoted;
    if (quoted && json[i] == '\\') i++; /* and what it escapes */
    for (int k = 0; k < 4 && !quoted; k += 2) {
      size_t length = strlen(words[k]);
      if (n - i >= length && memcmp(json + i, words[k], length) == 0) memcpy(json + i, words[k + 1], length);
    }
  }
}

wf_status wf_family_read_config(const char *name, const char *json, size_t n, const wf_family **f,
                                char **yaml) {
  json_error_t where;
  wf_text t = {0};
  *yaml = NULL;
  char *copy = wf_alloc("convert", n + 1);
  if (!copy) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  memcpy(copy, json, n);
  replace_infinities(copy, n);
  json_t *root = json_loadb(copy, n, JSON_REJECT_DUPLICATES, &where);
  wf_free(copy);
  if (!root) return WF_FAIL(WF_EFORMAT, "%s:%d:%d: no JSON: %s", name, where.line, where.column, where.text);
  wf_status s = read_root(root, f, &t);
  json_decref(root);
  if (s == WF_OK) return wf_text_take(&t, yaml);
  wf_text_free(&t);
  return wf_context(s, "%s", name);
}

/* ---- writing ---- */

int64_t wf_rows_of(const wf_params *ps, const char *name) {
  const wf_param *p = wf_params_find(ps, name);
  return p ? p->shape[0] : 0;
}

double wf_family_vocab(const wf_family_model *m) {
  return (double)wf_rows_of(m->params, "embedding.weight");
}
double wf_family_norm_eps(const wf_family_model *m) {
  return wf_config_norm_eps(m->cfg);
}
double wf_family_mlp_width(const wf_family_model *m) {
  return (double)wf_rows_of(m->params, "blocks.0.mlp.up.weight");
}
double wf_family_positions(const wf_family_model *m) {
  int64_t n = m->cfg->model.max_positions;
  return (double)(n == WF_AUTO_I64 ? m->cfg->data.seq_len : n);
}

double wf_family_kv_heads(const wf_family_model *m) {
  const wf_config_part *mixer = &m->block[0]->mixer;
  return (double)wf_part_i64(mixer, "kv_heads", wf_part_i64(mixer, "heads", 0));
}

/* The struct that an option of the path lies in. */
static const void *holder_of(const wf_family_model *m, const char *path) {
  char part[16];
  if (within(path, "model")) return &m->cfg->model;
  for (int kind = 0; kind < WF_FAMILY_BLOCKS; kind++)
    for (size_t i = 0; i < m->n_blocks; i++) {
      const wf_config_block *b = m->block[i];
      if (!b->mixer.type || strcmp(b->mixer.type, m->family->block[kind].mixer) != 0) continue;
      if (within(path, part_name(WF_CONFIG_MIXER, kind, part))) return b->mixer.options;
      if (within(path, part_name(WF_CONFIG_MLP, kind, part))) return b->mlp.options;
    }
  return NULL;
}

/* The JSON that a text is, else a JSON string. */
static json_t *json_of(const char *text) {
  json_error_t ignored;
  json_t *v = json_loads(text, JSON_DECODE_ANY, &ignored);
  return v ? v : json_string(text);
}

static json_t *value_of(const wf_family_model *m, const wf_family_key *k) {
  const wf_option *o;
  char text[64] = "";
  if (!k->ours) return json_of(k->missing);
  if (strcmp(k->ours, "repeat") == 0) return json_integer((json_int_t)m->n_blocks);
  if (option_of(m->family, k->ours, &o) != WF_OK) return NULL;
  if (k->value && o->type == WF_OPT_TYPE_I64) return json_integer((json_int_t)k->value(m));
  if (k->value) return json_real(k->value(m));
  const void *self = holder_of(m, k->ours);
  if (!self) return json_null(); /* of a kind of block that the model has not */
  if (o->type == WF_OPT_TYPE_F64) {
    double x = *(const double *)(const void *)((const char *)self + o->offset);
    return k->whole ? json_integer((json_int_t)x) : json_real(x);
  }
  wf_options_print(o, self, text, sizeof text);
  for (const char *const *w = k->words; w && *w; w += 2)
    if (strcmp(w[1], text) == 0) return json_string(w[0]);
  return json_of(text);
}

bool wf_json_put(json_t *o, const char *key, json_t *v) {
  const char *dot = strchr(key, '.');
  char head[64];
  if (!o || !v || !dot) return o && v && json_object_set_new(o, key, v) == 0;
  snprintf(head, sizeof head, "%.*s", (int)(dot - key), key);
  if (!json_object_get(o, head)) json_object_set_new(o, head, json_object());
  return wf_json_put(json_object_get(o, head), dot + 1, v);
}

static json_t *id_or_null(int64_t id) {
  return id < 0 ? json_null() : json_integer(id);
}

/* What all configs of transformers' kind have. */
static bool put_common(json_t *o, const wf_family_model *m) {
  json_t *class = json_array();
  if (class) json_array_append_new(class, json_string(m->family->architecture));
  return wf_json_put(o, "architectures", class) &&
         wf_json_put(o, "model_type", json_string(m->family->name)) &&
         wf_json_put(o, "bos_token_id", id_or_null(m->bos)) &&
         wf_json_put(o, "eos_token_id", id_or_null(m->eos)) &&
         wf_json_put(o, "initializer_range", json_real(m->cfg->model.init_std)) &&
         wf_json_put(o, "torch_dtype", json_string("float32"));
}

static bool put_all(json_t *o, const wf_family_model *m) {
  bool good = o && (!m->family->architecture || put_common(o, m));
  for (const wf_family_key *k = m->family->keys; good && k->theirs; k++)
    if (k->use != WF_KEY_READ) good = wf_json_put(o, k->theirs, value_of(m, k));
  return good && (!m->family->finish || m->family->finish(o, m));
}

wf_status wf_family_write_config(const wf_family *f, const wf_config *cfg, const wf_params *params,
                                 int64_t bos, int64_t eos, char **json) {
  const wf_config_block **block;
  wf_family_model m = {.family = f, .cfg = cfg, .params = params, .bos = bos, .eos = eos};
  *json = NULL;
  WF_TRY(wf_config_layers(cfg, &block, &m.n_blocks));
  m.block = block;
  json_t *o = json_object();
  char *text =
      put_all(o, &m) ? json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(15)) : NULL;
  if (text) *json = wf_strdup("convert", text);
  free(text);
  json_decref(o);
  wf_free(block);
  return *json ? WF_OK : WF_FAIL(WF_ENOMEM, "out of memory: config.json");
}
