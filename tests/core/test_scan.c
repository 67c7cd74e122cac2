/* The linear-recurrence family against the recurrence run token by token in double, forwards and backwards:
 * every member, every chunk, odd lengths, heads and widths, decays from 0 to -50, heads that share q and k,
 * rows that take, leave and begin states; any cut with the state handed over. */
#include "tests/core/scan_test.h"

#include <omp.h>

typedef enum write { ADDITIVE, WEIGHTED, DELTA } write;

/* A member of the family: its decay (dimensions of g; 0: none) and its write. */
typedef struct member {
  const char *name;
  int decay;
  write write;
  bool ones; /* a column of ones beside the values: the last of V */
} member;
static const member members[] = {
    {"no decay", 0, ADDITIVE, false},          {"scalar", 2, ADDITIVE, false},
    {"scalar, weighted", 2, WEIGHTED, false},  {"channel", 3, ADDITIVE, false},
    {"channel, weighted", 3, WEIGHTED, false}, {"delta", 0, DELTA, false},
    {"no decay, ones", 0, ADDITIVE, true},     {"scalar, weighted, ones", 2, WEIGHTED, true},
    {"gated delta", 2, DELTA, false},          {"channel delta", 3, DELTA, false},
};
enum { MEMBERS = sizeof members / sizeof *members };

typedef struct problem {
  int64_t rows;
  wf_row row[4];
  int64_t lanes, n, heads, k, v, chunk;
  int64_t groups; /* 0: heads */
  double low;     /* log decays are in [low, 0]; 0: all zero */
  double far;     /* that of every 37th; 0: of none */
  bool state, init;
  const member *m;
} problem;

enum { Q, K, V, G, W, STATE, INIT, INPUTS };
static const char *const name[] = {"dq", "dk", "dv", "dg", "dw", "dstate", "dinit"};

typedef struct expected {
  int64_t count[INPUTS];
  double *in[INPUTS], *grad[INPUTS], *o, *dout, *left, *dleft;
  double gate; /* root mean square of the terms of dg before they cancel */
} expected;

static const double scale = 0.4;

/* The recurrence as its formula says, with e^g the decay of each channel, forwards and backwards:
 *     P = diag(e^g) S_{t-1},  u = v (additive) or v - k P (delta),  S_t = P + w k^T u,  o = s q S_t. */
static void one_row(const problem *p, expected *x, const wf_row *r, int64_t h) {
  int64_t K_ = p->k, V_ = p->v, size = K_ * V_, at_state = (r->lane * p->heads + h) * size;
  int64_t groups = p->groups, group = h * groups / p->heads;
  bool delta = p->m->write == DELTA;
  double *s = doubles((r->len + 1) * size), *ds = doubles(size), *prior = doubles(size), *u = doubles(V_),
         *du = doubles(V_), *keep = doubles(K_);
  const double *from = r->flags & WF_ROW_TAKES ? (p->state ? x->in[STATE] + at_state : NULL)
                       : p->init               ? x->in[INIT] + h * size
                                               : NULL;
  if (from) memcpy(s, from, (size_t)size * sizeof *s);
  for (int pass = 0; pass < 2; pass++) {
    if (pass && r->flags & WF_ROW_LEAVES) {
      memcpy(x->left + at_state, s + r->len * size, (size_t)size * sizeof *s);
      memcpy(ds, x->dleft + at_state, (size_t)size * sizeof *s);
    }
    for (int64_t i = 0; i < r->len; i++) {
      int64_t t = pass ? r->len - 1 - i : i, token = r->begin + t, at = token * p->heads + h;
      int64_t at_k = (token * groups + group) * K_;
      const double *q = x->in[Q] + at_k, *k = x->in[K] + at_k, *v = x->in[V] + at * V_, *old = s + t * size;
      double *now = s + (t + 1) * size, w = p->m->write == ADDITIVE ? 1 : x->in[W][at];
      for (int64_t d = 0; d < K_; d++)
        keep[d] = p->m->decay == 0 ? 1 : exp(p->m->decay == 2 ? x->in[G][at] : x->in[G][at * K_ + d]);
      for (int64_t e = 0; e < size; e++) prior[e] = keep[e / V_] * old[e];
      for (int64_t c = 0; c < V_; c++) {
        u[c] = v[c];
        for (int64_t d = 0; d < K_ && delta; d++) u[c] -= k[d] * prior[d * V_ + c];
      }
      if (!pass) {
        for (int64_t e = 0; e < size; e++) {
          now[e] = prior[e] + w * k[e / V_] * u[e % V_];
          x->o[at * V_ + e % V_] += scale * q[e / V_] * now[e];
        }
        continue;
      }
      const double *dout = x->dout + at * V_;
      for (int64_t e = 0; e < size; e++) {
        x->grad[Q][at_k + e / V_] += scale * dout[e % V_] * now[e];
        ds[e] += scale * q[e / V_] * dout[e % V_];
      }
      memset(du, 0, (size_t)V_ * sizeof *du);
      for (int64_t e = 0; e < size; e++) {
        int64_t d = e / V_, c = e % V_;
        du[c] += w * k[d] * ds[e];
        x->grad[K][at_k + d] += w * ds[e] * u[c];
        if (p->m->write != ADDITIVE) x->grad[W][at] += k[d] * ds[e] * u[c];
      }
      for (int64_t c = 0; c < V_; c++) x->grad[V][at * V_ + c] += du[c];
      double terms = 0;
      for (int64_t e = 0; e < size; e++) {
        int64_t d = e / V_, c = e % V_;
        if (delta) {
          x->grad[K][at_k + d] -= prior[e] * du[c];
          ds[e] -= k[d] * du[c];
        }
        if (p->m->decay) x->grad[G][p->m->decay == 2 ? at : at * K_ + d] += ds[e] * prior[e];
        terms += fabs(ds[e] * prior[e]);
        ds[e] *= keep[d];
      }
      if (p->m->decay == 3) terms /= (double)K_;
      x->gate += terms * terms / (double)(p->n * p->heads);
    }
  }
  double *to = r->flags & WF_ROW_TAKES ? (p->state ? x->grad[STATE] + at_state : NULL)
               : p->init               ? x->grad[INIT] + h * size
                                       : NULL;
  for (int64_t i = 0; i < size && to; i++) to[i] += ds[i];
  free(s), free(ds), free(prior), free(u), free(du), free(keep);
}

