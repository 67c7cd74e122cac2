/* The gradient of attend: probabilities are formed again from q, k and the log-sum-exp, block by block, five
 * products each. With D_t = <do_t, o_t>:
 *     P = exp(x - LSE);  dP = dO V^T;  dS = P . (dP - D);  dV = P^T dO;  dQ = s dS K;  dK = s dS^T Q
 *     da_t = sum_j dS;  db_j = -sum_t dS;  dz = -sum_t e^{z - LSE_t} D_t
 * (a gradient of the log-sum-exp itself is taken from D_t), and for sigmoid dS = P . (1 - P) . dP; the soft
 * cap multiplies dS by 1 - tanh^2 before the products. o and LSE may be those over more keys than these: the
 * gradients are then the share of these.
 *
 * A task adds the key gradients of its row and key head, all query heads of the group, in its own work space
 * and then into the outputs, touching no key of another row: the outputs may be the gradient of a whole
 * cache. Rows that share keys (two pieces of one sequence) are one task's, in order.
 */
#include "core/ops/attend_impl.h"

#ifdef WF_KERNEL_PASS
#  include <stdlib.h>
#  include "core/memory.h"

enum { WANT_Q, WANT_K, WANT_V, WANT_A, WANT_B, WANT_SINK, WANTS };

/* An output: NULL data when not wanted. */
typedef struct grad_out {
  void *p;
  int64_t s, h; /* strides of tokens and heads */
  bool add;
} grad_out;

static inline real *real_at(const grad_out *o, int64_t t, int64_t h) {
  return (real *)o->p + t * o->s + h * o->h;
}
static inline double *term_at(const grad_out *o, int64_t t, int64_t h) {
  return (double *)o->p + t * o->s + h * o->h;
}

typedef struct grad_args {
  attend_args a;
  const real *o, *lse, *dout, *dlse; /* dlse: NULL where none arrived */
  int64_t dos, doh;
  grad_out out[WANTS]; /* those of the terms are double */
} grad_args;

/* What a task works in: see block_bytes of attend.c; dk, dv, db are sums over the task's query blocks. */
typedef struct grad_work {
  real *kt, *vt, *kr, *dk, *dv, *sink;
  real *q, *dout, *dq, *s, *ds, *th, *delta;
  double *bp, *db, *da;
} grad_work;

static size_t carve(const attend_args *g, char *base, grad_work *w) {
  char *at = base;
  int64_t blocked = attend_blocks(g->most_keys) * ATTEND_BK, keys = g->most_keys;
  w->kt = attend_take(&at, blocked * g->kdim);
  w->vt = attend_take(&at, blocked * g->vdim);
  w->kr = attend_take(&at, keys * g->kpad);
  w->bp = attend_take_terms(&at, g, keys);
  w->dk = attend_take(&at, keys * g->kpad);
  w->dv = attend_take(&at, keys * g->vpad);
  w->db = attend_take_terms(&at, g, keys);
  w->sink = attend_take(&at, g->group);
  w->q = attend_take(&at, ATTEND_BQ * g->kpad);
  w->dout = attend_take(&at, ATTEND_BQ * g->vpad);
  w->dq = attend_take(&at, ATTEND_BQ * g->kpad);
  w->s = attend_take(&at, ATTEND_BQ * ATTEND_BK);
  w->ds = attend_take(&at, ATTEND_BQ * ATTEND_BK);
  w->th = attend_take(&at, ATTEND_BK);
  w->delta = attend_take(&at, ATTEND_BQ);
  w->da = attend_take_bytes(&at, ATTEND_BQ * sizeof(double));
  return (size_t)(at - base);
}

/* Scores x and dP y of one query's visible keys become P and dS. */
static inline void grad_row(const attend_args *g, int64_t n, real *x, real *y, real lse, real delta) {
  if (g->sigmoid) {
    WF_PRAGMA(omp simd)
    for (int64_t j = 0; j < n; j++) {
      real p = 1 / (1 + tile_exp(-x[j]));
      x[j] = p;
      y[j] *= p * (1 - p);
    }
  } else {
    WF_PRAGMA(omp simd)
    for (int64_t j = 0; j < n; j++) {
      real p = tile_exp(x[j] - lse);
      x[j] = p;
      y[j] = p * (y[j] - delta);
    }
  }
}

