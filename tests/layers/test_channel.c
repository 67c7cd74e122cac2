/* Mixers on the recurrences with decays by channel: the contract, alone and in
 * hybrids. */
#include "tests/layers/contract.h"
#include "core/memory.h"
#include "tests/check_main.h"

WF_CONTRACT_TEST(gla, "gla heads=2 / swiglu width=7",
                 "gla heads=3 expand_k=1 conv=true gate_rank=3 gate_norm=1 / -")
WF_CONTRACT_TEST(hgrn2, "hgrn2 expand_ratio=6 / swiglu width=7", "hgrn2 expand_ratio=4 conv=true / -",
                 "hgrn2 expand_ratio=12 / -")
WF_CONTRACT_TEST(gateloop, "gateloop heads=2 / swiglu width=7",
                 "gateloop heads=3 complex=true expand_k=1 / -")
WF_CONTRACT_TEST(retnet_paper, "retnet heads=2 norm=paper / swiglu width=7",
                 "retnet heads=3 norm=paper kv_heads=1 / -")
WF_CONTRACT_TEST(hybrid, "gla heads=2 / swiglu width=7", "attention heads=2 window=5 / swiglu width=7",
                 "hgrn2 expand_ratio=6 / -")

static Suite *channel_suite(void) {
  Suite *s = suite_create("channel");
  TCase *t = tcase_create("channel");
  tcase_set_timeout(t, 300);
  tcase_add_test(t, gla);
  tcase_add_test(t, hgrn2);
  tcase_add_test(t, gateloop);
  tcase_add_test(t, retnet_paper);
  tcase_add_test(t, hybrid);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(channel_suite)
