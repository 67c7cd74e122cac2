/* Reading safetensors. jansson parses the JSON (refusing doubled names and broken UTF-8); everything it
 * yields is checked here against the file before it is used. */
#include "core/safetensors.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/option.h"

#define TAG "file"

enum { MAX_SHARDS = 4096, NEAREST_AMONG = 4096, CONVERT = 2048 };

static const struct {
  const char *name;
  int64_t size;
} types[WF_ST_N_DTYPES] = {
    [WF_ST_F32] = {"F32", 4},   [WF_ST_F64] = {"F64", 8}, [WF_ST_BF16] = {"BF16", 2},
    [WF_ST_F16] = {"F16", 2},   [WF_ST_I32] = {"I32", 4}, [WF_ST_I64] = {"I64", 8},
    [WF_ST_U8] = {"U8", 1},     [WF_ST_U16] = {"U16", 2}, [WF_ST_U32] = {"U32", 4},
    [WF_ST_BOOL] = {"BOOL", 1},
};

const char *wf_st_dtype_name(wf_st_dtype d) {
  return (unsigned)d < WF_ST_N_DTYPES ? types[d].name : "invalid";
}

int64_t wf_st_dtype_size(wf_st_dtype d) {
  return (unsigned)d < WF_ST_N_DTYPES ? types[d].size : 0;
}

wf_st_dtype wf_st_from_dtype(wf_dtype d) {
  static const wf_st_dtype map[WF_N_DTYPES] = {
      [WF_F32] = WF_ST_F32, [WF_BF16] = WF_ST_BF16, [WF_F64] = WF_ST_F64, [WF_I32] = WF_ST_I32,
      [WF_I64] = WF_ST_I64, [WF_U8] = WF_ST_U8,     [WF_U16] = WF_ST_U16, [WF_U32] = WF_ST_U32,
  };
  return (unsigned)d < WF_N_DTYPES ? map[d] : WF_ST_N_DTYPES;
}

typedef struct shard {
  char *path;
  int fd;
} shard;

struct wf_safetensors {
  char *path; /* as opened: of the file or the index */
  shard *shards;
  wf_st_info *tensors; /* sorted by name in the end */
  size_t n_shards, n_tensors, room_shards, room_tensors;
  json_t *metadata; /* of the first shard; an object of strings, or NULL */
};

void wf_st_close(wf_safetensors *st) {
  if (!st) return;
  for (size_t i = 0; i < st->n_tensors; i++) wf_free((char *)(uintptr_t)st->tensors[i].name);
  for (size_t i = 0; i < st->n_shards; i++) {
    wf_free(st->shards[i].path);
    if (st->shards[i].fd >= 0) close(st->shards[i].fd);
  }
  wf_free(st->shards);
  wf_free(st->tensors);
  wf_free(st->path);
  json_decref(st->metadata);
  wf_free(st);
}

/* ---- Headers ---- */

static wf_status bad_tensor(const char *name, const char *what) {
  return WF_FAIL(WF_EFORMAT, "tensor %.200s: %s", name, what);
}

static wf_status parse_dtype(const char *name, const json_t *value, wf_st_dtype *d) {
  const char *text = json_string_value(value);
  if (!text) return bad_tensor(name, "its dtype is missing");
  for (int i = 0; i < WF_ST_N_DTYPES; i++) {
    if (strcmp(text, types[i].name) != 0) continue;
    *d = (wf_st_dtype)i;
    return WF_OK;
  }
  return WF_FAIL(WF_EUNSUPPORTED, "tensor %.200s has the type %.40s, which Weft does not read", name, text);
}

static wf_status parse_shape(const char *name, const json_t *value, wf_st_info *t) {
  size_t n = json_array_size(value);
  if (!json_is_array(value)) return bad_tensor(name, "its shape is missing");
  if (n > WF_ST_MAX_DIMS) return bad_tensor(name, "its shape has too many dimensions");
  t->ndim = (int)n;
  t->count = 1;
  for (size_t i = 0; i < n; i++) {
    const json_t *size = json_array_get(value, i);
    t->shape[i] = json_is_integer(size) ? (int64_t)json_integer_value(size) : -1;
    if (t->shape[i] < 0 || __builtin_mul_overflow(t->count, t->shape[i], &t->count))
      return bad_tensor(name, "its shape is impossible");
  }
  if (__builtin_mul_overflow(t->count, types[t->dtype].size, &t->bytes))
    return bad_tensor(name, "its shape is impossible");
  return WF_OK;
}

