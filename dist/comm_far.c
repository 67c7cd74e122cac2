/* Letters between processes by MPI. A build without MPI has one process, and none to write to. */
#include "dist/comm_far_impl.h"

#ifndef WEFT_MPI

wf_status wf_far_open(wf_comm *processes, wf_status mine, const wf_far_sink *sink, wf_far **out) {
  (void)processes, (void)mine, (void)sink;
  *out = NULL;
  return WF_FAIL(WF_EUNSUPPORTED, "this Weft was built without MPI");
}
void wf_far_close(wf_far *f, bool orderly) {
  (void)f, (void)orderly;
}
bool wf_far_is_near(const wf_far *f, int process) {
  (void)f, (void)process;
  return true;
}
wf_status wf_far_send(wf_far *f, int process, const wf_far_letter *l, const void *bytes, void *handle) {
  (void)f, (void)process, (void)l, (void)bytes, (void)handle;
  return WF_FAIL(WF_EUNSUPPORTED, "this Weft was built without MPI");
}
wf_status wf_far_progress(wf_far *f) {
  (void)f;
  return WF_OK;
}
void wf_far_abort(int code) {
  (void)code;
}

#else

#  include <mpi.h>
#  include <unistd.h>
#  include "core/memory.h"
#  include "dist/mesh.h"

static const char tag[] = "communicator";
enum { HEAD = 1, ELEMENTS = 2 }; /* MPI's tags */

/* A letter under way. Between two processes heads arrive in the order in which they were sent, and so do
 * elements: receives started in the order of the heads meet the right ones. */
typedef struct moving {
  struct moving *next;
  void *handle;
  bool comes;
  wf_far_letter head;
  int n;
  MPI_Request request[];
} moving;

struct wf_far {
  MPI_Comm comm;
  wf_far_sink sink;
  wf_far_letter head; /* the next that comes, */
  MPI_Request heads;  /* which is waited for */
  moving *moving;
  int *host, process; /* [processes] the first process of each one's host; this one */
};

#  define MPI_TRY(call, ...)                                                     \
    do {                                                                         \
      const int code_ = call(__VA_ARGS__);                                       \
      if (code_ != MPI_SUCCESS) return WF_FAIL(WF_EDEVICE, #call ": %d", code_); \
    } while (0)

static wf_status listen_on(wf_far *f) {
  MPI_TRY(MPI_Irecv, &f->head, sizeof f->head, MPI_BYTE, MPI_ANY_SOURCE, HEAD, f->comm, &f->heads);
  return WF_OK;
}

static int64_t bytes_of(const wf_far_letter *l) {
  return l->n * (int64_t)wf_dtype_size((wf_dtype)l->dtype);
}

static wf_status moving_make(wf_far *f, const wf_far_letter *l, void *handle, moving **out) {
  const int64_t pieces = (bytes_of(l) + l->most - 1) / l->most;
  moving *m = NULL;
  WF_ALLOC(m, tag, sizeof *m + (size_t)(1 + pieces) * sizeof m->request[0]);
  *m = (moving){.next = f->moving, .handle = handle, .head = *l};
  *out = f->moving = m;
  return WF_OK;
}

static wf_status start(wf_far *f, moving *m, int peer, char *bytes) {
  const int64_t all = bytes_of(&m->head), most = m->head.most;
  for (int64_t at = 0; at < all; at += most) {
    const int n = (int)(all - at < most ? all - at : most);
    if (m->comes)
      MPI_TRY(MPI_Irecv, bytes + at, n, MPI_BYTE, peer, ELEMENTS, f->comm, &m->request[m->n]);
    else
      MPI_TRY(MPI_Isend, bytes + at, n, MPI_BYTE, peer, ELEMENTS, f->comm, &m->request[m->n]);
    m->n++;
  }
  return WF_OK;
}

wf_status wf_far_send(wf_far *f, int process, const wf_far_letter *l, const void *bytes, void *handle) {
  moving *m = NULL;
  WF_TRY(moving_make(f, l, handle, &m));
  MPI_TRY(MPI_Isend, &m->head, sizeof m->head, MPI_BYTE, process, HEAD, f->comm, &m->request[m->n++]);
  return start(f, m, process, (char *)bytes);
}

static wf_status accept_from(wf_far *f, int process) {
  void *handle, *into;
  moving *m = NULL;
  const wf_far_letter head = f->head;
  WF_TRY(listen_on(f));
  WF_TRY(f->sink.comes(f->sink.arg, &head, &handle, &into));
  WF_TRY(moving_make(f, &head, handle, &m));
  m->comes = true;
  return start(f, m, process, into);
}

wf_status wf_far_progress(wf_far *f) {
  for (int got = 1; got;) {
    MPI_Status status;
    MPI_TRY(MPI_Test, &f->heads, &got, &status);
    if (got) WF_TRY(accept_from(f, status.MPI_SOURCE));
  }
  for (moving **at = &f->moving; *at;) {
    moving *m = *at;
    int done;
    MPI_TRY(MPI_Testall, m->n, m->request, &done, MPI_STATUSES_IGNORE);
    if (!done) {
      at = &m->next;
      continue;
    }
    *at = m->next;
    wf_status s = WF_OK;
    if (m->comes)
      s = f->sink.came(f->sink.arg, m->handle);
    else
      f->sink.sent(f->sink.arg, m->handle);
    wf_free(m);
    WF_TRY(s);
  }
  return WF_OK;
}

/* ---- opening and closing ---- */

static wf_status find_hosts(wf_far *f, int size) {
  MPI_Comm local;
  int first;
  MPI_TRY(MPI_Comm_rank, f->comm, &f->process);
  first = f->process;
  WF_CALLOC(f->host, tag, size);
  MPI_TRY(MPI_Comm_split_type, f->comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
  MPI_TRY(MPI_Bcast, &first, 1, MPI_INT, 0, local);
  MPI_TRY(MPI_Comm_free, &local);
  MPI_TRY(MPI_Allgather, &first, 1, MPI_INT, f->host, 1, MPI_INT, f->comm);
  return WF_OK;
}

static wf_status check_level(void) {
  int level = MPI_THREAD_SINGLE;
  MPI_TRY(MPI_Query_thread, &level);
  if (level >= MPI_THREAD_SERIALIZED) return WF_OK;
  return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "virtual ranks need an MPI whose calls may come from any thread"),
                 "use an MPI built with thread support, or one process");
}

