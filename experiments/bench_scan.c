/* One member, one size, one length. */
#include "experiments/bench_scan.h"

#include <math.h>

#include "autograd/tape.h"
#include "core/memory.h"
#include "core/ops.h"

const wf_bench_member wf_bench_members[] = {
    {.name = "attention", .used = "attention", .attention = true},
    {.name = "plain", .used = "linear_attention"},
    {.name = "constant", .used = "retnet, lightning", .decay = WF_DECAY_CONSTANT},
    {.name = "scalar", .used = "simple_gla, mamba2", .decay = WF_DECAY_HEAD},
    {.name = "weighted", .used = "mlstm", .decay = WF_DECAY_HEAD, .weights = true},
    {0}};

enum { Q, K, V, G, W, INPUTS };

typedef struct timed {
  const wf_bench_scan *s;
  wf_ctx *c;
  wf_rows *rows;
  wf_tape *tape;
  wf_tensor *x[INPUTS], *span, *cotangent; /* W: weights or beta; NULL where the member has none */
  wf_leaf leaf[INPUTS];
  bool constant; /* G has no gradient */
} timed;

static wf_tensor *forward(const timed *t) {
  const wf_bench_scan *s = t->s;
  wf_tensor *const *x = t->x;
  const double scale = 1 / sqrt((double)s->size);
  if (s->member->attention)
    return wf_attend(t->c, x[Q], x[K], x[V], t->span, NULL, NULL, NULL,
                     &(wf_attend_options){.scale = scale, .kind = WF_ATTEND_SOFTMAX});
  const bool delta = s->member->delta;
  const wf_scan_in in = {
      .q = x[Q], .k = x[K], .v = x[V], .g = x[G], .w = delta ? NULL : x[W], .beta = delta ? x[W] : NULL};
  return wf_scan(t->c, &in, NULL, t->rows, &(wf_scan_options){.scale = scale, .chunk = s->chunk}, NULL);
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

/* Keys of length 1, so that the delta rule does not grow; decays of about a hundred tokens. */
static wf_status draw(timed *t) {
  const wf_bench_scan *s = t->s;
  wf_ctx *c = t->c;
  const int64_t n = s->batch * s->T, H = s->heads, D = s->size;
  wf_sample smp = {.ctx = c, .real = WF_F32};
  t->x[Q] = wf_sample_real(&smp, WF_SHAPE(n, H, D));
  t->x[K] = wf_affine(c, wf_norm(c, WF_NORM_RMS, wf_sample_real(&smp, WF_SHAPE(n, H, D)), NULL, NULL, 1e-6),
                      1 / sqrt((double)D), 0);
  t->x[V] = wf_sample_real(&smp, WF_SHAPE(n, H, D));
  t->cotangent = wf_sample_real(&smp, WF_SHAPE(n, H, D));
  t->constant = s->member->decay == WF_DECAY_CONSTANT;
  if (s->member->decay == WF_DECAY_HEAD) t->x[G] = wf_sample_range(&smp, WF_SHAPE(n, H), -0.02, 0);
  if (s->member->decay == WF_DECAY_CHANNEL) t->x[G] = wf_sample_range(&smp, WF_SHAPE(n, H, D), -0.02, 0);
  if (t->constant)
    t->x[G] =
        wf_view_raw(wf_sample_range(&smp, WF_SHAPE(H), -0.02, 0), 2, (int64_t[]){n, H}, (int64_t[]){0, 1}, 0);
  if (s->member->weights || s->member->delta) t->x[W] = wf_sample_range(&smp, WF_SHAPE(n, H), 0, 1);
  for (int i = 0; i < INPUTS; i++)
    if (t->x[i] && !(i == G && t->constant)) t->leaf[i].grad = wf_empty_like(c, "gradient", t->x[i]);
  return wf_ctx_check(c);
}

static wf_status spans(timed *t) {
  const wf_bench_scan *s = t->s;
  int64_t(*span)[4];
  WF_CALLOC(span, "rows", s->batch);
  for (int64_t i = 0; i < s->batch; i++) span[i][0] = span[i][2] = i * s->T, span[i][1] = s->T;
  t->span = wf_from_host(t->c, "rows", WF_I64, WF_SHAPE(s->batch, 4), span);
  wf_free(span);
  return wf_ctx_check(t->c);
}

static double operations(const wf_bench_scan *s) {
  const double D = (double)s->size, T = (double)s->T, heads = (double)(s->heads * s->batch) * T;
  if (s->member->attention) return heads * 14 * D * (T + 1) / 2; /* 2 + 5 products of D for each key seen */
  return heads * (s->member->delta ? 20 : 14) * D * D;
}

static wf_status measure(timed *t, const wf_bench_options *o, wf_bench_scan_row *row) {
  wf_bench_row r = {0};
  WF_TRY(wf_rows_fresh(t->c, t->s->batch, t->s->T, 0, &t->rows));
  WF_TRY(wf_tape_create(t->c, &t->tape));
  WF_TRY(draw(t));
  WF_TRY(spans(t));
  WF_TRY(once(t));
  WF_TRY(wf_bench_measure(o, once, NULL, t, &r));
  row->forward_s = r.median_s;
  WF_TRY(both(t));
  WF_TRY(wf_bench_measure(o, both, NULL, t, &r));
  row->both_s = r.median_s;
  wf_bench_memory_peak(&r);
  row->tensor_mb = r.tensor_mb;
  row->flops = operations(t->s);
  return WF_OK;
}

wf_status wf_bench_scan_run(wf_ctx *c, const wf_bench_scan *s, const wf_bench_options *o,
                            wf_bench_scan_row *row) {
  timed t = {.s = s, .c = c};
  wf_scope scope = wf_scope_open(c);
  wf_status st = measure(&t, o, row);
  wf_scope_close(c, scope);
  wf_tape_free(t.tape);
  wf_rows_free(t.rows);
  return st;
}
