/* bigram: the loss of the simplest model of a text, against which others are judged.
 *
 * p(b | a) = (n(a, b) + k) / (n(a) + k V), counted over the pairs of neighbours in the documents of the train
 * split; the first token of a document is not predicted, as in training (data/sequences.h).
 */
#ifndef WF_DATA_BIGRAM_H
#define WF_DATA_BIGRAM_H

#include "data/store.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_BIGRAM_MOST_IDS = 4096 };

typedef struct wf_bigram {
  double loss; /* nats a label */
  double bits_per_byte;
  int64_t labels;
} wf_bigram;

/* Of `split`, with k > 0 added to each count. WF_EINVAL for a vocabulary beyond WF_BIGRAM_MOST_IDS and for a
 * split without a pair. */
wf_status wf_bigram_measure(const wf_store *s, int split, double k, wf_bigram *out);

#ifdef __cplusplus
}
#endif

#endif
