/* weft bench: what this machine allows, and how near Weft comes. Each row is measured in a process of its
 * own, so that peak memory is its own. */
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "core/op.h"
#include "experiments/bench.h"
#include "experiments/command.h"
#include "experiments/report.h"

typedef struct flags {
  bool json, profile;
  double seconds;
  int64_t repeats, threads;
} flags;

static const wf_option table[] = {
    WF_OPT_BOOL(flags, json, "false", "a line of JSON for each row, as tests/bench/peer_torch.py prints"),
    WF_OPT_BOOL(flags, profile, "false", "time by op after each row, its warm-up included"),
    WF_OPT_F64(flags, seconds, "8", 0, 3600, "time each row for about this long"),
    WF_OPT_I64(flags, repeats, "5", 1, 1000, "but at least so many times"),
    WF_OPT_I64F(flags, threads, "auto", 1, 4096, WF_OPT_AUTO, "auto: as OMP_NUM_THREADS says, or all"),
    WF_OPT_END};

static const char *const names[] = {"floor", "nano", "small", "gpt2", "attention", "decode"};
enum { ROWS = sizeof names / sizeof *names };

static wf_status measure(wf_ctx *c, const char *name, const wf_bench_options *o, wf_bench_row *row) {
  if (strcmp(name, "attention") == 0) return wf_bench_attention(c, o, row);
  if (strcmp(name, "decode") == 0) return wf_bench_decode(c, row);
  const wf_bench_model *m = wf_bench_models;
  while (strcmp(m->name, name) != 0) m++;
  return wf_bench_steps(c, m, o, row);
}

static void print_header(void) {
  printf("%-10s %10s %10s %12s %12s %10s %10s %8s %9s %9s\n", "row", "median ms", "least ms", "tokens/s",
         "products ms", "x products", "floor ms", "x floor", "start MB", "peak MB");
}

static void print_row(const wf_bench_row *r) {
  printf("%-10s %10.3f %10.3f %12.1f ", r->name, 1e3 * r->median_s, 1e3 * r->min_s, r->tokens / r->median_s);
  if (r->products_s > 0)
    printf("%12.3f %10.2f ", 1e3 * r->products_s, r->median_s / r->products_s);
  else
    printf("%12s %10s ", "-", "-");
  printf("%10.3f %8.2f %9.0f %9.0f\n", 1e3 * r->floor_s, r->median_s / r->floor_s, r->start_mb, r->rss_mb);
  printf("%-10s floor: %s", "", r->floor);
  if (r->products_s > 0)
    printf("; %.0f products at %.1f Gflop/s", r->n_products, 1e-9 * r->products_flops / r->products_s);
  printf("; %.0f MB by Weft's own count\n", r->tensor_mb);
}

static void print_json(const wf_bench_row *r) {
  printf("{\"name\": \"%s\", \"mode\": \"weft\", \"median_s\": %.6g, \"min_s\": %.6g, \"max_s\": %.6g, "
         "\"repeats\": %lld, \"tokens_per_s\": %.6g, \"peak_rss_mb\": %.6g, \"import_rss_mb\": %.6g, ",
         r->name, r->median_s, r->min_s, r->max_s, (long long)r->repeats, r->tokens / r->median_s, r->rss_mb,
         r->start_mb);
  if (r->products_s > 0)
    printf("\"products_s\": %.6g, \"products\": %.0f, \"products_flops\": %.6g, ", r->products_s,
           r->n_products, r->products_flops);
  printf("\"floor_s\": %.6g, \"tensor_mb\": %.6g, \"threads\": %d, \"weft\": \"%s\"}\n", r->floor_s,
         r->tensor_mb, omp_get_max_threads(), WEFT_VERSION);
}

typedef struct job {
  const char *name;
  const flags *f;
} job;

static wf_status in_context(wf_ctx *c, void *arg, void *result) {
  const job *j = arg;
  const wf_bench_options o = {.seconds = j->f->seconds, .repeats = j->f->repeats};
  (void)result;
  if (strcmp(j->name, "floor") == 0) return wf_bench_floor(c, &o);
  wf_bench_row row = {.name = j->name, .start_mb = wf_bench_peak_mb()};
  if (j->f->profile) wf_ctx_profile(c, true);
  WF_TRY(measure(c, j->name, &o, &row));
  (j->f->json ? print_json : print_row)(&row);
  if (j->f->profile) wf_report_profile(stdout, c);
  return WF_OK;
}

static wf_status one_row(void *arg, void *result) {
  return wf_bench_with_ctx(((const job *)arg)->f->threads, in_context, arg, result);
}

static wf_status known(const char *word) {
  for (size_t i = 0; i < ROWS; i++)
    if (strcmp(word, names[i]) == 0) return WF_OK;
  const char *near = wf_nearest_name(word, names, ROWS);
  wf_status s = WF_FAIL(WF_EINVAL, "weft bench has no row \"%.60s\"", word);
  if (near) return wf_hint(s, "did you mean %s?", near);
  return wf_hint(s, "floor, nano, small, gpt2, attention, decode");
}

static wf_status run(const wf_args *a) {
  const flags *f = a->flags;
  const char *const *rows = a->n_words ? a->words : names;
  size_t n = a->n_words ? a->n_words : ROWS;
  for (size_t i = 0; i < n; i++) WF_TRY(known(rows[i]));
  bool header = false;
  for (size_t i = 0; i < n; i++) {
    bool floor = strcmp(rows[i], "floor") == 0;
    if (floor && f->json) continue;
    if (!floor && !header && !f->json) {
      print_header();
      header = true;
    }
    const wf_status s = wf_bench_apart(one_row, &(job){rows[i], f}, NULL, 0);
    if (s != WF_OK) return wf_context(s, "the row %s", rows[i]);
  }
  return WF_OK;
}

const wf_command wf_cmd_bench = {
    .name = "bench",
    .help = "speed and memory against this machine's floor",
    .usage = "[floor] [nano] [small] [gpt2] [attention] [decode]",
    .more = "floor: the rates of products, reading, copying and exponentials, and what they allow.\n"
            "nano, small, gpt2: a training step; attention: 8 heads of 64 over 4096 tokens, forward and\n"
            "backward; decode: a token of GPT-2 124M. Without a name: all.\n"
            "See also weft bench mixers and weft bench scan.\n",
    .flags = table,
    .flags_size = sizeof(flags),
    .most = ROWS,
    .run = run,
};
