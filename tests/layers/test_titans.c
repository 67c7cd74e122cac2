/* Titans against its definition, token by token: the gradient of the inner loss by the chain rule, at the
 * weights of the segment's start, then momentum, forgetting and the read. Then identities and the contract.
 */
#include "tests/layers/alone.h"
#include "tests/layers/net.h"

/* What a definition is of, beyond the parameters. */
static int64_t segment, depth, expand, window;
static double theta_max;
static bool bounded;

/* y = SiLU of the causal convolution of z [T, d] at t, by name; unit: each head divided by its length. */
static void convolve(const layer *l, const char *name, int64_t t, int64_t H, bool unit, const double *z,
                     double *y) {
  char full[32];
  snprintf(full, sizeof full, "%s_conv.weight", name);
  const double *w = value(l, full);
  int64_t d = l->d, taps = numel(l, full) / d, K = d / H;
  for (int64_t c = 0; c < d; c++) {
    y[c] = 0;
    for (int64_t i = 0; i < taps; i++)
      if (t - taps + 1 + i >= 0) y[c] += w[c * taps + i] * z[(t - taps + 1 + i) * d + c];
    y[c] *= sigmoid(y[c]);
  }
  for (int64_t h = 0; h < H && unit; h++) {
    double length = sqrt(dot(K, y + h * K, y + h * K) + 1e-6);
    for (int64_t c = 0; c < K; c++) y[h * K + c] /= length;
  }
}

/* RMS norm of the heads of o [d], in place. */
static void norm_heads(const layer *l, const char *name, int64_t H, double *o) {
  int64_t K = l->d / H;
  const double *w = value(l, name);
  for (int64_t h = 0; h < H; h++) {
    double rms = sqrt(dot(K, o + h * K, o + h * K) / (double)K + 1e-6);
    for (int64_t c = 0; c < K; c++) o[h * K + c] *= w[c] / rms;
  }
}

/* y [T, d] = o Wo */
static void output(const layer *l, int64_t T, const double *o, double *y) {
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < l->d; i++)
      y[t * l->d + i] = dot(l->d, value(l, "o.weight") + i * l->d, o + t * l->d);
}

/* ---- the memory ---- */

typedef struct memory {
  net now, start, p;
} memory;

static memory memory_make(const layer *l, int64_t H, int64_t h) {
  int64_t K = l->d / H, wide[NET_DEPTH + 1] = {K};
  for (int i = 1; i <= depth; i++) wide[i] = i < depth ? K * expand : K;
  memory m = {net_make((int)depth, wide), net_make((int)depth, wide), net_make((int)depth, wide)};
  for (int i = 0; i < depth; i++) {
    char name[32];
    int64_t size = wide[i] * wide[i + 1];
    snprintf(name, sizeof name, "memory.%d", i);
    ck_assert_int_eq(numel(l, name), H * size);
    memcpy(net_w(&m.now, i), value(l, name) + h * size, (size_t)size * sizeof(double));
  }
  return m;
}

/* The network's value at q. */
static void memory_read(const net *n, const double *q, double *o) {
  double x[NET_DEPTH][NET_WIDE], y[NET_DEPTH][NET_WIDE];
  net_forward(n, q, x, y);
  memcpy(o, y[n->depth - 1], (size_t)n->wide[n->depth] * sizeof *o);
}

/* What divides a deep memory's step: the curvature of its loss at k, e the residual there, or 1. */
static double divisor(const net *n, const double *k, const double *e) {
  double x[NET_DEPTH][NET_WIDE], y[NET_DEPTH][NET_WIDE], size[NET_DEPTH], gain[NET_DEPTH], sum = 0;
  double J[NET_WIDE][NET_WIDE], next[NET_WIDE][NET_WIDE];
  int last = n->depth - 1;
  int64_t V = n->wide[n->depth];
  if (!last) return 1;
  net_forward(n, k, x, y);
  for (int64_t a = 0; a < V; a++)
    for (int64_t b = 0; b < V; b++) J[a][b] = a == b;
  for (int i = last; i >= 0; i--) {
    size[i] = sqrt(dot(n->wide[i], x[i], x[i]) + 1e-12);
    gain[i] = 0;
    for (int64_t a = 0; a < n->wide[i + 1]; a++) gain[i] += dot(V, J[a], J[a]);
    gain[i] = i == last ? 1 : sqrt(gain[i] + 1e-12);
    for (int64_t a = 0; a < n->wide[i]; a++)
      for (int64_t b = 0; b < V; b++) {
        next[a][b] = 0;
        for (int64_t h = 0; h < n->wide[i + 1]; h++)
          next[a][b] += net_w(n, i)[a * n->wide[i + 1] + h] * J[h][b];
      }
    memcpy(J, next, sizeof J);
  }
  for (int i = 0; i <= last; i++) {
    sum += size[i] * size[i] * gain[i] * gain[i];
    if (i < last) sum += size[i] * sqrt(dot(V, e, e) + 1e-12) * gain[i + 1];
  }
  return fmax(1, sum);
}

