/* scan_scalar: the linear recurrence with one decay for each head and token,
 *     S_t = e^{g_t} S_{t-1} + k_t^T v_t,   o_t = s q_t S_t,
 * the core of RetNet, simple GLA and Mamba-2.
 *
 * Rows run in chunks of C tokens. With b the inclusive cumulative log decay inside a chunk, D[t,j] = e^{b_t -
 * b_j} for j <= t, Q already scaled, S0 the state entering and S' the one leaving:
 *     O = diag(e^b) Q S0 + (Q K^T . D) V,    S' = e^{b_C} S0 + (diag(e^{b_C - b}) K)^T V
 * so nearly all work is in tile products. b and its differences are formed in double and rounded just before
 * the exponential: b grows and D must not lose its digits. Rows of a few tokens run as written above.
 *
 * The gradient goes through the chunks backwards with the gradient of the state. States entering the chunks
 * are formed again, by segments of about sqrt(chunks), so that two square roots of them are held. With
 * dP = (dO V^T) . D:
 *     dQ = dP K + diag(e^b) dO S0^T             dK = dP^T Q + diag(e^{b_C - b}) V dS'^T
 *     dV = (Q K^T . D)^T dO + diag(e^{b_C - b}) K dS'     dS0 = e^{b_C} dS' + (diag(e^b) Q)^T dO
 *     dg_t = sum_{i >= t > j} W_ij + sum_{i >= t} e^{b_i} <q_i S0, dO_i> + sum_{j < t} e^{b_C - b_j} <k_j
 * dS', v_j>
 *            + e^{b_C} <S0, dS'>,   W = (Q K^T) . dP below the diagonal
 * Sums of what passes over step t, instead of a difference of two large sums: no digits cancel.
 */
#include "core/ops/attr_impl.h"
#include "core/ops/rows_impl.h"

enum { WANT_Q, WANT_K, WANT_V, WANT_G, WANT_STATE, WANT_INIT, WANTS };

#ifdef WF_KERNEL_PASS
#  include <string.h>
#  include "core/tile_impl.h"

enum { CHUNK = 64, SHORT = 8 /* shorter rows run token by token */ };

typedef struct scan_args {
  const real *q, *k, *v, *g, *state, *init, *dout, *dstate;
  int64_t qs, qh, ks, kh, vs, vh, dos, doh; /* strides of tokens and heads */
  const wf_row *row;
  int64_t rows, n, heads, kdim, vdim, kpad, vpad, size; /* size: of a state [kdim, vdim] */
  int64_t longest, chunk, cpad;
  real scale;
} scan_args;

static wf_status scan_read(const wf_call *call, scan_args *a) {
  const scan_attr *at = call->attr;
  const wf_tensor *q = call->in[SCAN_Q], *k = call->in[SCAN_K], *v = call->in[SCAN_V];
  const wf_tensor *state = call->in[SCAN_STATE], *init = call->in[SCAN_INIT];
  *a = (scan_args){.q = wf_data(q), .k = wf_data(k), .v = wf_data(v), .g = wf_data(call->in[SCAN_G])};
  a->state = state ? wf_data(state) : NULL;
  a->init = init ? wf_data(init) : NULL;
  a->qs = q->stride[0], a->qh = q->stride[1];
  a->ks = k->stride[0], a->kh = k->stride[1];
  a->vs = v->stride[0], a->vh = v->stride[1];
  a->rows = call->in[SCAN_TABLE]->shape[0];
  a->n = q->shape[0], a->heads = q->shape[1], a->kdim = q->shape[2], a->vdim = v->shape[2];
  a->kpad = TILE_PAD(a->kdim), a->vpad = TILE_PAD(a->vdim), a->size = a->kdim * a->vdim;
  a->scale = (real)at->o.scale;
  WF_TRY(wf_rows_read("scan_scalar", call->in[SCAN_TABLE], a->n, at->lanes, &a->row));
  for (int64_t r = 0; r < a->rows; r++)
    if (a->row[r].len > a->longest) a->longest = a->row[r].len;
  a->chunk = at->o.chunk ? at->o.chunk : CHUNK;
  if (a->chunk > a->longest) a->chunk = a->longest ? a->longest : 1;
  a->cpad = TILE_PAD(a->chunk);
  return WF_OK;
}

/* What one thread works in: pieces of whole cache lines, from `at` on. */
static inline real *take(char **at, int64_t count) {
  real *p = (real *)(void *)*at;
  *at += ((size_t)count * sizeof(real) + 63) / 64 * 64;
  return p;
}

/* One chunk of one head. e[t] = e^{b_t}, f[t] = e^{b_C - b_t}. */
typedef struct scan_chunk {
  const real *q, *k, *v; /* its first token */
  int64_t token, n;      /* among all tokens; how many */
  double *b;
  real *e, *f, last; /* last: e^{b_C} */
} scan_chunk;

