/* experiments/checkpoint: what is saved comes back bit for bit, whatever damages, fills or forbids the disk
 * leaves the earlier checkpoint, and a resumed run makes the same bytes as one that was not stopped. */
#define _GNU_SOURCE /* unshare */
#include <sched.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "core/file.h"
#include "core/h5.h"
#include "core/memory.h"
#include "core/rng.h"
#include "experiments/assemble.h"
#include "experiments/checkpoint.h"
#include "layers/stream.h"
#include "tests/check_main.h"
#include "tests/temp_dir.h"

#define OK(expr) ck_assert_msg((expr) == WF_OK, "%s: %s\n%s", #expr, wf_error_message(), wf_error_trace())

static char dir[600]; /* of a run; temp_path() reuses its buffers */
static wf_device *dev;
static wf_ctx *ctx;

static void set_up(void) {
  temp_dir_make();
  snprintf(dir, sizeof dir, "%s/run", temp_dir);
  signal(SIGXFSZ, SIG_IGN);
  OK(wf_device_open(WF_CPU, 0, &dev));
  OK(wf_ctx_create(dev, &ctx));
}

static void tear_down(void) {
  wf_ctx_free(ctx);
  wf_device_close(dev);
  temp_dir_remove();
}

/* ---- a run without a model: parameters, an optimiser, an average, a state ---- */

enum { MAX_PARAMS = 8 };

typedef struct run {
  wf_params params;
  wf_opt_group groups[4];
  wf_opt_range ranges[MAX_PARAMS];
  wf_optimizer *optimizer;
  wf_ema *ema;
  wf_state_spec spec;
  wf_state *state;
} run;

static double draw(const char *site, int64_t i) {
  return 2 * wf_rng_uniform(wf_rng_key_make(7, "test", site), (uint64_t)i) - 1;
}

/* t[i] = scale t[i] + draw(site, i) */
static void stir(wf_tensor *t, double scale, const char *site) {
  int64_t n = wf_numel(t);
  size_t size = wf_dtype_size(t->dtype);
  char *x = malloc((size_t)n * size);
  OK(wf_to_host(t, x));
  for (int64_t i = 0; i < n; i++)
    if (size == sizeof(float))
      ((float *)(void *)x)[i] = (float)(scale * (double)((float *)(void *)x)[i] + draw(site, i));
    else
      ((double *)(void *)x)[i] = scale * ((double *)(void *)x)[i] + draw(site, i);
  OK(wf_tensor_write(t, x));
  free(x);
}

static void make_optimizer(run *r, const char *kind) {
  const wf_optimizer_type *type = wf_optimizer_find(kind);
  void *options = calloc(1, type->options_size);
  int at = 0;
  for (int g = 0; g < r->params.n_groups; g++) {
    const wf_param_group *pg = &r->params.group[g];
    r->groups[g] = (wf_opt_group){pg->value,       pg->grad,          pg->kind.decay,
                                  pg->kind.matrix, pg->kind.lr_scale, .range = &r->ranges[at]};
    for (int i = 0; i < r->params.n; i++) {
      const wf_param *p = r->params.param[i];
      if (p->group != g) continue;
      r->ranges[at++] = (wf_opt_range){p->name, p->offset, p->numel, p->ndim, p->shape};
      r->groups[g].n_ranges++;
    }
  }
  OK(wf_options_defaults(type->options, options));
  OK(wf_options_set(type->options, options, "lr", "0.01"));
  OK(wf_optimizer_create(ctx, type, options, r->params.n_groups, r->groups, &r->optimizer));
  OK(wf_ema_create(ctx, &(wf_ema_options){.decay = 0.9}, r->params.n_groups, r->groups, &r->ema));
  wf_options_free(type->options, options);
  free(options);
}

static void declare(run *r, const char *name, unsigned flags, int ndim, const int64_t *shape) {
  wf_param *p;
  OK(wf_param_declare(&r->params, name, flags, (wf_init){.kind = WF_INIT_NORMAL, .b = 1}, ndim, shape, &p));
}

static void add_slot(run *r, const char *name, bool grows) {
  OK(wf_grow("test", (void **)&r->spec.slot, sizeof *r->spec.slot, (size_t)r->spec.n, &r->spec.cap));
  r->spec.slot[r->spec.n++] =
      (wf_state_slot){.name = wf_strdup("test", name), .grows = grows, .ndim = 1, .shape = {3}};
}

