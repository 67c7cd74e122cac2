/* The moving average of the weights. */
#include "optim/ema.h"
#include "core/memory.h"
#include "core/ops_optim.h"
#include "optim/optimizer_impl.h"

#include <math.h>

typedef struct ema_group {
  wf_tensor *value, *average, *ctl;
} ema_group;

struct wf_ema {
  wf_ctx *ctx;
  wf_ema_options options;
  int n_groups;
  ema_group *group;
  int64_t updates;
  bool swapped;
};

static wf_status create_group(wf_ctx *c, wf_tensor *value, ema_group *g) {
  wf_scope scope = wf_scope_open(c);
  g->value = wf_keep(value);
  g->average = wf_keep(wf_empty_like(c, "ema", value));
  g->ctl = wf_keep(wf_zeros(c, "ema", value->dtype, WF_SHAPE(WF_CTL_N)));
  wf_scope_close(c, scope);
  WF_TRY(wf_ctx_check(c));
  return wf_op_run(c, &wf_op_copy, 1, &g->value, NULL, 1, &g->average, 0);
}

wf_status wf_ema_create(wf_ctx *c, const wf_ema_options *options, int n_groups, const wf_opt_group *groups,
                        wf_ema **out) {
  wf_ema *ema;
  wf_status s;
  WF_CALLOC(ema, "ema", 1);
  *ema = (wf_ema){.ctx = c, .options = *options};
  if (!(ema->group = wf_calloc("ema", (size_t)n_groups, sizeof *ema->group)))
    WF_TRY_GOTO(s, failed, WF_ENOMEM);
  for (int i = 0; i < n_groups; i++) {
    ema->n_groups++;
    WF_TRY_GOTO(s, failed, create_group(c, groups[i].value, &ema->group[i]));
  }
  *out = ema;
  return WF_OK;
failed:
  wf_ema_free(ema);
  return s;
}

void wf_ema_free(wf_ema *ema) {
  if (!ema) return;
  for (int i = 0; i < ema->n_groups; i++) {
    wf_drop(ema->group[i].value);
    wf_drop(ema->group[i].average);
    wf_drop(ema->group[i].ctl);
  }
  wf_free(ema->group);
  wf_free(ema);
}

wf_status wf_ema_update(wf_ema *ema) {
  if (ema->swapped) return WF_FAIL(WF_EINVAL, "the average of the weights stands in their place");
  double t = (double)(ema->updates + 1), decay = ema->options.decay;
  if (ema->options.warmup) decay = fmin(decay, (1 + t) / (10 + t));
  const double ctl[WF_CTL_N] = {[WF_CTL_GO] = 1, [WF_CTL_MIX] = 1 - decay};
  for (int i = 0; i < ema->n_groups; i++) {
    ema_group *g = &ema->group[i];
    WF_TRY(wf_optim_send_control(ema->ctx, g->ctl, ctl));
    WF_TRY(wf_op_run(ema->ctx, &wf_op_ema, 3, (wf_tensor *[]){g->ctl, g->average, g->value}, NULL, 1,
                     &g->average, 0));
  }
  ema->updates++;
  return WF_OK;
}

wf_status wf_ema_swap(wf_ema *ema) {
  for (int i = 0; i < ema->n_groups; i++) {
    wf_tensor *pair[] = {ema->group[i].value, ema->group[i].average};
    WF_TRY(wf_op_run(ema->ctx, &wf_op_swap, 2, pair, NULL, 2, pair, 0));
  }
  ema->swapped = !ema->swapped;
  return WF_OK;
}

bool wf_ema_swapped(const wf_ema *ema) {
  return ema->swapped;
}
int64_t wf_ema_bytes(const wf_ema *ema) {
  int64_t bytes = 0;
  for (int i = 0; i < ema->n_groups; i++)
    bytes += wf_numel(ema->group[i].average) * (int64_t)wf_dtype_size(ema->group[i].average->dtype);
  return bytes;
}
wf_tensor *wf_ema_average(const wf_ema *ema, int group) {
  return ema->group[group].average;
}
int64_t wf_ema_updates(const wf_ema *ema) {
  return ema->updates;
}
void wf_ema_set_updates(wf_ema *ema, int64_t updates) {
  ema->updates = updates;
}