/* The blocks of queries t0 .. t0+nq-1 of head h, the i-th of its group, against all their keys. */
static void query_block(const grad_args *ga, const attend_row *w, const grad_work *k, int64_t t0, int64_t nq,
                        int64_t h, int64_t i) {
  const attend_args *g = &ga->a;
  int64_t first = attend_query_at(g, w, t0), from = attend_lo(g, w, t0) / ATTEND_BK * ATTEND_BK;
  int64_t to = attend_hi(w, t0 + nq - 1);
  bool terms = g->b && (ga->out[WANT_A].p || ga->out[WANT_B].p);
  attend_scaled(g, nq, g->q + first * g->qs + h * g->qh, g->step * g->qs, k->q, g->kpad);
  tile_pack(nq, g->vdim, ga->dout + first * ga->dos + h * ga->doh, g->step * ga->dos, k->dout, g->vpad);
  memset(k->dq, 0, (size_t)(nq * g->kpad) * sizeof(real));
  for (int64_t t = 0; t < nq; t++) {
    int64_t at = attend_query_at(g, w, t0 + t) * g->heads + h;
    real dot = tile_dot(g->vdim, ga->o + at * g->vdim, k->dout + t * g->vpad);
    if (ga->dlse) dot -= ga->dlse[at];
    k->delta[t] = dot;
    k->da[t] = 0;
    if (g->sink && ga->lse[at] > -(real)INFINITY) k->sink[i] -= r_exp(g->sink[h] - ga->lse[at]) * dot;
  }
  for (int64_t j = from; j < to; j += ATTEND_BK) {
    int64_t nk = to - j < ATTEND_BK ? to - j : ATTEND_BK;
    tile_mm(nq, TILE_PAD(nk), g->kdim, k->q, g->kpad, 1, k->kt + j * g->kdim, ATTEND_BK, k->s, ATTEND_BK,
            false);
    tile_mm(nq, TILE_PAD(nk), g->vdim, k->dout, g->vpad, 1, k->vt + j * g->vdim, ATTEND_BK, k->ds, ATTEND_BK,
            false);
    for (int64_t t = 0; t < nq; t++) {
      int64_t lo = attend_lo(g, w, t0 + t) - j, hi = attend_hi(w, t0 + t) - j;
      int64_t at = attend_query_at(g, w, t0 + t) * g->heads + h;
      lo = lo < 0 ? 0 : lo > nk ? nk : lo;
      hi = hi > nk ? nk : hi < lo ? lo : hi;
      real *x = k->s + t * ATTEND_BK, *y = k->ds + t * ATTEND_BK;
      int64_t from_lane = lo / VL * VL, to_lane = TILE_PAD(hi);
      if (hi > lo) {
        attend_scores(g, hi - lo, x + lo, k->th, g->a ? g->a[at] : 0,
                      g->b ? k->bp + i * w->keys + j + lo : NULL);
        attend_hide(x, from_lane, lo, hi, to_lane, -(real)INFINITY);
        grad_row(g, to_lane - from_lane, x + from_lane, y + from_lane, ga->lse[at], k->delta[t]);
        if (g->sigmoid) {
          attend_hide(x, from_lane, lo, hi, to_lane, 0);
          attend_hide(y, from_lane, lo, hi, to_lane, 0);
        }
        if (terms) {
          double sum = 0, *db = k->db + i * w->keys + j;
          for (int64_t l = lo; l < hi; l++) {
            sum += (double)y[l];
            db[l] -= (double)y[l];
          }
          k->da[t] += sum;
        }
        if (g->cap > 0)
          for (int64_t l = lo; l < hi; l++) y[l] *= 1 - k->th[l - lo] * k->th[l - lo];
      } else
        to_lane = from_lane;
      for (int64_t l = 0; l < from_lane; l++) x[l] = y[l] = 0;
      for (int64_t l = to_lane; l < nk; l++) x[l] = y[l] = 0;
    }
    tile_mm(nk, g->vpad, nq, k->s, 1, ATTEND_BK, k->dout, g->vpad, k->dv + j * g->vpad, g->vpad, true);
    tile_mm(nk, g->kpad, nq, k->ds, 1, ATTEND_BK, k->q, g->kpad, k->dk + j * g->kpad, g->kpad, true);
    tile_mm(nq, g->kpad, nk, k->ds, ATTEND_BK, 1, k->kr + j * g->kpad, g->kpad, k->dq, g->kpad, true);
  }
  const grad_out *dq = &ga->out[WANT_Q], *da = &ga->out[WANT_A];
  for (int64_t t = 0; t < nq; t++) {
    if (dq->p) {
      real *to_q = real_at(dq, attend_query_at(g, w, t0 + t), h);
      const real *sum = k->dq + t * g->kpad;
      if (dq->add)
        for (int64_t c = 0; c < g->kdim; c++) to_q[c] += g->scale * sum[c];
      else
        for (int64_t c = 0; c < g->kdim; c++) to_q[c] = g->scale * sum[c];
    }
    if (da->p) {
      double *to_a = term_at(da, attend_query_at(g, w, t0 + t), h);
      *to_a = da->add ? *to_a + k->da[t] : k->da[t];
    }
  }
}

