/* shards: what runs token by token divides over ranks by what sees nothing of each other: the heads of each
 * lane. Pairs of a head and a lane, in this order, are dealt to the ranks as evenly as they go; a rank gets
 * the whole piece of its pairs, so nothing is cut and ranks wait for nothing in between.
 *
 *     pools     [heads, tokens of the rank], [heads, local lanes] of states
 *     results   the rank's blocks, one behind the other: [heads, tokens], [heads, lanes] of each
 *
 * A block is some heads of some lanes, all with all; a rank has three at most, and one at least: where there
 * are more ranks than pairs it is empty, [1, 0], and has the shapes of all.
 */
#ifndef WF_DIST_SHARDS_H
#define WF_DIST_SHARDS_H

#include "dist/exchange.h"
#include "dist/part.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_shard {
  int64_t head, heads, lane, lanes;
  int64_t tokens; /* of its lanes */
  wf_rows *rows;  /* of the whole piece, lane 0 being its first */
} wf_shard;

enum { WF_SHARD_BLOCKS = 3 };

typedef struct wf_shards {
  int n;
  wf_shard block[WF_SHARD_BLOCKS];
  wf_exchange tokens, states; /* states: from the last segment's, where the piece before left them */
} wf_shards;

/* The plan for so many heads (1: only lanes are divided); made when first asked for, owned by the part. */
wf_status wf_shards_get(wf_part *p, wf_ctx *c, int64_t heads, const wf_shards **out);
/* Of what the ranks could do, the part they do where the one with most pairs is waited for. */
double wf_shards_efficiency(const wf_part *p, int64_t heads);

void wf_shards_free(wf_shards *s); /* what it points to */

#ifdef __cplusplus
}
#endif

#endif
