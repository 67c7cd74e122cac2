/* comm: messages between the ranks of a group, typed by tensors.
 *
 * A communicator is a header and a table of operations (comm_impl.h) with five implementations:
 *
 *   self      one rank                                                           comm_threads.c
 *   threads   ranks that are threads of one process: the simulator of the tests  comm_threads.c
 *   virtual   ranks that are threads of several processes, which MPI connects    comm_threads.c, comm_far.c
 *   MPI       ranks that are processes, where this build has it                  comm_mpi.c
 *   paper     one rank of a group that is not there: counts what it would send   comm_paper.c
 *
 * Every call is of all ranks of the group in the same order (collectives), or pairs up with the peer's in the
 * order of the calls between the two (send and recv). A send may wait until the receiver has started to
 * receive, so two ranks that both send and then receive wait for ever: start one of the calls. Tensors are
 * contiguous and of any device; counts are 64-bit. A call with a `pending` starts and returns; the tensors
 * stay untouched (sources) or unread (destinations) and alive until wf_comm_wait. With NULL it is done when
 * it returns. Calls of zero elements and collectives of a group of one send nothing and are not counted. A
 * communicator is for one thread at a time.
 *
 * Results do not depend on timing, and a reduction gives every rank the same bytes. Its order of additions is
 * that of the ranks among threads and virtual ranks (on any number of processes); with MPI it follows from
 * the size of the group, the number of elements, the type and whether the call has a pending. MAX and MIN are
 * of numbers: what they make of a NaN is not said. Errors: WF_EINVAL for ranks, shapes or types that do not
 * fit (found on the rank that gives them, or on the one that receives something else than it expects);
 * WF_EDEVICE for a failure of the transport. After one the ranks no longer agree on what comes next: the job
 * should end.
 */
#ifndef WF_DIST_COMM_H
#define WF_DIST_COMM_H

#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_comm wf_comm;
typedef struct wf_pending wf_pending; /* a call under way */

typedef enum wf_reduce { WF_REDUCE_SUM, WF_REDUCE_MAX, WF_REDUCE_MIN } wf_reduce;

/* ---- making; the caller frees ---- */
wf_status wf_comm_self(wf_comm **out);
/* out[n]: rank i is for thread i alone. Freed one by one, in any order and thread. */
wf_status wf_comm_threads(int n, wf_comm **out);
/* Virtual ranks: `each` of every one of `processes` (of wf_comm_mpi or wf_comm_self), as threads; rank
 * i of process p is rank p * each + i of the group, and out[i] is for its thread alone. What any call gives
 * is the same, byte for byte, whatever the number of processes. All processes call, and nobody uses
 * `processes` or any other group of MPI's until every one of these is freed, which all processes do together.
 */
wf_status wf_comm_virtual(wf_comm *processes, int each, wf_comm **out);
/* All processes that mpirun started; to be used by the main thread only. Initialises MPI at the first call of
 * a process. At exit MPI is ended if every communicator was freed; otherwise the rank has failed, and mpirun,
 * which sees that it left without, ends the others. Errors: WF_EUNSUPPORTED with a hint where this build has
 * no MPI. */
wf_status wf_comm_mpi(wf_comm **out);
/* What a rank on paper does. */
typedef struct wf_paper_call {
  const char *call; /* "send", "recv", "broadcast", "all_reduce", "reduce_scatter", "all_gather",
                       "all_to_all", "barrier" */
  int ranks;        /* of the group */
  int64_t bytes;    /* of this rank's x, as wf_comm_count has them; of a recv what it receives */
  int64_t moved; /* the same; of an all_gather all that it gathers, of an all_to_all what leaves the rank */
  int64_t messages; /* of an all_to_all: runs for other ranks */
} wf_paper_call;
typedef struct wf_paper {
  void *arg;
  double (*start)(void *arg, const wf_paper_call *x); /* -> what `wait` is to be told */
  void (*wait)(void *arg, double told);               /* at once, where the call has no pending */
} wf_paper;
/* Rank `rank` of `n`: nothing is sent, destinations stay as they are, every call is done at once and told to
 * `paper`, which is copied. No splitting. */
