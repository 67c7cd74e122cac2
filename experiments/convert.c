/* Whole models in and out; see convert.h. */
#include "experiments/convert.h"

#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "experiments/assemble.h"
#include "experiments/checkpoint.h"

#define TAG "convert"

enum { MAX_PATH = 4096, MAX_JSON = 1 << 20 };

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), m = strlen(end);
  return n >= m && strcmp(text + n - m, end) == 0;
}

static wf_status join(char out[MAX_PATH], const char *folder, const char *name) {
  int n = snprintf(out, MAX_PATH, "%s/%s", folder, name);
  return n < MAX_PATH ? WF_OK : WF_FAIL(WF_EINVAL, "the path %s is too long", folder);
}

/* The file `name` in the folder `from`, or beside the file `from`. */
static wf_status beside(char out[MAX_PATH], const char *from, const char *name) {
  char folder[MAX_PATH];
  const char *slash = strrchr(from, '/');
  if (wf_is_directory(from)) return join(out, from, name);
  if (!slash) return join(out, ".", name);
  snprintf(folder, sizeof folder, "%.*s", (int)(slash - from), from);
  return join(out, folder[0] ? folder : "/", name);
}

bool wf_convert_is_foreign(const char *path) {
  char config[MAX_PATH];
  if (!wf_is_directory(path)) return ends_with(path, ".safetensors") || ends_with(path, ".index.json");
  return join(config, path, "config.json") == WF_OK && wf_file_exists(config);
}

/* ---- what both directions hold ---- */

typedef struct job {
  wf_config cfg;
  bool has_cfg;
  const wf_family *family;
  wf_device *dev;
  wf_ctx *c;
  wf_model *model;
  wf_tokenizer *tokenizer;
  wf_safetensors *st;
  wf_checkpoint_info info;
  char *text, *path, *config;
} job;

static void close_job(job *j) {
  wf_st_close(j->st);
  wf_model_free(j->model);
  wf_tokenizer_free(j->tokenizer);
  wf_ctx_free(j->c);
  wf_device_close(j->dev);
  if (j->has_cfg) wf_config_free(&j->cfg);
  wf_checkpoint_info_free(&j->info);
  wf_free(j->text);
  wf_free(j->path);
  wf_free(j->config);
}

/* The model of a config's text, on the CPU in float32 wherever it was trained. */
static wf_status make_model(job *j, const char *name, const char *text, size_t n, int64_t vocab) {
  static const char *const sets[] = {"run.device=cpu", "run.precision=f32"};
  WF_TRY(wf_config_parse(&j->cfg, name, text, n, sets, 2, wf_types));
  j->has_cfg = true;
  if (!j->family) WF_TRY(wf_family_of(&j->cfg, &j->family));
  WF_TRY(wf_device_open(WF_CPU, 0, &j->dev));
  WF_TRY(wf_ctx_create(j->dev, &j->c));
  return wf_assemble_model(j->c, &j->cfg, vocab > 0 ? vocab : j->cfg.model.vocab, &j->model);
}

/* ---- theirs to ours ---- */

/* All weights of a file, which errors name. */
static wf_status read_weights(const wf_family *f, const wf_safetensors *st, const char *from,
                              wf_params *params) {
  wf_status s = wf_family_read(f, st, "", params);
  if (s == WF_OK) s = wf_family_check_extra(f, st, params);
  return s == WF_OK || strstr(wf_error_message(), from) ? s : wf_context(s, "%s", from);
}

static wf_status import_tokenizer(job *j, const char *from) {
  static const char *const names[] = {"tokenizer.json", "tokenizer.model"};
  char path[MAX_PATH];
  wf_status s = WF_OK;
  for (int i = 0; i < 2 && !j->tokenizer; i++) {
    WF_TRY(beside(path, from, names[i]));
    if (wf_file_exists(path)) s = wf_tokenizer_open(path, &j->tokenizer);
    if (s != WF_OK && s != WF_EUNSUPPORTED) return s;
  }
  if (j->tokenizer) {
    long long ids = wf_tokenizer_vocab(j->tokenizer), rows = wf_model_vocab(j->model);
    if (ids <= rows) return WF_OK;
    s = WF_FAIL(WF_EFORMAT, "%s has ids up to %lld, the model %lld rows", path, ids - 1, rows);
  }
  return s == WF_OK || wf_error_hint()[0] ? s : wf_hint(s, "--tokenizer=false leaves it out");
}

