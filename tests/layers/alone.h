/* alone: one mixer by itself, for tests that compare it with its definition, written plainly with a T x T
 * matrix of weights in the test: outputs, and gradients by differences of the definition; and mixers with
 * each other.
 */
#ifndef WF_TESTS_LAYERS_ALONE_H
#define WF_TESTS_LAYERS_ALONE_H

#include "tests/layers/contract.h"
#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "tests/check_main.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define OK(expr) ck_assert_msg((expr) == WF_OK, "%s: %s\n%s", #expr, wf_error_message(), wf_error_trace())

/* ---- a layer alone ---- */

typedef struct layer {
  wf_device *dev;
  wf_ctx *c;
  const wf_layer_type *type;
  void *self;
  wf_params params;
  wf_state_spec state;
  int64_t d;
  wf_dtype dtype;
  double *w, *dw; /* values and gradients in the order of declaration */
} layer;

static inline double *random_doubles(int64_t n, const char *site, double size) {
  double *x = wf_alloc("test", (size_t)(n + 1) * sizeof *x);
  wf_rng_key key = wf_rng_key_make(11, "test", site);
  for (int64_t i = 0; i < n; i++) x[i] = size * wf_rng_normal(key, (uint64_t)i);
  return x;
}

static inline wf_tensor *tensor(const layer *l, int ndim, const int64_t *shape, const double *x) {
  return wf_cast(l->c, wf_from_host(l->c, "test", WF_F64, ndim, shape, x), l->dtype);
}
static inline void read_doubles(const layer *l, wf_tensor *t, double *x) {
  wf_scope s = wf_scope_open(l->c);
  OK(wf_to_host(wf_cast(l->c, t, WF_F64), x));
  wf_scope_close(l->c, s);
}

/* Layer `at` of a model of `of`. */
static inline layer make_at(wf_dtype dtype, const char *text, int64_t d, int at, int of) {
  layer l = {.d = d, .dtype = dtype};
  void *options;
  OK(wf_device_open(WF_CPU, 0, &l.dev));
  OK(wf_ctx_create(l.dev, &l.c));
  l.type = wf_trial_parse(WF_LAYER_MIXER, text, &options);
  wf_build b = {.params = &l.params,
                .state = &l.state,
                .prefix = "",
                .d_model = d,
                .layer = at,
                .n_layers = of,
                .init_std = 0.4,
                .out_std = 0.4,
                .norm_eps = 1e-6,
                .context = 50};
  OK(l.type->init(&b, options, &l.self));
  wf_trial_free_options(l.type, options);
  OK(wf_params_allocate(&l.params, l.c, dtype, NULL, NULL));
  OK(wf_params_init(&l.params, 5));
  l.w = random_doubles(l.params.numel, "offsets", 0.2);
  l.dw = wf_calloc("test", (size_t)l.params.numel, sizeof *l.dw);
  double *w = l.w; /* everything off its initial value */
  for (int i = 0; i < l.params.n; w += l.params.param[i++]->numel) {
    double *first = wf_alloc("test", (size_t)l.params.param[i]->numel * sizeof *first);
    read_doubles(&l, l.params.param[i]->value, first);
    for (int64_t k = 0; k < l.params.param[i]->numel; k++) w[k] += first[k];
    wf_free(first);
  }
  return l;
}
static inline layer make_of(wf_dtype dtype, const char *text, int64_t d) {
  return make_at(dtype, text, d, 0, 1);
}
static inline layer make(const char *text, int64_t d) {
  return make_of(WF_F64, text, d);
}

static inline void drop(layer *l) {
  wf_free(l->w), wf_free(l->dw), wf_free(l->self);
  wf_params_free(&l->params);
  wf_state_spec_free(&l->state);
  wf_ctx_free(l->c);
  wf_device_close(l->dev);
}

/* The values of a parameter; NULL where the layer has none of that name. */
static inline double *value(const layer *l, const char *name) {
  double *w = l->w;
  for (int i = 0; i < l->params.n; w += l->params.param[i++]->numel)
    if (strcmp(l->params.param[i]->name, name) == 0) return w;
  return NULL;
}
static inline int64_t numel(const layer *l, const char *name) {
  for (int i = 0; i < l->params.n; i++)
    if (strcmp(l->params.param[i]->name, name) == 0) return l->params.param[i]->numel;
  return 0;
}

