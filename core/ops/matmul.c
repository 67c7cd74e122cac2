/* matmul: products of matrices and batches of them through BLAS, and the projections of a layer.
 *
 * A large product is threaded by BLAS; many small ones run beside each other, one thread each. A few rows
 * (decoding) are read-bound: each thread reads its share of the weight's rows once.
 */
#include "core/ops/matmul_impl.h"
#include "core/ops/ops_impl.h"

/* b continues a: `step` elements further on in one storage. */
static inline bool continues(const wf_tensor *a, const wf_tensor *b, int64_t step) {
  return a->storage == b->storage && b->offset == a->offset + step;
}

#ifdef WF_KERNEL_PASS
#  include "core/ops/blas_impl.h"
#  include "core/ops/lines_impl.h"
#  include "core/product_impl.h"

static wf_status gemm(wf_ctx *ctx, bool at, bool bt, int64_t m, int64_t n, int64_t k, const real *a,
                      int64_t lda, const real *b, int64_t ldb, bool add, real *c, int64_t ldc) {
#  ifdef WF_REAL_F32
  if (ctx->products && m > 0 && n > 0 && k > 0)
    wf_product_note(ctx, &(wf_product){at, bt, add, m, n, k, lda, ldb, ldc, a, b, c});
#  else
  (void)ctx;
#  endif
  return wf_gemm(at, bt, m, n, k, a, lda, b, ldb, add, c, ldc);
}

/* What one matmul multiplies: `batch` products of equal sizes. */
typedef struct products {
  wf_ctx *ctx;
  const wf_tensor *a, *b, *y;
  matrix ma, mb, my;
  int64_t m, n, k, batch;
  bool add;
} products;

/* The part-th of `parts` ranges of the batch. */
static wf_status some_products(const products *p, int part, int parts) {
  const wf_tensor *a = p->a, *b = p->b, *y = p->y;
  int last = y->ndim - 1;
  for (int64_t i = wf_range_begin(p->batch, part, parts); i < wf_range_begin(p->batch, part + 1, parts);
       i++) {
    int64_t rest = i, ao = 0, bo = 0, yo = 0;
    for (int d = last - 2; d >= 0; d--) {
      int64_t at = rest % y->shape[d];
      rest /= y->shape[d];
      ao += at * a->stride[d];
      bo += at * b->stride[d];
      yo += at * y->stride[d];
    }
    const real *pa = (const real *)wf_data(a) + ao, *pb = (const real *)wf_data(b) + bo;
    real *py = (real *)wf_data(y) + yo;
    if (p->my.t) /* a transposed destination: y^T = b^T a^T */
      WF_TRY(gemm(p->ctx, !p->mb.t, !p->ma.t, p->n, p->m, p->k, pb, p->mb.ld, pa, p->ma.ld, p->add, py,
                  p->my.ld));
    else
      WF_TRY(
          gemm(p->ctx, p->ma.t, p->mb.t, p->m, p->n, p->k, pa, p->ma.ld, pb, p->mb.ld, p->add, py, p->my.ld));
  }
  return WF_OK;
}

