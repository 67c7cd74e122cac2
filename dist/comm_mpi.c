/* Ranks that are processes, over MPI. A build without MPI has wf_comm_mpi too, which says so.
 *
 * MPI's counts are ints. A call beyond them is made of several: messages, broadcasts and all-reduces piece by
 * piece; reduce_scatter as a reduction to each rank, all_gather as a broadcast from each. An all_to_all is
 * always messages: whether all its counts and places fit is what no rank knows alone.
 *
 * Reductions: every rank gets the same bytes, and the order of the additions follows from the number of
 * ranks, the number of elements, the type and whether the call waits: Open MPI chooses its algorithm by these
 * alone. It is not the order of the ranks; who needs that gathers and adds.
 */
#include "dist/comm_impl.h"

#ifndef WEFT_MPI

wf_status wf_comm_mpi(wf_comm **out) {
  *out = NULL;
  return wf_hint(
      WF_FAIL(WF_EUNSUPPORTED, "this Weft was built without MPI"),
      "install libopenmpi-dev and openmpi-bin (or load an MPI module) and configure with -DWEFT_MPI=ON");
}

#else

#  include <limits.h>
#  include <mpi.h>
#  include <stdio.h>
#  include <stdlib.h>
#  include <string.h>
#  include <unistd.h>
#  include "core/memory.h"

static const char tag[] = "communicator";
/* One MPI tag for each kind is enough: messages of a pair arrive in the order of the calls. */
enum { MESSAGE = WF_COMM_MPI_MESSAGE, RUN = WF_COMM_MPI_RUN };

struct wf_request {
  wf_request *next, **link; /* in the communicator's list, for poke */
  int n;
  struct {
    MPI_Request request;
    int elements; /* of a receive; else 0 */
    MPI_Datatype type;
  } part[];
};

/* A message that nobody waits for: MPI reads the copy. */
typedef struct letter {
  struct letter *next;
  MPI_Request request;
  size_t bytes;
  char x[];
} letter;

enum { LEFT = 4 << 20 }; /* bytes of such copies at a time */

typedef struct mpi {
  wf_comm base;
  MPI_Comm comm;
  wf_request *under_way;
  letter *first, **end; /* the oldest first */
  size_t left;
} mpi;

static int live;        /* communicators */
static pid_t initiator; /* the process that called MPI_Init */

static mpi *of(wf_comm *c) {
  return (mpi *)(void *)c;
}

static wf_status failed(int code, const char *call) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int n = 0;
  MPI_Error_string(code, text, &n);
  return WF_FAIL(WF_EDEVICE, "%s: %s", call, text);
}

