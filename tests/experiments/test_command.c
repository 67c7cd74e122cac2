/* The program's frame: which command is found, how flags are read, help, errors and exit codes. */
#define _GNU_SOURCE /* strsep, mkstemp */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"
#include "experiments/command.h"
#include "tests/check_main.h"

typedef struct write_flags {
  int64_t top_k, seed;
  double temperature;
  char *output;
  bool quiet, strict;
  int mode;
} write_flags;

static const char *const modes[] = {"fast", "slow", NULL};
static const wf_option write_table[] = {
    WF_OPT_I64(write_flags, top_k, "0", 0, 1e9, "most likely tokens, 0: all"),
    WF_OPT_I64(write_flags, seed, "1", -5, 1e9, "seed"),
    WF_OPT_F64(write_flags, temperature, "1", 0, 100, "temperature"),
    WF_OPT_STRF(write_flags, output, NULL, WF_OPT_REQUIRED, "where it goes"),
    WF_OPT_BOOL(write_flags, quiet, "false", "say nothing"),
    WF_OPT_BOOL(write_flags, strict, "false", "be strict"),
    WF_OPT_ENUM(write_flags, mode, "fast", modes, "how"),
    WF_OPT_END};

static wf_status run_write(const wf_args *a) {
  const write_flags *f = a->flags;
  printf("k=%d seed=%d t=%g out=%s quiet=%d mode=%d words=", (int)f->top_k, (int)f->seed, f->temperature,
         f->output, f->quiet, f->mode);
  for (size_t i = 0; i < a->n_words; i++) printf("<%s>", a->words[i]);
  printf(" sets=");
  for (size_t i = 0; i < a->n_sets; i++) printf("<%s>", a->sets[i]);
  printf("\n");
  return WF_OK;
}

static wf_status run_check(const wf_args *a) {
  (void)a;
  return wf_hint(WF_FAIL(WF_EINVAL, "it is wrong"), "mend it");
}

static const wf_command cmd_write = {.name = "write",
                                     .help = "write text",
                                     .usage = "RUN [PROMPT]",
                                     .more = "More words.",
                                     .flags = write_table,
                                     .flags_size = sizeof(write_flags),
                                     .sets = true,
                                     .least = 1,
                                     .most = 2,
                                     .run = run_write};
static const wf_command cmd_check = {
    .name = "config check", .help = "check it", .usage = "", .run = run_check};
static const wf_command *const commands[] = {&cmd_write, &cmd_check, NULL};

static char out[20000], err[20000];

static void read_back(int fd, char *into, size_t size) {
  const ssize_t n = pread(fd, into, size - 1, 0);
  into[n > 0 ? n : 0] = '\0';
  close(fd);
}

/* Run the words (separated by |) with standard output and error caught in `out` and `err`. */
static int program(const char *words) {
  char text[2000], *rest = text;
  const char *argv[64] = {"weft"};
  int argc = 1;
  snprintf(text, sizeof text, "%s", words);
  for (char *word; *words && (word = strsep(&rest, "|"));) argv[argc++] = word;
  char out_name[] = "/tmp/weft-out-XXXXXX", err_name[] = "/tmp/weft-err-XXXXXX";
  const int out_fd = mkstemp(out_name), err_fd = mkstemp(err_name), old_out = dup(1), old_err = dup(2);
  ck_assert(out_fd >= 0 && err_fd >= 0 && old_out >= 0 && old_err >= 0);
  unlink(out_name);
  unlink(err_name);
  fflush(stdout);
  dup2(out_fd, 1);
  dup2(err_fd, 2);
  const int64_t live = wf_mem_live();
  const int code = wf_program(commands, argc, argv);
  fflush(stdout);
  fflush(stderr);
  dup2(old_out, 1);
  dup2(old_err, 2);
  close(old_out);
  close(old_err);
  read_back(out_fd, out, sizeof out);
  read_back(err_fd, err, sizeof err);
  ck_assert_int_eq(wf_mem_live(), live);
  return code;
}

static void expect_output(const char *words, const char *text) {
  ck_assert_msg(program(words) == 0, "%s: %s", words, err);
  ck_assert_msg(strstr(out, text), "%s: %s", words, out);
  ck_assert_str_eq(err, "");
}

static void expect_failure(const char *words, const char *text, const char *hint) {
  ck_assert_msg(program(words) == 1, "%s", words);
  ck_assert_msg(strncmp(err, "weft: error: ", 13) == 0, "%s", err);
  ck_assert_msg(strstr(err, text), "%s: %s", words, err);
  ck_assert_msg(strstr(err, hint), "%s: %s", words, err);
}

START_TEST(flags_are_read_in_every_form) {
  expect_output("write|r|--output|a", "k=0 seed=1 t=1 out=a quiet=0 mode=0 words=<r> sets=\n");
  expect_output("write|--top-k|5|r|--temperature=0.5|-o|b|--quiet|--mode=slow",
                "k=5 seed=1 t=0.5 out=b quiet=1 mode=1 words=<r>");
  expect_output("write|--top_k=7|-o=c|r|--quiet=false|--seed|-3", "k=7 seed=-3 t=1 out=c quiet=0");
  expect_output("write|r|--set|a.b=1|--output=x|--set=c={d: e}|--|--quiet",
                "words=<r><--quiet> sets=<a.b=1><c={d: e}>");
  expect_output("write|-1|-o|d", "words=<-1>");
  expect_output("write|-|-o|d", "words=<->");
}
END_TEST

