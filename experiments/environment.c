/* OpenBLAS's kernels against the processor's instruction set, and the restart with better settings. */
#include "experiments/environment.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/device.h"

static wf_isa processor(void) {
  wf_device *cpu;
  if (wf_device_open(WF_CPU, 0, &cpu) != WF_OK) {
    wf_error_clear();
    return WF_ISA_BASE;
  }
  wf_isa isa = wf_device_isa(cpu);
  wf_device_close(cpu);
  return isa;
}

static bool one_of(const char *core, const char *const *names) {
  for (; *names; names++)
    if (strcmp(core, *names) == 0) return true;
  return false;
}

const char *wf_blas_core(void) {
  return openblas_get_corename();
}

const char *wf_blas_better_core(void) {
#if defined(__x86_64__)
  static const char *const without_avx2[] = {"Prescott", "Generic",    "generic", "Core2",       "Nehalem",
                                             "Penryn",   "Dunnington", "Atom",    "Sandybridge", NULL},
                           *const without_avx512[] = {"Haswell", "Zen", NULL};
  wf_isa isa = processor();
  bool old = one_of(wf_blas_core(), without_avx2);
  if (isa == WF_ISA_V4 && (old || one_of(wf_blas_core(), without_avx512))) return "SkylakeX";
  if (isa == WF_ISA_V3 && old) return "Haswell";
#endif
  return NULL;
}

/* About 50 us: longer than the gaps between kernels, shorter than a turn of another program. */
static const char spin_count[] = "2000";

void wf_environment_restart(char **argv) {
  bool changed = false;
  if (!getenv("OPENBLAS_CORETYPE")) { /* otherwise the user's choice, or ours of a moment ago */
    const char *better = wf_blas_better_core();
    changed = better && setenv("OPENBLAS_CORETYPE", better, 1) == 0;
  }
  if (!getenv("GOMP_SPINCOUNT") && !getenv("OMP_WAIT_POLICY"))
    changed |= setenv("GOMP_SPINCOUNT", spin_count, 1) == 0;
  if (changed) execv("/proc/self/exe", argv);
}
