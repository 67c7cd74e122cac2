/* Building and reading token stores. */
#define _GNU_SOURCE
#include <math.h>
#include "core/file.h"
#include "core/memory.h"
#include "data/store.h"
#include "data/source.h"
#include "tests/check_main.h"
#include "tests/data/temporary.h"

static void set(wf_store_options *o, const char *name, const char *value) {
  ck_assert_msg(wf_options_set(wf_store_option_table, o, name, value) == WF_OK, "%s", wf_error_message());
}

static wf_store_options defaults(void) {
  wf_store_options o = {0};
  ck_assert_int_eq(wf_options_defaults(wf_store_option_table, &o), WF_OK);
  set(&o, "output", temporary_path("out.h5"));
  set(&o, "replace", "true");
  return o;
}

static wf_status build(const wf_store_options *o, const char *path, int split, wf_store_report *r) {
  wf_store_input in = {path, split};
  return wf_store_build(o, &in, 1, NULL, NULL, r);
}

static wf_store *open_built(void) {
  wf_store *s;
  ck_assert_msg(wf_store_open(temporary_path("out.h5"), &s) == WF_OK, "%s", wf_error_message());
  return s;
}

static void check_split(const wf_store *s, int k, const char *text, int64_t documents) {
  const wf_split *split;
  ck_assert_msg(wf_store_split(s, k, &split) == WF_OK, "%s", wf_error_message());
  ck_assert_int_eq(split->tokens, (int64_t)strlen(text));
  ck_assert_int_eq(split->bytes, split->tokens);
  ck_assert_int_eq(split->documents, documents);
  int32_t ids[100];
  ck_assert_int_eq(wf_store_read(s, split, 0, split->tokens, ids), WF_OK);
  for (int64_t i = 0; i < split->tokens; i++) ck_assert_int_eq(ids[i], text[i]);
  for (int64_t i = 1; i < split->tokens; i++) { /* and any part of it */
    ck_assert_int_eq(wf_store_read(s, split, i, 1, ids), WF_OK);
    ck_assert_int_eq(ids[0], text[i]);
  }
}

