/* Ops with a state over the segments of several ranks: outputs, final states and all gradients are those of
 * the op on the whole sequence, by every transport, for any layout, rows of every kind, carried states; in
 * float the error is that of one rank; messages and bytes are what the formulas say. */
#include "autograd/tape.h"
#include "core/memory.h"
#include "core/ops.h"
#include "dist/segments.h"
#include "tests/dist/ranks.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { MAX_X = 6, MAX_W = 3, MAX_ROWS = 16, LANES = 2 };

/* ---- the ops ---- */

typedef struct arg {
  int ndim;
  int64_t shape[2]; /* of a token, or of a weight */
  double lo, hi;
} arg;

typedef struct call {
  wf_ctx *c;
  wf_tensor *x[MAX_X], *w[MAX_W], *state, *out[3]; /* outputs: the tokens', the state */
  const wf_rows *rows;
} call;

typedef struct member {
  const char *name;
  arg x[MAX_X], w[MAX_W]; /* per token; shared by all */
  int state_ndim;
  int64_t state[3];
  int n_y; /* outputs with tokens */
  bool constant;
  bool cut; /* segments of a rank can run one by one: the pipe serves any layout */
  void (*apply)(call *c);
} member;

enum { H = 4, G = 2, K = 3, V = 2, D = 6, N = 5 };

static void scan_with(call *c, wf_tensor *g, wf_tensor *w, wf_tensor *beta) {
  wf_scan_in in = {.q = c->x[0], .k = c->x[1], .v = c->x[2], .g = g, .w = w, .beta = beta, .init = c->w[0]};
  c->out[0] = wf_scan(c->c, &in, c->state, c->rows, &(wf_scan_options){.scale = 0.7, .chunk = 4}, &c->out[1]);
}
static void linear(call *c) {
  scan_with(c, NULL, c->x[3], NULL);
}
static void decayed(call *c) {
  scan_with(c, c->x[3], c->x[4], NULL);
}
static void with_ones(call *c) {
  wf_scan_in in = {.q = c->x[0], .k = c->x[1], .v = c->x[2], .g = c->x[3], .w = c->x[4], .init = c->w[0]};
  wf_scan_options o = {.scale = 0.7, .chunk = 4, .ones = true};
  c->out[0] = wf_scan(c->c, &in, c->state, c->rows, &o, &c->out[1]);
}
static void delta(call *c) {
  scan_with(c, NULL, NULL, c->x[3]);
}
static void gated_delta(call *c) {
  scan_with(c, c->x[3], NULL, c->x[4]);
}
static void diag(call *c) {
  c->out[0] = wf_scan_diag(c->c, c->x[0], c->x[1], c->state, c->w[0], c->rows, &c->out[1]);
}
static void sum(call *c) {
  c->out[0] = wf_scan_sum(c->c, c->x[0], false, c->state, c->w[0], c->rows, &c->out[1]);
}
static void pairs(call *c) {
  c->out[0] = wf_scan_sum(c->c, c->x[0], true, c->state, NULL, c->rows, &c->out[1]);
}
static void max(call *c) {
  c->out[0] = wf_scan_max(c->c, c->x[0], c->x[1], c->state, c->w[0], c->rows, &c->out[1], &c->out[2]);
}
static void selective(call *c) {
  wf_selective_in in = {c->x[0], c->x[1], c->w[0], c->x[2], c->x[3], c->w[1], c->w[2]};
  c->out[0] = wf_selective_scan(c->c, &in, c->state, c->rows, &c->out[1]);
}

#define QKV                                 \
  {2, {G, K}, -1, 1}, {2, {G, K}, -1, 1}, { \
    2, {H, V}, -1, 1                        \
  }
#define QKV_ALIKE                           \
  {2, {H, K}, -1, 1}, {2, {H, K}, -1, 1}, { \
    2, {H, V}, -1, 1                        \
  }
#define DECAY \
  { 1, {H}, -0.6, 0 }
#define CHANNEL_DECAYS \
  { 2, {H, K}, -0.6, 0 }
#define GATE \
  { 1, {H}, 0.1, 0.9 }
