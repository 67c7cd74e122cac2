/* libyaml's events become the tree of yaml.h. Limits are checked while events arrive, so a hostile file is
 * left at the first event too many. Recursion is bounded by the depth limit. */
#include "experiments/yaml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "core/memory.h"

static const char TAG[] = "config";

/* --- text before it is parsed --- */

/* The length of the valid UTF-8 sequence at s (n > 0 bytes left), or 0: no overlong forms, surrogates or
 * codes beyond U+10FFFF. */
static size_t utf8_length(const unsigned char *s, size_t n) {
  if (s[0] < 0x80) return 1;
  const size_t want = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
                      : (s[0] & 0xf0) == 0xe0       ? 3
                      : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                                    : 0;
  if (want == 0 || want > n) return 0;
  for (size_t i = 1; i < want; i++)
    if ((s[i] & 0xc0) != 0x80) return 0;
  if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] >= 0xa0)) return 0;
  if ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] >= 0x90)) return 0;
  return want;
}

static wf_status check_text(const char *name, const char *bytes, size_t n) {
  if (n > WF_YAML_MAX_BYTES)
    return wf_hint(WF_FAIL(WF_EFORMAT, "%s: %zu bytes is too large for a config, at most %d are read", name,
                           n, WF_YAML_MAX_BYTES),
                   "is this the config, or the data?");
  int line = 1, column = 1;
  for (size_t i = 0; i < n;) {
    const size_t length = utf8_length((const unsigned char *)bytes + i, n - i);
    if (length == 0)
      return wf_hint(WF_FAIL(WF_EFORMAT, "%s:%d:%d: byte 0x%02x is not UTF-8 text", name, line, column,
                             (unsigned char)bytes[i]),
                     "save the config as UTF-8");
    if (bytes[i] == '\0')
      return wf_hint(WF_FAIL(WF_EFORMAT, "%s:%d:%d: a NUL byte", name, line, column), "is this a text file?");
    if (bytes[i] == '\n') {
      line++;
      column = 1;
    } else {
      column++;
    }
    i += length;
  }
  return WF_OK;
}

/* --- nodes --- */

void wf_yaml_place(const wf_yaml_node *node, char *out, size_t size) {
  if (node->line > 0)
    snprintf(out, size, "%s:%d:%d", node->source, node->line, node->column);
  else
    snprintf(out, size, "%s", node->source);
}

wf_status wf_yaml_at(const wf_yaml_node *node, wf_status code) {
  char place[300];
  wf_yaml_place(node, place, sizeof place);
  return wf_context(code, "%s", place);
}

const char *wf_yaml_kind_name(const wf_yaml_node *node) {
  return node->kind == WF_YAML_MAP ? "a mapping" : node->kind == WF_YAML_LIST ? "a list" : "a value";
}

bool wf_yaml_is_null(const wf_yaml_node *node) {
  return node->kind == WF_YAML_SCALAR && !node->quoted &&
         (!*node->text || strcmp(node->text, "~") == 0 || strcmp(node->text, "null") == 0);
}

static size_t find_key(const wf_yaml_node *map, const char *key) {
  size_t i = 0;
  while (i < map->n && strcmp(map->keys[i]->text, key) != 0) i++;
  return i;
}

const wf_yaml_node *wf_yaml_get(const wf_yaml_node *map, const char *key) {
  const size_t i = find_key(map, key);
  return i < map->n ? map->items[i] : NULL;
}

static wf_status new_node(wf_yaml *tree, wf_yaml_node where, wf_yaml_node **out) {
  if (++tree->n_nodes > WF_YAML_MAX_NODES)
    return wf_yaml_at(&where,
                      WF_FAIL(WF_EFORMAT, "more than %d nodes, each alias counted as what it stands for",
                              WF_YAML_MAX_NODES));
  wf_yaml_node *node;
  WF_CALLOC(node, TAG, 1);
  node->kind = where.kind;
  node->quoted = where.quoted;
  node->source = where.source;
  node->line = where.line;
  node->column = where.column;
  node->next = tree->all;
  tree->all = node;
  *out = node;
  if (where.text && !(node->text = wf_strdup(TAG, where.text)))
    return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  return WF_OK;
}

