/* Inputs for samples of ops: numbers drawn by Philox, so that every run sees the same. */
#include "core/op.h"
#include "core/memory.h"
#include "core/rng.h"

#include <stdio.h>

static wf_tensor *filled(wf_sample *s, wf_dtype dtype, int ndim, const int64_t *shape, double lo, double hi) {
  char site[64];
  snprintf(site, sizeof site, "%d.%llu", s->index, (unsigned long long)s->seed++);
  wf_rng_key key = wf_rng_key_make(1, "sample", site);
  int64_t n = 1;
  for (int i = 0; i < ndim; i++) n *= shape[i];
  size_t size = wf_dtype_size(dtype);
  void *host = wf_alloc("sample", (size_t)n * size);
  if (!host) return wf_poison(s->ctx, WF_ENOMEM);
  for (int64_t i = 0; i < n; i++) {
    double u = wf_rng_uniform(key, (uint64_t)i);
    switch (dtype) {
    case WF_F32: ((float *)host)[i] = (float)(lo + (hi - lo) * u); break;
    case WF_F64:
      ((double *)host)[i] = (double)(float)(lo + (hi - lo) * u);
      break; /* the same number in both */
    case WF_I32: ((int32_t *)host)[i] = (int32_t)(lo + (hi - lo) * u); break;
    default: ((int64_t *)host)[i] = (int64_t)(lo + (hi - lo) * u); break;
    }
  }
  wf_tensor *t = wf_from_host(s->ctx, "sample", dtype, ndim, shape, host);
  wf_free(host);
  return t;
}

wf_tensor *wf_sample_real(wf_sample *s, int ndim, const int64_t *shape) {
  return filled(s, s->real, ndim, shape, -1.5, 1.5);
}
wf_tensor *wf_sample_range(wf_sample *s, int ndim, const int64_t *shape, double lo, double hi) {
  return filled(s, s->real, ndim, shape, lo, hi);
}
wf_tensor *wf_sample_ids(wf_sample *s, int ndim, const int64_t *shape, int64_t below) {
  return filled(s, WF_I32, ndim, shape, 0, (double)below);
}
