/* Gated recurrences against their products alone, float32:
 *
 *     OMP_NUM_THREADS=2 build/tests/bench_recur [SECONDS_EACH [CASE]]
 *
 * A line a case: microseconds a step of all rows, forward and forward + backward; the same for the products
 * that steps need, by cblas_sgemm with nothing between them: [B, D] x [D, gates D] a head and step forwards,
 * [B, gates D] x [gates D, D] backwards, and one product of all steps for the weights. */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "autograd/tape.h"
#include "core/clock.h"
#include "core/ops.h"

typedef struct bench_case {
  wf_recur_cell cell;
  int64_t B, T, H, D;
} bench_case;

static const bench_case cases[] = {
    {WF_RECUR_LSTM, 1, 1024, 1, 128}, {WF_RECUR_LSTM, 16, 256, 1, 128},  {WF_RECUR_LSTM, 1, 512, 1, 512},
    {WF_RECUR_LSTM, 16, 256, 1, 512}, {WF_RECUR_LSTM, 64, 64, 1, 512},   {WF_RECUR_LSTM, 16, 64, 1, 1024},
    {WF_RECUR_GRU, 16, 256, 1, 128},  {WF_RECUR_GRU, 16, 256, 1, 512},   {WF_RECUR_SLSTM, 1, 1024, 4, 64},
    {WF_RECUR_SLSTM, 16, 256, 4, 64}, {WF_RECUR_SLSTM, 16, 256, 4, 128}, {WF_RECUR_SLSTM, 64, 64, 4, 192},
};
static const char *const names[] = {"lstm", "gru", "slstm"};

static wf_ctx *ctx;
static double seconds_each = 1;

static wf_tensor *numbers(int ndim, const int64_t *shape, double scale) {
  int64_t n = 1;
  for (int d = 0; d < ndim; d++) n *= shape[d];
  float *v = malloc((size_t)n * sizeof *v);
  wf_rng_key key = wf_rng_key_make(3, "bench", "numbers");
  for (int64_t i = 0; i < n; i++) v[i] = (float)(scale * wf_rng_normal(key, (uint64_t)i));
  wf_tensor *t = wf_from_host(ctx, "bench", WF_F32, ndim, shape, v);
  free(v);
  return t;
}

static void must(wf_status s) {
  if (s == WF_OK) return;
  fprintf(stderr, "%s\n", wf_error_message());
  exit(1);
}

typedef struct operands {
  const bench_case *b;
  wf_recur_in in;
  wf_rows *rows;
  wf_tape *tape;
  wf_leaf leaf[3];
  wf_tensor *dy;
  float *x, *r, *h, *a, *dr; /* of the products alone */
} operands;

static void forward(operands *o) {
  wf_scope s = wf_scope_open(ctx);
  wf_recur(ctx, &o->in, NULL, o->rows, NULL);
  must(wf_ctx_check(ctx));
  wf_scope_close(ctx, s);
}

static void both(operands *o) {
  wf_scope s = wf_scope_open(ctx);
  wf_tensor *in[] = {o->in.x[0], o->in.r, o->in.b};
  for (int i = 0; i < 3; i++) {
    wf_leaf_reset(&o->leaf[i]);
    must(wf_tape_watch(o->tape, in[i], &o->leaf[i]));
  }
  wf_tape_record(o->tape);
  wf_tensor *y = wf_recur(ctx, &o->in, NULL, o->rows, NULL);
  wf_tape_pause(o->tape);
  must(wf_ctx_check(ctx));
  must(wf_backward(o->tape, 1, &y, &o->dy));
  wf_scope_close(ctx, s);
}