static void open_chunk(const scan_args *a, const wf_row *r, int64_t h, int64_t t0, scan_chunk *c) {
  c->token = r->begin + t0;
  c->n = r->len - t0 < a->chunk ? r->len - t0 : a->chunk;
  c->q = a->q + c->token * a->qs + h * a->qh;
  c->k = a->k + c->token * a->ks + h * a->kh;
  c->v = a->v + c->token * a->vs + h * a->vh;
  double sum = 0;
  for (int64_t t = 0; t < c->n; t++) c->b[t] = sum += (double)a->g[(c->token + t) * a->heads + h];
  for (int64_t t = 0; t < c->n; t++) {
    c->e[t] = (real)exp(c->b[t]);
    c->f[t] = (real)exp(sum - c->b[t]);
  }
  c->last = (real)exp(sum);
}

/* dst [n, ld] = row factor times src; the padding is zero. */
static void pack_scaled(int64_t n, int64_t dim, const real *src, int64_t stride, const real *factor, real all,
                        real *dst, int64_t ld) {
  for (int64_t t = 0; t < n; t++) {
    real f = factor ? all * factor[t] : all;
    for (int64_t d = 0; d < dim; d++) dst[t * ld + d] = f * src[t * stride + d];
    for (int64_t d = dim; d < ld; d++) dst[t * ld + d] = 0;
  }
}

/* S [kdim, vpad] over the chunk; ke [n, kdim] and vp [n, vpad] are work space, vp left holding V. */
static void advance(const scan_args *a, const scan_chunk *c, real *s, real *ke, real *vp) {
  pack_scaled(c->n, a->kdim, c->k, a->ks, c->f, 1, ke, a->kdim);
  tile_pack(c->n, a->vdim, c->v, a->vs, vp, a->vpad);
  for (int64_t i = 0; i < a->kdim * a->vpad; i++) s[i] *= c->last;
  tile_mm(a->kdim, a->vpad, c->n, ke, 1, a->kdim, vp, a->vpad, s, a->vpad, true);
}

/* The state a row starts from, into S [kdim, vpad]. */
static void enter(const scan_args *a, const wf_row *r, int64_t h, real *s) {
  const real *from = NULL;
  if (wf_row_takes(r))
    from = a->state ? a->state + (r->lane * a->heads + h) * a->size : NULL;
  else if (a->init)
    from = a->init + h * a->size;
  if (from)
    tile_pack(a->kdim, a->vdim, from, a->vdim, s, a->vpad);
  else
    memset(s, 0, (size_t)(a->kdim * a->vpad) * sizeof *s);
}

/* ---- forward ---- */

typedef struct scan_out {
  real *o, *left;
} scan_out;

static size_t forward_bytes(const scan_args *a) {
  int64_t c = a->chunk;
  int64_t count =
      a->kdim * a->vpad + c * a->kdim * 2 + a->kdim * a->cpad + c * a->cpad + c * a->vpad * 2 + 2 * c;
  return (size_t)count * sizeof(real) + (size_t)c * sizeof(double) + (size_t)10 * 64;
}

static void forward_tokens(const scan_args *a, const scan_out *y, const wf_row *r, int64_t h, real *s) {
  for (int64_t t = r->begin; t < r->begin + r->len; t++) {
    const real *q = a->q + t * a->qs + h * a->qh, *k = a->k + t * a->ks + h * a->kh;
    const real *v = a->v + t * a->vs + h * a->vh;
    real *restrict o = y->o + (t * a->heads + h) * a->vdim, keep = r_exp(a->g[t * a->heads + h]);
    memset(o, 0, (size_t)a->vdim * sizeof *o);
    for (int64_t d = 0; d < a->kdim; d++) {
      real *restrict row = s + d * a->vpad, kd = k[d], qd = a->scale * q[d];
      for (int64_t c = 0; c < a->vdim; c++) {
        row[c] = keep * row[c] + kd * v[c];
        o[c] += qd * row[c];
      }
    }
  }
}

