/* Task generators: each label against a plain solver that reads only the inputs. */
#include <math.h>
#include <string.h>
#include "core/memory.h"
#include "data/loader.h"
#include "data/tasks.h"
#include "tests/check_main.h"

enum { MOST = 512 };

static wf_task_options options(const char *task, int64_t length, int64_t vocab, int64_t n) {
  wf_task_options o;
  ck_assert_int_eq(wf_options_defaults(wf_task_option_table, &o), WF_OK);
  ck_assert_int_eq(wf_options_set(wf_task_option_table, &o, "task", task), WF_OK);
  o.length = length;
  o.vocab = vocab;
  o.n = n;
  return o;
}

/* What the labels must be, from the inputs alone. */
static void solve_mqar(const wf_task_options *o, const int32_t *in, int32_t *want) {
  for (int64_t i = 2 * o->n; i < o->length; i += 2)
    for (int64_t k = 0; k < o->n; k++)
      if (in[i] == in[2 * k]) want[i] = in[2 * k + 1];
}

static void solve_modular(const wf_task_options *o, const int32_t *in, int32_t *want) {
  int64_t sum = 0;
  for (int64_t i = 0; i < o->length; i++) want[i] = (int32_t)((sum += in[i]) % o->vocab);
}

static void solve_copy(const wf_task_options *o, const int32_t *in, int32_t *want) {
  int64_t marker = 0, n = 0;
  while (in[marker] != o->vocab - 1) marker++;
  for (int64_t i = 0; i < marker; i++)
    if (in[i]) want[marker + n++] = in[i];
  ck_assert_int_eq(n, o->n);
  for (int64_t i = 1; i < n; i++) ck_assert_int_eq(in[marker + i], want[marker + i - 1]);
}

static void solve_induction(const wf_task_options *o, const int32_t *in, int32_t *want) {
  int64_t at = 0;
  while (in[at] != o->vocab - 1) at++;
  ck_assert_int_lt(at, o->length - 2);
  want[o->length - 1] = in[at + 1];
}

static void solve_needle(const wf_task_options *o, const int32_t *in, int32_t *want) {
  int64_t at = 0;
  while (in[at] != o->vocab - 1) at++;
  ck_assert_int_eq(in[o->length - 2], o->vocab - 1);
  ck_assert_int_eq(in[o->length - 1], in[at + 1]);
  want[o->length - 1] = in[at + 2];
}

static void check_task(wf_task_options o, void (*solve)(const wf_task_options *, const int32_t *, int32_t *),
                       int64_t asked) {
  wf_sequences *q;
  wf_loader *l;
  ck_assert_msg(wf_sequences_task(&o, &q) == WF_OK, "%s", wf_error_message());
  ck_assert_int_eq(wf_loader_open(q, &(wf_loader_options){.batch = 3, .ahead = 1}, &l), WF_OK);
  for (int i = 0; i < 50; i++) {
    const wf_batch *b;
    ck_assert_int_eq(wf_loader_next(l, &b), WF_OK);
    ck_assert_int_eq(b->n_tokens, 3 * o.length);
    ck_assert_int_eq(b->n_rows, 3);
    ck_assert_int_eq(b->n_labels, 3 * asked);
    for (int64_t s = 0; s < 3; s++) {
      int32_t want[MOST];
      const int32_t *in = b->inputs + s * o.length;
      memset(want, 255, sizeof want);
      for (int64_t t = 0; t < o.length; t++) ck_assert(in[t] >= 0 && in[t] < o.vocab);
      solve(&o, in, want);
      ck_assert_int_eq(memcmp(want, b->labels + s * o.length, (size_t)o.length * sizeof *want), 0);
      ck_assert_int_eq(b->rows[s].len, o.length);
      ck_assert_int_eq(b->rows[s].seq, 3 * i + s);
    }
  }
  wf_loader_close(l);
  ck_assert_int_eq(wf_mem_live(), 0);
}

START_TEST(answers) {
  check_task(options("mqar", 64, 8192, 4), solve_mqar, 4);
  check_task(options("mqar", 33, 50, 8), solve_mqar, 8);
  check_task(options("mqar", 4, 4, 1), solve_mqar, 1);
  check_task(options("modular", 40, 2, 1), solve_modular, 40);
  check_task(options("modular", 1, 7, 1), solve_modular, 1);
  check_task(options("copy", 14, 9, 7), solve_copy, 7);
  check_task(options("copy", 2, 3, 1), solve_copy, 1);
  check_task(options("selective", 60, 9, 7), solve_copy, 7);
  check_task(options("selective", 14, 9, 7), solve_copy, 7);
  check_task(options("induction", 100, 20, 1), solve_induction, 1);
  check_task(options("induction", 3, 2, 1), solve_induction, 1);
  check_task(options("needle", 200, 64, 1), solve_needle, 1);
  check_task(options("needle", 5, 3, 1), solve_needle, 1);
}
END_TEST

static wf_loader *open_task(const wf_task_options *o, wf_loader_options lo) {
  wf_sequences *q;
  wf_loader *l;
  ck_assert_int_eq(wf_sequences_task(o, &q), WF_OK);
  ck_assert_int_eq(wf_loader_open(q, &lo, &l), WF_OK);
  return l;
}

