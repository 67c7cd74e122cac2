/* segments: an op with a state (core/op.h: wf_carry) over the segments of a part.
 *
 *     wf_segments s = wf_segments_of(part);
 *     wf_rows rows = *run->rows;                    all rows of this rank
 *     rows.carrier = &s.carrier;
 *     y = wf_scan(c, &in, state_in, &rows, ...);    over all ranks
 *
 * Forward, each segment's map of the state is formed (`advance`, `factor`), the chain brings the states that
 * enter, and the op runs once with them. Backward, the gradient of the entering state alone is formed with
 * none from after (an op's vjp asked for nothing else does no more than that), the chain turned brings the
 * gradients of the leaving states, and the op's own vjp runs once with them. No gradient of a map is
 * exchanged, and nothing of the forward is exchanged again: the entering states are kept, as are dense A,
 * which cost as much as a scan.
 *
 * By the pipe there are no maps: a segment's run of a block of heads waits for the block of the segment
 * before, and while it runs the next rank does the block before it. A rank with several segments (zigzag)
 * runs them one after the other, where all inputs of tokens are divided by heads: each needs the tokens of
 * one.
 */
#ifndef WF_DIST_SEGMENTS_H
#define WF_DIST_SEGMENTS_H

#include "dist/chain.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_segments {
  wf_carrier carrier;
  wf_part *part;
} wf_segments;

wf_segments wf_segments_of(wf_part *part);
/* False where the transport asked for runs one segment after the other: not here. */
bool wf_segments_serve(const wf_part *part);
/* May an op without a map of its state go block by block of heads? */
bool wf_segments_pipe(const wf_part *part);

#ifdef __cplusplus
}
#endif

#endif