/* `available`: bytes behind the header. */
static wf_status parse_offsets(const char *name, const json_t *value, int64_t available, wf_st_info *t) {
  const json_t *first = json_array_get(value, 0), *last = json_array_get(value, 1);
  if (json_array_size(value) != 2 || !json_is_integer(first) || !json_is_integer(last))
    return bad_tensor(name, "its data_offsets are not two numbers");
  int64_t begin = json_integer_value(first), end = json_integer_value(last);
  if (begin < 0 || end < begin || end > available)
    return WF_FAIL(WF_EFORMAT,
                   "tensor %.200s: its data_offsets [%lld, %lld] do not lie in the file's %lld bytes of data",
                   name, (long long)begin, (long long)end, (long long)available);
  if (end - begin != t->bytes)
    return WF_FAIL(WF_EFORMAT, "tensor %.200s: its shape and type take %lld bytes, its data_offsets %lld",
                   name, (long long)t->bytes, (long long)(end - begin));
  t->offset = begin;
  return WF_OK;
}

static wf_status add_tensor(wf_safetensors *st, const char *name, const json_t *value, int64_t available) {
  wf_st_info t = {.shard = (int)st->n_shards - 1};
  if (!json_is_object(value)) return bad_tensor(name, "it is not described by an object");
  WF_TRY(parse_dtype(name, json_object_get(value, "dtype"), &t.dtype));
  WF_TRY(parse_shape(name, json_object_get(value, "shape"), &t));
  WF_TRY(parse_offsets(name, json_object_get(value, "data_offsets"), available, &t));
  WF_TRY(wf_grow(TAG, (void **)&st->tensors, sizeof *st->tensors, st->n_tensors, &st->room_tensors));
  if (!(t.name = wf_strdup(TAG, name))) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  st->tensors[st->n_tensors++] = t;
  return WF_OK;
}

