/* recur_grad: the gradient of gated recurrences (recur.c), from the last token to the first.
 *
 * The steps' saved gates give, with the gradient of the states after a token, that of a = R h + b and of x;
 * then dh_{t-1} = what passes beside R, and R^T da. Tokens go in blocks of about BLOCK over all rows, so that
 * da and h need not be held for all of them; behind each block dR += da^T h is one product a head, with a
 * column of ones behind h whose sums are db.
 *
 * With dh the gradient of h_t, the one from later tokens and that of y:
 *   LSTM   dc += dh o (1 - tanh^2 c);  do = dh tanh(c) o (1 - o),  df = dc c_{t-1} f (1 - f),
 *          di = dc g i (1 - i),  dg = dc i (1 - g^2);  dc *= f
 *   GRU    dz = dh (h_{t-1} - n) z (1 - z),  dn = dh (1 - z) (1 - n^2),  dr = dn a_n r (1 - r);
 *          da_n = dn r, dx_n = dn;  dh_{t-1} = dh z + R^T da
 *   sLSTM  m is a constant and min passes everything on: dc += dh o / n, dn -= dh h / n;  do = dh h (1 - o),
 *          di = I (dc z + dn),  df = F (1 - sigma(f)) (dc c_{t-1} + dn n_{t-1}),  dz = dc I (1 - z^2);
 *          dc *= F, dn *= F
 */
#include "core/ops/ops_impl.h"
#include "core/ops/recur_impl.h"

#ifdef WF_KERNEL_PASS
#  include "core/ops/blas_impl.h"

enum { BLOCK = 512 };

/* ---- cells: n channels of one row, head and token ---- */

typedef struct recur_back {
  int64_t n, stride;
  const real *save, *before[RECUR_STATES], *mask, *dy;
  real *ds[RECUR_STATES]; /* gradient of the states: after the step, then before it; of h what passes beside R
                           */
  real *da[RECUR_GATES], *dx; /* dx: of the GRU's candidate, the one x that has another gradient than its a */
} recur_back;

static void lstm(const recur_back *p) {
  const real *si = p->save, *sf = si + p->stride, *sg = sf + p->stride, *so = sg + p->stride,
             *sc = so + p->stride;
  const real *before = p->before[1], *mask = p->mask, *dy = p->dy;
  real *dh = p->ds[0], *dc = p->ds[1], *di = p->da[0], *df = p->da[1], *dg = p->da[2], *dout = p->da[3];
  WF_PRAGMA(omp simd)
  for (int64_t j = 0; j < p->n; j++) {
    real i = si[j], f = sf[j], g = sg[j], o = so[j], t = r_tanh(sc[j]), d = dy[j] + dh[j];
    real c = dc[j] + d * o * (1 - t * t);
    dout[j] = d * t * o * (1 - o);
    di[j] = c * g * mask[j] * i * (1 - i);
    df[j] = c * before[j] * f * (1 - f);
    dg[j] = c * i * mask[j] * (1 - g * g);
    dc[j] = c * f;
    dh[j] = 0;
  }
}

static void gru(const recur_back *p) {
  const real *sr = p->save, *sz = sr + p->stride, *sn = sz + p->stride, *sa = sn + p->stride;
  const real *before = p->before[0], *mask = p->mask, *dy = p->dy;
  real *dh = p->ds[0], *dr = p->da[0], *dz = p->da[1], *da = p->da[2], *dx = p->dx;
  WF_PRAGMA(omp simd)
  for (int64_t j = 0; j < p->n; j++) {
    real r = sr[j], z = sz[j], n = sn[j], d = dy[j] + dh[j], e = d * (1 - z) * mask[j] * (1 - n * n);
    dz[j] = d * (before[j] - n * mask[j]) * z * (1 - z);
    dr[j] = e * sa[j] * r * (1 - r);
    da[j] = e * r;
    dx[j] = e;
    dh[j] = d * z;
  }
}

