/* scan: the state is the recurrence's own matrix for each lane and head. */
#include "layers/seq.h"

wf_status wf_seq_scan_state(wf_build *b, const char *name, int64_t heads, int64_t K, int64_t V, int *slot) {
  return wf_build_state(b, name, false, WF_SHAPE(heads, K, V), slot);
}

wf_tensor *wf_seq_scan(wf_run *r, int slot, wf_tensor *q, wf_tensor *k, wf_tensor *v, wf_tensor *g,
                       wf_tensor *init, const wf_scan_options *o) {
  wf_state *s = r->state;
  if (!s) return wf_scan_scalar(r->c, q, k, v, g, NULL, init, r->rows, o, NULL);
  return wf_scan_scalar(r->c, q, k, v, g, wf_state_in(s, slot), init, r->rows, o, wf_state_out(s, slot));
}
