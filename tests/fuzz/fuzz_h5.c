/* fuzz_h5: our reading of an opened HDF5 file, on every structure that libhdf5 itself can write.
 *
 * The input is a program that builds a file: an instruction is a letter and the two bytes behind it, p and q.
 * Objects are named by p (one of 8 names in one of the groups made so far). The file gets right sums and is
 * opened; what Weft does not write must be refused, the rest must be readable to its end. g  a group d  a
 * dataset: q chooses its type, p and q its dimensions and layout a  an attribute of the last object: q
 * chooses its type, p its shape s  a soft link   x  an external link   h  a hard link to the last object or
 * the root   t  a named type
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <string.h>

#include "core/file.h"
#include "core/h5_impl.h"
#include "core/memory.h"
#include "core/trailer.h"
#include "tests/fuzz/memory_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_STEPS = 60, MAX_RANGES = MAX_STEPS };

typedef struct builder {
  hid_t file, last; /* last: the object made last, open; the root before */
  char groups[8][200];
  int n_groups;
  char names[MAX_RANGES][256];
  wf_trailer_range ranges[MAX_RANGES];
  int n_ranges;
} builder;

static void name_of(const builder *b, uint8_t p, char out[256]) {
  static const char *const words[8] = {"x", "y", "weight", "a b", "\xc3\xa9", "dtype", "0", ".hidden"};
  const char *group = b->groups[p / 8 % b->n_groups];
  snprintf(out, 256, "%s%s%s", group, group[0] ? "/" : "", words[p % 8]);
}

/* A type to be closed. */
static hid_t type_of(uint8_t q) {
  hid_t type;
  const hid_t plain[] = {H5T_IEEE_F32LE, H5T_IEEE_F64LE, H5T_STD_I32LE, H5T_STD_I64LE,  H5T_STD_U8LE,
                         H5T_STD_U16LE,  H5T_STD_U32LE,  H5T_STD_I8LE,  H5T_IEEE_F32BE, H5T_STD_I64BE};
  switch (q % 16) {
  case 10:
    type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, 1u + q / 16u);
    return type;
  case 11:
    type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    return type;
  case 12: type = H5Tcreate(H5T_OPAQUE, 4); return type;
  case 13:
    type = H5Tcreate(H5T_COMPOUND, 8);
    H5Tinsert(type, "a", 0, H5T_STD_I64LE);
    return type;
  case 14: return H5Tarray_create2(H5T_STD_I64LE, 1, (hsize_t[]){2});
  case 15:
    type = H5Tcopy(H5T_STD_I64LE);
    H5Tset_precision(type, 13);
    return type;
  default: return H5Tcopy(plain[q % 16]);
  }
}

static hid_t space_of(uint8_t p) {
  static const hsize_t dims[8] = {3, 0, 2, 1, 5, 1, 2, 1};
  if (p % 16 == 15) return H5Screate(H5S_NULL);
  return p % 9 == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(p % 9, dims, NULL);
}

static void take(builder *b, hid_t made) {
  if (made < 0) return;
  if (b->last >= 0) H5Oclose(b->last);
  b->last = made;
}

