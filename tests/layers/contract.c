/* Trials of the contract; see contract.h. */
#include "tests/layers/contract.h"
#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "tests/dist/ranks.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define OK(expr) WF_RANK_OK(expr)

enum { VOCAB = 11, WIDTH = 12, LENGTH = 23, MAX_BLOCKS = 4 };

/* ---- building ---- */

const wf_layer_type *wf_trial_parse(wf_layer_kind kind, const char *text, void **options) {
  char buf[256], *save = NULL;
  *options = NULL;
  ck_assert_msg(snprintf(buf, sizeof buf, "%s", text) < (int)sizeof buf, "too long: %s", text);
  char *name = strtok_r(buf, " ", &save);
  if (!name || strcmp(name, "-") == 0) return NULL;
  const wf_layer_type *type = wf_layer_find(kind, name);
  ck_assert_msg(type != NULL, "no layer %s", name);
  *options = wf_calloc("test", 1, type->options_size);
  OK(wf_options_defaults(type->options, *options));
  for (char *kv = strtok_r(NULL, " ", &save); kv; kv = strtok_r(NULL, " ", &save)) {
    char *eq = strchr(kv, '=');
    ck_assert_msg(eq != NULL, "%s: '%s' is no key=value", text, kv);
    *eq = '\0';
    OK(wf_options_set(type->options, *options, kv, eq + 1));
  }
  return type;
}

void wf_trial_free_options(const wf_layer_type *type, void *options) {
  if (type) wf_options_free(type->options, options);
  wf_free(options);
}

static wf_layer_use parse_use(wf_layer_kind kind, const char *text) {
  void *options;
  const wf_layer_type *type = wf_trial_parse(kind, text, &options);
  return (wf_layer_use){type, options};
}

void wf_trial_block_parse(wf_trial_block *b, const char *text, wf_norm_kind norm) {
  ck_assert_msg(snprintf(b->text, sizeof b->text, "%s", text) < (int)sizeof b->text, "too long: %s", text);
  b->spec = (wf_block_spec){.norm = norm, .beside = b->beside};
  char *mixer = b->text, *mlp = strchr(b->text, '/');
  ck_assert_msg(mlp != NULL, "%s: no MLP", text);
  *mlp++ = '\0';
  if (*mixer == '@') {
    b->spec.share = mixer + 1;
    mixer = strchr(mixer, ' ');
    *mixer++ = '\0';
  }
  char *next = strchr(mixer, '+');
  if (next) *next++ = '\0';
  b->spec.mixer = parse_use(WF_LAYER_MIXER, mixer);
  while ((mixer = next)) {
    if ((next = strchr(mixer, '+'))) *next++ = '\0';
    b->beside[b->spec.n_beside++] = parse_use(WF_LAYER_MIXER, mixer);
  }
  b->spec.mlp = parse_use(WF_LAYER_MLP, mlp);
}

static void free_use(const wf_layer_use *u) {
  wf_trial_free_options(u->type, (void *)(uintptr_t)u->options);
}

void wf_trial_block_free(wf_trial_block *b) {
  free_use(&b->spec.mixer);
  free_use(&b->spec.mlp);
  for (int i = 0; i < b->spec.n_beside; i++) free_use(&b->beside[i]);
}

