/* weft train: a run from a config. */
#include <signal.h>
#include <stdio.h>

#include "experiments/command.h"
#include "experiments/train.h"

typedef struct flags {
  bool resume, overwrite, profile;
} flags;

static const wf_option table[] = {
    WF_OPT_BOOL(flags, resume, "false", "go on from the run's newest good checkpoint"),
    WF_OPT_BOOL(flags, overwrite, "false", "remove what an earlier run of this name left, and start anew"),
    WF_OPT_BOOL(flags, profile, "false", "print time by op at the end"), WF_OPT_END};

static volatile sig_atomic_t stop;

static void on_signal(int sig) {
  if (stop) signal(sig, SIG_DFL); /* a second one ends the program at once */
  stop = WF_STOP;
}

static void on_requeue(int sig) {
  (void)sig;
  if (!stop) stop = WF_STOP_REQUEUE;
}

static wf_status run(const wf_args *a) {
  const flags *f = a->flags;
  if (f->resume && f->overwrite)
    return wf_hint(WF_FAIL(WF_EINVAL, "--resume and --overwrite contradict each other"), "give one of them");
  wf_config cfg;
  WF_TRY(wf_config_load(&cfg, a->words[0], a->sets, a->n_sets, wf_types));
  signal(SIGINT, on_signal);
  signal(SIGTERM, on_signal);
  signal(SIGUSR1, on_requeue);
  wf_train_options o = {.resume = f->resume, .overwrite = f->overwrite, .profile = f->profile, .stop = &stop};
  wf_status s = wf_train(&cfg, &o);
  wf_config_free(&cfg);
  if (s != WF_EINTERRUPTED) return s;
  if (o.leads) printf("%s; weft train --resume goes on\n", wf_error_message());
  return o.requeue ? s : WF_OK;
}

const wf_command wf_cmd_train = {
    .name = "train",
    .help = "train the model of a config",
    .usage = "CONFIG [--set a.b=c]... [--resume|--overwrite] [--profile]",
    .more =
        "The run's folder is runs/NAME (run.dir): config.yaml, metrics.jsonl, checkpoints/.\n"
        "SIGINT and SIGTERM save a checkpoint and stop after the step; so does SIGUSR1 (Slurm's --signal),\n"
        "with the exit code 75: start it again with --resume.\n"
        "mpirun -n N weft train CONFIG shares the work of a step between N ranks (parallel.data, "
        ".sequence).\n",
    .flags = table,
    .flags_size = sizeof(flags),
    .sets = true,
    .least = 1,
    .most = 1,
    .run = run,
};
