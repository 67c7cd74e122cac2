/* Scores: against the whole forward, batched against alone, and what a bad file says. */
#include <jansson.h>
#include <math.h>

#include "core/file.h"
#include "core/memory.h"
#include "experiments/generate.h"
#include "experiments/score.h"
#include "tests/check_main.h"
#include "tests/experiments/tiny_model.h"
#include "tests/temp_dir.h"

enum { VOCAB = 40 };
static const char *const models[][2] = {
    {tiny_attention, tiny_attention}, {tiny_window, tiny_gla}, {tiny_gla, tiny_attention}};

static void make(tiny *t, const char *context, const char *continuation, wf_scored *s) {
  tiny_ok(wf_scored_make(t->tokenizer, context, strlen(context), continuation, strlen(continuation), s));
}

/* The sum over the last `n` tokens of a text, from the logits of its whole forward. */
static double plain_score(tiny *t, const char *text, int64_t n, bool *greedy) {
  static double logits[200 * VOCAB];
  int32_t ids[200];
  int64_t all = tiny_ids(t, text, ids, 200);
  tiny_forward(t, ids, all, logits);
  double sum = 0;
  *greedy = true;
  for (int64_t i = all - n; i < all; i++) {
    const double *y = logits + (i - 1) * VOCAB;
    double z = 0;
    for (int v = 0; v < VOCAB; v++) {
      z += exp(y[v]);
      if (y[v] > y[ids[i]]) *greedy = false;
    }
    sum += y[ids[i]] - log(z);
  }
  return sum;
}

static const struct {
  const char *context, *continuation;
} pairs[] = {{"the quick brown", " fox jumps"}, {"a", "b"},  {"", "no context at all"},
             {"over the lazy ", "dog."},        {"x", "yz"}, {"what is this, then", ".\n"}};
enum { N_PAIRS = sizeof pairs / sizeof *pairs };

START_TEST(scores_are_those_of_the_whole_forward) {
  tiny t;
  wf_scored together[N_PAIRS], alone;
  char text[200];
  tiny_open(&t, models[_i][0], models[_i][1]);
  for (int i = 0; i < N_PAIRS; i++) make(&t, pairs[i].context, pairs[i].continuation, &together[i]);
  tiny_ok(wf_score(t.model, together, N_PAIRS));
  for (int i = 0; i < N_PAIRS; i++) {
    make(&t, pairs[i].context, pairs[i].continuation, &alone);
    tiny_ok(wf_score(t.model, &alone, 1));
    int64_t n = (int64_t)strlen(pairs[i].continuation);
    bool greedy;
    snprintf(text, sizeof text, "%s%s", *pairs[i].context ? pairs[i].context : "\n", pairs[i].continuation);
    double expected = plain_score(&t, text, n, &greedy);
    ck_assert_int_eq(together[i].n - together[i].from, n);
    ck_assert_int_eq(together[i].bytes, n);
    ck_assert_double_eq_tol(together[i].logprob, expected, 1e-10 * fabs(expected));
    ck_assert_double_eq_tol(alone.logprob, expected, 1e-10 * fabs(expected));
    ck_assert(together[i].greedy == greedy && alone.greedy == greedy);
    wf_free(together[i].ids);
    wf_free(alone.ids);
  }
  tiny_close(&t);
}
END_TEST

static wf_status collect(void *arg, const char *text, size_t n) {
  strncat(arg, text, n);
  return WF_OK;
}

/* What the model writes greedily is greedy, and a change in it is not. */
START_TEST(greedy_means_what_generate_writes) {
  tiny t;
  char text[200] = "";
  wf_generated g;
  wf_scored s;
  wf_generate_options o = {.tokens = 12, .sampling = {.top_p = 1}};
  tiny_open(&t, tiny_gla, tiny_attention);
  /* drawn ids are the tokenizer's; the model may like one more that only it has */
  wf_model_free(t.model);
  t.cfg.model.vocab = WF_AUTO_I64;
  tiny_ok(wf_assemble_model(t.c, &t.cfg, wf_tokenizer_vocab(t.tokenizer), &t.model));
  tiny_ok(wf_params_init(wf_model_params(t.model), 7));
  tiny_ok(wf_generate(t.model, t.tokenizer, "hello ", 6, &o, collect, text, &g));
  make(&t, "hello ", text, &s);
  tiny_ok(wf_score(t.model, &s, 1));
  ck_assert(s.greedy);
  wf_free(s.ids);
  text[3] = text[3] == 'q' ? 'x' : 'q';
  make(&t, "hello ", text, &s);
  tiny_ok(wf_score(t.model, &s, 1));
  ck_assert(!s.greedy);
  wf_free(s.ids);
  tiny_close(&t);
}
END_TEST

/* ---- files ---- */

typedef struct lines {
  json_t *line[50];
  int n;
} lines;

