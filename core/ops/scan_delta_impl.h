/* scan_delta: the triangular systems of the delta rule, for the kernels of its members.
 *
 * In a chunk token t writes w_t = -beta_t e_t, where its error e_t = k_t P - v_t holds what the tokens before
 * it wrote: E = E0 + L W, L strictly lower triangular. The systems
 *     W = -diag(beta) (E0 + L W)   and, of the gradients,   dE = -diag(beta) (dW0 + L^T dE)
 * are solved by blocks of 16 tokens, whose own part is a product with X = -(I + diag(beta) L)^{-1} diag(beta)
 * of the block: W = X E0 and dE = X^T dW0 there; the other blocks come in by products.
 */
#ifndef WF_CORE_OPS_SCAN_DELTA_IMPL_H
#define WF_CORE_OPS_SCAN_DELTA_IMPL_H

#include "core/ops/scan_lower_impl.h"

#ifdef WF_KERNEL_PASS

enum { SOLVE = 16 }; /* tokens of a block */

static inline int64_t solve_end(int64_t n, int64_t begin) {
  return begin + SOLVE < n ? begin + SOLVE : n;
}

/* x [n, SOLVE]: X of each block, row after row. L [n, cpad]. */
static void solve_blocks(const scan_args *a, const scan_chunk *c, const real *l, real *x) {
  for (int64_t begin = 0; begin < c->n; begin += SOLVE)
    for (int64_t i = begin; i < solve_end(c->n, begin); i++) {
      const real *li = l + i * a->cpad + begin, beta = c->w[i * a->ws];
      real row[SOLVE] = {0};
      row[i - begin] = 1;
      for (int64_t j = 0; j < i - begin; j++)
        for (int64_t d = 0; d < SOLVE; d++) row[d] += li[j] * x[(begin + j) * SOLVE + d];
      for (int64_t d = 0; d < SOLVE; d++) x[i * SOLVE + d] = -beta * row[d];
    }
}

/* W from E0 in e [n, vpad], which becomes E. */
static void solve_writes(const scan_args *a, int64_t n, const real *l, const real *x, real *e, real *w) {
  int64_t vp = a->vpad, cp = a->cpad;
  for (int64_t begin = 0; begin < n; begin += SOLVE) {
    int64_t m = solve_end(n, begin) - begin;
    const real *li = l + begin * cp;
    real *eb = e + begin * vp, *wb = w + begin * vp;
    if (begin) tile_mm(m, vp, begin, li, cp, 1, w, vp, eb, vp, true);
    tile_mm(m, vp, m, x + begin * SOLVE, SOLVE, 1, eb, vp, wb, vp, false);
    tile_mm(m, vp, m, li + begin, cp, 1, wb, vp, eb, vp, true);
  }
}

/* dE from dW0 in dw [n, vpad], which becomes dW. */
static void solve_errors(const scan_args *a, int64_t n, const real *l, const real *x, real *dw, real *de) {
  int64_t vp = a->vpad, cp = a->cpad;
  for (int64_t begin = (n - 1) / SOLVE * SOLVE; begin >= 0; begin -= SOLVE) {
    int64_t end = solve_end(n, begin), m = end - begin;
    real *wb = dw + begin * vp, *eb = de + begin * vp;
    if (end < n) tile_mm(m, vp, n - end, l + end * cp + begin, 1, cp, de + end * vp, vp, wb, vp, true);
    tile_mm(m, vp, m, x + begin * SOLVE, 1, SOLVE, wb, vp, eb, vp, false);
    tile_mm(m, vp, m, l + begin * cp + begin, 1, cp, eb, vp, wb, vp, true);
  }
}

/* What the gradient needs of a chunk's solution: W, E, X and L, kept in this order. */
static int64_t solve_kept(const scan_args *a) {
  return a->chunk * (2 * a->vpad + SOLVE + a->cpad);
}
static void solve_keep(const scan_args *a, int64_t n, const real *w, const real *e, const real *x,
                       const real *l, real *kept) {
  memcpy(kept, w, (size_t)(n * a->vpad) * sizeof *w);
  memcpy(kept += n * a->vpad, e, (size_t)(n * a->vpad) * sizeof *e);
  memcpy(kept += n * a->vpad, x, (size_t)(n * SOLVE) * sizeof *x);
  memcpy(kept + n * SOLVE, l, (size_t)(n * a->cpad) * sizeof *l);
}

#endif

#endif
