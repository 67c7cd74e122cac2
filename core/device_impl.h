/* What the kinds of device fill in, and the caching allocator they share. Private to core. */
#ifndef WF_CORE_DEVICE_IMPL_H
#define WF_CORE_DEVICE_IMPL_H

#include <pthread.h>
#include "core/device.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_CACHE_CLASSES = 256 };

typedef struct wf_cached {
  struct wf_cached *next;
  void *p;
} wf_cached;

typedef struct wf_raw_memory {
  wf_status (*alloc)(wf_device *dev, size_t bytes, void **out);
  void (*free)(wf_device *dev, void *p, size_t bytes);
} wf_raw_memory;

/* Of the device, and of the host where copies are fastest. */
enum { WF_DEVICE_MEMORY, WF_HOST_MEMORY, WF_N_MEMORIES };

typedef struct wf_device_vtable {
  wf_raw_memory memory[WF_N_MEMORIES];
  wf_status (*write)(wf_device *dev, void *dst, const void *src, size_t bytes);
  wf_status (*read)(wf_device *dev, void *dst, const void *src, size_t bytes);
  wf_status (*zero)(wf_device *dev, void *dst, size_t bytes);
  wf_status (*sync)(wf_device *dev);
  void (*close)(wf_device *dev);
} wf_device_vtable;

struct wf_device {
  wf_device_type type;
  int index;
  wf_isa isa;
  bool on_paper;
  char name[128];
  const wf_device_vtable *v;
  void *stream;  /* cudaStream_t */
  void *backend; /* the kind's own data */
  pthread_mutex_t lock;
  wf_cached *cache[WF_N_MEMORIES][WF_CACHE_CLASSES]; /* free blocks by size class */
  wf_cached *spare;                                  /* list cells without a block */
};

/* core/cuda_device.cu: fills type, name, v, stream, backend. */
wf_status wf_cuda_device_open(int index, wf_device *dev);

#ifdef __cplusplus
}
#endif

#endif
