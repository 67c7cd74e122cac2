/* core/h5 and core/trailer: what is written is read back, equal content gives equal bytes, and any damage,
 * any failed write and any failed allocation is an error that leaves nothing behind. */
#define _GNU_SOURCE /* unshare */
#include <errno.h>
#include <hdf5.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "core/file.h"
#include "core/h5.h"
#include "core/memory.h"
#include "core/trailer.h"
#include "tests/check_main.h"
#include "tests/temp_dir.h"

static void set_up(void) {
  temp_dir_make();
  signal(SIGXFSZ, SIG_IGN);
}

#define OK(expr)                                                      \
  do {                                                                \
    wf_status ok_ = (expr);                                           \
    ck_assert_msg(ok_ == WF_OK, "%s: %s", #expr, wf_error_message()); \
  } while (0)

static const int64_t shape6[6] = {2, 1, 3, 1, 2, 2}, empty[2] = {0, 7}, grow[2] = {WF_H5_GROWING, 3};

/* A bit of everything, in a file of about 10 kB. On failure nothing is left. */
static wf_status write_sample(const char *path) {
  static const uint8_t bytes[5] = {1, 2, 3, 4, 255};
  static const double scalar = -0.5;
  int32_t rows[6] = {1, 2, 3, 4, 5, 6};
  float x[24];
  wf_h5_writer *w;
  wf_status s;
  int x_id, rows_id, half_id;
  for (int i = 0; i < 24; i++) x[i] = (float)i / 3;
  WF_TRY(wf_h5_create(path, &w));
  WF_TRY_GOTO(s, fail, wf_h5_set_string(w, "", "kind", "test"));
  WF_TRY_GOTO(s, fail, wf_h5_set_i64(w, "", "step", INT64_MIN));
  WF_TRY_GOTO(s, fail, wf_h5_define(w, "model/deep/x", WF_F32, 6, shape6, &x_id));
  WF_TRY_GOTO(s, fail, wf_h5_set_f64(w, "model/deep/x", "scale", 0.1));
  WF_TRY_GOTO(s, fail, wf_h5_set_string(w, "model", "note", ""));
  WF_TRY_GOTO(s, fail, wf_h5_define(w, "model/half", WF_BF16, 1, (int64_t[]){3}, &half_id));
  WF_TRY_GOTO(s, fail, wf_h5_define(w, "none", WF_I64, 2, empty, NULL));
  WF_TRY_GOTO(s, fail, wf_h5_define(w, "rows", WF_I32, 2, grow, &rows_id));
  WF_TRY_GOTO(s, fail, wf_h5_put(w, "bytes", WF_U8, 1, (int64_t[]){5}, bytes));
  WF_TRY_GOTO(s, fail, wf_h5_put(w, "scalar", WF_F64, 0, NULL, &scalar));
  WF_TRY_GOTO(s, fail, wf_h5_group(w, "empty group"));
  WF_TRY_GOTO(s, fail, wf_h5_append(w, rows_id, rows, 1));
  WF_TRY_GOTO(s, fail, wf_h5_append(w, rows_id, rows + 3, 1));
  WF_TRY_GOTO(s, fail, wf_h5_layout(w));
  WF_TRY_GOTO(s, fail, wf_h5_write(w, x_id, 20, 4, x + 20));
  WF_TRY_GOTO(s, fail, wf_h5_write(w, x_id, 0, 20, x));
  WF_TRY_GOTO(s, fail, wf_h5_write(w, half_id, 0, 3, (uint16_t[]){0x3f80, 0, 0xbf80}));
  return wf_h5_commit(w);
fail:
  wf_h5_discard(w);
  return s;
}

static void assert_sample(const char *path, wf_h5_check check) {
  wf_h5_file *f;
  const wf_h5_info *o;
  const char *text;
  int64_t i64;
  double f64;
  float x[24];
  int32_t rows[6];
  uint8_t bytes[5];
  uint16_t half[3];
  OK(wf_h5_open(path, check, &f));
  ck_assert_str_eq(wf_h5_path(f), path);
  static const char *const names[] = {"bytes",      "empty group", "model", "model/deep", "model/deep/x",
                                      "model/half", "none",        "rows",  "scalar"};
  ck_assert_int_eq(wf_h5_entries(f), 9);
  for (int i = 0; i < 9; i++) ck_assert_str_eq(wf_h5_entry(f, i)->name, names[i]);
  OK(wf_h5_get_string(f, "", "kind", &text));
  ck_assert_str_eq(text, "test");
  OK(wf_h5_get_string(f, "model", "note", &text));
  ck_assert_str_eq(text, "");
  OK(wf_h5_get_i64(f, "", "step", &i64));
  ck_assert_int_eq(i64, INT64_MIN);
  OK(wf_h5_get_f64(f, "model/deep/x", "scale", &f64));
  ck_assert_double_eq(f64, 0.1);
  ck_assert_int_eq(wf_h5_get_f64(f, "", "step", &f64), WF_EFORMAT);
  ck_assert_int_eq(wf_h5_get_i64(f, "", "steps", &i64), WF_ENOTFOUND);
  ck_assert(wf_h5_has_attribute(f, "", "kind") && !wf_h5_has_attribute(f, "model", "kind"));
  OK(wf_h5_expect(f, "model/deep/x", WF_F32, 6, shape6, &o));
  ck_assert_int_eq(o->count, 24);
  OK(wf_h5_read(f, o, 0, 24, x));
  for (int i = 0; i < 24; i++) ck_assert_float_eq(x[i], (float)i / 3);
  OK(wf_h5_read(f, o, 23, 1, x));
  ck_assert_float_eq(x[0], 23.0f / 3);
  OK(wf_h5_read(f, o, 24, 0, x));
  ck_assert_int_eq(wf_h5_read(f, o, 23, 2, x), WF_EINTERNAL);
  ck_assert_int_eq(wf_h5_read(f, o, -1, 1, x), WF_EINTERNAL);
  OK(wf_h5_expect(f, "rows", WF_I32, 2, (int64_t[]){-1, 3}, &o));
  ck_assert_int_eq(o->shape[0], 2);
  OK(wf_h5_read(f, o, 0, 6, rows));
  for (int i = 0; i < 6; i++) ck_assert_int_eq(rows[i], i + 1);
  OK(wf_h5_expect(f, "bytes", WF_U8, 1, (int64_t[]){5}, &o));
  OK(wf_h5_read(f, o, 0, 5, bytes));
  ck_assert_uint_eq(bytes[4], 255);
  OK(wf_h5_expect(f, "scalar", WF_F64, 0, NULL, &o));
  OK(wf_h5_read(f, o, 0, 1, &f64));
  ck_assert_double_eq(f64, -0.5);
  OK(wf_h5_expect(f, "model/half", WF_BF16, 1, (int64_t[]){3}, &o));
  OK(wf_h5_read(f, o, 0, 3, half));
  ck_assert_uint_eq(half[2], 0xbf80);
  OK(wf_h5_expect(f, "none", WF_I64, 2, empty, &o));
  OK(wf_h5_read(f, o, 0, 0, NULL));
  ck_assert_int_eq(wf_h5_find(f, "model", &o), WF_ENOTFOUND);
  ck_assert(wf_h5_has(f, "model") && !wf_h5_has(f, "mode"));
  ck_assert_int_eq(wf_h5_find(f, "model/hal", &o), WF_ENOTFOUND);
  ck_assert_ptr_nonnull(strstr(wf_error_hint(), "model/half"));
  ck_assert_int_eq(wf_h5_expect(f, "rows", WF_I64, 2, (int64_t[]){-1, 4}, &o), WF_EFORMAT);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "rows is i32 [2, 3], not i64 [*, 4]"));
  wf_h5_close(f);
}