#define STATES .w = {{3, {0}, -1, 1}}, .state_ndim = 3, .state = {H, K, V}, .n_y = 1, .cut = true

static const member members[] = {
    {.name = "linear", .x = {QKV, GATE}, STATES, .apply = linear},
    {.name = "scalar", .x = {QKV, DECAY, GATE}, STATES, .apply = decayed},
    {.name = "channel", .x = {QKV_ALIKE, CHANNEL_DECAYS}, STATES, .apply = decayed},
    {.name = "ones",
     .x = {QKV, DECAY, GATE},
     .state_ndim = 3,
     .state = {H, K, V + 1},
     .n_y = 1,
     .cut = true,
     .apply = with_ones},
    {.name = "delta", .x = {QKV, GATE}, STATES, .apply = delta},
    {.name = "gated delta", .x = {QKV_ALIKE, DECAY, GATE}, STATES, .apply = gated_delta},
    {.name = "channel delta", .x = {QKV, CHANNEL_DECAYS, GATE}, STATES, .apply = gated_delta},
    {.name = "forgetful", .x = {QKV, {2, {H, K}, -50, 0}, GATE}, STATES, .apply = decayed},
    {.name = "diag",
     .x = {{1, {D}, -1, 1}, {1, {D}, -0.6, 0}},
     .w = {{1, {D}, -1, 1}},
     .state_ndim = 1,
     .state = {D},
     .n_y = 1,
     .cut = true,
     .apply = diag},
    {.name = "diag in runs",
     .x = {{1, {D}, -1, 1}, {1, {2}, -0.6, 0}},
     .w = {{1, {D}, -1, 1}},
     .state_ndim = 1,
     .state = {D},
     .n_y = 1,
     .cut = true,
     .apply = diag},
    {.name = "sum",
     .x = {{1, {D}, -1, 1}},
     .w = {{1, {D}, -1, 1}},
     .state_ndim = 1,
     .state = {D},
     .n_y = 1,
     .apply = sum},
    {.name = "pairs", .x = {{1, {D}, -1, 1}}, .state_ndim = 2, .state = {2, D}, .n_y = 1, .apply = pairs},
    {.name = "max",
     .x = {{1, {D}, -1, 1}, {1, {D}, -0.3, 0}},
     .w = {{1, {D}, -1, 1}},
     .state_ndim = 1,
     .state = {D},
     .n_y = 2,
     .constant = true,
     .apply = max},
    {.name = "selective",
     .x = {{1, {D}, -1, 1}, {1, {D}, 0.05, 0.8}, {1, {N}, -1, 1}, {1, {N}, -1, 1}},
     .w = {{2, {D, N}, -2, -0.1}, {1, {D}, -1, 1}, {2, {D, N}, -1, 1}},
     .state_ndim = 2,
     .state = {D, N},
     .n_y = 1,
     .apply = selective},
};
enum { MEMBERS = sizeof members / sizeof *members };

/* The initial state of the scan family has three dimensions. */
static int weight_shape(const arg *a, int64_t shape[3]) {
  if (a->ndim == 3)
    shape[0] = H, shape[1] = K, shape[2] = V;
  else
    shape[0] = a->shape[0], shape[1] = a->shape[1];
  return a->ndim;
}
static int64_t token_size(const arg *a) {
  return a->ndim == 0 ? 0 : a->ndim == 1 ? a->shape[0] : a->shape[0] * a->shape[1];
}
static int64_t weight_size(const arg *a) {
  int64_t shape[3], n = a->ndim > 0;
  for (int d = weight_shape(a, shape) - 1; d >= 0; d--) n *= shape[d];
  return n;
}
static int64_t state_size(const member *m) {
  int64_t n = 1;
  for (int d = 0; d < m->state_ndim; d++) n *= m->state[d];
  return n;
}

/* ---- sequences ---- */

typedef struct pieces {
  const char *name;
  int64_t n_rows, n_tokens, stretch; /* rows are `stretch` times as long as written */
  wf_row row[MAX_ROWS];
} pieces;

#define ROW(b, l, lane_, place_, pos_, flags_) \
  { .begin = b, .len = l, .lane = lane_, .place = place_, .pos = pos_, .seq = lane_, .flags = flags_ }

