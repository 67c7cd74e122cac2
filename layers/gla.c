/* GLA: gated linear attention with a decay for each channel of the keys (mixers 2).
 *
 *   q, k, v = x Wq, x Wk, x Wv, with a short convolution and SiLU where asked;  g = logsigmoid(x W1 W2 + b) /
 * gate_norm S_t = diag(e^{g_t}) S_{t-1} + k_t^T v_t;  o_t = K^{-1/2} q_t S_t;  y = (RMSNorm per head(o) .
 * SiLU(x Wg)) Wo
 *
 * Yang et al. 2024. Parameters as in flash-linear-attention's GatedLinearAttention.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  int64_t heads, conv_width, gate_rank;
  double expand_k, expand_v, gate_norm;
  bool conv;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads"),
    WF_OPT_F64(options, expand_k, "0.5", 0.001, 64, "width of all keys over d_model"),
    WF_OPT_F64(options, expand_v, "1", 0.001, 64, "width of all values over d_model"),
    WF_OPT_I64(options, gate_rank, "16", 1, 65536, "rank of the projection to the decays"),
    WF_OPT_F64(options, gate_norm, "16", 0.001, 1e6,
               "divides the log of the gate: larger forgets more slowly"),
    WF_OPT_BOOL(options, conv, "false", "short convolution and SiLU on q, k and v"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolution sees"),
    WF_OPT_END};

typedef struct gla {
  int64_t H, K, V;
  double gate_norm;
  wf_scan_options scan;
  wf_qkv_part qkv;
  wf_param *low, *high, *bias; /* of the decays */
  wf_out_part out;
  int slot;
} gla;

static wf_status declare(wf_build *b, gla *g, const options *o) {
  int64_t H = g->H, heads[] = {H, H, H}, size[] = {g->K, g->K, g->V};
  WF_TRY(wf_part_qkv(b, heads, size, H * g->V, o->conv ? o->conv_width : 0, &g->qkv));
  WF_TRY(wf_build_linear(b, "gk.0", b->d_model, o->gate_rank, b->init_std, &g->low, NULL));
  WF_TRY(wf_build_linear(b, "gk.1", o->gate_rank, H * g->K, b->init_std, &g->high, &g->bias));
  WF_TRY(wf_part_out(b, H, g->V, WF_GLU_SWI, b->norm_eps, &g->out));
  return wf_seq_scan_state(b, "s", H, g->K, g->V, &g->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t K, V;
  WF_TRY(wf_head_size("keys", b->d_model, o->expand_k, o->heads, &K));
  WF_TRY(wf_head_size("values", b->d_model, o->expand_v, o->heads, &V));
  gla *g = wf_calloc("model", 1, sizeof *g);
  if (!g) return WF_ENOMEM;
  *self = g;
  *g = (gla){.H = o->heads, .K = K, .V = V, .gate_norm = o->gate_norm};
  g->scan = (wf_scan_options){.scale = 1 / sqrt((double)K)};
  return declare(b, g, o);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const gla *g = self;
  wf_ctx *c = r->c;
  wf_tensor *y[4];
  wf_tensor *pre =
      wf_linear(c, wf_linear(c, x, wf_value(g->low), NULL), wf_value(g->high), wf_value(g->bias));
  wf_use_qkv(r, &g->qkv, x, y);
  wf_scan_in in = {.q = y[0], .k = y[1], .v = y[2]};
  in.g = wf_as_heads(wf_affine(c, wf_logsigmoid(c, pre), 1 / g->gate_norm, 0), g->H);
  return wf_use_out(r, &g->out, wf_seq_scan(r, g->slot, &in, &g->scan), y[3]);
}

static double flops(const void *self, int64_t T) {
  const gla *g = self;
  (void)T;
  double d = (double)g->out.out->shape[0], HK = (double)(g->H * g->K), HV = (double)(g->H * g->V);
  return 2 * (d * (2 * HK + 3 * HV) + (double)(g->low->numel + g->high->numel)) + 4 * HK * (double)g->V;
}

const wf_layer_type wf_layer_gla = {
    .kind = WF_LAYER_MIXER,
    .name = "gla",
    .help = "gated linear attention: a data-dependent decay for each channel of the keys, output gate",
    .paper = "Yang et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
