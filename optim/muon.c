/* muon: momentum made orthogonal, for hidden matrices (Jordan et al. 2024, "Muon"); AdamW for all else.
 *
 * For each matrix [r, c]: the momentum's moving average u, looked ahead (Nesterov), becomes the nearest
 * matrix with orthogonal rows or columns, roughly, by iterations x <- a x + (b s + c s s) x, s = x x^T, from
 * x = u / |u| (a, b, c = 3.4445, -4.7750, 2.0315; singular values end between 0.7 and 1.2). The weight then
 * moves by lr sqrt(max(1, r / c)) x. Where r > c the same is done from the right, s = x^T x, without a
 * transposed copy. All in the dtype of the weights.
 */
#include "core/ops.h"
#include "optim/optimizer_impl.h"

#include <math.h>

typedef struct muon_options {
  double lr, momentum, weight_decay, adamw_lr, adamw_beta1, adamw_beta2, adamw_eps, adamw_weight_decay;
  int64_t iterations;
  bool nesterov;
} muon_options;

static const wf_option table[] = {
    WF_OPT_F64F(muon_options, lr, "0.02", 0, 1e6, WF_OPT_RESUME, "learning rate of the matrices"),
    WF_OPT_F64(muon_options, momentum, "0.95", 0, 0.999999, "decay of the gradient's moving average"),
    WF_OPT_BOOL(muon_options, nesterov, "true", "look ahead by one step of momentum"),
    WF_OPT_F64(muon_options, weight_decay, "0.1", 0, 1e3, "matrices shrink by lr x this each step"),
    WF_OPT_I64(muon_options, iterations, "5", 1, 100, "Newton-Schulz iterations"),
    WF_OPT_F64F(muon_options, adamw_lr, "1e-3", 0, 1e6, WF_OPT_RESUME,
                "learning rate of embeddings, head, norms, biases"),
    WF_OPT_F64(muon_options, adamw_beta1, "0.9", 0, 0.999999, "AdamW: decay of the gradient's average"),
    WF_OPT_F64(muon_options, adamw_beta2, "0.95", 0, 0.9999999, "AdamW: decay of the square's average"),
    WF_OPT_F64(muon_options, adamw_eps, "1e-8", 0, 1, "AdamW: added to the root of the second moment"),
    WF_OPT_F64(muon_options, adamw_weight_decay, "0.1", 0, 1e3, "AdamW: shrink by adamw_lr x this each step"),
    WF_OPT_END};

static const char *const *states(const void *options, const wf_opt_group *group) {
  (void)options;
  static const char *const matrix[] = {"momentum", NULL}, *const other[] = {"m", "v", NULL};
  return group->matrix ? matrix : other;
}

static void control(const void *options, const wf_opt_group *group, double factor, int64_t t, double *ctl) {
  const muon_options *o = options;
  factor *= group->lr_scale;
  if (group->matrix)
    ctl[WF_CTL_LR] = o->lr * factor;
  else
    wf_adamw_control(o->adamw_lr * factor, o->adamw_beta1, o->adamw_beta2, t, ctl);
}

/* One Newton-Schulz iteration from x into y. */
static wf_status iterate(wf_ctx *c, wf_tensor *x, wf_tensor *y) {
  static const wf_muon_poly_attr attr = {3.4445, -4.7750, 2.0315};
  bool tall = x->shape[0] > x->shape[1];
  wf_scope scope = wf_scope_open(c);
  wf_tensor *xt = wf_transpose(c, x, 0, 1), *s = tall ? wf_matmul(c, xt, x) : wf_matmul(c, x, xt);
  wf_tensor *poly = wf_op_apply(c, &wf_op_muon_poly, 2, (wf_tensor *[]){s, wf_matmul(c, s, s)}, &attr, NULL);
  wf_tensor *in[] = {tall ? x : poly, tall ? poly : x};
  wf_status st = wf_ctx_check(c);
  if (st == WF_OK) st = wf_op_run(c, &wf_op_matmul, 2, in, NULL, 1, &y, 0);
  wf_scope_close(c, scope);
  return st;
}

static wf_status step_matrix(const wf_opt_step *s, const wf_opt_range *r) {
  const muon_options *o = s->options;
  wf_ctx *c = s->ctx;
  wf_tensor *p = wf_opt_slice(s->group->value, r), *g = wf_opt_slice(s->group->grad, r),
            *m = wf_opt_slice(s->state[0], r);
  wf_tensor *x = wf_empty_like(c, "optimizer", p), *y = wf_empty_like(c, "optimizer", p);
  WF_TRY(wf_ctx_check(c));
  wf_muon_attr momentum = {o->momentum, o->nesterov};
  WF_TRY(wf_op_run(c, &wf_op_muon_momentum, 3, (wf_tensor *[]){s->ctl, g, m}, &momentum, 2,
                   (wf_tensor *[]){x, m}, 0));
  const double eps = 1e-7;
  WF_TRY(wf_op_run(c, &wf_op_unit_norm, 1, &x, &eps, 1, &x, 0));
  for (int64_t i = 0; i < o->iterations; i++) {
    WF_TRY(iterate(c, x, y));
    wf_tensor *t = x;
    x = y;
    y = t;
  }
  double rows = (double)r->shape[0], columns = (double)r->shape[1];
  wf_muon_apply_attr apply = {s->group->decay ? o->weight_decay : 0, sqrt(fmax(1, rows / columns))};
  return wf_op_run(c, &wf_op_muon_apply, 3, (wf_tensor *[]){s->ctl, p, x}, &apply, 1, &p, 0);
}

static wf_status step(const wf_opt_step *s) {
  const muon_options *o = s->options;
  if (!s->group->matrix)
    return wf_adamw_step(s, o->adamw_beta1, o->adamw_beta2, o->adamw_eps, o->adamw_weight_decay);
  for (int i = 0; i < s->group->n_ranges; i++) {
    if (s->group->range[i].numel == 0) continue;
    wf_scope scope = wf_scope_open(s->ctx);
    wf_status st = step_matrix(s, &s->group->range[i]);
    wf_scope_close(s->ctx, scope);
    WF_TRY(st);
  }
  return WF_OK;
}

const wf_optimizer_type wf_optimizer_muon = {"muon", "orthogonal momentum for matrices, AdamW for the rest",
                                             table,  sizeof(muon_options),
                                             states, control,
                                             step};
