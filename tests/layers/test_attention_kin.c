/* Attention with the options of its relatives against their definitions; then what must be equal to what. */
#include "tests/layers/alone.h"

/* ---- attention ---- */

/* Keys or values of Hk heads out of projections of all H: z [T, H, K] weighted and summed over each group. */
static double *project_mixed(const layer *l, const shape *s, const char *name, int64_t T, const double *x,
                             int64_t K) {
  char full[32];
  snprintf(full, sizeof full, "%s_mix.weight", name);
  const double *m = value(l, full);
  if (!m) return project(l, name, T, x, s->Hk * K);
  int64_t wide = numel(l, full) / s->H, group = s->H / s->Hk, d = l->d;
  snprintf(full, sizeof full, "%s.weight", name);
  const double *w = value(l, full);
  snprintf(full, sizeof full, "%s.bias", name);
  const double *b = value(l, full);
  double *y = wf_calloc("test", (size_t)(T * s->Hk * K), sizeof *y);
  for (int64_t t = 0; t < T; t++)
    for (int64_t g = 0; g < s->Hk; g++)
      for (int64_t c = 0; c < K; c++) {
        double *to = &y[(t * s->Hk + g) * K + c];
        *to = b ? b[g * K + c] : 0;
        for (int64_t h = g * group; h < (g + 1) * group; h++)
          for (int64_t i = 0; i < d; i++) {
            double weight = wide == 1 ? m[h] : wide == K ? m[h * K + c] : m[h * d + i];
            *to += weight * w[(h * K + c) * d + i] * x[t * d + i];
          }
      }
  return y;
}

static void attention_definition(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  int64_t H = s->H, Hk = s->Hk, K = numel(l, "o.weight") / l->d / H;
  double *q = project(l, "q", T, x, H * K), *f = project(l, "f", T, x, H);
  double *k = project_mixed(l, s, "k", T, x, K), *v = project_mixed(l, s, "v", T, x, K);
  shape_heads(l, s, "q", T, H, K, q);
  shape_heads(l, s, "k", T, Hk, K, k);
  shape_heads(l, s, "v", T, Hk, K, v);
  double *p = wf_calloc("test", (size_t)(T * T), sizeof *p),
         *o = wf_calloc("test", (size_t)(T * H * K), sizeof *o);
  for (int64_t h = 0; h < H; h++) {
    int64_t g = h * Hk / H;
    for (int64_t t = 0; t < T; t++) {
      double *row = p + t * T, sum = 0, decay = 0;
      for (int64_t j = t; j >= 0 && (!s->window || t - j < s->window); j--) {
        double score = dot(K, q + (t * H + h) * K, k + (j * Hk + g) * K) / sqrt((double)K) + decay;
        if (value(l, "f.weight")) decay += logsigmoid(f[j * H + h]);
        row[j] = s->n_sigmoid ? sigmoid(score - log((double)s->n_sigmoid)) : exp(score);
        sum += row[j];
      }
      for (int64_t j = 0; j <= t; j++)
        for (int64_t c = 0; c < K; c++)
          o[(t * H + h) * K + c] += row[j] / (s->n_sigmoid ? 1 : sum) * v[(j * Hk + g) * K + c];
      memset(row, 0, (size_t)T * sizeof *row);
    }
  }
  project_out(l, T, x, o, H * K, y);
  wf_free(q), wf_free(k), wf_free(v), wf_free(f), wf_free(p), wf_free(o);
}

START_TEST(plain) {
  check_definition("attention heads=3 head_dim=4", 8, (shape){3, 3, 0, 0, true, false}, attention_definition);
  check_definition("attention heads=4 kv_heads=2 head_dim=3 position=none window=7 qk_norm=true bias=true", 8,
                   (shape){4, 2, 7, 0, false, true}, attention_definition);
}
END_TEST

START_TEST(forgetting) {
  check_definition("attention heads=3 head_dim=4 forget_gate=true position=none", 8,
                   (shape){3, 3, 0, 0, false, false}, attention_definition);
  check_definition("attention heads=4 kv_heads=2 forget_gate=true output_gate=true qk_norm=true "
                   "qk_norm_per_head=true position=none window=20",
                   8, (shape){4, 2, 20, 0, false, true}, attention_definition);
  check_definition("attention heads=2 kv_heads=1 forget_gate=true kind=sigmoid sigmoid_length=30", 8,
                   (shape){2, 1, 0, 30, true, false}, attention_definition);
}
END_TEST

