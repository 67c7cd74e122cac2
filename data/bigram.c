/* Two passes: the train split's pairs are counted, then the other's judged. */
#include "data/bigram.h"

#include <math.h>
#include "core/memory.h"

typedef struct bigram {
  const wf_store *store;
  int64_t vocab;
  double *pairs, *first; /* [vocab, vocab], [vocab] counts */
  double k, sum;         /* of the losses */
  int64_t labels;
} bigram;

static void count(bigram *g, int32_t a, int32_t b) {
  g->pairs[a * g->vocab + b]++;
  g->first[a]++;
}

static void judge(bigram *g, int32_t a, int32_t b) {
  g->sum -= log((g->pairs[a * g->vocab + b] + g->k) / (g->first[a] + g->k * (double)g->vocab));
  g->labels++;
}

/* Every pair of neighbours inside a document. */
static wf_status each_pair(bigram *g, const wf_split *p, void (*use)(bigram *g, int32_t a, int32_t b)) {
  enum { AT_ONCE = 1 << 14 };
  int32_t ids[AT_ONCE], before = -1;
  int64_t document = 0;
  for (int64_t at = 0; at < p->tokens; at += AT_ONCE) {
    const int64_t n = p->tokens - at < AT_ONCE ? p->tokens - at : AT_ONCE;
    WF_TRY(wf_store_read(g->store, p, at, n, ids));
    for (int64_t i = 0; i < n; i++) {
      while (p->offsets[document + 1] <= at + i) document++;
      if (at + i > p->offsets[document]) use(g, before, ids[i]);
      before = ids[i];
    }
  }
  return WF_OK;
}

static wf_status measure(bigram *g, const wf_split *train, const wf_split *split, wf_bigram *out) {
  WF_CALLOC(g->pairs, "bigram", g->vocab * g->vocab);
  WF_CALLOC(g->first, "bigram", g->vocab);
  WF_TRY(each_pair(g, train, count));
  WF_TRY(each_pair(g, split, judge));
  if (g->labels == 0) return WF_FAIL(WF_EINVAL, "the split '%s' has no token to predict", split->name);
  out->labels = g->labels;
  out->loss = g->sum / (double)g->labels;
  out->bits_per_byte = out->loss / M_LN2 * (double)split->tokens / (double)split->bytes;
  return WF_OK;
}

wf_status wf_bigram_measure(const wf_store *s, int split, double k, wf_bigram *out) {
  const wf_split *train, *judged;
  bigram g = {.store = s, .vocab = wf_store_vocab(s), .k = k};
  WF_TRY(wf_store_split(s, WF_TRAIN, &train));
  WF_TRY(wf_store_split(s, split, &judged));
  if (!(k > 0)) return WF_FAIL(WF_EINVAL, "%g is added to the counts of pairs; it must be above 0", k);
  if (g.vocab > WF_BIGRAM_MOST_IDS)
    return wf_hint(WF_FAIL(WF_EINVAL, "the pairs of %lld ids are too many to count", (long long)g.vocab),
                   "at most %d; build a store with --tokenizer bytes", WF_BIGRAM_MOST_IDS);
  const wf_status status = measure(&g, train, judged, out);
  wf_free(g.pairs);
  wf_free(g.first);
  return status;
}
