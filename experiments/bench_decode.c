/* The decoding row of `weft bench`: GPT-2 124M, one sequence, a prompt of 64 tokens and the likeliest token
 * 128 times. Each token reads every weight once. */
#include "core/memory.h"
#include "core/rng.h"
#include "experiments/assemble.h"
#include "experiments/bench.h"
#include "experiments/generate.h"

enum { PROMPT = 64, DECODED = 128, POSITIONS = 1024 };

typedef struct decoding {
  wf_config cfg;
  wf_model *model;
  wf_decoding sequence;
  double *logits; /* [vocab] */
} decoding;

static int32_t likeliest(const decoding *d) {
  int32_t best = 0;
  for (int32_t i = 1; i < wf_model_vocab(d->model); i++)
    if (d->logits[i] > d->logits[best]) best = i;
  return best;
}

static wf_status prompt(decoding *d) {
  int32_t ids[PROMPT];
  wf_rng_key key = wf_rng_key_make(1, "bench", "ids");
  for (int i = 0; i < PROMPT; i++)
    ids[i] = (int32_t)(wf_rng_uniform(key, (uint64_t)i) * (double)wf_model_vocab(d->model));
  WF_TRY(wf_state_reset(d->sequence.state));
  return wf_decoding_feed(&d->sequence, ids, PROMPT, d->logits);
}

static wf_status token(void *arg) {
  decoding *d = arg;
  int32_t id = likeliest(d);
  return wf_decoding_feed(&d->sequence, &id, 1, d->logits);
}

static wf_status measure(decoding *d, wf_ctx *c, const wf_bench_model *m, wf_bench_row *row) {
  WF_TRY(wf_assemble_model(c, &d->cfg, m->vocab, &d->model));
  WF_TRY(wf_params_init(wf_model_params(d->model), 1));
  WF_TRY(wf_decoding_open(d->model, PROMPT + DECODED, &d->sequence));
  WF_CALLOC(d->logits, "logits", m->vocab);
  WF_TRY(prompt(d));
  for (int i = 0; i < 8; i++) WF_TRY(token(d));
  WF_TRY(prompt(d));
  wf_bench_memory_peak(row);
  row->tokens = 1;
  WF_TRY(wf_bench_measure(&(wf_bench_options){.repeats = DECODED}, token, NULL, d, row));
  double read, copy;
  WF_TRY(wf_bench_memory_rates(c, &read, &copy));
  row->floor = "the bytes of the weights at the read rate";
  row->floor_s = 4 * (double)(wf_model_params(d->model)->numel - (int64_t)POSITIONS * m->width) / read;
  return WF_OK;
}

wf_status wf_bench_decode(wf_ctx *c, wf_bench_row *row) {
  const wf_bench_model *m = wf_bench_models;
  while (m[1].name) m++; /* the largest */
  decoding d = {0};
  WF_TRY(wf_bench_config(m, POSITIONS, &d.cfg));
  wf_status s = measure(&d, c, m, row);
  wf_free(d.logits);
  wf_decoding_close(&d.sequence);
  wf_model_free(d.model);
  wf_config_free(&d.cfg);
  return s;
}
