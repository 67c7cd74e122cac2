/* scan_delta: the delta rule with one decay for each head and token,
 *     P = e^{g_t} S_{t-1},   e_t = k_t P - v_t,   S_t = P - beta_t k_t^T e_t,   o_t = s q_t S_t,
 * the core of DeltaNet (g = 0) and Gated DeltaNet.
 *
 * Each token writes the row w_t = -beta_t e_t. Once these are known a chunk is linear attention with values W
 * that are read twice, by the keys for the errors and by the queries for the outputs (scan_decays_impl.h with
 * R = [K; sQ]): with L the part of (K K^T) . D below the diagonal,
 *     E = diag(e^b) K S0 - V + L W,   W = -diag(beta) E,
 * triangular systems that scan_delta_impl.h solves; this is the WY form of Yang et al. 2024. Backward:
 *     dW = L^T dE + A^T dO + diag(e^{b_C - b}) K dS',   dE = -diag(beta) dW,
 *     dV = -dE,   dbeta_t = -<dw_t, e_t>,   dK has a part as reader and one as key.
 */
#define WF_SCAN_SHARE 1.2 /* forming A is a scan by itself */
#include "core/ops/scan_decays_impl.h"
#include "core/ops/scan_delta_impl.h"

#ifdef WF_KERNEL_PASS

static void tokens(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  real *error = take(&work, a->vpad);
  for (int64_t t = 0; t < c->n; t++) {
    const real *q = c->q + t * a->qs, *k = c->k + t * a->ks, *v = c->v + t * a->vs;
    real *restrict o = scan_o(a, c, t), *restrict e = error;
    real keep = c->g ? r_exp(c->g[t * a->gs]) : 1, beta = c->w[t * a->ws];
    for (int64_t i = 0; i < a->vdim; i++) e[i] = -v[i];
    for (int64_t d = 0; d < a->kdim; d++) {
      real *restrict row = s + d * a->vpad, kd = keep * k[d];
      for (int64_t i = 0; i < a->vdim; i++) e[i] += kd * row[i];
    }
    memset(o, 0, (size_t)a->vdim * sizeof *o);
    for (int64_t d = 0; d < a->kdim; d++) {
      real *restrict row = s + d * a->vpad, kd = beta * k[d], qd = a->scale * q[d];
      for (int64_t i = 0; i < a->vdim; i++) {
        row[i] = keep * row[i] - kd * e[i];
        o[i] += qd * row[i];
      }
    }
  }
}

typedef struct solved {
  reads x;
  real *eo;      /* [m n, vpad]: E, then O without A W */
  real *inverse; /* see solve_blocks */
} solved;

static int64_t solved_space(const scan_args *a, int64_t m) {
  int64_t c = a->chunk, weigh = a->kdim * a->cpad;
  return reads_space(a, m) + m * c * a->vpad + c * SOLVE + weigh + 3 * TAKE_SLACK;
}

/* P of the readers from set `first` on; m: 1 or, with queries, 2. */
static reads chunk_of(const scan_args *a, const scan_chunk *c, int64_t first, int64_t m, char **work) {
  reads x = reads_open(a, c, m, true, true, work);
  tile_pack(c->n, a->kdim, c->k, a->ks, x.k, a->kpad);
  if (m > 1) pack_scaled(c->n, a->kdim, c->q, a->qs, NULL, a->scale, x.r + c->n * a->kpad, a->kpad);
  reads_weigh(a, &x, first, *work);
  return x;
}

/* W and E. */
static solved solve(const scan_args *a, const scan_chunk *c, const real *s0, int64_t m, char **work) {
  int64_t n = c->n, vp = a->vpad;
  solved y = {.x = chunk_of(a, c, 0, m, work)};
  reads *x = &y.x;
  y.eo = take(work, m * n * vp), y.inverse = take(work, n * SOLVE);
  reads_enter(a, x, s0, y.eo);
  for (int64_t t = 0; t < n; t++)
    for (int64_t i = 0; i < a->vdim; i++) y.eo[t * vp + i] -= c->v[t * a->vs + i];
  solve_blocks(a, c, x->p, y.inverse);
  solve_writes(a, n, x->p, y.inverse, y.eo, x->w);
  return y;
}

