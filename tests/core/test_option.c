/* Typed option tables: defaults, reading, refusing, proposing, printing back exactly, copying, allocation
 * failure. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/option.h"
#include "tests/check_main.h"

typedef struct sample {
  int64_t heads, window;
  double lr, ratio;
  bool bias;
  char *name, *path;
  int kind;
} sample;

static const char *const kinds[] = {"softmax", "sigmoid", NULL};

static const wf_option table[] = {
    WF_OPT_I64(sample, heads, "4", 1, 4096, "number of heads"),
    WF_OPT_I64F(sample, window, "auto", 0, 1e18, WF_OPT_AUTO, "tokens seen"),
    WF_OPT_F64F(sample, lr, NULL, 0, INFINITY, WF_OPT_REQUIRED | WF_OPT_RESUME, "learning rate"),
    WF_OPT_F64F(sample, ratio, "auto", -1, 1, WF_OPT_AUTO, "a ratio"),
    WF_OPT_BOOL(sample, bias, "false", "with a bias"),
    WF_OPT_STR(sample, name, "tiny", "its name"),
    WF_OPT_STRF(sample, path, NULL, WF_OPT_AUTO, "where it lies"),
    WF_OPT_ENUM(sample, kind, "softmax", kinds, "the score function"),
    WF_OPT_END};

static sample defaults(void) {
  sample s;
  memset(&s, 0x5a, sizeof s); /* garbage, as on a stack */
  ck_assert_int_eq(wf_options_defaults(table, &s), WF_OK);
  return s;
}

static void expect_error(const char *key, const char *text, const char *message, const char *hint) {
  sample s = defaults();
  ck_assert_int_eq(wf_options_set(table, &s, key, text), WF_EINVAL);
  ck_assert_msg(strstr(wf_error_message(), message), "message: %s", wf_error_message());
  ck_assert_msg(strstr(wf_error_hint(), hint), "hint: %s", wf_error_hint());
  wf_options_free(table, &s);
}

START_TEST(defaults_fill_every_field) {
  sample s = defaults();
  ck_assert_int_eq(s.heads, 4);
  ck_assert(s.window == WF_AUTO_I64);
  ck_assert(isnan(s.lr));
  ck_assert(isnan(s.ratio));
  ck_assert(!s.bias);
  ck_assert_str_eq(s.name, "tiny");
  ck_assert_ptr_null(s.path);
  ck_assert_int_eq(s.kind, 0);
  wf_options_free(table, &s);
  ck_assert_ptr_null(s.name);
}
END_TEST

START_TEST(values_are_read) {
  sample s = defaults();
  ck_assert_int_eq(wf_options_set(table, &s, "heads", "4096"), WF_OK);
  ck_assert_int_eq(wf_options_set(table, &s, "window", "9007199254740993"), WF_OK);
  ck_assert_int_eq(wf_options_set(table, &s, "lr", "3.0e-4"), WF_OK);
  ck_assert_int_eq(wf_options_set(table, &s, "ratio", "-.5"), WF_OK);
  ck_assert_int_eq(wf_options_set(table, &s, "bias", "true"), WF_OK);
  ck_assert_int_eq(wf_options_set(table, &s, "name", "large"), WF_OK);
  ck_assert_int_eq(wf_options_set(table, &s, "kind", "sigmoid"), WF_OK);
  ck_assert_int_eq(s.heads, 4096);
  ck_assert(s.window == INT64_C(9007199254740993));
  ck_assert(s.lr == 3e-4 && s.ratio == -0.5 && s.bias && s.kind == 1);
  ck_assert_str_eq(s.name, "large");
  ck_assert_int_eq(wf_options_set(table, &s, "window", "auto"), WF_OK);
  ck_assert_int_eq(wf_options_set(table, &s, "lr", ".inf"), WF_OK);
  ck_assert_int_eq(wf_options_set(table, &s, "name", "null"), WF_OK);
  ck_assert(s.window == WF_AUTO_I64 && isinf(s.lr) && !s.name);
  wf_options_free(table, &s);
}
END_TEST

