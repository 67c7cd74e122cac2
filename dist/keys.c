/* Places of keys, and the exchanges that bring them to queries. */
#include "dist/keys.h"
#include "core/memory.h"
#include "dist/keys_impl.h"

#include <string.h>

/* ---- the map ---- */

/* The segments of each rank, and its tokens. */
static wf_status map_ranks(const wf_part *p, wf_key_map *m) {
  int P = p->dist->layout->n_ranks;
  WF_CALLOC(m->tokens, "dist", P);
  WF_CALLOC(m->ranks, "dist", P + 2);
  WF_CALLOC(m->segments, "dist", p->n_segments);
  for (int s = 0; s < p->n_segments; s++) m->ranks[wf_part_owner(p, s) + 2]++;
  for (int r = 1; r <= P; r++) m->ranks[r + 1] += m->ranks[r];
  for (int s = 0; s < p->n_segments; s++) {
    int owner = wf_part_owner(p, s);
    for (int64_t i = p->first[s]; i < p->first[s + 1]; i++) m->token[i] = m->tokens[owner] + p->row[i].begin;
    m->segments[m->ranks[owner + 1]++] = s;
    m->tokens[owner] += p->tokens[s];
  }
  return WF_OK;
}

static void map_origins(const wf_part *p, wf_key_map *m) {
  for (int64_t j = 0; j < p->first[p->n_segments]; j++) {
    const wf_row *r = &p->row[m->order[j]], *b = j ? &p->row[m->order[j - 1]] : NULL;
    bool goes_on = r->flags & WF_ROW_TAKES;
    bool here = b && b->lane == r->lane && b->place - b->pos == r->place - r->pos;
    m->origin[m->order[j]] = !goes_on ? r->place : here ? m->origin[m->order[j - 1]] : r->place - r->pos;
  }
}

static wf_status make_map(wf_part *p) {
  wf_key_map *m;
  int64_t n = p->first[p->n_segments];
  WF_CALLOC(m, "dist", 1);
  p->keys = m;
  WF_CALLOC(m->order, "dist", n + 1);
  WF_CALLOC(m->lane, "dist", p->n_lanes + 2);
  WF_CALLOC(m->token, "dist", n + 1);
  WF_CALLOC(m->segment, "dist", n + 1);
  WF_CALLOC(m->origin, "dist", n + 1);
  for (int64_t i = 0; i < n; i++) m->lane[p->row[i].lane + 2]++;
  for (int64_t l = 1; l <= p->n_lanes; l++) m->lane[l + 1] += m->lane[l];
  for (int s = 0; s < p->n_segments; s++)
    for (int64_t i = p->first[s]; i < p->first[s + 1]; i++) {
      m->order[m->lane[p->row[i].lane + 1]++] = i;
      m->segment[i] = s;
    }
  map_origins(p, m);
  return map_ranks(p, m);
}

static void free_plan(wf_made_plan *x) {
  wf_exchange_free(&x->plan.move);
  wf_free(x->plan.span);
  wf_free(x->plan.pos);
  wf_ring_plan_free(&x->ring);
  wf_shards_free(&x->shards);
  wf_free(x);
}

void wf_keys_free(wf_part *p) {
  wf_key_map *m = p->keys;
  if (!m) return;
  while (m->made) {
    wf_made_plan *x = m->made;
    m->made = x->next;
    free_plan(x);
  }
  wf_free(m->order);
  wf_free(m->lane);
  wf_free(m->token);
  wf_free(m->segment);
  wf_free(m->origin);
  wf_free(m->tokens);
  wf_free(m->ranks);
  wf_free(m->segments);
  wf_free(m);
  p->keys = NULL;
}

