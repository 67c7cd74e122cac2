/* The state that enters each of P segments (dist/chain.h), on ranks and links that SimGrid simulates.
 *
 *   simulate LATENCY BANDWIDTH WAY:BLOCKS:BYTES...        seconds, bytes/s; WAY: relay, gather, log
 *
 * simulate.sh compiles this with smpicc and starts it with smpirun: dist/chain.c over dist/comm_mpi.c,
 * message by message, while SMPI tells the time. Computing takes none, so the formulas (dist/cost.c) are
 * asked with states that compose in no time. BLOCKS 0: as many as the cost model says, 64 at most. Of each
 * case rank 0 prints the ranks, the way, the blocks, the bytes of a state, and in milliseconds the time until
 * the last rank has the state that enters its segment, and the formula's. Every rank checks what it got.
 *
 * With WEFT_SIMULATE_SHARED large blocks of all ranks are the same memory, which is never copied, so that a
 * thousand ranks can have dozens of states of a megabyte; what they get is then not checked.
 */
#include "core/memory.h"
#include "core/op_def.h"
#include "dist/chain.h"

#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BLOCKS = 64 };
static const float factor = 0.5f;

/* ---- what the linker puts in the place of others: memory of all ranks ---- */

enum { PAGE = 4096, SHARED_FROM = 1 << 16, MOST_SHARED = 1 << 16 };

void *__real_aligned_alloc(size_t align, size_t bytes);
void __real_free(void *p);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
void __wrap_free(void *p);

static void *shared[MOST_SHARED];
static int n_shared;
static bool sharing(void) {
  return getenv("WEFT_SIMULATE_SHARED") != NULL;
}

/* The first page is the rank's own: core/memory.c keeps a block's size and tag there. */
void *__wrap_aligned_alloc(size_t align, size_t bytes) {
  if (!sharing() || bytes < SHARED_FROM || n_shared == MOST_SHARED) return __real_aligned_alloc(align, bytes);
  return shared[n_shared++] = SMPI_PARTIAL_SHARED_MALLOC(bytes, ((const size_t[]){PAGE, bytes}), 1);
}

void __wrap_free(void *p) {
  for (int i = (size_t)p % PAGE ? 0 : n_shared; i-- > 0;)
    if (shared[i] == p) {
      shared[i] = shared[--n_shared];
      SMPI_SHARED_FREE(p);
      return;
    }
  __real_free(p);
}

/* SMPI owns to no threads at all; its ranks have none. */
int __real_MPI_Init_thread(int *argc, char ***argv, int required, int *provided);
int __wrap_MPI_Init_thread(int *argc, char ***argv, int required, int *provided);
int __wrap_MPI_Init_thread(int *argc, char ***argv, int required, int *provided) {
  int code = __real_MPI_Init_thread(argc, argv, required, provided);
  *provided = required;
  return code;
}

/* A million messages at once, which is what SMPI makes of it for a thousand ranks, take it hours. */
int __wrap_MPI_Iallgatherv(const void *x, int n, MPI_Datatype t, void *y, const int *counts, const int *at,
                           MPI_Datatype u, MPI_Comm c, MPI_Request *request);
int __wrap_MPI_Iallgatherv(const void *x, int n, MPI_Datatype t, void *y, const int *counts, const int *at,
                           MPI_Datatype u, MPI_Comm c, MPI_Request *request) {
  *request = MPI_REQUEST_NULL;
  return MPI_Allgatherv(x, n, t, y, counts, at, u, c);
}

/* The process outlives its ranks; main ends MPI. */
int __wrap_atexit(void (*f)(void));
int __wrap_atexit(void (*f)(void)) {
  (void)f;
  return 0;
}

/* ---- a case ---- */

typedef struct job {
  wf_ctx *c;
  wf_comm *comm;
  wf_part *part;
  wf_cost cost;
  wf_transport way;
  int64_t blocks, n; /* floats of a block */
} job;

/* Segment s makes S of factor S + s + 1; none enters the first one. */
static float entering(int rank) {
  float s = 0;
  for (int i = 0; i < rank; i++) s = factor * s + (float)(i + 1);
  return s;
}

static wf_status check(const job *j, wf_tensor *got) {
  int rank = wf_comm_rank(j->comm);
  if (rank == 0) return got ? WF_FAIL(WF_EINVAL, "a state enters the first segment") : WF_OK;
  if (!got) return WF_FAIL(WF_EINVAL, "rank %d: no state enters", rank);
  const float *x = wf_data(got);
  float want = entering(rank), end[] = {x[0], x[j->n - 1]};
  for (int i = 0; i < 2; i++)
    if (fabsf(end[i] - want) > 1e-5f * want)
      return WF_FAIL(WF_EINVAL, "rank %d: %g enters, not %g", rank, (double)end[i], (double)want);
  return WF_OK;
}

/* [1, n] */
static wf_tensor *filled(wf_ctx *c, int64_t n, float x) {
  wf_tensor *t = wf_empty(c, "simulate", WF_F32, WF_SHAPE(1, n));
  float *p = wf_is_poison(t) ? NULL : wf_data(t);
  for (int64_t i = 0; i < n && p; i++) p[i] = x;
  return t;
}

