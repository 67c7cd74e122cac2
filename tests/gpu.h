/* gpu: the main() of a test program that needs a GPU. Without one it says so and exits with 77, which ctest
 * reports as skipped. */
#ifndef WF_TESTS_GPU_H
#define WF_TESTS_GPU_H

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/device.h"
#include "tests/check_main.h"

enum { WF_EXIT_SKIPPED = 77 };

/* Looks for a GPU in a child: what CUDA sets up in a process does not survive the fork before each test. */
static inline int wf_gpu_missing(void) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    wf_device *gpu = NULL;
    wf_status s = wf_device_open(WF_CUDA, 0, &gpu);
    if (s == WF_OK)
      printf("on %s\n", wf_device_name(gpu));
    else
      printf("%s: %s\n", s == WF_EUNSUPPORTED ? "SKIPPED: no GPU" : "FAILED", wf_error_message());
    wf_device_close(gpu);
    fflush(NULL);
    _exit(s == WF_OK ? 0 : s == WF_EUNSUPPORTED ? WF_EXIT_SKIPPED : 1);
  }
  int status = 1;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 1;
  return WEXITSTATUS(status);
}

#define WF_GPU_MAIN(suite_fn)                           \
  int main(void) {                                      \
    int missing = wf_gpu_missing();                     \
    return missing ? missing : wf_check_main(suite_fn); \
  }

#endif
