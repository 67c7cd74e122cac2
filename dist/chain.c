/* The three transports of chain.h. Segments are counted along the scan: the i-th is segment i or, turned,
 * segment n-1-i; so is a rank's j-th own one. */
#include "dist/chain.h"
#include "core/memory.h"
#include "dist/op_impl.h"

#include <string.h>

/* A map of lanes as one message: A, then B; or B alone, a state or the gradient of one. */
typedef struct map {
  wf_tensor *flat, *A, *B; /* B NULL: there is none */
} map;

struct wf_chain {
  wf_chain_spec s;
  const wf_part *p;
  wf_comm *comm;
  wf_chain *next; /* whose `before` this is */
  int n, n_own, home;
  int64_t n_a, n_b;  /* elements */
  bool enters, last; /* a state enters the first segment; the last one's map is wanted too */
  wf_tensor *start;  /* where it is known, once it is */
  wf_pending *start_pending;
  map *own;                    /* [n_own] maps; log: of a window that ends with the segment */
  map *in;                     /* [n_own] received; log: what lies between the window and the segment */
  map *ahead;                  /* [n_own] log: the fold of all maps of the windows before the segment */
  wf_tensor **state, **leaves; /* [n_own] */
  wf_pending **waits;          /* [n_own] of `in` */
  wf_pending **sent;
  size_t n_sent, cap_sent;
  wf_tensor *gathered;
  int64_t *place; /* [n + 1] in it, of the maps and of the entering state */
  wf_pending *gathering;
};

/* ---- segments along the scan ---- */

static int segment(const wf_chain *ch, int i) {
  return ch->s.turned ? ch->n - 1 - i : i;
}
static int owner(const wf_chain *ch, int i) {
  return wf_part_owner(ch->p, segment(ch, i));
}
static bool mine(const wf_chain *ch, int i) {
  return owner(ch, i) == ch->p->rank;
}
/* The place of the i-th segment among its owner's, and of the j-th own one along the scan. */
static int slot(const wf_chain *ch, int i) {
  return wf_part_slot(ch->p, segment(ch, i));
}
static int turned_slot(const wf_chain *ch, int j) {
  return ch->s.turned ? ch->n_own - 1 - j : j;
}
static int at(const wf_chain *ch, int k) {
  int s = ch->p->own[k];
  return ch->s.turned ? ch->n - 1 - s : s;
}

/* What the segments first .. i, one after the other, do to each lane. */
static wf_tensor *links(const wf_chain *ch, int first, int i) {
  int64_t lanes = ch->p->n_lanes;
  unsigned char *link = wf_alloc("dist", (size_t)lanes + 1);
  if (!link) return wf_poison(ch->s.c, WF_ENOMEM);
  for (int64_t l = 0; l < lanes; l++) {
    link[l] = WF_LINK_PASS;
    for (int j = i; j >= first && link[l] != WF_LINK_SET; j--) {
      unsigned char x = ch->p->link[segment(ch, j) * lanes + l];
      if (x != WF_LINK_PASS) link[l] = x;
    }
  }
  wf_tensor *t = wf_from_host(ch->s.c, "dist", WF_U8, WF_SHAPE(lanes), link);
  wf_free(link);
  return t;
}

/* ---- maps ---- */

static wf_tensor *part_of(wf_tensor *flat, const wf_desc *d, int64_t offset) {
  int64_t stride[WF_MAX_DIMS], s = 1;
  for (int k = d->ndim - 1; k >= 0; k--) {
    stride[k] = s;
    s *= d->shape[k];
  }
  return wf_view_raw(flat, d->ndim, d->shape, stride, offset);
}

static wf_status map_over(const wf_chain *ch, wf_tensor *flat, bool factor, map *m) {
  if (wf_is_poison(flat)) return wf_ctx_failure(ch->s.c);
  factor = factor && ch->n_a;
  *m = (map){.flat = flat};
  if (factor) m->A = part_of(flat, &ch->s.A, 0);
  m->B = part_of(flat, &ch->s.B, factor ? ch->n_a : 0);
  return wf_is_poison(m->B) || (m->A && wf_is_poison(m->A)) ? wf_ctx_failure(ch->s.c) : WF_OK;
}

