/* GateLoop: linear attention with data-controlled decays, real or complex (mixers 2).
 *
 *   q, k, v = x Wq, x Wk, x Wv;  for each channel of the keys a_t = sigmoid(x Wa + b) e^{i x Wt}
 *   S_t = diag(a_t) S_{t-1} + k_t^T v_t;  o_t = K^{-1/2} Re(q_t S_t)
 *   y = (RMSNorm per head(o) . SiLU(x Wg)) Wo
 *
 * Complex decays are real ones between turned queries and keys: with phi the running sum of theta, Re of the
 * product of phases from j to t is cos(phi_t - phi_j), so q and k become [q cos phi, q sin phi] and the state
 * has 2 K rows. phi is summed in float64 and the state holds it. Katsch 2023.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  int64_t heads;
  double expand_k, expand_v;
  bool complex;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads"),
    WF_OPT_F64(options, expand_k, "0.5", 0.001, 64, "width of all keys over d_model"),
    WF_OPT_F64(options, expand_v, "1", 0.001, 64, "width of all values over d_model"),
    WF_OPT_BOOL(options, complex, "false", "decays turn as well: a data-controlled phase for each channel"),
    WF_OPT_END};

typedef struct gateloop {
  int64_t H, K, V;
  wf_scan_options scan;
  wf_qkv_part qkv;
  wf_param *decay, *decay_bias, *phase;
  wf_out_part out;
  int slot, phase_slot;
} gateloop;

/* Memories of 2 to 1,000 tokens over the channels of a head. */
static double first_bias(const wf_init *w, wf_rng_key key, int64_t element) {
  (void)key;
  double at = w->a > 1 ? (double)(element % (int64_t)w->a) / (w->a - 1) : 0.5;
  return log(2) + at * log(500);
}

static wf_status declare(wf_build *b, gateloop *g, const options *o) {
  int64_t H = g->H, heads[] = {H, H, H}, size[] = {g->K, g->K, g->V};
  WF_TRY(wf_part_qkv(b, heads, size, H * g->V, 0, &g->qkv));
  WF_TRY(wf_build_linear(b, "a", b->d_model, H * g->K, b->init_std, &g->decay, NULL));
  WF_TRY(wf_build_param(b, "a.bias", WF_PARAM_NO_DECAY,
                        (wf_init){.kind = WF_INIT_FN, .a = (double)g->K, .fn = first_bias},
                        WF_SHAPE(H * g->K), &g->decay_bias));
  if (o->complex) {
    WF_TRY(wf_build_linear(b, "theta", b->d_model, H * g->K, b->init_std, &g->phase, NULL));
    WF_TRY(wf_build_state_exact(b, "phi", false, WF_SHAPE(H * g->K), &g->phase_slot));
  }
  WF_TRY(wf_part_out(b, H, g->V, WF_GLU_SWI, b->norm_eps, &g->out));
  return wf_seq_scan_state(b, "s", H, o->complex ? 2 * g->K : g->K, g->V, &g->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t K, V;
  WF_TRY(wf_head_size("keys", b->d_model, o->expand_k, o->heads, &K));
  WF_TRY(wf_head_size("values", b->d_model, o->expand_v, o->heads, &V));
  gateloop *g = wf_calloc("model", 1, sizeof *g);
  if (!g) return WF_ENOMEM;
  *self = g;
  *g = (gateloop){.H = o->heads, .K = K, .V = V};
  g->scan = (wf_scan_options){.scale = 1 / sqrt((double)K)};
  return declare(b, g, o);
}

static void turn(wf_run *r, const gateloop *g, wf_tensor *x, wf_scan_in *in) {
  static const double quarter[] = {0, -1.57079632679489661923};
  wf_ctx *c = r->c;
  int64_t n = x->shape[0];
  wf_tensor *theta = wf_cast(c, wf_linear(c, x, wf_value(g->phase), NULL), WF_F64);
  wf_tensor *phi =
      wf_reshape(c, wf_seq_diag(r, g->phase_slot, theta, NULL, NULL), WF_SHAPE(n, g->H, 1, g->K));
  wf_tensor *wave = wf_cos(c, wf_add(c, phi, wf_from_host(c, "constant", WF_F64, WF_SHAPE(2, 1), quarter)));
  wave = wf_cast(c, wave, x->dtype);
  in->q = wf_turned_heads(c, in->q, wave);
  in->k = wf_turned_heads(c, in->k, wave);
  in->g = wf_expand(c, wf_reshape(c, in->g, WF_SHAPE(n, g->H, 1, g->K)), WF_SHAPE(n, g->H, 2, g->K));
  in->g = wf_reshape(c, in->g, WF_SHAPE(n, g->H, 2 * g->K));
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const gateloop *g = self;
  wf_ctx *c = r->c;
  wf_tensor *y[4], *pre = wf_linear(c, x, wf_value(g->decay), wf_value(g->decay_bias));
  wf_use_qkv(r, &g->qkv, x, y);
  wf_scan_in in = {.q = y[0], .k = y[1], .v = y[2], .g = wf_as_heads(wf_logsigmoid(c, pre), g->H)};
  if (g->phase) turn(r, g, x, &in);
  return wf_use_out(r, &g->out, wf_seq_scan(r, g->slot, &in, &g->scan), y[3]);
}

static double flops(const void *self, int64_t T) {
  const gateloop *g = self;
  (void)T;
  double d = (double)g->out.out->shape[0], HK = (double)(g->H * g->K), HV = (double)(g->H * g->V);
  double turns = g->phase ? 2 : 1;
  return 2 * d * ((2 + turns) * HK + 3 * HV) + 4 * turns * HK * (double)g->V;
}

const wf_layer_type wf_layer_gateloop = {
    .kind = WF_LAYER_MIXER,
    .name = "gateloop",
    .help = "linear attention with data-controlled decays of each channel, real or complex, output gate",
    .paper = "Katsch 2023",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
