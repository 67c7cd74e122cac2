/* Every op of the table on its samples: float32 against float64, each instruction set against the best one,
 * strided inputs against contiguous ones, adding against overwriting; then what samples do not reach. */
#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "core/ops.h"
#include "tests/check_main.h"
#include "tests/core/op_trial.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static wf_device *dev;
static wf_ctx *ctx;

static wf_device *open_isa(const char *isa) {
  wf_device *d = NULL;
  if (isa)
    setenv("WEFT_ISA", isa, 1);
  else
    unsetenv("WEFT_ISA");
  wf_status s = wf_device_open(WF_CPU, 0, &d);
  unsetenv("WEFT_ISA");
  return s == WF_OK ? d : NULL;
}

static void setup(void) {
  dev = open_isa(NULL);
  ck_assert_msg(dev && wf_ctx_create(dev, &ctx) == WF_OK, "%s", wf_error_message());
}
static void teardown(void) {
  wf_ctx_free(ctx);
  wf_device_close(dev);
  ck_assert_int_eq(wf_mem_live(), 0);
}

START_TEST(described) {
  for (int i = 0; i < wf_op_count(); i++) {
    const wf_op *op = wf_op_at(i);
    ck_assert_msg(!!op->vjp != !!op->nondiff, "op %s: a gradient, or a reason for none", op->name);
    ck_assert_msg(op->sample && op->n_samples > 0, "op %s has no samples", op->name);
    ck_assert_msg(op->flags & WF_OP_VIEW ? op->view && !op->cpu : op->infer && op->cpu, "op %s", op->name);
    ck_assert_ptr_eq(wf_op_find(op->name), op);
  }
}
END_TEST

START_TEST(f32_against_f64) {
  for (int i = 0; i < wf_op_count(); i++) {
    const wf_op *op = wf_op_at(i);
    for (int k = 0; k < op->n_samples; k++) {
      result a = run(ctx, op, k, WF_F32, false), b = run(ctx, op, k, WF_F64, false);
      expect_near(op, k, "f32 against f64", a, b, 1e-5);
      drop(&a);
      drop(&b);
    }
  }
}
END_TEST

START_TEST(strided_against_contiguous) {
  for (int i = 0; i < wf_op_count(); i++) {
    const wf_op *op = wf_op_at(i);
    for (int k = 0; k < op->n_samples; k++) {
      if (op->flags & WF_OP_INPLACE) continue;
      result a = run(ctx, op, k, WF_F64, false), b = run(ctx, op, k, WF_F64, true);
      expect_near(op, k, "strided against contiguous", a, b, 1e-13);
      drop(&a);
      drop(&b);
    }
  }
}
END_TEST

START_TEST(instruction_sets) {
  static const char *const names[] = {"v2", "v3", "v4"};
  for (int j = 0; j < 3; j++) {
    wf_device *d = open_isa(names[j]);
    if (!d) continue; /* beyond this machine */
    wf_ctx *c;
    ck_assert(wf_ctx_create(d, &c) == WF_OK);
    for (int i = 0; i < wf_op_count(); i++) {
      const wf_op *op = wf_op_at(i);
      for (int k = 0; k < op->n_samples; k++)
        for (int f64 = 0; f64 < 2; f64++) {
          wf_dtype real = f64 ? WF_F64 : WF_F32;
          result a = run(c, op, k, real, false), b = run(ctx, op, k, WF_F64, false);
          expect_near(op, k, names[j], a, b, f64 ? 1e-10 : 1e-5);
          drop(&a);
          drop(&b);
        }
    }
    wf_ctx_free(c);
    wf_device_close(d);
  }
}
END_TEST

