/* The ops of chain_trial.h. */
#include "core/ops.h"
#include "tests/dist/chain_trial.h"

static void scan_with(wf_chain_call *c, wf_tensor *g, wf_tensor *w, wf_tensor *beta) {
  wf_scan_in in = {.q = c->x[0], .k = c->x[1], .v = c->x[2], .g = g, .w = w, .beta = beta, .init = c->w[0]};
  c->out[0] = wf_scan(c->c, &in, c->state, c->rows, &(wf_scan_options){.scale = 0.7, .chunk = 4}, &c->out[1]);
}
static void linear(wf_chain_call *c) {
  scan_with(c, NULL, c->x[3], NULL);
}
static void decayed(wf_chain_call *c) {
  scan_with(c, c->x[3], c->x[4], NULL);
}
static void with_ones(wf_chain_call *c) {
  wf_scan_in in = {.q = c->x[0], .k = c->x[1], .v = c->x[2], .g = c->x[3], .w = c->x[4], .init = c->w[0]};
  wf_scan_options o = {.scale = 0.7, .chunk = 4, .ones = true};
  c->out[0] = wf_scan(c->c, &in, c->state, c->rows, &o, &c->out[1]);
}
static void delta(wf_chain_call *c) {
  scan_with(c, NULL, NULL, c->x[3]);
}
static void gated_delta(wf_chain_call *c) {
  scan_with(c, c->x[3], NULL, c->x[4]);
}
static void diag(wf_chain_call *c) {
  c->out[0] = wf_scan_diag(c->c, c->x[0], c->x[1], c->state, c->w[0], c->rows, &c->out[1]);
}
static void sum(wf_chain_call *c) {
  c->out[0] = wf_scan_sum(c->c, c->x[0], false, c->state, c->w[0], c->rows, &c->out[1]);
}
static void pairs(wf_chain_call *c) {
  c->out[0] = wf_scan_sum(c->c, c->x[0], true, c->state, NULL, c->rows, &c->out[1]);
}
static void max(wf_chain_call *c) {
  c->out[0] = wf_scan_max(c->c, c->x[0], c->x[1], c->state, c->w[0], c->rows, &c->out[1], &c->out[2]);
}
static void selective(wf_chain_call *c) {
  wf_selective_in in = {c->x[0], c->x[1], c->w[0], c->x[2], c->x[3], c->w[1], c->w[2]};
  c->out[0] = wf_selective_scan(c->c, &in, c->state, c->rows, &c->out[1]);
}

#define QKV                                 \
  {2, {G, K}, -1, 1}, {2, {G, K}, -1, 1}, { \
    2, {H, V}, -1, 1                        \
  }
#define QKV_ALIKE                           \
  {2, {H, K}, -1, 1}, {2, {H, K}, -1, 1}, { \
    2, {H, V}, -1, 1                        \
  }
#define DECAY \
  { 1, {H}, -0.6, 0 }
#define CHANNEL_DECAYS \
  { 2, {H, K}, -0.6, 0 }
#define GATE \
  { 1, {H}, 0.1, 0.9 }
#define STATES .w = {{3, {0}, -1, 1}}, .state_ndim = 3, .state = {H, K, V}, .n_y = 1, .cut = true

const wf_chain_member wf_chain_members[MEMBERS] = {
    {.name = "linear", .x = {QKV, GATE}, STATES, .apply = linear},
    {.name = "scalar", .x = {QKV, DECAY, GATE}, STATES, .apply = decayed},
    {.name = "channel", .x = {QKV_ALIKE, CHANNEL_DECAYS}, STATES, .apply = decayed},
    {.name = "ones",
     .x = {QKV, DECAY, GATE},
     .state_ndim = 3,
     .state = {H, K, V + 1},
     .n_y = 1,
     .cut = true,
     .apply = with_ones},
    {.name = "delta", .x = {QKV, GATE}, STATES, .apply = delta},
    {.name = "gated delta", .x = {QKV_ALIKE, DECAY, GATE}, STATES, .apply = gated_delta},
    {.name = "channel delta", .x = {QKV, CHANNEL_DECAYS, GATE}, STATES, .apply = gated_delta},
    {.name = "forgetful", .x = {QKV, {2, {H, K}, -50, 0}, GATE}, STATES, .apply = decayed},
    {.name = "diag",
     .x = {{1, {D}, -1, 1}, {1, {D}, -0.6, 0}},
     .w = {{1, {D}, -1, 1}},
     .state_ndim = 1,
     .state = {D},
     .n_y = 1,
     .cut = true,
     .apply = diag},
    {.name = "diag in runs",
     .x = {{1, {D}, -1, 1}, {1, {2}, -0.6, 0}},
     .w = {{1, {D}, -1, 1}},
     .state_ndim = 1,
     .state = {D},
     .n_y = 1,
     .cut = true,
     .apply = diag},
    {.name = "sum",
     .x = {{1, {D}, -1, 1}},
     .w = {{1, {D}, -1, 1}},
     .state_ndim = 1,
     .state = {D},
     .n_y = 1,
     .apply = sum},
    {.name = "pairs", .x = {{1, {D}, -1, 1}}, .state_ndim = 2, .state = {2, D}, .n_y = 1, .apply = pairs},
    {.name = "max",
     .x = {{1, {D}, -1, 1}, {1, {D}, -0.3, 0}},
     .w = {{1, {D}, -1, 1}},
     .state_ndim = 1,
     .state = {D},
     .n_y = 2,
     .constant = true,
     .apply = max},
    {.name = "selective",
     .x = {{1, {D}, -1, 1}, {1, {D}, 0.05, 0.8}, {1, {N}, -1, 1}, {1, {N}, -1, 1}},
     .w = {{2, {D, N}, -2, -0.1}, {1, {D}, -1, 1}, {2, {D, N}, -1, 1}},
     .state_ndim = 2,
     .state = {D, N},
     .n_y = 1,
     .apply = selective},
};

/* The initial state of the scan family has three dimensions. */
int wf_chain_weight_shape(const wf_chain_arg *a, int64_t shape[3]) {
  if (a->ndim == 3)
    shape[0] = H, shape[1] = K, shape[2] = V;
  else
    shape[0] = a->shape[0], shape[1] = a->shape[1];
  return a->ndim;
}
int64_t wf_chain_token_size(const wf_chain_arg *a) {
  return a->ndim == 0 ? 0 : a->ndim == 1 ? a->shape[0] : a->shape[0] * a->shape[1];
}
int64_t wf_chain_weight_size(const wf_chain_arg *a) {
  int64_t shape[3], n = a->ndim > 0;
  for (int d = wf_chain_weight_shape(a, shape) - 1; d >= 0; d--) n *= shape[d];
  return n;
}
int64_t wf_chain_state_size(const wf_chain_member *m) {
  int64_t n = 1;
  for (int d = 0; d < m->state_ndim; d++) n *= m->state[d];
  return n;
}
