/* Building a token store in three stages: make the tokenizer (which may read all texts), encode every
 * document into a spool, and, when all lengths are known, divide the documents among the splits and copy them
 * to their places. */
#include "data/store.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "core/file.h"
#include "core/h5.h"
#include "core/memory.h"
#include "core/rng.h"
#include "data/source.h"
#include "data/spool.h"
#include "data/store_impl.h"

const wf_option wf_store_option_table[] = {
    WF_OPT_STR(
        wf_store_options, tokenizer, "bytes",
        "bytes, chars, bpe, unigram (SentencePiece, trained here), or a tokenizer.json or .model file"),
    WF_OPT_I64(wf_store_options, vocab_size, "8192", 2, 1 << 24, "ids of a trained bpe or unigram tokenizer"),
    WF_OPT_STRF(wf_store_options, output, NULL, WF_OPT_REQUIRED, "the token store to write"),
    WF_OPT_BOOL(wf_store_options, replace, "false", "replace an existing output"),
    WF_OPT_STR(wf_store_options, split, NULL, "a line equal to this separates documents inside a file"),
    WF_OPT_STR(wf_store_options, key, "text", "key of the text in .jsonl files"),
    WF_OPT_F64F(wf_store_options, validation, "auto", 0, 0.9, WF_OPT_AUTO,
                "fraction held back for validation; auto: 0.1, or 0 when validation files are given"),
    WF_OPT_F64(wf_store_options, test, "0", 0, 0.9, "fraction held back for the final test"),
    WF_OPT_STR(wf_store_options, validation_file, NULL, "a text, or a folder of texts, for validation"),
    WF_OPT_STR(wf_store_options, test_file, NULL, "a text, or a folder of texts, for the final test"),
    WF_OPT_I64(wf_store_options, seed, "1", 0, INT32_MAX, "decides which documents are held back"),
    WF_OPT_BOOL(wf_store_options, eot, "false", "end each document with the tokenizer's end-of-text id"),
    WF_OPT_END};

enum { PART = 1 << 18 };

/* One stored document. */
typedef struct document {
  int64_t tokens, bytes;
  int64_t split; /* -1: by the fractions */
} document;

typedef struct build {
  const wf_store_options *o;
  double fraction[WF_N_SPLITS];
  wf_source *source;
  wf_tokenizer *tokenizer;
  wf_dtype dtype;
  wf_spool ids, documents;
  int64_t n_tokens, n_documents, n_loose, n_loose_tokens; /* loose: those with split -1 */
  XXH64_state_t *sum;
  wf_store_report report;
  bool tail;                    /* the fractions are taken from the end of the loose tokens */
  int64_t cut[WF_N_SPLITS + 1]; /* ... between these places */
  wf_rng_key key;
  wf_store_progress progress;
  void *context;
  int64_t passes_done, passes;
} build;

static void tell(const build *b) {
  int64_t bytes = wf_source_bytes(b->source);
  if (b->progress)
    b->progress(b->context, b->passes_done * bytes + wf_source_done(b->source), b->passes * bytes);
}

static wf_status in_file(wf_status s, const wf_source_part *p) {
  if (p->line > 1) return wf_context(s, "%s: document from line %lld", p->file->path, (long long)p->line);
  return wf_context(s, "%s", p->file->path);
}

/* --- 1. The tokenizer --- */

typedef struct training {
  build *b;
  bool lines; /* a document ends its line */
  bool owed;  /* the line's end of the last document */
} training;

static wf_status next_text(void *context, const char **text, size_t *n) {
  training *t = context;
  wf_source_part part;
  bool got = true;
  *n = 0;
  if (t->owed) {
    t->owed = false;
    *text = "\n";
    *n = 1;
    return WF_OK;
  }
  while (*n == 0) {
    WF_TRY(wf_source_next(t->b->source, &part, &got));
    if (!got) return WF_OK;
    tell(t->b);
    if (part.file->tag > WF_TRAIN) continue; /* held-back text teaches nothing */
    *text = part.text;
    *n = part.n;
    t->owed = t->lines && part.end && part.n && part.text[part.n - 1] != '\n';
  }
  return WF_OK;
}

