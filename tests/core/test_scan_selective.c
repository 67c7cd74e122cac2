/* selective_scan against its recurrence run token by token in double, forwards and backwards: odd lengths,
 * widths and numbers of states, decays from 0 to -50, rows that take, leave and begin states; any cut with
 * the state handed over. In float its error is at most 4 times that of the recurrence run in float. */
#include "tests/core/seq_test.h"

typedef struct problem {
  int64_t rows;
  wf_row row[4];
  int64_t lanes, n, d, N;
  double high; /* dt A is in [-high, 0], mostly near 0 */
  bool skip, state, init;
} problem;

enum { X, DT, A, B, C, D, STATE, INIT, INPUTS };
static const char *const name[] = {"dx", "ddt", "dA", "dB", "dC", "dD", "dstate", "dinit"};

typedef struct expected {
  int64_t count[INPUTS];
  double *in[INPUTS], *grad[INPUTS], *y, *dy, *left, *dleft;
  bool single; /* every operation is rounded to float */
} expected;

static double rounded(const expected *e, double x) {
  return e->single ? (double)(float)x : x;
}
static void add(const expected *e, double *to, double x) {
  *to = rounded(e, *to + rounded(e, x));
}

/* One channel and state of a row; y and the gradients of what several share are added to. */
static void one_state(const problem *p, expected *e, const wf_row *r, int64_t c, int64_t i) {
  int64_t at = c * p->N + i, lane = (r->lane * p->d + c) * p->N + i;
  bool takes = r->flags & WF_ROW_TAKES;
  double *h = doubles(r->len + 1), back = 0, a = e->in[A][at];
  if (takes ? p->state : p->init) h[0] = takes ? e->in[STATE][lane] : e->in[INIT][at];
  for (int64_t t = 0; t < r->len; t++) {
    int64_t xd = (r->begin + t) * p->d + c, bn = (r->begin + t) * p->N + i;
    double keep = rounded(e, exp(rounded(e, e->in[DT][xd] * a))),
           u = rounded(e, e->in[DT][xd] * e->in[X][xd]);
    h[t + 1] = rounded(e, rounded(e, keep * h[t]) + rounded(e, u * e->in[B][bn]));
    add(e, &e->y[xd], h[t + 1] * e->in[C][bn]);
  }
  if (r->flags & WF_ROW_LEAVES) {
    e->left[lane] = h[r->len];
    back = e->dleft[lane];
  }
  for (int64_t t = r->len - 1; t >= 0; t--) {
    int64_t xd = (r->begin + t) * p->d + c, bn = (r->begin + t) * p->N + i;
    double dt = e->in[DT][xd], x = e->in[X][xd], keep = rounded(e, exp(rounded(e, dt * a)));
    add(e, &back, e->dy[xd] * e->in[C][bn]);
    add(e, &e->grad[C][bn], e->dy[xd] * h[t + 1]);
    add(e, &e->grad[B][bn], back * rounded(e, dt * x));
    add(e, &e->grad[X][xd], dt * rounded(e, back * e->in[B][bn]));
    add(e, &e->grad[DT][xd], x * rounded(e, back * e->in[B][bn]));
    back = rounded(e, back * keep);
    double z = rounded(e, back * h[t]);
    add(e, &e->grad[DT][xd], z * a);
    add(e, &e->grad[A][at], z * dt);
  }
  if (takes ? p->state : p->init) add(e, takes ? &e->grad[STATE][lane] : &e->grad[INIT][at], back);
  free(h);
}

