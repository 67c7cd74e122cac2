/* A ring of batches between one producing thread and the caller. Without a thread the same slot is filled on
 * demand. */
#include "data/loader.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include "core/clock.h"
#include "core/memory.h"

typedef struct slot {
  wf_batch batch;
  wf_fill fill;
  wf_status status; /* of making this batch, with the message */
  char message[1024], hint[512];
  bool end;
} slot;

struct wf_loader {
  wf_sequences *source;
  wf_loader_options o;
  slot *slots; /* [n_slots]: one in the caller's hands, the others ahead */
  int n_slots;
  int64_t make_cursor; /* of the next batch to make */
  int64_t cursor;      /* after the last batch given out */
  double waited;
  slot *last; /* the end or an error: nothing comes after it */

  bool threaded, stop;
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t filled, freed;
  int64_t made, given, released; /* batches made, handed out, handed back; batch i lies in slot i % n_slots */
};

static wf_status fill_slot(wf_loader *l, slot *s) {
  int64_t n = l->o.batch, left = l->source->per_epoch - l->make_cursor;
  if (l->o.once && left < n) n = left;
  int64_t from = wf_loader_first(n, l->o.rank, l->o.n_ranks),
          to = wf_loader_first(n, l->o.rank + 1, l->o.n_ranks);
  wf_fill *f = &s->fill;
  f->n_tokens = f->n_rows = 0;
  for (int64_t i = from; i < to; i++) {
    f->lane = i - from;
    WF_TRY(l->source->fill(l->source, l->make_cursor + i, f));
  }
  int64_t n_labels = 0;
  for (int64_t i = 0; i < f->n_tokens; i++) n_labels += f->labels[i] >= 0;
  s->batch = (wf_batch){.n_tokens = f->n_tokens,
                        .inputs = f->inputs,
                        .labels = f->labels,
                        .n_labels = n_labels,
                        .n_rows = f->n_rows,
                        .n_lanes = to - from,
                        .rows = f->rows,
                        .n_sequences = n,
                        .cursor = l->make_cursor + n,
                        .epoch = l->source->per_epoch ? l->make_cursor / l->source->per_epoch : 0};
  l->make_cursor += n;
  return WF_OK;
}

/* Make the next batch, or note that there is none or why it failed. */
static void make(wf_loader *l, slot *s) {
  s->end = l->o.once && l->make_cursor >= l->source->per_epoch;
  s->status = s->end ? WF_OK : fill_slot(l, s);
  if (s->status == WF_OK) return;
  strncpy(s->message, wf_error_message(), sizeof s->message - 1);
  strncpy(s->hint, wf_error_hint(), sizeof s->hint - 1);
}

static void *produce(void *context) {
  wf_loader *l = context;
  pthread_mutex_lock(&l->lock);
  for (bool last = false; !last;) {
    while (!l->stop && l->made - l->released >= l->n_slots) pthread_cond_wait(&l->freed, &l->lock);
    if (l->stop) break;
    slot *s = &l->slots[l->made % l->n_slots];
    pthread_mutex_unlock(&l->lock);
    make(l, s);
    last = s->end || s->status != WF_OK;
    pthread_mutex_lock(&l->lock);
    l->made++;
    pthread_cond_signal(&l->filled);
  }
  pthread_mutex_unlock(&l->lock);
  return NULL;
}

/* Signals are the program's: none is delivered to the loader's thread. */
static wf_status start_thread(wf_loader *l) {
  sigset_t all, before;
  pthread_mutex_init(&l->lock, NULL);
  pthread_cond_init(&l->filled, NULL);
  pthread_cond_init(&l->freed, NULL);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int failed = pthread_create(&l->thread, NULL, produce, l);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!failed) {
    l->threaded = true;
    return WF_OK;
  }
  pthread_mutex_destroy(&l->lock);
  pthread_cond_destroy(&l->filled);
  pthread_cond_destroy(&l->freed);
  return wf_hint(WF_FAIL(WF_EIO, "the loader's thread could not be started: %s", strerror(failed)),
                 "is the limit of processes (ulimit -u) reached?");
}

