/* The `weft` program itself, started as a user starts it. */
#define _GNU_SOURCE /* mkdtemp */
#include <check.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "tests/check_main.h"
#include "tests/experiments/run_weft.h"

static bool there(const char *name) {
  return wf_file_exists(temp_path(name));
}

START_TEST(it_says_what_it_is) {
  expect("version", 0, "weft 0.");
  expect("--help", 0, "weft doctor");
  expect("", 0, "weft doctor");
  expect("version now", 1, "weft: error: weft version: \"now\" is one argument too many");
  expect("docter", 1, "hint: did you mean weft doctor?");
}
END_TEST

START_TEST(doctor_examines_the_machine) {
  expect("doctor", 0, "openblas     OpenMP");
  static const char *const lines[] = {"\nprocessor ", "\ndevice ", "\nproducts ", "\nthreads ",
                                      "\nmemory ",    "\nmpi ",    "\ngpu ",      "\nhdf5 "};
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
    ck_assert_msg(strstr(output, lines[i]), "%s", lines[i]);
  setenv("OMP_NUM_THREADS", "1000", 1);
  expect("doctor", 0, "slow: more threads than the process may use\n  hint: set OMP_NUM_THREADS");
  setenv("OMP_NUM_THREADS", "2", 1);
}
END_TEST

START_TEST(bench_measures_a_row) {
  setenv("OMP_NUM_THREADS", "1", 1); /* other tests run beside this one */
  expect("bench nano --json --seconds 0 --repeats 1", 0, "\"products\": 51, ");
  static const char *const fields[] = {"{\"name\": \"nano\"", "\"median_s\": ", "\"tokens_per_s\": ",
                                       "\"peak_rss_mb\": ",   "\"floor_s\": ",  "\"repeats\": 1, "};
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
    ck_assert_msg(strstr(output, fields[i]), "%s: %s", fields[i], output);
  expect("bench nanno", 1, "hint: did you mean nano?");
  setenv("OMP_NUM_THREADS", "2", 1);
}
END_TEST

START_TEST(configs_are_checked_and_printed) {
  expect("config check " WEFT_SOURCE_DIR "/experiments/configs/nano.yaml", 0,
         "is fine: 4 layers of width 128");
  expect("config check " WEFT_SOURCE_DIR "/experiments/configs/nano.yaml --set model.blocks.0.mixer.heads=7",
         1, "nano.yaml:8:14: heads: 7 heads do not divide d_model 128");
  expect("config check " WEFT_SOURCE_DIR "/experiments/configs/nano.yaml --set model.blocks.0.mixer.headz=7",
         1, "hint: did you mean heads?");
  expect("config check /nowhere.yaml", 1, "weft: error: ");
  expect("config check", 1, "weft config check needs CONFIG");
  expect("config print " WEFT_SOURCE_DIR "/experiments/configs/nano.yaml --set run.seed=5", 0,
         "\n  seed: 5\n");
  expect("config docs", 0, "### attention");
}
END_TEST

START_TEST(layers_are_listed_and_explained) {
  expect("layers", 0, "\n  simple_gla ");
  expect("layers attention", 0, "attention (mixer)");
  expect("layers atention", 1, "hint: did you mean attention?");
  expect("layers attention -d 64 --seq-len 100,1k", 0,
         "d_model 64: 16.4k parameters; a sequence's state: 512 B a token\n");
  ck_assert_ptr_nonnull(
      strstr(output, "\n         100          58.4k       50.0 KiB              114 KiB\n"));
  ck_assert_ptr_nonnull(
      strstr(output, "\n        1024           295k        512 KiB              576 KiB\n"));
  expect("layers attention -d 64 --set heads=2 --set window=9 --seq-len 1M", 0,
         "a sequence's state: 4.00 KiB\n");
  expect("layers simple_gla -d 64", 0, "a sequence's state: 6.25 KiB\n");
  expect("layers gelu -d 8", 0, "a sequence's state: none\n");
  expect("layers adamw", 0, "weight_decay");
  expect("layers attention --set headz=2", 1, "hint: did you mean heads?");
  expect("layers attention --set heads", 1, "\"heads\" is no key=value");
  expect("layers attention --set heads=7", 1,
         "attention of width 768: heads: 7 heads do not divide d_model 768");
  expect("layers attention --seq-len 1k,0", 1, "--seq-len: \"0\" is no count");
}
END_TEST

