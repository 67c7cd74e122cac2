/* param: the parameters of a model, named tensors laid out in flat buffers.
 *
 * Layers declare parameters in the order of the forward pass; wf_params_allocate() then lays those of one
 * group (equal weight decay, learning-rate scale and kind of optimiser) side by side in one buffer of values
 * and one of gradients, so that optimisers, clipping, communication and checkpoints work on ranges.
 * Parameters declared one after another with the same group are adjacent: q, k and v are one product for the
 * kernels and three names for everybody else.
 */
#ifndef WF_LAYERS_PARAM_H
#define WF_LAYERS_PARAM_H

#include "autograd/tape.h"
#include "core/rng.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_PARAM_MAX_DIMS = 4 };

typedef enum wf_init_kind { WF_INIT_CONST, WF_INIT_NORMAL, WF_INIT_UNIFORM, WF_INIT_FN } wf_init_kind;

typedef struct wf_init {
  wf_init_kind kind;
  double a, b, c; /* CONST: the value. NORMAL: mean, deviation. UNIFORM: [a, b). FN: as fn has them */
  double (*fn)(const struct wf_init *init, wf_rng_key key, int64_t element); /* FN */
} wf_init;

enum {
  WF_PARAM_NO_DECAY = 1, /* norms, biases, gates: no weight decay by default */
  WF_PARAM_TABLE = 2     /* an embedding or head: indexed by token, not a hidden matrix */
};

typedef struct wf_param {
  char *name; /* "blocks.0.mixer.q.weight" */
  int ndim;
  int64_t shape[WF_PARAM_MAX_DIMS], numel;
  wf_init init;
  unsigned flags;
  wf_tensor *value; /* view of the group's values, once allocated */
  wf_leaf leaf;     /* leaf.grad: view of the group's gradients */
  int group;
  int64_t offset; /* in the group's buffers, elements */
} wf_param;

/* What decides a parameter's group. */
typedef struct wf_param_kind {
  bool decay;      /* weight decay applies */
  bool matrix;     /* a hidden 2-D weight, for optimisers of matrices */
  double lr_scale; /* multiplies the learning rate */
} wf_param_kind;

typedef struct wf_param_group {
  wf_param_kind kind;
  int64_t numel;
  wf_tensor *value, *grad; /* [numel] */
} wf_param_group;

typedef struct wf_params {
  wf_param **param; /* in the order of declaration */
  int n;
  size_t cap;
  wf_param_group *group;
  int n_groups;
  size_t cap_groups;
  int64_t numel;
  bool trained; /* gradients are zeroed by the first watch: a model that only runs never touches their memory
                 */
} wf_params;

/* Declare one. The name is copied; names are unique. The result lives as long as `ps`. */
wf_status wf_param_declare(wf_params *ps, const char *name, unsigned flags, wf_init init, int ndim,
                           const int64_t *shape, wf_param **out);

/* The default: decay unless flagged, matrix for 2-D weights that are no tables, scale 1. */
wf_param_kind wf_param_default_kind(const wf_param *p);

/* Lay out and allocate in `c` with real type `dtype`; `kind` (NULL: the default) chooses groups. Values are
 * undefined until wf_params_init() or a load. */
wf_status wf_params_allocate(wf_params *ps, wf_ctx *c, wf_dtype dtype,
                             wf_param_kind (*kind)(void *arg, const wf_param *p), void *arg);

/* Draw the initial values: a function of (seed, name, element) alone. */
wf_status wf_params_init(wf_params *ps, uint64_t seed);

wf_param *wf_params_find(const wf_params *ps, const char *name); /* NULL when unknown */
wf_status wf_params_watch(wf_params *ps, wf_tape *t); /* every value becomes a variable of the tape */
void wf_params_reset(wf_params *ps);                  /* a new step: no gradient is written */
void wf_params_hold(wf_params *ps);                   /* more uses will follow the next backward */
void wf_params_release(wf_params *ps);
wf_status wf_params_finish(wf_params *ps); /* after a step's last backward: what nothing wrote is zero */
void wf_params_free(wf_params *ps);        /* contents, not `ps` itself; before their context */

#ifdef __cplusplus
}
#endif

#endif
