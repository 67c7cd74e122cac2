/* Batches at the edge: no tokens, lanes without rows, documents of one token, no labels. */
#include "core/memory.h"
#include "layers/stream.h"
#include "tests/check_main.h"
#include "tests/experiments/tiny_model.h"

/* Every primitive: keys and values, a window, a recurrence with convolutions, learned positions. */
static const char *const mixers[] = {tiny_attention, tiny_window, tiny_gla, tiny_learned};
enum { N_MIXERS = sizeof mixers / sizeof *mixers, LANES = 3, LONGEST = 7 };

static tiny model;

static void set_up(void) {
  tiny_open(&model, mixers[0], mixers[1]);
}
static void tear_down(void) {
  tiny_close(&model);
}

/* Filled with what no gradient may leave. */
static void spoil(wf_params *ps) {
  for (int g = 0; g < ps->n_groups; g++) {
    int64_t n = ps->group[g].numel;
    double *bad = wf_alloc("test", (size_t)n * sizeof *bad);
    for (int64_t i = 0; i < n; i++) bad[i] = (double)NAN;
    tiny_ok(wf_tensor_write(ps->group[g].grad, bad));
    wf_free(bad);
  }
}

/* The sum of all squares of the gradients. */
static double size_of_gradients(wf_params *ps) {
  double sum = 0;
  for (int g = 0; g < ps->n_groups; g++) {
    int64_t n = ps->group[g].numel;
    double *x = wf_alloc("test", (size_t)n * sizeof *x);
    tiny_ok(wf_to_host(ps->group[g].grad, x));
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    wf_free(x);
  }
  return sum;
}

static double train(const wf_tokens *t, int64_t stream, wf_state *state, double *squares) {
  wf_params *ps = wf_model_params(model.model);
  double loss = (double)NAN;
  spoil(ps);
  wf_params_reset(ps);
  wf_params_hold(ps);
  wf_step s = {.stream = stream, .train = true, .state = state};
  tiny_ok(wf_step_gradient(model.model, &s, t, 1, true, &loss));
  tiny_ok(wf_ctx_check(model.c));
  *squares = size_of_gradients(ps);
  return loss;
}

/* The head is a table of its own: without tokens nothing reaches it. */
static void open_with(int mixer) {
  char second[200];
  snprintf(second, sizeof second, "%s\n  tie_embeddings: false", mixers[(mixer + 1) % N_MIXERS]);
  tiny_close(&model);
  tiny_open(&model, mixers[mixer], second);
}

START_TEST(a_batch_without_tokens) {
  open_with(_i);
  wf_tokens none = {.n_lanes = LANES};
  double squares, loss;
  for (int64_t stream = 0; stream < 2; stream++) {
    ck_assert_double_eq(train(&none, stream, NULL, &squares), 0);
    ck_assert_double_eq(squares, 0);
    tiny_ok(wf_step_loss(model.model, &(wf_step){.stream = stream}, &none, &loss, NULL));
    ck_assert_double_eq(loss, 0);
  }
  wf_state *state;
  tiny_ok(wf_state_create(model.c, wf_model_state_spec(model.model), WF_F64, LANES, LONGEST, true, &state));
  ck_assert_double_eq(train(&none, 0, state, &squares), 0);
  ck_assert_double_eq(squares, 0);
  ck_assert_int_eq(state->position[0], 0);
  wf_state_free(state);
  none.n_lanes = 0;
  ck_assert_double_eq(train(&none, 0, NULL, &squares), 0);
  ck_assert_double_eq(squares, 0);
}
END_TEST