/* With `columns` and `rows` one can have a run that does not fit another's checkpoint. */
static void make_run(run *r, wf_dtype dtype, uint64_t seed, int64_t rows, int64_t columns) {
  *r = (run){0};
  declare(r, "embedding.weight", WF_PARAM_TABLE, WF_SHAPE(rows, columns));
  declare(r, "blocks.0.norm1.weight", WF_PARAM_NO_DECAY, WF_SHAPE(columns));
  declare(r, "blocks.0.mixer.q.weight", 0, WF_SHAPE(columns, columns));
  declare(r, "scale", WF_PARAM_NO_DECAY, 0, NULL);
  OK(wf_params_allocate(&r->params, ctx, dtype, NULL, NULL));
  OK(wf_params_init(&r->params, seed));
  make_optimizer(r, "adamw");
  add_slot(r, "blocks.0.mixer.s", false);
  add_slot(r, "blocks.0.mixer.keys", true);
  OK(wf_state_create(ctx, &r->spec, dtype, 2, 4, false, &r->state));
}

static void free_run(run *r) {
  wf_state_free(r->state);
  wf_state_spec_free(&r->spec);
  wf_ema_free(r->ema);
  wf_optimizer_free(r->optimizer);
  wf_params_free(&r->params);
}

/* One step whose gradient depends on the weights and on the step, with a skipped one now and then. */
static void step(run *r, int64_t t) {
  char site[32];
  snprintf(site, sizeof site, "step %lld", (long long)t);
  for (int i = 0; i < r->params.n; i++) {
    wf_scope s = wf_scope_open(ctx);
    OK(wf_tensor_zero(r->params.param[i]->leaf.grad));
    stir(r->params.param[i]->leaf.grad, 1, site);
    wf_scope_close(ctx, s);
  }
  OK(wf_optimizer_step(r->optimizer, 1, t % 7 == 6 ? (double)NAN : 1));
  OK(wf_ema_update(r->ema));
  for (int i = 0; i < 2; i++) stir(r->state->in[i], 0.5, site);
  for (int i = 0; i < 2; i++) r->state->position[i] += i + t;
}

static wf_snapshot snapshot(run *r, int64_t at) {
  return (wf_snapshot){.params = &r->params,
                       .optimizer = r->optimizer,
                       .ema = r->ema,
                       .state = r->state,
                       .step = at,
                       .tokens = 100 * at,
                       .cursor = 3 * at,
                       .seed = UINT64_MAX - 5};
}

static const char config[] = "run: {name: t}\n";

static wf_status save(run *r, const char *path, int64_t at) {
  wf_snapshot s = snapshot(r, at);
  return wf_checkpoint_save(path, &s, config, "blob\0of bytes", 13);
}

static wf_status save_step(run *r, const char *folder, int64_t at, int64_t keep) {
  wf_snapshot s = snapshot(r, at);
  return wf_checkpoint_save_step(folder, &s, config, NULL, 0, keep);
}

static char *slurp(const char *path, int64_t *bytes) {
  char *data;
  OK(wf_file_read(path, INT64_MAX, &data, bytes));
  return data;
}

static void spill(const char *path, const void *data, int64_t bytes) {
  FILE *f = fopen(path, "wb");
  ck_assert_ptr_nonnull(f);
  ck_assert_uint_eq(fwrite(data, 1, (size_t)bytes, f), (size_t)bytes);
  ck_assert_int_eq(fclose(f), 0);
}

static void flip(const char *path, int64_t at) {
  int64_t bytes;
  char *data = slurp(path, &bytes);
  data[at < 0 ? bytes + at : at] ^= 4;
  spill(path, data, bytes);
  wf_free(data);
}

static void assert_same_file(const char *a, const char *b) {
  int64_t n, m;
  char *x = slurp(a, &n), *y = slurp(b, &m);
  ck_assert_int_eq(n, m);
  ck_assert(memcmp(x, y, (size_t)n) == 0);
  wf_free(x);
  wf_free(y);
}

static void assert_text(const char *text, const char *part) {
  ck_assert_msg(strstr(text, part) != NULL, "'%s' is not in '%s'", part, text);
}

