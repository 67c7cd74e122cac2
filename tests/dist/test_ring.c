/* Attention over ranks, as an op: outputs, log-sum-exps and every gradient against attention over the whole
 * sequence, in every way, for any number of ranks and any layout; and the bytes it sends. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "autograd/gradcheck.h"
#include "autograd/tape.h"
#include "core/memory.h"
#include "dist/attend_ways.h"
#include "dist/ring.h"
#include "layers/seq.h"
#include "tests/dist/ranks.h"

enum { LANES = 3, MOST_ROWS = 16 };
enum { O, LSE, DQ, DK, DV, DC, DSINK, RESULTS };
static const char *const names[] = {"o", "lse", "dq", "dk", "dv", "dc", "dsink"};

typedef struct shape {
  int64_t H, Hk, K, V, window;
  bool gates, alibi, sink;
  wf_attend_kind kind;
  double softcap;
} shape;

/* ---- a problem and its data: the same numbers in every run ---- */

typedef struct problem {
  shape s;
  int64_t n_rows, n;
  wf_row row[MOST_ROWS];
} problem;

/* Documents of each lane; 0 ends. */
static problem make_problem(const shape *s, const int64_t (*docs)[8]) {
  problem p = {.s = *s};
  for (int lane = 0; lane < LANES; lane++)
    for (int64_t i = 0, place = 0; i < 8 && docs[lane][i]; place += docs[lane][i++]) {
      p.row[p.n_rows++] =
          (wf_row){.begin = p.n, .len = docs[lane][i], .lane = lane, .place = place, .seq = lane};
      p.n += docs[lane][i];
    }
  return p;
}

static int64_t width_of(const problem *p, int what) {
  const shape *s = &p->s;
  const int64_t widths[] = {s->H * s->V, s->H, s->H * s->K, s->Hk * s->K, s->Hk * s->V, s->H, s->H};
  return widths[what];
}
static int64_t tokens_of(const problem *p, int what) {
  return what == DSINK ? 1 : p->n;
}

/* In [-1, 1), of input or cotangent `what` at token i, column j. */
static double number(int what, int64_t i, int64_t j) {
  return wf_rng_uniform(wf_rng_key_make(7, "test", names[what]), (uint64_t)(i * 4096 + j)) * 2 - 1;
}
/* Sums of log gates fall along a document. */
static double value(int what, const wf_row *r, int64_t t, int64_t j) {
  double x = number(what, r->begin + t, j);
  return what == DC ? -0.1 * (double)(r->pos + t) * (double)(1 + j) + 0.3 * x : x;
}

/* ---- one run: on some tokens of the problem, `at` of them in its order ---- */

typedef struct run {
  const problem *p;
  wf_ctx *c;
  wf_device *dev;
  wf_dtype dtype;
  int64_t n, *at;
  const wf_row **of; /* [n] each token's row of the problem */
  wf_leaf leaf[RESULTS];
  wf_tensor *in[RESULTS], *cot[2];
} run;

static wf_tensor *tensor_of(run *r, int what, int ndim, const int64_t *dims) {
  int64_t wide = width_of(r->p, what), n = what == DSINK ? 1 : r->n;
  double *host = wf_alloc("test", (size_t)(n * wide + 1) * sizeof *host);
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < wide; j++)
      host[i * wide + j] =
          what == DSINK ? number(what, 0, j) : value(what, r->of[i], r->at[i] - r->of[i]->begin, j);
  wf_tensor *x = wf_from_host(r->c, "test", WF_F64, ndim, dims, host);
  wf_free(host);
  return wf_cast(r->c, x, what == DC ? WF_F64 : r->dtype);
}

static void open_run(run *r) {
  WF_RANK_OK(wf_device_open(WF_CPU, 0, &r->dev));
  WF_RANK_OK(wf_ctx_create(r->dev, &r->c));
}
static void close_run(run *r) {
  wf_ctx_free(r->c);
  wf_device_close(r->dev);
  wf_free(r->at);
  wf_free(r->of);
}

