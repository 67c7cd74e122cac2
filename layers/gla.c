/* GLA: gated linear attention, its decays one for each channel of the keys (gla, mixers 2) or one for each
 * head (simple_gla, mixers 1).
 *
 *   q, k, v = x Wq, x Wk, x Wv, each through a short convolution and SiLU where `conv` says so
 *   g = logsigmoid(x W1 W2 + b) / gate_norm for each channel;  logsigmoid(x Wg + b) / gate_norm for each head
 *   S_t = diag(e^{g_t}) S_{t-1} + k_t^T v_t,   o_t = K^{-1/2} q_t S_t
 *   y = (RMSNorm per head(o) . SiLU(x Wz)) Wo, without the product where there is no output gate
 *
 * Heads of keys, values and channel decays may serve several heads of queries. Yang et al. 2024. Parameters
 * as in flash-linear-attention's GatedLinearAttention and SimpleGatedLinearAttention.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  int64_t heads, kv_heads, conv_width, gate_rank;
  double expand_k, expand_v, gate_norm;
  bool conv, use_gate;
} options;

#define TABLE(usual_expand_k, usual_conv)                                                            \
  WF_OPT_I64(options, heads, "4", 1, 65536, "heads"),                                                \
      WF_OPT_I64F(options, kv_heads, "auto", 1, 65536, WF_OPT_AUTO,                                  \
                  "key and value heads, each shared by heads / kv_heads query heads; auto: heads"),  \
      WF_OPT_F64(options, expand_k, usual_expand_k, 0.001, 64, "width of all queries over d_model"), \
      WF_OPT_F64(options, expand_v, "1", 0.001, 64,                                                  \
                 "width of all values, were kv_heads heads, over d_model"),                          \
      WF_OPT_F64(options, gate_norm, "16", 0.001, 1e6,                                               \
                 "divides the log of the gate: larger forgets more slowly"),                         \
      WF_OPT_BOOL(options, conv, usual_conv, "short convolution and SiLU on q, k and v"),            \
      WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolution sees"),              \
      WF_OPT_BOOL(options, use_gate, "true", "output gate")

static const wf_option table[] = {
    TABLE("0.5", "false"),
    WF_OPT_I64(options, gate_rank, "16", 1, 65536, "rank of the projection to the decays"), WF_OPT_END};
static const wf_option simple_table[] = {TABLE("1", "true"), WF_OPT_END};

typedef struct gla {
  int64_t H, Hk, K, V;
  double gate_norm;
  wf_scan_options scan;
  wf_qkv_part qkv;
  wf_param *low, *decay, *bias; /* to the rank, from it; low NULL: one decay a head */
  wf_out_part out;
  int slot;
} gla;

static wf_status declare(wf_build *b, gla *g, const options *o, int64_t rank) {
  int64_t H = g->H, Hk = g->Hk, heads[] = {H, Hk, Hk}, size[] = {g->K, g->K, g->V};
  WF_TRY(wf_part_qkv(b, heads, size, o->use_gate ? H * g->V : 0, o->conv ? o->conv_width : 0, &g->qkv));
  if (rank) {
    WF_TRY(wf_build_linear(b, "gk.0", b->d_model, rank, b->init_std, &g->low, NULL));
    WF_TRY(wf_build_linear(b, "gk.1", rank, Hk * g->K, b->init_std, &g->decay, &g->bias));
  } else {
    WF_TRY(wf_build_linear(b, "gk", b->d_model, H, b->init_std, &g->decay, &g->bias));
  }
  WF_TRY(wf_part_out(b, H, g->V, WF_GLU_SWI, b->norm_eps, &g->out));
  return wf_seq_scan_state(b, "s", H, g->K, g->V, &g->slot);
}

/* rank 0: one decay a head. */
static wf_status init(wf_build *b, const options *o, int64_t rank, void **self) {
  int64_t H = o->heads, Hk = o->kv_heads == WF_AUTO_I64 ? H : o->kv_heads, K, V;
  WF_TRY(wf_head_size("queries", b->d_model, o->expand_k, H, &K));
  WF_TRY(wf_head_size("values", b->d_model, o->expand_v, H, &V));
  WF_TRY(wf_head_groups(H, Hk));
  gla *g = wf_calloc("model", 1, sizeof *g);
  if (!g) return WF_ENOMEM;
  *self = g;
  *g = (gla){.H = H, .Hk = Hk, .K = K, .V = V, .gate_norm = o->gate_norm};
  g->scan = (wf_scan_options){.scale = 1 / sqrt((double)K)};
  return declare(b, g, o, rank);
}
static wf_status init_gla(wf_build *b, const void *o, void **self) {
  return init(b, o, ((const options *)o)->gate_rank, self);
}
static wf_status init_simple(wf_build *b, const void *o, void **self) {
  return init(b, o, 0, self);
}

static wf_tensor *decays(wf_ctx *c, const gla *g, wf_tensor *x) {
  if (g->low) x = wf_linear(c, x, wf_value(g->low), NULL);
  x = wf_logsigmoid(c, wf_linear(c, x, wf_value(g->decay), wf_value(g->bias)));
  x = wf_affine(c, x, 1 / g->gate_norm, 0);
  return g->low ? wf_repeat_heads(c, wf_as_heads(x, g->Hk), g->H) : x;
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const gla *g = self;
  wf_tensor *y[4];
  wf_use_qkv(r, &g->qkv, x, y);
  for (int i = 1; i < 3; i++) y[i] = wf_repeat_heads(r->c, y[i], g->H);
  wf_scan_in in = {.q = y[0], .k = y[1], .v = y[2], .g = decays(r->c, g, x)};
  return wf_use_out(r, &g->out, wf_seq_scan(r, g->slot, &in, &g->scan), y[3]);
}

static double flops(const void *self, int64_t T) {
  const gla *g = self;
  (void)T;
  double decay = (double)(g->decay->numel + (g->low ? g->low->numel : 0));
  return 2 * (wf_qkv_weights(&g->qkv) + decay + (double)g->out.out->numel) + 4 * (double)(g->H * g->K * g->V);
}

const wf_layer_type wf_layer_gla = {
    .kind = WF_LAYER_MIXER,
    .name = "gla",
    .help = "gated linear attention: a data-dependent decay for each channel of the keys, output gate",
    .paper = "Yang et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init_gla,
    .forward = forward,
    .flops = flops,
};

const wf_layer_type wf_layer_simple_gla = {
    .kind = WF_LAYER_MIXER,
    .name = "simple_gla",
    .help = "linear attention with one data-dependent decay a head, short convolution and output gate",
    .paper = "Yang et al. 2024",
    .options = simple_table,
    .options_size = sizeof(options),
    .init = init_simple,
    .forward = forward,
    .flops = flops,
};
