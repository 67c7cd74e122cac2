/* shift: windows over the tokens of each row, continued from the lane's last w-1 tokens.
 *
 * conv is the causal depthwise convolution, with SiLU fused; halo puts the earlier tokens in front of each
 * row (the keys of sliding-window attention). In both a row is seen as the sequence e = 0 .. w-2+len of the
 * w-1 tokens before it, from its lane or zero, and its own; the state it leaves is the last w-1 of that
 * sequence. A lane that no row leaves keeps its state.
 */
#include "core/ops/attr_impl.h"
#include "core/ops/rows_impl.h"

#ifdef WF_KERNEL_PASS

/* ---- conv ---- */

enum { CONV_X, CONV_W, CONV_BIAS, CONV_STATE, CONV_TABLE, CONV_DY, CONV_DSTATE };
enum { CHUNK = 64, CHANNELS = 64 };

/* y[c] += four taps; src and w are rows of channels. */
static inline void four_taps(int64_t d, real *restrict y, const real *const *src, const real *const *w) {
  const real *s0 = src[0], *s1 = src[1], *s2 = src[2], *s3 = src[3];
  const real *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
  for (int64_t c = 0; c < d; c++) y[c] += w0[c] * s0[c] + w1[c] * s1[c] + w2[c] * s2[c] + w3[c] * s3[c];
}

typedef struct conv_args {
  const real *x, *state, *bias, *dy, *dstate;
  int64_t xs, dys; /* token strides */
  const wf_row *row;
  int64_t rows, n, d, w, taps; /* taps: w rounded up to fours */
  real *weight;                /* [taps, d], zero beyond w */
  real *zero;                  /* [d] */
  bool silu;
} conv_args;

static wf_status conv_read(const wf_call *call, conv_args *g) {
  const conv_attr *a = call->attr;
  const wf_tensor *x = call->in[CONV_X], *w = call->in[CONV_W];
  *g = (conv_args){.x = wf_data(x),
                   .xs = x->stride[0],
                   .rows = call->in[CONV_TABLE]->shape[0],
                   .n = x->shape[0],
                   .d = x->shape[1],
                   .w = w->shape[2],
                   .silu = a->silu};
  g->bias = call->in[CONV_BIAS] ? wf_data(call->in[CONV_BIAS]) : NULL;
  g->state = call->in[CONV_STATE] ? wf_data(call->in[CONV_STATE]) : NULL;
  g->taps = (g->w + 3) / 4 * 4;
  return wf_rows_read("conv", call->in[CONV_TABLE], g->n, a->lanes, &g->row);
}

static size_t conv_bytes(const conv_args *g) {
  return (size_t)((g->taps + 1) * g->d) * sizeof(real);
}
static void conv_weights(conv_args *g, const real *weight, void *work) {
  g->weight = work;
  g->zero = g->weight + g->taps * g->d;
  memset(work, 0, conv_bytes(g));
  for (int64_t c = 0; c < g->d; c++)
    for (int64_t i = 0; i < g->w; i++) g->weight[i * g->d + c] = weight[c * g->w + i];
}

/* Element e of a row's sequence. */
static inline const real *conv_at(const conv_args *g, const wf_row *r, int64_t e) {
  if (e >= g->w - 1) return g->x + (r->begin + e - (g->w - 1)) * g->xs;
  if (g->state && wf_row_takes(r)) return g->state + (r->lane * (g->w - 1) + e) * g->d;
  return g->zero;
}

/* Before the activation: token t of the row, channels c0 .. c0+d-1. */
static inline void conv_token(const conv_args *g, const wf_row *r, int64_t t, int64_t c0, int64_t d,
                              real *y) {
  if (g->bias)
    memcpy(y, g->bias + c0, (size_t)d * sizeof *y);
  else
    memset(y, 0, (size_t)d * sizeof *y);
  for (int64_t i = 0; i < g->w; i += 4) {
    const real *src[4], *w[4];
    for (int64_t k = 0; k < 4; k++) {
      src[k] = (i + k < g->w ? conv_at(g, r, t + i + k) : g->zero) + c0;
      w[k] = g->weight + (i + k) * g->d + c0;
    }
    four_taps(d, y, src, w);
  }
}

