/* Ten steps of each optimiser, and clipping, against what PyTorch computed (tests/golden/README.md). */
#include "optim_test.h"

#include "core/safetensors.h"
#include "optim/clip.h"

enum { STEPS = 10, MOST = 256 };

static double *read_golden(const wf_safetensors *file, double *out, const wf_st_info **info,
                           const char *format, ...) WF_PRINTF(4, 5);
static double *read_golden(const wf_safetensors *file, double *out, const wf_st_info **info,
                           const char *format, ...) {
  char name[64];
  float x[MOST];
  va_list args;
  va_start(args, format);
  vsnprintf(name, sizeof name, format, args);
  va_end(args);
  const wf_st_info *found;
  OK(wf_st_find(file, name, &found));
  ck_assert_int_le(found->count, MOST);
  OK(wf_st_read_f32(file, found, 0, found->count, x));
  for (int64_t i = 0; i < found->count; i++) out[i] = (double)x[i];
  if (info) *info = found;
  return out;
}

static wf_safetensors *open_golden(const char *name) {
  char path[512];
  snprintf(path, sizeof path, "%s/tests/golden/%s.safetensors", WEFT_SOURCE_DIR, name);
  wf_safetensors *file;
  OK(wf_st_open(path, &file));
  return file;
}

static const struct trial {
  const char *file, *kind, *settings[6];
  const char *parameters[4], *steps, *states[3];
} trials[] = {
    {"adamw",
     "adamw",
     {"lr=0.01", "beta1=0.9", "beta2=0.95", "eps=1e-8", "weight_decay=0.1"},
     {"w", "b"},
     "",
     {"exp_avg", "exp_avg_sq"}},
    {"lion",
     "lion",
     {"lr=0.003", "beta1=0.9", "beta2=0.99", "weight_decay=0.1"},
     {"w", "b"},
     "",
     {"exp_avg"}},
    {"sgd", "sgd", {"lr=0.05", "momentum=0.9"}, {"w", "b"}, "momentum.", {NULL}},
    {"sgd", "sgd", {"lr=0.05", "momentum=0.9", "nesterov=true"}, {"w", "b"}, "nesterov.", {NULL}},
    {"sgd", "sgd", {"lr=0.05", "momentum=0.9", "weight_decay=0.1"}, {"w", "b"}, "l2.", {NULL}},
    {"muon",
     "muon",
     {"lr=0.02", "momentum=0.95", "weight_decay=0.1"},
     {"tall", "wide", "square"},
     "",
     {"momentum"}},
};
enum { N_TRIALS = sizeof trials / sizeof *trials };

/* Movement from the start, which is what a step computes: stricter than the parameters themselves. */
static double movement_error(int64_t n, const double *got, const double *want, const double *start) {
  double a[MOST], b[MOST];
  for (int64_t i = 0; i < n; i++) a[i] = got[i] - start[i], b[i] = want[i] - start[i];
  return err2(n, a, b);
}

static void run_parameter(const struct trial *trial, const wf_safetensors *file, const char *name,
                          wf_dtype dtype) {
  double start[MOST], x[MOST], got[MOST];
  const wf_st_info *info;
  read_golden(file, start, &info, "%s.start", name);
  int64_t n = info->count;
  wf_opt_range range = {name, 0, n, info->ndim, info->shape};
  wf_opt_group group = make_group(dtype, n, start, start, 1, &range);
  group.matrix = strcmp(trial->kind, "muon") == 0;
  wf_optimizer *opt = make_optimizer(trial->kind, trial->settings, 1, &group);
  for (int t = 0; t < STEPS; t++) {
    overwrite(group.grad, read_golden(file, x, NULL, "%s.grad.%d", name, t));
    OK(wf_optimizer_step(opt, 1, 1));
    to_doubles(group.value, got);
    read_golden(file, x, NULL, "%s%s.step.%d", trial->steps, name, t);
    ck_assert_msg(err2(n, got, x) < 1e-6, "%s %s step %d: err2 %g", trial->file, name, t, err2(n, got, x));
    double moved = movement_error(n, got, x, start);
    ck_assert_msg(moved < 1e-5, "%s %s step %d: movement %g", trial->file, name, t, moved);
  }
  for (int k = 0; k < 3 && trial->states[k]; k++) {
    to_doubles(wf_optimizer_state(opt, 0, k), got);
    ck_assert_double_lt(err2(n, got, read_golden(file, x, NULL, "%s.%s", name, trial->states[k])), 1e-6);
  }
  wf_optimizer_free(opt);
}

START_TEST(ten_steps) {
  const struct trial *trial = &trials[_i];
  wf_safetensors *file = open_golden(trial->file);
  for (int k = 0; k < 4 && trial->parameters[k]; k++) {
    run_parameter(trial, file, trial->parameters[k], WF_F32);
    run_parameter(trial, file, trial->parameters[k], WF_F64);
  }
  wf_st_close(file);
}
END_TEST

START_TEST(clipping) {
  static const char *const names[] = {"a", "b", "c"};
  wf_safetensors *file = open_golden("clip");
  double g[3][MOST], want[MOST], zero[MOST] = {0}, norm;
  wf_opt_group group[3];
  for (int k = 0; k < 3; k++) {
    const wf_st_info *info;
    read_golden(file, g[k], &info, "%s.grad", names[k]);
    group[k] = make_group(WF_F32, info->count, zero, g[k], 0, NULL);
  }
  read_golden(file, &norm, NULL, "norm");
  for (int k = 0; k < 3; k++) {
    wf_grad_norm m;
    int64_t n = wf_numel(group[k].grad);
    OK(wf_grad_measure(ctx, 3, group, 1, 1, &m));
    ck_assert_double_lt(fabs(m.norm - norm), 1e-6 * norm);
    for (int64_t i = 0; i < n; i++) g[k][i] *= m.scale;
    ck_assert_double_lt(err2(n, g[k], read_golden(file, want, NULL, "%s.clipped", names[k])), 1e-6);
    OK(wf_grad_measure(ctx, 3, group, 1, 100, &m));
    ck_assert_double_eq(m.scale, 1);
    to_doubles(group[k].grad, g[k]);
    ck_assert_double_eq(err2(n, g[k], read_golden(file, want, NULL, "%s.untouched", names[k])), 0);
  }
  wf_st_close(file);
}
END_TEST

static Suite *golden_suite(void) {
  Suite *s = suite_create("golden");
  TCase *t = tcase_create("golden");
  tcase_add_checked_fixture(t, setup, teardown);
  tcase_add_loop_test(t, ten_steps, 0, N_TRIALS);
  tcase_add_test(t, clipping);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(golden_suite)
