/* Whether the layers of a config accept their options: each is asked, without allocating weights. */

#include <math.h>

#include "core/memory.h"
#include "experiments/config.h"
#include "layers/layer.h"

static const wf_layer_type *type_of(wf_layer_kind kind, const wf_config_part *part) {
  return part->type ? wf_layer_find(kind, part->type) : NULL;
}

double wf_config_norm_eps(const wf_config *c) {
  if (!isnan(c->model.norm_eps)) return c->model.norm_eps;
  return c->model.norm == WF_NORM_LAYER ? 1e-5 : 1e-6;
}

/* What is carried from batch to batch must not grow: documents may be of any length. */
static wf_status check_carried(const wf_config *c, const char *type, const wf_state_spec *state) {
  for (int i = 0; i < state->n && c->train.carry_state; i++)
    if (state->slot[i].grows)
      return wf_hint(
          WF_FAIL(WF_EINVAL, "train.carry_state: the state of this %s grows with the document", type),
          "give it a window, as in window: 256; or train long sequences exactly, with train.stream");
  return WF_OK;
}

/* Let the layer declare into parameters and states that are thrown away. */
static wf_status try_layer(const wf_config *c, wf_layer_kind kind, const wf_config_part *part) {
  const wf_layer_type *type = type_of(kind, part);
  if (!type) return WF_OK;
  wf_params params = {0};
  wf_state_spec state = {0};
  wf_build b = {.params = &params,
                .state = &state,
                .prefix = wf_config_kind_name(kind == WF_LAYER_MIXER ? WF_CONFIG_MIXER : WF_CONFIG_MLP),
                .d_model = c->model.d_model,
                .n_layers = 1,
                .init_std = c->model.init_std,
                .out_std = c->model.init_std,
                .norm_eps = wf_config_norm_eps(c)};
  void *self = NULL;
  wf_status s = type->init(&b, part->options, &self);
  if (s == WF_OK) s = check_carried(c, type->name, &state);
  wf_free(self); /* set, or not, before a failure */
  wf_params_free(&params);
  wf_state_spec_free(&state);
  return s == WF_OK ? s : wf_context(s, "%s", part->where);
}

static wf_status try_blocks(const wf_config *c, const wf_config_block *blocks, size_t n) {
  for (size_t i = 0; i < n; i++) {
    WF_TRY(try_blocks(c, blocks[i].blocks, blocks[i].n_blocks));
    WF_TRY(try_layer(c, WF_LAYER_MIXER, &blocks[i].mixer));
    for (size_t k = 0; k < blocks[i].n_beside; k++)
      WF_TRY(try_layer(c, WF_LAYER_MIXER, &blocks[i].beside[k]));
    WF_TRY(try_layer(c, WF_LAYER_MLP, &blocks[i].mlp));
  }
  return WF_OK;
}

wf_status wf_config_check_layers(const wf_config *c) {
  return try_blocks(c, c->model.blocks, c->model.n_blocks);
}
