/* recur against the recurrence written out in expressions, row by row and token by token in float64, whose
 * gradient is the tape's: every cell, odd heads and widths, rows that take, leave and begin states, masks, 1
 * to 5 threads; cuts with the state handed over; causality; masks as their papers draw them. */
#include "tests/core/scan_test.h"

#include <omp.h>

typedef struct problem {
  wf_recur_cell cell;
  int64_t rows;
  wf_row row[5];
  int64_t lanes, heads, dim, n; /* n is computed */
  double scale;                 /* of the gates' inputs */
  bool parts, bias, state, init, h_mask, c_mask;
} problem;

enum { X, R = X + 4, B, STATE, INIT, H_MASK, C_MASK, INPUTS };
static const char *const name[] = {"x", "x of gate 1", "x of gate 2", "x of gate 3", "r",
                                   "b", "state",       "init",        "mask of h",   "mask of c"};

static int64_t gates(const problem *p) {
  return p->cell == WF_RECUR_GRU ? 3 : 4;
}
static int64_t states(const problem *p) {
  return p->cell == WF_RECUR_LSTM ? 2 : p->cell == WF_RECUR_GRU ? 1 : 4;
}

typedef struct inputs {
  int ndim[INPUTS];
  int64_t shape[INPUTS][4], count[INPUTS];
  double *x[INPUTS]; /* NULL where absent */
  double *dy, *dleft;
} inputs;

static void add_input(inputs *in, int i, bool given, int ndim, const int64_t *shape, double scale,
                      double mean) {
  if (!given) return;
  in->ndim[i] = ndim;
  in->count[i] = 1;
  for (int d = 0; d < ndim; d++) in->count[i] *= in->shape[i][d] = shape[d];
  in->x[i] = numbers(in->count[i], name[i]);
  for (int64_t k = 0; k < in->count[i]; k++) in->x[i][k] = (double)(float)(mean + scale * in->x[i][k]);
}

static inputs make(const problem *p) {
  inputs in = {.ndim = {0}};
  int64_t n = p->n, H = p->heads, D = p->dim, G = gates(p), S = states(p);
  add_input(&in, X, true, p->parts ? 3 : 4, p->parts ? (int64_t[]){n, H, D} : (int64_t[]){n, G, H, D},
            p->scale, 0);
  for (int g = 1; g < G; g++) add_input(&in, X + g, p->parts, 3, (int64_t[]){n, H, D}, p->scale, 0);
  add_input(&in, R, true, 4, (int64_t[]){H, G, D, D}, 1 / sqrt((double)D), 0);
  add_input(&in, B, p->bias, 3, (int64_t[]){G, H, D}, 0.5, 0.2);
  add_input(&in, STATE, p->state, 4, (int64_t[]){p->lanes, S, H, D}, 0.1, 0.7); /* n of the sLSTM above 0 */
  add_input(&in, INIT, p->init, 3, (int64_t[]){S, H, D}, 0.1, 0.4);
  add_input(&in, H_MASK, p->h_mask, 3, (int64_t[]){p->rows, H, D}, 1, 0);
  add_input(&in, C_MASK, p->c_mask, 3, (int64_t[]){n, H, D}, 1, 0);
  for (int i = H_MASK; i <= C_MASK; i++)
    for (int64_t k = 0; k < in.count[i]; k++) in.x[i][k] = in.x[i][k] > 0 ? 1.25 : 0;
  in.dy = numbers(n * H * D, "dy");
  in.dleft = numbers(p->lanes * S * H * D, "dleft");
  for (int64_t l = 0; l < p->lanes && S == 4; l++) /* m is a constant */
    memset(in.dleft + (l * S + 3) * H * D, 0, (size_t)(H * D) * sizeof(double));
  return in;
}
static void drop(inputs *in) {
  for (int i = 0; i < INPUTS; i++) free(in->x[i]);
  free(in->dy), free(in->dleft);
}

