/* usage: mpirun -n P bench_ring [tokens [heads [width]]], or bench_ring alone for two threads
 * Causal attention whose keys go round, forward and backward, contiguous and zigzag: the processor seconds
 * that each rank computes. What it has in waits (MPI asks again and again) is not counted, so ranks may share
 * cores. Of P ranks of a contiguous sequence the last sees all keys, its share of the work is (2P-1)/P^2;
 * zigzag's is 1/P.
 */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#include "autograd/tape.h"
#include "core/clock.h"
#include "dist/ring.h"

#define OK(expr)                                               \
  do {                                                         \
    if ((expr) != WF_OK) {                                     \
      fprintf(stderr, "bench_ring: %s\n", wf_error_message()); \
      exit(1);                                                 \
    }                                                          \
  } while (0)

typedef struct shape {
  int64_t tokens, heads, width;
} shape;

enum { Q, K, V, INPUTS, TRIES = 5 };

static double computed(const wf_comm *comm) {
  return wf_cpu_now() - wf_comm_count(comm).busy;
}

static void both_passes(wf_ctx *c, wf_comm *comm, const wf_ring_plan *ring, wf_tensor *const *in,
                        wf_leaf *leaf) {
  wf_attend_options o = {.scale = 1 / sqrt((double)in[Q]->shape[2])};
  wf_tape *tape;
  wf_tensor *lse;
  OK(wf_tape_create(c, &tape));
  for (int i = 0; i < INPUTS; i++) {
    wf_leaf_reset(&leaf[i]);
    OK(wf_tape_watch(tape, in[i], &leaf[i]));
  }
  wf_tape_record(tape);
  wf_tensor *y = wf_ring_attend(c, comm, ring, in[Q], in[K], in[V], NULL, NULL, false, NULL, &o, &lse);
  wf_tape_pause(tape);
  OK(wf_ctx_check(c));
  OK(wf_backward(tape, 1, &y, NULL));
  wf_tape_free(tape);
}

/* The least of some tries; the first asks for memory. */
static double seconds(wf_ctx *c, wf_comm *comm, const shape *s, wf_layout_kind kind) {
  wf_layout *layout;
  wf_part *part;
  const wf_ring_plan *ring;
  const wf_row row = {.len = s->tokens};
  const wf_keys keys = {.where = WF_KEYS_TOKENS};
  wf_sample smp = {.ctx = c, .real = WF_F32};
  wf_tensor *in[INPUTS];
  wf_leaf leaf[INPUTS] = {{.grad = NULL}};
  double least = 1e30;
  OK(wf_layout_create(kind, wf_comm_size(comm), NULL, &layout));
  wf_dist dist = {.comm = comm, .layout = layout, .attention = WF_ATTENTION_RING};
  OK(wf_part_create(&dist, 1, &row, 1, 0, 0, &part));
  OK(wf_ring_make(part, &keys, &ring));
  wf_scope scope = wf_scope_open(c);
  for (int i = 0; i < INPUTS; i++) {
    in[i] = wf_sample_real(&smp, WF_SHAPE(part->n_tokens, s->heads, s->width));
    leaf[i].grad = wf_empty_like(c, "bench", in[i]);
  }
  OK(wf_ctx_check(c));
  for (int i = 0; i < TRIES; i++) {
    wf_scope inner = wf_scope_open(c);
    OK(wf_comm_barrier(comm));
    double start = computed(comm);
    both_passes(c, comm, ring, in, leaf);
    double t = computed(comm) - start;
    wf_scope_close(c, inner);
    if (i && t < least) least = t;
  }
  wf_scope_close(c, scope);
  wf_part_free(part);
  wf_layout_free(layout);
  return least;
}

/* Says what each rank computed; -> the most. */
static double report(wf_comm *comm, const char *name, double mine) {
  int P = wf_comm_size(comm);
  double *all = calloc((size_t)P, sizeof *all), most = 0;
  if (!all) exit(1);
  all[wf_comm_rank(comm)] = mine;
  OK(wf_comm_all_reduce_host(comm, WF_F64, all, P, WF_REDUCE_SUM));
  if (wf_comm_rank(comm) == 0) printf("%-12s", name);
  for (int i = 0; i < P; i++) {
    if (wf_comm_rank(comm) == 0) printf(" %10.1f", 1e3 * all[i]);
    most = fmax(most, all[i]);
  }
  if (wf_comm_rank(comm) == 0) printf("\n");
  free(all);
  return most;
}

static void measure(wf_comm *comm, const shape *s) {
  wf_device *cpu;
  wf_ctx *c;
  int P = wf_comm_size(comm);
  omp_set_num_threads(1);
  OK(wf_device_open(WF_CPU, 0, &cpu));
  OK(wf_ctx_create(cpu, &c));
  if (wf_comm_rank(comm) == 0)
    printf("ring over %d ranks (%s), %lld tokens, %lld heads of %lld, forward + backward: processor ms of "
           "each rank\n",
           P, wf_comm_name(comm), (long long)s->tokens, (long long)s->heads, (long long)s->width);
  double contiguous = report(comm, "contiguous", seconds(c, comm, s, WF_LAYOUT_CONTIGUOUS));
  double zigzag = report(comm, "zigzag", seconds(c, comm, s, WF_LAYOUT_ZIGZAG));
  if (wf_comm_rank(comm) == 0)
    printf("the slowest rank: contiguous / zigzag %.2f (ideal %.2f)\n", contiguous / zigzag, 2 - 1.0 / P);
  wf_ctx_free(c);
  wf_comm_free(comm);
  wf_device_close(cpu);
}

int main(int argc, char **argv) {
  shape s = {8192, 4, 64};
  if (argc > 1) s.tokens = atoll(argv[1]);
  if (argc > 2) s.heads = atoll(argv[2]);
  if (argc > 3) s.width = atoll(argv[3]);
  wf_comm *c[2];
  if (wf_comm_launched(NULL)) {
    OK(wf_comm_mpi(&c[0]));
    measure(c[0], &s);
    return 0;
  }
  OK(wf_comm_threads(2, c));
#pragma omp parallel num_threads(2)
  measure(c[omp_get_thread_num()], &s);
  return 0;
}
