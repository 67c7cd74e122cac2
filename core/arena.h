/* arena: memory for a step's metadata, taken piece by piece and given back at once. */
#ifndef WF_CORE_ARENA_H
#define WF_CORE_ARENA_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_arena {
  struct wf_arena_block *first, *now;
  size_t used; /* of `now` */
} wf_arena;    /* {0} is an empty arena */

/* 16-byte aligned and zeroed; NULL with a recorded WF_ENOMEM. */
void *wf_arena_alloc(wf_arena *a, size_t bytes);
void wf_arena_reset(wf_arena *a); /* keeps the blocks for the next step */
void wf_arena_free(wf_arena *a);

#ifdef __cplusplus
}
#endif

#endif
