/* The list of files first (folders are walked and sorted), then one file after the other through one buffer.
 */
#define _GNU_SOURCE
#include "data/source.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include "core/file.h"
#include "core/memory.h"

#define TAG "source"
enum { CHUNK = 1 << 20, MAX_DEPTH = 64 };
static const size_t max_line = (size_t)1 << 30;

/* Which file on the disk a path led to. */
typedef struct identity {
  dev_t device;
  ino_t inode;
  size_t index; /* of the file in the list */
  bool named;   /* given itself, not found in a folder */
} identity;

struct wf_source {
  const char *separator, *key;
  wf_source_file *files;
  identity *ids; /* [capacity], beside files */
  size_t n_files, capacity, ids_capacity;
  int64_t bytes, done, skipped;

  size_t current; /* the file being read; fd < 0: not open yet */
  int fd;
  int64_t offset; /* of the next byte to read */
  XXH64_state_t *sum;
  char *buffer;
  size_t size, n;   /* capacity, bytes held */
  size_t begin, at; /* start of the text not given yet; start of the line to look at */
  bool inside_line; /* buffer[at] continues a line whose beginning has been given */
  bool end_of_file, json;
  int64_t line, doc_line; /* number of the line at `at`; of the document's first line */
  json_t *held;           /* owns the text of the last JSON line */
};

/* --- The list of files --- */

static wf_status add_file(wf_source *s, const char *path, int tag, const struct stat *st, bool named) {
  WF_TRY(wf_grow(TAG, (void **)&s->files, sizeof *s->files, s->n_files, &s->capacity));
  WF_TRY(wf_grow(TAG, (void **)&s->ids, sizeof *s->ids, s->n_files, &s->ids_capacity));
  wf_source_file *f = &s->files[s->n_files];
  *f = (wf_source_file){.path = wf_strdup(TAG, path), .bytes = (int64_t)st->st_size, .tag = tag};
  if (!f->path) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  s->ids[s->n_files] = (identity){st->st_dev, st->st_ino, s->n_files, named};
  s->n_files++;
  return WF_OK;
}

