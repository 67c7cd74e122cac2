/* Reading a config: the YAML tree becomes the structs of config.h, each section through its table.
 *
 * Every struct starts zeroed and every owned pointer is either NULL or valid, so that wf_config_free releases
 * what any failure leaves. */
#include "experiments/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "experiments/yaml.h"
#include "optim/rules.h"

static const char TAG[] = "config";
enum {
  MAX_LAYERS = 4096,
  MAX_BLOCKS = 128,
  MAX_STRING = 4096
}; /* what is printed must be small enough to load */

/* --- types --- */

const char *wf_config_kind_name(wf_config_kind kind) {
  static const char *const names[] = {"mixer", "mlp", "optimizer", "schedule"};
  return names[kind];
}

bool wf_config_find_type(wf_config_types types, wf_config_kind kind, const char *name, wf_config_type *out) {
  for (int i = 0; types(kind, i, out); i++)
    if (strcmp(out->name, name) == 0) return true;
  return false;
}

wf_status wf_config_unknown_type(wf_config_types types, wf_config_kind kind, const char *name) {
  const char *names[128];
  char list[900] = "";
  size_t used = 0;
  int n = 0;
  wf_config_type t;
  for (; n < 128 && types(kind, n, &t); n++) {
    names[n] = t.name;
    if (used < sizeof list)
      used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", n ? ", " : "", t.name);
  }
  const char *near = wf_nearest_name(name, names, n);
  const wf_status s = WF_FAIL(WF_EINVAL, "unknown %s \"%.60s\"", wf_config_kind_name(kind), name);
  if (near) return wf_hint(s, "did you mean %s?", near);
  return n ? wf_hint(s, "there are: %s", list) : s;
}

/* --- maps --- */

static bool listed(const char *const *names, const char *name) {
  for (; *names; names++)
    if (strcmp(*names, name) == 0) return true;
  return false;
}

static wf_status want_kind(const wf_yaml_node *node, wf_yaml_kind kind, const char *what) {
  if (node->kind == kind) return WF_OK;
  return wf_yaml_at(node, WF_FAIL(WF_EINVAL, "%s must be %s, not %s", what,
                                  wf_yaml_kind_name(&(wf_yaml_node){.kind = kind}), wf_yaml_kind_name(node)));
}

/* What stands for a section that is not there: without keys, at the place of what surrounds it. */
static wf_yaml_node empty_map(const wf_yaml_node *at) {
  return (wf_yaml_node){.kind = WF_YAML_MAP, .source = at->source, .line = at->line, .column = at->column};
}

/* An unknown key, with the nearest of the table's and the other allowed names. */
static wf_status unknown_key(const wf_yaml_node *key, const char *section, const wf_option *table,
                             const char *const *others) {
  const char *names[64];
  int n = 0;
  for (const wf_option *o = table; o->name && n < 64; o++) names[n++] = o->name;
  for (; *others && n < 64; others++) names[n++] = *others;
  const char *near = wf_nearest_name(key->text, names, n);
  const wf_status s = wf_yaml_at(key, WF_FAIL(WF_EINVAL, "unknown key \"%.60s\" in %s", key->text, section));
  return near ? wf_hint(s, "did you mean %s?", near) : wf_hint(s, "weft config docs lists all keys");
}

static wf_status read_option(const wf_option *o, const wf_yaml_node *value, void *self, const char *section,
                             const wf_option *table) {
  const char *text = value->text;
  if (value->kind != WF_YAML_SCALAR)
    return wf_yaml_at(value, wf_hint(WF_FAIL(WF_EINVAL, "%s.%s must be a single value, not %s", section,
                                             o->name, wf_yaml_kind_name(value)),
                                     "%s: %s", o->name, o->help));
  if (wf_yaml_is_null(value)) {
    if (o->type != WF_OPT_TYPE_STRING || (o->flags & WF_OPT_REQUIRED))
      return wf_yaml_at(value, wf_hint(WF_FAIL(WF_EINVAL, "%s.%s has no value", section, o->name), "%s: %s",
                                       o->name, o->help));
    text = "null";
  } else if (value->quoted && o->type != WF_OPT_TYPE_STRING && o->type != WF_OPT_TYPE_ENUM) {
    return wf_yaml_at(
        value, wf_hint(WF_FAIL(WF_EINVAL, "%s.%s: \"%.60s\" in quotes is text, not a number or true/false",
                               section, o->name, text),
                       "leave the quotes out"));
  }
  if (strlen(text) > MAX_STRING)
    return wf_yaml_at(value,
                      WF_FAIL(WF_EINVAL, "%s.%s is longer than %d bytes", section, o->name, MAX_STRING));
  const wf_status s = wf_options_set(table, self, o->name, text);
  return s == WF_OK ? s : wf_yaml_at(value, wf_context(s, "%s", section));
}