/* Add an item to a list, or `key` and its item to a map. */
static wf_status append(wf_yaml_node *parent, wf_yaml_node *key, wf_yaml_node *item) {
  size_t capacity = parent->capacity;
  if (parent->kind == WF_YAML_MAP)
    WF_TRY(wf_grow(TAG, (void **)&parent->keys, sizeof *parent->keys, parent->n, &capacity));
  WF_TRY(wf_grow(TAG, (void **)&parent->items, sizeof *parent->items, parent->n, &parent->capacity));
  if (parent->kind == WF_YAML_MAP) parent->keys[parent->n] = key;
  parent->items[parent->n++] = item;
  return WF_OK;
}

static wf_status copy_node(wf_yaml *tree, const wf_yaml_node *from, wf_yaml_node **out) {
  WF_TRY(new_node(tree, *from, out));
  for (size_t i = 0; i < from->n; i++) {
    wf_yaml_node *key = NULL, *item = NULL;
    if (from->keys) WF_TRY(copy_node(tree, from->keys[i], &key));
    WF_TRY(copy_node(tree, from->items[i], &item));
    WF_TRY(append(*out, key, item));
  }
  return WF_OK;
}

static int height(const wf_yaml_node *node) {
  int most = 0;
  for (size_t i = 0; i < node->n; i++) {
    const int h = height(node->items[i]);
    if (h > most) most = h;
  }
  return most + 1;
}

void wf_yaml_free(wf_yaml *tree) {
  for (wf_yaml_node *node = tree->all, *next; node; node = next) {
    next = node->next;
    wf_free(node->text);
    wf_free(node->keys);
    wf_free(node->items);
    wf_free(node);
  }
  for (size_t i = 0; i < tree->n_sources; i++) wf_free(tree->sources[i]);
  wf_free(tree->sources);
  memset(tree, 0, sizeof *tree);
}

static wf_status add_source(wf_yaml *tree, const char *name, const char **out) {
  WF_TRY(
      wf_grow(TAG, (void **)&tree->sources, sizeof *tree->sources, tree->n_sources, &tree->sources_capacity));
  char *copy = wf_strdup(TAG, name);
  if (!copy) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  tree->sources[tree->n_sources++] = copy;
  *out = copy;
  return WF_OK;
}

/* --- events --- */

typedef struct anchor {
  char *name;
  wf_yaml_node *node;
} anchor;

typedef struct reader {
  wf_yaml *tree;
  const char *source;
  bool is_override; /* nodes carry no line */
  yaml_parser_t parser;
  anchor *anchors;
  size_t n_anchors, anchors_capacity;
  wf_yaml_node *open[WF_YAML_MAX_DEPTH]; /* lists and maps whose end has not come */
  int depth;
} reader;

static wf_yaml_node where(const reader *r, wf_yaml_kind kind, const yaml_mark_t *mark) {
  wf_yaml_node w = {.kind = kind, .source = r->source};
  if (!r->is_override) {
    w.line = (int)mark->line + 1;
    w.column = (int)mark->column + 1;
  }
  return w;
}

static wf_status next_event(reader *r, yaml_event_t *event) {
  if (yaml_parser_parse(&r->parser, event)) return WF_OK;
  const yaml_parser_t *p = &r->parser;
  if (p->error == YAML_MEMORY_ERROR) return WF_FAIL(WF_ENOMEM, "out of memory while reading %s", r->source);
  const wf_yaml_node w = where(r, WF_YAML_SCALAR, &p->problem_mark);
  const wf_status s = WF_FAIL(WF_EFORMAT, "not valid YAML: %s%s%s", p->problem ? p->problem : "unreadable",
                              p->context ? ", " : "", p->context ? p->context : "");
  wf_hint(s, "look at indentation (spaces only), missing colons, brackets and quotes near there");
  if (p->error == YAML_READER_ERROR) return wf_context(s, "%s: byte %zu", r->source, p->problem_offset);
  return wf_yaml_at(&w, s);
}

