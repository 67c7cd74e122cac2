/* store_impl: what building and reading a token store share. Private to this folder. */
#ifndef WF_DATA_STORE_IMPL_H
#define WF_DATA_STORE_IMPL_H

#include <string.h>
#include "core/dtype.h"

#define WF_STORE_FORMAT "weft tokens"
enum { WF_STORE_VERSION = 1 };

/* The smallest type that holds the ids 0 .. vocab-1. */
static inline wf_dtype wf_store_dtype(int64_t vocab) {
  return vocab <= 256 ? WF_U8 : vocab <= 65536 ? WF_U16 : WF_U32;
}

/* Id i of an array of that type. */
static inline uint32_t wf_store_id(const void *ids, wf_dtype dtype, int64_t i) {
  uint32_t u32;
  uint16_t u16;
  if (dtype == WF_U8) return ((const uint8_t *)ids)[i];
  if (dtype == WF_U16) {
    memcpy(&u16, (const char *)ids + 2 * i, sizeof u16);
    return u16;
  }
  memcpy(&u32, (const char *)ids + 4 * i, sizeof u32);
  return u32;
}

#endif