static void forward_chunk(const scan_args *a, const scan_out *y, int64_t h, const scan_chunk *c, real *s,
                          char *work) {
  real *q = take(&work, c->n * a->kdim), *ke = take(&work, c->n * a->kdim);
  real *kt = take(&work, a->kdim * a->cpad), *p = take(&work, c->n * a->cpad);
  real *vp = take(&work, c->n * a->vpad), *o = take(&work, c->n * a->vpad);
  int64_t pad = TILE_PAD(c->n);
  pack_scaled(c->n, a->kdim, c->q, a->qs, c->e, a->scale, q, a->kdim);
  tile_mm(c->n, a->vpad, a->kdim, q, a->kdim, 1, s, a->vpad, o, a->vpad, false);
  advance(a, c, s, ke, vp);
  pack_scaled(c->n, a->kdim, c->q, a->qs, NULL, a->scale, q, a->kdim);
  tile_transpose(c->n, a->kdim, c->k, a->ks, kt, a->cpad, pad);
  tile_mm(c->n, pad, a->kdim, q, a->kdim, 1, kt, a->cpad, p, a->cpad, false);
  for (int64_t t = 0; t < c->n; t++) {
    real *row = p + t * a->cpad;
    double bt = c->b[t];
    WF_PRAGMA(omp simd)
    for (int64_t j = 0; j <= t; j++) row[j] *= tile_exp((real)(bt - c->b[j]));
    for (int64_t j = t + 1; j < c->n; j++) row[j] = 0;
  }
  tile_mm(c->n, a->vpad, c->n, p, a->cpad, 1, vp, a->vpad, o, a->vpad, true);
  for (int64_t t = 0; t < c->n; t++)
    memcpy(y->o + ((c->token + t) * a->heads + h) * a->vdim, o + t * a->vpad, (size_t)a->vdim * sizeof *o);
}

static void forward_row(const scan_args *a, const scan_out *y, const wf_row *r, int64_t h, bool by_token,
                        char *work) {
  real *s = take(&work, a->kdim * a->vpad);
  enter(a, r, h, s);
  if (by_token) {
    forward_tokens(a, y, r, h, s);
  } else {
    scan_chunk c = {.b = (double *)(void *)take(&work, a->chunk * (int64_t)(sizeof(double) / sizeof(real))),
                    .e = take(&work, a->chunk),
                    .f = take(&work, a->chunk)};
    for (int64_t t = 0; t < r->len; t += a->chunk) {
      open_chunk(a, r, h, t, &c);
      forward_chunk(a, y, h, &c, s, work);
    }
  }
  if (y->left && wf_row_leaves(r))
    for (int64_t d = 0; d < a->kdim; d++)
      memcpy(y->left + (r->lane * a->heads + h) * a->size + d * a->vdim, s + d * a->vpad,
             (size_t)a->vdim * sizeof *s);
}

/* Lanes that no row leaves keep their state. */
static void keep_lanes(const scan_args *a, int64_t lanes, const real *from, real *to, bool add) {
  int64_t size = a->heads * a->size;
  for (int64_t l = 0; l < lanes; l++) {
    bool copy = from && !wf_lane_left(a->row, a->rows, l);
    if (!copy && !add) memset(to + l * size, 0, (size_t)size * sizeof *to);
    for (int64_t i = l * size; i < (l + 1) * size && copy; i++) to[i] = from[i] + (add ? to[i] : 0);
  }
}

static int64_t scan_work(const scan_args *a) { /* element operations of a row and head, nearly */
  return a->longest * (a->kdim + 8) * (a->vdim + 8) / 4;
}

WF_KERNEL(scan_scalar) {
  scan_args a;
  WF_TRY(scan_read(call, &a));
  const scan_attr *at = call->attr;
  scan_out y = {wf_data(call->out[0]), call->n_out > 1 ? wf_data(call->out[1]) : NULL};
  if (y.left) keep_lanes(&a, at->lanes, a.state, y.left, false);
  wf_device *dev = wf_ctx_device(call->ctx);
  int64_t tasks = a.rows * a.heads;
  int threads = wf_threads_for(tasks, scan_work(&a));
  size_t each = (forward_bytes(&a) + 63) / 64 * 64;
  void *work;
  WF_TRY(wf_device_alloc(dev, "scan", each * (size_t)threads, &work));
  WF_PRAGMA(omp parallel num_threads(threads) if (threads > 1)) {
#  ifdef _OPENMP
    char *mine = (char *)work + each * (size_t)(threads > 1 ? omp_get_thread_num() : 0);
#  else
    char *mine = work;
#  endif
    WF_PRAGMA(omp for schedule(dynamic, 1))
    for (int64_t task = 0; task < tasks; task++) {
      const wf_row *r = &a.row[task / a.heads];
      forward_row(&a, &y, r, task % a.heads, at->o.chunk == 1 || (!at->o.chunk && r->len < SHORT), mine);
    }
  }
  wf_device_free(dev, "scan", work, each * (size_t)threads);
  return WF_OK;
}

/* ---- gradient ---- */

typedef struct grad_out { /* NULL where not wanted */
  real *p;
  int64_t s, h;
  bool add;
} grad_out;

typedef struct grad_work {
  real *starts, *states, *s, *ds; /* starts of segments, of chunks; a state; its gradient */
  real *q, *k, *kt, *vt, *dout, *st, *p, *x, *y, *dv; /* of one chunk */
  scan_chunk c;
  double *passing, *sum; /* over steps t: columns of W, terms of dg */
  char *end;
} grad_work;

