/* Training on a GPU: the same loss curve as on the CPU. The models are those of experiments/configs; the
 * tokens are a synthetic text in which every other byte follows from the one before. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/assemble.h"
#include "layers/stream.h"
#include "optim/clip.h"
#include "tests/gpu.h"

#define OK(expr) ck_assert_msg((expr) == WF_OK, "%s: %s\n%s", #expr, wf_error_message(), wf_error_trace())

enum { STEPS = 50, VOCAB = 256, MAX_TOKENS = 2048 };

/* Sequences of step `step`: their ids, and as labels the ids that follow. */
static void fill(int64_t seqs, int64_t len, int step, int32_t *ids, int32_t *labels) {
  wf_rng_key key = wf_rng_key_make(11, "test", "tokens");
  for (int64_t r = 0; r < seqs; r++) {
    int32_t id = 0;
    for (int64_t i = -1; i < len; i++) {
      uint64_t draw = (uint64_t)(((int64_t)step * seqs + r) * 4096 + i + 1);
      int32_t next = i & 1 ? (id * 37 + 11) % VOCAB : (int32_t)wf_rng_below(key, draw, 64);
      if (i >= 0) {
        ids[r * len + i] = id;
        labels[r * len + i] = next;
      }
      id = next;
    }
  }
}

typedef struct trial {
  const char *config, *stream, *dropout;
  int steps;
  int64_t seqs, len;
} trial;

static void train(const trial *tr, const char *device, double *losses) {
  char path[1024], run_device[64];
  snprintf(path, sizeof path, "%s/experiments/configs/%s", WEFT_SOURCE_DIR, tr->config);
  snprintf(run_device, sizeof run_device, "run.device=%s", device);
  const char *sets[] = {run_device, tr->dropout, "run.threads=2"};
  wf_config cfg;
  OK(wf_config_load(&cfg, path, sets, 3, wf_types));
  wf_device *dev;
  wf_ctx *c;
  wf_model *m;
  wf_groups g;
  wf_optimizer *opt;
  OK(wf_assemble_device(&cfg, &dev));
  OK(wf_ctx_create(dev, &c));
  OK(wf_assemble_model(c, &cfg, VOCAB, &m));
  OK(wf_params_init(wf_model_params(m), 5));
  OK(wf_groups_of(m, &g));
  OK(wf_assemble_optimizer(c, &cfg, &g, &opt));

  int32_t ids[MAX_TOKENS], labels[MAX_TOKENS];
  wf_row row[64] = {{0}};
  wf_tokens t = {tr->seqs, tr->seqs, tr->seqs * tr->len, row, ids, labels};
  ck_assert(t.n_tokens <= MAX_TOKENS && tr->seqs <= 64);
  for (int64_t r = 0; r < tr->seqs; r++)
    row[r] = (wf_row){.begin = r * tr->len, .len = tr->len, .lane = r, .seq = r};
  for (int step = 0; step < tr->steps; step++) {
    fill(tr->seqs, tr->len, step, ids, labels);
    wf_step s = {.stream = tr->stream ? atoi(tr->stream) : 0, .train = true, .seed = 3, .step = step};
    wf_params_reset(wf_model_params(m));
    wf_params_hold(wf_model_params(m));
    double loss;
    OK(wf_step_gradient(m, &s, &t, 1.0 / (double)t.n_tokens, true, &loss));
    wf_grad_norm norm;
    OK(wf_grad_measure(c, g.n, g.group, 1, 1, &norm));
    OK(wf_optimizer_step(opt, 1, norm.scale));
    losses[step] = loss / (double)t.n_tokens;
  }
  ck_assert_int_eq(wf_optimizer_skipped(opt), 0);
  wf_optimizer_free(opt);
  wf_groups_free(&g);
  wf_model_free(m);
  wf_ctx_free(c);
  wf_device_close(dev);
  wf_config_free(&cfg);
}

static void expect_same_curve(const trial *tr) {
  double cpu[STEPS], gpu[STEPS], worst = 0;
  train(tr, "cpu", cpu);
  train(tr, "cuda", gpu);
  for (int i = 0; i < tr->steps; i++) {
    double e = fabs(gpu[i] - cpu[i]) / fabs(cpu[i]);
    if (!(e <= worst)) worst = e;
    if (i % 10 == 9) printf("%s step %2d: cpu %.7f, gpu %.7f\n", tr->config, i + 1, cpu[i], gpu[i]);
  }
  printf("%s: largest relative difference over %d steps %.2e\n", tr->config, tr->steps, worst);
  ck_assert_msg(worst <= 1e-4, "%s: the curves differ by %.2e", tr->config, worst);
  ck_assert_msg(cpu[tr->steps - 1] < 0.95 * cpu[0], "%s: the loss went from %g to %g", tr->config, cpu[0],
                cpu[tr->steps - 1]);
}

START_TEST(nano) {
  expect_same_curve(&(trial){"nano.yaml", NULL, "model.dropout=0", STEPS, 12, 64});
}
END_TEST

START_TEST(nano_streamed_with_dropout) {
  expect_same_curve(&(trial){"nano.yaml", "24", "model.dropout=0.1", 20, 12, 64});
}
END_TEST

/* Convolution, scan, grouped heads, a window, Muon. */
START_TEST(hybrid_streamed) {
  expect_same_curve(&(trial){"hybrid.yaml", "48", "model.dropout=0", 6, 2, 128});
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("cuda training");
  TCase *t = tcase_create("curves");
  tcase_add_test(t, nano);
  tcase_add_test(t, nano_streamed_with_dropout);
  tcase_add_test(t, hybrid_streamed);
  suite_add_tcase(s, t);
  return s;
}

WF_GPU_MAIN(suite)
