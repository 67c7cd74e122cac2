/* What may differ when a run goes on, and what is refused naming both values. */
#include <check.h>
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/config.h"
#include "tests/check_main.h"
#include "tests/experiments/config_types.h"

static const char text[] = "data: {store: tiny.h5}\n"
                           "model:\n"
                           "  d_model: 128\n"
                           "  blocks:\n"
                           "    - {repeat: 3, mixer: {type: gla, heads: 4}, mlp: {type: swiglu}}\n"
                           "    - {blocks: [{mixer: {type: attention, heads: 4}, mlp: gelu}]}\n"
                           "train: {steps: 300, optimizer: {type: adamw}}\n";

static wf_config load(const char *set) {
  wf_config c;
  ck_assert_msg(wf_config_parse(&c, "tiny.yaml", text, sizeof text - 1, &set, set ? 1 : 0, test_types) ==
                    WF_OK,
                "%s", wf_error_message());
  return c;
}

static void expect(const char *set, const char *message) {
  const int64_t live = wf_mem_live();
  wf_config stored = load(NULL), now = load(set);
  const wf_status s = wf_config_resume(&stored, &now);
  ck_assert_msg((s == WF_OK) == !message, "%s", set);
  if (message) ck_assert_msg(strstr(wf_error_message(), message), "message: %s", wf_error_message());
  wf_config_free(&stored);
  wf_config_free(&now);
  ck_assert_int_eq(wf_mem_live(), live);
}

START_TEST(resumable_keys_may_differ) {
  expect(NULL, NULL);
  expect("train.steps=600", NULL);
  expect("train.optimizer.lr=0.5", NULL);
  expect("eval={every: 3, batches: 2, split: test}", NULL);
  expect("checkpoint={every: 3, keep: 9}", NULL);
  expect("log.every=1", NULL);
  expect("run.dir=elsewhere", NULL);
  expect("parallel={data: 4, zero: 0}", NULL);
}
END_TEST

START_TEST(every_mixer_of_a_list_is_compared) {
  wf_config stored = load("model.blocks.0.mixer=[identity, {type: gla, heads: 4}]");
  wf_config same = load("model.blocks.0.mixer=[identity, {type: gla, heads: 4}]");
  wf_config now = load("model.blocks.0.mixer=[identity, {type: gla, heads: 2}]");
  ck_assert_int_eq(wf_config_resume(&stored, &same), WF_OK);
  ck_assert_int_eq(wf_config_resume(&stored, &now), WF_EINVAL);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "model.blocks.0.mixer.1.heads was 4 when"));
  wf_config_free(&stored);
  wf_config_free(&same);
  wf_config_free(&now);
}
END_TEST

START_TEST(others_are_refused_naming_both) {
  expect("data.seq_len=128", "data.seq_len was 256 when the run began and is 128 now");
  expect("run.seed=2", "run.seed was 1 when the run began and is 2 now");
  expect("run.name=other", "run.name was tiny when the run began and is other now");
  expect("model.d_model=64", "model.d_model was 128");
  expect("train.optimizer.beta1=0.8", "train.optimizer.beta1 was 0.9 when the run began and is 0.8 now");
  expect("train.optimizer.type=sgd", "train.optimizer.type was adamw when the run began and is sgd now");
  expect("train.schedule.warmup=9", "train.schedule.warmup was 0");
  expect("train.init=w", "train.init was null when the run began and is w now");
  expect("model.blocks.0.repeat=2", "model.blocks.0.repeat was 3");
  expect("model.blocks.0.mixer.heads=2", "model.blocks.0.mixer.heads was 4 when the run began and is 2 now");
  expect("model.blocks.0.mlp=gelu", "model.blocks.0.mlp.type was swiglu when the run began and is gelu now");
  expect("model.blocks.0.mlp=none", "model.blocks.0.mlp.type was swiglu when the run began and is none now");
  expect("model.blocks.1.blocks.0.mixer.window=7", "model.blocks.1.blocks.0.mixer.window was auto when");
  expect("model.blocks.0.share=x", "model.blocks.0.share was null when the run began and is x now");
  expect("model.blocks.0.mixer=[identity, identity]",
         "model.blocks.0.mixer was one mixer when the run began and is another list now");
  expect("model.blocks.1={mixer: identity}",
         "model.blocks.1 was a group when the run began and is a block now");
  expect("model.blocks.2={mixer: identity}", "model.blocks was 2 long when the run began and is 3 long now");
}
END_TEST

START_TEST(auto_takes_what_it_became) {
  wf_config stored = load("model.blocks.1.blocks.0.mixer.window=512"), now = load(NULL);
  stored.model.vocab = 256;
  stored.model.norm_eps = 1e-6;
  stored.run.threads = 2;
  ck_assert_int_eq(wf_config_resume(&stored, &now), WF_OK);
  ck_assert_int_eq(now.model.vocab, 256);
  ck_assert(now.model.norm_eps == 1e-6);
  ck_assert(now.run.threads == WF_AUTO_I64); /* may differ, so it is chosen anew */
  ck_assert_int_eq(((test_attention *)now.model.blocks[1].blocks[0].mixer.options)->window, 512);
  wf_config_free(&stored);
  wf_config_free(&now);
}
END_TEST

/* What was measured goes with the number of ranks that share a sequence. */
START_TEST(the_link_stays_with_the_mesh) {
  static const struct {
    const char *set, *link;
  } cases[] = {
      {"parallel={sequence: 2}", "8GB/s,2us"},
      {"parallel={sequence: 2, data: 3}", "8GB/s,2us"},
      {"parallel={sequence: 4}", "auto"},
      {"parallel={sequence: 2, link: '1GB/s,9us'}", "1GB/s,9us"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    wf_config stored = load("parallel={sequence: 2, link: '8GB/s,2us'}"), now = load(cases[i].set);
    ck_assert_int_eq(wf_config_resume(&stored, &now), WF_OK);
    ck_assert_str_eq(now.parallel.link, cases[i].link);
    wf_config_free(&stored);
    wf_config_free(&now);
  }
}
END_TEST

static Suite *resume_suite(void) {
  Suite *s = suite_create("config_resume");
  TCase *t = tcase_create("config_resume");
  tcase_add_test(t, resumable_keys_may_differ);
  tcase_add_test(t, others_are_refused_naming_both);
  tcase_add_test(t, every_mixer_of_a_list_is_compared);
  tcase_add_test(t, auto_takes_what_it_became);
  tcase_add_test(t, the_link_stays_with_the_mesh);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(resume_suite)