/* Token t: a step, then o = M_t(q); gates before their sigmoids. The network has no biases. */
static void memory_step(memory *m, int64_t t, const double *q, const double *k, const double *v, double alpha,
                        double eta, double theta, double *o) {
  double dy[NET_WIDE];
  int64_t last = m->now.wide[m->now.depth];
  if (t % segment == 0) net_copy(&m->start, &m->now);
  memory_read(&m->start, k, dy);
  for (int64_t c = 0; c < last; c++) dy[c] -= v[c];
  double step = theta_max * sigmoid(theta) / (bounded ? divisor(&m->start, k, dy) : 1);
  net_blend(&m->p, sigmoid(eta), 0, &m->p);
  net_gradient(&m->start, k, dy, -2 * step, &m->p);
  for (int i = 0; i < m->p.depth; i++) memset(net_b(&m->p, i), 0, (size_t)m->p.wide[i + 1] * sizeof(double));
  net_blend(&m->now, 1 - sigmoid(alpha), 1, &m->p);
  memory_read(&m->now, q, o);
}

static void memory_free(memory *m) {
  wf_free(m->now.at), wf_free(m->start.at), wf_free(m->p.at);
}

/* The memories of all heads, given z [T, d] their input: what is projected of it is convolved up to t. */
static void memories_step(const layer *l, int64_t H, memory *m, int64_t t, const double *z, double *o) {
  static const char *const names[] = {"q", "k", "v"}, *const gates[] = {"alpha", "eta", "theta"};
  int64_t d = l->d, K = d / H, near = t < 8 ? t : 8; /* tokens before this one that a convolution may see */
  double in[3][NET_WIDE], *gate[3];
  for (int i = 0; i < 3; i++) {
    double *y = project(l, names[i], near + 1, z + (t - near) * d, d);
    convolve(l, names[i], near, H, i < 2, y, in[i]);
    wf_free(y);
    gate[i] = project(l, gates[i], 1, z + t * d, H);
  }
  for (int64_t h = 0; h < H; h++)
    memory_step(&m[h], t, in[0] + h * K, in[1] + h * K, in[2] + h * K, gate[0][h], gate[1][h], gate[2][h],
                o + h * K);
  for (int i = 0; i < 3; i++) wf_free(gate[i]);
}

/* M_t(q_t) of all tokens [T, d] */
static double *remembered(const layer *l, int64_t H, int64_t T, const double *x) {
  double *o = wf_calloc("test", (size_t)(T * l->d), sizeof *o);
  memory m[8];
  for (int64_t h = 0; h < H; h++) m[h] = memory_make(l, H, h);
  for (int64_t t = 0; t < T; t++) memories_step(l, H, m, t, x, o + t * l->d);
  for (int64_t h = 0; h < H; h++) memory_free(&m[h]);
  return o;
}

/* RMSNorm(M) . SiLU(x Wg) [T, d] */
static double *memory_layer(const layer *l, int64_t H, int64_t T, const double *x) {
  double *o = remembered(l, H, T, x), *g = project(l, "g", T, x, l->d);
  for (int64_t t = 0; t < T; t++) norm_heads(l, "norm.weight", H, o + t * l->d);
  for (int64_t i = 0; i < T * l->d; i++) o[i] *= g[i] * sigmoid(g[i]);
  wf_free(g);
  return o;
}

static void memory_definition(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  double *o = memory_layer(l, s->H, T, x);
  output(l, T, o, y);
  wf_free(o);
}

/* ---- attention ---- */

