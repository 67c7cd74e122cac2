/* One mixer, one length. */
#include "experiments/bench_mixers.h"

#include "autograd/tape.h"
#include "core/memory.h"
#include "core/ops.h"
#include "experiments/single.h"

typedef struct timed {
  const wf_bench_mixer *m;
  wf_single layer;
  wf_ctx *c;
  wf_rows *rows;
  wf_tape *tape;
  wf_tensor *x, *cotangent;
  wf_leaf leaf;
  wf_state *state; /* decoding: of sequences that have come to `at` */
  int64_t at;
} timed;

static wf_tensor *forward(timed *t) {
  wf_run run = {.c = t->c, .rows = t->rows};
  return t->m->type->forward(&run, t->layer.self, t->x);
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
  wf_leaf_reset(&t->leaf);
  wf_params_reset(&t->layer.params);
  wf_status st = wf_tape_watch(t->tape, t->x, &t->leaf);
  if (st == WF_OK) st = wf_params_watch(&t->layer.params, t->tape);
  if (st == WF_OK) {
    wf_tape_record(t->tape);
    wf_tensor *y = forward(t);
    wf_tape_pause(t->tape);
    st = wf_is_poison(y) ? wf_ctx_check(t->c) : wf_backward(t->tape, 1, &y, &t->cotangent);
  }
  wf_scope_close(t->c, s);
  return st;
}

/* A token of every sequence through the state; the next one comes after it. */
static wf_status one_token(void *arg) {
  timed *t = arg;
  const int64_t n = t->m->batch;
  wf_row *row = wf_calloc("rows", (size_t)n, sizeof *row);
  if (!row) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  for (int64_t i = 0; i < n; i++)
    row[i] = (wf_row){.begin = i,
                      .len = 1,
                      .pos = t->at,
                      .lane = i,
                      .place = t->at,
                      .flags = WF_ROW_LEAVES | (t->at > 0 ? WF_ROW_TAKES : 0),
                      .seq = i};
  wf_rows *rows = NULL;
  wf_scope s = wf_scope_open(t->c);
  wf_status st = wf_rows_create(t->c, n, row, n, &rows);
  if (st == WF_OK) {
    wf_run run = {.c = t->c, .rows = rows, .state = t->state};
    st = wf_is_poison(t->m->type->forward(&run, t->layer.self, t->x)) ? wf_ctx_check(t->c) : WF_OK;
  }
  if (st == WF_OK) st = wf_state_advance(t->state, rows);
  wf_scope_close(t->c, s);
  wf_rows_free(rows);
  wf_free(row);
  t->at++;
  return st;
}

/* Positions T, T + 1, ... on a state as wide as there; what lies in a cache does not matter. Each sample is
 * of AT_ONCE tokens. */
enum { AT_ONCE = 16, SAMPLES = 1001 };

static wf_status some_tokens(void *arg) {
  for (int i = 0; i < AT_ONCE; i++) WF_TRY(one_token(arg));
  return WF_OK;
}

static wf_status measure_decoding(timed *t, const wf_bench_options *o, wf_bench_mixer_row *row) {
  const wf_bench_mixer *m = t->m;
  wf_sample s = {.ctx = t->c, .real = WF_F32};
  wf_bench_row r = {0};
  t->at = m->T;
  WF_TRY(wf_params_allocate(&t->layer.params, t->c, WF_F32, NULL, NULL));
  WF_TRY(wf_params_init(&t->layer.params, 1));
  WF_TRY(
      wf_state_create(t->c, &t->layer.state, WF_F32, m->batch, m->T + AT_ONCE * SAMPLES, false, &t->state));
  t->x = wf_sample_real(&s, WF_SHAPE(m->batch, m->d_model));
  WF_TRY(wf_ctx_check(t->c));
  WF_TRY(some_tokens(t));
  WF_TRY(wf_bench_measure(o, some_tokens, NULL, t, &r));
  wf_bench_memory_peak(&r);
  *row = (wf_bench_mixer_row){.forward_s = r.median_s / AT_ONCE,
                              .params = (double)t->layer.params.numel,
                              .tensor_mb = r.tensor_mb,
                              .rss_mb = r.rss_mb,
                              .flops = wf_single_flops(&t->layer, m->T) * (double)m->batch};
  return WF_OK;
}

/* The mean of the operations over the positions 1 .. T, at most 1024 of them asked for. */
static double mean_flops(const wf_single *l, int64_t T) {
  double sum = 0;
  int64_t n = T < 1024 ? T : 1024;
  for (int64_t i = 0; i < n; i++) sum += wf_single_flops(l, 1 + (int64_t)((double)i * (double)T / (double)n));
  return sum / (double)n;
}

static wf_status measure(timed *t, const wf_bench_options *o, wf_bench_mixer_row *row) {
  const wf_bench_mixer *m = t->m;
  wf_ctx *c = t->c;
  wf_sample s = {.ctx = c, .real = WF_F32};
  WF_TRY(wf_params_allocate(&t->layer.params, c, WF_F32, NULL, NULL));
  WF_TRY(wf_params_init(&t->layer.params, 1));
  WF_TRY(wf_rows_fresh(c, m->batch, m->T, 0, &t->rows));
  WF_TRY(wf_tape_create(c, &t->tape));
  t->x = wf_sample_real(&s, WF_SHAPE(m->batch * m->T, m->d_model));
  t->cotangent = wf_sample_real(&s, WF_SHAPE(m->batch * m->T, m->d_model));
  t->leaf.grad = wf_empty_like(c, "gradient", t->x);
  WF_TRY(wf_ctx_check(c));
  wf_bench_row r = {0};
  WF_TRY(once(t));
  WF_TRY(wf_bench_measure(o, once, NULL, t, &r));
  row->forward_s = r.median_s;
  WF_TRY(both(t));
  WF_TRY(wf_bench_measure(o, both, NULL, t, &r));
  row->both_s = r.median_s;
  wf_bench_memory_peak(&r);
  row->tensor_mb = r.tensor_mb;
  row->rss_mb = r.rss_mb;
  row->params = (double)t->layer.params.numel;
  row->flops = mean_flops(&t->layer, m->T) * (double)(m->T * m->batch);
  return WF_OK;
}

wf_status wf_bench_mixer_run(wf_ctx *c, const wf_bench_mixer *m, const wf_bench_options *o,
                             wf_bench_mixer_row *row) {
  timed t = {.m = m, .c = c};
  const wf_build like = wf_single_build(m->d_model);
  WF_TRY(wf_single_open(m->type, m->options, &like, &t.layer));
  wf_scope scope = wf_scope_open(c);
  wf_status s = (m->decode ? measure_decoding : measure)(&t, o, row);
  wf_scope_close(c, scope);
  wf_state_free(t.state);
  wf_tape_free(t.tape);
  wf_rows_free(t.rows);
  wf_single_close(&t.layer);
  return s;
}