static const pieces sequences[] = {
    {"fresh", 2, 40, 1, {ROW(0, 23, 0, 0, 0, 0), ROW(23, 17, 1, 0, 0, 0)}},
    {"streamed", 2, 40, 1, {ROW(0, 23, 0, 64, 64, 3), ROW(23, 17, 1, 64, 64, 3)}},
    {"packed",
     7,
     46,
     1,
     {ROW(0, 3, 0, 9, 5, 1), ROW(3, 1, 0, 12, 0, 0), ROW(4, 18, 0, 13, 0, 0), ROW(22, 4, 0, 31, 0, 2),
      ROW(26, 12, 1, 9, 0, 0), ROW(38, 7, 1, 21, 0, 0), ROW(45, 1, 1, 28, 0, 2)}},
};
enum { SEQUENCES = sizeof sequences / sizeof *sequences };

static double draw(uint64_t *s) {
  *s = *s * 6364136223846793005u + 1442695040888963407u;
  return (double)(*s >> 11) / 9007199254740992.0;
}
static double *drawn(int64_t n, double lo, double hi, uint64_t *s) {
  double *p = wf_calloc("test", (size_t)n + 1, sizeof *p);
  for (int64_t i = 0; i < n; i++) p[i] = lo + (hi - lo) * draw(s);
  return p;
}

/* Everything of one case in doubles, in the order of the whole sequence. */
typedef struct numbers {
  double *x[MAX_X], *w[MAX_W], *state, *y[2], *left;
} numbers;

typedef struct trial {
  const member *m;
  pieces seq;
  wf_dtype dtype;
  numbers in, cot, out, grad; /* cot: of y and left; out: y, left; grad: of x, w, state */
  int64_t y_size;             /* numbers of a token's output */
  wf_dist by;                 /* without its communicator */
  pthread_mutex_t lock;
  wf_comm_counts *forward, *all; /* [ranks] */
} trial;

static void numbers_new(const trial *t, uint64_t seed, numbers *n) {
  const member *m = t->m;
  uint64_t s = seed;
  for (int i = 0; i < MAX_X; i++)
    n->x[i] = drawn(t->seq.n_tokens * token_size(&m->x[i]), m->x[i].lo, m->x[i].hi, &s);
  for (int i = 0; i < MAX_W; i++) n->w[i] = drawn(weight_size(&m->w[i]), m->w[i].lo, m->w[i].hi, &s);
  n->state = drawn(LANES * state_size(m), -1, 1, &s);
  int64_t y = t->seq.n_tokens * state_size(m); /* as many as any output has */
  for (int i = 0; i < 2; i++) n->y[i] = drawn(y, -1, 1, &s);
  n->left = drawn(LANES * state_size(m), -1, 1, &s);
}
static void numbers_free(numbers *n) {
  for (int i = 0; i < MAX_X; i++) wf_free(n->x[i]);
  for (int i = 0; i < MAX_W; i++) wf_free(n->w[i]);
  for (int i = 0; i < 2; i++) wf_free(n->y[i]);
  wf_free(n->state);
  wf_free(n->left);
}

/* ---- one rank's run, or that of the whole sequence ---- */

typedef struct bench {
  wf_device *dev;
  wf_ctx *c;
  wf_tape *tape;
} bench;

static wf_tensor *tensor_of(wf_ctx *c, wf_dtype dtype, int ndim, const int64_t *shape, const double *from) {
  wf_tensor *t = wf_from_host(c, "test", WF_F64, ndim, shape, from);
  return dtype == WF_F64 ? t : wf_cast(c, t, dtype);
}
static void host_of(wf_ctx *c, wf_tensor *t, double *to) {
  wf_tensor *wide = t->dtype == WF_F64 ? t : wf_cast(c, t, WF_F64);
  WF_RANK_OK(wf_is_poison(wide) ? wf_ctx_failure(c) : wf_to_host(wide, to));
}

