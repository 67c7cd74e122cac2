/* Writing safetensors: definitions are collected, ordered as the reference implementation orders them, and
 * written as one JSON header; data follow at fixed offsets. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/safetensors.h"

#define TAG "file"

typedef struct tensor {
  char *name;
  int id; /* the order of definition */
  wf_st_dtype dtype;
  int ndim;
  int64_t shape[WF_ST_MAX_DIMS];
  int64_t count, bytes;
} tensor;

struct wf_st_writer {
  wf_replace file;
  bool laid_out;
  tensor *tensors; /* after the layout in the file's order */
  size_t n, room;
  json_t *metadata;
  int64_t *offsets; /* by id; after the layout */
  tensor **by_id;   /* by id; after the layout */
};

wf_status wf_st_create(const char *path, wf_st_writer **out) {
  wf_st_writer *w;
  WF_TRY(wf_make_parent(path));
  WF_CALLOC(w, TAG, 1);
  wf_status s = wf_replace_begin(path, &w->file);
  if (s == WF_OK && !(w->metadata = json_object())) {
    wf_replace_abandon(&w->file);
    s = WF_FAIL(WF_ENOMEM, "out of memory for the header of %s", path);
  }
  if (s == WF_OK)
    *out = w;
  else
    wf_free(w);
  return s;
}

static void release(wf_st_writer *w) {
  for (size_t i = 0; i < w->n; i++) wf_free(w->tensors[i].name);
  wf_free(w->tensors);
  wf_free(w->offsets);
  wf_free(w->by_id);
  json_decref(w->metadata);
  wf_free(w);
}

void wf_st_discard(wf_st_writer *w) {
  if (!w) return;
  wf_replace_abandon(&w->file);
  release(w);
}

static wf_status still_defining(const wf_st_writer *w) {
  return w->laid_out ? WF_FAIL(WF_EINTERNAL, "%s: defined after its header was written", w->file.path)
                     : WF_OK;
}

wf_status wf_st_set_metadata(wf_st_writer *w, const char *key, const char *value) {
  WF_TRY(still_defining(w));
  if (json_object_set_new(w->metadata, key, json_string(value)) != 0)
    return WF_FAIL(WF_EINVAL, "%s: the metadata %s are not UTF-8", w->file.path, key);
  return WF_OK;
}

wf_status wf_st_define(wf_st_writer *w, const char *name, wf_st_dtype dtype, int ndim, const int64_t *shape,
                       int *id) {
  tensor t = {.id = (int)w->n, .dtype = dtype, .ndim = ndim, .count = 1};
  WF_TRY(still_defining(w));
  if (name[0] == '\0' || strcmp(name, "__metadata__") == 0)
    return WF_FAIL(WF_EINVAL, "%s: '%s' cannot name a tensor", w->file.path, name);
  if (wf_st_dtype_size(dtype) == 0 || ndim < 0 || ndim > WF_ST_MAX_DIMS)
    return WF_FAIL(WF_EINVAL, "%s: %d dimensions of %s; at most %d are possible", name, ndim,
                   wf_st_dtype_name(dtype), WF_ST_MAX_DIMS);
  for (int i = 0; i < ndim; i++) {
    t.shape[i] = shape[i];
    if (shape[i] < 0 || __builtin_mul_overflow(t.count, shape[i], &t.count))
      return WF_FAIL(WF_EINVAL, "%s: dimension %d is %lld, which is impossible", name, i,
                     (long long)shape[i]);
  }
  if (__builtin_mul_overflow(t.count, wf_st_dtype_size(dtype), &t.bytes))
    return WF_FAIL(WF_EINVAL, "%s: its size is impossible", name);
  WF_TRY(wf_grow(TAG, (void **)&w->tensors, sizeof *w->tensors, w->n, &w->room));
  if (!(t.name = wf_strdup(TAG, name))) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  if (id) *id = t.id;
  w->tensors[w->n++] = t;
  return WF_OK;
}

/* The reference's order: types from its last to its first, which aligns wide ones before narrow ones; then
 * names. */
static int file_order(const void *a, const void *b) {
  static const int rank[WF_ST_N_DTYPES] = {
      [WF_ST_I64] = 0,  [WF_ST_F64] = 1, [WF_ST_F32] = 2, [WF_ST_U32] = 3, [WF_ST_I32] = 4,
      [WF_ST_BF16] = 5, [WF_ST_F16] = 6, [WF_ST_U16] = 7, [WF_ST_U8] = 8,  [WF_ST_BOOL] = 9,
  };
  const tensor *x = a, *y = b;
  int c = rank[x->dtype] - rank[y->dtype];
  return c ? c : strcmp(x->name, y->name);
}

