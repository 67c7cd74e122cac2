/* dropout: element j of a token is kept when its word of Philox (core/rng.h: key; step, sequence, place,
 * j / 4) reaches p 2^32. The gradient draws the same words again.
 *
 * The rounds of Philox 4x32-10 are written out over many blocks at once, for the compiler to vectorise; the
 * tests compare them with wf_rng_draw(). */
#include "core/ops/attr_impl.h"
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS

enum { BLOCKS = 32 };

/* Where vectors multiply 64-bit numbers, keeping the 32-bit ones in such lanes saves packing them each round.
 */
#  ifdef __AVX512DQ__
typedef uint64_t lane;
#  else
typedef uint32_t lane;
#  endif

/* words[b + w BLOCKS] = word w of block first + b */
static void draw(const dropout_attr *o, uint32_t seq, uint32_t place, uint32_t first, uint32_t *words) {
  const uint32_t step = (uint32_t)o->step;
#  pragma omp simd
  for (int b = 0; b < BLOCKS; b++) {
    lane c0 = first + (uint32_t)b, c1 = place, c2 = seq, c3 = step;
    uint32_t k0 = o->key.k[0], k1 = o->key.k[1];
    for (int round = 0; round < 10; round++) {
      uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
      c0 = (lane)(p1 >> 32) ^ c1 ^ k0;
      c2 = (lane)(p0 >> 32) ^ c3 ^ k1;
      c1 = (lane)(p1 & 0xFFFFFFFFu);
      c3 = (lane)(p0 & 0xFFFFFFFFu);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    words[b] = (uint32_t)c0;
    words[b + BLOCKS] = (uint32_t)c1;
    words[b + 2 * BLOCKS] = (uint32_t)c2;
    words[b + 3 * BLOCKS] = (uint32_t)c3;
  }
}

WF_KERNEL(dropout) {
  const dropout_attr *o = call->attr;
  const wf_tensor *x = call->in[0], *y = call->out[0];
  const int64_t *key = wf_data(call->in[1]);
  const int64_t n = x->shape[0], d = x->shape[1], xn = x->stride[0], yn = y->stride[0];
  const bool add = call->add & 1;
  const uint32_t limit = (uint32_t)(o->p * 0x1p32);
  const real scale = (real)(1 / (1 - o->p));
  WF_PARALLEL_FOR(t0, t1, n, d * 8) {
    uint32_t words[4 * BLOCKS];
    real factor[4 * BLOCKS];
    for (int64_t t = t0; t < t1; t++) {
      const real *px = (const real *)wf_data(x) + t * xn;
      real *py = (real *)wf_data(y) + t * yn;
      for (int64_t j0 = 0; j0 < d; j0 += 4 * BLOCKS) {
        draw(o, (uint32_t)key[2 * t], (uint32_t)key[2 * t + 1], (uint32_t)(j0 / 4), words);
        for (int w = 0; w < 4; w++)
          for (int b = 0; b < BLOCKS; b++)
            factor[4 * b + w] = words[b + w * BLOCKS] >= limit ? scale : R(0.0);
        int64_t m = d - j0 < 4 * BLOCKS ? d - j0 : 4 * BLOCKS;
        if (add) {
#  pragma omp simd
          for (int64_t j = 0; j < m; j++) py[j0 + j] += px[j0 + j] * factor[j];
        } else {
#  pragma omp simd
          for (int64_t j = 0; j < m; j++) py[j0 + j] = px[j0 + j] * factor[j];
        }
      }
    }
  }
  return WF_OK;
}

#else
#  include "core/memory.h"

WF_CPU(dropout)
WF_CUDA_DECLARE(dropout)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const dropout_attr *o = call->attr;
  const wf_tensor *x = call->in[0], *key = call->in[1];
  char a[96], b[96];
  WF_TRY(wf_want_real(call, 1));
  WF_SHAPE_CHECK(o->p >= 0 && o->p < 1, "dropout of %g; 0 up to less than 1 expected", o->p);
  WF_SHAPE_CHECK(x->ndim == 2 && key->ndim == 2 && key->dtype == WF_I64 && key->shape[0] == x->shape[0] &&
                     key->shape[1] == 2,
                 "dropout of %s with keys %s; [n, d] and [n, 2] i64 expected", wf_shape_text(x, a),
                 wf_shape_text(key, b));
  wf_desc_like(&out[0], x);
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  return wf_op_run(g->ctx, &wf_op_dropout, 2, (wf_tensor *[]){g->dout[0], g->in[1]}, g->attr, 1, &g->din[0],
                   g->add & 1);
}

static wf_status sample(wf_sample *s) {
  static const int64_t shape[][2] = {{5, 7}, {0, 4}, {3, 150}, {4, 6}};
  int64_t n = shape[s->index][0], key[10] = {0, 0, 0, 1, 3, 0, 3, 1, 70000, 123456};
  *(dropout_attr *)(void *)s->attr = (dropout_attr){0.3, wf_rng_key_make(1, "dropout", "sample"), 17};
  s->n_in = 2;
  s->in[0] = wf_sample_real(s, 2, shape[s->index]);
  if (s->index == 3)
    s->in[0] = wf_view_raw(wf_sample_real(s, WF_SHAPE(4, 9)), 2, shape[3], (int64_t[]){9, 1}, 3);
  s->in[1] = wf_from_host(s->ctx, "sample", WF_I64, WF_SHAPE(n, 2), key);
  return WF_OK;
}

const wf_op wf_op_dropout = {
    .name = "dropout",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_size = sizeof(dropout_attr),
    .flags = WF_OP_RANDOM,
    .rowmajor = 1,
    .adds = 1,
    .save_in = 2,
    .vjp_adds = 1,
    .nograd_in = 2,
    .infer = infer,
    .vjp = vjp,
    .cpu = &dropout_cpu,
    .cuda = WF_CUDA_FN(dropout),
    .sample = sample,
    .n_samples = 4,
};

static wf_tensor *drop(wf_ctx *c, wf_tensor *x, wf_tensor *keys, double p, wf_rng_key key, int64_t step) {
  dropout_attr o = {p, key, step};
  return wf_op_apply(c, &wf_op_dropout, 2, (wf_tensor *[]){x, keys}, &o, NULL);
}

wf_tensor *wf_dropout(wf_ctx *c, wf_tensor *x, const wf_rows *rows, double p, wf_rng_key key, int64_t step) {
  return p == 0 ? x : drop(c, x, rows->key, p, key, step);
}

wf_tensor *wf_dropout_documents(wf_ctx *c, wf_tensor *x, const wf_rows *rows, double p, wf_rng_key key,
                                int64_t step) {
  if (p == 0) return x;
  int64_t *start = wf_alloc("rows", (size_t)rows->n * 2 * sizeof *start);
  if (!start) return wf_poison(c, WF_ENOMEM);
  for (int64_t r = 0; r < rows->n; r++) {
    start[2 * r] = rows->row[r].seq;
    start[2 * r + 1] = rows->row[r].place - rows->row[r].pos;
  }
  x = drop(c, x, wf_from_host(c, "rows", WF_I64, WF_SHAPE(rows->n, 2), start), p, key, step);
  wf_free(start);
  return x;
}

#endif
