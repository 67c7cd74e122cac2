/* The calls into libhdf5 that writing and reading share. */
#include "core/h5_impl.h"

#include <pthread.h>
#include <string.h>

/* libhdf5 need not be built for threads. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void wf_h5_enter(wf_h5_guard *g) {
  pthread_mutex_lock(&lock);
  H5Eget_auto2(H5E_DEFAULT, &g->print, &g->data);
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

void wf_h5_leave(wf_h5_guard *g) {
  H5Eclear2(H5E_DEFAULT);
  H5Eset_auto2(H5E_DEFAULT, g->print, g->data);
  pthread_mutex_unlock(&lock);
}

/* H5Ewalk2 callback: remember the description of the first, innermost error. */
static herr_t first_reason(unsigned n, const H5E_error2_t *error, void *out) {
  if (n == 0) *(const char **)out = error->desc;
  return 0;
}

wf_status wf_h5_error(wf_status code, const char *what, const char *name, const char *path) {
  const char *reason = NULL;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first_reason, &reason);
  wf_status s = WF_FAIL(code, "cannot %s %s: libhdf5: %s", what, name, reason ? reason : "no reason given");
  return path ? wf_context(s, "%s", path) : s;
}

hid_t wf_h5_type(wf_dtype d) {
  switch (d) {
  case WF_F32: return H5T_IEEE_F32LE;
  case WF_F64: return H5T_IEEE_F64LE;
  case WF_I32: return H5T_STD_I32LE;
  case WF_I64: return H5T_STD_I64LE;
  case WF_U8: return H5T_STD_U8LE;
  case WF_BF16:
  case WF_U16: return H5T_STD_U16LE;
  case WF_U32: return H5T_STD_U32LE;
  case WF_N_DTYPES: break;
  }
  return H5I_INVALID_HID;
}

bool wf_h5_parse_type(hid_t type, wf_dtype *d) {
  for (int i = 0; i < WF_N_DTYPES; i++) {
    if (i == WF_BF16 || H5Tequal(type, wf_h5_type((wf_dtype)i)) <= 0) continue;
    *d = (wf_dtype)i;
    return true;
  }
  return false;
}

wf_status wf_h5_check_name(const char *name) {
  size_t length = strlen(name);
  int depth = 0;
  if (length > WF_H5_MAX_NAME)
    return WF_FAIL(WF_EINVAL, "the name %.60s... is longer than %d bytes", name, WF_H5_MAX_NAME);
  for (const char *at = name;; depth++) {
    size_t n = strcspn(at, "/");
    if (n == 0 || (n == 1 && at[0] == '.') || (n == 2 && at[0] == '.' && at[1] == '.'))
      return WF_FAIL(WF_EINVAL, "'%s' cannot name a group or dataset", name);
    if (at[n] == '\0') break;
    at += n + 1;
  }
  if (depth > WF_H5_MAX_DEPTH)
    return WF_FAIL(WF_EINVAL, "'%s' lies deeper than %d groups", name, WF_H5_MAX_DEPTH);
  return WF_OK;
}