/* Elements of a state of one lane; -1 where it grows. */
static inline int64_t state_numel(const layer *l) {
  int64_t all = 0;
  for (int i = 0; i < l->state.n; i++) {
    int64_t n = 1;
    for (int k = 0; k < l->state.slot[i].ndim; k++) n *= l->state.slot[i].shape[k];
    all = l->state.slot[i].grows || all < 0 ? -1 : all + n;
  }
  return all;
}

/* The state that a document's first token here finds and the last one leaves, slot after slot, their
 * gradients the other way round: [state_numel] each. */
typedef struct carried {
  const double *in, *dleft;
  double *left, *din;
} carried;

enum { MAX_SLOTS = 16, BEFORE = 7 }; /* tokens that the document had before */

static inline wf_state *carry_in(layer *l, const carried *s, wf_tape *tape, wf_leaf *leaf) {
  wf_state *state;
  const double *at = s->in;
  ck_assert_int_le(l->state.n, MAX_SLOTS);
  OK(wf_state_create(l->c, &l->state, l->dtype, 1, 0, true, &state));
  for (int i = 0; i < l->state.n; i++) {
    wf_tensor *in = state->in[i], *host = wf_from_host(l->c, "test", WF_F64, in->ndim, in->shape, at);
    OK(wf_op_run(l->c, &wf_op_copy, 1, (wf_tensor *[]){wf_cast(l->c, host, in->dtype)}, NULL, 1, &in, 0));
    leaf[i] = (wf_leaf){.grad = wf_zeros(l->c, "test", in->dtype, in->ndim, in->shape)};
    OK(wf_tape_watch(tape, in, &leaf[i]));
    at += wf_numel(in);
  }
  return state;
}

/* T tokens of one document, fresh or as `s` says (NULL): y and, for dy, dx and l->dw. */
static inline void run_carried(layer *l, int64_t T, const double *x, const double *dy, double *y, double *dx,
                               const carried *s) {
  wf_ctx *c = l->c;
  wf_scope scope = wf_scope_open(c);
  wf_rows *rows;
  wf_tape *tape;
  wf_row row = {.len = T, .pos = BEFORE, .place = BEFORE, .flags = WF_ROW_TAKES | WF_ROW_LEAVES};
  if (s)
    OK(wf_rows_create(c, 1, &row, 1, &rows));
  else
    OK(wf_rows_fresh(c, 1, T, 0, &rows));
  OK(wf_tape_create(c, &tape));
  wf_leaf state_leaf[MAX_SLOTS];
  wf_state *state = s ? carry_in(l, s, tape, state_leaf) : NULL;
  double *w = l->w;
  for (int i = 0; i < l->params.n; w += l->params.param[i++]->numel) {
    wf_tensor *p = l->params.param[i]->value;
    OK(wf_op_run(c, &wf_op_copy, 1, (wf_tensor *[]){tensor(l, p->ndim, p->shape, w)}, NULL, 1, &p, 0));
  }
  wf_tensor *in = tensor(l, WF_SHAPE(T, l->d), x), *cot = tensor(l, WF_SHAPE(T, l->d), dy);
  wf_leaf leaf = {.grad = wf_zeros(c, "test", l->dtype, WF_SHAPE(T, l->d))};
  wf_run r = {.c = c, .rows = rows, .state = state};
  wf_params_reset(&l->params);
  wf_params_hold(&l->params);
  OK(wf_params_watch(&l->params, tape));
  OK(wf_tape_watch(tape, in, &leaf));
  wf_tape_record(tape);
  wf_tensor *out[1 + MAX_SLOTS] = {l->type->forward(&r, l->self, in)}, *cots[1 + MAX_SLOTS] = {cot};
  wf_tape_pause(tape);
  OK(wf_ctx_check(c));
  const double *dleft = s ? s->dleft : NULL;
  int n = 1;
  for (int i = 0; s && i < l->state.n; i++) {
    wf_tensor *left = state->out[i], *host = wf_from_host(c, "test", WF_F64, left->ndim, left->shape, dleft);
    dleft += wf_numel(left);
    out[n] = left;
    cots[n++] = wf_cast(c, host, left->dtype);
  }
  OK(wf_backward(tape, n, out, cots));
  wf_params_release(&l->params);
  OK(wf_params_finish(&l->params));
  for (int64_t i = 0, at = 0; s && i < l->state.n; at += wf_numel(state->in[i++])) {
    read_doubles(l, state->out[i], s->left + at);
    read_doubles(l, state_leaf[i].grad, s->din + at);
  }
  read_doubles(l, out[0], y);
  read_doubles(l, leaf.grad, dx);
  double *dw = l->dw;
  for (int i = 0; i < l->params.n; dw += l->params.param[i++]->numel)
    read_doubles(l, l->params.param[i]->leaf.grad, dw);
  wf_tape_free(tape);
  wf_state_free(state);
  wf_rows_free(rows);
  wf_scope_close(c, scope);
}
static inline void run(layer *l, int64_t T, const double *x, const double *dy, double *y, double *dx) {
  run_carried(l, T, x, dy, y, dx, NULL);
}

