/* The schedules: constant, linear, cosine, wsd, each with a warm-up. */
#include "optim/schedule.h"

#include <math.h>
#include <string.h>

/* One struct for all kinds; a kind's table lists the fields it has. */
typedef struct schedule_options {
  int64_t warmup;
  double min_ratio, decay_fraction;
  int shape;
} schedule_options;

enum { SHAPE_LINEAR, SHAPE_COSINE, SHAPE_SQRT };
static const char *const shapes[] = {"linear", "cosine", "sqrt", NULL};

#define WARMUP WF_OPT_I64(schedule_options, warmup, "0", 0, 1e15, "steps of linear rise to the full rate")
#define MIN_RATIO(value) \
  WF_OPT_F64(schedule_options, min_ratio, value, 0, 1, "last rate, as a part of the full one")

static const wf_option constant_table[] = {WARMUP, WF_OPT_END};
static const wf_option linear_table[] = {WARMUP, MIN_RATIO("0"), WF_OPT_END};
static const wf_option cosine_table[] = {WARMUP, MIN_RATIO("0.1"), WF_OPT_END};
static const wf_option wsd_table[] = {
    WARMUP, MIN_RATIO("0"),
    WF_OPT_F64(schedule_options, decay_fraction, "0.2", 0, 1,
               "part of the steps after the warm-up over which the rate falls, at the end"),
    WF_OPT_ENUM(schedule_options, shape, "linear", shapes, "how it falls; sqrt is 1 - sqrt of the part done"),
    WF_OPT_END};

/* From 1 down to min_ratio while x goes from 0 to 1. */
static double fall(const schedule_options *o, int shape, double x) {
  double left = 1 - x;
  if (shape == SHAPE_COSINE) left = 0.5 * (1 + cos(3.14159265358979323846 * x));
  if (shape == SHAPE_SQRT) left = 1 - sqrt(x);
  return o->min_ratio + (1 - o->min_ratio) * left;
}

static double constant(const void *options, double progress) {
  (void)options, (void)progress;
  return 1;
}
static double linear(const void *options, double progress) {
  return fall(options, SHAPE_LINEAR, progress);
}
static double cosine(const void *options, double progress) {
  return fall(options, SHAPE_COSINE, progress);
}
/* Warm-up, stable, decay (Hu et al. 2024; the shapes: Haegele et al. 2024). */
static double wsd(const void *options, double progress) {
  const schedule_options *o = options;
  double begin = 1 - o->decay_fraction;
  return progress <= begin ? 1 : fall(o, o->shape, (progress - begin) / o->decay_fraction);
}

static const wf_schedule_type types[] = {
    {"constant", "the full rate throughout", constant_table, sizeof(schedule_options), constant},
    {"linear", "falls linearly", linear_table, sizeof(schedule_options), linear},
    {"cosine", "falls along half a cosine", cosine_table, sizeof(schedule_options), cosine},
    {"wsd", "stays at the full rate, then falls at the end", wsd_table, sizeof(schedule_options), wsd},
};

int wf_schedule_count(void) {
  return (int)(sizeof types / sizeof *types);
}
const wf_schedule_type *wf_schedule_at(int i) {
  return i >= 0 && i < wf_schedule_count() ? &types[i] : NULL;
}
const wf_schedule_type *wf_schedule_find(const char *name) {
  for (int i = 0; i < wf_schedule_count(); i++)
    if (strcmp(types[i].name, name) == 0) return &types[i];
  return NULL;
}

double wf_schedule_factor(const wf_schedule_type *type, const void *options, int64_t steps, int64_t step) {
  int64_t warmup = ((const schedule_options *)options)->warmup;
  if (step < warmup) return (double)(step + 1) / (double)warmup;
  if (steps <= warmup) return 1; /* a run that ends before its warm-up */
  double progress = step >= steps ? 1 : (double)(step - warmup) / (double)(steps - warmup);
  return type->course(options, progress);
}