/* Three lanes: one long document, several packed ones (single tokens among them), a shorter lane. */
static void make_tokens(wf_tokens *t, bool packed) {
  static const int64_t whole[][4] = {{LENGTH, 0}, {LENGTH, 0}, {LENGTH - 6, 0}},
                       parts[][4] = {{LENGTH, 0}, {7, 1, 9, LENGTH - 17}, {LENGTH - 7, 1, 0}};
  *t = (wf_tokens){.n_lanes = 3};
  wf_row *row = wf_calloc("test", 12, sizeof *row);
  int32_t *ids = wf_calloc("test", 3 * LENGTH, sizeof *ids),
          *labels = wf_calloc("test", 3 * LENGTH, sizeof *labels);
  for (int lane = 0; lane < 3; lane++) {
    int64_t place = 0;
    for (int k = 0; k < 4; k++) {
      int64_t len = packed ? parts[lane][k] : whole[lane][k];
      if (!len) break;
      row[t->n_rows++] =
          (wf_row){.begin = t->n_tokens, .len = len, .lane = lane, .place = place, .seq = 40 + lane};
      place += len;
      t->n_tokens += len;
    }
  }
  wf_rng_key key = wf_rng_key_make(7, "test", "ids");
  for (int64_t i = 0; i < t->n_tokens; i++) {
    ids[i] = (int32_t)wf_rng_below(key, (uint64_t)(2 * i), VOCAB);
    labels[i] = (int32_t)wf_rng_below(key, (uint64_t)(2 * i + 1), VOCAB + 1) - 1; /* some have none */
  }
  t->row = row;
  t->ids = ids;
  t->labels = labels;
}

/* All parameters times 1 + by; a `by` of a few bits is the same in float. */
static void nudge(wf_params *ps, double by) {
  for (int i = 0; i < ps->n; i++) {
    wf_tensor *value = ps->param[i]->value;
    for (int64_t e = 0; e < ps->param[i]->numel; e++) {
      if (value->dtype == WF_F32)
        ((float *)wf_data(value))[e] *= (float)(1 + by);
      else
        ((double *)wf_data(value))[e] *= 1 + by;
    }
  }
}

void wf_trial_make(wf_trial *x, int n_blocks, const char *const *blocks, const wf_trial_options *o) {
  *x = (wf_trial){0};
  OK(wf_device_open(WF_CPU, 0, &x->dev));
  OK(wf_ctx_create(x->dev, &x->c));
  wf_trial_block block[MAX_BLOCKS];
  wf_block_spec spec[MAX_BLOCKS];
  for (int i = 0; i < n_blocks; i++) {
    wf_trial_block_parse(&block[i], blocks[i], i % 2 ? WF_NORM_LAYER : WF_NORM_RMS);
    spec[i] = block[i].spec;
  }
  wf_model_spec m = {.vocab = VOCAB,
                     .d_model = WIDTH,
                     .n_blocks = n_blocks,
                     .block = spec,
                     .norm = WF_NORM_RMS,
                     .norm_eps = 1e-6,
                     .bare_norms = o->tie,
                     .tie_embeddings = o->tie,
                     .logit_softcap = o->tie ? 2 : 0,
                     .max_positions = LENGTH,
                     .dropout = o->dropout,
                     .init_std = 0.4,
                     .z_loss = 1e-3,
                     .recompute = o->recompute,
                     .head_rows = 10};
  OK(wf_model_create(x->c, &m, o->dtype, NULL, NULL, &x->m));
  OK(wf_params_init(wf_model_params(x->m), 3));
  nudge(wf_model_params(x->m), o->nudge);
  for (int i = 0; i < n_blocks; i++) wf_trial_block_free(&block[i]);
  make_tokens(&x->t, o->packed);
  x->numel = wf_model_params(x->m)->numel;
}

void wf_trial_free(wf_trial *x) {
  wf_tokens_free(&x->t);
  wf_model_free(x->m);
  OK(wf_ctx_check(x->c));
  wf_ctx_free(x->c);
  wf_device_close(x->dev);
}

/* ---- gradients ---- */

static const double scale = 0.37;
static const wf_step step = {.train = true, .seed = 5, .step = 17};

static void collect(wf_trial *x, double *grad) {
  wf_params *ps = wf_model_params(x->m);
  for (int i = 0; i < ps->n; i++) {
    wf_param *p = ps->param[i];
    ck_assert_msg(p->leaf.written && p->leaf.finished, "the gradient of %s is not final", p->name);
    wf_scope s = wf_scope_open(x->c);
    OK(wf_to_host(wf_cast(x->c, p->leaf.grad, WF_F64), grad));
    wf_scope_close(x->c, s);
    grad += p->numel;
  }
}

