/* RetNet: multi-scale retention, linear attention with a fixed decay for each head (mixers 1).
 *
 *   q, k = rotary(x Wq), rotary(x Wk);  v = x Wv;  gamma_h = 1 - 2^{-5-h}
 *   S_t = gamma S_{t-1} + k_t^T v_t;  o_t = K^{-1/2} q_t S_t
 *   norm rms:    y = (RMSNorm per head(o) . SiLU(x Wg)) Wo
 *   norm paper:  rows of retention are divided by r = sqrt(sum_{j <= t} gamma^{t-j}), then by max(|sum|, 1):
 *                o / max(|q_t n_t|, r), n the decayed sum of keys;  y = (GroupNorm(o) . SiLU(x Wg)) Wo;
 *                xPos: rotary, and pairs of channels decay by zeta_i^{1/512} a token beside gamma
 *
 * Sun et al. 2023 (Retentive Network); xPos: Sun et al. 2022. `norm: rms` is flash-linear-attention's
 * MultiScaleRetention, whose parameters these are.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef enum norm_form { RMS, PAPER } norm_form;
static const char *const norms[] = {"rms", "paper", NULL};

typedef struct options {
  int64_t heads, kv_heads;
  double expand_k, expand_v;
  int norm;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "8", 1, 1000, "heads; head h forgets 2^(-5-h) of its state a token"),
    WF_OPT_I64F(options, kv_heads, "auto", 1, 1000, WF_OPT_AUTO,
                "key and value heads, each shared by heads / kv_heads query heads; auto: heads"),
    WF_OPT_F64(options, expand_k, "1", 0.001, 64, "width of all queries over d_model"),
    WF_OPT_F64(options, expand_v, "2", 0.001, 64, "width of all values, were kv_heads heads, over d_model"),
    WF_OPT_ENUM(options, norm, "rms", norms,
                "rms: of each head; paper: normalised retention, group norm and xPos, as the paper has it"),
    WF_OPT_END};

typedef struct retnet {
  int64_t H, Hk, K, V;
  norm_form form;
  wf_scan_options scan;
  wf_qkv_part qkv;
  wf_param *group_norm[2]; /* weight and bias [H V], of norm: paper */
  wf_out_part out;
  int slot;
  double *decay; /* log gamma [H]; paper: with xPos's, [H, K]. In the same allocation */
} retnet;

static void fill_decays(retnet *m) {
  for (int64_t h = 0; h < m->H; h++) {
    double log_gamma = log1p(-exp2(-5.0 - (double)h));
    if (m->form == RMS) m->decay[h] = log_gamma;
    for (int64_t i = 0; i < m->K && m->form == PAPER; i++) {
      double pair = (double)(i % (m->K / 2)) / ((double)m->K / 2);
      m->decay[h * m->K + i] = log_gamma + log((pair + 0.4) / 1.4) / 512;
    }
  }
}

