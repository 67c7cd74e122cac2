/* weft doctor: what this machine and this build offer, and what is wrong with it.
 *
 * Each check prints a line of what was found; what costs speed or stops a run is collected and repeated at
 * the end with what to do. Exit code 0 when nothing stops a run. */
#define _GNU_SOURCE /* sched_getaffinity */
#include <cblas.h>
#include <ctype.h>
#include <hdf5.h>
#include <omp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef WEFT_MPI
#  include <mpi.h>
#endif

#include "core/device.h"
#include "core/file.h"
#include "experiments/environment.h"
#include "experiments/command.h"
#include "experiments/rates.h"
#include "experiments/text.h"

typedef struct doctor {
  wf_text problems;
  int n_problems, n_fatal;
} doctor;

static void say(const char *subject, const char *fmt, ...) WF_PRINTF(2, 3);
static void say(const char *subject, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  printf("%-12s ", subject);
  vprintf(fmt, ap);
  printf("\n");
  va_end(ap);
}

static void problem(doctor *d, bool fatal, const char *what, const char *hint) {
  d->n_problems++;
  d->n_fatal += fatal;
  wf_text_add(&d->problems, "%s: %s\n  hint: %s\n", fatal ? "error" : "slow", what, hint);
}

/* The value after the first "key...: " in a /proc file; false when there is none. */
static bool proc_field(const char *path, const char *key, char *out, size_t size) {
  FILE *f = fopen(path, "r");
  char line[512];
  bool found = false;
  while (f && !found && fgets(line, sizeof line, f)) {
    const char *colon = strchr(line, ':');
    if (!colon || strncmp(line, key, strlen(key)) != 0) continue;
    snprintf(out, size, "%s", colon + 1 + strspn(colon + 1, " \t"));
    out[strcspn(out, "\n")] = '\0';
    found = true;
  }
  if (f) fclose(f);
  return found;
}

/* The first number of a small file, or -1 (also for "max"). */
static double file_number(const char *path) {
  FILE *f = fopen(path, "r");
  char line[256];
  double v = -1;
  if (f && fgets(line, sizeof line, f) && isdigit((unsigned char)line[0])) v = strtod(line, NULL);
  if (f) fclose(f);
  return v;
}

/* What large products reach. */
static void measure(doctor *d, wf_device *cpu) {
  wf_ctx *ctx = NULL;
  double flops = 0;
  wf_status s = wf_ctx_create(cpu, &ctx);
  if (s == WF_OK) s = wf_rate_matrix(ctx, 768, 0.2, &flops);
  if (s == WF_OK)
    say("products", "%.0f Gflop/s in float32", 1e-9 * flops);
  else
    problem(d, true, wf_error_message(), "matrix products do not run here");
  wf_ctx_free(ctx);
}

static void check_processor(doctor *d) {
  char model[256] = "unknown model";
  wf_device *cpu;
  proc_field("/proc/cpuinfo", "model name", model, sizeof model);
  say("processor", "%s", model);
  if (wf_device_open(WF_CPU, 0, &cpu) != WF_OK) {
    problem(d, true, wf_error_message(), *wf_error_hint() ? wf_error_hint() : "kernels cannot run here");
    return;
  }
  say("device", "%s", wf_device_name(cpu));
  if (wf_device_isa(cpu) == WF_ISA_BASE && getenv("WEFT_ISA"))
    problem(d, false, "WEFT_ISA keeps the kernels to the oldest instruction set", "unset WEFT_ISA");
  measure(d, cpu);
  wf_device_close(cpu);
}

/* Hardware threads that this process may use, and the physical cores among them. */
static int allowed_threads(int *cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  *cores = 0;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return omp_get_num_procs();
  for (size_t i = 0; i < CPU_SETSIZE; i++) {
    char path[120];
    if (!CPU_ISSET(i, &set)) continue;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%zu/topology/thread_siblings_list", i);
    const double first = file_number(path); /* a core is counted by the first allowed of its threads */
    if (first < 0 || (size_t)first == i || !CPU_ISSET((size_t)first % CPU_SETSIZE, &set)) ++*cores;
  }
  return CPU_COUNT(&set);
}

/* Cores that a container's quota grants, or -1 without one. */
static double quota(void) {
  FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
  double most = -1, period = 0;
  if (f && fscanf(f, "%lf %lf", &most, &period) != 2) most = -1;
  if (f) fclose(f);
  return most > 0 && period > 0 ? most / period : -1;
}

