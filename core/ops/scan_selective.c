/* selective_scan: Mamba's recurrence, a decay for each channel and state (Gu & Dao 2023; mixers 5),
 *     h_t[d,n] = e^{dt_t[d] A[d,n]} h_{t-1}[d,n] + dt_t[d] B_t[n] x_t[d]
 *     y_t[d] = sum_n C_t[n] h_t[d,n] + D[d] x_t[d]
 *
 * No product of matrices: a vector holds one n of VL channels, the loop over tokens is inside, and the states
 * of a few n stay in registers, so B and C are scalars and y needs no sum over lanes. Rows run in tiles of
 * tokens. Where a gradient will follow, the forward keeps the states entering the tiles ("marks": N / TILE
 * numbers a token and channel).
 */
#include "core/ops/scan_selective_impl.h"

#ifdef WF_KERNEL_PASS

/* k states (a constant once inlined) of one vector over n tokens; b and c point at the first state's. */
static inline __attribute__((always_inline)) void advance(const int k, const sel_args *a, int64_t n,
                                                          const tile_vec *dt, const tile_vec *u,
                                                          const tile_vec *rates, const real *b, const real *c,
                                                          tile_vec *states, tile_vec *y) {
  tile_vec h[AT_ONCE], e[AT_ONCE];
  TILE_UNROLL
  for (int i = 0; i < k; i++) h[i] = states[i], e[i] = rates[i];
  for (int64_t t = 0; t < n; t++) {
    tile_vec sum = y[t];
    TILE_UNROLL
    for (int i = 0; i < k; i++) {
      h[i] = decay(dt[t] * e[i]) * h[i] + u[t] * b[t * a->bs + i];
      sum += h[i] * c[t * a->cs + i];
    }
    y[t] = sum;
  }
  TILE_UNROLL
  for (int i = 0; i < k; i++) states[i] = h[i];
}

/* One tile of vector v from `token` on. */
static void forward_tile(const sel_args *a, int64_t v, int64_t token, int64_t n, const tile_vec *rates,
                         tile_vec *h) {
  tile_vec dt[TILE], u[TILE], y[TILE];
  load(a, v, n, a->dt + token * a->dts, a->dts, dt);
  load(a, v, n, a->x + token * a->xs, a->xs, u);
  tile_vec skip = {0};
  if (a->skip) load(a, v, 1, a->skip, 0, &skip);
  for (int64_t t = 0; t < n; t++) y[t] = skip * u[t], u[t] *= dt[t];
  const real *b = a->b + token * a->bs, *c = a->c + token * a->cs;
  int64_t i = 0;
  for (; i + AT_ONCE <= a->N; i += AT_ONCE) advance(AT_ONCE, a, n, dt, u, rates + i, b + i, c + i, h + i, y);
  for (; i < a->N; i++) advance(1, a, n, dt, u, rates + i, b + i, c + i, h + i, y);
  store(a, v, n, y, a->y + token * a->d, a->d, false);
}

/* Vectors v0 .. v1-1 of a row; `work` holds 2 N vectors of each. */
static void forward_row(const sel_args *a, const wf_row *r, int64_t v0, int64_t v1, tile_vec *work) {
  tile_vec *rates = work, *h = work + (v1 - v0) * a->N;
  for (int64_t v = v0; v < v1; v++) {
    exponents(a, v, rates + (v - v0) * a->N);
    enter(a, r, v, h + (v - v0) * a->N);
  }
  for (int64_t t = 0; t < r->len; t += TILE)
    for (int64_t v = v0; v < v1; v++) {
      tile_vec *s = h + (v - v0) * a->N;
      if (t && a->marks)
        store(a, v, a->N, s, a->marks + (a->mark[r - a->row] + t / TILE - 1) * a->size, a->d, false);
      forward_tile(a, v, r->begin + t, r->len - t < TILE ? r->len - t : TILE, rates + (v - v0) * a->N, s);
    }
  for (int64_t v = v0; v < v1 && a->left && wf_row_leaves(r); v++)
    turn_back(a, v, h + (v - v0) * a->N, a->left + r->lane * a->size);
}

WF_KERNEL(selective_scan) {
  sel_args a;
  WF_TRY(sel_read(call, &a));
  const selective_attr *at = call->attr;
  a.y = wf_data(call->out[Y]);
  if (at->marks) a.marks = wf_data(call->out[MARKS_OUT]);
  if (at->leaves) {
    a.left = wf_data(call->out[STATE_OUT]);
    wf_keep_lanes(a.row, a.rows, a.lanes, a.size, a.state, a.left, false);
  }
  if (!a.rows || !a.d) return WF_OK;
  int threads = wf_threads_for(a.rows * a.vectors, sel_cost(&a));
  int64_t groups = threads == 1 ? 1 : (4 * threads + a.rows - 1) / a.rows;
  if (groups > a.vectors) groups = a.vectors;
  size_t each = (size_t)(2 * a.N * ((a.vectors + groups - 1) / groups)) * sizeof(tile_vec) + 64;
  wf_device *dev = wf_ctx_device(call->ctx);
  void *work;
  WF_TRY(sel_marks(call, &a));
  wf_status st = wf_device_alloc(dev, "scan", each * (size_t)threads, &work);
  if (st == WF_OK) {
    WF_PRAGMA(omp parallel num_threads(threads)) {
      void *mine = wf_thread_space(work, each);
      WF_PRAGMA(omp for schedule(dynamic, 1))
      for (int64_t task = 0; task < a.rows * groups; task++) {
        int group = (int)(task % groups);
        forward_row(&a, &a.row[task / groups], wf_range_begin(a.vectors, group, (int)groups),
                    wf_range_begin(a.vectors, group + 1, (int)groups), mine);
      }
    }
    wf_device_free(dev, "scan", work, each * (size_t)threads);
  }
  sel_free_marks(call, &a);
  return st;
}

