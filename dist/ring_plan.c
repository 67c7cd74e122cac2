/* Which keys go how far round the ring: a pure function of the rows. */
#include "core/memory.h"
#include "dist/keys_impl.h"

#include <stdlib.h>
#include <string.h>

typedef struct placed { /* a span and its call */
  int call;
  bool open; /* its queries see all of its keys, and may see those behind them too */
  wf_attend_span span;
} placed;

typedef struct builder {
  const wf_part *p;
  const wf_key_map *m;
  const wf_keys *k;
  wf_ring_plan *plan;
  wf_ring_run *run; /* all, also those that stay */
  int64_t n_runs;
  size_t cap_runs, cap_calls, cap_spans;
  int *newest; /* [ranks] of the document under way: the last segment with queries of the rank, or -1 */
  int64_t *mine, n_mine; /* rows of this team, in the order of the map */
  int *met;              /* [rows] calls of the hop under way that the row of queries is part of */
  int64_t *latest;       /* [rows] and where its last span is */
  placed *placed;
} builder;

/* The ring is one of teams. */
static int owner_of(const builder *b, int s) {
  return wf_part_owner(b->p, s) / wf_key_team(b->k);
}
static int this_team(const builder *b) {
  return b->p->rank / wf_key_team(b->k);
}

/* ---- runs ---- */

static bool sees(const builder *b, const wf_ring_run *u, int rank) {
  return b->newest[rank] > u->segment || (u->past > 0 && b->newest[rank] >= 0);
}

/* How far a run goes, and how much of it. */
static void send_off(const builder *b, wf_ring_run *u) {
  int P = b->plan->n_ranks;
  for (int t = P - 1; t > 0 && !u->last; t--)
    if (sees(b, u, (u->owner + t) % P)) u->last = t;
  u->n = u->past;
  for (int t = 1; t <= u->last && u->n == u->past; t++)
    if (b->newest[(u->owner + t) % P] > u->segment) u->n = u->past + u->now;
}

/* Keys of the document in the caches of segment s, from earlier pieces, and the first one's row. */
static int64_t cached(const builder *b, int s, int64_t lane, int64_t origin, int64_t *row) {
  const wf_part *p = b->p;
  const wf_layout *l = p->dist->layout;
  int64_t share = wf_key_share(p, s), skipped = 0;
  int64_t from = origin - (p->start[lane] - p->past * p->piece); /* places of the caches before it */
  if (from > 0) {
    int64_t in = from % p->piece - wf_layout_bound(l, p->piece, s);
    skipped = from / p->piece * share + (in < 0 ? 0 : in < share ? in : share);
  }
  *row = (wf_part_slot(p, s) * p->n_lanes + lane) * b->k->room + skipped;
  return p->past * share - skipped;
}

static wf_status add_run(builder *b, int s, int64_t lane, int64_t origin, int64_t first, int64_t behind,
                         int64_t here) {
  wf_ring_run u = {.owner = owner_of(b, s), .segment = s, .first = first, .behind = behind};
  if (b->k->where == WF_KEYS_CACHE)
    u.past = cached(b, s, lane, origin < b->p->start[lane] ? origin : b->p->start[lane], &u.row);
  if (here >= 0) {
    int owner;
    int64_t place = b->p->row[here].place;
    u.now = b->p->row[here].len;
    if (!u.past)
      WF_TRY(wf_key_locate(b->p, b->m, b->k, lane, place, place + 1, &owner, &u.row, &(int64_t){0}));
  }
  if (u.past + u.now == 0) return WF_OK;
  u.row += wf_key_base(b->p, b->k, wf_part_owner(b->p, s));
  send_off(b, &u);
  WF_TRY(wf_grow("dist", (void **)&b->run, sizeof u, (size_t)b->n_runs, &b->cap_runs));
  b->run[b->n_runs++] = u;
  return WF_OK;
}

/* The document whose rows are first .. behind-1 of the map. */
static wf_status add_document(builder *b, int64_t first, int64_t behind) {
  const wf_part *p = b->p;
  int64_t i = b->m->order[first], lane = p->row[i].lane, origin = b->m->origin[i];
  bool earlier = origin < p->start[lane];
  if (earlier) { /* its first key must be somewhere */
    int owner;
    int64_t row, n;
    WF_TRY(wf_key_locate(p, b->m, b->k, lane, origin, origin + 1, &owner, &row, &n));
  }
  for (int64_t j = first; j < behind; j++) {
    int s = b->m->segment[b->m->order[j]];
    b->newest[owner_of(b, s)] = s;
  }
  int64_t j = first;
  wf_status st = WF_OK;
  for (int s = earlier ? 0 : b->m->segment[i]; s < p->n_segments && st == WF_OK; s++) {
    int64_t here = j < behind && b->m->segment[b->m->order[j]] == s ? b->m->order[j++] : -1;
    if (here >= 0 || earlier) st = add_run(b, s, lane, origin, first, behind, here);
    if (j == behind && !earlier) break;
  }
  for (j = first; j < behind; j++) b->newest[owner_of(b, b->m->segment[b->m->order[j]])] = -1;
  return st;
}

