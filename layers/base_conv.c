/* BaseConv: the gated convolution to which Zoology reduces its kin (Arora et al. 2023).
 *
 *   y = (x W + b) . (conv_w(x) + b2)
 *
 * The filter is causal, one a channel, of `conv_width` taps that are parameters. Filters as long as the
 * sequence, made by a network of the position, are not offered.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef struct options {
  int64_t conv_width;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, conv_width, "3", 2, 1024, "tokens the convolution sees"), WF_OPT_END};

typedef struct base_conv {
  wf_param *w, *b;
  wf_conv_part conv;
} base_conv;

static wf_status init(wf_build *b, const void *opts, void **self) {
  int64_t width = ((const options *)opts)->conv_width, d = b->d_model;
  base_conv *k = wf_calloc("model", 1, sizeof *k);
  if (!k) return WF_ENOMEM;
  *self = k;
  WF_TRY(wf_build_linear(b, "projection", d, d, b->init_std, &k->w, &k->b));
  return wf_part_conv(b, "conv", d, width, wf_init_uniform(1 / sqrt((double)width)), true, false, &k->conv);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const base_conv *k = self;
  return wf_mul(r->c, wf_linear(r->c, x, wf_value(k->w), wf_value(k->b)), wf_use_conv(r, &k->conv, x));
}

static double flops(const void *self, int64_t T) {
  const base_conv *k = self;
  (void)T;
  return 2 * (double)(k->w->numel + k->conv.weight->numel);
}

const wf_layer_type wf_layer_base_conv = {
    .kind = WF_LAYER_MIXER,
    .name = "base_conv",
    .help = "gated convolution: a projection times a short causal filter of each channel",
    .paper = "Arora et al. 2023",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
