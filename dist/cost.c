/* The formulas of cost.h, and the messages that measure their constants. */
#include "dist/cost.h"
#include "core/clock.h"
#include "core/ops.h"

#include <math.h>

wf_cost wf_cost_default(void) {
  return (wf_cost){.latency = 5e-6, .bandwidth = 4e9, .combine = 4e9, .flops = 2.5e11, .threads = 1};
}

static double steps(int64_t P) {
  int64_t k = 0;
  while ((int64_t)1 << k < P) k++;
  return (double)k;
}

void wf_cost_serial(wf_cost *c, int64_t shards, double efficiency) {
  if (c->serial > 0 && c->serial <= efficiency) return;
  c->serial = efficiency;
  c->shards = shards;
}

double wf_cost_messages(const wf_cost *c, int64_t messages, double n) {
  return (double)messages * c->latency + n / c->bandwidth;
}
double wf_cost_all_reduce(const wf_cost *c, int64_t P, double n) {
  return 2 * wf_cost_gather(c, P, n / (double)P);
}
double wf_cost_broadcast(const wf_cost *c, int64_t P, double n) {
  return steps(P) * wf_cost_messages(c, 1, n);
}
double wf_cost_relay(const wf_cost *c, int64_t P, double n, int64_t K) {
  return wf_cost_pipe(c, P, n, K, 0);
}
double wf_cost_gather(const wf_cost *c, int64_t P, double n) {
  return P > 1 ? steps(P) * c->latency + (double)(P - 1) * n / c->bandwidth : 0;
}
double wf_cost_log(const wf_cost *c, int64_t P, double n) {
  return steps(P) * (c->latency + n / c->bandwidth + n / c->combine);
}
/* The last segment waits for P - 1 runs of a block; its own run is not the exchange's. */
double wf_cost_pipe(const wf_cost *c, int64_t P, double n, int64_t K, double run) {
  double k = (double)K, hops = (double)(P - 1);
  return P > 1 ? (hops + k - 1) * (c->latency + n / (k * c->bandwidth)) + hops * run / k : 0;
}

int64_t wf_cost_blocks(const wf_cost *c, int64_t P, double n, int64_t most, double run) {
  int64_t best = 1;
  for (int64_t K = 2; K <= most; K++)
    if (wf_cost_pipe(c, P, n, K, run) < wf_cost_pipe(c, P, n, best, run)) best = K;
  return best;
}

/* ---- measuring ---- */

enum { SMALL = 1, LARGE = 1 << 18, TRIES = 9, TOKENS = 1024, WIDTH = 64 };

/* The fastest of several pings of x, halved. */
static wf_status ping(wf_comm *comm, wf_tensor *x, double *seconds) {
  int rank = wf_comm_rank(comm);
  *seconds = INFINITY;
  for (int i = 0; i < TRIES && rank < 2; i++) {
    double t0 = wf_now();
    if (rank == 0) WF_TRY(wf_comm_send(comm, x, 1, NULL));
    WF_TRY(wf_comm_recv(comm, x, 1 - rank, NULL));
    if (rank == 1) WF_TRY(wf_comm_send(comm, x, 0, NULL));
    double t = (wf_now() - t0) / 2;
    if (t < *seconds) *seconds = t;
  }
  return WF_OK;
}

static double rounded(double x) {
  return exp2(round(log2(x)));
}

static wf_status links(wf_ctx *ctx, wf_comm *comm, wf_cost *c) {
  wf_tensor *small = wf_zeros(ctx, "dist", WF_F64, WF_SHAPE(SMALL)),
            *large = wf_zeros(ctx, "dist", WF_F64, WF_SHAPE(LARGE));
  if (wf_is_poison(small) || wf_is_poison(large)) return wf_ctx_failure(ctx);
  double t[2];
  WF_TRY(ping(comm, small, &t[0]));
  WF_TRY(ping(comm, large, &t[1]));
  double got[] = {rounded(t[0]), rounded(8.0 * (LARGE - SMALL) / fmax(t[1] - t[0], 1e-9)), c->flops,
                  c->threads};
  wf_tensor *all = wf_from_host(ctx, "dist", WF_F64, WF_SHAPE(4), got);
  if (wf_is_poison(all)) return wf_ctx_failure(ctx);
  WF_TRY(wf_comm_broadcast(comm, all, 0, NULL));
  WF_TRY(wf_to_host(all, got));
  c->latency = got[0], c->bandwidth = got[1], c->flops = got[2], c->threads = (int)got[3];
  return WF_OK;
}

/* A scan with a head for each thread. */
static wf_status scans(wf_ctx *ctx, wf_cost *c) {
  const wf_row row = {.len = TOKENS};
  wf_rows *rows;
  WF_TRY(wf_rows_create(ctx, 1, &row, 1, &rows));
  wf_tensor *x = wf_zeros(ctx, "dist", WF_F32, WF_SHAPE(TOKENS, c->threads, WIDTH));
  const wf_scan_in in = {.q = x, .k = x, .v = x};
  wf_status st = WF_OK;
  double least = INFINITY;
  for (int i = 0; i < TRIES && st == WF_OK; i++) {
    wf_scope s = wf_scope_open(ctx);
    double t0 = wf_now();
    if (wf_is_poison(wf_scan(ctx, &in, NULL, rows, &(wf_scan_options){.scale = 1}, NULL)))
      st = wf_ctx_failure(ctx);
    least = fmin(least, wf_now() - t0);
    wf_scope_close(ctx, s);
  }
  wf_rows_free(rows);
  c->flops = rounded(wf_op_scan_scalar.carry->work * TOKENS * WIDTH * WIDTH * c->threads / fmax(least, 1e-9));
  return st;
}

static wf_status measured(wf_comm *comm, wf_cost *c) {
  wf_device *dev;
  wf_ctx *ctx;
  WF_TRY(wf_device_open(WF_CPU, 0, &dev));
  wf_status st = wf_ctx_create(dev, &ctx);
  if (st == WF_OK) {
    st = scans(ctx, c);
    if (st == WF_OK && comm) st = links(ctx, comm, c);
    wf_ctx_free(ctx);
  }
  wf_device_close(dev);
  return st;
}

wf_status wf_cost_measure(wf_cost *c) {
  return measured(NULL, c);
}

wf_status wf_cost_calibrate(wf_comm *comm, wf_cost *c) {
  int threads = c->threads;
  *c = wf_cost_default();
  if (threads > 1) c->threads = threads;
  return wf_comm_size(comm) < 2 ? WF_OK : measured(comm, c);
}