static void make_inputs(run *r) {
  const shape *s = &r->p->s;
  r->in[DQ] = tensor_of(r, DQ, 3, (int64_t[]){r->n, s->H, s->K});
  r->in[DK] = tensor_of(r, DK, 3, (int64_t[]){r->n, s->Hk, s->K});
  r->in[DV] = tensor_of(r, DV, 3, (int64_t[]){r->n, s->Hk, s->V});
  r->in[DC] = s->gates ? tensor_of(r, DC, 2, (int64_t[]){r->n, s->H}) : NULL;
  r->in[DSINK] = s->sink ? tensor_of(r, DSINK, 1, (int64_t[]){s->H}) : NULL;
  r->cot[0] = tensor_of(r, O, 3, (int64_t[]){r->n, s->H, s->V});
  r->cot[1] = tensor_of(r, LSE, 2, (int64_t[]){r->n, s->H});
  for (int i = DQ; i < RESULTS; i++)
    if (r->in[i])
      r->leaf[i] = (wf_leaf){.grad = wf_empty(r->c, "test", r->in[i]->dtype, r->in[i]->ndim, r->in[i]->shape),
                             .holds = 1};
}

/* Adds a tensor to the result of the whole problem. */
static void collect(const run *r, int what, wf_tensor *x, double *const *result) {
  int64_t wide = width_of(r->p, what), n = what == DSINK ? 1 : r->n;
  double *host = wf_alloc("test", (size_t)(n * wide + 1) * sizeof *host);
  WF_RANK_OK(wf_to_host(wf_cast(r->c, x, WF_F64), host));
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < wide; j++)
      result[what][(what == DSINK ? 0 : r->at[i]) * wide + j] += host[i * wide + j];
  wf_free(host);
}

typedef struct sent {
  int64_t forward, backward;
} sent;

static void differentiate(run *r, wf_run *w, wf_seq_attend_slots *slots, wf_comm *comm, sent *bytes,
                          double *const *result) {
  const shape *s = &r->p->s;
  wf_tape *tape;
  double *slope = wf_alloc("test", (size_t)s->H * sizeof *slope);
  for (int64_t h = 0; h < s->H; h++) slope[h] = 0.3 / (double)(1 + h);
  make_inputs(r);
  WF_RANK_OK(wf_tape_create(r->c, &tape));
  for (int i = DQ; i < RESULTS; i++)
    if (r->in[i]) WF_RANK_OK(wf_tape_watch(tape, r->in[i], &r->leaf[i]));
  wf_tensor *out[2];
  wf_seq_attend_in in = {.q = r->in[DQ],
                         .k = r->in[DK],
                         .v = r->in[DV],
                         .c = r->in[DC],
                         .sink = r->in[DSINK],
                         .slope = s->alibi ? slope : NULL,
                         .lse = &out[1]};
  wf_attend_options o = {.scale = 1 / sqrt((double)s->K),
                         .softcap = s->softcap,
                         .window = s->window,
                         .kind = s->kind,
                         .len_bias = 20};
  int64_t before = comm ? wf_comm_count(comm).message_bytes : 0;
  wf_tape_record(tape);
  out[0] = wf_seq_attend(w, slots, &in, &o);
  wf_tape_pause(tape);
  WF_RANK_OK(wf_ctx_check(r->c));
  collect(r, O, out[0], result);
  bool lse = s->kind == WF_ATTEND_SOFTMAX;
  if (lse) collect(r, LSE, out[1], result);
  if (comm) bytes->forward = wf_comm_count(comm).message_bytes - before;
  WF_RANK_OK(wf_backward(tape, lse ? 2 : 1, out, r->cot));
  if (comm) bytes->backward = wf_comm_count(comm).message_bytes - before - bytes->forward;
  for (int i = DQ; i < RESULTS; i++)
    if (r->in[i]) collect(r, i, r->leaf[i].grad, result);
  wf_tape_free(tape);
  wf_free(slope);
}