START_TEST(wrong_flags_are_refused) {
  expect_failure("write|r", "weft write needs --output", "where it goes");
  expect_failure("write|--output|a", "weft write needs RUN [PROMPT]", "weft write --help");
  expect_failure("write|a|b|c|-o|x", "\"c\" is one argument too many", "usage: weft write RUN [PROMPT]");
  expect_failure("write|r|--topk|5", "weft write has no flag --topk", "did you mean --top-k?");
  expect_failure("write|r|--zebra", "weft write has no flag --zebra", "weft write --help lists them");
  expect_failure("write|r|-s|1", "has no flag -s", "");
  expect_failure("write|r|-x", "has no flag -x", "");
  expect_failure("write|r|--output", "--output needs a value", "");
  expect_failure("write|r|--top-k|many", "--top-k: top_k: expected an integer", "most likely tokens");
  expect_failure("write|r|--top-k=-1", "--top-k: top_k: -1 is out of range", "");
  expect_failure("write|r|--quiet=yes", "--quiet: quiet: expected true or false", "");
  expect_failure("write|r|--mode|quick", "is not one of fast, slow", "");
  expect_failure("write|r|--set", "--set needs a value", "");
  expect_failure("config|check|--set|a=b", "weft config check has no flag --set", "");
}
END_TEST

START_TEST(commands_are_found) {
  expect_failure("config|check", "it is wrong", "\n  hint: mend it\n");
  ck_assert_ptr_null(strstr(err, "run_check"));
  setenv("WEFT_TRACE", "1", 1);
  expect_failure("config|check", "it is wrong", "run_check (");
  unsetenv("WEFT_TRACE");
  expect_failure("config", "weft config needs another word", "did you mean weft config check?");
  expect_failure("config|chekc", "there is no command \"config chekc\"", "did you mean weft config check?");
  expect_failure("wriet", "there is no command \"wriet\"", "did you mean weft write?");
  expect_failure("bogus|x", "there is no command \"bogus\"", "weft --help lists all commands");
  expect_failure("|x", "there is no command \"\"", "");
}
END_TEST

START_TEST(help_is_printed) {
  static const char *const ways[] = {"", "--help", "-h", "help"};
  for (size_t i = 0; i < 4; i++) {
    expect_output(ways[i], "weft write RUN [PROMPT]");
    ck_assert_ptr_nonnull(strstr(out, "check it"));
  }
  expect_output("write|--help",
                "weft write RUN [PROMPT] [FLAGS] [--set a.b=c]...\n\nwrite text\n\nMore words.\n");
  ck_assert_ptr_nonnull(strstr(out, "  -m, --mode WORD"));
  ck_assert_ptr_nonnull(strstr(out, "--seed N"));
  ck_assert_ptr_null(strstr(out, "-s, --seed"));
  ck_assert_ptr_nonnull(strstr(out, "where it goes (required)"));
  ck_assert_ptr_nonnull(strstr(out, "temperature [1]"));
  ck_assert_ptr_nonnull(strstr(out, "how (fast, slow) [fast]"));
  expect_output("write|r|-h", "weft write RUN");
  expect_output("config|check|--help", "weft config check\n\ncheck it\n");
}
END_TEST

START_TEST(a_closed_output_is_an_error) {
  const int full = open("/dev/full", O_WRONLY), old = dup(1);
  if (full < 0) return;
  const char *const argv[] = {"weft", "write", "r", "-o", "x"};
  fflush(stdout);
  dup2(full, 1);
  const int old_err = dup(2), null = open("/dev/null", O_WRONLY);
  dup2(null, 2);
  const int code = wf_program(commands, 5, argv);
  dup2(old, 1);
  dup2(old_err, 2);
  clearerr(stdout);
  close(old);
  close(old_err);
  close(null);
  close(full);
  ck_assert_int_eq(code, 1);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "cannot write to the standard output"));
}
END_TEST

START_TEST(any_allocation_may_fail) {
  const int64_t before = wf_mem_alloc_count();
  ck_assert_int_eq(program("write|r|--output|a|--output|b"), 0);
  const int64_t allocations = wf_mem_alloc_count() - before;
  ck_assert_int_ge(allocations, 4);
  for (int64_t n = 1; n <= allocations; n++) {
    wf_mem_fail_at(n);
    ck_assert_int_eq(program("write|r|--output|a|--output|b"), 1);
    wf_mem_fail_at(0);
    ck_assert_ptr_nonnull(strstr(err, "out of memory"));
  }
}
END_TEST

static Suite *command_suite(void) {
  Suite *s = suite_create("command");
  TCase *t = tcase_create("command");
  tcase_add_test(t, flags_are_read_in_every_form);
  tcase_add_test(t, wrong_flags_are_refused);
  tcase_add_test(t, commands_are_found);
  tcase_add_test(t, help_is_printed);
  tcase_add_test(t, a_closed_output_is_an_error);
  tcase_add_test(t, any_allocation_may_fail);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(command_suite)