wf_status wf_plan_get(wf_part *p, int kind, const wf_keys *k,
                      wf_status (*make)(const wf_part *p, const wf_key_map *m, const wf_keys *k,
                                        wf_made_plan *plan),
                      const wf_made_plan **out) {
  if (!p->keys) WF_TRY(make_map(p));
  wf_made_plan *x = p->keys->made;
  for (; x; x = x->next)
    if (x->kind == kind && x->keys.where == k->where && x->keys.room == k->room &&
        x->keys.reach == k->reach && x->keys.team == k->team)
      break;
  if (!x) {
    WF_CALLOC(x, "dist", 1);
    x->kind = kind;
    x->keys = *k;
    wf_status st = make(p, p->keys, k, x);
    if (st != WF_OK) {
      free_plan(x);
      return st;
    }
    x->next = p->keys->made;
    p->keys->made = x;
  }
  *out = x;
  return WF_OK;
}

/* ---- places ---- */

/* Rows of state in front of the tokens of a rank, where any state matters. */
static int64_t front(const wf_part *p, const wf_keys *k, int rank) {
  bool last = rank == wf_part_owner(p, p->n_segments - 1) && (p->enters || p->leaves);
  return k->where == WF_KEYS_WINDOW && last ? p->n_lanes * k->room : 0;
}

static int64_t lane_at(const wf_part *p, int s, int64_t lane) {
  return wf_part_slot(p, s) * p->n_lanes + lane;
}

int64_t wf_keys_cache_place(const wf_part *p, const wf_row *local) {
  int s = p->own[local->lane / p->n_lanes];
  int64_t start = p->start[local->lane % p->n_lanes];
  return p->past * wf_key_share(p, s) + local->place - start - wf_layout_bound(p->dist->layout, p->length, s);
}

/* A key of the piece. */
static void locate_here(const wf_part *p, const wf_key_map *m, const wf_keys *k, int64_t lane, int64_t place,
                        int64_t end, int *owner, int64_t *row, int64_t *n) {
  int64_t lo = m->lane[lane], hi = m->lane[lane + 1];
  while (hi - lo > 1) { /* the last row that begins at or before the place */
    int64_t mid = (lo + hi) / 2;
    if (p->row[m->order[mid]].place <= place)
      lo = mid;
    else
      hi = mid;
  }
  int64_t i = m->order[lo];
  const wf_row *r = &p->row[i];
  int s = m->segment[i];
  *owner = wf_part_owner(p, s);
  *n = (end < r->place + r->len ? end : r->place + r->len) - place;
  if (k->where != WF_KEYS_CACHE)
    *row = front(p, k, *owner) + m->token[i] + place - r->place;
  else
    *row = lane_at(p, s, lane) * k->room + p->past * wf_key_share(p, s) + place - p->start[lane] -
           wf_layout_bound(p->dist->layout, p->length, s);
}

/* A key of one of the pieces before, in the caches. */
static void locate_past(const wf_part *p, const wf_keys *k, int64_t lane, int64_t place, int64_t end,
                        int *owner, int64_t *row, int64_t *n) {
  const wf_layout *l = p->dist->layout;
  int64_t zero = p->start[lane] - p->past * p->piece, at = place - zero, in = at % p->piece;
  int lo = 0, hi = p->n_segments;
  while (hi - lo > 1) {
    int mid = (lo + hi) / 2;
    if (wf_layout_bound(l, p->piece, mid) <= in)
      lo = mid;
    else
      hi = mid;
  }
  int64_t until = place - in + wf_layout_bound(l, p->piece, lo + 1);
  *owner = wf_part_owner(p, lo);
  *n = (until < end ? until : end) - place;
  *row = lane_at(p, lo, lane) * k->room + at / p->piece * wf_key_share(p, lo) + in -
         wf_layout_bound(l, p->piece, lo);
}

