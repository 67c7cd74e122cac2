/* A list of blocks; a reset starts over at the first. */
#include "core/arena.h"
#include "core/memory.h"

#include <string.h>

struct wf_arena_block {
  struct wf_arena_block *next;
  size_t size;
  _Alignas(16) char data[];
};

enum { BLOCK = 1 << 16 };

void *wf_arena_alloc(wf_arena *a, size_t bytes) {
  bytes = (bytes + 15) & ~(size_t)15;
  while (!a->now || a->used + bytes > a->now->size) {
    struct wf_arena_block *next = a->now ? a->now->next : a->first;
    if (!next || next->size < bytes) { /* insert a block that is large enough */
      size_t size = bytes > BLOCK ? bytes : BLOCK;
      struct wf_arena_block *b = wf_alloc("step metadata", sizeof *b + size);
      if (!b) return NULL;
      b->size = size;
      b->next = next;
      if (a->now)
        a->now->next = b;
      else
        a->first = b;
      next = b;
    }
    a->now = next;
    a->used = 0;
  }
  void *p = a->now->data + a->used;
  a->used += bytes;
  return memset(p, 0, bytes);
}

void wf_arena_reset(wf_arena *a) {
  a->now = a->first;
  a->used = 0;
}

void wf_arena_free(wf_arena *a) {
  for (struct wf_arena_block *b = a->first; b;) {
    struct wf_arena_block *next = b->next;
    wf_free(b);
    b = next;
  }
  *a = (wf_arena){0};
}
