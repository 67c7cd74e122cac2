/* weft bench mixers: time, tokens/s and memory against the length of the sequence, as a table, JSON and a
 * plot. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/bench_mixers.h"
#include "experiments/command.h"
#include "experiments/human.h"
#include "experiments/single.h"

enum { MOST_MIXERS = 256, MOST_T = 32 };

typedef struct flags {
  int64_t d_model, heads, batch, repeats, threads;
  double seconds;
  char *seq_len, *plot;
  bool generate, json;
} flags;

static const wf_option table[] = {
    WF_OPT_I64(flags, d_model, "384", 1, 1 << 20, "width"),
    WF_OPT_I64F(flags, heads, "auto", 1, 65536, WF_OPT_AUTO,
                "heads, of mixers that have them; auto: their default"),
    WF_OPT_STR(flags, seq_len, "1k,4k,16k", "lengths T, a list; k and M are powers of 1024"),
    WF_OPT_I64(flags, batch, "1", 1, 1e6, "sequences beside each other"),
    WF_OPT_I64(flags, repeats, "3", 1, 1000, "time each at least so many times; the median counts"),
    WF_OPT_F64(flags, seconds, "0.5", 0, 3600, "and for about this long"),
    WF_OPT_I64F(flags, threads, "auto", 1, 4096, WF_OPT_AUTO, "auto: as OMP_NUM_THREADS says, or all"),
    WF_OPT_BOOL(flags, generate, "false", "a token generated at position T, instead of T tokens trained"),
    WF_OPT_BOOL(flags, json, "false", "a line of JSON for each row"),
    WF_OPT_STR(flags, plot, NULL, "file for a plot, .png or .svg; needs gnuplot"),
    WF_OPT_END};

typedef struct mixers {
  const flags *f;
  int n, n_T;
  int64_t T[MOST_T];
  const wf_layer_type *type[MOST_MIXERS];
  void *options[MOST_MIXERS];
  double matrix_rate;                  /* of a large product */
  wf_bench_mixer_row *row;             /* [n n_T] */
  const wf_bench_mixer_row **measured; /* [n n_T] into row, NULL where it failed */
} mixers;

/* ---- what is measured ---- */

static wf_status add_named(mixers *m, const char *name) {
  const wf_layer_type *t = wf_layer_find(WF_LAYER_MIXER, name);
  if (!t) {
    const char *near = wf_layer_nearest(WF_LAYER_MIXER, name);
    const wf_status s = WF_FAIL(WF_EINVAL, "there is no mixer \"%.60s\"", name);
    return near ? wf_hint(s, "did you mean %s?", near) : wf_hint(s, "weft layers lists them");
  }
  if (m->n == MOST_MIXERS) return WF_FAIL(WF_EINVAL, "more than %d mixers", MOST_MIXERS);
  m->type[m->n++] = t;
  return WF_OK;
}

static wf_status choose(mixers *m, const wf_args *a) {
  for (size_t i = 0; i < a->n_words; i++) WF_TRY(add_named(m, a->words[i]));
  const wf_layer_type *t;
  for (int i = 0; a->n_words == 0 && (t = wf_layer_at(i)); i++)
    if (t->kind == WF_LAYER_MIXER) WF_TRY(add_named(m, t->name));
  return WF_OK;
}

/* --set reaches the mixers that have the key; one at least must. */
static wf_status check_sets(const mixers *m, const wf_args *a) {
  for (size_t i = 0; i < a->n_sets; i++) {
    char key[80];
    snprintf(key, sizeof key, "%.*s", (int)strcspn(a->sets[i], "="), a->sets[i]);
    bool found = false;
    for (int k = 0; k < m->n; k++) found |= wf_options_find(m->type[k]->options, key) != NULL;
    if (!found)
      return WF_FAIL(WF_EINVAL, "--set %.60s: none of these mixers has an option \"%.60s\"", a->sets[i], key);
  }
  return WF_OK;
}