/* x [d] at a position, half-split rotary in each head. */
static void turn(int64_t d, int64_t H, int64_t at, const double *x, double *y) {
  int64_t K = d / H;
  for (int64_t h = 0; h < H; h++)
    for (int64_t c = 0; c < K / 2; c++) {
      double angle = (double)at * pow(10000, -2.0 * (double)c / (double)K);
      double a = x[h * K + c], b = x[h * K + c + K / 2];
      y[h * K + c] = a * cos(angle) - b * sin(angle);
      y[h * K + c + K / 2] = b * cos(angle) + a * sin(angle);
    }
}

/* Attention of one token over any keys, one after the other. */
typedef struct softmax {
  double sum[8], o[NET_WIDE];
} softmax;
static void see(softmax *a, int64_t d, int64_t H, const double *q, const double *k, const double *v) {
  int64_t K = d / H;
  for (int64_t h = 0; h < H; h++) {
    double p = exp(dot(K, q + h * K, k + h * K) / sqrt((double)K));
    a->sum[h] += p;
    for (int64_t c = 0; c < K; c++) a->o[h * K + c] += p * v[h * K + c];
  }
}
static void seen(const softmax *a, int64_t d, int64_t H, double *o) {
  for (int64_t c = 0; c < d; c++) o[c] = a->o[c] / a->sum[c / (d / H)];
}

/* Persistent rows, for a query without position. */
static void see_persistent(const layer *l, softmax *a, int64_t H, const double *q) {
  int64_t d = l->d, rows = numel(l, "persistent") / d;
  double *k = project(l, "attn.k", rows, value(l, "persistent"), d),
         *v = project(l, "attn.v", rows, value(l, "persistent"), d);
  for (int64_t i = 0; i < rows; i++) see(a, d, H, q, k + i * d, v + i * d);
  wf_free(k), wf_free(v);
}

/* S(x) [T, d] over a window and the persistent rows. */
static double *attended(const layer *l, const shape *s, int64_t T, const double *x) {
  int64_t d = l->d, H = s->H;
  double *q = project(l, "attn.q", T, x, d), *k = project(l, "attn.k", T, x, d),
         *v = project(l, "attn.v", T, x, d), *o = wf_calloc("test", (size_t)(T * d), sizeof *o);
  for (int64_t t = 0; t < T; t++) {
    softmax a = {{0}, {0}};
    double qt[NET_WIDE], kj[NET_WIDE];
    see_persistent(l, &a, H, q + t * d);
    for (int64_t j = t - window + 1 > 0 ? t - window + 1 : 0; j <= t; j++) {
      turn(d, H, s->rope ? t : 0, q + t * d, qt);
      turn(d, H, s->rope ? j : 0, k + j * d, kj);
      see(&a, d, H, qt, kj, v + j * d);
    }
    seen(&a, d, H, o + t * d);
  }
  wf_free(q), wf_free(k), wf_free(v);
  return o;
}

/* a = RMSNorm(a) . sigmoid(RMSNorm(m)), all [d] */
static void gate_heads(const layer *l, int64_t H, double *a, double *m) {
  norm_heads(l, "attn.norm.weight", H, a);
  norm_heads(l, "norm.weight", H, m);
  for (int64_t c = 0; c < l->d; c++) a[c] *= sigmoid(m[c]);
}

static void gate_definition(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  double *a = attended(l, s, T, x), *m = remembered(l, s->H, T, x);
  for (int64_t t = 0; t < T; t++) gate_heads(l, s->H, a + t * l->d, m + t * l->d);
  output(l, T, a, y);
  wf_free(a), wf_free(m);
}

static void layer_definition(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  double *m = memory_layer(l, s->H, T, x), *a = attended(l, s, T, m);
  output(l, T, a, y);
  wf_free(m), wf_free(a);
}

