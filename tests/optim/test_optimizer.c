/* AdamW, SGD and Lion against plain loops in double; odd and empty sizes, padding, groups with and without
 * decay, skipped steps, resuming from saved state, equal bytes in two runs, wrong groups, failing
 * allocations.
 */
#include "optim_test.h"

enum { MOST = 70000, STEPS = 6 };

static const int64_t sizes[] = {0, 1, 2, 63, 64, 65, 1000, MOST};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

/* ---- the formulas, as plainly as they can be written ---- */

typedef struct reference {
  double *p, *g, *m, *v;
  double lr, wd, scale;
  int t;
} reference;

static void adamw_loop(reference *r, int64_t i) {
  double b1 = 0.9, b2 = 0.95, g = r->scale * r->g[i];
  r->m[i] = b1 * r->m[i] + (1 - b1) * g;
  r->v[i] = b2 * r->v[i] + (1 - b2) * g * g;
  double mhat = r->m[i] / (1 - pow(b1, r->t)), vhat = r->v[i] / (1 - pow(b2, r->t));
  r->p[i] -= r->lr * r->wd * r->p[i];
  r->p[i] -= r->lr * mhat / (sqrt(vhat) + 1e-8);
}

static void lion_loop(reference *r, int64_t i) {
  double g = r->scale * r->g[i], c = 0.9 * r->m[i] + 0.1 * g;
  double sign = c > 0 ? 1 : c < 0 ? -1 : 0;
  r->p[i] -= r->lr * (sign + r->wd * r->p[i]);
  r->m[i] = 0.99 * r->m[i] + 0.01 * g;
}

static void sgd_loop(reference *r, int64_t i, double momentum, bool nesterov) {
  double g = r->scale * r->g[i] + r->wd * r->p[i];
  r->m[i] = momentum * r->m[i] + g;
  r->p[i] -= r->lr * (nesterov ? g + momentum * r->m[i] : r->m[i]);
}
static void sgd_plain_loop(reference *r, int64_t i) {
  sgd_loop(r, i, 0, false);
}
static void sgd_momentum_loop(reference *r, int64_t i) {
  sgd_loop(r, i, 0.9, false);
}
static void sgd_nesterov_loop(reference *r, int64_t i) {
  sgd_loop(r, i, 0.9, true);
}

static const struct trial {
  const char *kind, *settings[4];
  double wd;
  int states;
  void (*loop)(reference *, int64_t);
} trials[] = {
    {"adamw", {"lr=0.02", "weight_decay=0.1"}, 0.1, 2, adamw_loop},
    {"lion", {"lr=0.02", "weight_decay=0.3"}, 0.3, 1, lion_loop},
    {"sgd", {"lr=0.02", "momentum=0", "weight_decay=0.2"}, 0.2, 0, sgd_plain_loop},
    {"sgd", {"lr=0.02", "weight_decay=0.2"}, 0.2, 1, sgd_momentum_loop},
    {"sgd", {"lr=0.02", "weight_decay=0.2", "nesterov=true"}, 0.2, 1, sgd_nesterov_loop},
};
enum { N_TRIALS = sizeof trials / sizeof *trials };

/* ---- against the formulas ---- */

static void run_trial(const struct trial *trial, wf_dtype dtype, int64_t n, bool decay) {
  wf_scope scope = wf_scope_open(ctx);
  double *x = calloc(5 * (size_t)n + 1, sizeof *x), *got = x + 4 * n;
  reference r = {x, x + n, x + 2 * n, x + 3 * n, 0, decay ? trial->wd : 0, 0, 0};
  for (int64_t i = 0; i < n; i++) r.p[i] = draw(0, i);
  wf_opt_group group = make_group(dtype, n, r.p, r.g, 0, NULL);
  group.decay = decay;
  group.lr_scale = 0.5;
  wf_optimizer *opt = make_optimizer(trial->kind, trial->settings, 1, &group);
  ck_assert_int_eq(wf_optimizer_n_states(opt, 0), trial->states);
  ck_assert_int_eq(wf_optimizer_bytes(opt), trial->states * n * (int64_t)wf_dtype_size(dtype));
  for (r.t = 1; r.t <= STEPS; r.t++) {
    double factor = 1.0 / r.t;
    r.scale = 0.25 * r.t;
    r.lr = 0.02 * 0.5 * factor;
    for (int64_t i = 0; i < n; i++) r.g[i] = draw(r.t, i) * pow(10, -(double)(i % 4));
    overwrite(group.grad, r.g);
    OK(wf_optimizer_step(opt, factor, r.scale));
    for (int64_t i = 0; i < n; i++) trial->loop(&r, i);
  }
  double tol = dtype == WF_F64 ? 1e-13 : 1e-6;
  to_doubles(group.value, got);
  ck_assert_msg(err2(n, got, r.p) < tol, "%s, %lld elements: err2 %g", trial->kind, (long long)n,
                err2(n, got, r.p));
  for (int k = 0; k < trial->states; k++) {
    to_doubles(wf_optimizer_state(opt, 0, k), got);
    ck_assert_double_lt(err2(n, got, k ? r.v : r.m), tol);
  }
  ck_assert_int_eq(wf_optimizer_steps(opt), STEPS);
  wf_optimizer_free(opt);
  free(x);
  wf_scope_close(ctx, scope);
}

