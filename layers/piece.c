/* Losses, and the gradient of one piece.
 *
 * The head is differentiated on a tape of its own, some rows of h at a time, so that only those rows' logits
 * exist; its backward leaves the gradient of h, which then is the cotangent of the trunk's.
 */
#include "layers/model_impl.h"
#include "core/memory.h"

#include <string.h>

static int64_t rows_at_once(const wf_model *m) {
  if (m->spec.head_rows > 0) return m->spec.head_rows;
  int64_t rows = (INT64_C(64) << 20) / (m->spec.vocab * (int64_t)wf_dtype_size(m->dtype));
  return rows < 64 ? 64 : rows;
}

static wf_tensor *some_rows(wf_tensor *x, int64_t begin, int64_t end) {
  int64_t shape[2] = {end - begin, x->ndim > 1 ? x->shape[1] : 1};
  return wf_view_raw(x, x->ndim, shape, x->stride, begin * x->stride[0]);
}

/* Adds the losses of one chunk to *sum; with a tape, its gradient to leaf->grad and to the head's. */
static wf_status head_chunk(wf_model *m, wf_run *r, wf_tape *tape, wf_tensor *h, wf_tensor *labels,
                            wf_leaf *leaf, double scale, double *sum, double *each) {
  wf_ctx *c = r->c;
  if (tape) {
    WF_TRY(wf_tape_watch(tape, h, leaf));
    WF_TRY(wf_tape_watch(tape, m->head->value, &m->head->leaf));
    wf_tape_record(tape);
  }
  wf_scope inner = wf_scope_open(c); /* only the tape holds the logits: their gradient takes their place */
  wf_tensor *loss = wf_xent(c, wf_model_logits(m, r, h), labels, tape ? m->spec.z_loss : 0);
  loss = wf_scope_return(c, inner, loss);
  if (tape) wf_tape_pause(tape);
  if (wf_is_poison(loss)) return wf_ctx_check(c);
  double chunk;
  WF_TRY(wf_item(wf_sum_all(c, wf_cast(c, loss, WF_F64)), &chunk));
  *sum += chunk;
  if (each) WF_TRY(wf_to_host(wf_cast(c, loss, WF_F64), each));
  if (!tape) return WF_OK;
  wf_tensor *cot = wf_affine(c, wf_zeros(c, "gradient", loss->dtype, loss->ndim, loss->shape), 1, scale);
  if (wf_is_poison(cot)) return wf_ctx_check(c);
  return wf_backward(tape, 1, &loss, &cot);
}

static wf_status head(wf_model *m, wf_run *r, wf_tensor *h, wf_tensor *labels, wf_tensor *dh, double scale,
                      double *sum, double *each) {
  int64_t n = h->shape[0], step = rows_at_once(m);
  wf_tape *tape = NULL;
  wf_leaf leaf; /* outlives the tape's nodes */
  *sum = 0;
  if (dh) WF_TRY(wf_tape_create(r->c, &tape));
  if (dh) wf_leaf_hold(&m->head->leaf); /* more chunks follow */
  wf_status s = WF_OK;
  for (int64_t at = 0; at < n && s == WF_OK; at += step) {
    int64_t end = n - at > step ? at + step : n;
    wf_scope scope = wf_scope_open(r->c);
    leaf = (wf_leaf){.grad = dh ? some_rows(dh, at, end) : NULL, .holds = 1};
    wf_tensor *x = some_rows(h, at, end), *y = some_rows(labels, at, end);
    s = wf_ctx_check(r->c);
    if (s == WF_OK) s = head_chunk(m, r, tape, x, y, &leaf, scale, sum, each ? each + at : NULL);
    wf_scope_close(r->c, scope);
  }
  wf_tape_free(tape);
  if (dh) wf_leaf_release(&m->head->leaf);
  return s;
}

wf_status wf_model_loss(wf_model *m, wf_run *r, wf_tensor *h, wf_tensor *labels, double *sum, double *each) {
  if (wf_is_poison(h)) return wf_ctx_check(r->c);
  return head(m, r, h, labels, NULL, 0, sum, each);
}

/* ---- pieces ---- */

