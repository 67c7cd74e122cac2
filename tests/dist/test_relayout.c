/* Tokens and states between a part and its contiguous twin: each arrives where its row is, and comes back;
 * what it costs, and when it pays. */
#include "core/memory.h"
#include "core/ops.h"
#include "dist/relayout.h"
#include "tests/dist/ranks.h"

enum { LANES = 2 };

static const wf_row packed[] = {{.begin = 0, .len = 3, .lane = 0, .place = 9, .pos = 5, .flags = 1},
                                {.begin = 3, .len = 1, .lane = 0, .place = 12},
                                {.begin = 4, .len = 22, .lane = 0, .place = 13, .flags = 2},
                                {.begin = 26, .len = 12, .lane = 1, .place = 9},
                                {.begin = 38, .len = 8, .lane = 1, .place = 21, .flags = 2}};
enum { ROWS = sizeof packed / sizeof *packed };

static const int64_t uneven[] = {9, 1, 5, 2, 0, 3, 7, 1, 1, 2, 1, 4, 1, 1, 3, 1};

typedef struct job {
  const wf_layout *layout;
  bool even;
} job;

/* What a token holds: its lane and place. */
static double token(const wf_row *r, int64_t t) {
  return (double)(1000 * (r->lane % LANES) + r->place + t);
}

static void on_rank(wf_comm *comm, void *arg) {
  const job *j = arg;
  wf_dist dist = {.comm = comm, .layout = j->layout};
  wf_device *dev;
  wf_ctx *c;
  wf_part *p;
  const wf_relayout *to;
  WF_RANK_OK(wf_device_open(WF_CPU, 0, &dev));
  WF_RANK_OK(wf_ctx_create(dev, &c));
  WF_RANK_OK(wf_part_create(&dist, ROWS, packed, LANES, 0, 0, &p));
  WF_RANK_OK(wf_relayout_of(p, c, &to));
  WF_RANK_ASSERT(to, "no twin of a zigzag");
  int peers = 0;
  for (int i = 0; i < to->tokens.n_send; i++)
    peers += !i || to->tokens.send[i].peer != to->tokens.send[i - 1].peer;
  WF_RANK_ASSERT(!j->even || peers <= 2, "tokens go to %d ranks", peers); /* what wf_relayout_cost counts */
  double x[64], y[64], state[4 * LANES];
  int64_t n = 0;
  for (int k = 0; k < p->n_own; k++)
    for (int64_t i = p->first[p->own[k]]; i < p->first[p->own[k] + 1]; i++)
      for (int64_t t = 0; t < p->row[i].len; t++) x[n++] = token(&p->row[i], t);
  WF_RANK_ASSERT(n == p->n_tokens, "%lld tokens", (long long)n);
  wf_scope scope = wf_scope_open(c);
  wf_tensor *there = wf_relayout_tokens(c, to, wf_from_host(c, "test", WF_F64, WF_SHAPE(n), x));
  wf_tensor *back = wf_relayout_tokens_back(c, to, there);
  WF_RANK_OK(wf_to_host(there, y));
  for (int64_t i = 0; i < to->rows->n; i++)
    for (int64_t t = 0; t < to->rows->row[i].len; t++)
      WF_RANK_ASSERT(y[to->rows->row[i].begin + t] == token(&to->rows->row[i], t),
                     "%g is not token %lld of row %lld", y[to->rows->row[i].begin + t], (long long)t,
                     (long long)i);
  WF_RANK_OK(wf_to_host(back, y));
  for (int64_t i = 0; i < n; i++)
    WF_RANK_ASSERT(y[i] == x[i], "token %lld came back as %g", (long long)i, y[i]);

  int last = p->n_segments - 1, rank = p->rank, at = wf_part_slot(p, last) * LANES;
  for (int64_t i = 0; i < p->n_own * LANES; i++) state[i] = 100 * rank + (double)i;
  wf_tensor *S = wf_from_host(c, "test", WF_F64, WF_SHAPE(p->n_own * LANES), state);
  wf_tensor *enters = wf_relayout_state(c, to, S), *left = wf_relayout_state_back(c, to, enters);
  WF_RANK_OK(wf_to_host(enters, y));
  for (int64_t i = 0; i < LANES; i++) {
    double from = 100 * wf_part_owner(p, last) + at,
           want = rank == to->part->n_segments - 1 ? from + (double)i : 0;
    WF_RANK_ASSERT(y[i] == want, "state %lld is %g, not %g", (long long)i, y[i], want);
  }
  WF_RANK_OK(wf_to_host(left, y));
  for (int64_t i = 0; i < LANES && wf_part_owner(p, last) == rank; i++)
    WF_RANK_ASSERT(y[at + i] == state[at + i], "state %lld came back as %g", (long long)i, y[at + i]);
  wf_scope_close(c, scope);
  wf_part_free(p);
  wf_ctx_free(c);
  wf_device_close(dev);
}