WF_KERNEL(matmul) {
  wf_tensor *a = call->in[0], *b = call->in[1], *y = call->out[0];
  products p = {.ctx = call->ctx, .y = y, .batch = 1, .add = call->add & 1};
  if (!as_blas(a, &p.ma)) {
    a = wf_contiguous_raw(call->ctx, a);
    if (wf_is_poison(a)) return call->ctx->status;
    as_blas(a, &p.ma);
  }
  if (!as_blas(b, &p.mb)) {
    b = wf_contiguous_raw(call->ctx, b);
    if (wf_is_poison(b)) return call->ctx->status;
    as_blas(b, &p.mb);
  }
  if (!as_blas(y, &p.my))
    return WF_FAIL(WF_EINTERNAL, "the product's destination has no dimension of stride 1");
  p.a = a;
  p.b = b;
  int last = y->ndim - 1;
  p.m = y->shape[last - 1];
  p.n = y->shape[last];
  p.k = a->shape[last];
  for (int d = 0; d < last - 1; d++) p.batch *= y->shape[d];
  if (p.batch == 0) return WF_OK;
  bool beside = p.batch > 1 && p.m * p.n * p.k < 256 * 256 * 256; /* small ones run beside each other */
  int parts = beside ? wf_threads_for(p.batch, p.m * p.n * p.k / 16 + 1) : 1;
  /* Never from a region of one thread: BLAS's own region would be nested there, with new threads each time.
   */
  if (parts <= 1) return some_products(&p, 0, 1);
  wf_status part_status[256];
  if (parts > 256) parts = 256;
#  pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int part = 0; part < parts; part++) part_status[part] = some_products(&p, part, parts);
  for (int part = 0; part < parts; part++)
    if (part_status[part] != WF_OK) return part_status[part];
  return WF_OK;
}

/* SUMS lie beside each other in a dot product. A weight is asked for AHEAD of its use: the hardware's own
 * guesses end with a page. */
enum { SUMS = 256 / sizeof(real), AHEAD = 6144 / sizeof(real) };

/* x . w over d; w is read for the first time, or again. */
static inline real dot(int64_t d, const real *x, const real *w, bool first) {
  real sum[SUMS] = {0}, s = 0;
  int64_t i = 0;
  for (; i + SUMS <= d; i += SUMS) {
    for (int k = 0; k < 4 && first; k++) __builtin_prefetch(w + i + AHEAD + k * (SUMS / 4));
    for (int j = 0; j < SUMS; j++) sum[j] += x[i + j] * w[i + j];
  }
  for (int j = 0; j < SUMS; j++) s += sum[j];
  for (; i < d; i++) s += x[i] * w[i];
  return s;
}

/* y[r, o] (+)= x[r] . w[o] for up to 4 rows x; the weight's rows are read once and in order, by their thread.
 */
static void few_rows(int64_t rows, int64_t out, int64_t d, const real *x, int64_t ldx, const real *w,
                     int64_t ldw, bool add, real *y, int64_t ldy) {
  WF_PARALLEL_FOR(o0, o1, out, d) {
    for (int64_t o = o0; o < o1; o++)
      for (int64_t r = 0; r < rows; r++) {
        real *q = y + r * ldy + o, s = dot(d, x + r * ldx, w + o * ldw, r == 0);
        *q = add ? *q + s : s;
      }
  }
}

/* y = x w^T (+ y) */
static wf_status project(wf_ctx *c, int64_t rows, int64_t out, int64_t d, const real *x, int64_t ldx,
                         const real *w, int64_t ldw, bool add, real *y, int64_t ldy) {
  if (rows <= 4) {
    few_rows(rows, out, d, x, ldx, w, ldw, add, y, ldy);
    return WF_OK;
  }
  return gemm(c, false, true, rows, out, d, x, ldx, w, ldw, add, y, ldy);
}

static int64_t row_stride(const wf_tensor *m) {
  return m->shape[0] > 1 ? m->stride[0] : m->shape[1] > 0 ? m->shape[1] : 1;
}

