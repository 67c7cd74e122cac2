/* sequences: where the loader's sequences come from. A token store is one source (here), the task generators
 * (data/tasks.h) are others, and a program may bring its own.
 *
 * A source is a pure function from a sequence's number to its tokens, labels and rows. So nothing needs to be
 * saved but the number reached, and any rank can make any sequence.
 */
#ifndef WF_DATA_SEQUENCES_H
#define WF_DATA_SEQUENCES_H

#include <stdbool.h>
#include <stdint.h>
#include "core/rng.h"
#include "core/rows.h"
#include "core/status.h"
#include "data/store.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A batch being filled: sequences stand one after the other without padding. */
typedef struct wf_fill {
  int32_t *inputs, *labels; /* room for max_tokens more than n_tokens */
  int64_t n_tokens;
  wf_row *rows;
  int64_t n_rows;
  size_t rows_capacity;
  int64_t lane; /* of the sequence to add */
} wf_fill;

/* Add a row of `len` tokens starting at n_tokens - len; its begin and lane are set here. */
wf_status wf_fill_row(wf_fill *f, wf_row row);

typedef struct wf_sequences wf_sequences;
struct wf_sequences {
  int64_t per_epoch;  /* sequences in one pass over all there is; 0: endless */
  int64_t max_tokens; /* of a sequence */
  int64_t group;      /* a cursor must be a multiple of it, and a batch of that size; 0 or 1: any */
  /* Append sequence `number` (from 0, epochs following each other) to f: tokens, labels (-1: none) and rows.
   * Called from one thread at a time. */
  wf_status (*fill)(wf_sequences *s, int64_t number, wf_fill *f);
  void (*free)(wf_sequences *s);
};

typedef struct wf_stream_options {
  int64_t seq_len; /* most tokens of a sequence */
  bool pack;     /* documents back to back; otherwise a sequence is one document or, of a long one, a part */
  bool carry;    /* sequence g continues sequence g - lanes (with pack only) */
  int64_t lanes; /* carry: streams beside each other = sequences in a batch */
  bool shuffle;  /* another order each epoch, decided by the seed */
  uint64_t seed;
} wf_stream_options;

/* The text of a split. In every epoch each token appears in exactly one sequence; a label is the next token
 * of the document, -1 at its end. A row is a document's part of a sequence; `pos` counts from where its state
 * began: the document's start or, without carry, the sequence's.
 *
 * pack: the split is one long stream cut every seq_len tokens; shuffled, the stream starts at another token
 * each epoch (going round at the end) and its pieces come in another order. carry: the stream is cut into
 * `lanes` equal parts and each step gives the next seq_len tokens of every lane; rows take and leave state
 * where a document goes on. Shuffled, only the stream's start changes.
 *
 * The store must outlive the source. WF_EINVAL for impossible options, WF_ENOTFOUND for an absent split. */
wf_status wf_sequences_store(const wf_store *store, int split, const wf_stream_options *o,
                             wf_sequences **out);

/* Number i of a permutation of 0 .. n-1 that the key and the epoch choose; no memory of size n (a Feistel
 * network over the next power of four, walked until it lands inside: Black, Rogaway 2002). */
int64_t wf_permute(wf_rng_key key, int64_t epoch, int64_t i, int64_t n);

#ifdef __cplusplus
}
#endif

#endif
