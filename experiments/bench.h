/* bench: the rows that `weft bench` measures, each against its floor on this machine.
 *
 * A training row is one whole step as `weft train` does it, without clipping: forward, mean loss, backward,
 * AdamW. The models are GPT-2's, the same as in tests/bench/peer_torch.py, on ids drawn once. Beside it, in
 * the same loop and turn by turn, run its products alone: what the step asks of BLAS and nothing else
 * (core/product.h). The floor is made of them and of the bytes that must move.
 */
#ifndef WF_EXPERIMENTS_BENCH_H
#define WF_EXPERIMENTS_BENCH_H

#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_bench_options {
  double seconds;  /* time each row for about this long */
  int64_t repeats; /* but at least so many times */
} wf_bench_options;

/* Seconds are of a step, or of a token for decoding. */
typedef struct wf_bench_row {
  const char *name, *floor; /* what the floor is made of */
  double median_s, min_s, max_s;
  int64_t repeats;
  double tokens;                 /* of a step */
  double products_s, n_products; /* the products alone, median; 0 where the row has none */
  double products_flops;
  double floor_s;
  double start_mb,
      rss_mb;       /* resident memory before the model and at its peak, without the products' copies */
  double tensor_mb; /* peak by Weft's own count */
} wf_bench_row;

typedef wf_status (*wf_bench_fn)(void *arg);

/* Times step(arg) and, where not NULL, products(arg) by turns; the caller has warmed them up. */
wf_status wf_bench_measure(const wf_bench_options *o, wf_bench_fn step, wf_bench_fn products, void *arg,
                           wf_bench_row *row);

/* Run fn(arg, result) in a process of its own, so that its peak memory and its threads are its own; `size`
 * bytes of `result` come back, or its error. No threads of OpenMP may have started in this process. */
wf_status wf_bench_apart(wf_status (*fn)(void *arg, void *result), void *arg, void *result, size_t size);

/* A context on the CPU for fn(c, arg, result), with `threads` (auto: as OpenMP says) threads. */
typedef wf_status (*wf_bench_in_ctx)(wf_ctx *c, void *arg, void *result);
wf_status wf_bench_with_ctx(int64_t threads, wf_bench_in_ctx fn, void *arg, void *result);

/* Operations a second of a product of 2048 x 2048 with so many threads, in a process of its own. */
wf_status wf_bench_product_rate(int64_t threads, double *flops);

double wf_bench_peak_mb(void);                /* largest resident memory of the process so far */
void wf_bench_memory_peak(wf_bench_row *row); /* fill rss_mb and tensor_mb */

/* wf_rate_memory in a context of its own, so that a profile of `c` is of the row alone. */
wf_status wf_bench_memory_rates(wf_ctx *c, double *read, double *copy);

typedef struct wf_bench_model {
  const char *name;
  int64_t layers, width, heads, length, batch, vocab;
} wf_bench_model;
extern const wf_bench_model wf_bench_models[]; /* nano, small, gpt2; ends with a NULL name */

struct wf_config;
/* The config of such a model with `positions` rows in its table; wf_config_free. */
wf_status wf_bench_config(const wf_bench_model *m, int64_t positions, struct wf_config *out);

wf_status wf_bench_steps(wf_ctx *c, const wf_bench_model *m, const wf_bench_options *o, wf_bench_row *row);
wf_status wf_bench_attention(wf_ctx *c, const wf_bench_options *o, wf_bench_row *row);
wf_status wf_bench_decode(wf_ctx *c, wf_bench_row *row); /* 128 tokens, whatever the time */

/* Rates of the machine with one thread and with all, and what they allow; printed. */
wf_status wf_bench_floor(wf_ctx *c, const wf_bench_options *o);

#ifdef __cplusplus
}
#endif

#endif
