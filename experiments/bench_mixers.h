/* bench_mixers: time and memory of single mixers against the length of the sequence.
 *
 * A mixer stands alone, without norm and MLP, on random inputs of fresh sequences: forward without a tape,
 * and forward with backward to its input and its parameters. Floating-point operations are counted by the
 * layer's own `flops`, averaged over the positions; backward counts twice.
 */
#ifndef WF_EXPERIMENTS_BENCH_MIXERS_H
#define WF_EXPERIMENTS_BENCH_MIXERS_H

#include "experiments/bench.h"
#include "layers/layer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_bench_mixer {
  const wf_layer_type *type;
  const void *options;
  int64_t d_model, T, batch;
  bool decode; /* one token of each sequence at T, instead of T tokens */
} wf_bench_mixer;

typedef struct wf_bench_mixer_row {
  double forward_s, both_s; /* medians of a pass over batch sequences; decoding has no second */
  double flops;             /* forward, all tokens */
  double params;
  double tensor_mb, rss_mb; /* peaks, the second with the program's own memory */
} wf_bench_mixer_row;

wf_status wf_bench_mixer_run(wf_ctx *c, const wf_bench_mixer *m, const wf_bench_options *o,
                             wf_bench_mixer_row *row);

/* A figure of two panels, time and memory a token against T, written by gnuplot as .png or .svg. Row i is of
 * mixer i / n_T at T[i % n_T]; NULL: not measured. */
wf_status wf_bench_plot(const char *path, const char *title, int n_mixers, const char *const *name, int n_T,
                        const int64_t *T, int64_t batch, const wf_bench_mixer_row *const *row);
/* Whether the file's name can be plotted here: WF_EINVAL for another ending, WF_ENOTFOUND without gnuplot. */
wf_status wf_bench_plot_check(const char *path);

#ifdef __cplusplus
}
#endif

#endif
