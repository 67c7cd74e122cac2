/* Reading a token store: everything is checked when it is opened, so that later reads are plain. */
#include "data/store.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "core/h5.h"
#include "core/memory.h"
#include "data/store_impl.h"

const char *const wf_split_names[WF_N_SPLITS] = {"train", "validation", "test"};

struct wf_store {
  wf_h5_file *file;
  int64_t vocab;
  const char *tokenizer_name, *split_by, *sum; /* the file's */
  char *blob, *sources;
  size_t blob_size, sources_size;
  wf_split splits[WF_N_SPLITS];
  int64_t *offsets[WF_N_SPLITS];
};

static const int64_t whole_check = (int64_t)256 << 20;

static wf_status read_bytes(const wf_h5_file *f, const char *name, char **data, size_t *n) {
  const wf_h5_info *info;
  int64_t any = -1;
  WF_TRY(wf_h5_expect(f, name, WF_U8, 1, &any, &info));
  WF_ALLOC(*data, "store", (size_t)info->count + 1);
  *n = (size_t)info->count;
  WF_TRY(wf_h5_read(f, info, 0, info->count, *data));
  return WF_OK;
}

static wf_status damaged(const wf_h5_file *f, const char *what) {
  return WF_FAIL(WF_EFORMAT, "the token store %s is not sound: %s", wf_h5_path(f), what);
}

static wf_status open_split(wf_store *s, int k) {
  wf_split *split = &s->splits[k];
  split->name = wf_split_names[k];
  char name[64];
  const wf_h5_info *tokens, *offsets;
  int64_t any = -1;
  snprintf(name, sizeof name, "%s/tokens", split->name);
  if (!wf_h5_has(s->file, name)) return WF_OK;
  WF_TRY(wf_h5_find(s->file, name, &tokens));
  if (tokens->ndim != 1 || tokens->dtype != wf_store_dtype(s->vocab))
    return damaged(s->file, "its tokens have another type than the vocabulary asks for");
  snprintf(name, sizeof name, "%s/offsets", split->name);
  WF_TRY(wf_h5_expect(s->file, name, WF_I64, 1, &any, &offsets));
  if (tokens->count < 1 || offsets->count < 2) return damaged(s->file, "a split is empty");
  WF_CALLOC(s->offsets[k], "store", offsets->count);
  WF_TRY(wf_h5_read(s->file, offsets, 0, offsets->count, s->offsets[k]));
  const int64_t *o = s->offsets[k], n = offsets->count - 1;
  bool rising = o[0] == 0 && o[n] == tokens->count;
  for (int64_t i = 0; i < n && rising; i++) rising = o[i] < o[i + 1];
  if (!rising) return damaged(s->file, "its document offsets do not rise from 0 to the number of tokens");
  split->tokens = tokens->count;
  split->documents = n;
  split->offsets = o;
  split->tokens_info = tokens;
  WF_TRY(wf_h5_get_i64(s->file, split->name, "bytes", &split->bytes));
  if (split->bytes < 0) return damaged(s->file, "a split has a negative number of bytes");
  return WF_OK;
}

static wf_status read_facts(wf_store *s) {
  const char *format;
  int64_t version;
  wf_status is = wf_h5_get_string(s->file, "", "format", &format);
  if (is != WF_OK || strcmp(format, WF_STORE_FORMAT) != 0)
    return wf_hint(WF_FAIL(WF_EFORMAT, "%s is not a token store", wf_h5_path(s->file)),
                   "make one from text with: weft data build TEXT -o STORE.h5");
  WF_TRY(wf_h5_get_i64(s->file, "", "version", &version));
  if (version != WF_STORE_VERSION)
    return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "%s is a token store of version %lld; this Weft reads version %d",
                           wf_h5_path(s->file), (long long)version, WF_STORE_VERSION),
                   "build it again with this Weft");
  WF_TRY(wf_h5_get_i64(s->file, "", "vocab_size", &s->vocab));
  if (s->vocab < 1 || s->vocab > INT32_MAX) return damaged(s->file, "its vocabulary size is impossible");
  WF_TRY(wf_h5_get_string(s->file, "", "tokenizer", &s->tokenizer_name));
  WF_TRY(wf_h5_get_string(s->file, "", "split_by", &s->split_by));
  WF_TRY(wf_h5_get_string(s->file, "", "sum", &s->sum));
  WF_TRY(read_bytes(s->file, "tokenizer", &s->blob, &s->blob_size));
  WF_TRY(read_bytes(s->file, "sources", &s->sources, &s->sources_size));
  int64_t tokens = 0;
  for (int k = 0; k < WF_N_SPLITS; k++) {
    WF_TRY(open_split(s, k));
    tokens += s->splits[k].tokens;
  }
  if (tokens == 0) return damaged(s->file, "it holds no tokens");
  return WF_OK;
}

