/* Whether the layers of a config accept their options: each is asked, without allocating weights. */

#include <math.h>

#include "experiments/config.h"
#include "experiments/single.h"

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
  const wf_layer_type *type = part->type ? wf_layer_find(kind, part->type) : NULL;
  if (!type) return WF_OK;
  wf_build like = wf_single_build(c->model.d_model);
  like.prefix = wf_config_kind_name(kind == WF_LAYER_MIXER ? WF_CONFIG_MIXER : WF_CONFIG_MLP);
  like.init_std = like.out_std = c->model.init_std;
  like.norm_eps = wf_config_norm_eps(c);
  wf_single layer;
  wf_status s = wf_single_open(type, part->options, &like, &layer);
  if (s == WF_OK) {
    s = check_carried(c, type->name, &layer.state);
    wf_single_close(&layer);
  }
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