static void make_dataset(builder *b, const char *name, uint8_t p, uint8_t q) {
  static const hsize_t chunk[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  hid_t type = type_of(q), space = space_of((uint8_t)(p / 8 + q)), list = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_alloc_time(list, H5D_ALLOC_TIME_EARLY);
  int ndim = H5Sget_simple_extent_ndims(space);
  if (q >= 208 && ndim > 0) H5Pset_chunk(list, ndim, chunk);
  if (q >= 192 && q < 208) H5Pset_layout(list, H5D_COMPACT);
  if (q >= 176 && q < 192) H5Pset_external(list, "/nowhere", 0, H5F_UNLIMITED);
  hid_t set = H5Dcreate2(b->file, name, type, space, H5P_DEFAULT, list, H5P_DEFAULT);
  haddr_t offset = set < 0 ? HADDR_UNDEF : H5Dget_offset(set);
  int64_t bytes = set < 0 ? 0 : (int64_t)H5Dget_storage_size(set);
  if (offset != HADDR_UNDEF && bytes > 0 && b->n_ranges < MAX_RANGES) {
    int64_t lie = q >= 160 && q < 176 && bytes > 1; /* a table that disagrees */
    snprintf(b->names[b->n_ranges], sizeof b->names[0], "%s", name);
    b->ranges[b->n_ranges] = (wf_trailer_range){b->names[b->n_ranges], (int64_t)offset, bytes - lie, 0};
    b->n_ranges++;
  }
  take(b, set);
  H5Pclose(list);
  H5Sclose(space);
  H5Tclose(type);
}

static void make_attribute(builder *b, const char *name, uint8_t p, uint8_t q) {
  static const char zeros[4096];
  hid_t type = type_of(q), space = space_of(p % 32 < 24 ? 0 : p);
  const char *slash = strrchr(name, '/');
  hid_t a = H5Acreate2(b->last, slash ? slash + 1 : name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  if (a >= 0) {
    if (H5Tis_variable_str(type) <= 0) H5Awrite(a, type, zeros);
    H5Aclose(a);
  }
  H5Sclose(space);
  H5Tclose(type);
}

static void step(builder *b, uint8_t op, uint8_t p, uint8_t q) {
  char name[256];
  name_of(b, p, name);
  switch (op) {
  case 'g': {
    hid_t made = H5Gcreate2(b->file, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    if (made >= 0 && b->n_groups < 8 && strlen(name) < sizeof b->groups[0])
      memcpy(b->groups[b->n_groups++], name, strlen(name) + 1);
    take(b, made);
    break;
  }
  case 'd': make_dataset(b, name, p, q); break;
  case 'a': make_attribute(b, name, p, q); break;
  case 's': H5Lcreate_soft("/x", b->file, name, H5P_DEFAULT, H5P_DEFAULT); break;
  case 'x': H5Lcreate_external("/nowhere", "/x", b->file, name, H5P_DEFAULT, H5P_DEFAULT); break;
  case 'h': H5Olink(b->last, b->file, name, H5P_DEFAULT, H5P_DEFAULT); break;
  case 't': {
    hid_t type = type_of(q);
    H5Tcommit2(b->file, name, type, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Tclose(type);
    break;
  }
  default: break;
  }
}

static int by_offset(const void *a, const void *b) {
  const wf_trailer_range *x = a, *y = b;
  return (x->offset > y->offset) - (x->offset < y->offset);
}

/* The file with right sums; false when libhdf5 would not make it. */
static bool build(int fd, const char *path, const uint8_t *data, size_t size) {
  builder b = {.n_groups = 1};
  int error = 0;
  hid_t access = wf_h5_access(fd, true, &error); /* libhdf5's own drivers want a name in a folder */
  b.file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, access);
  H5Pclose(access);
  if (b.file < 0) abort();
  b.last = H5Oopen(b.file, "/", H5P_DEFAULT);
  for (size_t i = 0; i + 3 <= size && i < 3 * MAX_STEPS; i += 3) step(&b, data[i], data[i + 1], data[i + 2]);
  H5Oclose(b.last);
  if (H5Fclose(b.file) < 0 || error != 0) return false;
  int64_t length;
  qsort(b.ranges, (size_t)b.n_ranges, sizeof *b.ranges, by_offset);
  return wf_file_size(fd, path, &length) == WF_OK &&
         wf_trailer_append(fd, path, length, b.ranges, b.n_ranges) == WF_OK;
}

static void open_and_read(const char *path, wf_h5_check check) {
  static double values[1 << 12];
  wf_h5_file *f;
  const wf_h5_info *found;
  wf_status s = wf_h5_open(path, check, &f);
  if (s != WF_OK) {
    if (s != WF_EFORMAT) abort();
    return;
  }
  for (int64_t i = 0; i < wf_h5_entries(f); i++) {
    const wf_h5_info *o = wf_h5_entry(f, i);
    if (!wf_h5_has(f, o->name)) abort();
    wf_h5_has_attribute(f, o->name, "dtype");
    if (o->is_group) continue;
    if (wf_h5_find(f, o->name, &found) != WF_OK || o->count > (1 << 12)) abort();
    if (wf_h5_read(f, o, 0, o->count, values) != WF_OK) abort();
  }
  wf_h5_close(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char path[32];
  int64_t live = wf_mem_live();
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  int fd = memory_file("", 0);
  memory_file_path(fd, path);
  if (build(fd, path, data, size)) {
    open_and_read(path, WF_H5_CHECK_ALL);
    open_and_read(path, WF_H5_CHECK_LAZY);
  }
  close(fd);
  if (wf_mem_live() != live) abort();
  return 0;
}
