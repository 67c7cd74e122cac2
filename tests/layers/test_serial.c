/* The serial primitive under the contract, through a layer that is registered from outside: an Elman network
 *   h_t = tanh(x_t U^T + h_{t-1} W^T), y_t = h_t V^T with a learned first h. */
#include "core/memory.h"
#include "layers/seq.h"
#include "tests/check_main.h"
#include "tests/layers/contract.h"

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

static wf_status step(wf_ctx *c, const void *self, wf_tensor *x, int n_state, wf_tensor *const *state,
                      wf_tensor **y, wf_tensor **next) {
  const elman *e = self;
  (void)n_state;
  next[0] = wf_tanh(
      c, wf_add(c, wf_linear(c, x, wf_value(e->u), NULL), wf_linear(c, state[0], wf_value(e->w), NULL)));
  *y = wf_linear(c, next[0], wf_value(e->v), NULL);
  return WF_OK;
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const elman *e = self;
  wf_tensor *first = wf_value(e->first);
  return wf_seq_serial(r, &e->slot, 1, &first, x, step, e);
}

static const wf_layer_type type = {.kind = WF_LAYER_MIXER,
                                   .name = "test_elman",
                                   .help = "Elman network",
                                   .paper = "Elman 1990",
                                   .options = table,
                                   .options_size = sizeof(options),
                                   .init = init,
                                   .forward = forward};

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
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
