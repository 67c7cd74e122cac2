/* Cutting flat buffers into buckets and shares; starting sums in their order. */
#include "dist/buckets.h"
#include "core/memory.h"
#include "dist/comm_impl.h"

#include <stdlib.h>

/* ---- shares ---- */

/* Equal shares of elements [begin, begin + n), but for their alignment. */
static void share_equally(wf_bucket *b, int ranks) {
  int64_t before = b->begin, end = b->begin + b->n;
  for (int r = 0; r < ranks; r++) {
    int64_t bound = b->begin + (int64_t)((__int128)b->n * (r + 1) / ranks);
    bound = (bound + WF_SHARE_ALIGN - 1) / WF_SHARE_ALIGN * WF_SHARE_ALIGN;
    if (bound > end || r == ranks - 1) bound = end;
    b->share[r] = bound - before;
    before = bound;
  }
}

/* Whole parts. Going up through a bucket, a part goes to one of the ranks whose equal shares it would touch,
 * the least loaded: so shares stand in the order of the ranks, as the collectives want them. `load` counts
 * elements over all buckets. */
static void share_parts(wf_bucket *b, int ranks, int64_t n_parts, const wf_flat_part *part,
                        const int *of_part, int index, int64_t *load) {
  int64_t from = 0;
  for (int64_t i = n_parts; i-- > 0;) { /* backwards is upwards */
    if (of_part[i] != index || part[i].n == 0) continue;
    int64_t to = from + part[i].n;
    int lo = (int)((__int128)ranks * from / b->n), hi = (int)(((__int128)ranks * to + b->n - 1) / b->n),
        best = lo;
    for (int r = lo + 1; r < hi; r++)
      if (load[r] < load[best]) best = r;
    b->share[best] += part[i].n;
    load[best] += part[i].n;
    from = to;
  }
}

int64_t wf_bucket_overlap(const wf_bucket *b, int rank, int64_t begin, int64_t n, int64_t *first) {
  int64_t from = b->begin + wf_sum_counts(b->share, rank), to = from + b->share[rank];
  if (begin > from) from = begin;
  if (begin + n < to) to = begin + n;
  *first = from;
  return to > from ? to - from : 0;
}

/* ---- creation ---- */

/* Parts to buckets, in the order in which they are complete; `open` is the bucket of each flat buffer that
 * takes further parts. */
static wf_status cut(wf_buckets *b, const wf_flat *flat, int64_t n_parts, const wf_flat_part *part,
                     int64_t bytes, int *open) {
  int closed = 0;
  for (int64_t i = 0; i < n_parts; i++) {
    const wf_flat_part *p = &part[i];
    if (open[p->flat] < 0) {
      open[p->flat] = b->n;
      b->bucket[b->n++] = (wf_bucket){.flat = p->flat, .begin = p->begin + p->n};
    }
    wf_bucket *k = &b->bucket[open[p->flat]];
    if (p->begin + p->n != k->begin)
      return WF_FAIL(WF_EINVAL, "part %lld of a flat buffer ends at %lld, the one before it began at %lld",
                     (long long)i, (long long)(p->begin + p->n), (long long)k->begin);
    k->begin = p->begin;
    k->n += p->n;
    k->n_parts++;
    b->of_part[i] = open[p->flat];
    if (k->n * (int64_t)wf_dtype_size(flat[p->flat].grad->dtype) < bytes) continue;
    b->order[closed++] = open[p->flat];
    open[p->flat] = -1;
  }
  for (int64_t i = 0; i < n_parts; i++) b->bucket[b->of_part[i]].missing = (int)i;
  for (int k = 0; k < b->n; k++) { /* what is left open, by the last part of each */
    int at = closed;
    if (open[b->bucket[k].flat] != k) continue;
    for (; at > 0 && b->bucket[b->order[at - 1]].missing > b->bucket[k].missing; at--)
      b->order[at] = b->order[at - 1];
    b->order[at] = k;
    closed++;
  }
  return WF_OK;
}

static wf_tensor *view(wf_tensor *flat, int64_t begin, int64_t n) {
  return wf_keep(wf_view_raw(flat, WF_SHAPE(n), NULL, begin));
}

static wf_status make_tensors(wf_ctx *c, const wf_buckets *b, const wf_flat *flat, wf_bucket *k) {
  int rank = wf_comm_rank(b->comm);
  int64_t own = k->share[rank];
  wf_scope s = wf_scope_open(c);
  k->own = k->begin + wf_sum_counts(k->share, rank);
  k->value = view(flat[k->flat].value, k->begin, k->n);
  k->grad = view(flat[k->flat].grad, k->begin, k->n);
  if (b->divided) {
    k->own_value = view(flat[k->flat].value, k->own, own);
    k->own_grad = wf_keep(wf_zeros(c, "parameter gradient", k->grad->dtype, WF_SHAPE(own)));
  }
  wf_scope_close(c, s);
  return wf_ctx_check(c);
}

