/* weft generate: text from a trained model, shown as it comes. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "experiments/assemble.h"
#include "experiments/command.h"
#include "experiments/generate.h"
#include "experiments/human.h"

typedef struct flags {
  char *prompt, *prompt_file;
  int64_t tokens, top_k, seed;
  double temperature, top_p;
  bool begin, ignore_end, echo, average, stats;
} flags;

static const wf_option table[] = {
    WF_OPT_STR(flags, prompt, NULL, "text to continue"),
    WF_OPT_STR(flags, prompt_file, NULL, "file with the text to continue"),
    WF_OPT_I64(flags, tokens, "200", 1, 1e9, "tokens to write at most"),
    WF_OPT_F64(flags, temperature, "1", 0, 1e6,
               "divides the logits: lower is safer; 0: always the likeliest"),
    WF_OPT_I64(flags, top_k, "0", 0, 1e9, "draw among this many likeliest tokens; 0: all"),
    WF_OPT_F64(flags, top_p, "1", 0, 1, "draw among the fewest likeliest tokens of this total probability"),
    WF_OPT_I64(flags, seed, "0", 0, 9e15, "the same seed writes the same text"),
    WF_OPT_BOOL(flags, begin, "false", "put the tokenizer's begin token before the prompt"),
    WF_OPT_BOOL(flags, ignore_end, "false", "go on after a token that ends a text"),
    WF_OPT_BOOL(flags, echo, "false", "print the prompt first"),
    WF_OPT_BOOL(flags, average, "false", "use the moving average of the weights, where the run kept one"),
    WF_OPT_BOOL(flags, stats, "false", "print tokens/s and memory on stderr at the end"),
    WF_OPT_END};

static volatile sig_atomic_t stop;

static void on_signal(int sig) {
  if (stop) signal(sig, SIG_DFL); /* a second one ends the program at once */
  stop = 1;
}

static wf_status show(void *last, const char *text, size_t n) {
  if (n == 0) return WF_OK;
  *(char *)last = text[n - 1];
  if (fwrite(text, 1, n, stdout) == n && fflush(stdout) == 0) return WF_OK;
  return WF_FAIL(WF_EIO, "cannot write to the standard output: %s", strerror(errno));
}

static wf_status read_prompt(const flags *f, char **prompt, size_t *n) {
  if (f->prompt && f->prompt_file)
    return wf_hint(WF_FAIL(WF_EINVAL, "both --prompt and --prompt-file"), "give one of them");
  if (f->prompt_file) {
    int64_t bytes;
    WF_TRY(wf_file_read(f->prompt_file, INT64_C(1) << 30, prompt, &bytes));
    *n = (size_t)bytes;
    return WF_OK;
  }
  *prompt = wf_strdup("prompt", f->prompt ? f->prompt : "");
  if (!*prompt) return WF_ENOMEM;
  *n = strlen(*prompt);
  return WF_OK;
}

static void print_stats(const wf_generated *g) {
  char memory[24];
  fprintf(stderr, "prompt: %lld tokens in %.3f s; %lld tokens in %.3f s, %.1f tokens/s; peak memory %s\n",
          (long long)g->prompt, g->prompt_seconds, (long long)g->tokens, g->seconds,
          (double)g->tokens / (g->seconds > 0 ? g->seconds : 1e-9),
          wf_human_bytes((double)wf_mem_peak(), memory));
}

static wf_status generate(const flags *f, const wf_loaded *l, const char *prompt, size_t n) {
  wf_generate_options o = {.tokens = f->tokens,
                           .sampling = {f->temperature, f->top_k, f->top_p},
                           .seed = (uint64_t)f->seed,
                           .begin = f->begin,
                           .ignore_end = f->ignore_end,
                           .stop = &stop};
  wf_generated done;
  char last = '\n';
  if (f->echo) WF_TRY(show(&last, prompt, n));
  wf_status s = wf_generate(l->model, l->tokenizer, prompt, n, &o, show, &last, &done);
  if (last != '\n') putchar('\n');
  fflush(stdout);
  WF_TRY(s);
  if (done.end == WF_GENERATED_FULL)
    fprintf(stderr, "stopped: the model's %lld positions are used up\n",
            (long long)wf_model_max_positions(l->model));
  if (f->stats) print_stats(&done);
  return WF_OK;
}

static wf_status run(const wf_args *a) {
  const flags *f = a->flags;
  char *prompt;
  size_t n = 0;
  WF_TRY(read_prompt(f, &prompt, &n));
  wf_loaded l;
  wf_status s = wf_loaded_open(a->words[0], f->average, a->sets, a->n_sets, &l);
  if (s == WF_OK) {
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    s = generate(f, &l, prompt, n);
    wf_loaded_close(&l);
  }
  wf_free(prompt);
  return s;
}

const wf_command wf_cmd_generate = {
    .name = "generate",
    .help = "write text with a trained model",
    .usage = "RUN",
    .more =
        "RUN is a run's name under runs/, its folder, or a checkpoint file.\n"
        "Without a prompt the text starts after the tokenizer's begin token, or the one between documents,\n"
        "or a line's end, whichever it has first. SIGINT stops after the token.",
    .flags = table,
    .flags_size = sizeof(flags),
    .sets = true,
    .least = 1,
    .most = 1,
    .run = run,
};
