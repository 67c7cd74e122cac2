/* scan_decays: a chunk under one decay for each head and token, for the kernels of the members that have it.
 *
 * With b the inclusive cumulative log decay inside a chunk, e_t = e^{b_t} takes the entering state to token
 * t, f_t = e^{b_C - b_t} takes what it writes to the end, D[t,j] = e^{b_t - b_j}, j <= t, takes j's to t. b
 * and its differences are formed in double and rounded just before the exponential: b grows and D must not
 * lose its digits.
 *
 * Values W [n] are written under keys K and read by m sets of n readers R, stacked: Q for the output and,
 * with the delta rule, the keys themselves. S0 is the state entering and S' the one leaving:
 *     read = diag(e) R S0 + P W,   P = (R K^T) . D;        S' = e^{b_C} S0 + (diag(f) K)^T W
 * Backward, Y the gradients of what is read:
 *     dP = (Y W^T) . D;   dR = dP K + diag(e) Y S0^T;      dK = dP^T R + diag(f) W dS'^T
 *     dW = P^T Y + diag(f) K dS';                          dS0 = e^{b_C} dS' + (diag(e) R)^T Y
 *     dg_t = sum_{i >= t > j} (P . Y W^T)_ij + e^{b_C} <S0, dS'>
 *            + sum_{i >= t} e_i <r_i S0, y_i> + sum_{j < t} f_j <k_j dS', w_j>
 * A column of ones beside W, and n beside S, are read and left by the same products, of vectors: read =
 * diag(e) R n + P 1, n' = e^{b_C} n + (diag(f) K)^T 1, and backward as above.
 *
 * Sums of what passes over step t, instead of a difference of two large sums: no digits cancel. (mixers 1)
 */
#ifndef WF_CORE_OPS_SCAN_DECAYS_IMPL_H
#define WF_CORE_OPS_SCAN_DECAYS_IMPL_H

#include "core/ops/scan_lower_impl.h"

#ifdef WF_KERNEL_PASS

static inline void scale_rows(int64_t n, int64_t dim, const real *factor, real *x) {
  for (int64_t t = 0; t < n; t++)
    for (int64_t d = 0; d < dim; d++) x[t * dim + d] *= factor[t];
}

/* p = p . D; `strict`: the diagonal is zero. */
static void lower_fade(const scan_args *a, int64_t n, const real *d, bool strict, real *p) {
  for (int64_t t = 0; t < n; t++) {
    int64_t end = TILE_PAD(step_end(n, t / STEP * STEP)), at = t * a->cpad;
    for (int64_t j = 0; j < end; j++) p[at + j] *= d[at + j];
    if (strict) p[at + t] = 0;
  }
}

/* ---- a chunk ---- */

typedef struct reads {
  int64_t n, m;
  bool strict;       /* the first readers are the keys and see only what was written before them */
  real *e, *f, last; /* last: e^{b_C} */
  real *d;           /* [n, cpad]: D, zero above the diagonal */
  real *r, *k;       /* [m n, kpad], [n, kpad] */
  real *p;           /* [m n, cpad] */
  real *w;           /* [n, vpad] */
} reads;

static int64_t reads_space(const scan_args *a, int64_t m) {
  int64_t c = a->chunk;
  return 4 * c + (m + 1) * c * (a->cpad + a->kpad) + c * a->vpad + 8 * TAKE_SLACK;
}

/* Space for all, and the decays; `pairs`: D too. */
static reads reads_open(const scan_args *a, const scan_chunk *c, int64_t m, bool strict, bool pairs,
                        char **work) {
  int64_t n = c->n;
  reads x = {.n = n, .m = m, .strict = strict, .e = take(work, n), .f = take(work, n)};
  double *b = take_double(work, n), sum = 0;
  x.d = take(work, n * a->cpad), x.p = take(work, m * n * a->cpad);
  x.r = take(work, m * n * a->kpad), x.k = strict ? x.r : take(work, n * a->kpad);
  x.w = take(work, n * a->vpad);
  for (int64_t t = 0; t < n; t++) b[t] = sum += c->g ? (double)scan_log(c->g[t * a->gs]) : 0;
  for (int64_t t = 0; t < n; t++) {
    x.e[t] = (real)exp(b[t]);
    x.f[t] = (real)exp(sum - b[t]);
  }
  x.last = (real)exp(sum);
  for (int64_t t = 0; t < n && pairs; t++) {
    real *d = x.d + t * a->cpad;
    double bt = b[t];
    WF_PRAGMA(omp simd)
    for (int64_t j = 0; j <= t; j++) d[j] = tile_exp((real)(bt - b[j]));
    for (int64_t j = t + 1; j < a->cpad; j++) d[j] = 0;
  }
  return x;
}

