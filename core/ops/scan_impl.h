/* scan_impl: the chunk driver of the linear-recurrence family
 *     S_t = A_t S_{t-1} + w_t k_t^T v_t,   o_t = s q_t S_t,
 * whose members differ in the decay A_t (none, one a head, one a channel), in the write (additive, weighted,
 * the delta rule) and so in what a chunk of tokens does to the state.
 *
 * Rows run in chunks of C tokens, each a few products of small matrices. The gradient goes through the chunks
 * backwards with the gradient of the state; states entering the chunks are formed again, for long rows by
 * segments of about sqrt(chunks), so that two square roots of them are held. A member gives a scan_kind: one
 * chunk forward, the state alone, one chunk backward. Rows, lanes, initial states, threads and sums over
 * heads that share q and k are here, once.
 *
 * Heads share q and k in groups: head h of H reads group floor(h G / H). Where the heads of a group are
 * divided over threads, each range of heads sums its dq and dk apart and the ranges are added in order.
 *
 * A file of a member holds its kind, then WF_SCAN_KERNELS(name, kind) in the kernel passes and
 * WF_SCAN_OP(name, ...) in the description.
 */
#ifndef WF_CORE_OPS_SCAN_IMPL_H
#define WF_CORE_OPS_SCAN_IMPL_H

#include "core/ops/attr_impl.h"
#include "core/ops/rows_impl.h"

/* Inputs whose gradients can be wanted, in the order of the inputs and of the outputs of the gradient. */
enum { WANT_Q, WANT_K, WANT_V, WANT_G, WANT_W, WANT_STATE, WANT_INIT, WANTS };

#ifdef WF_KERNEL_PASS
#  include <string.h>
#  include "core/tile_impl.h"

typedef struct grad_out { /* NULL where not wanted */
  real *p;
  int64_t s, h; /* strides of tokens and heads (or groups) */
  bool add;
} grad_out;

typedef struct scan_args {
  const real *q, *k, *v, *g, *w, *state, *init, *dout, *dstate; /* g, w, state, init, dout, dstate: or NULL */
  int64_t qs, qh, ks, kh, vs, vh, gs, gh, ws, dos, doh;         /* strides of tokens and heads */
  const wf_row *row;
  real *o, *left; /* of the forward */
  int64_t rows, n, heads, groups, kdim, vdim, kpad, vpad;
  int64_t odim, size, held; /* odim: vdim, and 1 for a column of ones; reals of a state [kdim, odim]; of one
                               in work space, [kdim, vpad] and then the column of ones' [kdim] */
  int64_t longest, chunk, cpad;
  bool forced; /* the caller says how many tokens a chunk has */
  real scale;
} scan_args;

/* One chunk of one head. */
typedef struct scan_chunk {
  int64_t h, group, token, n;    /* head, its group; first token among all, how many */
  int64_t before;                /* tokens of the row before it */
  const real *q, *k, *v, *g, *w; /* the first token's */
  const real *dout;
} scan_chunk;

enum { SCAN_FEW = 4 };

/* What a member of the family does with a chunk. `work` is thread-local space that each function carves with
 * take(); states are [kdim, vpad] with zeros in the padding, followed by scan_ones. */
typedef struct scan_kind {
  int64_t chunk;   /* tokens of a chunk where the caller does not say */
  int64_t halved;  /* half of them where K V is at most this: pairs of tokens cost more beside the state */
  int64_t shorter; /* rows of fewer tokens run by `tokens` */
  int64_t smaller; /* so do all where a state has fewer elements */
  /* Reals of work space for one chunk. */
  int64_t (*forward_space)(const scan_args *a);
  int64_t (*grad_space)(const scan_args *a);
  /* c->n tokens of a head as the recurrence says: writes o, advances s. */
  void (*tokens)(const scan_args *a, const scan_chunk *c, real *s, char *work);
  /* Where `tokens` is faster for a chunk, as the SCAN_FEW tokens before it say: no output may depend on a
   * later token. A row's first ones run by `tokens`. NULL: never. */
  bool (*steep)(const scan_args *a, const scan_chunk *c);
  /* A chunk: writes o, advances s. */
  void (*forward)(const scan_args *a, const scan_chunk *c, real *s, char *work);
  /* Advances s alone; keeps for the gradient what is dear to form again, where `kept` is not NULL. */
  void (*advance)(const scan_args *a, const scan_chunk *c, real *s, real *kept, char *work);
  /* Takes ds from dS' to dS0 alone, which needs no state. */
  void (*retreat)(const scan_args *a, const scan_chunk *c, real *ds, char *work);
  /* Given the state s0 that entered and what was kept, stores the chunk's gradients and takes ds from dS' to
   * dS0. */
  void (*grad)(const scan_args *a, const grad_out *out, const scan_chunk *c, const real *s0, const real *kept,
               real *ds, char *work);
  int64_t (*kept)(const scan_args *a); /* reals of it, a multiple of VL; NULL: none */
} scan_kind;

