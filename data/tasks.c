/* Task generators. Every draw is a function of the seed, the example and the number of the draw within it;
 * choices without replacement are the first members of a keyed permutation. */
#include "data/tasks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "core/memory.h"

const char *const wf_task_names[] = {"mqar", "modular", "copy", "selective", "induction", "needle", NULL};
enum { MQAR, MODULAR, COPY, SELECTIVE, INDUCTION, NEEDLE };

const wf_option wf_task_option_table[] = {
    WF_OPT_ENUM(wf_task_options, task, "mqar", wf_task_names, "what the sequences ask"),
    WF_OPT_I64(wf_task_options, length, "64", 2, 1 << 24, "tokens of a sequence"),
    WF_OPT_I64(wf_task_options, vocab, "8192", 2, 1 << 24, "ids"),
    WF_OPT_I64(wf_task_options, n, "4", 1, 1 << 20, "pairs of mqar; tokens to copy"),
    WF_OPT_BOOL(wf_task_options, noise, "false", "mqar: fill with random tokens instead of 0"),
    WF_OPT_F64(wf_task_options, power, "0.01", 0, 1, "mqar: query slot s has weight (s+1)^(power-1)"),
    WF_OPT_I64(wf_task_options, examples, "0", 0, 1 << 30, "different sequences; 0: never the same twice"),
    WF_OPT_I64(wf_task_options, seed, "1", 0, INT32_MAX, "decides the sequences"),
    WF_OPT_END};

typedef struct task {
  wf_sequences base;
  wf_task_options o;
  wf_rng_key draw, keys, values, order;
  struct slot {
    double at; /* when its exponential clock rings */
    int64_t slot;
  } * slots; /* mqar: [(length - 2 n) / 2] */
} task;

/* Draws of one example. */
typedef struct dice {
  wf_rng_key key;
  uint64_t example;
  uint32_t n;
} dice;

static double uniform(dice *d) { /* in (0, 1) */
  uint32_t w[4];
  wf_rng_draw(d->key, (uint32_t)d->example, (uint32_t)(d->example >> 32), d->n++, 0, w);
  return (((double)w[0] * 0x1p32 + (double)w[1]) + 0.5) * 0x1p-64;
}

static int64_t between(dice *d, int64_t low, int64_t end) { /* low .. end-1 */
  int64_t x = low + (int64_t)(uniform(d) * (double)(end - low));
  return x < end ? x : end - 1;
}

static int by_time(const void *a, const void *b) {
  const struct slot *x = a, *y = b;
  if (x->at != y->at) return x->at < y->at ? -1 : 1;
  return x->slot < y->slot ? -1 : x->slot > y->slot;
}

static void mqar(task *t, dice *d, int64_t example, int32_t *in, int32_t *labels) {
  const wf_task_options *o = &t->o;
  int64_t half = o->vocab / 2, n_slots = (o->length - 2 * o->n) / 2;
  if (o->noise)
    for (int64_t i = 2 * o->n; i < o->length; i++) in[i] = (int32_t)between(d, 0, o->vocab);
  /* Drawing without replacement by weight: the slots whose clocks of rate = weight ring first. */
  for (int64_t s = 0; s < n_slots; s++)
    t->slots[s] = (struct slot){-log(uniform(d)) / pow((double)s + 1, o->power - 1), s};
  qsort(t->slots, (size_t)n_slots, sizeof *t->slots, by_time);
  for (int64_t i = 0; i < o->n; i++) {
    int32_t key = (int32_t)(1 + wf_permute(t->keys, example, i, half - 1));
    int32_t value = (int32_t)(half + wf_permute(t->values, example, i, o->vocab - half));
    int64_t query = 2 * o->n + 2 * t->slots[i].slot;
    in[2 * i] = in[query] = key;
    in[2 * i + 1] = labels[query] = value;
  }
}

static void modular(task *t, dice *d, int32_t *in, int32_t *labels) {
  int64_t sum = 0;
  for (int64_t i = 0; i < t->o.length; i++) {
    in[i] = (int32_t)between(d, 0, t->o.vocab);
    labels[i] = (int32_t)(sum = (sum + in[i]) % t->o.vocab);
  }
}

/* The tokens, in the first length - n places (scattered among blanks or not); the marker; all tokens but the
 * last. */
