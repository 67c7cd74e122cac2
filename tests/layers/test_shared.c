/* Parameters that several layers use, one in the model with the gradients of all uses: a layer's own of the
 * whole model, blocks that share theirs, mixers beside each other. */
#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "layers/layer.h"
#include "tests/check_main.h"
#include "tests/layers/contract.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct options {
  int64_t rows;
} options;

static const wf_option table[] = {WF_OPT_I64(options, rows, "0", 0, 100, "0: the model's layers"),
                                  WF_OPT_END};

typedef struct gains {
  wf_param *rows; /* [layers, d_model], of the model */
  int layer;
} gains;

static wf_status init(wf_build *b, const void *opts, void **self) {
  int64_t rows = ((const options *)opts)->rows;
  gains *g = wf_calloc("model", 1, sizeof *g);
  if (!g) return WF_ENOMEM;
  *self = g;
  g->layer = b->layer;
  return wf_build_shared_param(b, "gains", WF_PARAM_NO_DECAY, wf_init_normal(1), 2,
                               (int64_t[]){rows ? rows : b->n_layers, b->d_model}, &g->rows);
}

/* x times the sum of the rows up to this layer's own. */
static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const gains *g = self;
  wf_tensor *gain = NULL;
  for (int i = 0; i <= g->layer; i++) {
    wf_tensor *row = wf_slice(r->c, wf_value(g->rows), 0, i, i + 1);
    gain = gain ? wf_add(r->c, gain, row) : row;
  }
  return wf_mul(r->c, x, gain);
}

static const wf_layer_type type = {.kind = WF_LAYER_MIXER,
                                   .name = "test_gains",
                                   .help = "a row of a table that all layers share",
                                   .paper = "",
                                   .options = table,
                                   .options_size = sizeof(options),
                                   .init = init,
                                   .forward = forward};

START_TEST(layers_share_a_parameter_of_the_model) {
  static const char *const blocks[] = {"test_gains / gelu width=5", "attention heads=2 / -",
                                       "test_gains / -"};
  wf_trial_contract(3, blocks);
  wf_trial x;
  wf_trial_make(&x, 3, blocks, &(wf_trial_options){.dtype = WF_F64});
  wf_params *ps = wf_model_params(x.m);
  wf_param *p = wf_params_find(ps, "gains");
  ck_assert_ptr_nonnull(p);
  ck_assert_int_eq(p->shape[0], 3);
  double *grad = malloc(sizeof(double) * (size_t)x.numel), loss, row[3] = {0};
  wf_trial_gradient(&x, 0, grad, &loss);
  int64_t at = 0;
  for (int i = 0; ps->param[i] != p; i++) at += ps->param[i]->numel;
  for (int64_t i = 0; i < p->numel; i++) row[i / p->shape[1]] += grad[at + i] * grad[at + i];
  ck_assert_double_gt(row[0], row[2]); /* used by both */
  ck_assert_double_gt(row[2], 0);
  ck_assert_double_eq(row[1], row[2]); /* both enter at the third layer alone */
  free(grad);
  wf_trial_free(&x);
}
END_TEST

START_TEST(two_shapes_are_refused) {
  wf_params params = {0};
  wf_state_spec state = {0};
  wf_build b = {.params = &params, .state = &state, .prefix = "blocks.0.mixer", .d_model = 6, .n_layers = 2};
  void *self[3] = {NULL};
  ck_assert_int_eq(type.init(&b, &(options){0}, &self[0]), WF_OK);
  ck_assert_int_eq(type.init(&b, &(options){2}, &self[1]), WF_OK);
  ck_assert_ptr_eq(((gains *)self[0])->rows, ((gains *)self[1])->rows);
  ck_assert_int_eq(params.n, 1);
  ck_assert_int_eq(type.init(&b, &(options){3}, &self[2]), WF_ESHAPE);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "'gains' is asked for in two shapes"));
  for (int i = 0; i < 3; i++) wf_free(self[i]);
  wf_params_free(&params);
  wf_state_spec_free(&state);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* ---- blocks of one name ---- */

