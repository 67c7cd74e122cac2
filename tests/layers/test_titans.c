/* Titans against its definition, token by token: the gradient of the inner loss by the chain rule, at the
 * weights of the segment's start, then momentum, forgetting and the read. Then identities and the contract.
 */
#include "tests/layers/alone.h"
#include "tests/layers/net.h"

/* What a definition is of, beyond the parameters. */
static int64_t segment, depth, expand;
static double theta_max;

/* SiLU of the causal convolution of z [T, d] by name; unit: each head divided by its length. In place. */
static void convolve(const layer *l, const char *name, int64_t T, int64_t H, bool unit, double *z) {
  char full[32];
  snprintf(full, sizeof full, "%s_conv.weight", name);
  const double *w = value(l, full);
  int64_t d = l->d, taps = numel(l, full) / d, K = d / H;
  for (int64_t t = T - 1; t >= 0; t--) {
    double y[NET_WIDE];
    for (int64_t c = 0; c < d; c++) {
      y[c] = 0;
      for (int64_t i = 0; i < taps; i++)
        if (t - taps + 1 + i >= 0) y[c] += w[c * taps + i] * z[(t - taps + 1 + i) * d + c];
      y[c] *= sigmoid(y[c]);
    }
    for (int64_t c = 0; c < d; c++) z[t * d + c] = y[c];
  }
  for (int64_t i = 0; i < T * H && unit; i++) {
    double length = sqrt(dot(K, z + i * K, z + i * K) + 1e-6);
    for (int64_t c = 0; c < K; c++) z[i * K + c] /= length;
  }
}

/* M_t(q_t) of one head in the columns of o; q, k, v [T, d], gates [T, H] before their sigmoids. */
static void one_memory(const layer *l, int64_t H, int64_t h, int64_t T, double *const *z, double *const *gate,
                       double *o) {
  int64_t d = l->d, K = d / H, wide[NET_DEPTH + 1] = {K};
  for (int i = 1; i <= depth; i++) wide[i] = i < depth ? K * expand : K;
  net now = net_make((int)depth, wide), start = net_make((int)depth, wide), p = net_make((int)depth, wide);
  for (int i = 0; i < depth; i++) {
    char name[32];
    int64_t size = wide[i] * wide[i + 1];
    snprintf(name, sizeof name, "memory.%d", i);
    ck_assert_int_eq(numel(l, name), H * size);
    memcpy(net_w(&now, i), value(l, name) + h * size, (size_t)size * sizeof(double));
  }
  for (int64_t t = 0; t < T; t++) {
    double x[NET_DEPTH][NET_WIDE], y[NET_DEPTH][NET_WIDE], dy[NET_WIDE];
    const double *q = z[0] + t * d + h * K, *k = z[1] + t * d + h * K, *v = z[2] + t * d + h * K;
    double alpha = sigmoid(gate[0][t * H + h]), eta = sigmoid(gate[1][t * H + h]),
           theta = theta_max * sigmoid(gate[2][t * H + h]);
    if (t % segment == 0) net_copy(&start, &now);
    net_forward(&start, k, x, y);
    for (int64_t c = 0; c < K; c++) dy[c] = 2 * (y[depth - 1][c] - v[c]);
    net_blend(&p, eta, 0, &p);
    net_gradient(&start, k, dy, -theta, &p);
    for (int i = 0; i < depth; i++) memset(net_b(&p, i), 0, (size_t)wide[i + 1] * sizeof(double));
    net_blend(&now, 1 - alpha, 1, &p);
    net_forward(&now, q, x, y);
    memcpy(o + t * d + h * K, y[depth - 1], (size_t)K * sizeof *o);
  }
  wf_free(now.at), wf_free(start.at), wf_free(p.at);
}

/* RMS norm of the heads of o [T, d]. */
static void norm_heads(const layer *l, const char *name, int64_t T, int64_t H, double *o) {
  int64_t K = l->d / H;
  const double *w = value(l, name);
  for (int64_t i = 0; i < T * H; i++) {
    double rms = sqrt(dot(K, o + i * K, o + i * K) / (double)K + 1e-6);
    for (int64_t c = 0; c < K; c++) o[i * K + c] *= w[c] / rms;
  }
}

