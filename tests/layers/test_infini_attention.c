/* Infini-attention against its definition: local weights as a T x T matrix, the memory as sums over all
 * tokens of the segments before. */
#include "tests/layers/alone.h"

static int64_t segment;
static bool delta;

static double *features(int64_t n, const double *x) {
  double *s = wf_calloc("test", (size_t)n, sizeof *s);
  for (int64_t i = 0; i < n; i++) s[i] = x[i] > 0 ? x[i] + 1 : exp(x[i]);
  return s;
}

/* What key features s [K] read from M [K, K] and z [K]: to [K]. */
static void recall(int64_t K, const double *s, const double *M, const double *z, double *to) {
  double sum = dot(K, s, z) + 1e-6;
  for (int64_t c = 0; c < K; c++) {
    to[c] = 0;
    for (int64_t i = 0; i < K; i++) to[c] += s[i] * M[i * K + c] / sum;
  }
}

/* M and z of head h at the start of token t's segment. */
static void memory_at(int64_t t, int64_t h, int64_t H, int64_t K, const double *s, const double *v, double *M,
                      double *z) {
  memset(M, 0, (size_t)(K * K) * sizeof *M);
  memset(z, 0, (size_t)K * sizeof *z);
  double *old = wf_calloc("test", (size_t)(K * K + 2 * K), sizeof *old), *old_z = old + K * K,
         *held = old_z + K;
  for (int64_t j = 0; j < t / segment * segment; j++) {
    const double *sj = s + (j * H + h) * K, *vj = v + (j * H + h) * K;
    if (j % segment == 0) {
      memcpy(old, M, (size_t)(K * K) * sizeof *M);
      memcpy(old_z, z, (size_t)K * sizeof *z);
    }
    if (delta) recall(K, sj, old, old_z, held);
    for (int64_t i = 0; i < K; i++) {
      z[i] += sj[i];
      for (int64_t c = 0; c < K; c++) M[i * K + c] += sj[i] * (vj[c] - held[c]);
    }
  }
  wf_free(old);
}

static void infini_definition(const layer *l, const shape *sh, int64_t T, const double *x, double *y) {
  int64_t H = sh->H, K = numel(l, "o.weight") / l->d / H, n = T * H * K;
  double *q = project(l, "q", T, x, H * K), *k = project(l, "k", T, x, H * K),
         *v = project(l, "v", T, x, H * K);
  double *sq = features(n, q), *sk = features(n, k);
  shape_heads(l, sh, "q", T, H, K, q);
  shape_heads(l, sh, "k", T, H, K, k);
  double *p = wf_calloc("test", (size_t)(T * T), sizeof *p), *o = wf_calloc("test", (size_t)n, sizeof *o);
  double *M = wf_calloc("test", (size_t)(K * K + 2 * K), sizeof *M), *z = M + K * K, *past = z + K;
  for (int64_t h = 0; h < H; h++)
    for (int64_t t = 0; t < T; t++) {
      double *row = p + t * T, sum = 0, gate = sigmoid(value(l, "beta")[h]), *to = o + (t * H + h) * K;
      for (int64_t j = t / segment * segment; j <= t; j++) {
        row[j] = exp(dot(K, q + (t * H + h) * K, k + (j * H + h) * K) / sqrt((double)K));
        sum += row[j];
      }
      memory_at(t, h, H, K, sk, v, M, z);
      recall(K, sq + (t * H + h) * K, M, z, past);
      for (int64_t c = 0; c < K; c++) {
        double local = 0;
        for (int64_t j = 0; j <= t; j++) local += row[j] / sum * v[(j * H + h) * K + c];
        to[c] = gate * past[c] + (1 - gate) * local;
      }
      memset(row, 0, (size_t)T * sizeof *row);
    }
  project_out(l, T, x, o, H * K, y);
  wf_free(q), wf_free(k), wf_free(v), wf_free(sq), wf_free(sk), wf_free(p), wf_free(o), wf_free(M);
}

static void check_infini(const char *text, int64_t heads, int64_t seg, bool by_delta, bool rope) {
  segment = seg;
  delta = by_delta;
  check_definition(text, 8, (shape){heads, heads, 0, 0, rope, false}, infini_definition);
}

START_TEST(linear) {
  check_infini("infini_attention heads=2 segment=16", 2, 16, false, true);
  check_infini("infini_attention heads=3 head_dim=3 segment=7 position=none", 3, 7, false, false);
  check_infini("infini_attention heads=1 segment=1 position=none", 1, 1, false, false);
}
END_TEST

START_TEST(by_delta) {
  check_infini("infini_attention heads=2 segment=16 update=delta", 2, 16, true, true);
  check_infini("infini_attention heads=4 segment=9 update=delta position=none", 4, 9, true, false);
}
END_TEST

/* In one segment there is no memory: attention, and with beta at -60 nothing is taken from it. */
static void close_gates(layer *l, const layer *other) {
  (void)other;
  fill(l, "beta", -60);
}

START_TEST(one_segment_is_attention) {
  expect_equal("infini_attention heads=2 segment=1000", close_gates, "attention heads=2", copy_common);
  expect_equal("infini_attention heads=2 segment=1 position=none", close_gates,
               "attention heads=2 window=1 position=none", copy_common);
}
END_TEST

START_TEST(in_float32) {
  check_float32("infini_attention heads=2 segment=64", NULL, 1e-6);
  check_float32("infini_attention heads=2 segment=64 update=delta", NULL, 1e-6);
}
END_TEST

START_TEST(mistakes) {
  expect_refused("infini_attention heads=3");
  expect_refused("infini_attention heads=8");
}
END_TEST

WF_CONTRACT_TEST(contract, "infini_attention heads=2 segment=4 / swiglu width=7",
                 "infini_attention heads=3 segment=7 update=delta / -")
WF_CONTRACT_TEST(contract_delta, "infini_attention heads=4 segment=5 update=delta position=none / -",
                 "infini_attention heads=2 segment=1 / -",
                 "infini_attention heads=1 segment=40 / gelu width=5")
WF_CONTRACT_TEST(contract_hybrid, "simple_gla heads=2 / -",
                 "infini_attention heads=2 segment=6 update=delta / gelu", "attention heads=2 window=4 / -")

static Suite *suite(void) {
  Suite *s = suite_create("infini attention");
  TCase *t = tcase_create("infini attention");
  tcase_add_test(t, linear);
  tcase_add_test(t, by_delta);
  tcase_add_test(t, one_segment_is_attention);
  tcase_add_test(t, in_float32);
  tcase_add_test(t, mistakes);
  tcase_add_test(t, contract);
  tcase_add_test(t, contract_delta);
  tcase_add_test(t, contract_hybrid);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
