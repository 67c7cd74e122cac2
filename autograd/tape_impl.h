/* The tape's inside, shared by tape.c (recording), backward.c (the walk) and checkpoint.c. Private to
 * autograd. */
#ifndef WF_AUTOGRAD_TAPE_IMPL_H
#define WF_AUTOGRAD_TAPE_IMPL_H

#include "autograd/tape.h"
#include "core/arena.h"

typedef struct wf_var {
  wf_leaf *leaf;   /* where the gradient goes, or NULL */
  wf_tensor *meta; /* shape and dtype */
  wf_tensor *grad; /* the gradient's buffer, once there is one */
  bool has;        /* grad holds a gradient */
  int64_t maker;   /* the node that made it; -1 for leaves */
} wf_var;

typedef struct wf_captured {
  wf_tensor *tensor;
  wf_leaf *leaf;
} wf_captured;

typedef struct wf_node {
  const wf_op *op; /* NULL: a recomputed function */
  void *attr;
  const char *label; /* of the forward (core/op.h) */
  int n_in, n_out;
  wf_tensor **in, **out; /* saved, or shape only */
  int32_t *in_var, *out_var;
  wf_fn fn;              /* recomputed functions: attr is its arg, all of in are saved */
  wf_captured *captured; /* the leaves it uses, each held */
  int n_captured;
} wf_node;

struct wf_tape {
  wf_ctx *ctx;
  uint64_t id;
  wf_arena arena;
  wf_node **nodes;
  int64_t n_nodes;
  size_t cap_nodes;
  wf_var *vars;
  int64_t n_vars;
  size_t cap_vars;
  wf_recorder before;
};

/* `x` seen in another shape, as wf_same_variable() allows; no variable. Poison where strides do not permit.
 */
wf_tensor *wf_tape_reshaped(wf_tensor *x, int ndim, const int64_t *shape);

/* A node with room for n_in and n_out tensors, which node_in and node_out then fill one by one; it joins the
 * tape with wf_tape_push. */
wf_status wf_tape_new_node(wf_tape *t, int n_in, int n_out, wf_node **out);
wf_status wf_tape_node_in(wf_tape *t, wf_node *n, wf_tensor *x, bool save, bool grad);
wf_status wf_tape_node_out(wf_tape *t, wf_node *n, wf_tensor *x, bool save, bool grad);
void wf_tape_push(wf_tape *t, wf_node *n);

/* Give back what a node holds: saved tensors, and its claims on leaves. */
void wf_tape_release_node(wf_tape *t, wf_node *n);
void wf_tape_clear(wf_tape *t);

/* checkpoint.c: run the function again on a tape of its own and differentiate it. */
wf_status wf_checkpoint_backward(wf_tape *t, wf_node *n, wf_tensor *const *dout, wf_tensor *const *din,
                                 uint32_t add);

#endif