static void slstm(const recur_back *p) {
  const real *si = p->save, *sf = si + p->stride, *sz = sf + p->stride, *so = sz + p->stride;
  const real *sn = so + p->stride, *sc = sn + p->stride, *ss = sc + p->stride;
  const real *c_before = p->before[1], *n_before = p->before[2], *dy = p->dy;
  real *dh = p->ds[0], *dc = p->ds[1], *dn = p->ds[2], *dm = p->ds[3];
  real *di = p->da[0], *df = p->da[1], *dz = p->da[2], *dout = p->da[3];
  WF_PRAGMA(omp simd)
  for (int64_t j = 0; j < p->n; j++) {
    real i = si[j], f = sf[j], z = sz[j], o = so[j], q = 1 / ss[j], h = o * sc[j] * q, d = dy[j] + dh[j];
    real c = dc[j] + d * o * q, n = dn[j] - d * h * q;
    dout[j] = d * h * (1 - o);
    di[j] = i * (c * z + n);
    df[j] = f * sn[j] * (c * c_before[j] + n * n_before[j]);
    dz[j] = c * i * (1 - z * z);
    dc[j] = c * f;
    dn[j] = n * f;
    dh[j] = dm[j] = 0;
  }
}

static void (*const cells[])(const recur_back *p) = {
    [WF_RECUR_LSTM] = lstm, [WF_RECUR_GRU] = gru, [WF_RECUR_SLSTM] = slstm};

/* ---- the pass ---- */

typedef struct recur_backward {
  recur_gate dx[RECUR_GATES]; /* p NULL: not wanted */
  const real *packed;         /* R by head and panel [gates D, panel] */
  const real *y, *saved, *first, *zero, *dy;
  int64_t dy_token, dy_head;
  real *ds;           /* [states, rows, width] */
  real *da, *h;       /* a block's tokens, the last first: [tokens, heads, gates D]; [tokens, heads, D + 1] */
  int64_t begin, end; /* of the block, in each row */
} recur_backward;

static int64_t tokens_between(const recur *r, int64_t i0, int64_t i1, int64_t begin, int64_t end) {
  int64_t sum = 0;
  for (int64_t i = i0; i < i1; i++) {
    int64_t len = r->item[i].row->len, last = len < end ? len : end;
    if (last > begin) sum += last - begin;
  }
  return sum;
}

/* One row's token: the gradients of a and x, and h as R saw it. `at`: its place in the block. */
static void one_step(const recur *r, const recur_backward *b, const recur_slice *s, int64_t item, int64_t t,
                     int64_t at, real *scratch) {
  int64_t token = r->item[item].row->begin + t, here = s->h * r->dim + s->c0, ld = r->gates * r->dim;
  recur_back p = {
      .n = s->c1 - s->c0, .stride = r->width, .mask = recur_c_mask(r, token) + here, .dx = scratch};
  p.save = b->saved + token * r->saved * r->width + here;
  p.dy = b->dy ? b->dy + token * b->dy_token + s->h * b->dy_head + s->c0 : b->zero;
  for (int k = 0; k < r->states; k++) {
    p.ds[k] = b->ds + (k * r->rows + item) * r->width + here;
    p.before[k] = t == 0   ? b->first + (k * r->rows + item) * r->width + here
                  : k == 0 ? b->y + (token - 1) * r->width + here
                           : p.save - (r->saved - recur_saved_state(r->cell, k)) * r->width;
  }
  for (int g = 0; g < r->gates; g++) p.da[g] = b->da + (at * r->heads + s->h) * ld + g * r->dim + s->c0;
  cells[r->cell](&p);
  for (int k = 0; k < r->saved && t > 1; k++) RECUR_ASK(p.save + (k - 2 * r->saved) * r->width, p.n, 0);
  if (b->dy && t > 1) RECUR_ASK(p.dy - 2 * b->dy_token, p.n, 0);
  for (int g = 0; g < r->gates; g++) {
    if (!b->dx[g].p) continue;
    real *to = b->dx[g].p + token * b->dx[g].token + s->h * b->dx[g].head + s->c0;
    const real *from = r->cell == WF_RECUR_GRU && g == 2 ? scratch : p.da[g];
    if (b->dx[g].add)
      for (int64_t c = 0; c < p.n; c++) to[c] += from[c];
    else
      memcpy(to, from, (size_t)p.n * sizeof *to);
  }
  real *h = b->h + (at * r->heads + s->h) * (r->dim + 1);
  const real *mask = recur_h_mask(r, item) + here;
  for (int64_t c = 0; c < p.n; c++) h[s->c0 + c] = p.before[0][c] * mask[c];
  if (s->c0 == 0) h[r->dim] = 1;
}