/* ---- what comes back ---- */

/* Save, load into a fresh run, save again: the same bytes; and 10 steps more make the same bytes. */
START_TEST(round_trip) {
  static const wf_dtype dtypes[] = {WF_F32, WF_F64};
  wf_dtype dtype = dtypes[_i % 2];
  int64_t columns = _i < 2 ? 3 : 700; /* 490,000 elements go through the buffer in two pieces */
  run a, b;
  make_run(&a, dtype, 1, 5, columns);
  make_run(&b, dtype, 2, 5, columns);
  for (int64_t t = 0; t < 10; t++) step(&a, t);
  OK(save(&a, temp_path("a.h5"), 10));

  wf_snapshot s = snapshot(&b, 0);
  s.seed = 0;
  OK(wf_checkpoint_load(temp_path("a.h5"), &s));
  ck_assert_int_eq(s.step, 10);
  ck_assert_int_eq(s.tokens, 1000);
  ck_assert_int_eq(s.cursor, 30);
  ck_assert_uint_eq(s.seed, UINT64_MAX - 5);
  ck_assert_int_eq(wf_optimizer_steps(b.optimizer), 9);
  ck_assert_int_eq(wf_optimizer_skipped(b.optimizer), 1);
  OK(save(&b, temp_path("b.h5"), 10));
  assert_same_file(temp_path("a.h5"), temp_path("b.h5"));

  for (int64_t t = 10; t < 20; t++) {
    step(&a, t);
    step(&b, t);
  }
  OK(save(&a, temp_path("a.h5"), 20));
  OK(save(&b, temp_path("b.h5"), 20));
  assert_same_file(temp_path("a.h5"), temp_path("b.h5"));
  free_run(&a);
  free_run(&b);
}
END_TEST

START_TEST(facts) {
  run a;
  wf_checkpoint_info info;
  make_run(&a, WF_F32, 1, 5, 3);
  OK(save(&a, temp_path("a.h5"), 4));
  OK(wf_checkpoint_read_info(temp_path("a.h5"), &info));
  ck_assert_str_eq(info.config, config);
  ck_assert_uint_eq(info.config_size, strlen(config));
  ck_assert_uint_eq(info.tokenizer_size, 13);
  ck_assert(memcmp(info.tokenizer, "blob\0of bytes", 13) == 0);
  ck_assert_str_eq(info.optimizer, "adamw");
  ck_assert_int_eq(info.vocab, 5);
  ck_assert(info.step == 4 && info.tokens == 400 && info.cursor == 12 && info.seed == UINT64_MAX - 5);
  wf_checkpoint_info_free(&info);

  wf_snapshot weights = {.params = &a.params};
  OK(wf_checkpoint_save(temp_path("b.h5"), &weights, "", NULL, 0));
  OK(wf_checkpoint_read_info(temp_path("b.h5"), &info));
  ck_assert_str_eq(info.config, "");
  ck_assert(!info.tokenizer && !info.optimizer && info.step == 0);
  wf_checkpoint_info_free(&info);
  free_run(&a);
}
END_TEST

static void assert_equal_weights(const run *a, const run *b, bool averages_of_b) {
  for (int g = 0; g < a->params.n_groups; g++) {
    wf_tensor *x = a->params.group[g].value,
              *y = averages_of_b ? wf_ema_average(b->ema, g) : b->params.group[g].value;
    size_t bytes = (size_t)wf_numel(x) * wf_dtype_size(x->dtype);
    char *p = malloc(bytes), *q = malloc(bytes);
    OK(wf_to_host(x, p));
    OK(wf_to_host(y, q));
    ck_assert(memcmp(p, q, bytes) == 0);
    free(p);
    free(q);
  }
}

