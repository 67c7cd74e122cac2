/* Buckets of gradients: the sums of every rank's buffers, whole or divided, whatever order parts become final
 * in; the shares; the values gathered; the messages that the header promises. */
#include "dist/buckets.h"
#include "core/memory.h"
#include "core/rng.h"
#include "tests/dist/comm_trial.h"

static const int sizes[] = {1, 2, 3, 4, 5, 8};
enum { N_SIZES = sizeof sizes / sizeof *sizes, FLATS = 3, PARTS = 40, STEPS = 3 };

/* Parameters of three groups, declared in turns; the second is of matrices. Sizes from none to many. */
typedef struct layout {
  int64_t n[FLATS];
  wf_flat_part part[PARTS]; /* in the order of becoming final: the last declared comes first */
} layout;

static void lay_out(layout *l) {
  static const int64_t numel[] = {64, 1, 0, 1000, 7, 333, 16, 48, 5000, 2, 17};
  *l = (layout){0};
  for (int i = 0; i < PARTS; i++) {
    int flat = i % 5 == 3 ? 2 : i % 3 == 1;
    int64_t n = numel[i % 11];
    l->part[PARTS - 1 - i] = (wf_flat_part){flat, l->n[flat], n};
    l->n[flat] += n;
  }
}

typedef struct course {
  bool divided;
  int64_t bytes;
} course;

/* Every element lies in one bucket and one share of it; bounds are where the header says. */
static void check_shares(const wf_buckets *b, const layout *l) {
  int ranks = wf_comm_size(b->comm);
  int64_t covered[FLATS] = {0};
  for (int i = 0; i < b->n; i++) {
    const wf_bucket *k = &b->bucket[i];
    covered[k->flat] += k->n;
    int64_t at = k->begin, most = 0;
    for (int r = 0; r < ranks; r++) {
      int64_t first, n = wf_bucket_overlap(k, r, 0, l->n[k->flat], &first);
      WF_RANK_ASSERT(n == k->share[r] && (n == 0 || first == at), "share %d of bucket %d", r, i);
      bool edge = at == k->begin || at == k->begin + k->n || at % WF_SHARE_ALIGN == 0;
      for (int j = 0; j < PARTS && k->flat == 1; j++) edge |= l->part[j].flat == 1 && l->part[j].begin == at;
      WF_RANK_ASSERT(edge, "share %d of bucket %d begins at %lld", r, i, (long long)at);
      if (n > most) most = n;
      at += n;
    }
    WF_RANK_ASSERT(at == k->begin + k->n, "the shares of bucket %d end at %lld", i, (long long)at);
    if (k->flat != 1)
      WF_RANK_ASSERT(most <= k->n / ranks + WF_SHARE_ALIGN, "a share of %lld of %lld", (long long)most,
                     (long long)k->n);
  }
  for (int f = 0; f < FLATS; f++)
    WF_RANK_ASSERT(covered[f] == l->n[f], "buffer %d: %lld of %lld elements", f, (long long)covered[f],
                   (long long)l->n[f]);
  for (int j = 0; j < PARTS; j++) { /* matrices are whole, and no bucket is left alone with another's parts */
    const wf_bucket *k = &b->bucket[b->of_part[j]];
    int holders = 0;
    int64_t first;
    for (int r = 0; r < ranks; r++)
      holders += wf_bucket_overlap(k, r, l->part[j].begin, l->part[j].n, &first) > 0;
    if (l->part[j].flat == 1) WF_RANK_ASSERT(holders == (l->part[j].n > 0), "matrix %d is cut", j);
  }
}

/* Parts become final in an order of this rank's own. */
static void scramble(int order[PARTS], int rank, int step) {
  wf_rng_key key = wf_rng_key_make((uint64_t)(rank * STEPS + step), "test", "order");
  for (int i = 0; i < PARTS; i++) order[i] = i;
  for (int i = PARTS - 1; i > 0 && step > 0; i--) { /* the first step has the foreseen order */
    int j = (int)wf_rng_below(key, (uint64_t)i, (uint64_t)i + 1), t = order[i];
    order[i] = order[j];
    order[j] = t;
  }
}

