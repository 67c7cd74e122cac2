/* What the CUDA kernels of core share: launching, errors, strides, sums over a block.
 *
 * A file core/ops/<file>.cu holds the kernels of the ops described in <file>.c:
 *
 *     WF_CUDA_KERNEL(square) {                         // run for `real` float or double, by the call's type
 *       const real *x = wf_cuda_ptr<real>(call->in[0]);
 *       real *y = wf_cuda_ptr<real>(call->out[0]);
 *       return wf_cuda_each(call, wf_numel(call->in[0]), [=] __device__(int64_t i) { y[i] = x[i] * x[i]; });
 *     }
 *
 * The kernels are plain: one thread an element, or one block a row. Sums run in a fixed order (no atomics on
 * floats), so results repeat; they are formed in double, as the CPU's long sums are. Everything goes to the
 * device's stream, nothing waits, except where ids or tables given by the caller must be checked.
 * Private to core.
 */
#ifndef WF_CORE_CUDA_IMPL_CUH
#define WF_CORE_CUDA_IMPL_CUH

#include <cuda_runtime.h>
#include <math.h>
#include "core/ctx_impl.h"
#include "core/device_impl.h"
#include "core/ops/fold_impl.h"
#include "core/rows.h"

/* ---- errors (cuda_device.cu) ---- */

/* WF_OK, or WF_ENOMEM or WF_EDEVICE saying what failed. */
wf_status wf_cuda_status(cudaError_t e, const char *what);
/* Make the device the thread's current one. */
wf_status wf_cuda_use(const wf_device *dev);

/* After a launch. */
#define WF_CUDA_LAUNCHED(call) WF_TRY(wf_cuda_status(cudaGetLastError(), (call)->op->name))

/* ---- products (cuda_blas.cu) ---- */

/* An operand stored by rows `ld` apart; t: stored transposed; `batch` elements from one matrix to the next.
 */
typedef struct wf_cuda_matrix {
  void *p;
  bool t;
  int64_t ld, batch;
} wf_cuda_matrix;

/* y [m, n] = a [m, k] b [k, n] (+ y), `count` times; y is not transposed; type f32 or f64. */
wf_status wf_cuda_gemm(wf_device *dev, wf_dtype type, int64_t count, int64_t m, int64_t n, int64_t k,
                       const wf_cuda_matrix *a, const wf_cuda_matrix *b, bool add, const wf_cuda_matrix *y);
/* Free what the products keep for a device. */
void wf_cuda_blas_close(void *handle);

/* What wf_device.backend points to. */
typedef struct wf_cuda_backend {
  void *blas; /* cublasLtHandle_t, made at the first product */
} wf_cuda_backend;

/* ---- kernels by real type ---- */

static inline bool wf_cuda_f64(const wf_call *call) {
  if (call->op->flags & WF_OP_TYPE_OF_FIRST) return call->in[0]->dtype == WF_F64;
  for (int i = 0; i < call->n_in; i++)
    if (call->in[i] && call->in[i]->dtype == WF_F64) return true;
  for (int i = 0; i < call->n_out; i++)
    if (call->out[i]->dtype == WF_F64) return true;
  return false;
}

#define WF_CUDA_KERNEL(name)                                                       \
  template <class real> static wf_status run_##name(const wf_call *call);          \
  extern "C" wf_status wf_cuda_##name(const wf_call *call) {                       \
    WF_TRY(wf_cuda_use(wf_ctx_device(call->ctx)));                                 \
    return wf_cuda_f64(call) ? run_##name<double>(call) : run_##name<float>(call); \
  }                                                                                \
  template <class real> static wf_status run_##name(const wf_call *call)

/* The names that the formulas shared with the CPU use (core/vmath.h); CUDA overloads them by type. */
#define R(x)    ((real)(x))
#define r_exp   exp
#define r_log   log
#define r_tanh  tanh
#define r_cos   cos
#define r_sin   sin
#define r_erf   erf
#define r_log1p log1p
#define r_sqrt  sqrt
#define r_abs   fabs

/* The address of element 0; NULL for an absent tensor. */
template <class T> static inline T *wf_cuda_ptr(const wf_tensor *t) {
  return t ? (T *)wf_data(t) : NULL;
}
/* The i-th input's; NULL when absent or beyond those given. */
template <class T> static inline const T *wf_cuda_in(const wf_call *call, int i) {
  return i < call->n_in ? wf_cuda_ptr<T>(call->in[i]) : NULL;
}

/* y = v, or y += v. */
template <class real> __device__ static inline void wf_cuda_put(real *y, bool add, real v) {
  *y = add ? *y + v : v;
}

