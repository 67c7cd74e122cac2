/* The bytes tokenizer: an id is a byte. Its payload is "eot" when it has an end-of-document id, else nothing.
 */
#include <string.h>
#include "core/memory.h"
#include "data/tokenizer_impl.h"

static wf_status load(const char *payload, size_t n, wf_tokenizer **out) {
  bool eot = n == 3 && !memcmp(payload, "eot", 3);
  if (n && !eot) return WF_FAIL(WF_EFORMAT, "the tokenizer is damaged: unknown option of 'bytes'");
  wf_tokenizer *t = NULL;
  WF_TRY(wf_tokenizer_new(&wf_tokenizer_type_bytes, sizeof *t, eot ? 257 : 256, payload, n, &t));
  wf_status s = WF_OK;
  for (int i = 0; i < t->vocab && s == WF_OK; i++) {
    unsigned char byte = (unsigned char)i;
    s = wf_tokenizer_add_piece(t, i, &byte, i < 256);
  }
  if (s != WF_OK) {
    wf_tokenizer_free(t);
    return s;
  }
  if (eot) t->eot = t->eos = 256;
  *out = t;
  return WF_OK;
}

static wf_status encode(const wf_tokenizer *t, const wf_encode_args *a, size_t *used, bool *inside,
                        wf_ids *out) {
  (void)t;
  WF_TRY(wf_ids_reserve(out, a->n));
  for (size_t i = 0; i < a->n; i++) out->data[out->n++] = (unsigned char)a->text[i];
  *used = a->n;
  *inside = true;
  return WF_OK;
}

const wf_tokenizer_type wf_tokenizer_type_bytes = {.name = "bytes", .load = load, .encode = encode};

wf_status wf_tokenizer_bytes(bool eot, wf_tokenizer **out) {
  WF_TRY(load("eot", eot ? 3 : 0, out));
  return WF_OK;
}
