/* A CUDA GPU as a device: its memory, one stream, copies. The runtime is linked statically and finds the
 * driver when a device is opened, so a build with CUDA runs on machines without. */
#include "core/cuda_impl.cuh"

#include <stdio.h>
#include "core/memory.h"

wf_status wf_cuda_status(cudaError_t e, const char *what) {
  if (e == cudaSuccess) return WF_OK;
  cudaGetLastError(); /* an error that does not last is forgotten */
  if (e == cudaErrorMemoryAllocation) return WF_FAIL(WF_ENOMEM, "%s: the GPU is out of memory", what);
  return WF_FAIL(WF_EDEVICE, "%s: CUDA reports %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e));
}

wf_status wf_cuda_use(const wf_device *dev) {
  return wf_cuda_status(cudaSetDevice(dev->index), "choosing the GPU");
}

static cudaStream_t stream_of(const wf_device *dev) {
  return (cudaStream_t)dev->stream;
}

static wf_status cuda_alloc(wf_device *dev, size_t bytes, void **out) {
  WF_TRY(wf_cuda_use(dev));
  cudaError_t e = cudaMalloc(out, bytes);
  if (e != cudaErrorMemoryAllocation) return wf_cuda_status(e, "allocating GPU memory");
  cudaGetLastError();
  size_t left = 0, whole = 0;
  cudaMemGetInfo(&left, &whole);
  return wf_hint(WF_FAIL(WF_ENOMEM, "the GPU has %zu MiB of %zu MiB left; %zu MiB were asked for", left >> 20,
                         whole >> 20, bytes >> 20),
                 "a smaller batch, train.stream or recompute need less");
}

static void cuda_free(wf_device *dev, void *p, size_t bytes) {
  (void)bytes;
  if (wf_cuda_use(dev) == WF_OK) cudaFree(p);
}

static wf_status copy(wf_device *dev, void *dst, const void *src, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return WF_OK;
  WF_TRY(wf_cuda_use(dev));
  WF_TRY(
      wf_cuda_status(cudaMemcpyAsync(dst, src, bytes, kind, stream_of(dev)), "copying to or from the GPU"));
  return wf_cuda_status(cudaStreamSynchronize(stream_of(dev)), "waiting for the GPU");
}
static wf_status cuda_write(wf_device *dev, void *dst, const void *src, size_t bytes) {
  return copy(dev, dst, src, bytes, cudaMemcpyHostToDevice);
}
static wf_status cuda_read(wf_device *dev, void *dst, const void *src, size_t bytes) {
  return copy(dev, dst, src, bytes, cudaMemcpyDeviceToHost);
}

static wf_status cuda_zero(wf_device *dev, void *dst, size_t bytes) {
  if (bytes == 0) return WF_OK;
  WF_TRY(wf_cuda_use(dev));
  return wf_cuda_status(cudaMemsetAsync(dst, 0, bytes, stream_of(dev)), "zeroing GPU memory");
}

static wf_status cuda_sync(wf_device *dev) {
  WF_TRY(wf_cuda_use(dev));
  return wf_cuda_status(cudaStreamSynchronize(stream_of(dev)), "waiting for the GPU");
}

static wf_status cuda_host_alloc(wf_device *dev, size_t bytes, void **out) {
  WF_TRY(wf_cuda_use(dev));
  return wf_cuda_status(cudaMallocHost(out, bytes), "allocating pinned memory");
}
static void cuda_host_free(wf_device *dev, void *p, size_t bytes) {
  (void)bytes;
  if (wf_cuda_use(dev) == WF_OK) cudaFreeHost(p);
}

static void cuda_close(wf_device *dev) {
  wf_cuda_backend *b = (wf_cuda_backend *)dev->backend;
  if (wf_cuda_use(dev) == WF_OK) {
    wf_cuda_blas_close(b->blas);
    cudaStreamDestroy(stream_of(dev));
  }
  wf_free(b);
}

static const wf_device_vtable vtable = {{{cuda_alloc, cuda_free}, {cuda_host_alloc, cuda_host_free}},
                                        cuda_write,
                                        cuda_read,
                                        cuda_zero,
                                        cuda_sync,
                                        cuda_close};

static wf_status find(int index) {
  int count = 0, driver = 0;
  cudaError_t e = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (e == cudaErrorNoDevice || (e == cudaSuccess && count == 0))
    return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "there is no NVIDIA GPU here"), "use device: cpu");
  if (e == cudaErrorInsufficientDriver) {
    cudaDriverGetVersion(&driver);
    if (driver == 0)
      return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "there is no NVIDIA driver here"),
                     "install one if this machine has a GPU, or use device: cpu");
    return wf_hint(WF_FAIL(WF_EUNSUPPORTED,
                           "the NVIDIA driver supports CUDA %d.%d, Weft was built with %d.%d", driver / 1000,
                           driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10),
                   "update the driver, build with an older CUDA, or use device: cpu");
  }
  WF_TRY(wf_cuda_status(e, "looking for GPUs"));
  if (index < 0 || index >= count)
    return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "there is no GPU %d here", index), "GPUs 0 to %d can be used",
                   count - 1);
  return WF_OK;
}

extern "C" wf_status wf_cuda_device_open(int index, wf_device *dev) {
  WF_TRY(find(index));
  WF_TRY(wf_cuda_use(dev));
  cudaDeviceProp prop;
  WF_TRY(wf_cuda_status(cudaGetDeviceProperties(&prop, index), "asking what the GPU is"));
  wf_cuda_backend *b = (wf_cuda_backend *)wf_calloc("device", 1, sizeof *b);
  if (!b) return WF_ENOMEM;
  cudaStream_t stream = NULL;
  wf_status s = wf_cuda_status(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "opening the GPU");
  if (s != WF_OK) {
    wf_free(b);
    return s;
  }
  dev->v = &vtable;
  dev->stream = stream;
  dev->backend = b;
  snprintf(dev->name, sizeof dev->name, "cuda:%d (%.80s, %zu MiB)", index, prop.name,
           prop.totalGlobalMem >> 20);
  return WF_OK;
}
