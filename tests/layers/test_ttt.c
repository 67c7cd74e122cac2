/* TTT against its definition, token by token: the inner loss, its gradient by the chain rule, a step of each
 * token of the mini-batch at the weights of its start. Then the contract. */
#include "tests/layers/alone.h"
#include "tests/layers/net.h"

static int64_t mini_batch;
static double base_lr;
static const double eps = 1e-6;

/* y = LN(x) . w + b; w NULL: 1, 0 */
static void layer_norm(int64_t n, const double *x, const double *w, const double *b, double *y) {
  double mean = 0, var = eps;
  for (int64_t i = 0; i < n; i++) mean += x[i] / (double)n;
  for (int64_t i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean) / (double)n;
  for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) / sqrt(var) * (w ? w[i] : 1) + (b ? b[i] : 0);
}

/* 1/2 |LN(z) - target|^2 */
static double loss(int64_t n, const double *z, const double *w, const double *b, const double *target) {
  double y[NET_WIDE], s = 0;
  layer_norm(n, z, w, b, y);
  for (int64_t i = 0; i < n; i++) s += 0.5 * (y[i] - target[i]) * (y[i] - target[i]);
  return s;
}

/* Its gradient by z, with d LN_i / d z_j = w_i (delta_ij - 1/n - xh_i xh_j / n) / sd. */
static void loss_gradient(int64_t n, const double *z, const double *w, const double *b, const double *target,
                          double *dz) {
  double y[NET_WIDE], xh[NET_WIDE], mean = 0, var = eps;
  layer_norm(n, z, w, b, y);
  layer_norm(n, z, NULL, NULL, xh);
  for (int64_t i = 0; i < n; i++) mean += z[i] / (double)n;
  for (int64_t i = 0; i < n; i++) var += (z[i] - mean) * (z[i] - mean) / (double)n;
  for (int64_t j = 0; j < n; j++) {
    dz[j] = 0;
    for (int64_t i = 0; i < n; i++)
      dz[j] += (y[i] - target[i]) * w[i] * ((i == j) - (1 + xh[i] * xh[j]) / (double)n) / sqrt(var);
  }
}

START_TEST(the_inner_gradient_is_one) {
  enum { N = 5 };
  double *z = random_doubles(N, "z", 1), *w = random_doubles(N, "w", 1), *b = random_doubles(N, "b", 1),
         *target = random_doubles(N, "target", 1), dz[N];
  loss_gradient(N, z, w, b, target, dz);
  for (int i = 0; i < N; i++) {
    double keep = z[i], up, down;
    z[i] = keep + 1e-5, up = loss(N, z, w, b, target);
    z[i] = keep - 1e-5, down = loss(N, z, w, b, target);
    z[i] = keep;
    ck_assert_double_eq_tol(dz[i], (up - down) / 2e-5, 1e-8);
  }
  wf_free(z), wf_free(w), wf_free(b), wf_free(target);
}
END_TEST

/* Causal convolution of z [T, d] by name, then rotary in adjacent pairs inside the mini-batch. */
static double *convolved(const layer *l, const char *name, int64_t T, int64_t K, const double *z) {
  char full[32];
  snprintf(full, sizeof full, "%s.weight", name);
  const double *w = value(l, full);
  int64_t d = l->d, taps = numel(l, full) / d;
  snprintf(full, sizeof full, "%s.bias", name);
  const double *bias = value(l, full);
  double *y = wf_calloc("test", (size_t)(T * d), sizeof *y);
  for (int64_t t = 0; t < T; t++) {
    for (int64_t c = 0; c < d; c++) {
      y[t * d + c] = bias[c];
      for (int64_t i = 0; i < taps; i++)
        if (t - taps + 1 + i >= 0) y[t * d + c] += w[c * taps + i] * z[(t - taps + 1 + i) * d + c];
    }
    for (int64_t c = 0; c < d; c += 2) {
      double angle = (double)(t % mini_batch) * pow(10000, -(double)(c % K) / (double)K), *v = y + t * d + c,
             a = v[0], b = v[1];
      v[0] = a * cos(angle) - b * sin(angle);
      v[1] = b * cos(angle) + a * sin(angle);
    }
  }
  return y;
}

/* The weights of head h in a parameter of all heads. */
static void load(const layer *l, const net *n, int64_t H, int64_t h) {
  for (int i = 0; i < n->depth; i++) {
    char name[32];
    int64_t size = n->wide[i] * n->wide[i + 1];
    snprintf(name, sizeof name, "ttt_dense_%d", i);
    ck_assert_int_eq(numel(l, name), H * size);
    memcpy(net_w(n, i), value(l, name) + h * size, (size_t)size * sizeof(double));
    snprintf(name, sizeof name, "ttt_bias_%d", i);
    memcpy(net_b(n, i), value(l, name) + h * n->wide[i + 1], (size_t)n->wide[i + 1] * sizeof(double));
  }
}

