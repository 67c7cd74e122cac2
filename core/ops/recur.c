/* recur: gated recurrences token by token, forwards; driver and threads in recur_impl.h, gradient in
 * recur_grad.c. With a = R h_{t-1} + b, sigma the logistic function and . elementwise:
 *
 *   LSTM   i, f, o = sigma(x + a), g = tanh(x_g + a_g);  c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)
 *          (Hochreiter & Schmidhuber 1997; Gers et al. 2000; gates in the order i f g o)
 *   GRU    r, z = sigma(x + a), n = tanh(x_n + r a_n);  h_t = (1 - z) n + z h_{t-1}
 *          (Cho et al. 2014; the reset gate after the product; gates in the order r z n)
 *   sLSTM  l = m_{t-1} + log sigma(x_f + a_f);  m_t = max(i, l), but i where n_{t-1} = 0, i = x_i + a_i;
 *          I = min(e^{i - m_t}, 1), F = min(e^{l - m_t}, 1);  c_t = F c_{t-1} + I tanh(x_z + a_z),
 *          n_t = F n_{t-1} + I,  h_t = sigma(x_o + a_o) c_t / n_t  (Beck et al. 2024; order i f z o; mixers
 * 7)
 *
 * Masks, both optional: one for each row multiplies h where R reads it (Gal & Ghahramani 2016), one for each
 * token multiplies the candidate g or n (Semeniuta et al. 2016).
 *
 * The floor of a token is 2 gates D multiplications and additions a channel at the rate of a small product
 * from cache, and 4 to 6 exponentials. What a step saves for the gradient takes the place of x, which the
 * gradient does not read.
 */
#include "core/ops/ops_impl.h"
#include "core/ops/recur_impl.h"

#ifdef WF_KERNEL_PASS

/* ---- cells: n channels of one row, head and token ---- */

typedef struct recur_step {
  int64_t n, stride; /* between what is saved */
  const real *x[RECUR_GATES], *a[RECUR_GATES], *mask;
  real *s[RECUR_STATES], *save;
} recur_step;

static inline real sigmoid(real x) {
  return 1 / (1 + tile_exp(-x));
}

static void lstm(const recur_step *p) {
  const real *xi = p->x[0], *xf = p->x[1], *xg = p->x[2], *xo = p->x[3], *mask = p->mask;
  const real *ai = p->a[0], *af = p->a[1], *ag = p->a[2], *ao = p->a[3];
  real *h = p->s[0], *c = p->s[1];
  real *si = p->save, *sf = si + p->stride, *sg = sf + p->stride, *so = sg + p->stride, *sc = so + p->stride;
  WF_PRAGMA(omp simd)
  for (int64_t j = 0; j < p->n; j++) {
    real i = sigmoid(xi[j] + ai[j]), f = sigmoid(xf[j] + af[j]), o = sigmoid(xo[j] + ao[j]);
    real g = r_tanh(xg[j] + ag[j]), now = f * c[j] + i * g * mask[j];
    si[j] = i, sf[j] = f, sg[j] = g, so[j] = o;
    sc[j] = c[j] = now;
    h[j] = o * r_tanh(now);
  }
}

static void gru(const recur_step *p) {
  const real *xr = p->x[0], *xz = p->x[1], *xn = p->x[2], *ar = p->a[0], *az = p->a[1], *an = p->a[2];
  const real *mask = p->mask;
  real *h = p->s[0], *sr = p->save, *sz = sr + p->stride, *sn = sz + p->stride, *sa = sn + p->stride;
  WF_PRAGMA(omp simd)
  for (int64_t j = 0; j < p->n; j++) {
    real r = sigmoid(xr[j] + ar[j]), z = sigmoid(xz[j] + az[j]), a = an[j], n = r_tanh(xn[j] + r * a);
    sr[j] = r, sz[j] = z, sn[j] = n, sa[j] = a;
    h[j] = (1 - z) * n * mask[j] + z * h[j];
  }
}