static wf_status take(void *arg, const char *json) {
  lines *l = arg;
  json_error_t e;
  ck_assert_int_lt(l->n, 50);
  l->line[l->n] = json_loads(json, JSON_REJECT_DUPLICATES, &e);
  ck_assert_msg(l->line[l->n] != NULL, "%s: %s", json, e.text);
  l->n++;
  return WF_OK;
}

static void forget(lines *l) {
  for (int i = 0; i < l->n; i++) json_decref(l->line[i]);
  l->n = 0;
}

static wf_status score_text(tiny *t, const char *text, size_t n, int64_t batch, lines *out) {
  const char *path = temp_path("in.jsonl");
  *out = (lines){.n = 0};
  tiny_ok(wf_file_write(path, text, (int64_t)n));
  return wf_score_file(t->model, t->tokenizer, path, batch, take, out);
}

static double number(const json_t *o, const char *key) {
  ck_assert_msg(json_is_number(json_object_get(o, key)), "%s", key);
  return json_number_value(json_object_get(o, key));
}

static const char good[] = "{\"context\": \"the quick\", \"continuation\": \" brown\", \"id\": \"a/1\"}\n"
                           "\n"
                           "{\"continuation\": \"b\"}\r\n"
                           "{\"context\": \"one of\", \"continuations\": [\" these three\", \" them\", \" "
                           "all\"], \"id\": {\"n\": 3}}\n"
                           "{\"context\": \"\", \"continuations\": [\"last line without an end\"]}";

START_TEST(files_come_back_line_by_line) {
  tiny t;
  lines all, small;
  bool greedy;
  tiny_open(&t, tiny_gla, tiny_attention);
  tiny_ok(score_text(&t, good, strlen(good), 4096, &all));
  ck_assert_int_eq(all.n, 4);
  static const int numbers[] = {1, 3, 4, 5};
  for (int i = 0; i < 4; i++) ck_assert_int_eq((int)number(all.line[i], "line"), numbers[i]);
  ck_assert_str_eq(json_string_value(json_object_get(all.line[0], "id")), "a/1");
  ck_assert_ptr_null(json_object_get(all.line[1], "id"));
  ck_assert_int_eq((int)number(json_object_get(all.line[2], "id"), "n"), 3);
  double first = plain_score(&t, "the quick brown", 6, &greedy);
  ck_assert_double_eq_tol(number(all.line[0], "logprob"), first, 1e-7);
  ck_assert_double_eq_tol(number(all.line[0], "logprob_per_byte"), first / 6, 1e-7);
  ck_assert_int_eq((int)number(all.line[0], "tokens"), 6);
  const json_t *three = json_object_get(all.line[2], "continuations");
  ck_assert_int_eq((int)json_array_size(three), 3);
  size_t best = (size_t)number(all.line[2], "best"), dense = (size_t)number(all.line[2], "best_per_byte");
  for (size_t i = 0; i < 3; i++) {
    ck_assert_double_ge(number(json_array_get(three, best), "logprob"),
                        number(json_array_get(three, i), "logprob"));
    ck_assert_double_ge(number(json_array_get(three, dense), "logprob_per_byte"),
                        number(json_array_get(three, i), "logprob_per_byte"));
  }
  ck_assert_double_eq_tol(number(json_array_get(three, 1), "logprob"),
                          plain_score(&t, "one of them", 5, &greedy), 1e-7);
  tiny_ok(score_text(&t, good, strlen(good), 1, &small)); /* a line at a time */
  for (int i = 0; i < 4; i++) ck_assert(json_equal(all.line[i], small.line[i]));
  forget(&all);
  forget(&small);
  tiny_close(&t);
}
END_TEST

START_TEST(bad_lines_are_named) {
  static const struct {
    const char *text, *message;
  } cases[] = {{"{\"context\": \"a\"}", ":2: neither \"continuation\" and"},
               {"{\"continuation\": \"a\", \"continuations\": [\"a\"]}", ":2: both \"continuation\" and"},
               {"{\"context\": 3, \"continuation\": \"a\"}", ":2: \"context\" is a string"},
               {"{\"continuation\": 3}", ":2: a continuation is a string"},
               {"{\"continuation\": \"\"}", ":2: the continuation is empty"},
               {"{\"continuations\": []}", ":2: \"continuations\" is a list of at least one string"},
               {"{\"continuations\": \"a\"}", ":2: \"continuations\" is a list of at least one string"},
               {"{\"continuations\": [\"a\", null]}", ":2: a continuation is a string"},
               {"{\"continuation\": \"a\", \"continuation\": \"b\"}", ":2: not JSON"},
               {"[1]", ":2: not an object"},
               {"7", ":2: not an object"},
               {"{\"continuation\": \"a", ":2: not JSON"},
               {"{\"continuation\": \"\xff\"}", ":2: not JSON"},
               {"{} {}", ":2: not JSON"}};
  tiny t;
  lines out;
  char text[300];
  tiny_open(&t, tiny_attention, tiny_attention);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    snprintf(text, sizeof text, "{\"continuation\": \"fine\"}\n%s\n", cases[i].text);
    int64_t live = wf_mem_live();
    wf_status s = score_text(&t, text, strlen(text), 4096, &out);
    ck_assert_msg(s == WF_EFORMAT || s == WF_EINVAL, "%s", cases[i].text);
    ck_assert_msg(strstr(wf_error_message(), cases[i].message), "%s", wf_error_message());
    ck_assert_int_eq(wf_mem_live(), live);
    ck_assert_int_eq(out.n, 0);
  }
  ck_assert_int_eq(wf_score_file(t.model, t.tokenizer, temp_path("none"), 10, take, &out), WF_ENOTFOUND);
  tiny_ok(score_text(&t, "", 0, 10, &out));
  ck_assert_int_eq(out.n, 0);
  tiny_close(&t);
}
END_TEST