START_TEST(round_trip) {
  const char *path = temp_path("new/folder/a.h5");
  OK(write_sample(path));
  assert_sample(path, WF_H5_CHECK_ALL);
  assert_sample(path, WF_H5_CHECK_LAZY);
  ck_assert(wf_h5_looks_like(path));
  ck_assert(!wf_h5_looks_like(temp_path("none")) && !wf_h5_looks_like(temp_dir));
  OK(write_sample(path)); /* over the earlier one */
  assert_sample(path, WF_H5_CHECK_ALL);
}
END_TEST

/* libhdf5, and so h5py, reads the file by the documented names. */
START_TEST(plain_hdf5) {
  const char *path = temp_path("a.h5");
  int32_t rows[6];
  char text[5];
  OK(write_sample(path));
  hid_t f = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  ck_assert_int_ge(f, 0);
  hid_t d = H5Dopen2(f, "/rows", H5P_DEFAULT);
  ck_assert_int_ge(H5Dread(d, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, rows), 0);
  for (int i = 0; i < 6; i++) ck_assert_int_eq(rows[i], i + 1);
  hid_t a = H5Aopen_by_name(f, "/model/half", "dtype", H5P_DEFAULT, H5P_DEFAULT), type = H5Aget_type(a);
  ck_assert_int_ge(H5Aread(a, type, text), 0);
  ck_assert_str_eq(text, "bf16");
  H5Tclose(type);
  H5Aclose(a);
  H5Dclose(d);
  H5Fclose(f);
}
END_TEST

