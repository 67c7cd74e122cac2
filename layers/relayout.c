/* A recurrence in a model whose sequence lies zigzag over ranks: in place, or with its tokens in the
 * contiguous layout while it runs. The layer sees a part and a state like any other. */
#include "dist/relayout.h"
#include "dist/relay.h"
#include "layers/model_impl.h"

#include <string.h>

/* A layer whose state goes from segment to segment, and none of whose tokens are kept in a cache by the
 * layout. */
static bool movable(const wf_state_spec *spec, const layer *l) {
  bool goes = false;
  if (l->type->kind != WF_LAYER_MIXER) return false;
  for (int i = l->first_slot; i < l->first_slot + l->n_slots; i++) {
    if (spec->slot[i].grows) return false;
    goes |= spec->slot[i].kind == WF_STATE_SCAN || spec->slot[i].kind == WF_STATE_SERIAL;
  }
  return goes;
}

static wf_tensor *run_moved(wf_run *r, const layer *l, const wf_relayout *to, wf_tensor *x) {
  wf_ctx *c = r->c;
  wf_tensor *in[WF_FN_MAX], *out[WF_FN_MAX] = {NULL};
  const char *label = wf_ctx_set_label(c, WF_RELAYOUT_LABEL);
  x = wf_relayout_tokens(c, to, x);
  for (int i = 0; i < l->n_slots; i++) {
    in[i] = wf_relayout_state(c, to, wf_state_in(r->state, l->first_slot + i));
    x = wf_is_poison(x) || wf_is_poison(in[i]) ? wf_poison(c, WF_OK) : wf_tie(c, x, in[i]); /* read or not */
  }
  wf_ctx_set_label(c, label);
  if (wf_is_poison(x)) return x;
  wf_state state = *r->state;
  state.lanes = to->rows->n_lanes;
  state.base = l->first_slot;
  state.in = in;
  state.out = out;
  wf_run run = *r;
  run.rows = to->rows;
  run.part = to->part;
  run.state = &state;
  if (to->dist.cost) to->dist.cost->moved++;
  wf_tensor *y = l->type->forward(&run, l->self, x);
  if (wf_is_poison(y)) return y;
  label = wf_ctx_set_label(c, WF_RELAYOUT_LABEL);
  y = wf_relayout_tokens_back(c, to, y);
  for (int i = 0; i < l->n_slots && r->part->leaves; i++)
    if (out[i]) *wf_state_out(r->state, l->first_slot + i) = wf_relayout_state_back(c, to, out[i]);
  wf_ctx_set_label(c, label);
  return y;
}

wf_tensor *wf_layer_run(wf_run *r, const layer *l, wf_tensor *x) {
  const wf_relayout *to = NULL;
  wf_dist_relayout how = r->part ? r->part->dist->relayout : WF_RELAYOUT_NEVER;
  if (how != WF_RELAYOUT_NEVER && (l->moved || how == WF_RELAYOUT_ALWAYS) && movable(r->state->spec, l)) {
    wf_status st = wf_relayout_of(r->part, r->c, &to);
    if (st != WF_OK) return wf_poison(r->c, st);
  }
  return to ? run_moved(r, l, to, x) : l->type->forward(r, l->self, x);
}

/* ---- choosing ---- */

static wf_relayout_size size_of(const wf_model *m, const layer *l, double lanes, double tokens, bool carried,
                                const wf_dist *d) {
  wf_relayout_size x = {.lanes = lanes,
                        .tokens = tokens * (double)m->spec.d_model * (double)wf_dtype_size(m->dtype),
                        .n_state = l->n_slots,
                        .carried = carried};
  for (int i = l->first_slot; i < l->first_slot + l->n_slots; i++) {
    const wf_state_slot *s = &m->state.slot[i];
    double n = (double)wf_dtype_size(s->exact ? WF_F64 : m->dtype);
    for (int k = 0; k < s->ndim; k++) n *= (double)s->shape[k];
    bool divided = d->serial != WF_SERIAL_TURNS && d->transport != WF_TRANSPORT_SERIAL; /* among the ranks */
    if (s->kind == WF_STATE_SCAN) x.n_scan++, x.scan += n;
    if (s->kind == WF_STATE_SERIAL && !divided) x.n_serial++, x.serial += n;
  }
  return x;
}

int wf_model_relayout(wf_model *m, const wf_dist *d, double lanes, double tokens, bool carried,
                      wf_relayout_choice *out, int most) {
  int n = 0;
  bool contiguous = !d || d->layout->n_segments == d->layout->n_ranks;
  for (int i = 0; i < m->spec.n_blocks; i++)
    for (int k = 0; k < m->block[i].half[0].n; k++) {
      layer *l = &m->block[i].half[0].layer[k];
      l->moved = false;
      if (contiguous || d->relayout == WF_RELAYOUT_NEVER || !movable(&m->state, l)) continue;
      wf_relayout_size x = size_of(m, l, lanes, tokens, carried, d);
      wf_relayout_choice is = {.name = l->type->name, .layers = 1};
      wf_relayout_cost(d, &x, &is.in_place, &is.moved);
      l->moved = is.does_move = d->relayout == WF_RELAYOUT_ALWAYS || is.moved < is.in_place;
      int j = 0;
      while (j < n && !(strcmp(out[j].name, is.name) == 0 && out[j].in_place == is.in_place)) j++;
      if (j < n)
        out[j].layers++;
      else if (n < most)
        out[n++] = is;
    }
  return n;
}
