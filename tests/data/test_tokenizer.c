/* Tokenizers: round trips, texts fed in pieces, streamed decoding, errors, and failing allocations. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/memory.h"
#include "data/tokenizer.h"
#include "data/tokenizer_impl.h"
#include "tests/check_main.h"

typedef struct feed {
  const char *text;
  size_t n, part;
} feed;

static wf_status next_part(void *context, const char **text, size_t *n) {
  feed *f = context;
  *n = f->n < f->part ? f->n : f->part;
  *text = f->text;
  f->text += *n;
  f->n -= *n;
  return WF_OK;
}

static const char sample[] =
    "Grüße aus Köln\n\n日本語 \xF0\x9F\x98\x80 and plain words, and more words.\n  spaced  out\n";

/* Whole, in pieces of every small size, and one id at a time: all the same. */
static void check_round_trip(const wf_tokenizer *t, const char *text, size_t n) {
  wf_ids whole = {0};
  wf_bytes back = {0};
  ck_assert_int_eq(wf_tokenizer_encode(t, text, n, &whole), WF_OK);
  ck_assert_int_eq(wf_tokenizer_decode(t, whole.data, whole.n, &back), WF_OK);
  ck_assert_uint_eq(back.n, n);
  ck_assert(n == 0 || memcmp(back.data, text, n) == 0);
  for (size_t part = 1; part < 20; part += part < 8 ? 1 : 5) {
    wf_encoder e;
    wf_ids pieces = {0};
    wf_encoder_start(&e, t);
    for (int twice = 0; twice < 2; twice++) { /* an encoder serves one document after the other */
      pieces.n = 0;
      for (size_t i = 0; i < n; i += part)
        ck_assert_int_eq(wf_encoder_feed(&e, text + i, n - i < part ? n - i : part, &pieces), WF_OK);
      ck_assert_int_eq(wf_encoder_end(&e, &pieces), WF_OK);
      ck_assert_uint_eq(pieces.n, whole.n);
      ck_assert(whole.n == 0 || memcmp(pieces.data, whole.data, whole.n * sizeof *whole.data) == 0);
    }
    wf_encoder_free(&e);
    wf_ids_free(&pieces);
  }
  wf_decoder d;
  wf_decoder_start(&d, t);
  back.n = 0;
  for (size_t i = 0; i < whole.n; i++) {
    ck_assert_int_eq(wf_decoder_next(&d, whole.data[i], &back), WF_OK);
    ck_assert_uint_eq(wf_utf8_whole(back.data, back.n), back.n); /* never half a character */
  }
  ck_assert_int_eq(wf_decoder_end(&d, &back), WF_OK);
  ck_assert_uint_eq(back.n, n);
  ck_assert(n == 0 || memcmp(back.data, text, n) == 0);
  wf_ids_free(&whole);
  wf_bytes_free(&back);
}

/* A tokenizer read from its blob gives the same ids and has the same facts. */
static void check_blob(const wf_tokenizer *t) {
  size_t n, m;
  const void *blob = wf_tokenizer_blob(t, &n);
  wf_tokenizer *u;
  ck_assert_int_eq(wf_tokenizer_load(blob, n, &u), WF_OK);
  ck_assert_str_eq(wf_tokenizer_name(u), wf_tokenizer_name(t));
  ck_assert_int_eq(wf_tokenizer_vocab(u), wf_tokenizer_vocab(t));
  ck_assert_int_eq(wf_tokenizer_eot(u), wf_tokenizer_eot(t));
  ck_assert_int_eq(wf_tokenizer_bos(u), wf_tokenizer_bos(t));
  ck_assert_int_eq(wf_tokenizer_eos(u), wf_tokenizer_eos(t));
  const void *again = wf_tokenizer_blob(u, &m);
  ck_assert(n == m && !memcmp(blob, again, n));
  wf_ids a = {0}, b = {0};
  ck_assert_int_eq(wf_tokenizer_encode(t, sample, sizeof sample - 1, &a), WF_OK);
  ck_assert_int_eq(wf_tokenizer_encode(u, sample, sizeof sample - 1, &b), WF_OK);
  ck_assert(a.n == b.n && !memcmp(a.data, b.data, a.n * sizeof *a.data));
  wf_ids_free(&a);
  wf_ids_free(&b);
  wf_tokenizer_free(u);
}