/* `from` [tokens or lanes of all, size] for those in `index`, or back; lanes that are nobody's get junk. */
static double *picked(const double *from, int64_t n, const int64_t *index, int64_t size) {
  double *to = wf_calloc("test", (size_t)(n * size) + 1, sizeof *to);
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < size; k++) to[i * size + k] = index[i] < 0 ? 1e3 : from[index[i] * size + k];
  return to;
}
static void put(const double *from, int64_t n, const int64_t *index, int64_t size, double *to) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < size && index[i] >= 0; k++) to[index[i] * size + k] = from[i * size + k];
}

typedef struct share { /* of the sequence */
  wf_rows *rows;
  int64_t n, lanes;
  int64_t *token, *lane; /* which of the whole's; -1: not read, not meant */
} share;

static void run(const trial *t, trial *to, const share *s, wf_comm *comm, wf_part *part) {
  const member *m = t->m;
  bench b;
  WF_RANK_OK(wf_device_open(WF_CPU, 0, &b.dev));
  WF_RANK_OK(wf_ctx_create(b.dev, &b.c));
  WF_RANK_OK(wf_tape_create(b.c, &b.tape));
  wf_scope scope = wf_scope_open(b.c);
  wf_segments by;
  wf_rows rows = *s->rows;
  if (part) {
    by = wf_segments_of(part);
    rows.carrier = &by.carrier;
  }
  call c = {.c = b.c, .rows = &rows};
  wf_leaf leaf[MAX_X + MAX_W + 1] = {{0}};
  wf_tensor *in[MAX_X + MAX_W + 1] = {NULL};
  int64_t shape[4], ss = state_size(m);
  for (int i = 0; i < MAX_X + MAX_W + 1; i++) {
    double *host = NULL;
    int ndim = 0;
    if (i < MAX_X && m->x[i].ndim) {
      ndim = 1 + m->x[i].ndim;
      shape[0] = s->n, shape[1] = m->x[i].shape[0], shape[2] = m->x[i].shape[1];
      host = picked(t->in.x[i], s->n, s->token, token_size(&m->x[i]));
      in[i] = c.x[i] = tensor_of(b.c, t->dtype, ndim, shape, host);
    } else if (i >= MAX_X && i < MAX_X + MAX_W && m->w[i - MAX_X].ndim) {
      ndim = weight_shape(&m->w[i - MAX_X], shape);
      in[i] = c.w[i - MAX_X] = tensor_of(b.c, t->dtype, ndim, shape, t->in.w[i - MAX_X]);
    } else if (i == MAX_X + MAX_W) {
      ndim = 1 + m->state_ndim;
      shape[0] = s->lanes;
      memcpy(shape + 1, m->state, sizeof m->state);
      host = picked(t->in.state, s->lanes, s->lane, ss);
      in[i] = c.state = tensor_of(b.c, t->dtype, ndim, shape, host);
    }
    wf_free(host);
    if (!in[i] || m->constant) continue;
    leaf[i].grad = wf_zeros(b.c, "test", t->dtype, ndim, shape);
    WF_RANK_OK(wf_tape_watch(b.tape, in[i], &leaf[i]));
  }
  wf_tape_record(b.tape);
  m->apply(&c);
  wf_tape_pause(b.tape);
  wf_tensor *left = c.out[m->n_y];
  for (int i = 0; i <= m->n_y; i++)
    if (wf_is_poison(c.out[i])) WF_RANK_OK(wf_ctx_failure(b.c));
  if (comm && to->forward) to->forward[wf_comm_rank(comm)] = wf_comm_count(comm);
  if (!m->constant) {
    int64_t size = s->n ? wf_numel(c.out[0]) / s->n : 0;
    double *dy = picked(t->cot.y[0], s->n, s->token, size), *dl = picked(t->cot.left, s->lanes, s->lane, ss);
    wf_tensor *cot[] = {tensor_of(b.c, t->dtype, c.out[0]->ndim, c.out[0]->shape, dy),
                        tensor_of(b.c, t->dtype, left->ndim, left->shape, dl)};
    WF_RANK_OK(wf_backward(b.tape, 2, (wf_tensor *[]){c.out[0], left}, cot));
    wf_free(dy);
    wf_free(dl);
  }
  if (comm && to->all) to->all[wf_comm_rank(comm)] = wf_comm_count(comm);

  pthread_mutex_lock(&to->lock);
  double *host = wf_calloc("test", (size_t)(s->n + s->lanes + 1) * 256, sizeof *host);
  for (int i = 0; i < m->n_y && s->n; i++) {
    host_of(b.c, c.out[i], host);
    to->y_size = wf_numel(c.out[i]) / s->n;
    put(host, s->n, s->token, to->y_size, to->out.y[i]);
  }
  host_of(b.c, left, host);
  put(host, s->lanes, s->lane, ss, to->out.left);
  for (int i = 0; i < MAX_X + MAX_W + 1 && !m->constant; i++) {
    if (!in[i]) continue;
    host_of(b.c, leaf[i].grad, host);
    if (i < MAX_X)
      put(host, s->n, s->token, token_size(&m->x[i]), to->grad.x[i]);
    else if (i < MAX_X + MAX_W)
      for (int64_t k = 0; k < wf_numel(in[i]); k++) to->grad.w[i - MAX_X][k] += host[k];
    else {
      put(host, s->lanes, s->lane, ss, to->grad.state);
      for (int64_t l = 0; l < s->lanes; l++)
        for (int64_t k = 0; k < ss && s->lane[l] < 0; k++)
          if (host[l * ss + k] != 0) wf_rank_fail(__FILE__, __LINE__, "a gradient for a state that is none");
    }
  }
  wf_free(host);
  pthread_mutex_unlock(&to->lock);
  wf_scope_close(b.c, scope);
  wf_tape_free(b.tape);
  wf_ctx_free(b.c);
  wf_device_close(b.dev);
}

