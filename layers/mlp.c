/* The MLPs: plain (GELU, ReLU^2) and gated (SwiGLU, GeGLU; Shazeer 2020). */
#include "layers/layer.h"
#include "core/memory.h"

#include <math.h>

typedef enum act { GELU, GELU_TANH, RELU2, SWI, GE } act;

typedef struct options {
  int64_t width, multiple;
  double expand;
  bool bias, tanh;
} options;

typedef struct mlp {
  act act;
  wf_param *up, *up_bias, *gate, *gate_bias, *down, *down_bias;
} mlp;

static int64_t gated_width(int64_t d, const options *o) {
  double wide = isnan(o->expand) ? 8 * (double)d / 3 : o->expand * (double)d;
  return o->multiple * (int64_t)ceil(wide / (double)o->multiple);
}

static wf_status init(wf_build *b, const options *o, act kind, void **self) {
  mlp *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  m->act = kind;
  int64_t d = b->d_model, F = o->width;
  bool gated = kind == SWI || kind == GE;
  if (F == WF_AUTO_I64) F = gated ? gated_width(d, o) : 4 * d;
  if (gated) WF_TRY(wf_build_linear(b, "gate", d, F, b->init_std, &m->gate, o->bias ? &m->gate_bias : NULL));
  WF_TRY(wf_build_linear(b, "up", d, F, b->init_std, &m->up, o->bias ? &m->up_bias : NULL));
  return wf_build_linear(b, "down", F, d, b->out_std, &m->down, o->bias ? &m->down_bias : NULL);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const mlp *m = self;
  wf_ctx *c = r->c;
  wf_tensor *h;
  if (m->gate) {
    wf_tensor *w[] = {wf_value(m->gate), wf_value(m->up)},
              *b[] = {wf_value(m->gate_bias), wf_value(m->up_bias)}, *y[2];
    wf_linear_n(c, x, 2, w, b, y);
    h = wf_glu(c, m->act == SWI ? WF_GLU_SWI : WF_GLU_GE, y[0], y[1]);
  } else {
    h = wf_linear(c, x, wf_value(m->up), wf_value(m->up_bias));
    h = m->act == GELU ? wf_gelu(c, h) : m->act == GELU_TANH ? wf_gelu_tanh(c, h) : wf_relu2(c, h);
  }
  return wf_linear(c, h, wf_value(m->down), wf_value(m->down_bias));
}

static wf_status init_gelu(wf_build *b, const void *o, void **self) {
  return init(b, o, ((const options *)o)->tanh ? GELU_TANH : GELU, self);
}
static wf_status init_relu2(wf_build *b, const void *o, void **self) {
  return init(b, o, RELU2, self);
}
static wf_status init_swiglu(wf_build *b, const void *o, void **self) {
  return init(b, o, SWI, self);
}
static wf_status init_geglu(wf_build *b, const void *o, void **self) {
  return init(b, o, GE, self);
}

#define WIDTH(text) WF_OPT_I64F(options, width, "auto", 1, 1 << 24, WF_OPT_AUTO, text)
#define BIAS        WF_OPT_BOOL(options, bias, "false", "biases on the projections")

static const wf_option gelu_table[] = {
    WIDTH("hidden width; auto: 4 d_model"), BIAS,
    WF_OPT_BOOL(options, tanh, "false", "GPT-2's approximation of GELU by tanh"), WF_OPT_END};
static const wf_option plain_table[] = {WIDTH("hidden width; auto: 4 d_model"), BIAS, WF_OPT_END};
static const wf_option gated_table[] = {
    WIDTH("hidden width; auto: d_model x expand, rounded up to a multiple"),
    WF_OPT_F64F(options, expand, "auto", 0.001, 1024, WF_OPT_AUTO, "hidden width over d_model; auto: 8/3"),
    WF_OPT_I64(options, multiple, "256", 1, 1 << 20, "what the width is rounded up to"), BIAS, WF_OPT_END};

#define MLP(var, type_name, text, cite, opts, init_fn)        \
  const wf_layer_type var = {.kind = WF_LAYER_MLP,            \
                             .name = type_name,               \
                             .help = text,                    \
                             .paper = cite,                   \
                             .options = opts,                 \
                             .options_size = sizeof(options), \
                             .init = init_fn,                 \
                             .forward = forward};

MLP(wf_layer_gelu, "gelu", "up, GELU, down", "Hendrycks & Gimpel 2016", gelu_table, init_gelu)
MLP(wf_layer_relu2, "relu2", "up, squared ReLU, down", "So et al. 2021", plain_table, init_relu2)
MLP(wf_layer_swiglu, "swiglu", "SiLU(gate) . up, down", "Shazeer 2020", gated_table, init_swiglu)
MLP(wf_layer_geglu, "geglu", "GELU(gate) . up, down", "Shazeer 2020", gated_table, init_geglu)
