/* tile: products of small blocks that lie in cache, for kernels that fuse them with other work.
 *
 * Large products go through BLAS; a block of attention or of a chunked recurrence is too small for its
 * packing and call overheads, and is already laid out well. C (+)= A B with A [m, k] of any strides (so A and
 * A^T are the same code), B [k, n] and C [m, n] with unit stride in n, and n a multiple of VL: callers keep B
 * and C in work space whose width is padded by TILE_PAD, so there is no tail code. Registers hold a TILE_MR x
 * 2 VL piece of C; the order of the sum over k is fixed, whatever m and n.
 *
 * For kernel passes (core/op_def.h), which give `real` and the instruction set.
 */
#ifndef WF_CORE_TILE_IMPL_H
#define WF_CORE_TILE_IMPL_H

#include <stdbool.h>
#include <stdint.h>

#if defined(__AVX512F__)
enum { TILE_BYTES = 64, TILE_MR = 8 };
#elif defined(__AVX2__)
enum { TILE_BYTES = 32, TILE_MR = 6 };
#else
enum { TILE_BYTES = 16, TILE_MR = 6 };
#endif
enum { VL = TILE_BYTES / (int)sizeof(real) };
#define TILE_PAD(n) (((n) + VL - 1) / VL * VL)

typedef real tile_vec __attribute__((vector_size(TILE_BYTES), aligned(sizeof(real)), may_alias));

#if defined(__clang__)
#  define TILE_UNROLL _Pragma("clang loop unroll(full)")
#else
#  define TILE_UNROLL _Pragma("GCC unroll 8")
#endif

/* m rows (at most TILE_MR) by nv vectors (1 or 2); both constants once inlined. */
static inline __attribute__((always_inline)) void tile_piece(const int m, const int nv, int64_t k,
                                                             const real *a, int64_t ars, int64_t acs,
                                                             const real *b, int64_t ldb, real *c, int64_t ldc,
                                                             bool add) {
  tile_vec s[TILE_MR][2];
  TILE_UNROLL
  for (int i = 0; i < m; i++) s[i][0] = s[i][1] = (tile_vec){0};
  for (int64_t l = 0; l < k; l++) {
    tile_vec b0 = *(const tile_vec *)(b + l * ldb), b1 = b0;
    if (nv == 2) b1 = *(const tile_vec *)(b + l * ldb + VL);
    TILE_UNROLL
    for (int i = 0; i < m; i++) {
      real x = a[i * ars + l * acs];
      s[i][0] += x * b0;
      if (nv == 2) s[i][1] += x * b1;
    }
  }
  TILE_UNROLL
  for (int i = 0; i < m; i++) {
    tile_vec *p = (tile_vec *)(c + i * ldc), *p1 = (tile_vec *)(c + i * ldc + VL);
    if (add) s[i][0] += *p;
    *p = s[i][0];
    if (nv == 2) {
      if (add) s[i][1] += *p1;
      *p1 = s[i][1];
    }
  }
}

static inline __attribute__((always_inline)) void tile_column(const int nv, int64_t m, int64_t k,
                                                              const real *a, int64_t ars, int64_t acs,
                                                              const real *b, int64_t ldb, real *c,
                                                              int64_t ldc, bool add) {
  int64_t i = 0;
  for (; i + TILE_MR <= m; i += TILE_MR)
    tile_piece(TILE_MR, nv, k, a + i * ars, ars, acs, b, ldb, c + i * ldc, ldc, add);
  a += i * ars;
  c += i * ldc;
  switch (m - i) {
  case 1: tile_piece(1, nv, k, a, ars, acs, b, ldb, c, ldc, add); break;
  case 2: tile_piece(2, nv, k, a, ars, acs, b, ldb, c, ldc, add); break;
  case 3: tile_piece(3, nv, k, a, ars, acs, b, ldb, c, ldc, add); break;
  case 4: tile_piece(4, nv, k, a, ars, acs, b, ldb, c, ldc, add); break;
  case 5: tile_piece(5, nv, k, a, ars, acs, b, ldb, c, ldc, add); break;
#if defined(__AVX512F__)
  case 6: tile_piece(6, nv, k, a, ars, acs, b, ldb, c, ldc, add); break;
  case 7: tile_piece(7, nv, k, a, ars, acs, b, ldb, c, ldc, add); break;
#endif
  default: break;
  }
}

/* C [m, n] = A B, or C += A B. */
static inline void tile_mm(int64_t m, int64_t n, int64_t k, const real *a, int64_t ars, int64_t acs,
                           const real *b, int64_t ldb, real *c, int64_t ldc, bool add) {
  int64_t j = 0;
  for (; j + 2 * VL <= n; j += 2 * VL) tile_column(2, m, k, a, ars, acs, b + j, ldb, c + j, ldc, add);
  if (j < n) tile_column(1, m, k, a, ars, acs, b + j, ldb, c + j, ldc, add);
}

/* Squares of 32 bytes a side are transposed in registers: interleaving row i with row i + TURN/2, log2(TURN)
 * times over, brings column i to row i. */
