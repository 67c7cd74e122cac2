/* From parameters to the parts of flat buffers, and from their buckets to the optimiser's groups. */
#include "experiments/shards.h"
#include "core/memory.h"
#include "dist/mesh.h"
#include "experiments/human.h"

#include <math.h>
#include <stdio.h>
#include <xxhash.h>

static int64_t bytes_of(const wf_tensor *x) {
  return wf_numel(x) * (int64_t)wf_dtype_size(x->dtype);
}

typedef struct wf_shard_hook {
  wf_buckets *buckets;
  int64_t part;
} hook;

/* Parameters are declared in the order of the forward: the last becomes final first. */
static int64_t part_of(const wf_shards *s, int i) {
  return s->params->n - 1 - i;
}

static void final(void *arg, wf_leaf *leaf) {
  const hook *h = arg;
  (void)leaf;
  wf_buckets_final(h->buckets, h->part);
}

static wf_status make_buckets(wf_shards *s, wf_ctx *c, int64_t bytes) {
  wf_params *ps = s->params;
  wf_flat *flat = wf_calloc("dist", (size_t)s->all.n + 1, sizeof *flat);
  wf_flat_part *part = wf_calloc("dist", (size_t)ps->n + 1, sizeof *part);
  wf_status st = flat && part ? WF_OK : WF_ENOMEM;
  for (int g = 0; g < s->all.n && st == WF_OK; g++)
    flat[g] = (wf_flat){s->all.group[g].value, s->all.group[g].grad, s->all.group[g].matrix};
  for (int i = 0; i < ps->n && st == WF_OK; i++)
    part[part_of(s, i)] = (wf_flat_part){ps->param[i]->group, ps->param[i]->offset, ps->param[i]->numel};
  if (st == WF_OK)
    st = wf_buckets_create(c, s->comm, s->all.n, flat, ps->n, part, bytes, s->divided, &s->buckets);
  wf_free(flat);
  wf_free(part);
  return st;
}

static wf_status hook_leaves(wf_shards *s) {
  WF_CALLOC(s->hook, "dist", s->params->n + 1);
  for (int i = 0; i < s->params->n; i++) {
    s->hook[i] = (hook){s->buckets, part_of(s, i)};
    s->params->param[i]->leaf.final = final;
    s->params->param[i]->leaf.arg = &s->hook[i];
  }
  return WF_OK;
}

/* The ranges of this rank's share of a bucket; those that are cut have lost their shape. */
static void own_ranges(const wf_opt_group *all, const wf_bucket *k, int rank, wf_opt_range **next,
                       wf_opt_group *own) {
  own->range = *next;
  for (int i = 0; i < all->n_ranges; i++) {
    wf_opt_range *r = *next;
    int64_t first, n = wf_bucket_overlap(k, rank, all->range[i].offset, all->range[i].numel, &first);
    if (n == 0) continue;
    *r = all->range[i];
    r->offset = first - k->own;
    if (n < r->numel) {
      r->numel = n;
      r->ndim = 1;
      r->shape = &r->numel;
    }
    own->n_ranges++;
    ++*next;
  }
}

static wf_status own_groups(wf_shards *s) {
  const wf_buckets *b = s->buckets;
  wf_groups *own = &s->own;
  WF_CALLOC(own->group, "optimizer", b->n + 1);
  WF_CALLOC(own->range, "optimizer", s->params->n + 2 * b->n + 1);
  WF_CALLOC(s->group, "optimizer", b->n + 1);
  wf_opt_range *next = own->range;
  for (int g = 0; g < s->all.n; g++)
    for (int i = b->n; i-- > 0;) { /* upwards in the buffer */
      const wf_bucket *k = &b->bucket[i];
      if (k->flat != g) continue;
      s->group[i] = own->n;
      wf_opt_group *to = &own->group[own->n++];
      *to = s->all.group[g];
      to->value = k->own_value;
      to->grad = k->own_grad;
      to->n_ranges = 0;
      own_ranges(&s->all.group[g], k, wf_comm_rank(s->comm), &next, to);
    }
  return WF_OK;
}

static wf_status open_buckets(wf_shards *s, wf_ctx *c, int64_t bytes) {
  WF_TRY(make_buckets(s, c, bytes));
  WF_TRY(hook_leaves(s));
  return s->divided ? own_groups(s) : WF_OK;
}

wf_status wf_shards_open(wf_comm *comm, wf_model *m, bool divide, int64_t bucket_bytes, wf_shards *s) {
  bool alone = wf_comm_size(comm) == 1;
  *s = (wf_shards){.comm = comm, .params = wf_model_params(m), .divided = divide && !alone};
  WF_TRY(wf_groups_of(m, &s->all));
  if (!s->divided) s->own = s->all;
  if (alone) return WF_OK;
  wf_status st = open_buckets(s, wf_model_ctx(m), bucket_bytes);
  if (st != WF_OK) wf_shards_close(s);
  return st;
}

