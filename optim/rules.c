/* Parsing and matching of the rules. The text is short and there are few parameters: it is read anew for
 * each.
 */
#include "optim/rules.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WORD = 256 };

/* `*` takes as little as possible and is widened from its last place on a mismatch. */
static bool matches(const char *pattern, const char *name) {
  const char *star = NULL, *retry = NULL;
  while (*name) {
    if (*pattern == '*') {
      star = ++pattern;
      retry = name;
    } else if (*pattern == '?' || *pattern == *name) {
      pattern++, name++;
    } else if (star) {
      pattern = star;
      name = ++retry;
    } else {
      return false;
    }
  }
  while (*pattern == '*') pattern++;
  return !*pattern;
}

static bool applies(const char *pattern, const char *name, const char *kind, int ndim) {
  if (*pattern != '@') return matches(pattern, name);
  if (strcmp(pattern, "@vector") == 0) return ndim <= 1;
  if (strcmp(pattern, "@matrix") == 0) return ndim == 2;
  return kind && strcmp(pattern + 1, kind) == 0;
}

/* The next word up to a space, ';' or the end; empty at a rule's end. */
static wf_status next_word(const char **text, char word[WORD]) {
  const char *s = *text;
  size_t n = 0;
  while (isspace((unsigned char)*s)) s++;
  while (s[n] && s[n] != ';' && !isspace((unsigned char)s[n])) n++;
  if (n >= WORD) return WF_FAIL(WF_EINVAL, "a word of %zu characters in the parameter rules", n);
  memcpy(word, s, n);
  word[n] = '\0';
  *text = s + n;
  return WF_OK;
}

static wf_status set(const char *pattern, const char *word, wf_opt_treatment *t) {
  if (strcmp(word, "decay") == 0 || strcmp(word, "no_decay") == 0) {
    t->decay = *word == 'd';
  } else if (strcmp(word, "matrix") == 0 || strcmp(word, "no_matrix") == 0) {
    t->matrix = *word == 'm';
  } else {
    char *end = NULL;
    double x = strncmp(word, "lr=", 3) == 0 ? strtod(word + 3, &end) : -1;
    if (!end || end == word + 3 || *end || !(x >= 0) || !isfinite(x))
      return wf_hint(WF_FAIL(WF_EINVAL, "rule for %s: \"%.60s\" is no setting of a parameter", pattern, word),
                     "decay, no_decay, matrix, no_matrix or lr=FACTOR, as in \"embedding* lr=0.5 no_decay\"");
    t->lr_scale = x;
  }
  return WF_OK;
}

static wf_status read_rules(const char *text, const char *name, const char *kind, int ndim,
                            wf_opt_treatment *t) {
  char pattern[WORD], word[WORD];
  for (; text && *text; text += *text == ';') {
    wf_opt_treatment ignored, *into = &ignored;
    WF_TRY(next_word(&text, pattern));
    if (!*pattern) continue;
    if (applies(pattern, name, kind, ndim)) into = t;
    WF_TRY(next_word(&text, word));
    if (!*word)
      return wf_hint(WF_FAIL(WF_EINVAL, "rule for %s has no setting", pattern),
                     "decay, no_decay, matrix, no_matrix or lr=FACTOR, as in \"embedding* lr=0.5 no_decay\"");
    while (*word) {
      WF_TRY(set(pattern, word, into));
      WF_TRY(next_word(&text, word));
    }
  }
  return WF_OK;
}

wf_status wf_opt_rules_apply(const char *rules, const char *name, const char *kind, int ndim,
                             wf_opt_treatment *out) {
  wf_opt_treatment t = {.decay = true, .lr_scale = 1};
  WF_TRY(read_rules(WF_OPT_DEFAULT_RULES, name, kind, ndim, &t));
  WF_TRY(read_rules(rules, name, kind, ndim, &t));
  t.matrix = t.matrix && ndim == 2;
  *out = t;
  return WF_OK;
}

wf_status wf_opt_rules_check(const char *rules) {
  wf_opt_treatment t;
  return wf_opt_rules_apply(rules, "", NULL, 0, &t);
}