static void grad_task(const grad_args *ga, int64_t r, int64_t head, int64_t part, int64_t parts,
                      const grad_work *k) {
  const attend_args *g = &ga->a;
  attend_row w = attend_row_at(g, r);
  int64_t bq = attend_bq(&w);
  const real *keys = g->k + w.k0 * g->ks + head * g->kh;
  attend_pack_t(w.keys, g->kdim, keys, g->step * g->ks, k->kt);
  attend_pack_t(w.keys, g->vdim, g->v + w.k0 * g->vs + head * g->vh, g->step * g->vs, k->vt);
  tile_pack(w.keys, g->kdim, keys, g->step * g->ks, k->kr, g->kpad);
  memset(k->dk, 0, (size_t)(w.keys * g->kpad) * sizeof(real));
  memset(k->dv, 0, (size_t)(w.keys * g->vpad) * sizeof(real));
  memset(k->sink, 0, (size_t)g->group * sizeof(real));
  if (g->b) {
    attend_pack_b(g, &w, head, k->bp);
    memset(k->db, 0, (size_t)(w.keys * g->group) * sizeof *k->db);
  }
  for (int64_t t0 = part * bq; t0 < w.len; t0 += parts * bq)
    for (int64_t i = 0; i < g->group; i++)
      query_block(ga, &w, k, t0, w.len - t0 < bq ? w.len - t0 : bq, head * g->group + i, i);
}

/* Add what `parts` tasks of one row and key head have summed for its keys begin .. end-1. */
static void store_keys(const grad_args *ga, int64_t r, int64_t head, const grad_work *k, int64_t parts,
                       int64_t begin, int64_t end) {
  const attend_args *g = &ga->a;
  attend_row w = attend_row_at(g, r);
  const grad_out *dk = &ga->out[WANT_K], *dv = &ga->out[WANT_V], *db = &ga->out[WANT_B];
  for (int64_t j = begin; j < end; j++) {
    int64_t at = attend_key_at(g, &w, j);
    for (int64_t p = 0; p < parts; p++) {
      if (dk->p) {
        real *to = real_at(dk, at, head);
        for (int64_t c = 0; c < g->kdim; c++) to[c] += k[p].dk[j * g->kpad + c];
      }
      if (dv->p) {
        real *to = real_at(dv, at, head);
        for (int64_t c = 0; c < g->vdim; c++) to[c] += k[p].dv[j * g->vpad + c];
      }
      if (db->p)
        for (int64_t i = 0; i < g->group; i++)
          *term_at(db, at, head * g->group + i) += k[p].db[i * w.keys + j];
    }
  }
}

static void clear(const grad_out *o, int64_t n, int64_t heads, int64_t width, size_t size) {
  if (!o->p || o->add) return;
  WF_PARALLEL_FOR(t0, t1, n, heads * width) {
    for (int64_t t = t0; t < t1; t++)
      for (int64_t h = 0; h < heads; h++)
        memset((char *)o->p + (size_t)(t * o->s + h * o->h) * size, 0, (size_t)width * size);
  }
}

