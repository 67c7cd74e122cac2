/* Costs of the ways, from their plans. */
#include "dist/attend_ways.h"
#include "dist/ring.h"

int64_t wf_attend_repeats(int64_t kv_heads, int team) {
  int64_t f = 1;
  while (kv_heads * f % team && team % (kv_heads * f)) f++;
  return f;
}

/* What one rank of a team takes of the heads. */
static wf_attend_size share_of(const wf_attend_size *z, int team) {
  wf_attend_size x = *z;
  int64_t begin, end;
  wf_head_share(z->kv_heads * wf_attend_repeats(z->kv_heads, team), 0, team, &begin, &end);
  x.heads = z->heads / team;
  x.kv_heads = end - begin;
  return x;
}

static wf_keys of_team(const wf_keys *k, int team) {
  wf_keys x = *k;
  x.team = team;
  return x;
}

/* Bytes of one key, of one query, of one output. */
static int64_t terms(const wf_attend_size *z) {
  return 8 * z->heads;
}
static int64_t key_bytes(const wf_attend_size *z) {
  return z->kv_heads * (z->K + z->V) * z->number;
}
static int64_t query_bytes(const wf_attend_size *z) {
  return z->heads * z->K * z->number;
}
static int64_t output_bytes(const wf_attend_size *z) {
  return z->heads * (z->V + z->lse) * z->number;
}

/* ---- of this rank ---- */

typedef struct traffic {
  int64_t forward, backward;
} traffic;

static wf_status ring_bytes(wf_part *p, const wf_keys *k, const wf_attend_size *z, traffic *sum) {
  const wf_ring_plan *ring;
  int64_t keys, gradients;
  WF_TRY(wf_ring_make(p, k, &ring));
  wf_ring_sends(ring, p->rank / (k->team > 1 ? k->team : 1), &keys, &gradients);
  int64_t round = keys * (key_bytes(z) + (z->gates || z->bias ? terms(z) : 0));
  sum->forward += round;
  sum->backward += round + gradients * (key_bytes(z) + (z->gates ? terms(z) : 0));
  return WF_OK;
}

/* Rows of `width` bytes, and their gradients back; `back`: the other way round. */
static void exchange_bytes(const wf_keys_plan *x, bool back, int64_t width, traffic *sum) {
  sum->forward += wf_exchange_bytes(&x->move, back, width);
  sum->backward += wf_exchange_bytes(&x->move, !back, width);
}

/* Queries and keys come to their heads, outputs go back; each with `t` bytes of terms. */
static void to_heads(const wf_keys_plan *tokens, const wf_keys_plan *keys, const wf_attend_size *z, int64_t t,
                     traffic *sum) {
  exchange_bytes(tokens, false, query_bytes(z) + t, sum);
  exchange_bytes(keys, false, key_bytes(z) + t, sum);
  exchange_bytes(tokens, true, output_bytes(z), sum);
}

wf_status wf_attend_bytes(wf_part *p, const wf_keys *k, const wf_attend_size *z, wf_attend_choice how,
                          int64_t *forward, int64_t *backward) {
  const wf_keys_plan *tokens, *keys;
  wf_attend_size mine = share_of(z, how.team);
  wf_keys together = of_team(k, how.team);
  traffic sum = {0};
  switch (how.way) {
  case WF_ATTENTION_RING: WF_TRY(ring_bytes(p, k, z, &sum)); break;
  case WF_ATTENTION_GATHER:
    WF_TRY(wf_keys_fetch(p, k, &keys));
    exchange_bytes(keys, false, key_bytes(z) + (z->gates ? terms(z) : 0), &sum);
    break;
  case WF_ATTENTION_ALL_TO_ALL:
    WF_TRY(wf_keys_fetch_all(p, &(wf_keys){WF_KEYS_TOKENS, 0, 1, 0}, &tokens));
    WF_TRY(wf_keys_fetch_all(p, k, &keys));
    to_heads(tokens, keys, &mine, z->gates ? terms(&mine) : 0, &sum);
    break;
  case WF_ATTENTION_USP:
    WF_TRY(wf_keys_team(p, &(wf_keys){WF_KEYS_TOKENS, 0, 0, how.team}, &tokens));
    WF_TRY(wf_keys_team(p, &together, &keys));
    to_heads(tokens, keys, &mine, z->gates || z->bias ? terms(&mine) : 0, &sum);
    WF_TRY(ring_bytes(p, &together, &mine, &sum));
    break;
  default: return WF_FAIL(WF_EINVAL, "bytes of an attention that is not chosen");
  }
  *forward = sum.forward;
  *backward = sum.backward;
  return WF_OK;
}