static wf_status chains(const job *j, wf_chain **ch) {
  wf_chain_spec s = {
      .c = j->c, .part = j->part, .kind = WF_CARRY_SCALE, .transport = j->way, .dtype = WF_F32};
  wf_desc_set(&s.A, WF_F32, 2, (int64_t[]){1, 1});
  wf_desc_set(&s.B, WF_F32, 2, (int64_t[]){1, j->n});
  float rank = (float)wf_comm_rank(j->comm) + 1;
  for (int64_t b = 0; b < j->blocks; b++) {
    s.before = b ? ch[b - 1] : NULL;
    WF_TRY(wf_chain_open(&s, NULL, &ch[b]));
  }
  for (int64_t b = 0; b < j->blocks; b++) {
    wf_tensor *A = filled(j->c, 1, factor), *B = filled(j->c, j->n, rank);
    if (wf_is_poison(A) || wf_is_poison(B)) return wf_ctx_failure(j->c);
    WF_TRY(wf_chain_start(ch[b], A, B));
  }
  int turns = wf_chain_turns(ch[0]);
  for (int t = 0; t < turns; t++)
    for (int64_t b = 0; b < j->blocks; b++) WF_TRY(wf_chain_turn(ch[b], t));
  return WF_OK;
}

static wf_status scan(const job *j, double *seconds) {
  wf_chain *ch[MOST_BLOCKS] = {NULL};
  wf_scope scope = wf_scope_open(j->c);
  WF_TRY(wf_comm_barrier(j->comm));
  double t0 = MPI_Wtime();
  wf_status st = chains(j, ch);
  *seconds = MPI_Wtime() - t0;
  for (int64_t b = 0; b < j->blocks; b++) {
    if (st == WF_OK && !sharing()) st = check(j, wf_chain_state(ch[b], 0));
    wf_status closed = wf_chain_close(ch[b]);
    if (st == WF_OK) st = closed;
  }
  wf_scope_close(j->c, scope);
  WF_TRY(st);
  return wf_comm_all_reduce_host(j->comm, WF_F64, seconds, 1, WF_REDUCE_MAX);
}

static double formula(const job *j, double bytes) {
  int64_t P = wf_comm_size(j->comm);
  switch (j->way) {
  case WF_TRANSPORT_RELAY: return wf_cost_relay(&j->cost, P, bytes, j->blocks);
  case WF_TRANSPORT_GATHER: return wf_cost_gather(&j->cost, P, bytes);
  default: return wf_cost_log(&j->cost, P, bytes);
  }
}

static wf_status one(job *j, const char *what) {
  char way[16];
  long long blocks, bytes;
  if (sscanf(what, "%15[^:]:%lld:%lld", way, &blocks, &bytes) != 3 || blocks < 0 || blocks > MOST_BLOCKS ||
      bytes < 4 * MOST_BLOCKS)
    return WF_FAIL(WF_EINVAL, "%s: not WAY:BLOCKS:BYTES", what);
  j->way = !strcmp(way, "relay") ? WF_TRANSPORT_RELAY
           : !strcmp(way, "log") ? WF_TRANSPORT_LOG
                                 : WF_TRANSPORT_GATHER;
  j->blocks =
      blocks ? blocks : wf_cost_blocks(&j->cost, wf_comm_size(j->comm), (double)bytes, MOST_BLOCKS, 0);
  j->n = bytes / 4 / j->blocks;
  double t = 0;
  WF_TRY(scan(j, &t));
  if (wf_comm_rank(j->comm) == 0)
    printf("%d %s %lld %lld %.6g %.6g\n", wf_comm_size(j->comm), way, (long long)j->blocks, bytes, t * 1e3,
           formula(j, (double)bytes) * 1e3);
  fflush(stdout);
  return WF_OK;
}

static wf_status all(int argc, char **argv) {
  job j = {.cost = wf_cost_default()};
  j.cost.latency = atof(argv[1]), j.cost.bandwidth = atof(argv[2]), j.cost.combine = HUGE_VAL;
  WF_TRY(wf_comm_mpi(&j.comm));
  wf_device *dev;
  WF_TRY(wf_device_open(WF_CPU, 0, &dev));
  WF_TRY(wf_ctx_create(dev, &j.c));
  wf_layout *layout;
  int P = wf_comm_size(j.comm);
  WF_TRY(wf_layout_create(WF_LAYOUT_CONTIGUOUS, P, NULL, &layout));
  wf_dist dist = {.comm = j.comm, .layout = layout};
  wf_row row = {.len = P, .flags = WF_ROW_LEAVES};
  WF_TRY(wf_part_create(&dist, 1, &row, 1, 0, 0, &j.part));
  for (int i = 3; i < argc; i++) WF_TRY(one(&j, argv[i]));
  wf_part_free(j.part);
  wf_layout_free(layout);
  wf_ctx_free(j.c);
  wf_device_close(dev);
  wf_comm_free(j.comm);
  return WF_OK;
}

int main(int argc, char **argv) {
  if (argc < 4) {
    fprintf(stderr, "simulate LATENCY BANDWIDTH WAY:BLOCKS:BYTES...\n");
    return 2;
  }
  if (all(argc, argv) != WF_OK) {
    fprintf(stderr, "simulate: %s\n", wf_error_message());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