wf_status wf_comm_paper(int rank, int n, const wf_paper *paper, wf_comm **out);
/* True where the environment says that mpirun or srun started several of us; works in every build. */
bool wf_comm_launched(int *ranks);
/* Of all ranks of `c`: those of one colour (not below zero) form a group, ordered by `key`, then by rank. */
wf_status wf_comm_split(wf_comm *c, int color, int key, wf_comm **out);
/* With no call under way. */
void wf_comm_free(wf_comm *c);

int wf_comm_rank(const wf_comm *c);
int wf_comm_size(const wf_comm *c);
int wf_comm_local_size(const wf_comm *c);   /* ranks of the group on this host */
const char *wf_comm_name(const wf_comm *c); /* "self", "threads", "virtual", "mpi" */

/* ---- between two ---- */
wf_status wf_comm_send(wf_comm *c, const wf_tensor *x, int to, wf_pending **pending);
/* The same, but a small message is copied, so that who is ahead does not wait for the receiver: *pending is
 * NULL. */
wf_status wf_comm_leave(wf_comm *c, const wf_tensor *x, int to, wf_pending **pending);
wf_status wf_comm_recv(wf_comm *c, wf_tensor *x, int from, wf_pending **pending);

/* ---- of all ---- */
wf_status wf_comm_broadcast(wf_comm *c, wf_tensor *x, int root, wf_pending **pending);
/* x <- the reduction of every rank's x. Types: f32, f64, i32, i64. */
wf_status wf_comm_all_reduce(wf_comm *c, wf_tensor *x, wf_reduce how, wf_pending **pending);
/* out <- elements [sum of counts before rank, + counts[rank]) of the sum of every rank's x. counts [size]. */
wf_status wf_comm_reduce_scatter(wf_comm *c, const wf_tensor *x, const int64_t *counts, wf_tensor *out,
                                 wf_pending **pending);
/* out <- every rank's x, counts[i] elements of rank i, in the order of the ranks. x may be that part of out.
 */
wf_status wf_comm_all_gather(wf_comm *c, const wf_tensor *x, const int64_t *counts, wf_tensor *out,
                             wf_pending **pending);
/* Sends the i-th run of x, send[i] elements, to rank i; out receives recv[i] elements of each. MPI sees
 * messages, none for a run of zero elements. */
wf_status wf_comm_all_to_all(wf_comm *c, const wf_tensor *x, const int64_t *send, wf_tensor *out,
                             const int64_t *recv, wf_pending **pending);
wf_status wf_comm_barrier(wf_comm *c);
/* A few numbers in host memory, done on return. */
wf_status wf_comm_all_reduce_host(wf_comm *c, wf_dtype dtype, void *x, int64_t n, wf_reduce how);
wf_status wf_comm_broadcast_host(wf_comm *c, void *bytes, int64_t n, int root);

/* ---- under way ---- */
/* Done, successful or not: *pending is NULL afterwards. NULL is done. */
wf_status wf_comm_wait(wf_pending **pending);
/* Let calls of `c` under way progress; cheap; to be called between parts of long computations. */
void wf_comm_poke(wf_comm *c);

/* ---- counts of this rank since the communicator was made ---- */
typedef struct wf_comm_counts {
  int64_t messages, message_bytes; /* sent with wf_comm_send */
  int64_t calls, call_bytes;       /* collectives but barriers; bytes of this rank's x */
  double waited;                   /* seconds inside wf_comm_wait and blocking calls */
  double busy;                     /* of them, the thread's processor time: MPI asks again and again */
} wf_comm_counts;
wf_comm_counts wf_comm_count(const wf_comm *c);

/* ---- the end ---- */
/* Ends every rank of the job at once, with this exit code: for a rank that has failed alone. Does not return.
 */
__attribute__((noreturn)) void wf_comm_abort(wf_comm *c, int code);

#ifdef __cplusplus
}
#endif

#endif