/* o [T, d], the columns of one head; q, k, v [T, d], lr [T, H]. */
static void one_head(const layer *l, int64_t H, int64_t h, int64_t T, const double *q, const double *k,
                     const double *v, const double *lr, double *o) {
  int64_t d = l->d, K = d / H, C = mini_batch;
  bool mlp = value(l, "ttt_dense_1") != NULL;
  int64_t wide[] = {K, mlp ? 4 * K : K, K};
  net start = net_make(1 + mlp, wide), steps = net_make(1 + mlp, wide), now = net_make(1 + mlp, wide);
  const double *w = value(l, "ttt_norm.weight") + h * K, *b = value(l, "ttt_norm.bias") + h * K;
  load(l, &start, H, h);
  for (int64_t t = 0; t < T; t++) {
    double x[NET_DEPTH][NET_WIDE], z[NET_DEPTH][NET_WIDE], target[NET_WIDE], dz[NET_WIDE];
    const double *kt = k + t * d + h * K, *qt = q + t * d + h * K;
    for (int64_t c = 0; c < K; c++) target[c] = v[t * d + h * K + c] - kt[c];
    net_forward(&start, kt, x, z);
    loss_gradient(K, z[start.depth - 1], w, b, target, dz);
    net_gradient(&start, kt, dz, base_lr / (double)K * sigmoid(lr[t * H + h]), &steps);
    double tok = value(l, "learnable_token_idx")[t % C] + 1 / (double)(t % C + 1);
    net_copy(&now, &start);
    net_blend(&now, 1, -fmax(tok, 0), &steps);
    net_forward(&now, qt, x, z);
    layer_norm(K, z[now.depth - 1], w, b, o + t * d + h * K);
    for (int64_t c = 0; c < K; c++) o[t * d + h * K + c] += qt[c];
    if (t % C == C - 1) {
      net_copy(&start, &now);
      net_blend(&steps, 0, 0, &now);
    }
  }
  wf_free(start.at), wf_free(steps.at), wf_free(now.at);
}

static void ttt_definition(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  int64_t d = l->d, H = s->H;
  double *qk = project(l, "q", T, x, d), *v = project(l, "v", T, x, d), *g = project(l, "g", T, x, d);
  double *lr = project(l, "learnable_ttt_lr", T, x, H);
  double *q = convolved(l, "q_conv", T, d / H, qk), *k = convolved(l, "k_conv", T, d / H, qk);
  double *o = wf_calloc("test", (size_t)(T * d), sizeof *o), *w = value(l, "o.weight");
  for (int64_t h = 0; h < H; h++) one_head(l, H, h, T, q, k, v, lr, o);
  for (int64_t t = 0; t < T; t++) {
    double *row = o + t * d;
    layer_norm(d, row, value(l, "post_norm.weight"), value(l, "post_norm.bias"), row);
    for (int64_t c = 0; c < d; c++) row[c] *= net_gelu(g[t * d + c]);
    for (int64_t i = 0; i < d; i++) y[t * d + i] = dot(d, w + i * d, row);
  }
  wf_free(qk), wf_free(q), wf_free(k), wf_free(v), wf_free(g), wf_free(lr), wf_free(o);
}

static void check(const char *options, int64_t heads, int64_t C, double lr) {
  char text[128];
  snprintf(text, sizeof text, "ttt heads=%d mini_batch=%d base_lr=%g %s", (int)heads, (int)C, lr, options);
  mini_batch = C;
  base_lr = lr;
  check_definition(text, 8, (shape){.H = heads}, ttt_definition);
}

START_TEST(linear) {
  check("inner=linear", 2, 16, 1);
  check("inner=linear conv_width=2", 1, 7, 0.5);
  check("inner=linear", 2, 1, 1);
}
END_TEST

START_TEST(mlp) {
  check("inner=mlp", 2, 16, 0.1);
  check("inner=mlp", 2, 5, 1);
}
END_TEST

/* Heads that do not divide the width; heads of one feature, which cannot turn. */
START_TEST(refused) {
  expect_refused("ttt heads=3");
  expect_refused("ttt heads=8");
}
END_TEST

WF_CONTRACT_TEST(contract_linear, "ttt heads=2 mini_batch=4 / -")
WF_CONTRACT_TEST(contract_linear_long, "ttt heads=3 mini_batch=16 / gelu width=5")
WF_CONTRACT_TEST(contract_mlp, "ttt heads=2 inner=mlp mini_batch=5 base_lr=1 / -")
WF_CONTRACT_TEST(contract_of_one_token, "ttt heads=1 mini_batch=1 / -",
                 "ttt heads=3 inner=mlp mini_batch=1 / -")
WF_CONTRACT_TEST(contract_hybrid, "ttt heads=2 mini_batch=7 / swiglu width=7", "attention heads=2 / -",
                 "ttt heads=2 inner=mlp mini_batch=30 / -")

static Suite *suite(void) {
  Suite *s = suite_create("ttt");
  TCase *t = tcase_create("ttt");
  tcase_add_test(t, the_inner_gradient_is_one);
  tcase_add_test(t, linear);
  tcase_add_test(t, mlp);
  tcase_add_test(t, refused);
  tcase_add_test(t, contract_linear);
  tcase_add_test(t, contract_linear_long);
  tcase_add_test(t, contract_mlp);
  tcase_add_test(t, contract_of_one_token);
  tcase_add_test(t, contract_hybrid);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