static wf_status import_all(job *j, const char *from, const char *to, bool tokenizer) {
  char path[MAX_PATH];
  const void *blob = NULL;
  int64_t bytes;
  size_t blob_size = 0;
  WF_TRY(wf_st_open(from, &j->st));
  WF_TRY(beside(path, from, "config.json"));
  WF_TRY(wf_file_read(path, MAX_JSON, &j->text, &bytes));
  WF_TRY(wf_family_read_config(path, j->text, (size_t)bytes, &j->family, &j->config));
  wf_status s = make_model(j, to, j->config, strlen(j->config), 0);
  if (s != WF_OK) return wf_context(s, "the model of %s", path);
  WF_TRY(read_weights(j->family, j->st, from, wf_model_params(j->model)));
  if (tokenizer) WF_TRY(import_tokenizer(j, from));
  if (j->tokenizer) blob = wf_tokenizer_blob(j->tokenizer, &blob_size);
  wf_free(j->config);
  j->config = NULL;
  WF_TRY(wf_config_print(&j->cfg, &j->config));
  wf_snapshot snap = {.params = wf_model_params(j->model), .seed = (uint64_t)j->cfg.run.seed};
  return wf_checkpoint_save(to, &snap, j->config, blob, blob_size);
}

wf_status wf_convert_import(const char *from, const char *to, bool tokenizer, bool *has_tokenizer) {
  job j = {0};
  wf_status s = import_all(&j, from, to, tokenizer);
  if (has_tokenizer) *has_tokenizer = j.tokenizer != NULL;
  close_job(&j);
  return s;
}

/* ---- ours to theirs ---- */

/* A blob is the tokenizer's name, a line's end, and the file it was read from. */
static wf_status export_tokenizer(const job *j, const char *to) {
  char path[MAX_PATH];
  size_t n;
  const char *name = wf_tokenizer_name(j->tokenizer), *blob = wf_tokenizer_blob(j->tokenizer, &n),
             *line = memchr(blob, '\n', n);
  bool json = strcmp(name, "tokenizer.json") == 0;
  if (!line || (!json && strcmp(name, "sentencepiece") != 0)) return WF_OK; /* they have no such kind */
  WF_TRY(join(path, to, json ? "tokenizer.json" : "tokenizer.model"));
  return wf_file_write(path, line + 1, (int64_t)(n - (size_t)(line + 1 - blob)));
}

static wf_status export_all(job *j, const char *from, const char *to, bool averaged) {
  char path[MAX_PATH];
  WF_TRY(wf_find_checkpoint(from, &j->path));
  WF_TRY(wf_checkpoint_read_info(j->path, &j->info));
  wf_status s = make_model(j, j->path, j->info.config, j->info.config_size, j->info.vocab);
  if (s != WF_OK) return wf_context(s, "%s", j->path);
  wf_params *params = wf_model_params(j->model);
  WF_TRY(wf_checkpoint_load_params(j->path, params, averaged));
  if (j->info.tokenizer) WF_TRY(wf_tokenizer_load(j->info.tokenizer, j->info.tokenizer_size, &j->tokenizer));
  WF_TRY(wf_family_write_config(j->family, &j->cfg, params,
                                j->tokenizer ? wf_tokenizer_bos(j->tokenizer) : -1,
                                j->tokenizer ? wf_tokenizer_eos(j->tokenizer) : -1, &j->text));
  WF_TRY(wf_make_directories(to));
  WF_TRY(join(path, to, "model.safetensors"));
  WF_TRY(wf_family_write(j->family, path, params));
  WF_TRY(join(path, to, "config.json"));
  WF_TRY(wf_file_write(path, j->text, (int64_t)strlen(j->text)));
  return j->tokenizer ? export_tokenizer(j, to) : WF_OK;
}

wf_status wf_convert_export(const char *from, const char *to, bool averaged, const wf_family **family) {
  job j = {0};
  wf_status s = export_all(&j, from, to, averaged);
  if (family) *family = j.family;
  close_job(&j);
  return s;
}

/* ---- train.init ---- */

static wf_status load_foreign(const char *path, const wf_config *cfg, wf_params *params) {
  const wf_family *f;
  wf_safetensors *st;
  WF_TRY(wf_family_of(cfg, &f));
  WF_TRY(wf_st_open(path, &st));
  wf_status s = read_weights(f, st, path, params);
  wf_st_close(st);
  return s;
}

wf_status wf_load_weights(const char *path, const wf_config *cfg, wf_params *params) {
  char *checkpoint;
  if (wf_convert_is_foreign(path)) return load_foreign(path, cfg, params);
  WF_TRY(wf_find_checkpoint(path, &checkpoint));
  wf_status s = wf_checkpoint_load_params(checkpoint, params, false);
  wf_free(checkpoint);
  return s;
}