wf_status wf_store_open(const char *path, wf_store **out) {
  int fd;
  int64_t bytes;
  WF_TRY(wf_open_read(path, &fd));
  wf_status status = wf_file_size(fd, path, &bytes);
  close(fd);
  WF_TRY(status);
  wf_store *s;
  WF_CALLOC(s, "store", 1);
  status = wf_h5_open(path, bytes <= whole_check ? WF_H5_CHECK_ALL : WF_H5_CHECK_LAZY, &s->file);
  if (status == WF_OK) status = read_facts(s);
  if (status != WF_OK) {
    wf_store_close(s);
    return wf_frame_at(__FILE__, __LINE__, __func__, status);
  }
  *out = s;
  return WF_OK;
}

void wf_store_close(wf_store *s) {
  if (!s) return;
  for (int k = 0; k < WF_N_SPLITS; k++) wf_free(s->offsets[k]);
  wf_free(s->blob);
  wf_free(s->sources);
  wf_h5_close(s->file);
  wf_free(s);
}

const char *wf_store_path(const wf_store *s) {
  return wf_h5_path(s->file);
}
int64_t wf_store_vocab(const wf_store *s) {
  return s->vocab;
}
const char *wf_store_tokenizer_name(const wf_store *s) {
  return s->tokenizer_name;
}
const char *wf_store_split_by(const wf_store *s) {
  return s->split_by;
}
const char *wf_store_sum(const wf_store *s) {
  return s->sum;
}
const void *wf_store_tokenizer_blob(const wf_store *s, size_t *n) {
  *n = s->blob_size;
  return s->blob;
}
const char *wf_store_sources(const wf_store *s, size_t *n) {
  *n = s->sources_size;
  return s->sources;
}

wf_status wf_store_tokenizer(const wf_store *s, wf_tokenizer **out) {
  wf_tokenizer *t;
  wf_status status = wf_tokenizer_load(s->blob, s->blob_size, &t);
  if (status != WF_OK) return wf_context(status, "token store %s", wf_store_path(s));
  if (wf_tokenizer_vocab(t) != s->vocab) {
    wf_tokenizer_free(t);
    return damaged(s->file, "its tokenizer has another vocabulary");
  }
  *out = t;
  return WF_OK;
}

wf_status wf_store_split(const wf_store *s, int split, const wf_split **out) {
  if (split < 0 || split >= WF_N_SPLITS) return WF_FAIL(WF_EINVAL, "there is no split number %d", split);
  if (s->splits[split].tokens == 0)
    return wf_hint(
        WF_FAIL(WF_ENOTFOUND, "the token store %s has no %s text", wf_store_path(s), wf_split_names[split]),
        "build it with --%s FRACTION or --%s-file FILE", wf_split_names[split], wf_split_names[split]);
  *out = &s->splits[split];
  return WF_OK;
}

wf_status wf_store_read(const wf_store *s, const wf_split *split, int64_t first, int64_t count,
                        int32_t *ids) {
  const wf_h5_info *info = split->tokens_info;
  if (first < 0 || count < 0 || first > split->tokens || count > split->tokens - first)
    return WF_FAIL(WF_EINTERNAL, "ids %lld to %lld of the %lld in %s", (long long)first,
                   (long long)(first + count), (long long)split->tokens, split->name);
  WF_TRY(wf_h5_read(s->file, info, first, count, ids));
  uint32_t most = 0;
  for (int64_t i = count - 1; i >= 0;
       i--) { /* widen in place, from the end: no id is overwritten before it is read */
    uint32_t id = wf_store_id(ids, info->dtype, i);
    most = id > most ? id : most;
    ids[i] = (int32_t)id;
  }
  if (most >= s->vocab)
    return WF_FAIL(WF_EFORMAT, "the token store %s holds the id %u in %s; its vocabulary is %lld",
                   wf_store_path(s), most, split->name, (long long)s->vocab);
  return WF_OK;
}

wf_status wf_store_verify(const wf_store *s) {
  enum { PART = 1 << 20 };
  int32_t *ids;
  WF_ALLOC(ids, "store", PART * sizeof *ids);
  wf_status status = WF_OK;
  for (int k = 0; k < WF_N_SPLITS; k++) {
    const wf_split *split = &s->splits[k];
    for (int64_t i = 0; i < split->tokens && status == WF_OK; i += PART)
      status = wf_store_read(s, split, i, split->tokens - i < PART ? split->tokens - i : PART, ids);
  }
  wf_free(ids);
  return status;
}