/* What the model that shares calls a parameter of the one that does not: block i's stand at source[i]. */
static const char *shared_name(const wf_param *p, const int *source, char out[128]) {
  int block, rest;
  if (sscanf(p->name, "blocks.%d%n", &block, &rest) == 1)
    snprintf(out, 128, "blocks.%d%s", source[block], p->name + rest);
  else
    snprintf(out, 128, "%s", p->name);
  return out;
}

static void copy_weights(wf_trial *from, wf_trial *to, const int *source) {
  wf_params *ps = wf_model_params(to->m);
  for (int i = 0; i < ps->n; i++) {
    char name[128];
    const wf_param *p = wf_params_find(wf_model_params(from->m), shared_name(ps->param[i], source, name));
    ck_assert_msg(p != NULL, "%s", name);
    double *x = malloc(sizeof *x * (size_t)p->numel);
    ck_assert_int_eq(wf_to_host(p->value, x), WF_OK);
    ck_assert_int_eq(wf_tensor_write(ps->param[i]->value, x), WF_OK);
    free(x);
  }
}

/* The gradient of a shared parameter is the sum of those of its copies, however the sequence is cut. */
static void expect_sum(int n, const char *const *shared, const char *const *apart, const int *source) {
  wf_trial one, many;
  const wf_trial_options o = {.dtype = WF_F64, .packed = true, .recompute = n == 4};
  wf_trial_make(&one, n, shared, &o);
  wf_trial_make(&many, n, apart, &o);
  ck_assert_int_lt(one.numel, many.numel);
  ck_assert_int_eq(wf_model_state_spec(one.m)->n, wf_model_state_spec(many.m)->n);
  ck_assert_double_eq(wf_model_flops(one.m, 9), wf_model_flops(many.m, 9));
  ck_assert_double_eq(wf_model_activation_bytes(one.m, 9), wf_model_activation_bytes(many.m, 9));
  copy_weights(&one, &many, source);
  double *a = malloc(sizeof *a * (size_t)one.numel), *b = malloc(sizeof *b * (size_t)many.numel), la, lb;
  wf_trial_gradient(&one, 5, a, &la);
  wf_trial_gradient(&many, 0, b, &lb);
  ck_assert_double_eq_tol(la, lb, 1e-10);
  wf_params *ps = wf_model_params(many.m), *po = wf_model_params(one.m);
  double *sum = calloc((size_t)one.numel, sizeof *sum), *at = b;
  for (int i = 0; i < ps->n; at += ps->param[i++]->numel) {
    char name[128];
    double *to = sum;
    shared_name(ps->param[i], source, name);
    for (int k = 0; strcmp(po->param[k]->name, name) != 0; k++) to += po->param[k]->numel;
    for (int64_t e = 0; e < ps->param[i]->numel; e++) to[e] += at[e];
  }
  wf_error e = wf_compare(one.numel, a, sum);
  ck_assert_msg(e.err2 < 1e-12, "err2 %.2e", e.err2);
  free(a);
  free(b);
  free(sum);
  wf_trial_free(&one);
  wf_trial_free(&many);
}

