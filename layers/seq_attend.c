/* attend: where the keys lie, in three cases that the kernel does not tell apart.
 *
 *   no state             every row is fresh: the keys are the call's own tokens
 *   a window             the call's tokens with the last window-1 before them (a fixed state)
 *   otherwise            the lane's cache: append, then read from the document's start
 *
 * Dilated attention makes a row of what one head keeps of one segment, over the same keys.
 */
#include "layers/seq_impl.h"
#include "core/memory.h"

#include <math.h>

wf_status wf_seq_attend_state(wf_build *b, int64_t kv_heads, int64_t K, int64_t V, int64_t gates,
                              int64_t window, wf_seq_attend_slots *slots) {
  bool all = window == 0;
  const int64_t k[] = {window - 1, kv_heads, K}, v[] = {window - 1, kv_heads, V}, c[] = {window - 1, gates};
  WF_TRY(wf_seq_state(b, WF_STATE_ATTEND, "k", all, 3 - all, k + all, &slots->k));
  WF_TRY(wf_seq_state(b, WF_STATE_ATTEND, "v", all, 3 - all, v + all, &slots->v));
  if (!gates) return WF_OK;
  WF_TRY(wf_build_state_exact(b, "c", all, 2 - all, c + all, &slots->c));
  b->state->slot[slots->c].kind = WF_STATE_ATTEND;
  return WF_OK;
}

typedef enum layout { FRESH, WINDOW, CACHE } layout;

static layout layout_of(const wf_run *r, int64_t window) {
  return !r->state ? FRESH : window > 0 ? WINDOW : CACHE;
}

static wf_attend_span row_span(layout how, const wf_row *r, int64_t i, int64_t window, int64_t capacity) {
  int64_t before = r->flags & WF_ROW_TAKES ? r->pos : 0, key = r->begin;
  if (how == WINDOW) {
    if (before > window - 1) before = window - 1;
    key = r->begin + (i + 1) * (window - 1) - before;
  } else if (how == CACHE) {
    key = r->lane * capacity + r->place - before;
  }
  return (wf_attend_span){r->begin, r->len, key, before, before + r->len};
}

/* One for each row; to be freed. */
static wf_attend_span *spans(wf_run *r, layout how, int64_t window) {
  const wf_rows *rows = r->rows;
  int64_t capacity = r->state ? r->state->capacity : 0;
  wf_attend_span *s = wf_calloc("rows", (size_t)rows->n + 1, sizeof *s);
  for (int64_t i = 0; s && i < rows->n; i++) s[i] = row_span(how, &rows->row[i], i, window, capacity);
  return s;
}

/* a_t - b_j of positions: only differences matter. */
void wf_seq_alibi(wf_ctx *c, int64_t n_spans, const wf_attend_span *span, const int64_t *pos,
                  const double *slope, const int64_t *q, int64_t pool, wf_tensor **a, wf_tensor **b) {
  int64_t n = q[0], H = q[1];
  if (!slope) return;
  double *host = wf_calloc("rows", (size_t)((n + pool) * H) + 1, sizeof *host);
  if (!host) {
    *a = *b = wf_poison(c, WF_ENOMEM);
    return;
  }
  for (int64_t i = 0; i < n_spans; i++, span++) {
    int64_t key = pos ? pos[i] - span->distance : 0, query = key + span->distance;
    for (int64_t t = 0; t < span->queries; t++)
      for (int64_t h = 0; h < H; h++) host[(span->query + t) * H + h] = -slope[h] * (double)(query + t);
    for (int64_t j = 0; j < span->keys; j++)
      for (int64_t h = 0; h < H; h++) host[(n + span->key + j) * H + h] = -slope[h] * (double)(key + j);
  }
  wf_tensor *far_a = wf_from_host(c, "rows", WF_F64, WF_SHAPE(n, H), host);
  wf_tensor *far_b = wf_from_host(c, "rows", WF_F64, WF_SHAPE(pool, H), host + n * H);
  wf_free(host);
  *a = *a ? wf_add(c, *a, far_a) : far_a;
  *b = *b ? wf_add(c, *b, far_b) : far_b;
}

