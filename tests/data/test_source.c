/* Documents out of files, folders, separators and JSON lines. */
#define _GNU_SOURCE
#include <xxhash.h>
#include "core/memory.h"
#include "data/source.h"
#include "tests/check_main.h"
#include "tests/data/temporary.h"

/* All documents, each ended by '|'. */
static char *join(wf_source *s) {
  size_t n = 0, capacity = 1 << 24;
  char *all = malloc(capacity);
  wf_source_part part;
  bool got;
  for (;;) {
    ck_assert_msg(wf_source_next(s, &part, &got) == WF_OK, "%s", wf_error_message());
    if (!got) break;
    ck_assert_uint_lt(n + part.n + 2, capacity);
    memcpy(all + n, part.text, part.n);
    n += part.n;
    if (part.end) all[n++] = '|';
  }
  all[n] = '\0';
  return all;
}

static void check_documents(const char *path, const char *separator, const char *want) {
  wf_source *s;
  wf_source_input in = {path, 0};
  wf_source_options o = {.separator = separator};
  ck_assert_msg(wf_source_open(&in, 1, &o, &s) == WF_OK, "%s", wf_error_message());
  for (int twice = 0; twice < 2; twice++) {
    char *all = join(s);
    ck_assert_str_eq(all, want);
    free(all);
    ck_assert_int_eq(wf_source_done(s), wf_source_bytes(s));
    ck_assert_int_eq(wf_source_rewind(s), WF_OK);
  }
  wf_source_close(s);
  ck_assert_int_eq(wf_mem_live(), 0);
}

static void check_error(const char *path, wf_status code, const char *says) {
  wf_source *s = NULL;
  wf_source_input in = {path, 0};
  wf_source_options o = {0};
  wf_status status = wf_source_open(&in, 1, &o, &s);
  wf_source_part part;
  for (bool got = true; status == WF_OK && got;) status = wf_source_next(s, &part, &got);
  ck_assert_int_eq(status, code);
  ck_assert_msg(strstr(wf_error_message(), says) != NULL, "'%s' lacks '%s'", wf_error_message(), says);
  wf_source_close(s);
  ck_assert_int_eq(wf_mem_live(), 0);
}

START_TEST(texts) {
  temporary_make();
  check_documents(temporary_text("a", "one\ntwo\n"), NULL, "one\ntwo\n|");
  check_documents(temporary_text("a", "one\n%\ntwo\nthree\n%\nfour"), "%", "one\n|two\nthree\n|four|");
  check_documents(temporary_text("a", "%\n%\none\n%%\n %\n%\r\ntwo\n%"), "%", "||one\n%%\n %\n|two\n|");
  check_documents(temporary_text("a", "x\n--- end ---\ny\n--- end ---\n"), "--- end ---", "x\n|y\n||");
  check_documents(temporary_text("a", "x\n\ny"), "", "x\n|y|");
  temporary_remove();
}
END_TEST

START_TEST(json_lines) {
  temporary_make();
  check_documents(
      temporary_text("a.jsonl", "{\"text\":\"one\"}\n\n  \r\n{\"id\":3,\"text\":\"t\\nw\\u00e9\"}"), NULL,
      "one|t\nw\xC3\xA9|");
  check_error(temporary_text("b.jsonl", "{\"text\":\"one\"}\n\n{\"text\":}\n"), WF_EFORMAT, "b.jsonl:3:");
  check_error(temporary_text("c.jsonl", "{\"text\":\"one\"}\n{\"body\":\"x\"}\n"), WF_EFORMAT,
              "c.jsonl:2: there is no text under");
  check_error(temporary_text("d.jsonl", "{\"text\":7}"), WF_EFORMAT, "d.jsonl:1:");
  check_error(temporary_text("e.jsonl", "[1]\n"), WF_EFORMAT, "e.jsonl:1:");
  check_error(temporary_text("f.jsonl", "{\"text\":\"\xFF\"}\n"), WF_EFORMAT, "f.jsonl:1:");
  temporary_remove();
}
END_TEST