/* Weights alone, plain or averaged, from f32 to f64 and back. */
START_TEST(weights) {
  run a, b, wide;
  make_run(&a, WF_F32, 1, 5, 3);
  make_run(&b, WF_F32, 2, 5, 3);
  make_run(&wide, WF_F64, 3, 5, 3);
  for (int64_t t = 0; t < 3; t++) step(&a, t);
  OK(save(&a, temp_path("a.h5"), 3));
  OK(wf_checkpoint_load_params(temp_path("a.h5"), &b.params, true));
  assert_equal_weights(&b, &a, true);
  OK(wf_checkpoint_load_params(temp_path("a.h5"), &wide.params, false));
  OK(save(&wide, temp_path("wide.h5"), 3));
  OK(wf_checkpoint_load_params(temp_path("wide.h5"), &b.params, false));
  assert_equal_weights(&b, &a, false);

  wf_snapshot alone = {.params = &a.params};
  OK(wf_checkpoint_save(temp_path("b.h5"), &alone, "", NULL, 0));
  OK(wf_checkpoint_load_params(temp_path("b.h5"), &b.params, true)); /* no averages: the weights */
  assert_equal_weights(&b, &a, false);
  free_run(&a);
  free_run(&b);
  free_run(&wide);
}
END_TEST

/* ---- what does not fit ---- */

static void assert_load_fails(run *r, const char *path, wf_status want, const char *message,
                              const char *hint) {
  wf_snapshot s = snapshot(r, 0);
  ck_assert_int_eq(wf_checkpoint_load(path, &s), want);
  assert_text(wf_error_message(), path);
  assert_text(wf_error_message(), message);
  assert_text(wf_error_hint(), hint);
}

START_TEST(misfits) {
  run a, b;
  char path[1024], bare[1024];
  strcpy(path, temp_path("a.h5"));
  strcpy(bare, temp_path("bare.h5"));
  make_run(&a, WF_F32, 1, 5, 3);
  OK(save(&a, path, 1));

  make_run(&b, WF_F32, 1, 6, 3);
  assert_load_fails(&b, path, WF_ESHAPE, "params/embedding.weight is [5, 3], the model has [6, 3]", "config");
  free_run(&b);

  make_run(&b, WF_F32, 1, 5, 3);
  strcpy(b.params.param[2]->name, "blocks.0.mixer.k.weight"); /* as long as the name it had */
  assert_load_fails(&b, path, WF_ENOTFOUND, "params/blocks.0.mixer.k.weight",
                    "params/blocks.0.mixer.q.weight");
  b.params.n--;
  strcpy(b.params.param[2]->name, "blocks.0.mixer.q.weight");
  wf_snapshot alone = {.params = &b.params};
  ck_assert_int_eq(wf_checkpoint_load(path, &alone), WF_ENOTFOUND);
  assert_text(wf_error_message(), "has params/scale, which the model does not have");
  ck_assert_int_eq(wf_checkpoint_load_params(path, &b.params, false), WF_ENOTFOUND);
  b.params.n++;

  wf_optimizer_free(b.optimizer);
  wf_ema_free(b.ema);
  make_optimizer(&b, "lion");
  assert_load_fails(&b, path, WF_EINVAL, "the optimiser adamw, not lion", "");

  alone.params = &a.params;
  OK(wf_checkpoint_save(bare, &alone, config, NULL, 0));
  assert_load_fails(&a, bare, WF_ENOTFOUND, "no state of an optimiser", "train.init");
  wf_snapshot averaged = {.params = &a.params, .ema = a.ema}, carried = {.state = a.state};
  ck_assert_int_eq(wf_checkpoint_load(bare, &averaged), WF_ENOTFOUND);
  assert_text(wf_error_message(), "no averaged weights");
  ck_assert_int_eq(wf_checkpoint_load(bare, &carried), WF_ENOTFOUND);
  assert_text(wf_error_message(), "no state of the sequences");

  OK(wf_ema_swap(a.ema));
  ck_assert_int_eq(save(&a, path, 1), WF_EINTERNAL);

  wf_h5_writer *w; /* a Weft file of another kind */
  OK(wf_h5_create(temp_path("other.h5"), &w));
  OK(wf_h5_set_string(w, "", "format", "weft token store"));
  OK(wf_h5_commit(w));
  assert_load_fails(&a, temp_path("other.h5"), WF_EFORMAT, "no checkpoint", "step-");
  OK(wf_h5_create(temp_path("other.h5"), &w));
  OK(wf_h5_set_string(w, "", "format", "weft checkpoint"));
  OK(wf_h5_set_i64(w, "", "version", 2));
  OK(wf_h5_commit(w));
  assert_load_fails(&a, temp_path("other.h5"), WF_EUNSUPPORTED, "version 2", "Weft that wrote it");
  free_run(&a);
  free_run(&b);
}
END_TEST

