/* Sums of data and metadata behind an HDF5 file. What is read here may be damaged in any way: each number is
 * checked against the file's size before it is used. */
#define XXH_STATIC_LINKING_ONLY /* for a hash state on the stack */
#include "core/trailer.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/file.h"
#include "core/memory.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are written from memory as they are");

#define TAG "file sums"

enum { SIGNATURE = 8, HEADER = 64, ENTRY = 24, FOOTER = 32, VERSION = 1 };

static const char hdf5_signature[SIGNATURE] = {(char)0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
static const char body_magic[8] = {'W', 'E', 'F', 'T', 'S', 'U', 'M', 'S'};
static const char footer_magic[8] = {'W', 'E', 'F', 'T', 'E', 'N', 'D', '1'};

typedef struct body_header {
  char magic[8];
  uint64_t version;
  int64_t length, n_ranges, n_blocks, names_bytes, block_bytes;
  uint64_t digest;
} body_header;
_Static_assert(sizeof(body_header) == HEADER, "no padding");

typedef struct body_entry {
  int64_t offset, bytes, name_end;
} body_entry;
_Static_assert(sizeof(body_entry) == ENTRY, "no padding");

typedef struct footer {
  int64_t offset, bytes;
  uint64_t sum;
  char magic[8];
} footer;
_Static_assert(sizeof(footer) == FOOTER, "no padding");

static int64_t blocks_of(int64_t bytes) {
  return bytes / WF_TRAILER_BLOCK + (bytes % WF_TRAILER_BLOCK != 0);
}

static int64_t padded(int64_t bytes) {
  return (bytes + 7) / 8 * 8;
}

/* XXH3 of everything in [0, length) outside the ranges; `buffer` has WF_TRAILER_BLOCK bytes. */
static wf_status metadata_digest(int fd, const char *path, int64_t length, const wf_trailer_range *ranges,
                                 int64_t n, void *buffer, uint64_t *digest) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  int64_t at = 0;
  for (int64_t i = 0; i <= n; i++) {
    int64_t end = i < n ? ranges[i].offset : length;
    while (at < end) {
      int64_t step = end - at < WF_TRAILER_BLOCK ? end - at : WF_TRAILER_BLOCK;
      WF_TRY(wf_read_at(fd, path, buffer, step, at));
      XXH3_64bits_update(&state, buffer, (size_t)step);
      at += step;
    }
    if (i < n) at = ranges[i].offset + ranges[i].bytes;
  }
  *digest = XXH3_64bits_digest(&state);
  return WF_OK;
}

/* ---- Writing ---- */

/* Fill the body from the file's content. `names_bytes` and the blocks were counted by the caller. */
static wf_status fill_body(int fd, const char *path, const wf_trailer_range *ranges, body_header head,
                           char *body) {
  void *buffer;
  wf_status s;
  WF_ALLOC(buffer, TAG, WF_TRAILER_BLOCK);
  WF_TRY_GOTO(s, out, metadata_digest(fd, path, head.length, ranges, head.n_ranges, buffer, &head.digest));
  memcpy(body, &head, HEADER);
  char *entries = body + HEADER, *names = entries + head.n_ranges * ENTRY,
       *sums = names + padded(head.names_bytes);
  int64_t name_end = 0, block = 0;
  for (int64_t i = 0; i < head.n_ranges; i++) {
    int64_t n = (int64_t)strlen(ranges[i].name);
    memcpy(names + name_end, ranges[i].name, (size_t)n);
    name_end += n;
    memcpy(entries + i * ENTRY, &(body_entry){ranges[i].offset, ranges[i].bytes, name_end}, ENTRY);
    for (int64_t done = 0; done < ranges[i].bytes; done += WF_TRAILER_BLOCK, block++) {
      int64_t left = ranges[i].bytes - done, step = left < WF_TRAILER_BLOCK ? left : WF_TRAILER_BLOCK;
      WF_TRY_GOTO(s, out, wf_read_at(fd, path, buffer, step, ranges[i].offset + done));
      uint64_t sum = XXH3_64bits(buffer, (size_t)step);
      memcpy(sums + 8 * block, &sum, 8);
    }
  }
out:
  wf_free(buffer);
  return s;
}