/* All scalar keys of `map` into `self`; the keys in `others` are left to the caller. Required ones must be
 * there. */
static wf_status read_map(const wf_yaml_node *map, const char *section, const wf_option *table,
                          const char *const *others, void *self) {
  WF_TRY(want_kind(map, WF_YAML_MAP, section));
  for (size_t i = 0; i < map->n; i++) {
    const wf_yaml_node *key = map->keys[i];
    const wf_option *o = wf_options_find(table, key->text);
    if (o)
      WF_TRY(read_option(o, map->items[i], self, section, table));
    else if (!listed(others, key->text))
      return unknown_key(key, section, table, others);
  }
  for (const wf_option *o = table; o->name; o++)
    if ((o->flags & WF_OPT_REQUIRED) && !wf_yaml_get(map, o->name))
      return wf_yaml_at(
          map, wf_hint(WF_FAIL(WF_EINVAL, "%s.%s is missing", section, o->name), "%s: %s", o->name, o->help));
  return WF_OK;
}

/* --- parts --- */

static wf_status place_of(const wf_yaml_node *node, char **out) {
  char place[300];
  wf_yaml_place(node, place, sizeof place);
  if (!(*out = wf_strdup(TAG, place))) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  return WF_OK;
}

static wf_status start_part(wf_config_part *part, const wf_config_type *type) {
  WF_ALLOC(part->options, TAG, type->options_size);
  memset(part->options, 0, type->options_size);
  part->type = type->name;
  part->table = type->options;
  return wf_options_defaults(type->options, part->options);
}

/* {type: gla, heads: 4}, or gla alone, or (a mixer or MLP) none. `usual` is the type where none is named,
 * NULL: one must be. */
static wf_status read_part(const wf_yaml_node *node, wf_config_types types, wf_config_kind kind,
                           const char *usual, wf_config_part *part) {
  static const char *const others[] = {"type", NULL};
  const char *const kind_name = wf_config_kind_name(kind);
  const bool map = node->kind == WF_YAML_MAP;
  const wf_yaml_node *named = map ? wf_yaml_get(node, "type") : node;
  if (!named && !usual)
    return wf_yaml_at(node, wf_hint(WF_FAIL(WF_EINVAL, "%s.type is missing", kind_name),
                                    "weft layers lists what there is"));
  if (named) WF_TRY(want_kind(named, WF_YAML_SCALAR, map ? "type" : kind_name));
  const char *name = named ? named->text : usual;
  if (kind <= WF_CONFIG_MLP && !map && strcmp(name, "none") == 0) return WF_OK;
  wf_config_type type;
  if (!wf_config_find_type(types, kind, name, &type))
    return wf_yaml_at(named ? named : node, wf_config_unknown_type(types, kind, name));
  WF_TRY(place_of(node, &part->where));
  WF_TRY(start_part(part, &type));
  char section[120];
  snprintf(section, sizeof section, "%s %s", kind_name, type.name);
  const wf_yaml_node nothing = empty_map(node);
  return read_map(map ? node : &nothing, section, type.options, others, part->options);
}

static void free_part(wf_config_part *part) {
  if (part->options) wf_options_free(part->table, part->options);
  wf_free(part->options);
  wf_free(part->where);
}

/* --- blocks --- */

static wf_status read_blocks(const wf_yaml_node *list, wf_config_types types, wf_config_block **out,
                             size_t *n);

