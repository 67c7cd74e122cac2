/* Reading a checkpoint: its facts, and its tensors into what a snapshot names. */
#include "experiments/checkpoint_impl.h"

#include <string.h>

#include "core/h5.h"
#include "core/memory.h"

#define TAG "checkpoint"

/* ---- opening and the facts ---- */

static wf_status check_format(const wf_h5_file *f) {
  const char *is = "";
  int64_t version;
  if (wf_h5_has_attribute(f, "", "format")) WF_TRY(wf_h5_get_string(f, "", "format", &is));
  if (strcmp(is, WF_CHECKPOINT_FORMAT) != 0)
    return wf_hint(WF_FAIL(WF_EFORMAT, "%s is a Weft file, but no checkpoint", wf_h5_path(f)),
                   "checkpoints are the step-*.h5 in a run's folder");
  WF_TRY(wf_h5_get_i64(f, "", "version", &version));
  if (version != WF_CHECKPOINT_VERSION)
    return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "%s is a checkpoint of version %lld; this Weft knows version %d",
                           wf_h5_path(f), (long long)version, WF_CHECKPOINT_VERSION),
                   "use the Weft that wrote it");
  return WF_OK;
}

static wf_status open_checkpoint(const char *path, wf_h5_check check, wf_h5_file **out) {
  wf_h5_file *f;
  WF_TRY(wf_h5_open(path, check, &f));
  wf_status s = check_format(f);
  if (s == WF_OK)
    *out = f;
  else
    wf_h5_close(f);
  return s;
}

static wf_status read_bytes(const wf_h5_file *f, const char *name, char **out, size_t *size) {
  const wf_h5_info *o;
  WF_TRY(wf_h5_expect(f, name, WF_U8, 1, (int64_t[]){-1}, &o));
  WF_ALLOC(*out, TAG, (size_t)o->bytes + 1);
  (*out)[o->bytes] = '\0';
  *size = (size_t)o->bytes;
  return wf_h5_read(f, o, 0, o->count, *out);
}

static wf_status read_facts(const wf_h5_file *f, wf_checkpoint_info *out) {
  int64_t seed;
  WF_TRY(wf_h5_get_i64(f, "", "step", &out->step));
  WF_TRY(wf_h5_get_i64(f, "", "tokens", &out->tokens));
  WF_TRY(wf_h5_get_i64(f, "", "cursor", &out->cursor));
  WF_TRY(wf_h5_get_i64(f, "", "seed", &seed));
  out->seed = (uint64_t)seed;
  return WF_OK;
}

static wf_status read_info(const wf_h5_file *f, wf_checkpoint_info *out) {
  static const char embedding[] = "params/embedding.weight";
  const wf_h5_info *o;
  const char *optimizer;
  if (wf_h5_has(f, embedding)) {
    WF_TRY(wf_h5_find(f, embedding, &o));
    out->vocab = o->ndim > 0 ? o->shape[0] : 0;
  }
  WF_TRY(read_facts(f, out));
  WF_TRY(read_bytes(f, "config", &out->config, &out->config_size));
  if (wf_h5_has(f, "tokenizer")) WF_TRY(read_bytes(f, "tokenizer", &out->tokenizer, &out->tokenizer_size));
  if (!wf_h5_has_attribute(f, "", "optimizer")) return WF_OK;
  WF_TRY(wf_h5_get_string(f, "", "optimizer", &optimizer));
  out->optimizer = wf_strdup(TAG, optimizer);
  return out->optimizer ? WF_OK : WF_ENOMEM;
}

wf_status wf_checkpoint_read_info(const char *path, wf_checkpoint_info *out) {
  wf_h5_file *f;
  *out = (wf_checkpoint_info){0};
  WF_TRY(open_checkpoint(path, WF_H5_CHECK_ALL, &f));
  wf_status s = read_info(f, out);
  wf_h5_close(f);
  if (s != WF_OK) wf_checkpoint_info_free(out);
  return s;
}

void wf_checkpoint_info_free(wf_checkpoint_info *info) {
  wf_free(info->config);
  wf_free(info->tokenizer);
  wf_free(info->optimizer);
  *info = (wf_checkpoint_info){0};
}

/* ---- loading ---- */