static char *slurp(const char *path, int64_t *bytes) {
  char *data;
  OK(wf_file_read(path, INT64_MAX, &data, bytes));
  return data;
}

static void spill(const char *path, const void *data, int64_t bytes) {
  FILE *f = fopen(path, "wb"); /* without the sync of wf_file_write: thousands of files here */
  ck_assert_ptr_nonnull(f);
  ck_assert_uint_eq(fwrite(data, 1, (size_t)bytes, f), (size_t)bytes);
  ck_assert_int_eq(fclose(f), 0);
}

static void assert_same_file(const char *a, const char *b) {
  int64_t n, m;
  char *x = slurp(a, &n), *y = slurp(b, &m);
  ck_assert_int_eq(n, m);
  ck_assert(memcmp(x, y, (size_t)n) == 0);
  wf_free(x);
  wf_free(y);
}

START_TEST(equal_bytes) {
  OK(write_sample(temp_path("a.h5")));
  struct timespec wait = {1, 100000000}; /* a stored time would differ */
  nanosleep(&wait, NULL);
  OK(write_sample(temp_path("b.h5")));
  assert_same_file(temp_path("a.h5"), temp_path("b.h5"));
}
END_TEST

enum { LONG = 700001 }; /* i32: 2.67 blocks, and many side buffers */

static int32_t long_value(int64_t i) {
  return (int32_t)(i * 2654435 % 1000003);
}

static int32_t *long_data(void) {
  int32_t *x = wf_alloc("test", LONG * sizeof *x);
  for (int i = 0; i < LONG; i++) x[i] = long_value(i);
  return x;
}

/* Appended in uneven pieces = written at once = written by another process. */
START_TEST(ways_of_writing) {
  int32_t *x = long_data();
  int64_t shape[1] = {WF_H5_GROWING};
  wf_h5_writer *w;
  int id;
  OK(wf_h5_create(temp_path("a.h5"), &w));
  OK(wf_h5_define(w, "tokens", WF_I32, 1, shape, &id));
  ck_assert_int_eq(wf_h5_offset(w, id), -1);
  for (int64_t at = 0, n = 1; at < LONG; at += n, n = n * 3 + 1)
    OK(wf_h5_append(w, id, x + at, n < LONG - at ? n : LONG - at));
  OK(wf_h5_append(w, id, x, 0));
  ck_assert_int_eq(wf_h5_rows(w, id), LONG);
  ck_assert_int_eq(temp_dir_count(), 1); /* the side file has no name */
  OK(wf_h5_commit(w));

  shape[0] = LONG;
  OK(wf_h5_create(temp_path("b.h5"), &w));
  OK(wf_h5_define(w, "tokens", WF_I32, 1, shape, &id));
  ck_assert_int_eq(wf_h5_write(w, id, 0, 1, x), WF_EINTERNAL);
  OK(wf_h5_layout(w));
  OK(wf_h5_write(w, id, 1000, LONG - 1000, x + 1000));
  OK(wf_h5_write(w, id, 0, 1000, x));
  ck_assert_int_eq(wf_h5_write(w, id, LONG, 1, x), WF_EINTERNAL);
  OK(wf_h5_commit(w));
  assert_same_file(temp_path("a.h5"), temp_path("b.h5"));

  OK(wf_h5_create(temp_path("c.h5"), &w));
  OK(wf_h5_define(w, "tokens", WF_I32, 1, shape, &id));
  OK(wf_h5_layout(w));
  pid_t child = fork();
  if (child == 0) {
    FILE *f = fopen(wf_h5_tmp_path(w), "r+b");
    bool done = f && wf_write_at(fileno(f), "", x, LONG * 4, wf_h5_offset(w, id)) == WF_OK;
    _exit(done ? 0 : 1);
  }
  int status;
  ck_assert_int_eq(waitpid(child, &status, 0), child);
  ck_assert_int_eq(status, 0);
  OK(wf_h5_commit(w));
  assert_same_file(temp_path("a.h5"), temp_path("c.h5"));
  ck_assert_int_eq(temp_dir_count(), 3);
  wf_free(x);
}
END_TEST

