/* Identities between mixers, in float64: outputs, final states and all gradients, those of the state before
 * included. Gates that are open are none, decays of equal channels are one a head, heads that share keys are
 * heads with the same keys. */
#include "tests/layers/alone.h"

/* ---- weights of one mixer from those of another ---- */

/* The other's parameter with each of its `groups` blocks of rows `times` times. */
static void repeat_rows(layer *l, const layer *other, const char *name, int64_t groups, int64_t times) {
  double *to = value(l, name);
  const double *from = value(other, name);
  int64_t block = numel(other, name) / groups;
  ck_assert_msg(to && from && numel(l, name) == block * groups * times, "%s", name);
  for (int64_t g = 0; g < groups; g++)
    for (int64_t i = 0; i < times; i++)
      memcpy(to + (g * times + i) * block, from + g * block, (size_t)block * sizeof *to);
}

/* w [rows, in] = b [rows, rank] a [rank, in] */
static void product(double *w, const double *b, const double *a, int64_t rows, int64_t rank, int64_t in) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < in; i++) {
      w[r * in + i] = 0;
      for (int64_t k = 0; k < rank; k++) w[r * in + i] += b[r * rank + k] * a[k * in + i];
    }
}

/* ---- open gates ---- */

static void open_gla(layer *l, const layer *other) {
  if (other) copy_common(l, other);
  fill(l, "gk.1.weight", 0), fill(l, "gk.1.bias", 800);
}
static void open_simple(layer *l, const layer *other) {
  if (other) copy_common(l, other);
  fill(l, "gk.weight", 0), fill(l, "gk.bias", 800);
}
static void open_gateloop(layer *l, const layer *other) {
  if (other) copy_common(l, other);
  fill(l, "a.weight", 0), fill(l, "a.bias", 800);
}

START_TEST(open_gates_are_none) {
  const char *plain = "linear_attention heads=2 feature=none normalise=false norm=true";
  expect_same("gla heads=2 expand_k=1 use_gate=false", open_gla, plain, copy_common, true);
  expect_same("simple_gla heads=2 conv=false use_gate=false", open_simple, plain, copy_common, true);
  expect_same("gateloop heads=2", open_gateloop, "gla heads=2", open_gla, true);
  expect_same("gla heads=2 conv=true use_gate=false", open_gla,
              "linear_attention heads=2 feature=none normalise=false norm=true conv=true expand_k=0.5",
              copy_common, true);
}
END_TEST

/* a = 1: A is 0. */
static void open_delta(layer *l, const layer *other) {
  if (other) copy_common(l, other);
  fill(l, "A_log", -INFINITY);
}
/* and its output gate is 1 */
static void open_kda(layer *l, const layer *other) {
  open_delta(l, other);
  fill(l, "g.1.weight", 0), fill(l, "g.1.bias", 60);
}

START_TEST(delta_rules_that_keep_all) {
  expect_same("gated_deltanet heads=2 head_dim=4 expand_v=1", open_delta, "deltanet heads=2 use_gate=true",
              copy_common, true);
  expect_same("gated_deltanet heads=2 head_dim=4 expand_v=1 use_gate=false conv=false", open_delta,
              "deltanet heads=2 conv=false", copy_common, true);
  expect_same("kda heads=2", open_kda, "deltanet heads=2", copy_common, true);
}
END_TEST

/* ---- equal channels ---- */

/* Of each head the first channel's gate for all: rows of `weight` [H K, in], elements of `bias` [H K]. */
static void level(layer *l, const char *weight, const char *bias, int64_t H) {
  double *w = value(l, weight), *b = value(l, bias);
  int64_t K = numel(l, bias) / H, in = numel(l, weight) / (H * K);
  for (int64_t r = 0; r < H * K; r++) {
    memmove(w + r * in, w + r / K * K * in, (size_t)in * sizeof *w);
    b[r] = b[r / K * K];
  }
}
/* One gate a head, `weight` [H, d] and `bias` [H], from a product of low rank with equal channels. */
static void level_of(layer *l, const char *weight, const char *bias, const layer *other, const char *low,
                     const char *high, const char *high_bias) {
  int64_t H = numel(l, bias), K = numel(other, high_bias) / H, rank = numel(other, low) / l->d;
  for (int64_t h = 0; h < H; h++) {
    product(value(l, weight) + h * l->d, value(other, high) + h * K * rank, value(other, low), 1, rank, l->d);
    value(l, bias)[h] = value(other, high_bias)[h * K];
  }
}