/* ---- the reference ---- */

static wf_tensor *row_of(wf_tensor *x, int64_t i) { /* x[i], without its first dimension */
  return wf_reshape(ctx, wf_slice(ctx, x, 0, i, i + 1), x->ndim - 1, x->shape + 1);
}

/* m and whether it is a first step, off the tape. */
static wf_tensor *stabiliser(wf_tape *tape, wf_tensor *i, wf_tensor *l, wf_tensor *n, bool *first) {
  wf_tape_pause(tape);
  int64_t count = wf_numel(i);
  double *a = values(i), *b = values(l), *c = values(n);
  *first = false;
  for (int64_t k = 0; k < count; k++) {
    *first |= c[k] == 0;
    a[k] = c[k] == 0 ? a[k] : fmax(a[k], b[k]);
  }
  wf_tensor *m = wf_from_host(ctx, "test", WF_F64, i->ndim, i->shape, a);
  free(a), free(b), free(c);
  wf_tape_record(tape);
  return m;
}

static void one_token(wf_tape *tape, const problem *p, wf_tensor *const *x, wf_tensor *const *a,
                      wf_tensor *mask, wf_tensor **s) {
  wf_tensor *raw[4];
  for (int g = 0; g < gates(p); g++) raw[g] = wf_add(ctx, x[g], a[g]);
  if (p->cell == WF_RECUR_LSTM) {
    wf_tensor *g = wf_tanh(ctx, raw[2]);
    if (mask) g = wf_mul(ctx, g, mask);
    s[1] = wf_add(ctx, wf_mul(ctx, wf_sigmoid(ctx, raw[1]), s[1]), wf_mul(ctx, wf_sigmoid(ctx, raw[0]), g));
    s[0] = wf_mul(ctx, wf_sigmoid(ctx, raw[3]), wf_tanh(ctx, s[1]));
  } else if (p->cell == WF_RECUR_GRU) {
    wf_tensor *z = wf_sigmoid(ctx, raw[1]);
    wf_tensor *n = wf_tanh(ctx, wf_add(ctx, x[2], wf_mul(ctx, wf_sigmoid(ctx, raw[0]), a[2])));
    if (mask) n = wf_mul(ctx, n, mask);
    s[0] = wf_add(ctx, wf_mul(ctx, wf_affine(ctx, z, -1, 1), n), wf_mul(ctx, z, s[0]));
  } else {
    bool first;
    wf_tensor *l = wf_add(ctx, s[3], wf_logsigmoid(ctx, raw[1])),
              *m = stabiliser(tape, raw[0], l, s[2], &first);
    wf_tensor *i = wf_exp(ctx, wf_sub(ctx, raw[0], m)), *z = wf_tanh(ctx, raw[2]);
    wf_tensor *c = wf_mul(ctx, i, z), *n = i;
    if (!first) {
      wf_tensor *f = wf_exp(ctx, wf_sub(ctx, l, m));
      c = wf_add(ctx, wf_mul(ctx, f, s[1]), c);
      n = wf_add(ctx, wf_mul(ctx, f, s[2]), n);
    }
    s[0] = wf_div(ctx, wf_mul(ctx, wf_sigmoid(ctx, raw[3]), c), n);
    s[1] = c, s[2] = n, s[3] = m;
  }
}