typedef struct loading {
  wf_h5_file *f;
  const wf_h5_info **found; /* of every tensor, in the list's order */
  size_t n, cap, at;
  void *raw, *converted;
} loading;

static wf_status other_model(wf_status s) {
  return wf_error_hint()[0] ? s
                            : wf_hint(s, "the model must be the one that the checkpoint's config describes");
}

static wf_status check_tensor(void *arg, const char *name, const wf_logical *t) {
  loading *l = arg;
  const wf_h5_info *o;
  char has[96], wants[96];
  wf_status s = wf_h5_find(l->f, name, &o);
  if (s != WF_OK) return other_model(s);
  if (o->dtype != WF_F32 && o->dtype != WF_F64)
    return WF_FAIL(WF_EFORMAT, "%s: %s is %s, not f32 or f64", wf_h5_path(l->f), name,
                   wf_dtype_name(o->dtype));
  if (o->ndim != t->ndim || (t->ndim && memcmp(o->shape, t->shape, (size_t)t->ndim * sizeof *t->shape) != 0))
    return other_model(WF_FAIL(WF_ESHAPE, "%s: %s is %s, the model has %s", wf_h5_path(l->f), name,
                               wf_dims_text(o->ndim, o->shape, has), wf_dims_text(t->ndim, t->shape, wants)));
  WF_TRY(wf_grow(TAG, (void **)&l->found, sizeof *l->found, l->n, &l->cap));
  l->found[l->n++] = o;
  return WF_OK;
}

/* Every dataset under `prefix` must have been asked for. */
static wf_status check_left_over(const loading *l, const char *prefix) {
  size_t length = strlen(prefix);
  for (int64_t i = 0; i < wf_h5_entries(l->f); i++) {
    const wf_h5_info *o = wf_h5_entry(l->f, i);
    if (o->is_group || strncmp(o->name, prefix, length) != 0 || o->name[length] != '/') continue;
    bool asked = false;
    for (size_t k = 0; k < l->n && !asked; k++) asked = l->found[k] == o;
    if (!asked)
      return other_model(
          WF_FAIL(WF_ENOTFOUND, "%s has %s, which the model does not have", wf_h5_path(l->f), o->name));
  }
  return WF_OK;
}

static const void *convert(const void *from, wf_dtype have, wf_dtype want, int64_t n, void *to) {
  if (have == want) return from;
  const float *f = from;
  const double *d = from;
  for (int64_t i = 0; i < n; i++)
    if (want == WF_F32)
      ((float *)to)[i] = (float)d[i];
    else
      ((double *)to)[i] = (double)f[i];
  return to;
}

/* Elements of the file from `at` on. */
static wf_status load_pieces(const loading *l, const wf_h5_info *o, wf_tensor *t, int64_t at) {
  int64_t count;
  for (int64_t first = 0; first < wf_numel(t); first += count) {
    wf_tensor *piece;
    WF_TRY(wf_staged_piece(t, first, &count, &piece));
    WF_TRY(wf_h5_read(l->f, o, at + first, count, l->raw));
    WF_TRY(wf_tensor_write(piece, convert(l->raw, o->dtype, t->dtype, count, l->converted)));
  }
  return WF_OK;
}

static wf_status load_tensor(void *arg, const char *name, const wf_logical *t) {
  loading *l = arg;
  wf_ctx *c = t->own->ctx;
  (void)name;
  wf_scope scope = wf_scope_open(c);
  wf_status s = load_pieces(l, l->found[l->at++], t->own, t->first);
  wf_scope_close(c, scope);
  return s;
}

static wf_status start_loading(loading *l, const char *path) {
  WF_TRY(open_checkpoint(path, WF_H5_CHECK_LAZY, &l->f)); /* a block is checked when it is read */
  WF_ALLOC(l->raw, TAG, WF_STAGED * sizeof(double));
  WF_ALLOC(l->converted, TAG, WF_STAGED * sizeof(double));
  return WF_OK;
}

static void end_loading(loading *l) {
  wf_h5_close(l->f);
  wf_free(l->found);
  wf_free(l->raw);
  wf_free(l->converted);
}

