/* custom_op: a program outside Weft's tree that adds an op and a layer of its own.
 *
 *     cc custom_op.c $(pkg-config --cflags --libs --static weft) -o custom_op
 *     ./custom_op                    proves the gradients of both
 *     ./custom_op train CONFIG       is weft with them: a config can say  mlp: {type: squareplus}
 *
 * The op is squareplus (Barron 2021), y = (x + sqrt(x^2 + b)) / 2, a smooth ReLU: a description (shape rule,
 * gradient, kernel, samples) and a line of registration. The layer is an MLP with it, written in expressions.
 */
#include <math.h>
#include <stdio.h>

#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "core/op_def.h"
#include "core/parallel.h"
#include "experiments/command.h"
#include "layers/layer.h"

/* ---- the op ---- */

typedef struct squareplus_attr {
  double b;
} squareplus_attr;

/* The kernel, once for each real type; Weft's own are compiled for each instruction set as well, which a
 * user's may leave to -march. The input arrives contiguous, as the description does not declare it `strided`.
 */
#define SQUAREPLUS_KERNEL(type, root)                                                    \
  static wf_status squareplus_##type(const wf_call *call) {                              \
    const type *x = wf_data(call->in[0]);                                                \
    type *y = wf_data(call->out[0]), b = (type)((const squareplus_attr *)call->attr)->b; \
    WF_PARALLEL_FOR(begin, end, wf_numel(call->in[0]), 4) {                              \
      for (int64_t i = begin; i < end; i++) y[i] = (x[i] + root(x[i] * x[i] + b)) / 2;   \
    }                                                                                    \
    return WF_OK;                                                                        \
  }
SQUAREPLUS_KERNEL(float, sqrtf)
SQUAREPLUS_KERNEL(double, sqrt)

static const wf_cpu_kernel squareplus_cpu = {
    .f32 = {squareplus_float, squareplus_float, squareplus_float},
    .f64 = {squareplus_double, squareplus_double, squareplus_double},
};

static wf_status squareplus_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_SHAPE_CHECK(((const squareplus_attr *)call->attr)->b >= 0, "squareplus: b must not be negative");
  wf_desc_like(&out[0], call->in[0]);
  return WF_OK;
}

/* dy/dx = y / sqrt(x^2 + b) = y / (2 y - x), in ops that exist: nothing here asks for a device. */
static wf_status squareplus_vjp(const wf_vjp *g) {
  wf_scope s = wf_scope_open(g->ctx);
  wf_tensor *t = wf_empty_like(g->ctx, "activation", g->din[0]);
  wf_status st = wf_op_run(g->ctx, &wf_op_affine, 1, g->out, (double[]){2, 0}, 1, &t, 0);
  if (st == WF_OK) st = wf_op_run(g->ctx, &wf_op_sub, 2, (wf_tensor *[]){t, g->in[0]}, NULL, 1, &t, 0);
  if (st == WF_OK) st = wf_op_run(g->ctx, &wf_op_div, 2, (wf_tensor *[]){g->out[0], t}, NULL, 1, &t, 0);
  if (st == WF_OK)
    st = wf_op_run(g->ctx, &wf_op_mul, 2, (wf_tensor *[]){g->dout[0], t}, NULL, 1, g->din, g->add);
  wf_scope_close(g->ctx, s);
  return st;
}

/* Inputs for gradcheck and the comparison of devices: a matrix, and no elements at all. */
static wf_status squareplus_sample(wf_sample *s) {
  ((squareplus_attr *)(void *)s->attr)->b = 0.5;
  s->n_in = 1;
  s->in[0] = s->index == 0 ? wf_sample_real(s, WF_SHAPE(3, 5)) : wf_sample_real(s, WF_SHAPE(0, 5));
  return WF_OK;
}

static const wf_op op_squareplus = {
    .name = "squareplus",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_size = sizeof(squareplus_attr),
    .save_in = 1,
    .save_out = 1,
    .vjp_adds = 1,
    .infer = squareplus_infer,
    .vjp = squareplus_vjp,
    .cpu = &squareplus_cpu,
    .sample = squareplus_sample,
    .n_samples = 2,
};

static wf_tensor *squareplus(wf_ctx *c, wf_tensor *x, double b) {
  return wf_op_apply(c, &op_squareplus, 1, &x, &(squareplus_attr){b}, NULL);
}

/* ---- the layer: up, squareplus, down ---- */

