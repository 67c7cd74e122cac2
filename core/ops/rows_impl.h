/* What the kernels over rows share: reading the table, and tokens of any inner shape. */
#ifndef WF_CORE_OPS_ROWS_IMPL_H
#define WF_CORE_OPS_ROWS_IMPL_H

#include "core/op_def.h"

#ifdef WF_KERNEL_PASS
#  include <string.h>

/* Rows must tile n tokens and name lanes below `lanes`. */
static inline wf_status wf_rows_read(const char *op, const wf_tensor *table, int64_t n, int64_t lanes,
                                     const wf_row **out) {
  const wf_row *row = wf_data(table);
  int64_t at = 0;
  for (int64_t r = 0; r < table->shape[0]; r++) {
    if (row[r].begin != at || row[r].len < 1 || row[r].len > n - at || row[r].lane < 0 ||
        row[r].lane >= lanes)
      return WF_FAIL(WF_EINVAL, "%s: row %lld (begin %lld, len %lld, lane %lld) of %lld tokens, %lld lanes",
                     op, (long long)r, (long long)row[r].begin, (long long)row[r].len, (long long)row[r].lane,
                     (long long)n, (long long)lanes);
    at += row[r].len;
  }
  if (at != n)
    return WF_FAIL(WF_EINVAL, "%s: the rows have %lld tokens of %lld", op, (long long)at, (long long)n);
  *out = row;
  return WF_OK;
}

static inline bool wf_row_takes(const wf_row *r) {
  return r->flags & WF_ROW_TAKES;
}
static inline bool wf_row_leaves(const wf_row *r) {
  return r->flags & WF_ROW_LEAVES;
}

/* Is lane `lane` left by some row? */
static inline bool wf_lane_left(const wf_row *row, int64_t n, int64_t lane) {
  for (int64_t r = 0; r < n; r++)
    if (row[r].lane == lane && wf_row_leaves(&row[r])) return true;
  return false;
}

/* Lanes that none of n rows leaves keep their state of `size` elements, or hand its gradient back; the others
 * become 0. `from` NULL: zeros. */
static inline void wf_keep_lanes(const wf_row *row, int64_t n, int64_t lanes, int64_t size, const real *from,
                                 real *to, bool add) {
  for (int64_t l = 0; l < lanes; l++) {
    bool copy = from && !wf_lane_left(row, n, l);
    if (!copy && !add) memset(to + l * size, 0, (size_t)size * sizeof *to);
    for (int64_t i = l * size; i < (l + 1) * size && copy; i++) to[i] = from[i] + (add ? to[i] : 0);
  }
}

#endif

/* A tensor [..., heads.., width] whose first `lead` dimensions find a token: a token is `lines` lines of
 * `width` adjacent elements, the l-th at wf_line_at from the token's first. */
static inline int64_t wf_token_lines(const wf_tensor *t, int lead, int64_t *width) {
  int64_t lines = 1;
  *width = t->ndim > lead ? t->shape[t->ndim - 1] : 1;
  for (int d = lead; d < t->ndim - 1; d++) lines *= t->shape[d];
  return lines;
}
static inline int64_t wf_line_at(const wf_tensor *t, int lead, int64_t line) {
  int64_t at = 0;
  for (int d = t->ndim - 2; d >= lead; d--) {
    at += line % t->shape[d] * t->stride[d];
    line /= t->shape[d];
  }
  return at;
}

/* For samples, the table of three rows of 4, 3 and 1 tokens over three lanes, which take and leave lanes in
 * every way; `fresh`: they do neither; `none`: no row. */
static inline wf_tensor *wf_sample_rows(wf_sample *s, bool fresh, bool none) {
  wf_row row[3] = {{.begin = 0, .len = 4, .lane = 2, .pos = 4, .place = 4, .flags = 3},
                   {.begin = 4, .len = 3, .lane = 0, .flags = WF_ROW_LEAVES},
                   {.begin = 7, .len = 1, .lane = 0, .pos = 1, .place = 1, .flags = WF_ROW_TAKES}};
  for (int i = 0; i < 3 && fresh; i++) row[i].flags = 0;
  return wf_from_host(s->ctx, "sample", WF_I64, WF_SHAPE(none ? 0 : 3, WF_ROW_COLS), row);
}

/* A state is missing only where no row takes one. */
static inline wf_status wf_state_given(const char *op, const wf_tensor *state, const wf_rows *rows) {
  for (int64_t r = 0; !state && r < rows->n; r++)
    if (rows->row[r].flags & WF_ROW_TAKES)
      return WF_FAIL(WF_EINVAL, "%s: row %lld takes a state and none is given", op, (long long)r);
  return WF_OK;
}

#endif
