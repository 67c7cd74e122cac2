/* conv and halo against loops over tokens in double: forward, left states and every gradient, rows shorter
 * and longer than the window, lanes taken, left and untouched; any cut with the state handed over. */
#include "tests/core/scan_test.h"

enum { LANES = 4 };

typedef struct problem {
  int64_t rows;
  wf_row row[4];
  int64_t n, d, w;
  bool silu, bias, state;
} problem;

/* Element e of a row's sequence: the w-1 before it, then its own; returns its place in x or in the state, as
 * one index of [state | x], or -1 for a zero. */
static int64_t place(const problem *p, const wf_row *r, int64_t e, int64_t c) {
  if (e >= p->w - 1) return LANES * (p->w - 1) * p->d + (r->begin + e - (p->w - 1)) * p->d + c;
  if (!p->state || !(r->flags & WF_ROW_TAKES)) return -1;
  return (r->lane * (p->w - 1) + e) * p->d + c;
}

typedef struct expected {
  double *in, *din; /* [state | x] */
  double *weight, *bias, *dweight, *dbias, *y, *dy, *left, *dleft;
  int64_t size, state;
} expected;

static expected conv_by_loops(const problem *p) {
  expected x = {.state = LANES * (p->w - 1) * p->d};
  x.size = x.state + p->n * p->d;
  x.in = numbers(x.size, "in"), x.din = doubles(x.size);
  x.weight = numbers(p->d * p->w, "weight"), x.dweight = doubles(p->d * p->w);
  x.bias = numbers(p->d, "bias"), x.dbias = doubles(p->d);
  x.y = doubles(p->n * p->d), x.dy = numbers(p->n * p->d, "dy");
  x.left = doubles(x.state), x.dleft = numbers(x.state, "dleft");
  bool left[LANES] = {false};
  for (int64_t k = 0; k < p->rows; k++) {
    const wf_row *r = &p->row[k];
    for (int64_t c = 0; c < p->d; c++) {
      for (int64_t t = 0; t < r->len; t++) {
        double pre = p->bias ? x.bias[c] : 0, dpre = x.dy[(r->begin + t) * p->d + c];
        for (int64_t i = 0; i < p->w; i++) {
          int64_t at = place(p, r, t + i, c);
          if (at >= 0) pre += x.weight[c * p->w + i] * x.in[at];
        }
        double s = 1 / (1 + exp(-pre));
        x.y[(r->begin + t) * p->d + c] = p->silu ? pre * s : pre;
        if (p->silu) dpre *= s + pre * s * (1 - s);
        x.dbias[c] += dpre;
        for (int64_t i = 0; i < p->w; i++) {
          int64_t at = place(p, r, t + i, c);
          if (at < 0) continue;
          x.dweight[c * p->w + i] += dpre * x.in[at];
          x.din[at] += dpre * x.weight[c * p->w + i];
        }
      }
      for (int64_t i = 0; i < p->w - 1 && r->flags & WF_ROW_LEAVES; i++) {
        int64_t from = place(p, r, r->len + i, c), to = (r->lane * (p->w - 1) + i) * p->d + c;
        x.left[to] = from < 0 ? 0 : x.in[from];
        if (from >= 0) x.din[from] += x.dleft[to];
      }
    }
    if (r->flags & WF_ROW_LEAVES) left[r->lane] = true;
  }
  for (int64_t l = 0; l < LANES; l++)
    for (int64_t i = l * (p->w - 1) * p->d; i < (l + 1) * (p->w - 1) * p->d && !left[l] && p->state; i++) {
      x.left[i] = x.in[i];
      x.din[i] += x.dleft[i];
    }
  return x;
}

static void drop(expected *x) {
  free(x->in), free(x->din), free(x->weight), free(x->bias), free(x->dweight), free(x->dbias);
  free(x->y), free(x->dy), free(x->left), free(x->dleft);
}

