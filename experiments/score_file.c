/* JSON lines in, JSON lines out; see score.h. */
#include <jansson.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "experiments/score.h"
#include "experiments/text.h"

/* A line of the file and its part of the batch. */
typedef struct line {
  int64_t number;
  size_t first, n; /* items */
  bool many;       /* "continuations" */
  char *id;        /* JSON text, or NULL */
} line;

typedef struct batch {
  wf_model *m;
  const wf_tokenizer *t;
  const char *path;
  line *line;
  size_t n_lines, lines_capacity;
  wf_scored *item;
  size_t n_items, items_capacity;
  int64_t tokens;
  wf_text out;
  wf_status (*give)(void *arg, const char *json);
  void *arg;
} batch;

static void clear(batch *b) {
  for (size_t i = 0; i < b->n_items; i++) wf_free(b->item[i].ids);
  for (size_t i = 0; i < b->n_lines; i++) wf_free(b->line[i].id);
  b->n_items = b->n_lines = 0;
  b->tokens = 0;
}

/* ---- out ---- */

static void put_score(wf_text *t, const wf_scored *s) {
  wf_text_add(
      t, "\"logprob\": %.9g, \"tokens\": %lld, \"bytes\": %lld, \"logprob_per_byte\": %.9g, \"greedy\": %s",
      s->logprob, (long long)(s->n - s->from), (long long)s->bytes, s->logprob / (double)s->bytes,
      s->greedy ? "true" : "false");
}

static size_t best_of(const wf_scored *s, size_t n, bool per_byte) {
  size_t best = 0;
  double most = 0;
  for (size_t i = 0; i < n; i++) {
    double x = s[i].logprob / (per_byte ? (double)s[i].bytes : 1);
    if (i == 0 || x > most) best = i, most = x;
  }
  return best;
}

static wf_status give_line(batch *b, const line *l) {
  wf_text *t = &b->out;
  const wf_scored *s = b->item + l->first;
  wf_text_clear(t);
  wf_text_add(t, "{\"line\": %lld, ", (long long)l->number);
  if (l->id) wf_text_add(t, "\"id\": %s, ", l->id);
  if (l->many)
    wf_text_add(t, "\"best\": %zu, \"best_per_byte\": %zu, \"continuations\": [", best_of(s, l->n, false),
                best_of(s, l->n, true));
  for (size_t i = 0; i < l->n; i++) {
    if (l->many) wf_text_add(t, i ? ", {" : "{");
    put_score(t, &s[i]);
    if (l->many) wf_text_add(t, "}");
  }
  wf_text_add(t, l->many ? "]}" : "}");
  WF_TRY(t->status);
  return b->give(b->arg, t->p);
}

static wf_status flush(batch *b) {
  if (b->n_lines == 0) return WF_OK;
  wf_status s = wf_score(b->m, b->item, (int64_t)b->n_items);
  if (s != WF_OK)
    return wf_context(s, "%s, lines %lld to %lld", b->path, (long long)b->line[0].number,
                      (long long)b->line[b->n_lines - 1].number);
  for (size_t i = 0; i < b->n_lines; i++) WF_TRY(give_line(b, &b->line[i]));
  clear(b);
  return WF_OK;
}

/* ---- in ---- */

static wf_status check_length(const batch *b, const wf_scored *s) {
  int64_t positions = wf_model_max_positions(b->m);
  if (positions == 0 || s->n - 1 <= positions) return WF_OK;
  return wf_hint(WF_FAIL(WF_EINVAL, "%lld tokens, but the model knows %lld positions", (long long)s->n - 1,
                         (long long)positions),
                 "shorten the context");
}

static wf_status add_item(batch *b, const json_t *context, const json_t *continuation) {
  if (!json_is_string(continuation)) return WF_FAIL(WF_EFORMAT, "a continuation is a string");
  WF_TRY(wf_grow("score", (void **)&b->item, sizeof *b->item, b->n_items, &b->items_capacity));
  wf_scored *s = &b->item[b->n_items];
  WF_TRY(wf_scored_make(b->t, context ? json_string_value(context) : "", json_string_length(context),
                        json_string_value(continuation), json_string_length(continuation), s));
  b->n_items++; /* from here on its ids are freed with the batch */
  b->tokens += s->n - 1;
  return check_length(b, s);
}

static wf_status copy_id(const json_t *id, line *l) {
  if (!id) return WF_OK;
  char *text = json_dumps(id, JSON_ENCODE_ANY | JSON_COMPACT);
  l->id = text ? wf_strdup("score", text) : NULL;
  free(text);
  return l->id ? WF_OK : WF_ENOMEM;
}

static wf_status add_object(batch *b, const json_t *object, line *l) {
  if (!json_is_object(object)) return WF_FAIL(WF_EFORMAT, "not an object");
  const json_t *context = json_object_get(object, "context");
  const json_t *one = json_object_get(object, "continuation"),
               *many = json_object_get(object, "continuations");
  if (context && !json_is_string(context)) return WF_FAIL(WF_EFORMAT, "\"context\" is a string");
  if (!one == !many)
    return wf_hint(WF_FAIL(WF_EFORMAT, "%s \"continuation\" and \"continuations\"", one ? "both" : "neither"),
                   "{\"context\": \"...\", \"continuation\": \"...\"}, or a list \"continuations\"");
  if (many && json_array_size(many) == 0)
    return WF_FAIL(WF_EFORMAT, "\"continuations\" is a list of at least one string");
  WF_TRY(copy_id(json_object_get(object, "id"), l));
  l->many = many != NULL;
  if (one) return add_item(b, context, one);
  for (size_t i = 0; i < json_array_size(many); i++) WF_TRY(add_item(b, context, json_array_get(many, i)));
  return WF_OK;
}

static wf_status add_line(batch *b, int64_t number, const char *text, size_t n) {
  WF_TRY(wf_grow("score", (void **)&b->line, sizeof *b->line, b->n_lines, &b->lines_capacity));
  line *l = &b->line[b->n_lines++];
  *l = (line){.number = number, .first = b->n_items};
  json_error_t error;
  json_t *object = json_loadb(text, n, JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &error);
  wf_status s = object ? add_object(b, object, l)
                       : WF_FAIL(WF_EFORMAT, "not JSON at column %d: %s", error.column, error.text);
  json_decref(object);
  l->n = b->n_items - l->first;
  return s == WF_OK ? s : wf_context(s, "%s:%lld", b->path, (long long)number);
}

static wf_status read_lines(batch *b, const char *text, size_t n, int64_t limit) {
  int64_t number = 0;
  for (size_t at = 0, next; at < n; at = next) {
    const char *end = memchr(text + at, '\n', n - at);
    size_t len = end ? (size_t)(end - text) - at : n - at;
    next = at + len + 1;
    number++;
    if (strspn(text + at, " \t\r") >= len) continue; /* a blank line; the text ends with a NUL */
    WF_TRY(add_line(b, number, text + at, len));
    if (b->tokens >= limit) WF_TRY(flush(b));
  }
  return flush(b);
}

wf_status wf_score_file(wf_model *m, const wf_tokenizer *t, const char *path, int64_t limit,
                        wf_status (*give)(void *arg, const char *json), void *arg) {
  char *text;
  int64_t n;
  WF_TRY(wf_file_read(path, INT64_C(1) << 34, &text, &n));
  batch b = {.m = m, .t = t, .path = path, .give = give, .arg = arg};
  wf_status s = read_lines(&b, text, (size_t)n, limit);
  clear(&b);
  wf_free(b.line);
  wf_free(b.item);
  wf_text_free(&b.out);
  wf_free(text);
  return s;
}
