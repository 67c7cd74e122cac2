/* attend against sums written out pair by pair, in double: forward and every gradient, in float64 and
 * float32, for odd sizes, grouped heads, windows, several rows, shared and unread keys; causality bit by bit;
 * any cut of a sequence; the keys in blocks; and the append-only cache. */
#include "tests/core/seq_test.h"

#include <omp.h>

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

static numbers_of make(const problem *p) {
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
static void drop(numbers_of *x) {
  for (int i = 0; i < INPUTS; i++) free(x->in[i]), free(x->grad[i]);
  free(x->o), free(x->lse), free(x->dout), free(x->dlse);
}

static int64_t stride_of(const problem *p) {
  return p->o.stride > 1 ? p->o.stride : 1;
}

/* One query of one head: scores, probabilities, output, and all it sends back. */
static void one_query(const problem *p, numbers_of *x, const wf_attend_span *span, int64_t t, int64_t h) {
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

static void fill(const problem *p, numbers_of *x) {
  for (int64_t r = 0; r < p->rows; r++)
    for (int64_t t = 0; t < p->span[r].queries; t++)
      for (int64_t h = 0; h < p->heads; h++) one_query(p, x, &p->span[r], t, h);
}
static numbers_of expected(const problem *p) {
  numbers_of x = make(p);
  fill(p, &x);
  return x;
}

/* ---- the op ---- */

typedef struct tensors {
  wf_tensor *in[7], *out[2], *dout[2], *grad[6];
} tensors;

static const int input_of[INPUTS] = {0, 1, 2, 4, 5, 6};

static tensors run(const problem *p, const numbers_of *x, wf_dtype dtype) {
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
static void backward(const problem *p, tensors *t, bool add) {
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
static void near_lse(int64_t n, double *got, const double *want, double tolerance) {
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

static void compare(const problem *p, wf_dtype dtype, double tolerance) {
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

static void check(problem p) {
  compare(&p, WF_F64, 1e-12);
  compare(&p, WF_F32, 3e-6);
}

START_TEST(test_sizes) {
  open_cpu();
  static const int64_t lens[] = {1, 2, 63, 64, 65, 100, 129, 300};
  for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
    int64_t t = lens[i];
    check((problem){1, {{0, t, 0, 0, t}}, t, t, 2, 2, 16, 16, {.scale = 0.25}, false, false});
    check((problem){1, {{0, t, 0, 0, t}}, t, t, 6, 2, 5, 7, {.scale = 0.4, .window = 17}, true, true});
    check((problem){1, {{0, t, 0, 0, t}}, t, t, 1, 1, 33, 3, {.scale = 0.2, .softcap = 1.5}, true, false});
    check((problem){1,
                    {{0, t, 0, 0, t}},
                    t,
                    t,
                    3,
                    1,
                    6,
                    20,
                    {.scale = 0.4, .kind = WF_ATTEND_SIGMOID, .len_bias = t},
                    false,
                    false});
  }
  close_cpu();
}
END_TEST

START_TEST(test_long) {
  open_cpu();
  check((problem){
      1, {{0, 1000, 0, 0, 1000}}, 1000, 1000, 2, 1, 20, 12, {.scale = 0.2, .softcap = 3}, true, true});
  check((problem){
      1, {{0, 1000, 0, 0, 1000}}, 1000, 1000, 1, 1, 8, 8, {.scale = 0.3, .window = 200}, false, false});
  close_cpu();
}
END_TEST

/* Sums of log gates far from 0 lose nothing: only their differences are rounded. */
START_TEST(test_running_sums) {
  open_cpu();
  static const double gates[] = {-1e-4, -0.1, -50};
  for (int i = 0; i < 3; i++) {
    problem p = {1, {{0, 150, 0, 0, 150}}, 150, 150, 2, 1, 20, 12, {.scale = 0.2}, gates[i], false};
    check(p);
    p.o.window = 40;
    check(p);
    p.span[0].queries = p.span[0].keys = p.n = p.m = 3; /* few queries */
    check(p);
  }
  check((problem){1, {{0, 1000, 0, 0, 1000}}, 1000, 1000, 1, 1, 8, 8, {.scale = 0.2}, -5, false});
  close_cpu();
}
END_TEST

/* Rows of different length, keys before them, keys nobody reads, rows that share keys, queries of no row. */
START_TEST(test_rows) {
  open_cpu();
  check((problem){4,
                  {{0, 70, 3, 0, 70}, {70, 1, 90, 5, 6}, {71, 130, 100, 70, 200}, {201, 3, 310, 0, 3}},
                  204,
                  320,
                  4,
                  2,
                  9,
                  6,
                  {.scale = 0.3},
                  true,
                  true});
  check((problem){3,
                  {{0, 40, 10, 100, 140}, {40, 90, 10, 140, 230}, {130, 20, 0, 0, 20}},
                  150,
                  260,
                  2,
                  2,
                  8,
                  8,
                  {.scale = 0.3, .window = 64},
                  true,
                  false});
  problem gap = {1, {{2, 10, 1, 0, 10}}, 14, 12, 2, 1, 4, 4, {.scale = 0.5}, true, false};
  numbers_of x = expected(&gap);
  wf_scope s = wf_scope_open(ctx);
  tensors t = run(&gap, &x, WF_F64);
  backward(&gap, &t, false);
  double *o = values(t.out[0]), *dq = values(t.grad[Q]), *da = values(t.grad[A]);
  near("o", 14 * 8, o, x.o, 1e-12, 0);
  near("dq", 14 * 8, dq, x.grad[Q], 1e-12, 0);
  near("da", 14 * 2, da, x.grad[A], 1e-12, 1);
  free(o), free(dq), free(da);
  wf_scope_close(ctx, s);
  drop(&x);
  check((problem){0, {{0}}, 0, 5, 2, 1, 4, 4, {.scale = 0.5}, true, true});
  close_cpu();
}
END_TEST

/* Rows whose tokens stand apart: interleaved ones, some with keys before them, two that share keys. */
START_TEST(test_strides) {
  open_cpu();
  for (int64_t window = 0; window < 40; window += 20) {
    check((problem){3,
                    {{0, 40, 0, 0, 40}, {1, 40, 1, 0, 40}, {2, 40, 2, 0, 40}},
                    120,
                    120,
                    2,
                    1,
                    9,
                    6,
                    {.scale = 0.3, .stride = 3, .window = window},
                    true,
                    true});
    check((problem){4,
                    {{0, 70, 3, 0, 70}, {1, 70, 4, 30, 100}, {140, 2, 201, 5, 7}, {141, 1, 204, 69, 70}},
                    143,
                    400,
                    2,
                    2,
                    5,
                    7,
                    {.scale = 0.3, .stride = 2, .window = window},
                    true,
                    false});
    check((problem){2,
                    {{0, 2, 5, 30, 32}, {3, 2, 21, 0, 2}},
                    11,
                    330,
                    2,
                    1,
                    5,
                    7,
                    {.scale = 0.3, .stride = 7, .window = window, .kind = WF_ATTEND_SIGMOID, .len_bias = 9},
                    true,
                    false});
  }
  close_cpu();
}
END_TEST

/* The same numbers, to rounding, from any number of threads: parts of rows, stretches of keys. */
START_TEST(test_threads) {
  open_cpu();
  int before = omp_get_max_threads();
  for (int threads = 1; threads <= 3; threads++) {
    omp_set_num_threads(threads);
    check((problem){1, {{0, 400, 0, 0, 400}}, 400, 400, 2, 1, 8, 4, {.scale = 0.3}, true, true});
    check((problem){1, {{0, 1, 0, 3000, 3001}}, 1, 3001, 2, 1, 24, 20, {.scale = 0.3}, true, true});
    check((problem){
        1, {{0, 3, 0, 900, 903}}, 3, 903, 2, 1, 24, 20, {.scale = 0.3, .window = 500}, false, false});
    check((problem){1,
                    {{0, 2, 0, 900, 902}},
                    2,
                    902,
                    2,
                    1,
                    24,
                    20,
                    {.scale = 0.3, .kind = WF_ATTEND_SIGMOID, .len_bias = 9},
                    false,
                    false});
  }
  omp_set_num_threads(before);
  close_cpu();
}
END_TEST

START_TEST(test_repeats_bitwise) {
  open_cpu();
  problem p = {1, {{0, 500, 0, 0, 500}}, 500, 500, 2, 1, 16, 16, {.scale = 0.3}, true, true};
  numbers_of x = make(&p);
  tensors a = run(&p, &x, WF_F32), b = run(&p, &x, WF_F32);
  backward(&p, &a, false), backward(&p, &b, false);
  for (int i = 0; i < INPUTS; i++)
    ck_assert_int_eq(memcmp(wf_data(a.grad[i]), wf_data(b.grad[i]), (size_t)x.count[i] * 4), 0);
  drop(&x);
  close_cpu();
}
END_TEST

START_TEST(test_causal_bitwise) {
  open_cpu();
  for (int64_t t = 1; t < 300; t += 23) {
    problem p = {1, {{0, 300, 0, 0, 300}}, 300, 300, 2, 1, 8, 8, {.scale = 0.3}, true, true};
    numbers_of x = make(&p);
    wf_scope s = wf_scope_open(ctx);
    tensors a = run(&p, &x, WF_F32);
    for (int i = 0; i < Z; i++) x.in[i][t * (x.count[i] / 300)] += 50;
    tensors b = run(&p, &x, WF_F32);
    ck_assert_int_eq(memcmp(wf_data(a.out[0]), wf_data(b.out[0]), (size_t)(t * 16) * 4), 0);
    ck_assert_int_ne(memcmp(wf_data(a.out[0]), wf_data(b.out[0]), 300 * 16 * 4), 0);
    wf_scope_close(ctx, s);
    drop(&x);
  }
  close_cpu();
}
END_TEST

/* A sequence in two calls over one pool of keys, gradients added, equals the whole. */
START_TEST(test_cuts) {
  open_cpu();
  static const int64_t cuts[] = {1, 2, 63, 64, 65, 149};
  problem whole = {1, {{0, 150, 0, 0, 150}}, 150, 150, 4, 2, 6, 5, {.scale = 0.4, .window = 90}, true, true};
  numbers_of x = expected(&whole);
  for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
    wf_scope s = wf_scope_open(ctx);
    wf_tensor *dk = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(150, 2, 6));
    for (int half = 0; half < 2; half++) {
      int64_t from = half ? cuts[i] : 0, n = half ? 150 - cuts[i] : cuts[i];
      problem part = whole;
      part.n = n;
      part.span[0] = (wf_attend_span){0, n, 0, from, from + n};
      numbers_of y = x;
      y.in[Q] += from * 24, y.in[A] += from * 4, y.dout += from * 20, y.dlse += from * 4;
      tensors t = run(&part, &y, WF_F64);
      wf_tensor *din[7] = {NULL};
      din[1] = dk;
      wf_vjp g = {ctx, &wf_op_attend, &part.o, 7, 2, t.in, t.out, t.dout, din, 2};
      ok(wf_op_attend.vjp(&g));
      double *o = values(t.out[0]);
      near("o", n * 20, o, x.o + from * 20, 1e-12, 0);
      free(o);
    }
    double *got = values(dk);
    near("dk", 150 * 12, got, x.grad[K], 1e-12, 0);
    free(got);
    wf_scope_close(ctx, s);
  }
  drop(&x);
  close_cpu();
}
END_TEST

/* ---- keys in blocks ---- */

/* Keys that end before the queries' own: inside a row, with a gap, out of the window, of none. */
START_TEST(test_short_keys) {
  open_cpu();
  static const int64_t windows[] = {0, 1, 70, 150};
  for (int i = 0; i < 8; i++) {
    problem p = {4,
                 {{0, 130, 0, 40, 90}, {130, 70, 85, 300, 200}, {200, 1, 290, 5, 3}, {201, 9, 300, 2, 0}},
                 210,
                 300,
                 4,
                 2,
                 9,
                 6,
                 {.scale = 0.3, .softcap = i % 2 ? 2 : 0, .window = windows[i / 2]},
                 i % 2,
                 i % 2};
    check(p);
    p.o.kind = WF_ATTEND_SIGMOID, p.o.len_bias = 9, p.sink = false;
    check(p);
    p.o.kind = WF_ATTEND_SOFTMAX;
    check((problem){4, /* few queries */
                    {{0, 4, 3, 70, 71}, {4, 3, 40, 99, 60}, {7, 1, 0, 500, 100}, {8, 2, 100, 7, 0}},
                    10,
                    100,
                    4,
                    2,
                    9,
                    6,
                    p.o,
                    i % 2,
                    i % 2});
    p.o.stride = 3;
    check((problem){3,
                    {{0, 70, 1, 20, 60}, {1, 70, 2, 65, 66}, {2, 4, 0, 68, 40}},
                    210,
                    200,
                    2,
                    1,
                    5,
                    7,
                    p.o,
                    i % 2,
                    i % 2});
  }
  check((problem){2, {{0, 3, 0, 9, 0}, {3, 70, 0, 0, 0}}, 73, 0, 2, 1, 4, 4, {.scale = 1}, true, true});
  check((problem){2, {{0, 3, 0, 9, 0}, {3, 1, 0, 0, 0}}, 4, 0, 2, 1, 4, 4, {.scale = 1}, true, false});
  close_cpu();
}
END_TEST

/* Queries that see nothing: exact zeros and -inf, also with a sink of -inf; what no query sees is never read.
 */
START_TEST(test_nothing_seen) {
  open_cpu();
  enum { N = 80, M = 300 };
  for (int few = 0; few < 2; few++) {
    /* keys 231 .. 249 are in the window of some query, later queries see none */
    int64_t n = few ? 3 : N;
    problem p = {1, {{0, n, 0, 250, 250}}, n, M, 2, 1, 4, 4, {.scale = 0.5, .window = 20}, true, true};
    numbers_of x = make(&p);
    x.in[Z][0] = x.in[Z][1] = -INFINITY;
    for (int64_t j = 0; j < M; j++)
      for (int c = 0; c < 4; c++)
        if (j < 231 || j >= 250) x.in[K][j * 4 + c] = x.in[V][j * 4 + c] = NAN;
    wf_scope s = wf_scope_open(ctx);
    tensors t = run(&p, &x, WF_F64);
    backward(&p, &t, false);
    double *o = values(t.out[0]), *lse = values(t.out[1]);
    for (int64_t i = 0; i < n * 2; i++) {
      bool sees = i / 2 < 19;
      ck_assert_msg(sees ? isfinite(lse[i]) : lse[i] == -INFINITY, "lse[%lld] is %g", (long long)i, lse[i]);
      for (int c = 0; c < 4; c++)
        ck_assert(sees ? o[i * 4 + c] != 0 && isfinite(o[i * 4 + c]) : o[i * 4 + c] == 0);
    }
    free(o), free(lse);
    for (int i = 0; i < INPUTS; i++) {
      double *d = values(t.grad[i]);
      int64_t width = x.count[i] / (i == Q || i == A ? n : i == Z ? 1 : M);
      for (int64_t e = 0; e < x.count[i]; e++) {
        int64_t at = e / width;
        bool counts = i == Q || i == A ? at < 19 : i == Z ? false : at >= 231 && at < 250;
        ck_assert_msg(isfinite(d[e]) && (counts || d[e] == 0), "gradient %d, %lld: %g", i, (long long)e,
                      d[e]);
      }
      free(d);
    }
    wf_scope_close(ctx, s);
    drop(&x);
  }
  close_cpu();
}
END_TEST

/* The rows of a block of the pool, keys [p0, p1): at most two for each row. Queries before the block's first
 * key see none of it. */
static problem block_of(const problem *p, int64_t p0, int64_t p1, bool sink) {
  problem b = *p;
  int64_t step = stride_of(p);
  b.rows = 0, b.m = p1 - p0, b.sink = sink;
  for (int64_t r = 0; r < p->rows; r++) {
    wf_attend_span s = p->span[r];
    int64_t j0 = p0 > s.key ? (p0 - s.key + step - 1) / step : 0;
    int64_t j1 = p1 > s.key ? (p1 - s.key + step - 1) / step : 0;
    if (j1 > s.keys) j1 = s.keys;
    int64_t skip = j0 >= j1 ? s.queries : j0 > s.distance ? j0 - s.distance : 0;
    if (skip > s.queries) skip = s.queries;
    if (skip) b.span[b.rows++] = (wf_attend_span){s.query, skip, 0, 0, 0};
    if (skip < s.queries)
      b.span[b.rows++] = (wf_attend_span){s.query + skip * step, s.queries - skip, s.key + j0 * step - p0,
                                          s.distance + skip - j0, j1 - j0};
  }
  ck_assert_int_le(b.rows, sizeof b.span / sizeof *b.span);
  return b;
}

/* Attention over each block by itself, then merged (summed for sigmoid), on the tape: the whole's output and
 * gradients. The sink is the last block's. */
static void merged_blocks(const problem *p, int64_t size) {
  static const char *const name[] = {"dq", "dk", "dv", "da", "db", "dz"};
  enum { MOST = 16 };
  numbers_of x = make(p);
  memset(x.dlse, 0, (size_t)(p->n * p->heads) * sizeof *x.dlse); /* of the output alone */
  fill(p, &x);
  wf_scope s = wf_scope_open(ctx);
  tensors whole = run(p, &x, WF_F64);
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  var in[INPUTS];
  for (int i = 0; i < INPUTS; i++) watch(tape, &in[i], whole.in[input_of[i]]);
  wf_tensor *o[MOST], *lse[MOST], *y;
  int n = 0;
  wf_tape_record(tape);
  for (int64_t p0 = 0; p0 < p->m; p0 += size, n++) {
    ck_assert_int_lt(n, MOST);
    int64_t p1 = p0 + size < p->m ? p0 + size : p->m;
    problem b = block_of(p, p0, p1, p->sink && p1 == p->m);
    wf_tensor *kv[2] = {wf_slice(ctx, in[K].x, 0, p0, p1), wf_slice(ctx, in[V].x, 0, p0, p1)};
    o[n] = wf_attend_lse(ctx, in[Q].x, kv[0], kv[1], wf_attend_spans(ctx, b.rows, b.span), in[A].x,
                         p->terms ? wf_slice(ctx, in[B].x, 0, p0, p1) : NULL, b.sink ? in[Z].x : NULL, &p->o,
                         &lse[n]);
  }
  if (p->o.kind == WF_ATTEND_SIGMOID) {
    y = o[0];
    for (int i = 1; i < n; i++) y = wf_add(ctx, y, o[i]);
  } else
    y = wf_merge(ctx, n, o, lse);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  near_tensor("o", y, x.o, 1e-12, 0);
  ok(wf_backward(tape, 1, &y, whole.dout));
  for (int i = 0; i < INPUTS; i++)
    if (in[i].x) near_tensor(name[i], in[i].leaf.grad, x.grad[i], 1e-12, i >= A ? 0.3 : 0.1);
  wf_tape_free(tape);
  wf_scope_close(ctx, s);
  drop(&x);
}

/* The gradient over each block by itself, given the whole's o and log-sum-exp: its own keys' gradients, and
 * its share of the queries'. */
static void shares_of_blocks(const problem *p, int64_t size) {
  numbers_of x = expected(p);
  wf_scope s = wf_scope_open(ctx);
  wf_tensor *dq = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(p->n, p->heads, p->k));
  wf_tensor *da = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(p->n, p->heads));
  for (int64_t p0 = 0; p0 < p->m; p0 += size) {
    int64_t p1 = p0 + size < p->m ? p0 + size : p->m;
    problem b = block_of(p, p0, p1, p->sink && p1 == p->m);
    numbers_of y = x;
    y.in[K] += p0 * p->kv * p->k, y.in[V] += p0 * p->kv * p->v;
    if (p->terms) y.in[B] += p0 * p->heads;
    if (!b.sink) y.in[Z] = NULL;
    tensors t = run(&b, &y, WF_F64);
    t.out[0] = tensor(WF_F64, WF_SHAPE(p->n, p->heads, p->v), x.o);
    t.out[1] = tensor(WF_F64, WF_SHAPE(p->n, p->heads), x.lse);
    wf_tensor *din[7] = {dq};
    din[1] = wf_empty_like(ctx, "test", t.in[1]), din[2] = wf_empty_like(ctx, "test", t.in[2]);
    if (p->terms) din[4] = da, din[5] = wf_empty_like(ctx, "test", t.in[5]);
    if (b.sink) din[6] = wf_empty_like(ctx, "test", t.in[6]);
    wf_vjp g = {ctx, &wf_op_attend, &p->o, 7, 2, t.in, t.out, t.dout, din, 1 << 0 | 1 << 4};
    ok(wf_op_attend.vjp(&g));
    near_tensor("dk", din[1], x.grad[K] + p0 * p->kv * p->k, 1e-12, 0.1);
    near_tensor("dv", din[2], x.grad[V] + p0 * p->kv * p->v, 1e-12, 0.1);
    if (p->terms) near_tensor("db", din[5], x.grad[B] + p0 * p->heads, 1e-12, 0.3);
    if (b.sink) near_tensor("dz", din[6], x.grad[Z], 1e-12, 0.3);
  }
  near_tensor("dq", dq, x.grad[Q], 1e-12, 0.1);
  if (p->terms) near_tensor("da", da, x.grad[A], 1e-12, 0.3);
  wf_scope_close(ctx, s);
  drop(&x);
}

START_TEST(test_blocks) {
  open_cpu();
  static const problem whole[] = {
      {1, {{0, 9, 0, 0, 9}}, 9, 9, 2, 1, 4, 3, {.scale = 0.5}, false, false},
      {1, {{0, 3, 0, 7, 10}}, 3, 10, 4, 2, 4, 3, {.scale = 0.5, .window = 5}, true, true},
      {1, {{0, 200, 0, 0, 200}}, 200, 200, 4, 2, 9, 6, {.scale = 0.3, .softcap = 2}, true, true},
      {1, {{0, 200, 0, 0, 200}}, 200, 200, 2, 2, 6, 5, {.scale = 0.4, .window = 70}, true, true},
      {2, /* packed, one that goes on from keys before it */
       {{0, 75, 0, 30, 105}, {75, 90, 105, 0, 90}},
       165,
       195,
       2,
       1,
       6,
       5,
       {.scale = 0.4, .window = 50, .softcap = 3},
       true,
       true},
      {2, {{0, 75, 0, 30, 105}, {75, 90, 105, 0, 90}}, 165, 195, 2, 1, 6, 5, {.scale = 0.4}, false, true},
      {2, {{0, 75, 0, 30, 105}, {75, 90, 105, 0, 90}}, 165, 195, 2, 1, 6, 5, {.scale = 0.4}, true, false},
      {2, /* keys that end before the queries do, and before a gap out of some windows */
       {{0, 70, 0, 30, 60}, {70, 80, 60, 130, 100}},
       150,
       160,
       2,
       1,
       6,
       5,
       {.scale = 0.4, .window = 90},
       true,
       false},
      {2,
       {{0, 80, 0, 20, 100}, {1, 80, 1, 10, 90}},
       160,
       200,
       2,
       1,
       6,
       5,
       {.scale = 0.4, .stride = 2, .window = 60},
       true,
       true},
      {2,
       {{0, 75, 0, 30, 105}, {75, 90, 105, 0, 90}},
       165,
       195,
       2,
       1,
       6,
       5,
       {.scale = 0.4, .kind = WF_ATTEND_SIGMOID, .len_bias = 40, .window = 80},
       true,
       false},
  };
  static const int64_t sizes[] = {1, 2, 5, 13, 33, 64, 65, 100, 1000};
  for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
    for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++) {
      if (whole[i].m > 16 * sizes[j]) continue; /* merge takes 16 parts */
      merged_blocks(&whole[i], sizes[j]);
      shares_of_blocks(&whole[i], sizes[j]);
    }
  close_cpu();
}
END_TEST