static inline void agree(const char *what, int64_t T, int64_t n, const double *a, const double *b,
                         double tolerance) {
  wf_error e = wf_compare(n, a, b);
  ck_assert_msg(e.err2 <= tolerance && e.errmax <= 10 * tolerance,
                "%s, T %lld: err2 %.2e errmax %.2e at %lld", what, (long long)T, e.err2, e.errmax,
                (long long)e.worst);
}

/* ---- definitions against layers ---- */

/* What a definition needs to know beyond the parameters. */
typedef struct shape {
  int64_t H, Hk, window, n_sigmoid; /* window 0: all; n_sigmoid 0: softmax */
  bool rope, qk_norm;
} shape;

typedef void (*definition)(const layer *l, const shape *s, int64_t T, const double *x, double *y);

static inline double dot(int64_t n, const double *a, const double *b) {
  double s = 0;
  for (int64_t i = 0; i < n; i++) s += a[i] * b[i];
  return s;
}

/* <dy, y> of the definition. */
static inline double objective(const layer *l, const shape *s, definition f, int64_t T, const double *x,
                               const double *dy) {
  double *y = wf_calloc("test", (size_t)(T * l->d), sizeof *y), sum;
  f(l, s, T, x, y);
  sum = dot(T * l->d, y, dy);
  wf_free(y);
  return sum;
}

/* <gradient, direction> of numbers `at` (n of them) against the definition's difference along it. */
static inline void check_gradient(const char *name, const layer *l, const shape *s, definition f, int64_t T,
                                  const double *x, const double *dy, double *at, int64_t n,
                                  const double *gradient) {
  static const double step[] = {1, -1, 2, -2}, weight[] = {8, -8, -1, 1}; /* exact to the fourth order */
  double *dir = random_doubles(n, name, 1), *keep = random_doubles(n, name, 1), h = 1e-5, numeric = 0;
  memcpy(keep, at, (size_t)n * sizeof *keep);
  for (int k = 0; k < 4; k++) {
    for (int64_t i = 0; i < n; i++) at[i] = keep[i] + step[k] * h * dir[i];
    numeric += weight[k] / (12 * h) * objective(l, s, f, T, x, dy);
  }
  memcpy(at, keep, (size_t)n * sizeof *keep);
  double exact = dot(n, gradient, dir);
  double size = sqrt(dot(n, gradient, gradient)) + 1e-3;
  ck_assert_msg(fabs(numeric - exact) <= 1e-6 * size, "gradient of %s, T %lld: %.12g, by differences %.12g",
                name, (long long)T, exact, numeric);
  wf_free(dir), wf_free(keep);
}

