/* Fuzz target: a tokenizer.json, and after the byte 0x1e a text. What loads must give the same ids whether
 * the text comes whole or in pieces, every id must decode, and nothing may be left allocated. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/memory.h"
#include "data/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int truth, const char *what) {
  if (truth) return;
  fprintf(stderr, "%s: %s\n", what, wf_error_message());
  abort();
}

static void check_text(const wf_tokenizer *t, const char *text, size_t n) {
  wf_ids whole = {0}, pieces = {0};
  wf_bytes back = {0};
  wf_encoder e;
  wf_encoder_start(&e, t);
  wf_status s = wf_tokenizer_encode(t, text, n, &whole);
  wf_status p = WF_OK;
  for (size_t at = 0, part = 1; at < n && p == WF_OK; at += part, part = part % 7 + 1) {
    if (part > n - at) part = n - at;
    p = wf_encoder_feed(&e, text + at, part, &pieces);
  }
  if (p == WF_OK) p = wf_encoder_end(&e, &pieces);
  if (s == WF_OK) must(wf_tokenizer_decode(t, whole.data, whole.n, &back) == WF_OK, "does not decode");
  for (size_t i = 0; i < whole.n; i++) must(whole.data[i] < wf_tokenizer_vocab(t), "id out of range");
  wf_encoder_free(&e);
  wf_ids_free(&whole);
  wf_ids_free(&pieces);
  wf_bytes_free(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const int64_t live = wf_mem_live();
  const uint8_t *mark = size ? memchr(data, 0x1e, size) : NULL;
  const size_t n = mark ? (size_t)(mark - data) : size;
  wf_tokenizer *t;
  if (wf_tokenizer_json((const char *)data, n, &t) == WF_OK) {
    if (mark) check_text(t, (const char *)mark + 1, size - n - 1);
    wf_tokenizer_free(t);
  } else {
    must(wf_error_message()[0] != '\0', "no message");
  }
  must(wf_mem_live() == live, "memory left");
  return 0;
}
