/* device: where storage lives and kernels run, chosen once and passed everywhere.
 *
 * Two kinds: the CPU, with its instruction-set level and threads, and a CUDA GPU, whose runtime is touched
 * only when one is opened. Each device has a caching allocator, so that a step's addresses repeat and no step
 * after the first asks the system for memory.
 */
#ifndef WF_CORE_DEVICE_H
#define WF_CORE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum wf_device_type { WF_CPU, WF_CUDA, WF_N_DEVICE_TYPES } wf_device_type;

/* Instruction-set levels the CPU kernels are compiled for; on other machines there is one, the native. */
typedef enum wf_isa { WF_ISA_BASE, WF_ISA_V3, WF_ISA_V4, WF_N_ISA } wf_isa;

typedef struct wf_device wf_device;

/* Open a device; `index` counts GPUs and is 0 for the CPU. The instruction set is the best the machine has,
 * or WEFT_ISA (v2, v3, v4) when set lower. Errors: WF_EUNSUPPORTED with a hint when this build or machine has
 * none. The caller closes it after everything that lives on it. */
wf_status wf_device_open(wf_device_type type, int index, wf_device **out);
/* A CPU on paper: everything is allocated and counted and no kernel runs (core/op.h: composed), so a step of
 * any size takes moments and no memory. What is written from the host can be read; anything else is
 * arbitrary. */
wf_status wf_device_open_paper(wf_device **out);
void wf_device_close(wf_device *dev);

wf_device_type wf_device_kind(const wf_device *dev);
wf_isa wf_device_isa(const wf_device *dev);
bool wf_device_on_paper(const wf_device *dev);
const char *wf_device_name(const wf_device *dev); /* "cpu (x86-64-v4, 2 threads)", "cuda:0 (...)" */
const char *wf_isa_name(wf_isa isa);
void *wf_device_stream(const wf_device *dev); /* cudaStream_t; NULL on the CPU */

/* Raw memory of the device, cached by size; uninitialised, aligned to 64 bytes (256 on a GPU). */
wf_status wf_device_alloc(wf_device *dev, const char *tag, size_t bytes, void **out);
void wf_device_free(wf_device *dev, const char *tag, void *p, size_t bytes);
void wf_device_trim(wf_device *dev); /* give cached blocks back to the system */

/* The same for host memory from which copies are fastest: pinned for a GPU. */
wf_status wf_device_host_alloc(wf_device *dev, const char *tag, size_t bytes, void **out);
void wf_device_host_free(wf_device *dev, const char *tag, void *p, size_t bytes);

/* Copies between host memory and the device; return when the host side may be reused or read. */
wf_status wf_device_write(wf_device *dev, void *dst, const void *src, size_t bytes);
wf_status wf_device_read(wf_device *dev, void *dst, const void *src, size_t bytes);
wf_status wf_device_zero(wf_device *dev, void *dst, size_t bytes); /* ordered with kernels */
wf_status wf_device_sync(wf_device *dev);

#ifdef __cplusplus
}
#endif

#endif
