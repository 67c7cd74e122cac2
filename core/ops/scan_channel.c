/* scan_channel: the linear recurrence with a decay for each channel of the keys,
 *     S_t = diag(e^{g_t}) S_{t-1} + w_t k_t^T v_t,   o_t = s q_t S_t,
 * the core of GLA, HGRN2 and GateLoop.
 *
 * With b the inclusive cumulative log decays inside a chunk, Q already scaled, K already weighted, S0 the
 * state entering and S' the one leaving:
 *     O  = (Q . e^b) S0 + A V,   A[t,j] = sum_d Q[t,d] K[j,d] e^{b[t,d] - b[j,d]} for j <= t
 *     S' = diag(e^{b_C}) S0 + (K . e^{b_C - b})^T V
 * A is a product of matrices once its exponents are divided between Q and K, but e^{-b} alone can overflow.
 * So a chunk is cut into blocks of at most 16 tokens, and block i has an anchor n_i = b at its first token:
 *     A_i = (Q_i . e^{b_i - n_i}) (K . e^{n_i - b})^T
 * The exponents of Q_i and of all earlier keys are <= 0; those of the block's own keys are at most FAR, since
 * a block ends before a channel would decay by more than e^-FAR in it: where decays are strong, blocks are
 * short, down to single tokens. From one block to the next all keys so far are multiplied by e^{n_{i+1} -
 * n_i}. Where a block ends depends on no later token, and so no output does.
 *
 * A product e^{b_t - n} e^{n - b_j} of two long exponents must be as good as e^{b_t - b_j}, so sums of logs
 * are kept in two reals, and e^x is taken of both.
 *
 * Backward, with dP = tril(dO V^T), by the same blocks:
 *     dQ[t] = e^{b_t} . (dO_t S0^T) + sum_{j<=t} dP[t,j] K_j . e^{b_t - b_j}
 *     dK[j] = e^{b_C - b_j} . (V_j dS'^T) + sum_{t>=j} dP[t,j] Q_t . e^{b_t - b_j}
 *     dV  = A^T dO + (K . e^{b_C - b}) dS'
 *     dS0 = diag(e^{b_C}) dS' + (Q . e^b)^T dO
 *     dg_t = sum_{i>=t} q_i . e^{b_i} . (dO_i S0^T) + sum_{j<t} k_j . e^{b_C - b_j} . (V_j dS'^T)
 *            + e^{b_C} . rowsum(S0 . dS') + sum_{i>=t>j} dP_ij q_i . k_j . e^{b_i - b_j}
 * The last sum is that of q dq - k dk from the nearer end of the chunk, of their parts inside it without t =
 * j; the others are plain. (mixers 2)
 */
#include "core/ops/scan_impl.h"

#ifdef WF_KERNEL_PASS

enum { BLOCK = 16, FAR = 30, WIDE = (int)(sizeof(double) / sizeof(real)) };

/* The decays of a chunk. */
typedef struct fades {
  int64_t blocks;
  int64_t *begin; /* [blocks + 1] first tokens of blocks */
  real *p, *r;    /* [n, kpad]: e^{b_t - n_i}, e^{n_i - b_t}, i the block of t */
  real *enter;    /* [blocks, kpad]: e^{n_i} */
  real *step;     /* [blocks, kpad]: e^{n_i - n_{i-1}} */
  real *leave;    /* [blocks, kpad]: e^{b_C - n_i} */
  real *all;      /* [kpad]: e^{b_C} */
} fades;

static inline void prefetch(int64_t n, const real *x) {
  for (int64_t d = 0; d < n; d += 64 / (int64_t)sizeof *x) __builtin_prefetch(x + d);
}

static int64_t fades_space(const scan_args *a) {
  return 5 * a->chunk * a->kpad + a->kpad + (a->chunk + 1 + 2 * a->kpad) * WIDE + 9 * TAKE_SLACK;
}

/* Sums of logs are kept in two reals, the second what the first cannot hold (Knuth's two-sum), so that e^x
 * has the digits of x's last terms however large x is. */
static inline void add_log(real g, real *high, real *low) {
  real x = g < R(-1e4) ? R(-1e4) : g; /* e^-1e4 is 0, as is e^-inf */
  real sum = *high + x, part = sum - *high;
  *low += (*high - (sum - part)) + (x - part);
  *high = sum;
}
static inline real exp_two(real high, real low) {
  real e = tile_exp(high);
  return e + e * low;
}