/* Is there a NUL byte near the start? */
static wf_status looks_binary(const char *path, bool *binary) {
  char head[8192];
  int fd;
  WF_TRY(wf_open_read(path, &fd));
  ssize_t n = pread(fd, head, sizeof head, 0);
  close(fd);
  if (n < 0) return WF_FAIL(WF_EIO, "cannot read %s: %s", path, strerror(errno));
  *binary = memchr(head, 0, (size_t)n) != NULL;
  return WF_OK;
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static wf_status list_folder(const char *path, char ***names, size_t *n) {
  size_t capacity = 0;
  DIR *dir = opendir(path);
  if (!dir) return WF_FAIL(WF_EIO, "cannot open the folder %s: %s", path, strerror(errno));
  wf_status s = WF_OK;
  for (struct dirent *e; s == WF_OK && (e = readdir(dir));) {
    if (e->d_name[0] == '.') continue;
    s = wf_grow(TAG, (void **)names, sizeof **names, *n, &capacity);
    if (s != WF_OK) break;
    size_t size = strlen(path) + strlen(e->d_name) + 2;
    char *name = wf_alloc(TAG, size);
    if (!name) {
      s = WF_ENOMEM;
      break;
    }
    snprintf(name, size, "%s%s%s", path, path[strlen(path) - 1] == '/' ? "" : "/", e->d_name);
    (*names)[(*n)++] = name;
  }
  closedir(dir);
  if (*n) qsort(*names, *n, sizeof **names, by_name);
  return s;
}

static wf_status walk(wf_source *s, const char *path, int tag, int depth);

static wf_status visit(wf_source *s, const char *path, int tag, int depth) {
  struct stat st;
  bool binary = false;
  if (stat(path, &st) != 0) { /* a dangling link */
    s->skipped++;
    return WF_OK;
  }
  if (S_ISDIR(st.st_mode)) {
    struct stat link;
    if (lstat(path, &link) == 0 && S_ISLNK(link.st_mode)) return WF_OK; /* could lead round in circles */
    return walk(s, path, tag, depth + 1);
  }
  bool take = S_ISREG(st.st_mode) && st.st_size > 0;
  if (take) WF_TRY(looks_binary(path, &binary));
  if (take && !binary) return add_file(s, path, tag, &st, false);
  s->skipped++;
  return WF_OK;
}

static wf_status walk(wf_source *s, const char *path, int tag, int depth) {
  if (depth > MAX_DEPTH) return WF_FAIL(WF_EINVAL, "folders are nested too deep at %s", path);
  char **names = NULL;
  size_t n = 0;
  wf_status status = list_folder(path, &names, &n);
  for (size_t i = 0; i < n && status == WF_OK; i++) status = visit(s, names[i], tag, depth);
  for (size_t i = 0; i < n; i++) wf_free(names[i]);
  wf_free(names);
  return status;
}

static wf_status add_input(wf_source *s, const wf_source_input *in) {
  struct stat st;
  if (stat(in->path, &st) != 0)
    return WF_FAIL(errno == ENOENT ? WF_ENOTFOUND : WF_EIO, "cannot open %s: %s", in->path, strerror(errno));
  if (S_ISDIR(st.st_mode)) {
    size_t before = s->n_files;
    WF_TRY(walk(s, in->path, in->tag, 0));
    if (s->n_files == before) return WF_FAIL(WF_EINVAL, "the folder %s has no text files", in->path);
    return WF_OK;
  }
  if (!S_ISREG(st.st_mode)) return WF_FAIL(WF_EINVAL, "%s is neither a file nor a folder", in->path);
  if (st.st_size == 0) return WF_FAIL(WF_EINVAL, "the file %s is empty", in->path);
  if (access(in->path, R_OK) != 0) return WF_FAIL(WF_EIO, "cannot read %s: %s", in->path, strerror(errno));
  return add_file(s, in->path, in->tag, &st, true);
}

static int by_identity(const void *pa, const void *pb) {
  const identity *a = pa, *b = pb;
  if (a->device != b->device) return a->device < b->device ? -1 : 1;
  if (a->inode != b->inode) return a->inode < b->inode ? -1 : 1;
  return a->index < b->index ? -1 : a->index > b->index;
}

/* A file with several names is taken once; naming it twice is a mistake. */
static wf_status drop_doubles(wf_source *s) {
  qsort(s->ids, s->n_files, sizeof *s->ids, by_identity);
  for (size_t i = 1; i < s->n_files; i++) {
    const identity *a = &s->ids[i - 1], *b = &s->ids[i];
    if (a->device != b->device || a->inode != b->inode) continue;
    wf_source_file *f = &s->files[b->index];
    if (b->named)
      return wf_hint(WF_FAIL(WF_EINVAL, "%s is given twice", f->path),
                     "two names may lead to one file; a text in two splits would spoil the validation");
    wf_free(f->path);
    f->path = NULL;
    s->skipped++;
  }
  size_t n = 0;
  for (size_t i = 0; i < s->n_files; i++)
    if (s->files[i].path) s->files[n++] = s->files[i];
  s->n_files = n;
  for (size_t i = 0; i < n; i++) s->bytes += s->files[i].bytes;
  return WF_OK;
}

wf_status wf_source_open(const wf_source_input *inputs, int n, const wf_source_options *o, wf_source **out) {
  wf_source *s;
  if (n <= 0) return wf_hint(WF_FAIL(WF_EINVAL, "no texts given"), "name files or folders");
  WF_CALLOC(s, TAG, 1);
  s->fd = -1;
  s->separator = o->separator;
  s->key = o->key ? o->key : "text";
  wf_status status = WF_OK;
  for (int i = 0; i < n && status == WF_OK; i++) status = add_input(s, &inputs[i]);
  if (status == WF_OK) status = drop_doubles(s);
  if (status == WF_OK && !(s->buffer = wf_alloc(TAG, 2 * CHUNK))) status = WF_ENOMEM;
  if (status == WF_OK && !(s->sum = XXH64_createState())) status = WF_FAIL(WF_ENOMEM, "out of memory");
  if (status != WF_OK) {
    wf_source_close(s);
    return wf_frame_at(__FILE__, __LINE__, __func__, status);
  }
  s->size = 2 * CHUNK;
  *out = s;
  return WF_OK;
}

static void close_file(wf_source *s) {
  if (s->fd >= 0) close(s->fd);
  s->fd = -1;
  if (s->held) json_decref(s->held);
  s->held = NULL;
}

void wf_source_close(wf_source *s) {
  if (!s) return;
  close_file(s);
  for (size_t i = 0; i < s->n_files; i++) wf_free(s->files[i].path);
  wf_free(s->files);
  wf_free(s->ids);
  wf_free(s->buffer);
  XXH64_freeState(s->sum);
  wf_free(s);
}

wf_status wf_source_rewind(wf_source *s) {
  close_file(s);
  s->current = 0;
  s->done = 0;
  return WF_OK;
}

int64_t wf_source_files(const wf_source *s, const wf_source_file **files) {
  *files = s->files;
  return (int64_t)s->n_files;
}
int64_t wf_source_bytes(const wf_source *s) {
  return s->bytes;
}
int64_t wf_source_done(const wf_source *s) {
  return s->done;
}
int64_t wf_source_skipped(const wf_source *s) {
  return s->skipped;
}

/* --- Reading --- */

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), m = strlen(end);
  return n >= m && !strcmp(text + n - m, end);
}