#else

#  include "core/ops/carry_impl.h"

WF_CPU(selective_scan)

wf_status wf_selective_check(const wf_call *call, wf_desc *out) {
  const selective_attr *at = call->attr;
  const wf_tensor *x = call->in[X], *dt = call->in[DT], *a = call->in[A], *b = call->in[B], *c = call->in[C];
  const wf_tensor *skip = call->in[D], *s = call->in[STATE], *i = call->in[INIT], *table = call->in[TABLE];
  char t[4][96];
  WF_TRY(wf_want_real(call, (1 << TABLE) - 1));
  WF_SHAPE_CHECK(x->ndim == 2 && wf_same_shape(x, dt), "selective_scan: x %s, dt %s", wf_shape_text(x, t[0]),
                 wf_shape_text(dt, t[1]));
  int64_t n = x->shape[0], d = x->shape[1];
  WF_SHAPE_CHECK(a->ndim == 2 && b->ndim == 2 && wf_same_shape(b, c) && a->shape[0] == d &&
                     b->shape[0] == n && a->shape[1] == b->shape[1],
                 "selective_scan: A %s, B %s, C %s for x %s", wf_shape_text(a, t[0]), wf_shape_text(b, t[1]),
                 wf_shape_text(c, t[2]), wf_shape_text(x, t[3]));
  WF_SHAPE_CHECK(!skip || (skip->ndim == 1 && skip->shape[0] == d), "selective_scan: D %s for x %s",
                 wf_shape_text(skip, t[0]), wf_shape_text(x, t[1]));
  int64_t N = a->shape[1];
  WF_SHAPE_CHECK(!s || (s->ndim == 3 && s->shape[0] == at->lanes && s->shape[1] == d && s->shape[2] == N),
                 "selective_scan: state %s for A %s and %lld lanes", wf_shape_text(s, t[0]),
                 wf_shape_text(a, t[1]), (long long)at->lanes);
  WF_SHAPE_CHECK(!i || wf_same_shape(i, a), "selective_scan: initial state %s for A %s",
                 wf_shape_text(i, t[0]), wf_shape_text(a, t[1]));
  WF_SHAPE_CHECK(table->ndim == 2 && table->shape[1] == WF_ROW_COLS && table->dtype == WF_I64,
                 "selective_scan: the table of rows is %s", wf_shape_text(table, t[0]));
  wf_desc_like(&out[Y], x);
  wf_desc_set(&out[MARKS_OUT], x->dtype, 3, (int64_t[]){at->marks, N, d});
  wf_desc_set(&out[STATE_OUT], x->dtype, 3, (int64_t[]){at->lanes, d, N});
  return WF_OK;
}

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  *n_out = ((const selective_attr *)call->attr)->leaves ? 3 : 2;
  return wf_selective_check(call, out);
}

static wf_status vjp(const wf_vjp *g) {
  selective_attr a = *(const selective_attr *)g->attr;
  wf_tensor *in[GRAD_INS];
  for (int i = 0; i < FORWARD_INS; i++) in[i] = g->in[i];
  in[MARKS] = g->out[MARKS_OUT];
  in[DY] = g->dout[Y];
  in[DSTATE] = a.leaves ? g->dout[STATE_OUT] : NULL;
  return wf_vjp_wanted(g, &wf_op_selective_scan_grad, GRAD_INS, in, &a, &a.want, WANTS);
}

/* Forwards: an exponential as some 14 operations, a product and three sums. */
static void cost(const wf_call *call, double *flops, double *bytes) {
  const wf_tensor *x = call->in[X], *a = call->in[A];
  double nd = (double)wf_numel(x), N = (double)a->shape[1];
  *flops = nd * N * 20;
  *bytes = nd * 3 * (double)wf_dtype_size(x->dtype);
}
/* 0: lanes taken and left, 1: fresh rows, 2: neither D nor init, 3: no rows, 4: a row of more than one tile.
 */