/* One mixer, or a list of mixers beside each other. */
static wf_status read_mixers(const wf_yaml_node *node, wf_config_types types, wf_config_block *block) {
  if (node->kind != WF_YAML_LIST) return read_part(node, types, WF_CONFIG_MIXER, NULL, &block->mixer);
  if (node->n == 0) return wf_yaml_at(node, WF_FAIL(WF_EINVAL, "the list of mixers is empty"));
  WF_CALLOC(block->beside, TAG, node->n);
  for (size_t i = 0; i < node->n; i++) {
    wf_config_part *part = i ? &block->beside[block->n_beside++] : &block->mixer;
    WF_TRY(read_part(node->items[i], types, WF_CONFIG_MIXER, NULL, part));
    if (!part->type) return wf_yaml_at(node->items[i], WF_FAIL(WF_EINVAL, "none stands beside other mixers"));
  }
  return WF_OK;
}

static wf_status read_block(const wf_yaml_node *node, wf_config_types types, wf_config_block *block) {
  static const char *const others[] = {"mixer", "mlp", "blocks", NULL};
  WF_TRY(place_of(node, &block->where));
  WF_TRY(wf_options_defaults(wf_config_block_table, block));
  WF_TRY(read_map(node, "a block", wf_config_block_table, others, block));
  const wf_yaml_node *mixer = wf_yaml_get(node, "mixer"), *mlp = wf_yaml_get(node, "mlp");
  const wf_yaml_node *group = wf_yaml_get(node, "blocks");
  if (group) {
    const wf_yaml_node *extra = mixer ? mixer : mlp ? mlp : wf_yaml_get(node, "norm");
    if (!extra) extra = wf_yaml_get(node, "share");
    if (extra)
      return wf_yaml_at(extra, wf_hint(WF_FAIL(WF_EINVAL, "a group of blocks has only repeat and blocks"),
                                       "write mixer, mlp, norm and share in the blocks below it"));
    return read_blocks(group, types, &block->blocks, &block->n_blocks);
  }
  if (!mixer)
    return wf_yaml_at(node, wf_hint(WF_FAIL(WF_EINVAL, "a block needs a mixer, or blocks for a group"),
                                    "for example {mixer: {type: attention, heads: 4}, mlp: {type: swiglu}}; "
                                    "mixer: none for an MLP alone"));
  WF_TRY(read_mixers(mixer, types, block));
  if (mlp) WF_TRY(read_part(mlp, types, WF_CONFIG_MLP, NULL, &block->mlp));
  return block->mixer.type || block->mlp.type
             ? WF_OK
             : wf_yaml_at(node, WF_FAIL(WF_EINVAL, "a block without mixer and MLP does nothing"));
}

/* Recursion is as deep as the tree, which is bounded. */
static wf_status read_blocks(const wf_yaml_node *list, wf_config_types types, wf_config_block **out,
                             size_t *n) {
  WF_TRY(want_kind(list, WF_YAML_LIST, "blocks"));
  if (list->n == 0) return wf_yaml_at(list, WF_FAIL(WF_EINVAL, "blocks is empty"));
  WF_CALLOC(*out, TAG, list->n);
  for (size_t i = 0; i < list->n; i++) {
    ++*n; /* first, so that a block half read is freed */
    WF_TRY(read_block(list->items[i], types, &(*out)[i]));
  }
  return WF_OK;
}

static void free_blocks(wf_config_block *blocks, size_t n) {
  for (size_t i = 0; i < n; i++) {
    free_part(&blocks[i].mixer);
    free_part(&blocks[i].mlp);
    for (size_t k = 0; k < blocks[i].n_beside; k++) free_part(&blocks[i].beside[k]);
    wf_free(blocks[i].beside);
    wf_options_free(wf_config_block_table, &blocks[i]);
    free_blocks(blocks[i].blocks, blocks[i].n_blocks);
    wf_free(blocks[i].where);
  }
  wf_free(blocks);
}

static size_t count_written(const wf_config_block *blocks, size_t n) {
  size_t all = n;
  for (size_t i = 0; i < n; i++) all += count_written(blocks[i].blocks, blocks[i].n_blocks);
  return all;
}

