/* weft plan: memory and time of a step by part, over 1, 2, 4, ... ranks, predicted. */
#include <jansson.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "data/store.h"
#include "experiments/command.h"
#include "experiments/human.h"
#include "experiments/plan.h"

typedef struct flags {
  int64_t ranks, sequence, vocab, tokens;
  char *link, *flops, *memory;
  bool json;
} flags;

static const wf_option table[] = {
    WF_OPT_I64(flags, ranks, "8", 1, 65536, "the most ranks; rows are 1, 2, 4, ... and this"),
    WF_OPT_STR(
        flags, link, "auto",
        "of each rank: bandwidth, in bits or bytes, and latency; auto: parallel.link, or 100Gb/s,10us"),
    WF_OPT_I64F(flags, sequence, "auto", 1, 65536, WF_OPT_AUTO,
                "ranks of a sequence, or all where there are fewer; auto: parallel.sequence"),
    WF_OPT_STR(
        flags, flops, "auto",
        "floating-point operations a second of a rank, as in 2T; auto: what a short step of the model takes "
        "here, op by op"),
    WF_OPT_STR(flags, memory, "auto",
               "bytes a second of a rank's memory, with --flops; auto: a tenth of --flops"),
    WF_OPT_I64(flags, tokens, "2048", 1, 1e9, "of the short step"),
    WF_OPT_I64F(flags, vocab, "auto", 1, 1e9, WF_OPT_AUTO, "auto: model.vocab, or the store's"),
    WF_OPT_BOOL(flags, json, "false", "a line of JSON for each row"),
    WF_OPT_END};

static wf_status vocabulary(const flags *f, const wf_config *cfg, int64_t *out) {
  wf_store *store;
  *out = f->vocab != WF_AUTO_I64 ? f->vocab : cfg->model.vocab;
  if (*out != WF_AUTO_I64) return WF_OK;
  wf_status s = wf_store_open(cfg->data.store, &store);
  if (s != WF_OK) return wf_hint(s, "--vocab N stands in for the store");
  *out = wf_store_vocab(store);
  wf_store_close(store);
  return WF_OK;
}

static wf_status link_of(const flags *f, const wf_config *cfg, wf_cost *out) {
  if (strcmp(f->link, "auto") != 0) return wf_link_read("--link", f->link, out);
  return strcmp(cfg->parallel.link, "auto") != 0 ? wf_link_read("parallel.link", cfg->parallel.link, out)
                                                 : wf_link_read("--link", "100Gb/s,10us", out);
}

static wf_status rates_of(const flags *f, const wf_config *cfg, int64_t vocab, wf_plan_rates *out) {
  *out = (wf_plan_rates){0};
  if (strcmp(f->flops, "auto") == 0) {
    if (strcmp(f->memory, "auto") != 0)
      return wf_hint(WF_FAIL(WF_EINVAL, "--memory is for --flops"), "give both, or neither");
    return wf_plan_measure(cfg, vocab, f->tokens, out);
  }
  WF_TRY(wf_rate_read("--flops", f->flops, &out->flops));
  out->memory = out->flops / 10;
  return strcmp(f->memory, "auto") == 0 ? WF_OK : wf_rate_read("--memory", f->memory, &out->memory);
}

/* ---- rows ---- */

enum { MOST = 20 }; /* rows: powers of two and the last */

typedef struct rows {
  const flags *f;
  const wf_config *cfg;
  int64_t vocab;
  wf_plan_rates rates;
  wf_cost link;
  wf_plan plan[MOST];
  int n;
} rows;

static double efficiency(const rows *r, const wf_plan *p) {
  return r->plan[0].step / p->step / (p->data * p->sequence);
}

static double hidden(const wf_plan *p) {
  double sum = 0;
  for (int u = 0; u < WF_PLAN_USES; u++) sum += fmax(0, p->part[u].seconds - p->part[u].waited);
  return sum;
}