/* Adding to an output gives what was there plus what overwriting gives. */
START_TEST(adding) {
  for (int i = 0; i < wf_op_count(); i++) {
    const wf_op *op = wf_op_at(i);
    if (!op->adds || op->flags & (WF_OP_VIEW | WF_OP_INPLACE)) continue;
    for (int k = 0; k < op->n_samples; k++) {
      wf_scope scope = wf_scope_open(ctx);
      result plain = run(ctx, op, k, WF_F64, false);
      wf_sample s = make_sample(ctx, op, k, WF_F64);
      wf_tensor *out[WF_MAX_OUT];
      wf_op_apply(ctx, op, s.n_in, s.in, s.attr, out);
      uint32_t add = op->adds & ((1u << plain.n) - 1);
      wf_status st = wf_op_run(ctx, op, s.n_in, s.in, s.attr, plain.n, out, add);
      ck_assert_msg(st == WF_OK, "op %s: %s", op->name, wf_error_message());
      result twice = outputs(ctx, op->name, k, plain.n, out);
      for (int j = 0; j < plain.n; j++)
        for (int64_t e = 0; e < plain.size[j] && add >> j & 1; e++) plain.value[j][e] *= 2;
      expect_near(op, k, "added", twice, plain, 1e-13);
      drop(&plain);
      drop(&twice);
      wf_scope_close(ctx, scope);
    }
  }
}
END_TEST

/* Equal threads, equal bytes. */
START_TEST(twice) {
  for (int i = 0; i < wf_op_count(); i++) {
    const wf_op *op = wf_op_at(i);
    for (int k = 0; k < op->n_samples; k++) {
      result a = run(ctx, op, k, WF_F32, false), b = run(ctx, op, k, WF_F32, false);
      for (int j = 0; j < a.n; j++)
        ck_assert_msg(memcmp(a.value[j], b.value[j], (size_t)a.size[j] * sizeof(double)) == 0,
                      "op %s, sample %d: two runs differ", op->name, k);
      drop(&a);
      drop(&b);
    }
  }
}
END_TEST

/* Each allocation of each op fails once: an error, and nothing is lost (teardown looks for leaks). */
START_TEST(out_of_memory) {
  for (int i = 0; i < wf_op_count(); i++) {
    const wf_op *op = wf_op_at(i);
    for (int k = 0; k < op->n_samples; k++)
      for (int64_t n = 1;; n++) {
        wf_device *d = open_isa(NULL); /* an empty cache, so that storage is allocated */
        wf_ctx *c;
        ck_assert(d && wf_ctx_create(d, &c) == WF_OK);
        wf_sample s = make_sample(c, op, k, WF_F32);
        wf_tensor *out[WF_MAX_OUT];
        wf_device_trim(d);
        wf_mem_fail_at(n);
        wf_op_apply(c, op, s.n_in, s.in, s.attr, out);
        wf_mem_fail_at(0);
        wf_status st = wf_ctx_check(c);
        wf_ctx_free(c);
        wf_device_close(d);
        if (st == WF_OK) break;
        ck_assert_msg(st == WF_ENOMEM, "op %s, sample %d, allocation %d: %s", op->name, k, (int)n,
                      wf_error_message());
        ck_assert_int_lt(n, 1000);
      }
  }
}
END_TEST

/* ---- beyond the samples ---- */

static wf_tensor *numbers(wf_dtype dtype, int ndim, const int64_t *shape, const char *site) {
  int64_t n = 1;
  for (int i = 0; i < ndim; i++) n *= shape[i];
  double *v = wf_alloc("test", (size_t)(n ? n : 1) * sizeof *v);
  wf_rng_key key = wf_rng_key_make(7, "test", site);
  for (int64_t i = 0; i < n; i++) v[i] = (double)(float)wf_rng_normal(key, (uint64_t)i);
  wf_tensor *t = wf_cast(ctx, wf_from_host(ctx, "test", WF_F64, ndim, shape, v), dtype);
  wf_free(v);
  return t;
}

static void expect_same(const char *what, wf_tensor *a, wf_tensor *b, double tolerance) {
  ck_assert_msg(wf_ctx_check(ctx) == WF_OK, "%s: %s", what, wf_error_message());
  ck_assert_msg(wf_same_shape(a, b), "%s: shapes differ", what);
  double *x = doubles(ctx, a), *y = doubles(ctx, b);
  wf_error e = wf_compare(wf_numel(a), x, y);
  ck_assert_msg(e.err2 <= tolerance && e.errmax <= 10 * tolerance, "%s: err2 %.2e, errmax %.2e", what, e.err2,
                e.errmax);
  wf_free(x);
  wf_free(y);
}

