/* Recomputation: a node whose backward runs its function again on a tape of its own.
 *
 * The first run is watched by a tracer that notes which leaves the function uses, so that each is held until
 * the second run has been differentiated.
 */
#include "autograd/tape_impl.h"
#include "core/memory.h"

#include <string.h>

typedef struct tracer {
  wf_tape *tape;
  wf_captured *captured;
  int n;
  size_t cap;
  int n_in;
  wf_tensor *const *in;
} tracer;

static wf_status capture(tracer *tr, wf_tensor *x) {
  if (!wf_tape_knows(tr->tape, x)) return WF_OK;
  for (int i = 0; i < tr->n_in; i++)
    if (wf_tape_knows(tr->tape, tr->in[i]) && tr->in[i]->var == x->var) return WF_OK;
  wf_leaf *leaf = tr->tape->vars[x->var].leaf;
  if (!leaf) return WF_FAIL(WF_EINVAL, "a recomputed function uses a variable that is not among its inputs");
  for (int i = 0; i < tr->n; i++)
    if (tr->captured[i].leaf == leaf) return WF_OK;
  WF_TRY(wf_grow("tape", (void **)&tr->captured, sizeof *tr->captured, (size_t)tr->n, &tr->cap));
  tr->captured[tr->n++] = (wf_captured){wf_keep(x), leaf};
  wf_leaf_hold(leaf);
  return WF_OK;
}

static wf_status trace(void *self, const wf_call *call) {
  tracer *tr = self;
  for (int i = 0; i < call->n_in; i++)
    if (!(call->op->nograd_in >> i & 1)) WF_TRY(capture(tr, call->in[i]));
  return WF_OK;
}

static wf_status make_node(wf_tape *t, wf_node *n, wf_fn fn, const void *arg, size_t arg_size, int n_in,
                           wf_tensor *const *in, int n_out, wf_tensor **out) {
  n->fn = fn;
  n->attr = wf_arena_alloc(&t->arena, arg_size);
  if (!n->attr) return WF_ENOMEM;
  if (arg_size) memcpy(n->attr, arg, arg_size);
  for (int i = 0; i < n_in; i++) WF_TRY(wf_tape_node_in(t, n, in[i], true, true));
  for (int i = 0; i < n_out; i++) WF_TRY(wf_tape_node_out(t, n, out[i], false, true));
  return WF_OK;
}

wf_status wf_checkpoint(wf_ctx *c, wf_fn fn, const void *arg, size_t arg_size, int n_in, wf_tensor *const *in,
                        int n_out, wf_tensor **out) {
  wf_tape *t = wf_tape_of(c);
  if (!t) return fn(c, arg, n_in, in, n_out, out);
  if (n_in > WF_FN_MAX || n_out > WF_FN_MAX)
    return WF_FAIL(WF_EINVAL, "a recomputed function of %d inputs and %d outputs; at most %d", n_in, n_out,
                   WF_FN_MAX);
  tracer tr = {.tape = t, .n_in = n_in, .in = in};
  wf_recorder before = wf_ctx_set_recorder(c, (wf_recorder){&tr, trace});
  wf_status s = fn(c, arg, n_in, in, n_out, out);
  wf_ctx_set_recorder(c, before);
  if (s == WF_OK) s = wf_ctx_check(c);
  wf_node *n = NULL;
  if (s == WF_OK) s = wf_tape_new_node(t, n_in, n_out, &n);
  if (s != WF_OK) {
    for (int i = 0; i < tr.n; i++) {
      wf_drop(tr.captured[i].tensor);
      tr.captured[i].leaf->holds--;
    }
    wf_free(tr.captured);
    return s;
  }
  n->captured = tr.captured;
  n->n_captured = tr.n;
  wf_scope scope = wf_scope_open(c);
  s = make_node(t, n, fn, arg, arg_size, n_in, in, n_out, out);
  wf_scope_close(c, scope);
  if (s == WF_OK)
    wf_tape_push(t, n);
  else
    wf_tape_release_node(t, n);
  return s;
}

static wf_status run_again(wf_tape *inner, wf_node *n, wf_tensor *const *dout, wf_leaf *leaves) {
  wf_ctx *c = inner->ctx;
  wf_tensor *out[WF_FN_MAX], *root[WF_FN_MAX], *cot[WF_FN_MAX];
  for (int i = 0; i < n->n_in; i++)
    if (leaves[i].grad) WF_TRY(wf_tape_watch(inner, n->in[i], &leaves[i]));
  for (int i = 0; i < n->n_captured; i++)
    WF_TRY(wf_tape_watch(inner, n->captured[i].tensor, n->captured[i].leaf));
  wf_tape_record(inner);
  wf_status s = n->fn(c, n->attr, n->n_in, n->in, n->n_out, out);
  wf_tape_pause(inner);
  WF_TRY(s);
  WF_TRY(wf_ctx_check(c));
  int roots = 0;
  for (int i = 0; i < n->n_out; i++)
    if (dout[i]) {
      root[roots] = out[i];
      cot[roots++] = dout[i];
    }
  return wf_backward(inner, roots, root, cot);
}

wf_status wf_checkpoint_backward(wf_tape *t, wf_node *n, wf_tensor *const *dout, wf_tensor *const *din,
                                 uint32_t add) {
  wf_tape *inner;
  WF_TRY(wf_tape_create(t->ctx, &inner));
  wf_leaf leaves[WF_FN_MAX];
  memset(leaves, 0, sizeof leaves);
  for (int i = 0; i < n->n_in; i++)
    leaves[i] = (wf_leaf){.grad = din[i], .written = add >> i & 1, .holds = 1};
  wf_status s = run_again(inner, n, dout, leaves);
  wf_tape_free(inner);
  for (int i = 0; i < n->n_in && s == WF_OK; i++) /* an input that no output depends on */
    if (din[i] && !leaves[i].written) s = wf_tensor_zero(din[i]);
  return s;
}