static inline void check_layer(const char *text, layer *l, shape s, definition f) {
  static const int64_t lengths[] = {1, 2, 5, 63, 64, 65, 100};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    int64_t T = lengths[i], n = T * l->d;
    double *x = random_doubles(n, "x", 1), *dy = random_doubles(n, "dy", 1);
    double *y = wf_calloc("test", (size_t)n, 3 * sizeof *y), *want = y + n, *dx = want + n;
    run(l, T, x, dy, y, dx);
    f(l, &s, T, x, want);
    agree(text, T, n, y, want, 1e-12);
    check_gradient("x", l, &s, f, T, x, dy, x, n, dx);
    double *w = l->w, *dw = l->dw;
    for (int p = 0; p < l->params.n; p++) {
      const wf_param *q = l->params.param[p];
      check_gradient(q->name, l, &s, f, T, x, dy, w, q->numel, dw);
      w += q->numel, dw += q->numel;
    }
    wf_free(x), wf_free(dy), wf_free(y);
  }
}

static inline void check_definition(const char *text, int64_t d, shape s, definition f) {
  layer l = make(text, d);
  check_layer(text, &l, s, f);
  drop(&l);
  ck_assert_int_eq(wf_mem_live(), 0);
}

/* ---- what definitions of attention are made of ---- */

static inline double logsigmoid(double x) {
  return x < 0 ? x - log1p(exp(x)) : -log1p(exp(-x));
}
static inline double sigmoid(double x) {
  return 1 / (1 + exp(-x));
}

/* x W^T + b by name, [T, out]; zeros where the layer has no such weight. */
static inline double *project(const layer *l, const char *name, int64_t T, const double *x, int64_t out) {
  char full[32];
  snprintf(full, sizeof full, "%s.weight", name);
  const double *w = value(l, full);
  snprintf(full, sizeof full, "%s.bias", name);
  const double *b = value(l, full);
  double *y = wf_calloc("test", (size_t)(T * out), sizeof *y);
  for (int64_t t = 0; t < T && w; t++)
    for (int64_t o = 0; o < out; o++) y[t * out + o] = dot(l->d, w + o * l->d, x + t * l->d) + (b ? b[o] : 0);
  return y;
}

/* RMS norm, rotary and temperature of z [T, heads, K]. */
static inline void shape_heads(const layer *l, const shape *s, const char *name, int64_t T, int64_t heads,
                               int64_t K, double *z) {
  char full[32];
  snprintf(full, sizeof full, "%s_temper.weight", name);
  const double *u = value(l, full);
  snprintf(full, sizeof full, "%s_temper.alpha", name);
  const double *alpha = value(l, full);
  snprintf(full, sizeof full, "%s_norm.weight", name);
  const double *norm = value(l, full);
  bool per_head = norm && numel(l, full) > K;
  for (int64_t t = 0; t < T; t++)
    for (int64_t h = 0; h < heads; h++) {
      double *v = z + (t * heads + h) * K, tau = 1;
      if (u) {
        double s_u = 0;
        for (int64_t c = 0; c < K; c++) s_u += u[h * K + c] * v[c] * 0.5 * erfc(-v[c] / sqrt(2));
        tau = 1 + sigmoid(alpha[h]) * log((double)(t + 1)) + tanh(s_u);
      }
      if (norm) {
        double root = sqrt(dot(K, v, v) / (double)K + 1e-6);
        for (int64_t c = 0; c < K; c++) v[c] = v[c] / root * norm[per_head ? h * K + c : c];
      }
      if (s->rope && name[0] != 'v')
        for (int64_t c = 0; c < K / 2; c++) {
          double angle = (double)t * pow(10000, -2.0 * (double)c / (double)K), a = v[c], b = v[c + K / 2];
          v[c] = a * cos(angle) - b * sin(angle);
          v[c + K / 2] = b * cos(angle) + a * sin(angle);
        }
      for (int64_t c = 0; c < K; c++) v[c] *= tau;
    }
}