static int by_offset(const void *a, const void *b) {
  const wf_st_info *x = a, *y = b;
  if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
  return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

/* The tensors of one shard must fill its data exactly. Adds the header's length to their offsets. */
static wf_status place(wf_st_info *tensors, size_t n, int64_t start, int64_t available) {
  int64_t end = 0;
  qsort(tensors, n, sizeof *tensors, by_offset);
  for (size_t i = 0; i < n; i++) {
    if (tensors[i].offset < end)
      return bad_tensor(tensors[i].name, "its data overlap those of another tensor");
    if (tensors[i].offset > end)
      return bad_tensor(tensors[i].name, "bytes before its data belong to no tensor");
    end = tensors[i].offset + tensors[i].bytes;
    tensors[i].offset += start;
  }
  if (end != available)
    return WF_FAIL(WF_EFORMAT, "%lld bytes at the end belong to no tensor", (long long)(available - end));
  return WF_OK;
}

static wf_status take_metadata(wf_safetensors *st, json_t *metadata) {
  const char *key;
  json_t *value;
  if (!json_is_object(metadata)) return WF_FAIL(WF_EFORMAT, "__metadata__ is not an object");
  json_object_foreach(metadata, key, value) {
    if (!json_is_string(value)) return WF_FAIL(WF_EFORMAT, "__metadata__ holds something that is not text");
  }
  if (st->n_shards == 1) st->metadata = json_incref(metadata);
  return WF_OK;
}

/* `text` is JSON; the object in it, for the caller to release. */
static wf_status parse_object(const char *text, int64_t bytes, json_t **object) {
  json_error_t error;
  *object = json_loadb(text, (size_t)bytes, JSON_REJECT_DUPLICATES, &error);
  if (*object && json_is_object(*object)) return WF_OK;
  if (*object) snprintf(error.text, sizeof error.text, "not an object");
  json_decref(*object);
  return WF_FAIL(WF_EFORMAT, "the JSON in it is wrong: %s", error.text);
}

static wf_status parse_header(wf_safetensors *st, const char *text, int64_t header, int64_t available) {
  json_t *root, *value;
  const char *name;
  size_t first = st->n_tensors;
  wf_status s;
  WF_TRY(parse_object(text, header, &root));
  json_object_foreach(root, name, value) {
    if (strcmp(name, "__metadata__") == 0)
      s = take_metadata(st, value);
    else
      s = add_tensor(st, name, value, available);
    if (s != WF_OK) {
      json_decref(root);
      return s;
    }
  }
  json_decref(root);
  if (st->n_tensors > first) return place(st->tensors + first, st->n_tensors - first, 8 + header, available);
  return available == 0 ? WF_OK : WF_FAIL(WF_EFORMAT, "it has data but no tensors");
}

/* `text` is freed here. */
static wf_status read_header(wf_safetensors *st, int fd, const char *path) {
  int64_t size, header;
  char *text;
  wf_status s;
  WF_TRY(wf_file_size(fd, path, &size));
  if (size < 8) return WF_FAIL(WF_EFORMAT, size ? "it is cut short" : "it is empty");
  WF_TRY(wf_read_at(fd, path, &header, 8, 0));
  if (header < 2 || header > WF_ST_MAX_HEADER)
    return WF_FAIL(WF_EFORMAT, "it is not a safetensors file: it starts with a header length of %llu",
                   (unsigned long long)header);
  if (header > size - 8)
    return WF_FAIL(WF_EFORMAT, "its header of %lld bytes is cut short", (long long)header);
  WF_ALLOC(text, TAG, (size_t)header);
  WF_TRY_GOTO(s, out, wf_read_at(fd, path, text, header, 8));
  s = parse_header(st, text, header, size - 8 - header);
out:
  wf_free(text);
  return s;
}

static wf_status add_shard(wf_safetensors *st, const char *path) {
  WF_TRY(wf_grow(TAG, (void **)&st->shards, sizeof *st->shards, st->n_shards, &st->room_shards));
  shard *file = &st->shards[st->n_shards];
  *file = (shard){wf_strdup(TAG, path), -1};
  if (!file->path) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  st->n_shards++;
  WF_TRY(wf_open_read(path, &file->fd));
  wf_status s = read_header(st, file->fd, path);
  return s == WF_EFORMAT || s == WF_EUNSUPPORTED ? wf_context(s, "%s", path) : s;
}

/* ---- Sharded models ---- */

/* `file` beside `path`, to be freed; NULL when out of memory. */
static char *beside(const char *path, const char *file) {
  const char *slash = strrchr(path, '/');
  size_t folder = slash ? (size_t)(slash - path) + 1 : 0, n = strlen(file);
  char *out = wf_alloc(TAG, folder + n + 1);
  if (!out) return NULL;
  memcpy(out, path, folder);
  memcpy(out + folder, file, n + 1);
  return out;
}

static wf_status add_named_shard(wf_safetensors *st, const char *index, const char *file) {
  if (!file || !file[0] || strchr(file, '/'))
    return WF_FAIL(WF_EFORMAT, "%s: a tensor's file is not a file beside it", index);
  for (size_t i = 0; i < st->n_shards; i++)
    if (strcmp(strrchr(st->shards[i].path, '/') ? strrchr(st->shards[i].path, '/') + 1 : st->shards[i].path,
               file) == 0)
      return WF_OK;
  if (st->n_shards == MAX_SHARDS)
    return WF_FAIL(WF_EFORMAT, "%s names more than %d files", index, MAX_SHARDS);
  char *path = beside(index, file);
  if (!path) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  wf_status s = add_shard(st, path);
  wf_free(path);
  return s == WF_OK ? s : wf_context(s, "%s", index);
}

static int by_name(const void *a, const void *b) {
  const wf_st_info *x = a, *y = b;
  return strcmp(x->name, y->name);
}

static const char *file_of(const wf_safetensors *st, const wf_st_info *t) {
  const char *path = st->shards[t->shard].path, *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* Keep the tensors that the map assigns to the file they were found in; each name of the map must be among
 * them. */
static wf_status keep_mapped(wf_safetensors *st, const char *index, json_t *map) {
  size_t kept = 0;
  for (size_t i = 0; i < st->n_tensors; i++) {
    wf_st_info t = st->tensors[i];
    const char *file = json_string_value(json_object_get(map, t.name));
    if (file && strcmp(file, file_of(st, &t)) == 0)
      st->tensors[kept++] = t;
    else
      wf_free((char *)(uintptr_t)t.name);
  }
  st->n_tensors = kept;
  if (kept == json_object_size(map)) return WF_OK;
  const char *name;
  json_t *value;
  if (kept > 0) qsort(st->tensors, kept, sizeof *st->tensors, by_name);
  json_object_foreach(map, name, value) {
    wf_st_info key = {.name = name};
    if (kept == 0 || !bsearch(&key, st->tensors, kept, sizeof key, by_name))
      return WF_FAIL(WF_EFORMAT, "%s: tensor %.200s is not in %.200s", index, name, json_string_value(value));
  }
  return WF_FAIL(WF_EINTERNAL, "%s: a tensor was found twice in one file", index);
}

static wf_status read_index(wf_safetensors *st, const char *path) {
  char *text;
  int64_t bytes;
  json_t *root, *value;
  const char *name;
  WF_TRY(wf_file_read(path, WF_ST_MAX_HEADER, &text, &bytes));
  wf_status s = parse_object(text, bytes, &root);
  wf_free(text);
  if (s != WF_OK) return wf_context(s, "%s", path);
  json_t *map = json_object_get(root, "weight_map");
  if (!json_is_object(map)) s = WF_FAIL(WF_EFORMAT, "%s: it has no weight_map", path);
  json_object_foreach(map, name, value) {
    s = add_named_shard(st, path, json_string_value(value));
    if (s != WF_OK) break;
  }
  if (s == WF_OK) s = keep_mapped(st, path, map);
  json_decref(root);
  return s;
}

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), m = strlen(end);
  return n >= m && strcmp(text + n - m, end) == 0;
}