static expected by_tokens(const problem *p, bool single) {
  int64_t nd = p->n * p->d, nN = p->n * p->N, size = p->d * p->N;
  expected e = {.count = {nd, nd, size, nN, nN, p->d, p->lanes * size, size}, .single = single};
  for (int i = 0; i < INPUTS; i++) {
    e.in[i] = numbers(e.count[i], name[i]);
    e.grad[i] = doubles(e.count[i]);
  }
  for (int64_t i = 0; i < size; i++) e.in[A][i] = -1 - (double)(i % 16);
  for (int64_t i = 0; i < nd; i++) { /* a third are closed or nearly */
    double s = fmin(fabs(e.in[DT][i]), 2) / 2;
    e.in[DT][i] = i % 3 ? (double)(float)(p->high / 16 * s * s * s) : 0;
  }
  e.y = doubles(nd), e.dy = numbers(nd, "dy");
  e.left = doubles(p->lanes * size), e.dleft = numbers(p->lanes * size, "dleft");
  for (int64_t l = 0; l < p->lanes && p->state; l++) {
    bool left = false;
    for (int64_t r = 0; r < p->rows; r++) left |= p->row[r].lane == l && p->row[r].flags & WF_ROW_LEAVES;
    if (left) continue;
    memcpy(e.left + l * size, e.in[STATE] + l * size, (size_t)size * sizeof(double));
    memcpy(e.grad[STATE] + l * size, e.dleft + l * size, (size_t)size * sizeof(double));
  }
  for (int64_t i = 0; i < nd && p->skip; i++) {
    add(&e, &e.y[i], e.in[D][i % p->d] * e.in[X][i]);
    add(&e, &e.grad[X][i], e.in[D][i % p->d] * e.dy[i]);
    add(&e, &e.grad[D][i % p->d], e.dy[i] * e.in[X][i]);
  }
  for (int64_t r = 0; r < p->rows; r++)
    for (int64_t c = 0; c < p->d; c++)
      for (int64_t i = 0; i < p->N; i++) one_state(p, &e, &p->row[r], c, i);
  return e;
}

static void drop(expected *e) {
  for (int i = 0; i < INPUTS; i++) free(e->in[i]), free(e->grad[i]);
  free(e->y), free(e->dy), free(e->left), free(e->dleft);
}

/* In double within a fixed tolerance; in float to 4 times the errors of `plain`, root mean square and
 * largest, or a few roundings. */
static void judge(const char *what, const wf_tensor *got, const double *want, const double *plain) {
  int64_t n = wf_numel(got);
  if (!plain) {
    near_tensor(what, got, want, 1e-12, 0);
    return;
  }
  double *x = values(got);
  wf_error own = wf_compare(n, x, want), theirs = wf_compare(n, plain, want);
  ck_assert_msg(n == 0 ||
                    (own.err2 <= fmax(4 * theirs.err2, 2e-7) && own.errmax <= fmax(4 * theirs.errmax, 2e-6)),
                "%s [%lld]: err2 %.2e, errmax %.2e; the plain recurrence %.2e, %.2e", what, (long long)n,
                own.err2, own.errmax, theirs.err2, theirs.errmax);
  free(x);
}

static void compare(const problem *p, const expected *e, const expected *plain, wf_dtype dtype) {
  wf_scope s = wf_scope_open(ctx);
  wf_rows *rows;
  ok(wf_rows_create(ctx, p->rows, p->row, p->lanes, &rows));
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  var x[INPUTS];
  watch(tape, &x[X], tensor(dtype, WF_SHAPE(p->n, p->d), e->in[X]));
  watch(tape, &x[DT], tensor(dtype, WF_SHAPE(p->n, p->d), e->in[DT]));
  watch(tape, &x[A], tensor(dtype, WF_SHAPE(p->d, p->N), e->in[A]));
  watch(tape, &x[B], tensor(dtype, WF_SHAPE(p->n, p->N), e->in[B]));
  watch(tape, &x[C], tensor(dtype, WF_SHAPE(p->n, p->N), e->in[C]));
  watch(tape, &x[D], p->skip ? tensor(dtype, WF_SHAPE(p->d), e->in[D]) : NULL);
  watch(tape, &x[STATE], p->state ? tensor(dtype, WF_SHAPE(p->lanes, p->d, p->N), e->in[STATE]) : NULL);
  watch(tape, &x[INIT], p->init ? tensor(dtype, WF_SHAPE(p->d, p->N), e->in[INIT]) : NULL);
  wf_tensor *out[2], *cot[2] = {tensor(dtype, WF_SHAPE(p->n, p->d), e->dy),
                                tensor(dtype, WF_SHAPE(p->lanes, p->d, p->N), e->dleft)};
  wf_selective_in in = {x[X].x, x[DT].x, x[A].x, x[B].x, x[C].x, x[D].x, x[INIT].x};
  wf_tape_record(tape);
  out[0] = wf_selective_scan(ctx, &in, x[STATE].x, rows, &out[1]);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  ok(wf_backward(tape, 2, out, cot));
  judge("y", out[0], e->y, plain ? plain->y : NULL);
  judge("left", out[1], e->left, plain ? plain->left : NULL);
  for (int i = 0; i < INPUTS; i++)
    if (x[i].x) judge(name[i], x[i].leaf.grad, e->grad[i], plain ? plain->grad[i] : NULL);
  wf_tape_free(tape);
  wf_rows_free(rows);
  wf_scope_close(ctx, s);
}