WF_KERNEL(conv) {
  conv_args g;
  WF_TRY(conv_read(call, &g));
  wf_device *dev = wf_ctx_device(call->ctx);
  void *work;
  WF_TRY(wf_device_alloc(dev, "conv", conv_bytes(&g), &work));
  conv_weights(&g, wf_data(call->in[CONV_W]), work);
  real *out = wf_data(call->out[0]);
  WF_PARALLEL_FOR(t0, t1, g.n, g.d * (g.w + (g.silu ? 8 : 1))) {
    int64_t r = 0;
    for (int64_t t = t0; t < t1; t++) {
      while (t >= g.row[r].begin + g.row[r].len) r++;
      real *y = out + t * g.d;
      conv_token(&g, &g.row[r], t - g.row[r].begin, 0, g.d, y);
      if (g.silu) {
        WF_PRAGMA(omp simd)
        for (int64_t c = 0; c < g.d; c++) y[c] = y[c] / (1 + r_exp(-y[c]));
      }
    }
  }
  if (call->n_out > 1) {
    real *left = wf_data(call->out[1]);
    int64_t lanes = call->out[1]->shape[0], size = (g.w - 1) * g.d;
    if (g.state)
      memcpy(left, g.state, (size_t)(lanes * size) * sizeof *left);
    else
      memset(left, 0, (size_t)(lanes * size) * sizeof *left);
    for (int64_t r = 0; r < g.rows; r++)
      for (int64_t i = 0; i < g.w - 1 && wf_row_leaves(&g.row[r]); i++)
        memcpy(left + g.row[r].lane * size + i * g.d, conv_at(&g, &g.row[r], g.row[r].len + i),
               (size_t)g.d * sizeof *left);
  }
  wf_device_free(dev, "conv", work, conv_bytes(&g));
  return WF_OK;
}

/* ---- the gradient of conv ---- */

typedef struct conv_out {
  real *dx, *dw, *db, *dstate;
  int64_t dxs;
  bool add_x;
} conv_out;

/* Work space of one block of channels: dpre of a chunk of tokens with the first w-1 of the chunk after it
 * behind, and sums for the weights: [taps, CHANNELS] and the bias. */
typedef struct conv_work {
  real *dpre, *dw, *db, *sum;
} conv_work;

static int64_t conv_work_size(const conv_args *g) {
  return (CHUNK + g->w + 2 * g->taps + 3) * CHANNELS;
}

/* The gradient of the values before the activation, tokens t0 .. t0+n-1 of a row. */
static void conv_dpre(const conv_args *g, const wf_row *r, int64_t t0, int64_t n, int64_t c0, int64_t d,
                      real *dpre) {
  for (int64_t t = t0; t < t0 + n; t++) {
    real *p = dpre + (t - t0) * CHANNELS;
    if (!g->dy) {
      memset(p, 0, (size_t)d * sizeof *p);
      continue;
    }
    const real *dy = g->dy + (r->begin + t) * g->dys + c0;
    if (!g->silu) {
      memcpy(p, dy, (size_t)d * sizeof *p);
      continue;
    }
    conv_token(g, r, t, c0, d, p);
    WF_PRAGMA(omp simd)
    for (int64_t c = 0; c < d; c++) {
      real s = 1 / (1 + r_exp(-p[c]));
      p[c] = dy[c] * s * (1 + p[c] * (1 - s));
    }
  }
}

/* Element e of the row's sequence receives sum_i W_i dpre_{e-i}, and the state it is part of. */
static void conv_send(const conv_args *g, const conv_out *o, const wf_row *r, int64_t e, int64_t t0,
                      int64_t c0, int64_t d, const conv_work *k) {
  bool own = e >= g->w - 1;
  real *to = own ? (o->dx ? o->dx + (r->begin + e - (g->w - 1)) * o->dxs + c0 : NULL)
                 : (o->dstate && wf_row_takes(r) ? o->dstate + (r->lane * (g->w - 1) + e) * g->d + c0 : NULL);
  if (!to) return;
  if (own && !o->add_x) memset(to, 0, (size_t)d * sizeof *to);
  for (int64_t i = 0; i < g->w; i++) {
    if (e - i < t0) continue; /* before the row's first token */
    const real *p = k->dpre + (e - i - t0) * CHANNELS, *w = g->weight + i * g->d + c0;
    for (int64_t c = 0; c < d; c++) to[c] += w[c] * p[c];
  }
  if (g->dstate && wf_row_leaves(r) && e >= r->len) {
    const real *s = g->dstate + (r->lane * (g->w - 1) + e - r->len) * g->d + c0;
    for (int64_t c = 0; c < d; c++) to[c] += s[c];
  }
}