enum { TURN = 32 / (int)sizeof(real) };
typedef real tile_line __attribute__((vector_size(32), aligned(sizeof(real)), may_alias));

static inline __attribute__((always_inline)) void tile_turn(const real *src, int64_t lds, real *dst,
                                                            int64_t ld) {
  tile_line r[TURN], t[TURN];
  TILE_UNROLL
  for (int i = 0; i < TURN; i++) r[i] = *(const tile_line *)(src + i * lds);
  TILE_UNROLL
  for (int n = 1; n < TURN; n *= 2) {
    TILE_UNROLL
    for (int i = 0; i < TURN / 2; i++) {
#ifdef WF_REAL_F32
      t[2 * i] = __builtin_shufflevector(r[i], r[i + TURN / 2], 0, 8, 1, 9, 2, 10, 3, 11);
      t[2 * i + 1] = __builtin_shufflevector(r[i], r[i + TURN / 2], 4, 12, 5, 13, 6, 14, 7, 15);
#else
      t[2 * i] = __builtin_shufflevector(r[i], r[i + TURN / 2], 0, 4, 1, 5);
      t[2 * i + 1] = __builtin_shufflevector(r[i], r[i + TURN / 2], 2, 6, 3, 7);
#endif
    }
    TILE_UNROLL
    for (int i = 0; i < TURN; i++) r[i] = t[i];
  }
  TILE_UNROLL
  for (int i = 0; i < TURN; i++) *(tile_line *)(dst + i * ld) = r[i];
}

/* dst [cols, ld] = src [rows, cols]^T; columns rows .. pad-1 of dst are zero. */
static inline void tile_transpose(int64_t rows, int64_t cols, const real *src, int64_t lds, real *dst,
                                  int64_t ld, int64_t pad) {
  int64_t r = 0;
  for (; r + TURN <= rows; r += TURN) {
    int64_t c = 0;
    for (; c + TURN <= cols; c += TURN) tile_turn(src + r * lds + c, lds, dst + c * ld + r, ld);
    for (; c < cols; c++)
      for (int i = 0; i < TURN; i++) dst[c * ld + r + i] = src[(r + i) * lds + c];
  }
  for (int64_t c = 0; c < cols; c++) {
    for (int64_t i = r; i < rows; i++) dst[c * ld + i] = src[i * lds + c];
    for (int64_t i = rows; i < pad; i++) dst[c * ld + i] = 0;
  }
}

/* dst [rows, ld] = src [rows, cols]; columns cols .. ld-1 of dst are zero. */
static inline void tile_pack(int64_t rows, int64_t cols, const real *src, int64_t lds, real *dst,
                             int64_t ld) {
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < cols; c++) dst[r * ld + c] = src[r * lds + c];
    for (int64_t c = cols; c < ld; c++) dst[r * ld + c] = 0;
  }
}

/* The sum of VL lanes, by halves. */
static inline real tile_sum(real *lane) {
  TILE_UNROLL
  for (int half = VL / 2; half > 0; half /= 2)
    for (int l = 0; l < half; l++) lane[l] += lane[l + half];
  return lane[0];
}

static inline real tile_dot(int64_t n, const real *x, const real *y) {
  real lane[VL] = {0}, rest = 0;
  int64_t i = 0;
  for (; i + VL <= n; i += VL)
    for (int l = 0; l < VL; l++) lane[l] += x[i + l] * y[i + l];
  for (; i < n; i++) rest += x[i] * y[i];
  return tile_sum(lane) + rest;
}

/* What one thread works in: pieces of whole cache lines, from `at` on. */
static inline real *take(char **at, int64_t count) {
  real *p = (real *)(void *)*at;
  *at += ((size_t)count * sizeof(real) + 63) / 64 * 64;
  return p;
}
static inline double *take_double(char **at, int64_t count) {
  return (double *)(void *)take(at, count * (int64_t)(sizeof(double) / sizeof(real)));
}
enum { TAKE_SLACK = 16 }; /* reals that rounding to cache lines may add to each piece */

/* e^x for loops over scores, without a library call. Float: 2^n e^r with a polynomial in r fitted for a
 * relative error of 1.1e-8 before rounding; exactly 0 below -87; NaN stays NaN. */
#ifdef WF_REAL_F32
static inline float tile_exp(float x) {
  float c = x < -87.0f ? -87.0f : x;
  c = c > 88.0f ? 88.0f : c;
  float shifted = c * 1.44269504f + 12582912.0f; /* 1.5 2^23: the integer is in the low bits */
  float n = shifted - 12582912.0f;
  float r = (c - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two pieces */
  float p = 0.00139345450f;
  p = p * r + 0.00836377684f;
  p = p * r + 0.0416664556f;
  p = p * r + 0.166665733f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  uint32_t power, bits;
  __builtin_memcpy(&power, &shifted, sizeof power);
  __builtin_memcpy(&bits, &p, sizeof bits);
  bits += power << 23;
  __builtin_memcpy(&p, &bits, sizeof p);
  return x < -87.0f ? 0.0f : p;
}
#else
static inline double tile_exp(double x) {
  return exp(x);
}
#endif

#endif