wf_status wf_key_locate(const wf_part *p, const wf_key_map *m, const wf_keys *k, int64_t lane, int64_t place,
                        int64_t end, int *owner, int64_t *row, int64_t *n) {
  int64_t start = p->start[lane], before = start - place;
  if (before <= 0) {
    locate_here(p, m, k, lane, place, end, owner, row, n);
    return WF_OK;
  }
  if (end > start) end = start;
  if (k->where == WF_KEYS_WINDOW && before <= k->room) {
    *owner = wf_part_owner(p, p->n_segments - 1);
    *row = lane * k->room + k->room - before;
    *n = end - place;
    return WF_OK;
  }
  if (k->where == WF_KEYS_CACHE && before <= p->past * p->piece) {
    locate_past(p, k, lane, place, end, owner, row, n);
    return WF_OK;
  }
  return wf_hint(WF_FAIL(WF_EUNSUPPORTED,
                         "attention over ranks: the key at place %lld of lane %lld, before "
                         "this batch, is in no cache",
                         (long long)place, (long long)lane),
                 "batches over ranks begin with whole documents, or use attention with a window");
}

void wf_keys_places(const wf_part *p, const wf_keys *k, double *place) {
  const wf_layout *l = p->dist->layout;
  for (int s = 0; s < p->n_segments; s++) {
    int64_t share = wf_key_share(p, s), from = wf_layout_bound(l, p->length, s);
    if (wf_part_owner(p, s) != p->rank) continue;
    for (int64_t lane = 0; lane < p->n_lanes && k->where == WF_KEYS_CACHE; lane++) {
      double *to = place + lane_at(p, s, lane) * k->room;
      for (int64_t i = 0; i < p->past * share; i++)
        *to++ = (double)((i / share - p->past) * p->piece + wf_layout_bound(l, p->piece, s) + i % share);
      for (int64_t i = from; i < wf_layout_bound(l, p->length, s + 1); i++) *to++ = (double)i;
    }
    for (int64_t i = p->first[s]; i < p->first[s + 1] && k->where == WF_KEYS_TOKENS; i++)
      for (int64_t t = 0; t < p->row[i].len; t++)
        place[p->keys->token[i] + t] = (double)(p->row[i].place + t - p->start[p->row[i].lane]);
  }
}

static int64_t pool_rows(const wf_part *p, const wf_keys *k, int rank) {
  const wf_key_map *m = p->keys;
  if (k->where == WF_KEYS_CACHE) return (m->ranks[rank + 1] - m->ranks[rank]) * p->n_lanes * k->room;
  return front(p, k, rank) + m->tokens[rank];
}

int64_t wf_key_base(const wf_part *p, const wf_keys *k, int rank) {
  int64_t n = 0;
  for (int r = rank - rank % wf_key_team(k); r < rank; r++) n += pool_rows(p, k, r);
  return n;
}

/* ---- exchanges ---- */

typedef struct builder {
  const wf_part *p;
  const wf_key_map *m;
  const wf_keys *k;
  wf_keys_plan *plan;
  wf_exchange_router router;
} builder;

static builder builder_of(const wf_part *p, const wf_key_map *m, const wf_keys *k, wf_keys_plan *plan) {
  return (builder){p, m, k, plan, {.plan = &plan->move, .rank = p->rank}};
}

/* n rows of the pool of rank `owner` go to rank `to`, from row `at` of its result on. */
static wf_status route(builder *b, int owner, int to, int64_t row, int64_t at, int64_t n) {
  if (owner != to) b->plan->total += n;
  return wf_exchange_route(&b->router, owner, to, row, at, n);
}

/* The keys of [place, end) of a lane, all of them. */
static wf_status bring_all(builder *b, int to, int64_t lane, int64_t place, int64_t end, int64_t at) {
  int owner;
  int64_t row, n;
  for (; place < end; place += n, at += n) {
    WF_TRY(wf_key_locate(b->p, b->m, b->k, lane, place, end, &owner, &row, &n));
    WF_TRY(route(b, owner, to, row, at, n));
  }
  return WF_OK;
}

