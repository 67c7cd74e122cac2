/* The global norm of the gradients, the clip factor, and the name of what went bad. */
#include "optim/clip.h"
#include "core/memory.h"
#include "core/ops_optim.h"

#include <math.h>

wf_status wf_grad_sumsq(wf_ctx *c, int n_groups, const wf_opt_group *groups, double *sumsq) {
  *sumsq = 0;
  if (n_groups == 0) return WF_OK;
  double *host;
  WF_ALLOC(host, "optimizer", (size_t)n_groups * sizeof *host);
  wf_scope scope = wf_scope_open(c);
  wf_tensor *sums = wf_empty(c, "optimizer", WF_F64, WF_SHAPE(n_groups)); /* read back at once */
  wf_status s = wf_ctx_check(c);
  for (int i = 0; i < n_groups && s == WF_OK; i++) {
    wf_tensor *sum = wf_view_raw(sums, 0, NULL, NULL, i);
    s = wf_ctx_check(c);
    if (s == WF_OK) s = wf_op_run(c, &wf_op_sumsq, 1, &groups[i].grad, NULL, 1, &sum, 0);
  }
  if (s == WF_OK) s = wf_to_host(sums, host);
  wf_scope_close(c, scope);
  for (int i = 0; i < n_groups && s == WF_OK; i++) *sumsq += host[i];
  wf_free(host);
  WF_TRY(s);
  return WF_OK;
}

wf_grad_norm wf_grad_clip(double sumsq, double scale, double max_norm) {
  double norm = fabs(scale) * sqrt(sumsq);
  if (!isfinite(norm)) return (wf_grad_norm){norm, (double)NAN, false};
  double factor = max_norm > 0 ? max_norm / (norm + 1e-6) : 1;
  return (wf_grad_norm){norm, factor < 1 ? scale * factor : scale, factor < 1};
}

wf_status wf_grad_measure(wf_ctx *c, int n_groups, const wf_opt_group *groups, double scale, double max_norm,
                          wf_grad_norm *out) {
  double sumsq;
  WF_TRY(wf_grad_sumsq(c, n_groups, groups, &sumsq));
  *out = wf_grad_clip(sumsq, scale, max_norm);
  return WF_OK;
}

enum { CHUNK = 1 << 16 };

/* The first element of a range that is not finite, or -1. `buffer` holds CHUNK doubles. */
static wf_status first_bad(const wf_opt_group *g, const wf_opt_range *r, double *buffer, int64_t *index,
                           double *value) {
  wf_ctx *c = g->grad->ctx;
  *index = -1;
  for (int64_t at = 0; at < r->numel && *index < 0; at += CHUNK) {
    int64_t n = r->numel - at < CHUNK ? r->numel - at : CHUNK;
    wf_scope scope = wf_scope_open(c);
    wf_tensor *part = wf_view_raw(g->grad, 1, &n, NULL, r->offset + at);
    wf_status s = wf_ctx_check(c);
    if (s == WF_OK) s = wf_to_host(part, buffer);
    wf_scope_close(c, scope);
    WF_TRY(s);
    for (int64_t i = 0; i < n && *index < 0; i++) {
      *value = g->grad->dtype == WF_F64 ? buffer[i] : (double)((const float *)(const void *)buffer)[i];
      if (!isfinite(*value)) *index = at + i;
    }
  }
  return WF_OK;
}

wf_status wf_grad_find_bad(int n_groups, const wf_opt_group *groups, wf_grad_bad *out) {
  *out = (wf_grad_bad){.index = -1};
  double *buffer;
  WF_ALLOC(buffer, "optimizer", CHUNK * sizeof *buffer);
  wf_status s = WF_OK;
  for (int i = 0; i < n_groups; i++)
    for (int k = 0; k < groups[i].n_ranges && s == WF_OK; k++) {
      int64_t index;
      double value;
      s = first_bad(&groups[i], &groups[i].range[k], buffer, &index, &value);
      if (s != WF_OK || index < 0) continue;
      if (!out->range) *out = (wf_grad_bad){&groups[i].range[k], index, value, 0};
      out->count++;
    }
  wf_free(buffer);
  WF_TRY(s);
  return WF_OK;
}