/* ---- rows that share keys ---- */

/* Rows share keys where these overlap and start alike modulo the stride. */
typedef struct key_range {
  int64_t phase, begin, end, row, chain; /* chain: where its run of overlapping rows begins */
} key_range;

static int by_begin(const void *a, const void *b) {
  const key_range *x = a, *y = b;
  if (x->phase != y->phase) return x->phase < y->phase ? -1 : 1;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return x->row < y->row ? -1 : 1;
}

/* Rows in order of their keys; chains[0 .. n_chains] are the bounds of runs that share keys. */
static int64_t chain_rows(const attend_args *g, key_range *range) {
  for (int64_t r = 0; r < g->rows; r++) {
    attend_row w = attend_row_at(g, r);
    int64_t begin = w.k0 / g->step;
    range[r] = (key_range){w.k0 % g->step, begin, begin + w.keys, r, 0};
  }
  qsort(range, (size_t)g->rows, sizeof *range, by_begin);
  int64_t chains = 0, end = 0;
  for (int64_t i = 0; i < g->rows; i++) {
    bool apart = i == 0 || range[i].phase != range[i - 1].phase;
    if (apart || range[i].begin >= end) range[chains++].chain = i;
    if (apart || range[i].end > end) end = range[i].end;
  }
  return chains;
}

/* ---- the op ---- */

typedef struct grad_plan {
  key_range *range;
  int64_t chains, parts;
  int threads;
  size_t each; /* bytes of one task's work space */
  char *space;
  grad_work *work; /* [threads or parts] */
  real *sink;      /* [rows, heads]: each row's share of dz */
} grad_plan;

static void take_sink(const grad_args *ga, const grad_plan *p, int64_t r, int64_t head, const grad_work *k,
                      int64_t parts) {
  for (int64_t i = 0; i < ga->a.group; i++) {
    real sum = 0;
    for (int64_t q = 0; q < parts; q++) sum += k[q].sink[i];
    p->sink[r * ga->a.heads + head * ga->a.group + i] = sum;
  }
}

static void run_tasks(const grad_args *ga, const grad_plan *p) {
  const attend_args *g = &ga->a;
  WF_PRAGMA(omp parallel num_threads(p->threads)) {
#  ifdef _OPENMP
    const grad_work *mine = p->work + (p->threads > 1 ? omp_get_thread_num() : 0);
#  else
    const grad_work *mine = p->work;
#  endif
    WF_PRAGMA(omp for schedule(dynamic, 1))
    for (int64_t task = 0; task < p->chains * g->kv_heads; task++) {
      int64_t c = task / g->kv_heads, head = task % g->kv_heads;
      int64_t end = c + 1 < p->chains ? p->range[c + 1].chain : g->rows;
      for (int64_t i = p->range[c].chain; i < end; i++) {
        int64_t r = p->range[i].row;
        grad_task(ga, r, head, 0, 1, mine);
        store_keys(ga, r, head, mine, 1, 0, attend_row_at(g, r).keys);
        take_sink(ga, p, r, head, mine, 1);
      }
    }
  }
}

static void run_parts(const grad_args *ga, const grad_plan *p) {
  const attend_args *g = &ga->a;
  for (int64_t pair = 0; pair < g->rows * g->kv_heads; pair++) {
    int64_t r = p->range[pair / g->kv_heads].row, head = pair % g->kv_heads, keys = attend_row_at(g, r).keys;
    WF_PRAGMA(omp parallel for num_threads(p->threads) schedule(static, 1))
    for (int64_t part = 0; part < p->parts; part++) grad_task(ga, r, head, part, p->parts, p->work + part);
    WF_PARALLEL_FOR(j0, j1, keys, p->parts * (g->kdim + g->vdim)) {
      store_keys(ga, r, head, p->work, p->parts, j0, j1);
    }
    take_sink(ga, p, r, head, p->work, p->parts);
  }
}

