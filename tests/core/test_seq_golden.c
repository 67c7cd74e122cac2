/* attend, conv and scan against what PyTorch computed in float64 (tests/golden/ops.safetensors). */
#include "tests/core/seq_test.h"
#include "core/safetensors.h"

static wf_safetensors *golden;

static void setup(void) {
  open_cpu();
  ok(wf_st_open(WEFT_SOURCE_DIR "/tests/golden/ops.safetensors", &golden));
}
static void teardown(void) {
  wf_st_close(golden);
  close_cpu();
}

static double *read(const char *group, const char *what, int64_t *count) {
  char name[96];
  snprintf(name, sizeof name, "%s.%s", group, what);
  const wf_st_info *info;
  ok(wf_st_find(golden, name, &info));
  ck_assert_int_eq(info->dtype, WF_ST_F64);
  double *x = doubles(info->count);
  ok(wf_st_read(golden, info, 0, info->count, x));
  if (count) *count = info->count;
  return x;
}
static wf_tensor *load(const char *group, const char *what, int ndim, const int64_t *shape) {
  int64_t count = 0, n = 1;
  double *x = read(group, what, &count);
  for (int i = 0; i < ndim; i++) n *= shape[i];
  ck_assert_int_eq(n, count);
  wf_tensor *t = tensor(WF_F64, ndim, shape, x);
  free(x);
  return t;
}
static void expect(const char *group, const char *what, const wf_tensor *got) {
  double *x = read(group, what, NULL);
  near_tensor(what, got, x, 1e-12, 0);
  free(x);
}

enum { B = 2, T = 13, N = B * T, H = 6, HK = 2, KD = 6, VD = 5 };

static const struct {
  const char *name;
  bool alibi, forget, sink;
  wf_attend_options o;
} cases[] = {
    {"causal", false, false, false, {.scale = 1}},
    {"alibi", true, false, false, {.scale = 1}},
    {"window", false, false, false, {.scale = 1, .window = 5}},
    {"softcap", false, false, false, {.scale = 1, .softcap = 3}},
    {"sink", false, false, true, {.scale = 1}},
    {"forget", false, true, false, {.scale = 1}},
    {"sigmoid", false, false, false, {.scale = 1, .kind = WF_ATTEND_SIGMOID, .len_bias = 16}},
    {"all", true, true, true, {.scale = 1, .window = 5, .softcap = 3}},
};

/* The score terms: ALiBi's slope and the sums of log forget gates. */
static wf_tensor *terms(bool alibi, bool forget) {
  double *logf = read("attend", "logf", NULL), *a = doubles(N * H);
  for (int64_t i = 0; i < N; i++)
    for (int64_t h = 0; h < H; h++) {
      int64_t t = i % T;
      if (forget) a[i * H + h] = logf[i * H + h];
      if (alibi && t) a[i * H + h] -= pow(2, -8.0 * (double)(h + 1) / H);
      if (t) a[i * H + h] += a[(i - 1) * H + h];
    }
  wf_tensor *x = tensor(WF_F64, WF_SHAPE(N, H), a);
  free(logf), free(a);
  return x;
}

START_TEST(test_attend) {
  char group[32];
  snprintf(group, sizeof group, "attend.%s", cases[_i].name);
  bool biased = cases[_i].alibi || cases[_i].forget;
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  var q, k, v, a, b, z;
  watch(tape, &q, load("attend", "q", WF_SHAPE(N, H, KD)));
  watch(tape, &k, load("attend", "k", WF_SHAPE(N, HK, KD)));
  watch(tape, &v, load("attend", "v", WF_SHAPE(N, HK, VD)));
  watch(tape, &a, biased ? terms(cases[_i].alibi, cases[_i].forget) : NULL);
  watch(tape, &b, biased ? terms(cases[_i].alibi, cases[_i].forget) : NULL);
  watch(tape, &z, cases[_i].sink ? load("attend", "sink", WF_SHAPE(H)) : NULL);
  wf_attend_options o = cases[_i].o;
  o.scale = 1 / sqrt(KD);
  wf_tensor *span = wf_attend_spans(ctx, 2, (wf_attend_span[]){{0, T, 0, 0, T}, {T, T, T, 0, T}});
  wf_tape_record(tape);
  wf_tensor *y = wf_attend(ctx, q.x, k.x, v.x, span, a.x, b.x, z.x, &o);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  wf_tensor *dy = load(group, "do", WF_SHAPE(N, H, VD));
  ok(wf_backward(tape, 1, &y, &dy));
  expect(group, "o", y);
  expect(group, "dq", q.leaf.grad);
  expect(group, "dk", k.leaf.grad);
  expect(group, "dv", v.leaf.grad);
  if (z.x) expect(group, "dsink", z.leaf.grad);
  if (cases[_i].forget) { /* dlogf: what reaches the sums, added from the end */
    double *da = values(a.leaf.grad), *db = values(b.leaf.grad);
    for (int64_t i = N - 1; i >= 0; i--)
      for (int64_t h = 0; h < H; h++)
        da[i * H + h] += db[i * H + h] + ((i + 1) % T ? da[(i + 1) * H + h] : 0);
    expect(group, "dlogf", tensor(WF_F64, WF_SHAPE(N, H), da));
    free(da), free(db);
  }
  wf_tape_free(tape);
}
END_TEST