/* Token t of a block: its decays since the anchor into p and r, given the sums of logs before it, which it
 * joins. The least sum. */
static real fade_token(int64_t n, const real *restrict g, real *restrict high, real *restrict low,
                       real *restrict p, real *restrict r) {
  real least = 0;
  WF_PRAGMA(omp simd reduction(min : least))
  for (int64_t d = 0; d < n; d++) {
    real h = high[d], l = low[d];
    add_log(g[d], &h, &l);
    p[d] = exp_two(h, l);
    r[d] = exp_two(-h, -l);
    high[d] = h, low[d] = l;
    least = h < least ? h : least;
  }
  return least;
}

static fades fades_of(const scan_args *a, const scan_chunk *c, char **work) {
  const int64_t kp = a->kpad, kd = a->kdim, n = c->n;
  fades x = {.begin = (int64_t *)(void *)take_double(work, a->chunk + 1)};
  x.p = take(work, n * kp), x.r = take(work, n * kp);
  x.enter = take(work, n * kp), x.step = take(work, n * kp), x.leave = take(work, n * kp);
  x.all = take(work, kp);
  real *high = take(work, 2 * kp), *low = high + kp, *total = take(work, 2 * kp);
  for (int64_t d = 0; d < 2 * kp; d++) high[d] = total[d] = 0;
  for (int64_t t = 0; t < n; t++)
    for (int64_t d = kd; d < kp; d++) x.p[t * kp + d] = x.r[t * kp + d] = 1;
  for (int64_t t = 0; t < n; t++) {
    if (t + 8 < n) prefetch(kd, c->g + (t + 8) * a->gs); /* rows are far apart and the arithmetic long */
    prefetch(kd, c->q + t * a->qs);
    prefetch(kd, c->k + t * a->ks);
    prefetch(a->vdim, c->v + t * a->vs);
    if (c->dout) prefetch(a->vdim, c->dout + t * a->dos);
    real *p = x.p + t * kp, *r = x.r + t * kp;
    real least = fade_token(kd, c->g + t * a->gs, high, low, p, r);
    if (t && least >= -FAR && t - x.begin[x.blocks - 1] < BLOCK) continue;
    real *enter = x.enter + x.blocks * kp, *step = x.step + x.blocks * kp;
    WF_PRAGMA(omp simd)
    for (int64_t d = 0; d < kp; d++) {
      add_log(high[d], &total[d], &total[kp + d]);
      total[kp + d] += low[d];
      step[d] = exp_two(high[d], low[d]);
      enter[d] = exp_two(total[d], total[kp + d]);
      high[d] = low[d] = 0;
      p[d] = r[d] = 1;
    }
    x.begin[x.blocks++] = t;
  }
  x.begin[x.blocks] = n;
  memcpy(x.leave + (x.blocks - 1) * kp, x.p + (n - 1) * kp, (size_t)kp * sizeof(real));
  for (int64_t i = x.blocks - 2; i >= 0; i--)
    for (int64_t d = i * kp; d < (i + 1) * kp; d++) x.leave[d] = x.leave[d + kp] * x.step[d + kp];
  for (int64_t d = 0; d < kp; d++) x.all[d] = x.enter[d] * x.leave[d];
  return x;
}

/* dst [n, kpad] = s Q . p */
static void pack_queries(const scan_args *a, const scan_chunk *c, const fades *x, real *dst) {
  for (int64_t t = 0; t < c->n; t++) {
    const real *q = c->q + t * a->qs, *p = x->p + t * a->kpad;
    real *to = dst + t * a->kpad;
    for (int64_t d = 0; d < a->kdim; d++) to[d] = a->scale * q[d] * p[d];
    for (int64_t d = a->kdim; d < a->kpad; d++) to[d] = 0;
  }
}

/* dst [n, kpad] = w K . r */
static void pack_keys(const scan_args *a, const scan_chunk *c, const fades *x, real *dst) {
  for (int64_t t = 0; t < c->n; t++) {
    const real *k = c->k + t * a->ks, *r = x->r + t * a->kpad, w = scan_weight(a, c, t);
    real *to = dst + t * a->kpad;
    for (int64_t d = 0; d < a->kdim; d++) to[d] = w * k[d] * r[d];
    for (int64_t d = a->kdim; d < a->kpad; d++) to[d] = 0;
  }
}

static inline void fade(int64_t n, real *restrict x, const real *restrict by) {
  for (int64_t d = 0; d < n; d++) x[d] *= by[d];
}

