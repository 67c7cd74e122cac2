/* Training over ranks that mpirun starts: any mesh takes the steps of one process, and goes on from a
 * checkpoint of any other. */
#define _GNU_SOURCE
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#include "core/file.h"
#include "tests/check_main.h"
#include "tests/experiments/documents.h"

static const char config[] =
    "data: {store: text.h5, seq_len: 47, shuffle: true}\n"
    "model:\n"
    "  d_model: 16\n"
    "  blocks:\n"
    "    - {mixer: {type: simple_gla, heads: 2}, mlp: {type: swiglu, width: 24}}\n"
    "    - {mixer: {type: attention, heads: 2, kv_heads: 1}, mlp: {type: gelu, width: 24}}\n"
    "    - {mixer: {type: gated_deltanet, heads: 2}}\n"
    "    - {mixer: {type: slstm, heads: 2}}\n"
    "train:\n"
    "  steps: 50\n"
    "  batch_tokens: 376\n" /* 8 sequences */
    "  optimizer: {type: adamw, lr: 1.0e-3}\n"
    "  schedule: {type: constant}\n"
    "run: {threads: 1}\n"
    "eval: {every: 25}\n"
    "checkpoint: {every: 10}\n"
    "log: {every: 1}\n";

static void make_text(void) {
  make_documents(3000, config);
}

/* `n` processes; `arguments` of weft train c.yaml. */
static void train(int n, const char *name, const char *arguments) {
  char line[1500], mpirun[100] = "";
  if (n > 1) snprintf(mpirun, sizeof mpirun, "mpirun -n %d", n);
  snprintf(line, sizeof line, "%s " WEFT_PROGRAM " train c.yaml --set run.name=%s %s", mpirun, name,
           arguments);
  run(line);
}

enum { STEPS = 50 };

/* The training losses, then the last validation loss. */
static void losses(const char *name, double loss[STEPS + 1]) {
  char path[200];
  snprintf(path, sizeof path, "runs/%s/metrics.jsonl", name);
  FILE *f = fopen(temp_path(path), "r");
  ck_assert_ptr_nonnull(f);
  char line[1000];
  int n = 0;
  while (fgets(line, sizeof line, f)) {
    json_t *m = json_loads(line, 0, NULL);
    ck_assert_ptr_nonnull(m);
    ck_assert_int_lt(n, STEPS);
    loss[n++] = json_number_value(json_object_get(m, "loss"));
    if (json_object_get(m, "val_loss")) loss[STEPS] = json_number_value(json_object_get(m, "val_loss"));
    json_decref(m);
  }
  fclose(f);
  ck_assert_int_eq(n, STEPS);
}

static void same_curve(const char *name, const double one[STEPS + 1]) {
  double other[STEPS + 1];
  losses(name, other);
  for (int i = 0; i <= STEPS; i++)
    ck_assert_msg(fabs(other[i] - one[i]) <= 1e-5 * one[i], "%s, step %d: %.9g, alone %.9g", name, i + 1,
                  other[i], one[i]);
}

START_TEST(any_mesh_takes_the_same_steps) {
  static const struct {
    int ranks;
    const char *name, *arguments;
  } meshes[] = {
      {2, "data2", ""},
      {2, "sequence2", "--set parallel.sequence=2 --set parallel.attention=ring --set parallel.serial=turns"},
      {3, "sequence3", "--set parallel.sequence=3 --set parallel.layout=contiguous"},
      {4, "sequence4", "--set parallel.sequence=4 --set parallel.attention=usp"},
      {3, "data3", "--set parallel.bucket=3000"}, /* of 8 sequences, in many buckets */
      {4, "both", "--set parallel.sequence=2 --set train.accumulation=2 --set parallel.bucket=1"},
      {2, "streamed", "--set parallel.sequence=2 --set train.stream=20"},
      {4, "replicated", "--set parallel.zero=0 --set train.accumulation=2"},
  };
  double one[STEPS + 1];
  train(1, "alone", "");
  losses("alone", one);
  ck_assert_double_lt(one[STEPS - 1], one[0] - 0.2); /* it learns */
  for (size_t i = 0; i < sizeof meshes / sizeof *meshes; i++) {
    train(meshes[i].ranks, meshes[i].name, meshes[i].arguments);
    same_curve(meshes[i].name, one);
  }
}
END_TEST

/* Muon's shards are whole matrices; the average of the weights is divided as the optimiser's state. */
#define MUON "--set train.optimizer.type=muon --set train.optimizer.lr=1e-3 --set train.ema=0.9 "

START_TEST(matrix_optimisers_and_averages_divide) {
  double one[STEPS + 1];
  train(1, "muon", MUON);
  losses("muon", one);
  train(4, "muon4", MUON "--set parallel.bucket=2000 --set parallel.sequence=2 --set train.stream=20");
  ck_assert_msg(strstr(output, "(1 of 4 parts)"), "%s", output);
  same_curve("muon4", one);
  train(2, "muon2", MUON "--set parallel.zero=0 --set parallel.bucket=5000");
  same_curve("muon2", one);
  train(4, "muonwalk", MUON "--set train.steps=10 --set parallel.sequence=2");
  train(2, "muonwalk", MUON "--set train.steps=20 --set parallel.zero=0 --resume");
  train(3, "muonwalk",
        MUON "--set train.steps=30 --set parallel.sequence=3 --set parallel.bucket=1 --resume");
  train(1, "muonwalk", MUON "--resume");
  same_curve("muonwalk", one);
}
END_TEST