static void conv_row(const conv_args *g, const conv_out *o, const wf_row *r, int64_t c0, int64_t d,
                     const conv_work *k) {
  int64_t halo = g->w - 1;
  for (int64_t t0 = (r->len - 1) / CHUNK * CHUNK, n = r->len - t0; t0 >= 0; t0 -= CHUNK, n = CHUNK) {
    if (t0 + n == r->len)
      memset(k->dpre + n * CHANNELS, 0, (size_t)(halo * CHANNELS) * sizeof(real));
    else /* the chunk after this one begins where this one ends */
      memmove(k->dpre + n * CHANNELS, k->dpre, (size_t)(halo * CHANNELS) * sizeof(real));
    conv_dpre(g, r, t0, n, c0, d, k->dpre);
    for (int64_t i = 0; i < g->w; i++) {
      memset(k->sum, 0, (size_t)d * sizeof(real));
      for (int64_t t = 0; t < n; t++) {
        const real *p = k->dpre + t * CHANNELS, *x = conv_at(g, r, t0 + t + i) + c0;
        for (int64_t c = 0; c < d; c++) k->sum[c] += p[c] * x[c];
      }
      for (int64_t c = 0; c < d; c++) k->dw[i * CHANNELS + c] += k->sum[c];
    }
    for (int64_t t = 0; t < n; t++)
      for (int64_t c = 0; c < d; c++) k->db[c] += k->dpre[t * CHANNELS + c];
    for (int64_t e = t0 == 0 ? 0 : t0 + halo; e < t0 + n + halo; e++) conv_send(g, o, r, e, t0, c0, d, k);
  }
}

/* All rows, channels c0 .. c0+d-1. */
static void conv_block(const conv_args *g, const conv_out *o, int64_t c0, int64_t d, real *work,
                       const wf_call *call) {
  conv_work k = {.dpre = work};
  k.dw = k.dpre + (CHUNK + g->w) * CHANNELS;
  k.db = k.dw + g->taps * CHANNELS;
  k.sum = k.db + CHANNELS;
  memset(k.dw, 0, (size_t)((g->taps + 1) * CHANNELS) * sizeof(real));
  for (int64_t r = 0; r < g->rows; r++) conv_row(g, o, &g->row[r], c0, d, &k);
  int at = (o->dx != NULL);
  for (int64_t c = 0; c < d && o->dw; c++)
    for (int64_t i = 0; i < g->w; i++) {
      real *to = o->dw + (c0 + c) * g->w + i;
      *to = k.dw[i * CHANNELS + c] + (call->add >> at & 1 ? *to : 0);
    }
  at += o->dw != NULL;
  for (int64_t c = 0; c < d && o->db; c++)
    o->db[c0 + c] = k.db[c] + (call->add >> at & 1 ? o->db[c0 + c] : 0);
}