static wf_status scan_read(const wf_call *call, const scan_kind *kind, scan_args *a) {
  const scan_attr *at = call->attr;
  const wf_tensor *q = call->in[SCAN_Q], *k = call->in[SCAN_K], *v = call->in[SCAN_V];
  const wf_tensor *g = call->in[SCAN_G], *w = call->in[SCAN_W];
  const wf_tensor *state = call->in[SCAN_STATE], *init = call->in[SCAN_INIT];
  *a = (scan_args){.q = wf_data(q), .k = wf_data(k), .v = wf_data(v)};
  a->g = g ? wf_data(g) : NULL;
  a->w = w ? wf_data(w) : NULL;
  a->state = state ? wf_data(state) : NULL;
  a->init = init ? wf_data(init) : NULL;
  a->qs = q->stride[0], a->qh = q->stride[1];
  a->ks = k->stride[0], a->kh = k->stride[1];
  a->vs = v->stride[0], a->vh = v->stride[1];
  if (g) a->gs = g->stride[0], a->gh = g->stride[1];
  if (w) a->ws = w->stride[0];
  a->rows = call->in[SCAN_TABLE]->shape[0];
  a->n = q->shape[0], a->heads = v->shape[1], a->groups = q->shape[1], a->kdim = q->shape[2],
  a->vdim = v->shape[2];
  a->kpad = TILE_PAD(a->kdim), a->vpad = TILE_PAD(a->vdim);
  a->odim = a->vdim + at->o.ones, a->size = a->kdim * a->odim;
  a->held = a->kdim * a->vpad + (at->o.ones ? a->kpad : 0);
  a->scale = (real)at->o.scale;
  WF_TRY(wf_rows_read(call->op->name, call->in[SCAN_TABLE], a->n, at->lanes, &a->row));
  for (int64_t r = 0; r < a->rows; r++)
    if (a->row[r].len > a->longest) a->longest = a->row[r].len;
  a->forced = at->o.chunk != 0;
  a->chunk = a->forced ? at->o.chunk : a->kdim * a->vdim > kind->halved ? kind->chunk : kind->chunk / 2;
  if (a->chunk > a->longest) a->chunk = a->longest ? a->longest : 1;
  a->cpad = TILE_PAD(a->chunk);
  return WF_OK;
}

/* Tokens t0 .. t0+n-1 of a row. */
static scan_chunk scan_open(const scan_args *a, const wf_row *r, int64_t h, int64_t t0, int64_t most) {
  scan_chunk c = {.h = h, .group = h * a->groups / a->heads, .token = r->begin + t0, .before = t0};
  c.n = r->len - t0 < most ? r->len - t0 : most;
  c.q = a->q + c.token * a->qs + c.group * a->qh;
  c.k = a->k + c.token * a->ks + c.group * a->kh;
  c.v = a->v + c.token * a->vs + h * a->vh;
  c.g = a->g ? a->g + c.token * a->gs + h * a->gh : NULL;
  c.w = a->w ? a->w + c.token * a->ws + h : NULL;
  c.dout = a->dout ? a->dout + c.token * a->dos + h * a->doh : NULL;
  return c;
}

static inline real scan_weight(const scan_args *a, const scan_chunk *c, int64_t t) {
  return c->w ? c->w[t * a->ws] : 1;
}

/* A log decay for sums and differences of them: e^-1e3 is 0, as is e^-inf, whose differences are no numbers.
 */
static inline real scan_log(real g) {
  return g < R(-1e3) ? R(-1e3) : g;
}

/* Where the outputs of token t of a chunk go. */
static inline real *scan_o(const scan_args *a, const scan_chunk *c, int64_t t) {
  return a->o + ((c->token + t) * a->heads + c->h) * a->odim;
}