static wf_status map_new(const wf_chain *ch, bool factor, map *m) {
  return map_over(ch, wf_empty(ch->s.c, "dist", ch->s.dtype, WF_SHAPE(ch->n_b + (factor ? ch->n_a : 0))),
                  factor, m);
}

/* The fold of `later`, the maps of segments first .. i, after `before`; a state where that is one, or where
 * `state` says that nothing before it counts. */
static wf_status compose(const wf_chain *ch, int first, int i, const map *later, const map *before,
                         bool state, map *out) {
  map m;
  wf_tensor *link = links(ch, first, i);
  if (wf_is_poison(link)) return wf_ctx_failure(ch->s.c);
  WF_TRY(map_new(ch, !state, &m));
  WF_TRY(wf_compose_into(ch->s.c, ch->s.kind, ch->s.turned, link, later->A, later->B, m.A ? before->A : NULL,
                         before->B, m.A, m.B));
  *out = m;
  return WF_OK;
}

/* The state after the i-th segment, given its map and the state before it (B NULL: none). */
static wf_status after(const wf_chain *ch, int i, const map *m, wf_tensor *before, wf_tensor **out) {
  map x = {.B = before}, y;
  if (!before) {
    *out = m->B;
    return WF_OK;
  }
  WF_TRY(compose(ch, i, i, m, &x, true, &y));
  *out = y.B;
  return WF_OK;
}

/* ---- messages ---- */

static wf_status post(wf_chain *ch, wf_tensor *x, int to) {
  WF_TRY(wf_grow("dist", (void **)&ch->sent, sizeof *ch->sent, ch->n_sent, &ch->cap_sent));
  ch->sent[ch->n_sent] = NULL;
  return wf_comm_leave(ch->comm, x, to, &ch->sent[ch->n_sent++]);
}

static wf_status await_start(wf_chain *ch) {
  return wf_comm_wait(&ch->start_pending);
}

/* ---- relay ---- */

/* A block's state is asked for when that of the block before has come: all at once would share the link and
 * come together, when the last one can. */
static wf_status relay_expect(wf_chain *ch, int j) {
  if (j >= ch->n_own) return WF_OK;
  int k = turned_slot(ch, j), i = at(ch, k);
  if (i == 0 || mine(ch, i - 1)) return WF_OK;
  WF_TRY(map_new(ch, false, &ch->in[k]));
  return wf_comm_recv(ch->comm, ch->in[k].flat, owner(ch, i - 1), &ch->waits[k]);
}

static wf_status relay_turn(wf_chain *ch, int j) {
  int k = turned_slot(ch, j), i = at(ch, k);
  if (i == 0) {
    WF_TRY(await_start(ch));
    ch->state[k] = ch->start;
  } else if (!mine(ch, i - 1)) {
    WF_TRY(wf_comm_wait(&ch->waits[k]));
    ch->state[k] = ch->in[k].B;
  } /* else the turn before has set it */
  if (ch->next) WF_TRY(relay_expect(ch->next, j));
  if (wf_chain_needs(ch, k)) {
    WF_TRY(after(ch, i, &ch->own[k], ch->state[k], &ch->leaves[k]));
    if (i + 1 < ch->n && mine(ch, i + 1)) ch->state[slot(ch, i + 1)] = ch->leaves[k];
    if (i + 1 < ch->n && !mine(ch, i + 1)) WF_TRY(post(ch, ch->leaves[k], owner(ch, i + 1)));
  }
  if (ch->next) return WF_OK;
  wf_chain *first = ch;
  while (first->s.before) first = first->s.before;
  return relay_expect(first, j + 1);
}

/* ---- gather ---- */

/* Elements of the i-th segment's map among those gathered. The first map is a state at once, but forwards
 * where one enters: that lies at home, which adds it. */
static int64_t gather_size(const wf_chain *ch, int i) {
  if (i == ch->n - 1 && !ch->last) return 0;
  return ch->n_b + (i == 0 && !ch->enters ? 0 : ch->n_a);
}
/* counts [ranks] <- the elements of each; ch->place [n + 1] <- where the i-th segment's map begins, then
 * where the entering state does. */