/* Chunks of a segment: the same for every row, as the longest needs. */
static int64_t segment_of(const scan_args *a) {
  int64_t chunks = (a->longest + a->chunk - 1) / a->chunk, m = 1;
  if (chunks <= 32) return chunks ? chunks : 1;
  while (m * m < chunks) m++;
  return m;
}

static void carve(const scan_args *a, char *at, grad_work *w) {
  int64_t c = a->chunk, wide = a->kdim > a->vdim ? a->kpad : a->vpad, state = a->kdim * a->vpad;
  int64_t chunks = (a->longest + c - 1) / c, m = segment_of(a);
  int64_t twice = (int64_t)(sizeof(double) / sizeof(real));
  w->starts = take(&at, (chunks + m - 1) / m * state);
  w->states = take(&at, m * state);
  w->s = take(&at, state);
  w->ds = take(&at, state);
  w->q = take(&at, c * a->kpad);
  w->k = take(&at, c * a->kpad);
  w->kt = take(&at, a->kdim * a->cpad);
  w->vt = take(&at, a->vdim * a->cpad);
  w->dout = take(&at, c * a->vpad);
  w->st = take(&at, a->vdim * a->kpad);
  w->p = take(&at, c * a->cpad);
  w->x = take(&at, c * a->cpad);
  w->y = take(&at, c * wide);
  w->dv = take(&at, c * wide);
  w->c.e = take(&at, c);
  w->c.f = take(&at, c);
  w->c.b = (double *)(void *)take(&at, c * twice);
  w->passing = (double *)(void *)take(&at, c * twice);
  w->sum = (double *)(void *)take(&at, (c + 1) * twice);
  w->end = at;
}

static void store(const grad_out *o, int64_t token, int64_t h, int64_t n, int64_t dim, const real *src,
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

static inline double dot(int64_t n, const real *x, const real *y) {
  double sum = 0;
  WF_PRAGMA(omp simd reduction(+ : sum))
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)y[i];
  return sum;
}

/* Decay the products P = Q K^T and X = dO V^T; into sum[t] what passes over step t inside the chunk. */
static void decay(const scan_args *a, const grad_work *w) {
  const scan_chunk *c = &w->c;
  for (int64_t j = 0; j < c->n; j++) w->passing[j] = 0;
  for (int64_t t = c->n - 1; t >= 0; t--) {
    real *p = w->p + t * a->cpad, *x = w->x + t * a->cpad;
    double bt = c->b[t], over = 0;
    WF_PRAGMA(omp simd)
    for (int64_t j = 0; j <= t; j++) {
      real d = tile_exp((real)(bt - c->b[j]));
      x[j] *= d;
      w->passing[j] += (double)(p[j] * x[j]);
      p[j] *= d;
    }
    WF_PRAGMA(omp simd reduction(+ : over))
    for (int64_t j = 0; j < t; j++) over += w->passing[j];
    w->sum[t] = over;
    for (int64_t j = t + 1; j < c->n; j++) p[j] = x[j] = 0;
  }
}