typedef struct mlp_options {
  int64_t width;
  double b;
} mlp_options;

static const wf_option mlp_table[] = {
    WF_OPT_I64F(mlp_options, width, "auto", 1, 1 << 24, WF_OPT_AUTO, "hidden width; auto: 4 d_model"),
    WF_OPT_F64(mlp_options, b, "1", 0, 1e6, "how round the corner is; 0 is ReLU"), WF_OPT_END};

typedef struct mlp {
  wf_param *up, *down;
  double b;
} mlp;

static wf_status mlp_init(wf_build *build, const void *options, void **self) {
  const mlp_options *o = options;
  mlp *m = wf_calloc("model", 1, sizeof *m);
  if (!m) return WF_ENOMEM;
  *self = m;
  m->b = o->b;
  int64_t d = build->d_model, width = o->width == WF_AUTO_I64 ? 4 * d : o->width;
  WF_TRY(wf_build_linear(build, "up", d, width, build->init_std, &m->up, NULL));
  return wf_build_linear(build, "down", width, d, build->out_std, &m->down, NULL);
}

static wf_tensor *mlp_forward(wf_run *r, const void *self, wf_tensor *x) {
  const mlp *m = self;
  wf_tensor *h = squareplus(r->c, wf_linear(r->c, x, wf_value(m->up), NULL), m->b);
  return wf_linear(r->c, h, wf_value(m->down), NULL);
}

static const wf_layer_type layer_squareplus = {
    .kind = WF_LAYER_MLP,
    .name = "squareplus",
    .help = "up, squareplus, down",
    .paper = "Barron 2021",
    .options = mlp_table,
    .options_size = sizeof(mlp_options),
    .init = mlp_init,
    .forward = mlp_forward,
};

/* ---- proof ---- */

static wf_status layer_fn(wf_ctx *c, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                          wf_tensor **out) {
  (void)n_in, (void)n_out;
  wf_run r = {.c = c};
  out[0] = layer_squareplus.forward(&r, *(void *const *)arg, in[0]);
  return WF_OK;
}

/* The gradients in x and in both weights, of 5 tokens of width 3. */
static wf_status check_layer(wf_ctx *c, wf_params *params, void **self) {
  wf_state_spec state = {0};
  wf_build build = {.params = params,
                    .state = &state,
                    .prefix = "mlp",
                    .d_model = 3,
                    .n_layers = 1,
                    .init_std = 0.5,
                    .out_std = 0.5};
  WF_TRY(layer_squareplus.init(&build, &(mlp_options){.width = 4, .b = 1}, self));
  WF_TRY(wf_params_allocate(params, c, WF_F64, NULL, NULL));
  WF_TRY(wf_params_init(params, 1));
  double x[15];
  for (int i = 0; i < 15; i++) x[i] = sin(i);
  wf_tensor *in[] = {wf_from_host(c, "example", WF_F64, WF_SHAPE(5, 3), x), params->param[0]->value,
                     params->param[1]->value};
  WF_TRY(wf_ctx_check(c));
  return wf_gradcheck(c, layer_fn, self, 3, in, 1, NULL);
}

static wf_status prove(wf_ctx *c) {
  WF_TRY(wf_gradcheck_op(c, wf_op_find("squareplus")));
  wf_params params = {0};
  void *self = NULL;
  wf_status st = check_layer(c, &params, &self);
  wf_free(self);
  wf_params_free(&params);
  return st;
}

static wf_status run(void) {
  wf_device *device = NULL;
  wf_ctx *c = NULL;
  wf_status st = wf_device_open(WF_CPU, 0, &device);
  if (st == WF_OK) st = wf_ctx_create(device, &c);
  if (st == WF_OK) st = prove(c);
  wf_ctx_free(c);
  wf_device_close(device);
  return st;
}

int main(int argc, char **argv) {
  wf_status st = wf_op_register(&op_squareplus);
  if (st == WF_OK) st = wf_layer_register(&layer_squareplus);
  if (st == WF_OK && argc > 1) return wf_program(wf_commands, argc, (const char *const *)argv);
  if (st == WF_OK) st = run();
  if (st != WF_OK) {
    fprintf(stderr, "%s\nhint: %s\n%s", wf_error_message(), wf_error_hint(), wf_error_trace());
    return 1;
  }
  puts("the gradients of squareplus and of its layer agree with central differences");
  return 0;
}