/* y = (o . gate) Wo */
static inline void project_out(const layer *l, int64_t T, const double *x, const double *o, int64_t wide,
                               double *y) {
  double *gate = value(l, "g.weight") ? project(l, "g", T, x, wide) : NULL;
  const double *w = value(l, "o.weight"), *b = value(l, "o.bias");
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < l->d; i++) {
      double sum = b ? b[i] : 0;
      for (int64_t c = 0; c < wide; c++)
        sum += w[i * wide + c] * o[t * wide + c] * (gate ? sigmoid(gate[t * wide + c]) : 1);
      y[t * l->d + i] = sum;
    }
  wf_free(gate);
}

/* ---- layers against each other ---- */

static inline void fill(layer *l, const char *name, double x) {
  double *w = value(l, name);
  ck_assert_msg(w != NULL, "no %s", name);
  for (int64_t i = 0; i < numel(l, name); i++) w[i] = x;
}

/* The values of the parameters that both have. */
static inline void copy_common(layer *l, const layer *other) {
  double *w = l->w;
  for (int i = 0; i < l->params.n; w += l->params.param[i++]->numel) {
    const char *name = l->params.param[i]->name;
    const double *from = value(other, name);
    if (from && numel(other, name) == l->params.param[i]->numel)
      memcpy(w, from, (size_t)l->params.param[i]->numel * sizeof *w);
  }
}

/* What a layer gives for the same x and dy: y, dx, and with `carry` the final state and the first one's
 * gradient; free with wf_free(o.y). */
typedef struct outcome {
  layer l;
  double *y, *dx, *left, *din;
} outcome;

static inline outcome outcome_of(const char *text, void (*set)(layer *l, const layer *other),
                                 const layer *other, int64_t T, bool carry) {
  outcome o = {.l = make(text, 8)};
  if (set) set(&o.l, other);
  int64_t n = T * 8, m = carry ? state_numel(&o.l) : 0;
  ck_assert_msg(m >= 0, "%s: its state grows", text);
  double *x = random_doubles(n, "x", 1), *dy = random_doubles(n, "dy", 1);
  double *state = random_doubles(m, "state", 1), *dleft = random_doubles(m, "dleft", 1);
  o.y = wf_calloc("test", (size_t)(2 * n + 2 * m), sizeof *o.y);
  o.dx = o.y + n, o.left = o.dx + n, o.din = o.left + m;
  carried s = {state, dleft, o.left, o.din};
  run_carried(&o.l, T, x, dy, o.y, o.dx, carry ? &s : NULL);
  wf_free(x), wf_free(dy), wf_free(state), wf_free(dleft);
  return o;
}

/* Gradients of parameters that both have, to `tolerance` of their size, or of 1e-3 of the largest where they
 * are smaller by cancellation. */
static inline void agree_common(const char *what, int64_t T, const layer *a, const layer *b,
                                double tolerance) {
  const double *da = a->dw;
  double most = 0;
  int common = 0;
  for (int i = 0; i < a->params.n; da += a->params.param[i++]->numel)
    most = fmax(most, sqrt(dot(a->params.param[i]->numel, da, da)));
  da = a->dw;
  for (int i = 0; i < a->params.n; da += a->params.param[i++]->numel) {
    const char *name = a->params.param[i]->name;
    int64_t n = numel(a, name);
    const double *at = value(b, name);
    if (!at || numel(b, name) != n) continue;
    const double *db = b->dw + (at - b->w);
    double off = 0, size = fmax(sqrt(dot(n, db, db)), 1e-3 * most);
    for (int64_t k = 0; k < n; k++) off += (da[k] - db[k]) * (da[k] - db[k]);
    ck_assert_msg(sqrt(off) <= tolerance * size, "%s, T %lld: gradient of %s: error %.2e of %.2e", what,
                  (long long)T, name, sqrt(off), size);
    common++;
  }
  ck_assert_int_gt(common, 0);
}