wf_status wf_selective_sample(wf_sample *s) {
  bool fresh = s->index == 1, none = s->index == 3, lengthy = s->index == 4;
  static const wf_row one = {.len = TILE + 3, .flags = 3};
  int64_t n = none ? 0 : lengthy ? one.len : 8, d = lengthy ? 1 : 3, N = lengthy ? 1 : 5;
  int64_t width = d + 2 * N, stride[] = {width, 1}, lanes = lengthy ? 1 : 3;
  wf_tensor *joined = wf_sample_real(s, WF_SHAPE(n, width));
  s->in[X] = wf_view_raw(joined, 2, (int64_t[]){n, d}, stride, 0);
  s->in[B] = wf_view_raw(joined, 2, (int64_t[]){n, N}, stride, d);
  s->in[C] = wf_view_raw(joined, 2, (int64_t[]){n, N}, stride, d + N);
  s->in[DT] = wf_sample_range(s, WF_SHAPE(n, d), 0.05, 0.8);
  s->in[A] = wf_sample_range(s, WF_SHAPE(d, N), -2, -0.1);
  if (s->index != 2) s->in[D] = wf_sample_real(s, WF_SHAPE(d));
  if (!fresh) s->in[STATE] = wf_sample_real(s, WF_SHAPE(lanes, d, N));
  if (s->index != 2) s->in[INIT] = wf_sample_real(s, WF_SHAPE(d, N));
  s->in[TABLE] = lengthy ? wf_from_host(s->ctx, "sample", WF_I64, WF_SHAPE(1, WF_ROW_COLS), &one)
                         : wf_sample_rows(s, fresh, none);
  s->n_in = FORWARD_INS;
  *(selective_attr *)(void *)s->attr = (selective_attr){.lanes = lanes, .marks = lengthy, .leaves = !fresh};
  return WF_OK;
}

/* ---- the state across cuts ---- */

static wf_carry_kind kind(const wf_call *call, wf_desc *factor) {
  const wf_tensor *a = call->in[A];
  wf_desc_set(factor, a->dtype, 3,
              (int64_t[]){((const selective_attr *)call->attr)->lanes, a->shape[0], a->shape[1]});
  return WF_CARRY_SCALE;
}

/* e^{A sum dt} */
static wf_status factor(const wf_call *call) {
  return wf_fade_into(call->ctx, call->in[DT], call->in[TABLE], call->in[A], true, call->out[0]);
}

static wf_status state_alone(const wf_call *call) {
  wf_ctx *c = call->ctx;
  selective_attr a = *(const selective_attr *)call->attr;
  a.leaves = true;
  a.marks = 0;
  wf_scope s = wf_scope_open(c);
  wf_tensor *out[] = {wf_empty_like(c, "scan", call->in[X]), NULL, call->out[0]};
  out[MARKS_OUT] = wf_empty(c, "scan", out[0]->dtype, WF_SHAPE(0, 1, 1));
  wf_status st =
      wf_is_poison(out[0]) ? wf_ctx_failure(c) : wf_op_run(c, call->op, FORWARD_INS, call->in, &a, 3, out, 0);
  wf_scope_close(c, s);
  return st;
}

static const wf_carry carry = {.state = STATE,
                               .init = INIT,
                               .table = TABLE,
                               .left = STATE_OUT,
                               .in = {1, 1, 0, -1, -1, 0, 1, 0, -1},
                               .out = {1, 2, 1},
                               .work = 280,
                               .share = 1,
                               .kind = kind,
                               .factor = factor,
                               .advance = state_alone};

const wf_op wf_op_selective_scan = {
    .name = "selective_scan",
    .min_in = FORWARD_INS,
    .max_in = FORWARD_INS,
    .n_out = -1,
    .attr_size = sizeof(selective_attr),
    .optional = 1 << D | 1 << STATE | 1 << INIT,
    .rowmajor = 1 << X | 1 << DT | 1 << B | 1 << C,
    .save_in = (1 << FORWARD_INS) - 1,
    .save_out = 1 << MARKS_OUT,
    .vjp_adds = (1 << WANTS) - 1,
    .nograd_in = 1 << TABLE,
    .nograd_out = 1 << MARKS_OUT,
    .infer = infer,
    .vjp = vjp,
    .cpu = &selective_scan_cpu,
    .carry = &carry,
    .cost = cost,
    .sample = wf_selective_sample,
    .n_samples = 5,
};

wf_tensor *wf_selective_scan(wf_ctx *c, const wf_selective_in *in, wf_tensor *state, const wf_rows *rows,
                             wf_tensor **state_out) {
  selective_attr a = {.lanes = rows->n_lanes, .leaves = state_out != NULL};
  bool kept = wf_ctx_recorder(c).record != NULL;
  for (int64_t r = 0; r < rows->n && kept; r++) a.marks += marks_of(rows->row[r].len);
  wf_status s = wf_state_given("selective_scan", state, rows);
  wf_tensor *out[WF_MAX_OUT];
  if (s == WF_OK)
    wf_op_apply_rows(c, rows, &wf_op_selective_scan, FORWARD_INS,
                     (wf_tensor *[]){in->x, in->dt, in->A, in->B, in->C, in->D, state, in->init, rows->table},
                     &a, out);
  else
    out[Y] = out[STATE_OUT] = wf_poison(c, s);
  if (state_out) *state_out = out[STATE_OUT];
  return out[Y];
}

#endif
