/* rotary: turns pairs of features, (i, i + dim / 2) or (2 i, 2 i + 1), by pos * base^(-2 i / dim). The
 * gradient turns back.
 *
 * Angles are formed and brought into [-pi, pi] in double, so positions in the millions keep their precision.
 */
#include "core/ops/attr_impl.h"
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS
#  include "core/memory.h"

enum { PAIRS = 64 };

static inline void turn(int64_t pairs, const real *restrict cosine, const real *restrict sine,
                        const real *restrict x, const real *restrict x2, real *restrict y, real *restrict y2,
                        bool add) {
  if (add) {
#  pragma omp simd
    for (int64_t i = 0; i < pairs; i++) {
      real a = x[i], b = x2[i];
      y[i] += a * cosine[i] - b * sine[i];
      y2[i] += b * cosine[i] + a * sine[i];
    }
    return;
  }
#  pragma omp simd
  for (int64_t i = 0; i < pairs; i++) {
    real a = x[i], b = x2[i];
    y[i] = a * cosine[i] - b * sine[i];
    y2[i] = b * cosine[i] + a * sine[i];
  }
}

static inline void turn_adjacent(int64_t pairs, const real *restrict cosine, const real *restrict sine,
                                 const real *restrict x, real *restrict y, bool add) {
#  pragma omp simd
  for (int64_t i = 0; i < pairs; i++) {
    real a = x[2 * i], b = x[2 * i + 1], y0 = a * cosine[i] - b * sine[i], y1 = b * cosine[i] + a * sine[i];
    y[2 * i] = add ? y[2 * i] + y0 : y0;
    y[2 * i + 1] = add ? y[2 * i + 1] + y1 : y1;
  }
}

WF_KERNEL(rotary) {
  const rotary_attr *o = call->attr;
  const wf_tensor *x = call->in[0], *y = call->out[0];
  const int64_t *pos = wf_data(call->in[1]);
  const int64_t n = x->shape[0], h = x->shape[1], k = x->shape[2], half = o->dim / 2;
  const int64_t xn = x->stride[0], xh = x->stride[1], yn = y->stride[0], yh = y->stride[1];
  const bool add = call->add & 1;
  double *rate;
  WF_ALLOC(rate, "rotary", (size_t)(half + 1) * sizeof *rate);
  for (int64_t i = 0; i < half; i++) rate[i] = o->sign * pow(o->base, -2.0 * (double)i / (double)o->dim);
  WF_PARALLEL_FOR(t0, t1, n, h * k * 2) {
    real cosine[PAIRS], sine[PAIRS];
    for (int64_t t = t0; t < t1; t++) {
      const real *px = (const real *)wf_data(x) + t * xn;
      real *py = (real *)wf_data(y) + t * yn;
      for (int64_t i0 = 0; i0 < half; i0 += PAIRS) {
        int64_t pairs = half - i0 < PAIRS ? half - i0 : PAIRS;
        double p = (double)(o->period ? pos[t] % o->period : pos[t]);
#  pragma omp simd
        for (int64_t i = 0; i < pairs; i++) {
          double angle = p * rate[i0 + i], whole = angle * (0.5 * M_1_PI);
          whole = (whole + 0x1.8p52) - 0x1.8p52; /* rounds to an integer */
          sine[i] = (real)(angle - whole * (2 * M_PI));
        }
/* two loops: of both in one, gcc makes a scalar sincos */
#  pragma omp simd
        for (int64_t i = 0; i < pairs; i++) cosine[i] = r_cos(sine[i]);
#  pragma omp simd
        for (int64_t i = 0; i < pairs; i++) sine[i] = r_sin(sine[i]);
        for (int64_t head = 0; head < h; head++) {
          const real *q = px + head * xh + (o->adjacent ? 2 : 1) * i0;
          real *r = py + head * yh + (o->adjacent ? 2 : 1) * i0;
          if (o->adjacent)
            turn_adjacent(pairs, cosine, sine, q, r, add);
          else if (pairs == 32 && !add) /* heads of 64: no loop is left */
            turn(32, cosine, sine, q, q + half, r, r + half, false);
          else
            turn(pairs, cosine, sine, q, q + half, r, r + half, add);
        }
      }
      if (o->dim == k) continue;
      for (int64_t head = 0; head < h; head++) /* the rest stays */
        for (int64_t i = o->dim; i < k; i++) {
          real v = px[head * xh + i];
          py[head * yh + i] = add ? py[head * yh + i] + v : v;
        }
    }
  }
  wf_free(rate);
  return WF_OK;
}

