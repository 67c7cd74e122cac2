/* lion: the sign of an interpolated momentum (Chen et al. 2023, algorithm 2). */
#include "optim/optimizer_impl.h"

typedef struct lion_options {
  double lr, beta1, beta2, weight_decay;
} lion_options;

static const wf_option table[] = {
    WF_OPT_F64F(lion_options, lr, "1e-4", 0, 1e6, WF_OPT_RESUME,
                "learning rate: a third to a tenth of AdamW's"),
    WF_OPT_F64(lion_options, beta1, "0.9", 0, 0.999999, "weight of the momentum in the direction"),
    WF_OPT_F64(lion_options, beta2, "0.99", 0, 0.999999, "decay of the momentum"),
    WF_OPT_F64(lion_options, weight_decay, "1", 0, 1e3,
               "weights shrink by lr x this each step: three to ten times AdamW's"),
    WF_OPT_END};

static const char *const *states(const void *options, const wf_opt_group *group) {
  (void)options, (void)group;
  static const char *const names[] = {"m", NULL};
  return names;
}

static void control(const void *options, const wf_opt_group *group, double factor, int64_t t, double *ctl) {
  (void)t;
  ctl[WF_CTL_LR] = ((const lion_options *)options)->lr * factor * group->lr_scale;
}

static wf_status step(const wf_opt_step *s) {
  const lion_options *o = s->options;
  wf_lion_attr attr = {o->beta1, o->beta2, s->group->decay ? o->weight_decay : 0};
  wf_tensor *in[] = {s->ctl, s->group->value, s->group->grad, s->state[0]};
  wf_tensor *out[] = {s->group->value, s->state[0]};
  return wf_op_run(s->ctx, &wf_op_lion, 4, in, &attr, 2, out, 0);
}

const wf_optimizer_type wf_optimizer_lion = {
    "lion", "the sign of a momentum: half of AdamW's state", table, sizeof(lion_options), states, control,
    step};
