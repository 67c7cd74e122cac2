/* What attend and its gradient share: arguments, spans, blocks of keys laid out for tile products, and the
 * work space of one thread.
 *
 * The unit of work is a task: one row, one key head with the query heads that read it, and one part of the
 * row's query blocks (parts are more than one only when there are too few rows and heads for the threads).
 * A task lays out its keys once, transposed by blocks of ATTEND_BK, then visits its query blocks.
 */
#ifndef WF_CORE_OPS_ATTEND_IMPL_H
#define WF_CORE_OPS_ATTEND_IMPL_H

#include "core/op_def.h"
#include "core/ops/attr_impl.h"

/* The inputs of attend; its gradient has four more, the last one optional. */
enum {
  ATTEND_Q,
  ATTEND_K,
  ATTEND_V,
  ATTEND_SPAN,
  ATTEND_A,
  ATTEND_B,
  ATTEND_SINK,
  ATTEND_O,
  ATTEND_LSE,
  ATTEND_DO,
  ATTEND_DLSE
};

/* Shared by the two descriptions (attend.c). */
enum { WF_ATTEND_SAMPLES = 10 };
wf_status wf_attend_check(const wf_call *call); /* shapes and options of the first seven inputs */
double wf_attend_pairs(const wf_call *call);    /* visible pairs of query and key, over all heads */
wf_status wf_attend_sample(wf_sample *s);

/* `count` tokens `step` apart from `begin` on lie among `total`. */
WF_HOST_DEVICE static inline bool attend_fits(int64_t begin, int64_t count, int64_t step, int64_t total) {
  if (begin < 0 || count < 0 || begin > total || count > total) return false;
  return count == 0 || (begin < total && count - 1 <= (total - 1 - begin) / step);
}
/* Queries among n, keys among m, and positions that can be counted. */
WF_HOST_DEVICE static inline bool attend_span_fits(const wf_attend_span *s, int64_t step, int64_t n,
                                                   int64_t m) {
  return attend_fits(s->query, s->queries, step, n) && attend_fits(s->key, s->keys, step, m) &&
         s->distance >= 0 && s->distance < INT64_MAX - s->queries;
}
static inline wf_status attend_no_fit(int64_t r, const wf_attend_span *s, int64_t n, int64_t m) {
  return WF_FAIL(WF_EINVAL,
                 "attend: row %lld has queries %lld + %lld of %lld and keys %lld + %lld of %lld, %lld apart",
                 (long long)r, (long long)s->query, (long long)s->queries, (long long)n, (long long)s->key,
                 (long long)s->keys, (long long)m, (long long)s->distance);
}

#ifdef WF_KERNEL_PASS
#  include <string.h>
#  include "core/tile_impl.h"

enum { ATTEND_BK = 128, ATTEND_BQ = 64 };

typedef struct attend_args {
  const real *q, *k, *v, *sink;
  const double *a, *b;            /* terms of the scores */
  int64_t qs, qh, ks, kh, vs, vh; /* strides of tokens and heads */
  int64_t step;                   /* from one token of a row to the next, in tokens */
  const wf_attend_span *span;
  int64_t rows, n, m, heads, kv_heads, group, kdim, vdim, kpad, vpad;
  int64_t longest, most_keys; /* over the rows: queries, visible keys */
  int64_t window;
  real scale, cap, log_len;
  bool sigmoid;
} attend_args;

/* One row: queries q0 .. q0+len-1, and of its keys those that some query sees: `keys` from k0 on in the pool,
 * each of them seen. Keys are counted from k0 below; the first query's own would be key `before`. */
typedef struct attend_row {
  int64_t q0, len, k0, before, keys;
} attend_row;

static inline attend_row attend_row_at(const attend_args *g, int64_t r) {
  const wf_attend_span *s = g->span + r;
  int64_t first = g->window > 0 && s->distance >= g->window ? s->distance + 1 - g->window : 0;
  int64_t end = s->keys < s->distance + s->queries ? s->keys : s->distance + s->queries;
  if (!s->queries || first >= end) first = end = 0;
  return (attend_row){s->query, s->queries, s->key + first * g->step, s->distance - first, end - first};
}

/* Places of query t and key j of a row in q and in the pool. */
static inline int64_t attend_query_at(const attend_args *g, const attend_row *w, int64_t t) {
  return w->q0 + t * g->step;
}
static inline int64_t attend_key_at(const attend_args *g, const attend_row *w, int64_t j) {
  return w->k0 + j * g->step;
}

/* Query t sees keys [lo, hi), none where lo >= hi. */
static inline int64_t attend_hi(const attend_row *w, int64_t t) {
  return w->before + t < w->keys ? w->before + t + 1 : w->keys;
}
static inline int64_t attend_lo(const attend_args *g, const attend_row *w, int64_t t) {
  return g->window > 0 && w->before + t >= g->window ? w->before + t + 1 - g->window : 0;
}