START_TEST(wrong_values_are_refused) {
  expect_error("heads", "four", "heads: expected an integer, got \"four\"", "number of heads");
  expect_error("heads", "4.5", "expected an integer", "");
  expect_error("heads", "", "expected an integer", "");
  expect_error("heads", " 4", "expected an integer", "");
  expect_error("heads", "0x10", "expected an integer", "");
  expect_error("heads", "auto", "expected an integer", "");
  expect_error("heads", "0", "heads: 0 is out of range, allowed is 1 to 4096", "number of heads");
  expect_error("heads", "99999999999999999999", "out of range", "");
  expect_error("window", "x", "expected an integer or auto", "");
  expect_error("window", "-9223372036854775808", "out of range", "");
  expect_error("lr", "-1", "allowed is at least 0", "");
  expect_error("lr", "nan", "expected a number", "");
  expect_error("lr", "inf", "expected a number", "");
  expect_error("lr", "0x1p3", "expected a number", "");
  expect_error("lr", "1e-3x", "expected a number", "");
  expect_error("ratio", ".inf", "allowed is -1 to 1", "");
  expect_error("bias", "yes", "expected true or false", "");
  expect_error("kind", "softmac", "\"softmac\" is not one of softmax, sigmoid", "did you mean softmax?");
}
END_TEST

START_TEST(unknown_keys_propose_the_nearest) {
  expect_error("head", "1", "unknown key \"head\"", "did you mean heads?");
  expect_error("nmae", "1", "unknown key", "did you mean name?");
  expect_error("Kind", "1", "unknown key", "did you mean kind?");
  expect_error("zebra", "1", "unknown key \"zebra\"", "");
  sample s = defaults();
  wf_options_set(table, &s, "zebra", "1");
  ck_assert_str_eq(wf_error_hint(), "");
  wf_options_free(table, &s);
  const char *const mixers[] = {"attention", "gla", "simple_gla", "mamba"};
  ck_assert_str_eq(wf_nearest_name("atention", mixers, 4), "attention");
  ck_assert_str_eq(wf_nearest_name("att", mixers, 4), "attention");
  ck_assert_str_eq(wf_nearest_name("simplegla", mixers, 4), "simple_gla");
  ck_assert_str_eq(wf_nearest_name("mamba2", mixers, 4), "mamba");
  ck_assert_ptr_null(wf_nearest_name("", mixers, 4));
  ck_assert_ptr_null(wf_nearest_name("quicksort", mixers, 4));
}
END_TEST

START_TEST(a_refused_value_leaves_the_field) {
  sample s = defaults();
  ck_assert_int_eq(wf_options_set(table, &s, "heads", "-1"), WF_EINVAL);
  ck_assert_int_eq(s.heads, 4);
  wf_options_free(table, &s);
}
END_TEST

static const char *printed(const char *key, const sample *s) {
  static char out[200];
  const wf_option *o = wf_options_find(table, key);
  ck_assert_ptr_nonnull(o);
  const size_t n = wf_options_print(o, s, out, sizeof out);
  ck_assert_uint_eq(n, strlen(out));
  char little[4];
  ck_assert_uint_eq(wf_options_print(o, s, little, sizeof little), n);
  ck_assert_int_eq(strncmp(little, out, 3), 0);
  ck_assert_uint_le(strlen(little), 3);
  return out;
}

START_TEST(numbers_print_back_exactly) {
  const double some[] = {0.0, -0.0, 1e-5, 0.1, 1.0 / 3.0, 3e-4, 1e300, 5e-324, 123456789.0, 1e22, INFINITY};
  sample s = defaults(), t = defaults();
  for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
    s.lr = some[i];
    ck_assert_int_eq(wf_options_set(table, &t, "lr", printed("lr", &s)), WF_OK);
    ck_assert(memcmp(&s.lr, &t.lr, sizeof s.lr) == 0);
  }
  s.lr = 1e-5;
  ck_assert_str_eq(printed("lr", &s), "1.0e-05");
  s.lr = 10000;
  ck_assert_str_eq(printed("lr", &s), "10000.0");
  s.lr = 0.0003;
  ck_assert_str_eq(printed("lr", &s), "0.0003");
  ck_assert_str_eq(printed("window", &s), "auto");
  ck_assert_str_eq(printed("ratio", &s), "auto");
  ck_assert_str_eq(printed("bias", &s), "false");
  ck_assert_str_eq(printed("kind", &s), "softmax");
  wf_options_free(table, &s);
  wf_options_free(table, &t);
}
END_TEST

