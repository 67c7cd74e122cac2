/* presplit: cutting text into words by regular expressions before byte-level BPE. Private to this folder.
 *
 * A tokenizer.json lists steps; each cuts every piece that the one before left. Patterns are PCRE2 with
 * Unicode properties. Bytes that are not UTF-8 match nothing and so become pieces of their own. Two classes
 * are not those of the package tokenizers: \s here holds U+180E as well, and \w lacks combining marks.
 */
#ifndef WF_DATA_PRESPLIT_H
#define WF_DATA_PRESPLIT_H

#include <stdbool.h>
#include <stddef.h>
#include "core/status.h"

typedef struct wf_presplit wf_presplit;

enum {
  WF_SPLIT_KEEP_MATCHES = 1,
  WF_SPLIT_KEEP_REST = 2 /* what lies between the matches */
};

wf_status wf_presplit_new(wf_presplit **out);
void wf_presplit_free(wf_presplit *p); /* NULL is allowed */

/* Add a step that cuts at the matches of `pattern` and keeps what `keep` says; with add_space it first puts a
 * space in front of a piece that has none. A NULL pattern cuts nothing. */
wf_status wf_presplit_add(wf_presplit *p, const char *pattern, size_t n, unsigned keep, bool add_space);

typedef wf_status (*wf_presplit_word)(void *context, const char *word, size_t n);

/* Call `word` for each piece of a text, in order. With `last` false more text may follow: only pieces that it
 * cannot change are given, *used tells how far they reach, and the rest comes again, with `inside` true. */
wf_status wf_presplit_run(const wf_presplit *p, const char *text, size_t n, bool inside, bool last,
                          size_t *used, wf_presplit_word word, void *context);

#endif
