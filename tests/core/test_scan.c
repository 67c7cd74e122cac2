/* scan_scalar against the recurrence run token by token in double, forwards and backwards: every chunk, odd
 * lengths, heads and widths, decays from 0 to -50, rows that take, leave and begin states; any cut with the
 * state handed over. */
#include "tests/core/seq_test.h"

#include <omp.h>

typedef struct problem {
  int64_t rows;
  wf_row row[4];
  int64_t lanes, n, heads, k, v, chunk;
  double low; /* log decays are in [low, 0]; 0: all zero */
  bool state, init;
} problem;

enum { Q, K, V, G, STATE, INIT, INPUTS };
static const char *const name[] = {"dq", "dk", "dv", "dg", "dstate", "dinit"};

typedef struct expected {
  int64_t count[INPUTS];
  double *in[INPUTS], *grad[INPUTS], *o, *dout, *left, *dleft;
  double gate; /* root mean square of the terms of dg before they cancel */
} expected;

static const double scale = 0.4;

static void one_row(const problem *p, expected *x, const wf_row *r, int64_t h) {
  int64_t size = p->k * p->v, at_state = (r->lane * p->heads + h) * size;
  double *s = doubles((r->len + 1) * size), *ds = doubles(size);
  const double *from = r->flags & WF_ROW_TAKES ? (p->state ? x->in[STATE] + at_state : NULL)
                       : p->init               ? x->in[INIT] + h * size
                                               : NULL;
  if (from) memcpy(s, from, (size_t)size * sizeof *s);
  for (int64_t t = 0; t < r->len; t++) {
    int64_t at = (r->begin + t) * p->heads + h;
    for (int64_t d = 0; d < p->k; d++)
      for (int64_t c = 0; c < p->v; c++) {
        double now = exp(x->in[G][at]) * s[t * size + d * p->v + c] +
                     x->in[K][at * p->k + d] * x->in[V][at * p->v + c];
        s[(t + 1) * size + d * p->v + c] = now;
        x->o[at * p->v + c] += scale * x->in[Q][at * p->k + d] * now;
      }
  }
  if (r->flags & WF_ROW_LEAVES) {
    memcpy(x->left + at_state, s + r->len * size, (size_t)size * sizeof *s);
    memcpy(ds, x->dleft + at_state, (size_t)size * sizeof *s);
  }
  for (int64_t t = r->len - 1; t >= 0; t--) {
    int64_t at = (r->begin + t) * p->heads + h;
    double keep = exp(x->in[G][at]), terms = 0;
    for (int64_t d = 0; d < p->k; d++)
      for (int64_t c = 0; c < p->v; c++) {
        double *e = &ds[d * p->v + c], dout = x->dout[at * p->v + c], old = s[t * size + d * p->v + c];
        x->grad[Q][at * p->k + d] += scale * dout * s[(t + 1) * size + d * p->v + c];
        *e += scale * x->in[Q][at * p->k + d] * dout;
        x->grad[K][at * p->k + d] += *e * x->in[V][at * p->v + c];
        x->grad[V][at * p->v + c] += *e * x->in[K][at * p->k + d];
        x->grad[G][at] += *e * keep * old;
        terms += fabs(*e * keep * old);
        *e *= keep;
      }
    x->gate += terms * terms / (double)(p->n * p->heads);
  }
  double *to = r->flags & WF_ROW_TAKES ? (p->state ? x->grad[STATE] + at_state : NULL)
               : p->init               ? x->grad[INIT] + h * size
                                       : NULL;
  for (int64_t i = 0; i < size && to; i++) to[i] += ds[i];
  free(s), free(ds);
}

