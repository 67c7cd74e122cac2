/* System calls in loops, with errors a user can act on; atomic replacement by rename.
 *
 * Every failed call ends in wf_io_error(), which words the message from errno and adds the hint. */
#define _GNU_SOURCE
#include "core/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/memory.h"

#define TAG "file"

/* Linux moves at most 0x7ffff000 bytes a call; a smaller step also lets signals in. */
enum { STEP = 1 << 30, COPY_BUFFER = 1 << 20 };

/* The folder part of a path, written into out ("." when there is none). False when it does not fit. */
static bool parent_of(const char *path, char *out, size_t size) {
  const char *slash = strrchr(path, '/');
  size_t n = slash ? (size_t)(slash - path) : 1;
  if (slash == path) n = 1;
  if (n + 1 > size) return false;
  memcpy(out, slash ? path : ".", n);
  out[n] = '\0';
  return true;
}

static void hint_for(wf_status s, int error, const char *path) {
  char folder[PATH_MAX];
  struct statvfs v;
  if (error == ENOSPC || error == EDQUOT) {
    if (parent_of(path, folder, sizeof folder) && statvfs(folder, &v) == 0)
      wf_hint(s, "%.1f MiB are free in %s: make room, or write elsewhere",
              (double)v.f_bavail * (double)v.f_frsize / 1048576.0, folder);
    else
      wf_hint(s, "the disk or your quota is full: make room, or write elsewhere");
  } else if (error == EFBIG) {
    wf_hint(s, "the file would exceed the file system's or your limit of file size (ulimit -f)");
  } else if (error == EACCES || error == EPERM) {
    wf_hint(s, "check the permissions of the file and of the folders above it");
  } else if (error == EROFS) {
    wf_hint(s, "this file system can only be read: write elsewhere");
  } else if (error == EMFILE || error == ENFILE) {
    wf_hint(s, "too many files are open: raise the limit with ulimit -n");
  } else if (error == ENOTDIR) {
    wf_hint(s, "a part of this path is a file, not a folder");
  }
}

wf_status wf_io_error(int error, const char *verb, const char *path) {
  wf_status s =
      WF_FAIL(error == ENOENT ? WF_ENOTFOUND : WF_EIO, "cannot %s %s: %s", verb, path, strerror(error));
  hint_for(s, error, path);
  errno = error;
  return s;
}

wf_status wf_read_at(int fd, const char *path, void *data, int64_t bytes, int64_t offset) {
  char *at = data;
  for (int64_t left = bytes; left > 0;) {
    ssize_t n = pread(fd, at, (size_t)(left < STEP ? left : STEP), (off_t)offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return wf_io_error(errno, "read", path);
    if (n == 0)
      return WF_FAIL(WF_EFORMAT, "%s ends at byte %lld, %lld bytes too early", path, (long long)offset,
                     (long long)left);
    at += n;
    offset += n;
    left -= n;
  }
  return WF_OK;
}

wf_status wf_write_at(int fd, const char *path, const void *data, int64_t bytes, int64_t offset) {
  const char *at = data;
  for (int64_t left = bytes; left > 0;) {
    ssize_t n = pwrite(fd, at, (size_t)(left < STEP ? left : STEP), (off_t)offset);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) errno = ENOSPC; /* a device that takes nothing more */
    if (n <= 0) return wf_io_error(errno, "write", path);
    at += n;
    offset += n;
    left -= n;
  }
  return WF_OK;
}

wf_status wf_open_read(const char *path, int *fd) {
  struct stat st;
  int opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
  if (opened < 0) return wf_io_error(errno, "open", path);
  if (fstat(opened, &st) != 0) {
    wf_status s = wf_io_error(errno, "open", path);
    close(opened);
    return s;
  }
  if (!S_ISREG(st.st_mode)) {
    close(opened);
    return WF_FAIL(WF_EINVAL, "%s is %s, not a file", path,
                   S_ISDIR(st.st_mode) ? "a folder" : "a device or pipe");
  }
  *fd = opened;
  return WF_OK;
}

wf_status wf_file_size(int fd, const char *path, int64_t *bytes) {
  struct stat st;
  if (fstat(fd, &st) != 0) return wf_io_error(errno, "examine", path);
  *bytes = (int64_t)st.st_size;
  return WF_OK;
}

