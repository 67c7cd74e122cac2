/* What a checkpoint holds, and writing it.
 *
 * Everything that is saved as a tensor is listed by wf_checkpoint_each() and nowhere else: a save goes over
 * the list twice (define, write), a load twice (check, read). Data pass through a small staging buffer,
 * wherever the tensors live, and from other ranks in pieces of its size. */
#include "experiments/checkpoint_impl.h"

#include <stdio.h>
#include <string.h>

#include "core/h5.h"
#include "core/memory.h"
#include "core/ops.h"

#define TAG "checkpoint"

/* ---- what there is to save ---- */

static wf_comm *ranks_of(const wf_snapshot *s) {
  return s->shards ? s->shards->comm : NULL;
}

static bool writes(const wf_snapshot *s) {
  return !ranks_of(s) || wf_comm_rank(ranks_of(s)) == 0;
}

/* Parameter p's part `prefix`/NAME of a flat buffer: elements [at, at + n), the parameter's from `first` on.
 */
static wf_status visit_part(wf_logical_fn fn, void *arg, const char *prefix, const wf_param *p,
                            wf_tensor *flat, int64_t at, int64_t n, int64_t first, const int64_t *count) {
  char full[WF_H5_MAX_NAME + 2];
  snprintf(full, sizeof full, "%s/%s", prefix, p->name);
  wf_scope scope = wf_scope_open(flat->ctx);
  wf_logical t = {p->ndim, p->shape, wf_view_raw(flat, WF_SHAPE(n), NULL, at), first, count};
  wf_status s = wf_is_poison(t.own) ? wf_ctx_check(flat->ctx) : fn(arg, full, &t);
  wf_scope_close(flat->ctx, scope);
  return s;
}

wf_status wf_checkpoint_weights(const wf_params *ps, const char *prefix, wf_logical_fn fn, void *arg) {
  for (int i = 0; i < ps->n; i++) {
    const wf_param *p = ps->param[i];
    WF_TRY(visit_part(fn, arg, prefix, p, ps->group[p->group].value, p->offset, p->numel, 0, NULL));
  }
  return WF_OK;
}

/* What lies beside the parameters of one group, or of all (-1): `state` of the optimiser, or with -1 the
 * average. */
static wf_status each_beside(const wf_snapshot *s, int group, int state, const char *prefix, wf_logical_fn fn,
                             void *arg) {
  const wf_shards *sh = s->shards && s->shards->divided ? s->shards : NULL;
  int64_t *count = NULL;
  wf_status st = WF_OK;
  if (sh) WF_CALLOC(count, TAG, wf_comm_size(sh->comm));
  for (int i = 0; i < s->params->n && st == WF_OK; i++) {
    const wf_param *p = s->params->param[i];
    int64_t first = 0, n = p->numel, at = p->offset;
    if (group >= 0 && p->group != group) continue;
    int g = sh ? wf_shards_find(sh, i, &first, &n, &at, count) : p->group;
    wf_tensor *flat = state < 0 ? wf_ema_average(s->ema, g) : wf_optimizer_state(s->optimizer, g, state);
    st = visit_part(fn, arg, prefix, p, flat, at, n, first, count);
  }
  wf_free(count);
  return st;
}

/* A group of the optimiser that belongs to a group of the parameters; -1: none does. */
static int own_group(const wf_snapshot *s, int group) {
  int64_t first, n, at;
  if (!s->shards || !s->shards->divided) return group;
  for (int i = 0; i < s->params->n; i++)
    if (s->params->param[i]->group == group) return wf_shards_find(s->shards, i, &first, &n, &at, NULL);
  return -1;
}

static wf_status each_optimizer_state(const wf_snapshot *s, wf_logical_fn fn, void *arg) {
  char prefix[128];
  for (int g = 0; g < s->params->n_groups; g++) {
    int own = own_group(s, g), n = own < 0 ? 0 : wf_optimizer_n_states(s->optimizer, own);
    for (int i = 0; i < n; i++) {
      snprintf(prefix, sizeof prefix, "optimizer/%s", wf_optimizer_state_name(s->optimizer, own, i));
      WF_TRY(each_beside(s, g, i, prefix, fn, arg));
    }
  }
  return WF_OK;
}

