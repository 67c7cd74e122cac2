/* The front of every communicator: checks, host memory for tensors of devices, counts, waited time. */
#include "dist/comm_impl.h"

#include <stdlib.h>
#include <string.h>
#include "core/clock.h"
#include "core/memory.h"

/* ---- one call ---- */

typedef struct stage { /* host memory in front of a device; none on the CPU */
  wf_device *dev;
  void *p;
  size_t bytes;
} stage;

static void stage_drop(stage *s) {
  if (s->p) wf_device_host_free(s->dev, "communicator", s->p, s->bytes);
  s->p = NULL;
}

struct wf_pending {
  wf_comm *c;
  wf_request *request;
  stage from, into; /* of the source and the destination */
  wf_tensor *out;   /* to be written from `into` */
};

static wf_status check(const wf_comm *c, const wf_tensor *x, const char *call) {
  char shape[96];
  if (!x || wf_is_poison(x)) return WF_FAIL(WF_EINVAL, "%s: no tensor on rank %d", call, c->rank);
  if (!wf_is_contiguous(x))
    return wf_hint(WF_FAIL(WF_EINVAL, "%s: the tensor %s on rank %d is not contiguous", call,
                           wf_shape_text(x, shape), c->rank),
                   "copy it with wf_contiguous");
  return WF_OK;
}

static wf_status check_rank(const wf_comm *c, int rank, const char *call) {
  if (rank >= 0 && rank < c->size) return WF_OK;
  return WF_FAIL(WF_EINVAL, "%s: rank %d is not in the group of %d", call, rank, c->size);
}

static wf_status check_reducible(const wf_tensor *x, const char *call) {
  switch (x->dtype) {
  case WF_F32:
  case WF_F64:
  case WF_I32:
  case WF_I64: return WF_OK;
  default:
    return WF_FAIL(WF_EINVAL, "%s: %s cannot be reduced: f32, f64, i32, i64 can", call,
                   wf_dtype_name(x->dtype));
  }
}

/* That the counts are none below zero, and `n` elements in all. */
static wf_status check_counts(const wf_comm *c, const int64_t *counts, int64_t n, const char *call,
                              const char *whose) {
  if (!counts) return WF_FAIL(WF_EINVAL, "%s: no counts", call);
  for (int i = 0; i < c->size; i++)
    if (counts[i] < 0) return WF_FAIL(WF_EINVAL, "%s: count %lld of rank %d", call, (long long)counts[i], i);
  const int64_t sum = wf_sum_counts(counts, c->size);
  if (sum == n) return WF_OK;
  return WF_FAIL(WF_EINVAL, "%s: the counts sum to %lld, %s has %lld elements on rank %d", call,
                 (long long)sum, whose, (long long)n, c->rank);
}

static wf_status check_pair(const wf_comm *c, const wf_tensor *x, const wf_tensor *out, const char *call) {
  WF_TRY(check(c, x, call));
  WF_TRY(check(c, out, call));
  if (x->dtype == out->dtype && x->storage->dev == out->storage->dev) return WF_OK;
  return WF_FAIL(WF_EINVAL, "%s: source and destination differ in type or device on rank %d", call, c->rank);
}

static bool overlap(const wf_tensor *x, const wf_tensor *out) {
  const char *a = wf_data(x), *b = wf_data(out);
  const size_t size = wf_dtype_size(x->dtype);
  return a < b + (size_t)wf_numel(out) * size && b < a + (size_t)wf_numel(x) * size;
}

/* The host memory of `x`: its own on the CPU, else a stage, which receives its elements when `read`. */
static wf_status span_of(const wf_tensor *x, bool read, stage *at, wf_span *out) {
  *out = (wf_span){wf_data(x), x->dtype, wf_numel(x)};
  wf_device *dev = x->storage->dev;
  if (wf_device_kind(dev) == WF_CPU || out->n == 0) return WF_OK;
  *at = (stage){.dev = dev, .bytes = wf_span_bytes(*out)};
  WF_TRY(wf_device_host_alloc(dev, "communicator", at->bytes, &at->p));
  out->p = at->p;
  return read ? wf_device_read(dev, at->p, wf_data(x), at->bytes) : WF_OK;
}

