/* Writing HDF5 containers. Definitions are kept in memory until wf_h5_layout writes them all in one go and
 * closes libhdf5's file again; from then on there are only offsets and our own writes. */
#include "core/h5_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/trailer.h"

#define TAG "file"

enum { SIDE_BUFFER = 1 << 18 };

typedef struct object {
  char *name;
  bool is_group, growing;
  wf_dtype dtype;
  int ndim;
  int64_t shape[WF_H5_MAX_DIMS];
  int64_t bytes, offset;      /* offset: after the layout */
  void *data;                 /* of wf_h5_put */
  int side;                   /* a growing dataset's rows: unnamed file, or -1 */
  char *buffer;               /* SIDE_BUFFER bytes in front of it */
  int64_t buffered, appended; /* bytes in the buffer; bytes in all */
} object;

typedef struct attribute {
  int object; /* -1: the root */
  char *name;
  char *string; /* NULL: a number */
  bool is_float;
  union {
    int64_t i64;
    double f64;
  } value;
} attribute;

struct wf_h5_writer {
  wf_replace file;
  bool laid_out;
  int64_t length; /* of the HDF5 part, after the layout */
  object *objects;
  attribute *attributes;
  size_t n_objects, n_attributes, room_objects, room_attributes;
};

wf_status wf_h5_create(const char *path, wf_h5_writer **out) {
  wf_h5_writer *w;
  WF_TRY(wf_make_parent(path));
  WF_CALLOC(w, TAG, 1);
  wf_status s = wf_replace_begin(path, &w->file);
  if (s != WF_OK) {
    wf_free(w);
    return s;
  }
  *out = w;
  return WF_OK;
}

/* Everything but the file itself. */
static void release(wf_h5_writer *w) {
  for (size_t i = 0; i < w->n_objects; i++) {
    object *o = &w->objects[i];
    wf_free(o->name);
    wf_free(o->data);
    wf_free(o->buffer);
    if (o->side >= 0) close(o->side);
  }
  for (size_t i = 0; i < w->n_attributes; i++) {
    wf_free(w->attributes[i].name);
    wf_free(w->attributes[i].string);
  }
  wf_free(w->objects);
  wf_free(w->attributes);
  wf_free(w);
}

void wf_h5_discard(wf_h5_writer *w) {
  if (!w) return;
  wf_replace_abandon(&w->file);
  release(w);
}

/* ---- Definitions ---- */

static wf_status still_defining(const wf_h5_writer *w) {
  return w->laid_out ? WF_FAIL(WF_EINTERNAL, "%s: defined after its layout was written", w->file.path)
                     : WF_OK;
}

static int find_object(const wf_h5_writer *w, const char *name, size_t length) {
  for (size_t i = 0; i < w->n_objects; i++)
    if (strncmp(w->objects[i].name, name, length) == 0 && w->objects[i].name[length] == '\0') return (int)i;
  return -1;
}

static wf_status add_object(wf_h5_writer *w, const char *name, size_t length, object **out) {
  WF_TRY(wf_grow(TAG, (void **)&w->objects, sizeof *w->objects, w->n_objects, &w->room_objects));
  object *o = &w->objects[w->n_objects];
  *o = (object){.is_group = true, .offset = -1, .side = -1};
  if (!(o->name = wf_strndup(TAG, name, length))) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  w->n_objects++;
  *out = o;
  return WF_OK;
}

/* The groups named by the first `length` bytes of `name` and by its parts. */
static wf_status add_groups(wf_h5_writer *w, const char *name, size_t length) {
  for (size_t n = 1; n <= length; n++) {
    if (n < length && name[n] != '/') continue;
    int at = find_object(w, name, n);
    if (at >= 0 && !w->objects[at].is_group)
      return WF_FAIL(WF_EEXISTS, "%s: %.*s is a dataset, not a group", w->file.path, (int)n, name);
    object *o;
    if (at < 0) WF_TRY(add_object(w, name, n, &o));
  }
  return WF_OK;
}

wf_status wf_h5_group(wf_h5_writer *w, const char *name) {
  WF_TRY(still_defining(w));
  WF_TRY(wf_h5_check_name(name));
  return add_groups(w, name, strlen(name));
}

