/* tiny_model: a small randomly initialised model with a tokenizer of characters, for tests of what uses
 * models. */
#ifndef WF_TESTS_TINY_MODEL_H
#define WF_TESTS_TINY_MODEL_H

#include <check.h>
#include <stdio.h>
#include <string.h>

#include "core/ops.h"
#include "experiments/assemble.h"

typedef struct tiny {
  wf_config cfg;
  wf_device *dev;
  wf_ctx *c;
  wf_model *model;
  wf_tokenizer *tokenizer;
} tiny;

static const char tiny_letters[] = "abcdefghijklmnopqrstuvwxyz .,\n";

static const char tiny_attention[] = "{mixer: {type: attention, heads: 2}, mlp: {type: swiglu, width: 24}}";
static const char tiny_window[] =
    "{mixer: {type: attention, heads: 2, kv_heads: 1, window: 5, position: alibi}, mlp: {type: gelu}}";
static const char tiny_gla[] = "{mixer: {type: simple_gla, heads: 2}, mlp: {type: swiglu, width: 24}}";
static const char tiny_learned[] = "{mixer: {type: attention, heads: 2, position: learned}}";

static wf_status tiny_text(void *given, const char **text, size_t *n) {
  *text = tiny_letters;
  *n = *(bool *)given ? 0 : strlen(tiny_letters);
  *(bool *)given = true;
  return WF_OK;
}

static inline void tiny_ok(wf_status s) {
  ck_assert_msg(s == WF_OK, "%s %s\n%s", wf_error_message(), wf_error_hint(), wf_error_trace());
}

/* Two blocks, `first` and `second`; 20 positions where they are learned. The model has ids that its tokenizer
 * lacks. */
static inline void tiny_open(tiny *t, const char *first, const char *second) {
  char text[2000];
  bool given = false;
  snprintf(text, sizeof text,
           "run: {precision: f64}\ndata: {store: none.h5, seq_len: 20}\n"
           "model:\n  d_model: 16\n  init_std: 0.4\n  vocab: 40\n  blocks:\n    - %s\n    - %s\n"
           "train: {steps: 1, batch_tokens: 20, optimizer: {type: adamw}, schedule: {type: constant}}\n",
           first, second);
  tiny_ok(wf_config_parse(&t->cfg, "tiny", text, strlen(text), NULL, 0, wf_types));
  tiny_ok(wf_assemble_device(&t->cfg, &t->dev));
  tiny_ok(wf_ctx_create(t->dev, &t->c));
  tiny_ok(wf_tokenizer_train_chars(tiny_text, &given, &t->tokenizer));
  tiny_ok(wf_assemble_model(t->c, &t->cfg, wf_tokenizer_vocab(t->tokenizer), &t->model));
  tiny_ok(wf_params_init(wf_model_params(t->model), 7));
}

static inline void tiny_close(tiny *t) {
  wf_model_free(t->model);
  wf_tokenizer_free(t->tokenizer);
  wf_ctx_free(t->c);
  wf_device_close(t->dev);
  wf_config_free(&t->cfg);
}

/* Logits [n, vocab] of a whole sequence without a state. */
static inline void tiny_forward(tiny *t, const int32_t *ids, int64_t n, double *logits) {
  wf_rows *rows;
  tiny_ok(wf_rows_fresh(t->c, 1, n, 0, &rows));
  wf_scope scope = wf_scope_open(t->c);
  wf_run run = {.c = t->c, .rows = rows};
  wf_tensor *h = wf_model_trunk(t->model, &run, wf_from_host(t->c, "batch", WF_I32, WF_SHAPE(n), ids));
  wf_tensor *y = wf_model_logits(t->model, &run, h);
  tiny_ok(wf_ctx_check(t->c));
  tiny_ok(wf_to_host(y, logits));
  wf_scope_close(t->c, scope);
  wf_rows_free(rows);
}

/* Ids of a text; returns their number. */
static inline int64_t tiny_ids(tiny *t, const char *text, int32_t *ids, int64_t room) {
  wf_ids out = {0};
  tiny_ok(wf_tokenizer_encode(t->tokenizer, text, strlen(text), &out));
  ck_assert_int_le((int64_t)out.n, room);
  for (size_t i = 0; i < out.n; i++) ids[i] = (int32_t)out.data[i];
  int64_t n = (int64_t)out.n;
  wf_ids_free(&out);
  return n;
}

#endif
