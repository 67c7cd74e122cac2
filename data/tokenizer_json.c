/* Hugging Face's tokenizer.json with byte-level BPE (GPT-2, Llama 3 and kin).
 *
 * A text is cut at its added tokens; what lies between goes through the pre-tokenizers (data/presplit.h) and
 * each word through the merges (data/bpe.h). The vocabulary writes bytes as visible characters (GPT-2's
 * table, byte_of below). The post-processor only adds begin and end ids, which Weft leaves to the caller: it
 * is read for `bos` alone. Truncation and padding are settings of a call, not of the tokenizer, and are
 * passed over. Every other component that is not supported is refused by name.
 */
#include <jansson.h>
#include <stdarg.h>
#include <string.h>
#include "core/memory.h"
#include "data/bpe.h"
#include "data/presplit.h"
#include "data/tokenizer_impl.h"

enum { MAX_VOCAB = 1 << 24, BYTE_CODES = 324 };
#define NO_ID UINT32_MAX

typedef struct added {
  char *text;
  size_t n;
  uint32_t id;
} added;

typedef struct hf {
  wf_tokenizer base;
  wf_presplit *presplit;
  wf_bpe bpe;
  added *added; /* longest first */
  size_t n_added, longest;
  bool first_byte[256]; /* an added token starts with it */
  uint32_t *word_slots; /* whole words by their bytes, for ignore_merges: ids, NO_ID where empty */
  uint64_t word_mask;
} hf;

static void hf_free(wf_tokenizer *t) {
  hf *h = (hf *)t;
  wf_presplit_free(h->presplit);
  wf_bpe_free(&h->bpe);
  for (size_t i = 0; i < h->n_added; i++) wf_free(h->added[i].text);
  wf_free(h->added);
  wf_free(h->word_slots);
}

/* --- The alphabet: printable Latin-1 stands for itself, the other bytes in order for U+0100, U+0101, ... ---
 */

static bool printable(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

static void make_alphabet(int16_t byte_of[BYTE_CODES], uint32_t code_of[256]) {
  memset(byte_of, -1, BYTE_CODES * sizeof *byte_of);
  uint32_t next = 0x100;
  for (int b = 0; b < 256; b++) {
    code_of[b] = printable(b) ? (uint32_t)b : next++;
    byte_of[code_of[b]] = (int16_t)b;
  }
}

/* The bytes a vocabulary entry stands for; an entry with other characters stands for itself. */
static wf_status entry_bytes(const int16_t *byte_of, const char *entry, size_t n, wf_bytes *out) {
  out->n = 0;
  for (size_t i = 0; i < n;) {
    uint32_t code = 0;
    int len = wf_utf8_next(entry + i, n - i, &code);
    if (len <= 0 || code >= BYTE_CODES || byte_of[code] < 0) {
      out->n = 0;
      return wf_bytes_append(out, entry, n);
    }
    char byte = (char)byte_of[code];
    WF_TRY(wf_bytes_append(out, &byte, 1));
    i += (size_t)len;
  }
  return WF_OK;
}

/* --- Reading the file --- */

static wf_status unsupported(const char *fmt, ...) WF_PRINTF(1, 2);

static wf_status unsupported(const char *fmt, ...) {
  char what[200];
  va_list args;
  va_start(args, fmt);
  vsnprintf(what, sizeof what, fmt, args);
  va_end(args);
  return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "%s is not supported in a tokenizer.json", what),
                 "Weft reads byte-level BPE, as GPT-2 and Llama 3 use it");
}

static wf_status damaged(const char *what) {
  return WF_FAIL(WF_EFORMAT, "tokenizer.json: %s", what);
}

static const char *type_of(const json_t *object) {
  const char *type = json_string_value(json_object_get(object, "type"));
  return type ? type : "(none)";
}

static bool is(const json_t *object, const char *type) {
  return strcmp(type_of(object), type) == 0;
}

