/* The gradient of a model whose sequences are cut over ranks that exchange messages; see contract.h. */
#include "core/memory.h"
#include "autograd/gradcheck.h"
#include "tests/dist/ranks.h"
#include "tests/layers/contract.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define OK(expr) WF_RANK_OK(expr)

typedef struct shared {
  int n_blocks;
  const char *const *blocks;
  const wf_trial_options *o;
  wf_dist by;
  int64_t stream, numel;
  pthread_mutex_t lock;
  double *grad, loss; /* sums over ranks */
} shared;

static void one_rank(wf_comm *comm, void *arg) {
  shared *s = arg;
  wf_cost cost = wf_cost_default();
  wf_dist dist = s->by;
  dist.comm = comm;
  dist.cost = &cost;
  wf_trial x;
  wf_trial_make(&x, s->n_blocks, s->blocks, s->o);
  x.dist = &dist;
  double *grad = wf_calloc("test", (size_t)x.numel, sizeof *grad), loss;
  wf_trial_gradient(&x, s->stream, grad, &loss);
  if (cost.serial > 0 && dist.serial != WF_SERIAL_AUTO)
    WF_RANK_ASSERT((cost.shards > 0) == (dist.serial == WF_SERIAL_ALL_TO_ALL), "%lld shards by way %d",
                   (long long)cost.shards, (int)dist.serial);
  if (dist.relayout == WF_RELAYOUT_ALWAYS)
    WF_RANK_ASSERT((cost.moved > 0) == (dist.layout->n_segments > wf_comm_size(comm)), "%lld mixers moved",
                   (long long)cost.moved);
  wf_ranks_sum(comm, x.numel, grad);
  wf_ranks_sum(comm, 1, &loss);
  pthread_mutex_lock(&s->lock);
  s->loss += loss;
  for (int64_t i = 0; i < x.numel; i++) s->grad[i] += grad[i];
  pthread_mutex_unlock(&s->lock);
  wf_free(grad);
  wf_trial_free(&x);
}

/* Uneven parts, one shorter than any convolution, one without tokens. */
static const int64_t shares[][16] = {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                     {9, 1, 5, 2, 0, 3, 7, 1, 1, 2, 1, 4, 1, 1, 3, 1}};

/* One case of the matrix. */
typedef struct over_ranks {
  int n, uneven;
  wf_layout_kind kind;
  int64_t stream;
} over_ranks;

/* What the blocks are, for the table: the mixers' names. */
static void name_of(int n_blocks, const char *const *blocks, char out[160]) {
  int at = 0;
  for (int i = 0; i < n_blocks; i++)
    at += snprintf(out + at, (size_t)(160 - at), "%s%.*s", i ? ", " : "", (int)strcspn(blocks[i], " "),
                   blocks[i]);
}

/* The gradient over ranks, [numel] to be freed. */
static double *over_ranks_gradient(int n_blocks, const char *const *blocks, const wf_trial_options *o,
                                   const over_ranks *w, const wf_dist *by, int64_t numel, double *loss) {
  wf_layout *layout;
  OK(wf_layout_create(w->kind, w->n, shares[w->uneven], &layout));
  shared s = {.n_blocks = n_blocks, .blocks = blocks, .o = o, .by = *by, .stream = w->stream};
  s.by.layout = layout;
  s.grad = wf_calloc("test", (size_t)numel, sizeof *s.grad);
  pthread_mutex_init(&s.lock, NULL);
  wf_ranks_run(w->n, one_rank, &s);
  pthread_mutex_destroy(&s.lock);
  wf_layout_free(layout);
  *loss = s.loss;
  return s.grad;
}

