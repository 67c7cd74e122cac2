/* weft score: how likely a trained model finds given continuations. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "experiments/assemble.h"
#include "experiments/command.h"
#include "experiments/score.h"

typedef struct flags {
  int64_t batch_tokens;
  bool average;
} flags;

static const wf_option table[] = {
    WF_OPT_I64(flags, batch_tokens, "4096", 1, 1e9, "tokens the model reads at once"),
    WF_OPT_BOOL(flags, average, "false", "use the moving average of the weights, where the run kept one"),
    WF_OPT_END};

static wf_status print(void *arg, const char *json) {
  (void)arg;
  if (printf("%s\n", json) >= 0) return WF_OK;
  return WF_FAIL(WF_EIO, "cannot write to the standard output: %s", strerror(errno));
}

static wf_status run(const wf_args *a) {
  const flags *f = a->flags;
  wf_loaded l;
  WF_TRY(wf_loaded_open(a->words[0], f->average, a->sets, a->n_sets, &l));
  wf_status s = wf_score_file(l.model, l.tokenizer, a->words[1], f->batch_tokens, print, NULL);
  wf_loaded_close(&l);
  return s;
}

const wf_command wf_cmd_score = {
    .name = "score",
    .help = "log-probabilities of continuations under a trained model",
    .usage = "RUN FILE.jsonl",
    .more = "RUN is a run's name under runs/, its folder, or a checkpoint file. A line of FILE is an object\n"
            "{\"context\": \"...\", \"continuation\": \"...\"}, or with a list \"continuations\"; \"id\" is "
            "copied.\n"
            "For each a line of JSON: logprob (sum of natural logarithms), tokens, bytes, logprob_per_byte,\n"
            "greedy (whether the model would write it at temperature 0).",
    .flags = table,
    .flags_size = sizeof(flags),
    .sets = true,
    .least = 2,
    .most = 2,
    .run = run,
};