/* y [n, H, D] and the states [lanes, S, H, D] afterwards. */
static void by_tokens(wf_tape *tape, const problem *p, const var *in, wf_tensor **out) {
  int64_t H = p->heads, D = p->dim, G = gates(p), S = states(p);
  wf_tensor **y = calloc((size_t)p->n + 1, sizeof *y), *lane[8],
            *r = wf_reshape(ctx, in[R].x, WF_SHAPE(H, G * D, D));
  wf_tensor *zero = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(S, H, D));
  for (int64_t l = 0; l < p->lanes; l++) lane[l] = p->state ? row_of(in[STATE].x, l) : zero;
  for (int64_t i = 0; i < p->rows; i++) {
    const wf_row *row = &p->row[i];
    wf_tensor *from = row->flags & WF_ROW_TAKES ? row_of(in[STATE].x, row->lane)
                      : p->init                 ? in[INIT].x
                                                : zero;
    wf_tensor *s[4];
    for (int64_t k = 0; k < S; k++) s[k] = row_of(from, k);
    if (S == 4) s[3] = wf_view_raw(s[3], 2, s[3]->shape, NULL, 0); /* m: no variable */
    for (int64_t t = row->begin; t < row->begin + row->len; t++) {
      wf_tensor *h = p->h_mask ? wf_mul(ctx, s[0], row_of(in[H_MASK].x, i)) : s[0], *x[4], *a[4];
      wf_tensor *product =
          wf_reshape(ctx, wf_matmul(ctx, r, wf_reshape(ctx, h, WF_SHAPE(H, D, 1))), WF_SHAPE(H, G, D));
      for (int g = 0; g < G; g++) {
        a[g] = wf_reshape(ctx, wf_slice(ctx, product, 1, g, g + 1), WF_SHAPE(H, D));
        if (p->bias) a[g] = wf_add(ctx, a[g], row_of(in[B].x, g));
        x[g] = p->parts ? row_of(in[X + g].x, t) : row_of(row_of(in[X].x, t), g);
      }
      one_token(tape, p, x, a, p->c_mask ? row_of(in[C_MASK].x, t) : NULL, s);
      y[t] = wf_reshape(ctx, s[0], WF_SHAPE(1, H, D));
    }
    for (int64_t k = 0; k < S; k++) s[k] = wf_reshape(ctx, s[k], WF_SHAPE(1, H, D));
    if (row->flags & WF_ROW_LEAVES) lane[row->lane] = wf_concat(ctx, (int)S, s);
  }
  for (int64_t l = 0; l < p->lanes; l++) lane[l] = wf_reshape(ctx, lane[l], WF_SHAPE(1, S, H, D));
  out[0] = p->n ? wf_concat(ctx, (int)p->n, y) : wf_zeros(ctx, "test", WF_F64, WF_SHAPE(0, H, D));
  out[1] = wf_concat(ctx, (int)p->lanes, lane);
  free(y);
}

/* ---- comparisons ---- */

typedef struct result {
  double *y, *left, *grad[INPUTS];
} result;

static void forget(result *r) {
  free(r->y), free(r->left);
  for (int i = 0; i < INPUTS; i++) free(r->grad[i]);
}

static wf_tensor *run_op(const problem *p, const var *in, const wf_rows *rows, wf_tensor *state,
                         wf_tensor **left) {
  wf_recur_in a = {.cell = p->cell,
                   .r = in[R].x,
                   .b = in[B].x,
                   .init = in[INIT].x,
                   .h_mask = in[H_MASK].x,
                   .c_mask = in[C_MASK].x};
  for (int g = 0; g < 4; g++) a.x[g] = in[X + g].x;
  return wf_recur(ctx, &a, state, rows, left);
}

static result run(const problem *p, const inputs *e, wf_dtype dtype, bool plain) {
  result r = {.y = NULL};
  wf_scope s = wf_scope_open(ctx);
  wf_rows *rows;
  ok(wf_rows_create(ctx, p->rows, p->row, p->lanes, &rows));
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  var in[INPUTS] = {{.x = NULL}};
  for (int i = 0; i < INPUTS; i++) {
    wf_tensor *x = tensor(dtype, e->ndim[i], e->shape[i], e->x[i]);
    if (i < H_MASK)
      watch(tape, &in[i], x);
    else
      in[i].x = x;
  }
  wf_tensor *out[2], *cot[2] = {tensor(dtype, WF_SHAPE(p->n, p->heads, p->dim), e->dy),
                                tensor(dtype, WF_SHAPE(p->lanes, states(p), p->heads, p->dim), e->dleft)};
  wf_tape_record(tape);
  if (plain)
    by_tokens(tape, p, in, out);
  else
    out[0] = run_op(p, in, rows, in[STATE].x, &out[1]);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  r.y = values(out[0]);
  r.left = values(out[1]);
  ok(wf_backward(tape, 2, out, cot));
  for (int i = 0; i < H_MASK; i++)
    if (in[i].x) r.grad[i] = values(in[i].leaf.grad);
  wf_tape_free(tape);
  wf_rows_free(rows);
  wf_scope_close(ctx, s);
  return r;
}