static expected by_tokens(const problem *p) {
  int64_t nh = p->n * p->heads, size = p->heads * p->k * p->v;
  expected x = {.count = {nh * p->k, nh * p->k, nh * p->v, nh, p->lanes * size, size}};
  for (int i = 0; i < INPUTS; i++) {
    x.in[i] = numbers(x.count[i], name[i]);
    x.grad[i] = doubles(x.count[i]);
  }
  for (int64_t i = 0; i < nh; i++) /* a third are open */
    x.in[G][i] = i % 3 == 2 ? 0 : (double)(float)(-fabs(x.in[G][i]) * fabs(p->low) / 2);
  x.o = doubles(nh * p->v), x.dout = numbers(nh * p->v, "do");
  x.left = doubles(p->lanes * size), x.dleft = numbers(p->lanes * size, "dleft");
  for (int64_t l = 0; l < p->lanes && p->state; l++) {
    bool left = false;
    for (int64_t r = 0; r < p->rows; r++) left |= p->row[r].lane == l && p->row[r].flags & WF_ROW_LEAVES;
    if (left) continue;
    memcpy(x.left + l * size, x.in[STATE] + l * size, (size_t)size * sizeof(double));
    memcpy(x.grad[STATE] + l * size, x.dleft + l * size, (size_t)size * sizeof(double));
  }
  for (int64_t r = 0; r < p->rows; r++)
    for (int64_t h = 0; h < p->heads; h++) one_row(p, &x, &p->row[r], h);
  x.gate = sqrt(x.gate);
  return x;
}

static void drop(expected *x) {
  for (int i = 0; i < INPUTS; i++) free(x->in[i]), free(x->grad[i]);
  free(x->o), free(x->dout), free(x->left), free(x->dleft);
}

static void compare(const problem *p, const expected *e, wf_dtype dtype, double tolerance) {
  wf_scope s = wf_scope_open(ctx);
  wf_rows *rows;
  ok(wf_rows_create(ctx, p->rows, p->row, p->lanes, &rows));
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  var x[INPUTS];
  watch(tape, &x[Q], tensor(dtype, WF_SHAPE(p->n, p->heads, p->k), e->in[Q]));
  watch(tape, &x[K], tensor(dtype, WF_SHAPE(p->n, p->heads, p->k), e->in[K]));
  watch(tape, &x[V], tensor(dtype, WF_SHAPE(p->n, p->heads, p->v), e->in[V]));
  watch(tape, &x[G], tensor(dtype, WF_SHAPE(p->n, p->heads), e->in[G]));
  watch(tape, &x[STATE],
        p->state ? tensor(dtype, WF_SHAPE(p->lanes, p->heads, p->k, p->v), e->in[STATE]) : NULL);
  watch(tape, &x[INIT], p->init ? tensor(dtype, WF_SHAPE(p->heads, p->k, p->v), e->in[INIT]) : NULL);
  wf_tensor *out[2], *cot[2] = {tensor(dtype, WF_SHAPE(p->n, p->heads, p->v), e->dout),
                                tensor(dtype, WF_SHAPE(p->lanes, p->heads, p->k, p->v), e->dleft)};
  wf_tape_record(tape);
  wf_scan_options o = {.scale = scale, .chunk = p->chunk};
  out[0] = wf_scan_scalar(ctx, x[Q].x, x[K].x, x[V].x, x[G].x, x[STATE].x, x[INIT].x, rows, &o, &out[1]);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  ok(wf_backward(tape, 2, out, cot));
  near_tensor("o", out[0], e->o, tolerance, 0);
  near_tensor("left", out[1], e->left, tolerance, 0);
  for (int i = 0; i < INPUTS; i++)
    if (x[i].x) near_tensor(name[i], x[i].leaf.grad, e->grad[i], tolerance, i == G ? e->gate / 10 : 0.01);
  wf_tape_free(tape);
  wf_rows_free(rows);
  wf_scope_close(ctx, s);
}

static void check(problem p) {
  p.n = 0;
  for (int64_t r = 0; r < p.rows; r++) {
    p.row[r].begin = p.n;
    p.row[r].place = p.row[r].pos;
    p.n += p.row[r].len;
  }
  expected e = by_tokens(&p);
  int64_t most = p.n ? p.n : 1, chunks[] = {0, 1, 3, 16, 64, most};
  for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
    p.chunk = chunks[i];
    compare(&p, &e, WF_F64, 1e-12);
    compare(&p, &e, WF_F32, 2e-6);
  }
  drop(&e);
}