static void results_make(const problem *p, double **result) {
  for (int i = 0; i < RESULTS; i++)
    result[i] = wf_calloc("test", (size_t)(tokens_of(p, i) * width_of(p, i)) + 1, sizeof(double));
}
static void results_free(double **result) {
  for (int i = 0; i < RESULTS; i++) wf_free(result[i]);
}

/* Attention over the whole sequence, in one process. */
static void whole(const problem *p, wf_dtype dtype, double **result) {
  run r = {.p = p, .dtype = dtype, .n = p->n};
  wf_rows *rows;
  open_run(&r);
  results_make(p, result);
  r.at = wf_alloc("test", (size_t)(p->n + 1) * sizeof *r.at);
  r.of = wf_calloc("test", (size_t)p->n + 1, sizeof *r.of);
  for (int64_t i = 0; i < p->n_rows; i++)
    for (int64_t t = 0; t < p->row[i].len; t++) {
      r.at[p->row[i].begin + t] = p->row[i].begin + t;
      r.of[p->row[i].begin + t] = &p->row[i];
    }
  WF_RANK_OK(wf_rows_create(r.c, p->n_rows, p->row, LANES, &rows));
  wf_run w = {.c = r.c, .rows = rows};
  wf_scope scope = wf_scope_open(r.c);
  differentiate(&r, &w, &(wf_seq_attend_slots){0}, NULL, NULL, result);
  wf_scope_close(r.c, scope);
  wf_rows_free(rows);
  close_run(&r);
}

/* ---- the ranks ---- */

static const char *const ways[] = {"auto", "ring", "gather", "all to all", "usp"};

typedef struct job {
  const problem *p;
  const wf_layout *layout;
  wf_dist_attention way;
  wf_dtype dtype;
  double *const *exact, *const *plain; /* of float64, and of the same type in one process */
  const char *what, *layout_name;
} job;

/* The rank's rows, and which tokens of the problem they are. */
static wf_rows *local_rows(const wf_part *p, run *r) {
  wf_row row[MOST_ROWS * 16];
  int64_t n = 0, begin = 0;
  wf_rows *rows = NULL;
  r->n = p->n_tokens;
  r->at = wf_alloc("test", (size_t)(r->n + 1) * sizeof *r->at);
  r->of = wf_calloc("test", (size_t)r->n + 1, sizeof *r->of);
  for (int k = 0; k < p->n_own; begin += p->tokens[p->own[k++]])
    for (int64_t i = p->first[p->own[k]]; i < p->first[p->own[k] + 1]; i++) {
      wf_row *x = &row[n++];
      *x = p->row[i];
      x->begin += begin;
      for (int64_t j = 0; j < r->p->n_rows; j++) {
        const wf_row *of = &r->p->row[j];
        if (of->lane != x->lane || x->place < of->place || x->place >= of->place + of->len) continue;
        for (int64_t t = 0; t < x->len; t++) {
          r->at[x->begin + t] = of->begin + x->place - of->place + t;
          r->of[x->begin + t] = of;
        }
      }
      x->lane += k * p->n_lanes;
    }
  WF_RANK_OK(wf_rows_create(r->c, n, row, p->n_own * p->n_lanes, &rows));
  return rows;
}