static void agree(const problem *p, const inputs *e, const result *got, const result *want,
                  double tolerance) {
  near("y", p->n * p->heads * p->dim, got->y, want->y, tolerance, 0.01);
  near("left", p->lanes * states(p) * p->heads * p->dim, got->left, want->left, tolerance, 0.01);
  for (int i = 0; i < H_MASK; i++)
    if (e->x[i]) near(name[i], e->count[i], got->grad[i], want->grad[i], tolerance, 0.01);
}

/* `exact`, `rough`: tolerances in float64 and float32. */
static void check(problem p, double exact, double rough) {
  p.n = lay_rows(p.rows, p.row);
  inputs e = make(&p);
  result want = run(&p, &e, WF_F64, true);
  static const int threads[] = {1, 2, 3, 5};
  for (int k = 0; k < 4; k++) {
    omp_set_num_threads(threads[k]);
    result got = run(&p, &e, WF_F64, false), again = run(&p, &e, WF_F64, false),
           f32 = run(&p, &e, WF_F32, false);
    agree(&p, &e, &got, &want, exact);
    agree(&p, &e, &f32, &want, rough);
    ck_assert_mem_eq(got.y, again.y, (size_t)(p.n * p.heads * p.dim) * sizeof(double));
    ck_assert_mem_eq(got.grad[R], again.grad[R], (size_t)e.count[R] * sizeof(double));
    forget(&got), forget(&again), forget(&f32);
  }
  omp_set_num_threads(2);
  forget(&want);
  drop(&e);
}

/* One row of every length, alone in its batch; the last tests long ones. */
START_TEST(test_lengths) {
  open_cpu();
  static const int64_t lens[] = {1, 2, 7, 8, 63, 64, 65, 100};
  for (size_t i = 0; i < sizeof lens / sizeof *lens; i++)
    for (wf_recur_cell c = WF_RECUR_LSTM; c <= WF_RECUR_SLSTM; c++) {
      problem p = {c,        1,         {{.len = lens[i], .flags = WF_ROW_LEAVES}}, .lanes = 2, .heads = 2,
                   .dim = 5, .scale = 1};
      p.bias = i % 2;
      p.parts = i % 3 == 1;
      check(p, 1e-12, 1e-5);
    }
  close_cpu();
}
END_TEST

START_TEST(test_long) {
  open_cpu();
  for (wf_recur_cell c = WF_RECUR_LSTM; c <= WF_RECUR_SLSTM; c++)
    check((problem){c,
                    2,
                    {{.len = 1000, .flags = 2}, {.len = 213, .lane = 1}},
                    .lanes = 2,
                    .heads = 3,
                    .dim = 4,
                    .scale = 2,
                    .bias = true},
          1e-11, 1e-4);
  close_cpu();
}
END_TEST

/* Widths around those of vectors and panels, heads on their own, and few wide heads that threads must share.
 */