/* dst [n, ld] = row factor times src; the padding is zero. */
static inline void pack_scaled(int64_t n, int64_t dim, const real *src, int64_t stride, const real *factor,
                               real all, real *dst, int64_t ld) {
  for (int64_t t = 0; t < n; t++) {
    real f = factor ? all * factor[t] : all;
    for (int64_t d = 0; d < dim; d++) dst[t * ld + d] = f * src[t * stride + d];
    for (int64_t d = dim; d < ld; d++) dst[t * ld + d] = 0;
  }
}

/* A chunk's output gradient, or zeros, as [n, vpad]. */
static inline void pack_dout(const scan_args *a, const scan_chunk *c, real *dst) {
  if (c->dout)
    tile_pack(c->n, a->vdim, c->dout, a->dos, dst, a->vpad);
  else
    memset(dst, 0, (size_t)(c->n * a->vpad) * sizeof *dst);
}

/* Store scale times src [n, ld] as the gradient of tokens of head (or group) h. */
static inline void store(const grad_out *o, int64_t token, int64_t h, int64_t n, int64_t dim, const real *src,
                         int64_t ld, real scale) {
  if (!o->p) return;
  for (int64_t t = 0; t < n; t++) {
    real *to = o->p + (token + t) * o->s + h * o->h;
    if (o->add)
      for (int64_t d = 0; d < dim; d++) to[d] += scale * src[t * ld + d];
    else
      for (int64_t d = 0; d < dim; d++) to[d] = scale * src[t * ld + d];
  }
}
/* The same for one double a token. */
static inline void store_scalar(const grad_out *o, int64_t token, int64_t h, int64_t n, const double *src) {
  if (!o->p) return;
  for (int64_t t = 0; t < n; t++) {
    real *to = o->p + (token + t) * o->s + h * o->h;
    *to = (real)src[t] + (o->add ? *to : 0);
  }
}

static inline double dot(int64_t n, const real *x, const real *y) {
  double sum = 0;
  WF_PRAGMA(omp simd reduction(+ : sum))
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)y[i];
  return sum;
}

/* Store the gradient y [n, kpad] of the weighted keys as that of the keys and of the weights; sum [n] is work
 * space. */
static inline void scan_store_keys(const scan_args *a, const grad_out *out, const scan_chunk *c, real *y,
                                   double *sum) {
  for (int64_t t = 0; t < c->n && c->w; t++) {
    sum[t] = dot(a->kdim, c->k + t * a->ks, y + t * a->kpad);
    for (int64_t d = 0; d < a->kdim; d++) y[t * a->kpad + d] *= c->w[t * a->ws];
  }
  if (c->w) store_scalar(&out[WANT_W], c->token, c->h, c->n, sum);
  store(&out[WANT_K], c->token, c->group, c->n, a->kdim, y, a->kpad, 1);
}

/* A state's column of ones [kdim], the sum of the keys, or NULL. */
static inline real *scan_ones(const scan_args *a, const real *s) {
  return a->odim > a->vdim ? (real *)s + a->kdim * a->vpad : NULL;
}

/* A state [kdim, odim] into work space, and out of it. */
static void scan_pack(const scan_args *a, const real *from, real *s) {
  real *ones = scan_ones(a, s);
  tile_pack(a->kdim, a->vdim, from, a->odim, s, a->vpad);
  for (int64_t d = 0; d < a->kdim && ones; d++) ones[d] = from[d * a->odim + a->vdim];
}
static void scan_unpack(const scan_args *a, const real *s, bool add, real *to) {
  const real *ones = scan_ones(a, s);
  for (int64_t d = 0; d < a->kdim; d++, to += a->odim) {
    for (int64_t i = 0; i < a->vdim; i++) to[i] = s[d * a->vpad + i] + (add ? to[i] : 0);
    if (ones) to[a->vdim] = ones[d] + (add ? to[a->vdim] : 0);
  }
}

/* The state a row starts from, into S. */
static void scan_enter(const scan_args *a, const wf_row *r, int64_t h, real *s) {
  const real *from = NULL;
  if (wf_row_takes(r))
    from = a->state ? a->state + (r->lane * a->heads + h) * a->size : NULL;
  else if (a->init)
    from = a->init + h * a->size;
  if (from)
    scan_pack(a, from, s);
  else
    memset(s, 0, (size_t)a->held * sizeof *s);
}

static int64_t scan_cost(const scan_args *a) { /* element operations of a row and head, nearly */
  return a->longest * (a->kdim + 8) * (a->vdim + 8) / 4;
}

