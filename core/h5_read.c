/* Reading HDF5 containers. wf_h5_open checks all sums, lets libhdf5 list what is there, and closes it again;
 * groups, datasets and attributes then live in memory, and data are read by pread. */
#include "core/h5_impl.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/option.h"
#include "core/trailer.h"

#define TAG "file"

enum { MAX_ENTRIES = 1 << 20, NEAREST_AMONG = 4096 };

typedef enum attribute_type { STRING, I64, F64 } attribute_type;

typedef struct attribute {
  const char *object; /* an entry's name, or "" */
  char *name, *string;
  attribute_type type;
  union {
    int64_t i64;
    double f64;
  } value;
} attribute;

struct wf_h5_file {
  char *path;
  int fd;
  wf_trailer trailer;
  wf_h5_info *entries;   /* sorted by name */
  attribute *attributes; /* sorted by object, then name */
  size_t n_entries, n_attributes, room_entries, room_attributes;
  int64_t *first_block;  /* of each entry, in the trailer's sums */
  atomic_uchar *checked; /* lazily: one for each block; NULL when all were checked */
};

void wf_h5_close(wf_h5_file *f) {
  if (!f) return;
  for (size_t i = 0; i < f->n_entries; i++) wf_free((char *)(uintptr_t)f->entries[i].name);
  for (size_t i = 0; i < f->n_attributes; i++) {
    wf_free(f->attributes[i].name);
    wf_free(f->attributes[i].string);
  }
  wf_free(f->entries);
  wf_free(f->attributes);
  wf_free(f->first_block);
  wf_free(f->checked);
  wf_trailer_free(&f->trailer);
  if (f->fd >= 0) close(f->fd);
  wf_free(f->path);
  wf_free(f);
}

/* ---- Listing, inside the guard ---- */

static wf_status foreign(const char *name, const char *what) {
  return WF_FAIL(WF_EFORMAT, "%s: %s, which Weft does not write", name[0] ? name : "/", what);
}

typedef struct visit {
  wf_h5_file *f;
  const char *object;
  wf_status status;
} visit;

static wf_status read_attribute(hid_t id, hid_t type, hid_t space, attribute *a) {
  size_t size = H5Tget_size(type);
  if (H5Sget_simple_extent_type(space) != H5S_SCALAR)
    return foreign(a->name, "an attribute of several values");
  if (H5Tget_class(type) == H5T_STRING) {
    if (H5Tis_variable_str(type) != 0 || size == 0 || size > WF_H5_MAX_STRING + 1)
      return foreign(a->name, "a text attribute of variable length");
    if (!(a->string = wf_calloc(TAG, size + 1, 1))) return WF_ENOMEM;
    a->type = STRING;
    if (H5Aread(id, type, a->string) < 0) return wf_h5_error(WF_EFORMAT, "read the attribute", a->name, NULL);
  } else if (H5Tequal(type, H5T_STD_I64LE) > 0) {
    a->type = I64;
    if (H5Aread(id, H5T_NATIVE_INT64, &a->value.i64) < 0)
      return wf_h5_error(WF_EFORMAT, "read the attribute", a->name, NULL);
  } else if (H5Tequal(type, H5T_IEEE_F64LE) > 0) {
    a->type = F64;
    if (H5Aread(id, H5T_NATIVE_DOUBLE, &a->value.f64) < 0)
      return wf_h5_error(WF_EFORMAT, "read the attribute", a->name, NULL);
  } else {
    return foreign(a->name, "an attribute of another type");
  }
  return WF_OK;
}

static wf_status add_attribute(visit *v, hid_t object, const char *name) {
  wf_h5_file *f = v->f;
  if (f->n_attributes >= MAX_ENTRIES || strlen(name) > WF_H5_MAX_NAME)
    return foreign(v->object, "too many attributes or too long a name of one");
  WF_TRY(wf_grow(TAG, (void **)&f->attributes, sizeof *f->attributes, f->n_attributes, &f->room_attributes));
  attribute *a = &f->attributes[f->n_attributes];
  *a = (attribute){.object = v->object};
  if (!(a->name = wf_strdup(TAG, name))) return WF_ENOMEM;
  f->n_attributes++;
  hid_t id = H5Aopen(object, name, H5P_DEFAULT);
  hid_t type = id < 0 ? id : H5Aget_type(id), space = id < 0 ? id : H5Aget_space(id);
  wf_status s = type < 0 || space < 0 ? wf_h5_error(WF_EFORMAT, "open the attribute", name, NULL)
                                      : read_attribute(id, type, space, a);
  if (space >= 0) H5Sclose(space);
  if (type >= 0) H5Tclose(type);
  if (id >= 0) H5Aclose(id);
  return s;
}