START_TEST(folders) {
  temporary_make();
  mkdir(temporary_path("in"), 0777);
  mkdir(temporary_path("in/b"), 0777);
  mkdir(temporary_path("in/.git"), 0777);
  temporary_text("in/c.txt", "C");
  temporary_text("in/a.txt", "A");
  temporary_text("in/b/z", "BZ");
  temporary_text("in/b/y.jsonl", "{\"text\":\"BY\"}\n");
  temporary_text("in/.hidden", "H");
  temporary_text("in/.git/x", "G");
  temporary_text("in/empty", "");
  temporary_write("in/binary.dat", "\0\1\2", 3);
  ck_assert_int_eq(symlink("a.txt", temporary_path("in/d.u8")), 0);
  ck_assert_int_eq(symlink("nowhere", temporary_path("in/dangling")), 0);
  ck_assert_int_eq(symlink("..", temporary_path("in/b/loop")), 0);
  check_documents(temporary_path("in"), NULL, "A|BY|BZ|C|");
  wf_source *s;
  wf_source_input in[2] = {{temporary_path("in"), 0}, {temporary_path("in/a.txt"), 1}};
  wf_source_options o = {0};
  ck_assert_int_eq(wf_source_open(in, 1, &o, &s), WF_OK);
  ck_assert_int_eq(wf_source_skipped(s), 4); /* empty, binary, second name, dangling link */
  const wf_source_file *files;
  free(join(s));
  ck_assert_int_eq(wf_source_files(s, &files), 4);
  ck_assert_uint_eq(files[2].sum, XXH64("BZ", 2, 0));
  wf_source_close(s);
  ck_assert_int_eq(wf_source_open(in, 2, &o, &s), WF_EINVAL); /* in two splits */
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "given twice"));
  mkdir(temporary_path("none"), 0777);
  check_error(temporary_path("none"), WF_EINVAL, "has no text files");
  temporary_remove();
}
END_TEST

START_TEST(bad_files) {
  temporary_make();
  check_error(temporary_path("missing"), WF_ENOTFOUND, "missing");
  check_error(temporary_text("empty", ""), WF_EINVAL, "is empty");
  check_error("/dev/null", WF_EINVAL, "neither a file nor a folder");
  if (geteuid() != 0) {
    chmod(temporary_text("secret", "x"), 0);
    check_error(temporary_path("secret"), WF_EIO, "cannot read");
  }
  wf_source *s;
  wf_source_options o = {0};
  ck_assert_int_eq(wf_source_open(NULL, 0, &o, &s), WF_EINVAL);
  temporary_remove();
}
END_TEST

/* Texts of several buffers: lines that end anywhere, a long line, a separator at the seam. */
START_TEST(long_texts) {
  temporary_make();
  size_t n = 5 << 20, at = 0;
  char *text = malloc(n + 100), *want = malloc(n + 100);
  size_t m = 0;
  for (int line = 0; at < n; line++) {
    size_t len = line % 50 == 49 ? 1500000 : (size_t)(line * 7919 % 40000);
    if (at + len > n) len = n - at;
    memset(text + at, 'a' + line % 26, len);
    text[at + len] = '\n';
    memcpy(want + m, text + at, len + 1);
    at += len + 1, m += len + 1;
    if (line % 3 == 0) {
      memcpy(text + at, "%\n", 2);
      want[m++] = '|';
      at += 2;
    }
  }
  text[at] = want[m] = '\0';
  temporary_write("a", text, at);
  want[m] = '\0';
  if (m == 0 || want[m - 1] != '|' || (at >= 2 && text[at - 2] == '%')) want[m++] = '|', want[m] = '\0';
  check_documents(temporary_path("a"), "%", want);
  /* One JSON line of several megabytes. */
  char *json = malloc(n + 100);
  memcpy(json, "{\"text\":\"", 9);
  memset(json + 9, 'x', n);
  memcpy(json + 9 + n, "\"}\n", 3);
  temporary_write("a.jsonl", json, n + 12);
  memset(want, 'x', n);
  memcpy(want + n, "|", 2);
  check_documents(temporary_path("a.jsonl"), NULL, want);
  free(json);
  free(text);
  free(want);
  temporary_remove();
}
END_TEST

static Suite *source_suite(void) {
  Suite *s = suite_create("data/source");
  TCase *c = tcase_create("source");
  suite_add_tcase(s, c);
  tcase_add_test(c, texts);
  tcase_add_test(c, json_lines);
  tcase_add_test(c, folders);
  tcase_add_test(c, bad_files);
  tcase_add_test(c, long_texts);
  return s;
}

WF_CHECK_MAIN(source_suite)
