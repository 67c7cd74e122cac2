/* SentencePiece models (Kudo, Richardson 2018) through data/sentencepiece_shim.h. The payload is the model
 * file.
 *
 * Models trained here have a piece for the line's end and add no space in front, so a text may be cut after
 * each line without changing its ids; whether a model allows that is tried out when it is loaded. With others
 * a document is encoded as a whole.
 */
#include <stdio.h>
#include <string.h>
#include "core/memory.h"
#include "data/sentencepiece_shim.h"
#include "data/tokenizer_impl.h"

#ifdef WEFT_SENTENCEPIECE

typedef struct sp {
  wf_tokenizer base;
  wf_sp *model;
  bool cut_at_lines;
} sp;

static void sp_free(wf_tokenizer *t) {
  wf_sp_free(((sp *)t)->model);
}

static wf_status refused(const wf_sp_error *e) {
  return WF_FAIL(WF_EFORMAT, "SentencePiece: %s", e->text);
}

static wf_status encode_text(const sp *s, const char *text, size_t n, wf_ids *out) {
  wf_sp_ids ids = {0};
  wf_sp_error error;
  if (wf_sp_encode(s->model, text, n, &ids, &error)) return refused(&error);
  wf_status status = wf_ids_reserve(out, ids.n);
  for (size_t i = 0; i < ids.n && status == WF_OK; i++) out->data[out->n++] = (uint32_t)ids.data[i];
  wf_sp_release(ids.data);
  return status;
}

/* The text of one piece: U+2581 stands for a space. */
static wf_status add_piece(sp *s, int id) {
  wf_sp_bytes piece = {0};
  wf_sp_error error;
  if (wf_sp_is_control(s->model, id)) return wf_tokenizer_add_piece(&s->base, id, "", 0);
  if (wf_sp_is_unknown(s->model, id)) return wf_tokenizer_add_piece(&s->base, id, "\xEF\xBF\xBD", 3);
  if (wf_sp_piece(s->model, id, &piece, &error)) return refused(&error);
  unsigned byte;
  size_t n = 0;
  char hex[8] = {0};
  memcpy(hex, piece.data, piece.n < 7 ? piece.n : 7);
  if (wf_sp_is_byte(s->model, id) && sscanf(hex, "<0x%2X>", &byte) == 1) {
    piece.data[n++] = (char)byte;
  } else {
    for (size_t i = 0; i < piece.n; n++) {
      bool space = piece.n - i >= 3 && !memcmp(piece.data + i, "\xE2\x96\x81", 3);
      piece.data[n] = space ? ' ' : piece.data[i];
      i += space ? 3 : 1;
    }
  }
  wf_status status = wf_tokenizer_add_piece(&s->base, id, piece.data, n);
  wf_sp_release(piece.data);
  return status;
}

/* Do "a\n" and " b" give, one after the other, what "a\n b" gives? And does "a" start with a space? */
static wf_status try_out(sp *s) {
  wf_ids whole = {0}, parts = {0}, word = {0};
  wf_status status;
  WF_TRY_GOTO(status, done, encode_text(s, "a\n b\n", 5, &whole));
  WF_TRY_GOTO(status, done, encode_text(s, "a\n", 2, &parts));
  WF_TRY_GOTO(status, done, encode_text(s, " b\n", 3, &parts));
  WF_TRY_GOTO(status, done, encode_text(s, "a", 1, &word));
  s->cut_at_lines = whole.n == parts.n && !memcmp(whole.data, parts.data, whole.n * sizeof *whole.data);
  if (word.n) {
    size_t n;
    const char *piece = wf_tokenizer_piece(&s->base, word.data[0], &n);
    s->base.strip_space = piece && n && piece[0] == ' ';
  }
done:
  wf_ids_free(&whole);
  wf_ids_free(&parts);
  wf_ids_free(&word);
  return status;
}

wf_status wf_tokenizer_sentencepiece_model(const char *model, size_t n, wf_tokenizer **out) {
  wf_sp_error error;
  wf_sp *loaded = wf_sp_load(model, n, &error);
  if (!loaded)
    return wf_hint(WF_FAIL(WF_EFORMAT, "not a SentencePiece model: %s", error.text),
                   "a tokenizer is 'bytes', 'chars', a tokenizer.json or a SentencePiece .model file");
  wf_tokenizer *t = NULL;
  int vocab = wf_sp_vocab(loaded);
  wf_status s = wf_tokenizer_new(&wf_tokenizer_type_sentencepiece, sizeof(sp), vocab, model, n, &t);
  if (s != WF_OK) {
    wf_sp_free(loaded);
    return s;
  }
  ((sp *)t)->model = loaded;
  t->bos = wf_sp_bos(loaded);
  t->eos = t->eot = wf_sp_eos(loaded);
  for (int id = 0; id < vocab && s == WF_OK; id++) s = add_piece((sp *)t, id);
  if (s == WF_OK) s = try_out((sp *)t);
  if (s != WF_OK) {
    wf_tokenizer_free(t);
    return wf_frame_at(__FILE__, __LINE__, __func__, s);
  }
  *out = t;
  return WF_OK;
}

