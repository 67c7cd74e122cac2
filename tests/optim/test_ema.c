/* The average against a plain loop, with and without warm-up; swapping in and out; resuming; failures. */
#include "optim_test.h"

#include "optim/ema.h"

enum { N = 301, STEPS = 20 };

static double p[N], zero[N];

static void run(wf_dtype dtype, bool warmup) {
  for (int i = 0; i < N; i++) p[i] = draw(0, i);
  wf_opt_group g[2] = {make_group(dtype, N, p, zero, 0, NULL), make_group(dtype, 0, p, zero, 0, NULL)};
  wf_ema *ema;
  OK(wf_ema_create(ctx, &(wf_ema_options){0.8, warmup}, 2, g, &ema));
  double want[N], got[N];
  memcpy(want, p, sizeof p);
  for (int t = 1; t <= STEPS; t++) {
    double d = warmup ? fmin(0.8, (1.0 + t) / (10.0 + t)) : 0.8;
    for (int i = 0; i < N; i++) {
      p[i] = draw(t, i);
      want[i] = d * want[i] + (1 - d) * p[i];
    }
    overwrite(g[0].value, p);
    OK(wf_ema_update(ema));
  }
  double tol = dtype == WF_F64 ? 1e-14 : 1e-6;
  to_doubles(wf_ema_average(ema, 0), got);
  ck_assert_double_lt(err2(N, got, want), tol);
  OK(wf_ema_swap(ema));
  ck_assert(wf_ema_swapped(ema));
  to_doubles(g[0].value, got);
  ck_assert_double_lt(err2(N, got, want), tol);
  ck_assert_int_eq(wf_ema_update(ema), WF_EINVAL);
  OK(wf_ema_swap(ema));
  ck_assert(!wf_ema_swapped(ema));
  to_doubles(g[0].value, got);
  ck_assert_mem_eq(got, p, sizeof p); /* bitwise back: the draws are exact in float */
  ck_assert_int_eq(wf_ema_updates(ema), STEPS);
  wf_ema_free(ema);
}

START_TEST(averages) {
  run(WF_F32, true);
  run(WF_F64, true);
  run(WF_F32, false);
  run(WF_F64, false);
}
END_TEST

START_TEST(resumes) {
  double got[2][N];
  for (int cut = 0; cut < 2; cut++) {
    for (int i = 0; i < N; i++) p[i] = draw(0, i);
    wf_opt_group g = make_group(WF_F64, N, p, zero, 0, NULL);
    wf_ema *ema;
    OK(wf_ema_create(ctx, &(wf_ema_options){0.999, true}, 1, &g, &ema));
    for (int t = 1; t <= 4; t++) {
      for (int i = 0; i < N; i++) p[i] = draw(t, i);
      overwrite(g.value, p);
      if (cut && t == 3) {
        double average[N];
        to_doubles(wf_ema_average(ema, 0), average);
        int64_t updates = wf_ema_updates(ema);
        wf_ema_free(ema);
        OK(wf_ema_create(ctx, &(wf_ema_options){0.999, true}, 1, &g, &ema));
        overwrite(wf_ema_average(ema, 0), average);
        wf_ema_set_updates(ema, updates);
      }
      OK(wf_ema_update(ema));
    }
    to_doubles(wf_ema_average(ema, 0), got[cut]);
    wf_ema_free(ema);
  }
  ck_assert_mem_eq(got[0], got[1], sizeof got[0]);
}
END_TEST

START_TEST(failing_allocations) {
  wf_opt_group g[2] = {make_group(WF_F32, N, p, zero, 0, NULL), make_group(WF_F32, N, p, zero, 0, NULL)};
  wf_status s = WF_ENOMEM;
  int64_t live = 0, n = 0;
  while (s != WF_OK) {
    wf_device_trim(dev);
    live = wf_mem_live();
    wf_ema *ema = NULL;
    wf_mem_fail_at(++n);
    s = wf_ema_create(ctx, &(wf_ema_options){0.9, false}, 2, g, &ema);
    if (s == WF_OK) s = wf_ema_update(ema);
    if (s == WF_OK) s = wf_ema_swap(ema);
    wf_mem_fail_at(0);
    wf_ema_free(ema);
    ck_assert(s == WF_OK || s == WF_ENOMEM);
    ck_assert_int_eq(wf_ctx_check(ctx), WF_OK);
    ck_assert_int_lt(n, 100);
  }
  wf_device_trim(dev);
  ck_assert_int_eq(wf_mem_live(), live);
  ck_assert_int_ge(n, 4);
}
END_TEST

static Suite *ema_suite(void) {
  Suite *s = suite_create("ema");
  TCase *t = tcase_create("ema");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_test(t, averages);
  tcase_add_test(t, resumes);
  tcase_add_test(t, failing_allocations);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(ema_suite)
