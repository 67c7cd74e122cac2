/* weft data build TEXT... -o STORE and weft data info STORE: texts into token stores, and what is in one. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"
#include "data/bigram.h"
#include "experiments/command.h"
#include "experiments/human.h"

static void print_split(const wf_store *s, int k) {
  const wf_split *p;
  char tokens[24], bytes[24];
  if (wf_store_split(s, k, &p) != WF_OK) {
    wf_error_clear();
    return;
  }
  int64_t longest = 0;
  for (int64_t d = 0; d < p->documents; d++)
    if (p->offsets[d + 1] - p->offsets[d] > longest) longest = p->offsets[d + 1] - p->offsets[d];
  printf("  %-12s %8s tokens of %s of text (%.2f bytes a token), %lld document%s, the longest of %lld\n",
         p->name, wf_human_count((double)p->tokens, tokens), wf_human_bytes((double)p->bytes, bytes),
         (double)p->bytes / (double)p->tokens, (long long)p->documents, p->documents == 1 ? "" : "s",
         (long long)longest);
}

static void print_store(const wf_store *s) {
  printf("%s: tokenizer %s, vocabulary %lld, divided by %s\n", wf_store_path(s), wf_store_tokenizer_name(s),
         (long long)wf_store_vocab(s), wf_store_split_by(s));
  for (int k = 0; k < WF_N_SPLITS; k++) print_split(s, k);
}

/* --- build --- */

static void show(void *context, int64_t done, int64_t total) {
  int *shown = context;
  int percent = total ? (int)(100 * (double)done / (double)total) : 0;
  if (percent == *shown) return;
  *shown = percent;
  fprintf(stderr, "\r%3d%% of the text read", percent);
  fflush(stderr);
}

static wf_status build(const wf_args *a) {
  const wf_store_options *o = a->flags;
  wf_store_input *inputs;
  wf_store_report report;
  wf_store *store;
  int shown = -1;
  WF_CALLOC(inputs, "data", a->n_words);
  for (size_t i = 0; i < a->n_words; i++) inputs[i] = (wf_store_input){a->words[i], -1};
  bool live = isatty(STDERR_FILENO);
  wf_status s = wf_store_build(o, inputs, (int)a->n_words, live ? show : NULL, &shown, &report);
  wf_free(inputs);
  if (live && shown >= 0) fprintf(stderr, "\r                       \r");
  WF_TRY(s);
  printf("%lld file%s", (long long)report.files, report.files == 1 ? "" : "s");
  if (report.skipped) printf(" (%lld passed over)", (long long)report.skipped);
  printf(", %lld document%s", (long long)report.documents, report.documents == 1 ? "" : "s");
  if (report.empty) printf(" (%lld empty ones left out)", (long long)report.empty);
  printf("\n");
  WF_TRY(wf_store_open(o->output, &store));
  print_store(store);
  wf_store_close(store);
  return WF_OK;
}

const wf_command wf_cmd_data_build = {
    .name = "data build",
    .help = "turn text files, JSON lines or folders into a token store",
    .usage = "TEXT... -o STORE.h5",
    .more = "Each TEXT is a file, or a folder with files in and below it. A file "
            "is a document;\nwith --split, the lines equal to its argument "
            "separate documents. In .jsonl files a\nline is a document.",
    .flags = wf_store_option_table,
    .flags_size = sizeof(wf_store_options),
    .least = 1,
    .most = 1 << 20,
    .run = build};

/* --- info --- */

typedef struct info_flags {
  bool verify, sources, bigram;
} info_flags;

static const wf_option info_table[] = {
    WF_OPT_BOOL(info_flags, verify, "false", "read the whole store and check every sum and every id"),
    WF_OPT_BOOL(info_flags, sources, "false", "list the files it was made from: sum, bytes, path"),
    WF_OPT_BOOL(info_flags, bigram, "false",
                "what a bigram model makes of the validation and test splits: the floor for others"),
    WF_OPT_END};

static wf_status print_bigram(const wf_store *s) {
  static const double K = 0.1;
  const wf_split *p;
  wf_bigram b;
  for (int k = WF_VALIDATION; k < WF_N_SPLITS; k++) {
    if (wf_store_split(s, k, &p) != WF_OK) {
      wf_error_clear();
      continue;
    }
    WF_TRY(wf_bigram_measure(s, k, K, &b));
    printf("  bigram       %.4f bits per byte of %s (loss %.4f), pairs counted in train, %g added to each "
           "count\n",
           b.bits_per_byte, p->name, b.loss, K);
  }
  return WF_OK;
}

static wf_status info(const wf_args *a) {
  const info_flags *f = a->flags;
  wf_store *s;
  WF_TRY(wf_store_open(a->words[0], &s));
  print_store(s);
  if (f->sources) {
    size_t n;
    const char *text = wf_store_sources(s, &n);
    fwrite(text, 1, n, stdout);
  }
  wf_status status = f->bigram ? print_bigram(s) : WF_OK;
  if (f->verify && status == WF_OK) status = wf_store_verify(s);
  if (f->verify && status == WF_OK) printf("every sum and every id is right\n");
  wf_store_close(s);
  return status;
}

const wf_command wf_cmd_data_info = {.name = "data info",
                                     .help = "what is in a token store",
                                     .usage = "STORE.h5",
                                     .flags = info_table,
                                     .flags_size = sizeof(info_flags),
                                     .least = 1,
                                     .most = 1,
                                     .run = info};
