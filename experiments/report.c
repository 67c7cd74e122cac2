/* Tables for people. */
#include "experiments/report.h"
#include "core/memory.h"
#include "experiments/bench.h"
#include "experiments/human.h"

#include <string.h>

/* "blocks.3.mixer.q.weight" counts as mixer; what stands outside blocks as its first word. */
static const char *kind_of(const wf_param *p, char out[32]) {
  const char *s = p->name;
  if (strncmp(s, "blocks.", 7) == 0) {
    s = strchr(s + 7, '.');
    s = s ? s + 1 : p->name;
  }
  size_t n = strcspn(s, ".");
  if (n > 31) n = 31;
  memcpy(out, s, n);
  out[n] = '\0';
  if (strncmp(out, "norm", 4) == 0) out[4] = '\0';
  return out;
}

void wf_report_model(FILE *out, wf_model *m, const wf_shards *s, const wf_optimizer *opt, const wf_ema *ema,
                     int64_t tokens) {
  enum { KINDS = 12 };
  char names[KINDS][32], name[32], a[24], b[24];
  int64_t count[KINDS] = {0};
  int n = 0;
  const wf_params *ps = wf_model_params(m);
  for (int i = 0; i < ps->n; i++) {
    kind_of(ps->param[i], name);
    int k = 0;
    while (k < n && strcmp(names[k], name) != 0) k++;
    if (k == n && n < KINDS) memcpy(names[n++], name, sizeof name);
    if (k < KINDS) count[k] += ps->param[i]->numel;
  }
  fprintf(out, "%s parameters:", wf_human_count((double)ps->numel, a));
  for (int k = 0; k < n; k++)
    fprintf(out, "%s %s %s", k ? "," : "", names[k], wf_human_count((double)count[k], b));
  double weights = (double)wf_dtype_size(wf_model_dtype(m)) * (double)ps->numel + (double)wf_shards_bytes(s);
  double beside = (double)wf_optimizer_bytes(opt) + (ema ? (double)wf_ema_bytes(ema) : 0);
  fprintf(out, "\nmemory: %s for weights and gradients, ", wf_human_bytes(weights, a));
  fprintf(out, "%s for the optimiser%s", wf_human_bytes(beside, a), ema ? " and the average" : "");
  if (s->divided) fprintf(out, " (1 of %d parts)", wf_comm_size(s->comm));
  fprintf(out, ", about %s for the activations of %lld tokens\n",
          wf_human_bytes(wf_model_activation_bytes(m, tokens), a), (long long)tokens);
}

void wf_report_profile(FILE *out, const wf_ctx *c) {
  wf_op_profile p[256];
  int n = wf_ctx_profile_read(c, p, 256);
  double total = 0;
  for (int i = 0; i < n; i++) total += p[i].seconds;
  fprintf(out, "%-18s %8s %10s %6s %10s %10s\n", "op", "calls", "seconds", "%", "GFLOP/s", "GB/s");
  for (int i = 0; i < n; i++)
    fprintf(out, "%-18s %8lld %10.4f %6.1f %10.1f %10.2f%s%s\n", p[i].op->name, (long long)p[i].calls,
            p[i].seconds, 100 * p[i].seconds / total, p[i].flops / p[i].seconds * 1e-9,
            p[i].bytes / p[i].seconds * 1e-9, p[i].label ? "  " : "", p[i].label ? p[i].label : "");
  wf_mem_tag tags[8];
  int k = wf_mem_report(tags, 8);
  fprintf(out, "peak memory:");
  char a[24];
  for (int i = 0; i < k; i++)
    fprintf(out, "%s %s %s", i ? "," : "", tags[i].tag, wf_human_bytes((double)tags[i].peak, a));
  fprintf(out, "\n");
}

void wf_report_memory(FILE *out) {
  char a[24], b[24];
  fprintf(out, "peak memory: %s resident, %s by Weft's own count\n",
          wf_human_bytes(wf_bench_peak_mb() * (1 << 20), a), wf_human_bytes((double)wf_mem_peak(), b));
}
