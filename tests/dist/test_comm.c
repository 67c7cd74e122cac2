/* Every call of dist/comm.h against what it says, on 1 to 8 ranks: odd and uneven counts, none at all, every
 * type, calls under way in any order, groups, counts. Under mpirun the same on its processes. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "dist/comm_impl.h"
#include "tests/dist/comm_trial.h"

static const int sizes[] = {1, 2, 3, 4, 5, 8};
static const int64_t lengths[] = {0, 1, 2, 63, 64, 65, 1000, 70001};
enum { N_SIZES = sizeof sizes / sizeof *sizes, N_LENGTHS = sizeof lengths / sizeof *lengths };

static void every_call(wf_comm *c, void *arg) {
  (void)arg;
  for (int d = 0; d < WF_N_DTYPES; d++)
    for (int l = 0; l < N_LENGTHS; l++)
      for (int later = 0; later < 2; later++)
        if (lengths[l] <= 1000 || d == WF_F32) try_all(c, WF_CPU, (wf_dtype)d, lengths[l], later);
}

START_TEST(calls) {
  wf_ranks_run(sizes[_i], every_call, NULL);
}
END_TEST

/* What MPI's ints cannot count goes in pieces: here the most is 7 elements. */
static void in_pieces(wf_comm *c, void *arg) {
  (void)arg;
  c->most = 7;
  for (int l = 0; l < N_LENGTHS - 1; l++)
    for (int later = 0; later < 2; later++) try_all(c, WF_CPU, later ? WF_F32 : WF_I64, lengths[l], later);
}

START_TEST(pieces) {
  wf_ranks_run(sizes[_i], in_pieces, NULL);
}
END_TEST

/* ---- order ---- */

/* Many messages under way, waited for from the last to the first, with a collective started between. */
static void backwards(wf_comm *c, void *arg) {
  (void)arg;
  enum { N = 9 };
  bench b = bench_open(WF_CPU);
  const int size = wf_comm_size(c), rank = wf_comm_rank(c);
  const int next = (rank + 1) % size, before = (rank + size - 1) % size;
  wf_tensor *x[N], *y[N], *sum = made(&b, WF_F64, 50, rank), *most = made(&b, WF_I32, 11, rank);
  wf_pending *sent[N], *received[N], *sums, *mosts;
  for (int i = 0; i < N; i++) {
    x[i] = made(&b, WF_F32, 1 + 100 * i, rank + i);
    y[i] = made(&b, WF_F32, 1 + 100 * i, -1);
    if (i == 3) WF_RANK_OK(wf_comm_all_reduce(c, sum, WF_REDUCE_SUM, &sums));
    WF_RANK_OK(wf_comm_recv(c, y[i], before, &received[i]));
    WF_RANK_OK(wf_comm_send(c, x[i], next, &sent[i]));
    if (i == 5) WF_RANK_OK(wf_comm_all_reduce(c, most, WF_REDUCE_MAX, &mosts));
  }
  WF_RANK_OK(wf_comm_wait(&mosts));
  for (int i = N; i-- > 0;) {
    WF_RANK_OK(wf_comm_wait(&received[i]));
    for (int64_t e = 0; e < wf_numel(y[i]); e++) EXPECT(y[i], e, value(before + i, e));
    wf_comm_poke(c);
  }
  for (int i = 0; i < N; i++) WF_RANK_OK(wf_comm_wait(&sent[i]));
  WF_RANK_OK(wf_comm_wait(&sums));
  for (int64_t e = 0; e < 50; e++) EXPECT(sum, e, reduced(size, e, WF_REDUCE_SUM));
  for (int64_t e = 0; e < 11; e++) EXPECT(most, e, reduced(size, e, WF_REDUCE_MAX));
  bench_close(&b);
}

START_TEST(order) {
  wf_ranks_run(sizes[_i], backwards, NULL);
}
END_TEST

/* Element i of rank r, of very different sizes. */
static double uneven_size(int r, int i) {
  return ldexp(1 + value(r, i) / 128, (i * 5 + r * 11) % 40);
}