START_TEST(strings_print_as_yaml) {
  static const char *const cases[][2] = {{"runs/tiny-1.h5", "runs/tiny-1.h5"},
                                         {"", "\"\""},
                                         {"12", "\"12\""},
                                         {"Yes", "\"Yes\""},
                                         {"auto", "\"auto\""},
                                         {"a b: c # d", "\"a b: c # d\""},
                                         {"q\"\\\n\t\x01", "\"q\\\"\\\\\\n\\t\\x01\""},
                                         {"g\xc3\xbcn", "\"g\xc3\xbcn\""},
                                         {"\xc2\x85\xe2\x80\xa8", "\"\\x85\\u2028\""}};
  sample s = defaults();
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    ck_assert_int_eq(wf_options_set(table, &s, "name", cases[i][0]), WF_OK);
    ck_assert_str_eq(printed("name", &s), cases[i][1]);
  }
  ck_assert_str_eq(printed("path", &s), "auto");
  wf_options_set(table, &s, "name", "null");
  ck_assert_str_eq(printed("name", &s), "null");
  wf_options_free(table, &s);
}
END_TEST

START_TEST(copies_are_deep_and_equal) {
  sample s = defaults(), t;
  wf_options_set(table, &s, "path", "a/b");
  ck_assert_int_eq(wf_options_copy(table, &t, &s), WF_OK);
  for (const wf_option *o = table; o->name; o++) ck_assert(wf_options_equal(o, &s, &t));
  ck_assert_ptr_ne(s.name, t.name);
  wf_options_set(table, &t, "name", "other");
  wf_options_set(table, &t, "lr", "1");
  wf_options_set(table, &t, "path", "auto");
  ck_assert(!wf_options_equal(wf_options_find(table, "name"), &s, &t));
  ck_assert(!wf_options_equal(wf_options_find(table, "lr"), &s, &t));
  ck_assert(!wf_options_equal(wf_options_find(table, "path"), &s, &t));
  wf_options_free(table, &s);
  wf_options_free(table, &t);
}
END_TEST

static wf_status everything(void) {
  sample s, t;
  WF_TRY(wf_options_defaults(table, &s));
  wf_status code = wf_options_set(table, &s, "name", "other");
  if (code == WF_OK) code = wf_options_set(table, &s, "path", "here");
  if (code == WF_OK) code = wf_options_copy(table, &t, &s);
  if (code == WF_OK) wf_options_free(table, &t);
  wf_options_free(table, &s);
  return code;
}

START_TEST(any_allocation_may_fail) {
  const int64_t live = wf_mem_live(), before = wf_mem_alloc_count();
  ck_assert_int_eq(everything(), WF_OK);
  const int64_t allocations = wf_mem_alloc_count() - before;
  ck_assert_int_ge(allocations, 5);
  for (int64_t n = 1; n <= allocations; n++) {
    wf_mem_fail_at(n);
    ck_assert_int_eq(everything(), WF_ENOMEM);
    wf_mem_fail_at(0);
    ck_assert_int_eq(wf_mem_live(), live);
  }
}
END_TEST

START_TEST(a_wrong_default_is_reported) {
  static const wf_option wrong[] = {WF_OPT_STR(sample, name, "x", "a name"),
                                    WF_OPT_I64(sample, heads, "0", 1, 2, "heads"), WF_OPT_END};
  const int64_t live = wf_mem_live();
  sample s;
  ck_assert_int_eq(wf_options_defaults(wrong, &s), WF_EINVAL);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "the default of heads"));
  ck_assert_int_eq(wf_mem_live(), live);
}
END_TEST

static Suite *option_suite(void) {
  Suite *s = suite_create("option");
  TCase *t = tcase_create("option");
  tcase_add_test(t, defaults_fill_every_field);
  tcase_add_test(t, values_are_read);
  tcase_add_test(t, wrong_values_are_refused);
  tcase_add_test(t, unknown_keys_propose_the_nearest);
  tcase_add_test(t, a_refused_value_leaves_the_field);
  tcase_add_test(t, numbers_print_back_exactly);
  tcase_add_test(t, strings_print_as_yaml);
  tcase_add_test(t, copies_are_deep_and_equal);
  tcase_add_test(t, any_allocation_may_fail);
  tcase_add_test(t, a_wrong_default_is_reported);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(option_suite)
