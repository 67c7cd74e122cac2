/* scan_lower: products with lower triangular matrices [n, cpad], for the kernels of the recurrences.
 *
 * They go by blocks of STEP rows: what lies right of a block is never touched, what lies above the diagonal
 * in it must be zero where a triangle is a factor.
 */
#ifndef WF_CORE_OPS_SCAN_LOWER_IMPL_H
#define WF_CORE_OPS_SCAN_LOWER_IMPL_H

#include "core/ops/scan_impl.h"

#ifdef WF_KERNEL_PASS

enum { STEP = 16 };

static inline int64_t step_end(int64_t n, int64_t begin) {
  return begin + STEP < n ? begin + STEP : n;
}

/* p = x yt, x [n, ld], yt [dim, cpad]: whole blocks, so also a little above the diagonal. */
static void lower_of(const scan_args *a, int64_t n, int64_t dim, const real *x, int64_t ld, const real *yt,
                     real *p) {
  for (int64_t begin = 0; begin < n; begin += STEP) {
    int64_t end = step_end(n, begin);
    tile_mm(end - begin, TILE_PAD(end), dim, x + begin * ld, ld, 1, yt, a->cpad, p + begin * a->cpad, a->cpad,
            false);
  }
}
/* y [n, ld] += p x. */
static void lower_times(const scan_args *a, int64_t n, const real *p, const real *x, int64_t ld, real *y) {
  for (int64_t begin = 0; begin < n; begin += STEP) {
    int64_t end = step_end(n, begin);
    tile_mm(end - begin, ld, end, p + begin * a->cpad, a->cpad, 1, x, ld, y + begin * ld, ld, true);
  }
}
/* y [n, ld] += p^T x. */
static void lower_pull(const scan_args *a, int64_t n, const real *p, const real *x, int64_t ld, real *y) {
  for (int64_t begin = 0; begin < n; begin += STEP)
    tile_mm(step_end(n, begin) - begin, ld, n - begin, p + begin * a->cpad + begin, 1, a->cpad,
            x + begin * ld, ld, y + begin * ld, ld, true);
}

#endif

#endif
