/* store: texts as token ids in one HDF5 file, built once and read by any number of runs.
 *
 * What lies in the file (readable with h5py; see core/h5.h for the container and its sums):
 *
 *     attributes of the root   format "weft tokens", version 1, tokenizer (name), vocab_size, split_by
 * ("documents", "tail" or "files"), seed, sum (of all ids, 16 hexadecimal digits) tokenizer   u8 [n] the
 * tokenizer's blob (data/tokenizer.h) sources     u8 [n]       a line for each file: XXH64 of its bytes,
 * their number, its path train/tokens  u8, u16 or u32 [tokens], the smallest that holds the vocabulary;
 * documents one after the other train/offsets i64 [documents + 1]: where each document starts; the last one
 * is the number of tokens attributes of the group train: documents, tokens, bytes (of text, for bits per
 * byte) validation/..., test/... likewise; a split without tokens is absent
 *
 * No document is empty. The vocabulary of a model comes from here.
 */
#ifndef WF_DATA_STORE_H
#define WF_DATA_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include "core/option.h"
#include "core/status.h"
#include "data/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_TRAIN, WF_VALIDATION, WF_TEST, WF_N_SPLITS };
extern const char *const wf_split_names[WF_N_SPLITS]; /* "train", "validation", "test" */

/* --- Building
 * ----------------------------------------------------------------------------------------------------- */

typedef struct wf_store_options {
  char *tokenizer; /* bytes, chars, bpe, unigram, or the path of a tokenizer.json or SentencePiece model */
  int64_t vocab_size;
  char *output;                      /* the store to write */
  bool replace;                      /* an existing output */
  char *split, *key;                 /* data/source.h: separator, key */
  char *validation_file, *test_file; /* further texts, whole, for these splits; NULL: none */
  double validation, test;
  int64_t seed;
  bool eot;
} wf_store_options;

extern const wf_option wf_store_option_table[]; /* for wf_options_defaults, _set and _free */

typedef struct wf_store_input {
  const char *path; /* a text file, a .jsonl file or a folder: data/source.h */
  int split;        /* WF_TRAIN.. for a file of that split; -1: divided by the fractions */
} wf_store_input;

typedef struct wf_store_report {
  int64_t files, skipped;   /* read; found in folders and passed over */
  int64_t documents, empty; /* stored; left out because they hold no token */
  int64_t text_bytes;
} wf_store_report;

/* Called now and then with the bytes of text done and in all (for a trained tokenizer every text is read
 * twice, and counted twice). */
typedef void (*wf_store_progress)(void *context, int64_t done, int64_t total);

/* Build o->output. Inputs of any size: text and ids pass through fixed buffers, and the ids wait in an
 * unnamed file beside the output. Documents with split -1 go to validation and test by a hash of their number
 * and the seed; where that would leave a wanted split empty (one long text, a few documents), the ends of the
 * text are taken instead, first validation, then test. An existing output: WF_EEXISTS unless o->replace.
 * Errors name the file and line. `progress` and `report` may be NULL. */
wf_status wf_store_build(const wf_store_options *o, const wf_store_input *inputs, int n,
                         wf_store_progress progress, void *context, wf_store_report *report);

/* --- Reading
 * ------------------------------------------------------------------------------------------------------ */

typedef struct wf_store wf_store;

typedef struct wf_split {
  const char *name;
  int64_t tokens, documents; /* both 0 for a split that the store lacks */
  int64_t bytes;             /* of text */
  const int64_t *offsets;    /* [documents + 1], owned by the store */
  const void *tokens_info;   /* private */
} wf_split;

/* Opens for reading and checks the sums: of the whole file up to 256 MiB, beyond that of each part as it is
 * read. The offsets (8 bytes a document) are held in memory. Errors: WF_ENOTFOUND, WF_EIO, WF_EFORMAT
 * (damaged, or no token store). */
wf_status wf_store_open(const char *path, wf_store **out);
void wf_store_close(wf_store *s); /* NULL is allowed */

const char *wf_store_path(const wf_store *s);
int64_t wf_store_vocab(const wf_store *s);
const char *wf_store_tokenizer_name(const wf_store *s);
const char *wf_store_split_by(const wf_store *s);
const char *wf_store_sum(const wf_store *s); /* tells two stores apart; 16 hexadecimal digits */

/* The blob, for checkpoints; owned by the store. And the tokenizer made from it, freed by the caller. */
const void *wf_store_tokenizer_blob(const wf_store *s, size_t *n);
wf_status wf_store_tokenizer(const wf_store *s, wf_tokenizer **out);

/* WF_ENOTFOUND, with a hint, for a split without tokens. */
wf_status wf_store_split(const wf_store *s, int split, const wf_split **out);

/* Ids [first, first + count) of a split. Thread-safe. WF_EFORMAT for damage and for an id outside the
 * vocabulary. */
wf_status wf_store_read(const wf_store *s, const wf_split *split, int64_t first, int64_t count, int32_t *ids);

/* Read everything once: all sums and all ids. */
wf_status wf_store_verify(const wf_store *s);

/* For `weft data info`: the text of `sources`, not NUL-terminated, owned by the store. */
const char *wf_store_sources(const wf_store *s, size_t *n);

#ifdef __cplusplus
}
#endif

#endif
