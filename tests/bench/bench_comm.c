/* usage: mpirun -n P bench_comm, or bench_comm alone for two threads
 * A message there and back between ranks 0 and 1, and an all-reduce of all, by size: the least of many times.
 */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/clock.h"
#include "dist/comm.h"

#define OK(expr)                                               \
  do {                                                         \
    if ((expr) != WF_OK) {                                     \
      fprintf(stderr, "bench_comm: %s\n", wf_error_message()); \
      exit(1);                                                 \
    }                                                          \
  } while (0)

static void there_and_back(wf_comm *c, wf_tensor *x) {
  const int rank = wf_comm_rank(c);
  if (rank == 0) OK(wf_comm_send(c, x, 1, NULL));
  if (rank < 2) OK(wf_comm_recv(c, x, 1 - rank, NULL));
  if (rank == 1) OK(wf_comm_send(c, x, 0, NULL));
}

/* Both start to receive, then send: what a ring does. */
static void crossing(wf_comm *c, wf_tensor *x, wf_tensor *y) {
  const int rank = wf_comm_rank(c);
  wf_pending *received, *sent;
  if (rank > 1) return;
  OK(wf_comm_recv(c, y, 1 - rank, &received));
  OK(wf_comm_send(c, x, 1 - rank, &sent));
  OK(wf_comm_wait(&sent));
  OK(wf_comm_wait(&received));
}

static void all_reduce(wf_comm *c, wf_tensor *x) {
  OK(wf_comm_all_reduce(c, x, WF_REDUCE_SUM, NULL));
}

static void all_reduce_begun(wf_comm *c, wf_tensor *x) {
  wf_pending *p;
  OK(wf_comm_all_reduce(c, x, WF_REDUCE_SUM, &p));
  OK(wf_comm_wait(&p));
}

enum { N_KINDS = 4 };

static void once(int kind, wf_comm *c, wf_tensor *x, wf_tensor *y) {
  switch (kind) {
  case 0: there_and_back(c, x); break;
  case 1: crossing(c, x, y); break;
  case 2: all_reduce(c, x); break;
  default: all_reduce_begun(c, x); break;
  }
}

static void measure(wf_comm *c) {
  wf_device *cpu;
  wf_ctx *ctx;
  OK(wf_device_open(WF_CPU, 0, &cpu));
  OK(wf_ctx_create(cpu, &ctx));
  if (wf_comm_rank(c) == 0)
    printf("%s, %d ranks\n%12s%23s%23s%23s%23s\n", wf_comm_name(c), wf_comm_size(c), "bytes", "one way",
           "both ways at once", "all-reduce", "all-reduce, pending");
  for (int k = 1; k <= 24; k = k == 22 ? 24 : k + 3) {
    const int64_t n = (int64_t)1 << k; /* 8 bytes to 64 MiB */
    const wf_scope scope = wf_scope_open(ctx);
    wf_tensor *x = wf_zeros(ctx, "bench", WF_F32, 1, &n), *y = wf_zeros(ctx, "bench", WF_F32, 1, &n);
    OK(wf_ctx_check(ctx));
    const int times = n < 100000 ? 1000 : 10;
    double least[N_KINDS] = {1e30, 1e30, 1e30, 1e30};
    for (int i = 0; i < N_KINDS * times; i++) {
      const int kind = i % N_KINDS;
      OK(wf_comm_barrier(c));
      const double start = wf_now();
      once(kind, c, x, y);
      const double t = (wf_now() - start) / (kind == 0 ? 2 : 1);
      if (t < least[kind]) least[kind] = t;
    }
    if (wf_comm_rank(c) == 0) {
      printf("%12lld", (long long)(4 * n));
      for (int i = 0; i < N_KINDS; i++)
        printf("%10.2f us %6.2f GB/s", 1e6 * least[i], 4e-9 * (double)n / least[i]);
      printf("\n");
      fflush(stdout);
    }
    wf_scope_close(ctx, scope);
  }
  wf_ctx_free(ctx);
  wf_comm_free(c);
  wf_device_close(cpu);
}

int main(void) {
  wf_comm *c[2];
  if (wf_comm_launched(NULL)) {
    OK(wf_comm_mpi(&c[0]));
    measure(c[0]);
    return 0;
  }
  OK(wf_comm_threads(2, c));
#pragma omp parallel num_threads(2)
  measure(c[omp_get_thread_num()]);
  return 0;
}
