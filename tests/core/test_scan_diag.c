/* scan_diag, scan_sum and scan_max against their recurrences run token by token in double, forwards and
 * backwards: odd lengths and widths, shared decays from 0 to -50, rows that take, leave and begin states; any
 * cut with the state handed over; what float keeps of long sums. */
#include "tests/core/scan_test.h"

typedef struct problem {
  int64_t rows;
  wf_row row[4];
  int64_t lanes, n, d, decays; /* decays: 0 for a running sum; divides d */
  double low;                  /* log decays are in [low, 0] */
  bool state, init;
} problem;

enum { X, G, STATE, INIT, INPUTS };
static const char *const name[] = {"dx", "dg", "dstate", "dinit"};

typedef struct expected {
  int64_t count[INPUTS];
  double *in[INPUTS], *grad[INPUTS], *h, *dh, *left, *dleft;
  double *m, *drop, *m_left; /* of scan_max */
} expected;

static double log_decay(const problem *p, const expected *e, int64_t t, int64_t c) {
  return p->decays ? e->in[G][t * p->decays + c * p->decays / p->d] : 0;
}

/* Where a row's first state and its gradient lie. */
static int start_of(const problem *p, const wf_row *r, int64_t c, int64_t *at) {
  bool takes = r->flags & WF_ROW_TAKES;
  *at = takes ? r->lane * p->d + c : c;
  return takes ? (p->state ? STATE : INPUTS) : p->init ? INIT : INPUTS;
}

static void one_channel(const problem *p, expected *e, const wf_row *r, int64_t c) {
  double *h = doubles(r->len + 1), back = 0;
  int64_t at, lane = r->lane * p->d + c;
  int from = start_of(p, r, c, &at);
  bool leaves = r->flags & WF_ROW_LEAVES;
  double m = -1e30;
  if (from < INPUTS) h[0] = m = e->in[from][at];
  for (int64_t t = 0; t < r->len; t++) {
    int64_t i = (r->begin + t) * p->d + c;
    double g = log_decay(p, e, r->begin + t, c), x = e->in[X][i];
    e->h[i] = h[t + 1] = exp(g) * h[t] + x;
    e->m[i] = fmax(g + m, x);
    e->drop[i] = m - e->m[i];
    m = e->m[i];
  }
  if (leaves) {
    e->left[lane] = h[r->len];
    e->m_left[lane] = m;
    back = e->dleft[lane];
  }
  for (int64_t t = r->len - 1; t >= 0; t--) {
    int64_t i = (r->begin + t) * p->d + c;
    back += e->dh[i];
    e->grad[X][i] += back;
    back *= exp(log_decay(p, e, r->begin + t, c));
    if (p->decays) e->grad[G][(r->begin + t) * p->decays + c * p->decays / p->d] += back * h[t];
  }
  if (from < INPUTS) e->grad[from][at] += back;
  free(h);
}

static expected by_tokens(const problem *p) {
  int64_t nd = p->n * p->d, size = p->lanes * p->d;
  expected e = {.count = {nd, p->n * p->decays, size, p->d}};
  for (int i = 0; i < INPUTS; i++) {
    e.in[i] = numbers(e.count[i], name[i]);
    e.grad[i] = doubles(e.count[i]);
  }
  for (int64_t i = 0; i < e.count[G]; i++) /* a third are open */
    e.in[G][i] = i % 3 == 2 ? 0 : (double)(float)(-fabs(e.in[G][i]) * fabs(p->low) / 2);
  e.h = doubles(nd), e.dh = numbers(nd, "dh"), e.left = doubles(size), e.dleft = numbers(size, "dleft");
  e.m = doubles(nd), e.drop = doubles(nd), e.m_left = doubles(size);
  if (p->state) {
    pass_lanes(p->rows, p->row, p->lanes, p->d, e.in[STATE], e.dleft, e.left, e.grad[STATE]);
    memcpy(e.m_left, e.left, (size_t)size * sizeof *e.left);
  }
  for (int64_t r = 0; r < p->rows; r++)
    for (int64_t c = 0; c < p->d; c++) one_channel(p, &e, &p->row[r], c);
  return e;
}