WF_KERNEL(linear) {
  wf_ctx *c = call->ctx;
  wf_tensor *x = wf_as_matrix(c, call->in[0]);
  if (wf_is_poison(x)) return c->status;
  int n = call->n_out;
  int64_t rows = x->shape[0], d = x->shape[1];
  wf_tensor *y[MAX_PROJECTIONS];
  bool bias = false;
  for (int i = 0; i < n; i++) {
    y[i] = wf_reshape_raw(call->out[i], 2, (int64_t[]){rows, wf_inner(call->out[i])});
    if (!y[i]) return WF_FAIL(WF_EINTERNAL, "a projection's destination is not a matrix");
    if (wf_is_poison(y[i])) return c->status;
    bias |= wf_in(call, BIAS + i) != NULL;
  }
  /* The product adds to the biases: BLAS passes over its destination once in any case. */
  if (bias)
    for (int i = 0; i < n; i++) {
      const wf_tensor *b = wf_in(call, BIAS + i);
      const real *pb = b ? wf_data(b) : NULL;
      real *py = wf_data(y[i]);
      int64_t width = y[i]->shape[1], ldy = row_stride(y[i]);
      WF_PARALLEL_FOR(r0, r1, rows, width) {
        for (int64_t r = r0; r < r1; r++)
          for (int64_t j = 0; j < width; j++) py[r * ldy + j] = pb ? pb[j] : R(0.0);
      }
    }
  for (int i = 0; i < n;) {
    const wf_tensor *w = wf_as_matrix(c, call->in[1 + i]);
    if (wf_is_poison(w)) return c->status;
    int64_t out = w->shape[0], ldw = row_stride(w), ldy = row_stride(y[i]);
    int j = i + 1;
    for (; j < n; j++) { /* adjacent weights with adjacent results are one product */
      const wf_tensor *next = call->in[1 + j];
      if (!continues(w, next, out * ldw) || !continues(y[i], y[j], out) || row_stride(next) != ldw ||
          (rows > 1 && row_stride(y[j]) != ldy))
        break;
      out += next->shape[0];
    }
    WF_TRY(project(c, rows, out, d, wf_data(x), row_stride(x), wf_data(w), ldw, bias, wf_data(y[i]), ldy));
    i = j;
  }
  return WF_OK;
}

#else

/* ---- matmul ---- */

WF_CPU(matmul)
WF_CUDA_DECLARE(matmul)

static wf_status matmul_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 3));
  const wf_tensor *a = call->in[0], *b = call->in[1];
  char ta[96], tb[96];
  bool fits = a->ndim >= 2 && a->ndim == b->ndim && a->shape[a->ndim - 1] == b->shape[b->ndim - 2];
  for (int d = 0; fits && d < a->ndim - 2; d++) fits = a->shape[d] == b->shape[d];
  WF_SHAPE_CHECK(fits, "no product of %s and %s", wf_shape_text(a, ta), wf_shape_text(b, tb));
  wf_desc_like(&out[0], a);
  out[0].shape[a->ndim - 1] = b->shape[b->ndim - 1];
  return WF_OK;
}

static wf_tensor *turned(wf_tensor *x) {
  int64_t shape[WF_MAX_DIMS], stride[WF_MAX_DIMS];
  for (int d = 0; d < x->ndim; d++) shape[d] = x->shape[d], stride[d] = x->stride[d];
  int r = x->ndim - 2, q = x->ndim - 1;
  shape[r] = x->shape[q], shape[q] = x->shape[r];
  stride[r] = x->stride[q], stride[q] = x->stride[r];
  return wf_view_raw(x, x->ndim, shape, stride, 0);
}

static wf_status product(wf_ctx *c, wf_tensor *a, wf_tensor *b, wf_tensor *y, bool add) {
  return wf_op_run(c, &wf_op_matmul, 2, (wf_tensor *[]){a, b}, NULL, 1, &y, add);
}

static wf_status matmul_vjp(const wf_vjp *g) {
  wf_ctx *c = g->ctx;
  if (g->din[0]) WF_TRY(product(c, g->dout[0], turned(g->in[1]), g->din[0], g->add & 1));
  if (g->din[1]) WF_TRY(product(c, turned(g->in[0]), g->dout[0], g->din[1], g->add >> 1 & 1));
  return WF_OK;
}

static void matmul_cost(const wf_call *call, double *flops, double *bytes) {
  const wf_tensor *a = call->in[0], *b = call->in[1], *y = call->out[0];
  *flops = 2.0 * (double)wf_numel(y) * (double)wf_inner(a);
  *bytes = (double)(wf_numel(a) + wf_numel(b) + wf_numel(y)) * (double)wf_dtype_size(y->dtype);
}

