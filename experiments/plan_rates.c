/* What the ops of a model take, measured. */
#include "core/memory.h"
#include "core/ops.h"
#include "experiments/plan.h"
#include "experiments/rates.h"
#include "experiments/rehearsal.h"

static wf_status keep_rates(wf_ctx *c, wf_plan_rates *out) {
  enum { MOST = 512 };
  wf_op_profile *row;
  WF_ALLOC(row, "plan", MOST * sizeof *row);
  int n = wf_ctx_profile_read(c, row, MOST);
  out->op = wf_calloc("plan", (size_t)n + 1, sizeof *out->op);
  for (int i = 0; i < n && out->op; i++)
    out->op[out->n++] = (struct wf_op_rate){row[i].op, row[i].flops > 0 ? row[i].seconds / row[i].flops : 0,
                                            row[i].bytes > 0 ? row[i].seconds / row[i].bytes : 0};
  wf_free(row);
  return out->op ? WF_OK : WF_ENOMEM;
}

/* The second of two steps, when memory has been asked for and pages are there. */
static wf_status profile(wf_rehearsal *r, const wf_config *cfg, int64_t vocab, wf_device *dev, wf_mesh *mesh,
                         wf_plan_rates *out) {
  double copy;
  WF_TRY(wf_rehearsal_open(cfg, vocab, dev, mesh, r));
  WF_TRY(wf_params_init(wf_model_params(r->model), (uint64_t)cfg->run.seed));
  WF_TRY(wf_rehearsal_step(r));
  wf_ctx_profile(r->c, true);
  WF_TRY(wf_rehearsal_step(r));
  WF_TRY(keep_rates(r->c, out));
  wf_ctx_profile(r->c, false);
  WF_TRY(wf_rate_matrix(r->c, 1024, 0.1, &out->flops));
  return wf_rate_memory(r->c, 0.1, &out->memory, &copy);
}

wf_status wf_plan_measure(const wf_config *cfg, int64_t vocab, int64_t tokens, wf_plan_rates *out) {
  wf_config one = *cfg; /* borrows */
  if (one.data.seq_len > tokens) {
    if (one.model.max_positions == WF_AUTO_I64) one.model.max_positions = one.data.seq_len;
    one.data.seq_len = tokens;
  }
  one.train.batch_tokens = one.data.seq_len;
  one.train.accumulation = 1;
  one.train.carry_state = false;
  wf_device *dev;
  wf_mesh mesh;
  wf_comm *self;
  wf_rehearsal r = {0};
  *out = (wf_plan_rates){0};
  WF_TRY(wf_assemble_device(cfg, &dev));
  wf_status s = wf_comm_self(&self);
  if (s == WF_OK) s = wf_mesh_open(self, 1, 1, WF_LAYOUT_CONTIGUOUS, &mesh);
  if (s == WF_OK) {
    s = profile(&r, &one, vocab, dev, &mesh, out);
    wf_rehearsal_close(&r);
    wf_mesh_close(&mesh);
  }
  wf_device_close(dev);
  return s;
}

void wf_plan_rates_free(wf_plan_rates *r) {
  wf_free(r->op);
  *r = (wf_plan_rates){0};
}
