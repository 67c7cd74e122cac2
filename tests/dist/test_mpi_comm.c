/* What only MPI can show. The program puts its own functions in front of MPI's (the PMPI interface) and
 * counts what passes: wf_comm_count says the same, call by call. And messages of another length than
 * expected. */
#include <mpi.h>
#include <string.h>

#include "dist/comm_impl.h"
#include "tests/dist/comm_trial.h"

/* ---- in front of MPI ---- */

static wf_comm_counts seen;               /* messages with their tag; collectives */
static struct { int64_t n, bytes; } runs; /* messages that are runs of an all_to_all */

static int64_t size_of(MPI_Datatype type) {
  int n = 0;
  PMPI_Type_size(type, &n);
  return n;
}

static void see_message(int n, MPI_Datatype type, int mpi_tag) {
  int64_t *messages = &seen.messages, *bytes = &seen.message_bytes;
  if (mpi_tag == WF_COMM_MPI_RUN) messages = &runs.n, bytes = &runs.bytes;
  ++*messages;
  *bytes += n * size_of(type);
}

static void see_call(int64_t n, MPI_Datatype type) {
  seen.calls++;
  seen.call_bytes += n * size_of(type);
}

static int64_t sum(const int n[], MPI_Comm comm) {
  int size = 0;
  int64_t all = 0;
  PMPI_Comm_size(comm, &size);
  for (int i = 0; i < size; i++) all += n[i];
  return all;
}

static int own(const int n[], MPI_Comm comm) {
  int rank = 0;
  PMPI_Comm_rank(comm, &rank);
  return n[rank];
}

int MPI_Send(const void *x, int n, MPI_Datatype type, int to, int mpi_tag, MPI_Comm comm) {
  see_message(n, type, mpi_tag);
  return PMPI_Send(x, n, type, to, mpi_tag, comm);
}
int MPI_Isend(const void *x, int n, MPI_Datatype type, int to, int mpi_tag, MPI_Comm comm, MPI_Request *r) {
  see_message(n, type, mpi_tag);
  return PMPI_Isend(x, n, type, to, mpi_tag, comm, r);
}
int MPI_Bcast(void *x, int n, MPI_Datatype type, int root, MPI_Comm comm) {
  see_call(n, type);
  return PMPI_Bcast(x, n, type, root, comm);
}
int MPI_Ibcast(void *x, int n, MPI_Datatype type, int root, MPI_Comm comm, MPI_Request *r) {
  see_call(n, type);
  return PMPI_Ibcast(x, n, type, root, comm, r);
}
int MPI_Allreduce(const void *x, void *y, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  see_call(n, type);
  return PMPI_Allreduce(x, y, n, type, op, comm);
}
int MPI_Iallreduce(const void *x, void *y, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm,
                   MPI_Request *r) {
  see_call(n, type);
  return PMPI_Iallreduce(x, y, n, type, op, comm, r);
}
int MPI_Reduce_scatter(const void *x, void *y, const int n[], MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  see_call(sum(n, comm), type);
  return PMPI_Reduce_scatter(x, y, n, type, op, comm);
}
int MPI_Ireduce_scatter(const void *x, void *y, const int n[], MPI_Datatype type, MPI_Op op, MPI_Comm comm,
                        MPI_Request *r) {
  see_call(sum(n, comm), type);
  return PMPI_Ireduce_scatter(x, y, n, type, op, comm, r);
}
int MPI_Allgatherv(const void *x, int nx, MPI_Datatype tx, void *y, const int n[], const int at[],
                   MPI_Datatype type, MPI_Comm comm) {
  see_call(own(n, comm), type);
  return PMPI_Allgatherv(x, nx, tx, y, n, at, type, comm);
}
int MPI_Iallgatherv(const void *x, int nx, MPI_Datatype tx, void *y, const int n[], const int at[],
                    MPI_Datatype type, MPI_Comm comm, MPI_Request *r) {
  see_call(own(n, comm), type);
  return PMPI_Iallgatherv(x, nx, tx, y, n, at, type, comm, r);
}

