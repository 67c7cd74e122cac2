/* The formulas of dist/cost.h, and constants that all ranks share. */
#include <math.h>

#include "dist/cost.h"
#include "tests/dist/ranks.h"

/* Seconds that can be read: a message of n bytes takes 1 + n / 10. */
static const wf_cost unit = {.latency = 1, .bandwidth = 10, .combine = 5, .flops = 1, .threads = 1};

START_TEST(formulas) {
  ck_assert_double_eq_tol(wf_cost_messages(&unit, 1, 20), 3, 1e-12);
  ck_assert_double_eq_tol(wf_cost_messages(&unit, 3, 20), 5, 1e-12);
  ck_assert_double_eq_tol(wf_cost_gather(&unit, 4, 20), 2 + 3 * 2, 1e-12);
  ck_assert_double_eq_tol(wf_cost_gather(&unit, 5, 20), 3 + 4 * 2, 1e-12);
  ck_assert_double_eq_tol(wf_cost_all_reduce(&unit, 4, 80), 2 * (2 + 3 * 2), 1e-12);
  ck_assert_double_eq_tol(wf_cost_broadcast(&unit, 8, 20), 3 * 3, 1e-12);
  ck_assert_double_eq_tol(wf_cost_log(&unit, 8, 20), 3 * (3 + 4), 1e-12);
  ck_assert_double_eq_tol(wf_cost_relay(&unit, 4, 20, 1), 3 * 3, 1e-12);
  ck_assert_double_eq_tol(wf_cost_relay(&unit, 4, 20, 2), 4 * 2, 1e-12);
  ck_assert_double_eq_tol(wf_cost_pipe(&unit, 4, 20, 2, 8), 4 * 2 + 3 * 4, 1e-12);
  /* a rank alone sends nothing */
  ck_assert_double_eq(wf_cost_gather(&unit, 1, 20), 0);
  ck_assert_double_eq(wf_cost_all_reduce(&unit, 1, 20), 0);
  ck_assert_double_eq(wf_cost_broadcast(&unit, 1, 20), 0);
  ck_assert_double_eq(wf_cost_log(&unit, 1, 20), 0);
  ck_assert_double_eq(wf_cost_pipe(&unit, 1, 20, 3, 8), 0);
}
END_TEST

static void near(double got, double want) {
  ck_assert_msg(fabs(got - want) < 0.005 * want, "%g, not %g", got, want);
}

/* 1 MB over 100 Gb/s at 10 us, 1,024 ranks. */
START_TEST(figures) {
  wf_cost c = {.latency = 10e-6, .bandwidth = 100e9 / 8, .combine = INFINITY};
  double n = 1 << 20;
  near(wf_cost_relay(&c, 1024, n, 1), 96.06e-3);
  near(wf_cost_gather(&c, 1024, n), 85.9e-3);
  int64_t K = wf_cost_blocks(&c, 1024, n, 1 << 20, 0);
  near(wf_cost_relay(&c, 1024, n, K), 12.16e-3);
  ck_assert_msg(K > 80 && K < 105, "%lld blocks", (long long)K);
  near(wf_cost_log(&c, 1024, n), 0.939e-3);
  for (int64_t k = 1; k < 300; k++) ck_assert(wf_cost_relay(&c, 1024, n, k) >= wf_cost_relay(&c, 1024, n, K));
  ck_assert(wf_cost_relay(&c, 1, n, 1) == 0 && wf_cost_gather(&c, 1, n) == 0 && wf_cost_log(&c, 1, n) == 0);
  near(wf_cost_pipe(&c, 5, n, 4, 8e-3), wf_cost_relay(&c, 5, n, 4) + 8e-3);
}
END_TEST

START_TEST(blocks) {
  ck_assert_int_eq(wf_cost_blocks(&unit, 2, 1000, 64, 0), 1); /* one hop has nothing to overlap with */
  for (int64_t P = 2; P < 40; P += 3)
    for (double n = 1; n < 1e6; n *= 7) {
      int64_t K = wf_cost_blocks(&unit, P, n, 64, 3);
      for (int64_t k = 1; k <= 64; k++)
        ck_assert(wf_cost_pipe(&unit, P, n, K, 3) <= wf_cost_pipe(&unit, P, n, k, 3));
    }
}
END_TEST

static void calibrated(wf_comm *c, void *arg) {
  wf_cost mine = {.threads = wf_comm_rank(c) == 0 ? 3 : 1};
  int e;
  (void)arg;
  WF_RANK_OK(wf_cost_calibrate(c, &mine));
  double least[] = {mine.latency, mine.bandwidth, mine.combine, mine.flops, mine.threads}, most[5];
  for (int i = 0; i < 5; i++) most[i] = least[i];
  WF_RANK_OK(wf_comm_all_reduce_host(c, WF_F64, least, 5, WF_REDUCE_MIN));
  WF_RANK_OK(wf_comm_all_reduce_host(c, WF_F64, most, 5, WF_REDUCE_MAX));
  for (int i = 0; i < 5; i++)
    WF_RANK_ASSERT(least[i] == most[i], "constant %d: %g to %g", i, least[i], most[i]);
  WF_RANK_ASSERT(frexp(mine.latency, &e) == 0.5 || wf_comm_size(c) == 1, "latency %g", mine.latency);
  WF_RANK_ASSERT(frexp(mine.bandwidth, &e) == 0.5 || wf_comm_size(c) == 1, "bandwidth %g", mine.bandwidth);
  WF_RANK_ASSERT(frexp(mine.flops, &e) == 0.5 || wf_comm_size(c) == 1, "%g operations/s", mine.flops);
  WF_RANK_ASSERT(mine.flops > 1e7 && mine.flops < 1e15, "%g operations/s", mine.flops);
  WF_RANK_ASSERT(mine.latency > 0 && mine.latency < 1 && mine.bandwidth > 1e6 && mine.bandwidth < 1e12,
                 "%g s, %g bytes/s", mine.latency, mine.bandwidth);
  WF_RANK_ASSERT(mine.threads == 3, "%d threads", mine.threads);
}

START_TEST(ranks_share_what_is_measured) {
  for (int n = 1; n < 5; n++) wf_ranks_run(n, calibrated, NULL);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("cost");
  TCase *t = tcase_create("cost");
  tcase_add_test(t, formulas);
  tcase_add_test(t, figures);
  tcase_add_test(t, blocks);
  tcase_add_test(t, ranks_share_what_is_measured);
  suite_add_tcase(s, t);
  return s;
}

WF_RANKS_MAIN(suite)
