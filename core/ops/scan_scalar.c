/* scan_scalar: the linear recurrence with one decay for each head and token,
 *     S_t = e^{g_t} S_{t-1} + w_t k_t^T v_t,   o_t = s q_t S_t,
 * the core of RetNet, Lightning, simple GLA, Mamba-2 (w = dt) and mLSTM (w = the stabilised input gate).
 *
 * With b the inclusive cumulative log decay inside a chunk, D[t,j] = e^{b_t - b_j} for j <= t, Q already
 * scaled, K already weighted, S0 the state entering and S' the one leaving: O = diag(e^b) Q S0 + (Q K^T . D)
 * V,    S' = e^{b_C} S0 + (diag(e^{b_C - b}) K)^T V so nearly all work is in tile products. b and its
 * differences are formed in double and rounded just before the exponential: b grows and D must not lose its
 * digits. Rows of a few tokens run as written above.
 *
 * Backward, with dP = (dO V^T) . D:
 *     dQ = dP K + diag(e^b) dO S0^T             dK = dP^T Q + diag(e^{b_C - b}) V dS'^T
 *     dV = (Q K^T . D)^T dO + diag(e^{b_C - b}) K dS'     dS0 = e^{b_C} dS' + (diag(e^b) Q)^T dO
 *     dg_t = sum_{i >= t > j} W_ij + sum_{i >= t} e^{b_i} <q_i S0, dO_i> + sum_{j < t} e^{b_C - b_j} <k_j
 * dS', v_j>
 *            + e^{b_C} <S0, dS'>,   W = (Q K^T) . dP below the diagonal
 * Sums of what passes over step t, instead of a difference of two large sums: no digits cancel. (mixers 1)
 */
#include "core/ops/scan_impl.h"

#ifdef WF_KERNEL_PASS

/* e[t] = e^{b_t}, f[t] = e^{b_C - b_t}. */
typedef struct decays {
  double *b;
  real *e, *f, last; /* last: e^{b_C} */
} decays;

static decays decays_of(const scan_args *a, const scan_chunk *c, char **work) {
  decays x = {.b = take_double(work, a->chunk), .e = take(work, a->chunk), .f = take(work, a->chunk)};
  double sum = 0;
  for (int64_t t = 0; t < c->n; t++) x.b[t] = sum += c->g ? (double)c->g[t * a->gs] : 0;
  for (int64_t t = 0; t < c->n; t++) {
    x.e[t] = (real)exp(x.b[t]);
    x.f[t] = (real)exp(sum - x.b[t]);
  }
  x.last = (real)exp(sum);
  return x;
}
static int64_t decays_space(const scan_args *a) {
  return 4 * (a->chunk + TAKE_SLACK);
}

static void pack_keys(const scan_args *a, const scan_chunk *c, real *dst, int64_t ld) {
  for (int64_t t = 0; t < c->n; t++)
    pack_scaled(1, a->kdim, c->k + t * a->ks, 0, NULL, scan_weight(a, c, t), dst + t * ld, ld);
}

/* S [kdim, vpad] over the chunk; ke [n, kdim] and vp [n, vpad] are work space, vp left holding V. */
static void move_state(const scan_args *a, const scan_chunk *c, const decays *x, real *s, real *ke,
                       real *vp) {
  for (int64_t t = 0; t < c->n; t++)
    pack_scaled(1, a->kdim, c->k + t * a->ks, 0, NULL, x->f[t] * scan_weight(a, c, t), ke + t * a->kdim,
                a->kdim);
  tile_pack(c->n, a->vdim, c->v, a->vs, vp, a->vpad);
  for (int64_t i = 0; i < a->kdim * a->vpad; i++) s[i] *= x->last;
  tile_mm(a->kdim, a->vpad, c->n, ke, 1, a->kdim, vp, a->vpad, s, a->vpad, true);
}

static void advance(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  decays x = decays_of(a, c, &work);
  real *ke = take(&work, c->n * a->kdim), *vp = take(&work, c->n * a->vpad);
  move_state(a, c, &x, s, ke, vp);
}

static int64_t forward_space(const scan_args *a) {
  int64_t c = a->chunk;
  return decays_space(a) + 2 * c * a->kdim + a->kdim * a->cpad + c * a->cpad + 2 * c * a->vpad +
         6 * TAKE_SLACK;
}

