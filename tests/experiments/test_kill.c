/* kill -9 at random moments of a run that checkpoints every 5 steps: every resume succeeds, and the last
 * checkpoint has the bytes of a run that was never killed. */
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/rng.h"
#include "tests/check_main.h"
#include "tests/temp_dir.h"

enum { KILLS = 50 };

static const char config[] = "run: {name: k, seed: 3}\n"
                             "data: {store: s.h5, seq_len: 24}\n"
                             "model:\n"
                             "  d_model: 16\n"
                             "  dropout: 0.1\n"
                             "  blocks:\n"
                             "    - {mixer: {type: simple_gla, heads: 2}, mlp: {type: swiglu, width: 24}}\n"
                             "    - {mixer: {type: attention, heads: 2}, mlp: {type: gelu, width: 24}}\n"
                             "train: {steps: 60, batch_tokens: 96, accumulation: 2, ema: 0.9,\n"
                             "        optimizer: {type: adamw, lr: 1.0e-3}, schedule: {type: cosine}}\n"
                             "eval: {every: 25, batches: 2}\n"
                             "checkpoint: {every: 5, keep: 2}\n";

/* Start weft in the test's folder, its output in `log`. */
static pid_t start(const char *log, const char *const *argv) {
  pid_t pid = fork();
  ck_assert_int_ge(pid, 0);
  if (pid > 0) return pid;
  int fd = open(temp_path(log), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (chdir(temp_dir) != 0 || fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0) _exit(99);
  setenv("OMP_NUM_THREADS", "1", 1);
  execv(WEFT_PROGRAM, (char *const *)(const void *)argv);
  _exit(98);
}

static int finish(pid_t pid) {
  int status;
  ck_assert_int_eq(waitpid(pid, &status, 0), pid);
  return status;
}

static void log_of(const char *log) {
  char *text;
  int64_t n;
  if (wf_file_read(temp_path(log), 1 << 20, &text, &n) != WF_OK) return;
  fputs(text, stderr);
  wf_free(text);
}

static void must_run(const char *log, const char *const *argv) {
  int status = finish(start(log, argv));
  if (status != 0) log_of(log);
  ck_assert_int_eq(status, 0);
}

static void nap(double seconds) {
  struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
  nanosleep(&t, NULL);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

START_TEST(every_resume_succeeds_with_the_same_bytes) {
  char text[6000];
  for (int i = 0; i < (int)sizeof text; i++) text[i] = (char)("the weaver wefts \n"[(i * 7 + i / 11) % 18]);
  ck_assert_int_eq(wf_file_write(temp_path("t.txt"), text, sizeof text), WF_OK);
  ck_assert_int_eq(wf_file_write(temp_path("c.yaml"), config, sizeof config - 1), WF_OK);
  must_run("log", (const char *[]){"weft", "data", "build", "t.txt", "-o", "s.h5", NULL});
  double t0 = now();
  must_run("log", (const char *[]){"weft", "train", "c.yaml", "--set", "run.dir=run", NULL});
  double whole = now() - t0;
  ck_assert_int_eq(wf_rename(temp_path("run"), temp_path("whole")),
                   WF_OK); /* the folder is in the stored config */

  const char *const again[] = {"weft", "train", "c.yaml", "--resume", "--set", "run.dir=run", NULL};
  wf_rng_key key = wf_rng_key_make((uint64_t)time(NULL), "test", "kill");
  int killed = 0, restarts = 0;
  while (killed < KILLS) { /* a run that gets to its end is begun anew */
    pid_t pid = start("log", again);
    nap(whole * 0.6 * wf_rng_uniform(key, (uint64_t)(killed + 1000 * restarts)));
    kill(pid, SIGKILL);
    int status = finish(pid);
    if (WIFSIGNALED(status)) {
      killed++;
      continue;
    }
    if (status != 0) log_of("log");
    ck_assert_int_eq(status, 0);
    restarts++;
    temp_tree_remove(temp_path("run"));
  }
  must_run("log", again);
  char *a, *b;
  int64_t na, nb;
  ck_assert_int_eq(wf_file_read(temp_path("whole/checkpoints/step-00000060.h5"), 1 << 26, &a, &na), WF_OK);
  ck_assert_int_eq(wf_file_read(temp_path("run/checkpoints/step-00000060.h5"), 1 << 26, &b, &nb), WF_OK);
  ck_assert_int_eq(na, nb);
  ck_assert_int_eq(memcmp(a, b, (size_t)na), 0);
  wf_free(a);
  wf_free(b);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("kill");
  TCase *t = tcase_create("kill");
  tcase_add_unchecked_fixture(t, temp_dir_make, temp_dir_remove);
  tcase_add_test(t, every_resume_succeeds_with_the_same_bytes);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
