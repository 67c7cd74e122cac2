/* Identities between members of the families of sequence ops, in float64: what should not matter does not,
 * for outputs, final states and all gradients. */
#include "tests/core/seq_test.h"

enum { T = 70, H = 3, D = 5, LANES = 3, MAX_LEAVES = 8, MAX_OUTPUTS = 3 };

static wf_tensor *drawn(const char *site, int ndim, const int64_t *shape) {
  int64_t n = 1;
  for (int i = 0; i < ndim; i++) n *= shape[i];
  double *x = numbers(n, site);
  wf_tensor *t = tensor(WF_F64, ndim, shape, x);
  free(x);
  return t;
}

static wf_tensor *filled(double x, int ndim, const int64_t *shape) {
  return wf_affine(ctx, wf_zeros(ctx, "test", WF_F64, ndim, shape), 1, x);
}

static void equal(const char *what, const wf_tensor *a, const wf_tensor *b, double tolerance) {
  ok(wf_ctx_check(ctx));
  double *want = values(b);
  near_tensor(what, a, want, tolerance, 0);
  free(want);
}

/* ---- two graphs of the same leaves ---- */

/* Outputs of the leaves x[]; how many. `arg` says in which form. */
typedef int (*graph)(const void *arg, wf_tensor *const *x, wf_tensor **out);

static int run(graph f, const void *arg, int n, wf_tensor *const *leaf, var *x, wf_tensor **out) {
  static const char *const sites[MAX_OUTPUTS] = {"d0", "d1", "d2"};
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  wf_tensor *in[MAX_LEAVES], *cot[MAX_OUTPUTS];
  for (int i = 0; i < n; i++) {
    watch(tape, &x[i], leaf[i]);
    in[i] = leaf[i];
  }
  wf_tape_record(tape);
  int outputs = f(arg, in, out);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  for (int i = 0; i < outputs; i++) cot[i] = drawn(sites[i], out[i]->ndim, out[i]->shape);
  ok(wf_backward(tape, outputs, out, cot));
  wf_tape_free(tape);
  return outputs;
}

/* Both forms give the same outputs, and the same gradients to the leaves of `shared` (bits), which both read.
 */
static void same(const char *what, graph f, const void *a, const void *b, int n, wf_tensor *const *leaf,
                 uint32_t shared, double tolerance) {
  wf_scope s = wf_scope_open(ctx);
  var x[2][MAX_LEAVES];
  wf_tensor *out[2][MAX_OUTPUTS];
  char text[96];
  int outputs = run(f, a, n, leaf, x[0], out[0]);
  ck_assert_int_eq(run(f, b, n, leaf, x[1], out[1]), outputs);
  for (int i = 0; i < outputs; i++) {
    snprintf(text, sizeof text, "%s: output %d", what, i);
    equal(text, out[0][i], out[1][i], tolerance);
  }
  for (int i = 0; i < n; i++) {
    if (!(shared >> i & 1)) continue;
    snprintf(text, sizeof text, "%s: gradient of input %d", what, i);
    ck_assert_msg(x[0][i].leaf.written && x[1][i].leaf.written, "%s is missing", text);
    equal(text, x[0][i].leaf.grad, x[1][i].leaf.grad, 10 * tolerance);
  }
  wf_scope_close(ctx, s);
}

/* One row that begins a document in lane 0, one of a token that goes on in lane 1, one whose end is dropped.
 */
static const wf_row three[] = {
    {.begin = 0, .len = 31, .lane = 0, .flags = WF_ROW_LEAVES},
    {.begin = 31, .len = 1, .lane = 1, .pos = 4, .place = 4, .flags = WF_ROW_TAKES | WF_ROW_LEAVES},
    {.begin = 32, .len = T - 32, .lane = 2}};
static wf_rows *all, *each[3];

