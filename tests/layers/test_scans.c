/* Mixers on elementwise scans and short convolutions against their definitions; the contract, alone and
 * beside attention. */
#include "tests/layers/alone.h"

/* ---- definitions ---- */

/* Causal convolution "conv" of x [T, d], with bias, tap w-1 on the token itself. */
static double *convolved(const layer *l, int64_t T, int64_t d, const double *x) {
  const double *w = value(l, "conv.weight"), *b = value(l, "conv.bias");
  int64_t taps = numel(l, "conv.weight") / d;
  double *y = wf_calloc("test", (size_t)(T * d), sizeof *y);
  for (int64_t t = 0; t < T; t++)
    for (int64_t c = 0; c < d; c++) {
      y[t * d + c] = b[c];
      for (int64_t i = 0; i < taps; i++)
        if (t - i >= 0) y[t * d + c] += w[c * taps + taps - 1 - i] * x[(t - i) * d + c];
    }
  return y;
}

static double positive(double x) {
  return x >= 0 ? x + 0.5 : sigmoid(x);
}

/* n_sigmoid 1: the plain form. minLSTM where there is an input gate. */
static void minrnn(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  int64_t width = numel(l, "h.weight") / l->d;
  bool lstm = value(l, "f.weight");
  double *u = value(l, "conv.weight") ? convolved(l, T, l->d, x) : random_doubles(T * l->d, "", 0);
  if (!value(l, "conv.weight")) memcpy(u, x, (size_t)(T * l->d) * sizeof *u);
  double *h = project(l, "h", T, u, width), *i = project(l, lstm ? "i" : "z", T, u, width),
         *f = project(l, "f", T, u, width);
  for (int64_t t = 0; t < T; t++)
    for (int64_t c = 0; c < width; c++) {
      int64_t at = t * width + c;
      double write = sigmoid(i[at]), candidate = s->n_sigmoid ? h[at] : positive(h[at]);
      if (lstm) write /= write + sigmoid(f[at]);
      h[at] = (t ? (1 - write) * h[at - width] : 0) + write * candidate;
    }
  if (value(l, "o.weight"))
    project_out(l, T, x, h, width, y);
  else
    memcpy(y, h, (size_t)(T * width) * sizeof *y);
  wf_free(u), wf_free(h), wf_free(i), wf_free(f);
}

/* rope: with ALiBi's slopes. */
static void aaren(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  int64_t H = s->H, K = l->d / H;
  const double *q = value(l, "query");
  double *k = project(l, "k", T, x, H * K), *v = project(l, "v", T, x, H * K);
  double *o = wf_calloc("test", (size_t)(T * H * K), sizeof *o),
         *score = wf_calloc("test", (size_t)T, sizeof *score);
  for (int64_t h = 0; h < H; h++)
    for (int64_t t = 0; t < T; t++) {
      double sum = 0, most = -INFINITY, slope = s->rope ? exp2(-8.0 * (double)(h + 1) / (double)H) : 0;
      for (int64_t j = 0; j <= t; j++) {
        score[j] = dot(K, q + h * K, k + (j * H + h) * K) / sqrt((double)K) - slope * (double)(t - j);
        most = fmax(most, score[j]);
      }
      for (int64_t j = 0; j <= t; j++) {
        double weight = exp(score[j] - most);
        sum += weight;
        for (int64_t c = 0; c < K; c++) o[(t * H + h) * K + c] += weight * v[(j * H + h) * K + c];
      }
      for (int64_t c = 0; c < K; c++) o[(t * H + h) * K + c] /= sum;
    }
  project_out(l, T, x, o, H * K, y);
  wf_free(k), wf_free(v), wf_free(o), wf_free(score);
}

static void base_conv(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  (void)s;
  double *p = project(l, "projection", T, x, l->d), *f = convolved(l, T, l->d, x);
  for (int64_t i = 0; i < T * l->d; i++) y[i] = p[i] * f[i];
  wf_free(p), wf_free(f);
}