/* P of the readers from set `first` on, from R and K. */
static void reads_weigh(const scan_args *a, const reads *x, int64_t first, char *work) {
  real *kt = take(&work, a->kdim * a->cpad);
  tile_transpose(x->n, a->kdim, x->k, a->kpad, kt, a->cpad, TILE_PAD(x->n));
  for (int64_t i = first; i < x->m; i++) {
    real *p = x->p + i * x->n * a->cpad;
    lower_of(a, x->n, a->kdim, x->r + i * x->n * a->kpad, a->kpad, kt, p);
    lower_fade(a, x->n, x->d, x->strict && i == 0, p);
  }
}

/* y [m n, vpad] = diag(e) R S0. */
static void reads_enter(const scan_args *a, const reads *x, const real *s0, real *y) {
  tile_mm(x->m * x->n, a->vpad, a->kdim, x->r, a->kpad, 1, s0, a->vpad, y, a->vpad, false);
  for (int64_t i = 0; i < x->m; i++) scale_rows(x->n, a->vpad, x->e, y + i * x->n * a->vpad);
}

/* The outputs of the column of ones. */
static inline void reads_ones(const scan_args *a, const scan_chunk *c, const reads *x, const real *s0) {
  const real *ones = scan_ones(a, s0);
  for (int64_t t = 0; t < x->n && ones; t++) {
    const real *p = x->p + t * a->cpad;
    real sum = 0;
    WF_PRAGMA(omp simd reduction(+ : sum))
    for (int64_t j = 0; j <= t; j++) sum += p[j];
    scan_o(a, c, t)[a->vdim] = sum + x->e[t] * tile_dot(a->kdim, x->r + t * a->kpad, ones);
  }
}

/* to [dim] = by to + sum_t f_t x[t]. */
static inline void pull_rows(int64_t n, int64_t dim, const real *f, int64_t fs, const real *x, int64_t ld,
                             real by, real *restrict to) {
  for (int64_t d = 0; d < dim; d++) to[d] *= by;
  for (int64_t t = 0; t < n; t++)
    for (int64_t d = 0; d < dim; d++) to[d] += f[t * fs] * x[t * ld + d];
}

/* S = S', W is lost. */
static void reads_leave(const scan_args *a, const reads *x, real *s) {
  real *ones = scan_ones(a, s);
  if (ones) pull_rows(x->n, a->kdim, x->f, 1, x->k, a->kpad, x->last, ones);
  scale_rows(x->n, a->vpad, x->f, x->w);
  for (int64_t i = 0; i < a->kdim * a->vpad; i++) s[i] *= x->last;
  tile_mm(a->kdim, a->vpad, x->n, x->k, 1, a->kpad, x->w, a->vpad, s, a->vpad, true);
}

/* ---- gradient ---- */

/* dw [n, vpad] = P^T dO + diag(f) K dS' for the last readers. */
static void reads_written(const scan_args *a, const reads *x, const real *dout, const real *ds, real *dw) {
  tile_mm(x->n, a->vpad, a->kdim, x->k, a->kpad, 1, ds, a->vpad, dw, a->vpad, false);
  scale_rows(x->n, a->vpad, x->f, dw);
  lower_pull(a, x->n, x->p + (x->m - 1) * x->n * a->cpad, dout, a->vpad, dw);
}

/* sum[t] += sum_{i >= t > j} of all P . X. */
static void reads_passing(const scan_args *a, const reads *x, const real *dp, double *over, double *sum) {
  for (int64_t j = 0; j < x->n; j++) over[j] = 0;
  for (int64_t t = x->n - 1; t >= 0; t--) {
    double all = 0;
    for (int64_t i = 0; i < x->m; i++) {
      const real *p = x->p + (i * x->n + t) * a->cpad, *q = dp + (i * x->n + t) * a->cpad;
      WF_PRAGMA(omp simd)
      for (int64_t j = 0; j < t; j++) over[j] += (double)(p[j] * q[j]);
    }
    WF_PRAGMA(omp simd reduction(+ : all))
    for (int64_t j = 0; j < t; j++) all += over[j];
    sum[t] += all;
  }
}

static int64_t reads_grad_space(const scan_args *a, int64_t m) {
  int64_t c = a->chunk;
  return m * c * (a->cpad + a->kpad) + c * a->kpad + a->vdim * (a->kpad > a->cpad ? a->kpad : a->cpad) +
         4 * (c + 1) + 8 * TAKE_SLACK;
}

