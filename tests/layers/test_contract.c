/* The contract of design: any cut, packed or not, with recomputation and dropout, forward and backward. */
#include "tests/layers/contract.h"
#include "core/memory.h"
#include "tests/check_main.h"

#define CONTRACT(name, ...)                                           \
  START_TEST(name) {                                                  \
    static const char *const blocks[] = {__VA_ARGS__};                \
    wf_trial_contract((int)(sizeof blocks / sizeof *blocks), blocks); \
    ck_assert_int_eq(wf_mem_live(), 0);                               \
  }                                                                   \
  END_TEST

CONTRACT(attention, "attention heads=2 / gelu width=9 bias=true",
         "attention heads=3 qk_norm=true bias=true head_dim=6 / relu2")
CONTRACT(grouped, "attention heads=4 kv_heads=2 head_dim=5 rope_fraction=0.5 / swiglu width=7",
         "attention heads=3 kv_heads=1 softcap=2 / -")
CONTRACT(windowed, "attention heads=2 window=5 position=alibi / geglu width=8",
         "attention heads=2 window=1 / -", "attention heads=2 window=30 sinks=true / -")
CONTRACT(positions, "attention heads=2 position=learned / gelu", "attention heads=2 position=alibi / -",
         "attention heads=1 position=none sinks=true / -")
CONTRACT(simple_gla, "simple_gla heads=2 / swiglu width=7",
         "simple_gla heads=3 expand_k=0.5 conv_width=7 gate_norm=1 / -")
CONTRACT(gla_without_conv, "simple_gla heads=2 conv=false / -")
CONTRACT(hybrid, "simple_gla heads=2 / swiglu width=7", "attention heads=2 kv_heads=1 / swiglu width=7",
         "simple_gla heads=2 / -", "attention heads=2 window=4 / gelu width=5")

static Suite *suite(void) {
  Suite *s = suite_create("contract");
  TCase *t = tcase_create("contract");
  tcase_add_test(t, attention);
  tcase_add_test(t, grouped);
  tcase_add_test(t, windowed);
  tcase_add_test(t, positions);
  tcase_add_test(t, simple_gla);
  tcase_add_test(t, gla_without_conv);
  tcase_add_test(t, hybrid);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