wf_status wf_trailer_append(int fd, const char *path, int64_t length, const wf_trailer_range *ranges,
                            int64_t n) {
  body_header head = {.version = VERSION, .length = length, .n_ranges = n, .block_bytes = WF_TRAILER_BLOCK};
  memcpy(head.magic, body_magic, 8);
  int64_t end = 0;
  for (int64_t i = 0; i < n; i++) {
    if (ranges[i].bytes <= 0 || ranges[i].offset < end || ranges[i].bytes > length - ranges[i].offset)
      return WF_FAIL(WF_EINTERNAL, "%s: the data of %s lie outside the file or over others", path,
                     ranges[i].name);
    end = ranges[i].offset + ranges[i].bytes;
    head.names_bytes += (int64_t)strlen(ranges[i].name);
    head.n_blocks += blocks_of(ranges[i].bytes);
  }
  int64_t bytes = HEADER + n * ENTRY + padded(head.names_bytes) + 8 * head.n_blocks;
  char *body = wf_calloc(TAG, (size_t)(bytes + FOOTER), 1);
  if (!body) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  wf_status s;
  WF_TRY_GOTO(s, out, fill_body(fd, path, ranges, head, body));
  footer foot = {.offset = length, .bytes = bytes, .sum = XXH3_64bits(body, (size_t)bytes)};
  memcpy(foot.magic, footer_magic, 8);
  memcpy(body + bytes, &foot, FOOTER);
  WF_TRY_GOTO(s, out, wf_write_at(fd, path, body, bytes + FOOTER, length));
  if (ftruncate(fd, (off_t)(length + bytes + FOOTER)) != 0) s = wf_io_error(errno, "set the length of", path);
out:
  wf_free(body);
  return s;
}

/* ---- Reading ---- */

static wf_status damaged(wf_status s, const char *path) {
  wf_context(s, "%s", path);
  return wf_hint(
      s, "the file is damaged or was changed after Weft wrote it: make it again, or use an earlier one");
}

/* The footer, after checking that it can be one of a file of `size` bytes. */
static wf_status read_footer(int fd, const char *path, int64_t size, footer *foot) {
  char signature[SIGNATURE] = {0};
  if (size == 0)
    return wf_hint(WF_FAIL(WF_EFORMAT, "%s is empty", path), "make it again, or use an earlier one");
  if (size >= SIGNATURE) WF_TRY(wf_read_at(fd, path, signature, SIGNATURE, 0));
  if (size < SIGNATURE || memcmp(signature, hdf5_signature, SIGNATURE) != 0)
    return wf_hint(WF_FAIL(WF_EFORMAT, "%s is not a Weft file (its first bytes are not those of HDF5)", path),
                   "name a token store, checkpoint or result file written by weft");
  if (size >= SIGNATURE + FOOTER) WF_TRY(wf_read_at(fd, path, foot, FOOTER, size - FOOTER));
  if (size < SIGNATURE + FOOTER || memcmp(foot->magic, footer_magic, 8) != 0)
    return damaged(WF_FAIL(WF_EFORMAT,
                           "Weft's trailer is missing at its end: it was cut short, or is an HDF5 file "
                           "of another program"),
                   path);
  if (foot->offset < SIGNATURE || foot->bytes < HEADER || foot->offset > size || foot->bytes > size ||
      foot->offset + foot->bytes + FOOTER != size)
    return damaged(WF_FAIL(WF_EFORMAT, "trailer: its place and length do not fit the file's %lld bytes",
                           (long long)size),
                   path);
  return WF_OK;
}

/* Build the table from the body, whose sum is right: still nothing in it is believed unseen. */
static wf_status parse_body(const char *body, const footer *foot, wf_trailer *t, uint64_t *digest) {
  body_header head;
  memcpy(&head, body, HEADER);
  if (memcmp(head.magic, body_magic, 8) != 0) return WF_FAIL(WF_EFORMAT, "trailer: does not start as one");
  if (head.version != VERSION)
    return WF_FAIL(WF_EFORMAT, "trailer: version %llu; this Weft reads version %d",
                   (unsigned long long)head.version, VERSION);
  int64_t limit = foot->bytes;
  if (head.length != foot->offset || head.block_bytes != WF_TRAILER_BLOCK || head.n_ranges < 0 ||
      head.n_blocks < 0 || head.names_bytes < 0 || head.n_ranges > limit / ENTRY ||
      head.n_blocks > limit / 8 || head.names_bytes > limit ||
      HEADER + head.n_ranges * ENTRY + padded(head.names_bytes) + 8 * head.n_blocks != limit)
    return WF_FAIL(WF_EFORMAT, "trailer: its counts do not fit together");
  const char *entries = body + HEADER, *names = entries + head.n_ranges * ENTRY,
             *sums = names + padded(head.names_bytes);
  *digest = head.digest;
  t->length = head.length;
  WF_CALLOC(t->ranges, TAG, head.n_ranges);
  WF_CALLOC(t->sums, TAG, head.n_blocks);
  WF_CALLOC(t->names, TAG, head.names_bytes + head.n_ranges); /* each with its NUL */
  memcpy(t->sums, sums, 8 * (size_t)head.n_blocks);
  t->n_blocks = head.n_blocks;
  int64_t end = 0, name_start = 0, block = 0;
  for (int64_t i = 0; i < head.n_ranges; i++) {
    body_entry e;
    memcpy(&e, entries + i * ENTRY, ENTRY);
    if (e.name_end < name_start || e.name_end > head.names_bytes || e.bytes <= 0 || e.offset < end ||
        e.offset > head.length || e.bytes > head.length - e.offset ||
        blocks_of(e.bytes) > head.n_blocks - block)
      return WF_FAIL(WF_EFORMAT, "trailer: entry %lld of its table is impossible", (long long)i);
    char *name = t->names + name_start + i;
    memcpy(name, names + name_start, (size_t)(e.name_end - name_start));
    t->ranges[i] = (wf_trailer_range){name, e.offset, e.bytes, block};
    t->n_ranges = i + 1;
    block += blocks_of(e.bytes);
    name_start = e.name_end;
    end = e.offset + e.bytes;
  }
  if (block != head.n_blocks || name_start != head.names_bytes)
    return WF_FAIL(WF_EFORMAT, "trailer: its counts do not fit its table");
  return WF_OK;
}