wf_tensor *wf_seq_log_position(wf_run *r, wf_dtype dtype) {
  const wf_rows *rows = r->rows;
  double *host = wf_alloc("rows", (size_t)(rows->n_tokens + 1) * sizeof *host);
  if (!host) return wf_poison(r->c, WF_ENOMEM);
  for (int64_t i = 0; i < rows->n; i++)
    for (int64_t t = 0; t < rows->row[i].len; t++)
      host[rows->row[i].begin + t] = log((double)(rows->row[i].pos + t + 1));
  wf_tensor *x = wf_from_host(r->c, "rows", WF_F64, WF_SHAPE(rows->n_tokens, 1), host);
  wf_free(host);
  return wf_cast(r->c, x, dtype);
}

/* The pool [m, ...] of one slot. */
static wf_tensor *pool_of(wf_run *r, layout how, int slot, wf_tensor *x, int64_t window) {
  wf_state *s = r->state;
  if (how == FRESH) return x;
  if (how == WINDOW) return wf_halo(r->c, x, window, wf_state_in(s, slot), r->rows, wf_state_out(s, slot));
  wf_tensor *cache = wf_cache_append(r->c, wf_state_in(s, slot), x, r->rows);
  if (wf_is_poison(cache)) return cache;
  int64_t shape[WF_MAX_DIMS] = {s->lanes * s->capacity};
  for (int d = 1; d < x->ndim; d++) shape[d] = x->shape[d];
  return wf_same_variable(cache, x->ndim, shape);
}

wf_tensor *wf_seq_attend(wf_run *r, const wf_seq_attend_slots *slots, const wf_seq_attend_in *in,
                         const wf_attend_options *o) {
  wf_tensor *unread, **lse = in->lse ? in->lse : &unread;
  if (wf_is_poison(in->q) || wf_is_poison(in->k) || wf_is_poison(in->v) || (in->c && wf_is_poison(in->c)))
    return *lse = wf_poison(r->c, WF_OK);
  if (r->part) return wf_seq_attend_ranks(r, slots, in, o, lse);
  layout how = layout_of(r, o->window);
  wf_attend_span *host = spans(r, how, o->window);
  if (!host) return *lse = wf_poison(r->c, WF_ENOMEM);
  wf_tensor *k = pool_of(r, how, slots->k, in->k, o->window);
  wf_tensor *v = pool_of(r, how, slots->v, in->v, o->window);
  wf_tensor *a = in->c, *b = in->c ? pool_of(r, how, slots->c, in->c, o->window) : NULL;
  if (!wf_is_poison(k))
    wf_seq_alibi(r->c, r->rows->n, host, NULL, in->slope, in->q->shape, k->shape[0], &a, &b);
  wf_tensor *span = wf_attend_spans(r->c, r->rows->n, host);
  wf_free(host);
  return wf_attend_lse(r->c, in->q, k, v, span, a, b, in->sink, o, lse);
}

/* ---- segments and dilation ---- */

/* The rows of one pattern in a layout where pairs of token and head are tokens of one head: what head h keeps
 * of a segment is one row, dilation x heads apart. Those of a document row whose span is `of` go to `span`;
 * -> their number. */
static int64_t pattern_rows(const wf_row *d, const wf_attend_span *of, const wf_seq_pattern *p, int64_t H,
                            wf_attend_span *span) {
  int64_t oldest = d->pos - of->distance, zero = of->key - oldest; /* the key of position p is zero + p */
  int64_t rows = 0, end = d->pos + d->len, w = p->segment, r = p->dilation;
  for (int64_t from = d->pos / w * w; from < end; from += w)
    for (int64_t h = 0; h < H; h++) {
      int64_t to = from + w < end ? from + w : end, kept = from + h % r;
      int64_t key = kept < oldest ? kept + (oldest - kept + r - 1) / r * r : kept;
      int64_t query = key < d->pos ? key + (d->pos - key + r - 1) / r * r : key;
      if (query >= to) continue;
      int64_t queries = (to - 1 - query) / r + 1, before = (query - key) / r;
      if (span)
        span[rows] = (wf_attend_span){(d->begin + query - d->pos) * H + h, queries, (zero + key) * H + h,
                                      before, before + queries};
      rows++;
    }
  return rows;
}

