/* scan: what the members of the linear-recurrence family share in their descriptions, and the expression that
 * chooses among them. Kernels: scan_impl.h (the driver) and scan_<member>.c.
 */
#ifndef WF_KERNEL_PASS
#  include "core/ops/carry_impl.h"
#  include "core/ops/scan_impl.h"

#  include <string.h>

static wf_status check(const scan_shape *shape, const wf_call *call, wf_desc *state) {
  const scan_attr *a = call->attr;
  const char *op = call->op->name;
  const wf_tensor *q = call->in[SCAN_Q], *k = call->in[SCAN_K], *v = call->in[SCAN_V], *g = call->in[SCAN_G],
                  *w = call->in[SCAN_W];
  const wf_tensor *s = call->in[SCAN_STATE], *i = call->in[SCAN_INIT], *table = call->in[SCAN_TABLE];
  char t[3][96];
  if (a->o.ones && shape->no_ones) return WF_FAIL(WF_EUNSUPPORTED, "%s: a column of ones", op);
  WF_SHAPE_CHECK(q->ndim == 3 && wf_same_shape(q, k) && v->ndim == 3 && v->shape[0] == q->shape[0] &&
                     k->dtype == q->dtype && v->dtype == q->dtype,
                 "%s: q %s, k %s, v %s", op, wf_shape_text(q, t[0]), wf_shape_text(k, t[1]),
                 wf_shape_text(v, t[2]));
  int64_t n = v->shape[0], heads = v->shape[1], groups = q->shape[1];
  WF_SHAPE_CHECK(groups == heads || (groups > 0 && heads % groups == 0),
                 "%s: %lld heads of q and k do not divide %lld of v", op, (long long)groups,
                 (long long)heads);
  bool g_fits = g ? g->ndim == shape->g_dims && g->shape[0] == n && g->shape[1] == heads &&
                        g->dtype == q->dtype && (g->ndim == 2 || g->shape[2] == q->shape[2])
                  : !shape->needs_g;
  WF_SHAPE_CHECK(g_fits, "%s: log decays %s for q %s, v %s", op, wf_shape_text(g, t[0]),
                 wf_shape_text(q, t[1]), wf_shape_text(v, t[2]));
  bool w_fits =
      w ? w->ndim == 2 && w->shape[0] == n && w->shape[1] == heads && w->dtype == q->dtype : !shape->delta;
  WF_SHAPE_CHECK(w_fits, "%s: %s %s for v %s", op, shape->delta ? "beta" : "weights", wf_shape_text(w, t[0]),
                 wf_shape_text(v, t[1]));
  int64_t size[4] = {a->lanes, heads, q->shape[2], v->shape[2] + a->o.ones};
  wf_desc_set(state, q->dtype, 4, size);
  bool fits = !s || (s->ndim == 4 && s->dtype == q->dtype),
       begins = !i || (i->ndim == 3 && i->dtype == q->dtype);
  for (int d = 0; d < 4; d++) {
    fits = fits && (!s || s->shape[d] == size[d]);
    begins = begins && (!i || d == 0 || i->shape[d - 1] == size[d]);
  }
  WF_SHAPE_CHECK(fits, "%s: state %s for q %s, v %s", op, wf_shape_text(s, t[0]), wf_shape_text(q, t[1]),
                 wf_shape_text(v, t[2]));
  WF_SHAPE_CHECK(begins, "%s: initial state %s for q %s, v %s", op, wf_shape_text(i, t[0]),
                 wf_shape_text(q, t[1]), wf_shape_text(v, t[2]));
  WF_SHAPE_CHECK(table->ndim == 2 && table->shape[1] == WF_ROW_COLS && table->dtype == WF_I64,
                 "%s: the table of rows is %s", op, wf_shape_text(table, t[0]));
  if (a->o.chunk < 0) return WF_FAIL(WF_EINVAL, "%s: chunks of %lld tokens", op, (long long)a->o.chunk);
  return WF_OK;
}

wf_status wf_scan_infer(const scan_shape *shape, const wf_call *call, wf_desc *out, int *n_out) {
  WF_TRY(check(shape, call, &out[1]));
  wf_desc_like(&out[0], call->in[SCAN_V]);
  out[0].shape[2] = out[1].shape[3];
  *n_out = ((const scan_attr *)call->attr)->leaves ? 2 : 1;
  return WF_OK;
}

wf_status wf_scan_grad_infer(const scan_shape *shape, const wf_call *call, wf_desc *out, int *n_out) {
  wf_desc state;
  WF_TRY(check(shape, call, &state));
  int32_t want = ((const scan_attr *)call->attr)->want;
  *n_out = 0;
  for (int i = 0; i < WANTS; i++)
    if (want >> i & 1) {
      WF_SHAPE_CHECK(call->in[i], "%s: no input for output %d", call->op->name, i);
      wf_desc_like(&out[(*n_out)++], call->in[i]);
    }
  return WF_OK;
}