static int farthest_first(const void *a, const void *b) {
  const wf_ring_run *x = a, *y = b;
  if (x->owner != y->owner) return x->owner < y->owner ? -1 : 1;
  if (x->last != y->last) return x->last > y->last ? -1 : 1;
  if (x->first != y->first) return x->first < y->first ? -1 : 1; /* a document's lie together */
  return x->segment < y->segment ? -1 : x->segment > y->segment;
}

static wf_status line_up(builder *b) {
  wf_ring_plan *plan = b->plan;
  int64_t n = 0, at = 0;
  if (b->n_runs) qsort(b->run, (size_t)b->n_runs, sizeof *b->run, farthest_first);
  WF_CALLOC(plan->run, "dist", b->n_runs + 1);
  WF_CALLOC(plan->first, "dist", plan->n_ranks + 1);
  for (int64_t i = 0; i < b->n_runs; i++) {
    wf_ring_run *u = &b->run[i];
    if (!i || u->owner != b->run[i - 1].owner) at = 0;
    if (!u->last) continue;
    u->at = at;
    at += u->n;
    plan->total += u->n * u->last;
    plan->run[n++] = *u;
    plan->first[u->owner + 1]++;
  }
  for (int r = 0; r < plan->n_ranks; r++) plan->first[r + 1] += plan->first[r];
  return WF_OK;
}

/* ---- calls ---- */

/* The queries of row i see `seen` keys from `key` on: all of them, or up to themselves, `before` keys behind
 * the first. Where all are seen their order does not matter: adjacent runs of a document are one. */
static wf_status place(builder *b, int64_t i, int64_t key, int64_t before, int64_t seen) {
  const wf_keys tokens = {WF_KEYS_TOKENS, 0, 0, b->k->team};
  placed *last = b->met[i] ? &b->placed[b->latest[i]] : NULL;
  bool all = before >= seen;
  if (all && last && last->open && last->span.key + last->span.keys == key) {
    last->span.keys += seen;
    last->span.distance += seen;
    return WF_OK;
  }
  int64_t n = b->plan->n_spans++;
  int64_t query = wf_key_base(b->p, &tokens, wf_part_owner(b->p, b->m->segment[i])) + b->m->token[i];
  WF_TRY(wf_grow("dist", (void **)&b->placed, sizeof *b->placed, (size_t)n, &b->cap_spans));
  b->latest[i] = n;
  b->placed[n] = (placed){b->met[i]++, all, {query, b->p->row[i].len, key, before, seen}};
  return WF_OK;
}

