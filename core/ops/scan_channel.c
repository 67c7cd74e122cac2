/* scan_channel: the linear recurrence with a decay for each channel of the keys,
 *     S_t = diag(e^{g_t}) S_{t-1} + w_t k_t^T v_t,   o_t = s q_t S_t,
 * the core of GLA, HGRN2 and GateLoop.
 *
 * The chunk of scan_fades_impl.h with readers R = sQ, keys w K and values V. Rows of a few tokens run as
 * written above.
 */
#include "core/ops/scan_fades_impl.h"

#ifdef WF_KERNEL_PASS

static void tokens(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  real *keep = take(&work, a->kpad);
  for (int64_t t = 0; t < c->n; t++) {
    const real *q = c->q + t * a->qs, *k = c->k + t * a->ks, *v = c->v + t * a->vs, *g = c->g + t * a->gs;
    real *restrict o = scan_o(a, c, t), w = scan_weight(a, c, t);
    for (int64_t d = 0; d < a->kdim; d++) keep[d] = tile_exp(g[d]);
    memset(o, 0, (size_t)a->vdim * sizeof *o);
    for (int64_t d = 0; d < a->kdim; d++) {
      real *restrict row = s + d * a->vpad, kd = w * k[d], qd = a->scale * q[d];
      for (int64_t i = 0; i < a->vdim; i++) {
        row[i] = keep[d] * row[i] + kd * v[i];
        o[i] += qd * row[i];
      }
    }
  }
}

static void advance(const scan_args *a, const scan_chunk *c, real *s, real *kept, char *work) {
  (void)kept;
  int64_t kp = a->kpad;
  reads x = reads_open(a, c, false, false, &work);
  for (int64_t i = 0; i < x.z.blocks; i++)
    for (int64_t t = x.z.begin[i]; t < x.z.begin[i + 1]; t++) fade(kp, x.k + t * kp, x.z.leave + i * kp);
  tile_pack(c->n, a->vdim, c->v, a->vs, x.w, a->vpad);
  reads_leave(a, &x, c->n, x.k, 1, kp, x.w, s);
}

static void retreat(const scan_args *a, const scan_chunk *c, real *ds, char *work) {
  reads x = reads_open(a, c, false, true, &work);
  real *dout = take(&work, c->n * a->vpad);
  pack_dout(a, c, dout);
  reads_retreat(a, &x, dout, ds);
}

static reads chunk_of(const scan_args *a, const scan_chunk *c, char **work) {
  reads x = reads_open(a, c, false, true, work);
  tile_pack(c->n, a->vdim, c->v, a->vs, x.w, a->vpad);
  reads_weigh(a, &x, 0);
  return x;
}

static int64_t forward_space(const scan_args *a) {
  return reads_space(a, 1) + a->chunk * (a->kpad + a->vpad) + 2 * TAKE_SLACK;
}

static void forward(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  int64_t n = c->n;
  reads x = chunk_of(a, c, &work);
  real *re = take(&work, n * a->kpad), *o = take(&work, n * a->vpad);
  reads_enter(a, &x, 1, s, re, o);
  lower_times(a, n, x.p, x.w, a->vpad, o);
  for (int64_t t = 0; t < n; t++) memcpy(scan_o(a, c, t), o + t * a->vpad, (size_t)a->vdim * sizeof *o);
  reads_leave(a, &x, n, x.kt, a->cpad, 1, x.w, s);
}

static int64_t grad_space(const scan_args *a) {
  return reads_space(a, 1) + reads_grad_space(a, 1) + 2 * a->chunk * (a->vpad + WIDE) + 3 * TAKE_SLACK;
}

static void grad(const scan_args *a, const grad_out *out, const scan_chunk *c, const real *s0,
                 const real *kept, real *ds, char *work) {
  (void)kept;
  int64_t n = c->n;
  reads x = chunk_of(a, c, &work);
  real *dout = take(&work, n * a->vpad), *dv = take(&work, n * a->vpad);
  double *dw = take_double(&work, n);
  pack_dout(a, c, dout);
  reads_written(a, &x, dout, ds, dv);
  store(&out[WANT_V], c->token, c->h, n, a->vdim, dv, a->vpad, 1);
  pulled y = reads_grad(a, out, c, &x, dout, s0, ds, &work);
  store(&out[WANT_Q], c->token, c->group, n, a->kdim, y.r, a->kpad, a->scale);
  scan_store_keys(a, out, c, y.k, dw);
}

static const scan_kind kind = {.chunk = 64,
                               .halved = 64 * 64,
                               .shorter = 8,
                               .smaller = 160,
                               .forward_space = forward_space,
                               .grad_space = grad_space,
                               .tokens = tokens,
                               .steep = steep,
                               .forward = forward,
                               .advance = advance,
                               .retreat = retreat,
                               .grad = grad};

WF_SCAN_KERNELS(scan_channel, kind)

#else

WF_SCAN_OP(scan_channel, NULL, NULL, {.g_dims = 3, .needs_g = true, .no_ones = true})

#endif
