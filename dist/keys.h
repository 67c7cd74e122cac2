/* keys: where the keys of attention lie when a piece of a sequence is cut over ranks, and whose queries see
 * which of them.
 *
 * Every rank has a pool of keys: its tokens, or the caches of its lanes. Plans say which rows of whose pools
 * go where. They follow from the rows alone, which every rank knows, so all ranks make the same ones; they
 * are made when first asked for and live as long as the part.
 */
#ifndef WF_DIST_KEYS_H
#define WF_DIST_KEYS_H

#include "core/ops.h"
#include "dist/exchange.h"
#include "dist/part.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum wf_keys_where {
  WF_KEYS_TOKENS, /* a pool is the tokens of the rank; nothing came before the piece */
  WF_KEYS_WINDOW, /* the same, and on the rank of the last segment the `room` last tokens of every lane before
                     the piece, in front: [n_lanes, room], unless no state enters or leaves the piece */
  WF_KEYS_CACHE   /* the caches of the local lanes, [n_own * n_lanes, room], with the tokens of the piece */
} wf_keys_where;

typedef struct wf_keys {
  wf_keys_where where;
  int64_t room;
  int64_t reach; /* keys that a query may see at most, its own included; 0: all */
  int team;      /* so many ranks, neighbours, divide the heads and have each other's tokens; 0 is 1 */
} wf_keys;

/* What the ranks' queries see, brought to them. */
typedef struct wf_keys_plan {
  wf_exchange move;
  int64_t n_spans;
  wf_attend_span *span; /* [n_spans] for each row of queries */
  int64_t *pos;         /* [n_spans] the position of its first query in the document */
  int64_t total;        /* keys moved, over all ranks */
} wf_keys_plan;

/* The keys of each rank's own rows, in the order of their documents; a span for each row of the rank. */
wf_status wf_keys_fetch(wf_part *p, const wf_keys *k, const wf_keys_plan **out);
/* Those of all rows of the piece to every rank, which then takes some of the heads; a span for each document,
 * with queries in the order of wf_keys_fetch_all({WF_KEYS_TOKENS, 0, 1}). */
wf_status wf_keys_fetch_all(wf_part *p, const wf_keys *k, const wf_keys_plan **out);
/* The last `room` tokens of every lane after the piece, from the pools of WF_KEYS_WINDOW to the rank of the
 * last segment: [n_own * n_lanes, room], the rest of it 0. */
wf_status wf_keys_leave(wf_part *p, int64_t room, const wf_keys_plan **out);
/* The pools of the ranks of a team, one behind the other, to each of them. */
wf_status wf_keys_team(wf_part *p, const wf_keys *k, const wf_keys_plan **out);
/* Places in its cache of a row of this rank. */
int64_t wf_keys_cache_place(const wf_part *p, const wf_row *local);

/* The places in their lanes, from the piece's start on, of the keys in this rank's pool (without a window):
 * place[rows of the pool], written where there is a key. */
void wf_keys_places(const wf_part *p, const wf_keys *k, double *place);

void wf_keys_free(wf_part *p); /* called by wf_part_free */

#ifdef __cplusplus
}
#endif

#endif