static expected by_tokens(problem *p) {
  if (!p->groups) p->groups = p->heads;
  int64_t nh = p->n * p->heads, ng = p->n * p->groups, size = p->heads * p->k * p->v;
  expected x = {.count = {ng * p->k, ng * p->k, nh * p->v, p->m->decay == 3 ? nh * p->k : nh, nh,
                          p->lanes * size, size}};
  for (int i = 0; i < INPUTS; i++) {
    x.in[i] = numbers(x.count[i], name[i]);
    x.grad[i] = doubles(x.count[i]);
  }
  for (int64_t i = 0; i < x.count[G]; i++) /* a third are open */
    x.in[G][i] = i % 3 == 2 ? 0 : (double)(float)(-fabs(x.in[G][i]) * fabs(p->low) / 2);
  for (int64_t i = 36; i < x.count[G] && p->far < 0; i += 37) x.in[G][i] = p->far;
  for (int64_t i = 0; i < nh; i++) x.in[W][i] = (double)(float)(1 / (1 + exp(-x.in[W][i])));
  for (int64_t i = 0; i < ng && p->m->write == DELTA;
       i++) { /* keys of unit length, as the layers give them */
    double *k = x.in[K] + i * p->k, sum = 0;
    for (int64_t d = 0; d < p->k; d++) sum += k[d] * k[d];
    for (int64_t d = 0; d < p->k; d++) k[d] = (double)(float)(k[d] / sqrt(sum));
  }
  for (int64_t i = 0; i < nh && p->m->ones; i++) x.in[V][(i + 1) * p->v - 1] = 1;
  x.o = doubles(nh * p->v), x.dout = numbers(nh * p->v, "do");
  x.left = doubles(p->lanes * size), x.dleft = numbers(p->lanes * size, "dleft");
  if (p->state) pass_lanes(p->rows, p->row, p->lanes, size, x.in[STATE], x.dleft, x.left, x.grad[STATE]);
  for (int64_t r = 0; r < p->rows; r++)
    for (int64_t h = 0; h < p->heads; h++) one_row(p, &x, &p->row[r], h);
  for (int64_t i = 0; i < nh && p->m->ones; i++) x.grad[V][(i + 1) * p->v - 1] = 0; /* a constant */
  x.gate = sqrt(x.gate);
  return x;
}

static void drop(expected *x) {
  for (int i = 0; i < INPUTS; i++) free(x->in[i]), free(x->grad[i]);
  free(x->o), free(x->dout), free(x->left), free(x->dleft);
}

