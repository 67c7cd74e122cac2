/* exchange: rows of tensors go from the ranks that have them to those that need them, as an op of the tape.
 *
 *   y = exchange(x)     y's rows are rows of any rank's x; each may be wanted by several ranks, or by none
 *   x = give_back(y)    its transpose: what came from a row is summed there, in the order of the ranks
 *
 * Each is the other's gradient. With a `team` of ranks, neighbours, the second dimension is cut too:
 * rank r takes the (r mod team)-th share of the heads (rounded outwards: the team may exceed them), so that
 * with all the team's rows everywhere tokens become heads.
 *
 * A halo, an all-gather of what is needed with its reduce-scatter, and all-to-all are exchanges of different
 * plans. One message for each pair of ranks and tensor, all under way at once.
 */
#ifndef WF_DIST_EXCHANGE_H
#define WF_DIST_EXCHANGE_H

#include "dist/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* n rows, the first at `row`, of the pool (sent) or of the result (received). */
typedef struct wf_run_of_rows {
  int peer;
  int64_t row, n;
} wf_run_of_rows;

/* One rank's view. Runs are in order of the peers; those of a pair follow each other alike on both. */
typedef struct wf_exchange {
  int n_send, n_recv, n_own;
  wf_run_of_rows *send, *recv;
  wf_run_of_rows *own_from, *own_to; /* [n_own] inside the rank */
  int64_t pool, rows;                /* of x and of y */
  bool holes;                        /* some rows of y are nobody's, and 0 */
} wf_exchange;

/* Makes a plan. Every rank routes the same rows in the same order: by their receivers, and those of one by
 * their place in its result; what does not touch this rank may be left out. */
typedef struct wf_exchange_router {
  wf_exchange *plan;
  int rank; /* this one */
  size_t cap_send, cap_recv, cap_from, cap_to;
} wf_exchange_router;
/* n rows of the pool of rank `from` go to rank `to`, from row `at` of its result on. */
wf_status wf_exchange_route(wf_exchange_router *r, int from, int to, int64_t row, int64_t at, int64_t n);
void wf_exchange_routed(wf_exchange_router *r); /* all of them; pool and rows are the caller's to set */
void wf_exchange_free(wf_exchange *e);          /* what the plan points to */

enum { WF_EXCHANGE_MOST = 4 }; /* tensors at once */

/* x[n] [pool, (heads,) ...] -> y[n] [rows, (heads,) ...], 1 <= n <= 4. `e` lives until the backward. */
void wf_exchange_rows(wf_ctx *c, wf_comm *comm, const wf_exchange *e, int team, int n, wf_tensor *const *x,
                      wf_tensor **y);
/* y[n] [rows, (heads of this rank,) ...] -> x[n] [pool, (total[i],) ...]; total is read with
 * a team; 0: no heads are cut. */
void wf_exchange_back(wf_ctx *c, wf_comm *comm, const wf_exchange *e, int team, const int64_t *total, int n,
                      wf_tensor *const *y, wf_tensor **x);

/* The share of rank r in the heads that a team divides: [*begin, *end). */
void wf_head_share(int64_t heads, int r, int team, int64_t *begin, int64_t *end);
/* Bytes that this rank sends in an exchange (back: in its transpose) of rows of `width` bytes. */
int64_t wf_exchange_bytes(const wf_exchange *e, bool back, int64_t width);

#ifdef __cplusplus
}
#endif

#endif
