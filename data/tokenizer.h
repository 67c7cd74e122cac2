/* tokenizer: text to ids and back.
 *
 * Four kinds stand behind one interface: `bytes` (the default), `chars` (the code points of the training
 * text), `sentencepiece` (BPE or unigram, trained here or elsewhere) and `tokenizer.json` (byte-level BPE as
 * Hugging Face stores it, for GPT-2, Llama 3 and their kin). A tokenizer never changes after it is made, so
 * any number of threads may use one. It saves itself as one blob of bytes, which token stores and checkpoints
 * keep inside.
 *
 * Texts are byte strings with a length; a document may be fed in pieces of any size (wf_encoder) and ids may
 * be decoded one by one (wf_decoder): both give what the whole gives. Documents are kept apart by the token
 * store's offsets, so no id is needed for their ends; `eot` is there for tokenizers that have one or are
 * asked to.
 */
#ifndef WF_DATA_TOKENIZER_H
#define WF_DATA_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_tokenizer wf_tokenizer;

/* Growing arrays; start them as {0} and release with the _free. */
typedef struct wf_ids {
  uint32_t *data;
  size_t n, capacity;
} wf_ids;
typedef struct wf_bytes {
  char *data; /* not NUL-terminated */
  size_t n, capacity;
} wf_bytes;

wf_status wf_ids_reserve(wf_ids *ids, size_t n); /* room for n more */
wf_status wf_ids_push(wf_ids *ids, uint32_t id);
void wf_ids_free(wf_ids *ids);
wf_status wf_bytes_append(wf_bytes *text, const void *bytes, size_t n);
void wf_bytes_free(wf_bytes *text);

/* The next piece of training text; *n = 0 at the end. The bytes stay valid until the next call. */
typedef wf_status (*wf_text_next)(void *context, const char **text, size_t *n);

/* --- Making one. The caller frees it with wf_tokenizer_free.
 * ------------------------------------------------------ */

/* Ids 0..255 are the bytes. With `eot`, id 256 ends documents and the vocabulary is 257; without, it is 256.
 */
wf_status wf_tokenizer_bytes(bool eot, wf_tokenizer **out);

/* Id 0 stands for what the training text lacks (decoded as U+FFFD); then its code points in increasing order.
 * WF_EFORMAT with the offset for text that is not UTF-8, WF_EINVAL for no text. */
wf_status wf_tokenizer_train_chars(wf_text_next next, void *context, wf_tokenizer **out);

/* Train SentencePiece: `model` is "bpe" or "unigram". The model is lossless: no normalisation, every space
 * kept, bytes for characters it lacks, and a line's end is a piece of its own. WF_EUNSUPPORTED in a build
 * without it. */
wf_status wf_tokenizer_train_sentencepiece(const char *model, int64_t vocab_size, wf_text_next next,
                                           void *context, wf_tokenizer **out);

/* Read a tokenizer.json or a SentencePiece .model, told apart by content. Errors: WF_ENOTFOUND, WF_EIO,
 * WF_EFORMAT (damaged), WF_EUNSUPPORTED (valid, but of a kind that Weft does not have; the message names the
 * component). */
wf_status wf_tokenizer_open(const char *path, wf_tokenizer **out);

/* The same from the bytes of a tokenizer.json. */
wf_status wf_tokenizer_json(const char *json, size_t n, wf_tokenizer **out);

/* From a blob that wf_tokenizer_blob gave. */
wf_status wf_tokenizer_load(const void *blob, size_t n, wf_tokenizer **out);

void wf_tokenizer_free(wf_tokenizer *t); /* NULL is allowed */

/* --- Facts
 * -------------------------------------------------------------------------------------------------------- */

const char *
wf_tokenizer_name(const wf_tokenizer *t);          /* "bytes", "chars", "sentencepiece", "tokenizer.json" */
int64_t wf_tokenizer_vocab(const wf_tokenizer *t); /* every id is below it */
int64_t wf_tokenizer_bos(const wf_tokenizer *t);   /* id that starts a text, or -1 */
int64_t wf_tokenizer_eos(const wf_tokenizer *t);   /* id that ends an answer or a text, or -1 */
int64_t wf_tokenizer_eot(const wf_tokenizer *t);   /* id between documents, or -1 */
const void *wf_tokenizer_blob(const wf_tokenizer *t, size_t *n); /* to save; owned by the tokenizer */

/* The bytes that one id decodes to (empty for control ids), owned by the tokenizer. NULL for an id out of
 * range. */
const char *wf_tokenizer_piece(const wf_tokenizer *t, uint32_t id, size_t *n);

/* --- Text to ids
 * -------------------------------------------------------------------------------------------------- */

/* Append the ids of a whole document. No begin or end id is added. */
wf_status wf_tokenizer_encode(const wf_tokenizer *t, const char *text, size_t n, wf_ids *out);

/* A document in pieces. Ids come out as soon as no later text can change them. */
typedef struct wf_encoder {
  const wf_tokenizer *tokenizer;
  wf_bytes held;  /* text whose ids are not certain yet */
  int64_t offset; /* of held[0] in the document */
  bool inside;    /* held[0] is not the start of what the tokenizer sees as one text */
} wf_encoder;

void wf_encoder_start(wf_encoder *e, const wf_tokenizer *t); /* e is uninitialised or freed before */
wf_status wf_encoder_feed(wf_encoder *e, const char *text, size_t n, wf_ids *out);
wf_status wf_encoder_end(wf_encoder *e,
                         wf_ids *out); /* end of the document: the encoder is ready for the next one */
void wf_encoder_free(wf_encoder *e);

/* --- Ids to text
 * -------------------------------------------------------------------------------------------------- */

/* Append the bytes of `n` ids: the inverse of encode (but for what `chars` does not know). WF_EINVAL for an
 * id out of range. */
wf_status wf_tokenizer_decode(const wf_tokenizer *t, const uint32_t *ids, size_t n, wf_bytes *out);

/* One id at a time, for text that is shown as it comes: bytes are held back until their UTF-8 character is
 * whole. What can never become one is given out as U+FFFD, as a terminal would show it. */
typedef struct wf_decoder {
  const wf_tokenizer *tokenizer;
  char held[4];
  int n_held;
  bool inside; /* something has been decoded */
} wf_decoder;

void wf_decoder_start(wf_decoder *d, const wf_tokenizer *t);
wf_status wf_decoder_next(wf_decoder *d, uint32_t id, wf_bytes *out);
wf_status wf_decoder_end(wf_decoder *d, wf_bytes *out); /* what is still held */

#ifdef __cplusplus
}
#endif

#endif
