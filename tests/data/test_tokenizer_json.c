/* tokenizer.json against the ids of Hugging Face's own package (tests/golden/make_tokenizer.py), and what is
 * refused. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include "core/file.h"
#include "core/memory.h"
#include "data/tokenizer.h"
#include "tests/check_main.h"

#define GOLDEN WEFT_SOURCE_DIR "/tests/golden/tokenizer_"

static json_t *read_cases(void) {
  json_error_t error;
  json_t *cases = json_load_file(GOLDEN "cases.json", JSON_ALLOW_NUL, &error);
  ck_assert_msg(cases != NULL, "%s", error.text);
  return cases;
}

static wf_tokenizer *open_golden(const char *name) {
  char path[1000];
  snprintf(path, sizeof path, "%s%s.json", GOLDEN, name);
  wf_tokenizer *t;
  ck_assert_msg(wf_tokenizer_open(path, &t) == WF_OK, "%s", wf_error_message());
  return t;
}

START_TEST(golden) {
  static const char *const names[] = {"gpt2", "prefix", "llama3", "words"};
  json_t *cases = read_cases();
  for (int k = 0; k < 4; k++) {
    wf_tokenizer *t = open_golden(names[k]);
    json_t *list = json_object_get(cases, names[k]), *one;
    size_t i;
    ck_assert_uint_gt(json_array_size(list), 30);
    json_array_foreach(list, i, one) {
      const json_t *text = json_object_get(one, "text"), *want = json_object_get(one, "ids");
      const char *bytes = json_string_value(text);
      size_t n = json_string_length(text);
      wf_ids ids = {0};
      ck_assert_int_eq(wf_tokenizer_encode(t, bytes, n, &ids), WF_OK);
      bool same = ids.n == json_array_size(want);
      for (size_t j = 0; same && j < ids.n; j++)
        same = ids.data[j] == json_integer_value(json_array_get(want, j));
      if (!same) {
        for (size_t j = 0; j < ids.n; j++) fprintf(stderr, "%u ", ids.data[j]);
        fprintf(stderr, "\n%s\n", json_dumps(want, 0));
      }
      ck_assert_msg(same, "%s, text %zu: %s", names[k], i, bytes);
      for (size_t part = 1; part < 12; part += 3) { /* fed in pieces: the same */
        wf_encoder e;
        wf_ids pieces = {0};
        wf_encoder_start(&e, t);
        for (size_t at = 0; at < n; at += part)
          ck_assert_int_eq(wf_encoder_feed(&e, bytes + at, n - at < part ? n - at : part, &pieces), WF_OK);
        ck_assert_int_eq(wf_encoder_end(&e, &pieces), WF_OK);
        ck_assert_msg(pieces.n == ids.n &&
                          (ids.n == 0 || !memcmp(pieces.data, ids.data, ids.n * sizeof *ids.data)),
                      "%s, text %zu in parts of %zu", names[k], i, part);
        wf_encoder_free(&e);
        wf_ids_free(&pieces);
      }
      wf_bytes back = {0};
      ck_assert_int_eq(wf_tokenizer_decode(t, ids.data, ids.n, &back), WF_OK);
      if (k == 0 || k == 2) ck_assert(back.n == n && (n == 0 || !memcmp(back.data, bytes, n)));
      wf_bytes_free(&back);
      wf_ids_free(&ids);
    }
    wf_tokenizer_free(t);
  }
  json_decref(cases);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

START_TEST(special_ids) {
  wf_tokenizer *t = open_golden("gpt2");
  ck_assert_int_eq(wf_tokenizer_eot(t), 0);
  ck_assert_int_eq(wf_tokenizer_bos(t), -1);
  ck_assert_int_eq(wf_tokenizer_vocab(t), 482);
  wf_tokenizer_free(t);
  t = open_golden("llama3");
  ck_assert_int_eq(wf_tokenizer_bos(t), 0);
  ck_assert_int_eq(wf_tokenizer_eot(t), 1);
  size_t n, m;
  const void *blob = wf_tokenizer_blob(t, &n), *again;
  wf_tokenizer *u;
  ck_assert_int_eq(wf_tokenizer_load(blob, n, &u), WF_OK);
  again = wf_tokenizer_blob(u, &m);
  ck_assert(n == m && !memcmp(blob, again, n));
  wf_tokenizer_free(t);
  wf_tokenizer_free(u);
}
END_TEST