/* Where the tokens and lanes of a rank are in the whole. */
static void share_of(const trial *t, wf_ctx *c, const wf_part *p, share *s) {
  wf_row row[MAX_ROWS * 20];
  int64_t n_rows = 0;
  *s = (share){.n = p->n_tokens, .lanes = p->n_own * LANES};
  s->token = wf_calloc("test", (size_t)s->n + 1, sizeof *s->token);
  s->lane = wf_calloc("test", (size_t)s->lanes + 1, sizeof *s->lane);
  int64_t begin = 0;
  for (int k = 0; k < p->n_own; k++) {
    int seg = p->own[k];
    for (int64_t i = p->first[seg]; i < p->first[seg + 1]; i++) {
      wf_row r = p->row[i];
      r.begin = begin;
      r.lane += k * LANES;
      for (int64_t j = 0; j < t->seq.n_rows; j++) {
        const wf_row *w = &t->seq.row[j];
        if (w->lane != p->row[i].lane || r.place < w->place || r.place >= w->place + w->len) continue;
        for (int64_t x = 0; x < r.len; x++) s->token[begin + x] = w->begin + r.place - w->place + x;
      }
      begin += r.len;
      row[n_rows++] = r;
    }
    for (int64_t l = 0; l < LANES; l++) s->lane[k * LANES + l] = seg == p->n_segments - 1 ? l : -1;
  }
  WF_RANK_OK(wf_rows_create(c, n_rows, row, s->lanes, &s->rows));
}

static void one_rank(wf_comm *comm, void *arg_) {
  trial *t = arg_;
  wf_dist d = t->by;
  d.comm = comm;
  wf_part *p;
  wf_device *dev;
  wf_ctx *c;
  WF_RANK_OK(wf_part_create(&d, t->seq.n_rows, t->seq.row, LANES, 0, 0, &p));
  WF_RANK_OK(wf_device_open(WF_CPU, 0, &dev));
  WF_RANK_OK(wf_ctx_create(dev, &c));
  share s;
  share_of(t, c, p, &s);
  run(t, t, &s, comm, p);
  wf_rows_free(s.rows);
  wf_free(s.token);
  wf_free(s.lane);
  wf_ctx_free(c);
  wf_device_close(dev);
  wf_part_free(p);
}

