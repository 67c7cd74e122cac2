/* Every op of the table that has a CUDA kernel, on its samples, against the CPU. Those without are named. */
#include <stdio.h>
#include <string.h>

#include "autograd/tape.h"
#include "tests/core/op_trial.h"
#include "tests/gpu.h"

static wf_device *cpu, *gpu;
static wf_ctx *on_cpu, *on_gpu;

static void setup(void) {
  ck_assert(wf_device_open(WF_CPU, 0, &cpu) == WF_OK && wf_ctx_create(cpu, &on_cpu) == WF_OK);
  ck_assert_msg(wf_device_open(WF_CUDA, 0, &gpu) == WF_OK && wf_ctx_create(gpu, &on_gpu) == WF_OK, "%s",
                wf_error_message());
}
static void teardown(void) {
  wf_ctx_free(on_cpu);
  wf_ctx_free(on_gpu);
  wf_device_close(cpu);
  wf_device_close(gpu);
  ck_assert_int_eq(wf_mem_live(), 0);
}

static bool runs_there(const wf_op *op) {
  return op->cuda || op->flags & WF_OP_VIEW;
}

START_TEST(same_as_the_cpu) {
  int ran = 0;
  for (int i = 0; i < wf_op_count(); i++) {
    const wf_op *op = wf_op_at(i);
    if (!runs_there(op)) {
      printf("no CUDA kernel: %s\n", op->name);
      continue;
    }
    ran++;
    for (int k = 0; k < op->n_samples; k++) {
      result exact = run(on_cpu, op, k, WF_F64, false), there = run(on_gpu, op, k, WF_F64, false);
      expect_near(op, k, "f64 on the GPU", there, exact, 1e-12);
      drop(&there);
      there = run(on_gpu, op, k, WF_F32, false);
      expect_near(op, k, "f32 on the GPU against f64", there, exact, 1e-5);
      result here = run(on_cpu, op, k, WF_F32, false);
      expect_near(op, k, "f32 on the GPU against f32", there, here, 1e-5);
      drop(&here);
      drop(&there);
      drop(&exact);
    }
  }
  printf("%d of %d ops ran on the GPU\n", ran, wf_op_count());
  ck_assert_int_gt(ran, 0);
}
END_TEST

/* A second run gives the same bytes. */
START_TEST(repeatable) {
  for (int i = 0; i < wf_op_count(); i++) {
    const wf_op *op = wf_op_at(i);
    for (int k = 0; runs_there(op) && k < op->n_samples; k++) {
      result a = run(on_gpu, op, k, WF_F32, false), b = run(on_gpu, op, k, WF_F32, false);
      for (int j = 0; j < a.n; j++)
        ck_assert_msg(memcmp(a.value[j], b.value[j], (size_t)a.size[j] * sizeof(double)) == 0,
                      "op %s, sample %d, output %d", op->name, k, j);
      drop(&a);
      drop(&b);
    }
  }
}
END_TEST

/* Adding to an output gives what was there plus what overwriting gives. */
START_TEST(adding) {
  for (int i = 0; i < wf_op_count(); i++) {
    const wf_op *op = wf_op_at(i);
    if (!runs_there(op) || !op->adds || op->flags & (WF_OP_VIEW | WF_OP_INPLACE)) continue;
    for (int k = 0; k < op->n_samples; k++) {
      wf_scope scope = wf_scope_open(on_gpu);
      result plain = run(on_gpu, op, k, WF_F32, false);
      wf_sample s = make_sample(on_gpu, op, k, WF_F32);
      wf_tensor *out[WF_MAX_OUT];
      wf_op_apply(on_gpu, op, s.n_in, s.in, s.attr, out);
      uint32_t add = op->adds & ((1u << plain.n) - 1);
      wf_status st = wf_op_run(on_gpu, op, s.n_in, s.in, s.attr, plain.n, out, add);
      ck_assert_msg(st == WF_OK, "op %s: %s", op->name, wf_error_message());
      result twice = outputs(on_gpu, op->name, k, plain.n, out);
      for (int j = 0; j < plain.n; j++)
        for (int64_t e = 0; e < plain.size[j] && add >> j & 1; e++) plain.value[j][e] *= 2;
      expect_near(op, k, "added", twice, plain, 1e-5);
      drop(&plain);
      drop(&twice);
      wf_scope_close(on_gpu, scope);
    }
  }
}
END_TEST

