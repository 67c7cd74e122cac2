/* Scoring many continuations in one call: every one is a fresh row, and only the hidden states before scored
 * ids go through the head, a part of them at a time. */
#include "experiments/score.h"
#include "core/memory.h"
#include "core/ops.h"
#include "experiments/generate.h"

#include <math.h>
#include <string.h>

/* ---- ids ---- */

static size_t common(const wf_ids *a, const wf_ids *b) {
  size_t n = 0;
  while (n < a->n && n < b->n && a->data[n] == b->data[n]) n++;
  return n;
}

static wf_status take_ids(const wf_tokenizer *t, const wf_ids *before, const wf_ids *all, wf_scored *out) {
  size_t from = common(before, all), start = from == 0;
  if (from == all->n) return WF_FAIL(WF_EINVAL, "the continuation adds no token to the context");
  WF_ALLOC(out->ids, "score", (all->n + start) * sizeof *out->ids);
  for (size_t i = 0; i < all->n; i++) out->ids[start + i] = (int32_t)all->data[i];
  out->n = (int64_t)(all->n + start);
  out->from = (int64_t)(from + start);
  return start ? wf_start_id(t, &out->ids[0]) : WF_OK;
}

wf_status wf_scored_make(const wf_tokenizer *t, const char *context, size_t n_context,
                         const char *continuation, size_t n_continuation, wf_scored *out) {
  *out = (wf_scored){.bytes = (int64_t)n_continuation};
  if (n_continuation == 0) return WF_FAIL(WF_EINVAL, "the continuation is empty");
  wf_ids before = {0}, all = {0};
  wf_bytes text = {0};
  wf_status s = wf_bytes_append(&text, context, n_context);
  if (s == WF_OK) s = wf_tokenizer_encode(t, text.data, n_context, &before);
  if (s == WF_OK) s = wf_bytes_append(&text, continuation, n_continuation);
  if (s == WF_OK) s = wf_tokenizer_encode(t, text.data, text.n, &all);
  if (s == WF_OK) s = take_ids(t, &before, &all, out);
  if (s != WF_OK) {
    wf_free(out->ids);
    out->ids = NULL;
  }
  wf_bytes_free(&text);
  wf_ids_free(&before);
  wf_ids_free(&all);
  return s;
}

/* ---- the model's call ---- */

/* The last id of an item is asked for, not read. */
static wf_status lay_out(const wf_scored *item, int64_t count, wf_row *row, int32_t **ids, int64_t *n) {
  *n = 0;
  for (int64_t i = 0; i < count; i++) {
    row[i] = (wf_row){.begin = *n, .len = item[i].n - 1, .lane = i, .seq = i};
    *n += item[i].n - 1;
  }
  WF_ALLOC(*ids, "score", (size_t)*n * sizeof **ids);
  for (int64_t i = 0; i < count; i++)
    memcpy(*ids + row[i].begin, item[i].ids, (size_t)row[i].len * sizeof **ids);
  return WF_OK;
}

/* Add one id's share: logits [V] on the host. */
static wf_status judge(const double *logits, int64_t V, int32_t id, wf_scored *item) {
  int64_t best = 0;
  for (int64_t i = 1; i < V; i++)
    if (logits[i] > logits[best]) best = i;
  double sum = 0;
  for (int64_t i = 0; i < V; i++) sum += exp(logits[i] - logits[best]);
  item->logprob += logits[id] - logits[best] - log(sum);
  if (!isfinite(item->logprob)) return WF_FAIL(WF_ENUMERIC, "the model's logits are not finite");
  item->greedy &= best == id;
  return WF_OK;
}

/* ids[from .. from + n) of the item; h [n, d] stands before them. `host` has room for n V logits. */
static wf_status score_part(wf_model *m, wf_run *r, wf_tensor *h, wf_scored *item, int64_t from, int64_t n,
                            double *host) {
  int64_t V = wf_model_vocab(m);
  wf_scope scope = wf_scope_open(r->c);
  wf_tensor *y = wf_cast(r->c, wf_model_logits(m, r, h), WF_F64);
  wf_status s = wf_ctx_check(r->c);
  if (s == WF_OK) s = wf_to_host(y, host);
  wf_scope_close(r->c, scope);
  for (int64_t t = 0; t < n && s == WF_OK; t++) s = judge(host + t * V, V, item->ids[from + t], item);
  return s;
}

static wf_status score_item(wf_model *m, wf_run *r, wf_tensor *h, const wf_row *row, wf_scored *item,
                            int64_t part, double *host) {
  item->logprob = 0;
  item->greedy = true;
  for (int64_t from = item->from; from < item->n; from += part) {
    int64_t n = item->n - from < part ? item->n - from : part, at = row->begin + from - 1;
    wf_scope scope = wf_scope_open(r->c);
    wf_status s = score_part(m, r, wf_slice(r->c, h, 0, at, at + n), item, from, n, host);
    wf_scope_close(r->c, scope);
    WF_TRY(s);
  }
  return WF_OK;
}

static wf_status score_rows(wf_model *m, const wf_rows *rows, const int32_t *ids, wf_scored *item,
                            int64_t count) {
  wf_ctx *c = wf_model_ctx(m);
  int64_t V = wf_model_vocab(m), part = (INT64_C(1) << 21) / V; /* 16 MiB of logits at once */
  if (part < 1) part = 1;
  wf_run run = {.c = c, .rows = rows};
  wf_tensor *h = wf_model_trunk(m, &run, wf_from_host(c, "batch", WF_I32, WF_SHAPE(rows->n_tokens), ids));
  WF_TRY(wf_ctx_check(c));
  double *host;
  WF_ALLOC(host, "score", (size_t)(part * V) * sizeof *host);
  wf_status s = WF_OK;
  for (int64_t i = 0; i < count && s == WF_OK; i++)
    s = score_item(m, &run, h, &rows->row[i], &item[i], part, host);
  wf_free(host);
  return s;
}

wf_status wf_score(wf_model *m, wf_scored *item, int64_t count) {
  if (count == 0) return WF_OK;
  wf_ctx *c = wf_model_ctx(m);
  wf_row *row;
  int32_t *ids = NULL;
  int64_t n;
  wf_rows *rows = NULL;
  WF_ALLOC(row, "score", (size_t)count * sizeof *row);
  wf_status s = lay_out(item, count, row, &ids, &n);
  if (s == WF_OK) s = wf_rows_create(c, count, row, count, &rows);
  if (s == WF_OK) {
    wf_scope scope = wf_scope_open(c);
    s = score_rows(m, rows, ids, item, count);
    wf_scope_close(c, scope);
  }
  wf_rows_free(rows);
  wf_free(row);
  wf_free(ids);
  return s;
}