/* Threads and virtual ranks add in the order of the ranks, whatever the number of processes. */
static void check_order(wf_comm *c, bench *b, const float *sum, int n) {
  const int size = wf_comm_size(c), rank = wf_comm_rank(c);
  const int64_t all = (int64_t)n * size, own = n;
  int64_t counts[MAX_RANKS];
  int other = 0; /* elements that another order would change */
  wf_tensor *x = wf_empty(b->ctx, "test", WF_F32, 1, &all), *y = wf_empty(b->ctx, "test", WF_F32, 1, &own);
  for (int r = 0; r < size; r++) {
    counts[r] = n;
    for (int i = 0; i < n; i++) put(x, (int64_t)r * n + i, uneven_size(rank, i));
  }
  WF_RANK_OK(wf_comm_reduce_scatter(c, x, counts, y, NULL));
  for (int i = 0; i < n; i++) {
    float up = (float)uneven_size(0, i), down = (float)uneven_size(size - 1, i);
    for (int r = 1; r < size; r++) {
      up += (float)uneven_size(r, i);
      down += (float)uneven_size(size - 1 - r, i);
    }
    other += memcmp(&up, &down, sizeof up) != 0;
    WF_RANK_ASSERT(memcmp(&up, &sum[i], sizeof up) == 0, "all_reduce: element %d is added otherwise", i);
    WF_RANK_ASSERT((double)up == get(y, i), "reduce_scatter: element %d is added otherwise", i);
  }
  WF_RANK_ASSERT(size < 4 || other > n / 20, "only %d elements tell the order", other);
}

/* Sums of numbers of very different sizes: each rank gets the same bytes, and a second time the same again.
 */
static void same_bytes(wf_comm *c, void *arg) {
  (void)arg;
  enum { N = 3001 };
  bench b = bench_open(WF_CPU);
  const int64_t n = N, all = (int64_t)N * wf_comm_size(c);
  int64_t counts[MAX_RANKS];
  for (int i = 0; i < wf_comm_size(c); i++) counts[i] = N;
  wf_tensor *x[2], *every = wf_empty(b.ctx, "test", WF_F32, 1, &all);
  for (int k = 0; k < 2; k++) {
    x[k] = wf_empty(b.ctx, "test", WF_F32, 1, &n);
    for (int i = 0; i < N; i++) put(x[k], i, uneven_size(wf_comm_rank(c), i));
    WF_RANK_OK(wf_comm_all_reduce(c, x[k], WF_REDUCE_SUM, NULL));
  }
  WF_RANK_ASSERT(memcmp(wf_data(x[0]), wf_data(x[1]), N * sizeof(float)) == 0, "two sums of the same differ");
  WF_RANK_OK(wf_comm_all_gather(c, x[0], counts, every, NULL));
  for (int r = 0; r < wf_comm_size(c); r++)
    WF_RANK_ASSERT(memcmp((float *)wf_data(every) + r * N, wf_data(x[0]), N * sizeof(float)) == 0,
                   "rank %d has another sum", r);
  if (strcmp(wf_comm_name(c), "mpi") != 0) check_order(c, &b, wf_data(x[0]), N);
  bench_close(&b);
}

START_TEST(bytes) {
  wf_ranks_run(sizes[_i], same_bytes, NULL);
}
END_TEST

/* ---- groups ---- */