/* The middle lane has no row, and documents are of one token: the loss is that of the tokens one by one. */
START_TEST(lanes_without_rows_and_documents_of_one_token) {
  open_with(_i);
  static const int32_t ids[] = {3, 1, 4, 1, 5}, labels[] = {2, 7, 1, 8, 2};
  static const wf_row rows[] = {
      {.begin = 0, .len = 1},
      {.begin = 1, .len = 1, .place = 1},
      {.begin = 2, .len = 1, .place = 2, .flags = WF_ROW_LEAVES},
      {.begin = 3, .len = 1, .lane = 2, .seq = 2},
      {.begin = 4, .len = 1, .lane = 2, .place = 1, .seq = 2, .flags = WF_ROW_LEAVES}};
  wf_tokens t = {5, LANES, 5, rows, ids, labels};
  double apart = 0, loss, squares[2], each[5];
  for (int i = 0; i < 5; i++) {
    wf_row row = {.len = 1};
    wf_tokens one = {1, 1, 1, &row, &ids[i], &labels[i]};
    tiny_ok(wf_step_loss(model.model, &(wf_step){0}, &one, &loss, NULL));
    apart += loss;
  }
  tiny_ok(wf_step_loss(model.model, &(wf_step){0}, &t, &loss, each));
  ck_assert_double_eq_tol(loss, apart, 1e-12 * apart);
  ck_assert_double_eq_tol(train(&t, 0, NULL, &squares[0]), apart, 1e-12 * apart);
  ck_assert_double_eq_tol(train(&t, 1, NULL, &squares[1]), apart, 1e-12 * apart);
  ck_assert(squares[0] > 0);
  ck_assert_double_eq_tol(squares[0], squares[1], 1e-9 * squares[0]);
  wf_state *state;
  tiny_ok(wf_state_create(model.c, wf_model_state_spec(model.model), WF_F64, LANES, LONGEST, true, &state));
  ck_assert_double_eq_tol(train(&t, 1, state, &squares[1]), apart, 1e-12 * apart);
  ck_assert_double_eq_tol(squares[0], squares[1], 1e-9 * squares[0]);
  ck_assert_int_eq(state->position[0], 3);
  ck_assert_int_eq(state->position[1], 0);
  ck_assert_int_eq(state->position[2], 2);
  wf_state_free(state);
}
END_TEST

START_TEST(no_labels) {
  open_with(_i);
  static const int32_t ids[] = {3, 1, 4, 1, 5, 9}, labels[] = {-1, -1, -1, -1, -1, -1};
  wf_row row = {.len = 6};
  wf_tokens t = {1, 1, 6, &row, ids, labels};
  double squares;
  for (int64_t stream = 0; stream < 5; stream += 2) {
    ck_assert_double_eq(train(&t, stream, NULL, &squares), 0);
    ck_assert_double_eq(squares, 0);
  }
}
END_TEST

/* What cannot be is refused with its place. */
START_TEST(impossible_batches) {
  static const int32_t ids[] = {3, 1}, labels[] = {1, 1}, wild[] = {3, 1000};
  wf_row row = {.len = 2};
  double loss;
  wf_step s = {0}, pieces = {.stream = 1};
  wf_tokens t = {1, 0, 2, &row, ids, labels};
  ck_assert_int_eq(wf_step_loss(model.model, &pieces, &t, &loss, NULL), WF_EINVAL); /* no lane 0 */
  t.n_lanes = 1;
  row.lane = -1;
  ck_assert_int_eq(wf_step_gradient(model.model, &pieces, &t, 1, true, &loss), WF_EINVAL);
  row.lane = 0;
  t.ids = wild;
  ck_assert_int_eq(wf_step_loss(model.model, &s, &t, &loss, NULL), WF_EINVAL);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "id 1000"));
  t.ids = ids;
  t.labels = wild;
  ck_assert_int_eq(wf_step_gradient(model.model, &pieces, &t, 1, true, &loss), WF_EINVAL);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "label 1000"));
  t.labels = labels;
  t.n_tokens = 1; /* rows tile two */
  ck_assert_int_eq(wf_step_loss(model.model, &s, &t, &loss, NULL), WF_EINVAL);
  t.n_tokens = 2;
  tiny_ok(wf_step_loss(model.model, &s, &t, &loss, NULL)); /* and nothing is left of all that */
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("edges");
  TCase *c = tcase_create("edges");
  tcase_add_checked_fixture(c, set_up, tear_down);
  tcase_add_loop_test(c, a_batch_without_tokens, 0, N_MIXERS);
  tcase_add_loop_test(c, lanes_without_rows_and_documents_of_one_token, 0, N_MIXERS);
  tcase_add_loop_test(c, no_labels, 0, N_MIXERS);
  tcase_add_test(c, impossible_batches);
  suite_add_tcase(s, c);
  return s;
}

WF_CHECK_MAIN(suite)