/* S [kdim, vpad] = diag(e^{b_C}) S + M V of n tokens: M[d, t] is m[d rs + t cs], V [n, vpad]. */
static void move(const scan_args *a, const fades *x, int64_t n, const real *m, int64_t rs, int64_t cs,
                 const real *v, real *s) {
  for (int64_t d = 0; d < a->kdim; d++) {
    real keep = x->all[d];
    for (int64_t i = 0; i < a->vpad; i++) s[d * a->vpad + i] *= keep;
  }
  tile_mm(a->kdim, a->vpad, n, m, rs, cs, v, a->vpad, s, a->vpad, true);
}

static void advance(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  int64_t kp = a->kpad;
  fades x = fades_of(a, c, &work);
  real *k = take(&work, c->n * kp), *v = take(&work, c->n * a->vpad);
  pack_keys(a, c, &x, k);
  for (int64_t i = 0; i < x.blocks; i++)
    for (int64_t t = x.begin[i]; t < x.begin[i + 1]; t++) fade(kp, k + t * kp, x.leave + i * kp);
  tile_pack(c->n, a->vdim, c->v, a->vs, v, a->vpad);
  move(a, &x, c->n, k, 1, kp, v, s);
}

/* Block i of A, or with other factors of the same form: rows of the block of (Q kt), columns up to its end,
 * zero above the diagonal; kt [dim, cpad]. */
static void block_rows(const scan_args *a, const fades *x, int64_t i, int64_t dim, const real *q, int64_t ld,
                       const real *kt, real *to) {
  int64_t begin = x->begin[i], end = x->begin[i + 1], cp = a->cpad;
  tile_mm(end - begin, TILE_PAD(end), dim, q + begin * ld, ld, 1, kt, cp, to + begin * cp, cp, false);
  for (int64_t t = begin; t < end; t++)
    for (int64_t j = t + 1; j < end; j++) to[t * cp + j] = 0;
}

/* Keys kt [kdim, cpad] for block i: the earlier ones move to its anchor, its own enter from k [n, kpad]. */
static void enter_keys(const scan_args *a, const fades *x, int64_t i, const real *k, real *kt) {
  int64_t begin = x->begin[i], end = x->begin[i + 1], kp = a->kpad, cp = a->cpad;
  const real *step = x->step + i * kp;
  for (int64_t d = 0; d < a->kdim; d++)
    for (int64_t j = 0; j < begin; j++) kt[d * cp + j] *= step[d];
  tile_transpose(end - begin, a->kdim, k + begin * kp, kp, kt + begin, cp, TILE_PAD(end) - begin);
}

/* From the last block's anchor to the end of the chunk. */
static void leave_keys(const scan_args *a, const fades *x, int64_t n, real *kt) {
  const real *leave = x->leave + (x->blocks - 1) * a->kpad;
  for (int64_t d = 0; d < a->kdim; d++)
    for (int64_t j = 0; j < n; j++) kt[d * a->cpad + j] *= leave[d];
}

static int64_t forward_space(const scan_args *a) {
  int64_t c = a->chunk;
  return fades_space(a) + 2 * c * a->kpad + a->kdim * a->cpad + c * a->cpad + 2 * c * a->vpad +
         6 * TAKE_SLACK;
}

static void tokens(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  real *keep = take(&work, a->kpad);
  for (int64_t t = 0; t < c->n; t++) {
    const real *q = c->q + t * a->qs, *k = c->k + t * a->ks, *v = c->v + t * a->vs, *g = c->g + t * a->gs;
    real *restrict o = scan_o(a, c, t), w = scan_weight(a, c, t);
    for (int64_t d = 0; d < a->kdim; d++) keep[d] = tile_exp(g[d]);
    memset(o, 0, (size_t)a->vdim * sizeof *o);
    for (int64_t d = 0; d < a->kdim; d++) {
      real *restrict row = s + d * a->vpad, kd = w * k[d], qd = a->scale * q[d];
      for (int64_t i = 0; i < a->vdim; i++) {
        row[i] = keep[d] * row[i] + kd * v[i];
        o[i] += qd * row[i];
      }
    }
  }
}