static inline char *scan_mine(void *work, size_t each, int threads) {
#  ifdef _OPENMP
  return (char *)work + each * (size_t)(threads > 1 ? omp_get_thread_num() : 0);
#  else
  (void)each, (void)threads;
  return work;
#  endif
}

/* ---- forward ---- */

static void scan_row(const scan_args *a, const scan_kind *kind, const wf_row *r, int64_t h, bool by_token,
                     char *work) {
  if (!a->o && !wf_row_leaves(r)) return;
  real *s = take(&work, a->held);
  scan_enter(a, r, h, s);
  if (!a->o) {
    for (int64_t t = 0; t < r->len; t += a->chunk) {
      scan_chunk c = scan_open(a, r, h, t, a->chunk);
      kind->advance(a, &c, s, NULL, work);
    }
  } else if (by_token) {
    scan_chunk c = scan_open(a, r, h, 0, r->len);
    kind->tokens(a, &c, s, work);
  } else {
    bool unsure = kind->steep && !a->forced;
    for (int64_t t = 0, n; t < r->len; t += n) {
      n = unsure && !t ? SCAN_FEW : a->chunk;
      scan_chunk c = scan_open(a, r, h, t, n);
      (unsure && (!t || kind->steep(a, &c)) ? kind->tokens : kind->forward)(a, &c, s, work);
    }
  }
  if (a->left && wf_row_leaves(r)) scan_unpack(a, s, false, a->left + (r->lane * a->heads + h) * a->size);
}

static wf_status scan_forward(const wf_call *call, const scan_kind *kind) {
  scan_args a;
  WF_TRY(scan_read(call, kind, &a));
  const scan_attr *at = call->attr;
  if (at->leaves != WF_STATE_ALONE) a.o = wf_data(call->out[0]);
  if (at->leaves) {
    a.left = wf_data(call->out[a.o ? 1 : 0]);
    wf_keep_lanes(a.row, a.rows, at->lanes, a.heads * a.size, a.state, a.left, false);
  }
  wf_device *dev = wf_ctx_device(call->ctx);
  int64_t tasks = a.rows * a.heads, shorter = a.size < kind->smaller ? INT64_MAX : kind->shorter;
  int threads = wf_threads_for(tasks, scan_cost(&a));
  size_t each = ((size_t)(a.held + kind->forward_space(&a)) * sizeof(real) + 127) / 64 * 64;
  void *work;
  WF_TRY(wf_device_alloc(dev, "scan", each * (size_t)threads, &work));
  WF_PRAGMA(omp parallel num_threads(threads) if (threads > 1)) {
    char *mine = scan_mine(work, each, threads);
    WF_PRAGMA(omp for schedule(dynamic, 1))
    for (int64_t task = 0; task < tasks; task++) {
      const wf_row *r = &a.row[task / a.heads];
      scan_row(&a, kind, r, task % a.heads, at->o.chunk == 1 || (!at->o.chunk && r->len < shorter), mine);
    }
  }
  wf_device_free(dev, "scan", work, each * (size_t)threads);
  return WF_OK;
}

/* ---- gradient ---- */

typedef struct scan_held {
  real *starts, *states, *s, *ds; /* entering segments; entering chunks, each with what is kept; a state; its
                                     gradient */
  int64_t state, each, m;         /* reals of a state; of one with what is kept; chunks of a segment */
  char *work;
} scan_held;

/* Chunks of a segment: the same for every row, as the longest needs. All of them where their states are few
 * enough to be held; otherwise about the root, and states are formed twice. */
static int64_t scan_segment(int64_t chunks, int64_t each) {
  enum { HELD = 64 << 20 }; /* bytes a thread */
  int64_t m = 1;
  if (chunks * each * (int64_t)sizeof(real) <= HELD) return chunks ? chunks : 1;
  while (m * m < chunks) m++;
  return m;
}

static void scan_carve(const scan_args *a, const scan_kind *kind, char *at, scan_held *w) {
  int64_t chunks = (a->longest + a->chunk - 1) / a->chunk;
  w->state = a->held, w->each = a->held + (kind->kept ? kind->kept(a) : 0);
  w->m = scan_segment(chunks, w->each);
  w->starts = take(&at, (chunks + w->m - 1) / w->m * w->state);
  w->states = take(&at, w->m * w->each);
  w->s = take(&at, w->state);
  w->ds = take(&at, w->state);
  w->work = at;
}