static inline wf_status attend_read(const wf_call *call, attend_args *g) {
  const wf_attend_options *o = call->attr; /* first in both attrs */
  const wf_tensor *q = call->in[ATTEND_Q], *k = call->in[ATTEND_K], *v = call->in[ATTEND_V];
  const wf_tensor *opt[3] = {call->in[ATTEND_A], call->in[ATTEND_B], call->in[ATTEND_SINK]};
  *g = (attend_args){
      .q = wf_data(q), .k = wf_data(k), .v = wf_data(v), .span = wf_data(call->in[ATTEND_SPAN])};
  g->a = opt[0] ? wf_data(opt[0]) : NULL;
  g->b = opt[1] ? wf_data(opt[1]) : NULL;
  g->sink = opt[2] ? wf_data(opt[2]) : NULL;
  g->qs = q->stride[0], g->qh = q->stride[1];
  g->ks = k->stride[0], g->kh = k->stride[1];
  g->vs = v->stride[0], g->vh = v->stride[1];
  g->rows = call->in[ATTEND_SPAN]->shape[0];
  g->n = q->shape[0], g->heads = q->shape[1], g->kdim = q->shape[2];
  g->m = k->shape[0], g->kv_heads = k->shape[1], g->vdim = v->shape[2];
  g->group = g->kv_heads ? g->heads / g->kv_heads : 0;
  g->kpad = TILE_PAD(g->kdim), g->vpad = TILE_PAD(g->vdim);
  g->window = o->window;
  g->step = o->stride > 1 ? o->stride : 1;
  g->scale = (real)o->scale, g->cap = (real)o->softcap;
  g->sigmoid = o->kind == WF_ATTEND_SIGMOID;
  g->log_len = g->sigmoid ? (real)log((double)o->len_bias) : 0;
  for (int64_t r = 0; r < g->rows; r++) {
    if (!attend_span_fits(g->span + r, g->step, g->n, g->m)) return attend_no_fit(r, g->span + r, g->n, g->m);
    attend_row w = attend_row_at(g, r);
    if (w.len > g->longest) g->longest = w.len;
    if (w.keys > g->most_keys) g->most_keys = w.keys;
  }
  return WF_OK;
}

/* Short rows take smaller blocks, so that less of a block lies above the diagonal. */
static inline int64_t attend_bq(const attend_row *w) {
  return w->len <= 2 * ATTEND_BQ ? ATTEND_BQ / 2 : ATTEND_BQ;
}

/* Parts for each pair of row and key head. */
static inline int64_t attend_parts(const attend_args *g, int threads) {
  int64_t pairs = g->rows * g->kv_heads, blocks = (g->longest + ATTEND_BQ - 1) / ATTEND_BQ;
  if (pairs >= 4 * threads || pairs % threads == 0) return 1;
  return blocks < threads ? (blocks ? blocks : 1) : threads;
}

static inline int64_t attend_cost(const attend_args *g) { /* of one pair, in element operations */
  return g->longest * (g->most_keys + 1) * (g->kdim + g->vdim) / 8;
}

/* Keys of one head in blocks: each block [kdim, ATTEND_BK], transposed. */
static inline int64_t attend_blocks(int64_t keys) {
  return (keys + ATTEND_BK - 1) / ATTEND_BK;
}
static inline void attend_pack_t(int64_t keys, int64_t dim, const real *src, int64_t stride, real *dst) {
  for (int64_t j = 0; j < keys; j += ATTEND_BK) {
    int64_t n = keys - j < ATTEND_BK ? keys - j : ATTEND_BK;
    tile_transpose(n, dim, src + j * stride, stride, dst + j * dim, ATTEND_BK, TILE_PAD(n));
  }
}
/* dst [group, keys]: the key terms of the heads of one key head. */
static inline void attend_pack_b(const attend_args *g, const attend_row *w, int64_t head, double *dst) {
  for (int64_t i = 0; i < g->group; i++)
    for (int64_t j = 0; j < w->keys; j++)
      dst[i * w->keys + j] = g->b[attend_key_at(g, w, j) * g->heads + head * g->group + i];
}

static inline void attend_scaled(const attend_args *g, int64_t rows, const real *src, int64_t stride,
                                 real *dst, int64_t ld) {
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t c = 0; c < g->kdim; c++) dst[i * ld + c] = g->scale * src[i * stride + c];
    for (int64_t c = g->kdim; c < ld; c++) dst[i * ld + c] = 0;
  }
}

/* Products to scores: soft cap, then a_t - b_j, then the bias of sigmoid. `th` (or NULL) receives tanh. The
 * terms may be sums over a whole sequence: their difference is formed in double. */
static inline void attend_scores(const attend_args *g, int64_t n, real *x, real *th, double a,
                                 const double *b) {
  if (g->cap > 0) {
    real cap = g->cap, inverse = 1 / cap;
    WF_PRAGMA(omp simd)
    for (int64_t j = 0; j < n; j++) {
      real t = r_tanh(x[j] * inverse);
      if (th) th[j] = t;
      x[j] = cap * t;
    }
  }
  if (b) {
    WF_PRAGMA(omp simd)
    for (int64_t j = 0; j < n; j++) x[j] += (real)(a - b[j]);
  }
  if (g->sigmoid)
    for (int64_t j = 0; j < n; j++) x[j] -= g->log_len;
}

/* Whole vectors cover the visible x[lo .. hi-1]; what they cover besides gets `value`. */
static inline void attend_hide(real *x, int64_t from, int64_t lo, int64_t hi, int64_t to, real value) {
  for (int64_t j = from; j < lo; j++) x[j] = value;
  for (int64_t j = hi; j < to; j++) x[j] = value;
}

/* Work space of one thread, handed out in pieces of whole cache lines. */
static inline void *attend_take_bytes(char **at, size_t bytes) {
  void *p = *at;
  *at += (bytes + 63) / 64 * 64;
  return p;
}
static inline real *attend_take(char **at, int64_t count) {
  return attend_take_bytes(at, (size_t)count * sizeof(real));
}
static inline double *attend_take_terms(char **at, const attend_args *g, int64_t keys) {
  return attend_take_bytes(at, (size_t)(g->b ? g->group * keys : 0) * sizeof(double));
}

#endif
#endif
