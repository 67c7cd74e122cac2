/* DeltaNet: linear attention that writes by the delta rule (mixers 3).
 *
 *   q, k, v = SiLU(conv4(x Wq)), SiLU(conv4(x Wk)), SiLU(conv4(x Wv)), q and k of unit length
 *   beta = sigmoid(x Wb);  S_t = S_{t-1} + beta_t k_t^T (v_t - k_t S_{t-1});  o_t = K^{-1/2} q_t S_t
 *   y = (RMSNorm per head(o) [. SiLU(x Wg)]) Wo
 *
 * Schlag et al. 2021; Yang et al. 2024. With negative_eigenvalues beta goes to 2, so that a write may turn
 * what was there (Grazzi et al. 2024). Parameters as in flash-linear-attention's DeltaNet.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  int64_t heads, conv_width;
  double expand_k, expand_v;
  bool conv, negative_eigenvalues, use_gate;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads"),
    WF_OPT_F64(options, expand_k, "1", 0.001, 64, "width of all keys over d_model"),
    WF_OPT_F64(options, expand_v, "1", 0.001, 64, "width of all values over d_model"),
    WF_OPT_BOOL(options, conv, "true", "short convolution on q, k and v, before their SiLU"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolution sees"),
    WF_OPT_BOOL(options, negative_eigenvalues, "false", "beta in (0, 2)"),
    WF_OPT_BOOL(options, use_gate, "false", "output gate"),
    WF_OPT_END};

typedef struct deltanet {
  int64_t H, K, V;
  bool negative;
  wf_scan_options scan;
  wf_qkv_part qkv;
  wf_param *beta;
  wf_out_part out;
  int slot;
} deltanet;

static wf_status declare(wf_build *b, deltanet *m, const options *o) {
  int64_t H = m->H, heads[] = {H, H, H}, size[] = {m->K, m->K, m->V};
  WF_TRY(wf_part_qkv(b, heads, size, o->use_gate ? H * m->V : 0, o->conv ? o->conv_width : 0, &m->qkv));
  WF_TRY(wf_build_linear(b, "b", b->d_model, H, b->init_std, &m->beta, NULL));
  WF_TRY(wf_part_out(b, H, m->V, WF_GLU_SWI, b->norm_eps, &m->out));
  return wf_seq_scan_state(b, "s", H, m->K, m->V, &m->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t K, V;
  WF_TRY(wf_head_size("keys", b->d_model, o->expand_k, o->heads, &K));
  WF_TRY(wf_head_size("values", b->d_model, o->expand_v, o->heads, &V));
  deltanet *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  *m = (deltanet){.H = o->heads, .K = K, .V = V, .negative = o->negative_eigenvalues};
  m->scan = (wf_scan_options){.scale = 1 / sqrt((double)K)};
  return declare(b, m, o);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const deltanet *m = self;
  wf_ctx *c = r->c;
  wf_tensor *y[4], *beta = wf_linear(c, x, wf_value(m->beta), NULL);
  wf_use_qkv(r, &m->qkv, x, y);
  wf_scan_in in = wf_delta_in(c, &m->qkv, y, beta, m->negative);
  return wf_use_out(r, &m->out, wf_seq_scan(r, m->slot, &in, &m->scan), y[3]);
}

static double flops(const void *self, int64_t T) {
  const deltanet *m = self;
  (void)T;
  double d = (double)m->out.out->shape[0], HK = (double)(m->H * m->K), HV = (double)(m->H * m->V);
  return 2 * d * (2 * HK + (m->qkv.w[3] ? 3 : 2) * HV + (double)m->H) + 6 * HK * (double)m->V;
}

const wf_layer_type wf_layer_deltanet = {
    .kind = WF_LAYER_MIXER,
    .name = "deltanet",
    .help = "linear attention that writes by the delta rule: what a key held is replaced, not added to",
    .paper = "Schlag et al. 2021; Yang et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