static wf_status open_file(wf_source *s) {
  const wf_source_file *f = &s->files[s->current];
  WF_TRY(wf_open_read(f->path, &s->fd));
  s->offset = 0;
  s->n = s->begin = s->at = 0;
  s->inside_line = s->end_of_file = false;
  s->line = s->doc_line = 1;
  s->json = ends_with(f->path, ".jsonl") || ends_with(f->path, ".ndjson");
  XXH64_reset(s->sum, 0);
  return WF_OK;
}

static void finish_file(wf_source *s) {
  s->files[s->current++].sum = XXH64_digest(s->sum);
  close(s->fd);
  s->fd = -1;
}

/* More bytes behind those held: given ones are dropped, and the buffer grows when a line fills it. */
static wf_status refill(wf_source *s) {
  memmove(s->buffer, s->buffer + s->begin, s->n - s->begin);
  s->n -= s->begin;
  s->at -= s->begin;
  s->begin = 0;
  if (s->size - s->n < CHUNK) {
    if (s->size >= max_line)
      return WF_FAIL(WF_EFORMAT, "%s:%lld: the line is longer than 1 GiB", s->files[s->current].path,
                     (long long)s->line);
    char *p = wf_realloc(TAG, s->buffer, 2 * s->size);
    if (!p) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
    s->buffer = p;
    s->size *= 2;
  }
  ssize_t got;
  do got = pread(s->fd, s->buffer + s->n, CHUNK, s->offset);
  while (got < 0 && errno == EINTR);
  if (got < 0) return WF_FAIL(WF_EIO, "cannot read %s: %s", s->files[s->current].path, strerror(errno));
  XXH64_update(s->sum, s->buffer + s->n, (size_t)got);
  s->end_of_file = got == 0;
  s->n += (size_t)got;
  s->offset += got;
  s->done += got;
  return WF_OK;
}

/* The document's text from `begin` up to `to`; what follows goes on at `next`. */
static void give(wf_source *s, wf_source_part *part, size_t to, size_t next, bool end) {
  *part = (wf_source_part){.text = s->buffer + s->begin,
                           .n = to - s->begin,
                           .end = end,
                           .file = &s->files[s->current],
                           .line = s->separator ? s->doc_line : 0};
  s->begin = s->at = next;
  if (end) s->doc_line = s->line;
}