/* dh += mask R^T da, for the channels of a slice. */
static void pass_back(const recur *r, const recur_backward *b, const recur_slice *s, int64_t base, int64_t m,
                      int64_t at, real *sum) {
  int64_t ld = r->gates * r->dim;
  const real *da = b->da + (at * r->heads + s->h) * ld;
  for (int64_t p = s->p0; p < s->p1; p++)
    tile_mm(m, recur_panel(r, p), ld, da, r->heads * ld, 1, b->packed + (s->h * r->pad + p * PANEL) * ld,
            recur_panel(r, p), sum + p * PANEL, r->pad, false);
  for (int64_t i = 0; i < m; i++) {
    real *dh = b->ds + (base + i) * r->width + s->h * r->dim;
    const real *mask = recur_h_mask(r, base + i) + s->h * r->dim, *from = sum + i * r->pad;
    for (int64_t c = s->c0; c < s->c1; c++) dh[c] += mask[c] * from[c];
  }
}

static void block_tokens(const recur *r, const void *arg, const recur_part *part, char *work) {
  const recur_backward *b = arg;
  int64_t base = recur_group(r, part->group), rows = recur_group(r, part->group + 1) - base, m = 0;
  int64_t at = tokens_between(r, 0, base, b->begin, b->end);
  real *sum = take(&work, rows * r->pad), *scratch = take(&work, r->dim);
  for (int64_t t = b->end - 1; t >= b->begin; t--) {
    while (m < rows && r->item[base + m].row->len > t) m++;
    RECUR_EACH_HEAD(h, r, part) {
      recur_slice s = recur_slice_of(r, part, h);
      for (int64_t i = 0; i < m; i++) one_step(r, b, &s, base + i, t, at + i, scratch);
    }
    recur_meet(r);
    RECUR_EACH_HEAD(h, r, part) {
      recur_slice s = recur_slice_of(r, part, h);
      pass_back(r, b, &s, base, m, at, sum);
    }
    at += m;
  }
}

/* sum [heads, gates D, D + 1] += da^T h over the block's tokens. */
static wf_status block_weights(const recur *r, const recur_backward *b, int64_t tokens, real *sum) {
  int64_t ld = r->gates * r->dim, wide = r->dim + 1;
  wf_status status = WF_OK;
  int threads = r->threads < r->heads ? r->threads : (int)r->heads;
  if (threads <= 1) { /* BLAS divides the product itself */
    for (int64_t h = 0; h < r->heads; h++)
      WF_TRY(wf_gemm(true, false, ld, wide, tokens, b->da + h * ld, r->heads * ld, b->h + h * wide,
                     r->heads * wide, true, sum + h * ld * wide, wide));
    return WF_OK;
  }
  WF_PRAGMA(omp parallel for num_threads(threads) schedule(static, 1))
  for (int64_t h = 0; h < r->heads; h++) {
    wf_status s = wf_gemm(true, false, ld, wide, tokens, b->da + h * ld, r->heads * ld, b->h + h * wide,
                          r->heads * wide, true, sum + h * ld * wide, wide);
    if (s != WF_OK) {
      WF_PRAGMA(omp atomic write)
      status = s;
    }
  }
  return status;
}

static void pack(const recur *a, real *to) {
  int64_t ld = a->gates * a->dim;
  WF_PARALLEL_FOR(b0, b1, a->heads * a->panels, ld * PANEL) {
    for (int64_t b = b0; b < b1; b++) {
      int64_t h = b / a->panels, p = b % a->panels, wide = recur_panel(a, p);
      int64_t have = a->dim - p * PANEL < wide ? a->dim - p * PANEL : wide;
      tile_pack(ld, have, a->r + h * ld * a->dim + p * PANEL, a->dim, to + (h * a->pad + p * PANEL) * ld,
                wide);
    }
  }
}