START_TEST(formulas) {
  const struct trial *trial = &trials[_i];
  for (int k = 0; k < N_SIZES; k++) {
    run_trial(trial, WF_F32, sizes[k], true);
    run_trial(trial, WF_F64, sizes[k], true);
  }
  run_trial(trial, WF_F32, 65, false);
  run_trial(trial, WF_F64, 65, false);
}
END_TEST

/* ---- two groups, skipping, resuming ---- */

enum { N = 777 };
static const int64_t shape_a[] = {25, 31}, shape_b[] = {N};
static const wf_opt_range range_a = {"a", 1, 775, 2, shape_a}, range_b = {"b", 0, N, 1, shape_b};

static void two_groups(wf_opt_group out[2]) {
  double p[N], g[N];
  for (int k = 0; k < 2; k++) {
    for (int i = 0; i < N; i++) p[i] = draw(2 * k, i), g[i] = draw(2 * k + 1, i);
    out[k] = make_group(WF_F32, N, p, g, 1, k ? &range_b : &range_a);
  }
  out[1].decay = false;
}

static void bytes_of(const wf_opt_group groups[2], float out[2 * N]) {
  OK(wf_to_host(groups[0].value, out));
  OK(wf_to_host(groups[1].value, out + N));
}

START_TEST(skips_what_is_not_finite) {
  wf_opt_group groups[2];
  two_groups(groups);
  wf_optimizer *opt = make_optimizer(trials[_i].kind, trials[_i].settings, 2, groups);
  float before[2 * N], after[2 * N];
  OK(wf_optimizer_step(opt, 1, 1));
  bytes_of(groups, before);
  OK(wf_optimizer_step(opt, 1, (double)NAN));
  OK(wf_optimizer_step(opt, 1, (double)INFINITY));
  bytes_of(groups, after);
  ck_assert_mem_eq(before, after, sizeof before);
  ck_assert_int_eq(wf_optimizer_steps(opt), 1);
  ck_assert_int_eq(wf_optimizer_skipped(opt), 2);
  ck_assert_int_eq(wf_optimizer_skipped_in_row(opt), 2);
  OK(wf_optimizer_step(opt, 1, 1));
  ck_assert_int_eq(wf_optimizer_skipped(opt), 2);
  ck_assert_int_eq(wf_optimizer_skipped_in_row(opt), 0);
  wf_optimizer_free(opt);
}
END_TEST

/* The device's own predicate: with GO at 0 an op leaves its buffers, and copies into other ones. */
START_TEST(control_go) {
  static const char *const names[] = {"adamw", "sgd", "lion", "muon_momentum", "muon_apply", "ema"};
  for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
    const wf_op *op = wf_op_find(names[k]);
    wf_sample s = {.ctx = ctx, .real = WF_F32, .index = 0, .seed = 1};
    OK(op->sample(&s));
    double ctl[8] = {0, 1, 1, 1, 1, 1};
    s.in[0] = from_doubles(WF_F32, 8, ctl);
    wf_tensor *out[WF_MAX_OUT] = {NULL};
    wf_op_apply(ctx, op, s.n_in, s.in, s.attr, out);
    OK(wf_ctx_check(ctx));
    float was[37], is[37];
    int n_out = op->n_out > 0 ? op->n_out : 2, moment = op->n_out == 1 ? 0 : s.n_in - 1;
    OK(wf_to_host(out[n_out - 1], is)); /* the last output is the last state, or the value itself */
    OK(wf_to_host(s.in[moment ? moment : 1], was));
    ck_assert_mem_eq(was, is, sizeof was);
  }
}
END_TEST

/* Five steps at once, or three, all state through host memory into another optimiser, and two: the same
 * bytes; and the same bytes again in a second run. */
