/* memory_file: a nameless file in memory, for fuzz targets whose subject reads descriptors or paths. */
#ifndef WF_TESTS_FUZZ_MEMORY_FILE_H
#define WF_TESTS_FUZZ_MEMORY_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Needs _GNU_SOURCE before the first header. */
static inline int memory_file(const void *data, size_t size) {
  int fd = memfd_create("fuzz", MFD_CLOEXEC);
  if (fd < 0 || (size > 0 && pwrite(fd, data, size, 0) != (ssize_t)size)) abort();
  return fd;
}

static inline const char *memory_file_path(int fd, char out[32]) {
  snprintf(out, 32, "/proc/self/fd/%d", fd);
  return out;
}

#endif
