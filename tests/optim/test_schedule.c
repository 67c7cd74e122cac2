/* Each schedule at its corners and midway; warm-up; short runs; falling and continuous everywhere. */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "optim/schedule.h"
#include "tests/check_main.h"

static void *options_of(const wf_schedule_type *type, const char *const *set) {
  void *o = calloc(1, type->options_size);
  ck_assert_int_eq(wf_options_defaults(type->options, o), WF_OK);
  for (; set && *set; set += 2) ck_assert_int_eq(wf_options_set(type->options, o, set[0], set[1]), WF_OK);
  return o;
}

static double at(const char *name, const char *const *set, int64_t steps, int64_t step) {
  const wf_schedule_type *type = wf_schedule_find(name);
  ck_assert_ptr_nonnull(type);
  void *o = options_of(type, set);
  double f = wf_schedule_factor(type, o, steps, step);
  wf_options_free(type->options, o);
  free(o);
  return f;
}

#define CLOSE(a, b) ck_assert_double_eq_tol((a), (b), 1e-12)

static const char *const warm[] = {"warmup", "10", NULL};
static const char *const cosine_set[] = {"warmup", "10", "min_ratio", "0.2", NULL};
static const char *const linear_set[] = {"warmup", "10", "min_ratio", "0.2", NULL};

START_TEST(warmup) {
  static const char *const names[] = {"constant", "linear", "cosine", "wsd"};
  for (int k = 0; k < 4; k++) {
    CLOSE(at(names[k], warm, 110, 0), 0.1);
    CLOSE(at(names[k], warm, 110, 4), 0.5);
    CLOSE(at(names[k], warm, 110, 9), 1);
    CLOSE(at(names[k], warm, 110, 10), 1);
    CLOSE(at(names[k], warm, 5, 4), 0.5); /* a run shorter than its warm-up */
    CLOSE(at(names[k], warm, 5, 20), 1);
    CLOSE(at(names[k], NULL, 100, 0), 1); /* no warm-up */
  }
}
END_TEST

START_TEST(courses) {
  CLOSE(at("constant", warm, 110, 109), 1);
  CLOSE(at("constant", warm, 110, 1000), 1);
  CLOSE(at("linear", linear_set, 110, 60), 0.6);
  CLOSE(at("linear", linear_set, 110, 109), 0.2 + 0.8 * 0.01);
  CLOSE(at("linear", linear_set, 110, 110), 0.2);
  CLOSE(at("linear", linear_set, 110, 999), 0.2);
  CLOSE(at("cosine", cosine_set, 110, 35), 0.2 + 0.8 * (2 + sqrt(2)) / 4);
  CLOSE(at("cosine", cosine_set, 110, 60), 0.6);
  CLOSE(at("cosine", cosine_set, 110, 110), 0.2);
  CLOSE(at("cosine", NULL, 100, 100), 0.1);
}
END_TEST

START_TEST(warmup_stable_decay) {
  static const char *const linear[] = {"warmup", "10", "decay_fraction", "0.25", "min_ratio", "0.1", NULL};
  CLOSE(at("wsd", linear, 110, 50), 1);
  CLOSE(at("wsd", linear, 110, 85), 1);
  CLOSE(at("wsd", linear, 110, 86), 1 - 0.9 / 25);
  CLOSE(at("wsd", linear, 110, 110), 0.1);
  static const char *const cosine[] = {"decay_fraction", "0.5", "shape", "cosine", NULL};
  CLOSE(at("wsd", cosine, 100, 75), 0.5);
  static const char *const root[] = {"decay_fraction", "0.5", "shape", "sqrt", NULL};
  CLOSE(at("wsd", root, 100, 50), 1);
  CLOSE(at("wsd", root, 200, 125), 0.5); /* a quarter of the fall: 1 - 1/2 */
  CLOSE(at("wsd", root, 100, 100), 0);
  static const char *const none[] = {"decay_fraction", "0", NULL};
  CLOSE(at("wsd", none, 100, 99), 1);
  static const char *const all[] = {"decay_fraction", "1", NULL};
  CLOSE(at("wsd", all, 100, 25), 0.75);
}
END_TEST

START_TEST(never_rises_after_the_warmup) {
  for (int k = 0; k < wf_schedule_count(); k++) {
    const wf_schedule_type *type = wf_schedule_at(k);
    double last = 1;
    for (int64_t step = 10; step <= 1010; step++) {
      double f = at(type->name, warm, 1010, step);
      ck_assert(f >= 0 && f <= last + 1e-15 && last - f < 0.006);
      last = f;
    }
  }
  ck_assert_ptr_null(wf_schedule_at(wf_schedule_count()));
  ck_assert_ptr_null(wf_schedule_find("step"));
}
END_TEST

static Suite *schedule_suite(void) {
  Suite *s = suite_create("schedule");
  TCase *t = tcase_create("schedule");
  tcase_add_test(t, warmup);
  tcase_add_test(t, courses);
  tcase_add_test(t, warmup_stable_decay);
  tcase_add_test(t, never_rises_after_the_warmup);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(schedule_suite)