/* Two groups of the ranks, odd and even, in reversed order, at work beside each other and the whole. */
static void groups(wf_comm *c, void *arg) {
  (void)arg;
  const int size = wf_comm_size(c), rank = wf_comm_rank(c), odd = rank % 2;
  wf_comm *half = NULL, *one = NULL;
  WF_RANK_OK(wf_comm_split(c, odd, -rank, &half));
  const int n = (size + 1 - odd) / 2, expected = n - 1 - rank / 2;
  WF_RANK_ASSERT(wf_comm_size(half) == n && wf_comm_rank(half) == expected, "rank %d of %d is %d of %d", rank,
                 size, wf_comm_rank(half), wf_comm_size(half));
  WF_RANK_ASSERT(wf_comm_local_size(half) == n, "all are on this host");
  WF_RANK_ASSERT(strcmp(wf_comm_name(half), wf_comm_name(c)) == 0, "a group of another kind");

  bench b = bench_open(WF_CPU);
  int64_t counts[MAX_RANKS];
  for (int i = 0; i < MAX_RANKS; i++) counts[i] = 1;
  const int64_t members = n;
  wf_tensor *x = wf_empty(b.ctx, "test", WF_I64, WF_SHAPE(1)),
            *y = wf_empty(b.ctx, "test", WF_I64, 1, &members);
  put(x, 0, rank);
  WF_RANK_OK(wf_comm_all_gather(half, x, counts, y, NULL));
  for (int i = 0; i < n; i++) EXPECT(y, i, 2 * (n - 1 - i) + odd);

  /* Equal keys: in the order of the ranks. A group of one. */
  wf_comm *again = NULL;
  WF_RANK_OK(wf_comm_split(half, 0, 7, &again));
  WF_RANK_ASSERT(wf_comm_rank(again) == wf_comm_rank(half), "equal keys change the order");
  WF_RANK_OK(wf_comm_split(again, wf_comm_rank(again), 0, &one));
  WF_RANK_ASSERT(wf_comm_size(one) == 1 && wf_comm_rank(one) == 0, "a group of one has %d",
                 wf_comm_size(one));
  WF_RANK_OK(wf_comm_all_reduce(one, x, WF_REDUCE_SUM, NULL));
  EXPECT(x, 0, rank);
  WF_RANK_OK(wf_comm_all_reduce(again, x, WF_REDUCE_SUM, NULL));
  EXPECT(x, 0, n * (n - 1) + odd * n);
  put(x, 0, 1);
  WF_RANK_OK(wf_comm_all_reduce(c, x, WF_REDUCE_SUM, NULL));
  EXPECT(x, 0, size);
  WF_RANK_ASSERT(wf_comm_split(c, -1, 0, &one) == WF_EINVAL, "a colour below zero");
  wf_comm_free(half); /* before what came from it */
  WF_RANK_OK(wf_comm_barrier(again));
  wf_comm_free(again);
  wf_comm_free(one);
  bench_close(&b);
}

START_TEST(split) {
  wf_ranks_run(sizes[_i], groups, NULL);
}
END_TEST

/* ---- counts ---- */

static void counters(wf_comm *c, void *arg) {
  (void)arg;
  bench b = bench_open(WF_CPU);
  const int size = wf_comm_size(c), rank = wf_comm_rank(c);
  const trial t = {c, &b, WF_F32, 65, true};
  int64_t gathered[MAX_RANKS], all = 0, crossed = 0;
  for (int i = 0; i < size; i++) all += gathered[i] = uneven(&t, i), crossed += crossing(&t, rank, i);
  try_ring(&t);
  try_broadcast(&t);  /* from each */
  try_all_reduce(&t); /* three */
  try_reduce_scatter(&t);
  try_all_gather(&t, true);
  try_all_to_all(&t);
  WF_RANK_OK(wf_comm_barrier(c));
  const trial none = {c, &b, WF_F32, 0, false};
  try_ring(&none);
  try_broadcast(&none);
  try_all_gather(&none, false);
  try_all_to_all(&none);
  const wf_comm_counts got = wf_comm_count(c);
  WF_RANK_ASSERT(got.messages == 1 && got.message_bytes == 4 * 65, "%lld messages of %lld bytes",
                 (long long)got.messages, (long long)got.message_bytes);
  const int64_t calls = size == 1 ? 0 : size + 6,
                bytes = size == 1 ? 0 : 4 * ((size + 3) * 65 + all + gathered[rank] + crossed);
  WF_RANK_ASSERT(got.calls == calls && got.call_bytes == bytes,
                 "%lld calls of %lld bytes instead of %lld of %lld", (long long)got.calls,
                 (long long)got.call_bytes, (long long)calls, (long long)bytes);
  WF_RANK_ASSERT(got.waited > 0, "no time went by");
  WF_RANK_ASSERT(got.busy > 0 && got.busy <= got.waited + 1e-3, "%g s of processor in %g s of waiting",
                 got.busy, got.waited);
  bench_close(&b);
}

START_TEST(counted) {
  wf_ranks_run(sizes[_i], counters, NULL);
}
END_TEST

/* ---- what is refused ---- */

