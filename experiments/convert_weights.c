/* Weights through a family's table. Reading and writing visit the same entries, and one function moves the
 * elements between our parameters and a tensor of theirs, in either direction. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/tensor.h"
#include "experiments/checkpoint.h"
#include "experiments/convert_impl.h"

#define TAG "convert"

enum { MAX_NAME = 256 };

/* ---- the entries of a model ---- */

/* One tensor of theirs for one model: its name and our parameters in it. */
typedef struct entry {
  char theirs[MAX_NAME], older[MAX_NAME]; /* older: "" for none */
  wf_param *part[WF_FAMILY_PARTS];
  int n_parts, ndim;
  int64_t outputs, inputs, shape[WF_PARAM_MAX_DIMS]; /* of all parts together; inputs: of one output */
  wf_family_form form;
  int64_t heads; /* of WF_FORM_HEADS_FIRST */
} entry;

typedef wf_status (*visitor)(void *arg, const entry *e);

/* `pattern` with the block's number for #. */
static void name_of(char out[MAX_NAME], const char *pattern, int block) {
  const char *mark = strchr(pattern, '#');
  if (mark)
    snprintf(out, MAX_NAME, "%.*s%d%s", (int)(mark - pattern), pattern, block, mark + 1);
  else
    snprintf(out, MAX_NAME, "%s", pattern);
}

/* One more part; its outputs lie after those before. */
static bool add_part(entry *e, wf_param *p) {
  bool fits =
      e->n_parts == 0 || (p->ndim == e->ndim &&
                          memcmp(p->shape + 1, e->shape + 1, (size_t)(p->ndim - 1) * sizeof *p->shape) == 0);
  if (!fits || p->ndim < 1 || (e->form == WF_FORM_TRANSPOSED && p->ndim != 2)) return false;
  memcpy(e->shape, p->shape, (size_t)p->ndim * sizeof *p->shape);
  e->ndim = p->ndim;
  e->outputs += p->shape[0];
  e->inputs = p->numel / (p->shape[0] > 0 ? p->shape[0] : 1);
  e->part[e->n_parts++] = p;
  return true;
}

/* Without parts where the model has none of them. */
static wf_status make_entry(const wf_family_rule *rule, int block, const wf_params *params, entry *e) {
  char name[MAX_NAME];
  int wanted = 0;
  *e = (entry){.form = rule->form};
  name_of(e->theirs, rule->theirs, block);
  if (rule->older) name_of(e->older, rule->older, block);
  if (rule->where) {
    name_of(name, rule->where, block);
    const wf_param *mark = wf_params_find(params, name);
    if (!mark) return WF_OK;
    e->heads = mark->shape[0];
  }
  for (; wanted < WF_FAMILY_PARTS && rule->ours[wanted]; wanted++) {
    name_of(name, rule->ours[wanted], block);
    wf_param *p = wf_params_find(params, name);
    if (p && !add_part(e, p)) return WF_FAIL(WF_EINTERNAL, "%s does not fit into %s", name, e->theirs);
  }
  if (e->n_parts && e->n_parts != wanted)
    return WF_FAIL(WF_EUNSUPPORTED, "%s holds %d parameters, of which the model has %d", e->theirs, wanted,
                   e->n_parts);
  e->shape[0] = e->outputs;
  if (e->form == WF_FORM_TRANSPOSED) {
    e->shape[0] = e->inputs;
    e->shape[1] = e->outputs;
  }
  if (e->form == WF_FORM_TURNED && e->n_parts) {
    e->shape[1] = e->part[0]->shape[2];
    e->shape[2] = e->part[0]->shape[1];
  }
  return WF_OK;
}

static int count_blocks(const wf_params *params) {
  int n = 0, i;
  for (int k = 0; k < params->n; k++)
    if (sscanf(params->param[k]->name, "blocks.%d.", &i) == 1 && i >= n) n = i + 1;
  return n;
}

/* Every tensor that the model has in this family, in the table's order; every parameter must be in one. */
static wf_status each_entry(const wf_family *f, const wf_params *params, visitor fn, void *arg) {
  int blocks = count_blocks(params), covered = 0;
  for (const wf_family_rule *rule = f->rules; rule->theirs; rule++)
    for (int i = 0; i < (strchr(rule->theirs, '#') ? blocks : 1); i++) {
      entry e;
      WF_TRY(make_entry(rule, i, params, &e));
      if (e.n_parts == 0) continue;
      covered += e.n_parts;
      WF_TRY(fn(arg, &e));
    }
  if (covered != params->n)
    return WF_FAIL(WF_EUNSUPPORTED, "%s has names for %d of the model's %d parameters", f->title, covered,
                   params->n);
  return WF_OK;
}