static void check_threads(doctor *d) {
  static const char *const binds[] = {"not bound", "bound", "bound to the master's place", "bound close",
                                      "bound spread"};
  int cores;
  const int allowed = allowed_threads(&cores), threads = omp_get_max_threads();
  const int bind = (int)omp_get_proc_bind();
  const double granted = quota();
  say("threads", "%d, %s; %d hardware threads on %d cores allowed", threads,
      bind >= 0 && bind < 5 ? binds[bind] : "binding unknown", allowed, cores);
  if (granted > 0) say("quota", "%.1f cores", granted);
  if (threads > allowed)
    problem(d, false, "more threads than the process may use", "set OMP_NUM_THREADS to the allowed number");
  else if (cores > 0 && threads > cores)
    problem(d, false, "more threads than physical cores", "set OMP_NUM_THREADS to the number of cores");
  if (granted > 0 && threads > granted + 0.5)
    problem(d, false, "more threads than the container's quota of cores", "set OMP_NUM_THREADS to the quota");
}

static void check_memory(doctor *d) {
  const double page = (double)sysconf(_SC_PAGESIZE), all = page * (double)sysconf(_SC_PHYS_PAGES);
  const double limit = file_number("/sys/fs/cgroup/memory.max"), gib = 1 << 30;
  char text[64];
  double available = all;
  if (proc_field("/proc/meminfo", "MemAvailable", text, sizeof text)) available = strtod(text, NULL) * 1024;
  if (limit > 0 && limit < all)
    say("memory", "%.1f GiB, %.1f available, the container may use %.1f", all / gib, available / gib,
        limit / gib);
  else
    say("memory", "%.1f GiB, %.1f available", all / gib, available / gib);
  if (available < gib / 2)
    problem(d, false, "less than 0.5 GiB of memory is available", "end other programs");
}

static void check_blas(doctor *d) {
  static const char *const flavours[] = {"sequential", "threads of its own", "OpenMP"};
  const int flavour = openblas_get_parallel();
  say("openblas", "%s, kernels for %s, %d threads",
      flavour >= 0 && flavour <= 2 ? flavours[flavour] : "unknown flavour", wf_blas_core(),
      openblas_get_num_threads());
  if (flavour != 2)
    problem(d, false, "OpenBLAS is not the OpenMP flavour, its threads and Weft's disturb each other",
            "install libopenblas-openmp-dev (Debian, Ubuntu) and build again, or check LD_LIBRARY_PATH");
  const char *better = wf_blas_better_core();
  char hint[80];
  snprintf(hint, sizeof hint, "unset OPENBLAS_CORETYPE, or set it to %s", better ? better : "");
  if (better)
    problem(d, false, "OpenBLAS does not use the vector instructions that this processor has", hint);
}

static bool in_path(const char *program) {
  const char *path = getenv("PATH");
  char file[1000];
  while (path && *path) {
    const size_t n = strcspn(path, ":");
    snprintf(file, sizeof file, "%.*s/%s", (int)n, path, program);
    if (access(file, X_OK) == 0) return true;
    path += n + (path[n] == ':');
  }
  return false;
}

static void check_mpi(void) {
#ifdef WEFT_MPI
  char version[MPI_MAX_LIBRARY_VERSION_STRING];
  int n = 0;
  MPI_Get_library_version(version, &n); /* allowed before MPI_Init */
  version[strcspn(version, "\n,")] = '\0';
  say("mpi", "%s, mpirun %s", version, in_path("mpirun") ? "found" : "not in PATH");
#else
  say("mpi", "not in this build%s", in_path("mpirun") ? ", though mpirun is on this machine" : "");
#endif
}

static void check_gpu(doctor *d) {
  wf_device *gpu;
  const bool there = wf_file_exists("/dev/nvidia0");
  if (wf_device_open(WF_CUDA, 0, &gpu) == WF_OK) {
    say("gpu", "%s", wf_device_name(gpu));
    wf_device_close(gpu);
    return;
  }
  say("gpu", "none usable (%s)", wf_error_message());
  if (there)
    problem(d, false, "this machine has a GPU that Weft cannot use",
            *wf_error_hint() ? wf_error_hint() : "build with the preset cuda");
}

static void check_hdf5(doctor *d) {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  say("hdf5", "%u.%u.%u", major, minor, release);
  if (major != H5_VERS_MAJOR || minor != H5_VERS_MINOR)
    problem(d, true, "the HDF5 library is another version than the one Weft was built with",
            "check LD_LIBRARY_PATH, or build again");
}

static wf_status run(const wf_args *args) {
  (void)args;
  doctor d = {0};
  say("weft", "%s", WEFT_VERSION);
  check_processor(&d);
  check_threads(&d);
  check_memory(&d);
  check_blas(&d);
  check_mpi();
  check_gpu(&d);
  check_hdf5(&d);
  if (d.n_problems == 0)
    printf("\nNothing is wrong.\n");
  else
    printf("\n%s", d.problems.p ? d.problems.p : "");
  wf_text_free(&d.problems);
  return d.n_fatal ? WF_FAIL(WF_EUNSUPPORTED, "%d of these stop a run", d.n_fatal) : WF_OK;
}

const wf_command wf_cmd_doctor = {.name = "doctor",
                                  .help = "what this machine and build offer, and what is wrong",
                                  .usage = "",
                                  .run = run};