static void note(int n_blocks, const char *const *blocks, const wf_trial_options *o, const over_ranks *w,
                 const wf_dist *by, double error, double plain) {
  static const char *const ways[] = {"auto", "ring", "gather", "all to all", "usp"};
  static const char *const transports[] = {"auto", "serial", "pipe", "relay", "gather", "log"};
  static const char *const serials[] = {"auto", "turns", "all to all"};
  char what[160], layout[40], rows[60], way[80];
  name_of(n_blocks, blocks, what);
  snprintf(layout, sizeof layout, "%s%s", w->kind == WF_LAYOUT_ZIGZAG ? "zigzag" : "contiguous",
           w->uneven ? " uneven" : "");
  snprintf(rows, sizeof rows, "%s%s%s%s", o->packed ? "packed" : "whole", w->stream ? ", streamed" : "",
           o->recompute ? ", recomputed" : "", o->dropout > 0 ? ", dropout" : "");
  snprintf(way, sizeof way, "scan %s, attend %s, serial %s%s", transports[by->transport], ways[by->attention],
           serials[by->serial], by->relayout == WF_RELAYOUT_ALWAYS ? ", moved" : "");
  wf_matrix_note(what, layout, way, rows, o->dtype == WF_F64 ? "f64" : "f32", w->n, error, plain);
}

static void ranks_agree(int n_blocks, const char *const *blocks, const wf_trial_options *o,
                        const over_ranks *w, const wf_dist *by, wf_trial *x, const double *plain,
                        double loss) {
  double sum;
  if (!wf_ranks_fit(w->n)) return;
  double *grad = over_ranks_gradient(n_blocks, blocks, o, w, by, x->numel, &sum);
  char what[120];
  snprintf(what, sizeof what,
           "%d ranks, %s, %s, attention %d, transport %d, serial %d, stream %lld, packed %d, recompute %d",
           w->n, w->kind == WF_LAYOUT_ZIGZAG ? "zigzag" : "contiguous", w->uneven ? "uneven" : "even",
           (int)by->attention, (int)by->transport, (int)by->serial, (long long)w->stream, o->packed,
           o->recompute);
  ck_assert_msg(fabs(sum - loss) <= 1e-10 * fabs(loss), "%s: loss %.17g, not %.17g", what, sum, loss);
  note(n_blocks, blocks, o, w, by, wf_trial_agree(x, what, grad, plain), 0);
  wf_free(grad);
}

static const int *counts_of(const wf_dist *by, int *n) {
  static const int some[] = {1, 2, 3, 5, 4, 8}, sixths[] = {1, 2, 3, 6}, teams[] = {4, 6},
                   all[] = {1, 2, 3, 4, 5, 8}, all_sixths[] = {1, 2, 3, 6}, all_teams[] = {4, 6, 8};
  bool whole = wf_matrix_whole(), heads = by->attention == WF_ATTENTION_ALL_TO_ALL;
  if (by->attention == WF_ATTENTION_USP) return *n = whole ? 3 : 2, whole ? all_teams : teams;
  if (heads) return *n = 4, whole ? all_sixths : sixths;
  return *n = whole || by->serial == WF_SERIAL_ALL_TO_ALL || by->relayout == WF_RELAYOUT_ALWAYS ? 6 : 4,
         whole ? all : some;
}

/* Every case, of plain steps; quick tests, and steps with recomputation and dropout, have some of them. */
static void cases_agree(int n_blocks, const char *const *blocks, const wf_trial_options *o, const wf_dist *by,
                        int k, wf_trial *x, const double *plain, double loss) {
  int n;
  const int *ranks = counts_of(by, &n);
  if (wf_matrix_whole() && k < 2) {
    for (int i = 0; i < 8 * n; i++) {
      over_ranks w = {ranks[i / 8], i & 1, i & 2 ? WF_LAYOUT_ZIGZAG : WF_LAYOUT_CONTIGUOUS, i & 4 ? 9 : 0};
      ranks_agree(n_blocks, blocks, o, &w, by, x, plain, loss);
    }
    return;
  }
  for (int i = k & 1; i < (n < 4 ? 4 : n); i += 1 + (k > 1)) {
    int p = ranks[i % n];
    over_ranks w[] = {{p, k & 1, WF_LAYOUT_CONTIGUOUS, 0},
                      {p, !(k & 1), WF_LAYOUT_ZIGZAG, 0},
                      {p, k > 1, i & 1 ? WF_LAYOUT_ZIGZAG : WF_LAYOUT_CONTIGUOUS, 9}};
    for (int j = 0; j < 3; j++) ranks_agree(n_blocks, blocks, o, &w[j], by, x, plain, loss);
  }
}

