/* replay: runs a fuzz target over its corpus in the normal tests, without libFuzzer.
 *
 * usage: fuzz_NAME FOLDER
 * Every file of the folder is given whole, cut short and with single bits flipped, at places fixed by a small
 * generator, so that the same inputs run each time. A target passes by returning; a crash or a sanitizer's
 * report fails the test. libFuzzer's own main() takes this one's place under -DWEFT_FUZZ=ON (preset fuzz).
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VARIANTS = 64 };

static uint64_t state = 88172645463325252u;

static uint64_t draw(uint64_t below) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state % below;
}

/* A copy of exactly `size` bytes, so that reading past the end is seen. */
static void give(const uint8_t *data, size_t size, size_t flip_bit) {
  uint8_t *copy = malloc(size ? size : 1);
  if (!copy) abort();
  memcpy(copy, data, size);
  if (flip_bit < size * 8) copy[flip_bit / 8] ^= (uint8_t)(1u << flip_bit % 8);
  LLVMFuzzerTestOneInput(copy, size);
  free(copy);
}

static int replay(const char *path) {
  FILE *f = fopen(path, "rb");
  if (!f) return perror(path), 1;
  size_t size = 0, capacity = 1 << 24;
  uint8_t *data = malloc(capacity);
  if (!data) abort();
  size = fread(data, 1, capacity, f);
  fclose(f);
  give(data, size, SIZE_MAX);
  for (int i = 0; i < VARIANTS && size > 0; i++) {
    give(data, (size_t)draw(size), SIZE_MAX);
    give(data, size, (size_t)draw(size * 8));
  }
  free(data);
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 2) return fprintf(stderr, "usage: %s FOLDER\n", argv[0]), 1;
  DIR *dir = opendir(argv[1]);
  if (!dir) return perror(argv[1]), 1;
  int files = 0, failed = 0;
  for (struct dirent *e; (e = readdir(dir));) {
    char path[4096];
    if (e->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "%s/%s", argv[1], e->d_name);
    failed |= replay(path);
    files++;
  }
  closedir(dir);
  if (!files) fprintf(stderr, "%s is empty\n", argv[1]);
  return failed || !files;
}