START_TEST(learned_positions_limit_a_line) {
  tiny t;
  lines out;
  tiny_open(&t, tiny_learned, tiny_attention);
  const char fits[] =
      "{\"context\": \"abcdefghijklmnopqrs\", \"continuation\": \"tu\"}\n"; /* 20 and one asked */
  tiny_ok(score_text(&t, fits, strlen(fits), 10, &out));
  forget(&out);
  const char longer[] = "{\"context\": \"abcdefghijklmnopqrst\", \"continuation\": \"uv\"}\n";
  ck_assert_int_eq(score_text(&t, longer, strlen(longer), 10, &out), WF_EINVAL);
  ck_assert_msg(strstr(wf_error_message(), "in.jsonl:1: 21 tokens, but the model knows 20 positions"), "%s",
                wf_error_message());
  tiny_close(&t);
}
END_TEST

START_TEST(failing_allocations_are_errors) {
  tiny t;
  lines out;
  tiny_open(&t, tiny_gla, tiny_attention);
  tiny_ok(score_text(&t, good, strlen(good), 20, &out));
  forget(&out);
  const char *path = temp_path("in.jsonl");
  int64_t live = wf_mem_live();
  for (int64_t n = 1;; n++) {
    wf_mem_fail_at(n);
    wf_status s = wf_score_file(t.model, t.tokenizer, path, 20, take, &out);
    wf_mem_fail_at(0);
    forget(&out);
    ck_assert_int_eq(wf_mem_live(), live);
    if (s == WF_OK) {
      ck_assert_int_gt(n, 20);
      break;
    }
    ck_assert_int_eq(s, WF_ENOMEM);
  }
  tiny_close(&t);
}
END_TEST

/* ---- ids ---- */

static wf_status bpe_text(void *given, const char **text, size_t *n) {
  static const char words[] = "the cat and the dog and the bird sang the song in the sand\n";
  *text = words;
  *n = *(int *)given >= 200 ? 0 : strlen(words);
  ++*(int *)given;
  return WF_OK;
}

/* With merges, ids that span context and continuation belong to the continuation. */
START_TEST(a_token_across_the_border_counts_whole) {
  wf_tokenizer *bpe;
  int given = 0;
  wf_status s = wf_tokenizer_train_sentencepiece("bpe", 300, bpe_text, &given, &bpe);
  if (s == WF_EUNSUPPORTED) return;
  tiny_ok(s);
  wf_scored apart, across;
  wf_ids whole = {0};
  tiny_ok(wf_tokenizer_encode(bpe, "the sand", 8, &whole));
  tiny_ok(wf_scored_make(bpe, "the", 3, " sand", 5, &apart));
  tiny_ok(wf_scored_make(bpe, "the sa", 6, "nd", 2, &across));
  ck_assert_int_eq(apart.n, (int64_t)whole.n);
  ck_assert_int_eq(across.n, (int64_t)whole.n);
  ck_assert_int_eq(across.from, apart.from); /* " sand" is one id */
  ck_assert_int_eq(apart.n - apart.from, 1);
  for (size_t i = 0; i < whole.n; i++) ck_assert_int_eq(across.ids[i], (int32_t)whole.data[i]);
  wf_ids_free(&whole);
  wf_free(apart.ids);
  wf_free(across.ids);
  wf_tokenizer_free(bpe);
}
END_TEST

static Suite *score_suite(void) {
  Suite *s = suite_create("score");
  TCase *t = tcase_create("score");
  tcase_add_checked_fixture(t, temp_dir_make, temp_dir_remove);
  tcase_add_loop_test(t, scores_are_those_of_the_whole_forward, 0, 3);
  tcase_add_test(t, greedy_means_what_generate_writes);
  tcase_add_test(t, files_come_back_line_by_line);
  tcase_add_test(t, bad_lines_are_named);
  tcase_add_test(t, learned_positions_limit_a_line);
  tcase_add_test(t, failing_allocations_are_errors);
  tcase_add_test(t, a_token_across_the_border_counts_whole);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(score_suite)
