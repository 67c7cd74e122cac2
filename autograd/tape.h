/* tape: reverse-mode differentiation of what a context computes.
 *
 * While a tape records, every op applied to a variable becomes a node. wf_backward() walks the nodes from the
 * last to the first, calls each op's vjp, and gives saved tensors back as it goes. Variables begin at leaves:
 * a tensor and a place for its gradient that the caller owns (a parameter's slice of a flat buffer, the
 * gradient of an entering state). The first writer of a gradient overwrites (so nothing is zeroed), later
 * ones add.
 *
 *     wf_tape_watch(tape, w, &leaf);
 *     wf_tape_record(tape);
 *     loss = ...;
 *     wf_tape_pause(tape);
 *     WF_TRY(wf_backward(tape, 1, &loss, NULL));      // leaf.grad holds d loss / d w
 */
#ifndef WF_AUTOGRAD_TAPE_H
#define WF_AUTOGRAD_TAPE_H

#include "core/op.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_tape wf_tape;

/* A gradient's destination, outliving tapes. Zero-initialise, then set `grad` (and `final`, `arg` if wanted).
 *
 * It is final when nothing can write it any more: every recorded use has been consumed and every hold
 * released. Holds stand for uses still to come: micro-batches, pieces to replay, recomputed functions.
 * Writing a final gradient is an error until wf_leaf_reset(). */
typedef struct wf_leaf {
  wf_tensor *grad; /* the tensor's dtype and number of elements, contiguous; owned by the caller */
  bool written;    /* holds a gradient: later writers add */
  bool finished;
  int64_t uses, holds;
  void (*final)(void *arg, struct wf_leaf *leaf); /* called once when the gradient is final; may be NULL */
  void *arg;
} wf_leaf;

void wf_leaf_reset(wf_leaf *leaf); /* a new step: not written, not finished */
void wf_leaf_hold(wf_leaf *leaf);
void wf_leaf_release(wf_leaf *leaf);     /* may call `final` */
wf_status wf_leaf_finish(wf_leaf *leaf); /* a step's end: a gradient that nothing wrote is zero, and final */

wf_status wf_tape_create(wf_ctx *c, wf_tape **out);
void wf_tape_free(wf_tape *t); /* an unconsumed tape gives its uses of leaves back */

void wf_tape_record(wf_tape *t); /* from now on ops of the context are recorded here */
void wf_tape_pause(wf_tape *t);  /* the recorder before wf_tape_record() is back */
wf_tape *wf_tape_of(wf_ctx *c);  /* the tape that records in this context, or NULL */

/* Make `x` a variable of the tape whose gradient goes to `leaf`. */
wf_status wf_tape_watch(wf_tape *t, wf_tensor *x, wf_leaf *leaf);
bool wf_tape_knows(const wf_tape *t, const wf_tensor *x); /* is x a variable of the tape? */

/* Another name for the same variable with another shape of as many elements: `x` is contiguous, or only its
 * last dimension is divided in two (heads). Unlike wf_reshape it is not a node: both names share one
 * gradient, so that of a projection's heads is written where the projection's own belongs. */
wf_tensor *wf_same_variable(wf_tensor *x, int ndim, const int64_t *shape);

/* Differentiate sum_i <cotangents[i], roots[i]> and consume the tape. A NULL cotangent (or NULL array) stands
 * for ones. Roots that are no variables are passed over. The tape can be used again afterwards. Errors: an op
 * without gradient, a failed kernel; WF_EINVAL for a cotangent of another shape. */
wf_status wf_backward(wf_tape *t, int n, wf_tensor *const *roots, wf_tensor *const *cotangents);

/* Recomputation (Chen et al. 2016). Runs fn now without recording and again during the backward, so that only
 * its inputs stay in memory. fn must be deterministic, may use leaves freely (parameters, caches), and may
 * use other variables only through `in`. Where no tape records it just runs fn. `arg` is copied (arg_size
 * bytes); what it points to must live until the backward. n_in, n_out <= WF_FN_MAX. */
enum { WF_FN_MAX = 32 };
typedef wf_status (*wf_fn)(wf_ctx *c, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                           wf_tensor **out);
wf_status wf_checkpoint(wf_ctx *c, wf_fn fn, const void *arg, size_t arg_size, int n_in, wf_tensor *const *in,
                        int n_out, wf_tensor **out);

#ifdef __cplusplus
}
#endif

#endif