static wf_status make_slots(wf_loader *l) {
  int64_t lanes = (l->o.batch - 1) / l->o.n_ranks + 1, tokens;
  l->n_slots = l->o.ahead + 1;
  WF_CALLOC(l->slots, "batch", l->n_slots);
  if (__builtin_mul_overflow(lanes, l->source->max_tokens, &tokens) || tokens > INT64_MAX / 8)
    return WF_FAIL(WF_EINVAL, "a batch of %lld sequences of %lld tokens is too large", (long long)l->o.batch,
                   (long long)l->source->max_tokens);
  for (int i = 0; i < l->n_slots; i++) {
    WF_ALLOC(l->slots[i].fill.inputs, "batch", (size_t)tokens * sizeof(int32_t));
    WF_ALLOC(l->slots[i].fill.labels, "batch", (size_t)tokens * sizeof(int32_t));
  }
  return WF_OK;
}

static wf_status set_up(wf_loader *l) {
  const wf_loader_options *o = &l->o;
  int64_t group = l->source->group;
  if (o->batch < 1 || o->batch > INT32_MAX)
    return WF_FAIL(WF_EINVAL, "a batch of %lld sequences", (long long)o->batch);
  if (o->rank < 0 || o->rank >= o->n_ranks) return WF_FAIL(WF_EINVAL, "rank %d of %d", o->rank, o->n_ranks);
  if (o->cursor < 0 || o->ahead < 0 || o->ahead > 1024)
    return WF_FAIL(WF_EINVAL, "cursor %lld, %d batches ahead", (long long)o->cursor, o->ahead);
  if (o->once && l->source->per_epoch == 0) return WF_FAIL(WF_EINVAL, "one pass over an endless source");
  if (group > 1 && (o->batch != group || o->cursor % group))
    return wf_hint(WF_FAIL(WF_EINVAL,
                           "a batch of %lld from sequence %lld does not continue %lld carried lanes",
                           (long long)o->batch, (long long)o->cursor, (long long)group),
                   "with carried state the batch must stay as it was");
  WF_TRY(make_slots(l));
  if (o->ahead > 0) WF_TRY(start_thread(l));
  return WF_OK;
}

wf_status wf_loader_open(wf_sequences *source, const wf_loader_options *o, wf_loader **out) {
  wf_loader *l = wf_calloc("batch", 1, sizeof *l);
  if (!l) {
    source->free(source);
    return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  }
  *l = (wf_loader){.source = source, .o = *o, .make_cursor = o->cursor, .cursor = o->cursor};
  if (l->o.n_ranks == 0) l->o.n_ranks = 1;
  wf_status s = set_up(l);
  if (s != WF_OK) {
    wf_loader_close(l);
    return wf_frame_at(__FILE__, __LINE__, __func__, s);
  }
  *out = l;
  return WF_OK;
}

void wf_loader_close(wf_loader *l) {
  if (!l) return;
  if (l->threaded) {
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_signal(&l->freed);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->filled);
    pthread_cond_destroy(&l->freed);
  }
  for (int i = 0; l->slots && i < l->n_slots; i++) {
    wf_free(l->slots[i].fill.inputs);
    wf_free(l->slots[i].fill.labels);
    wf_free(l->slots[i].fill.rows);
  }
  wf_free(l->slots);
  l->source->free(l->source);
  wf_free(l);
}

/* Give back the batch of the last call and wait for the next. */
static slot *take(wf_loader *l) {
  slot *s = &l->slots[l->given % l->n_slots];
  if (!l->threaded) {
    make(l, s);
    l->given++;
    return s;
  }
  pthread_mutex_lock(&l->lock);
  l->released = l->given;
  pthread_cond_signal(&l->freed);
  while (l->made == l->given) pthread_cond_wait(&l->filled, &l->lock);
  l->given++;
  pthread_mutex_unlock(&l->lock);
  return s;
}

wf_status wf_loader_next(wf_loader *l, const wf_batch **batch) {
  *batch = NULL;
  if (!l->last) {
    double start = wf_now();
    slot *s = take(l);
    l->waited += wf_now() - start;
    if (!s->end && s->status == WF_OK) {
      l->cursor = s->batch.cursor;
      *batch = &s->batch;
      return WF_OK;
    }
    l->last = s;
  }
  if (l->last->end) return WF_OK;
  wf_status s = WF_FAIL(l->last->status, "%s", l->last->message);
  if (l->last->hint[0]) wf_hint(s, "%s", l->last->hint);
  return s;
}

int64_t wf_loader_cursor(const wf_loader *l) {
  return l->cursor;
}
int64_t wf_loader_per_epoch(const wf_loader *l) {
  return l->source->per_epoch;
}
double wf_loader_waited(const wf_loader *l) {
  return l->waited;
}
