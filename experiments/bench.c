/* Timing of a row, and the models of the training rows. */
#include "experiments/bench.h"
#include "core/memory.h"
#include "experiments/config.h"
#include "experiments/rates.h"

#include <errno.h>
#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

const wf_bench_model wf_bench_models[] = {{"nano", 4, 128, 4, 64, 12, 256},
                                          {"small", 6, 384, 6, 256, 8, 256},
                                          {"gpt2", 12, 768, 12, 64, 4, 50257},
                                          {0}};

wf_status wf_bench_config(const wf_bench_model *m, int64_t positions, wf_config *out) {
  char text[1024];
  int n = snprintf(
      text, sizeof text,
      "data: {store: none, seq_len: %lld}\n"
      "model: {d_model: %lld, vocab: %lld, max_positions: %lld, norm: layernorm, norm_eps: 1.0e-5,\n"
      "  blocks: [{repeat: %lld, mixer: {type: attention, heads: %lld, position: learned, bias: true},\n"
      "            mlp: {type: gelu, tanh: true, bias: true}}]}\n"
      "train: {steps: 1, batch_tokens: %lld, clip: 0, schedule: {type: constant},\n"
      "  optimizer: {type: adamw, lr: 1.0e-4, beta2: 0.95, weight_decay: 0.1}}\n",
      (long long)m->length, (long long)m->width, (long long)m->vocab, (long long)positions,
      (long long)m->layers, (long long)m->heads, (long long)(m->batch * m->length));
  return wf_config_parse(out, m->name, text, (size_t)n, NULL, 0, wf_types);
}

double wf_bench_peak_mb(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return (double)u.ru_maxrss / 1024; /* KiB on Linux */
}

void wf_bench_memory_peak(wf_bench_row *row) {
  row->rss_mb = wf_bench_peak_mb();
  row->tensor_mb = (double)wf_mem_peak() / (1 << 20);
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *x, int64_t n) {
  qsort(x, (size_t)n, sizeof *x, ascending);
  return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static wf_status timed(wf_bench_fn fn, void *arg, double *seconds) {
  double t0 = wf_now();
  WF_TRY(fn(arg));
  *seconds = wf_now() - t0;
  return WF_OK;
}

wf_status wf_bench_measure(const wf_bench_options *o, wf_bench_fn step, wf_bench_fn products, void *arg,
                           wf_bench_row *row) {
  enum { MOST = 1000 };
  double took[MOST], alone[MOST], end = wf_now() + o->seconds;
  int64_t n = 0;
  while (n < MOST && (n < o->repeats || wf_now() < end)) {
    WF_TRY(timed(step, arg, &took[n]));
    if (products) WF_TRY(timed(products, arg, &alone[n]));
    n++;
  }
  row->repeats = n;
  row->median_s = median(took, n);
  row->min_s = took[0];
  row->max_s = took[n - 1];
  if (products) row->products_s = median(alone, n);
  return WF_OK;
}

/* ---- processes ---- */

/* What comes back before the result. */
typedef struct outcome {
  wf_status status;
  char message[1000], hint[500];
} outcome;

static bool read_all(int fd, void *to, size_t n) {
  for (size_t have = 0; have < n;) {
    const ssize_t k = read(fd, (char *)to + have, n - have);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) return false;
    have += (size_t)k;
  }
  return true;
}

static bool write_all(int fd, const void *from, size_t n) {
  for (size_t done = 0; done < n;) {
    const ssize_t k = write(fd, (const char *)from + done, n - done);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) return false;
    done += (size_t)k;
  }
  return true;
}

static _Noreturn void child(int fd, wf_status (*fn)(void *arg, void *result), void *arg, void *result,
                            size_t size) {
  outcome o = {.status = fn(arg, result)};
  if (o.status != WF_OK) {
    snprintf(o.message, sizeof o.message, "%s", wf_error_message());
    snprintf(o.hint, sizeof o.hint, "%s", wf_error_hint());
  }
  fflush(stdout);
  _exit(write_all(fd, &o, sizeof o) && (size == 0 || write_all(fd, result, size)) ? 0 : 1);
}

wf_status wf_bench_apart(wf_status (*fn)(void *arg, void *result), void *arg, void *result, size_t size) {
  int fd[2], code = 0;
  fflush(stdout);
  if (pipe(fd) != 0) return WF_FAIL(WF_EIO, "cannot make a pipe: %s", strerror(errno));
  const pid_t pid = fork();
  if (pid == 0) {
    close(fd[0]);
    child(fd[1], fn, arg, result, size);
  }
  close(fd[1]);
  outcome o;
  const bool whole = pid > 0 && read_all(fd[0], &o, sizeof o) && (size == 0 || read_all(fd[0], result, size));
  close(fd[0]);
  if (pid < 0) return WF_FAIL(WF_EIO, "cannot start a process: %s", strerror(errno));
  while (waitpid(pid, &code, 0) < 0 && errno == EINTR) {
  }
  if (!whole && WIFSIGNALED(code))
    return wf_hint(WF_FAIL(WF_EIO, "its process was ended by signal %d", WTERMSIG(code)),
                   WTERMSIG(code) == SIGKILL ? "too little memory?" : "this is a fault of weft");
  if (!whole) return WF_FAIL(WF_EIO, "its process ended early");
  if (o.status == WF_OK) return WF_OK;
  const wf_status s = WF_FAIL(o.status, "%s", o.message);
  return *o.hint ? wf_hint(s, "%s", o.hint) : s;
}

wf_status wf_bench_with_ctx(int64_t threads, wf_bench_in_ctx fn, void *arg, void *result) {
  wf_device *dev;
  wf_ctx *c;
  if (threads != WF_AUTO_I64) omp_set_num_threads((int)threads);
  WF_TRY(wf_device_open(WF_CPU, 0, &dev));
  wf_status s = wf_ctx_create(dev, &c);
  if (s == WF_OK) {
    s = fn(c, arg, result);
    wf_ctx_free(c);
  }
  wf_device_close(dev);
  return s;
}

static wf_status product_rate(wf_ctx *c, void *arg, void *result) {
  (void)arg;
  return wf_rate_matrix(c, 2048, 0.3, result);
}
static wf_status product_rate_apart(void *arg, void *result) {
  return wf_bench_with_ctx(*(int64_t *)arg, product_rate, NULL, result);
}
wf_status wf_bench_product_rate(int64_t threads, double *flops) {
  return wf_bench_apart(product_rate_apart, &threads, flops, sizeof *flops);
}

wf_status wf_bench_memory_rates(wf_ctx *c, double *read, double *copy) {
  wf_ctx *own;
  WF_TRY(wf_ctx_create(wf_ctx_device(c), &own));
  wf_status s = wf_rate_memory(own, 0.5, read, copy);
  wf_ctx_free(own);
  return s;
}
