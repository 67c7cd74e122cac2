/* KDA: the delta rule on a state each of whose channels decays (Kimi delta attention; mixers 4).
 *
 *   q, k, v, beta as in DeltaNet;  for each value head and channel of its keys
 *   g = -exp(A_log) softplus(x Wf1 Wf2 + dt_bias)
 *   S_t = P + beta_t k_t^T (v_t - k_t P), P = diag(e^{g_t}) S_{t-1};  o_t = K^{-1/2} q_t S_t
 *   y = (RMSNorm per head(o) . sigmoid(x Wg1 Wg2 + bg)) Wo
 *
 * Kimi Team 2025 (Kimi Linear), whose models have 16 heads of 128. Parameters as in flash-linear-attention's
 * KimiDeltaAttention.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  int64_t heads, v_heads, head_dim, conv_width;
  double expand_v;
  bool conv, negative_eigenvalues;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads of queries and keys"),
    WF_OPT_I64F(options, v_heads, "auto", 1, 65536, WF_OPT_AUTO,
                "heads of values, a multiple of heads; auto: heads"),
    WF_OPT_I64F(options, head_dim, "auto", 1, 65536, WF_OPT_AUTO,
                "width of a head of keys; auto: d_model / heads"),
    WF_OPT_F64(options, expand_v, "1", 0.001, 64, "width of a head of values over head_dim"),
    WF_OPT_BOOL(options, conv, "true", "short convolution on q, k and v, before their SiLU"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolution sees"),
    WF_OPT_BOOL(options, negative_eigenvalues, "false", "beta in (0, 2)"),
    WF_OPT_END};

typedef struct kda {
  int64_t H, Hv, K, V;
  bool negative;
  wf_scan_options scan;
  wf_qkv_part qkv;
  wf_param *beta, *A_log, *dt_bias, *decay[2], *gate[2], *gate_bias; /* [0] to the low rank, [1] from it */
  wf_out_part out;
  int slot;
} kda;

static wf_status declare(wf_build *b, kda *m, const options *o) {
  int64_t d = b->d_model, V = m->V, heads[] = {m->H, m->H, m->Hv}, size[] = {m->K, m->K, V};
  double std = b->init_std;
  WF_TRY(wf_part_qkv(b, heads, size, 0, o->conv ? o->conv_width : 0, &m->qkv));
  WF_TRY(wf_build_linear(b, "f.0", d, V, std, &m->decay[0], NULL));
  WF_TRY(wf_build_linear(b, "f.1", V, m->Hv * m->K, std, &m->decay[1], NULL));
  WF_TRY(wf_build_linear(b, "b", d, m->Hv, std, &m->beta, NULL));
  WF_TRY(
      wf_build_param(b, "A_log", WF_PARAM_NO_DECAY, wf_init_log_uniform(1, 16), WF_SHAPE(m->Hv), &m->A_log));
  WF_TRY(wf_build_param(b, "dt_bias", WF_PARAM_NO_DECAY, wf_init_time_step(0.001, 0.1),
                        WF_SHAPE(m->Hv * m->K), &m->dt_bias));
  WF_TRY(wf_build_linear(b, "g.0", d, V, std, &m->gate[0], NULL));
  WF_TRY(wf_build_linear(b, "g.1", V, m->Hv * V, std, &m->gate[1], &m->gate_bias));
  WF_TRY(wf_part_out(b, m->Hv, V, WF_GLU_SIGMOID, b->norm_eps, &m->out));
  return wf_seq_scan_state(b, "s", m->Hv, m->K, V, &m->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t H = o->heads, Hv, K = o->head_dim, V;
  if (K == WF_AUTO_I64) WF_TRY(wf_head_size("keys", b->d_model, 1, H, &K));
  WF_TRY(wf_value_heads(H, K, o->v_heads, o->expand_v, &Hv, &V));
  kda *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  *m = (kda){.H = H, .Hv = Hv, .K = K, .V = V, .negative = o->negative_eigenvalues};
  m->scan = (wf_scan_options){.scale = 1 / sqrt((double)K)};
  return declare(b, m, o);
}

static wf_tensor *low_rank(wf_ctx *c, wf_param *const w[2], const wf_param *bias, wf_tensor *x) {
  return wf_linear(c, wf_linear(c, x, wf_value(w[0]), NULL), wf_value(w[1]), wf_value(bias));
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const kda *m = self;
  wf_ctx *c = r->c;
  wf_tensor *y[4], *beta = wf_linear(c, x, wf_value(m->beta), NULL);
  wf_use_qkv(r, &m->qkv, x, y);
  wf_tensor *dt = wf_softplus(c, wf_add(c, low_rank(c, m->decay, NULL, x), wf_value(m->dt_bias)));
  wf_tensor *rate = wf_reshape(c, wf_affine(c, wf_exp(c, wf_value(m->A_log)), -1, 0), WF_SHAPE(m->Hv, 1));
  wf_scan_in in = wf_delta_in(c, &m->qkv, y, beta, m->negative);
  in.g = wf_mul(c, wf_as_heads(dt, m->Hv), rate);
  wf_tensor *o = wf_seq_scan(r, m->slot, &in, &m->scan);
  return wf_use_out(r, &m->out, o, low_rank(c, m->gate, m->gate_bias, x));
}

static double flops(const void *self, int64_t T) {
  const kda *m = self;
  (void)T;
  double d = (double)m->out.out->shape[0], HK = (double)(m->H * m->K), HV = (double)(m->Hv * m->V), low = 0;
  for (int i = 0; i < 2; i++) low += (double)(m->decay[i]->numel + m->gate[i]->numel);
  return 2 * (d * (2 * HK + 2 * HV + (double)m->Hv) + low) + 6 * HV * (double)m->K;
}

const wf_layer_type wf_layer_kda = {
    .kind = WF_LAYER_MIXER,
    .name = "kda",
    .help = "Kimi delta attention: the delta rule with a data-dependent decay for each channel, output gate",
    .paper = "Kimi Team 2025",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