static wf_status visit_slot(const wf_snapshot *s, int i, wf_logical_fn fn, void *arg) {
  const wf_lanes *l = s->lanes;
  wf_tensor *x = s->state->in[i];
  int64_t shape[WF_MAX_DIMS], each = 1, ranks = l ? wf_comm_size(ranks_of(s)) : 0, *count = NULL;
  char full[WF_H5_MAX_NAME + 2];
  snprintf(full, sizeof full, "state/%s", s->state->spec->slot[i].name);
  memcpy(shape, x->shape, sizeof shape);
  if (!l) return fn(arg, full, &(wf_logical){x->ndim, shape, x, 0, NULL});
  for (int d = 1; d < x->ndim; d++) each *= shape[d];
  WF_ALLOC(count, TAG, (size_t)ranks * sizeof *count);
  for (int r = 0; r < ranks; r++) count[r] = l->count[r] * each;
  wf_scope scope = wf_scope_open(x->ctx);
  shape[0] = l->n;
  wf_tensor *own = wf_view_raw(x, x->ndim, shape, x->stride, l->at * x->stride[0]);
  shape[0] = l->all;
  wf_status st = wf_is_poison(own)
                     ? wf_ctx_check(x->ctx)
                     : fn(arg, full, &(wf_logical){x->ndim, shape, own, l->first * each, count});
  wf_scope_close(x->ctx, scope);
  wf_free(count);
  return st;
}

wf_status wf_checkpoint_each(const wf_snapshot *s, wf_logical_fn fn, void *arg) {
  if (s->params) WF_TRY(wf_checkpoint_weights(s->params, "params", fn, arg));
  if (s->optimizer) WF_TRY(each_optimizer_state(s, fn, arg));
  if (s->ema) WF_TRY(each_beside(s, -1, -1, "ema", fn, arg));
  for (int i = 0; s->state && i < s->state->spec->n; i++) WF_TRY(visit_slot(s, i, fn, arg));
  return WF_OK;
}

wf_status wf_staged_piece(wf_tensor *flat, int64_t first, int64_t *count, wf_tensor **piece) {
  int64_t left = wf_numel(flat) - first;
  *count = left < WF_STAGED ? left : WF_STAGED;
  *piece = wf_view_raw(flat, WF_SHAPE(*count), NULL, first);
  return wf_is_poison(*piece) ? wf_ctx_check(flat->ctx) : WF_OK;
}

wf_status wf_snapshot_check(const wf_snapshot *s) {
  if ((s->ema || s->optimizer) && !s->params)
    return WF_FAIL(WF_EINTERNAL, "what stands beside the weights without the weights");
  if (s->ema && wf_ema_swapped(s->ema))
    return WF_FAIL(WF_EINTERNAL, "the average of the weights stands in their place");
  return WF_OK;
}

/* ---- saving ---- */

typedef struct saving {
  wf_comm *comm; /* NULL: one rank */
  wf_h5_writer *w;
  int *id; /* of every tensor, in the list's order */
  size_t n, cap, at;
  void *buffer;
  wf_status status; /* the first failure to write: the other ranks send all the same */
} saving;

static wf_status define_tensor(void *arg, const char *name, const wf_logical *t) {
  saving *s = arg;
  WF_TRY(wf_grow(TAG, (void **)&s->id, sizeof *s->id, s->n, &s->cap));
  WF_TRY(wf_h5_define(s->w, name, t->own->dtype, t->ndim, t->shape, &s->id[s->n]));
  s->n++;
  return WF_OK;
}

static wf_status save_pieces(saving *s, int id, wf_tensor *flat, int64_t at) {
  int64_t n = wf_numel(flat), count;
  for (int64_t first = 0; first < n; first += count) {
    wf_tensor *piece;
    WF_TRY(wf_staged_piece(flat, first, &count, &piece));
    WF_TRY(wf_to_host(piece, s->buffer));
    WF_TRY(wf_h5_write(s->w, id, at + first, count, s->buffer));
  }
  return WF_OK;
}

/* What the other ranks have, which comes in pieces. */
static wf_status receive_pieces(saving *s, int id, const wf_logical *t) {
  wf_ctx *c = t->own->ctx;
  int64_t at = t->count[0], n;
  for (int r = 1; r < wf_comm_size(s->comm); r++)
    for (int64_t end = at + t->count[r]; at < end; at += n) {
      n = end - at < WF_STAGED ? end - at : WF_STAGED;
      wf_scope scope = wf_scope_open(c);
      wf_tensor *piece = wf_empty(c, TAG, t->own->dtype, WF_SHAPE(n));
      wf_status st = wf_is_poison(piece) ? wf_ctx_check(c) : wf_comm_recv(s->comm, piece, r, NULL);
      if (st == WF_OK && s->status == WF_OK) s->status = save_pieces(s, id, piece, at);
      wf_scope_close(c, scope);
      WF_TRY(st);
    }
  return WF_OK;
}

static wf_status send_pieces(wf_comm *comm, wf_tensor *flat) {
  int64_t n = wf_numel(flat), count;
  for (int64_t first = 0; first < n; first += count) {
    wf_tensor *piece;
    WF_TRY(wf_staged_piece(flat, first, &count, &piece));
    WF_TRY(wf_comm_send(comm, piece, 0, NULL));
  }
  return WF_OK;
}