/* One row and head; leaves the gradient of the state it started from in w->ds. */
static void scan_row_grad(const scan_args *a, const scan_kind *kind, const grad_out *out, const wf_row *r,
                          int64_t h, const scan_held *w) {
  int64_t state = w->state, chunks = (r->len + a->chunk - 1) / a->chunk, m = w->m;
  int64_t segments = (chunks + m - 1) / m;
  scan_enter(a, r, h, w->s);
  for (int64_t g = 0; g < segments; g++) {
    memcpy(w->starts + g * state, w->s, (size_t)state * sizeof(real));
    for (int64_t i = g * m; i < (g + 1) * m && g + 1 < segments; i++) {
      scan_chunk c = scan_open(a, r, h, i * a->chunk, a->chunk);
      kind->advance(a, &c, w->s, NULL, w->work);
    }
  }
  if (a->dstate && wf_row_leaves(r))
    scan_pack(a, a->dstate + (r->lane * a->heads + h) * a->size, w->ds);
  else
    memset(w->ds, 0, (size_t)state * sizeof(real));
  for (int64_t g = segments - 1; g >= 0; g--) {
    int64_t end = (g + 1) * m < chunks ? (g + 1) * m : chunks;
    memcpy(w->states, w->starts + g * state, (size_t)state * sizeof(real));
    for (int64_t i = g * m; i + !kind->kept < end; i++) { /* the last one's state is not needed */
      real *here = w->states + (i - g * m) * w->each, *next = i + 1 < end ? here + w->each : w->s;
      memcpy(next, here, (size_t)state * sizeof(real));
      scan_chunk c = scan_open(a, r, h, i * a->chunk, a->chunk);
      kind->advance(a, &c, next, kind->kept ? here + state : NULL, w->work);
    }
    for (int64_t i = end - 1; i >= g * m; i--) {
      scan_chunk c = scan_open(a, r, h, i * a->chunk, a->chunk);
      const real *here = w->states + (i - g * m) * w->each;
      kind->grad(a, out, &c, here, here + state, w->ds, w->work);
    }
  }
}

/* How the gradient is divided: tasks are a run of rows, a group and a range of its heads. `parts` runs of
 * rows give the sums over fresh rows a fixed order, `split` ranges of heads those over the heads of a group.
 */
typedef struct scan_division {
  int64_t parts, split, share; /* share: heads of a group */
  real *init, *dq, *dk;        /* the partial sums: [parts, heads, size]; [split - 1, n, groups, kdim] */
} scan_division;

static scan_division scan_divide(const scan_args *a, const grad_out *out, int threads) {
  scan_division d = {.parts = a->rows, .split = 1, .share = a->groups ? a->heads / a->groups : 1};
  if (out[WANT_INIT].p && a->heads && d.parts > (4 * threads + a->heads - 1) / a->heads)
    d.parts = (4 * threads + a->heads - 1) / a->heads;
  bool apart = d.share == 1 || !(out[WANT_Q].p || out[WANT_K].p); /* no sum over heads */
  int64_t tasks = d.parts * a->groups;
  if (apart)
    d.split = d.share;
  else if (tasks && tasks < threads)
    d.split = (threads + tasks - 1) / tasks < d.share ? (threads + tasks - 1) / tasks : d.share;
  return d;
}

/* The heads of one task over rows first .. last-1. */
static void scan_task(const scan_args *a, const scan_kind *kind, const grad_out *out, const scan_division *d,
                      int64_t part, int64_t group, int64_t range, const scan_held *w) {
  int64_t first = wf_range_begin(a->rows, (int)part, (int)d->parts),
          last = wf_range_begin(a->rows, (int)part + 1, (int)d->parts);
  int64_t begin = wf_range_begin(d->share, (int)range, (int)d->split),
          end = wf_range_begin(d->share, (int)range + 1, (int)d->split);
  grad_out mine[WANTS];
  memcpy(mine, out, sizeof mine);
  if (range && d->dq) {
    int64_t each = a->n * a->groups * a->kdim;
    mine[WANT_Q] = (grad_out){d->dq + (range - 1) * each, a->groups * a->kdim, a->kdim, false};
    mine[WANT_K] = (grad_out){d->dk + (range - 1) * each, a->groups * a->kdim, a->kdim, false};
  }
  for (int64_t i = begin; i < end; i++) {
    int64_t h = group * d->share + i;
    real *init = d->init ? d->init + (part * a->heads + h) * a->size : NULL;
    if (init) memset(init, 0, (size_t)a->size * sizeof *init);
    if (i > begin) mine[WANT_Q].add = mine[WANT_K].add = true;
    for (int64_t r = first; r < last; r++) {
      const wf_row *row = &a->row[r];
      scan_row_grad(a, kind, mine, row, h, w);
      real *to = init;
      if (wf_row_takes(row))
        to = out[WANT_STATE].p ? out[WANT_STATE].p + (row->lane * a->heads + h) * a->size : NULL;
      if (to) scan_unpack(a, w->ds, true, to);
    }
  }
}