static void drop(expected *e) {
  for (int i = 0; i < INPUTS; i++) free(e->in[i]), free(e->grad[i]);
  free(e->h), free(e->dh), free(e->left), free(e->dleft), free(e->m), free(e->drop), free(e->m_left);
}

/* x [n, d] as high parts of pairs, low parts zero: [n, 2, d]. */
static double *as_pairs(int64_t n, int64_t d, const double *x) {
  double *p = doubles(2 * n * d);
  for (int64_t t = 0; t < n; t++) memcpy(p + 2 * t * d, x + t * d, (size_t)d * sizeof *p);
  return p;
}

static void compare_pairs(const problem *p, const expected *e, wf_dtype dtype, const wf_rows *rows,
                          double tolerance) {
  double *state = as_pairs(p->lanes, p->d, e->in[STATE]), *dh = as_pairs(p->n, p->d, e->dh),
         *dleft = as_pairs(p->lanes, p->d, e->dleft), *h = as_pairs(p->n, p->d, e->h);
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  var x, s;
  watch(tape, &x, tensor(dtype, WF_SHAPE(p->n, p->d), e->in[X]));
  watch(tape, &s, p->state ? tensor(dtype, WF_SHAPE(p->lanes, 2, p->d), state) : NULL);
  wf_tensor *out[2], *cot[2] = {tensor(dtype, WF_SHAPE(p->n, 2, p->d), dh),
                                tensor(dtype, WF_SHAPE(p->lanes, 2, p->d), dleft)};
  wf_tape_record(tape);
  out[0] = wf_scan_sum(ctx, x.x, true, s.x, p->init ? tensor(dtype, WF_SHAPE(p->d), e->in[INIT]) : NULL, rows,
                       &out[1]);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  ok(wf_backward(tape, 2, out, cot));
  near_tensor("pairs", out[0], h, tolerance, 0);
  near_tensor("pairs' dx", x.leaf.grad, e->grad[X], tolerance, 0.01);
  double *left = values(out[1]), *ds = s.x ? values(s.leaf.grad) : NULL;
  for (int64_t l = 0; l < p->lanes; l++) {
    near("pairs' left", p->d, left + 2 * l * p->d, e->left + l * p->d, tolerance, 1);
    /* the gradient of a lane that no row leaves is passed on, each part by itself */
    bool passed = !lane_is_left(p->rows, p->row, l);
    for (int part = 0; part < (passed ? 1 : 2) && ds; part++)
      near("pairs' dstate", p->d, ds + (2 * l + part) * p->d, e->grad[STATE] + l * p->d, tolerance, 1);
  }
  free(state), free(dh), free(dleft), free(h), free(left), free(ds);
  wf_tape_free(tape);
}

static void apply(const void *arg, wf_tensor *const *in, const wf_rows *rows, wf_tensor *out[2]) {
  (void)arg;
  out[0] = wf_scan_diag(ctx, in[X], in[G], in[STATE], in[INIT], rows, &out[1]);
}
static const seq_op op = {apply, INPUTS, STATE, 1 << X | 1 << G};

