/* Every op of the table that has a CUDA kernel, on its samples, against the CPU. Those without are named. */
#include <stdio.h>
#include <string.h>

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
  suite_add_tcase(s, t);
  return s;
}

WF_GPU_MAIN(suite)