/* Add the partial sums, in order. */
static void scan_combine(const scan_args *a, const grad_out *out, const scan_division *d) {
  const grad_out *di = &out[WANT_INIT];
  for (int64_t i = 0; i < a->heads * a->size && di->p; i++) {
    real sum = di->add ? di->p[i] : 0;
    for (int64_t part = 0; part < d->parts; part++) sum += d->init[part * a->heads * a->size + i];
    di->p[i] = sum;
  }
  for (int side = 0; side < 2 && d->dq; side++) {
    grad_out sum = out[side ? WANT_K : WANT_Q];
    sum.add = true;
    const real *from = side ? d->dk : d->dq;
    for (int64_t range = 0; range + 1 < d->split; range++)
      for (int64_t g = 0; g < a->groups; g++)
        store(&sum, 0, g, a->n, a->kdim, from + range * a->n * a->groups * a->kdim + g * a->kdim,
              a->groups * a->kdim, 1);
  }
}

/* The gradient of the lanes' states and no other. Lanes are added to; a lane is taken once. */
static wf_status scan_retreat(const wf_call *call, const scan_kind *kind, const scan_args *a, real *to) {
  int64_t tasks = a->rows * a->heads;
  int threads = wf_threads_for(tasks, scan_cost(a));
  size_t each = ((size_t)(a->held + kind->grad_space(a)) * sizeof(real) + 127) / 64 * 64;
  wf_device *dev = wf_ctx_device(call->ctx);
  void *work;
  WF_TRY(wf_device_alloc(dev, "scan", each * (size_t)threads, &work));
  WF_PRAGMA(omp parallel num_threads(threads)) {
    char *mine = wf_thread_space(work, each);
    real *ds = take(&mine, a->held);
    WF_PRAGMA(omp for schedule(dynamic, 1))
    for (int64_t task = 0; task < tasks; task++) {
      const wf_row *r = &a->row[task / a->heads];
      int64_t h = task % a->heads, lane = (r->lane * a->heads + h) * a->size;
      if (!wf_row_takes(r)) continue;
      if (a->dstate && wf_row_leaves(r))
        scan_pack(a, a->dstate + lane, ds);
      else
        memset(ds, 0, (size_t)a->held * sizeof *ds);
      for (int64_t i = (r->len - 1) / a->chunk; i >= 0; i--) {
        scan_chunk c = scan_open(a, r, h, i * a->chunk, a->chunk);
        kind->retreat(a, &c, ds, mine);
      }
      scan_unpack(a, ds, true, to + lane);
    }
  }
  wf_device_free(dev, "scan", work, each * (size_t)threads);
  return WF_OK;
}

