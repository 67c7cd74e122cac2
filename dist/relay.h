/* relay: a state handed from the rank of one segment to the rank of the next, as two ops of the tape.
 *
 *   y' = hand(y, S)   forward sends S on; y' is y. Backward receives the gradient of S.
 *   S  = take(like)   forward receives S. Backward sends its gradient back.
 *
 * `y` ties the sending to what the loss depends on, so that the tape reaches it; `like` has the shape of S
 * and is a variable where gradients are wanted (its own is zero). Both ends call in the same order.
 */
#ifndef WF_DIST_RELAY_H
#define WF_DIST_RELAY_H

#include "dist/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

wf_tensor *wf_hand(wf_ctx *c, wf_comm *comm, int to, wf_tensor *y, wf_tensor *S);
wf_tensor *wf_take(wf_ctx *c, wf_comm *comm, int from, wf_tensor *like);
/* y as it is, with a gradient of zero for S: so that the tape reaches what made S also where nothing read it.
 */
wf_tensor *wf_tie(wf_ctx *c, wf_tensor *y, wf_tensor *S);

/* The message alone, never recorded; tensors of any strides. */
wf_status wf_send_tensor(wf_ctx *c, wf_comm *comm, int to, wf_tensor *x);
wf_status wf_recv_tensor(wf_ctx *c, wf_comm *comm, int from, wf_tensor *x);

#ifdef __cplusplus
}
#endif

#endif
