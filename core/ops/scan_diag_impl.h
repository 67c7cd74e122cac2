/* What the elementwise scans share: tasks, states, shapes, samples.
 *
 *   scan_diag  h_t = e^{g_t} h_{t-1} + x_t
 *   scan_sum   c_t = c_{t-1} + x_t
 *   scan_max   m_t = max(g_t + m_{t-1}, x_t)
 *
 * A task is a row and a block of channels, walked in the order of memory: what was before token t is the line
 * of the output written last.
 */
#ifndef WF_CORE_OPS_SCAN_DIAG_IMPL_H
#define WF_CORE_OPS_SCAN_DIAG_IMPL_H

#include "core/ops/attr_impl.h"
#include "core/ops/ops_impl.h"
#include "core/ops/rows_impl.h"

/* Inputs of the scans; a gradient has the last three as well. */
enum { X, G, STATE, INIT, TABLE, FORWARD_INS, H = FORWARD_INS, DH, DSTATE, GRAD_INS };
/* Inputs that have a gradient: X .. INIT. */
enum { WANTS = TABLE };

typedef struct diag_attr {
  int64_t lanes;
  int32_t leaves; /* is there an output state; WF_STATE_ALONE: nothing else */
  int32_t pair;   /* of scan_sum: sums as pairs */
  int32_t want;   /* of a gradient: bits of the inputs */
} diag_attr;

#ifdef WF_KERNEL_PASS
#  include <string.h>
#  include "core/tile_impl.h"

enum { SPARE = 3 };

typedef struct diag_grad { /* NULL where not wanted */
  real *p;
  int64_t s; /* token stride */
  bool add;
} diag_grad;

typedef struct diag_args {
  const real *x, *g, *state, *init, *h, *dh, *dleft;
  int64_t xs, gs, dhs; /* token strides */
  const wf_row *row;
  int64_t rows, n, lanes, d;
  int64_t size; /* of a lane's state and of a token of the output: d, 2 d for pairs */
  int64_t wide; /* channels that share a decay */
  real *out[2], *left;
  real *spare; /* [rows, SPARE, d]: lines in place of outputs that are not there */
  const real *end;
  diag_grad grad[WANTS];
  real *first; /* [rows, d] gradients of what the rows started from */
} diag_args;

/* All but x, of which a gradient needs the shape alone. */
static wf_status diag_read(const wf_call *call, diag_args *a) {
  const diag_attr *at = call->attr;
  const wf_tensor *x = call->in[X], *g = call->in[G], *state = call->in[STATE], *init = call->in[INIT];
  *a = (diag_args){.lanes = at->lanes};
  a->rows = call->in[TABLE]->shape[0], a->n = x->shape[0], a->d = x->shape[1];
  a->size = at->pair ? 2 * a->d : a->d, a->wide = 1;
  if (g) a->g = wf_data(g), a->gs = g->stride[0], a->wide = a->d / g->shape[1];
  if (state) a->state = wf_data(state);
  if (init) a->init = wf_data(init);
  return wf_rows_read(call->op->name, call->in[TABLE], a->n, a->lanes, &a->row);
}

/* x, and the forward's outputs: `outs` of them, then perhaps the state, or it alone. */
static inline void diag_outputs(const wf_call *call, int outs, diag_args *a) {
  int leaves = ((const diag_attr *)call->attr)->leaves;
  a->x = wf_data(call->in[X]), a->xs = call->in[X]->stride[0];
  if (leaves == WF_STATE_ALONE) outs = 0;
  for (int i = 0; i < outs; i++) a->out[i] = wf_data(call->out[i]);
  if (!leaves) return;
  a->left = wf_data(call->out[outs]);
  wf_keep_lanes(a->row, a->rows, a->lanes, a->size, a->state, a->left, false);
}

/* What a row starts from, NULL for nothing. */
static inline const real *diag_start(const diag_args *a, const wf_row *r) {
  if (!wf_row_takes(r)) return a->init;
  return a->state ? a->state + r->lane * a->size : NULL;
}

/* Token t's line of output i; without outputs a spare one, not that of the token before. */
static inline real *diag_line(const diag_args *a, const wf_row *r, int i, int64_t t) {
  if (a->out[0]) return a->out[i] + t * a->d;
  return a->spare + ((r - a->row) * SPARE + (i ? 2 : t & 1)) * a->d;
}

/* Runs `task` over all rows and channels c0 .. c1-1: blocks of whole cache lines and whole decays, as many as
 * keep the threads busy. */
