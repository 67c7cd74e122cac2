/* Elementwise scans: the state is the recurrence's value after the last token, for each lane. */
#include "layers/seq.h"

wf_status wf_seq_diag_state(wf_build *b, const char *name, int64_t d, int *slot) {
  return wf_build_state(b, name, false, WF_SHAPE(d), slot);
}
wf_status wf_seq_sum_state(wf_build *b, const char *name, int64_t d, int *slot) {
  return wf_build_state(b, name, false, WF_SHAPE(2, d), slot);
}

wf_tensor *wf_seq_diag(wf_run *r, int slot, wf_tensor *x, wf_tensor *g, wf_tensor *init) {
  wf_state *s = r->state;
  if (!s) return wf_scan_diag(r->c, x, g, NULL, init, r->rows, NULL);
  return wf_scan_diag(r->c, x, g, wf_state_in(s, slot), init, r->rows, wf_state_out(s, slot));
}

wf_tensor *wf_seq_sum(wf_run *r, int slot, wf_tensor *x) {
  wf_state *s = r->state;
  if (!s) return wf_scan_sum(r->c, x, true, NULL, NULL, r->rows, NULL);
  return wf_scan_sum(r->c, x, true, wf_state_in(s, slot), NULL, r->rows, wf_state_out(s, slot));
}

wf_tensor *wf_seq_max(wf_run *r, int slot, wf_tensor *x, wf_tensor *g, wf_tensor *init, wf_tensor **drop) {
  wf_state *s = r->state;
  if (!s) return wf_scan_max(r->c, x, g, NULL, init, r->rows, drop, NULL);
  return wf_scan_max(r->c, x, g, wf_state_in(s, slot), init, r->rows, drop, wf_state_out(s, slot));
}

wf_status wf_seq_selective_state(wf_build *b, const char *name, int64_t d, int64_t N, int *slot) {
  return wf_build_state(b, name, false, WF_SHAPE(d, N), slot);
}

wf_tensor *wf_seq_selective(wf_run *r, int slot, const wf_selective_in *in) {
  wf_state *s = r->state;
  if (!s) return wf_selective_scan(r->c, in, NULL, r->rows, NULL);
  return wf_selective_scan(r->c, in, wf_state_in(s, slot), r->rows, wf_state_out(s, slot));
}