/* Count the layers (out == NULL) or write them out. */
static wf_status expand(const wf_config_block *blocks, size_t n, const wf_config_block **out, size_t *used) {
  for (size_t i = 0; i < n; i++)
    for (int64_t r = 0; r < blocks[i].repeat; r++) {
      if (blocks[i].n_blocks) {
        WF_TRY(expand(blocks[i].blocks, blocks[i].n_blocks, out, used));
        continue;
      }
      if (*used == MAX_LAYERS)
        return wf_context(WF_FAIL(WF_EINVAL, "more than %d layers", MAX_LAYERS), "%s", blocks[i].where);
      if (out) out[*used] = &blocks[i];
      ++*used;
    }
  return WF_OK;
}

wf_status wf_config_layers(const wf_config *c, const wf_config_block ***out, size_t *n) {
  size_t count = 0;
  *n = 0;
  *out = NULL;
  WF_TRY(expand(c->model.blocks, c->model.n_blocks, NULL, &count));
  const wf_config_block **layers;
  WF_CALLOC(layers, TAG, count);
  const wf_status s = expand(c->model.blocks, c->model.n_blocks, layers, n);
  *out = layers;
  return s;
}

/* --- the whole --- */

static wf_status read_model(const wf_yaml_node *map, wf_config *c, wf_config_types types) {
  const wf_yaml_node *blocks = wf_yaml_get(map, "blocks");
  if (!blocks)
    return wf_yaml_at(map, wf_hint(WF_FAIL(WF_EINVAL, "model.blocks is missing"),
                                   "for example blocks: [{repeat: 4, mixer: {type: attention, heads: 4}, "
                                   "mlp: {type: swiglu}}]"));
  return read_blocks(blocks, types, &c->model.blocks, &c->model.n_blocks);
}

static wf_status read_train(const wf_yaml_node *map, wf_config *c, wf_config_types types) {
  const wf_yaml_node none = empty_map(map);
  const wf_yaml_node *optimizer = wf_yaml_get(map, "optimizer"), *schedule = wf_yaml_get(map, "schedule");
  WF_TRY(read_part(optimizer ? optimizer : &none, types, WF_CONFIG_OPTIMIZER, "adamw", &c->train.optimizer));
  return read_part(schedule ? schedule : &none, types, WF_CONFIG_SCHEDULE, "cosine", &c->train.schedule);
}

static wf_status read_root(const wf_yaml_node *root, wf_config *c, wf_config_types types) {
  WF_TRY(want_kind(root, WF_YAML_MAP, "a config"));
  const char *names[16];
  int n = 0;
  for (const wf_config_section *s = wf_config_sections; s->name; s++) names[n++] = s->name;
  names[n] = NULL;
  for (size_t i = 0; i < root->n; i++)
    if (!listed(names, root->keys[i]->text))
      return unknown_key(root->keys[i], "the config", &(wf_option){0}, names);
  for (const wf_config_section *s = wf_config_sections; s->name; s++) {
    const wf_yaml_node *node = wf_yaml_get(root, s->name);
    const wf_yaml_node none = empty_map(root);
    const wf_yaml_node *map = !node || wf_yaml_is_null(node) ? &none : node;
    WF_TRY(wf_options_defaults(s->table, (char *)c + s->offset));
    WF_TRY(read_map(map, s->name, s->table, s->nested, (char *)c + s->offset));
    if (strcmp(s->name, "model") == 0) WF_TRY(read_model(map, c, types));
    if (strcmp(s->name, "train") == 0) WF_TRY(read_train(map, c, types));
  }
  return WF_OK;
}

/* Put the place of section.key, or of what is nearest to it, in front of the current error. */
static wf_status at_key(const wf_yaml_node *root, const char *section, const char *key, wf_status s) {
  const wf_yaml_node *map = wf_yaml_get(root, section), *node = NULL;
  if (map && map->kind == WF_YAML_MAP) node = wf_yaml_get(map, key);
  return wf_yaml_at(node ? node : map ? map : root, s);
}