static void check_conv(const problem *p, wf_dtype dtype, double tolerance) {
  expected e = conv_by_loops(p);
  wf_scope s = wf_scope_open(ctx);
  wf_rows *rows;
  ok(wf_rows_create(ctx, p->rows, p->row, LANES, &rows));
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  var x, w, b, st;
  watch(tape, &x, tensor(dtype, WF_SHAPE(p->n, p->d), e.in + e.state));
  watch(tape, &w, tensor(dtype, WF_SHAPE(p->d, 1, p->w), e.weight));
  watch(tape, &b, p->bias ? tensor(dtype, WF_SHAPE(p->d), e.bias) : NULL);
  watch(tape, &st, p->state ? tensor(dtype, WF_SHAPE(LANES, p->w - 1, p->d), e.in) : NULL);
  wf_tensor *out[2], *cot[2] = {tensor(dtype, WF_SHAPE(p->n, p->d), e.dy),
                                tensor(dtype, WF_SHAPE(LANES, p->w - 1, p->d), e.dleft)};
  wf_tape_record(tape);
  out[0] = wf_conv(ctx, x.x, w.x, b.x, st.x, rows, p->silu, &out[1]);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  ok(wf_backward(tape, 2, out, cot));
  near_tensor("y", out[0], e.y, tolerance, 0);
  near_tensor("left", out[1], e.left, tolerance, 0);
  near_tensor("dx", x.leaf.grad, e.din + e.state, tolerance, 0);
  near_tensor("dweight", w.leaf.grad, e.dweight, tolerance, 0);
  if (b.x) near_tensor("dbias", b.leaf.grad, e.dbias, tolerance, 0.3);
  if (st.x) near_tensor("dstate", st.leaf.grad, e.din, tolerance, 0);
  wf_tape_free(tape);
  wf_rows_free(rows);
  wf_scope_close(ctx, s);
  drop(&e);
}

static void conv(problem p) {
  p.n = lay_rows(p.rows, p.row);
  check_conv(&p, WF_F64, 1e-12);
  check_conv(&p, WF_F32, 2e-6);
}

START_TEST(test_conv) {
  open_cpu();
  static const int64_t lens[] = {1, 2, 3, 63, 64, 65, 66, 67, 68, 100, 128, 300};
  for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
    int64_t t = lens[i];
    conv((problem){2,
                   {{.len = t, .lane = 1, .flags = 3}, {.len = 2, .lane = 3, .flags = 2}},
                   0,
                   70,
                   4,
                   true,
                   true,
                   true});
    conv((problem){1, {{.len = t, .lane = 2, .flags = 2}}, 0, 5, 3, true, false, false});
    conv((problem){
        3,
        {{.len = t, .lane = 1}, {.len = 1, .lane = 0, .flags = 1}, {.len = 5, .lane = 3, .flags = 3}},
        0,
        17,
        7,
        false,
        true,
        true});
    conv((problem){1, {{.len = t, .lane = 0, .flags = 3}}, 0, 3, 1, true, true, true});
  }
  conv((problem){1, {{.len = 200, .lane = 0, .flags = 3}}, 0, 3, 90, true, true, true});
  conv((problem){0, {{.len = 0}}, 0, 3, 4, true, true, true});
  close_cpu();
}
END_TEST

static void apply(const void *arg, wf_tensor *const *in, const wf_rows *rows, wf_tensor *out[2]) {
  (void)arg;
  out[0] = wf_conv(ctx, in[0], in[1], NULL, in[2], rows, true, &out[1]);
}

/* A sequence in pieces, the state handed over, equals the whole: forward, final state, every gradient. */
START_TEST(test_conv_cuts) {
  open_cpu();
  enum { T = 40, D = 6, W = 4 };
  static const int64_t pieces[] = {T, 1, 2, 3, 5, 13, 39};
  static const int64_t counts[] = {T * D, (W - 1) * D, T * D, D * W};
  static const seq_op op = {apply, 3, 2, 1};
  double *x = numbers(T * D, "x"), *w = numbers(D * W, "w"), *dy = numbers(T * D, "dy"),
         *dleft = numbers((W - 1) * D, "dleft"), *whole[SEQ_RESULTS], *part[SEQ_RESULTS];
  wf_row row = {.len = T};
  for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
    wf_scope s = wf_scope_open(ctx);
    const int64_t state[] = {1, W - 1, D};
    wf_tensor *in[] = {tensor(WF_F64, WF_SHAPE(T, D), x), tensor(WF_F64, WF_SHAPE(D, 1, W), w),
                       wf_zeros(ctx, "test", WF_F64, 3, state)};
    wf_tensor *cot[] = {tensor(WF_F64, WF_SHAPE(T, D), dy), tensor(WF_F64, 3, state, dleft)};
    seq_run(&op, NULL, 1, &row, 1, pieces[k], in, cot, k ? part : whole);
    for (int i = 0; i < 4 && k; i++) near("piecewise", counts[i], part[i], whole[i], 1e-12, 0);
    if (k) free_results(&op, part);
    wf_scope_close(ctx, s);
  }
  free_results(&op, whole);
  free(x), free(w), free(dy), free(dleft);
  close_cpu();
}
END_TEST