static void check(problem p) {
  p.n = 0;
  for (int64_t r = 0; r < p.rows; r++) {
    p.row[r].begin = p.n;
    p.row[r].place = p.row[r].pos;
    p.n += p.row[r].len;
  }
  expected e = by_tokens(&p, false), plain = by_tokens(&p, true);
  compare(&p, &e, NULL, WF_F64);
  compare(&p, &e, &plain, WF_F32);
  drop(&e), drop(&plain);
}

START_TEST(test_sizes) {
  open_cpu();
  static const int64_t lens[] = {1, 2, 31, 32, 33, 63, 64, 65, 100, 1000};
  for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
    int64_t t = lens[i];
    check((problem){
        1, {{.len = t, .flags = 3}}, .lanes = 1, .d = 37, .N = 16, .high = 1, .skip = true, .state = true});
    check((problem){1, {{.len = t}}, .lanes = 1, .d = 5, .N = 7, .high = 50, .init = true});
    check((problem){1, {{.len = t, .flags = 2}}, .lanes = 2, .d = 16, .N = 1, .high = 20, .skip = true});
    check((problem){1, {{.len = t}}, .lanes = 1, .d = 1, .N = 4, .high = 0.01});
  }
  close_cpu();
}
END_TEST

START_TEST(test_rows) {
  open_cpu();
  problem p = {4,
               {{.len = 70, .lane = 2, .flags = 3},
                {.len = 1, .lane = 0, .flags = 1},
                {.len = 13, .lane = 0},
                {.len = 40, .lane = 3, .flags = 2}},
               .lanes = 5,
               .d = 38,
               .N = 6,
               .high = 2,
               .skip = true,
               .state = true,
               .init = true};
  check(p);
  p.rows = 0;
  check(p);
  close_cpu();
}
END_TEST

/* A sequence in pieces, the state handed over, equals the whole: forward, final state, every gradient. */
START_TEST(test_cuts) {
  open_cpu();
  enum { T = 150, WIDE = 5, N = 6 };
  static const int64_t pieces[] = {1, 2, 31, 64, 65, 149};
  problem p = {1, {{.len = T, .flags = 2}}, .lanes = 1, .n = T, .d = WIDE, .N = N, .high = 3, .init = true};
  expected e = by_tokens(&p, false);
  for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
    int64_t step = pieces[k], n = 0;
    wf_scope s = wf_scope_open(ctx);
    wf_tape *tape;
    ok(wf_tape_create(ctx, &tape));
    var x[INPUTS];
    for (int i = X; i < INPUTS; i++) {
      int64_t shape[] = {i == A || i == INIT ? WIDE : T, i == X || i == DT ? WIDE : N};
      watch(tape, &x[i], i == D || i == STATE ? NULL : tensor(WF_F64, 2, shape, e.in[i]));
    }
    wf_tensor *y[T + 1], *dy[T + 1], *state = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(1, WIDE, N));
    wf_rows *rows[T];
    wf_tape_record(tape);
    for (int64_t t = 0; t < T; t += step, n++) {
      int64_t end = T - t < step ? T : t + step;
      wf_row row = {.len = end - t, .pos = t, .place = t, .flags = (t ? WF_ROW_TAKES : 0) | WF_ROW_LEAVES};
      ok(wf_rows_create(ctx, 1, &row, 1, &rows[n]));
      wf_selective_in in = {.x = wf_slice(ctx, x[X].x, 0, t, end),
                            .dt = wf_slice(ctx, x[DT].x, 0, t, end),
                            .A = x[A].x,
                            .B = wf_slice(ctx, x[B].x, 0, t, end),
                            .C = wf_slice(ctx, x[C].x, 0, t, end),
                            .init = x[INIT].x};
      y[n] = wf_selective_scan(ctx, &in, state, rows[n], &state);
      dy[n] = tensor(WF_F64, WF_SHAPE(end - t, WIDE), e.dy + t * WIDE);
    }
    wf_tape_pause(tape);
    ok(wf_ctx_check(ctx));
    y[n] = state;
    dy[n] = tensor(WF_F64, WF_SHAPE(1, WIDE, N), e.dleft);
    ok(wf_backward(tape, (int)n + 1, y, dy));
    near_tensor("left", state, e.left, 1e-12, 0);
    for (int i = 0; i < INPUTS; i++)
      if (x[i].x) near_tensor(name[i], x[i].leaf.grad, e.grad[i], 1e-11, 0);
    for (int64_t i = 0; i < n; i++) wf_rows_free(rows[i]);
    wf_tape_free(tape);
    wf_scope_close(ctx, s);
  }
  drop(&e);
  close_cpu();
}
END_TEST