static wf_status matmul_sample(wf_sample *s) {
  s->n_in = 2;
  switch (s->index) {
  case 0:
    s->in[0] = wf_sample_real(s, WF_SHAPE(3, 5));
    s->in[1] = wf_sample_real(s, WF_SHAPE(5, 4));
    break;
  case 1: /* a batch, transposed on both sides */
    s->in[0] = turned(wf_sample_real(s, WF_SHAPE(2, 3, 5, 4)));
    s->in[1] = turned(wf_sample_real(s, WF_SHAPE(2, 3, 2, 5)));
    break;
  case 2: /* heads as a middle dimension */
    s->in[0] = wf_sample_real(s, WF_SHAPE(3, 2, 5));
    s->in[0] = wf_view_raw(s->in[0], 3, (int64_t[]){2, 3, 5}, (int64_t[]){5, 10, 1}, 0);
    s->in[1] = wf_sample_real(s, WF_SHAPE(2, 5, 1));
    break;
  case 3:
    s->in[0] = wf_sample_real(s, WF_SHAPE(3, 0));
    s->in[1] = wf_sample_real(s, WF_SHAPE(0, 4));
    break;
  default: /* no dimension of stride 1 */
    s->in[0] = wf_sample_real(s, WF_SHAPE(3, 10));
    s->in[0] = wf_view_raw(s->in[0], 2, (int64_t[]){3, 5}, (int64_t[]){10, 2}, 1);
    s->in[1] = wf_view_raw(wf_sample_real(s, WF_SHAPE(5)), 2, (int64_t[]){5, 4}, (int64_t[]){1, 0}, 0);
  }
  return WF_OK;
}

const wf_op wf_op_matmul = {
    .name = "matmul",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .strided = 3,
    .adds = 1,
    .save_in = 3,
    .vjp_adds = 3,
    .infer = matmul_infer,
    .vjp = matmul_vjp,
    .cpu = &matmul_cpu,
    .cuda = WF_CUDA_FN(matmul),
    .cost = matmul_cost,
    .sample = matmul_sample,
    .n_samples = 5,
};

wf_tensor *wf_matmul(wf_ctx *c, wf_tensor *a, wf_tensor *b) {
  return wf_op_apply(c, &wf_op_matmul, 2, (wf_tensor *[]){a, b}, NULL, NULL);
}

/* ---- linear: in[0] x, in[1..4] weights, in[5..8] biases ---- */

WF_CPU(linear)
WF_CUDA_DECLARE(linear)

static wf_status linear_infer(const wf_call *call, wf_desc *out, int *n_out) {
  WF_TRY(wf_want_real(call, (1u << (1 + 2 * MAX_PROJECTIONS)) - 1));
  const wf_tensor *x = call->in[0];
  char tx[96], tw[96];
  WF_SHAPE_CHECK(x->ndim >= 1, "a projection of a scalar");
  int n = 0;
  for (; n < MAX_PROJECTIONS && wf_in(call, 1 + n); n++) {
    const wf_tensor *w = call->in[1 + n], *b = wf_in(call, BIAS + n);
    WF_SHAPE_CHECK(w->ndim == 2 && w->shape[1] == wf_inner(x), "weight %s does not project %s",
                   wf_shape_text(w, tw), wf_shape_text(x, tx));
    WF_SHAPE_CHECK(!b || (b->ndim == 1 && b->shape[0] == w->shape[0]), "bias %s does not fit weight %s",
                   wf_shape_text(b, tx), wf_shape_text(w, tw));
    wf_desc_like(&out[n], x);
    out[n].shape[x->ndim - 1] = w->shape[0];
  }
  *n_out = n;
  return WF_OK;
}

/* Matrices of equal width, one after the other in memory, as one. */
static wf_tensor *stacked(wf_tensor *first, int64_t rows) {
  return wf_view_raw(first, 2, (int64_t[]){rows, first->shape[1]}, first->stride, 0);
}

