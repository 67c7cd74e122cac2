/* parallel: the one way a CPU kernel divides work over threads.
 *
 * Work is cut into fixed contiguous ranges, so that results do not depend on timing; a float sum over threads
 * is formed as one part per range, combined in order. Inside a parallel region, or where the work is small,
 * there is one range and no region.
 *
 *     WF_PARALLEL_FOR(begin, end, n, cost_per_item) { for (int64_t i = begin; i < end; i++) ...; }
 */
#ifndef WF_CORE_PARALLEL_H
#define WF_CORE_PARALLEL_H

#include <stddef.h>
#include <stdint.h>
#ifdef _OPENMP
#  include <omp.h>
#endif

/* Threads worth using for n items of `cost` element operations each. */
static inline int wf_threads_for(int64_t n, int64_t cost) {
#ifdef _OPENMP
  if (n <= 1 || omp_in_parallel()) return 1;
  int64_t t = omp_get_max_threads(), useful = n * cost / 4096 + 1; /* about 2 us of work pays for a region */
  if (useful < t) t = useful;
  return (int)(n < t ? n : t);
#else
  (void)n, (void)cost;
  return 1;
#endif
}

/* The k-th of `parts` ranges of n items: [begin, end). */
static inline int64_t wf_range_begin(int64_t n, int k, int parts) {
  return n / parts * k + (n % parts < k ? n % parts : k);
}

/* The calling thread's part of `work`, inside a region: each thread has `each` bytes. */
static inline void *wf_thread_space(void *work, size_t each) {
#ifdef _OPENMP
  return (char *)work + each * (size_t)omp_get_thread_num();
#else
  (void)each;
  return work;
#endif
}

#define WF_PRAGMA_(x) _Pragma(#x)
#define WF_PRAGMA(x)  WF_PRAGMA_(x)

/* No region here or in the kernels has an if clause beside num_threads: where the condition is false, clang's
 * libomp leaves the thread count behind for the next region, which may be OpenBLAS's own.
 *
 * Runs the following block once for each range; `begin` and `end` are int64_t, `wf_part` the range's index.
 */
#define WF_PARALLEL_FOR(begin, end, n, cost)                                            \
  int WF_PARTS(begin) = wf_threads_for((n), (cost));                                    \
  WF_PRAGMA(omp parallel for num_threads(WF_PARTS(begin)) schedule(static, 1))          \
  for (int wf_part = 0; wf_part < WF_PARTS(begin); wf_part++)                           \
    for (int64_t begin = wf_range_begin((n), wf_part, WF_PARTS(begin)),                 \
                 end = wf_range_begin((n), wf_part + 1, WF_PARTS(begin)), wf_once_ = 1; \
         wf_once_; wf_once_ = 0)
#define WF_PARTS(begin) wf_parts_##begin

#endif
