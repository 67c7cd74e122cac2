/* mLSTM: a matrix memory with exponential gates (mixers 7).
 *
 *   C_t = f_t C_{t-1} + i_t k_t^T v_t,  n_t = f_t n_{t-1} + i_t k_t,  h_t = q_t C_t / max(|q_t n_t|, 1)
 *   gate exp:      i = e^{i~}, f = sigmoid(f~);  C and n are held times e^{-m}
 *                  m_t = max(log f + m_{t-1}, i~_t)                                   Beck et al. 2024
 *   gate sigmoid:  i = sigmoid(i~);  h_t = q_t C_t: nothing to divide by, no m        Beck et al. 2025, TFLA
 *
 *   form block:    (u, z) = x Wup;  c = SiLU(conv4(u) + b);  q, k = blocks of 4 of c, v of u
 *                  i~, f~ of [q, k, v];  y = ((LayerNorm per head(h) + skip . c) . SiLU(z)) Wdown
 *   form large:    q, k = x Wq, x Wk of half the width, v = x Wv;  i~, f~ = cap tanh(x W / cap)
 *                  y = (LayerNorm per head(h) . sigmoid(x Wo)) Wout                   Beck et al. 2025
 *
 * q is scaled by K^{-1/2}.
 *
 * Norm weights here are the factor; the published block stores them less 1.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>

typedef enum form { BLOCK, LARGE } form;
static const char *const forms[] = {"block", "large", NULL};
typedef enum gate { EXP, SIGMOID } gate;
static const char *const gates[] = {"exp", "sigmoid", NULL};

typedef struct options {
  int64_t heads, conv_width, qkv_block;
  int form, gate;
  double expand, qk_factor, gate_cap;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads"),
    WF_OPT_ENUM(
        options, form, "block", forms,
        "block: up-projection, convolution, skip (NeurIPS 2024); large: plain projections (xLSTM 7B)"),
    WF_OPT_ENUM(options, gate, "exp", gates, "exp: stabilised and normalised; sigmoid: neither is needed"),
    WF_OPT_F64(options, expand, "2", 0.01, 64, "block: inner width over d_model, rounded up to 64"),
    WF_OPT_I64(options, qkv_block, "4", 1, 256,
               "block: width of the blocks that q, k and v are projected by"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "block: tokens the short convolution sees"),
    WF_OPT_F64(options, qk_factor, "0.5", 0.001, 64, "large: width of queries and keys over d_model"),
    WF_OPT_F64(options, gate_cap, "15", 0, 1e6, "large: cap tanh(gate / cap) of the gates; 0: none"),
    WF_OPT_END};

enum { Q, KEY, VALUE };
enum { I, F };

typedef struct mlstm {
  int64_t H, K, V, inner; /* inner: width of q, k, v in a block; of v otherwise */
  options o;
  double norm_eps;
  wf_scan_options scan;
  wf_param *up, *w[3], *gate[2], *gate_bias[2], *norm, *skip, *open,
      *out; /* open: the large form's output gate */
  wf_conv_part conv;
  int m_slot, slot;
} mlstm;

/* ---- declaration ---- */

/* Forget biases from 3 to 6 over the heads: later heads remember longer. */
static double forget_bias(const wf_init *w, wf_rng_key key, int64_t element) {
  (void)key;
  return w->a > 1 ? 3 + 3 * (double)element / (w->a - 1) : 3;
}

static wf_status declare_gates(wf_build *b, mlstm *m, int64_t in, const char *suffix, double std,
                               wf_init input) {
  for (int i = I; i <= F; i++) {
    char name[40];
    snprintf(name, sizeof name, "%cgate%s.weight", i == I ? 'i' : 'f', suffix);
    WF_TRY(wf_build_param(b, name, WF_PARAM_NO_DECAY, wf_init_normal(std), WF_SHAPE(m->H, in), &m->gate[i]));
    snprintf(name, sizeof name, "%cgate%s.bias", i == I ? 'i' : 'f', suffix);
    wf_init forget = {.kind = WF_INIT_FN, .a = (double)m->H, .fn = forget_bias};
    WF_TRY(wf_build_param(b, name, WF_PARAM_NO_DECAY, i == I ? input : forget, WF_SHAPE(m->H),
                          &m->gate_bias[i]));
  }
  return WF_OK;
}

