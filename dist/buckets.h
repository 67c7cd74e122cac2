/* buckets: flat buffers of gradients summed over ranks, range by range, while the backward still runs.
 *
 * A buffer is made of parts, the gradients of single parameters, given in the order in which they become
 * final. Parts that stand side by side form a bucket of some MiB. The sum of a bucket starts when all its
 * parts are final and the sums before it have started: so every rank starts them in one order, whatever order
 * its gradients come in, and every call lets those under way progress.
 *
 *   whole     every rank gets the sum: all-reduce, in place
 *   divided   each rank gets the sum of its share of the bucket (reduce-scatter), updates the values there,
 *             and has them back from all others (all-gather): ZeRO-1 (Rajbhandari et al. 2020), whose ranks
 *             keep an optimiser's state for their shares alone
 *
 * Shares are equal, but for bounds on multiples of WF_SHARE_ALIGN elements of the buffer; where `whole_parts`
 * asks for it (optimisers of matrices) a share is some parts, chosen so that all ranks get about as much.
 * Sent by each step: one call for a bucket and direction, of 4 n bytes for n elements in float32.
 */
#ifndef WF_DIST_BUCKETS_H
#define WF_DIST_BUCKETS_H

#include "dist/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_SHARE_ALIGN = 16 };

typedef struct wf_flat {
  wf_tensor *value, *grad; /* [n] */
  bool whole_parts;
} wf_flat;

typedef struct wf_flat_part {
  int flat;
  int64_t begin, n; /* elements of the flat buffer */
} wf_flat_part;

typedef struct wf_bucket {
  int flat;
  int64_t begin, n;
  int64_t *share;          /* [ranks] elements of each rank's share, in the order of the ranks */
  int64_t own;             /* the first element of this rank's share in the flat buffer */
  wf_tensor *value, *grad; /* views of the bucket; owned, as what follows */
  wf_tensor *own_value;    /* divided: a view of this rank's share, */
  wf_tensor *own_grad;     /* and the sum of its gradients */
  int n_parts, missing;    /* parts that are not final yet */
  wf_pending *pending;
} wf_bucket;

typedef struct wf_buckets {
  wf_comm *comm;
  bool divided;
  int n;
  wf_bucket *bucket; /* [n] those of one flat buffer from its end to its start */
  int *of_part;      /* the bucket of each part */
  int *order;        /* [n] buckets as they start */
  int started;
  wf_status status; /* of what was started from a callback */
} wf_buckets;

/* All ranks of `comm` call with the same parts. A bucket is closed when it has `bytes` or more. Keeps the
 * tensors' storage; `comm` must outlive the buckets. WF_EINVAL for parts that do not stand side by side. The
 * caller frees. */
wf_status wf_buckets_create(wf_ctx *c, wf_comm *comm, int n_flats, const wf_flat *flat, int64_t n_parts,
                            const wf_flat_part *part, int64_t bytes, bool divided, wf_buckets **out);
void wf_buckets_free(wf_buckets *b); /* with no sum under way; NULL is allowed */

/* A part is final; each once in a step. Never fails: what goes wrong is what wf_buckets_wait returns. */
void wf_buckets_final(wf_buckets *b, int64_t part);
/* All sums of the step, which must have been started by then; makes ready for the next step. */
wf_status wf_buckets_wait(wf_buckets *b);
/* Divided: every rank's values of its shares to all. */
wf_status wf_buckets_gather(wf_buckets *b);

/* What rank `rank` has of elements [begin, begin + n) of a bucket's flat buffer: how many, and the first of
 * them. */
int64_t wf_bucket_overlap(const wf_bucket *b, int rank, int64_t begin, int64_t n, int64_t *first);

#ifdef __cplusplus
}
#endif

#endif
