/* One member, one size, one length. */
#include "experiments/bench_scan.h"

#include <math.h>

#include "autograd/tape.h"
#include "core/memory.h"
#include "core/ops.h"

const wf_bench_member wf_bench_members[] = {
    {.name = "attention", .used = "attention", .kind = WF_BENCH_ATTENTION},
    {.name = "plain", .used = "linear_attention"},
    {.name = "constant", .used = "retnet, lightning", .decay = WF_DECAY_CONSTANT},
    {.name = "scalar", .used = "simple_gla", .decay = WF_DECAY_HEAD},
    {.name = "weighted", .used = "mamba2", .decay = WF_DECAY_HEAD, .weights = true},
    {.name = "mlstm", .used = "mlstm", .decay = WF_DECAY_HEAD, .weights = true, .kind = WF_BENCH_MLSTM},
    {.name = "channel", .used = "gla, hgrn2, gateloop", .decay = WF_DECAY_CHANNEL},
    {.name = "delta", .used = "deltanet", .delta = true},
    {.name = "gated_delta", .used = "gated_deltanet", .decay = WF_DECAY_HEAD, .delta = true},
    {.name = "channel_delta", .used = "kda", .decay = WF_DECAY_CHANNEL, .delta = true},
    {.name = "selective", .used = "mamba", .kind = WF_BENCH_SELECTIVE},
    {0}};

enum { Q, K, V, G, W, INPUTS };

typedef struct timed {
  const wf_bench_scan *s;
  wf_ctx *c;
  wf_rows *rows;
  wf_tape *tape;
  wf_tensor *x[INPUTS], *span, *cotangent; /* W: weights or beta; NULL where the member has none */
  wf_leaf leaf[INPUTS];
  int64_t chunk;
  bool constant; /* G has no gradient */
} timed;

/* Inputs of the gates g and w before their activations. */
static wf_tensor *mlstm(const timed *t, const wf_scan_options *o) {
  wf_ctx *c = t->c;
  wf_tensor *const *x = t->x, *drop, *floor,
                   *m = wf_scan_max(c, x[W], x[G], NULL, NULL, t->rows, &drop, NULL);
  wf_scan_in in = {.q = x[Q], .k = x[K], .v = x[V]};
  wf_scan_options with_ones = *o;
  with_ones.ones = true;
  wf_exp_gates(c, x[G], x[W], m, drop, &in.g, &in.w, &floor);
  return wf_normalise(c, wf_scan(c, &in, NULL, t->rows, &with_ones, NULL), floor, 1e-6);
}

/* Mamba's scan: x = V and dt = Q over all channels, A = K [d, N], B = G, C = W. */
static wf_tensor *selective(const timed *t) {
  wf_tensor *const *x = t->x;
  const wf_selective_in in = {.x = x[V], .dt = x[Q], .A = x[K], .B = x[G], .C = x[W]};
  return wf_selective_scan(t->c, &in, NULL, t->rows, NULL);
}

static wf_tensor *forward(const timed *t) {
  const wf_bench_scan *s = t->s;
  wf_tensor *const *x = t->x;
  const double scale = 1 / sqrt((double)s->size);
  const wf_scan_options options = {.scale = scale, .chunk = t->chunk};
  if (s->member->kind == WF_BENCH_MLSTM) return mlstm(t, &options);
  if (s->member->kind == WF_BENCH_SELECTIVE) return selective(t);
  if (s->member->kind == WF_BENCH_ATTENTION)
    return wf_attend(t->c, x[Q], x[K], x[V], t->span, NULL, NULL, NULL,
                     &(wf_attend_options){.scale = scale, .kind = WF_ATTEND_SOFTMAX});
  const bool delta = s->member->delta;
  const wf_scan_in in = {
      .q = x[Q], .k = x[K], .v = x[V], .g = x[G], .w = delta ? NULL : x[W], .beta = delta ? x[W] : NULL};
  return wf_scan(t->c, &in, NULL, t->rows, &options, NULL);
}

static wf_status once(void *arg) {
  timed *t = arg;
  wf_scope s = wf_scope_open(t->c);
  wf_status st = wf_is_poison(forward(t)) ? wf_ctx_check(t->c) : WF_OK;
  wf_scope_close(t->c, s);
  return st;
}

static wf_status both(void *arg) {
  timed *t = arg;
  wf_scope s = wf_scope_open(t->c);
  wf_status st = WF_OK;
  for (int i = 0; i < INPUTS && st == WF_OK; i++) {
    if (!t->x[i] || (i == G && t->constant)) continue;
    wf_leaf_reset(&t->leaf[i]);
    st = wf_tape_watch(t->tape, t->x[i], &t->leaf[i]);
  }
  if (st == WF_OK) {
    wf_tape_record(t->tape);
    wf_tensor *y = forward(t);
    wf_tape_pause(t->tape);
    st = wf_is_poison(y) ? wf_ctx_check(t->c) : wf_backward(t->tape, 1, &y, &t->cotangent);
  }
  wf_scope_close(t->c, s);
  return st;
}

/* The same in chunks of s->against. */
static wf_status against(timed *t, wf_bench_fn fn) {
  t->chunk = t->s->against;
  const wf_status st = fn(t);
  t->chunk = t->s->chunk;
  return st;
}
static wf_status once_against(void *t) {
  return against(t, once);
}
static wf_status both_against(void *t) {
  return against(t, both);
}

