/* Mixers on the recurrences with decays by channel and with the delta rule: the contract, alone and in
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
WF_CONTRACT_TEST(deltanet, "deltanet heads=2 / swiglu width=7",
                 "deltanet heads=3 conv=false use_gate=true expand_k=0.5 / -",
                 "deltanet heads=2 negative_eigenvalues=true / -")
WF_CONTRACT_TEST(
    gated_deltanet, "gated_deltanet heads=2 head_dim=5 / swiglu width=7",
    "gated_deltanet heads=1 v_heads=3 head_dim=4 expand_v=1 conv=false negative_eigenvalues=true / -")
WF_CONTRACT_TEST(kda, "kda heads=2 / swiglu width=7",
                 "kda heads=1 v_heads=2 head_dim=5 expand_v=2 conv=false / -")
WF_CONTRACT_TEST(hybrid, "gated_deltanet heads=2 head_dim=4 / swiglu width=7",
                 "attention heads=2 window=5 / swiglu width=7", "kda heads=2 / -", "gla heads=2 / -")

static Suite *delta_suite(void) {
  Suite *s = suite_create("delta");
  TCase *t = tcase_create("delta");
  tcase_set_timeout(t, 300);
  tcase_add_test(t, gla);
  tcase_add_test(t, hgrn2);
  tcase_add_test(t, gateloop);
  tcase_add_test(t, retnet_paper);
  tcase_add_test(t, deltanet);
  tcase_add_test(t, gated_deltanet);
  tcase_add_test(t, kda);
  tcase_add_test(t, hybrid);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(delta_suite)
