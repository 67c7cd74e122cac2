/* Attention: multi-head, grouped-query and multi-query in one layer, with the terms and factors that its
 * relatives add (mixers 10).
 *
 *   q = x Wq, k = x Wk, v = x Wv;  [RMS norm of q, k over the head];  [rotary];
 *   o = attend(q, k, v);  [o = o . sigmoid(x Wg)];  y = o Wo
 *
 * Multi-head: Vaswani et al. 2017. Multi-query: Shazeer 2019 (kv_heads 1). Grouped-query: Ainslie et al.
 * 2023. Rotary: Su et al. 2021. ALiBi: Press et al. 2022. QK-norm: Henry et al. 2020, as RMS norm. Soft cap:
 * Gemma 2, 2024. Sinks: a learned logit for each head in the denominator of the softmax.
 *
 * Forget gate (FoX, Lin et al. 2025): c_t - c_j is added to the scores,
 *     c_t = sum_{i <= t} logsigmoid(x_i Wf + bf),
 * a float64, for it grows with the sequence while its differences matter.
 *
 * Sigmoid (Ramapuram et al. 2024): P = sigmoid(score - log n), n one constant, in place of the softmax.
 *
 * Selective attention (Zhang et al. 2024): queries, values or both are multiplied, head by head, by
 *     tau_t = 1 + sigmoid(alpha) log(t + 1) + tanh(<u, gelu(z_t)>),  t from 0,
 * the larger, the sparser; z is the projection itself, u and alpha are learned.
 *
 * Weighted grouped-query (Chinnakonduru & Mohapatra 2024): the weights of key head g are the sum over its
 * group of m_h . W_h, of projections for all heads; m is learned, 1 / group at first: a number for a head, a
 * vector over its features (columns) or over the inputs (rows). It is a sum of weights: tokens cost the same.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>

typedef enum position { ROPE, LEARNED, ALIBI, NONE } position;
static const char *const positions[] = {"rope", "learned", "alibi", "none", NULL};
static const char *const kinds[] = {"softmax", "sigmoid", NULL};
typedef enum temperature { TEMPER_Q = 1, TEMPER_V = 2 } temperature; /* bits of the option */
static const char *const temperatures[] = {"none", "query", "value", "both", NULL};
typedef enum mixing { MIX_NONE, MIX_HEAD, MIX_COLUMN, MIX_ROW } mixing;
static const char *const mixings[] = {"none", "head", "column", "row", NULL};

typedef struct options {
  int64_t heads, kv_heads, head_dim, window, sigmoid_length;
  int position, kind, temperature, kv_weights;
  double rope_base, rope_fraction, softcap;
  bool qk_norm, qk_norm_per_head, sinks, bias, forget_gate, output_gate;
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
    WF_OPT_BOOL(options, qk_norm_per_head, "false", "qk_norm has weights for each head, not one set for all"),
    WF_OPT_I64(options, window, "0", 0, INT64_C(1) << 40, "keys a query sees, its own included; 0: all"),
    WF_OPT_F64(options, softcap, "0", 0, 1e6, "cap tanh(score / cap); 0: none"),
    WF_OPT_BOOL(options, sinks, "false", "a learned logit for each head that takes part in the softmax only"),
    WF_OPT_BOOL(options, bias, "false", "biases on all four projections"),
    WF_OPT_BOOL(options, forget_gate, "false",
                "forgetting attention (FoX): the scores decay by data; usually with position none"),
    WF_OPT_BOOL(options, output_gate, "false", "the output times sigmoid(x Wg)"),
    WF_OPT_ENUM(options, kind, "softmax", kinds, "what scores become: softmax, or sigmoid of each"),
    WF_OPT_I64F(options, sigmoid_length, "auto", 1, INT64_C(1) << 40, WF_OPT_AUTO,
                "sigmoid: n of the bias -log n; auto: the model's positions"),
    WF_OPT_ENUM(options, temperature, "none", temperatures,
                "selective attention: learned scale of each token's query, value or both"),
    WF_OPT_ENUM(options, kv_weights, "none", mixings,
                "weighted GQA: key heads are learned sums of all heads' projections, weighted by head, by "
                "column (feature of the head) or by row (input)"),
    WF_OPT_END};

typedef struct temper {
  wf_param *u, *alpha; /* [heads, K], [heads]; NULL for none */
} temper;

typedef struct attention {
  int64_t H, Hk, K, rotary;
  options o;
  wf_attend_options attend;
  wf_param *w[3], *b[3]; /* q, k, v */
  wf_param *mix[3];      /* of k and v */
  wf_param *norm[2];     /* of q and k */
  wf_param *out, *out_bias, *sink, *forget, *forget_bias, *gate;
  temper temper[3]; /* of q and v */
  double eps;
  double *slope; /* [H] or NULL; in the same allocation */
  int sum_slot;
  wf_seq_attend_slots slots;
} attention;

/* ---- building ---- */

