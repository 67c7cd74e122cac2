/* temp_dir: a folder for a test's files, removed with all that is in it.
 *
 *     temp_dir_make();                         // once before use; also a Check fixture
 *     wf_file_write(temp_path("a.bin"), ...);
 *     temp_dir_remove();
 */
#ifndef WF_TESTS_TEMP_DIR_H
#define WF_TESTS_TEMP_DIR_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char temp_dir[512];

static inline void temp_dir_make(void) {
  const char *base = getenv("TMPDIR");
  snprintf(temp_dir, sizeof temp_dir, "%s/weft-test-XXXXXX", base && base[0] ? base : "/tmp");
  if (!mkdtemp(temp_dir)) abort();
}

/* A path inside; one of four rotating buffers. */
static inline const char *temp_path(const char *name) {
  static char paths[4][1024];
  static int at;
  at = (at + 1) % 4;
  snprintf(paths[at], sizeof paths[at], "%s/%s", temp_dir, name);
  return paths[at];
}

static inline void temp_tree_remove(const char *path) {
  DIR *d = opendir(path);
  if (d) {
    for (struct dirent *e; (e = readdir(d));) {
      char inner[2048];
      if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
      snprintf(inner, sizeof inner, "%s/%s", path, e->d_name);
      struct stat st;
      if (lstat(inner, &st) == 0 && S_ISDIR(st.st_mode))
        temp_tree_remove(inner);
      else
        unlink(inner);
    }
    closedir(d);
  }
  rmdir(path);
}

static inline void temp_dir_remove(void) {
  chmod(temp_dir, 0700);
  temp_tree_remove(temp_dir);
}

/* How many things lie in the folder: a failed write must leave no temporary. */
static inline int temp_dir_count(void) {
  DIR *d = opendir(temp_dir);
  int n = -2; /* "." and ".." */
  if (!d) return -1;
  while (readdir(d)) n++;
  closedir(d);
  return n;
}

#endif