/* scan_diag; `step`: in pieces of so many tokens, beginning with zeros; 0: at once. */
static void compare_sum(const problem *p, const expected *e, wf_dtype dtype, int64_t step, double tolerance) {
  wf_tensor *cot[2] = {tensor(dtype, WF_SHAPE(p->n, p->d), e->dh),
                       tensor(dtype, WF_SHAPE(p->lanes, p->d), e->dleft)};
  wf_tensor *in[INPUTS] = {tensor(dtype, WF_SHAPE(p->n, p->d), e->in[X]),
                           p->decays ? tensor(dtype, WF_SHAPE(p->n, p->decays), e->in[G]) : NULL,
                           p->state ? tensor(dtype, WF_SHAPE(p->lanes, p->d), e->in[STATE]) : NULL,
                           p->init ? tensor(dtype, WF_SHAPE(p->d), e->in[INIT]) : NULL};
  if (step) in[STATE] = wf_zeros(ctx, "test", dtype, WF_SHAPE(p->lanes, p->d));
  double *result[SEQ_RESULTS];
  seq_run(&op, p, p->rows, p->row, p->lanes, step, in, cot, result);
  near("h", p->n * p->d, result[SEQ_Y], e->h, tolerance, 0);
  near("left", p->lanes * p->d, result[SEQ_LEFT], e->left, tolerance, 0);
  for (int i = 0; i < INPUTS; i++)
    if (result[SEQ_GRADS + i] && !(step && i == STATE))
      near(name[i], e->count[i], result[SEQ_GRADS + i], e->grad[i], tolerance, 0.1);
  free_results(&op, result);
}

/* scan_max, where each channel has its own decay or none; likewise. */
static void compare_max(const problem *p, const expected *e, wf_dtype dtype, int64_t step, double tolerance) {
  wf_tensor *state = p->state ? tensor(dtype, WF_SHAPE(p->lanes, p->d), e->in[STATE]) : NULL;
  wf_tensor *init = p->init ? tensor(dtype, WF_SHAPE(p->d), e->in[INIT]) : NULL;
  for (int64_t t = 0; t < (step ? p->n : 1); t += step ? step : 1) {
    int64_t len = !step ? p->n : p->n - t < step ? p->n - t : step;
    wf_row piece = {.len = len, .pos = t, .place = t, .flags = (t ? WF_ROW_TAKES : 0) | WF_ROW_LEAVES};
    wf_rows *rows;
    ok(wf_rows_create(ctx, step ? 1 : p->rows, step ? &piece : p->row, p->lanes, &rows));
    wf_tape *tape;
    ok(wf_tape_create(ctx, &tape));
    var x, g;
    watch(tape, &x, tensor(dtype, WF_SHAPE(len, p->d), e->in[X] + t * p->d));
    watch(tape, &g, p->decays ? tensor(dtype, WF_SHAPE(len, p->d), e->in[G] + t * p->d) : NULL);
    wf_tape_record(tape);
    wf_tensor *fall, *m = wf_scan_max(ctx, x.x, g.x, state, init, rows, &fall, &state);
    wf_tape_pause(tape);
    ok(wf_ctx_check(ctx));
    ck_assert(!wf_tape_knows(tape, m) && !wf_tape_knows(tape, fall) && !wf_tape_knows(tape, state));
    near_tensor("m", m, e->m + t * p->d, tolerance, 0);
    near_tensor("drop", fall, e->drop + t * p->d, tolerance, 1);
    wf_tape_free(tape);
    wf_rows_free(rows);
  }
  near_tensor("m left", state, e->m_left, tolerance, 0);
}

static void compare(const problem *p, const expected *e, wf_dtype dtype, int64_t step, double tolerance) {
  wf_scope s = wf_scope_open(ctx);
  compare_sum(p, e, dtype, step, tolerance);
  if (!p->decays || p->decays == p->d) compare_max(p, e, dtype, step, tolerance);
  if (!p->decays && !step) {
    wf_rows *rows;
    ok(wf_rows_create(ctx, p->rows, p->row, p->lanes, &rows));
    compare_pairs(p, e, dtype, rows, tolerance);
    wf_rows_free(rows);
  }
  wf_scope_close(ctx, s);
}

static void check(problem p) {
  p.n = lay_rows(p.rows, p.row);
  expected e = by_tokens(&p);
  compare(&p, &e, WF_F64, 0, 1e-13);
  compare(&p, &e, WF_F32, 0, 3e-6);
  drop(&e);
}