WF_KERNEL(conv_grad) {
  conv_args g;
  WF_TRY(conv_read(call, &g));
  const conv_attr *a = call->attr;
  const wf_tensor *dy = call->in[CONV_DY], *ds = call->in[CONV_DSTATE];
  if (dy) g.dy = wf_data(dy), g.dys = dy->stride[0];
  if (ds) g.dstate = wf_data(ds);
  conv_out o = {.dx = NULL};
  int n = 0;
  if (a->want & 1) {
    o.add_x = call->add >> n & 1;
    o.dxs = call->out[n]->stride[0];
    o.dx = wf_data(call->out[n++]);
  }
  if (a->want & 2) o.dw = wf_data(call->out[n++]);
  if (a->want & 4) o.db = wf_data(call->out[n++]);
  if (a->want & 8) { /* what lanes that are not left pass on; rows add to it */
    o.dstate = wf_data(call->out[n]);
    wf_keep_lanes(g.row, g.rows, a->lanes, (g.w - 1) * g.d, g.dstate, o.dstate, call->add >> n & 1);
  }
  wf_device *dev = wf_ctx_device(call->ctx);
  int64_t width = g.d;
  int threads = wf_threads_for((g.d + 15) / 16, g.n * 16 * (3 * g.w + 10));
  width = (g.d + threads - 1) / threads;
  width = width > CHANNELS ? CHANNELS : (width + 15) / 16 * 16;
  int64_t blocks = width ? (g.d + width - 1) / width : 0;
  size_t shared = (conv_bytes(&g) + 63) / 64 * 64, each = (size_t)conv_work_size(&g) * sizeof(real);
  void *work;
  WF_TRY(wf_device_alloc(dev, "conv", shared + each * (size_t)threads, &work));
  conv_weights(&g, wf_data(call->in[CONV_W]), work);
  WF_PRAGMA(omp parallel for num_threads(threads) schedule(static, 1))
  for (int part = 0; part < threads; part++)
    for (int64_t b = part; b < blocks; b += threads)
      conv_block(&g, &o, b * width, g.d - b * width < width ? g.d - b * width : width,
                 (real *)(void *)((char *)work + shared + each * (size_t)part), call);
  wf_device_free(dev, "conv", work, shared + each * (size_t)threads);
  return WF_OK;
}

/* ---- halo ---- */

/* Lines of one token, copied or added. */
static inline void move_token(const wf_tensor *to, int to_lead, real *dst, const wf_tensor *from,
                              int from_lead, const real *src, bool add) {
  int64_t width, lines = wf_token_lines(to, to_lead, &width);
  for (int64_t l = 0; l < lines; l++) {
    real *d = dst + wf_line_at(to, to_lead, l);
    const real *s = src + wf_line_at(from, from_lead, l);
    if (add)
      for (int64_t i = 0; i < width; i++) d[i] += s[i];
    else
      memcpy(d, s, (size_t)width * sizeof *d);
  }
}

static int64_t halo_size(const wf_tensor *x) {
  int64_t size = 1;
  for (int i = 1; i < x->ndim; i++) size *= x->shape[i];
  return size;
}

WF_KERNEL(halo) {
  const halo_attr *a = call->attr;
  const wf_tensor *x = call->in[0], *state = call->in[1], *y = call->out[0];
  const wf_row *row;
  int64_t rows = call->in[2]->shape[0], before = a->w - 1, size = halo_size(x);
  WF_TRY(wf_rows_read("halo", call->in[2], x->shape[0], a->lanes, &row));
  const real *from = wf_data(x), *old = state ? wf_data(state) : NULL;
  real *to = wf_data(y);
  WF_PARALLEL_FOR(r0, r1, rows, x->shape[0] / (rows ? rows : 1) * size) {
    for (int64_t r = r0; r < r1; r++) {
      real *at = to + (row[r].begin + r * before) * size;
      if (old && wf_row_takes(&row[r]))
        memcpy(at, old + row[r].lane * before * size, (size_t)(before * size) * sizeof *at);
      else
        memset(at, 0, (size_t)(before * size) * sizeof *at);
      for (int64_t t = 0; t < row[r].len; t++)
        move_token(y, 1, at + (before + t) * size, x, 1, from + (row[r].begin + t) * x->stride[0], false);
    }
  }
  if (call->n_out > 1) {
    real *left = wf_data(call->out[1]);
    if (old)
      memcpy(left, old, (size_t)(a->lanes * before * size) * sizeof *left);
    else
      memset(left, 0, (size_t)(a->lanes * before * size) * sizeof *left);
    for (int64_t r = 0; r < rows; r++)
      if (wf_row_leaves(&row[r]))
        memcpy(left + row[r].lane * before * size, to + (row[r].begin + r * before + row[r].len) * size,
               (size_t)(before * size) * sizeof *left);
  }
  return WF_OK;
}

