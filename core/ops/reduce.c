/* reduce: sums over dimensions, all through one op, sum_to: the sum (times a scale) to a shape that
 * broadcasts to the input's. Accumulation is in double, in an order that depends on the number of threads at
 * most. */
#include "core/ops/ops_impl.h"
#include "core/ops/reduce_impl.h"

#ifdef WF_KERNEL_PASS
#  include "core/memory.h"

enum { STRIP = 256, MAX_PARTS = 64 };

/* acc[0 .. w) += the items i0 .. i1 of each line, over all lines; w neighbours at stride 1, or one number. */
static void add_up(const wf_reduction *r, const real *x, int64_t w, int64_t i0, int64_t i1, double *acc) {
  int last = r->nr - 1;
  int64_t step = r->rx[last];
  for (int64_t l = 0; l < r->lines; l++) {
    const real *p = x;
    int64_t rest = l;
    for (int d = last - 1; d >= 0; d--) {
      p += rest % r->summed[d] * r->rx[d];
      rest /= r->summed[d];
    }
    if (w > 1) {
      for (int64_t i = i0; i < i1; i++) {
        const real *q = p + i * step;
#  pragma omp simd
        for (int64_t j = 0; j < w; j++) acc[j] += (double)q[j];
      }
      continue;
    }
    double s = 0;
    if (step == 1) {
#  pragma omp simd reduction(+ : s)
      for (int64_t i = i0; i < i1; i++) s += (double)p[i];
    } else {
      for (int64_t i = i0; i < i1; i++) s += (double)p[i * step];
    }
    acc[0] += s;
  }
}

WF_KERNEL(sum_to) {
  const wf_tensor *x = call->in[0], *y = call->out[0];
  const double scale = *(const double *)call->attr;
  const bool add = call->add & 1;
  wf_reduction r;
  wf_reduction_split(&r, x, y);
  int k = r.nk - 1;
  int64_t length = r.summed[r.nr - 1], outer = 1;
  /* A unit of work is one number of the output, or a strip of neighbours where the input's lie side by side.
   */
  int64_t width = r.kx[k] == 1 ? (r.kept[k] < STRIP ? r.kept[k] : STRIP) : 1;
  if (width > 1 && length > 1 && r.lines * length < 8 && r.rx[r.nr - 1] == 1) width = 1;
  int64_t strips = width ? (r.kept[k] + width - 1) / width : 0, strip_in = r.kept[k];
  for (int d = 0; d < k; d++) outer *= r.kept[d];
  int64_t units = outer * strips, each = r.lines * length * (width ? width : 1);
  if (units == 0) return WF_OK;
  /* Too few units for the threads: cut the summed lines into parts too. */
  int threads = wf_threads_for(units * length, r.lines * width);
  int parts = 1;
  if (units < threads) parts = threads < MAX_PARTS ? threads : MAX_PARTS;
  double one[STRIP], *sums = one;
  if (parts > 1) WF_ALLOC(sums, "reduce", (size_t)(units * parts * width) * sizeof(double));
  WF_PARALLEL_FOR(u0, u1, units * parts, each / parts + 1) {
    double local[STRIP];
    for (int64_t u = u0; u < u1; u++) {
      int64_t unit = u / parts, part = u % parts, at = unit % strips * width, rest = unit / strips;
      int64_t w = strip_in - at < width ? strip_in - at : width;
      const real *px = (const real *)wf_data(x) + at * r.kx[k];
      real *py = (real *)wf_data(y) + at * r.ky[k];
      for (int d = k - 1; d >= 0; d--) {
        px += rest % r.kept[d] * r.kx[d];
        py += rest % r.kept[d] * r.ky[d];
        rest /= r.kept[d];
      }
      double *acc = parts > 1 ? sums + u * width : local;
      for (int64_t j = 0; j < w; j++) acc[j] = 0;
      add_up(&r, px, w, wf_range_begin(length, (int)part, parts),
             wf_range_begin(length, (int)part + 1, parts), acc);
      if (parts > 1) continue;
      for (int64_t j = 0; j < w; j++) {
        real v = (real)(acc[j] * scale);
        py[j * r.ky[k]] = add ? py[j * r.ky[k]] + v : v;
      }
    }
  }
  if (parts == 1) return WF_OK;
  for (int64_t unit = 0; unit < units; unit++) {
    int64_t at = unit % strips * width, rest = unit / strips;
    int64_t w = strip_in - at < width ? strip_in - at : width;
    real *py = (real *)wf_data(y) + at * r.ky[k];
    for (int d = k - 1; d >= 0; d--) {
      py += rest % r.kept[d] * r.ky[d];
      rest /= r.kept[d];
    }
    for (int64_t j = 0; j < w; j++) {
      double s = 0;
      for (int p = 0; p < parts; p++) s += sums[(unit * parts + p) * width + j];
      real v = (real)(s * scale);
      py[j * r.ky[k]] = add ? py[j * r.ky[k]] + v : v;
    }
  }
  wf_free(sums);
  return WF_OK;
}