/* Keys that rank r has of [place, end); they go to rank `to` where r is this rank. */
static wf_status bring_part(builder *b, int r, int to, int64_t lane, int64_t place, int64_t end, int64_t *n) {
  const wf_part *p = b->p;
  const wf_layout *l = p->dist->layout;
  int64_t start = p->start[lane],
          first = place < start ? (start - place + p->piece - 1) / (p->piece ? p->piece : 1) : 0;
  *n = 0;
  if (b->k->where != WF_KEYS_CACHE) first = 0;
  for (int64_t back = first; back >= 0; back--) /* pieces, the oldest first */
    for (int i = b->m->ranks[r]; i < b->m->ranks[r + 1]; i++) {
      int s = b->m->segments[i];
      int64_t length = back ? p->piece : p->length, zero = start - back * p->piece;
      int64_t from = zero + wf_layout_bound(l, length, s), until = zero + wf_layout_bound(l, length, s + 1);
      if (from < place) from = place;
      if (until > end) until = end;
      if (from >= until) continue;
      *n += until - from;
      if (to >= 0) WF_TRY(bring_all(b, to, lane, from, until, 0));
    }
  return WF_OK;
}

/* The keys of [place, end) of a lane go to rank `to`, from row `at` of its result on. Another rank's are only
 * looked at as far as they are this rank's, or its own. */
static wf_status bring(builder *b, int to, int64_t lane, int64_t place, int64_t end, int64_t at) {
  const wf_part *p = b->p;
  int64_t mine, own, start = p->start[lane];
  int owner, last = wf_part_owner(p, p->n_segments - 1);
  if (to == p->rank || place >= end) return bring_all(b, to, lane, place, end, at);
  if (place < start) /* what is nowhere must fail on every rank */
    WF_TRY(wf_key_locate(p, b->m, b->k, lane, place, place + 1, &owner, &mine, &own));
  if (b->k->where == WF_KEYS_WINDOW && place < start) { /* what the window of the piece before left */
    if (p->rank == last || to == last) WF_TRY(bring_all(b, to, lane, place, start < end ? start : end, 0));
    if (p->rank != last && to != last) b->plan->total += (start < end ? start : end) - place;
    place = start;
  }
  int64_t sum = b->plan->total;
  WF_TRY(bring_part(b, p->rank, to, lane, place, end, &mine));
  WF_TRY(bring_part(b, to, -1, lane, place, end, &own));
  b->plan->total = sum + (end > place ? end - place : 0) - own;
  return WF_OK;
}

static void finish(builder *b) {
  wf_exchange_routed(&b->router);
  b->plan->move.pool = pool_rows(b->p, b->k, b->p->rank);
}

/* Queries of one document that follow each other see keys that do, or overlap: one stretch. */
typedef struct stretch {
  int64_t lane, origin, lo, hi; /* places: where the document begins, of the keys */
  int64_t at;                   /* its first row of the result */
} stretch;

static wf_status flush(builder *b, int to, stretch *x, int64_t *rows) {
  if (x->lane < 0) return WF_OK;
  WF_TRY(bring(b, to, x->lane, x->lo, x->hi, x->at));
  *rows = x->at + x->hi - x->lo;
  return WF_OK;
}

/* A row of queries: extends the stretch or begins the next. Its span is the at-th. */
static wf_status see(builder *b, int to, int64_t i, int64_t len, int64_t query, stretch *x, int64_t *rows,
                     int64_t at) {
  const wf_row *r = &b->p->row[i];
  int64_t origin = b->m->origin[i], reach = b->k->reach, hi = r->place + len;
  int64_t lo = reach > 0 && r->place - origin > reach - 1 ? r->place - (reach - 1) : origin;
  if (x->lane != r->lane || x->origin != origin || lo > x->hi) {
    WF_TRY(flush(b, to, x, rows));
    *x = (stretch){r->lane, origin, lo, hi, *rows};
  } else {
    x->hi = hi;
  }
  if (to == b->p->rank) {
    int64_t before = r->place - lo;
    b->plan->pos[at] = r->pos;
    b->plan->span[at] = (wf_attend_span){query, len, x->at + lo - x->lo, before, before + len};
  }
  return WF_OK;
}

