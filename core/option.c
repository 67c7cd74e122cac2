/* option: reading, checking, printing and copying the fields that a table of typed options describes.
 *
 * Everything goes through one parser (parse_text) and one printer (wf_options_print): the text of a default,
 * of a config, of --set and of a stored config is read by the same few lines, and what is printed reads back
 * exactly.
 */
#include "core/option.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

/* One field's value outside its struct. */
typedef union option_value {
  int64_t i64;
  double f64;
  bool boolean;
  char *string; /* owned */
  int choice;
} option_value;

/* --- fields --- */

static void *field(const wf_option *o, void *self) {
  return (char *)self + o->offset;
}

static const void *field_const(const wf_option *o, const void *self) {
  return (const char *)self + o->offset;
}

static void store(const wf_option *o, void *self, option_value v) {
  void *p = field(o, self);
  switch (o->type) {
  case WF_OPT_TYPE_I64: memcpy(p, &v.i64, sizeof v.i64); break;
  case WF_OPT_TYPE_F64: memcpy(p, &v.f64, sizeof v.f64); break;
  case WF_OPT_TYPE_BOOL: memcpy(p, &v.boolean, sizeof v.boolean); break;
  case WF_OPT_TYPE_STRING: memcpy(p, &v.string, sizeof v.string); break;
  case WF_OPT_TYPE_ENUM: memcpy(p, &v.choice, sizeof v.choice); break;
  }
}

static option_value load(const wf_option *o, const void *self) {
  const void *p = field_const(o, self);
  option_value v = {0};
  switch (o->type) {
  case WF_OPT_TYPE_I64: memcpy(&v.i64, p, sizeof v.i64); break;
  case WF_OPT_TYPE_F64: memcpy(&v.f64, p, sizeof v.f64); break;
  case WF_OPT_TYPE_BOOL: memcpy(&v.boolean, p, sizeof v.boolean); break;
  case WF_OPT_TYPE_STRING: memcpy(&v.string, p, sizeof v.string); break;
  case WF_OPT_TYPE_ENUM: memcpy(&v.choice, p, sizeof v.choice); break;
  }
  return v;
}

static option_value auto_value(wf_opt_type type) {
  option_value v = {0};
  switch (type) {
  case WF_OPT_TYPE_I64: v.i64 = WF_AUTO_I64; break;
  case WF_OPT_TYPE_F64: v.f64 = (double)NAN; break;
  case WF_OPT_TYPE_BOOL: v.boolean = false; break;
  case WF_OPT_TYPE_STRING: v.string = NULL; break;
  case WF_OPT_TYPE_ENUM: v.choice = -1; break;
  }
  return v;
}

/* --- parsing --- */

/* The allowed range in words, such as "1 to 4096" or "at least 0". */
static const char *range_words(const wf_option *o, char out[static 80]) {
  const double open = o->type == WF_OPT_TYPE_I64 ? 9.2e18 : 1e300;
  if (o->max >= open && o->min <= -open)
    snprintf(out, 80, "any finite number");
  else if (o->max >= open)
    snprintf(out, 80, "at least %.12g", o->min);
  else if (o->min <= -open)
    snprintf(out, 80, "at most %.12g", o->max);
  else
    snprintf(out, 80, "%.12g to %.12g", o->min, o->max);
  return out;
}

static wf_status out_of_range(const wf_option *o, const char *text) {
  char words[80];
  return wf_hint(
      WF_FAIL(WF_EINVAL, "%s: %.40s is out of range, allowed is %s", o->name, text, range_words(o, words)),
      "%s: %s", o->name, o->help);
}

static wf_status wrong_type(const wf_option *o, const char *expected, const char *text) {
  return wf_hint(WF_FAIL(WF_EINVAL, "%s: expected %s%s, got \"%.60s\"", o->name, expected,
                         o->flags & WF_OPT_AUTO ? " or auto" : "", text),
                 "%s: %s", o->name, o->help);
}

static wf_status parse_i64(const wf_option *o, const char *text, int64_t *out) {
  char *end = NULL;
  errno = 0;
  const long long v = strtoll(text, &end, 10);
  if (isspace((unsigned char)*text) || end == text || *end) return wrong_type(o, "an integer", text);
  if (errno == ERANGE || v == WF_AUTO_I64 || (double)v < o->min || (double)v > o->max)
    return out_of_range(o, text);
  *out = v;
  return WF_OK;
}

