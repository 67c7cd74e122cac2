/* Finding and opening trained models; see assemble.h. */
#include "core/file.h"
#include "core/memory.h"
#include "experiments/assemble.h"
#include "experiments/checkpoint.h"

#include <stdio.h>
#include <string.h>

/* The newest good checkpoint under `folder` or folder/checkpoints; *path stays NULL when there is none. */
static wf_status newest(const char *folder, char **path) {
  char sub[4096];
  snprintf(sub, sizeof sub, "%s/checkpoints", folder);
  *path = NULL;
  if (wf_file_exists(sub)) WF_TRY(wf_checkpoint_latest(sub, NULL, NULL, path));
  if (!*path) WF_TRY(wf_checkpoint_latest(folder, NULL, NULL, path));
  return WF_OK;
}

wf_status wf_find_checkpoint(const char *from, char **path) {
  char run[4096];
  *path = NULL;
  if (wf_is_directory(from)) {
    WF_TRY(newest(from, path));
  } else if (wf_file_exists(from)) {
    *path = wf_strdup("checkpoint", from);
    return *path ? WF_OK : WF_ENOMEM;
  } else {
    snprintf(run, sizeof run, "runs/%s", from);
    if (wf_is_directory(run)) WF_TRY(newest(run, path));
  }
  if (*path) return WF_OK;
  return wf_hint(WF_FAIL(WF_ENOTFOUND, "%s: no checkpoint there", from),
                 "name a checkpoint file, a run's folder, or a run under runs/");
}

wf_status wf_check_tokenizer(const wf_store *store, const void *blob, size_t n) {
  size_t own;
  const void *b = wf_store_tokenizer_blob(store, &own);
  if (own == n && memcmp(b, blob, n) == 0) return WF_OK;
  return wf_hint(WF_FAIL(WF_EINVAL, "%s has another tokenizer (%s, %lld ids) than the model",
                         wf_store_path(store), wf_store_tokenizer_name(store),
                         (long long)wf_store_vocab(store)),
                 "build the store with the tokenizer that the model was trained with");
}

static wf_status open_parts(const wf_checkpoint_info *info, bool averaged, const char *const *sets,
                            size_t n_sets, wf_loaded *l) {
  WF_TRY(wf_config_parse(&l->cfg, l->path, info->config, info->config_size, sets, n_sets, wf_types));
  WF_TRY(wf_assemble_device(&l->cfg, &l->dev));
  WF_TRY(wf_ctx_create(l->dev, &l->c));
  WF_TRY(wf_tokenizer_load(info->tokenizer, info->tokenizer_size, &l->tokenizer));
  WF_TRY(wf_assemble_model(l->c, &l->cfg, wf_tokenizer_vocab(l->tokenizer), &l->model));
  l->step = info->step;
  return wf_checkpoint_load_params(l->path, wf_model_params(l->model), averaged);
}

wf_status wf_loaded_open(const char *from, bool averaged, const char *const *sets, size_t n_sets,
                         wf_loaded *out) {
  *out = (wf_loaded){0};
  wf_checkpoint_info info = {0};
  wf_status s = wf_find_checkpoint(from, &out->path);
  if (s == WF_OK) s = wf_checkpoint_read_info(out->path, &info);
  if (s == WF_OK && !info.tokenizer)
    s = WF_FAIL(WF_EFORMAT, "%s: the checkpoint holds no tokenizer", out->path);
  if (s == WF_OK) s = open_parts(&info, averaged, sets, n_sets, out);
  wf_checkpoint_info_free(&info);
  if (s != WF_OK) wf_loaded_close(out);
  return s;
}

void wf_loaded_close(wf_loaded *l) {
  wf_model_free(l->model);
  wf_tokenizer_free(l->tokenizer);
  wf_ctx_free(l->c);
  wf_device_close(l->dev);
  wf_config_free(&l->cfg);
  wf_free(l->path);
  *l = (wf_loaded){0};
}
