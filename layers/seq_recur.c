/* Gated recurrences: the state is what the cell carries, for each lane. Masks are drawn by place, so that a
 * cut or a replay draws the same: by token for the candidate, by the start of its document for h. */
#include "layers/seq_impl.h"

wf_status wf_seq_recur_state(wf_build *b, const char *name, wf_recur_cell cell, int64_t heads, int64_t D,
                             int *slot) {
  return wf_build_state(b, name, false, WF_SHAPE(wf_recur_states(cell), heads, D), slot);
}

typedef struct recur_call {
  int slot;
  const wf_recur_in *in;
  const wf_seq_recur_dropout *drop;
} recur_call;

/* Heads [begin, end) of x's dimension `dim`; all of them are x itself. */
static wf_tensor *some_heads(wf_ctx *c, wf_tensor *x, int dim, int64_t begin, int64_t end) {
  return !x || wf_is_poison(x) || end - begin == x->shape[dim] ? x : wf_slice(c, x, dim, begin, end);
}

static wf_tensor *ones(wf_run *r, const wf_recur_in *in, int64_t n) {
  const wf_tensor *like = in->r;
  return wf_affine(r->c, wf_zeros(r->c, "mask", like->dtype, WF_SHAPE(n, like->shape[0] * like->shape[2])), 0,
                   1);
}

/* Drawn for all heads, so that some have what they have among all. */
static wf_tensor *mask_heads(wf_run *r, const wf_recur_in *in, wf_tensor *mask, int64_t begin, int64_t end) {
  mask = wf_reshape(r->c, mask, WF_SHAPE(-1, in->r->shape[0], in->r->shape[2]));
  return some_heads(r->c, mask, 1, begin, end);
}

/* Heads [begin, end), to which x and states belong. */
static wf_tensor *over_rows(wf_run *r, const recur_call *a, wf_tensor *const *x, int64_t begin, int64_t end) {
  wf_ctx *c = r->c;
  wf_state *s = r->state;
  wf_seq_rows to;
  const wf_recur_in *all = a->in;
  const wf_seq_recur_dropout *drop = a->drop;
  wf_recur_in in = {.cell = all->cell,
                    .r = some_heads(c, all->r, 0, begin, end),
                    .b = some_heads(c, all->b, 1, begin, end),
                    .init = some_heads(c, all->init, 1, begin, end)};
  for (int i = 0; i < 4; i++) in.x[i] = x[i];
  if (r->train && drop && !wf_is_poison(all->r)) {
    if (drop->h > 0) {
      wf_rng_key key = wf_rng_key_make(r->seed, "recurrent dropout", drop->site);
      wf_tensor *mask = wf_dropout_documents(c, ones(r, all, r->rows->n), r->rows, drop->h, key, r->step);
      in.h_mask = mask_heads(r, all, mask, begin, end);
    }
    if (drop->candidate > 0) {
      wf_rng_key key = wf_rng_key_make(r->seed, "candidate dropout", drop->site);
      wf_tensor *mask =
          wf_dropout(c, ones(r, all, r->rows->n_tokens), r->rows, drop->candidate, key, r->step);
      in.c_mask = mask_heads(r, all, mask, begin, end);
    }
  }
  return wf_recur(c, &in, s ? wf_state_in(s, a->slot) : NULL, wf_seq_carried(r, &to),
                  s ? wf_state_out(s, a->slot) : NULL);
}

/* ---- over ranks ---- */

static void relay_body(wf_run *r, const void *arg, wf_tensor *const *x, wf_tensor **y) {
  const recur_call *a = arg;
  y[0] = over_rows(r, a, x, 0, a->in->r->shape[0]);
}

static wf_tensor *shard_body(wf_run *r, const void *arg, int64_t head, int64_t heads,
                             wf_tensor *const *some) {
  const recur_call *a = arg;
  wf_tensor *x[4] = {NULL};
  for (int i = 0; i < 4 && a->in->x[i]; i++) x[i] = some[i];
  return over_rows(r, a, x, head, head + heads);
}

static wf_tensor *over_ranks(wf_run *r, const recur_call *a) {
  const wf_recur_in *in = a->in;
  const wf_part *p = r->part;
  int64_t H = in->r->shape[0], P = p->dist->layout->n_ranks;
  /* Ranks that wait for each other's heads, rather than for each other's lanes: whichever are more. */
  bool pipe = wf_segments_pipe(p) && H > p->n_groups;
  int n_x = 0;
  while (n_x < 4 && in->x[n_x]) n_x++;
  if (wf_seq_divides(r, H, pipe ? (double)H / (double)(H + P - 1) : wf_part_efficiency(p)))
    return wf_seq_shards(r,
                         &(wf_sharded){.slot = a->slot,
                                       .n_state = 1,
                                       .n_x = n_x,
                                       .heads = H,
                                       .x_axis = in->x[0]->ndim - 2,
                                       .y_axis = 1,
                                       .state_axis = 2,
                                       .body = shard_body,
                                       .arg = a},
                         in->x);
  if (pipe) return over_rows(r, a, in->x, 0, H);
  wf_relay relay = {.slot = a->slot, .n_state = 1, .n_x = 4, .n_y = 1, .body = relay_body, .arg = a};
  wf_tensor *y;
  wf_seq_relay(r, &relay, in->x, &y);
  return y;
}

wf_tensor *wf_seq_recur(wf_run *r, int slot, const wf_recur_in *in, const wf_seq_recur_dropout *drop) {
  recur_call a = {slot, in, drop};
  if (wf_is_poison(in->r)) return in->r;
  for (int i = 0; i < 4; i++)
    if (in->x[i] && wf_is_poison(in->x[i])) return in->x[i];
  return r->part ? over_ranks(r, &a) : over_rows(r, &a, in->x, 0, in->r->shape[0]);
}
