/* The YAML tree: what is read, where it says it stood, and everything it refuses. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/yaml.h"
#include "tests/check_main.h"

static wf_yaml parse(const char *text) {
  wf_yaml tree;
  ck_assert_msg(wf_yaml_parse(&tree, "c.yaml", text, strlen(text)) == WF_OK, "%s", wf_error_message());
  return tree;
}

static void expect_error_n(const char *text, size_t n, const char *message) {
  const int64_t live = wf_mem_live();
  wf_yaml tree;
  ck_assert_msg(wf_yaml_parse(&tree, "c.yaml", text, n) == WF_EFORMAT, "expected: %s", message);
  ck_assert_msg(strstr(wf_error_message(), message), "message: %s", wf_error_message());
  ck_assert_int_eq(wf_mem_live(), live);
}

static void expect_error(const char *text, const char *message) {
  expect_error_n(text, strlen(text), message);
}

static const char *text_at(const wf_yaml *tree, const char *a, const char *b) {
  const wf_yaml_node *node = wf_yaml_get(tree->root, a);
  ck_assert_ptr_nonnull(node);
  if (b) node = wf_yaml_get(node, b);
  ck_assert_ptr_nonnull(node);
  ck_assert_int_eq(node->kind, WF_YAML_SCALAR);
  return node->text;
}

START_TEST(nodes_know_their_places) {
  wf_yaml tree =
      parse("run:\n  name: tiny   # a comment\nlist: [a, {b: 'c d'}]\nempty:\nbytes: \"\\u00fc\"\n");
  ck_assert_str_eq(text_at(&tree, "run", "name"), "tiny");
  ck_assert_str_eq(text_at(&tree, "bytes", NULL), "\xc3\xbc");
  ck_assert(wf_yaml_is_null(wf_yaml_get(tree.root, "empty")));
  const wf_yaml_node *list = wf_yaml_get(tree.root, "list");
  ck_assert_uint_eq(list->n, 2);
  const wf_yaml_node *b = wf_yaml_get(list->items[1], "b");
  ck_assert(b->quoted);
  char place[60];
  wf_yaml_place(b, place, sizeof place);
  ck_assert_str_eq(place, "c.yaml:3:15");
  ck_assert_ptr_null(wf_yaml_get(tree.root, "nothing"));
  wf_yaml_free(&tree);
}
END_TEST

START_TEST(empty_documents_have_no_root) {
  static const char *const empties[] = {"", "\n\n", "# only a comment\n", "\xef\xbb\xbf"};
  for (size_t i = 0; i < sizeof empties / sizeof *empties; i++) {
    wf_yaml tree = parse(empties[i]);
    ck_assert_ptr_null(tree.root);
    wf_yaml_free(&tree);
  }
}
END_TEST

START_TEST(aliases_are_copies) {
  wf_yaml tree = parse("a: &x {k: 1}\nb: *x\nc: &x 2\nd: *x\n");
  ck_assert_str_eq(text_at(&tree, "b", "k"), "1");
  ck_assert_str_eq(text_at(&tree, "d", NULL), "2");
  ck_assert_int_eq(wf_yaml_set(&tree, "b.k=3"), WF_OK);
  ck_assert_str_eq(text_at(&tree, "a", "k"), "1");
  ck_assert_str_eq(text_at(&tree, "b", "k"), "3");
  wf_yaml_free(&tree);
}
END_TEST

START_TEST(malformed_text_is_refused) {
  expect_error("a: [1, 2\nb: 3\n", "c.yaml:2:");
  expect_error("a: 1\n\tb: 2\n", "c.yaml:2:");
  expect_error("a: \"open\n", "c.yaml:");
  expect_error("a: 1\nb: 2\n  a: 3\n", "not valid YAML");
  expect_error("a: 1\nb: 2\na: 3\n", "c.yaml:3:1: key a is given twice, first in line 1");
  expect_error("[a, b]: 1\n", "c.yaml:1:1: a key must be a word, not a list");
  expect_error("? {a: b}\n: 1\n", "a key must be a word, not a mapping");
  expect_error("base: &b {a: 1}\nx:\n  <<: *b\n", "c.yaml:3:3: merges (<<) are not supported");
  expect_error("a: !!int 3\n", "c.yaml:1:4: tags");
  expect_error("a: !x [3]\n", "tags (!x) are not supported");
  expect_error("a: 1\n---\nb: 2\n", "c.yaml:2:1: a second document begins here");
  expect_error("a: *none\n", "c.yaml:1:4: alias *none has no anchor before it");
  expect_error("a: &x [*x]\n", "c.yaml:1:8: alias *x stands inside its own anchor");
  expect_error("a: \"b\\0c\"\n", "c.yaml:1:4: a NUL character");
  expect_error("a: \x01\n", "not valid YAML");
}
END_TEST

START_TEST(other_encodings_are_refused) {
  expect_error("a: 1\nb: \xff\n", "c.yaml:2:4: byte 0xff is not UTF-8");
  expect_error("\xff\xfe"
               "a",
               "c.yaml:1:1: byte 0xff is not UTF-8");
  expect_error("a: \xc0\xaf", "c.yaml:1:4: byte 0xc0");
  expect_error("g\xc3\xbc: \xed\xa0\x80", "c.yaml:1:5: byte 0xed");
  expect_error("\xe0\x80\x80", "byte 0xe0");
  expect_error("\xf0\x80\x80\x80", "byte 0xf0");
  expect_error("\xf4\x90\x80\x80", "byte 0xf4");
  expect_error("\xf5\x80\x80\x80", "byte 0xf5");
  expect_error("a\xe2\x82", "c.yaml:1:2: byte 0xe2");
  expect_error_n("a: \0b", 5, "c.yaml:1:4: a NUL byte");
}
END_TEST

static char *repeated(const char *unit, size_t times, const char *tail) {
  const size_t n = strlen(unit);
  char *text = malloc(n * times + strlen(tail) + 1);
  ck_assert_ptr_nonnull(text);
  for (size_t i = 0; i < times; i++) memcpy(text + i * n, unit, n);
  memcpy(text + n * times, tail, strlen(tail) + 1);
  return text;
}

START_TEST(size_depth_and_count_are_limited) {
  char *text = repeated("# filler\n", WF_YAML_MAX_BYTES / 9 + 1, "a: 1\n");
  expect_error(text, "is too large for a config, at most 1048576");
  free(text);
  static const char *const nests[] = {"[", "{a: ", "- "};
  for (size_t i = 0; i < sizeof nests / sizeof *nests; i++) {
    text = repeated(nests[i], 10000, "");
    expect_error(text, "nested deeper than 64");
    free(text);
  }
  text = repeated("[", 63, "a");
  char *whole = repeated("]", 63, "");
  char *both = malloc(200);
  snprintf(both, 200, "%s%s", text, whole);
  wf_yaml tree = parse(both);
  wf_yaml_free(&tree);
  free(text);
  free(whole);
  snprintf(both, 200, "a: &x [1]\nb: ");
  for (int i = 0; i < 62; i++) strcat(both, "[");
  strcat(both, "*x");
  for (int i = 0; i < 62; i++) strcat(both, "]");
  expect_error(both, "nested deeper than 64");
  free(both);
  text = repeated("- a\n", WF_YAML_MAX_NODES, "");
  expect_error(text, "c.yaml:10000:3: more than 10000 nodes");
  free(text);
  text = repeated("- a\n", WF_YAML_MAX_NODES - 1, "");
  tree = parse(text);
  ck_assert_uint_eq(tree.root->n, WF_YAML_MAX_NODES - 1);
  wf_yaml_free(&tree);
  free(text);
}
END_TEST

START_TEST(aliases_cannot_multiply) {
  char text[2000] = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 10; i++) {
    char line[200];
    snprintf(line, sizeof line, "a%d: &a%d [*a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d]\n", i,
             i, i - 1, i - 1, i - 1, i - 1, i - 1, i - 1, i - 1, i - 1, i - 1, i - 1);
    strcat(text, line);
  }
  expect_error(text, "more than 10000 nodes, each alias counted");
  char *many = repeated("- *x\n", 20000, "");
  char *all = malloc(strlen(many) + 20);
  sprintf(all, "- &x y\n%s", many);
  expect_error(all, "more than 10000 nodes");
  free(many);
  free(all);
}
END_TEST

static void expect_set_error(const char *assignment, const char *message) {
  wf_yaml tree = parse("model: {blocks: [{heads: 4}], mixer: gla}\n");
  ck_assert_msg(wf_yaml_set(&tree, assignment) != WF_OK, "%s", assignment);
  ck_assert_msg(strstr(wf_error_message(), message), "message: %s", wf_error_message());
  wf_yaml_free(&tree);
}

START_TEST(overrides_change_the_tree) {
  wf_yaml tree = parse("model: {blocks: [{heads: 4}, {heads: 2}]}\n");
  ck_assert_int_eq(wf_yaml_set(&tree, "model.blocks.1.heads=8"), WF_OK);
  ck_assert_int_eq(wf_yaml_set(&tree, "model.blocks.2={heads: 16, mlp: [a]}"), WF_OK);
  ck_assert_int_eq(wf_yaml_set(&tree, "train.schedule.type=co=s"), WF_OK);
  ck_assert_int_eq(wf_yaml_set(&tree, "train.init="), WF_OK);
  const wf_yaml_node *blocks = wf_yaml_get(wf_yaml_get(tree.root, "model"), "blocks");
  ck_assert_uint_eq(blocks->n, 3);
  ck_assert_str_eq(wf_yaml_get(blocks->items[0], "heads")->text, "4");
  ck_assert_str_eq(wf_yaml_get(blocks->items[1], "heads")->text, "8");
  ck_assert_str_eq(wf_yaml_get(blocks->items[2], "heads")->text, "16");
  const wf_yaml_node *train = wf_yaml_get(tree.root, "train"),
                     *type = wf_yaml_get(wf_yaml_get(train, "schedule"), "type");
  ck_assert_str_eq(type->text, "co=s");
  ck_assert(wf_yaml_is_null(wf_yaml_get(train, "init")));
  char place[80];
  wf_yaml_place(type, place, sizeof place);
  ck_assert_str_eq(place, "--set train.schedule.type=co=s");
  wf_yaml_free(&tree);
  tree = parse("");
  ck_assert_int_eq(wf_yaml_set(&tree, "a.b=1"), WF_OK);
  ck_assert_str_eq(text_at(&tree, "a", "b"), "1");
  wf_yaml_free(&tree);
  expect_set_error("model.blocks", "--set model.blocks: expected a.b=value");
  expect_set_error("=3", "expected a.b=value");
  expect_set_error("model..x=3", "--set model..x=3: an empty name");
  expect_set_error("model.blocks.2.heads.x.y=[", "--set model.blocks.2.heads.x.y=[: not valid YAML");
  expect_set_error("model.blocks.3=4", "\"3\" is not an element of a list of 1");
  expect_set_error("model.blocks.x=4", "\"x\" is not an element of a list of 1");
  expect_set_error("model.mixer.heads=4", "heads is below \"gla\", which is a single value");
  expect_set_error("a=\xff", "not UTF-8");
  char *deep = repeated("a.", 100, "a=1");
  expect_set_error(deep, "nested deeper than 64");
  free(deep);
}
END_TEST

static wf_status everything(void) {
  static const char text[] = "a: &x {k: [1, 2, 3, 4, 5, 6, 7, 8, 9]}\nb: [*x, *x]\n";
  wf_yaml tree;
  WF_TRY(wf_yaml_parse(&tree, "c.yaml", text, sizeof text - 1));
  const wf_status s = wf_yaml_set(&tree, "b.0.k.1={z: y}");
  wf_yaml_free(&tree);
  return s;
}

START_TEST(any_allocation_may_fail) {
  const int64_t live = wf_mem_live(), before = wf_mem_alloc_count();
  ck_assert_int_eq(everything(), WF_OK);
  const int64_t allocations = wf_mem_alloc_count() - before;
  ck_assert_int_ge(allocations, 50);
  for (int64_t n = 1; n <= allocations; n++) {
    wf_mem_fail_at(n);
    ck_assert_int_eq(everything(), WF_ENOMEM);
    wf_mem_fail_at(0);
    ck_assert_int_eq(wf_mem_live(), live);
  }
}
END_TEST

static Suite *yaml_suite(void) {
  Suite *s = suite_create("yaml");
  TCase *t = tcase_create("yaml");
  tcase_add_test(t, nodes_know_their_places);
  tcase_add_test(t, empty_documents_have_no_root);
  tcase_add_test(t, aliases_are_copies);
  tcase_add_test(t, malformed_text_is_refused);
  tcase_add_test(t, other_encodings_are_refused);
  tcase_add_test(t, size_depth_and_count_are_limited);
  tcase_add_test(t, aliases_cannot_multiply);
  tcase_add_test(t, overrides_change_the_tree);
  tcase_add_test(t, any_allocation_may_fail);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(yaml_suite)