static wf_tensor *pattern_spans(wf_run *r, const wf_attend_span *of, const wf_seq_pattern *p, int64_t H) {
  const wf_rows *rows = r->rows;
  int64_t n = 0;
  wf_attend_span *host = NULL;
  for (int pass = 0; pass < 2; pass++) { /* count, then write */
    wf_attend_span *at = host;
    n = 0;
    for (int64_t i = 0; i < rows->n; i++) n += pattern_rows(&rows->row[i], of + i, p, H, at ? at + n : NULL);
    if (!host) host = wf_alloc("rows", (size_t)(n + 1) * sizeof *host);
    if (!host) return wf_poison(r->c, WF_ENOMEM);
  }
  wf_tensor *span = wf_attend_spans(r->c, n, host);
  wf_free(host);
  return span;
}

/* x [m, H, d] -> [m H, 1, d]: the same variable where it can be, as a cache must. */
static wf_tensor *as_pairs(wf_ctx *c, wf_tensor *x) {
  const int64_t shape[] = {x->shape[0] * x->shape[1], 1, x->shape[2]};
  return wf_is_contiguous(x) ? wf_same_variable(x, 3, shape) : wf_reshape(c, x, 3, shape);
}

/* The keys that the patterns show, and the spans of the rows; *own are to be freed. */
static const wf_attend_span *dilated_keys(wf_run *r, const wf_seq_attend_slots *slots, wf_tensor **kv,
                                          int64_t window, int n, const wf_seq_pattern *pattern,
                                          wf_attend_span **own) {
  const int slot[] = {slots->k, slots->v};
  int64_t longest = 0;
  for (int i = 0; i < n; i++)
    if (pattern[i].segment > longest) longest = pattern[i].segment;
  *own = NULL;
  if (r->part) return wf_seq_fetch(r, window, longest, 2, slot, (wf_tensor *[]){kv[0], kv[1]}, kv);
  layout how = layout_of(r, window);
  for (int i = 0; i < 2; i++) kv[i] = pool_of(r, how, slot[i], kv[i], window);
  return *own = spans(r, how, window);
}

wf_tensor *wf_seq_dilated(wf_run *r, const wf_seq_attend_slots *slots, wf_tensor *q, wf_tensor *k,
                          wf_tensor *v, int64_t window, int n, const wf_seq_pattern *pattern, double scale) {
  wf_ctx *c = r->c;
  wf_tensor *kv[] = {k, v}, *o[WF_SEQ_PATTERNS], *lse[WF_SEQ_PATTERNS];
  if (wf_is_poison(q) || wf_is_poison(k) || wf_is_poison(v)) return wf_poison(c, WF_OK);
  int64_t H = q->shape[1], V = v->shape[2];
  wf_attend_span *own;
  const wf_attend_span *span = dilated_keys(r, slots, kv, window, n, pattern, &own);
  if (!span || wf_is_poison(kv[0]) || wf_is_poison(kv[1])) {
    wf_free(own);
    return wf_poison(c, span ? WF_OK : WF_ENOMEM);
  }
  q = as_pairs(c, q), k = as_pairs(c, kv[0]), v = as_pairs(c, kv[1]);
  for (int i = 0; i < n; i++) {
    wf_attend_options opts = {.scale = scale, .stride = pattern[i].dilation * H};
    o[i] =
        wf_attend_lse(c, q, k, v, pattern_spans(r, span, &pattern[i], H), NULL, NULL, NULL, &opts, &lse[i]);
  }
  wf_free(own);
  return wf_reshape(c, wf_merge(c, n, o, lse), WF_SHAPE(-1, H, V));
}