wf_status wf_far_open(wf_comm *processes, wf_status mine, const wf_far_sink *sink, wf_far **out) {
  *out = NULL;
  wf_far *f = mine == WF_OK ? wf_calloc(tag, 1, sizeof *f) : NULL;
  if (mine == WF_OK && !wf_comm_mpi_handle(processes))
    mine = WF_FAIL(WF_EINVAL, "virtual ranks of a group of %s", wf_comm_name(processes));
  if (mine == WF_OK) mine = f ? check_level() : WF_ENOMEM;
  mine = wf_agree(processes, mine, "making virtual ranks");
  if (mine == WF_OK) {
    f->sink = *sink;
    const int code = MPI_Comm_dup(*(MPI_Comm *)wf_comm_mpi_handle(processes), &f->comm);
    mine = code == MPI_SUCCESS ? find_hosts(f, wf_comm_size(processes))
                               : WF_FAIL(WF_EDEVICE, "MPI_Comm_dup: %d", code);
    if (mine == WF_OK) mine = listen_on(f);
  }
  if (mine == WF_OK) {
    *out = f;
  } else {
    if (f) wf_free(f->host);
    wf_free(f);
  }
  return mine;
}

/* Others may still send, or wait for what was sent to them: until all say that all they sent has arrived. */
static wf_status drain(wf_far *f) {
  MPI_Request all;
  int done = 0;
  while (f->moving) {
    WF_TRY(wf_far_progress(f));
    usleep(20);
  }
  MPI_TRY(MPI_Ibarrier, f->comm, &all);
  for (; !done; usleep(20)) {
    WF_TRY(wf_far_progress(f));
    MPI_TRY(MPI_Test, &all, &done, MPI_STATUS_IGNORE);
  }
  MPI_TRY(MPI_Cancel, &f->heads);
  MPI_TRY(MPI_Wait, &f->heads, MPI_STATUS_IGNORE);
  MPI_TRY(MPI_Comm_free, &f->comm);
  return WF_OK;
}

void wf_far_close(wf_far *f, bool orderly) {
  if (!f) return;
  if (orderly && drain(f) != WF_OK) wf_error_clear();
  for (moving *m = f->moving; m && orderly; m = f->moving) {
    f->moving = m->next;
    wf_free(m);
  }
  wf_free(f->host);
  wf_free(f);
}

bool wf_far_is_near(const wf_far *f, int process) {
  return f->host[process] == f->host[f->process];
}

void wf_far_abort(int code) {
  MPI_Abort(MPI_COMM_WORLD, code);
}

#endif