/* in: x's shape and state's shape (their values are not read), table, dy or NULL, dstate_out or NULL. */
WF_KERNEL(halo_grad) {
  const halo_attr *a = call->attr;
  const wf_tensor *x = call->in[0], *dy = call->in[3], *ds = call->in[4];
  const wf_row *row;
  int64_t rows = call->in[2]->shape[0], before = a->w - 1, size = halo_size(x);
  WF_TRY(wf_rows_read("halo", call->in[2], x->shape[0], a->lanes, &row));
  int ix = a->want & 1 ? 0 : -1, is = a->want & 2 ? ix + 1 : -1;
  const real *from = dy ? wf_data(dy) : NULL, *later = ds ? wf_data(ds) : NULL;
  real *dx = ix >= 0 ? wf_data(call->out[ix]) : NULL, *dold = is >= 0 ? wf_data(call->out[is]) : NULL;
  const wf_tensor *xt = ix >= 0 ? call->out[ix] : x;
  bool add_x = ix >= 0 && call->add >> ix & 1;
  if (dold) wf_keep_lanes(row, rows, a->lanes, before * size, later, dold, call->add >> is & 1);
  int64_t width, lines = wf_token_lines(x, 1, &width);
  WF_PARALLEL_FOR(r0, r1, rows, x->shape[0] / (rows ? rows : 1) * size) {
    for (int64_t r = r0; r < r1; r++)
      for (int64_t e = 0; e < before + row[r].len; e++) {
        bool own = e >= before, leaves = later && wf_row_leaves(&row[r]) && e >= row[r].len;
        real *to = own ? (dx ? dx + (row[r].begin + e - before) * xt->stride[0] : NULL)
                       : (dold && wf_row_takes(&row[r]) ? dold + (row[r].lane * before + e) * size : NULL);
        if (!to) continue;
        const real *d = from ? from + (row[r].begin + r * before + e) * size : NULL;
        const real *s = leaves ? later + (row[r].lane * before + e - row[r].len) * size : NULL;
        for (int64_t l = 0; l < lines; l++) {
          real *line = to + (own ? wf_line_at(xt, 1, l) : l * width);
          for (int64_t i = 0; i < width; i++)
            line[i] = (own && !add_x ? 0 : line[i]) + (d ? d[l * width + i] : 0) + (s ? s[l * width + i] : 0);
        }
      }
  }
  return WF_OK;
}

#else

WF_CPU(conv)
WF_CPU(conv_grad)
WF_CPU(halo)
WF_CPU(halo_grad)
WF_CUDA_DECLARE(conv)
WF_CUDA_DECLARE(conv_grad)
WF_CUDA_DECLARE(halo)
WF_CUDA_DECLARE(halo_grad)

static wf_status check_table(const wf_tensor *table) {
  char t[96];
  WF_SHAPE_CHECK(table->ndim == 2 && table->shape[1] == WF_ROW_COLS && table->dtype == WF_I64,
                 "the table of rows is %s", wf_shape_text(table, t));
  return WF_OK;
}

/* ---- conv ---- */

/* inputs: x, weight, bias, state, table; the gradient's: dy, dstate_out besides */
static wf_status conv_check(const wf_call *call, wf_desc *state) {
  const conv_attr *a = call->attr;
  const wf_tensor *x = call->in[0], *w = call->in[1], *b = call->in[2], *s = call->in[3];
  char t[2][96];
  WF_SHAPE_CHECK(x->ndim == 2 && w->ndim == 3 && w->shape[0] == x->shape[1] && w->shape[1] == 1 &&
                     w->shape[2] >= 1 && w->dtype == x->dtype,
                 "conv: x %s, weight %s", wf_shape_text(x, t[0]), wf_shape_text(w, t[1]));
  WF_SHAPE_CHECK(!b || (b->ndim == 1 && b->shape[0] == x->shape[1] && b->dtype == x->dtype),
                 "conv: bias %s for x %s", wf_shape_text(b, t[0]), wf_shape_text(x, t[1]));
  wf_desc_set(state, x->dtype, WF_SHAPE(a->lanes, w->shape[2] - 1, x->shape[1]));
  WF_SHAPE_CHECK(!s || (s->ndim == 3 && s->dtype == x->dtype && s->shape[0] == a->lanes &&
                        s->shape[1] == w->shape[2] - 1 && s->shape[2] == x->shape[1]),
                 "conv: state %s, expected [%lld, %lld, %lld]", wf_shape_text(s, t[0]), (long long)a->lanes,
                 (long long)w->shape[2] - 1, (long long)x->shape[1]);
  return check_table(call->in[4]);
}

