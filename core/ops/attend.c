/* attend: causal attention with grouped heads, blockwise with online softmax (Milakov & Gimelshein 2018, Dao
 * 2023); no buffer of queries by keys. Its gradient is the op attend_grad beside it.
 *
 * Two ways. Rows of a few queries (decoding) are bound by the reading of keys and values and run over the
 * keys where they lie, divided among threads by head and by stretch of keys; partial results are merged in
 * order. Longer rows run in blocks of queries by keys with tile products (attend_impl.h).
 */
#include "core/ops/attend_impl.h"

#ifdef WF_KERNEL_PASS

enum { FEW = 4 }; /* rows of at most this many queries read keys in place */

typedef struct attend_out {
  real *o, *lse;
} attend_out;

/* Scores x to weights in place, n a multiple of VL; the running maximum, sum and the factor for what was
 * summed before. */
static inline void weigh(const attend_args *g, real *x, int64_t n, real *max, real *sum, real *factor) {
  *factor = 1;
  if (g->sigmoid) {
    WF_PRAGMA(omp simd)
    for (int64_t j = 0; j < n; j++) x[j] = 1 / (1 + tile_exp(-x[j]));
    return;
  }
  real lane[VL];
  for (int l = 0; l < VL; l++) lane[l] = *max;
  for (int64_t j = 0; j < n; j += VL)
    for (int l = 0; l < VL; l++) lane[l] = x[j + l] > lane[l] ? x[j + l] : lane[l];
  TILE_UNROLL
  for (int half = VL / 2; half > 0; half /= 2)
    for (int l = 0; l < half; l++) lane[l] = lane[l + half] > lane[l] ? lane[l + half] : lane[l];
  real m = lane[0];
  if (m > *max) {
    *factor = tile_exp(*max - m);
    *max = m;
  }
  for (int l = 0; l < VL; l++) lane[l] = 0;
  for (int64_t j = 0; j < n; j += VL) {
    WF_PRAGMA(omp simd)
    for (int l = 0; l < VL; l++) {
      x[j + l] = tile_exp(x[j + l] - m);
      lane[l] += x[j + l];
    }
  }
  *sum = *sum * *factor + tile_sum(lane);
}

/* Divide by the sum, the sink included; write o and the log-sum-exp of query t, head h. */
static inline void finish(const attend_args *g, const attend_out *y, int64_t t, int64_t h, const real *acc,
                          real max, real sum) {
  real *o = y->o + (t * g->heads + h) * g->vdim, scale = 1, lse = 0;
  if (!g->sigmoid) {
    if (g->sink) {
      real z = g->sink[h], m = z > max ? z : max;
      if (m > -(real)INFINITY) { /* a key or the sink counts */
        scale = r_exp(max - m);
        sum = sum * scale + r_exp(z - m);
        max = m;
      }
    }
    lse = sum == 0 ? -(real)INFINITY : max + r_log(sum);
    scale = sum == 0 ? 0 : scale / sum;
  }
  for (int64_t c = 0; c < g->vdim; c++) o[c] = acc[c] * scale;
  y->lse[t * g->heads + h] = lse;
}

/* ---- blocks ---- */

static size_t block_bytes(const attend_args *g) {
  int64_t keys = attend_blocks(g->most_keys) * ATTEND_BK;
  int64_t count = keys * (g->kdim + g->vpad) + ATTEND_BQ * (g->kdim + g->vpad + ATTEND_BK + 2);
  int64_t terms = g->b ? g->group * g->most_keys : 0;
  return (size_t)count * sizeof(real) + (size_t)terms * sizeof(double) + (size_t)8 * 64;
}

