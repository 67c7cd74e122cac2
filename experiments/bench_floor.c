/* weft bench floor: the machine's rates, and what they allow. */
#include <omp.h>
#include <stdio.h>

#include "experiments/bench.h"
#include "experiments/rates.h"

typedef struct shape {
  const char *what;
  int64_t m, n, k;
} shape;

/* Forward projections of the training rows: tokens, width out, width in. */
static const shape shapes[] = {
    {"large square", 2048, 2048, 2048}, {"nano q, k, v", 768, 384, 128}, {"nano up", 768, 512, 128},
    {"small q, k, v", 2048, 1152, 384}, {"small up", 2048, 1536, 384},   {"gpt2 q, k, v", 256, 2304, 768},
    {"gpt2 up", 256, 3072, 768},        {"gpt2 head", 256, 50257, 768},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

typedef struct rates {
  double product[SHAPES], read, copy, exp;
} rates;

static wf_status measure(wf_ctx *c, double seconds, rates *r) {
  for (int i = 0; i < SHAPES; i++)
    WF_TRY(wf_rate_product(c, shapes[i].m, shapes[i].n, shapes[i].k, seconds, &r->product[i]));
  WF_TRY(wf_rate_memory(c, seconds, &r->read, &r->copy));
  return wf_rate_exp(c, seconds, &r->exp);
}

static double block_weights(const wf_bench_model *m) {
  return 12.0 * (double)m->layers * (double)(m->width * m->width);
}

/* Exponentials of a step: GELU's tanh forward and backward, the softmax of the visible scores both times. */
static double step_exps(const wf_bench_model *m) {
  double tokens = (double)(m->batch * m->length);
  return 2 * (double)m->layers * tokens *
         (4.0 * (double)m->width + (double)m->heads * (double)(m->length + 1) / 2);
}

static double best_product(const rates *r) {
  double best = 0;
  for (int i = 0; i < SHAPES; i++)
    if (r->product[i] > best) best = r->product[i];
  return best;
}

static void allowed(const wf_bench_model *m, const rates *r) {
  double tokens = (double)(m->batch * m->length);
  double table = (double)m->vocab * (double)m->width, weights = block_weights(m) + table;
  double products = 6 * tokens * weights / best_product(r), bytes = 28 * weights / r->copy;
  double exps = step_exps(m) / r->exp;
  printf("%-6s step at least %8.2f ms: products %.2f, optimiser %.2f, exponentials %.2f; %.0f tokens/s\n",
         m->name, 1e3 * (products + bytes + exps), 1e3 * products, 1e3 * bytes, 1e3 * exps,
         tokens / (products + bytes + exps));
  if (!m[1].name) /* the largest decodes */
    printf("%-6s decoding reads %.0f MB a token: at most %.1f tokens/s\n", m->name, 4e-6 * weights,
           r->read / (4 * weights));
}

static void line(const char *what, const char *unit, double one, double all) {
  printf("%-30s %10.2f %10.2f  %s\n", what, 1e-9 * one, 1e-9 * all, unit);
}

wf_status wf_bench_floor(wf_ctx *c, const wf_bench_options *o) {
  double each = o->seconds / 20;
  rates one, all;
  int threads = omp_get_max_threads();
  WF_TRY(measure(c, each, &all));
  omp_set_num_threads(1);
  wf_status s = measure(c, each, &one);
  omp_set_num_threads(threads);
  WF_TRY(s);
  printf("%-30s %10s %8d t\n", "float32, threads", "1 t", threads);
  for (int i = 0; i < SHAPES; i++) {
    char what[64];
    snprintf(what, sizeof what, "%s %lldx%lldx%lld", shapes[i].what, (long long)shapes[i].m,
             (long long)shapes[i].n, (long long)shapes[i].k);
    line(what, "Gflop/s", one.product[i], all.product[i]);
  }
  line("read", "GB/s", one.read, all.read);
  line("copy (read + written)", "GB/s", one.copy, all.copy);
  line("exponentials in cache", "G/s", one.exp, all.exp);
  printf("\nwith %d threads these rates allow, at the best rate of a product:\n", threads);
  for (const wf_bench_model *m = wf_bench_models; m->name; m++) allowed(m, &all);
  return WF_OK;
}
