/* scan_fades: a chunk under a decay for each channel of the keys, for the kernels of the members that have
 * it.
 *
 * Values W [n] are written under keys K and read by m sets of n readers R, stacked, as in scan_decays_impl.h.
 * With b the inclusive cumulative log decays inside a chunk, S0 the state entering and S' the one leaving:
 *     read = (R . e^b) S0 + P W,   P[t,j] = sum_d R[t,d] K[j,d] e^{b[t,d] - b[j,d]} for j <= t
 *     S' = diag(e^{b_C}) S0 + (K . e^{b_C - b})^T W
 * P is a product of matrices once its exponents are divided between R and K, but e^{-b} alone can overflow.
 * So a chunk is cut into blocks of at most 16 tokens, and block i has an anchor n_i = b at its first token:
 *     P_i = (R_i . e^{b_i - n_i}) (K . e^{n_i - b})^T
 * The exponents of R_i and of all earlier keys are <= 0; those of the block's own keys are at most FAR, since
 * a block ends before a channel would decay by more than e^-FAR in it: where decays are strong, blocks are
 * short, down to single tokens. From one block to the next all keys so far are multiplied by e^{n_{i+1} -
 * n_i}. Where a block ends depends on no later token, and so no output does.
 *
 * A product e^{b_t - n} e^{n - b_j} of two long exponents must be as good as e^{b_t - b_j}, so sums of logs
 * are kept in two reals, and e^x is taken of both.
 *
 * Backward, with Y the gradients of what is read, dP = tril(Y W^T), by the same blocks:
 *     dR[t] = e^{b_t} . (Y_t S0^T) + sum_{j<=t} dP[t,j] K_j . e^{b_t - b_j}
 *     dK[j] = e^{b_C - b_j} . (W_j dS'^T) + sum_{t>=j} dP[t,j] R_t . e^{b_t - b_j}
 *     dW  = P^T Y + (K . e^{b_C - b}) dS'
 *     dS0 = diag(e^{b_C}) dS' + (R . e^b)^T Y
 *     dg_t = sum_{i>=t} r_i . e^{b_i} . (Y_i S0^T) + sum_{j<t} k_j . e^{b_C - b_j} . (W_j dS'^T)
 *            + e^{b_C} . rowsum(S0 . dS') + sum_{i>=t>j} dP_ij r_i . k_j . e^{b_i - b_j}
 * The last sum is that of r dr - k dk from the nearer end of the chunk, of their parts inside it without t =
 * j; the others are plain. (mixers 2)
 */
#ifndef WF_CORE_OPS_SCAN_FADES_IMPL_H
#define WF_CORE_OPS_SCAN_FADES_IMPL_H

#include "core/ops/scan_lower_impl.h"

#ifdef WF_KERNEL_PASS

/* ---- the decays of a chunk ---- */

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
  real x = scan_log(g), sum = *high + x, part = sum - *high;
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

/* Where a channel forgets all within a few tokens, blocks are as short and the recurrence is faster. */
static bool steep(const scan_args *a, const scan_chunk *c) {
  real least = 0;
  for (int64_t d = 0; d < a->kdim; d++) {
    real sum = 0;
    for (int64_t t = 1; t <= SCAN_FEW; t++) sum += c->g[d - t * a->gs];
    least = sum < least ? sum : least;
  }
  return least < -FAR;
}

/* ---- a chunk ---- */

typedef struct reads {
  int64_t n, m;
  bool strict; /* the first readers are the keys and see only what was written before them */
  fades z;
  real *r;  /* [m n, kpad]: R . e^{b - anchor} */
  real *k;  /* [n, kpad]: K . e^{anchor - b} */
  real *kt; /* [kdim, cpad]: (K . e^{b_C - b})^T, once there is P */
  real *p;  /* [m n, cpad]: zero above the diagonal */
  real *w;  /* [n, vpad] */
} reads;

static int64_t reads_space(const scan_args *a, int64_t m) {
  int64_t c = a->chunk;
  return fades_space(a) + (m + 1) * c * a->kpad + (a->kdim + m * c) * a->cpad + c * a->vpad + 5 * TAKE_SLACK;
}

static inline void fade(int64_t n, real *restrict x, const real *restrict by) {
  for (int64_t d = 0; d < n; d++) x[d] *= by[d];
}

/* dst [n, kpad] = f x . by */
static void pack_faded(const scan_args *a, int64_t n, const real *x, int64_t stride, real f, const real *by,
                       real *dst) {
  for (int64_t t = 0; t < n; t++) {
    const real *from = x + t * stride, *faded = by + t * a->kpad;
    real *restrict to = dst + t * a->kpad;
    for (int64_t d = 0; d < a->kdim; d++) to[d] = f * from[d] * faded[d];
    for (int64_t d = a->kdim; d < a->kpad; d++) to[d] = 0;
  }
}