static bool truth(const json_t *object, const char *key, bool otherwise) {
  const json_t *v = json_object_get(object, key);
  return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

/* GPT-2's own pattern, which the ByteLevel pre-tokenizer applies. */
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static wf_status read_split(wf_presplit *p, const json_t *step) {
  const json_t *pattern = json_object_get(step, "pattern");
  const json_t *regex = json_object_get(pattern, "Regex"), *plain = json_object_get(pattern, "String");
  const char *behavior = json_string_value(json_object_get(step, "behavior"));
  if (!json_is_string(regex) && !json_is_string(plain))
    return damaged("a Split pre-tokenizer has no pattern");
  if (!behavior) return damaged("a Split pre-tokenizer has no behavior");
  unsigned keep = WF_SPLIT_KEEP_MATCHES | WF_SPLIT_KEEP_REST;
  if (!strcmp(behavior, "Removed"))
    keep = truth(step, "invert", false) ? WF_SPLIT_KEEP_MATCHES : WF_SPLIT_KEEP_REST;
  else if (strcmp(behavior, "Isolated") != 0)
    return unsupported("the Split behavior '%s'", behavior);
  if (regex) return wf_presplit_add(p, json_string_value(regex), json_string_length(regex), keep, false);
  wf_bytes quoted = {0}; /* a plain string is a pattern with every byte that could mean something escaped */
  wf_status s = WF_OK;
  const char *text = json_string_value(plain);
  for (size_t i = 0; i < json_string_length(plain) && s == WF_OK; i++) {
    unsigned char c = (unsigned char)text[i];
    if (c < 0x80 && c > 0x20 && strchr("\\^$.[]|()?*+{}-#", c)) s = wf_bytes_append(&quoted, "\\", 1);
    if (s == WF_OK) s = wf_bytes_append(&quoted, &text[i], 1);
  }
  if (s == WF_OK) s = wf_presplit_add(p, quoted.data ? quoted.data : "", quoted.n, keep, false);
  wf_bytes_free(&quoted);
  return s;
}

static wf_status read_pre_tokenizer(wf_presplit *p, const json_t *step, bool inside, bool *byte_level) {
  if (is(step, "Sequence") && !inside) {
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(step, "pretokenizers"), i, one) {
      WF_TRY(read_pre_tokenizer(p, one, true, byte_level));
    }
    return WF_OK;
  }
  if (*byte_level) return unsupported("a pre-tokenizer after ByteLevel");
  if (is(step, "Split")) return read_split(p, step);
  if (!is(step, "ByteLevel")) return unsupported("the pre-tokenizer '%s'", type_of(step));
  *byte_level = true;
  bool regex = truth(step, "use_regex", true), space = truth(step, "add_prefix_space", true);
  return wf_presplit_add(p, regex ? gpt2_pattern : NULL, sizeof gpt2_pattern - 1,
                         WF_SPLIT_KEEP_MATCHES | WF_SPLIT_KEEP_REST, space);
}

/* Components that must be absent, or of the one kind that byte-level BPE has. */
static wf_status check_components(const json_t *root) {
  const json_t *normalizer = json_object_get(root, "normalizer"), *decoder = json_object_get(root, "decoder");
  const json_t *model = json_object_get(root, "model");
  if (!json_is_object(model)) return damaged("there is no model");
  if (normalizer && !json_is_null(normalizer)) return unsupported("the normalizer '%s'", type_of(normalizer));
  if (json_is_object(decoder) && !is(decoder, "ByteLevel"))
    return unsupported("the decoder '%s'", type_of(decoder));
  if (json_object_get(model, "type") && !is(model, "BPE"))
    return unsupported("the model '%s'", type_of(model));
  static const char *const texts[] = {"continuing_subword_prefix", "end_of_word_suffix"};
  for (int i = 0; i < 2; i++) {
    const json_t *v = json_object_get(model, texts[i]);
    if (json_is_string(v) && json_string_length(v)) return unsupported("the model's %s", texts[i]);
  }
  if (json_number_value(json_object_get(model, "dropout")) > 0) return unsupported("the model's dropout");
  if (truth(model, "byte_fallback", false)) return unsupported("the model's byte_fallback");
  if (!json_is_object(json_object_get(model, "vocab"))) return damaged("the model has no vocab");
  if (!json_is_array(json_object_get(model, "merges"))) return damaged("the model has no merges");
  return WF_OK;
}

static wf_status read_id(const json_t *value, int64_t *id) {
  *id = json_is_integer(value) ? json_integer_value(value) : -1;
  if (*id < 0 || *id >= MAX_VOCAB) return damaged("an id is not a number between 0 and 16777215");
  return WF_OK;
}