static wf_status scan_grad(const wf_call *call, const scan_kind *kind) {
  scan_args a;
  WF_TRY(scan_read(call, kind, &a));
  const scan_attr *at = call->attr;
  const wf_tensor *dout = call->in[SCAN_DO], *ds = call->in[SCAN_DSTATE];
  if (dout) a.dout = wf_data(dout), a.dos = dout->stride[0], a.doh = dout->stride[1];
  if (ds) a.dstate = wf_data(ds);
  grad_out out[WANTS] = {{NULL, 0, 0, false}};
  for (int i = 0, n = 0; i < WANTS; i++)
    if (at->want >> i & 1) {
      const wf_tensor *t = call->out[n];
      if (i >= WANT_STATE && !wf_is_contiguous(t))
        return WF_FAIL(WF_EINTERNAL, "%s: the gradient of a state is a slice", call->op->name);
      out[i] = (grad_out){wf_data(t), t->stride[0], t->stride[1], call->add >> n & 1};
      n++;
    }
  if (out[WANT_STATE].p)
    wf_keep_lanes(a.row, a.rows, at->lanes, a.heads * a.size, a.dstate, out[WANT_STATE].p,
                  out[WANT_STATE].add);
  if (at->want == 1 << WANT_STATE) return scan_retreat(call, kind, &a, out[WANT_STATE].p);

  int threads = wf_threads_for(a.rows * a.heads, 3 * scan_cost(&a));
  scan_division d = scan_divide(&a, out, threads);
  scan_held probe;
  scan_carve(&a, kind, (char *)&probe, &probe);
  size_t held = (size_t)(probe.work - (char *)&probe);
  size_t each = (held + (size_t)kind->grad_space(&a) * sizeof(real) + 127) / 64 * 64,
         space = each * (size_t)threads;
  size_t inits = out[WANT_INIT].p ? (size_t)(d.parts * a.heads * a.size) * sizeof(real) : 0;
  size_t sums = d.share > 1 && d.split > 1 && (out[WANT_Q].p || out[WANT_K].p)
                    ? (size_t)((d.split - 1) * a.n * a.groups * a.kdim) * sizeof(real)
                    : 0;
  wf_device *dev = wf_ctx_device(call->ctx);
  void *work;
  WF_TRY(wf_device_alloc(dev, "scan", space + inits + 2 * sums, &work));
  if (inits) d.init = (real *)(void *)((char *)work + space);
  if (sums) d.dq = (real *)(void *)((char *)work + space + inits), d.dk = d.dq + sums / sizeof(real);
  WF_PRAGMA(omp parallel num_threads(threads) if (threads > 1)) {
    scan_held w;
    scan_carve(&a, kind, scan_mine(work, each, threads), &w);
    WF_PRAGMA(omp for schedule(dynamic, 1))
    for (int64_t task = 0; task < d.parts * a.groups * d.split; task++) {
      int64_t part = task / (a.groups * d.split), rest = task % (a.groups * d.split);
      scan_task(&a, kind, out, &d, part, rest / d.split, rest % d.split, &w);
    }
  }
  scan_combine(&a, out, &d);
  wf_device_free(dev, "scan", work, space + inits + 2 * sums);
  return WF_OK;
}

#  define WF_SCAN_KERNELS(name, kind)     \
    WF_KERNEL(name) {                     \
      return scan_forward(call, &(kind)); \
    }                                     \
    WF_KERNEL(name##_grad) {              \
      return scan_grad(call, &(kind));    \
    }

#else

/* ---- description, shared by the members: see scan.c ---- */

typedef struct scan_shape {
  int g_dims;   /* of the log decays: 2 [n, H] or 3 [n, H, K] */
  bool needs_g; /* they must be given */
  bool delta;   /* w is beta of the delta rule and must be given; otherwise it weighs the writes and may be
                   absent */
  bool no_ones; /* no kernel for a column of ones */
} scan_shape;

wf_status wf_scan_infer(const scan_shape *shape, const wf_call *call, wf_desc *out, int *n_out);
wf_status wf_scan_grad_infer(const scan_shape *shape, const wf_call *call, wf_desc *out, int *n_out);
wf_status wf_scan_vjp(const wf_op *grad, const wf_vjp *g);
wf_carry_kind wf_scan_carry(const scan_shape *shape, const wf_call *call, wf_desc *A);
wf_status wf_scan_factor(const scan_shape *shape, const wf_call *call);
wf_status wf_scan_advance(const wf_call *call);
wf_status wf_scan_sample(const scan_shape *shape, wf_sample *s);
wf_status wf_scan_grad_sample(const scan_shape *shape, wf_sample *s);
void wf_scan_cost(const scan_shape *shape, bool grad, const wf_call *call, double *flops, double *bytes);
enum { WF_SCAN_SAMPLES = 6 };

