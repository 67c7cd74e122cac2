/* Drawing an id. The whole distribution is drawn from in the order of the ids; with top_k or top_p a heap
 * gives the likeliest ids one after the other, so that nothing is sorted that is not needed. */
#include "experiments/sample.h"
#include "core/memory.h"

#include <math.h>
#include <stdbool.h>

static wf_status find_best(const double *logits, int64_t n, int64_t *best) {
  *best = 0;
  for (int64_t i = 0; i < n; i++) {
    if (isnan(logits[i]) || logits[i] == INFINITY)
      return WF_FAIL(WF_ENUMERIC, "the model's logit of id %lld is %g", (long long)i, logits[i]);
    if (logits[i] > logits[*best]) *best = i;
  }
  if (n < 1 || logits[*best] == -INFINITY) return WF_FAIL(WF_ENUMERIC, "the model gives no id a probability");
  return WF_OK;
}

/* ---- a heap of ids, the likeliest on top ---- */

static bool likelier(const double *logits, int64_t a, int64_t b) {
  return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sink(const double *logits, int64_t *heap, int64_t n, int64_t i) {
  for (int64_t child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && likelier(logits, heap[child + 1], heap[child])) child++;
    if (!likelier(logits, heap[child], heap[i])) return;
    int64_t other = heap[i];
    heap[i] = heap[child];
    heap[child] = other;
  }
}

/* Take the top one of n off; it stands at heap[n - 1] afterwards. */
static int64_t pop(const double *logits, int64_t *heap, int64_t n) {
  int64_t top = heap[0];
  heap[0] = heap[n - 1];
  heap[n - 1] = top;
  sink(logits, heap, n - 1, 0);
  return top;
}

/* ---- drawing ---- */

/* Weight of an id; that of the likeliest is 1. */
static double weight(const wf_sampling *o, double logit, double best) {
  return exp((logit - best) / o->temperature);
}

static int64_t draw_all(const wf_sampling *o, const double *logits, int64_t n, int64_t best, double u) {
  double sum = 0, at = 0;
  for (int64_t i = 0; i < n; i++) sum += weight(o, logits[i], logits[best]);
  for (int64_t i = 0; i < n; i++) {
    at += weight(o, logits[i], logits[best]);
    if (at > u * sum) return i;
  }
  return best; /* u * sum rounded up to the sum */
}

static int64_t draw_likeliest(const wf_sampling *o, const double *logits, int64_t n, int64_t *heap,
                              double u) {
  int64_t most = o->top_k > 0 && o->top_k < n ? o->top_k : n, popped = 0, kept = 0;
  for (int64_t i = 0; i < n; i++) heap[i] = i;
  for (int64_t i = n / 2 - 1; i >= 0; i--) sink(logits, heap, n, i);
  double best = logits[heap[0]], all = 0, sum = 0, at = 0;
  if (most < n)
    for (; popped < most; popped++) all += weight(o, logits[pop(logits, heap, n - popped)], best);
  else
    for (int64_t i = 0; i < n; i++) all += weight(o, logits[i], best);
  const int64_t *last = heap + n - 1; /* the likeliest stands at last[0], the second at last[-1], ... */
  for (; kept < most && (kept == 0 || sum < o->top_p * all); kept++) {
    if (kept == popped) pop(logits, heap, n - popped++);
    sum += weight(o, logits[last[-kept]], best);
  }
  for (int64_t i = 0; i < kept; i++) {
    at += weight(o, logits[last[-i]], best);
    if (at > u * sum) return last[-i];
  }
  return last[0];
}

wf_status wf_sample_id(const wf_sampling *o, const double *logits, int64_t n, double u, int64_t *id) {
  if (!(o->temperature >= 0 && isfinite(o->temperature)) || o->top_k < 0 || !(o->top_p >= 0 && o->top_p <= 1))
    return WF_FAIL(WF_EINVAL, "temperature and top_k are at least 0, top_p lies between 0 and 1");
  int64_t best;
  WF_TRY(find_best(logits, n, &best));
  *id = best;
  if (o->temperature == 0) return WF_OK;
  if ((o->top_k == 0 || o->top_k >= n) && o->top_p >= 1) {
    *id = draw_all(o, logits, n, best, u);
    return WF_OK;
  }
  int64_t *heap;
  WF_CALLOC(heap, "sampling", n);
  *id = draw_likeliest(o, logits, n, heap, u);
  wf_free(heap);
  return WF_OK;
}