static void open_rows(void) {
  ok(wf_rows_create(ctx, 3, three, LANES, &all));
  for (int i = 0; i < 3; i++) {
    wf_row one = three[i];
    one.begin = 0;
    ok(wf_rows_create(ctx, 1, &one, LANES, &each[i]));
  }
}
static void close_rows(void) {
  wf_rows_free(all);
  for (int i = 0; i < 3; i++) wf_rows_free(each[i]);
}
static wf_tensor *part(wf_tensor *x, int row) {
  return x ? wf_slice(ctx, x, 0, three[row].begin, three[row].begin + three[row].len) : NULL;
}

/* ---- the linear recurrence ---- */

typedef enum decay { NONE, SCALAR, CHANNEL, OPEN, OPEN_CHANNEL, OPEN_VIEW } decay; /* OPEN: gates of 1 */
typedef enum write { PLAIN, ONES, WEIGHTED, DELTA, DELTA_0, VALUES_0 } write;      /* ..._0: of nothing */
typedef enum layout { USUAL, SHARED, REPEATED, SEPARATE_ROWS } layout;             /* of q and k; of rows */
typedef struct form {
  decay decay;
  write write;
  layout layout;
} form;

enum { Q, KEY, V, STATE, G, W, LEAVES }; /* G before logsigmoid, W before sigmoid */

static bool gated(const form *f) {
  return f->decay == SCALAR || f->decay == CHANNEL;
}
static bool weighted(const form *f) {
  return f->write == WEIGHTED || f->write == DELTA;
}

static wf_tensor *decays(const form *f, wf_tensor *const *x) {
  wf_tensor *g = wf_logsigmoid(ctx, x[G]);
  switch (f->decay) {
  case SCALAR: return g;
  case CHANNEL: return wf_expand(ctx, wf_reshape(ctx, g, WF_SHAPE(T, H, 1)), WF_SHAPE(T, H, D));
  case OPEN: return wf_zeros(ctx, "test", WF_F64, WF_SHAPE(T, H));
  case OPEN_CHANNEL: return wf_zeros(ctx, "test", WF_F64, WF_SHAPE(T, H, D));
  case OPEN_VIEW: return wf_expand(ctx, wf_zeros(ctx, "test", WF_F64, WF_SHAPE(1, 1)), WF_SHAPE(T, H));
  default: return NULL;
  }
}

static wf_scan_in recurrence(const form *f, wf_tensor *const *x) {
  wf_scan_in in = {.q = x[Q], .k = x[KEY], .v = x[V], .g = decays(f, x)};
  wf_tensor *w = wf_sigmoid(ctx, x[W]);
  if (f->write == ONES) in.w = filled(1, WF_SHAPE(T, H));
  if (f->write == WEIGHTED) in.w = w;
  if (f->write == DELTA) in.beta = w;
  if (f->write == DELTA_0) in.beta = wf_affine(ctx, w, 0, 0);
  if (f->write == VALUES_0) in.v = wf_affine(ctx, in.v, 0, 0);
  if (f->layout == SHARED || f->layout == REPEATED)
    in.q = wf_slice(ctx, in.q, 1, 0, 1), in.k = wf_slice(ctx, in.k, 1, 0, 1);
  if (f->layout == REPEATED)
    in.q = wf_expand(ctx, in.q, WF_SHAPE(T, H, D)), in.k = wf_expand(ctx, in.k, WF_SHAPE(T, H, D));
  return in;
}

static int scanned(const void *arg, wf_tensor *const *x, wf_tensor **out) {
  const form *f = arg;
  wf_scan_options o = {.scale = 0.7};
  wf_scan_in in = recurrence(f, x);
  if (f->layout != SEPARATE_ROWS) {
    out[0] = wf_scan(ctx, &in, x[STATE], all, &o, &out[1]);
    return 2;
  }
  wf_tensor *state = x[STATE], *y[3];
  for (int i = 0; i < 3; i++) {
    wf_scan_in one = {.q = part(in.q, i),
                      .k = part(in.k, i),
                      .v = part(in.v, i),
                      .g = part(in.g, i),
                      .w = part(in.w, i),
                      .beta = part(in.beta, i)};
    y[i] = wf_scan(ctx, &one, state, each[i], &o, &state);
  }
  out[0] = wf_concat(ctx, 3, y);
  out[1] = state;
  return 2;
}