static wf_status conv_infer(const wf_call *call, wf_desc *out, int *n_out) {
  const conv_attr *a = call->attr;
  WF_TRY(conv_check(call, &out[1]));
  wf_desc_like(&out[0], call->in[0]);
  *n_out = a->leaves ? 2 : 1;
  return WF_OK;
}

static wf_status conv_vjp(const wf_vjp *g) {
  conv_attr a = *(const conv_attr *)g->attr;
  wf_tensor *in[] = {
      g->in[0], g->in[1], g->in[2], g->in[3], g->in[4], g->dout[0], a.leaves ? g->dout[1] : NULL};
  wf_tensor *out[4];
  uint32_t add = 0;
  int n = 0;
  a.want = 0;
  for (int i = 0; i < 4; i++) {
    if (!g->din[i]) continue;
    a.want |= 1 << i;
    add |= (g->add >> i & 1) << n;
    out[n++] = g->din[i];
  }
  return n ? wf_op_run(g->ctx, &wf_op_conv_grad, 7, in, &a, n, out, add) : WF_OK;
}

static void conv_cost(const wf_call *call, double *flops, double *bytes) {
  double n = (double)wf_numel(call->in[0]);
  *flops = n * (2 * (double)call->in[1]->shape[2] + 4);
  *bytes = 2 * n * (double)wf_dtype_size(call->in[0]->dtype);
}

/* Rows shorter and longer than the window, taking and leaving; a lane that no row touches. */
static wf_tensor *sample_rows(wf_sample *s, int64_t *n, int64_t *lanes) {
  static const wf_row row[] = {
      {.begin = 0, .len = 2, .lane = 2, .pos = 4, .place = 4, .flags = 3},
      {.begin = 2, .len = 5, .lane = 0, .flags = WF_ROW_LEAVES},
      {.begin = 7, .len = 1, .lane = 3, .pos = 1, .place = 1, .flags = WF_ROW_TAKES}};
  bool none = s->index == 3, fresh = s->index == 1;
  wf_row made[3] = {row[0], row[1], row[2]};
  for (int i = 0; i < 3 && fresh; i++) made[i].flags = 0;
  *n = none ? 0 : 8;
  *lanes = 4;
  return wf_from_host(s->ctx, "sample", WF_I64, WF_SHAPE(none ? 0 : 3, WF_ROW_COLS), made);
}

static wf_status conv_sample(wf_sample *s) {
  int64_t n, lanes, d = 3, w = s->index == 2 ? 6 : 4;
  s->n_in = 5;
  s->in[4] = sample_rows(s, &n, &lanes);
  wf_tensor *wide = wf_sample_real(s, WF_SHAPE(n, d + 2));
  s->in[0] = wf_view_raw(wide, 2, (int64_t[]){n, d}, (int64_t[]){d + 2, 1}, 1);
  s->in[1] = wf_sample_real(s, WF_SHAPE(d, 1, w));
  s->in[2] = s->index == 2 ? NULL : wf_sample_real(s, WF_SHAPE(d));
  s->in[3] = s->index == 1 ? NULL : wf_sample_real(s, WF_SHAPE(lanes, w - 1, d));
  *(conv_attr *)(void *)s->attr = (conv_attr){.lanes = lanes, .silu = s->index != 2, .leaves = s->index != 1};
  return WF_OK;
}

const wf_op wf_op_conv = {
    .name = "conv",
    .min_in = 5,
    .max_in = 5,
    .n_out = -1,
    .attr_size = sizeof(conv_attr),
    .optional = 1 << 2 | 1 << 3,
    .rowmajor = 1,
    .save_in = 0x1f,
    .vjp_adds = 0xf,
    .nograd_in = 1 << 4,
    .infer = conv_infer,
    .vjp = conv_vjp,
    .cpu = &conv_cpu,
    .cuda = WF_CUDA_FN(conv),
    .cost = conv_cost,
    .sample = conv_sample,
    .n_samples = 4,
};

static wf_status conv_grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  wf_desc state;
  WF_TRY(conv_check(call, &state));
  int32_t want = ((const conv_attr *)call->attr)->want;
  *n_out = 0;
  for (int i = 0; i < 4; i++)
    if (want >> i & 1) {
      WF_SHAPE_CHECK(call->in[i], "conv_grad: no input for output %d", i);
      wf_desc_like(&out[(*n_out)++], call->in[i]);
    }
  return WF_OK;
}

