/* temporary: a folder for a test's files, removed at its end. */
#ifndef WF_TESTS_DATA_TEMPORARY_H
#define WF_TESTS_DATA_TEMPORARY_H

#include <check.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char temporary[64];

static inline void temporary_make(void) {
  strcpy(temporary, "/tmp/weft-data-XXXXXX");
  ck_assert_ptr_nonnull(mkdtemp(temporary));
}

static inline int temporary_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
  (void)st, (void)type, (void)ftw;
  return remove(path);
}

static inline void temporary_remove(void) {
  nftw(temporary, temporary_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The path of a name in it; 32 may be in use at a time. */
static inline const char *temporary_path(const char *name) {
  static char paths[32][256];
  static int next;
  char *path = paths[next++ % 32];
  snprintf(path, sizeof paths[0], "%s/%s", temporary, name);
  return path;
}

static inline const char *temporary_write(const char *name, const void *data, size_t n) {
  const char *path = temporary_path(name);
  FILE *f = fopen(path, "wb");
  ck_assert_ptr_nonnull(f);
  ck_assert_uint_eq(fwrite(data, 1, n, f), n);
  fclose(f);
  return path;
}

static inline const char *temporary_text(const char *name, const char *text) {
  return temporary_write(name, text, strlen(text));
}

#endif
