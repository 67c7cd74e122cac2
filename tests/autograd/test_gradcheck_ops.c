/* Gradcheck of every op in the table, one test each. */
#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "core/ops.h"
#include "tests/check_main.h"

static wf_device *dev;
static wf_ctx *ctx;

static void setup(void) {
  ck_assert(wf_device_open(WF_CPU, 0, &dev) == WF_OK);
  ck_assert(wf_ctx_create(dev, &ctx) == WF_OK);
}
static void teardown(void) {
  wf_ctx_free(ctx);
  wf_device_close(dev);
  ck_assert_int_eq(wf_mem_live(), 0);
}

START_TEST(op_gradient) {
  const wf_op *op = wf_op_at(_i);
  wf_status s = wf_gradcheck_op(ctx, op);
  ck_assert_msg(s == WF_OK, "%s\n%s", wf_error_message(), wf_error_trace());
}
END_TEST

/* Adjacent weights with adjacent gradients: one product forward, one for dx, one for dW. */
START_TEST(joined_projections) {
  enum { D = 5, OUT = 9, ROWS = 7 };
  static const int64_t cut[4] = {0, 4, 6, 9};
  double value[OUT * D + ROWS * D];
  for (int i = 0; i < OUT * D + ROWS * D; i++)
    value[i] = wf_rng_normal(wf_rng_key_make(3, "test", "joined"), (uint64_t)i);
  wf_tensor *all = wf_from_host(ctx, "test", WF_F64, WF_SHAPE(OUT, D), value);
  wf_tensor *x = wf_from_host(ctx, "test", WF_F64, WF_SHAPE(ROWS, D), value + OUT * D);
  wf_tensor *dall[2], *dx[2];
  for (int apart = 0; apart < 2; apart++) {
    dall[apart] = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(OUT, D));
    dx[apart] = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(ROWS, D));
    wf_tensor *w[3], *y[3];
    wf_leaf leaf[3] = {{0}}, xleaf = {.grad = dx[apart]};
    wf_tape *t;
    ck_assert(wf_tape_create(ctx, &t) == WF_OK);
    x->var = -1;
    ck_assert(wf_tape_watch(t, x, &xleaf) == WF_OK);
    for (int i = 0; i < 3; i++) {
      int64_t shape[2] = {cut[i + 1] - cut[i], D};
      w[i] = wf_view_raw(all, 2, shape, NULL, cut[i] * D);
      leaf[i].grad = wf_view_raw(dall[apart], 2, shape, NULL, cut[i] * D);
      ck_assert(wf_tape_watch(t, w[i], &leaf[i]) == WF_OK);
    }
    wf_ctx_profile(ctx, true);
    wf_tape_record(t);
    if (apart)
      for (int i = 0; i < 3; i++) y[i] = wf_linear(ctx, x, w[i], NULL);
    else
      wf_linear_n(ctx, x, 3, w, NULL, y);
    wf_tensor *loss = NULL;
    for (int i = 0; i < 3; i++) {
      wf_tensor *part = wf_sum_all(ctx, wf_tanh(ctx, y[i]));
      loss = loss ? wf_add(ctx, loss, part) : part;
    }
    wf_tape_pause(t);
    wf_status s = wf_backward(t, 1, &loss, NULL);
    ck_assert_msg(s == WF_OK, "%s", wf_error_message());
    wf_tape_free(t);
    wf_op_profile p[16];
    int n = wf_ctx_profile_read(ctx, p, 16);
    for (int i = 0; i < n; i++)
      if (p[i].op == &wf_op_matmul) ck_assert_int_eq(p[i].calls, apart ? 6 : 2);
    wf_ctx_profile(ctx, false);
  }
  double a[OUT * D], b[OUT * D];
  ck_assert(wf_to_host(dall[0], a) == WF_OK && wf_to_host(dall[1], b) == WF_OK);
  ck_assert(wf_compare(OUT * D, a, b).err2 < 1e-14);
  ck_assert(wf_to_host(dx[0], a) == WF_OK && wf_to_host(dx[1], b) == WF_OK);
  ck_assert(wf_compare(ROWS * D, a, b).err2 < 1e-14);
}
END_TEST

static Suite *gradcheck_suite(void) {
  Suite *s = suite_create("gradcheck of ops");
  TCase *t = tcase_create("ops");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_loop_test(t, op_gradient, 0, wf_op_count());
  tcase_add_test(t, joined_projections);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(gradcheck_suite)