wf_status wf_sync(int fd, const char *path) {
  while (fsync(fd) != 0)
    if (errno != EINTR) return wf_io_error(errno, "sync", path);
  return WF_OK;
}

wf_status wf_reserve(int fd, const char *path, int64_t bytes) {
  int64_t now;
  if (bytes <= 0 || fallocate(fd, 0, 0, (off_t)bytes) == 0) return WF_OK;
  if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)
    return wf_io_error(errno, "reserve space for", path);
  WF_TRY(wf_file_size(fd, path, &now)); /* this file system cannot reserve */
  if (now < bytes && ftruncate(fd, (off_t)bytes) != 0) return wf_io_error(errno, "set the length of", path);
  return WF_OK;
}

wf_status wf_copy_range(int from, const char *from_path, int64_t from_offset, int to, const char *to_path,
                        int64_t to_offset, int64_t bytes) {
  void *buffer;
  wf_status s = WF_OK;
  WF_ALLOC(buffer, TAG, COPY_BUFFER);
  for (int64_t done = 0; done < bytes;) {
    int64_t n = bytes - done < COPY_BUFFER ? bytes - done : COPY_BUFFER;
    WF_TRY_GOTO(s, out, wf_read_at(from, from_path, buffer, n, from_offset + done));
    WF_TRY_GOTO(s, out, wf_write_at(to, to_path, buffer, n, to_offset + done));
    done += n;
  }
out:
  wf_free(buffer);
  return s;
}

wf_status wf_file_read(const char *path, int64_t limit, char **data, int64_t *bytes) {
  int fd;
  int64_t n;
  char *text = NULL;
  wf_status s;
  WF_TRY(wf_open_read(path, &fd));
  WF_TRY_GOTO(s, out, wf_file_size(fd, path, &n));
  if (n > limit) {
    s = WF_FAIL(WF_EFORMAT, "%s has %lld bytes; at most %lld are allowed here", path, (long long)n,
                (long long)limit);
    goto out;
  }
  if (!(text = wf_alloc(TAG, (size_t)n + 1))) {
    s = WF_ENOMEM;
    goto out;
  }
  WF_TRY_GOTO(s, out, wf_read_at(fd, path, text, n, 0));
  text[n] = '\0';
  *data = text;
  *bytes = n;
  text = NULL;
out:
  wf_free(text);
  close(fd);
  return s;
}

wf_status wf_file_write(const char *path, const void *data, int64_t bytes) {
  wf_replace r;
  WF_TRY(wf_replace_begin(path, &r));
  wf_status s = wf_write_at(r.fd, r.tmp, data, bytes, 0);
  if (s != WF_OK) {
    wf_replace_abandon(&r);
    return s;
  }
  return wf_replace_commit(&r);
}

