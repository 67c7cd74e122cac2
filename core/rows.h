/* rows: how the tokens of a batch lie in their sequences.
 *
 * Activations are [n_tokens, d]. A row is a run of consecutive tokens of one document, on one rank, in one
 * piece; no chunk, convolution window or attention block crosses a row, so no kernel knows what a reset is.
 * Twelve sequences are twelve rows; a packed sequence is a row for each document; decoding is rows of one
 * token.
 *
 * State tensors are [n_lanes, ...]. A lane is the slot of one sequence; within a call at most one row with
 * WF_ROW_TAKES and one with WF_ROW_LEAVES name the same lane, and rows of a lane come in the order of their
 * tokens.
 */
#ifndef WF_CORE_ROWS_H
#define WF_CORE_ROWS_H

#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  WF_ROW_TAKES = 1, /* continues the state of its lane; otherwise starts from the layer's initial state */
  WF_ROW_LEAVES = 2 /* leaves its final state in its lane; otherwise drops it */
};

/* What a run of rows does to the state of one lane. */
typedef enum wf_link {
  WF_LINK_PASS, /* no row leaves one: it stays as it was */
  WF_LINK_SET,  /* a row that began fresh leaves one: what was before is forgotten */
  WF_LINK_CHAIN /* one row takes it and leaves it */
} wf_link;

typedef struct wf_row {
  int64_t begin; /* its first token among the n_tokens of the call */
  int64_t len;   /* tokens; at least 1 */
  int64_t pos;   /* position of its first token in the document */
  int64_t lane;  /* 0 .. n_lanes-1 */
  int64_t place; /* position of its first token in the lane's sequence (documents before it counted) */
  int64_t flags; /* WF_ROW_TAKES | WF_ROW_LEAVES */
  int64_t seq; /* global number of the lane's sequence, for random numbers: the same on any number of ranks */
} wf_row;

/* The columns of the table tensor are the fields of wf_row in their order. */
enum { WF_ROW_COLS = 7 };

typedef struct wf_carrier wf_carrier; /* core/op.h */

typedef struct wf_rows {
  int64_t n, n_tokens, n_lanes;
  wf_row *row;      /* [n], by begin; rows tile 0 .. n_tokens-1 */
  wf_tensor *table; /* [n, WF_ROW_COLS] i64 on the device */
  wf_tensor *pos;   /* [n_tokens] i64: position of each token in its document */
  wf_tensor *index; /* [n_tokens] i32: the same, for tables of learned positions */
  wf_tensor *key;   /* [n_tokens, 2] i64: sequence number and place in the sequence, for random numbers */
  bool fresh;       /* no row takes and no row leaves state */
  const wf_carrier
      *carrier; /* NULL, or who brings what rows take from elsewhere, and takes what they leave */
} wf_rows;

/* Validates and copies `row`; tensors are made in `c` and belong to the rows, not to a scope.
 * Errors: WF_EINVAL naming the first row that does not tile, or names a lane twice. */
wf_status wf_rows_create(wf_ctx *c, int64_t n, const wf_row *row, int64_t n_lanes, wf_rows **out);
void wf_rows_free(wf_rows *r);

/* The part of row `r` whose places lie in [begin, end): its tokens, position, place and flags, `begin` and
 * all else as in r. A cut hands the state over: what precedes leaves, what follows takes. -> tokens of r
 * before it, or -1 where r has none there. */
int64_t wf_row_cut(const wf_row *r, int64_t begin, int64_t end, wf_row *out);
/* start[n_lanes] receives the first place of each lane (INT64_MAX for a lane without rows), *longest the
 * tokens from there to the end of the longest lane. Errors: WF_EINVAL for a lane out of range. */
wf_status wf_row_extent(int64_t n, const wf_row *row, int64_t n_lanes, int64_t *start, int64_t *longest);

/* `n_seq` fresh sequences of `len` tokens each: lane i is sequence first_seq + i. */
wf_status wf_rows_fresh(wf_ctx *c, int64_t n_seq, int64_t len, int64_t first_seq, wf_rows **out);

#ifdef __cplusplus
}
#endif

#endif
