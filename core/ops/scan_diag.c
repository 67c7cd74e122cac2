/* scan_diag: h_t = e^{g_t} h_{t-1} + x_t, channel by channel; channels may share a decay in runs.
 *
 * With dh_t the gradient of the output and G_t that of h_t in all:
 *     G_t = dh_t + e^{g_{t+1}} G_{t+1},   dx_t = G_t,   dg_t = e^{g_t} G_t h_{t-1}
 */
#include "core/ops/scan_diag_impl.h"

#ifdef WF_KERNEL_PASS

enum { AT_ONCE = 256 }; /* channels */

static void forward(const diag_args *a, const wf_row *r, int64_t c0, int64_t c1) {
  const real *before = diag_start(a, r);
  if (diag_idle(a, r)) return;
  for (int64_t t = r->begin; t < r->begin + r->len; t++) {
    const real *x = a->x + t * a->xs, *g = a->g + t * a->gs;
    real *restrict h = diag_line(a, r, 0, t);
    if (!before) {
      memcpy(h + c0, x + c0, (size_t)(c1 - c0) * sizeof *h);
    } else if (a->wide == 1) {
      WF_PRAGMA(omp simd)
      for (int64_t c = c0; c < c1; c++) h[c] = tile_exp(g[c]) * before[c] + x[c];
    } else {
      for (int64_t c = c0; c < c1; c += a->wide) {
        real keep = tile_exp(g[c / a->wide]);
        for (int64_t i = c; i < c + a->wide; i++) h[i] = keep * before[i] + x[i];
      }
    }
    before = h;
  }
  if (a->left && wf_row_leaves(r))
    memcpy(a->left + r->lane * a->d + c0, before + c0, (size_t)(c1 - c0) * sizeof(real));
}

WF_KERNEL(scan_diag) {
  diag_args a;
  WF_TRY(diag_read(call, &a));
  diag_outputs(call, 1, &a);
  return diag_run_forward(call, &a, 8, forward);
}

static inline void add_to(int64_t n, const real *restrict from, real *restrict to) {
  for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

/* back = e^g back, from token t to what was before it, and dg_t; `before`: h_{t-1}, NULL for 0. */
static void decay(const diag_args *a, int64_t t, int64_t c0, int64_t c1, const real *restrict before,
                  real *restrict back) {
  const diag_grad *o = &a->grad[G];
  const real *restrict g = a->g + t * a->gs;
  real *restrict dg = o->p ? o->p + t * o->s : NULL;
  if (a->wide == 1) {
    WF_PRAGMA(omp simd)
    for (int64_t c = c0; c < c1; c++) back[c] *= tile_exp(g[c]);
    if (dg && !o->add) memset(dg + c0, 0, (size_t)(c1 - c0) * sizeof *dg);
    if (dg && before)
      for (int64_t c = c0; c < c1; c++) dg[c] += back[c] * before[c];
    return;
  }
  for (int64_t c = c0; c < c1; c += a->wide) {
    real keep = tile_exp(g[c / a->wide]);
    for (int64_t i = c; i < c + a->wide; i++) back[i] *= keep;
    if (!dg) continue;
    real sum = before ? tile_dot(a->wide, back + c, before + c) : 0;
    dg[c / a->wide] = sum + (o->add ? dg[c / a->wide] : 0);
  }
}

/* Asks for the lines of token t, which is next: hardware does not foresee a walk backwards over lines that
 * are each read forwards, and halves its rate. Always inlined, or gcc drops a function that does nothing
 * else. */
static inline __attribute__((always_inline)) void foresee(const diag_args *a, int64_t t, int64_t c0,
                                                          int64_t c1) {
  for (int64_t c = c0; c < c1; c += 64 / (int64_t)sizeof(real)) {
    if (a->dh) __builtin_prefetch(a->dh + t * a->dhs + c);
    __builtin_prefetch(a->h + (t - 1) * a->d + c);
    if (a->wide == 1) __builtin_prefetch(a->g + t * a->gs + c);
    if (a->grad[X].p) __builtin_prefetch(a->grad[X].p + t * a->grad[X].s + c, 1);
    if (a->wide == 1 && a->grad[G].p) __builtin_prefetch(a->grad[G].p + t * a->grad[G].s + c, 1);
  }
}

/* Token t, channels c0 .. c1-1: `back` goes from what later tokens send to h_t to what h_{t-1} receives. */
static void token_back(const diag_args *a, int64_t t, int64_t c0, int64_t c1, const real *before,
                       real *back) {
  const diag_grad *o = &a->grad[X];
  if (a->dh) add_to(c1 - c0, a->dh + t * a->dhs + c0, back + c0);
  real *dx = o->p ? o->p + t * o->s + c0 : NULL;
  if (dx && o->add)
    add_to(c1 - c0, back + c0, dx);
  else if (dx)
    memcpy(dx, back + c0, (size_t)(c1 - c0) * sizeof *dx);
  decay(a, t, c0, c1, before, back);
}

static void backward(const diag_args *a, const wf_row *r, int64_t c0, int64_t c1) {
  real *back = a->first + (r - a->row) * a->d;
  memset(back + c0, 0, (size_t)(c1 - c0) * sizeof *back);
  if (a->dleft && wf_row_leaves(r)) add_to(c1 - c0, a->dleft + r->lane * a->d + c0, back + c0);
  int64_t few = a->wide < AT_ONCE ? AT_ONCE / a->wide * a->wide : a->wide; /* they stay in the first cache */
  for (int64_t t = r->begin + r->len - 1; t >= r->begin; t--) {
    const real *before = t > r->begin ? a->h + (t - 1) * a->d : diag_start(a, r);
    for (int64_t c = c0; c < c1; c += few) {
      int64_t end = c1 - c < few ? c1 : c + few;
      if (t > r->begin + 1) foresee(a, t - 1, c, end);
      token_back(a, t, c, end, before, back);
    }
  }
}

WF_KERNEL(scan_diag_grad) {
  diag_args a;
  WF_TRY(diag_read(call, &a));
  return diag_run_grad(call, &a, 16, backward);
}

#else

WF_CPU(scan_diag)
WF_CPU(scan_diag_grad)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  *n_out = ((const diag_attr *)call->attr)->leaves ? 2 : 1;
  return diag_check(call, &out[0], &out[1]);
}