static wf_status gather_places(wf_chain *ch, int64_t *counts) {
  int ranks = wf_comm_size(ch->comm);
  int64_t first = 0;
  WF_CALLOC(ch->place, "dist", ch->n + 1);
  for (int i = 0; i < ch->n; i++) {
    ch->place[i] = counts[owner(ch, i)];
    counts[owner(ch, i)] += gather_size(ch, i);
  }
  ch->place[ch->n] = counts[ch->home];
  if (ch->enters) counts[ch->home] += ch->n_b;
  int64_t *ahead;
  WF_CALLOC(ahead, "dist", ranks + 1);
  for (int r = 0; r < ranks; r++) {
    ahead[r] = first;
    first += counts[r];
  }
  for (int i = 0; i < ch->n; i++) ch->place[i] += ahead[owner(ch, i)];
  ch->place[ch->n] += ahead[ch->home];
  wf_free(ahead);
  return WF_OK;
}

static wf_status gather_map(const wf_chain *ch, int i, map *m) {
  int64_t n = i < ch->n ? gather_size(ch, i) : ch->n_b;
  wf_tensor *flat = wf_view_raw(ch->gathered, 1, &n, (int64_t[]){1}, ch->place[i]);
  return map_over(ch, flat, n > ch->n_b, m);
}

static wf_status gather_start(wf_chain *ch) {
  int ranks = wf_comm_size(ch->comm);
  int64_t *counts, all = 0, first = 0;
  WF_CALLOC(counts, "dist", ranks + 1);
  wf_status st = gather_places(ch, counts);
  for (int r = 0; r < ranks && st == WF_OK; r++) {
    if (r < ch->p->rank) first += counts[r];
    all += counts[r];
  }
  ch->gathered = wf_empty(ch->s.c, "dist", ch->s.dtype, WF_SHAPE(all));
  if (st == WF_OK && wf_is_poison(ch->gathered)) st = wf_ctx_failure(ch->s.c);
  for (int k = 0; k < ch->n_own && st == WF_OK; k++) {
    map m;
    if (gather_size(ch, at(ch, k)) == 0) continue;
    st = gather_map(ch, at(ch, k), &m);
    if (st == WF_OK && m.A) st = wf_dist_copy(ch->s.c, ch->own[k].A, m.A, false);
    if (st == WF_OK) st = wf_dist_copy(ch->s.c, ch->own[k].B, m.B, false);
  }
  if (st == WF_OK && ch->enters && ch->p->rank == ch->home) {
    map m;
    st = gather_map(ch, ch->n, &m);
    if (st == WF_OK) st = wf_dist_copy(ch->s.c, ch->start, m.B, false);
  }
  if (st == WF_OK) {
    wf_tensor *x = wf_view_raw(ch->gathered, 1, &counts[ch->p->rank], (int64_t[]){1}, first);
    st = wf_is_poison(x) ? wf_ctx_failure(ch->s.c)
                         : wf_comm_all_gather(ch->comm, x, counts, ch->gathered, &ch->gathering);
  }
  wf_free(counts);
  return st;
}

static wf_status gather_turn(wf_chain *ch) {
  WF_TRY(wf_comm_wait(&ch->gathering));
  wf_tensor *s = NULL;
  map m;
  if (ch->enters) {
    WF_TRY(gather_map(ch, ch->n, &m));
    s = m.B;
  }
  if (ch->s.turned && mine(ch, 0)) ch->state[slot(ch, 0)] = ch->start;
  int last = -1;
  for (int k = 0; k < ch->n_own; k++)
    if (at(ch, k) > last) last = at(ch, k);
  for (int i = 0; i <= last; i++) {
    bool own = mine(ch, i);
    if (own && (i || !ch->s.turned)) ch->state[slot(ch, i)] = s;
    if (gather_size(ch, i) == 0) break;
    WF_TRY(gather_map(ch, i, &m));
    WF_TRY(after(ch, i, &m, s, &s));
    if (own) ch->leaves[slot(ch, i)] = s;
  }
  return WF_OK;
}