/* ---- a folder of checkpoints ---- */

typedef struct refusals {
  int n;
  char text[8][1024];
} refusals;

static void refuse(void *arg, const char *path, const char *why) {
  refusals *r = arg;
  snprintf(r->text[r->n++ % 8], sizeof r->text[0], "%s: %s", path, why);
}

static char *latest(const char *folder, refusals *r) {
  char *path;
  *r = (refusals){0};
  OK(wf_checkpoint_latest(folder, refuse, r, &path));
  return path;
}

START_TEST(last_ones_are_kept) {
  run a;
  refusals r;
  make_run(&a, WF_F32, 1, 5, 3);
  ck_assert_ptr_null(latest(dir, &r)); /* no such folder */
  for (int64_t t = 5; t <= 25; t += 5) OK(save_step(&a, dir, t, 2));
  ck_assert(!wf_file_exists(temp_path("run/step-00000015.h5")));
  ck_assert(wf_file_exists(temp_path("run/step-00000020.h5")));
  ck_assert(wf_file_exists(temp_path("run/step-00000025.h5")));
  spill(temp_path("run/step-1.h5"), "", 0); /* names that are not ours are no checkpoints, and stay */
  spill(temp_path("run/step-00000099.h5.txt"), "", 0);
  spill(temp_path("run/step-00000030.h5.tmp-77"), "half", 4);
  char *path = latest(dir, &r);
  ck_assert_str_eq(path, temp_path("run/step-00000025.h5"));
  ck_assert_int_eq(r.n, 0);
  wf_free(path);

  OK(save_step(&a, dir, 15, 1)); /* a run that went back: later ones do not push it out */
  ck_assert(wf_file_exists(temp_path("run/step-00000015.h5")));
  ck_assert(wf_file_exists(temp_path("run/step-00000020.h5")));
  ck_assert(!wf_file_exists(temp_path("run/step-00000030.h5.tmp-77")));
  OK(save_step(&a, dir, 123456789, 0));
  path = latest(dir, &r);
  ck_assert_str_eq(path, temp_path("run/step-123456789.h5"));
  wf_free(path);
  ck_assert(wf_file_exists(temp_path("run/step-00000015.h5")));
  ck_assert(wf_file_exists(temp_path("run/step-1.h5")));
  ck_assert(wf_file_exists(temp_path("run/step-00000099.h5.txt")));
  free_run(&a);
}
END_TEST

START_TEST(newest_good_one) {
  run a;
  refusals r;
  make_run(&a, WF_F32, 1, 5, 3);
  for (int64_t t = 1; t <= 5; t++) OK(save_step(&a, dir, t, 0));
  flip(temp_path("run/step-00000005.h5"), 3000);
  flip(temp_path("run/step-00000004.h5"), -60);
  ck_assert_int_eq(truncate(temp_path("run/step-00000003.h5"), 2000), 0);
  char *path = latest(dir, &r);
  ck_assert_str_eq(path, temp_path("run/step-00000002.h5"));
  wf_free(path);
  ck_assert_int_eq(r.n, 3);
  assert_text(r.text[0], "step-00000005.h5");
  assert_text(r.text[1], "trailer");
  assert_text(r.text[2], "cut short");
  spill(temp_path("run/step-00000002.h5"), "", 0);
  spill(temp_path("run/step-00000001.h5"), "text", 4);
  ck_assert_ptr_null(latest(dir, &r));
  ck_assert_int_eq(r.n, 5);
  assert_text(r.text[3], "empty");
  OK(wf_checkpoint_latest(dir, NULL, NULL, &path));
  ck_assert_ptr_null(path);
  free_run(&a);
}
END_TEST