/* Any bytes at all come back, whole or in pieces: byte-level BPE needs no UTF-8. */
START_TEST(any_bytes) {
  static const char *const names[] = {"gpt2", "llama3"};
  for (int k = 0; k < 2; k++) {
    wf_tokenizer *t = open_golden(names[k]);
    char bytes[3000];
    unsigned state = 7;
    for (size_t i = 0; i < sizeof bytes; i++) {
      state = state * 1664525u + 1013904223u;
      bytes[i] = (char)((state >> 28) < 9 ? "ab '\n1.\xC3\xA9"[(state >> 20) % 9] : (int)(state >> 20 & 255));
    }
    wf_ids ids = {0}, pieces = {0};
    wf_bytes back = {0};
    ck_assert_int_eq(wf_tokenizer_encode(t, bytes, sizeof bytes, &ids), WF_OK);
    ck_assert_int_eq(wf_tokenizer_decode(t, ids.data, ids.n, &back), WF_OK);
    ck_assert(back.n == sizeof bytes && !memcmp(back.data, bytes, back.n));
    wf_encoder e;
    wf_encoder_start(&e, t);
    for (size_t at = 0; at < sizeof bytes; at += 100)
      ck_assert_int_eq(wf_encoder_feed(&e, bytes + at, 100, &pieces), WF_OK);
    ck_assert_int_eq(wf_encoder_end(&e, &pieces), WF_OK);
    ck_assert(pieces.n == ids.n && !memcmp(pieces.data, ids.data, ids.n * sizeof *ids.data));
    wf_encoder_free(&e);
    wf_ids_free(&ids);
    wf_ids_free(&pieces);
    wf_bytes_free(&back);
    wf_tokenizer_free(t);
  }
}
END_TEST

/* A megabyte without a word boundary is no trouble. */
START_TEST(one_long_word) {
  wf_tokenizer *t = open_golden("gpt2");
  size_t n = 1 << 20;
  char *text = malloc(n);
  for (size_t i = 0; i < n; i++) text[i] = (char)('a' + i * i % 7);
  wf_ids ids = {0};
  wf_bytes back = {0};
  ck_assert_int_eq(wf_tokenizer_encode(t, text, n, &ids), WF_OK);
  ck_assert_int_eq(wf_tokenizer_decode(t, ids.data, ids.n, &back), WF_OK);
  ck_assert(back.n == n && !memcmp(back.data, text, n));
  wf_ids_free(&ids);
  wf_bytes_free(&back);
  free(text);
  wf_tokenizer_free(t);
}
END_TEST

/* Put other JSON in the place of `key` at the root, the model or the pre-tokenizer, and see what is said. */
static void check_refused(const char *where, const char *key, const char *value, wf_status code,
                          const char *says) {
  json_error_t error;
  json_t *root = json_load_file(GOLDEN "gpt2.json", JSON_ALLOW_NUL, &error);
  json_t *object = where ? json_object_get(root, where) : root;
  json_object_set_new(object, key, json_loads(value, JSON_DECODE_ANY, &error));
  char *text = json_dumps(root, JSON_COMPACT);
  wf_tokenizer *t;
  ck_assert_int_eq(wf_tokenizer_json(text, strlen(text), &t), code);
  ck_assert_msg(strstr(wf_error_message(), says) != NULL, "'%s' lacks '%s'", wf_error_message(), says);
  free(text);
  json_decref(root);
  ck_assert_int_eq(wf_mem_live(), 0);
}

