/* minGRU and minLSTM: gated recurrences whose gates see the token alone, so that they are scans (Feng et al.
 * 2024, Were RNNs All We Needed?).
 *
 *   minGRU    u = x Wz + bz                                            h~ = x Wh + bh
 *   minLSTM   u = logsigmoid(x Wi + bi) - logsigmoid(x Wf + bf)        h~ = x Wh + bh
 *   both      h_t = sigmoid(-u_t) . h_{t-1} + sigmoid(u_t) . g(h~_t),   h_0 = 0;    y = h Wo
 *
 * For minGRU sigmoid(u) is the update gate z; for minLSTM it is i / (f + i), the input gate of the two
 * normalised ones. The decay stays in log space, logsigmoid(-u), so gates that are shut or open keep their
 * digits. g is x + 1/2 for x >= 0, else sigmoid(x), as in the paper's log-space form, in which its
 * experiments run; `positive: false` is the plain form, g(x) = x. Wo is there where the inner width differs
 * from d_model, as public code has it.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  double expand;
  int64_t conv_width;
  bool positive, bias, conv;
} options;

static const wf_option table[] = {
    WF_OPT_F64(options, expand, "1.5", 0.01, 64, "inner width over d_model; 1: no output projection"),
    WF_OPT_BOOL(options, positive, "true", "candidates go through x + 1/2 for x >= 0, else sigmoid(x)"),
    WF_OPT_BOOL(options, bias, "true", "biases on gates and candidates"),
    WF_OPT_BOOL(options, conv, "false", "short convolution before the gates"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolution sees"),
    WF_OPT_END};

enum { MAX_PARTS = 3 };

typedef struct minrnn {
  int parts; /* candidate and gates */
  bool positive;
  wf_param *w[MAX_PARTS], *b[MAX_PARTS], *out;
  wf_conv_part conv;
  int slot;
} minrnn;

static wf_status declare(wf_build *b, const options *o, const char *const *names, int64_t width, minrnn *m) {
  int64_t d = b->d_model;
  if (o->conv)
    WF_TRY(wf_part_conv(b, "conv", d, o->conv_width, wf_init_uniform(1 / sqrt((double)o->conv_width)), true,
                        false, &m->conv));
  for (; names[m->parts]; m->parts++)
    WF_TRY(wf_build_linear(b, names[m->parts], d, width, b->init_std, &m->w[m->parts],
                           o->bias ? &m->b[m->parts] : NULL));
  if (width != d) WF_TRY(wf_build_linear(b, "o", width, d, b->out_std, &m->out, NULL));
  return wf_seq_diag_state(b, "h", width, &m->slot);
}

static wf_status init(wf_build *b, const options *o, const char *const *names, void **self) {
  int64_t width = (int64_t)llround((double)b->d_model * o->expand);
  if (width < 1)
    return wf_hint(WF_FAIL(WF_EINVAL, "expand: an inner width of 0"),
                   "the inner width is d_model %lld x expand %g", (long long)b->d_model, o->expand);
  minrnn *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  m->positive = o->positive;
  return declare(b, o, names, width, m);
}
static wf_status init_gru(wf_build *b, const void *opts, void **self) {
  return init(b, opts, (const char *const[]){"h", "z", NULL}, self);
}
static wf_status init_lstm(wf_build *b, const void *opts, void **self) {
  return init(b, opts, (const char *const[]){"h", "i", "f", NULL}, self);
}

/* x + 1/2 for x >= 0, else sigmoid(x): above 0 the one term is x and the other 1/2, below 0 and sigmoid(x).
 */
static wf_tensor *positive(wf_ctx *c, wf_tensor *x) {
  wf_tensor *above = wf_relu(c, x);
  return wf_add(c, above, wf_sigmoid(c, wf_sub(c, x, above)));
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const minrnn *m = self;
  wf_ctx *c = r->c;
  wf_tensor *w[MAX_PARTS], *b[MAX_PARTS], *y[MAX_PARTS];
  for (int i = 0; i < m->parts; i++) w[i] = wf_value(m->w[i]), b[i] = wf_value(m->b[i]);
  wf_linear_n(c, wf_use_conv(r, &m->conv, x), m->parts, w, b, y);
  wf_tensor *u = m->parts == 2 ? y[1] : wf_sub(c, wf_logsigmoid(c, y[1]), wf_logsigmoid(c, y[2]));
  wf_tensor *write = wf_mul(c, wf_sigmoid(c, u), m->positive ? positive(c, y[0]) : y[0]);
  wf_tensor *h = wf_seq_diag(r, m->slot, write, wf_logsigmoid(c, wf_affine(c, u, -1, 0)), NULL);
  return m->out ? wf_linear(c, h, wf_value(m->out), NULL) : h;
}

static double flops(const void *self, int64_t T) {
  const minrnn *m = self;
  (void)T;
  double weights = (double)m->w[0]->numel * m->parts + (m->out ? (double)m->out->numel : 0);
  return 2 * weights + 12 * (double)m->w[0]->shape[0];
}

const wf_layer_type wf_layer_mingru = {
    .kind = WF_LAYER_MIXER,
    .name = "mingru",
    .help = "GRU whose gate and candidate see the token alone: a decayed sum for each channel",
    .paper = "Feng et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init_gru,
    .forward = forward,
    .flops = flops,
};

const wf_layer_type wf_layer_minlstm = {
    .kind = WF_LAYER_MIXER,
    .name = "minlstm",
    .help = "LSTM whose gates and candidate see the token alone, its two gates normalised to sum to 1",
    .paper = "Feng et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init_lstm,
    .forward = forward,
    .flops = flops,
};
