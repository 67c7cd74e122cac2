/* From configs to models: every example config is right, layers refuse at their place, rules reach the
 * parameters. */
#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/device.h"
#include "core/memory.h"
#include "experiments/assemble.h"
#include "optim/optimizer.h"
#include "tests/check_main.h"

static wf_config load(const char *text, const char *set) {
  wf_config c;
  ck_assert_msg(wf_config_parse(&c, "t.yaml", text, strlen(text), &set, set ? 1 : 0, wf_types) == WF_OK, "%s",
                wf_error_message());
  return c;
}

START_TEST(example_configs_are_right) {
  const char folder[] = WEFT_SOURCE_DIR "/experiments/configs";
  DIR *dir = opendir(folder);
  ck_assert_ptr_nonnull(dir);
  int n = 0;
  for (struct dirent *e; (e = readdir(dir));) {
    char path[600], *first, *second;
    if (!strstr(e->d_name, ".yaml")) continue;
    snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
    wf_config c;
    ck_assert_msg(wf_config_load(&c, path, NULL, 0, wf_types) == WF_OK, "%s", wf_error_message());
    ck_assert_msg(wf_config_check_layers(&c) == WF_OK, "%s", wf_error_message());
    ck_assert_int_eq(wf_config_print(&c, &first), WF_OK);
    wf_config d = load(first, NULL);
    ck_assert_int_eq(wf_config_print(&d, &second), WF_OK);
    ck_assert_str_eq(first, second);
    wf_free(first);
    wf_free(second);
    wf_config_free(&c);
    wf_config_free(&d);
    n++;
  }
  closedir(dir);
  ck_assert_int_ge(n, 6);
}
END_TEST

START_TEST(every_table_has_right_defaults) {
  for (int kind = 0; kind < WF_CONFIG_KINDS; kind++) {
    wf_config_type t;
    int n = 0;
    for (; wf_types((wf_config_kind)kind, n, &t); n++) {
      void *options = wf_calloc("test", 1, t.options_size + 1);
      ck_assert_msg(wf_options_defaults(t.options, options) == WF_OK, "%s: %s", t.name, wf_error_message());
      for (const wf_option *o = t.options; o->name; o++) {
        ck_assert_msg(o->help && *o->help, "%s.%s", t.name, o->name);
        ck_assert_msg(o->offset < t.options_size, "%s.%s", t.name, o->name);
      }
      wf_options_free(t.options, options);
      wf_free(options);
    }
    ck_assert_int_ge(n, 2);
  }
}
END_TEST

static const char tiny[] =
    "data: {store: a, seq_len: 16}\n"
    "model:\n"
    "  d_model: 16\n"
    "  tie_embeddings: false\n"
    "  blocks:\n"
    "    - {repeat: 2, mixer: {type: attention, heads: 2}, mlp: {type: swiglu, width: 24}}\n"
    "    - {mixer: {type: simple_gla, heads: 2}, mlp: none}\n"
    "    - &x {share: x, mixer: [{type: attention, heads: 2}, {type: simple_gla, heads: 4}], mlp: gelu}\n"
    "    - *x\n"
    "train: {steps: 1, batch_tokens: 32, rules: \"blocks.0.mixer.* lr=0.5; @norm decay\"}\n";

START_TEST(layers_refuse_at_their_place) {
  wf_config c = load(tiny, "model.d_model=15");
  ck_assert_int_eq(wf_config_check_layers(&c), WF_EINVAL);
  ck_assert_msg(strncmp(wf_error_message(), "t.yaml:6:26: ", 13) == 0, "%s", wf_error_message());
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "2 heads do not divide"));
  wf_config_free(&c);
  static const char beside[] =
      "model.blocks.2={mixer: [{type: attention, heads: 2}, {type: simple_gla, heads: 3}]}";
  c = load(tiny, beside);
  ck_assert_int_eq(wf_config_check_layers(&c), WF_EINVAL);
  ck_assert_msg(strstr(wf_error_message(), "3 heads do not divide"), "%s", wf_error_message());
  wf_config_free(&c);
  c = load(tiny, NULL);
  ck_assert_int_eq(wf_config_check_layers(&c), WF_OK);
  wf_config_free(&c);
}
END_TEST

static wf_status build_tiny(const char *set, int64_t vocab, void (*look)(wf_model *)) {
  wf_config c;
  WF_TRY(wf_config_parse(&c, "t.yaml", tiny, sizeof tiny - 1, &set, set ? 1 : 0, wf_types));
  wf_device *device = NULL;
  wf_ctx *ctx = NULL;
  wf_model *model = NULL;
  wf_status s = wf_device_open(WF_CPU, 0, &device);
  if (s == WF_OK) s = wf_ctx_create(device, &ctx);
  if (s == WF_OK) s = wf_assemble_model(ctx, &c, vocab, &model);
  if (s == WF_OK) look(model);
  wf_model_free(model);
  wf_ctx_free(ctx);
  wf_device_close(device);
  wf_config_free(&c);
  return s;
}

