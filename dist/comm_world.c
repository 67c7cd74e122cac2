/* Worlds of ranks that are threads, in one process or several, and their groups (comm_threads_impl.h). */
#include "dist/comm_threads_impl.h"

#include <stdlib.h>
#include <string.h>

static const char tag[] = "communicator";

/* ---- letters from other processes: numbered as they come, put where they belong when all of them is there
 * ---- */

typedef struct parcel {
  wf_far_letter letter;
  load *load;
  int64_t number[]; /* [ranks of the group] of those here that it is for */
} parcel;

static hub *hub_find(const world *w, int64_t id) {
  hub *h = w->hubs;
  while (h && h->id != id) h = h->next;
  return h;
}

static bool is_for(const hub *h, const wf_far_letter *l, int rank) {
  return is_here(h, rank) && (l->to < 0 || l->to == rank);
}

static wf_status far_comes(void *arg, const wf_far_letter *l, void **handle, void **into) {
  hub *h = hub_find(arg, l->hub); /* NULL: everyone here has left it */
  const wf_span x = {NULL, (wf_dtype)l->dtype, l->n};
  parcel *p = NULL;
  WF_ALLOC(p, tag, sizeof *p + (h ? (size_t)h->n * sizeof p->number[0] : 0));
  p->letter = *l;
  p->load = wf_alloc(tag, sizeof *p->load + wf_span_bytes(x));
  if (!p->load) {
    wf_free(p);
    return WF_ENOMEM;
  }
  atomic_init(&p->load->refs, 1);
  memcpy(p->load->call, l->call, sizeof p->load->call);
  for (int i = 0; h && i < h->n; i++)
    if (is_for(h, l, i)) p->number[i] = box_of(h, l->kind, l->from, i)->sent++;
  *handle = p;
  *into = p->load->bytes;
  return WF_OK;
}

static wf_status far_came(void *arg, void *handle) {
  world *w = arg;
  parcel *p = handle;
  const wf_far_letter *l = &p->letter;
  hub *h = hub_find(w, l->hub);
  wf_status s = WF_OK;
  for (int i = 0; h && i < h->n && s == WF_OK; i++)
    if (is_for(h, l, i))
      s = wf_threads_put(box_of(h, l->kind, l->from, i), p->number[i], p->load->call, p->load,
                         (wf_span){p->load->bytes, (wf_dtype)l->dtype, l->n});
  load_drop(p->load);
  wf_free(p);
  announce(w);
  return s;
}

static void far_sent(void *arg, void *handle) {
  (void)arg;
  load_drop(handle);
}

/* ---- making and ending ---- */

static void world_free(world *w) {
  wf_far_close(w->far, !w->stopped[0]);
  pthread_mutex_destroy(&w->lock);
  pthread_cond_destroy(&w->news);
  wf_free(w->held);
  wf_free(w);
}

static void hub_free(hub *h) {
  hub **at = &h->world->hubs;
  while (*at && *at != h) at = &(*at)->next;
  if (*at) *at = h->next;
  for (int64_t i = 0; h->boxes && i < (int64_t)N_KINDS * h->n * h->n; i++)
    for (letter *m = h->boxes[i].first, *next; m; m = next) {
      next = m->next;
      load_drop(m->load);
      wf_free(m);
    }
  wf_free(h->boxes);
  wf_free(h->left);
  wf_free(h->members);
  wf_free(h);
}

/* Of these n ranks of the world (NULL: all of them). */
static wf_status hub_make(world *w, int64_t id, int n, const int *members, hub **out) {
  hub *h = NULL;
  WF_CALLOC(h, tag, 1);
  h->world = w;
  h->id = id;
  h->n = n;
  h->members = wf_alloc(tag, (size_t)n * sizeof *h->members);
  h->left = wf_calloc(tag, (size_t)n, sizeof *h->left);
  h->boxes = wf_calloc(tag, (size_t)N_KINDS * (size_t)n * (size_t)n, sizeof *h->boxes);
  if (!h->left || !h->boxes || !h->members) {
    hub_free(h);
    return WF_ENOMEM;
  }
  for (int i = 0; i < n; i++) {
    h->members[i] = members ? members[i] : i;
    h->refs += is_here(h, i);
  }
  h->next = w->hubs;
  *out = w->hubs = h;
  return WF_OK;
}

void wf_threads_free(wf_comm *c) {
  threads *t = of(c);
  hub *h = t->hub;
  world *w = h->world;
  pthread_mutex_lock(&w->lock);
  h->left[c->rank] = true;
  if (--h->refs == 0) hub_free(h);
  if (--w->held[t->world_rank] == 0) w->alive--;
  const bool last = --w->refs == 0;
  announce(w);
  pthread_mutex_unlock(&w->lock);
  if (last) world_free(w);
  wf_free(t);
}

static int on_this_host(const hub *h) {
  const wf_far *far = h->world->far;
  int n = 0;
  for (int i = 0; i < h->n; i++) n += !far || wf_far_is_near(far, process_of(h, i));
  return n;
}

static wf_status rank_make(hub *h, int rank, int world_rank, const char *name, wf_comm **out) {
  threads *t;
  WF_CALLOC(t, tag, 1);
  t->base = (wf_comm){.ops = &wf_threads_ops,
                      .name = name,
                      .rank = rank,
                      .size = h->n,
                      .local_size = on_this_host(h),
                      .most = WF_FAR_MOST};
  t->hub = h;
  t->world_rank = world_rank;
  pthread_mutex_lock(&h->world->lock);
  h->world->refs++;
  if (h->world->held[world_rank]++ == 0) h->world->alive++;
  pthread_mutex_unlock(&h->world->lock);
  *out = &t->base;
  return WF_OK;
}