static wf_status add_anchor(reader *r, const yaml_char_t *name, wf_yaml_node *node) {
  if (!name) return WF_OK;
  WF_TRY(wf_grow(TAG, (void **)&r->anchors, sizeof *r->anchors, r->n_anchors, &r->anchors_capacity));
  char *copy = wf_strdup(TAG, (const char *)name);
  if (!copy) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  r->anchors[r->n_anchors++] = (anchor){copy, node};
  return WF_OK;
}

/* The copy an alias stands for. The latest anchor of that name counts, as YAML says. */
static wf_status expand_alias(reader *r, const char *name, const wf_yaml_node *here, wf_yaml_node **out) {
  const wf_yaml_node *target = NULL;
  for (size_t i = r->n_anchors; i-- > 0 && !target;)
    if (strcmp(r->anchors[i].name, name) == 0) target = r->anchors[i].node;
  if (!target) return wf_yaml_at(here, WF_FAIL(WF_EFORMAT, "alias *%.60s has no anchor before it", name));
  for (int i = 0; i < r->depth; i++)
    if (r->open[i] == target)
      return wf_yaml_at(here, WF_FAIL(WF_EFORMAT, "alias *%.60s stands inside its own anchor", name));
  if (r->depth + height(target) > WF_YAML_MAX_DEPTH)
    return wf_yaml_at(here, WF_FAIL(WF_EFORMAT, "nested deeper than %d", WF_YAML_MAX_DEPTH));
  return copy_node(r->tree, target, out);
}

static wf_status check_key(const wf_yaml_node *map, const wf_yaml_node *key) {
  if (key->kind != WF_YAML_SCALAR)
    return wf_yaml_at(key, WF_FAIL(WF_EFORMAT, "a key must be a word, not %s", wf_yaml_kind_name(key)));
  if (strcmp(key->text, "<<") == 0 && !key->quoted)
    return wf_yaml_at(key, wf_hint(WF_FAIL(WF_EFORMAT, "merges (<<) are not supported"),
                                   "write the keys out, or use an alias (*name) for a whole section"));
  const size_t first = find_key(map, key->text);
  if (first < map->n)
    return wf_yaml_at(key, WF_FAIL(WF_EFORMAT, "key %.60s is given twice, first in line %d", key->text,
                                   map->keys[first]->line));
  return WF_OK;
}

/* Put a finished or just opened node where it belongs: the root, an item, a key or a key's value. */
static wf_status place_node(reader *r, wf_yaml_node *node, wf_yaml_node *keys[]) {
  if (r->depth == 0) {
    r->tree->root = node;
    return WF_OK;
  }
  wf_yaml_node *parent = r->open[r->depth - 1];
  if (parent->kind == WF_YAML_LIST) return append(parent, NULL, node);
  wf_yaml_node **key = &keys[r->depth - 1];
  if (!*key) {
    WF_TRY(check_key(parent, node));
    *key = node;
    return WF_OK;
  }
  wf_yaml_node *const k = *key;
  *key = NULL;
  return append(parent, k, node);
}