/* The gradient of one process, [numel] to be freed. */
static double *gradient_alone(int n_blocks, const char *const *blocks, wf_trial_options o, wf_dtype dtype,
                              int64_t stream, int64_t *numel) {
  wf_trial x;
  double loss;
  o.dtype = dtype;
  wf_trial_make(&x, n_blocks, blocks, &o);
  double *grad = wf_calloc("test", (size_t)x.numel, sizeof *grad);
  wf_trial_gradient(&x, stream, grad, &loss);
  *numel = x.numel;
  wf_trial_free(&x);
  return grad;
}

/* The error of one process in float32, the largest of 23 models that differ by parts in a million and are
 * taken in pieces of other lengths. One run's says little: a token at which a norm divides by next to nothing
 * amplifies whatever was rounded before it by ten or a hundred, and its size is then a throw of the dice. */
static double error_alone(int n_blocks, const char *const *blocks, wf_trial_options o) {
  double most = 0;
  for (int i = 0; i < 23; i++) {
    int64_t numel;
    o.nudge = i * 0x1p-20;
    double *exact = gradient_alone(n_blocks, blocks, o, WF_F64, 0, &numel),
           *grad = gradient_alone(n_blocks, blocks, o, WF_F32, i, &numel);
    most = fmax(most, wf_compare(numel, grad, exact).err2);
    wf_free(exact);
    wf_free(grad);
  }
  return most;
}

/* In float32 the error of all gradients together (single ones may be sums that cancel) is at most twice that
 * of one process. */
static void float_agrees(int n_blocks, const char *const *blocks, const wf_dist *by) {
  int n;
  const int *ranks = counts_of(by, &n);
  for (int packed = 0; packed < 2; packed++) {
    wf_trial_options o = {.dtype = WF_F32, .packed = packed};
    int64_t numel;
    double *exact = gradient_alone(n_blocks, blocks, o, WF_F64, 0, &numel),
           one = error_alone(n_blocks, blocks, o);
    for (int i = 0; i < 4 * n; i++) {
      over_ranks w = {ranks[i / 4], i & 1, i & 2 ? WF_LAYOUT_ZIGZAG : WF_LAYOUT_CONTIGUOUS, 0};
      double loss;
      if (!wf_ranks_fit(w.n)) continue;
      double *grad = over_ranks_gradient(n_blocks, blocks, &o, &w, by, numel, &loss);
      double e = wf_compare(numel, grad, exact).err2;
      ck_assert_msg(e <= 2 * one,
                    "%d ranks, layout %d, uneven %d, packed %d: error %.2e, of one process %.2e", w.n,
                    (int)w.kind, w.uneven, packed, e, one);
      note(n_blocks, blocks, &o, &w, by, e, one);
      wf_free(grad);
    }
    wf_free(exact);
  }
}

void wf_trial_ranks_by(int n_blocks, const char *const *blocks, const wf_dist *by) {
  for (int k = 0; k < 4; k++) {
    wf_trial_options o = {.dtype = WF_F64, .dropout = k == 3 ? 0.2 : 0, .packed = k & 1, .recompute = k & 2};
    wf_trial x;
    wf_trial_make(&x, n_blocks, blocks, &o);
    double *plain = wf_calloc("test", (size_t)x.numel, sizeof *plain), loss;
    wf_trial_gradient(&x, 0, plain, &loss);
    cases_agree(n_blocks, blocks, &o, by, k, &x, plain, loss);
    wf_free(plain);
    wf_trial_free(&x);
  }
  if (wf_matrix_whole()) float_agrees(n_blocks, blocks, by);
}

void wf_trial_ranks(int n_blocks, const char *const *blocks) {
  wf_trial_ranks_by(n_blocks, blocks, &(wf_dist){0});
}
