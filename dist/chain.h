/* chain: the state that enters each segment of a part, given what each segment makes of a state.
 *
 * A segment is a map S -> A S + B for each lane (core/op.h: wf_carry_kind), or leaves the lane alone, or sets
 * it (part.h: links). The exclusive scan of these maps over the segments gives every segment its entering
 * state; with A^T, from the last segment to the first, the gradient of what it leaves. Three transports, one
 * result:
 *
 *   relay    each segment's state goes to the next                               LASP-1 (Sun et al. 2024)
 *   gather   every rank gets every map and folds those before it                 LASP-2 (Sun et al. 2025)
 *   log      in step k segment i sends the fold of 2^k maps up to its own to segment i + 2^k
 *                                                                               (Hillis & Steele 1986)
 *
 * Segments of one rank pass maps on without a message. A state of many heads is scanned in blocks, a chain
 * for each, so that the messages of one are under way while another is computed:
 *
 *     wf_chain_open for all blocks; for each: its maps, wf_chain_start;
 *     for each turn but the last, for each block: wf_chain_turn; for each block: its last turn, its run
 *     wf_chain_close for all, also after a failure
 *
 * Every rank opens, starts and turns the same chains in the same order. Tensors live in the caller's scope.
 */
#ifndef WF_DIST_CHAIN_H
#define WF_DIST_CHAIN_H

#include "core/op.h"
#include "dist/part.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_chain wf_chain;

typedef struct wf_chain_spec {
  wf_ctx *c;
  const wf_part *part;
  wf_carry_kind kind;
  bool turned; /* gradients: from the last segment to the first */
  wf_transport transport;
  wf_dtype dtype;
  wf_desc A, B;     /* of one lane set: [n_lanes, ...]; A.ndim 0: the kind has no A */
  wf_chain *before; /* of the block before, whose state a relay asks for first; NULL: none */
} wf_chain_spec;

/* `start` [n_lanes, ...], at the owner of the last segment: the state that enters segment 0 or, turned, the
 * gradient of what the last segment leaves; NULL for none, and not read unless the part `enters` or turned.
 */
wf_status wf_chain_open(const wf_chain_spec *spec, wf_tensor *start, wf_chain **out);
/* Is the map of the k-th own segment asked for; and its A? */
bool wf_chain_needs(const wf_chain *ch, int k);
bool wf_chain_needs_factor(const wf_chain *ch, int k);
/* The maps of the own segments [n_own n_lanes, ...], contiguous; either may be NULL where no segment needs
 * it. */
wf_status wf_chain_start(wf_chain *ch, wf_tensor *A, wf_tensor *B);
int wf_chain_turns(const wf_chain *ch);
wf_status wf_chain_turn(wf_chain *ch, int turn);
/* After the last turn: what enters the k-th own segment; NULL where nothing does (zero). */
wf_tensor *wf_chain_state(const wf_chain *ch, int k);
/* For WF_CARRY_MAX, to the bit what enters the segment after the k-th own one. */
wf_tensor *wf_chain_leaves(const wf_chain *ch, int k);
/* Waits for what is under way. */
wf_status wf_chain_close(wf_chain *ch);

#ifdef __cplusplus
}
#endif

#endif