/* Elements and bytes of a shape; 0-D is one element. */
static wf_status measure(const char *name, wf_dtype dtype, int ndim, const int64_t *shape, int64_t *bytes) {
  int64_t n = (int64_t)wf_dtype_size(dtype);
  if (n == 0 || ndim < 0 || ndim > WF_H5_MAX_DIMS)
    return WF_FAIL(WF_EINVAL, "%s: %d dimensions of %s; at most %d are possible", name, ndim,
                   wf_dtype_name(dtype), WF_H5_MAX_DIMS);
  for (int i = 0; i < ndim; i++)
    if (shape[i] < 0 || __builtin_mul_overflow(n, shape[i], &n))
      return WF_FAIL(WF_EINVAL, "%s: dimension %d is %lld, which is impossible", name, i,
                     (long long)shape[i]);
  *bytes = n;
  return WF_OK;
}

static wf_status define(wf_h5_writer *w, const char *name, wf_dtype dtype, int ndim, const int64_t *shape,
                        object **out) {
  WF_TRY(still_defining(w));
  WF_TRY(wf_h5_check_name(name));
  object o = {.dtype = dtype, .ndim = ndim, .offset = -1, .side = -1};
  if (ndim > 0 && ndim <= WF_H5_MAX_DIMS) memcpy(o.shape, shape, (size_t)ndim * sizeof *shape);
  o.growing = ndim > 0 && shape[0] == WF_H5_GROWING;
  if (o.growing) o.shape[0] = 0;
  WF_TRY(measure(name, dtype, ndim, o.shape, &o.bytes));
  if (find_object(w, name, strlen(name)) >= 0)
    return WF_FAIL(WF_EEXISTS, "%s: %s is defined twice", w->file.path, name);
  const char *slash = strrchr(name, '/');
  if (slash) WF_TRY(add_groups(w, name, (size_t)(slash - name)));
  WF_TRY(add_object(w, name, strlen(name), out));
  o.name = (*out)->name;
  **out = o;
  return WF_OK;
}

wf_status wf_h5_define(wf_h5_writer *w, const char *name, wf_dtype dtype, int ndim, const int64_t *shape,
                       int *id) {
  object *o;
  WF_TRY(define(w, name, dtype, ndim, shape, &o));
  if (id) *id = (int)(o - w->objects);
  return WF_OK;
}

wf_status wf_h5_put(wf_h5_writer *w, const char *name, wf_dtype dtype, int ndim, const int64_t *shape,
                    const void *data) {
  object *o;
  WF_TRY(define(w, name, dtype, ndim, shape, &o));
  if (o->growing) return WF_FAIL(WF_EINTERNAL, "%s: what is put has a fixed length", name);
  WF_ALLOC(o->data, TAG, (size_t)o->bytes);
  if (o->bytes > 0) memcpy(o->data, data, (size_t)o->bytes);
  return WF_OK;
}

/* A new or overwritten attribute without a value. */
static wf_status set_attribute(wf_h5_writer *w, const char *object, const char *name, attribute **out) {
  WF_TRY(still_defining(w));
  int at = object[0] == '\0' ? -1 : find_object(w, object, strlen(object));
  if (at < 0 && object[0] != '\0')
    return WF_FAIL(WF_EINTERNAL, "%s: attribute %s of %s, which is not defined", w->file.path, name, object);
  if (name[0] == '\0' || strlen(name) > WF_H5_MAX_NAME || strcmp(name, WF_H5_DTYPE) == 0)
    return WF_FAIL(WF_EINVAL, "%s: '%s' cannot name an attribute", w->file.path, name);
  for (size_t i = 0; i < w->n_attributes; i++) {
    attribute *a = &w->attributes[i];
    if (a->object != at || strcmp(a->name, name) != 0) continue;
    wf_free(a->string);
    a->string = NULL;
    *out = a;
    return WF_OK;
  }
  WF_TRY(wf_grow(TAG, (void **)&w->attributes, sizeof *w->attributes, w->n_attributes, &w->room_attributes));
  attribute *a = &w->attributes[w->n_attributes];
  *a = (attribute){.object = at};
  if (!(a->name = wf_strdup(TAG, name))) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  w->n_attributes++;
  *out = a;
  return WF_OK;
}

wf_status wf_h5_set_string(wf_h5_writer *w, const char *object, const char *name, const char *value) {
  attribute *a;
  if (strlen(value) > WF_H5_MAX_STRING)
    return WF_FAIL(WF_EINVAL, "attribute %s: a text of %zu bytes; at most %d fit", name, strlen(value),
                   WF_H5_MAX_STRING);
  char *copy = wf_strdup(TAG, value);
  if (!copy) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  wf_status s = set_attribute(w, object, name, &a);
  if (s == WF_OK)
    a->string = copy;
  else
    wf_free(copy);
  return s;
}

