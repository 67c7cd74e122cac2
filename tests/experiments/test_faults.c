/* What happens to a run over ranks when one of them is killed, stopped, hangs, fails, meets a NaN or a full
 * disk: it ends soon, says which rank it was, and goes on from its last checkpoint as if nothing had been. */
#define _GNU_SOURCE
#include <jansson.h>
#include <stdlib.h>

#include "core/clock.h"
#include "core/file.h"
#include "core/rng.h"
#include "tests/check_main.h"
#include "tests/experiments/run_weft.h"

static const char config[] = "data: {store: text.h5, seq_len: 32}\n"
                             "model:\n"
                             "  d_model: 16\n"
                             "  blocks: [{mixer: {type: simple_gla, heads: 2}, mlp: {type: faulty}}]\n"
                             "train:\n"
                             "  steps: 1000000\n"
                             "  batch_tokens: 128\n"
                             "  max_skipped: 3\n"
                             "  optimizer: {type: adamw, lr: 1.0e-3}\n"
                             "  schedule: {type: constant}\n"
                             "run: {threads: 1, name: f}\n"
                             "parallel: {sequence: 2, timeout: 2, step_timeout: 0, link: '8GB/s,2us'}\n"
                             "eval: {every: 0}\n"
                             "checkpoint: {every: 10}\n"
                             "log: {every: 1}\n";

/* start ARGUMENTS...: two ranks in the background, once they have saved a checkpoint; rank N: its process. */
static const char functions[] =
    "start() { mpirun -n 2 " WEFT_FAULTY " train c.yaml $MORE \"$@\" > log 2>&1 & job=$!; n=0\n"
    "  until ls runs/f/checkpoints/*.h5 > /dev/null 2>&1; do\n"
    "    sleep 0.05; n=$((n + 1)); [ $n -lt 600 ] || { cat log; exit 8; }; done; }\n"
    "rank() { for p in $(pgrep -f " WEFT_FAULTY "); do\n"
    "  grep -qz OMPI_COMM_WORLD_RANK=$1 /proc/$p/environ 2> /dev/null && echo $p; done; }\n"
    "finish() { wait $job; code=$?; cat log; [ $code -eq $1 ] || { echo exit code $code; exit 7; }; }\n";

static void make_text(void) {
  temp_dir_make();
  wf_rng_key key = wf_rng_key_make(1, "test", "text");
  FILE *f = fopen(temp_path("text"), "w");
  if (!f) abort();
  for (uint64_t i = 0; i < 3000; i++) fputc((int)('a' + wf_rng_below(key, i, 26)), f);
  if (fclose(f) != 0) abort();
  if (wf_file_write(temp_path("c.yaml"), config, (int64_t)strlen(config)) != WF_OK) abort();
  run("weft data build text --validation 0.1 -o text.h5");
}

/* The lines of a shell with the functions above; `seconds` is the most they may take. */
static int lines(const char *text, double seconds) {
  char all[2800];
  snprintf(all, sizeof all, "%s%s", functions, text);
  double begin = wf_now();
  int code = shell(all);
  ck_assert_msg(wf_now() - begin < seconds, "it took %.1f s: %s", wf_now() - begin, output);
  return code;
}

static void says(const char *text) {
  ck_assert_msg(strstr(output, text), "\"%s\" is not in: %s", text, output);
}

/* The run goes on to a step and has the weights of one that nothing happened to. */
static void goes_on(void) {
  char line[1200];
  snprintf(line, sizeof line,
           "to=$(($(cd runs/f/checkpoints && ls *.h5 | tail -1 | sed 's/step-0*//; s/.h5//') + 7))\n"
           "mpirun -n 2 " WEFT_FAULTY " train c.yaml $MORE --resume --set train.steps=$to &&\n"
           "mpirun -n 2 " WEFT_FAULTY
           " train c.yaml $MORE --set run.name=whole --set train.steps=$to --overwrite &&\n"
           "for r in f whole; do tail -1 runs/$r/metrics.jsonl | sed 's/.*\"loss\": *\\([^,]*\\),.*/\\1/' > "
           "$r.loss; done; "
           "cmp f.loss whole.loss");
  ck_assert_msg(shell(line) == 0, "%s", output);
  says("resuming after step");
}