START_TEST(test_halo) {
  open_cpu();
  enum { D = 6, W = 4 };
  problem p = {3,
               {{.len = 2, .lane = 1, .flags = 3},
                {.begin = 2, .len = 5, .lane = 3, .flags = 2},
                {.begin = 7, .len = 3, .lane = 0, .flags = 1}},
               10,
               D,
               W,
               false,
               false,
               true};
  expected e = conv_by_loops(&p); /* for its numbers and the left state */
  memset(e.din, 0, (size_t)e.size * sizeof *e.din);
  int64_t total = 10 + 3 * (W - 1);
  double *y = doubles(total * D), *dy = numbers(total * D, "dhalo");
  for (int64_t k = 0; k < 3; k++)
    for (int64_t i = 0; i < W - 1 + p.row[k].len; i++)
      for (int64_t c = 0; c < D; c++) {
        int64_t from = place(&p, &p.row[k], i, c), to = (p.row[k].begin + k * (W - 1) + i) * D + c;
        y[to] = from < 0 ? 0 : e.in[from];
        if (from >= 0) e.din[from] += dy[to];
        bool leaves = p.row[k].flags & WF_ROW_LEAVES && i >= p.row[k].len && from >= 0;
        if (leaves) e.din[from] += e.dleft[(p.row[k].lane * (W - 1) + i - p.row[k].len) * D + c];
      }
  for (int64_t l = 0; l < LANES; l++) /* lanes 1 and 3 are left */
    for (int64_t i = l * (W - 1) * D; i < (l + 1) * (W - 1) * D && l % 2 == 0; i++) e.din[i] += e.dleft[i];
  wf_rows *rows;
  ok(wf_rows_create(ctx, 3, p.row, LANES, &rows));
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  var x, s;
  watch(tape, &x, tensor(WF_F64, WF_SHAPE(10, 2, 3), e.in + e.state));
  watch(tape, &s, tensor(WF_F64, WF_SHAPE(LANES, W - 1, 2, 3), e.in));
  wf_tensor *out[2], *cot[2] = {tensor(WF_F64, WF_SHAPE(total, 2, 3), dy),
                                tensor(WF_F64, WF_SHAPE(LANES, W - 1, 2, 3), e.dleft)};
  wf_tape_record(tape);
  out[0] = wf_halo(ctx, x.x, W, s.x, rows, &out[1]);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  ok(wf_backward(tape, 2, out, cot));
  near_tensor("halo", out[0], y, 0, 0);
  near_tensor("left", out[1], e.left, 0, 0);
  near_tensor("dx", x.leaf.grad, e.din + e.state, 1e-14, 0);
  near_tensor("dstate", s.leaf.grad, e.din, 1e-14, 0);
  wf_tape_free(tape);
  wf_rows_free(rows);
  free(y), free(dy);
  drop(&e);
  close_cpu();
}
END_TEST

START_TEST(test_errors) {
  open_cpu();
  wf_rows *rows;
  wf_row taking = {.len = 3, .flags = WF_ROW_TAKES};
  ok(wf_rows_create(ctx, 1, &taking, 1, &rows));
  wf_tensor *x = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 2)),
            *w = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(2, 1, 4));
  wf_tensor *state = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(1, 3, 2)), *left;
  wf_conv(ctx, x, w, NULL, NULL, rows, true, NULL);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  wf_halo(ctx, x, 4, NULL, rows, &left);
  ck_assert(wf_is_poison(left));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  wf_conv(ctx, x, wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 1, 4)), NULL, state, rows, true, NULL);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_conv(ctx, x, w, NULL, wf_zeros(ctx, "test", WF_F32, WF_SHAPE(1, 2, 2)), rows, true, NULL);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_conv(ctx, wf_zeros(ctx, "test", WF_F32, WF_SHAPE(4, 2)), w, NULL, state, rows, true, NULL);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL); /* a token of no row */
  wf_halo(ctx, x, 3, state, rows, NULL);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_rows_free(rows);
  close_cpu();
}
END_TEST

static Suite *shift_suite(void) {
  Suite *s = suite_create("shift");
  TCase *t = tcase_create("shift");
  tcase_add_test(t, test_conv);
  tcase_add_test(t, test_conv_cuts);
  tcase_add_test(t, test_halo);
  tcase_add_test(t, test_errors);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(shift_suite)