static wf_status make_tokenizer(build *b) {
  const char *kind = b->o->tokenizer;
  bool pieces = !strcmp(kind, "bpe") || !strcmp(kind, "unigram");
  training t = {.b = b, .lines = pieces};
  b->passes = 1;
  if (!strcmp(kind, "bytes")) {
    WF_TRY(wf_tokenizer_bytes(b->o->eot, &b->tokenizer));
  } else if (pieces || !strcmp(kind, "chars")) {
    b->passes = 2;
    if (pieces)
      WF_TRY(wf_tokenizer_train_sentencepiece(kind, b->o->vocab_size, next_text, &t, &b->tokenizer));
    else
      WF_TRY(wf_tokenizer_train_chars(next_text, &t, &b->tokenizer));
    WF_TRY(wf_source_rewind(b->source));
    b->passes_done = 1;
  } else {
    wf_status s = wf_tokenizer_open(kind, &b->tokenizer);
    if (s == WF_ENOTFOUND)
      wf_hint(
          s,
          "--tokenizer takes bytes, chars, bpe, unigram, or a tokenizer.json or SentencePiece .model file");
    WF_TRY(s);
  }
  if (b->o->eot && wf_tokenizer_eot(b->tokenizer) < 0)
    return wf_hint(WF_FAIL(WF_EINVAL, "the tokenizer %s has no end-of-text id", kind),
                   "leave --eot out: the store keeps documents apart without it");
  b->dtype = wf_store_dtype(wf_tokenizer_vocab(b->tokenizer));
  return WF_OK;
}

/* --- 2. Encoding --- */

static wf_status spool_ids(build *b, wf_ids *ids) {
  size_t size = wf_dtype_size(b->dtype);
  char *narrow = (char *)ids->data; /* in place, from the start: an id is read before its room is needed */
  for (size_t i = 0; i < ids->n && size < 4; i++) {
    uint32_t id = ids->data[i];
    if (size == 1) {
      narrow[i] = (char)id;
    } else {
      uint16_t u16 = (uint16_t)id;
      memcpy(narrow + 2 * i, &u16, sizeof u16);
    }
  }
  XXH64_update(b->sum, narrow, ids->n * size);
  WF_TRY(wf_spool_append(&b->ids, narrow, ids->n * size));
  b->n_tokens += (int64_t)ids->n;
  ids->n = 0;
  return WF_OK;
}

static wf_status end_document(build *b, document *d, wf_ids *ids, int64_t start) {
  if (b->n_tokens + (int64_t)ids->n == start) {
    b->report.empty++;
    return WF_OK;
  }
  if (b->o->eot) WF_TRY(wf_ids_push(ids, (uint32_t)wf_tokenizer_eot(b->tokenizer)));
  WF_TRY(spool_ids(b, ids));
  d->tokens = b->n_tokens - start;
  XXH64_update(b->sum, d, sizeof *d);
  WF_TRY(wf_spool_append(&b->documents, d, sizeof *d));
  b->n_documents++;
  b->report.text_bytes += d->bytes;
  if (d->split < 0) {
    b->n_loose++;
    b->n_loose_tokens += d->tokens;
  }
  return WF_OK;
}

static wf_status encode_parts(build *b, wf_encoder *e, wf_ids *ids) {
  document d = {0};
  int64_t start = 0;
  wf_source_part part;
  for (bool got = true;;) {
    WF_TRY(wf_source_next(b->source, &part, &got));
    if (!got) return WF_OK;
    tell(b);
    wf_status s = wf_encoder_feed(e, part.text, part.n, ids);
    if (s == WF_OK && part.end) s = wf_encoder_end(e, ids);
    if (s != WF_OK) return in_file(s, &part);
    d.bytes += (int64_t)part.n;
    d.split = part.file->tag;
    if (part.end) {
      WF_TRY(end_document(b, &d, ids, start));
      start = b->n_tokens;
      d = (document){0};
    } else {
      WF_TRY(spool_ids(b, ids));
    }
  }
}

