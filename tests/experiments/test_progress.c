/* The live line, the plain lines, and numbers as people read them. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "experiments/human.h"
#include "experiments/progress.h"
#include "tests/check_main.h"

static char *shown;
static size_t shown_size;

static wf_progress begin(bool live, int width, int64_t first, int64_t steps, int64_t every) {
  wf_progress p;
  FILE *f = open_memstream(&shown, &shown_size);
  ck_assert_ptr_nonnull(f);
  wf_progress_start_as(&p, f, live, width, first, steps, every, 0.5, 100);
  return p;
}

static void expect_shown(wf_progress *p, const char *text) {
  fflush(p->out);
  ck_assert_str_eq(shown, text);
}

static void finish(wf_progress *p) {
  fclose(p->out);
  free(shown);
}

static void go(wf_progress *p, int64_t step, double loss, double now) {
  const wf_progress_step s = {step, 1000, loss, 1e-3, 0.82, 0.614, 312.0 * 1048576};
  wf_progress_step_done(p, &s, now);
}

START_TEST(plain_lines_come_at_their_steps) {
  wf_progress p = begin(false, 80, 0, 6, 3);
  for (int64_t i = 1; i <= 6; i++) go(&p, i, 4.0 - (double)(i % 2), 100 + (double)i);
  expect_shown(&p,
               "step 1/6  loss 3 (3)  1.00k tok/s  0:05 left  lr 0.001  |g| 0.82  61% of peak  312 MiB\n"
               "step 3/6  loss 3 (3.286)  1.00k tok/s  0:03 left  lr 0.001  |g| 0.82  61% of peak  312 MiB\n"
               "step 6/6  loss 4 (3.667)  1.00k tok/s  lr 0.001  |g| 0.82  61% of peak  312 MiB\n");
  wf_progress_end(&p, 6, 106);
  ck_assert_ptr_nonnull(
      strstr(shown, "6 steps, 6.00k tokens in 0:06, 1.00k tokens/s, smoothed loss 3.667\n"));
  finish(&p);
}
END_TEST

START_TEST(unknown_values_are_left_out) {
  wf_progress p = begin(false, 80, 10, 11, 5);
  const double nan = (double)NAN;
  const wf_progress_step s = {11, 10, nan, 0.5, nan, nan, nan};
  wf_progress_step_done(&p, &s, 102);
  expect_shown(&p, "step 11/11  loss nan (nan)  5 tok/s  lr 0.5\n");
  finish(&p);
}
END_TEST

START_TEST(the_live_line_fits_and_is_redrawn) {
  wf_progress p = begin(true, 80, 0, 4, 1);
  go(&p, 1, 3, 101);
  expect_shown(&p, "\r\033[K[===>        ] 1/4  loss 3 (3)  1.00k tok/s  0:03 left  lr 0.001  |g| 0.82");
  go(&p, 2, 3, 101.01); /* too soon to draw again */
  expect_shown(&p, "\r\033[K[===>        ] 1/4  loss 3 (3)  1.00k tok/s  0:03 left  lr 0.001  |g| 0.82");
  wf_progress_note(&p, "val_loss %.1f", 2.5);
  ck_assert_ptr_nonnull(strstr(shown, "|g| 0.82\r\033[Kval_loss 2.5\n"));
  go(&p, 4, 3, 101.02); /* the last step is always drawn */
  ck_assert_ptr_nonnull(strstr(shown, "val_loss 2.5\n\r\033[K[============] 4/4"));
  wf_progress_end(&p, 4, 104);
  ck_assert_ptr_nonnull(strstr(shown, "\n4 steps, 3.00k tokens in 0:04"));
  finish(&p);
  for (int width = 1; width < 200; width += 7) {
    p = begin(true, width, 0, 4, 1);
    go(&p, 1, 3, 101);
    fflush(p.out);
    ck_assert_uint_lt(strlen(shown), (size_t)width + 4);
    finish(&p);
  }
}
END_TEST

START_TEST(pauses_count_for_no_rate) {
  wf_progress p = begin(false, 80, 0, 100, 1);
  go(&p, 1, 3, 101);
  wf_progress_pause(&p, 101, 151);
  go(&p, 2, 3, 152);
  go(&p, 3, 3, 153);
  ck_assert_double_eq_tol(wf_progress_rate(&p), 1000, 1e-9);
  ck_assert_ptr_nonnull(strstr(shown, "step 3/100  loss 3 (3)  1.00k tok/s  1:37 left"));
  finish(&p);
}
END_TEST

START_TEST(numbers_are_short) {
  char out[24];
  ck_assert_str_eq(wf_human_count(0, out), "0");
  ck_assert_str_eq(wf_human_count(950, out), "950");
  ck_assert_str_eq(wf_human_count(12345, out), "12.3k");
  ck_assert_str_eq(wf_human_count(999999, out), "1.00M");
  ck_assert_str_eq(wf_human_count(4567890, out), "4.57M");
  ck_assert_str_eq(wf_human_count(1.24e8, out), "124M");
  ck_assert_str_eq(wf_human_bytes(812, out), "812 B");
  ck_assert_str_eq(wf_human_bytes(12.3 * 1048576, out), "12.3 MiB");
  ck_assert_str_eq(wf_human_time(7.9, out), "0:07");
  ck_assert_str_eq(wf_human_time(750, out), "12:30");
  ck_assert_str_eq(wf_human_time(11100, out), "3:05:00");
  ck_assert_str_eq(wf_human_time(2 * 86400.0 + 4 * 3600, out), "2d 4h");
  ck_assert_str_eq(wf_human_time((double)NAN, out), "?");
  ck_assert_str_eq(wf_human_time(-1, out), "?");
}
END_TEST

static Suite *progress_suite(void) {
  Suite *s = suite_create("progress");
  TCase *t = tcase_create("progress");
  tcase_add_test(t, plain_lines_come_at_their_steps);
  tcase_add_test(t, unknown_values_are_left_out);
  tcase_add_test(t, the_live_line_fits_and_is_redrawn);
  tcase_add_test(t, pauses_count_for_no_rate);
  tcase_add_test(t, numbers_are_short);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(progress_suite)