START_TEST(definitions) {
  check_definition("mingru", 8, (shape){.H = 1}, minrnn);
  check_definition("mingru expand=1 conv=true bias=false", 7, (shape){.H = 1}, minrnn);
  check_definition("mingru expand=0.5 positive=false", 8, (shape){.n_sigmoid = 1}, minrnn);
  check_definition("minlstm", 8, (shape){.H = 1}, minrnn);
  check_definition("minlstm expand=1 conv=true conv_width=3 positive=false", 5, (shape){.n_sigmoid = 1},
                   minrnn);
  check_definition("aaren heads=2", 8, (shape){.H = 2, .rope = true}, aaren);
  check_definition("aaren heads=3 bias=true position=none", 9, (shape){.H = 3}, aaren);
  check_definition("base_conv", 6, (shape){.H = 1}, base_conv);
  check_definition("base_conv conv_width=70", 5, (shape){.H = 1}, base_conv);
}
END_TEST

/* Scores far apart, far from 0: only their differences matter, and nothing overflows. */
START_TEST(aaren_scores_of_any_size) {
  enum { T = 40, WIDE = 8 };
  double *x = random_doubles(T * WIDE, "x", 1), *dy = random_doubles(T * WIDE, "dy", 1), y[2][T * WIDE],
         dx[T * WIDE];
  layer l = make_of(WF_F32, "aaren heads=2 position=none", WIDE);
  double *q = value(&l, "query");
  for (int64_t i = 0; i < numel(&l, "query"); i++) q[i] *= 300; /* scores of some hundreds */
  run(&l, T, x, dy, y[0], dx);
  aaren(&l, &(shape){.H = 2}, T, x, y[1]);
  agree("large scores", T, T * WIDE, y[0], y[1], 1e-4);
  for (int64_t i = 0; i < T * WIDE; i++) ck_assert(isfinite(dx[i]));
  drop(&l);
  wf_free(x), wf_free(dy);
}
END_TEST

/* ---- the contract ---- */

WF_CONTRACT_TEST(mamba, "mamba state=3 / -",
                 "mamba expand=1.5 state=5 conv_width=2 dt_rank=3 / swiglu width=7")
WF_CONTRACT_TEST(mingru, "mingru / swiglu width=7", "mingru expand=1 conv=true bias=false / -",
                 "mingru positive=false / -")
WF_CONTRACT_TEST(minlstm, "minlstm / swiglu width=7", "minlstm expand=1 conv=true / -",
                 "minlstm positive=false / -")
WF_CONTRACT_TEST(aaren_alone, "aaren heads=2 / swiglu width=7", "aaren heads=3 bias=true position=none / -",
                 "aaren heads=1 position=learned / -")
WF_CONTRACT_TEST(base_conv_alone, "base_conv / swiglu width=7", "base_conv conv_width=9 / -")
WF_CONTRACT_TEST(hybrid, "mamba state=2 / -", "attention heads=2 window=5 / swiglu width=7", "mingru / -",
                 "aaren heads=2 / -")
WF_CONTRACT_TEST(other_hybrid, "minlstm / -", "base_conv / -",
                 "attention heads=2 kv_heads=1 / swiglu width=7")

/* ---- options ---- */

static void refused(const char *text, int64_t d) {
  wf_params params = {0};
  wf_state_spec state = {0};
  void *options, *self = NULL;
  const wf_layer_type *type = wf_trial_parse(WF_LAYER_MIXER, text, &options);
  wf_build b = {
      .params = &params, .state = &state, .prefix = "", .d_model = d, .n_layers = 1, .norm_eps = 1e-6};
  ck_assert_int_eq(type->init(&b, options, &self), WF_EINVAL);
  wf_trial_free_options(type, options);
  wf_free(self);
  wf_params_free(&params);
  wf_state_spec_free(&state);
}

START_TEST(options) {
  refused("aaren heads=3", 8);
  refused("mamba expand=0.05", 8);
  refused("mamba dt_min=0.2", 8);
  refused("mingru expand=0.05", 8);
  refused("minlstm expand=0.05", 8);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

static Suite *scans_suite(void) {
  Suite *s = suite_create("mixers on elementwise scans");
  TCase *t = tcase_create("scans");
  tcase_set_timeout(t, 300);
  tcase_add_test(t, definitions);
  tcase_add_test(t, aaren_scores_of_any_size);
  tcase_add_test(t, mamba);
  tcase_add_test(t, mingru);
  tcase_add_test(t, minlstm);
  tcase_add_test(t, aaren_alone);
  tcase_add_test(t, base_conv_alone);
  tcase_add_test(t, hybrid);
  tcase_add_test(t, other_hybrid);
  tcase_add_test(t, options);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(scans_suite)
