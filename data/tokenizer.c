/* What all tokenizers share: growing arrays, the blob, the table of pieces and everything done with it. */
#include "data/tokenizer.h"

#include <string.h>
#include "core/file.h"
#include "core/memory.h"
#include "data/tokenizer_impl.h"

static const wf_tokenizer_type *const types[] = {&wf_tokenizer_type_bytes, &wf_tokenizer_type_chars,
                                                 &wf_tokenizer_type_sentencepiece, &wf_tokenizer_type_json};
enum { N_TYPES = sizeof types / sizeof *types };

wf_status wf_ids_reserve(wf_ids *ids, size_t n) {
  if (n <= ids->capacity - ids->n) return WF_OK;
  size_t want = 2 * ids->capacity > ids->n + n ? 2 * ids->capacity : ids->n + n + 16;
  uint32_t *p = wf_realloc("ids", ids->data, want * sizeof *p);
  if (!p) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  ids->data = p;
  ids->capacity = want;
  return WF_OK;
}

wf_status wf_ids_push(wf_ids *ids, uint32_t id) {
  if (ids->n == ids->capacity) WF_TRY(wf_ids_reserve(ids, 1));
  ids->data[ids->n++] = id;
  return WF_OK;
}

void wf_ids_free(wf_ids *ids) {
  wf_free(ids->data);
  *ids = (wf_ids){0};
}

wf_status wf_bytes_append(wf_bytes *text, const void *bytes, size_t n) {
  if (n > text->capacity - text->n) {
    size_t want = 2 * text->capacity > text->n + n ? 2 * text->capacity : text->n + n + 64;
    char *p = wf_realloc("text", text->data, want);
    if (!p) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
    text->data = p;
    text->capacity = want;
  }
  if (n) memcpy(text->data + text->n, bytes, n);
  text->n += n;
  return WF_OK;
}

void wf_bytes_free(wf_bytes *text) {
  wf_free(text->data);
  *text = (wf_bytes){0};
}

wf_status wf_tokenizer_new(const wf_tokenizer_type *type, size_t size, int64_t vocab, const char *payload,
                           size_t n, wf_tokenizer **out) {
  wf_tokenizer *t = wf_calloc("tokenizer", 1, size);
  if (!t) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  t->type = type;
  t->vocab = vocab;
  t->bos = t->eos = t->eot = -1;
  wf_status s = wf_bytes_append(&t->blob, type->name, strlen(type->name));
  if (s == WF_OK) s = wf_bytes_append(&t->blob, "\n", 1);
  if (s == WF_OK) s = wf_bytes_append(&t->blob, payload, n);
  if (s == WF_OK && !(t->piece_start = wf_calloc("tokenizer", (size_t)vocab + 1, sizeof *t->piece_start)))
    s = WF_ENOMEM;
  if (s != WF_OK) {
    wf_tokenizer_free(t);
    return wf_frame_at(__FILE__, __LINE__, __func__, s);
  }
  *out = t;
  return WF_OK;
}

wf_status wf_tokenizer_add_piece(wf_tokenizer *t, int64_t id, const void *bytes, size_t n) {
  WF_TRY(wf_bytes_append(&t->pieces, bytes, n));
  t->piece_start[id + 1] = t->pieces.n;
  return WF_OK;
}

void wf_tokenizer_free(wf_tokenizer *t) {
  if (!t) return;
  if (t->type->free) t->type->free(t);
  wf_bytes_free(&t->pieces);
  wf_bytes_free(&t->blob);
  wf_free(t->piece_start);
  wf_free(t);
}

wf_status wf_tokenizer_load(const void *blob, size_t n, wf_tokenizer **out) {
  const char *end = n ? memchr(blob, '\n', n) : NULL;
  if (!end) return WF_FAIL(WF_EFORMAT, "the tokenizer is damaged: its name is missing");
  size_t name = (size_t)(end - (const char *)blob);
  for (int i = 0; i < N_TYPES; i++)
    if (strlen(types[i]->name) == name && !memcmp(types[i]->name, blob, name)) {
      WF_TRY(types[i]->load(end + 1, n - name - 1, out));
      return WF_OK;
    }
  return wf_hint(
      WF_FAIL(WF_EFORMAT, "unknown tokenizer '%.*s'", name < 64 ? (int)name : 64, (const char *)blob),
      "the file may come from a newer Weft");
}

wf_status wf_tokenizer_open(const char *path, wf_tokenizer **out) {
  char *data;
  int64_t n;
  WF_TRY(wf_file_read(path, (int64_t)1 << 30, &data, &n));
  char *start = data + strspn(data, " \t\r\n");
  wf_status s;
  if (n == 0)
    s = WF_FAIL(WF_EFORMAT, "the file is empty");
  else if (*start == '{')
    s = wf_tokenizer_json(data, (size_t)n, out);
  else
    s = wf_tokenizer_sentencepiece_model(data, (size_t)n, out);
  wf_free(data);
  if (s != WF_OK) wf_context(s, "tokenizer %s", path);
  return s;
}