wf_status wf_h5_set_i64(wf_h5_writer *w, const char *object, const char *name, int64_t value) {
  attribute *a;
  WF_TRY(set_attribute(w, object, name, &a));
  a->is_float = false;
  a->value.i64 = value;
  return WF_OK;
}

wf_status wf_h5_set_f64(wf_h5_writer *w, const char *object, const char *name, double value) {
  attribute *a;
  WF_TRY(set_attribute(w, object, name, &a));
  a->is_float = true;
  a->value.f64 = value;
  return WF_OK;
}

/* ---- Growing datasets ---- */

static wf_status flush_side(wf_h5_writer *w, object *o) {
  WF_TRY(wf_write_at(o->side, w->file.tmp, o->buffer, o->buffered, o->appended - o->buffered));
  o->buffered = 0;
  return WF_OK;
}

static wf_status open_side(wf_h5_writer *w, object *o) {
  size_t size = strlen(w->file.tmp) + 24;
  char *name;
  if (!o->buffer) WF_ALLOC(o->buffer, TAG, SIDE_BUFFER);
  WF_ALLOC(name, TAG, size);
  snprintf(name, size, "%s.%d", w->file.tmp, (int)(o - w->objects));
  o->side = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  wf_status s = o->side < 0 ? wf_io_error(errno, "create", name) : wf_remove_file(name);
  wf_free(name);
  return s;
}

wf_status wf_h5_append(wf_h5_writer *w, int id, const void *data, int64_t rows) {
  object *o = &w->objects[id];
  int64_t bytes = (int64_t)wf_dtype_size(o->dtype);
  WF_TRY(still_defining(w));
  if (!o->growing || rows < 0) return WF_FAIL(WF_EINTERNAL, "%s does not grow", o->name);
  for (int i = 1; i < o->ndim; i++) bytes *= o->shape[i]; /* rows of 0 elements made it 0 */
  if (__builtin_mul_overflow(bytes, rows, &bytes) || bytes > INT64_MAX - o->appended)
    return WF_FAIL(WF_EINVAL, "%s: too many rows", o->name);
  if (o->side < 0) WF_TRY(open_side(w, o));
  if (bytes > SIDE_BUFFER - o->buffered) WF_TRY(flush_side(w, o));
  if (bytes > SIDE_BUFFER) {
    WF_TRY(wf_write_at(o->side, w->file.tmp, data, bytes, o->appended));
  } else if (bytes > 0) {
    memcpy(o->buffer + o->buffered, data, (size_t)bytes);
    o->buffered += bytes;
  }
  o->appended += bytes;
  o->shape[0] += rows;
  o->bytes = o->appended;
  return WF_OK;
}

int64_t wf_h5_rows(const wf_h5_writer *w, int id) {
  return w->objects[id].ndim > 0 ? w->objects[id].shape[0] : 1;
}

/* ---- The structure, by libhdf5 ---- */

/* The property lists and the file, open together. */
typedef struct session {
  const char *path;
  int fd, error; /* errno of the first write that failed, or 0 */
  hid_t access, creation, link, group, dataset, attribute, file;
} session;

static wf_status open_session(session *h) {
  h->access = wf_h5_access(h->fd, true, &h->error);
  h->creation = H5Pcreate(H5P_FILE_CREATE);
  h->link = H5Pcreate(H5P_LINK_CREATE);
  h->group = H5Pcreate(H5P_GROUP_CREATE);
  h->dataset = H5Pcreate(H5P_DATASET_CREATE);
  h->attribute = H5Pcreate(H5P_ATTRIBUTE_CREATE);
  if (h->access < 0 || H5Pset_obj_track_times(h->creation, false) < 0 ||
      H5Pset_char_encoding(h->link, H5T_CSET_UTF8) < 0 || H5Pset_obj_track_times(h->group, false) < 0 ||
      H5Pset_obj_track_times(h->dataset, false) < 0 || H5Pset_layout(h->dataset, H5D_CONTIGUOUS) < 0 ||
      H5Pset_alloc_time(h->dataset, H5D_ALLOC_TIME_EARLY) < 0 ||
      H5Pset_fill_time(h->dataset, H5D_FILL_TIME_NEVER) < 0 ||
      H5Pset_char_encoding(h->attribute, H5T_CSET_UTF8) < 0)
    return wf_h5_error(WF_EINTERNAL, "prepare", "the file", h->path);
  h->file = H5Fcreate(h->path, H5F_ACC_TRUNC, h->creation, h->access);
  return h->file < 0 ? wf_h5_error(WF_EIO, "create", "the file", h->path) : WF_OK;
}

