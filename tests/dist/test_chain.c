/* Ops with a state over the segments of several ranks: outputs, final states and all gradients are those of
 * the op on the whole sequence, by every transport, for any layout, rows of every kind, carried states; in
 * float the error is that of one rank; messages and bytes are what the formulas say. */
#include "core/memory.h"
#include "tests/dist/chain_trial.h"

#include <math.h>

/* ---- the matrix ---- */

static const wf_dist ways[] = {
    {.transport = WF_TRANSPORT_AUTO},
    {.transport = WF_TRANSPORT_PIPE, .blocks = 2},
    {.transport = WF_TRANSPORT_PIPE, .blocks = 5},
    {.transport = WF_TRANSPORT_RELAY},
    {.transport = WF_TRANSPORT_RELAY, .blocks = 2},
    {.transport = WF_TRANSPORT_GATHER},
    {.transport = WF_TRANSPORT_GATHER, .blocks = 3},
    {.transport = WF_TRANSPORT_LOG},
    {.transport = WF_TRANSPORT_LOG, .blocks = 2},
};
enum { WAYS = sizeof ways / sizeof *ways };

static const int64_t uneven[] = {9, 1, 5, 2, 0, 3, 7, 1, 1, 2, 1, 4, 1, 1, 3, 1};

typedef enum layout_kind { CONTIGUOUS, UNEVEN, ZIGZAG, ZIGZAG_UNEVEN, SCATTERED, LAYOUTS } layout_kind;

/* SCATTERED: seven segments, whose owners have none, one or several, in no order. */
static wf_layout *layout_of(layout_kind kind, int ranks) {
  wf_layout *l = NULL;
  int owner[7];
  for (int i = 0; i < 7; i++) owner[i] = i * i % ranks;
  wf_status st = kind == SCATTERED
                     ? wf_layout_custom(ranks, 7, owner, uneven, &l)
                     : wf_layout_create(kind >= ZIGZAG ? WF_LAYOUT_ZIGZAG : WF_LAYOUT_CONTIGUOUS, ranks,
                                        kind % 2 ? uneven : NULL, &l);
  ck_assert_int_eq(st, WF_OK);
  return l;
}

static const char *const layout_names[] = {"contiguous", "uneven", "zigzag", "zigzag uneven", "scattered"};
static const char *const transport_names[] = {"auto", "serial", "pipe", "relay", "gather", "log"};
static const int sizes[] = {1, 2, 3, 4, 5, 8};
enum { SIZES = sizeof sizes / sizeof *sizes };

/* The member in one way, if it serves; its errors against `exact`. */
static bool one_case(const wf_chain_trial *exact, int64_t stretch, wf_dtype dtype, int ranks, int kind, int w,
                     wf_chain_errors *e) {
  wf_layout *layout = layout_of((layout_kind)kind, ranks);
  bool serves = ways[w].transport != WF_TRANSPORT_PIPE || exact->m->cut || wf_layout_most(layout) == 1;
  if (serves) {
    wf_chain_trial t;
    wf_chain_sequence seq = exact->seq;
    for (int64_t i = 0; i < seq.n_rows; i++) { /* as it was before it was stretched */
      seq.row[i].begin /= stretch, seq.row[i].len /= stretch;
      seq.row[i].place /= stretch, seq.row[i].pos /= stretch;
    }
    seq.n_tokens /= stretch;
    wf_chain_trial_new(exact->m, &seq, stretch, dtype, &t);
    t.by = ways[w];
    t.by.layout = layout;
    wf_chain_trial_run(&t, ranks);
    *e = wf_chain_compare(&t, exact);
    wf_chain_trial_free(&t);
  }
  wf_layout_free(layout);
  return serves;
}

static double worst(const wf_chain_errors *e) {
  return fmax(e->y, fmax(e->left, e->grad));
}

static void agree(const wf_chain_member *m, const wf_chain_sequence *seq, int ranks) {
  wf_chain_trial plain;
  if (!wf_ranks_fit(ranks)) return;
  wf_chain_trial_new(m, seq, 1, WF_F64, &plain);
  wf_chain_trial_whole(&plain);
  for (int kind = 0; kind < LAYOUTS; kind++)
    for (int w = 0; w < WAYS; w++) {
      wf_chain_errors e;
      if (!one_case(&plain, 1, WF_F64, ranks, kind, w, &e)) continue;
      ck_assert_msg(e.y <= 1e-10 && e.left <= 1e-10 && e.grad <= 1e-10,
                    "%s, %s, %d ranks, layout %d, transport %d in %d blocks: %g, state %g, gradients %g",
                    m->name, seq->name, ranks, kind, ways[w].transport, ways[w].blocks, e.y, e.left, e.grad);
      wf_matrix_note(m->name, layout_names[kind], transport_names[ways[w].transport], seq->name, "f64", ranks,
                     worst(&e), 0);
    }
  wf_chain_trial_free(&plain);
}