/* Input i of the problem, or NULL where the member has none. */
static wf_tensor *input(const problem *p, const expected *e, wf_dtype dtype, int i) {
  const double *x = e->in[i];
  int64_t n = p->n;
  switch (i) {
  case Q:
  case K: return tensor(dtype, WF_SHAPE(n, p->groups, p->k), x);
  case V: return tensor(dtype, WF_SHAPE(n, p->heads, p->v), x);
  case G: return p->m->decay ? tensor(dtype, p->m->decay, (int64_t[]){n, p->heads, p->k}, x) : NULL;
  case W: return p->m->write != ADDITIVE ? tensor(dtype, WF_SHAPE(n, p->heads), x) : NULL;
  case STATE: return p->state ? tensor(dtype, WF_SHAPE(p->lanes, p->heads, p->k, p->v), x) : NULL;
  default: return p->init ? tensor(dtype, WF_SHAPE(p->heads, p->k, p->v), x) : NULL;
  }
}

static wf_scan_in given(const problem *p, wf_tensor *const *x) {
  wf_scan_in in = {.q = x[Q], .k = x[K], .v = x[V], .g = x[G], .init = x[INIT]};
  if (p->m->ones) in.v = wf_slice(ctx, in.v, 2, 0, p->v - 1);
  *(p->m->write == DELTA ? &in.beta : &in.w) = x[W];
  return in;
}

static void apply(const void *arg, wf_tensor *const *in, const wf_rows *rows, wf_tensor *out[2]) {
  const problem *p = arg;
  wf_scan_in all = given(p, in);
  out[0] = wf_scan(ctx, &all, in[STATE], rows,
                   &(wf_scan_options){.scale = scale, .chunk = p->chunk, .ones = p->m->ones}, &out[1]);
}
static const seq_op op = {apply, INPUTS, STATE, 1 << Q | 1 << K | 1 << V | 1 << G | 1 << W};

/* What the op gives for the problem: o, left, then the gradient of each input; free() each. */
enum { O = SEQ_Y, LEFT = SEQ_LEFT, GRADS = SEQ_GRADS, RESULTS = GRADS + INPUTS };

/* `step`: in pieces of so many tokens, beginning with zeros; 0: at once. */
static void run(const problem *p, const expected *e, wf_dtype dtype, int64_t step, double *result[RESULTS]) {
  wf_scope s = wf_scope_open(ctx);
  const int64_t state[] = {p->lanes, p->heads, p->k, p->v};
  wf_tensor *in[INPUTS],
      *cot[2] = {tensor(dtype, WF_SHAPE(p->n, p->heads, p->v), e->dout), tensor(dtype, 4, state, e->dleft)};
  for (int i = 0; i < INPUTS; i++) in[i] = input(p, e, dtype, i);
  if (step) in[STATE] = wf_zeros(ctx, "test", dtype, 4, state);
  seq_run(&op, p, p->rows, p->row, p->lanes, step, in, cot, result);
  wf_scope_close(ctx, s);
}

static const char *result_name(int i) {
  return i == O ? "o" : i == LEFT ? "left" : name[i - GRADS];
}
static const double *expected_result(const expected *e, int i) {
  return i == O ? e->o : i == LEFT ? e->left : e->grad[i - GRADS];
}
static int64_t result_count(const problem *p, const expected *e, int i) {
  return i == O ? p->n * p->heads * p->v : e->count[i == LEFT ? STATE : i - GRADS];
}
/* Errors are relative to the result's size, at least to this: gradients of gates to their terms. */
static double least_size(const expected *e, int i) {
  return i < GRADS ? 0 : i == GRADS + G ? e->gate / 10 : 0.01;
}

static void compare(const problem *p, const expected *e, wf_dtype dtype, double tolerance) {
  double *result[RESULTS];
  run(p, e, dtype, 0, result);
  for (int i = 0; i < RESULTS; i++) {
    char what[80];
    snprintf(what, sizeof what, "%s, chunk %lld: %s", p->m->name, (long long)p->chunk, result_name(i));
    if (result[i])
      near(what, result_count(p, e, i), result[i], expected_result(e, i), tolerance, least_size(e, i));
    free(result[i]);
  }
}

static void check(problem p) {
  p.n = lay_rows(p.rows, p.row);
  expected e = by_tokens(&p);
  int64_t most = p.n ? p.n : 1, chunks[] = {0, 1, 3, 16, 64, most};
  for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
    p.chunk = chunks[i];
    compare(&p, &e, WF_F64, 1e-12);
    /* many writes to few channels cancel, in the products of a chunk the more the longer it is */
    double far = p.chunk > 64 ? (double)p.chunk / 64 : 1;
    compare(&p, &e, WF_F32, p.m->write == DELTA ? 4e-6 * far : 2e-6);
  }
  drop(&e);
}

