/* A step without data, checkpoints and words. */
#include "experiments/rehearsal.h"
#include "core/memory.h"

/* Whole sequences of seq_len tokens, a document each: the rank's near-equal part of the batch. */
static wf_status make_batch(wf_rehearsal *r, int64_t vocab) {
  int64_t all = wf_config_sequences(r->cfg), len = r->cfg->data.seq_len;
  int rank = wf_comm_rank(r->mesh->data), ranks = wf_comm_size(r->mesh->data);
  int64_t first = all * rank / ranks, n = all * (rank + 1) / ranks - first;
  wf_row *row;
  int32_t *ids;
  WF_CALLOC(row, "rows", n + 1);
  r->batch = (wf_tokens){.n_rows = n, .n_lanes = n, .n_tokens = n * len, .row = row};
  WF_CALLOC(ids, "rows", n * len + 1);
  r->batch.ids = r->batch.labels = ids;
  for (int64_t i = 0; i < n; i++)
    row[i] = (wf_row){.begin = i * len, .len = len, .lane = i, .seq = first + i};
  for (int64_t i = 0; i < n * len; i++) ids[i] = (int32_t)(i * 7919 % vocab);
  return WF_OK;
}

static wf_status open_carried(wf_rehearsal *r) {
  for (int64_t i = 0; i < r->batch.n_rows; i++)
    ((wf_row *)r->batch.row)[i].flags = WF_ROW_TAKES | WF_ROW_LEAVES;
  WF_TRY(wf_parallel_lanes(r->mesh, wf_config_sequences(r->cfg), &r->lanes));
  return wf_state_create(r->c, wf_model_state_spec(r->model), wf_model_dtype(r->model), r->lanes.here, 0,
                         true, &r->carried);
}

wf_status wf_rehearsal_open(const wf_config *cfg, int64_t vocab, wf_device *dev, wf_mesh *mesh,
                            wf_rehearsal *r) {
  *r = (wf_rehearsal){.cfg = cfg, .mesh = mesh};
  WF_TRY(wf_ctx_create(dev, &r->c));
  WF_TRY(wf_assemble_model(r->c, cfg, vocab, &r->model));
  WF_TRY(wf_parallel_layout(cfg, r->model, mesh));
  WF_TRY(wf_shards_open(mesh->world, r->model, cfg->parallel.zero, cfg->parallel.bucket, &r->shards));
  WF_TRY(wf_assemble_optimizer(r->c, cfg, &r->shards.own, &r->optimizer));
  if (cfg->train.ema > 0) {
    wf_ema_options eo = {cfg->train.ema, cfg->train.ema_warmup};
    WF_TRY(wf_ema_create(r->c, &eo, r->shards.own.n, r->shards.own.group, &r->ema));
  }
  WF_TRY(make_batch(r, wf_model_vocab(r->model)));
  return cfg->train.carry_state ? open_carried(r) : WF_OK;
}

static wf_status gradients(wf_rehearsal *r) {
  wf_params *ps = wf_model_params(r->model);
  int64_t parts = r->cfg->train.accumulation;
  wf_totals total = {0};
  wf_params_reset(ps);
  wf_params_hold(ps);
  for (int64_t k = 0; k < parts; k++) {
    wf_step step = {.stream = r->cfg->train.stream,
                    .train = true,
                    .step = k,
                    .state = r->carried,
                    .dist = wf_mesh_dist(r->mesh)};
    double loss;
    WF_TRY(wf_step_gradient(r->model, &step, &r->batch, 1, k == parts - 1, &loss));
  }
  WF_TRY(wf_parallel_totals(r->mesh, &total));
  return wf_shards_sum(&r->shards);
}

wf_status wf_rehearsal_step(wf_rehearsal *r) {
  wf_grad_norm norm;
  WF_TRY(gradients(r));
  WF_TRY(wf_shards_measure(r->c, &r->shards, 1, r->cfg->train.clip, &norm));
  WF_TRY(wf_optimizer_step(r->optimizer, 1, 1e-6));
  WF_TRY(wf_shards_spread(&r->shards));
  if (r->ema) WF_TRY(wf_ema_update(r->ema));
  return wf_shards_agree(&r->shards, 0, 0, 0);
}

void wf_rehearsal_close(wf_rehearsal *r) {
  wf_tokens batch = r->batch;
  batch.labels = NULL; /* the ids */
  wf_tokens_free(&batch);
  wf_state_free(r->carried);
  wf_free(r->lanes.count);
  wf_ema_free(r->ema);
  wf_optimizer_free(r->optimizer);
  wf_shards_close(&r->shards);
  wf_model_free(r->model);
  wf_ctx_free(r->c);
  *r = (wf_rehearsal){0};
}
