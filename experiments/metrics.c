/* Appending to metrics.jsonl, and cutting it back to a step. */
#include "experiments/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"

static wf_status open_file(wf_metrics *m, const char *path, int flags) {
  memset(m, 0, sizeof *m);
  m->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | flags, 0666);
  if (m->fd < 0)
    return wf_hint(WF_FAIL(WF_EIO, "cannot write %s: %s", path, strerror(errno)),
                   "check that its folder is there and may be written to");
  if ((m->path = wf_strdup("metrics", path))) return WF_OK;
  close(m->fd);
  memset(m, 0, sizeof *m);
  return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
}

wf_status wf_metrics_create(wf_metrics *m, const char *path) {
  return open_file(m, path, O_TRUNC);
}

/* The length of the part to keep: whole lines that say a step up to `step`. */
static size_t kept_length(const char *text, size_t n, int64_t step) {
  static const char head[] = "{\"step\": ";
  size_t kept = 0;
  while (kept < n) {
    const char *line = text + kept, *end = memchr(line, '\n', n - kept);
    if (!end || strncmp(line, head, sizeof head - 1) != 0) break;
    if (strtoll(line + sizeof head - 1, NULL, 10) > step || end[-1] != '}') break;
    kept = (size_t)(end - text) + 1;
  }
  return kept;
}

wf_status wf_metrics_resume(wf_metrics *m, const char *path, int64_t step) {
  WF_TRY(open_file(m, path, 0));
  char *text = NULL;
  int64_t n = 0;
  wf_status s = wf_file_read(path, INT64_C(1) << 32, &text, &n);
  if (s == WF_OK) {
    const size_t kept = kept_length(text, (size_t)n, step);
    if ((int64_t)kept < n && ftruncate(m->fd, (off_t)kept) != 0)
      s = WF_FAIL(WF_EIO, "cannot shorten %s: %s", path, strerror(errno));
    wf_free(text);
  }
  if (s != WF_OK) wf_metrics_close(m);
  return s;
}

static void put_number(wf_text *t, double v) {
  if (!isfinite(v))
    wf_text_add(t, "null");
  else if (v == floor(v) && fabs(v) < 1e15)
    wf_text_add(t, "%.0f", v);
  else
    wf_text_add(t, "%.9g", v);
}

wf_status wf_metrics_write(wf_metrics *m, int64_t step, const wf_metric *values, size_t n) {
  wf_text *t = &m->line;
  wf_text_clear(t);
  wf_text_add(t, "{\"step\": %" PRId64, step);
  for (size_t i = 0; i < n; i++) {
    wf_text_add(t, ", \"%s\": ", values[i].name);
    put_number(t, values[i].value);
  }
  wf_text_add(t, "}\n");
  WF_TRY(t->status);
  for (size_t done = 0; done < t->n;) {
    const ssize_t k = write(m->fd, t->p + done, t->n - done);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0)
      return wf_hint(WF_FAIL(WF_EIO, "cannot write %s: %s", m->path, strerror(errno)), "is the disk full?");
    done += (size_t)k;
  }
  return WF_OK;
}

void wf_metrics_close(wf_metrics *m) {
  if (m->path) close(m->fd);
  wf_free(m->path);
  wf_text_free(&m->line);
  memset(m, 0, sizeof *m);
}