static wf_status parse_f64(const wf_option *o, const char *text, double *out) {
  const char *digits = text + (*text == '-' || *text == '+');
  double v;
  if (strcmp(digits, ".inf") == 0) {
    v = *text == '-' ? -(double)INFINITY : (double)INFINITY;
  } else {
    char *end = NULL;
    if (!isdigit((unsigned char)*digits) && *digits != '.') return wrong_type(o, "a number", text);
    if (digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'X')) return wrong_type(o, "a number", text);
    v = strtod(text, &end); /* too small becomes 0 or subnormal, too large infinite: the range decides */
    if (end == text || *end) return wrong_type(o, "a number", text);
  }
  if (!(v >= o->min && v <= o->max)) return out_of_range(o, text);
  *out = v;
  return WF_OK;
}

static wf_status parse_bool(const wf_option *o, const char *text, bool *out) {
  *out = strcmp(text, "true") == 0;
  if (*out || strcmp(text, "false") == 0) return WF_OK;
  return wrong_type(o, "true or false", text);
}

static wf_status parse_enum(const wf_option *o, const char *text, int *out) {
  char list[400] = "";
  size_t used = 0;
  int n = 0;
  for (; o->choices[n]; n++) {
    if (strcmp(o->choices[n], text) == 0) {
      *out = n;
      return WF_OK;
    }
    if (used < sizeof list)
      used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", n ? ", " : "", o->choices[n]);
  }
  const char *near = wf_nearest_name(text, o->choices, n);
  const wf_status code = WF_FAIL(WF_EINVAL, "%s: \"%.60s\" is not one of %s%s", o->name, text, list,
                                 o->flags & WF_OPT_AUTO ? ", auto" : "");
  return near ? wf_hint(code, "did you mean %s?", near) : wf_hint(code, "%s: %s", o->name, o->help);
}

/* A string in `out` is newly allocated and the caller's. */
static wf_status parse_text(const wf_option *o, const char *text, option_value *out) {
  if ((o->flags & WF_OPT_AUTO) && strcmp(text, "auto") == 0) {
    *out = auto_value(o->type);
    return WF_OK;
  }
  switch (o->type) {
  case WF_OPT_TYPE_I64: return parse_i64(o, text, &out->i64);
  case WF_OPT_TYPE_F64: return parse_f64(o, text, &out->f64);
  case WF_OPT_TYPE_BOOL: return parse_bool(o, text, &out->boolean);
  case WF_OPT_TYPE_ENUM: return parse_enum(o, text, &out->choice);
  case WF_OPT_TYPE_STRING: break;
  }
  out->string = NULL;
  if (strcmp(text, "null") != 0) {
    if (!(out->string = wf_strdup("option", text)))
      return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  } else if (o->flags & WF_OPT_REQUIRED) {
    return wrong_type(o, "a text", text);
  }
  return WF_OK;
}

wf_status wf_options_set(const wf_option *table, void *self, const char *name, const char *text) {
  const wf_option *o = wf_options_find(table, name);
  if (!o) {
    const char *near = wf_options_nearest(table, name);
    const wf_status code = WF_FAIL(WF_EINVAL, "unknown key \"%.60s\"", name);
    return near ? wf_hint(code, "did you mean %s?", near) : code;
  }
  option_value v = {0};
  WF_TRY(parse_text(o, text, &v));
  if (o->type == WF_OPT_TYPE_STRING) wf_free(load(o, self).string);
  store(o, self, v);
  return WF_OK;
}

wf_status wf_options_defaults(const wf_option *table, void *self) {
  for (const wf_option *o = table; o->name; o++) store(o, self, auto_value(o->type));
  for (const wf_option *o = table; o->name; o++) {
    if (!o->value) continue;
    option_value v = {0};
    const wf_status s = parse_text(o, o->value, &v);
    if (s != WF_OK) {
      wf_options_free(table, self);
      return wf_context(s, "the default of %s", o->name);
    }
    store(o, self, v);
  }
  return WF_OK;
}

const wf_option *wf_options_find(const wf_option *table, const char *name) {
  for (const wf_option *o = table; o->name; o++)
    if (strcmp(o->name, name) == 0) return o;
  return NULL;
}

/* --- nearest names --- */

enum { NAME_MAX_COMPARED = 48 };

static int smaller(int a, int b) {
  return a < b ? a : b;
}

/* Letters to change, insert, drop or swap with the neighbour (Damerau-Levenshtein, each place edited once).
 */