/* The state's tensors become variables: fixed slots with a gradient of their own, caches with their twins. */
static wf_status watch_state(wf_piece *p) {
  wf_state *s = p->run.state;
  if (!s) return WF_OK;
  for (int i = 0; i < p->n_slots; i++) {
    if (s->spec->slot[i].grows) {
      if (!s->twin[i].grad) return WF_FAIL(WF_EINVAL, "the state was not made for gradients");
      WF_TRY(wf_tape_watch(p->tape, s->in[i], &s->twin[i]));
      continue;
    }
    p->state_in[i].grad =
        wf_keep(wf_zeros(p->run.c, "state gradient", s->in[i]->dtype, s->in[i]->ndim, s->in[i]->shape));
    p->state_in[i].holds = 1;
    if (wf_is_poison(p->state_in[i].grad)) return wf_ctx_check(p->run.c);
    WF_TRY(wf_tape_watch(p->tape, s->in[i], &p->state_in[i]));
  }
  return WF_OK;
}

static wf_status forward(wf_piece *p, wf_tensor *ids, wf_tensor *labels) {
  wf_ctx *c = p->run.c;
  WF_TRY(wf_tape_create(c, &p->tape));
  p->state_out = wf_calloc("piece", (size_t)p->n_slots + 1, sizeof *p->state_out);
  p->state_in = wf_calloc("piece", (size_t)p->n_slots + 1, sizeof *p->state_in);
  if (!p->state_out || !p->state_in) return WF_ENOMEM;
  WF_TRY(wf_params_watch(&p->m->params, p->tape));
  WF_TRY(watch_state(p));
  wf_tape_record(p->tape);
  wf_tensor *h = wf_model_trunk(p->m, &p->run, ids);
  wf_tape_pause(p->tape);
  if (wf_is_poison(h)) return wf_ctx_check(c);
  p->h = wf_keep(h);
  p->labels = wf_keep(labels);
  for (int i = 0; i < p->n_slots && p->run.state; i++)
    if (p->run.state->out[i]) p->state_out[i] = wf_keep(p->run.state->out[i]);
  return WF_OK;
}

wf_status wf_piece_forward(wf_model *m, const wf_run *r, wf_tensor *ids, wf_tensor *labels, wf_piece *p) {
  *p = (wf_piece){.m = m, .run = *r, .n_slots = r->state ? m->state.n : 0};
  wf_scope s = wf_scope_open(r->c);
  wf_status st = forward(p, ids, labels);
  wf_scope_close(r->c, s);
  for (int i = 0; i < p->n_slots && st == WF_OK; i++) /* they outlive the scope, for wf_state_advance */
    if (p->state_out[i]) {
      r->state->out[i] = wf_adopt(wf_keep(p->state_out[i]));
      st = wf_ctx_check(r->c);
    }
  if (st != WF_OK) wf_piece_free(p);
  return st;
}

wf_status wf_piece_backward(wf_piece *p, double scale, wf_tensor *const *d_state, bool last, double *loss) {
  wf_ctx *c = p->run.c;
  wf_tensor **root = wf_calloc("piece", (size_t)p->n_slots + 1, 2 * sizeof *root);
  if (!root) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  wf_scope s = wf_scope_open(c);
  wf_tensor *dh = wf_empty_like(c, "gradient", p->h);
  wf_status st = wf_is_poison(dh) ? wf_ctx_check(c) : WF_OK;
  if (st == WF_OK) st = head(p->m, &p->run, p->h, p->labels, dh, scale, loss, NULL);
  if (st == WF_OK) {
    wf_tensor **cot = root + p->n_slots + 1;
    int n = 0;
    root[n] = p->h;
    cot[n++] = dh;
    for (int i = 0; i < p->n_slots && d_state; i++)
      if (d_state[i] && p->state_out[i]) {
        root[n] = p->state_out[i];
        cot[n++] = d_state[i];
      }
    if (last) wf_params_release(&p->m->params);
    st = wf_backward(p->tape, n, root, cot);
    if (last && st == WF_OK) st = wf_params_finish(&p->m->params);
  }
  wf_free(root);
  wf_scope_close(c, s);
  return st;
}

void wf_piece_free(wf_piece *p) {
  wf_tape_free(p->tape);
  wf_drop(p->h);
  wf_drop(p->labels);
  for (int i = 0; i < p->n_slots; i++) {
    if (p->state_out) wf_drop(p->state_out[i]);
    if (p->state_in) wf_drop(p->state_in[i].grad);
  }
  wf_free(p->state_out);
  wf_free(p->state_in);
  *p = (wf_piece){0};
}
