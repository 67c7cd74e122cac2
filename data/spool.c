/* An unlinked temporary file behind a buffer: it goes away with its descriptor, whatever happens. */
#define _GNU_SOURCE
#include "data/spool.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "core/memory.h"

enum { BUFFER = 1 << 20 };

wf_status wf_spool_open(wf_spool *s, const char *beside) {
  *s = (wf_spool){.fd = -1};
  size_t size = strlen(beside) + 16;
  wf_status status = WF_ENOMEM;
  if (!(s->path = wf_alloc("spool", size)) || !(s->buffer = wf_alloc("spool", BUFFER))) goto fail;
  WF_TRY_GOTO(status, fail, wf_make_parent(beside));
  snprintf(s->path, size, "%s.tmp-XXXXXX", beside);
  s->fd = mkstemp(s->path);
  if (s->fd < 0) {
    status = wf_hint(WF_FAIL(WF_EIO, "cannot create a file beside %s: %s", beside, strerror(errno)),
                     "check that you may write in its folder");
    goto fail;
  }
  unlink(s->path);
  return WF_OK;
fail:
  wf_spool_close(s);
  return wf_frame_at(__FILE__, __LINE__, __func__, status);
}

void wf_spool_close(wf_spool *s) {
  if (s->fd >= 0) close(s->fd);
  wf_free(s->path);
  wf_free(s->buffer);
  *s = (wf_spool){.fd = -1};
}

wf_status wf_spool_flush(wf_spool *s) {
  WF_TRY(wf_write_at(s->fd, s->path, s->buffer, (int64_t)s->n, s->written));
  s->written += (int64_t)s->n;
  s->n = 0;
  return WF_OK;
}

wf_status wf_spool_append(wf_spool *s, const void *data, size_t bytes) {
  const char *from = data;
  while (bytes) {
    size_t room = BUFFER - s->n, part = bytes < room ? bytes : room;
    memcpy(s->buffer + s->n, from, part);
    s->n += part;
    from += part;
    bytes -= part;
    if (s->n == BUFFER) WF_TRY(wf_spool_flush(s));
  }
  return WF_OK;
}

wf_status wf_spool_read(const wf_spool *s, void *data, int64_t bytes, int64_t offset) {
  WF_TRY(wf_read_at(s->fd, s->path, data, bytes, offset));
  return WF_OK;
}
