/* The contract of design: any cut, packed or not, with recomputation and dropout, forward and backward. */
#include "tests/layers/contract.h"
#include "core/memory.h"
#include "tests/check_main.h"

#include <math.h>

#define OK(expr) ck_assert_msg((expr) == WF_OK, "%s: %s", #expr, wf_error_message())

WF_CONTRACT_TEST(attention, "attention heads=2 / gelu width=9 bias=true",
                 "attention heads=3 qk_norm=true bias=true head_dim=6 / relu2")
WF_CONTRACT_TEST(grouped, "attention heads=4 kv_heads=2 head_dim=5 rope_fraction=0.5 / swiglu width=7",
                 "attention heads=3 kv_heads=1 softcap=2 / -")
WF_CONTRACT_TEST(windowed, "attention heads=2 window=5 position=alibi / geglu width=8",
                 "attention heads=2 window=1 / -", "attention heads=2 window=30 sinks=true / -")
WF_CONTRACT_TEST(positions, "attention heads=2 position=learned / gelu",
                 "attention heads=2 position=alibi / -", "attention heads=1 position=none sinks=true / -")
WF_CONTRACT_TEST(simple_gla, "simple_gla heads=2 / swiglu width=7",
                 "simple_gla heads=3 expand_k=0.5 conv_width=7 gate_norm=1 / -")
WF_CONTRACT_TEST(gla_without_conv, "simple_gla heads=2 conv=false / -")
WF_CONTRACT_TEST(hybrid, "simple_gla heads=2 / swiglu width=7",
                 "attention heads=2 kv_heads=1 / swiglu width=7", "simple_gla heads=2 / -",
                 "attention heads=2 window=4 / gelu width=5")

/* The loss of a whole model along its gradient, by central differences; tied models also cap their logits and
 * have layer norms without a bias. */
START_TEST(loss_along_gradient) {
  static const char *const blocks[] = {"attention heads=2 / swiglu width=7", "attention heads=3 / gelu"};
  wf_trial x;
  wf_trial_make(&x, 2, blocks, &(wf_trial_options){.dtype = WF_F64, .tie = _i == 1});
  ck_assert(wf_params_find(wf_model_params(x.m), "blocks.1.norm1.bias") == NULL || _i == 0);
  double *g = wf_calloc("test", (size_t)x.numel, 3 * sizeof *g), *start = g + x.numel,
         *other = start + x.numel, square = 0, loss[2], first;
  wf_trial_gradient(&x, 0, g, &first);
  for (int64_t i = 0; i < x.numel; i++) square += g[i] * g[i];
  const double step = 1e-5 / sqrt(square);
  for (int side = 0; side < 2; side++) {
    double *at = g;
    for (int i = 0; i < wf_model_params(x.m)->n; i++) {
      wf_param *p = wf_model_params(x.m)->param[i];
      if (!side) OK(wf_to_host(p->value, start + (at - g)));
      for (int64_t k = 0; k < p->numel; k++) other[k] = start[at - g + k] + (side ? -step : step) * at[k];
      OK(wf_tensor_write(p->value, other));
      at += p->numel;
    }
    double *unused = wf_calloc("test", (size_t)x.numel, sizeof *unused);
    wf_trial_gradient(&x, 0, unused, &loss[side]);
    wf_free(unused);
  }
  ck_assert_double_lt(fabs((loss[0] - loss[1]) / (2 * step) * 0.37 / square - 1),
                      1e-6); /* contract.c: scale */
  wf_free(g);
  wf_trial_free(&x);
}
END_TEST

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
  tcase_add_loop_test(t, loss_along_gradient, 0, 2);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