static wf_status fill(wf_ctx *c, wf_buckets *b, int n_flats, const wf_flat *flat, int64_t n_parts,
                      const wf_flat_part *part, int64_t bytes, int64_t *load) {
  int ranks = wf_comm_size(b->comm), *open;
  WF_CALLOC(b->bucket, "dist", n_parts + 1);
  WF_CALLOC(b->of_part, "dist", n_parts + 1);
  WF_CALLOC(b->order, "dist", n_parts + 1);
  WF_ALLOC(open, "dist", ((size_t)n_flats + 1) * sizeof *open);
  for (int i = 0; i < n_flats; i++) open[i] = -1;
  wf_status st = cut(b, flat, n_parts, part, bytes, open);
  wf_free(open);
  for (int i = 0; i < b->n && st == WF_OK; i++) {
    wf_bucket *k = &b->bucket[i];
    k->missing = k->n_parts;
    k->share = wf_calloc("dist", (size_t)ranks, sizeof *k->share);
    if (!k->share) return WF_ENOMEM;
    if (flat[k->flat].whole_parts)
      share_parts(k, ranks, n_parts, part, b->of_part, i, load);
    else
      share_equally(k, ranks);
    st = make_tensors(c, b, flat, k);
  }
  return st;
}

wf_status wf_buckets_create(wf_ctx *c, wf_comm *comm, int n_flats, const wf_flat *flat, int64_t n_parts,
                            const wf_flat_part *part, int64_t bytes, bool divided, wf_buckets **out) {
  wf_buckets *b;
  int64_t *load;
  WF_CALLOC(b, "dist", 1);
  *b = (wf_buckets){.comm = comm, .divided = divided};
  load = wf_calloc("dist", (size_t)wf_comm_size(comm), sizeof *load);
  wf_status st = load ? fill(c, b, n_flats, flat, n_parts, part, bytes, load) : WF_ENOMEM;
  wf_free(load);
  if (st == WF_OK)
    *out = b;
  else
    wf_buckets_free(b);
  return st;
}

void wf_buckets_free(wf_buckets *b) {
  if (!b) return;
  for (int i = 0; i < b->n; i++) {
    wf_bucket *k = &b->bucket[i];
    wf_drop(k->value);
    wf_drop(k->grad);
    wf_drop(k->own_value);
    wf_drop(k->own_grad);
    wf_free(k->share);
  }
  wf_free(b->bucket);
  wf_free(b->of_part);
  wf_free(b->order);
  wf_free(b);
}

/* ---- a step ---- */

static wf_status start(wf_buckets *b, wf_bucket *k) {
  if (b->divided) return wf_comm_reduce_scatter(b->comm, k->grad, k->share, k->own_grad, &k->pending);
  return wf_comm_all_reduce(b->comm, k->grad, WF_REDUCE_SUM, &k->pending);
}

void wf_buckets_final(wf_buckets *b, int64_t part) {
  b->bucket[b->of_part[part]].missing--;
  for (; b->status == WF_OK && b->started < b->n; b->started++) {
    wf_bucket *k = &b->bucket[b->order[b->started]];
    if (k->missing > 0) break;
    b->status = start(b, k);
  }
  wf_comm_poke(b->comm);
}

/* Waits for all, and returns the first failure. */
static wf_status wait_all(wf_buckets *b, wf_status st) {
  for (int i = 0; i < b->n; i++) {
    wf_status waited = wf_comm_wait(&b->bucket[b->order[i]].pending);
    if (st == WF_OK) st = waited;
  }
  return st;
}

wf_status wf_buckets_wait(wf_buckets *b) {
  wf_status st = wait_all(b, b->status);
  if (st == WF_OK && b->started < b->n)
    st = WF_FAIL(WF_EINTERNAL, "%d of %d buckets of gradients are not final", b->n - b->started, b->n);
  for (int i = 0; i < b->n; i++) b->bucket[i].missing = b->bucket[i].n_parts;
  b->started = 0;
  b->status = WF_OK;
  return st;
}

wf_status wf_buckets_gather(wf_buckets *b) {
  wf_status st = WF_OK;
  for (int i = 0; i < b->n && b->divided && st == WF_OK; i++) {
    wf_bucket *k = &b->bucket[i];
    st = wf_comm_all_gather(b->comm, k->own_value, k->share, k->value, &k->pending);
  }
  return wait_all(b, st);
}
