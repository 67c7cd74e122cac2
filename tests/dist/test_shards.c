/* Which (head, lane) pairs each rank gets (dist/shards.h), seen by each rank alone, on paper. */
#include "dist/shards.h"
#include "core/memory.h"
#include "tests/check_main.h"

enum { LENGTH = 11, LANES = 3 };

/* One document, two (the second goes on after the piece), and one that came from before it. */
static const wf_row rows[] = {
    {.begin = 0, .len = LENGTH, .lane = 0},
    {.begin = LENGTH, .len = 4, .lane = 1},
    {.begin = LENGTH + 4, .len = LENGTH - 4, .lane = 1, .place = 4, .flags = WF_ROW_LEAVES},
    {.begin = 2 * LENGTH, .len = 5, .pos = 7, .place = 7, .lane = 2, .flags = WF_ROW_TAKES | WF_ROW_LEAVES},
};
enum { ROWS = sizeof rows / sizeof *rows };
static const int64_t tokens_of[] = {LENGTH, LENGTH, 5};

/* The cuts of a lane's rows are undone: each is as it was in the piece. */
static void same_rows(const wf_shard *b) {
  int64_t n = 0, begin = 0;
  for (int i = 0; i < ROWS; i++) {
    if (rows[i].lane < b->lane || rows[i].lane >= b->lane + b->lanes) continue;
    ck_assert_int_lt(n, b->rows->n);
    const wf_row *r = &b->rows->row[n++];
    ck_assert(r->begin == begin && r->len == rows[i].len && r->pos == rows[i].pos &&
              r->place == rows[i].place && r->flags == rows[i].flags && r->lane == rows[i].lane - b->lane);
    begin += r->len;
  }
  ck_assert_int_eq(n, b->rows->n);
  ck_assert_int_eq(b->tokens, begin);
  ck_assert_int_eq(b->rows->n_lanes, b->lanes);
}

static int64_t sum_of(const wf_run_of_rows *run, int n) {
  int64_t sum = 0;
  for (int i = 0; i < n; i++) sum += run[i].n;
  return sum;
}

/* What rank r of P has: its pairs are counted; -> how many. */
static int64_t one_rank(wf_ctx *c, wf_layout_kind kind, int r, int P, int64_t heads, int *pairs,
                        double *efficiency) {
  wf_dist d = {0};
  wf_layout *layout;
  wf_part *p;
  const wf_shards *s, *again;
  ck_assert_int_eq(wf_comm_paper(r, P, &(wf_paper){0}, &d.comm), WF_OK);
  ck_assert_int_eq(wf_layout_create(kind, P, NULL, &layout), WF_OK);
  d.layout = layout;
  ck_assert_int_eq(wf_part_create(&d, ROWS, rows, LANES, 0, 0, &p), WF_OK);
  ck_assert_msg(wf_shards_get(p, c, heads, &s) == WF_OK, "%s", wf_error_message());
  ck_assert_int_eq(wf_shards_get(p, c, heads, &again), WF_OK);
  ck_assert_ptr_eq(s, again);
  int64_t n = 0, want = 0;
  for (int b = 0; b < s->n; b++) {
    const wf_shard *x = &s->block[b];
    for (int64_t h = x->head; h < x->head + x->heads; h++)
      for (int64_t l = x->lane; l < x->lane + x->lanes; l++, n++) {
        pairs[h * LANES + l]++;
        want += tokens_of[l];
      }
    same_rows(x);
  }
  ck_assert_int_ge(s->n, 1);
  ck_assert_int_eq(s->states.rows, n);
  ck_assert_int_eq(s->tokens.rows, want);
  ck_assert_int_eq(s->tokens.pool, heads * p->n_tokens);
  ck_assert_int_eq(sum_of(s->tokens.recv, s->tokens.n_recv) + sum_of(s->tokens.own_to, s->tokens.n_own),
                   want);
  ck_assert_int_eq(sum_of(s->tokens.send, s->tokens.n_send) + sum_of(s->tokens.own_from, s->tokens.n_own),
                   s->tokens.pool); /* each of its tokens has gone somewhere, once */
  *efficiency = wf_shards_efficiency(p, heads);
  wf_part_free(p);
  wf_layout_free(layout);
  wf_comm_free(d.comm);
  return n;
}

START_TEST(every_pair_is_dealt_once) {
  wf_device *dev;
  wf_ctx *c;
  ck_assert_int_eq(wf_device_open(WF_CPU, 0, &dev), WF_OK);
  ck_assert_int_eq(wf_ctx_create(dev, &c), WF_OK);
  for (int P = 1; P <= 16; P++)
    for (int64_t heads = 1; heads <= 5; heads++) {
      int pairs[5 * LANES] = {0};
      int64_t most = 0, all = heads * LANES, last = 0;
      double efficiency = 0;
      for (int r = 0; r < P; r++) {
        last = one_rank(c, P & 1 ? WF_LAYOUT_ZIGZAG : WF_LAYOUT_CONTIGUOUS, r, P, heads, pairs, &efficiency);
        most = last > most ? last : most;
      }
      for (int64_t i = 0; i < all; i++) ck_assert_int_eq(pairs[i], 1);
      ck_assert_int_eq(last, most); /* weft plan looks at the last rank */
      ck_assert_double_eq_tol(efficiency, (double)all / (double)(P * most), 1e-15);
    }
  wf_ctx_free(c);
  wf_device_close(dev);
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("shards");
  TCase *t = tcase_create("shards");
  tcase_add_test(t, every_pair_is_dealt_once);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
