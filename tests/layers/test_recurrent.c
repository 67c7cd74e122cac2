/* The strictly sequential mixers: the contract, alone and in a hybrid; recurrent dropout, at any cut and
 * drawn as its papers say; first values. */
#include "core/memory.h"
#include "core/ops.h"
#include "tests/check_main.h"
#include "tests/layers/contract.h"

#include <math.h>
#include <string.h>

WF_CONTRACT_TEST(slstm, "slstm heads=2 recurrent_init=uniform / geglu width=8",
                 "slstm heads=3 conv_width=0 recurrent_init=uniform / -", "slstm heads=12 / -")
WF_CONTRACT_TEST(lstm, "lstm / -", "lstm width=7 learn_state=true / swiglu width=7", "lstm project=true / -")
WF_CONTRACT_TEST(gru, "gru / -", "gru width=17 learn_state=true / swiglu width=7")
WF_CONTRACT_TEST(hybrid, "slstm heads=2 recurrent_init=uniform / geglu expand=1.3 multiple=4",
                 "lstm width=9 / -", "attention heads=2 window=5 / -", "gru / gelu width=5")

START_TEST(dropout_at_any_cut) {
  static const char *const blocks[] = {
      "lstm dropout=0.3 learn_state=true / -", "lstm width=7 dropout=0.3 dropout_of=candidate / -",
      "gru dropout=0.3 / -", "gru width=6 dropout=0.3 dropout_of=candidate / -"};
  wf_trial_cuts(4, blocks);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* ---- one layer ---- */

enum { D = 6, N = 7 };

typedef struct single {
  wf_device *dev;
  wf_ctx *c;
  wf_params params;
  wf_state_spec state;
  const wf_layer_type *type;
  void *self;
} single;

static void ok(wf_status s) {
  ck_assert_msg(s == WF_OK, "%s\n%s", wf_error_message(), wf_error_trace());
}

static wf_status build(single *x, const char *text, int64_t d, int layer, int layers) {
  *x = (single){.type = NULL};
  ok(wf_device_open(WF_CPU, 0, &x->dev));
  ok(wf_ctx_create(x->dev, &x->c));
  void *options;
  x->type = wf_trial_parse(text[0] == 'g' && text[1] == 'e' ? WF_LAYER_MLP : WF_LAYER_MIXER, text, &options);
  wf_build b = {.params = &x->params,
                .state = &x->state,
                .prefix = "here",
                .d_model = d,
                .layer = layer,
                .n_layers = layers,
                .init_std = 0.3,
                .out_std = 0.3,
                .norm_eps = 1e-5};
  wf_status s = x->type->init(&b, options, &x->self);
  wf_trial_free_options(x->type, options);
  if (s != WF_OK) return s;
  ok(wf_params_allocate(&x->params, x->c, WF_F64, NULL, NULL));
  ok(wf_params_init(&x->params, 5));
  return WF_OK;
}

static void drop(single *x) {
  wf_free(x->self);
  wf_params_free(&x->params);
  wf_state_spec_free(&x->state);
  wf_ctx_free(x->c);
  wf_device_close(x->dev);
  ck_assert_int_eq(wf_mem_live(), 0);
}

static wf_param *param(single *x, const char *name) {
  wf_param *p = wf_params_find(&x->params, name);
  ck_assert_msg(p != NULL, "no parameter %s", name);
  return p;
}

static double element(single *x, const char *name, int64_t i) {
  double v;
  ok(wf_item(wf_view_raw(param(x, name)->value, 0, NULL, NULL, i), &v));
  return v;
}

/* Two documents of one lane and one of another, as a batch in the middle of training. */
static const wf_row three[] = {{.begin = 0, .len = 3, .lane = 0, .place = 4, .seq = 9},
                               {.begin = 3, .len = 2, .lane = 1, .pos = 5, .place = 11, .seq = 70000},
                               {.begin = 5, .len = 2, .lane = 0, .place = 7, .seq = 9}};

static uint32_t drawn(const char *purpose, int64_t seq, int64_t place, int64_t j) {
  uint32_t w[4];
  wf_rng_draw(wf_rng_key_make(3, purpose, "here"), 17, (uint32_t)seq, (uint32_t)place, (uint32_t)(j / 4), w);
  return w[j % 4];
}

/* The layer under dropout equals the cell under masks drawn here: one of h for a document, by where it
 * starts; one of the candidate for a token. */
START_TEST(masks) {
  static const char *const layers[] = {"lstm dropout=0.25", "gru dropout=0.25",
                                       "lstm dropout=0.25 dropout_of=candidate",
                                       "gru dropout=0.25 dropout_of=candidate"};
  for (int k = 0; k < 4; k++) {
    single x;
    ok(build(&x, layers[k], D, 0, 1));
    wf_scope scope = wf_scope_open(x.c);
    wf_rows *rows;
    ok(wf_rows_create(x.c, 3, three, 2, &rows));
    double value[N * D], h_mask[3 * D], c_mask[N * D];
    for (int i = 0; i < N * D; i++) value[i] = wf_rng_normal(wf_rng_key_make(1, "test", "x"), (uint64_t)i);
    for (int r = 0; r < 3; r++)
      for (int j = 0; j < D; j++) {
        const wf_row *row = &three[r];
        h_mask[r * D + j] =
            drawn("recurrent dropout", row->seq, row->place - row->pos, j) >= 1u << 30 ? 1 / 0.75 : 0;
        for (int64_t t = 0; t < row->len; t++)
          c_mask[(row->begin + t) * D + j] =
              drawn("candidate dropout", row->seq, row->place + t, j) >= 1u << 30 ? 1 / 0.75 : 0;
      }
    wf_tensor *in = wf_from_host(x.c, "test", WF_F64, WF_SHAPE(N, D), value);
    wf_state *state;
    ok(wf_state_create(x.c, &x.state, WF_F64, 2, 1, false, &state));
    wf_run run = {.c = x.c, .rows = rows, .state = state, .train = true, .step = 17, .seed = 3};
    wf_tensor *got = x.type->forward(&run, x.self, in);
    bool lstm = k % 2 == 0;
    int64_t gates = lstm ? 4 : 3;
    wf_tensor *bias = lstm ? NULL : param(&x, "here.bias_ih")->value;
    wf_tensor *pre = wf_linear(x.c, in, param(&x, "here.weight_ih")->value, bias);
    wf_recur_in cell = {
        .cell = lstm ? WF_RECUR_LSTM : WF_RECUR_GRU,
        .x = {wf_reshape(x.c, pre, WF_SHAPE(N, gates, 1, D))},
        .r = wf_reshape(x.c, param(&x, "here.weight_hh")->value, WF_SHAPE(1, gates, D, D)),
        .b = wf_reshape(x.c, param(&x, lstm ? "here.bias" : "here.bias_hh")->value, WF_SHAPE(gates, 1, D))};
    if (k < 2)
      cell.h_mask = wf_from_host(x.c, "test", WF_F64, WF_SHAPE(3, 1, D), h_mask);
    else
      cell.c_mask = wf_from_host(x.c, "test", WF_F64, WF_SHAPE(N, 1, D), c_mask);
    wf_tensor *want = wf_recur(x.c, &cell, NULL, rows, NULL);
    ok(wf_ctx_check(x.c));
    double a[N * D], b[N * D], open[N * D];
    ok(wf_to_host(got, a));
    ok(wf_to_host(want, b));
    ck_assert_mem_eq(a, b, sizeof a);
    run.train = false; /* nothing is dropped */
    ok(wf_to_host(x.type->forward(&run, x.self, in), open));
    ck_assert_mem_ne(a, open, sizeof a);
    cell.h_mask = cell.c_mask = NULL;
    ok(wf_to_host(wf_recur(x.c, &cell, NULL, rows, NULL), b));
    ck_assert_mem_eq(open, b, sizeof b);
    wf_state_free(state);
    wf_rows_free(rows);
    wf_scope_close(x.c, scope);
    drop(&x);
  }
}
END_TEST

START_TEST(first_values) {
  single x;
  for (int layer = 0; layer < 3; layer++) {
    ok(build(&x, "slstm heads=2", 10, layer, 3));
    wf_scope scope = wf_scope_open(x.c);
    for (int64_t i = 0; i < 40; i++) { /* gates i f z o, two heads of 5 */
      double j = (double)(i % 5) / 4, want = i / 10 == 1 ? 5 - 12 * pow(j, 0.3 + 1.3 * layer / 2.0) : 0;
      ck_assert_double_eq_tol(element(&x, "here.bias", i), want, 1e-12);
    }
    for (int64_t i = 0; i < param(&x, "here.recurrent_kernel")->numel; i++)
      ck_assert_double_eq(element(&x, "here.recurrent_kernel", i), 0);
    double most = 0;
    for (int64_t i = 0; i < 10; i++) most = fmax(most, fabs(element(&x, "here.conv.bias", i)));
    ck_assert(most > 0 && most < 0.5);
    wf_scope_close(x.c, scope);
    drop(&x);
  }
  ok(build(&x, "slstm heads=3", 3, 0, 1)); /* one channel a head */
  wf_scope scope = wf_scope_open(x.c);
  for (int64_t i = 3; i < 6; i++) ck_assert_double_eq(element(&x, "here.bias", i), 5);
  wf_scope_close(x.c, scope);
  drop(&x);
  ok(build(&x, "lstm width=9 forget_bias=2", 4, 0, 1));
  scope = wf_scope_open(x.c);
  for (int64_t i = 0; i < 36; i++) {
    double off = element(&x, "here.bias", i) - (i / 9 == 1 ? 2 : 0);
    ck_assert(fabs(off) < 1.0 / 3 && off != 0);
  }
  ck_assert_int_eq(param(&x, "here.out.weight")->shape[1], 9);
  wf_scope_close(x.c, scope);
  drop(&x);
}
END_TEST

/* The widths of xLSTM's MLP, and the default. */
START_TEST(mlp_widths) {
  static const struct {
    const char *text;
    int64_t d, width;
  } cases[] = {{"geglu expand=1.3 multiple=64", 512, 704},
               {"geglu expand=1.3 multiple=64", 128, 192},
               {"geglu", 512, 1536},
               {"geglu", 96, 256},
               {"geglu multiple=64", 96, 256},
               {"geglu width=10 expand=4", 96, 10}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    single x;
    ok(build(&x, cases[i].text, cases[i].d, 0, 1));
    ck_assert_int_eq(param(&x, "here.up.weight")->shape[0], cases[i].width);
    ck_assert_int_eq(param(&x, "here.gate.weight")->shape[0], cases[i].width);
    drop(&x);
  }
}
END_TEST

START_TEST(refusals) {
  single x;
  ck_assert_int_eq(build(&x, "slstm heads=5", 12, 0, 1), WF_EINVAL);
  ck_assert_msg(strstr(wf_error_message(), "heads"), "%s", wf_error_message());
  drop(&x);
  ck_assert_int_eq(build(&x, "slstm heads=3 conv_width=1", 12, 0, 1), WF_EINVAL);
  ck_assert_msg(strstr(wf_error_message(), "conv_width"), "%s", wf_error_message());
  drop(&x);
}
END_TEST

static Suite *recurrent_suite(void) {
  Suite *s = suite_create("recurrent");
  TCase *t = tcase_create("recurrent");
  tcase_set_timeout(t, 300);
  tcase_add_test(t, slstm);
  tcase_add_test(t, lstm);
  tcase_add_test(t, gru);
  tcase_add_test(t, hybrid);
  tcase_add_test(t, dropout_at_any_cut);
  tcase_add_test(t, masks);
  tcase_add_test(t, first_values);
  tcase_add_test(t, mlp_widths);
  tcase_add_test(t, refusals);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(recurrent_suite)
