/* The figure of weft bench mixers, through gnuplot. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "experiments/bench_mixers.h"
#include "experiments/text.h"
#include "core/memory.h"

/* What chooses gnuplot's terminal by the file's ending; NULL for another. */
static const char *terminal(const char *path) {
  const char *dot = strrchr(path, '.');
  if (dot && strcmp(dot, ".png") == 0)
    return "if (strstrt(GPVAL_TERMINALS, 'pngcairo')) set terminal pngcairo size 1400,620 noenhanced; "
           "else set terminal png size 1400,620 noenhanced";
  if (dot && strcmp(dot, ".svg") == 0) return "set terminal svg size 1400,620 noenhanced background 'white'";
  return NULL;
}

static bool in_path(const char *program) {
  const char *path = getenv("PATH");
  for (size_t n; path && *path; path += n + (path[n] == ':')) {
    char file[4096];
    n = strcspn(path, ":");
    snprintf(file, sizeof file, "%.*s/%s", (int)n, path, program);
    if (access(file, X_OK) == 0) return true;
  }
  return false;
}

wf_status wf_bench_plot_check(const char *path) {
  if (!terminal(path))
    return wf_hint(WF_FAIL(WF_EINVAL, "a plot is a .png or .svg file, not %s", path),
                   "as in --plot mixers.svg");
  if (!in_path("gnuplot"))
    return wf_hint(WF_FAIL(WF_ENOTFOUND, "gnuplot is not installed: no plot is written"),
                   "install gnuplot, or plot the lines of --json");
  return WF_OK;
}

/* In single quotes, for gnuplot. */
static void quote(wf_text *t, const char *s) {
  wf_text_add(t, "'");
  for (; *s; s++) wf_text_add(t, *s == '\'' ? "''" : "%c", *s);
  wf_text_add(t, "'");
}

static void panel(wf_text *t, const char *what, int column, int n_mixers, const char *const *name) {
  wf_text_add(t, "set ylabel '%s'\nplot", what);
  for (int i = 0; i < n_mixers; i++) {
    wf_text_add(t, "%s $d%d using 1:%d with linespoints title ", i ? "," : "", i, column);
    quote(t, name[i]);
  }
  wf_text_add(t, "\n");
}

static wf_status run_gnuplot(const char *script) {
  FILE *f = popen("gnuplot", "w");
  if (!f) return WF_FAIL(WF_EIO, "cannot start gnuplot: %s", strerror(errno));
  bool sent = fputs(script, f) >= 0;
  int code = pclose(f);
  return sent && code == 0 ? WF_OK : WF_FAIL(WF_EIO, "gnuplot failed with code %d", WEXITSTATUS(code));
}

wf_status wf_bench_plot(const char *path, const char *title, int n_mixers, const char *const *name, int n_T,
                        const int64_t *T, int64_t batch, const wf_bench_mixer_row *const *row) {
  WF_TRY(wf_bench_plot_check(path));
  wf_text t = {0};
  char *script;
  for (int i = 0; i < n_mixers; i++) {
    wf_text_add(&t, "$d%d << E\n", i);
    for (int k = 0; k < n_T; k++) {
      const wf_bench_mixer_row *r = row[i * n_T + k];
      if (r)
        wf_text_add(&t, "%lld %.6g %.6g\n", (long long)T[k], 1e6 * r->both_s / (double)(T[k] * batch),
                    r->tensor_mb);
    }
    wf_text_add(&t, "NaN NaN NaN\nE\n"); /* none is empty */
  }
  wf_text_add(&t, "%s\nset output ", terminal(path));
  quote(&t, path);
  wf_text_add(&t, "\nset logscale xy\nset logscale x 2\nset xlabel 'T'\nset grid\nset key outside\n"
                  "set multiplot layout 1,2 title ");
  quote(&t, title);
  wf_text_add(&t, "\n");
  panel(&t, "microseconds a token, forward and backward", 2, n_mixers, name);
  panel(&t, "peak memory, MB", 3, n_mixers, name);
  wf_text_add(&t, "unset multiplot\n");
  WF_TRY(wf_text_take(&t, &script));
  const wf_status s = run_gnuplot(script);
  wf_free(script);
  return s;
}
