/* scan: the state is the recurrence's own matrix for each lane and head. */
#include "layers/seq.h"

wf_status wf_seq_scan_state(wf_build *b, const char *name, int64_t heads, int64_t K, int64_t V, int *slot) {
  return wf_build_state(b, name, false, WF_SHAPE(heads, K, V), slot);
}

wf_tensor *wf_seq_scan(wf_run *r, int slot, const wf_scan_in *in, const wf_scan_options *o) {
  wf_state *s = r->state;
  if (!s) return wf_scan(r->c, in, NULL, r->rows, o, NULL);
  return wf_scan(r->c, in, wf_state_in(s, slot), r->rows, o, wf_state_out(s, slot));
}
