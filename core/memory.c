/* A header in front of each block remembers its size and tag; counters are atomic. */
#define _DEFAULT_SOURCE /* madvise */
#include "core/memory.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64, MAX_TAGS = 64, HUGE_PAGE = 1 << 21, LARGE = 4 * HUGE_PAGE };

typedef struct header {
  size_t bytes;
  int tag;
} header; /* sits at the start of the ALIGN bytes before the block */

static struct {
  _Atomic(const char *) name;
  _Atomic int64_t now, peak;
} tags[MAX_TAGS];
static _Atomic int64_t total_now, total_peak, live, count, fail_at;

static int tag_index(const char *tag) {
  for (int i = 0; i < MAX_TAGS - 1; i++) {
    const char *have = atomic_load_explicit(&tags[i].name, memory_order_acquire);
    if (!have) {
      const char *expected = NULL;
      if (atomic_compare_exchange_strong(&tags[i].name, &expected, tag)) return i;
      have = expected;
    }
    if (have == tag || strcmp(have, tag) == 0) return i;
  }
  atomic_store(&tags[MAX_TAGS - 1].name, "other");
  return MAX_TAGS - 1;
}

static void raise_peak(_Atomic int64_t *peak, int64_t now) {
  int64_t seen = atomic_load_explicit(peak, memory_order_relaxed);
  while (now > seen && !atomic_compare_exchange_weak(peak, &seen, now)) {
  }
}

static void count_bytes(int tag, int64_t bytes) {
  raise_peak(&tags[tag].peak, atomic_fetch_add(&tags[tag].now, bytes) + bytes);
  raise_peak(&total_peak, atomic_fetch_add(&total_now, bytes) + bytes);
}

void wf_mem_count(const char *tag, int64_t bytes) {
  count_bytes(tag_index(tag), bytes);
}

static int injected_failure(void) {
  atomic_fetch_add(&count, 1);
  if (atomic_load_explicit(&fail_at, memory_order_relaxed) == 0) return 0;
  return atomic_fetch_sub(&fail_at, 1) == 1;
}

static void *out_of_memory(const char *tag, size_t bytes) {
  wf_mem_tag top[3] = {{"", 0, 0}, {"", 0, 0}, {"", 0, 0}};
  int n = wf_mem_report(top, 3), at = 0;
  char text[160] = "";
  for (int i = 0; i < n; i++)
    at += snprintf(text + at, sizeof text - (size_t)at, "%s%.24s %lld MiB", i ? ", " : ": ", top[i].tag,
                   (long long)(top[i].now >> 20));
  WF_FAIL(WF_ENOMEM, "out of memory: %zu bytes for '%s'; Weft holds %lld MiB%s", bytes, tag,
          (long long)(wf_mem_now() >> 20), text);
  return NULL;
}

/* Weights and activations are read from end to end: pages of 2 MiB where the system gives them spare the
 * walks through its tables. */
static void *large(size_t bytes) {
  void *p = aligned_alloc(HUGE_PAGE, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
#ifdef MADV_HUGEPAGE
  if (p) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
}

void *wf_alloc(const char *tag, size_t bytes) {
  if (injected_failure() || bytes > (size_t)PTRDIFF_MAX - 2 * ALIGN) return out_of_memory(tag, bytes);
  size_t whole = (bytes + ALIGN + ALIGN - 1) / ALIGN * ALIGN;
  char *base = bytes >= LARGE ? large(whole) : aligned_alloc(ALIGN, whole);
  if (!base) return out_of_memory(tag, bytes);
  header *h = (header *)(void *)base;
  h->bytes = bytes;
  h->tag = tag_index(tag);
  count_bytes(h->tag, (int64_t)bytes);
  atomic_fetch_add(&live, 1);
  return base + ALIGN;
}

void *wf_calloc(const char *tag, size_t n, size_t size) {
  size_t bytes;
  if (__builtin_mul_overflow(n, size, &bytes)) return out_of_memory(tag, SIZE_MAX);
  void *p = wf_alloc(tag, bytes);
  if (p) memset(p, 0, bytes);
  return p;
}

void wf_free(void *p) {
  if (!p) return;
  char *base = (char *)p - ALIGN;
  header *h = (header *)(void *)base;
  count_bytes(h->tag, -(int64_t)h->bytes);
  atomic_fetch_sub(&live, 1);
  free(base);
}

void *wf_realloc(const char *tag, void *p, size_t bytes) {
  void *q = wf_alloc(tag, bytes);
  if (!q || !p) return q;
  const header *h = (const header *)(const void *)((char *)p - ALIGN);
  memcpy(q, p, h->bytes < bytes ? h->bytes : bytes);
  wf_free(p);
  return q;
}

char *wf_strndup(const char *tag, const char *s, size_t n) {
  char *p = wf_alloc(tag, n + 1);
  if (!p) return NULL;
  memcpy(p, s, n);
  p[n] = '\0';
  return p;
}

char *wf_strdup(const char *tag, const char *s) {
  return wf_strndup(tag, s, strlen(s));
}

wf_status wf_grow(const char *tag, void **array, size_t size, size_t used, size_t *capacity) {
  if (used < *capacity) return WF_OK;
  size_t want = *capacity ? 2 * *capacity : 8, bytes;
  if (__builtin_mul_overflow(want, size, &bytes)) return WF_FAIL(WF_ENOMEM, "array of '%s' too large", tag);
  void *p = wf_realloc(tag, *array, bytes);
  if (!p) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  *array = p;
  *capacity = want;
  return WF_OK;
}

int wf_mem_report(wf_mem_tag *out, int max) {
  int n = 0;
  for (int i = 0; i < MAX_TAGS; i++) {
    const char *name = atomic_load(&tags[i].name);
    if (!name) continue;
    wf_mem_tag t = {name, atomic_load(&tags[i].now), atomic_load(&tags[i].peak)};
    int at = n < max ? n : max;
    while (at > 0 && out[at - 1].peak < t.peak) at--; /* insertion, largest first */
    if (at >= max) continue;
    int last = n < max ? n : max - 1;
    memmove(out + at + 1, out + at, (size_t)(last - at) * sizeof *out);
    out[at] = t;
    if (n < max) n++;
  }
  return n;
}

int64_t wf_mem_now(void) {
  return atomic_load(&total_now);
}
int64_t wf_mem_peak(void) {
  return atomic_load(&total_peak);
}
int64_t wf_mem_live(void) {
  return atomic_load(&live);
}
int64_t wf_mem_alloc_count(void) {
  return atomic_load(&count);
}
void wf_mem_fail_at(int64_t n) {
  atomic_store(&fail_at, n);
}
void wf_mem_reset_peak(void) {
  atomic_store(&total_peak, atomic_load(&total_now));
  for (int i = 0; i < MAX_TAGS; i++) atomic_store(&tags[i].peak, atomic_load(&tags[i].now));
}
