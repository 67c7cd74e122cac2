/* scan_max: m_t = max(g_t + m_{t-1}, x_t), the stabiliser of exponential gates and of a softmax read as a
 * recurrence.
 *
 * It is a constant of the backward: no tape asks it for a gradient. Beside m it gives the drop m_{t-1} - m_t,
 * the difference of the numbers it gave, so that e^{g_t + drop_t} is the decay of what is stored times e^{-m}
 * whatever rounding m has. A fresh row without an initial m starts from -1e30: finite, so that differences
 * are.
 *
 * What the rows of another rank take must be what rows here leave to the last bit, and not every order of
 * sums gives the same: END [lanes, d], where it is given, is what rows leave in place of the last maximum.
 */
#include "core/ops/scan_diag_impl.h"

enum { END = FORWARD_INS };

#ifdef WF_KERNEL_PASS

static void forward(const diag_args *a, const wf_row *r, int64_t c0, int64_t c1) {
  const real *before = diag_start(a, r);
  if (diag_idle(a, r)) return;
  for (int64_t t = r->begin; t < r->begin + r->len; t++) {
    const real *x = a->x + t * a->xs, *g = a->g ? a->g + t * a->gs : NULL;
    const real *end =
        a->end && wf_row_leaves(r) && t + 1 == r->begin + r->len ? a->end + r->lane * a->d : NULL;
    real *restrict m = diag_line(a, r, 0, t), *restrict drop = diag_line(a, r, 1, t);
    WF_PRAGMA(omp simd)
    for (int64_t c = c0; c < c1; c++) {
      real was = before ? before[c] : R(-1e30), kept = g ? g[c] + was : was;
      m[c] = end ? end[c] : x[c] > kept ? x[c] : kept;
      drop[c] = was - m[c];
    }
    before = m;
  }
  if (a->left && wf_row_leaves(r))
    memcpy(a->left + r->lane * a->d + c0, before + c0, (size_t)(c1 - c0) * sizeof(real));
}

WF_KERNEL(scan_max) {
  diag_args a;
  WF_TRY(diag_read(call, &a));
  diag_outputs(call, 2, &a);
  if (call->n_in > FORWARD_INS && call->in[END]) a.end = wf_data(call->in[END]);
  return diag_run_forward(call, &a, 2, forward);
}

#else

WF_CPU(scan_max)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  *n_out = ((const diag_attr *)call->attr)->leaves ? 3 : 2;
  WF_TRY(diag_check(call, &out[0], &out[2]));
  char t[2][96];
  WF_SHAPE_CHECK(!call->in[G] || wf_same_shape(call->in[G], call->in[X]), "scan_max: log decays %s for x %s",
                 wf_shape_text(call->in[G], t[0]), wf_shape_text(call->in[X], t[1]));
  wf_desc_like(&out[1], call->in[X]);
  return WF_OK;
}

static wf_status sample(wf_sample *s) {
  diag_sample(s, s->index % 4, false, 5, s->index % 2 ? 0 : 1, -1);
  return WF_OK;
}

static wf_carry_kind kind(const wf_call *call, wf_desc *A) {
  if (call->in[G]) diag_factor_shape(call, A);
  return WF_CARRY_MAX;
}
static wf_status factor(const wf_call *call) {
  return diag_fade(call, false);
}
static const wf_carry carry = {.state = STATE,
                               .init = INIT,
                               .table = TABLE,
                               .left = 2,
                               .in = {-1, -1, -1, -1, -1, -1},
                               .out = {-1, -1, -1},
                               .work = 56,
                               .share = 0.5,
                               .kind = kind,
                               .factor = factor,
                               .advance = diag_advance};

const wf_op wf_op_scan_max = {
    .name = "scan_max",
    .min_in = FORWARD_INS,
    .max_in = END + 1,
    .n_out = -1,
    .attr_size = sizeof(diag_attr),
    .optional = 1 << G | 1 << STATE | 1 << INIT | 1 << END,
    .rowmajor = 1 << X | 1 << G,
    .nograd_in = (1 << (END + 1)) - 1,
    .nograd_out = 7,
    .infer = infer,
    WF_NONDIFF("a stabiliser, constant in the backward"),
    .cpu = &scan_max_cpu,
    .carry = &carry,
    .sample = sample,
    .n_samples = 4,
};

wf_tensor *wf_scan_max(wf_ctx *c, wf_tensor *x, wf_tensor *g, wf_tensor *state, wf_tensor *init,
                       const wf_rows *rows, wf_tensor **drop, wf_tensor **state_out) {
  wf_tensor *out[WF_MAX_OUT];
  diag_apply(c, &wf_op_scan_max, x, g, state, init, rows, false, state_out != NULL, out);
  *drop = out[1];
  if (state_out) *state_out = out[2];
  return out[0];
}

#endif