static herr_t on_attribute(hid_t object, const char *name, const H5A_info_t *info, void *data) {
  visit *v = data;
  (void)info;
  v->status = add_attribute(v, object, name);
  return v->status == WF_OK ? 0 : 1;
}

static wf_status read_attributes(wf_h5_file *f, hid_t object, const char *name) {
  visit v = {f, name, WF_OK};
  hsize_t at = 0;
  herr_t r = H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, &at, on_attribute, &v);
  WF_TRY(v.status);
  return r < 0 ? wf_h5_error(WF_EFORMAT, "list the attributes of", name[0] ? name : "/", NULL) : WF_OK;
}

static wf_status read_shape(hid_t set, wf_h5_info *o) {
  hsize_t dims[WF_H5_MAX_DIMS];
  hid_t space = H5Dget_space(set);
  wf_status s = WF_OK;
  H5S_class_t class = space < 0 ? H5S_NO_CLASS : H5Sget_simple_extent_type(space);
  o->ndim = class == H5S_SCALAR ? 0 : class == H5S_SIMPLE ? H5Sget_simple_extent_ndims(space) : -1;
  if (o->ndim < 0 || o->ndim > WF_H5_MAX_DIMS)
    s = foreign(o->name, "a dataset without dimensions or with too many");
  else if (o->ndim > 0 && H5Sget_simple_extent_dims(space, dims, NULL) != o->ndim)
    s = wf_h5_error(WF_EFORMAT, "read the shape of", o->name, NULL);
  if (space >= 0) H5Sclose(space);
  WF_TRY(s);
  o->count = 1;
  for (int i = 0; i < o->ndim; i++) {
    o->shape[i] = (int64_t)dims[i];
    if (dims[i] > INT64_MAX || __builtin_mul_overflow(o->count, o->shape[i], &o->count))
      return foreign(o->name, "an impossible shape");
  }
  if (__builtin_mul_overflow(o->count, (int64_t)wf_dtype_size(o->dtype), &o->bytes))
    return foreign(o->name, "an impossible shape");
  return WF_OK;
}

/* The data must lie in one piece where the trailer, which is checked already, says that they do. */
static wf_status read_place(const wf_h5_file *f, hid_t set, wf_h5_info *o) {
  hid_t list = H5Dget_create_plist(set);
  bool plain = list >= 0 && H5Pget_layout(list) == H5D_CONTIGUOUS && H5Pget_external_count(list) == 0;
  if (list >= 0) H5Pclose(list);
  if (!plain) return foreign(o->name, "a dataset in chunks or in other files");
  if (o->count == 0) return WF_OK;
  const wf_trailer_range *r = wf_trailer_find(&f->trailer, o->name);
  haddr_t offset = H5Dget_offset(set);
  if (!r || offset == HADDR_UNDEF || r->bytes != o->bytes || (haddr_t)r->offset != offset)
    return WF_FAIL(WF_EFORMAT, "%s: the trailer has its data elsewhere, or not at all", o->name);
  o->offset = r->offset;
  return WF_OK;
}

static wf_status read_dataset(wf_h5_file *f, hid_t set, wf_h5_info *o) {
  hid_t type = H5Dget_type(set);
  bool known = type >= 0 && wf_h5_parse_type(type, &o->dtype);
  if (type >= 0) H5Tclose(type);
  if (!known) return foreign(o->name, "elements of another type");
  if (o->dtype == WF_U16 && H5Aexists(set, WF_H5_DTYPE) > 0) o->dtype = WF_BF16;
  WF_TRY(read_shape(set, o));
  return read_place(f, set, o);
}

static wf_status list_group(wf_h5_file *f, hid_t group, const char *name, int depth);