static void header(const rows *r) {
  char a[24], b[24], c[24];
  printf("predicted, not measured; a step of %s tokens; link %sB/s, %.3g us; ",
         wf_human_count((double)r->cfg->train.batch_tokens, a), wf_human_count(r->link.bandwidth, b),
         1e6 * r->link.latency);
  if (r->rates.n)
    printf("ops as measured here with %d thread%s (products %sflop/s)\n", omp_get_max_threads(),
           omp_get_max_threads() == 1 ? "" : "s", wf_human_count(r->rates.flops, c));
  else
    printf("%sflop/s a rank\n", wf_human_count(r->rates.flops, c));
  printf("\n");
}

static int64_t sent(const wf_plan_part *x) {
  return x->bytes + x->call_bytes;
}

static void ranks_of(const wf_plan *p) {
  char mesh[32];
  snprintf(mesh, sizeof mesh, "%d x %d%s", p->data, p->sequence, p->zigzag ? " z" : "");
  printf("%6d %11s", p->data * p->sequence, mesh);
}

static void bytes_table(const rows *r) {
  static const char *const memory[] = {"memory",      "weights", "gradients", "optimiser",
                                       "activations", "states",  "messages"};
  char a[24];
  printf("memory of a rank by part; bytes that it sends in a step by what they are for (z: zigzag)\n");
  printf("%6s %11s", "ranks", "data x seq");
  for (int i = 0; i < 7; i++) printf(" %11s", memory[i]);
  printf(" | %9s", "sent");
  for (int u = 0; u < WF_PLAN_USES; u++) printf(" %9s", wf_plan_use_name[u]);
  printf("\n");
  for (int k = 0; k < r->n; k++) {
    const wf_plan *p = &r->plan[k];
    const int64_t part[] = {p->peak,        p->weights, p->gradients, p->optimizer,
                            p->activations, p->states,  p->exchange};
    int64_t sum = 0;
    ranks_of(p);
    for (int i = 0; i < 7; i++) printf(" %11s", wf_human_bytes((double)part[i], a));
    for (int u = 0; u < WF_PLAN_USES; u++) sum += sent(&p->part[u]);
    printf(" | %9s", wf_human_bytes((double)sum, a));
    for (int u = 0; u < WF_PLAN_USES; u++) printf(" %9s", wf_human_bytes((double)sent(&p->part[u]), a));
    printf("\n");
  }
}

static void time_table(const rows *r) {
  char a[24];
  printf("\nms of a step of the slowest rank: computing, waiting by what for, idle while others have their "
         "turn;\n"
         "hidden: exchanges under way while it computes\n");
  printf("%6s %11s %11s", "ranks", "data x seq", "compute");
  for (int u = 0; u < WF_PLAN_USES; u++) printf(" %9s", wf_plan_use_name[u]);
  printf(" %9s %9s | %11s %9s %10s\n", "idle", "hidden", "step", "tokens/s", "efficiency");
  for (int k = 0; k < r->n; k++) {
    const wf_plan *p = &r->plan[k];
    double idle = 0;
    ranks_of(p);
    printf(" %11.3f", 1e3 * p->compute);
    for (int u = 0; u < WF_PLAN_USES; u++) {
      printf(" %9.3f", 1e3 * p->part[u].waited);
      idle += p->part[u].idle;
    }
    printf(" %9.3f %9.3f | %11.3f %9s %10.3f\n", 1e3 * idle, 1e3 * hidden(p), 1e3 * p->step,
           wf_human_count((double)p->tokens / p->step, a), efficiency(r, p));
  }
}