/* ---- log-step ---- */

/* The window of segment i before step d holds i-d+1 .. i. */
static bool whole(int i, int d) {
  return i - d + 1 <= 0;
}

/* Messages of the step of distance d: to i + d, from i - d; own ones in the order of the scan. */
static wf_status log_post(wf_chain *ch, int d) {
  for (int j = 0; j < ch->n_own; j++) {
    int k = turned_slot(ch, j), i = at(ch, k);
    if (i - d >= 0 && !mine(ch, i - d)) {
      WF_TRY(map_new(ch, !whole(i - d, d), &ch->in[k]));
      WF_TRY(wf_comm_recv(ch->comm, ch->in[k].flat, owner(ch, i - d), &ch->waits[k]));
    }
    if (i + d < ch->n && !mine(ch, i + d)) WF_TRY(post(ch, ch->own[k].flat, owner(ch, i + d)));
  }
  return WF_OK;
}

static wf_status log_turn(wf_chain *ch, int turn) {
  int d = 1 << turn;
  for (int j = ch->n_own - 1; j >= 0; j--) { /* downwards: windows of own segments before are still old */
    int k = turned_slot(ch, j), i = at(ch, k);
    if (i - d < 0) continue;
    WF_TRY(wf_comm_wait(&ch->waits[k]));
    const map *got = mine(ch, i - d) ? &ch->own[slot(ch, i - d)] : &ch->in[k];
    bool state = whole(i - d, d);
    map window;
    if (d == 1)
      ch->ahead[k] = *got;
    else /* ahead: i-d+1 .. i-1 */
      WF_TRY(compose(ch, i - d + 1, i - 1, &ch->ahead[k], got, state, &ch->ahead[k]));
    if (i + 2 * d >= ch->n) continue;
    WF_TRY(compose(ch, i - d + 1, i, &ch->own[k], got, state, &window));
    ch->own[k] = window;
  }
  if (turn + 1 < wf_chain_turns(ch)) return log_post(ch, 2 * d);
  for (int k = 0; k < ch->n_own; k++) ch->state[k] = at(ch, k) ? ch->ahead[k].B : ch->start;
  return WF_OK;
}

/* ---- all ---- */

wf_status wf_chain_open(const wf_chain_spec *s, wf_tensor *start, wf_chain **out) {
  const wf_part *p = s->part;
  wf_chain *ch;
  WF_CALLOC(ch, "dist", 1);
  *out = ch;
  *ch = (wf_chain){.s = *s, .p = p, .comm = p->dist->comm, .n = p->n_segments, .n_own = p->n_own};
  if (s->before) s->before->next = ch;
  ch->home = wf_part_owner(p, p->n_segments - 1);
  ch->enters = p->enters && !s->turned;
  ch->last = s->kind == WF_CARRY_MAX;
  ch->n_b = 1;
  for (int d = 0; d < s->B.ndim; d++) ch->n_b *= s->B.shape[d];
  ch->n_a = s->A.ndim > 0;
  for (int d = 0; d < s->A.ndim; d++) ch->n_a *= s->A.shape[d];
  int own = ch->n_own + 1;
  WF_CALLOC(ch->own, "dist", own);
  WF_CALLOC(ch->in, "dist", own);
  WF_CALLOC(ch->ahead, "dist", own);
  WF_CALLOC(ch->state, "dist", own);
  WF_CALLOC(ch->leaves, "dist", own);
  WF_CALLOC(ch->waits, "dist", own);
  if (p->rank == ch->home && (s->turned || ch->enters)) ch->start = start;
  if (!ch->enters || s->transport == WF_TRANSPORT_GATHER) return WF_OK;
  int first = owner(ch, 0); /* the state goes there while the maps are formed */
  if (first == ch->home) return WF_OK;
  if (p->rank == ch->home) {
    WF_TRY(post(ch, start, first));
    ch->start = NULL;
  } else if (p->rank == first) {
    map m;
    WF_TRY(map_new(ch, false, &m));
    ch->start = m.B;
    return wf_comm_recv(ch->comm, m.flat, ch->home, &ch->start_pending);
  }
  return WF_OK;
}