/* One chunk, given the state entering it; w->ds goes from dS' to dS0. */
static void chunk_grad(const scan_args *a, const grad_out *out, int64_t h, const real *s0,
                       const grad_work *w) {
  const scan_chunk *c = &w->c;
  int64_t n = c->n, pad = TILE_PAD(n), kp = a->kpad, vp = a->vpad;
  pack_scaled(n, a->kdim, c->q, a->qs, NULL, a->scale, w->q, kp);
  tile_pack(n, a->kdim, c->k, a->ks, w->k, kp);
  tile_transpose(n, a->kdim, c->k, a->ks, w->kt, a->cpad, pad);
  tile_transpose(n, a->vdim, c->v, a->vs, w->vt, a->cpad, pad);
  if (a->dout)
    tile_pack(n, a->vdim, a->dout + c->token * a->dos + h * a->doh, a->dos, w->dout, vp);
  else
    memset(w->dout, 0, (size_t)(n * vp) * sizeof(real));
  tile_mm(n, pad, a->kdim, w->q, kp, 1, w->kt, a->cpad, w->p, a->cpad, false);
  tile_mm(n, pad, a->vdim, w->dout, vp, 1, w->vt, a->cpad, w->x, a->cpad, false);
  decay(a, w);

  /* dQ, and the terms of the state entering */
  tile_transpose(a->kdim, a->vdim, s0, vp, w->st, kp, kp);
  tile_mm(n, kp, a->vdim, w->dout, vp, 1, w->st, kp, w->y, kp, false);
  double after = 0, before = 0, through = (double)c->last * dot(a->kdim * vp, s0, w->ds);
  for (int64_t t = n - 1; t >= 0; t--) {
    after += (double)c->e[t] * dot(a->kdim, w->q + t * kp, w->y + t * kp);
    w->sum[t] += after + through;
    for (int64_t d = 0; d < kp; d++) w->y[t * kp + d] *= c->e[t];
  }
  tile_mm(n, kp, n, w->x, a->cpad, 1, w->k, kp, w->y, kp, true);
  store(&out[WANT_Q], c->token, h, n, a->kdim, w->y, kp, a->scale);

  /* dK, and the terms of the state leaving */
  tile_transpose(a->kdim, a->vdim, w->ds, vp, w->st, kp, kp);
  tile_mm(n, kp, a->vdim, c->v, a->vs, 1, w->st, kp, w->y, kp, false);
  for (int64_t t = 0; t < n; t++) {
    w->sum[t] += before;
    before += (double)c->f[t] * dot(a->kdim, w->k + t * kp, w->y + t * kp);
    for (int64_t d = 0; d < kp; d++) w->y[t * kp + d] *= c->f[t];
  }
  tile_mm(n, kp, n, w->x, 1, a->cpad, w->q, kp, w->y, kp, true);
  store(&out[WANT_K], c->token, h, n, a->kdim, w->y, kp, 1);

  tile_mm(n, vp, a->kdim, w->k, kp, 1, w->ds, vp, w->dv, vp, false);
  for (int64_t t = 0; t < n; t++)
    for (int64_t d = 0; d < vp; d++) w->dv[t * vp + d] *= c->f[t];
  tile_mm(n, vp, n, w->p, 1, a->cpad, w->dout, vp, w->dv, vp, true);
  store(&out[WANT_V], c->token, h, n, a->vdim, w->dv, vp, 1);

  const grad_out *dg = &out[WANT_G];
  for (int64_t t = 0; t < n && dg->p; t++) {
    real *to = dg->p + (c->token + t) * dg->s + h * dg->h;
    *to = (real)w->sum[t] + (dg->add ? *to : 0);
  }
  for (int64_t i = 0; i < a->kdim * vp; i++) w->ds[i] *= c->last;
  for (int64_t t = 0; t < n; t++)
    for (int64_t d = 0; d < a->kdim; d++) w->q[t * kp + d] *= c->e[t];
  tile_mm(a->kdim, vp, n, w->q, 1, kp, w->dout, vp, w->ds, vp, true);
}

/* One row and head; leaves the gradient of the state it started from in w->ds. */
static void row_grad(const scan_args *a, const grad_out *out, const wf_row *r, int64_t h, grad_work *w) {
  int64_t state = a->kdim * a->vpad, chunks = (r->len + a->chunk - 1) / a->chunk, m = segment_of(a);
  int64_t segments = (chunks + m - 1) / m;
  enter(a, r, h, w->s);
  for (int64_t g = 0; g < segments; g++) {
    memcpy(w->starts + g * state, w->s, (size_t)state * sizeof(real));
    for (int64_t i = g * m; i < (g + 1) * m && g + 1 < segments; i++) {
      open_chunk(a, r, h, i * a->chunk, &w->c);
      advance(a, &w->c, w->s, w->q, w->dv);
    }
  }
  if (a->dstate && wf_row_leaves(r))
    tile_pack(a->kdim, a->vdim, a->dstate + (r->lane * a->heads + h) * a->size, a->vdim, w->ds, a->vpad);
  else
    memset(w->ds, 0, (size_t)state * sizeof(real));
  for (int64_t g = segments - 1; g >= 0; g--) {
    int64_t end = (g + 1) * m < chunks ? (g + 1) * m : chunks;
    memcpy(w->states, w->starts + g * state, (size_t)state * sizeof(real));
    for (int64_t i = g * m; i + 1 < end; i++) {
      real *next = w->states + (i + 1 - g * m) * state;
      memcpy(next, next - state, (size_t)state * sizeof(real));
      open_chunk(a, r, h, i * a->chunk, &w->c);
      advance(a, &w->c, next, w->q, w->dv);
    }
    for (int64_t i = end - 1; i >= g * m; i--) {
      open_chunk(a, r, h, i * a->chunk, &w->c);
      chunk_grad(a, out, h, w->states + (i - g * m) * state, w);
    }
  }
}

/* Rows first .. last-1 of a head, in order. `init` [kdim, vdim] or NULL: sum of their fresh rows' gradients.
 */
