/* Muon against plain loops: tall, wide, square and degenerate matrices in one group with padding between; the
 * singular values it leaves; AdamW for the other groups at its own rate; equal bytes in two runs. */
#include "optim_test.h"

enum { STEPS = 4, MOST = 64 * 65 };

static const int64_t shapes[][2] = {{12, 5}, {5, 12}, {7, 7}, {1, 9}, {9, 1}, {64, 65}, {0, 3}, {33, 63}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* y [r, c] = a x, with a [r, k] */
static void product(const double *a, const double *x, double *y, int64_t r, int64_t k, int64_t c) {
  for (int64_t i = 0; i < r; i++)
    for (int64_t j = 0; j < c; j++) {
      y[i * c + j] = 0;
      for (int64_t l = 0; l < k; l++) y[i * c + j] += a[i * k + l] * x[l * c + j];
    }
}

static void transpose(const double *x, double *y, int64_t r, int64_t c) {
  for (int64_t i = 0; i < r; i++)
    for (int64_t j = 0; j < c; j++) y[j * r + i] = x[i * c + j];
}

/* The iteration as the paper writes it: on the wide form, transposed there and back. */
static void newton_schulz(double *g, int64_t r, int64_t c) {
  static double x[MOST], xt[MOST], s[MOST], ss[MOST], y[MOST];
  bool tall = r > c;
  int64_t m = tall ? c : r, n = tall ? r : c;
  double norm = 0;
  for (int64_t i = 0; i < r * c; i++) norm += g[i] * g[i];
  if (tall)
    transpose(g, x, r, c);
  else
    memcpy(x, g, (size_t)(r * c) * sizeof *x);
  for (int64_t i = 0; i < r * c; i++) x[i] /= sqrt(norm) + 1e-7;
  for (int k = 0; k < 5; k++) {
    transpose(x, xt, m, n);
    product(x, xt, s, m, n, m);
    product(s, s, ss, m, m, m);
    for (int64_t i = 0; i < m * m; i++) s[i] = -4.7750 * s[i] + 2.0315 * ss[i];
    product(s, x, y, m, m, n);
    for (int64_t i = 0; i < r * c; i++) x[i] = 3.4445 * x[i] + y[i];
  }
  if (tall)
    transpose(x, g, m, n);
  else
    memcpy(g, x, (size_t)(r * c) * sizeof *x);
}

static void muon_loop(double *p, const double *g, double *m, int64_t r, int64_t c, double lr, double wd) {
  static double u[MOST];
  for (int64_t i = 0; i < r * c; i++) {
    m[i] = 0.95 * m[i] + 0.05 * g[i];
    u[i] = 0.05 * g[i] + 0.95 * m[i];
  }
  newton_schulz(u, r, c);
  double scale = sqrt(r > c ? (double)r / (double)c : 1);
  for (int64_t i = 0; i < r * c; i++) p[i] = p[i] * (1 - lr * wd) - lr * scale * u[i];
}

/* All shapes one after another, with i elements of padding after the i-th. */
static int64_t lay_out(wf_opt_range *range) {
  int64_t at = 0;
  for (int k = 0; k < N_SHAPES; k++) {
    range[k] = (wf_opt_range){"w", at, shapes[k][0] * shapes[k][1], 2, shapes[k]};
    at += range[k].numel + k;
  }
  return at;
}

static void run(wf_dtype dtype) {
  wf_opt_range range[N_SHAPES];
  int64_t n = lay_out(range);
  double *p = calloc((size_t)(4 * n), sizeof *p), *g = p + n, *m = g + n, *got = m + n;
  for (int64_t i = 0; i < n; i++) p[i] = draw(0, i);
  wf_opt_group group = make_group(dtype, n, p, g, N_SHAPES, range);
  group.matrix = true;
  group.lr_scale = 0.5;
  wf_optimizer *opt = make_optimizer("muon", (const char *[]){"lr=0.1", "weight_decay=0.2", NULL}, 1, &group);
  ck_assert_str_eq(wf_optimizer_state_name(opt, 0, 0), "momentum");
  ck_assert_int_eq(wf_optimizer_n_states(opt, 0), 1);
  for (int t = 1; t <= STEPS; t++) {
    for (int64_t i = 0; i < n; i++) g[i] = draw(t, i);
    overwrite(group.grad, g);
    OK(wf_optimizer_step(opt, 0.8, 1.0 / t));
    for (int64_t i = 0; i < n; i++) g[i] /= t;
    for (int k = 0; k < N_SHAPES; k++) {
      int64_t o = range[k].offset;
      if (range[k].numel) muon_loop(p + o, g + o, m + o, shapes[k][0], shapes[k][1], 0.04, 0.2);
    }
  }
  to_doubles(group.value, got);
  double err = err2(n, got, p);
  ck_assert_msg(err < (dtype == WF_F64 ? 1e-12 : 1e-5), "err2 %g", err);
  for (int k = 0; k < N_SHAPES; k++) /* padding is left alone */
    for (int64_t i = range[k].offset + range[k].numel; i < range[k].offset + range[k].numel + k; i++)
      ck_assert_double_eq(got[i], draw(0, i));
  to_doubles(wf_optimizer_state(opt, 0, 0), got);
  ck_assert_double_lt(err2(n, got, m), dtype == WF_F64 ? 1e-13 : 1e-6);
  wf_optimizer_free(opt);
  free(p);
}

START_TEST(formula) {
  run(WF_F64);
  run(WF_F32);
}
END_TEST

/* x x^T of what one step subtracts is near the identity. */
START_TEST(orthogonal) {
  enum { R = 20, C = 37 };
  static const int64_t shape[] = {R, C};
  wf_opt_range range = {"w", 0, R * C, 2, shape};
  double p[R * C] = {0}, g[R * C], pt[R * C], s[R * R];
  for (int i = 0; i < R * C; i++) g[i] = draw(0, i);
  wf_opt_group group = make_group(WF_F32, R * C, p, g, 1, &range);
  group.matrix = true;
  wf_optimizer *opt = make_optimizer("muon", (const char *[]){"lr=1", NULL}, 1, &group);
  OK(wf_optimizer_step(opt, 1, 1));
  to_doubles(group.value, p);
  transpose(p, pt, R, C);
  product(p, pt, s, R, C, R);
  for (int i = 0; i < R; i++)
    for (int j = 0; j < R; j++) ck_assert_double_lt(fabs(s[i * R + j] - (i == j)), 0.5);
  wf_optimizer_free(opt);
}
END_TEST

/* A zero gradient moves nothing but the decay, and no NaN appears. */
START_TEST(zero_gradient) {
  static const int64_t shape[] = {3, 4};
  wf_opt_range range = {"w", 0, 12, 2, shape};
  double p[12], g[12] = {0}, got[12];
  for (int i = 0; i < 12; i++) p[i] = draw(0, i);
  wf_opt_group group = make_group(WF_F64, 12, p, g, 1, &range);
  group.matrix = true;
  wf_optimizer *opt = make_optimizer("muon", (const char *[]){"lr=0.5", "weight_decay=0.1", NULL}, 1, &group);
  OK(wf_optimizer_step(opt, 1, 1));
  to_doubles(group.value, got);
  for (int i = 0; i < 12; i++) ck_assert_double_eq_tol(got[i], p[i] * 0.95, 1e-15);
  wf_optimizer_free(opt);
}
END_TEST

START_TEST(adamw_beside) {
  enum { N = 65 };
  double p[N], g[N], a[N], b[N];
  for (int i = 0; i < N; i++) p[i] = draw(0, i), g[i] = draw(1, i);
  wf_opt_group x = make_group(WF_F64, N, p, g, 0, NULL), y = make_group(WF_F64, N, p, g, 0, NULL);
  wf_optimizer *muon = make_optimizer("muon", (const char *[]){"adamw_lr=0.003", NULL}, 1, &x);
  wf_optimizer *adamw = make_optimizer("adamw", (const char *[]){"lr=0.003", NULL}, 1, &y);
  ck_assert_int_eq(wf_optimizer_n_states(muon, 0), 2);
  for (int t = 0; t < 3; t++) {
    OK(wf_optimizer_step(muon, 0.7, 0.5));
    OK(wf_optimizer_step(adamw, 0.7, 0.5));
  }
  to_doubles(x.value, a);
  to_doubles(y.value, b);
  ck_assert_mem_eq(a, b, sizeof a);
  wf_optimizer_free(muon);
  wf_optimizer_free(adamw);
}
END_TEST

START_TEST(bitwise) {
  wf_opt_range range[N_SHAPES];
  int64_t n = lay_out(range);
  double *x = malloc((size_t)n * 4 * sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = draw(0, i);
  for (int k = 0; k < 2; k++) {
    wf_opt_group group = make_group(WF_F32, n, x, x, N_SHAPES, range);
    group.matrix = true;
    wf_optimizer *opt = make_optimizer("muon", NULL, 1, &group);
    for (int t = 0; t < 3; t++) OK(wf_optimizer_step(opt, 1, 1));
    to_doubles(group.value, x + (k + 1) * n);
    wf_optimizer_free(opt);
  }
  ck_assert_mem_eq(x + n, x + 2 * n, (size_t)n * sizeof *x);
  free(x);
}
END_TEST

static Suite *muon_suite(void) {
  Suite *s = suite_create("muon");
  TCase *t = tcase_create("muon");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_test(t, formula);
  tcase_add_test(t, orthogonal);
  tcase_add_test(t, zero_gradient);
  tcase_add_test(t, adamw_beside);
  tcase_add_test(t, bitwise);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(muon_suite)
