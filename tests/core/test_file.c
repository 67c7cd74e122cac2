/* core/file and core/dtype: whole reads and writes, replacement in one step, and what each failure leaves
 * behind. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>

#include "core/dtype.h"
#include "core/file.h"
#include "core/memory.h"
#include "tests/check_main.h"
#include "tests/temp_dir.h"

static void set_up(void) {
  temp_dir_make();
  signal(SIGXFSZ, SIG_IGN);
}

static void write_text(const char *path, const char *text) {
  ck_assert_int_eq(wf_file_write(path, text, (int64_t)strlen(text)), WF_OK);
}

static void assert_text(const char *path, const char *text) {
  char *data;
  int64_t bytes;
  ck_assert_int_eq(wf_file_read(path, 1 << 20, &data, &bytes), WF_OK);
  ck_assert_int_eq(bytes, (int64_t)strlen(text));
  ck_assert_str_eq(data, text);
  wf_free(data);
}

START_TEST(write_then_read) {
  const char *path = temp_path("a.txt");
  write_text(path, "one\n");
  assert_text(path, "one\n");
  write_text(path, "");
  assert_text(path, "");
  write_text(path, "a longer text than before");
  assert_text(path, "a longer text than before");
  ck_assert_int_eq(temp_dir_count(), 1);
}
END_TEST

START_TEST(reading_refuses) {
  const char *path = temp_path("a.txt");
  char *data, block[8];
  int64_t bytes;
  int fd;
  write_text(path, "12345");
  ck_assert_int_eq(wf_file_read(path, 5, &data, &bytes), WF_OK);
  wf_free(data);
  ck_assert_int_eq(wf_file_read(path, 4, &data, &bytes), WF_EFORMAT);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "at most 4"));
  ck_assert_int_eq(wf_file_read(temp_path("none"), 4, &data, &bytes), WF_ENOTFOUND);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "none: No such file"));
  ck_assert_int_eq(wf_file_read(temp_dir, 4, &data, &bytes), WF_EINVAL);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "a folder"));
  ck_assert_int_eq(wf_file_read("/dev/zero", 4, &data, &bytes), WF_EINVAL);
  ck_assert_int_eq(wf_open_read(path, &fd), WF_OK);
  ck_assert_int_eq(wf_read_at(fd, path, block, 3, 2), WF_OK);
  ck_assert_mem_eq(block, "345", 3);
  ck_assert_int_eq(wf_read_at(fd, path, block, 3, 3), WF_EFORMAT);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "1 bytes too early"));
  close(fd);
  ck_assert_int_eq(wf_read_at(fd, path, block, 3, 0), WF_EIO);
}
END_TEST

START_TEST(ranges_and_copies) {
  wf_replace r;
  enum { N = 3 << 20 };
  char *data = wf_alloc("test", N), *back;
  int64_t bytes;
  for (int i = 0; i < N; i++) data[i] = (char)(i * 7 + i / 1000);
  ck_assert_int_eq(wf_file_write(temp_path("from"), data, N), WF_OK);
  ck_assert_int_eq(wf_replace_begin(temp_path("to"), &r), WF_OK);
  int fd;
  ck_assert_int_eq(wf_open_read(temp_path("from"), &fd), WF_OK);
  ck_assert_int_eq(wf_reserve(r.fd, r.tmp, N + 1), WF_OK);
  ck_assert_int_eq(wf_copy_range(fd, "from", 5, r.fd, r.tmp, 6, N - 5), WF_OK);
  ck_assert_int_eq(wf_write_at(r.fd, r.tmp, "012345", 6, 0), WF_OK);
  ck_assert_int_eq(wf_copy_range(fd, "from", N - 2, r.fd, r.tmp, 0, 3), WF_EFORMAT);
  ck_assert_int_eq(wf_write_at(r.fd, r.tmp, "012345", 6, 0), WF_OK);
  close(fd);
  ck_assert(!wf_file_exists(temp_path("to")));
  ck_assert_int_eq(wf_replace_commit(&r), WF_OK);
  ck_assert_int_eq(wf_file_read(temp_path("to"), INT64_MAX, &back, &bytes), WF_OK);
  ck_assert_int_eq(bytes, N + 1);
  ck_assert_mem_eq(back, "012345", 6);
  ck_assert_mem_eq(back + 6, data + 5, N - 5);
  wf_free(back);
  wf_free(data);
}
END_TEST

START_TEST(abandoned_leaves_the_earlier_file) {
  wf_replace r;
  write_text(temp_path("a"), "old");
  ck_assert_int_eq(wf_replace_begin(temp_path("a"), &r), WF_OK);
  ck_assert_int_eq(wf_write_at(r.fd, r.tmp, "new", 3, 0), WF_OK);
  ck_assert_int_eq(temp_dir_count(), 2);
  wf_replace_abandon(&r);
  wf_replace_abandon(&r);
  ck_assert_int_eq(temp_dir_count(), 1);
  assert_text(temp_path("a"), "old");
}
END_TEST

/* A limit of file size stands for a full disk. */
START_TEST(full_disk) {
  static const char big[10000];
  struct rlimit before, small;
  write_text(temp_path("a"), "old");
  ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
  small = before;
  small.rlim_cur = 5000;
  ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
  wf_status s = wf_file_write(temp_path("a"), big, sizeof big);
  setrlimit(RLIMIT_FSIZE, &before);
  ck_assert_int_eq(s, WF_EIO);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), strerror(EFBIG)));
  ck_assert_ptr_nonnull(strstr(wf_error_hint(), "ulimit -f"));
  ck_assert_int_eq(temp_dir_count(), 1);
  assert_text(temp_path("a"), "old");
}
END_TEST