static void memory_definition(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  static const char *const names[] = {"q", "k", "v"}, *const gates[] = {"alpha", "eta", "theta"};
  int64_t d = l->d, H = s->H;
  double *z[3], *gate[3], *g = project(l, "g", T, x, d), *o = wf_calloc("test", (size_t)(T * d), sizeof *o);
  for (int i = 0; i < 3; i++) {
    z[i] = project(l, names[i], T, x, d);
    convolve(l, names[i], T, H, i < 2, z[i]);
    gate[i] = project(l, gates[i], T, x, H);
  }
  for (int64_t h = 0; h < H; h++) one_memory(l, H, h, T, z, gate, o);
  norm_heads(l, "norm.weight", T, H, o);
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < d; i++) {
      y[t * d + i] = 0;
      for (int64_t c = 0; c < d; c++)
        y[t * d + i] += value(l, "o.weight")[i * d + c] * o[t * d + c] * g[t * d + c] * sigmoid(g[t * d + c]);
    }
  for (int i = 0; i < 3; i++) wf_free(z[i]), wf_free(gate[i]);
  wf_free(g), wf_free(o);
}

static void check(const char *options, definition f, int64_t heads, int64_t layers, int64_t wider, int64_t C,
                  double theta) {
  char text[160];
  segment = C, depth = layers, expand = wider, theta_max = theta;
  snprintf(text, sizeof text, "titans heads=%d depth=%d expand=%d segment=%d theta_max=%g %s", (int)heads,
           (int)layers, (int)wider, (int)C, theta, options);
  check_definition(text, 8, (shape){.H = heads}, f);
}

START_TEST(linear) {
  check("memory=linear", memory_definition, 2, 1, 1, 16, 1.0 / 16);
  check("memory=linear", memory_definition, 1, 1, 1, 7, 0.3);
  check("memory=linear conv_width=2", memory_definition, 4, 1, 1, 1, 0.5);
}
END_TEST

START_TEST(deep) {
  check("", memory_definition, 2, 2, 4, 16, 1.0 / 16);
  check("", memory_definition, 2, 3, 2, 5, 0.1);
  check("", memory_definition, 1, 4, 1, 64, 0.01);
}
END_TEST

/* ---- identities ---- */

START_TEST(a_deep_memory_of_one_layer_is_linear) {
  expect_equal("titans heads=2 memory=linear segment=16", NULL, "titans heads=2 depth=1 expand=3 segment=16",
               copy_common);
}
END_TEST

/* Steps of size 0 and nothing forgotten: every token reads the learned memory, whatever the segments. */
static void forget_nothing(layer *l, const layer *other) {
  (void)other;
  fill(l, "alpha.weight", 0), fill(l, "alpha.bias", -800);
}

START_TEST(without_steps_the_memory_stays) {
  expect_equal("titans heads=2 segment=16 theta_max=0", forget_nothing,
               "titans heads=2 segment=1 theta_max=0", copy_common);
  layer l = make("titans heads=2 memory=linear segment=16 theta_max=0", 8);
  forget_nothing(&l, NULL);
  enum { T = 40, N = T * 8 };
  double *x = random_doubles(N, "x", 1), *dy = random_doubles(N, "dy", 1), *y = wf_calloc("test", N, 16),
         *dx = y + N;
  run(&l, T, x, dy, y, dx);
  static const char *const idle[] = {"k.weight", "v.weight", "k_conv.weight", "v_conv.weight", "eta.bias"};
  for (int i = 0; i < 5; i++)
    for (int64_t e = 0; e < numel(&l, idle[i]); e++)
      ck_assert_double_eq(l.dw[value(&l, idle[i]) - l.w + e], 0);
  wf_free(x), wf_free(dy), wf_free(y);
  drop(&l);
}
END_TEST

/* Neither momentum nor forgetting: plain gradient steps, M_t = M_s - sum theta_j grad_j. In segments of one
 * token and with one head these are the delta rule, (I - 2 theta k^T k) M + 2 theta k^T v. */
static void plain_steps(layer *l, const layer *other) {
  forget_nothing(l, other);
  fill(l, "eta.weight", 0), fill(l, "eta.bias", -800);
}

