/* Identities between members of the families of sequence ops, in float64: what should not matter does not. */
#include "tests/core/seq_test.h"

enum { T = 70, H = 3, D = 5 };

static wf_rows *one_row(void) {
  wf_rows *rows;
  wf_row row = {.len = T, .flags = WF_ROW_LEAVES};
  ok(wf_rows_create(ctx, 1, &row, 1, &rows));
  return rows;
}

static wf_tensor *drawn(const char *site, int ndim, const int64_t *shape) {
  int64_t n = 1;
  for (int i = 0; i < ndim; i++) n *= shape[i];
  double *x = numbers(n, site);
  wf_tensor *t = tensor(WF_F64, ndim, shape, x);
  free(x);
  return t;
}

static wf_scan_in recurrence(void) {
  return (wf_scan_in){.q = drawn("q", WF_SHAPE(T, H, D)),
                      .k = wf_l2norm(ctx, drawn("k", WF_SHAPE(T, H, D)), 0),
                      .v = drawn("v", WF_SHAPE(T, H, D))};
}

static void equal(const char *what, const wf_tensor *a, const wf_tensor *b, double tolerance) {
  ok(wf_ctx_check(ctx));
  double *want = values(b);
  near_tensor(what, a, want, tolerance, 0);
  free(want);
}

/* Both inputs give the same outputs and the same state. */
static void same(const char *what, wf_scan_in a, wf_scan_in b) {
  wf_rows *rows = one_row();
  wf_tensor *left[2], *o[2];
  wf_scan_options opt = {.scale = 0.7};
  o[0] = wf_scan(ctx, &a, NULL, rows, &opt, &left[0]);
  o[1] = wf_scan(ctx, &b, NULL, rows, &opt, &left[1]);
  equal(what, o[0], o[1], 1e-13);
  equal(what, left[0], left[1], 1e-13);
  wf_rows_free(rows);
}

static wf_tensor *filled(double x, int ndim, const int64_t *shape) {
  return wf_affine(ctx, wf_zeros(ctx, "test", WF_F64, ndim, shape), 1, x);
}

START_TEST(gates_that_are_open) {
  open_cpu();
  wf_scope s = wf_scope_open(ctx);
  wf_scan_in plain = recurrence(), open = plain;
  open.g = wf_zeros(ctx, "test", WF_F64, WF_SHAPE(T, H));
  same("a gate of 0", open, plain);
  open.w = filled(1, WF_SHAPE(T, H));
  same("weights of 1", open, plain);
  open.g = wf_expand(ctx, wf_zeros(ctx, "test", WF_F64, WF_SHAPE(1, 1)), WF_SHAPE(T, H));
  same("one gate for all tokens", open, plain);
  wf_scope_close(ctx, s);
  close_cpu();
}
END_TEST

/* mLSTM: the memory is held times e^{-m}; from which m it starts does not matter where eps is 0. */
START_TEST(stabiliser_does_not_matter) {
  open_cpu();
  wf_rows *rows = NULL;
  wf_row row = {.len = T, .flags = WF_ROW_TAKES};
  ok(wf_rows_create(ctx, 1, &row, 1, &rows));
  wf_scope s = wf_scope_open(ctx);
  wf_scan_in in = recurrence();
  in.v = wf_append_one(ctx, in.v);
  wf_tensor *memory = drawn("memory", WF_SHAPE(1, H, D, D + 1)), *first = NULL;
  wf_tensor *i = wf_affine(ctx, drawn("i", WF_SHAPE(T, H)), 4, 0),
            *f = wf_logsigmoid(ctx, drawn("f", WF_SHAPE(T, H)));
  static const double starts[] = {0, -3, 2, 25};
  for (size_t k = 0; k < sizeof starts / sizeof *starts; k++) {
    wf_tensor *m0 = filled(starts[k], WF_SHAPE(1, H)), *drop, *floor, *left;
    wf_tensor *m = wf_scan_max(ctx, i, f, m0, NULL, rows, &drop, &left);
    wf_exp_gates(ctx, f, i, m, drop, &in.g, &in.w, &floor);
    wf_tensor *o = wf_scan(ctx, &in, wf_affine(ctx, memory, exp(-starts[k]), 0), rows,
                           &(wf_scan_options){.scale = 0.4}, NULL);
    wf_tensor *h = wf_normalise(ctx, o, floor, 0);
    if (first) equal("m", h, first, 1e-11);
    if (!first) first = h;
  }
  wf_scope_close(ctx, s);
  wf_rows_free(rows);
  close_cpu();
}
END_TEST

/* One head of keys for all queries is as many equal ones. */
START_TEST(shared_heads) {
  open_cpu();
  wf_scope s = wf_scope_open(ctx);
  wf_tensor *q = drawn("q", WF_SHAPE(T, H, D)), *k = drawn("k", WF_SHAPE(T, 1, D)),
            *v = drawn("v", WF_SHAPE(T, 1, D));
  wf_tensor *all_k = wf_contiguous(ctx, wf_expand(ctx, k, WF_SHAPE(T, H, D))),
            *all_v = wf_contiguous(ctx, wf_expand(ctx, v, WF_SHAPE(T, H, D)));
  wf_tensor *span = wf_from_host(ctx, "test", WF_I64, WF_SHAPE(1, 4), (int64_t[]){0, T, 0, 0});
  wf_attend_options o = {.scale = 0.4};
  equal("multi-query attention", wf_attend(ctx, q, k, v, span, NULL, NULL, NULL, &o),
        wf_attend(ctx, q, all_k, all_v, span, NULL, NULL, NULL, &o), 1e-14);
  wf_scan_in one = {.q = k, .k = wf_l2norm(ctx, drawn("k2", WF_SHAPE(T, 1, D)), 0), .v = q}, many = one;
  many.q = all_k, many.k = wf_contiguous(ctx, wf_expand(ctx, one.k, WF_SHAPE(T, H, D)));
  one.g = many.g = wf_logsigmoid(ctx, drawn("g", WF_SHAPE(T, H)));
  same("shared q and k", one, many);
  wf_scope_close(ctx, s);
  close_cpu();
}
END_TEST

static Suite *identities_suite(void) {
  Suite *s = suite_create("identities");
  TCase *t = tcase_create("identities");
  tcase_add_test(t, gates_that_are_open);
  tcase_add_test(t, stabiliser_does_not_matter);
  tcase_add_test(t, shared_heads);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(identities_suite)
