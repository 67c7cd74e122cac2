/* Reading a config: defaults, every kind of wrong input at its place, overrides, printing back, failing
 * memory. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"
#include "experiments/config.h"
#include "tests/check_main.h"
#include "tests/experiments/config_types.h"

static const char tiny[] = "data: {store: tiny.h5}\n"
                           "model:\n"
                           "  d_model: 128\n"
                           "  blocks:\n"
                           "    - {repeat: 3, mixer: {type: gla, heads: 4}, mlp: {type: swiglu}}\n"
                           "    - {mixer: {type: attention, heads: 4, kv_heads: 2}, mlp: gelu}\n"
                           "train: {steps: 300, optimizer: {type: adamw, lr: 1.0e-3}, clip: 1.0}\n";

static wf_config load(const char *text, const char *set) {
  wf_config c;
  ck_assert_msg(wf_config_parse(&c, "tiny.yaml", text, strlen(text), &set, set ? 1 : 0, test_types) == WF_OK,
                "%s", wf_error_message());
  return c;
}

static void expect_error(const char *text, const char *set, const char *message, const char *hint) {
  const int64_t live = wf_mem_live();
  wf_config c;
  const wf_status s = wf_config_parse(&c, "tiny.yaml", text, strlen(text), &set, set ? 1 : 0, test_types);
  ck_assert_msg(s != WF_OK, "expected: %s", message);
  ck_assert_msg(strstr(wf_error_message(), message), "message: %s", wf_error_message());
  ck_assert_msg(strstr(wf_error_hint(), hint), "hint: %s", wf_error_hint());
  ck_assert_int_eq(wf_mem_live(), live);
}

START_TEST(what_is_written_is_read) {
  wf_config c = load(tiny, NULL);
  ck_assert_str_eq(c.run.name, "tiny");
  ck_assert_str_eq(c.run.dir, "runs/tiny");
  ck_assert_str_eq(c.data.store, "tiny.h5");
  ck_assert_int_eq(c.data.seq_len, 256);
  ck_assert(c.data.pack);
  ck_assert(c.model.vocab == WF_AUTO_I64);
  ck_assert_int_eq(c.train.steps, 300);
  ck_assert_uint_eq(c.model.n_blocks, 2);
  const wf_config_block *b = c.model.blocks;
  ck_assert_int_eq(b[0].repeat, 3);
  ck_assert_int_eq(b[0].norm, -1);
  ck_assert_str_eq(b[0].mixer.type, "gla");
  ck_assert_int_eq(((test_gla *)b[0].mixer.options)->heads, 4);
  ck_assert_str_eq(b[0].mixer.where, "tiny.yaml:5:26");
  ck_assert_str_eq(b[1].mlp.type, "gelu");
  ck_assert_int_eq(((test_attention *)b[1].mixer.options)->kv_heads, 2);
  ck_assert_str_eq(c.train.optimizer.type, "adamw");
  ck_assert(((test_adamw *)c.train.optimizer.options)->lr == 1e-3);
  ck_assert_str_eq(c.train.schedule.type, "cosine");
  const wf_config_block **layers;
  size_t n;
  ck_assert_int_eq(wf_config_layers(&c, &layers, &n), WF_OK);
  ck_assert_uint_eq(n, 4);
  ck_assert_ptr_eq(layers[2], &b[0]);
  ck_assert_ptr_eq(layers[3], &b[1]);
  wf_free(layers);
  wf_config_free(&c);
}
END_TEST

static const char hybrid[] =
    "run: {name: \"x y\", seed: 7}\n"
    "data: {store: a.h5, pack: false, seq_len: 64}\n"
    "model:\n"
    "  d_model: 32\n"
    "  norm: layernorm\n"
    "  blocks:\n"
    "    - repeat: 4\n"
    "      blocks:\n"
    "        - {repeat: 3, norm: rmsnorm, mixer: {type: gla, heads: 2}, mlp: none}\n"
    "        - {mixer: {type: attention, softcap: 30}, mlp: {type: swiglu, width: 100}}\n"
    "    - mixer: identity\n"
    "    - &x {repeat: 2, share: x, mixer: [{type: gla, heads: 3}, attention, identity], mlp: gelu}\n"
    "    - {mixer: none, mlp: gelu}\n"
    "    - *x\n"
    "train: {steps: 1, rules: '*.a\"b\\# lr=2 decay', init: w.safetensors,\n"
    "        schedule: {type: constant, warmup: 3, note: null}}\n"
    "eval: {batches: 3}\n"
    "parallel:\n";

START_TEST(groups_repeat_in_turn) {
  wf_config c = load(hybrid, NULL);
  const wf_config_block **layers;
  size_t n;
  ck_assert_int_eq(wf_config_layers(&c, &layers, &n), WF_OK);
  ck_assert_uint_eq(n, 22);
  for (size_t i = 0; i < 16; i++) ck_assert_str_eq(layers[i]->mixer.type, i % 4 == 3 ? "attention" : "gla");
  ck_assert_str_eq(layers[16]->mixer.type, "identity");
  ck_assert_ptr_null(layers[16]->mlp.type);
  ck_assert_ptr_null(layers[16]->share);
  for (size_t i = 17; i < 22; i++) {
    if (i == 19) continue;
    const wf_config_block *b = layers[i];
    ck_assert_str_eq(b->share, "x");
    ck_assert_uint_eq(b->n_beside, 2);
    ck_assert_int_eq(((test_gla *)b->mixer.options)->heads, 3);
    ck_assert_str_eq(b->beside[0].type, "attention");
    ck_assert_int_eq(((test_attention *)b->beside[0].options)->heads, 4);
    ck_assert_str_eq(b->beside[1].type, "identity");
  }
  ck_assert_ptr_null(layers[19]->mixer.type);
  ck_assert_str_eq(layers[19]->mlp.type, "gelu");
  wf_free(layers);
  wf_config_free(&c);
}
END_TEST

START_TEST(printing_reads_back_the_same) {
  const char *const texts[] = {tiny, hybrid};
  for (size_t i = 0; i < 2; i++) {
    wf_config c = load(texts[i], NULL);
    char *first, *second;
    ck_assert_int_eq(wf_config_print(&c, &first), WF_OK);
    wf_config d = load(first, NULL);
    ck_assert_int_eq(wf_config_print(&d, &second), WF_OK);
    ck_assert_str_eq(first, second);
    ck_assert_int_eq(wf_config_resume(&c, &d), WF_OK);
    ck_assert_ptr_nonnull(strstr(first, "batch_tokens: 4096"));
    wf_free(first);
    wf_free(second);
    wf_config_free(&c);
    wf_config_free(&d);
  }
}
END_TEST

START_TEST(overrides_are_read_like_the_file) {
  wf_config c = load(tiny, "model.blocks.0.mixer.heads=8");
  ck_assert_int_eq(((test_gla *)c.model.blocks[0].mixer.options)->heads, 8);
  wf_config_free(&c);
  c = load(tiny, "run.name=other");
  ck_assert_str_eq(c.run.dir, "runs/other");
  wf_config_free(&c);
  expect_error(tiny, "model.blocks.0.mixer.haeds=8",
               "--set model.blocks.0.mixer.haeds=8: unknown key \"haeds\" in mixer gla",
               "did you mean heads?");
  expect_error(tiny, "train.steps=many", "--set train.steps=many: train: steps: expected an integer",
               "optimiser steps");
}
END_TEST

#define MODEL "model: {d_model: 8, blocks: [{mixer: {type: gla, heads: 1}}]}\n"

START_TEST(wrong_input_is_refused_at_its_place) {
  expect_error("", NULL, "tiny.yaml: the config is empty", "experiments/configs");
  expect_error("just words\n", NULL, "tiny.yaml:1:1: a config must be a mapping, not a value", "");
  expect_error("- a\n", NULL, "a config must be a mapping, not a list", "");
  expect_error("modle: {}\n", NULL, "tiny.yaml:1:1: unknown key \"modle\" in the config",
               "did you mean model?");
  expect_error("data: {store: a, seqlen: 3}\n" MODEL, NULL, "tiny.yaml:1:18: unknown key \"seqlen\" in data",
               "did you mean seq_len?");
  expect_error("data: {store: a, zzz: 3}\n", NULL, "unknown key \"zzz\"", "weft config docs");
  expect_error("data: [a]\n", NULL, "tiny.yaml:1:7: data must be a mapping, not a list", "");
  expect_error("data: {}\n", NULL, "tiny.yaml:1:7: data.store is missing", "token store");
  expect_error("data: {store: }\n", NULL, "tiny.yaml:1:15: data.store has no value", "");
  expect_error("data: {store: a, seq_len: [1]}\n", NULL, "data.seq_len must be a single value, not a list",
               "tokens");
  expect_error("data: {store: a, seq_len: long}\n", NULL,
               "tiny.yaml:1:27: data: seq_len: expected an integer, got \"long\"", "tokens of a sequence");
  expect_error("data: {store: a, seq_len: \"64\"}\n", NULL, "data.seq_len: \"64\" in quotes is text",
               "quotes");
  expect_error("data: {store: a, seq_len: 0}\n", NULL, "data: seq_len: 0 is out of range", "");
  expect_error("data: {store: a, pack: yes}\n", NULL, "data: pack: expected true or false", "");
  expect_error("run: {device: gpu}\n", NULL, "run: device: \"gpu\" is not one of cpu, cuda", "");
  expect_error("run: {name: a/b}\ndata: {store: a}\n" MODEL "train: {steps: 1}\n", NULL,
               "tiny.yaml:1:13: run.name \"a/b\" cannot be the name of a folder", "run.dir");
  expect_error("data: {store: a}\nmodel: {d_model: 4}\n", NULL, "tiny.yaml:2:8: model.blocks is missing",
               "repeat");
  expect_error("data: {store: a}\nmodel: {d_model: 4, blocks: 3}\n", NULL,
               "blocks must be a list, not a value", "");
  expect_error("data: {store: a}\nmodel: {d_model: 4, blocks: []}\n", NULL, "tiny.yaml:2:29: blocks is empty",
               "");
  expect_error("data: {store: a}\n" MODEL, NULL, "train.steps is missing", "optimiser steps");
}
END_TEST

START_TEST(long_configs_are_refused) {
  char text[16000] = "data: {store: a}\ntrain: {steps: 1}\nmodel: {d_model: 4, blocks: [&x {mixer: identity}";
  for (int i = 0; i < 127; i++) strcat(text, ", *x");
  strcat(text, "]}\n");
  wf_config c = load(text, NULL);
  char *printed;
  ck_assert_int_eq(wf_config_print(&c, &printed), WF_OK);
  wf_config d = load(printed, NULL); /* the longest that loads is still small enough when written out */
  wf_free(printed);
  wf_config_free(&c);
  wf_config_free(&d);
  expect_error(text, "model.blocks.128={mixer: identity}", "tiny.yaml:3:29: more than 128 blocks",
               "use repeat");
  char name[6000] = "run.name=";
  memset(name + 9, 'a', 5000);
  expect_error(tiny, name, "run.name is longer than 4096 bytes", "");
}
END_TEST

