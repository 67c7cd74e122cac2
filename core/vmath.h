/* vmath: declares the C library's mathematical functions as vectorisable.
 *
 * glibc's libmvec has vector forms of these, which gcc calls from loops it vectorises once it knows that they
 * exist; the headers say so under -ffast-math only, which Weft never uses. Elsewhere this file changes
 * nothing.
 */
#ifndef WF_CORE_VMATH_H
#define WF_CORE_VMATH_H

#include <math.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#  if __GLIBC__ > 2 || __GLIBC_MINOR__ >= 35
#    define WF_VECTOR __attribute__((simd("notinbranch"), const))
WF_VECTOR float expf(float);
WF_VECTOR float logf(float);
WF_VECTOR float sinf(float);
WF_VECTOR float cosf(float);
WF_VECTOR float tanhf(float);
WF_VECTOR float erff(float);
WF_VECTOR float log1pf(float);
WF_VECTOR float expm1f(float);
WF_VECTOR double exp(double);
WF_VECTOR double log(double);
WF_VECTOR double sin(double);
WF_VECTOR double cos(double);
WF_VECTOR double tanh(double);
WF_VECTOR double erf(double);
WF_VECTOR double log1p(double);
WF_VECTOR double expm1(double);
#    undef WF_VECTOR
#  endif
#endif

/* The same names for both real types of a kernel pass. */
#ifdef WF_KERNEL_PASS
#  ifdef WF_REAL_F32
#    define r_exp   expf
#    define r_log   logf
#    define r_sin   sinf
#    define r_cos   cosf
#    define r_tanh  tanhf
#    define r_erf   erff
#    define r_log1p log1pf
#    define r_expm1 expm1f
#    define r_sqrt  sqrtf
#    define r_abs   fabsf
#    define r_max   fmaxf
#    define r_pow   powf
#  else
#    define r_exp   exp
#    define r_log   log
#    define r_sin   sin
#    define r_cos   cos
#    define r_tanh  tanh
#    define r_erf   erf
#    define r_log1p log1p
#    define r_expm1 expm1
#    define r_sqrt  sqrt
#    define r_abs   fabs
#    define r_max   fmax
#    define r_pow   pow
#  endif
#endif

#endif