/* Large enough for several threads, all patterns of kept and summed dimensions; ones sum exactly. */
START_TEST(large_sums) {
  static const int64_t shape[4] = {5, 33, 3, 301};
  wf_tensor *x = numbers(WF_F64, 4, shape, "sum"), *f = wf_cast(ctx, x, WF_F32);
  double *host = doubles(ctx, x);
  for (int mask = 0; mask < 16; mask++) {
    wf_scope s = wf_scope_open(ctx);
    int64_t to[4], n = 1;
    for (int d = 0; d < 4; d++) {
      to[d] = mask >> d & 1 ? 1 : shape[d];
      n *= to[d];
    }
    double *want = wf_calloc("test", (size_t)n, sizeof *want);
    for (int64_t i = 0; i < wf_numel(x); i++) {
      int64_t rest = i, at = 0, step = 1;
      for (int d = 3; d >= 0; d--) {
        int64_t j = rest % shape[d];
        rest /= shape[d];
        if (to[d] > 1) at += j * step;
        step *= to[d];
      }
      want[at] += host[i];
    }
    wf_tensor *w = wf_from_host(ctx, "test", WF_F64, 4, to, want);
    expect_same("sum, f64", wf_sum_to(ctx, x, 4, to), w, 1e-13);
    expect_same("sum, f32", wf_sum_to(ctx, f, 4, to), w, 1e-6);
    wf_free(want);
    wf_scope_close(ctx, s);
  }
  wf_free(host);
  wf_tensor *flat = wf_reshape(ctx, x, WF_SHAPE(-1, 301));
  expect_same("mean", wf_affine(ctx, wf_mean(ctx, flat, -1, false), 301, 0), wf_sum(ctx, flat, 1, false),
              1e-13);
  expect_same("sum of all", wf_sum_all(ctx, x), wf_sum(ctx, wf_sum(ctx, flat, 0, false), 0, false), 1e-12);
}
END_TEST

