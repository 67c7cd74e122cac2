/* Tables of segments and owners. */
#include "dist/layout.h"
#include "core/memory.h"

wf_status wf_layout_custom(int n_ranks, int n_segments, const int *owner, const int64_t *share,
                           wf_layout **out) {
  if (n_ranks < 1 || n_segments < 1)
    return WF_FAIL(WF_EINVAL, "%d segments over %d ranks", n_segments, n_ranks);
  wf_layout *l;
  WF_CALLOC(l, "dist", 1);
  l->n_ranks = n_ranks;
  l->n_segments = n_segments;
  l->owner = wf_calloc("dist", (size_t)n_segments, sizeof *l->owner);
  l->slot = wf_calloc("dist", (size_t)n_segments, sizeof *l->slot);
  l->ahead = wf_calloc("dist", (size_t)n_segments + 1, sizeof *l->ahead);
  wf_status st = l->owner && l->slot && l->ahead ? WF_OK : WF_ENOMEM;
  for (int s = 0; s < n_segments && st == WF_OK; s++) {
    int64_t part = share ? share[s] : 1;
    if (owner[s] < 0 || owner[s] >= n_ranks || part < 0)
      st = WF_FAIL(WF_EINVAL, "segment %d: rank %d of %d, share %lld", s, owner[s], n_ranks, (long long)part);
    l->owner[s] = owner[s];
    for (int i = 0; i < s; i++) l->slot[s] += owner[i] == owner[s];
    l->ahead[s + 1] = l->ahead[s] + part;
  }
  if (st == WF_OK && l->ahead[n_segments] == 0) st = WF_FAIL(WF_EINVAL, "the shares of all segments are 0");
  if (st != WF_OK) {
    wf_layout_free(l);
    return st;
  }
  *out = l;
  return WF_OK;
}

wf_status wf_layout_create(wf_layout_kind kind, int n_ranks, const int64_t *share, wf_layout **out) {
  int n = kind == WF_LAYOUT_ZIGZAG ? 2 * n_ranks : n_ranks, *owner;
  WF_CALLOC(owner, "dist", n > 0 ? n : 1);
  for (int s = 0; s < n; s++) owner[s] = s < n_ranks ? s : n - 1 - s;
  wf_status st = wf_layout_custom(n_ranks, n, owner, share, out);
  wf_free(owner);
  return st;
}

void wf_layout_free(wf_layout *l) {
  if (!l) return;
  wf_free(l->owner);
  wf_free(l->slot);
  wf_free(l->ahead);
  wf_free(l);
}

int64_t wf_layout_bound(const wf_layout *l, int64_t length, int s) {
  return (int64_t)((__int128)length * l->ahead[s] / l->ahead[l->n_segments]);
}

int wf_layout_most(const wf_layout *l) {
  int most = 0;
  for (int s = 0; s < l->n_segments; s++)
    if (l->slot[s] + 1 > most) most = l->slot[s] + 1;
  return most;
}