static void slstm(const recur_step *p) {
  const real *xi = p->x[0], *xf = p->x[1], *xz = p->x[2], *xo = p->x[3];
  const real *ai = p->a[0], *af = p->a[1], *az = p->a[2], *ao = p->a[3];
  real *h = p->s[0], *c = p->s[1], *n = p->s[2], *m = p->s[3];
  real *si = p->save, *sf = si + p->stride, *sz = sf + p->stride, *so = sz + p->stride;
  real *sn = so + p->stride, *sc = sn + p->stride, *ss = sc + p->stride;
  WF_PRAGMA(omp simd)
  for (int64_t j = 0; j < p->n; j++) {
    real i = xi[j] + ai[j], f = xf[j] + af[j], z = r_tanh(xz[j] + az[j]), o = sigmoid(xo[j] + ao[j]);
    real e = tile_exp(-r_abs(f)), less = f < 0 ? f : R(0.0);
    real l = m[j] + less - r_log1p(e), d = i - l, small = tile_exp(-r_abs(d)); /* one of I and F is 1 */
    real second = d < 0 ? R(1.0) : small, first = d < 0 ? small : R(1.0), most = d < 0 ? l : i;
    first = n[j] == 0 ? R(1.0) : first, most = n[j] == 0 ? i : most;
    real now = second * c[j] + first * z, sum = second * n[j] + first;
    si[j] = first, sf[j] = second, sz[j] = z, so[j] = o;
    sn[j] = (f > 0 ? e : R(1.0)) / (1 + e);
    sc[j] = c[j] = now;
    ss[j] = n[j] = sum;
    m[j] = most;
    h[j] = o * now / sum;
  }
}

static void (*const cells[])(const recur_step *p) = {
    [WF_RECUR_LSTM] = lstm, [WF_RECUR_GRU] = gru, [WF_RECUR_SLSTM] = slstm};

/* ---- the pass ---- */

enum { RECUR_FEW = 8 /* of fewer tokens the weights are read as they are */ };

typedef struct recur_forward {
  recur_gate x[RECUR_GATES];
  const real *packed; /* R by head, gate and panel [dim, panel]; NULL: too few tokens to pay for it */
  const real *bias;   /* [heads, gates, pad] */
  real *y, *saved;    /* saved: or NULL */
  real *s;            /* [states, rows, width] */
  real *h;            /* [2, rows, width]: h under its mask, as the step before and this one see it */
} recur_forward;

/* a [m, gates, pad] = R h + b for m rows' h and the channels of a slice. */
static void recur_product(const recur *r, const recur_forward *f, const recur_slice *s, int64_t m,
                          const real *h, real *a) {
  int64_t ld = r->gates * r->pad, c0 = s->p0 * PANEL,
          width = s->p1 * PANEL < r->pad ? s->p1 * PANEL - c0 : r->pad - c0;
  for (int64_t i = 0; i < m; i++)
    for (int g = 0; g < r->gates; g++)
      memcpy(a + i * ld + g * r->pad + c0, f->bias + s->h * ld + g * r->pad + c0, (size_t)width * sizeof *a);
  for (int g = 0; g < r->gates; g++) {
    int64_t block = s->h * r->gates + g;
    if (f->packed) {
      for (int64_t p = s->p0; p < s->p1; p++)
        tile_mm(m, recur_panel(r, p), r->dim, h, r->width, 1,
                f->packed + (block * r->pad + p * PANEL) * r->dim, recur_panel(r, p),
                a + g * r->pad + p * PANEL, ld, true);
    } else {
      for (int64_t c = s->c0; c < s->c1; c++)
        for (int64_t i = 0; i < m; i++)
          a[i * ld + g * r->pad + c] +=
              tile_dot(r->dim, r->r + (block * r->dim + c) * r->dim, h + i * r->width);
    }
  }
}