static wf_status declare(wf_build *b, retnet *m) {
  int64_t V = m->V, heads[] = {m->H, m->Hk, m->Hk}, size[] = {m->K, m->K, V};
  WF_TRY(wf_part_qkv(b, heads, size, m->H * V, 0, &m->qkv));
  if (m->form == RMS) {
    WF_TRY(wf_part_out(b, m->H, V, WF_GLU_SWI, b->norm_eps, &m->out));
    return wf_seq_scan_state(b, "s", m->H, m->K, V, &m->slot);
  }
  m->out.eps = b->norm_eps;
  for (int i = 0; i < 2; i++)
    WF_TRY(wf_build_param(b, i ? "norm.bias" : "norm.weight", WF_PARAM_NO_DECAY, wf_init_const(i ? 0 : 1),
                          WF_SHAPE(m->H * V), &m->group_norm[i]));
  WF_TRY(wf_build_linear(b, "o", m->H * V, b->d_model, b->out_std, &m->out.out, NULL));
  return wf_seq_scan_state(b, "s", m->H, m->K, V + 1, &m->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t H = o->heads, Hk = o->kv_heads == WF_AUTO_I64 ? H : o->kv_heads, K, V;
  WF_TRY(wf_head_size("queries", b->d_model, o->expand_k, H, &K));
  WF_TRY(wf_head_size("values", b->d_model, o->expand_v, H, &V));
  WF_TRY(wf_head_groups(H, Hk));
  if (K % 2)
    return wf_hint(
        WF_FAIL(WF_EINVAL, "rotary positions turn pairs; a head of keys has width %lld", (long long)K),
        "make d_model x expand_k / heads even");
  retnet *m = wf_calloc("model", 1, sizeof *m + (size_t)(H * K) * sizeof(double));
  if (!m) return WF_ENOMEM;
  *self = m;
  *m = (retnet){.H = H, .Hk = Hk, .K = K, .V = V, .form = (norm_form)o->norm};
  m->scan = (wf_scan_options){.scale = 1 / sqrt((double)K)};
  m->decay = (double *)(void *)(m + 1);
  fill_decays(m);
  return declare(b, m);
}

/* sqrt(sum_{j <= t} gamma^{t-j}) for each token and head, [n, H]: t counted in the document. */
static wf_tensor *row_norms(wf_run *r, const retnet *m, wf_dtype dtype) {
  const wf_rows *rows = r->rows;
  double *host = wf_alloc("rows", (size_t)(rows->n_tokens * m->H) * sizeof *host + 1);
  if (!host) return wf_poison(r->c, WF_ENOMEM);
  for (int64_t i = 0; i < rows->n; i++)
    for (int64_t t = 0; t < rows->row[i].len; t++)
      for (int64_t h = 0; h < m->H; h++) {
        double log_gamma = log1p(-exp2(-5.0 - (double)h)), seen = (double)(rows->row[i].pos + t + 1);
        host[(rows->row[i].begin + t) * m->H + h] = sqrt(expm1(seen * log_gamma) / expm1(log_gamma));
      }
  wf_tensor *x =
      wf_cast(r->c, wf_from_host(r->c, "rows", WF_F64, WF_SHAPE(rows->n_tokens, m->H), host), dtype);
  wf_free(host);
  return x;
}

static wf_tensor *paper(wf_run *r, const retnet *m, wf_scan_in *in, wf_tensor *gate) {
  wf_ctx *c = r->c;
  int64_t n = gate->shape[0];
  in->v = wf_append_one(c, in->v);
  in->g = wf_head_constants(c, m->decay, m->H * m->K, n, gate->dtype);
  in->g = wf_reshape(c, in->g, WF_SHAPE(n, m->H, m->K));
  wf_tensor *o = wf_normalise(c, wf_seq_scan(r, m->slot, in, &m->scan), row_norms(r, m, gate->dtype), 0);
  o = wf_reshape(c, wf_norm(c, WF_NORM_LAYER, o, NULL, NULL, m->out.eps), WF_SHAPE(-1, m->H * m->V));
  o = wf_add(c, wf_mul(c, o, wf_value(m->group_norm[0])), wf_value(m->group_norm[1]));
  return wf_linear(c, wf_glu(c, WF_GLU_SWI, gate, o), wf_value(m->out.out), NULL);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const retnet *m = self;
  wf_ctx *c = r->c;
  wf_tensor *y[4];
  wf_use_qkv(r, &m->qkv, x, y);
  for (int i = 0; i < 3; i++) {
    if (i < 2) y[i] = wf_rotary(c, y[i], r->rows->pos, 10000, m->K);
    y[i] = wf_repeat_heads(c, y[i], m->H);
  }
  if (wf_is_poison(y[3])) return y[3];
  wf_scan_in in = {.q = y[0], .k = y[1], .v = y[2]};
  if (m->form == PAPER) return paper(r, m, &in, y[3]);
  in.g = wf_head_constants(c, m->decay, m->H, x->shape[0], x->dtype);
  return wf_use_out(r, &m->out, wf_seq_scan(r, m->slot, &in, &m->scan), y[3]);
}

static double flops(const void *self, int64_t T) {
  const retnet *m = self;
  (void)T;
  return 2 * (wf_qkv_weights(&m->qkv) + (double)m->out.out->numel) + 4 * (double)(m->H * m->K * m->V);
}

const wf_layer_type wf_layer_retnet = {
    .kind = WF_LAYER_MIXER,
    .name = "retnet",
    .help =
        "multi-scale retention: linear attention with a fixed decay a head, rotary positions, output gate",
    .paper = "Sun et al. 2023",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