static herr_t close_if(hid_t id, herr_t (*closer)(hid_t)) {
  return id < 0 ? 0 : closer(id);
}

/* Closing the file writes it. A failed write comes before what libhdf5 made of it. */
static wf_status close_session(session *h, wf_status s) {
  if (close_if(h->file, H5Fclose) < 0 && s == WF_OK) s = wf_h5_error(WF_EIO, "write", "the file", h->path);
  close_if(h->access, H5Pclose);
  close_if(h->creation, H5Pclose);
  close_if(h->link, H5Pclose);
  close_if(h->group, H5Pclose);
  close_if(h->dataset, H5Pclose);
  close_if(h->attribute, H5Pclose);
  return h->error ? wf_io_error(h->error, "write", h->path) : s;
}

static wf_status write_dataset(session *h, object *o) {
  hsize_t dims[WF_H5_MAX_DIMS];
  wf_status s = WF_OK;
  for (int i = 0; i < o->ndim; i++) dims[i] = (hsize_t)o->shape[i];
  hid_t space = o->ndim == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(o->ndim, dims, NULL);
  hid_t set =
      space < 0 ? space
                : H5Dcreate2(h->file, o->name, wf_h5_type(o->dtype), space, h->link, h->dataset, H5P_DEFAULT);
  if (set < 0) {
    s = wf_h5_error(WF_EIO, "create the dataset", o->name, h->path);
  } else {
    haddr_t offset = o->bytes > 0 ? H5Dget_offset(set) : 0;
    o->offset = (int64_t)offset;
    if (offset == HADDR_UNDEF) s = wf_h5_error(WF_EINTERNAL, "place the dataset", o->name, h->path);
  }
  if (close_if(set, H5Dclose) < 0 && s == WF_OK)
    s = wf_h5_error(WF_EIO, "write the dataset", o->name, h->path);
  close_if(space, H5Sclose);
  return s;
}

static wf_status write_group(session *h, const object *o) {
  hid_t group = H5Gcreate2(h->file, o->name, h->link, h->group, H5P_DEFAULT);
  if (group < 0 || H5Gclose(group) < 0) return wf_h5_error(WF_EIO, "create the group", o->name, h->path);
  return WF_OK;
}

/* `memory` describes `value`; `type` is what the file gets. */
static wf_status write_attribute(session *h, const char *object, const char *name, hid_t type, hid_t memory,
                                 const void *value) {
  hid_t on = H5Oopen(h->file, object[0] ? object : ".", H5P_DEFAULT);
  hid_t space = H5Screate(H5S_SCALAR);
  hid_t a =
      on < 0 || space < 0 ? H5I_INVALID_HID : H5Acreate2(on, name, type, space, h->attribute, H5P_DEFAULT);
  wf_status s = WF_OK;
  if (a < 0 || H5Awrite(a, memory, value) < 0) s = wf_h5_error(WF_EIO, "write the attribute", name, h->path);
  if (close_if(a, H5Aclose) < 0 && s == WF_OK) s = wf_h5_error(WF_EIO, "write the attribute", name, h->path);
  close_if(space, H5Sclose);
  close_if(on, H5Oclose);
  return s;
}

static wf_status write_string(session *h, const char *object, const char *name, const char *value) {
  hid_t type = H5Tcopy(H5T_C_S1);
  wf_status s = WF_OK;
  /* One byte more than the text, as a size of 0 is not possible. */
  if (type < 0 || H5Tset_size(type, strlen(value) + 1) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0)
    s = wf_h5_error(WF_EINTERNAL, "describe the attribute", name, h->path);
  if (s == WF_OK) s = write_attribute(h, object, name, type, type, value);
  close_if(type, H5Tclose);
  return s;
}