/* A function of its own: inlined into the parallel region, gcc's loops over keys take a tenth longer. */
__attribute__((noinline)) static void block_task(const attend_args *g, const attend_out *y, int64_t r,
                                                 int64_t head, int64_t part, int64_t parts, char *work) {
  attend_row w = attend_row_at(g, r);
  int64_t bq = attend_bq(&w);
  real *kt = attend_take(&work, attend_blocks(w.keys) * ATTEND_BK * g->kdim);
  real *vp = attend_take(&work, w.keys * g->vpad);
  double *bp = attend_take_terms(&work, g, w.keys);
  real *q = attend_take(&work, bq * g->kdim), *s = attend_take(&work, bq * ATTEND_BK);
  real *o = attend_take(&work, bq * g->vpad), *max = attend_take(&work, bq), *sum = attend_take(&work, bq);
  attend_pack_t(w.keys, g->kdim, g->k + w.k0 * g->ks + head * g->kh, g->step * g->ks, kt);
  tile_pack(w.keys, g->vdim, g->v + w.k0 * g->vs + head * g->vh, g->step * g->vs, vp, g->vpad);
  if (g->b) attend_pack_b(g, &w, head, bp);

  for (int64_t t0 = part * bq; t0 < w.len; t0 += parts * bq) {
    int64_t nq = w.len - t0 < bq ? w.len - t0 : bq, from = attend_lo(g, &w, t0) / ATTEND_BK * ATTEND_BK;
    int64_t to = attend_hi(&w, t0 + nq - 1);
    for (int64_t i = 0; i < g->group; i++) {
      int64_t h = head * g->group + i;
      attend_scaled(g, nq, g->q + attend_query_at(g, &w, t0) * g->qs + h * g->qh, g->step * g->qs, q,
                    g->kdim);
      memset(o, 0, (size_t)(nq * g->vpad) * sizeof *o);
      for (int64_t t = 0; t < nq; t++) max[t] = -(real)INFINITY, sum[t] = 0;
      for (int64_t j = from; j < to; j += ATTEND_BK) {
        int64_t nk = to - j < ATTEND_BK ? to - j : ATTEND_BK;
        tile_mm(nq, TILE_PAD(nk), g->kdim, q, g->kdim, 1, kt + j * g->kdim, ATTEND_BK, s, ATTEND_BK, false);
        for (int64_t t = 0; t < nq; t++) {
          int64_t lo = attend_lo(g, &w, t0 + t) - j, hi = attend_hi(&w, t0 + t) - j;
          lo = lo < 0 ? 0 : lo > nk ? nk : lo;
          hi = hi > nk ? nk : hi < lo ? lo : hi;
          real *x = s + t * ATTEND_BK, factor = 1;
          int64_t from_lane = lo / VL * VL, to_lane = TILE_PAD(hi);
          if (hi > lo) {
            attend_scores(g, hi - lo, x + lo, NULL,
                          g->a ? g->a[attend_query_at(g, &w, t0 + t) * g->heads + h] : 0,
                          g->b ? bp + i * w.keys + j + lo : NULL);
            attend_hide(x, from_lane, lo, hi, to_lane, -(real)INFINITY);
            weigh(g, x + from_lane, to_lane - from_lane, &max[t], &sum[t], &factor);
            if (g->sigmoid) attend_hide(x, from_lane, lo, hi, to_lane, 0);
          } else
            to_lane = from_lane;
          for (int64_t l = 0; l < from_lane; l++) x[l] = 0;
          for (int64_t l = to_lane; l < nk; l++) x[l] = 0;
          if (factor != 1)
            for (int64_t c = 0; c < g->vpad; c++) o[t * g->vpad + c] *= factor;
        }
        tile_mm(nq, g->vpad, nk, s, ATTEND_BK, 1, vp + j * g->vpad, g->vpad, o, g->vpad, true);
      }
      for (int64_t t = 0; t < nq; t++)
        finish(g, y, attend_query_at(g, &w, t0 + t), h, o + t * g->vpad, max[t], sum[t]);
    }
  }
}

/* ---- few queries ---- */

/* A partial result of one query and head: its values, maximum and sum. */
static int64_t partial_size(const attend_args *g) {
  return TILE_PAD(g->vdim + 2);
}