static void draw(wf_tensor *x[LEAVES]) {
  x[Q] = drawn("q", WF_SHAPE(T, H, D));
  x[KEY] = wf_l2norm(ctx, drawn("k", WF_SHAPE(T, H, D)), 0);
  x[V] = drawn("v", WF_SHAPE(T, H, D));
  x[STATE] = drawn("state", WF_SHAPE(LANES, H, D, D));
  x[G] = drawn("g", WF_SHAPE(T, H));
  x[W] = drawn("w", WF_SHAPE(T, H));
}

static const struct {
  const char *what;
  form a, b;
} recurrences[] = {
    {"a gate of 1", {OPEN, PLAIN, USUAL}, {NONE, PLAIN, USUAL}},
    {"gates of 1 of each channel", {OPEN_CHANNEL, PLAIN, USUAL}, {NONE, PLAIN, USUAL}},
    {"one gate of 1 for all tokens", {OPEN_VIEW, WEIGHTED, USUAL}, {NONE, WEIGHTED, USUAL}},
    {"gates of 1 of each channel, weighted", {OPEN_CHANNEL, WEIGHTED, USUAL}, {NONE, WEIGHTED, USUAL}},
    {"weights of 1", {SCALAR, ONES, USUAL}, {SCALAR, PLAIN, USUAL}},
    {"weights of 1 beside channels", {CHANNEL, ONES, USUAL}, {CHANNEL, PLAIN, USUAL}},
    {"GLA of equal channels", {CHANNEL, PLAIN, USUAL}, {SCALAR, PLAIN, USUAL}},
    {"GLA of equal channels, weighted", {CHANNEL, WEIGHTED, USUAL}, {SCALAR, WEIGHTED, USUAL}},
    {"Gated DeltaNet with a = 1", {OPEN, DELTA, USUAL}, {NONE, DELTA, USUAL}},
    {"KDA with a = 1", {OPEN_CHANNEL, DELTA, USUAL}, {NONE, DELTA, USUAL}},
    {"KDA of equal channels", {CHANNEL, DELTA, USUAL}, {SCALAR, DELTA, USUAL}},
    {"beta = 0", {NONE, DELTA_0, USUAL}, {NONE, VALUES_0, USUAL}},
    {"beta = 0 with a gate", {SCALAR, DELTA_0, USUAL}, {SCALAR, VALUES_0, USUAL}},
    {"beta = 0 with gates of channels", {CHANNEL, DELTA_0, USUAL}, {CHANNEL, VALUES_0, USUAL}},
    {"shared q and k", {NONE, PLAIN, SHARED}, {NONE, PLAIN, REPEATED}},
    {"shared q and k, gated", {SCALAR, WEIGHTED, SHARED}, {SCALAR, WEIGHTED, REPEATED}},
    {"shared q and k, channels", {CHANNEL, PLAIN, SHARED}, {CHANNEL, PLAIN, REPEATED}},
    {"shared q and k, delta", {SCALAR, DELTA, SHARED}, {SCALAR, DELTA, REPEATED}},
    {"shared q and k, delta of channels", {CHANNEL, DELTA, SHARED}, {CHANNEL, DELTA, REPEATED}},
    {"rows alone", {NONE, PLAIN, USUAL}, {NONE, PLAIN, SEPARATE_ROWS}},
    {"rows alone, gated", {SCALAR, WEIGHTED, USUAL}, {SCALAR, WEIGHTED, SEPARATE_ROWS}},
    {"rows alone, channels", {CHANNEL, PLAIN, USUAL}, {CHANNEL, PLAIN, SEPARATE_ROWS}},
    {"rows alone, delta", {NONE, DELTA, USUAL}, {NONE, DELTA, SEPARATE_ROWS}},
    {"rows alone, gated delta", {SCALAR, DELTA, USUAL}, {SCALAR, DELTA, SEPARATE_ROWS}},
    {"rows alone, delta of channels", {CHANNEL, DELTA, USUAL}, {CHANNEL, DELTA, SEPARATE_ROWS}},
};
enum { RECURRENCES = sizeof recurrences / sizeof *recurrences };