const char *wf_tokenizer_name(const wf_tokenizer *t) {
  return t->type->name;
}
int64_t wf_tokenizer_vocab(const wf_tokenizer *t) {
  return t->vocab;
}
int64_t wf_tokenizer_bos(const wf_tokenizer *t) {
  return t->bos;
}
int64_t wf_tokenizer_eos(const wf_tokenizer *t) {
  return t->eos;
}
int64_t wf_tokenizer_eot(const wf_tokenizer *t) {
  return t->eot;
}
const void *wf_tokenizer_blob(const wf_tokenizer *t, size_t *n) {
  *n = t->blob.n;
  return t->blob.data;
}

const char *wf_tokenizer_piece(const wf_tokenizer *t, uint32_t id, size_t *n) {
  *n = 0;
  if (id >= t->vocab) return NULL;
  *n = t->piece_start[id + 1] - t->piece_start[id];
  return *n ? t->pieces.data + t->piece_start[id] : "";
}

/* --- Encoding --- */

void wf_encoder_start(wf_encoder *e, const wf_tokenizer *t) {
  *e = (wf_encoder){.tokenizer = t};
}

static wf_status encode(wf_encoder *e, const char *text, size_t n, bool last, size_t *used, wf_ids *out) {
  wf_encode_args a = {.text = text, .n = n, .offset = e->offset, .inside = e->inside, .last = last};
  bool inside = e->inside;
  WF_TRY(e->tokenizer->type->encode(e->tokenizer, &a, used, &inside, out));
  e->offset += (int64_t)*used;
  e->inside = inside;
  return WF_OK;
}

wf_status wf_encoder_feed(wf_encoder *e, const char *text, size_t n, wf_ids *out) {
  size_t used = 0;
  if (e->held.n == 0) { /* the usual case needs no copy of what is encoded at once */
    WF_TRY(encode(e, text, n, false, &used, out));
    WF_TRY(wf_bytes_append(&e->held, text + used, n - used));
    return WF_OK;
  }
  WF_TRY(wf_bytes_append(&e->held, text, n));
  WF_TRY(encode(e, e->held.data, e->held.n, false, &used, out));
  e->held.n -= used;
  if (used) memmove(e->held.data, e->held.data + used, e->held.n);
  return WF_OK;
}

wf_status wf_encoder_end(wf_encoder *e, wf_ids *out) {
  size_t used = 0;
  if (e->held.n) WF_TRY(encode(e, e->held.data, e->held.n, true, &used, out));
  e->held.n = 0;
  e->offset = 0;
  e->inside = false;
  return WF_OK;
}

void wf_encoder_free(wf_encoder *e) {
  wf_bytes_free(&e->held);
}

wf_status wf_tokenizer_encode(const wf_tokenizer *t, const char *text, size_t n, wf_ids *out) {
  if (n == 0) return WF_OK;
  wf_encode_args a = {.text = text, .n = n, .last = true};
  size_t used;
  bool inside;
  WF_TRY(t->type->encode(t, &a, &used, &inside, out));
  return WF_OK;
}

/* --- Decoding --- */

static wf_status piece(const wf_tokenizer *t, uint32_t id, bool inside, const char **bytes, size_t *n) {
  *bytes = wf_tokenizer_piece(t, id, n);
  if (!*bytes)
    return WF_FAIL(WF_EINVAL, "id %u is outside the tokenizer's vocabulary of %lld", id, (long long)t->vocab);
  if (!inside && t->strip_space && *n && **bytes == ' ') ++*bytes, --*n;
  return WF_OK;
}

wf_status wf_tokenizer_decode(const wf_tokenizer *t, const uint32_t *ids, size_t n, wf_bytes *out) {
  bool inside = false;
  for (size_t i = 0; i < n; i++) {
    const char *bytes;
    size_t len;
    WF_TRY(piece(t, ids[i], inside, &bytes, &len));
    WF_TRY(wf_bytes_append(out, bytes, len));
    inside |= len > 0;
  }
  return WF_OK;
}

void wf_decoder_start(wf_decoder *d, const wf_tokenizer *t) {
  *d = (wf_decoder){.tokenizer = t};
}

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

wf_status wf_decoder_next(wf_decoder *d, uint32_t id, wf_bytes *out) {
  const char *bytes;
  size_t n;
  WF_TRY(piece(d->tokenizer, id, d->inside, &bytes, &n));
  d->inside |= n > 0;
  for (size_t i = 0; i < n; i++) {
    d->held[d->n_held++] = bytes[i];
    int len = wf_utf8_next(d->held, (size_t)d->n_held, NULL);
    if (len < 0 && d->n_held > 1) { /* the last byte broke the character: it may begin the next one */
      WF_TRY(wf_bytes_append(out, replacement, 3));
      d->held[0] = bytes[i];
      d->n_held = 1;
      len = wf_utf8_next(d->held, 1, NULL);
    }
    if (len == 0) continue;
    if (len < 0)
      WF_TRY(wf_bytes_append(out, replacement, 3));
    else
      WF_TRY(wf_bytes_append(out, d->held, (size_t)len));
    d->n_held = 0;
  }
  return WF_OK;
}

wf_status wf_decoder_end(wf_decoder *d, wf_bytes *out) {
  if (d->n_held) WF_TRY(wf_bytes_append(out, replacement, 3));
  wf_decoder_start(d, d->tokenizer);
  return WF_OK;
}