START_TEST(test_causal_bitwise) {
  open_cpu();
  enum { T = 150, WIDE = 21, N = 5 };
  problem p = {1, {{.len = T}}, .lanes = 1, .n = T, .d = WIDE, .N = N, .high = 2};
  expected e = by_tokens(&p, false);
  wf_rows *rows;
  ok(wf_rows_create(ctx, 1, p.row, 1, &rows));
  for (int64_t t = 1; t < T; t += 21) {
    wf_tensor *y[2];
    for (int k = 0; k < 2; k++) {
      wf_selective_in in = {.x = tensor(WF_F32, WF_SHAPE(T, WIDE), e.in[X]),
                            .dt = tensor(WF_F32, WF_SHAPE(T, WIDE), e.in[DT]),
                            .A = tensor(WF_F32, WF_SHAPE(WIDE, N), e.in[A]),
                            .B = tensor(WF_F32, WF_SHAPE(T, N), e.in[B]),
                            .C = tensor(WF_F32, WF_SHAPE(T, N), e.in[C])};
      y[k] = wf_selective_scan(ctx, &in, NULL, rows, NULL);
      for (int64_t i = t * WIDE; i < (t + 1) * WIDE; i++) e.in[X][i] += 3, e.in[DT][i] += 1;
      for (int64_t i = t * N; i < (t + 1) * N; i++) e.in[B][i] += 2, e.in[C][i] -= 1;
    }
    ok(wf_ctx_check(ctx));
    ck_assert_int_eq(memcmp(wf_data(y[0]), wf_data(y[1]), (size_t)(t * WIDE) * 4), 0);
    ck_assert_int_ne(memcmp(wf_data(y[0]), wf_data(y[1]), T * WIDE * 4), 0);
  }
  wf_rows_free(rows);
  drop(&e);
  close_cpu();
}
END_TEST

START_TEST(test_errors) {
  open_cpu();
  wf_rows *rows;
  wf_row taking = {.len = 3, .flags = WF_ROW_TAKES};
  ok(wf_rows_create(ctx, 1, &taking, 1, &rows));
  wf_tensor *x = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 4)),
            *a = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(4, 2)),
            *b = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 2)),
            *state = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(1, 4, 2)), *left;
  wf_selective_in good = {.x = x, .dt = x, .A = a, .B = b, .C = b}, in = good;
  wf_selective_scan(ctx, &good, state, rows, &left);
  ok(wf_ctx_check(ctx));
  wf_selective_scan(ctx, &good, NULL, rows, &left);
  ck_assert(wf_is_poison(left));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  wf_tensor **field[] = {&in.dt, &in.A, &in.B, &in.C, &in.D, &in.init};
  wf_tensor *wrong[] = {b, b, x, x, x, b};
  for (int i = 0; i < 6; i++) {
    in = good;
    *field[i] = wrong[i];
    wf_selective_scan(ctx, &in, state, rows, &left);
    ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  }
  wf_selective_scan(ctx, &good, a, rows, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_rows_free(rows);
  close_cpu();
}
END_TEST

static Suite *scan_suite(void) {
  Suite *s = suite_create("selective scan");
  TCase *t = tcase_create("scan");
  tcase_add_test(t, test_sizes);
  tcase_add_test(t, test_rows);
  tcase_add_test(t, test_cuts);
  tcase_add_test(t, test_causal_bitwise);
  tcase_add_test(t, test_errors);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(scan_suite)