static wf_status encode_all(build *b) {
  wf_encoder e;
  wf_ids ids = {0};
  wf_encoder_start(&e, b->tokenizer);
  wf_status s = encode_parts(b, &e, &ids);
  wf_encoder_free(&e);
  wf_ids_free(&ids);
  WF_TRY(s);
  if (b->n_tokens == 0) return WF_FAIL(WF_EINVAL, "there is no text in the inputs");
  WF_TRY(wf_spool_flush(&b->ids));
  WF_TRY(wf_spool_flush(&b->documents));
  return WF_OK;
}

/* --- 3. Dividing --- */

/* Which split the loose document of this number belongs to, when whole documents are divided. */
static int hashed_split(const build *b, int64_t number) {
  double u = wf_rng_uniform(b->key, (uint64_t)number);
  if (u < b->fraction[WF_TEST]) return WF_TEST;
  return u < b->fraction[WF_TEST] + b->fraction[WF_VALIDATION] ? WF_VALIDATION : WF_TRAIN;
}

/* Goes through the documents in order. */
typedef struct walker {
  const build *b;
  document *part;          /* [PART], read ahead */
  int64_t next;            /* number of the next document */
  int64_t at;              /* first id of the current one in the spool */
  int64_t loose, loose_at; /* number and first id among the loose ones */
  document d;
} walker;

static wf_status walker_start(walker *w, const build *b) {
  *w = (walker){.b = b};
  WF_ALLOC(w->part, "store", PART * sizeof *w->part);
  return WF_OK;
}

static wf_status walker_next(walker *w, bool *got) {
  if (w->next > 0) {
    w->at += w->d.tokens;
    if (w->d.split < 0) w->loose++, w->loose_at += w->d.tokens;
  }
  *got = w->next < w->b->n_documents;
  if (!*got) return WF_OK;
  if (w->next % PART == 0) {
    int64_t left = w->b->n_documents - w->next, n = left < PART ? left : PART, size = sizeof(document);
    WF_TRY(wf_spool_read(&w->b->documents, w->part, n * size, w->next * size));
  }
  w->d = w->part[w->next++ % PART];
  return WF_OK;
}

/* The ids of the current document that go to split k: [*from, *to) of the spool; empty when none. */
static void share(const walker *w, int k, int64_t *from, int64_t *to) {
  const build *b = w->b;
  *from = *to = w->at;
  if (w->d.split >= 0 || !b->tail) {
    if ((w->d.split >= 0 ? w->d.split : hashed_split(b, w->loose)) == k) *to = w->at + w->d.tokens;
    return;
  }
  int64_t low = b->cut[k] > w->loose_at ? b->cut[k] : w->loose_at, end = w->loose_at + w->d.tokens;
  int64_t high = b->cut[k + 1] < end ? b->cut[k + 1] : end;
  if (low >= high) return;
  *from = w->at + low - w->loose_at;
  *to = w->at + high - w->loose_at;
}

/* Bytes of text that ids [from, to) of the spool stand for. */
static wf_status text_bytes(const build *b, int64_t from, int64_t to, int64_t *bytes) {
  int64_t size = (int64_t)wf_dtype_size(b->dtype);
  char *ids;
  WF_ALLOC(ids, "store", (size_t)PART * (size_t)size);
  wf_status s = WF_OK;
  *bytes = 0;
  for (int64_t at = from; at < to && s == WF_OK; at += PART) {
    int64_t n = to - at < PART ? to - at : PART;
    s = wf_spool_read(&b->ids, ids, n * size, at * size);
    for (int64_t i = 0; i < n && s == WF_OK; i++) {
      size_t len;
      wf_tokenizer_piece(b->tokenizer, wf_store_id(ids, b->dtype, i), &len);
      *bytes += (int64_t)len;
    }
  }
  wf_free(ids);
  return s;
}

typedef struct split_size {
  int64_t tokens, documents, bytes;
} split_size;