void wf_trial_gradient(wf_trial *x, int64_t stream, double *grad, double *loss) {
  wf_params *ps = wf_model_params(x->m);
  wf_step s = step;
  s.stream = stream;
  s.dist = x->dist;
  wf_params_reset(ps);
  wf_params_hold(ps);
  OK(wf_step_gradient(x->m, &s, &x->t, scale, true, loss));
  collect(x, grad);
}

typedef struct rank {
  wf_tokens part;
  wf_rows *rows;
  wf_tensor *ids, *labels;
  wf_piece piece;
} rank;

void wf_trial_simulate(wf_trial *x, int n, const int64_t *cuts, bool cut, double *grad, double *loss) {
  wf_ctx *c = x->c;
  wf_params *ps = wf_model_params(x->m);
  const wf_state_spec *spec = wf_model_state_spec(x->m);
  wf_params_reset(ps);
  wf_params_hold(ps);
  wf_state *state;
  OK(wf_state_create(c, spec, wf_model_dtype(x->m), x->t.n_lanes, LENGTH, true, &state));
  rank ranks[8];
  wf_scope scope = wf_scope_open(c);
  for (int r = 0; r < n; r++) {
    rank *k = &ranks[r];
    OK(wf_tokens_cut(&x->t, r ? cuts[r - 1] : 0, cuts[r], &k->part));
    OK(wf_rows_create(c, k->part.n_rows, k->part.row, k->part.n_lanes, &k->rows));
    k->ids = wf_from_host(c, "test", WF_I32, WF_SHAPE(k->part.n_tokens), k->part.ids);
    k->labels = wf_from_host(c, "test", WF_I32, WF_SHAPE(k->part.n_tokens), k->part.labels);
    wf_run run = {
        .c = c, .rows = k->rows, .state = state, .train = step.train, .step = step.step, .seed = step.seed};
    OK(wf_piece_forward(x->m, &run, k->ids, k->labels, &k->piece));
    OK(wf_state_advance(state, k->rows));
  }
  *loss = 0;
  wf_tensor **d_state = wf_calloc("test", (size_t)spec->n + 1, sizeof(wf_tensor *));
  for (int r = n - 1; r >= 0; r--) {
    double part;
    OK(wf_piece_backward(&ranks[r].piece, scale, r == n - 1 || cut ? NULL : d_state, r == 0, &part));
    *loss += part;
    for (int i = 0; i < spec->n; i++) {
      d_state[i] = ranks[r].piece.state_in[i].grad;
      if (cut && state->twin[i].grad) OK(wf_tensor_zero(state->twin[i].grad));
    }
  }
  wf_free(d_state);
  for (int r = 0; r < n; r++) {
    wf_piece_free(&ranks[r].piece);
    wf_rows_free(ranks[r].rows);
    wf_tokens_free(&ranks[r].part);
  }
  wf_scope_close(c, scope);
  wf_state_free(state);
  collect(x, grad);
}

/* ---- logits ---- */

static void run_logits(wf_trial *x, const wf_tokens *t, wf_state *state, double *logits) {
  wf_ctx *c = x->c;
  wf_scope s = wf_scope_open(c);
  wf_rows *rows;
  OK(wf_rows_create(c, t->n_rows, t->row, t->n_lanes, &rows));
  wf_run run = {.c = c, .rows = rows, .state = state};
  wf_tensor *ids = wf_from_host(c, "test", WF_I32, WF_SHAPE(t->n_tokens), t->ids);
  wf_tensor *y = wf_model_logits(x->m, &run, wf_model_trunk(x->m, &run, ids));
  OK(wf_ctx_check(c));
  OK(wf_to_host(wf_cast(c, y, WF_F64), logits));
  if (state) OK(wf_state_advance(state, rows));
  wf_rows_free(rows);
  wf_scope_close(c, s);
}

