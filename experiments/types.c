/* What a config can name in this build: the registries of layers, optimisers and schedules as
 * wf_config_types. */
#include "experiments/config.h"
#include "layers/layer.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"

static bool layer_at(wf_layer_kind kind, int index, wf_config_type *out) {
  const wf_layer_type *t;
  for (int i = 0; (t = wf_layer_at(i)); i++) {
    if (t->kind != kind || index-- > 0) continue;
    *out = (wf_config_type){t->name, t->help, t->options, t->options_size};
    return true;
  }
  return false;
}

bool wf_types(wf_config_kind kind, int index, wf_config_type *out) {
  const wf_optimizer_type *optimizer;
  const wf_schedule_type *schedule;
  switch (kind) {
  case WF_CONFIG_MIXER: return layer_at(WF_LAYER_MIXER, index, out);
  case WF_CONFIG_MLP: return layer_at(WF_LAYER_MLP, index, out);
  case WF_CONFIG_OPTIMIZER:
    if (!(optimizer = wf_optimizer_at(index))) return false;
    *out = (wf_config_type){optimizer->name, optimizer->help, optimizer->options, optimizer->options_size};
    return true;
  case WF_CONFIG_SCHEDULE:
    if (!(schedule = wf_schedule_at(index))) return false;
    *out = (wf_config_type){schedule->name, schedule->help, schedule->options, schedule->options_size};
    return true;
  case WF_CONFIG_KINDS: break;
  }
  return false;
}