static wf_status conv_grad_sample(wf_sample *s) {
  WF_TRY(conv_sample(s));
  conv_attr *a = (conv_attr *)(void *)s->attr;
  int64_t n = s->in[0]->shape[0], d = s->in[0]->shape[1], w = s->in[1]->shape[2];
  a->want = 3 | (s->in[2] ? 4 : 0) | (s->in[3] ? 8 : 0);
  s->in[5] = wf_sample_real(s, WF_SHAPE(n, d));
  s->in[6] = a->leaves ? wf_sample_real(s, WF_SHAPE(a->lanes, w - 1, d)) : NULL;
  s->n_in = 7;
  return WF_OK;
}

const wf_op wf_op_conv_grad = {
    .name = "conv_grad",
    .min_in = 7,
    .max_in = 7,
    .n_out = -1,
    .attr_size = sizeof(conv_attr),
    .optional = 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6,
    .rowmajor = 1 | 1 << 5,
    .adds = 0xf,
    .rowmajor_out = 1,
    .infer = conv_grad_infer,
    WF_NONDIFF("gradient of conv; first order only"),
    .cpu = &conv_grad_cpu,
    .cuda = WF_CUDA_FN(conv_grad),
    .cost = conv_cost,
    .sample = conv_grad_sample,
    .n_samples = 4,
};

wf_tensor *wf_conv(wf_ctx *c, wf_tensor *x, wf_tensor *weight, wf_tensor *bias, wf_tensor *state,
                   const wf_rows *rows, bool silu, wf_tensor **state_out) {
  conv_attr a = {.lanes = rows->n_lanes, .silu = silu, .leaves = state_out != NULL};
  wf_status s = wf_state_given("conv", state, rows);
  if (s != WF_OK) {
    if (state_out) *state_out = wf_poison(c, s);
    return wf_poison(c, s);
  }
  wf_tensor *out[WF_MAX_OUT];
  wf_op_apply(c, &wf_op_conv, 5, (wf_tensor *[]){x, weight, bias, state, rows->table}, &a, out);
  if (state_out) *state_out = out[1];
  return out[0];
}

/* ---- halo ---- */

static wf_status halo_check(const wf_call *call) {
  const halo_attr *a = call->attr;
  const wf_tensor *x = call->in[0], *s = call->in[1];
  char t[2][96];
  WF_SHAPE_CHECK(x->ndim >= 2 && x->ndim < WF_MAX_DIMS && a->w >= 1, "halo: x %s, window %lld",
                 wf_shape_text(x, t[0]), (long long)a->w);
  bool fits = !s || (s->ndim == x->ndim + 1 && s->dtype == x->dtype && s->shape[0] == a->lanes &&
                     s->shape[1] == a->w - 1);
  for (int i = 1; s && fits && i < x->ndim; i++) fits = s->shape[i + 1] == x->shape[i];
  WF_SHAPE_CHECK(fits, "halo: state %s for x %s, window %lld", wf_shape_text(s, t[0]), wf_shape_text(x, t[1]),
                 (long long)a->w);
  return check_table(call->in[2]);
}

static wf_status halo_infer(const wf_call *call, wf_desc *out, int *n_out) {
  const halo_attr *a = call->attr;
  const wf_tensor *x = call->in[0];
  WF_TRY(halo_check(call));
  wf_desc_like(&out[0], x);
  out[0].shape[0] += call->in[2]->shape[0] * (a->w - 1);
  out[1].dtype = x->dtype;
  out[1].ndim = x->ndim + 1;
  out[1].shape[0] = a->lanes;
  out[1].shape[1] = a->w - 1;
  for (int i = 1; i < x->ndim; i++) out[1].shape[i + 1] = x->shape[i];
  *n_out = a->leaves ? 2 : 1;
  return WF_OK;
}

