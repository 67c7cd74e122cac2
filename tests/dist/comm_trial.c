#include "tests/dist/comm_trial.h"

#include <math.h>
#include <string.h>
#include "dist/comm_impl.h"

/* ---- a rank's tensors ---- */

static wf_ctx *context(wf_device_type kind) {
  wf_device *dev;
  wf_ctx *ctx;
  WF_RANK_OK(wf_device_open(kind, 0, &dev));
  WF_RANK_OK(wf_ctx_create(dev, &ctx));
  wf_scope_open(ctx);
  return ctx;
}

static void context_close(wf_ctx *ctx) {
  wf_device *dev = wf_ctx_device(ctx);
  WF_RANK_OK(wf_ctx_check(ctx));
  wf_ctx_free(ctx); /* with what its scope holds */
  wf_device_close(dev);
}

bench bench_open(wf_device_type kind) {
  bench b = {.host = context(WF_CPU)};
  b.ctx = kind == WF_CPU ? b.host : context(kind);
  return b;
}

void bench_close(bench *b) {
  if (b->ctx != b->host) context_close(b->ctx);
  context_close(b->host);
}

/* A tensor of the host where the bench's device holds it. */
static wf_tensor *moved(bench *b, wf_tensor *x) {
  if (b->ctx == b->host) return x;
  x = wf_from_host(b->ctx, "test", x->dtype, x->ndim, x->shape, wf_data(x));
  WF_RANK_ASSERT(!wf_is_poison(x), "%s", wf_error_message());
  return x;
}

wf_tensor *on_host(bench *b, wf_tensor *x) {
  if (b->ctx == b->host) return x;
  wf_tensor *y = wf_empty(b->host, "test", x->dtype, x->ndim, x->shape);
  WF_RANK_ASSERT(!wf_is_poison(y), "%s", wf_error_message());
  WF_RANK_OK(wf_to_host(x, wf_data(y)));
  return y;
}

void put(wf_tensor *x, int64_t i, double v) {
  void *p = wf_data(x);
  switch (x->dtype) {
  case WF_F32: ((float *)p)[i] = (float)v; break;
  case WF_F64: ((double *)p)[i] = v; break;
  case WF_I32: ((int32_t *)p)[i] = (int32_t)v; break;
  case WF_I64: ((int64_t *)p)[i] = (int64_t)v; break;
  case WF_U8: ((uint8_t *)p)[i] = (uint8_t)v; break;
  case WF_U32: ((uint32_t *)p)[i] = (uint32_t)v; break;
  case WF_BF16: ((uint16_t *)p)[i] = wf_f32_to_bf16((float)v); break;
  default: ((uint16_t *)p)[i] = (uint16_t)v; break;
  }
}

double get(const wf_tensor *x, int64_t i) {
  const void *p = wf_data(x);
  switch (x->dtype) {
  case WF_F32: return (double)((const float *)p)[i];
  case WF_F64: return ((const double *)p)[i];
  case WF_I32: return ((const int32_t *)p)[i];
  case WF_I64: return (double)((const int64_t *)p)[i];
  case WF_U8: return ((const uint8_t *)p)[i];
  case WF_U32: return ((const uint32_t *)p)[i];
  case WF_BF16: return (double)wf_bf16_to_f32(((const uint16_t *)p)[i]);
  default: return ((const uint16_t *)p)[i];
  }
}

double value(int r, int64_t i) {
  return (double)((i * 7 + r * 31 + 5) % 100);
}

static wf_tensor *made_on_host(bench *b, wf_dtype dtype, int64_t n, int rank) {
  wf_tensor *x = wf_empty(b->host, "test", dtype, 1, &n);
  WF_RANK_ASSERT(!wf_is_poison(x), "%s", wf_error_message());
  for (int64_t i = 0; i < n; i++) put(x, i, rank < 0 ? 99 : value(rank, i));
  return x;
}

wf_tensor *made(bench *b, wf_dtype dtype, int64_t n, int rank) {
  return moved(b, made_on_host(b, dtype, n, rank));
}

/* ---- each call, for one type and length ---- */

static void done(const trial *t, wf_pending **pending) {
  wf_comm_poke(t->c);
  WF_RANK_OK(wf_comm_wait(pending));
  WF_RANK_ASSERT(!*pending, "a pending is left");
}

int64_t uneven(const trial *t, int i) {
  return t->n == 0 || i % 3 == 1 ? 0 : t->n + i;
}