#else
#  include <string.h>

WF_CPU(sum_to)
WF_CUDA_DECLARE(sum_to)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 1));
  const wf_tensor *x = call->in[0];
  const sum_attr *a = call->attr;
  char b[96];
  bool fits = a->ndim >= 0 && a->ndim <= x->ndim;
  for (int64_t d = 0; fits && d < a->ndim; d++) {
    int64_t have = x->shape[x->ndim - a->ndim + d];
    fits = a->shape[d] == have || a->shape[d] == 1;
  }
  WF_SHAPE_CHECK(fits, "%s cannot be summed to a shape that does not broadcast to it", wf_shape_text(x, b));
  wf_desc_set(&out[0], x->dtype, (int)a->ndim, a->shape);
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  const sum_attr *a = g->attr;
  wf_tensor *wide = wf_expand_raw(g->dout[0], g->in[0]->ndim, g->in[0]->shape);
  if (wf_is_poison(wide)) return g->ctx->status;
  return wf_op_run(g->ctx, &wf_op_affine, 1, &wide, (double[]){a->scale, 0}, 1, &g->din[0], g->add);
}

static wf_status sample(wf_sample *s) {
  static const sum_attr to[] = {{1, 2, {4, 5}},    {0.5, 3, {3, 1, 5}}, {1, 3, {3, 4, 1}}, {1, 0, {0}},
                                {2, 3, {1, 4, 1}}, {1, 1, {5}},         {1, 1, {5}}};
  s->n_in = 1;
  s->in[0] = s->index == 5 ? wf_sample_real(s, WF_SHAPE(0, 5)) : wf_sample_real(s, WF_SHAPE(3, 4, 5));
  if (s->index == 6) s->in[0] = wf_view_raw(s->in[0], 2, (int64_t[]){4, 5}, (int64_t[]){1, 12}, 2);
  memcpy(s->attr, &to[s->index], sizeof to[0]);
  return WF_OK;
}

const wf_op wf_op_sum_to = {
    .name = "sum_to",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_size = sizeof(sum_attr),
    .strided = 1,
    .adds = 1,
    .vjp_adds = 1,
    .infer = infer,
    .vjp = vjp,
    .cpu = &sum_to_cpu,
    .cuda = WF_CUDA_FN(sum_to),
    .sample = sample,
    .n_samples = 7,
};

wf_tensor *wf_sum_to(wf_ctx *c, wf_tensor *x, int ndim, const int64_t *shape) {
  if (wf_is_poison(x)) return x;
  if (ndim == x->ndim && memcmp(shape, x->shape, (size_t)ndim * sizeof *shape) == 0) return x;
  sum_attr a = {.scale = 1, .ndim = ndim};
  for (int d = 0; d < ndim && d < WF_MAX_DIMS; d++) a.shape[d] = shape[d];
  return wf_op_apply(c, &wf_op_sum_to, 1, &x, &a, NULL);
}

static wf_tensor *sum_dim(wf_ctx *c, wf_tensor *x, int dim, bool keep, bool mean) {
  if (wf_is_poison(x)) return x;
  int d = dim < 0 ? dim + x->ndim : dim;
  char b[96];
  if (d < 0 || d >= x->ndim)
    return wf_poison(c, WF_FAIL(WF_ESHAPE, "no dimension %d in %s to sum over", dim, wf_shape_text(x, b)));
  sum_attr a = {.scale = mean ? 1.0 / (double)x->shape[d] : 1, .ndim = x->ndim};
  memcpy(a.shape, x->shape, sizeof a.shape);
  a.shape[d] = 1;
  wf_tensor *y = wf_op_apply(c, &wf_op_sum_to, 1, &x, &a, NULL);
  if (keep) return y;
  for (int i = d; i + 1 < x->ndim; i++) a.shape[i] = a.shape[i + 1];
  return wf_reshape(c, y, x->ndim - 1, a.shape);
}

wf_tensor *wf_sum(wf_ctx *c, wf_tensor *x, int dim, bool keep) {
  return sum_dim(c, x, dim, keep, false);
}
wf_tensor *wf_mean(wf_ctx *c, wf_tensor *x, int dim, bool keep) {
  return sum_dim(c, x, dim, keep, true);
}
wf_tensor *wf_sum_all(wf_ctx *c, wf_tensor *x) {
  return wf_sum_to(c, x, 0, NULL);
}

#endif
