/* The sequences of a token store: packed, one document each, or lanes that carry their state. */
#include "data/sequences.h"

#include <string.h>
#include "core/memory.h"

typedef struct stream {
  wf_sequences base;
  const wf_store *store;
  const wf_split *split;
  wf_stream_options o;
  int64_t *first_piece; /* unpacked: [documents + 1], pieces before each document */
  int32_t *ids;         /* [max_tokens + 1] */
  wf_rng_key order, start;
} stream;

wf_status wf_fill_row(wf_fill *f, wf_row row) {
  WF_TRY(wf_grow("batch", (void **)&f->rows, sizeof *f->rows, (size_t)f->n_rows, &f->rows_capacity));
  row.begin = f->n_tokens - row.len;
  row.lane = f->lane;
  f->rows[f->n_rows++] = row;
  return WF_OK;
}

int64_t wf_permute(wf_rng_key key, int64_t epoch, int64_t i, int64_t n) {
  enum { ROUNDS = 6 };
  unsigned half = 1;
  while (half < 31 && ((uint64_t)1 << 2 * half) < (uint64_t)n) half++;
  uint32_t mask = (uint32_t)(((uint64_t)1 << half) - 1);
  uint64_t x = (uint64_t)i;
  do {
    uint32_t left = (uint32_t)(x >> half), right = (uint32_t)x & mask;
    for (uint32_t r = 0; r < ROUNDS; r++) {
      uint32_t word[4];
      wf_rng_draw(key, (uint32_t)epoch, (uint32_t)((uint64_t)epoch >> 32), r, right, word);
      uint32_t next = left ^ (word[0] & mask);
      left = right;
      right = next;
    }
    x = (uint64_t)left << half | right;
  } while (x >= (uint64_t)n);
  return (int64_t)x;
}

/* The last of n rising values that is at most x: which document holds token x. */
static int64_t last_at_most(const int64_t *values, int64_t n, int64_t x) {
  int64_t low = 0, high = n;
  while (high - low > 1) {
    int64_t middle = low + (high - low) / 2;
    if (values[middle] <= x)
      low = middle;
    else
      high = middle;
  }
  return low;
}

/* How the first and last row of a span hang together with other spans of their lane. */
typedef struct joints {
  int64_t place;  /* of the span in the lane's sequence */
  int64_t before; /* tokens directly before the span whose state it may take; 0: starts fresh */
  bool after;     /* its state may be left for more */
  int64_t seq;
} joints;

/* Append tokens [first, first + count) of the split, which does not go round its end. */
static wf_status add_span(stream *s, int64_t first, int64_t count, const joints *j, wf_fill *f) {
  const wf_split *p = s->split;
  bool more = first + count < p->tokens; /* then the last token's label is read along */
  WF_TRY(wf_store_read(s->store, p, first, count + more, s->ids));
  memcpy(f->inputs + f->n_tokens, s->ids, (size_t)count * sizeof *s->ids);
  int64_t document = last_at_most(p->offsets, p->documents, first);
  for (int64_t at = first; at < first + count; document++) {
    int64_t begin = p->offsets[document], end = p->offsets[document + 1];
    int64_t to = end < first + count ? end : first + count, len = to - at;
    memcpy(f->labels + f->n_tokens, s->ids + (at - first) + 1,
           (size_t)(to < end ? len : len - 1) * sizeof *s->ids);
    if (to == end) f->labels[f->n_tokens + len - 1] = -1;
    f->n_tokens += len;
    int64_t known = at - begin < j->before ? at - begin : j->before;
    bool takes = at == first && known > 0, leaves = to < end && j->after;
    WF_TRY(wf_fill_row(f, (wf_row){.len = len,
                                   .pos = takes ? known : 0,
                                   .place = j->place + at - first,
                                   .flags = (takes ? WF_ROW_TAKES : 0) | (leaves ? WF_ROW_LEAVES : 0),
                                   .seq = j->seq}));
    at = to;
  }
  return WF_OK;
}

/* Tokens [from, to) of the stream that starts at the epoch's token and goes round. `lane` is where the lane's
 * part of the stream begins, and `lane_end` where it ends. */
static wf_status add_stretch(stream *s, int64_t epoch, int64_t from, int64_t to, int64_t lane,
                             int64_t lane_end, int64_t seq, wf_fill *f) {
  int64_t n = s->split->tokens;
  int64_t start = s->o.shuffle ? (int64_t)wf_rng_below(s->start, (uint64_t)epoch, (uint64_t)n) : 0;
  int64_t first = (int64_t)(((uint64_t)from + (uint64_t)start) % (uint64_t)n), count = to - from;
  int64_t head = count < n - first ? count : n - first;
  /* Where the stream goes round, one document ends and another starts, so nothing is carried over. */
  joints j = {
      .place = from - lane, .before = from - lane, .after = to < lane_end && head == count, .seq = seq};
  WF_TRY(add_span(s, first, head, &j, f));
  if (head == count) return WF_OK;
  j = (joints){.place = from - lane + head, .after = to < lane_end, .seq = seq};
  WF_TRY(add_span(s, 0, count - head, &j, f));
  return WF_OK;
}