START_TEST(every_member) {
  const wf_chain_member *m = &wf_chain_members[_i / SIZES];
  for (int s = 0; s < SEQUENCES; s++) agree(m, &wf_chain_sequences[s], sizes[_i % SIZES]);
  if (!wf_ranks_launched()) ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* ---- float ---- */

static void agree_in_float(const wf_chain_trial *exact, const wf_chain_errors *e1, int ranks, int kind,
                           int w) {
  wf_chain_errors e;
  const double floor = 6e-8;
  if (!wf_ranks_fit(ranks) || !one_case(exact, 20, WF_F32, ranks, kind, w, &e)) return;
  ck_assert_msg(e.y <= 2 * e1->y + floor && e.left <= 2 * e1->left + floor && e.grad <= 2 * e1->grad + floor,
                "%s, %d ranks, layout %d, transport %d: %g %g %g, one rank %g %g %g", exact->m->name, ranks,
                kind, ways[w].transport, e.y, e.left, e.grad, e1->y, e1->left, e1->grad);
  wf_matrix_note(exact->m->name, layout_names[kind], transport_names[ways[w].transport], exact->seq.name,
                 "f32", ranks, worst(&e), worst(e1));
}

/* The whole matrix has all layouts and numbers of ranks, and every sequence. */
START_TEST(in_float) {
  const wf_chain_member *m = &wf_chain_members[_i];
  for (int s = 0; s < SEQUENCES; s++) {
    wf_chain_trial exact, one;
    if (s != 1 && !wf_matrix_whole()) continue;
    wf_chain_trial_new(m, &wf_chain_sequences[s], 20, WF_F64, &exact);
    wf_chain_trial_new(m, &wf_chain_sequences[s], 20, WF_F32, &one);
    wf_chain_trial_whole(&exact);
    wf_chain_trial_whole(&one);
    wf_chain_errors e1 = wf_chain_compare(&one, &exact);
    for (int kind = 0; kind < LAYOUTS; kind++)
      for (int i = 0; i < SIZES; i++)
        for (int w = 0; w < WAYS; w++)
          if (wf_matrix_whole() || (kind == CONTIGUOUS && sizes[i] == 4 && w >= 3))
            agree_in_float(&exact, &e1, sizes[i], kind, w);
    wf_chain_trial_free(&exact);
    wf_chain_trial_free(&one);
  }
}
END_TEST

/* ---- finite differences through the cut ---- */

/* The loss, outputs of the last segment's tokens, when the tokens of the first one move by `by`. */
static double loss_moved(const wf_chain_member *m, const wf_dist *d, int ranks, double by,
                         wf_chain_trial *t) {
  const int64_t cut[2] = {23 / 4, 23 - 23 / 4}; /* of lane 0: places of the first and the last segment */
  wf_chain_trial_new(m, &wf_chain_sequences[0], 1, WF_F64, t);
  t->by = *d;
  int64_t size = wf_chain_state_size(m);
  for (int64_t i = 0; i < t->seq.n_tokens; i++)
    for (int64_t k = 0; k < size; k++)
      if (i < cut[1] || i >= 23) t->cot.y[0][i * size + k] = 0;
  for (int64_t k = 0; k < LANES * size; k++) t->cot.left[k] = 0;
  for (int x = 0; x < MAX_X; x++)
    for (int64_t k = 0; k < cut[0] * wf_chain_token_size(&m->x[x]); k++)
      t->in.x[x][k] += by * cos((double)(x + 3 * k));
  wf_chain_trial_run(t, ranks);
  double loss = 0;
  for (int64_t k = 0; k < t->seq.n_tokens * t->y_size; k++) loss += t->cot.y[0][k] * t->out.y[0][k];
  return loss;
}

/* A token on rank 0 is moved, the loss read on the last rank; the gradient says by how much. */
START_TEST(through_the_cut) {
  const wf_chain_member *m = &wf_chain_members[_i];
  const int ranks = wf_ranks_launched() ? wf_ranks_launched() : 4;
  if (m->constant || ranks < 4) return;
  for (int w = 0; w < WAYS; w++) {
    const double h = 1e-6;
    wf_dist d = ways[w];
    wf_layout *layout = layout_of(CONTIGUOUS, ranks);
    d.layout = layout;
    double loss[2], slope = 0, size = 0;
    for (int side = -1; side <= 1; side++) {
      wf_chain_trial t;
      double now = loss_moved(m, &d, ranks, side * h, &t);
      if (side) loss[side > 0] = now;
      for (int x = 0; x < MAX_X && !side; x++)
        for (int64_t k = 0; k < 23 / 4 * wf_chain_token_size(&m->x[x]); k++) {
          slope += t.grad.x[x][k] * cos((double)(x + 3 * k));
          size += fabs(t.grad.x[x][k]);
        }
      wf_chain_trial_free(&t);
    }
    double found = (loss[1] - loss[0]) / (2 * h);
    ck_assert_msg(fabs(found - slope) <= 1e-6 * size + 1e-9,
                  "%s, transport %d: the loss moves by %.9g, not %.9g", m->name, ways[w].transport, found,
                  slope);
    wf_layout_free(layout);
  }
}
END_TEST

/* ---- counts ---- */

/* Messages and bytes of a rank with one segment in an exclusive scan whose i-th segment it has; a, b: bytes
 * of A and B. */
static void expected(wf_transport how, int i, int P, int blocks, int64_t a, int64_t b, wf_comm_counts *n) {
  if (P == 1) return;
  if (how == WF_TRANSPORT_PIPE || how == WF_TRANSPORT_RELAY) {
    n->messages += i < P - 1 ? blocks : 0;
    n->message_bytes += i < P - 1 ? b : 0;
  } else if (how == WF_TRANSPORT_GATHER) {
    n->calls += blocks;
    n->call_bytes += (i < P - 1 ? b : 0) + (i > 0 && i < P - 1 ? a : 0);
  } else {
    for (int d = 1; d < P; d *= 2)
      if (i + d < P) n->messages += blocks, n->message_bytes += b + (i - d + 1 > 0 ? a : 0);
  }
}

static void same_counts(const wf_comm_counts *a, const wf_comm_counts *b, const char *what, int way, int rank,
                        int P) {
  ck_assert_msg(
      a->messages == b->messages && a->message_bytes == b->message_bytes && a->calls == b->calls &&
          a->call_bytes == b->call_bytes,
      "%s, way %d, rank %d of %d: %lld messages, %lld bytes, %lld calls, %lld bytes; not %lld, %lld, "
      "%lld, %lld",
      what, way, rank, P, (long long)a->messages, (long long)a->message_bytes, (long long)a->calls,
      (long long)a->call_bytes, (long long)b->messages, (long long)b->message_bytes, (long long)b->calls,
      (long long)b->call_bytes);
}

START_TEST(counts) {
  static const struct {
    int member;
    int64_t a, b; /* elements of a lane */
  } cases[] = {{0, 0, H * K * V},
               {1, H, H * K * V},
               {2, H * K, H * K * V},
               {5, H * K * K, H * K * V},
               {13, D * N, D * N}};
  for (int k = 0; k < 5; k++)
    for (int s = 0; s < SIZES; s++)
      for (int w = 1; w < WAYS; w++) {
        int P = sizes[s], blocks = ways[w].blocks ? ways[w].blocks : 1, most = k == 4 ? D : H;
        wf_comm_counts got[2][8];
        if (!wf_ranks_fit(P)) continue;
        wf_chain_trial t;
        wf_chain_trial_new(&wf_chain_members[cases[k].member], &wf_chain_sequences[0], 1, WF_F32, &t);
        wf_layout *layout = layout_of(CONTIGUOUS, P);
        t.by = ways[w];
        t.by.layout = layout;
        t.forward = got[0], t.all = got[1];
        for (int r = 0; r < P; r++) got[0][r].messages = -1;
        wf_chain_trial_run(&t, P);
        if (blocks > most) blocks = most;
        if (blocks == 3 && k < 2) blocks = G; /* two heads share a key: 1, 2 or 4 blocks */
        for (int r = 0; r < P; r++) {
          if (got[0][r].messages < 0) continue; /* another process */
          wf_comm_counts n = {0};
          int64_t a = LANES * cases[k].a * 4, b = LANES * cases[k].b * 4;
          expected(ways[w].transport, r, P, blocks, a, b, &n);
          same_counts(&got[0][r], &n, "forward", w, r, P);
          expected(ways[w].transport, P - 1 - r, P, blocks, a, b, &n);
          same_counts(&got[1][r], &n, "with the backward", w, r, P);
        }
        wf_chain_trial_free(&t);
        wf_layout_free(layout);
      }
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("chain");
  TCase *t = tcase_create("chain");
  tcase_set_timeout(t, 300);
  tcase_add_loop_test(t, every_member, 0, MEMBERS * SIZES);
  tcase_add_loop_test(t, in_float, 0, MEMBERS);
  tcase_add_loop_test(t, through_the_cut, 0, MEMBERS);
  tcase_add_test(t, counts);
  suite_add_tcase(s, t);
  return s;
}

WF_RANKS_MAIN(suite)