START_TEST(test_sizes) {
  open_cpu();
  const member *m = &members[_i];
  static const int64_t lens[] = {1, 2, 7, 8, 9, 63, 64, 65, 100, 130};
  for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
    int64_t t = lens[i];
    check((problem){1,
                    {{.len = t, .flags = 3}},
                    .lanes = 1,
                    .heads = 2,
                    .k = 5,
                    .v = 7,
                    .low = -0.3,
                    .state = true,
                    .m = m});
    check((problem){
        1, {{.len = t}}, .lanes = 1, .heads = 3, .k = 20, .v = 3, .low = -50, .init = true, .m = m});
    check((problem){1, {{.len = t, .flags = 2}}, .lanes = 2, .heads = 1, .k = 3, .v = 18, .low = 0, .m = m});
  }
  close_cpu();
}
END_TEST

START_TEST(test_rows) {
  open_cpu();
  problem p = {4,      MIXED_ROWS, .lanes = 5,    .heads = 2,   .k = 6,
               .v = 4, .low = -1,  .state = true, .init = true, .m = &members[_i]};
  check(p);
  p.heads = 6, p.groups = 2; /* heads in groups: divided over threads, or not */
  check(p);
  p.groups = 1, p.rows = 1;
  check(p);
  omp_set_num_threads(1);
  check(p);
  omp_set_num_threads(5);
  check(p);
  omp_set_num_threads(2);
  p.rows = 0;
  check(p);
  close_cpu();
}
END_TEST

/* Long rows hold states by segments. */
START_TEST(test_long) {
  open_cpu();
  problem p = {1,
               {{.len = 1000, .flags = 3}},
               .lanes = 1,
               .n = 1000,
               .heads = 2,
               .k = 12,
               .v = 9,
               .low = -0.1,
               .state = true,
               .m = &members[_i]};
  expected e = by_tokens(&p);
  static const int64_t chunks[] = {0, 1, 7, 16, 1000};
  for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
    p.chunk = chunks[i];
    compare(&p, &e, WF_F64, 1e-11);
    compare(&p, &e, WF_F32, p.m->write == DELTA ? 5e-5 : 1e-5); /* see check() */
  }
  drop(&e);
  close_cpu();
}
END_TEST

static double error(const problem *p, const expected *e, int i, const double *got) {
  const double *want = expected_result(e, i);
  double diff2 = 0, want2 = 0;
  int64_t n = result_count(p, e, i);
  for (int64_t k = 0; k < n; k++) {
    diff2 += (got[k] - want[k]) * (got[k] - want[k]);
    want2 += want[k] * want[k];
  }
  return sqrt(diff2 / (double)n) / fmax(sqrt(want2 / (double)n), least_size(e, i));
}

/* In float32 the chunks are at most 4 times as far from the truth as the recurrence itself, 8 times for
 * gates. */
START_TEST(test_accuracy) {
  open_cpu();
  static const struct {
    int64_t t, k, v;
    double low;
  } cases[] = {{100, 16, 16, -0.1}, {100, 64, 64, -5},    {100, 16, 16, -50},
               {1000, 16, 16, -5},  {1000, 64, 64, -0.1}, {1000, 16, 16, -0.001}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    problem p = {1,
                 {{.len = cases[i].t, .flags = 2}},
                 .lanes = 1,
                 .n = cases[i].t,
                 .heads = 1,
                 .k = cases[i].k,
                 .v = cases[i].v,
                 .low = cases[i].low,
                 .m = &members[_i]};
    expected e = by_tokens(&p);
    double *plain[RESULTS], *chunks[RESULTS];
    p.chunk = 1;
    run(&p, &e, WF_F32, 0, plain);
    p.chunk = 0;
    run(&p, &e, WF_F32, 0, chunks);
    for (int k = 0; k < RESULTS; k++) {
      if (!plain[k]) continue;
      double own = error(&p, &e, k, plain[k]), found = error(&p, &e, k, chunks[k]);
      ck_assert_msg(found <= (k == GRADS + G ? 8 : 4) * fmax(own, 3e-8),
                    "%s, T %lld, K %lld, gates to %g: %s: %.2e, the recurrence %.2e", p.m->name,
                    (long long)p.n, (long long)p.k, p.low, result_name(k), found, own);
      free(plain[k]), free(chunks[k]);
    }
    drop(&e);
  }
  close_cpu();
}
END_TEST

