/* Trials of an op over ranks; see chain_trial.h. */
#include "tests/dist/chain_trial.h"
#include "autograd/tape.h"
#include "core/memory.h"
#include "core/ops.h"
#include "dist/segments.h"

#include <math.h>
#include <string.h>

/* ---- sequences ---- */

#define ROW(b, l, lane_, place_, pos_, flags_) \
  { .begin = b, .len = l, .lane = lane_, .place = place_, .pos = pos_, .seq = lane_, .flags = flags_ }

const wf_chain_sequence wf_chain_sequences[SEQUENCES] = {
    {"fresh", 2, 40, 1, {ROW(0, 23, 0, 0, 0, 0), ROW(23, 17, 1, 0, 0, 0)}},
    {"streamed", 2, 40, 1, {ROW(0, 23, 0, 64, 64, 3), ROW(23, 17, 1, 64, 64, 3)}},
    {"packed",
     7,
     46,
     1,
     {ROW(0, 3, 0, 9, 5, 1), ROW(3, 1, 0, 12, 0, 0), ROW(4, 18, 0, 13, 0, 0), ROW(22, 4, 0, 31, 0, 2),
      ROW(26, 12, 1, 9, 0, 0), ROW(38, 7, 1, 21, 0, 0), ROW(45, 1, 1, 28, 0, 2)}},
};

static double draw(uint64_t *s) {
  *s = *s * 6364136223846793005u + 1442695040888963407u;
  return (double)(*s >> 11) / 9007199254740992.0;
}
static double *drawn(int64_t n, double lo, double hi, uint64_t *s) {
  double *p = wf_calloc("test", (size_t)n + 1, sizeof *p);
  for (int64_t i = 0; i < n; i++) p[i] = lo + (hi - lo) * draw(s);
  return p;
}