/* Weight of key t: the delta rule weighs what is written instead. */
static inline real key_weight(const scan_args *a, const scan_chunk *c, const reads *x, int64_t t) {
  return x->strict ? 1 : scan_weight(a, c, t);
}

/* Readers s Q, after the keys where those read (`strict`); `queries`: or the keys alone. */
static reads reads_open(const scan_args *a, const scan_chunk *c, bool strict, bool queries, char **work) {
  int64_t n = c->n, kp = a->kpad, m = (int64_t)strict + queries;
  reads x = {.n = n, .m = m, .strict = strict, .z = fades_of(a, c, work)};
  x.r = take(work, m * n * kp), x.k = take(work, n * kp), x.kt = take(work, a->kdim * a->cpad);
  x.p = take(work, m * n * a->cpad), x.w = take(work, n * a->vpad);
  if (strict) pack_faded(a, n, c->k, a->ks, 1, x.z.p, x.r);
  if (queries) pack_faded(a, n, c->q, a->qs, a->scale, x.z.p, x.r + (m - 1) * n * kp);
  for (int64_t t = 0; t < n; t++)
    pack_faded(a, 1, c->k + t * a->ks, 0, key_weight(a, c, &x, t), x.z.r + t * kp, x.k + t * kp);
  return x;
}

/* P of the readers from set `first` on, from R and K. */
static void reads_weigh(const scan_args *a, reads *x, int64_t first) {
  int64_t kp = a->kpad, cp = a->cpad, n = x->n;
  memset(x->p, 0, (size_t)(x->m * n * cp) * sizeof(real));
  for (int64_t i = 0; i < x->z.blocks; i++) {
    int64_t begin = x->z.begin[i], end = x->z.begin[i + 1];
    const real *step = x->z.step + i * kp;
    for (int64_t d = 0; d < a->kdim; d++)
      for (int64_t j = 0; j < begin; j++) x->kt[d * cp + j] *= step[d];
    tile_transpose(end - begin, a->kdim, x->k + begin * kp, kp, x->kt + begin, cp, TILE_PAD(end) - begin);
    for (int64_t set = first; set < x->m; set++) {
      real *p = x->p + (set * n + begin) * cp;
      tile_mm(end - begin, TILE_PAD(end), a->kdim, x->r + (set * n + begin) * kp, kp, 1, x->kt, cp, p, cp,
              false);
      for (int64_t t = begin; t < end; t++)
        for (int64_t j = t + (x->strict && set == 0 ? 0 : 1); j < end; j++) p[(t - begin) * cp + j] = 0;
    }
  }
  const real *leave = x->z.leave + (x->z.blocks - 1) * kp;
  for (int64_t d = 0; d < a->kdim; d++)
    for (int64_t j = 0; j < n; j++) x->kt[d * cp + j] *= leave[d];
}

/* y [m n, vpad] = (R . e^b) S0 of the first m sets; re [m n, kpad] is work space. */
static void reads_enter(const scan_args *a, const reads *x, int64_t m, const real *s0, real *re, real *y) {
  int64_t kp = a->kpad;
  for (int64_t set = 0; set < m; set++)
    for (int64_t i = 0; i < x->z.blocks; i++)
      for (int64_t t = set * x->n + x->z.begin[i]; t < set * x->n + x->z.begin[i + 1]; t++)
        for (int64_t d = 0; d < kp; d++) re[t * kp + d] = x->r[t * kp + d] * x->z.enter[i * kp + d];
  tile_mm(m * x->n, a->vpad, a->kdim, re, kp, 1, s0, a->vpad, y, a->vpad, false);
}

/* S [kdim, vpad] = diag(e^{b_C}) S + M W of n rows: M[d, t] is u[d us + t ts], W [n, vpad]. */
static void reads_leave(const scan_args *a, const reads *x, int64_t n, const real *u, int64_t us, int64_t ts,
                        const real *w, real *s) {
  for (int64_t d = 0; d < a->kdim; d++) {
    real keep = x->z.all[d];
    for (int64_t i = 0; i < a->vpad; i++) s[d * a->vpad + i] *= keep;
  }
  tile_mm(a->kdim, a->vpad, n, u, us, ts, w, a->vpad, s, a->vpad, true);
}

/* ---- gradient ---- */

