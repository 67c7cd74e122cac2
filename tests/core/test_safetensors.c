/* core/safetensors: what is written is read back in the reference's layout, and no header, however wrong, is
 * believed. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/safetensors.h"
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

static const float x[6] = {0, -1, 2.5f, 1e30f, 1e-30f, INFINITY};
static const uint16_t halves[3] = {0x3c00, 0x8001, 0x7bff}; /* 1, -2^-24, 65504 as F16 */
static const uint8_t flags[3] = {1, 0, 1};
static const int64_t one[1] = {-5};
static const double wide[3] = {0.1, 1e300, -2};

/* Definitions and data in two orders, which must not matter. On failure nothing is left. */
static wf_status write_sample(const char *path, bool backwards) {
  static const struct {
    const char *name;
    wf_st_dtype dtype;
    int ndim;
    int64_t shape[2], count;
    const void *data;
  } t[] = {
      {"model.x", WF_ST_F32, 2, {2, 3}, 6, x},  {"\"quoted\" \xc3\xa9", WF_ST_F16, 1, {3}, 3, halves},
      {"mask", WF_ST_BOOL, 1, {3}, 3, flags},   {"n", WF_ST_I64, 0, {0}, 1, one},
      {"wide", WF_ST_F64, 1, {3}, 3, wide},     {"none", WF_ST_BF16, 2, {0, 4}, 0, NULL},
      {"short", WF_ST_BF16, 1, {3}, 3, halves},
  };
  enum { N = sizeof t / sizeof *t };
  wf_st_writer *w;
  wf_status s;
  int id[N];
  WF_TRY(wf_st_create(path, &w));
  WF_TRY_GOTO(s, fail, wf_st_set_metadata(w, backwards ? "a" : "format", backwards ? "b" : "pt"));
  WF_TRY_GOTO(s, fail, wf_st_set_metadata(w, backwards ? "format" : "a", backwards ? "pt" : "b"));
  for (int k = 0; k < N; k++) {
    int i = backwards ? N - 1 - k : k;
    WF_TRY_GOTO(s, fail, wf_st_define(w, t[i].name, t[i].dtype, t[i].ndim, t[i].shape, &id[i]));
  }
  WF_TRY_GOTO(s, fail, wf_st_layout(w));
  for (int k = 0; k < N; k++) {
    int i = backwards ? k : N - 1 - k;
    WF_TRY_GOTO(s, fail, wf_st_write(w, id[i], 0, t[i].count, t[i].data));
  }
  return wf_st_commit(w);
fail:
  wf_st_discard(w);
  return s;
}

static char *slurp(const char *path, int64_t *bytes) {
  char *data;
  OK(wf_file_read(path, INT64_MAX, &data, bytes));
  return data;
}

static void spill(const char *path, const void *data, int64_t bytes) {
  FILE *f = fopen(path, "wb");
  ck_assert_ptr_nonnull(f);
  ck_assert_uint_eq(fwrite(data, 1, (size_t)bytes, f), (size_t)bytes);
  ck_assert_int_eq(fclose(f), 0);
}

/* A file of this header, padded with nothing, and `data` zero bytes behind it. */
static void spill_header(const char *path, const char *header, int64_t data) {
  int64_t n = (int64_t)strlen(header);
  char *file = wf_calloc("test", (size_t)(8 + n + data), 1);
  memcpy(file, &n, 8);
  memcpy(file + 8, header, (size_t)n);
  spill(path, file, 8 + n + data);
  wf_free(file);
}