static const wf_param *find(wf_model *m, const char *name, const wf_param_kind **kind) {
  const wf_params *ps = wf_model_params(m);
  const wf_param *p = wf_params_find(ps, name);
  ck_assert_msg(p != NULL, "%s", name);
  *kind = &ps->group[p->group].kind;
  return p;
}

static void look_at_groups(wf_model *m) {
  const wf_param_kind *k;
  ck_assert_int_eq(wf_model_vocab(m), 300);
  find(m, "embedding.weight", &k);
  ck_assert(k->decay && !k->matrix && k->lr_scale == 1);
  find(m, "head.weight", &k);
  ck_assert(!k->matrix);
  find(m, "blocks.0.mixer.q.weight", &k);
  ck_assert(k->decay && k->matrix && k->lr_scale == 0.5);
  find(m, "blocks.1.mixer.q.weight", &k);
  ck_assert(k->decay && k->matrix && k->lr_scale == 1);
  const wf_params *ps = wf_model_params(m);
  int norms = 0;
  for (int i = 0; i < ps->n; i++) {
    const wf_param *p = ps->param[i];
    k = &ps->group[p->group].kind;
    if (strstr(p->name, "norm")) {
      norms++;
      ck_assert_msg(k->decay, "%s", p->name); /* as the rules say */
    } else if (p->flags & WF_PARAM_NO_DECAY) {
      ck_assert_msg(!k->decay && !k->matrix, "%s", p->name);
    }
  }
  /* two in blocks 0 and 1, one in 2 and its layer's own, two in 3 with its mixers' two and one's own, the
   * last */
  ck_assert_int_eq(norms, 12);
  find(m, "blocks.3.mixer.0.q.weight", &k);
  find(m, "blocks.3.mixer.1.g.weight", &k);
  find(m, "blocks.3.mixer.norm1.weight", &k);
  ck_assert_ptr_null(wf_params_find(ps, "blocks.4.norm1.weight"));
  ck_assert_ptr_null(wf_params_find(ps, "blocks.4.mixer.0.q.weight"));
  const wf_state_spec *state = wf_model_state_spec(m);
  int slots[2] = {0};
  for (int i = 0; i < state->n; i++)
    for (int b = 0; b < 2; b++) {
      char prefix[20];
      snprintf(prefix, sizeof prefix, "blocks.%d.", 3 + b);
      slots[b] += strncmp(state->slot[i].name, prefix, strlen(prefix)) == 0;
    }
  ck_assert_int_eq(slots[0], slots[1]);
  ck_assert_int_gt(slots[0], 2);
}

START_TEST(rules_choose_the_groups) {
  ck_assert_msg(build_tiny(NULL, 300, look_at_groups) == WF_OK, "%s", wf_error_message());
}
END_TEST

static void nothing(wf_model *m) {
  (void)m;
}

START_TEST(vocabularies_must_hold_the_ids) {
  ck_assert_int_eq(build_tiny("model.vocab=256", 256, nothing), WF_OK);
  ck_assert_int_eq(build_tiny("model.vocab=255", 256, nothing), WF_EINVAL);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "model.vocab is 255, but the store's ids go up to 255"));
  ck_assert_int_eq(build_tiny(NULL, 0, nothing), WF_EINVAL);
}
END_TEST

START_TEST(any_allocation_may_fail) {
  ck_assert_int_eq(build_tiny(NULL, 256, nothing), WF_OK); /* what stays for ever is made by now */
  const int64_t live = wf_mem_live(), before = wf_mem_alloc_count();
  ck_assert_int_eq(build_tiny(NULL, 256, nothing), WF_OK);
  const int64_t allocations = wf_mem_alloc_count() - before;
  ck_assert_int_ge(allocations, 100);
  int64_t recovered = 0; /* the device gives its cache back and asks again */
  for (int64_t n = 1; n <= allocations; n++) {
    wf_mem_fail_at(n);
    const wf_status s = build_tiny(NULL, 256, nothing);
    wf_mem_fail_at(0);
    ck_assert_msg(s == WF_ENOMEM || s == WF_OK, "allocation %d: %s", (int)n, wf_error_message());
    recovered += s == WF_OK;
    ck_assert_msg(wf_mem_live() == live, "allocation %d", (int)n);
  }
  ck_assert_int_lt(recovered, allocations / 10);
}
END_TEST

static Suite *assemble_suite(void) {
  Suite *s = suite_create("assemble");
  TCase *t = tcase_create("build");
  tcase_add_test(t, example_configs_are_right);
  tcase_add_test(t, every_table_has_right_defaults);
  tcase_add_test(t, layers_refuse_at_their_place);
  tcase_add_test(t, rules_choose_the_groups);
  tcase_add_test(t, vocabularies_must_hold_the_ids);
  tcase_add_test(t, any_allocation_may_fail);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(assemble_suite)
