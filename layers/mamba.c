/* Mamba: a selective state space, N states for each channel with decays of their own (mixers 5).
 *
 *   [x, z] = u Win;   x = SiLU(conv4(x) + bias);   [dt, B, C] = x Wx
 *   dt = softplus(dt Wdt + bias);   A = -exp(A_log)
 *   h_t[d,n] = e^{dt_t[d] A[d,n]} h_{t-1}[d,n] + dt_t[d] B_t[n] x_t[d]
 *   y_t[d] = sum_n C_t[n] h_t[d,n] + D[d] x_t[d];   out = (y . SiLU(z)) Wout
 *
 * Gu & Dao 2023. Parameters and first values as in the public implementation: A_log = log(1 .. N), the bias
 * of dt such that the first time steps are log-uniform.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  int64_t state, conv_width, dt_rank;
  double expand, dt_min, dt_max;
} options;

static const wf_option table[] = {
    WF_OPT_F64(options, expand, "2", 0.01, 64, "inner width over d_model"),
    WF_OPT_I64(options, state, "16", 1, 65536, "size of the state for each channel, N"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolution sees"),
    WF_OPT_I64F(options, dt_rank, "auto", 1, 65536, WF_OPT_AUTO,
                "rank of the time steps' projection; auto: d_model / 16, rounded up"),
    WF_OPT_F64(options, dt_min, "0.001", 1e-8, 10, "least first time step"),
    WF_OPT_F64(options, dt_max, "0.1", 1e-8, 10, "largest first time step"),
    WF_OPT_END};

typedef struct mamba {
  int64_t D, N, R;
  wf_param *in, *x, *dt, *dt_bias, *A_log, *skip, *out;
  wf_conv_part conv;
  int slot;
} mamba;

static double log_count(const wf_init *w, wf_rng_key key, int64_t element) {
  (void)key;
  return log((double)(1 + element % (int64_t)w->a));
}

static wf_status declare(wf_build *b, mamba *m, const options *o) {
  int64_t d = b->d_model, D = m->D, N = m->N, R = m->R;
  double wide = 1 / sqrt((double)D);
  unsigned gate = WF_PARAM_NO_DECAY;
  wf_init counts = {.kind = WF_INIT_FN, .a = (double)N, .fn = log_count};
  WF_TRY(wf_build_param(b, "in.weight", 0, wf_init_uniform(1 / sqrt((double)d)), WF_SHAPE(2 * D, d), &m->in));
  WF_TRY(wf_part_conv(b, "conv", D, o->conv_width, wf_init_uniform(1 / sqrt((double)o->conv_width)), true,
                      true, &m->conv));
  WF_TRY(wf_build_param(b, "x.weight", 0, wf_init_uniform(wide), WF_SHAPE(R + 2 * N, D), &m->x));
  WF_TRY(wf_build_param(b, "dt.weight", 0, wf_init_uniform(1 / sqrt((double)R)), WF_SHAPE(D, R), &m->dt));
  WF_TRY(
      wf_build_param(b, "dt.bias", gate, wf_init_time_step(o->dt_min, o->dt_max), WF_SHAPE(D), &m->dt_bias));
  WF_TRY(wf_build_param(b, "A_log", gate, counts, WF_SHAPE(D, N), &m->A_log));
  WF_TRY(wf_build_param(b, "D", gate, wf_init_const(1), WF_SHAPE(D), &m->skip));
  WF_TRY(wf_build_param(b, "out.weight", 0, wf_init_uniform(wide / sqrt((double)b->n_layers)), WF_SHAPE(d, D),
                        &m->out));
  return wf_seq_selective_state(b, "h", D, N, &m->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t D = (int64_t)llround((double)b->d_model * o->expand);
  if (D < 1)
    return wf_hint(WF_FAIL(WF_EINVAL, "expand: an inner width of 0"),
                   "the inner width is d_model %lld x expand %g", (long long)b->d_model, o->expand);
  if (o->dt_min > o->dt_max) return wf_hint(WF_FAIL(WF_EINVAL, "dt_min above dt_max"), "exchange the two");
  mamba *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  *m = (mamba){.D = D, .N = o->state, .R = o->dt_rank == WF_AUTO_I64 ? (b->d_model + 15) / 16 : o->dt_rank};
  return declare(b, m, o);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *u) {
  const mamba *m = self;
  wf_ctx *c = r->c;
  int64_t D = m->D, N = m->N, R = m->R;
  wf_tensor *xz = wf_linear(c, u, wf_value(m->in), NULL);
  wf_tensor *z = wf_slice(c, xz, 1, D, 2 * D);
  wf_selective_in in = {.x = wf_use_conv(r, &m->conv, wf_slice(c, xz, 1, 0, D)), .D = wf_value(m->skip)};
  wf_tensor *low = wf_linear(c, in.x, wf_value(m->x), NULL);
  in.dt = wf_softplus(c, wf_linear(c, wf_slice(c, low, 1, 0, R), wf_value(m->dt), wf_value(m->dt_bias)));
  in.A = wf_affine(c, wf_exp(c, wf_value(m->A_log)), -1, 0);
  in.B = wf_slice(c, low, 1, R, R + N);
  in.C = wf_slice(c, low, 1, R + N, R + 2 * N);
  wf_tensor *y = wf_seq_selective(r, m->slot, &in);
  return wf_linear(c, wf_glu(c, WF_GLU_SWI, z, y), wf_value(m->out), NULL);
}

static double flops(const void *self, int64_t T) {
  const mamba *m = self;
  (void)T;
  double weights =
      (double)(m->in->numel + m->conv.weight->numel + m->x->numel + m->dt->numel + m->out->numel);
  return 2 * weights + 8 * (double)(m->D * m->N); /* an exponential counted as one */
}

const wf_layer_type wf_layer_mamba = {
    .kind = WF_LAYER_MIXER,
    .name = "mamba",
    .help =
        "selective state space: a decay for each channel and state from the time steps, convolution, gate",
    .paper = "Gu & Dao 2023",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