void try_ring(const trial *t) {
  const int size = wf_comm_size(t->c), rank = wf_comm_rank(t->c);
  const int next = (rank + 1) % size, before = (rank + size - 1) % size;
  wf_pending *sent = NULL, *received = NULL;
  wf_tensor *x = made(t->b, t->dtype, t->n, rank), *y = made(t->b, t->dtype, t->n, -1);
  WF_RANK_OK(wf_comm_send(t->c, x, next, &sent));
  WF_RANK_OK(wf_comm_recv(t->c, y, before, t->later ? &received : NULL));
  if (t->later) done(t, &received);
  done(t, &sent);
  y = on_host(t->b, y);
  for (int64_t i = 0; i < t->n; i++) EXPECT(y, i, value(before, i));
}

/* Blocking on both sides: even ranks send first. */
static void try_pairs(const trial *t) {
  const int rank = wf_comm_rank(t->c), peer = rank ^ 1;
  if (peer >= wf_comm_size(t->c)) return;
  wf_tensor *x = made(t->b, t->dtype, t->n, rank), *y = made(t->b, t->dtype, t->n, -1);
  if (rank % 2 == 0) WF_RANK_OK(wf_comm_send(t->c, x, peer, NULL));
  WF_RANK_OK(wf_comm_recv(t->c, y, peer, NULL));
  if (rank % 2 == 1) WF_RANK_OK(wf_comm_send(t->c, x, peer, NULL));
  y = on_host(t->b, y);
  for (int64_t i = 0; i < t->n; i++) EXPECT(y, i, value(peer, i));
}

/* Several messages before any is received, a large one among them, in the order of the calls; what is left is
 * a copy where there is nothing to wait for. */
static void try_left(const trial *t) {
  const int size = wf_comm_size(t->c), rank = wf_comm_rank(t->c);
  const int next = (rank + 1) % size, before = (rank + size - 1) % size;
  const int64_t n[] = {t->n, t->n + 1,
                       t->later && t->dtype == WF_F32 && t->c->most > 1200000 ? 1200000 : t->n, t->n};
  enum { N = sizeof n / sizeof *n };
  wf_pending *sent[N];
  for (int k = 0; k < N; k++) {
    wf_tensor *x = made(t->b, t->dtype, n[k], rank + k);
    if (k == 1)
      WF_RANK_OK(wf_comm_send(t->c, x, next, &sent[k]));
    else
      WF_RANK_OK(wf_comm_leave(t->c, x, next, &sent[k]));
    if (!sent[k] && wf_device_kind(x->storage->dev) == WF_CPU)
      memset(wf_data(x), 0x7f, (size_t)n[k] * wf_dtype_size(x->dtype));
  }
  for (int k = 0; k < N; k++) {
    wf_tensor *y = made(t->b, t->dtype, n[k], -1);
    WF_RANK_OK(wf_comm_recv(t->c, y, before, NULL));
    y = on_host(t->b, y);
    for (int64_t i = 0; i<n[k]; i += n[k]> 100000 ? 997 : 1) EXPECT(y, i, value(before + k, i));
  }
  for (int k = 0; k < N; k++) done(t, &sent[k]);
}

void try_broadcast(const trial *t) {
  for (int root = 0; root < wf_comm_size(t->c); root++) {
    wf_pending *p = NULL;
    wf_tensor *x = made(t->b, t->dtype, t->n, wf_comm_rank(t->c));
    WF_RANK_OK(wf_comm_broadcast(t->c, x, root, t->later ? &p : NULL));
    done(t, &p);
    x = on_host(t->b, x);
    for (int64_t i = 0; i < t->n; i++) EXPECT(x, i, value(root, i));
  }
}

double reduced(int size, int64_t i, wf_reduce how) {
  double v = value(0, i);
  for (int r = 1; r < size; r++)
    v = how == WF_REDUCE_SUM   ? v + value(r, i)
        : how == WF_REDUCE_MAX ? fmax(v, value(r, i))
                               : fmin(v, value(r, i));
  return v;
}

static bool reducible(wf_dtype d) {
  return d == WF_F32 || d == WF_F64 || d == WF_I32 || d == WF_I64;
}