START_TEST(test_widths) {
  open_cpu();
  static const int64_t sizes[][2] = {{1, 1},  {3, 2},  {1, 16}, {5, 17}, {2, 33},
                                     {1, 48}, {1, 65}, {4, 20}, {1, 260}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (wf_recur_cell c = WF_RECUR_LSTM; c <= WF_RECUR_SLSTM; c++) {
      problem p = {c,
                   3,
                   {{.len = 5, .flags = 2}, {.len = 11, .lane = 1, .flags = 2}, {.len = 6, .lane = 2}},
                   .lanes = 3,
                   .heads = sizes[i][0],
                   .dim = sizes[i][1],
                   .scale = 1,
                   .bias = true};
      check(p, 1e-12, 1e-5);
      p.rows = 1; /* one row: threads share its channels where they are many */
      p.parts = true;
      check(p, 1e-12, 1e-5);
    }
  close_cpu();
}
END_TEST

/* Rows that take, leave and begin in every way, lanes that nobody leaves, masks, no rows at all. */
START_TEST(test_rows) {
  open_cpu();
  for (wf_recur_cell c = WF_RECUR_LSTM; c <= WF_RECUR_SLSTM; c++) {
    problem p = {c,
                 5,
                 {{.len = 7, .lane = 2, .flags = 3, .pos = 3},
                  {.len = 1, .lane = 0, .flags = 1, .pos = 9},
                  {.len = 13, .lane = 0},
                  {.len = 40, .lane = 3, .flags = 2},
                  {.len = 3, .lane = 1, .flags = 3, .pos = 1}},
                 .lanes = 6,
                 .heads = 2,
                 .dim = 6,
                 .scale = 1,
                 .bias = true,
                 .state = true};
    check(p, 1e-12, 1e-5);
    p.init = c != WF_RECUR_SLSTM; /* there it would need n > 0 and m that fit */
    p.h_mask = true;
    p.c_mask = c != WF_RECUR_SLSTM;
    p.parts = true;
    check(p, 1e-12, 1e-5);
    p.rows = 0;
    check(p, 1e-12, 1e-5);
  }
  close_cpu();
}
END_TEST

/* Gates that are wide open or shut: finite, and as exact relative to what they move. */
START_TEST(test_extreme) {
  open_cpu();
  for (wf_recur_cell c = WF_RECUR_LSTM; c <= WF_RECUR_SLSTM; c++) {
    problem p = {c,          2,          {{.len = 30, .flags = 2}, {.len = 9, .lane = 1}},
                 .lanes = 2, .heads = 1, .dim = 9,
                 .scale = 30};
    check(p, 1e-11, 1e-4);
  }
  close_cpu();
}
END_TEST

/* A sequence in pieces, the state handed over, equals the whole: forward, final state, every gradient. */
START_TEST(test_cuts) {
  open_cpu();
  enum { T = 100, H = 2, D = 5 };
  static const int64_t pieces[] = {1, 2, 33, 64, 99};
  for (wf_recur_cell c = WF_RECUR_LSTM; c <= WF_RECUR_SLSTM; c++) {
    problem p = {c,          1,           {{.len = T, .flags = 2}}, .lanes = 1, .n = T, .heads = H, .dim = D,
                 .scale = 1, .bias = true};
    inputs e = make(&p);
    result want = run(&p, &e, WF_F64, false);
    for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
      int64_t step = pieces[k], n = 0;
      wf_scope s = wf_scope_open(ctx);
      wf_tape *tape;
      ok(wf_tape_create(ctx, &tape));
      var in[INPUTS] = {{.x = NULL}};
      for (int i = 0; i < STATE; i++) watch(tape, &in[i], tensor(WF_F64, e.ndim[i], e.shape[i], e.x[i]));
      wf_tensor *y[T + 1], *dy[T + 1], *state = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(1, states(&p), H, D));
      wf_rows *rows[T];
      wf_tape_record(tape);
      for (int64_t t = 0; t < T; t += step, n++) {
        int64_t len = T - t < step ? T - t : step;
        wf_row row = {.len = len, .pos = t, .place = t, .flags = (t ? WF_ROW_TAKES : 0) | WF_ROW_LEAVES};
        ok(wf_rows_create(ctx, 1, &row, 1, &rows[n]));
        var part[INPUTS];
        memcpy(part, in, sizeof in);
        part[X].x = wf_slice(ctx, in[X].x, 0, t, t + len);
        y[n] = run_op(&p, part, rows[n], state, &state);
        dy[n] = tensor(WF_F64, WF_SHAPE(len, H, D), e.dy + t * H * D);
      }
      wf_tape_pause(tape);
      ok(wf_ctx_check(ctx));
      y[n] = state;
      dy[n] = tensor(WF_F64, WF_SHAPE(1, states(&p), H, D), e.dleft);
      near_tensor("left", state, want.left, 1e-12, 0);
      ok(wf_backward(tape, (int)n + 1, y, dy));
      for (int i = 0; i < STATE; i++)
        if (in[i].x) near_tensor(name[i], in[i].leaf.grad, want.grad[i], 1e-11, 0);
      for (int64_t i = 0; i < n; i++) wf_rows_free(rows[i]);
      wf_tape_free(tape);
      wf_scope_close(ctx, s);
    }
    forget(&want);
    drop(&e);
  }
  close_cpu();
}
END_TEST

