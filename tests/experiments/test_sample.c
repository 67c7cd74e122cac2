/* Drawing ids from logits: the options, their edges, and the frequencies that come out. */
#include <math.h>
#include <stdbool.h>

#include "core/rng.h"
#include "experiments/sample.h"
#include "tests/check_main.h"

static int64_t draw(wf_sampling o, const double *logits, int64_t n, double u) {
  int64_t id = -1;
  ck_assert_msg(wf_sample_id(&o, logits, n, u, &id) == WF_OK, "%s", wf_error_message());
  return id;
}

static void refused(wf_sampling o, const double *logits, int64_t n, wf_status expected) {
  int64_t id;
  ck_assert_int_eq(wf_sample_id(&o, logits, n, 0.5, &id), expected);
}

/* log of 1, 2, 3, 4 in some order, so that probabilities are tenths */
static const double tenths[] = {0.6931471805599453, 1.3862943611198906, 0, 1.0986122886681098};
static const wf_sampling plain = {.temperature = 1, .top_p = 1};

START_TEST(greedy_takes_the_likeliest) {
  wf_sampling o = {.top_p = 1};
  ck_assert_int_eq(draw(o, tenths, 4, 0.99), 1);
  static const double ties[] = {1, 5, 5, 5, 2};
  for (int k = 0; k < 10; k++) ck_assert_int_eq(draw(o, ties, 5, k / 10.0), 1);
}
END_TEST

START_TEST(u_walks_through_the_probabilities) {
  static const int64_t expected[] = {0, 0, 1, 1, 1, 1, 2, 3, 3, 3}; /* 0.2, 0.4, 0.1, 0.3 */
  for (int k = 0; k < 10; k++) ck_assert_int_eq(draw(plain, tenths, 4, k / 10.0 + 0.05), expected[k]);
  ck_assert_int_eq(draw(plain, tenths, 4, 0), 0);
  ck_assert_int_eq(draw(plain, tenths, 4, 1 - 0x1p-53), 3);
}
END_TEST

START_TEST(temperature_sharpens_and_flattens) {
  wf_sampling half = {.temperature = 0.5, .top_p = 1}; /* squares: 4, 16, 1, 9 of 30 */
  ck_assert_int_eq(draw(half, tenths, 4, 3.9 / 30), 0);
  ck_assert_int_eq(draw(half, tenths, 4, 4.1 / 30), 1);
  ck_assert_int_eq(draw(half, tenths, 4, 20.5 / 30), 2);
  ck_assert_int_eq(draw(half, tenths, 4, 21.5 / 30), 3);
  wf_sampling cold = {.temperature = 1e-300, .top_p = 1}, hot = {.temperature = 1e6, .top_p = 1};
  for (int k = 0; k < 4; k++) {
    ck_assert_int_eq(draw(cold, tenths, 4, k / 4.0), 1);
    ck_assert_int_eq(draw(hot, tenths, 4, k / 4.0 + 0.1), k);
  }
}
END_TEST

START_TEST(top_k_keeps_the_k_likeliest) {
  wf_sampling one = {.temperature = 1, .top_k = 1, .top_p = 1},
              two = {.temperature = 1, .top_k = 2, .top_p = 1};
  wf_sampling many = {.temperature = 1, .top_k = 1000, .top_p = 1};
  for (int k = 0; k < 100; k++) {
    double u = k / 100.0 + 0.005;
    ck_assert_int_eq(draw(one, tenths, 4, u), 1);
    ck_assert_int_eq(draw(two, tenths, 4, u), u < 4.0 / 7 ? 1 : 3); /* likeliest first */
    ck_assert_int_eq(draw(many, tenths, 4, u), draw(plain, tenths, 4, u));
  }
  static const double ties[] = {2, 2, 2, 2};
  for (int k = 0; k < 10; k++) ck_assert_int_eq(draw(two, ties, 4, k / 10.0 + 0.01), k < 5 ? 0 : 1);
}
END_TEST

START_TEST(top_p_keeps_the_fewest_that_reach_it) {
  static const struct {
    double p;
    int64_t kept;
  } cases[] = {{0, 1}, {1e-300, 1}, {0.39, 1}, {0.41, 2}, {0.69, 2}, {0.71, 3}, {0.89, 3}, {0.91, 4}, {1, 4}};
  static const int64_t order[] = {1, 3, 0, 2};
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    wf_sampling o = {.temperature = 1, .top_p = cases[c].p};
    bool seen[4] = {false};
    for (int k = 0; k < 1000; k++) seen[draw(o, tenths, 4, k / 1000.0)] = true;
    for (int64_t i = 0; i < 4; i++)
      ck_assert_msg(seen[order[i]] == (i < cases[c].kept), "top_p %g, id %d", cases[c].p, (int)order[i]);
  }
  /* a share of what top_k left: 4/7 and 3/7 */
  wf_sampling both = {.temperature = 1, .top_k = 2, .top_p = 0.5};
  for (int k = 0; k < 10; k++) ck_assert_int_eq(draw(both, tenths, 4, k / 10.0), 1);
}
END_TEST