static void trial_new(const member *m, const pieces *seq, int64_t stretch, wf_dtype dtype, trial *t) {
  *t = (trial){.m = m, .seq = *seq, .dtype = dtype};
  for (int64_t i = 0; i < seq->n_rows; i++) {
    t->seq.row[i].begin *= stretch, t->seq.row[i].len *= stretch;
    t->seq.row[i].place *= stretch, t->seq.row[i].pos *= stretch;
  }
  t->seq.n_tokens *= stretch;
  pthread_mutex_init(&t->lock, NULL);
  numbers_new(t, 7, &t->in);
  numbers_new(t, 9, &t->cot);
  for (int64_t l = 0; l < LANES; l++) { /* the final state of a lane that no row leaves is nobody's */
    bool left = false;
    for (int64_t i = 0; i < seq->n_rows; i++)
      left |= seq->row[i].lane == l && seq->row[i].flags & WF_ROW_LEAVES;
    for (int64_t i = 0; i < state_size(m) && !left; i++) t->cot.left[l * state_size(m) + i] = 0;
  }
  numbers_new(t, 11, &t->out);
  numbers_new(t, 13, &t->grad);
  for (int i = 0; i < MAX_W; i++) memset(t->grad.w[i], 0, (size_t)weight_size(&m->w[i]) * sizeof(double));
}
static void trial_free(trial *t) {
  numbers_free(&t->in);
  numbers_free(&t->cot);
  numbers_free(&t->out);
  numbers_free(&t->grad);
  pthread_mutex_destroy(&t->lock);
}

/* One rank, as if there were no others. */
static void without_others(wf_comm *comm, void *arg_) {
  (void)comm;
  trial *t = arg_;
  wf_device *dev;
  wf_ctx *c;
  WF_RANK_OK(wf_device_open(WF_CPU, 0, &dev));
  WF_RANK_OK(wf_ctx_create(dev, &c));
  int64_t token[8192], lane[LANES];
  share s = {.n = t->seq.n_tokens, .lanes = LANES, .token = token, .lane = lane};
  for (int64_t i = 0; i < s.n; i++) token[i] = i;
  for (int64_t i = 0; i < LANES; i++) lane[i] = i;
  WF_RANK_OK(wf_rows_create(c, t->seq.n_rows, t->seq.row, LANES, &s.rows));
  run(t, t, &s, NULL, NULL);
  wf_rows_free(s.rows);
  wf_ctx_free(c);
  wf_device_close(dev);
}

static void whole(trial *t) {
  wf_ranks_run(1, without_others, t); /* with the ranks' number of threads */
}

/* ---- comparing ---- */

typedef struct errors {
  double y, left, grad; /* relative, L2; grad: the largest of all inputs' */
} errors;

static double err2(int64_t n, const double *a, const double *b) {
  double d = 0, s = 0;
  for (int64_t i = 0; i < n; i++) d += (a[i] - b[i]) * (a[i] - b[i]), s += b[i] * b[i];
  return s > 0 ? sqrt(d / s) : sqrt(d);
}

static errors compare(const trial *a, const trial *b) {
  const member *m = b->m;
  int64_t tokens = b->seq.n_tokens, ss = state_size(m);
  errors e = {0};
  for (int i = 0; i < m->n_y; i++) e.y = fmax(e.y, err2(tokens * b->y_size, a->out.y[i], b->out.y[i]));
  bool leaves = false;
  for (int64_t i = 0; i < b->seq.n_rows; i++) leaves |= (b->seq.row[i].flags & WF_ROW_LEAVES) != 0;
  if (leaves) e.left = err2(LANES * ss, a->out.left, b->out.left);
  for (int i = 0; i < MAX_X && !m->constant; i++)
    e.grad = fmax(e.grad, err2(tokens * token_size(&m->x[i]), a->grad.x[i], b->grad.x[i]));
  for (int i = 0; i < MAX_W && !m->constant; i++)
    e.grad = fmax(e.grad, err2(weight_size(&m->w[i]), a->grad.w[i], b->grad.w[i]));
  if (leaves && !m->constant) e.grad = fmax(e.grad, err2(LANES * ss, a->grad.state, b->grad.state));
  return e;
}

/* ---- the matrix ---- */

