/* The table of optimisers; their state by group; a step over all groups. */
#include "optim/optimizer_impl.h"
#include "core/memory.h"

#include <math.h>
#include <string.h>

static const wf_optimizer_type *const types[] = {&wf_optimizer_adamw, &wf_optimizer_sgd, &wf_optimizer_lion,
                                                 &wf_optimizer_muon};

int wf_optimizer_type_count(void) {
  return (int)(sizeof types / sizeof *types);
}
const wf_optimizer_type *wf_optimizer_at(int i) {
  return i >= 0 && i < wf_optimizer_type_count() ? types[i] : NULL;
}
const wf_optimizer_type *wf_optimizer_find(const char *name) {
  for (int i = 0; i < wf_optimizer_type_count(); i++)
    if (strcmp(types[i]->name, name) == 0) return types[i];
  return NULL;
}

typedef struct group_state {
  wf_opt_group group;
  wf_tensor *ctl;
  const char *const *name;
  int n;
  wf_tensor *state[WF_OPT_MAX_STATES];
} group_state;

struct wf_optimizer {
  wf_ctx *ctx;
  const wf_optimizer_type *type;
  void *options;
  int n_groups;
  group_state *group;
  int64_t steps, skipped, in_row;
};

/* ---- creation ---- */

static wf_status check_group(const wf_opt_group *g) {
  const char *first = g->n_ranges ? g->range[0].name : "no parameter";
  char a[96], b[96];
  if ((g->value->dtype != WF_F32 && g->value->dtype != WF_F64) || g->grad->dtype != g->value->dtype ||
      !wf_same_shape(g->value, g->grad) || !wf_is_contiguous(g->value) || !wf_is_contiguous(g->grad))
    return WF_FAIL(
        WF_ESHAPE,
        "the group of %s: values %s and gradients %s are not flat buffers of one size in f32 or f64", first,
        wf_shape_text(g->value, a), wf_shape_text(g->grad, b));
  for (int i = 0; i < g->n_ranges; i++) {
    const wf_opt_range *r = &g->range[i];
    int64_t n = 1;
    for (int d = 0; d < r->ndim; d++) n *= r->shape[d];
    if (n != r->numel || r->offset < 0 || r->offset > wf_numel(g->value) - n)
      return WF_FAIL(WF_ESHAPE, "parameter %s does not lie inside its group of %lld elements", r->name,
                     (long long)wf_numel(g->value));
    if (g->matrix && r->ndim != 2)
      return WF_FAIL(WF_ESHAPE, "parameter %s with %d dimensions is in a group of matrices", r->name,
                     r->ndim);
  }
  return WF_OK;
}

static wf_status create_group(wf_optimizer *opt, const wf_opt_group *g, group_state *s) {
  WF_TRY(check_group(g));
  s->name = opt->type->states(opt->options, g);
  wf_scope scope = wf_scope_open(opt->ctx);
  s->group = *g;
  wf_keep(g->value);
  wf_keep(g->grad);
  s->ctl = wf_keep(wf_zeros(opt->ctx, "optimizer", g->value->dtype, WF_SHAPE(WF_CTL_N)));
  for (; s->name[s->n]; s->n++)
    s->state[s->n] =
        wf_keep(wf_zeros(opt->ctx, "optimizer", g->value->dtype, g->value->ndim, g->value->shape));
  wf_scope_close(opt->ctx, scope);
  return wf_ctx_check(opt->ctx);
}

wf_status wf_optimizer_create(wf_ctx *c, const wf_optimizer_type *type, const void *options, int n_groups,
                              const wf_opt_group *groups, wf_optimizer **out) {
  wf_optimizer *opt;
  wf_status s;
  WF_CALLOC(opt, "optimizer", 1);
  *opt = (wf_optimizer){.ctx = c, .type = type};
  if (!(opt->options = wf_calloc("optimizer", 1, type->options_size)) ||
      !(opt->group = wf_calloc("optimizer", (size_t)n_groups, sizeof *opt->group)))
    WF_TRY_GOTO(s, failed, WF_ENOMEM);
  WF_TRY_GOTO(s, failed, wf_options_copy(type->options, opt->options, options));
  for (; opt->n_groups < n_groups; opt->n_groups++)
    WF_TRY_GOTO(s, failed, create_group(opt, &groups[opt->n_groups], &opt->group[opt->n_groups]));
  *out = opt;
  return WF_OK;
failed:
  opt->n_groups += opt->n_groups < n_groups; /* the group that failed may hold tensors already */
  wf_optimizer_free(opt);
  return s;
}