/* Sizes past the vectors and threads of every path: few rows, many rows, joined and separate weights. */
START_TEST(large_products) {
  static const int64_t rows[] = {1, 2, 3, 4, 5, 37, 200};
  wf_tensor *all = numbers(WF_F64, WF_SHAPE(3 * 67, 131), "w"), *bias = numbers(WF_F64, WF_SHAPE(67), "b");
  for (int i = 0; i < 7; i++) {
    wf_scope s = wf_scope_open(ctx);
    wf_tensor *x = numbers(WF_F64, WF_SHAPE(rows[i], 131), "x"), *w[3], *b[3] = {NULL, bias, NULL}, *y[3],
              *z[3];
    for (int j = 0; j < 3; j++) w[j] = wf_slice(ctx, all, 0, 67 * j, 67 * (j + 1));
    wf_linear_n(ctx, x, 3, w, b, y);
    wf_tensor *f[3], *fb[3];
    for (int j = 0; j < 3; j++) {
      f[j] = wf_cast(ctx, w[j], WF_F32);
      fb[j] = b[j] ? wf_cast(ctx, b[j], WF_F32) : NULL;
    }
    wf_linear_n(ctx, wf_cast(ctx, x, WF_F32), 3, f, fb, z); /* apart, since each was copied */
    for (int j = 0; j < 3; j++) {
      wf_tensor *plain = wf_matmul(ctx, x, wf_transpose(ctx, w[j], 0, 1));
      if (b[j]) plain = wf_add(ctx, plain, b[j]);
      expect_same("joined projections", y[j], plain, 1e-13);
      expect_same("separate projections, f32", z[j], plain, 1e-5);
      /* by sums, without BLAS */
      wf_tensor *wide = wf_mul(ctx, wf_reshape(ctx, x, WF_SHAPE(rows[i], 1, 131)), w[j]);
      wf_tensor *slow = wf_sum(ctx, wide, -1, false);
      expect_same("product", plain, b[j] ? wf_add(ctx, slow, b[j]) : slow, 1e-12);
    }
    wf_scope_close(ctx, s);
  }
  /* rows and weights that repeat themselves, which BLAS cannot read */
  wf_tensor *row = numbers(WF_F64, WF_SHAPE(1, 131), "x"), *many = wf_expand(ctx, row, WF_SHAPE(9, 131));
  wf_tensor *one = wf_linear(ctx, row, all, NULL);
  expect_same("repeated rows", wf_linear(ctx, many, all, NULL), wf_expand(ctx, one, WF_SHAPE(9, 201)), 1e-13);
  wf_tensor *same = wf_linear(ctx, numbers(WF_F64, WF_SHAPE(9, 131), "y"), many, NULL);
  expect_same("repeated weights", same, wf_expand(ctx, wf_slice(ctx, same, 1, 3, 4), WF_SHAPE(9, 9)), 1e-13);
  wf_tensor *p = numbers(WF_F64, WF_SHAPE(20, 17, 9), "p"), *q = numbers(WF_F64, WF_SHAPE(20, 9, 11), "q");
  wf_tensor *r = wf_matmul(ctx, p, q);
  for (int64_t i = 0; i < 20; i++)
    expect_same("batch", wf_view_raw(r, WF_SHAPE(17, 11), NULL, i * 17 * 11),
                wf_matmul(ctx, wf_view_raw(p, WF_SHAPE(17, 9), NULL, i * 17 * 9),
                          wf_view_raw(q, WF_SHAPE(9, 11), NULL, i * 9 * 11)),
                1e-14);
}
END_TEST

START_TEST(views) {
  wf_tensor *x = numbers(WF_F32, WF_SHAPE(6, 20), "view");
  wf_tensor *part = wf_slice(ctx, x, 1, 8, 16);
  int64_t copies = wf_ctx_copies(ctx);
  wf_tensor *heads = wf_reshape(ctx, part, WF_SHAPE(2, 3, 4, 2));
  ck_assert_ptr_eq(heads->storage, x->storage);
  wf_tensor *turned = wf_transpose(ctx, heads, 1, -2);
  ck_assert_int_eq(turned->shape[1], 4);
  wf_tensor *copied = wf_reshape(ctx, turned, WF_SHAPE(-1)); /* no view of it: a copy */
  ck_assert(copied->storage != x->storage);
  ck_assert_int_eq(wf_ctx_copies(ctx), copies);
  expect_same("there and back", wf_transpose(ctx, wf_reshape(ctx, copied, WF_SHAPE(2, 4, 3, 2)), 1, 2), heads,
              0);
  expect_same("expanded", wf_sum(ctx, wf_expand(ctx, part, WF_SHAPE(5, 6, 8)), 0, false),
              wf_affine(ctx, part, 5, 0), 1e-6);
}
END_TEST

/* The mask is Philox as core/rng.h draws it. */
START_TEST(dropout_draws) {
  enum { N = 3, D = 517 };
  wf_rows *rows;
  ck_assert(wf_rows_fresh(ctx, 1, N, 70001, &rows) == WF_OK);
  wf_rng_key key = wf_rng_key_make(5, "dropout", "test");
  float ones[N * D], y[N * D];
  for (int i = 0; i < N * D; i++) ones[i] = 1;
  wf_tensor *x = wf_from_host(ctx, "test", WF_F32, WF_SHAPE(N, D), ones);
  ck_assert_ptr_eq(wf_dropout(ctx, x, rows, 0, key, 3), x);
  ck_assert(wf_to_host(wf_dropout(ctx, x, rows, 0.25, key, 3), y) == WF_OK);
  for (uint32_t i = 0; i < N; i++)
    for (uint32_t j = 0; j < D; j++) {
      uint32_t w[4];
      wf_rng_draw(key, 3, 70001, i, j / 4, w);
      ck_assert_float_eq(y[i * D + j], w[j % 4] >= 0x40000000u ? (float)(1 / 0.75) : 0);
    }
  wf_rows_free(rows);
}
END_TEST