/* Keys and values in their ranges and never twice; slots by their weights. */
START_TEST(mqar_is_as_published) {
  wf_task_options o = options("mqar", 128, 64, 8);
  wf_loader *l = open_task(&o, (wf_loader_options){.batch = 1});
  enum { SLOTS = (128 - 16) / 2, EXAMPLES = 4000 };
  int used[SLOTS] = {0};
  for (int e = 0; e < EXAMPLES; e++) {
    const wf_batch *b;
    bool seen[64] = {false};
    ck_assert_int_eq(wf_loader_next(l, &b), WF_OK);
    for (int i = 0; i < 16; i++) {
      int32_t id = b->inputs[i];
      ck_assert(i % 2 ? id >= 32 && id < 64 : id >= 1 && id < 32);
      ck_assert(!seen[id]);
      seen[id] = true;
    }
    for (int s = 0; s < SLOTS; s++) {
      used[s] += b->labels[16 + 2 * s] >= 0;
      ck_assert_int_eq(b->inputs[16 + 2 * s + 1], 0);
      if (b->labels[16 + 2 * s] < 0) ck_assert_int_eq(b->inputs[16 + 2 * s], 0);
    }
  }
  wf_loader_close(l);
  for (int s = 0; s + 8 < SLOTS; s += 8) ck_assert_int_gt(used[s], used[s + 8]);
  /* One pair: the chance of a slot is its weight exactly. */
  o = options("mqar", 12, 64, 1);
  l = open_task(&o, (wf_loader_options){.batch = 1});
  double weight = 0, count[5] = {0};
  for (int s = 0; s < 5; s++) weight += pow(s + 1, -0.99);
  for (int e = 0; e < 20000; e++) {
    const wf_batch *b;
    ck_assert_int_eq(wf_loader_next(l, &b), WF_OK);
    for (int s = 0; s < 5; s++) count[s] += b->labels[2 + 2 * s] >= 0;
  }
  for (int s = 0; s < 5; s++) ck_assert(fabs(count[s] / 20000 - pow(s + 1, -0.99) / weight) < 0.015);
  wf_loader_close(l);
}
END_TEST

/* A set of examples comes once an epoch; seeds differ; noise fills. */
START_TEST(examples_and_seeds) {
  wf_task_options o = options("modular", 24, 2, 1);
  o.examples = 10;
  wf_loader *l = open_task(&o, (wf_loader_options){.batch = 10});
  const wf_batch *b;
  int64_t sums[3];
  int32_t first[3][24];
  for (int epoch = 0; epoch < 3; epoch++) {
    ck_assert_int_eq(wf_loader_next(l, &b), WF_OK);
    ck_assert_int_eq(b->epoch, epoch);
    sums[epoch] = 0;
    for (int64_t s = 0; s < 10; s++) { /* a sum over the sequences that their order does not change */
      int64_t code = 0;
      for (int64_t t = 0; t < 24; t++) code = 3 * code + b->inputs[24 * s + t] + 1;
      sums[epoch] += code % 1000003;
    }
    memcpy(first[epoch], b->inputs, sizeof first[0]);
  }
  ck_assert(sums[0] == sums[1] && sums[1] == sums[2]);
  ck_assert(memcmp(first[0], first[1], sizeof first[0]) || memcmp(first[1], first[2], sizeof first[0]));
  wf_loader_close(l);
  o.seed = 2;
  l = open_task(&o, (wf_loader_options){.batch = 1});
  ck_assert_int_eq(wf_loader_next(l, &b), WF_OK);
  for (int e = 0; e < 3; e++) ck_assert(memcmp(first[e], b->inputs, sizeof first[0]));
  wf_loader_close(l);
  o = options("mqar", 64, 8192, 4);
  o.noise = true;
  l = open_task(&o, (wf_loader_options){.batch = 1});
  ck_assert_int_eq(wf_loader_next(l, &b), WF_OK);
  int zeros = 0;
  for (int t = 0; t < 64; t++) zeros += b->inputs[t] == 0;
  ck_assert_int_lt(zeros, 3);
  wf_loader_close(l);
}
END_TEST

START_TEST(impossible) {
  wf_sequences *q;
  wf_task_options bad[] = {options("mqar", 15, 100, 4),   options("mqar", 64, 8, 4),
                           options("copy", 15, 9, 7),     options("selective", 13, 9, 7),
                           options("induction", 2, 9, 1), options("needle", 4, 9, 1),
                           options("copy", 2, 2, 1)};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    ck_assert_int_eq(wf_sequences_task(&bad[i], &q), WF_EINVAL);
  for (int n = 1; n <= 2; n++) {
    wf_task_options o = options("mqar", 64, 100, 4);
    wf_mem_fail_at(n);
    ck_assert_int_eq(wf_sequences_task(&o, &q), WF_ENOMEM);
    wf_mem_fail_at(0);
  }
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

static Suite *tasks_suite(void) {
  Suite *s = suite_create("data/tasks");
  TCase *c = tcase_create("tasks");
  suite_add_tcase(s, c);
  tcase_add_test(c, answers);
  tcase_add_test(c, mqar_is_as_published);
  tcase_add_test(c, examples_and_seeds);
  tcase_add_test(c, impossible);
  return s;
}

WF_CHECK_MAIN(tasks_suite)
