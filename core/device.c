/* Devices: the CPU here, CUDA in cuda_device.cu, and the caching allocator over both.
 *
 * Blocks are cached by size class, eight classes to each power of two, so at most an eighth is wasted and a
 * step that asks for the same sizes gets the same blocks.
 */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "core/device_impl.h"
#include "core/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef _OPENMP
#  include <omp.h>
#endif

/* ---- size classes ---- */

static int class_of(size_t bytes, size_t *rounded) {
  if (bytes < 512) bytes = 512;
  int p = 63 - __builtin_clzll((unsigned long long)bytes);
  size_t step = (size_t)1 << (p - 3);
  size_t k = (bytes - ((size_t)1 << p) + step - 1) / step; /* 0..8 */
  *rounded = ((size_t)1 << p) + k * step;
  return (p - 9) * 8 + (int)k; /* k == 8 is the next power's class 0 */
}

static wf_status cached_alloc(wf_device *dev, int memory, const char *tag, size_t bytes, void **out) {
  if (bytes > (size_t)1 << 46) return WF_FAIL(WF_ENOMEM, "%zu bytes asked for '%s'", bytes, tag);
  size_t whole;
  int c = class_of(bytes, &whole);
  void *p = NULL;
  pthread_mutex_lock(&dev->lock);
  wf_cached *cell = dev->cache[memory][c];
  if (cell) {
    dev->cache[memory][c] = cell->next;
    cell->next = dev->spare;
    dev->spare = cell;
    p = cell->p;
  }
  pthread_mutex_unlock(&dev->lock);
  if (!p) {
    wf_status s = dev->v->memory[memory].alloc(dev, whole, &p);
    if (s == WF_ENOMEM) {
      wf_device_trim(dev);
      s = dev->v->memory[memory].alloc(dev, whole, &p);
    }
    WF_TRY(s);
  }
  wf_mem_count(tag, (int64_t)whole);
  *out = p;
  return WF_OK;
}

static void cached_free(wf_device *dev, int memory, const char *tag, void *p, size_t bytes) {
  if (!p) return;
  size_t whole;
  int c = class_of(bytes, &whole);
  wf_mem_count(tag, -(int64_t)whole);
  pthread_mutex_lock(&dev->lock);
  wf_cached *cell = dev->spare;
  if (cell)
    dev->spare = cell->next;
  else
    cell = malloc(sizeof *cell);
  if (cell) {
    cell->p = p;
    cell->next = dev->cache[memory][c];
    dev->cache[memory][c] = cell;
  }
  pthread_mutex_unlock(&dev->lock);
  if (!cell) dev->v->memory[memory].free(dev, p, whole);
}

/* The lock is held. */
static void trim(wf_device *dev, int memory) {
  for (int c = 0; c < WF_CACHE_CLASSES; c++)
    while (dev->cache[memory][c]) {
      wf_cached *cell = dev->cache[memory][c];
      dev->cache[memory][c] = cell->next;
      size_t whole = ((size_t)1 << (c / 8 + 9)) + (size_t)(c % 8) * ((size_t)1 << (c / 8 + 6));
      dev->v->memory[memory].free(dev, cell->p, whole);
      cell->next = dev->spare;
      dev->spare = cell;
    }
}

void wf_device_trim(wf_device *dev) {
  pthread_mutex_lock(&dev->lock);
  for (int memory = 0; memory < WF_N_MEMORIES; memory++) trim(dev, memory);
  pthread_mutex_unlock(&dev->lock);
}

wf_status wf_device_alloc(wf_device *dev, const char *tag, size_t bytes, void **out) {
  return cached_alloc(dev, WF_DEVICE_MEMORY, tag, bytes, out);
}
void wf_device_free(wf_device *dev, const char *tag, void *p, size_t bytes) {
  cached_free(dev, WF_DEVICE_MEMORY, tag, p, bytes);
}
wf_status wf_device_host_alloc(wf_device *dev, const char *tag, size_t bytes, void **out) {
  return cached_alloc(dev, WF_HOST_MEMORY, tag, bytes, out);
}
void wf_device_host_free(wf_device *dev, const char *tag, void *p, size_t bytes) {
  cached_free(dev, WF_HOST_MEMORY, tag, p, bytes);
}

/* ---- CPU ---- */

static wf_status cpu_alloc(wf_device *dev, size_t bytes, void **out) {
  (void)dev;
  *out = wf_alloc("device cache", bytes);
  if (!*out) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  wf_mem_count("device cache", -(int64_t)bytes); /* counted under the user's tag while in use */
  return WF_OK;
}
static void cpu_free(wf_device *dev, void *p, size_t bytes) {
  (void)dev;
  wf_mem_count("device cache", (int64_t)bytes);
  wf_free(p);
}
static wf_status cpu_copy(wf_device *dev, void *dst, const void *src, size_t bytes) {
  (void)dev;
  if (bytes) memcpy(dst, src, bytes);
  return WF_OK;
}
static wf_status cpu_zero(wf_device *dev, void *dst, size_t bytes) {
  (void)dev;
  if (bytes) memset(dst, 0, bytes);
  return WF_OK;
}
static wf_status cpu_sync(wf_device *dev) {
  (void)dev;
  return WF_OK;
}
static void cpu_close(wf_device *dev) {
  (void)dev;
}
static const wf_device_vtable cpu_vtable = {
    {{cpu_alloc, cpu_free}, {cpu_alloc, cpu_free}}, cpu_copy, cpu_copy, cpu_zero, cpu_sync, cpu_close};

