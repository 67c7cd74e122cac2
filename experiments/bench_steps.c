/* The training rows of `weft bench`. */
#include <stdio.h>

#include "core/memory.h"
#include "core/product.h"
#include "core/rng.h"
#include "experiments/assemble.h"
#include "experiments/bench.h"
#include "layers/stream.h"

typedef struct training {
  wf_config cfg;
  wf_model *model;
  wf_groups groups;
  wf_optimizer *optimizer;
  wf_row *rows;
  int32_t *ids, *labels;
  wf_tokens tokens;
  wf_products *products;
} training;

static wf_status draw_tokens(training *t, const wf_bench_model *m) {
  int64_t n = m->batch * m->length;
  wf_rng_key key = wf_rng_key_make(1, "bench", "ids");
  WF_CALLOC(t->rows, "batch", m->batch);
  WF_CALLOC(t->ids, "batch", n);
  WF_CALLOC(t->labels, "batch", n);
  for (int64_t i = 0; i < m->batch; i++)
    t->rows[i] = (wf_row){.begin = i * m->length, .len = m->length, .lane = i, .seq = i};
  for (int64_t i = 0; i < n; i++) t->ids[i] = (int32_t)(wf_rng_uniform(key, (uint64_t)i) * (double)m->vocab);
  for (int64_t i = 0; i < n; i++) t->labels[i] = t->ids[(i + 1) % n];
  t->tokens = (wf_tokens){m->batch, m->batch, n, t->rows, t->ids, t->labels};
  return WF_OK;
}

static wf_status step(void *arg) {
  training *t = arg;
  wf_params *ps = wf_model_params(t->model);
  wf_step s = {.train = true, .seed = 1};
  double loss;
  wf_params_reset(ps);
  wf_params_hold(ps);
  WF_TRY(wf_step_gradient(t->model, &s, &t->tokens, 1, true, &loss));
  return wf_optimizer_step(t->optimizer, 1, 1 / (double)t->tokens.n_tokens);
}

static wf_status products(void *arg) {
  wf_products_run(((training *)arg)->products);
  return WF_OK;
}

static wf_status measure(training *t, wf_ctx *c, const wf_bench_model *m, const wf_bench_options *o,
                         wf_bench_row *row) {
  WF_TRY(wf_assemble_model(c, &t->cfg, m->vocab, &t->model));
  WF_TRY(wf_params_init(wf_model_params(t->model), 1));
  WF_TRY(wf_groups_of(t->model, &t->groups));
  WF_TRY(wf_assemble_optimizer(c, &t->cfg, &t->groups, &t->optimizer));
  WF_TRY(draw_tokens(t, m));
  for (int i = 0; i < 3; i++) WF_TRY(step(t));
  wf_bench_memory_peak(row);
  WF_TRY(wf_products_record(c, &t->products));
  WF_TRY(step(t));
  WF_TRY(wf_products_stop(t->products));
  for (int i = 0; i < 2; i++) wf_products_run(t->products);
  row->n_products = (double)wf_products_count(t->products);
  row->products_flops = wf_products_flops(t->products);
  row->tokens = (double)t->tokens.n_tokens;
  WF_TRY(wf_bench_measure(o, step, products, t, row));
  double read, copy;
  WF_TRY(wf_bench_memory_rates(c, &read, &copy));
  row->floor = "its products alone and 28 bytes a parameter at the copy rate";
  row->floor_s = row->products_s + 28 * (double)wf_model_params(t->model)->numel / copy;
  return WF_OK;
}

wf_status wf_bench_steps(wf_ctx *c, const wf_bench_model *m, const wf_bench_options *o, wf_bench_row *row) {
  training t = {0};
  WF_TRY(wf_bench_config(m, m->length, &t.cfg));
  wf_status s = measure(&t, c, m, o, row);
  wf_products_free(t.products);
  wf_optimizer_free(t.optimizer);
  wf_groups_free(&t.groups);
  wf_model_free(t.model);
  wf_free(t.rows);
  wf_free(t.ids);
  wf_free(t.labels);
  wf_config_free(&t.cfg);
  return s;
}
