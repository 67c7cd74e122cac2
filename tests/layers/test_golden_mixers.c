/* Every mixer alone against its public reference implementation: output and all gradients, in some files with
 * the state that the sequences go on from and the one they leave, in float32 and in float64. A file of
 * tests/golden/mixers is one run of one mixer (tests/golden/README.md); one whose mixer does not exist fails.
 */
#include "tests/layers/contract.h"
#include "core/memory.h"
#include "core/safetensors.h"
#include "tests/check_main.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define OK(expr) ck_assert_msg((expr) == WF_OK, "%s: %s\n%s", #expr, wf_error_message(), wf_error_trace())
#define FOLDER   WEFT_SOURCE_DIR "/tests/golden/mixers/"

enum { MAX_FILES = 128, MAX_ROWS = 8, MAX_SLOTS = 8 };
static char *files[MAX_FILES];
static int n_files;

typedef struct golden {
  wf_safetensors *st;
  wf_device *dev;
  wf_ctx *c;
  const wf_layer_type *type;
  void *self;
  wf_params params;
  wf_state_spec spec;
  wf_state *state; /* NULL: sequences are fresh and leave nothing */
  wf_leaf dstate[MAX_SLOTS];
  wf_rows *rows;
  wf_tensor *x, *dy, *y;
  wf_leaf dx;
  double limit, largest; /* the largest norm of a gradient */
  double worst;
} golden;

/* ---- the file ---- */

static const char *said(const golden *g, const char *key) {
  const char *text = wf_st_metadata(g->st, key);
  ck_assert_msg(text != NULL, "the file does not say %s", key);
  return text;
}

static double number(const golden *g, const char *key) {
  return strtod(said(g, key), NULL);
}

/* free() */
static double *doubles(const golden *g, const char *name, int64_t count) {
  const wf_st_info *info;
  OK(wf_st_find(g->st, name, &info));
  ck_assert_msg(info->count == count, "%s has %lld elements, not %lld", name, (long long)info->count,
                (long long)count);
  float *narrow = malloc((size_t)count * sizeof *narrow);
  double *x = malloc((size_t)count * sizeof *x);
  OK(wf_st_read_f32(g->st, info, 0, count, narrow));
  for (int64_t i = 0; i < count; i++) x[i] = (double)narrow[i];
  free(narrow);
  return x;
}

static wf_tensor *tensor(const golden *g, wf_dtype dtype, const char *name, int64_t rows, int64_t columns) {
  double *x = doubles(g, name, rows * columns);
  wf_tensor *t = wf_cast(g->c, wf_from_host(g->c, "test", WF_F64, WF_SHAPE(rows, columns), x), dtype);
  OK(wf_ctx_check(g->c));
  free(x);
  return t;
}

/* ---- the layer ---- */

static void make_layer(golden *g, wf_dtype dtype) {
  void *options;
  g->type = wf_trial_parse(WF_LAYER_MIXER, said(g, "mixer"), &options);
  wf_build b = {.params = &g->params,
                .state = &g->spec,
                .prefix = "",
                .d_model = (int64_t)number(g, "d_model"),
                .layer = (int)number(g, "layer"),
                .n_layers = (int)number(g, "layers"),
                .init_std = 0.02,
                .out_std = 0.02,
                .norm_eps = number(g, "norm_eps")};
  OK(g->type->init(&b, options, &g->self));
  wf_trial_free_options(g->type, options);
  OK(wf_params_allocate(&g->params, g->c, dtype, NULL, NULL));
}

static void load_parameters(golden *g, wf_dtype dtype) {
  char name[256];
  int found = 0;
  for (int64_t i = 0; i < wf_st_count(g->st); i++)
    found += strncmp(wf_st_at(g->st, i)->name, "param.", 6) == 0;
  for (int i = 0; i < g->params.n; i++) {
    wf_param *p = g->params.param[i];
    const wf_st_info *info;
    snprintf(name, sizeof name, "param.%s", p->name);
    OK(wf_st_find(g->st, name, &info));
    ck_assert_msg(info->ndim == p->ndim &&
                      memcmp(info->shape, p->shape, sizeof *p->shape * (size_t)p->ndim) == 0,
                  "the shape of %s", name);
    wf_scope s = wf_scope_open(g->c);
    wf_tensor *value = tensor(g, dtype, name, 1, p->numel);
    void *raw = malloc((size_t)p->numel * 8);
    OK(wf_to_host(value, raw));
    OK(wf_tensor_write(p->value, raw));
    free(raw);
    wf_scope_close(g->c, s);
  }
  ck_assert_msg(found == g->params.n, "the file has %d parameters, the layer %d", found, g->params.n);
}