/* The names that are auto: run.name is the file's, without folder and ending; run.dir lies in runs/. */
static wf_status name_run(wf_config *c, const char *file, const wf_yaml_node *root) {
  char text[600];
  if (!c->run.name) {
    const char *base = strrchr(file, '/') ? strrchr(file, '/') + 1 : file, *dot = strrchr(base, '.');
    const size_t n = dot && dot > base ? (size_t)(dot - base) : strlen(base);
    if (!(c->run.name = wf_strndup(TAG, base, n)))
      return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  }
  const char *name = c->run.name;
  if (!*name || strlen(name) > 200 || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
    return at_key(root, "run", "name",
                  wf_hint(WF_FAIL(WF_EINVAL, "run.name \"%.60s\" cannot be the name of a folder", name),
                          "at most 200 letters and no slash; run.dir places the run elsewhere"));
  if (!c->run.dir) {
    snprintf(text, sizeof text, "runs/%s", name);
    if (!(c->run.dir = wf_strdup(TAG, text))) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  }
  return WF_OK;
}

/* The combinations that no single range can express. */
static wf_status check_batch(const wf_config *c, const wf_yaml_node *root) {
  const int64_t seq = c->data.seq_len, batch = c->train.batch_tokens, parts = c->train.accumulation;
  const int64_t sequences = batch / seq, rest = batch % seq;
  if (rest) {
    const int64_t nearest = seq * (sequences + (sequences == 0 || 2 * rest >= seq));
    return at_key(root, "train", "batch_tokens",
                  wf_hint(WF_FAIL(WF_EINVAL, "train.batch_tokens %lld is not a multiple of data.seq_len %lld",
                                  (long long)batch, (long long)seq),
                          "the nearest is %lld", (long long)nearest));
  }
  if (sequences % parts)
    return at_key(
        root, "train", "accumulation",
        wf_hint(WF_FAIL(WF_EINVAL, "train.accumulation %lld does not divide the %lld sequences of a batch",
                        (long long)parts, (long long)sequences),
                "train.batch_tokens / data.seq_len / train.accumulation must be whole"));
  return WF_OK;
}

static bool same_part(const wf_config_part *a, const wf_config_part *b) {
  if (!a->type || !b->type) return a->type == b->type;
  bool same = strcmp(a->type, b->type) == 0;
  for (const wf_option *o = a->table; same && o->name; o++)
    same = wf_options_equal(o, a->options, b->options);
  return same;
}

/* Blocks of one `share` name must be alike. `first` holds those seen so far. */
static wf_status check_shares(const wf_config_block *blocks, size_t n, const wf_config_block **first,
                              size_t *n_first) {
  for (size_t i = 0; i < n; i++) {
    const wf_config_block *b = &blocks[i], *a = b;
    WF_TRY(check_shares(b->blocks, b->n_blocks, first, n_first));
    if (!b->share) continue;
    for (size_t k = 0; k < *n_first && a == b; k++)
      if (strcmp(first[k]->share, b->share) == 0) a = first[k];
    if (a == b) first[(*n_first)++] = b;
    bool same = same_part(&a->mixer, &b->mixer) && same_part(&a->mlp, &b->mlp) && a->norm == b->norm &&
                a->n_beside == b->n_beside;
    for (size_t k = 0; same && k < b->n_beside; k++) same = same_part(&a->beside[k], &b->beside[k]);
    if (!same)
      return wf_context(
          wf_hint(WF_FAIL(WF_EINVAL, "this block differs from the one it shares \"%.60s\" with, at %s",
                          b->share, a->where),
                  "an anchor writes a block once: - &x {share: x, ...} and later - *x"),
          "%s", b->where);
  }
  return WF_OK;
}

/* Nothing that a bitwise run computes may follow from where it runs. */
static wf_status check_bitwise(const wf_config *c, const wf_yaml_node *root) {
  if (!c->parallel.bitwise) return WF_OK;
  if (c->parallel.data == WF_AUTO_I64)
    return at_key(root, "parallel", "bitwise",
                  wf_hint(WF_FAIL(WF_EINVAL, "parallel.bitwise needs parallel.data: data x sequence virtual "
                                             "ranks are the same on any number of processes"),
                          "give parallel.data a number, 1 if only sequences are shared"));
  if (c->run.device != WF_DEVICE_CPU)
    return at_key(root, "parallel", "bitwise",
                  wf_hint(WF_FAIL(WF_EUNSUPPORTED, "parallel.bitwise is for CPUs: kernels of GPUs need not "
                                                   "add in one order"),
                          "set run.device: cpu, or leave bitwise out"));
  if (c->run.threads != WF_AUTO_I64 && c->run.threads != 1)
    return at_key(root, "parallel", "bitwise",
                  wf_hint(WF_FAIL(WF_EINVAL,
                                  "run.threads is %lld, but a virtual rank of parallel.bitwise is "
                                  "one thread",
                                  (long long)c->run.threads),
                          "leave run.threads out: a process runs a thread for each of its virtual ranks"));
  return WF_OK;
}

static wf_status check_all(const wf_config *c, const wf_yaml_node *root) {
  WF_TRY(check_batch(c, root));
  WF_TRY(check_bitwise(c, root));
  const wf_status rules = wf_opt_rules_check(c->train.rules);
  if (rules != WF_OK) return at_key(root, "train", "rules", rules);
  const int64_t positions = c->model.max_positions;
  if (positions != WF_AUTO_I64 && positions < c->data.seq_len)
    return at_key(root, "model", "max_positions",
                  WF_FAIL(WF_EINVAL, "model.max_positions %lld is less than data.seq_len %lld",
                          (long long)positions, (long long)c->data.seq_len));
  if (c->train.carry_state && !c->data.pack)
    return at_key(
        root, "train", "carry_state",
        wf_hint(WF_FAIL(WF_EINVAL, "train.carry_state needs packed documents, but data.pack is false"),
                "set data.pack: true"));
  if (count_written(c->model.blocks, c->model.n_blocks) > MAX_BLOCKS)
    return at_key(root, "model", "blocks",
                  wf_hint(WF_FAIL(WF_EINVAL, "more than %d blocks are written out", MAX_BLOCKS),
                          "use repeat, and groups: {repeat: 4, blocks: [...]}"));
  const wf_config_block *first[MAX_BLOCKS];
  size_t layers = 0, n_first = 0;
  WF_TRY(check_shares(c->model.blocks, c->model.n_blocks, first, &n_first));
  return expand(c->model.blocks, c->model.n_blocks, NULL, &layers);
}

wf_status wf_config_parse(wf_config *out, const char *name, const char *bytes, size_t n,
                          const char *const *sets, size_t n_sets, wf_config_types types) {
  memset(out, 0, sizeof *out);
  wf_yaml tree;
  WF_TRY(wf_yaml_parse(&tree, name, bytes, n));
  wf_status s = WF_OK;
  for (size_t i = 0; i < n_sets && s == WF_OK; i++) s = wf_yaml_set(&tree, sets[i]);
  if (s == WF_OK && !tree.root)
    s = wf_hint(WF_FAIL(WF_EINVAL, "%s: the config is empty", name), "experiments/configs has complete ones");
  if (s == WF_OK) s = read_root(tree.root, out, types);
  if (s == WF_OK) s = name_run(out, name, tree.root);
  if (s == WF_OK) s = check_all(out, tree.root);
  wf_yaml_free(&tree);
  if (s != WF_OK) wf_config_free(out);
  return s;
}

wf_status wf_config_load(wf_config *out, const char *path, const char *const *sets, size_t n_sets,
                         wf_config_types types) {
  memset(out, 0, sizeof *out);
  char *bytes;
  int64_t n;
  WF_TRY(wf_file_read(path, WF_YAML_MAX_BYTES, &bytes, &n));
  const wf_status s = wf_config_parse(out, path, bytes, (size_t)n, sets, n_sets, types);
  wf_free(bytes);
  return s;
}

void wf_config_free(wf_config *c) {
  for (const wf_config_section *s = wf_config_sections; s->name; s++)
    wf_options_free(s->table, (char *)c + s->offset);
  free_blocks(c->model.blocks, c->model.n_blocks);
  free_part(&c->train.optimizer);
  free_part(&c->train.schedule);
  memset(c, 0, sizeof *c);
}
