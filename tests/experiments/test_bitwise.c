/* Bitwise runs: the same bytes on any number of processes that divides the virtual ranks. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "core/file.h"
#include "core/h5.h"
#include "core/memory.h"
#include "tests/check_main.h"
#include "tests/experiments/documents.h"

static const char config[] =
    "data: {store: text.h5, seq_len: 47, shuffle: true}\n"
    "model:\n"
    "  d_model: 16\n"
    "  dropout: 0.1\n"
    "  blocks:\n"
    "    - {mixer: {type: gated_deltanet, heads: 2}, mlp: {type: swiglu, width: 24}}\n"
    "    - {mixer: {type: attention, heads: 4, kv_heads: 4}, mlp: {type: gelu, width: 24}}\n"
    "    - {mixer: {type: mamba}}\n"
    "    - {mixer: {type: slstm, heads: 2}}\n"
    "train:\n"
    "  steps: 8\n"
    "  batch_tokens: 376\n" /* 8 sequences */
    "  optimizer: {type: adamw, lr: 1.0e-3}\n"
    "  schedule: {type: constant}\n"
    "parallel: {data: 2, sequence: 2, bitwise: true}\n"
    "run: {name: b}\n"
    "eval: {every: 4}\n"
    "checkpoint: {every: 4}\n"
    "log: {every: 1}\n";

static void make_text(void) {
  make_documents(6000, config);
}

/* `n` processes (1: without mpirun); `arguments` of weft train c.yaml. */
static void train(int n, const char *arguments) {
  char line[1500], mpirun[100] = "";
  if (n > 1) snprintf(mpirun, sizeof mpirun, "mpirun -n %d", n);
  snprintf(line, sizeof line, "%s " WEFT_PROGRAM " train c.yaml %s", mpirun, arguments);
  run(line);
}

/* A whole run, then in runs/NAME: checkpoint and losses.txt, what it said of its losses. */
static void keep(const char *name) {
  char line[400];
  snprintf(line, sizeof line,
           "rm -rf runs/%s; mv runs/b runs/%s; grep -oE '\"(loss|grad_norm|lr)\": *[^,}]*' "
           "runs/%s/metrics.jsonl > runs/%s/losses.txt",
           name, name, name, name);
  run(line);
}

static char *bytes_of(const char *name, const char *file, int64_t *n) {
  char path[200], *bytes;
  snprintf(path, sizeof path, "runs/%s/%s", name, file);
  ck_assert_msg(wf_file_read(temp_path(path), 1 << 28, &bytes, n) == WF_OK, "%s", wf_error_message());
  ck_assert_int_gt(*n, 100);
  return bytes;
}

static bool same_file(const char *a, const char *b, const char *file) {
  int64_t n, m;
  char *x = bytes_of(a, file, &n), *y = bytes_of(b, file, &m);
  bool same = n == m && memcmp(x, y, (size_t)n) == 0;
  wf_free(x);
  wf_free(y);
  return same;
}

#define LAST "checkpoints/step-00000008.h5"

/* Weights, optimiser, cursor, config: the whole file. */
static void same_run(const char *a, const char *b) {
  ck_assert_msg(same_file(a, b, "losses.txt"), "the losses of %s and %s differ", a, b);
  ck_assert_msg(same_file(a, b, LAST), "the checkpoints of %s and %s differ", a, b);
}

static const char *const meshes[] = {
    "",
    "--set train.stream=20 --set parallel.zero=0",
    "--set parallel.data=1 --set parallel.sequence=4 --set parallel.attention=usp --set train.ema=0.9 --set "
    "parallel.layout=zigzag --set parallel.relayout=always",
    "--set parallel.data=1 --set parallel.sequence=4 --set parallel.layout=contiguous --set "
    "parallel.scan=log --set parallel.attention=all_to_all --set train.stream=24",
    "--set parallel.data=4 --set parallel.sequence=1 --set parallel.bucket=3000 --set train.accumulation=2 "
    "--set train.optimizer.type=muon --set train.recompute=true",
    "--set train.carry_state=true --set model.blocks.1.mixer.window=9 --set data.shuffle=false --set "
    "train.batch_tokens=94 --set parallel.zero=0",
};

START_TEST(any_number_of_processes_gives_the_same_bytes) {
  for (int p = 1; p <= 4; p *= 2) {
    char name[2] = {(char)('0' + p)};
    train(p, meshes[_i]);
    char says[60];
    snprintf(says, sizeof says, "bitwise: 4 virtual ranks on %d process", p);
    ck_assert_msg(strstr(output, says), "%s", output);
    keep(name);
  }
  same_run("1", "2");
  same_run("1", "4");
  run("rm -rf runs");
}
END_TEST