static void products(operands *o, bool backward) {
  const bench_case *b = o->b;
  int B = (int)b->B, D = (int)b->D, GD = (int)(o->in.r->shape[1] * b->D), H = (int)b->H, T = (int)b->T;
  for (int t = 0; t < T; t++)
    for (int h = 0; h < H; h++)
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, B, GD, D, 1, o->h + h * D, H * D,
                  o->r + h * GD * D, D, 0, o->a + ((int64_t)t * B * H + h) * GD, H * GD);
  if (!backward) return;
  for (int t = 0; t < T; t++)
    for (int h = 0; h < H; h++)
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, B, D, GD, 1,
                  o->a + ((int64_t)t * B * H + h) * GD, H * GD, o->r + h * GD * D, D, 0, o->x + h * D, H * D);
  for (int h = 0; h < H; h++)
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, GD, D, B * T, 1, o->a + h * GD, H * GD, o->h + h * D,
                H * D, 0, o->dr + h * GD * D, D);
}
static void products_forward(operands *o) {
  products(o, false);
}
static void products_both(operands *o) {
  products(o, true);
}

static double microseconds(void (*fn)(operands *o), operands *o) { /* the fastest, a step */
  double best = INFINITY;
  for (double end = wf_now() + seconds_each; wf_now() < end || best == INFINITY;) {
    double t0 = wf_now();
    fn(o);
    best = fmin(best, wf_now() - t0);
  }
  return 1e6 * best / (double)o->b->T;
}

static void run(const bench_case *b) {
  wf_scope s = wf_scope_open(ctx);
  int64_t G = b->cell == WF_RECUR_GRU ? 3 : 4, n = b->B * b->T, W = b->H * b->D;
  operands o = {.b = b,
                .in = {.cell = b->cell,
                       .x = {numbers(WF_SHAPE(n, G, b->H, b->D), 1)},
                       .r = numbers(WF_SHAPE(b->H, G, b->D, b->D), 1 / sqrt((double)b->D)),
                       .b = numbers(WF_SHAPE(G, b->H, b->D), 0.1)},
                .dy = numbers(WF_SHAPE(n, b->H, b->D), 1)};
  wf_tensor *in[] = {o.in.x[0], o.in.r, o.in.b};
  for (int i = 0; i < 3; i++) o.leaf[i].grad = wf_empty_like(ctx, "bench", in[i]);
  must(wf_ctx_check(ctx));
  must(wf_rows_fresh(ctx, b->B, b->T, 0, &o.rows));
  must(wf_tape_create(ctx, &o.tape));
  o.r = wf_data(o.in.r);
  o.x = calloc((size_t)(b->B * W), sizeof(float));
  o.h = calloc((size_t)(n * W), sizeof(float));
  o.a = calloc((size_t)(n * G * W), sizeof(float));
  o.dr = calloc((size_t)(G * W * b->D), sizeof(float));
  double f = microseconds(forward, &o), a = microseconds(both, &o);
  double pf = microseconds(products_forward, &o), pa = microseconds(products_both, &o);
  double flops = 2 * (double)(b->B * G * W * b->D);
  printf("%-6s B %-3d T %-5d H %d D %-5d forward %8.1f us %6.1f GF/s %5.2f x products   both %8.1f us %6.1f "
         "GF/s %5.2f x products\n",
         names[b->cell], (int)b->B, (int)b->T, (int)b->H, (int)b->D, f, 1e-3 * flops / f, f / pf, a,
         3e-3 * flops / a, a / pa);
  fflush(stdout);
  free(o.x), free(o.h), free(o.a), free(o.dr);
  wf_tape_free(o.tape);
  wf_rows_free(o.rows);
  wf_scope_close(ctx, s);
}

int main(int argc, char **argv) {
  if (argc > 1) seconds_each = atof(argv[1]);
  wf_device *dev;
  must(wf_device_open(WF_CPU, 0, &dev));
  must(wf_ctx_create(dev, &ctx));
  printf("%s\n", wf_device_name(dev));
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    if (argc < 3 || (size_t)atoi(argv[2]) == i) run(&cases[i]);
  wf_ctx_free(ctx);
  wf_device_close(dev);
  return 0;
}