/* Tokens t .. end-1 of the rows that have them, about BLOCK: *t; returns their number. `alive`: rows that
 * have the token behind, moved along; sorted: all rows, the longest first. */
static int64_t open_block(const recur *a, const recur_item *sorted, int64_t *alive, int64_t *t) {
  int64_t tokens = 0;
  while (*t > 0 && tokens < BLOCK) {
    --*t;
    while (*alive < a->rows && sorted[*alive].row->len > *t) ++*alive;
    tokens += *alive;
  }
  return tokens;
}

/* Work space that all threads see. */
typedef struct recur_space {
  recur_item *item, *sorted;
  real *packed, *ones, *zero, *first, *ds, *da, *h, *weights;
  char *end;
} recur_space;

static void carve(const recur *a, char *at, recur_space *w) {
  int64_t item = (int64_t)(sizeof(recur_item) / sizeof(real)), most = BLOCK + a->rows, ld = a->gates * a->dim;
  if (most > a->n) most = a->n;
  w->item = (recur_item *)(void *)take(&at, a->rows * item);
  w->sorted = (recur_item *)(void *)take(&at, a->rows * item);
  w->packed = take(&at, a->heads * ld * a->pad);
  w->ones = take(&at, a->width);
  w->zero = take(&at, a->width);
  w->first = take(&at, a->states * a->rows * a->width);
  w->ds = take(&at, a->states * a->rows * a->width);
  w->da = take(&at, most * a->heads * ld);
  w->h = take(&at, most * a->heads * (a->dim + 1));
  w->weights = take(&at, a->heads * ld * (a->dim + 1));
  w->end = at;
}

/* All tokens: leaves in w->ds the gradient of what rows start from, in w->weights those of R and b. */
static wf_status recur_back_all(recur *a, const recur_attr *at, recur_backward *b, recur_space *w,
                                const real *dstate, char *mine, size_t each) {
  recur_deal(a, w->item, w->sorted);
  for (int64_t i = 0; i < a->width; i++) w->ones[i] = 1;
  memset(w->zero, 0, (size_t)a->width * sizeof(real));
  memset(w->weights, 0, (size_t)(a->width * a->gates * (a->dim + 1)) * sizeof(real));
  memset(w->ds, 0, (size_t)(a->states * a->rows * a->width) * sizeof(real));
  pack(a, w->packed);
  a->ones = w->ones;
  recur_enter(a, w->first);
  for (int64_t i = 0; i < a->rows && dstate; i++)
    for (int k = 0; k < a->states && wf_row_leaves(a->item[i].row); k++)
      memcpy(w->ds + (k * a->rows + i) * a->width, dstate + (a->item[i].row->lane * a->states + k) * a->width,
             (size_t)a->width * sizeof(real));
  b->packed = w->packed, b->first = w->first, b->zero = w->zero, b->ds = w->ds, b->da = w->da, b->h = w->h;
  int64_t alive = 0;
  for (int64_t t = a->longest; t > 0;) {
    b->end = t;
    int64_t tokens = open_block(a, w->sorted, &alive, &t);
    b->begin = t;
    recur_run(a, block_tokens, b, mine, each);
    if (at->want & (1 << RECUR_R | 1 << RECUR_B)) WF_TRY(block_weights(a, b, tokens, w->weights));
  }
  return WF_OK;
}

/* Where element [i, j, k, 0] of an output lies. */
static inline real *line(const wf_tensor *t, int64_t i, int64_t j, int64_t k) {
  real *p = (real *)wf_data(t) + i * t->stride[0] + j * t->stride[1];
  return t->ndim > 3 ? p + k * t->stride[2] : p;
}
static inline void put(real *to, int64_t n, const real *from, int64_t step, bool add) {
  for (int64_t c = 0; c < n; c++) to[c] = from[c * step] + (add ? to[c] : 0);
}