static wf_status linear_grads(const wf_vjp *g) {
  wf_ctx *c = g->ctx;
  int n = g->n_out;
  wf_tensor *dy[MAX_PROJECTIONS], *dx = NULL, *x = g->in[0];
  bool add_x = g->add & 1;
  bool weights = false;
  for (int i = 0; i < n; i++) {
    dy[i] = g->dout[i] ? wf_as_matrix(c, g->dout[i]) : NULL;
    if (dy[i] && wf_is_poison(dy[i])) return c->status;
    weights |= g->din[1 + i] != NULL;
  }
  if (weights) {
    x = wf_as_matrix(c, x);
    if (wf_is_poison(x)) return c->status;
  }
  if (g->din[0]) {
    dx = wf_reshape_raw(g->din[0], 2, (int64_t[]){wf_outer(g->din[0]), wf_inner(g->din[0])});
    if (!dx) return WF_FAIL(WF_EINTERNAL, "a projection's gradient is not a matrix");
  }
  for (int i = 0; i < n;) {
    wf_tensor *w = g->in[1 + i], *dw = g->din[1 + i], *wide = dy[i];
    int64_t out = w->shape[0];
    int j = i + 1;
    bool one_x = dx && wide, one_w = dw && wide; /* extend while these still hold for the next one */
    for (; wide && j < n && dy[j]; j++) {
      wf_tensor *next = g->in[1 + j], *dnext = g->din[1 + j];
      if (!continues(wide, dy[j], out) || (wide->shape[0] > 1 && wide->stride[0] != dy[j]->stride[0])) break;
      if (one_x && !(next->stride[0] == w->stride[0] && continues(w, next, out * w->stride[0]))) break;
      if (!dw != !dnext) break;
      if (one_w && !(dnext->stride[0] == dw->stride[0] && continues(dw, dnext, out * dw->stride[0]) &&
                     (g->add >> (1 + i) & 1) == (g->add >> (1 + j) & 1)))
        break;
      out += next->shape[0];
    }
    if (wide) {
      wide = wf_view_raw(wide, 2, (int64_t[]){wide->shape[0], out}, (int64_t[]){wide->stride[0], 1}, 0);
      if (wf_is_poison(wide)) return c->status;
      if (dx) WF_TRY(product(c, wide, stacked(w, out), dx, add_x));
      if (dx) add_x = true;
      if (dw) WF_TRY(product(c, turned(wide), x, stacked(dw, out), g->add >> (1 + i) & 1));
    } else if (dw && !(g->add >> (1 + i) & 1)) {
      WF_TRY(wf_zero_raw(c, dw));
    }
    i = j;
  }
  if (dx && !add_x) WF_TRY(wf_zero_raw(c, dx));
  for (int i = 0; i < n; i++) {
    wf_tensor *db = BIAS + i < g->n_in ? g->din[BIAS + i] : NULL;
    if (!db) continue;
    bool add = g->add >> (BIAS + i) & 1;
    if (dy[i]) {
      struct {
        double scale;
        int64_t ndim, shape[WF_MAX_DIMS];
      } to = {1, 1, {db->shape[0]}};
      WF_TRY(wf_op_run(c, &wf_op_sum_to, 1, &dy[i], &to, 1, &db, add));
    } else if (!add) {
      WF_TRY(wf_zero_raw(c, db));
    }
  }
  return WF_OK;
}

static wf_status linear_vjp(const wf_vjp *g) {
  wf_scope s = wf_scope_open(g->ctx);
  wf_status st = linear_grads(g);
  wf_scope_close(g->ctx, s);
  return st;
}

static void linear_cost(const wf_call *call, double *flops, double *bytes) {
  double rows = (double)wf_outer(call->in[0]), d = (double)wf_inner(call->in[0]), out = 0;
  for (int i = 0; i < call->n_out; i++) out += (double)wf_inner(call->out[i]);
  *flops = 2 * rows * d * out;
  *bytes = (rows * (d + out) + d * out) * (double)wf_dtype_size(call->in[0]->dtype);
}