/* The gradient of a cast is added where its input has another use. */
START_TEST(cast_of_a_shared_input) {
  wf_tensor *x = numbers(WF_F32, WF_SHAPE(7, 5), "x"), *w = numbers(WF_F64, WF_SHAPE(7, 5), "w");
  wf_leaf leaf = {.grad = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(7, 5))};
  wf_tape *tape;
  ck_assert(wf_tape_create(ctx, &tape) == WF_OK && wf_tape_watch(tape, x, &leaf) == WF_OK);
  wf_tape_record(tape);
  wf_tensor *y[2] = {wf_affine(ctx, x, 3, 0), wf_mul(ctx, wf_cast(ctx, x, WF_F64), w)}, *cot[2];
  wf_tape_pause(tape);
  for (int i = 0; i < 2; i++)
    cot[i] = wf_affine(ctx, wf_zeros(ctx, "test", y[i]->dtype, 2, y[i]->shape), 1, 1);
  ck_assert_msg(wf_backward(tape, 2, y, cot) == WF_OK, "%s", wf_error_message());
  expect_same("gradient", leaf.grad, wf_affine(ctx, w, 1, 3), 1e-7);
  wf_tape_free(tape);
}
END_TEST

/* Adjacent pairs as complex numbers, positions modulo a period; the third pair stays. */
START_TEST(rotary_of_adjacent_pairs) {
  enum { N = 5, H = 2, K = 6, DIM = 4, PERIOD = 7 };
  int64_t pos[N] = {0, 3, 6, 7, 7000003};
  double x[N * H * K], y[N * H * K];
  for (int i = 0; i < N * H * K; i++) x[i] = wf_rng_normal(wf_rng_key_make(2, "test", "rotary"), (uint64_t)i);
  wf_tensor *p = wf_from_host(ctx, "test", WF_I64, WF_SHAPE(N), pos);
  wf_tensor *t = wf_from_host(ctx, "test", WF_F64, WF_SHAPE(N, H, K), x);
  ck_assert(wf_to_host(wf_rotary_adjacent(ctx, t, p, 100, DIM, PERIOD), y) == WF_OK);
  for (int i = 0; i < N * H * K; i += 2) {
    int n = i / (H * K), pair = i % K / 2;
    double angle = pair < DIM / 2 ? (double)(pos[n] % PERIOD) * pow(100, -2.0 * pair / DIM) : 0;
    ck_assert_double_eq_tol(y[i], x[i] * cos(angle) - x[i + 1] * sin(angle), 1e-14);
    ck_assert_double_eq_tol(y[i + 1], x[i + 1] * cos(angle) + x[i] * sin(angle), 1e-14);
  }
}
END_TEST

/* Many rows, several threads: norms written out in other ops. */
START_TEST(large_norms) {
  wf_tensor *x = numbers(WF_F32, WF_SHAPE(300, 67), "x"), *r = numbers(WF_F32, WF_SHAPE(300, 67), "r");
  wf_tensor *w = numbers(WF_F32, WF_SHAPE(67), "w"), *b = numbers(WF_F32, WF_SHAPE(67), "b"), *h;
  wf_tensor *y = wf_add_norm(ctx, WF_NORM_LAYER, x, r, w, b, 1e-5, &h), *sum = wf_add(ctx, x, r);
  expect_same("sum", h, sum, 0);
  wf_tensor *centred = wf_sub(ctx, sum, wf_mean(ctx, sum, 1, true));
  wf_tensor *var = wf_mean(ctx, wf_square(ctx, centred), 1, true);
  wf_tensor *plain = wf_div(ctx, centred, wf_sqrt(ctx, wf_affine(ctx, var, 1, 1e-5)));
  expect_same("layer norm", y, wf_add(ctx, wf_mul(ctx, plain, w), b), 1e-6);
  wf_tensor *square = wf_sum(ctx, wf_square(ctx, x), 1, true);
  wf_tensor *length = wf_sqrt(ctx, wf_affine(ctx, square, 1, 0.5));
  expect_same("L2 norm", wf_l2norm(ctx, x, 0.5), wf_div(ctx, x, length), 1e-6);
  wf_tensor *rms = wf_sqrt(ctx, wf_affine(ctx, square, 1 / 67.0, 0.5));
  expect_same("RMS norm", wf_norm(ctx, WF_NORM_RMS, x, NULL, NULL, 0.5), wf_div(ctx, x, rms), 1e-6);
}
END_TEST

