/* Matrix products on a GPU by cuBLASLt, which is loaded at the first product: programs that never open a GPU
 * do not pay for the library, and a machine needs it only then.
 *
 * float32 products stay float32 (no TF32), and no partial sums are combined in an order that timing decides.
 */
#include "core/cuda_impl.cuh"

#include <cublasLt.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

/* ---- the library ---- */

#define LT_FUNCTIONS(X)               \
  X(cublasLtCreate)                   \
  X(cublasLtDestroy)                  \
  X(cublasLtMatmul)                   \
  X(cublasLtMatmulAlgoGetHeuristic)   \
  X(cublasLtMatmulDescCreate)         \
  X(cublasLtMatmulDescDestroy)        \
  X(cublasLtMatmulDescSetAttribute)   \
  X(cublasLtMatrixLayoutCreate)       \
  X(cublasLtMatrixLayoutDestroy)      \
  X(cublasLtMatrixLayoutSetAttribute) \
  X(cublasLtMatmulPreferenceCreate)   \
  X(cublasLtMatmulPreferenceDestroy)  \
  X(cublasLtMatmulPreferenceSetAttribute)

static struct {
#define X(name) decltype(&::name) name;
  LT_FUNCTIONS(X)
#undef X
  bool loaded;
} lt;
static pthread_mutex_t lt_lock = PTHREAD_MUTEX_INITIALIZER;

static wf_status load(void) {
  char name[64];
  snprintf(name, sizeof name, "libcublasLt.so.%d", CUDART_VERSION / 1000);
  void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
#ifdef WEFT_CUDA_LIBRARY_DIR
  if (!library) { /* not on the loader's path: where this build found CUDA */
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", WEFT_CUDA_LIBRARY_DIR, name);
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  }
#endif
  if (!library)
    return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "matrix products on the GPU need %s: %s", name, dlerror()),
                   "install CUDA's libcublas, or name its folder in LD_LIBRARY_PATH");
#define X(f)                                                            \
  if (!(lt.f = (decltype(lt.f))dlsym(library, #f))) {                   \
    dlclose(library);                                                   \
    return WF_FAIL(WF_EUNSUPPORTED, "%s has no function %s", name, #f); \
  }
  LT_FUNCTIONS(X)
#undef X
  lt.loaded = true; /* kept until the program ends */
  return WF_OK;
}

static wf_status lt_status(cublasStatus_t s, const char *what) {
  return s == CUBLAS_STATUS_SUCCESS ? WF_OK
                                    : WF_FAIL(WF_EDEVICE, "%s: cuBLASLt reports status %d", what, (int)s);
}

static wf_status handle_of(wf_device *dev, cublasLtHandle_t *out) {
  wf_cuda_backend *b = (wf_cuda_backend *)dev->backend;
  wf_status s = WF_OK;
  pthread_mutex_lock(&lt_lock);
  if (!lt.loaded) s = load();
  if (s == WF_OK && !b->blas)
    s = lt_status(lt.cublasLtCreate((cublasLtHandle_t *)&b->blas), "opening cuBLASLt");
  pthread_mutex_unlock(&lt_lock);
  *out = (cublasLtHandle_t)b->blas;
  return s;
}

void wf_cuda_blas_close(void *handle) {
  if (handle) lt.cublasLtDestroy((cublasLtHandle_t)handle);
}

/* ---- one product ---- */

/* What a product is described by; freed together. */
struct product {
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t a, b, y;
  cublasLtMatmulPreference_t preference;
  ~product() {
    if (preference) lt.cublasLtMatmulPreferenceDestroy(preference);
    if (y) lt.cublasLtMatrixLayoutDestroy(y);
    if (b) lt.cublasLtMatrixLayoutDestroy(b);
    if (a) lt.cublasLtMatrixLayoutDestroy(a);
    if (desc) lt.cublasLtMatmulDescDestroy(desc);
  }
};

#define LT_TRY(call) WF_TRY(lt_status(lt.call, #call))

/* cuBLAS counts by columns: a matrix stored by rows [rows, cols] is its [cols, rows]. */
static wf_status layout(cublasLtMatrixLayout_t *out, cudaDataType_t type, int64_t rows, int64_t cols,
                        const wf_cuda_matrix *m, int64_t count) {
  int64_t stored_rows = m->t ? cols : rows, stored_cols = m->t ? rows : cols;
  int32_t batch = (int32_t)count;
  LT_TRY(cublasLtMatrixLayoutCreate(out, type, (uint64_t)stored_cols, (uint64_t)stored_rows, m->ld));
  LT_TRY(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch));
  LT_TRY(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &m->batch,
                                          sizeof m->batch));
  return WF_OK;
}

