/* weft data build and weft data info, started as a user starts them. */
#define _GNU_SOURCE
#include <math.h>
#include <sys/wait.h>
#include "tests/check_main.h"
#include "tests/data/temporary.h"

static char output[20000];

/* Run `weft ARGUMENTS` in the temporary folder; output and errors together in `output`. */
static void expect(const char *arguments, int code, const char *text) {
  char line[2000];
  snprintf(line, sizeof line, "cd %s && %s %s 2>&1", temporary, WEFT_PROGRAM, arguments);
  FILE *pipe = popen(line, "r");
  ck_assert_ptr_nonnull(pipe);
  output[fread(output, 1, sizeof output - 1, pipe)] = '\0';
  int status = pclose(pipe);
  ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == code, "%s: %s", arguments, output);
  ck_assert_msg(strstr(output, text), "%s: %s", arguments, output);
}

START_TEST(builds_and_tells) {
  temporary_make();
  temporary_text("jokes", "one\n%\ntwo\n%\n%\nthree\n");
  temporary_text("more.jsonl", "{\"text\":\"four\"}\n");
  expect("data build jokes more.jsonl --split % --validation 0 -o s/jokes.h5", 0,
         "2 files, 4 documents (1 empty");
  ck_assert_ptr_nonnull(strstr(output, "18 tokens of 18 B"));
  expect("data info s/jokes.h5", 0, "tokenizer bytes, vocabulary 256, divided by documents");
  expect("data info s/jokes.h5 --verify --sources", 0, "every sum and every id is right");
  ck_assert_ptr_nonnull(strstr(output, " 20 jokes\n"));
  expect("data build jokes -o s/jokes.h5", 1, "hint: remove it, or build with --replace");
  expect("data build jokes -o s/jokes.h5 -r --tokenizer chars", 0, "tokenizer chars");
  temporary_remove();
}
END_TEST

/* Of train's pairs ab is one of two, ba, bb, b\n and a\n are single; a and b are first three times each. So
 * with 4 ids the held pairs ab, bb, b\n, ba, a\n, b\n have probability 2.1 / 3.4 and five times 1.1 / 3.4. */
START_TEST(a_bigram_model_is_the_floor) {
  char line[200];
  temporary_make();
  temporary_text("train", "ababb\n%\na\n%\n");
  temporary_text("held", "abb\n%\nba\n%\nb\n");
  expect("data build train --validation 0 --validation-file held --tokenizer chars --split % -o s.h5", 0, "");
  expect("data info s.h5", 0, "vocabulary 4,");
  ck_assert_ptr_null(strstr(output, "bigram"));
  const double loss = -(log(2.1 / 3.4) + 5 * log(1.1 / 3.4)) / 6;
  snprintf(line, sizeof line, "bigram       %.4f bits per byte of validation (loss %.4f)", loss / log(2),
           loss);
  expect("data info s.h5 --bigram", 0, line);
  expect("data build train --validation 0 --test 0 --split % -o t.h5", 0, "");
  expect("data info t.h5 --bigram", 0, "train");
  ck_assert_ptr_null(strstr(output, "bigram"));
  temporary_remove();
}
END_TEST

START_TEST(bad_input) {
  temporary_make();
  temporary_text("text", "text");
  temporary_text("empty", "");
  temporary_text("bad.jsonl", "{}\n");
  expect("data build", 1, "weft: error:");
  expect("data build text", 1, "needs --output");
  expect("data build missing -o s.h5", 1, "weft: error: cannot open missing: No such file");
  expect("data build empty -o s.h5", 1, "the file empty is empty");
  expect("data build bad.jsonl -o s.h5", 1, "bad.jsonl:1: there is no text under the key 'text'");
  expect("data build text --tokenizer word -o s.h5", 1, "--tokenizer takes bytes, chars");
  expect("data build text --validation 2 -o s.h5", 1, "validation");
  expect("data build text -o /proc/s.h5", 1, "weft: error:");
  expect("data info text", 1, "text");
  expect("data info missing", 1, "missing");
  temporary_remove();
}
END_TEST

static Suite *data_suite(void) {
  Suite *s = suite_create("experiments/data");
  TCase *c = tcase_create("data");
  suite_add_tcase(s, c);
  tcase_add_test(c, builds_and_tells);
  tcase_add_test(c, a_bigram_model_is_the_floor);
  tcase_add_test(c, bad_input);
  return s;
}

WF_CHECK_MAIN(data_suite)
