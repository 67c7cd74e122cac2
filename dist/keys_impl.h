/* What the plans of keys.c, ring_plan.c and shards.c share. Private to dist. */
#ifndef WF_DIST_KEYS_IMPL_H
#define WF_DIST_KEYS_IMPL_H

#include "dist/keys.h"
#include "dist/ring_impl.h"
#include "dist/shards.h"

typedef struct wf_made_plan {
  struct wf_made_plan *next;
  int kind; /* of the functions that make them */
  wf_keys keys;
  wf_keys_plan plan;
  wf_ring_plan ring;
  wf_shards shards;
} wf_made_plan;

/* The rows of all segments in the order of their lanes and places, and the plans made so far. */
typedef struct wf_key_map {
  int64_t *order;  /* [rows] */
  int64_t *lane;   /* [n_lanes + 1] where each begins in `order` */
  int64_t *token;  /* [rows] the first token, among those of its owner */
  int *segment;    /* [rows] */
  int64_t *origin; /* [rows] the place where the row's document begins, or all that is left of it */
  int64_t *tokens; /* [ranks] */
  int *ranks;      /* [ranks + 1] where the segments of each begin in `segments` */
  int *segments;   /* [segments] by owner, in their order */
  wf_made_plan *made;
} wf_key_map;

enum { WF_PLAN_FETCH, WF_PLAN_FETCH_ALL, WF_PLAN_LEAVE, WF_PLAN_TEAM, WF_PLAN_RING, WF_PLAN_SHARDS };

static inline int wf_key_team(const wf_keys *k) {
  return k->team > 1 ? k->team : 1;
}
/* Rows of the pools of the ranks before this one in its team. */
int64_t wf_key_base(const wf_part *p, const wf_keys *k, int rank);

/* The plan of that kind, made by `make` when it is not there. */
wf_status wf_plan_get(wf_part *p, int kind, const wf_keys *k,
                      wf_status (*make)(const wf_part *p, const wf_key_map *m, const wf_keys *k,
                                        wf_made_plan *plan),
                      const wf_made_plan **out);

/* Where the key of that place lies: in row *row of the pool of rank *owner, with *n - 1 keys behind it there,
 * as far as `end`. */
wf_status wf_key_locate(const wf_part *p, const wf_key_map *m, const wf_keys *k, int64_t lane, int64_t place,
                        int64_t end, int *owner, int64_t *row, int64_t *n);

int64_t wf_key_document(const wf_part *p, const wf_key_map *m, int64_t j, int64_t *len);

/* Places of a full piece in segment s: of the pieces before this one. */
static inline int64_t wf_key_share(const wf_part *p, int s) {
  return wf_layout_bound(p->dist->layout, p->piece, s + 1) - wf_layout_bound(p->dist->layout, p->piece, s);
}

#endif