START_TEST(round_trip) {
  wf_safetensors *st;
  const wf_st_info *t;
  float back[6];
  uint8_t bytes[3];
  int64_t number;
  OK(write_sample(temp_path("a.safetensors"), false));
  OK(wf_st_open(temp_path("a.safetensors"), &st));
  ck_assert_int_eq(wf_st_count(st), 7);
  ck_assert_str_eq(wf_st_at(st, 0)->name, "\"quoted\" \xc3\xa9");
  ck_assert_str_eq(wf_st_metadata(st, "format"), "pt");
  ck_assert_ptr_null(wf_st_metadata(st, "other"));
  OK(wf_st_find(st, "model.x", &t));
  ck_assert(t->dtype == WF_ST_F32 && t->ndim == 2 && t->shape[0] == 2 && t->shape[1] == 3 && t->count == 6);
  OK(wf_st_read(st, t, 0, 6, back));
  ck_assert_mem_eq(back, x, sizeof x);
  OK(wf_st_read_f32(st, t, 4, 2, back));
  ck_assert_mem_eq(back, x + 4, 8);
  ck_assert_int_eq(wf_st_read(st, t, 4, 3, back), WF_EINTERNAL);
  OK(wf_st_find(st, "\"quoted\" \xc3\xa9", &t));
  OK(wf_st_read_f32(st, t, 0, 3, back));
  ck_assert(back[0] == 1.0f && back[1] == -0x1p-24f && back[2] == 65504.0f);
  OK(wf_st_find(st, "short", &t));
  OK(wf_st_read_f32(st, t, 1, 2, back));
  ck_assert(back[0] == wf_bf16_to_f32(halves[1]) && back[1] == wf_bf16_to_f32(halves[2]));
  OK(wf_st_find(st, "wide", &t));
  OK(wf_st_read_f32(st, t, 0, 3, back));
  ck_assert(back[0] == 0.1f && isinf(back[1]) && back[2] == -2.0f);
  OK(wf_st_find(st, "mask", &t));
  OK(wf_st_read(st, t, 0, 3, bytes));
  ck_assert_mem_eq(bytes, flags, 3);
  ck_assert_int_eq(wf_st_read_f32(st, t, 0, 3, back), WF_EUNSUPPORTED);
  OK(wf_st_find(st, "n", &t));
  ck_assert_int_eq(t->ndim, 0);
  OK(wf_st_read(st, t, 0, 1, &number));
  ck_assert_int_eq(number, -5);
  OK(wf_st_find(st, "none", &t));
  ck_assert_int_eq(t->count, 0);
  OK(wf_st_read(st, t, 0, 0, NULL));
  ck_assert_int_eq(wf_st_find(st, "model.y", &t), WF_ENOTFOUND);
  ck_assert_ptr_nonnull(strstr(wf_error_hint(), "model.x"));
  ck_assert(wf_st_has(st, "mask") && !wf_st_has(st, "__metadata__"));
  wf_st_close(st);
}
END_TEST

START_TEST(equal_bytes_and_layout) {
  static const char start[] = "{\"__metadata__\":{\"a\":\"b\",\"format\":\"pt\"},"
                              "\"n\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
                              "\"wide\":{\"dtype\":\"F64\",\"shape\":[3],\"data_offsets\":[8,32]},"
                              "\"model.x\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[32,56]},";
  int64_t n, m, header;
  OK(write_sample(temp_path("a"), false));
  OK(write_sample(temp_path("b"), true));
  char *a = slurp(temp_path("a"), &n), *b = slurp(temp_path("b"), &m);
  ck_assert_int_eq(n, m);
  ck_assert(memcmp(a, b, (size_t)n) == 0);
  memcpy(&header, a, 8);
  ck_assert_int_eq(header % 8, 0);
  ck_assert(strncmp(a + 8, start, sizeof start - 1) == 0);
  ck_assert(memcmp(a + 8 + header, one, 8) == 0 && memcmp(a + 8 + header + 32, x, 24) == 0);
  wf_free(a);
  wf_free(b);
}
END_TEST

START_TEST(conversion_in_pieces) {
  enum { N = 10001 };
  uint16_t *h = wf_alloc("test", N * sizeof *h);
  float *f = wf_alloc("test", N * sizeof *f);
  wf_st_writer *w;
  wf_safetensors *st;
  int id;
  for (int i = 0; i < N; i++) h[i] = (uint16_t)(i * 3);
  OK(wf_st_create(temp_path("a"), &w));
  OK(wf_st_define(w, "h", WF_ST_BF16, 1, (int64_t[]){N}, &id));
  OK(wf_st_layout(w));
  OK(wf_st_write(w, id, 100, N - 100, h + 100));
  OK(wf_st_write(w, id, 0, 100, h));
  OK(wf_st_commit(w));
  OK(wf_st_open(temp_path("a"), &st));
  OK(wf_st_read_f32(st, wf_st_at(st, 0), 1, N - 1, f));
  for (int i = 1; i < N; i++) ck_assert(f[i - 1] == wf_bf16_to_f32(h[i]));
  wf_st_close(st);
  wf_free(h);
  wf_free(f);
}
END_TEST

