/* custom_op: a program outside Weft's tree that adds an op of its own and proves its gradient.
 *
 *     cc custom_op.c $(pkg-config --cflags --libs --static weft) -o custom_op && ./custom_op
 *
 * The op is squareplus (Barron 2021), y = (x + sqrt(x^2 + b)) / 2, a smooth ReLU. It needs a description
 * (shape rule, gradient, kernel, samples) and one line of registration; then the tape differentiates it and
 * gradcheck knows it.
 */
#include <math.h>
#include <stdio.h>

#include "autograd/gradcheck.h"
#include "core/op_def.h"
#include "core/parallel.h"

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

static wf_status run(wf_ctx *c) {
  WF_TRY(wf_op_register(&op_squareplus));
  WF_TRY(wf_gradcheck_op(c, wf_op_find("squareplus")));

  float values[] = {-2, -1, 0, 1, 2}, out[5];
  WF_TRY(wf_to_host(squareplus(c, wf_from_host(c, "example", WF_F32, WF_SHAPE(5), values), 1), out));
  for (int i = 0; i < 5; i++) printf("squareplus(%g) = %.6f\n", (double)values[i], (double)out[i]);
  return wf_ctx_check(c);
}

int main(void) {
  wf_device *device = NULL;
  wf_ctx *c = NULL;
  wf_status st = wf_device_open(WF_CPU, 0, &device);
  if (st == WF_OK) st = wf_ctx_create(device, &c);
  if (st == WF_OK) st = run(c);
  if (st == WF_OK)
    puts("gradients agree with central differences");
  else
    fprintf(stderr, "%s\nhint: %s\n%s", wf_error_message(), wf_error_hint(), wf_error_trace());
  wf_ctx_free(c);
  wf_device_close(device);
  return st == WF_OK ? 0 : 1;
}