START_TEST(impossible_ids_are_never_drawn) {
  static const double logits[] = {-INFINITY, 0, -INFINITY, 0, -INFINITY};
  static const wf_sampling all[] = {{1, 0, 1}, {1, 4, 1}, {1, 0, 0.999999}, {1, 3, 0.9}, {0.1, 0, 1}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    for (int k = 0; k < 64; k++) ck_assert_int_eq(draw(all[i], logits, 5, k / 64.0) % 2, 1);
}
END_TEST

START_TEST(bad_logits_and_options_are_errors) {
  static const double nan_[] = {0, NAN}, first_nan[] = {NAN, 0}, inf[] = {0, INFINITY}, none[] = {-INFINITY};
  refused(plain, nan_, 2, WF_ENUMERIC);
  refused(plain, first_nan, 2, WF_ENUMERIC);
  refused((wf_sampling){.top_p = 1}, nan_, 2, WF_ENUMERIC);
  refused(plain, inf, 2, WF_ENUMERIC);
  refused(plain, none, 1, WF_ENUMERIC);
  refused(plain, tenths, 0, WF_ENUMERIC);
  refused((wf_sampling){.temperature = -1, .top_p = 1}, tenths, 4, WF_EINVAL);
  refused((wf_sampling){.temperature = NAN, .top_p = 1}, tenths, 4, WF_EINVAL);
  refused((wf_sampling){.temperature = INFINITY, .top_p = 1}, tenths, 4, WF_EINVAL);
  refused((wf_sampling){.temperature = 1, .top_k = -1, .top_p = 1}, tenths, 4, WF_EINVAL);
  refused((wf_sampling){.temperature = 1, .top_p = 1.1}, tenths, 4, WF_EINVAL);
  refused((wf_sampling){.temperature = 1, .top_p = NAN}, tenths, 4, WF_EINVAL);
}
END_TEST

/* Against a plain sort, on many random distributions with ties. */
START_TEST(the_heap_agrees_with_a_sort) {
  enum { N = 37 };
  wf_rng_key key = wf_rng_key_make(3, "test", "sample");
  for (uint64_t trial = 0; trial < 300; trial++) {
    double logits[N];
    int64_t order[N];
    for (uint64_t i = 0; i < N; i++) {
      logits[i] = (double)wf_rng_below(key, trial * 100 + i, 12) / 3;
      int64_t at = (int64_t)i; /* insertion keeps equal ones in the order of their ids */
      for (; at > 0 && logits[order[at - 1]] < logits[i]; at--) order[at] = order[at - 1];
      order[at] = (int64_t)i;
    }
    int64_t k = 1 + (int64_t)wf_rng_below(key, trial * 100 + 50, N);
    double p = wf_rng_uniform(key, trial * 100 + 51), u = wf_rng_uniform(key, trial * 100 + 52);
    double all = 0, sum = 0, at = 0;
    int64_t kept = 0, expected = -1;
    for (int64_t i = 0; i < k; i++) all += exp(logits[order[i]] - logits[order[0]]);
    while (kept < k && (kept == 0 || sum < p * all)) sum += exp(logits[order[kept++]] - logits[order[0]]);
    for (int64_t i = 0; i < kept && expected < 0; i++)
      if ((at += exp(logits[order[i]] - logits[order[0]])) > u * sum) expected = order[i];
    if (k < N) ck_assert_int_eq(draw((wf_sampling){1, k, p}, logits, N, u), expected);
  }
}
END_TEST

static Suite *sample_suite(void) {
  Suite *s = suite_create("sample");
  TCase *t = tcase_create("sample");
  tcase_add_test(t, greedy_takes_the_likeliest);
  tcase_add_test(t, u_walks_through_the_probabilities);
  tcase_add_test(t, temperature_sharpens_and_flattens);
  tcase_add_test(t, top_k_keeps_the_k_likeliest);
  tcase_add_test(t, top_p_keeps_the_fewest_that_reach_it);
  tcase_add_test(t, impossible_ids_are_never_drawn);
  tcase_add_test(t, bad_logits_and_options_are_errors);
  tcase_add_test(t, the_heap_agrees_with_a_sort);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(sample_suite)