/* Describes op `name` and its gradient; ... is the scan_shape; CUDA: WF_CUDA_FN of both, or NULL. */
#  define WF_SCAN_OP(op_name, cuda_fn, cuda_grad, ...)                                       \
    WF_CPU(op_name)                                                                          \
    WF_CPU(op_name##_grad)                                                                   \
    static const scan_shape shape = __VA_ARGS__;                                             \
    static wf_status infer(const wf_call *call, wf_desc *out, int *n) {                      \
      return wf_scan_infer(&shape, call, out, n);                                            \
    }                                                                                        \
    static wf_status grad_infer(const wf_call *call, wf_desc *out, int *n) {                 \
      return wf_scan_grad_infer(&shape, call, out, n);                                       \
    }                                                                                        \
    static wf_status vjp(const wf_vjp *g) {                                                  \
      return wf_scan_vjp(&wf_op_##op_name##_grad, g);                                        \
    }                                                                                        \
    static void cost(const wf_call *c, double *f, double *b) {                               \
      wf_scan_cost(&shape, false, c, f, b);                                                  \
    }                                                                                        \
    static void grad_cost(const wf_call *c, double *f, double *b) {                          \
      wf_scan_cost(&shape, true, c, f, b);                                                   \
    }                                                                                        \
    static wf_status sample(wf_sample *s) {                                                  \
      return wf_scan_sample(&shape, s);                                                      \
    }                                                                                        \
    static wf_status grad_sample(wf_sample *s) {                                             \
      return wf_scan_grad_sample(&shape, s);                                                 \
    }                                                                                        \
    static wf_carry_kind carry_kind(const wf_call *c, wf_desc *A) {                          \
      return wf_scan_carry(&shape, c, A);                                                    \
    }                                                                                        \
    static wf_status factor(const wf_call *c) {                                              \
      return wf_scan_factor(&shape, c);                                                      \
    }                                                                                        \
    static const wf_carry carry = {.state = SCAN_STATE,                                      \
                                   .init = SCAN_INIT,                                        \
                                   .table = SCAN_TABLE,                                      \
                                   .left = 1,                                                \
                                   .in = {1, 1, 1, 1, 1, 1, 0, -1},                          \
                                   .out = {1, 1},                                            \
                                   .work = 8,                                                \
                                   .share = WF_SCAN_SHARE,                                   \
                                   .kind = carry_kind,                                       \
                                   .factor = factor,                                         \
                                   .advance = wf_scan_advance};                              \
    const wf_op wf_op_##op_name = {                                                          \
        .name = #op_name,                                                                    \
        .min_in = SCAN_DO,                                                                   \
        .max_in = SCAN_DO,                                                                   \
        .n_out = -1,                                                                         \
        .attr_size = sizeof(scan_attr),                                                      \
        .optional = WF_SCAN_OPTIONAL,                                                        \
        .rowmajor = WF_SCAN_ROWMAJOR,                                                        \
        .save_in = (1 << SCAN_DO) - 1,                                                       \
        .vjp_adds = (1 << WANTS) - 1,                                                        \
        .nograd_in = 1 << SCAN_TABLE,                                                        \
        .infer = infer,                                                                      \
        .vjp = vjp,                                                                          \
        .cpu = &op_name##_cpu,                                                               \
        .cuda = cuda_fn,                                                                     \
        .carry = &carry,                                                                     \
        .cost = cost,                                                                        \
        .sample = sample,                                                                    \
        .n_samples = WF_SCAN_SAMPLES,                                                        \
    };                                                                                       \
    const wf_op wf_op_##op_name##_grad = {                                                   \
        .name = #op_name "_grad",                                                            \
        .min_in = SCAN_INS,                                                                  \
        .max_in = SCAN_INS,                                                                  \
        .n_out = -1,                                                                         \
        .attr_size = sizeof(scan_attr),                                                      \
        .optional = WF_SCAN_OPTIONAL | 1 << SCAN_DO | 1 << SCAN_DSTATE,                      \
        .rowmajor = WF_SCAN_ROWMAJOR | 1 << SCAN_DO,                                         \
        .adds = (1 << WANTS) - 1,                                                            \
        .rowmajor_out = 1 << WANT_Q | 1 << WANT_K | 1 << WANT_V | 1 << WANT_G | 1 << WANT_W, \
        .infer = grad_infer,                                                                 \
        WF_NONDIFF("gradient of " #op_name "; first order only"),                            \
        .cpu = &op_name##_grad_cpu,                                                          \
        .cuda = cuda_grad,                                                                   \
        .cost = grad_cost,                                                                   \
        .sample = grad_sample,                                                               \
        .n_samples = WF_SCAN_SAMPLES,                                                        \
    };
#  ifndef WF_SCAN_SHARE
#    define WF_SCAN_SHARE 0.3
#  endif
#  define WF_SCAN_OPTIONAL (1 << SCAN_G | 1 << SCAN_W | 1 << SCAN_STATE | 1 << SCAN_INIT)
#  define WF_SCAN_ROWMAJOR (1 << SCAN_Q | 1 << SCAN_K | 1 << SCAN_V | 1 << SCAN_G | 1 << SCAN_W)

#endif

#endif