/* ---- over all ranks and both passes: what every rank can know ---- */

static wf_status ring_total(wf_part *p, const wf_keys *k, const wf_attend_size *z, int64_t *keys,
                            int64_t *bytes) {
  const wf_ring_plan *ring = NULL;
  int64_t gates = z->gates ? terms(z) : 0, t = z->bias ? terms(z) : gates;
  WF_TRY(wf_ring_make(p, k, &ring));
  *keys = wf_ring_total(ring) * (k->team > 1 ? k->team : 1);
  *bytes = *keys * (3 * key_bytes(z) + 2 * t + gates);
  return WF_OK;
}

static wf_status heads_total(wf_part *p, const wf_keys *k, const wf_attend_size *z, int team,
                             int64_t *bytes) {
  const wf_keys_plan *tokens, *keys;
  wf_attend_size mine = share_of(z, team);
  wf_keys together = of_team(k, team);
  bool all = team == wf_comm_size(p->dist->comm);
  int64_t t = z->gates || (z->bias && !all) ? terms(&mine) : 0, round = 0, moved;
  if (all) {
    WF_TRY(wf_keys_fetch_all(p, &(wf_keys){WF_KEYS_TOKENS, 0, 1, 0}, &tokens));
    WF_TRY(wf_keys_fetch_all(p, k, &keys));
  } else {
    WF_TRY(wf_keys_team(p, &(wf_keys){WF_KEYS_TOKENS, 0, 0, team}, &tokens));
    WF_TRY(wf_keys_team(p, &together, &keys));
    WF_TRY(ring_total(p, &together, &mine, &moved, &round));
  }
  *bytes = round + 2 * (tokens->total * (query_bytes(&mine) + output_bytes(&mine) + t) +
                        keys->total * (key_bytes(&mine) + t));
  return WF_OK;
}

/* The best of the teams from `least` to `most` ranks. *bytes: what it must be below, and is. */
static wf_status best_team(wf_part *p, const wf_keys *k, const wf_attend_size *z, int least, int most,
                           int64_t *bytes, wf_attend_choice *how) {
  int P = wf_comm_size(p->dist->comm);
  for (int team = least; team <= most; team++) {
    int64_t sum = 0;
    if (P % team || z->heads % team) continue;
    WF_TRY(heads_total(p, k, z, team, &sum));
    if (sum >= *bytes) continue;
    *bytes = sum;
    *how = (wf_attend_choice){team == P ? WF_ATTENTION_ALL_TO_ALL : WF_ATTENTION_USP, team};
  }
  return WF_OK;
}

static wf_status cheapest(wf_part *p, const wf_keys *k, const wf_attend_size *z, wf_attend_choice *how) {
  const wf_keys_plan *near;
  int64_t round, least;
  WF_TRY(ring_total(p, k, z, &round, &least));
  WF_TRY(wf_keys_fetch(p, k, &near));
  *how = (wf_attend_choice){WF_ATTENTION_RING, 1};
  if (2 * near->total <= round) {
    how->way = WF_ATTENTION_GATHER;
    least = near->total * 2 * (key_bytes(z) + (z->gates ? terms(z) : 0));
  }
  return best_team(p, k, z, 2, wf_comm_size(p->dist->comm), &least, how);
}

wf_status wf_attend_way(wf_part *p, const wf_keys *k, const wf_attend_size *z, wf_attend_choice *how) {
  const wf_dist *d = p->dist;
  int P = wf_comm_size(d->comm);
  int64_t any = INT64_MAX;
  *how = (wf_attend_choice){d->attention, 1};
  switch (d->attention) {
  case WF_ATTENTION_AUTO: return cheapest(p, k, z, how);
  case WF_ATTENTION_ALL_TO_ALL:
    how->team = P;
    if (z->heads % P == 0) return WF_OK;
    return wf_hint(
        WF_FAIL(WF_EINVAL, "attention all_to_all: %d ranks do not divide %lld heads", P, (long long)z->heads),
        "each rank takes as many heads: use ring or gather, or other heads or ranks");
  case WF_ATTENTION_USP:
    WF_TRY(best_team(p, k, z, 2, P - 1, &any, how));
    if (how->team > 1) return WF_OK;
    return wf_hint(WF_FAIL(WF_EINVAL, "attention usp: %d ranks are no teams that divide %lld heads", P,
                           (long long)z->heads),
                   "ranks and heads need a divisor between 1 and the number of ranks; or use ring or gather");
  default: return WF_OK;
  }
}