static void forward(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  int64_t n = c->n, kp = a->kpad, vp = a->vpad, cp = a->cpad;
  fades x = fades_of(a, c, &work);
  real *q = take(&work, n * kp), *k = take(&work, n * kp), *kt = take(&work, a->kdim * cp);
  real *p = take(&work, n * cp), *v = take(&work, n * vp), *o = take(&work, n * vp);
  pack_queries(a, c, &x, q);
  pack_keys(a, c, &x, k);
  tile_pack(n, a->vdim, c->v, a->vs, v, vp);
  for (int64_t i = 0; i < x.blocks; i++) {
    int64_t begin = x.begin[i], end = x.begin[i + 1];
    enter_keys(a, &x, i, k, kt);
    block_rows(a, &x, i, a->kdim, q, kp, kt, p);
    tile_mm(end - begin, vp, end, p + begin * cp, cp, 1, v, vp, o + begin * vp, vp, false);
    for (int64_t t = begin; t < end; t++) fade(kp, q + t * kp, x.enter + i * kp);
  }
  tile_mm(n, vp, a->kdim, q, kp, 1, s, vp, o, vp, true);
  leave_keys(a, &x, n, kt);
  move(a, &x, n, kt, cp, 1, v, s);
  for (int64_t t = 0; t < n; t++) memcpy(scan_o(a, c, t), o + t * vp, (size_t)a->vdim * sizeof *o);
}

/* ---- gradient ---- */

static int64_t grad_space(const scan_args *a) {
  int64_t c = a->chunk;
  return fades_space(a) + 6 * c * a->kpad + (a->kdim + a->vdim) * a->cpad + 2 * c * a->vpad +
         a->vdim * a->kpad + 2 * c * a->cpad + c + (a->kpad + 2 * a->kpad + c) * WIDE + 16 * TAKE_SLACK;
}

/* dQ and dK, all [n, kpad]: what comes from inside the chunk, t = j left out; from the states. */
typedef struct parts {
  real *q, *k, *q_state, *k_state;
} parts;

/* dg; `through`: e^{b_C} rowsum(S0 . dS'). */
static void gate(const scan_args *a, const grad_out *out, const scan_chunk *c, const parts *y,
                 const double *through, double *acc, real *dg) {
  int64_t n = c->n, kp = a->kpad, half = n / 2;
  double *state = acc, *inside = acc + kp;
  for (int64_t d = 0; d < a->kdim; d++) state[d] = through[d], inside[d] = 0;
  for (int64_t t = n - 1; t >= 0; t--) {
    const real *q = c->q + t * a->qs, *k = c->k + t * a->ks, w = scan_weight(a, c, t);
    WF_PRAGMA(omp simd)
    for (int64_t d = 0; d < a->kdim; d++) {
      double qd = (double)(a->scale * q[d]), kd = (double)(w * k[d]);
      state[d] += qd * (double)y->q_state[t * kp + d];
      inside[d] += qd * (double)y->q[t * kp + d] - kd * (double)y->k[t * kp + d];
      dg[t * kp + d] = (real)(state[d] + (t >= half ? inside[d] : 0));
    }
  }
  for (int64_t d = 0; d < a->kdim; d++) state[d] = inside[d] = 0;
  for (int64_t t = 0; t < n; t++) {
    const real *q = c->q + t * a->qs, *k = c->k + t * a->ks, w = scan_weight(a, c, t);
    WF_PRAGMA(omp simd)
    for (int64_t d = 0; d < a->kdim; d++) {
      double qd = (double)(a->scale * q[d]), kd = (double)(w * k[d]);
      dg[t * kp + d] += (real)(state[d] + (t < half ? inside[d] : 0));
      state[d] += kd * (double)y->k_state[t * kp + d];
      inside[d] += kd * (double)y->k[t * kp + d] - qd * (double)y->q[t * kp + d];
    }
  }
  store(&out[WANT_G], c->token, c->h, n, a->kdim, dg, kp, 1);
}

