/* weft bench scan: the linear-recurrence family's kernels against products and against attention. */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/bench_scan.h"
#include "experiments/command.h"
#include "experiments/human.h"

enum { MOST_SIZES = 8, MOST_T = 32, MOST_MEMBERS = 64 };

typedef struct flags {
  int64_t heads, batch, chunk, against, attention, repeats, threads;
  double seconds, decay;
  char *size, *seq_len;
  bool json;
} flags;

static const wf_option table[] = {
    WF_OPT_STR(flags, size, "64,128", "K = V, a list"),
    WF_OPT_STR(flags, seq_len, "1k,2k,4k,16k,64k", "lengths T, a list; k and M are powers of 1024"),
    WF_OPT_I64(flags, heads, "4", 1, 65536, "heads"),
    WF_OPT_I64(flags, batch, "1", 1, 1e6, "sequences beside each other"),
    WF_OPT_I64(flags, chunk, "0", 0, 1 << 20,
               "tokens of a chunk; 1: the plain recurrence; 0: the kernel's choice"),
    WF_OPT_I64(flags, against, "0", 0, 1 << 20,
               "chunks to time beside, by turns: their time over this one's is printed; 1: the recurrence"),
    WF_OPT_F64(flags, decay, "-0.02", -1e4, 0, "log decays lie between it and 0"),
    WF_OPT_I64(flags, attention, "8192", 0, 1e15, "the longest T at which attention is timed beside"),
    WF_OPT_I64(flags, repeats, "3", 1, 1000, "time each at least so many times; the median counts"),
    WF_OPT_F64(flags, seconds, "0.5", 0, 3600, "and for about this long"),
    WF_OPT_I64F(flags, threads, "auto", 1, 4096, WF_OPT_AUTO, "auto: as OMP_NUM_THREADS says, or all"),
    WF_OPT_BOOL(flags, json, "false", "a line of JSON for each row"),
    WF_OPT_END};

typedef struct scans {
  const flags *f;
  int64_t size[MOST_SIZES], T[MOST_T];
  int n_sizes, n_T, n;
  const wf_bench_member *member[MOST_MEMBERS];
  double rate; /* of products */
} scans;

static wf_status add_named(scans *s, const char *name) {
  const char *names[MOST_MEMBERS];
  int n = 0;
  for (const wf_bench_member *m = wf_bench_members; m->name; m++) {
    if (strcmp(m->name, name) == 0) {
      if (s->n == MOST_MEMBERS) return WF_FAIL(WF_EINVAL, "more than %d rows", MOST_MEMBERS);
      s->member[s->n++] = m;
      return WF_OK;
    }
    names[n++] = m->name;
  }
  const char *near = wf_nearest_name(name, names, n);
  const wf_status st = WF_FAIL(WF_EINVAL, "the family has no member \"%.60s\"", name);
  return near ? wf_hint(st, "did you mean %s?", near) : wf_hint(st, "weft bench scan --help lists them");
}

typedef struct job {
  const flags *f;
  wf_bench_scan scan;
} job;

static wf_status in_ctx(wf_ctx *c, void *arg, void *result) {
  const job *j = arg;
  return wf_bench_scan_run(c, &j->scan, &(wf_bench_options){j->f->seconds, j->f->repeats}, result);
}
static wf_status apart(void *arg, void *result) {
  return wf_bench_with_ctx(((const job *)arg)->f->threads, in_ctx, arg, result);
}

static void print_header(const scans *s) {
  printf("%lld heads, batch %lld, float32; ops: 14 K V a token and head for both ways, 20 with the delta "
         "rule; of\n"
         "sgemm: of the %.1f G/s of a product of 2048 x 2048; attention: its time over this one's\n",
         (long long)s->f->heads, (long long)s->f->batch, 1e-9 * s->rate);
  if (s->f->against)
    printf("against: the time of chunks of %lld over this one's, forward and both ways\n",
           (long long)s->f->against);
  printf("%-14s %6s %9s %14s %14s %10s %10s %10s%s\n", "member", "K = V", "T", "forward ns/t",
         "both ns/token", "of sgemm", "attention", "peak MB", s->f->against ? "        against" : "");
}