static void expect_block_error(const char *block, const char *message, const char *hint) {
  char text[1000];
  snprintf(text, sizeof text, "data: {store: a}\nmodel: {d_model: 4, blocks: [%s]}\n", block);
  expect_error(text, NULL, message, hint);
}

START_TEST(wrong_blocks_are_refused_at_their_place) {
  expect_block_error("3", "tiny.yaml:2:30: a block must be a mapping, not a value", "");
  expect_block_error("{mlp: gelu}", "tiny.yaml:2:30: a block needs a mixer", "mixer: {type: attention");
  expect_block_error("{mixr: gla}", "unknown key \"mixr\" in a block", "did you mean mixer?");
  expect_block_error("{mixer: {heads: 4}}", "mixer.type is missing", "weft layers");
  expect_block_error("{mixer: []}", "tiny.yaml:2:38: the list of mixers is empty", "");
  expect_block_error("{mixer: [identity, none]}", "tiny.yaml:2:49: none stands beside other mixers", "");
  expect_block_error("{mixer: [identity, {type: gla}]}", "tiny.yaml:2:49: mixer gla.heads is missing", "");
  expect_block_error("{mixer: [identity, [identity]]}", "mixer must be a value, not a list", "");
  expect_block_error("{mixer: {type: [gla]}}", "type must be a value, not a list", "");
  expect_block_error("{mixer: atention}", "tiny.yaml:2:38: unknown mixer \"atention\"",
                     "did you mean attention?");
  expect_block_error("{mixer: quicksort}", "unknown mixer \"quicksort\"",
                     "there are: attention, gla, identity");
  expect_block_error("{mixer: none}", "tiny.yaml:2:30: a block without mixer and MLP does nothing", "");
  expect_block_error("{mixer: none, mlp: none}", "a block without mixer and MLP does nothing", "");
  expect_block_error("{mixer: gla}", "tiny.yaml:2:38: mixer gla.heads is missing", "");
  expect_block_error("{mixer: {type: gla, heads: 0}}", "mixer gla: heads: 0 is out of range", "");
  expect_block_error("{mixer: identity, mlp: swishglu}", "unknown mlp \"swishglu\"", "swiglu");
  expect_block_error("{repeat: 0, mixer: identity}", "repeat: 0 is out of range", "");
  expect_block_error("{mixer: identity, blocks: [{mixer: identity}]}",
                     "a group of blocks has only repeat and blocks", "");
  expect_block_error("{share: x, blocks: [{mixer: identity}]}",
                     "tiny.yaml:2:38: a group of blocks has only repeat and blocks", "in the blocks below");
  expect_block_error("{repeat: 4096, mixer: identity}, {mixer: identity}", "train.steps is missing", "");
  expect_error("data: {store: a}\nmodel: {d_model: 4, blocks: [{repeat: 4096, blocks: [{repeat: 4096, mixer: "
               "identity}]}]}\ntrain: {steps: 1}\n",
               NULL, "tiny.yaml:2:54: more than 4096 layers", "");
}
END_TEST