START_TEST(never_written_is_zero) {
  wf_h5_writer *w;
  wf_h5_file *f;
  const wf_h5_info *o;
  char name[32];
  int64_t x[50];
  OK(wf_h5_create(temp_path("a.h5"), &w));
  for (int i = 0; i < 40; i++) {
    snprintf(name, sizeof name, "g%d/x%d", i % 7, i);
    OK(wf_h5_define(w, name, WF_I64, 1, (int64_t[]){50}, NULL));
    OK(wf_h5_set_string(w, name, "some attribute", "some text that takes its place in the header"));
  }
  OK(wf_h5_commit(w));
  OK(wf_h5_open(temp_path("a.h5"), WF_H5_CHECK_ALL, &f));
  for (int64_t i = 0; i < wf_h5_entries(f); i++) {
    if (wf_h5_entry(f, i)->is_group) continue;
    OK(wf_h5_find(f, wf_h5_entry(f, i)->name, &o));
    OK(wf_h5_read(f, o, 0, 50, x));
    for (int j = 0; j < 50; j++) ck_assert_int_eq(x[j], 0);
  }
  wf_h5_close(f);
}
END_TEST

START_TEST(misuse) {
  wf_h5_writer *w;
  int id;
  char longer[WF_H5_MAX_STRING + 2];
  memset(longer, 'a', sizeof longer);
  longer[sizeof longer - 1] = '\0';
  OK(wf_h5_create(temp_path("a.h5"), &w));
  OK(wf_h5_define(w, "a/b", WF_F32, 1, (int64_t[]){3}, &id));
  ck_assert_int_eq(wf_h5_define(w, "a/b", WF_F32, 1, (int64_t[]){3}, NULL), WF_EEXISTS);
  ck_assert_int_eq(wf_h5_define(w, "a/b/c", WF_F32, 1, (int64_t[]){3}, NULL), WF_EEXISTS);
  ck_assert_int_eq(wf_h5_define(w, "a", WF_F32, 1, (int64_t[]){3}, NULL), WF_EEXISTS);
  static const char *const bad[] = {"", "/", "/a", "a/", "a//b", ".", "a/../b"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    ck_assert_int_eq(wf_h5_define(w, bad[i], WF_F32, 0, NULL, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_h5_define(w, longer, WF_F32, 0, NULL, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_h5_define(w, "x", WF_N_DTYPES, 0, NULL, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_h5_define(w, "x", WF_F32, 7, shape6, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_h5_define(w, "x", WF_F32, 1, (int64_t[]){-2}, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_h5_define(w, "x", WF_F32, 2, (int64_t[]){INT64_MAX / 2, 4}, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_h5_append(w, id, "", 1), WF_EINTERNAL);
  ck_assert_int_eq(wf_h5_set_string(w, "", "s", longer), WF_EINVAL);
  longer[WF_H5_MAX_STRING] = '\0';
  OK(wf_h5_set_string(w, "", "s", longer));
  ck_assert_int_eq(wf_h5_set_i64(w, "", "dtype", 1), WF_EINVAL);
  ck_assert_int_eq(wf_h5_set_i64(w, "nowhere", "x", 1), WF_EINTERNAL);
  OK(wf_h5_set_string(w, "", "again", "text"));
  OK(wf_h5_set_i64(w, "", "again", 5));
  OK(wf_h5_layout(w));
  ck_assert_int_eq(wf_h5_layout(w), WF_EINTERNAL);
  ck_assert_int_eq(wf_h5_set_i64(w, "", "later", 1), WF_EINTERNAL);
  OK(wf_h5_commit(w));
  wf_h5_file *f;
  const char *text;
  int64_t again;
  OK(wf_h5_open(temp_path("a.h5"), WF_H5_CHECK_ALL, &f));
  OK(wf_h5_get_string(f, "", "s", &text));
  ck_assert_str_eq(text, longer);
  OK(wf_h5_get_i64(f, "", "again", &again));
  ck_assert_int_eq(again, 5);
  wf_h5_close(f);
}
END_TEST

/* ---- Damage ---- */

static void assert_refused(const char *path, const char *why) {
  wf_h5_file *f = NULL;
  wf_status s = wf_h5_open(path, WF_H5_CHECK_ALL, &f);
  ck_assert_msg(s == WF_EFORMAT, "%s: status %d: %s", why, (int)s, wf_error_message());
  ck_assert_ptr_null(f);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), path));
  ck_assert_str_ne(wf_error_hint(), "");
}

START_TEST(cut_short) {
  int64_t bytes;
  char why[64];
  OK(write_sample(temp_path("a.h5")));
  char *data = slurp(temp_path("a.h5"), &bytes);
  const char *path = temp_path("b.h5");
  for (int64_t n = 0; n < bytes; n += n < bytes - 400 ? 7 : 1) {
    spill(path, data, n);
    snprintf(why, sizeof why, "%lld of %lld bytes", (long long)n, (long long)bytes);
    assert_refused(path, why);
    if (n == 0) ck_assert_ptr_nonnull(strstr(wf_error_message(), "is empty"));
  }
  spill(path, data, bytes - 1);
  assert_refused(path, "last byte lost");
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "cut short"));
  char *longer = wf_calloc("test", (size_t)bytes + 1, 1);
  memcpy(longer, data, (size_t)bytes);
  spill(path, longer, bytes + 1);
  assert_refused(path, "a byte more");
  memcpy(longer + 1000, data + 999, (size_t)bytes - 999);
  spill(path, longer, bytes + 1);
  assert_refused(path, "a byte more inside");
  wf_free(longer);
  wf_free(data);
}
END_TEST

START_TEST(flipped_bits) {
  int64_t bytes, data_errors = 0, metadata_errors = 0, trailer_errors = 0;
  char why[64];
  OK(write_sample(temp_path("a.h5")));
  char *data = slurp(temp_path("a.h5"), &bytes);
  const char *path = temp_path("b.h5");
  for (int64_t i = 0; i < bytes; i++) {
    data[i] = (char)(data[i] ^ 1 << i % 8);
    spill(path, data, bytes);
    data[i] = (char)(data[i] ^ 1 << i % 8);
    snprintf(why, sizeof why, "byte %lld of %lld", (long long)i, (long long)bytes);
    assert_refused(path, why);
    data_errors += strstr(wf_error_message(), "block 0 (bytes") != NULL;
    metadata_errors += strstr(wf_error_message(), "metadata: ") != NULL;
    trailer_errors += strstr(wf_error_message(), "trailer: ") != NULL;
  }
  ck_assert_int_eq(data_errors, 24 * 4 + 3 * 2 + 6 * 4 + 5 + 8);
  ck_assert_int_gt(metadata_errors, 1000);
  ck_assert_int_gt(trailer_errors, 100);
  wf_free(data);
}
END_TEST

START_TEST(not_ours) {
  wf_h5_file *f;
  const char *path = temp_path("a.h5");
  spill(path, "just some text that is long enough to hold a footer and more", 60);
  assert_refused(path, "text");
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "not a Weft file"));
  hid_t h = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  ck_assert_int_ge(h, 0);
  H5Fclose(h);
  assert_refused(path, "a foreign HDF5 file");
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "another program"));
  ck_assert_int_eq(wf_h5_open(temp_path("none.h5"), WF_H5_CHECK_ALL, &f), WF_ENOTFOUND);
  ck_assert_int_eq(wf_h5_open(temp_dir, WF_H5_CHECK_ALL, &f), WF_EINVAL);
}
END_TEST

