/* Gated DeltaNet: the delta rule on a state that decays (mixers 4).
 *
 *   q, k, v, beta as in DeltaNet;  g = -exp(A_log) softplus(x Wa + dt_bias), one for each value head
 *   S_t = P + beta_t k_t^T (v_t - k_t P), P = e^{g_t} S_{t-1};  o_t = K^{-1/2} q_t S_t
 *   y = (RMSNorm per head(o) . SiLU(x Wg)) Wo
 *
 * Several value heads may share a head of queries and keys. Yang et al. 2025. Parameters as in
 * flash-linear-attention's GatedDeltaNet.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  int64_t heads, v_heads, head_dim, conv_width;
  double expand_v;
  bool conv, use_gate, negative_eigenvalues;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "6", 1, 65536, "heads of queries and keys"),
    WF_OPT_I64F(options, v_heads, "auto", 1, 65536, WF_OPT_AUTO,
                "heads of values, a multiple of heads; auto: heads"),
    WF_OPT_I64F(
        options, head_dim, "auto", 1, 65536, WF_OPT_AUTO,
        "width of a head of keys; auto: 3/4 d_model / heads, to a multiple of 8 (256 at d_model 2048)"),
    WF_OPT_F64(options, expand_v, "2", 0.001, 64, "width of a head of values over head_dim"),
    WF_OPT_BOOL(options, conv, "true", "short convolution on q, k and v, before their SiLU"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolution sees"),
    WF_OPT_BOOL(options, use_gate, "true", "output gate"),
    WF_OPT_BOOL(options, negative_eigenvalues, "false", "beta in (0, 2)"),
    WF_OPT_END};

typedef struct gated_deltanet {
  int64_t H, Hv, K, V;
  bool negative;
  wf_scan_options scan;
  wf_qkv_part qkv;
  wf_param *a, *beta, *A_log, *dt_bias;
  wf_out_part out;
  int slot;
} gated_deltanet;

static wf_status declare(wf_build *b, gated_deltanet *m, const options *o) {
  int64_t d = b->d_model, heads[] = {m->H, m->H, m->Hv}, size[] = {m->K, m->K, m->V};
  WF_TRY(wf_part_qkv(b, heads, size, o->use_gate ? m->Hv * m->V : 0, o->conv ? o->conv_width : 0, &m->qkv));
  WF_TRY(wf_build_linear(b, "a", d, m->Hv, b->init_std, &m->a, NULL));
  WF_TRY(wf_build_linear(b, "b", d, m->Hv, b->init_std, &m->beta, NULL));
  WF_TRY(
      wf_build_param(b, "A_log", WF_PARAM_NO_DECAY, wf_init_log_uniform(0, 16), WF_SHAPE(m->Hv), &m->A_log));
  WF_TRY(wf_build_param(b, "dt_bias", WF_PARAM_NO_DECAY, wf_init_time_step(0.001, 0.1), WF_SHAPE(m->Hv),
                        &m->dt_bias));
  WF_TRY(wf_part_out(b, m->Hv, m->V, WF_GLU_SWI, b->norm_eps, &m->out));
  return wf_seq_scan_state(b, "s", m->Hv, m->K, m->V, &m->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t H = o->heads, Hv, K = o->head_dim, V;
  if (K == WF_AUTO_I64) K = 8 * (int64_t)fmax(1, round(0.75 * (double)b->d_model / (double)H / 8));
  WF_TRY(wf_value_heads(H, K, o->v_heads, o->expand_v, &Hv, &V));
  gated_deltanet *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  *m = (gated_deltanet){.H = H, .Hv = Hv, .K = K, .V = V, .negative = o->negative_eigenvalues};
  m->scan = (wf_scan_options){.scale = 1 / sqrt((double)K)};
  return declare(b, m, o);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const gated_deltanet *m = self;
  wf_ctx *c = r->c;
  wf_tensor *y[4], *w[] = {wf_value(m->a), wf_value(m->beta)}, *pre[2];
  wf_use_qkv(r, &m->qkv, x, y);
  wf_linear_n(c, x, 2, w, NULL, pre);
  wf_tensor *dt = wf_softplus(c, wf_add(c, pre[0], wf_value(m->dt_bias)));
  wf_scan_in in = wf_delta_in(c, &m->qkv, y, pre[1], m->negative);
  in.g = wf_mul(c, dt, wf_affine(c, wf_exp(c, wf_value(m->A_log)), -1, 0));
  return wf_use_out(r, &m->out, wf_seq_scan(r, m->slot, &in, &m->scan), y[3]);
}

static double flops(const void *self, int64_t T) {
  const gated_deltanet *m = self;
  (void)T;
  double d = (double)m->out.out->shape[0], HK = (double)(m->H * m->K), HV = (double)(m->Hv * m->V);
  return 2 * d * (2 * HK + (m->qkv.w[3] ? 3 : 2) * HV + 2 * (double)m->Hv) + 6 * HV * (double)m->K;
}

const wf_layer_type wf_layer_gated_deltanet = {
    .kind = WF_LAYER_MIXER,
    .name = "gated_deltanet",
    .help = "the delta rule on a state that decays: one data-dependent decay a head, output gate",
    .paper = "Yang et al. 2025",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
