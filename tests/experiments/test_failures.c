/* Every allocation of a run fails once: an error each time, no leak, no crash, and what is left works.
 *
 * "An error each time" has one exception: a device's cache of blocks may be emptied instead, and then all
 * goes well. */
#define _GNU_SOURCE /* mkdtemp */
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/rng.h"
#include "experiments/assemble.h"
#include "experiments/checkpoint.h"
#include "layers/stream.h"
#include "optim/clip.h"
#include "optim/ema.h"
#include "tests/check_main.h"
#include "tests/temp_dir.h"

#define OK(expr) ck_assert_msg((expr) == WF_OK, "%s: %s\n%s", #expr, wf_error_message(), wf_error_trace())

enum { VOCAB = 23, LANES = 2, LENGTH = 10, TOKENS = LANES * LENGTH, STREAM = 4 };

/* All kinds of state: keys and values, a window, a recurrence, a convolution. */
static const char text[] = "data: {store: none.h5, seq_len: 10}\n"
                           "model:\n"
                           "  d_model: 8\n"
                           "  vocab: 23\n"
                           "  dropout: 0.1\n"
                           "  norm: layernorm\n"
                           "  blocks:\n"
                           "    - {mixer: {type: attention, heads: 4, kv_heads: 2, qk_norm: true, sinks: "
                           "true}, mlp: {type: gelu, bias: true}}\n"
                           "    - {mixer: {type: simple_gla, heads: 2}, mlp: {type: swiglu, width: 12}}\n"
                           "    - {mixer: {type: attention, heads: 2, window: 3, position: alibi}}\n"
                           "train: {steps: 20, batch_tokens: 20, ema: 0.9, rules: \"@embedding lr=0.5\",\n"
                           "        optimizer: {type: adamw, lr: 1.0e-2}}\n";

typedef struct run {
  wf_config cfg;
  wf_device *dev;
  wf_ctx *c;
  wf_model *m;
  wf_groups groups;
  wf_optimizer *optimizer;
  wf_ema *ema;
} run;

static wf_tokenizer *tokenizer;
static const char *const *sets;
static size_t n_sets;

static wf_status open_run(run *r) {
  *r = (run){0};
  WF_TRY(wf_config_load(&r->cfg, temp_path("run.yaml"), sets, n_sets, wf_types));
  WF_TRY(wf_assemble_device(&r->cfg, &r->dev));
  WF_TRY(wf_ctx_create(r->dev, &r->c));
  WF_TRY(wf_assemble_model(r->c, &r->cfg, VOCAB, &r->m));
  WF_TRY(wf_params_init(wf_model_params(r->m), 1));
  WF_TRY(wf_groups_of(r->m, &r->groups));
  WF_TRY(wf_assemble_optimizer(r->c, &r->cfg, &r->groups, &r->optimizer));
  wf_ema_options eo = {.decay = 0.9};
  return wf_ema_create(r->c, &eo, r->groups.n, r->groups.group, &r->ema);
}

static void close_run(run *r) {
  wf_ema_free(r->ema);
  wf_optimizer_free(r->optimizer);
  wf_groups_free(&r->groups);
  wf_model_free(r->m);
  wf_ctx_free(r->c);
  wf_device_close(r->dev);
  wf_config_free(&r->cfg);
}

/* Two sequences, the second of two documents; some tokens have no label. */
static wf_status gradient(run *r, wf_state *state, double *loss) {
  static const wf_row rows[] = {
      {.len = LENGTH, .flags = WF_ROW_LEAVES},
      {.begin = LENGTH, .len = 3, .lane = 1, .seq = 1},
      {.begin = LENGTH + 3, .len = LENGTH - 3, .lane = 1, .place = 3, .seq = 1, .flags = WF_ROW_LEAVES}};
  int32_t ids[TOKENS], labels[TOKENS];
  for (int i = 0; i < TOKENS; i++) {
    ids[i] = (int32_t)(wf_rng_uniform(wf_rng_key_make(1, "ids", ""), (uint64_t)i) * VOCAB);
    labels[i] = i % 7 == 3 ? -1 : (ids[i] * 5 + 1) % VOCAB;
  }
  wf_tokens t = {3, LANES, TOKENS, rows, ids, labels};
  wf_step s = {.stream = r->cfg.train.stream, .train = true, .seed = 3, .step = 2, .state = state};
  wf_params_reset(wf_model_params(r->m));
  wf_params_hold(wf_model_params(r->m));
  return wf_step_gradient(r->m, &s, &t, 1, true, loss);
}

static wf_status step(run *r, wf_state *state) {
  double loss;
  wf_grad_norm norm;
  WF_TRY(gradient(r, state, &loss));
  WF_TRY(wf_grad_measure(r->c, r->groups.n, r->groups.group, 0.05, 1, &norm));
  WF_TRY(wf_optimizer_step(r->optimizer, 1, norm.scale));
  return wf_ema_update(r->ema);
}

static wf_status step_and_save(run *r) {
  wf_state *state = NULL;
  size_t n;
  const void *blob = wf_tokenizer_blob(tokenizer, &n);
  WF_TRY(wf_state_create(r->c, wf_model_state_spec(r->m), WF_F32, LANES, LENGTH, true, &state));
  wf_status s = step(r, state);
  if (s == WF_OK) s = wf_ctx_check(r->c); /* nothing is left behind */
  wf_snapshot snap = {
      .params = wf_model_params(r->m), .optimizer = r->optimizer, .ema = r->ema, .state = state, .step = 1};
  if (s == WF_OK) s = wf_checkpoint_save(temp_path("run.h5"), &snap, text, blob, n);
  if (s == WF_OK) s = wf_checkpoint_load(temp_path("run.h5"), &snap);
  wf_state_free(state);
  return s;
}

