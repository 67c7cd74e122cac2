/* Dealing pairs of heads and lanes to ranks, and the exchanges that bring their tokens and states. */
#include "dist/shards.h"
#include "core/memory.h"
#include "dist/keys_impl.h"

double wf_shards_efficiency(const wf_part *p, int64_t heads) {
  int64_t pairs = heads * p->n_lanes, P = p->dist->layout->n_ranks, most = (pairs + P - 1) / P;
  return pairs ? (double)pairs / (double)(P * most) : 1;
}

void wf_shards_free(wf_shards *s) {
  for (int b = 0; b < s->n; b++) wf_rows_free(s->block[b].rows);
  wf_exchange_free(&s->tokens);
  wf_exchange_free(&s->states);
}

/* What rank r gets. */
static int deal(const wf_part *p, int64_t heads, int r, wf_shard *block) {
  int64_t L = p->n_lanes, P = p->dist->layout->n_ranks;
  int64_t at = heads * L * r / P, end = heads * L * (r + 1) / P;
  int n = 0;
  while (at < end) {
    int64_t lane = at % L, left = end - at;
    wf_shard b = {.head = at / L, .heads = 1, .lane = lane, .lanes = L - lane < left ? L - lane : left};
    if (!lane && left >= L) b.heads = left / L;
    at += b.heads * b.lanes;
    block[n++] = b;
  }
  if (!n) block[n++] = (wf_shard){.heads = 1};
  return n;
}

/* The tokens and the state of one pair to rank `to`: rows *token and *state of its results. */
static wf_status bring(const wf_part *p, const wf_key_map *m, wf_exchange_router *tokens,
                       wf_exchange_router *states, int to, int64_t head, int64_t lane, int64_t *token,
                       int64_t *state) {
  for (int64_t j = m->lane[lane]; j < m->lane[lane + 1]; j++) {
    int64_t i = m->order[j], n = p->row[i].len;
    int owner = wf_part_owner(p, m->segment[i]);
    WF_TRY(wf_exchange_route(tokens, owner, to, head * m->tokens[owner] + m->token[i], *token, n));
    *token += n;
  }
  int last = p->n_segments - 1, owner = wf_part_owner(p, last);
  int64_t lanes = (m->ranks[owner + 1] - m->ranks[owner]) * p->n_lanes;
  int64_t row = head * lanes + wf_part_slot(p, last) * p->n_lanes + lane;
  return wf_exchange_route(states, owner, to, row, (*state)++, 1);
}

static wf_status make(const wf_part *p, const wf_key_map *m, const wf_keys *k, wf_made_plan *made) {
  wf_shards *s = &made->shards;
  wf_exchange_router tokens = {.plan = &s->tokens, .rank = p->rank},
                     states = {.plan = &s->states, .rank = p->rank};
  for (int to = 0; to < p->dist->layout->n_ranks; to++) {
    wf_shard block[WF_SHARD_BLOCKS];
    int n = deal(p, k->room, to, block);
    int64_t token = 0, state = 0;
    for (int b = 0; b < n; b++) {
      wf_shard *x = &block[b];
      int64_t before = token;
      for (int64_t h = x->head; h < x->head + x->heads; h++)
        for (int64_t l = x->lane; l < x->lane + x->lanes; l++)
          WF_TRY(bring(p, m, &tokens, &states, to, h, l, &token, &state));
      x->tokens = (token - before) / x->heads;
      if (to == p->rank) s->block[s->n++] = *x;
    }
    if (to != p->rank) continue;
    s->tokens.rows = token;
    s->states.rows = state;
  }
  wf_exchange_routed(&tokens);
  wf_exchange_routed(&states);
  s->tokens.pool = k->room * m->tokens[p->rank];
  s->states.pool = k->room * p->n_own * p->n_lanes;
  return WF_OK;
}

/* The rows of a block's lanes, the cuts between segments undone. */
static wf_status make_rows(const wf_part *p, wf_ctx *c, wf_shard *x) {
  const wf_key_map *m = p->keys;
  wf_row *row;
  int64_t n = 0, begin = 0;
  WF_CALLOC(row, "dist", m->lane[x->lane + x->lanes] - m->lane[x->lane] + 1);
  for (int64_t l = x->lane; l < x->lane + x->lanes; l++)
    for (int64_t j = m->lane[l]; j < m->lane[l + 1]; j++) {
      const wf_row *from = &p->row[m->order[j]];
      if (j > m->lane[l] && from->flags & WF_ROW_TAKES) { /* what the row before has left */
        row[n - 1].len += from->len;
        row[n - 1].flags &= WF_ROW_TAKES;
        row[n - 1].flags |= from->flags & WF_ROW_LEAVES;
      } else {
        row[n] = *from;
        row[n].lane -= x->lane;
        row[n++].begin = begin;
      }
      begin += from->len;
    }
  wf_status st = wf_rows_create(c, n, row, x->lanes, &x->rows);
  wf_free(row);
  return st;
}

wf_status wf_shards_get(wf_part *p, wf_ctx *c, int64_t heads, const wf_shards **out) {
  const wf_made_plan *made = NULL;
  WF_TRY(wf_plan_get(p, WF_PLAN_SHARDS, &(wf_keys){.where = WF_KEYS_TOKENS, .room = heads}, make, &made));
  wf_shards *s = (wf_shards *)&made->shards;
  for (int b = 0; b < s->n; b++)
    if (!s->block[b].rows) WF_TRY(make_rows(p, c, &s->block[b]));
  *out = s;
  return WF_OK;
}