static wf_status read_body(int fd, const char *path, const footer *foot, wf_trailer *t, uint64_t *digest) {
  char *body;
  wf_status s;
  WF_ALLOC(body, TAG, (size_t)foot->bytes);
  WF_TRY_GOTO(s, out, wf_read_at(fd, path, body, foot->bytes, foot->offset));
  if (XXH3_64bits(body, (size_t)foot->bytes) != foot->sum)
    s = WF_FAIL(WF_EFORMAT, "trailer: does not match its sum");
  else
    s = parse_body(body, foot, t, digest);
  if (s == WF_EFORMAT) damaged(s, path);
out:
  wf_free(body);
  return s;
}

static wf_status check_metadata(int fd, const char *path, const wf_trailer *t, uint64_t expected) {
  void *buffer;
  uint64_t digest = 0;
  WF_ALLOC(buffer, TAG, WF_TRAILER_BLOCK);
  wf_status s = metadata_digest(fd, path, t->length, t->ranges, t->n_ranges, buffer, &digest);
  wf_free(buffer);
  WF_TRY(s);
  if (digest != expected)
    return damaged(WF_FAIL(WF_EFORMAT, "metadata: the bytes outside the datasets do not match their digest"),
                   path);
  return WF_OK;
}

wf_status wf_trailer_read(int fd, const char *path, wf_trailer *t) {
  int64_t size;
  footer foot;
  uint64_t digest = 0;
  *t = (wf_trailer){0};
  WF_TRY(wf_file_size(fd, path, &size));
  WF_TRY(read_footer(fd, path, size, &foot));
  wf_status s = read_body(fd, path, &foot, t, &digest);
  if (s == WF_OK) s = check_metadata(fd, path, t, digest);
  if (s != WF_OK) wf_trailer_free(t);
  return s;
}

void wf_trailer_free(wf_trailer *t) {
  wf_free(t->ranges);
  wf_free(t->sums);
  wf_free(t->names);
  *t = (wf_trailer){0};
}

const wf_trailer_range *wf_trailer_find(const wf_trailer *t, const char *name) {
  for (int64_t i = 0; i < t->n_ranges; i++)
    if (strcmp(t->ranges[i].name, name) == 0) return &t->ranges[i];
  return NULL;
}

const wf_trailer_range *wf_trailer_block(const wf_trailer *t, int64_t block, int64_t *offset,
                                         int64_t *bytes) {
  int64_t low = 0, high = t->n_ranges; /* the last range that starts at or before the block */
  while (high - low > 1) {
    int64_t mid = low + (high - low) / 2;
    if (t->ranges[mid].first_block <= block)
      low = mid;
    else
      high = mid;
  }
  const wf_trailer_range *r = &t->ranges[low];
  int64_t done = (block - r->first_block) * WF_TRAILER_BLOCK, left = r->bytes - done;
  *offset = r->offset + done;
  *bytes = left < WF_TRAILER_BLOCK ? left : WF_TRAILER_BLOCK;
  return r;
}

wf_status wf_trailer_check_memory(const wf_trailer *t, const char *path, int64_t block, const void *data) {
  int64_t offset, bytes;
  const wf_trailer_range *r = wf_trailer_block(t, block, &offset, &bytes);
  if (XXH3_64bits(data, (size_t)bytes) == t->sums[block]) return WF_OK;
  return damaged(WF_FAIL(WF_EFORMAT, "%s: block %lld (bytes %lld to %lld of the file) does not match its sum",
                         r->name, (long long)(block - r->first_block), (long long)offset,
                         (long long)(offset + bytes - 1)),
                 path);
}

wf_status wf_trailer_check_blocks(const wf_trailer *t, int fd, const char *path, int64_t first, int64_t n) {
  void *buffer;
  wf_status s = WF_OK;
  WF_ALLOC(buffer, TAG, WF_TRAILER_BLOCK);
  for (int64_t b = first; b < first + n; b++) {
    int64_t offset, bytes;
    wf_trailer_block(t, b, &offset, &bytes);
    WF_TRY_GOTO(s, out, wf_read_at(fd, path, buffer, bytes, offset));
    WF_TRY_GOTO(s, out, wf_trailer_check_memory(t, path, b, buffer));
  }
out:
  wf_free(buffer);
  return s;
}

bool wf_trailer_looks_like(int fd, const char *path) {
  int64_t size;
  footer foot;
  bool yes = wf_file_size(fd, path, &size) == WF_OK && read_footer(fd, path, size, &foot) == WF_OK;
  wf_error_clear();
  return yes;
}
