/* The tape: reuse of variables, aliases, broadcasting, leaves, holds, in-place ops, recomputation. */
#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "core/ops.h"
#include "tests/check_main.h"

#include <math.h>
#include <string.h>

static wf_device *dev;
static wf_ctx *c;

static void setup(void) {
  ck_assert_int_eq(wf_device_open(WF_CPU, 0, &dev), WF_OK);
  ck_assert_int_eq(wf_ctx_create(dev, &c), WF_OK);
}
static void teardown(void) {
  ck_assert_int_eq(wf_ctx_check(c), WF_OK);
  wf_ctx_free(c);
  wf_device_close(dev);
  ck_assert_int_eq(wf_mem_live(), 0);
}

static wf_tensor *numbers(int ndim, const int64_t *shape, int seed) {
  wf_sample s = {.ctx = c, .real = WF_F64, .seed = (uint64_t)seed * 1000};
  return wf_sample_real(&s, ndim, shape);
}

/* ---- functions to check ---- */

static wf_status reused(wf_ctx *ctx, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                        wf_tensor **out) {
  (void)arg, (void)n_in, (void)n_out;
  wf_tensor *x = in[0];
  wf_tensor *y =
      wf_add(ctx, wf_mul(ctx, x, x), wf_add(ctx, x, x)); /* one variable twice in one op, and aliases */
  out[0] = wf_sub(ctx, y, wf_mul(ctx, y, x));
  return WF_OK;
}

static wf_status broadcasting(wf_ctx *ctx, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                              wf_tensor **out) {
  (void)arg, (void)n_in, (void)n_out;
  wf_tensor *row = in[1], *col = in[2];
  out[0] = wf_mul(ctx, wf_add(ctx, in[0], row), wf_div(ctx, col, wf_exp(ctx, row)));
  return WF_OK;
}

static wf_status layered(wf_ctx *ctx, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                         wf_tensor **out) {
  (void)arg, (void)n_in, (void)n_out;
  wf_tensor *w[] = {in[1], in[2], in[1]}, *y[3];
  wf_linear_n(ctx, in[0], 3, w, NULL, y); /* joined outputs, one weight twice */
  wf_tensor *z = wf_add(ctx, wf_mul(ctx, y[0], wf_sigmoid(ctx, y[1])), y[2]);
  z = wf_add(ctx, z, y[0]); /* a second writer for a slice */
  out[0] = wf_transpose(ctx, z, 0, 1);
  out[1] = wf_slice(ctx, wf_reshape(ctx, y[1], WF_SHAPE(-1)), 0, 2, 7);
  return WF_OK;
}

/* p and q share the gradient of their sum; p gets another one before q's is read. */
static wf_status shared(wf_ctx *ctx, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                        wf_tensor **out) {
  (void)arg, (void)n_in, (void)n_out;
  wf_tensor *p = wf_exp(ctx, in[0]), *q = wf_exp(ctx, in[1]);
  out[0] = wf_mul(ctx, p, p);
  out[1] = wf_add(ctx, p, q);
  return WF_OK;
}

START_TEST(gradients_match_differences) {
  wf_scope s = wf_scope_open(c);
  wf_tensor *x = numbers(WF_SHAPE(3, 4), 1), *row = numbers(WF_SHAPE(4), 2),
            *col = numbers(WF_SHAPE(3, 1), 3);
  ck_assert_msg(wf_gradcheck(c, reused, NULL, 1, &x, 1, NULL) == WF_OK, "%s", wf_error_message());
  wf_tensor *b[] = {x, row, col};
  ck_assert_msg(wf_gradcheck(c, broadcasting, NULL, 3, b, 1, NULL) == WF_OK, "%s", wf_error_message());
  wf_tensor *p[] = {x, numbers(WF_SHAPE(3, 4), 6)};
  ck_assert_msg(wf_gradcheck(c, shared, NULL, 2, p, 2, NULL) == WF_OK, "%s", wf_error_message());
  wf_tensor *l[] = {x, numbers(WF_SHAPE(5, 4), 4), numbers(WF_SHAPE(5, 4), 5)};
  ck_assert_msg(wf_gradcheck(c, layered, NULL, 3, l, 2, NULL) == WF_OK, "%s", wf_error_message());
  wf_scope_close(c, s);
}
END_TEST

