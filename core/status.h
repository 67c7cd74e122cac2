/* status: how every fallible function of Weft reports.
 *
 * A function returns a wf_status. On failure the message (what is wrong, where), the hint (what to do) and a
 * trace of frames are kept per thread until the next failure or wf_error_clear(). The library never prints
 * and never exits; the program decides.
 *
 *     wf_status load(const char *path) {
 *       if (!path) return wf_hint(WF_FAIL(WF_EINVAL, "no file given"), "name one after --data");
 *       WF_TRY(open_it(path));            // returns upward, adding this frame
 *       return WF_OK;
 *     }
 */
#ifndef WF_CORE_STATUS_H
#define WF_CORE_STATUS_H

#include <stdarg.h>

typedef enum wf_status {
  WF_OK = 0,
  WF_EINVAL,       /* an argument, option or config value is wrong */
  WF_ESHAPE,       /* shapes or dtypes do not fit together */
  WF_ENOMEM,       /* out of memory on some device */
  WF_EIO,          /* the operating system refused a read, write, sync or rename */
  WF_EFORMAT,      /* a file is not what its name says, or is damaged */
  WF_ENOTFOUND,    /* a file, name or key does not exist */
  WF_EEXISTS,      /* would overwrite something */
  WF_EUNSUPPORTED, /* valid, but this build or device cannot */
  WF_ENUMERIC,     /* a non-finite number where there must be none */
  WF_EDEVICE,      /* the device's runtime failed */
  WF_EINTERRUPTED, /* a signal asked to stop */
  WF_EPEER,        /* another rank failed, or disagrees */
  WF_EINTERNAL     /* a broken invariant of Weft itself */
} wf_status;

#if defined(__GNUC__)
#  define WF_PRINTF(a, b) __attribute__((format(printf, a, b)))
#else
#  define WF_PRINTF(a, b)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Record a failure: sets message, clears hint and frames, adds the first frame. Returns `code`. Use WF_FAIL.
 */
wf_status wf_fail_at(const char *file, int line, const char *func, wf_status code, const char *fmt, ...)
    WF_PRINTF(5, 6);

/* Add a frame to the current failure and return it unchanged. Use WF_TRY. */
wf_status wf_frame_at(const char *file, int line, const char *func, wf_status code);

/* Put "fmt: " in front of the current message (context such as a file name). Returns `code`. */
wf_status wf_context(wf_status code, const char *fmt, ...) WF_PRINTF(2, 3);

/* Set the hint of the current failure: what the user can do. Returns `code`. */
wf_status wf_hint(wf_status code, const char *fmt, ...) WF_PRINTF(2, 3);

const char *wf_error_message(void); /* "" when nothing failed in this thread; valid until the next failure */
const char *wf_error_hint(void);    /* "" when there is none */
const char *wf_error_trace(void);   /* one line per frame, innermost first: "  func (file:line)\n" */
void wf_error_clear(void);
const char *wf_status_name(wf_status code); /* "invalid argument", ... */

#ifdef __cplusplus
}
#endif

#define WF_FAIL(code, ...) wf_fail_at(__FILE__, __LINE__, __func__, (code), __VA_ARGS__)

#define WF_TRY(expr)                                                                 \
  do {                                                                               \
    wf_status wf_try_ = (expr);                                                      \
    if (wf_try_ != WF_OK) return wf_frame_at(__FILE__, __LINE__, __func__, wf_try_); \
  } while (0)

/* As WF_TRY, but jumps to `label` with the code in `var`, for functions that must release first. */
#define WF_TRY_GOTO(var, label, expr)                   \
  do {                                                  \
    (var) = (expr);                                     \
    if ((var) != WF_OK) {                               \
      wf_frame_at(__FILE__, __LINE__, __func__, (var)); \
      goto label;                                       \
    }                                                   \
  } while (0)

#endif