void wf_trial_logits(wf_trial *x, double *logits) {
  run_logits(x, &x->t, NULL, logits);
}

void wf_trial_decode(wf_trial *x, double *logits) {
  wf_state *state;
  OK(wf_state_create(x->c, wf_model_state_spec(x->m), wf_model_dtype(x->m), x->t.n_lanes, LENGTH, false,
                     &state));
  double *one = wf_alloc("test", sizeof(double) * 3 * VOCAB);
  for (int64_t at = 0; at < LENGTH; at++) {
    wf_tokens t;
    OK(wf_tokens_cut(&x->t, at, at + 1, &t));
    run_logits(x, &t, state, one);
    for (int64_t i = 0; i < t.n_rows; i++) /* back to the batch's order: find the row this token came from */
      for (int64_t k = 0; k < x->t.n_rows; k++) {
        const wf_row *r = &x->t.row[k];
        int64_t off = t.row[i].place - r->place;
        if (r->lane == t.row[i].lane && off >= 0 && off < r->len)
          memcpy(logits + (r->begin + off) * VOCAB, one + i * VOCAB, VOCAB * sizeof *logits);
      }
    wf_tokens_free(&t);
  }
  wf_free(one);
  wf_state_free(state);
}

/* ---- the contract ---- */

double wf_trial_agree(wf_trial *x, const char *what, const double *a, const double *b) {
  wf_params *ps = wf_model_params(x->m);
  double tol = wf_model_dtype(x->m) == WF_F64 ? 1e-10 : 1e-4, worst = 0;
  for (int i = 0; i < ps->n; i++) {
    int64_t n = ps->param[i]->numel;
    wf_error e = wf_compare(n, a, b);
    double most = 0; /* a gradient that cancels to nothing (one visible key) has no size to be relative to */
    for (int64_t k = 0; k < n; k++) most = fmax(most, fmax(fabs(a[k]), fabs(b[k])));
    if (most < 1e-3 * tol) e = (wf_error){0};
    ck_assert_msg(e.err2 <= tol && e.errmax <= 10 * tol, "%s: gradient of %s: err2 %.2e errmax %.2e at %lld",
                  what, ps->param[i]->name, e.err2, e.errmax, (long long)e.worst);
    worst = fmax(worst, e.err2);
    a += n;
    b += n;
  }
  return worst;
}

static void gradients_agree(int n_blocks, const char *const *blocks, const wf_trial_options *o) {
  wf_trial x;
  wf_trial_make(&x, n_blocks, blocks, o);
  double *plain = wf_calloc("test", (size_t)x.numel, 2 * sizeof *plain), *other = plain + x.numel, loss,
         loss2;
  wf_trial_gradient(&x, 0, plain, &loss);
  static const int64_t streams[] = {1, 4, 9, 22, 23};
  char what[80];
  for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
    wf_trial_gradient(&x, streams[i], other, &loss2);
    snprintf(what, sizeof what, "stream %lld, packed %d, recompute %d", (long long)streams[i], o->packed,
             o->recompute);
    ck_assert_double_eq_tol(loss2, loss, 1e-10 * fabs(loss));
    wf_trial_agree(&x, what, other, plain);
  }
  static const int64_t cuts[][4] = {{11, 23}, {3, 4, 23}, {5, 10, 16, 23}};
  for (int k = 0; k < 3; k++) {
    wf_trial_simulate(&x, k + 2, cuts[k], false, other, &loss2);
    snprintf(what, sizeof what, "%d ranks, packed %d, recompute %d", k + 2, o->packed, o->recompute);
    ck_assert_double_eq_tol(loss2, loss, 1e-10 * fabs(loss));
    wf_trial_agree(&x, what, other, plain);
  }
  wf_free(plain);
  wf_trial_free(&x);
}