START_TEST(refused) {
  check_refused(NULL, "normalizer", "{\"type\":\"NFKC\"}", WF_EUNSUPPORTED, "normalizer 'NFKC'");
  check_refused(NULL, "decoder", "{\"type\":\"Metaspace\"}", WF_EUNSUPPORTED, "decoder 'Metaspace'");
  check_refused(NULL, "pre_tokenizer", "{\"type\":\"BertPreTokenizer\"}", WF_EUNSUPPORTED,
                "'BertPreTokenizer'");
  check_refused(NULL, "pre_tokenizer", "null", WF_EUNSUPPORTED, "without the ByteLevel");
  check_refused(NULL, "pre_tokenizer",
                "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"MergedWithNext\"}",
                WF_EUNSUPPORTED, "'MergedWithNext'");
  check_refused(NULL, "pre_tokenizer",
                "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}", WF_EFORMAT,
                "regular expression");
  check_refused(NULL, "model", "null", WF_EFORMAT, "no model");
  check_refused("model", "type", "\"WordPiece\"", WF_EUNSUPPORTED, "model 'WordPiece'");
  check_refused("model", "end_of_word_suffix", "\"</w>\"", WF_EUNSUPPORTED, "end_of_word_suffix");
  check_refused("model", "byte_fallback", "true", WF_EUNSUPPORTED, "byte_fallback");
  check_refused("model", "dropout", "0.1", WF_EUNSUPPORTED, "dropout");
  check_refused("model", "vocab", "{\"a\":-1}", WF_EFORMAT, "an id");
  check_refused("model", "vocab", "{\"a\":99999999999}", WF_EFORMAT, "an id");
  check_refused("model", "merges", "[[\"a\"]]", WF_EFORMAT, "merge 0");
  check_refused("model", "merges", "[\"a b\",\"qq zz\"]", WF_EFORMAT, "merge");
  check_refused(NULL, "added_tokens", "[{\"id\":3}]", WF_EFORMAT, "content");
  check_refused(NULL, "added_tokens", "[{\"id\":3,\"content\":\"<m>\",\"lstrip\":true}]", WF_EUNSUPPORTED,
                "lstrip");
  wf_tokenizer *t;
  ck_assert_int_eq(wf_tokenizer_json("{\n \"a\": }", 10, &t), WF_EFORMAT);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "line 2"));
}
END_TEST

START_TEST(missing_byte) {
  static const char json[] =
      "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]},"
      "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}}";
  wf_tokenizer *t;
  wf_ids ids = {0};
  ck_assert_int_eq(wf_tokenizer_json(json, sizeof json - 1, &t), WF_OK);
  ck_assert_int_eq(wf_tokenizer_encode(t, "aab", 3, &ids), WF_OK);
  ck_assert(ids.n == 2 && ids.data[0] == 0 && ids.data[1] == 2);
  ck_assert_int_eq(wf_tokenizer_encode(t, "c", 1, &ids), WF_EINVAL);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "0x63"));
  wf_ids_free(&ids);
  wf_tokenizer_free(t);
}
END_TEST

START_TEST(failing_allocations) {
  char *json;
  int64_t size;
  ck_assert_int_eq(wf_file_read(GOLDEN "llama3.json", 1 << 20, &json, &size), WF_OK);
  int64_t base = wf_mem_live();
  for (int64_t n = 1;; n++) {
    ck_assert_int_lt(n, 5000);
    wf_tokenizer *t = NULL;
    wf_ids ids = {0};
    wf_mem_fail_at(n);
    wf_status s = wf_tokenizer_json(json, (size_t)size, &t);
    if (s == WF_OK) s = wf_tokenizer_encode(t, "don't <special> panic  \n", 24, &ids);
    wf_mem_fail_at(0);
    wf_tokenizer_free(t);
    wf_ids_free(&ids);
    ck_assert_int_eq(wf_mem_live(), base);
    if (s == WF_OK) break;
    ck_assert_int_eq(s, WF_ENOMEM);
  }
  wf_free(json);
}
END_TEST

static Suite *json_suite(void) {
  Suite *s = suite_create("data/tokenizer_json");
  TCase *c = tcase_create("tokenizer_json");
  suite_add_tcase(s, c);
  tcase_add_test(c, golden);
  tcase_add_test(c, special_ids);
  tcase_add_test(c, any_bytes);
  tcase_add_test(c, one_long_word);
  tcase_add_test(c, refused);
  tcase_add_test(c, missing_byte);
  tcase_add_test(c, failing_allocations);
  return s;
}

WF_CHECK_MAIN(json_suite)