static void store_weights(const recur *a, const wf_tensor *dr, bool add_r, const wf_tensor *db, bool add_b,
                          const real *sum) {
  int64_t wide = a->dim + 1;
  for (int64_t h = 0; h < a->heads; h++)
    for (int64_t g = 0; g < a->gates; g++) {
      const real *from = sum + (h * a->gates + g) * a->dim * wide;
      for (int64_t o = 0; o < a->dim && dr; o++) put(line(dr, h, g, o), a->dim, from + o * wide, 1, add_r);
      if (db) put(line(db, g, h, 0), a->dim, from + a->dim, wide, add_b);
    }
}

/* Lanes that no row leaves hand the gradient `after` of their state back. */
static void store_kept(const recur *a, const wf_tensor *dstate, bool add, const real *after) {
  for (int64_t l = 0; l < a->lanes; l++) {
    bool keep = after && !wf_lane_left(a->row, a->rows, l);
    for (int64_t k = 0; k < a->states; k++)
      for (int64_t h = 0; h < a->heads; h++) {
        real *to = line(dstate, l, k, h);
        if (!add) memset(to, 0, (size_t)a->dim * sizeof *to);
        if (keep) put(to, a->dim, after + ((l * a->states + k) * a->heads + h) * a->dim, 1, true);
      }
  }
}

/* Each row adds the gradient of what it started from. */
static void store_started(const recur *a, const wf_tensor *dstate, const wf_tensor *dinit, const real *ds) {
  for (int64_t i = 0; i < a->rows; i++) {
    const wf_row *row = a->item[i].row;
    bool takes = wf_row_takes(row);
    for (int64_t k = 0; k < a->states && (takes ? dstate : dinit); k++)
      for (int64_t h = 0; h < a->heads; h++)
        put(takes ? line(dstate, row->lane, k, h) : line(dinit, k, h, 0), a->dim,
            ds + (k * a->rows + i) * a->width + h * a->dim, 1, true);
  }
}

WF_KERNEL(recur_grad) {
  recur a;
  WF_TRY(recur_read(call, &a));
  const recur_attr *at = call->attr;
  const wf_tensor *dy = call->in[RECUR_DY], *ds = call->in[RECUR_DSTATE], *out[RECUR_WANTS] = {NULL};
  bool add[RECUR_WANTS] = {false};
  for (int i = 0, n = 0; i < RECUR_WANTS; i++)
    if (at->want >> i & 1) {
      add[i] = call->add >> n & 1;
      out[i] = call->out[n++];
    }
  const real *dstate = ds ? wf_data(ds) : NULL;
  recur_backward b = {.y = wf_data(call->in[RECUR_Y]), .saved = wf_data(call->in[RECUR_SAVED])};
  if (dy) b.dy = wf_data(dy), b.dy_token = dy->stride[0], b.dy_head = dy->stride[1];
  for (int g = 0; g < a.gates; g++) {
    int x = RECUR_X + (at->parts > 1 ? g : 0);
    if (out[x]) b.dx[g] = recur_gate_at(out[x], g, add[x]);
  }
  const wf_tensor *dinit = out[RECUR_INIT];
  if (out[RECUR_STATE]) store_kept(&a, out[RECUR_STATE], add[RECUR_STATE], dstate);
  for (int64_t k = 0; k < a.states && dinit && !add[RECUR_INIT]; k++)
    for (int64_t h = 0; h < a.heads; h++) memset(line(dinit, k, h, 0), 0, (size_t)a.dim * sizeof(real));

  recur_plan(&a, 3);
  recur_space w;
  carve(&a, (char *)&a, &w);
  wf_device *dev = wf_ctx_device(call->ctx);
  size_t shared = (size_t)(w.end - (char *)&a);
  size_t each = (size_t)(a.rows * a.pad + a.dim + 2 * TAKE_SLACK) * sizeof(real);
  size_t bytes = shared + each * (size_t)a.threads;
  void *work;
  WF_TRY(wf_device_alloc(dev, "recurrence", bytes, &work));
  carve(&a, work, &w);
  wf_status s = recur_back_all(&a, at, &b, &w, dstate, (char *)work + shared, each);
  store_weights(&a, out[RECUR_R], add[RECUR_R], out[RECUR_B], add[RECUR_B], w.weights);
  store_started(&a, out[RECUR_STATE], dinit, w.ds);
  wf_device_free(dev, "recurrence", work, bytes);
  return s;
}