START_TEST(there_and_back) {
  static const int counts[] = {1, 2, 3, 4, 5, 8};
  for (int i = 0; i < 12; i++) {
    wf_layout *l;
    ck_assert_int_eq(wf_layout_create(WF_LAYOUT_ZIGZAG, counts[i / 2], i % 2 ? uneven : NULL, &l), WF_OK);
    wf_ranks_run(counts[i / 2], on_rank, &(job){l, i % 2 == 0});
    wf_layout_free(l);
  }
}
END_TEST

static void none(wf_comm *comm, void *arg) {
  wf_layout *l;
  wf_part *p;
  const wf_relayout *to;
  (void)arg;
  WF_RANK_OK(wf_layout_create(WF_LAYOUT_CONTIGUOUS, 3, NULL, &l));
  wf_dist dist = {.comm = comm, .layout = l};
  WF_RANK_OK(wf_part_create(&dist, ROWS, packed, LANES, 0, 0, &p));
  WF_RANK_OK(wf_relayout_of(p, NULL, &to));
  WF_RANK_ASSERT(!to, "a contiguous part moves");
  wf_part_free(p);
  wf_layout_free(l);
}

START_TEST(contiguous_stays) {
  wf_ranks_run(3, none, NULL);
}
END_TEST

/* Seconds that can be read: a message of n bytes takes 1 + n / 10. */
START_TEST(what_pays) {
  wf_cost unit = {.latency = 1, .bandwidth = 10, .combine = 5, .flops = 1, .threads = 1};
  wf_layout *l;
  double in_place, moved;
  ck_assert_int_eq(wf_layout_create(WF_LAYOUT_ZIGZAG, 4, NULL, &l), WF_OK);
  wf_dist d = {.layout = l, .cost = &unit, .transport = WF_TRANSPORT_PIPE};
  wf_relayout_size x = {.lanes = 1, .tokens = 20, .scan = 30, .n_scan = 1, .n_state = 1};
  wf_relayout_cost(&d, &x, &in_place, &moved); /* hops of 1 + 3, both ways; 4 exchanges of 2 + 2 */
  ck_assert_double_eq_tol(in_place, 2 * 7 * 4, 1e-12);
  ck_assert_double_eq_tol(moved, 2 * 3 * 4 + 4 * 4, 1e-12);
  ck_assert(moved < in_place); /* a large state, few tokens */
  x.tokens = 2000;
  wf_relayout_cost(&d, &x, &in_place, &moved);
  ck_assert(moved > in_place); /* many tokens */
  x.carried = true;
  double before = moved;
  wf_relayout_cost(&d, &x, &in_place, &moved); /* its states go there and back, and their gradients */
  ck_assert_double_eq_tol(moved, before + 4 * 4, 1e-12);
  x = (wf_relayout_size){.lanes = 2, .tokens = 20, .serial = 30, .n_serial = 2, .n_state = 2};
  wf_relayout_cost(&d, &x, &in_place, &moved); /* two groups: hops of 2 messages and 30 bytes */
  ck_assert_double_eq_tol(in_place, 2 * (7 + 1) * (2 + 3), 1e-12);
  ck_assert_double_eq_tol(moved, 2 * (3 + 1) * (2 + 3) + 4 * 4, 1e-12);
  wf_layout_free(l);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("relayout");
  TCase *t = tcase_create("relayout");
  tcase_add_test(t, there_and_back);
  tcase_add_test(t, contiguous_stays);
  tcase_add_test(t, what_pays);
  suite_add_tcase(s, t);
  return s;
}

WF_RANKS_MAIN(suite)
