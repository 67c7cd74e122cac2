/* The golden models (tests/golden) built through the conversion's tables, and what running one gives. */
#ifndef WF_TESTS_GOLDEN_MODEL_H
#define WF_TESTS_GOLDEN_MODEL_H

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "experiments/assemble.h"
#include "experiments/convert.h"
#include "layers/stream.h"
#include "tests/check_main.h"

#define OK(expr) ck_assert_msg((expr) == WF_OK, "%s: %s\n%s", #expr, wf_error_message(), wf_error_trace())
#define GOLDEN   WEFT_SOURCE_DIR "/tests/golden/"

typedef struct golden {
  const wf_family *family;
  wf_config cfg;
  wf_safetensors *st;
  wf_device *dev;
  wf_ctx *c;
  wf_model *m;
  int64_t batch, length, n, vocab;
  int32_t *ids, *labels;
  wf_row *row;
} golden;

static inline int32_t *golden_ids(const golden *g, const char *name, int64_t *batch, int64_t *length) {
  const wf_st_info *info;
  OK(wf_st_find(g->st, name, &info));
  *batch = info->shape[0];
  *length = info->shape[1];
  int64_t *wide = malloc((size_t)info->bytes);
  int32_t *ids = malloc((size_t)info->count * sizeof *ids);
  OK(wf_st_read(g->st, info, 0, info->count, wide));
  for (int64_t i = 0; i < info->count; i++) ids[i] = (int32_t)wide[i];
  free(wide);
  return ids;
}

static inline float *golden_floats(const golden *g, const char *name, int64_t n) {
  const wf_st_info *info;
  OK(wf_st_find(g->st, name, &info));
  ck_assert_int_eq(info->count, n);
  float *x = malloc((size_t)n * sizeof *x);
  OK(wf_st_read_f32(g->st, info, 0, n, x));
  return x;
}

/* tests/golden/NAME.safetensors with NAME_config.json, its weights read. */
static inline void golden_open(golden *g, const char *name) {
  char path[512], *json, *yaml;
  int64_t bytes;
  snprintf(path, sizeof path, GOLDEN "%s_config.json", name);
  *g = (golden){0};
  OK(wf_file_read(path, 1 << 20, &json, &bytes));
  OK(wf_family_read_config(path, json, (size_t)bytes, &g->family, &yaml));
  OK(wf_config_parse(&g->cfg, name, yaml, strlen(yaml), NULL, 0, wf_types));
  wf_free(json);
  wf_free(yaml);
  OK(wf_device_open(WF_CPU, 0, &g->dev));
  OK(wf_ctx_create(g->dev, &g->c));
  OK(wf_assemble_model(g->c, &g->cfg, g->cfg.model.vocab, &g->m));
  snprintf(path, sizeof path, GOLDEN "%s.safetensors", name);
  OK(wf_st_open(path, &g->st));
  OK(wf_family_read(g->family, g->st, "", wf_model_params(g->m)));
  g->ids = golden_ids(g, "input_ids", &g->batch, &g->length);
  g->labels = golden_ids(g, "targets", &g->batch, &g->length);
  g->n = g->batch * g->length;
  g->vocab = wf_model_vocab(g->m);
  g->row = calloc((size_t)g->batch, sizeof *g->row);
  for (int64_t i = 0; i < g->batch; i++)
    g->row[i] = (wf_row){.begin = i * g->length, .len = g->length, .lane = i, .seq = i};
}

static inline void golden_close(golden *g) {
  wf_model_free(g->m);
  wf_ctx_free(g->c);
  wf_device_close(g->dev);
  wf_st_close(g->st);
  wf_config_free(&g->cfg);
  free(g->ids);
  free(g->labels);
  free(g->row);
}

/* Logits [n, vocab] of the golden ids in any model; free(). */
static inline float *golden_logits(const golden *g, wf_model *m) {
  wf_ctx *c = wf_model_ctx(m);
  wf_rows *rows;
  float *out = malloc((size_t)(g->n * g->vocab) * sizeof *out);
  OK(wf_rows_create(c, g->batch, g->row, g->batch, &rows));
  wf_scope s = wf_scope_open(c);
  wf_run run = {.c = c, .rows = rows};
  wf_tensor *ids = wf_from_host(c, "test", WF_I32, 1, &g->n, g->ids);
  wf_tensor *logits = wf_model_logits(m, &run, wf_model_trunk(m, &run, ids));
  OK(wf_ctx_check(c));
  OK(wf_to_host(logits, out));
  wf_scope_close(c, s);
  wf_rows_free(rows);
  return out;
}

static inline double golden_err2(int64_t n, const float *a, const float *b) {
  double d = 0, s = 0;
  for (int64_t i = 0; i < n; i++) {
    double x = (double)a[i] - (double)b[i];
    d += x * x;
    s += (double)b[i] * (double)b[i];
  }
  return sqrt(d / s);
}

#endif