static wf_status fill_packed(wf_sequences *base, int64_t number, wf_fill *f) {
  stream *s = (stream *)base;
  int64_t epoch = number / base->per_epoch, i = number % base->per_epoch, n = s->split->tokens;
  if (s->o.shuffle) i = wf_permute(s->order, epoch, i, base->per_epoch);
  int64_t from = i * s->o.seq_len, to = n - from < s->o.seq_len ? n : from + s->o.seq_len;
  WF_TRY(add_stretch(s, epoch, from, to, from, to, number, f));
  return WF_OK;
}

static wf_status fill_document(wf_sequences *base, int64_t number, wf_fill *f) {
  stream *s = (stream *)base;
  const wf_split *p = s->split;
  int64_t epoch = number / base->per_epoch, i = number % base->per_epoch;
  if (s->o.shuffle) i = wf_permute(s->order, epoch, i, base->per_epoch);
  int64_t document = last_at_most(s->first_piece, p->documents, i), end = p->offsets[document + 1];
  int64_t from = p->offsets[document] + (i - s->first_piece[document]) * s->o.seq_len;
  joints j = {.seq = number};
  WF_TRY(add_span(s, from, end - from < s->o.seq_len ? end - from : s->o.seq_len, &j, f));
  return WF_OK;
}

/* Where lane `lane` of the stream begins: n * lane / lanes without overflow. */
static int64_t lane_start(int64_t n, int64_t lanes, int64_t lane) {
  int64_t extra = n % lanes;
  return n / lanes * lane + (lane < extra ? lane : extra);
}

static wf_status fill_carried(wf_sequences *base, int64_t number, wf_fill *f) {
  stream *s = (stream *)base;
  int64_t epoch = number / base->per_epoch, i = number % base->per_epoch;
  int64_t lane = i % s->o.lanes, step = i / s->o.lanes;
  int64_t begin = lane_start(s->split->tokens, s->o.lanes, lane),
          end = lane_start(s->split->tokens, s->o.lanes, lane + 1);
  int64_t from = begin + step * s->o.seq_len;
  if (from >= end) return WF_OK; /* this lane is one piece shorter */
  int64_t to = end - from < s->o.seq_len ? end : from + s->o.seq_len;
  WF_TRY(add_stretch(s, epoch, from, to, begin, end, epoch * s->o.lanes + lane, f));
  return WF_OK;
}

static void stream_free(wf_sequences *base) {
  stream *s = (stream *)base;
  wf_free(s->first_piece);
  wf_free(s->ids);
  wf_free(s);
}

static int64_t pieces(int64_t tokens, int64_t seq_len) {
  return (tokens - 1) / seq_len + 1;
}

static wf_status count_pieces(stream *s) {
  const wf_split *p = s->split;
  WF_CALLOC(s->first_piece, "batch", p->documents + 1);
  for (int64_t d = 0; d < p->documents; d++)
    s->first_piece[d + 1] = s->first_piece[d] + pieces(p->offsets[d + 1] - p->offsets[d], s->o.seq_len);
  s->base.per_epoch = s->first_piece[p->documents];
  return WF_OK;
}

static int64_t longest_document(const wf_split *p) {
  int64_t most = 0;
  for (int64_t d = 0; d < p->documents; d++)
    if (p->offsets[d + 1] - p->offsets[d] > most) most = p->offsets[d + 1] - p->offsets[d];
  return most;
}

static wf_status set_up(stream *s) {
  int64_t n = s->split->tokens, seq_len = s->o.seq_len, most = n;
  if (s->o.carry) {
    s->base.group = s->o.lanes;
    s->base.per_epoch = pieces(lane_start(n, s->o.lanes, 1), seq_len) * s->o.lanes;
    s->base.fill = fill_carried;
  } else if (s->o.pack) {
    s->base.per_epoch = pieces(n, seq_len);
    s->base.fill = fill_packed;
  } else {
    WF_TRY(count_pieces(s));
    most = longest_document(s->split);
    s->base.fill = fill_document;
  }
  s->base.max_tokens = most < seq_len ? most : seq_len;
  WF_CALLOC(s->ids, "batch", s->base.max_tokens + 1);
  s->order = wf_rng_key_make(s->o.seed, "shuffle", "order");
  s->start = wf_rng_key_make(s->o.seed, "shuffle", "start");
  return WF_OK;
}

wf_status wf_sequences_store(const wf_store *store, int split, const wf_stream_options *o,
                             wf_sequences **out) {
  const wf_split *p;
  WF_TRY(wf_store_split(store, split, &p));
  if (o->seq_len < 1) return WF_FAIL(WF_EINVAL, "the sequence length is %lld", (long long)o->seq_len);
  if (o->carry && !o->pack)
    return wf_hint(WF_FAIL(WF_EINVAL, "state can only be carried between packed sequences"),
                   "set data.pack to true, or train.carry_state to false");
  if (o->carry && (o->lanes < 1 || o->lanes > p->tokens))
    return WF_FAIL(WF_EINVAL, "%lld lanes of carried state for %lld tokens", (long long)o->lanes,
                   (long long)p->tokens);
  stream *s;
  WF_CALLOC(s, "batch", 1);
  *s = (stream){.base.free = stream_free, .store = store, .split = p, .o = *o};
  wf_status status = set_up(s);
  if (status != WF_OK) {
    stream_free(&s->base);
    return wf_frame_at(__FILE__, __LINE__, __func__, status);
  }
  *out = &s->base;
  return WF_OK;
}
