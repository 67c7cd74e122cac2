/* Declaration, layout and initial values of parameters. */
#include "layers/param.h"
#include "core/memory.h"

#include <string.h>

wf_status wf_param_declare(wf_params *ps, const char *name, unsigned flags, wf_init init, int ndim,
                           const int64_t *shape, wf_param **out) {
  if (wf_params_find(ps, name)) return WF_FAIL(WF_EEXISTS, "two parameters are named '%s'", name);
  if (ndim < 0 || ndim > WF_PARAM_MAX_DIMS)
    return WF_FAIL(WF_ESHAPE, "parameter '%s' has %d dimensions", name, ndim);
  WF_TRY(wf_grow("model", (void **)&ps->param, sizeof *ps->param, (size_t)ps->n, &ps->cap));
  wf_param *p;
  WF_CALLOC(p, "model", 1);
  p->name = wf_strdup("model", name);
  if (!p->name) {
    wf_free(p);
    return WF_ENOMEM;
  }
  p->ndim = ndim;
  p->numel = 1;
  for (int i = 0; i < ndim; i++) {
    p->shape[i] = shape[i];
    if (shape[i] < 0 || __builtin_mul_overflow(p->numel, shape[i], &p->numel) ||
        p->numel > INT64_C(1) << 46) {
      wf_status s = WF_FAIL(WF_ESHAPE, "parameter '%s': dimension %d is %lld", name, i, (long long)shape[i]);
      wf_free(p->name);
      wf_free(p);
      return s;
    }
  }
  p->init = init;
  p->flags = flags;
  ps->param[ps->n++] = p;
  ps->numel += p->numel;
  *out = p;
  return WF_OK;
}

wf_param *wf_params_find(const wf_params *ps, const char *name) {
  for (int i = 0; i < ps->n; i++)
    if (strcmp(ps->param[i]->name, name) == 0) return ps->param[i];
  return NULL;
}

wf_param_kind wf_param_default_kind(const wf_param *p) {
  return (wf_param_kind){.decay = !(p->flags & WF_PARAM_NO_DECAY),
                         .matrix = p->ndim == 2 && !(p->flags & (WF_PARAM_TABLE | WF_PARAM_NO_DECAY)),
                         .lr_scale = 1};
}

static wf_status group_for(wf_params *ps, wf_param_kind kind, int *group) {
  for (int g = 0; g < ps->n_groups; g++) {
    wf_param_kind have = ps->group[g].kind;
    *group = g;
    if (have.decay == kind.decay && have.matrix == kind.matrix && have.lr_scale == kind.lr_scale)
      return WF_OK;
  }
  WF_TRY(wf_grow("model", (void **)&ps->group, sizeof *ps->group, (size_t)ps->n_groups, &ps->cap_groups));
  ps->group[ps->n_groups] = (wf_param_group){.kind = kind};
  *group = ps->n_groups++;
  return WF_OK;
}

static wf_status views(wf_params *ps, wf_ctx *c) {
  for (int i = 0; i < ps->n; i++) {
    wf_param *p = ps->param[i];
    wf_param_group *g = &ps->group[p->group];
    p->value = wf_keep(wf_view_raw(g->value, p->ndim, p->shape, NULL, p->offset));
    p->leaf.grad = wf_keep(wf_view_raw(g->grad, p->ndim, p->shape, NULL, p->offset));
    if (wf_is_poison(p->value) || wf_is_poison(p->leaf.grad)) return wf_ctx_check(c);
  }
  return WF_OK;
}

wf_status wf_params_allocate(wf_params *ps, wf_ctx *c, wf_dtype dtype,
                             wf_param_kind (*kind)(void *arg, const wf_param *p), void *arg) {
  for (int i = 0; i < ps->n; i++) {
    wf_param *p = ps->param[i];
    WF_TRY(group_for(ps, kind ? kind(arg, p) : wf_param_default_kind(p), &p->group));
    p->offset = ps->group[p->group].numel;
    ps->group[p->group].numel += p->numel;
  }
  wf_scope s = wf_scope_open(c);
  wf_status st = WF_OK;
  for (int g = 0; g < ps->n_groups && st == WF_OK; g++) {
    wf_param_group *pg = &ps->group[g];
    pg->value = wf_keep(wf_zeros(c, "parameter", dtype, WF_SHAPE(pg->numel)));
    pg->grad = wf_keep(wf_empty(c, "parameter gradient", dtype, WF_SHAPE(pg->numel)));
    if (wf_is_poison(pg->value) || wf_is_poison(pg->grad)) st = wf_ctx_check(c);
  }
  if (st == WF_OK) st = views(ps, c);
  wf_scope_close(c, s);
  return st;
}

static double initial(const wf_init *in, wf_rng_key key, int64_t e) {
  switch (in->kind) {
  case WF_INIT_NORMAL: return in->a + in->b * wf_rng_normal(key, (uint64_t)e);
  case WF_INIT_UNIFORM: return in->a + (in->b - in->a) * wf_rng_uniform(key, (uint64_t)e);
  case WF_INIT_FN: return in->fn(in, key, e);
  case WF_INIT_CONST: break;
  }
  return in->a;
}

wf_status wf_params_init(wf_params *ps, uint64_t seed) {
  for (int i = 0; i < ps->n; i++) {
    wf_param *p = ps->param[i];
    wf_rng_key key = wf_rng_key_make(seed, "init", p->name);
    size_t size = wf_dtype_size(p->value->dtype);
    char *host;
    WF_ALLOC(host, "init", (size_t)p->numel * size);
#pragma omp parallel for schedule(static) if (p->numel > 4096)
    for (int64_t e = 0; e < p->numel; e++) {
      double x = initial(&p->init, key, e);
      if (size == sizeof(float))
        ((float *)(void *)host)[e] = (float)x;
      else
        ((double *)(void *)host)[e] = x;
    }
    wf_status s = wf_tensor_write(p->value, host);
    wf_free(host);
    WF_TRY(s);
  }
  return WF_OK;
}

wf_status wf_params_watch(wf_params *ps, wf_tape *t) {
  for (int g = 0; g < ps->n_groups && !ps->trained; g++) WF_TRY(wf_tensor_zero(ps->group[g].grad));
  ps->trained = true;
  for (int i = 0; i < ps->n; i++) WF_TRY(wf_tape_watch(t, ps->param[i]->value, &ps->param[i]->leaf));
  return WF_OK;
}
void wf_params_reset(wf_params *ps) {
  for (int i = 0; i < ps->n; i++) wf_leaf_reset(&ps->param[i]->leaf);
}
void wf_params_hold(wf_params *ps) {
  for (int i = 0; i < ps->n; i++) wf_leaf_hold(&ps->param[i]->leaf);
}
void wf_params_release(wf_params *ps) {
  for (int i = 0; i < ps->n; i++) wf_leaf_release(&ps->param[i]->leaf);
}
wf_status wf_params_finish(wf_params *ps) {
  for (int i = 0; i < ps->n; i++) WF_TRY(wf_leaf_finish(&ps->param[i]->leaf));
  return WF_OK;
}

void wf_params_free(wf_params *ps) {
  for (int i = 0; i < ps->n; i++) {
    wf_drop(ps->param[i]->value);
    wf_drop(ps->param[i]->leaf.grad);
    wf_free(ps->param[i]->name);
    wf_free(ps->param[i]);
  }
  for (int g = 0; g < ps->n_groups; g++) {
    wf_drop(ps->group[g].value);
    wf_drop(ps->group[g].grad);
  }
  wf_free(ps->param);
  wf_free(ps->group);
  *ps = (wf_params){0};
}
