/* What ranks make of a model's gradients and of the optimiser's state: the sums of every rank's batch, whole
 * or divided, whatever becomes final when (accumulation, pieces of a sequence, recomputation, tied and shared
 * weights); and checkpoints that do not show how many ranks wrote them. */
#include <math.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/rng.h"
#include "experiments/checkpoint.h"
#include "layers/stream.h"
#include "tests/dist/ranks.h"
#include "tests/temp_dir.h"

#define OK(expr) WF_RANK_OK(expr)

enum { VOCAB = 19, LENGTH = 30, LANES = 2 };

typedef struct model {
  wf_config cfg;
  wf_device *dev;
  wf_ctx *c;
  wf_model *m;
} model;

/* Blocks that share weights, a tied head, and the groups of a matrix optimiser. */
static void open_model(model *x, bool recompute, const char *optimizer) {
  char text[2000];
  snprintf(
      text, sizeof text,
      "run: {precision: f64}\ndata: {store: none.h5, seq_len: 30}\n"
      "model:\n  d_model: 12\n  init_std: 0.4\n  vocab: 19\n  tie_embeddings: true\n  blocks:\n"
      "    - {repeat: 2, share: one, mixer: {type: simple_gla, heads: 2}, mlp: {type: swiglu, width: 20}}\n"
      "    - {mixer: {type: gated_deltanet, heads: 2}}\n"
      "    - {mixer: {type: attention, heads: 2}, mlp: {type: gelu, width: 20}}\n"
      "train: {steps: 1, batch_tokens: 60, recompute: %s, optimizer: {type: %s, lr: 0.01}, "
      "schedule: {type: constant}}\n",
      recompute ? "true" : "false", optimizer);
  OK(wf_config_parse(&x->cfg, "test", text, strlen(text), NULL, 0, wf_types));
  OK(wf_assemble_device(&x->cfg, &x->dev));
  OK(wf_ctx_create(x->dev, &x->c));
  OK(wf_assemble_model(x->c, &x->cfg, VOCAB, &x->m));
  OK(wf_params_init(wf_model_params(x->m), 7));
}

static void close_model(model *x) {
  wf_model_free(x->m);
  wf_ctx_free(x->c);
  wf_device_close(x->dev);
  wf_config_free(&x->cfg);
}

/* ---- gradients ---- */

typedef struct course {
  bool divided, recompute;
  int64_t bytes, stream;
  int parts; /* micro-batches */
  const char *optimizer;
} course;

/* One micro-batch of one rank: rank 2 has lanes of no tokens. */
static void add_gradient(model *x, const course *k, int rank, int part, bool last) {
  wf_row row[LANES];
  int32_t ids[LANES * LENGTH], labels[LANES * LENGTH];
  wf_tokens t = {.n_lanes = LANES, .row = row, .ids = ids, .labels = labels};
  wf_rng_key key = wf_rng_key_make((uint64_t)(100 * rank + part), "test", "ids");
  for (int lane = 0; lane < LANES && rank != 2; lane++) {
    int64_t n = LENGTH - 7 * lane;
    row[t.n_rows++] = (wf_row){.begin = t.n_tokens, .len = n, .lane = lane};
    t.n_tokens += n;
  }
  for (int64_t i = 0; i < t.n_tokens; i++) {
    ids[i] = (int32_t)wf_rng_below(key, (uint64_t)(2 * i), VOCAB);
    labels[i] = (int32_t)wf_rng_below(key, (uint64_t)(2 * i + 1), VOCAB);
  }
  double loss;
  wf_step step = {.train = true, .seed = 3, .stream = k->stream};
  OK(wf_step_gradient(x->m, &step, &t, 1, last, &loss));
}

/* A parameter's leaf between the tape and the buckets. */
typedef struct witness {
  void (*final)(void *arg, wf_leaf *leaf);
  void *arg;
  const wf_buckets *b;
  int started; /* buckets under way when it became final; -1: not yet */
} witness;

static void see(void *arg, wf_leaf *leaf) {
  witness *w = arg;
  WF_RANK_ASSERT(w->started < 0, "final twice");
  w->started = w->b->started;
  w->final(w->arg, leaf);
}

