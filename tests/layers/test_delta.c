/* Mixers on the recurrences with decays by channel and with the delta rule: the contract, alone and in
 * hybrids; HGRN2 against its definition, with lower bounds as near to 0 and 1 as may be. */
#include "tests/layers/alone.h"

WF_CONTRACT_TEST(gla, "gla heads=2 / swiglu width=7",
                 "gla heads=3 expand_k=1 conv=true gate_rank=3 gate_norm=1 / -")
WF_CONTRACT_TEST(gla_groups, "gla heads=4 kv_heads=2 expand_k=1 conv=true use_gate=false / -",
                 "simple_gla heads=2 kv_heads=1 use_gate=false / swiglu width=7")
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

/* ---- HGRN2's lower bounds ---- */

enum { LAYERS = 5, RATIO = 4 };
static int at; /* the layer tested */

/* rest = 1 - lb, by itself: near 1 lb has no digits for it. */
static void hgrn2_plain(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  (void)s;
  int64_t d = l->d;
  double *q = project(l, "q", T, x, d), *f = project(l, "f", T, x, d), *v = project(l, "i", T, x, d);
  double *state = wf_calloc("test", (size_t)(d * RATIO), sizeof *state),
         *o = wf_calloc("test", (size_t)(T * d), sizeof *o);
  const double *p = value(l, "lower_bounds");
  for (int64_t t = 0; t < T; t++) {
    for (int64_t e = 0; e < d * RATIO; e++) { /* e: channel c of the keys, j of the values of its head */
      int64_t c = e / RATIO, to = t * d + c / RATIO * RATIO + e % RATIO;
      double low = 0, all = 0, z = f[t * d + c], u = q[t * d + c];
      for (int i = 0; i < LAYERS; i++) {
        double share = exp(p[i * d + c] - 40);
        all += share;
        if (i && i <= at) low += share;
      }
      double rest = at ? (all - low) / all : 1;
      if (at && low > all / 2) {
        rest = 0;
        for (int i = 0; i < LAYERS; i++) rest += i && i <= at ? 0 : exp(p[i * d + c] - 40) / all;
      }
      double keep = (1 - rest) + rest * sigmoid(z), write = rest * sigmoid(-z);
      state[e] = keep * state[e] + write * v[to];
      o[to] += u * sigmoid(u) * state[e] / sqrt(RATIO);
    }
    double root = sqrt(dot(d, o + t * d, o + t * d) / (double)d + 1e-5);
    for (int64_t c = 0; c < d; c++) o[t * d + c] *= value(l, "norm.weight")[c] / root;
  }
  project_out(l, T, x, o, d, y);
  wf_free(q), wf_free(f), wf_free(v), wf_free(state), wf_free(o);
}

/* Columns whose first, last or middle layers have all but 1e-35 of the softmax; and moderate ones. */
static void far_bounds(layer *l, const layer *other) {
  (void)other;
  double *p = value(l, "lower_bounds");
  for (int64_t i = 0; i < LAYERS; i++)
    for (int64_t c = 0; c < l->d; c++) {
      bool high = c % 4 == 0 ? i == 0 : c % 4 == 1 ? i == LAYERS - 1 : i == 1 + c % 4 - 2;
      if (c != 3) p[i * l->d + c] = high ? 40 : -40;
    }
}

START_TEST(hgrn2_bounds) {
  for (at = 0; at < LAYERS; at++)
    for (int far = 0; far < 2; far++) {
      layer l = make_at(WF_F64, "hgrn2 expand_ratio=4", 8, at, LAYERS);
      if (far) far_bounds(&l, NULL);
      check_layer(far ? "far bounds" : "bounds", &l, (shape){.H = 2}, hgrn2_plain);
      drop(&l);
      check_float32_at("hgrn2 expand_ratio=4", at, LAYERS, far ? far_bounds : NULL, 2e-6);
    }
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

static Suite *delta_suite(void) {
  Suite *s = suite_create("delta");
  TCase *t = tcase_create("delta");
  tcase_set_timeout(t, 300);
  tcase_add_test(t, gla);
  tcase_add_test(t, gla_groups);
  tcase_add_test(t, hgrn2);
  tcase_add_test(t, gateloop);
  tcase_add_test(t, retnet_paper);
  tcase_add_test(t, deltanet);
  tcase_add_test(t, gated_deltanet);
  tcase_add_test(t, kda);
  tcase_add_test(t, hybrid);
  tcase_add_test(t, hgrn2_bounds);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(delta_suite)