/* x and state are passed for their shapes: any storage of the right shape does. */
static wf_status halo_vjp(const wf_vjp *g) {
  halo_attr a = *(const halo_attr *)g->attr;
  wf_tensor *out[2];
  uint32_t add = 0;
  int n = 0;
  a.want = 0;
  for (int i = 0; i < 2; i++) {
    if (!g->din[i]) continue;
    a.want |= 1 << i;
    add |= (g->add >> i & 1) << n;
    out[n++] = g->din[i];
  }
  if (!n) return WF_OK;
  wf_tensor *in[] = {g->in[0], g->in[1], g->in[2], g->dout[0], a.leaves ? g->dout[1] : NULL};
  return wf_op_run(g->ctx, &wf_op_halo_grad, 5, in, &a, n, out, add);
}

static wf_status halo_sample(wf_sample *s) {
  int64_t n, lanes, w = s->index == 2 ? 1 : 4;
  s->n_in = 3;
  s->in[2] = sample_rows(s, &n, &lanes);
  wf_tensor *wide = wf_sample_real(s, WF_SHAPE(n, 2, 5));
  s->in[0] = wf_view_raw(wide, 3, (int64_t[]){n, 2, 3}, (int64_t[]){10, 5, 1}, 2);
  s->in[1] = s->index == 1 ? NULL : wf_sample_real(s, WF_SHAPE(lanes, w - 1, 2, 3));
  *(halo_attr *)(void *)s->attr = (halo_attr){.w = w, .lanes = lanes, .leaves = s->index != 1};
  return WF_OK;
}

const wf_op wf_op_halo = {
    .name = "halo",
    .min_in = 3,
    .max_in = 3,
    .n_out = -1,
    .attr_size = sizeof(halo_attr),
    .optional = 1 << 1,
    .rowmajor = 1,
    .save_in = 1 << 2,
    .vjp_adds = 3,
    .nograd_in = 1 << 2,
    .infer = halo_infer,
    .vjp = halo_vjp,
    .cpu = &halo_cpu,
    .cuda = WF_CUDA_FN(halo),
    .sample = halo_sample,
    .n_samples = 4,
};

static wf_status halo_grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  WF_TRY(halo_check(call));
  int32_t want = ((const halo_attr *)call->attr)->want;
  *n_out = 0;
  for (int i = 0; i < 2; i++)
    if (want >> i & 1) wf_desc_like(&out[(*n_out)++], call->in[i]);
  return WF_OK;
}

static wf_status halo_grad_sample(wf_sample *s) {
  WF_TRY(halo_sample(s));
  halo_attr *a = (halo_attr *)(void *)s->attr;
  int64_t n = s->in[0]->shape[0] + s->in[2]->shape[0] * (a->w - 1);
  a->want = 1 | (s->in[1] ? 2 : 0);
  s->in[3] = wf_sample_real(s, WF_SHAPE(n, 2, 3));
  s->in[4] = a->leaves ? wf_sample_real(s, WF_SHAPE(a->lanes, a->w - 1, 2, 3)) : NULL;
  s->n_in = 5;
  return WF_OK;
}

const wf_op wf_op_halo_grad = {
    .name = "halo_grad",
    .min_in = 5,
    .max_in = 5,
    .n_out = -1,
    .attr_size = sizeof(halo_attr),
    .optional = 1 << 1 | 1 << 3 | 1 << 4,
    .strided = 3,
    .adds = 3,
    .rowmajor_out = 1,
    .infer = halo_grad_infer,
    WF_NONDIFF("gradient of halo; a copy back"),
    .cpu = &halo_grad_cpu,
    .cuda = WF_CUDA_FN(halo_grad),
    .sample = halo_grad_sample,
    .n_samples = 4,
};

wf_tensor *wf_halo(wf_ctx *c, wf_tensor *x, int64_t w, wf_tensor *state, const wf_rows *rows,
                   wf_tensor **state_out) {
  halo_attr a = {.w = w, .lanes = rows->n_lanes, .leaves = state_out != NULL};
  wf_status s = wf_state_given("halo", state, rows);
  if (s != WF_OK) {
    if (state_out) *state_out = wf_poison(c, s);
    return wf_poison(c, s);
  }
  wf_tensor *out[WF_MAX_OUT];
  wf_op_apply(c, &wf_op_halo, 3, (wf_tensor *[]){x, state, rows->table}, &a, out);
  if (state_out) *state_out = out[1];
  return out[0];
}

#endif
