/* fade: what rows make of the state they carry on: for each lane e^{sum_t g_t} over its row that takes and
 * leaves, g the log decays, or the sum itself. 1, or 0, for a lane without such a row. With rates A [d, N]
 * for g [n, d], e^{A sum_t g_t}. All in double.
 */
#include "core/ops/rows_impl.h"

typedef struct fade_attr {
  int64_t lanes;
  int32_t power;
} fade_attr;

#ifdef WF_KERNEL_PASS

enum { AT_ONCE = 64 }; /* channels */

/* n channels; rates [n, N] or NULL (N = 1). */
static void fade_line(const wf_row *r, const real *g, int64_t stride, int64_t n, bool power,
                      const real *rates, int64_t N, real *to) {
  for (int64_t c0 = 0; c0 < n; c0 += AT_ONCE) {
    int64_t m = n - c0 < AT_ONCE ? n - c0 : AT_ONCE;
    double sum[AT_ONCE] = {0};
    for (int64_t t = r->begin; t < r->begin + r->len; t++)
      for (int64_t i = 0; i < m; i++) sum[i] += (double)g[t * stride + c0 + i];
    for (int64_t i = c0 * N; i < (c0 + m) * N; i++) {
      double x = sum[i / N - c0] * (rates ? (double)rates[i] : 1);
      to[i] = (real)(power ? exp(x) : x);
    }
  }
}

WF_KERNEL(fade) {
  const fade_attr *a = call->attr;
  const wf_tensor *g = call->in[0], *table = call->in[1], *rates = call->in[2];
  const wf_row *row;
  int64_t rows = table->shape[0], width, lines = wf_token_lines(g, 1, &width),
          N = rates ? rates->shape[1] : 1;
  int64_t size = lines * width * N;
  WF_TRY(wf_rows_read(call->op->name, table, g->shape[0], a->lanes, &row));
  real *out = wf_data(call->out[0]);
  const real *from = wf_data(g);
  for (int64_t i = 0; i < a->lanes * size; i++) out[i] = a->power ? 1 : 0;
  WF_PARALLEL_FOR(i0, i1, rows * lines, rows ? g->shape[0] / rows * width : 0) {
    for (int64_t i = i0; i < i1; i++) {
      const wf_row *r = &row[i / lines];
      if (!wf_row_takes(r) || !wf_row_leaves(r)) continue;
      fade_line(r, from + wf_line_at(g, 1, i % lines), g->stride[0], width, a->power,
                rates ? wf_data(rates) : NULL, N, out + r->lane * size + i % lines * width * N);
    }
  }
  return WF_OK;
}

#else

#  include "core/ops/carry_impl.h"

WF_CPU(fade)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const wf_tensor *g = call->in[0];
  char t[96];
  WF_SHAPE_CHECK(g->ndim >= 2 && (g->dtype == WF_F32 || g->dtype == WF_F64), "fade: log decays %s",
                 wf_shape_text(g, t));
  wf_desc_like(out, g);
  out->shape[0] = ((const fade_attr *)call->attr)->lanes;
  const wf_tensor *rates = call->in[2];
  if (!rates) return WF_OK;
  WF_SHAPE_CHECK(g->ndim == 2 && rates->ndim == 2 && rates->shape[0] == g->shape[1] &&
                     rates->dtype == g->dtype,
                 "fade: rates %s", wf_shape_text(rates, t));
  out->shape[out->ndim++] = rates->shape[1];
  return WF_OK;
}

/* 0, 1: two and one dimension besides the tokens, rows of every kind; 2: no row; 3: rates. */
static wf_status sample(wf_sample *s) {
  int64_t n = s->index == 2 ? 0 : 8;
  s->in[0] = wf_sample_range(s, s->index % 2 ? 2 : 3, (int64_t[]){n, 2, 3}, -1, 0);
  s->in[1] = wf_sample_rows(s, false, n == 0);
  if (s->index == 3) s->in[2] = wf_sample_range(s, WF_SHAPE(2, 5), -1, 0);
  s->n_in = 3;
  *(fade_attr *)(void *)s->attr = (fade_attr){.lanes = 3, .power = s->index != 1};
  return WF_OK;
}

const wf_op wf_op_fade = {
    .name = "fade",
    .min_in = 3,
    .max_in = 3,
    .n_out = 1,
    .attr_size = sizeof(fade_attr),
    .optional = 4,
    .rowmajor = 1,
    .infer = infer,
    WF_NONDIFF("of the factor of a state; its gradient goes through the scan"),
    .cpu = &fade_cpu,
    .sample = sample,
    .n_samples = 4,
};

wf_status wf_fade_into(wf_ctx *c, wf_tensor *g, wf_tensor *table, wf_tensor *rates, bool power,
                       wf_tensor *out) {
  return wf_op_run(c, &wf_op_fade, 3, (wf_tensor *[]){g, table, rates},
                   &(fade_attr){.lanes = out->shape[0], .power = power}, 1, &out, 0);
}

#endif