static wf_status measure(const build *b, split_size sizes[WF_N_SPLITS]) {
  walker w;
  wf_status s = walker_start(&w, b);
  memset(sizes, 0, WF_N_SPLITS * sizeof *sizes);
  for (bool got = true; s == WF_OK;) {
    s = walker_next(&w, &got);
    if (s != WF_OK || !got) break;
    for (int k = 0; k < WF_N_SPLITS && s == WF_OK; k++) {
      int64_t from, to, bytes = w.d.bytes;
      share(&w, k, &from, &to);
      if (from == to) continue;
      if (to - from < w.d.tokens) s = text_bytes(b, from, to, &bytes);
      sizes[k].tokens += to - from;
      sizes[k].documents++;
      sizes[k].bytes += bytes;
    }
  }
  wf_free(w.part);
  return s;
}

/* Whole documents if every wanted split then gets some, otherwise the ends of the text. */
static wf_status divide(build *b, split_size sizes[WF_N_SPLITS]) {
  WF_TRY(measure(b, sizes));
  bool held_back = b->fraction[WF_VALIDATION] > 0 || b->fraction[WF_TEST] > 0;
  for (int k = 0; k < WF_N_SPLITS; k++)
    b->tail |= b->n_loose && held_back && sizes[k].tokens == 0 && (k == WF_TRAIN || b->fraction[k] > 0);
  if (!b->tail) return WF_OK;
  int64_t n = b->n_loose_tokens;
  b->cut[WF_TEST + 1] = n;
  b->cut[WF_TEST] = n - (int64_t)(b->fraction[WF_TEST] * (double)n);
  b->cut[WF_VALIDATION] = b->cut[WF_TEST] - (int64_t)(b->fraction[WF_VALIDATION] * (double)n);
  WF_TRY(measure(b, sizes));
  return WF_OK;
}

/* --- 4. Writing --- */

static wf_status put_sources(const build *b, wf_h5_writer *w) {
  const wf_source_file *files;
  int64_t n = wf_source_files(b->source, &files);
  wf_bytes text = {0};
  wf_status s = WF_OK;
  for (int64_t i = 0; i < n && s == WF_OK; i++) {
    char head[64];
    int len = snprintf(head, sizeof head, "%016" PRIx64 " %lld ", files[i].sum, (long long)files[i].bytes);
    s = wf_bytes_append(&text, head, (size_t)len);
    if (s == WF_OK) s = wf_bytes_append(&text, files[i].path, strlen(files[i].path));
    if (s == WF_OK) s = wf_bytes_append(&text, "\n", 1);
  }
  int64_t size = (int64_t)text.n;
  if (s == WF_OK) s = wf_h5_put(w, "sources", WF_U8, 1, &size, text.data);
  wf_bytes_free(&text);
  return s;
}

static wf_status define(const build *b, wf_h5_writer *w, const split_size *sizes, int tokens[],
                        int offsets[]) {
  char sum[20];
  size_t blob_size;
  const void *blob = wf_tokenizer_blob(b->tokenizer, &blob_size);
  int64_t size = (int64_t)blob_size;
  snprintf(sum, sizeof sum, "%016" PRIx64, (uint64_t)XXH64_digest(b->sum));
  WF_TRY(wf_h5_set_string(w, "", "format", WF_STORE_FORMAT));
  WF_TRY(wf_h5_set_i64(w, "", "version", WF_STORE_VERSION));
  WF_TRY(wf_h5_set_string(w, "", "tokenizer", wf_tokenizer_name(b->tokenizer)));
  WF_TRY(wf_h5_set_i64(w, "", "vocab_size", wf_tokenizer_vocab(b->tokenizer)));
  WF_TRY(wf_h5_set_string(w, "", "split_by", !b->n_loose ? "files" : b->tail ? "tail" : "documents"));
  WF_TRY(wf_h5_set_i64(w, "", "seed", b->o->seed));
  WF_TRY(wf_h5_set_string(w, "", "sum", sum));
  WF_TRY(wf_h5_put(w, "tokenizer", WF_U8, 1, &size, blob));
  WF_TRY(put_sources(b, w));
  for (int k = 0; k < WF_N_SPLITS; k++) {
    if (!sizes[k].tokens) continue;
    char name[64];
    int64_t n = sizes[k].documents + 1;
    WF_TRY(wf_h5_group(w, wf_split_names[k]));
    snprintf(name, sizeof name, "%s/tokens", wf_split_names[k]);
    WF_TRY(wf_h5_define(w, name, b->dtype, 1, &sizes[k].tokens, &tokens[k]));
    snprintf(name, sizeof name, "%s/offsets", wf_split_names[k]);
    WF_TRY(wf_h5_define(w, name, WF_I64, 1, &n, &offsets[k]));
    WF_TRY(wf_h5_set_i64(w, wf_split_names[k], "documents", sizes[k].documents));
    WF_TRY(wf_h5_set_i64(w, wf_split_names[k], "tokens", sizes[k].tokens));
    WF_TRY(wf_h5_set_i64(w, wf_split_names[k], "bytes", sizes[k].bytes));
  }
  WF_TRY(wf_h5_layout(w));
  return WF_OK;
}