static void recur_tokens(const recur *r, const void *arg, const recur_part *part, char *work) {
  const recur_forward *f = arg;
  int64_t base = recur_group(r, part->group), m = recur_group(r, part->group + 1) - base;
  int64_t longest = m ? r->item[base].row->len : 0, ld = r->gates * r->pad;
  real *a = take(&work, m * ld), *scratch = take(&work, r->saved * r->pad);
  for (int64_t t = 0; t < longest; t++) {
    while (r->item[base + m - 1].row->len <= t) m--;
    const real *seen = f->h + ((t & 1) * r->rows + base) * r->width;
    real *next = f->h + (((t + 1) & 1) * r->rows + base) * r->width;
    RECUR_EACH_HEAD(h, r, part) {
      recur_slice s = recur_slice_of(r, part, h);
      recur_product(r, f, &s, m, seen + h * r->dim, a);
      for (int64_t i = 0; i < m; i++) {
        int64_t token = r->item[base + i].row->begin + t, at = h * r->dim + s.c0;
        recur_step p = {.n = s.c1 - s.c0, .mask = recur_c_mask(r, token) + at};
        for (int g = 0; g < r->gates; g++) {
          p.x[g] = f->x[g].p + token * f->x[g].token + h * f->x[g].head + s.c0;
          p.a[g] = a + i * ld + g * r->pad + s.c0;
        }
        for (int k = 0; k < r->states; k++) p.s[k] = f->s + (k * r->rows + base + i) * r->width + at;
        p.save = f->saved ? f->saved + token * r->saved * r->width + at : scratch;
        p.stride = f->saved ? r->width : r->pad;
        cells[r->cell](&p);
        bool more = t + 1 < r->item[base + i].row->len;
        for (int g = 0; g < r->gates && more; g++) RECUR_ASK(p.x[g] + f->x[g].token, p.n, 0);
        for (int k = 0; k < r->saved && f->saved && more; k++)
          RECUR_ASK(p.save + (r->saved + k) * r->width, p.n, 1);
        const real *mask = recur_h_mask(r, base + i) + at;
        real *y = f->y + token * r->width + at, *to = next + i * r->width + at;
        for (int64_t c = 0; c < p.n; c++) {
          y[c] = p.s[0][c];
          to[c] = p.s[0][c] * mask[c];
        }
      }
    }
    recur_meet(r);
  }
}

static void recur_pack(const recur *a, real *to) {
  int64_t blocks = a->heads * a->gates;
  WF_PARALLEL_FOR(b0, b1, blocks * a->panels, a->dim * PANEL) {
    for (int64_t b = b0; b < b1; b++) {
      int64_t block = b / a->panels, p = b % a->panels, wide = recur_panel(a, p);
      int64_t have = a->dim - p * PANEL < wide ? a->dim - p * PANEL : wide;
      tile_transpose(have, a->dim, a->r + (block * a->dim + p * PANEL) * a->dim, a->dim,
                     to + (block * a->pad + p * PANEL) * a->dim, wide, wide);
    }
  }
}

/* Work space that all threads see, and what each has. */
typedef struct recur_space {
  recur_item *item, *sorted;
  real *packed, *bias, *ones, *s, *h;
  char *end;
} recur_space;

static void carve(const recur *a, char *at, recur_space *w) {
  int64_t item = (int64_t)(sizeof(recur_item) / sizeof(real));
  w->item = (recur_item *)(void *)take(&at, a->rows * item);
  w->sorted = (recur_item *)(void *)take(&at, a->rows * item);
  w->packed = a->n < RECUR_FEW ? NULL : take(&at, a->heads * a->gates * a->dim * a->pad);
  w->bias = take(&at, a->heads * a->gates * a->pad);
  w->ones = take(&at, a->width);
  w->s = take(&at, a->states * a->rows * a->width);
  w->h = take(&at, 2 * a->rows * a->width);
  w->end = at;
}