/* Outputs, gradients of x and of parameters that both have, and with `carry` first and final states. */
static inline void expect_same(const char *a, void (*set_a)(layer *l, const layer *other), const char *b,
                               void (*set_b)(layer *l, const layer *other), bool carry) {
  static const int64_t lengths[] = {1, 2, 63, 64, 65, 100, 1000};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    int64_t T = lengths[i];
    outcome x = outcome_of(a, set_a, NULL, T, carry), y = outcome_of(b, set_b, &x.l, T, carry);
    agree(a, T, T * 8, x.y, y.y, 1e-12);
    agree(a, T, T * 8, x.dx, y.dx, 1e-11);
    agree_common(a, T, &x.l, &y.l, 1e-11);
    if (carry) {
      int64_t m = state_numel(&x.l);
      ck_assert_int_eq(m, state_numel(&y.l));
      agree(a, T, m, x.left, y.left, 1e-12);
      agree(a, T, m, x.din, y.din, 1e-11);
    }
    wf_free(x.y), wf_free(y.y);
    drop(&x.l), drop(&y.l);
  }
  ck_assert_int_eq(wf_mem_live(), 0);
}
static inline void expect_equal(const char *a, void (*set_a)(layer *l, const layer *other), const char *b,
                                void (*set_b)(layer *l, const layer *other)) {
  expect_same(a, set_a, b, set_b, false);
}

/* float32 against float64 at values that float32 holds, over 1000 tokens: the output to `limit`, gradients to
 * 4 times it, each relative to its own size, or to 1e-3 of the largest where it is smaller by cancellation.
 */
static inline void check_float32_at(const char *text, int at, int of,
                                    void (*set)(layer *l, const layer *other), double limit) {
  enum { T = 1000, N = T * 8 };
  double *x = random_doubles(N, "x", 1), *dy = random_doubles(N, "dy", 1), *y[2], *dx[2], most = 0;
  layer l[2];
  for (int64_t e = 0; e < N; e++) x[e] = (double)(float)x[e], dy[e] = (double)(float)dy[e];
  for (int k = 0; k < 2; k++) {
    l[k] = make_at(k ? WF_F64 : WF_F32, text, 8, at, of);
    if (set) set(&l[k], NULL);
    for (int64_t e = 0; e < l[k].params.numel; e++) l[k].w[e] = (double)(float)l[k].w[e];
    y[k] = wf_calloc("test", N, 2 * sizeof *y[k]);
    dx[k] = y[k] + N;
    run(&l[k], T, x, dy, y[k], dx[k]);
  }
  agree(text, T, N, y[0], y[1], limit);
  agree(text, T, N, dx[0], dx[1], 4 * limit);
  const double *a = l[0].dw, *b = l[1].dw;
  for (int i = 0; i < l[0].params.n; b += l[0].params.param[i++]->numel)
    most = fmax(most, sqrt(dot(l[0].params.param[i]->numel, b, b)));
  b = l[1].dw;
  for (int i = 0; i < l[0].params.n; i++) {
    int64_t n = l[0].params.param[i]->numel;
    double size = fmax(sqrt(dot(n, b, b)), 1e-3 * most), error = 0;
    for (int64_t e = 0; e < n; e++) error += (a[e] - b[e]) * (a[e] - b[e]);
    ck_assert_msg(sqrt(error) <= 4 * limit * size, "%s in float32: gradient of %s: error %.2e of %.2e", text,
                  l[0].params.param[i]->name, sqrt(error), size);
    a += n, b += n;
  }
  for (int k = 0; k < 2; k++) drop(&l[k]), wf_free(y[k]);
  wf_free(x), wf_free(dy);
  ck_assert_int_eq(wf_mem_live(), 0);
}

static inline void check_float32(const char *text, void (*set)(layer *l, const layer *other), double limit) {
  check_float32_at(text, 0, 1, set, limit);
}

/* Its init fails, for a width of 8. */
static inline void expect_refused(const char *text) {
  void *options, *self = NULL;
  const wf_layer_type *type = wf_trial_parse(WF_LAYER_MIXER, text, &options);
  wf_params params = {0};
  wf_state_spec state = {0};
  wf_build b = {.params = &params, .state = &state, .prefix = "", .d_model = 8, .context = 50};
  ck_assert_msg(type->init(&b, options, &self) == WF_EINVAL, "%s is taken", text);
  wf_trial_free_options(type, options);
  wf_free(self);
  wf_params_free(&params);
  wf_state_spec_free(&state);
}

#endif