/* A foreign structure under right sums: refused by name, not misread. */
START_TEST(foreign_structure) {
  const char *path = temp_path("a.h5");
  wf_h5_file *f;
  for (int kind = 0; kind < 5; kind++) {
    hsize_t dims[1] = {10}, chunk[1] = {5};
    hid_t h = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t space = H5Screate_simple(1, dims, NULL), list = H5Pcreate(H5P_DATASET_CREATE);
    hid_t type = H5Tcopy(kind == 0 ? H5T_STD_I32BE : H5T_STD_I32LE), made = -1;
    if (kind == 1) H5Pset_chunk(list, 1, chunk);
    if (kind < 3) made = H5Dcreate2(h, "odd", type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    if (kind == 2)
      ck_assert_int_ge(H5Dwrite(made, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, (int32_t[10]){0}), 0);
    if (kind == 3) ck_assert_int_ge(H5Lcreate_soft("elsewhere", h, "odd", H5P_DEFAULT, H5P_DEFAULT), 0);
    if (kind == 4) made = H5Acreate2(h, "odd", type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (made >= 0) kind == 4 ? H5Aclose(made) : H5Dclose(made);
    H5Tclose(type);
    H5Pclose(list);
    H5Sclose(space);
    ck_assert_int_ge(H5Fclose(h), 0);
    FILE *raw = fopen(path, "r+b");
    int64_t length;
    OK(wf_file_size(fileno(raw), path, &length));
    OK(wf_trailer_append(fileno(raw), path, length, NULL, 0)); /* kind 2: the data are not in the table */
    fclose(raw);
    ck_assert_int_eq(wf_h5_open(path, WF_H5_CHECK_ALL, &f), WF_EFORMAT);
    ck_assert_ptr_nonnull(strstr(wf_error_message(), "odd: "));
  }
}
END_TEST

START_TEST(lazy_checks) {
  int32_t *x = long_data(), *y = long_data();
  wf_h5_writer *w;
  wf_h5_file *f;
  const wf_h5_info *o;
  int64_t bytes;
  OK(wf_h5_create(temp_path("a.h5"), &w));
  OK(wf_h5_put(w, "first", WF_I32, 1, (int64_t[]){1}, x));
  OK(wf_h5_put(w, "tokens", WF_I32, 1, (int64_t[]){LONG}, x));
  OK(wf_h5_commit(w));
  OK(wf_h5_open(temp_path("a.h5"), WF_H5_CHECK_LAZY, &f));
  OK(wf_h5_find(f, "tokens", &o));
  int64_t at = o->offset + WF_TRAILER_BLOCK + 5; /* in block 1 */
  memset(y, 0, LONG * sizeof *y);
  for (int64_t i = 0; i < LONG; i += 1000) OK(wf_h5_read(f, o, i, LONG - i < 1000 ? LONG - i : 1000, y + i));
  ck_assert(memcmp(x, y, LONG * sizeof *x) == 0);
  wf_h5_close(f);
  char *data = slurp(temp_path("a.h5"), &bytes);
  data[at] = (char)~data[at];
  spill(temp_path("a.h5"), data, bytes);
  wf_free(data);
  assert_refused(temp_path("a.h5"), "damaged");
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "tokens: block 1 (bytes "));
  enum { PER_BLOCK = WF_TRAILER_BLOCK / 4 };
  OK(wf_h5_open(temp_path("a.h5"), WF_H5_CHECK_LAZY, &f));
  OK(wf_h5_find(f, "tokens", &o));
  OK(wf_h5_read(f, o, 0, PER_BLOCK, y));
  OK(wf_h5_read(f, o, 2 * PER_BLOCK, LONG - 2 * PER_BLOCK, y));
  ck_assert_int_eq(wf_h5_read(f, o, PER_BLOCK - 1, 2, y), WF_EFORMAT);     /* at its edge, re-read */
  ck_assert_int_eq(wf_h5_read(f, o, PER_BLOCK, PER_BLOCK, y), WF_EFORMAT); /* exactly it */
  ck_assert_int_eq(wf_h5_read(f, o, PER_BLOCK * 2 - 1, 1, y), WF_EFORMAT); /* far from the damage */
  ck_assert_int_eq(wf_h5_read(f, o, 0, LONG, y), WF_EFORMAT);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "tokens: block 1 (bytes "));
  wf_h5_close(f);
  wf_free(x);
  wf_free(y);
}
END_TEST