static void refusals(wf_comm *c, void *arg) {
  (void)arg;
  bench b = bench_open(WF_CPU);
  const int size = wf_comm_size(c), rank = wf_comm_rank(c);
  const int64_t many = 2 * size;
  int64_t counts[MAX_RANKS], bad[MAX_RANKS];
  for (int i = 0; i < size; i++) counts[i] = 2, bad[i] = i == 0 ? 3 : 2;
  wf_tensor *x = made(&b, WF_F32, 2, rank), *all = made(&b, WF_F32, many, -1),
            *whole = made(&b, WF_I32, many, -1);
  wf_tensor *strided = wf_view_raw(all, 1, (int64_t[]){2}, (int64_t[]){2}, 0);
  wf_pending *p = NULL;
#define REFUSED(call) WF_RANK_ASSERT((call) == WF_EINVAL && *wf_error_message(), #call " was not refused")
  REFUSED(wf_comm_send(c, x, size, &p));
  REFUSED(wf_comm_recv(c, x, -1, &p));
  REFUSED(wf_comm_send(c, NULL, 0, NULL));
  REFUSED(wf_comm_broadcast(c, x, size, NULL));
  if (size > 1) REFUSED(wf_comm_send(c, strided, 0, &p));
  REFUSED(wf_comm_all_gather(c, x, bad, all, &p));
  REFUSED(wf_comm_all_gather(c, x, counts, whole, &p));
  REFUSED(wf_comm_all_gather(c, x, NULL, all, &p));
  REFUSED(wf_comm_reduce_scatter(c, all, bad, x, NULL));
  REFUSED(wf_comm_reduce_scatter(c, all, counts, all, NULL));
  REFUSED(wf_comm_all_to_all(c, all, counts, all, counts, NULL));
  bad[0] = -1;
  REFUSED(wf_comm_all_to_all(c, all, bad, x, counts, NULL));
#undef REFUSED
  WF_RANK_ASSERT(!p && wf_comm_count(c).messages == 0 && wf_comm_count(c).calls == 0,
                 "a refused call left something");
  WF_RANK_OK(wf_comm_barrier(c));
  bench_close(&b);
}

START_TEST(refused) {
  wf_ranks_run(sizes[_i], refusals, NULL);
}
END_TEST

/* ---- ranks that do not fit together; told among threads only ---- */

/* Every rank but the last, which returns, must fail with a message that holds `text`. */
typedef struct mishap {
  void (*act)(wf_comm *c, bench *b, bool last, wf_status *s);
  const char *text;
} mishap;

static void leaves(wf_comm *c, bench *b, bool last, wf_status *s) {
  if (!last) *s = wf_comm_recv(c, made(b, WF_F32, 3, -1), wf_comm_size(c) - 1, NULL);
}
static void stops(wf_comm *c, bench *b, bool last, wf_status *s) {
  if (last)
    wf_comm_threads_stop(c, "the last one has had enough");
  else
    *s = wf_comm_all_reduce(c, made(b, WF_F32, 3, 0), WF_REDUCE_SUM, NULL);
}
static void all_wait(wf_comm *c, bench *b, bool last, wf_status *s) {
  (void)last;
  *s = wf_comm_recv(c, made(b, WF_F32, 3, -1), (wf_comm_rank(c) + 1) % wf_comm_size(c), NULL);
}
static void all_send(wf_comm *c, bench *b, bool last, wf_status *s) {
  (void)last;
  *s = wf_comm_send(c, made(b, WF_F32, 3, 0), (wf_comm_rank(c) + 1) % wf_comm_size(c), NULL);
}
static void another_call(wf_comm *c, bench *b, bool last, wf_status *s) {
  if (last)
    *s = wf_comm_barrier(c);
  else
    *s = wf_comm_all_reduce(c, made(b, WF_F32, 3, 0), WF_REDUCE_SUM, NULL);
}
static void another_length(wf_comm *c, bench *b, bool last, wf_status *s) {
  *s = wf_comm_all_reduce(c, made(b, WF_F32, last ? 4 : 3, 0), WF_REDUCE_SUM, NULL);
}
static void another_type(wf_comm *c, bench *b, bool last, wf_status *s) {
  *s = wf_comm_broadcast(c, made(b, last ? WF_I32 : WF_F32, 3, 0), wf_comm_size(c) - 1, NULL);
}

