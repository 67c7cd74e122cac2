/* recur_impl: the driver of gated recurrences, whose step needs the output of the step before,
 *     a_g = R_g h_{t-1} + b_g,   (h, ...)_t = cell(x_g[t], a_g, (h, ...)_{t-1}),
 * with gates g and R block-diagonal: heads see only their own channels of h.
 *
 * All rows that have a token t take the step together. The products of a step are small: their weights are
 * packed once into panels of PANEL channels that are read in order, the longest rows come first, so that
 * those still alive are a prefix, and heads and rows are divided among the threads so that none waits for
 * another. Only where there are fewer of these than threads, or one head's weights would pass through the
 * caches of several, do the threads share the channels of a head and meet once a token.
 *
 * The description's half of this file names inputs and sizes; the kernels' half is what the passes forwards
 * (recur.c) and backwards (recur_grad.c) share.
 */
#ifndef WF_CORE_OPS_RECUR_IMPL_H
#define WF_CORE_OPS_RECUR_IMPL_H

#include "core/ops/rows_impl.h"

enum { RECUR_GATES = 4, RECUR_STATES = 4 }; /* at most */

/* Inputs; the gradient has its own in place of x, behind the others. */
enum {
  RECUR_X, /* one [n, gates, H, D], or one [n, H, D] for each gate */
  RECUR_R = RECUR_X + RECUR_GATES,
  RECUR_B,
  RECUR_STATE,
  RECUR_INIT,
  RECUR_TABLE,
  RECUR_H_MASK,
  RECUR_C_MASK,
  RECUR_Y,
  RECUR_SAVED,
  RECUR_DY,
  RECUR_DSTATE,
  RECUR_INS,
  RECUR_WANTS = RECUR_TABLE /* inputs that have a gradient: those before */
};
/* Outputs. */
enum { RECUR_OUT_Y, RECUR_OUT_SAVED, RECUR_OUT_STATE };

typedef struct recur_attr {
  int64_t lanes;
  int32_t cell;
  int32_t parts;  /* tensors that hold x: 1 or the number of gates */
  int32_t saves;  /* are the steps kept for the gradient */
  int32_t leaves; /* is there an output state */
  int32_t want;   /* of the gradient: bits of the inputs */
} recur_attr;

/* Gates, states (h first) and what a channel's step saves, by cell:
 *   LSTM    i f g o; h c; i f g o (after their activation) and c
 *   GRU     r z n; h; r z n and R_n h + b_n
 *   sLSTM   i f z o; h c n m; I F tanh(z) sigmoid(o) sigmoid(-f) and c n */
static inline int recur_saved(int cell) {
  return cell == WF_RECUR_LSTM ? 5 : cell == WF_RECUR_GRU ? 4 : 7;
}
/* Where state k >= 1 lies among what is saved. */
static inline int recur_saved_state(int cell, int k) {
  return (cell == WF_RECUR_LSTM ? 3 : 4) + k;
}

wf_status wf_recur_sample(wf_sample *s); /* the same inputs for both */

#ifdef WF_KERNEL_PASS
#  include <stdlib.h>
#  include "core/tile_impl.h"

enum { PANEL = 2 * VL };

/* One gate of x, or of its gradient. */
typedef struct recur_gate {
  real *p;
  int64_t token, head; /* strides */
  bool add;
} recur_gate;

typedef struct recur_item {
  const wf_row *row;
  int64_t index; /* among the rows */
} recur_item;

typedef struct recur {
  int cell, gates, states, saved;
  int64_t n, rows, lanes, longest, heads, dim, width; /* width: of all heads */
  int64_t pad, panels;                                /* of the channels of a head */
  const wf_row *row;
  const real *r, *state, *init, *h_mask, *c_mask, *ones; /* masks and the state: or NULL; ones [width] */
  recur_item *item; /* [rows] group after group, the longest first in each */
  int64_t groups;
  int threads;
  bool team; /* threads share the channels of a head */
} recur;

/* What one thread does at each token: panels first .. last-1, counted over all heads, of one group's rows. */
typedef struct recur_part {
  int64_t first, last, group;
} recur_part;