/* Queries of the row with key head `head`, over the keys [begin, end) of it; one partial each. */
static void few_task(const attend_args *g, int64_t r, int64_t head, int64_t begin, int64_t end,
                     real *partial) {
  attend_row w = attend_row_at(g, r);
  enum { STRETCH = 64 };
  real x[STRETCH];
  double b[STRETCH];
  int64_t size = partial_size(g);
  for (int64_t i = 0; i < w.len * g->group; i++) {
    real *p = partial + i * size;
    memset(p, 0, (size_t)size * sizeof *p);
    p[g->vdim] = -(real)INFINITY;
  }
  for (int64_t j0 = begin; j0 < end; j0 += STRETCH) {
    for (int64_t i = 0; i < w.len * g->group; i++) {
      int64_t t = i / g->group, h = head * g->group + i % g->group;
      int64_t lo = attend_lo(g, &w, t), hi = attend_hi(&w, t), j1 = j0 + STRETCH < end ? j0 + STRETCH : end;
      lo = lo > j0 ? lo : j0;
      hi = hi < j1 ? hi : j1;
      if (lo >= hi) continue;
      real *p = partial + i * size, factor;
      int64_t at = attend_query_at(g, &w, t);
      const real *q = g->q + at * g->qs + h * g->qh;
      for (int64_t j = lo; j < hi; j++) {
        const real *k = g->k + attend_key_at(g, &w, j) * g->ks + head * g->kh;
        x[j - lo] = g->scale * tile_dot(g->kdim, q, k);
        if (g->b) b[j - lo] = g->b[attend_key_at(g, &w, j) * g->heads + h];
      }
      attend_scores(g, hi - lo, x, NULL, g->a ? g->a[at * g->heads + h] : 0, g->b ? b : NULL);
      attend_hide(x, 0, 0, hi - lo, TILE_PAD(hi - lo), -(real)INFINITY);
      weigh(g, x, TILE_PAD(hi - lo), &p[g->vdim], &p[g->vdim + 1], &factor);
      if (factor != 1)
        for (int64_t c = 0; c < g->vdim; c++) p[c] *= factor;
      for (int64_t j = lo; j < hi; j++) {
        const real *v = g->v + attend_key_at(g, &w, j) * g->vs + head * g->vh;
        for (int64_t c = 0; c < g->vdim; c++) p[c] += x[j - lo] * v[c];
      }
    }
  }
}

/* Merge the parts of one query and head, in order. */
static void few_finish(const attend_args *g, const attend_out *y, int64_t t, int64_t h, real *partial,
                       int64_t parts, int64_t step) {
  int64_t d = g->vdim;
  for (int64_t k = 1; k < parts; k++) {
    const real *p = partial + k * step;
    real m = p[d] > partial[d] ? p[d] : partial[d];
    if (!g->sigmoid && m == -(real)INFINITY) continue;
    real fa = g->sigmoid ? 1 : r_exp(partial[d] - m), fb = g->sigmoid ? 1 : r_exp(p[d] - m);
    for (int64_t c = 0; c < d; c++) partial[c] = partial[c] * fa + p[c] * fb;
    partial[d] = m;
    partial[d + 1] = partial[d + 1] * fa + p[d + 1] * fb;
  }
  finish(g, y, t, h, partial, partial[d], partial[d + 1]);
}