static void compare(const job *j, wf_comm *comm, double *const *result) {
  double worst = 0, one = 0;
  for (int i = 0; i < RESULTS; i++) {
    int64_t n = tokens_of(j->p, i) * width_of(j->p, i);
    wf_error e = wf_compare(n, result[i], j->exact[i]), p = wf_compare(n, j->plain[i], j->exact[i]);
    double most = 0;
    for (int64_t k = 0; k < n; k++) most = fmax(most, fabs(j->exact[i][k]));
    if (most < 1e-6) continue; /* nothing to be relative to: the gradient of a softmax over one key */
    bool good = j->dtype == WF_F64 ? e.err2 <= 1e-10 && e.errmax <= 1e-9
                                   : e.err2 <= 2 * p.err2 + 1e-8 && e.errmax <= 2 * p.errmax + 1e-7;
    WF_RANK_ASSERT(good, "%s: %s: err2 %.2e errmax %.2e at %lld; one process %.2e %.2e", j->what, names[i],
                   e.err2, e.errmax, (long long)e.worst, p.err2, p.errmax);
    worst = fmax(worst, e.err2), one = fmax(one, p.err2);
  }
  if (wf_comm_rank(comm)) return;
  const shape *s = &j->p->s;
  wf_matrix_note(s->window                      ? "attend, window"
                 : s->kind == WF_ATTEND_SIGMOID ? "attend, sigmoid"
                 : s->gates                     ? "attend, gates"
                                                : "attend",
                 j->layout_name, ways[j->way],
                 j->p->n_rows > LANES ? "packed"
                 : j->p->n_rows       ? "whole"
                                      : "none",
                 j->dtype == WF_F64 ? "f64" : "f32", wf_comm_size(comm), worst, one);
}

static wf_attend_size size_of(const problem *p, wf_dtype dtype) {
  const shape *s = &p->s;
  return (wf_attend_size){.heads = s->H,
                          .kv_heads = s->Hk,
                          .K = s->K,
                          .V = s->V,
                          .number = (int64_t)wf_dtype_size(dtype),
                          .gates = s->gates,
                          .bias = s->alibi,
                          .lse = true};
}

static void check_bytes(const job *j, wf_part *part, const sent *bytes) {
  if (j->p->s.window) return;
  wf_attend_size z = size_of(j->p, j->dtype);
  wf_keys k = {.where = WF_KEYS_TOKENS};
  wf_attend_choice how;
  sent said;
  WF_RANK_OK(wf_attend_way(part, &k, &z, &how));
  WF_RANK_OK(wf_attend_bytes(part, &k, &z, how, &said.forward, &said.backward));
  WF_RANK_ASSERT(said.forward == bytes->forward && said.backward == bytes->backward,
                 "%s: sent %lld and %lld bytes, not %lld and %lld", j->what, (long long)bytes->forward,
                 (long long)bytes->backward, (long long)said.forward, (long long)said.backward);
}

static void on_rank(wf_comm *comm, void *arg) {
  const job *j = arg;
  const shape *s = &j->p->s;
  wf_dist dist = {.comm = comm, .layout = j->layout, .attention = j->way};
  run r = {.p = j->p, .dtype = j->dtype};
  wf_part *part;
  wf_state_spec spec = {0};
  wf_state *state;
  wf_seq_attend_slots slots;
  double *result[RESULTS];
  open_run(&r);
  results_make(j->p, result);
  WF_RANK_OK(wf_part_create(&dist, j->p->n_rows, j->p->row, LANES, 0, 0, &part));
  wf_rows *rows = local_rows(part, &r);
  wf_build b = {.state = &spec, .prefix = "test"};
  WF_RANK_OK(wf_seq_attend_state(&b, s->Hk, s->K, s->V, s->gates ? s->H : 0, s->window, &slots));
  WF_RANK_OK(wf_state_create(r.c, &spec, j->dtype, part->n_own * LANES, 0, true, &state));
  wf_run w = {.c = r.c, .rows = rows, .state = state, .part = part};
  wf_scope scope = wf_scope_open(r.c);
  sent bytes = {0};
  differentiate(&r, &w, &slots, comm, &bytes, result);
  check_bytes(j, part, &bytes);
  for (int i = 0; i < RESULTS; i++) {
    int64_t n = tokens_of(j->p, i) * width_of(j->p, i);
    wf_tensor *x = wf_from_host(r.c, "test", WF_F64, WF_SHAPE(n), result[i]);
    WF_RANK_OK(wf_comm_all_reduce(comm, x, WF_REDUCE_SUM, NULL));
    WF_RANK_OK(wf_to_host(x, result[i]));
  }
  compare(j, comm, result);
  wf_scope_close(r.c, scope);
  wf_state_free(state);
  wf_state_spec_free(&spec);
  wf_rows_free(rows);
  wf_part_free(part);
  results_free(result);
  close_run(&r);
}

