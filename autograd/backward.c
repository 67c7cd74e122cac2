/* The walk back over a tape's nodes.
 *
 * A variable's gradient is a buffer of its own, a view of another gradient (vjp_alias), or its leaf's. It is
 * written in place only while nobody else holds its storage. For each input that is a variable, prepare()
 * finds where its gradient goes: straight into that buffer when the op can write there, else into scratch
 * that settle() reduces and adds. Broadcast reductions happen here and nowhere else.
 */
#include "autograd/tape_impl.h"
#include "core/ops.h"

#include <string.h>

/* Where the gradient of one input goes. */
typedef struct target {
  wf_tensor *dest;    /* the final place, in the input's shape */
  wf_tensor *scratch; /* NULL when the vjp writes dest itself */
  bool add;
} target;

static wf_status copy_into(wf_ctx *c, wf_tensor *src, wf_tensor *dst, bool add) {
  return wf_op_run(c, &wf_op_copy, 1, &src, NULL, 1, &dst, add);
}

/* The op may have seen the variable under another name, of another shape (wf_same_variable). */
static wf_tensor *shaped_like(wf_tensor *g, const wf_tensor *like) {
  return wf_same_shape(g, like) ? g : wf_tape_reshaped(g, like->ndim, like->shape);
}

static const wf_node *joined_maker(const wf_tape *t, const wf_var *v) {
  const wf_node *n = v->maker >= 0 ? t->nodes[v->maker] : NULL;
  return n && n->op && n->op->flags & WF_OP_JOINED_OUT && n->n_out > 1 ? n : NULL;
}

/* Gradients of a joined op's outputs are slices of one buffer, so that its vjp sees them side by side. */
static wf_status allocate(wf_tape *t, wf_var *v) {
  const wf_node *maker = joined_maker(t, v);
  if (!maker) {
    v->grad = wf_keep(wf_empty_like(t->ctx, "gradient", v->meta));
  } else {
    wf_tensor *joined[WF_MAX_OUT];
    WF_TRY(wf_op_alloc_joined(t->ctx, maker->n_out, maker->out, joined));
    for (int i = 0; i < maker->n_out; i++) {
      wf_var *o = &t->vars[maker->out_var[i]];
      if (!o->grad) o->grad = wf_keep(joined[i]);
    }
  }
  if (!wf_is_poison(v->grad)) return WF_OK;
  v->grad = NULL;
  return wf_ctx_check(t->ctx);
}

/* The place to write variable v's gradient, and whether to add there. */
static wf_status place(wf_tape *t, wf_var *v, const wf_tensor *like, target *to) {
  wf_ctx *c = t->ctx;
  if (v->leaf) {
    if (v->leaf->finished) return WF_FAIL(WF_EINTERNAL, "a finished gradient is written again");
    to->dest = shaped_like(v->leaf->grad, like);
    to->add = v->leaf->written;
    return wf_is_poison(to->dest) ? wf_ctx_check(c) : WF_OK;
  }
  if (!v->grad) WF_TRY(allocate(t, v));
  if (v->has && v->grad->storage->refs > 1 && !joined_maker(t, v)) { /* shared: copy before adding */
    wf_tensor *own = wf_empty_like(c, "gradient", v->meta);
    if (wf_is_poison(own)) return wf_ctx_check(c);
    WF_TRY(copy_into(c, v->grad, own, false));
    wf_drop(v->grad);
    v->grad = wf_keep(own);
  }
  to->dest = shaped_like(v->grad, like);
  to->add = v->has;
  return wf_is_poison(to->dest) ? wf_ctx_check(c) : WF_OK;
}

static void mark(wf_var *v) {
  v->has = true;
  if (v->leaf) v->leaf->written = true;
}

/* `a` becomes the gradient of v without a copy: a view of its own, so that the storage counts who holds it.
 */