/* The gradients summed over all ranks by one model, [numel] in the order of groups. */
static double *all_gradients(const course *k, int ranks) {
  model x;
  open_model(&x, k->recompute, k->optimizer);
  wf_params *ps = wf_model_params(x.m);
  wf_params_reset(ps);
  wf_params_hold(ps);
  for (int i = 0; i < ranks * k->parts; i++)
    add_gradient(&x, k, i / k->parts, i % k->parts, i == ranks * k->parts - 1);
  double *all = wf_calloc("test", (size_t)ps->numel, sizeof *all), *at = all;
  for (int g = 0; g < ps->n_groups; at += ps->group[g++].numel) OK(wf_to_host(ps->group[g].grad, at));
  close_model(&x);
  return all;
}

static void compare(const wf_tensor *x, const double *want, const char *what) {
  const double *have = wf_data(x);
  for (int64_t i = 0; i < wf_numel(x); i++)
    WF_RANK_ASSERT(fabs(have[i] - want[i]) <= 1e-11 * (1 + fabs(want[i])),
                   "%s: element %lld is %.17g, not %.17g", what, (long long)i, have[i], want[i]);
}

static void summed(wf_comm *c, void *arg) {
  const course *k = arg;
  int rank = wf_comm_rank(c), size = wf_comm_size(c);
  double *want = all_gradients(k, size);
  model x;
  open_model(&x, k->recompute, k->optimizer);
  wf_params *ps = wf_model_params(x.m);
  wf_shards s;
  OK(wf_shards_open(c, x.m, k->divided, k->bytes, &s));
  for (int step = 0; step < 2; step++) {
    wf_comm_counts before = wf_comm_count(c);
    wf_params_reset(ps);
    wf_params_hold(ps);
    witness first = {.started = -1}, last = {.started = -1};
    wf_leaf *leaves[] = {&ps->param[0]->leaf, &ps->param[ps->n - 1]->leaf};
    for (int i = 0; i < 2 && s.buckets; i++) {
      witness *w = i ? &last : &first;
      *w = (witness){leaves[i]->final, leaves[i]->arg, s.buckets, -1};
      leaves[i]->final = see;
      leaves[i]->arg = w;
    }
    for (int i = 0; i < k->parts; i++) {
      WF_RANK_ASSERT(first.started < 0 && last.started < 0, "final before the last part");
      add_gradient(&x, k, rank, i, i == k->parts - 1);
    }
    if (s.buckets) { /* the embedding, the head too, comes when all else is under way */
      WF_RANK_ASSERT(first.started >= s.buckets->n - 1, "%d of %d buckets", first.started, s.buckets->n);
      WF_RANK_ASSERT(last.started == 0, "%d before the last parameter", last.started);
      for (int i = 0; i < 2; i++) {
        leaves[i]->final = (i ? &last : &first)->final;
        leaves[i]->arg = (i ? &last : &first)->arg;
      }
    }
    OK(wf_shards_sum(&s));
    OK(wf_shards_spread(&s));
    int64_t bytes = wf_comm_count(c).call_bytes - before.call_bytes;
    WF_RANK_ASSERT(bytes == (s.buckets ? wf_shards_bytes(&s) : 0), "%lld bytes, not %lld", (long long)bytes,
                   (long long)wf_shards_bytes(&s));
    const double *at = want;
    double sumsq = 0;
    for (int64_t i = 0; i < ps->numel; i++) sumsq += want[i] * want[i];
    for (int g = 0; g < ps->n_groups; at += ps->group[g++].numel) {
      if (!s.divided) compare(s.own.group[g].grad, at, "group");
      for (int i = 0; s.divided && i < s.buckets->n; i++)
        if (s.buckets->bucket[i].flat == g)
          compare(s.buckets->bucket[i].own_grad, at + s.buckets->bucket[i].own, "share");
    }
    wf_grad_norm norm;
    OK(wf_shards_measure(x.c, &s, 1, 0, &norm));
    WF_RANK_ASSERT(fabs(norm.norm - sqrt(sumsq)) <= 1e-11 * sqrt(sumsq), "norm %.17g, not %.17g", norm.norm,
                   sqrt(sumsq));
    OK(wf_shards_agree(&s, step, 1, norm.norm));
  }
  wf_shards_close(&s);
  close_model(&x);
  wf_free(want);
}