#  define MPI_TRY(call, ...)                                 \
    do {                                                     \
      const int code_ = call(__VA_ARGS__);                   \
      if (code_ != MPI_SUCCESS) return failed(code_, #call); \
    } while (0)

static MPI_Datatype type_of(wf_dtype dtype) {
  switch (dtype) {
  case WF_F32: return MPI_FLOAT;
  case WF_F64: return MPI_DOUBLE;
  case WF_I32: return MPI_INT32_T;
  case WF_I64: return MPI_INT64_T;
  case WF_U8: return MPI_UINT8_T;
  case WF_U32: return MPI_UINT32_T;
  default: return MPI_UINT16_T; /* u16, and bf16, which is only moved */
  }
}

static MPI_Op op_of(wf_reduce how) {
  return how == WF_REDUCE_SUM ? MPI_SUM : how == WF_REDUCE_MAX ? MPI_MAX : MPI_MIN;
}

/* ---- requests ---- */

static int pieces(const wf_comm *c, int64_t n) {
  return (int)((n + c->most - 1) / c->most);
}

static wf_status request_make(wf_comm *c, int64_t parts, wf_request **out) {
  wf_request *r = NULL;
  WF_ALLOC(r, tag, sizeof *r + (size_t)parts * sizeof r->part[0]);
  r->n = 0;
  r->next = of(c)->under_way;
  r->link = &of(c)->under_way;
  if (r->next) r->next->link = &r->next;
  *out = *r->link = r;
  return WF_OK;
}

static void request_free(wf_request *r) {
  *r->link = r->next;
  if (r->next) r->next->link = r->link;
  wf_free(r);
}

/* Fails where a message is shorter than what its receiver expects; a longer one is MPI's own error. */
static wf_status check_length(const wf_comm *c, const MPI_Status *status, MPI_Datatype type, int expected) {
  int n = 0;
  MPI_TRY(MPI_Get_count, status, type, &n);
  if (n == expected) return WF_OK;
  return WF_FAIL(WF_EINVAL, "recv: rank %d sends %d elements, rank %d expects %d", status->MPI_SOURCE, n,
                 c->rank, expected);
}

static wf_status wait_all(wf_comm *c, wf_request *r) {
  for (int i = 0; i < r->n; i++) {
    MPI_Status status;
    MPI_TRY(MPI_Wait, &r->part[i].request, &status);
    if (r->part[i].elements > 0) WF_TRY(check_length(c, &status, r->part[i].type, r->part[i].elements));
  }
  return WF_OK;
}

static wf_status mpi_wait(wf_comm *c, wf_request *r) {
  const wf_status s = wait_all(c, r);
  request_free(r);
  return s;
}

/* Gives up the copies that are gone; `all`: waits for them. */
static void drop_left(mpi *m, bool all) {
  while (m->first) {
    letter *x = m->first;
    int done = 1;
    if (all)
      MPI_Wait(&x->request, MPI_STATUS_IGNORE);
    else
      MPI_Test(&x->request, &done, MPI_STATUS_IGNORE);
    if (!done) return;
    m->first = x->next;
    m->left -= x->bytes;
    wf_free(x);
  }
}

/* A test of anything not yet done moves everything of this process. */
static void mpi_poke(wf_comm *c) {
  drop_left(of(c), false);
  for (const wf_request *r = of(c)->under_way; r; r = r->next)
    for (int i = 0; i < r->n; i++) {
      int done = 1;
      MPI_Request_get_status(r->part[i].request, &done, MPI_STATUS_IGNORE);
      if (!done) return;
    }
}

/* ---- one call, in as many pieces as MPI's counts need ---- */

typedef struct job {
  enum { SEND, RECV, BROADCAST, ALL_REDUCE, REDUCE } kind;
  int peer; /* of a message; the root of a collective */
  int mpi_tag;
  wf_reduce how;
  void *into; /* of REDUCE */
} job;

static wf_status start_piece(wf_comm *c, job j, wf_span x, MPI_Request *out) {
  const MPI_Comm comm = of(c)->comm;
  const MPI_Datatype type = type_of(x.dtype);
  const int n = (int)x.n;
  switch (j.kind) {
  case SEND: MPI_TRY(MPI_Isend, x.p, n, type, j.peer, j.mpi_tag, comm, out); break;
  case RECV: MPI_TRY(MPI_Irecv, x.p, n, type, j.peer, j.mpi_tag, comm, out); break;
  case BROADCAST: MPI_TRY(MPI_Ibcast, x.p, n, type, j.peer, comm, out); break;
  case ALL_REDUCE: MPI_TRY(MPI_Iallreduce, MPI_IN_PLACE, x.p, n, type, op_of(j.how), comm, out); break;
  case REDUCE: MPI_TRY(MPI_Ireduce, x.p, j.into, n, type, op_of(j.how), j.peer, comm, out); break;
  }
  return WF_OK;
}

static wf_status start(wf_comm *c, job j, wf_span x, wf_request *r) {
  for (int64_t at = 0; at < x.n; at += c->most) {
    const int64_t n = x.n - at < c->most ? x.n - at : c->most;
    WF_TRY(start_piece(c, j, wf_span_part(x, at, n), &r->part[r->n].request));
    r->part[r->n].type = type_of(x.dtype);
    r->part[r->n++].elements = j.kind == RECV ? (int)n : 0;
    if (j.kind == REDUCE) j.into = (char *)j.into + (size_t)n * wf_dtype_size(x.dtype);
  }
  return WF_OK;
}

/* Hands `r` out, or gives it up where `s` is a failure. */
static wf_status started(wf_status s, wf_request *r, wf_request **request) {
  if (s == WF_OK)
    *request = r;
  else
    request_free(r);
  return s;
}

static wf_status start_alone(wf_comm *c, job j, wf_span x, wf_request **request) {
  wf_request *r = NULL;
  WF_TRY(request_make(c, pieces(c, x.n), &r));
  return started(start(c, j, x, r), r, request);
}

/* ---- between two ---- */

static wf_status mpi_send(wf_comm *c, wf_span x, int to, bool now, wf_request **request) {
  if (!now || x.n > c->most)
    return start_alone(c, (job){.kind = SEND, .peer = to, .mpi_tag = MESSAGE}, x, request);
  MPI_TRY(MPI_Send, x.p, (int)x.n, type_of(x.dtype), to, MESSAGE, of(c)->comm);
  return WF_OK;
}

/* Open MPI may keep a sender waiting until the receiver comes, even for a message of a few hundred bytes. */
static wf_status mpi_leave(wf_comm *c, wf_span x, int to, wf_request **request) {
  mpi *m = of(c);
  const size_t bytes = wf_span_bytes(x);
  drop_left(m, false);
  if (m->left + bytes > LEFT || x.n > c->most) return mpi_send(c, x, to, false, request);
  letter *k;
  WF_ALLOC(k, tag, sizeof *k + bytes);
  *k = (letter){.bytes = bytes};
  memcpy(k->x, x.p, bytes);
  const int code = MPI_Isend(k->x, (int)x.n, type_of(x.dtype), to, MESSAGE, m->comm, &k->request);
  if (code != MPI_SUCCESS) {
    wf_free(k);
    return failed(code, "MPI_Isend");
  }
  if (!m->first) m->end = &m->first;
  *m->end = k;
  m->end = &k->next;
  m->left += bytes;
  return WF_OK;
}

static wf_status mpi_recv(wf_comm *c, wf_span x, int from, bool now, wf_request **request) {
  if (!now || x.n > c->most)
    return start_alone(c, (job){.kind = RECV, .peer = from, .mpi_tag = MESSAGE}, x, request);
  MPI_Status status;
  MPI_TRY(MPI_Recv, x.p, (int)x.n, type_of(x.dtype), from, MESSAGE, of(c)->comm, &status);
  return check_length(c, &status, type_of(x.dtype), (int)x.n);
}

/* ---- of all ---- */

static wf_status mpi_broadcast(wf_comm *c, wf_span x, int root, bool now, wf_request **request) {
  if (!now || x.n > c->most) return start_alone(c, (job){.kind = BROADCAST, .peer = root}, x, request);
  MPI_TRY(MPI_Bcast, x.p, (int)x.n, type_of(x.dtype), root, of(c)->comm);
  return WF_OK;
}

static wf_status mpi_all_reduce(wf_comm *c, wf_span x, wf_reduce how, bool now, wf_request **request) {
  if (!now || x.n > c->most) return start_alone(c, (job){.kind = ALL_REDUCE, .how = how}, x, request);
  MPI_TRY(MPI_Allreduce, MPI_IN_PLACE, x.p, (int)x.n, type_of(x.dtype), op_of(how), of(c)->comm);
  return WF_OK;
}

static int64_t pieces_of_runs(const wf_comm *c, const int64_t *counts) {
  int64_t n = 0;
  for (int i = 0; i < c->size; i++) n += pieces(c, counts[i]);
  return n;
}

static wf_span run(wf_span x, const int64_t *counts, int i) {
  return wf_span_part(x, wf_sum_counts(counts, i), counts[i]);
}

/* A request of one part, and behind it the counts and the starts of their runs as ints, which live as long.
 */
static wf_status vector_make(wf_comm *c, const int64_t *counts, wf_request **out, int **n, int **at) {
  const size_t part = sizeof(*out)->part[0], room = 2 * (size_t)c->size * sizeof(int);
  WF_TRY(request_make(c, 1 + (int64_t)((room + part - 1) / part), out));
  *n = (int *)(void *)&(*out)->part[1];
  *at = *n + c->size;
  for (int i = 0, sum = 0; i < c->size; sum += (int)counts[i++]) {
    (*n)[i] = (int)counts[i];
    (*at)[i] = sum;
  }
  return WF_OK;
}

static wf_status vector_started(int code, const char *call, bool now, wf_request *r, wf_request **request) {
  if (code != MPI_SUCCESS || now) {
    request_free(r);
    return code == MPI_SUCCESS ? WF_OK : failed(code, call);
  }
  r->part[0].elements = 0;
  r->n = 1;
  *request = r;
  return WF_OK;
}

static wf_status mpi_reduce_scatter(wf_comm *c, wf_span x, const int64_t *counts, wf_span out, bool now,
                                    wf_request **request) {
  wf_request *r = NULL;
  if (x.n <= c->most) {
    const MPI_Datatype type = type_of(x.dtype);
    int *n = NULL, *at = NULL;
    WF_TRY(vector_make(c, counts, &r, &n, &at));
    const int code =
        now ? MPI_Reduce_scatter(x.p, out.p, n, type, MPI_SUM, of(c)->comm)
            : MPI_Ireduce_scatter(x.p, out.p, n, type, MPI_SUM, of(c)->comm, &r->part[0].request);
    return vector_started(code, "MPI_Reduce_scatter", now, r, request);
  }
  wf_status s = WF_OK;
  WF_TRY(request_make(c, pieces_of_runs(c, counts), &r));
  for (int i = 0; i < c->size && s == WF_OK; i++)
    s = start(c, (job){.kind = REDUCE, .peer = i, .into = out.p}, run(x, counts, i), r);
  return started(s, r, request);
}

static wf_status mpi_all_gather(wf_comm *c, const int64_t *counts, wf_span out, bool now,
                                wf_request **request) {
  wf_request *r = NULL;
  if (out.n <= c->most) {
    const MPI_Datatype type = type_of(out.dtype);
    int *n = NULL, *at = NULL;
    WF_TRY(vector_make(c, counts, &r, &n, &at));
    const int code =
        now ? MPI_Allgatherv(MPI_IN_PLACE, 0, type, out.p, n, at, type, of(c)->comm)
            : MPI_Iallgatherv(MPI_IN_PLACE, 0, type, out.p, n, at, type, of(c)->comm, &r->part[0].request);
    return vector_started(code, "MPI_Allgatherv", now, r, request);
  }
  wf_status s = WF_OK;
  WF_TRY(request_make(c, pieces_of_runs(c, counts), &r));
  for (int i = 0; i < c->size && s == WF_OK; i++)
    s = start(c, (job){.kind = BROADCAST, .peer = i}, run(out, counts, i), r);
  return started(s, r, request);
}

/* Messages to the next ranks from the ranks before, the nearest first, so that no rank gets all at once. */
static wf_status mpi_all_to_all(wf_comm *c, wf_span x, const int64_t *send, wf_span out, const int64_t *recv,
                                bool now, wf_request **request) {
  (void)now;
  wf_request *r = NULL;
  wf_status s = WF_OK;
  WF_TRY(request_make(c, pieces_of_runs(c, send) + pieces_of_runs(c, recv), &r));
  const wf_span own = run(x, send, c->rank);
  if (own.n > 0) memcpy(run(out, recv, c->rank).p, own.p, wf_span_bytes(own));
  for (int i = 1; i < c->size && s == WF_OK; i++) {
    const int to = (c->rank + i) % c->size, from = (c->rank - i + c->size) % c->size;
    s = start(c, (job){.kind = RECV, .peer = from, .mpi_tag = RUN}, run(out, recv, from), r);
    if (s == WF_OK) s = start(c, (job){.kind = SEND, .peer = to, .mpi_tag = RUN}, run(x, send, to), r);
  }
  return started(s, r, request);
}

static wf_status mpi_barrier(wf_comm *c) {
  MPI_TRY(MPI_Barrier, of(c)->comm);
  return WF_OK;
}

/* ---- making and ending ---- */

static void mpi_free(wf_comm *c) {
  mpi *m = of(c);
  drop_left(m, true);
  MPI_Comm_free(&m->comm);
  live--;
  wf_free(m);
}

static void mpi_abort(wf_comm *c, int code) {
  (void)c;
  fflush(stdout);
  fflush(stderr);
  MPI_Abort(MPI_COMM_WORLD, code);
}

static wf_status mpi_split(wf_comm *c, int color, int key, wf_comm **out);

static const wf_comm_ops mpi_ops = {
    .send = mpi_send,
    .leave = mpi_leave,
    .recv = mpi_recv,
    .broadcast = mpi_broadcast,
    .all_reduce = mpi_all_reduce,
    .reduce_scatter = mpi_reduce_scatter,
    .all_gather = mpi_all_gather,
    .all_to_all = mpi_all_to_all,
    .barrier = mpi_barrier,
    .wait = mpi_wait,
    .poke = mpi_poke,
    .split = mpi_split,
    .free = mpi_free,
    .abort = mpi_abort,
};

static wf_status measure(mpi *m) {
  MPI_Comm local;
  MPI_TRY(MPI_Comm_set_errhandler, m->comm, MPI_ERRORS_RETURN);
  MPI_TRY(MPI_Comm_rank, m->comm, &m->base.rank);
  MPI_TRY(MPI_Comm_size, m->comm, &m->base.size);
  MPI_TRY(MPI_Comm_split_type, m->comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
  MPI_TRY(MPI_Comm_size, local, &m->base.local_size);
  MPI_TRY(MPI_Comm_free, &local);
  return WF_OK;
}

void *wf_comm_mpi_handle(wf_comm *c) {
  return c->ops == &mpi_ops ? &of(c)->comm : NULL;
}

/* A group of those of `from` that gave the same colour. */
static wf_status group_make(MPI_Comm from, int color, int key, wf_comm **out) {
  mpi *m;
  WF_CALLOC(m, tag, 1);
  m->base = (wf_comm){.ops = &mpi_ops, .name = "mpi", .most = INT_MAX};
  const int code = MPI_Comm_split(from, color, key, &m->comm);
  wf_status s = code == MPI_SUCCESS ? measure(m) : failed(code, "MPI_Comm_split");
  if (s != WF_OK) {
    wf_free(m);
    return s;
  }
  live++;
  *out = &m->base;
  return WF_OK;
}

static wf_status mpi_split(wf_comm *c, int color, int key, wf_comm **out) {
  WF_TRY(group_make(of(c)->comm, color, key, out));
  (*out)->most = c->most;
  return WF_OK;
}

/* At exit. A rank that leaves while it holds communicators has failed, and MPI_Finalize would wait for the
 * others, which may wait for it: without it mpirun ends them. */
static void finalize(void) {
  int done = 0;
  if (getpid() != initiator || live > 0) return;
  MPI_Finalized(&done);
  if (!done) MPI_Finalize();
}

wf_status wf_comm_mpi(wf_comm **out) {
  int have = 0, level = MPI_THREAD_SINGLE;
  *out = NULL;
  MPI_TRY(MPI_Initialized, &have);
  if (have) {
    MPI_TRY(MPI_Query_thread, &level);
  } else {
    MPI_TRY(MPI_Init_thread, NULL, NULL, MPI_THREAD_SERIALIZED, &level); /* comm_far.c needs it */
    initiator = getpid();
    if (atexit(finalize) != 0) return WF_FAIL(WF_ENOMEM, "MPI: no room for what ends it at exit");
  }
  if (level < MPI_THREAD_FUNNELED)
    return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "this MPI cannot be used beside threads: its level is below "
                                            "MPI_THREAD_FUNNELED"),
                   "use an MPI built with thread support");
  MPI_TRY(MPI_Comm_set_errhandler, MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  WF_TRY(group_make(MPI_COMM_WORLD, 0, 0, out));
  return WF_OK;
}

#endif