static inline void diag_run(const diag_args *a, int64_t cost,
                            void (*task)(const diag_args *a, const wf_row *r, int64_t c0, int64_t c1)) {
  if (!a->rows || !a->d) return;
  int64_t unit = a->wide >= 16 ? a->wide : a->wide * (16 / a->wide), units = (a->d + unit - 1) / unit;
  int threads = wf_threads_for(a->rows * units, a->n / a->rows * unit * cost);
  int64_t blocks = threads == 1 ? 1 : (2 * threads + a->rows - 1) / a->rows;
  if (blocks > units) blocks = units;
  int64_t block = (units + blocks - 1) / blocks * unit;
  blocks = (a->d + block - 1) / block;
  WF_PRAGMA(omp parallel for num_threads(threads) schedule(dynamic, 1))
  for (int64_t i = 0; i < a->rows * blocks; i++) {
    int64_t c0 = i % blocks * block, c1 = a->d - c0 < block ? a->d : c0 + block;
    task(a, &a->row[i / blocks], c0, c1);
  }
}

/* The same with spare lines where the state is the only output; rows that leave none are passed over. */
static inline wf_status diag_run_forward(const wf_call *call, diag_args *a, int64_t cost,
                                         void (*task)(const diag_args *a, const wf_row *r, int64_t c0,
                                                      int64_t c1)) {
  wf_device *dev = wf_ctx_device(call->ctx);
  size_t space = a->out[0] ? 0 : (size_t)(a->rows * SPARE * a->d) * sizeof(real);
  void *work = NULL;
  if (space) WF_TRY(wf_device_alloc(dev, "scan", space, &work));
  a->spare = work;
  diag_run(a, cost, task);
  if (space) wf_device_free(dev, "scan", work, space);
  return WF_OK;
}
static inline bool diag_idle(const diag_args *a, const wf_row *r) {
  return !a->out[0] && !wf_row_leaves(r);
}

/* A gradient: reads its further inputs, runs `task` with room in a->first, and sends that to states: the
 * lane's for rows that take, else the initial one, summed in the order of rows. */
static inline wf_status diag_run_grad(const wf_call *call, diag_args *a, int64_t cost,
                                      void (*task)(const diag_args *a, const wf_row *r, int64_t c0,
                                                   int64_t c1)) {
  const diag_attr *at = call->attr;
  const wf_tensor *h = call->in[H], *dh = call->in[DH], *dleft = call->in[DSTATE];
  if (h) a->h = wf_data(h);
  if (dh) a->dh = wf_data(dh), a->dhs = dh->stride[0];
  if (dleft) a->dleft = wf_data(dleft);
  for (int i = 0, n = 0; i < WANTS; i++)
    if (at->want >> i & 1) {
      a->grad[i] = (diag_grad){wf_data(call->out[n]), call->out[n]->stride[0], call->add >> n & 1};
      n++;
    }
  const diag_grad *state = &a->grad[STATE], *init = &a->grad[INIT];
  if (state->p) wf_keep_lanes(a->row, a->rows, a->lanes, a->size, a->dleft, state->p, state->add);
  wf_device *dev = wf_ctx_device(call->ctx);
  size_t space = (size_t)(a->rows * a->d) * sizeof(real);
  void *work;
  WF_TRY(wf_device_alloc(dev, "scan", space, &work));
  a->first = work;
  diag_run(a, cost, task);
  if (init->p && !init->add) memset(init->p, 0, (size_t)a->d * sizeof *init->p);
  for (int64_t r = 0; r < a->rows; r++) {
    real *to = wf_row_takes(&a->row[r]) ? (state->p ? state->p + a->row[r].lane * a->size : NULL) : init->p;
    for (int64_t i = 0; i < (to == init->p ? a->d : a->size) && to; i++)
      to[i] += a->first[r * a->d + i % a->d];
  }
  wf_device_free(dev, "scan", work, space);
  return WF_OK;
}

#else

#  include "core/ops/carry_impl.h"

/* Checks; the shapes of the output and of the state. */
static wf_status diag_check(const wf_call *call, wf_desc *out, wf_desc *state) {
  const diag_attr *a = call->attr;
  const wf_tensor *x = call->in[X], *g = call->in[G], *s = call->in[STATE], *i = call->in[INIT],
                  *table = call->in[TABLE];
  const char *op = call->op->name;
  char t[2][96];
  WF_TRY(wf_want_real(call, 1 << X | 1 << G | 1 << STATE | 1 << INIT));
  WF_SHAPE_CHECK(x->ndim == 2, "%s: x is %s; [tokens, channels] expected", op, wf_shape_text(x, t[0]));
  int64_t n = x->shape[0], d = x->shape[1];
  WF_SHAPE_CHECK(!g || (g->ndim == 2 && g->shape[0] == n && g->shape[1] > 0 && d % g->shape[1] == 0),
                 "%s: log decays %s for x %s", op, wf_shape_text(g, t[0]), wf_shape_text(x, t[1]));
  if (a->pair) {
    wf_desc_set(out, x->dtype, 3, (int64_t[]){n, 2, d});
    wf_desc_set(state, x->dtype, 3, (int64_t[]){a->lanes, 2, d});
  } else {
    wf_desc_like(out, x);
    wf_desc_set(state, x->dtype, 2, (int64_t[]){a->lanes, d});
  }
  bool fits = !s || s->ndim == state->ndim;
  for (int k = 0; s && fits && k < s->ndim; k++) fits = s->shape[k] == state->shape[k];
  WF_SHAPE_CHECK(fits, "%s: state %s for x %s and %lld lanes", op, wf_shape_text(s, t[0]),
                 wf_shape_text(x, t[1]), (long long)a->lanes);
  WF_SHAPE_CHECK(!i || (i->ndim == 1 && i->shape[0] == d), "%s: initial state %s for x %s", op,
                 wf_shape_text(i, t[0]), wf_shape_text(x, t[1]));
  WF_SHAPE_CHECK(table->ndim == 2 && table->shape[1] == WF_ROW_COLS && table->dtype == WF_I64,
                 "%s: the table of rows is %s", op, wf_shape_text(table, t[0]));
  return WF_OK;
}

