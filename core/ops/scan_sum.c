/* scan_sum: c_t = c_{t-1} + x_t, running sums over each row.
 *
 * They are formed in double. As a pair, c_t is its rounding and what that took off, in the output and in the
 * state, so that differences of far tokens keep the relative precision of a float however large c is. The
 * second part is no function of its own: the gradient of c is that of the first part, dx_t = sum_{i >= t}
 * dc_i, and both parts of a state receive it.
 */
#include "core/ops/scan_diag_impl.h"

#ifdef WF_KERNEL_PASS

enum { AT_ONCE = 64 }; /* channels */

static inline void put(const diag_args *a, int64_t n, const double *c, real *to) {
  for (int64_t i = 0; i < n; i++) to[i] = (real)c[i];
  for (int64_t i = 0; i < n && a->size > a->d; i++) to[a->d + i] = (real)(c[i] - (double)(real)c[i]);
}

static void sums(const diag_args *a, const wf_row *r, int64_t c0, int64_t n) {
  double c[AT_ONCE] = {0};
  const real *start = diag_start(a, r);
  if (diag_idle(a, r)) return;
  for (int64_t i = 0; i < n && start; i++) c[i] = (double)start[c0 + i];
  for (int64_t i = 0; i < n && start && start != a->init && a->size > a->d; i++)
    c[i] += (double)start[a->d + c0 + i];
  for (int64_t t = r->begin; t < r->begin + r->len; t++) {
    const real *x = a->x + t * a->xs + c0;
    for (int64_t i = 0; i < n; i++) c[i] += (double)x[i];
    if (a->out[0]) put(a, n, c, a->out[0] + t * a->size + c0);
  }
  if (a->left && wf_row_leaves(r)) put(a, n, c, a->left + r->lane * a->size + c0);
}

static void forward(const diag_args *a, const wf_row *r, int64_t c0, int64_t c1) {
  for (int64_t c = c0; c < c1; c += AT_ONCE) sums(a, r, c, c1 - c < AT_ONCE ? c1 - c : AT_ONCE);
}

WF_KERNEL(scan_sum) {
  diag_args a;
  WF_TRY(diag_read(call, &a));
  diag_outputs(call, 1, &a);
  diag_run(&a, 2, forward);
  return WF_OK;
}

static void back_sums(const diag_args *a, const wf_row *r, int64_t c0, int64_t n) {
  double c[AT_ONCE] = {0};
  if (a->dleft && wf_row_leaves(r))
    for (int64_t i = 0; i < n; i++) c[i] = (double)a->dleft[r->lane * a->size + c0 + i];
  const diag_grad *o = &a->grad[X];
  for (int64_t t = r->begin + r->len - 1; t >= r->begin; t--) {
    const real *dc = a->dh ? a->dh + t * a->dhs + c0 : NULL;
    real *dx = o->p ? o->p + t * o->s + c0 : NULL;
    for (int64_t i = 0; i < n && dc; i++) c[i] += (double)dc[i];
    for (int64_t i = 0; i < n && dx; i++) dx[i] = (real)c[i] + (o->add ? dx[i] : 0);
  }
  for (int64_t i = 0; i < n; i++) a->first[(r - a->row) * a->d + c0 + i] = (real)c[i];
}

static void backward(const diag_args *a, const wf_row *r, int64_t c0, int64_t c1) {
  for (int64_t c = c0; c < c1; c += AT_ONCE) back_sums(a, r, c, c1 - c < AT_ONCE ? c1 - c : AT_ONCE);
}

WF_KERNEL(scan_sum_grad) {
  diag_args a;
  WF_TRY(diag_read(call, &a));
  return diag_run_grad(call, &a, 2, backward);
}

#else

WF_CPU(scan_sum)
WF_CPU(scan_sum_grad)

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
  wf_tensor *in[GRAD_INS] = {
      [X] = g->in[X], [TABLE] = g->in[TABLE], [DH] = g->dout[0], [DSTATE] = a.leaves ? g->dout[1] : NULL};
  return wf_vjp_wanted(g, &wf_op_scan_sum_grad, GRAD_INS, in, &a, &a.want, WANTS);
}

static wf_status sample(wf_sample *s) {
  diag_sample(s, s->index % 4, s->index > 3, 5, 0, -1);
  return WF_OK;
}
static wf_status grad_sample(wf_sample *s) {
  WF_TRY(sample(s));
  diag_sample_grad(s);
  return WF_OK;
}

static wf_carry_kind kind(const wf_call *call, wf_desc *A) {
  (void)A;
  return ((const diag_attr *)call->attr)->pair ? WF_CARRY_PAIR : WF_CARRY_ADD;
}
static const wf_carry carry = {.state = STATE,
                               .init = INIT,
                               .table = TABLE,
                               .left = 1,
                               .in = {-1, -1, -1, -1, -1},
                               .out = {-1, -1},
                               .work = 56,
                               .share = 0.5,
                               .kind = kind,
                               .advance = diag_advance};

const wf_op wf_op_scan_sum = {
    .name = "scan_sum",
    .min_in = FORWARD_INS,
    .max_in = FORWARD_INS,
    .n_out = -1,
    .attr_size = sizeof(diag_attr),
    .optional = 1 << G | 1 << STATE | 1 << INIT,
    .rowmajor = 1 << X,
    .save_in = 1 << TABLE,
    .vjp_adds = (1 << WANTS) - 1,
    .nograd_in = 1 << G | 1 << TABLE,
    .infer = infer,
    .vjp = vjp,
    .cpu = &scan_sum_cpu,
    .carry = &carry,
    .sample = sample,
    .n_samples = 8,
};

const wf_op wf_op_scan_sum_grad = {
    .name = "scan_sum_grad",
    .min_in = GRAD_INS,
    .max_in = GRAD_INS,
    .n_out = -1,
    .attr_size = sizeof(diag_attr),
    .optional = 1 << G | 1 << STATE | 1 << INIT | 1 << H | 1 << DH | 1 << DSTATE,
    .strided = 1 << X,
    .rowmajor = 1 << DH,
    .rowmajor_out = 1, /* x */
    .adds = (1 << WANTS) - 1,
    .infer = grad_infer,
    WF_NONDIFF("gradient of scan_sum; first order only"),
    .cpu = &scan_sum_grad_cpu,
    .sample = grad_sample,
    .n_samples = 8,
};

wf_tensor *wf_scan_sum(wf_ctx *c, wf_tensor *x, bool pair, wf_tensor *state, wf_tensor *init,
                       const wf_rows *rows, wf_tensor **state_out) {
  wf_tensor *out[WF_MAX_OUT];
  diag_apply(c, &wf_op_scan_sum, x, NULL, state, init, rows, pair, state_out != NULL, out);
  if (state_out) *state_out = out[1];
  return out[0];
}

#endif