typedef struct moment {
  double time, cpu;
} moment;

static moment moment_now(void) {
  return (moment){wf_now(), wf_cpu_now()};
}
static void count_wait(wf_comm *c, moment start) {
  c->counts.waited += wf_now() - start.time;
  c->counts.busy += wf_cpu_now() - start.cpu;
}

static wf_status settle(wf_pending *k, wf_status s) {
  if (k->request) {
    wf_status waited = k->c->ops->wait(k->c, k->request);
    k->request = NULL;
    if (s == WF_OK) s = waited;
  }
  if (s == WF_OK && k->into.p && k->out)
    s = wf_device_write(k->into.dev, wf_data(k->out), k->into.p, k->into.bytes);
  stage_drop(&k->from);
  stage_drop(&k->into);
  return s;
}

/* The end of every call: waits, or hands what is under way to the caller. */
static wf_status finish(wf_pending *k, wf_status s, moment start, wf_pending **pending) {
  if (s == WF_OK && pending && k->request) {
    wf_pending *kept = wf_alloc("communicator", sizeof *kept);
    if (kept) {
      *kept = *k;
      *pending = kept;
      return WF_OK;
    }
    s = WF_ENOMEM;
  }
  s = settle(k, s);
  if (!pending) count_wait(k->c, start);
  return s == WF_OK ? s : wf_frame_at(__FILE__, __LINE__, __func__, s);
}

static void count_call(wf_comm *c, wf_span x) {
  c->counts.calls++;
  c->counts.call_bytes += (int64_t)wf_span_bytes(x);
}

/* ---- between two ---- */

static wf_status send(wf_comm *c, const wf_tensor *x, int to, bool leave, wf_pending **pending) {
  if (pending) *pending = NULL;
  WF_TRY(check(c, x, "send"));
  WF_TRY(check_rank(c, to, "send"));
  if (wf_numel(x) == 0) return WF_OK;
  const moment start = moment_now();
  wf_pending k = {.c = c};
  wf_span from;
  wf_status s = span_of(x, true, &k.from, &from);
  if (s == WF_OK)
    s = leave && c->ops->leave ? c->ops->leave(c, from, to, &k.request)
                               : c->ops->send(c, from, to, !pending, &k.request);
  if (s == WF_OK) {
    c->counts.messages++;
    c->counts.message_bytes += (int64_t)wf_span_bytes(from);
  }
  return finish(&k, s, start, pending);
}

wf_status wf_comm_send(wf_comm *c, const wf_tensor *x, int to, wf_pending **pending) {
  return send(c, x, to, false, pending);
}
wf_status wf_comm_leave(wf_comm *c, const wf_tensor *x, int to, wf_pending **pending) {
  return send(c, x, to, true, pending);
}

wf_status wf_comm_recv(wf_comm *c, wf_tensor *x, int from, wf_pending **pending) {
  if (pending) *pending = NULL;
  WF_TRY(check(c, x, "recv"));
  WF_TRY(check_rank(c, from, "recv"));
  if (wf_numel(x) == 0) return WF_OK;
  const moment start = moment_now();
  wf_pending k = {.c = c, .out = x};
  wf_span into;
  wf_status s = span_of(x, false, &k.into, &into);
  if (s == WF_OK) s = c->ops->recv(c, into, from, !pending, &k.request);
  return finish(&k, s, start, pending);
}

/* ---- of all; a group of one has nothing to send ---- */

wf_status wf_comm_broadcast(wf_comm *c, wf_tensor *x, int root, wf_pending **pending) {
  if (pending) *pending = NULL;
  WF_TRY(check(c, x, "broadcast"));
  WF_TRY(check_rank(c, root, "broadcast"));
  if (wf_numel(x) == 0 || c->size == 1) return WF_OK;
  const moment start = moment_now();
  wf_pending k = {.c = c, .out = c->rank == root ? NULL : x};
  wf_span all;
  wf_status s = span_of(x, c->rank == root, &k.into, &all);
  if (s == WF_OK) {
    count_call(c, all);
    s = c->ops->broadcast(c, all, root, !pending, &k.request);
  }
  return finish(&k, s, start, pending);
}