static void tokens(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  (void)work;
  for (int64_t t = 0; t < c->n; t++) {
    const real *q = c->q + t * a->qs, *k = c->k + t * a->ks, *v = c->v + t * a->vs;
    real *restrict o = scan_o(a, c, t), keep = c->g ? r_exp(c->g[t * a->gs]) : 1, w = scan_weight(a, c, t);
    memset(o, 0, (size_t)a->vdim * sizeof *o);
    for (int64_t d = 0; d < a->kdim; d++) {
      real *restrict row = s + d * a->vpad, kd = w * k[d], qd = a->scale * q[d];
      for (int64_t i = 0; i < a->vdim; i++) {
        row[i] = keep * row[i] + kd * v[i];
        o[i] += qd * row[i];
      }
    }
  }
}

static void forward(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  decays x = decays_of(a, c, &work);
  real *q = take(&work, c->n * a->kdim), *ke = take(&work, c->n * a->kdim);
  real *kt = take(&work, a->kdim * a->cpad), *p = take(&work, c->n * a->cpad);
  real *vp = take(&work, c->n * a->vpad), *o = take(&work, c->n * a->vpad);
  int64_t pad = TILE_PAD(c->n);
  pack_scaled(c->n, a->kdim, c->q, a->qs, x.e, a->scale, q, a->kdim);
  tile_mm(c->n, a->vpad, a->kdim, q, a->kdim, 1, s, a->vpad, o, a->vpad, false);
  move_state(a, c, &x, s, ke, vp);
  pack_scaled(c->n, a->kdim, c->q, a->qs, NULL, a->scale, q, a->kdim);
  pack_keys(a, c, ke, a->kdim);
  tile_transpose(c->n, a->kdim, ke, a->kdim, kt, a->cpad, pad);
  tile_mm(c->n, pad, a->kdim, q, a->kdim, 1, kt, a->cpad, p, a->cpad, false);
  for (int64_t t = 0; t < c->n; t++) {
    real *row = p + t * a->cpad;
    double bt = x.b[t];
    WF_PRAGMA(omp simd)
    for (int64_t j = 0; j <= t; j++) row[j] *= tile_exp((real)(bt - x.b[j]));
    for (int64_t j = t + 1; j < c->n; j++) row[j] = 0;
  }
  tile_mm(c->n, a->vpad, c->n, p, a->cpad, 1, vp, a->vpad, o, a->vpad, true);
  for (int64_t t = 0; t < c->n; t++) memcpy(scan_o(a, c, t), o + t * a->vpad, (size_t)a->vdim * sizeof *o);
}

/* ---- gradient ---- */

static int64_t grad_space(const scan_args *a) {
  int64_t c = a->chunk, wide = a->kdim > a->vdim ? a->kpad : a->vpad;
  return decays_space(a) + 2 * c * a->kpad + (a->kdim + a->vdim) * a->cpad + c * a->vpad + a->vdim * a->kpad +
         2 * c * a->cpad + 2 * c * wide + 4 * (c + 1) + 14 * TAKE_SLACK;
}

/* Decay the products P = Q K^T and X = dO V^T; into sum[t] what passes over step t inside the chunk. */
static void decay(const scan_args *a, const scan_chunk *c, const double *b, real *p, real *x, double *passing,
                  double *sum) {
  for (int64_t j = 0; j < c->n; j++) passing[j] = 0;
  for (int64_t t = c->n - 1; t >= 0; t--) {
    real *pt = p + t * a->cpad, *xt = x + t * a->cpad;
    double bt = b[t], over = 0;
    WF_PRAGMA(omp simd)
    for (int64_t j = 0; j <= t; j++) {
      real d = tile_exp((real)(bt - b[j]));
      xt[j] *= d;
      passing[j] += (double)(pt[j] * xt[j]);
      pt[j] *= d;
    }
    WF_PRAGMA(omp simd reduction(+ : over))
    for (int64_t j = 0; j < t; j++) over += passing[j];
    sum[t] = over;
    for (int64_t j = t + 1; j < c->n; j++) pt[j] = xt[j] = 0;
  }
}

