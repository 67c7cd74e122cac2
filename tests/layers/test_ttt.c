/* TTT under the contract. */
#include "core/memory.h"
#include "tests/check_main.h"
#include "tests/layers/contract.h"

WF_CONTRACT_TEST(linear, "ttt heads=2 mini_batch=4 / -")
WF_CONTRACT_TEST(linear_long, "ttt heads=3 mini_batch=16 / gelu width=5")
WF_CONTRACT_TEST(mlp, "ttt heads=2 inner=mlp mini_batch=5 base_lr=1 / -")
WF_CONTRACT_TEST(of_one_token, "ttt heads=1 mini_batch=1 / -", "ttt heads=3 inner=mlp mini_batch=1 / -")
WF_CONTRACT_TEST(hybrid, "ttt heads=2 mini_batch=7 / swiglu width=7", "attention heads=2 / -",
                 "ttt heads=2 inner=mlp mini_batch=30 / -")

static Suite *suite(void) {
  Suite *s = suite_create("ttt");
  TCase *t = tcase_create("ttt");
  tcase_add_test(t, linear);
  tcase_add_test(t, linear_long);
  tcase_add_test(t, mlp);
  tcase_add_test(t, of_one_token);
  tcase_add_test(t, hybrid);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