bool wf_chain_needs(const wf_chain *ch, int k) {
  return ch->last || at(ch, k) < ch->n - 1;
}
bool wf_chain_needs_factor(const wf_chain *ch, int k) {
  return ch->n_a && wf_chain_needs(ch, k) && (at(ch, k) > 0 || ch->enters || ch->start);
}

/* The own segments' maps; the first one of the scan becomes a state. */
wf_status wf_chain_start(wf_chain *ch, wf_tensor *A, wf_tensor *B) {
  bool gather = ch->s.transport == WF_TRANSPORT_GATHER;
  for (int k = 0; k < ch->n_own; k++) {
    if (!wf_chain_needs(ch, k)) continue;
    map *m = &ch->own[k], given = {.B = part_of(B, &ch->s.B, k * (ch->n_b))};
    if (wf_chain_needs_factor(ch, k)) given.A = part_of(A, &ch->s.A, k * ch->n_a);
    if (wf_is_poison(given.B) || (given.A && wf_is_poison(given.A))) return wf_ctx_failure(ch->s.c);
    if (at(ch, k) == 0 && ch->start && !(gather && ch->enters) && ch->s.transport != WF_TRANSPORT_RELAY) {
      map before = {.B = ch->start};
      WF_TRY(await_start(ch));
      WF_TRY(compose(ch, 0, 0, &given, &before, true, m));
    } else if (ch->s.transport == WF_TRANSPORT_LOG) { /* as messages */
      WF_TRY(map_new(ch, at(ch, k) > 0, m));
      if (m->A) WF_TRY(wf_dist_copy(ch->s.c, given.A, m->A, false));
      WF_TRY(wf_dist_copy(ch->s.c, given.B, m->B, false));
    } else {
      *m = given;
    }
  }
  if (gather) return gather_start(ch);
  if (ch->s.transport == WF_TRANSPORT_RELAY) return ch->s.before ? WF_OK : relay_expect(ch, 0);
  if (wf_chain_turns(ch) > 0) return log_post(ch, 1);
  for (int k = 0; k < ch->n_own; k++) ch->state[k] = ch->start; /* a single segment */
  return WF_OK;
}

int wf_chain_turns(const wf_chain *ch) {
  if (ch->s.transport == WF_TRANSPORT_GATHER) return 1;
  if (ch->s.transport == WF_TRANSPORT_RELAY) return ch->n_own;
  int k = 0;
  while (1 << k < ch->n) k++;
  return k;
}

wf_status wf_chain_turn(wf_chain *ch, int turn) {
  if (ch->s.transport == WF_TRANSPORT_GATHER) return gather_turn(ch);
  if (ch->s.transport == WF_TRANSPORT_RELAY) return relay_turn(ch, turn);
  return log_turn(ch, turn);
}

wf_tensor *wf_chain_state(const wf_chain *ch, int k) {
  return ch->state[k];
}
wf_tensor *wf_chain_leaves(const wf_chain *ch, int k) {
  return ch->leaves[k];
}

static void keep_first(wf_status *st, wf_status x) {
  if (*st == WF_OK) *st = x;
}

wf_status wf_chain_close(wf_chain *ch) {
  wf_status st = WF_OK;
  if (!ch) return st;
  keep_first(&st, wf_comm_wait(&ch->start_pending));
  keep_first(&st, wf_comm_wait(&ch->gathering));
  for (int k = 0; ch->waits && k < ch->n_own; k++) keep_first(&st, wf_comm_wait(&ch->waits[k]));
  for (size_t i = 0; i < ch->n_sent; i++) keep_first(&st, wf_comm_wait(&ch->sent[i]));
  wf_free(ch->own);
  wf_free(ch->in);
  wf_free(ch->ahead);
  wf_free(ch->state);
  wf_free(ch->leaves);
  wf_free(ch->waits);
  wf_free(ch->sent);
  wf_free(ch->place);
  wf_free(ch);
  return st;
}