/* A cotangent is the caller's: a root that another gradient reaches leaves it as it was. */
START_TEST(cotangents_stay) {
  wf_scope s = wf_scope_open(c);
  wf_tensor *x = numbers(WF_SHAPE(3, 4), 1), *cot = numbers(WF_SHAPE(3, 4), 2);
  double before[12], after[12];
  ck_assert(wf_to_host(cot, before) == WF_OK);
  wf_leaf leaf = {.grad = wf_zeros(c, "test", WF_F64, WF_SHAPE(3, 4))};
  wf_tape *t;
  ck_assert(wf_tape_create(c, &t) == WF_OK && wf_tape_watch(t, x, &leaf) == WF_OK);
  wf_tape_record(t);
  wf_tensor *y = wf_exp(c, x), *roots[] = {y, wf_square(c, y)}, *cots[] = {cot, cot};
  wf_tape_pause(t);
  ck_assert(wf_backward(t, 2, roots, cots) == WF_OK);
  wf_tape_free(t);
  ck_assert(wf_to_host(cot, after) == WF_OK);
  ck_assert(memcmp(before, after, sizeof before) == 0);
  wf_scope_close(c, s);
}
END_TEST

/* A wrong gradient must be seen: sigmoid's samples checked against tanh's vjp through a doctored description.
 */
START_TEST(gradcheck_sees_errors) {
  wf_op wrong = *wf_op_find("sigmoid");
  wrong.vjp = wf_op_find("tanh")->vjp;
  wf_status st = wf_gradcheck_op(c, &wrong);
  ck_assert_int_eq(st, WF_ENUMERIC);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "sigmoid"));
}
END_TEST

/* ---- leaves ---- */

static int finals;
static void count_final(void *arg, wf_leaf *leaf) {
  (void)leaf;
  finals += *(int *)arg;
}

static void one_pass(wf_tape *t, wf_tensor *w, wf_leaf *leaf) {
  ck_assert_int_eq(wf_tape_watch(t, w, leaf), WF_OK);
  wf_tape_record(t);
  wf_tensor *y = wf_sum_all(c, wf_square(c, w));
  wf_tape_pause(t);
  ck_assert_int_eq(wf_backward(t, 1, &y, NULL), WF_OK);
}

START_TEST(leaves_accumulate_and_become_final_once) {
  wf_scope s = wf_scope_open(c);
  int one = 1;
  finals = 0;
  wf_tensor *w = numbers(WF_SHAPE(3), 1);
  wf_tensor *g = wf_empty_like(c, "test", w);
  double poison[3] = {NAN, NAN, NAN}, got[3], value[3];
  ck_assert_int_eq(wf_tensor_write(g, poison), WF_OK); /* the first writer overwrites */
  wf_leaf leaf = {.grad = g, .final = count_final, .arg = &one};
  wf_tape *t;
  ck_assert_int_eq(wf_tape_create(c, &t), WF_OK);
  wf_leaf_hold(&leaf);
  one_pass(t, w, &leaf);
  ck_assert_int_eq(finals, 0); /* held: a second micro-batch follows */
  one_pass(t, w, &leaf);
  ck_assert_int_eq(finals, 0);
  wf_leaf_release(&leaf);
  ck_assert_int_eq(finals, 1);
  ck_assert_int_eq(wf_to_host(g, got), WF_OK);
  ck_assert_int_eq(wf_to_host(w, value), WF_OK);
  for (int i = 0; i < 3; i++) ck_assert_double_eq_tol(got[i], 4 * value[i], 1e-14);
  /* writing a finished gradient is refused */
  ck_assert_int_eq(wf_tape_watch(t, w, &leaf), WF_OK);
  wf_tape_record(t);
  wf_tensor *y = wf_sum_all(c, w);
  wf_tape_pause(t);
  ck_assert_int_eq(wf_backward(t, 1, &y, NULL), WF_EINTERNAL);
  wf_leaf_reset(&leaf);
  one_pass(t, w, &leaf);
  ck_assert_int_eq(finals, 2);
  wf_tape_free(t);
  wf_scope_close(c, s);
}
END_TEST

START_TEST(an_unconsumed_tape_gives_its_uses_back) {
  wf_scope s = wf_scope_open(c);
  wf_tensor *w = numbers(WF_SHAPE(3), 1);
  wf_leaf leaf = {.grad = wf_empty_like(c, "test", w)};
  wf_tape *t;
  ck_assert_int_eq(wf_tape_create(c, &t), WF_OK);
  ck_assert_int_eq(wf_tape_watch(t, w, &leaf), WF_OK);
  wf_tape_record(t);
  wf_exp(c, w);
  wf_tape_pause(t);
  ck_assert_int_eq(leaf.uses, 1);
  wf_tape_free(t);
  ck_assert_int_eq(leaf.uses, 0);
  wf_scope_close(c, s);
}
END_TEST