void wf_optimizer_free(wf_optimizer *opt) {
  if (!opt) return;
  for (int i = 0; opt->group && i < opt->n_groups; i++) {
    group_state *g = &opt->group[i];
    wf_drop(g->group.value);
    wf_drop(g->group.grad);
    wf_drop(g->ctl);
    for (int k = 0; k < WF_OPT_MAX_STATES; k++) wf_drop(g->state[k]);
  }
  if (opt->options) wf_options_free(opt->type->options, opt->options);
  wf_free(opt->options);
  wf_free(opt->group);
  wf_free(opt);
}

/* ---- a step ---- */

wf_status wf_optim_send_control(wf_ctx *c, wf_tensor *ctl, const double *value) {
  float single[WF_CTL_N];
  for (int i = 0; i < WF_CTL_N; i++) single[i] = (float)value[i];
  return wf_device_write(wf_ctx_device(c), wf_data(ctl), ctl->dtype == WF_F64 ? (const void *)value : single,
                         WF_CTL_N * wf_dtype_size(ctl->dtype));
}

static wf_status step_group(wf_optimizer *opt, group_state *g, double factor, double grad_scale) {
  double ctl[WF_CTL_N] = {[WF_CTL_GO] = 1, [WF_CTL_GRAD] = grad_scale};
  opt->type->control(opt->options, &g->group, factor, opt->steps + 1, ctl);
  WF_TRY(wf_optim_send_control(opt->ctx, g->ctl, ctl));
  wf_scope scope = wf_scope_open(opt->ctx);
  wf_status s = opt->type->step(&(wf_opt_step){opt->ctx, opt->options, &g->group, g->ctl, g->state});
  wf_scope_close(opt->ctx, scope);
  return s;
}

wf_status wf_optimizer_step(wf_optimizer *opt, double factor, double grad_scale) {
  if (!isfinite(grad_scale)) {
    opt->skipped++;
    opt->in_row++;
    return WF_OK;
  }
  wf_recorder recorder = wf_ctx_set_recorder(opt->ctx, (wf_recorder){0});
  wf_status s = WF_OK;
  for (int i = 0; i < opt->n_groups && s == WF_OK; i++)
    s = step_group(opt, &opt->group[i], factor, grad_scale);
  wf_ctx_set_recorder(opt->ctx, recorder);
  WF_TRY(s);
  opt->steps++;
  opt->in_row = 0;
  return WF_OK;
}

/* ---- looking ---- */

double wf_optimizer_lr(const wf_optimizer *opt) {
  return *(const double *)opt->options;
}
const wf_optimizer_type *wf_optimizer_kind(const wf_optimizer *opt) {
  return opt->type;
}
int64_t wf_optimizer_steps(const wf_optimizer *opt) {
  return opt->steps;
}
int64_t wf_optimizer_skipped(const wf_optimizer *opt) {
  return opt->skipped;
}
int64_t wf_optimizer_skipped_in_row(const wf_optimizer *opt) {
  return opt->in_row;
}
void wf_optimizer_set_steps(wf_optimizer *opt, int64_t steps, int64_t skipped) {
  opt->steps = steps;
  opt->skipped = skipped;
  opt->in_row = 0;
}

int64_t wf_optimizer_bytes(const wf_optimizer *opt) {
  int64_t bytes = 0;
  for (int i = 0; i < opt->n_groups; i++) {
    const wf_tensor *p = opt->group[i].group.value;
    bytes += opt->group[i].n * wf_numel(p) * (int64_t)wf_dtype_size(p->dtype);
  }
  return bytes;
}

int wf_optimizer_n_groups(const wf_optimizer *opt) {
  return opt->n_groups;
}
const wf_opt_group *wf_optimizer_group(const wf_optimizer *opt, int group) {
  return &opt->group[group].group;
}
int wf_optimizer_n_states(const wf_optimizer *opt, int group) {
  return opt->group[group].n;
}
const char *wf_optimizer_state_name(const wf_optimizer *opt, int group, int i) {
  return opt->group[group].name[i];
}
wf_tensor *wf_optimizer_state(const wf_optimizer *opt, int group, int i) {
  return opt->group[group].state[i];
}

wf_tensor *wf_opt_slice(wf_tensor *flat, const wf_opt_range *range) {
  return wf_view_raw(flat, range->ndim, range->shape, NULL, range->offset);
}