START_TEST(test_sizes) {
  open_cpu();
  static const int64_t lens[] = {1, 2, 63, 64, 65, 100, 1000};
  for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
    int64_t t = lens[i];
    check((problem){
        1, {{.len = t, .flags = 3}}, .lanes = 1, .d = 70, .decays = 70, .low = -0.3, .state = true});
    check((problem){1, {{.len = t}}, .lanes = 1, .d = 1, .decays = 1, .low = -50, .init = true});
    check((problem){1, {{.len = t, .flags = 2}}, .lanes = 2, .d = 51, .decays = 3, .low = -50});
    check((problem){1, {{.len = t, .flags = 3}}, .lanes = 1, .d = 6, .decays = 3, .low = -1, .state = true});
    check((problem){1, {{.len = t, .flags = 3}}, .lanes = 2, .d = 67, .state = true, .init = true});
  }
  close_cpu();
}
END_TEST

START_TEST(test_rows) {
  open_cpu();
  problem p = {4, MIXED_ROWS, .lanes = 5, .d = 38, .low = -1, .state = true, .init = true};
  for (p.rows = 4; p.rows >= 0; p.rows -= 4)
    for (int k = 0; k < 3; k++) {
      p.decays = (int64_t[]){38, 19, 0}[k];
      check(p);
    }
  close_cpu();
}
END_TEST

/* Decays of -inf forget everything before them; nothing becomes NaN. */
START_TEST(test_forgetting) {
  open_cpu();
  problem p = {1,           {{.len = 100, .flags = 3}}, .lanes = 1, .d = 20, .low = -INFINITY, .state = true,
               .init = true};
  for (p.decays = 20; p.decays >= 5; p.decays -= 15) check(p);
  close_cpu();
}
END_TEST

/* A sequence in pieces, the state handed over, equals the whole: forward, final state, every gradient. */
START_TEST(test_cuts) {
  open_cpu();
  enum { T = 150, D = 5 };
  static const int64_t pieces[] = {1, 2, 63, 64, 65, 149};
  for (int sum = 0; sum < 2; sum++) {
    problem p = {1,      {{.len = T, .flags = 2}}, .lanes = 1,  .n = T,
                 .d = D, .decays = sum ? 0 : D,    .low = -0.2, .init = true};
    expected e = by_tokens(&p);
    for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) compare(&p, &e, WF_F64, pieces[k], 1e-13);
    drop(&e);
  }
  close_cpu();
}
END_TEST

/* A long sum of floats in pieces: each c within one rounding of the exact sum; differences of pairs within
 * some roundings of the exact difference, near and far, where those of single floats lose their digits. */