static wf_status json_line(const rows *r, const wf_plan *p) {
  json_t *parts = json_object();
  for (int u = 0; u < WF_PLAN_USES; u++) {
    const wf_plan_part *x = &p->part[u];
    json_object_set_new(parts, wf_plan_use_name[u],
                        json_pack("{s:I,s:I,s:I,s:I,s:f,s:f,s:f}", "messages", (json_int_t)x->messages,
                                  "message_bytes", (json_int_t)x->bytes, "calls", (json_int_t)x->calls,
                                  "call_bytes", (json_int_t)x->call_bytes, "seconds", x->seconds, "waited",
                                  x->waited, "idle", x->idle));
  }
  json_t *row = json_pack(
      "{s:b,s:i,s:i,s:i,s:s,s:I,s:{s:I,s:I,s:I,s:I,s:I,s:I,s:I},s:f,s:f,s:o,s:f,s:f,s:f,s:f,s:I}",
      "predicted", 1, "ranks", p->data * p->sequence, "data", p->data, "sequence", p->sequence, "layout",
      p->zigzag ? "zigzag" : "contiguous", "tokens", (json_int_t)p->tokens, "bytes", "peak",
      (json_int_t)p->peak, "weights", (json_int_t)p->weights, "gradients", (json_int_t)p->gradients,
      "optimizer", (json_int_t)p->optimizer, "activations", (json_int_t)p->activations, "states",
      (json_int_t)p->states, "buffers", (json_int_t)p->exchange, "flops", p->flops, "compute_s", p->compute,
      "exchanges", parts, "step_s", p->step, "tokens_per_s", (double)p->tokens / p->step, "efficiency",
      efficiency(r, p), "serial_efficiency", p->serial, "serial_shards", (json_int_t)p->shards);
  char *text = row ? json_dumps(row, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
  json_decref(row);
  if (!text) return WF_FAIL(WF_ENOMEM, "no memory for a line of JSON");
  puts(text);
  free(text);
  return WF_OK;
}

static wf_status row(rows *r, int64_t ranks, int64_t sequence) {
  wf_plan *p = &r->plan[r->n++];
  if (sequence > ranks) sequence = ranks;
  WF_TRY(wf_plan_job(r->cfg, r->vocab, (int)(ranks / sequence), (int)sequence, &r->rates, &r->link, p));
  return r->f->json ? json_line(r, p) : WF_OK;
}

static wf_status all_rows(rows *r) {
  int64_t last = r->f->ranks, sequence = r->f->sequence;
  if (sequence == WF_AUTO_I64) sequence = r->cfg->parallel.sequence;
  if (last > sequence && last % sequence)
    return WF_FAIL(WF_EINVAL, "%lld ranks are no multiple of the %lld of a sequence", (long long)last,
                   (long long)sequence);
  for (int64_t n = 1; n <= last; n = n < last && 2 * n > last ? last : 2 * n) {
    if (n > sequence && n % sequence) continue; /* no mesh */
    WF_TRY(row(r, n, sequence));
  }
  if (r->f->json) return WF_OK;
  header(r);
  bytes_table(r);
  time_table(r);
  return WF_OK;
}

static wf_status run(const wf_args *a) {
  const flags *f = a->flags;
  wf_config cfg;
  rows r = {.f = f, .cfg = &cfg, .link = wf_cost_default()};
  r.link.threads = omp_get_max_threads();
  WF_TRY(wf_config_load(&cfg, a->words[0], a->sets, a->n_sets, wf_types));
  wf_status s = strcmp(f->flops, "auto") == 0 ? wf_cost_measure(&r.link) : WF_OK;
  if (s == WF_OK) s = link_of(f, &cfg, &r.link);
  if (s == WF_OK) s = vocabulary(f, &cfg, &r.vocab);
  if (s == WF_OK) s = rates_of(f, &cfg, r.vocab, &r.rates);
  if (s == WF_OK) s = all_rows(&r);
  wf_plan_rates_free(&r.rates);
  wf_config_free(&cfg);
  return s;
}

const wf_command wf_cmd_plan = {
    .name = "plan",
    .help = "predict memory and time of a step over many ranks",
    .usage = "CONFIG [--ranks N] [--link 100Gb/s,10us] [--sequence N] [--flops F] [--json] [--set a.b=c]...",
    .more = "The step runs on paper: the runtime's own layers, layouts, transports and optimiser, on a "
            "device that\n"
            "computes nothing, as one rank of a group that sends nothing. So bytes are those of weft train; "
            "times are\n"
            "predicted from rates of a rank and its link (latency + bytes / bandwidth for each message). The "
            "batch is\n"
            "the config's at every number of ranks; documents are whole sequences. Efficiency: against one "
            "rank.\n",
    .flags = table,
    .flags_size = sizeof(flags),
    .sets = true,
    .least = 1,
    .most = 1,
    .run = run,
};