/* More tokens than rows, more columns than a cache line: sums over repeated ids. */
START_TEST(large_embedding) {
  enum { N = 500, V = 23, D = 70 };
  int32_t id[N];
  double count[V] = {0};
  for (int i = 0; i < N; i++) {
    id[i] = (int32_t)wf_rng_below(wf_rng_key_make(2, "test", "id"), (uint64_t)i, V);
    count[id[i]]++;
  }
  wf_tensor *ids = wf_from_host(ctx, "test", WF_I32, WF_SHAPE(N), id);
  wf_tensor *ones = wf_affine(ctx, wf_zeros(ctx, "test", WF_F32, WF_SHAPE(N, D)), 1, 1);
  int64_t rows = V;
  wf_tensor *in[2] = {ones, ids}, *d = wf_op_apply(ctx, &wf_op_embedding_grad, 2, in, &rows, NULL);
  wf_tensor *want = wf_from_host(ctx, "test", WF_F64, WF_SHAPE(V, 1), count);
  expect_same("counts", d, wf_cast(ctx, wf_expand(ctx, want, WF_SHAPE(V, D)), WF_F32), 0);
  wf_tensor *table = numbers(WF_F32, WF_SHAPE(V, D), "table");
  expect_same("last token", wf_slice(ctx, wf_embedding(ctx, table, ids), 0, N - 1, N),
              wf_slice(ctx, table, 0, id[N - 1], id[N - 1] + 1), 0);
}
END_TEST

/* The gradient takes the place of logits that nobody else holds, and only of those. */
START_TEST(loss_in_place) {
  wf_tensor *x = numbers(WF_F32, WF_SHAPE(5, 11), "logits"), *out[WF_MAX_OUT];
  wf_tensor *in[2] = {x, wf_from_host(ctx, "test", WF_I32, WF_SHAPE(5), (int32_t[]){3, -1, 10, 0, 3})};
  double z = 0.01;
  wf_op_apply(ctx, &wf_op_xent, 2, in, &z, out);
  wf_tensor *dout[2] = {wf_affine(ctx, out[0], 0, 1), NULL}, *apart = wf_empty_like(ctx, "test", x);
  wf_tensor *din[2] = {apart, NULL};
  wf_vjp g = {ctx, &wf_op_xent, &z, 2, 2, in, out, dout, din, 0};
  ck_assert(wf_op_xent.vjp(&g) == WF_OK);
  wf_scope s = wf_scope_open(ctx);
  wf_view_raw(x, 2, x->shape, x->stride, 0); /* somebody else */
  ck_assert_ptr_null(wf_op_xent.vjp_alias(&g, 0));
  wf_scope_close(ctx, s);
  ck_assert_ptr_eq(wf_op_xent.vjp_alias(&g, 0), x);
  expect_same("in place", x, apart, 0);
}
END_TEST

static void expect_refused(wf_tensor *t, const char *text) {
  ck_assert(wf_is_poison(t));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  ck_assert_msg(strstr(wf_error_message(), text), "'%s' says nothing of '%s'", wf_error_message(), text);
}