static void grad(const scan_args *a, const grad_out *out, const scan_chunk *c, const real *s0, real *ds,
                 char *work) {
  int64_t n = c->n, pad = TILE_PAD(n), kp = a->kpad, vp = a->vpad, cp = a->cpad;
  int64_t wide = a->kdim > a->vdim ? kp : vp;
  decays z = decays_of(a, c, &work);
  real *q = take(&work, n * kp), *k = take(&work, n * kp), *kt = take(&work, a->kdim * cp);
  real *vt = take(&work, a->vdim * cp), *dout = take(&work, n * vp), *st = take(&work, a->vdim * kp);
  real *p = take(&work, n * cp), *x = take(&work, n * cp), *y = take(&work, n * wide),
       *dv = take(&work, n * wide);
  double *passing = take_double(&work, n), *sum = take_double(&work, n + 1);
  pack_scaled(n, a->kdim, c->q, a->qs, NULL, a->scale, q, kp);
  pack_keys(a, c, k, kp);
  tile_transpose(n, a->kdim, k, kp, kt, cp, pad);
  tile_transpose(n, a->vdim, c->v, a->vs, vt, cp, pad);
  pack_dout(a, c, dout);
  tile_mm(n, pad, a->kdim, q, kp, 1, kt, cp, p, cp, false);
  tile_mm(n, pad, a->vdim, dout, vp, 1, vt, cp, x, cp, false);
  decay(a, c, z.b, p, x, passing, sum);

  /* dQ, and the terms of the state entering */
  tile_transpose(a->kdim, a->vdim, s0, vp, st, kp, kp);
  tile_mm(n, kp, a->vdim, dout, vp, 1, st, kp, y, kp, false);
  double after = 0, before = 0, through = (double)z.last * dot(a->kdim * vp, s0, ds);
  for (int64_t t = n - 1; t >= 0; t--) {
    after += (double)z.e[t] * dot(a->kdim, q + t * kp, y + t * kp);
    sum[t] += after + through;
    for (int64_t d = 0; d < kp; d++) y[t * kp + d] *= z.e[t];
  }
  tile_mm(n, kp, n, x, cp, 1, k, kp, y, kp, true);
  store(&out[WANT_Q], c->token, c->group, n, a->kdim, y, kp, a->scale);

  /* dK, and the terms of the state leaving */
  tile_transpose(a->kdim, a->vdim, ds, vp, st, kp, kp);
  tile_mm(n, kp, a->vdim, c->v, a->vs, 1, st, kp, y, kp, false);
  for (int64_t t = 0; t < n; t++) {
    sum[t] += before;
    before += (double)z.f[t] * dot(a->kdim, k + t * kp, y + t * kp);
    for (int64_t d = 0; d < kp; d++) y[t * kp + d] *= z.f[t];
  }
  store_scalar(&out[WANT_G], c->token, c->h, n, sum);
  tile_mm(n, kp, n, x, 1, cp, q, kp, y, kp, true);
  scan_store_keys(a, out, c, y, sum);

  tile_mm(n, vp, a->kdim, k, kp, 1, ds, vp, dv, vp, false);
  for (int64_t t = 0; t < n; t++)
    for (int64_t d = 0; d < vp; d++) dv[t * vp + d] *= z.f[t];
  tile_mm(n, vp, n, p, 1, cp, dout, vp, dv, vp, true);
  store(&out[WANT_V], c->token, c->h, n, a->vdim, dv, vp, 1);

  for (int64_t i = 0; i < a->kdim * vp; i++) ds[i] *= z.last;
  for (int64_t t = 0; t < n; t++)
    for (int64_t d = 0; d < a->kdim; d++) q[t * kp + d] *= z.e[t];
  tile_mm(a->kdim, vp, n, q, 1, kp, dout, vp, ds, vp, true);
}

static const scan_kind kind = {.chunk = 64,
                               .shorter = 8,
                               .forward_space = forward_space,
                               .grad_space = grad_space,
                               .tokens = tokens,
                               .forward = forward,
                               .advance = advance,
                               .grad = grad};

WF_SCAN_KERNELS(scan_scalar, kind)

#else

WF_CUDA_DECLARE(scan_scalar)
WF_CUDA_DECLARE(scan_scalar_grad)
WF_SCAN_OP(scan_scalar, WF_CUDA_FN(scan_scalar), WF_CUDA_FN(scan_scalar_grad), {.g_dims = 2})

#endif