static wf_status count_ids(const json_t *root, int64_t *vocab) {
  int64_t id, most = -1;
  size_t i;
  json_t *value, *entries = json_object_get(json_object_get(root, "model"), "vocab");
  for (void *at = json_object_iter(entries); at; at = json_object_iter_next(entries, at)) {
    WF_TRY(read_id(json_object_iter_value(at), &id));
    if (id > most) most = id;
  }
  json_array_foreach(json_object_get(root, "added_tokens"), i, value) {
    WF_TRY(read_id(json_object_get(value, "id"), &id));
    if (id > most) most = id;
  }
  if (most < 0) return damaged("the vocabulary is empty");
  *vocab = most + 1;
  return WF_OK;
}

static wf_status read_added(hf *h, const json_t *root) {
  const json_t *list = json_object_get(root, "added_tokens");
  size_t count = json_array_size(list);
  WF_CALLOC(h->added, "tokenizer", count ? count : 1);
  for (size_t i = 0; i < count; i++) {
    const json_t *one = json_array_get(list, i), *content = json_object_get(one, "content");
    if (!json_is_string(content) || !json_string_length(content))
      return damaged("an added token has no content");
    static const char *const flags[] = {"single_word", "lstrip", "rstrip"};
    for (int f = 0; f < 3; f++)
      if (truth(one, flags[f], false))
        return unsupported("%s of the added token '%s'", flags[f], json_string_value(content));
    added a = {.n = json_string_length(content)};
    a.id = (uint32_t)json_integer_value(json_object_get(one, "id")); /* checked by count_ids */
    if (!(a.text = wf_strndup("tokenizer", json_string_value(content), a.n)))
      return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
    size_t at = h->n_added++;
    for (; at > 0 && h->added[at - 1].n < a.n; at--) h->added[at] = h->added[at - 1];
    h->added[at] = a;
    h->first_byte[(unsigned char)a.text[0]] = true;
  }
  h->longest = h->n_added ? h->added[0].n : 0;
  return WF_OK;
}

/* The table of pieces: ids in order, from the vocabulary and the added tokens (which win). */
static wf_status read_pieces(hf *h, json_t *entries, const int16_t *byte_of) {
  wf_tokenizer *t = &h->base;
  typedef struct source {
    const char *text;
    size_t n;
    bool literal;
  } source;
  source *sources;
  wf_bytes bytes = {0};
  WF_CALLOC(sources, "tokenizer", t->vocab);
  for (void *at = json_object_iter(entries); at; at = json_object_iter_next(entries, at))
    sources[json_integer_value(json_object_iter_value(at))] =
        (source){json_object_iter_key(at), json_object_iter_key_len(at), false};
  for (size_t i = 0; i < h->n_added; i++)
    sources[h->added[i].id] = (source){h->added[i].text, h->added[i].n, true};
  wf_status s = WF_OK;
  for (int64_t id = 0; id < t->vocab && s == WF_OK; id++) {
    const source *from = &sources[id];
    if (from->literal) {
      s = wf_tokenizer_add_piece(t, id, from->text, from->n);
      continue;
    }
    s = entry_bytes(byte_of, from->text, from->n, &bytes);
    if (s == WF_OK) s = wf_tokenizer_add_piece(t, id, bytes.data, bytes.n);
  }
  wf_bytes_free(&bytes);
  wf_free(sources);
  return s;
}

static uint32_t lookup(json_t *entries, const char *text, size_t n) {
  const json_t *v = json_object_getn(entries, text, n);
  return v ? (uint32_t)json_integer_value(v) : NO_ID;
}

static wf_status read_bytes(hf *h, const json_t *model, const uint32_t *code_of) {
  json_t *entries = json_object_get(model, "vocab");
  const json_t *unknown = json_object_get(model, "unk_token");
  uint32_t otherwise = NO_ID;
  if (json_is_string(unknown))
    otherwise = lookup(entries, json_string_value(unknown), json_string_length(unknown));
  for (int b = 0; b < 256; b++) {
    char text[4];
    uint32_t id = lookup(entries, text, (size_t)wf_utf8_put(code_of[b], text));
    if (id == NO_ID && otherwise != NO_ID && truth(model, "fuse_unk", false))
      return unsupported("the model's fuse_unk");
    h->bpe.byte_id[b] = id == NO_ID ? otherwise : id;
  }
  return WF_OK;
}

