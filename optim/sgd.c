/* sgd: gradient descent with momentum (Sutskever et al. 2013), with the decay in the gradient. */
#include "optim/optimizer_impl.h"

typedef struct sgd_options {
  double lr, momentum, weight_decay;
  bool nesterov;
} sgd_options;

static const wf_option table[] = {
    WF_OPT_F64F(sgd_options, lr, "0.01", 0, 1e6, WF_OPT_RESUME, "learning rate"),
    WF_OPT_F64(sgd_options, momentum, "0.9", 0, 0.999999, "factor of the velocity each step; 0 keeps none"),
    WF_OPT_F64(sgd_options, weight_decay, "0", 0, 1e3, "times the weight, added to its gradient"),
    WF_OPT_BOOL(sgd_options, nesterov, "false", "look ahead by one step of momentum"), WF_OPT_END};

static const char *const *states(const void *options, const wf_opt_group *group) {
  (void)group;
  static const char *const names[] = {"momentum", NULL};
  return ((const sgd_options *)options)->momentum > 0 ? names : names + 1;
}

static void control(const void *options, const wf_opt_group *group, double factor, int64_t t, double *ctl) {
  (void)t;
  ctl[WF_CTL_LR] = ((const sgd_options *)options)->lr * factor * group->lr_scale;
}

static wf_status step(const wf_opt_step *s) {
  const sgd_options *o = s->options;
  wf_sgd_attr attr = {o->momentum, s->group->decay ? o->weight_decay : 0, o->nesterov};
  wf_tensor *in[] = {s->ctl, s->group->value, s->group->grad, s->state[0]};
  wf_tensor *out[] = {s->group->value, s->state[0]};
  int n = s->state[0] ? 2 : 1;
  return wf_op_run(s->ctx, &wf_op_sgd, n + 2, in, &attr, n, out, 0);
}

const wf_optimizer_type wf_optimizer_sgd = {
    "sgd", "gradient descent with momentum", table, sizeof(sgd_options), states, control, step};