/* The first of this team's rows at or behind j. */
static int64_t first_mine(const builder *b, int64_t j) {
  int64_t lo = 0, hi = b->n_mine;
  while (lo < hi) {
    int64_t mid = (lo + hi) / 2;
    if (b->mine[mid] < j)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

/* What this rank's queries see of a run whose first key is at `key`; `diagonal`: those of the run itself. */
static wf_status see(builder *b, const wf_ring_run *u, int64_t key, bool diagonal) {
  for (int64_t n = first_mine(b, u->first); n < b->n_mine && b->mine[n] < u->behind; n++) {
    int64_t i = b->m->order[b->mine[n]];
    int s = b->m->segment[i];
    if ((s == u->segment && u->owner == this_team(b)) != diagonal) continue;
    int64_t seen = u->past + (s > u->segment ? u->now : 0);
    if (diagonal)
      WF_TRY(place(b, i, key, u->past, u->past + u->now));
    else if (seen)
      WF_TRY(place(b, i, key, seen, seen));
  }
  return WF_OK;
}

static int by_call(const void *a, const void *b) {
  const placed *x = a, *y = b;
  if (x->call != y->call) return x->call < y->call ? -1 : 1;
  return x->span.query < y->span.query ? -1 : x->span.query > y->span.query;
}

/* The spans from `from` on become calls of the hop. */
static wf_status close_hop(builder *b, int hop, int64_t from) {
  wf_ring_plan *plan = b->plan;
  int64_t n = plan->n_spans - from;
  if (n) qsort(b->placed + from, (size_t)n, sizeof *b->placed, by_call);
  for (int64_t i = from; i < plan->n_spans; i++) {
    if (i > from && b->placed[i].call == b->placed[i - 1].call) {
      plan->call[plan->n_calls - 1].end++;
      continue;
    }
    WF_TRY(wf_grow("dist", (void **)&plan->call, sizeof *plan->call, (size_t)plan->n_calls, &b->cap_calls));
    plan->call[plan->n_calls++] = (wf_ring_call){hop, hop == 0 && i == from, i, i + 1};
  }
  memset(b->met, 0, (size_t)b->p->first[b->p->n_segments] * sizeof *b->met);
  return WF_OK;
}

static wf_status make_calls(builder *b) {
  wf_ring_plan *plan = b->plan;
  int P = plan->n_ranks, me = this_team(b);
  for (int diagonal = 1; diagonal >= 0; diagonal--)
    for (int64_t i = 0; i < b->n_runs; i++)
      if (b->run[i].owner == me) WF_TRY(see(b, &b->run[i], b->run[i].row, diagonal));
  WF_TRY(close_hop(b, 0, 0));
  for (int t = 1; t < P; t++) {
    int owner = (me - t + P) % P;
    int64_t from = plan->n_spans;
    for (int64_t i = plan->first[owner]; i < plan->first[owner + 1] && plan->run[i].last >= t; i++)
      WF_TRY(see(b, &plan->run[i], plan->run[i].at, false));
    WF_TRY(close_hop(b, t, from));
  }
  WF_CALLOC(plan->span, "dist", plan->n_spans + 1);
  for (int64_t i = 0; i < plan->n_spans; i++) plan->span[i] = b->placed[i].span;
  return WF_OK;
}

static wf_status build(builder *b) {
  const wf_part *p = b->p;
  WF_CALLOC(b->newest, "dist", b->plan->n_ranks);
  WF_CALLOC(b->met, "dist", p->first[p->n_segments] + 1);
  WF_CALLOC(b->latest, "dist", p->first[p->n_segments] + 1);
  WF_CALLOC(b->mine, "dist", p->first[p->n_segments] + 1);
  for (int r = 0; r < b->plan->n_ranks; r++) b->newest[r] = -1;
  for (int64_t j = 0; j < p->first[p->n_segments]; j++)
    if (owner_of(b, b->m->segment[b->m->order[j]]) == this_team(b)) b->mine[b->n_mine++] = j;
  for (int64_t l = 0; l < p->n_lanes; l++)
    for (int64_t j = b->m->lane[l], next, len; j < b->m->lane[l + 1]; j = next) {
      next = wf_key_document(p, b->m, j, &len);
      WF_TRY(add_document(b, j, next));
    }
  WF_TRY(line_up(b));
  return make_calls(b);
}

static wf_status make_ring(const wf_part *p, const wf_key_map *m, const wf_keys *k, wf_made_plan *made) {
  builder b = {.p = p, .m = m, .k = k, .plan = &made->ring};
  b.plan->team = wf_key_team(k);
  b.plan->n_ranks = p->dist->layout->n_ranks / b.plan->team;
  wf_status st = build(&b);
  wf_free(b.run);
  wf_free(b.newest);
  wf_free(b.met);
  wf_free(b.mine);
  wf_free(b.latest);
  wf_free(b.placed);
  return st;
}

/* ---- asking ---- */

void wf_ring_plan_free(wf_ring_plan *p) {
  wf_free(p->run);
  wf_free(p->first);
  wf_free(p->call);
  wf_free(p->span);
}

int64_t wf_ring_rows(const wf_ring_plan *p, int owner, int t) {
  int64_t lo = p->first[owner], hi = p->first[owner + 1];
  while (lo < hi) { /* the first run that does not come so far */
    int64_t mid = (lo + hi) / 2;
    if (p->run[mid].last >= t)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo == p->first[owner] ? 0 : p->run[lo - 1].at + p->run[lo - 1].n;
}

wf_status wf_ring_make(wf_part *p, const wf_keys *k, const wf_ring_plan **out) {
  const wf_made_plan *x = NULL;
  WF_TRY(wf_plan_get(p, WF_PLAN_RING, k, make_ring, &x));
  *out = &x->ring;
  return WF_OK;
}

void wf_ring_sends(const wf_ring_plan *p, int r, int64_t *keys, int64_t *gradients) {
  *keys = *gradients = 0;
  for (int t = 1; t < p->n_ranks; t++) {
    *keys += wf_ring_rows(p, (r - t + 1 + p->n_ranks) % p->n_ranks, t);
    *gradients += wf_ring_rows(p, (r - t + p->n_ranks) % p->n_ranks, t);
  }
}

int64_t wf_ring_total(const wf_ring_plan *p) {
  return p->total;
}