static void delta_definition(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  int64_t d = l->d;
  double *q = project(l, "q", T, x, d), *k = project(l, "k", T, x, d), *v = project(l, "v", T, x, d),
         *g = project(l, "g", T, x, d), *theta = project(l, "theta", T, x, 1), M[NET_WIDE];
  (void)s;
  convolve(l, "q", T, 1, true, q), convolve(l, "k", T, 1, true, k), convolve(l, "v", T, 1, false, v);
  double *o = wf_calloc("test", (size_t)(T * d), sizeof *o);
  memcpy(M, value(l, "memory.0"), (size_t)(d * d) * sizeof *M);
  for (int64_t t = 0; t < T; t++) {
    double step = theta_max * sigmoid(theta[t]), now[8];
    for (int64_t c = 0; c < d; c++) {
      now[c] = 0;
      for (int64_t i = 0; i < d; i++) now[c] += k[t * d + i] * M[i * d + c];
    }
    for (int64_t i = 0; i < d; i++)
      for (int64_t c = 0; c < d; c++) M[i * d + c] += 2 * step * k[t * d + i] * (v[t * d + c] - now[c]);
    for (int64_t c = 0; c < d; c++)
      for (int64_t i = 0; i < d; i++) o[t * d + c] += q[t * d + i] * M[i * d + c];
  }
  norm_heads(l, "norm.weight", T, 1, o);
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < d; i++) {
      y[t * d + i] = 0;
      for (int64_t c = 0; c < d; c++)
        y[t * d + i] += value(l, "o.weight")[i * d + c] * o[t * d + c] * g[t * d + c] * sigmoid(g[t * d + c]);
    }
  wf_free(q), wf_free(k), wf_free(v), wf_free(g), wf_free(theta), wf_free(o);
}

START_TEST(plain_steps_of_single_tokens_are_the_delta_rule) {
  enum { T = 100, N = T * 8 };
  layer l = make("titans heads=1 memory=linear segment=1 theta_max=0.9", 8);
  theta_max = 0.9;
  plain_steps(&l, NULL);
  double *x = random_doubles(N, "x", 1), *dy = random_doubles(N, "dy", 1), *y = wf_calloc("test", N, 24),
         *dx = y + N, *want = dx + N;
  run(&l, T, x, dy, y, dx);
  delta_definition(&l, NULL, T, x, want);
  agree("delta rule", T, N, y, want, 1e-12);
  wf_free(x), wf_free(dy), wf_free(y);
  drop(&l);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* Gates at their ends: everything forgotten at once, momentum that never fades; nothing is NaN. */
START_TEST(gates_at_their_ends) {
  enum { T = 70, N = T * 8 };
  static const double ends[] = {-800, -50, 50, 800};
  for (int a = 0; a < 4; a++)
    for (int e = 0; e < 4; e++)
      for (int f32 = 0; f32 < 2; f32++) {
        layer l =
            make_of(f32 ? WF_F32 : WF_F64, "titans heads=2 depth=2 expand=2 segment=64 theta_max=0.001", 8);
        fill(&l, "alpha.bias", ends[a]), fill(&l, "eta.bias", ends[e]);
        double *x = random_doubles(N, "x", 1), *dy = random_doubles(N, "dy", 1),
               *y = wf_calloc("test", N, 16);
        run(&l, T, x, dy, y, y + N);
        for (int i = 0; i < 2 * N; i++) ck_assert(isfinite(y[i]));
        for (int64_t i = 0; i < l.params.numel; i++) ck_assert(isfinite(l.dw[i]));
        wf_free(x), wf_free(dy), wf_free(y);
        drop(&l);
      }
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

WF_CONTRACT_TEST(contract_linear, "titans heads=2 memory=linear segment=4 theta_max=1 / -")
WF_CONTRACT_TEST(contract_deep, "titans heads=3 depth=2 expand=2 segment=5 theta_max=0.5 / gelu width=5")
WF_CONTRACT_TEST(contract_deepest, "titans heads=2 depth=4 expand=1 segment=16 / -")
WF_CONTRACT_TEST(contract_of_one_token, "titans heads=1 memory=linear segment=1 / -",
                 "titans heads=3 depth=3 expand=1 segment=1 / -")
WF_CONTRACT_TEST(contract_hybrid, "titans heads=2 memory=linear segment=7 / swiglu width=7",
                 "attention heads=2 / -", "titans heads=4 segment=30 / -")

static Suite *suite(void) {
  Suite *s = suite_create("titans");
  TCase *t = tcase_create("titans");
  tcase_add_test(t, linear);
  tcase_add_test(t, deep);
  tcase_add_test(t, a_deep_memory_of_one_layer_is_linear);
  tcase_add_test(t, without_steps_the_memory_stays);
  tcase_add_test(t, plain_steps_of_single_tokens_are_the_delta_rule);
  tcase_add_test(t, gates_at_their_ends);
  tcase_add_test(t, contract_linear);
  tcase_add_test(t, contract_deep);
  tcase_add_test(t, contract_deepest);
  tcase_add_test(t, contract_of_one_token);
  tcase_add_test(t, contract_hybrid);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
