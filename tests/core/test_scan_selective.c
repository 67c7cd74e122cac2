/* selective_scan against its recurrence run token by token in double, forwards and backwards: odd lengths,
 * widths and numbers of states, decays from 0 to -50, rows that take, leave and begin states; any cut with
 * the state handed over. In float its error is at most 4 times that of the recurrence run in float. */
#include "tests/core/scan_test.h"

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
  if (p->state) pass_lanes(p->rows, p->row, p->lanes, size, e.in[STATE], e.dleft, e.left, e.grad[STATE]);
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
static void judge(const char *what, int64_t n, const double *got, const double *want, const double *plain,
                  double tolerance) {
  if (!plain) {
    near(what, n, got, want, tolerance, 0);
    return;
  }
  wf_error own = wf_compare(n, got, want), theirs = wf_compare(n, plain, want);
  ck_assert_msg(n == 0 ||
                    (own.err2 <= fmax(4 * theirs.err2, 2e-7) && own.errmax <= fmax(4 * theirs.errmax, 2e-6)),
                "%s [%lld]: err2 %.2e, errmax %.2e; the plain recurrence %.2e, %.2e", what, (long long)n,
                own.err2, own.errmax, theirs.err2, theirs.errmax);
}

static void apply(const void *arg, wf_tensor *const *x, const wf_rows *rows, wf_tensor *out[2]) {
  (void)arg;
  wf_selective_in in = {x[X], x[DT], x[A], x[B], x[C], x[D], x[INIT]};
  out[0] = wf_selective_scan(ctx, &in, x[STATE], rows, &out[1]);
}
static const seq_op op = {apply, INPUTS, STATE, 1 << X | 1 << DT | 1 << B | 1 << C};

/* `step`: in pieces of so many tokens, beginning with zeros; 0: at once. */
static void compare(const problem *p, const expected *e, const expected *plain, wf_dtype dtype,
                    int64_t step) {
  wf_scope s = wf_scope_open(ctx);
  wf_tensor *cot[2] = {tensor(dtype, WF_SHAPE(p->n, p->d), e->dy),
                       tensor(dtype, WF_SHAPE(p->lanes, p->d, p->N), e->dleft)};
  wf_tensor *in[INPUTS] = {[X] = tensor(dtype, WF_SHAPE(p->n, p->d), e->in[X]),
                           [DT] = tensor(dtype, WF_SHAPE(p->n, p->d), e->in[DT]),
                           [A] = tensor(dtype, WF_SHAPE(p->d, p->N), e->in[A]),
                           [B] = tensor(dtype, WF_SHAPE(p->n, p->N), e->in[B]),
                           [C] = tensor(dtype, WF_SHAPE(p->n, p->N), e->in[C]),
                           [D] = p->skip ? tensor(dtype, WF_SHAPE(p->d), e->in[D]) : NULL,
                           [STATE] =
                               p->state ? tensor(dtype, WF_SHAPE(p->lanes, p->d, p->N), e->in[STATE]) : NULL,
                           [INIT] = p->init ? tensor(dtype, WF_SHAPE(p->d, p->N), e->in[INIT]) : NULL};
  if (step) in[STATE] = wf_zeros(ctx, "test", dtype, WF_SHAPE(p->lanes, p->d, p->N));
  double *result[SEQ_RESULTS], cut = step ? 1e-11 : 1e-12;
  seq_run(&op, p, p->rows, p->row, p->lanes, step, in, cot, result);
  judge("y", p->n * p->d, result[SEQ_Y], e->y, plain ? plain->y : NULL, 1e-12);
  judge("left", e->count[STATE], result[SEQ_LEFT], e->left, plain ? plain->left : NULL, 1e-12);
  for (int i = 0; i < INPUTS; i++)
    if (result[SEQ_GRADS + i] && !(step && i == STATE))
      judge(name[i], e->count[i], result[SEQ_GRADS + i], e->grad[i], plain ? plain->grad[i] : NULL, cut);
  free_results(&op, result);
  wf_scope_close(ctx, s);
}

static void check(problem p) {
  p.n = lay_rows(p.rows, p.row);
  expected e = by_tokens(&p, false), plain = by_tokens(&p, true);
  compare(&p, &e, NULL, WF_F64, 0);
  compare(&p, &e, &plain, WF_F32, 0);
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
  problem p = {4,         MIXED_ROWS,   .lanes = 5,    .d = 38,     .N = 6,
               .high = 2, .skip = true, .state = true, .init = true};
  check(p);
  p.rows = 0;
  check(p);
  close_cpu();
}
END_TEST

/* A sequence in pieces, the state handed over, equals the whole: forward, final state, every gradient. */
START_TEST(test_cuts) {
  open_cpu();
  static const int64_t pieces[] = {1, 2, 31, 64, 65, 149};
  problem p = {1, {{.len = 150, .flags = 2}}, .lanes = 1, .n = 150, .d = 5, .N = 6, .high = 3, .init = true};
  expected e = by_tokens(&p, false);
  for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) compare(&p, &e, NULL, WF_F64, pieces[k]);
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
    differ_from(t, y[0], y[1]);
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
