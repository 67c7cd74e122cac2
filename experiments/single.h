/* single: one layer by itself, outside a model: to check its options, say what it costs, or time it. */
#ifndef WF_EXPERIMENTS_SINGLE_H
#define WF_EXPERIMENTS_SINGLE_H

#include "layers/layer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_single {
  const wf_layer_type *type;
  void *self;
  wf_params params; /* declared, not allocated */
  wf_state_spec state;
} wf_single;

/* Let the layer declare itself. `like` gives the width, the deviations and eps; for names, its prefix.
 * Nothing is left after a failure. */
wf_status wf_single_open(const wf_layer_type *type, const void *options, const wf_build *like,
                         wf_single *out);
void wf_single_close(wf_single *s);

/* The usual `like` of a width: the first of n_layers 1. */
wf_build wf_single_build(int64_t d_model);

/* The layer's default options with n_sets texts "key=value" over them; of `optional` ones those that it has.
 * Freed by wf_single_options_free, also after a failure. */
wf_status wf_single_options(const wf_layer_type *type, const char *const *sets, size_t n_sets,
                            const char *const *optional, size_t n_optional, void **out);
void wf_single_options_free(const wf_layer_type *type, void *options);

/* Forward floating-point operations of a token at position T. */
double wf_single_flops(const wf_single *s, int64_t T);
/* Bytes of float32 that a token decoded at position T moves: it reads the weights, reads and writes the fixed
 * part of the state, reads what it sees of the growing part and adds its own. */
double wf_single_bytes(const wf_single *s, int64_t T);

#ifdef __cplusplus
}
#endif

#endif
