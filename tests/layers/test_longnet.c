/* Dilated attention against its definition: a T x T matrix of how often a key is seen. */
#include "tests/layers/alone.h"

enum { PATTERNS = 3 };
static int n_patterns;
static int64_t segment[PATTERNS], dilation[PATTERNS];

/* In how many patterns head h at t sees j. */
static int times_seen(int64_t h, int64_t t, int64_t j) {
  int n = 0;
  for (int i = 0; i < n_patterns; i++) {
    int64_t w = segment[i], r = dilation[i];
    n += t / w == j / w && t % w % r == h % r && j % w % r == h % r;
  }
  return n;
}

static void dilated_definition(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  int64_t H = s->H, K = numel(l, "o.weight") / l->d / H;
  double *z[3];
  static const char *const names[] = {"q", "k", "v"};
  for (int i = 0; i < 3; i++) {
    z[i] = project(l, names[i], T, x, H * K);
    shape_heads(l, s, names[i], T, H, K, z[i]);
  }
  double *p = wf_calloc("test", (size_t)(T * T), sizeof *p),
         *o = wf_calloc("test", (size_t)(T * H * K), sizeof *o);
  for (int64_t h = 0; h < H; h++)
    for (int64_t t = 0; t < T; t++) {
      double *row = p + t * T, sum = 0;
      for (int64_t j = 0; j <= t; j++) {
        row[j] = times_seen(h, t, j) *
                 exp(dot(K, z[0] + (t * H + h) * K, z[1] + (j * H + h) * K) / sqrt((double)K));
        sum += row[j];
      }
      for (int64_t j = 0; j <= t && sum > 0; j++)
        for (int64_t c = 0; c < K; c++) o[(t * H + h) * K + c] += row[j] / sum * z[2][(j * H + h) * K + c];
    }
  project_out(l, T, x, o, H * K, y);
  for (int i = 0; i < 3; i++) wf_free(z[i]);
  wf_free(p), wf_free(o);
}

static void check_dilated(const char *options, int64_t heads, bool rope, int n, const int64_t *w,
                          const int64_t *r) {
  char text[200];
  int at = snprintf(text, sizeof text, "longnet heads=%d %s segments=", (int)heads, options);
  for (int i = 0; i < n; i++)
    at += snprintf(text + at, sizeof text - (size_t)at, "%s%d", i ? "," : "", (int)w[i]);
  at += snprintf(text + at, sizeof text - (size_t)at, " dilations=");
  for (int i = 0; i < n; i++)
    at += snprintf(text + at, sizeof text - (size_t)at, "%s%d", i ? "," : "", (int)r[i]);
  n_patterns = n;
  memcpy(segment, w, (size_t)n * sizeof *w);
  memcpy(dilation, r, (size_t)n * sizeof *r);
  check_definition(text, 8, (shape){heads, heads, 0, 0, rope, false}, dilated_definition);
}

START_TEST(dilated) {
  check_dilated("head_dim=4", 3, true, 3, (int64_t[]){4, 16, 48}, (int64_t[]){1, 2, 4});
  check_dilated("position=none qk_norm=true", 2, false, 2, (int64_t[]){7, 30}, (int64_t[]){1, 3});
  check_dilated("position=none", 4, false, 1, (int64_t[]){10},
                (int64_t[]){5}); /* tokens that no head keeps */
  check_dilated("position=none head_dim=2", 3, false, 2, (int64_t[]){10, 24}, (int64_t[]){5, 4});
  check_dilated("position=none", 2, false, 2, (int64_t[]){1, 100}, (int64_t[]){1, 7});
}
END_TEST

START_TEST(one_segment_is_attention) {
  expect_equal("longnet heads=2 segments=1000 dilations=1", NULL, "attention heads=2", copy_common);
  expect_equal("longnet heads=2 segments=5000,1000 dilations=1,1", NULL, "attention heads=2", copy_common);
  expect_equal("longnet heads=1 segments=1 dilations=1", NULL, "attention heads=1 window=1", copy_common);
}
END_TEST

START_TEST(in_float32) {
  check_float32("longnet heads=2 segments=64,256,1000 dilations=1,2,4", NULL, 1e-6);
}
END_TEST

START_TEST(mistakes) {
  expect_refused("longnet heads=2 segments=4,8");
  expect_refused("longnet heads=2 segments=4,x dilations=1,2");
  expect_refused("longnet heads=2 segments=4,0 dilations=1,2");
  expect_refused("longnet heads=3");
}
END_TEST

WF_CONTRACT_TEST(contract, "longnet heads=3 segments=4,8,16 dilations=1,2,4 / swiglu width=7",
                 "longnet heads=2 segments=5,9 dilations=2,1 position=none fixed_state=true / -",
                 "longnet heads=4 head_dim=4 segments=7,30,40 dilations=1,3,9 qk_norm=true / -")
WF_CONTRACT_TEST(contract_hybrid, "simple_gla heads=2 / -", "longnet heads=2 segments=3,11 dilations=1,2 / -",
                 "attention heads=2 window=4 / gelu width=5")

static Suite *suite(void) {
  Suite *s = suite_create("longnet");
  TCase *t = tcase_create("longnet");
  tcase_add_test(t, dilated);
  tcase_add_test(t, one_segment_is_attention);
  tcase_add_test(t, in_float32);
  tcase_add_test(t, mistakes);
  tcase_add_test(t, contract);
  tcase_add_test(t, contract_hybrid);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
