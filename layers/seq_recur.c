/* Gated recurrences: the state is what the cell carries, for each lane. Masks are drawn by place, so that a
 * cut or a replay draws the same: by token for the candidate, by the start of its document for h. */
#include "layers/seq_impl.h"

wf_status wf_seq_recur_state(wf_build *b, const char *name, wf_recur_cell cell, int64_t heads, int64_t D,
                             int *slot) {
  return wf_build_state(b, name, false, WF_SHAPE(wf_recur_states(cell), heads, D), slot);
}

static wf_tensor *ones(wf_run *r, const wf_recur_in *in, int64_t n) {
  const wf_tensor *like = in->r;
  return wf_affine(r->c, wf_zeros(r->c, "mask", like->dtype, WF_SHAPE(n, like->shape[0] * like->shape[2])), 0,
                   1);
}

static wf_tensor *heads(wf_run *r, const wf_recur_in *in, wf_tensor *mask) {
  return wf_reshape(r->c, mask, WF_SHAPE(-1, in->r->shape[0], in->r->shape[2]));
}

typedef struct recur_arg {
  int slot;
  const wf_recur_in *in;
  const wf_seq_recur_dropout *drop;
} recur_arg;

static void recur_body(wf_run *r, const void *arg, wf_tensor *const *x, wf_tensor **y) {
  const recur_arg *a = arg;
  wf_recur_in in = *a->in;
  for (int i = 0; i < 4; i++) in.x[i] = x[i];
  y[0] = wf_seq_recur(r, a->slot, &in, a->drop);
}

/* Ranks that wait for each other's heads, rather than for each other's lanes: whichever are more. */
static bool by_heads(const wf_run *r, const wf_recur_in *in) {
  return wf_segments_pipe(r->part) && !wf_is_poison(in->r) && in->r->shape[0] > r->part->n_groups;
}

wf_tensor *wf_seq_recur(wf_run *r, int slot, const wf_recur_in *in, const wf_seq_recur_dropout *drop) {
  wf_ctx *c = r->c;
  wf_state *s = r->state;
  wf_seq_rows to;
  if (r->part && !by_heads(r, in)) {
    recur_arg arg = {slot, in, drop};
    wf_relay relay = {.slot = slot, .n_state = 1, .n_x = 4, .n_y = 1, .body = recur_body, .arg = &arg};
    wf_tensor *y;
    wf_seq_relay(r, &relay, in->x, &y);
    return y;
  }
  wf_recur_in masked = *in;
  if (r->train && drop && !wf_is_poison(in->r)) {
    if (drop->h > 0) {
      wf_rng_key key = wf_rng_key_make(r->seed, "recurrent dropout", drop->site);
      masked.h_mask =
          heads(r, in, wf_dropout_documents(c, ones(r, in, r->rows->n), r->rows, drop->h, key, r->step));
    }
    if (drop->candidate > 0) {
      wf_rng_key key = wf_rng_key_make(r->seed, "candidate dropout", drop->site);
      masked.c_mask =
          heads(r, in, wf_dropout(c, ones(r, in, r->rows->n_tokens), r->rows, drop->candidate, key, r->step));
    }
  }
  return wf_recur(c, &masked, s ? wf_state_in(s, slot) : NULL, wf_seq_carried(r, &to),
                  s ? wf_state_out(s, slot) : NULL);
}
