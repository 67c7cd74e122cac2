/* The threads of a process that are ranks, and what stands around them. */
#include "experiments/virtual.h"
#include "core/memory.h"
#include "dist/mesh.h"
#include "experiments/parallel.h"

#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct rank {
  wf_config cfg;
  bool has_cfg;
  wf_train_options o;
  wf_seat seat;
  wf_virtual_rank run;
  pthread_t thread;
  wf_status status;
  char message[1000], hint[600];
} rank;

static void *thread(void *arg) {
  rank *r = arg;
  omp_set_num_threads(1);
  r->status = r->run(&r->cfg, &r->o, &r->seat);
  if (r->status == WF_OK) return NULL;
  snprintf(r->message, sizeof r->message, "%s", wf_error_message());
  snprintf(r->hint, sizeof r->hint, "%s", wf_error_hint());
  return NULL;
}

/* Virtual ranks of a process. */
static wf_status share(const wf_config *cfg, int processes, int *each) {
  const int64_t all = cfg->parallel.data * cfg->parallel.sequence;
  if (all <= 4096 && all % processes == 0) {
    *each = (int)(all / processes);
    return WF_OK;
  }
  wf_status s =
      WF_FAIL(WF_EINVAL,
              "parallel.bitwise: data %lld x sequence %lld is %lld virtual ranks, which the %d "
              "processes started do not divide",
              (long long)cfg->parallel.data, (long long)cfg->parallel.sequence, (long long)all, processes);
  if (all > 4096) return wf_hint(s, "at most 4096 virtual ranks");
  char list[120] = "";
  size_t at = 0;
  for (int64_t n = 1; n <= all && at + 8 < sizeof list; n++)
    if (all % n == 0)
      at += (size_t)snprintf(list + at, sizeof list - at, "%s%lld", at ? ", " : "", (long long)n);
  return wf_hint(s, "start weft with mpirun -n one of %s", list);
}

static wf_status copy_config(const wf_config *cfg, rank *r, int n) {
  char *text;
  wf_status s = wf_config_print(cfg, &text);
  if (s != WF_OK) return s;
  for (int i = 0; i < n && s == WF_OK; i++) {
    s = wf_config_parse(&r[i].cfg, cfg->run.name, text, strlen(text), NULL, 0, wf_types);
    r[i].has_cfg = s == WF_OK;
  }
  wf_free(text);
  return s;
}

/* From here on a rank that fails to start would leave the others waiting. */
static void run_ranks(wf_comm *processes, rank *r, int n) {
  for (int i = 0; i < n; i++)
    if (pthread_create(&r[i].thread, NULL, thread, &r[i]) != 0) {
      fprintf(stderr, "weft: error: no thread for virtual rank %d of process %d\n", i,
              wf_comm_rank(processes));
      wf_comm_abort(processes, 1);
    }
  for (int i = 0; i < n; i++) pthread_join(r[i].thread, NULL);
}

static wf_status outcome(const rank *r, int n, wf_train_options *o) {
  const rank *first = NULL;
  for (int i = 0; i < n; i++) {
    o->leads |= r[i].o.leads;
    o->requeue |= r[i].o.requeue;
    if (r[i].status != WF_OK && (!first || (first->status == WF_EPEER && r[i].status != WF_EPEER)))
      first = &r[i];
  }
  if (!first) return WF_OK;
  const wf_status s = WF_FAIL(first->status, "%s", first->message);
  return *first->hint ? wf_hint(s, "%s", first->hint) : s;
}

static wf_status run_seats(const wf_config *cfg, wf_train_options *o, wf_virtual_rank run, wf_comm *processes,
                           wf_watch *watch, int each) {
  rank *r;
  wf_comm **world = wf_calloc("train", (size_t)each, sizeof(wf_comm *));
  if (!world) return WF_ENOMEM;
  WF_CALLOC(r, "train", each);
  wf_status s = wf_agree(processes, copy_config(cfg, r, each), "copying the config");
  if (s == WF_OK) s = wf_comm_virtual(processes, each, world);
  for (int i = 0; i < each && s == WF_OK; i++) {
    r[i].o = *o;
    r[i].run = run;
    r[i].seat = (wf_seat){.world = world[i], .watch = watch, .each = each};
  }
  if (s == WF_OK) {
    run_ranks(processes, r, each);
    s = outcome(r, each, o);
  }
  for (int i = 0; i < each; i++)
    if (r[i].has_cfg) wf_config_free(&r[i].cfg);
  wf_free(r);
  wf_free(world);
  return s;
}

static wf_status run_processes(const wf_config *cfg, wf_train_options *o, wf_virtual_rank run,
                               wf_comm *processes) {
  const wf_config_parallel *p = &cfg->parallel;
  const int n = wf_comm_size(processes);
  int each = 1;
  wf_watch *watch = NULL;
  const char *warning;
  WF_TRY(share(cfg, n, &each));
  if (n > 1) WF_TRY(wf_parallel_same(cfg, processes));
  omp_set_num_threads(1);
  WF_TRY(wf_watch_start(processes, &(wf_watch_options){p->timeout, p->step_timeout, "process"}, &watch,
                        &warning));
  if (wf_comm_rank(processes) == 0) {
    if (warning) printf("warning: %s\n", warning);
    printf("bitwise: %d virtual rank%s on %d process%s\n", n * each, n * each == 1 ? "" : "s", n,
           n == 1 ? "" : "es");
    const int cores = omp_get_num_procs();
    if (cores < each && cores < sysconf(_SC_NPROCESSORS_ONLN))
      printf("warning: the %d threads of a process are bound to %d core%s (mpirun --bind-to none)\n", each,
             cores, cores == 1 ? "" : "s");
  }
  const wf_status s = run_seats(cfg, o, run, processes, watch, each);
  wf_watch_stop(processes, watch);
  return s;
}

wf_status wf_virtual_run(const wf_config *cfg, wf_train_options *o, wf_virtual_rank run) {
  wf_comm *processes;
  WF_TRY(wf_parallel_processes(cfg, &processes));
  const wf_status s = run_processes(cfg, o, run, processes);
  wf_comm_free(processes);
  return s;
}