wf_status wf_scan_vjp(const wf_op *grad, const wf_vjp *g) {
  scan_attr a = *(const scan_attr *)g->attr;
  wf_tensor *in[SCAN_INS], *out[WANTS];
  for (int i = 0; i < SCAN_DO; i++) in[i] = g->in[i];
  in[SCAN_DO] = g->dout[0];
  in[SCAN_DSTATE] = a.leaves ? g->dout[1] : NULL;
  uint32_t add = 0;
  int n = 0;
  a.want = 0;
  for (int i = 0; i < WANTS; i++) {
    if (!g->din[i]) continue;
    a.want |= 1 << i;
    add |= (g->add >> i & 1) << n;
    out[n++] = g->din[i];
  }
  return n ? wf_op_run(g->ctx, grad, SCAN_INS, in, &a, n, out, add) : WF_OK;
}

/* ---- the state across cuts ---- */

wf_carry_kind wf_scan_carry(const scan_shape *shape, const wf_call *call, wf_desc *A) {
  const wf_tensor *q = call->in[SCAN_Q], *v = call->in[SCAN_V];
  int64_t size[] = {((const scan_attr *)call->attr)->lanes, v->shape[1], q->shape[2], q->shape[2]};
  if (!shape->delta && !call->in[SCAN_G]) return WF_CARRY_ADD;
  wf_desc_set(A, q->dtype, shape->delta ? 4 : shape->g_dims, size);
  return shape->delta ? WF_CARRY_DENSE : WF_CARRY_SCALE;
}

wf_status wf_scan_advance(const wf_call *call) {
  scan_attr a = *(const scan_attr *)call->attr;
  a.leaves = WF_STATE_ALONE;
  return wf_op_run(call->ctx, call->op, SCAN_DO, call->in, &a, 1, call->out, 0);
}

/* The delta rule's product of factors a (I - beta k^T k) is what becomes of the identity where nothing is
 * written; else e^{sum of log decays}. */
wf_status wf_scan_factor(const scan_shape *shape, const wf_call *call) {
  int64_t lanes = ((const scan_attr *)call->attr)->lanes;
  if (!shape->delta)
    return wf_fade_into(call->ctx, call->in[SCAN_G], call->in[SCAN_TABLE], NULL, true, call->out[0]);
  const wf_tensor *k = call->in[SCAN_K], *v = call->in[SCAN_V];
  int64_t K = k->shape[2], H = v->shape[1];
  wf_scope scope = wf_scope_open(call->ctx);
  wf_tensor *in[SCAN_DO];
  memcpy(in, call->in, sizeof in);
  wf_tensor *one = wf_zeros(call->ctx, "scan", k->dtype, WF_SHAPE(K, K)),
            *none = wf_zeros(call->ctx, "scan", k->dtype, WF_SHAPE(K));
  wf_status st = wf_is_poison(one) || wf_is_poison(none) ? wf_ctx_failure(call->ctx) : WF_OK;
  if (st == WF_OK) {
    wf_tensor *diagonal = wf_view_raw(one, 1, (int64_t[]){K}, (int64_t[]){K + 1}, 0);
    st = wf_op_run(call->ctx, &wf_op_exp, 1, &none, NULL, 1, &diagonal, 0);
    in[SCAN_STATE] = wf_view_raw(one, 4, (int64_t[]){lanes, H, K, K}, (int64_t[]){0, 0, K, 1}, 0);
    in[SCAN_V] = wf_view_raw(none, 3, (int64_t[]){v->shape[0], H, K}, (int64_t[]){0, 0, 1}, 0);
    in[SCAN_INIT] = NULL;
  }
  wf_call advance = *call;
  advance.in = in;
  if (st == WF_OK) st = wf_scan_advance(&advance);
  wf_scope_close(call->ctx, scope);
  return st;
}

/* Products of the chunk form, a triangle counted whole. */
void wf_scan_cost(const scan_shape *shape, bool grad, const wf_call *call, double *flops, double *bytes) {
  const wf_tensor *q = call->in[SCAN_Q], *v = call->in[SCAN_V];
  int64_t forced = ((const scan_attr *)call->attr)->o.chunk;
  double nh = (double)(v->shape[0] * v->shape[1]), k = (double)q->shape[2], w = (double)v->shape[2];
  double chunk = forced ? (double)forced : 64, square = grad ? 3 : 1, deep = grad ? 5 : 2;
  if (shape->delta) square *= 2, deep += grad ? 3 : 1;
  *flops = nh * (square * chunk * (k + w) + deep * 2 * k * w);
  *bytes = nh * (2 * k + 2 * w + 1) * (double)wf_dtype_size(q->dtype) * (grad ? 2 : 1);
}

/* 0, 2, 4: takes and leaves lanes in every way, rows longer than the forced chunk; 1: fresh rows, with an
 * initial state, without decays; 3: no token; 4: heads that share q and k, and a column of ones where there
 * can be; 5: no optional input. */