START_TEST(a_killed_rank_ends_the_job) {
  ck_assert_msg(lines("start; kill -9 $(rank 1); wait $job; [ $? -ne 0 ] && cat log", 60) == 0, "%s", output);
  says("rank 1");
  says("signal 9");
  goes_on();
}
END_TEST

START_TEST(a_stopped_rank_is_noticed) {
  char line[200], who[40];
  snprintf(line, sizeof line, "start --overwrite; kill -STOP $(rank %d); wait $job; [ $? -ne 0 ] && cat log",
           _i);
  ck_assert_msg(lines(line, 60) == 0, "%s", output);
  snprintf(who, sizeof who, "rank %d on ", _i);
  says(who);
  says("gave no sign of life");
  says("it was last in step");
  if (_i == 1) goes_on();
}
END_TEST

START_TEST(a_rank_that_hangs_is_noticed) {
  setenv("WEFT_FAULT", "sleep:1:12", 1);
  ck_assert_msg(lines("start --set parallel.step_timeout=2; wait $job; [ $? -ne 0 ] && cat log", 60) == 0,
                "%s", output);
  unsetenv("WEFT_FAULT");
  says("came no further for");
  says("in step 13, the gradients");
}
END_TEST

START_TEST(a_rank_that_fails_ends_the_job) {
  setenv("WEFT_FAULT", "error:1:12", 1);
  ck_assert_msg(lines("start; wait $job; [ $? -ne 0 ] && cat log", 60) == 0, "%s", output);
  unsetenv("WEFT_FAULT");
  says("weft: error: rank 1, step 13: ");
  says("the layer fails, as asked");
  goes_on();
}
END_TEST

START_TEST(a_nan_on_one_rank_skips_the_step) {
  setenv("WEFT_FAULT", "nan:1:12", 1);
  run("mpirun -n 2 " WEFT_FAULTY " train c.yaml --set train.steps=20 --overwrite");
  unsetenv("WEFT_FAULT");
  says("step 13 skipped: loss ");
  says("first on rank 1");
}
END_TEST

/* Losses and gradients are sums over the ranks, so only the weights themselves show it. */
START_TEST(a_rank_with_other_weights_ends_the_job) {
  setenv("WEFT_FAULT", "drift:1:12", 1);
  ck_assert_msg(lines("start --set parallel.zero=0; wait $job; [ $? -ne 0 ] && cat log", 60) == 0, "%s",
                output);
  unsetenv("WEFT_FAULT");
  says("the ranks do not agree on the loss, the gradient norm or the weights of step 1");
  goes_on();
}
END_TEST

START_TEST(a_full_disk_of_rank_0_ends_the_job) {
  ck_assert_msg(lines("start; kill -9 $(rank 0); wait $job\n" /* a run with a checkpoint to go on from */
                      "! mpirun -n 1 sh -c 'ulimit -f 4; exec " WEFT_FAULTY
                      " train c.yaml --resume' : -n 1 " WEFT_FAULTY
                      " train c.yaml --resume > log 2>&1 && cat log",
                      60) == 0,
                "%s", output);
  says("rank 0");
  says("File too large");
  goes_on();
}
END_TEST

START_TEST(usr1_saves_and_asks_to_be_queued_again) {
  ck_assert_msg(lines("start; kill -USR1 $(rank 1); finish 75", 60) == 0, "%s", output);
  says("stopped by a signal after step");
  goes_on();
}
END_TEST

/* ---- four virtual ranks on two processes ---- */

static void be_virtual(void) {
  setenv("MORE", "--set parallel.bitwise=true --set parallel.data=1 --set parallel.sequence=4", 1);
}
static void be_usual(void) {
  unsetenv("MORE");
  unsetenv("WEFT_FAULT");
}

