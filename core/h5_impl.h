/* h5_impl: what writing and reading share: the guarded calls into libhdf5, and the element types as it names
 * them. */
#ifndef WF_CORE_H5_IMPL_H
#define WF_CORE_H5_IMPL_H

#include <hdf5.h>

#include "core/h5.h"

/* libhdf5 is entered by one thread at a time, and silently: its error printing is off between these two and
 * afterwards as it was. */
typedef struct wf_h5_guard {
  H5E_auto2_t print;
  void *data;
} wf_h5_guard;

void wf_h5_enter(wf_h5_guard *g);
void wf_h5_leave(wf_h5_guard *g);

/* "PATH: cannot WHAT NAME: libhdf5: its own reason"; without the path when it is NULL. Between enter and
 * leave. */
wf_status wf_h5_error(wf_status code, const char *what, const char *name, const char *path);

hid_t wf_h5_type(wf_dtype d); /* in the file; a predefined type, not to be closed */
bool wf_h5_parse_type(hid_t type,
                      wf_dtype *d); /* the reverse; u16 for bf16, which its attribute tells apart */

/* How libhdf5 reads or writes the file behind `fd` (core/h5_driver.c), in the format of version 1.10. Its
 * writes never fail: *error is 0, or the errno of the first that did. H5I_INVALID_HID on failure. */
hid_t wf_h5_access(int fd, bool writing, int *error);

/* A path of non-empty components other than "." and "..", not too long or deep. WF_EINVAL otherwise. */
wf_status wf_h5_check_name(const char *name);

/* The attribute that tells bf16 from u16. */
#define WF_H5_DTYPE "dtype"

#endif