START_TEST(errors_are_sticky_and_named) {
  wf_scope s = wf_scope_open(c);
  wf_tensor *x = numbers(WF_SHAPE(3, 4), 1), *y = numbers(WF_SHAPE(5), 2);
  wf_tensor *z = wf_exp(c, wf_add(c, x, y));
  ck_assert(wf_is_poison(z));
  ck_assert_int_eq(wf_ctx_check(c), WF_ESHAPE);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "[5]"));
  ck_assert_int_eq(wf_ctx_check(c), WF_OK);
  ck_assert(!wf_is_poison(wf_exp(c, x)));
  ck_assert(wf_is_poison(wf_same_variable(x, WF_SHAPE(3, 2, 3)))); /* 12 numbers are not 18 */
  ck_assert_int_eq(wf_ctx_check(c), WF_ESHAPE);
  double number;
  ck_assert_int_eq(wf_item(wf_add(c, x, y), &number), WF_ESHAPE); /* reading takes the failure */
  ck_assert_int_eq(wf_ctx_check(c), WF_OK);
  ck_assert_int_eq(wf_item(z, &number), WF_EINTERNAL); /* taken above: still no success */
  ck_assert_int_eq(wf_ctx_check(c), WF_OK);
  wf_scope_close(c, s);
}
END_TEST

/* ---- recomputation ---- */

typedef struct scaled {
  wf_tensor *w; /* a leaf, used from inside */
  double factor;
} scaled;

static wf_status body(wf_ctx *ctx, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                      wf_tensor **out) {
  const scaled *a = arg;
  (void)n_in, (void)n_out;
  wf_tensor *h = wf_tanh(ctx, wf_linear(ctx, in[0], a->w, NULL));
  out[0] = wf_mul(ctx, h, in[1]);
  out[1] = wf_affine(ctx, h, a->factor, 0);
  return WF_OK;
}

static void run_chain(bool recompute, wf_tensor *x, wf_tensor *w, double *gx, double *gw, int64_t *peak) {
  wf_scope s = wf_scope_open(c);
  wf_leaf lx = {.grad = wf_empty_like(c, "test", x)}, lw = {.grad = wf_empty_like(c, "test", w)};
  int one = 1;
  lw.final = count_final;
  lw.arg = &one;
  finals = 0;
  wf_tape *t;
  ck_assert_int_eq(wf_tape_create(c, &t), WF_OK);
  ck_assert_int_eq(wf_tape_watch(t, x, &lx), WF_OK);
  ck_assert_int_eq(wf_tape_watch(t, w, &lw), WF_OK);
  wf_tape_record(t);
  wf_mem_reset_peak();
  wf_tensor *a = x, *b = x;
  for (int i = 0; i < 4; i++) {
    scaled arg = {w, 0.5 + i};
    wf_tensor *in[] = {a, b}, *out[2];
    wf_scope inner = wf_scope_open(c);
    if (recompute)
      ck_assert_int_eq(wf_checkpoint(c, body, &arg, sizeof arg, 2, in, 2, out), WF_OK);
    else
      ck_assert_int_eq(body(c, &arg, 2, in, 2, out), WF_OK);
    wf_keep(out[0]);
    wf_keep(out[1]);
    wf_scope_close(c, inner);
    a = wf_adopt(out[0]);
    b = wf_adopt(out[1]);
  }
  wf_tensor *y = wf_sum_all(c, wf_mul(c, a, b));
  wf_tape_pause(t);
  *peak = wf_mem_peak();
  ck_assert_int_eq(wf_backward(t, 1, &y, NULL), WF_OK);
  wf_tape_free(t);
  ck_assert_int_eq(finals, 1);
  ck_assert_int_eq(wf_to_host(lx.grad, gx), WF_OK);
  ck_assert_int_eq(wf_to_host(lw.grad, gw), WF_OK);
  wf_scope_close(c, s);
}

