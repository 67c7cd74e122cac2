/* check_main: the main() of a test program.
 *
 *     static Suite *rows_suite(void) { ... }
 *     WF_CHECK_MAIN(rows_suite)
 *
 * Prints a line per failed test, returns 0 when all passed and 1 otherwise. Each test runs in a child process
 * of its own; CK_FORK=no in the environment keeps all in one process (for debuggers and valgrind),
 * CK_RUN_CASE and CK_RUN_SUITE choose some. Check's own limit of 4 s a test is raised: ctest has the limit
 * that counts.
 */
#ifndef WF_TESTS_CHECK_MAIN_H
#define WF_TESTS_CHECK_MAIN_H

#include <check.h>
#include <stdlib.h>

static inline int wf_check_main(Suite *(*make)(void)) {
  setenv("CK_DEFAULT_TIMEOUT", "280", 0); /* read when a test case is created */
  SRunner *runner = srunner_create(make());
  srunner_run_all(runner, CK_NORMAL);
  int failed = srunner_ntests_failed(runner);
  int ran = srunner_ntests_run(runner);
  srunner_free(runner);
  return failed == 0 && ran > 0 ? 0 : 1;
}

#define WF_CHECK_MAIN(suite_fn)     \
  int main(void) {                  \
    return wf_check_main(suite_fn); \
  }

#endif