/* Any flipped bit is found, wherever it is, by reading the facts; and a damaged weight by loading it. */
START_TEST(flipped_bits) {
  run a, b;
  int64_t bytes;
  wf_checkpoint_info info;
  make_run(&a, WF_F32, 1, 5, 3);
  make_run(&b, WF_F32, 2, 5, 3);
  OK(save(&a, temp_path("a.h5"), 1));
  char *data = slurp(temp_path("a.h5"), &bytes);
  char path[1024];
  strcpy(path, temp_path("b.h5"));
  for (int64_t i = 0; i < bytes; i += 41) {
    data[i] ^= 1;
    spill(path, data, bytes);
    data[i] ^= 1;
    ck_assert_int_eq(wf_checkpoint_read_info(path, &info), WF_EFORMAT);
  }
  spill(path, data, bytes);
  wf_h5_file *f;
  const wf_h5_info *o;
  OK(wf_h5_open(path, WF_H5_CHECK_LAZY, &f));
  OK(wf_h5_find(f, "optimizer/m/scale", &o));
  int64_t at = o->offset;
  wf_h5_close(f);
  flip(path, at);
  assert_load_fails(&b, path, WF_EFORMAT, "optimizer/m/scale", "");
  OK(wf_checkpoint_load_params(path, &b.params, false)); /* the weights are still good */
  wf_free(data);
  free_run(&a);
  free_run(&b);
}
END_TEST

/* ---- disks ---- */

START_TEST(full_disk) {
  run a;
  refusals r;
  struct rlimit before, small;
  make_run(&a, WF_F32, 1, 5, 3);
  OK(save_step(&a, dir, 1, 1));
  int64_t bytes;
  wf_free(slurp(temp_path("run/step-00000001.h5"), &bytes));
  ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
  for (int64_t limit = 0; limit < bytes; limit += bytes / 50) {
    small = before;
    small.rlim_cur = (rlim_t)limit;
    setrlimit(RLIMIT_FSIZE, &small);
    wf_status s = save_step(&a, dir, 2, 1);
    setrlimit(RLIMIT_FSIZE, &before);
    ck_assert_int_eq(s, WF_EIO);
    assert_text(wf_error_message(), "step-00000002.h5");
    ck_assert_str_ne(wf_error_hint(), "");
    char *path = latest(dir, &r);
    ck_assert_str_eq(path, temp_path("run/step-00000001.h5"));
    ck_assert_int_eq(r.n, 0);
    wf_free(path);
  }
  OK(save_step(&a, dir, 2, 1));
  ck_assert(!wf_file_exists(temp_path("run/step-00000001.h5")));
  free_run(&a);
}
END_TEST

/* A small disk fills up after some checkpoints. Only root can have one. */
START_TEST(full_tmpfs) {
  run a;
  refusals r;
  char disk[600];
  snprintf(disk, sizeof disk, "%s/disk", temp_dir);
  ck_assert_int_eq(mkdir(disk, 0700), 0);
  if (geteuid() != 0 || unshare(CLONE_NEWNS) != 0 ||
      mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
      mount("none", disk, "tmpfs", 0, "size=128k") != 0) {
    fprintf(stderr, "skipped: full_tmpfs needs root and mount\n");
    return;
  }
  make_run(&a, WF_F32, 1, 5, 3);
  int64_t t = 1;
  while (save_step(&a, disk, t, 0) == WF_OK) ck_assert_int_lt(++t, 1000);
  ck_assert_int_gt(t, 2);
  assert_text(wf_error_message(), strerror(ENOSPC));
  assert_text(wf_error_hint(), "free");
  char *path = latest(disk, &r), name[64];
  snprintf(name, sizeof name, "disk/step-%08lld.h5", (long long)(t - 1));
  ck_assert_str_eq(path, temp_path(name));
  ck_assert_int_eq(r.n, 0);
  wf_free(path);
  free_run(&a);
  ck_assert_int_eq(umount(disk), 0);
}
END_TEST

START_TEST(no_such_place) {
  run a;
  wf_checkpoint_info info;
  char *path;
  make_run(&a, WF_F32, 1, 5, 3);
  spill(temp_path("file"), "", 0);
  ck_assert_int_eq(save_step(&a, temp_path("file"), 1, 1), WF_EEXISTS);
  assert_text(wf_error_message(), "file");
  ck_assert_int_eq(wf_checkpoint_latest(temp_path("file"), NULL, NULL, &path), WF_EIO);
  ck_assert_int_eq(wf_checkpoint_read_info(temp_path("none.h5"), &info), WF_ENOTFOUND);
  if (geteuid() != 0) {
    ck_assert_int_eq(mkdir(temp_path("locked"), 0500), 0);
    ck_assert_int_eq(save_step(&a, temp_path("locked"), 1, 1), WF_EIO);
  } else {
    fprintf(stderr, "skipped: root may write everywhere\n");
  }
  free_run(&a);
}
END_TEST

