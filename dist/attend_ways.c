/* Costs of the ways, from their plans. */
#include "dist/attend_ways.h"
#include "dist/ring.h"

int64_t wf_attend_repeats(int64_t kv_heads, int P) {
  int64_t f = 1;
  while (kv_heads * f % P && P % (kv_heads * f)) f++;
  return f;
}

static int64_t key_bytes(const wf_attend_size *z) {
  return z->kv_heads * (z->K + z->V) * z->number;
}

static wf_status ring_bytes(wf_part *p, const wf_keys *k, const wf_attend_size *z, int64_t *forward,
                            int64_t *backward) {
  const wf_ring_plan *ring;
  int64_t keys, gradients, terms = 8 * z->heads;
  WF_TRY(wf_ring_make(p, k, &ring));
  wf_ring_sends(ring, p->rank, &keys, &gradients);
  *forward = keys * (key_bytes(z) + (z->gates || z->bias ? terms : 0));
  *backward = *forward + gradients * (key_bytes(z) + (z->gates ? terms : 0));
  return WF_OK;
}

static wf_status gather_bytes(wf_part *p, const wf_keys *k, const wf_attend_size *z, int64_t *forward,
                              int64_t *backward) {
  const wf_keys_plan *keys;
  int64_t width = key_bytes(z) + (z->gates ? 8 * z->heads : 0);
  WF_TRY(wf_keys_fetch(p, k, &keys));
  *forward = wf_exchange_bytes(&keys->move, false, width);
  *backward = wf_exchange_bytes(&keys->move, true, width);
  return WF_OK;
}

/* Of one token and rank: its query, its output and its keys. */
typedef struct widths {
  int64_t query, output, key;
} widths;

static widths of_heads(const wf_attend_size *z, int P) {
  int64_t begin, end, mine = z->heads / P, gates = z->gates ? 8 * mine : 0;
  wf_head_share(z->kv_heads * wf_attend_repeats(z->kv_heads, P), 0, P, &begin, &end);
  return (widths){mine * z->K * z->number + gates, mine * (z->V + z->lse) * z->number,
                  (end - begin) * (z->K + z->V) * z->number + gates};
}

static wf_status heads_plans(wf_part *p, const wf_keys *k, const wf_keys_plan **tokens,
                             const wf_keys_plan **keys) {
  WF_TRY(wf_keys_fetch_all(p, &(wf_keys){WF_KEYS_TOKENS, 0, 1}, tokens));
  return wf_keys_fetch_all(p, k, keys);
}

static wf_status heads_bytes(wf_part *p, const wf_keys *k, const wf_attend_size *z, int64_t *forward,
                             int64_t *backward) {
  const wf_keys_plan *tokens, *keys;
  widths w = of_heads(z, wf_comm_size(p->dist->comm));
  WF_TRY(heads_plans(p, k, &tokens, &keys));
  *forward = wf_exchange_bytes(&tokens->move, false, w.query) + wf_exchange_bytes(&keys->move, false, w.key) +
             wf_exchange_bytes(&tokens->move, true, w.output);
  *backward = wf_exchange_bytes(&tokens->move, true, w.query) + wf_exchange_bytes(&keys->move, true, w.key) +
              wf_exchange_bytes(&tokens->move, false, w.output);
  return WF_OK;
}

wf_status wf_attend_bytes(wf_part *p, const wf_keys *k, const wf_attend_size *z, wf_dist_attention way,
                          int64_t *forward, int64_t *backward) {
  switch (way) {
  case WF_ATTENTION_RING: return ring_bytes(p, k, z, forward, backward);
  case WF_ATTENTION_GATHER: return gather_bytes(p, k, z, forward, backward);
  case WF_ATTENTION_ALL_TO_ALL: return heads_bytes(p, k, z, forward, backward);
  default: return WF_FAIL(WF_EINVAL, "bytes of an attention that is not chosen");
  }
}

/* Bytes of both passes over all ranks: what every rank can know. */
static wf_status cheapest(wf_part *p, const wf_keys *k, const wf_attend_size *z, wf_dist_attention *way) {
  const wf_ring_plan *ring = NULL;
  const wf_keys_plan *near, *tokens, *all;
  int P = wf_comm_size(p->dist->comm);
  int64_t kv = key_bytes(z), gates = z->gates ? 8 * z->heads : 0, terms = z->bias ? 8 * z->heads : gates;
  WF_TRY(wf_ring_make(p, k, &ring));
  WF_TRY(wf_keys_fetch(p, k, &near));
  int64_t round = wf_ring_total(ring), least = round * (3 * kv + 2 * terms + gates);
  *way = WF_ATTENTION_RING;
  if (2 * near->total <= round) {
    *way = WF_ATTENTION_GATHER;
    least = near->total * 2 * (kv + gates);
  }
  if (z->heads % P) return WF_OK;
  widths w = of_heads(z, P);
  WF_TRY(heads_plans(p, k, &tokens, &all));
  if (2 * (tokens->total * (w.query + w.output) + all->total * w.key) < least) *way = WF_ATTENTION_ALL_TO_ALL;
  return WF_OK;
}

wf_status wf_attend_way(wf_part *p, const wf_keys *k, const wf_attend_size *z, wf_dist_attention *way) {
  const wf_dist *d = p->dist;
  int P = wf_comm_size(d->comm);
  *way = d->attention;
  if (*way == WF_ATTENTION_AUTO) return cheapest(p, k, z, way);
  if (*way != WF_ATTENTION_ALL_TO_ALL || z->heads % P == 0) return WF_OK;
  return wf_hint(
      WF_FAIL(WF_EINVAL, "attention all_to_all: %d ranks do not divide %lld heads", P, (long long)z->heads),
      "each rank takes as many heads: use ring or gather, or other heads or ranks");
}