static void grad(const scan_args *a, const grad_out *out, const scan_chunk *c, const real *s0, real *ds,
                 char *work) {
  int64_t n = c->n, kp = a->kpad, vp = a->vpad, cp = a->cpad;
  fades x = fades_of(a, c, &work);
  real *q = take(&work, n * kp), *k = take(&work, n * kp);
  parts y = {take(&work, n * kp), take(&work, n * kp), take(&work, n * kp), take(&work, n * kp)};
  real *kt = take(&work, a->kdim * cp), *vt = take(&work, a->vdim * cp), *st = take(&work, a->vdim * kp);
  real *dout = take(&work, n * vp), *dv = take(&work, n * vp);
  real *p = take(&work, n * cp), *dp = take(&work, n * cp), *own = take(&work, n);
  double *through = take_double(&work, kp), *acc = take_double(&work, 2 * kp), *dw = take_double(&work, n);
  pack_queries(a, c, &x, q);
  pack_keys(a, c, &x, k);
  pack_dout(a, c, dout);
  tile_transpose(n, a->vdim, c->v, a->vs, vt, cp, TILE_PAD(n));

  /* The states' parts */
  tile_transpose(a->kdim, a->vdim, s0, vp, st, kp, kp);
  tile_mm(n, kp, a->vdim, dout, vp, 1, st, kp, y.q_state, kp, false);
  tile_transpose(a->kdim, a->vdim, ds, vp, st, kp, kp);
  tile_mm(n, kp, a->vdim, c->v, a->vs, 1, st, kp, y.k_state, kp, false);
  for (int64_t d = 0; d < a->kdim; d++) through[d] = (double)x.all[d] * dot(vp, s0 + d * vp, ds + d * vp);

  /* Downwards: keys go from anchor to anchor. own: dP at t = j */
  for (int64_t i = 0; i < x.blocks; i++) {
    int64_t begin = x.begin[i], end = x.begin[i + 1];
    enter_keys(a, &x, i, k, kt);
    for (int64_t t = 0; t < begin; t++) fade(kp, k + t * kp, x.step + i * kp);
    block_rows(a, &x, i, a->kdim, q, kp, kt, p);
    block_rows(a, &x, i, a->vdim, dout, vp, vt, dp);
    for (int64_t t = begin; t < end; t++) own[t] = dp[t * cp + t], dp[t * cp + t] = 0;
    tile_mm(end - begin, kp, end, dp + begin * cp, cp, 1, k, kp, y.q + begin * kp, kp, false);
    for (int64_t t = begin; t < end; t++) {
      fade(kp, y.q + t * kp, x.p + t * kp);
      fade(kp, y.q_state + t * kp, x.p + t * kp);
      fade(kp, y.q_state + t * kp, x.enter + i * kp);
    }
  }

  /* Upwards: queries go from anchor to anchor */
  for (int64_t i = x.blocks - 1; i >= 0; i--) {
    int64_t begin = x.begin[i], end = x.begin[i + 1], square = begin * cp + begin;
    for (int64_t t = end; t < n; t++) fade(kp, q + t * kp, x.step + (i + 1) * kp);
    tile_mm(end - begin, kp, n - begin, dp + square, 1, cp, q + begin * kp, kp, y.k + begin * kp, kp, false);
    tile_mm(end - begin, vp, n - begin, p + square, 1, cp, dout + begin * vp, vp, dv + begin * vp, vp, false);
    for (int64_t t = begin; t < end; t++) {
      fade(kp, y.k + t * kp, x.r + t * kp);
      fade(kp, y.k_state + t * kp, x.r + t * kp);
      fade(kp, y.k_state + t * kp, x.leave + i * kp);
    }
  }
  leave_keys(a, &x, n, kt);
  tile_mm(n, vp, a->kdim, kt, 1, cp, ds, vp, dv, vp, true);
  store(&out[WANT_V], c->token, c->h, n, a->vdim, dv, vp, 1);
  for (int64_t t = 0; t < n; t++) fade(kp, q + t * kp, x.enter);
  move(a, &x, n, q, 1, kp, dout, ds);

  gate(a, out, c, &y, through, acc, k);
  for (int64_t t = 0; t < n; t++) {
    const real *qt = c->q + t * a->qs, *kt_ = c->k + t * a->ks, w = scan_weight(a, c, t) * own[t],
               s = a->scale * own[t];
    for (int64_t d = 0; d < a->kdim; d++) {
      y.q[t * kp + d] += y.q_state[t * kp + d] + w * kt_[d];
      y.k[t * kp + d] += y.k_state[t * kp + d] + s * qt[d];
    }
  }
  store(&out[WANT_Q], c->token, c->group, n, a->kdim, y.q, kp, a->scale);
  scan_store_keys(a, out, c, y.k, dw);
}

static const scan_kind kind = {.chunk = 64,
                               .shorter = 8,
                               .smaller = 128,
                               .forward_space = forward_space,
                               .grad_space = grad_space,
                               .tokens = tokens,
                               .forward = forward,
                               .advance = advance,
                               .grad = grad};

WF_SCAN_KERNELS(scan_channel, kind)

#else

WF_SCAN_OP(scan_channel, NULL, NULL, {.g_dims = 3, .needs_g = true})

#endif
