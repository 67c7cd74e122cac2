/* Recording: leaves, variables and nodes. A variable is an index on its tape; a tensor's index is valid only
 * while the tape has the name (id) that the tensor carries. */
#include "autograd/tape_impl.h"
#include "core/memory.h"

#include <stdatomic.h>
#include <string.h>

static _Atomic uint64_t next_id = 1;

/* ---- leaves ---- */

static void maybe_final(wf_leaf *leaf) {
  if (leaf->uses > 0 || leaf->holds > 0 || leaf->finished || !leaf->written) return;
  leaf->finished = true;
  if (leaf->final) leaf->final(leaf->arg, leaf);
}

void wf_leaf_reset(wf_leaf *leaf) {
  leaf->written = leaf->finished = false;
  leaf->uses = leaf->holds = 0;
}

void wf_leaf_hold(wf_leaf *leaf) {
  leaf->holds++;
}

void wf_leaf_release(wf_leaf *leaf) {
  leaf->holds--;
  maybe_final(leaf);
}

wf_status wf_leaf_finish(wf_leaf *leaf) {
  if (leaf->written) return WF_OK;
  WF_TRY(wf_tensor_zero(leaf->grad));
  leaf->written = true;
  maybe_final(leaf);
  return WF_OK;
}

static void use_leaf(wf_tape *t, int32_t var, int64_t by) {
  wf_leaf *leaf = var < 0 ? NULL : t->vars[var].leaf;
  if (!leaf) return;
  leaf->uses += by;
  if (by < 0) maybe_final(leaf);
}

/* ---- tape ---- */

wf_status wf_tape_create(wf_ctx *c, wf_tape **out) {
  wf_tape *t;
  WF_CALLOC(t, "tape", 1);
  t->ctx = c;
  t->id = atomic_fetch_add(&next_id, 1);
  *out = t;
  return WF_OK;
}

void wf_tape_release_node(wf_tape *t, wf_node *n) {
  for (int i = 0; i < n->n_in; i++) {
    wf_drop(n->in[i]);
    use_leaf(t, n->in_var[i], -1);
  }
  for (int i = 0; i < n->n_out; i++) wf_drop(n->out[i]);
  for (int i = 0; i < n->n_captured; i++) {
    wf_drop(n->captured[i].tensor);
    wf_leaf_release(n->captured[i].leaf);
  }
  wf_free(n->captured);
  n->n_in = n->n_out = n->n_captured = 0;
  n->captured = NULL;
}

void wf_tape_clear(wf_tape *t) {
  for (int64_t i = t->n_nodes - 1; i >= 0; i--) wf_tape_release_node(t, t->nodes[i]);
  for (int64_t i = 0; i < t->n_vars; i++) {
    wf_drop(t->vars[i].grad);
    wf_drop(t->vars[i].meta);
  }
  t->n_nodes = t->n_vars = 0;
  wf_arena_reset(&t->arena);
  t->id = atomic_fetch_add(&next_id, 1);
}

void wf_tape_free(wf_tape *t) {
  if (!t) return;
  wf_tape_clear(t);
  wf_arena_free(&t->arena);
  wf_free(t->nodes);
  wf_free(t->vars);
  wf_free(t);
}

static wf_status new_var(wf_tape *t, const wf_tensor *like, wf_leaf *leaf, int32_t *var) {
  WF_TRY(wf_grow("tape", (void **)&t->vars, sizeof *t->vars, (size_t)t->n_vars, &t->cap_vars));
  wf_scope s = wf_scope_open(t->ctx);
  wf_tensor *meta = wf_keep(wf_tensor_meta(t->ctx, like));
  wf_scope_close(t->ctx, s);
  if (wf_is_poison(meta)) return wf_ctx_check(t->ctx);
  t->vars[t->n_vars] = (wf_var){.leaf = leaf, .meta = meta, .maker = -1};
  *var = (int32_t)t->n_vars++;
  return WF_OK;
}

bool wf_tape_knows(const wf_tape *t, const wf_tensor *x) {
  return x && x->var >= 0 && x->tape == t->id;
}

wf_status wf_tape_watch(wf_tape *t, wf_tensor *x, wf_leaf *leaf) {
  if (!leaf->grad || wf_numel(leaf->grad) != wf_numel(x) || leaf->grad->dtype != x->dtype)
    return WF_FAIL(WF_EINVAL, "a leaf's gradient needs its tensor's dtype and size");
  WF_TRY(new_var(t, x, leaf, &x->var));
  x->tape = t->id;
  return WF_OK;
}

static bool divides_last(const wf_tensor *x, int ndim, const int64_t *shape) {
  if (ndim != x->ndim + 1 || ndim < 2 || shape[ndim - 2] * shape[ndim - 1] != x->shape[ndim - 2])
    return false;
  return memcmp(shape, x->shape, (size_t)(ndim - 2) * sizeof *shape) == 0;
}

wf_tensor *wf_tape_reshaped(wf_tensor *x, int ndim, const int64_t *shape) {
  if (divides_last(x, ndim, shape)) {
    int64_t stride[WF_MAX_DIMS];
    memcpy(stride, x->stride, sizeof stride);
    stride[ndim - 1] = x->stride[ndim - 2];
    stride[ndim - 2] = x->stride[ndim - 2] * shape[ndim - 1];
    return wf_view_raw(x, ndim, shape, stride, 0);
  }
  wf_tensor *v = wf_view_raw(x, ndim, shape, NULL, 0);
  if (wf_is_poison(v) || (wf_is_contiguous(x) && wf_numel(v) == wf_numel(x))) return v;
  char a[96], b[96];
  return wf_poison(x->ctx, WF_FAIL(WF_ESHAPE, "%s is no other shape of %s, or that is not contiguous",
                                   wf_dims_text(ndim, shape, a), wf_shape_text(x, b)));
}