static void decoding_agrees_and_is_causal(int n_blocks, const char *const *blocks) {
  wf_trial x;
  wf_trial_options o = {.dtype = WF_F64, .packed = true};
  wf_trial_make(&x, n_blocks, blocks, &o);
  int64_t n = x.t.n_tokens * VOCAB;
  double *whole = wf_calloc("test", (size_t)n, 2 * sizeof *whole), *other = whole + n;
  wf_trial_logits(&x, whole);
  wf_trial_decode(&x, other);
  wf_error e = wf_compare(n, other, whole);
  ck_assert_msg(e.err2 <= 1e-10 && e.errmax <= 1e-9, "decoding: err2 %.2e at token %lld", e.err2,
                (long long)(e.worst / VOCAB));
  int64_t changed = 13; /* in the first lane's document */
  ((int32_t *)x.t.ids)[changed] = (x.t.ids[changed] + 1) % VOCAB;
  wf_trial_logits(&x, other);
  ck_assert_msg(memcmp(whole, other, sizeof *whole * (size_t)(changed * VOCAB)) == 0,
                "the future reached the past");
  ck_assert(memcmp(whole + changed * VOCAB, other + changed * VOCAB, VOCAB * sizeof *whole) != 0);
  ck_assert_msg(memcmp(whole + LENGTH * VOCAB, other + LENGTH * VOCAB,
                       sizeof *whole * (size_t)(n - LENGTH * VOCAB)) == 0,
                "one document reached another");
  wf_free(whole);
  wf_trial_free(&x);
}

/* Packed documents equal the same documents each in a lane of its own. */
static void packed_equals_separate(int n_blocks, const char *const *blocks) {
  wf_trial x;
  wf_trial_options o = {.dtype = WF_F64, .packed = true};
  wf_trial_make(&x, n_blocks, blocks, &o);
  double *a = wf_calloc("test", (size_t)x.numel, 2 * sizeof *a), *b = a + x.numel, la, lb;
  wf_trial_gradient(&x, 0, a, &la);
  for (int64_t i = 0; i < x.t.n_rows; i++) {
    wf_row *row = (wf_row *)&x.t.row[i];
    row->lane = i;
    row->place = 0;
  }
  x.t.n_lanes = x.t.n_rows;
  wf_trial_gradient(&x, 6, b, &lb);
  ck_assert_double_eq_tol(lb, la, 1e-10 * fabs(la));
  wf_trial_agree(&x, "separate", b, a);
  wf_free(a);
  wf_trial_free(&x);
}

/* A batch without tokens between two parts: no loss, no gradient, and the state goes on as it was. */
static void empty_batch_changes_nothing(int n_blocks, const char *const *blocks) {
  wf_trial x;
  wf_trial_options o = {.dtype = WF_F64, .packed = true};
  wf_trial_make(&x, n_blocks, blocks, &o);
  int64_t n = x.t.n_tokens * VOCAB;
  double *whole = wf_calloc("test", (size_t)n, 2 * sizeof *whole), *part = whole + n, loss = 1;
  double *grad = wf_calloc("test", (size_t)x.numel, sizeof *grad);
  wf_state *state;
  OK(wf_state_create(x.c, wf_model_state_spec(x.m), WF_F64, x.t.n_lanes, LENGTH, true, &state));
  wf_tokens before, none, after;
  OK(wf_tokens_cut(&x.t, 0, 9, &before));
  OK(wf_tokens_cut(&x.t, LENGTH, LENGTH + 1, &none));
  OK(wf_tokens_cut(&x.t, 9, LENGTH, &after));
  ck_assert_int_eq(none.n_rows, 0);
  run_logits(&x, &before, state, part);
  wf_step s = step;
  s.state = state;
  wf_params_reset(wf_model_params(x.m));
  wf_params_hold(wf_model_params(x.m));
  OK(wf_step_gradient(x.m, &s, &none, scale, true, &loss));
  ck_assert_double_eq(loss, 0);
  collect(&x, grad);
  for (int64_t i = 0; i < x.numel; i++) ck_assert_double_eq(grad[i], 0);
  run_logits(&x, &after, state, part);
  wf_trial_logits(&x, whole);
  for (int64_t i = 0; i < after.n_rows; i++) {
    const wf_row *r = &after.row[i], *w = x.t.row;
    while (w->lane != r->lane || r->place < w->place || r->place >= w->place + w->len) w++;
    wf_error e =
        wf_compare(r->len * VOCAB, part + r->begin * VOCAB, whole + (w->begin + r->place - w->place) * VOCAB);
    ck_assert_msg(e.err2 <= 1e-10, "after an empty batch: err2 %.2e in lane %lld", e.err2,
                  (long long)r->lane);
  }
  wf_tokens_free(&before);
  wf_tokens_free(&none);
  wf_tokens_free(&after);
  wf_state_free(state);
  wf_free(grad);
  wf_free(whole);
  wf_trial_free(&x);
}