START_TEST(blocks_that_share_are_alike) {
  static const char *const others[] = {"{share: x, mixer: {type: gla, heads: 5}}",
                                       "{share: x, mixer: identity}",
                                       "{share: x, mixer: {type: gla, heads: 4}, mlp: gelu}",
                                       "{share: x, norm: layernorm, mixer: {type: gla, heads: 4}}",
                                       "{share: x, mixer: [{type: gla, heads: 4}, identity]}",
                                       "{blocks: [{share: x, mixer: none, mlp: gelu}]}"};
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    char text[400];
    snprintf(text, sizeof text,
             "data: {store: a}\ntrain: {steps: 1}\nmodel:\n  d_model: 4\n  blocks:\n"
             "  - {share: x, mixer: {type: gla, heads: 4}}\n  - {share: y, mixer: identity}\n  - %s\n",
             others[i]);
    expect_error(text, NULL, "this block differs from the one it shares \"x\" with, at tiny.yaml:6:5",
                 "an anchor");
    ck_assert_msg(strncmp(wf_error_message(), "tiny.yaml:8:", 12) == 0, "%s", wf_error_message());
  }
}
END_TEST

START_TEST(impossible_combinations_are_refused) {
  expect_error(tiny, "train.batch_tokens=1000",
               "--set train.batch_tokens=1000: train.batch_tokens 1000 is not a multiple of data.seq_len 256",
               "the nearest is 1024");
  expect_error(tiny, "train.batch_tokens=100", "not a multiple", "the nearest is 256");
  expect_error(tiny, "data.seq_len=1000", "tiny.yaml:7:8: train.batch_tokens 4096 is not a multiple", "4000");
  expect_error(tiny, "train.accumulation=3", "train.accumulation 3 does not divide the 16 sequences", "");
  expect_error(tiny, "train.rules='@norm nonsense'", "rule for @norm: \"nonsense\" is no setting",
               "no_decay");
  expect_error("data: {store: a, pack: false}\n" MODEL "train: {steps: 1}\n", "train.carry_state=true",
               "--set train.carry_state=true: train.carry_state needs packed", "data.pack: true");
  expect_error(tiny, "model={d_model: 4, max_positions: 8, blocks: [{mixer: identity}]}",
               "model.max_positions 8 is less than data.seq_len 256", "");
}
END_TEST