START_TEST(refusals) {
  wf_tensor *x = numbers(WF_F32, WF_SHAPE(4, 6), "x"), *y = numbers(WF_F32, WF_SHAPE(5, 6), "y");
  expect_refused(wf_add(ctx, x, y), "[4, 6] f32 and [5, 6] f32 do not broadcast");
  expect_refused(wf_add(ctx, x, wf_cast(ctx, x, WF_F64)), "both f32 and f64");
  expect_refused(wf_matmul(ctx, x, y), "no product");
  expect_refused(wf_linear(ctx, x, wf_transpose(ctx, y, 0, 1), NULL), "does not project");
  expect_refused(wf_linear(ctx, x, y, wf_slice(ctx, x, 1, 0, 5)), "does not fit");
  expect_refused(wf_reshape(ctx, x, WF_SHAPE(5, -1)), "reshaped");
  expect_refused(wf_slice(ctx, x, 0, 2, 5), "no slice 2 to 5");
  expect_refused(wf_transpose(ctx, x, 0, 2), "exchanged");
  expect_refused(wf_expand(ctx, x, WF_SHAPE(4, 7)), "broadcast");
  expect_refused(wf_sum(ctx, x, 2, false), "no dimension 2");
  expect_refused(wf_sum_to(ctx, x, WF_SHAPE(3, 6)), "summed");
  wf_tensor *ids = wf_from_host(ctx, "test", WF_I32, WF_SHAPE(4), (int32_t[]){0, 3, 4, -1});
  ck_assert(wf_is_poison(wf_embedding(ctx, x, ids)));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  ck_assert_str_eq(wf_error_message(), "id 4 at place 2; there are rows 0 to 3");
  ck_assert(!wf_is_poison(wf_xent(ctx, x, ids, 0))); /* -1: not counted */
  ck_assert(wf_is_poison(wf_xent(ctx, wf_slice(ctx, x, 1, 0, 4), ids, 0)));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  ck_assert_str_eq(wf_error_message(), "label 4 at place 2; there are 4 classes");
  expect_refused(wf_norm(ctx, WF_NORM_RMS, x, wf_slice(ctx, x, 1, 0, 5), NULL, 1e-6), "weight or bias");
  expect_refused(wf_glu(ctx, WF_GLU_SWI, x, y), "gate and up differ");
  expect_refused(wf_rotary(ctx, wf_reshape(ctx, x, WF_SHAPE(4, 2, 3)), ids, 1e4, 2), "positions");
  expect_refused(wf_exp(ctx, wf_from_host(ctx, "test", WF_I32, WF_SHAPE(1), (int32_t[]){1})), "i32");
}
END_TEST

#ifndef WEFT_CUDA
START_TEST(no_cuda) {
  wf_device *gpu;
  ck_assert_int_eq(wf_device_open(WF_CUDA, 0, &gpu), WF_EUNSUPPORTED);
  ck_assert_msg(strstr(wf_error_message(), "built without CUDA"), "%s", wf_error_message());
  ck_assert_msg(strstr(wf_error_hint(), "WEFT_CUDA=ON"), "%s", wf_error_hint());
}
END_TEST
#endif

static Suite *ops_suite(void) {
  Suite *s = suite_create("ops");
  TCase *t = tcase_create("table");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_test(t, described);
  tcase_add_test(t, f32_against_f64);
  tcase_add_test(t, strided_against_contiguous);
  tcase_add_test(t, instruction_sets);
  tcase_add_test(t, adding);
  tcase_add_test(t, twice);
  tcase_add_test(t, out_of_memory);
  suite_add_tcase(s, t);
  t = tcase_create("single");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_test(t, large_sums);
  tcase_add_test(t, large_products);
  tcase_add_test(t, views);
  tcase_add_test(t, dropout_draws);
  tcase_add_test(t, cast_of_a_shared_input);
  tcase_add_test(t, rotary_of_adjacent_pairs);
  tcase_add_test(t, large_norms);
  tcase_add_test(t, large_embedding);
  tcase_add_test(t, loss_in_place);
  tcase_add_test(t, refusals);
#ifndef WEFT_CUDA
  tcase_add_test(t, no_cuda);
#endif
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(ops_suite)