static wf_status set_options(mixers *m, const wf_args *a) {
  const flags *f = m->f;
  char heads[40];
  const char **sets;
  size_t n = 0;
  WF_TRY(check_sets(m, a));
  WF_CALLOC(sets, "config", a->n_sets + 1);
  snprintf(heads, sizeof heads, "heads=%lld", (long long)f->heads);
  if (f->heads != WF_AUTO_I64) sets[n++] = heads;
  for (size_t i = 0; i < a->n_sets; i++) sets[n++] = a->sets[i];
  wf_status s = WF_OK;
  for (int i = 0; i < m->n && s == WF_OK; i++)
    s = wf_single_options(m->type[i], NULL, 0, sets, n, &m->options[i]);
  wf_free(sets);
  return s;
}

/* ---- measuring, each in a process of its own ---- */

typedef struct job {
  const mixers *m;
  wf_bench_mixer mixer;
} job;

static wf_status mixer_in_ctx(wf_ctx *c, void *arg, void *result) {
  const job *j = arg;
  const wf_bench_options o = {.seconds = j->m->f->seconds, .repeats = j->m->f->repeats};
  return wf_bench_mixer_run(c, &j->mixer, &o, result);
}
static wf_status mixer(void *arg, void *result) {
  return wf_bench_with_ctx(((const job *)arg)->m->f->threads, mixer_in_ctx, arg, result);
}

/* ---- showing ---- */

static void print_header(const mixers *m) {
  const flags *f = m->f;
  if (f->generate) {
    printf(
        "width %lld, batch %lld, float32; a token of each sequence at position T\n%-18s %9s %12s %12s %10s\n",
        (long long)f->d_model, (long long)f->batch, "mixer", "T", "us a token", "tokens/s", "peak MB");
    return;
  }
  printf("width %lld, batch %lld, float32; of sgemm: operations of forward + backward a second, over the\n"
         "%.1f G/s of a product of 2048 x 2048; peak: Weft's own count of memory\n",
         (long long)f->d_model, (long long)f->batch, 1e-9 * m->matrix_rate);
  printf("%-18s %9s %12s %12s %12s %12s %12s %9s %10s\n", "mixer", "T", "forward ms", "tokens/s",
         "fwd+bwd ms", "tokens/s", "ns a token", "of sgemm", "peak MB");
}

static void print_row(const mixers *m, const char *name, int64_t T, const wf_bench_mixer_row *r) {
  const flags *f = m->f;
  const double tokens = (double)((f->generate ? 1 : T) * f->batch),
               part = 3 * r->flops / r->both_s / m->matrix_rate;
  if (f->json) {
    printf("{\"mixer\": \"%s\", \"T\": %lld, \"d_model\": %lld, \"batch\": %lld, \"parameters\": %.0f, "
           "\"tensor_mb\": %.6g, \"peak_rss_mb\": %.6g, \"flops_per_token\": %.6g, \"weft\": \"%s\", ",
           name, (long long)T, (long long)f->d_model, (long long)f->batch, r->params, r->tensor_mb, r->rss_mb,
           r->flops / tokens, WEFT_VERSION);
    if (f->generate)
      printf("\"decode_s\": %.6g}\n", r->forward_s);
    else
      printf("\"forward_s\": %.6g, \"both_s\": %.6g, \"tokens_per_s\": %.6g, \"of_sgemm\": %.4g}\n",
             r->forward_s, r->both_s, tokens / r->both_s, part);
  } else if (f->generate) {
    printf("%-18s %9lld %12.2f %12.0f %10.1f\n", name, (long long)T, 1e6 * r->forward_s,
           tokens / r->forward_s, r->tensor_mb);
  } else {
    printf("%-18s %9lld %12.3f %12.0f %12.3f %12.0f %12.1f %8.1f%% %10.1f\n", name, (long long)T,
           1e3 * r->forward_s, tokens / r->forward_s, 1e3 * r->both_s, tokens / r->both_s,
           1e9 * r->both_s / tokens, 100 * part, r->tensor_mb);
  }
  fflush(stdout);
}