START_TEST(files_are_read_and_missing_ones_named) {
  char path[] = "/tmp/weft-config-XXXXXX", file[100];
  ck_assert_ptr_nonnull(mkdtemp(path));
  snprintf(file, sizeof file, "%s/small.v2.yaml", path);
  FILE *f = fopen(file, "w");
  ck_assert_ptr_nonnull(f);
  fputs(tiny, f);
  fclose(f);
  wf_config c;
  ck_assert_int_eq(wf_config_load(&c, file, NULL, 0, test_types), WF_OK);
  ck_assert_str_eq(c.run.name, "small.v2");
  wf_config_free(&c);
  unlink(file);
  ck_assert_int_eq(wf_config_load(&c, file, NULL, 0, test_types), WF_ENOTFOUND);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "small.v2.yaml"));
  ck_assert_int_ne(wf_config_load(&c, path, NULL, 0, test_types), WF_OK);
  rmdir(path);
}
END_TEST

START_TEST(documentation_lists_every_key) {
  char *text;
  ck_assert_int_eq(wf_config_docs(test_types, &text), WF_OK);
  for (const wf_config_section *s = wf_config_sections; s->name; s++)
    for (const wf_option *o = s->table; o->name; o++) {
      char row[80];
      snprintf(row, sizeof row, "| `%s`", o->name);
      ck_assert_msg(strstr(text, row), "%s.%s", s->name, o->name);
      ck_assert(o->help && *o->help);
    }
  ck_assert_ptr_nonnull(strstr(text, "### gla"));
  wf_free(text);
}
END_TEST