static void numbers_new(const wf_chain_trial *t, uint64_t seed, wf_chain_numbers *n) {
  const wf_chain_member *m = t->m;
  uint64_t s = seed;
  for (int i = 0; i < MAX_X; i++)
    n->x[i] = drawn(t->seq.n_tokens * wf_chain_token_size(&m->x[i]), m->x[i].lo, m->x[i].hi, &s);
  for (int i = 0; i < MAX_W; i++) n->w[i] = drawn(wf_chain_weight_size(&m->w[i]), m->w[i].lo, m->w[i].hi, &s);
  n->state = drawn(LANES * wf_chain_state_size(m), -1, 1, &s);
  int64_t y = t->seq.n_tokens * wf_chain_state_size(m); /* as many as any output has */
  for (int i = 0; i < 2; i++) n->y[i] = drawn(y, -1, 1, &s);
  n->left = drawn(LANES * wf_chain_state_size(m), -1, 1, &s);
}
static void numbers_free(wf_chain_numbers *n) {
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

static void run(const wf_chain_trial *t, wf_chain_trial *to, const share *s, wf_comm *comm, wf_part *part) {
  const wf_chain_member *m = t->m;
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
  wf_chain_call c = {.c = b.c, .rows = &rows};
  wf_leaf leaf[MAX_X + MAX_W + 1] = {{0}};
  wf_tensor *in[MAX_X + MAX_W + 1] = {NULL};
  int64_t shape[4], ss = wf_chain_state_size(m);
  for (int i = 0; i < MAX_X + MAX_W + 1; i++) {
    double *host = NULL;
    int ndim = 0;
    if (i < MAX_X && m->x[i].ndim) {
      ndim = 1 + m->x[i].ndim;
      shape[0] = s->n, shape[1] = m->x[i].shape[0], shape[2] = m->x[i].shape[1];
      host = picked(t->in.x[i], s->n, s->token, wf_chain_token_size(&m->x[i]));
      in[i] = c.x[i] = tensor_of(b.c, t->dtype, ndim, shape, host);
    } else if (i >= MAX_X && i < MAX_X + MAX_W && m->w[i - MAX_X].ndim) {
      ndim = wf_chain_weight_shape(&m->w[i - MAX_X], shape);
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
      put(host, s->n, s->token, wf_chain_token_size(&m->x[i]), to->grad.x[i]);
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
static void share_of(const wf_chain_trial *t, wf_ctx *c, const wf_part *p, share *s) {
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

/* Numbers of a trial in the shapes of its inputs and outputs, for all or one of them. */
static void sum_over_ranks(wf_comm *comm, const wf_chain_trial *t, const wf_chain_numbers *n) {
  const wf_chain_member *m = t->m;
  int64_t tokens = t->seq.n_tokens, lanes = LANES * wf_chain_state_size(m);
  for (int i = 0; i < MAX_X; i++) wf_ranks_sum(comm, tokens * wf_chain_token_size(&m->x[i]), n->x[i]);
  for (int i = 0; i < MAX_W; i++) wf_ranks_sum(comm, wf_chain_weight_size(&m->w[i]), n->w[i]);
  for (int i = 0; i < 2; i++) wf_ranks_sum(comm, tokens * wf_chain_state_size(m), n->y[i]);
  wf_ranks_sum(comm, lanes, n->state);
  wf_ranks_sum(comm, lanes, n->left);
}
static void zero(const wf_chain_trial *t, const wf_chain_numbers *n) {
  const wf_chain_member *m = t->m;
  size_t tokens = (size_t)t->seq.n_tokens * sizeof(double), state = (size_t)wf_chain_state_size(m);
  for (int i = 0; i < MAX_X; i++) memset(n->x[i], 0, tokens * (size_t)wf_chain_token_size(&m->x[i]));
  for (int i = 0; i < MAX_W; i++) memset(n->w[i], 0, (size_t)wf_chain_weight_size(&m->w[i]) * sizeof(double));
  for (int i = 0; i < 2; i++) memset(n->y[i], 0, tokens * state);
  memset(n->state, 0, LANES * state * sizeof(double));
  memset(n->left, 0, LANES * state * sizeof(double));
}

static void one_rank(wf_comm *comm, void *arg_) {
  wf_chain_trial *t = arg_;
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
  if (wf_ranks_launched()) zero(t, &t->out), zero(t, &t->grad); /* each process fills in its share */
  run(t, t, &s, comm, p);
  if (wf_ranks_launched()) sum_over_ranks(comm, t, &t->out), sum_over_ranks(comm, t, &t->grad);
  wf_rows_free(s.rows);
  wf_free(s.token);
  wf_free(s.lane);
  wf_ctx_free(c);
  wf_device_close(dev);
  wf_part_free(p);
}

void wf_chain_trial_new(const wf_chain_member *m, const wf_chain_sequence *seq, int64_t stretch,
                        wf_dtype dtype, wf_chain_trial *t) {
  *t = (wf_chain_trial){.m = m, .seq = *seq, .dtype = dtype};
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
    for (int64_t i = 0; i < wf_chain_state_size(m) && !left; i++)
      t->cot.left[l * wf_chain_state_size(m) + i] = 0;
  }
  numbers_new(t, 11, &t->out);
  numbers_new(t, 13, &t->grad);
  for (int i = 0; i < MAX_W; i++)
    memset(t->grad.w[i], 0, (size_t)wf_chain_weight_size(&m->w[i]) * sizeof(double));
}
void wf_chain_trial_free(wf_chain_trial *t) {
  numbers_free(&t->in);
  numbers_free(&t->cot);
  numbers_free(&t->out);
  numbers_free(&t->grad);
  pthread_mutex_destroy(&t->lock);
}

static void without_others(wf_comm *comm, void *arg_) {
  (void)comm;
  wf_chain_trial *t = arg_;
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

void wf_chain_trial_whole(wf_chain_trial *t) {
  if (wf_ranks_launched())
    without_others(NULL, t);
  else
    wf_ranks_run(1, without_others, t); /* with the ranks' number of threads */
}

void wf_chain_trial_run(wf_chain_trial *t, int ranks) {
  wf_ranks_run(ranks, one_rank, t);
}

/* ---- comparing ---- */

static double err2(int64_t n, const double *a, const double *b) {
  double d = 0, s = 0;
  for (int64_t i = 0; i < n; i++) d += (a[i] - b[i]) * (a[i] - b[i]), s += b[i] * b[i];
  return s > 0 ? sqrt(d / s) : sqrt(d);
}

wf_chain_errors wf_chain_compare(const wf_chain_trial *a, const wf_chain_trial *b) {
  const wf_chain_member *m = b->m;
  int64_t tokens = b->seq.n_tokens, ss = wf_chain_state_size(m);
  wf_chain_errors e = {0};
  for (int i = 0; i < m->n_y; i++) e.y = fmax(e.y, err2(tokens * b->y_size, a->out.y[i], b->out.y[i]));
  bool leaves = false;
  for (int64_t i = 0; i < b->seq.n_rows; i++) leaves |= (b->seq.row[i].flags & WF_ROW_LEAVES) != 0;
  if (leaves) e.left = err2(LANES * ss, a->out.left, b->out.left);
  for (int i = 0; i < MAX_X && !m->constant; i++)
    e.grad = fmax(e.grad, err2(tokens * wf_chain_token_size(&m->x[i]), a->grad.x[i], b->grad.x[i]));
  for (int i = 0; i < MAX_W && !m->constant; i++)
    e.grad = fmax(e.grad, err2(wf_chain_weight_size(&m->w[i]), a->grad.w[i], b->grad.w[i]));
  if (leaves && !m->constant) e.grad = fmax(e.grad, err2(LANES * ss, a->grad.state, b->grad.state));
  return e;
}