static const int64_t shares[][16] = {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                     {5, 1, 0, 9, 2, 1, 0, 7, 1, 3, 0, 2, 1, 1, 4, 1}};
static const int counts[] = {1, 2, 3, 4, 5, 8};
static const char *const layouts[] = {"contiguous", "zigzag", "contiguous uneven", "zigzag uneven"};

static void every_layout(const problem *p, wf_dist_attention way, wf_dtype dtype) {
  double *exact[RESULTS], *plain[RESULTS];
  whole(p, WF_F64, exact);
  whole(p, dtype, plain);
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
    for (int k = 0; k < 4; k++) {
      char what[120];
      wf_layout *layout;
      if (way == WF_ATTENTION_ALL_TO_ALL && p->s.H % counts[i]) continue;
      if (way == WF_ATTENTION_USP && counts[i] != 4 && counts[i] != 8) continue; /* no teams */
      ck_assert_int_eq(wf_layout_create(k % 2 ? WF_LAYOUT_ZIGZAG : WF_LAYOUT_CONTIGUOUS, counts[i],
                                        shares[k / 2], &layout),
                       WF_OK);
      snprintf(what, sizeof what, "%s, %s, %s%s", ways[way], wf_dtype_name(dtype),
               k % 2 ? "zigzag" : "contiguous", k / 2 ? ", uneven" : "");
      wf_ranks_run(counts[i], on_rank, &(job){p, layout, way, dtype, exact, plain, what, layouts[k]});
      wf_layout_free(layout);
    }
  results_free(exact);
  results_free(plain);
}

static const int64_t long_ones[LANES][8] = {{70}, {45}, {70}},
                     packed[LANES][8] = {{1, 9, 1, 1, 38, 5}, {60}, {1, 1, 30, 2, 2}},
                     nothing[LANES][8] = {{0}};
static const shape grouped = {.H = 24, .Hk = 8, .K = 5, .V = 3, .sink = true, .softcap = 3},
                   single = {.H = 24, .Hk = 1, .K = 4, .V = 4, .alibi = true},
                   gated = {.H = 8, .Hk = 2, .K = 4, .V = 5, .gates = true, .sink = true},
                   both = {.H = 24, .Hk = 6, .K = 3, .V = 2, .gates = true, .alibi = true},
                   sigmoid = {.H = 8, .Hk = 8, .K = 4, .V = 4, .kind = WF_ATTEND_SIGMOID},
                   window = {.H = 6, .Hk = 3, .K = 4, .V = 4, .window = 11, .sink = true},
                   narrow = {.H = 3, .Hk = 3, .K = 4, .V = 4, .window = 2, .gates = true, .alibi = true};

/* _i is a way. */
START_TEST(whole_documents) {
  const shape *const all[] = {&grouped, &single, &gated, &both, &sigmoid};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    problem p = make_problem(all[i], i % 2 ? packed : long_ones);
    every_layout(&p, (wf_dist_attention)_i, WF_F64);
  }
}
END_TEST

START_TEST(packed_documents) {
  const shape *const all[] = {&grouped, &both, &sigmoid};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    problem p = make_problem(all[i], packed);
    every_layout(&p, (wf_dist_attention)_i, WF_F64);
  }
}
END_TEST

START_TEST(windows) {
  const shape *const all[] = {&window, &narrow};
  for (int i = 0; i < 4; i++) {
    problem p = make_problem(all[i / 2], i % 2 ? packed : long_ones);
    every_layout(&p, WF_ATTENTION_AUTO, WF_F64);
    if (wf_matrix_whole()) every_layout(&p, WF_ATTENTION_AUTO, WF_F32);
  }
}
END_TEST

