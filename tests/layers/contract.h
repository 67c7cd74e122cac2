/* contract: what every layer must satisfy, for tests of layers.
 *
 * A trial is a small model in float64 over a batch of packed and unequal sequences. Its plain gradient is the
 * reference; streamed pieces, a one-process simulation of ranks, recomputation and single-token decoding must
 * agree with it to 1e-10, and the future must not reach the past by a single bit.
 */
#ifndef WF_TESTS_LAYERS_CONTRACT_H
#define WF_TESTS_LAYERS_CONTRACT_H

#include "layers/stream.h"

typedef struct wf_trial {
  wf_device *dev;
  wf_ctx *c;
  wf_model *m;
  wf_tokens t;
  int64_t numel;
  const wf_dist *dist; /* NULL, or the ranks whose one this is: gradients and losses are then its share */
} wf_trial;

typedef struct wf_trial_options {
  wf_dtype dtype;
  double dropout;
  bool recompute, packed, tie;
  double nudge; /* all parameters are multiplied by 1 + nudge */
} wf_trial_options;

/* "layer key=value key=value" -> the layer with its options, to be freed; NULL for "-". Fails the running
 * test where there is no such layer or option. */
const wf_layer_type *wf_trial_parse(wf_layer_kind kind, const char *text, void **options);
void wf_trial_free_options(const wf_layer_type *type, void *options);

/* A block from its text, "mixer key=value key=value / mlp key=value", each half as above; "mixer + mixer /
 * mlp" beside each other; "@NAME mixer / mlp" shares its parameters with the others of that name. */
typedef struct wf_trial_block {
  wf_block_spec spec; /* points into the rest */
  wf_layer_use beside[3];
  char text[512];
} wf_trial_block;
void wf_trial_block_parse(wf_trial_block *b, const char *text, wf_norm_kind norm);
void wf_trial_block_free(wf_trial_block *b);

/* A model of such blocks. */
void wf_trial_make(wf_trial *x, int n_blocks, const char *const *blocks, const wf_trial_options *o);
void wf_trial_free(wf_trial *x);

/* All gradients in the order of declaration, [numel], and the sum of losses; stream as in wf_step. */
void wf_trial_gradient(wf_trial *x, int64_t stream, double *grad, double *loss);

/* The same by `n` virtual ranks, each with a part of every sequence that ends at cuts[i] (cuts[n-1] beyond
 * the end): all ranks run forward, in order, each keeping its tape; then all run backward from the last.
 * `cut`: no gradient of a state goes from rank to rank. */
void wf_trial_simulate(wf_trial *x, int n, const int64_t *cuts, bool cut, double *grad, double *loss);

/* Fails the test where a gradient a is not b to the precision of the type; -> the largest error of a
 * parameter's.
 */
double wf_trial_agree(wf_trial *x, const char *what, const double *a, const double *b);

/* Logits [tokens, vocab] of the whole batch, and of the batch token by token through the state. */
void wf_trial_logits(wf_trial *x, double *logits);
void wf_trial_decode(wf_trial *x, double *logits);

/* The gradient of any cut, with and without recomputation. This holds with a layer's own dropout too, where
 * packed documents draw other numbers than the same ones apart. */
void wf_trial_cuts(int n_blocks, const char *const *blocks);

/* The gradient of any number of ranks in any layout, streamed or not: `ranks` threads, each with a model of
 * its own, that exchange messages (dist/comm.h). */
void wf_trial_ranks(int n_blocks, const char *const *blocks);
/* In the way that `by` says: all but its first two fields. Attention all to all and usp want heads that 6
 * divides. All combinations, and float32, where the whole matrix is asked for (tests/dist/ranks.h). */
void wf_trial_ranks_by(int n_blocks, const char *const *blocks, const wf_dist *by);

/* Everything above for one model. Fails the running test with a message on the first disagreement. */
void wf_trial_contract(int n_blocks, const char *const *blocks);

/* A test `name` of the contract of the blocks given. */
#define WF_CONTRACT_TEST(name, ...)                                   \
  START_TEST(name) {                                                  \
    static const char *const blocks[] = {__VA_ARGS__};                \
    wf_trial_contract((int)(sizeof blocks / sizeof *blocks), blocks); \
    ck_assert_int_eq(wf_mem_live(), 0);                               \
  }                                                                   \
  END_TEST

#endif
