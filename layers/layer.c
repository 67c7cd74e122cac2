/* The registry of layers and the helpers of their init functions. */
#include "layers/layer.h"
#include "core/memory.h"

#include <stdio.h>
#include <string.h>

#define WF_LAYER(type) extern const wf_layer_type type;
#include "layers/layers.def"
#undef WF_LAYER

static const wf_layer_type *const own[] = {
#define WF_LAYER(type) &type,
#include "layers/layers.def"
#undef WF_LAYER
};
enum { N_OWN = sizeof own / sizeof *own, MAX_ADDED = 256 };

static const wf_layer_type *added[MAX_ADDED];
static int n_added;

const wf_layer_type *wf_layer_at(int i) {
  return i < 0 || i >= N_OWN + n_added ? NULL : i < N_OWN ? own[i] : added[i - N_OWN];
}

const wf_layer_type *wf_layer_find(wf_layer_kind kind, const char *name) {
  const wf_layer_type *t;
  for (int i = 0; (t = wf_layer_at(i)); i++)
    if (t->kind == kind && strcmp(t->name, name) == 0) return t;
  return NULL;
}

const char *wf_layer_nearest(wf_layer_kind kind, const char *name) {
  const char *names[N_OWN + MAX_ADDED];
  int n = 0;
  const wf_layer_type *t;
  for (int i = 0; (t = wf_layer_at(i)); i++)
    if (t->kind == kind) names[n++] = t->name;
  return wf_nearest_name(name, names, n);
}

wf_status wf_layer_register(const wf_layer_type *type) {
  const wf_layer_type *have = wf_layer_find(type->kind, type->name);
  if (have == type) return WF_OK;
  if (have) return WF_FAIL(WF_EEXISTS, "a layer named '%s' is registered already", type->name);
  if (n_added == MAX_ADDED) return WF_FAIL(WF_EINVAL, "more than %d layers added", MAX_ADDED);
  added[n_added++] = type;
  return WF_OK;
}

static bool has_shape(const wf_param *p, int ndim, const int64_t *shape) {
  return p->ndim == ndim && memcmp(p->shape, shape, (size_t)ndim * sizeof *shape) == 0;
}

wf_status wf_build_param(wf_build *b, const char *name, unsigned flags, wf_init init, int ndim,
                         const int64_t *shape, wf_param **out) {
  char full[256];
  const char *prefix = b->shared ? b->shared : b->prefix;
  int n = snprintf(full, sizeof full, "%s%s%s", prefix, *prefix ? "." : "", name);
  if (n >= (int)sizeof full) return WF_FAIL(WF_EINVAL, "the parameter name '%s' is too long", full);
  if (!b->shared) return wf_param_declare(b->params, full, flags, init, ndim, shape, out);
  *out = wf_params_find(b->params, full);
  return *out && has_shape(*out, ndim, shape)
             ? WF_OK
             : WF_FAIL(WF_ESHAPE, "%s cannot share '%s': it is %s", b->prefix, full,
                       *out ? "of another shape" : "not there");
}

wf_status wf_build_shared_param(wf_build *b, const char *name, unsigned flags, wf_init init, int ndim,
                                const int64_t *shape, wf_param **out) {
  *out = wf_params_find(b->params, name);
  if (!*out) return wf_param_declare(b->params, name, flags, init, ndim, shape, out);
  if (has_shape(*out, ndim, shape)) return WF_OK;
  return WF_FAIL(WF_ESHAPE, "the model's parameter '%s' is asked for in two shapes", name);
}

wf_status wf_build_linear(wf_build *b, const char *name, int64_t in, int64_t out, double std,
                          wf_param **weight, wf_param **bias) {
  char full[128];
  snprintf(full, sizeof full, "%s.weight", name);
  WF_TRY(wf_build_param(b, full, 0, wf_init_normal(std), WF_SHAPE(out, in), weight));
  if (!bias) return WF_OK;
  snprintf(full, sizeof full, "%s.bias", name);
  return wf_build_param(b, full, WF_PARAM_NO_DECAY, wf_init_const(0), WF_SHAPE(out), bias);
}

wf_status wf_build_state(wf_build *b, const char *name, bool grows, int ndim, const int64_t *shape,
                         int *slot) {
  wf_state_spec *spec = b->state;
  if (ndim > WF_MAX_DIMS - 2) return WF_FAIL(WF_ESHAPE, "state '%s' has %d dimensions", name, ndim);
  char full[256];
  snprintf(full, sizeof full, "%s.%s", b->prefix, name);
  WF_TRY(wf_grow("model", (void **)&spec->slot, sizeof *spec->slot, (size_t)spec->n, &spec->cap));
  wf_state_slot *s = &spec->slot[spec->n];
  *s = (wf_state_slot){.name = wf_strdup("model", full), .grows = grows, .ndim = ndim};
  if (!s->name) return WF_ENOMEM;
  memcpy(s->shape, shape, (size_t)ndim * sizeof *shape);
  *slot = spec->n++;
  return WF_OK;
}

wf_status wf_build_state_exact(wf_build *b, const char *name, bool grows, int ndim, const int64_t *shape,
                               int *slot) {
  WF_TRY(wf_build_state(b, name, grows, ndim, shape, slot));
  b->state->slot[*slot].exact = true;
  b->state->slot[*slot].kind = WF_STATE_SCAN; /* a sum along the sequence */
  return WF_OK;
}