/* What rank `to` needs for its own rows. Spans are in the order of the rank's rows. */
static wf_status fetch_for(builder *b, int to, const int64_t *index, int64_t *rows) {
  stretch x = {.lane = -1};
  for (int64_t j = 0; j < b->m->lane[b->p->n_lanes]; j++) {
    int64_t i = b->m->order[j];
    if (wf_part_owner(b->p, b->m->segment[i]) != to) continue;
    WF_TRY(see(b, to, i, b->p->row[i].len, b->m->token[i], &x, rows, index[i]));
  }
  return flush(b, to, &x, rows);
}

static wf_status make_spans(builder *b, int64_t n) {
  WF_CALLOC(b->plan->span, "dist", n + 1);
  WF_CALLOC(b->plan->pos, "dist", n + 1);
  return WF_OK;
}

/* Where this rank's rows are in its own order: [rows of the piece], to be freed. */
static wf_status local_rows(const wf_part *p, int64_t **index, int64_t *n) {
  WF_CALLOC(*index, "dist", p->first[p->n_segments] + 1);
  *n = 0;
  for (int k = 0; k < p->n_own; k++)
    for (int64_t i = p->first[p->own[k]]; i < p->first[p->own[k] + 1]; i++) (*index)[i] = (*n)++;
  return WF_OK;
}

static wf_status make_fetch(const wf_part *p, const wf_key_map *m, const wf_keys *k, wf_made_plan *made) {
  builder b = builder_of(p, m, k, &made->plan);
  int64_t *index;
  WF_TRY(local_rows(p, &index, &b.plan->n_spans));
  wf_status st = make_spans(&b, b.plan->n_spans);
  for (int to = 0; to < p->dist->layout->n_ranks && st == WF_OK; to++) {
    int64_t rows = 0;
    st = fetch_for(&b, to, index, &rows);
    if (to == p->rank) b.plan->move.rows = rows;
  }
  wf_free(index);
  finish(&b);
  return st;
}

/* The rows of a document in a lane, from the j-th of the lanes' order on: *len tokens. -> the row behind. */
int64_t wf_key_document(const wf_part *p, const wf_key_map *m, int64_t j, int64_t *len) {
  int64_t i = m->order[j], lane = p->row[i].lane, origin = m->origin[i];
  for (*len = 0; j < m->lane[lane + 1] && m->origin[m->order[j]] == origin; j++)
    *len += p->row[m->order[j]].len;
  return j;
}

static wf_status fetch_all_for(builder *b, int to, int64_t *rows) {
  stretch x = {.lane = -1};
  int64_t query = 0, n = 0, len;
  for (int64_t l = 0; l < b->p->n_lanes; l++)
    for (int64_t j = b->m->lane[l], next; j < b->m->lane[l + 1]; j = next) {
      next = wf_key_document(b->p, b->m, j, &len);
      WF_TRY(see(b, to, b->m->order[j], len, query, &x, rows, n));
      query += len;
      n++;
    }
  if (to == b->p->rank) b->plan->n_spans = n;
  return flush(b, to, &x, rows);
}

static wf_status make_fetch_all(const wf_part *p, const wf_key_map *m, const wf_keys *k, wf_made_plan *made) {
  builder b = builder_of(p, m, k, &made->plan);
  WF_TRY(make_spans(&b, p->first[p->n_segments]));
  for (int to = 0; to < p->dist->layout->n_ranks; to++) {
    int64_t rows = 0;
    WF_TRY(fetch_all_for(&b, to, &rows));
    if (to == p->rank) b.plan->move.rows = rows;
  }
  finish(&b);
  return WF_OK;
}