START_TEST(misuse) {
  wf_st_writer *w;
  int id;
  OK(wf_st_create(temp_path("a"), &w));
  OK(wf_st_define(w, "x", WF_ST_F32, 1, (int64_t[]){2}, &id));
  ck_assert_int_eq(wf_st_define(w, "", WF_ST_F32, 0, NULL, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_st_define(w, "__metadata__", WF_ST_F32, 0, NULL, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_st_define(w, "y", WF_ST_N_DTYPES, 0, NULL, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_st_define(w, "y", WF_ST_F32, 9, (int64_t[9]){0}, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_st_define(w, "y", WF_ST_F32, 1, (int64_t[]){-1}, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_st_define(w, "y", WF_ST_F32, 2, (int64_t[]){INT64_MAX, 2}, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_st_define(w, "y", WF_ST_F32, 1, (int64_t[]){INT64_MAX / 2}, NULL), WF_EINVAL);
  ck_assert_int_eq(wf_st_set_metadata(w, "k", "\xff"), WF_EINVAL);
  ck_assert_int_eq(wf_st_write(w, id, 0, 2, x), WF_EINTERNAL);
  OK(wf_st_layout(w));
  ck_assert_int_eq(wf_st_write(w, id, 1, 2, x), WF_EINTERNAL);
  ck_assert_int_eq(wf_st_define(w, "y", WF_ST_F32, 0, NULL, NULL), WF_EINTERNAL);
  ck_assert_int_eq(wf_st_layout(w), WF_EINTERNAL);
  wf_st_discard(w);
  OK(wf_st_create(temp_path("a"), &w));
  OK(wf_st_define(w, "x", WF_ST_F32, 0, NULL, NULL));
  OK(wf_st_define(w, "x", WF_ST_U8, 0, NULL, NULL));
  ck_assert_int_eq(wf_st_commit(w), WF_EEXISTS);
  OK(wf_st_create(temp_path("a"), &w));
  OK(wf_st_define(w, "\xff", WF_ST_F32, 0, NULL, NULL));
  ck_assert_int_eq(wf_st_commit(w), WF_EINVAL);
  ck_assert_int_eq(temp_dir_count(), 0);
}
END_TEST

/* ---- Wrong files ---- */

static void assert_refused(const char *path, wf_status expected, const char *words) {
  wf_safetensors *st = NULL;
  wf_status s = wf_st_open(path, &st);
  ck_assert_msg(s == expected, "'%s': status %d: %s", words, (int)s, wf_error_message());
  ck_assert_ptr_null(st);
  ck_assert_msg(strstr(wf_error_message(), words) != NULL, "'%s' is not in: %s", words, wf_error_message());
  ck_assert_ptr_nonnull(strstr(wf_error_message(), path));
}

START_TEST(wrong_headers) {
#define T "{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":"
  static const struct {
    const char *header;
    int64_t data;
    const char *words;
  } bad[] = {
      {"[]", 0, "not an object"},
      {"{\"a", 0, "JSON"},
      {"{} x", 0, "JSON"},
      {"{\"a\":" T "[0,4]},\"a\":" T "[0,4]}}", 4, "duplicate"},
      {"{\"\\u0000\":" T "[0,4]}}", 4, "JSON"},
      {"{\"a\":1}", 4, "not described"},
      {"{\"a\":{}}", 4, "dtype is missing"},
      {"{\"a\":{\"dtype\":\"F32\"}}", 4, "shape is missing"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "not two numbers"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "impossible"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4, "impossible"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}", 4,
       "impossible"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, "impossible"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "too many"},
      {"{\"a\":" T "[0]}}", 4, "not two numbers"},
      {"{\"a\":" T "[0,4,8]}}", 4, "not two numbers"},
      {"{\"a\":" T "[4,0]}}", 4, "do not lie"},
      {"{\"a\":" T "[-4,0]}}", 4, "do not lie"},
      {"{\"a\":" T "[4,8]}}", 4, "do not lie"},
      {"{\"a\":" T "[0,8]}}", 8, "take 4 bytes"},
      {"{\"a\":" T "[0,4]},\"b\":" T "[2,6]}}", 6, "overlap"},
      {"{\"a\":" T "[0,4]},\"b\":" T "[0,4]}}", 4, "overlap"},
      {"{\"a\":" T "[0,4]},\"b\":" T "[8,12]}}", 12, "belong to no tensor"},
      {"{\"a\":" T "[0,4]}}", 5, "1 bytes at the end"},
      {"{}", 5, "no tensors"},
      {"{\"__metadata__\":1}", 0, "not an object"},
      {"{\"__metadata__\":{\"a\":1}}", 0, "not text"},
  };
#undef T
  const char *path = temp_path("a");
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    spill_header(path, bad[i].header, bad[i].data);
    assert_refused(path, WF_EFORMAT, bad[i].words);
  }
  spill_header(path, "{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1);
  assert_refused(path, WF_EUNSUPPORTED, "F8_E4M3");
  char *deep = wf_alloc("test", 100001);
  memset(deep, '[', 100000);
  deep[100000] = '\0';
  spill_header(path, deep, 0);
  assert_refused(path, WF_EFORMAT, "JSON");
  wf_free(deep);
  wf_safetensors *st;
  spill_header(path, "{}   ", 0); /* padded, and without tensors */
  OK(wf_st_open(path, &st));
  wf_st_close(st);
}
END_TEST

START_TEST(cut_short) {
  int64_t bytes, header;
  const char *path = temp_path("b");
  OK(write_sample(temp_path("a"), false));
  char *data = slurp(temp_path("a"), &bytes);
  for (int64_t n = 0; n < bytes; n++) {
    spill(path, data, n);
    assert_refused(path, WF_EFORMAT, "");
    if (n == 0) ck_assert_ptr_nonnull(strstr(wf_error_message(), "empty"));
  }
  data[bytes] = 0; /* the NUL that wf_file_read adds */
  spill(path, data, bytes + 1);
  assert_refused(path, WF_EFORMAT, "1 bytes at the end");
  static const int64_t lengths[] = {0, 1, -1, INT64_MIN, INT64_MAX, WF_ST_MAX_HEADER + 1};
  memcpy(&header, data, 8);
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    memcpy(data, &lengths[i], 8);
    spill(path, data, bytes);
    assert_refused(path, WF_EFORMAT, "not a safetensors file");
  }
  wf_free(data);
}
END_TEST

/* A format without sums cannot show every flipped bit; none may crash or reach outside the file. */
START_TEST(flipped_bits) {
  int64_t bytes, header;
  const char *path = temp_path("b");
  char block[64];
  OK(write_sample(temp_path("a"), false));
  char *data = slurp(temp_path("a"), &bytes);
  memcpy(&header, data, 8);
  int refused = 0;
  for (int64_t i = 0; i < (8 + header) * 8; i++) {
    wf_safetensors *st;
    data[i / 8] = (char)(data[i / 8] ^ 1 << i % 8);
    spill(path, data, bytes);
    data[i / 8] = (char)(data[i / 8] ^ 1 << i % 8);
    if (wf_st_open(path, &st) != WF_OK) {
      refused++;
      continue;
    }
    for (int64_t k = 0; k < wf_st_count(st); k++) {
      const wf_st_info *t = wf_st_at(st, k);
      ck_assert_int_le(t->bytes, (int64_t)sizeof block);
      OK(wf_st_read(st, t, 0, t->count, block));
    }
    wf_st_close(st);
  }
  ck_assert_int_gt(refused, (int)header);
  wf_free(data);
}
END_TEST

/* ---- Several files ---- */

START_TEST(sharded) {
  const char *index = temp_path("model.safetensors.index.json");
  wf_safetensors *st;
  const wf_st_info *t;
  float back[6];
  wf_st_writer *w;
  int id;
  OK(write_sample(temp_path("s1.safetensors"), false));
  OK(wf_st_create(temp_path("s2.safetensors"), &w));
  OK(wf_st_define(w, "y", WF_ST_F32, 1, (int64_t[]){2}, &id));
  OK(wf_st_define(w, "mask", WF_ST_U8, 1, (int64_t[]){1}, NULL)); /* the index takes it from the other one */
  OK(wf_st_layout(w));
  OK(wf_st_write(w, id, 0, 2, x + 1));
  OK(wf_st_commit(w));
  static const char good[] = "{\"metadata\":{\"total_size\":1},\"weight_map\":{\"y\":\"s2.safetensors\","
                             "\"mask\":\"s1.safetensors\",\"model.x\":\"s1.safetensors\"}}";
  spill(index, good, sizeof good - 1);
  OK(wf_st_open(temp_dir, &st)); /* the folder */
  ck_assert_int_eq(wf_st_count(st), 3);
  OK(wf_st_find(st, "mask", &t));
  ck_assert_int_eq(t->dtype, WF_ST_BOOL);
  OK(wf_st_find(st, "y", &t));
  OK(wf_st_read(st, t, 0, 2, back));
  ck_assert(back[0] == -1 && back[1] == 2.5f);
  OK(wf_st_find(st, "model.x", &t));
  OK(wf_st_read(st, t, 0, 6, back));
  ck_assert_mem_eq(back, x, sizeof x);
  wf_st_close(st);
  static const struct {
    const char *text, *words;
    wf_status status;
  } bad[] = {
      {"{}", "no weight_map", WF_EFORMAT},
      {"[", "JSON", WF_EFORMAT},
      {"{\"weight_map\":{\"y\":\"../s2.safetensors\"}}", "beside it", WF_EFORMAT},
      {"{\"weight_map\":{\"y\":5}}", "beside it", WF_EFORMAT},
      {"{\"weight_map\":{\"y\":\"s3.safetensors\"}}", "s3.safetensors: No such file", WF_ENOTFOUND},
      {"{\"weight_map\":{\"y\":\"s1.safetensors\"}}", "tensor y is not in s1", WF_EFORMAT},
      {"{\"weight_map\":{\"y\":\"model.safetensors.index.json\"}}", "not a safetensors file", WF_EFORMAT},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    spill(index, bad[i].text, (int64_t)strlen(bad[i].text));
    assert_refused(index, bad[i].status, bad[i].words);
  }
  OK(wf_remove_file(index));
  assert_refused(temp_dir, WF_ENOTFOUND, "holds neither");
  assert_refused(temp_path("none.safetensors"), WF_ENOTFOUND, "No such file");
}
END_TEST

/* ---- Failing writes and allocations ---- */

START_TEST(full_disk) {
  struct rlimit before, small;
  int64_t bytes;
  OK(write_sample(temp_path("copy"), false));
  wf_free(slurp(temp_path("copy"), &bytes));
  spill(temp_path("a"), "earlier", 7);
  ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
  for (int64_t limit = 0; limit < bytes; limit += 17) {
    small = before;
    small.rlim_cur = (rlim_t)limit;
    setrlimit(RLIMIT_FSIZE, &small);
    wf_status s = write_sample(temp_path("a"), false);
    setrlimit(RLIMIT_FSIZE, &before);
    ck_assert_int_eq(s, WF_EIO);
    ck_assert_ptr_nonnull(strstr(wf_error_message(), strerror(EFBIG)));
    ck_assert_int_eq(temp_dir_count(), 2);
    char *data = slurp(temp_path("a"), &(int64_t){0});
    ck_assert_str_eq(data, "earlier");
    wf_free(data);
  }
}
END_TEST

static wf_status open_and_read(const char *path) {
  wf_safetensors *st;
  const wf_st_info *t;
  float back[6];
  WF_TRY(wf_st_open(path, &st));
  wf_status s = wf_st_find(st, "model.x", &t);
  if (s == WF_OK) s = wf_st_read_f32(st, t, 0, 6, back);
  wf_st_close(st);
  return s;
}

START_TEST(allocation_failures) {
  static const char index[] = "{\"weight_map\":{\"model.x\":\"model-1.safetensors\"}}";
  OK(write_sample(temp_path("model-1.safetensors"), false));
  spill(temp_path("model.safetensors.index.json"), index, sizeof index - 1);
  int64_t live = wf_mem_live();
  for (int kind = 0; kind < 3; kind++) {
    for (int64_t n = 1;; n++) {
      wf_mem_fail_at(n);
      wf_status s = kind == 0   ? write_sample(temp_path("model-1.safetensors"), false)
                    : kind == 1 ? open_and_read(temp_path("model-1.safetensors"))
                                : open_and_read(temp_dir);
      wf_mem_fail_at(0);
      ck_assert_int_eq(wf_mem_live(), live);
      ck_assert_int_eq(temp_dir_count(), 2);
      if (s == WF_OK) {
        ck_assert_int_gt(n, 10);
        break;
      }
      ck_assert_msg(s == WF_ENOMEM, "allocation %lld: %s", (long long)n, wf_error_message());
    }
  }
}
END_TEST

static Suite *safetensors_suite(void) {
  Suite *s = suite_create("safetensors");
  TCase *c = tcase_create("safetensors");
  tcase_add_checked_fixture(c, set_up, temp_dir_remove);
  tcase_add_test(c, round_trip);
  tcase_add_test(c, equal_bytes_and_layout);
  tcase_add_test(c, conversion_in_pieces);
  tcase_add_test(c, misuse);
  tcase_add_test(c, wrong_headers);
  tcase_add_test(c, cut_short);
  tcase_add_test(c, flipped_bits);
  tcase_add_test(c, sharded);
  tcase_add_test(c, full_disk);
  tcase_add_test(c, allocation_failures);
  suite_add_tcase(s, c);
  return s;
}

WF_CHECK_MAIN(safetensors_suite)