static void level_gla(layer *l, const layer *other) {
  (void)other;
  level(l, "gk.1.weight", "gk.1.bias", 2);
}
static void as_simple(layer *l, const layer *other) {
  copy_common(l, other);
  level_of(l, "gk.weight", "gk.bias", other, "gk.0.weight", "gk.1.weight", "gk.1.bias");
}
static void level_kda(layer *l, const layer *other) {
  (void)other;
  level(l, "f.1.weight", "dt_bias", 2);
  fill(l, "g.1.weight", 0), fill(l, "g.1.bias", 60);
}
static void as_gated_deltanet(layer *l, const layer *other) {
  copy_common(l, other);
  level_of(l, "a.weight", "dt_bias", other, "f.0.weight", "f.1.weight", "dt_bias");
}

START_TEST(equal_channels_are_one_gate) {
  expect_same("gla heads=2 expand_k=1", level_gla, "simple_gla heads=2 conv=false", as_simple, true);
  expect_same("gla heads=2 conv=true gate_norm=3", level_gla, "simple_gla heads=2 expand_k=0.5 gate_norm=3",
              as_simple, true);
  expect_same("kda heads=2", level_kda, "gated_deltanet heads=2 head_dim=4 expand_v=1 use_gate=false",
              as_gated_deltanet, true);
}
END_TEST

/* Decays that do not turn are real: the state's sine half is never read. */
static void without_turning(layer *l, const layer *other) {
  (void)other;
  fill(l, "theta.weight", 0);
}

START_TEST(decays_that_do_not_turn) {
  expect_equal("gateloop heads=2 complex=true", without_turning, "gateloop heads=2", copy_common);
}
END_TEST

/* ---- shared heads ---- */

static void repeat_retnet(layer *l, const layer *other) {
  copy_common(l, other);
  repeat_rows(l, other, "k.weight", 1, 2), repeat_rows(l, other, "v.weight", 1, 2);
}
static void repeat_gla(layer *l, const layer *other) {
  repeat_retnet(l, other);
  repeat_rows(l, other, "gk.1.weight", 1, 2), repeat_rows(l, other, "gk.1.bias", 1, 2);
}
static void repeat_delta(layer *l, const layer *other) {
  copy_common(l, other);
  repeat_rows(l, other, "q.weight", 1, 2), repeat_rows(l, other, "k.weight", 1, 2);
  repeat_rows(l, other, "q_conv.weight", 1, 2), repeat_rows(l, other, "k_conv.weight", 1, 2);
}

START_TEST(shared_heads_are_equal_heads) {
  expect_same("retnet heads=2 kv_heads=1", NULL, "retnet heads=2", repeat_retnet, true);
  expect_same("retnet heads=2 kv_heads=1 norm=paper", NULL, "retnet heads=2 norm=paper", repeat_retnet, true);
  expect_same("gla heads=2 kv_heads=1", NULL, "gla heads=2", repeat_gla, true);
  expect_same("simple_gla heads=2 kv_heads=1 conv=false", NULL, "simple_gla heads=2 conv=false",
              repeat_retnet, true);
  expect_equal("gated_deltanet heads=1 v_heads=2 head_dim=4 expand_v=1", NULL,
               "gated_deltanet heads=2 head_dim=4 expand_v=1", repeat_delta);
  expect_equal("kda heads=1 v_heads=2 head_dim=4", NULL, "kda heads=2 head_dim=4", repeat_delta);
}
END_TEST

static Suite *identities_suite(void) {
  Suite *s = suite_create("identities");
  TCase *t = tcase_create("identities");
  tcase_set_timeout(t, 120);
  tcase_add_test(t, open_gates_are_none);
  tcase_add_test(t, delta_rules_that_keep_all);
  tcase_add_test(t, equal_channels_are_one_gate);
  tcase_add_test(t, decays_that_do_not_turn);
  tcase_add_test(t, shared_heads_are_equal_heads);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(identities_suite)
