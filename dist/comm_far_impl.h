/* far: letters between processes whose threads are the ranks of one world (comm_threads.c). Private to dist.
 *
 * A letter's head goes first, its elements follow in pieces; the receiver makes room when it has read the
 * head. Nothing here waits, but for the opening and the closing, which all processes do together. One thread
 * at a time: the world's lock.
 */
#ifndef WF_DIST_COMM_FAR_IMPL_H
#define WF_DIST_COMM_FAR_IMPL_H

#include "dist/comm_impl.h"

enum { WF_FAR_CALL = 16, WF_FAR_MOST = 1 << 30 };

typedef struct wf_far wf_far;

typedef struct wf_far_letter { /* the head; processes of a job run the same program */
  int64_t hub, n, most;        /* group; elements; bytes of a piece */
  int32_t kind, from, to;      /* ranks of the group; to: -1: all that the receiving process holds */
  int32_t dtype;
  char call[WF_FAR_CALL];
} wf_far_letter;

typedef struct wf_far_sink {
  void *arg;
  /* A letter comes: *into is to receive its elements, and `came` is told *handle when they are there. */
  wf_status (*comes)(void *arg, const wf_far_letter *l, void **handle, void **into);
  wf_status (*came)(void *arg, void *handle);
  void (*sent)(void *arg, void *handle); /* the bytes of wf_far_send are no longer needed */
} wf_far_sink;

/* Every process calls with its own status; fails everywhere where one is not WF_OK. */
wf_status wf_far_open(wf_comm *processes, wf_status mine, const wf_far_sink *sink, wf_far **out);
/* When everything sent has arrived; not `orderly`: at once, the job ends. NULL is allowed. */
void wf_far_close(wf_far *f, bool orderly);
bool wf_far_is_near(const wf_far *f, int process); /* on the same host */
wf_status wf_far_send(wf_far *f, int process, const wf_far_letter *l, const void *bytes, void *handle);
/* Whatever can be done now: calls the sink. */
wf_status wf_far_progress(wf_far *f);
void wf_far_abort(int code);

#endif