START_TEST(test_gradcheck) {
  open_cpu();
  ok(wf_gradcheck_op(ctx, &wf_op_attend));
  close_cpu();
}
END_TEST

/* Two pieces appended, read by attend through a flat view of the whole cache, differentiated by the tape: the
 * gradients of both pieces' keys equal those of the whole sequence; the cache's gradient is left zero. */
START_TEST(test_cache) {
  open_cpu();
  enum { T = 20, CUT = 13, CAP = 24, H = 2, D = 4 };
  problem whole = {1, {{0, T, 0, 0, T}}, T, T, H, H, D, D, {.scale = 0.5}, false, false};
  numbers_of x = make(&whole);
  memset(x.dlse, 0, T * H * sizeof *x.dlse); /* of the output alone */
  fill(&whole, &x);
  wf_scope s = wf_scope_open(ctx);
  wf_tensor *cache[2], *twin[2], *grad[2][2];
  wf_leaf cached[2] = {{.grad = NULL}}, leaf[2][2] = {{{.grad = NULL}}};
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  for (int i = 0; i < 2; i++) {
    cache[i] = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(2, CAP, H, D));
    cached[i].grad = twin[i] = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(2, CAP, H, D));
    cached[i].written = true;
    ok(wf_tape_watch(tape, cache[i], &cached[i]));
  }
  wf_tensor *o[2], *dout[2];
  wf_rows *rows[2];
  for (int half = 0; half < 2; half++) {
    int64_t from = half ? CUT : 0, n = half ? T - CUT : CUT;
    ok(wf_rows_create(ctx, 1,
                      &(wf_row){.len = n,
                                .pos = from,
                                .place = from,
                                .lane = 1,
                                .flags = (half ? WF_ROW_TAKES : 0) | WF_ROW_LEAVES},
                      2, &rows[half]));
    wf_tensor *kv[2];
    wf_tensor *q = tensor(WF_F64, WF_SHAPE(n, H, D), x.in[Q] + from * H * D);
    wf_tensor *span = wf_attend_spans(ctx, 1, &(wf_attend_span){0, n, CAP, from, from + n});
    dout[half] = tensor(WF_F64, WF_SHAPE(n, H, D), x.dout + from * H * D);
    for (int i = 0; i < 2; i++) {
      wf_tensor *new = tensor(WF_F64, WF_SHAPE(n, H, D), x.in[K + i] + from * H * D);
      leaf[half][i].grad = grad[half][i] = wf_empty_like(ctx, "test", new);
      ok(wf_tape_watch(tape, new, &leaf[half][i]));
      wf_tape_record(tape);
      wf_tensor *full = wf_cache_append(ctx, cache[i], new, rows[half]);
      ok(wf_ctx_check(ctx));
      kv[i] = wf_same_variable(full, WF_SHAPE(2 * CAP, H, D));
      wf_tape_pause(tape);
    }
    wf_tape_record(tape);
    o[half] = wf_attend(ctx, q, kv[0], kv[1], span, NULL, NULL, NULL, &whole.o);
    wf_tape_pause(tape);
    ok(wf_ctx_check(ctx));
    double *got = values(o[half]);
    near("o", n * H * D, got, x.o + from * H * D, 1e-12, 0);
    free(got);
  }
  ok(wf_backward(tape, 2, o, dout));
  for (int i = 0; i < 2; i++) {
    for (int half = 0; half < 2; half++) {
      int64_t from = half ? CUT : 0, n = half ? T - CUT : CUT;
      double *got = values(grad[half][i]);
      near(i ? "dv" : "dk", n * H * D, got, x.grad[K + i] + from * H * D, 1e-12, 0);
      free(got);
    }
    double *left = values(twin[i]);
    for (int64_t e = 0; e < 2 * CAP * H * D; e++) ck_assert_double_eq(left[e], 0);
    free(left);
  }
  wf_row late = {.len = 5, .pos = 20, .place = 20, .flags = WF_ROW_TAKES | WF_ROW_LEAVES};
  wf_rows *beyond;
  ok(wf_rows_create(ctx, 1, &late, 2, &beyond));
  wf_cache_append(ctx, cache[0], wf_zeros(ctx, "test", WF_F64, WF_SHAPE(5, H, D)), beyond);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  wf_rows_free(rows[0]), wf_rows_free(rows[1]), wf_rows_free(beyond);
  wf_tape_free(tape);
  wf_scope_close(ctx, s);
  drop(&x);
  close_cpu();
}
END_TEST

