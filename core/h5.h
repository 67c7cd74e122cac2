/* h5: the HDF5 container of token stores, checkpoints and results.
 *
 * A Weft file is a plain HDF5 file (h5py reads it by the names given here) with a trailer behind its end that
 * holds a digest of all its metadata and a sum for every MiB of its data (core/trailer.h). Datasets are
 * contiguous, so raw data are read and written by pread / pwrite at their offset: any range, in any order, by
 * any thread or process. libhdf5 itself is called for a moment only: to write the structure, and to read it
 * after every sum was found right (it crashes on damaged files). Equal calls in equal order give equal bytes.
 *
 * Names are paths without a leading slash, "model/embedding.weight"; "" is the root; groups above a name are
 * made by themselves. Attributes are scalars: fixed-length UTF-8 strings, i64, f64. Datasets have 0 to 6
 * dimensions; bf16 is stored as u16 with the attribute dtype = "bf16".
 *
 * Writing                                              Reading
 *
 *   wf_h5_create(path, &w)                               wf_h5_open(path, WF_H5_CHECK_ALL, &f)
 *   wf_h5_set_i64(w, "", "step", 100)                    wf_h5_get_i64(f, "", "step", &step)
 *   wf_h5_define(w, "model/x", WF_F32, 2, shape, &x)     wf_h5_find(f, "model/x", &info)
 *   wf_h5_layout(w)                                      wf_h5_read(f, info, first, count, data)
 *   wf_h5_write(w, x, first, count, data)  (any order)   wf_h5_close(f)
 *   wf_h5_commit(w)      (or wf_h5_discard(w))
 *
 * In h5py:  f = h5py.File(path); f.attrs["step"]; f["model/x"][:];  strings are bytes: .decode()
 */
#ifndef WF_CORE_H5_H
#define WF_CORE_H5_H

#include <stdbool.h>
#include <stdint.h>
#include "core/dtype.h"
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  WF_H5_MAX_DIMS = 6,
  WF_H5_MAX_NAME = 1023,    /* bytes of a whole path, and of an attribute's name */
  WF_H5_MAX_STRING = 60000, /* bytes of a string attribute; longer texts are u8 datasets (wf_h5_put) */
  WF_H5_MAX_DEPTH = 32      /* groups inside groups */
};
#define WF_H5_GROWING INT64_C(-1) /* as shape[0]: the length is known only after the last wf_h5_append */

/* ---- Writing
 * -------------------------------------------------------------------------------------------------
 *
 * Two stages. Before wf_h5_layout: define groups, datasets and attributes, append to growing datasets. After
 * it: offsets are fixed and data of the others are written. Calls of the wrong stage are WF_EINTERNAL. One
 * thread defines; wf_h5_write may be called by many. */
typedef struct wf_h5_writer wf_h5_writer;

/* Starts `path.tmp-PID` (and makes the folder it lies in). On success *w is released by commit or discard. */
wf_status wf_h5_create(const char *path, wf_h5_writer **w);

wf_status wf_h5_group(wf_h5_writer *w, const char *name); /* an existing group is fine */

/* A dataset of shape[ndim]; *id (may be NULL) names it below. shape[0] may be WF_H5_GROWING. An existing
 * name: WF_EEXISTS. */
wf_status wf_h5_define(wf_h5_writer *w, const char *name, wf_dtype dtype, int ndim, const int64_t *shape,
                       int *id);

/* A small dataset with its data, which are copied and written by wf_h5_layout. */
wf_status wf_h5_put(wf_h5_writer *w, const char *name, wf_dtype dtype, int ndim, const int64_t *shape,
                    const void *data);

/* Attributes of the root (""), a group or a dataset defined before. An existing one is overwritten.
 * Strings must be UTF-8 without NUL. */
wf_status wf_h5_set_string(wf_h5_writer *w, const char *object, const char *name, const char *value);
wf_status wf_h5_set_i64(wf_h5_writer *w, const char *object, const char *name, int64_t value);
wf_status wf_h5_set_f64(wf_h5_writer *w, const char *object, const char *name, double value);

/* Add `rows` rows (elements, when 1-D) to a growing dataset. They wait in an unnamed file in the same folder,
 * so memory stays small and the disk briefly holds them twice. */