void try_all_reduce(const trial *t) {
  static const wf_reduce all[] = {WF_REDUCE_SUM, WF_REDUCE_MAX, WF_REDUCE_MIN};
  for (int h = 0; h < 3; h++) {
    wf_pending *p = NULL;
    wf_tensor *x = made(t->b, t->dtype, t->n, wf_comm_rank(t->c));
    const wf_status s = wf_comm_all_reduce(t->c, x, all[h], t->later ? &p : NULL);
    if (!reducible(t->dtype)) {
      WF_RANK_ASSERT(s == WF_EINVAL, "%s was reduced", wf_dtype_name(t->dtype));
      continue;
    }
    WF_RANK_OK(s);
    done(t, &p);
    x = on_host(t->b, x);
    for (int64_t i = 0; i < t->n; i++) EXPECT(x, i, reduced(wf_comm_size(t->c), i, all[h]));
  }
}

void try_reduce_scatter(const trial *t) {
  const int size = wf_comm_size(t->c), rank = wf_comm_rank(t->c);
  int64_t counts[MAX_RANKS];
  for (int i = 0; i < size; i++) counts[i] = uneven(t, i);
  wf_pending *p = NULL;
  wf_tensor *x = made(t->b, t->dtype, wf_sum_counts(counts, size), rank),
            *y = made(t->b, t->dtype, counts[rank], -1);
  const wf_status s = wf_comm_reduce_scatter(t->c, x, counts, y, t->later ? &p : NULL);
  if (!reducible(t->dtype)) {
    WF_RANK_ASSERT(s == WF_EINVAL, "%s was reduced", wf_dtype_name(t->dtype));
    return;
  }
  WF_RANK_OK(s);
  done(t, &p);
  const int64_t first = wf_sum_counts(counts, rank);
  y = on_host(t->b, y);
  for (int64_t i = 0; i < counts[rank]; i++) EXPECT(y, i, reduced(size, first + i, WF_REDUCE_SUM));
}

void try_all_gather(const trial *t, bool in_place) {
  const int size = wf_comm_size(t->c), rank = wf_comm_rank(t->c);
  int64_t counts[MAX_RANKS];
  for (int i = 0; i < size; i++) counts[i] = uneven(t, i);
  const int64_t first = wf_sum_counts(counts, rank), one = 1;
  wf_pending *p = NULL;
  wf_tensor *x = made(t->b, t->dtype, counts[rank], rank);
  wf_tensor *y = made_on_host(t->b, t->dtype, wf_sum_counts(counts, size), -1);
  for (int64_t i = 0; in_place && i < counts[rank]; i++) put(y, first + i, value(rank, i));
  y = moved(t->b, y);
  if (in_place) x = wf_view_raw(y, 1, &counts[rank], &one, first);
  WF_RANK_OK(wf_comm_all_gather(t->c, x, counts, y, t->later ? &p : NULL));
  done(t, &p);
  y = on_host(t->b, y);
  for (int r = 0; r < size; r++)
    for (int64_t i = 0; i < counts[r]; i++) EXPECT(y, wf_sum_counts(counts, r) + i, value(r, i));
}

int64_t crossing(const trial *t, int a, int b) {
  return t->n == 0 || (a + b) % 3 == 2 ? 0 : t->n + 2 * a + b;
}

void try_all_to_all(const trial *t) {
  const int size = wf_comm_size(t->c), rank = wf_comm_rank(t->c);
  int64_t send[MAX_RANKS], recv[MAX_RANKS];
  for (int i = 0; i < size; i++) send[i] = crossing(t, rank, i), recv[i] = crossing(t, i, rank);
  wf_pending *p = NULL;
  wf_tensor *x = made(t->b, t->dtype, wf_sum_counts(send, size), rank);
  wf_tensor *y = made(t->b, t->dtype, wf_sum_counts(recv, size), -1);
  WF_RANK_OK(wf_comm_all_to_all(t->c, x, send, y, recv, t->later ? &p : NULL));
  done(t, &p);
  y = on_host(t->b, y);
  for (int r = 0; r < size; r++) {
    int64_t theirs = 0; /* where the run for us starts in rank r's tensor */
    for (int i = 0; i < rank; i++) theirs += crossing(t, r, i);
    for (int64_t i = 0; i < recv[r]; i++) EXPECT(y, wf_sum_counts(recv, r) + i, value(r, theirs + i));
  }
}

void try_all(wf_comm *c, wf_device_type kind, wf_dtype dtype, int64_t n, bool later) {
  bench b = bench_open(kind);
  const trial t = {c, &b, dtype, n, later};
  try_ring(&t);
  try_pairs(&t);
  try_left(&t);
  try_broadcast(&t);
  try_all_reduce(&t);
  try_reduce_scatter(&t);
  try_all_gather(&t, false);
  try_all_gather(&t, true);
  try_all_to_all(&t);
  WF_RANK_OK(wf_comm_barrier(c));
  bench_close(&b);
}