START_TEST(linear_recurrences) {
  open_cpu();
  open_rows();
  wf_scope s = wf_scope_open(ctx);
  const form *a = &recurrences[_i].a, *b = &recurrences[_i].b;
  wf_tensor *x[LEAVES];
  draw(x);
  uint32_t shared = 1 << Q | 1 << KEY | 1 << V | 1 << STATE;
  if (gated(a) && gated(b)) shared |= 1 << G;
  if (weighted(a) && weighted(b)) shared |= 1 << W;
  same(recurrences[_i].what, scanned, a, b, LEAVES, x, shared, 1e-13);
  wf_scope_close(ctx, s);
  close_rows();
  close_cpu();
}
END_TEST

/* A write of nothing keeps the state to the last bit, also where no token reads or writes. */
START_TEST(writes_of_nothing) {
  open_cpu();
  open_rows();
  wf_scope s = wf_scope_open(ctx);
  static const form forms[] = {{NONE, DELTA_0, USUAL},
                               {NONE, VALUES_0, USUAL},
                               {OPEN, DELTA_0, USUAL},
                               {OPEN_CHANNEL, DELTA_0, USUAL}};
  wf_tensor *x[LEAVES], *out[2];
  draw(x);
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
    scanned(&forms[i], x, out);
    for (int lane = 0; lane < LANES; lane++) {
      wf_tensor *left = wf_slice(ctx, out[1], 0, lane, lane + 1),
                *was = wf_slice(ctx, x[STATE], 0, lane, lane + 1);
      equal("the state", left, lane ? was : wf_affine(ctx, was, 0, 0), 0); /* lane 0 began with zeros */
    }
  }
  wf_scope_close(ctx, s);
  close_rows();
  close_cpu();
}
END_TEST

/* ---- scans of elements ---- */

enum { DIAG_X, DIAG_G, DIAG_STATE, DIAG_LEAVES };

/* Channels alone, or as heads of one key and one value. */
static int elementwise(const void *arg, wf_tensor *const *x, wf_tensor **out) {
  wf_tensor *g = wf_logsigmoid(ctx, x[DIAG_G]);
  if (!*(const bool *)arg) {
    out[0] = wf_scan_diag(ctx, x[DIAG_X], g, x[DIAG_STATE], NULL, all, &out[1]);
    return 2;
  }
  wf_tensor *one = filled(1, WF_SHAPE(T, D, 1)),
            *state = wf_reshape(ctx, x[DIAG_STATE], WF_SHAPE(LANES, D, 1, 1));
  wf_scan_in in = {.q = one, .k = one, .v = wf_reshape(ctx, x[DIAG_X], WF_SHAPE(T, D, 1)), .g = g};
  out[0] = wf_scan(ctx, &in, state, all, &(wf_scan_options){.scale = 1}, &out[1]);
  out[0] = wf_reshape(ctx, out[0], WF_SHAPE(T, D));
  out[1] = wf_reshape(ctx, out[1], WF_SHAPE(LANES, D));
  return 2;
}

enum { SEL_X, SEL_DT, SEL_A, SEL_B, SEL_C, SEL_STATE, SEL_LEAVES };