/* The gradient of a cache takes the written slice out of it. */
START_TEST(cache_gradient_is_taken_out) {
  double *left[2];
  int64_t n = 0;
  for (int side = 0; side < 2; side++) {
    wf_ctx *c = side ? on_gpu : on_cpu;
    wf_scope scope = wf_scope_open(c);
    wf_sample s = make_sample(c, &wf_op_cache_append_grad, 0, WF_F64);
    wf_tensor *out[WF_MAX_OUT];
    wf_op_apply(c, &wf_op_cache_append_grad, s.n_in, s.in, s.attr, out);
    ck_assert_msg(wf_ctx_check(c) == WF_OK, "%s", wf_error_message());
    n = wf_numel(s.in[0]);
    left[side] = doubles(c, s.in[0]);
    wf_scope_close(c, scope);
  }
  ck_assert_mem_eq(left[0], left[1], (size_t)n * sizeof(double));
  wf_free(left[0]);
  wf_free(left[1]);
}
END_TEST

/* Products of every layout, larger than a sample and with odd strides. */
START_TEST(products) {
  static const int64_t sizes[][3] = {{768, 384, 128}, {64, 33, 517}, {1, 257, 64}, {300, 1, 7}};
  for (int k = 0; k < 4; k++)
    for (int layout = 0; layout < 4; layout++) {
      double *value[2];
      int64_t m = sizes[k][0], n = sizes[k][1], d = sizes[k][2], count = 0;
      for (int side = 0; side < 2; side++) {
        wf_ctx *c = side ? on_gpu : on_cpu;
        wf_scope scope = wf_scope_open(c);
        wf_sample s = {.ctx = c, .real = side ? WF_F32 : WF_F64, .index = k};
        bool at = layout & 1, bt = layout >> 1;
        wf_tensor *a = wf_sample_real(&s, WF_SHAPE(at ? d : m, (at ? m : d) + 3));
        wf_tensor *b = wf_sample_real(&s, WF_SHAPE(bt ? n : d, (bt ? d : n) + 5));
        a = wf_slice(c, a, 1, 1, 1 + (at ? m : d));
        b = wf_slice(c, b, 1, 3, 3 + (bt ? d : n));
        wf_tensor *y = wf_matmul(c, at ? wf_transpose(c, a, 0, 1) : a, bt ? wf_transpose(c, b, 0, 1) : b);
        ck_assert_msg(wf_ctx_check(c) == WF_OK, "%s", wf_error_message());
        count = wf_numel(y);
        value[side] = doubles(c, y);
        wf_scope_close(c, scope);
      }
      wf_error e = wf_compare(count, value[1], value[0]);
      ck_assert_msg(e.err2 <= 1e-6, "[%d, %d] x [%d, %d], layout %d: err2 %.2e", (int)m, (int)d, (int)d,
                    (int)n, layout, e.err2); /* TF32 would give 3e-4 */
      wf_free(value[0]);
      wf_free(value[1]);
    }
}
END_TEST

/* Ids and rows that do not fit are refused with their place, and the device goes on working. */
START_TEST(bad_input) {
  wf_scope scope = wf_scope_open(on_gpu);
  wf_tensor *table = wf_zeros(on_gpu, "test", WF_F32, WF_SHAPE(4, 2));
  wf_tensor *ids = wf_from_host(on_gpu, "test", WF_I32, WF_SHAPE(3), (int32_t[]){1, 3, 4});
  wf_embedding(on_gpu, table, ids);
  ck_assert_int_eq(wf_ctx_check(on_gpu), WF_EINVAL);
  ck_assert_msg(strstr(wf_error_message(), "id 4 at place 2"), "%s", wf_error_message());
  wf_xent(on_gpu, table, wf_from_host(on_gpu, "test", WF_I32, WF_SHAPE(4), (int32_t[]){0, -1, 2, 1}), 0);
  ck_assert_int_eq(wf_ctx_check(on_gpu), WF_EINVAL);
  ck_assert_msg(strstr(wf_error_message(), "label 2 at place 2"), "%s", wf_error_message());
  double sum = -1;
  ck_assert(wf_item(wf_sum_all(on_gpu, table), &sum) == WF_OK && sum == 0);
  wf_scope_close(on_gpu, scope);
}
END_TEST