static wf_status with_gradients(timed *t) {
  for (int i = 0; i < INPUTS; i++)
    if (t->x[i] && !(i == G && t->constant)) t->leaf[i].grad = wf_empty_like(t->c, "gradient", t->x[i]);
  return wf_ctx_check(t->c);
}

static wf_status draw_selective(timed *t, wf_sample *smp) {
  enum { N = 16 };
  const int64_t n = t->s->batch * t->s->T, d = t->s->heads * t->s->size;
  t->x[V] = wf_sample_real(smp, WF_SHAPE(n, d));
  t->x[Q] = wf_sample_range(smp, WF_SHAPE(n, d), 0.001, 0.1);
  t->x[K] = wf_sample_range(smp, WF_SHAPE(d, N), -16, -1);
  t->x[G] = wf_sample_real(smp, WF_SHAPE(n, N));
  t->x[W] = wf_sample_real(smp, WF_SHAPE(n, N));
  t->cotangent = wf_sample_real(smp, WF_SHAPE(n, d));
  return with_gradients(t);
}

/* Keys of length 1, so that the delta rule does not grow. */
static wf_status draw(timed *t) {
  const wf_bench_scan *s = t->s;
  wf_ctx *c = t->c;
  const int64_t n = s->batch * s->T, H = s->heads, D = s->size;
  wf_sample smp = {.ctx = c, .real = WF_F32};
  if (s->member->kind == WF_BENCH_SELECTIVE) return draw_selective(t, &smp);
  t->x[Q] = wf_sample_real(&smp, WF_SHAPE(n, H, D));
  t->x[K] = wf_affine(c, wf_norm(c, WF_NORM_RMS, wf_sample_real(&smp, WF_SHAPE(n, H, D)), NULL, NULL, 1e-6),
                      1 / sqrt((double)D), 0);
  t->x[V] = wf_sample_real(&smp, WF_SHAPE(n, H, D));
  t->cotangent = wf_sample_real(&smp, WF_SHAPE(n, H, D));
  t->constant = s->member->decay == WF_DECAY_CONSTANT;
  if (s->member->decay == WF_DECAY_HEAD) t->x[G] = wf_sample_range(&smp, WF_SHAPE(n, H), s->decay, 0);
  if (s->member->decay == WF_DECAY_CHANNEL) t->x[G] = wf_sample_range(&smp, WF_SHAPE(n, H, D), s->decay, 0);
  if (t->constant)
    t->x[G] = wf_view_raw(wf_sample_range(&smp, WF_SHAPE(H), s->decay, 0), 2, (int64_t[]){n, H},
                          (int64_t[]){0, 1}, 0);
  if (s->member->weights || s->member->delta) t->x[W] = wf_sample_range(&smp, WF_SHAPE(n, H), 0, 1);
  return with_gradients(t);
}

static wf_status spans(timed *t) {
  const wf_bench_scan *s = t->s;
  wf_attend_span *span;
  WF_CALLOC(span, "rows", s->batch);
  for (int64_t i = 0; i < s->batch; i++) span[i] = (wf_attend_span){i * s->T, s->T, i * s->T, 0, s->T};
  t->span = wf_attend_spans(t->c, s->batch, span);
  wf_free(span);
  return wf_ctx_check(t->c);
}

static double operations(const wf_bench_scan *s) {
  const double D = (double)s->size, T = (double)s->T, heads = (double)(s->heads * s->batch) * T;
  if (s->member->kind == WF_BENCH_ATTENTION)
    return heads * 14 * D * (T + 1) / 2; /* 2 + 5 products for each key */
  if (s->member->kind == WF_BENCH_SELECTIVE) return heads * 14 * D * 16;
  return heads * (s->member->delta ? 20 : 14) * D * D;
}

static wf_status measure(timed *t, const wf_bench_options *o, wf_bench_scan_row *row) {
  wf_bench_row r = {0};
  WF_TRY(wf_rows_fresh(t->c, t->s->batch, t->s->T, 0, &t->rows));
  WF_TRY(wf_tape_create(t->c, &t->tape));
  WF_TRY(draw(t));
  WF_TRY(spans(t));
  WF_TRY(once(t));
  WF_TRY(wf_bench_measure(o, once, t->s->against ? once_against : NULL, t, &r));
  row->forward_s = r.median_s, row->forward_against_s = r.products_s;
  WF_TRY(both(t));
  WF_TRY(wf_bench_measure(o, both, t->s->against ? both_against : NULL, t, &r));
  row->both_s = r.median_s, row->both_against_s = r.products_s;
  wf_bench_memory_peak(&r);
  row->tensor_mb = r.tensor_mb;
  row->flops = operations(t->s);
  return WF_OK;
}

wf_status wf_bench_scan_run(wf_ctx *c, const wf_bench_scan *s, const wf_bench_options *o,
                            wf_bench_scan_row *row) {
  timed t = {.s = s, .c = c, .chunk = s->chunk};
  wf_scope scope = wf_scope_open(c);
  wf_status st = measure(&t, o, row);
  wf_scope_close(c, scope);
  wf_tape_free(t.tape);
  wf_rows_free(t.rows);
  return st;
}