WF_KERNEL(recur) {
  recur a;
  WF_TRY(recur_read(call, &a));
  const recur_attr *at = call->attr;
  recur_forward f = {.y = wf_data(call->out[RECUR_OUT_Y])};
  if (at->saves) f.saved = wf_data(call->out[RECUR_OUT_SAVED]);
  for (int g = 0; g < a.gates; g++)
    f.x[g] = recur_gate_at(call->in[RECUR_X + (at->parts > 1 ? g : 0)], g, false);
  real *left = at->leaves ? wf_data(call->out[RECUR_OUT_STATE]) : NULL;
  if (left) wf_keep_lanes(a.row, a.rows, a.lanes, a.states * a.width, a.state, left, false);
  if (a.n == 0) return WF_OK;

  recur_plan(&a, 1);
  recur_space w;
  carve(&a, (char *)&a, &w);
  wf_device *dev = wf_ctx_device(call->ctx);
  size_t shared = (size_t)(w.end - (char *)&a);
  size_t each = (size_t)(a.rows * a.gates * a.pad + a.saved * a.pad + 2 * TAKE_SLACK) * sizeof(real);
  size_t bytes = shared + each * (size_t)a.threads;
  void *work;
  WF_TRY(wf_device_alloc(dev, "recurrence", bytes, &work));
  carve(&a, work, &w);
  recur_deal(&a, w.item, w.sorted);
  for (int64_t i = 0; i < a.width; i++) w.ones[i] = 1;
  const real *b = call->in[RECUR_B] ? wf_data(call->in[RECUR_B]) : NULL;
  memset(w.bias, 0, (size_t)(a.heads * a.gates * a.pad) * sizeof(real));
  for (int64_t h = 0; h < a.heads && b; h++)
    for (int g = 0; g < a.gates; g++)
      memcpy(w.bias + (h * a.gates + g) * a.pad, b + (g * a.heads + h) * a.dim, (size_t)a.dim * sizeof(real));
  if (w.packed) recur_pack(&a, w.packed);
  a.ones = w.ones;
  f.packed = w.packed, f.bias = w.bias, f.s = w.s, f.h = w.h;
  recur_enter(&a, w.s);
  for (int64_t i = 0; i < a.rows; i++)
    for (int64_t c = 0; c < a.width; c++)
      w.h[i * a.width + c] = w.s[i * a.width + c] * recur_h_mask(&a, i)[c];
  recur_run(&a, recur_tokens, &f, (char *)work + shared, each);
  for (int64_t i = 0; i < a.rows && left; i++)
    for (int k = 0; k < a.states && wf_row_leaves(a.item[i].row); k++)
      memcpy(left + (a.item[i].row->lane * a.states + k) * a.width, w.s + (k * a.rows + i) * a.width,
             (size_t)a.width * sizeof(real));
  wf_device_free(dev, "recurrence", work, bytes);
  return WF_OK;
}

#else

WF_CPU(recur)

static wf_status shape_is(const wf_call *call, int i, const char *what, int ndim, const int64_t *shape) {
  const wf_tensor *t = call->in[i];
  char have[96], want[96];
  if (!t) return WF_OK;
  bool fits = t->ndim == ndim;
  for (int d = 0; d < ndim && fits; d++) fits = t->shape[d] == shape[d];
  WF_SHAPE_CHECK(fits, "recur: %s is %s; %s expected", what, wf_shape_text(t, have),
                 wf_dims_text(ndim, shape, want));
  return WF_OK;
}

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  const recur_attr *at = call->attr;
  const wf_tensor *x = call->in[RECUR_X], *r = call->in[RECUR_R], *table = call->in[RECUR_TABLE];
  int gates = wf_recur_gates(at->cell);
  char t[2][96];
  WF_TRY(wf_want_real(call, (1u << RECUR_TABLE) - 1));
  WF_SHAPE_CHECK(r->ndim == 4 && r->shape[1] == gates && r->shape[2] == r->shape[3] && r->shape[2] > 0,
                 "recur: recurrent weights %s; [heads, %d, D, D] expected", wf_shape_text(r, t[0]), gates);
  int64_t n = x->shape[0], H = r->shape[0], D = r->shape[2], rows = table->shape[0],
          states = wf_recur_states(at->cell);
  WF_SHAPE_CHECK(x->ndim > 0 && H * D * gates <= INT32_MAX, "recur: x %s for weights %s",
                 wf_shape_text(x, t[0]), wf_shape_text(r, t[1]));
  if (at->parts == 1) WF_TRY(shape_is(call, RECUR_X, "x", WF_SHAPE(n, gates, H, D)));
  for (int g = 0; g < gates && at->parts > 1; g++)
    WF_TRY(shape_is(call, RECUR_X + g, "x", WF_SHAPE(n, H, D)));
  WF_TRY(shape_is(call, RECUR_B, "the bias", WF_SHAPE(gates, H, D)));
  WF_TRY(shape_is(call, RECUR_STATE, "the state", WF_SHAPE(at->lanes, states, H, D)));
  WF_TRY(shape_is(call, RECUR_INIT, "the initial state", WF_SHAPE(states, H, D)));
  WF_TRY(shape_is(call, RECUR_H_MASK, "the mask of h", WF_SHAPE(rows, H, D)));
  WF_TRY(shape_is(call, RECUR_C_MASK, "the mask of the candidate", WF_SHAPE(n, H, D)));
  WF_SHAPE_CHECK(table->ndim == 2 && table->shape[1] == WF_ROW_COLS && table->dtype == WF_I64,
                 "recur: the table of rows is %s", wf_shape_text(table, t[0]));
  wf_desc_set(&out[RECUR_OUT_Y], r->dtype, WF_SHAPE(n, H, D));
  wf_desc_set(&out[RECUR_OUT_SAVED], r->dtype, WF_SHAPE(at->saves ? n : 0, recur_saved(at->cell), H, D));
  wf_desc_set(&out[RECUR_OUT_STATE], r->dtype, WF_SHAPE(at->lanes, states, H, D));
  *n_out = at->leaves ? 3 : 2;
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  recur_attr a = *(const recur_attr *)g->attr;
  wf_tensor *in[RECUR_INS] = {NULL};
  for (int i = RECUR_R; i <= RECUR_C_MASK; i++) in[i] = g->in[i];
  in[RECUR_Y] = g->out[RECUR_OUT_Y];
  in[RECUR_SAVED] = g->out[RECUR_OUT_SAVED];
  in[RECUR_DY] = g->dout[RECUR_OUT_Y];
  in[RECUR_DSTATE] = a.leaves ? g->dout[RECUR_OUT_STATE] : NULL;
  return wf_vjp_wanted(g, &wf_op_recur_grad, RECUR_INS, in, &a, &a.want, RECUR_WANTS);
}