static wf_status read_merges(hf *h, const json_t *model) {
  json_t *entries = json_object_get(model, "vocab");
  const json_t *merges = json_object_get(model, "merges");
  size_t count = json_array_size(merges);
  wf_bytes joined = {0};
  wf_status s = wf_bpe_init(&h->bpe, count);
  for (size_t i = 0; i < count && s == WF_OK; i++) {
    const json_t *m = json_array_get(merges, i), *a = json_array_get(m, 0), *b = json_array_get(m, 1);
    const char *left = json_string_value(a), *right = json_string_value(b);
    size_t n_left = json_string_length(a), n_right = json_string_length(b);
    const char *space = json_is_string(m) ? strchr(json_string_value(m), ' ') : NULL;
    if (space) { /* the older way: both in one string */
      left = json_string_value(m);
      n_left = (size_t)(space - left);
      right = space + 1;
      n_right = json_string_length(m) - n_left - 1;
    }
    if (!left || !right) {
      s = WF_FAIL(WF_EFORMAT, "tokenizer.json: merge %zu is not a pair", i);
      break;
    }
    joined.n = 0;
    s = wf_bytes_append(&joined, left, n_left);
    if (s == WF_OK) s = wf_bytes_append(&joined, right, n_right);
    if (s != WF_OK) break;
    uint32_t l = lookup(entries, left, n_left), r = lookup(entries, right, n_right);
    uint32_t both = lookup(entries, joined.data, joined.n);
    if (l == NO_ID || r == NO_ID || both == NO_ID) {
      s = WF_FAIL(WF_EFORMAT, "tokenizer.json: merge %zu names a token that the vocabulary lacks", i);
      break;
    }
    wf_bpe_add(&h->bpe, l, r, (uint32_t)i, both);
  }
  wf_bytes_free(&joined);
  return s;
}

/* --- Whole words, for ignore_merges --- */

static uint32_t *word_slot(const hf *h, const char *word, size_t n) {
  uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a */
  for (size_t i = 0; i < n; i++) hash = (hash ^ (unsigned char)word[i]) * 0x100000001B3u;
  hash ^= hash >> 32;
  for (;; hash++) {
    uint32_t *slot = &h->word_slots[hash & h->word_mask];
    if (*slot == NO_ID) return slot;
    size_t len;
    const char *piece = wf_tokenizer_piece(&h->base, *slot, &len);
    if (len == n && !memcmp(piece, word, n)) return slot;
  }
}

static wf_status index_words(hf *h, json_t *entries) {
  uint64_t size = 16;
  while (size < 2 * (uint64_t)h->base.vocab) size *= 2;
  WF_ALLOC(h->word_slots, "tokenizer", size * sizeof *h->word_slots);
  h->word_mask = size - 1;
  memset(h->word_slots, 0xFF, size * sizeof *h->word_slots);
  for (void *at = json_object_iter(entries); at; at = json_object_iter_next(entries, at)) {
    uint32_t id = (uint32_t)json_integer_value(json_object_iter_value(at));
    size_t n;
    const char *piece = wf_tokenizer_piece(&h->base, id, &n);
    if (n) *word_slot(h, piece, n) = id;
  }
  return WF_OK;
}

/* --- Special ids --- */

static int64_t added_id(const hf *h, const char *const *names, int n) {
  for (int k = 0; k < n; k++)
    for (size_t i = 0; i < h->n_added; i++)
      if (!strcmp(h->added[i].text, names[k])) return h->added[i].id;
  return -1;
}

static void find_special(hf *h, const json_t *root) {
  static const char *const bos[] = {"<|begin_of_text|>", "<s>", "<bos>"};
  static const char *const eos[] = {"<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"};
  static const char *const eot[] = {"<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"};
  wf_tokenizer *t = &h->base;
  t->bos = added_id(h, bos, 3);
  t->eos = added_id(h, eos, 4);
  t->eot = added_id(h, eot, 4);
  /* The post-processor, where there is one, says what stands in front of a text. */
  const json_t *post = json_object_get(root, "post_processor"), *one;
  size_t i;
  const json_t *list = json_object_get(post, "processors");
  json_array_foreach(list, i, one) {
    if (is(one, "TemplateProcessing")) post = one;
  }
  const json_t *first = json_array_get(json_object_get(post, "single"), 0);
  const char *name = json_string_value(json_object_get(json_object_get(first, "SpecialToken"), "id"));
  if (is(post, "TemplateProcessing") && name && added_id(h, &name, 1) >= 0) t->bos = added_id(h, &name, 1);
}

