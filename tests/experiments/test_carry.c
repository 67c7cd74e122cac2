/* train.carry_state: batches that go on where the last ones ended see what one long sequence sees, and a
 * resumed run goes on with the lanes' states to the last byte. */
#define _GNU_SOURCE
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#include "core/file.h"
#include "core/rng.h"
#include "tests/check_main.h"
#include "tests/experiments/run_weft.h"

/* Every kind of fixed state: a window of keys, a recurrence with convolutions, both beside each other. */
static const char config[] =
    "data: {store: text.h5, seq_len: 16, shuffle: false}\n"
    "model:\n"
    "  d_model: 16\n"
    "  init_std: 0.3\n"
    "  blocks:\n"
    "    - {mixer: {type: attention, heads: 2, window: 40}, mlp: {type: swiglu, width: 24}}\n"
    "    - {mixer: [{type: simple_gla, heads: 2}, {type: attention, heads: 2, window: 9}]}\n"
    "train:\n"
    "  steps: 0\n"
    "  batch_tokens: 16\n"
    "  carry_state: true\n"
    "  optimizer: {type: adamw, lr: 1.0e-2}\n"
    "  schedule: {type: constant}\n"
    "eval: {every: 0}\n"
    "checkpoint: {every: 0}\n"
    "log: {every: 1}\n";

static void make_texts(void) {
  temp_dir_make();
  wf_rng_key key = wf_rng_key_make(1, "test", "text");
  FILE *f = fopen(temp_path("one"), "w"), *many = fopen(temp_path("many"), "w");
  if (!f || !many) abort();
  for (uint64_t i = 0; i < 500; i++) fputc((int)('a' + wf_rng_below(key, i, 26)), f);
  for (uint64_t i = 0; i < 900; i++) { /* of lengths from 1 to a few hundred */
    fputc((int)('a' + wf_rng_below(key, 1000 + i, 26)), many);
    if (wf_rng_below(key, 5000 + i, 60) == 0 || i % 300 == 299) fputs("\n%\n", many);
  }
  if (fclose(f) != 0 || fclose(many) != 0) abort();
  if (wf_file_write(temp_path("c.yaml"), config, (int64_t)strlen(config)) != WF_OK) abort();
  run("weft data build one --validation 0 -o text.h5");
  run("weft data build many --validation 0.1 --split % -o many.h5");
}

/* The loss over all 499 labels, the text being cut into sequences of `length` in `lanes` lanes. */
static double loss_of(int length, int lanes, bool carry) {
  char line[400];
  snprintf(line, sizeof line,
           "weft eval c --split train --json --set data.seq_len=%d --set train.batch_tokens=%d "
           "--set train.carry_state=%s",
           length, length * lanes, carry ? "true" : "false");
  run(line);
  json_error_t e;
  json_t *eval = json_loads(output, 0, &e);
  ck_assert_msg(eval != NULL, "%s", output);
  ck_assert_int_eq(json_integer_value(json_object_get(eval, "tokens")), 499);
  double loss = json_number_value(json_object_get(eval, "loss"));
  json_decref(eval);
  return loss;
}

START_TEST(carried_pieces_see_what_the_whole_sees) {
  run("weft train c.yaml --set run.precision=f64 > log");
  const double whole = loss_of(500, 1, false), halves = loss_of(250, 2, false), cut = loss_of(16, 1, false);
  ck_assert_double_gt(fabs(whole - halves), 1e-6);
  ck_assert_double_gt(fabs(whole - cut), 1e-4);
  for (int i = 0; i < 4; i++) {
    const int length = (int[]){1, 16, 63, 500}[i];
    const double one = loss_of(length, 1, true);
    ck_assert_msg(fabs(one - whole) < 2e-8, "pieces of %d: %.10g, whole %.10g", length, one, whole);
    if (length == 500) continue;
    const double two = loss_of(length, 2, true);
    ck_assert_msg(fabs(two - halves) < 2e-8, "pieces of %d: %.10g, halves %.10g", length, two, halves);
  }
}
END_TEST

/* 30 steps in one go and with a stop after 13 end with the same bytes: over several epochs of documents of
 * all lengths, with dropout, parts of a batch and pieces of a sequence. */
START_TEST(a_resumed_run_goes_on_with_the_states) {
  static const char options[] =
      "--set data.store=../many.h5 --set data.shuffle=true --set model.dropout=0.2 "
      "--set train.batch_tokens=128 --set train.accumulation=2 --set train.stream=7";
  char line[1000];
  snprintf(
      line, sizeof line,
      "mkdir whole parts && cd whole && weft train ../c.yaml %s --set train.steps=30 && cd ../parts && "
      "weft train ../c.yaml %s --set train.steps=13 && weft train ../c.yaml %s --set train.steps=30 --resume",
      options, options, options);
  run(line);
  ck_assert_ptr_nonnull(strstr(output, "resuming after step 13"));
  run("cmp whole/runs/c/checkpoints/step-00000030.h5 parts/runs/c/checkpoints/step-00000030.h5");
  /* and the state is what makes the difference */
  snprintf(
      line, sizeof line,
      "cd parts && weft train ../c.yaml %s --set train.carry_state=false --set train.steps=30 --overwrite",
      options);
  run(line);
  ck_assert_int_ne(
      shell("cmp whole/runs/c/checkpoints/step-00000030.h5 parts/runs/c/checkpoints/step-00000030.h5"), 0);
}
END_TEST

START_TEST(states_that_grow_are_refused_at_their_place) {
  expect("config check c.yaml --set model.blocks.0.mixer.window=0", 1,
         "c.yaml:6:15: train.carry_state: the state of this attention grows with the document\n"
         "  hint: give it a window");
  expect("config check c.yaml --set model.blocks.1.mixer.1.window=0", 1, "c.yaml:7:46: train.carry_state");
  expect("config check c.yaml --set model.blocks.0.mixer.window=0 --set train.carry_state=false", 0, "fine");
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("carry");
  TCase *t = tcase_create("carry");
  tcase_add_unchecked_fixture(t, make_texts, temp_dir_remove);
  tcase_add_test(t, carried_pieces_see_what_the_whole_sees);
  tcase_add_test(t, a_resumed_run_goes_on_with_the_states);
  tcase_add_test(t, states_that_grow_are_refused_at_their_place);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