/* The file has what `s` names. */
static wf_status check_parts(const loading *l, const wf_snapshot *s) {
  const char *path = wf_h5_path(l->f), *kind;
  if (s->optimizer) {
    const char *want = wf_optimizer_kind(s->optimizer)->name;
    if (!wf_h5_has_attribute(l->f, "", "optimizer"))
      return wf_hint(WF_FAIL(WF_ENOTFOUND, "%s holds weights but no state of an optimiser", path),
                     "start a new run from it with train.init");
    WF_TRY(wf_h5_get_string(l->f, "", "optimizer", &kind));
    if (strcmp(kind, want) != 0)
      return WF_FAIL(WF_EINVAL, "%s was made with the optimiser %s, not %s", path, kind, want);
  }
  if (s->ema && !wf_h5_has_attribute(l->f, "", "ema_updates"))
    return wf_hint(WF_FAIL(WF_ENOTFOUND, "%s holds no averaged weights", path), "leave train.ema at 0");
  if (s->state && !wf_h5_has(l->f, "state/positions"))
    return wf_hint(WF_FAIL(WF_ENOTFOUND, "%s holds no state of the sequences", path),
                   "train.carry_state was off when it was written");
  return WF_OK;
}

static wf_status check_all(loading *l, const wf_snapshot *s) {
  WF_TRY(wf_snapshot_check(s));
  WF_TRY(check_parts(l, s));
  WF_TRY(wf_checkpoint_each(s, check_tensor, l));
  if (s->params) WF_TRY(check_left_over(l, "params"));
  if (s->optimizer) WF_TRY(check_left_over(l, "optimizer"));
  if (s->ema) WF_TRY(check_left_over(l, "ema"));
  return WF_OK;
}

static wf_status load_state(loading *l, wf_state *state, const wf_lanes *lanes) {
  const wf_h5_info *o;
  const wf_lanes own = lanes ? *lanes : (wf_lanes){.all = state->lanes, .n = state->lanes};
  WF_TRY(wf_h5_expect(l->f, "state/positions", WF_I64, 1, (int64_t[]){own.all}, &o));
  WF_TRY(wf_state_reset(state)); /* tensors of its own, to be written into */
  return own.n ? wf_h5_read(l->f, o, own.first, own.n, state->position + own.at) : WF_OK;
}

static wf_status load_all(loading *l, wf_snapshot *s) {
  wf_checkpoint_info facts = {0};
  int64_t updates, skipped, averaged;
  WF_TRY(check_all(l, s));
  WF_TRY(read_facts(l->f, &facts));
  if (s->state) WF_TRY(load_state(l, s->state, s->lanes));
  WF_TRY(wf_checkpoint_each(s, load_tensor, l));
  if (s->optimizer) {
    WF_TRY(wf_h5_get_i64(l->f, "", "updates", &updates));
    WF_TRY(wf_h5_get_i64(l->f, "", "skipped", &skipped));
    wf_optimizer_set_steps(s->optimizer, updates, skipped);
  }
  if (s->ema) {
    WF_TRY(wf_h5_get_i64(l->f, "", "ema_updates", &averaged));
    wf_ema_set_updates(s->ema, averaged);
  }
  s->step = facts.step;
  s->tokens = facts.tokens;
  s->cursor = facts.cursor;
  s->seed = facts.seed;
  return WF_OK;
}

wf_status wf_checkpoint_load(const char *path, wf_snapshot *s) {
  loading l = {0};
  wf_status st = start_loading(&l, path);
  if (st == WF_OK) st = load_all(&l, s);
  end_loading(&l);
  return st == WF_OK ? WF_OK : wf_frame_at(__FILE__, __LINE__, __func__, st);
}

static wf_status load_weights(loading *l, wf_params *params, const char *prefix) {
  WF_TRY(wf_checkpoint_weights(params, prefix, check_tensor, l));
  WF_TRY(check_left_over(l, prefix));
  return wf_checkpoint_weights(params, prefix, load_tensor, l);
}

wf_status wf_checkpoint_load_params(const char *path, wf_params *params, bool averaged) {
  loading l = {0};
  wf_status st = start_loading(&l, path);
  if (st == WF_OK)
    st = load_weights(&l, params, averaged && wf_h5_has_attribute(l.f, "", "ema_updates") ? "ema" : "params");
  end_loading(&l);
  return st == WF_OK ? WF_OK : wf_frame_at(__FILE__, __LINE__, __func__, st);
}
