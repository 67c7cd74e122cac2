/* What selective_scan and its gradient share: inputs, vectors of channels, the decay.
 *
 * A vector holds one n of VL channels: B and C are scalars to it, and sums over n need no sum over lanes.
 * Matrices [d, N] are turned to vectors when a row is entered.
 */
#ifndef WF_CORE_OPS_SCAN_SELECTIVE_IMPL_H
#define WF_CORE_OPS_SCAN_SELECTIVE_IMPL_H

#include "core/ops/ops_impl.h"
#include "core/ops/rows_impl.h"

enum { X, DT, A, B, C, D, STATE, INIT, TABLE, FORWARD_INS, MARKS = FORWARD_INS, DY, DSTATE, GRAD_INS };
enum { WANTS = TABLE };           /* X .. INIT have gradients */
enum { Y, MARKS_OUT, STATE_OUT }; /* outputs */
enum { TILE = 32 };               /* tokens */

typedef struct selective_attr {
  int64_t lanes, marks; /* marks: how many tiles, the rows' first ones left out; 0: keep none */
  int32_t leaves;       /* is there an output state */
  int32_t want;         /* of the gradient: bits of the inputs */
} selective_attr;

/* Tiles of a row whose entering state is kept. */
static inline int64_t marks_of(int64_t len) {
  return (len - 1) / TILE;
}

#ifdef WF_KERNEL_PASS
#  include <string.h>
#  include "core/tile_impl.h"
#  ifdef __AVX512F__
#    include <immintrin.h>
#  endif

enum { AT_ONCE = 4 }; /* states in registers */

typedef struct sel_args {
  const real *x, *dt, *a, *b, *c, *skip, *state, *init, *dy, *dleft;
  int64_t xs, dts, bs, cs, dys; /* token strides */
  const wf_row *row;
  int64_t rows, n, d, N, lanes, size; /* N: states of a channel; size: of a lane's state, d N */
  int64_t vectors;                    /* of VL channels */
  real *y, *left, *marks;
  int64_t *mark; /* [rows] the first mark of each row */
} sel_args;

/* e^{dt A} is formed as 2^{dt A'}, A' = A log2 e, with tile_exp's polynomial. In double the C library's exp
 * serves.
 */
#  ifdef WF_REAL_F32
static const real rate = 1.44269504f;