START_TEST(resumes_bitwise) {
  float got[3][2 * N];
  for (int run = 0; run < 3; run++) {
    wf_opt_group groups[2];
    two_groups(groups);
    wf_optimizer *opt = make_optimizer(trials[_i].kind, trials[_i].settings, 2, groups);
    for (int t = 0; t < 5; t++) {
      if (run == 2 && t == 3) {
        wf_optimizer *next = make_optimizer(trials[_i].kind, trials[_i].settings, 2, groups);
        for (int k = 0; k < 2; k++)
          for (int i = 0; i < wf_optimizer_n_states(opt, k); i++) {
            double x[N];
            ck_assert_str_eq(wf_optimizer_state_name(opt, k, i), wf_optimizer_state_name(next, k, i));
            to_doubles(wf_optimizer_state(opt, k, i), x);
            overwrite(wf_optimizer_state(next, k, i), x);
          }
        wf_optimizer_set_steps(next, wf_optimizer_steps(opt), wf_optimizer_skipped(opt));
        wf_optimizer_free(opt);
        opt = next;
      }
      OK(wf_optimizer_step(opt, 1, 0.5));
    }
    bytes_of(groups, got[run]);
    wf_optimizer_free(opt);
  }
  ck_assert_mem_eq(got[0], got[1], sizeof got[0]);
  ck_assert_mem_eq(got[0], got[2], sizeof got[0]);
}
END_TEST

START_TEST(slices) {
  wf_opt_group groups[2];
  two_groups(groups);
  wf_optimizer *opt = make_optimizer("adamw", NULL, 2, groups);
  OK(wf_optimizer_step(opt, 1, 1));
  wf_tensor *m = wf_optimizer_state(opt, 0, 0), *part = wf_opt_slice(m, &range_a);
  ck_assert_int_eq(part->ndim, 2);
  ck_assert_int_eq(part->shape[0], 25);
  float whole[N], piece[775];
  OK(wf_to_host(m, whole));
  OK(wf_to_host(part, piece));
  ck_assert_mem_eq(whole + 1, piece, sizeof piece);
  ck_assert_double_eq(wf_optimizer_lr(opt), 1e-3);
  wf_optimizer_free(opt);
}
END_TEST

/* ---- refusals ---- */

static void refused(const wf_opt_group *group, const char *word) {
  const wf_optimizer_type *type = wf_optimizer_find("adamw");
  double options[8] = {0};
  ck_assert_uint_le(type->options_size, sizeof options);
  OK(wf_options_defaults(type->options, options));
  wf_optimizer *opt = NULL;
  ck_assert_int_eq(wf_optimizer_create(ctx, type, options, 1, group, &opt), WF_ESHAPE);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), word));
}

START_TEST(wrong_groups) {
  wf_opt_group groups[2], bad;
  two_groups(groups);
  double x[N + 1] = {0};
  bad = groups[0], bad.grad = from_doubles(WF_F32, N + 1, x);
  refused(&bad, "group of a");
  bad = groups[0], bad.grad = from_doubles(WF_F64, N, x);
  refused(&bad, "group of a");
  bad = groups[1], bad.matrix = true;
  refused(&bad, "parameter b");
  wf_opt_range outside = {"c", 3, 775, 2, shape_a};
  bad = groups[0], bad.range = &outside;
  refused(&bad, "parameter c");
  ck_assert_ptr_null(wf_optimizer_find("adam"));
  ck_assert_ptr_null(wf_optimizer_at(-1));
  ck_assert_ptr_null(wf_optimizer_at(wf_optimizer_type_count()));
}
END_TEST

/* Every allocation of creation and one step fails once; the error arrives, and after the run that succeeds
 * nothing is left behind. */
START_TEST(failing_allocations) {
  const wf_optimizer_type *type = wf_optimizer_at(_i);
  wf_opt_group groups[2];
  two_groups(groups);
  groups[0].matrix = true;
  double options[16] = {0};
  ck_assert_uint_le(type->options_size, sizeof options);
  OK(wf_options_defaults(type->options, options));
  wf_status s = WF_ENOMEM;
  int64_t live = 0, n = 0;
  while (s != WF_OK) {
    wf_device_trim(dev);
    live = wf_mem_live();
    wf_optimizer *opt = NULL;
    wf_mem_fail_at(++n);
    s = wf_optimizer_create(ctx, type, options, 2, groups, &opt);
    if (s == WF_OK) s = wf_optimizer_step(opt, 1, 1);
    wf_mem_fail_at(0);
    wf_optimizer_free(opt);
    ck_assert(s == WF_OK || s == WF_ENOMEM);
    ck_assert_int_eq(wf_ctx_check(ctx), WF_OK); /* no failure stays behind in the context */
    ck_assert_int_lt(n, 1000);
  }
  wf_device_trim(dev);
  ck_assert_int_eq(wf_mem_live(), live);
  ck_assert_int_gt(n, 4);
}
END_TEST

static Suite *optimizer_suite(void) {
  Suite *s = suite_create("optimizer");
  TCase *t = tcase_create("optimizer");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_loop_test(t, formulas, 0, N_TRIALS);
  tcase_add_loop_test(t, skips_what_is_not_finite, 0, N_TRIALS);
  tcase_add_test(t, control_go);
  tcase_add_loop_test(t, resumes_bitwise, 0, N_TRIALS);
  tcase_add_test(t, slices);
  tcase_add_test(t, wrong_groups);
  tcase_add_loop_test(t, failing_allocations, 0, wf_optimizer_type_count());
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(optimizer_suite)