#else

WF_CPU(rotary)
WF_CUDA_DECLARE(rotary)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const rotary_attr *o = call->attr;
  const wf_tensor *x = call->in[0], *pos = call->in[1];
  char a[96], b[96];
  WF_TRY(wf_want_real(call, 1));
  WF_SHAPE_CHECK(x->ndim == 3 && pos->ndim == 1 && pos->dtype == WF_I64 && pos->shape[0] == x->shape[0],
                 "rotary positions %s for %s; [n] i64 and [n, h, k] expected", wf_shape_text(pos, b),
                 wf_shape_text(x, a));
  WF_SHAPE_CHECK(o->dim >= 0 && o->dim % 2 == 0 && o->dim <= x->shape[2],
                 "%lld rotary features; an even number up to %lld expected", (long long)o->dim,
                 (long long)x->shape[2]);
  WF_SHAPE_CHECK(o->base > 0 && o->period >= 0, "a rotary base of %g and period of %lld", o->base,
                 (long long)o->period);
  wf_desc_like(&out[0], x);
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  rotary_attr back = *(const rotary_attr *)g->attr;
  back.sign = -back.sign;
  return wf_op_run(g->ctx, &wf_op_rotary, 2, (wf_tensor *[]){g->dout[0], g->in[1]}, &back, 1, &g->din[0],
                   g->add & 1);
}

static wf_status sample(wf_sample *s) {
  static const rotary_attr o[] = {{10000, 1, 6, 0, 0}, {500, 1, 4, 0, 0},    {10000, -1, 2, 0, 0},
                                  {10000, 1, 6, 0, 0}, {10000, 1, 6, 16, 1}, {100, 1, 4, 0, 1}};
  int64_t n = s->index == 3 ? 0 : 4, far[] = {70000, 3, 1000000, 0};
  *(rotary_attr *)(void *)s->attr = o[s->index];
  s->n_in = 2;
  s->in[0] = wf_sample_real(s, WF_SHAPE(n, 3, 6));
  if (s->index == 1) /* heads that lie in the columns of a wider buffer */
    s->in[0] =
        wf_view_raw(wf_sample_real(s, WF_SHAPE(n, 25)), 3, (int64_t[]){n, 3, 6}, (int64_t[]){25, 6, 1}, 5);
  s->in[1] = wf_from_host(s->ctx, "sample", WF_I64, 1, &n, far);
  return WF_OK;
}

const wf_op wf_op_rotary = {
    .name = "rotary",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_size = sizeof(rotary_attr),
    .rowmajor = 1,
    .adds = 1,
    .save_in = 2,
    .vjp_adds = 1,
    .nograd_in = 2,
    .infer = infer,
    .vjp = vjp,
    .cpu = &rotary_cpu,
    .cuda = WF_CUDA_FN(rotary),
    .sample = sample,
    .n_samples = 6,
};

wf_tensor *wf_rotary(wf_ctx *c, wf_tensor *x, wf_tensor *pos, double base, int64_t dim) {
  rotary_attr o = {.base = base, .sign = 1, .dim = dim};
  return wf_op_apply(c, &wf_op_rotary, 2, (wf_tensor *[]){x, pos}, &o, NULL);
}

wf_tensor *wf_rotary_adjacent(wf_ctx *c, wf_tensor *x, wf_tensor *pos, double base, int64_t dim,
                              int64_t period) {
  rotary_attr o = {.base = base, .sign = 1, .dim = dim, .period = period, .adjacent = 1};
  return wf_op_apply(c, &wf_op_rotary, 2, (wf_tensor *[]){x, pos}, &o, NULL);
}

#endif