static void cost(const wf_call *call, double *flops, double *bytes) {
  const recur_attr *at = call->attr;
  const wf_tensor *r = call->in[RECUR_R], *y = call->out[RECUR_OUT_Y];
  double n = (double)y->shape[0], each = (double)(y->shape[1] * y->shape[2]);
  *flops = 2 * n * (double)wf_numel(r);
  *bytes = (n * each * (1 + wf_recur_gates(at->cell) + (at->saves ? recur_saved(at->cell) : 0)) +
            (double)wf_numel(r)) *
           (double)wf_dtype_size(r->dtype);
}

/* Rows that take and leave lanes in every way, one x or one for each gate (strided), with and without bias,
 * masks and initial state. The state of an sLSTM has n > 0, and its outputs are compared, not differentiated:
 * c, n and m have a scale in common that is a constant to the gradient; tests/core/test_recur.c has them. */
wf_status wf_recur_sample(wf_sample *s) {
  static const int32_t kinds[] = {WF_RECUR_LSTM, WF_RECUR_GRU, WF_RECUR_SLSTM,
                                  WF_RECUR_LSTM, WF_RECUR_GRU, WF_RECUR_SLSTM};
  int32_t cell = kinds[s->index];
  bool none = s->index == 4, fresh = s->index == 3 || s->index == 5, slstm = cell == WF_RECUR_SLSTM;
  int64_t n = none ? 0 : 8, rows = none ? 0 : 3, H = 2, D = 3, G = wf_recur_gates(cell),
          S = wf_recur_states(cell);
  recur_attr a = {.lanes = 3,
                  .cell = cell,
                  .parts = s->index % 2 ? (int32_t)G : 1,
                  .saves = 1,
                  .leaves = !fresh && !slstm};
  if (a.parts == 1)
    s->in[RECUR_X] = wf_sample_real(s, WF_SHAPE(n, G, H, D));
  else
    for (int64_t g = 0; g < G; g++) { /* head by head, as a batch of products leaves them */
      wf_tensor *x = wf_sample_real(s, WF_SHAPE(H, n, D));
      s->in[RECUR_X + g] = wf_view_raw(x, 3, (int64_t[]){n, H, D}, (int64_t[]){D, n * D, 1}, 0);
    }
  s->in[RECUR_R] = wf_sample_real(s, WF_SHAPE(H, G, D, D));
  s->in[RECUR_B] = s->index == 3 ? NULL : wf_sample_real(s, WF_SHAPE(G, H, D));
  s->in[RECUR_STATE] = fresh ? NULL : wf_sample_range(s, WF_SHAPE(a.lanes, S, H, D), 0.5, 1.5);
  s->in[RECUR_INIT] = s->index < 2 ? wf_sample_real(s, WF_SHAPE(S, H, D)) : NULL;
  s->in[RECUR_TABLE] = wf_sample_rows(s, fresh, none);
  s->in[RECUR_H_MASK] = s->index == 0 ? wf_sample_range(s, WF_SHAPE(rows, H, D), 0, 2) : NULL;
  s->in[RECUR_C_MASK] = s->index < 2 ? wf_sample_range(s, WF_SHAPE(n, H, D), 0, 2) : NULL;
  s->n_in = RECUR_C_MASK + 1;
  if (slstm) s->wrt = (1u << RECUR_STATE) - 1;
  *(recur_attr *)(void *)s->attr = a;
  return WF_OK;
}