/* Truncated back-propagation: batches of 9 tokens a lane that hand their state over have the losses of the
 * whole and the gradients of a chain of ranks through which no gradient of a state passes. */
static void carried_batches_cut_the_gradient(int n_blocks, const char *const *blocks) {
  static const int64_t cuts[] = {9, 18, LENGTH};
  wf_trial x;
  wf_trial_options o = {.dtype = WF_F64, .dropout = 0.2, .packed = true};
  wf_trial_make(&x, n_blocks, blocks, &o);
  double *cut = wf_calloc("test", (size_t)x.numel, 3 * sizeof *cut), *sum = cut + x.numel,
         *whole = sum + x.numel, loss, total, part;
  wf_trial_gradient(&x, 0, whole, &loss);
  wf_trial_simulate(&x, 3, cuts, true, cut, &part);
  ck_assert_double_eq_tol(part, loss, 1e-10 * fabs(loss));
  for (int64_t stream = 0; stream <= 4; stream += 4) {
    wf_state *state;
    wf_params *ps = wf_model_params(x.m);
    OK(wf_state_create(x.c, wf_model_state_spec(x.m), WF_F64, x.t.n_lanes, LENGTH, true, &state));
    wf_params_reset(ps);
    wf_params_hold(ps);
    total = 0;
    for (int k = 0; k < 3; k++) {
      wf_tokens t;
      wf_step s = step;
      s.stream = stream;
      s.state = state;
      OK(wf_tokens_cut(&x.t, k ? cuts[k - 1] : 0, cuts[k], &t));
      OK(wf_step_gradient(x.m, &s, &t, scale, k == 2, &part));
      total += part;
      wf_tokens_free(&t);
    }
    ck_assert_int_eq(state->position[0], stream ? 22 : 18); /* the last that left: no batch follows */
    collect(&x, sum);
    wf_state_free(state);
    ck_assert_double_eq_tol(total, loss, 1e-10 * fabs(loss));
    wf_trial_agree(&x, "carried batches", sum, cut);
  }
  int64_t fixed, growing;
  wf_state_bytes(wf_model_state_spec(x.m), WF_F64, &fixed, &growing);
  if (fixed + growing > 0) ck_assert_double_gt(wf_compare(x.numel, cut, whole).err2, 1e-6);
  wf_free(cut);
  wf_trial_free(&x);
}

void wf_trial_cuts(int n_blocks, const char *const *blocks) {
  for (int k = 0; k < 4; k++) {
    wf_trial_options o = {
        .dtype = WF_F64, .dropout = 0.2, .packed = k & 1, .recompute = k & 2, .tie = k == 3};
    gradients_agree(n_blocks, blocks, &o);
  }
}

void wf_trial_contract(int n_blocks, const char *const *blocks) {
  wf_trial_cuts(n_blocks, blocks);
  decoding_agrees_and_is_causal(n_blocks, blocks);
  packed_equals_separate(n_blocks, blocks);
  carried_batches_cut_the_gradient(n_blocks, blocks);
  empty_batch_changes_nothing(n_blocks, blocks);
}
