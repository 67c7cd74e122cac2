/* metrics.jsonl: what a line looks like, what resuming keeps, and failing writes. */
#define _GNU_SOURCE /* mkdtemp */
#include <check.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "experiments/metrics.h"
#include "tests/check_main.h"

static char folder[40], path[80];

static void setup(void) {
  strcpy(folder, "/tmp/weft-metrics-XXXXXX");
  ck_assert_ptr_nonnull(mkdtemp(folder));
  snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
}

static void teardown(void) {
  unlink(path);
  rmdir(folder);
}

static void expect_file(const char *text) {
  char *got;
  int64_t n;
  ck_assert_int_eq(wf_file_read(path, 10000, &got, &n), WF_OK);
  ck_assert_str_eq(got, text);
  wf_free(got);
}

static void put(const char *text) {
  FILE *f = fopen(path, "w");
  ck_assert_ptr_nonnull(f);
  fputs(text, f);
  fclose(f);
}

static void step(wf_metrics *m, int64_t at, double loss) {
  const wf_metric values[] = {{"loss", loss}};
  ck_assert_int_eq(wf_metrics_write(m, at, values, 1), WF_OK);
}

START_TEST(lines_are_json) {
  wf_metrics m;
  ck_assert_int_eq(wf_metrics_create(&m, path), WF_OK);
  const wf_metric values[] = {
      {"tokens", 40960}, {"loss", 4.125}, {"lr", 1e-3}, {"big", 1e30}, {"bad", (double)NAN}};
  ck_assert_int_eq(wf_metrics_write(&m, 10, values, 5), WF_OK);
  expect_file(
      "{\"step\": 10, \"tokens\": 40960, \"loss\": 4.125, \"lr\": 0.001, \"big\": 1e+30, \"bad\": null}\n");
  step(&m, 11, -2);
  wf_metrics_close(&m);
  wf_metrics_close(&m);
  ck_assert_int_eq(wf_metrics_create(&m, path), WF_OK);
  expect_file("");
  wf_metrics_close(&m);
}
END_TEST

static void expect_resume(const char *before, int64_t at, const char *after) {
  wf_metrics m;
  put(before);
  ck_assert_int_eq(wf_metrics_resume(&m, path, at), WF_OK);
  step(&m, at + 1, 0.5);
  wf_metrics_close(&m);
  char whole[500];
  snprintf(whole, sizeof whole, "%s{\"step\": %d, \"loss\": 0.5}\n", after, (int)at + 1);
  expect_file(whole);
}

START_TEST(resuming_cuts_later_lines) {
#define A "{\"step\": 5, \"loss\": 3}\n"
#define B "{\"step\": 10, \"loss\": 2}\n"
#define C "{\"step\": 10, \"val_loss\": 2}\n"
  expect_resume("", 0, "");
  expect_resume(A B C, 10, A B C);
  expect_resume(A B C, 9, A);
  expect_resume(A B C, 4, "");
  expect_resume(A B "{\"step\": 11, \"lo", 20, A B);
  expect_resume(A "{\"step\": 6, \"loss\"\n" B, 20, A);
  expect_resume(A "garbage\n" B, 20, A);
  expect_resume(A "\n" B, 20, A);
  unlink(path);
  wf_metrics m;
  ck_assert_int_eq(wf_metrics_resume(&m, path, 3), WF_OK);
  wf_metrics_close(&m);
  expect_file("");
}
END_TEST

START_TEST(failures_are_reported) {
  wf_metrics m;
  const int64_t live = wf_mem_live();
  ck_assert_int_eq(wf_metrics_create(&m, "/nowhere/at/all.jsonl"), WF_EIO);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "/nowhere/at/all.jsonl"));
  ck_assert_int_eq(wf_metrics_create(&m, folder), WF_EIO);
  if (access("/dev/full", W_OK) == 0) {
    ck_assert_int_eq(wf_metrics_create(&m, "/dev/full"), WF_OK);
    const wf_metric values[] = {{"loss", 1}};
    ck_assert_int_eq(wf_metrics_write(&m, 1, values, 1), WF_EIO);
    ck_assert_ptr_nonnull(strstr(wf_error_message(), "No space left"));
    wf_metrics_close(&m);
  }
  wf_mem_fail_at(1);
  ck_assert_int_eq(wf_metrics_create(&m, path), WF_ENOMEM);
  wf_mem_fail_at(2);
  ck_assert_int_eq(wf_metrics_resume(&m, path, 1), WF_ENOMEM);
  wf_mem_fail_at(0);
  ck_assert_int_eq(wf_metrics_create(&m, path), WF_OK);
  wf_mem_fail_at(1);
  ck_assert_int_eq(wf_metrics_write(&m, 1, NULL, 0), WF_ENOMEM);
  wf_mem_fail_at(0);
  ck_assert_int_eq(wf_metrics_write(&m, 2, NULL, 0), WF_OK);
  expect_file("{\"step\": 2}\n");
  wf_metrics_close(&m);
  ck_assert_int_eq(wf_mem_live(), live);
}
END_TEST

static Suite *metrics_suite(void) {
  Suite *s = suite_create("metrics");
  TCase *t = tcase_create("metrics");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_test(t, lines_are_json);
  tcase_add_test(t, resuming_cuts_later_lines);
  tcase_add_test(t, failures_are_reported);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(metrics_suite)
