/* weft eval: the loss of a trained model over a split of a token store. */
#include <math.h>
#include <stdio.h>

#include "experiments/assemble.h"
#include "experiments/command.h"
#include "experiments/evaluate.h"

static const char *const splits[] = {"train", "validation", "test", NULL}; /* in the order of WF_TRAIN.. */

typedef struct flags {
  char *store;
  int split;
  int64_t batches;
  bool average, json;
} flags;

static const wf_option table[] = {
    WF_OPT_STR(flags, store, NULL, "another token store than the one it was trained on"),
    WF_OPT_ENUM(flags, split, "validation", splits, "which documents"),
    WF_OPT_I64F(flags, batches, "auto", 1, 1e15, WF_OPT_AUTO, "batches to read; auto: the whole split"),
    WF_OPT_BOOL(flags, average, "false", "use the moving average of the weights, where the run kept one"),
    WF_OPT_BOOL(flags, json, "false", "print one line of JSON"),
    WF_OPT_END};

static void print(const wf_loaded *l, const flags *f, const wf_evaluation *e) {
  if (f->json)
    printf(
        "{\"step\": %lld, \"split\": \"%s\", \"loss\": %.9g, \"perplexity\": %.9g, \"bits_per_byte\": %.9g, "
        "\"tokens\": %lld}\n",
        (long long)l->step, splits[f->split], e->loss, e->perplexity, e->bits_per_byte, (long long)e->tokens);
  else
    printf("%s: step %lld, %s split\nloss %.4f  perplexity %.2f  %.4f bits per byte  %lld tokens\n", l->path,
           (long long)l->step, splits[f->split], e->loss, e->perplexity, e->bits_per_byte,
           (long long)e->tokens);
}

static wf_status evaluate(const flags *f, wf_loaded *l) {
  wf_store *store;
  wf_evaluation e;
  WF_TRY(wf_store_open(f->store ? f->store : l->cfg.data.store, &store));
  size_t n;
  const void *blob = wf_tokenizer_blob(l->tokenizer, &n);
  wf_status s = wf_check_tokenizer(store, blob, n);
  if (s == WF_OK) s = wf_evaluate(l->model, &l->cfg, NULL, store, f->split, f->batches, &e);
  wf_store_close(store);
  WF_TRY(s);
  if (!isfinite(e.loss)) return WF_FAIL(WF_ENUMERIC, "the loss is %g", e.loss);
  print(l, f, &e);
  return WF_OK;
}

static wf_status run(const wf_args *a) {
  const flags *f = a->flags;
  wf_loaded l;
  WF_TRY(wf_loaded_open(a->words[0], f->average, a->sets, a->n_sets, &l));
  wf_status s = evaluate(f, &l);
  wf_loaded_close(&l);
  return s;
}

const wf_command wf_cmd_eval = {
    .name = "eval",
    .help = "loss, perplexity and bits per byte of a trained model",
    .usage = "RUN",
    .more = "RUN is a run's name under runs/, its folder, or a checkpoint file.",
    .flags = table,
    .flags_size = sizeof(flags),
    .sets = true,
    .least = 1,
    .most = 1,
    .run = run,
};