START_TEST(by_sigmoid) {
  check_definition("attention heads=3 head_dim=4 kind=sigmoid", 8, (shape){3, 3, 0, 50, true, false},
                   attention_definition);
  check_definition("attention heads=2 kv_heads=1 kind=sigmoid sigmoid_length=9 window=70 position=none", 8,
                   (shape){2, 1, 70, 9, false, false}, attention_definition);
}
END_TEST

START_TEST(selective) {
  check_definition("attention heads=3 head_dim=4 temperature=query", 8, (shape){3, 3, 0, 0, true, false},
                   attention_definition);
  check_definition("attention heads=4 kv_heads=2 head_dim=2 temperature=value qk_norm=true", 8,
                   (shape){4, 2, 0, 0, true, true}, attention_definition);
  check_definition("attention heads=4 kv_heads=1 temperature=both qk_norm=true qk_norm_per_head=true", 8,
                   (shape){4, 1, 0, 0, true, true}, attention_definition);
}
END_TEST

START_TEST(weighted_groups) {
  check_definition("attention heads=4 kv_heads=2 kv_weights=head bias=true", 8,
                   (shape){4, 2, 0, 0, true, false}, attention_definition);
  check_definition("attention heads=6 kv_heads=2 head_dim=4 kv_weights=column", 8,
                   (shape){6, 2, 0, 0, true, false}, attention_definition);
  check_definition("attention heads=4 kv_heads=1 head_dim=6 kv_weights=row output_gate=true", 8,
                   (shape){4, 1, 0, 0, true, false}, attention_definition);
}
END_TEST

/* ---- identities ---- */

static void no_temperature(layer *l, const layer *other) {
  (void)other;
  fill(l, "q_temper.weight", 0), fill(l, "q_temper.alpha", -50);
  fill(l, "v_temper.weight", 0), fill(l, "v_temper.alpha", -50);
}

START_TEST(no_temperature_is_attention) {
  expect_equal("attention heads=2 temperature=both", no_temperature, "attention heads=2", copy_common);
}
END_TEST

static void open_gates(layer *l, const layer *other) {
  (void)other;
  fill(l, "f.weight", 0), fill(l, "f.bias", 60);
}

START_TEST(open_forget_gates_are_attention) {
  expect_equal("attention heads=2 forget_gate=true", open_gates, "attention heads=2", copy_common);
  expect_equal("attention heads=2 forget_gate=true window=9", open_gates, "attention heads=2 window=9",
               copy_common);
}
END_TEST

static double gate_bias;
static void set_gates(layer *l, const layer *other) {
  (void)other;
  fill(l, "f.bias", gate_bias);
}

/* However far the gates' sums are from 0. */
START_TEST(forgetting_in_float32) {
  static const double biases[] = {4, 0, -5, -50};
  for (int i = 0; i < 4; i++) {
    gate_bias = biases[i];
    check_float32("attention heads=2 forget_gate=true position=none", set_gates, 1e-6);
    check_float32("attention heads=2 forget_gate=true window=30 kind=sigmoid", set_gates, 1e-6);
  }
}
END_TEST

START_TEST(in_float32) {
  check_float32("attention heads=2 kind=sigmoid", NULL, 1e-6);
  check_float32("attention heads=4 kv_heads=2 temperature=both qk_norm=true", NULL, 1e-5); /* large scores */
  check_float32("attention heads=4 kv_heads=2 kv_weights=column output_gate=true", NULL, 1e-6);
}
END_TEST

