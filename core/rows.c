/* Validation of rows and the tables the kernels read. */
#include "core/rows.h"
#include "core/memory.h"

#include <string.h>

static wf_status validate(int64_t n, const wf_row *row, int64_t n_lanes, unsigned char *seen,
                          int64_t *n_tokens) {
  int64_t at = 0;
  for (int64_t i = 0; i < n; i++) {
    const wf_row *r = &row[i];
    if (r->begin != at || r->len < 1)
      return WF_FAIL(WF_EINVAL,
                     "row %lld (begin %lld, len %lld) does not continue the rows before it at %lld",
                     (long long)i, (long long)r->begin, (long long)r->len, (long long)at);
    if (r->lane < 0 || r->lane >= n_lanes || r->pos < 0 || r->place < r->pos || r->flags & ~3)
      return WF_FAIL(WF_EINVAL, "row %lld: lane %lld of %lld, position %lld, place %lld, flags %lld",
                     (long long)i, (long long)r->lane, (long long)n_lanes, (long long)r->pos,
                     (long long)r->place, (long long)r->flags);
    if (seen[r->lane] & r->flags)
      return WF_FAIL(WF_EINVAL, "row %lld: another row uses the state of lane %lld the same way",
                     (long long)i, (long long)r->lane);
    seen[r->lane] |= (unsigned char)r->flags;
    at += r->len;
  }
  *n_tokens = at;
  return WF_OK;
}

static wf_status tables(wf_ctx *c, wf_rows *r) {
  int64_t *host;
  WF_CALLOC(host, "rows", r->n_tokens * 4 + 1);
  int64_t *pos = host, *key = host + r->n_tokens;
  int32_t *index = (int32_t *)(void *)(key + 2 * r->n_tokens);
  for (int64_t i = 0; i < r->n; i++)
    for (int64_t t = 0; t < r->row[i].len; t++) {
      int64_t at = r->row[i].begin + t;
      pos[at] = r->row[i].pos + t;
      index[at] = pos[at] > INT32_MAX ? INT32_MAX : (int32_t)pos[at]; /* no table is that long */
      key[2 * at] = r->row[i].seq;
      key[2 * at + 1] = r->row[i].place + t;
    }
  wf_scope s = wf_scope_open(c);
  r->table = wf_keep(wf_from_host(c, "rows", WF_I64, WF_SHAPE(r->n, WF_ROW_COLS), r->row));
  r->pos = wf_keep(wf_from_host(c, "rows", WF_I64, WF_SHAPE(r->n_tokens), pos));
  r->index = wf_keep(wf_from_host(c, "rows", WF_I32, WF_SHAPE(r->n_tokens), index));
  r->key = wf_keep(wf_from_host(c, "rows", WF_I64, WF_SHAPE(r->n_tokens, 2), key));
  wf_scope_close(c, s);
  wf_free(host);
  return wf_is_poison(r->table) || wf_is_poison(r->index) || wf_is_poison(r->pos) || wf_is_poison(r->key)
             ? wf_ctx_check(c)
             : WF_OK;
}

wf_status wf_rows_create(wf_ctx *c, int64_t n, const wf_row *row, int64_t n_lanes, wf_rows **out) {
  _Static_assert(sizeof(wf_row) == WF_ROW_COLS * sizeof(int64_t),
                 "the table's columns are the fields of wf_row");
  if (n < 0 || n_lanes < 0)
    return WF_FAIL(WF_EINVAL, "%lld rows, %lld lanes", (long long)n, (long long)n_lanes);
  unsigned char *seen;
  WF_CALLOC(seen, "rows", n_lanes + 1);
  wf_rows *r = NULL;
  int64_t n_tokens = 0;
  wf_status s;
  WF_TRY_GOTO(s, fail, validate(n, row, n_lanes, seen, &n_tokens));
  r = wf_calloc("rows", 1, sizeof *r);
  if (r) r->row = wf_alloc("rows", (size_t)n * sizeof *row);
  if (!r || !r->row) {
    s = WF_ENOMEM;
    goto fail;
  }
  if (n) memcpy(r->row, row, (size_t)n * sizeof *row);
  r->n = n;
  r->n_tokens = n_tokens;
  r->n_lanes = n_lanes;
  r->fresh = true;
  for (int64_t i = 0; i < n; i++) r->fresh &= row[i].flags == 0;
  WF_TRY_GOTO(s, fail, tables(c, r));
  wf_free(seen);
  *out = r;
  return WF_OK;
fail:
  wf_free(seen);
  wf_rows_free(r);
  return s;
}

void wf_rows_free(wf_rows *r) {
  if (!r) return;
  wf_drop(r->table);
  wf_drop(r->pos);
  wf_drop(r->index);
  wf_drop(r->key);
  wf_free(r->row);
  wf_free(r);
}

int64_t wf_row_cut(const wf_row *r, int64_t begin, int64_t end, wf_row *out) {
  int64_t from = begin > r->place ? begin - r->place : 0,
          to = end - r->place < r->len ? end - r->place : r->len;
  if (from >= to) return -1;
  *out = *r;
  if (from > 0) out->flags |= WF_ROW_TAKES;
  if (to < r->len) out->flags |= WF_ROW_LEAVES;
  out->pos += from;
  out->place += from;
  out->len = to - from;
  return from;
}

wf_status wf_row_extent(int64_t n, const wf_row *row, int64_t n_lanes, int64_t *start, int64_t *longest) {
  *longest = 0;
  for (int64_t i = 0; i < n_lanes; i++) start[i] = INT64_MAX;
  for (int64_t i = 0; i < n; i++) {
    if (row[i].lane < 0 || row[i].lane >= n_lanes)
      return WF_FAIL(WF_EINVAL, "row %lld: lane %lld of %lld", (long long)i, (long long)row[i].lane,
                     (long long)n_lanes);
    if (row[i].place < start[row[i].lane]) start[row[i].lane] = row[i].place;
  }
  for (int64_t i = 0; i < n; i++) {
    int64_t end = row[i].place + row[i].len - start[row[i].lane];
    if (end > *longest) *longest = end;
  }
  return WF_OK;
}

wf_status wf_rows_fresh(wf_ctx *c, int64_t n_seq, int64_t len, int64_t first_seq, wf_rows **out) {
  wf_row *row;
  WF_CALLOC(row, "rows", n_seq + 1);
  for (int64_t i = 0; i < n_seq; i++)
    row[i] = (wf_row){.begin = i * len, .len = len, .lane = i, .seq = first_seq + i};
  wf_status s = wf_rows_create(c, len ? n_seq : 0, row, n_seq, out);
  wf_free(row);
  return s;
}
