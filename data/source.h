/* source: documents out of text files, JSON lines and folders, one after the other, in memory that does not
 * grow with them.
 *
 * A file is one document, or, with a separator, one for each stretch between the lines equal to it. In files
 * named .jsonl or .ndjson each line is an object whose string under `key` is a document. A folder stands for
 * the files in and below it in the order of their paths; hidden files, empty files, files with NUL bytes (not
 * text) and second names of a file already taken are passed over there. An explicitly named file must exist
 * and must not be empty.
 */
#ifndef WF_DATA_SOURCE_H
#define WF_DATA_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_source_input {
  const char *path; /* a file or a folder */
  int tag;          /* the caller's own: comes back with each document of it */
} wf_source_input;

typedef struct wf_source_options {
  const char *separator; /* NULL: a file is a document */
  const char *key;       /* of JSON lines; NULL: "text" */
} wf_source_options;

typedef struct wf_source_file {
  char *path;
  int64_t bytes;
  int tag;
  uint64_t sum; /* XXH64 of its bytes, known when it has been read to the end */
} wf_source_file;

/* Part of a document. */
typedef struct wf_source_part {
  const char *text; /* valid until the next call; never cut for JSON lines */
  size_t n;         /* may be 0 */
  bool end;         /* the document ends with it */
  const wf_source_file *file;
  int64_t line; /* where the document begins, from 1; 0 for a text file without a separator */
} wf_source_part;

typedef struct wf_source wf_source;

/* Finds the files. The option strings must live as long as the source. Errors: WF_ENOTFOUND, WF_EIO,
 * WF_EINVAL (no inputs, an empty file, a folder without text). */
wf_status wf_source_open(const wf_source_input *inputs, int n, const wf_source_options *o, wf_source **out);
void wf_source_close(wf_source *s); /* NULL is allowed */

/* The next part; *got is false at the end. WF_EFORMAT with file and line for a JSON line that is none or
 * lacks the key. */
wf_status wf_source_next(wf_source *s, wf_source_part *part, bool *got);

wf_status wf_source_rewind(wf_source *s); /* start over */

int64_t wf_source_files(const wf_source *s, const wf_source_file **files);
int64_t wf_source_bytes(const wf_source *s);   /* of all files */
int64_t wf_source_done(const wf_source *s);    /* bytes read since the start */
int64_t wf_source_skipped(const wf_source *s); /* files of folders passed over */

#ifdef __cplusplus
}
#endif

#endif