wf_status wf_replace_begin(const char *path, wf_replace *r) {
  *r = (wf_replace){.fd = -1};
  size_t size = strlen(path) + 32;
  wf_status s = WF_ENOMEM;
  r->path = wf_strdup(TAG, path);
  r->tmp = r->path ? wf_alloc(TAG, size) : NULL;
  if (!r->tmp) goto fail;
  if (wf_is_directory(path)) {
    s = WF_FAIL(WF_EEXISTS, "%s is a folder; a file is to be written there", path);
    goto fail;
  }
  snprintf(r->tmp, size, "%s.tmp-%lld", path, (long long)getpid());
  /* One left by a process of this number that was killed would be in the way. */
  r->fd = open(r->tmp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (r->fd < 0) {
    s = wf_io_error(errno, "create", r->tmp);
    goto fail;
  }
  return WF_OK;
fail:
  wf_free(r->path);
  wf_free(r->tmp);
  *r = (wf_replace){.fd = -1};
  return s;
}

wf_status wf_replace_commit(wf_replace *r) {
  wf_status s = wf_sync(r->fd, r->tmp);
  int fd = r->fd;
  r->fd = -1;
  if (close(fd) != 0 && s == WF_OK)
    s = wf_io_error(errno, "close", r->tmp); /* some network file systems tell only here */
  if (s == WF_OK && rename(r->tmp, r->path) != 0) s = wf_io_error(errno, "replace", r->path);
  if (s != WF_OK) {
    wf_replace_abandon(r);
    return s;
  }
  s = wf_sync_parent(r->path);
  wf_free(r->path);
  wf_free(r->tmp);
  *r = (wf_replace){.fd = -1};
  return s;
}

void wf_replace_abandon(wf_replace *r) {
  if (r->fd >= 0) close(r->fd);
  if (r->tmp) unlink(r->tmp);
  wf_free(r->path);
  wf_free(r->tmp);
  *r = (wf_replace){.fd = -1};
}

bool wf_file_exists(const char *path) {
  struct stat st;
  return lstat(path, &st) == 0;
}

bool wf_is_directory(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

wf_status wf_make_directories(const char *path) {
  char part[PATH_MAX];
  size_t n = strlen(path);
  if (n == 0 || n >= sizeof part)
    return WF_FAIL(WF_EINVAL, "the folder's name is %s", n ? "too long" : "empty");
  memcpy(part, path, n + 1);
  for (size_t i = 1; i <= n; i++) {
    if (part[i] != '/' && part[i] != '\0') continue;
    char kept = part[i];
    part[i] = '\0';
    if (mkdir(part, 0777) != 0) {
      int error = errno;
      if (!wf_is_directory(part)) {
        if (error == EEXIST)
          return WF_FAIL(WF_EEXISTS, "cannot create the folder %s: a file has that name", part);
        return wf_io_error(error, "create the folder", part);
      }
    }
    part[i] = kept;
  }
  return WF_OK;
}

wf_status wf_make_parent(const char *path) {
  char folder[PATH_MAX];
  if (!parent_of(path, folder, sizeof folder)) return WF_FAIL(WF_EINVAL, "the file's name is too long");
  return wf_make_directories(folder);
}

wf_status wf_sync_parent(const char *path) {
  char folder[PATH_MAX];
  if (!parent_of(path, folder, sizeof folder)) return WF_FAIL(WF_EINVAL, "the file's name is too long");
  int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    return errno == EACCES ? WF_OK
                           : wf_io_error(errno, "open", folder); /* a folder one may write but not list */
  wf_status s = WF_OK;
  if (fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP)
    s = wf_io_error(errno, "sync", folder); /* not all can */
  close(fd);
  return s;
}

wf_status wf_remove_file(const char *path) {
  if (unlink(path) != 0 && errno != ENOENT) return wf_io_error(errno, "remove", path);
  return WF_OK;
}

wf_status wf_rename(const char *from, const char *to) {
  if (rename(from, to) != 0) return wf_io_error(errno, "rename", from);
  WF_TRY(wf_sync_parent(to));
  return WF_OK;
}

/* A name that is in the folder, for the message why it cannot be removed. */
static void first_entry(const char *directory, char *out, size_t size) {
  DIR *d = opendir(directory);
  out[0] = '\0';
  if (!d) return;
  for (struct dirent *e; (e = readdir(d));) {
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    snprintf(out, size, "%s", e->d_name);
    break;
  }
  closedir(d);
}

wf_status wf_remove_directory(const char *directory, const char *const *names, int n) {
  if (!wf_file_exists(directory)) return WF_OK;
  int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return wf_io_error(errno, "open the folder", directory);
  wf_status s = WF_OK;
  for (int i = 0; i < n && s == WF_OK; i++) {
    if (unlinkat(fd, names[i], 0) != 0 && errno != ENOENT) {
      s = wf_io_error(errno, "remove", names[i]);
      wf_context(s, "in %s", directory);
    }
  }
  close(fd);
  if (s != WF_OK) return s;
  if (rmdir(directory) != 0) {
    int error = errno;
    char name[NAME_MAX + 1];
    first_entry(directory, name, sizeof name);
    if (name[0] && (error == ENOTEMPTY || error == EEXIST))
      return WF_FAIL(WF_EIO, "%s also holds %s, which Weft did not write: the folder stays", directory, name);
    return wf_io_error(error, "remove the folder", directory);
  }
  return WF_OK;
}