START_TEST(no_space_has_a_hint) {
  int fd = open("/dev/full", O_WRONLY);
  if (fd < 0) return; /* not Linux */
  ck_assert_int_eq(wf_write_at(fd, temp_path("a"), "x", 1, 0), WF_EIO);
  ck_assert_ptr_nonnull(strstr(wf_error_hint(), "are free in"));
  ck_assert_ptr_nonnull(strstr(wf_error_hint(), temp_dir));
  close(fd);
}
END_TEST

START_TEST(no_permission) {
  write_text(temp_path("a"), "old");
  ck_assert_int_eq(wf_file_write(temp_path("a/b"), "x", 1), WF_EIO);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), strerror(ENOTDIR)));
  ck_assert_ptr_nonnull(strstr(wf_error_hint(), "is a file"));
  ck_assert_int_eq(wf_file_write(temp_path("none/b"), "x", 1), WF_ENOTFOUND);
  ck_assert_int_eq(wf_file_write(temp_dir, "x", 1), WF_EEXISTS);
  chmod(temp_dir, 0555);
  bool root = geteuid() == 0; /* root may write everywhere: be nobody for a moment */
  if (root) ck_assert_int_eq(seteuid(65534), 0);
  wf_status s = wf_file_write(temp_path("a"), "new", 3);
  if (root) ck_assert_int_eq(seteuid(0), 0);
  chmod(temp_dir, 0755);
  ck_assert_int_eq(s, WF_EIO);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), strerror(EACCES)));
  ck_assert_ptr_nonnull(strstr(wf_error_hint(), "permissions"));
  assert_text(temp_path("a"), "old");
}
END_TEST

START_TEST(folders) {
  const char *inner = temp_path("x/y//z");
  ck_assert_int_eq(wf_make_directories(inner), WF_OK);
  ck_assert_int_eq(wf_make_directories(inner), WF_OK);
  ck_assert(wf_is_directory(inner));
  ck_assert_int_eq(wf_make_parent(temp_path("p/q/file")), WF_OK);
  ck_assert(wf_is_directory(temp_path("p/q")));
  ck_assert(!wf_file_exists(temp_path("p/q/file")));
  ck_assert_int_eq(wf_make_parent("file-in-the-current-folder"), WF_OK);
  ck_assert_int_eq(wf_make_directories("/"), WF_OK);
  ck_assert_int_eq(wf_make_directories(""), WF_EINVAL);
  write_text(temp_path("x/file"), "");
  ck_assert_int_eq(wf_make_directories(temp_path("x/file")), WF_EEXISTS);
  ck_assert_int_eq(wf_make_directories(temp_path("x/file/more")), WF_EEXISTS);
  ck_assert(!wf_is_directory(temp_path("x/file")));
  ck_assert_int_eq(wf_rename(temp_path("x/file"), temp_path("x/other")), WF_OK);
  ck_assert(!wf_file_exists(temp_path("x/file")) && wf_file_exists(temp_path("x/other")));
  ck_assert_int_eq(wf_rename(temp_path("x/file"), temp_path("x/other")), WF_ENOTFOUND);
  ck_assert_int_eq(wf_remove_file(temp_path("x/other")), WF_OK);
  ck_assert_int_eq(wf_remove_file(temp_path("x/other")), WF_OK);
  ck_assert(!wf_file_exists(temp_path("x/other")));
}
END_TEST

START_TEST(removing_a_folder) {
  const char *names[] = {"a", "b", "missing"};
  ck_assert_int_eq(wf_make_directories(temp_path("d")), WF_OK);
  write_text(temp_path("d/a"), "1");
  write_text(temp_path("d/b"), "2");
  write_text(temp_path("d/mine"), "3");
  ck_assert_int_eq(wf_remove_directory(temp_path("d"), names, 3), WF_EIO);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "mine"));
  ck_assert(!wf_file_exists(temp_path("d/a")) && wf_file_exists(temp_path("d/mine")));
  ck_assert_int_eq(wf_remove_file(temp_path("d/mine")), WF_OK);
  ck_assert_int_eq(wf_remove_directory(temp_path("d"), names, 3), WF_OK);
  ck_assert(!wf_file_exists(temp_path("d")));
  ck_assert_int_eq(wf_remove_directory(temp_path("d"), names, 3), WF_OK);
}
END_TEST