/* ds becomes dS0; the anchors' R are lost. */
static void reads_retreat(const scan_args *a, const reads *x, const real *dread, real *ds) {
  for (int64_t set = 0; set < x->m; set++)
    for (int64_t i = 0; i < x->z.blocks; i++)
      for (int64_t t = x->z.begin[i]; t < x->z.begin[i + 1]; t++)
        fade(a->kpad, x->r + (set * x->n + t) * a->kpad, x->z.enter + i * a->kpad);
  reads_leave(a, x, x->m * x->n, x->r, 1, a->kpad, dread, ds);
}

/* dw [n, vpad] = P^T dO + (K . e^{b_C - b}) dS', P of the last readers. */
static void reads_written(const scan_args *a, const reads *x, const real *dout, const real *ds, real *dw) {
  tile_mm(x->n, a->vpad, a->kdim, x->kt, 1, a->cpad, ds, a->vpad, dw, a->vpad, false);
  lower_pull(a, x->n, x->p + (x->m - 1) * x->n * a->cpad, dout, a->vpad, dw);
}

/* dR [m n, kpad] and dK [n, kpad]: what comes from inside the chunk, without t = j of the queries; what comes
 * through the states. */
typedef struct pulled {
  real *r, *k, *r_state, *k_state;
  real *own; /* [n]: dP at t = j */
} pulled;

static int64_t reads_grad_space(const scan_args *a, int64_t m) {
  int64_t c = a->chunk;
  return 2 * (m + 1) * c * a->kpad + m * c * a->cpad + a->vdim * (a->kpad > a->cpad ? a->kpad : a->cpad) + c +
         3 * a->kpad * WIDE + 8 * TAKE_SLACK;
}

/* What token t adds to dg: through S0 (`up`, its reads) or dS' (its write) onto state[], r . dr - k . dk
 * (`up`) or the reverse onto inside[]; `keys` read too. Constants once inlined. */
static inline __attribute__((always_inline)) void
gate_token(const scan_args *a, const scan_chunk *c, const reads *x, const pulled *y, int64_t t, const bool up,
           const bool keys, double *restrict state, double *restrict inside) {
  const int64_t n = x->n, kp = a->kpad, read = (keys ? n + t : t) * kp;
  const real *q = c->q + t * a->qs, *k = c->k + t * a->ks, w = key_weight(a, c, x, t), scale = a->scale;
  const real *dq = y->r + read, *q_state = y->r_state + read, *dr = y->r + t * kp,
             *r_state = y->r_state + t * kp;
  const real *dk = y->k + t * kp, *k_state = y->k_state + t * kp;
  WF_PRAGMA(omp simd)
  for (int64_t d = 0; d < a->kdim; d++) {
    double qd = (double)(scale * q[d]), kd = (double)(w * k[d]);
    double in = qd * (double)dq[d] - kd * (double)dk[d], through = qd * (double)q_state[d];
    if (keys) in += kd * (double)dr[d], through += kd * (double)r_state[d];
    state[d] += up ? through : kd * (double)k_state[d];
    inside[d] += up ? in : -in;
  }
}

/* dg; state: e^{b_C} rowsum(S0 . dS') [kpad], inside [kpad] and dg [n, kpad] are work space. */
static inline __attribute__((always_inline)) void gate(const scan_args *a, const scan_chunk *c,
                                                       const reads *x, const pulled *y, const bool keys,
                                                       double *restrict state, double *restrict inside,
                                                       real *restrict dg) {
  int64_t n = x->n, kp = a->kpad, half = n / 2;
  for (int64_t d = 0; d < a->kdim; d++) inside[d] = 0;
  for (int64_t t = n - 1; t >= 0; t--) {
    gate_token(a, c, x, y, t, true, keys, state, inside);
    for (int64_t d = 0; d < a->kdim; d++) dg[t * kp + d] = (real)(state[d] + (t >= half ? inside[d] : 0));
  }
  for (int64_t d = 0; d < a->kdim; d++) state[d] = inside[d] = 0;
  for (int64_t t = 0; t < n; t++) {
    for (int64_t d = 0; d < a->kdim; d++) dg[t * kp + d] += (real)(state[d] + (t < half ? inside[d] : 0));
    gate_token(a, c, x, y, t, false, keys, state, inside);
  }
}