/* ---- memory ---- */

/* Without the blocks that the device holds for the next tensors. */
static int64_t live_now(void) {
  wf_device_trim(dev);
  return wf_mem_live();
}

START_TEST(allocation_failures) {
  run a, b;
  char *path;
  wf_checkpoint_info info;
  make_run(&a, WF_F32, 1, 5, 3);
  make_run(&b, WF_F64, 2, 5, 3); /* f32 into f64 goes through the conversion */
  OK(save_step(&a, dir, 1, 1));
  int64_t live = live_now(), saves = 0, loads = 0;
  wf_status s;
  do {
    wf_mem_fail_at(++saves);
    s = save_step(&a, dir, 2, 0);
    wf_mem_fail_at(0);
    ck_assert_msg(s == WF_OK || s == WF_ENOMEM, "allocation %lld: %s", (long long)saves, wf_error_message());
    ck_assert_int_eq(live_now(), live);
    OK(wf_ctx_check(ctx));
    ck_assert(s != WF_OK || wf_file_exists(temp_path("run/step-00000002.h5")));
    ck_assert(wf_file_exists(temp_path("run/step-00000001.h5")));
  } while (s != WF_OK);
  do {
    wf_mem_fail_at(++loads);
    s = wf_checkpoint_latest(dir, NULL, NULL, &path);
    if (s == WF_OK) {
      wf_snapshot back = snapshot(&b, 0);
      s = wf_checkpoint_read_info(path, &info);
      if (s == WF_OK) wf_checkpoint_info_free(&info);
      if (s == WF_OK) s = wf_checkpoint_load(path, &back);
      ck_assert_str_eq(path, temp_path("run/step-00000002.h5"));
      wf_free(path);
    }
    wf_mem_fail_at(0);
    ck_assert_msg(s == WF_OK || s == WF_ENOMEM, "allocation %lld: %s", (long long)loads, wf_error_message());
    ck_assert_int_eq(live_now(), live);
    OK(wf_ctx_check(ctx));
  } while (s != WF_OK);
  ck_assert_int_gt(saves, 50);
  ck_assert_int_gt(loads, 100);
  free_run(&a);
  free_run(&b);
}
END_TEST

/* ---- a model ---- */

enum { LANES = 3, LENGTH = 12, TOKENS = LANES * LENGTH };

/* Every kind of state there is: keys and values, a window, a recurrence, a convolution; dropout draws by
 * step. */
static const char model_config[] =
    "data: {store: none.h5, seq_len: 12}\n"
    "model: {d_model: 16, vocab: 23, dropout: 0.1, tie_embeddings: false, blocks: ["
    "{mixer: {type: simple_gla, heads: 2}, mlp: {type: gelu}}, "
    "{mixer: {type: attention, heads: 4, kv_heads: 2, window: 5}, mlp: {type: swiglu, width: 24}}]}\n"
    "train: {steps: 20, batch_tokens: 36, optimizer: {type: %s, lr: 1.0e-2}}\n";

typedef struct trained {
  wf_config cfg;
  wf_model *m;
  wf_groups groups;
  wf_optimizer *optimizer;
  wf_state *state;
} trained;

static void make_trained(trained *r, const char *optimizer, int64_t init) {
  char yaml[1024];
  snprintf(yaml, sizeof yaml, model_config, optimizer);
  *r = (trained){0};
  OK(wf_config_parse(&r->cfg, "test.yaml", yaml, strlen(yaml), NULL, 0, wf_types));
  OK(wf_assemble_model(ctx, &r->cfg, 23, &r->m));
  OK(wf_params_init(wf_model_params(r->m), (uint64_t)init));
  OK(wf_groups_of(r->m, &r->groups));
  OK(wf_assemble_optimizer(ctx, &r->cfg, &r->groups, &r->optimizer));
  OK(wf_state_create(ctx, wf_model_state_spec(r->m), WF_F32, LANES, 0, false, &r->state));
}

static void free_trained(trained *r) {
  wf_state_free(r->state);
  wf_optimizer_free(r->optimizer);
  wf_groups_free(&r->groups);
  wf_model_free(r->m);
  wf_config_free(&r->cfg);
}