static int edit_distance(const char *a, int na, const char *b, int nb) {
  int before[NAME_MAX_COMPARED + 1] = {0}, last[NAME_MAX_COMPARED + 1], row[NAME_MAX_COMPARED + 1];
  for (int j = 0; j <= nb; j++) last[j] = j;
  for (int i = 1; i <= na; i++) {
    row[0] = i;
    for (int j = 1; j <= nb; j++) {
      const int ca = tolower((unsigned char)a[i - 1]), cb = tolower((unsigned char)b[j - 1]);
      row[j] = smaller(smaller(last[j] + 1, row[j - 1] + 1), last[j - 1] + (ca != cb));
      if (i > 1 && j > 1 && ca == tolower((unsigned char)b[j - 2]) && tolower((unsigned char)a[i - 2]) == cb)
        row[j] = smaller(row[j], before[j - 2] + 1);
    }
    memcpy(before, last, sizeof before);
    memcpy(last, row, sizeof(int) * (size_t)(nb + 1));
  }
  return last[nb];
}

/* How far `candidate` is from what was written: edits, with a name and its beginning counted as close.
 * Compared with a limit of a third of the letters, beyond which a proposal would only confuse. */
static bool close_enough(const char *name, const char *candidate, int *distance) {
  const int na = (int)strnlen(name, NAME_MAX_COMPARED + 1),
            nb = (int)strnlen(candidate, NAME_MAX_COMPARED + 1);
  if (na == 0 || na > NAME_MAX_COMPARED || nb > NAME_MAX_COMPARED) return false;
  *distance = 2 * edit_distance(name, na, candidate, nb);
  if (*distance <= 2 * ((na > nb ? na : nb) + 1) / 3) return true;
  const int shared = smaller(na, nb);
  *distance = 1000; /* any near spelling wins over a shared beginning */
  return shared >= 3 && strncmp(name, candidate, (size_t)shared) == 0;
}

const char *wf_nearest_name(const char *name, const char *const *candidates, int n) {
  const char *best = NULL;
  int least = 0;
  for (int i = 0; i < n; i++) {
    int d;
    if (!close_enough(name, candidates[i], &d) || (best && d >= least)) continue;
    best = candidates[i];
    least = d;
  }
  return best;
}

const char *wf_options_nearest(const wf_option *table, const char *name) {
  const char *best = NULL;
  int least = 0;
  for (const wf_option *o = table; o->name; o++) {
    int d;
    if (!close_enough(name, o->name, &d) || (best && d >= least)) continue;
    best = o->name;
    least = d;
  }
  return best;
}

/* --- printing --- */

/* Text that grows into a buffer of fixed size and keeps counting beyond it, as snprintf does. */
typedef struct text_out {
  char *p;
  size_t size, used;
} text_out;

static void put(text_out *t, const char *s, size_t n) {
  for (size_t i = 0; i < n; i++, t->used++)
    if (t->used + 1 < t->size) t->p[t->used] = s[i];
}

static void put_text(text_out *t, const char *s) {
  put(t, s, strlen(s));
}

/* The shortest decimal that reads back as the same double, with the point that YAML 1.1 wants in a float. */
static void put_f64(text_out *t, double v) {
  char s[40];
  if (isinf(v)) {
    put_text(t, v < 0 ? "-.inf" : ".inf");
    return;
  }
  if (v == floor(v) && fabs(v) < 1e6) {
    snprintf(s, sizeof s, "%.1f", v);
  } else {
    for (int digits = 1; digits <= 17; digits++) {
      snprintf(s, sizeof s, "%.*g", digits, v);
      if (strtod(s, NULL) == v) break;
    }
  }
  const size_t mantissa = strcspn(s, "e");
  put(t, s, mantissa);
  if (strcspn(s, ".") >= mantissa) put_text(t, ".0");
  put_text(t, s + mantissa);
}

/* A word that means the same to every YAML reader without quotes. */
static bool is_plain(const char *s) {
  static const char *const reserved[] = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "auto"};
  if (!isalpha((unsigned char)*s) && *s != '/' && *s != '_') return false;
  for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++) {
    const char *r = reserved[i];
    size_t k = 0;
    while (r[k] && tolower((unsigned char)s[k]) == r[k]) k++;
    if (!r[k] && !s[k]) return false;
  }
  for (; *s; s++)
    if (!isalnum((unsigned char)*s) && !strchr("_./-+", *s)) return false;
  return true;
}