/* ---- counts ---- */

typedef struct caller {
  wf_comm *c;
  bench b;
  int rank, size;
  bool later;
} caller;

static caller caller_open(wf_comm *c) {
  return (caller){.c = c, .b = bench_open(WF_CPU), .rank = wf_comm_rank(c), .size = wf_comm_size(c)};
}

static wf_tensor *some(caller *b, wf_dtype dtype, int64_t n) {
  return made(&b->b, dtype, n, b->rank);
}

/* That the communicator counted what was seen since `before`, and that something was seen at all. */
static void compare(caller *b, const char *call, wf_comm_counts before, wf_comm_counts seen_before) {
  const wf_comm_counts now = wf_comm_count(b->c);
  const int64_t got[] = {now.messages - before.messages, now.message_bytes - before.message_bytes,
                         now.calls - before.calls, now.call_bytes - before.call_bytes};
  const int64_t real[] = {seen.messages - seen_before.messages,
                          seen.message_bytes - seen_before.message_bytes, seen.calls - seen_before.calls,
                          seen.call_bytes - seen_before.call_bytes};
  static const char *const names[] = {"messages", "bytes of messages", "calls", "bytes of calls"};
  for (int i = 0; i < 4; i++)
    WF_RANK_ASSERT(got[i] == real[i], "%s: counted %lld %s, MPI saw %lld", call, (long long)got[i], names[i],
                   (long long)real[i]);
  if (b->size > 1) WF_RANK_ASSERT(got[0] + got[2] > 0, "%s: MPI saw nothing", call);
}

