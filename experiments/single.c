/* Declaring a layer without a model. */
#include "experiments/single.h"

#include <stdio.h>
#include <string.h>

#include "core/memory.h"

wf_build wf_single_build(int64_t d_model) {
  return (wf_build){
      .prefix = "", .d_model = d_model, .n_layers = 1, .init_std = 0.02, .out_std = 0.02, .norm_eps = 1e-6};
}

wf_status wf_single_open(const wf_layer_type *type, const void *options, const wf_build *like,
                         wf_single *out) {
  *out = (wf_single){.type = type};
  wf_build b = *like;
  b.params = &out->params;
  b.state = &out->state;
  const wf_status s = type->init(&b, options, &out->self);
  if (s != WF_OK) wf_single_close(out);
  return s;
}

void wf_single_close(wf_single *s) {
  wf_free(s->self);
  wf_params_free(&s->params);
  wf_state_spec_free(&s->state);
  *s = (wf_single){0};
}

static wf_status set_option(const wf_layer_type *type, void *options, const char *text, bool optional) {
  char key[80];
  const char *value = strchr(text, '=');
  if (!value || (size_t)(value - text) >= sizeof key)
    return wf_hint(WF_FAIL(WF_EINVAL, "\"%.60s\" is no key=value", text), "as in heads=8");
  snprintf(key, sizeof key, "%.*s", (int)(value - text), text);
  if (optional && !wf_options_find(type->options, key)) return WF_OK;
  const wf_status s = wf_options_set(type->options, options, key, value + 1);
  return s == WF_OK ? s : wf_context(s, "%s", type->name);
}

wf_status wf_single_options(const wf_layer_type *type, const char *const *sets, size_t n_sets,
                            const char *const *optional, size_t n_optional, void **out) {
  *out = wf_calloc("config", 1, type->options_size + 1);
  if (!*out) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  WF_TRY(wf_options_defaults(type->options, *out));
  for (size_t i = 0; i < n_optional; i++) WF_TRY(set_option(type, *out, optional[i], true));
  for (size_t i = 0; i < n_sets; i++) WF_TRY(set_option(type, *out, sets[i], false));
  return WF_OK;
}

void wf_single_options_free(const wf_layer_type *type, void *options) {
  if (options) wf_options_free(type->options, options);
  wf_free(options);
}

double wf_single_flops(const wf_single *s, int64_t T) {
  return s->type->flops ? s->type->flops(s->self, T) : 2 * (double)s->params.numel;
}

double wf_single_bytes(const wf_single *s, int64_t T) {
  int64_t fixed, growing;
  wf_state_bytes(&s->state, WF_F32, &fixed, &growing);
  const double read =
      growing && s->type->reads ? 4 * s->type->reads(s->self, T) : (double)growing * (double)T;
  return 4 * (double)s->params.numel + 2 * (double)fixed + read + (double)growing;
}