void wf_shards_close(wf_shards *s) {
  for (int i = 0; s->hook && i < s->params->n; i++) s->params->param[i]->leaf.final = NULL;
  wf_free(s->hook);
  wf_free(s->group);
  wf_buckets_free(s->buckets);
  if (s->divided) wf_groups_free(&s->own);
  wf_groups_free(&s->all);
  *s = (wf_shards){0};
}

int64_t wf_shards_bytes(const wf_shards *s) {
  int64_t bytes = 0;
  for (int g = 0; g < s->all.n; g++) bytes += bytes_of(s->all.group[g].grad);
  for (int g = 0; g < s->own.n && s->divided; g++) bytes += bytes_of(s->own.group[g].grad);
  return bytes;
}

void wf_shards_describe(const wf_shards *s, char out[100]) {
  char bytes[24];
  out[0] = '\0';
  if (!s->buckets) return;
  snprintf(out, 100, "; gradients in %d bucket%s, %s a step", s->buckets->n, s->buckets->n == 1 ? "" : "s",
           wf_human_bytes((double)wf_shards_bytes(s), bytes));
}

/* ---- a step ---- */

wf_status wf_shards_sum(wf_shards *s) {
  return s->buckets ? wf_buckets_wait(s->buckets) : WF_OK;
}

wf_status wf_shards_spread(wf_shards *s) {
  return s->divided ? wf_buckets_gather(s->buckets) : WF_OK;
}

wf_status wf_shards_measure(wf_ctx *c, const wf_shards *s, double scale, double max_norm, wf_grad_norm *out) {
  double sumsq;
  WF_TRY(wf_grad_sumsq(c, s->own.n, s->own.group, &sumsq));
  if (s->divided) WF_TRY(wf_comm_all_reduce_host(s->comm, WF_F64, &sumsq, 1, WF_REDUCE_SUM));
  *out = wf_grad_clip(sumsq, scale, max_norm);
  return WF_OK;
}

wf_status wf_shards_find_bad(const wf_shards *s, const char **name) {
  wf_grad_bad bad;
  int64_t none = s->params->n, at = 0;
  WF_TRY(wf_grad_find_bad(s->own.n, s->own.group, &bad));
  while (at < none && !(bad.range && s->all.range[at].name == bad.range->name)) at++;
  WF_TRY(wf_comm_all_reduce_host(s->comm, WF_I64, &at, 1, WF_REDUCE_MIN));
  *name = at < none ? s->all.range[at].name : NULL;
  return WF_OK;
}

/* A hash of some weights: another stretch of each bucket in turn. */
static wf_status digest(const wf_shards *s, int64_t step, uint64_t *out) {
  enum { STRETCH = 1 << 18 };
  const wf_buckets *b = s->buckets;
  const wf_bucket *k = &b->bucket[step % b->n];
  int64_t at = k->n ? step / b->n * STRETCH % k->n : 0, n = k->n - at < STRETCH ? k->n - at : STRETCH;
  size_t bytes = (size_t)n * wf_dtype_size(k->value->dtype);
  void *host;
  WF_ALLOC(host, "dist", bytes + 1);
  wf_scope scope = wf_scope_open(k->value->ctx);
  wf_tensor *part = wf_view_raw(k->value, WF_SHAPE(n), NULL, at);
  wf_status st = wf_is_poison(part) ? wf_ctx_check(k->value->ctx) : wf_to_host(part, host);
  wf_scope_close(k->value->ctx, scope);
  *out = XXH3_64bits(host, bytes);
  wf_free(host);
  return st;
}

wf_status wf_shards_agree(const wf_shards *s, int64_t step, double loss, double norm) {
  struct seen {
    double loss, norm;
    uint64_t weights;
  } seen = {isnan(loss) ? -1 : loss, isnan(norm) ? -1 : norm, 0}; /* there are many NaNs */
  char what[100];
  if (!s->buckets || s->buckets->n == 0) return WF_OK;
  WF_TRY(digest(s, step, &seen.weights));
  snprintf(what, sizeof what, "the loss, the gradient norm or the weights of step %lld", (long long)step);
  wf_status st = wf_agree_on(s->comm, XXH3_64bits(&seen, sizeof seen), what);
  if (st == WF_EPEER)
    wf_hint(st, "some rank computes otherwise than the others (its processor, its libraries, its memory); "
                "weft train --resume goes on from the last checkpoint");
  return st;
}

/* ---- places ---- */

int wf_shards_find(const wf_shards *s, int i, int64_t *first, int64_t *n, int64_t *at, int64_t *count) {
  const wf_param *p = s->params->param[i];
  if (!s->divided) {
    *first = 0;
    *n = p->numel;
    *at = p->offset;
    return p->group;
  }
  int index = s->buckets->of_part[part_of(s, i)];
  const wf_bucket *k = &s->buckets->bucket[index];
  int64_t begin;
  for (int r = 0; r < wf_comm_size(s->comm) && count; r++)
    count[r] = wf_bucket_overlap(k, r, p->offset, p->numel, &begin);
  *n = wf_bucket_overlap(k, wf_comm_rank(s->comm), p->offset, p->numel, &begin);
  *first = *n ? begin - p->offset : 0;
  *at = *n ? begin - k->own : 0;
  return s->group[index];
}
