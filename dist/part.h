/* part: the tokens of a piece that one rank has, and what it knows of the other ranks'.
 *
 * Every rank knows the rows of the whole piece; its tokens are those of its segments (layout.h), one segment
 * after the other. A lane of the piece is a lane of its own in each segment of the rank: local lane
 * slot * n_lanes + lane, so that the state between two segments of one rank is a state like any other.
 *
 * State goes along the segments. What enters segment 0 lies where the last segment of the piece before left
 * it: in the lanes of that segment's slot, on its owner.
 */
#ifndef WF_DIST_PART_H
#define WF_DIST_PART_H

#include "dist/comm.h"
#include "dist/cost.h"
#include "dist/layout.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How keys and values come to the queries of attention (layers/seq_attend_ranks.c). A window and dilated
 * segments are always gathered. */
typedef enum wf_dist_attention {
  WF_ATTENTION_AUTO,       /* the way of the fewest bytes */
  WF_ATTENTION_RING,       /* they go round */
  WF_ATTENTION_GATHER,     /* each rank gets what its queries see */
  WF_ATTENTION_ALL_TO_ALL, /* tokens become heads and back; the ranks divide the heads */
  WF_ATTENTION_USP         /* that in teams of neighbours, and rings between the teams (Fang & Zhao 2024) */
} wf_dist_attention;

/* How states go from segment to segment. */
typedef enum wf_transport {
  WF_TRANSPORT_AUTO,   /* what the cost model says, for each scan */
  WF_TRANSPORT_SERIAL, /* one segment runs after the other */
  WF_TRANSPORT_PIPE,   /* the same block of heads by block of heads, for one segment a rank */
  WF_TRANSPORT_RELAY,  /* what segments make of a state is summed up first; see chain.h */
  WF_TRANSPORT_GATHER,
  WF_TRANSPORT_LOG
} wf_transport;

/* How what has no map of its state, serial mixers, runs over ranks. */
typedef enum wf_dist_serial {
  WF_SERIAL_AUTO,  /* shards where they promise to keep the ranks twice as busy; turns where the transport is
                      SERIAL */
  WF_SERIAL_TURNS, /* segment by segment, in groups of lanes or heads */
  WF_SERIAL_ALL_TO_ALL /* tokens become (head, lane) pairs and back: shards.h */
} wf_dist_serial;

/* Do a recurrence's tokens move to the contiguous layout and back, where the sequence lies otherwise?
 * relayout.h */
typedef enum wf_dist_relayout {
  WF_RELAYOUT_AUTO, /* for the mixers for which wf_model_relayout said so */
  WF_RELAYOUT_NEVER,
  WF_RELAYOUT_ALWAYS
} wf_dist_relayout;

/* How a group of ranks shares sequences. */
typedef struct wf_dist {
  wf_comm *comm; /* of the ranks that share a sequence */
  const wf_layout *layout;
  wf_dist_attention attention;
  wf_transport transport;
  wf_dist_serial serial;
  wf_dist_relayout relayout;
  int blocks;    /* of heads or channels that a scan's messages are divided into; 0: as the cost model says */
  wf_cost *cost; /* NULL: the default one; counts the scans */
} wf_dist;

typedef struct wf_part {
  const wf_dist *dist;
  int rank, n_segments;
  int n_own, *own;  /* [n_own] the segments of this rank */
  int64_t n_lanes;  /* of the piece; this rank has n_own * n_lanes */
  int64_t n_tokens; /* of this rank */
  bool enters;      /* a row of the piece takes state from before it */
  bool leaves;      /* a row of the piece leaves state after it */
  int64_t length;   /* places of the piece: tokens of its longest lane */

  wf_row *whole; /* [n_whole] the rows of the piece, as they came */
  int64_t n_whole;
  /* Of all segments. Rows are the piece's, cut; `begin` counts the tokens of the segment. */
  wf_row *row;
  int64_t *first;      /* [n_segments + 1] the first row of each segment */
  int64_t *tokens;     /* [n_segments] */
  unsigned char *link; /* [n_segments * n_lanes] wf_link */

  /* Earlier pieces of the same pass, each of `piece` places cut in the same way: what caches hold. */
  int64_t past, piece;
  int64_t *start; /* [n_lanes] the place of the piece's first token in each lane (INT64_MAX: none) */

  /* Lanes in groups, which ranks that wait for each other work on one after the other: while one rank has a
   * group, the rank before has the next one. Group g has the lanes wf_part_lane(p, g) to wf_part_lane(p,
   * g+1). */
  int n_groups;
  wf_rows **rows;               /* [n_own * n_groups] wf_part_rows */
  struct wf_key_map *keys;      /* dist/keys.h: what attention needs to know, made when asked for */
  struct wf_relayout *relayout; /* dist/relayout.h: the same piece in the contiguous layout, likewise */
} wf_part;

/* `row` tiles the piece; the part refers to `d` and copies the rest. `past` pieces of `piece` places came
 * before. Rows must be the same on all ranks. Errors: WF_EINVAL. The caller frees. */
wf_status wf_part_create(const wf_dist *d, int64_t n_rows, const wf_row *row, int64_t n_lanes, int64_t past,
                         int64_t piece, wf_part **out);
void wf_part_free(wf_part *p);

/* The rows of group g in this rank's k-th segment alone, lane 0 being the group's first; made when first
 * asked for, owned by the part. */
wf_status wf_part_rows(wf_part *p, wf_ctx *c, int k, int g, const wf_rows **out);
/* Of what P ranks could do, the part that ranks do which wait for each other's groups of lanes, in one layer
 * alone: where the segments are contiguous, a rank goes on to the next layer while those behind it are in
 * this one, and several layers may do better. */
double wf_part_efficiency(const wf_part *p);

static inline int64_t wf_part_lane(const wf_part *p, int g) {
  return p->n_lanes * g / p->n_groups;
}

static inline int wf_part_owner(const wf_part *p, int segment) {
  return p->dist->layout->owner[segment];
}
static inline int wf_part_slot(const wf_part *p, int segment) {
  return p->dist->layout->slot[segment];
}

#ifdef __cplusplus
}
#endif

#endif
