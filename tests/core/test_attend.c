/* attend against sums written out pair by pair: forward and every gradient, in float64 and float32, for odd
 * sizes, grouped heads, windows, several rows, shared and unread keys; causality bit by bit; any cut of a
 * sequence; and the append-only cache. */
#include "tests/core/attend_test.h"

#include <omp.h>

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
  tcase_add_test(t, test_gradcheck);
  tcase_add_test(t, test_cache);
  tcase_add_test(t, test_errors);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(attend_suite)