START_TEST(gradients_are_those_of_all_ranks) {
  static const course all[] = {{true, false, 1, 0, 1, "muon"},     {true, true, 2000, 0, 2, "adamw"},
                               {true, false, 500, 8, 2, "muon"},   {false, true, 1, 8, 1, "adamw"},
                               {false, false, 2000, 0, 3, "muon"}, {true, false, 1 << 30, 0, 1, "adamw"}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    course k = all[i];
    wf_ranks_run(_i + 1, summed, &k);
  }
}
END_TEST

/* ---- agreement and what is bad ---- */

static void disagreeing(wf_comm *c, void *arg) {
  int what = *(int *)arg % 4, rank = wf_comm_rank(c), seen = 0;
  model x;
  open_model(&x, false, "adamw");
  wf_shards s;
  OK(wf_shards_open(c, x.m, *(int *)arg > 3, 1000, &s));
  wf_param_group *g = &wf_model_params(x.m)->group[0];
  if (rank == 1 && what == 2) ((double *)wf_data(g->value))[g->numel / 2] += 1e-15;
  for (int step = 0; step < s.buckets->n; step++) {
    wf_status st = wf_shards_agree(&s, step, rank == 1 && what == 0 ? 2 : 1, rank == 1 && what == 1 ? 3 : 1);
    WF_RANK_ASSERT(st == WF_OK || st == WF_EPEER, "%s", wf_error_message());
    if (st == WF_OK) continue;
    WF_RANK_ASSERT(strstr(wf_error_message(), "the ranks do not agree on the loss"), "%s",
                   wf_error_message());
    seen++;
  }
  WF_RANK_ASSERT(seen == (what == 3 ? 0 : what == 2 ? 1 : s.buckets->n), "%d steps are refused", seen);
  const char *name, *want = s.all.group[1].range[1].name; /* one bad sum: every rank names it */
  for (int i = 0; i < s.own.n; i++) OK(wf_tensor_zero(s.own.group[i].grad));
  OK(wf_shards_find_bad(&s, &name));
  WF_RANK_ASSERT(!name, "%s", name);
  for (int i = 0; i < s.own.n; i++)
    for (int k = 0; k < s.own.group[i].n_ranges; k++) {
      const wf_opt_range *r = &s.own.group[i].range[k];
      if (r->name == want || i > s.own.n / 2) /* and later ones */
        ((double *)wf_data(s.own.group[i].grad))[r->offset + r->numel - 1] = INFINITY;
    }
  OK(wf_shards_find_bad(&s, &name));
  WF_RANK_ASSERT(name && strcmp(name, want) == 0, "%s, not %s", name ? name : "none", want);
  wf_shards_close(&s);
  close_model(&x);
}

START_TEST(ranks_that_differ_are_found) {
  int what = _i;
  wf_ranks_run(3, disagreeing, &what);
}
END_TEST

/* ---- checkpoints ---- */

static double content(const char *name, int state, int64_t i) {
  wf_rng_key key = wf_rng_key_make(5, "test", name);
  return wf_rng_normal(key, (uint64_t)(i + 10000 * state));
}

typedef struct kept {
  model x;
  wf_shards s;
  wf_optimizer *opt;
  wf_ema *ema;
  wf_snapshot snap;
} kept;

static void open_kept(kept *k, wf_comm *c, bool divided, int64_t bytes) {
  open_model(&k->x, false, "muon");
  OK(wf_shards_open(c, k->x.m, divided, bytes, &k->s));
  OK(wf_assemble_optimizer(k->x.c, &k->x.cfg, &k->s.own, &k->opt));
  wf_ema_options o = {0.9, false};
  OK(wf_ema_create(k->x.c, &o, k->s.own.n, k->s.own.group, &k->ema));
  k->snap = (wf_snapshot){
      .params = wf_model_params(k->x.m), .shards = &k->s, .optimizer = k->opt, .ema = k->ema, .step = 12};
}

static void close_kept(kept *k) {
  wf_ema_free(k->ema);
  wf_optimizer_free(k->opt);
  wf_shards_close(&k->s);
  close_model(&k->x);
}