/* ---- elements ---- */

/* Where the element (row, column) of our parts together lies in their tensor. */
static int64_t place_of(const entry *e, int64_t row, int64_t column) {
  int64_t width, gates = 4;
  switch (e->form) {
  case WF_FORM_TRANSPOSED: return column * e->outputs + row;
  case WF_FORM_TURNED: /* one head a row: column = out * width + in */
    width = e->shape[1];
    return row * e->inputs + column % width * e->shape[2] + column / width;
  case WF_FORM_HEADS_FIRST:
    width = e->outputs / (gates * e->heads);
    return (row / width % e->heads * gates + row / (width * e->heads)) * width + row % width;
  default: return row * e->inputs + column;
  }
}

/* Between a tensor of theirs and one part of it [rows, inputs] whose outputs begin at `first`; `offset` is
 * added to ours. */
static void move(const entry *e, float *theirs, float *part, int64_t first, int64_t rows, float offset,
                 bool to_them) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < e->inputs; c++) {
      float *a = &theirs[place_of(e, first + r, c)], *b = &part[r * e->inputs + c];
      if (to_them)
        *a = *b + offset;
      else
        *b = *a - offset;
    }
}

/* A parameter's values as float32, from or to its own type. */
static wf_status transfer(wf_param *p, float *x, bool from_model) {
  if (p->value->dtype == WF_F32) return from_model ? wf_to_host(p->value, x) : wf_tensor_write(p->value, x);
  double *wide = wf_calloc(TAG, (size_t)p->numel, sizeof *wide);
  if (!wide) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  for (int64_t i = 0; i < p->numel && !from_model; i++) wide[i] = (double)x[i];
  wf_status s = from_model ? wf_to_host(p->value, wide) : wf_tensor_write(p->value, wide);
  for (int64_t i = 0; i < p->numel && from_model; i++) x[i] = (float)wide[i];
  wf_free(wide);
  return s;
}

typedef struct buffers {
  float *theirs, *part;
} buffers;

static wf_status open_buffers(const entry *e, buffers *b) {
  size_t n = (size_t)(e->outputs * e->inputs); /* both were checked with the parameters */
  b->theirs = wf_calloc(TAG, n, sizeof(float));
  b->part = wf_calloc(TAG, n, sizeof(float));
  return b->theirs && b->part ? WF_OK : WF_ENOMEM;
}

static void close_buffers(buffers *b) {
  wf_free(b->theirs);
  wf_free(b->part);
}

static wf_status move_parts(const entry *e, const buffers *b, bool gradients, bool to_them) {
  int64_t first = 0;
  float offset = e->form == WF_FORM_MINUS_ONE && !gradients ? -1 : 0;
  for (int i = 0; i < e->n_parts; i++) {
    wf_param *p = e->part[i];
    if (to_them) WF_TRY(transfer(p, b->part, true));
    move(e, b->theirs, b->part, first, p->shape[0], offset, to_them);
    if (!to_them) WF_TRY(transfer(p, b->part, false));
    first += p->shape[0];
  }
  return WF_OK;
}

/* ---- reading ---- */

typedef struct reading {
  const wf_family *f;
  const wf_safetensors *st;
  const char *prefix;
  bool bare; /* the file's names lack the family's prefix */
  const wf_st_info **used;
  size_t n_used, cap_used;
} reading;

/* Names lack the family's prefix when that of its first tensor, the embedding, does. */
static void start_reading(reading *r, const wf_family *f, const wf_safetensors *st, const char *prefix) {
  char bare[MAX_NAME];
  snprintf(bare, sizeof bare, "%s%s", prefix, f->rules[0].theirs + strlen(f->prefix));
  *r = (reading){.f = f, .st = st, .prefix = prefix, .bare = wf_st_has(st, bare)};
}

static wf_status find(const reading *r, const entry *e, const wf_st_info **info) {
  char full[2 * MAX_NAME];
  const char *name = e->theirs;
  size_t n = strlen(r->f->prefix);
  snprintf(full, sizeof full, "%s%s", r->prefix, e->older);
  if (e->older[0] && wf_st_has(r->st, full)) return wf_st_find(r->st, full, info);
  if (r->bare && strncmp(name, r->f->prefix, n) == 0) name += n;
  snprintf(full, sizeof full, "%s%s", r->prefix, name);
  return wf_st_find(r->st, full, info);
}