static bool is_separator(const wf_source *s, size_t from, size_t to) {
  if (s->inside_line) return false;
  if (to > from && s->buffer[to - 1] == '\r') to--;
  return strlen(s->separator) == to - from && !memcmp(s->buffer + from, s->separator, to - from);
}

static wf_status next_text(wf_source *s, wf_source_part *part, bool *got) {
  for (;;) {
    char *newline = NULL;
    while (s->separator && s->at < s->n && (newline = memchr(s->buffer + s->at, '\n', s->n - s->at))) {
      size_t from = s->at, end = (size_t)(newline - s->buffer);
      bool separates = is_separator(s, from, end);
      s->line++;
      s->inside_line = false;
      s->at = end + 1;
      *got = separates;
      if (separates) {
        give(s, part, from, end + 1, true);
        return WF_OK;
      }
    }
    *got = true;
    if (s->end_of_file) {
      bool separates = s->separator && is_separator(s, s->at, s->n);
      give(s, part, separates ? s->at : s->n, s->n, true);
      finish_file(s);
      return WF_OK;
    }
    if (s->n - s->begin >= CHUNK) {
      /* Enough: what is certain to be text. The last line may still turn out to separate, unless it is too
       * long. */
      bool rest = !s->separator || s->inside_line || s->n - s->at > strlen(s->separator) + 1;
      if (rest && s->separator) s->inside_line = true;
      size_t to = rest ? s->n : s->at;
      if (to > s->begin) {
        give(s, part, to, to, false);
        return WF_OK;
      }
    }
    WF_TRY(refill(s));
  }
}

static wf_status parse_line(wf_source *s, const char *text, size_t n, wf_source_part *part) {
  const wf_source_file *f = &s->files[s->current];
  json_error_t error;
  if (s->held) json_decref(s->held);
  s->held = json_loadb(text, n, JSON_ALLOW_NUL, &error);
  if (!s->held)
    return wf_hint(WF_FAIL(WF_EFORMAT, "%s:%lld: not a JSON object: column %d: %s", f->path,
                           (long long)s->line, error.column, error.text),
                   "a .jsonl file has one JSON object a line");
  const json_t *value = json_object_get(s->held, s->key);
  if (!json_is_string(value))
    return wf_hint(WF_FAIL(WF_EFORMAT, "%s:%lld: there is no text under the key '%s'", f->path,
                           (long long)s->line, s->key),
                   "name the key that holds the text with --key");
  *part = (wf_source_part){.text = json_string_value(value),
                           .n = json_string_length(value),
                           .end = true,
                           .file = f,
                           .line = s->line};
  return WF_OK;
}

static wf_status next_json(wf_source *s, wf_source_part *part, bool *got) {
  while (!*got) {
    char *newline = s->at < s->n ? memchr(s->buffer + s->at, '\n', s->n - s->at) : NULL;
    if (!newline && !s->end_of_file) {
      s->at = s->n; /* looked through so far */
      WF_TRY(refill(s));
      continue;
    }
    const char *text = s->buffer + s->begin;
    size_t end = newline ? (size_t)(newline - s->buffer) : s->n, n = end - s->begin;
    bool blank = true;
    for (size_t i = 0; i < n && blank; i++) blank = strchr(" \t\r", text[i]) && text[i];
    if (!blank) {
      WF_TRY(parse_line(s, text, n, part));
      *got = true;
    }
    s->begin = s->at = newline ? end + 1 : end;
    s->line++;
    if (!newline) {
      finish_file(s);
      break;
    }
  }
  return WF_OK;
}

wf_status wf_source_next(wf_source *s, wf_source_part *part, bool *got) {
  *got = false;
  while (!*got && s->current < s->n_files) {
    if (s->fd < 0) WF_TRY(open_file(s));
    WF_TRY(s->json ? next_json(s, part, got) : next_text(s, part, got));
  }
  return WF_OK;
}