static void rows_grad(const scan_args *a, const grad_out *out, int64_t first, int64_t last, int64_t h,
                      real *init, grad_work *w) {
  if (init) memset(init, 0, (size_t)a->size * sizeof *init);
  for (int64_t r = first; r < last; r++) {
    const wf_row *row = &a->row[r];
    row_grad(a, out, row, h, w);
    real *to = init;
    if (wf_row_takes(row))
      to = out[WANT_STATE].p ? out[WANT_STATE].p + (row->lane * a->heads + h) * a->size : NULL;
    for (int64_t d = 0; d < a->kdim && to; d++)
      for (int64_t c = 0; c < a->vdim; c++) to[d * a->vdim + c] += w->ds[d * a->vpad + c];
  }
}

WF_KERNEL(scan_scalar_grad) {
  scan_args a;
  WF_TRY(scan_read(call, &a));
  const scan_attr *at = call->attr;
  const wf_tensor *d = call->in[SCAN_DO], *ds = call->in[SCAN_DSTATE];
  if (d) a.dout = wf_data(d), a.dos = d->stride[0], a.doh = d->stride[1];
  if (ds) a.dstate = wf_data(ds);
  grad_out out[WANTS] = {{NULL, 0, 0, false}};
  for (int i = 0, n = 0; i < WANTS; i++)
    if (at->want >> i & 1) {
      const wf_tensor *t = call->out[n];
      out[i] = (grad_out){wf_data(t), t->stride[0], t->stride[1], call->add >> n & 1};
      n++;
    }
  if (out[WANT_STATE].p) keep_lanes(&a, at->lanes, a.dstate, out[WANT_STATE].p, out[WANT_STATE].add);

  /* Tasks: a head and one of `parts` runs of rows, so that sums over fresh rows have a fixed order. */
  int threads = wf_threads_for(a.rows * a.heads, 3 * scan_work(&a));
  int64_t parts = a.rows;
  if (out[WANT_INIT].p && a.heads && parts > (4 * threads + a.heads - 1) / a.heads)
    parts = (4 * threads + a.heads - 1) / a.heads;
  grad_work probe;
  carve(&a, (char *)&probe, &probe);
  size_t each = (size_t)(probe.end - (char *)&probe), space = each * (size_t)threads;
  size_t sums = out[WANT_INIT].p ? (size_t)(parts * a.heads * a.size) * sizeof(real) : 0;
  wf_device *dev = wf_ctx_device(call->ctx);
  void *work;
  WF_TRY(wf_device_alloc(dev, "scan", space + sums, &work));
  real *init = out[WANT_INIT].p ? (real *)(void *)((char *)work + space) : NULL;
  WF_PRAGMA(omp parallel num_threads(threads) if (threads > 1)) {
    grad_work w;
#  ifdef _OPENMP
    carve(&a, (char *)work + each * (size_t)(threads > 1 ? omp_get_thread_num() : 0), &w);
#  else
    carve(&a, work, &w);
#  endif
    WF_PRAGMA(omp for schedule(dynamic, 1))
    for (int64_t task = 0; task < parts * a.heads; task++) {
      int64_t part = task / a.heads, h = task % a.heads;
      rows_grad(&a, out, wf_range_begin(a.rows, (int)part, (int)parts),
                wf_range_begin(a.rows, (int)part + 1, (int)parts), h, init ? init + task * a.size : NULL, &w);
    }
  }
  const grad_out *di = &out[WANT_INIT];
  for (int64_t i = 0; i < a.heads * a.size && di->p; i++) {
    real sum = di->add ? di->p[i] : 0;
    for (int64_t part = 0; part < parts; part++) sum += init[part * a.heads * a.size + i];
    di->p[i] = sum;
  }
  wf_device_free(dev, "scan", work, space + sums);
  return WF_OK;
}

#else

WF_CPU(scan_scalar)
WF_CPU(scan_scalar_grad)
WF_CUDA_DECLARE(scan_scalar)
WF_CUDA_DECLARE(scan_scalar_grad)