static wf_status share(wf_tape *t, wf_var *v, wf_tensor *a) {
  wf_tensor *view = wf_view_raw(a, a->ndim, a->shape, a->stride, 0);
  if (wf_is_poison(view)) return wf_ctx_check(t->ctx);
  v->grad = wf_keep(view);
  return WF_OK;
}

/* Try to take the gradient of input i as a view of dout. */
static wf_status try_alias(wf_tape *t, const wf_vjp *g, int i, wf_var *v, bool *done) {
  *done = false;
  wf_tensor *a = g->op && g->op->vjp_alias ? g->op->vjp_alias(g, i) : NULL;
  if (!a) return WF_OK;
  if (wf_is_poison(a)) return wf_ctx_check(t->ctx);
  if (!wf_same_shape(a, g->in[i])) return WF_OK; /* broadcast: needs a reduction */
  if (!v->leaf && !v->grad && !joined_maker(t, v) && wf_same_shape(a, v->meta)) {
    WF_TRY(share(t, v, a));
  } else {
    target to = {0};
    WF_TRY(place(t, v, g->in[i], &to));
    WF_TRY(copy_into(t->ctx, a, to.dest, to.add));
  }
  mark(v);
  *done = true;
  return WF_OK;
}

static bool same_variable_before(const wf_node *n, int i) {
  for (int j = 0; j < i; j++)
    if (n->in_var[j] == n->in_var[i]) return true;
  return false;
}

static wf_status prepare(wf_tape *t, const wf_node *n, const wf_vjp *g, int i, target *to) {
  wf_var *v = &t->vars[n->in_var[i]];
  bool done;
  WF_TRY(try_alias(t, g, i, v, &done));
  if (done) return WF_OK;
  bool broadcast = n->op && n->op->flags & WF_OP_BROADCAST && !wf_same_shape(n->in[i], n->out[0]);
  bool adds = !n->op || n->op->vjp_adds >> i & 1, second = same_variable_before(n, i);
  WF_TRY(place(t, v, n->in[i], to));
  if (second || broadcast || (to->add && !adds)) {
    const wf_tensor *shape = broadcast ? n->out[0] : n->in[i];
    to->scratch = wf_empty(t->ctx, "gradient", n->in[i]->dtype, shape->ndim, shape->shape);
    if (wf_is_poison(to->scratch)) return wf_ctx_check(t->ctx);
  }
  mark(v);
  return WF_OK;
}

static wf_status settle(wf_tape *t, const target *to) {
  if (!to->scratch) return WF_OK;
  wf_tensor *s = to->scratch;
  if (!wf_same_shape(s, to->dest)) {
    s = wf_sum_to(t->ctx, s, to->dest->ndim, to->dest->shape);
    if (wf_is_poison(s)) return wf_ctx_check(t->ctx);
  }
  return copy_into(t->ctx, s, to->dest, to->add);
}

static wf_status vjp(wf_tape *t, const wf_node *n, const wf_vjp *g) {
  const char *label = wf_ctx_set_label(t->ctx, n->op->composed && !n->label ? n->op->name : n->label);
  wf_status s = n->op->vjp(g);
  wf_ctx_set_label(t->ctx, label);
  return s;
}