static wf_isa best_isa(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
            __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl");
  return v4 ? WF_ISA_V4 : v3 ? WF_ISA_V3 : WF_ISA_BASE;
#else
  return WF_ISA_BASE;
#endif
}

const char *wf_isa_name(wf_isa isa) {
#if defined(__x86_64__)
  static const char *const names[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4"};
  return names[isa];
#else
  (void)isa;
  return "native";
#endif
}

static wf_status cpu_open(wf_device *dev) {
  dev->isa = best_isa();
  const char *want = getenv("WEFT_ISA");
  if (want && *want) {
    wf_isa isa = WF_ISA_BASE;
    while (isa < WF_N_ISA && strcmp(want, wf_isa_name(isa) + 7) != 0) isa++;
    if (isa == WF_N_ISA || isa > dev->isa)
      return wf_hint(WF_FAIL(WF_EINVAL, "WEFT_ISA=%s is not an instruction set of this machine", want),
                     "v2, v3 or v4, at most %s", wf_isa_name(dev->isa) + 7);
    dev->isa = isa;
  }
  dev->v = &cpu_vtable;
  int threads = 1;
#ifdef _OPENMP
  threads = omp_get_max_threads();
#endif
  snprintf(dev->name, sizeof dev->name, "cpu (%s, %d thread%s)", wf_isa_name(dev->isa), threads,
           threads == 1 ? "" : "s");
  return WF_OK;
}

/* ---- a CPU on paper: addresses whose pages come into being when they are touched ---- */

static wf_status paper_alloc(wf_device *dev, size_t bytes, void **out) {
  (void)dev;
  *out = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return *out == MAP_FAILED ? WF_FAIL(WF_ENOMEM, "no addresses for %zu bytes", bytes) : WF_OK;
}
static void paper_free(wf_device *dev, void *p, size_t bytes) {
  (void)dev;
  munmap(p, bytes);
}
static wf_status paper_zero(wf_device *dev, void *dst, size_t bytes) {
  (void)dev, (void)dst, (void)bytes;
  return WF_OK;
}
static const wf_device_vtable paper_vtable = {{{paper_alloc, paper_free}, {paper_alloc, paper_free}},
                                              cpu_copy,
                                              cpu_copy,
                                              paper_zero,
                                              cpu_sync,
                                              cpu_close};

static wf_status paper_open(wf_device *dev) {
  WF_TRY(cpu_open(dev));
  dev->on_paper = true;
  dev->v = &paper_vtable;
  return WF_OK;
}

/* ---- any ---- */

static wf_status open_device(wf_device_type type, int index, bool on_paper, wf_device **out) {
  wf_device *dev;
  WF_CALLOC(dev, "device", 1);
  dev->type = type;
  dev->index = index;
  pthread_mutex_init(&dev->lock, NULL);
  wf_status s;
  if (type == WF_CPU) s = on_paper ? paper_open(dev) : cpu_open(dev);
#ifdef WEFT_CUDA
  else
    s = wf_cuda_device_open(index, dev);
#else
  else
    s = wf_hint(WF_FAIL(WF_EUNSUPPORTED, "this Weft was built without CUDA"),
                "configure with -DWEFT_CUDA=ON (the cuda preset), or use device: cpu");
#endif
  if (s != WF_OK) {
    pthread_mutex_destroy(&dev->lock);
    wf_free(dev);
    return wf_frame_at(__FILE__, __LINE__, __func__, s);
  }
  *out = dev;
  return WF_OK;
}

wf_status wf_device_open(wf_device_type type, int index, wf_device **out) {
  return open_device(type, index, false, out);
}
wf_status wf_device_open_paper(wf_device **out) {
  return open_device(WF_CPU, 0, true, out);
}

void wf_device_close(wf_device *dev) {
  if (!dev) return;
  wf_device_trim(dev);
  dev->v->close(dev);
  while (dev->spare) {
    wf_cached *cell = dev->spare;
    dev->spare = cell->next;
    free(cell);
  }
  pthread_mutex_destroy(&dev->lock);
  wf_free(dev);
}

wf_device_type wf_device_kind(const wf_device *dev) {
  return dev->type;
}
wf_isa wf_device_isa(const wf_device *dev) {
  return dev->isa;
}
bool wf_device_on_paper(const wf_device *dev) {
  return dev->on_paper;
}
const char *wf_device_name(const wf_device *dev) {
  return dev->name;
}
void *wf_device_stream(const wf_device *dev) {
  return dev->stream;
}
wf_status wf_device_write(wf_device *dev, void *dst, const void *src, size_t bytes) {
  return dev->v->write(dev, dst, src, bytes);
}
wf_status wf_device_read(wf_device *dev, void *dst, const void *src, size_t bytes) {
  return dev->v->read(dev, dst, src, bytes);
}
wf_status wf_device_zero(wf_device *dev, void *dst, size_t bytes) {
  return dev->v->zero(dev, dst, bytes);
}
wf_status wf_device_sync(wf_device *dev) {
  return dev->v->sync(dev);
}