wf_status wf_h5_append(wf_h5_writer *w, int id, const void *data, int64_t rows);
int64_t wf_h5_rows(const wf_h5_writer *w, int id); /* rows so far */

/* Write the HDF5 structure, reserve the space, and copy in what was put and appended. */
wf_status wf_h5_layout(wf_h5_writer *w);

/* Elements [first, first + count) of the flattened dataset. Elements never written are zero. */
wf_status wf_h5_write(wf_h5_writer *w, int id, int64_t first, int64_t count, const void *data);

/* For other processes: open wf_h5_tmp_path for writing, wf_write_at below wf_h5_offset, wf_sync, and only
 * then may the creator commit. Offset in bytes, -1 before the layout; the path lives as long as w. */
int64_t wf_h5_offset(const wf_h5_writer *w, int id);
const char *wf_h5_tmp_path(const wf_h5_writer *w);

/* Layout if not done, sums, trailer, sync, rename. Releases w, whether it fails or not; on failure the
 * temporary is gone and an earlier file of that name is as before. */
wf_status wf_h5_commit(wf_h5_writer *w);
void wf_h5_discard(wf_h5_writer *w); /* removes the temporary; NULL is allowed; keeps the recorded error */

/* ---- Reading
 * -------------------------------------------------------------------------------------------------
 *
 * After wf_h5_open everything here is thread-safe and without libhdf5. */
typedef struct wf_h5_file wf_h5_file;

typedef enum wf_h5_check {
  WF_H5_CHECK_ALL, /* every data block before wf_h5_open returns */
  WF_H5_CHECK_LAZY /* each block when wf_h5_read first touches it; metadata always at once */
} wf_h5_check;

typedef struct wf_h5_info {
  const char *name; /* full path; lives as long as the file */
  bool is_group;    /* then the rest is zero */
  wf_dtype dtype;
  int ndim;
  int64_t shape[WF_H5_MAX_DIMS];
  int64_t count, bytes; /* elements of the whole; bytes of the whole */
  int64_t offset;       /* bytes from the file's start */
} wf_h5_info;

/* WF_ENOTFOUND, WF_EIO, or WF_EFORMAT: empty, cut short, not from Weft, or damaged, naming the part that is.
 */
wf_status wf_h5_open(const char *path, wf_h5_check check, wf_h5_file **f);
void wf_h5_close(wf_h5_file *f); /* NULL is allowed */

const char *wf_h5_path(const wf_h5_file *f);
int64_t wf_h5_entries(const wf_h5_file *f);                        /* groups (the root not) and datasets */
const wf_h5_info *wf_h5_entry(const wf_h5_file *f, int64_t index); /* sorted by name */

/* The dataset `name`: WF_ENOTFOUND with the nearest name otherwise, or when it is a group. */
wf_status wf_h5_find(const wf_h5_file *f, const char *name, const wf_h5_info **info);
bool wf_h5_has(const wf_h5_file *f, const char *name); /* a dataset or a group */

/* As wf_h5_find, and WF_EFORMAT unless dtype, number of dimensions and shape are these (-1: any length). */
wf_status wf_h5_expect(const wf_h5_file *f, const char *name, wf_dtype dtype, int ndim, const int64_t *shape,
                       const wf_h5_info **info);

/* Elements [first, first + count) of the flattened dataset into data. */
wf_status wf_h5_read(const wf_h5_file *f, const wf_h5_info *info, int64_t first, int64_t count, void *data);

/* Attributes: WF_ENOTFOUND when there is none, WF_EFORMAT when it has another type. Strings live as long as
 * f. */
wf_status wf_h5_get_string(const wf_h5_file *f, const char *object, const char *name, const char **value);
wf_status wf_h5_get_i64(const wf_h5_file *f, const char *object, const char *name, int64_t *value);
wf_status wf_h5_get_f64(const wf_h5_file *f, const char *object, const char *name, double *value);
bool wf_h5_has_attribute(const wf_h5_file *f, const char *object, const char *name);

/* Is this the start and end of a Weft HDF5 file, as far as its first and last bytes tell? For choosing how to
 * read a file the user named; false also when it cannot be read. */
bool wf_h5_looks_like(const char *path);

#ifdef __cplusplus
}
#endif

#endif