/* Mamba's scan with one rate for all its channels and states is Mamba-2's of one head. */
static int selective(const void *arg, wf_tensor *const *x, wf_tensor **out) {
  wf_tensor *dt = wf_softplus(ctx, x[SEL_DT]), *a = wf_affine(ctx, wf_exp(ctx, x[SEL_A]), -1, 0);
  if (!*(const bool *)arg) {
    wf_selective_in in = {.x = x[SEL_X],
                          .dt = wf_expand(ctx, dt, WF_SHAPE(T, D)),
                          .A = wf_expand(ctx, a, WF_SHAPE(D, H)),
                          .B = x[SEL_B],
                          .C = x[SEL_C]};
    out[0] = wf_selective_scan(ctx, &in, x[SEL_STATE], all, &out[1]);
    return 2;
  }
  wf_tensor *state = wf_reshape(ctx, wf_transpose(ctx, x[SEL_STATE], 1, 2), WF_SHAPE(LANES, 1, H, D));
  wf_scan_in in = {.q = wf_reshape(ctx, x[SEL_C], WF_SHAPE(T, 1, H)),
                   .k = wf_reshape(ctx, x[SEL_B], WF_SHAPE(T, 1, H)),
                   .v = wf_reshape(ctx, x[SEL_X], WF_SHAPE(T, 1, D)),
                   .g = wf_mul(ctx, dt, a),
                   .w = dt};
  out[0] = wf_scan(ctx, &in, state, all, &(wf_scan_options){.scale = 1}, &out[1]);
  out[0] = wf_reshape(ctx, out[0], WF_SHAPE(T, D));
  out[1] = wf_transpose(ctx, wf_reshape(ctx, out[1], WF_SHAPE(LANES, H, D)), 1, 2);
  return 2;
}

START_TEST(scans_of_elements) {
  open_cpu();
  open_rows();
  wf_scope s = wf_scope_open(ctx);
  static const bool sides[] = {false, true};
  wf_tensor *x[] = {drawn("x", WF_SHAPE(T, D)), drawn("g", WF_SHAPE(T, D)),
                    drawn("state", WF_SHAPE(LANES, D))};
  same("a recurrence of one element", elementwise, &sides[0], &sides[1], DIAG_LEAVES, x, 7, 1e-13);
  wf_tensor *y[] = {drawn("x", WF_SHAPE(T, D)), drawn("dt", WF_SHAPE(T, 1)),
                    drawn("a", WF_SHAPE(1, 1)), drawn("b", WF_SHAPE(T, H)),
                    drawn("c", WF_SHAPE(T, H)), drawn("state", WF_SHAPE(LANES, D, H))};
  same("Mamba with one rate", selective, &sides[0], &sides[1], SEL_LEAVES, y, 63, 1e-13);
  wf_scope_close(ctx, s);
  close_rows();
  close_cpu();
}
END_TEST

/* ---- exponential gates ---- */

enum { EXP_I = LEAVES, EXP_F, EXP_LEAVES };

/* The memory is held times e^{-m}; from which m it starts does not matter where eps is 0, neither for what is
 * read nor for what is left, times e^m. */
static int stabilised(const void *arg, wf_tensor *const *x, wf_tensor **out) {
  const double *start = arg;
  wf_tensor *i = wf_affine(ctx, x[EXP_I], 4, 0), *f = wf_logsigmoid(ctx, x[EXP_F]);
  wf_tensor *drop, *floor, *last,
      *m = wf_scan_max(ctx, i, f, filled(*start, WF_SHAPE(LANES, H)), NULL, all, &drop, &last);
  wf_scan_in in = {.q = x[Q], .k = x[KEY], .v = x[V]};
  wf_exp_gates(ctx, f, i, m, drop, &in.g, &in.w, &floor);
  wf_tensor *o = wf_scan(ctx, &in, wf_affine(ctx, x[STATE], exp(-*start), 0), all,
                         &(wf_scan_options){.scale = 0.4, .ones = true}, &out[1]);
  out[0] = wf_normalise(ctx, o, floor, 0);
  out[1] = wf_mul(ctx, out[1], wf_exp(ctx, wf_reshape(ctx, last, WF_SHAPE(LANES, H, 1, 1))));
  return 2;
}