static wf_status check(const wf_call *call, wf_desc *state) {
  const scan_attr *a = call->attr;
  const wf_tensor *q = call->in[SCAN_Q], *k = call->in[SCAN_K], *v = call->in[SCAN_V], *g = call->in[SCAN_G];
  const wf_tensor *s = call->in[SCAN_STATE], *i = call->in[SCAN_INIT], *table = call->in[SCAN_TABLE];
  char t[3][96];
  WF_SHAPE_CHECK(q->ndim == 3 && wf_same_shape(q, k) && v->ndim == 3 && v->shape[0] == q->shape[0] &&
                     v->shape[1] == q->shape[1] && k->dtype == q->dtype && v->dtype == q->dtype,
                 "scan_scalar: q %s, k %s, v %s", wf_shape_text(q, t[0]), wf_shape_text(k, t[1]),
                 wf_shape_text(v, t[2]));
  WF_SHAPE_CHECK(g->ndim == 2 && g->shape[0] == q->shape[0] && g->shape[1] == q->shape[1] &&
                     g->dtype == q->dtype,
                 "scan_scalar: log decays %s for q %s", wf_shape_text(g, t[0]), wf_shape_text(q, t[1]));
  int64_t shape[4] = {a->lanes, q->shape[1], q->shape[2], v->shape[2]};
  wf_desc_set(state, q->dtype, 4, shape);
  bool fits = !s || (s->ndim == 4 && s->dtype == q->dtype),
       begins = !i || (i->ndim == 3 && i->dtype == q->dtype);
  for (int d = 0; d < 4; d++) {
    fits = fits && (!s || s->shape[d] == shape[d]);
    begins = begins && (!i || d == 0 || i->shape[d - 1] == shape[d]);
  }
  WF_SHAPE_CHECK(fits, "scan_scalar: state %s for q %s, v %s", wf_shape_text(s, t[0]), wf_shape_text(q, t[1]),
                 wf_shape_text(v, t[2]));
  WF_SHAPE_CHECK(begins, "scan_scalar: initial state %s for q %s, v %s", wf_shape_text(i, t[0]),
                 wf_shape_text(q, t[1]), wf_shape_text(v, t[2]));
  WF_SHAPE_CHECK(table->ndim == 2 && table->shape[1] == WF_ROW_COLS && table->dtype == WF_I64,
                 "scan_scalar: the table of rows is %s", wf_shape_text(table, t[0]));
  if (a->o.chunk < 0) return WF_FAIL(WF_EINVAL, "scan_scalar: chunks of %lld tokens", (long long)a->o.chunk);
  return WF_OK;
}

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  WF_TRY(check(call, &out[1]));
  wf_desc_like(&out[0], call->in[SCAN_V]);
  *n_out = ((const scan_attr *)call->attr)->leaves ? 2 : 1;
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  scan_attr a = *(const scan_attr *)g->attr;
  wf_tensor *in[] = {g->in[0], g->in[1],   g->in[2],
                     g->in[3], g->in[4],   g->in[5],
                     g->in[6], g->dout[0], a.leaves ? g->dout[1] : NULL};
  wf_tensor *out[WANTS];
  uint32_t add = 0;
  int n = 0;
  a.want = 0;
  for (int i = 0; i < WANTS; i++) {
    if (!g->din[i]) continue;
    a.want |= 1 << i;
    add |= (g->add >> i & 1) << n;
    out[n++] = g->din[i];
  }
  return n ? wf_op_run(g->ctx, &wf_op_scan_scalar_grad, 9, in, &a, n, out, add) : WF_OK;
}

/* Products of the chunk form; `products`: how many of each kind for a chunk. */
static void chunk_cost(const wf_call *call, double square, double deep, double *flops, double *bytes) {
  const wf_tensor *q = call->in[SCAN_Q], *v = call->in[SCAN_V];
  int64_t chunk = ((const scan_attr *)call->attr)->o.chunk;
  double nh = (double)(q->shape[0] * q->shape[1]), k = (double)q->shape[2], w = (double)v->shape[2];
  *flops = nh * (square * (chunk ? (double)chunk : 64) * (k + w) + deep * 2 * k * w);
  *bytes = nh * (2 * k + 2 * w + 1) * (double)wf_dtype_size(q->dtype) * (square > 1 ? 2 : 1);
}
static void cost(const wf_call *call, double *flops, double *bytes) {
  chunk_cost(call, 1, 2, flops, bytes);
}
static void grad_cost(const wf_call *call, double *flops, double *bytes) {
  chunk_cost(call, 3, 5, flops, bytes);
}

/* Takes and leaves lanes in every way; rows longer than the forced chunk; a fresh row with and without init.
 */
static wf_status sample(wf_sample *s) {
  static const wf_row row[] = {
      {.begin = 0, .len = 4, .lane = 2, .pos = 4, .place = 4, .flags = 3},
      {.begin = 4, .len = 3, .lane = 0, .flags = WF_ROW_LEAVES},
      {.begin = 7, .len = 1, .lane = 0, .pos = 1, .place = 1, .flags = WF_ROW_TAKES}};
  bool none = s->index == 3, fresh = s->index == 1;
  wf_row made[3] = {row[0], row[1], row[2]};
  for (int i = 0; i < 3 && fresh; i++) made[i].flags = 0;
  int64_t n = none ? 0 : 8, lanes = 3, h = 2, k = 3, v = 2, width = h * (2 * k + v);
  wf_tensor *joined = wf_sample_real(s, WF_SHAPE(n, width));
  s->in[SCAN_Q] = wf_view_raw(joined, 3, (int64_t[]){n, h, k}, (int64_t[]){width, k, 1}, 0);
  s->in[SCAN_K] = wf_view_raw(joined, 3, (int64_t[]){n, h, k}, (int64_t[]){width, k, 1}, h * k);
  s->in[SCAN_V] = wf_view_raw(joined, 3, (int64_t[]){n, h, v}, (int64_t[]){width, v, 1}, 2 * h * k);
  s->in[SCAN_G] = wf_sample_range(s, WF_SHAPE(n, h), s->index == 2 ? -4 : -0.5, 0);
  s->in[SCAN_STATE] = fresh ? NULL : wf_sample_real(s, WF_SHAPE(lanes, h, k, v));
  s->in[SCAN_INIT] = s->index == 2 ? NULL : wf_sample_real(s, WF_SHAPE(h, k, v));
  s->in[SCAN_TABLE] = wf_from_host(s->ctx, "sample", WF_I64, WF_SHAPE(none ? 0 : 3, WF_ROW_COLS), made);
  s->n_in = 7;
  *(scan_attr *)(void *)s->attr = (scan_attr){.o = {.scale = 0.6,
                                                    .chunk = s->index == 0   ? 3
                                                             : s->index == 1 ? 1
                                                                             : 0},
                                              .lanes = lanes,
                                              .leaves = !fresh};
  return WF_OK;
}

