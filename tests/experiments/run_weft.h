/* run_weft: the program itself, started from a shell in the temporary folder. */
#ifndef WF_TESTS_RUN_WEFT_H
#define WF_TESTS_RUN_WEFT_H

#include <check.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "tests/temp_dir.h"

static char output[60000]; /* of the last shell(): what it printed, errors included */

/* Run a shell's line in the temporary folder, where `weft` is the program. Returns the exit code. */
static inline int shell(const char *commands) {
  char line[3000];
  snprintf(line, sizeof line, "cd %s || exit 9\nweft() { %s \"$@\"; }\n{ %s\n} 2>&1",
           *temp_dir ? temp_dir : "/", WEFT_PROGRAM, commands);
  FILE *pipe = popen(line, "r");
  ck_assert_ptr_nonnull(pipe);
  const size_t n = fread(output, 1, sizeof output - 1, pipe);
  output[n] = '\0';
  const int status = pclose(pipe);
  ck_assert_msg(WIFEXITED(status), "%s", output);
  return WEXITSTATUS(status);
}

static inline void run(const char *commands) {
  ck_assert_msg(shell(commands) == 0, "%s: %s", commands, output);
}

/* `weft ARGUMENTS` exits with `code` and says `text`. */
static inline void expect(const char *arguments, int code, const char *text) {
  char line[2000];
  snprintf(line, sizeof line, "weft %s", arguments);
  ck_assert_msg(shell(line) == code, "%s: %s", arguments, output);
  ck_assert_msg(strstr(output, text), "%s: %s", arguments, output);
}

#endif