/* The power of two, up to 256 bytes, at which all matrices of the batch lie. */
static uint32_t alignment(const wf_cuda_matrix *m, size_t size, int64_t count) {
  uint64_t bits = (uint64_t)(uintptr_t)m->p | 256;
  if (count > 1) bits |= (uint64_t)m->batch * size;
  return (uint32_t)(bits & (~bits + 1));
}

static wf_status describe(product *p, wf_dtype type, int64_t count, int64_t m, int64_t n, int64_t k,
                          const wf_cuda_matrix *a, const wf_cuda_matrix *b, const wf_cuda_matrix *y) {
  cudaDataType_t real = type == WF_F64 ? CUDA_R_64F : CUDA_R_32F;
  cublasOperation_t first = b->t ? CUBLAS_OP_T : CUBLAS_OP_N, second = a->t ? CUBLAS_OP_T : CUBLAS_OP_N;
  LT_TRY(cublasLtMatmulDescCreate(&p->desc, type == WF_F64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, real));
  LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
  LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
  WF_TRY(layout(&p->b, real, k, n, b, count));
  WF_TRY(layout(&p->a, real, m, k, a, count));
  WF_TRY(layout(&p->y, real, m, n, y, count));
  LT_TRY(cublasLtMatmulPreferenceCreate(&p->preference));
  uint32_t whole = CUBLASLT_REDUCTION_SCHEME_NONE; /* no sum is split over blocks */
  LT_TRY(cublasLtMatmulPreferenceSetAttribute(p->preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                              &whole, sizeof whole));
  const size_t size = wf_dtype_size(type);
  const uint32_t at[3] = {alignment(b, size, count), alignment(a, size, count), alignment(y, size, count)};
  LT_TRY(cublasLtMatmulPreferenceSetAttribute(p->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                              &at[0], sizeof at[0]));
  LT_TRY(cublasLtMatmulPreferenceSetAttribute(p->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                                              &at[1], sizeof at[1]));
  LT_TRY(cublasLtMatmulPreferenceSetAttribute(p->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                                              &at[2], sizeof at[2]));
  LT_TRY(cublasLtMatmulPreferenceSetAttribute(p->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                                              &at[2], sizeof at[2]));
  return WF_OK;
}

wf_status wf_cuda_gemm(wf_device *dev, wf_dtype type, int64_t count, int64_t m, int64_t n, int64_t k,
                       const wf_cuda_matrix *a, const wf_cuda_matrix *b, bool add, const wf_cuda_matrix *y) {
  if (count == 0 || m == 0 || n == 0) return WF_OK;
  if (count > INT32_MAX) return WF_FAIL(WF_EUNSUPPORTED, "a batch of %lld products", (long long)count);
  cublasLtHandle_t handle;
  WF_TRY(handle_of(dev, &handle));
  product p = {NULL, NULL, NULL, NULL, NULL};
  WF_TRY(describe(&p, type, count, m, n, k, a, b, y));
  cublasLtMatmulHeuristicResult_t found;
  int n_found = 0;
  cublasStatus_t s = lt.cublasLtMatmulAlgoGetHeuristic(handle, p.desc, p.b, p.a, p.y, p.y, p.preference, 1,
                                                       &found, &n_found);
  if (s != CUBLAS_STATUS_SUCCESS || n_found == 0)
    return WF_FAIL(WF_EDEVICE, "cuBLASLt has no %s product of [%lld, %lld] and [%lld, %lld] (status %d)",
                   wf_dtype_name(type), (long long)m, (long long)k, (long long)k, (long long)n, (int)s);
  const double one = 1, keep = add;
  const float one32 = 1, keep32 = add;
  const void *alpha = type == WF_F64 ? (const void *)&one : &one32;
  const void *beta = type == WF_F64 ? (const void *)&keep : &keep32;
  return lt_status(lt.cublasLtMatmul(handle, p.desc, alpha, b->p, p.b, a->p, p.a, beta, y->p, p.y, y->p, p.y,
                                     &found.algo, NULL, 0, (cudaStream_t)dev->stream),
                   "a matrix product");
}