static wf_status everything(void) {
  static const char *const sets[] = {"train.optimizer.lr=0.5"};
  wf_config c;
  WF_TRY(wf_config_parse(&c, "tiny.yaml", hybrid, sizeof hybrid - 1, sets, 1, test_types));
  const wf_config_block **layers = NULL;
  size_t n;
  char *text = NULL;
  wf_status s = wf_config_layers(&c, &layers, &n);
  if (s == WF_OK) s = wf_config_print(&c, &text);
  wf_free(layers);
  wf_free(text);
  wf_config_free(&c);
  return s;
}

START_TEST(any_allocation_may_fail) {
  const int64_t live = wf_mem_live(), before = wf_mem_alloc_count();
  ck_assert_int_eq(everything(), WF_OK);
  const int64_t allocations = wf_mem_alloc_count() - before;
  ck_assert_int_ge(allocations, 100);
  for (int64_t n = 1; n <= allocations; n++) {
    wf_mem_fail_at(n);
    ck_assert_int_eq(everything(), WF_ENOMEM);
    wf_mem_fail_at(0);
    ck_assert_int_eq(wf_mem_live(), live);
  }
}
END_TEST

static Suite *config_suite(void) {
  Suite *s = suite_create("config");
  TCase *t = tcase_create("config");
  tcase_add_test(t, what_is_written_is_read);
  tcase_add_test(t, groups_repeat_in_turn);
  tcase_add_test(t, printing_reads_back_the_same);
  tcase_add_test(t, overrides_are_read_like_the_file);
  tcase_add_test(t, wrong_input_is_refused_at_its_place);
  tcase_add_test(t, long_configs_are_refused);
  tcase_add_test(t, wrong_blocks_are_refused_at_their_place);
  tcase_add_test(t, blocks_that_share_are_alike);
  tcase_add_test(t, impossible_combinations_are_refused);
  tcase_add_test(t, files_are_read_and_missing_ones_named);
  tcase_add_test(t, documentation_lists_every_key);
  tcase_add_test(t, any_allocation_may_fail);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(config_suite)
