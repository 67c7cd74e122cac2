/* attend against sums written out pair by pair, in double: what its tests share. */
#ifndef WF_TESTS_CORE_ATTEND_TEST_H
#define WF_TESTS_CORE_ATTEND_TEST_H

#include "tests/core/seq_test.h"

/* ---- the formula ---- */

typedef struct problem {
  int64_t rows;
  wf_attend_span span[4];
  int64_t n, m, heads, kv, k, v;
  wf_attend_options o;
  double terms; /* 0: none; 1: plain numbers; below 0: sums over one row of about that a token, far from 0 */
  bool sink;
} problem;

enum { Q, K, V, A, B, Z, INPUTS };

typedef struct numbers_of {
  int64_t count[INPUTS];
  double *in[INPUTS], *grad[INPUTS]; /* NULL where the problem has none */
  double *o, *lse, *dout, *dlse;
} numbers_of;

static inline numbers_of make(const problem *p) {
  numbers_of x = {.count = {p->n * p->heads * p->k, p->m * p->kv * p->k, p->m * p->kv * p->v,
                            p->terms ? p->n * p->heads : 0, p->terms ? p->m * p->heads : 0,
                            p->sink ? p->heads : 0}};
  static const char *const site[] = {"q", "k", "v", "a", "b", "z"};
  for (int i = 0; i < INPUTS; i++)
    if (i < A || (i < Z ? p->terms : p->sink)) {
      x.in[i] = numbers(x.count[i], site[i]);
      x.grad[i] = doubles(x.count[i]);
    }
  double far = 3e5;
  for (int64_t i = 0; i < x.count[A] && p->terms < 0; i++) {
    if (i % p->heads == 0) far += p->terms;
    x.in[A][i] = x.in[B][i] = far + p->terms * (double)(i / p->heads * (i % p->heads)) + 0.1 * x.in[A][i];
  }
  x.o = doubles(p->n * p->heads * p->v);
  x.lse = doubles(p->n * p->heads);
  for (int64_t i = 0; i < p->n * p->heads; i++) /* of no row */
    x.lse[i] = p->o.kind == WF_ATTEND_SIGMOID ? 0 : -INFINITY;
  x.dout = numbers(p->n * p->heads * p->v, "do");
  x.dlse = numbers(p->n * p->heads, "dlse");
  return x;
}
static inline void drop(numbers_of *x) {
  for (int i = 0; i < INPUTS; i++) free(x->in[i]), free(x->grad[i]);
  free(x->o), free(x->lse), free(x->dout), free(x->dlse);
}

static inline int64_t stride_of(const problem *p) {
  return p->o.stride > 1 ? p->o.stride : 1;
}

/* One query of one head: scores, probabilities, output, and all it sends back. */
static inline void one_query(const problem *p, numbers_of *x, const wf_attend_span *span, int64_t t,
                             int64_t h) {
  int64_t step = stride_of(p), at = (span->query + t * step) * p->heads + h, g = h * p->kv / p->heads;
  int64_t own = span->distance + t, lo = p->o.window && own >= p->o.window ? own - p->o.window + 1 : 0;
  int64_t hi = own < span->keys ? own + 1 : span->keys;
  bool sigmoid = p->o.kind == WF_ATTEND_SIGMOID;
  double *score = doubles(hi), *tanh_of = doubles(hi), *prob = doubles(hi), *dprob = doubles(hi);
  const double *q = x->in[Q] + at * p->k;
  double max = p->sink ? x->in[Z][h] : -INFINITY, sum = 0, delta = 0;
  for (int64_t j = lo; j < hi; j++) {
    const double *k = x->in[K] + ((span->key + j * step) * p->kv + g) * p->k;
    for (int64_t c = 0; c < p->k; c++) score[j] += p->o.scale * q[c] * k[c];
    if (p->o.softcap > 0) {
      tanh_of[j] = tanh(score[j] / p->o.softcap);
      score[j] = p->o.softcap * tanh_of[j];
    }
    if (p->terms) score[j] += x->in[A][at] - x->in[B][(span->key + j * step) * p->heads + h];
    max = fmax(max, score[j]);
  }
  for (int64_t j = lo; j < hi; j++) sum += exp(score[j] - max);
  if (p->sink) sum += exp(x->in[Z][h] - max);
  x->lse[at] = sigmoid ? 0 : max + log(sum);
  for (int64_t j = lo; j < hi; j++) {
    const double *v = x->in[V] + ((span->key + j * step) * p->kv + g) * p->v, *d = x->dout + at * p->v;
    prob[j] = sigmoid ? 1 / (1 + exp(log((double)p->o.len_bias) - score[j])) : exp(score[j] - max) / sum;
    for (int64_t c = 0; c < p->v; c++) {
      x->o[at * p->v + c] += prob[j] * v[c];
      dprob[j] += d[c] * v[c];
      x->grad[V][((span->key + j * step) * p->kv + g) * p->v + c] += prob[j] * d[c];
    }
  }
  for (int64_t c = 0; c < p->v; c++) delta += x->o[at * p->v + c] * x->dout[at * p->v + c];
  if (!sigmoid) delta -= x->dlse[at];
  if (p->sink) x->grad[Z][h] -= exp(x->in[Z][h] - x->lse[at]) * delta;
  for (int64_t j = lo; j < hi; j++) {
    int64_t key = (span->key + j * step) * p->kv + g;
    double ds = sigmoid ? prob[j] * (1 - prob[j]) * dprob[j] : prob[j] * (dprob[j] - delta);
    if (p->terms) {
      x->grad[A][at] += ds;
      x->grad[B][(span->key + j * step) * p->heads + h] -= ds;
    }
    if (p->o.softcap > 0) ds *= 1 - tanh_of[j] * tanh_of[j];
    for (int64_t c = 0; c < p->k; c++) {
      x->grad[Q][at * p->k + c] += p->o.scale * ds * x->in[K][key * p->k + c];
      x->grad[K][key * p->k + c] += p->o.scale * ds * q[c];
    }
  }
  free(score), free(tanh_of), free(prob), free(dprob);
}