static inline recur_gate recur_gate_at(const wf_tensor *t, int gate, bool add) {
  real *p = wf_data(t);
  if (t->ndim == 3) return (recur_gate){p, t->stride[0], t->stride[1], add};
  return (recur_gate){p + gate * t->stride[1], t->stride[0], t->stride[2], add};
}

static inline wf_status recur_read(const wf_call *call, recur *a) {
  const recur_attr *at = call->attr;
  const wf_tensor *r = call->in[RECUR_R], *table = call->in[RECUR_TABLE];
  *a = (recur){.cell = at->cell,
               .gates = wf_recur_gates(at->cell),
               .states = wf_recur_states(at->cell),
               .saved = recur_saved(at->cell),
               .n = call->n_in > RECUR_SAVED ? call->in[RECUR_SAVED]->shape[0] : call->out[0]->shape[0],
               .rows = table->shape[0],
               .lanes = at->lanes,
               .heads = r->shape[0],
               .dim = r->shape[2],
               .r = wf_data(r)};
  a->width = a->heads * a->dim;
  a->pad = TILE_PAD(a->dim);
  a->panels = (a->pad + PANEL - 1) / PANEL;
  if (call->in[RECUR_STATE]) a->state = wf_data(call->in[RECUR_STATE]);
  if (call->in[RECUR_INIT]) a->init = wf_data(call->in[RECUR_INIT]);
  if (call->in[RECUR_H_MASK]) a->h_mask = wf_data(call->in[RECUR_H_MASK]);
  if (call->in[RECUR_C_MASK]) a->c_mask = wf_data(call->in[RECUR_C_MASK]);
  WF_TRY(wf_rows_read(call->op->name, table, a->n, at->lanes, &a->row));
  for (int64_t i = 0; i < a->rows; i++)
    if (a->row[i].len > a->longest) a->longest = a->row[i].len;
  return WF_OK;
}

/* ---- who does what ---- */

static inline int recur_longer_first(const void *x, const void *y) {
  const recur_item *a = x, *b = y;
  if (a->row->len != b->row->len) return a->row->len < b->row->len ? 1 : -1;
  return a->index < b->index ? -1 : a->index > b->index;
}

/* Bytes of a head's weights that a core keeps near, and multiplications of one thread at a token that pay for
 * meeting the others (each about 2 us). */
enum { RECUR_NEAR = 512 << 10, RECUR_MEETING = 100000 };

/* Groups and threads; `work`: multiplications in units of the forward's. */
static inline void recur_plan(recur *a, int work) {
  int64_t step = a->gates * a->dim * (a->dim + 64), widest = a->rows > a->panels ? a->rows : a->panels;
  int64_t units = a->heads * widest, g = 1;
  a->threads = units ? wf_threads_for(units, a->n * a->heads * step * work / 8 / units + 1) : 1;
  while (g < a->rows && a->heads * g % a->threads && a->heads * g < 4 * a->threads) g++;
  bool far = g > 1 && a->gates * a->dim * a->dim * (int64_t)sizeof(real) > RECUR_NEAR;
  int64_t share = a->longest ? a->n / a->longest * a->heads * step / a->threads : 0;
  a->team = a->threads > 1 && (far || a->heads * g < a->threads) && share > RECUR_MEETING;
  a->groups = a->team ? 1 : g;
  int64_t most = a->heads * (a->team ? a->panels : g);
  if (a->threads > most) a->threads = most > 0 ? (int)most : 1;
}

/* The rows by groups. */
static inline void recur_deal(recur *a, recur_item *item, recur_item *sorted) {
  for (int64_t i = 0; i < a->rows; i++) sorted[i] = (recur_item){&a->row[i], i};
  qsort(sorted, (size_t)a->rows, sizeof *sorted, recur_longer_first);
  a->item = item;
  for (int64_t k = 0; k < a->groups; k++) /* dealt out, so that groups have as much to do */
    for (int64_t i = k; i < a->rows; i += a->groups) *item++ = sorted[i];
}

