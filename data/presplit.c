/* Regular-expression pre-splitting with PCRE2. Where more text may come, hard partial matching tells whether
 * a match could still grow. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/presplit.h"

#include <pcre2.h>
#include <string.h>
#include "core/memory.h"

enum { MAX_STEPS = 8 };

typedef struct step {
  pcre2_code *code; /* NULL: cuts nothing */
  unsigned keep;
  bool add_space, looks_back; /* looks_back: what stands before a piece matters */
} step;

struct wf_presplit {
  pcre2_general_context *memory;
  step steps[MAX_STEPS];
  int n;
};

static void *take(size_t bytes, void *context) {
  (void)context;
  return wf_alloc("pcre2", bytes);
}

static void give(void *p, void *context) {
  (void)context;
  wf_free(p);
}

wf_status wf_presplit_new(wf_presplit **out) {
  wf_presplit *p;
  WF_CALLOC(p, "tokenizer", 1);
  if (!(p->memory = pcre2_general_context_create(take, give, NULL))) {
    wf_free(p);
    return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  }
  *out = p;
  return WF_OK;
}

void wf_presplit_free(wf_presplit *p) {
  if (!p) return;
  for (int i = 0; i < p->n; i++) pcre2_code_free(p->steps[i].code);
  pcre2_general_context_free(p->memory);
  wf_free(p);
}

wf_status wf_presplit_add(wf_presplit *p, const char *pattern, size_t n, unsigned keep, bool add_space) {
  if (p->n == MAX_STEPS)
    return WF_FAIL(WF_EUNSUPPORTED, "more than %d pre-tokenizers in a sequence", (int)MAX_STEPS);
  step *s = &p->steps[p->n];
  *s = (step){.keep = keep, .add_space = add_space};
  if (pattern) {
    pcre2_compile_context *context = pcre2_compile_context_create(p->memory);
    if (!context) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
    int error;
    size_t at;
    s->code = pcre2_compile((PCRE2_SPTR)pattern, n, PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &error,
                            &at, context);
    pcre2_compile_context_free(context);
    if (!s->code) {
      PCRE2_UCHAR why[128];
      if (error == PCRE2_ERROR_HEAP_FAILED) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
      pcre2_get_error_message(error, why, sizeof why);
      return WF_FAIL(WF_EFORMAT, "the pre-tokenizer's regular expression is wrong at byte %zu: %s", at,
                     (const char *)why);
    }
    uint32_t behind = 0;
    pcre2_pattern_info(s->code, PCRE2_INFO_MAXLOOKBEHIND, &behind);
    s->looks_back = behind > 0;
    /* Without the compiler the matcher is interpreted: slower, otherwise the same. */
    pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
  }
  p->n++;
  return WF_OK;
}

typedef struct run {
  const wf_presplit *p;
  wf_presplit_word word;
  void *context;
} run;

static wf_status cut(const run *r, int i, const char *text, size_t n, bool inside, bool last, size_t *used);

/* A finished piece of step i goes to the next. */
static wf_status pass(const run *r, int i, const char *text, size_t n) {
  size_t used;
  if (n) WF_TRY(cut(r, i + 1, text, n, false, true, &used));
  return WF_OK;
}

static wf_status match_failed(int code) {
  PCRE2_UCHAR why[128];
  if (code == PCRE2_ERROR_NOMEMORY || code == PCRE2_ERROR_HEAPLIMIT)
    return WF_FAIL(WF_ENOMEM, "out of memory in the pre-tokenizer's regular expression");
  pcre2_get_error_message(code, why, sizeof why);
  return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "the pre-tokenizer's regular expression failed on this text: %s",
                         (const char *)why),
                 "is there a very long run of one kind of character?");
}

static wf_status cut_by(const run *r, int i, const char *text, size_t n, bool last, size_t *used) {
  const step *s = &r->p->steps[i];
  *used = 0;
  if (!last && s->looks_back) return WF_OK; /* such a pattern needs the whole text */
  pcre2_match_data *match = pcre2_match_data_create(1, r->p->memory);
  if (!match) return wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  uint32_t options = PCRE2_NOTEMPTY | (last ? 0 : PCRE2_PARTIAL_HARD);
  size_t at = 0;
  wf_status status = WF_OK;
  while (at < n && status == WF_OK) {
    int code = pcre2_match(s->code, (PCRE2_SPTR)text, n, at, options, match, NULL);
    const size_t *span = pcre2_get_ovector_pointer(match);
    size_t from = n, to = n;
    if (code >= 0) {
      from = span[0];
      to = span[1];
    } else if (code == PCRE2_ERROR_PARTIAL || (code == PCRE2_ERROR_NOMATCH && !last)) {
      break; /* the rest waits for more text */
    } else if (code != PCRE2_ERROR_NOMATCH) {
      status = match_failed(code);
      break;
    }
    if (from < at || to < from) { /* \K in a lookaround can do this */
      status = WF_FAIL(WF_EUNSUPPORTED, "the pre-tokenizer's regular expression moves its match backwards");
      break;
    }
    if (s->keep & WF_SPLIT_KEEP_REST) status = pass(r, i, text + at, from - at);
    if (status == WF_OK && s->keep & WF_SPLIT_KEEP_MATCHES) status = pass(r, i, text + from, to - from);
    at = to;
  }
  pcre2_match_data_free(match);
  *used = at;
  return status;
}

/* Steps i, i+1, ... on one piece. */
static wf_status cut(const run *r, int i, const char *text, size_t n, bool inside, bool last, size_t *used) {
  *used = 0;
  if (i == r->p->n) {
    if (!last) return WF_OK;
    *used = n;
    return r->word(r->context, text, n);
  }
  const step *s = &r->p->steps[i];
  char *spaced = NULL;
  if (s->add_space && !inside && text[0] != ' ') {
    WF_ALLOC(spaced, "text", n + 1);
    spaced[0] = ' ';
    memcpy(spaced + 1, text, n);
  }
  const char *from = spaced ? spaced : text;
  size_t length = n + (spaced != NULL);
  wf_status status = s->code ? cut_by(r, i, from, length, last, used)
                     : last  ? cut(r, i + 1, from, length, false, true, used)
                             : WF_OK;
  if (spaced && *used) --*used;
  wf_free(spaced);
  return status;
}

wf_status wf_presplit_run(const wf_presplit *p, const char *text, size_t n, bool inside, bool last,
                          size_t *used, wf_presplit_word word, void *context) {
  run r = {p, word, context};
  *used = 0;
  if (n) WF_TRY(cut(&r, 0, text, n, inside, last, used));
  return WF_OK;
}