#else

WF_CPU(recur_grad)

/* The gradients wanted have the shapes of their inputs, x that of a step's gates. */
static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  const recur_attr *at = call->attr;
  const wf_tensor *r = call->in[RECUR_R], *saved = call->in[RECUR_SAVED];
  int64_t n = saved->shape[0], gates = r->shape[1], H = r->shape[0], D = r->shape[2];
  *n_out = 0;
  for (int i = 0; i < RECUR_WANTS; i++) {
    if (!(at->want >> i & 1)) continue;
    wf_desc *d = &out[(*n_out)++];
    if (i < RECUR_R && at->parts == 1)
      wf_desc_set(d, r->dtype, WF_SHAPE(n, gates, H, D));
    else if (i < RECUR_R)
      wf_desc_set(d, r->dtype, WF_SHAPE(n, H, D));
    else if (call->in[i])
      wf_desc_like(d, call->in[i]);
    else
      return WF_FAIL(WF_ESHAPE, "recur_grad: no input for output %d", i);
  }
  return WF_OK;
}

static void cost(const wf_call *call, double *flops, double *bytes) {
  const recur_attr *at = call->attr;
  const wf_tensor *r = call->in[RECUR_R], *saved = call->in[RECUR_SAVED];
  double gates = wf_recur_gates(at->cell), kept = recur_saved(at->cell);
  *flops = 4 * (double)saved->shape[0] * (double)wf_numel(r);
  *bytes = ((double)wf_numel(saved) * (kept + gates + 2) / kept + 2 * (double)wf_numel(r)) *
           (double)wf_dtype_size(r->dtype);
}

/* What the forward left, for the same inputs. */
static wf_status sample(wf_sample *s) {
  WF_TRY(wf_recur_sample(s));
  recur_attr *a = (recur_attr *)(void *)s->attr;
  wf_tensor *out[WF_MAX_OUT];
  wf_op_apply(s->ctx, &wf_op_recur, RECUR_C_MASK + 1, s->in, a, out);
  if (wf_is_poison(out[0])) return wf_ctx_failure(s->ctx);
  a->want = (1 << a->parts) - 1;
  for (int i = RECUR_R; i < RECUR_WANTS; i++) a->want |= s->in[i] ? 1 << i : 0;
  for (int i = 0; i < a->parts; i++) s->in[RECUR_X + i] = NULL;
  s->in[RECUR_Y] = out[RECUR_OUT_Y];
  s->in[RECUR_SAVED] = out[RECUR_OUT_SAVED];
  s->in[RECUR_DY] = wf_sample_real(s, 3, out[RECUR_OUT_Y]->shape);
  s->in[RECUR_DSTATE] = a->leaves ? wf_sample_real(s, 4, out[RECUR_OUT_STATE]->shape) : NULL;
  s->n_in = RECUR_INS;
  return WF_OK;
}

enum { NEEDED = 1 << RECUR_R | 1 << RECUR_TABLE | 1 << RECUR_Y | 1 << RECUR_SAVED };

const wf_op wf_op_recur_grad = {
    .name = "recur_grad",
    .min_in = RECUR_INS,
    .max_in = RECUR_INS,
    .n_out = -1,
    .attr_size = sizeof(recur_attr),
    .optional = ((1 << RECUR_INS) - 1) & ~NEEDED,
    .rowmajor = 1 << RECUR_DY,
    .adds = 0xff,
    .rowmajor_out = 0xff,
    .infer = infer,
    WF_NONDIFF("gradient of recur; first order only"),
    .cpu = &recur_grad_cpu,
    .cost = cost,
    .sample = sample,
    .n_samples = 6,
};

#endif