static wf_status declare_block(wf_build *b, mlstm *m) {
  static const char *const names[] = {"q.weight", "k.weight", "v.weight"};
  int64_t d = b->d_model, N = m->inner, s = m->o.qkv_block;
  double wide = sqrt(2 / (5 * (double)d)), last = 2 / ((double)b->n_layers * sqrt((double)d));
  wf_init taps = wf_init_uniform(1 / sqrt((double)m->o.conv_width));
  WF_TRY(wf_build_param(b, "up.weight", 0, wf_init_normal(wide), WF_SHAPE(2 * N, d), &m->up));
  WF_TRY(wf_part_conv(b, "conv", N, m->o.conv_width, taps, true, true, &m->conv));
  for (int i = 0; i < 3; i++)
    WF_TRY(wf_build_param(b, names[i], 0, wf_init_normal(wide), WF_SHAPE(N / s, s, s), &m->w[i]));
  WF_TRY(declare_gates(b, m, 3 * N, "", 0, wf_init_normal(0.1)));
  WF_TRY(wf_build_param(b, "norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(N), &m->norm));
  WF_TRY(wf_build_param(b, "learnable_skip", WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(N), &m->skip));
  return wf_build_param(b, "down.weight", 0, wf_init_normal(last), WF_SHAPE(d, N), &m->out);
}

static wf_status declare_large(wf_build *b, mlstm *m) {
  int64_t d = b->d_model;
  WF_TRY(wf_build_linear(b, "q", d, m->H * m->K, b->init_std, &m->w[Q], NULL));
  WF_TRY(wf_build_linear(b, "k", d, m->H * m->K, b->init_std, &m->w[KEY], NULL));
  WF_TRY(wf_build_linear(b, "v", d, m->inner, b->init_std, &m->w[VALUE], NULL));
  WF_TRY(wf_build_linear(b, "ogate_preact", d, m->inner, b->init_std, &m->open, NULL));
  WF_TRY(declare_gates(b, m, d, "_preact", b->init_std, wf_init_const(-10)));
  WF_TRY(wf_build_param(b, "norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(m->inner), &m->norm));
  return wf_build_linear(b, "out", m->inner, d, b->out_std, &m->out, NULL);
}

static wf_status sizes(wf_build *b, const options *o, mlstm *m) {
  int64_t d = b->d_model, H = o->heads;
  if (o->form == LARGE) {
    WF_TRY(wf_head_size("queries", d, o->qk_factor, H, &m->K));
    WF_TRY(wf_head_size("values", d, 1, H, &m->V));
    m->inner = d;
    return WF_OK;
  }
  m->inner = 64 * (int64_t)ceil(o->expand * (double)d / 64);
  if (m->inner % H || m->inner % o->qkv_block)
    return wf_hint(WF_FAIL(WF_EINVAL, "%s: %lld do not divide the inner width %lld",
                           m->inner % H ? "heads" : "qkv_block", (long long)(m->inner % H ? H : o->qkv_block),
                           (long long)m->inner),
                   "the inner width is d_model %lld x expand %g rounded up to 64", (long long)d, o->expand);
  m->K = m->V = m->inner / H;
  return WF_OK;
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  mlstm *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  m->H = o->heads, m->o = *o, m->norm_eps = b->norm_eps;
  WF_TRY(sizes(b, o, m));
  m->scan = (wf_scan_options){.scale = 1 / sqrt((double)m->K), .ones = o->gate == EXP};
  WF_TRY(o->form == LARGE ? declare_large(b, m) : declare_block(b, m));
  if (o->gate == EXP) WF_TRY(wf_seq_diag_state(b, "m", m->H, &m->m_slot));
  return wf_seq_scan_state(b, "s", m->H, m->K, o->gate == EXP ? m->V + 1 : m->V, &m->slot);
}

/* ---- forward ---- */

/* The memory: q, k, v [n, H, .], gates before their activations [n, H] -> h [n, H, V]. */
static wf_tensor *cell(wf_run *r, const mlstm *m, wf_tensor *const y[3], wf_tensor *const pre[2]) {
  wf_ctx *c = r->c;
  wf_scan_in in = {.q = y[Q], .k = y[KEY], .v = y[VALUE]};
  wf_tensor *forget = wf_logsigmoid(c, pre[F]);
  if (m->o.gate == SIGMOID) {
    in.g = forget;
    in.w = wf_sigmoid(c, pre[I]);
    return wf_seq_scan(r, m->slot, &in, &m->scan);
  }
  wf_tensor *drop, *floor, *most = wf_seq_max(r, m->m_slot, pre[I], forget, NULL, &drop);
  wf_exp_gates(c, forget, pre[I], most, drop, &in.g, &in.w, &floor);
  return wf_normalise(c, wf_seq_scan(r, m->slot, &in, &m->scan), floor, 1e-6);
}

/* Gates from [q, k, v] without joining them: each meets its columns of the weight. */
static void block_gates(wf_ctx *c, const mlstm *m, wf_tensor *const y[3], wf_tensor *pre[2]) {
  for (int i = I; i <= F; i++) {
    pre[i] = NULL;
    for (int k = 0; k < 3; k++) {
      wf_tensor *w = wf_slice(c, wf_value(m->gate[i]), 1, k * m->inner, (k + 1) * m->inner);
      wf_tensor *part = wf_linear(c, y[k], w, k ? NULL : wf_value(m->gate_bias[i]));
      pre[i] = pre[i] ? wf_add(c, pre[i], part) : part;
    }
  }
}

static wf_tensor *forward_block(wf_run *r, const mlstm *m, wf_tensor *x) {
  wf_ctx *c = r->c;
  wf_tensor *all = wf_linear(c, x, wf_value(m->up), NULL), *pre[2], *y[3];
  wf_tensor *u = wf_slice(c, all, 1, 0, m->inner), *z = wf_slice(c, all, 1, m->inner, 2 * m->inner);
  wf_tensor *mixed = wf_use_conv(r, &m->conv, u);
  for (int i = 0; i < 3; i++) y[i] = wf_block_linear(c, i == VALUE ? u : mixed, wf_value(m->w[i]));
  block_gates(c, m, y, pre);
  for (int i = 0; i < 3; i++) y[i] = wf_as_heads(y[i], m->H);
  wf_tensor *h = wf_add(c, wf_head_norm(c, cell(r, m, y, pre), wf_value(m->norm), m->norm_eps),
                        wf_mul(c, mixed, wf_value(m->skip)));
  return wf_linear(c, wf_glu(c, WF_GLU_SWI, z, h), wf_value(m->out), NULL);
}

static wf_tensor *forward_large(wf_run *r, const mlstm *m, wf_tensor *x) {
  wf_ctx *c = r->c;
  wf_tensor *w[] = {wf_value(m->w[Q]), wf_value(m->w[KEY]), wf_value(m->w[VALUE]), wf_value(m->open)}, *y[4];
  wf_tensor *wg[] = {wf_value(m->gate[I]), wf_value(m->gate[F])},
            *bias[] = {wf_value(m->gate_bias[I]), wf_value(m->gate_bias[F])}, *pre[2];
  wf_linear_n(c, x, 4, w, NULL, y);
  wf_linear_n(c, x, 2, wg, bias, pre);
  double cap = m->o.gate_cap;
  for (int i = I; i <= F && cap > 0; i++)
    pre[i] = wf_affine(c, wf_tanh(c, wf_affine(c, pre[i], 1 / cap, 0)), cap, 0);
  for (int i = 0; i < 3; i++) y[i] = wf_as_heads(y[i], m->H);
  wf_tensor *h = wf_head_norm(c, cell(r, m, y, pre), wf_value(m->norm), m->norm_eps);
  return wf_linear(c, wf_glu(c, WF_GLU_SIGMOID, y[3], h), wf_value(m->out), NULL);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const mlstm *m = self;
  return m->o.form == LARGE ? forward_large(r, m, x) : forward_block(r, m, x);
}

static double flops(const void *self, int64_t T) {
  const mlstm *m = self;
  (void)T;
  const wf_param *used[] = {m->up,      m->w[Q],        m->w[KEY], m->w[VALUE], m->gate[I],
                            m->gate[F], m->conv.weight, m->open,   m->out};
  double weights = 0;
  for (size_t i = 0; i < sizeof used / sizeof *used; i++) weights += used[i] ? (double)used[i]->numel : 0;
  return 2 * weights + 4 * (double)(m->H * m->K) * (double)(m->o.gate == EXP ? m->V + 1 : m->V);
}

const wf_layer_type wf_layer_mlstm = {
    .kind = WF_LAYER_MIXER,
    .name = "mlstm",
    .help =
        "xLSTM's matrix memory with exponential or sigmoid gates, as its block (NeurIPS) or its large form",
    .paper = "Beck et al. 2024; Beck et al. 2025",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
