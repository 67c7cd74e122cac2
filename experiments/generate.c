/* Decoding through the state, and the loop from a prompt to text. */
#include "experiments/generate.h"
#include "core/memory.h"
#include "core/ops.h"
#include "core/rng.h"
#include "experiments/rates.h"

/* ---- decoding ---- */

wf_status wf_decoding_open(wf_model *m, int64_t capacity, wf_decoding *out) {
  *out = (wf_decoding){.model = m};
  return wf_state_create(wf_model_ctx(m), wf_model_state_spec(m), wf_model_dtype(m), 1, capacity, false,
                         &out->state);
}

void wf_decoding_close(wf_decoding *d) {
  wf_state_free(d->state);
  *d = (wf_decoding){0};
}

/* Inside the scope of feed_piece. */
static wf_status feed(wf_decoding *d, const wf_rows *rows, const int32_t *ids, double *logits) {
  wf_ctx *c = wf_model_ctx(d->model);
  int64_t n = rows->n_tokens;
  wf_run run = {.c = c, .rows = rows, .state = d->state};
  wf_tensor *h = wf_model_trunk(d->model, &run, wf_from_host(c, "batch", WF_I32, WF_SHAPE(n), ids));
  wf_tensor *y = wf_model_logits(d->model, &run, wf_slice(c, h, 0, n - 1, n));
  y = wf_cast(c, y, WF_F64);
  WF_TRY(wf_ctx_check(c));
  WF_TRY(wf_state_advance(d->state, rows));
  return wf_to_host(y, logits);
}

/* A long prompt enters in pieces, so that no more than one's activations are held. */
enum { PIECE = 4096 };

static wf_status feed_piece(wf_decoding *d, const int32_t *ids, int64_t n, double *logits) {
  wf_ctx *c = wf_model_ctx(d->model);
  int64_t at = d->state->position[0];
  wf_row row = {.len = n, .pos = at, .place = at, .flags = WF_ROW_LEAVES | (at > 0 ? WF_ROW_TAKES : 0)};
  wf_rows *rows;
  WF_TRY(wf_rows_create(c, 1, &row, 1, &rows));
  wf_scope scope = wf_scope_open(c);
  wf_status s = feed(d, rows, ids, logits);
  wf_scope_close(c, scope);
  wf_rows_free(rows);
  return s;
}

wf_status wf_decoding_feed(wf_decoding *d, const int32_t *ids, int64_t n, double *logits) {
  for (int64_t at = 0; at < n; at += PIECE)
    WF_TRY(feed_piece(d, ids + at, n - at < PIECE ? n - at : PIECE, logits));
  return WF_OK;
}

/* ---- text ---- */

wf_status wf_start_id(const wf_tokenizer *t, int32_t *id) {
  int64_t known = wf_tokenizer_bos(t) >= 0 ? wf_tokenizer_bos(t) : wf_tokenizer_eot(t);
  *id = known >= 0 ? (int32_t)known : 0;
  if (known >= 0) return WF_OK;
  wf_ids line = {0};
  wf_status s = wf_tokenizer_encode(t, "\n", 1, &line);
  if (s == WF_OK && line.n > 0) *id = (int32_t)line.data[line.n - 1];
  wf_ids_free(&line);
  return s;
}

typedef struct generation {
  const wf_tokenizer *tokenizer;
  const wf_generate_options *o;
  wf_ids ids; /* the prompt's */
  wf_decoder decoder;
  wf_bytes text; /* decoded and not yet given out */
  wf_decoding decoding;
  double *logits;
  wf_generate_piece piece;
  void *arg;
  int64_t limit; /* tokens that may be drawn */
} generation;

static wf_status read_prompt(generation *g, const char *prompt, size_t n) {
  if (g->o->begin || n == 0) {
    int32_t start;
    WF_TRY(wf_start_id(g->tokenizer, &start));
    WF_TRY(wf_ids_push(&g->ids, (uint32_t)start));
  }
  WF_TRY(wf_tokenizer_encode(g->tokenizer, prompt, n, &g->ids));
  wf_decoder_start(&g->decoder, g->tokenizer); /* what follows is decoded as the prompt's continuation */
  for (size_t i = 0; i < g->ids.n; i++) WF_TRY(wf_decoder_next(&g->decoder, g->ids.data[i], &g->text));
  g->text.n = 0;
  return WF_OK;
}

