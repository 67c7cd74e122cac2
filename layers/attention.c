/* Attention: multi-head, grouped-query and multi-query in one layer.
 *
 *   q = x Wq, k = x Wk, v = x Wv;  [RMS norm of q, k over the head];  [rotary];
 *   o = attend(q, k, v);  y = o Wo
 *
 * Multi-head: Vaswani et al. 2017. Multi-query: Shazeer 2019 (kv_heads 1). Grouped-query: Ainslie et al.
 * 2023. Rotary: Su et al. 2021. ALiBi: Press et al. 2022. QK-norm: Henry et al. 2020, as RMS norm. Soft cap:
 * Gemma 2, 2024. Sinks: a learned logit for each head in the denominator of the softmax (mixers 10).
 */
#include "layers/seq.h"
#include "core/memory.h"

#include <math.h>

typedef enum position { ROPE, LEARNED, ALIBI, NONE } position;
static const char *const positions[] = {"rope", "learned", "alibi", "none", NULL};

typedef struct options {
  int64_t heads, kv_heads, head_dim, window;
  int position;
  double rope_base, rope_fraction, softcap;
  bool qk_norm, sinks, bias;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "query heads"),
    WF_OPT_I64F(options, kv_heads, "auto", 1, 65536, WF_OPT_AUTO,
                "key and value heads: 1 is MQA, fewer than heads GQA; auto: heads"),
    WF_OPT_I64F(options, head_dim, "auto", 1, 65536, WF_OPT_AUTO, "width of a head; auto: d_model / heads"),
    WF_OPT_ENUM(options, position, "rope", positions, "how tokens know their position"),
    WF_OPT_F64(options, rope_base, "10000", 1, 1e12, "base of the rotary wavelengths"),
    WF_OPT_F64(options, rope_fraction, "1", 0, 1, "fraction of each head that turns"),
    WF_OPT_BOOL(options, qk_norm, "false", "RMS norm on queries and keys, before the positions"),
    WF_OPT_I64(options, window, "0", 0, INT64_C(1) << 40, "keys a query sees, its own included; 0: all"),
    WF_OPT_F64(options, softcap, "0", 0, 1e6, "cap tanh(score / cap); 0: none"),
    WF_OPT_BOOL(options, sinks, "false", "a learned logit for each head that takes part in the softmax only"),
    WF_OPT_BOOL(options, bias, "false", "biases on all four projections"),
    WF_OPT_END};

typedef struct attention {
  int64_t H, Hk, K, rotary;
  options o;
  wf_attend_options attend;
  wf_param *w[3], *b[3]; /* q, k, v */
  wf_param *out, *out_bias, *q_norm, *k_norm, *sink;
  double eps;
  double *slope; /* [H] or NULL; in the same allocation */
  wf_seq_attend_slots slots;
} attention;