static wf_status read_entry(void *arg, const entry *e) {
  const reading *r = arg;
  const wf_st_info *info;
  char has[96], wants[96];
  WF_TRY(find(r, e, &info));
  if (info->ndim != e->ndim || memcmp(info->shape, e->shape, (size_t)e->ndim * sizeof *e->shape) != 0)
    return WF_FAIL(WF_ESHAPE, "%s is %s, the model has %s", info->name,
                   wf_dims_text(info->ndim, info->shape, has), wf_dims_text(e->ndim, e->shape, wants));
  buffers b;
  wf_status s = open_buffers(e, &b);
  if (s == WF_OK) s = wf_st_read_f32(r->st, info, 0, info->count, b.theirs);
  if (s == WF_OK) s = move_parts(e, &b, *r->prefix, false);
  close_buffers(&b);
  return s;
}

wf_status wf_family_read(const wf_family *f, const wf_safetensors *st, const char *prefix,
                         wf_params *params) {
  reading r;
  start_reading(&r, f, st, prefix);
  return each_entry(f, params, read_entry, &r);
}

static wf_status use_entry(void *arg, const entry *e) {
  reading *r = arg;
  WF_TRY(wf_grow(TAG, (void **)&r->used, sizeof *r->used, r->n_used, &r->cap_used));
  WF_TRY(find(r, e, &r->used[r->n_used]));
  r->n_used++;
  return WF_OK;
}

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), m = strlen(end);
  return n >= m && strcmp(text + n - m, end) == 0;
}

static bool is_ignored(const reading *r, const wf_params *params, const char *name) {
  for (int i = 0; r->f->ignored[i]; i++)
    if (ends_with(name, r->f->ignored[i])) return true;
  return strcmp(name, "lm_head.weight") == 0 && !wf_params_find(params, "head.weight");
}

static wf_status check_extra(reading *r, wf_params *params) {
  WF_TRY(each_entry(r->f, params, use_entry, r));
  for (int64_t i = 0; i < wf_st_count(r->st); i++) {
    const wf_st_info *info = wf_st_at(r->st, i);
    bool used = is_ignored(r, params, info->name);
    for (size_t k = 0; k < r->n_used && !used; k++) used = strcmp(r->used[k]->name, info->name) == 0;
    if (!used)
      return wf_hint(WF_FAIL(WF_EFORMAT, "%s is in the file, but not in the model that config.json describes",
                             info->name),
                     "Weft reads %s alone", r->f->architecture ? r->f->architecture : r->f->title);
  }
  return WF_OK;
}

wf_status wf_family_check_extra(const wf_family *f, const wf_safetensors *st, wf_params *params) {
  reading r;
  start_reading(&r, f, st, "");
  wf_status s = check_extra(&r, params);
  wf_free(r.used);
  return s;
}

/* ---- writing ---- */

typedef struct writing {
  wf_st_writer *w;
  int *id;
  size_t n, cap, at;
} writing;

static wf_status define_entry(void *arg, const entry *e) {
  writing *w = arg;
  WF_TRY(wf_grow(TAG, (void **)&w->id, sizeof *w->id, w->n, &w->cap));
  WF_TRY(wf_st_define(w->w, e->theirs, WF_ST_F32, e->ndim, e->shape, &w->id[w->n]));
  w->n++;
  return WF_OK;
}

static wf_status write_entry(void *arg, const entry *e) {
  writing *w = arg;
  buffers b;
  wf_status s = open_buffers(e, &b);
  if (s == WF_OK) s = move_parts(e, &b, false, true);
  if (s == WF_OK) s = wf_st_write(w->w, w->id[w->at++], 0, e->outputs * e->inputs, b.theirs);
  close_buffers(&b);
  return s;
}

static wf_status write_all(const wf_family *f, writing *w, const wf_params *params) {
  WF_TRY(wf_st_set_metadata(w->w, "format", "pt")); /* transformers asks for it */
  WF_TRY(each_entry(f, params, define_entry, w));
  WF_TRY(wf_st_layout(w->w));
  return each_entry(f, params, write_entry, w);
}

wf_status wf_family_write(const wf_family *f, const char *path, const wf_params *params) {
  writing w = {0};
  WF_TRY(wf_st_create(path, &w.w));
  wf_status s = write_all(f, &w, params);
  wf_free(w.id);
  if (s == WF_OK) return wf_st_commit(w.w);
  wf_st_discard(w.w);
  return s;
}