static void advance(const scan_args *a, const scan_chunk *c, real *s, real *kept, char *work) {
  solved y = solve(a, c, s, 1, &work);
  if (kept) solve_keep(a, c->n, y.x.w, y.eo, y.inverse, y.x.p, kept);
  reads_leave(a, &y.x, s);
}

static int64_t forward_space(const scan_args *a) {
  return solved_space(a, 2) + a->vpad + TAKE_SLACK;
}

static void forward(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  int64_t n = c->n, vp = a->vpad;
  solved y = solve(a, c, s, 2, &work);
  real *o = y.eo + n * vp;
  lower_times(a, n, y.x.p + n * a->cpad, y.x.w, vp, o);
  for (int64_t t = 0; t < n; t++) memcpy(scan_o(a, c, t), o + t * vp, (size_t)a->vdim * sizeof *o);
  reads_leave(a, &y.x, s);
}

static int64_t grad_space(const scan_args *a) {
  int64_t c = a->chunk;
  return solved_space(a, 2) + reads_grad_space(a, 2) + 3 * c * a->vpad + 2 * c + 4 * TAKE_SLACK;
}

static void grad(const scan_args *a, const grad_out *out, const scan_chunk *c, const real *s0,
                 const real *kept, real *ds, char *work) {
  int64_t n = c->n, kp = a->kpad, vp = a->vpad;
  reads x = chunk_of(a, c, 1, 2, &work);
  const real *e = kept + n * vp, *inverse = e + n * vp;
  memcpy(x.w, kept, (size_t)(n * vp) * sizeof *kept);
  memcpy(x.p, inverse + n * SOLVE, (size_t)(n * a->cpad) * sizeof *kept);
  real *de = take(&work, 2 * n * vp), *dout = de + n * vp, *dw = take(&work, n * vp);
  double *dbeta = take_double(&work, n);
  pack_dout(a, c, dout);
  reads_written(a, &x, dout, ds, dw);
  solve_errors(a, n, x.p, inverse, dw, de);
  store(&out[WANT_V], c->token, c->h, n, a->vdim, de, vp, -1);
  for (int64_t t = 0; t < n; t++) dbeta[t] = -dot(a->vdim, dw + t * vp, e + t * vp);
  store_scalar(&out[WANT_W], c->token, c->h, n, dbeta);
  pulled d = reads_grad(a, out, c, &x, de, s0, ds, &work);
  for (int64_t i = 0; i < n * kp; i++) d.dk[i] += d.dr[i];
  store(&out[WANT_K], c->token, c->group, n, a->kdim, d.dk, kp, 1);
  store(&out[WANT_Q], c->token, c->group, n, a->kdim, d.dr + n * kp, kp, a->scale);
}

static void retreat(const scan_args *a, const scan_chunk *c, real *ds, char *work) {
  int64_t n = c->n, vp = a->vpad;
  reads x = chunk_of(a, c, 0, 2, &work);
  real *de = take(&work, 2 * n * vp), *dw = take(&work, n * vp), *inverse = take(&work, n * SOLVE);
  solve_blocks(a, c, x.p, inverse);
  pack_dout(a, c, de + n * vp);
  reads_written(a, &x, de + n * vp, ds, dw);
  solve_errors(a, n, x.p, inverse, dw, de);
  reads_retreat(a, c, &x, de, ds);
}

static const scan_kind kind = {.chunk = 32,
                               .halved = 32 * 32,
                               .shorter = 8,
                               .smaller = 128,
                               .forward_space = forward_space,
                               .grad_space = grad_space,
                               .tokens = tokens,
                               .forward = forward,
                               .advance = advance,
                               .retreat = retreat,
                               .grad = grad,
                               .kept = solve_kept};

WF_SCAN_KERNELS(scan_delta, kind)

#else

WF_SCAN_OP(scan_delta, NULL, NULL, {.g_dims = 2, .delta = true, .no_ones = true})

#endif
