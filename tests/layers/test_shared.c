/* Parameters that several layers use: one in the model, with the gradients of all uses. */
#include "core/memory.h"
#include "layers/layer.h"
#include "tests/check_main.h"
#include "tests/layers/contract.h"

#include <stdlib.h>

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

static Suite *suite(void) {
  if (wf_layer_register(&type) != WF_OK) abort();
  Suite *s = suite_create("shared");
  TCase *t = tcase_create("shared");
  tcase_add_test(t, layers_share_a_parameter_of_the_model);
  tcase_add_test(t, two_shapes_are_refused);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