static void print_failure(const mixers *m, const char *name, int64_t T) {
  if (m->f->json)
    fprintf(stderr, "weft: %s at T %lld: %s\n", name, (long long)T, wf_error_message());
  else
    printf("%-18s %9lld %12s %s\n", name, (long long)T, "-", wf_error_message());
  fflush(stdout);
  wf_error_clear();
}

static wf_status plot(const mixers *m) {
  const char *names[MOST_MIXERS];
  char title[120];
  for (int i = 0; i < m->n; i++) names[i] = m->type[i]->name;
  snprintf(title, sizeof title, "mixers of width %lld, batch %lld", (long long)m->f->d_model,
           (long long)m->f->batch);
  WF_TRY(wf_bench_plot(m->f->plot, title, m->n, names, m->n_T, m->T, m->f->batch, m->measured));
  if (!m->f->json) printf("plot: %s\n", m->f->plot);
  return WF_OK;
}

/* One that cannot be measured (its options do not fit the width, its memory is too little) does not keep the
 * others from it; when none could be, that is an error. */
static wf_status measure(mixers *m) {
  int failed = 0;
  job j = {.m = m};
  if (!m->f->generate) WF_TRY(wf_bench_product_rate(m->f->threads, &m->matrix_rate));
  if (!m->f->json) print_header(m);
  for (int i = 0; i < m->n; i++)
    for (int k = 0; k < m->n_T; k++) {
      wf_bench_mixer_row *r = &m->row[i * m->n_T + k];
      j.mixer =
          (wf_bench_mixer){m->type[i], m->options[i], m->f->d_model, m->T[k], m->f->batch, m->f->generate};
      if (wf_bench_apart(mixer, &j, r, sizeof *r) != WF_OK) {
        print_failure(m, m->type[i]->name, m->T[k]);
        failed++;
        continue;
      }
      m->measured[i * m->n_T + k] = r;
      print_row(m, m->type[i]->name, m->T[k], r);
    }
  return failed < m->n * m->n_T ? WF_OK : WF_FAIL(WF_EUNSUPPORTED, "none of the mixers could be measured");
}

static wf_status run_all(mixers *m, const wf_args *a) {
  bool plots = m->f->plot != NULL;
  if (plots && m->f->generate) return WF_FAIL(WF_EINVAL, "--plot shows training, not --generate");
  WF_TRY(wf_human_read("--seq-len", m->f->seq_len, m->T, MOST_T, &m->n_T));
  WF_TRY(choose(m, a));
  WF_TRY(set_options(m, a));
  if (plots && wf_bench_plot_check(m->f->plot) == WF_ENOTFOUND) {
    fprintf(stderr, "weft: %s\n", wf_error_message());
    wf_error_clear();
    plots = false;
  } else if (plots) {
    WF_TRY(wf_bench_plot_check(m->f->plot));
  }
  WF_CALLOC(m->row, "bench", m->n * m->n_T);
  WF_CALLOC(m->measured, "bench", m->n * m->n_T);
  WF_TRY(measure(m));
  return plots ? plot(m) : WF_OK;
}

static wf_status run(const wf_args *a) {
  mixers m = {.f = a->flags};
  const wf_status s = run_all(&m, a);
  for (int i = 0; i < m.n; i++) wf_single_options_free(m.type[i], m.options[i]);
  wf_free(m.row);
  wf_free((void *)m.measured);
  return s;
}

const wf_command wf_cmd_bench_mixers = {
    .name = "bench mixers",
    .help = "time and memory of mixers against the length of the sequence",
    .usage = "[MIXER...]",
    .more = "Each mixer alone, on random inputs, forward and forward + backward. Without a name: all.\n"
            "--set key=value gives the option to the mixers that have it.",
    .flags = table,
    .flags_size = sizeof(flags),
    .sets = true,
    .most = MOST_MIXERS,
    .run = run,
};