static wf_status declare_temper(wf_build *b, const attention *a, const char *name, int64_t heads, temper *t) {
  char full[32];
  snprintf(full, sizeof full, "%s_temper.weight", name);
  WF_TRY(
      wf_build_param(b, full, WF_PARAM_NO_DECAY, wf_init_normal(b->init_std), WF_SHAPE(heads, a->K), &t->u));
  snprintf(full, sizeof full, "%s_temper.alpha", name);
  /* log-positions count for one percent at first */
  return wf_build_param(b, full, WF_PARAM_NO_DECAY, wf_init_const(-4.5), WF_SHAPE(heads), &t->alpha);
}

/* The projection of a key or value: of all heads, with the weights of its sums. */
static wf_status declare_mixed(wf_build *b, attention *a, const char *name, int i) {
  int64_t d = b->d_model, wide[] = {0, 1, a->K, d};
  char full[32];
  WF_TRY(wf_build_linear(b, name, d, a->H * a->K, b->init_std, &a->w[i], NULL));
  snprintf(full, sizeof full, "%s.bias", name);
  if (a->o.bias)
    WF_TRY(wf_build_param(b, full, WF_PARAM_NO_DECAY, wf_init_const(0), WF_SHAPE(a->Hk * a->K), &a->b[i]));
  snprintf(full, sizeof full, "%s_mix.weight", name);
  wf_init mean = wf_init_const((double)a->Hk / (double)a->H);
  return wf_build_param(b, full, WF_PARAM_NO_DECAY, mean, WF_SHAPE(a->H, wide[a->o.kv_weights]), &a->mix[i]);
}

static wf_status declare(wf_build *b, attention *a) {
  int64_t d = b->d_model;
  static const char *const names[] = {"q", "k", "v"};
  for (int i = 0; i < 3; i++) {
    if (i && a->o.kv_weights)
      WF_TRY(declare_mixed(b, a, names[i], i));
    else
      WF_TRY(wf_build_linear(b, names[i], d, (i ? a->Hk : a->H) * a->K, b->init_std, &a->w[i],
                             a->o.bias ? &a->b[i] : NULL));
  }
  if (a->o.forget_gate) {
    WF_TRY(wf_build_linear(b, "f", d, a->H, b->init_std, &a->forget, &a->forget_bias));
    WF_TRY(wf_build_state_exact(b, "forgotten", false, WF_SHAPE(a->H), &a->sum_slot));
  }
  if (a->o.output_gate) WF_TRY(wf_build_linear(b, "g", d, a->H * a->K, b->init_std, &a->gate, NULL));
  WF_TRY(wf_build_linear(b, "o", a->H * a->K, d, b->out_std, &a->out, a->o.bias ? &a->out_bias : NULL));
  for (int i = 0; i < 2 && a->o.qk_norm; i++) {
    int64_t wide = a->o.qk_norm_per_head ? (i ? a->Hk : a->H) * a->K : a->K;
    WF_TRY(wf_build_param(b, i ? "k_norm.weight" : "q_norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1),
                          WF_SHAPE(wide), &a->norm[i]));
  }
  if (a->o.sinks)
    WF_TRY(wf_build_param(b, "sinks", WF_PARAM_NO_DECAY, wf_init_const(0), WF_SHAPE(a->H), &a->sink));
  if (a->o.temperature & TEMPER_Q) WF_TRY(declare_temper(b, a, "q", a->H, &a->temper[0]));
  if (a->o.temperature & TEMPER_V) WF_TRY(declare_temper(b, a, "v", a->Hk, &a->temper[2]));
  return wf_seq_attend_state(b, a->Hk, a->K, a->K, a->o.forget_gate ? a->H : 0, a->o.window, &a->slots);
}

static wf_status check(const options *o, int64_t H, int64_t Hk, int64_t K) {
  WF_TRY(wf_head_groups(H, Hk));
  if (o->position == ROPE && o->rope_fraction == 1 && K % 2)
    return wf_hint(WF_FAIL(WF_EINVAL, "rotary positions turn pairs; head_dim %lld is odd", (long long)K),
                   "make head_dim even or set rope_fraction below 1");
  if (o->kind == WF_ATTEND_SIGMOID && o->sinks)
    return wf_hint(WF_FAIL(WF_EINVAL, "sinks: a sink takes part in a softmax, and kind is sigmoid"),
                   "set sinks: false or kind: softmax");
  return WF_OK;
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
  WF_TRY(check(o, H, Hk, K));
  attention *a = wf_calloc("model", 1, sizeof *a + (size_t)H * sizeof(double));
  if (!a) return WF_ENOMEM;
  *self = a;
  *a = (attention){.H = H, .Hk = Hk, .K = K, .o = *o, .eps = b->norm_eps};
  a->rotary = o->position == ROPE ? (int64_t)((double)K * o->rope_fraction) / 2 * 2 : 0;
  if (o->position == LEARNED) b->learned_positions = true;
  if (o->position == ALIBI) {
    a->slope = (double *)(void *)(a + 1);
    for (int64_t h = 0; h < H; h++) a->slope[h] = exp2(-8.0 * (double)(h + 1) / (double)H);
  }
  a->attend =
      (wf_attend_options){.scale = 1 / sqrt((double)K),
                          .softcap = o->softcap,
                          .window = o->window,
                          .kind = (wf_attend_kind)o->kind,
                          .len_bias = o->sigmoid_length == WF_AUTO_I64 ? b->context : o->sigmoid_length};
  return declare(b, a);
}

