/* shift: the state is the last w-1 inputs of each lane. */
#include "layers/seq.h"

wf_status wf_seq_conv_state(wf_build *b, const char *name, int64_t width, int64_t w, int *slot) {
  return wf_build_state(b, name, false, WF_SHAPE(w - 1, width), slot);
}

wf_tensor *wf_seq_conv(wf_run *r, int slot, wf_tensor *x, wf_tensor *weight, wf_tensor *bias, bool silu) {
  wf_state *s = r->state;
  if (!s) return wf_conv(r->c, x, weight, bias, NULL, r->rows, silu, NULL);
  return wf_conv(r->c, x, weight, bias, wf_state_in(s, slot), r->rows, silu, wf_state_out(s, slot));
}
