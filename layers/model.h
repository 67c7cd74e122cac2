/* model: embedding, a list of blocks, a norm and a head, built from a spec.
 *
 * A block is norm, mixer, norm, MLP, each half added to the residual stream; either half may be absent. The
 * residual sum and the next norm are one op, so a block hands on the stream x and its last branch r, not yet
 * added.
 *
 * Several mixers beside each other see the same normed input, and their outputs are brought to one size and
 * averaged, as the heads of Hymba are (Dong et al. 2024):
 *     y = 1/n sum_i b_i . rms(mixer_i(x)),
 * b_i [d_model] learned, starting as the last projections do (scale_residual). Blocks of one `share` name use
 * the parameters of the first of them, norms included; each has a state of its own.
 *
 * One forward serves every use: a call is a set of rows and a state (layers/layer.h). Training differentiates
 * a piece at a time; layers/stream.h strings pieces together.
 */
#ifndef WF_LAYERS_MODEL_H
#define WF_LAYERS_MODEL_H

#include "layers/layer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_layer_use {
  const wf_layer_type *type; /* NULL: absent */
  const void *options;
} wf_layer_use;

typedef struct wf_block_spec {
  wf_norm_kind norm;
  wf_layer_use mixer, mlp;
  const wf_layer_use *beside; /* [n_beside] mixers in parallel with `mixer` */
  int n_beside;
  const char *share; /* NULL: parameters of its own */
} wf_block_spec;

typedef struct wf_model_spec {
  int64_t vocab, d_model;
  int n_blocks;
  const wf_block_spec *block;
  wf_norm_kind norm; /* the last one */
  double norm_eps;
  bool bare_norms;       /* layer norms have no bias */
  bool tie_embeddings;   /* the head is the embedding */
  double logit_softcap;  /* cap tanh(logit / cap); 0: none */
  int64_t max_positions; /* the context: rows of the learned table, where a layer asks for one */
  double dropout;        /* of each branch's output and of the embedding, while training */
  double init_std;
  bool scale_residual; /* the last projection of each branch starts smaller by 1/sqrt(2 blocks) (GPT-2) */
  double z_loss;
  bool recompute;    /* keep only each block's inputs and run it again in the backward */
  int64_t head_rows; /* tokens whose logits exist at once; 0: chosen so that they take 64 MiB */
} wf_model_spec;

typedef struct wf_model wf_model;

/* Build in `c` with real type f32 or f64. `kind` chooses the parameters' groups (layers/param.h), NULL the
 * default. What the spec points to may be freed afterwards. Values are undefined until wf_params_init or a
 * load. */
wf_status wf_model_create(wf_ctx *c, const wf_model_spec *spec, wf_dtype dtype,
                          wf_param_kind (*kind)(void *arg, const wf_param *p), void *arg, wf_model **out);
void wf_model_free(wf_model *m);

wf_ctx *wf_model_ctx(const wf_model *m);
wf_dtype wf_model_dtype(const wf_model *m);
wf_params *wf_model_params(wf_model *m);
const wf_state_spec *wf_model_state_spec(const wf_model *m);
int64_t wf_model_vocab(const wf_model *m);
int64_t wf_model_max_positions(const wf_model *m); /* 0: no learned positions, hence no limit */
/* About the bytes that a step keeps for the backward of `tokens` tokens at once: the outputs of products, the
 * inputs of norms and activations. */
double wf_model_activation_bytes(const wf_model *m, int64_t tokens);
double wf_model_flops(const wf_model *m,
                      int64_t T); /* forward, a token at position T; training takes three times */

/* Which mixers' tokens move to the contiguous layout where a sequence lies otherwise over the ranks of `d`
 * (NULL: one has all of it): those for which the exchanges take less so (dist/relayout.h), in pieces of
 * `lanes` sequences and `tokens` tokens a rank. Same on all ranks. -> kinds of mixers that could move, at
 * most `most`. */
typedef struct wf_relayout_choice {
  const char *name;
  int layers;
  double in_place, moved; /* seconds of a step's exchanges, of one layer */
  bool does_move;
} wf_relayout_choice;
int wf_model_relayout(wf_model *m, const wf_dist *d, double lanes, double tokens, bool carried,
                      wf_relayout_choice *out, int most);

/* ids i32 [n] -> the trunk's output [n, d], after the last norm. */
wf_tensor *wf_model_trunk(wf_model *m, wf_run *r, wf_tensor *ids);
/* h [m, d] -> logits [m, vocab]. */
wf_tensor *wf_model_logits(wf_model *m, wf_run *r, wf_tensor *h);

/* Sum of the losses of h [n, d] for labels i32 [n] (-1: none), no gradient and no z-loss. `each` (may be
 * NULL): host [n] f64. */
wf_status wf_model_loss(wf_model *m, wf_run *r, wf_tensor *h, wf_tensor *labels, double *sum, double *each);

/* ---- differentiation of one piece ---- */

typedef struct wf_piece {
  wf_model *m;
  wf_run run;
  wf_tape *tape;
  wf_tensor *h, *labels; /* held */
  wf_tensor **state_out; /* [n slots] held; NULL for growing slots and without state */
  wf_leaf *state_in;     /* [n slots]; grad held: the gradient of the entering state, once backward has run */
  int n_slots;
} wf_piece;

/* Forward with a tape. Parameters, and the state if run->state is set, become variables. The run's rows and
 * state must live until wf_piece_backward or wf_piece_free; its state has `out` set for wf_state_advance. */
wf_status wf_piece_forward(wf_model *m, const wf_run *r, wf_tensor *ids, wf_tensor *labels, wf_piece *out);

/* Adds the gradient of scale * (sum of losses) + <d_state, state_out> to the parameters' leaves and leaves
 * that of the entering state in p->state_in. d_state [n slots] or NULL: gradients of state_out, each may be
 * NULL. `last`: no use of the parameters follows in this step, so they are released (wf_params_hold at the
 * step's start) and become final one by one; what nothing has written is zero then. *loss receives the sum of
 * losses, unscaled. */
wf_status wf_piece_backward(wf_piece *p, double scale, wf_tensor *const *d_state, bool last, double *loss);
void wf_piece_free(wf_piece *p);

#ifdef __cplusplus
}
#endif

#endif
