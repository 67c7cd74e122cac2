/* generate: text from a model, token by token through its state.
 *
 * The prompt enters as rows of many tokens, every further token as a row of one, each leaving the state for
 * the next. So a token costs the same at any length for mixers with a fixed state, no token is computed
 * twice, and a prompt of a million tokens takes no more memory than its state and a piece of it.
 */
#ifndef WF_EXPERIMENTS_GENERATE_H
#define WF_EXPERIMENTS_GENERATE_H

#include <signal.h>
#include "data/tokenizer.h"
#include "experiments/sample.h"
#include "layers/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the next token's logits ---- */

typedef struct wf_decoding {
  wf_model *model;
  wf_state *state; /* one lane */
} wf_decoding;

/* An empty sequence with room for `capacity` tokens. The model must outlive it. */
wf_status wf_decoding_open(wf_model *m, int64_t capacity, wf_decoding *out);
void wf_decoding_close(wf_decoding *d);

/* Append n >= 1 ids to the sequence; logits (host, [vocab]) of what follows the last one. Errors: WF_EINVAL
 * beyond the capacity or the learned positions. */
wf_status wf_decoding_feed(wf_decoding *d, const int32_t *ids, int64_t n, double *logits);

/* ---- text ---- */

/* What stands before a text's first token: the tokenizer's begin id, else the one between documents, else
 * that of a line's end, else 0. */
wf_status wf_start_id(const wf_tokenizer *t, int32_t *id);

typedef struct wf_generate_options {
  int64_t tokens;       /* at most */
  wf_sampling sampling; /* see sample.h */
  uint64_t seed;        /* the same seed draws the same text */
  bool begin;           /* put wf_start_id before the prompt; done in any case when it is empty */
  bool ignore_end;      /* go on after an id that ends a text */
  const volatile sig_atomic_t *stop; /* set by a signal handler: stop after the token; may be NULL */
} wf_generate_options;

typedef enum wf_generate_end {
  WF_GENERATED_ALL,    /* as many tokens as asked for */
  WF_GENERATED_END,    /* the model ended its text */
  WF_GENERATED_FULL,   /* no learned position is left */
  WF_GENERATED_STOPPED /* o->stop */
} wf_generate_end;

typedef struct wf_generated {
  int64_t prompt, tokens;         /* ids of the prompt; ids drawn, the ending one counted */
  double prompt_seconds, seconds; /* for the prompt; for all after it */
  wf_generate_end end;
} wf_generated;

/* Whole UTF-8 characters, n >= 1 bytes, not NUL-terminated, as soon as they are certain. */
typedef wf_status (*wf_generate_piece)(void *arg, const char *text, size_t n);

/* Continue `prompt` (n bytes). `piece` receives the text that follows it; what it returns beside WF_OK ends
 * the generation and is returned. Errors: WF_EINVAL for a prompt longer than the learned positions,
 * WF_ENUMERIC for logits that are not finite. */
wf_status wf_generate(wf_model *m, const wf_tokenizer *t, const char *prompt, size_t n,
                      const wf_generate_options *o, wf_generate_piece piece, void *arg, wf_generated *out);

#ifdef __cplusplus
}
#endif

#endif
