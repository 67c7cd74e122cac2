/* States and their spec. */
#include "layers/state.h"
#include "core/memory.h"
#include "core/ops.h"

#include <string.h>

const char *wf_state_kind_name(wf_state_kind kind) {
  static const char *const names[] = {"serial", "scan", "shift", "attend"};
  return names[kind];
}

void wf_state_spec_free(wf_state_spec *spec) {
  for (int i = 0; i < spec->n; i++) wf_free(spec->slot[i].name);
  wf_free(spec->slot);
  *spec = (wf_state_spec){0};
}

void wf_state_bytes(const wf_state_spec *spec, wf_dtype dtype, int64_t *fixed, int64_t *per_token) {
  *fixed = *per_token = 0;
  for (int i = 0; i < spec->n; i++) {
    int64_t n = (int64_t)wf_dtype_size(spec->slot[i].exact ? WF_F64 : dtype);
    for (int d = 0; d < spec->slot[i].ndim; d++) n *= spec->slot[i].shape[d];
    *(spec->slot[i].grows ? per_token : fixed) += n;
  }
}

static wf_status slot_tensors(wf_state *s, int i, bool differentiable) {
  const wf_state_slot *slot = &s->spec->slot[i];
  int64_t shape[WF_MAX_DIMS];
  wf_dtype dtype = wf_state_dtype(s, i);
  int n = 0;
  shape[n++] = s->lanes;
  if (slot->grows) shape[n++] = s->capacity;
  for (int d = 0; d < slot->ndim; d++) shape[n++] = slot->shape[d];
  s->in[i] = wf_keep(wf_zeros(s->c, "state", dtype, n, shape));
  if (wf_is_poison(s->in[i])) return wf_ctx_check(s->c);
  if (!differentiable || !slot->grows) return WF_OK;
  /* The twin is always added to and never final; cache_append's gradient zeroes what it takes. */
  s->twin[i] = (wf_leaf){.grad = wf_keep(wf_zeros(s->c, "state gradient", dtype, n, shape)), .written = true};
  s->twin[i].holds = 1;
  return wf_is_poison(s->twin[i].grad) ? wf_ctx_check(s->c) : WF_OK;
}

wf_status wf_state_create(wf_ctx *c, const wf_state_spec *spec, wf_dtype dtype, int64_t lanes,
                          int64_t capacity, bool differentiable, wf_state **out) {
  wf_state *s;
  WF_CALLOC(s, "state", 1);
  *s = (wf_state){.spec = spec, .c = c, .dtype = dtype, .lanes = lanes, .capacity = capacity};
  size_t n = (size_t)spec->n;
  s->in = wf_calloc("state", n, sizeof *s->in);
  s->out = wf_calloc("state", n, sizeof *s->out);
  s->twin = wf_calloc("state", n, sizeof *s->twin);
  s->position = wf_calloc("state", (size_t)lanes, sizeof *s->position);
  wf_status st = s->in && s->out && s->twin && s->position ? WF_OK : WF_ENOMEM;
  wf_scope scope = wf_scope_open(c);
  for (int i = 0; i < spec->n && st == WF_OK; i++) st = slot_tensors(s, i, differentiable);
  wf_scope_close(c, scope);
  if (st != WF_OK) {
    wf_state_free(s);
    return wf_frame_at(__FILE__, __LINE__, __func__, st);
  }
  *out = s;
  return WF_OK;
}

void wf_state_free(wf_state *s) {
  if (!s) return;
  for (int i = 0; i < s->spec->n; i++) {
    if (s->in) wf_drop(s->in[i]);
    if (s->twin) wf_drop(s->twin[i].grad);
  }
  wf_free(s->in);
  wf_free(s->out);
  wf_free(s->twin);
  wf_free(s->position);
  wf_free(s);
}

wf_status wf_state_advance(wf_state *s, const wf_rows *rows) {
  for (int i = 0; i < s->spec->n; i++) {
    wf_tensor *o = s->out[i];
    if (!o) continue;
    o = wf_view_raw(o, o->ndim, o->shape, o->stride, 0); /* no variable of the tape that made it */
    if (wf_is_poison(o)) return wf_ctx_failure(s->c);
    wf_drop(s->in[i]);
    s->in[i] = wf_keep(o);
    s->out[i] = NULL;
  }
  for (int64_t r = 0; r < rows->n; r++)
    if (rows->row[r].flags & WF_ROW_LEAVES)
      s->position[rows->row[r].lane] = rows->row[r].place + rows->row[r].len;
  return WF_OK;
}

wf_status wf_state_reset(wf_state *s) {
  for (int i = 0; i < s->spec->n; i++) {
    if (s->spec->slot[i].grows) continue; /* nothing below a lane's position is read */
    wf_scope scope = wf_scope_open(s->c);
    wf_tensor *zero = wf_zeros(s->c, "state", s->in[i]->dtype, s->in[i]->ndim, s->in[i]->shape);
    wf_status st = wf_is_poison(zero) ? wf_ctx_check(s->c) : WF_OK;
    if (st == WF_OK) {
      wf_drop(s->in[i]);
      s->in[i] = wf_keep(zero);
    }
    wf_scope_close(s->c, scope);
    WF_TRY(st);
  }
  memset(s->position, 0, (size_t)s->lanes * sizeof *s->position);
  return WF_OK;
}

wf_status wf_state_mark_take(const wf_state *s, wf_state_mark *mark) {
  *mark = (wf_state_mark){0};
  WF_CALLOC(mark->in, "state", s->spec->n + 1);
  for (int i = 0; i < s->spec->n; i++) mark->in[i] = wf_keep(s->in[i]);
  WF_ALLOC(mark->position, "state", (size_t)s->lanes * sizeof *mark->position + 1);
  memcpy(mark->position, s->position, (size_t)s->lanes * sizeof *mark->position);
  return WF_OK;
}

void wf_state_mark_return(wf_state *s, const wf_state_mark *mark) {
  for (int i = 0; i < s->spec->n; i++) {
    wf_drop(s->in[i]);
    s->in[i] = wf_keep(mark->in[i]);
  }
  memcpy(s->position, mark->position, (size_t)s->lanes * sizeof *mark->position);
}

void wf_state_mark_drop(const wf_state *s, wf_state_mark *mark) {
  for (int i = 0; mark->in && i < s->spec->n; i++) wf_drop(mark->in[i]);
  wf_free(mark->in);
  wf_free(mark->position);
  *mark = (wf_state_mark){0};
}
