/* file: reading, writing and replacing files so that nothing half-written is ever found under its final name.
 *
 * Errors are WF_EIO with the path and the system's reason (and a hint where there is one: free space,
 * permission), WF_ENOTFOUND for a missing file, WF_EFORMAT where a file ends before it should. `path`
 * arguments beside a file descriptor only serve messages. A program that wants a file-size limit
 * (RLIMIT_FSIZE) reported as an error instead of dying ignores SIGXFSZ.
 */
#ifndef WF_CORE_FILE_H
#define WF_CORE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* "cannot VERB PATH: what errno says", and the hint that belongs to it. errno is `error` afterwards. For
 * system calls made elsewhere. */
wf_status wf_io_error(int error, const char *verb, const char *path);

/* Exactly `bytes` at `offset`, however many system calls it takes; any size. A file that ends earlier:
 * WF_EFORMAT. Thread-safe on one descriptor. */
wf_status wf_read_at(int fd, const char *path, void *data, int64_t bytes, int64_t offset);
wf_status wf_write_at(int fd, const char *path, const void *data, int64_t bytes, int64_t offset);

wf_status wf_open_read(const char *path, int *fd); /* regular files only; close(*fd) is the caller's */
wf_status wf_file_size(int fd, const char *path, int64_t *bytes);
wf_status wf_sync(int fd, const char *path); /* data and metadata are on the disk afterwards */

/* Grow the file to `bytes` if it is shorter, and claim the disk's blocks for them where the file system can,
 * so that a full disk shows at once and not after an hour of writing. */
wf_status wf_reserve(int fd, const char *path, int64_t bytes);

/* Copy `bytes` from one descriptor to another. */
wf_status wf_copy_range(int from, const char *from_path, int64_t from_offset, int to, const char *to_path,
                        int64_t to_offset, int64_t bytes);

/* The whole file; a NUL byte follows the last one. More than `limit` bytes: WF_EFORMAT. wf_free(*data). */
wf_status wf_file_read(const char *path, int64_t limit, char **data, int64_t *bytes);

/* Write the whole file through wf_replace. */
wf_status wf_file_write(const char *path, const void *data, int64_t bytes);

/* Replacing a file in one step: everything is written to `path.tmp-PID` in the same folder, synced and
 * renamed over `path`. Until the rename an earlier file stays as it was; a failure removes the temporary. */
typedef struct wf_replace {
  char *path, *tmp; /* owned */
  int fd;           /* the temporary, open for reading and writing; -1 when closed */
} wf_replace;

wf_status wf_replace_begin(const char *path, wf_replace *r);
wf_status wf_replace_commit(wf_replace *r); /* releases r, whether it fails or not */
void wf_replace_abandon(wf_replace *r); /* removes the temporary; harmless after a commit or on zeroed memory
                                           with fd -1; keeps the recorded error */

bool wf_file_exists(const char *path); /* anything of that name, a dangling link too */
bool wf_is_directory(const char *path);
wf_status wf_make_directories(const char *path);       /* with parents; existing ones are fine */
wf_status wf_make_parent(const char *path);            /* the folder a file of that name will lie in */
wf_status wf_sync_parent(const char *path);            /* makes a rename or removal in its folder durable */
wf_status wf_remove_file(const char *path);            /* a missing file is fine */
wf_status wf_rename(const char *from, const char *to); /* and sync the folder of `to` */

/* Remove the n files `names` (relative to `directory`; a missing one is fine) and then the directory itself.
 * Anything else in it stays, and the directory with it: WF_EIO naming one of them. A missing directory is
 * fine. */
wf_status wf_remove_directory(const char *directory, const char *const *names, int n);

#ifdef __cplusplus
}
#endif

#endif
