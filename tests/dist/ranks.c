/* A failed thread writes down why, stops its world (dist/comm_threads.c) and ends; the main thread asserts.
 */
#include "tests/dist/ranks.h"

#include <omp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "dist/comm_impl.h"

typedef struct rank {
  wf_comm *comm;
  void (*body)(wf_comm *c, void *arg);
  void *arg;
  bool failed;
  char why[1000];
} rank;

static _Thread_local rank *now; /* the rank that this thread is */
static wf_comm *processes;      /* under mpirun */
static int each; /* virtual ranks of a process under mpirun (WEFT_TEST_VIRTUAL); 0: processes are ranks */
static int runs; /* bodies that ran under mpirun */

void wf_rank_fail(const char *file, int line, const char *fmt, ...) {
  rank *r = now;
  char text[900];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  if (!r) ck_abort_msg("%s:%d: %s", file, line, text);
  snprintf(r->why, sizeof r->why, "%s:%d: rank %d of %d: %s", file, line, wf_comm_rank(r->comm),
           wf_comm_size(r->comm), text);
  r->failed = true;
  if (processes) {
    fprintf(stderr, "%s\n", r->why);
    wf_comm_abort(each ? r->comm : processes, 1);
  }
  wf_comm_threads_stop(r->comm, r->why);
  pthread_exit(NULL);
}

static void *thread(void *arg) {
  now = arg;
  omp_set_num_threads(1);
  now->body(now->comm, now->arg);
  return NULL;
}

static void run_process(int n, void (*body)(wf_comm *c, void *arg), void *arg) {
  static rank r; /* in the midst of a body: a ck_assert has left it by a longjmp */
  if (now) wf_rank_fail(__FILE__, __LINE__, "the body before failed");
  if (n != wf_comm_size(processes)) return;
  r = (rank){.comm = processes};
  now = &r;
  WF_RANK_OK(wf_comm_split(processes, 0, wf_comm_rank(processes), &r.comm)); /* its counts start at zero */
  body(r.comm, arg);
  wf_comm_free(r.comm);
  now = NULL;
  runs++;
}

void wf_ranks_run(int n, void (*body)(wf_comm *c, void *arg), void *arg) {
  if (processes && !each) {
    run_process(n, body, arg);
    return;
  }
  if (processes && n != wf_ranks_launched()) return;
  if (processes) n = each, runs++;
  rank *ranks = calloc((size_t)n, sizeof *ranks);
  wf_comm **comms = calloc((size_t)n, sizeof(wf_comm *));
  pthread_t *threads = calloc((size_t)n, sizeof *threads);
  ck_assert(ranks && comms && threads);
  const wf_status made = processes ? wf_comm_virtual(processes, n, comms) : wf_comm_threads(n, comms);
  ck_assert_msg(made == WF_OK, "%s", wf_error_message());
  for (int i = 0; i < n; i++) {
    ranks[i] = (rank){.comm = comms[i], .body = body, .arg = arg};
    ck_assert_int_eq(pthread_create(&threads[i], NULL, thread, &ranks[i]), 0);
  }
  for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
  /* The others' messages repeat the first failure's. */
  char why[sizeof ranks->why] = "";
  bool failed = false;
  for (int i = 0; i < n; i++) {
    if (ranks[i].failed && (!failed || !strstr(ranks[i].why, "in vain")))
      snprintf(why, sizeof why, "%s", ranks[i].why);
    failed |= ranks[i].failed;
  }
  for (int i = 0; i < n; i++) wf_comm_free(comms[i]);
  free(ranks);
  free(comms);
  free(threads);
  ck_assert_msg(!failed, "%s", why);
}

int wf_ranks_launched(void) {
  return processes ? wf_comm_size(processes) * (each ? each : 1) : 0;
}

bool wf_ranks_fit(int n) {
  return !processes || wf_ranks_launched() == n;
}

void wf_ranks_sum(wf_comm *c, int64_t n, double *x) {
  if (processes && n) WF_RANK_OK(wf_comm_all_reduce_host(c, WF_F64, x, n, WF_REDUCE_SUM));
}

bool wf_matrix_whole(void) {
  return getenv("WEFT_MATRIX") != NULL;
}

void wf_matrix_note(const char *what, const char *layout, const char *transport, const char *rows,
                    const char *type, int ranks, double error, double plain) {
  const char *path = getenv("WEFT_MATRIX");
  if (!path || (processes && wf_comm_rank(processes) > 0)) return;
  FILE *f = fopen(path, "a"); /* a line is one write */
  if (!f) ck_abort_msg("%s cannot be written", path);
  fprintf(f, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%.3e\t%.3e\n", processes ? "mpi" : "threads", what, layout,
          transport, rows, type, ranks, error, plain);
  fclose(f);
}

int wf_ranks_main(Suite *(*make)(void)) {
  if (!wf_comm_launched(NULL)) return wf_check_main(make);
  if (wf_comm_mpi(&processes) != WF_OK) {
    fprintf(stderr, "%s\n  hint: %s\n", wf_error_message(), wf_error_hint());
    return 1;
  }
  const char *virtual = getenv("WEFT_TEST_VIRTUAL");
  if (virtual) each = atoi(virtual);
  setenv("CK_FORK", "no", 1);
  omp_set_num_threads(1);
  const int failed = wf_check_main(make);
  if (runs == 0) fprintf(stderr, "no test of this program is for %d ranks\n", wf_ranks_launched());
  const bool good = failed == 0 && runs > 0;
  if (!good) wf_comm_abort(processes, 1);
  wf_comm_free(processes);
  return 0;
}