static wf_status run_plan(wf_device *dev, const grad_args *ga, grad_plan *p) {
  const attend_args *g = &ga->a;
  int64_t spaces = p->parts > p->threads ? p->parts : p->threads;
  size_t whole = p->each * (size_t)spaces;
  void *space;
  WF_TRY(wf_device_alloc(dev, "attend", whole, &space));
  for (int64_t i = 0; i < spaces; i++) carve(g, (char *)space + p->each * (size_t)i, &p->work[i]);
  if (p->parts == 1)
    run_tasks(ga, p);
  else
    run_parts(ga, p);
  wf_device_free(dev, "attend", space, whole);
  const grad_out *dz = &ga->out[WANT_SINK];
  if (dz->p)
    for (int64_t h = 0; h < g->heads; h++) {
      real *to = real_at(dz, h, 0), sum = dz->add ? *to : 0;
      for (int64_t r = 0; r < g->rows; r++) sum += p->sink[r * g->heads + h];
      *to = sum;
    }
  return WF_OK;
}

static wf_status read_grad(const wf_call *call, grad_args *ga) {
  WF_TRY(attend_read(call, &ga->a));
  const wf_tensor *d = call->in[ATTEND_DO];
  ga->o = wf_data(call->in[ATTEND_O]);
  ga->lse = wf_data(call->in[ATTEND_LSE]);
  ga->dout = wf_data(d);
  ga->dlse = call->in[ATTEND_DLSE] ? wf_data(call->in[ATTEND_DLSE]) : NULL;
  ga->dos = d->stride[0], ga->doh = d->stride[1];
  int32_t want = ((const attend_grad_attr *)call->attr)->want;
  for (int i = 0, n = 0; i < WANTS; i++) {
    ga->out[i] = (grad_out){0};
    if (!(want >> i & 1)) continue;
    const wf_tensor *t = call->out[n];
    if (t->ndim == 3 && t->shape[2] > 1 && t->stride[2] != 1)
      return WF_FAIL(WF_EINTERNAL, "attend_grad: output %d has no unit stride", n);
    ga->out[i] = (grad_out){wf_data(t), t->stride[0], t->ndim > 1 ? t->stride[1] : 0, call->add >> n & 1};
    n++;
  }
  return WF_OK;
}

WF_KERNEL(attend_grad) {
  grad_args ga;
  WF_TRY(read_grad(call, &ga));
  const attend_args *g = &ga.a;
  int64_t covered = 0;
  for (int64_t r = 0; r < g->rows; r++) covered += g->span[r].queries;
  if (covered < g->n) { /* queries of no row */
    clear(&ga.out[WANT_Q], g->n, g->heads, g->kdim, sizeof(real));
    clear(&ga.out[WANT_A], g->n, g->heads, 1, sizeof(double));
  }
  clear(&ga.out[WANT_K], g->m, g->kv_heads, g->kdim, sizeof(real));
  clear(&ga.out[WANT_V], g->m, g->kv_heads, g->vdim, sizeof(real));
  clear(&ga.out[WANT_B], g->m, g->heads, 1, sizeof(double));

  grad_plan p = {.threads = wf_threads_for((g->longest + 31) / 32 * g->rows * g->kv_heads, attend_cost(g))};
  p.parts = attend_parts(g, p.threads);
  if (p.parts == 1 && p.threads > g->rows * g->kv_heads && g->rows) p.threads = (int)(g->rows * g->kv_heads);
  grad_work probe;
  p.each = carve(g, (char *)&probe, &probe);
  int64_t spaces = p.parts > p.threads ? p.parts : p.threads;
  size_t range_bytes = (size_t)(g->rows + 1) * sizeof *p.range, work_bytes = (size_t)spaces * sizeof *p.work;
  size_t sink_bytes = (size_t)(g->rows * g->heads + 1) * sizeof(real);
  char *small = wf_alloc("attend", range_bytes + work_bytes + sink_bytes);
  if (!small) return WF_ENOMEM;
  p.range = (key_range *)(void *)small;
  p.work = (grad_work *)(void *)(small + range_bytes);
  p.sink = (real *)(void *)(small + range_bytes + work_bytes);
  p.chains = chain_rows(g, p.range);
  wf_status s = run_plan(wf_ctx_device(call->ctx), &ga, &p);
  wf_free(small);
  return s;
}

