/* The `weft` program itself, started as a user starts it. */
#define _GNU_SOURCE /* mkdtemp */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "tests/check_main.h"

static char output[60000];

/* Run `weft ARGUMENTS` in a shell; output and errors together in `output`. Returns the exit code. */
static int weft(const char *arguments) {
  char line[2000];
  snprintf(line, sizeof line, "%s %s 2>&1", WEFT_PROGRAM, arguments);
  FILE *pipe = popen(line, "r");
  ck_assert_ptr_nonnull(pipe);
  const size_t n = fread(output, 1, sizeof output - 1, pipe);
  output[n] = '\0';
  const int status = pclose(pipe);
  ck_assert_msg(WIFEXITED(status), "%s", output);
  return WEXITSTATUS(status);
}

static void expect(const char *arguments, int code, const char *text) {
  ck_assert_msg(weft(arguments) == code, "%s: %s", arguments, output);
  ck_assert_msg(strstr(output, text), "%s: %s", arguments, output);
}

START_TEST(it_says_what_it_is) {
  expect("version", 0, "weft 0.");
  expect("--help", 0, "weft doctor");
  expect("", 0, "weft doctor");
  expect("version now", 1, "weft: error: weft version: \"now\" is one argument too many");
  expect("docter", 1, "hint: did you mean weft doctor?");
}
END_TEST

START_TEST(doctor_examines_the_machine) {
  expect("doctor", 0, "openblas     OpenMP");
  static const char *const lines[] = {"\nprocessor ", "\ndevice ", "\nproducts ", "\nthreads ",
                                      "\nmemory ",    "\nmpi ",    "\ngpu ",      "\nhdf5 "};
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
    ck_assert_msg(strstr(output, lines[i]), "%s", lines[i]);
  setenv("OMP_NUM_THREADS", "1000", 1);
  expect("doctor", 0, "slow: more threads than the process may use\n  hint: set OMP_NUM_THREADS");
  setenv("OMP_NUM_THREADS", "2", 1);
}
END_TEST

START_TEST(configs_are_checked_and_printed) {
  expect("config check " WEFT_SOURCE_DIR "/experiments/configs/nano.yaml", 0,
         "is fine: 4 layers of width 128");
  expect("config check " WEFT_SOURCE_DIR "/experiments/configs/nano.yaml --set model.blocks.0.mixer.heads=7",
         1, "nano.yaml:8:14: heads: 7 heads do not divide d_model 128");
  expect("config check " WEFT_SOURCE_DIR "/experiments/configs/nano.yaml --set model.blocks.0.mixer.headz=7",
         1, "hint: did you mean heads?");
  expect("config check /nowhere.yaml", 1, "weft: error: ");
  expect("config check", 1, "weft config check needs CONFIG");
  expect("config print " WEFT_SOURCE_DIR "/experiments/configs/nano.yaml --set run.seed=5", 0,
         "\n  seed: 5\n");
  expect("config docs", 0, "### attention");
}
END_TEST

START_TEST(layers_are_listed_and_explained) {
  expect("layers", 0, "\n  simple_gla ");
  expect("layers attention", 0, "attention (mixer)");
  expect("layers atention", 1, "hint: did you mean attention?");
}
END_TEST

static Suite *program_suite(void) {
  Suite *s = suite_create("program");
  TCase *t = tcase_create("program");
  tcase_add_test(t, it_says_what_it_is);
  tcase_add_test(t, doctor_examines_the_machine);
  tcase_add_test(t, configs_are_checked_and_printed);
  tcase_add_test(t, layers_are_listed_and_explained);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(program_suite)