START_TEST(blocks_of_one_name_add_their_gradients) {
  static const char *const shared[] = {"@x attention heads=2 / gelu width=5", "simple_gla heads=2 / -",
                                       "@x attention heads=2 / gelu width=5", "simple_gla heads=2 / -"};
  static const char *const apart[] = {"attention heads=2 / gelu width=5", "simple_gla heads=2 / -",
                                      "attention heads=2 / gelu width=5", "simple_gla heads=2 / -"};
  static const char *const both[] = {"@x simple_gla heads=2 + attention heads=3 window=4 / -",
                                     "@y simple_gla heads=3 / relu2 width=4",
                                     "@x simple_gla heads=2 + attention heads=3 window=4 / -"};
  static const char *const two[] = {"simple_gla heads=2 + attention heads=3 window=4 / -",
                                    "simple_gla heads=3 / relu2 width=4",
                                    "simple_gla heads=2 + attention heads=3 window=4 / -"};
  wf_trial_contract(4, shared);
  expect_sum(4, shared, apart, (int[]){0, 1, 0, 3});
  expect_sum(3, both, two, (int[]){0, 1, 0});
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

START_TEST(blocks_that_differ_cannot_share) {
  static const char *const second[] = {"simple_gla heads=2 / -", "attention heads=2 bias=true / -",
                                       "attention heads=2 head_dim=4 / -", "attention heads=2 / gelu"};
  wf_device *dev;
  wf_ctx *c;
  ck_assert_int_eq(wf_device_open(WF_CPU, 0, &dev), WF_OK);
  ck_assert_int_eq(wf_ctx_create(dev, &c), WF_OK);
  for (int i = 0; i < 4; i++) {
    wf_model *m;
    wf_trial_block first, other;
    wf_trial_block_parse(&first, "@x attention heads=2 / -", WF_NORM_RMS);
    char text[80];
    snprintf(text, sizeof text, "@x %s", second[i]);
    wf_trial_block_parse(&other, text, WF_NORM_RMS);
    const wf_block_spec block[] = {first.spec, other.spec};
    const wf_model_spec spec = {.vocab = 5, .d_model = 4, .n_blocks = 2, .block = block, .init_std = 1};
    ck_assert_int_ne(wf_model_create(c, &spec, WF_F64, NULL, NULL, &m), WF_OK);
    ck_assert_msg(strstr(wf_error_message(), "share"), "%s", wf_error_message());
    wf_trial_block_free(&first);
    wf_trial_block_free(&other);
  }
  wf_ctx_free(c);
  wf_device_close(dev);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* ---- beside each other ---- */

START_TEST(mixers_beside_each_other_obey_the_contract) {
  static const char *const blocks[] = {"attention heads=2 window=5 + simple_gla heads=2 / gelu width=5",
                                       "simple_gla heads=3 + attention heads=2 + test_gains / -",
                                       "- / gelu width=5"};
  wf_trial_contract(3, blocks);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* Where its scale is zero a mixer reaches nothing, and nothing reaches it. */
START_TEST(a_scale_of_zero_silences_a_mixer) {
  static const char *const pair[] = {"simple_gla heads=2 + attention heads=2 / -"};
  wf_trial x;
  wf_trial_make(&x, 1, pair, &(wf_trial_options){.dtype = WF_F64});
  wf_params *ps = wf_model_params(x.m);
  double zero[64] = {0}, *a, *b, loss;
  wf_param *scale = wf_params_find(ps, "blocks.0.mixer.norm1.weight"),
           *inner = wf_params_find(ps, "blocks.0.mixer.1.o.weight");
  ck_assert_ptr_nonnull(scale);
  ck_assert_ptr_nonnull(inner);
  a = malloc(2 * sizeof *a * (size_t)x.t.n_tokens * 11);
  b = a + x.t.n_tokens * 11;
  ck_assert_int_eq(wf_tensor_write(scale->value, zero), WF_OK);
  wf_trial_logits(&x, a);
  double *grad = malloc(sizeof *grad * (size_t)x.numel);
  wf_trial_gradient(&x, 0, grad, &loss);
  int64_t at = 0;
  for (int i = 0; i < ps->n; at += ps->param[i++]->numel) {
    bool silent = strncmp(ps->param[i]->name, "blocks.0.mixer.1.", 17) == 0;
    double most = 0;
    for (int64_t k = 0; k < ps->param[i]->numel; k++) most = fmax(most, fabs(grad[at + k]));
    ck_assert_msg(silent ? most == 0 : most > 0, "%s: %g", ps->param[i]->name, most);
  }
  double other[12 * 12];
  for (int i = 0; i < 144; i++) other[i] = 0.1 * i - 3;
  ck_assert_int_eq(wf_tensor_write(inner->value, other), WF_OK);
  wf_trial_logits(&x, b);
  ck_assert_mem_eq(a, b, sizeof *a * (size_t)x.t.n_tokens * 11);
  free(a);
  free(grad);
  wf_trial_free(&x);
}
END_TEST

static Suite *suite(void) {
  if (wf_layer_register(&type) != WF_OK) abort();
  Suite *s = suite_create("shared");
  TCase *t = tcase_create("shared");
  tcase_add_test(t, layers_share_a_parameter_of_the_model);
  tcase_add_test(t, two_shapes_are_refused);
  tcase_add_test(t, blocks_of_one_name_add_their_gradients);
  tcase_add_test(t, blocks_that_differ_cannot_share);
  tcase_add_test(t, mixers_beside_each_other_obey_the_contract);
  tcase_add_test(t, a_scale_of_zero_silences_a_mixer);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
