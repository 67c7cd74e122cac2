/* memory: every allocation Weft makes on the host, by tag.
 *
 * A tag is a string literal naming what the bytes are for ("activation", "parameter", "config"). Bytes now
 * and at the peak are kept by tag for the memory report and for out-of-memory messages. Device storage
 * (core/device.h) reports to the same table. Thread-safe.
 */
#ifndef WF_CORE_MEMORY_H
#define WF_CORE_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* 64-byte aligned, uninitialised. NULL and a recorded WF_ENOMEM on failure; 0 bytes give a valid pointer. */
void *wf_alloc(const char *tag, size_t bytes);
void *wf_calloc(const char *tag, size_t count, size_t size); /* zeroed, checked product */
void *wf_realloc(const char *tag, void *p, size_t bytes);    /* p may be NULL; on failure p stays valid */
void wf_free(void *p);                                       /* NULL is allowed */
char *wf_strdup(const char *tag, const char *s);
char *wf_strndup(const char *tag, const char *s, size_t n);

/* Allocate or return WF_ENOMEM upward. */
#define WF_ALLOC(ptr, tag, bytes)                                                                         \
  do {                                                                                                    \
    if (!((ptr) = wf_alloc((tag), (bytes)))) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM); \
  } while (0)
#define WF_CALLOC(ptr, tag, count)                                   \
  do {                                                               \
    if (!((ptr) = wf_calloc((tag), (size_t)(count), sizeof *(ptr)))) \
      return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);   \
  } while (0)

/* Make room for one more element of a growing array (doubling). */
wf_status wf_grow(const char *tag, void **array, size_t size, size_t used, size_t *capacity);

/* For allocators that get their bytes elsewhere (device memory, mapped files). */
void wf_mem_count(const char *tag, int64_t bytes); /* negative to give back */

typedef struct wf_mem_tag {
  const char *tag;
  int64_t now, peak; /* bytes */
} wf_mem_tag;

int wf_mem_report(wf_mem_tag *out, int max); /* largest peak first; returns the number written */
int64_t wf_mem_now(void);
int64_t wf_mem_peak(void);
void wf_mem_reset_peak(void);
int64_t wf_mem_live(void); /* number of live allocations, for leak tests */

/* Tests: the n-th allocation from now (1 = the next one) fails, once. 0 switches it off. */
void wf_mem_fail_at(int64_t n);
int64_t wf_mem_alloc_count(void); /* allocations since the start */

#ifdef __cplusplus
}
#endif

#endif
