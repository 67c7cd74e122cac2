/* One call of segments.h's op and its blocks. */
#include "core/memory.h"
#include "dist/segments_impl.h"

#include <string.h>

/* ---- blocks of heads ---- */

static int dim_of(const wf_tensor *x, int dim) {
  return dim == WF_CARRY_HEADS ? x->ndim - 2 : dim;
}

static int64_t heads_of(const wf_tensor *x, int dim) {
  return x->shape[dim_of(x, dim)];
}

/* Can each input's heads be divided into K blocks, or each of its heads belong to whole ones? Gradients of
 * what blocks share are added. */
static bool fits(const wf_op *base, int n_in, wf_tensor *const *in, int64_t K) {
  for (int i = 0; i < n_in; i++) {
    if (!in[i] || base->carry->in[i] < 0) continue;
    int64_t n = heads_of(in[i], base->carry->in[i]);
    if (n % K && (n == 0 || K % n || !(base->vjp_adds >> i & 1))) return false;
  }
  return true;
}

int64_t wf_seg_blocks(const wf_op *base, int n_in, wf_tensor *const *in, int64_t K, int64_t *u) {
  int64_t fewest = 0, most = 0;
  for (int i = 0; i < n_in; i++) {
    if (!in[i] || base->carry->in[i] < 0) continue;
    int64_t n = heads_of(in[i], base->carry->in[i]);
    if (!fewest || n < fewest) fewest = n;
    if (n > most) most = n;
  }
  *u = fewest > 0 ? fewest : 1;
  if (K > most) K = most;
  while (K > *u && !fits(base, n_in, in, K)) K--;
  if (K > *u) *u = K;
  return K > 0 ? K : 1;
}

bool wf_seg_shares(const wf_seg_work *w, const wf_tensor *x, int dim, int64_t b) {
  if (b == 0 || dim < 0) return b > 0;
  int64_t n = heads_of(x, dim);
  return n < w->u && n * b / w->K == n * (b - 1) / w->K;
}

wf_tensor *wf_seg_block_of(const wf_seg_work *w, wf_tensor *x, int dim, int64_t b) {
  if (!x || dim < 0 || w->K == 1 || wf_is_poison(x)) return x;
  dim = dim_of(x, dim);
  int64_t shape[WF_MAX_DIMS], n = x->shape[dim], each = n / w->u, begin, end;
  if (n < w->u) {
    begin = n * b / w->K;
    end = begin + 1;
  } else {
    begin = w->u * b / w->K * each;
    end = w->u * (b + 1) / w->K * each;
  }
  memcpy(shape, x->shape, sizeof shape);
  shape[dim] = end - begin;
  if (x->storage) return wf_view_raw(x, x->ndim, shape, x->stride, begin * x->stride[dim]);
  wf_tensor *meta = wf_tensor_meta(x->ctx, x); /* of what nobody reads the shape is enough: an adjacent one */
  if (wf_is_poison(meta)) return meta;
  meta->shape[dim] = shape[dim];
  for (int64_t d = x->ndim - 1, s = 1; d >= 0; s *= shape[d--]) meta->stride[d] = s;
  return meta;
}

wf_tensor *wf_seg_lanes(const wf_part *p, wf_tensor *x, int k) {
  int64_t shape[WF_MAX_DIMS];
  if (!x || wf_is_poison(x)) return x;
  memcpy(shape, x->shape, sizeof shape);
  shape[0] = p->n_lanes;
  return wf_view_raw(x, x->ndim, shape, x->stride, k * p->n_lanes * x->stride[0]);
}

/* ---- rows ---- */

wf_tensor *wf_seg_table(wf_ctx *c, const wf_part *p, const int *flags, bool through, int only) {
  int64_t n = 0, at = 0, tokens = 0;
  for (int k = 0; k < p->n_own; k++) n += p->first[p->own[k] + 1] - p->first[p->own[k]];
  wf_row *row = wf_alloc("dist", (size_t)(n + 1) * sizeof *row);
  if (!row) return wf_poison(c, WF_ENOMEM);
  for (int k = 0; k < p->n_own; k++) {
    int s = p->own[k];
    if (only >= 0 && k != only) continue;
    for (int64_t i = p->first[s]; i < p->first[s + 1]; i++, at++) {
      row[at] = p->row[i];
      row[at].begin += tokens;
      row[at].lane += k * p->n_lanes;
      if (through && row[at].flags != (WF_ROW_TAKES | WF_ROW_LEAVES)) row[at].flags = 0;
      if (flags) row[at].flags &= flags[k];
    }
    tokens += p->tokens[s];
  }
  wf_tensor *t = wf_from_host(c, "dist", WF_I64, WF_SHAPE(at, WF_ROW_COLS), row);
  wf_free(row);
  return t;
}

/* ---- one call ---- */