static void *read_all(void *arg) {
  const wf_h5_file *f = arg;
  const wf_h5_info *o;
  int32_t part[5000];
  if (wf_h5_find(f, "tokens", &o) != WF_OK) return "not found";
  for (int64_t at = 0; at < LONG; at += 5000) {
    int64_t n = LONG - at < 5000 ? LONG - at : 5000;
    if (wf_h5_read(f, o, at, n, part) != WF_OK) return "not read";
    for (int64_t i = 0; i < n; i++)
      if (part[i] != long_value(at + i)) return "wrong";
  }
  return NULL;
}

START_TEST(threads) {
  int32_t *x = long_data();
  wf_h5_writer *w;
  wf_h5_file *f;
  pthread_t thread[3];
  OK(wf_h5_create(temp_path("a.h5"), &w));
  OK(wf_h5_put(w, "tokens", WF_I32, 1, (int64_t[]){LONG}, x));
  OK(wf_h5_commit(w));
  OK(wf_h5_open(temp_path("a.h5"), WF_H5_CHECK_LAZY, &f));
  for (int i = 0; i < 3; i++) ck_assert_int_eq(pthread_create(&thread[i], NULL, read_all, f), 0);
  for (int i = 0; i < 3; i++) {
    void *failed;
    pthread_join(thread[i], &failed);
    ck_assert_msg(!failed, "%s", (char *)failed);
  }
  wf_h5_close(f);
  wf_free(x);
}
END_TEST

