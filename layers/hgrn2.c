/* HGRN2: gated linear attention whose keys are what the forget gates let go (mixers 2).
 *
 *   q = SiLU(x Wq), f~ = x Wf, v = x Wi;  f = lb + (1 - lb) sigmoid(f~),  k = 1 - f = (1 - lb) sigmoid(-f~)
 *   S_t = diag(f_t) S_{t-1} + k_t^T v_t;  o_t = K^{-1/2} q_t S_t;  y = RMSNorm(o) Wo, over the whole width
 *
 * lb, the least a layer remembers, grows with depth: lower_bounds (layers, d) is one parameter of the model,
 * P its softmax over the layers, lb_l = P_1 + .. + P_l, so that the first layer has none. Shares near 0 and 1
 * have digits only as logarithms of their odds, u = log((1 - lb) / lb), a difference of two log-sum-exps, and
 *   z = log(f / (1 - f)) = f~ + softplus(softplus(-f~) - u),   log f = logsigmoid(z),   k = sigmoid(-z).
 * Qin et al. 2024. Parameters as in flash-linear-attention's HGRN2Attention.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  int64_t expand_ratio, conv_width;
  bool conv;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, expand_ratio, "128", 1, 65536, "width of a head: d_model / expand_ratio heads"),
    WF_OPT_BOOL(options, conv, "false", "short convolution, without an activation, on q, f and i"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolution sees"), WF_OPT_END};

enum { Q, FORGET, VALUE };
static const double norm_eps = 1e-5; /* as there, whatever the model's */

typedef struct hgrn2 {
  int64_t H;
  int layer;
  wf_scan_options scan;
  wf_param *w[3], *bounds, *norm, *out;
  wf_conv_part conv[3];
  int slot;
} hgrn2;

static wf_status declare(wf_build *b, hgrn2 *m, const options *o) {
  static const char *const names[] = {"q", "f", "i"}, *const taps[] = {"q_conv", "f_conv", "i_conv"};
  int64_t d = b->d_model;
  for (int i = 0; i < 3; i++) WF_TRY(wf_build_linear(b, names[i], d, d, b->init_std, &m->w[i], NULL));
  for (int i = 0; i < 3 && o->conv; i++)
    WF_TRY(
        wf_part_conv(b, taps[i], d, o->conv_width, wf_init_normal(b->init_std), false, false, &m->conv[i]));
  WF_TRY(wf_build_shared_param(b, "lower_bounds", WF_PARAM_NO_DECAY, wf_init_const(0),
                               WF_SHAPE(b->n_layers, d), &m->bounds));
  WF_TRY(wf_build_param(b, "norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(d), &m->norm));
  WF_TRY(wf_build_linear(b, "o", d, d, b->out_std, &m->out, NULL));
  return wf_seq_scan_state(b, "s", m->H, o->expand_ratio, o->expand_ratio, &m->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t K = o->expand_ratio;
  if (b->d_model % K)
    return wf_hint(WF_FAIL(WF_EINVAL, "expand_ratio: heads of %lld do not divide d_model %lld", (long long)K,
                           (long long)b->d_model),
                   "choose one that divides d_model");
  hgrn2 *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  *m = (hgrn2){.H = b->d_model / K, .layer = b->layer};
  m->scan = (wf_scan_options){.scale = 1 / sqrt((double)K)};
  return declare(b, m, o);
}

/* log(e^a + e^b) */
static wf_tensor *log_add(wf_ctx *c, wf_tensor *a, wf_tensor *b) {
  return wf_add(c, a, wf_softplus(c, wf_sub(c, b, a)));
}

/* x [n, d], n > 0 -> [1, d]: log of the sum of e^x, by halves. */
static wf_tensor *log_sum(wf_ctx *c, wf_tensor *x) {
  if (wf_is_poison(x) || x->shape[0] == 1) return x;
  int64_t n = x->shape[0], half = n / 2;
  wf_tensor *sum = log_add(c, wf_slice(c, x, 0, 0, half), wf_slice(c, x, 0, half, 2 * half));
  if (n % 2) sum = wf_concat(c, 2, (wf_tensor *[]){sum, wf_slice(c, x, 0, n - 1, n)});
  return log_sum(c, sum);
}

/* u of this layer, [1, d]; not for layer 0. */
static wf_tensor *odds(wf_ctx *c, const hgrn2 *m) {
  wf_tensor *p = wf_value(m->bounds), *rest = wf_slice(c, p, 0, 0, 1);
  int64_t mine = m->layer + 1, all = m->bounds->shape[0];
  if (mine < all) rest = log_add(c, rest, log_sum(c, wf_slice(c, p, 0, mine, all)));
  return wf_sub(c, rest, log_sum(c, wf_slice(c, p, 0, 1, mine)));
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const hgrn2 *m = self;
  wf_ctx *c = r->c;
  wf_tensor *w[3], *y[3];
  for (int i = 0; i < 3; i++) w[i] = wf_value(m->w[i]);
  wf_linear_n(c, x, 3, w, NULL, y);
  for (int i = 0; i < 3; i++) y[i] = wf_use_conv(r, &m->conv[i], y[i]);
  wf_tensor *z = y[FORGET];
  if (m->layer) {
    wf_tensor *closed = wf_softplus(c, wf_affine(c, z, -1, 0));
    z = wf_add(c, z, wf_softplus(c, wf_sub(c, closed, odds(c, m))));
  }
  wf_scan_in in = {.q = wf_as_heads(wf_silu(c, y[Q]), m->H),
                   .k = wf_as_heads(wf_sigmoid(c, wf_affine(c, z, -1, 0)), m->H),
                   .v = wf_as_heads(y[VALUE], m->H),
                   .g = wf_as_heads(wf_logsigmoid(c, z), m->H)};
  wf_tensor *o = wf_reshape(c, wf_seq_scan(r, m->slot, &in, &m->scan), WF_SHAPE(-1, m->out->shape[1]));
  return wf_linear(c, wf_norm(c, WF_NORM_RMS, o, wf_value(m->norm), NULL, norm_eps), wf_value(m->out), NULL);
}

static double flops(const void *self, int64_t T) {
  const hgrn2 *m = self;
  (void)T;
  double d = (double)m->out->shape[0];
  return 8 * d * d + 4 * d * d / (double)m->H;
}

const wf_layer_type wf_layer_hgrn2 = {
    .kind = WF_LAYER_MIXER,
    .name = "hgrn2",
    .help = "gated linear attention whose keys are one minus the forget gates; their lower bounds grow with "
            "depth",
    .paper = "Qin et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