#else

WF_CPU(attend_grad)
WF_CUDA_DECLARE(attend_grad)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  static const int input_of[] = {ATTEND_Q, ATTEND_K, ATTEND_V, ATTEND_A, ATTEND_B, ATTEND_SINK};
  WF_TRY(wf_attend_check(call));
  char t[2][96];
  const wf_tensor *q = call->in[ATTEND_Q], *v = call->in[ATTEND_V], *o = call->in[ATTEND_O],
                  *d = call->in[ATTEND_DO];
  const wf_tensor *dlse = call->in[ATTEND_DLSE];
  WF_SHAPE_CHECK(!dlse || (wf_same_shape(dlse, call->in[ATTEND_LSE]) && dlse->dtype == q->dtype),
                 "attend_grad: the log-sum-exp's gradient is %s", wf_shape_text(dlse, t[0]));
  WF_SHAPE_CHECK(wf_same_shape(o, d) && o->ndim == 3 && o->shape[0] == q->shape[0] &&
                     o->shape[1] == q->shape[1] && o->shape[2] == v->shape[2] && d->dtype == q->dtype,
                 "attend_grad: o %s, do %s", wf_shape_text(o, t[0]), wf_shape_text(d, t[1]));
  int32_t want = ((const attend_grad_attr *)call->attr)->want;
  *n_out = 0;
  for (int i = 0; i < 6; i++)
    if (want >> i & 1) {
      WF_SHAPE_CHECK(call->in[input_of[i]], "attend_grad: no input for output %d", i);
      wf_desc_like(&out[(*n_out)++], call->in[input_of[i]]);
    }
  return WF_OK;
}

static void cost(const wf_call *call, double *flops, double *bytes) {
  const wf_tensor *q = call->in[0], *v = call->in[2];
  *flops = 2 * wf_attend_pairs(call) * (double)(3 * q->shape[2] + 2 * v->shape[2]);
  *bytes = 0;
  for (int i = 0; i < call->n_out; i++) *bytes += 2 * (double)wf_numel(call->out[i]);
  for (int i = 0; i < 3; i++) *bytes += (double)wf_numel(call->in[i]);
  *bytes *= (double)wf_dtype_size(q->dtype);
}

static wf_status sample(wf_sample *s) {
  WF_TRY(wf_attend_sample(s));
  attend_grad_attr *attr = (attend_grad_attr *)(void *)s->attr;
  wf_tensor *out[2];
  wf_op_apply(s->ctx, &wf_op_attend, 7, s->in, &attr->o, out);
  s->in[7] = out[0];
  s->in[8] = out[1];
  s->in[9] = wf_sample_real(s, 3, wf_is_poison(out[0]) ? (int64_t[]){0, 0, 0} : out[0]->shape);
  s->in[10] =
      s->index % 2 ? wf_sample_real(s, 2, wf_is_poison(out[0]) ? (int64_t[]){0, 0} : out[1]->shape) : NULL;
  s->n_in = 11;
  attr->want = 7 | (s->in[4] ? 24 : 0) | (s->in[6] ? 32 : 0);
  return WF_OK;
}

const wf_op wf_op_attend_grad = {
    .name = "attend_grad",
    .min_in = 11,
    .max_in = 11,
    .n_out = -1,
    .attr_size = sizeof(attend_grad_attr),
    .flags = WF_OP_TYPE_OF_FIRST,
    .optional = 1 << ATTEND_A | 1 << ATTEND_B | 1 << ATTEND_SINK | 1 << ATTEND_DLSE,
    .rowmajor = 1 << ATTEND_Q | 1 << ATTEND_K | 1 << ATTEND_V | 1 << ATTEND_DO,
    .rowmajor_out = 0x3f,
    .adds = 0x3f,
    .infer = infer,
    WF_NONDIFF("gradient of attend; first order only"),
    .cpu = &attend_grad_cpu,
    .cuda = WF_CUDA_FN(attend_grad),
    .cost = cost,
    .sample = sample,
    .n_samples = WF_ATTEND_SAMPLES,
};

#endif