START_TEST(bytes) {
  wf_tokenizer *t;
  ck_assert_int_eq(wf_tokenizer_bytes(false, &t), WF_OK);
  ck_assert_int_eq(wf_tokenizer_vocab(t), 256);
  ck_assert_int_eq(wf_tokenizer_eot(t), -1);
  check_round_trip(t, sample, sizeof sample - 1);
  check_round_trip(t, "", 0);
  check_blob(t);
  unsigned char all[256];
  for (int i = 0; i < 256; i++) all[i] = (unsigned char)i;
  wf_ids ids = {0};
  ck_assert_int_eq(wf_tokenizer_encode(t, (char *)all, 256, &ids), WF_OK);
  for (unsigned i = 0; i < 256; i++) ck_assert_uint_eq(ids.data[i], i);
  wf_bytes out = {0};
  uint32_t outside = 256;
  ck_assert_int_eq(wf_tokenizer_decode(t, &outside, 1, &out), WF_EINVAL);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "id 256"));
  wf_tokenizer_free(t);
  ck_assert_int_eq(wf_tokenizer_bytes(true, &t), WF_OK);
  ck_assert_int_eq(wf_tokenizer_vocab(t), 257);
  ck_assert_int_eq(wf_tokenizer_eot(t), 256);
  check_blob(t);
  ck_assert_int_eq(wf_tokenizer_decode(t, &outside, 1, &out), WF_OK);
  ck_assert_uint_eq(out.n, 0);
  wf_tokenizer_free(t);
  wf_ids_free(&ids);
  wf_bytes_free(&out);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* What can never become a character is shown as U+FFFD, and the bytes after it are not lost. */
START_TEST(broken_utf8_is_shown) {
  wf_tokenizer *t;
  ck_assert_int_eq(wf_tokenizer_bytes(false, &t), WF_OK);
  static const struct {
    const char *bytes, *shown;
  } cases[] = {{"a\xFF"
                "b",
                "a\xEF\xBF\xBD"
                "b"},
               {"\xE2\x82"
                "x",
                "\xEF\xBF\xBDx"},
               {"\xF0\x9F\x98", "\xEF\xBF\xBD"},
               {"\xE2\xE2\x82\xAC", "\xEF\xBF\xBD\xE2\x82\xAC"},
               {"\xC0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD"}};
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    wf_decoder d;
    wf_bytes out = {0};
    wf_decoder_start(&d, t);
    for (const char *p = cases[c].bytes; *p; p++)
      ck_assert_int_eq(wf_decoder_next(&d, (unsigned char)*p, &out), WF_OK);
    ck_assert_int_eq(wf_decoder_end(&d, &out), WF_OK);
    ck_assert_uint_eq(out.n, strlen(cases[c].shown));
    ck_assert_int_eq(memcmp(out.data, cases[c].shown, out.n), 0);
    wf_bytes_free(&out);
  }
  wf_tokenizer_free(t);
}
END_TEST