START_TEST(stabiliser_does_not_matter) {
  open_cpu();
  open_rows();
  wf_scope s = wf_scope_open(ctx);
  static const double starts[] = {0, -3, 2, 25};
  wf_tensor *x[EXP_LEAVES];
  draw(x);
  x[STATE] = drawn("memory", WF_SHAPE(LANES, H, D, D + 1));
  x[EXP_I] = drawn("i", WF_SHAPE(T, H)), x[EXP_F] = drawn("f", WF_SHAPE(T, H));
  uint32_t shared = 1 << Q | 1 << KEY | 1 << V | 1 << STATE | 1 << EXP_I | 1 << EXP_F;
  for (size_t k = 1; k < sizeof starts / sizeof *starts; k++)
    same("mLSTM's m", stabilised, &starts[k], &starts[0], EXP_LEAVES, x, shared, 1e-12);
  wf_scope_close(ctx, s);
  close_rows();
  close_cpu();
}
END_TEST

/* ---- attention ---- */

typedef enum attention { WHOLE, GATE_OPEN, ONE_HEAD, EQUAL_HEADS, WIDE_WINDOW, ROWS, ROW_BY_ROW } attention;

static int attended(const void *arg, wf_tensor *const *x, wf_tensor **out) {
  attention form = *(const attention *)arg;
  wf_attend_options o = {.scale = 0.4, .window = form == WIDE_WINDOW ? T : 0};
  wf_tensor *k = x[KEY], *v = x[V], *none = NULL;
  if (form == GATE_OPEN) none = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(T, H));
  if (form == ONE_HEAD || form == EQUAL_HEADS) k = wf_slice(ctx, k, 1, 0, 1), v = wf_slice(ctx, v, 1, 0, 1);
  if (form == EQUAL_HEADS) k = wf_expand(ctx, k, WF_SHAPE(T, H, D)), v = wf_expand(ctx, v, WF_SHAPE(T, H, D));
  if (form < ROWS) {
    wf_tensor *span = wf_attend_spans(ctx, 1, &(wf_attend_span){.queries = T, .keys = T});
    out[0] = wf_attend(ctx, x[Q], k, v, span, none, none, NULL, &o);
    return 1;
  }
  wf_attend_span spans[3];
  wf_tensor *y[3];
  for (int i = 0; i < 3; i++) {
    int64_t at = three[i].begin, n = three[i].len;
    spans[i] = (wf_attend_span){at, n, at, 0, n};
    wf_tensor *span = wf_attend_spans(ctx, 1, &(wf_attend_span){.queries = n, .keys = n});
    if (form == ROW_BY_ROW)
      y[i] = wf_attend(ctx, part(x[Q], i), part(k, i), part(v, i), span, NULL, NULL, NULL, &o);
  }
  wf_tensor *span = wf_attend_spans(ctx, 3, spans);
  out[0] = form == ROWS ? wf_attend(ctx, x[Q], k, v, span, NULL, NULL, NULL, &o) : wf_concat(ctx, 3, y);
  return 1;
}

START_TEST(attentions) {
  open_cpu();
  wf_scope s = wf_scope_open(ctx);
  static const struct {
    const char *what;
    attention a, b;
  } pairs[] = {{"forget gates of 1", GATE_OPEN, WHOLE},
               {"multi-query attention", ONE_HEAD, EQUAL_HEADS},
               {"a window of all tokens", WIDE_WINDOW, WHOLE},
               {"rows alone", ROWS, ROW_BY_ROW}};
  wf_tensor *x[LEAVES];
  draw(x);
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
    same(pairs[i].what, attended, &pairs[i].a, &pairs[i].b, STATE, x, 1 << Q | 1 << KEY | 1 << V, 1e-13);
  wf_scope_close(ctx, s);
  close_cpu();
}
END_TEST

static Suite *identities_suite(void) {
  Suite *s = suite_create("identities");
  TCase *t = tcase_create("identities");
  tcase_add_loop_test(t, linear_recurrences, 0, RECURRENCES);
  tcase_add_test(t, writes_of_nothing);
  tcase_add_test(t, scans_of_elements);
  tcase_add_test(t, stabiliser_does_not_matter);
  tcase_add_test(t, attentions);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(identities_suite)
