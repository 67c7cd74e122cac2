/* The loader: every token once, exact resumption on any number of ranks, carried lanes, the thread. */
#define _GNU_SOURCE
#include <time.h>
#include "core/memory.h"
#include "data/loader.h"
#include "tests/check_main.h"
#include "tests/data/temporary.h"

/* A store of documents with the given lengths. Its token number p, counted through the whole text, has the id
 * p + 1, so an id says where it came from: the text is the code points U+0100, U+0101, ... for the chars
 * tokenizer. */
static int64_t n_tokens, n_documents, starts[4000];

static wf_store *make_store(const int *lengths, int n) {
  FILE *f = fopen(temporary_path("in.jsonl"), "wb");
  n_tokens = n_documents = 0;
  for (int d = 0; d < n; d++) {
    if (lengths[d]) starts[n_documents++] = n_tokens;
    fprintf(f, "{\"text\":\"");
    for (int i = 0; i < lengths[d]; i++) fprintf(f, "\\u%04x", 0x100 + (unsigned)n_tokens++);
    fprintf(f, "\"}\n");
  }
  fclose(f);
  starts[n_documents] = n_tokens;
  wf_store_options o;
  wf_store *s;
  ck_assert_int_eq(wf_options_defaults(wf_store_option_table, &o), WF_OK);
  ck_assert_int_eq(wf_options_set(wf_store_option_table, &o, "validation", "0"), WF_OK);
  ck_assert_int_eq(wf_options_set(wf_store_option_table, &o, "tokenizer", "chars"), WF_OK);
  ck_assert_int_eq(wf_options_set(wf_store_option_table, &o, "output", temporary_path("s.h5")), WF_OK);
  wf_store_input in = {temporary_path("in.jsonl"), -1};
  ck_assert_msg(wf_store_build(&o, &in, 1, NULL, NULL, NULL) == WF_OK, "%s", wf_error_message());
  wf_options_free(wf_store_option_table, &o);
  ck_assert_int_eq(wf_store_open(temporary_path("s.h5"), &s), WF_OK);
  return s;
}

static wf_store *odd_store(void) {
  static const int lengths[] = {1, 1, 5, 0, 64, 63, 65, 100, 1000, 1, 2, 0, 0, 7, 1};
  return make_store(lengths, sizeof lengths / sizeof *lengths);
}

static bool ends_document(int64_t p) {
  for (int64_t d = 1; d <= n_documents; d++)
    if (starts[d] == p + 1) return true;
  return false;
}

static bool starts_document(int64_t p) {
  for (int64_t d = 0; d < n_documents; d++)
    if (starts[d] == p) return true;
  return false;
}

static wf_loader *open_loader(const wf_store *s, wf_stream_options stream, wf_loader_options o) {
  wf_sequences *source;
  wf_loader *l;
  if (stream.carry) stream.lanes = o.batch;
  ck_assert_msg(wf_sequences_store(s, WF_TRAIN, &stream, &source) == WF_OK, "%s", wf_error_message());
  ck_assert_msg(wf_loader_open(source, &o, &l) == WF_OK, "%s", wf_error_message());
  return l;
}

static const wf_batch *next(wf_loader *l) {
  const wf_batch *b;
  ck_assert_msg(wf_loader_next(l, &b) == WF_OK, "%s", wf_error_message());
  return b;
}

/* Rows tile the batch, none crosses a document, and labels are the next tokens of the document. */
static void check_batch(const wf_batch *b, int64_t seq_len) {
  int64_t at = 0, n_labels = 0, in_lane = 0;
  for (int64_t i = 0; i < b->n_rows; i++) {
    const wf_row *r = &b->rows[i];
    ck_assert_int_eq(r->begin, at);
    ck_assert_int_ge(r->len, 1);
    ck_assert(r->lane >= 0 && r->lane < b->n_lanes);
    bool same_lane = i > 0 && r->lane == r[-1].lane;
    if (i > 0) ck_assert_int_ge(r->lane, r[-1].lane);
    if (same_lane) {
      ck_assert_int_eq(r->place, r[-1].place + r[-1].len);
      ck_assert_int_eq(r->seq, r[-1].seq);
    }
    in_lane = r->len + (same_lane ? in_lane : 0);
    ck_assert_int_le(in_lane, seq_len);
    at += r->len;
    for (int64_t t = r->begin; t < at; t++) {
      int64_t p = b->inputs[t] - 1;
      ck_assert_int_eq(b->labels[t], ends_document(p) ? -1 : p + 2);
      if (t > r->begin) ck_assert_int_eq(b->inputs[t], b->inputs[t - 1] + 1);
      if (t > r->begin) ck_assert(!starts_document(p));
      n_labels += b->labels[t] >= 0;
    }
  }
  ck_assert_int_eq(at, b->n_tokens);
  ck_assert_int_eq(n_labels, b->n_labels);
}