/* The file to open where `path` may be a model's folder; to be freed. */
static wf_status resolve(const char *path, char **out) {
  static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
  if (!wf_is_directory(path)) {
    *out = wf_strdup(TAG, path);
    return *out ? WF_OK : wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  }
  for (int i = 0; i < 2; i++) {
    size_t size = strlen(path) + strlen(names[i]) + 2;
    WF_ALLOC(*out, TAG, size);
    snprintf(*out, size, "%s/%s", path, names[i]);
    if (wf_file_exists(*out)) return WF_OK;
    wf_free(*out);
    *out = NULL;
  }
  return WF_FAIL(WF_ENOTFOUND, "%s holds neither %s nor %s", path, names[0], names[1]);
}

wf_status wf_st_open(const char *path, wf_safetensors **out) {
  wf_safetensors *st;
  WF_CALLOC(st, TAG, 1);
  wf_status s = resolve(path, &st->path);
  if (s == WF_OK) s = ends_with(st->path, ".json") ? read_index(st, st->path) : add_shard(st, st->path);
  if (s != WF_OK) {
    wf_st_close(st);
    return s;
  }
  if (st->n_tensors > 0) qsort(st->tensors, st->n_tensors, sizeof *st->tensors, by_name);
  *out = st;
  return WF_OK;
}

/* ---- Looking things up and reading ---- */

int64_t wf_st_count(const wf_safetensors *st) {
  return (int64_t)st->n_tensors;
}

const wf_st_info *wf_st_at(const wf_safetensors *st, int64_t index) {
  return &st->tensors[index];
}

const char *wf_st_metadata(const wf_safetensors *st, const char *key) {
  return json_string_value(json_object_get(st->metadata, key));
}

static const wf_st_info *find(const wf_safetensors *st, const char *name) {
  wf_st_info key = {.name = name};
  return st->n_tensors ? bsearch(&key, st->tensors, st->n_tensors, sizeof key, by_name) : NULL;
}

bool wf_st_has(const wf_safetensors *st, const char *name) {
  return find(st, name) != NULL;
}

wf_status wf_st_find(const wf_safetensors *st, const char *name, const wf_st_info **info) {
  if ((*info = find(st, name))) return WF_OK;
  wf_status s = WF_FAIL(WF_ENOTFOUND, "%s has no tensor %s", st->path, name);
  const char *names[NEAREST_AMONG];
  int n = 0;
  while (n < NEAREST_AMONG && (size_t)n < st->n_tensors) {
    names[n] = st->tensors[n].name;
    n++;
  }
  const char *nearest = wf_nearest_name(name, names, n);
  return nearest ? wf_hint(s, "it has %s", nearest) : s;
}

wf_status wf_st_read(const wf_safetensors *st, const wf_st_info *info, int64_t first, int64_t count,
                     void *data) {
  const shard *file = &st->shards[info->shard];
  int64_t size = types[info->dtype].size;
  if (first < 0 || count < 0 || first > info->count || count > info->count - first)
    return WF_FAIL(WF_EINTERNAL, "%s: elements %lld to %lld of %s are read, which has %lld", file->path,
                   (long long)first, (long long)(first + count), info->name, (long long)info->count);
  WF_TRY(wf_read_at(file->fd, file->path, data, count * size, info->offset + first * size));
  return WF_OK;
}

typedef union convertible {
  uint16_t half[CONVERT];
  double wide[CONVERT];
} convertible;

static void convert(wf_st_dtype dtype, const convertible *from, int64_t n, float *to) {
  for (int64_t i = 0; i < n; i++)
    to[i] = dtype == WF_ST_BF16  ? wf_bf16_to_f32(from->half[i])
            : dtype == WF_ST_F16 ? wf_f16_to_f32(from->half[i])
                                 : (float)from->wide[i];
}

wf_status wf_st_read_f32(const wf_safetensors *st, const wf_st_info *info, int64_t first, int64_t count,
                         float *data) {
  convertible buffer;
  if (info->dtype == WF_ST_F32) return wf_st_read(st, info, first, count, data);
  if (info->dtype != WF_ST_F64 && info->dtype != WF_ST_BF16 && info->dtype != WF_ST_F16)
    return WF_FAIL(WF_EUNSUPPORTED, "%s: tensor %s is %s, not floating-point", st->shards[info->shard].path,
                   info->name, types[info->dtype].name);
  for (int64_t done = 0; done < count;) {
    int64_t n = count - done < CONVERT ? count - done : CONVERT;
    WF_TRY(wf_st_read(st, info, first + done, n, &buffer));
    convert(info->dtype, &buffer, n, data + done);
    done += n;
  }
  return WF_OK;
}