/* ds becomes dS0, R is lost. */
static void reads_retreat(const scan_args *a, const scan_chunk *c, const reads *x, const real *y, real *ds) {
  real *dones = scan_ones(a, ds);
  const real *dread = dones && c->dout ? c->dout + a->vdim : NULL;
  for (int64_t i = 0; i < a->kdim * a->vpad; i++) ds[i] *= x->last;
  for (int64_t i = 0; i < x->m; i++) scale_rows(x->n, a->kpad, x->e, x->r + i * x->n * a->kpad);
  if (dones) pull_rows(dread ? x->n : 0, a->kdim, dread, a->dos, x->r, a->kpad, x->last, dones);
  tile_mm(a->kdim, a->vpad, x->m * x->n, x->r, 1, a->kpad, y, a->vpad, ds, a->vpad, true);
}

/* dR [m n, kpad] and dK [n, kpad] in the work space, dg stored; ds becomes dS0, R is lost. */
typedef struct pulled {
  real *dr, *dk;
} pulled;
static pulled reads_grad(const scan_args *a, const grad_out *out, const scan_chunk *c, const reads *x,
                         const real *y, const real *s0, real *ds, char **work) {
  int64_t n = x->n, m = x->m, kp = a->kpad, vp = a->vpad, cp = a->cpad;
  pulled z = {take(work, m * n * kp), take(work, n * kp)};
  real *dp = take(work, m * n * cp), *turned = take(work, a->vdim * (kp > cp ? kp : cp));
  double *sum = take_double(work, n), *over = take_double(work, n);
  const real *ones = scan_ones(a, s0), *dread = ones && c->dout ? c->dout + a->vdim : NULL;
  real *dones = scan_ones(a, ds);
  const bool gates = out[WANT_G].p;
  double through = 0, before = 0, after = 0;
  if (gates) through = (double)x->last * (dot(a->kdim * vp, s0, ds) + (ones ? dot(a->kdim, ones, dones) : 0));
  for (int64_t t = 0; t < n; t++) sum[t] = through;
  tile_transpose(n, a->vdim, x->w, vp, turned, cp, TILE_PAD(n));
  for (int64_t i = 0; i < m; i++) lower_of(a, n, a->vdim, y + i * n * vp, vp, turned, dp + i * n * cp);
  for (int64_t t = 0; t < n && dread; t++)
    for (int64_t j = 0; j <= t; j++) dp[t * cp + j] += dread[t * a->dos];
  if (gates) reads_passing(a, x, dp, over, sum);
  for (int64_t i = 0; i < m; i++) lower_fade(a, n, x->d, x->strict && i == 0, dp + i * n * cp);

  /* Through the state that entered, then within the chunk */
  tile_transpose(a->kdim, a->vdim, s0, vp, turned, kp, kp);
  tile_mm(m * n, kp, a->vdim, y, vp, 1, turned, kp, z.dr, kp, false);
  for (int64_t t = 0; t < n && dread; t++)
    for (int64_t d = 0; d < a->kdim; d++) z.dr[t * kp + d] += dread[t * a->dos] * ones[d];
  for (int64_t t = n - 1; t >= 0 && gates; t--) {
    for (int64_t i = 0; i < m; i++) {
      int64_t at = (i * n + t) * kp;
      after += (double)x->e[t] * dot(a->kdim, x->r + at, z.dr + at);
    }
    sum[t] += after;
  }
  for (int64_t i = 0; i < m; i++) {
    scale_rows(n, kp, x->e, z.dr + i * n * kp);
    lower_times(a, n, dp + i * n * cp, x->k, kp, z.dr + i * n * kp);
  }

  /* Through the state that leaves, then within the chunk */
  tile_transpose(a->kdim, a->vdim, ds, vp, turned, kp, kp);
  tile_mm(n, kp, a->vdim, x->w, vp, 1, turned, kp, z.dk, kp, false);
  for (int64_t t = 0; t < n && dones; t++)
    for (int64_t d = 0; d < a->kdim; d++) z.dk[t * kp + d] += dones[d];
  for (int64_t t = 0; t < n && gates; t++) {
    sum[t] += before;
    before += (double)x->f[t] * dot(a->kdim, x->k + t * kp, z.dk + t * kp);
  }
  store_scalar(&out[WANT_G], c->token, c->h, n, sum);
  scale_rows(n, kp, x->f, z.dk);
  for (int64_t i = 0; i < m; i++) lower_pull(a, n, dp + i * n * cp, x->r + i * n * kp, kp, z.dk);

  reads_retreat(a, c, x, y, ds);
  return z;
}

#endif

#endif