START_TEST(utf8_is_strict) {
  for (uint32_t code = 0; code < 0x110000; code++) {
    char bytes[4];
    if (code >= 0xD800 && code < 0xE000) continue;
    int n = wf_utf8_put(code, bytes);
    uint32_t back;
    ck_assert_int_eq(wf_utf8_next(bytes, (size_t)n, &back), n);
    ck_assert_uint_eq(back, code);
    for (int cut = 1; cut < n; cut++) ck_assert_int_eq(wf_utf8_next(bytes, (size_t)cut, NULL), 0);
  }
  static const char *const bad[] = {"\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                                    "\xF5", "\xFF"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    ck_assert_int_eq(wf_utf8_next(bad[i], strlen(bad[i]), NULL), -1);
}
END_TEST

START_TEST(chars) {
  wf_tokenizer *t;
  for (size_t part = 1; part < 9; part++) {
    feed f = {sample, sizeof sample - 1, part};
    ck_assert_int_eq(wf_tokenizer_train_chars(next_part, &f, &t), WF_OK);
    check_round_trip(t, sample, sizeof sample - 1);
    check_blob(t);
    wf_tokenizer_free(t);
  }
  feed f = {"cab\xC3\xA9", 5, 100};
  ck_assert_int_eq(wf_tokenizer_train_chars(next_part, &f, &t), WF_OK);
  ck_assert_int_eq(wf_tokenizer_vocab(t), 5); /* unknown, a, b, c, e acute */
  wf_ids ids = {0};
  ck_assert_int_eq(wf_tokenizer_encode(t, "b\xC3\xA9z", 4, &ids), WF_OK);
  ck_assert_uint_eq(ids.n, 3);
  ck_assert_uint_eq(ids.data[0], 2);
  ck_assert_uint_eq(ids.data[1], 4);
  ck_assert_uint_eq(ids.data[2], 0);
  wf_bytes out = {0};
  ck_assert_int_eq(wf_tokenizer_decode(t, ids.data, 3, &out), WF_OK);
  ck_assert(out.n == 6 && !memcmp(out.data, "b\xC3\xA9\xEF\xBF\xBD", 6));
  /* Errors: where the invalid byte is, also after several pieces; a character cut off by the end. */
  ck_assert_int_eq(wf_tokenizer_encode(t, "abc\xFFz", 5, &ids), WF_EFORMAT);
  ck_assert_str_eq(wf_error_message(), "invalid UTF-8 at byte 3");
  wf_encoder e;
  wf_encoder_start(&e, t);
  ck_assert_int_eq(wf_encoder_feed(&e, "ab\xC3", 3, &ids), WF_OK);
  ck_assert_int_eq(wf_encoder_feed(&e, "\xA9q\xC3", 3, &ids), WF_OK);
  ck_assert_int_eq(wf_encoder_end(&e, &ids), WF_EFORMAT);
  ck_assert_str_eq(wf_error_message(), "invalid UTF-8 at byte 5");
  wf_encoder_free(&e);
  wf_tokenizer_free(t);
  f = (feed){"abcd\xE2\x82", 6, 3};
  ck_assert_int_eq(wf_tokenizer_train_chars(next_part, &f, &t), WF_EFORMAT);
  ck_assert_str_eq(wf_error_message(), "invalid UTF-8 at byte 4");
  f = (feed){"", 0, 3};
  ck_assert_int_eq(wf_tokenizer_train_chars(next_part, &f, &t), WF_EINVAL);
  wf_ids_free(&ids);
  wf_bytes_free(&out);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* --- SentencePiece --- */

static char *training_text(size_t *n) {
  static const char *const parts[] = {"ri",   "ver", "run", "mil", "ne",  "bo",  "at", "Brü",
                                      "cken", "zur", "ing", "ch",  "ild", "ren", "pa", "st"};
  char *text = malloc(1 << 16), *p = text;
  unsigned state = 1;
  for (int line = 0; line < 600; line++) {
    for (int w = 0; w < 8; w++) {
      state = state * 1103515245u + 12345u;
      unsigned r = state >> 16;
      p += sprintf(p, "%s%s%s%s", w ? " " : "", parts[r % 16], parts[r / 16 % 4],
                   r & 1024 ? parts[r / 64 % 16] : "");
    }
    p += sprintf(p, ".\n");
  }
  *n = (size_t)(p - text);
  return text;
}

START_TEST(sentencepiece) {
  size_t n;
  char *text = training_text(&n);
  static const char *const models[] = {"bpe", "unigram"};
  for (int m = 0; m < 2; m++) {
    wf_tokenizer *t;
    feed f = {text, n, 1000};
    wf_status s = wf_tokenizer_train_sentencepiece(models[m], 400, next_part, &f, &t);
#ifndef WEFT_SENTENCEPIECE
    ck_assert_int_eq(s, WF_EUNSUPPORTED);
    continue;
#endif
    ck_assert_msg(s == WF_OK, "%s", wf_error_message());
    ck_assert_int_eq(wf_tokenizer_vocab(t), 400);
    check_round_trip(t, sample, sizeof sample - 1);
    check_round_trip(t, "  \n\n x\n", 7);
    check_round_trip(t, text, 3000);
    check_blob(t);
    wf_ids ids = {0};
    ck_assert_int_eq(wf_tokenizer_encode(t, text, n, &ids), WF_OK);
    ck_assert_uint_lt(ids.n, n / 2); /* it learned words */
    wf_ids_free(&ids);
    wf_tokenizer_free(t);
    f = (feed){"too little\n", 11, 100};
    ck_assert_int_eq(wf_tokenizer_train_sentencepiece(models[m], 5000, next_part, &f, &t), WF_EINVAL);
    ck_assert_ptr_nonnull(strstr(wf_error_hint(), "5000"));
    ck_assert_int_eq(wf_tokenizer_load("sentencepiece\nrubbish", 21, &t), WF_EFORMAT);
  }
  free(text);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

START_TEST(damaged_blobs) {
  static const char *const bad[] = {"",
                                    "bytes",
                                    "bytes\nx",
                                    "chars\n",
                                    "chars\naa",
                                    "chars\n\xFF",
                                    "morse\n",
                                    "tokenizer.json\n{",
                                    "tokenizer.json\n{}"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    wf_tokenizer *t;
    ck_assert_int_eq(wf_tokenizer_load(bad[i], strlen(bad[i]), &t), WF_EFORMAT);
  }
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

START_TEST(files) {
  wf_tokenizer *t;
  ck_assert_int_eq(wf_tokenizer_open("/nonexistent/tokenizer.json", &t), WF_ENOTFOUND);
  char path[] = "/tmp/weft-tokenizer-XXXXXX";
  int fd = mkstemp(path);
  ck_assert_int_ge(fd, 0);
  FILE *f = fdopen(fd, "w");
  fclose(f);
  ck_assert_int_eq(wf_tokenizer_open(path, &t), WF_EFORMAT);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), path));
  remove(path);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* Every allocation fails once; each time an error, nothing kept. */
START_TEST(failing_allocations) {
  for (int64_t n = 1;; n++) {
    ck_assert_int_lt(n, 1000);
    wf_tokenizer *t = NULL, *u = NULL;
    wf_ids ids = {0};
    wf_bytes out = {0};
    wf_encoder e = {0};
    feed f = {sample, sizeof sample - 1, 7};
    size_t size = 0;
    const void *blob = NULL;
    wf_mem_fail_at(n);
    wf_status s = wf_tokenizer_train_chars(next_part, &f, &t);
    if (s == WF_OK) blob = wf_tokenizer_blob(t, &size);
    if (s == WF_OK) s = wf_tokenizer_load(blob, size, &u);
    if (s == WF_OK) {
      wf_encoder_start(&e, u);
      s = wf_encoder_feed(&e, sample, 9, &ids);
    }
    if (s == WF_OK) s = wf_encoder_feed(&e, sample + 9, sizeof sample - 10, &ids);
    if (s == WF_OK) s = wf_encoder_end(&e, &ids);
    if (s == WF_OK) s = wf_tokenizer_decode(u, ids.data, ids.n, &out);
    wf_mem_fail_at(0);
    wf_encoder_free(&e);
    wf_ids_free(&ids);
    wf_bytes_free(&out);
    wf_tokenizer_free(t);
    wf_tokenizer_free(u);
    ck_assert_int_eq(wf_mem_live(), 0);
    if (s == WF_OK) break;
    ck_assert_int_eq(s, WF_ENOMEM);
  }
}
END_TEST

static Suite *tokenizer_suite(void) {
  Suite *s = suite_create("data/tokenizer");
  TCase *c = tcase_create("tokenizer");
  suite_add_tcase(s, c);
  tcase_add_test(c, bytes);
  tcase_add_test(c, broken_utf8_is_shown);
  tcase_add_test(c, utf8_is_strict);
  tcase_add_test(c, chars);
  tcase_add_test(c, sentencepiece);
  tcase_add_test(c, damaged_blobs);
  tcase_add_test(c, files);
  tcase_add_test(c, failing_allocations);
  return s;
}

WF_CHECK_MAIN(tokenizer_suite)
