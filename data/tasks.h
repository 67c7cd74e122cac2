/* tasks: synthetic sequences with a known answer, as a source for the loader (data/sequences.h).
 *
 *     mqar        key-value pairs, then queries: the label at a query's key is its value (multi-query
 * associative recall of "Zoology: Measuring and Improving Recall in Efficient Language Models", ICLR 2024)
 *     modular     tokens below `vocab`; the label at every place is their sum so far modulo vocab (parity:
 * vocab 2) copy        n random tokens, a marker, and the tokens again, to be predicted after the marker
 *     selective   the n tokens lie scattered among blanks (0); after the marker they follow without the
 * blanks (selective copying, of "Mamba", 2023) induction   noise in which one special token is followed by
 * some token; it comes again at the end, where that token is the label needle      noise that hides a marker,
 * a key and its value; at the end the marker and the key: the label is the value
 *
 * A sequence is one fresh row of `length` tokens; labels are -1 where nothing is asked. Example i of a seed
 * is always the same; another seed gives another set (for testing).
 */
#ifndef WF_DATA_TASKS_H
#define WF_DATA_TASKS_H

#include "core/option.h"
#include "data/sequences.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_task_options {
  int task; /* index into wf_task_names */
  int64_t length, vocab, n;
  bool noise;
  double power;
  int64_t examples, seed;
} wf_task_options;

extern const char *const wf_task_names[]; /* NULL-terminated */
extern const wf_option wf_task_option_table[];

/* WF_EINVAL, saying which, for lengths and vocabularies that do not fit the task. */
wf_status wf_sequences_task(const wf_task_options *o, wf_sequences **out);

#ifdef __cplusplus
}
#endif

#endif