static wf_status grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  wf_desc like[2];
  WF_TRY(diag_check(call, &like[0], &like[1]));
  return wf_infer_wanted(call, ((const diag_attr *)call->attr)->want, WANTS, out, n_out);
}

static wf_status vjp(const wf_vjp *g) {
  diag_attr a = *(const diag_attr *)g->attr;
  wf_tensor *in[GRAD_INS] = {g->in[X],     g->in[G],  g->in[STATE], g->in[INIT],
                             g->in[TABLE], g->out[0], g->dout[0],   a.leaves ? g->dout[1] : NULL};
  return wf_vjp_wanted(g, &wf_op_scan_diag_grad, GRAD_INS, in, &a, &a.want, WANTS);
}

static wf_status sample(wf_sample *s) {
  diag_sample(s, s->index % 4, false, 6, s->index == 0 || s->index > 3 ? 3 : 1, s->index == 2 ? -4 : -0.5);
  return WF_OK;
}
static wf_status grad_sample(wf_sample *s) {
  WF_TRY(sample(s));
  diag_sample_grad(s);
  return WF_OK;
}

static wf_carry_kind kind(const wf_call *call, wf_desc *A) {
  diag_factor_shape(call, A);
  return WF_CARRY_SCALE;
}
static wf_status factor(const wf_call *call) {
  return diag_fade(call, true);
}
static const wf_carry carry = {.state = STATE,
                               .init = INIT,
                               .table = TABLE,
                               .left = 1,
                               .in = {1, 1, 1, 0, -1},
                               .out = {1, 1},
                               .work = 140,
                               .share = 0.5,
                               .kind = kind,
                               .factor = factor,
                               .advance = diag_advance};

const wf_op wf_op_scan_diag = {
    .name = "scan_diag",
    .min_in = FORWARD_INS,
    .max_in = FORWARD_INS,
    .n_out = -1,
    .attr_size = sizeof(diag_attr),
    .optional = 1 << STATE | 1 << INIT,
    .rowmajor = 1 << X | 1 << G,
    .save_in = 1 << G | 1 << STATE | 1 << INIT | 1 << TABLE,
    .save_out = 1,
    .vjp_adds = (1 << WANTS) - 1,
    .nograd_in = 1 << TABLE,
    .infer = infer,
    .vjp = vjp,
    .cpu = &scan_diag_cpu,
    .carry = &carry,
    .sample = sample,
    .n_samples = 6,
};

const wf_op wf_op_scan_diag_grad = {
    .name = "scan_diag_grad",
    .min_in = GRAD_INS,
    .max_in = GRAD_INS,
    .n_out = -1,
    .attr_size = sizeof(diag_attr),
    .optional = 1 << STATE | 1 << INIT | 1 << DH | 1 << DSTATE,
    .strided = 1 << X,
    .rowmajor = 1 << G | 1 << DH,
    .rowmajor_out = 3, /* x and g */
    .adds = (1 << WANTS) - 1,
    .infer = grad_infer,
    WF_NONDIFF("gradient of scan_diag; first order only"),
    .cpu = &scan_diag_grad_cpu,
    .sample = grad_sample,
    .n_samples = 6,
};

wf_tensor *wf_scan_diag(wf_ctx *c, wf_tensor *x, wf_tensor *g, wf_tensor *state, wf_tensor *init,
                        const wf_rows *rows, wf_tensor **state_out) {
  if (!g) return wf_scan_sum(c, x, false, state, init, rows, state_out);
  wf_tensor *out[WF_MAX_OUT];
  diag_apply(c, &wf_op_scan_diag, x, g, state, init, rows, false, state_out != NULL, out);
  if (state_out) *state_out = out[1];
  return out[0];
}

#endif