static wf_status few_queries(const attend_args *g, const attend_out *y, wf_device *dev) {
  int64_t pairs = g->rows * g->kv_heads, cost = g->longest * g->group * g->most_keys * (g->kdim + g->vdim);
  int64_t stretches = g->most_keys > 256 ? (g->most_keys + 255) / 256 : 1;
  int threads = wf_threads_for(pairs * stretches, cost / stretches / 8);
  int64_t parts = pairs >= 2 * threads || pairs % threads == 0 ? 1 : threads;
  int64_t per_part = g->longest * g->group * partial_size(g);
  size_t bytes = (size_t)(pairs * parts * per_part) * sizeof(real);
  void *work;
  WF_TRY(wf_device_alloc(dev, "attend", bytes, &work));
  real *partial = work;
  WF_PRAGMA(omp parallel for num_threads(threads) schedule(static, 1))
  for (int64_t task = 0; task < pairs * parts; task++) {
    int64_t pair = task / parts, part = task % parts, r = pair / g->kv_heads;
    int64_t keys = attend_row_at(g, r).keys;
    few_task(g, r, pair % g->kv_heads, wf_range_begin(keys, (int)part, (int)parts),
             wf_range_begin(keys, (int)part + 1, (int)parts), partial + task * per_part);
  }
  for (int64_t pair = 0; pair < pairs; pair++) {
    attend_row w = attend_row_at(g, pair / g->kv_heads);
    for (int64_t i = 0; i < w.len * g->group; i++)
      few_finish(g, y, attend_query_at(g, &w, i / g->group), pair % g->kv_heads * g->group + i % g->group,
                 partial + pair * parts * per_part + i * partial_size(g), parts, per_part);
  }
  wf_device_free(dev, "attend", work, bytes);
  return WF_OK;
}

WF_KERNEL(attend) {
  attend_args g;
  WF_TRY(attend_read(call, &g));
  attend_out y = {wf_data(call->out[0]), wf_data(call->out[1])};
  wf_device *dev = wf_ctx_device(call->ctx);
  int64_t covered = 0, pairs = g.rows * g.kv_heads;
  for (int64_t r = 0; r < g.rows; r++) covered += g.span[r].queries;
  if (covered < g.n) { /* queries of no row */
    memset(y.o, 0, (size_t)(g.n * g.heads * g.vdim) * sizeof(real));
    for (int64_t i = 0; i < g.n * g.heads; i++) y.lse[i] = g.sigmoid ? 0 : -(real)INFINITY;
  }
  if (!pairs || !g.longest || !g.group) return WF_OK;
  if (g.longest <= FEW) return few_queries(&g, &y, dev);

  int threads = wf_threads_for(pairs * ((g.longest + ATTEND_BQ - 1) / ATTEND_BQ), attend_cost(&g));
  int64_t parts = attend_parts(&g, threads);
  size_t each = block_bytes(&g);
  void *work;
  WF_TRY(wf_device_alloc(dev, "attend", each * (size_t)threads, &work));
  WF_PRAGMA(omp parallel num_threads(threads)) {
#  ifdef _OPENMP
    char *mine = (char *)work + each * (size_t)(threads > 1 ? omp_get_thread_num() : 0);
#  else
    char *mine = work;
#  endif
    WF_PRAGMA(omp for schedule(dynamic, 1))
    for (int64_t task = 0; task < pairs * parts; task++) {
      int64_t pair = task / parts;
      block_task(&g, &y, pair / g.kv_heads, pair % g.kv_heads, task % parts, parts, mine);
    }
  }
  wf_device_free(dev, "attend", work, each * (size_t)threads);
  return WF_OK;
}

#else

WF_CPU(attend)
WF_CUDA_DECLARE(attend)