static wf_status open_state(generation *g, wf_model *m) {
  int64_t prompt = (int64_t)g->ids.n, positions = wf_model_max_positions(m);
  if (positions > 0 && prompt > positions)
    return wf_hint(WF_FAIL(WF_EINVAL, "the prompt has %lld tokens, but the model knows %lld positions",
                           (long long)prompt, (long long)positions),
                   "shorten the prompt");
  g->limit = g->o->tokens;
  if (positions > 0 && g->limit > positions - prompt + 1) g->limit = positions - prompt + 1;
  WF_ALLOC(g->logits, "sampling", (size_t)wf_model_vocab(m) * sizeof *g->logits);
  return wf_decoding_open(m, prompt + g->limit, &g->decoding); /* the last one drawn is not fed */
}

static wf_status give(generation *g) {
  if (g->text.n == 0) return WF_OK;
  wf_status s = g->piece(g->arg, g->text.data, g->text.n);
  g->text.n = 0;
  return s;
}

static bool ends(const generation *g, int64_t id) {
  return !g->o->ignore_end && (id == wf_tokenizer_eos(g->tokenizer) || id == wf_tokenizer_eot(g->tokenizer));
}

/* After the prompt. Ids that only the model has, and its tokenizer lacks, are never drawn. */
static wf_status draw_tokens(generation *g, wf_generated *out) {
  wf_rng_key key = wf_rng_key_make(g->o->seed, "generate", "token");
  int64_t vocab = wf_tokenizer_vocab(g->tokenizer);
  while (out->tokens < g->limit) {
    if (g->o->stop && *g->o->stop) {
      out->end = WF_GENERATED_STOPPED;
      return WF_OK;
    }
    int64_t id;
    double u = wf_rng_uniform(key, (uint64_t)out->tokens);
    WF_TRY(wf_sample_id(&g->o->sampling, g->logits, vocab, u, &id));
    out->tokens++;
    if (ends(g, id)) {
      out->end = WF_GENERATED_END;
      return WF_OK;
    }
    WF_TRY(wf_decoder_next(&g->decoder, (uint32_t)id, &g->text));
    WF_TRY(give(g));
    int32_t next = (int32_t)id;
    if (out->tokens < g->limit) WF_TRY(wf_decoding_feed(&g->decoding, &next, 1, g->logits));
  }
  out->end = g->limit < g->o->tokens ? WF_GENERATED_FULL : WF_GENERATED_ALL;
  return WF_OK;
}

static wf_status feed_prompt(generation *g) {
  int32_t *ids;
  WF_ALLOC(ids, "batch", g->ids.n * sizeof *ids);
  for (size_t i = 0; i < g->ids.n; i++) ids[i] = (int32_t)g->ids.data[i];
  wf_status s = wf_decoding_feed(&g->decoding, ids, (int64_t)g->ids.n, g->logits);
  wf_free(ids);
  return s;
}

static wf_status generate(generation *g, wf_model *m, const char *prompt, size_t n, wf_generated *out) {
  WF_TRY(read_prompt(g, prompt, n));
  out->prompt = (int64_t)g->ids.n;
  WF_TRY(open_state(g, m));
  double begun = wf_now();
  WF_TRY(feed_prompt(g));
  double first = wf_now();
  out->prompt_seconds = first - begun;
  WF_TRY(draw_tokens(g, out));
  out->seconds = wf_now() - first;
  WF_TRY(wf_decoder_end(&g->decoder, &g->text));
  return give(g);
}

wf_status wf_generate(wf_model *m, const wf_tokenizer *t, const char *prompt, size_t n,
                      const wf_generate_options *o, wf_generate_piece piece, void *arg, wf_generated *out) {
  if (o->tokens < 1)
    return WF_FAIL(WF_EINVAL, "at least one token is generated, not %lld", (long long)o->tokens);
  generation g = {.tokenizer = t, .o = o, .piece = piece, .arg = arg};
  *out = (wf_generated){0};
  wf_status s = generate(&g, m, prompt, n, out);
  wf_decoding_close(&g.decoding);
  wf_free(g.logits);
  wf_ids_free(&g.ids);
  wf_bytes_free(&g.text);
  return s;
}