START_TEST(a_virtual_rank_that_fails_ends_the_job) {
  setenv("WEFT_FAULT", "error:3:12", 1);
  ck_assert_msg(lines("start; wait $job; [ $? -ne 0 ] && cat log", 60) == 0, "%s", output);
  unsetenv("WEFT_FAULT");
  says("weft: error: rank 3, step 13: ");
  says("the layer fails, as asked");
  goes_on();
}
END_TEST

START_TEST(alone_in_its_process_too) {
  setenv("WEFT_FAULT", "error:1:12", 1);
  ck_assert_msg(lines("! " WEFT_FAULTY " train c.yaml $MORE > log 2>&1 && cat log", 60) == 0, "%s", output);
  says("bitwise: 4 virtual ranks on 1 process\n");
  says("weft: error: rank 1, step 13: ");
}
END_TEST

START_TEST(a_virtual_rank_with_a_nan_skips_the_step) {
  setenv("WEFT_FAULT", "nan:3:12", 1);
  run("mpirun -n 2 " WEFT_FAULTY " train c.yaml $MORE --set train.steps=20");
  says("step 13 skipped: loss ");
  says("first on rank 3");
}
END_TEST

START_TEST(a_stopped_process_is_noticed) {
  ck_assert_msg(lines("start; kill -STOP $(rank 1); wait $job; [ $? -ne 0 ] && cat log", 60) == 0, "%s",
                output);
  says("process 1 on ");
  says("gave no sign of life");
  goes_on();
}
END_TEST

START_TEST(a_virtual_rank_that_hangs_is_noticed) {
  setenv("WEFT_FAULT", "sleep:3:12", 1);
  ck_assert_msg(lines("start --set parallel.step_timeout=2; wait $job; [ $? -ne 0 ] && cat log", 60) == 0,
                "%s", output);
  says("came no further for");
  says("in step 13, ");
}
END_TEST

START_TEST(usr1_to_a_process_of_virtual_ranks) {
  ck_assert_msg(lines("start; kill -USR1 $(rank 1); finish 75", 60) == 0, "%s", output);
  says("stopped by a signal after step");
  goes_on();
}
END_TEST

static void clean(void) {
  ck_assert_int_eq(shell("rm -rf runs log"), 0);
}

static Suite *suite(void) {
  Suite *s = suite_create("faults");
  TCase *t = tcase_create("faults");
  tcase_set_timeout(t, 120);
  tcase_add_unchecked_fixture(t, make_text, temp_dir_remove);
  tcase_add_checked_fixture(t, clean, NULL);
  tcase_add_test(t, a_killed_rank_ends_the_job);
  tcase_add_loop_test(t, a_stopped_rank_is_noticed, 0, 2);
  tcase_add_test(t, a_rank_that_hangs_is_noticed);
  tcase_add_test(t, a_rank_that_fails_ends_the_job);
  tcase_add_test(t, a_nan_on_one_rank_skips_the_step);
  tcase_add_test(t, a_rank_with_other_weights_ends_the_job);
  tcase_add_test(t, a_full_disk_of_rank_0_ends_the_job);
  tcase_add_test(t, usr1_saves_and_asks_to_be_queued_again);
  suite_add_tcase(s, t);
  t = tcase_create("virtual");
  tcase_set_timeout(t, 120);
  tcase_add_unchecked_fixture(t, make_text, temp_dir_remove);
  tcase_add_checked_fixture(t, clean, NULL);
  tcase_add_checked_fixture(t, be_virtual, be_usual);
  tcase_add_test(t, a_virtual_rank_that_fails_ends_the_job);
  tcase_add_test(t, alone_in_its_process_too);
  tcase_add_test(t, a_virtual_rank_with_a_nan_skips_the_step);
  tcase_add_test(t, a_stopped_process_is_noticed);
  tcase_add_test(t, a_virtual_rank_that_hangs_is_noticed);
  tcase_add_test(t, usr1_to_a_process_of_virtual_ranks);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
