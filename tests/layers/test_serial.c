/* The serial primitive under the contract, through layers that are registered from outside. */
#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "layers/seq.h"
#include "tests/check_main.h"
#include "tests/layers/contract.h"

/* An Elman network, token by token:
 *   h_t = tanh(x_t U^T + h_{t-1} W^T), y_t = h_t V^T with a learned first h. */

typedef struct options {
  int64_t width;
} options;

static const wf_option table[] = {WF_OPT_I64(options, width, "5", 1, 100, "of h"), WF_OPT_END};

typedef struct elman {
  wf_param *u, *w, *v, *first;
  int slot;
} elman;

static wf_status init(wf_build *b, const void *opts, void **self) {
  int64_t width = ((const options *)opts)->width;
  elman *e = wf_calloc("model", 1, sizeof *e);
  if (!e) return WF_ENOMEM;
  *self = e;
  WF_TRY(wf_build_linear(b, "u", b->d_model, width, b->init_std, &e->u, NULL));
  WF_TRY(wf_build_linear(b, "w", width, width, b->init_std, &e->w, NULL));
  WF_TRY(wf_build_linear(b, "v", width, b->d_model, b->out_std, &e->v, NULL));
  WF_TRY(wf_build_param(b, "first", 0, wf_init_normal(0.5), WF_SHAPE(width), &e->first));
  return wf_build_state(b, "h", false, WF_SHAPE(width), &e->slot);
}

static wf_tensor *step(wf_run *r, const void *self, const wf_seq_span *span, wf_tensor *const *x) {
  const elman *e = self;
  (void)span;
  wf_ctx *c = r->c;
  wf_tensor *h = wf_state_in(r->state, e->slot);
  h = wf_tanh(c, wf_add(c, wf_linear(c, x[0], wf_value(e->u), NULL), wf_linear(c, h, wf_value(e->w), NULL)));
  *wf_state_out(r->state, e->slot) = h;
  return wf_linear(c, h, wf_value(e->v), NULL);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const elman *e = self;
  wf_tensor *first = wf_value(e->first);
  wf_seq_serial_in in = {.segment = 1,
                         .slot = e->slot,
                         .n_state = 1,
                         .init = &first,
                         .n_x = 1,
                         .x = &x,
                         .piece = step,
                         .self = e};
  return wf_seq_serial(r, &in);
}

static const wf_layer_type type = {.kind = WF_LAYER_MIXER,
                                   .name = "test_elman",
                                   .help = "Elman network",
                                   .paper = "Elman 1990",
                                   .options = table,
                                   .options_size = sizeof(options),
                                   .init = init,
                                   .forward = forward};

/* A layer of segments, with another primitive inside the pieces:
 *   y_t = u_t . h, u = conv3(x), h of the segment; the next segment's is tanh(h + sum of x over this one). */

typedef struct seg_options {
  int64_t segment;
  bool inside; /* does the piece convolve, or the layer before it */
} seg_options;

static const wf_option seg_table[] = {WF_OPT_I64(seg_options, segment, "4", 1, 100, "tokens"),
                                      WF_OPT_BOOL(seg_options, inside, "true", "conv in the pieces"),
                                      WF_OPT_END};

typedef struct segments {
  seg_options o;
  int64_t d;
  wf_param *taps, *first;
  int slot, conv; /* h and the sum so far; the convolution's, next to them */
} segments;

static wf_status seg_init(wf_build *b, const void *opts, void **self) {
  segments *g = wf_calloc("model", 1, sizeof *g);
  if (!g) return WF_ENOMEM;
  *self = g;
  g->o = *(const seg_options *)opts;
  g->d = b->d_model;
  int sum;
  WF_TRY(wf_build_param(b, "conv.weight", 0, wf_init_normal(0.5), WF_SHAPE(g->d, 1, 3), &g->taps));
  WF_TRY(wf_build_param(b, "first", 0, wf_init_normal(0.5), WF_SHAPE(g->d), &g->first));
  WF_TRY(wf_build_state(b, "h", false, WF_SHAPE(g->d), &g->slot));
  WF_TRY(wf_build_state(b, "sum", false, WF_SHAPE(g->d), &sum));
  return wf_seq_conv_state(b, "conv", g->d, 3, &g->conv);
}