static wf_status save_tensor(void *arg, const char *name, const wf_logical *t) {
  saving *s = arg;
  wf_ctx *c = t->own->ctx;
  bool sends = s->comm && wf_comm_rank(s->comm) > 0;
  int id = s->status == WF_OK && !sends ? s->id[s->at++] : -1;
  (void)name;
  if (sends && !t->count) return WF_OK; /* the first rank has it too */
  wf_scope scope = wf_scope_open(c);
  wf_tensor *flat = wf_contiguous(c, t->own);
  wf_status st = wf_is_poison(flat) ? wf_ctx_check(c) : WF_OK;
  if (st == WF_OK && sends)
    st = send_pieces(s->comm, flat);
  else if (st == WF_OK && s->status == WF_OK)
    s->status = save_pieces(s, id, flat, 0);
  wf_scope_close(c, scope);
  if (st == WF_OK && !sends && t->count) st = receive_pieces(s, id, t);
  return st;
}

static wf_status save_facts(wf_h5_writer *w, const wf_snapshot *s) {
  WF_TRY(wf_h5_set_string(w, "", "format", WF_CHECKPOINT_FORMAT));
  WF_TRY(wf_h5_set_i64(w, "", "version", WF_CHECKPOINT_VERSION));
  WF_TRY(wf_h5_set_i64(w, "", "step", s->step));
  WF_TRY(wf_h5_set_i64(w, "", "tokens", s->tokens));
  WF_TRY(wf_h5_set_i64(w, "", "cursor", s->cursor));
  WF_TRY(wf_h5_set_i64(w, "", "seed", (int64_t)s->seed));
  if (s->optimizer) {
    WF_TRY(wf_h5_set_string(w, "", "optimizer", wf_optimizer_kind(s->optimizer)->name));
    WF_TRY(wf_h5_set_i64(w, "", "updates", wf_optimizer_steps(s->optimizer)));
    WF_TRY(wf_h5_set_i64(w, "", "skipped", wf_optimizer_skipped(s->optimizer)));
  }
  if (s->ema) WF_TRY(wf_h5_set_i64(w, "", "ema_updates", wf_ema_updates(s->ema)));
  return WF_OK;
}

/* What the file holds besides tensors, and where these go. */
static wf_status prepare(saving *sv, const char *path, const wf_snapshot *s, const char *config,
                         const void *tokenizer, size_t tokenizer_size, const int64_t *positions) {
  int64_t lanes = s->lanes ? s->lanes->all : s->state ? s->state->lanes : 0;
  WF_TRY(wf_h5_create(path, &sv->w));
  WF_TRY(save_facts(sv->w, s));
  WF_TRY(wf_h5_put(sv->w, "config", WF_U8, WF_SHAPE((int64_t)strlen(config)), config));
  if (tokenizer) WF_TRY(wf_h5_put(sv->w, "tokenizer", WF_U8, WF_SHAPE((int64_t)tokenizer_size), tokenizer));
  WF_TRY(wf_checkpoint_each(s, define_tensor, sv));
  if (s->state) WF_TRY(wf_h5_put(sv->w, "state/positions", WF_I64, WF_SHAPE(lanes), positions));
  WF_TRY(wf_h5_layout(sv->w));
  WF_ALLOC(sv->buffer, TAG, WF_STAGED * sizeof(double));
  return WF_OK;
}

/* The positions of all lanes; *gathered is to be freed. */
static wf_status positions_of(const wf_snapshot *s, int64_t **gathered, const int64_t **out) {
  const wf_lanes *l = s->lanes;
  *gathered = NULL;
  *out = s->state ? s->state->position : NULL;
  if (!s->state || !l) return WF_OK;
  WF_CALLOC(*gathered, TAG, l->all + 1);
  for (int64_t i = 0; i < l->n; i++) (*gathered)[l->first + i] = s->state->position[l->at + i];
  *out = *gathered;
  return wf_comm_all_reduce_host(ranks_of(s), WF_I64, *gathered, l->all, WF_REDUCE_SUM);
}

wf_status wf_checkpoint_save(const char *path, const wf_snapshot *s, const char *config,
                             const void *tokenizer, size_t tokenizer_size) {
  saving sv = {.comm = ranks_of(s)};
  int64_t *gathered;
  const int64_t *positions;
  WF_TRY(wf_snapshot_check(s));
  WF_TRY(positions_of(s, &gathered, &positions));
  if (writes(s)) sv.status = prepare(&sv, path, s, config, tokenizer, tokenizer_size, positions);
  wf_status st = wf_checkpoint_each(s, save_tensor, &sv);
  if (st == WF_OK) st = sv.status;
  wf_free(gathered);
  wf_free(sv.id);
  wf_free(sv.buffer);
  if (sv.w && st == WF_OK)
    st = wf_h5_commit(sv.w);
  else if (sv.w)
    wf_h5_discard(sv.w);
  return st == WF_OK ? WF_OK : wf_frame_at(__FILE__, __LINE__, __func__, st);
}
