/* Generation: what comes out is what the whole forward says, however it is fed, and every time the same. */
#include <math.h>

#include "core/memory.h"
#include "experiments/generate.h"
#include "tests/check_main.h"
#include "tests/experiments/tiny_model.h"

static const struct {
  const char *first, *second;
} models[] = {{tiny_attention, tiny_attention},
              {tiny_window, tiny_window},
              {tiny_gla, tiny_gla},
              {tiny_gla, tiny_window},
              {tiny_attention, tiny_gla}};
enum { N_MODELS = sizeof models / sizeof *models, VOCAB = 40 };

typedef struct seen {
  char text[4000];
  size_t n;
  int pieces, fail_at;
  int64_t live[200]; /* allocations at each piece */
  volatile sig_atomic_t *stop;
} seen;

static wf_status collect(void *arg, const char *text, size_t n) {
  seen *s = arg;
  ck_assert(n > 0 && s->n + n < sizeof s->text);
  memcpy(s->text + s->n, text, n);
  s->text[s->n += n] = '\0';
  if (s->pieces < 200) s->live[s->pieces] = wf_mem_live();
  s->pieces++;
  if (s->stop && s->pieces == 3) *s->stop = 1;
  return s->pieces == s->fail_at ? WF_FAIL(WF_EIO, "full") : WF_OK;
}

static wf_generated generate(tiny *t, const char *prompt, const wf_generate_options *o, seen *s) {
  wf_generated g;
  *s = (seen){.stop = s->stop, .fail_at = s->fail_at};
  tiny_ok(wf_generate(t->model, t->tokenizer, prompt, strlen(prompt), o, collect, s, &g));
  return g;
}

static const wf_generate_options greedy = {.tokens = 40, .sampling = {.top_p = 1}};

START_TEST(greedy_is_the_argmax_of_the_whole_forward) {
  tiny t;
  seen s = {0};
  int32_t ids[100];
  static double logits[100 * VOCAB];
  tiny_open(&t, models[_i].first, models[_i].second);
  const char *prompt = _i % 2 ? "the cat sat" : "a";
  wf_generated g = generate(&t, prompt, &greedy, &s);
  int64_t n = tiny_ids(&t, prompt, ids, 100), vocab = wf_tokenizer_vocab(t.tokenizer);
  ck_assert_int_eq(g.prompt, n);
  ck_assert_int_eq(g.tokens, 40);
  ck_assert_int_eq(g.end, WF_GENERATED_ALL);
  int64_t all = n + tiny_ids(&t, s.text, ids + n, 100 - n);
  ck_assert_int_eq(all, n + 40);
  tiny_forward(&t, ids, all, logits);
  for (int64_t i = n; i < all; i++) {
    const double *y = logits + (i - 1) * VOCAB;
    int64_t best = 0;
    for (int64_t v = 1; v < vocab; v++)
      if (y[v] > y[best]) best = v;
    ck_assert_int_eq(ids[i], best);
  }
  tiny_close(&t);
}
END_TEST

/* The same ids in one go, token by token, and in uneven parts. */
START_TEST(prefill_in_one_go_is_token_by_token) {
  enum { N = 33 };
  tiny t;
  int32_t ids[N];
  double once[VOCAB], steps[VOCAB], parts[VOCAB];
  tiny_open(&t, models[_i].first, models[_i].second);
  for (int i = 0; i < N; i++) ids[i] = (i * 7 + i * i) % 30;
  wf_decoding d;
  tiny_ok(wf_decoding_open(t.model, N, &d));
  tiny_ok(wf_decoding_feed(&d, ids, N, once));
  wf_decoding_close(&d);
  tiny_ok(wf_decoding_open(t.model, N, &d));
  for (int i = 0; i < N; i++) tiny_ok(wf_decoding_feed(&d, ids + i, 1, steps));
  wf_decoding_close(&d);
  tiny_ok(wf_decoding_open(t.model, N, &d));
  tiny_ok(wf_decoding_feed(&d, ids, 2, parts));
  tiny_ok(wf_decoding_feed(&d, ids + 2, 20, parts));
  tiny_ok(wf_decoding_feed(&d, ids + 22, N - 22, parts));
  wf_decoding_close(&d);
  double size = 0, steps_off = 0, parts_off = 0;
  for (int v = 0; v < VOCAB; v++) {
    size += once[v] * once[v];
    steps_off += (steps[v] - once[v]) * (steps[v] - once[v]);
    parts_off += (parts[v] - once[v]) * (parts[v] - once[v]);
  }
  ck_assert_double_gt(size, 0);
  ck_assert_double_lt(sqrt(steps_off / size), 1e-10);
  ck_assert_double_lt(sqrt(parts_off / size), 1e-10);
  tiny_close(&t);
}
END_TEST