/* One thing in a group, given by its full path; `leaf` is its last part. */
static wf_status read_entry(wf_h5_file *f, hid_t parent, const char *leaf, const char *path, int depth) {
  if (f->n_entries >= MAX_ENTRIES) return foreign(path, "more than a million groups and datasets");
  WF_TRY(wf_grow(TAG, (void **)&f->entries, sizeof *f->entries, f->n_entries, &f->room_entries));
  wf_h5_info *o = &f->entries[f->n_entries];
  *o = (wf_h5_info){.name = wf_strdup(TAG, path)};
  const char *name = o->name; /* entries may move */
  if (!name) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  f->n_entries++;
  hid_t id = H5Oopen(parent, leaf, H5P_DEFAULT);
  if (id < 0) return wf_h5_error(WF_EFORMAT, "open", name, NULL);
  H5I_type_t kind = H5Iget_type(id);
  wf_status s = WF_OK;
  o->is_group = kind == H5I_GROUP;
  if (kind == H5I_DATASET)
    s = read_dataset(f, id, o);
  else if (kind != H5I_GROUP)
    s = foreign(name, "something neither a group nor a dataset");
  if (s == WF_OK) s = read_attributes(f, id, name);
  if (s == WF_OK && kind == H5I_GROUP) s = list_group(f, id, name, depth + 1);
  H5Oclose(id);
  return s;
}

static wf_status list_group(wf_h5_file *f, hid_t group, const char *name, int depth) {
  H5G_info_t info;
  if (depth > WF_H5_MAX_DEPTH) return foreign(name, "groups too deep inside each other");
  if (H5Gget_info(group, &info) < 0) return wf_h5_error(WF_EFORMAT, "list", name[0] ? name : "/", NULL);
  for (hsize_t i = 0; i < info.nlinks; i++) {
    char path[WF_H5_MAX_NAME + 2];
    size_t start = (size_t)snprintf(path, sizeof path, "%s%s", name, name[0] ? "/" : "");
    size_t room = sizeof path - start; /* with the NUL */
    H5L_info_t link;
    ssize_t n =
        H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, i, path + start, room, H5P_DEFAULT);
    if (n <= 0 || (size_t)n >= room || start + (size_t)n > WF_H5_MAX_NAME)
      return foreign(name, "too long a name");
    if (H5Lget_info(group, path + start, &link, H5P_DEFAULT) < 0)
      return wf_h5_error(WF_EFORMAT, "open", path, NULL);
    if (link.type != H5L_TYPE_HARD) return foreign(path, "a link to something elsewhere");
    WF_TRY(read_entry(f, group, path + start, path, depth));
  }
  return WF_OK;
}

static wf_status list_file(wf_h5_file *f) {
  wf_status s;
  int error = 0; /* nothing is written */
  hid_t access = wf_h5_access(f->fd, false, &error);
  hid_t file = access < 0 ? access : H5Fopen(f->path, H5F_ACC_RDONLY, access);
  hid_t root = file < 0 ? file : H5Gopen2(file, "/", H5P_DEFAULT);
  if (root < 0) {
    s = wf_h5_error(WF_EFORMAT, "open", "the HDF5 part", NULL);
  } else {
    s = read_attributes(f, root, "");
    if (s == WF_OK) s = list_group(f, root, "", 0);
    if (s == WF_EFORMAT) wf_context(s, "%s", f->path);
  }
  if (root >= 0) H5Gclose(root);
  if (file >= 0) H5Fclose(file);
  if (access >= 0) H5Pclose(access);
  return s;
}

/* ---- Opening ---- */

static int by_name(const void *a, const void *b) {
  const wf_h5_info *x = a, *y = b;
  return strcmp(x->name, y->name);
}

static int by_object(const void *a, const void *b) {
  const attribute *x = a, *y = b;
  int c = strcmp(x->object, y->object);
  return c ? c : strcmp(x->name, y->name);
}

