/* The checkpoints of a run: step-00000100.h5 and so on in one folder, of which the newest few are kept. */
#include "experiments/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"

#define TAG "checkpoint"

/* The checkpoints in a folder, newest first, and what killed runs left of unfinished ones. */
typedef struct listing {
  int64_t *step;
  char **unfinished;
  size_t n, cap, n_unfinished, cap_unfinished;
} listing;

static void free_listing(listing *l) {
  for (size_t i = 0; i < l->n_unfinished; i++) wf_free(l->unfinished[i]);
  wf_free(l->unfinished);
  wf_free(l->step);
}

static wf_status add_name(listing *l, const char *name) {
  long long step;
  int end = 0;
  if (sscanf(name, "step-%18lld.h5%n", &step, &end) != 1 || !end || step < 0) return WF_OK;
  if (name[end] == '\0') {
    char right[64];
    snprintf(right, sizeof right, "step-%08lld.h5", step);
    if (strcmp(name, right) != 0) return WF_OK; /* another spelling is not ours */
    WF_TRY(wf_grow(TAG, (void **)&l->step, sizeof *l->step, l->n, &l->cap));
    l->step[l->n++] = step;
  } else if (strncmp(name + end, ".tmp-", 5) == 0) {
    WF_TRY(wf_grow(TAG, (void **)&l->unfinished, sizeof *l->unfinished, l->n_unfinished, &l->cap_unfinished));
    if (!(l->unfinished[l->n_unfinished] = wf_strdup(TAG, name))) return WF_ENOMEM;
    l->n_unfinished++;
  }
  return WF_OK;
}

static int newest_first(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x < y) - (x > y);
}

/* A folder that does not exist holds none. */
static wf_status list(const char *dir, listing *l) {
  *l = (listing){0};
  DIR *d = opendir(dir);
  if (!d) return errno == ENOENT ? WF_OK : wf_io_error(errno, "read the folder", dir);
  wf_status s = WF_OK;
  for (struct dirent *e; s == WF_OK && (e = readdir(d));) s = add_name(l, e->d_name);
  closedir(d);
  if (s != WF_OK) free_listing(l);
  if (s == WF_OK && l->n) qsort(l->step, l->n, sizeof *l->step, newest_first);
  return s;
}

static char *join(const char *dir, const char *name) {
  size_t size = strlen(dir) + strlen(name) + 2;
  char *path = wf_alloc(TAG, size);
  if (path) snprintf(path, size, "%s/%s", dir, name);
  return path;
}

static char *step_path(const char *dir, int64_t step) {
  char name[64];
  snprintf(name, sizeof name, "step-%08lld.h5", (long long)step);
  return join(dir, name);
}

static wf_status remove_owned(char *path) {
  wf_status s = path ? wf_remove_file(path) : WF_ENOMEM;
  wf_free(path);
  return s;
}

/* Remove all but the newest `keep` up to `step`. Later ones were refused when the run was resumed before
 * them; they count for nothing and are overwritten when the run comes there. */
static wf_status prune(const char *dir, int64_t step, int64_t keep) {
  listing l;
  int64_t kept = 0;
  WF_TRY(list(dir, &l));
  wf_status s = WF_OK;
  for (size_t i = 0; i < l.n_unfinished && s == WF_OK; i++) s = remove_owned(join(dir, l.unfinished[i]));
  for (size_t i = 0; i < l.n && s == WF_OK; i++)
    if (keep > 0 && l.step[i] <= step && ++kept > keep) s = remove_owned(step_path(dir, l.step[i]));
  free_listing(&l);
  return s;
}

wf_status wf_checkpoint_save_step(const char *dir, const wf_snapshot *s, const char *config,
                                  const void *tokenizer, size_t tokenizer_size, int64_t keep) {
  char *path = step_path(dir, s->step);
  if (!path) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  wf_status st = wf_checkpoint_save(path, s, config, tokenizer, tokenizer_size);
  wf_free(path);
  WF_TRY(st);
  bool first = !s->shards || wf_comm_rank(s->shards->comm) == 0;
  return first ? prune(dir, s->step, keep) : WF_OK;
}

wf_status wf_checkpoint_latest(const char *dir, void (*refused)(void *arg, const char *path, const char *why),
                               void *arg, char **path) {
  listing l;
  wf_status s = WF_OK;
  *path = NULL;
  WF_TRY(list(dir, &l));
  for (size_t i = 0; i < l.n && s == WF_OK && !*path; i++) {
    wf_checkpoint_info info;
    char *candidate = step_path(dir, l.step[i]);
    s = candidate ? wf_checkpoint_read_info(candidate, &info) : WF_ENOMEM;
    if (s == WF_OK) {
      wf_checkpoint_info_free(&info);
      *path = candidate;
      break;
    }
    if (s != WF_ENOMEM) { /* says nothing about the file */
      if (refused) refused(arg, candidate, wf_error_message());
      s = WF_OK;
    }
    wf_free(candidate);
  }
  free_listing(&l);
  return s;
}