static wf_status write_structure(wf_h5_writer *w, session *h) {
  for (size_t i = 0; i < w->n_objects; i++) {
    object *o = &w->objects[i];
    if (o->is_group)
      WF_TRY(write_group(h, o));
    else
      WF_TRY(write_dataset(h, o));
    if (!o->is_group && o->dtype == WF_BF16) WF_TRY(write_string(h, o->name, WF_H5_DTYPE, "bf16"));
  }
  for (size_t i = 0; i < w->n_attributes; i++) {
    const attribute *a = &w->attributes[i];
    const char *object = a->object < 0 ? "" : w->objects[a->object].name;
    if (a->string)
      WF_TRY(write_string(h, object, a->name, a->string));
    else if (a->is_float)
      WF_TRY(write_attribute(h, object, a->name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &a->value.f64));
    else
      WF_TRY(write_attribute(h, object, a->name, H5T_STD_I64LE, H5T_NATIVE_INT64, &a->value.i64));
  }
  return WF_OK;
}

wf_status wf_h5_layout(wf_h5_writer *w) {
  WF_TRY(still_defining(w));
  w->laid_out = true;
  session h = {w->file.tmp, w->file.fd, 0, -1, -1, -1, -1, -1, -1, -1};
  wf_h5_guard guard;
  wf_h5_enter(&guard);
  wf_status s = open_session(&h);
  if (s == WF_OK) s = write_structure(w, &h);
  s = close_session(&h, s);
  wf_h5_leave(&guard);
  WF_TRY(s);
  WF_TRY(wf_file_size(w->file.fd, w->file.tmp, &w->length));
  WF_TRY(wf_reserve(w->file.fd, w->file.tmp, w->length));
  for (size_t i = 0; i < w->n_objects; i++) {
    object *o = &w->objects[i];
    if (o->data) {
      WF_TRY(wf_write_at(w->file.fd, w->file.tmp, o->data, o->bytes, o->offset));
      wf_free(o->data);
      o->data = NULL;
    }
    if (o->side >= 0) {
      WF_TRY(flush_side(w, o));
      WF_TRY(wf_copy_range(o->side, w->file.tmp, 0, w->file.fd, w->file.tmp, o->offset, o->bytes));
      close(o->side);
      o->side = -1;
    }
  }
  return WF_OK;
}

/* ---- Data and commit ---- */

wf_status wf_h5_write(wf_h5_writer *w, int id, int64_t first, int64_t count, const void *data) {
  const object *o = &w->objects[id];
  int64_t size = (int64_t)wf_dtype_size(o->dtype);
  if (!w->laid_out) return WF_FAIL(WF_EINTERNAL, "%s: written before the layout", o->name);
  if (first < 0 || count < 0 || first > o->bytes / size || count > o->bytes / size - first)
    return WF_FAIL(WF_EINTERNAL, "%s: elements %lld to %lld are written of %lld", o->name, (long long)first,
                   (long long)(first + count), (long long)(o->bytes / size));
  WF_TRY(wf_write_at(w->file.fd, w->file.tmp, data, count * size, o->offset + first * size));
  return WF_OK;
}

int64_t wf_h5_offset(const wf_h5_writer *w, int id) {
  return w->objects[id].offset;
}

const char *wf_h5_tmp_path(const wf_h5_writer *w) {
  return w->file.tmp;
}

static int by_offset(const void *a, const void *b) {
  const wf_trailer_range *x = a, *y = b;
  return (x->offset > y->offset) - (x->offset < y->offset);
}

static wf_status append_trailer(wf_h5_writer *w) {
  wf_trailer_range *ranges;
  int64_t n = 0;
  WF_CALLOC(ranges, TAG, w->n_objects);
  for (size_t i = 0; i < w->n_objects; i++) {
    const object *o = &w->objects[i];
    if (o->bytes > 0) ranges[n++] = (wf_trailer_range){o->name, o->offset, o->bytes, 0};
  }
  if (n > 0) qsort(ranges, (size_t)n, sizeof *ranges, by_offset);
  wf_status s = wf_trailer_append(w->file.fd, w->file.tmp, w->length, ranges, n);
  wf_free(ranges);
  return s;
}

wf_status wf_h5_commit(wf_h5_writer *w) {
  wf_status s = w->laid_out ? WF_OK : wf_h5_layout(w);
  if (s == WF_OK) s = append_trailer(w);
  if (s == WF_OK)
    s = wf_replace_commit(&w->file);
  else
    wf_replace_abandon(&w->file);
  release(w);
  return s;
}