START_TEST(test_sizes) {
  open_cpu();
  static const int64_t lens[] = {1, 2, 7, 8, 9, 63, 64, 65, 100, 130};
  for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
    int64_t t = lens[i];
    check((problem){
        1, {{.len = t, .flags = 3}}, .lanes = 1, .heads = 2, .k = 5, .v = 7, .low = -0.3, .state = true});
    check((problem){1, {{.len = t}}, .lanes = 1, .heads = 3, .k = 20, .v = 3, .low = -50, .init = true});
    check((problem){1, {{.len = t, .flags = 2}}, .lanes = 2, .heads = 1, .k = 3, .v = 18, .low = 0});
  }
  close_cpu();
}
END_TEST

START_TEST(test_rows) {
  open_cpu();
  problem p = {4,
               {{.len = 70, .lane = 2, .flags = 3},
                {.len = 1, .lane = 0, .flags = 1},
                {.len = 13, .lane = 0},
                {.len = 40, .lane = 3, .flags = 2}},
               .lanes = 5,
               .heads = 2,
               .k = 6,
               .v = 4,
               .low = -1,
               .state = true,
               .init = true};
  check(p);
  p.rows = 0;
  check(p);
  close_cpu();
}
END_TEST

/* Long rows hold states by segments. */
START_TEST(test_long) {
  open_cpu();
  problem p = {1,
               {{.len = 1000, .flags = 3}},
               .lanes = 1,
               .n = 1000,
               .heads = 2,
               .k = 12,
               .v = 9,
               .low = -0.1,
               .state = true};
  expected e = by_tokens(&p);
  static const int64_t chunks[] = {0, 1, 7, 16, 1000};
  for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
    p.chunk = chunks[i];
    compare(&p, &e, WF_F64, 1e-11);
    compare(&p, &e, WF_F32, 1e-5);
  }
  drop(&e);
  close_cpu();
}
END_TEST

/* A sequence in pieces, the state handed over, equals the whole: forward, final state, every gradient. */
START_TEST(test_cuts) {
  open_cpu();
  enum { T = 150, H = 2, KD = 5, VD = 4 };
  static const int64_t pieces[] = {1, 2, 63, 64, 65, 149};
  problem p = {1, {{.len = T, .flags = 2}}, .lanes = 1, .n = T, .heads = H, .k = KD, .v = VD, .low = -0.2};
  expected e = by_tokens(&p);
  for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
    int64_t step = pieces[k], n = 0;
    wf_scope s = wf_scope_open(ctx);
    wf_tape *tape;
    ok(wf_tape_create(ctx, &tape));
    var q, kk, v, g;
    watch(tape, &q, tensor(WF_F64, WF_SHAPE(T, H, KD), e.in[Q]));
    watch(tape, &kk, tensor(WF_F64, WF_SHAPE(T, H, KD), e.in[K]));
    watch(tape, &v, tensor(WF_F64, WF_SHAPE(T, H, VD), e.in[V]));
    watch(tape, &g, tensor(WF_F64, WF_SHAPE(T, H), e.in[G]));
    wf_tensor *o[T + 1], *dout[T + 1], *state = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(1, H, KD, VD));
    wf_rows *rows[T];
    wf_scan_options opt = {.scale = scale};
    wf_tape_record(tape);
    for (int64_t t = 0; t < T; t += step, n++) {
      int64_t len = T - t < step ? T - t : step;
      wf_row row = {.len = len, .pos = t, .place = t, .flags = (t ? WF_ROW_TAKES : 0) | WF_ROW_LEAVES};
      ok(wf_rows_create(ctx, 1, &row, 1, &rows[n]));
      o[n] = wf_scan_scalar(ctx, wf_slice(ctx, q.x, 0, t, t + len), wf_slice(ctx, kk.x, 0, t, t + len),
                            wf_slice(ctx, v.x, 0, t, t + len), wf_slice(ctx, g.x, 0, t, t + len), state, NULL,
                            rows[n], &opt, &state);
      dout[n] = tensor(WF_F64, WF_SHAPE(len, H, VD), e.dout + t * H * VD);
    }
    wf_tape_pause(tape);
    ok(wf_ctx_check(ctx));
    o[n] = state;
    dout[n] = tensor(WF_F64, WF_SHAPE(1, H, KD, VD), e.dleft);
    ok(wf_backward(tape, (int)n + 1, o, dout));
    near_tensor("left", state, e.left, 1e-12, 0);
    wf_tensor *grad[] = {q.leaf.grad, kk.leaf.grad, v.leaf.grad, g.leaf.grad};
    for (int i = 0; i < 4; i++) near_tensor(name[i], grad[i], e.grad[i], 1e-11, 0);
    for (int64_t i = 0; i < n; i++) wf_rows_free(rows[i]);
    wf_tape_free(tape);
    wf_scope_close(ctx, s);
  }
  drop(&e);
  close_cpu();
}
END_TEST

