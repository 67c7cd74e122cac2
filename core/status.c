/* The per-thread error record behind status.h: fixed buffers, so that reporting never allocates. */
#include "core/status.h"

#include <stdio.h>
#include <string.h>

enum { MESSAGE = 2048, HINT = 1024, TRACE = 2048 };

static _Thread_local struct { char message[MESSAGE], hint[HINT], trace[TRACE]; } err;

wf_status wf_fail_at(const char *file, int line, const char *func, wf_status code, const char *fmt, ...) {
  char text[MESSAGE]; /* the arguments may point into err.message */
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  memcpy(err.message, text, sizeof text);
  err.hint[0] = err.trace[0] = '\0';
  return wf_frame_at(file, line, func, code);
}

wf_status wf_frame_at(const char *file, int line, const char *func, wf_status code) {
  size_t n = strlen(err.trace);
  snprintf(err.trace + n, sizeof err.trace - n, "  %s (%s:%d)\n", func, file, line);
  return code;
}

wf_status wf_context(wf_status code, const char *fmt, ...) {
  char text[2 * MESSAGE + 8]; /* room for both, cut to one message below */
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, MESSAGE, fmt, ap);
  va_end(ap);
  const size_t n = strlen(text);
  snprintf(text + n, sizeof text - n, ": %s", err.message);
  text[MESSAGE - 1] = '\0';
  memcpy(err.message, text, MESSAGE);
  return code;
}

wf_status wf_hint(wf_status code, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(err.hint, sizeof err.hint, fmt, ap);
  va_end(ap);
  return code;
}

const char *wf_error_message(void) {
  return err.message;
}
const char *wf_error_hint(void) {
  return err.hint;
}
const char *wf_error_trace(void) {
  return err.trace;
}
void wf_error_clear(void) {
  err.message[0] = err.hint[0] = err.trace[0] = '\0';
}

const char *wf_status_name(wf_status code) {
  switch (code) {
  case WF_OK: return "ok";
  case WF_EINVAL: return "invalid argument";
  case WF_ESHAPE: return "shape mismatch";
  case WF_ENOMEM: return "out of memory";
  case WF_EIO: return "input/output error";
  case WF_EFORMAT: return "bad file format";
  case WF_ENOTFOUND: return "not found";
  case WF_EEXISTS: return "exists already";
  case WF_EUNSUPPORTED: return "not supported here";
  case WF_ENUMERIC: return "not finite";
  case WF_EDEVICE: return "device failure";
  case WF_EINTERRUPTED: return "interrupted";
  case WF_EPEER: return "another rank failed";
  case WF_EINTERNAL: return "internal error";
  }
  return "unknown status";
}
