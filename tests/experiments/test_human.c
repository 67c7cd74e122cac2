/* Lists of numbers as people write them. */
#include "experiments/human.h"
#include "tests/check_main.h"

#include <string.h>

START_TEST(lists_are_read) {
  int64_t x[4];
  int n;
  ck_assert_int_eq(wf_human_read("x", "1k,4096,2M,1.5k", x, 4, &n), WF_OK);
  ck_assert_int_eq(n, 4);
  ck_assert_int_eq(x[0], 1024);
  ck_assert_int_eq(x[1], 4096);
  ck_assert_int_eq(x[2], 2 << 20);
  ck_assert_int_eq(x[3], 1536);
  ck_assert_int_eq(wf_human_read("x", "7", x, 1, &n), WF_OK);
  ck_assert_int_eq(n, 1);
  ck_assert_int_eq(x[0], 7);
}
END_TEST

START_TEST(others_are_refused) {
  static const char *const bad[] = {"",    ",",   "1,",  "1,,2", "k",   "0",     "-3",
                                    "1.5", "1kk", "1 k", "nan",  "inf", "1e300", "2x"};
  int64_t x[4];
  int n;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    ck_assert_msg(wf_human_read("--seq-len", bad[i], x, 4, &n) == WF_EINVAL, "%s", bad[i]);
    ck_assert_ptr_nonnull(strstr(wf_error_message(), "--seq-len: "));
  }
  ck_assert_int_eq(wf_human_read("x", "1,2,3,4,5", x, 4, &n), WF_EINVAL);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "more than 4 numbers"));
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("human");
  TCase *t = tcase_create("human");
  tcase_add_test(t, lists_are_read);
  tcase_add_test(t, others_are_refused);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