START_TEST(one_text) {
  temporary_make();
  wf_store_options o = defaults();
  wf_store_report r;
  /* One document: its end is held back. */
  ck_assert_msg(build(&o, temporary_text("a", "abcdefghijklmnopqrst"), -1, &r) == WF_OK, "%s",
                wf_error_message());
  ck_assert_int_eq(r.text_bytes, 20);
  wf_store *s = open_built();
  ck_assert_str_eq(wf_store_split_by(s), "tail");
  ck_assert_str_eq(wf_store_tokenizer_name(s), "bytes");
  ck_assert_int_eq(wf_store_vocab(s), 256);
  check_split(s, WF_TRAIN, "abcdefghijklmnopqr", 1);
  check_split(s, WF_VALIDATION, "st", 1);
  const wf_split *split;
  ck_assert_int_eq(wf_store_split(s, WF_TEST, &split), WF_ENOTFOUND);
  ck_assert_ptr_nonnull(strstr(wf_error_hint(), "--test"));
  ck_assert_int_eq(wf_store_verify(s), WF_OK);
  size_t n;
  const char *sources = wf_store_sources(s, &n);
  ck_assert_ptr_nonnull(memmem(sources, n, " 20 /tmp/", 9));
  wf_tokenizer *t;
  ck_assert_int_eq(wf_store_tokenizer(s, &t), WF_OK);
  wf_tokenizer_free(t);
  wf_store_close(s);
  /* Nothing held back. */
  set(&o, "validation", "0");
  ck_assert_int_eq(build(&o, temporary_path("a"), -1, NULL), WF_OK);
  s = open_built();
  check_split(s, WF_TRAIN, "abcdefghijklmnopqrst", 1);
  wf_store_close(s);
  /* Both. */
  set(&o, "validation", "0.25");
  set(&o, "test", "0.1");
  ck_assert_int_eq(build(&o, temporary_path("a"), -1, NULL), WF_OK);
  s = open_built();
  check_split(s, WF_TRAIN, "abcdefghijklm", 1);
  check_split(s, WF_VALIDATION, "nopqr", 1);
  check_split(s, WF_TEST, "st", 1);
  wf_store_close(s);
  wf_options_free(wf_store_option_table, &o);
  temporary_remove();
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

START_TEST(separated) {
  temporary_make();
  wf_store_options o = defaults();
  wf_store_report r;
  set(&o, "split", "%");
  set(&o, "validation", "0");
  ck_assert_int_eq(build(&o, temporary_text("a", "ab\n%\n%\nc\n%\ndef\n%\n"), -1, &r), WF_OK);
  ck_assert_int_eq(r.documents, 3);
  ck_assert_int_eq(r.empty, 2);
  wf_store *s = open_built();
  ck_assert_str_eq(wf_store_split_by(s), "documents");
  check_split(s, WF_TRAIN, "ab\nc\ndef\n", 3);
  const wf_split *split;
  ck_assert_int_eq(wf_store_split(s, WF_TRAIN, &split), WF_OK);
  static const int64_t starts[] = {0, 3, 5, 9};
  ck_assert_int_eq(memcmp(split->offsets, starts, sizeof starts), 0);
  wf_store_close(s);
  /* With an end id after each document. */
  set(&o, "eot", "true");
  ck_assert_int_eq(build(&o, temporary_path("a"), -1, &r), WF_OK);
  s = open_built();
  ck_assert_int_eq(wf_store_vocab(s), 257);
  ck_assert_int_eq(wf_store_split(s, WF_TRAIN, &split), WF_OK);
  ck_assert_int_eq(split->tokens, 12);
  ck_assert_int_eq(split->bytes, 9);
  int32_t ids[12];
  ck_assert_int_eq(wf_store_read(s, split, 0, 12, ids), WF_OK);
  ck_assert_int_eq(ids[3], 256);
  ck_assert_int_eq(ids[11], 256);
  wf_store_close(s);
  wf_options_free(wf_store_option_table, &o);
  temporary_remove();
}
END_TEST

/* Documents go to the same split whenever the seed is the same, each to exactly one, in about the asked
 * fractions. */
START_TEST(hashed) {
  temporary_make();
  enum { N = 2000 };
  FILE *f = fopen(temporary_path("a.jsonl"), "w");
  for (int i = 0; i < N; i++) fprintf(f, "{\"text\":\"%04d\"}\n", i);
  fclose(f);
  wf_store_options o = defaults();
  set(&o, "validation", "0.2");
  set(&o, "test", "0.1");
  unsigned char where[3][N];
  char sums[3][20];
  for (int round = 0; round < 3; round++) {
    set(&o, "seed", round == 2 ? "8" : "7");
    ck_assert_int_eq(build(&o, temporary_path("a.jsonl"), -1, NULL), WF_OK);
    wf_store *s = open_built();
    strcpy(sums[round], wf_store_sum(s));
    memset(where[round], 255, N);
    int64_t total = 0;
    for (int k = 0; k < WF_N_SPLITS; k++) {
      const wf_split *split;
      ck_assert_int_eq(wf_store_split(s, k, &split), WF_OK);
      double fraction = (double)split->documents / N;
      ck_assert_double_lt(fabs(fraction - (k == 0 ? 0.7 : k == 1 ? 0.2 : 0.1)), 0.04);
      for (int64_t d = 0; d < split->documents; d++) {
        int32_t ids[4];
        ck_assert_int_eq(split->offsets[d + 1] - split->offsets[d], 4);
        ck_assert_int_eq(wf_store_read(s, split, split->offsets[d], 4, ids), WF_OK);
        int number = (ids[0] - '0') * 1000 + (ids[1] - '0') * 100 + (ids[2] - '0') * 10 + ids[3] - '0';
        ck_assert_uint_eq(where[round][number], 255);
        where[round][number] = (unsigned char)k;
      }
      total += split->documents;
    }
    ck_assert_int_eq(total, N);
    wf_store_close(s);
  }
  ck_assert_int_eq(memcmp(where[0], where[1], N), 0);
  ck_assert_int_ne(memcmp(where[0], where[2], N), 0);
  ck_assert_str_eq(sums[0], sums[1]);
  ck_assert_str_ne(sums[0], sums[2]);
  wf_options_free(wf_store_option_table, &o);
  temporary_remove();
}
END_TEST

START_TEST(by_file) {
  temporary_make();
  wf_store_options o = defaults();
  wf_store_input in[] = {{temporary_text("t", "train me"), WF_TRAIN},
                         {temporary_text("v", "hold"), WF_VALIDATION},
                         {temporary_text("w", "out"), WF_VALIDATION}};
  ck_assert_int_eq(wf_store_build(&o, in, 3, NULL, NULL, NULL), WF_OK);
  wf_store *s = open_built();
  ck_assert_str_eq(wf_store_split_by(s), "files");
  check_split(s, WF_TRAIN, "train me", 1);
  check_split(s, WF_VALIDATION, "holdout", 2);
  wf_store_close(s);
  /* The same by the options. */
  set(&o, "validation_file", temporary_path("v"));
  set(&o, "test_file", temporary_path("w"));
  ck_assert_int_eq(wf_store_build(&o, in, 1, NULL, NULL, NULL), WF_OK);
  s = open_built();
  check_split(s, WF_TRAIN, "train me", 1);
  check_split(s, WF_VALIDATION, "hold", 1);
  check_split(s, WF_TEST, "out", 1);
  wf_store_close(s);
  wf_options_free(wf_store_option_table, &o);
  o = defaults();
  /* Training texts without a split of their own stay whole when validation has files. */
  in[0].split = -1;
  ck_assert_int_eq(wf_store_build(&o, in, 3, NULL, NULL, NULL), WF_OK);
  s = open_built();
  check_split(s, WF_TRAIN, "train me", 1);
  check_split(s, WF_VALIDATION, "holdout", 2);
  wf_store_close(s);
  /* The characters of held-back text are not learned. */
  set(&o, "tokenizer", "chars");
  ck_assert_int_eq(wf_store_build(&o, in, 3, NULL, NULL, NULL), WF_OK);
  s = open_built();
  ck_assert_int_eq(wf_store_vocab(s), 9); /* t r a i n space m e, and unknown */
  ck_assert_int_eq(wf_store_verify(s), WF_OK);
  wf_store_close(s);
  wf_options_free(wf_store_option_table, &o);
  temporary_remove();
}
END_TEST

/* A store with every width of ids, from a text of several buffers, read back as the tokenizer gives it. */
START_TEST(tokenizers_and_widths) {
  temporary_make();
  size_t n = 3000000;
  char *text = malloc(n);
  unsigned state = 5;
  for (size_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    text[i] = "abcdefgh    \n.,'"[state >> 28];
  }
  temporary_write("a", text, n);
  static const char *const kinds[] = {"bytes", "chars",
                                      WEFT_SOURCE_DIR "/tests/golden/tokenizer_llama3.json"};
  for (int k = 0; k < 3; k++) {
    wf_store_options o = defaults();
    set(&o, "tokenizer", kinds[k]);
    wf_store_report r;
    ck_assert_msg(build(&o, temporary_path("a"), -1, &r) == WF_OK, "%s", wf_error_message());
    wf_store *s = open_built();
    wf_tokenizer *t;
    wf_bytes back = {0};
    ck_assert_int_eq(wf_store_tokenizer(s, &t), WF_OK);
    int64_t bytes = 0;
    for (int split = WF_TRAIN; split <= WF_VALIDATION; split++) {
      const wf_split *p;
      ck_assert_int_eq(wf_store_split(s, split, &p), WF_OK);
      int32_t *ids = malloc((size_t)p->tokens * sizeof *ids);
      ck_assert_int_eq(wf_store_read(s, p, 0, p->tokens, ids), WF_OK);
      ck_assert_int_eq(wf_tokenizer_decode(t, (uint32_t *)ids, (size_t)p->tokens, &back), WF_OK);
      free(ids);
      bytes += p->bytes;
      ck_assert_int_eq((int64_t)back.n, bytes);
    }
    ck_assert_uint_eq(back.n, n);
    ck_assert_int_eq(memcmp(back.data, text, n), 0);
    wf_bytes_free(&back);
    wf_tokenizer_free(t);
    wf_store_close(s);
    wf_options_free(wf_store_option_table, &o);
  }
  free(text);
  temporary_remove();
}
END_TEST

#ifdef WEFT_SENTENCEPIECE
static void progress(void *context, int64_t done, int64_t total) {
  int64_t *last = context;
  ck_assert_int_ge(done, last[0]);
  ck_assert_int_le(done, total);
  last[0] = done;
  last[1] = total;
}
#endif

START_TEST(trained_here) {
#ifdef WEFT_SENTENCEPIECE
  temporary_make();
  FILE *f = fopen(temporary_path("a.jsonl"), "w");
  for (int i = 0; i < 400; i++)
    fprintf(f, "{\"body\":\"river %d runs past the old mill number %d\"}\n", i, i * i);
  fclose(f);
  wf_store_options o = defaults();
  set(&o, "tokenizer", "bpe");
  set(&o, "vocab_size", "350");
  set(&o, "key", "body");
  wf_store_input in = {temporary_path("a.jsonl"), -1};
  int64_t last[2] = {0, 0};
  ck_assert_msg(wf_store_build(&o, &in, 1, progress, last, NULL) == WF_OK, "%s", wf_error_message());
  ck_assert_int_eq(last[0], last[1]);
  wf_store *s = open_built();
  ck_assert_str_eq(wf_store_tokenizer_name(s), "sentencepiece");
  ck_assert_int_eq(wf_store_vocab(s), 350);
  ck_assert_int_eq(wf_store_verify(s), WF_OK);
  wf_store_close(s);
  wf_options_free(wf_store_option_table, &o);
  temporary_remove();
#else
  wf_tokenizer *t;
  ck_assert_int_eq(wf_tokenizer_train_sentencepiece("bpe", 300, NULL, NULL, &t), WF_EUNSUPPORTED);
#endif
}
END_TEST

static void check_error(const wf_store_options *o, const char *path, wf_status code, const char *says) {
  int64_t live = wf_mem_live();
  unlink(temporary_path("out.h5"));
  ck_assert_int_eq(build(o, path, -1, NULL), code);
  ck_assert_msg(strstr(wf_error_message(), says) != NULL, "'%s' lacks '%s'", wf_error_message(), says);
  ck_assert(!wf_file_exists(temporary_path("out.h5"))); /* nothing half-written is left */
  ck_assert_int_eq(wf_mem_live(), live);
}

START_TEST(bad_input) {
  temporary_make();
  wf_store_options o = defaults();
  check_error(&o, temporary_path("missing"), WF_ENOTFOUND, "missing");
  check_error(&o, temporary_text("empty", ""), WF_EINVAL, "is empty");
  check_error(&o, temporary_text("none.jsonl", "\n{\"text\":\"\"}\n"), WF_EINVAL, "no text");
  check_error(&o, temporary_text("bad.jsonl", "{\"text\":\"x\"}\n{\"text\":\n"), WF_EFORMAT, "bad.jsonl:2:");
  set(&o, "tokenizer", "chars");
  check_error(&o, temporary_text("latin", "ab\xE9 c"), WF_EFORMAT, "invalid UTF-8 at byte 2");
  set(&o, "eot", "true");
  check_error(&o, temporary_text("a", "abc"), WF_EINVAL, "end-of-text");
  set(&o, "eot", "false");
  set(&o, "tokenizer", "/nowhere/tokenizer.json");
  check_error(&o, temporary_path("a"), WF_ENOTFOUND, "/nowhere/tokenizer.json");
  ck_assert_ptr_nonnull(strstr(wf_error_hint(), "unigram"));
  set(&o, "tokenizer", "bytes");
  set(&o, "validation", "0.9");
  set(&o, "test", "0.5");
  check_error(&o, temporary_path("a"), WF_EINVAL, "validation and test");
  set(&o, "validation", "0.1");
  set(&o, "test", "0");
  ck_assert_int_eq(build(&o, temporary_path("a"), -1, NULL), WF_OK);
  wf_store_input in = {temporary_path("a"), -1};
  set(&o, "replace", "false");
  ck_assert_int_eq(wf_store_build(&o, &in, 1, NULL, NULL, NULL), WF_EEXISTS);
  if (geteuid() != 0) {
    mkdir(temporary_path("locked"), 0555);
    set(&o, "output", temporary_path("locked/out.h5"));
    ck_assert_int_eq(wf_store_build(&o, &in, 1, NULL, NULL, NULL), WF_EIO);
  }
  wf_options_free(wf_store_option_table, &o);
  temporary_remove();
}
END_TEST

/* Any cut and any flipped bit is refused; so is a file that is no store. */
START_TEST(damaged) {
  temporary_make();
  wf_store_options o = defaults();
  set(&o, "split", "%");
  ck_assert_int_eq(build(&o, temporary_text("a", "ab\n%\nc\n%\ndef\n%\nghij\n"), -1, NULL), WF_OK);
  char *data;
  int64_t n;
  ck_assert_int_eq(wf_file_read(temporary_path("out.h5"), 1 << 24, &data, &n), WF_OK);
  unsigned state = 3;
  wf_store *s;
  for (int i = 0; i < 300; i++) {
    state = state * 1664525u + 1013904223u;
    int64_t at = (int64_t)(state >> 8) % n;
    if (i % 2) {
      temporary_write("broken.h5", data, (size_t)at);
    } else {
      data[at] ^= (char)(1 << (state & 7));
      temporary_write("broken.h5", data, (size_t)n);
      data[at] ^= (char)(1 << (state & 7));
    }
    wf_status status = wf_store_open(temporary_path("broken.h5"), &s);
    ck_assert_msg(status == WF_EFORMAT, "case %d: %s", i, wf_error_message());
    ck_assert_ptr_nonnull(strstr(wf_error_message(), "broken.h5"));
  }
  wf_free(data);
  ck_assert_int_eq(wf_store_open(temporary_path("a"), &s), WF_EFORMAT);
  ck_assert_int_eq(wf_store_open(temporary_path("nothing"), &s), WF_ENOTFOUND);
  wf_options_free(wf_store_option_table, &o);
  temporary_remove();
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

START_TEST(failing_allocations) {
  temporary_make();
  wf_store_options o = defaults();
  set(&o, "split", "%");
  set(&o, "tokenizer", "chars");
  temporary_text("a", "ab\n%\nc\n%\ndef\n%\nghij\n");
  int64_t live = wf_mem_live();
  for (int64_t n = 1;; n++) {
    ck_assert_int_lt(n, 5000);
    wf_store *s = NULL;
    wf_mem_fail_at(n);
    wf_status status = build(&o, temporary_path("a"), -1, NULL);
    if (status == WF_OK) status = wf_store_open(temporary_path("out.h5"), &s);
    if (status == WF_OK) status = wf_store_verify(s);
    wf_mem_fail_at(0);
    wf_store_close(s);
    ck_assert_int_eq(wf_mem_live(), live);
    if (status == WF_OK) break;
    ck_assert_msg(status == WF_ENOMEM, "%lld: %s", (long long)n, wf_error_message());
  }
  wf_options_free(wf_store_option_table, &o);
  temporary_remove();
}
END_TEST

static Suite *store_suite(void) {
  Suite *s = suite_create("data/store");
  TCase *c = tcase_create("store");
  suite_add_tcase(s, c);
  tcase_add_test(c, one_text);
  tcase_add_test(c, separated);
  tcase_add_test(c, hashed);
  tcase_add_test(c, by_file);
  tcase_add_test(c, tokenizers_and_widths);
  tcase_add_test(c, trained_here);
  tcase_add_test(c, bad_input);
  tcase_add_test(c, damaged);
  tcase_add_test(c, failing_allocations);
  return s;
}

WF_CHECK_MAIN(store_suite)
