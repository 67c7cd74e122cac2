/* The global norm in f32 and f64 and over several groups, the same for any number of threads; the clip
 * factor; infinities and NaNs, and the name of the parameter that has them. */
#include "optim_test.h"

#ifdef _OPENMP
#  include <omp.h>
#endif

#include "optim/clip.h"

enum { N = 100003 };
static double x[N], y[N];
static const int64_t shape_a[] = {2, 5}, shape_b[] = {N - 20};
static const wf_opt_range ranges[] = {{"first.weight", 3, 10, 2, shape_a},
                                      {"second.bias", 15, N - 20, 1, shape_b}};

static void fill(double scale) {
  for (int i = 0; i < N; i++) x[i] = scale * draw(0, i);
}

static double plain(int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; i++) s += x[i] * x[i];
  return s;
}

START_TEST(sums) {
  static const int64_t sizes[] = {0, 1, 31, 32, 33, 63, 64, 65, 1000, 2047, 2049, N};
  fill(1);
  for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
    for (int wide = 0; wide < 2; wide++) {
      wf_opt_group g = make_group(wide ? WF_F64 : WF_F32, sizes[k], y, x, 0, NULL);
      double got, want = plain(sizes[k]);
      OK(wf_grad_sumsq(ctx, 1, &g, &got));
      ck_assert_double_le(fabs(got - want), 1e-12 * want);
    }
}
END_TEST

START_TEST(groups_together) {
  fill(1e25); /* squares beyond float */
  wf_opt_group g[3];
  double want = plain(N) + plain(7);
  g[0] = make_group(WF_F32, N, y, x, 0, NULL);
  g[1] = make_group(WF_F32, 0, y, x, 0, NULL);
  g[2] = make_group(WF_F64, 7, y, x, 0, NULL);
  double got;
  OK(wf_grad_sumsq(ctx, 3, g, &got));
  ck_assert_double_lt(fabs(got - want), 1e-6 * want); /* g[0] is rounded to float */
  OK(wf_grad_sumsq(ctx, 0, NULL, &got));
  ck_assert_double_eq(got, 0);
}
END_TEST

START_TEST(any_number_of_threads) {
  fill(1);
  wf_opt_group g = make_group(WF_F32, N, y, x, 0, NULL);
  double first = 0;
  for (int threads = 1; threads <= 5; threads++) {
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    double got;
    OK(wf_grad_sumsq(ctx, 1, &g, &got));
    if (threads == 1) first = got;
    ck_assert_double_eq(got, first);
  }
}
END_TEST

START_TEST(factor) {
  wf_grad_norm m = wf_grad_clip(100, 0.5, 1);
  ck_assert_double_eq(m.norm, 5);
  ck_assert(m.clipped);
  ck_assert_double_eq_tol(m.scale, 0.5 / (5 + 1e-6), 1e-15);
  m = wf_grad_clip(100, 0.5, 6);
  ck_assert(!m.clipped);
  ck_assert_double_eq(m.scale, 0.5);
  m = wf_grad_clip(100, 0.5, 0);
  ck_assert(!m.clipped);
  ck_assert_double_eq(m.scale, 0.5);
  m = wf_grad_clip(0, 1, 1);
  ck_assert_double_eq(m.scale, 1);
  m = wf_grad_clip((double)INFINITY, 1, 1);
  ck_assert(isinf(m.norm) && isnan(m.scale) && !m.clipped);
  m = wf_grad_clip((double)NAN, 1, 1);
  ck_assert(isnan(m.norm) && isnan(m.scale) && !m.clipped);
}
END_TEST

START_TEST(names_the_bad_one) {
  fill(1);
  wf_opt_group g[2];
  wf_grad_bad bad;
  wf_grad_norm m;
  g[0] = make_group(WF_F64, 7, y, x, 0, NULL);
  g[1] = make_group(WF_F32, N, y, x, 2, ranges);
  OK(wf_grad_find_bad(2, g, &bad));
  ck_assert_ptr_null(bad.range);
  x[15 + 70000] = (double)INFINITY;
  overwrite(g[1].grad, x);
  OK(wf_grad_measure(ctx, 2, g, 1, 1, &m));
  ck_assert(isnan(m.scale));
  OK(wf_grad_find_bad(2, g, &bad));
  ck_assert_str_eq(bad.range->name, "second.bias");
  ck_assert_int_eq(bad.index, 70000);
  ck_assert_int_eq(bad.count, 1);
  ck_assert(isinf(bad.value));
  x[3 + 9] = (double)NAN;
  overwrite(g[1].grad, x);
  OK(wf_grad_measure(ctx, 2, g, 1, 1, &m));
  ck_assert(isnan(m.scale));
  OK(wf_grad_find_bad(2, g, &bad));
  ck_assert_str_eq(bad.range->name, "first.weight");
  ck_assert_int_eq(bad.index, 9);
  ck_assert_int_eq(bad.count, 2);
  ck_assert(isnan(bad.value));
}
END_TEST

/* Clipping inside the step is the step of clipped gradients. */
START_TEST(folded) {
  fill(1);
  wf_opt_group a = make_group(WF_F64, 65, y, x, 0, NULL), b;
  wf_grad_norm m;
  OK(wf_grad_measure(ctx, 1, &a, 0.125, 0.1, &m));
  ck_assert(m.clipped);
  for (int i = 0; i < 65; i++) x[i] *= m.scale;
  b = make_group(WF_F64, 65, y, x, 0, NULL);
  wf_optimizer *oa = make_optimizer("adamw", NULL, 1, &a), *ob = make_optimizer("adamw", NULL, 1, &b);
  OK(wf_optimizer_step(oa, 1, m.scale));
  OK(wf_optimizer_step(ob, 1, 1));
  double pa[65], pb[65];
  to_doubles(a.value, pa);
  to_doubles(b.value, pb);
  ck_assert_double_lt(err2(65, pa, pb), 1e-14);
  OK(wf_grad_measure(ctx, 1, &b, 1, 0.1, &m));
  ck_assert_double_eq_tol(m.norm, 0.1, 1e-6);
  wf_optimizer_free(oa);
  wf_optimizer_free(ob);
}
END_TEST

START_TEST(failing_allocations) {
  fill(1);
  wf_opt_group g = make_group(WF_F32, N, y, x, 2, ranges);
  wf_status s = WF_ENOMEM;
  int64_t live = 0, n = 0;
  while (s != WF_OK) {
    wf_device_trim(dev);
    live = wf_mem_live();
    wf_mem_fail_at(++n);
    wf_grad_norm m;
    wf_grad_bad bad;
    s = wf_grad_measure(ctx, 1, &g, 1, 1, &m);
    if (s == WF_OK) s = wf_grad_find_bad(1, &g, &bad);
    wf_mem_fail_at(0);
    ck_assert(s == WF_OK || s == WF_ENOMEM);
    ck_assert_int_eq(wf_ctx_check(ctx), WF_OK);
    ck_assert_int_lt(n, 100);
  }
  wf_device_trim(dev);
  ck_assert_int_eq(wf_mem_live(), live);
  ck_assert_int_gt(n, 2);
}
END_TEST

static Suite *clip_suite(void) {
  Suite *s = suite_create("clip");
  TCase *t = tcase_create("clip");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_test(t, sums);
  tcase_add_test(t, groups_together);
  tcase_add_test(t, any_number_of_threads);
  tcase_add_test(t, factor);
  tcase_add_test(t, names_the_bad_one);
  tcase_add_test(t, folded);
  tcase_add_test(t, failing_allocations);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(clip_suite)
