/* libhdf5's view of the file: reads and writes on our own descriptor.
 *
 * libhdf5 leaves broken state behind when closing a file fails to write, and crashes later. So a write never
 * fails for it: the first error is remembered for us, everything after it is dropped, and as it evicts no
 * metadata before the end, it never reads back what was dropped. Reading on the descriptor whose sums were
 * checked also means that it is the same file, and that no file locks are needed, which some network file
 * systems lack. */
#include <hdf5.h>
#if H5_VERSION_GE(1, 13, 0)
#  include <H5FDdevelop.h>
#endif

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/h5_impl.h"

typedef struct driver_info {
  int fd;
  int *error;
} driver_info;

typedef struct driver_file {
  H5FD_t base; /* libhdf5's part comes first */
  int fd, *error;
  haddr_t eoa, eof; /* end of what is allocated, and of what is written */
} driver_file;

static H5FD_t *driver_open(const char *name, unsigned flags, hid_t access, haddr_t max) {
  const driver_info *info = H5Pget_driver_info(access);
  int64_t bytes = 0;
  (void)max;
  if (!info || (!(flags & H5F_ACC_TRUNC) && wf_file_size(info->fd, name, &bytes) != WF_OK)) return NULL;
  driver_file *f = calloc(1, sizeof *f); /* as libhdf5's own memory, not counted */
  if (!f) return NULL;
  f->fd = info->fd;
  f->error = info->error;
  f->eof = (haddr_t)bytes;
  return &f->base;
}

static herr_t driver_close(H5FD_t *file) {
  free(file);
  return 0;
}

static herr_t driver_query(const H5FD_t *file, unsigned long *flags) {
  (void)file;
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
           H5FD_FEAT_AGGREGATE_SMALLDATA | H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
  return 0;
}

static haddr_t driver_get_eoa(const H5FD_t *file, H5FD_mem_t type) {
  (void)type;
  return ((const driver_file *)file)->eoa;
}

static herr_t driver_set_eoa(H5FD_t *file, H5FD_mem_t type, haddr_t address) {
  (void)type;
  ((driver_file *)file)->eoa = address;
  return 0;
}

static haddr_t driver_get_eof(const H5FD_t *file, H5FD_mem_t type) {
  (void)type;
  return ((const driver_file *)file)->eof;
}

/* Behind the end of the file are zeros. */
static herr_t driver_read(H5FD_t *file, H5FD_mem_t type, hid_t list, haddr_t at, size_t size, void *data) {
  const driver_file *f = (const driver_file *)file;
  (void)type;
  (void)list;
  size_t inside = at >= f->eof ? 0 : f->eof - at < size ? (size_t)(f->eof - at) : size;
  memset((char *)data + inside, 0, size - inside);
  return wf_read_at(f->fd, "", data, (int64_t)inside, (int64_t)at) == WF_OK ? 0 : -1;
}

static herr_t driver_write(H5FD_t *file, H5FD_mem_t type, hid_t list, haddr_t at, size_t size,
                           const void *data) {
  driver_file *f = (driver_file *)file;
  (void)type;
  (void)list;
  if (*f->error == 0 && wf_write_at(f->fd, "", data, (int64_t)size, (int64_t)at) != WF_OK) *f->error = errno;
  if (at + size > f->eof) f->eof = at + size;
  return 0;
}

static herr_t driver_truncate(H5FD_t *file, hid_t list, hbool_t closing) {
  driver_file *f = (driver_file *)file;
  (void)list;
  (void)closing;
  if (f->eoa != f->eof && *f->error == 0 && ftruncate(f->fd, (off_t)f->eoa) != 0) *f->error = errno;
  f->eof = f->eoa;
  return 0;
}

static const H5FD_class_t driver = {
#if H5_VERSION_GE(1, 13, 0)
    .version = H5FD_CLASS_VERSION,
    .value = 400 /* 256 to 511 are free for private drivers */,
#endif
    .name = "weft",
    .maxaddr = (haddr_t)INT64_MAX,
    .fc_degree = H5F_CLOSE_STRONG,
    .fapl_size = sizeof(driver_info),
    .open = driver_open,
    .close = driver_close,
    .query = driver_query,
    .get_eoa = driver_get_eoa,
    .set_eoa = driver_set_eoa,
    .get_eof = driver_get_eof,
    .read = driver_read,
    .write = driver_write,
    .truncate = driver_truncate,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

/* The metadata cache keeps everything until the file is closed. */
static bool keep_metadata(hid_t access) {
  H5AC_cache_config_t c = {.version = H5AC__CURR_CACHE_CONFIG_VERSION};
  if (H5Pget_mdc_config(access, &c) < 0) return false;
  c.incr_mode = H5C_incr__off;
  c.flash_incr_mode = H5C_flash_incr__off;
  c.decr_mode = H5C_decr__off;
  c.evictions_enabled = false;
  return H5Pset_mdc_config(access, &c) >= 0;
}

hid_t wf_h5_access(int fd, bool writing, int *error) {
  driver_info info = {fd, error};
  hid_t access = H5Pcreate(H5P_FILE_ACCESS), id = H5FDregister(&driver);
  bool ok = access >= 0 && id >= 0 && H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 &&
            H5Pset_driver(access, id, &info) >= 0 && (!writing || keep_metadata(access));
  if (id >= 0) H5FDunregister(id); /* the list holds it */
  if (ok) return access;
  if (access >= 0) H5Pclose(access);
  return H5I_INVALID_HID;
}