/* ---- a small run, made once ---- */

static const char config[] = "data: {store: text.h5, seq_len: 32}\n"
                             "model:\n"
                             "  d_model: 16\n"
                             "  dropout: 0.1\n"
                             "  blocks:\n"
                             "    - {mixer: {type: attention, heads: 2}, mlp: {type: swiglu}}\n"
                             "    - {mixer: {type: simple_gla, heads: 2}, mlp: {type: swiglu}}\n"
                             "train:\n"
                             "  steps: 20\n"
                             "  batch_tokens: 128\n"
                             "  ema: 0.9\n"
                             "  optimizer: {type: adamw, lr: 1.0e-2}\n"
                             "  schedule: {type: cosine, warmup: 5}\n"
                             "eval: {every: 10}\n"
                             "checkpoint: {every: 8, keep: 2}\n"
                             "log: {every: 1}\n";

static void make_run(void) {
  temp_dir_make();
  FILE *f = fopen(temp_path("text"), "w");
  for (int i = 0; f && i < 400; i++) fprintf(f, "line %d of a text made for a test: %d\n", i, i * i % 97);
  if (!f || fclose(f) != 0) abort();
  if (wf_file_write(temp_path("tiny.yaml"), config, (int64_t)strlen(config)) != WF_OK) abort();
  run("weft data build text -o text.h5");
  expect("train tiny.yaml", 0, "step 20/20  loss ");
}

START_TEST(a_run_leaves_its_folder) {
  ck_assert(there("runs/tiny/config.yaml"));
  ck_assert(there("runs/tiny/checkpoints/step-00000016.h5"));
  ck_assert(there("runs/tiny/checkpoints/step-00000020.h5"));
  ck_assert(!there("runs/tiny/checkpoints/step-00000008.h5"));
  run("wc -l < runs/tiny/metrics.jsonl");
  ck_assert_int_eq(atoi(output), 20);
  expect("config check runs/tiny/config.yaml", 0, "");
}
END_TEST

/* The last line of metrics.jsonl and `weft eval` say the same: evaluation in training uses the average. */
START_TEST(eval_repeats_the_last_evaluation) {
  json_error_t e;
  run("tail -n 1 runs/tiny/metrics.jsonl");
  json_t *metrics = json_loads(output, 0, &e);
  ck_assert_msg(metrics != NULL, "%s", output);
  expect("eval tiny --average --json", 0, "\"split\": \"validation\"");
  json_t *eval = json_loads(output, 0, &e);
  ck_assert_msg(eval != NULL, "%s", output);
  static const char *const keys[][2] = {
      {"val_loss", "loss"}, {"val_ppl", "perplexity"}, {"val_bpb", "bits_per_byte"}};
  for (int k = 0; k < 3; k++) {
    double a = json_number_value(json_object_get(metrics, keys[k][0]));
    double b = json_number_value(json_object_get(eval, keys[k][1]));
    ck_assert_msg(a > 0 && a == b, "%s: %.9g and %.9g", keys[k][0], a, b);
  }
  ck_assert_int_eq(json_integer_value(json_object_get(eval, "step")), 20);
  json_decref(metrics);
  json_decref(eval);
  expect("eval runs/tiny --split train --batches 2", 0, " bits per byte  256 tokens\n");
  expect("eval runs/tiny/checkpoints/step-00000016.h5", 0, ": step 16, validation split\n");
  expect("eval tiny --split test", 1, "has no test text");
}
END_TEST