wf_status wf_comm_all_reduce(wf_comm *c, wf_tensor *x, wf_reduce how, wf_pending **pending) {
  if (pending) *pending = NULL;
  WF_TRY(check(c, x, "all_reduce"));
  WF_TRY(check_reducible(x, "all_reduce"));
  if (wf_numel(x) == 0 || c->size == 1) return WF_OK;
  const moment start = moment_now();
  wf_pending k = {.c = c, .out = x};
  wf_span all;
  wf_status s = span_of(x, true, &k.into, &all);
  if (s == WF_OK) {
    count_call(c, all);
    s = c->ops->all_reduce(c, all, how, !pending, &k.request);
  }
  return finish(&k, s, start, pending);
}

wf_status wf_comm_reduce_scatter(wf_comm *c, const wf_tensor *x, const int64_t *counts, wf_tensor *out,
                                 wf_pending **pending) {
  static const char call[] = "reduce_scatter";
  if (pending) *pending = NULL;
  WF_TRY(check_pair(c, x, out, call));
  WF_TRY(check_reducible(x, call));
  WF_TRY(check_counts(c, counts, wf_numel(x), call, "the source"));
  if (counts[c->rank] != wf_numel(out))
    return WF_FAIL(WF_EINVAL, "%s: rank %d counts %lld elements, its destination has %lld", call, c->rank,
                   (long long)counts[c->rank], (long long)wf_numel(out));
  if (overlap(x, out)) return WF_FAIL(WF_EINVAL, "%s: source and destination overlap", call);
  if (wf_numel(x) == 0) return WF_OK;
  const moment start = moment_now();
  wf_pending k = {.c = c, .out = out};
  wf_span from, into;
  wf_status s = span_of(x, true, &k.from, &from);
  if (s == WF_OK) s = span_of(out, false, &k.into, &into);
  if (s == WF_OK && c->size == 1) {
    memcpy(into.p, from.p, wf_span_bytes(from));
  } else if (s == WF_OK) {
    count_call(c, from);
    s = c->ops->reduce_scatter(c, from, counts, into, !pending, &k.request);
  }
  return finish(&k, s, start, pending);
}

wf_status wf_comm_all_gather(wf_comm *c, const wf_tensor *x, const int64_t *counts, wf_tensor *out,
                             wf_pending **pending) {
  static const char call[] = "all_gather";
  if (pending) *pending = NULL;
  WF_TRY(check_pair(c, x, out, call));
  WF_TRY(check_counts(c, counts, wf_numel(out), call, "the destination"));
  if (counts[c->rank] != wf_numel(x))
    return WF_FAIL(WF_EINVAL, "%s: rank %d counts %lld elements, its source has %lld", call, c->rank,
                   (long long)counts[c->rank], (long long)wf_numel(x));
  if (wf_numel(out) == 0) return WF_OK;
  const int64_t first = wf_sum_counts(counts, c->rank);
  const size_t size = wf_dtype_size(x->dtype);
  const bool in_place = wf_data(x) == (void *)((char *)wf_data(out) + (size_t)first * size);
  if (!in_place && overlap(x, out))
    return WF_FAIL(WF_EINVAL, "%s: the source lies in another place of the destination", call);
  const moment start = moment_now();
  wf_pending k = {.c = c, .out = out};
  wf_span into;
  wf_status s = span_of(out, false, &k.into, &into);
  if (s == WF_OK) {
    const wf_span own = wf_span_part(into, first, wf_numel(x));
    if (own.n > 0 && own.p != wf_data(x))
      s = wf_device_read(x->storage->dev, own.p, wf_data(x), wf_span_bytes(own));
    if (s == WF_OK && c->size > 1) {
      count_call(c, own);
      s = c->ops->all_gather(c, counts, into, !pending, &k.request);
    }
  }
  return finish(&k, s, start, pending);
}