static void context_definition(const layer *l, const shape *s, int64_t T, const double *x, double *y) {
  int64_t d = l->d, H = s->H, K = d / H;
  double *z = project(l, "q", T, x, d), *q = project(l, "attn.q", T, x, d),
         *k = project(l, "attn.k", T, x, d), *v = project(l, "attn.v", T, x, d);
  double *a = wf_calloc("test", (size_t)(T * d), 4 * sizeof *a), *kr = a + T * d, *vr = kr + T * d,
         *o = vr + T * d;
  memory m[8];
  for (int64_t h = 0; h < H; h++) m[h] = memory_make(l, H, h);
  for (int64_t t = 0; t < T; t++) {
    int64_t from = t / segment * segment;
    double asked[NET_WIDE], r[NET_WIDE], qt[NET_WIDE], kj[NET_WIDE], said[NET_WIDE];
    convolve(l, "q", t, H, true, z, asked);
    for (int64_t h = 0; h < H; h++)
      memory_read(t == from ? &m[h].now : &m[h].start, asked + h * K, r + h * K);
    double *key = project(l, "attn.k", 1, r, d), *said_v = project(l, "attn.v", 1, r, d);
    memcpy(kr + t * d, key, (size_t)d * sizeof *kr);
    memcpy(vr + t * d, said_v, (size_t)d * sizeof *vr);
    wf_free(key), wf_free(said_v);
    softmax sm = {{0}, {0}};
    if (value(l, "persistent")) see_persistent(l, &sm, H, q + t * d);
    turn(d, H, s->rope ? t - from : 0, q + t * d, qt);
    for (int64_t j = from; j <= t; j++) {
      turn(d, H, s->rope ? j - from : 0, k + j * d, kj);
      see(&sm, d, H, qt, kj, v + j * d);
      turn(d, H, s->rope ? j - from : 0, kr + j * d, kj);
      see(&sm, d, H, qt, kj, vr + j * d);
    }
    seen(&sm, d, H, a + t * d);
    memories_step(l, H, m, t, a, said);
    memcpy(o + t * d, a + t * d, (size_t)d * sizeof *o);
    gate_heads(l, H, o + t * d, said);
  }
  output(l, T, o, y);
  for (int64_t h = 0; h < H; h++) memory_free(&m[h]);
  wf_free(z), wf_free(q), wf_free(k), wf_free(v), wf_free(a);
}

static void check(const char *options, definition f, shape sh, int64_t layers, int64_t wider, int64_t C,
                  double theta) {
  char text[200];
  segment = C, depth = layers, expand = wider, window = sh.window;
  for (int plain = 0; plain < (layers > 1 ? 2 : 1); plain++) {
    bounded = !plain;
    theta_max = plain ? theta : theta * pow(8, (double)layers - 1);
    snprintf(text, sizeof text, "titans heads=%d depth=%d expand=%d segment=%d theta_max=%g window=%d %s %s",
             (int)sh.H, (int)layers, (int)wider, (int)C, theta_max, window ? (int)window : 1,
             plain ? "step=plain" : "", options);
    check_definition(text, 8, sh, f);
  }
}

START_TEST(linear) {
  check("variant=lmm memory=linear", memory_definition, (shape){.H = 2}, 1, 1, 16, 1.0 / 16);
  check("variant=lmm memory=linear", memory_definition, (shape){.H = 1}, 1, 1, 7, 0.3);
  check("variant=lmm memory=linear conv_width=2", memory_definition, (shape){.H = 4}, 1, 1, 1, 0.5);
}
END_TEST

START_TEST(deep) {
  check("variant=lmm", memory_definition, (shape){.H = 2}, 2, 4, 16, 1.0 / 16);
  check("variant=lmm", memory_definition, (shape){.H = 2}, 3, 2, 5, 0.1);
  check("variant=lmm", memory_definition, (shape){.H = 1}, 4, 1, 64, 0.01);
}
END_TEST

START_TEST(gate) {
  check("variant=mag persistent=3", gate_definition, (shape){.H = 2, .window = 9, .rope = true}, 2, 2, 16,
        0.1);
  check("variant=mag memory=linear persistent=1 position=none", gate_definition,
        (shape){.H = 4, .window = 70}, 1, 1, 7, 0.1);
}
END_TEST

START_TEST(as_layer) {
  check("variant=mal persistent=3", layer_definition, (shape){.H = 2, .window = 9, .rope = true}, 2, 2, 16,
        0.1);
  check("variant=mal memory=linear persistent=2 position=none", layer_definition,
        (shape){.H = 1, .window = 1}, 1, 1, 7, 0.1);
}
END_TEST

START_TEST(context) {
  check("persistent=3", context_definition, (shape){.H = 2, .rope = true}, 2, 2, 16, 0.1);
  check("memory=linear persistent=0 position=none", context_definition, (shape){.H = 4}, 1, 1, 7, 0.1);
  check("memory=linear persistent=1", context_definition, (shape){.H = 1, .rope = true}, 1, 1, 1, 0.1);
}
END_TEST

/* ---- identities ---- */