START_TEST(generate_writes_text) {
  static char first[2000];
  expect("generate tiny --prompt 'line 1' --tokens 50 --seed 3", 0, "");
  memcpy(first, output, sizeof first - 1);
  ck_assert_uint_gt(strlen(first), 40);
  expect("generate tiny --prompt 'line 1' --tokens 50 --seed 3", 0, "");
  ck_assert_str_eq(first, output);
  expect("generate tiny --prompt 'line 1' --tokens 50 --seed 4", 0, "");
  ck_assert_str_ne(first, output);
  expect("generate tiny --prompt 'line 1' --tokens 5 -e --temperature 0 --stats 2>&1 >text.out; cat text.out",
         0, "prompt: 6 tokens in ");
  ck_assert_ptr_nonnull(strstr(output, "tokens/s; peak memory"));
  ck_assert_ptr_nonnull(strstr(output, "\nline 1"));
  expect("generate tiny --tokens 5 --top-k 3 --top-p 0.9 --average", 0, "");
  expect("generate tiny --prompt-file text --tokens 5", 0, "");
  expect("generate tiny --prompt a --prompt-file text", 1, "hint: give one of them");
  expect("generate tiny --top-p 2", 1, "--top-p");
  expect("generate tony", 1, "weft: error: tony: no checkpoint there\n  hint: name a checkpoint file");
}
END_TEST

START_TEST(score_judges_lines) {
  static const char good[] = "{\"context\": \"line 12 of a\", \"continuation\": \" text\"}\n"
                             "{\"context\": \"line 12 of a\", \"continuations\": [\" text\", \"qqqqq\"]}\n";
  static const char bad[] = "{\"continuation\": \"fine\"}\n{\"continuatoin\": \"not\"}\n";
  ck_assert_int_eq(wf_file_write(temp_path("good.jsonl"), good, (int64_t)strlen(good)), WF_OK);
  ck_assert_int_eq(wf_file_write(temp_path("bad.jsonl"), bad, (int64_t)strlen(bad)), WF_OK);
  expect("score tiny good.jsonl", 0, "{\"line\": 1, \"logprob\": -");
  ck_assert_ptr_nonnull(strstr(output, "\n{\"line\": 2, \"best\": 0, \"best_per_byte\": 0, "));
  expect("score tiny bad.jsonl", 1, "weft: error: bad.jsonl:2: neither \"continuation\" and");
  expect("score tiny", 1, "weft score needs RUN FILE.jsonl");
}
END_TEST

START_TEST(a_run_is_not_overwritten_by_accident) {
  expect("train tiny.yaml", 1, "weft: error: the run runs/tiny exists already\n  hint: --resume goes on");
  expect("train tiny.yaml --resume --overwrite", 1, "contradict each other");
  expect("train tiny.yaml --resume --set model.d_model=32", 1,
         "model.d_model was 16 when the run began and is 32");
  expect("train tiny.yaml --resume --set data.store=other.h5", 1, "data.store was text.h5");
  run("cp -r runs/tiny runs/again");
  expect("train tiny.yaml --overwrite --set run.name=again --set train.steps=3", 0, "step 3/3");
  ck_assert(!there("runs/again/checkpoints/step-00000020.h5"));
  ck_assert(there("runs/again/checkpoints/step-00000003.h5"));
}
END_TEST

START_TEST(resume_goes_on) {
  run("mkdir more && cp -r tiny.yaml text text.h5 runs more");
  run("cd more && weft train tiny.yaml --resume --set train.steps=24");
  ck_assert_ptr_nonnull(
      strstr(output, "resuming after step 20 from runs/tiny/checkpoints/step-00000020.h5\n"));
  ck_assert_ptr_nonnull(strstr(output, "step 24/24"));
  run("wc -l < more/runs/tiny/metrics.jsonl");
  ck_assert_int_eq(atoi(output), 24);
  /* a damaged checkpoint is passed over */
  run("cd more/runs/tiny/checkpoints && head -c 3000 step-00000024.h5 > cut && mv cut step-00000024.h5");
  expect("eval more/runs/tiny/checkpoints/step-00000024.h5", 1, "it was cut short");
  run("cd more && weft train tiny.yaml --resume --set train.steps=24");
  ck_assert_ptr_nonnull(strstr(output, "refused runs/tiny/checkpoints/step-00000024.h5"));
  ck_assert_ptr_nonnull(strstr(output, "resuming after step 20"));
  /* the store's name is the same, its tokenizer is not */
  run("cd more && weft data build text --tokenizer chars -o text.h5 --replace");
  ck_assert_int_eq(shell("cd more && weft train tiny.yaml --resume --set train.steps=26"), 1);
  ck_assert_msg(strstr(output, "text.h5 has another tokenizer (chars, "), "%s", output);
}
END_TEST