wf_status wf_seg_open(wf_ctx *c, const wf_seg_attr *a, int n_in, wf_tensor *const *in, int n_out,
                      wf_tensor *const *out, bool turned, wf_seg_work *w) {
  *w = (wf_seg_work){.c = c,
                     .a = a,
                     .base = a->base,
                     .carry = a->base->carry,
                     .p = a->part,
                     .n_in = n_in,
                     .n_out = a->base->carry->left + 1,
                     .turned = turned};
  if (n_out > w->n_out + 1) w->A = out[w->n_out + 1];
  w->K = wf_seg_blocks(a->base, n_in, in, a->blocks, &w->u);
  WF_CALLOC(w->b, "dist", w->K);
  WF_CALLOC(w->wait, "dist", w->K * w->p->n_own + 1);
  return WF_OK;
}

static void keep_first(wf_status *st, wf_status x) {
  if (*st == WF_OK) *st = x;
}

wf_status wf_seg_close(wf_seg_work *w, wf_status st) {
  for (int64_t b = 0; w->b && b < w->K; b++) keep_first(&st, wf_chain_close(w->b[b].chain));
  for (int64_t i = 0; w->wait && i < w->K * w->p->n_own; i++) keep_first(&st, wf_comm_wait(&w->wait[i]));
  for (size_t i = 0; i < w->n_sent; i++) keep_first(&st, wf_comm_wait(&w->sent[i]));
  wf_free(w->b);
  wf_free(w->wait);
  wf_free(w->sent);
  return st;
}

wf_status wf_seg_divide(wf_seg_work *w, int64_t b, wf_tensor *const *in, wf_tensor *const *out) {
  wf_seg_block *x = &w->b[b];
  const wf_carry *y = w->carry;
  for (int i = 0; i < w->n_in; i++) x->in[i] = wf_seg_block_of(w, in[i], y->in[i], b);
  for (int i = 0; i < w->n_out; i++) x->out[i] = wf_seg_block_of(w, out[i], y->out[i], b);
  for (int i = 0; i < w->n_in; i++)
    if (x->in[i] && wf_is_poison(x->in[i])) return wf_ctx_failure(w->c);
  for (int i = 0; i < w->n_out; i++)
    if (x->out[i] && wf_is_poison(x->out[i])) return wf_ctx_failure(w->c);
  return WF_OK;
}

/* Tokens first .. first+n-1 of x. */
static wf_tensor *tokens_of(wf_tensor *x, int64_t first, int64_t n) {
  int64_t shape[WF_MAX_DIMS];
  if (!x || wf_is_poison(x)) return x;
  memcpy(shape, x->shape, sizeof shape);
  shape[0] = n;
  if (x->storage) return wf_view_raw(x, x->ndim, shape, x->stride, first * x->stride[0]);
  wf_tensor *meta = wf_tensor_meta(x->ctx, x);
  if (!wf_is_poison(meta)) meta->shape[0] = n;
  return meta;
}

wf_status wf_seg_cut(const wf_seg_work *w, const wf_seg_block *x, int k, wf_seg_block *cut) {
  const wf_carry *y = w->carry;
  int64_t first = 0, n = w->p->tokens[w->p->own[k]];
  for (int j = 0; j < k; j++) first += w->p->tokens[w->p->own[j]];
  *cut = *x;
  for (int i = 0; i < w->n_in; i++) {
    if (i == y->state || y->in[i] != 1) continue;
    cut->in[i] = tokens_of(x->in[i], first, n);
    cut->din[i] = tokens_of(x->din[i], first, n);
  }
  for (int i = 0; i < w->n_out; i++) {
    if (i == y->left) continue;
    cut->out[i] = tokens_of(x->out[i], first, n);
    cut->dout[i] = tokens_of(x->dout[i], first, n);
  }
  cut->in[y->table] = wf_seg_table(w->c, w->p, NULL, false, k);
  return wf_ctx_check(w->c);
}

wf_call wf_seg_call(const wf_seg_work *w, wf_tensor *const *in, int n_out, wf_tensor *const *out) {
  return (wf_call){w->c, w->base, w->a->attr, w->n_in, n_out, in, out, 0};
}

wf_vjp wf_seg_vjp(const wf_seg_work *w, const wf_seg_block *x, wf_tensor *const *in, wf_tensor *const *dout,
                  wf_tensor *const *din, uint32_t add) {
  return (wf_vjp){w->c, w->base, w->a->attr, w->n_in, w->n_out, in, x->out, dout, din, add};
}

wf_tensor *wf_seg_state(const wf_seg_work *w, const wf_seg_block *x, int64_t segments) {
  wf_desc d;
  wf_desc_like(&d, x->out[w->carry->left]);
  d.shape[0] = segments * w->p->n_lanes;
  return wf_empty(w->c, "dist", d.dtype, d.ndim, d.shape);
}

wf_status wf_seg_post(wf_seg_work *w, wf_tensor *x, int to) {
  wf_tensor *flat = wf_dist_packed(w->c, x);
  if (wf_is_poison(flat)) return wf_ctx_failure(w->c);
  WF_TRY(wf_grow("dist", (void **)&w->sent, sizeof *w->sent, w->n_sent, &w->cap_sent));
  w->sent[w->n_sent] = NULL;
  return wf_comm_leave(w->p->dist->comm, flat, to, &w->sent[w->n_sent++]);
}
