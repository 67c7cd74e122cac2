/* adamw: Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019). */
#include "optim/optimizer_impl.h"

#include <math.h>

typedef struct adamw_options {
  double lr, beta1, beta2, eps, weight_decay;
} adamw_options;

static const wf_option table[] = {
    WF_OPT_F64F(adamw_options, lr, "1e-3", 0, 1e6, WF_OPT_RESUME, "learning rate"),
    WF_OPT_F64(adamw_options, beta1, "0.9", 0, 0.999999, "decay of the gradient's moving average"),
    WF_OPT_F64(adamw_options, beta2, "0.95", 0, 0.9999999, "decay of the squared gradient's moving average"),
    WF_OPT_F64(adamw_options, eps, "1e-8", 0, 1, "added to the root of the second moment"),
    WF_OPT_F64(adamw_options, weight_decay, "0.1", 0, 1e3,
               "weights shrink by lr x this each step (not norms, biases, gates)"),
    WF_OPT_END};

static const char *const *states(const void *options, const wf_opt_group *group) {
  (void)options, (void)group;
  static const char *const names[] = {"m", "v", NULL};
  return names;
}

void wf_adamw_control(double lr, double beta1, double beta2, int64_t t, double *ctl) {
  ctl[WF_CTL_LR] = lr;
  ctl[WF_CTL_BIAS1] = 1 / (1 - pow(beta1, (double)t));
  ctl[WF_CTL_BIAS2] = 1 / sqrt(1 - pow(beta2, (double)t));
}

wf_status wf_adamw_step(const wf_opt_step *s, double beta1, double beta2, double eps, double decay) {
  wf_adamw_attr attr = {beta1, beta2, eps, s->group->decay ? decay : 0};
  wf_tensor *in[] = {s->ctl, s->group->value, s->group->grad, s->state[0], s->state[1]};
  wf_tensor *out[] = {s->group->value, s->state[0], s->state[1]};
  return wf_op_run(s->ctx, &wf_op_adamw, 5, in, &attr, 3, out, 0);
}

static void control(const void *options, const wf_opt_group *group, double factor, int64_t t, double *ctl) {
  const adamw_options *o = options;
  wf_adamw_control(o->lr * factor * group->lr_scale, o->beta1, o->beta2, t, ctl);
}

static wf_status step(const wf_opt_step *s) {
  const adamw_options *o = s->options;
  return wf_adamw_step(s, o->beta1, o->beta2, o->eps, o->weight_decay);
}

const wf_optimizer_type wf_optimizer_adamw = {
    "adamw", "Adam with decoupled weight decay", table, sizeof(adamw_options), states, control, step};