static const wf_dist ways[] = {
    {.transport = WF_TRANSPORT_AUTO},
    {.transport = WF_TRANSPORT_PIPE, .blocks = 2},
    {.transport = WF_TRANSPORT_PIPE, .blocks = 5},
    {.transport = WF_TRANSPORT_RELAY},
    {.transport = WF_TRANSPORT_RELAY, .blocks = 2},
    {.transport = WF_TRANSPORT_GATHER},
    {.transport = WF_TRANSPORT_GATHER, .blocks = 3},
    {.transport = WF_TRANSPORT_LOG},
    {.transport = WF_TRANSPORT_LOG, .blocks = 2},
};
enum { WAYS = sizeof ways / sizeof *ways };

static const int64_t uneven[] = {9, 1, 5, 2, 0, 3, 7, 1, 1, 2, 1, 4, 1, 1, 3, 1};

typedef enum layout_kind { CONTIGUOUS, UNEVEN, ZIGZAG, ZIGZAG_UNEVEN, SCATTERED, LAYOUTS } layout_kind;

/* SCATTERED: seven segments, whose owners have none, one or several, in no order. */
static wf_layout *layout_of(layout_kind kind, int ranks) {
  wf_layout *l = NULL;
  int owner[7];
  for (int i = 0; i < 7; i++) owner[i] = i * i % ranks;
  wf_status st = kind == SCATTERED
                     ? wf_layout_custom(ranks, 7, owner, uneven, &l)
                     : wf_layout_create(kind >= ZIGZAG ? WF_LAYOUT_ZIGZAG : WF_LAYOUT_CONTIGUOUS, ranks,
                                        kind % 2 ? uneven : NULL, &l);
  ck_assert_int_eq(st, WF_OK);
  return l;
}

static void agree(const member *m, const pieces *seq, int ranks) {
  trial plain;
  trial_new(m, seq, 1, WF_F64, &plain);
  whole(&plain);
  for (int kind = 0; kind < LAYOUTS; kind++)
    for (int w = 0; w < WAYS; w++) {
      wf_layout *layout = layout_of((layout_kind)kind, ranks);
      trial t;
      if (ways[w].transport != WF_TRANSPORT_PIPE || m->cut || wf_layout_most(layout) == 1) {
        trial_new(m, seq, 1, WF_F64, &t);
        t.by = ways[w];
        t.by.layout = layout;
        wf_ranks_run(ranks, one_rank, &t);
        errors e = compare(&t, &plain);
        ck_assert_msg(e.y <= 1e-10 && e.left <= 1e-10 && e.grad <= 1e-10,
                      "%s, %s, %d ranks, layout %d, transport %d in %d blocks: %g, state %g, gradients %g",
                      m->name, seq->name, ranks, kind, ways[w].transport, ways[w].blocks, e.y, e.left,
                      e.grad);
        trial_free(&t);
      }
      wf_layout_free(layout);
    }
  trial_free(&plain);
}

static const int sizes[] = {1, 2, 3, 4, 5, 8};
enum { SIZES = sizeof sizes / sizeof *sizes };

