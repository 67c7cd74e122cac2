/* scan_delta_channel: the delta rule with a decay for each channel of the keys,
 *     P = diag(e^{g_t}) S_{t-1},   e_t = k_t P - v_t,   S_t = P - beta_t k_t^T e_t,   o_t = s q_t S_t,
 * the core of KDA.
 *
 * As scan_delta.c, by the chunk of scan_fades_impl.h: the rows w_t = -beta_t e_t are values that keys read
 * for the errors and queries for the outputs, R = [K; sQ]:
 *     E = (K . e^b) S0 - V + L W,   W = -diag(beta) E
 *     L[t,j] = sum_d k_t[d] k_j[d] e^{b_t[d] - b_j[d]}, j < t
 *     dW = L^T dE + A^T dO + (K . e^{b_C - b}) dS',   dE = -diag(beta) dW,   dV = -dE
 *     dbeta_t = -<dw_t, e_t>
 * (mixers 4)
 */
#define WF_SCAN_SHARE 1.2 /* forming A is a scan by itself */
#include "core/ops/scan_delta_impl.h"
#include "core/ops/scan_fades_impl.h"

#ifdef WF_KERNEL_PASS

static void tokens(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  real *error = take(&work, a->vpad), *keep = take(&work, a->kpad);
  for (int64_t t = 0; t < c->n; t++) {
    const real *q = c->q + t * a->qs, *k = c->k + t * a->ks, *v = c->v + t * a->vs, *g = c->g + t * a->gs;
    real *restrict o = scan_o(a, c, t), *restrict e = error, beta = c->w[t * a->ws];
    for (int64_t d = 0; d < a->kdim; d++) keep[d] = tile_exp(g[d]);
    for (int64_t i = 0; i < a->vdim; i++) e[i] = -v[i];
    for (int64_t d = 0; d < a->kdim; d++) {
      real *restrict row = s + d * a->vpad, kd = keep[d] * k[d];
      for (int64_t i = 0; i < a->vdim; i++) e[i] += kd * row[i];
    }
    memset(o, 0, (size_t)a->vdim * sizeof *o);
    for (int64_t d = 0; d < a->kdim; d++) {
      real *restrict row = s + d * a->vpad, kd = beta * k[d], qd = a->scale * q[d];
      for (int64_t i = 0; i < a->vdim; i++) {
        row[i] = keep[d] * row[i] - kd * e[i];
        o[i] += qd * row[i];
      }
    }
  }
}

typedef struct solved {
  reads x;
  real *eo;      /* [m n, vpad]: E, then O without A W where wanted */
  real *inverse; /* see solve_blocks */
} solved;

static int64_t solved_space(const scan_args *a, int64_t m) {
  int64_t c = a->chunk;
  return reads_space(a, m) + m * c * (a->vpad + a->kpad) + c * SOLVE + 3 * TAKE_SLACK;
}

/* W and E; `queries`: they read too. */
static solved solve(const scan_args *a, const scan_chunk *c, const real *s0, bool queries, char **work) {
  int64_t n = c->n, vp = a->vpad, m = 1 + (int64_t)queries;
  solved y = {.x = reads_open(a, c, true, queries, work)};
  y.eo = take(work, m * n * vp), y.inverse = take(work, n * SOLVE);
  char *spare = *work;
  reads_weigh(a, &y.x, 0);
  reads_enter(a, &y.x, m, s0, take(&spare, m * n * a->kpad), y.eo);
  for (int64_t t = 0; t < n; t++)
    for (int64_t i = 0; i < a->vdim; i++) y.eo[t * vp + i] -= c->v[t * a->vs + i];
  solve_blocks(a, c, y.x.p, y.inverse);
  solve_writes(a, n, y.x.p, y.inverse, y.eo, y.x.w);
  return y;
}

static void advance(const scan_args *a, const scan_chunk *c, real *s, real *kept, char *work) {
  solved y = solve(a, c, s, false, &work);
  if (kept) solve_keep(a, c->n, y.x.w, y.eo, y.inverse, y.x.p, kept);
  reads_leave(a, &y.x, c->n, y.x.kt, a->cpad, 1, y.x.w, s);
}

static int64_t forward_space(const scan_args *a) {
  return solved_space(a, 2) + a->vpad + a->kpad + 2 * TAKE_SLACK;
}

static void forward(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  int64_t n = c->n, vp = a->vpad;
  solved y = solve(a, c, s, true, &work);
  real *o = y.eo + n * vp;
  lower_times(a, n, y.x.p + n * a->cpad, y.x.w, vp, o);
  for (int64_t t = 0; t < n; t++) memcpy(scan_o(a, c, t), o + t * vp, (size_t)a->vdim * sizeof *o);
  reads_leave(a, &y.x, n, y.x.kt, a->cpad, 1, y.x.w, s);
}

static int64_t grad_space(const scan_args *a) {
  int64_t c = a->chunk;
  return solved_space(a, 2) + reads_grad_space(a, 2) + 3 * c * a->vpad + WIDE * c + 4 * TAKE_SLACK;
}

static void grad(const scan_args *a, const grad_out *out, const scan_chunk *c, const real *s0,
                 const real *kept, real *ds, char *work) {
  int64_t n = c->n, kp = a->kpad, vp = a->vpad;
  reads x = reads_open(a, c, true, true, &work);
  const real *e = kept + n * vp, *inverse = e + n * vp;
  reads_weigh(a, &x, 1);
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
  for (int64_t i = 0; i < n * kp; i++) d.k[i] += d.r[i];
  store(&out[WANT_K], c->token, c->group, n, a->kdim, d.k, kp, 1);
  store(&out[WANT_Q], c->token, c->group, n, a->kdim, d.r + n * kp, kp, a->scale);
}

static void retreat(const scan_args *a, const scan_chunk *c, real *ds, char *work) {
  int64_t n = c->n, vp = a->vpad;
  reads x = reads_open(a, c, true, true, &work);
  real *de = take(&work, 2 * n * vp), *dw = take(&work, n * vp), *inverse = take(&work, n * SOLVE);
  reads_weigh(a, &x, 0);
  solve_blocks(a, c, x.p, inverse);
  pack_dout(a, c, de + n * vp);
  reads_written(a, &x, de + n * vp, ds, dw);
  solve_errors(a, n, x.p, inverse, dw, de);
  reads_retreat(a, &x, de, ds);
}

static const scan_kind kind = {.chunk = 32,
                               .halved = 32 * 32,
                               .shorter = 8,
                               .smaller = 160,
                               .forward_space = forward_space,
                               .grad_space = grad_space,
                               .tokens = tokens,
                               .steep = steep,
                               .forward = forward,
                               .advance = advance,
                               .retreat = retreat,
                               .grad = grad,
                               .kept = solve_kept};

WF_SCAN_KERNELS(scan_delta_channel, kind)

#else

WF_SCAN_OP(scan_delta_channel, NULL, NULL, {.g_dims = 3, .needs_g = true, .delta = true, .no_ones = true})

#endif