static wf_status linear_sample(wf_sample *s) {
  int64_t rows[] = {3, 6, 5, 0, 1}, d = 3;
  int i = s->index;
  s->n_in = i == 0 ? 2 : BIAS + MAX_PROJECTIONS;
  s->in[0] = i == 2 ? wf_sample_real(s, WF_SHAPE(rows[i], 2, d)) : wf_sample_real(s, WF_SHAPE(rows[i], d));
  if (i == 0 || i == 3 || i == 4) s->in[1] = wf_sample_real(s, WF_SHAPE(6, d));
  if (i == 4) s->in[BIAS] = wf_sample_real(s, WF_SHAPE(6));
  if (i == 1) { /* adjacent weights: views of one buffer; a row-strided x */
    wf_tensor *all = wf_sample_real(s, WF_SHAPE(7, d));
    s->in[0] = wf_view_raw(wf_sample_real(s, WF_SHAPE(rows[i], 5)), 2, (int64_t[]){rows[i], d},
                           (int64_t[]){5, 1}, 2);
    s->in[1] = wf_view_raw(all, 2, (int64_t[]){4, d}, NULL, 0);
    s->in[2] = wf_view_raw(all, 2, (int64_t[]){2, d}, NULL, 4 * d);
    s->in[3] = wf_view_raw(all, 2, (int64_t[]){1, d}, NULL, 6 * d);
    s->in[BIAS + 1] = wf_sample_real(s, WF_SHAPE(2));
  }
  if (i == 2) { /* separate ones */
    s->in[1] = wf_sample_real(s, WF_SHAPE(4, d));
    s->in[2] = wf_sample_real(s, WF_SHAPE(1, d));
    s->in[BIAS] = wf_sample_real(s, WF_SHAPE(4));
  }
  return WF_OK;
}

const wf_op wf_op_linear = {
    .name = "linear",
    .min_in = 2,
    .max_in = BIAS + MAX_PROJECTIONS,
    .n_out = -1,
    .flags = WF_OP_JOINED_OUT,
    .optional = 0x1fc, /* all but x and the first weight */
    .rowmajor = 0x1f,
    .save_in = 0x1f,
    .vjp_adds = 0x1ff,
    .infer = linear_infer,
    .vjp = linear_vjp,
    .cpu = &linear_cpu,
    .cuda = WF_CUDA_FN(linear),
    .cost = linear_cost,
    .sample = linear_sample,
    .n_samples = 5,
};

void wf_linear_n(wf_ctx *c, wf_tensor *x, int count, wf_tensor *const *w, wf_tensor *const *b,
                 wf_tensor **y) {
  wf_tensor *in[BIAS + MAX_PROJECTIONS] = {x}, *made[WF_MAX_OUT];
  if (count < 1 || count > MAX_PROJECTIONS) {
    wf_tensor *bad =
        wf_poison(c, WF_FAIL(WF_EINVAL, "%d projections at once; 1 to %d", count, MAX_PROJECTIONS));
    for (int i = 0; i < count; i++) y[i] = bad;
    return;
  }
  int n_in = 1 + count;
  for (int i = 0; i < count; i++) {
    in[1 + i] = w[i];
    in[BIAS + i] = b ? b[i] : NULL;
    if (in[BIAS + i]) n_in = BIAS + i + 1;
  }
  wf_op_apply(c, &wf_op_linear, n_in, in, NULL, made);
  for (int i = 0; i < count; i++) y[i] = made[i];
}

wf_tensor *wf_linear(wf_ctx *c, wf_tensor *x, wf_tensor *w, wf_tensor *b) {
  wf_tensor *y;
  wf_linear_n(c, x, 1, &w, &b, &y);
  return y;
}

#endif
