/* layer: the contract of mixers and MLPs, and what they are built and run with.
 *
 * A layer is a function of a piece of a sequence and a state,
 *     (y, state_out) = forward(rows, x, state_in),
 * differentiable in x, in its parameters and in the state. It holds at any cut: running a sequence in pieces
 * with the state handed over gives what one run gives, forward and backward; and it is causal. Whoever
 * satisfies this gets training, truncated and streamed back-propagation, decoding, packing and sequence
 * parallelism.
 *
 * All structure along the sequence comes from the primitives of layers/seq.h, which carry the state and know
 * about rows, so a layer's file contains no line about ranks, chunks or documents. One file for each layer;
 * it ends with its wf_layer_type and one line in layers/layers.def.
 */
#ifndef WF_LAYERS_LAYER_H
#define WF_LAYERS_LAYER_H

#include "core/ops.h"
#include "core/option.h"
#include "dist/part.h"
#include "layers/param.h"
#include "layers/state.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum wf_layer_kind { WF_LAYER_MIXER, WF_LAYER_MLP, WF_N_LAYER_KINDS } wf_layer_kind;

/* What a layer is built with. */
typedef struct wf_build {
  wf_params *params;
  wf_state_spec *state;
  const char *prefix;  /* "blocks.3.mixer": put before parameter and slot names */
  const char *shared;  /* NULL, or the prefix of the layer whose parameters this one uses */
  int64_t d_model;     /* width of x and y */
  int layer, n_layers; /* its block and the number of blocks */
  double init_std;     /* deviation of linear weights */
  double out_std;      /* of the projection that ends the residual branch */
  double norm_eps;
  bool bare_norms;        /* layer norms have no bias */
  int64_t context;        /* tokens of a sequence in training, for layers that need a length */
  bool learned_positions; /* a layer sets it to ask the model for a table of positions at its input */
} wf_build;

/* What a layer is run with. */
typedef struct wf_run {
  wf_ctx *c;
  const wf_rows *rows;
  wf_state *state; /* NULL: every row is fresh and leaves nothing */
  wf_part *part;   /* NULL: all tokens are here; else the ranks they are cut over, and `state` is there */
  bool train;      /* dropout is on */
  int64_t step;    /* of training, for random numbers */
  uint64_t seed;
} wf_run;

typedef struct wf_layer_type {
  wf_layer_kind kind;
  const char *name;  /* as in the config */
  const char *help;  /* one line */
  const char *paper; /* "" for none */
  const wf_option *options;
  size_t options_size;
  /* Check the options against each other and the width, declare parameters and state; *self by wf_alloc. */
  wf_status (*init)(wf_build *b, const void *options, void **self);
  /* x [n, d_model] -> y [n, d_model]; sticky errors. */
  wf_tensor *(*forward)(wf_run *r, const void *self, wf_tensor *x);
  /* Forward floating-point operations a token at position T, products counted as 2 (may be NULL: twice the
   * parameters). */
  double (*flops)(const void *self, int64_t T);
  /* Elements of its growing state that a token at position T reads (may be NULL: all that T tokens left). */
  double (*reads)(const void *self, int64_t T);
} wf_layer_type;

/* ---- registry ---- */
const wf_layer_type *wf_layer_find(wf_layer_kind kind, const char *name); /* NULL when unknown */
const wf_layer_type *wf_layer_at(int i);                                  /* NULL past the end */
wf_status wf_layer_register(const wf_layer_type *type); /* a user's own; name unique in its kind */
const char *wf_layer_nearest(wf_layer_kind kind, const char *name); /* for messages; NULL */

/* ---- for init ---- */

/* Declare "prefix.name". */
wf_status wf_build_param(wf_build *b, const char *name, unsigned flags, wf_init init, int ndim,
                         const int64_t *shape, wf_param **out);
/* A parameter of the whole model, "name" alone, that several layers use: the first to ask declares it, the
 * others get the same one (and must ask for the same shape). HGRN2's lower bounds, a row for each layer, are
 * such a one. */
wf_status wf_build_shared_param(wf_build *b, const char *name, unsigned flags, wf_init init, int ndim,
                                const int64_t *shape, wf_param **out);
/* A weight [out, in] from N(0, std^2) and, when `bias` is not NULL, a bias [out] of zeros: "name.weight",
 * "name.bias". */
wf_status wf_build_linear(wf_build *b, const char *name, int64_t in, int64_t out, double std,
                          wf_param **weight, wf_param **bias);
/* Declare a state slot "prefix.name" of shape [lanes, shape...]; `grows`: [lanes, capacity, shape...]. */
wf_status wf_build_state(wf_build *b, const char *name, bool grows, int ndim, const int64_t *shape,
                         int *slot);
/* The same, of float64 whatever the model computes in. */
wf_status wf_build_state_exact(wf_build *b, const char *name, bool grows, int ndim, const int64_t *shape,
                               int *slot);

static inline wf_init wf_init_const(double x) {
  return (wf_init){.kind = WF_INIT_CONST, .a = x};
}
static inline wf_init wf_init_normal(double std) {
  return (wf_init){.kind = WF_INIT_NORMAL, .b = std};
}

/* A parameter's value for expressions; NULL for NULL. */
static inline wf_tensor *wf_value(const wf_param *p) {
  return p ? p->value : NULL;
}

#ifdef __cplusplus
}
#endif

#endif
