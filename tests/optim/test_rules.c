/* The default treatment of each kind of parameter, patterns, order, and refused texts. */
#include <check.h>
#include <string.h>

#include "optim/rules.h"
#include "tests/check_main.h"

static wf_opt_treatment treat(const char *rules, const char *name, const char *kind, int ndim) {
  wf_opt_treatment t = {0};
  ck_assert_int_eq(wf_opt_rules_apply(rules, name, kind, ndim, &t), WF_OK);
  return t;
}

static void expect(wf_opt_treatment t, bool decay, bool matrix, double lr) {
  ck_assert_int_eq(t.decay, decay);
  ck_assert_int_eq(t.matrix, matrix);
  ck_assert_double_eq(t.lr_scale, lr);
}

START_TEST(defaults) {
  expect(treat(NULL, "blocks.0.mixer.q.weight", NULL, 2), true, true, 1);
  expect(treat("", "blocks.0.norm.weight", "norm", 1), false, false, 1);
  expect(treat(NULL, "x.bias", "bias", 1), false, false, 1);
  expect(treat(NULL, "x.gate", "gate", 2), false, false, 1);
  expect(treat(NULL, "x.scale", NULL, 1), false, false, 1);
  expect(treat(NULL, "x.scalar", NULL, 0), false, false, 1);
  expect(treat(NULL, "embedding.weight", "embedding", 2), true, false, 1);
  expect(treat(NULL, "head.weight", "head", 2), true, false, 1);
  expect(treat(NULL, "conv.weight", NULL, 3), true, false, 1);
}
END_TEST

START_TEST(patterns) {
  static const struct {
    const char *pattern, *name;
    bool hit;
  } cases[] = {
      {"a", "a", true},           {"a", "ab", false},
      {"ab", "a", false},         {"*", "", true},
      {"*", "any.name", true},    {"a*", "a", true},
      {"a*c", "abcbc", true},     {"a*c", "abcb", false},
      {"*.bias", "x.bias", true}, {"*.bias", "bias", false},
      {"?.w", "1.w", true},       {"?.w", ".w", false},
      {"a*b*c", "a1b2b3c", true}, {"a**c", "ac", true},
      {"*q*", "sequence", true},  {"*z*", "sequence", false},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char rules[64];
    strcpy(rules, cases[i].pattern);
    strcat(rules, " lr=2");
    ck_assert_msg(treat(rules, cases[i].name, NULL, 2).lr_scale == (cases[i].hit ? 2 : 1), "%s on %s",
                  cases[i].pattern, cases[i].name);
  }
}
END_TEST

START_TEST(later_rules_win) {
  const char *rules =
      "*.weight lr=0.5 no_decay;  blocks.1.* lr=3;;@embedding no_decay matrix ; @vector decay;";
  expect(treat(rules, "blocks.0.q.weight", NULL, 2), false, true, 0.5);
  expect(treat(rules, "blocks.1.q.weight", NULL, 2), false, true, 3);
  expect(treat(rules, "embedding", "embedding", 2), false, true, 1);
  expect(treat(rules, "embedding", "embedding", 1), true, false, 1); /* never a matrix with one dimension */
  expect(treat("@norm lr=0", "n", "norm", 1), false, false, 0);
}
END_TEST

START_TEST(refused) {
  static const char *const texts[] = {"*.weight",      "* nodecay",    "* lr=",    "* lr=abc", "* lr=-1",
                                      "* decay lr=1x", "a decay; b ;", "* lr=inf", "* lr=nan", "* lr"};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    ck_assert_int_eq(wf_opt_rules_check(texts[i]), WF_EINVAL);
    ck_assert_ptr_nonnull(strstr(wf_error_hint(), "no_decay"));
  }
  char big[400];
  memset(big, 'x', sizeof big);
  big[sizeof big - 1] = '\0';
  ck_assert_int_eq(wf_opt_rules_check(big), WF_EINVAL);
  ck_assert_int_eq(wf_opt_rules_check("@norm decay; x lr=1e-2"), WF_OK);
  ck_assert_int_eq(wf_opt_rules_check(NULL), WF_OK);
}
END_TEST

static Suite *rules_suite(void) {
  Suite *s = suite_create("rules");
  TCase *t = tcase_create("rules");
  tcase_add_test(t, defaults);
  tcase_add_test(t, patterns);
  tcase_add_test(t, later_rules_win);
  tcase_add_test(t, refused);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(rules_suite)