START_TEST(test_errors) {
  open_cpu();
  problem p = {1, {{0, 3, 0, 0, 3}}, 3, 3, 2, 1, 4, 4, {.scale = 0.5}, false, false};
  numbers_of x = make(&p);
  wf_tensor *q = tensor(WF_F32, WF_SHAPE(3, 2, 4), x.in[Q]), *k = tensor(WF_F32, WF_SHAPE(3, 1, 4), x.in[K]);
  wf_tensor *three = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 3, 4)),
            *z = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(2));
  static const wf_attend_span bad[] = {{0, 4, 0, 0, 3},  {1, 3, 0, 0, 3},         {0, 3, 1, 0, 3},
                                       {0, 3, 0, 1, 4},  {-1, 3, 0, 0, 3},        {0, 3, 0, -1, 2},
                                       {0, 3, 0, 0, -1}, {0, 1, 0, INT64_MAX, 1}, {0, 3, 4, 0, 0}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    wf_tensor *span = wf_attend_spans(ctx, 1, &bad[i]);
    ck_assert(wf_is_poison(wf_attend(ctx, q, k, k, span, NULL, NULL, NULL, &p.o)));
    ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  }
  wf_tensor *four = wf_from_host(ctx, "test", WF_I64, WF_SHAPE(1, 4), p.span);
  ck_assert(wf_is_poison(wf_attend(ctx, q, k, k, four, NULL, NULL, NULL, &p.o)));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_tensor *span = wf_attend_spans(ctx, 1, p.span);
  p.o.stride = 2; /* 3 queries 2 apart need 5 tokens */
  ck_assert(wf_is_poison(wf_attend(ctx, q, k, k, span, NULL, NULL, NULL, &p.o)));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  p.o.stride = 0;
  wf_attend(ctx, q, three, three, span, NULL, NULL, NULL, &p.o); /* 3 key heads for 2 */
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_attend(ctx, q, k, k, span, wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 2)), NULL, NULL, &p.o);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_tensor *term = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 2)); /* terms are float64 */
  wf_attend(ctx, q, k, k, span, term, term, NULL, &p.o);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  p.o.kind = WF_ATTEND_SIGMOID;
  p.o.len_bias = 3;
  wf_attend(ctx, q, k, k, span, NULL, NULL, z, &p.o);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  drop(&x);
  close_cpu();
}
END_TEST

static Suite *attend_suite(void) {
  Suite *s = suite_create("attend");
  TCase *t = tcase_create("attend");
  tcase_add_test(t, test_sizes);
  tcase_add_test(t, test_long);
  tcase_add_test(t, test_running_sums);
  tcase_add_test(t, test_rows);
  tcase_add_test(t, test_strides);
  tcase_add_test(t, test_threads);
  tcase_add_test(t, test_repeats_bitwise);
  tcase_add_test(t, test_causal_bitwise);
  tcase_add_test(t, test_cuts);
  tcase_add_test(t, test_short_keys);
  tcase_add_test(t, test_nothing_seen);
  tcase_add_test(t, test_blocks);
  tcase_add_test(t, test_gradcheck);
  tcase_add_test(t, test_cache);
  tcase_add_test(t, test_errors);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(attend_suite)
