/* Lightning attention, the mixer of TransNormerLLM: linear attention with fixed decays that differ by head
 * and layer (mixers 1).
 *
 *   q, k = SiLU(x Wq), SiLU(x Wk);  v = x Wv;  g_h = -(8 h / H) (1 - l / L), h = 0 .. H-1, layer l of L
 *   S_t = e^{g_h} S_{t-1} + k_t^T v_t;  o_t = K^{-1/2} q_t S_t
 *   y = (SimpleRMSNorm(o) . sigmoid(x Wu)) Wo,   SimpleRMSNorm(o) = o / sqrt(mean o^2 + eps) over all heads
 *
 * Positions: `lrpe` multiplies the products of queries and keys by cos((t - j) theta) with learned angles
 * theta, by giving each feature a cosine and a sine part; the published models have it in their first layer
 * only (`auto`). Qin et al. 2023 (TransNormerLLM); Qin et al. 2024 (Lightning Attention-2); LRPE: Qin et al.
 * 2023.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef enum position { AUTO, LRPE, ROPE, NONE } position;
static const char *const positions[] = {"auto", "lrpe", "rope", "none", NULL};

typedef struct options {
  int64_t heads;
  int position;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "8", 1, 65536, "heads; head 0 forgets nothing, the last one most"),
    WF_OPT_ENUM(
        options, position, "auto", positions,
        "lrpe: learned rotary angles; rope: fixed ones; auto: lrpe in the first layer, none in the others"),
    WF_OPT_END};

typedef struct lightning {
  int64_t H, K;
  double eps;
  bool rope;
  wf_scan_options scan;
  wf_qkv_part qkv;
  wf_param *out;
  wf_param *theta; /* [H, K] or NULL */
  int slot;
  double *decay; /* [H], in the same allocation */
} lightning;

/* theta_i = 10000^{-2 i / K}, as the angles of rotary positions. */
static double first_angle(const wf_init *w, wf_rng_key key, int64_t element) {
  (void)key;
  return pow(10000, -2 * (double)(element % (int64_t)w->a) / w->a);
}

static wf_status declare(wf_build *b, lightning *m, bool lrpe) {
  int64_t d = b->d_model, heads[] = {m->H, m->H, m->H}, size[] = {m->K, m->K, m->K};
  WF_TRY(wf_part_qkv(b, heads, size, 0, 0, &m->qkv));
  WF_TRY(wf_build_linear(b, "u", d, d, b->init_std, &m->qkv.w[3], NULL));
  if (lrpe)
    WF_TRY(wf_build_param(b, "theta", WF_PARAM_NO_DECAY,
                          (wf_init){.kind = WF_INIT_FN, .a = (double)m->K, .fn = first_angle},
                          WF_SHAPE(m->H, m->K), &m->theta));
  WF_TRY(wf_build_linear(b, "o", d, d, b->out_std, &m->out, NULL));
  return wf_seq_scan_state(b, "s", m->H, lrpe ? 2 * m->K : m->K, m->K, &m->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t H = o->heads, K;
  WF_TRY(wf_head_size("heads", b->d_model, 1, H, &K));
  if (o->position == ROPE && K % 2)
    return wf_hint(WF_FAIL(WF_EINVAL, "rotary positions turn pairs; a head has width %lld", (long long)K),
                   "make d_model / heads even, or choose another position");
  lightning *m = wf_calloc("model", 1, sizeof *m + (size_t)H * sizeof(double));
  if (!m) return WF_ENOMEM;
  *self = m;
  *m = (lightning){.H = H, .K = K, .eps = b->norm_eps, .rope = o->position == ROPE};
  m->scan = (wf_scan_options){.scale = 1 / sqrt((double)K)};
  m->decay = (double *)(void *)(m + 1);
  for (int64_t h = 0; h < H; h++)
    m->decay[h] = -8 * (double)h / (double)H * (1 - (double)b->layer / (double)b->n_layers);
  return declare(b, m, o->position == LRPE || (o->position == AUTO && b->layer == 0));
}

/* cos(t theta) and sin(t theta) of each token, head and feature, [n, H, 2, K]: a sine is a cosine a quarter
 * turn on. */
static wf_tensor *waves(wf_run *r, const lightning *m, wf_dtype dtype) {
  static const double quarter[] = {0, -1.57079632679489661923};
  wf_ctx *c = r->c;
  const wf_rows *rows = r->rows;
  double *host = wf_alloc("rows", (size_t)(rows->n_tokens + 1) * sizeof *host);
  if (!host) return wf_poison(c, WF_ENOMEM);
  for (int64_t i = 0; i < rows->n; i++)
    for (int64_t t = 0; t < rows->row[i].len; t++)
      host[rows->row[i].begin + t] = (double)(rows->row[i].pos + t);
  wf_tensor *pos =
      wf_cast(c, wf_from_host(c, "rows", WF_F64, WF_SHAPE(rows->n_tokens, 1, 1, 1), host), dtype);
  wf_free(host);
  wf_tensor *phase = wf_cast(c, wf_from_host(c, "rows", WF_F64, WF_SHAPE(2, 1), quarter), dtype);
  wf_tensor *angle = wf_mul(c, pos, wf_reshape(c, wf_value(m->theta), WF_SHAPE(m->H, 1, m->K)));
  return wf_cos(c, wf_add(c, angle, phase));
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const lightning *m = self;
  wf_ctx *c = r->c;
  wf_tensor *y[4], *wave = m->theta ? waves(r, m, x->dtype) : NULL;
  wf_use_qkv(r, &m->qkv, x, y);
  for (int i = 0; i < 2; i++) {
    y[i] = wf_silu(c, y[i]);
    if (m->theta) y[i] = wf_turned_heads(c, y[i], wave);
    if (m->rope) y[i] = wf_rotary(c, y[i], r->rows->pos, 10000, m->K);
  }
  wf_scan_in in = {.q = y[0], .k = y[1], .v = y[2]};
  in.g = wf_head_constants(c, m->decay, m->H, x->shape[0], x->dtype);
  wf_tensor *o = wf_reshape(c, wf_seq_scan(r, m->slot, &in, &m->scan), WF_SHAPE(-1, m->H * m->K));
  o = wf_norm(c, WF_NORM_RMS, o, NULL, NULL, m->eps);
  return wf_linear(c, wf_glu(c, WF_GLU_SIGMOID, y[3], o), wf_value(m->out), NULL);
}

static double flops(const void *self, int64_t T) {
  const lightning *m = self;
  (void)T;
  double d = (double)m->out->shape[0], keys = (double)(m->theta ? 2 * m->K : m->K);
  return 10 * d * d + 4 * (double)m->H * keys * (double)m->K;
}

const wf_layer_type wf_layer_lightning = {
    .kind = WF_LAYER_MIXER,
    .name = "lightning",
    .help =
        "TransNormer's linear attention: fixed decays by head and layer, learned rotary angles, output gate",
    .paper = "Qin et al. 2023",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