static wf_status open_checked(wf_h5_file *f, const char *path, wf_h5_check check) {
  if (!(f->path = wf_strdup(TAG, path))) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  WF_TRY(wf_open_read(path, &f->fd));
  WF_TRY(wf_trailer_read(f->fd, path, &f->trailer));
  if (check == WF_H5_CHECK_ALL)
    WF_TRY(wf_trailer_check_blocks(&f->trailer, f->fd, path, 0, f->trailer.n_blocks));
  else
    WF_CALLOC(f->checked, TAG, f->trailer.n_blocks);
  wf_h5_guard guard;
  wf_h5_enter(&guard);
  wf_status s = list_file(f);
  wf_h5_leave(&guard);
  WF_TRY(s);
  if (f->n_entries > 0) qsort(f->entries, f->n_entries, sizeof *f->entries, by_name);
  if (f->n_attributes > 0) qsort(f->attributes, f->n_attributes, sizeof *f->attributes, by_object);
  WF_CALLOC(f->first_block, TAG, f->n_entries);
  for (size_t i = 0; i < f->n_entries; i++)
    if (f->entries[i].bytes > 0)
      f->first_block[i] = wf_trailer_find(&f->trailer, f->entries[i].name)->first_block;
  return WF_OK;
}

wf_status wf_h5_open(const char *path, wf_h5_check check, wf_h5_file **out) {
  wf_h5_file *f;
  WF_CALLOC(f, TAG, 1);
  f->fd = -1;
  wf_status s = open_checked(f, path, check);
  if (s == WF_OK)
    *out = f;
  else
    wf_h5_close(f);
  return s;
}

bool wf_h5_looks_like(const char *path) {
  int fd;
  if (wf_open_read(path, &fd) != WF_OK) {
    wf_error_clear();
    return false;
  }
  bool yes = wf_trailer_looks_like(fd, path);
  close(fd);
  return yes;
}

/* ---- Looking things up ---- */

const char *wf_h5_path(const wf_h5_file *f) {
  return f->path;
}

int64_t wf_h5_entries(const wf_h5_file *f) {
  return (int64_t)f->n_entries;
}

const wf_h5_info *wf_h5_entry(const wf_h5_file *f, int64_t index) {
  return &f->entries[index];
}

static const wf_h5_info *find_entry(const wf_h5_file *f, const char *name) {
  wf_h5_info key = {.name = name};
  return f->n_entries ? bsearch(&key, f->entries, f->n_entries, sizeof *f->entries, by_name) : NULL;
}

bool wf_h5_has(const wf_h5_file *f, const char *name) {
  return find_entry(f, name) != NULL;
}

/* Hints name the nearest of a file's datasets. */
static wf_status no_such(const wf_h5_file *f, const char *name) {
  wf_status s = WF_FAIL(WF_ENOTFOUND, "%s has no dataset %s", f->path, name);
  const char *names[NEAREST_AMONG];
  int n = 0;
  for (size_t i = 0; i < f->n_entries && n < NEAREST_AMONG; i++)
    if (!f->entries[i].is_group) names[n++] = f->entries[i].name;
  const char *nearest = wf_nearest_name(name, names, n);
  return nearest ? wf_hint(s, "it has %s", nearest) : s;
}

wf_status wf_h5_find(const wf_h5_file *f, const char *name, const wf_h5_info **info) {
  const wf_h5_info *o = find_entry(f, name);
  if (!o) return no_such(f, name);
  if (o->is_group) return WF_FAIL(WF_ENOTFOUND, "%s: %s is a group, not a dataset", f->path, name);
  *info = o;
  return WF_OK;
}

/* A shape as text: "[2, 3]", any length as "*". */
static const char *shape_text(int ndim, const int64_t *shape, char *out, size_t size) {
  size_t n = (size_t)snprintf(out, size, "[");
  for (int i = 0; i < ndim && n < size; i++) {
    if (shape[i] < 0)
      n += (size_t)snprintf(out + n, size - n, "%s*", i ? ", " : "");
    else
      n += (size_t)snprintf(out + n, size - n, "%s%lld", i ? ", " : "", (long long)shape[i]);
  }
  if (n < size) snprintf(out + n, size - n, "]");
  return out;
}

wf_status wf_h5_expect(const wf_h5_file *f, const char *name, wf_dtype dtype, int ndim, const int64_t *shape,
                       const wf_h5_info **info) {
  const wf_h5_info *o;
  char have[160], want[160];
  WF_TRY(wf_h5_find(f, name, &o));
  bool fits = o->dtype == dtype && o->ndim == ndim;
  for (int i = 0; i < ndim && fits; i++) fits = shape[i] < 0 || shape[i] == o->shape[i];
  if (!fits)
    return WF_FAIL(WF_EFORMAT, "%s: %s is %s %s, not %s %s", f->path, name, wf_dtype_name(o->dtype),
                   shape_text(o->ndim, o->shape, have, sizeof have), wf_dtype_name(dtype),
                   shape_text(ndim, shape, want, sizeof want));
  *info = o;
  return WF_OK;
}