/* A sequence in pieces, the state handed over, equals the whole: forward, final state, every gradient. */
START_TEST(test_cuts) {
  open_cpu();
  static const int64_t pieces[] = {1, 2, 63, 64, 65, 149};
  problem p = {1,           {{.len = 150, .flags = 2}}, .lanes = 1, .n = 150, .heads = 2, .k = 5, .v = 4,
               .low = -0.2, .m = &members[_i]};
  expected e = by_tokens(&p);
  for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
    double *result[RESULTS];
    run(&p, &e, WF_F64, pieces[k], result);
    for (int i = 0; i < GRADS + STATE; i++)
      if (result[i])
        near(result_name(i), result_count(&p, &e, i), result[i], expected_result(&e, i),
             i < GRADS ? 1e-12 : 1e-11, 0);
    free_results(&op, result);
  }
  drop(&e);
  close_cpu();
}
END_TEST

START_TEST(test_causal_bitwise) {
  open_cpu();
  enum { T = 150, H = 2, D = 6 };
  problem p = {1,      {{.len = T}}, .lanes = 1,  .n = T,           .heads = H,
               .k = D, .v = D,       .low = -0.2, .m = &members[_i]};
  expected e = by_tokens(&p);
  wf_rows *rows;
  ok(wf_rows_create(ctx, 1, p.row, 1, &rows));
  wf_scan_options o = {.scale = scale, .ones = p.m->ones};
  for (int64_t t = 1; t < T; t += 21) {
    wf_tensor *y[2];
    for (int k = 0; k < 2; k++) {
      wf_tensor *in[INPUTS] = {NULL};
      for (int i = 0; i < STATE; i++) in[i] = input(&p, &e, WF_F32, i);
      wf_scan_in all = given(&p, in);
      y[k] = wf_scan(ctx, &all, NULL, rows, &o, NULL);
      for (int i = Q; i <= G; i++) e.in[i][t * (e.count[i] / T)] -= 7;
    }
    differ_from(t, y[0], y[1]);
  }
  wf_rows_free(rows);
  drop(&e);
  close_cpu();
}
END_TEST

/* Decays beyond all numbers, and of -inf, forget everything before them; nothing becomes NaN. */
START_TEST(test_forgetting) {
  open_cpu();
  static const double far[] = {-200, -1e5, -INFINITY};
  problem p = {1,
               {{.len = 100, .flags = 3}},
               .lanes = 1,
               .heads = 2,
               .k = 5,
               .v = 4,
               .low = -1,
               .state = true,
               .m = &members[_i]};
  for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
    p.far = far[i];
    check(p);
  }
  close_cpu();
}
END_TEST

START_TEST(test_errors) {
  open_cpu();
  wf_rows *rows;
  wf_row taking = {.len = 3, .flags = WF_ROW_TAKES};
  ok(wf_rows_create(ctx, 1, &taking, 1, &rows));
  wf_tensor *q = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 2, 4)),
            *g = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 2)),
            *odd = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(3, 3, 4));
  wf_tensor *state = wf_zeros(ctx, "test", WF_F32, WF_SHAPE(1, 2, 4, 4)), *left;
  wf_scan_options o = {.scale = 1};
  wf_scan_in in = {.q = q, .k = q, .v = q, .g = g};
  wf_scan(ctx, &in, NULL, rows, &o, &left);
  ck_assert(wf_is_poison(left));
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  in.w = q;
  wf_scan(ctx, &in, state, rows, &o, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  in.w = NULL, in.init = state;
  wf_scan(ctx, &in, state, rows, &o, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  in.init = NULL, in.v = odd;
  wf_scan(ctx, &in, state, rows, &o, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  in.v = q, o.chunk = -1;
  wf_scan(ctx, &in, state, rows, &o, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EINVAL);
  o = (wf_scan_options){.scale = 1,
                        .ones = true}; /* the state lacks the column; no normaliser of a delta rule */
  wf_scan(ctx, &in, state, rows, &o, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_ESHAPE);
  in.beta = g;
  wf_scan(ctx, &in, state, rows, &o, &left);
  ck_assert_int_eq(wf_ctx_check(ctx), WF_EUNSUPPORTED);
  wf_rows_free(rows);
  close_cpu();
}
END_TEST

static Suite *scan_suite(void) {
  Suite *s = suite_create("scan");
  TCase *t = tcase_create("scan");
  tcase_set_timeout(t, 120);
  tcase_add_loop_test(t, test_sizes, 0, MEMBERS);
  tcase_add_loop_test(t, test_rows, 0, MEMBERS);
  tcase_add_loop_test(t, test_long, 0, MEMBERS);
  tcase_add_loop_test(t, test_accuracy, 0, MEMBERS);
  tcase_add_loop_test(t, test_cuts, 0, MEMBERS);
  tcase_add_loop_test(t, test_causal_bitwise, 0, MEMBERS);
  tcase_add_loop_test(t, test_forgetting, 0, MEMBERS);
  tcase_add_test(t, test_errors);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(scan_suite)