/* ---- Failing writes and allocations ---- */

/* A limit of file size stands for a disk that fills at each possible moment: in libhdf5, in our data, in the
 * trailer. The earlier file stays, and nothing else. */
START_TEST(full_disk) {
  int64_t bytes;
  struct rlimit before, small;
  OK(write_sample(temp_path("a.h5")));
  char *data = slurp(temp_path("a.h5"), &bytes);
  wf_free(data);
  OK(wf_rename(temp_path("a.h5"), temp_path("copy")));
  OK(wf_file_write(temp_path("a.h5"), "earlier", 7));
  ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
  for (int64_t limit = 0; limit <= bytes; limit += limit + 61 < bytes ? 61
                                                   : bytes == limit   ? 1
                                                                      : bytes - limit) {
    small = before;
    small.rlim_cur = (rlim_t)limit;
    setrlimit(RLIMIT_FSIZE, &small);
    wf_status s = write_sample(temp_path("a.h5"));
    setrlimit(RLIMIT_FSIZE, &before);
    ck_assert_int_eq(temp_dir_count(), 2);
    if (limit == bytes) {
      OK(s);
      break;
    }
    ck_assert_msg(s == WF_EIO, "limit %lld: status %d: %s", (long long)limit, (int)s, wf_error_message());
    ck_assert_ptr_nonnull(strstr(wf_error_message(), strerror(EFBIG)));
    ck_assert_ptr_nonnull(strstr(wf_error_message(), "a.h5"));
    ck_assert_ptr_nonnull(strstr(wf_error_hint(), "ulimit"));
    data = slurp(temp_path("a.h5"), &(int64_t){0});
    ck_assert_str_eq(data, "earlier");
    wf_free(data);
  }
  assert_same_file(temp_path("a.h5"), temp_path("copy"));
}
END_TEST