static wf_status declare(wf_build *b, attention *a) {
  int64_t d = b->d_model;
  static const char *const names[] = {"q", "k", "v"};
  for (int i = 0; i < 3; i++)
    WF_TRY(wf_build_linear(b, names[i], d, (i ? a->Hk : a->H) * a->K, b->init_std, &a->w[i],
                           a->o.bias ? &a->b[i] : NULL));
  WF_TRY(wf_build_linear(b, "o", a->H * a->K, d, b->out_std, &a->out, a->o.bias ? &a->out_bias : NULL));
  if (a->o.qk_norm) {
    WF_TRY(
        wf_build_param(b, "q_norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(a->K), &a->q_norm));
    WF_TRY(
        wf_build_param(b, "k_norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(a->K), &a->k_norm));
  }
  if (a->o.sinks)
    WF_TRY(wf_build_param(b, "sinks", WF_PARAM_NO_DECAY, wf_init_const(0), WF_SHAPE(a->H), &a->sink));
  return wf_seq_attend_state(b, a->Hk, a->K, a->K, 0, a->o.window, &a->slots);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t H = o->heads, Hk = o->kv_heads == WF_AUTO_I64 ? H : o->kv_heads, K = o->head_dim, d = b->d_model;
  if (K == WF_AUTO_I64) {
    if (d % H)
      return wf_hint(
          WF_FAIL(WF_EINVAL, "heads: %lld heads do not divide d_model %lld", (long long)H, (long long)d),
          "choose heads that divide d_model, or set head_dim");
    K = d / H;
  }
  if (H % Hk)
    return wf_hint(
        WF_FAIL(WF_EINVAL, "kv_heads: %lld do not divide heads: %lld", (long long)Hk, (long long)H),
        "each key head serves heads / kv_heads query heads");
  int64_t rotary = (int64_t)((double)K * o->rope_fraction) / 2 * 2;
  if (o->position == ROPE && o->rope_fraction == 1 && K % 2)
    return wf_hint(WF_FAIL(WF_EINVAL, "rotary positions turn pairs; head_dim %lld is odd", (long long)K),
                   "make head_dim even or set rope_fraction below 1");
  attention *a = wf_calloc("model", 1, sizeof *a + (size_t)H * sizeof(double));
  if (!a) return WF_ENOMEM;
  *self = a;
  *a = (attention){.H = H, .Hk = Hk, .K = K, .o = *o, .eps = b->norm_eps};
  a->rotary = o->position == ROPE ? rotary : 0;
  if (o->position == LEARNED) b->learned_positions = true;
  if (o->position == ALIBI) {
    a->slope = (double *)(void *)(a + 1);
    for (int64_t h = 0; h < H; h++) a->slope[h] = exp2(-8.0 * (double)(h + 1) / (double)H);
  }
  a->attend = (wf_attend_options){
      .scale = 1 / sqrt((double)K), .softcap = o->softcap, .window = o->window, .kind = WF_ATTEND_SOFTMAX};
  return declare(b, a);
}

/* [n, heads K] -> [n, heads, K], normed and turned. */
static wf_tensor *shaped(wf_run *r, const attention *a, wf_tensor *x, int64_t heads, const wf_param *norm,
                         bool turn) {
  if (wf_is_poison(x)) return x;
  x = wf_same_variable(x, WF_SHAPE(x->shape[0], heads, a->K));
  if (norm) x = wf_norm(r->c, WF_NORM_RMS, x, wf_value(norm), NULL, a->eps);
  if (turn && a->rotary) x = wf_rotary(r->c, x, r->rows->pos, a->o.rope_base, a->rotary);
  return x;
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const attention *a = self;
  wf_ctx *c = r->c;
  wf_tensor *w[3], *b[3], *y[3];
  for (int i = 0; i < 3; i++) {
    w[i] = wf_value(a->w[i]);
    b[i] = wf_value(a->b[i]);
  }
  wf_linear_n(c, x, 3, w, b, y);
  wf_seq_attend_in in = {.q = shaped(r, a, y[0], a->H, a->q_norm, true),
                         .k = shaped(r, a, y[1], a->Hk, a->k_norm, true),
                         .v = shaped(r, a, y[2], a->Hk, NULL, false),
                         .sink = wf_value(a->sink),
                         .slope = a->slope};
  wf_tensor *o = wf_seq_attend(r, &a->slots, &in, &a->attend);
  return wf_linear(c, wf_reshape(c, o, WF_SHAPE(-1, a->H * a->K)), wf_value(a->out), wf_value(a->out_bias));
}

static double flops(const void *self, int64_t T) {
  const attention *a = self;
  double seen = (double)(a->o.window > 0 && a->o.window < T ? a->o.window : T);
  double d = (double)a->out->shape[0], projections = 2 * d * (double)((2 * a->H + 2 * a->Hk) * a->K);
  return projections + 4 * seen * (double)(a->H * a->K);
}

const wf_layer_type wf_layer_attention = {
    .kind = WF_LAYER_MIXER,
    .name = "attention",
    .help = "softmax attention: multi-head, grouped-query (kv_heads) and multi-query",
    .paper = "Vaswani et al. 2017; Shazeer 2019; Ainslie et al. 2023",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