START_TEST(allocation_failures) {
  char *data;
  int64_t bytes;
  write_text(temp_path("a"), "old");
  int64_t live = wf_mem_live();
  for (int n = 1;; n++) {
    wf_mem_fail_at(n);
    wf_status s = wf_file_write(temp_path("a"), "new", 3);
    wf_mem_fail_at(0);
    ck_assert_int_eq(wf_mem_live(), live);
    ck_assert_int_eq(temp_dir_count(), 1);
    if (s == WF_OK) {
      ck_assert_int_gt(n, 1);
      break;
    }
    ck_assert_int_eq(s, WF_ENOMEM);
    assert_text(temp_path("a"), "old");
  }
  wf_mem_fail_at(1);
  ck_assert_int_eq(wf_file_read(temp_path("a"), 10, &data, &bytes), WF_ENOMEM);
  wf_mem_fail_at(0);
  ck_assert_int_eq(wf_mem_live(), live);
}
END_TEST

START_TEST(dtype_names) {
  wf_dtype d;
  for (int i = 0; i < WF_N_DTYPES; i++) {
    ck_assert(wf_dtype_parse(wf_dtype_name((wf_dtype)i), &d) && d == (wf_dtype)i);
    ck_assert_uint_gt(wf_dtype_size((wf_dtype)i), 0);
  }
  ck_assert(!wf_dtype_parse("f31", &d));
  ck_assert_uint_eq(wf_dtype_size(WF_N_DTYPES), 0);
  ck_assert_str_eq(wf_dtype_name((wf_dtype)-1), "invalid");
}
END_TEST

START_TEST(short_floats) {
  ck_assert_float_eq(wf_f16_to_f32(0x3c00), 1.0f);
  ck_assert_float_eq(wf_f16_to_f32(0xc000), -2.0f);
  ck_assert_float_eq(wf_f16_to_f32(0x7bff), 65504.0f);
  ck_assert_float_eq(wf_f16_to_f32(0x0001), 0x1p-24f);
  ck_assert_float_eq(wf_f16_to_f32(0x83ff), -1023 * 0x1p-24f);
  ck_assert_float_eq(wf_f16_to_f32(0x0400), 0x1p-14f);
  ck_assert(isinf(wf_f16_to_f32(0x7c00)) && isinf(wf_f16_to_f32(0xfc00)) && wf_f16_to_f32(0xfc00) < 0);
  ck_assert(isnan(wf_f16_to_f32(0x7e01)));
  ck_assert(signbit(wf_f16_to_f32(0x8000)) && wf_f16_to_f32(0x8000) == 0);
  for (uint32_t h = 0; h < 0x10000; h++) { /* each bfloat16 is its own rounding */
    float f = wf_bf16_to_f32((uint16_t)h);
    if (isnan(f))
      ck_assert(isnan(wf_bf16_to_f32(wf_f32_to_bf16(f))));
    else
      ck_assert_uint_eq(wf_f32_to_bf16(f), h);
  }
  ck_assert_uint_eq(wf_f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);            /* a tie, down to even */
  ck_assert_uint_eq(wf_f32_to_bf16(1.0f + 3 * 0x1p-8f), 0x3f82);        /* a tie, up to even */
  ck_assert_uint_eq(wf_f32_to_bf16(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81); /* beyond the tie */
  ck_assert_uint_eq(wf_f32_to_bf16(3.4e38f), 0x7f80);                   /* overflows to infinity */
}
END_TEST

static Suite *file_suite(void) {
  Suite *s = suite_create("file");
  TCase *c = tcase_create("file");
  tcase_add_checked_fixture(c, set_up, temp_dir_remove);
  tcase_add_test(c, write_then_read);
  tcase_add_test(c, reading_refuses);
  tcase_add_test(c, ranges_and_copies);
  tcase_add_test(c, abandoned_leaves_the_earlier_file);
  tcase_add_test(c, full_disk);
  tcase_add_test(c, no_space_has_a_hint);
  tcase_add_test(c, no_permission);
  tcase_add_test(c, folders);
  tcase_add_test(c, removing_a_folder);
  tcase_add_test(c, allocation_failures);
  tcase_add_test(c, dtype_names);
  tcase_add_test(c, short_floats);
  suite_add_tcase(s, c);
  return s;
}

WF_CHECK_MAIN(file_suite)