static void make_rows(golden *g) {
  wf_row row[MAX_ROWS] = {0};
  const char *before = wf_st_metadata(g->st, "before"); /* with states: tokens that the documents had */
  int64_t n = 0, at = 0, pos = before ? strtoll(before, NULL, 10) : 0;
  for (const char *text = said(g, "rows"); *text; n++) {
    char *end;
    ck_assert_int_lt(n, MAX_ROWS);
    row[n] =
        (wf_row){.begin = at, .len = strtoll(text, &end, 10), .lane = n, .seq = n, .pos = pos, .place = pos};
    if (before) row[n].flags = WF_ROW_TAKES | WF_ROW_LEAVES;
    at += row[n].len;
    text = *end ? end + 1 : end;
  }
  OK(wf_rows_create(g->c, n, row, n, &g->rows));
}

/* "<what>.<slot>" in the shape of the slot's tensor. */
static wf_tensor *slot_tensor(const golden *g, const char *what, int slot) {
  char name[256];
  const wf_tensor *like = g->state->in[slot];
  snprintf(name, sizeof name, "%s%s", what, g->spec.slot[slot].name); /* ".s" */
  return wf_reshape(g->c, tensor(g, like->dtype, name, 1, wf_numel(like)), like->ndim, like->shape);
}

static void make_state(golden *g, wf_dtype dtype, wf_tape *tape) {
  if (!wf_st_metadata(g->st, "before")) return;
  ck_assert_int_le(g->spec.n, MAX_SLOTS);
  OK(wf_state_create(g->c, &g->spec, dtype, g->rows->n, 0, true, &g->state));
  for (int i = 0; i < g->spec.n; i++) {
    wf_tensor *in = g->state->in[i], *from = slot_tensor(g, "state", i);
    OK(wf_op_run(g->c, &wf_op_copy, 1, &from, NULL, 1, &in, 0));
    g->dstate[i].grad = wf_zeros(g->c, "test", in->dtype, in->ndim, in->shape);
    OK(wf_tape_watch(tape, in, &g->dstate[i]));
  }
}

static void run_layer(golden *g, wf_dtype dtype) {
  wf_tape *tape;
  int64_t n = g->rows->n_tokens, d = (int64_t)number(g, "d_model");
  g->x = tensor(g, dtype, "x", n, d);
  g->dy = tensor(g, dtype, "dy", n, d);
  g->dx.grad = wf_zeros(g->c, "test", dtype, WF_SHAPE(n, d));
  OK(wf_tape_create(g->c, &tape));
  make_state(g, dtype, tape);
  wf_run run = {.c = g->c, .rows = g->rows, .state = g->state};
  wf_params_reset(&g->params);
  wf_params_hold(&g->params);
  OK(wf_params_watch(&g->params, tape));
  OK(wf_tape_watch(tape, g->x, &g->dx));
  wf_tape_record(tape);
  g->y = g->type->forward(&run, g->self, g->x);
  wf_tape_pause(tape);
  OK(wf_ctx_check(g->c));
  wf_tensor *root[1 + MAX_SLOTS] = {g->y}, *cotangent[1 + MAX_SLOTS] = {g->dy};
  int roots = 1;
  for (int i = 0; g->state && i < g->spec.n; i++) {
    root[roots] = g->state->out[i];
    cotangent[roots++] = slot_tensor(g, "dleft", i);
  }
  OK(wf_backward(tape, roots, root, cotangent));
  wf_params_release(&g->params);
  OK(wf_params_finish(&g->params));
  wf_tape_free(tape);
}

/* ---- what came out ---- */

static double norm(int64_t n, const double *x) {
  double s = 0;
  for (int64_t i = 0; i < n; i++) s += x[i] * x[i];
  return sqrt(s);
}

/* What the error of `want` is relative to: its own size; for a gate's gradient, whose terms nearly cancel,
 * the size of the terms, which the file says; and for one that is zero by mathematics (a key's bias under a
 * softmax) that of the largest gradient. */
static double size_of(const golden *g, const char *name, int64_t n, const double *want) {
  char key[256];
  double own = norm(n, want);
  snprintf(key, sizeof key, "terms.%s", strncmp(name, "grad.", 5) == 0 ? name + 5 : name);
  const char *terms = wf_st_metadata(g->st, key);
  return terms ? fmax(own, strtod(terms, NULL)) : own < 1e-9 * g->largest ? g->largest : own;
}