static wf_status node_event(reader *r, const yaml_event_t *event, wf_yaml_node *keys[]) {
  const bool scalar = event->type == YAML_SCALAR_EVENT, map = event->type == YAML_MAPPING_START_EVENT;
  wf_yaml_node w = where(r, scalar ? WF_YAML_SCALAR : map ? WF_YAML_MAP : WF_YAML_LIST, &event->start_mark);
  const yaml_char_t *tag, *name;
  if (scalar) {
    tag = event->data.scalar.tag;
    name = event->data.scalar.anchor;
    w.text = (char *)event->data.scalar.value;
    w.quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    if (strlen(w.text) != event->data.scalar.length)
      return wf_yaml_at(&w, WF_FAIL(WF_EFORMAT, "a NUL character inside a value"));
  } else {
    tag = map ? event->data.mapping_start.tag : event->data.sequence_start.tag;
    name = map ? event->data.mapping_start.anchor : event->data.sequence_start.anchor;
  }
  if (tag) return wf_yaml_at(&w, WF_FAIL(WF_EFORMAT, "tags (%.60s) are not supported", (const char *)tag));
  if (r->depth + 1 > WF_YAML_MAX_DEPTH)
    return wf_yaml_at(&w, WF_FAIL(WF_EFORMAT, "nested deeper than %d", WF_YAML_MAX_DEPTH));
  wf_yaml_node *node;
  WF_TRY(new_node(r->tree, w, &node));
  WF_TRY(place_node(r, node, keys));
  WF_TRY(add_anchor(r, name, node));
  if (!scalar) {
    keys[r->depth] = NULL;
    r->open[r->depth++] = node;
  }
  return WF_OK;
}

/* Handle one event; *done after the only document's end. */
static wf_status handle(reader *r, const yaml_event_t *event, wf_yaml_node *keys[], bool *done) {
  wf_yaml_node here = where(r, WF_YAML_SCALAR, &event->start_mark), *node;
  switch (event->type) {
  case YAML_SCALAR_EVENT:
  case YAML_SEQUENCE_START_EVENT:
  case YAML_MAPPING_START_EVENT: return node_event(r, event, keys);
  case YAML_ALIAS_EVENT:
    WF_TRY(expand_alias(r, (const char *)event->data.alias.anchor, &here, &node));
    return place_node(r, node, keys);
  case YAML_SEQUENCE_END_EVENT:
  case YAML_MAPPING_END_EVENT: r->depth--; return WF_OK;
  case YAML_DOCUMENT_START_EVENT:
    if (r->tree->root) return wf_yaml_at(&here, WF_FAIL(WF_EFORMAT, "a second document begins here"));
    return WF_OK;
  case YAML_STREAM_END_EVENT: *done = true; return WF_OK;
  case YAML_NO_EVENT:
  case YAML_STREAM_START_EVENT:
  case YAML_DOCUMENT_END_EVENT: break;
  }
  return WF_OK;
}

/* Read one document into tree->root, adding to what the tree holds. */
static wf_status read_document(wf_yaml *tree, const char *source, bool is_override, const char *bytes,
                               size_t n) {
  reader r = {.tree = tree, .source = source, .is_override = is_override};
  wf_yaml_node *keys[WF_YAML_MAX_DEPTH] = {0};
  if (!yaml_parser_initialize(&r.parser)) return WF_FAIL(WF_ENOMEM, "out of memory while reading %s", source);
  yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
  yaml_parser_set_input_string(&r.parser, (const unsigned char *)bytes, n);
  wf_status s = WF_OK;
  for (bool done = false; s == WF_OK && !done;) {
    yaml_event_t event;
    s = next_event(&r, &event);
    if (s != WF_OK) break;
    s = handle(&r, &event, keys, &done);
    yaml_event_delete(&event);
  }
  for (size_t i = 0; i < r.n_anchors; i++) wf_free(r.anchors[i].name);
  wf_free(r.anchors);
  yaml_parser_delete(&r.parser);
  return s;
}

wf_status wf_yaml_parse(wf_yaml *out, const char *name, const char *bytes, size_t n) {
  memset(out, 0, sizeof *out);
  WF_TRY(check_text(name, bytes, n));
  const char *source = NULL;
  wf_status s = add_source(out, name, &source);
  if (s == WF_OK) s = read_document(out, source, false, bytes, n);
  if (s != WF_OK) wf_yaml_free(out);
  return s;
}

