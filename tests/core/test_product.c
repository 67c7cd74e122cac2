/* Recorded products: which ones, and that running them again touches nothing of the recording. */
#include "tests/check_main.h"

#include "core/memory.h"
#include "core/ops.h"
#include "core/product.h"

static wf_device *dev;
static wf_ctx *c;
static int64_t before;

static void setup(void) {
  before = wf_mem_live();
  ck_assert_int_eq(wf_device_open(WF_CPU, 0, &dev), WF_OK);
  ck_assert_int_eq(wf_ctx_create(dev, &c), WF_OK);
}

static void teardown(void) {
  wf_ctx_free(c);
  wf_device_close(dev);
  ck_assert_int_eq(wf_mem_live(), before);
}

START_TEST(the_products_of_a_context) {
  enum { M = 6, D = 5, N = 4 };
  wf_scope s = wf_scope_open(c);
  wf_sample smp = {.ctx = c, .real = WF_F32}, wide = {.ctx = c, .real = WF_F64};
  wf_tensor *x = wf_sample_real(&smp, WF_SHAPE(M, D)), *w = wf_sample_real(&smp, WF_SHAPE(2 * N, D));
  wf_tensor *half[2] = {wf_view_raw(w, 2, (int64_t[]){N, D}, NULL, 0),
                        wf_view_raw(w, 2, (int64_t[]){N, D}, NULL, N * D)};
  wf_tensor *x64 = wf_sample_real(&wide, WF_SHAPE(M, M)), *y[2];
  wf_products *p;
  wf_linear(c, x, w, NULL); /* before the recording */
  ck_assert_int_eq(wf_products_record(c, &p), WF_OK);
  wf_linear_n(c, x, 2, half, NULL, y);                         /* adjacent weights: one product */
  wf_tensor *z = wf_matmul(c, wf_transpose(c, x, 0, 1), y[0]); /* [D, N] */
  wf_matmul(c, x64, x64);                                      /* not float32 */
  ck_assert_int_eq(wf_products_stop(p), WF_OK);
  wf_matmul(c, x, z); /* after it */
  ck_assert_int_eq(wf_ctx_check(c), WF_OK);
  ck_assert_int_eq(wf_products_count(p), 2);
  ck_assert_double_eq(wf_products_flops(p), 2.0 * M * D * (2 * N) + 2.0 * D * M * N);

  float was[D * N], is[D * N];
  ck_assert_int_eq(wf_to_host(z, was), WF_OK);
  wf_products_run(p);
  ck_assert_int_eq(wf_to_host(z, is), WF_OK);
  ck_assert_mem_eq(was, is, sizeof was);
  wf_products_free(p);
  wf_scope_close(c, s);
}
END_TEST

START_TEST(one_recording_at_a_time) {
  wf_products *p, *q;
  ck_assert_int_eq(wf_products_record(c, &p), WF_OK);
  ck_assert_int_eq(wf_products_record(c, &q), WF_EINVAL);
  wf_products_free(p); /* without a stop: recording ends */
  ck_assert_int_eq(wf_products_record(c, &q), WF_OK);
  ck_assert_int_eq(wf_products_stop(q), WF_OK);
  ck_assert_int_eq(wf_products_count(q), 0);
  wf_products_run(q);
  wf_products_free(q);
}
END_TEST

START_TEST(failed_allocations) {
  wf_scope s = wf_scope_open(c);
  wf_sample smp = {.ctx = c, .real = WF_F32};
  wf_tensor *x = wf_sample_real(&smp, WF_SHAPE(6, 5)), *w = wf_sample_real(&smp, WF_SHAPE(7, 5));
  wf_tensor *y = wf_empty(c, "test", WF_F32, WF_SHAPE(6, 7));
  for (int64_t n = 1;; n++) {
    wf_products *p = NULL;
    wf_mem_fail_at(n);
    int64_t first = wf_mem_alloc_count();
    wf_status st = wf_products_record(c, &p);
    if (st == WF_OK) st = wf_op_run(c, &wf_op_linear, 2, (wf_tensor *[]){x, w}, NULL, 1, &y, 0);
    if (st == WF_OK) st = wf_products_stop(p);
    bool reached = wf_mem_alloc_count() - first >= n;
    wf_mem_fail_at(0);
    ck_assert_int_eq(st, reached ? WF_ENOMEM : WF_OK);
    wf_products_free(p);
    if (!reached) break;
    ck_assert_int_lt(n, 100);
  }
  wf_scope_close(c, s);
}
END_TEST

static Suite *product_suite(void) {
  Suite *s = suite_create("product");
  TCase *t = tcase_create("product");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_test(t, the_products_of_a_context);
  tcase_add_test(t, one_recording_at_a_time);
  tcase_add_test(t, failed_allocations);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(product_suite)
