/* The chars tokenizer: id 0 is the unknown character, id i > 0 the i-th of the code points seen in training,
 * in increasing order. Its payload is those code points as UTF-8. */
#include <string.h>
#include "core/memory.h"
#include "data/tokenizer_impl.h"

enum { CODES = 0x110000 };

typedef struct chars {
  wf_tokenizer base;
  uint32_t *id; /* [CODES]: 0 for unknown */
} chars;

static void chars_free(wf_tokenizer *t) {
  wf_free(((chars *)t)->id);
}

static wf_status not_utf8(int64_t offset) {
  return wf_hint(
      WF_FAIL(WF_EFORMAT, "invalid UTF-8 at byte %lld", (long long)offset),
      "convert the text (iconv -f LATIN1 -t UTF-8), or use the bytes tokenizer, which takes any bytes");
}

static wf_status load(const char *payload, size_t n, wf_tokenizer **out) {
  int64_t vocab = 1;
  for (size_t i = 0; i < n; i++) vocab += ((unsigned char)payload[i] & 0xC0) != 0x80;
  if (vocab == 1) return WF_FAIL(WF_EFORMAT, "the tokenizer is damaged: no characters");
  wf_tokenizer *t = NULL;
  WF_TRY(wf_tokenizer_new(&wf_tokenizer_type_chars, sizeof(chars), vocab, payload, n, &t));
  chars *c = (chars *)t;
  c->id = wf_calloc("tokenizer", CODES, sizeof *c->id);
  wf_status s = c->id ? wf_tokenizer_add_piece(t, 0, "\xEF\xBF\xBD", 3) : WF_ENOMEM;
  uint32_t id = 1, code;
  int len;
  for (size_t i = 0; i < n && s == WF_OK; i += (size_t)len) {
    if ((len = wf_utf8_next(payload + i, n - i, &code)) <= 0 || c->id[code]) {
      s = WF_FAIL(WF_EFORMAT, "the tokenizer is damaged: its list of characters is not one");
      break;
    }
    c->id[code] = id;
    s = wf_tokenizer_add_piece(t, id++, payload + i, (size_t)len);
  }
  if (s != WF_OK) {
    wf_tokenizer_free(t);
    return wf_frame_at(__FILE__, __LINE__, __func__, s);
  }
  *out = t;
  return WF_OK;
}

static wf_status encode(const wf_tokenizer *t, const wf_encode_args *a, size_t *used, bool *inside,
                        wf_ids *out) {
  const chars *c = (const chars *)t;
  size_t i = 0;
  while (i < a->n) {
    uint32_t code;
    int len = wf_utf8_next(a->text + i, a->n - i, &code);
    if (len == 0 && !a->last) break;
    if (len <= 0) return not_utf8(a->offset + (int64_t)i);
    WF_TRY(wf_ids_push(out, c->id[code]));
    i += (size_t)len;
  }
  *used = i;
  *inside = true;
  return WF_OK;
}

const wf_tokenizer_type wf_tokenizer_type_chars = {
    .name = "chars", .load = load, .encode = encode, .free = chars_free};

/* Mark the characters of one piece of text; a character may be cut between pieces: `held` keeps its
 * beginning. */
static wf_status mark(unsigned char *seen, wf_bytes *held, const char *text, size_t n, int64_t *offset) {
  WF_TRY(wf_bytes_append(held, text, n));
  size_t i = 0;
  while (i < held->n) {
    uint32_t code;
    int len = wf_utf8_next(held->data + i, held->n - i, &code);
    if (len < 0) return not_utf8(*offset + (int64_t)i);
    if (len == 0) break;
    seen[code] = 1;
    i += (size_t)len;
  }
  *offset += (int64_t)i;
  memmove(held->data, held->data + i, held->n - i);
  held->n -= i;
  return WF_OK;
}

wf_status wf_tokenizer_train_chars(wf_text_next next, void *context, wf_tokenizer **out) {
  wf_bytes held = {0}, payload = {0};
  wf_status s = WF_OK;
  int64_t offset = 0;
  unsigned char *seen = wf_calloc("tokenizer", CODES, 1);
  if (!seen) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  for (;;) {
    const char *text;
    size_t n = 0;
    WF_TRY_GOTO(s, done, next(context, &text, &n));
    if (n == 0) break;
    WF_TRY_GOTO(s, done, mark(seen, &held, text, n, &offset));
  }
  if (held.n) {
    s = not_utf8(offset);
    goto done;
  }
  for (uint32_t code = 0; code < CODES; code++) {
    char bytes[4];
    if (seen[code]) WF_TRY_GOTO(s, done, wf_bytes_append(&payload, bytes, (size_t)wf_utf8_put(code, bytes)));
  }
  if (payload.n == 0) {
    s = WF_FAIL(WF_EINVAL, "there is no text to take the characters from");
    goto done;
  }
  WF_TRY_GOTO(s, done, load(payload.data, payload.n, out));
done:
  wf_free(seen);
  wf_bytes_free(&held);
  wf_bytes_free(&payload);
  return s;
}