/* 2^z for z <= 0. Without AVX-512 numbers below 2^-125 are 2^-125. */
static inline __attribute__((always_inline)) tile_vec decay(tile_vec z) {
#    ifdef __AVX512F__
  tile_vec n = (tile_vec)_mm512_roundscale_ps((__m512)z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#    else
  typedef int32_t bits __attribute__((vector_size(TILE_BYTES), aligned(sizeof(real)), may_alias));
  for (int l = 0; l < VL; l++) z[l] = z[l] > -125.0f ? z[l] : -125.0f;
  tile_vec shifted = z + 12582912.0f, n = shifted - 12582912.0f; /* 1.5 2^23: n is in the low bits */
#    endif
  tile_vec r = z - n, p = r * 1.54541655e-4f + 1.33822686e-3f;
  p = p * r + 9.61808039e-3f;
  p = p * r + 0.0555037977f;
  p = p * r + 0.240226507f;
  p = p * r + 0.693147181f;
  p = p * r + 1.0f;
#    ifdef __AVX512F__
  return (tile_vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#    else
  return (tile_vec)((bits)p + ((bits)shifted << 23));
#    endif
}
#  else
static const real rate = 1;
static inline tile_vec decay(tile_vec z) {
  real e[VL];
  memcpy(e, &z, sizeof e);
  WF_PRAGMA(omp simd)
  for (int l = 0; l < VL; l++) e[l] = exp(e[l]);
  memcpy(&z, e, sizeof e);
  return z;
}
#  endif

static inline wf_status sel_read(const wf_call *call, sel_args *a) {
  const selective_attr *at = call->attr;
  const wf_tensor *x = call->in[X], *dt = call->in[DT], *b = call->in[B], *c = call->in[C];
  const wf_tensor *skip = call->in[D], *state = call->in[STATE], *init = call->in[INIT];
  *a = (sel_args){.x = wf_data(x), .dt = wf_data(dt), .a = wf_data(call->in[A]), .b = wf_data(b)};
  a->c = wf_data(c);
  a->xs = x->stride[0], a->dts = dt->stride[0], a->bs = b->stride[0], a->cs = c->stride[0];
  if (skip) a->skip = wf_data(skip);
  if (state) a->state = wf_data(state);
  if (init) a->init = wf_data(init);
  a->rows = call->in[TABLE]->shape[0], a->n = x->shape[0], a->lanes = at->lanes;
  a->d = x->shape[1], a->N = b->shape[1], a->size = a->d * a->N;
  a->vectors = (a->d + VL - 1) / VL;
  return wf_rows_read(call->op->name, call->in[TABLE], a->n, a->lanes, &a->row);
}

/* Marks are read or written by rows: where each row's begin. Freed by the caller. */
static inline wf_status sel_marks(const wf_call *call, sel_args *a) {
  WF_TRY(wf_device_alloc(wf_ctx_device(call->ctx), "scan", (size_t)a->rows * sizeof *a->mark,
                         (void **)&a->mark));
  int64_t at = 0;
  for (int64_t r = 0; r < a->rows; r++) {
    a->mark[r] = at;
    at += marks_of(a->row[r].len);
  }
  return WF_OK;
}
static inline void sel_free_marks(const wf_call *call, const sel_args *a) {
  wf_device_free(wf_ctx_device(call->ctx), "scan", a->mark, (size_t)a->rows * sizeof *a->mark);
}

/* Channels of vector v: VL, fewer in the last. */
static inline int64_t channels(const sel_args *a, int64_t v) {
  return a->d - v * VL < VL ? a->d - v * VL : VL;
}

/* to[t] = n tokens' channels of vector v; lanes beyond the width are 0. */
static inline void load(const sel_args *a, int64_t v, int64_t n, const real *from, int64_t stride,
                        tile_vec *to) {
  int64_t w = channels(a, v);
  from += v * VL;
  if (w < VL) {
    tile_pack(n, w, from, stride, (real *)to, VL);
    return;
  }
  for (int64_t t = 0; t < n; t++) to[t] = *(const tile_vec *)(from + t * stride);
}
static inline void store(const sel_args *a, int64_t v, int64_t n, const tile_vec *from, real *to,
                         int64_t stride, bool add) {
  int64_t w = channels(a, v);
  for (int64_t t = 0; t < n; t++) {
    real *line = to + t * stride + v * VL;
    if (w == VL)
      *(tile_vec *)line = from[t] + (add ? *(tile_vec *)line : (tile_vec){0});
    else
      for (int64_t l = 0; l < w; l++) line[l] = from[t][l] + (add ? line[l] : 0);
  }
}

/* A matrix [d, N] at vector v as N vectors, and back. */
static inline void turn(const sel_args *a, int64_t v, const real *from, tile_vec *to) {
  tile_transpose(channels(a, v), a->N, from + v * VL * a->N, a->N, (real *)to, VL, VL);
}
static inline void turn_back(const sel_args *a, int64_t v, const tile_vec *from, real *to) {
  tile_transpose(a->N, channels(a, v), (const real *)from, VL, to + v * VL * a->N, a->N, a->N);
}

/* The states a row starts from, vector v. */
static inline void enter(const sel_args *a, const wf_row *r, int64_t v, tile_vec *h) {
  const real *from = wf_row_takes(r) ? (a->state ? a->state + r->lane * a->size : NULL) : a->init;
  if (from)
    turn(a, v, from, h);
  else
    memset(h, 0, (size_t)a->N * sizeof *h);
}

static inline void exponents(const sel_args *a, int64_t v, tile_vec *to) {
  turn(a, v, a->a, to);
  for (int64_t i = 0; i < a->N; i++) to[i] *= rate;
}

static inline int64_t sel_cost(const sel_args *a) { /* element operations of a row and vector, nearly */
  return a->rows ? a->n / a->rows * a->N * 20 : 1;
}

#else

/* scan_selective.c: checks, the outputs' shapes; samples. */
wf_status wf_selective_check(const wf_call *call, wf_desc *out);
wf_status wf_selective_sample(wf_sample *s);

#endif

#endif