/* {"dtype", "shape", "data_offsets"}; NULL when out of memory. */
static json_t *describe(const tensor *t, int64_t begin) {
  json_t *shape = json_array();
  for (int i = 0; i < t->ndim; i++) json_array_append_new(shape, json_integer(t->shape[i]));
  json_t *o = json_pack("{s:s, s:o, s:[I, I]}", "dtype", wf_st_dtype_name(t->dtype), "shape", shape,
                        "data_offsets", (json_int_t)begin, (json_int_t)(begin + t->bytes));
  return o && json_array_size(json_object_get(o, "shape")) == (size_t)t->ndim ? o : (json_decref(o), NULL);
}

/* The header's object; the metadata come first, by name. */
static wf_status build_header(const wf_st_writer *w, json_t *root, int64_t *bytes) {
  int64_t begin = 0;
  if (json_object_size(w->metadata) > 0) {
    char *text = json_dumps(w->metadata, JSON_SORT_KEYS);
    json_t *sorted = text ? json_loads(text, 0, NULL) : NULL; /* objects keep the order of their text */
    free(text);
    if (json_object_set_new(root, "__metadata__", sorted) != 0)
      return WF_FAIL(WF_ENOMEM, "out of memory for the header of %s", w->file.path);
  }
  for (size_t i = 0; i < w->n; i++) {
    const tensor *t = &w->tensors[i];
    if (json_object_get(root, t->name))
      return WF_FAIL(WF_EEXISTS, "%s: %s is defined twice", w->file.path, t->name);
    json_t *o = describe(t, begin);
    if (!o) return WF_FAIL(WF_ENOMEM, "out of memory for the header of %s", w->file.path);
    if (json_object_set_new(root, t->name, o) != 0)
      return WF_FAIL(WF_EINVAL, "%s: the name %s is not UTF-8", w->file.path, t->name);
    w->offsets[t->id] = begin;
    w->by_id[t->id] = &w->tensors[i];
    if (__builtin_add_overflow(begin, t->bytes, &begin))
      return WF_FAIL(WF_EINVAL, "%s would be too large", w->file.path);
  }
  *bytes = begin;
  return WF_OK;
}

/* The length, the text, and spaces up to a multiple of 8. */
static wf_status write_header(wf_st_writer *w, const char *text, int64_t *start) {
  static const char spaces[8] = "        ";
  int64_t n = (int64_t)strlen(text), whole = (n + 7) / 8 * 8;
  if (whole > WF_ST_MAX_HEADER)
    return WF_FAIL(WF_EINVAL, "%s: too many tensors for one file's header", w->file.path);
  WF_TRY(wf_write_at(w->file.fd, w->file.tmp, &whole, 8, 0));
  WF_TRY(wf_write_at(w->file.fd, w->file.tmp, text, n, 8));
  WF_TRY(wf_write_at(w->file.fd, w->file.tmp, spaces, whole - n, 8 + n));
  *start = 8 + whole;
  return WF_OK;
}

wf_status wf_st_layout(wf_st_writer *w) {
  int64_t data = 0, start = 0;
  WF_TRY(still_defining(w));
  w->laid_out = true;
  WF_CALLOC(w->offsets, TAG, w->n);
  WF_CALLOC(w->by_id, TAG, w->n);
  if (w->n > 0) qsort(w->tensors, w->n, sizeof *w->tensors, file_order);
  json_t *root = json_object();
  if (!root) return WF_FAIL(WF_ENOMEM, "out of memory for the header of %s", w->file.path);
  wf_status s = build_header(w, root, &data);
  char *text = s == WF_OK ? json_dumps(root, JSON_COMPACT) : NULL;
  json_decref(root);
  if (s == WF_OK)
    s = text ? write_header(w, text, &start)
             : WF_FAIL(WF_ENOMEM, "out of memory for the header of %s", w->file.path);
  free(text);
  WF_TRY(s);
  for (size_t i = 0; i < w->n; i++) w->offsets[i] += start;
  if (data > INT64_MAX - start) return WF_FAIL(WF_EINVAL, "%s would be too large", w->file.path);
  WF_TRY(wf_reserve(w->file.fd, w->file.tmp, start + data));
  return WF_OK;
}

wf_status wf_st_write(wf_st_writer *w, int id, int64_t first, int64_t count, const void *data) {
  if (!w->laid_out) return WF_FAIL(WF_EINTERNAL, "%s: written before its layout", w->file.path);
  const tensor *t = w->by_id[id];
  int64_t size = wf_st_dtype_size(t->dtype);
  if (first < 0 || count < 0 || first > t->count || count > t->count - first)
    return WF_FAIL(WF_EINTERNAL, "%s: elements %lld to %lld are written of %lld", t->name, (long long)first,
                   (long long)(first + count), (long long)t->count);
  WF_TRY(wf_write_at(w->file.fd, w->file.tmp, data, count * size, w->offsets[id] + first * size));
  return WF_OK;
}

wf_status wf_st_commit(wf_st_writer *w) {
  wf_status s = w->laid_out ? WF_OK : wf_st_layout(w);
  if (s == WF_OK)
    s = wf_replace_commit(&w->file);
  else
    wf_replace_abandon(&w->file);
  release(w);
  return s;
}