wf_status wf_attend_check(const wf_call *call) {
  const wf_tensor *q = call->in[ATTEND_Q], *k = call->in[ATTEND_K], *v = call->in[ATTEND_V];
  const wf_tensor *span = call->in[ATTEND_SPAN], *a = call->in[ATTEND_A], *b = call->in[ATTEND_B],
                  *z = call->in[ATTEND_SINK];
  const wf_attend_options *o = call->attr;
  char t[3][96];
  WF_SHAPE_CHECK(q->ndim == 3 && k->ndim == 3 && v->ndim == 3 && q->shape[2] == k->shape[2] &&
                     k->shape[0] == v->shape[0] && k->shape[1] == v->shape[1] && k->shape[1] > 0 &&
                     q->shape[1] % k->shape[1] == 0 && k->dtype == q->dtype && v->dtype == q->dtype,
                 "attend: q %s, k %s, v %s", wf_shape_text(q, t[0]), wf_shape_text(k, t[1]),
                 wf_shape_text(v, t[2]));
  WF_SHAPE_CHECK(span->ndim == 2 && span->shape[1] == WF_ATTEND_SPAN_COLS && span->dtype == WF_I64,
                 "attend: span is %s, not [rows, %d] i64", wf_shape_text(span, t[0]), WF_ATTEND_SPAN_COLS);
  WF_SHAPE_CHECK(!a == !b, "attend: of the score terms a and b only one is given");
  WF_SHAPE_CHECK(!a || (a->ndim == 2 && a->shape[0] == q->shape[0] && a->shape[1] == q->shape[1] &&
                        b->ndim == 2 && b->shape[0] == k->shape[0] && b->shape[1] == q->shape[1] &&
                        a->dtype == WF_F64 && b->dtype == WF_F64),
                 "attend: score terms %s and %s, which are f64, do not fit q %s", wf_shape_text(a, t[0]),
                 wf_shape_text(b, t[1]), wf_shape_text(q, t[2]));
  WF_SHAPE_CHECK(!z || (z->ndim == 1 && z->shape[0] == q->shape[1] && z->dtype == q->dtype),
                 "attend: sink %s for %lld heads", wf_shape_text(z, t[0]), (long long)q->shape[1]);
  bool sigmoid = o->kind == WF_ATTEND_SIGMOID;
  if (o->window < 0 || o->softcap < 0 || o->stride < 0 || (sigmoid && (o->len_bias < 1 || z)))
    return WF_FAIL(WF_EINVAL, "attend: window %lld, soft cap %g, length %lld%s", (long long)o->window,
                   o->softcap, (long long)o->len_bias,
                   sigmoid && z ? "; a sink has no meaning without softmax" : "");
  return WF_OK;
}

/* Sum over positions p = 0 .. end-1 of how many of `keys` keys lie at p or before. */
static double keys_until(double end, double keys) {
  if (end <= 0) return 0;
  return end < keys ? end * (end + 1) / 2 : keys * (keys + 1) / 2 + (end - keys) * keys;
}

double wf_attend_pairs(const wf_call *call) {
  const wf_tensor *span = call->in[ATTEND_SPAN], *q = call->in[ATTEND_Q];
  if (wf_device_kind(wf_ctx_device(call->ctx)) != WF_CPU) return 0;
  double pairs = 0, window = (double)((const wf_attend_options *)call->attr)->window;
  const wf_attend_span *s = wf_data(span);
  for (int64_t r = 0; r < span->shape[0]; r++, s++) {
    double begin = (double)s->distance, end = begin + (double)s->queries, keys = (double)s->keys;
    pairs += keys_until(end, keys) - keys_until(begin, keys);
    if (window > 0) pairs -= keys_until(end - window, keys) - keys_until(begin - window, keys);
  }
  return pairs * (double)q->shape[1];
}

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_attend_check(call));
  const wf_tensor *q = call->in[ATTEND_Q];
  wf_desc_set(&out[0], q->dtype, WF_SHAPE(q->shape[0], q->shape[1], call->in[ATTEND_V]->shape[2]));
  wf_desc_set(&out[1], q->dtype, WF_SHAPE(q->shape[0], q->shape[1]));
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  attend_grad_attr attr = {.o = *(const wf_attend_options *)g->attr};
  wf_tensor *d = g->dout[0], *dlse = attr.o.kind == WF_ATTEND_SIGMOID ? NULL : g->dout[1];
  if (!d) d = wf_zeros(g->ctx, "gradient", g->out[0]->dtype, g->out[0]->ndim, g->out[0]->shape);
  wf_tensor *in[] = {g->in[0], g->in[1],  g->in[2],  g->in[3], g->in[4], g->in[5],
                     g->in[6], g->out[0], g->out[1], d,        dlse};
  static const int input_of[] = {ATTEND_Q, ATTEND_K, ATTEND_V, ATTEND_A, ATTEND_B, ATTEND_SINK};
  wf_tensor *out[6];
  uint32_t add = 0;
  int n = 0;
  for (int i = 0; i < 6; i++) {
    if (!g->din[input_of[i]]) continue;
    attr.want |= 1 << i;
    add |= (g->add >> input_of[i] & 1) << n;
    out[n++] = g->din[input_of[i]];
  }
  return n ? wf_op_run(g->ctx, &wf_op_attend_grad, 11, in, &attr, n, out, add) : WF_OK;
}