START_TEST(mistakes_in_the_config_are_found) {
  run("sed s/batch_tokens/batch_token/ tiny.yaml > typo.yaml");
  expect("train typo.yaml", 1,
         "weft: error: typo.yaml:10:3: unknown key \"batch_token\" in train\n  hint: did you mean "
         "batch_tokens?\n");
  expect("train tiny.yaml --set train.stpes=3", 1, "hint: did you mean steps?");
  expect("train tiny.yaml --set run.name=x --set model.vocab=100", 1, "model.vocab is 100");
  expect("train none.yaml", 1, "none.yaml");
  run("sed 's/heads: 2/heads: 3/' tiny.yaml > heads.yaml");
  expect("train heads.yaml", 1, "heads.yaml:6:");
}
END_TEST

START_TEST(bad_stores_and_texts_are_refused) {
  run("head -c 3000 text.h5 > cut.h5; : > empty; weft data build text --tokenizer chars -o chars.h5");
  expect("train tiny.yaml --set run.name=x --set data.store=none.h5", 1, "weft: error: cannot open none.h5");
  expect("train tiny.yaml --set run.name=x --set data.store=cut.h5", 1, "cut.h5: Weft's trailer is missing");
  expect("train tiny.yaml --set run.name=x --set data.store=text", 1, "weft: error: text");
  expect("eval tiny --store cut.h5", 1, "cut.h5: Weft's trailer is missing");
  expect("eval tiny --store chars.h5", 1, "chars.h5 has another tokenizer (chars, ");
  expect("eval text.h5", 1, "weft: error: text.h5");
  expect("data build none -o x.h5", 1, "none");
  expect("data build empty -o x.h5", 1, "the file empty is empty");
  ck_assert(!there("x.h5"));
}
END_TEST

/* ---- signals ---- */

/* Start `weft ARGUMENTS...` in `folder` with its output in the file `out` there. */
static pid_t start(const char *folder, const char *const *arguments) {
  pid_t pid = fork();
  if (pid != 0) return pid;
  int fd = chdir(temp_path(folder)) == 0 ? open("out", O_CREAT | O_TRUNC | O_WRONLY, 0666) : -1;
  if (fd >= 0 && dup2(fd, 1) == 1 && dup2(fd, 2) == 2) execv(WEFT_PROGRAM, (char *const *)arguments);
  _exit(99);
}