/* A disk of ever more pages, until all fits. Only root can have one. */
START_TEST(full_tmpfs) {
  char disk[600], options[32];
  snprintf(disk, sizeof disk, "%s/disk", temp_dir);
  ck_assert_int_eq(mkdir(disk, 0700), 0);
  if (geteuid() != 0 || unshare(CLONE_NEWNS) != 0 ||
      mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
      mount("none", disk, "tmpfs", 0, "size=4k") != 0) {
    fprintf(stderr, "skipped: full_tmpfs needs root and mount\n");
    return;
  }
  wf_status s = WF_EIO;
  int refused = 0;
  for (int kib = 8; s != WF_OK; kib += 4) {
    ck_assert_int_lt(kib, 200);
    snprintf(options, sizeof options, "size=%dk", kib);
    ck_assert_int_eq(mount("none", disk, "tmpfs", MS_REMOUNT, options), 0);
    spill(temp_path("disk/a.h5"), "earlier", 7);
    s = write_sample(temp_path("disk/a.h5"));
    if (s != WF_OK) {
      refused++;
      ck_assert_msg(s == WF_EIO, "%d KiB: status %d: %s", kib, (int)s, wf_error_message());
      ck_assert_ptr_nonnull(strstr(wf_error_message(), strerror(ENOSPC)));
      ck_assert_ptr_nonnull(strstr(wf_error_hint(), "are free in"));
      char *data = slurp(temp_path("disk/a.h5"), &(int64_t){0});
      ck_assert_str_eq(data, "earlier");
      wf_free(data);
    }
  }
  ck_assert_int_gt(refused, 0);
  assert_sample(temp_path("disk/a.h5"), WF_H5_CHECK_ALL);
  ck_assert_int_eq(umount(disk), 0);
}
END_TEST

START_TEST(no_permission) {
  wf_h5_writer *w;
  spill(temp_path("file"), "", 0);
  ck_assert_int_eq(wf_h5_create(temp_path("file/a.h5"), &w), WF_EEXISTS);
  ck_assert_int_eq(wf_h5_create(temp_dir, &w), WF_EEXISTS);
  ck_assert_int_eq(wf_h5_create("/proc/nothing.h5", &w), WF_ENOTFOUND);
}
END_TEST

START_TEST(allocation_failures) {
  const char *path = temp_path("a.h5");
  int64_t live = wf_mem_live();
  OK(wf_file_write(path, "earlier", 7));
  for (int64_t n = 1;; n++) {
    wf_mem_fail_at(n);
    wf_status s = write_sample(path);
    wf_mem_fail_at(0);
    ck_assert_int_eq(wf_mem_live(), live);
    ck_assert_int_eq(temp_dir_count(), 1);
    if (s == WF_OK) {
      ck_assert_int_gt(n, 20);
      break;
    }
    ck_assert_msg(s == WF_ENOMEM, "allocation %lld: %s", (long long)n, wf_error_message());
  }
  for (int lazy = 0; lazy < 2; lazy++) {
    for (int64_t n = 1;; n++) {
      wf_h5_file *f = NULL;
      const wf_h5_info *o;
      uint8_t byte;
      wf_mem_fail_at(n);
      wf_status s = wf_h5_open(path, lazy ? WF_H5_CHECK_LAZY : WF_H5_CHECK_ALL, &f);
      if (s == WF_OK) {
        s = wf_h5_find(f, "bytes", &o);
        if (s == WF_OK) s = wf_h5_read(f, o, 2, 1, &byte);
        wf_h5_close(f);
      }
      wf_mem_fail_at(0);
      ck_assert_int_eq(wf_mem_live(), live);
      if (s == WF_OK) {
        ck_assert_int_gt(n, 20);
        break;
      }
      ck_assert_msg(s == WF_ENOMEM, "allocation %lld: %s", (long long)n, wf_error_message());
    }
  }
}
END_TEST

static Suite *h5_suite(void) {
  Suite *s = suite_create("h5");
  TCase *c = tcase_create("h5");
  tcase_add_checked_fixture(c, set_up, temp_dir_remove);
  tcase_add_test(c, round_trip);
  tcase_add_test(c, plain_hdf5);
  tcase_add_test(c, equal_bytes);
  tcase_add_test(c, ways_of_writing);
  tcase_add_test(c, never_written_is_zero);
  tcase_add_test(c, misuse);
  tcase_add_test(c, cut_short);
  tcase_add_test(c, flipped_bits);
  tcase_add_test(c, not_ours);
  tcase_add_test(c, foreign_structure);
  tcase_add_test(c, lazy_checks);
  tcase_add_test(c, threads);
  tcase_add_test(c, full_disk);
  tcase_add_test(c, full_tmpfs);
  tcase_add_test(c, no_permission);
  tcase_add_test(c, allocation_failures);
  suite_add_tcase(s, c);
  return s;
}

WF_CHECK_MAIN(h5_suite)