/* A lane whose last row leaves state gets its last tokens; others keep what they had. */
static wf_status make_leave(const wf_part *p, const wf_key_map *m, const wf_keys *k, wf_made_plan *made) {
  builder b = builder_of(p, m, k, &made->plan);
  int to = wf_part_owner(p, p->n_segments - 1);
  int64_t room = k->room;
  for (int64_t l = 0; l < p->n_lanes; l++) {
    int64_t i = m->lane[l] < m->lane[l + 1] ? m->order[m->lane[l + 1] - 1] : -1;
    const wf_row *r = i < 0 ? NULL : &p->row[i];
    int64_t at = (lane_at(p, p->n_segments - 1, l) + 1) * room; /* behind its last */
    if (r && r->flags & WF_ROW_LEAVES) {
      int64_t end = r->place + r->len, n = end - m->origin[i] < room ? end - m->origin[i] : room;
      WF_TRY(bring(&b, to, l, end - n, end, at - n));
    } else if (to == p->rank && room) { /* its state lies in the same rank's pool */
      WF_TRY(route(&b, to, to, l * room, at - room, room));
    }
  }
  finish(&b);
  b.plan->move.rows = p->n_own * p->n_lanes * room;
  b.plan->move.holes = true;
  return WF_OK;
}

/* What is in the caches of segment s, of the lanes that have rows in the piece. */
static wf_status filled(builder *b, int s, int to, int64_t base) {
  const wf_part *p = b->p;
  int owner = wf_part_owner(p, s);
  for (int64_t l = 0; l < p->n_lanes; l++) {
    int64_t n = p->past * wf_key_share(p, s), row = lane_at(p, s, l) * b->k->room;
    if (b->m->lane[l] == b->m->lane[l + 1]) continue;
    for (int64_t j = b->m->lane[l]; j < b->m->lane[l + 1]; j++)
      if (b->m->segment[b->m->order[j]] == s) n += p->row[b->m->order[j]].len;
    if (n) WF_TRY(route(b, owner, to, row, base + row, n));
  }
  return WF_OK;
}

static wf_status make_team(const wf_part *p, const wf_key_map *m, const wf_keys *k, wf_made_plan *made) {
  builder b = builder_of(p, m, k, &made->plan);
  int team = wf_key_team(k), P = p->dist->layout->n_ranks;
  for (int to = 0; to < P; to++)
    for (int from = to - to % team; from < to - to % team + team; from++) {
      int64_t base = wf_key_base(p, k, from);
      if (k->where == WF_KEYS_TOKENS) WF_TRY(route(&b, from, to, 0, base, pool_rows(p, k, from)));
      for (int s = 0; s < p->n_segments && k->where == WF_KEYS_CACHE; s++)
        if (wf_part_owner(p, s) == from) WF_TRY(filled(&b, s, to, base));
    }
  finish(&b);
  int last = p->rank - p->rank % team + team - 1;
  b.plan->move.rows = wf_key_base(p, k, last) + pool_rows(p, k, last);
  b.plan->move.holes = k->where == WF_KEYS_CACHE;
  return WF_OK;
}

static wf_status keys_plan(wf_part *p, int kind, const wf_keys *k,
                           wf_status (*make)(const wf_part *p, const wf_key_map *m, const wf_keys *k,
                                             wf_made_plan *plan),
                           const wf_keys_plan **out) {
  const wf_made_plan *x = NULL;
  WF_TRY(wf_plan_get(p, kind, k, make, &x));
  *out = &x->plan;
  return WF_OK;
}

wf_status wf_keys_fetch(wf_part *p, const wf_keys *k, const wf_keys_plan **out) {
  return keys_plan(p, WF_PLAN_FETCH, k, make_fetch, out);
}
wf_status wf_keys_fetch_all(wf_part *p, const wf_keys *k, const wf_keys_plan **out) {
  return keys_plan(p, WF_PLAN_FETCH_ALL, k, make_fetch_all, out);
}
wf_status wf_keys_team(wf_part *p, const wf_keys *k, const wf_keys_plan **out) {
  return keys_plan(p, WF_PLAN_TEAM, k, make_team, out);
}
wf_status wf_keys_leave(wf_part *p, int64_t room, const wf_keys_plan **out) {
  return keys_plan(p, WF_PLAN_LEAVE, &(wf_keys){.where = WF_KEYS_WINDOW, .room = room}, make_leave, out);
}