/* The place of a group's first row in a->item; groups: that behind the last. */
static inline int64_t recur_group(const recur *a, int64_t group) {
  return wf_range_begin(a->rows, (int)group, (int)a->groups);
}

/* Returns when all threads of a team have come. */
static inline void recur_meet(const recur *a) {
  (void)a;
#  ifdef _OPENMP
  if (a->team) {
    WF_PRAGMA(omp barrier)
  }
#  endif
}

typedef void (*recur_fn)(const recur *a, const void *arg, const recur_part *part, char *work);

/* Runs fn over all parts; `each` bytes of `work` for each thread. */
static inline void recur_run(const recur *a, recur_fn fn, const void *arg, char *work, size_t each) {
  if (a->team) {
    WF_PRAGMA(omp parallel num_threads(a->threads)) {
#  ifdef _OPENMP
      int k = omp_get_thread_num(), n = omp_get_num_threads(); /* perhaps fewer than were asked for */
#  else
      int k = 0, n = 1;
#  endif
      recur_part part = {wf_range_begin(a->heads * a->panels, k, n),
                         wf_range_begin(a->heads * a->panels, k + 1, n), 0};
      fn(a, arg, &part, work + each * (size_t)k);
    }
    return;
  }
  int64_t tasks = a->heads * a->groups;
  WF_PRAGMA(omp parallel for num_threads(a->threads) schedule(static, 1))
  for (int k = 0; k < a->threads; k++)
    for (int64_t task = k; task < tasks; task += a->threads) {
      int64_t h = task % a->heads;
      recur_part part = {h * a->panels, (h + 1) * a->panels, task / a->heads};
      fn(a, arg, &part, work + each * (size_t)k);
    }
}

/* The channels of head h that a part has: panels p0 .. p1-1, channels c0 .. c1-1. */
typedef struct recur_slice {
  int64_t h, p0, p1, c0, c1;
} recur_slice;

static inline recur_slice recur_slice_of(const recur *a, const recur_part *part, int64_t h) {
  int64_t first = part->first - h * a->panels, last = part->last - h * a->panels;
  recur_slice s = {.h = h, .p0 = first > 0 ? first : 0, .p1 = last < a->panels ? last : a->panels};
  s.c0 = s.p0 * PANEL;
  s.c1 = s.p1 * PANEL < a->dim ? s.p1 * PANEL : a->dim;
  return s;
}
/* The heads of a part, one after the other. */
#  define RECUR_EACH_HEAD(h, a, part) \
    for (int64_t h = (part)->first / (a)->panels; h * (a)->panels < (part)->last; h++)

static inline int64_t recur_panel(const recur *a, int64_t p) { /* its width, a multiple of VL */
  return a->pad - p * PANEL < PANEL ? a->pad - p * PANEL : PANEL;
}

/* ---- states ---- */

/* What the rows start from, into s [states, rows, width] in the order of a->item. */
static inline void recur_enter(const recur *a, real *s) {
  for (int k = 0; k < a->states; k++)
    for (int64_t i = 0; i < a->rows; i++) {
      const wf_row *row = a->item[i].row;
      const real *from = a->init ? a->init + k * a->width : NULL;
      if (wf_row_takes(row)) from = a->state ? a->state + (row->lane * a->states + k) * a->width : NULL;
      real *to = s + (k * a->rows + i) * a->width;
      if (from)
        memcpy(to, from, (size_t)a->width * sizeof *to);
      else
        memset(to, 0, (size_t)a->width * sizeof *to);
    }
}

/* Ask for n elements that a later step reads or writes: rows and gates are too many streams for the machine
 * to follow. */
#  define RECUR_ASK(p, n, write)                                           \
    for (int64_t ask_ = 0; ask_ < (n); ask_ += 64 / (int64_t)sizeof(real)) \
    __builtin_prefetch((p) + ask_, write)

static inline const real *recur_h_mask(const recur *a, int64_t item) {
  return a->h_mask ? a->h_mask + a->item[item].index * a->width : a->ones;
}
static inline const real *recur_c_mask(const recur *a, int64_t token) {
  return a->c_mask ? a->c_mask + token * a->width : a->ones;
}

#endif

#endif