static const int64_t lengths[] = {1, 7, 63, 64, 100, 5000};

START_TEST(every_token_once) {
  temporary_make();
  wf_store *s = odd_store();
  int *seen = malloc((size_t)n_tokens * sizeof *seen);
  for (int k = 0; k < 6 * 4; k++) {
    wf_stream_options o = {.seq_len = lengths[k % 6], .pack = k / 6 % 2, .shuffle = k / 12, .seed = 3};
    wf_loader *l = open_loader(s, o, (wf_loader_options){.batch = 1, .ahead = k % 3});
    int64_t first_of_epoch[3];
    for (int epoch = 0; epoch < 3; epoch++) {
      memset(seen, 0, (size_t)n_tokens * sizeof *seen);
      for (int64_t i = 0; i < wf_loader_per_epoch(l); i++) {
        const wf_batch *b = next(l);
        check_batch(b, o.seq_len);
        ck_assert_int_eq(b->epoch, epoch);
        ck_assert_int_eq(b->rows[0].seq, b->cursor - 1);
        if (i == 0) first_of_epoch[epoch] = b->inputs[0];
        for (int64_t t = 0; t < b->n_tokens; t++) seen[b->inputs[t] - 1]++;
        for (int64_t r = 0; r < b->n_rows; r++) {
          ck_assert_int_eq(b->rows[r].pos, 0);
          ck_assert_int_eq(b->rows[r].flags, 0);
        }
        if (!o.pack) ck_assert_int_eq(b->n_rows, 1);
      }
      for (int64_t p = 0; p < n_tokens; p++) ck_assert_int_eq(seen[p], 1);
    }
    if (!o.shuffle) ck_assert(first_of_epoch[0] == 1 && first_of_epoch[1] == 1 && first_of_epoch[2] == 1);
    if (o.shuffle && o.pack)
      ck_assert(first_of_epoch[0] != first_of_epoch[1] || first_of_epoch[1] != first_of_epoch[2]);
    wf_loader_close(l);
  }
  free(seen);
  wf_store_close(s);
  temporary_remove();
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* One batch on one rank against the parts of several ranks, put together. */
static void check_parts(const wf_batch *whole, const wf_batch *const *parts, int n) {
  int64_t tokens = 0, rows = 0, lanes = 0;
  for (int r = 0; r < n; r++) {
    const wf_batch *p = parts[r];
    ck_assert_int_eq(p->cursor, whole->cursor);
    ck_assert_int_eq(p->n_sequences, whole->n_sequences);
    for (int64_t t = 0; t < p->n_tokens; t++) {
      ck_assert_int_eq(p->inputs[t], whole->inputs[tokens + t]);
      ck_assert_int_eq(p->labels[t], whole->labels[tokens + t]);
    }
    for (int64_t i = 0; i < p->n_rows; i++) {
      wf_row row = p->rows[i];
      row.begin += tokens;
      row.lane += lanes;
      ck_assert_int_eq(memcmp(&row, &whole->rows[rows + i], sizeof row), 0);
    }
    tokens += p->n_tokens, rows += p->n_rows, lanes += p->n_lanes;
  }
  ck_assert_int_eq(tokens, whole->n_tokens);
  ck_assert_int_eq(rows, whole->n_rows);
  ck_assert_int_eq(lanes, whole->n_lanes);
}

START_TEST(resumes_on_any_ranks) {
  temporary_make();
  wf_store *s = odd_store();
  for (int mode = 0; mode < 4; mode++) {
    wf_stream_options o = {
        .seq_len = 60, .pack = mode > 0, .carry = mode == 2, .shuffle = mode < 3, .seed = 11};
    for (int ranks = 1; ranks <= 3; ranks++) {
      enum { BATCH = 5, STEPS = 40 };
      wf_loader *one = open_loader(s, o, (wf_loader_options){.batch = BATCH, .ahead = 2}), *parts[3];
      for (int step = 0; step < STEPS; step++) {
        if (step % 13 == 0) { /* everybody is stopped and starts again from the cursor */
          for (int r = 0; step > 0 && r < ranks; r++) wf_loader_close(parts[r]);
          for (int r = 0; r < ranks; r++)
            parts[r] = open_loader(s, o,
                                   (wf_loader_options){.batch = BATCH,
                                                       .rank = r,
                                                       .n_ranks = ranks,
                                                       .cursor = wf_loader_cursor(one),
                                                       .ahead = r});
        }
        const wf_batch *whole = next(one), *part[3];
        check_batch(whole, o.seq_len);
        ck_assert_int_eq(whole->cursor, (step + 1) * BATCH);
        for (int r = 0; r < ranks; r++) part[r] = next(parts[r]);
        check_parts(whole, part, ranks);
      }
      for (int r = 0; r < ranks; r++) wf_loader_close(parts[r]);
      wf_loader_close(one);
    }
  }
  wf_store_close(s);
  temporary_remove();
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

/* Each lane is one long stream: state is taken exactly where the step before left it, and the position goes
 * on. */
START_TEST(carried_lanes) {
  temporary_make();
  wf_store *s = odd_store();
  int *seen = malloc((size_t)n_tokens * sizeof *seen);
  for (int k = 0; k < 12; k++) {
    int64_t lanes = (int64_t[]){1, 4, 7}[k % 3];
    wf_stream_options o = {
        .seq_len = (int64_t[]){1, 50}[k / 3 % 2], .pack = true, .carry = true, .shuffle = k / 6, .seed = 5};
    wf_loader *l = open_loader(s, o, (wf_loader_options){.batch = lanes, .ahead = 1});
    int64_t last_id[7], last_pos[7], carried = 0;
    bool left[7];
    for (int epoch = 0; epoch < 2; epoch++) {
      memset(seen, 0, (size_t)n_tokens * sizeof *seen);
      memset(left, 0, sizeof left);
      for (int64_t i = 0; i < wf_loader_per_epoch(l); i += lanes) {
        const wf_batch *b = next(l);
        check_batch(b, o.seq_len);
        ck_assert_int_eq(b->epoch, epoch);
        for (int64_t t = 0; t < b->n_tokens; t++) seen[b->inputs[t] - 1]++;
        for (int64_t r = 0; r < b->n_rows; r++) {
          const wf_row *row = &b->rows[r];
          bool first = r == 0 || row->lane != row[-1].lane;
          bool last = r + 1 == b->n_rows || row->lane != row[1].lane;
          bool takes = row->flags & WF_ROW_TAKES, leaves = row->flags & WF_ROW_LEAVES;
          ck_assert(!takes || first);
          ck_assert(!leaves || last);
          if (first) ck_assert_int_eq(takes, left[row->lane]);
          if (takes) {
            ck_assert_int_eq(b->inputs[row->begin], last_id[row->lane] + 1);
            ck_assert_int_eq(row->pos, last_pos[row->lane] + 1);
            carried++;
          } else {
            ck_assert_int_eq(row->pos, 0);
          }
          left[row->lane] = leaves;
          last_id[row->lane] = b->inputs[row->begin + row->len - 1];
          last_pos[row->lane] = row->pos + row->len - 1;
        }
      }
      for (int64_t lane = 0; lane < lanes; lane++) ck_assert(!left[lane]);
      for (int64_t p = 0; p < n_tokens; p++) ck_assert_int_eq(seen[p], 1);
    }
    ck_assert_int_gt(carried, 10);
    wf_loader_close(l);
  }
  free(seen);
  wf_store_close(s);
  temporary_remove();
}
END_TEST

START_TEST(one_pass) {
  temporary_make();
  wf_store *s = odd_store();
  for (int ranks = 1; ranks <= 3; ranks++) {
    wf_stream_options o = {.seq_len = 100, .pack = true};
    wf_loader *l[3];
    for (int r = 0; r < ranks; r++)
      l[r] = open_loader(
          s, o, (wf_loader_options){.batch = 4, .rank = r, .n_ranks = ranks, .once = true, .ahead = 2});
    int64_t id = 1, sequences = 0;
    for (;;) {
      const wf_batch *b = NULL;
      for (int r = 0; r < ranks; r++) {
        b = next(l[r]);
        if (!b) continue;
        for (int64_t t = 0; t < b->n_tokens; t++) ck_assert_int_eq(b->inputs[t], id++);
      }
      if (!b) break;
      sequences += b->n_sequences;
      ck_assert_int_eq(b->cursor, sequences);
    }
    ck_assert_int_eq(id - 1, n_tokens);
    ck_assert_int_eq(sequences, wf_loader_per_epoch(l[0]));
    ck_assert_ptr_null(next(l[0])); /* and it stays at the end */
    for (int r = 0; r < ranks; r++) wf_loader_close(l[r]);
  }
  wf_store_close(s);
  temporary_remove();
}
END_TEST

START_TEST(tiny_splits) {
  temporary_make();
  wf_store *s = make_store((const int[]){1}, 1);
  wf_loader *l = open_loader(s, (wf_stream_options){.seq_len = 8, .pack = true, .shuffle = true},
                             (wf_loader_options){.batch = 3});
  const wf_batch *b = next(l);
  ck_assert_int_eq(b->n_tokens, 3);
  ck_assert_int_eq(b->n_labels, 0);
  ck_assert_int_eq(b->labels[0], -1);
  wf_loader_close(l);
  wf_store_close(s);
  temporary_remove();
}
END_TEST

START_TEST(permutations) {
  wf_rng_key key = wf_rng_key_make(1, "shuffle", "order");
  enum { MOST = 3000 };
  static char hit[MOST];
  for (int64_t n = 1; n < MOST; n = n < 70 ? n + 1 : n * 3 / 2) {
    int same = 0;
    memset(hit, 0, sizeof hit);
    for (int64_t i = 0; i < n; i++) {
      int64_t to = wf_permute(key, 4, i, n);
      ck_assert(to >= 0 && to < n && !hit[to]);
      hit[to] = 1;
      same += to == wf_permute(key, 5, i, n);
    }
    if (n > 20) ck_assert_int_lt(same, n / 2);
  }
  int64_t big = INT64_C(1) << 40, a = wf_permute(key, 0, 12345, big), b = wf_permute(key, 0, 12346, big);
  ck_assert(a >= 0 && a < big && b >= 0 && b < big && a != b);
}
END_TEST

/* A source that is slow and breaks at a known sequence. */
typedef struct breaking {
  wf_sequences base;
  int64_t at, sleep_ms;
} breaking;

static wf_status breaking_fill(wf_sequences *s, int64_t number, wf_fill *f) {
  breaking *b = (breaking *)s;
  struct timespec t = {0, b->sleep_ms * 1000000};
  nanosleep(&t, NULL);
  if (number == b->at) return wf_hint(WF_FAIL(WF_EIO, "sequence %lld broke", (long long)number), "mend it");
  f->inputs[f->n_tokens] = (int32_t)number;
  f->labels[f->n_tokens++] = -1;
  return wf_fill_row(f, (wf_row){.len = 1, .seq = number});
}

static void breaking_free(wf_sequences *s) {
  wf_free(s);
}

static wf_sequences *break_at(int64_t at, int64_t sleep_ms) {
  breaking *b = wf_calloc("test", 1, sizeof *b);
  *b = (breaking){{.max_tokens = 1, .fill = breaking_fill, .free = breaking_free}, at, sleep_ms};
  return &b->base;
}

START_TEST(errors_come_at_their_batch) {
  for (int ahead = 0; ahead < 4; ahead++) {
    wf_loader *l;
    wf_loader_options o = {.batch = 2, .ahead = ahead};
    ck_assert_int_eq(wf_loader_open(break_at(7, 0), &o, &l), WF_OK);
    for (int i = 0; i < 3; i++) ck_assert_int_eq(next(l)->inputs[0], 2 * i);
    const wf_batch *b;
    for (int twice = 0; twice < 2; twice++) {
      wf_error_clear();
      ck_assert_int_eq(wf_loader_next(l, &b), WF_EIO);
      ck_assert_ptr_null(b);
      ck_assert_str_eq(wf_error_message(), "sequence 7 broke");
      ck_assert_str_eq(wf_error_hint(), "mend it");
    }
    ck_assert_int_eq(wf_loader_cursor(l), 6);
    wf_loader_close(l);
  }
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

START_TEST(thread_works_ahead) {
  wf_loader *l;
  wf_loader_options o = {.batch = 1, .ahead = 4};
  ck_assert_int_eq(wf_loader_open(break_at(-1, 20), &o, &l), WF_OK);
  const wf_batch *first = next(l);
  ck_assert_int_eq(first->inputs[0], 0);
  ck_assert(wf_loader_waited(l) > 0.005);
  double waited = wf_loader_waited(l);
  struct timespec t = {0, 400000000};
  nanosleep(&t, NULL); /* four batches are made meanwhile, and the one in our hands stays */
  ck_assert_int_eq(first->inputs[0], 0);
  for (int i = 1; i <= 4; i++) ck_assert_int_eq(next(l)->inputs[0], i);
  ck_assert(wf_loader_waited(l) - waited < 0.06); /* made one by one they would take 0.08 s */
  wf_loader_close(l);
  /* Closed at once, with the thread in the middle of its work or waiting. */
  for (int i = 0; i < 20; i++) {
    ck_assert_int_eq(wf_loader_open(break_at(-1, i % 2), &o, &l), WF_OK);
    if (i % 3 == 0) next(l);
    wf_loader_close(l);
  }
  ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

START_TEST(impossible_options) {
  temporary_make();
  wf_store *s = odd_store();
  int64_t live = wf_mem_live();
  wf_sequences *q;
  wf_loader *l;
  static const wf_stream_options streams[] = {{.seq_len = 0, .pack = true},
                                              {.seq_len = 8, .carry = true, .lanes = 2},
                                              {.seq_len = 8, .pack = true, .carry = true},
                                              {.seq_len = 8, .pack = true, .carry = true, .lanes = 100000}};
  for (size_t i = 0; i < sizeof streams / sizeof *streams; i++)
    ck_assert_int_eq(wf_sequences_store(s, WF_TRAIN, &streams[i], &q), WF_EINVAL);
  wf_stream_options good = {.seq_len = 8, .pack = true};
  ck_assert_int_eq(wf_sequences_store(s, WF_VALIDATION, &good, &q), WF_ENOTFOUND);
  static const wf_loader_options loaders[] = {{.batch = 0},
                                              {.batch = 2, .rank = 1},
                                              {.batch = 2, .rank = -1, .n_ranks = 2},
                                              {.batch = 2, .cursor = -1},
                                              {.batch = 2, .ahead = -1}};
  for (size_t i = 0; i < sizeof loaders / sizeof *loaders; i++) {
    ck_assert_int_eq(wf_sequences_store(s, WF_TRAIN, &good, &q), WF_OK);
    ck_assert_int_eq(wf_loader_open(q, &loaders[i], &l), WF_EINVAL);
  }
  ck_assert_int_eq(wf_loader_open(break_at(-1, 0), &(wf_loader_options){.batch = 1, .once = true}, &l),
                   WF_EINVAL);
  good.carry = true;
  good.lanes = 4;
  ck_assert_int_eq(wf_sequences_store(s, WF_TRAIN, &good, &q), WF_OK);
  ck_assert_int_eq(wf_loader_open(q, &(wf_loader_options){.batch = 4, .cursor = 6}, &l), WF_EINVAL);
  ck_assert_int_eq(wf_mem_live(), live);
  wf_store_close(s);
  temporary_remove();
}
END_TEST

START_TEST(failing_allocations) {
  temporary_make();
  wf_store *s = odd_store();
  int64_t live = wf_mem_live();
  for (int mode = 0; mode < 4; mode++)
    for (int64_t n = 1;; n++) {
      ck_assert_int_lt(n, 1000);
      wf_stream_options o = {.seq_len = 30, .pack = mode % 2, .shuffle = true};
      wf_loader_options lo = {.batch = 3, .ahead = mode / 2};
      wf_sequences *q;
      wf_loader *l = NULL;
      const wf_batch *b;
      wf_mem_fail_at(n);
      wf_status status = wf_sequences_store(s, WF_TRAIN, &o, &q);
      if (status == WF_OK) status = wf_loader_open(q, &lo, &l);
      for (int i = 0; i < 30 && status == WF_OK; i++) status = wf_loader_next(l, &b);
      wf_loader_close(l);
      wf_mem_fail_at(0);
      ck_assert_int_eq(wf_mem_live(), live);
      if (status == WF_OK) break;
      ck_assert_msg(status == WF_ENOMEM, "%s", wf_error_message());
    }
  wf_store_close(s);
  temporary_remove();
}
END_TEST

static Suite *loader_suite(void) {
  Suite *s = suite_create("data/loader");
  TCase *c = tcase_create("loader");
  suite_add_tcase(s, c);
  tcase_add_test(c, every_token_once);
  tcase_add_test(c, resumes_on_any_ranks);
  tcase_add_test(c, carried_lanes);
  tcase_add_test(c, one_pass);
  tcase_add_test(c, tiny_splits);
  tcase_add_test(c, permutations);
  tcase_add_test(c, errors_come_at_their_batch);
  tcase_add_test(c, thread_works_ahead);
  tcase_add_test(c, impossible_options);
  tcase_add_test(c, failing_allocations);
  return s;
}

WF_CHECK_MAIN(loader_suite)
