/* UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF. */
#include "data/tokenizer_impl.h"

int wf_utf8_next(const char *p, size_t n, uint32_t *code) {
  const unsigned char *s = (const unsigned char *)p;
  if (s[0] < 0x80) {
    if (code) *code = s[0];
    return 1;
  }
  if (s[0] < 0xC2 || s[0] > 0xF4) return -1;
  int len = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
  uint32_t c = s[0] & (0x7Fu >> len);
  for (int i = 1; i < len; i++) {
    if ((size_t)i == n) return 0;
    unsigned low = 0x80,
             high = 0xBF; /* the second byte rules out overlong forms, surrogates and too large ones */
    if (i == 1 && s[0] == 0xE0) low = 0xA0;
    if (i == 1 && s[0] == 0xED) high = 0x9F;
    if (i == 1 && s[0] == 0xF0) low = 0x90;
    if (i == 1 && s[0] == 0xF4) high = 0x8F;
    if (s[i] < low || s[i] > high) return -1;
    c = c << 6 | (s[i] & 0x3Fu);
  }
  if (code) *code = c;
  return len;
}

size_t wf_utf8_whole(const char *p, size_t n) {
  for (size_t back = 1; back <= 3 && back <= n; back++) {
    if (((unsigned char)p[n - back] & 0xC0) == 0x80) continue;
    return wf_utf8_next(p + n - back, back, NULL) == 0 ? n - back : n;
  }
  return n;
}

int wf_utf8_put(uint32_t code, char out[4]) {
  unsigned char *o = (unsigned char *)out;
  if (code < 0x80) {
    o[0] = (unsigned char)code;
    return 1;
  }
  int len = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  for (int i = len - 1; i > 0; i--, code >>= 6) o[i] = (unsigned char)(0x80 | (code & 0x3F));
  o[0] = (unsigned char)((0xF00u >> len & 0xFF) | code);
  return len;
}