/* ---- launching ---- */

enum { WF_CUDA_BLOCK = 256, WF_CUDA_WARPS = WF_CUDA_BLOCK / 32 };

static inline cudaStream_t wf_cuda_stream(const wf_call *call) {
  return (cudaStream_t)wf_device_stream(wf_ctx_device(call->ctx));
}
static inline unsigned wf_cuda_blocks(int64_t n) {
  const int64_t most = 1 << 20; /* kernels stride over what is left */
  return (unsigned)(n < most ? n : most);
}

template <class F> __global__ static void wf_cuda_each_kernel(int64_t n, F f) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) f(i);
}
/* f(i) for every i below n, each by a thread. */
template <class F> static wf_status wf_cuda_each(const wf_call *call, int64_t n, F f) {
  if (n <= 0) return WF_OK;
  wf_cuda_each_kernel<<<wf_cuda_blocks((n + WF_CUDA_BLOCK - 1) / WF_CUDA_BLOCK), WF_CUDA_BLOCK, 0,
                        wf_cuda_stream(call)>>>(n, f);
  WF_CUDA_LAUNCHED(call);
  return WF_OK;
}

template <class F> __global__ static void wf_cuda_rows_kernel(int64_t n, F f) {
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    f(i);
    __syncthreads();
  }
}
/* f(i) for every i below n, each by the WF_CUDA_BLOCK threads of a block. */
template <class F> static wf_status wf_cuda_rows(const wf_call *call, int64_t n, F f) {
  if (n <= 0) return WF_OK;
  wf_cuda_rows_kernel<<<wf_cuda_blocks(n), WF_CUDA_BLOCK, 0, wf_cuda_stream(call)>>>(n, f);
  WF_CUDA_LAUNCHED(call);
  return WF_OK;
}

/* ---- inside a block ---- */

struct wf_cuda_sum {
  __device__ double operator()(double a, double b) const { return a + b; }
};
struct wf_cuda_max {
  __device__ double operator()(double a, double b) const { return a > b || !(a == a) ? a : b; }
};

/* Combine one number of every thread; all threads receive the result. */
template <class Op> __device__ static inline double wf_cuda_combine(double v, Op op) {
  __shared__ double part[WF_CUDA_WARPS];
  for (int d = 16; d > 0; d /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, d));
  __syncthreads(); /* `part` may still be read from the time before */
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  v = part[0];
  for (int w = 1; w < WF_CUDA_WARPS; w++) v = op(v, part[w]);
  return v;
}
__device__ static inline double wf_cuda_total(double v) {
  return wf_cuda_combine(v, wf_cuda_sum());
}
__device__ static inline double wf_cuda_largest(double v) {
  return wf_cuda_combine(v, wf_cuda_max());
}

/* ---- strides ---- */

/* o[k] = offset in tensor k of element i of the folded dimensions. */
__device__ static inline void wf_cuda_offsets(const wf_lines &l, int64_t i, int64_t *o) {
  for (int k = 0; k < l.nt; k++) o[k] = 0;
  for (int d = l.nd - 1; d >= 0; d--) {
    int64_t at = i % l.shape[d];
    i /= l.shape[d];
    for (int k = 0; k < l.nt; k++) o[k] += at * l.stride[k][d];
  }
}

/* f(o) for every element of t[0], the others broadcast to it: o[k] is its offset in t[k]. */
template <int N, class F>
static wf_status wf_cuda_lines(const wf_call *call, const wf_tensor *const (&t)[N], F f) {
  wf_lines l;
  wf_lines_fold(&l, N, t);
  return wf_cuda_each(call, wf_numel(t[0]), [=] __device__(int64_t i) {
    int64_t o[N];
    wf_cuda_offsets(l, i, o);
    f(o);
  });
}

/* The i-th place of some of a tensor's dimensions, as an offset. */
struct wf_cuda_dims {
  int nd;
  int64_t shape[WF_MAX_DIMS], stride[WF_MAX_DIMS];
  __device__ int64_t operator()(int64_t i) const {
    int64_t offset = 0;
    for (int d = nd - 1; d >= 0; d--) {
      offset += i % shape[d] * stride[d];
      i /= shape[d];
    }
    return offset;
  }
};
static inline wf_cuda_dims wf_cuda_dims_make(int nd, const int64_t *shape, const int64_t *stride) {
  wf_cuda_dims at = {nd, {0}, {0}};
  for (int d = 0; d < nd; d++) at.shape[d] = shape[d], at.stride[d] = stride[d];
  return at;
}
/* Dimensions from .. to-1; none for an absent tensor. */
static inline wf_cuda_dims wf_cuda_dims_of(const wf_tensor *t, int from, int to) {
  return t ? wf_cuda_dims_make(to - from, t->shape + from, t->stride + from)
           : wf_cuda_dims_make(0, NULL, NULL);
}
/* Where each row of the last dimension begins. */
static inline wf_cuda_dims wf_cuda_leading(const wf_tensor *t) {
  return wf_cuda_dims_of(t, 0, t ? t->ndim - 1 : 0);
}