/* The length of the whole lines at the start of a text. */
static size_t whole_lines(const char *text, size_t n) {
  while (n > 0 && text[n - 1] != '\n') n--;
  return n;
}

static wf_status encode(const wf_tokenizer *t, const wf_encode_args *a, size_t *used, bool *inside,
                        wf_ids *out) {
  const sp *s = (const sp *)t;
  size_t n = a->last ? a->n : 0;
  if (!a->last && s->cut_at_lines) n = whole_lines(a->text, a->n);
  /* A line at a time, however the text comes: the library sums scores in float over what it is given, so that
   * where two ways to split a word score alike, what stands before it would decide. */
  for (size_t i = 0; i < n;) {
    const char *newline = s->cut_at_lines ? memchr(a->text + i, '\n', n - i) : NULL;
    size_t part = newline ? (size_t)(newline - a->text) + 1 - i : n - i;
    WF_TRY(encode_text(s, a->text + i, part, out));
    i += part;
  }
  *used = n;
  *inside = a->inside || n > 0;
  return WF_OK;
}

/* --- Training --- */

enum { MAX_SENTENCE = 32768 };

typedef struct sentences {
  wf_text_next next;
  void *context;
  wf_bytes line; /* what is handed out or still incomplete */
  const char *text;
  size_t n;
  wf_status status;
  bool end;
} sentences;

/* One line, without its end; long lines in parts. */
static wf_status next_line(sentences *s, bool *given) {
  s->line.n = 0;
  *given = false;
  while (!*given && !s->end) {
    if (s->n == 0) {
      WF_TRY(s->next(s->context, &s->text, &s->n));
      s->end = s->n == 0;
      *given = s->end && s->line.n;
      continue;
    }
    const char *newline = memchr(s->text, '\n', s->n);
    size_t room = MAX_SENTENCE - s->line.n, len = newline ? (size_t)(newline - s->text) : s->n;
    if (len > room) {
      newline = NULL;
      len = room;
    }
    WF_TRY(wf_bytes_append(&s->line, s->text, len));
    len += newline != NULL;
    s->text += len;
    s->n -= len;
    *given = s->line.n && (newline || s->line.n == MAX_SENTENCE);
  }
  return WF_OK;
}

static int next_sentence(void *context, const char **text, size_t *n) {
  sentences *s = context;
  bool given;
  if ((s->status = next_line(s, &given)) != WF_OK) return -1;
  *text = s->line.data;
  *n = s->line.n;
  return given;
}

wf_status wf_tokenizer_train_sentencepiece(const char *model, int64_t vocab_size, wf_text_next next,
                                           void *context, wf_tokenizer **out) {
  sentences s = {.next = next, .context = context};
  wf_sp_bytes trained = {0};
  wf_sp_error error;
  int failed = wf_sp_train(model, vocab_size, next_sentence, &s, &trained, &error);
  wf_bytes_free(&s.line);
  if (s.status != WF_OK) {
    wf_sp_release(trained.data);
    return wf_frame_at(__FILE__, __LINE__, __func__, s.status);
  }
  if (failed)
    return wf_hint(WF_FAIL(WF_EINVAL, "training SentencePiece failed: %s", error.text),
                   "is there enough text for a vocabulary of %lld? 300 is about the least",
                   (long long)vocab_size);
  wf_status status = wf_tokenizer_sentencepiece_model(trained.data, trained.n, out);
  wf_sp_release(trained.data);
  return status;
}

const wf_tokenizer_type wf_tokenizer_type_sentencepiece = {
    .name = "sentencepiece", .load = wf_tokenizer_sentencepiece_model, .encode = encode, .free = sp_free};

#else

static wf_status absent(void) {
  return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "this Weft was built without SentencePiece"),
                 "install libsentencepiece-dev and build again with -DWEFT_SENTENCEPIECE=ON");
}

wf_status wf_tokenizer_sentencepiece_model(const char *model, size_t n, wf_tokenizer **out) {
  (void)model, (void)n, (void)out;
  return absent();
}

wf_status wf_tokenizer_train_sentencepiece(const char *model, int64_t vocab_size, wf_text_next next,
                                           void *context, wf_tokenizer **out) {
  (void)model, (void)vocab_size, (void)next, (void)context, (void)out;
  return absent();
}

const wf_tokenizer_type wf_tokenizer_type_sentencepiece = {.name = "sentencepiece",
                                                           .load = wf_tokenizer_sentencepiece_model};

#endif
