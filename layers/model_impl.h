/* The model's inside, shared by model.c (build and forward) and piece.c (losses and gradients). */
#ifndef WF_LAYERS_MODEL_IMPL_H
#define WF_LAYERS_MODEL_IMPL_H

#include "layers/model.h"

typedef struct layer {
  const wf_layer_type *type;
  void *self;
  wf_param *norm;     /* of its output, where several stand beside each other */
  char site[48];      /* "blocks.3.mixer", or "blocks.3.mixer.1" of several */
  const char *params; /* before its parameters' names: its site, or that of the layer it shares with */
  int first_slot, n_slots;
  bool moved; /* over ranks its tokens move to the contiguous layout, unless the caller says otherwise */
} layer;

typedef struct half {
  layer *layer; /* [n] beside each other */
  int n;        /* 0: absent */
  wf_param *norm, *norm_bias;
  char site[48]; /* "blocks.3.mixer": names the stream of its dropout */
} half;

typedef struct block {
  wf_norm_kind norm;
  half half[2];      /* mixer, mlp */
  const char *share; /* only while the model is built */
  int first_slot, n_slots;
} block;

struct wf_model {
  wf_ctx *c;
  wf_dtype dtype;
  wf_model_spec spec; /* spec.block is not kept */
  block *block;
  wf_params params;
  wf_state_spec state;
  wf_param *embedding, *positions, *norm, *norm_bias, *head;
};

/* The layer's forward; in the contiguous layout where that is asked for: relayout.c. */
wf_tensor *wf_layer_run(wf_run *r, const layer *l, wf_tensor *x);

#endif