wf_status wf_comm_all_to_all(wf_comm *c, const wf_tensor *x, const int64_t *send, wf_tensor *out,
                             const int64_t *recv, wf_pending **pending) {
  static const char call[] = "all_to_all";
  if (pending) *pending = NULL;
  WF_TRY(check_pair(c, x, out, call));
  WF_TRY(check_counts(c, send, wf_numel(x), call, "the source"));
  WF_TRY(check_counts(c, recv, wf_numel(out), call, "the destination"));
  if (send[c->rank] != recv[c->rank])
    return WF_FAIL(WF_EINVAL, "%s: rank %d sends itself %lld elements and receives %lld", call, c->rank,
                   (long long)send[c->rank], (long long)recv[c->rank]);
  if (overlap(x, out)) return WF_FAIL(WF_EINVAL, "%s: source and destination overlap", call);
  const moment start = moment_now();
  wf_pending k = {.c = c, .out = out};
  wf_span from, into;
  wf_status s = span_of(x, true, &k.from, &from);
  if (s == WF_OK) s = span_of(out, false, &k.into, &into);
  if (s == WF_OK && c->size == 1) {
    if (from.n > 0) memcpy(into.p, from.p, wf_span_bytes(from));
  } else if (s == WF_OK) {
    if (from.n + into.n > 0) count_call(c, from);
    s = c->ops->all_to_all(c, from, send, into, recv, !pending, &k.request);
  }
  return finish(&k, s, start, pending);
}

wf_status wf_comm_barrier(wf_comm *c) {
  if (c->size == 1) return WF_OK;
  const moment start = moment_now();
  const wf_status s = c->ops->barrier(c);
  count_wait(c, start);
  return s == WF_OK ? s : wf_frame_at(__FILE__, __LINE__, __func__, s);
}

wf_status wf_comm_all_reduce_host(wf_comm *c, wf_dtype dtype, void *x, int64_t n, wf_reduce how) {
  if (c->size == 1 || n == 0) return WF_OK;
  const wf_span all = {x, dtype, n};
  wf_pending k = {.c = c};
  const moment start = moment_now();
  count_call(c, all);
  return finish(&k, c->ops->all_reduce(c, all, how, true, &k.request), start, NULL);
}

wf_status wf_comm_broadcast_host(wf_comm *c, void *bytes, int64_t n, int root) {
  if (c->size == 1 || n == 0) return WF_OK;
  WF_TRY(check_rank(c, root, "broadcast"));
  const wf_span all = {bytes, WF_U8, n};
  wf_pending k = {.c = c};
  const moment start = moment_now();
  count_call(c, all);
  return finish(&k, c->ops->broadcast(c, all, root, true, &k.request), start, NULL);
}

/* ---- under way ---- */

wf_status wf_comm_wait(wf_pending **pending) {
  if (!pending || !*pending) return WF_OK;
  wf_pending *k = *pending;
  *pending = NULL;
  const moment start = moment_now();
  const wf_status s = settle(k, WF_OK);
  count_wait(k->c, start);
  wf_free(k);
  return s == WF_OK ? s : wf_frame_at(__FILE__, __LINE__, __func__, s);
}

void wf_comm_poke(wf_comm *c) {
  c->ops->poke(c);
}

/* ---- the rest ---- */

wf_status wf_comm_split(wf_comm *c, int color, int key, wf_comm **out) {
  if (color < 0) return WF_FAIL(WF_EINVAL, "split: colour %d of rank %d is below zero", color, c->rank);
  WF_TRY(c->ops->split(c, color, key, out));
  return WF_OK;
}

void wf_comm_free(wf_comm *c) {
  if (c) c->ops->free(c);
}

int wf_comm_rank(const wf_comm *c) {
  return c->rank;
}
int wf_comm_size(const wf_comm *c) {
  return c->size;
}
int wf_comm_local_size(const wf_comm *c) {
  return c->local_size;
}
const char *wf_comm_name(const wf_comm *c) {
  return c->name;
}
wf_comm_counts wf_comm_count(const wf_comm *c) {
  return c->counts;
}

void wf_comm_abort(wf_comm *c, int code) {
  c->ops->abort(c, code);
  _Exit(code);
}

bool wf_comm_launched(int *ranks) {
  /* Open MPI; MPICH and its kin; a step of Slurm's srun. */
  static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
  int n = 1;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    const char *text = getenv(names[i]);
    if (!text) continue;
    n = atoi(text);
    break;
  }
  if (ranks) *ranks = n > 1 ? n : 1;
  return n > 1;
}