wf_status wf_scan_sample(const scan_shape *shape, wf_sample *s) {
  static const wf_row row[] = {
      {.begin = 0, .len = 4, .lane = 2, .pos = 4, .place = 4, .flags = 3},
      {.begin = 4, .len = 3, .lane = 0, .flags = WF_ROW_LEAVES},
      {.begin = 7, .len = 1, .lane = 0, .pos = 1, .place = 1, .flags = WF_ROW_TAKES}};
  bool none = s->index == 3, ones = s->index == 4 && !shape->no_ones, fresh = s->index == 1 || s->index == 5,
       bare = s->index == 5;
  wf_row made[3] = {row[0], row[1], row[2]};
  for (int i = 0; i < 3 && fresh; i++) made[i].flags = 0;
  int64_t n = none ? 0 : 8, lanes = 3, h = s->index == 4 ? 4 : 2, groups = 2, k = 3, v = 2,
          width = 2 * groups * k + h * v;
  double low = s->index == 2 ? -4 : -0.5;
  wf_tensor *joined = wf_sample_real(s, WF_SHAPE(n, width));
  s->in[SCAN_Q] = wf_view_raw(joined, 3, (int64_t[]){n, groups, k}, (int64_t[]){width, k, 1}, 0);
  s->in[SCAN_K] = wf_view_raw(joined, 3, (int64_t[]){n, groups, k}, (int64_t[]){width, k, 1}, groups * k);
  s->in[SCAN_V] = wf_view_raw(joined, 3, (int64_t[]){n, h, v}, (int64_t[]){width, v, 1}, 2 * groups * k);
  if (shape->needs_g || !fresh)
    s->in[SCAN_G] = wf_sample_range(s, shape->g_dims, (int64_t[]){n, h, k}, low, 0);
  if (shape->delta || s->index % 2 == 0) s->in[SCAN_W] = wf_sample_range(s, WF_SHAPE(n, h), 0.1, 0.9);
  s->in[SCAN_STATE] = fresh ? NULL : wf_sample_real(s, WF_SHAPE(lanes, h, k, v + ones));
  s->in[SCAN_INIT] = s->index == 2 || bare ? NULL : wf_sample_real(s, WF_SHAPE(h, k, v + ones));
  s->in[SCAN_TABLE] = wf_from_host(s->ctx, "sample", WF_I64, WF_SHAPE(none ? 0 : 3, WF_ROW_COLS), made);
  s->n_in = SCAN_DO;
  *(scan_attr *)(void *)s->attr =
      (scan_attr){.o = {.scale = 0.6, .chunk = s->index == 0 ? 3 : s->index == 1, .ones = ones},
                  .lanes = lanes,
                  .leaves = !fresh};
  return WF_OK;
}

wf_status wf_scan_grad_sample(const scan_shape *shape, wf_sample *s) {
  WF_TRY(wf_scan_sample(shape, s));
  scan_attr *a = (scan_attr *)(void *)s->attr;
  a->want = 0;
  for (int i = 0; i < WANTS; i++) a->want |= s->in[i] ? 1 << i : 0;
  const int64_t *v = s->in[SCAN_V]->shape;
  s->in[SCAN_DO] = wf_sample_real(s, WF_SHAPE(v[0], v[1], v[2] + a->o.ones));
  s->in[SCAN_DSTATE] = a->leaves ? wf_sample_real(s, 4, s->in[SCAN_STATE]->shape) : NULL;
  s->n_in = SCAN_INS;
  return WF_OK;
}

/* The members, by the delta rule and by whether each channel has its own decay. */
extern const wf_op wf_op_scan_scalar, wf_op_scan_channel, wf_op_scan_delta, wf_op_scan_delta_channel;
static const wf_op *const member[2][2] = {{&wf_op_scan_scalar, &wf_op_scan_channel},
                                          {&wf_op_scan_delta, &wf_op_scan_delta_channel}};

wf_tensor *wf_scan(wf_ctx *c, const wf_scan_in *in, wf_tensor *state, const wf_rows *rows,
                   const wf_scan_options *o, wf_tensor **state_out) {
  scan_attr a = {.o = *o, .lanes = rows->n_lanes, .leaves = state_out != NULL};
  const wf_op *op = member[in->beta != NULL][in->g && !wf_is_poison(in->g) && in->g->ndim == 3];
  wf_status s = wf_state_given("scan", state, rows);
  if (s == WF_OK && in->w && in->beta)
    s = WF_FAIL(WF_EINVAL, "scan: weights of the writes beside a delta rule");
  if (s == WF_OK && !op) s = WF_FAIL(WF_EUNSUPPORTED, "scan: no kernel for this decay and write");
  if (s != WF_OK) {
    if (state_out) *state_out = wf_poison(c, s);
    return wf_poison(c, s);
  }
  wf_tensor *out[WF_MAX_OUT];
  wf_tensor *x[SCAN_DO] = {in->q, in->k,    in->v,      in->g, in->w ? in->w : in->beta,
                           state, in->init, rows->table};
  wf_op_apply_rows(c, rows, op, SCAN_DO, x, &a, out);
  if (state_out) *state_out = out[1];
  return out[0];
}

#endif