/* The sums stay float64 in the state of a float32 model. */
START_TEST(forgetting_in_pieces_in_float32) {
  static const char *const blocks[] = {"attention heads=2 forget_gate=true position=none / -",
                                       "attention heads=3 forget_gate=true window=5 head_dim=4 / gelu"};
  wf_trial x;
  wf_trial_make(&x, 2, blocks, &(wf_trial_options){.dtype = WF_F32, .packed = true});
  double *a = wf_calloc("test", (size_t)x.numel, 2 * sizeof *a), *b = a + x.numel, loss[2];
  wf_trial_gradient(&x, 0, a, &loss[0]);
  wf_trial_gradient(&x, 5, b, &loss[1]);
  agree("streamed in float32", 23, x.numel, b, a, 1e-5);
  wf_trial_simulate(&x, 3, (int64_t[]){5, 11, 23}, false, b, &loss[1]);
  agree("three ranks in float32", 23, x.numel, b, a, 1e-5);
  wf_free(a);
  wf_trial_free(&x);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* Mean-pooled keys and values: weights of one group's mean. */
static void equal_weights(layer *l, const layer *other) {
  (void)other;
  fill(l, "k_mix.weight", 0.5), fill(l, "v_mix.weight", 0.5);
}
static void pooled(layer *l, const layer *other) {
  copy_common(l, other);
  static const char *const names[] = {"k.weight", "v.weight"};
  for (int i = 0; i < 2; i++) {
    double *to = value(l, names[i]);
    const double *from = value(other, names[i]);
    int64_t head = numel(l, names[i]) / 2; /* two groups of two heads */
    for (int64_t g = 0; g < 2; g++)
      for (int64_t e = 0; e < head; e++)
        to[g * head + e] = 0.5 * (from[2 * g * head + e] + from[(2 * g + 1) * head + e]);
  }
}

START_TEST(equal_weights_pool) {
  static const char *const kinds[] = {"head", "column", "row"};
  for (int i = 0; i < 3; i++) {
    char text[80];
    snprintf(text, sizeof text, "attention heads=4 kv_heads=2 kv_weights=%s", kinds[i]);
    expect_equal(text, equal_weights, "attention heads=4 kv_heads=2", pooled);
  }
}
END_TEST

/* One key head for all: every head of its own with the same weights. */
static void repeat_heads(layer *l, const layer *other) {
  copy_common(l, other);
  static const char *const names[] = {"k.weight", "v.weight"};
  for (int i = 0; i < 2; i++)
    for (int64_t n = numel(other, names[i]), e = 0; e < numel(l, names[i]); e++)
      value(l, names[i])[e] = value(other, names[i])[e % n];
}

START_TEST(one_group_is_multi_query) {
  expect_equal("attention heads=4 kv_heads=1", NULL, "attention heads=4", repeat_heads);
}
END_TEST

START_TEST(mistakes) {
  expect_refused("attention heads=4 kv_heads=3");
  expect_refused("attention heads=2 kind=sigmoid sinks=true");
  expect_refused("attention heads=8");
}
END_TEST

/* ---- the contract ---- */

WF_CONTRACT_TEST(
    contract_sigmoid, "attention heads=2 kind=sigmoid / swiglu width=7",
    "attention heads=3 kv_heads=1 kind=sigmoid window=5 sigmoid_length=4 qk_norm=true position=alibi / -")
WF_CONTRACT_TEST(
    contract_forgetting, "attention heads=2 forget_gate=true position=none / swiglu width=7",
    "attention heads=4 kv_heads=2 head_dim=3 forget_gate=true window=6 position=alibi output_gate=true / -",
    "attention heads=3 forget_gate=true window=1 sinks=true head_dim=4 / -")
WF_CONTRACT_TEST(contract_selective, "attention heads=3 temperature=both qk_norm=true head_dim=6 / -",
                 "attention heads=4 kv_heads=2 head_dim=4 temperature=value window=6 / gelu width=5")
WF_CONTRACT_TEST(contract_weighted, "attention heads=4 kv_heads=2 head_dim=4 kv_weights=head bias=true / -",
                 "attention heads=3 kv_heads=1 kv_weights=row output_gate=true / -",
                 "attention heads=2 kv_heads=1 kv_weights=column window=4 / swiglu width=7")
WF_CONTRACT_TEST(contract_hybrid, "simple_gla heads=2 / -",
                 "attention heads=2 kind=sigmoid temperature=query / gelu width=5",
                 "attention heads=2 kv_heads=1 kv_weights=head position=none forget_gate=true / -",
                 "attention heads=2 window=4 / -")

static Suite *suite(void) {
  Suite *s = suite_create("attention's kin");
  TCase *t = tcase_create("attention's kin");
  tcase_add_test(t, plain);
  tcase_add_test(t, forgetting);
  tcase_add_test(t, by_sigmoid);
  tcase_add_test(t, selective);
  tcase_add_test(t, weighted_groups);
  tcase_add_test(t, no_temperature_is_attention);
  tcase_add_test(t, open_forget_gates_are_attention);
  tcase_add_test(t, forgetting_in_float32);
  tcase_add_test(t, in_float32);
  tcase_add_test(t, forgetting_in_pieces_in_float32);
  tcase_add_test(t, equal_weights_pool);
  tcase_add_test(t, one_group_is_multi_query);
  tcase_add_test(t, mistakes);
  tcase_add_test(t, contract_forgetting);
  tcase_add_test(t, contract_sigmoid);
  tcase_add_test(t, contract_selective);
  tcase_add_test(t, contract_weighted);
  tcase_add_test(t, contract_hybrid);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