static void cost(const wf_call *call, double *flops, double *bytes) {
  const wf_tensor *q = call->in[0], *k = call->in[1], *v = call->in[2];
  *flops = 2 * wf_attend_pairs(call) * (double)(q->shape[2] + v->shape[2]);
  *bytes = (double)(wf_numel(q) + wf_numel(k) + wf_numel(v) + wf_numel(call->out[0])) *
           (double)wf_dtype_size(q->dtype);
}

/* Kinds and shapes of inputs that the samples of attend and of its gradient share. */
wf_status wf_attend_sample(wf_sample *s) {
  static const struct {
    int64_t rows;
    wf_attend_span span[3];
    int64_t n, m, heads, kv_heads, k, v;
    wf_attend_options o;
    bool terms, sink;
  } made[] = {
      {1, {{0, 7, 0, 0, 7}}, 7, 7, 2, 2, 4, 3, {.scale = 0.5}, false, false},
      {2, {{0, 3, 0, 0, 3}, {3, 4, 3, 0, 4}}, 7, 7, 4, 2, 3, 5, {.scale = 0.6, .softcap = 2}, true, true},
      {2, {{0, 5, 1, 2, 7}, {5, 1, 9, 0, 1}}, 6, 11, 3, 1, 3, 2, {.scale = 1, .window = 3}, false, true},
      {1,
       {{0, 6, 2, 1, 7}},
       6,
       9,
       2,
       1,
       3,
       3,
       {.scale = 0.7, .kind = WF_ATTEND_SIGMOID, .len_bias = 4},
       true,
       false},
      {1, {{0, 2, 0, 5, 7}}, 2, 8, 2, 1, 3, 3, {.scale = 0.7}, true, true},
      {0, {{0}}, 0, 4, 2, 1, 3, 2, {.scale = 1}, false, false},
      {2, {{0, 3, 1, 1, 4}, {1, 3, 0, 0, 3}}, 6, 8, 2, 1, 3, 2, {.scale = 0.6, .stride = 2}, true, true},
      /* blocks of longer rows: keys that end inside, before a gap and out of the window, or are none */
      {3,
       {{0, 6, 0, 2, 5}, {6, 5, 5, 9, 3}, {11, 2, 8, 4, 0}},
       13,
       8,
       2,
       1,
       3,
       2,
       {.scale = 0.6, .softcap = 3, .window = 9},
       true,
       true},
      {2, {{0, 3, 0, 2, 3}, {1, 3, 1, 4, 2}}, 6, 8, 2, 2, 3, 2, {.scale = 0.6, .stride = 2}, true, true},
      {3,
       {{0, 6, 0, 1, 4}, {6, 5, 4, 3, 3}, {11, 1, 7, 0, 0}},
       12,
       8,
       2,
       1,
       3,
       3,
       {.scale = 0.7, .kind = WF_ATTEND_SIGMOID, .len_bias = 4, .window = 4},
       true,
       false},
  };
  _Static_assert(sizeof made / sizeof *made == WF_ATTEND_SAMPLES, "samples");
  int i = s->index;
  int64_t n = made[i].n, m = made[i].m, heads = made[i].heads, kv = made[i].kv_heads;
  s->n_in = 7;
  if (i == 1) { /* column slices of one buffer, as a joined projection gives them */
    int64_t kd = made[i].k, vd = made[i].v, width = heads * kd + kv * (kd + vd);
    wf_tensor *joined = wf_sample_real(s, WF_SHAPE(n, width));
    s->in[0] = wf_view_raw(joined, 3, (int64_t[]){n, heads, kd}, (int64_t[]){width, kd, 1}, 0);
    s->in[1] = wf_view_raw(joined, 3, (int64_t[]){n, kv, kd}, (int64_t[]){width, kd, 1}, heads * kd);
    s->in[2] = wf_view_raw(joined, 3, (int64_t[]){n, kv, vd}, (int64_t[]){width, vd, 1}, (heads + kv) * kd);
  } else {
    s->in[0] = wf_sample_real(s, WF_SHAPE(n, heads, made[i].k));
    s->in[1] = wf_sample_real(s, WF_SHAPE(m, kv, made[i].k));
    s->in[2] = wf_sample_real(s, WF_SHAPE(m, kv, made[i].v));
  }
  s->in[3] = wf_attend_spans(s->ctx, made[i].rows, made[i].span);
  s->in[4] = made[i].terms ? wf_cast(s->ctx, wf_sample_real(s, WF_SHAPE(n, heads)), WF_F64) : NULL;
  s->in[5] = made[i].terms ? wf_cast(s->ctx, wf_sample_real(s, WF_SHAPE(m, heads)), WF_F64) : NULL;
  s->in[6] = made[i].sink ? wf_sample_real(s, WF_SHAPE(heads)) : NULL;
  *(wf_attend_options *)(void *)s->attr = made[i].o;
  return WF_OK;
}