/* Column slices of one tensor: x [n, d] and, where `wide`, g [n, d / wide]; then the rest. `kind`: 0 lanes
 * taken and left, 1 fresh rows, 2 without init, 3 no rows. */
static inline void diag_sample(wf_sample *s, int kind, bool pair, int64_t d, int64_t wide, double low) {
  bool fresh = kind == 1, none = kind == 3;
  int64_t n = none ? 0 : 8, width = d + (wide ? d / wide : 0), stride[] = {width, 1};
  wf_tensor *joined = wf_sample_range(s, WF_SHAPE(n, width), low, 0);
  s->in[X] = wf_view_raw(joined, 2, (int64_t[]){n, d}, stride, 0);
  if (wide) s->in[G] = wf_view_raw(joined, 2, (int64_t[]){n, d / wide}, stride, d);
  if (!fresh) s->in[STATE] = wf_sample_real(s, pair ? 3 : 2, pair ? (int64_t[]){3, 2, d} : (int64_t[]){3, d});
  if (kind != 2) s->in[INIT] = wf_sample_real(s, WF_SHAPE(d));
  s->in[TABLE] = wf_sample_rows(s, fresh, none);
  s->n_in = FORWARD_INS;
  *(diag_attr *)(void *)s->attr = (diag_attr){.lanes = 3, .leaves = !fresh, .pair = pair};
}
/* What the gradient has besides. */
static inline void diag_sample_grad(wf_sample *s) {
  diag_attr *a = (diag_attr *)(void *)s->attr;
  int64_t n = s->in[X]->shape[0], d = s->in[X]->shape[1];
  for (int i = 0; i < WANTS; i++) a->want |= s->in[i] ? 1 << i : 0;
  if (s->in[G]) s->in[H] = wf_sample_real(s, WF_SHAPE(n, d));
  s->in[DH] = wf_sample_real(s, a->pair ? 3 : 2, a->pair ? (int64_t[]){n, 2, d} : (int64_t[]){n, d});
  if (a->leaves) s->in[DSTATE] = wf_sample_real(s, s->in[STATE]->ndim, s->in[STATE]->shape);
  s->n_in = GRAD_INS;
}

/* ---- the state across cuts ---- */

static inline wf_status diag_advance(const wf_call *call) {
  diag_attr a = *(const diag_attr *)call->attr;
  a.leaves = WF_STATE_ALONE;
  return wf_op_run(call->ctx, call->op, call->n_in, call->in, &a, 1, call->out, 0);
}
static inline wf_status diag_fade(const wf_call *call, bool power) {
  return wf_fade_into(call->ctx, call->in[G], call->in[TABLE], NULL, power, call->out[0]);
}
static inline void diag_factor_shape(const wf_call *call, wf_desc *A) {
  wf_desc_set(A, call->in[X]->dtype, 2,
              (int64_t[]){((const diag_attr *)call->attr)->lanes, call->in[G]->shape[1]});
}

/* Into out[]; poison where a row takes a state that is not there. */
static void diag_apply(wf_ctx *c, const wf_op *op, wf_tensor *x, wf_tensor *g, wf_tensor *state,
                       wf_tensor *init, const wf_rows *rows, bool pair, bool leaves, wf_tensor **out) {
  diag_attr a = {.lanes = rows->n_lanes, .leaves = leaves, .pair = pair};
  wf_status s = wf_state_given(op->name, state, rows);
  if (s == WF_OK)
    wf_op_apply_rows(c, rows, op, FORWARD_INS, (wf_tensor *[]){x, g, state, init, rows->table}, &a, out);
  else
    for (int i = 0; i < 3; i++) out[i] = wf_poison(c, s);
}

#endif

#endif