START_TEST(test_conv) {
  wf_rows *rows;
  ok(wf_rows_fresh(ctx, 2, 9, 0, &rows));
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  var x, w, b;
  watch(tape, &x, load("conv", "x", WF_SHAPE(18, 5)));
  watch(tape, &w, load("conv", "weight", WF_SHAPE(5, 1, 4)));
  watch(tape, &b, load("conv", "bias", WF_SHAPE(5)));
  wf_tape_record(tape);
  wf_tensor *y = wf_conv(ctx, x.x, w.x, b.x, NULL, rows, false, NULL);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  wf_tensor *dy = load("conv", "dy", WF_SHAPE(18, 5));
  ok(wf_backward(tape, 1, &y, &dy));
  expect("conv", "y", y);
  expect("conv", "dx", x.leaf.grad);
  expect("conv", "dweight", w.leaf.grad);
  expect("conv", "dbias", b.leaf.grad);
  wf_tape_free(tape);
  wf_rows_free(rows);
}
END_TEST

START_TEST(test_simple_gla) {
  enum { LEN = 70, HEADS = 3, K = 5, V = 4, TOKENS = 2 * LEN };
  static const wf_row both[] = {{.len = LEN, .flags = 3}, {.begin = LEN, .len = LEN, .lane = 1, .flags = 3}};
  wf_rows *rows;
  ok(wf_rows_create(ctx, 2, both, 2, &rows));
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  var q, k, v, g, s0;
  watch(tape, &q, load("simple_gla", "q", WF_SHAPE(TOKENS, HEADS, K)));
  watch(tape, &k, load("simple_gla", "k", WF_SHAPE(TOKENS, HEADS, K)));
  watch(tape, &v, load("simple_gla", "v", WF_SHAPE(TOKENS, HEADS, V)));
  watch(tape, &g, load("simple_gla", "g", WF_SHAPE(TOKENS, HEADS)));
  watch(tape, &s0, load("simple_gla", "s0", WF_SHAPE(2, HEADS, K, V)));
  wf_scan_options o = {.scale = 1 / sqrt(K)};
  wf_tensor *out[2];
  wf_tape_record(tape);
  out[0] = wf_scan(ctx, &(wf_scan_in){.q = q.x, .k = k.x, .v = v.x, .g = g.x}, s0.x, rows, &o, &out[1]);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  wf_tensor *cot[] = {load("simple_gla", "do", WF_SHAPE(TOKENS, HEADS, V)),
                      load("simple_gla", "ds1", WF_SHAPE(2, HEADS, K, V))};
  ok(wf_backward(tape, 2, out, cot));
  expect("simple_gla", "o", out[0]);
  expect("simple_gla", "s1", out[1]);
  expect("simple_gla", "dq", q.leaf.grad);
  expect("simple_gla", "dk", k.leaf.grad);
  expect("simple_gla", "dv", v.leaf.grad);
  expect("simple_gla", "dg", g.leaf.grad);
  expect("simple_gla", "ds0", s0.leaf.grad);
  wf_tape_free(tape);
  wf_rows_free(rows);
}
END_TEST

static Suite *golden_suite(void) {
  Suite *s = suite_create("golden sequence ops");
  TCase *t = tcase_create("golden");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_loop_test(t, test_attend, 0, sizeof cases / sizeof *cases);
  tcase_add_test(t, test_conv);
  tcase_add_test(t, test_simple_gla);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(golden_suite)
