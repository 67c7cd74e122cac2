/* Cutting the rows of a piece into those of its segments. */
#include "dist/part.h"
#include "core/memory.h"
#include "dist/keys.h"
#include "dist/relayout.h"

#include <string.h>

void wf_part_free(wf_part *p) {
  if (!p) return;
  for (int k = 0; p->rows && k < p->n_own * p->n_groups; k++) wf_rows_free(p->rows[k]);
  wf_relayout_free(p);
  wf_free(p->whole);
  wf_free(p->own);
  wf_free(p->row);
  wf_free(p->first);
  wf_free(p->tokens);
  wf_free(p->link);
  wf_free(p->start);
  wf_free(p->rows);
  wf_keys_free(p);
  wf_free(p);
}

/* The rows of all segments. A lane has at most one row that takes and one that leaves in a segment; the row
 * that leaves is the last, so its own flags say what becomes of the state. */
static void cut(wf_part *p, int64_t n_rows, const wf_row *row) {
  const wf_layout *l = p->dist->layout;
  int64_t n = 0;
  for (int s = 0; s < p->n_segments; s++) {
    int64_t from = wf_layout_bound(l, p->length, s), to = wf_layout_bound(l, p->length, s + 1);
    p->first[s] = n;
    for (int64_t i = 0; i < n_rows; i++) {
      int64_t start = p->start[row[i].lane];
      wf_row *r = &p->row[n];
      if (wf_row_cut(&row[i], start + from, start + to, r) < 0) continue;
      r->begin = p->tokens[s];
      p->tokens[s] += r->len;
      if (r->flags & WF_ROW_LEAVES)
        p->link[s * p->n_lanes + r->lane] = r->flags & WF_ROW_TAKES ? WF_LINK_CHAIN : WF_LINK_SET;
      n++;
    }
  }
  p->first[p->n_segments] = n;
}

/* As many groups as keep the ranks busy, where the tokens of a segment are in the order of their lanes. */
static int groups_of(const wf_part *p) {
  int most = 4 * p->dist->layout->n_ranks;
  if (p->dist->layout->n_ranks == 1 || p->n_lanes < 2) return 1;
  for (int s = 0; s < p->n_segments; s++)
    for (int64_t i = p->first[s] + 1; i < p->first[s + 1]; i++)
      if (p->row[i].lane < p->row[i - 1].lane) return 1;
  return p->n_lanes < most ? (int)p->n_lanes : most;
}

static wf_status fill(wf_part *p, int64_t n_rows, const wf_row *row) {
  const wf_layout *l = p->dist->layout;
  int64_t n = p->n_segments;
  WF_ALLOC(p->start, "dist", ((size_t)p->n_lanes + 1) * sizeof *p->start);
  WF_TRY(wf_row_extent(n_rows, row, p->n_lanes, p->start, &p->length));
  WF_CALLOC(p->own, "dist", n);
  WF_CALLOC(p->row, "dist", (n_rows + 1) * n);
  WF_CALLOC(p->first, "dist", n + 1);
  WF_CALLOC(p->tokens, "dist", n);
  WF_CALLOC(p->link, "dist", n * p->n_lanes + 1);
  WF_ALLOC(p->whole, "dist", (size_t)(n_rows + 1) * sizeof *row);
  if (n_rows) memcpy(p->whole, row, (size_t)n_rows * sizeof *row);
  p->n_whole = n_rows;
  cut(p, n_rows, row);
  p->n_groups = groups_of(p);
  WF_CALLOC(p->rows, "dist", n * p->n_groups);
  for (int s = 0; s < n; s++)
    if (l->owner[s] == p->rank) {
      p->own[p->n_own++] = s;
      p->n_tokens += p->tokens[s];
    }
  for (int64_t i = 0; i < n_rows; i++) {
    p->enters |= (row[i].flags & WF_ROW_TAKES) != 0;
    p->leaves |= (row[i].flags & WF_ROW_LEAVES) != 0;
  }
  return WF_OK;
}

wf_status wf_part_create(const wf_dist *d, int64_t n_rows, const wf_row *row, int64_t n_lanes, int64_t past,
                         int64_t piece, wf_part **out) {
  if (d->layout->n_ranks != wf_comm_size(d->comm))
    return WF_FAIL(WF_EINVAL, "a layout for %d ranks in a group of %d", d->layout->n_ranks,
                   wf_comm_size(d->comm));
  wf_part *p;
  WF_CALLOC(p, "dist", 1);
  *p = (wf_part){.dist = d,
                 .rank = wf_comm_rank(d->comm),
                 .n_segments = d->layout->n_segments,
                 .n_lanes = n_lanes,
                 .past = past,
                 .piece = piece};
  wf_status st = fill(p, n_rows, row);
  if (st == WF_OK)
    *out = p;
  else
    wf_part_free(p);
  return st;
}

wf_status wf_part_rows(wf_part *p, wf_ctx *c, int k, int g, const wf_rows **out) {
  wf_rows **made = &p->rows[k * p->n_groups + g];
  int64_t lane = wf_part_lane(p, g), end = wf_part_lane(p, g + 1), n = 0;
  *out = *made;
  if (*made) return WF_OK;
  wf_row *row;
  int s = p->own[k];
  WF_ALLOC(row, "dist", (size_t)(p->first[s + 1] - p->first[s] + 1) * sizeof *row);
  for (int64_t i = p->first[s]; i < p->first[s + 1]; i++) {
    if (p->row[i].lane < lane || p->row[i].lane >= end) continue;
    row[n] = p->row[i];
    row[n].lane -= lane;
    row[n].begin -= n ? p->row[i - n].begin : p->row[i].begin;
    n++;
  }
  wf_status st = wf_rows_create(c, n, row, end - lane, made);
  wf_free(row);
  *out = *made;
  return st;
}

double wf_part_efficiency(const wf_part *p) {
  return (double)p->n_groups / (p->n_groups + p->dist->layout->n_ranks - 1);
}