START_TEST(no_tokens) {
  problem p = make_problem(&gated, nothing);
  every_layout(&p, (wf_dist_attention)_i, WF_F64);
}
END_TEST

START_TEST(in_float32) {
  const shape *const all[] = {&grouped, &both, &sigmoid};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    for (size_t k = 0; k < 2; k++) {
      problem p = make_problem(all[i], k ? packed : long_ones);
      if (wf_matrix_whole() || k == i % 2) every_layout(&p, (wf_dist_attention)_i, WF_F32);
    }
}
END_TEST

/* Long enough for calls in several parts, between which messages are looked after. */
START_TEST(in_parts) {
  static const int64_t docs[LANES][8] = {{3, 2300}, {100}};
  problem p = make_problem(&(shape){.H = 8, .Hk = 1, .K = 16, .V = 16, .alibi = true}, docs);
  double *exact[RESULTS];
  whole(&p, WF_F64, exact);
  for (int i = 0; i < 2; i++) {
    wf_layout *layout;
    ck_assert_int_eq(wf_layout_create(WF_LAYOUT_ZIGZAG, 2 + i, NULL, &layout), WF_OK);
    wf_ranks_run(2 + i, on_rank,
                 &(job){&p, layout, WF_ATTENTION_RING, WF_F64, exact, exact, "in parts", layouts[1]});
    wf_layout_free(layout);
  }
  results_free(exact);
}
END_TEST

/* ---- formulas ---- */

/* One document over P equal parts of c tokens: what rank r sends, in keys (forward and gradients). */
static void dense(wf_dist_attention way, bool zigzag, int64_t c, int r, int P, int64_t *keys,
                  int64_t *gradients) {
  bool ring = way == WF_ATTENTION_RING;
  if (zigzag && ring) { /* all go round but the last segment, which is rank 0's */
    *keys = (P - 1) * c - (r + 1 < P ? c / 2 : 0);
    *gradients = (P - 1) * c - (r > 0 ? c / 2 : 0);
  } else if (ring) { /* to the last rank */
    *keys = r + 1 < P ? (r + 1) * c : 0;
    *gradients = r * c;
  } else if (zigzag) { /* the early segment to all, the late one to the ranks whose own is later */
    *keys = (P - 1) * c / 2 + r * c / 2;
    *gradients = r * (c / 2) + (P - 1 - r) * c;
  } else {
    *keys = (P - 1 - r) * c;
    *gradients = r * c;
  }
}

static void formulas_on(wf_comm *comm, void *arg) {
  const bool zigzag = *(bool *)arg;
  int P = wf_comm_size(comm), r = wf_comm_rank(comm);
  const int64_t c = 6, n = 4;
  wf_layout *layout;
  wf_part *part;
  WF_RANK_OK(wf_layout_create(zigzag ? WF_LAYOUT_ZIGZAG : WF_LAYOUT_CONTIGUOUS, P, NULL, &layout));
  wf_dist dist = {.comm = comm, .layout = layout};
  wf_row row = {.len = P * c};
  WF_RANK_OK(wf_part_create(&dist, 1, &row, 1, 0, 0, &part));
  wf_attend_size z = {.heads = 2 * P, .kv_heads = 2, .K = 8, .V = 8, .number = n};
  wf_keys k = {.where = WF_KEYS_TOKENS};
  int64_t forward, backward, keys, gradients, per_key = 2 * z.kv_heads * z.K * n;
  const wf_dist_attention both_ways[] = {WF_ATTENTION_RING, WF_ATTENTION_GATHER};
  for (int i = 0; i < 2; i++) {
    dense(both_ways[i], zigzag, c, r, P, &keys, &gradients);
    int64_t back = (i ? gradients : keys + gradients) * per_key;
    WF_RANK_OK(wf_attend_bytes(part, &k, &z, (wf_attend_choice){both_ways[i], 1}, &forward, &backward));
    WF_RANK_ASSERT(forward == keys * per_key && backward == back,
                   "%s: %lld and %lld bytes, not %lld and %lld", ways[both_ways[i]], (long long)forward,
                   (long long)backward, (long long)(keys * per_key), (long long)back);
    WF_RANK_ASSERT(forward <= (P - 1) * c * per_key, "more than the whole sequence");
  }
  int64_t share = (P - 1) * c * z.K * n, most = z.kv_heads > P ? z.kv_heads / P : 1;
  WF_RANK_OK(
      wf_attend_bytes(part, &k, &z, (wf_attend_choice){WF_ATTENTION_ALL_TO_ALL, P}, &forward, &backward));
  if (z.kv_heads % P == 0 || P % z.kv_heads == 0)
    WF_RANK_ASSERT(forward == share * (2 * z.heads / P + 2 * most) && backward == forward,
                   "all to all: %lld and %lld bytes", (long long)forward, (long long)backward);
  wf_part_free(part);
  wf_layout_free(layout);
}

