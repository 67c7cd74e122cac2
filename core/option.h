/* option: typed tables from which parsing, validation, printing and documentation all come.
 *
 * One table describes the fields of one C struct. Every section of the config, every layer and every
 * optimiser has one; nothing else knows the names, defaults, ranges or help of its keys.
 *
 *     typedef struct gla_options { int64_t heads; double gate_norm; bool conv; } gla_options;
 *     static const wf_option gla_table[] = {
 *       WF_OPT_I64(gla_options, heads, "4", 1, 4096, "number of heads"),
 *       WF_OPT_F64(gla_options, gate_norm, "16", 0, 1e9, "divides the log gate"),
 *       WF_OPT_BOOL(gla_options, conv, "true", "short convolution on q, k, v"),
 *       WF_OPT_END};
 */
#ifndef WF_CORE_OPTION_H
#define WF_CORE_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum wf_opt_type {
  WF_OPT_TYPE_I64,    /* int64_t */
  WF_OPT_TYPE_F64,    /* double */
  WF_OPT_TYPE_BOOL,   /* bool */
  WF_OPT_TYPE_STRING, /* char *, owned by the struct: wf_options_free */
  WF_OPT_TYPE_ENUM    /* int: index into `choices` */
} wf_opt_type;

enum {
  WF_OPT_REQUIRED = 1, /* no default: must be given */
  WF_OPT_AUTO = 2,     /* also accepts the word auto, stored as WF_AUTO_I64 / NAN / NULL */
  WF_OPT_RESUME = 4    /* may differ when a run is resumed */
};
#define WF_AUTO_I64 INT64_MIN

typedef struct wf_option {
  const char *name;
  wf_opt_type type;
  size_t offset;              /* of the field in its struct */
  const char *value;          /* default, as text; NULL when required, or for strings: absent */
  double min, max;            /* numbers: inclusive range */
  const char *const *choices; /* enum: NULL-terminated */
  const char *help;           /* one line: meaning and unit */
  unsigned flags;
} wf_option;

#define WF_OPT_I64F(S, f, def, lo, hi, fl, help) \
  { #f, WF_OPT_TYPE_I64, offsetof(S, f), def, lo, hi, NULL, help, fl }
#define WF_OPT_F64F(S, f, def, lo, hi, fl, help) \
  { #f, WF_OPT_TYPE_F64, offsetof(S, f), def, lo, hi, NULL, help, fl }
#define WF_OPT_BOOLF(S, f, def, fl, help) \
  { #f, WF_OPT_TYPE_BOOL, offsetof(S, f), def, 0, 0, NULL, help, fl }
#define WF_OPT_STRF(S, f, def, fl, help) \
  { #f, WF_OPT_TYPE_STRING, offsetof(S, f), def, 0, 0, NULL, help, fl }
#define WF_OPT_ENUMF(S, f, def, list, fl, help) \
  { #f, WF_OPT_TYPE_ENUM, offsetof(S, f), def, 0, 0, list, help, fl }
#define WF_OPT_I64(S, f, def, lo, hi, help) WF_OPT_I64F(S, f, def, lo, hi, 0, help)
#define WF_OPT_F64(S, f, def, lo, hi, help) WF_OPT_F64F(S, f, def, lo, hi, 0, help)
#define WF_OPT_BOOL(S, f, def, help)        WF_OPT_BOOLF(S, f, def, 0, help)
#define WF_OPT_STR(S, f, def, help)         WF_OPT_STRF(S, f, def, 0, help)
#define WF_OPT_ENUM(S, f, def, list, help)  WF_OPT_ENUMF(S, f, def, list, 0, help)
#define WF_OPT_END \
  { 0 }

/* Set every field of `self` to its default (required ones to auto / 0 / NULL). */
wf_status wf_options_defaults(const wf_option *table, void *self);

/* Parse `text` into the field `name`. Errors name the key, the allowed values or range, and for an unknown
 * key the nearest valid one. The caller adds the place (wf_context). */
wf_status wf_options_set(const wf_option *table, void *self, const char *name, const char *text);

const wf_option *wf_options_find(const wf_option *table, const char *name); /* NULL when unknown */

/* Nearest name by edit distance among `n` candidates, or NULL when nothing is close. */
const char *wf_nearest_name(const char *name, const char *const *candidates, int n);
const char *wf_options_nearest(const wf_option *table, const char *name);

/* The field's value as YAML text, such that wf_options_set reads it back exactly. Returns the length needed.
 */
size_t wf_options_print(const wf_option *o, const void *self, char *out, size_t size);

bool wf_options_equal(const wf_option *o, const void *a, const void *b);
wf_status wf_options_copy(const wf_option *table, void *dst, const void *src); /* deep */
void wf_options_free(const wf_option *table, void *self);                      /* strings only */

#ifdef __cplusplus
}
#endif

#endif
