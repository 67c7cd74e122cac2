/* Every mixer over ranks: the gradients of one process, for any number of them and any layout. */
#include "tests/layers/contract.h"
#include "core/memory.h"
#include "tests/dist/ranks.h"

#define RANKS_TEST(name, ...)                                      \
  START_TEST(name) {                                               \
    static const char *const blocks[] = {__VA_ARGS__};             \
    wf_trial_ranks((int)(sizeof blocks / sizeof *blocks), blocks); \
    ck_assert_int_eq(wf_mem_live(), 0);                            \
  }                                                                \
  END_TEST

RANKS_TEST(simple_gla, "simple_gla heads=2 / swiglu width=7",
           "simple_gla heads=3 expand_k=0.5 conv_width=7 gate_norm=1 / -")
RANKS_TEST(delta, "gated_deltanet heads=2 / swiglu width=7", "kda heads=2 / -")
RANKS_TEST(mlstm, "mlstm heads=2 / swiglu width=7", "slstm heads=2 / -")
RANKS_TEST(mamba, "mamba / -", "mamba2 head_dim=6 / -")
RANKS_TEST(serial, "ttt heads=2 / -", "lstm / -")

static Suite *suite(void) {
  Suite *s = suite_create("ranks");
  TCase *t = tcase_create("ranks");
  tcase_set_timeout(t, 300);
  tcase_add_test(t, simple_gla);
  tcase_add_test(t, delta);
  tcase_add_test(t, mlstm);
  tcase_add_test(t, mamba);
  tcase_add_test(t, serial);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