START_TEST(test_precision) {
  open_cpu();
  enum { T = 100000, PIECE = 7001 };
  double *x = doubles(T), *c = doubles(T), sum = 0;
  wf_rng_key key = wf_rng_key_make(3, "test", "long");
  for (int64_t t = 0; t < T; t++) {
    x[t] = (double)(float)(-0.3 * wf_rng_uniform(key, (uint64_t)t));
    c[t] = sum += x[t];
  }
  float *pair = calloc(2 * T, sizeof *pair), *one = calloc(T, sizeof *one);
  wf_scope s = wf_scope_open(ctx);
  wf_tensor *state = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(1, 2, 1));
  for (int64_t t = 0; t < T; t += PIECE) {
    int64_t len = T - t < PIECE ? T - t : PIECE;
    wf_row row = {.len = len, .flags = (t ? WF_ROW_TAKES : 0) | WF_ROW_LEAVES};
    wf_rows *rows;
    ok(wf_rows_create(ctx, 1, &row, 1, &rows));
    wf_tensor *p = wf_scan_sum(ctx, tensor(WF_F32, WF_SHAPE(len, 1), x + t), true, state, NULL, rows, &state);
    ok(wf_to_host(p, pair + 2 * t));
    wf_rows_free(rows);
  }
  wf_rows *rows;
  ok(wf_rows_fresh(ctx, 1, T, 0, &rows));
  ok(wf_to_host(wf_scan_diag(ctx, tensor(WF_F32, WF_SHAPE(T, 1), x), NULL, NULL, NULL, rows, NULL), one));
  wf_rows_free(rows);
  double worst = 0, single = 0;
  for (int64_t t = 0; t < T; t++) {
    ck_assert_msg(fabs((double)one[t] - c[t]) <= fabs(c[t]) * 0x1p-24, "c[%lld]", (long long)t);
    for (int64_t back = 1; back <= t; back *= 7) {
      int64_t j = t - back;
      float high = pair[2 * t] - pair[2 * j], low = pair[2 * t + 1] - pair[2 * j + 1];
      double exact = c[t] - c[j];
      double unit = fabs(exact) + fabs(c[t]) * 0x1p-24;
      worst = fmax(worst, fabs((double)(high + low) - exact) / unit);
      single = fmax(single, fabs((double)(one[t] - one[j]) - exact) / unit);
    }
  }
  ck_assert_msg(worst < 3 * 0x1p-24, "error of differences: %g", worst);
  ck_assert_msg(single > 100 * worst, "pairs are no better than floats: %g, %g", worst, single);
  wf_scope_close(ctx, s);
  free(x), free(c), free(pair), free(one);
  close_cpu();
}
END_TEST

START_TEST(test_causal_bitwise) {
  open_cpu();
  enum { T = 90, D = 37 };
  problem p = {1, {{.len = T}}, .lanes = 1, .n = T, .d = D, .decays = D, .low = -0.2};
  expected e = by_tokens(&p);
  wf_rows *rows;
  ok(wf_rows_create(ctx, 1, p.row, 1, &rows));
  for (int64_t t = 1; t < T; t += 21) {
    wf_tensor *y[2][2], *fall;
    for (int k = 0; k < 2; k++) {
      wf_tensor *x = tensor(WF_F32, WF_SHAPE(T, D), e.in[X]), *g = tensor(WF_F32, WF_SHAPE(T, D), e.in[G]);
      y[0][k] = wf_scan_diag(ctx, x, g, NULL, NULL, rows, NULL);
      y[1][k] = wf_scan_max(ctx, x, g, NULL, NULL, rows, &fall, NULL);
      for (int64_t i = t * D; i < (t + 1) * D; i++) e.in[X][i] += 7, e.in[G][i] -= 1;
    }
    for (int k = 0; k < 2; k++) differ_from(t, y[k][0], y[k][1]);
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
            *g = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 3)),
            *state = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(1, 4)), *left, *fall;
  wf_scan_diag(ctx, x, x, NULL, NULL, rows, &left);
  ck_assert(wf_is_poison(left));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  wf_scan_max(ctx, x, NULL, NULL, NULL, rows, &fall, &left);
  ck_assert(wf_is_poison(left) && wf_is_poison(fall));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  wf_scan_diag(ctx, x, g, state, NULL, rows, &left); /* 3 decays do not divide 4 channels */
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_scan_diag(ctx, x, NULL, x, NULL, rows, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_scan_sum(ctx, x, true, state, NULL, rows, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_scan_diag(ctx, x, x, state, state, rows, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_scan_max(ctx, x, wf_slice(ctx, x, 1, 0, 2), state, NULL, rows, &fall, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_rows_free(rows);
  close_cpu();
}
END_TEST

static Suite *scan_suite(void) {
  Suite *s = suite_create("elementwise scans");
  TCase *t = tcase_create("scans");
  tcase_add_test(t, test_sizes);
  tcase_add_test(t, test_rows);
  tcase_add_test(t, test_forgetting);
  tcase_add_test(t, test_cuts);
  tcase_add_test(t, test_precision);
  tcase_add_test(t, test_causal_bitwise);
  tcase_add_test(t, test_errors);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(scan_suite)
