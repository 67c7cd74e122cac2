/* score: log-probabilities of given continuations under a model.
 *
 * A continuation is scored on the ids of context and continuation encoded as one text, from the first id that
 * differs from those of the context alone; so a token that spans the two counts as a whole. Where nothing
 * stands before it (no context, usually) wf_start_id does.
 */
#ifndef WF_EXPERIMENTS_SCORE_H
#define WF_EXPERIMENTS_SCORE_H

#include "data/tokenizer.h"
#include "layers/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_scored {
  int32_t *ids;    /* [n], owned: what the model reads and what it is asked for */
  int64_t n, from; /* ids[from .. n) are scored; from >= 1 */
  int64_t bytes;   /* of the continuation */
  double logprob;  /* sum of natural logarithms */
  bool greedy;     /* at each of them the likeliest id was it */
} wf_scored;

/* The ids of a pair; logprob and greedy are left for wf_score. Errors: WF_EINVAL for an empty continuation.
 * Release with wf_free(out->ids). */
wf_status wf_scored_make(const wf_tokenizer *t, const char *context, size_t n_context,
                         const char *continuation, size_t n_continuation, wf_scored *out);

/* Fill logprob and greedy of `count` items in one call of the model, each a row of its own. Errors: WF_EINVAL
 * beyond the learned positions, WF_ENUMERIC for logits that are not finite. */
wf_status wf_score(wf_model *m, wf_scored *item, int64_t count);

/* Score a file of JSON lines, each an object with "context" (may be absent) and either "continuation", a
 * string, or "continuations", a list of them. For each line, in order, `line` receives an object as text:
 *
 *     {"line": 1, "logprob": -3.1, "tokens": 4, "bytes": 9, "logprob_per_byte": -0.34, "greedy": false}
 *     {"line": 2, "best": 0, "best_per_byte": 1, "continuations": [{"logprob": ...}, ...]}
 *
 * with "id" copied where the line has one. `batch` is the number of tokens the model reads at once, more only
 * where a single line has more. Errors name file and line: WF_EFORMAT, and those of wf_score. */
wf_status wf_score_file(wf_model *m, const wf_tokenizer *t, const char *path, int64_t batch,
                        wf_status (*line)(void *arg, const char *json), void *arg);

#ifdef __cplusplus
}
#endif

#endif