static void wait_for_lines(const char *path, int lines, pid_t pid) {
  for (;;) {
    char *text;
    int64_t n;
    int seen = 0;
    if (wf_file_exists(path) && wf_file_read(path, 1 << 24, &text, &n) == WF_OK) {
      for (int64_t i = 0; i < n; i++) seen += text[i] == '\n';
      wf_free(text);
    }
    if (seen >= lines) return;
    ck_assert_msg(waitpid(pid, NULL, WNOHANG) == 0, "it ended before line %d of %s", lines, path);
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
}

static int end_by(pid_t pid, int sig) {
  int status;
  kill(pid, sig);
  ck_assert_int_eq(waitpid(pid, &status, 0), pid);
  ck_assert(WIFEXITED(status));
  return WEXITSTATUS(status);
}

#ifndef __SANITIZE_ADDRESS__ /* it reserves more addresses than any limit leaves */
START_TEST(too_large_a_batch_names_one_that_fits) {
  shell(
      "ulimit -v 1200000; OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 weft train tiny.yaml --set run.name=large "
      "--set train.batch_tokens=6400000 --set train.steps=1");
  ck_assert_msg(strstr(output, "out of memory: "), "%s", output);
  const char *hint = strstr(output, "hint: about "),
             *batch = hint ? strstr(hint, "train.batch_tokens ") : NULL;
  ck_assert_msg(batch, "%s", output);
  char command[256];
  snprintf(command, sizeof command,
           "ulimit -v 1200000; OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 weft train tiny.yaml --overwrite "
           "--set run.name=large --set train.batch_tokens=%lld --set train.steps=1 --set eval.every=0",
           strtoll(batch + strlen("train.batch_tokens "), NULL, 10));
  run(command);
  ck_assert_msg(strstr(output, "step 1/1"), "%s", output);
}
END_TEST
#endif

START_TEST(sigterm_saves_and_resume_ends_the_same) {
  static const char *const arguments[] = {"weft", "train", "tiny.yaml", "--set", "train.steps=200", NULL};
  run("mkdir whole part && cp text.h5 tiny.yaml whole && cp text.h5 tiny.yaml part");
  run("cd whole && weft train tiny.yaml --set train.steps=200 > out");
  for (int stops = 0; stops < 3; stops++) {
    const char *const again[] = {"weft", "train", "tiny.yaml", "--set", "train.steps=200", "--resume", NULL};
    pid_t pid = start("part", stops ? again : arguments);
    wait_for_lines(temp_path("part/runs/tiny/metrics.jsonl"), 20 + 37 * stops, pid);
    ck_assert_int_eq(end_by(pid, stops % 2 ? SIGINT : SIGTERM), 0);
    run("cat part/out");
    ck_assert_msg(strstr(output, "stopped by a signal after step "), "%s", output);
    ck_assert_msg(strstr(output, "the checkpoint is saved; weft train --resume goes on"), "%s", output);
  }
  run("cd part && weft train tiny.yaml --set train.steps=200 --resume");
  ck_assert_ptr_nonnull(strstr(output, "resuming after step "));
  run("cmp whole/runs/tiny/checkpoints/step-00000200.h5 part/runs/tiny/checkpoints/step-00000200.h5");
  run("wc -l < part/runs/tiny/metrics.jsonl");
  ck_assert_int_eq(atoi(output), 200);
}
END_TEST

START_TEST(sigint_ends_generation) {
  static const char *const arguments[] = {"weft",     "generate", "run",  "--tokens",
                                          "10000000", "--prompt", "line", NULL};
  run("mkdir talk && sed s/attention/simple_gla/ tiny.yaml > endless.yaml");
  run("weft train endless.yaml --set train.steps=2 --set run.dir=talk/run");
  pid_t pid = start("talk", arguments);
  wait_for_lines(temp_path("talk/out"), 1, pid);
  ck_assert_int_eq(end_by(pid, SIGINT), 0);
  run("tail -c 1 talk/out");
  ck_assert_str_eq(output, "\n");
  run("! grep -q error talk/out");
}
END_TEST

static Suite *program_suite(void) {
  Suite *s = suite_create("program");
  TCase *t = tcase_create("program");
  tcase_add_test(t, it_says_what_it_is);
  tcase_add_test(t, configs_are_checked_and_printed);
  tcase_add_test(t, layers_are_listed_and_explained);
  tcase_add_test(t, doctor_examines_the_machine);
  tcase_add_test(t, bench_measures_a_row);
  suite_add_tcase(s, t);
  t = tcase_create("run");
  tcase_add_unchecked_fixture(t, make_run, temp_dir_remove);
  tcase_add_test(t, a_run_leaves_its_folder);
  tcase_add_test(t, eval_repeats_the_last_evaluation);
  tcase_add_test(t, generate_writes_text);
  tcase_add_test(t, score_judges_lines);
  tcase_add_test(t, a_run_is_not_overwritten_by_accident);
  tcase_add_test(t, resume_goes_on);
  tcase_add_test(t, mistakes_in_the_config_are_found);
  tcase_add_test(t, bad_stores_and_texts_are_refused);
#ifndef __SANITIZE_ADDRESS__
  tcase_add_test(t, too_large_a_batch_names_one_that_fits);
#endif
  tcase_add_test(t, sigterm_saves_and_resume_ends_the_same);
  tcase_add_test(t, sigint_ends_generation);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(program_suite)
