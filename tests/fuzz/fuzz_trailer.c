/* fuzz_trailer: the sums behind HDF5 files, on files damaged in any way.
 *
 * The first byte chooses what the rest is:
 *   r  a whole file
 *   b  a trailer's body, put behind 4 KiB of zeros with a right footer: its own sum says that it is believed
 *   e  edits of a good file, 3 bytes each (place: two bytes, little-endian; then what to flip). Where they
 * change anything the file must be refused.
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <string.h>
#include <xxhash.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/trailer.h"
#include "tests/fuzz/memory_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { ROOM = 1 << 16, PLAIN = 4096 };

static const char signature[8] = {(char)0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};

/* Read the file as wf_h5_open does before libhdf5 comes in. */
static bool accepted(int fd) {
  wf_trailer t;
  if (wf_trailer_read(fd, "file", &t) != WF_OK) return false;
  bool good = wf_trailer_check_blocks(&t, fd, "file", 0, t.n_blocks) == WF_OK;
  for (int64_t i = 0; i < t.n_ranges; i++)
    if (!wf_trailer_find(&t, t.ranges[i].name)) abort();
  wf_trailer_free(&t);
  return good;
}

static bool accepted_bytes(const void *data, size_t size) {
  int fd = memory_file(data, size);
  bool good = accepted(fd);
  close(fd);
  return good;
}

static void give_body(const uint8_t *body, size_t size) {
  static char file[ROOM];
  int64_t foot[3] = {PLAIN, (int64_t)size, (int64_t)XXH3_64bits(body, size)};
  if (size > ROOM - PLAIN - 32) return;
  memset(file, 0, PLAIN);
  memcpy(file, signature, sizeof signature);
  memcpy(file + PLAIN, body, size);
  memcpy(file + PLAIN + size, foot, sizeof foot);
  memcpy(file + PLAIN + size + sizeof foot, "WEFTEND1", 8);
  accepted_bytes(file, PLAIN + size + 32);
}

/* A good file of three ranges, made once. Its size is returned. */
static size_t good_file(char *out) {
  static char file[ROOM];
  static size_t size;
  if (size == 0) {
    static const wf_trailer_range ranges[] = {
        {"a", 100, 50, 0}, {"group/b", 150, 1, 0}, {"c", 2000, 2000, 0}};
    char plain[PLAIN];
    for (int i = 0; i < PLAIN; i++) plain[i] = (char)(i * 31 / 7);
    memcpy(plain, signature, sizeof signature);
    int fd = memory_file(plain, PLAIN);
    int64_t bytes;
    if (wf_trailer_append(fd, "file", PLAIN, ranges, 3) != WF_OK ||
        wf_file_size(fd, "file", &bytes) != WF_OK || wf_read_at(fd, "file", file, bytes, 0) != WF_OK ||
        !accepted(fd))
      abort();
    close(fd);
    size = (size_t)bytes;
  }
  memcpy(out, file, size);
  return size;
}

static void give_edits(const uint8_t *edits, size_t n) {
  static char file[ROOM], good[ROOM];
  size_t size = good_file(file);
  good_file(good);
  for (size_t i = 0; i + 3 <= n; i += 3) {
    size_t at = (size_t)(edits[i] | edits[i + 1] << 8) % size;
    file[at] = (char)(file[at] ^ edits[i + 2]);
  }
  if (accepted_bytes(file, size) != (memcmp(file, good, size) == 0)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  int64_t live = wf_mem_live();
  if (size > 0 && data[0] == 'b')
    give_body(data + 1, size - 1);
  else if (size > 0 && data[0] == 'e')
    give_edits(data + 1, size - 1);
  else if (size > 0)
    accepted_bytes(data + 1, size - 1);
  if (wf_mem_live() != live) abort();
  return 0;
}