static void compare(golden *g, wf_tensor *got, const char *name) {
  int64_t n = wf_numel(got);
  double *want = doubles(g, name, n), *a = malloc((size_t)n * sizeof *a);
  wf_scope s = wf_scope_open(g->c);
  OK(wf_to_host(wf_cast(g->c, got, WF_F64), a));
  wf_scope_close(g->c, s);
  double size = size_of(g, name, n, want), most = 0;
  int64_t worst = 0;
  for (int64_t i = 0; i < n; i++) {
    double off = fabs(a[i] - want[i]);
    if (!(off <= most)) worst = i, most = off; /* also where it is no number */
    want[i] -= a[i];
  }
  double err2 = norm(n, want) / size, errmax = most * sqrt((double)n) / size;
  ck_assert_msg(err2 <= g->limit && errmax <= 10 * g->limit, "%s: err2 %.2e errmax %.2e at %lld (%g, not %g)",
                name, err2, errmax, (long long)worst, a[worst], want[worst] + a[worst]);
  g->worst = fmax(g->worst, err2);
  free(want);
  free(a);
}

static void compare_all(golden *g) {
  char name[256];
  for (int i = 0; i < g->params.n; i++) {
    snprintf(name, sizeof name, "grad.%s", g->params.param[i]->name);
    double *want = doubles(g, name, g->params.param[i]->numel);
    g->largest = fmax(g->largest, norm(g->params.param[i]->numel, want));
    free(want);
  }
  compare(g, g->y, "y");
  compare(g, g->dx.grad, "dx");
  for (int i = 0; i < g->params.n; i++) {
    snprintf(name, sizeof name, "grad.%s", g->params.param[i]->name);
    compare(g, g->params.param[i]->leaf.grad, name);
  }
  for (int i = 0; g->state && i < g->spec.n; i++) {
    snprintf(name, sizeof name, "left%s", g->spec.slot[i].name);
    compare(g, g->state->out[i], name);
    snprintf(name, sizeof name, "dstate%s", g->spec.slot[i].name);
    compare(g, g->dstate[i].grad, name);
  }
}

static void check_file(const char *file, wf_dtype dtype) {
  char path[1024];
  golden g = {.limit = dtype == WF_F64 ? 1e-7 : 1e-5}; /* the files' own rounding is 4e-8 */
  snprintf(path, sizeof path, FOLDER "%s", file);
  OK(wf_st_open(path, &g.st));
  OK(wf_device_open(WF_CPU, 0, &g.dev));
  OK(wf_ctx_create(g.dev, &g.c));
  make_layer(&g, dtype);
  load_parameters(&g, dtype);
  make_rows(&g);
  wf_scope s = wf_scope_open(g.c);
  run_layer(&g, dtype);
  compare_all(&g);
  wf_scope_close(g.c, s);
  printf("%s in %s: worst err2 %.1e\n", file, dtype == WF_F64 ? "float64" : "float32", g.worst);
  wf_free(g.self);
  wf_rows_free(g.rows);
  wf_params_free(&g.params);
  wf_state_free(g.state);
  wf_state_spec_free(&g.spec);
  wf_ctx_free(g.c);
  wf_device_close(g.dev);
  wf_st_close(g.st);
  ck_assert_int_eq(wf_mem_live(), 0);
}

START_TEST(in_float32) {
  check_file(files[_i], WF_F32);
}
END_TEST

START_TEST(in_float64) {
  check_file(files[_i], WF_F64);
}
END_TEST

/* ---- the list ---- */

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static void list_files(void) {
  DIR *folder = opendir(FOLDER);
  for (struct dirent *e; folder && (e = readdir(folder));) {
    if (!strstr(e->d_name, ".safetensors")) continue;
    if (n_files == MAX_FILES) abort();
    files[n_files++] = strdup(e->d_name);
  }
  if (folder) closedir(folder);
  qsort(files, (size_t)n_files, sizeof *files, by_name);
}

static Suite *golden_suite(void) {
  Suite *s = suite_create("golden mixers");
  TCase *c = tcase_create("golden mixers");
  list_files(); /* with none the program fails, as no test has run */
  tcase_add_loop_test(c, in_float32, 0, n_files);
  tcase_add_loop_test(c, in_float64, 0, n_files);
  suite_add_tcase(s, c);
  return s;
}

WF_CHECK_MAIN(golden_suite)
