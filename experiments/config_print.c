/* A config as text: all its values as YAML that reads back the same, and the reference of its keys. */
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/config.h"
#include "experiments/text.h"

/* --- values --- */

static void put_value(wf_text *t, const wf_option *o, const void *self) {
  char small[256];
  const size_t n = wf_options_print(o, self, small, sizeof small);
  if (n < sizeof small) {
    wf_text_add(t, "%s", small);
    return;
  }
  char *large = wf_alloc("text", n + 1);
  if (!large) {
    if (t->status == WF_OK) t->status = WF_ENOMEM;
    return;
  }
  wf_options_print(o, self, large, n + 1);
  wf_text_add(t, "%s", large);
  wf_free(large);
}

static void put_options(wf_text *t, const wf_option *table, const void *self, int indent) {
  for (const wf_option *o = table; o->name; o++) {
    wf_text_add(t, "%*s%s: ", indent, "", o->name);
    put_value(t, o, self);
    wf_text_add(t, "\n");
  }
}

static void put_part(wf_text *t, const char *key, const wf_config_part *part, int indent) {
  if (!part->type) {
    wf_text_add(t, "%*s%s: none\n", indent, "", key);
    return;
  }
  wf_text_add(t, "%*s%s:\n%*stype: %s\n", indent, "", key, indent + 2, "", part->type);
  put_options(t, part->table, part->options, indent + 2);
}

static void put_mixers(wf_text *t, const wf_config_block *b, int indent) {
  if (!b->n_beside) {
    put_part(t, "mixer", &b->mixer, indent);
    return;
  }
  wf_text_add(t, "%*smixer:\n", indent, "");
  for (size_t i = 0; i <= b->n_beside; i++) {
    const wf_config_part *part = i ? &b->beside[i - 1] : &b->mixer;
    wf_text_add(t, "%*s- type: %s\n", indent + 2, "", part->type);
    put_options(t, part->table, part->options, indent + 4);
  }
}

static void put_blocks(wf_text *t, const wf_config_block *blocks, size_t n, int indent) {
  wf_text_add(t, "%*sblocks:\n", indent, "");
  for (size_t i = 0; i < n; i++) {
    const wf_config_block *b = &blocks[i];
    wf_text_add(t, "%*s- repeat: %lld\n", indent + 2, "", (long long)b->repeat);
    if (b->n_blocks) {
      put_blocks(t, b->blocks, b->n_blocks, indent + 4);
      continue;
    }
    put_options(t, wf_config_block_table + 1, b, indent + 4); /* after repeat */
    put_mixers(t, b, indent + 4);
    put_part(t, "mlp", &b->mlp, indent + 4);
  }
}

wf_status wf_config_print(const wf_config *c, char **text) {
  wf_text t = {0};
  for (const wf_config_section *s = wf_config_sections; s->name; s++) {
    wf_text_add(&t, "%s:\n", s->name);
    put_options(&t, s->table, (const char *)c + s->offset, 2);
    if (strcmp(s->name, "model") == 0) put_blocks(&t, c->model.blocks, c->model.n_blocks, 2);
    if (strcmp(s->name, "train") == 0) {
      put_part(&t, "optimizer", &c->train.optimizer, 2);
      put_part(&t, "schedule", &c->train.schedule, 2);
    }
  }
  return wf_text_take(&t, text);
}

/* --- reference --- */

static void put_range(wf_text *t, const wf_option *o) {
  static const char *const types[] = {"integer", "number", "true or false", "text"};
  if (o->type == WF_OPT_TYPE_ENUM) {
    for (int i = 0; o->choices[i]; i++) wf_text_add(t, "%s%s", i ? ", " : "", o->choices[i]);
  } else {
    wf_text_add(t, "%s", types[o->type]);
  }
  if (o->type == WF_OPT_TYPE_I64 || o->type == WF_OPT_TYPE_F64) {
    const double open = o->type == WF_OPT_TYPE_I64 ? 1e12 : 1e300;
    if (o->min > -open && o->max < open)
      wf_text_add(t, ", %.12g to %.12g", o->min, o->max);
    else if (o->min > -open)
      wf_text_add(t, ", at least %.12g", o->min);
    else if (o->max < open)
      wf_text_add(t, ", at most %.12g", o->max);
  }
  if ((o->flags & WF_OPT_AUTO) && (!o->value || strcmp(o->value, "auto") != 0)) wf_text_add(t, ", or auto");
}

static const char *default_words(const wf_option *o) {
  if (o->flags & WF_OPT_REQUIRED) return "required";
  if (o->value) return o->value;
  return o->flags & WF_OPT_AUTO ? "auto" : "none";
}

static void put_rows(wf_text *t, const wf_option *table) {
  if (!table->name) {
    wf_text_add(t, "No options.\n\n");
    return;
  }
  wf_text_add(t, "| key | default | values | meaning |\n|---|---|---|---|\n");
  for (const wf_option *o = table; o->name; o++) {
    wf_text_add(t, "| `%s`%s | %s | ", o->name, o->flags & WF_OPT_RESUME ? " *" : "", default_words(o));
    put_range(t, o);
    wf_text_add(t, " | %s |\n", o->help);
  }
  wf_text_add(t, "\n");
}

wf_status wf_config_docs(wf_config_types types, char **text) {
  static const char *const where[] = {"`model.blocks[].mixer`, or `none`", "`model.blocks[].mlp`, or `none`",
                                      "`train.optimizer`", "`train.schedule`"};
  wf_text t = {0};
  wf_text_add(&t, "# Config reference\n\nKeys marked * may differ when a run is resumed.\n\n");
  for (const wf_config_section *s = wf_config_sections; s->name; s++) {
    wf_text_add(&t, "## %s: %s\n\n", s->name, s->help);
    put_rows(&t, s->table);
    if (strcmp(s->name, "model") == 0) {
      wf_text_add(
          &t, "### model.blocks: a list of blocks\n\nEach has `mixer`, `mlp` and these keys; or `repeat` and "
              "`blocks`, a group that repeats in turn. A list as `mixer` puts mixers beside each other: each "
              "output is normed, scaled by a learned factor for each channel, and they are averaged.\n\n");
      put_rows(&t, wf_config_block_table);
    }
  }
  for (int kind = 0; kind < WF_CONFIG_KINDS; kind++) {
    wf_config_type type;
    wf_text_add(&t, "## Types of %s\n\n", where[kind]);
    for (int i = 0; types((wf_config_kind)kind, i, &type); i++) {
      wf_text_add(&t, "### %s\n\n", type.name);
      if (type.help) wf_text_add(&t, "%s\n\n", type.help);
      put_rows(&t, type.options);
    }
  }
  return wf_text_take(&t, text);
}

wf_status wf_config_describe(wf_text *out, const wf_option *table, int indent) {
  int widest = 0;
  for (const wf_option *o = table; o->name; o++) {
    const int n = (int)strlen(o->name);
    if (n > widest) widest = n;
  }
  for (const wf_option *o = table; o->name; o++) {
    wf_text_add(out, "%*s%-*s  %-10s %s (", indent, "", widest, o->name, default_words(o), o->help);
    put_range(out, o);
    wf_text_add(out, ")\n");
  }
  if (!table->name) wf_text_add(out, "%*sno options\n", indent, "");
  return out->status;
}
