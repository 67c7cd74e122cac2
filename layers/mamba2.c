/* Mamba-2: the state-space dual, a linear recurrence with a scalar decay for each head (mixers 6).
 *
 *   [z, x, B, C, dt] = u Win;  [x, B, C] = SiLU(conv4([x, B, C]) + bias)
 *   dt = softplus(dt + dt_bias);  A = -exp(A_log)
 *   S_t = e^{dt_t A} S_{t-1} + dt_t B_t^T x_t;  y_t = C_t S_t + D x_t, B and C those of the head's group
 *   out = RMSNorm(y . SiLU(z)) Wout, the norm over each group of D_inner / groups channels
 *
 * Dao & Gu 2024. Parameters and first values as in the public implementation.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  int64_t head_dim, state, groups, conv_width;
  double expand, dt_min, dt_max, dt_limit_low, dt_limit_high;
} options;

static const wf_option table[] = {
    WF_OPT_F64(options, expand, "2", 0.01, 64, "inner width over d_model"),
    WF_OPT_I64(options, head_dim, "64", 1, 65536, "channels of a head; divides the inner width"),
    WF_OPT_I64(options, state, "128", 1, 65536, "size of the state for each channel, N"),
    WF_OPT_I64(options, groups, "1", 1, 65536, "groups of heads that share B and C"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolution sees"),
    WF_OPT_F64(options, dt_min, "0.001", 1e-8, 10, "least first time step"),
    WF_OPT_F64(options, dt_max, "0.1", 1e-8, 10, "largest first time step"),
    WF_OPT_F64(options, dt_limit_low, "0", 0, 1e6, "time steps are at least this"),
    WF_OPT_F64(options, dt_limit_high, "1e30", 1e-8, 1e30, "and at most this"),
    WF_OPT_END};

typedef struct mamba2 {
  int64_t D, H, P, N, G;
  double eps, low, high;
  wf_scan_options scan;
  wf_param *in, *dt_bias, *A_log, *skip, *norm, *out;
  wf_conv_part conv;
  int slot;
} mamba2;

static wf_status declare(wf_build *b, mamba2 *m, const options *o) {
  int64_t d = b->d_model, D = m->D, mixed = D + 2 * m->G * m->N;
  double out = 1 / sqrt((double)D * (double)b->n_layers);
  unsigned gate = WF_PARAM_NO_DECAY;
  WF_TRY(wf_build_param(b, "in.weight", 0, wf_init_uniform(1 / sqrt((double)d)),
                        WF_SHAPE(D + mixed + m->H, d), &m->in));
  WF_TRY(wf_part_conv(b, "conv", mixed, o->conv_width, wf_init_uniform(1 / sqrt((double)o->conv_width)), true,
                      true, &m->conv));
  WF_TRY(wf_build_param(b, "dt_bias", gate, wf_init_time_step(o->dt_min, o->dt_max), WF_SHAPE(m->H),
                        &m->dt_bias));
  WF_TRY(wf_build_param(b, "A_log", gate, wf_init_log_uniform(1, 16), WF_SHAPE(m->H), &m->A_log));
  WF_TRY(wf_build_param(b, "D", gate, wf_init_const(1), WF_SHAPE(m->H), &m->skip));
  WF_TRY(wf_build_param(b, "norm.weight", gate, wf_init_const(1), WF_SHAPE(D), &m->norm));
  WF_TRY(wf_build_param(b, "out.weight", 0, wf_init_uniform(out), WF_SHAPE(d, D), &m->out));
  return wf_seq_scan_state(b, "s", m->H, m->N, m->P, &m->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t D = (int64_t)llround((double)b->d_model * o->expand), H = D / o->head_dim;
  if (D < 1 || D % o->head_dim)
    return wf_hint(WF_FAIL(WF_EINVAL, "head_dim: %lld does not divide the inner width %lld",
                           (long long)o->head_dim, (long long)D),
                   "the inner width is d_model %lld x expand %g", (long long)b->d_model, o->expand);
  if (H % o->groups)
    return wf_hint(
        WF_FAIL(WF_EINVAL, "groups: %lld do not divide the %lld heads", (long long)o->groups, (long long)H),
        "there are d_model x expand / head_dim heads");
  if (o->dt_min > o->dt_max || o->dt_limit_low > o->dt_limit_high)
    return wf_hint(WF_FAIL(WF_EINVAL, "%s above %s", o->dt_min > o->dt_max ? "dt_min" : "dt_limit_low",
                           o->dt_min > o->dt_max ? "dt_max" : "dt_limit_high"),
                   "exchange the two");
  mamba2 *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  *m = (mamba2){.D = D, .H = H, .P = o->head_dim, .N = o->state, .G = o->groups, .eps = b->norm_eps};
  m->low = o->dt_limit_low, m->high = o->dt_limit_high;
  m->scan = (wf_scan_options){.scale = 1};
  return declare(b, m, o);
}

/* softplus(dt + bias) between the limits; the gradient is that of what is inside. */
static wf_tensor *time_steps(wf_ctx *c, const mamba2 *m, wf_tensor *dt) {
  dt = wf_softplus(c, wf_add(c, dt, wf_value(m->dt_bias)));
  if (m->low > 0) dt = wf_affine(c, wf_relu(c, wf_affine(c, dt, 1, -m->low)), 1, m->low);
  if (m->high < 1e30) dt = wf_affine(c, wf_relu(c, wf_affine(c, dt, -1, m->high)), -1, m->high);
  return dt;
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *u) {
  const mamba2 *m = self;
  wf_ctx *c = r->c;
  int64_t D = m->D, GN = m->G * m->N, mixed = D + 2 * GN;
  wf_tensor *all = wf_linear(c, u, wf_value(m->in), NULL);
  wf_tensor *z = wf_slice(c, all, 1, 0, D),
            *xbc = wf_use_conv(r, &m->conv, wf_slice(c, all, 1, D, D + mixed));
  wf_tensor *dt = time_steps(c, m, wf_slice(c, all, 1, D + mixed, D + mixed + m->H));
  wf_tensor *x = wf_reshape(c, wf_slice(c, xbc, 1, 0, D), WF_SHAPE(-1, m->H, m->P));
  wf_scan_in in = {.v = x, .w = dt};
  in.k = wf_reshape(c, wf_slice(c, xbc, 1, D, D + GN), WF_SHAPE(-1, m->G, m->N));
  in.q = wf_reshape(c, wf_slice(c, xbc, 1, D + GN, mixed), WF_SHAPE(-1, m->G, m->N));
  in.g = wf_mul(c, dt, wf_affine(c, wf_exp(c, wf_value(m->A_log)), -1, 0));
  wf_tensor *y = wf_seq_scan(r, m->slot, &in, &m->scan);
  y = wf_add(c, y, wf_mul(c, x, wf_reshape(c, wf_value(m->skip), WF_SHAPE(m->H, 1))));
  y = wf_glu(c, WF_GLU_SWI, z, wf_reshape(c, y, WF_SHAPE(-1, D)));
  y = wf_norm(c, WF_NORM_RMS, wf_reshape(c, y, WF_SHAPE(-1, m->G, D / m->G)), NULL, NULL, m->eps);
  y = wf_mul(c, wf_reshape(c, y, WF_SHAPE(-1, D)), wf_value(m->norm));
  return wf_linear(c, y, wf_value(m->out), NULL);
}

static double flops(const void *self, int64_t T) {
  const mamba2 *m = self;
  (void)T;
  return 2 * (double)(m->in->numel + m->out->numel + m->conv.weight->numel) + 4 * (double)(m->D * m->N);
}

const wf_layer_type wf_layer_mamba2 = {
    .kind = WF_LAYER_MIXER,
    .name = "mamba2",
    .help = "state-space dual: one decay a head from the time step, shared B and C, convolution, gated norm",
    .paper = "Dao & Gu 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