/* This process's ranks: each of the processes, or n alone. */
static wf_status make(wf_comm *processes, int n, const char *name, wf_comm **out) {
  world *w;
  hub *h = NULL;
  const int many = processes ? wf_comm_size(processes) : 1, process = processes ? wf_comm_rank(processes) : 0;
  int made = 0;
  if (n < 1) return WF_FAIL(WF_EINVAL, "a group of %d ranks", n);
  WF_CALLOC(w, tag, 1);
  w->process = process;
  w->each = n;
  pthread_condattr_t clock;
  pthread_condattr_init(&clock);
  pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
  pthread_mutex_init(&w->lock, NULL);
  pthread_cond_init(&w->news, &clock);
  pthread_condattr_destroy(&clock);
  w->held = wf_calloc(tag, (size_t)many * (size_t)n, sizeof *w->held);
  wf_status s = w->held ? hub_make(w, 0, many * n, NULL, &h) : WF_ENOMEM;
  if (many > 1) /* with every process, whatever happened here */
    s = wf_far_open(processes, s, &(wf_far_sink){w, far_comes, far_came, far_sent}, &w->far);
  while (s == WF_OK && made < n) {
    s = rank_make(h, process * n + made, process * n + made, name, &out[made]);
    made += s == WF_OK;
  }
  if (s == WF_OK) return WF_OK;
  if (h) h->refs = made;
  if (made == 0) {
    if (h) hub_free(h);
    stop(w, "it could not be made");
    world_free(w);
  }
  while (made > 0) wf_threads_free(out[--made]);
  return wf_frame_at(__FILE__, __LINE__, __func__, s);
}

wf_status wf_comm_threads(int n, wf_comm **out) {
  return make(NULL, n, "threads", out);
}

wf_status wf_comm_self(wf_comm **out) {
  return make(NULL, 1, "self", out);
}

wf_status wf_comm_virtual(wf_comm *processes, int each, wf_comm **out) {
  return make(processes, each, "virtual", out);
}

/* ---- splitting ---- */

typedef struct place { /* what each rank tells the others */
  int64_t color, key;
  int64_t id;  /* of the group, should this rank be its first */
  int64_t hub; /* where it is, in the first's process */
} place;

/* Everyone's place, in the order of the ranks; all[rank] is ours. */
static wf_status tell(wf_comm *c, place *all) {
  wf_request *r = NULL;
  int64_t *counts = wf_alloc(tag, (size_t)c->size * sizeof *counts);
  if (!counts) return WF_ENOMEM;
  for (int i = 0; i < c->size; i++) counts[i] = sizeof(place);
  const wf_span out = {all, WF_U8, c->size * (int64_t)sizeof(place)};
  wf_status s = c->ops->all_gather(c, counts, out, true, &r);
  if (s == WF_OK) s = c->ops->wait(c, r);
  wf_free(counts);
  return s;
}

/* The ranks of our colour in their new order; `who` in the old group. Returns how many. */
static int order(const place *all, int size, int64_t color, int *who) {
  int n = 0;
  for (int i = 0; i < size; i++) {
    if (all[i].color != color) continue;
    int at = n++;
    for (; at > 0 && all[who[at - 1]].key > all[i].key; at--) who[at] = who[at - 1];
    who[at] = i;
  }
  return n;
}

/* The first of a new group in each process makes its hub there, and tells the others where it is. */
static wf_status split_into(threads *t, place *all, int *who, int *members, wf_comm **out) {
  world *w = t->hub->world;
  place *own = &all[t->base.rank];
  hub *h = NULL;
  pthread_mutex_lock(&w->lock);
  own->id = (int64_t)(w->process + 1) << 32 | ++w->n_hubs;
  pthread_mutex_unlock(&w->lock);
  WF_TRY(tell(&t->base, all));
  const int n = order(all, t->base.size, own->color, who);
  int rank = 0, first = n;
  for (int i = n; i-- > 0;) {
    members[i] = t->hub->members[who[i]];
    if (who[i] == t->base.rank) rank = i;
    if (is_here(t->hub, who[i])) first = i;
  }
  wf_status made = WF_OK;
  if (rank == first) {
    pthread_mutex_lock(&w->lock);
    made = hub_make(w, all[who[0]].id, n, members, &h);
    pthread_mutex_unlock(&w->lock);
  }
  own->hub = (int64_t)(intptr_t)h;
  WF_TRY(tell(&t->base, all));
  WF_TRY(made);
  if (!(h = (hub *)(intptr_t)all[who[first]].hub))
    return WF_FAIL(WF_ENOMEM, "split: rank %d could not make the group", who[first]);
  WF_TRY(rank_make(h, rank, t->world_rank, t->base.name, out));
  (*out)->most = t->base.most;
  return WF_OK;
}

wf_status wf_threads_split(wf_comm *c, int color, int key, wf_comm **out) {
  place *all = wf_calloc(tag, (size_t)c->size, sizeof *all);
  int *who = wf_calloc(tag, 2 * (size_t)c->size, sizeof *who);
  wf_status s = all && who ? WF_OK : WF_ENOMEM;
  if (s == WF_OK) {
    all[c->rank] = (place){.color = color, .key = key};
    s = split_into(of(c), all, who, who + c->size, out);
  }
  wf_free(all);
  wf_free(who);
  return s == WF_OK ? s : wf_frame_at(__FILE__, __LINE__, __func__, s);
}
