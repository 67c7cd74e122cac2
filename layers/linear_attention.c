/* Linear attention with a feature map: the softmax's e^{<q, k>} replaced by <phi(q), phi(k)>.
 *
 *   q = phi([conv](x Wq)), k = phi([conv](x Wk)), v = [conv](x Wv)
 *   S_t = S_{t-1} + k_t^T v_t,   n_t = n_{t-1} + k_t
 *   o_t = q_t S_t / (|q_t n_t| + eps)  (normalise: true)  or  K^{-1/2} q_t S_t;   y = [norm](o) Wo
 *
 *   feature   phi                                                               features of a head of width K
 *   elu       elu(x) + 1                                       Katharopoulos et al. 2020        K
 *   relu      relu(x)                                          Kasai et al. 2021                K
 *   hedgehog  softmax([2 z, -2 z]), z = x A + a learned        Zhang et al. 2024              2 K
 *   taylor    [1, x K^{-1/4}, x x^T (2 K)^{-1/2}]              Arora et al. 2024 (Based)   1 + K + K^2
 *   none      x                                                                                 K
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>

typedef enum feature { ELU, RELU, HEDGEHOG, TAYLOR, PLAIN } feature;
static const char *const features[] = {"elu", "relu", "hedgehog", "taylor", "none", NULL};

typedef struct options {
  int64_t heads, feature_dim;
  double expand_k, expand_v, eps;
  int feature;
  bool normalise, norm, conv;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads"),
    WF_OPT_F64(options, expand_k, "1", 0.001, 64, "width of all keys over d_model"),
    WF_OPT_F64(options, expand_v, "1", 0.001, 64, "width of all values over d_model"),
    WF_OPT_I64F(
        options, feature_dim, "auto", 1, 4096, WF_OPT_AUTO,
        "width of a head's queries and keys before the map; auto: d_model x expand_k / heads, 16 for taylor"),
    WF_OPT_ENUM(options, feature, "elu", features, "the map of queries and keys"),
    WF_OPT_BOOL(options, normalise, "true", "divide by the sum of the weights, as the softmax does"),
    WF_OPT_F64(options, eps, "1e-6", 0, 1, "added to the sum of the weights"),
    WF_OPT_BOOL(options, norm, "false", "RMS norm of each head's output"),
    WF_OPT_BOOL(options, conv, "false", "short convolution of 4 tokens and SiLU on q, k and v"),
    WF_OPT_END};

typedef struct linear_attention {
  int64_t H, K, V;
  options o;
  double norm_eps;
  wf_scan_options scan;
  wf_qkv_part qkv;
  wf_param *map[2], *map_bias[2], *norm, *out;
  int slot;
} linear_attention;

static int64_t width_of(feature f, int64_t K) {
  return f == HEDGEHOG ? 2 * K : f == TAYLOR ? 1 + K + K * K : K;
}

/* The learned map starts as the identity. */
static double identity(const wf_init *w, wf_rng_key key, int64_t element) {
  (void)key;
  int64_t K = (int64_t)w->a;
  return element / K == element % K;
}

static wf_status declare(wf_build *b, linear_attention *m) {
  static const char *const names[] = {"q", "k"};
  int64_t heads[] = {m->H, m->H, m->H}, size[] = {m->K, m->K, m->V};
  WF_TRY(wf_part_qkv(b, heads, size, 0, m->o.conv ? 4 : 0, &m->qkv));
  for (int i = 0; i < 2 && m->o.feature == HEDGEHOG; i++) {
    char name[32];
    snprintf(name, sizeof name, "%s_map.weight", names[i]);
    WF_TRY(wf_build_param(b, name, 0, (wf_init){.kind = WF_INIT_FN, .a = (double)m->K, .fn = identity},
                          WF_SHAPE(m->K, m->K), &m->map[i]));
    snprintf(name, sizeof name, "%s_map.bias", names[i]);
    WF_TRY(wf_build_param(b, name, WF_PARAM_NO_DECAY, wf_init_const(0), WF_SHAPE(m->K), &m->map_bias[i]));
  }
  if (m->o.norm)
    WF_TRY(wf_build_param(b, "norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(m->V), &m->norm));
  WF_TRY(wf_build_linear(b, "o", m->H * m->V, b->d_model, b->out_std, &m->out, NULL));
  return wf_seq_scan_state(b, "s", m->H, width_of((feature)m->o.feature, m->K), m->V + m->o.normalise,
                           &m->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t K = o->feature_dim, V;
  if (K == WF_AUTO_I64) {
    if (o->feature == TAYLOR)
      K = 16;
    else
      WF_TRY(wf_head_size("keys", b->d_model, o->expand_k, o->heads, &K));
  }
  WF_TRY(wf_head_size("values", b->d_model, o->expand_v, o->heads, &V));
  linear_attention *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  *m = (linear_attention){.H = o->heads, .K = K, .V = V, .o = *o, .norm_eps = b->norm_eps};
  m->scan = (wf_scan_options){.scale = o->normalise ? 1 : 1 / sqrt((double)K), .ones = o->normalise};
  return declare(b, m);
}

static wf_tensor *mapped(wf_ctx *c, const linear_attention *m, wf_tensor *x, int i) {
  switch ((feature)m->o.feature) {
  case ELU: return wf_elu1(c, x);
  case RELU: return wf_relu(c, x);
  case HEDGEHOG:
    x = wf_linear(c, wf_contiguous(c, x), wf_value(m->map[i]), wf_value(m->map_bias[i]));
    return wf_hedgehog(c, x);
  case TAYLOR: return wf_taylor(c, x);
  default: return x;
  }
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const linear_attention *m = self;
  wf_ctx *c = r->c;
  wf_tensor *y[4];
  wf_use_qkv(r, &m->qkv, x, y);
  wf_scan_in in = {.q = mapped(c, m, y[0], 0), .k = mapped(c, m, y[1], 1), .v = y[2]};
  wf_tensor *o = wf_seq_scan(r, m->slot, &in, &m->scan);
  if (m->o.normalise) o = wf_normalise(c, o, NULL, m->o.eps);
  if (m->norm) o = wf_norm(c, WF_NORM_RMS, o, wf_value(m->norm), NULL, m->norm_eps);
  return wf_linear(c, wf_reshape(c, o, WF_SHAPE(-1, m->H * m->V)), wf_value(m->out), NULL);
}

static double flops(const void *self, int64_t T) {
  const linear_attention *m = self;
  (void)T;
  double K = (double)width_of((feature)m->o.feature, m->K), V = (double)(m->V + m->o.normalise);
  double maps = m->map[0] ? 4 * (double)(m->H * m->K * m->K) : 0;
  return 2 * (wf_qkv_weights(&m->qkv) + (double)m->out->numel) + maps + 4 * (double)m->H * K * V;
}

const wf_layer_type wf_layer_linear_attention = {
    .kind = WF_LAYER_MIXER,
    .name = "linear_attention",
    .help =
        "linear attention with a feature map (elu + 1, ReLU, Hedgehog's learned softmax, Based's Taylor map)",
    .paper = "Katharopoulos et al. 2020; Arora et al. 2024; Zhang et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