START_TEST(every_member) {
  const member *m = &members[_i / SIZES];
  for (int s = 0; s < SEQUENCES; s++) agree(m, &sequences[s], sizes[_i % SIZES]);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* ---- float ---- */

START_TEST(in_float) {
  const member *m = &members[_i];
  trial exact, one;
  trial_new(m, &sequences[1], 20, WF_F64, &exact);
  trial_new(m, &sequences[1], 20, WF_F32, &one);
  whole(&exact);
  whole(&one);
  errors e1 = compare(&one, &exact);
  for (int w = 3; w < WAYS; w++) {
    trial t;
    wf_layout *layout = layout_of(CONTIGUOUS, 4);
    trial_new(m, &sequences[1], 20, WF_F32, &t);
    t.by = ways[w];
    t.by.layout = layout;
    wf_ranks_run(4, one_rank, &t);
    errors e = compare(&t, &exact);
    double floor = 6e-8;
    ck_assert_msg(e.y <= 2 * e1.y + floor && e.left <= 2 * e1.left + floor && e.grad <= 2 * e1.grad + floor,
                  "%s, transport %d: %g %g %g, one rank %g %g %g", m->name, t.by.transport, e.y, e.left,
                  e.grad, e1.y, e1.left, e1.grad);
    trial_free(&t);
    wf_layout_free(layout);
  }
  trial_free(&exact);
  trial_free(&one);
}
END_TEST

/* ---- counts ---- */

/* Messages and bytes of a rank with one segment in an exclusive scan whose i-th segment it has; a, b: bytes
 * of A and B. */
static void expected(wf_transport how, int i, int P, int blocks, int64_t a, int64_t b, wf_comm_counts *n) {
  if (P == 1) return;
  if (how == WF_TRANSPORT_PIPE || how == WF_TRANSPORT_RELAY) {
    n->messages += i < P - 1 ? blocks : 0;
    n->message_bytes += i < P - 1 ? b : 0;
  } else if (how == WF_TRANSPORT_GATHER) {
    n->calls += blocks;
    n->call_bytes += (i < P - 1 ? b : 0) + (i > 0 && i < P - 1 ? a : 0);
  } else {
    for (int d = 1; d < P; d *= 2)
      if (i + d < P) n->messages += blocks, n->message_bytes += b + (i - d + 1 > 0 ? a : 0);
  }
}

static void same_counts(const wf_comm_counts *a, const wf_comm_counts *b, const char *what, int way, int rank,
                        int P) {
  ck_assert_msg(
      a->messages == b->messages && a->message_bytes == b->message_bytes && a->calls == b->calls &&
          a->call_bytes == b->call_bytes,
      "%s, way %d, rank %d of %d: %lld messages, %lld bytes, %lld calls, %lld bytes; not %lld, %lld, "
      "%lld, %lld",
      what, way, rank, P, (long long)a->messages, (long long)a->message_bytes, (long long)a->calls,
      (long long)a->call_bytes, (long long)b->messages, (long long)b->message_bytes, (long long)b->calls,
      (long long)b->call_bytes);
}

START_TEST(counts) {
  static const struct {
    int member;
    int64_t a, b; /* elements of a lane */
  } cases[] = {{0, 0, H * K * V},
               {1, H, H * K * V},
               {2, H * K, H * K * V},
               {5, H * K * K, H * K * V},
               {13, D * N, D * N}};
  if (wf_ranks_launched()) return; /* counts are gathered in this process */
  for (int k = 0; k < 5; k++)
    for (int s = 0; s < SIZES; s++)
      for (int w = 1; w < WAYS; w++) {
        int P = sizes[s], blocks = ways[w].blocks ? ways[w].blocks : 1, most = k == 4 ? D : H;
        wf_comm_counts got[2][8];
        trial t;
        trial_new(&members[cases[k].member], &sequences[0], 1, WF_F32, &t);
        wf_layout *layout = layout_of(CONTIGUOUS, P);
        t.by = ways[w];
        t.by.layout = layout;
        t.forward = got[0], t.all = got[1];
        wf_ranks_run(P, one_rank, &t);
        if (blocks > most) blocks = most;
        if (blocks == 3 && k < 2) blocks = G; /* two heads share a key: 1, 2 or 4 blocks */
        for (int r = 0; r < P; r++) {
          wf_comm_counts n = {0};
          int64_t a = LANES * cases[k].a * 4, b = LANES * cases[k].b * 4;
          expected(ways[w].transport, r, P, blocks, a, b, &n);
          same_counts(&got[0][r], &n, "forward", w, r, P);
          expected(ways[w].transport, P - 1 - r, P, blocks, a, b, &n);
          same_counts(&got[1][r], &n, "with the backward", w, r, P);
        }
        trial_free(&t);
        wf_layout_free(layout);
      }
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("chain");
  TCase *t = tcase_create("chain");
  tcase_set_timeout(t, 300);
  tcase_add_loop_test(t, every_member, 0, MEMBERS * SIZES);
  tcase_add_loop_test(t, in_float, 0, MEMBERS);
  tcase_add_test(t, counts);
  suite_add_tcase(s, t);
  return s;
}

WF_RANKS_MAIN(suite)