/* ---- larger than the samples: several blocks of threads, of keys, of columns ---- */

typedef struct expression {
  const char *name;
  int n_in;
  struct {
    int ndim;
    int64_t shape[3];
  } in[6];
  wf_tensor *(*build)(wf_ctx *c, wf_tensor *const *in);
} expression;

static wf_rows *two_rows(wf_ctx *c, int64_t n) {
  wf_row row[2] = {{.begin = 0, .len = n / 3}, {.begin = n / 3, .len = n - n / 3, .lane = 1}};
  wf_rows *rows;
  ck_assert_msg(wf_rows_create(c, 2, row, 2, &rows) == WF_OK, "%s", wf_error_message());
  return rows;
}

static wf_tensor *build_attend(wf_ctx *c, wf_tensor *const *in) {
  const wf_attend_span span[] = {{0, 450, 0, 100, 550}, {450, 150, 550, 0, 150}};
  wf_attend_options o = {.scale = 0.2, .softcap = 5, .window = 300};
  return wf_attend(c, in[0], in[1], in[2], wf_attend_spans(c, 2, span), wf_cast(c, in[3], WF_F64),
                   wf_cast(c, in[4], WF_F64), in[5], &o);
}
/* A block of the keys of longer rows: it ends before the queries, and the window takes it from the last ones.
 */
static wf_tensor *build_block(wf_ctx *c, wf_tensor *const *in) {
  const wf_attend_span span[] = {{0, 450, 0, 320, 300}, {450, 150, 300, 40, 120}};
  wf_attend_options o = {.scale = 0.2, .softcap = 5, .window = 300};
  return wf_attend(c, in[0], in[1], in[2], wf_attend_spans(c, 2, span), wf_cast(c, in[3], WF_F64),
                   wf_cast(c, in[4], WF_F64), in[5], &o);
}
static wf_tensor *build_sigmoid(wf_ctx *c, wf_tensor *const *in) {
  wf_attend_options o = {.scale = 0.2, .kind = WF_ATTEND_SIGMOID, .len_bias = 600};
  return wf_attend(c, in[0], in[1], in[2], wf_attend_spans(c, 1, &(wf_attend_span){0, 600, 0, 0, 600}), NULL,
                   NULL, NULL, &o);
}
static wf_tensor *build_norm(wf_ctx *c, wf_tensor *const *in) {
  return wf_norm(c, WF_NORM_LAYER, in[0], in[1], in[2], 1e-5);
}
static wf_tensor *build_xent(wf_ctx *c, wf_tensor *const *in) {
  int32_t label[64];
  for (int i = 0; i < 64; i++) label[i] = i % 7 ? i * 15 : -1;
  return wf_xent(c, in[0], wf_from_host(c, "test", WF_I32, WF_SHAPE(64), label), 1e-3);
}
static wf_tensor *build_embedding(wf_ctx *c, wf_tensor *const *in) {
  int32_t id[700];
  for (int i = 0; i < 700; i++) id[i] = i * i % 50;
  return wf_embedding(c, in[0], wf_from_host(c, "test", WF_I32, WF_SHAPE(700), id));
}
static wf_tensor *build_linear(wf_ctx *c, wf_tensor *const *in) {
  return wf_mul(c, wf_linear(c, in[0], in[1], in[2]), wf_sum(c, in[0], 1, true));
}
static wf_tensor *build_scan(wf_ctx *c, wf_tensor *const *in) {
  wf_rows *rows = two_rows(c, 300);
  wf_tensor *g = wf_affine(c, wf_softplus(c, in[3]), -0.1, 0);
  wf_tensor *y = wf_scan(c, &(wf_scan_in){.q = in[0], .k = in[1], .v = in[2], .g = g, .init = in[4]}, NULL,
                         rows, &(wf_scan_options){.scale = 0.3}, NULL);
  wf_rows_free(rows);
  return y;
}
static wf_tensor *build_conv(wf_ctx *c, wf_tensor *const *in) {
  wf_rows *rows = two_rows(c, 300);
  wf_tensor *y = wf_conv(c, in[0], in[1], in[2], NULL, rows, true, NULL);
  wf_rows_free(rows);
  return y;
}