static wf_status fill(hf *h, const json_t *root) {
  int16_t byte_of[BYTE_CODES];
  uint32_t code_of[256];
  make_alphabet(byte_of, code_of);
  const json_t *model = json_object_get(root, "model");
  json_t *entries = json_object_get(model, "vocab");
  const json_t *pre = json_object_get(root, "pre_tokenizer");
  bool byte_level = false;
  WF_TRY(wf_presplit_new(&h->presplit));
  if (json_is_object(pre)) WF_TRY(read_pre_tokenizer(h->presplit, pre, false, &byte_level));
  if (!byte_level) return unsupported("a model without the ByteLevel pre-tokenizer");
  WF_TRY(read_added(h, root));
  WF_TRY(read_pieces(h, entries, byte_of));
  WF_TRY(read_merges(h, model));
  WF_TRY(read_bytes(h, model, code_of));
  if (truth(model, "ignore_merges", false)) WF_TRY(index_words(h, entries));
  find_special(h, root);
  return WF_OK;
}

wf_status wf_tokenizer_json(const char *json, size_t n, wf_tokenizer **out) {
  json_error_t error;
  json_t *root = json_loadb(json, n, JSON_ALLOW_NUL, &error);
  if (!root)
    return WF_FAIL(WF_EFORMAT, "tokenizer.json is not JSON: line %d, column %d: %s", error.line, error.column,
                   error.text);
  wf_tokenizer *t = NULL;
  int64_t vocab = 0;
  wf_status s = check_components(root);
  if (s == WF_OK) s = count_ids(root, &vocab);
  if (s == WF_OK) s = wf_tokenizer_new(&wf_tokenizer_type_json, sizeof(hf), vocab, json, n, &t);
  if (s == WF_OK) s = fill((hf *)t, root);
  json_decref(root);
  if (s != WF_OK) {
    wf_tokenizer_free(t);
    return wf_frame_at(__FILE__, __LINE__, __func__, s);
  }
  *out = t;
  return WF_OK;
}

/* --- Encoding --- */

typedef struct words {
  const hf *h;
  wf_bpe_scratch scratch;
  wf_ids *out;
} words;

static wf_status encode_word(void *context, const char *word, size_t n) {
  words *w = context;
  const hf *h = w->h;
  if (h->word_slots) {
    uint32_t id = *word_slot(h, word, n);
    if (id != NO_ID) return wf_ids_push(w->out, id);
  }
  for (size_t i = 0; i < n; i++)
    if (h->bpe.byte_id[(unsigned char)word[i]] == NO_ID)
      return wf_hint(WF_FAIL(WF_EINVAL, "the tokenizer has no id for the byte 0x%02X of the text",
                             (unsigned char)word[i]),
                     "its vocabulary lacks part of the byte alphabet; train it with the whole alphabet");
  return wf_bpe_encode(&h->bpe, &w->scratch, word, n, w->out);
}

/* The longest added token at `at`, or NULL. */
static const added *added_at(const hf *h, const char *text, size_t n, size_t at) {
  if (!h->first_byte[(unsigned char)text[at]]) return NULL;
  for (size_t i = 0; i < h->n_added; i++)
    if (h->added[i].n <= n - at && !memcmp(h->added[i].text, text + at, h->added[i].n)) return &h->added[i];
  return NULL;
}

static wf_status encode(const wf_tokenizer *t, const wf_encode_args *a, size_t *used, bool *inside,
                        wf_ids *out) {
  const hf *h = (const hf *)t;
  words w = {.h = h, .out = out};
  wf_status s = WF_OK;
  size_t at = 0, taken;
  /* Where more text may come, an added token is only certain where the longest would fit. */
  size_t certain = a->last ? a->n : h->longest == 0 ? a->n : a->n >= h->longest ? a->n - h->longest + 1 : 0;
  if (!a->last) certain = wf_utf8_whole(a->text, certain);
  *inside = a->inside;
  while (at < certain && s == WF_OK) {
    const added *token = NULL;
    size_t end = at;
    while (end < certain && !(token = added_at(h, a->text, a->n, end))) end++;
    bool closed = a->last || token;
    s = wf_presplit_run(h->presplit, a->text + at, end - at, *inside, closed, &taken, encode_word, &w);
    at += taken;
    if (taken) *inside = true;
    if (s != WF_OK || !token) break;
    s = wf_ids_push(out, token->id);
    at = end + token->n;
    *inside = false;
  }
  wf_bpe_scratch_free(&w.scratch);
  *used = at;
  return s;
}

const wf_tokenizer_type wf_tokenizer_type_json = {
    .name = "tokenizer.json", .load = wf_tokenizer_json, .encode = encode, .free = hf_free};
