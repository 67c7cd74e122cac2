/* What the tests of ops over rows with a state share: running one, whole or in pieces, forwards and
 * backwards; rows of every kind; what becomes of lanes that no row leaves. */
#ifndef WF_TESTS_CORE_SCAN_TEST_H
#define WF_TESTS_CORE_SCAN_TEST_H

#include "tests/core/seq_test.h"

/* ---- rows ---- */

/* Four rows for five lanes: taking and leaving lanes in every way. */
#define MIXED_ROWS                                                                                   \
  {                                                                                                  \
    {.len = 70, .lane = 2, .flags = 3}, {.len = 1, .lane = 0, .flags = 1}, {.len = 13, .lane = 0}, { \
      .len = 40, .lane = 3, .flags = 2                                                               \
    }                                                                                                \
  }

/* One after the other; -> the number of tokens. */
static inline int64_t lay_rows(int64_t n, wf_row *row) {
  int64_t tokens = 0;
  for (int64_t r = 0; r < n; r++) {
    row[r].begin = tokens;
    row[r].place = row[r].pos;
    tokens += row[r].len;
  }
  return tokens;
}

static inline bool lane_is_left(int64_t n, const wf_row *row, int64_t lane) {
  bool left = false;
  for (int64_t r = 0; r < n; r++) left |= row[r].lane == lane && row[r].flags & WF_ROW_LEAVES;
  return left;
}

/* Of lanes that no row leaves the state, `size` numbers each, and its gradient pass on. */
static inline void pass_lanes(int64_t n, const wf_row *row, int64_t lanes, int64_t size, const double *state,
                              const double *dleft, double *left, double *dstate) {
  for (int64_t l = 0; l < lanes; l++) {
    if (lane_is_left(n, row, l)) continue;
    memcpy(left + l * size, state + l * size, (size_t)size * sizeof *left);
    memcpy(dstate + l * size, dleft + l * size, (size_t)size * sizeof *dstate);
  }
}

/* ---- running ---- */

enum { SEQ_Y, SEQ_LEFT, SEQ_GRADS, SEQ_INPUTS = 8, SEQ_RESULTS = SEQ_GRADS + SEQ_INPUTS };

/* An op of inputs in[] (NULL: absent) over rows: y and the state it leaves. */
typedef struct seq_op {
  void (*apply)(const void *arg, wf_tensor *const *in, const wf_rows *rows, wf_tensor *out[2]);
  int n, state;    /* inputs; which of them is the state */
  uint32_t tokens; /* bits: those with a line for each token */
} seq_op;

/* y, left and the gradients of the inputs under cotangents of y and left, NULL for absent ones; free() each.
 * `step`: the rows are one document, which comes in pieces of so many tokens; 0: they come at once. */
static inline void seq_run(const seq_op *op, const void *arg, int64_t n_rows, const wf_row *row,
                           int64_t lanes, int64_t step, wf_tensor *const *in, wf_tensor *const cot[2],
                           double **result) {
  int64_t total = step ? row[0].len : 0, pieces = step ? (total + step - 1) / step : 1;
  wf_scope s = wf_scope_open(ctx);
  wf_tape *tape;
  ok(wf_tape_create(ctx, &tape));
  var x[SEQ_INPUTS];
  for (int i = 0; i < op->n; i++) watch(tape, &x[i], in[i]);
  wf_rows **rows = calloc((size_t)pieces, sizeof *rows);
  wf_tensor **y = calloc((size_t)pieces, sizeof *y), *state = in[op->state], *out[2] = {NULL};
  wf_tape_record(tape);
  for (int64_t k = 0; k < pieces; k++) {
    int64_t t = k * step, end = total - t < step ? total : t + step;
    wf_row piece = {.len = end - t, .pos = t, .place = t, .flags = (t ? WF_ROW_TAKES : 0) | WF_ROW_LEAVES};
    ok(wf_rows_create(ctx, step ? 1 : n_rows, step ? &piece : row, lanes, &rows[k]));
    wf_tensor *part[SEQ_INPUTS];
    for (int i = 0; i < op->n; i++)
      part[i] = step && in[i] && op->tokens >> i & 1 ? wf_slice(ctx, in[i], 0, t, end) : in[i];
    part[op->state] = state;
    op->apply(arg, part, rows[k], out);
    y[k] = out[SEQ_Y], state = out[SEQ_LEFT];
  }
  if (step) out[SEQ_Y] = wf_concat(ctx, (int)pieces, y);
  wf_tape_pause(tape);
  ok(wf_ctx_check(ctx));
  ok(wf_backward(tape, 2, out, cot));
  for (int i = 0; i < SEQ_GRADS + op->n; i++)
    result[i] = i < SEQ_GRADS       ? values(out[i])
                : in[i - SEQ_GRADS] ? values(x[i - SEQ_GRADS].leaf.grad)
                                    : NULL;
  wf_tape_free(tape);
  for (int64_t k = 0; k < pieces; k++) wf_rows_free(rows[k]);
  free(rows), free(y);
  wf_scope_close(ctx, s);
}

static inline void free_results(const seq_op *op, double **result) {
  for (int i = 0; i < SEQ_GRADS + op->n; i++) free(result[i]);
}

/* Two y, of inputs that differ at token t, are the same to the last bit before it and differ after. */
static inline void differ_from(int64_t t, const wf_tensor *a, const wf_tensor *b) {
  ok(wf_ctx_check(ctx));
  size_t line = (size_t)(wf_numel(a) / a->shape[0]) * wf_dtype_size(a->dtype);
  ck_assert_int_eq(memcmp(wf_data(a), wf_data(b), (size_t)t * line), 0);
  ck_assert_int_ne(memcmp(wf_data(a), wf_data(b), (size_t)a->shape[0] * line), 0);
}

#endif
