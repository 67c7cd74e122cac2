/* text: a string that grows. Failures stick: add freely, ask once at the end.
 *
 *     wf_text t = {0};
 *     wf_text_add(&t, "seed: %d\n", 1);
 *     WF_TRY(wf_text_take(&t, &string));
 */
#ifndef WF_EXPERIMENTS_TEXT_H
#define WF_EXPERIMENTS_TEXT_H

#include <stddef.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_text {
  char *p; /* NUL-terminated, NULL while empty */
  size_t n, capacity;
  wf_status status;
} wf_text;

void wf_text_add(wf_text *t, const char *fmt, ...) WF_PRINTF(2, 3);
void wf_text_clear(wf_text *t); /* empty again and without failure; its memory stays */

/* The string (never NULL) becomes the caller's, to wf_free; or the first failure is returned and nothing is
 * left. */
wf_status wf_text_take(wf_text *t, char **out);
void wf_text_free(wf_text *t);

#ifdef __cplusplus
}
#endif

#endif