/* One UTF-8 character at `s`: its length, with its code in *code; a stray byte is its own character. */
static size_t character(const unsigned char *s, unsigned *code) {
  const size_t n = s[0] < 0xc0 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
  *code = n == 1 ? s[0] : s[0] & (0x7fu >> n);
  for (size_t i = 1; i < n; i++) {
    if ((s[i] & 0xc0) != 0x80) {
      *code = s[0];
      return 1;
    }
    *code = *code << 6 | (s[i] & 0x3f);
  }
  return n;
}

static void put_string(text_out *t, const char *s) {
  if (is_plain(s)) {
    put_text(t, s);
    return;
  }
  put_text(t, "\"");
  while (*s) {
    unsigned code;
    const size_t n = character((const unsigned char *)s, &code);
    char escape[12];
    if (code == '"' || code == '\\')
      snprintf(escape, sizeof escape, "\\%c", (int)code);
    else if (code == '\n')
      snprintf(escape, sizeof escape, "\\n");
    else if (code == '\t')
      snprintf(escape, sizeof escape, "\\t");
    else if (code < 0x20 || (code >= 0x7f && code < 0xa0))
      snprintf(escape, sizeof escape, "\\x%02x", code);
    else if (code == 0x2028 || code == 0x2029 || code == 0xfeff || (code >= 0xfffe && code <= 0xffff))
      snprintf(escape, sizeof escape, "\\u%04x", code);
    else
      escape[0] = '\0';
    if (escape[0])
      put_text(t, escape);
    else
      put(t, s, n);
    s += n;
  }
  put_text(t, "\"");
}

static bool is_auto(const wf_option *o, option_value v) {
  switch (o->type) {
  case WF_OPT_TYPE_I64: return v.i64 == WF_AUTO_I64;
  case WF_OPT_TYPE_F64: return isnan(v.f64);
  case WF_OPT_TYPE_STRING: return !v.string && (o->flags & WF_OPT_AUTO);
  case WF_OPT_TYPE_ENUM: return v.choice < 0;
  case WF_OPT_TYPE_BOOL: break;
  }
  return false;
}

size_t wf_options_print(const wf_option *o, const void *self, char *out, size_t size) {
  const option_value v = load(o, self);
  text_out t = {out, size, 0};
  char digits[24];
  if (is_auto(o, v)) {
    put_text(&t, "auto");
  } else {
    switch (o->type) {
    case WF_OPT_TYPE_I64:
      snprintf(digits, sizeof digits, "%lld", (long long)v.i64);
      put_text(&t, digits);
      break;
    case WF_OPT_TYPE_F64: put_f64(&t, v.f64); break;
    case WF_OPT_TYPE_BOOL: put_text(&t, v.boolean ? "true" : "false"); break;
    case WF_OPT_TYPE_ENUM: put_text(&t, o->choices[v.choice]); break;
    case WF_OPT_TYPE_STRING:
      if (v.string)
        put_string(&t, v.string);
      else
        put_text(&t, "null");
      break;
    }
  }
  if (size) out[t.used < size ? t.used : size - 1] = '\0';
  return t.used;
}

/* --- whole structs --- */

bool wf_options_equal(const wf_option *o, const void *a, const void *b) {
  const option_value x = load(o, a), y = load(o, b);
  switch (o->type) {
  case WF_OPT_TYPE_I64: return x.i64 == y.i64;
  case WF_OPT_TYPE_F64: return x.f64 == y.f64 || (isnan(x.f64) && isnan(y.f64));
  case WF_OPT_TYPE_BOOL: return x.boolean == y.boolean;
  case WF_OPT_TYPE_ENUM: return x.choice == y.choice;
  case WF_OPT_TYPE_STRING: break;
  }
  return x.string && y.string ? strcmp(x.string, y.string) == 0 : x.string == y.string;
}

wf_status wf_options_copy(const wf_option *table, void *dst, const void *src) {
  for (const wf_option *o = table; o->name; o++)
    store(o, dst, o->type == WF_OPT_TYPE_STRING ? auto_value(o->type) : load(o, src));
  for (const wf_option *o = table; o->name; o++) {
    if (o->type != WF_OPT_TYPE_STRING) continue;
    option_value v = load(o, src);
    if (!v.string) continue;
    if (!(v.string = wf_strdup("option", v.string))) {
      wf_options_free(table, dst);
      return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
    }
    store(o, dst, v);
  }
  return WF_OK;
}

void wf_options_free(const wf_option *table, void *self) {
  for (const wf_option *o = table; o->name; o++) {
    if (o->type != WF_OPT_TYPE_STRING) continue;
    wf_free(load(o, self).string);
    store(o, self, auto_value(o->type));
  }
}