static const expression expressions[] = {
    {"attend",
     6,
     {{3, {600, 4, 40}}, {3, {700, 2, 40}}, {3, {700, 2, 300}}, {2, {600, 4}}, {2, {700, 4}}, {1, {4}}},
     build_attend},
    {"attend, a block of keys",
     6,
     {{3, {600, 4, 40}}, {3, {700, 2, 40}}, {3, {700, 2, 300}}, {2, {600, 4}}, {2, {700, 4}}, {1, {4}}},
     build_block},
    {"attend, sigmoid", 3, {{3, {600, 2, 24}}, {3, {600, 1, 24}}, {3, {600, 1, 20}}}, build_sigmoid},
    {"norm", 3, {{2, {70, 1000}}, {1, {1000}}, {1, {1000}}}, build_norm},
    {"xent", 1, {{2, {64, 1000}}}, build_xent},
    {"embedding", 1, {{2, {50, 300}}}, build_embedding},
    {"linear", 3, {{2, {300, 130}}, {2, {70, 130}}, {1, {70}}}, build_linear},
    {"scan",
     5,
     {{3, {300, 2, 16}}, {3, {300, 2, 16}}, {3, {300, 2, 24}}, {2, {300, 2}}, {3, {2, 16, 24}}},
     build_scan},
    {"conv", 3, {{2, {300, 40}}, {3, {40, 1, 4}}, {1, {40}}}, build_conv},
};

/* The value and the gradient of each input, under a cotangent of generic numbers. */
static result differentiate(wf_ctx *c, const expression *x, wf_dtype real) {
  wf_scope scope = wf_scope_open(c);
  wf_sample s = {.ctx = c, .real = real};
  wf_tensor *in[6], *all[7];
  wf_leaf leaf[6] = {{0}};
  wf_tape *tape;
  ck_assert(wf_tape_create(c, &tape) == WF_OK);
  for (int i = 0; i < x->n_in; i++) {
    in[i] = wf_sample_real(&s, x->in[i].ndim, x->in[i].shape);
    all[1 + i] = leaf[i].grad = wf_zeros(c, "test", real, x->in[i].ndim, x->in[i].shape);
    ck_assert_msg(wf_tape_watch(tape, in[i], &leaf[i]) == WF_OK, "%s", wf_error_message());
  }
  wf_tape_record(tape);
  wf_tensor *y = all[0] = x->build(c, in);
  wf_tape_pause(tape);
  ck_assert_msg(wf_ctx_check(c) == WF_OK, "%s: %s", x->name, wf_error_message());
  wf_tensor *dy = wf_sample_real(&s, y->ndim, y->shape);
  ck_assert_msg(wf_backward(tape, 1, &y, &dy) == WF_OK, "%s: %s", x->name, wf_error_message());
  wf_tape_free(tape);
  result r = outputs(c, x->name, 0, 1 + x->n_in, all);
  wf_scope_close(c, scope);
  return r;
}

START_TEST(larger) {
  const expression *x = &expressions[_i];
  result exact = differentiate(on_cpu, x, WF_F64), there = differentiate(on_gpu, x, WF_F32);
  for (int i = 0; i < exact.n; i++) {
    wf_error e = wf_compare(exact.size[i], there.value[i], exact.value[i]);
    printf("%s, %s %d: err2 %.1e\n", x->name, i ? "gradient" : "value", i ? i - 1 : 0, e.err2);
    ck_assert_msg(e.err2 <= 1e-5 && e.errmax <= 1e-4,
                  "%s, %d: err2 %.2e, errmax %.2e at %lld: %.9g, not %.9g", x->name, i, e.err2, e.errmax,
                  (long long)e.worst, there.value[i][e.worst], exact.value[i][e.worst]);
  }
  drop(&exact);
  drop(&there);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("cuda");
  TCase *t = tcase_create("ops");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_test(t, same_as_the_cpu);
  tcase_add_test(t, repeatable);
  tcase_add_test(t, adding);
  tcase_add_test(t, cache_gradient_is_taken_out);
  tcase_add_test(t, products);
  tcase_add_test(t, bad_input);
  tcase_add_loop_test(t, larger, 0, sizeof expressions / sizeof *expressions);
  suite_add_tcase(s, t);
  return s;
}

WF_GPU_MAIN(suite)
