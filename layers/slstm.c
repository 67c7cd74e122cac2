/* sLSTM: exponential gates with a stabiliser, and memory that mixes inside each head: strictly sequential
 * (mixers 7; cell: core/ops/recur.c).
 *
 *   c = SiLU(conv4(x) + b);  i~, f~ = W c,  z~, o~ = W x, each W block-diagonal over the heads
 *   h = slstm(i~, f~, z~, o~; R h_{t-1} + b), R block-diagonal;  y = LayerNorm per head(h)
 *
 * There is no output projection: the paper's block is this mixer and the MLP `geglu` of expand 1.3, multiple
 * 64, both behind a LayerNorm.
 *
 * Beck et al. 2024 (xLSTM), the xlstm package's sLSTMLayer, whose parameters these are; but here igate feeds
 * i and fgate feeds f, which the names there exchange, and the norm's weight is the factor, there stored
 * less 1.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef enum first_kernel { ZEROS, UNIFORM } first_kernel;
static const char *const first_kernels[] = {"zeros", "uniform", NULL};

typedef struct options {
  int64_t heads, conv_width;
  int recurrent_init;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads; memory mixes inside each"),
    WF_OPT_I64(options, conv_width, "4", 0, 64,
               "tokens the convolution before i and f sees; 0: no convolution"),
    WF_OPT_ENUM(options, recurrent_init, "zeros", first_kernels,
                "first recurrent weights: zeros, or uniform in +- d_model^(-1/2)"),
    WF_OPT_END};

enum { I, F, Z, O, GATES };

typedef struct slstm {
  int64_t H, D; /* heads, width of one */
  wf_conv_part conv;
  wf_param *w[GATES], *r, *bias, *norm;
  double eps;
  int slot;
} slstm;

/* Of f: 5 - 12 (j / (D-1))^p at channel j of a head, from remembering long to forgetting at once, with p from
 * 0.3 in the first block to 1.6 in the last; of the others 0. a: d, b: D, c: p. */
static double first_bias(const wf_init *w, wf_rng_key key, int64_t element) {
  (void)key;
  int64_t d = (int64_t)w->a, D = (int64_t)w->b;
  if (element / d != F) return 0;
  return 5 - (D > 1 ? 12 * pow((double)(element % D) / (double)(D - 1), w->c) : 0);
}

static wf_status declare(wf_build *b, slstm *m, const options *o) {
  static const char *const names[] = {"igate.weight", "fgate.weight", "zgate.weight", "ogate.weight"};
  int64_t d = b->d_model, H = m->H, D = m->D;
  double wide = sqrt(2 / (5 * (double)d)), r = 1 / sqrt((double)d), taps = 1 / sqrt((double)o->conv_width);
  double deep = b->n_layers > 1 ? (double)b->layer / (double)(b->n_layers - 1) : 0;
  wf_init conv = {.kind = WF_INIT_UNIFORM, .a = -taps, .b = taps},
          kernel = {.kind = WF_INIT_UNIFORM, .a = -r, .b = r},
          bias = {
              .kind = WF_INIT_FN, .a = (double)d, .b = (double)D, .c = 0.3 + 1.3 * deep, .fn = first_bias};
  if (o->conv_width > 0) WF_TRY(wf_part_conv(b, "conv", d, o->conv_width, conv, true, true, &m->conv));
  for (int g = 0; g < GATES; g++)
    WF_TRY(wf_build_param(b, names[g], 0, wf_init_normal(wide), WF_SHAPE(H, D, D), &m->w[g]));
  WF_TRY(wf_build_param(b, "recurrent_kernel", 0, o->recurrent_init == ZEROS ? wf_init_const(0) : kernel,
                        WF_SHAPE(H, GATES * D, D), &m->r));
  WF_TRY(wf_build_param(b, "bias", WF_PARAM_NO_DECAY, bias, WF_SHAPE(GATES * d), &m->bias));
  WF_TRY(wf_build_param(b, "norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(d), &m->norm));
  return wf_seq_recur_state(b, "s", WF_RECUR_SLSTM, H, D, &m->slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  slstm *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  m->H = o->heads, m->eps = b->norm_eps;
  WF_TRY(wf_head_size("memory", b->d_model, 1, m->H, &m->D));
  if (o->conv_width == 1)
    return wf_hint(WF_FAIL(WF_EINVAL, "conv_width: a convolution of one token"),
                   "0 is none; otherwise 2 or more");
  return declare(b, m, o);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const slstm *m = self;
  wf_ctx *c = r->c;
  wf_tensor *mixed = wf_use_conv(r, &m->conv, x);
  wf_tensor *heads[] = {wf_transpose(c, wf_as_heads(mixed, m->H), 0, 1),
                        wf_transpose(c, wf_as_heads(x, m->H), 0, 1)}; /* [H, n, D] */
  wf_recur_in in = {.cell = WF_RECUR_SLSTM,
                    .r = wf_same_variable(wf_value(m->r), WF_SHAPE(m->H, GATES, m->D, m->D)),
                    .b = wf_same_variable(wf_value(m->bias), WF_SHAPE(GATES, m->H, m->D))};
  for (int g = 0; g < GATES; g++) {
    wf_tensor *turned = wf_transpose(c, wf_value(m->w[g]), 1, 2);
    in.x[g] = wf_transpose(c, wf_matmul(c, heads[g == Z || g == O], turned), 0, 1);
  }
  return wf_head_norm(c, wf_seq_recur(r, m->slot, &in, NULL), wf_value(m->norm), m->eps);
}

const wf_layer_type wf_layer_slstm = {
    .kind = WF_LAYER_MIXER,
    .name = "slstm",
    .help = "xLSTM's scalar memory: exponential gates with stabiliser, memory that mixes inside each head",
    .paper = "Beck et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
};