#define TRY(call, ...)                                              \
  do {                                                              \
    const wf_comm_counts before = wf_comm_count(b->c), real = seen; \
    wf_pending *p = NULL;                                           \
    WF_RANK_OK(call(b->c, __VA_ARGS__, b->later ? &p : NULL));      \
    WF_RANK_OK(wf_comm_wait(&p));                                   \
    compare(b, #call, before, real);                                \
  } while (0)

static void count_messages(caller *b, int64_t n) {
  const wf_comm_counts before = wf_comm_count(b->c), real = seen;
  wf_tensor *x = some(b, WF_F64, n), *y = some(b, WF_F64, n);
  wf_pending *sent = NULL, *received;
  WF_RANK_OK(wf_comm_recv(b->c, y, (b->rank + b->size - 1) % b->size, &received));
  WF_RANK_OK(wf_comm_send(b->c, x, (b->rank + 1) % b->size, b->later ? &sent : NULL));
  WF_RANK_OK(wf_comm_wait(&sent));
  WF_RANK_OK(wf_comm_wait(&received));
  compare(b, "messages", before, real);
}

/* MPI sees an all_to_all as a message for each run that is not empty, but for the rank's own. */
static void count_all_to_all(caller *b, int64_t n) {
  int64_t send[MAX_RANKS], recv[MAX_RANKS], others = 0, filled = 0;
  for (int i = 0; i < b->size; i++) {
    send[i] = (b->rank + i) % 3 == 2 ? 0 : n + 2 * b->rank + i;
    recv[i] = (b->rank + i) % 3 == 2 ? 0 : n + 2 * i + b->rank;
    if (i != b->rank) others += send[i], filled += send[i] > 0;
  }
  const int64_t all = wf_sum_counts(send, b->size);
  const wf_comm_counts before = wf_comm_count(b->c), real = seen;
  const int64_t n_before = runs.n, bytes_before = runs.bytes;
  wf_pending *p = NULL;
  WF_RANK_OK(wf_comm_all_to_all(b->c, some(b, WF_I32, all), send,
                                some(b, WF_I32, wf_sum_counts(recv, b->size)), recv, b->later ? &p : NULL));
  WF_RANK_OK(wf_comm_wait(&p));
  WF_RANK_ASSERT(runs.n - n_before == filled && runs.bytes - bytes_before == 4 * others,
                 "%lld runs of %lld bytes instead of %lld of %lld", (long long)(runs.n - n_before),
                 (long long)(runs.bytes - bytes_before), (long long)filled, (long long)(4 * others));
  WF_RANK_ASSERT(wf_comm_count(b->c).call_bytes - before.call_bytes == (b->size > 1 ? 4 * all : 0),
                 "the bytes of an all_to_all");
  WF_RANK_ASSERT(memcmp(&seen, &real, sizeof seen) == 0, "an all_to_all made other calls");
}

static void count_all(wf_comm *c, void *arg) {
  (void)arg;
  caller opened = caller_open(c), *b = &opened;
  for (int later = 0; later < 2; later++)
    for (int64_t n = 1; n < 100000; n = 7 * n + 3) {
      b->later = later;
      int64_t counts[MAX_RANKS];
      for (int i = 0; i < b->size; i++) counts[i] = i % 3 == 1 ? 0 : n + i;
      const int64_t mine = counts[b->rank], all = wf_sum_counts(counts, b->size);
      count_messages(b, n);
      TRY(wf_comm_broadcast, some(b, WF_U16, n), b->size - 1);
      TRY(wf_comm_all_reduce, some(b, WF_F32, n), WF_REDUCE_SUM);
      TRY(wf_comm_all_reduce, some(b, WF_I64, n), WF_REDUCE_MAX);
      TRY(wf_comm_reduce_scatter, some(b, WF_F32, all), counts, some(b, WF_F32, mine));
      TRY(wf_comm_all_gather, some(b, WF_BF16, mine), counts, some(b, WF_BF16, all));
      count_all_to_all(b, n);
    }
  bench_close(&b->b);
}

START_TEST(counts) {
  for (int n = 1; n <= MAX_RANKS; n++) wf_ranks_run(n, count_all, NULL);
}
END_TEST

/* ---- lengths that differ are told, not taken ---- */

static void other_lengths(wf_comm *c, void *arg) {
  (void)arg;
  caller opened = caller_open(c), *b = &opened;
  for (int later = 0; later < 2 && b->size > 1; later++)
    for (int64_t n = 2; n <= 4; n++) {
      wf_pending *p = NULL;
      if (b->rank == 0) WF_RANK_OK(wf_comm_send(c, some(b, WF_F32, n), 1, NULL));
      if (b->rank != 1) continue;
      wf_status s = wf_comm_recv(c, some(b, WF_F32, 3), 0, later ? &p : NULL);
      if (s == WF_OK) s = wf_comm_wait(&p);
      const wf_status expected = n == 3 ? WF_OK : n < 3 ? WF_EINVAL : WF_EDEVICE;
      WF_RANK_ASSERT(s == expected, "%lld elements where 3 are expected: %s, %s", (long long)n,
                     wf_status_name(s), wf_error_message());
    }
  bench_close(&b->b);
}

START_TEST(lengths) {
  for (int n = 1; n <= MAX_RANKS; n++) wf_ranks_run(n, other_lengths, NULL);
}
END_TEST

static Suite *mpi_suite(void) {
  Suite *s = suite_create("mpi");
  TCase *tc = tcase_create("mpi");
  tcase_add_test(tc, counts);
  tcase_add_test(tc, lengths);
  suite_add_tcase(s, tc);
  return s;
}

/* A rank that leaves while others wait for it: test_leave.sh. */
static int leave(const char *how) {
  wf_comm *c;
  if (wf_comm_mpi(&c) != WF_OK) return 1;
  if (wf_comm_rank(c) == 1 && strcmp(how, "abort") == 0) wf_comm_abort(c, 7);
  if (wf_comm_rank(c) == 1) return 7;
  wf_comm_barrier(c);
  return 0;
}

int main(int argc, char **argv) {
  return argc > 1 ? leave(argv[1]) : wf_ranks_main(mpi_suite);
}