enum {
  OPTIONAL = 0xe | 1 << RECUR_B | 1 << RECUR_STATE | 1 << RECUR_INIT | 1 << RECUR_H_MASK | 1 << RECUR_C_MASK
};

static const wf_carry carry = {
    .state = RECUR_STATE,
    .init = RECUR_INIT,
    .table = RECUR_TABLE,
    .left = RECUR_OUT_STATE,
    .in = {WF_CARRY_HEADS, WF_CARRY_HEADS, WF_CARRY_HEADS, WF_CARRY_HEADS, 0, WF_CARRY_HEADS, WF_CARRY_HEADS,
           WF_CARRY_HEADS, -1, WF_CARRY_HEADS, WF_CARRY_HEADS},
    .out = {WF_CARRY_HEADS, WF_CARRY_HEADS, WF_CARRY_HEADS},
    .work = 2800,
};

const wf_op wf_op_recur = {
    .name = "recur",
    .min_in = RECUR_C_MASK + 1,
    .max_in = RECUR_C_MASK + 1,
    .n_out = -1,
    .attr_size = sizeof(recur_attr),
    .optional = OPTIONAL,
    .rowmajor = 0xf,
    .save_in = 1 << RECUR_R | 1 << RECUR_B | 1 << RECUR_STATE | 1 << RECUR_INIT | 1 << RECUR_TABLE |
               1 << RECUR_H_MASK | 1 << RECUR_C_MASK,
    .save_out = 1 << RECUR_OUT_Y | 1 << RECUR_OUT_SAVED,
    .vjp_adds = (1 << RECUR_WANTS) - 1,
    .nograd_in = 1 << RECUR_TABLE | 1 << RECUR_H_MASK | 1 << RECUR_C_MASK,
    .nograd_out = 1 << RECUR_OUT_SAVED,
    .infer = infer,
    .vjp = vjp,
    .cpu = &recur_cpu,
    .carry = &carry,
    .cost = cost,
    .sample = wf_recur_sample,
    .n_samples = 6,
};

wf_tensor *wf_recur(wf_ctx *c, const wf_recur_in *in, wf_tensor *state, const wf_rows *rows,
                    wf_tensor **state_out) {
  recur_attr a = {.lanes = rows->n_lanes,
                  .cell = in->cell,
                  .parts = in->x[1] ? wf_recur_gates(in->cell) : 1,
                  .saves = wf_ctx_recorder(c).record != NULL,
                  .leaves = state_out != NULL};
  wf_status s = wf_state_given("recur", state, rows);
  if (s != WF_OK) {
    if (state_out) *state_out = wf_poison(c, s);
    return wf_poison(c, s);
  }
  wf_tensor *out[WF_MAX_OUT];
  wf_op_apply_rows(c, rows, &wf_op_recur, RECUR_C_MASK + 1,
                   (wf_tensor *[]){in->x[0], in->x[1], in->x[2], in->x[3], in->r, in->b, state, in->init,
                                   rows->table, in->h_mask, in->c_mask},
                   &a, out);
  if (state_out) *state_out = out[RECUR_OUT_STATE];
  return out[RECUR_OUT_Y];
}

#endif