START_TEST(recomputation_changes_no_bit_and_saves_memory) {
  enum { N = 512, D = 16 };
  wf_scope s = wf_scope_open(c);
  wf_tensor *x = numbers(WF_SHAPE(N, D), 1), *w = numbers(WF_SHAPE(D, D), 2);
  static double gx[2][N * D], gw[2][D * D];
  int64_t peak[2];
  run_chain(false, x, w, gx[0], gw[0], &peak[0]);
  run_chain(true, x, w, gx[1], gw[1], &peak[1]);
  ck_assert_int_eq(memcmp(gx[0], gx[1], sizeof gx[0]), 0);
  ck_assert_int_eq(memcmp(gw[0], gw[1], sizeof gw[0]), 0);
  ck_assert_int_lt(peak[1], peak[0]);
  wf_scope_close(c, s);
}
END_TEST

static wf_status leaks(wf_ctx *ctx, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                       wf_tensor **out) {
  (void)n_in, (void)n_out;
  out[0] = wf_mul(ctx, in[0], *(wf_tensor *const *)arg);
  return WF_OK;
}

START_TEST(recomputed_functions_may_not_reach_other_variables) {
  wf_scope s = wf_scope_open(c);
  wf_tensor *x = numbers(WF_SHAPE(3), 1), *out;
  wf_leaf leaf = {.grad = wf_empty_like(c, "test", x)};
  wf_tape *t;
  ck_assert_int_eq(wf_tape_create(c, &t), WF_OK);
  ck_assert_int_eq(wf_tape_watch(t, x, &leaf), WF_OK);
  wf_tape_record(t);
  wf_tensor *hidden = wf_exp(c, x);
  ck_assert_int_eq(wf_checkpoint(c, leaks, &hidden, sizeof(wf_tensor *), 1, &x, 1, &out), WF_EINVAL);
  wf_tape_pause(t);
  wf_tape_free(t);
  wf_scope_close(c, s);
}
END_TEST

/* The n-th allocation fails, for every n: an error, or success where the device's cache could be emptied
 * instead; nothing leaks. */
START_TEST(allocation_failures_are_reported) {
  wf_scope s = wf_scope_open(c);
  wf_tensor *x = numbers(WF_SHAPE(6, 4), 1), *w = numbers(WF_SHAPE(4, 4), 2);
  wf_leaf lw = {.grad = wf_zeros(c, "test", w->dtype, w->ndim, w->shape)};
  int64_t errors = 0, needed = INT64_MAX;
  for (int64_t n = 0; n <= needed; n++) { /* n = 0 counts */
    wf_device_trim(dev);
    wf_leaf_reset(&lw);
    int64_t live = wf_mem_live();
    wf_scope inner = wf_scope_open(c);
    wf_mem_fail_at(n);
    int64_t before = wf_mem_alloc_count();
    wf_tape *t = NULL;
    wf_status st = wf_tape_create(c, &t);
    if (st == WF_OK) st = wf_tape_watch(t, w, &lw);
    if (st == WF_OK) {
      wf_tape_record(t);
      wf_tensor *in[] = {x, x}, *out[2];
      scaled arg = {w, 2};
      st = wf_checkpoint(c, body, &arg, sizeof arg, 2, in, 2, out);
      wf_tensor *y = st == WF_OK ? wf_sum_all(c, wf_mul(c, out[0], out[1])) : NULL;
      wf_tape_pause(t);
      if (st == WF_OK) st = wf_ctx_check(c);
      if (st == WF_OK) st = wf_backward(t, 1, &y, NULL);
    }
    wf_ctx_check(c);
    wf_tape_free(t);
    wf_scope_close(c, inner);
    wf_mem_fail_at(0);
    if (n == 0) needed = wf_mem_alloc_count() - before;
    ck_assert(st == WF_OK || (n > 0 && st == WF_ENOMEM));
    errors += st != WF_OK;
    wf_device_trim(dev);
    ck_assert_int_le(wf_mem_live(), live + 8); /* slabs and stacks of the context may have grown */
  }
  ck_assert_int_gt(needed, 20);
  ck_assert_int_gt(errors, 10);
  wf_scope_close(c, s);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("tape");
  TCase *t = tcase_create("tape");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_test(t, gradients_match_differences);
  tcase_add_test(t, cotangents_stay);
  tcase_add_test(t, gradcheck_sees_errors);
  tcase_add_test(t, leaves_accumulate_and_become_final_once);
  tcase_add_test(t, an_unconsumed_tape_gives_its_uses_back);
  tcase_add_test(t, errors_are_sticky_and_named);
  tcase_add_test(t, recomputation_changes_no_bit_and_saves_memory);
  tcase_add_test(t, recomputed_functions_may_not_reach_other_variables);
  tcase_add_test(t, allocation_failures_are_reported);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