wf_tensor *wf_same_variable(wf_tensor *x, int ndim, const int64_t *shape) {
  if (wf_is_poison(x)) return x;
  wf_tensor *v = wf_tape_reshaped(x, ndim, shape);
  if (wf_is_poison(v)) return v;
  v->var = x->var;
  v->tape = x->tape;
  return v;
}

/* ---- nodes ---- */

wf_status wf_tape_new_node(wf_tape *t, int n_in, int n_out, wf_node **out) {
  WF_TRY(wf_grow("tape", (void **)&t->nodes, sizeof *t->nodes, (size_t)t->n_nodes, &t->cap_nodes));
  size_t count = (size_t)(n_in + n_out);
  wf_node *n = wf_arena_alloc(&t->arena, sizeof *n + count * (sizeof(wf_tensor *) + sizeof(int32_t)));
  if (!n) return WF_ENOMEM;
  n->in = (wf_tensor **)(void *)(n + 1);
  n->out = n->in + n_in;
  n->in_var = (int32_t *)(void *)(n->out + n_out);
  n->out_var = n->in_var + n_in;
  *out = n;
  return WF_OK;
}

/* A saved tensor is a header of its own, so that a later watch of the caller's does not reach the node. */
static wf_tensor *hold(wf_tape *t, wf_tensor *x, bool save) {
  if (save) return wf_keep(wf_view_raw(x, x->ndim, x->shape, x->stride, 0));
  return wf_keep(wf_tensor_meta(t->ctx, x));
}

wf_status wf_tape_node_in(wf_tape *t, wf_node *n, wf_tensor *x, bool save, bool grad) {
  wf_tensor *held = x ? hold(t, x, save) : NULL;
  if (held && wf_is_poison(held)) return wf_ctx_check(t->ctx);
  int i = n->n_in++;
  n->in[i] = held;
  n->in_var[i] = grad && wf_tape_knows(t, x) ? x->var : -1;
  use_leaf(t, n->in_var[i], 1);
  return WF_OK;
}

wf_status wf_tape_node_out(wf_tape *t, wf_node *n, wf_tensor *x, bool save, bool grad) {
  wf_tensor *held = x ? hold(t, x, save) : NULL;
  if (held && wf_is_poison(held)) return wf_ctx_check(t->ctx);
  int i = n->n_out++;
  n->out[i] = held;
  n->out_var[i] = -1;
  if (!x || !grad) return WF_OK;
  if (!wf_tape_knows(t, x)) { /* an in-place op's output is known already */
    WF_TRY(new_var(t, x, NULL, &x->var));
    x->tape = t->id;
    t->vars[x->var].maker = t->n_nodes;
  }
  n->out_var[i] = x->var;
  return WF_OK;
}

void wf_tape_push(wf_tape *t, wf_node *n) {
  t->nodes[t->n_nodes++] = n; /* wf_tape_new_node made room */
}

static wf_status fill_node(wf_tape *t, wf_node *n, const wf_call *call) {
  const wf_op *op = call->op;
  n->op = op;
  n->label = wf_ctx_label(call->ctx);
  if (call->attr && op->attr_size) {
    n->attr = wf_arena_alloc(&t->arena, op->attr_size);
    if (!n->attr) return WF_ENOMEM;
    memcpy(n->attr, call->attr, op->attr_size);
  }
  for (int i = 0; i < call->n_in; i++)
    WF_TRY(wf_tape_node_in(t, n, call->in[i], op->save_in >> i & 1, !(op->nograd_in >> i & 1)));
  for (int i = 0; i < call->n_out; i++)
    WF_TRY(wf_tape_node_out(t, n, call->out[i], op->save_out >> i & 1, !(op->nograd_out >> i & 1)));
  return WF_OK;
}

static wf_status record(void *self, const wf_call *call) {
  wf_tape *t = self;
  const wf_op *op = call->op;
  bool any = false;
  for (int i = 0; i < call->n_in; i++) any |= !(op->nograd_in >> i & 1) && wf_tape_knows(t, call->in[i]);
  if (!any) return WF_OK;
  if (!op->vjp) return WF_FAIL(WF_EINVAL, "op '%s' has no gradient: %s", op->name, op->nondiff);
  if (op->flags & WF_OP_INPLACE && !wf_tape_knows(t, call->in[0]))
    return WF_FAIL(WF_EINVAL, "op '%s' writes into a tensor that the tape does not watch", op->name);
  wf_scope s = wf_scope_open(t->ctx);
  wf_node *n;
  wf_status st = wf_tape_new_node(t, call->n_in, call->n_out, &n);
  if (st == WF_OK) {
    st = fill_node(t, n, call);
    if (st == WF_OK)
      wf_tape_push(t, n);
    else
      wf_tape_release_node(t, n);
  }
  wf_scope_close(t->ctx, s);
  return st;
}

void wf_tape_record(wf_tape *t) {
  t->before = wf_ctx_set_recorder(t->ctx, (wf_recorder){t, record});
}

void wf_tape_pause(wf_tape *t) {
  wf_ctx_set_recorder(t->ctx, t->before);
}

wf_tape *wf_tape_of(wf_ctx *c) {
  wf_recorder r = wf_ctx_recorder(c);
  return r.record == record ? r.self : NULL;
}
