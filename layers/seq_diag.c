/* Elementwise scans: the state is the recurrence's value after the last token, for each lane. */
#include "layers/seq_impl.h"

wf_status wf_seq_diag_state(wf_build *b, const char *name, int64_t d, int *slot) {
  return wf_seq_state(b, WF_STATE_SCAN, name, false, WF_SHAPE(d), slot);
}
wf_status wf_seq_sum_state(wf_build *b, const char *name, int64_t d, int *slot) {
  return wf_seq_state(b, WF_STATE_SCAN, name, false, WF_SHAPE(2, d), slot);
}

/* ---- over ranks ---- */

typedef struct diag_arg {
  int slot;
  wf_tensor *init;
  const wf_selective_in *selective;
} diag_arg;

static void diag_body(wf_run *r, const void *arg, wf_tensor *const *x, wf_tensor **y) {
  const diag_arg *a = arg;
  y[0] = wf_seq_diag(r, a->slot, x[0], x[1], a->init);
}
static void sum_body(wf_run *r, const void *arg, wf_tensor *const *x, wf_tensor **y) {
  y[0] = wf_seq_sum(r, ((const diag_arg *)arg)->slot, x[0]);
}
static void max_body(wf_run *r, const void *arg, wf_tensor *const *x, wf_tensor **y) {
  const diag_arg *a = arg;
  y[0] = wf_seq_max(r, a->slot, x[0], x[1], a->init, &y[1]);
}
static void selective_body(wf_run *r, const void *arg, wf_tensor *const *x, wf_tensor **y) {
  const diag_arg *a = arg;
  wf_selective_in in = *a->selective;
  in.x = x[0], in.dt = x[1], in.B = x[2], in.C = x[3];
  y[0] = wf_seq_selective(r, a->slot, &in);
}

static wf_relay relay_of(wf_relay_body body, const diag_arg *arg, int n_x, int n_y) {
  return (wf_relay){.slot = arg->slot, .n_state = 1, .n_x = n_x, .n_y = n_y, .body = body, .arg = arg};
}

/* ---- the primitives ---- */

wf_tensor *wf_seq_diag(wf_run *r, int slot, wf_tensor *x, wf_tensor *g, wf_tensor *init) {
  wf_state *s = r->state;
  wf_seq_rows to;
  if (wf_seq_serial_segments(r)) {
    wf_relay relay = relay_of(diag_body, &(diag_arg){slot, init, NULL}, 2, 1);
    wf_tensor *y;
    wf_seq_relay(r, &relay, (wf_tensor *[]){x, g}, &y);
    return y;
  }
  if (!s) return wf_scan_diag(r->c, x, g, NULL, init, r->rows, NULL);
  return wf_scan_diag(r->c, x, g, wf_state_in(s, slot), init, wf_seq_carried(r, &to), wf_state_out(s, slot));
}

wf_tensor *wf_seq_sum(wf_run *r, int slot, wf_tensor *x) {
  wf_state *s = r->state;
  wf_seq_rows to;
  if (wf_seq_serial_segments(r)) {
    wf_relay relay = relay_of(sum_body, &(diag_arg){slot, NULL, NULL}, 1, 1);
    wf_tensor *y;
    wf_seq_relay(r, &relay, &x, &y);
    return y;
  }
  if (!s) return wf_scan_sum(r->c, x, true, NULL, NULL, r->rows, NULL);
  return wf_scan_sum(r->c, x, true, wf_state_in(s, slot), NULL, wf_seq_carried(r, &to),
                     wf_state_out(s, slot));
}

wf_tensor *wf_seq_max(wf_run *r, int slot, wf_tensor *x, wf_tensor *g, wf_tensor *init, wf_tensor **drop) {
  wf_state *s = r->state;
  wf_seq_rows to;
  if (wf_seq_serial_segments(r)) {
    wf_relay relay = relay_of(max_body, &(diag_arg){slot, init, NULL}, 2, 2);
    wf_tensor *y[2];
    relay.no_gradient = true;
    wf_seq_relay(r, &relay, (wf_tensor *[]){x, g}, y);
    *drop = y[1];
    return y[0];
  }
  if (!s) return wf_scan_max(r->c, x, g, NULL, init, r->rows, drop, NULL);
  return wf_scan_max(r->c, x, g, wf_state_in(s, slot), init, wf_seq_carried(r, &to), drop,
                     wf_state_out(s, slot));
}

wf_status wf_seq_selective_state(wf_build *b, const char *name, int64_t d, int64_t N, int *slot) {
  return wf_seq_state(b, WF_STATE_SCAN, name, false, WF_SHAPE(d, N), slot);
}

wf_tensor *wf_seq_selective(wf_run *r, int slot, const wf_selective_in *in) {
  wf_state *s = r->state;
  wf_seq_rows to;
  if (wf_seq_serial_segments(r)) {
    wf_relay relay = relay_of(selective_body, &(diag_arg){slot, NULL, in}, 4, 1);
    wf_tensor *y;
    wf_seq_relay(r, &relay, (wf_tensor *[]){in->x, in->dt, in->B, in->C}, &y);
    return y;
  }
  if (!s) return wf_selective_scan(r->c, in, NULL, r->rows, NULL);
  return wf_selective_scan(r->c, in, wf_state_in(s, slot), wf_seq_carried(r, &to), wf_state_out(s, slot));
}