const wf_op wf_op_scan_scalar = {
    .name = "scan_scalar",
    .min_in = 7,
    .max_in = 7,
    .n_out = -1,
    .attr_size = sizeof(scan_attr),
    .optional = 1 << SCAN_STATE | 1 << SCAN_INIT,
    .rowmajor = 1 << SCAN_Q | 1 << SCAN_K | 1 << SCAN_V,
    .save_in = 0x7f,
    .vjp_adds = 0x3f,
    .nograd_in = 1 << SCAN_TABLE,
    .infer = infer,
    .vjp = vjp,
    .cpu = &scan_scalar_cpu,
    .cuda = WF_CUDA_FN(scan_scalar),
    .cost = cost,
    .sample = sample,
    .n_samples = 4,
};

static wf_status grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  wf_desc state;
  WF_TRY(check(call, &state));
  int32_t want = ((const scan_attr *)call->attr)->want;
  *n_out = 0;
  for (int i = 0; i < WANTS; i++)
    if (want >> i & 1) {
      WF_SHAPE_CHECK(call->in[i], "scan_scalar_grad: no input for output %d", i);
      wf_desc_like(&out[(*n_out)++], call->in[i]);
    }
  return WF_OK;
}

static wf_status grad_sample(wf_sample *s) {
  WF_TRY(sample(s));
  scan_attr *a = (scan_attr *)(void *)s->attr;
  a->want = 15 | (s->in[SCAN_STATE] ? 16 : 0) | (s->in[SCAN_INIT] ? 32 : 0);
  s->in[SCAN_DO] = wf_sample_real(s, 3, s->in[SCAN_V]->shape);
  s->in[SCAN_DSTATE] = a->leaves ? wf_sample_real(s, 4, s->in[SCAN_STATE]->shape) : NULL;
  s->n_in = 9;
  return WF_OK;
}

const wf_op wf_op_scan_scalar_grad = {
    .name = "scan_scalar_grad",
    .min_in = 9,
    .max_in = 9,
    .n_out = -1,
    .attr_size = sizeof(scan_attr),
    .optional = 1 << SCAN_STATE | 1 << SCAN_INIT | 1 << SCAN_DO | 1 << SCAN_DSTATE,
    .rowmajor = 1 << SCAN_Q | 1 << SCAN_K | 1 << SCAN_V | 1 << SCAN_DO,
    .adds = 0x3f,
    .rowmajor_out = 0xf,
    .infer = grad_infer,
    WF_NONDIFF("gradient of scan_scalar; first order only"),
    .cpu = &scan_scalar_grad_cpu,
    .cuda = WF_CUDA_FN(scan_scalar_grad),
    .cost = grad_cost,
    .sample = grad_sample,
    .n_samples = 4,
};

wf_tensor *wf_scan_scalar(wf_ctx *c, wf_tensor *q, wf_tensor *k, wf_tensor *v, wf_tensor *g, wf_tensor *state,
                          wf_tensor *init, const wf_rows *rows, const wf_scan_options *o,
                          wf_tensor **state_out) {
  scan_attr a = {.o = *o, .lanes = rows->n_lanes, .leaves = state_out != NULL};
  wf_status s = wf_state_given("scan_scalar", state, rows);
  if (s != WF_OK) {
    if (state_out) *state_out = wf_poison(c, s);
    return wf_poison(c, s);
  }
  wf_tensor *out[WF_MAX_OUT];
  wf_op_apply(c, &wf_op_scan_scalar, 7, (wf_tensor *[]){q, k, v, g, state, init, rows->table}, &a, out);
  if (state_out) *state_out = out[1];
  return out[0];
}

#endif
