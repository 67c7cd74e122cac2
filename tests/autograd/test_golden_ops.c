/* Ops and their gradients against PyTorch's, tests/golden/ops.safetensors, in both precisions. */
#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "core/ops.h"
#include "core/safetensors.h"
#include "tests/check_main.h"

#include <stdio.h>
#include <string.h>

static wf_device *dev;
static wf_ctx *ctx;
static wf_safetensors *golden;

static void setup(void) {
  ck_assert(wf_device_open(WF_CPU, 0, &dev) == WF_OK);
  ck_assert(wf_ctx_create(dev, &ctx) == WF_OK);
  wf_status s = wf_st_open(WEFT_SOURCE_DIR "/tests/golden/ops.safetensors", &golden);
  ck_assert_msg(s == WF_OK, "%s", wf_error_message());
}
static void teardown(void) {
  wf_st_close(golden);
  wf_ctx_free(ctx);
  wf_device_close(dev);
  ck_assert_int_eq(wf_mem_live(), 0);
}

static wf_tensor *load(const char *op, const char *name, wf_dtype real) {
  char full[96];
  snprintf(full, sizeof full, "%s.%s", op, name);
  const wf_st_info *info;
  ck_assert_msg(wf_st_find(golden, full, &info) == WF_OK, "%s", wf_error_message());
  double *v = wf_alloc("test", (size_t)info->bytes);
  ck_assert(wf_st_read(golden, info, 0, info->count, v) == WF_OK);
  wf_dtype dtype = info->dtype == WF_ST_I64 ? WF_I64 : WF_F64;
  wf_tensor *t = wf_from_host(ctx, "test", dtype, info->ndim, info->shape, v);
  wf_free(v);
  return dtype == WF_I64 ? t : wf_cast(ctx, t, real);
}

static void expect(const char *op, const char *name, wf_tensor *got, wf_dtype real) {
  wf_tensor *want = load(op, name, WF_F64);
  int64_t n = wf_numel(want);
  ck_assert_msg(wf_ctx_check(ctx) == WF_OK, "%s.%s: %s", op, name, wf_error_message());
  ck_assert_int_eq(wf_numel(got), n);
  double *a = wf_alloc("test", (size_t)n * sizeof *a), *b = wf_alloc("test", (size_t)n * sizeof *b);
  ck_assert(wf_to_host(wf_cast(ctx, got, WF_F64), a) == WF_OK && wf_to_host(want, b) == WF_OK);
  wf_error e = wf_compare(n, a, b);
  double tolerance = real == WF_F64 ? 1e-12 : 1e-5;
  ck_assert_msg(e.err2 <= tolerance && e.errmax <= 10 * tolerance, "%s.%s in %s: err2 %.2e, errmax %.2e", op,
                name, wf_dtype_name(real), e.err2, e.errmax);
  wf_free(a);
  wf_free(b);
}

/* One case: inputs by name, how they make y, and what PyTorch says of y and of each input's gradient. */
typedef struct recorded {
  const char *op, *in[3]; /* a name with a dot is a full name of another op's input */
  wf_tensor *(*fn)(wf_tensor **in);
} recorded;

static wf_tensor *positions(int64_t batch, int64_t len, int64_t first) {
  int64_t pos[64], n = batch * len;
  for (int64_t i = 0; i < n; i++) pos[i] = first + i % len;
  return wf_from_host(ctx, "test", WF_I64, 1, &n, pos);
}
static wf_tensor *turn(wf_tensor *x, int64_t first, int64_t dim) {
  wf_tensor *flat = wf_reshape(ctx, x, WF_SHAPE(-1, x->shape[2], x->shape[3]));
  return wf_reshape(ctx, wf_rotary(ctx, flat, positions(x->shape[0], x->shape[1], first), 10000, dim),
                    x->ndim, x->shape);
}
static wf_tensor *rotary_full(wf_tensor **in) {
  return turn(in[0], 0, 8);
}
static wf_tensor *rotary_partial(wf_tensor **in) {
  return turn(in[0], 0, 4);
}
static wf_tensor *rotary_far(wf_tensor **in) {
  return turn(in[0], 5000, 8);
}
static wf_tensor *rmsnorm(wf_tensor **in) {
  return wf_norm(ctx, WF_NORM_RMS, in[0], in[1], NULL, 1e-6);
}
static wf_tensor *layernorm(wf_tensor **in) {
  return wf_norm(ctx, WF_NORM_LAYER, in[0], in[1], in[2], 1e-5);
}
static wf_tensor *gelu(wf_tensor **in) {
  return wf_gelu(ctx, in[0]);
}
static wf_tensor *gelu_tanh(wf_tensor **in) {
  return wf_gelu_tanh(ctx, in[0]);
}
static wf_tensor *silu(wf_tensor **in) {
  return wf_silu(ctx, in[0]);
}
static wf_tensor *relu2(wf_tensor **in) {
  return wf_relu2(ctx, in[0]);
}
static wf_tensor *swiglu(wf_tensor **in) {
  return wf_glu(ctx, WF_GLU_SWI, in[0], in[1]);
}

