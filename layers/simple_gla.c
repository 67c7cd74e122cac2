/* Simple GLA: gated linear attention with one decay for each head and token (mixers 1).
 *
 *   q, k, v = SiLU(conv4(x Wq)), SiLU(conv4(x Wk)), SiLU(conv4(x Wv));  g = logsigmoid(x Wg + b) / gate_norm
 *   S_t = e^{g_t} S_{t-1} + k_t^T v_t;  o_t = K^{-1/2} q_t S_t;  y = (RMSNorm(o) . SiLU(x Wz)) Wo
 *
 * Yang et al. 2024 (Gated Linear Attention), the scalar-gate form of flash-linear-attention's
 * SimpleGatedLinearAttention, whose parameters these are.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  int64_t heads, conv_width;
  double expand_k, expand_v, gate_norm;
  bool conv;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads"),
    WF_OPT_F64(options, expand_k, "1", 0.001, 64, "width of all keys over d_model"),
    WF_OPT_F64(options, expand_v, "1", 0.001, 64, "width of all values over d_model"),
    WF_OPT_F64(options, gate_norm, "16", 0.001, 1e6,
               "divides the log of the gate: larger forgets more slowly"),
    WF_OPT_BOOL(options, conv, "true", "short convolution and SiLU on q, k and v"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolution sees"),
    WF_OPT_END};

typedef struct simple_gla {
  int64_t H, K, V;
  double gate_norm;
  wf_scan_options scan;
  wf_qkv_part qkv;
  wf_param *decay, *decay_bias;
  wf_out_part out;
  int slot;
} simple_gla;

static wf_status declare(wf_build *b, simple_gla *g, const options *o) {
  int64_t H = g->H, heads[] = {H, H, H}, size[] = {g->K, g->K, g->V};
  WF_TRY(wf_part_qkv(b, heads, size, H * g->V, o->conv ? o->conv_width : 0, &g->qkv));
  WF_TRY(wf_build_linear(b, "gk", b->d_model, H, b->init_std, &g->decay, &g->decay_bias));
  WF_TRY(wf_part_out(b, H, g->V, WF_GLU_SWI, b->norm_eps, &g->out));
  return wf_seq_scan_state(b, "s", H, g->K, g->V, &g->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t K, V;
  WF_TRY(wf_head_size("keys", b->d_model, o->expand_k, o->heads, &K));
  WF_TRY(wf_head_size("values", b->d_model, o->expand_v, o->heads, &V));
  simple_gla *g = wf_calloc("model", 1, sizeof *g);
  if (!g) return WF_ENOMEM;
  *self = g;
  *g = (simple_gla){.H = o->heads, .K = K, .V = V, .gate_norm = o->gate_norm};
  g->scan = (wf_scan_options){.scale = 1 / sqrt((double)K)};
  return declare(b, g, o);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const simple_gla *g = self;
  wf_ctx *c = r->c;
  wf_tensor *y[4], *pre = wf_linear(c, x, wf_value(g->decay), wf_value(g->decay_bias));
  wf_use_qkv(r, &g->qkv, x, y);
  wf_scan_in in = {.q = y[0], .k = y[1], .v = y[2]};
  in.g = wf_affine(c, wf_logsigmoid(c, pre), 1 / g->gate_norm, 0);
  return wf_use_out(r, &g->out, wf_seq_scan(r, g->slot, &in, &g->scan), y[3]);
}

static double flops(const void *self, int64_t T) {
  const simple_gla *g = self;
  (void)T;
  double d = (double)g->out.out->shape[0], HK = (double)(g->H * g->K), HV = (double)(g->H * g->V);
  return 2 * d * (2 * HK + 3 * HV) + 4 * HK * (double)g->V;
}

const wf_layer_type wf_layer_simple_gla = {
    .kind = WF_LAYER_MIXER,
    .name = "simple_gla",
    .help = "linear attention with one data-dependent decay a head, short convolution and output gate",
    .paper = "Yang et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