/* Every element that this rank keeps: written, or compared. Returns how many there are. */
static int64_t touch(kept *k, bool write) {
  int64_t seen = 0;
  wf_params *ps = wf_model_params(k->x.m);
  for (int i = 0; i < ps->n; i++) {
    int64_t first, n, at;
    int g = wf_shards_find(&k->s, i, &first, &n, &at, NULL), states = wf_optimizer_n_states(k->opt, g);
    for (int j = 0; j <= states; j++) {
      wf_tensor *t = j < states ? wf_optimizer_state(k->opt, g, j) : wf_ema_average(k->ema, g);
      double *x = wf_data(t);
      for (int64_t e = 0; e < n; e++) {
        double want = content(ps->param[i]->name, j, first + e);
        if (write)
          x[at + e] = want;
        else
          WF_RANK_ASSERT(x[at + e] == want, "%s, state %d, element %lld", ps->param[i]->name, j,
                         (long long)(first + e));
      }
      seen += n;
    }
  }
  return seen;
}

static char whole_path[1024], ours_path[1024];

static void saved(wf_comm *c, void *arg) {
  const int64_t *bytes = arg;
  kept k;
  char *whole, *ours;
  int64_t n, m;
  open_kept(&k, c, true, *bytes);
  double elements = (double)touch(&k, true);
  OK(wf_comm_all_reduce_host(c, WF_F64, &elements, 1, WF_REDUCE_SUM));
  int64_t want = 0;
  for (int i = 0; i < k.s.all.n; i++)
    want += wf_numel(k.s.all.group[i].value) * (k.s.all.group[i].matrix ? 2 : 3);
  WF_RANK_ASSERT((int64_t)elements == want, "%g elements of %lld", elements, (long long)want);
  wf_optimizer_set_steps(k.opt, 12, 1);
  OK(wf_checkpoint_save(ours_path, &k.snap, "config", NULL, 0));
  OK(wf_comm_barrier(c));
  if (wf_comm_rank(c) == 0) {
    OK(wf_file_read(whole_path, 1 << 30, &whole, &n));
    OK(wf_file_read(ours_path, 1 << 30, &ours, &m));
    WF_RANK_ASSERT(n == m && memcmp(whole, ours, (size_t)n) == 0, "%d ranks write other bytes than one",
                   wf_comm_size(c));
    wf_free(whole);
    wf_free(ours);
  }
  close_kept(&k);
  open_kept(&k, c, true, 700); /* and read into other shares */
  OK(wf_checkpoint_load(whole_path, &k.snap));
  touch(&k, false);
  WF_RANK_ASSERT(k.snap.step == 12 && wf_optimizer_steps(k.opt) == 12, "facts");
  close_kept(&k);
}

static void save_whole(wf_comm *c, void *arg) {
  kept k;
  (void)arg;
  open_kept(&k, c, true, 1000);
  touch(&k, true);
  wf_optimizer_set_steps(k.opt, 12, 1);
  OK(wf_checkpoint_save(whole_path, &k.snap, "config", NULL, 0));
  close_kept(&k);
}

START_TEST(checkpoints_do_not_show_ranks) {
  temp_dir_make();
  snprintf(whole_path, sizeof whole_path, "%s", temp_path("whole.h5"));
  snprintf(ours_path, sizeof ours_path, "%s", temp_path("ours.h5"));
  wf_ranks_run(1, save_whole, NULL);
  static const int64_t bytes[] = {1, 1500, 1 << 30};
  for (int n = 1; n <= 5; n++)
    for (int i = 0; i < 3; i++) {
      int64_t each = bytes[i];
      wf_ranks_run(n, saved, &each);
    }
  temp_dir_remove();
}
END_TEST

static void nothing_is_left(void) {
  ck_assert_int_eq(wf_mem_live(), 0);
}

static Suite *suite(void) {
  Suite *s = suite_create("shards");
  TCase *t = tcase_create("shards");
  tcase_add_checked_fixture(t, NULL, nothing_is_left);
  tcase_add_loop_test(t, gradients_are_those_of_all_ranks, 0, 5);
  tcase_add_loop_test(t, ranks_that_differ_are_found, 0, 8);
  tcase_add_test(t, checkpoints_do_not_show_ranks);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