/* One step on tokens that continue those of the step before. */
static void train_step(trained *r, int64_t t) {
  int32_t ids[TOKENS], labels[TOKENS];
  wf_row row[LANES];
  double loss;
  for (int i = 0; i < TOKENS; i++) {
    ids[i] = (int32_t)(wf_rng_uniform(wf_rng_key_make(1, "ids", ""), (uint64_t)(t * TOKENS + i)) * 23);
    labels[i] = (ids[i] * 5 + 1) % 23;
  }
  for (int i = 0; i < LANES; i++)
    row[i] = (wf_row){.begin = i * LENGTH,
                      .len = LENGTH,
                      .pos = t * LENGTH,
                      .lane = i,
                      .place = t * LENGTH,
                      .flags = WF_ROW_LEAVES | (t ? WF_ROW_TAKES : 0),
                      .seq = i};
  wf_tokens tokens = {LANES, LANES, TOKENS, row, ids, labels};
  wf_step step = {.stream = 7, .train = true, .seed = 3, .step = t, .state = r->state};
  wf_params *ps = wf_model_params(r->m);
  wf_params_reset(ps);
  wf_params_hold(ps);
  OK(wf_step_gradient(r->m, &step, &tokens, 1.0 / TOKENS, true, &loss));
  OK(wf_optimizer_step(r->optimizer, 1, 1));
}

static void save_trained(trained *r, const char *path, int64_t t) {
  wf_snapshot s = {.params = wf_model_params(r->m), .optimizer = r->optimizer, .state = r->state, .step = t};
  OK(wf_checkpoint_save(path, &s, config, NULL, 0));
}

/* Save, 10 steps, reload, 10 steps: the same bytes. */
START_TEST(resume) {
  static const char *const optimizers[] = {"adamw", "muon"};
  trained a, b;
  make_trained(&a, optimizers[_i], 1);
  for (int64_t t = 0; t < 10; t++) train_step(&a, t);
  save_trained(&a, temp_path("a.h5"), 10);
  for (int64_t t = 10; t < 20; t++) train_step(&a, t);
  save_trained(&a, temp_path("through.h5"), 20);

  make_trained(&b, optimizers[_i], 2);
  wf_snapshot s = {.params = wf_model_params(b.m), .optimizer = b.optimizer, .state = b.state};
  OK(wf_checkpoint_load(temp_path("a.h5"), &s));
  ck_assert_int_eq(s.step, 10);
  ck_assert_int_eq(b.state->position[0], 10 * LENGTH);
  for (int64_t t = 10; t < 20; t++) train_step(&b, t);
  save_trained(&b, temp_path("resumed.h5"), 20);
  assert_same_file(temp_path("through.h5"), temp_path("resumed.h5"));

  OK(wf_state_reset(b.state)); /* and the carried state does matter */
  OK(wf_checkpoint_load(temp_path("a.h5"), &(wf_snapshot){.params = s.params, .optimizer = s.optimizer}));
  for (int64_t t = 10; t < 20; t++) train_step(&b, t);
  save_trained(&b, temp_path("resumed.h5"), 20);
  int64_t n, m;
  char *x = slurp(temp_path("through.h5"), &n), *y = slurp(temp_path("resumed.h5"), &m);
  ck_assert(n != m || memcmp(x, y, (size_t)n) != 0);
  wf_free(x);
  wf_free(y);
  free_trained(&a);
  free_trained(&b);
}
END_TEST

static Suite *checkpoint_suite(void) {
  Suite *s = suite_create("checkpoint");
  TCase *c = tcase_create("checkpoint");
  tcase_add_checked_fixture(c, set_up, tear_down);
  tcase_add_loop_test(c, round_trip, 0, 3);
  tcase_add_loop_test(c, resume, 0, 2);
  tcase_add_test(c, facts);
  tcase_add_test(c, weights);
  tcase_add_test(c, misfits);
  tcase_add_test(c, last_ones_are_kept);
  tcase_add_test(c, newest_good_one);
  tcase_add_test(c, flipped_bits);
  tcase_add_test(c, full_disk);
  tcase_add_test(c, full_tmpfs);
  tcase_add_test(c, no_such_place);
  tcase_add_test(c, allocation_failures);
  suite_add_tcase(s, c);
  return s;
}

WF_CHECK_MAIN(checkpoint_suite)
