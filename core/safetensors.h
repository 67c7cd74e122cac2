/* safetensors: the weight files of the Hugging Face libraries, read and written.
 *
 * Format: u64 little-endian header length, a JSON header {"name": {"dtype", "shape", "data_offsets": [begin,
 * end]},
 * "__metadata__": {string: string}}, then the tensors' bytes, offsets counted from the header's end. A model
 * may be cut into shards: model.safetensors.index.json names the file of every tensor. Opening reads headers
 * only; tensors are read by name when asked for. Everything in the header is checked before it is used:
 * sizes, bounds, overlaps and holes, doubled names, unknown types.
 */
#ifndef WF_CORE_SAFETENSORS_H
#define WF_CORE_SAFETENSORS_H

#include <stdbool.h>
#include <stdint.h>
#include "core/dtype.h"
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_ST_MAX_DIMS = 8 };
#define WF_ST_MAX_HEADER INT64_C(100000000) /* bytes, as the reference implementation */

typedef enum wf_st_dtype {
  WF_ST_F32,
  WF_ST_F64,
  WF_ST_BF16,
  WF_ST_F16,
  WF_ST_I32,
  WF_ST_I64,
  WF_ST_U8,
  WF_ST_U16,
  WF_ST_U32,
  WF_ST_BOOL,
  WF_ST_N_DTYPES
} wf_st_dtype;

const char *wf_st_dtype_name(wf_st_dtype d); /* "F32", ... */
int64_t wf_st_dtype_size(wf_st_dtype d);     /* bytes an element */
wf_st_dtype wf_st_from_dtype(wf_dtype d);    /* every wf_dtype has one */

/* ---- Reading
 * ------------------------------------------------------------------------------------------------- */
typedef struct wf_safetensors wf_safetensors;

typedef struct wf_st_info {
  const char *name; /* lives as long as the file */
  wf_st_dtype dtype;
  int ndim;
  int64_t shape[WF_ST_MAX_DIMS];
  int64_t count, bytes;
  int64_t offset; /* bytes from the start of its shard */
  int shard;      /* which file */
} wf_st_info;

/* `path`: a .safetensors file, a .index.json file, or a folder holding model.safetensors or
 * model.safetensors.index.json. WF_ENOTFOUND, WF_EIO, WF_EFORMAT. */
wf_status wf_st_open(const char *path, wf_safetensors **st);
void wf_st_close(wf_safetensors *st); /* NULL is allowed */

int64_t wf_st_count(const wf_safetensors *st);
const wf_st_info *wf_st_at(const wf_safetensors *st, int64_t index); /* sorted by name */
bool wf_st_has(const wf_safetensors *st, const char *name);

/* WF_ENOTFOUND with the nearest name. */
wf_status wf_st_find(const wf_safetensors *st, const char *name, const wf_st_info **info);

/* Elements [first, first + count), bytes as they are in the file. Thread-safe. */
wf_status wf_st_read(const wf_safetensors *st, const wf_st_info *info, int64_t first, int64_t count,
                     void *data);

/* The same as float32: F32, F64 (rounded), BF16 and F16; other types are WF_EUNSUPPORTED. Thread-safe. */
wf_status wf_st_read_f32(const wf_safetensors *st, const wf_st_info *info, int64_t first, int64_t count,
                         float *data);

const char *wf_st_metadata(const wf_safetensors *st,
                           const char *key); /* of the first shard; NULL when absent */

/* ---- Writing
 * -------------------------------------------------------------------------------------------------
 *
 * Define all tensors, then write their data in any order, then commit (temporary, sync, rename: core/file.h).
 * The header is sorted as the reference does (wider types first, then by name), padded so that data start at
 * a multiple of 8 bytes; equal content gives equal bytes whatever the order of calls. */
typedef struct wf_st_writer wf_st_writer;

wf_status wf_st_create(const char *path, wf_st_writer **w); /* released by commit or discard */
wf_status wf_st_set_metadata(wf_st_writer *w, const char *key, const char *value); /* UTF-8 */
wf_status wf_st_define(wf_st_writer *w, const char *name, wf_st_dtype dtype, int ndim, const int64_t *shape,
                       int *id);         /* id may be NULL */
wf_status wf_st_layout(wf_st_writer *w); /* no definitions after it; writes the header */
wf_status wf_st_write(wf_st_writer *w, int id, int64_t first, int64_t count, const void *data);
wf_status wf_st_commit(wf_st_writer *w); /* releases w, whether it fails or not; layout if not done */
void wf_st_discard(wf_st_writer *w);     /* removes the temporary; NULL is allowed */

#ifdef __cplusplus
}
#endif

#endif