START_TEST(test_causal_bitwise) {
  open_cpu();
  enum { T = 150, H = 2, D = 6 };
  problem p = {1, {{.len = T}}, .lanes = 1, .n = T, .heads = H, .k = D, .v = D, .low = -0.2};
  expected e = by_tokens(&p);
  wf_rows *rows;
  ok(wf_rows_create(ctx, 1, p.row, 1, &rows));
  wf_scan_options o = {.scale = scale};
  for (int64_t t = 1; t < T; t += 21) {
    wf_tensor *y[2];
    for (int k = 0; k < 2; k++) {
      y[k] = wf_scan_scalar(ctx, tensor(WF_F32, WF_SHAPE(T, H, D), e.in[Q]),
                            tensor(WF_F32, WF_SHAPE(T, H, D), e.in[K]),
                            tensor(WF_F32, WF_SHAPE(T, H, D), e.in[V]),
                            tensor(WF_F32, WF_SHAPE(T, H), e.in[G]), NULL, NULL, rows, &o, NULL);
      for (int i = Q; i <= G; i++) e.in[i][t * (e.count[i] / T)] -= 7;
    }
    ok(wf_ctx_check(ctx));
    ck_assert_int_eq(memcmp(wf_data(y[0]), wf_data(y[1]), (size_t)(t * H * D) * 4), 0);
    ck_assert_int_ne(memcmp(wf_data(y[0]), wf_data(y[1]), T * H * D * 4), 0);
  }
  wf_rows_free(rows);
  drop(&e);
  close_cpu();
}
END_TEST

START_TEST(test_errors) {
  open_cpu();
  wf_rows *rows;
  wf_row taking = {.len = 3, .flags = WF_ROW_TAKES};
  ok(wf_rows_create(ctx, 1, &taking, 1, &rows));
  wf_tensor *q = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 2, 4)),
            *g = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 2));
  wf_tensor *state = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(1, 2, 4, 4)), *left;
  wf_scan_options o = {.scale = 1};
  wf_scan_scalar(ctx, q, q, q, g, NULL, NULL, rows, &o, &left);
  ck_assert(wf_is_poison(left));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  wf_scan_scalar(ctx, q, q, q, q, state, NULL, rows, &o, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_scan_scalar(ctx, q, q, q, g, state, state, rows, &o, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  o.chunk = -1;
  wf_scan_scalar(ctx, q, q, q, g, state, NULL, rows, &o, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  wf_rows_free(rows);
  close_cpu();
}
END_TEST

static Suite *scan_suite(void) {
  Suite *s = suite_create("scan");
  TCase *t = tcase_create("scan");
  tcase_add_test(t, test_sizes);
  tcase_add_test(t, test_rows);
  tcase_add_test(t, test_long);
  tcase_add_test(t, test_cuts);
  tcase_add_test(t, test_causal_bitwise);
  tcase_add_test(t, test_errors);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(scan_suite)