START_TEST(the_seed_decides) {
  tiny t;
  seen a = {0}, b = {0}, c = {0}, shorter = {0};
  tiny_open(&t, models[_i].first, models[_i].second);
  wf_generate_options o = {.tokens = 60, .sampling = {0.9, 20, 0.95}, .seed = 5};
  generate(&t, "hello", &o, &a);
  generate(&t, "hello", &o, &b);
  ck_assert_str_eq(a.text, b.text);
  o.seed = 6;
  generate(&t, "hello", &o, &c);
  ck_assert_str_ne(a.text, c.text);
  o.seed = 5;
  o.tokens = 20;
  generate(&t, "hello", &o, &shorter);
  ck_assert_int_eq(strncmp(a.text, shorter.text, shorter.n), 0);
  tiny_close(&t);
}
END_TEST

START_TEST(a_token_leaves_nothing_behind) {
  tiny t;
  seen s = {0};
  tiny_open(&t, models[_i].first, models[_i].second);
  int64_t before = wf_mem_live();
  wf_generate_options o = greedy;
  o.tokens = 150;
  generate(&t, "some words", &o, &s);
  ck_assert_int_gt(s.pieces, 100);
  for (int i = 100; i < s.pieces; i++) ck_assert_int_le(s.live[i], s.live[99]);
  int64_t after = wf_mem_live();
  generate(&t, "some words", &o, &s);
  ck_assert_int_eq(wf_mem_live(), after); /* what the first one left is the allocator's cache */
  ck_assert_int_ge(after, before);
  tiny_close(&t);
}
END_TEST

START_TEST(an_empty_prompt_starts_after_a_line) {
  tiny t;
  seen empty = {0}, line = {0}, both = {0};
  int32_t id;
  tiny_open(&t, tiny_gla, tiny_attention);
  ck_assert_int_eq(tiny_ids(&t, "\n", &id, 1), 1);
  int32_t start;
  tiny_ok(wf_start_id(t.tokenizer, &start));
  ck_assert_int_eq(start, id);
  wf_generated g = generate(&t, "", &greedy, &empty);
  ck_assert_int_eq(g.prompt, 1);
  generate(&t, "\n", &greedy, &line);
  ck_assert_str_eq(empty.text, line.text);
  wf_generate_options o = greedy;
  o.begin = true;
  g = generate(&t, "ab", &o, &both);
  ck_assert_int_eq(g.prompt, 3);
  generate(&t, "\nab", &greedy, &line);
  ck_assert_str_eq(both.text, line.text);
  tiny_close(&t);
  wf_tokenizer *bytes;
  tiny_ok(wf_tokenizer_bytes(true, &bytes));
  tiny_ok(wf_start_id(bytes, &start));
  ck_assert_int_eq(start, 256);
  wf_tokenizer_free(bytes);
}
END_TEST

START_TEST(learned_positions_end_it) {
  tiny t;
  seen s = {0};
  wf_generated g;
  tiny_open(&t, tiny_learned, tiny_gla);
  g = generate(&t, "abc", &greedy, &s); /* 20 positions; the last token drawn needs none */
  ck_assert_int_eq(g.end, WF_GENERATED_FULL);
  ck_assert_int_eq(g.tokens, 18);
  g = generate(&t, "abcdefghijklmnopqrst", &greedy, &s);
  ck_assert_int_eq(g.tokens, 1);
  const char *longer = "abcdefghijklmnopqrstu";
  ck_assert_int_eq(wf_generate(t.model, t.tokenizer, longer, strlen(longer), &greedy, collect, &s, &g),
                   WF_EINVAL);
  ck_assert_str_eq(wf_error_message(), "the prompt has 21 tokens, but the model knows 20 positions");
  tiny_close(&t);
}
END_TEST