/* ---- Data ---- */

/* Check the blocks that bytes [from, from + bytes) of a dataset touch; `data` holds these bytes. Blocks that
 * lie wholly in them are checked where they are, the others are read again. */
static wf_status check_touched(const wf_h5_file *f, const wf_h5_info *info, int64_t from, int64_t bytes,
                               const char *data) {
  int64_t first = f->first_block[info - f->entries];
  for (int64_t b = from / WF_TRAILER_BLOCK; b <= (from + bytes - 1) / WF_TRAILER_BLOCK; b++) {
    if (atomic_load_explicit(&f->checked[first + b], memory_order_relaxed)) continue;
    int64_t offset, size;
    wf_trailer_block(&f->trailer, first + b, &offset, &size);
    int64_t start = offset - info->offset;
    if (start >= from && start + size <= from + bytes)
      WF_TRY(wf_trailer_check_memory(&f->trailer, f->path, first + b, data + (start - from)));
    else
      WF_TRY(wf_trailer_check_blocks(&f->trailer, f->fd, f->path, first + b, 1));
    atomic_store_explicit(&f->checked[first + b], 1, memory_order_relaxed);
  }
  return WF_OK;
}

wf_status wf_h5_read(const wf_h5_file *f, const wf_h5_info *info, int64_t first, int64_t count, void *data) {
  if (first < 0 || count < 0 || first > info->count || count > info->count - first)
    return WF_FAIL(WF_EINTERNAL, "%s: elements %lld to %lld of %s are read, which has %lld", f->path,
                   (long long)first, (long long)(first + count), info->name, (long long)info->count);
  if (count == 0) return WF_OK;
  int64_t size = (int64_t)wf_dtype_size(info->dtype);
  WF_TRY(wf_read_at(f->fd, f->path, data, count * size, info->offset + first * size));
  if (f->checked) WF_TRY(check_touched(f, info, first * size, count * size, data));
  return WF_OK;
}

/* ---- Attributes ---- */

static const attribute *find_attribute(const wf_h5_file *f, const char *object, const char *name) {
  attribute key = {.object = object, .name = (char *)(uintptr_t)name};
  return f->n_attributes ? bsearch(&key, f->attributes, f->n_attributes, sizeof key, by_object) : NULL;
}

bool wf_h5_has_attribute(const wf_h5_file *f, const char *object, const char *name) {
  return find_attribute(f, object, name) != NULL;
}

static wf_status get_attribute(const wf_h5_file *f, const char *object, const char *name, attribute_type type,
                               const attribute **out) {
  static const char *const words[] = {[STRING] = "a text", [I64] = "an i64", [F64] = "an f64"};
  const attribute *a = find_attribute(f, object, name);
  const char *of = object[0] ? object : "/";
  if (!a) return WF_FAIL(WF_ENOTFOUND, "%s: %s has no attribute %s", f->path, of, name);
  if (a->type != type)
    return WF_FAIL(WF_EFORMAT, "%s: attribute %s of %s is %s, not %s", f->path, name, of, words[a->type],
                   words[type]);
  *out = a;
  return WF_OK;
}

wf_status wf_h5_get_string(const wf_h5_file *f, const char *object, const char *name, const char **value) {
  const attribute *a;
  WF_TRY(get_attribute(f, object, name, STRING, &a));
  *value = a->string;
  return WF_OK;
}

wf_status wf_h5_get_i64(const wf_h5_file *f, const char *object, const char *name, int64_t *value) {
  const attribute *a;
  WF_TRY(get_attribute(f, object, name, I64, &a));
  *value = a->value.i64;
  return WF_OK;
}

wf_status wf_h5_get_f64(const wf_h5_file *f, const char *object, const char *name, double *value) {
  const attribute *a;
  WF_TRY(get_attribute(f, object, name, F64, &a));
  *value = a->value.f64;
  return WF_OK;
}
