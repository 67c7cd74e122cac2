/* tokenizer_impl: what the kinds of tokenizer share; see data/tokenizer.h. Private to this folder. */
#ifndef WF_DATA_TOKENIZER_IMPL_H
#define WF_DATA_TOKENIZER_IMPL_H

#include "data/tokenizer.h"

/* A stretch of a document to encode. */
typedef struct wf_encode_args {
  const char *text;
  size_t n;
  int64_t offset; /* of text[0] in its document, for messages */
  bool inside;    /* text[0] continues a text already begun */
  bool last;      /* the document ends here: everything must be encoded */
} wf_encode_args;

typedef struct wf_tokenizer_type {
  const char *name;
  /* Make a tokenizer from its payload (the blob without the name). */
  wf_status (*load)(const char *payload, size_t n, wf_tokenizer **out);
  /* Append the ids of a prefix that later text cannot change; *used is its length and *inside the flag with
   * which the rest is to be encoded. */
  wf_status (*encode)(const wf_tokenizer *t, const wf_encode_args *a, size_t *used, bool *inside,
                      wf_ids *out);
  void (*free)(wf_tokenizer *t); /* what the kind added; may be NULL */
} wf_tokenizer_type;

/* The first member of each kind's own struct. */
struct wf_tokenizer {
  const wf_tokenizer_type *type;
  int64_t vocab, bos, eos, eot;
  wf_bytes pieces;     /* the bytes of all ids, one after the other */
  size_t *piece_start; /* [vocab + 1] */
  bool strip_space;    /* decoding drops the first id's leading space */
  wf_bytes blob;       /* type name, '\n', payload */
};

extern const wf_tokenizer_type wf_tokenizer_type_bytes, wf_tokenizer_type_chars,
    wf_tokenizer_type_sentencepiece, wf_tokenizer_type_json;

/* Allocate `size` bytes for a kind's struct, zeroed, with the shared part set up: no special ids, vocabulary
 * `vocab`, the blob filled from the payload. */
wf_status wf_tokenizer_new(const wf_tokenizer_type *type, size_t size, int64_t vocab, const char *payload,
                           size_t n, wf_tokenizer **out);

/* Give the next id (0, 1, 2, ... in order) its bytes. */
wf_status wf_tokenizer_add_piece(wf_tokenizer *t, int64_t id, const void *bytes, size_t n);

wf_status wf_tokenizer_sentencepiece_model(const char *model, size_t n, wf_tokenizer **out);

/* --- UTF-8
 * -------------------------------------------------------------------------------------------------------- */

/* Length of the valid character at p (1..4), 0 when the n bytes are its cut-off beginning, -1 when it is
 * invalid. n > 0. *code may be NULL. */
int wf_utf8_next(const char *p, size_t n, uint32_t *code);

/* Length of the text without a cut-off character at its end. */
size_t wf_utf8_whole(const char *p, size_t n);

/* Write `code` and return its length. */
int wf_utf8_put(uint32_t code, char out[4]);

#endif