START_TEST(formulas) {
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
    for (int zigzag = 0; zigzag < 2; zigzag++) wf_ranks_run(counts[i], formulas_on, &(bool){zigzag});
}
END_TEST

static void refused(wf_comm *comm, void *arg) {
  wf_part *part;
  wf_attend_choice how;
  wf_layout *layout;
  (void)arg;
  WF_RANK_OK(wf_layout_create(WF_LAYOUT_ZIGZAG, wf_comm_size(comm), NULL, &layout));
  wf_dist dist = {.comm = comm, .layout = layout, .attention = WF_ATTENTION_ALL_TO_ALL};
  wf_row row = {.len = 9};
  WF_RANK_OK(wf_part_create(&dist, 1, &row, 1, 0, 0, &part));
  wf_attend_size z = {.heads = 4, .kv_heads = 2, .K = 8, .V = 8, .number = 4};
  WF_RANK_ASSERT(wf_attend_way(part, &(wf_keys){0}, &z, &how) == WF_EINVAL, "3 ranks took 4 heads");
  WF_RANK_ASSERT(strstr(wf_error_message(), "3 ranks do not divide 4 heads"), "%s", wf_error_message());
  dist.attention = WF_ATTENTION_USP;
  WF_RANK_ASSERT(wf_attend_way(part, &(wf_keys){0}, &z, &how) == WF_EINVAL, "3 ranks became teams");
  wf_part_free(part);
  row = (wf_row){.len = 9, .pos = 3, .place = 3, .flags = WF_ROW_TAKES};
  WF_RANK_OK(wf_part_create(&dist, 1, &row, 1, 0, 0, &part));
  const wf_ring_plan *ring;
  const wf_keys_plan *keys;
  WF_RANK_ASSERT(wf_ring_make(part, &(wf_keys){0}, &ring) == WF_EUNSUPPORTED, "keys of no cache");
  WF_RANK_ASSERT(wf_keys_fetch(part, &(wf_keys){0}, &keys) == WF_EUNSUPPORTED, "keys of no cache");
  wf_part_free(part);
  wf_layout_free(layout);
}

START_TEST(what_cannot_be) {
  wf_ranks_run(3, refused, NULL);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("ring");
  TCase *t = tcase_create("ring");
  tcase_set_timeout(t, 300);
  tcase_add_loop_test(t, whole_documents, WF_ATTENTION_AUTO, WF_ATTENTION_USP + 1);
  tcase_add_loop_test(t, packed_documents, WF_ATTENTION_RING, WF_ATTENTION_USP + 1);
  tcase_add_loop_test(t, no_tokens, WF_ATTENTION_AUTO, WF_ATTENTION_USP + 1);
  tcase_add_loop_test(t, in_float32, WF_ATTENTION_RING, WF_ATTENTION_USP + 1);
  tcase_add_test(t, in_parts);
  tcase_add_test(t, windows);
  tcase_add_test(t, formulas);
  tcase_add_test(t, what_cannot_be);
  suite_add_tcase(s, t);
  return s;
}

WF_RANKS_MAIN(suite)