static wf_tensor *seg_piece(wf_run *r, const void *self, const wf_seq_span *span, wf_tensor *const *x) {
  const segments *g = self;
  wf_ctx *c = r->c;
  wf_tensor *h = wf_state_in(r->state, g->slot), *sum = wf_state_in(r->state, g->slot + 1), *u = x[1];
  if (g->o.inside) u = wf_seq_conv(r, g->conv, x[0], wf_value(g->taps), NULL, false);
  int64_t m = span->m, L = span->len, d = g->d;
  ck_assert_int_eq(r->rows->n, m);
  ck_assert_int_eq(r->rows->n_tokens, m * L);
  ck_assert(span->offset + L <= g->o.segment && span->ends == (span->offset + L == g->o.segment));
  if (m) ck_assert_int_eq(r->rows->row[m - 1].pos, span->offset);
  wf_tensor *y = wf_mul(c, wf_reshape(c, u, WF_SHAPE(m, L, d)), wf_reshape(c, h, WF_SHAPE(m, 1, d)));
  sum = wf_add(c, sum, wf_sum(c, wf_reshape(c, x[0], WF_SHAPE(m, L, d)), 1, false));
  if (span->ends) {
    h = wf_tanh(c, wf_add(c, h, sum));
    sum = wf_zeros(c, "test", h->dtype, h->ndim, h->shape);
  }
  *wf_state_out(r->state, g->slot) = h;
  *wf_state_out(r->state, g->slot + 1) = sum;
  return wf_reshape(c, y, WF_SHAPE(m * L, d));
}

static wf_tensor *seg_forward(wf_run *r, const void *self, wf_tensor *x) {
  const segments *g = self;
  wf_ctx *c = r->c;
  if (wf_is_poison(x)) return x;
  wf_tensor *init[3] = {wf_value(g->first), wf_zeros(c, "test", x->dtype, WF_SHAPE(g->d)),
                        wf_zeros(c, "test", x->dtype, WF_SHAPE(2, g->d))};
  wf_tensor *in[2] = {x, g->o.inside ? x : wf_seq_conv(r, g->conv, x, wf_value(g->taps), NULL, false)};
  wf_seq_serial_in serial = {.segment = g->o.segment,
                             .slot = g->slot,
                             .n_state = g->o.inside ? 3 : 2,
                             .init = init,
                             .n_x = 2,
                             .x = in,
                             .piece = seg_piece,
                             .self = g};
  return wf_seq_serial(r, &serial);
}

static const wf_layer_type seg_type = {.kind = WF_LAYER_MIXER,
                                       .name = "test_segments",
                                       .help = "segments",
                                       .paper = "",
                                       .options = seg_table,
                                       .options_size = sizeof(seg_options),
                                       .init = seg_init,
                                       .forward = seg_forward};

START_TEST(segments_obey_the_contract) {
  static const char *const blocks[] = {"test_segments segment=4 / -", "attention heads=2 / -",
                                       "test_segments segment=5 inside=false / -",
                                       "test_segments segment=100 / gelu width=5"};
  ck_assert_int_eq(wf_layer_register(&seg_type), WF_OK);
  wf_trial_contract(4, blocks);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* A primitive inside the pieces is the same as before them: it goes on from one segment to the next. */
START_TEST(primitives_inside_pieces) {
  static const char *const blocks[][1] = {{"test_segments segment=3 / -"},
                                          {"test_segments segment=3 inside=false / -"}};
  ck_assert_int_eq(wf_layer_register(&seg_type), WF_OK);
  double *grad[2], loss[2];
  int64_t n = 0;
  for (int i = 0; i < 2; i++) {
    wf_trial x;
    wf_trial_options o = {.dtype = WF_F64, .packed = true};
    wf_trial_make(&x, 1, blocks[i], &o);
    n = x.numel;
    grad[i] = wf_calloc("test", (size_t)n, sizeof **grad);
    wf_trial_gradient(&x, 0, grad[i], &loss[i]);
    wf_trial_free(&x);
  }
  ck_assert_double_eq_tol(loss[0], loss[1], 1e-12 * loss[1]);
  ck_assert_double_le(wf_compare(n, grad[0], grad[1]).err2, 1e-12);
  for (int i = 0; i < 2; i++) wf_free(grad[i]);
}
END_TEST

START_TEST(serial_obeys_the_contract) {
  static const char *const blocks[] = {"test_elman width=4 / -", "attention heads=2 / -",
                                       "test_elman / gelu width=5"};
  ck_assert_int_eq(wf_layer_register(&type), WF_OK);
  ck_assert_int_eq(wf_layer_register(&type), WF_OK); /* the same one again is fine */
  wf_layer_type other = type;
  ck_assert_int_eq(wf_layer_register(&other), WF_EEXISTS);
  wf_trial_contract(3, blocks);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("serial");
  TCase *t = tcase_create("serial");
  tcase_add_test(t, serial_obeys_the_contract);
  tcase_add_test(t, segments_obey_the_contract);
  tcase_add_test(t, primitives_inside_pieces);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
