/* yaml: a config file as a small tree in which every node knows where it was written.
 *
 * Accepted is what a config needs of YAML: one document of mappings, lists and scalars, with anchors and
 * aliases. Refused, each at its place: text that is not UTF-8, more than 1 MiB, deeper than 64, more than
 * 10,000 nodes (aliases count as what they stand for), duplicate keys, keys that are not plain text, merges
 * (<<), tags, a second document and NUL characters. Scalars stay text; what type they have is decided by
 * whoever reads them.
 */
#ifndef WF_EXPERIMENTS_YAML_H
#define WF_EXPERIMENTS_YAML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_YAML_MAX_BYTES = 1 << 20, WF_YAML_MAX_DEPTH = 64, WF_YAML_MAX_NODES = 10000 };

typedef enum wf_yaml_kind { WF_YAML_SCALAR, WF_YAML_LIST, WF_YAML_MAP } wf_yaml_kind;

typedef struct wf_yaml_node {
  wf_yaml_kind kind;
  bool quoted;        /* a scalar in quotes, or a block of text: never a number, true or null */
  const char *source; /* file name; for an override its whole text, with line 0. Lives as long as the tree */
  int line, column;   /* from 1 */
  char *text;         /* scalar */
  struct wf_yaml_node **keys, **items; /* n of each; keys (scalars) of a map only */
  size_t n, capacity;
  struct wf_yaml_node *next; /* every node of the tree, for its end */
} wf_yaml_node;

typedef struct wf_yaml {
  wf_yaml_node *root; /* NULL for an empty document */
  wf_yaml_node *all;
  char **sources; /* owned names the nodes point to */
  size_t n_sources, sources_capacity;
  int n_nodes;
} wf_yaml;

/* Parse `n` bytes; `name` (a file's name) stands in messages. On failure *out is empty. Free with
 * wf_yaml_free. */
wf_status wf_yaml_parse(wf_yaml *out, const char *name, const char *bytes, size_t n);

/* Put the value of "a.b.0.c=VALUE" (VALUE being YAML) into the tree: mappings on the way are made when
 * missing, list elements must exist (or be the next one). An error names the override. */
wf_status wf_yaml_set(wf_yaml *tree, const char *assignment);

/* The value of `key` in a map, or NULL. */
const wf_yaml_node *wf_yaml_get(const wf_yaml_node *map, const char *key);

/* Plain ~, null or nothing. */
bool wf_yaml_is_null(const wf_yaml_node *node);

/* Put "file:line:column: " (or the override's text) in front of the current error. Returns `code`. */
wf_status wf_yaml_at(const wf_yaml_node *node, wf_status code);

/* "file:line:column" or the override's text, cut to `size`. */
void wf_yaml_place(const wf_yaml_node *node, char *out, size_t size);

const char *wf_yaml_kind_name(const wf_yaml_node *node); /* "a mapping", "a list", "a value" */

void wf_yaml_free(wf_yaml *tree);

#ifdef __cplusplus
}
#endif

#endif
