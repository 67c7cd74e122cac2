/* mesh: all ranks of a job as data x sequence.
 *
 * Rank w of the world is rank w % sequence of its sequence group, which shares every sequence of its batch,
 * and rank w / sequence of its data group, which shares the batch. So the ranks of a sequence are neighbours:
 * they exchange most.
 */
#ifndef WF_DIST_MESH_H
#define WF_DIST_MESH_H

#include "dist/part.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_mesh {
  wf_comm *world, *data, *sequence; /* owned */
  wf_layout *layout;                /* of a sequence over its group; owned */
  wf_cost cost;                     /* of the links of a sequence, where they were measured */
  wf_dist dist; /* the sequence group, for wf_step; used where it has more than one rank */
} wf_mesh;

/* Takes `world` over, also when this fails. WF_EINVAL unless data x sequence is its size. */
wf_status wf_mesh_open(wf_comm *world, int data, int sequence, wf_layout_kind layout, wf_mesh *out);
/* The same of groups that there are already; takes all three over, also when this fails. */
wf_status wf_mesh_join(wf_comm *world, wf_comm *data, wf_comm *sequence, wf_layout_kind layout, wf_mesh *out);
void wf_mesh_close(wf_mesh *m);

static inline const wf_dist *wf_mesh_dist(const wf_mesh *m) {
  return wf_comm_size(m->sequence) > 1 ? &m->dist : NULL;
}

/* Every rank calls with its own status: WF_OK when all are. A rank that is well itself gets WF_EPEER, naming
 * the first rank that failed and `phase`; the others keep their own status. */
wf_status wf_agree(wf_comm *c, wf_status mine, const char *phase);
/* WF_EPEER unless all ranks call with the same `value`; `what` names it. */
wf_status wf_agree_on(wf_comm *c, uint64_t value, const char *what);

#ifdef __cplusplus
}
#endif

#endif