START_TEST(a_resumed_run_takes_any_number_of_processes) {
  train(2, "--set parallel.link=80MB/s,50us");
  keep("whole");
  train(4, "--set parallel.link=80MB/s,50us --set train.steps=3");
  train(1, "--set train.steps=6 --resume");
  ck_assert_msg(strstr(output, "resuming after step 3"), "%s", output);
  train(2, "--resume");
  ck_assert_msg(strstr(output, "resuming after step 6"), "%s", output);
  keep("walk");
  same_run("whole", "walk");
  run("rm -rf runs");
}
END_TEST

/* Bytes of parameters that differ. */
static int64_t differing(const char *a, const char *b) {
  const char *const names[] = {a, b};
  wf_h5_file *f[2];
  int64_t n = 0;
  for (int k = 0; k < 2; k++) {
    char path[200];
    snprintf(path, sizeof path, "runs/%s/" LAST, names[k]);
    ck_assert_int_eq(wf_h5_open(temp_path(path), WF_H5_CHECK_LAZY, &f[k]), WF_OK);
  }
  for (int64_t i = 0; i < wf_h5_entries(f[0]); i++) {
    const wf_h5_info *x = wf_h5_entry(f[0], i), *y;
    if (strncmp(x->name, "params/", 7) != 0 || x->is_group) continue;
    ck_assert_int_eq(wf_h5_find(f[1], x->name, &y), WF_OK);
    size_t bytes = (size_t)x->bytes;
    char *p = malloc(bytes + 1), *q = malloc(bytes + 1);
    ck_assert(p && q);
    ck_assert_int_eq(wf_h5_read(f[0], x, 0, x->count, p), WF_OK);
    ck_assert_int_eq(wf_h5_read(f[1], y, 0, y->count, q), WF_OK);
    for (size_t k = 0; k < bytes; k++) n += p[k] != q[k];
    free(p);
    free(q);
  }
  wf_h5_close(f[0]);
  wf_h5_close(f[1]);
  return n;
}

/* What is compared above does differ where nothing sees to it. */
START_TEST(other_runs_differ) {
  train(1, "");
  keep("bitwise");
  train(2, "--set parallel.bitwise=false --set parallel.data=1");
  keep("two");
  train(1, "--set parallel.bitwise=false --set parallel.data=1 --set parallel.sequence=1");
  keep("one");
  train(2, "--set parallel.data=1");
  keep("half");
  ck_assert_int_eq(differing("bitwise", "bitwise"), 0);
  ck_assert_int_gt(differing("one", "two"), 100);
  ck_assert_int_gt(differing("one", "bitwise"), 100);
  ck_assert_int_gt(differing("half", "bitwise"), 100); /* another number of virtual ranks */
  run("rm -rf runs");
}
END_TEST

static void refused(int n, const char *arguments, const char *text) {
  char line[600];
  snprintf(line, sizeof line, "mpirun -n %d " WEFT_PROGRAM " train c.yaml %s", n, arguments);
  ck_assert_msg(shell(line) != 0, "%s: %s", arguments, output);
  ck_assert_msg(strstr(output, text), "%s: %s", arguments, output);
}

START_TEST(what_cannot_be_is_refused) {
  refused(3, "", "4 virtual ranks, which the 3 processes started do not divide");
  ck_assert_msg(strstr(output, "one of 1, 2, 4"), "%s", output);
  refused(1, "--set parallel.data=auto", "parallel.bitwise needs parallel.data");
  refused(1, "--set run.threads=2", "run.threads is 2");
  refused(1, "--set run.device=cuda", "parallel.bitwise is for CPUs");
  refused(2, "--set data.store=none.h5", "none.h5");
  train(2, "--set train.steps=2");
  refused(1, "--resume --set parallel.sequence=4", "parallel.sequence was 2 when the run began and is 4 now");
  refused(1, "--resume --set parallel.zero=0", "parallel.zero was 1");
  train(2, "--resume --set train.steps=3 --set parallel.bitwise=false --set parallel.data=auto");
  run("rm -rf runs");
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("bitwise");
  TCase *t = tcase_create("bitwise");
  tcase_set_timeout(t, 280);
  tcase_add_unchecked_fixture(t, make_text, temp_dir_remove);
  tcase_add_loop_test(t, any_number_of_processes_gives_the_same_bytes, 0, sizeof meshes / sizeof *meshes);
  tcase_add_test(t, a_resumed_run_takes_any_number_of_processes);
  tcase_add_test(t, other_runs_differ);
  tcase_add_test(t, what_cannot_be_is_refused);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