static wf_status whole_life(void) {
  run r;
  wf_status s = open_run(&r);
  if (s == WF_OK) s = step_and_save(&r);
  close_run(&r);
  return s;
}

static wf_status open_trained(void) {
  wf_loaded l;
  WF_TRY(wf_loaded_open(temp_path("run.h5"), true, NULL, 0, &l));
  wf_loaded_close(&l);
  return WF_OK;
}

/* ---- the tests ---- */

static const char *const ways[][2] = {
    {"train.recompute=true", "train.stream=4"},
    {"train.recompute=false", "train.optimizer={type: muon}"},
};
enum { N_WAYS = sizeof ways / sizeof *ways };

static wf_status letters(void *given, const char **bytes, size_t *n) {
  *bytes = "abcdef";
  *n = *(bool *)given ? 0 : 6;
  *(bool *)given = true;
  return WF_OK;
}

static void set_up(void) {
  bool given = false;
  temp_dir_make();
  OK(wf_file_write(temp_path("run.yaml"), text, sizeof text - 1));
  OK(wf_tokenizer_train_chars(letters, &given, &tokenizer));
}

static void tear_down(void) {
  wf_tokenizer_free(tokenizer);
  temp_dir_remove();
}

/* Each allocation of `attempt` fails once; at least `least` of them are errors. */
static void sweep(wf_status (*attempt)(void), int64_t least) {
  int64_t live = wf_mem_live(), needed = wf_mem_alloc_count(), errors = 0;
  OK(attempt());
  needed = wf_mem_alloc_count() - needed;
  ck_assert_int_eq(wf_mem_live(), live);
  for (int64_t n = 1; n <= needed; n++) {
    wf_error_clear();
    wf_mem_fail_at(n);
    wf_status s = attempt();
    wf_mem_fail_at(0);
    ck_assert_msg(s == WF_OK || (s == WF_ENOMEM && strstr(wf_error_message(), "out of memory")),
                  "allocation %lld of %lld: %s\n%s", (long long)n, (long long)needed, wf_error_message(),
                  wf_error_trace());
    ck_assert_msg(wf_mem_live() == live, "allocation %lld of %lld leaks %lld: %s\n%s", (long long)n,
                  (long long)needed, (long long)(wf_mem_live() - live), wf_error_message(), wf_error_trace());
    errors += s != WF_OK;
  }
  ck_assert_int_gt(errors, least);
}

START_TEST(every_allocation_of_a_run_fails) {
  sets = ways[_i];
  n_sets = 2;
  sweep(whole_life, 1000);
}
END_TEST

START_TEST(every_allocation_of_opening_a_trained_model_fails) {
  OK(whole_life());
  sweep(open_trained, 500);
}
END_TEST

/* After a failed step the same objects give what they gave before. */
START_TEST(a_failed_step_can_be_repeated) {
  run r;
  wf_state *state;
  sets = ways[_i];
  n_sets = 2;
  OK(open_run(&r));
  OK(wf_state_create(r.c, wf_model_state_spec(r.m), WF_F32, LANES, LENGTH, true, &state));
  const wf_param_group *g = &wf_model_params(r.m)->group[0];
  float *first = wf_alloc("test", (size_t)g->numel * sizeof *first),
        *again = wf_alloc("test", (size_t)g->numel * sizeof *again);
  double loss, other;
  OK(gradient(&r, state, &loss));
  OK(wf_to_host(g->grad, first));
  OK(wf_state_reset(state));
  wf_device_trim(r.dev);
  int64_t needed = wf_mem_alloc_count(), errors = 0;
  OK(gradient(&r, state, &loss));
  needed = wf_mem_alloc_count() - needed;
  for (int64_t n = 1; n <= needed; n++) {
    OK(wf_state_reset(state));
    wf_device_trim(r.dev);
    int64_t live = wf_mem_live();
    wf_mem_fail_at(n);
    wf_status s = gradient(&r, state, &other);
    wf_mem_fail_at(0);
    ck_assert_msg(s == WF_OK || s == WF_ENOMEM, "allocation %lld: %s", (long long)n, wf_error_message());
    OK(wf_ctx_check(r.c));
    errors += s != WF_OK;
    wf_device_trim(r.dev);
    ck_assert_int_le(wf_mem_live(), live);
    OK(wf_state_reset(state));
    OK(gradient(&r, state, &other));
    OK(wf_to_host(g->grad, again));
    ck_assert(other == loss);
    ck_assert_msg(memcmp(first, again, (size_t)g->numel * sizeof *first) == 0, "allocation %lld: %s",
                  (long long)n, wf_error_trace());
  }
  ck_assert_int_gt(errors, 100);
  wf_free(first);
  wf_free(again);
  wf_state_free(state);
  close_run(&r);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("failures");
  TCase *c = tcase_create("failures");
  tcase_add_checked_fixture(c, set_up, tear_down);
  tcase_add_loop_test(c, every_allocation_of_a_run_fails, 0, N_WAYS);
  tcase_add_test(c, every_allocation_of_opening_a_trained_model_fails);
  tcase_add_loop_test(c, a_failed_step_can_be_repeated, 0, N_WAYS);
  suite_add_tcase(s, c);
  return s;
}

WF_CHECK_MAIN(suite)
