/* scan: the state is the recurrence's own matrix for each lane and head. */
#include "layers/seq_impl.h"

wf_status wf_seq_scan_state(wf_build *b, const char *name, int64_t heads, int64_t K, int64_t V, int *slot) {
  return wf_seq_state(b, WF_STATE_SCAN, name, false, WF_SHAPE(heads, K, V), slot);
}

typedef struct scan_arg {
  int slot;
  wf_tensor *init;
  const wf_scan_options *o;
} scan_arg;

static void scan_body(wf_run *r, const void *arg, wf_tensor *const *x, wf_tensor **y) {
  const scan_arg *a = arg;
  wf_scan_in in = {.q = x[0], .k = x[1], .v = x[2], .g = x[3], .w = x[4], .beta = x[5], .init = a->init};
  y[0] = wf_seq_scan(r, a->slot, &in, a->o);
}

wf_tensor *wf_seq_scan(wf_run *r, int slot, const wf_scan_in *in, const wf_scan_options *o) {
  wf_state *s = r->state;
  wf_seq_rows to;
  if (wf_seq_serial_segments(r)) {
    scan_arg arg = {slot, in->init, o};
    wf_relay relay = {.slot = slot, .n_state = 1, .n_x = 6, .n_y = 1, .body = scan_body, .arg = &arg};
    wf_tensor *y, *x[] = {in->q, in->k, in->v, in->g, in->w, in->beta};
    wf_seq_relay(r, &relay, x, &y);
    return y;
  }
  if (!s) return wf_scan(r->c, in, NULL, r->rows, o, NULL);
  return wf_scan(r->c, in, wf_state_in(s, slot), wf_seq_carried(r, &to), o, wf_state_out(s, slot));
}