/* Copies one split: ids in runs as long as they lie together, offsets in parts. */
typedef struct copier {
  const build *b;
  wf_h5_writer *w;
  int tokens, offsets;
  char *ids;            /* [PART] of the store's type */
  int64_t *starts;      /* [PART] */
  int64_t run, run_end; /* ids of the spool not copied yet */
  int64_t done;         /* ids copied */
  int64_t documents, n_starts;
} copier;

static wf_status copy_run(copier *c) {
  int64_t size = (int64_t)wf_dtype_size(c->b->dtype);
  while (c->run < c->run_end) {
    int64_t n = c->run_end - c->run < PART ? c->run_end - c->run : PART;
    WF_TRY(wf_spool_read(&c->b->ids, c->ids, n * size, c->run * size));
    WF_TRY(wf_h5_write(c->w, c->tokens, c->done, n, c->ids));
    c->run += n;
    c->done += n;
  }
  return WF_OK;
}

static wf_status put_start(copier *c, int64_t start, bool last) {
  c->starts[c->n_starts++] = start;
  if (!last && c->n_starts < PART) return WF_OK;
  WF_TRY(wf_h5_write(c->w, c->offsets, c->documents, c->n_starts, c->starts));
  c->documents += c->n_starts;
  c->n_starts = 0;
  return WF_OK;
}

static wf_status copy_documents(copier *c, walker *w, int k) {
  int64_t start = 0;
  for (bool got;;) {
    int64_t from, to;
    WF_TRY(walker_next(w, &got));
    if (!got) break;
    share(w, k, &from, &to);
    if (from == to) continue;
    if (from != c->run_end) {
      WF_TRY(copy_run(c));
      c->run = from;
    }
    c->run_end = to;
    WF_TRY(put_start(c, start, false));
    start += to - from;
  }
  WF_TRY(copy_run(c));
  WF_TRY(put_start(c, start, true));
  return WF_OK;
}

static wf_status copy_split(const build *b, wf_h5_writer *writer, int k, int tokens, int offsets) {
  walker w = {0};
  copier c = {.b = b, .w = writer, .tokens = tokens, .offsets = offsets};
  wf_status s = walker_start(&w, b);
  c.ids = wf_alloc("store", PART * wf_dtype_size(b->dtype));
  c.starts = wf_alloc("store", PART * sizeof *c.starts);
  if (s == WF_OK && (!c.ids || !c.starts)) s = WF_ENOMEM;
  if (s == WF_OK) s = copy_documents(&c, &w, k);
  wf_free(w.part);
  wf_free(c.ids);
  wf_free(c.starts);
  return s;
}

