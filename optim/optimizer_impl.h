/* The kinds of optimiser, one file each, and what they share. Private to optim. */
#ifndef WF_OPTIM_OPTIMIZER_IMPL_H
#define WF_OPTIM_OPTIMIZER_IMPL_H

#include "core/ops_optim.h"
#include "optim/optimizer.h"

extern const wf_optimizer_type wf_optimizer_adamw, wf_optimizer_sgd, wf_optimizer_lion, wf_optimizer_muon;

/* Round control values to the dtype of `ctl` and send them to its device. */
wf_status wf_optim_send_control(wf_ctx *c, wf_tensor *ctl, const double *value);

/* AdamW's control values and pass, for AdamW and for the vectors beside Muon; state is m, v. */
void wf_adamw_control(double lr, double beta1, double beta2, int64_t t, double *ctl);
wf_status wf_adamw_step(const wf_opt_step *s, double beta1, double beta2, double eps, double decay);

#endif