START_TEST(test_causal_bitwise) {
  open_cpu();
  for (wf_recur_cell c = WF_RECUR_LSTM; c <= WF_RECUR_SLSTM; c++) {
    problem p = {c, 2, {{.len = 20}, {.len = 12, .lane = 1}}, .lanes = 2, .heads = 2, .dim = 9, .scale = 1};
    p.n = lay_rows(p.rows, p.row);
    inputs e = make(&p);
    int64_t token = e.count[X] / p.n;
    for (int64_t t = 1; t < 20; t += 3) {
      result a = run(&p, &e, WF_F32, false);
      e.x[X][t * token] -= 7;
      result b = run(&p, &e, WF_F32, false);
      ck_assert_mem_eq(a.y, b.y, (size_t)(t * 18) * sizeof(double));
      ck_assert_mem_ne(a.y + t * 18, b.y + t * 18, 18 * sizeof(double));
      ck_assert_mem_eq(a.y + 20 * 18, b.y + 20 * 18, 12 * 18 * sizeof(double)); /* the other row */
      forget(&a), forget(&b);
    }
    drop(&e);
  }
  close_cpu();
}
END_TEST

/* sLSTM: y does not depend on m, where c and n follow it. */
START_TEST(test_stabiliser) {
  open_cpu();
  problem p = {
      WF_RECUR_SLSTM, 1, {{.len = 15, .flags = 1, .pos = 4}}, .lanes = 1, .heads = 1, .dim = 6, .scale = 2,
      .state = true};
  p.n = lay_rows(p.rows, p.row);
  inputs e = make(&p);
  result a = run(&p, &e, WF_F64, false);
  for (int j = 0; j < 6; j++) {
    double by = 3.5 * (j - 2);
    e.x[STATE][3 * 6 + j] += by;
    e.x[STATE][6 + j] *= exp(-by);
    e.x[STATE][2 * 6 + j] *= exp(-by);
  }
  result b = run(&p, &e, WF_F64, false);
  near("y", 15 * 6, b.y, a.y, 1e-13, 0);
  near("dx", e.count[X], b.grad[X], a.grad[X], 1e-12, 0);
  forget(&a), forget(&b);
  drop(&e);
  close_cpu();
}
END_TEST

