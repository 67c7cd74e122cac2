/* dtype: the element types of tensors and files, and the conversions between the short floats. */
#ifndef WF_CORE_DTYPE_H
#define WF_CORE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#  define WF_HOST_DEVICE __host__ __device__
#else
#  define WF_HOST_DEVICE
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum wf_dtype {
  WF_F32,
  WF_BF16,
  WF_F64,
  WF_I32,
  WF_I64,
  WF_U8,
  WF_U16,
  WF_U32,
  WF_N_DTYPES
} wf_dtype;

size_t wf_dtype_size(wf_dtype d);                       /* bytes an element; 0 for an invalid value */
const char *wf_dtype_name(wf_dtype d);                  /* "f32", "bf16", ...; "invalid" otherwise */
bool wf_dtype_parse(const char *name, wf_dtype *dtype); /* the reverse; false and untouched when unknown */

/* Exact: bfloat16 is the upper half of a float32. */
WF_HOST_DEVICE static inline float wf_bf16_to_f32(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

/* Round to nearest even. Overflow gives infinity; a NaN stays a (quiet) NaN. */
WF_HOST_DEVICE static inline uint16_t wf_f32_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* Exact, subnormals included (IEEE 754 binary16). */
static inline float wf_f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1fu, fraction = h & 0x3ffu, u;
  float f;
  if (exponent == 0) { /* zero or subnormal: fraction * 2^-24 */
    f = (float)fraction * 0x1p-24f;
    memcpy(&u, &f, sizeof u);
    u |= sign;
  } else if (exponent == 0x1f) {
    u = sign | 0x7f800000u | fraction << 13;
  } else {
    u = sign | (exponent + 112u) << 23 | fraction << 13;
  }
  memcpy(&f, &u, sizeof f);
  return f;
}

#ifdef __cplusplus
}
#endif

#endif