/* ---- running ---- */

/* [heads K, d] of a key or value: itself, or the sums over the heads of its groups. */
static wf_tensor *weight_of(wf_ctx *c, const attention *a, int i) {
  wf_tensor *w = wf_value(a->w[i]);
  if (!a->mix[i]) return w;
  int64_t d = w->shape[1], group = a->H / a->Hk, wide = a->mix[i]->shape[1];
  bool column = a->o.kv_weights == MIX_COLUMN;
  wf_tensor *m =
      wf_reshape(c, wf_value(a->mix[i]), WF_SHAPE(a->Hk, group, column ? wide : 1, column ? 1 : wide));
  w = wf_mul(c, wf_reshape(c, w, WF_SHAPE(a->Hk, group, a->K, d)), m);
  return wf_reshape(c, wf_sum(c, w, 1, false), WF_SHAPE(a->Hk * a->K, d));
}

/* tau [n, heads, 1] of z [n, heads, K]. */
static wf_tensor *tau(wf_run *r, const temper *t, wf_tensor *z) {
  wf_ctx *c = r->c;
  wf_tensor *token = wf_tanh(c, wf_sum(c, wf_mul(c, wf_gelu(c, z), wf_value(t->u)), 2, true));
  wf_tensor *place = wf_mul(c, wf_seq_log_position(r, z->dtype), wf_sigmoid(c, wf_value(t->alpha)));
  return wf_affine(c, wf_add(c, token, wf_reshape(c, place, WF_SHAPE(-1, z->shape[1], 1))), 1, 1);
}

/* q, k or v, [n, heads K] -> [n, heads, K]: normed, turned, scaled. */
static wf_tensor *shaped(wf_run *r, const attention *a, wf_tensor *z, int i) {
  wf_ctx *c = r->c;
  wf_tensor *x = z = wf_as_heads(z, i ? a->Hk : a->H);
  if (i < 2 && a->o.qk_norm) {
    wf_tensor *w = wf_value(a->norm[i]);
    x = wf_norm(c, WF_NORM_RMS, x, a->o.qk_norm_per_head ? NULL : w, NULL, a->eps);
    if (a->o.qk_norm_per_head) x = wf_mul(c, x, wf_reshape(c, w, WF_SHAPE(-1, a->K)));
  }
  if (i < 2 && a->rotary) x = wf_rotary(c, x, r->rows->pos, a->o.rope_base, a->rotary);
  return a->temper[i].u ? wf_mul(c, x, tau(r, &a->temper[i], z)) : x;
}

/* c [n, H] of the forget gates. */
static wf_tensor *forgotten(wf_run *r, const attention *a, wf_tensor *x) {
  wf_ctx *c = r->c;
  wf_tensor *f = wf_logsigmoid(c, wf_linear(c, x, wf_value(a->forget), wf_value(a->forget_bias)));
  return wf_seq_diag(r, a->sum_slot, wf_cast(c, f, WF_F64), NULL, NULL);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const attention *a = self;
  wf_ctx *c = r->c;
  wf_tensor *w[3], *b[3], *y[3];
  for (int i = 0; i < 3; i++) {
    w[i] = weight_of(c, a, i);
    b[i] = wf_value(a->b[i]);
  }
  wf_linear_n(c, x, 3, w, b, y);
  for (int i = 0; i < 3; i++) y[i] = shaped(r, a, y[i], i);
  wf_seq_attend_in in = {.q = y[0], .k = y[1], .v = y[2], .sink = wf_value(a->sink), .slope = a->slope};
  if (a->forget) in.c = forgotten(r, a, x);
  wf_tensor *o = wf_seq_attend(r, &a->slots, &in, &a->attend);
  o = wf_reshape(c, o, WF_SHAPE(-1, a->H * a->K));
  if (a->gate) o = wf_glu(c, WF_GLU_SIGMOID, wf_linear(c, x, wf_value(a->gate), NULL), o);
  return wf_linear(c, o, wf_value(a->out), wf_value(a->out_bias));
}

static double flops(const void *self, int64_t T) {
  const attention *a = self;
  double seen = (double)(a->o.window > 0 && a->o.window < T ? a->o.window : T);
  double d = (double)a->out->shape[0], heads = (double)(2 * a->H + 2 * a->Hk + (a->gate ? a->H : 0));
  return 2 * d * heads * (double)a->K + 4 * seen * (double)(a->H * a->K);
}

const wf_layer_type wf_layer_attention = {
    .kind = WF_LAYER_MIXER,
    .name = "attention",
    .help = "softmax attention: multi-head, grouped-query (kv_heads) and multi-query; sigmoid, forget gate "
            "(FoX), selective temperatures, weighted GQA",
    .paper = "Vaswani et al. 2017; Shazeer 2019; Ainslie et al. 2023; and those of the options",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
