/* Mixers on the recurrence with scalar decays: the contract, alone and in hybrids; identities. */
#include "tests/layers/contract.h"
#include "core/memory.h"
#include "tests/check_main.h"

WF_CONTRACT_TEST(retnet, "retnet heads=2 / swiglu width=7",
                 "retnet heads=3 kv_heads=1 expand_k=0.5 expand_v=1 / -")
WF_CONTRACT_TEST(lightning, "lightning heads=3 / swiglu width=7", "lightning heads=2 / -",
                 "lightning heads=2 position=rope / -")
WF_CONTRACT_TEST(linear, "linear_attention heads=2 / swiglu width=7",
                 "linear_attention heads=3 feature=relu norm=true conv=true / -",
                 "linear_attention heads=2 feature=none normalise=false expand_k=0.5 / -")
WF_CONTRACT_TEST(feature_maps, "linear_attention heads=2 feature=hedgehog / -",
                 "linear_attention heads=2 feature=taylor feature_dim=3 / -")
WF_CONTRACT_TEST(mamba2, "mamba2 head_dim=4 state=5 / -",
                 "mamba2 head_dim=3 state=4 groups=2 expand=1 / swiglu width=7",
                 "mamba2 head_dim=6 state=3 groups=4 dt_limit_low=0.01 dt_limit_high=0.05 / -")
WF_CONTRACT_TEST(mlstm, "mlstm heads=2 / -", "mlstm heads=4 gate=sigmoid / swiglu width=7")
WF_CONTRACT_TEST(mlstm_large, "mlstm form=large heads=2 / swiglu width=7",
                 "mlstm form=large heads=3 gate=sigmoid gate_cap=0 / -")
WF_CONTRACT_TEST(hybrid, "mamba2 head_dim=8 state=4 / -", "attention heads=2 window=5 / swiglu width=7",
                 "linear_attention heads=2 feature=taylor feature_dim=2 / -", "retnet heads=2 / -")

static Suite *linear_suite(void) {
  Suite *s = suite_create("linear");
  TCase *t = tcase_create("linear");
  tcase_set_timeout(t, 300);
  tcase_add_test(t, retnet);
  tcase_add_test(t, lightning);
  tcase_add_test(t, linear);
  tcase_add_test(t, feature_maps);
  tcase_add_test(t, mamba2);
  tcase_add_test(t, mlstm);
  tcase_add_test(t, mlstm_large);
  tcase_add_test(t, hybrid);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(linear_suite)