static double all_ranks(int size, int64_t i, int step) {
  return reduced(size, i + step, WF_REDUCE_SUM);
}

static void one_step(wf_buckets *b, const layout *l, wf_flat *flat, int step) {
  int rank = wf_comm_rank(b->comm), size = wf_comm_size(b->comm), order[PARTS];
  wf_comm_counts before = wf_comm_count(b->comm);
  for (int f = 0; f < FLATS; f++)
    for (int64_t i = 0; i < l->n[f]; i++) put(flat[f].grad, i, 1e4);
  scramble(order, rank, step);
  for (int i = 0; i < PARTS; i++) {
    if (step == 0 && i == PARTS / 2) /* in that order, sums start on the way */
      WF_RANK_ASSERT(b->started > 0 || b->n <= FLATS, "none of %d buckets has started", b->n);
    const wf_flat_part *p = &l->part[order[i]]; /* written last of all */
    for (int64_t e = p->begin; e < p->begin + p->n; e++)
      put(flat[p->flat].grad, e, value(rank, e + p->flat + step));
    wf_buckets_final(b, order[i]);
  }
  WF_RANK_ASSERT(b->started == b->n, "%d of %d buckets have started", b->started, b->n);
  WF_RANK_OK(wf_buckets_wait(b));
  int64_t calls = 0, bytes = 0;
  for (int j = 0; j < b->n; j++) {
    wf_bucket *k = &b->bucket[j];
    wf_tensor *sum = b->divided ? k->own_grad : k->grad;
    int64_t from = b->divided ? k->own : k->begin;
    for (int64_t i = 0; i < wf_numel(sum); i++) EXPECT(sum, i, all_ranks(size, from + i + k->flat, step));
    for (int64_t i = 0; b->divided && i < wf_numel(sum); i++) /* the update */
      put(k->own_value, i, get(k->own_value, i) + get(sum, i));
    calls += k->n > 0;
    bytes += 4 * k->n;
    if (!b->divided) continue;
    calls += k->n > 0;
    bytes += 4 * k->share[rank];
  }
  WF_RANK_OK(wf_buckets_gather(b));
  wf_comm_counts after = wf_comm_count(b->comm);
  if (size == 1) calls = bytes = 0;
  WF_RANK_ASSERT(after.calls - before.calls == calls && after.call_bytes - before.call_bytes == bytes,
                 "%lld calls, %lld bytes, not %lld and %lld", (long long)(after.calls - before.calls),
                 (long long)(after.call_bytes - before.call_bytes), (long long)calls, (long long)bytes);
  WF_RANK_ASSERT(after.messages == before.messages, "messages");
}

static void steps(wf_comm *c, void *arg) {
  const course *how = arg;
  layout l;
  lay_out(&l);
  bench bench = bench_open(WF_CPU);
  wf_flat flat[FLATS];
  for (int f = 0; f < FLATS; f++) {
    flat[f] = (wf_flat){made(&bench, WF_F32, l.n[f], -1), made(&bench, WF_F32, l.n[f], -1), f == 1};
    for (int64_t i = 0; i < l.n[f]; i++) put(flat[f].value, i, (double)(i % 97));
  }
  wf_buckets *b;
  WF_RANK_OK(wf_buckets_create(bench.ctx, c, FLATS, flat, PARTS, l.part, how->bytes, how->divided, &b));
  check_shares(b, &l);
  for (int step = 0; step < STEPS; step++) one_step(b, &l, flat, step);
  for (int f = 0; f < FLATS; f++)
    for (int64_t i = 0; i < l.n[f]; i++) {
      double want = (double)(i % 97);
      for (int step = 0; step < STEPS && how->divided; step++)
        want += all_ranks(wf_comm_size(c), i + f, step);
      EXPECT(flat[f].value, i, want);
    }
  wf_buckets_free(b);
  bench_close(&bench);
}