const wf_op wf_op_attend = {
    .name = "attend",
    .min_in = 7,
    .max_in = 7,
    .n_out = 2,
    .attr_size = sizeof(wf_attend_options),
    .flags = WF_OP_TYPE_OF_FIRST,
    .optional = 1 << ATTEND_A | 1 << ATTEND_B | 1 << ATTEND_SINK,
    .rowmajor = 1 << ATTEND_Q | 1 << ATTEND_K | 1 << ATTEND_V,
    .save_in = 0x7f,
    .save_out = 3,
    .vjp_adds = 0x7f & ~(1 << ATTEND_SPAN),
    .nograd_in = 1 << ATTEND_SPAN,
    .infer = infer,
    .vjp = vjp,
    .cpu = &attend_cpu,
    .cuda = WF_CUDA_FN(attend),
    .cost = cost,
    .sample = wf_attend_sample,
    .n_samples = WF_ATTEND_SAMPLES,
};

wf_tensor *wf_attend_spans(wf_ctx *c, int64_t n, const wf_attend_span *span) {
  return wf_from_host(c, "rows", WF_I64, WF_SHAPE(n, WF_ATTEND_SPAN_COLS), span);
}
wf_tensor *wf_attend_lse(wf_ctx *c, wf_tensor *q, wf_tensor *k, wf_tensor *v, wf_tensor *span, wf_tensor *a,
                         wf_tensor *b, wf_tensor *sink, const wf_attend_options *o, wf_tensor **lse) {
  wf_tensor *out[2];
  wf_op_apply(c, &wf_op_attend, 7, (wf_tensor *[]){q, k, v, span, a, b, sink}, o, out);
  *lse = out[1];
  return out[0];
}
wf_tensor *wf_attend(wf_ctx *c, wf_tensor *q, wf_tensor *k, wf_tensor *v, wf_tensor *span, wf_tensor *a,
                     wf_tensor *b, wf_tensor *sink, const wf_attend_options *o) {
  wf_tensor *lse;
  return wf_attend_lse(c, q, k, v, span, a, b, sink, o, &lse);
}

#endif