static inline void fill(const problem *p, numbers_of *x) {
  for (int64_t r = 0; r < p->rows; r++)
    for (int64_t t = 0; t < p->span[r].queries; t++)
      for (int64_t h = 0; h < p->heads; h++) one_query(p, x, &p->span[r], t, h);
}
static inline numbers_of expected(const problem *p) {
  numbers_of x = make(p);
  fill(p, &x);
  return x;
}

/* ---- the op ---- */

typedef struct tensors {
  wf_tensor *in[7], *out[2], *dout[2], *grad[6];
} tensors;

static const int input_of[INPUTS] = {0, 1, 2, 4, 5, 6};

static inline tensors run(const problem *p, const numbers_of *x, wf_dtype dtype) {
  tensors t = {.dout = {NULL}};
  t.in[0] = tensor(dtype, WF_SHAPE(p->n, p->heads, p->k), x->in[Q]);
  t.in[1] = tensor(dtype, WF_SHAPE(p->m, p->kv, p->k), x->in[K]);
  t.in[2] = tensor(dtype, WF_SHAPE(p->m, p->kv, p->v), x->in[V]);
  t.in[3] = wf_attend_spans(ctx, p->rows, p->span);
  t.in[4] = tensor(WF_F64, WF_SHAPE(p->n, p->heads), x->in[A]);
  t.in[5] = tensor(WF_F64, WF_SHAPE(p->m, p->heads), x->in[B]);
  t.in[6] = tensor(dtype, WF_SHAPE(p->heads), x->in[Z]);
  wf_op_apply(ctx, &wf_op_attend, 7, t.in, &p->o, t.out);
  ok(wf_ctx_check(ctx));
  t.dout[0] = tensor(dtype, WF_SHAPE(p->n, p->heads, p->v), x->dout);
  t.dout[1] = tensor(dtype, WF_SHAPE(p->n, p->heads), x->dlse);
  return t;
}

/* Gradients by the op's vjp into t->grad; `add` to what is there, else into garbage. */
static inline void backward(const problem *p, tensors *t, bool add) {
  wf_tensor *din[7] = {NULL};
  for (int i = 0; i < INPUTS; i++) {
    wf_tensor *x = t->in[input_of[i]];
    if (!x) continue;
    if (!t->grad[i]) {
      t->grad[i] = wf_empty_like(ctx, "test", x);
      memset(wf_data(t->grad[i]), 0x7f, (size_t)wf_numel(x) * wf_dtype_size(x->dtype));
    }
    din[input_of[i]] = t->grad[i];
  }
  wf_vjp g = {ctx, &wf_op_attend, &p->o, 7, 2, t->in, t->out, t->dout, din, add ? 0x77 : 0};
  ok(wf_op_attend.vjp(&g));
}

/* Log-sum-exps: -inf exactly where it is expected. */
static inline void near_lse(int64_t n, double *got, const double *want, double tolerance) {
  double *finite = doubles(n);
  for (int64_t i = 0; i < n; i++) {
    ck_assert_msg((got[i] == -INFINITY) == (want[i] == -INFINITY), "lse[%lld] is %g, expected %g",
                  (long long)i, got[i], want[i]);
    if (want[i] == -INFINITY)
      got[i] = 0;
    else
      finite[i] = want[i];
  }
  near("lse", n, got, finite, tolerance, 0);
  free(finite);
}

static inline void compare(const problem *p, wf_dtype dtype, double tolerance) {
  static const char *const name[] = {"dq", "dk", "dv", "da", "db", "dz"};
  numbers_of x = expected(p);
  wf_scope s = wf_scope_open(ctx);
  tensors t = run(p, &x, dtype);
  double *o = values(t.out[0]), *lse = values(t.out[1]);
  near("o", p->n * p->heads * p->v, o, x.o, tolerance, 0);
  near_lse(p->n * p->heads, lse, x.lse, tolerance);
  free(o), free(lse);
  for (int twice = 0; twice < 2; twice++) { /* into garbage, then added once more */
    backward(p, &t, twice);
    for (int i = 0; i < INPUTS; i++) {
      if (!t.grad[i]) continue;
      double *got = values(t.grad[i]);
      for (int64_t e = 0; e < x.count[i]; e++) got[e] /= twice + 1;
      near(name[i], x.count[i], got, x.grad[i], tolerance, i >= A ? 0.3 : 0.1);
      free(got);
    }
  }
  wf_scope_close(ctx, s);
  drop(&x);
}

static inline void check(problem p) {
  compare(&p, WF_F64, 1e-12);
  compare(&p, WF_F32, 3e-6);
}

#endif
