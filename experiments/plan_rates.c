/* What the ops of a model take, measured. */
#include "core/memory.h"
#include "core/ops.h"
#include "experiments/plan.h"
#include "experiments/rates.h"
#include "experiments/rehearsal.h"

enum { MOST = 512, STEPS = 3 };

/* What op row[i].op took in a step, whatever it was part of; nothing where an earlier row has said so. */
static struct wf_op_rate rate_of(const wf_op_profile *row, int n, int i) {
  wf_op_profile sum = {.op = row[i].op};
  for (int k = 0; k < n; k++) {
    if (row[k].op != sum.op) continue;
    if (k < i) return (struct wf_op_rate){NULL, 0, 0};
    sum.seconds += row[k].seconds, sum.flops += row[k].flops, sum.bytes += row[k].bytes;
  }
  return (struct wf_op_rate){sum.op, sum.flops > 0 ? sum.seconds / sum.flops : 0,
                             sum.bytes > 0 ? sum.seconds / sum.bytes : 0};
}

/* Of each op the fastest step so far. */
static wf_status keep_rates(wf_ctx *c, wf_plan_rates *out) {
  wf_op_profile *row;
  WF_ALLOC(row, "plan", MOST * sizeof *row);
  int n = wf_ctx_profile_read(c, row, MOST);
  for (int i = 0; i < n; i++) {
    struct wf_op_rate now = rate_of(row, n, i), *best = out->op;
    if (!now.op) continue;
    while (best < out->op + out->n && best->op != now.op) best++;
    if (best == out->op + out->n) {
      if (out->n < MOST) out->op[out->n++] = now;
    } else if (now.per_flop + now.per_byte < best->per_flop + best->per_byte) {
      *best = now;
    }
  }
  wf_free(row);
  return WF_OK;
}

/* Of steps after the first, when memory has been asked for and pages are there. */
static wf_status profile(wf_rehearsal *r, const wf_config *cfg, int64_t vocab, wf_device *dev, wf_mesh *mesh,
                         wf_plan_rates *out) {
  double copy;
  WF_TRY(wf_rehearsal_open(cfg, vocab, dev, mesh, r));
  WF_TRY(wf_params_init(wf_model_params(r->model), (uint64_t)cfg->run.seed));
  WF_CALLOC(out->op, "plan", MOST);
  WF_TRY(wf_rehearsal_step(r));
  for (int i = 0; i < STEPS; i++) {
    wf_ctx_profile(r->c, true);
    WF_TRY(wf_rehearsal_step(r));
    WF_TRY(keep_rates(r->c, out));
  }
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
