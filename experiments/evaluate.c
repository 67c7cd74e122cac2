/* One pass over a split without gradients. */
#include "experiments/evaluate.h"
#include "core/memory.h"
#include "data/loader.h"
#include "experiments/parallel.h"
#include "layers/stream.h"

#include <math.h>

static wf_status run(wf_model *m, const wf_config *cfg, const wf_mesh *mesh, wf_loader *loader,
                     wf_state *carried, int64_t batches, wf_totals *total) {
  *total = (wf_totals){0};
  for (int64_t k = 0; batches == WF_AUTO_I64 || k < batches; k++) {
    const wf_batch *b;
    WF_TRY(wf_loader_next(loader, &b));
    if (!b) break;
    wf_tokens t = {b->n_rows, b->n_lanes, b->n_tokens, b->rows, b->inputs, b->labels};
    wf_step step = {.stream = cfg->train.stream, .state = carried, .dist = mesh ? wf_mesh_dist(mesh) : NULL};
    double part;
    WF_TRY(wf_step_loss(m, &step, &t, &part, NULL));
    total->loss += part;
    total->labels += b->n_labels;
  }
  return mesh ? wf_parallel_totals(mesh, total) : WF_OK;
}

wf_status wf_evaluate(wf_model *m, const wf_config *cfg, const wf_mesh *mesh, const wf_store *store,
                      int split, int64_t batches, wf_evaluation *out) {
  const wf_split *info;
  WF_TRY(wf_store_split(store, split, &info));
  int64_t batch = cfg->train.batch_tokens / cfg->data.seq_len / cfg->train.accumulation;
  if (batch > info->tokens) batch = info->tokens;
  if (batch < 1) batch = 1;
  wf_stream_options so = {
      .seq_len = cfg->data.seq_len, .pack = cfg->data.pack, .carry = cfg->train.carry_state, .lanes = batch};
  wf_sequences *source;
  WF_TRY(wf_sequences_store(store, split, &so, &source));
  wf_loader_options lo = {.batch = batch, .once = true, .ahead = 1};
  if (mesh) lo.rank = wf_comm_rank(mesh->data), lo.n_ranks = wf_comm_size(mesh->data);
  wf_loader *loader;
  WF_TRY(wf_loader_open(source, &lo, &loader));
  wf_totals total;
  wf_state *carried = NULL;
  wf_lanes lanes = {.here = batch};
  wf_status s = WF_OK;
  if (so.carry && mesh) s = wf_parallel_lanes(mesh, batch, &lanes);
  if (so.carry && s == WF_OK)
    s = wf_state_create(wf_model_ctx(m), wf_model_state_spec(m), wf_model_dtype(m), lanes.here, 0, false,
                        &carried);
  wf_free(lanes.count);
  if (s == WF_OK) s = run(m, cfg, mesh, loader, carried, batches, &total);
  wf_state_free(carried);
  wf_loader_close(loader);
  WF_TRY(s);
  out->tokens = total.labels;
  if (out->tokens == 0) return WF_FAIL(WF_EINVAL, "the split '%s' has no token to predict", info->name);
  out->loss = total.loss / (double)out->tokens;
  out->perplexity = exp(out->loss);
  out->bits_per_byte = out->loss / M_LN2 * (double)info->tokens / (double)info->bytes;
  return WF_OK;
}