/* The state of each lane lies where its last segment is, and moves with the checkpoint. */
#define CARRY                                                                                        \
  "--set train.carry_state=true --set model.blocks.1.mixer.window=9 --set data.shuffle=false --set " \
  "train.batch_tokens=94 "

START_TEST(carried_states_take_any_mesh) {
  double one[STEPS + 1], fresh[STEPS + 1];
  train(1, "carried", CARRY);
  losses("carried", one);
  train(1, "fresh", CARRY "--set train.carry_state=false");
  losses("fresh", fresh);
  ck_assert_double_gt(fabs(fresh[STEPS - 1] - one[STEPS - 1]), 1e-4);
  train(3, "lanes3", CARRY); /* of 2 lanes */
  same_curve("lanes3", one);
  train(2, "pieces2",
        CARRY "--set parallel.sequence=2 --set parallel.layout=zigzag --set train.stream=20 --set "
              "parallel.serial=all_to_all");
  ck_assert_msg(strstr(output, "serial mixers: all-to-all over 4 shards, efficiency 1.00"), "%s", output);
  same_curve("pieces2", one);
  train(3, "moved3",
        CARRY "--set parallel.sequence=3 --set parallel.layout=zigzag --set train.stream=20 "
              "--set parallel.serial=turns --set parallel.relayout=always");
  ck_assert_msg(strstr(output, "relayout: 1 gated_deltanet moved to contiguous; exchanges of a step"), "%s",
                output);
  same_curve("moved3", one);
  train(4, "walk", CARRY "--set train.steps=10 --set parallel.sequence=2");
  train(2, "walk", CARRY "--set train.steps=20 --resume");
  train(3, "walk",
        CARRY "--set train.steps=30 --set parallel.sequence=3 --set parallel.layout=zigzag "
              "--set parallel.relayout=always --resume");
  train(1, "walk", CARRY "--resume");
  same_curve("walk", one);
}
END_TEST

/* The link by which scans choose their way is measured once, and stored for those who resume. */
START_TEST(resumed_scans_go_the_same_way) {
  double one[STEPS + 1], other[STEPS + 1];
  char stored[200] = "", *at;
  train(2, "linked", "--set parallel.sequence=2 --set parallel.link=80MB/s,50us");
  losses("linked", one);
  train(2, "halved", "--set train.steps=20 --set parallel.sequence=2 --set parallel.link=80MB/s,50us");
  train(2, "halved", "--set parallel.sequence=2 --resume");
  ck_assert_msg(strstr(output, "parallel.link: 80MB/s,50us\n"), "%s", output);
  losses("halved", other);
  for (int i = 0; i <= STEPS; i++) ck_assert_double_eq(other[i], one[i]);
  train(2, "measured", "--set train.steps=10 --set parallel.sequence=2");
  at = strstr(output, "parallel.link: ");
  ck_assert_msg(at && sscanf(at, "parallel.link: %199s (measured", stored) == 1, "%s", output);
  train(2, "measured", "--set train.steps=20 --set parallel.sequence=2 --resume");
  at = strstr(output, stored);
  ck_assert_msg(at && at[strlen(stored)] == '\n', "%s", output);
  train(4, "measured", "--set train.steps=30 --set parallel.sequence=4 --resume");
  ck_assert_msg(strstr(output, "flop/s (measured"), "%s", output);
  train(2, "measured", "--set train.steps=40 --resume");
  ck_assert_msg(!strstr(output, "parallel.link"), "%s", output);
}
END_TEST

START_TEST(wrong_launches_are_refused) {
  ck_assert_int_ne(
      shell("mpirun -n 2 " WEFT_PROGRAM " train c.yaml --set run.name=w --set parallel.sequence=3"), 0);
  ck_assert_msg(strstr(output, "parallel.sequence: 3 ranks for a sequence"), "%s", output);
  ck_assert_msg(strstr(output, "mpirun -n 3"), "%s", output);
  expect("train c.yaml --set run.name=w --set parallel.data=2", 1,
         "2 x sequence 1 is 2 ranks, and 1 was started");
  ck_assert_int_ne(shell("mpirun -n 3 " WEFT_PROGRAM " train c.yaml --set run.name=w --set "
                         "parallel.sequence=3 --set parallel.attention=all_to_all"),
                   0);
  ck_assert_msg(strstr(output, "3 ranks do not divide 2 heads"), "%s", output);
  ck_assert_int_ne(shell("mpirun -n 2 " WEFT_PROGRAM " train c.yaml --set run.name=w --set "
                         "parallel.sequence=2 --set parallel.link=fast"),
                   0);
  ck_assert_msg(strstr(output, "parallel.link: \"fast\" is no link"), "%s", output);
  ck_assert_int_ne(shell("mpirun -n 1 " WEFT_PROGRAM " train c.yaml --set run.name=w : -n 1 " WEFT_PROGRAM
                         " train c.yaml --set run.name=w --set run.seed=2"),
                   0);
  ck_assert_msg(strstr(output, "the ranks do not agree on the config"), "%s", output);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("parallel");
  TCase *t = tcase_create("parallel");
  tcase_set_timeout(t, 280);
  tcase_add_unchecked_fixture(t, make_text, temp_dir_remove);
  tcase_add_test(t, any_mesh_takes_the_same_steps);
  tcase_add_test(t, matrix_optimisers_and_averages_divide);
  tcase_add_test(t, carried_states_take_any_mesh);
  tcase_add_test(t, resumed_scans_go_the_same_way);
  tcase_add_test(t, wrong_launches_are_refused);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
