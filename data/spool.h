/* spool: bytes that wait on disk, in an unnamed file, until their final place is known. Private to this
 * folder. */
#ifndef WF_DATA_SPOOL_H
#define WF_DATA_SPOOL_H

#include <stddef.h>
#include <stdint.h>
#include "core/status.h"

typedef struct wf_spool {
  int fd;
  char *path; /* for messages: the file has no name any more */
  char *buffer;
  size_t n;
  int64_t written; /* bytes before the buffer */
} wf_spool;

/* In the folder of `beside`. On failure there is nothing to free. */
wf_status wf_spool_open(wf_spool *s, const char *beside);
void wf_spool_close(wf_spool *s); /* after an open that worked, or on {.fd = -1} */

wf_status wf_spool_append(wf_spool *s, const void *data, size_t bytes);
wf_status wf_spool_flush(wf_spool *s);
wf_status wf_spool_read(const wf_spool *s, void *data, int64_t bytes,
                        int64_t offset); /* of what was flushed */

#endif