START_TEST(a_deep_memory_of_one_layer_is_linear) {
  expect_equal("titans variant=lmm heads=2 memory=linear segment=16", NULL,
               "titans variant=lmm heads=2 depth=1 expand=3 segment=16", copy_common);
}
END_TEST

START_TEST(a_linear_memory_has_no_step_to_bound) {
  expect_equal("titans variant=lmm heads=2 memory=linear segment=16 theta_max=0.5", NULL,
               "titans variant=lmm heads=2 memory=linear segment=16 theta_max=0.5 step=plain", copy_common);
}
END_TEST

/* Steps of size 0 and nothing forgotten: every token reads the learned memory, whatever the segments. */
static void forget_nothing(layer *l, const layer *other) {
  (void)other;
  fill(l, "alpha.weight", 0), fill(l, "alpha.bias", -800);
}

START_TEST(without_steps_the_memory_stays) {
  expect_equal("titans variant=lmm heads=2 segment=16 theta_max=0", forget_nothing,
               "titans variant=lmm heads=2 segment=1 theta_max=0", copy_common);
  layer l = make("titans variant=lmm heads=2 memory=linear segment=16 theta_max=0", 8);
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

static void delta_definition(const layer *l, int64_t T, const double *x, double *y) {
  int64_t d = l->d;
  double *q = project(l, "q", T, x, d), *k = project(l, "k", T, x, d), *v = project(l, "v", T, x, d),
         *g = project(l, "g", T, x, d), *theta = project(l, "theta", T, x, 1), M[NET_WIDE];
  double *o = wf_calloc("test", (size_t)(T * d), sizeof *o);
  memcpy(M, value(l, "memory.0"), (size_t)(d * d) * sizeof *M);
  for (int64_t t = 0; t < T; t++) {
    double step = 2 * theta_max * sigmoid(theta[t]), qt[8], kt[8], vt[8], now[8] = {0};
    convolve(l, "q", t, 1, true, q, qt);
    convolve(l, "k", t, 1, true, k, kt);
    convolve(l, "v", t, 1, false, v, vt);
    for (int64_t c = 0; c < d; c++)
      for (int64_t i = 0; i < d; i++) now[c] += kt[i] * M[i * d + c];
    for (int64_t i = 0; i < d; i++)
      for (int64_t c = 0; c < d; c++) M[i * d + c] += step * kt[i] * (vt[c] - now[c]);
    for (int64_t c = 0; c < d; c++)
      for (int64_t i = 0; i < d; i++) o[t * d + c] += qt[i] * M[i * d + c];
    norm_heads(l, "norm.weight", 1, o + t * d);
    for (int64_t c = 0; c < d; c++) o[t * d + c] *= g[t * d + c] * sigmoid(g[t * d + c]);
  }
  output(l, T, o, y);
  wf_free(q), wf_free(k), wf_free(v), wf_free(g), wf_free(theta), wf_free(o);
}

START_TEST(plain_steps_of_single_tokens_are_the_delta_rule) {
  enum { T = 100, N = T * 8 };
  layer l = make("titans variant=lmm heads=1 memory=linear segment=1 theta_max=0.9", 8);
  theta_max = 0.9;
  plain_steps(&l, NULL);
  double *x = random_doubles(N, "x", 1), *dy = random_doubles(N, "dy", 1), *y = wf_calloc("test", N, 24),
         *dx = y + N, *want = dx + N;
  run(&l, T, x, dy, y, dx);
  delta_definition(&l, T, x, want);
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
        layer l = make_of(f32 ? WF_F32 : WF_F64,
                          "titans variant=lmm heads=2 depth=2 expand=2 segment=64 theta_max=0.001", 8);
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

/* Large weights and values, through many segments in float32: plain steps leave the numbers, bounded ones and
 * all gradients stay. */
static bool large_stays_finite(const char *text) {
  enum { T = 2000, N = T * 8 };
  layer l = make_of(WF_F32, text, 8);
  for (int64_t i = 0; i < numel(&l, "v.weight"); i++) value(&l, "v.weight")[i] *= 30;
  for (int i = 0; i < 2; i++)
    for (int64_t e = 0; e < numel(&l, i ? "memory.1" : "memory.0"); e++)
      value(&l, i ? "memory.1" : "memory.0")[e] *= 10;
  double *x = random_doubles(N, "x", 1), *dy = random_doubles(N, "dy", 1), *y = wf_calloc("test", N, 16);
  bool finite = true;
  run(&l, T, x, dy, y, y + N);
  for (int i = 0; i < 2 * N; i++) finite = finite && isfinite(y[i]);
  for (int64_t i = 0; i < l.params.numel; i++) finite = finite && isfinite(l.dw[i]);
  wf_free(x), wf_free(dy), wf_free(y);
  drop(&l);
  return finite;
}

START_TEST(bounded_steps_stay) {
  ck_assert(large_stays_finite("titans variant=lmm heads=1 segment=64"));
  ck_assert(large_stays_finite("titans variant=lmm heads=1 depth=4 segment=16"));
  ck_assert(!large_stays_finite("titans variant=lmm heads=1 segment=64 step=plain"));
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

WF_CONTRACT_TEST(contract_linear, "titans variant=lmm heads=2 memory=linear segment=4 theta_max=1 / -")
WF_CONTRACT_TEST(contract_deep,
                 "titans variant=lmm heads=3 depth=2 expand=2 segment=5 theta_max=0.5 / gelu width=5")
WF_CONTRACT_TEST(contract_plain,
                 "titans variant=lmm heads=3 depth=2 expand=2 segment=5 step=plain / gelu width=5")
WF_CONTRACT_TEST(contract_deepest, "titans variant=lmm heads=2 depth=4 expand=1 segment=16 / -")
WF_CONTRACT_TEST(contract_of_one_token, "titans variant=lmm heads=1 memory=linear segment=1 / -",
                 "titans variant=lmm heads=3 depth=3 expand=1 segment=1 / -")
WF_CONTRACT_TEST(contract_hybrid, "titans variant=lmm heads=2 memory=linear segment=7 / swiglu width=7",
                 "attention heads=2 / -", "titans variant=lmm heads=4 segment=30 / -")

WF_CONTRACT_TEST(
    contract_gate, "titans variant=mag heads=2 segment=5 expand=2 window=4 persistent=3 / -",
    "titans variant=mag heads=3 memory=linear segment=4 window=30 persistent=0 position=none / -")
WF_CONTRACT_TEST(contract_layer, "titans variant=mal heads=2 segment=5 expand=2 window=4 persistent=3 / -",
                 "titans variant=mal heads=3 memory=linear segment=4 window=1 persistent=1 / gelu width=5")
WF_CONTRACT_TEST(contract_context, "titans variant=mac heads=2 segment=5 expand=2 persistent=3 / -")
WF_CONTRACT_TEST(contract_context_linear,
                 "titans variant=mac heads=3 memory=linear segment=16 persistent=0 position=none / -")
WF_CONTRACT_TEST(contract_context_of_one_token,
                 "titans variant=mac heads=2 memory=linear segment=1 persistent=1 / -")
WF_CONTRACT_TEST(contract_architectures, "titans variant=mag heads=2 segment=7 expand=1 window=4 / -",
                 "attention heads=2 / -", "titans heads=2 depth=4 expand=1 segment=4 / swiglu width=7",
                 "titans variant=mal heads=2 memory=linear segment=30 / -")

static Suite *suite(void) {
  Suite *s = suite_create("titans");
  TCase *t = tcase_create("titans");
  tcase_add_test(t, linear);
  tcase_add_test(t, deep);
  tcase_add_test(t, gate);
  tcase_add_test(t, as_layer);
  tcase_add_test(t, context);
  tcase_add_test(t, a_deep_memory_of_one_layer_is_linear);
  tcase_add_test(t, a_linear_memory_has_no_step_to_bound);
  tcase_add_test(t, without_steps_the_memory_stays);
  tcase_add_test(t, plain_steps_of_single_tokens_are_the_delta_rule);
  tcase_add_test(t, gates_at_their_ends);
  tcase_add_test(t, bounded_steps_stay);
  tcase_add_test(t, contract_linear);
  tcase_add_test(t, contract_deep);
  tcase_add_test(t, contract_plain);
  tcase_add_test(t, contract_deepest);
  tcase_add_test(t, contract_of_one_token);
  tcase_add_test(t, contract_hybrid);
  tcase_add_test(t, contract_gate);
  tcase_add_test(t, contract_layer);
  tcase_add_test(t, contract_context);
  tcase_add_test(t, contract_context_linear);
  tcase_add_test(t, contract_context_of_one_token);
  tcase_add_test(t, contract_architectures);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