START_TEST(it_stops_when_told) {
  tiny t;
  volatile sig_atomic_t stop = 0;
  seen s = {.stop = &stop};
  tiny_open(&t, tiny_attention, tiny_attention);
  wf_generate_options o = greedy;
  o.stop = &stop;
  wf_generated g = generate(&t, "abc", &o, &s);
  ck_assert_int_eq(g.end, WF_GENERATED_STOPPED);
  ck_assert_int_eq(g.tokens, 3);
  s = (seen){.fail_at = 5};
  ck_assert_int_eq(wf_generate(t.model, t.tokenizer, "abc", 3, &greedy, collect, &s, &g), WF_EIO);
  ck_assert_int_eq(s.pieces, 5);
  tiny_close(&t);
}
END_TEST

/* A bytes tokenizer whose id 256 ends a text, under a model that is sure of it. */
START_TEST(the_end_id_ends_it) {
  tiny t;
  seen s = {0};
  wf_tokenizer *bytes;
  wf_generated g;
  tiny_open(&t, tiny_attention, tiny_gla);
  tiny_ok(wf_tokenizer_bytes(true, &bytes));
  wf_model_free(t.model);
  t.cfg.model.vocab = WF_AUTO_I64;
  tiny_ok(wf_assemble_model(t.c, &t.cfg, 257, &t.model));
  tiny_ok(wf_params_init(wf_model_params(t.model), 7));
  wf_generate_options o = {.tokens = 3000, .sampling = {.temperature = 3, .top_p = 1}, .seed = 1};
  tiny_ok(wf_generate(t.model, bytes, "x", 1, &o, collect, &s, &g));
  ck_assert_int_eq(g.end, WF_GENERATED_END);
  ck_assert_int_lt(g.tokens, 3000);
  int64_t at = g.tokens;
  s = (seen){0};
  o.ignore_end = true;
  o.tokens = at + 5;
  tiny_ok(wf_generate(t.model, bytes, "x", 1, &o, collect, &s, &g));
  ck_assert_int_eq(g.end, WF_GENERATED_ALL);
  ck_assert_int_eq(g.tokens, at + 5);
  wf_tokenizer_free(bytes);
  tiny_close(&t);
}
END_TEST

/* Every allocation fails once: an error, and nothing lost. */
START_TEST(failing_allocations_are_errors) {
  tiny t;
  seen s = {0};
  wf_generated g;
  tiny_open(&t, tiny_attention, tiny_gla);
  wf_generate_options o = {.tokens = 3, .sampling = {1, 5, 1}, .seed = 1};
  generate(&t, "ab", &o, &s);
  int64_t live = wf_mem_live();
  for (int64_t n = 1;; n++) {
    s = (seen){0};
    wf_mem_fail_at(n);
    wf_status st = wf_generate(t.model, t.tokenizer, "ab", 2, &o, collect, &s, &g);
    wf_mem_fail_at(0);
    ck_assert_int_eq(wf_mem_live(), live);
    if (st == WF_OK) {
      ck_assert_int_gt(n, 20);
      break;
    }
    ck_assert_int_eq(st, WF_ENOMEM);
  }
  tiny_close(&t);
}
END_TEST

static Suite *generate_suite(void) {
  Suite *s = suite_create("generate");
  TCase *t = tcase_create("generate");
  tcase_add_loop_test(t, greedy_is_the_argmax_of_the_whole_forward, 0, N_MODELS);
  tcase_add_loop_test(t, prefill_in_one_go_is_token_by_token, 0, N_MODELS);
  tcase_add_loop_test(t, the_seed_decides, 0, N_MODELS);
  tcase_add_loop_test(t, a_token_leaves_nothing_behind, 0, N_MODELS);
  tcase_add_test(t, an_empty_prompt_starts_after_a_line);
  tcase_add_test(t, learned_positions_end_it);
  tcase_add_test(t, it_stops_when_told);
  tcase_add_test(t, the_end_id_ends_it);
  tcase_add_test(t, failing_allocations_are_errors);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(generate_suite)