/* ---- rows ---- */

/* The row of place t, where row r begins `extra` r places further on than in the table. */
__device__ static inline int64_t wf_cuda_row_of(const wf_row *row, int64_t n, int64_t t, int64_t extra) {
  int64_t lo = 0, hi = n;
  while (hi - lo > 1) {
    int64_t mid = (lo + hi) / 2;
    if (row[mid].begin + mid * extra <= t)
      lo = mid;
    else
      hi = mid;
  }
  return lo;
}
/* The row with `flag` (WF_ROW_TAKES, WF_ROW_LEAVES) of a lane, or -1. */
__device__ static inline int64_t wf_cuda_row_with(const wf_row *row, int64_t n, int64_t lane, int64_t flag) {
  for (int64_t r = 0; r < n; r++)
    if (row[r].lane == lane && row[r].flags & flag) return r;
  return -1;
}

/* ---- what the caller gave ---- */

/* *first = the smallest i below n with bad(i), or -1. Waits for the device. */
template <class F> static wf_status wf_cuda_first(const wf_call *call, int64_t n, F bad, int64_t *first) {
  wf_device *dev = wf_ctx_device(call->ctx);
  void *place;
  *first = -1;
  if (n <= 0) return WF_OK;
  WF_TRY(wf_device_alloc(dev, "check", sizeof(int64_t), &place));
  unsigned long long *p = (unsigned long long *)place, none = ~0ull;
  wf_status s = wf_device_write(dev, p, &none, sizeof none);
  if (s == WF_OK)
    s = wf_cuda_each(call, n, [=] __device__(int64_t i) {
      if (bad(i)) atomicMin(p, (unsigned long long)i);
    });
  if (s == WF_OK) s = wf_device_read(dev, &none, p, sizeof none);
  wf_device_free(dev, "check", place, sizeof(int64_t));
  WF_TRY(s);
  *first = (int64_t)none; /* all bits set is -1 */
  return WF_OK;
}

/* The row table tiles n tokens and names lanes below `lanes`. */
static inline wf_status wf_cuda_check_rows(const wf_call *call, const wf_tensor *table, int64_t n,
                                           int64_t lanes) {
  const wf_row *row = wf_cuda_ptr<wf_row>(table);
  const int64_t rows = table->shape[0];
  int64_t at;
  if (rows == 0 && n > 0)
    return WF_FAIL(WF_EINVAL, "%s: no rows for %lld tokens", call->op->name, (long long)n);
  WF_TRY(wf_cuda_first(
      call, rows,
      [=] __device__(int64_t r) {
        int64_t begin = r ? row[r - 1].begin + row[r - 1].len : 0;
        return row[r].begin != begin || row[r].len < 1 || row[r].lane < 0 || row[r].lane >= lanes ||
               (r == rows - 1 && row[r].begin + row[r].len != n);
      },
      &at));
  if (at < 0) return WF_OK;
  wf_row bad;
  WF_TRY(wf_device_read(wf_ctx_device(call->ctx), &bad, row + at, sizeof bad));
  return WF_FAIL(WF_EINVAL, "%s: row %lld (begin %lld, len %lld, lane %lld) of %lld tokens, %lld lanes",
                 call->op->name, (long long)at, (long long)bad.begin, (long long)bad.len, (long long)bad.lane,
                 (long long)n, (long long)lanes);
}

/* Memory for the time of a call; later calls may have it while this one's kernels run, which the stream
 * orders. */
struct wf_cuda_scratch {
  wf_device *dev = NULL;
  void *p = NULL;
  size_t bytes = 0;
  ~wf_cuda_scratch() {
    if (p) wf_device_free(dev, "scratch", p, bytes);
  }
};
static inline wf_status wf_cuda_take(const wf_call *call, size_t bytes, wf_cuda_scratch *s) {
  s->dev = wf_ctx_device(call->ctx);
  s->bytes = bytes;
  return wf_device_alloc(s->dev, "scratch", bytes, &s->p);
}

#endif