/* With gates wide open or shut each cell is something simpler. */
START_TEST(test_identities) {
  open_cpu();
  enum { T = 20, D = 5 };
  const double wide = 800;
  for (wf_recur_cell c = WF_RECUR_LSTM; c <= WF_RECUR_SLSTM; c++) {
    problem p = {c, 1, {{.len = T}}, .lanes = 1, .heads = 1, .dim = D, .scale = 2};
    p.n = lay_rows(p.rows, p.row);
    inputs e = make(&p);
    int64_t G = gates(&p);
    double want[T * D], *x = e.x[X], *r = e.x[R];
    for (int64_t t = 0; t < T; t++)
      for (int64_t j = 0; j < D; j++) {
        double *raw = x + t * G * D + j;
        if (c == WF_RECUR_LSTM) raw[0] = raw[D] = raw[3 * D] = wide;
        if (c == WF_RECUR_GRU) raw[0] = wide, raw[D] = -wide;
        if (c == WF_RECUR_SLSTM) raw[D] = wide;
      }
    if (c != WF_RECUR_GRU) memset(r, 0, (size_t)e.count[R] * sizeof *r);
    for (int64_t t = 0; t < T; t++)
      for (int64_t j = 0; j < D; j++) {
        double sum = 0, weight = 0;
        if (c == WF_RECUR_LSTM) { /* a running sum */
          for (int64_t k = 0; k <= t; k++) sum += tanh(x[(k * G + 2) * D + j]);
          want[t * D + j] = tanh(sum);
        } else if (c == WF_RECUR_GRU) { /* an Elman network */
          for (int64_t k = 0; k < D && t > 0; k++) sum += r[(2 * D + j) * D + k] * want[(t - 1) * D + k];
          want[t * D + j] = tanh(x[(t * G + 2) * D + j] + sum);
        } else { /* a running average under softmax of i */
          for (int64_t k = 0; k <= t; k++) {
            weight += exp(x[k * G * D + j]);
            sum += exp(x[k * G * D + j]) * tanh(x[(k * G + 2) * D + j]);
          }
          want[t * D + j] = sum / weight / (1 + exp(-x[(t * G + 3) * D + j]));
        }
      }
    result got = run(&p, &e, WF_F64, false);
    near("y", T * D, got.y, want, 1e-12, 0);
    forget(&got);
    drop(&e);
  }
  close_cpu();
}
END_TEST

START_TEST(test_errors) {
  open_cpu();
  wf_rows *rows;
  wf_row taking = {.len = 3, .flags = WF_ROW_TAKES};
  ok(wf_rows_create(ctx, 1, &taking, 1, &rows));
  wf_tensor *state = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(1, 2, 2, 4)), *left;
  wf_recur_in in = {.cell = WF_RECUR_LSTM,
                    .x = {wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 4, 2, 4))},
                    .r = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(2, 4, 4, 4))};
  ck_assert(!wf_is_poison(wf_recur(ctx, &in, state, rows, &left)));
  ck_assert(!wf_is_poison(left));
  wf_recur(ctx, &in, NULL, rows, &left); /* a state is missing */
  ck_assert(wf_is_poison(left));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  in.cell = WF_RECUR_GRU; /* three gates */
  wf_recur(ctx, &in, state, rows, NULL);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  in.cell = WF_RECUR_SLSTM; /* four states */
  wf_recur(ctx, &in, state, rows, NULL);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  in.cell = WF_RECUR_LSTM;
  in.b = in.r;
  wf_recur(ctx, &in, state, rows, NULL);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  in.b = NULL;
  in.x[1] = in.x[2] = in.x[3] = in.x[0]; /* one for each gate, but each with all of them */
  wf_recur(ctx, &in, state, rows, NULL);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  wf_rows_free(rows);
  close_cpu();
}
END_TEST

static Suite *recur_suite(void) {
  Suite *s = suite_create("recur");
  TCase *t = tcase_create("recur");
  tcase_add_test(t, test_lengths);
  tcase_add_test(t, test_long);
  tcase_add_test(t, test_widths);
  tcase_add_test(t, test_rows);
  tcase_add_test(t, test_extreme);
  tcase_add_test(t, test_cuts);
  tcase_add_test(t, test_causal_bitwise);
  tcase_add_test(t, test_stabiliser);
  tcase_add_test(t, test_identities);
  tcase_add_test(t, test_errors);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(recur_suite)
