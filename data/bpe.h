/* bpe: byte-pair merges over the bytes of a word. Private to this folder.
 *
 * Sennrich, Haddow, Birch 2016: start from single bytes and, as long as a listed pair stands side by side,
 * join the pair of lowest rank (the leftmost first).
 */
#ifndef WF_DATA_BPE_H
#define WF_DATA_BPE_H

#include "data/tokenizer.h"

typedef struct wf_bpe {
  struct wf_bpe_slot {
    uint64_t pair; /* left << 32 | right */
    uint32_t rank, id;
  } * slots;     /* open addressing; rank UINT32_MAX: empty */
  uint64_t mask; /* slots - 1 */
  uint32_t byte_id[256];
} wf_bpe;

wf_status wf_bpe_init(wf_bpe *b, size_t merges); /* room for so many; byte_id is the caller's to fill */
void wf_bpe_free(wf_bpe *b);

/* `left right` side by side become `id`; of equal pairs the first counts. */
void wf_bpe_add(wf_bpe *b, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);

/* Memory that one run over many words uses again; start it as {0}. */
typedef struct wf_bpe_scratch {
  void *symbols, *heap;
  size_t capacity;
} wf_bpe_scratch;
void wf_bpe_scratch_free(wf_bpe_scratch *s);

/* Append the ids of a word of n > 0 bytes, all of which have an id. */
wf_status wf_bpe_encode(const wf_bpe *b, wf_bpe_scratch *s, const char *word, size_t n, wf_ids *out);

#endif