/* --- overrides --- */

/* The slot that one step of the path names in `parent`, made when a map lacks it or a list ends just there.
 */
static wf_status step_into(wf_yaml *tree, wf_yaml_node *parent, wf_yaml_node like, char *name,
                           wf_yaml_node ***slot) {
  size_t i;
  wf_yaml_node *key = NULL;
  if (parent->kind == WF_YAML_SCALAR)
    return wf_hint(
        WF_FAIL(WF_EINVAL, "%.60s is below \"%.60s\", which is a single value", name, parent->text),
        "set the whole of it, such as mixer={type: gla, heads: 4}");
  if (parent->kind == WF_YAML_MAP) {
    i = find_key(parent, name);
  } else {
    char *end;
    const unsigned long long v = strtoull(name, &end, 10);
    if (*name < '0' || *name > '9' || *end || v > parent->n)
      return WF_FAIL(WF_EINVAL, "\"%.60s\" is not an element of a list of %zu, which count from 0", name,
                     parent->n);
    i = (size_t)v;
  }
  if (i == parent->n) {
    wf_yaml_node *item = NULL;
    like.kind = WF_YAML_SCALAR;
    like.text = name;
    if (parent->kind == WF_YAML_MAP) WF_TRY(new_node(tree, like, &key));
    like.kind = WF_YAML_MAP;
    like.text = NULL;
    WF_TRY(new_node(tree, like, &item));
    WF_TRY(append(parent, key, item));
  }
  *slot = &parent->items[i];
  return WF_OK;
}

static wf_status set_path(wf_yaml *tree, const char *source, char *path, wf_yaml_node *value) {
  const wf_yaml_node like = {.source = source};
  if (!tree->root) {
    wf_yaml_node w = like;
    w.kind = WF_YAML_MAP;
    WF_TRY(new_node(tree, w, &tree->root));
  }
  wf_yaml_node **slot = &tree->root;
  int depth = 0;
  for (char *name = path, *end; name; name = end) {
    if ((end = strchr(name, '.'))) *end++ = '\0';
    if (!*name) return WF_FAIL(WF_EINVAL, "an empty name in the path");
    WF_TRY(step_into(tree, *slot, like, name, &slot));
    depth++;
  }
  if (depth + height(value) > WF_YAML_MAX_DEPTH)
    return WF_FAIL(WF_EINVAL, "nested deeper than %d", WF_YAML_MAX_DEPTH);
  *slot = value;
  return WF_OK;
}

static wf_status set_value(wf_yaml *tree, const char *source, const char *assignment, size_t path_length) {
  const char *text = assignment + path_length + 1;
  wf_yaml_node *const root = tree->root, *value;
  tree->root = NULL;
  wf_status s = read_document(tree, source, true, text, strlen(text));
  value = tree->root;
  tree->root = root;
  WF_TRY(s);
  if (!value) { /* nothing after the = */
    wf_yaml_node empty = {.source = source, .text = (char[]){""}};
    WF_TRY(new_node(tree, empty, &value));
  }
  char *path = wf_strndup(TAG, assignment, path_length);
  if (!path) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  s = set_path(tree, source, path, value);
  wf_free(path);
  return s == WF_EINVAL ? wf_context(s, "%s", source) : s;
}

wf_status wf_yaml_set(wf_yaml *tree, const char *assignment) {
  const char *equals = strchr(assignment, '=');
  char name[200];
  snprintf(name, sizeof name, "--set %s", assignment);
  if (!equals || equals == assignment)
    return wf_hint(WF_FAIL(WF_EINVAL, "%s: expected a.b=value", name), "for example --set train.steps=100");
  WF_TRY(check_text("--set", assignment, strlen(assignment)));
  const char *source = NULL;
  WF_TRY(add_source(tree, name, &source));
  return set_value(tree, source, assignment, (size_t)(equals - assignment));
}
