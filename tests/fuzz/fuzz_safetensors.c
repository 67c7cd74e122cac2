/* fuzz_safetensors: reading safetensors, whatever the file.
 *
 * The first byte chooses what the rest is:
 *   h  a header; its length is put in front, and behind it as many zero bytes as the second byte says
 *   i  an index beside one good file of two tensors, "good"
 *   anything else  a whole file
 * What is opened is read to its end.
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/safetensors.h"
#include "tests/fuzz/memory_file.h"
#include "tests/temp_dir.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void open_and_read(const char *path) {
  static float values[1 << 16];
  wf_safetensors *st;
  if (wf_st_open(path, &st) != WF_OK) return;
  for (int64_t i = 0; i < wf_st_count(st); i++) {
    const wf_st_info *t = wf_st_at(st, i), *found;
    int64_t n = t->count < (1 << 12) ? t->count : 1 << 12;
    if (wf_st_find(st, t->name, &found) != WF_OK || found != t) abort();
    if (wf_st_read(st, t, 0, n, values) != WF_OK || wf_st_read(st, t, t->count - n, n, values) != WF_OK)
      abort();
    if (wf_st_read_f32(st, t, 0, n, values) == WF_EFORMAT) abort();
  }
  wf_st_metadata(st, "format");
  wf_st_close(st);
}

static void give_file(const void *data, size_t size) {
  char path[32];
  int fd = memory_file(data, size);
  open_and_read(memory_file_path(fd, path));
  close(fd);
}

static void give_header(const uint8_t *data, size_t size) {
  size_t zeros = data[0], header = size - 1;
  char *file = calloc(1, 8 + header + zeros);
  if (!file) abort();
  memcpy(file, &header, 8);
  memcpy(file + 8, data + 1, header);
  give_file(file, 8 + header + zeros);
  free(file);
}

static void give_index(const uint8_t *data, size_t size) {
  static const int64_t shape[1] = {3};
  wf_st_writer *w;
  if (!temp_dir[0]) {
    temp_dir_make();
    atexit(temp_dir_remove);
    if (wf_st_create(temp_path("good"), &w) != WF_OK ||
        wf_st_define(w, "a", WF_ST_F32, 1, shape, NULL) != WF_OK ||
        wf_st_define(w, "b", WF_ST_U8, 1, shape, NULL) != WF_OK || wf_st_commit(w) != WF_OK)
      abort();
  }
  FILE *f = fopen(temp_path("index.json"), "wb");
  if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
  open_and_read(temp_path("index.json"));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  int64_t live = wf_mem_live();
  if (size > 1 && data[0] == 'h')
    give_header(data + 1, size - 1);
  else if (size > 0 && data[0] == 'i')
    give_index(data + 1, size - 1);
  else
    give_file(data, size);
  if (wf_mem_live() != live) abort();
  return 0;
}
