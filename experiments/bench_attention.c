/* The attention row of `weft bench`: 8 heads of 64 over 4096 tokens, causal, forward and backward.
 *
 * Its products alone: queries and keys in blocks; of each block that some query sees, q k^T and p v forward,
 * and backward q k^T again, do v^T, p^T do, ds k and ds^T q: seven products of equal cost. The heads run
 * beside each other, one thread each, as in the kernel. The block is larger than the kernel's, so that BLAS
 * reaches its rate; what is computed beyond the diagonal is part of the floor.
 */
#include <cblas.h>

#include "autograd/tape.h"
#include "core/memory.h"
#include "core/ops.h"
#include "experiments/bench.h"

enum { T = 4096, HEADS = 8, K = 64, BLOCK = 256 };

/* One head's operands of the products alone. */
typedef struct head {
  float q[T * K], k[T * K], v[T * K], o[T * K], dq[T * K], dk[T * K], dv[T * K];
  float p[BLOCK * BLOCK], ds[BLOCK * BLOCK];
} head;

typedef struct attention {
  wf_ctx *c;
  wf_tape *tape;
  wf_tensor *x[3], *cotangent, *span; /* q, k, v */
  wf_leaf leaf[3];
  head *heads;
} attention;

static wf_status step(void *arg) {
  attention *a = arg;
  wf_ctx *c = a->c;
  wf_scope s = wf_scope_open(c);
  wf_status st = WF_OK;
  for (int i = 0; i < 3 && st == WF_OK; i++) {
    wf_leaf_reset(&a->leaf[i]);
    st = wf_tape_watch(a->tape, a->x[i], &a->leaf[i]);
  }
  if (st == WF_OK) {
    wf_attend_options o = {.scale = 0.125, .kind = WF_ATTEND_SOFTMAX};
    wf_tape_record(a->tape);
    wf_tensor *y = wf_attend(c, a->x[0], a->x[1], a->x[2], a->span, NULL, NULL, NULL, &o);
    wf_tape_pause(a->tape);
    st = wf_is_poison(y) ? wf_ctx_check(c) : wf_backward(a->tape, 1, &y, &a->cotangent);
  }
  wf_scope_close(c, s);
  return st;
}

/* c [m, n] = op(a) op(b) + (add ? c : 0) */
static void product(bool at, bool bt, int m, int n, int k, const float *a, const float *b, bool add,
                    float *c) {
  cblas_sgemm(CblasRowMajor, at ? CblasTrans : CblasNoTrans, bt ? CblasTrans : CblasNoTrans, m, n, k, 1, a,
              at ? m : k, b, bt ? k : n, add ? 1 : 0, c, n);
}

static void head_products(head *h) {
  for (int i = 0; i < T; i += BLOCK)
    for (int j = 0; j <= i; j += BLOCK) {
      const float *q = h->q + i * K, *k = h->k + j * K, *v = h->v + j * K, *d = h->o + i * K;
      product(false, true, BLOCK, BLOCK, K, q, k, false, h->p);
      product(false, false, BLOCK, K, BLOCK, h->p, v, j > 0, h->o + i * K);
      product(false, true, BLOCK, BLOCK, K, q, k, false, h->p);
      product(false, true, BLOCK, BLOCK, K, d, v, false, h->ds);
      product(true, false, BLOCK, K, BLOCK, h->p, d, i > j, h->dv + j * K);
      product(false, false, BLOCK, K, BLOCK, h->ds, k, j > 0, h->dq + i * K);
      product(true, false, BLOCK, K, BLOCK, h->ds, q, i > j, h->dk + j * K);
    }
}

static wf_status products(void *arg) {
  attention *a = arg;
#pragma omp parallel for schedule(dynamic, 1)
  for (int h = 0; h < HEADS; h++) head_products(&a->heads[h]);
  return WF_OK;
}

static wf_status measure(attention *a, const wf_bench_options *o, wf_bench_row *row) {
  wf_ctx *c = a->c;
  wf_sample s = {.ctx = c, .real = WF_F32};
  for (int i = 0; i < 3; i++) {
    a->x[i] = wf_sample_real(&s, WF_SHAPE(T, HEADS, K));
    a->leaf[i].grad = wf_empty_like(c, "gradient", a->x[i]);
  }
  a->cotangent = wf_sample_real(&s, WF_SHAPE(T, HEADS, K));
  a->span = wf_attend_spans(c, 1, &(wf_attend_span){.queries = T, .keys = T});
  WF_TRY(wf_ctx_check(c));
  WF_TRY(wf_tape_create(c, &a->tape));
  for (int i = 0; i < 3; i++) WF_TRY(step(a));
  wf_bench_memory_peak(row);
  WF_ALLOC(a->heads, "products", HEADS * sizeof *a->heads);
  for (size_t i = 0; i < HEADS * sizeof *a->heads / sizeof(float); i++)
    ((float *)(void *)a->heads)[i] = 0x1p-10f;
  for (int i = 0; i < 2; i++) WF_TRY(products(a));
  double blocks = (double)(T / BLOCK) * (T / BLOCK + 1) / 2 * HEADS;
  row->tokens = T;
  row->n_products = 7 * blocks;
  row->products_flops = row->n_products * 2.0 * BLOCK * BLOCK * K;
  WF_TRY(wf_bench_measure(o, step, products, a, row));
  row->floor = "the products of its visible blocks alone";
  row->floor_s = row->products_s;
  return WF_OK;
}

wf_status wf_bench_attention(wf_ctx *c, const wf_bench_options *o, wf_bench_row *row) {
  attention a = {.c = c};
  wf_scope scope = wf_scope_open(c);
  wf_status s = measure(&a, o, row);
  wf_tape_free(a.tape);
  wf_free(a.heads);
  wf_scope_close(c, scope);
  return s;
}
