/* trailer: what stands behind the end of Weft's HDF5 files, so that damage is found before libhdf5 reads
 * them.
 *
 * The HDF5 part [0, length) consists of ranges (the raw data of the datasets) and of metadata (all else). The
 * trailer holds a sum for each block of 1 MiB of each range, one digest of all metadata, and a sum of itself.
 * All numbers are little-endian, sums are XXH3 with 64 bits:
 *
 *   body, at `length`:  "WEFTSUMS"  version, 1  length  ranges  blocks  bytes of names  block size  metadata
 * digest for each range by offset: offset  bytes  end of its name in the names the names, one after the
 * other, zeros up to a multiple of 8 the block sums, range after range; a range's last block may be short
 *   footer, 32 bytes:   offset of the body  bytes of the body  sum of the body  "WEFTEND1"
 *
 * Each number has 8 bytes. Other HDF5 readers ignore what follows the end that the file's superblock names.
 */
#ifndef WF_CORE_TRAILER_H
#define WF_CORE_TRAILER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_TRAILER_BLOCK = 1 << 20 }; /* bytes */

typedef struct wf_trailer_range {
  const char *name; /* of the dataset */
  int64_t offset, bytes;
  int64_t first_block; /* index of its first block's sum; set by wf_trailer_read */
} wf_trailer_range;

typedef struct wf_trailer {
  int64_t length; /* of the HDF5 part */
  int64_t n_ranges, n_blocks;
  wf_trailer_range *ranges; /* by offset; none is empty */
  uint64_t *sums;
  char *names;
} wf_trailer;

/* Read the file behind fd once, and write its trailer at `length`, cutting off anything longer. The ranges
 * must be non-empty, sorted by offset, and not overlap (WF_EINTERNAL). */
wf_status wf_trailer_append(int fd, const char *path, int64_t length, const wf_trailer_range *ranges,
                            int64_t n);

/* Read the trailer, and check it and all metadata, not the data. WF_EFORMAT names what is wrong. The caller
 * releases a trailer that was read. */
wf_status wf_trailer_read(int fd, const char *path, wf_trailer *t);
void wf_trailer_free(wf_trailer *t);

const wf_trailer_range *wf_trailer_find(const wf_trailer *t, const char *name); /* NULL when there is none */

/* Which range a block belongs to, and where the block starts and how long it is. */
const wf_trailer_range *wf_trailer_block(const wf_trailer *t, int64_t block, int64_t *offset, int64_t *bytes);

/* Does block `block`, read into memory by the caller, have its sum? WF_EFORMAT names range, block and bytes.
 */
wf_status wf_trailer_check_memory(const wf_trailer *t, const char *path, int64_t block, const void *data);

/* Read and check blocks [first, first + n). Thread-safe. */
wf_status wf_trailer_check_blocks(const wf_trailer *t, int fd, const char *path, int64_t first, int64_t n);

/* Do the first bytes say HDF5 and the last ones Weft? */
bool wf_trailer_looks_like(int fd, const char *path);

#ifdef __cplusplus
}
#endif

#endif