static wf_status write_store(build *b, const char *output) {
  split_size sizes[WF_N_SPLITS];
  int tokens[WF_N_SPLITS] = {0}, offsets[WF_N_SPLITS] = {0};
  wf_h5_writer *w;
  WF_TRY(divide(b, sizes));
  XXH64_update(b->sum, sizes, sizeof sizes);
  b->report.documents = b->n_documents;
  WF_TRY(wf_h5_create(output, &w));
  wf_status s = define(b, w, sizes, tokens, offsets);
  for (int k = 0; k < WF_N_SPLITS && s == WF_OK; k++)
    if (sizes[k].tokens) s = copy_split(b, w, k, tokens[k], offsets[k]);
  if (s != WF_OK) {
    wf_h5_discard(w);
    return s;
  }
  WF_TRY(wf_h5_commit(w));
  return WF_OK;
}

/* --- All of it --- */

static wf_status set_fractions(build *b, const wf_store_input *inputs, int n) {
  bool given = b->o->validation_file != NULL;
  for (int i = 0; i < n; i++) {
    given |= inputs[i].split == WF_VALIDATION;
    if (inputs[i].split < -1 || inputs[i].split >= WF_N_SPLITS)
      return WF_FAIL(WF_EINVAL, "there is no split number %d", inputs[i].split);
  }
  double validation = b->o->validation;
  b->fraction[WF_VALIDATION] = validation == validation ? validation : given ? 0 : 0.1; /* NaN means auto */
  b->fraction[WF_TEST] = b->o->test;
  if (b->fraction[WF_VALIDATION] + b->fraction[WF_TEST] > 0.95)
    return wf_hint(WF_FAIL(WF_EINVAL, "validation and test together take %g of the text",
                           b->fraction[WF_VALIDATION] + b->fraction[WF_TEST]),
                   "leave at least 0.05 for training");
  return WF_OK;
}

static wf_status open_inputs(build *b, const wf_store_input *inputs, int n) {
  wf_source_input *in;
  wf_source_options o = {.separator = b->o->split, .key = b->o->key};
  WF_CALLOC(in, "store", (n > 0 ? n : 0) + 2);
  for (int i = 0; i < n; i++) in[i] = (wf_source_input){inputs[i].path, inputs[i].split};
  if (b->o->validation_file) in[n++] = (wf_source_input){b->o->validation_file, WF_VALIDATION};
  if (b->o->test_file) in[n++] = (wf_source_input){b->o->test_file, WF_TEST};
  wf_status s = wf_source_open(in, n, &o, &b->source);
  wf_free(in);
  return s;
}

static wf_status run(build *b, const wf_store_input *inputs, int n) {
  const char *output = b->o->output;
  const wf_source_file *files;
  WF_TRY(set_fractions(b, inputs, n));
  WF_TRY(open_inputs(b, inputs, n));
  WF_TRY(make_tokenizer(b));
  WF_TRY(wf_spool_open(&b->ids, output));
  WF_TRY(wf_spool_open(&b->documents, output));
  if (!(b->sum = XXH64_createState())) return WF_FAIL(WF_ENOMEM, "out of memory");
  XXH64_reset(b->sum, 0);
  b->key = wf_rng_key_make((uint64_t)b->o->seed, "split", "");
  WF_TRY(encode_all(b));
  WF_TRY(write_store(b, output));
  b->report.files = wf_source_files(b->source, &files);
  b->report.skipped = wf_source_skipped(b->source);
  return WF_OK;
}

wf_status wf_store_build(const wf_store_options *o, const wf_store_input *inputs, int n,
                         wf_store_progress progress, void *context, wf_store_report *report) {
  build b = {.o = o, .progress = progress, .context = context, .ids.fd = -1, .documents.fd = -1};
  if (!o->output || !*o->output)
    return wf_hint(WF_FAIL(WF_EINVAL, "no output given"), "name the token store to write: -o STORE.h5");
  if (!o->replace && wf_file_exists(o->output))
    return wf_hint(WF_FAIL(WF_EEXISTS, "%s exists already", o->output), "remove it, or build with --replace");
  wf_status s = run(&b, inputs, n);
  wf_source_close(b.source);
  wf_tokenizer_free(b.tokenizer);
  wf_spool_close(&b.ids);
  wf_spool_close(&b.documents);
  XXH64_freeState(b.sum);
  WF_TRY(s);
  if (report) *report = b.report;
  return WF_OK;
}