/* The parts inside the chunk, dP given. K and R are lost. */
static void reads_pull(const scan_args *a, const reads *x, const real *dp, const pulled *y) {
  int64_t n = x->n, kp = a->kpad, cp = a->cpad;
  const fades *z = &x->z;
  for (int64_t i = 0; i < z->blocks; i++) { /* downwards: keys go from anchor to anchor */
    int64_t begin = z->begin[i], end = z->begin[i + 1];
    for (int64_t t = 0; t < begin; t++) fade(kp, x->k + t * kp, z->step + i * kp);
    for (int64_t set = 0; set < x->m; set++) {
      int64_t at = set * n + begin;
      tile_mm(end - begin, kp, end, dp + at * cp, cp, 1, x->k, kp, y->r + at * kp, kp, false);
      for (int64_t t = begin; t < end; t++) {
        fade(kp, y->r + (set * n + t) * kp, z->p + t * kp);
        fade(kp, y->r_state + (set * n + t) * kp, z->p + t * kp);
        fade(kp, y->r_state + (set * n + t) * kp, z->enter + i * kp);
      }
    }
  }
  for (int64_t i = z->blocks - 1; i >= 0; i--) { /* upwards: so do readers */
    int64_t begin = z->begin[i], end = z->begin[i + 1];
    for (int64_t set = 0; set < x->m; set++) {
      for (int64_t t = set * n + end; t < (set + 1) * n; t++) fade(kp, x->r + t * kp, z->step + (i + 1) * kp);
      tile_mm(end - begin, kp, n - begin, dp + (set * n + begin) * cp + begin, 1, cp,
              x->r + (set * n + begin) * kp, kp, y->k + begin * kp, kp, set > 0);
    }
    for (int64_t t = begin; t < end; t++) {
      fade(kp, y->k + t * kp, z->r + t * kp);
      fade(kp, y->k_state + t * kp, z->r + t * kp);
      fade(kp, y->k_state + t * kp, z->leave + i * kp);
    }
  }
}

/* dR and dK complete in the work space, as y.r and y.k; dg stored; ds becomes dS0. R and K are lost. */
static pulled reads_grad(const scan_args *a, const grad_out *out, const scan_chunk *c, const reads *x,
                         const real *dread, const real *s0, real *ds, char **work) {
  int64_t n = x->n, m = x->m, kp = a->kpad, vp = a->vpad, cp = a->cpad;
  pulled y = {take(work, m * n * kp), take(work, n * kp), take(work, m * n * kp), take(work, n * kp),
              take(work, n)};
  real *dp = take(work, m * n * cp), *turned = take(work, a->vdim * (kp > cp ? kp : cp));
  double *state = take_double(work, kp), *inside = take_double(work, kp);
  tile_transpose(a->kdim, a->vdim, s0, vp, turned, kp, kp);
  tile_mm(m * n, kp, a->vdim, dread, vp, 1, turned, kp, y.r_state, kp, false);
  tile_transpose(a->kdim, a->vdim, ds, vp, turned, kp, kp);
  tile_mm(n, kp, a->vdim, x->w, vp, 1, turned, kp, y.k_state, kp, false);
  for (int64_t d = 0; d < a->kdim; d++) state[d] = (double)x->z.all[d] * dot(vp, s0 + d * vp, ds + d * vp);

  tile_transpose(n, a->vdim, x->w, vp, turned, cp, TILE_PAD(n));
  memset(dp, 0, (size_t)(m * n * cp) * sizeof(real));
  for (int64_t set = 0; set < m; set++) {
    real *p = dp + set * n * cp;
    lower_of(a, n, a->vdim, dread + set * n * vp, vp, turned, p);
    for (int64_t t = 0; t < n; t++) {
      y.own[t] = p[t * cp + t];
      for (int64_t j = t; j < step_end(n, t / STEP * STEP); j++) p[t * cp + j] = 0;
    }
  }
  reads_pull(a, x, dp, &y);
  for (int64_t set = 0; set < m; set++)
    for (int64_t t = 0; t < n; t++) fade(kp, x->r + (set * n + t) * kp, x->z.enter);
  reads_leave(a, x, m * n, x->r, 1, kp, dread, ds);
  if (x->strict)
    gate(a, c, x, &y, true, state, inside, x->k);
  else
    gate(a, c, x, &y, false, state, inside, x->k);
  store(&out[WANT_G], c->token, c->h, n, a->kdim, x->k, kp, 1);

  for (int64_t i = 0; i < m * n * kp; i++) y.r[i] += y.r_state[i];
  for (int64_t t = 0; t < n; t++) { /* t = j of the queries */
    const real *q = c->q + t * a->qs, *k = c->k + t * a->ks;
    real w = key_weight(a, c, x, t) * y.own[t], s = a->scale * y.own[t];
    real *dq = y.r + ((m - 1) * n + t) * kp, *dk = y.k + t * kp, *through = y.k_state + t * kp;
    for (int64_t d = 0; d < a->kdim; d++) {
      dq[d] += w * k[d];
      dk[d] += through[d] + s * q[d];
    }
  }
  return y;
}

#endif

#endif