static wf_status node_backward(wf_tape *t, wf_node *n) {
  wf_tensor *dout[WF_FN_MAX] = {NULL}, *din[WF_FN_MAX] = {NULL};
  target to[WF_FN_MAX];
  memset(to, 0, sizeof to);
  bool any = false;
  for (int i = 0; i < n->n_out; i++) {
    wf_var *v = n->out_var[i] >= 0 ? &t->vars[n->out_var[i]] : NULL;
    if (!v) continue;
    if (v->leaf)
      dout[i] = v->leaf->written ? shaped_like(v->leaf->grad, n->out[i]) : NULL; /* in place */
    else if (v->has)
      dout[i] = shaped_like(v->grad, n->out[i]);
    if (dout[i] && wf_is_poison(dout[i])) return wf_ctx_check(t->ctx);
    any |= dout[i] != NULL;
  }
  if (!any) return WF_OK;
  wf_vjp g = {t->ctx, n->op, n->attr, n->n_in, n->n_out, n->in, n->out, dout, din, 0};
  bool wanted = false;
  for (int i = n->op && n->op->flags & WF_OP_INPLACE ? 1 : 0; i < n->n_in;
       i++) { /* in place: din[0] is dout[0] */
    if (n->in_var[i] < 0) continue;
    WF_TRY(prepare(t, n, &g, i, &to[i]));
    din[i] = to[i].scratch ? to[i].scratch : to[i].dest;
    if (to[i].add && !to[i].scratch) g.add |= 1u << i;
    wanted |= din[i] != NULL;
  }
  if (!n->op)
    WF_TRY(wf_checkpoint_backward(t, n, dout, din, g.add));
  else if (wanted)
    WF_TRY(vjp(t, n, &g));
  for (int i = 0; i < n->n_in; i++) WF_TRY(settle(t, &to[i]));
  return WF_OK;
}

static wf_status seed(wf_tape *t, wf_tensor *root, wf_tensor *cot) {
  if (!wf_tape_knows(t, root)) return WF_OK;
  wf_ctx *c = t->ctx;
  wf_var *v = &t->vars[root->var];
  if (cot && !wf_same_shape(cot, root)) {
    char a[96], b[96];
    return WF_FAIL(WF_EINVAL, "the cotangent is %s, its root %s", wf_shape_text(cot, a),
                   wf_shape_text(root, b));
  }
  if (!cot) cot = wf_affine(c, wf_zeros(c, "gradient", root->dtype, root->ndim, root->shape), 1, 1);
  if (wf_is_poison(cot)) return wf_ctx_check(c);
  if (!v->leaf && !v->grad && !joined_maker(t, v) && wf_same_shape(cot, v->meta)) {
    WF_TRY(share(t, v, cot));
  } else {
    target to = {0};
    WF_TRY(place(t, v, root, &to));
    WF_TRY(copy_into(c, cot, to.dest, to.add));
  }
  mark(v);
  return WF_OK;
}

static wf_status walk(wf_tape *t, int n, wf_tensor *const *roots, wf_tensor *const *cotangents) {
  wf_ctx *c = t->ctx;
  for (int i = 0; i < n; i++) {
    if (wf_is_poison(roots[i])) return wf_ctx_failure(c);
    wf_scope s = wf_scope_open(c);
    wf_status st = seed(t, roots[i], cotangents ? cotangents[i] : NULL);
    wf_scope_close(c, s);
    WF_TRY(st);
  }
  for (int64_t k = t->n_nodes - 1; k >= 0; k--) {
    wf_node *node = t->nodes[k];
    wf_scope s = wf_scope_open(c);
    wf_status st = node_backward(t, node);
    wf_scope_close(c, s);
    if (st != WF_OK) return wf_frame_at(node->op ? node->op->name : "recomputed function", 0, "gradient", st);
    for (int i = 0; i < node->n_out; i++) { /* an output's gradient has been read for the last time */
      wf_var *v = node->out_var[i] >= 0 ? &t->vars[node->out_var[i]] : NULL;
      if (!v || v->leaf) continue;
      wf_drop(v->grad);
      v->grad = NULL;
      v->has = false;
    }
    wf_tape_release_node(t, node);
  }
  return WF_OK;
}

wf_status wf_backward(wf_tape *t, int n, wf_tensor *const *roots, wf_tensor *const *cotangents) {
  wf_recorder before = wf_ctx_set_recorder(t->ctx, (wf_recorder){0});
  wf_status s = walk(t, n, roots, cotangents);
  wf_ctx_set_recorder(t->ctx, before);
  wf_tape_clear(t);
  if (s != WF_OK) wf_ctx_check(t->ctx); /* returned, hence no longer sticky */
  return s;
}
