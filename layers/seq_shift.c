/* shift: the state is the last w-1 inputs of each lane. Over ranks it is a halo, exchanged by all at once, or
 * handed along where a segment is shorter than that. */
#include "dist/halo.h"
#include "layers/seq_impl.h"

wf_status wf_seq_conv_state(wf_build *b, const char *name, int64_t width, int64_t w, int *slot) {
  return wf_seq_state(b, WF_STATE_SHIFT, name, false, WF_SHAPE(w - 1, width), slot);
}

typedef struct conv_arg {
  int slot;
  bool silu;
  wf_tensor *weight, *bias;
} conv_arg;

static void conv_body(wf_run *r, const void *arg, wf_tensor *const *x, wf_tensor **y) {
  const conv_arg *a = arg;
  y[0] = wf_seq_conv(r, a->slot, x[0], a->weight, a->bias, a->silu);
}

wf_tensor *wf_seq_conv(wf_run *r, int slot, wf_tensor *x, wf_tensor *weight, wf_tensor *bias, bool silu) {
  wf_state *s = r->state;
  if (r->part && !wf_is_poison(x) && wf_halo_fits(r->part, wf_state_in(s, slot)->shape[1])) {
    wf_tensor *enters = wf_dist_halo(r->c, r->part, x, wf_state_in(s, slot), wf_state_out(s, slot));
    return wf_conv(r->c, x, weight, bias, enters, r->rows, silu, NULL);
  }
  if (r->part) {
    conv_arg arg = {slot, silu, weight, bias};
    wf_relay relay = {.slot = slot, .n_state = 1, .n_x = 1, .n_y = 1, .body = conv_body, .arg = &arg};
    wf_tensor *y;
    wf_seq_relay(r, &relay, &x, &y);
    return y;
  }
  if (!s) return wf_conv(r->c, x, weight, bias, NULL, r->rows, silu, NULL);
  return wf_conv(r->c, x, weight, bias, wf_state_in(s, slot), r->rows, silu, wf_state_out(s, slot));
}
