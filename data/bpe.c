/* Byte-pair merging with a linked list of symbols and a heap of candidate pairs: n log n for a word of n
 * bytes, so a hostile "word" of a megabyte is no trouble. */
#include "data/bpe.h"

#include "core/memory.h"

typedef struct symbol {
  uint32_t id;
  uint32_t prev, next; /* NONE at the ends */
} symbol;

/* A pair waiting to be merged; stale when the symbols at `at` have changed since. */
typedef struct candidate {
  uint32_t rank, at, left, right, id;
} candidate;

#define NONE  UINT32_MAX /* no symbol */
#define EMPTY UINT32_MAX /* rank of an empty slot */

wf_status wf_bpe_init(wf_bpe *b, size_t merges) {
  uint64_t size = 16;
  while (size < 2 * (uint64_t)merges) size *= 2;
  WF_CALLOC(b->slots, "tokenizer", size);
  b->mask = size - 1;
  for (uint64_t i = 0; i < size; i++) b->slots[i].rank = EMPTY;
  return WF_OK;
}

void wf_bpe_free(wf_bpe *b) {
  wf_free(b->slots);
  b->slots = NULL;
}

static struct wf_bpe_slot *find(const wf_bpe *b, uint32_t left, uint32_t right) {
  uint64_t pair = (uint64_t)left << 32 | right, h = pair * 0x9E3779B97F4A7C15u;
  h ^= h >> 32;
  struct wf_bpe_slot *s = &b->slots[h & b->mask];
  while (s->rank != EMPTY && s->pair != pair) s = &b->slots[++h & b->mask];
  return s;
}

void wf_bpe_add(wf_bpe *b, uint32_t left, uint32_t right, uint32_t rank, uint32_t id) {
  struct wf_bpe_slot *s = find(b, left, right);
  if (s->rank == EMPTY) *s = (struct wf_bpe_slot){(uint64_t)left << 32 | right, rank, id};
}

void wf_bpe_scratch_free(wf_bpe_scratch *s) {
  wf_free(s->symbols);
  wf_free(s->heap);
  *s = (wf_bpe_scratch){0};
}

static wf_status reserve(wf_bpe_scratch *s, size_t n) {
  if (n <= s->capacity) return WF_OK;
  if (n >= NONE / 4) return WF_FAIL(WF_EUNSUPPORTED, "a word of %zu bytes is too long", n);
  wf_bpe_scratch_free(s);
  size_t want = n < 128 ? 256 : 2 * n;
  WF_ALLOC(s->symbols, "tokenizer", want * sizeof(symbol));
  WF_ALLOC(s->heap, "tokenizer",
           3 * want * sizeof(candidate)); /* n - 1 at first, and at most 2 for each merge */
  s->capacity = want;
  return WF_OK;
}

static bool before(const candidate *a, const candidate *b) {
  return a->rank < b->rank || (a->rank == b->rank && a->at < b->at);
}

static void heap_push(candidate *heap, size_t *n, candidate c) {
  size_t i = (*n)++;
  for (; i > 0 && before(&c, &heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
  heap[i] = c;
}

static candidate heap_pop(candidate *heap, size_t *n) {
  candidate top = heap[0], c = heap[--*n];
  size_t i = 0;
  for (size_t child; (child = 2 * i + 1) < *n; i = child) {
    if (child + 1 < *n && before(&heap[child + 1], &heap[child])) child++;
    if (!before(&heap[child], &c)) break;
    heap[i] = heap[child];
  }
  heap[i] = c;
  return top;
}

static void consider(const wf_bpe *b, const symbol *symbols, uint32_t at, candidate *heap, size_t *n) {
  if (at == NONE || symbols[at].next == NONE) return;
  uint32_t left = symbols[at].id, right = symbols[symbols[at].next].id;
  const struct wf_bpe_slot *s = find(b, left, right);
  if (s->rank != EMPTY) heap_push(heap, n, (candidate){s->rank, at, left, right, s->id});
}

wf_status wf_bpe_encode(const wf_bpe *b, wf_bpe_scratch *scratch, const char *word, size_t n, wf_ids *out) {
  WF_TRY(reserve(scratch, n));
  WF_TRY(wf_ids_reserve(out, n));
  symbol *symbols = scratch->symbols;
  candidate *heap = scratch->heap;
  size_t waiting = 0;
  for (uint32_t i = 0; i < n; i++)
    symbols[i] = (symbol){b->byte_id[(unsigned char)word[i]], i ? i - 1 : NONE, i + 1 < n ? i + 1 : NONE};
  for (uint32_t i = 0; i + 1 < n; i++) consider(b, symbols, i, heap, &waiting);
  while (waiting) {
    candidate c = heap_pop(heap, &waiting);
    symbol *left = &symbols[c.at];
    if (left->id != c.left || left->next == NONE || symbols[left->next].id != c.right) continue;
    symbol *right = &symbols[left->next];
    left->id = c.id;
    left->next = right->next;
    right->id = NONE; /* candidates that start here are stale now */
    if (left->next != NONE) symbols[left->next].prev = c.at;
    consider(b, symbols, left->prev, heap, &waiting);
    consider(b, symbols, c.at, heap, &waiting);
  }
  for (uint32_t i = 0; i != NONE; i = symbols[i].next) out->data[out->n++] = symbols[i].id;
  return WF_OK;
}
