/* Groups of ranks, and what they agree on. */
#include "dist/mesh.h"

#include <string.h>

wf_status wf_mesh_join(wf_comm *world, wf_comm *data, wf_comm *sequence, wf_layout_kind layout, wf_mesh *m) {
  *m = (wf_mesh){.world = world, .data = data, .sequence = sequence};
  wf_status st = wf_layout_create(layout, wf_comm_size(sequence), NULL, &m->layout);
  m->dist = (wf_dist){.comm = sequence, .layout = m->layout};
  if (st != WF_OK) wf_mesh_close(m);
  return st;
}

wf_status wf_mesh_open(wf_comm *world, int data, int sequence, wf_layout_kind layout, wf_mesh *m) {
  int rank = wf_comm_rank(world), size = wf_comm_size(world);
  wf_comm *along = NULL, *beside = NULL;
  wf_status st = data >= 1 && sequence >= 1 && (int64_t)data * sequence == size
                     ? WF_OK
                     : WF_FAIL(WF_EINVAL, "a mesh of %d x %d for %d ranks", data, sequence, size);
  if (st == WF_OK) st = wf_comm_split(world, rank / sequence, rank, &along);
  if (st == WF_OK) st = wf_comm_split(world, rank % sequence, rank, &beside);
  if (st == WF_OK) return wf_mesh_join(world, beside, along, layout, m);
  *m = (wf_mesh){.world = world, .data = beside, .sequence = along};
  wf_mesh_close(m);
  return st;
}

void wf_mesh_close(wf_mesh *m) {
  wf_layout_free(m->layout);
  wf_comm_free(m->data);
  wf_comm_free(m->sequence);
  wf_comm_free(m->world);
  *m = (wf_mesh){0};
}

/* The smallest and the largest of every rank's x. */
static wf_status extremes(wf_comm *c, int64_t x, int64_t *least, int64_t *most) {
  int64_t both[2] = {x, ~x}; /* ~ turns the order round: the maximum of ~x is the minimum of x */
  WF_TRY(wf_comm_all_reduce_host(c, WF_I64, both, 2, WF_REDUCE_MAX));
  *most = both[0];
  *least = ~both[1];
  return WF_OK;
}

wf_status wf_agree(wf_comm *c, wf_status mine, const char *phase) {
  if (wf_comm_size(c) == 1) return mine;
  int64_t none = wf_comm_size(c), first = none, last;
  wf_status st = extremes(c, mine == WF_OK ? none : wf_comm_rank(c), &first, &last);
  if (mine != WF_OK) return mine;
  WF_TRY(st);
  if (first == none) return WF_OK;
  return WF_FAIL(WF_EPEER, "rank %lld failed while %s", (long long)first, phase);
}

wf_status wf_agree_on(wf_comm *c, uint64_t value, const char *what) {
  int64_t x, least = 0, most = 0;
  memcpy(&x, &value, sizeof x);
  WF_TRY(extremes(c, x, &least, &most));
  if (least == most) return WF_OK;
  return WF_FAIL(WF_EPEER, "the ranks do not agree on %s", what);
}
