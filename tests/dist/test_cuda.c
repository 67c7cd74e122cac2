/* Tensors of a GPU between ranks: every call through pinned host memory gives what it gives on the CPU. */
#include "tests/dist/comm_trial.h"
#include "tests/gpu.h"

static const int64_t lengths[] = {0, 1, 65, 70001};

static void every_call(wf_comm *c, void *arg) {
  (void)arg;
  for (int d = 0; d < WF_N_DTYPES; d++)
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
      for (int later = 0; later < 2; later++)
        if (lengths[l] <= 1000 || d == WF_F32) try_all(c, WF_CUDA, (wf_dtype)d, lengths[l], later);
}

START_TEST(calls) {
  wf_ranks_run(_i, every_call, NULL);
}
END_TEST

static Suite *cuda_suite(void) {
  Suite *s = suite_create("comm on a GPU");
  TCase *tc = tcase_create("comm on a GPU");
  tcase_add_loop_test(tc, calls, 1, 4);
  suite_add_tcase(s, tc);
  return s;
}

WF_GPU_MAIN(cuda_suite)