static void copy(task *t, dice *d, int32_t *in, int32_t *labels) {
  const wf_task_options *o = &t->o;
  int64_t marker = o->length - o->n, n = 0;
  int32_t *answer = labels + marker;
  for (int64_t i = 0; i < marker && n < o->n; i++) {
    /* Each place is taken with the chance that leaves every choice of places equally likely. */
    if (o->task == SELECTIVE && between(d, 0, marker - i) >= o->n - n) continue;
    in[i] = answer[n++] = (int32_t)between(d, 1, o->vocab - 1);
  }
  in[marker] = (int32_t)(o->vocab - 1);
  for (int64_t i = 1; i < o->n; i++) in[marker + i] = answer[i - 1];
}

static void induction(task *t, dice *d, int32_t *in, int32_t *labels) {
  const wf_task_options *o = &t->o;
  int32_t special = (int32_t)(o->vocab - 1);
  for (int64_t i = 0; i < o->length; i++) in[i] = (int32_t)between(d, 0, special);
  int64_t at = between(d, 0, o->length - 2);
  in[at] = in[o->length - 1] = special;
  labels[o->length - 1] = in[at + 1];
}

static void needle(task *t, dice *d, int32_t *in, int32_t *labels) {
  const wf_task_options *o = &t->o;
  int32_t marker = (int32_t)(o->vocab - 1);
  for (int64_t i = 0; i < o->length; i++) in[i] = (int32_t)between(d, 0, marker);
  int64_t at = between(d, 0, o->length - 4);
  in[at] = in[o->length - 2] = marker;
  in[o->length - 1] = in[at + 1];
  labels[o->length - 1] = in[at + 2];
}

static wf_status fill(wf_sequences *base, int64_t number, wf_fill *f) {
  task *t = (task *)base;
  const wf_task_options *o = &t->o;
  int64_t example = number;
  if (o->examples) example = wf_permute(t->order, number / o->examples, number % o->examples, o->examples);
  dice d = {t->draw, (uint64_t)example, 0};
  int32_t *in = f->inputs + f->n_tokens, *labels = f->labels + f->n_tokens;
  memset(in, 0, (size_t)o->length * sizeof *in);
  for (int64_t i = 0; i < o->length; i++) labels[i] = -1;
  if (o->task == MQAR) mqar(t, &d, example, in, labels);
  if (o->task == MODULAR) modular(t, &d, in, labels);
  if (o->task == COPY || o->task == SELECTIVE) copy(t, &d, in, labels);
  if (o->task == INDUCTION) induction(t, &d, in, labels);
  if (o->task == NEEDLE) needle(t, &d, in, labels);
  f->n_tokens += o->length;
  return wf_fill_row(f, (wf_row){.len = o->length, .seq = number});
}

static void task_free(wf_sequences *base) {
  wf_free(((task *)base)->slots);
  wf_free(base);
}

static wf_status check(const wf_task_options *o) {
  const char *name = wf_task_names[o->task];
  int64_t length = 1, vocab = 2;
  if (o->task == MQAR) length = 4 * o->n, vocab = 2 * (o->n + 1);
  if (o->task == COPY || o->task == SELECTIVE) length = 2 * o->n, vocab = 3;
  if (o->task == INDUCTION) length = 3;
  if (o->task == NEEDLE) length = 5;
  if (o->length < length)
    return WF_FAIL(WF_EINVAL, "the task %s with n %lld needs sequences of at least %lld tokens, not %lld",
                   name, (long long)o->n, (long long)length, (long long)o->length);
  if (o->vocab < vocab)
    return WF_FAIL(WF_EINVAL, "the task %s with n %lld needs a vocabulary of at least %lld, not %lld", name,
                   (long long)o->n, (long long)vocab, (long long)o->vocab);
  if (o->task == COPY && o->length != 2 * o->n)
    return WF_FAIL(WF_EINVAL, "copying %lld tokens takes a length of %lld, not %lld", (long long)o->n,
                   (long long)(2 * o->n), (long long)o->length);
  return WF_OK;
}

wf_status wf_sequences_task(const wf_task_options *o, wf_sequences **out) {
  WF_TRY(check(o));
  task *t;
  uint64_t seed = (uint64_t)o->seed;
  const char *name = wf_task_names[o->task];
  WF_CALLOC(t, "task", 1);
  *t = (task){.base = {.per_epoch = o->examples, .max_tokens = o->length, .fill = fill, .free = task_free},
              .o = *o,
              .draw = wf_rng_key_make(seed, "task", name),
              .keys = wf_rng_key_make(seed, "task", "keys"),
              .values = wf_rng_key_make(seed, "task", "values"),
              .order = wf_rng_key_make(seed, "task", "order")};
  if (o->task == MQAR && !(t->slots = wf_calloc("task", (size_t)(o->length / 2), sizeof *t->slots))) {
    task_free(&t->base);
    return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  }
  *out = &t->base;
  return WF_OK;
}
