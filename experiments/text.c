/* A growing string with a sticky failure. */
#include "experiments/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"

static const char TAG[] = "text";

static wf_status reserve(wf_text *t, size_t more) {
  if (t->n + more < t->capacity) return WF_OK;
  const size_t want = 2 * (t->n + more) + 128;
  char *p = wf_realloc(TAG, t->p, want);
  if (!p) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  t->p = p;
  t->capacity = want;
  return WF_OK;
}

void wf_text_add(wf_text *t, const char *fmt, ...) {
  if (t->status != WF_OK) return;
  va_list ap;
  va_start(ap, fmt);
  va_list again;
  va_copy(again, ap);
  const int n = vsnprintf(NULL, 0, fmt, ap);
  va_end(ap);
  if (n < 0)
    t->status = WF_FAIL(WF_EINTERNAL, "text that cannot be formatted");
  else
    t->status = reserve(t, (size_t)n);
  if (t->status == WF_OK) {
    vsnprintf(t->p + t->n, t->capacity - t->n, fmt, again);
    t->n += (size_t)n;
  }
  va_end(again);
}

void wf_text_clear(wf_text *t) {
  t->n = 0;
  t->status = WF_OK;
  if (t->p) t->p[0] = '\0';
}

wf_status wf_text_take(wf_text *t, char **out) {
  wf_text_add(t, "%s", "");
  const wf_status s = t->status;
  if (s != WF_OK) wf_free(t->p);
  *out = s == WF_OK ? t->p : NULL;
  memset(t, 0, sizeof *t);
  return s;
}

void wf_text_free(wf_text *t) {
  wf_free(t->p);
  memset(t, 0, sizeof *t);
}