static const recorded cases[] = {
    {"rotary.full", {"rotary.x"}, rotary_full},
    {"rotary.partial", {"rotary.x"}, rotary_partial},
    {"rotary.far", {"rotary.x"}, rotary_far},
    {"rmsnorm", {"x", "weight"}, rmsnorm},
    {"layernorm", {"x", "weight", "bias"}, layernorm},
    {"act.gelu_erf", {"act.x"}, gelu},
    {"act.gelu_tanh", {"act.x"}, gelu_tanh},
    {"act.silu", {"act.x"}, silu},
    {"act.relu2", {"act.x"}, relu2},
    {"swiglu", {"gate", "up"}, swiglu},
};

START_TEST(as_pytorch) {
  const recorded *r = &cases[_i / 2];
  wf_dtype real = _i % 2 ? WF_F32 : WF_F64;
  wf_tensor *in[3] = {NULL};
  wf_leaf leaf[3];
  memset(leaf, 0, sizeof leaf);
  wf_tape *t;
  ck_assert(wf_tape_create(ctx, &t) == WF_OK);
  for (int i = 0; i < 3 && r->in[i]; i++) {
    char op[32];
    const char *dot = strchr(r->in[i], '.');
    snprintf(op, sizeof op, "%.*s", dot ? (int)(dot - r->in[i]) : 0, r->in[i]);
    in[i] = dot ? load(op, dot + 1, real) : load(r->op, r->in[i], real);
    leaf[i].grad = wf_zeros(ctx, "test", real, in[i]->ndim, in[i]->shape);
    ck_assert(wf_tape_watch(t, in[i], &leaf[i]) == WF_OK);
  }
  wf_tape_record(t);
  wf_tensor *y = r->fn(in), *dy = load(r->op, "dy", real);
  wf_tape_pause(t);
  expect(r->op, "y", y, real);
  ck_assert_msg(wf_backward(t, 1, &y, &dy) == WF_OK, "%s", wf_error_message());
  for (int i = 0; i < 3 && r->in[i]; i++) {
    char name[32];
    const char *dot = strchr(r->in[i], '.');
    snprintf(name, sizeof name, "d%s", dot ? dot + 1 : r->in[i]);
    expect(r->op, name, leaf[i].grad, real);
  }
  wf_tape_free(t);
}
END_TEST

/* Mean over the labels that count; with and without z-loss; and with the gradient formed in place of logits
 * that nobody else holds. */
START_TEST(cross_entropy) {
  wf_dtype real = _i % 2 ? WF_F32 : WF_F64;
  bool z = _i / 2 % 2, in_place = _i / 4;
  wf_tensor *logits = load("ce", "logits", real), *targets = load("ce", "targets", real);
  int64_t n = logits->shape[0], wide[64];
  int32_t label[64], counted = 0;
  ck_assert(wf_to_host(targets, wide) == WF_OK);
  for (int64_t i = 0; i < n; i++) counted += (label[i] = (int32_t)wide[i]) >= 0;
  wf_tensor *labels = wf_from_host(ctx, "test", WF_I32, 1, &n, label);
  wf_leaf leaf = {.grad = wf_zeros(ctx, "test", real, 2, logits->shape)};
  wf_tape *t;
  ck_assert(wf_tape_create(ctx, &t) == WF_OK);
  ck_assert(wf_tape_watch(t, logits, &leaf) == WF_OK);
  wf_tape_record(t);
  wf_scope s = wf_scope_open(ctx);
  wf_tensor *x = wf_affine(ctx, logits, 1, 0);
  wf_tensor *each = wf_xent(ctx, x, labels, z ? 0.01 : 0);
  wf_tensor *mean = wf_affine(ctx, wf_sum_all(ctx, each), 1.0 / counted, 0);
  if (in_place)
    mean = wf_scope_return(ctx, s, mean);
  else
    expect("ce", "nll", z ? wf_xent(ctx, logits, labels, 0) : each, real);
  wf_tape_pause(t);
  expect(z ? "ce.z" : "ce", "loss", mean, real);
  ck_assert_msg(wf_backward(t, 1, &mean, NULL) == WF_OK, "%s", wf_error_message());
  wf_tape_free(t);
  expect(z ? "ce.z" : "ce", "dlogits", leaf.grad, real);
}
END_TEST

static Suite *golden_suite(void) {
  Suite *s = suite_create("ops as PyTorch's");
  TCase *t = tcase_create("golden");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_loop_test(t, as_pytorch, 0, 2 * (int)(sizeof cases / sizeof *cases));
  tcase_add_loop_test(t, cross_entropy, 0, 8);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(golden_suite)