/* `beside`: attention's time at the same sizes, 0 where it was not taken. */
static void print_row(const scans *s, const wf_bench_scan *x, const wf_bench_scan_row *r, double beside) {
  const double tokens = (double)(x->T * x->batch), part = r->flops / r->both_s / s->rate;
  if (s->f->json) {
    printf("{\"member\": \"%s\", \"heads\": %lld, \"size\": %lld, \"T\": %lld, \"batch\": %lld, \"chunk\": "
           "%lld, "
           "\"forward_s\": %.6g, \"both_s\": %.6g, \"ns_per_token\": %.6g, \"of_sgemm\": %.4g, \"peak_mb\": "
           "%.6g",
           x->member->name, (long long)x->heads, (long long)x->size, (long long)x->T, (long long)x->batch,
           (long long)x->chunk, r->forward_s, r->both_s, 1e9 * r->both_s / tokens, part, r->tensor_mb);
    if (beside > 0) printf(", \"attention_s\": %.6g", beside);
    if (s->f->against)
      printf(", \"against\": %lld, \"forward_against_s\": %.6g, \"both_against_s\": %.6g",
             (long long)s->f->against, r->forward_against_s, r->both_against_s);
    printf("}\n");
  } else {
    char ratio[32] = "-";
    if (beside > 0) snprintf(ratio, sizeof ratio, "%.2f", beside / r->both_s);
    printf("%-14s %6lld %9lld %14.1f %14.1f %9.1f%% %10s %10.1f", x->member->name, (long long)x->size,
           (long long)x->T, 1e9 * r->forward_s / tokens, 1e9 * r->both_s / tokens, 100 * part, ratio,
           r->tensor_mb);
    if (s->f->against)
      printf(" %7.2f %6.2f", r->forward_against_s / r->forward_s, r->both_against_s / r->both_s);
    printf("\n");
  }
  fflush(stdout);
}

/* All members at one size and length; attention, where it is asked for, comes first for the others' column.
 */
static wf_status measure(const scans *s, int64_t size, int64_t T) {
  double beside = 0;
  for (int i = 0; i < s->n; i++) {
    job j = {s->f,
             {s->member[i], s->f->heads, size, T, s->f->batch, s->f->chunk, s->f->against, s->f->decay}};
    wf_bench_scan_row row;
    if (j.scan.member->kind == WF_BENCH_ATTENTION && T > s->f->attention) continue;
    const wf_status st = wf_bench_apart(apart, &j, &row, sizeof row);
    if (st == WF_EUNSUPPORTED) { /* told, and the others go on */
      fprintf(stderr, "weft: %s at T %lld: %s\n", j.scan.member->name, (long long)T, wf_error_message());
      wf_error_clear();
      continue;
    }
    if (st != WF_OK) return wf_context(st, "%s", j.scan.member->name);
    print_row(s, &j.scan, &row, beside);
    if (j.scan.member->kind == WF_BENCH_ATTENTION) beside = row.both_s;
  }
  return WF_OK;
}

static wf_status run(const wf_args *a) {
  scans s = {.f = a->flags};
  WF_TRY(wf_human_read("--size", s.f->size, s.size, MOST_SIZES, &s.n_sizes));
  WF_TRY(wf_human_read("--seq-len", s.f->seq_len, s.T, MOST_T, &s.n_T));
  for (size_t i = 0; i < a->n_words; i++) WF_TRY(add_named(&s, a->words[i]));
  for (const wf_bench_member *m = wf_bench_members; a->n_words == 0 && m->name; m++)
    WF_TRY(add_named(&s, m->name));
  WF_TRY(wf_bench_product_rate(s.f->threads, &s.rate));
  if (!s.f->json) print_header(&s);
  for (int k = 0; k < s.n_sizes; k++)
    for (int t = 0; t < s.n_T; t++) WF_TRY(measure(&s, s.size[k], s.T[t]));
  return WF_OK;
}

const wf_command wf_cmd_bench_scan = {
    .name = "bench scan",
    .help = "the recurrences' kernels against products and attention",
    .usage = "[MEMBER...]",
    .more = "MEMBER: attention; plain (no decay); constant, scalar, weighted, mlstm: decays a head; channel; "
            "delta, "
            "gated_delta, channel_delta: the delta rule; selective. Without a name: all.",
    .flags = table,
    .flags_size = sizeof(flags),
    .most = MOST_MEMBERS,
    .run = run,
};