START_TEST(sums) {
  static const int64_t bytes[] = {1, 1000, 20000, 1 << 30};
  for (int k = 0; k < 8; k++) {
    course how = {k & 1, bytes[k / 2]};
    wf_ranks_run(sizes[_i], steps, &how);
  }
}
END_TEST

/* All ranks are given about as many matrices, also when a bucket has but one. */
static void balanced(wf_comm *c, void *arg) {
  enum { MATRICES = 61 };
  (void)arg;
  bench bench = bench_open(WF_CPU);
  wf_flat_part part[MATRICES];
  int64_t n = 0, has[MAX_RANKS] = {0}, least = INT64_MAX, most = 0;
  for (int i = MATRICES; i-- > 0; n += part[i].n) part[i] = (wf_flat_part){0, n, 100 + i % 4 * 50};
  wf_flat flat = {made(&bench, WF_F32, n, -1), made(&bench, WF_F32, n, -1), true};
  for (int64_t bytes = 1; bytes < 5000; bytes *= 8) {
    wf_buckets *b;
    memset(has, 0, sizeof has);
    WF_RANK_OK(wf_buckets_create(bench.ctx, c, 1, &flat, MATRICES, part, bytes, true, &b));
    for (int i = 0; i < b->n; i++)
      for (int r = 0; r < wf_comm_size(c); r++) has[r] += b->bucket[i].share[r];
    least = INT64_MAX, most = 0;
    for (int r = 0; r < wf_comm_size(c); r++) {
      least = has[r] < least ? has[r] : least;
      most = has[r] > most ? has[r] : most;
    }
    WF_RANK_ASSERT(most - least <= 750, "buckets of %lld: from %lld to %lld elements", (long long)bytes,
                   (long long)least, (long long)most);
    wf_buckets_free(b);
  }
  bench_close(&bench);
}

START_TEST(matrices_are_divided_evenly) {
  wf_ranks_run(sizes[_i], balanced, NULL);
}
END_TEST

/* What goes wrong is said: a step whose parts are not all final, parts that do not stand side by side. */
static void mistakes(wf_comm *c, void *arg) {
  (void)arg;
  bench bench = bench_open(WF_CPU);
  wf_flat flat = {made(&bench, WF_F32, 30, 0), made(&bench, WF_F32, 30, 0), false};
  wf_flat_part part[] = {{0, 20, 10}, {0, 0, 20}}, apart[] = {{0, 20, 10}, {0, 0, 10}};
  wf_buckets *b;
  WF_RANK_ASSERT(wf_buckets_create(bench.ctx, c, 1, &flat, 2, apart, 1000, true, &b) == WF_EINVAL, "a gap");
  WF_RANK_OK(wf_buckets_create(bench.ctx, c, 1, &flat, 2, part, 1000, true, &b));
  wf_buckets_final(b, 0);
  WF_RANK_ASSERT(wf_buckets_wait(b) == WF_EINTERNAL, "a part is missing");
  wf_buckets_final(b, 1); /* and the next step is right again */
  wf_buckets_final(b, 0);
  WF_RANK_OK(wf_buckets_wait(b));
  wf_buckets_free(b);
  bench_close(&bench);
}

START_TEST(mistakes_are_found) {
  wf_ranks_run(sizes[_i], mistakes, NULL);
}
END_TEST

static void nothing_is_left(void) {
  if (!wf_ranks_launched()) ck_assert_int_eq(wf_mem_live(), 0);
}

static Suite *suite(void) {
  Suite *s = suite_create("buckets");
  TCase *t = tcase_create("buckets");
  tcase_add_checked_fixture(t, NULL, nothing_is_left);
  tcase_add_loop_test(t, sums, 0, N_SIZES);
  tcase_add_loop_test(t, matrices_are_divided_evenly, 0, N_SIZES);
  tcase_add_loop_test(t, mistakes_are_found, 0, N_SIZES);
  suite_add_tcase(s, t);
  return s;
}

WF_RANKS_MAIN(suite)