static const mishap mishaps[] = {
    {leaves, "left the group"},        {stops, "has had enough"},       {all_wait, "wait for each other"},
    {all_send, "wait for each other"}, {another_call, "calls barrier"}, {another_length, "expects 3 of f32"},
    {another_type, "elements of i32"},
};

static wf_status have_mishap(wf_comm *c, bench *b, const mishap *m) {
  wf_status s = WF_OK;
  m->act(c, b, wf_comm_rank(c) == wf_comm_size(c) - 1, &s);
  return s;
}

typedef struct unhappy {
  wf_comm *c;
  const mishap *m;
  wf_status status;
  char message[400];
} unhappy;

static void *unhappy_thread(void *arg) {
  unhappy *u = arg;
  bench b = bench_open(WF_CPU);
  u->status = have_mishap(u->c, &b, u->m);
  snprintf(u->message, sizeof u->message, "%s", wf_error_message());
  bench_close(&b);
  wf_comm_free(u->c);
  return NULL;
}

START_TEST(unhappy_ranks) {
  enum { N = 3 };
  if (wf_ranks_launched()) return;
  unhappy u[N];
  wf_comm *c[N];
  pthread_t threads[N];
  const int64_t before = wf_mem_live();
  ck_assert_int_eq(wf_comm_threads(N, c), WF_OK);
  for (int i = 0; i < N; i++) {
    u[i] = (unhappy){.c = c[i], .m = &mishaps[_i], .status = WF_EINTERNAL};
    ck_assert_int_eq(pthread_create(&threads[i], NULL, unhappy_thread, &u[i]), 0);
  }
  for (int i = 0; i < N; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < N - 1; i++) {
    ck_assert_msg(u[i].status == WF_EDEVICE || u[i].status == WF_EINVAL, "rank %d: status %d", i,
                  u[i].status);
    ck_assert_msg(strstr(u[i].message, mishaps[_i].text) != NULL, "rank %d says: %s", i, u[i].message);
  }
  ck_assert_int_eq(wf_mem_live(), before);
}
END_TEST

/* ---- alone, and what wf_comm_launched reads ---- */

START_TEST(alone) {
  wf_comm *c;
  if (wf_ranks_launched()) return;
  ck_assert_int_eq(wf_comm_self(&c), WF_OK);
  ck_assert_str_eq(wf_comm_name(c), "self");
  ck_assert(wf_comm_rank(c) == 0 && wf_comm_size(c) == 1 && wf_comm_local_size(c) == 1);
  wf_comm_free(c);
  wf_comm_free(NULL);
  ck_assert_int_eq(wf_comm_threads(0, &c), WF_EINVAL);
  int n = -1;
  ck_assert(!wf_comm_launched(&n) && n == 1);
  setenv("PMI_SIZE", "5", 1);
  ck_assert(wf_comm_launched(&n) && n == 5);
  setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
  ck_assert(!wf_comm_launched(&n) && n == 1);
  unsetenv("PMI_SIZE");
  unsetenv("OMPI_COMM_WORLD_SIZE");
}
END_TEST

#ifndef WEFT_MPI
START_TEST(without_mpi) {
  wf_comm *c;
  ck_assert_int_eq(wf_comm_mpi(&c), WF_EUNSUPPORTED);
  ck_assert(strstr(wf_error_hint(), "WEFT_MPI=ON"));
}
END_TEST
#endif

static Suite *comm_suite(void) {
  Suite *s = suite_create("comm");
  TCase *tc = tcase_create("comm");
  tcase_add_loop_test(tc, calls, 0, N_SIZES);
  tcase_add_loop_test(tc, pieces, 0, N_SIZES);
  tcase_add_loop_test(tc, order, 0, N_SIZES);
  tcase_add_loop_test(tc, bytes, 0, N_SIZES);
  tcase_add_loop_test(tc, split, 0, N_SIZES);
  tcase_add_loop_test(tc, counted, 0, N_SIZES);
  tcase_add_loop_test(tc, refused, 0, N_SIZES);
  tcase_add_loop_test(tc, unhappy_ranks, 0, sizeof mishaps / sizeof *mishaps);
  tcase_add_test(tc, alone);
#ifndef WEFT_MPI
  tcase_add_test(tc, without_mpi);
#endif
  suite_add_tcase(s, tc);
  return s;
}

WF_RANKS_MAIN(comm_suite)
