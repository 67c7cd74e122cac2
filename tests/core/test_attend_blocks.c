/* attend with the keys in blocks: short and empty ones, what no query sees, and blocks merged as rings and
 * teams of ranks merge them. */
#include "tests/core/attend_test.h"

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

static Suite *attend_blocks_suite(void) {
  Suite *s = suite_create("attend_blocks");
  TCase *t = tcase_create("attend_blocks");
  tcase_add_test(t, test_short_keys);
  tcase_add_test(t, test_nothing_seen);
  tcase_add_test(t, test_blocks);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(attend_blocks_suite)
