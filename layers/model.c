/* Building the model and its forward. */
#include "layers/model_impl.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- build ---- */

static wf_status norm_params(wf_build *b, wf_norm_kind kind, const char *name, wf_param **weight,
                             wf_param **bias) {
  char full[64];
  snprintf(full, sizeof full, "%s.weight", name);
  WF_TRY(wf_build_param(b, full, WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(b->d_model), weight));
  if (kind != WF_NORM_LAYER || b->bare_norms) return WF_OK;
  snprintf(full, sizeof full, "%s.bias", name);
  return wf_build_param(b, full, WF_PARAM_NO_DECAY, wf_init_const(0), WF_SHAPE(b->d_model), bias);
}

static wf_status build_layer(wf_build *b, const wf_layer_use *use, layer *l, const layer *owner) {
  l->type = use->type;
  l->params = owner ? owner->params : l->site;
  b->prefix = l->site;
  b->shared = owner ? l->params : NULL;
  l->first_slot = b->state->n;
  wf_status s = l->type->init(b, use->options, &l->self);
  l->n_slots = b->state->n - l->first_slot;
  return s == WF_OK ? s : wf_context(s, "block %d, %s", b->layer, l->type->name);
}

/* Every layer's output is normed with a weight of its own. */
static wf_status beside_params(wf_build *b, half *h, const half *owner) {
  double scale = b->init_std > 0 ? b->out_std / b->init_std : 1;
  b->prefix = h->site;
  b->shared = owner ? owner->site : NULL;
  for (int i = 0; i < h->n; i++) {
    char name[32];
    snprintf(name, sizeof name, "norm%d.weight", i);
    WF_TRY(wf_build_param(b, name, WF_PARAM_NO_DECAY, wf_init_const(scale), WF_SHAPE(b->d_model),
                          &h->layer[i].norm));
  }
  return WF_OK;
}

static wf_status build_half(wf_build *b, const wf_block_spec *spec, int k, half *h, const half *owner) {
  const wf_layer_use *first = k ? &spec->mlp : &spec->mixer;
  int n = first->type ? k ? 1 : 1 + spec->n_beside : 0;
  if (owner && owner->n != n) return WF_FAIL(WF_EINVAL, "block %d shares with one of other layers", b->layer);
  if (!n) return WF_OK;
  WF_TRY(norm_params(b, spec->norm, k ? "norm2" : "norm1", &h->norm, &h->norm_bias));
  snprintf(h->site, sizeof h->site, "blocks.%d.%s", b->layer, k ? "mlp" : "mixer");
  WF_CALLOC(h->layer, "model", n);
  h->n = n;
  for (int i = 0; i < n; i++) {
    layer *l = &h->layer[i];
    if (n == 1)
      memcpy(l->site, h->site, sizeof l->site);
    else
      snprintf(l->site, sizeof l->site, "blocks.%d.mixer.%d", b->layer, i);
    WF_TRY(build_layer(b, i ? &spec->beside[i - 1] : first, l, owner ? &owner->layer[i] : NULL));
  }
  return n > 1 ? beside_params(b, h, owner) : WF_OK;
}

/* The first block of a name owns the parameters. */
static int owner_of(const wf_model *m, const wf_block_spec *spec, int i) {
  for (int j = 0; spec->share && j < i; j++)
    if (m->block[j].share && strcmp(m->block[j].share, spec->share) == 0) return j;
  return i;
}

static wf_status build_block(wf_model *m, wf_build *b, const wf_block_spec *spec, int i) {
  block *bl = &m->block[i];
  *bl = (block){.norm = spec->norm, .first_slot = m->state.n, .share = spec->share};
  b->layer = i;
  int owner = owner_of(m, spec, i);
  for (int k = 0; k < 2; k++) {
    char prefix[32], shared[32];
    snprintf(prefix, sizeof prefix, "blocks.%d", i);
    snprintf(shared, sizeof shared, "blocks.%d", owner);
    b->prefix = prefix;
    b->shared = owner < i ? shared : NULL;
    WF_TRY(build_half(b, spec, k, &bl->half[k], owner < i ? &m->block[owner].half[k] : NULL));
  }
  bl->n_slots = m->state.n - bl->first_slot;
  if (bl->n_slots > WF_FN_MAX - 2)
    return WF_FAIL(WF_EINVAL, "block %d has %d state slots; at most %d", i, bl->n_slots, WF_FN_MAX - 2);
  return WF_OK;
}

static wf_status build(wf_model *m, const wf_model_spec *spec) {
  double std = spec->init_std;
  int branches = 0;
  for (int i = 0; i < spec->n_blocks; i++)
    branches += (spec->block[i].mixer.type != NULL) + (spec->block[i].mlp.type != NULL);
  wf_build b = {.params = &m->params,
                .state = &m->state,
                .prefix = "",
                .d_model = spec->d_model,
                .n_layers = spec->n_blocks,
                .init_std = std,
                .out_std = spec->scale_residual && branches ? std / sqrt((double)branches) : std,
                .norm_eps = spec->norm_eps,
                .bare_norms = spec->bare_norms,
                .context = spec->max_positions};
  int64_t V = spec->vocab, d = spec->d_model;
  WF_TRY(wf_build_param(&b, "embedding.weight", WF_PARAM_TABLE, wf_init_normal(std), WF_SHAPE(V, d),
                        &m->embedding));
  m->block = wf_calloc("model", (size_t)spec->n_blocks + 1, sizeof *m->block);
  if (!m->block) return WF_ENOMEM;
  for (int i = 0; i < spec->n_blocks; i++) WF_TRY(build_block(m, &b, &spec->block[i], i));
  for (int i = 0; i < spec->n_blocks; i++) m->block[i].share = NULL; /* the spec's own text */
  b.prefix = "";
  b.shared = NULL;
  if (b.learned_positions)
    WF_TRY(wf_build_param(&b, "positions.weight", WF_PARAM_TABLE, wf_init_normal(std),
                          WF_SHAPE(spec->max_positions, d), &m->positions));
  WF_TRY(norm_params(&b, spec->norm, "norm", &m->norm, &m->norm_bias));
  if (spec->tie_embeddings)
    m->head = m->embedding;
  else
    WF_TRY(wf_build_param(&b, "head.weight", WF_PARAM_TABLE, wf_init_normal(std), WF_SHAPE(V, d), &m->head));
  return WF_OK;
}

wf_status wf_model_create(wf_ctx *c, const wf_model_spec *spec, wf_dtype dtype,
                          wf_param_kind (*kind)(void *arg, const wf_param *p), void *arg, wf_model **out) {
  if (spec->vocab < 1 || spec->d_model < 1 || spec->n_blocks < 0)
    return WF_FAIL(WF_EINVAL, "a model needs a vocabulary and a width; got %lld and %lld",
                   (long long)spec->vocab, (long long)spec->d_model);
  if (dtype != WF_F32 && dtype != WF_F64) return WF_FAIL(WF_EINVAL, "a model computes in f32 or f64");
  wf_model *m;
  WF_CALLOC(m, "model", 1);
  m->c = c;
  m->dtype = dtype;
  m->spec = *spec;
  m->spec.block = NULL;
  wf_status s = build(m, spec);
  if (s == WF_OK) s = wf_params_allocate(&m->params, c, dtype, kind, arg);
  if (s != WF_OK) {
    wf_model_free(m);
    return wf_frame_at(__FILE__, __LINE__, __func__, s);
  }
  *out = m;
  return WF_OK;
}

void wf_model_free(wf_model *m) {
  if (!m) return;
  for (int i = 0; m->block && i < m->spec.n_blocks; i++)
    for (int k = 0; k < 2; k++) {
      half *h = &m->block[i].half[k];
      for (int j = 0; j < h->n; j++) wf_free(h->layer[j].self);
      wf_free(h->layer);
    }
  wf_free(m->block);
  wf_params_free(&m->params);
  wf_state_spec_free(&m->state);
  wf_free(m);
}

wf_ctx *wf_model_ctx(const wf_model *m) {
  return m->c;
}
wf_dtype wf_model_dtype(const wf_model *m) {
  return m->dtype;
}
wf_params *wf_model_params(wf_model *m) {
  return &m->params;
}
const wf_state_spec *wf_model_state_spec(const wf_model *m) {
  return &m->state;
}
int64_t wf_model_vocab(const wf_model *m) {
  return m->spec.vocab;
}
int64_t wf_model_max_positions(const wf_model *m) {
  return m->positions ? m->spec.max_positions : 0;
}

/* Whether the parameter is of the layer. */
static bool belongs(const wf_param *p, const layer *l) {
  size_t n = strlen(l->params);
  return strncmp(p->name, l->params, n) == 0 && p->name[n] == '.';
}

double wf_model_flops(const wf_model *m, int64_t T) {
  double sum = 2 * (double)m->head->numel;
  for (int i = 0; i < 2 * m->spec.n_blocks; i++) {
    const half *h = &m->block[i / 2].half[i % 2];
    for (int j = 0; j < h->n; j++) {
      const layer *l = &h->layer[j];
      if (l->type->flops) sum += l->type->flops(l->self, T);
      for (int p = 0; p < m->params.n && !l->type->flops; p++)
        if (belongs(m->params.param[p], l)) sum += 2 * (double)m->params.param[p]->numel;
    }
  }
  return sum;
}

double wf_model_activation_bytes(const wf_model *m, int64_t tokens) {
  double per_token = 2 * (double)m->spec.d_model; /* the embedding and the last norm */
  for (int i = 0; i < 2 * m->spec.n_blocks; i++) {
    const half *h = &m->block[i / 2].half[i % 2];
    if (h->n) per_token += 2 * (double)m->spec.d_model;
    for (int j = 0; j < h->n && !m->spec.recompute; j++) {
      int64_t widest = 0;
      for (int p = 0; p < m->params.n; p++) {
        const wf_param *q = m->params.param[p];
        if (q->ndim != 2 || !belongs(q, &h->layer[j])) continue;
        per_token += (double)q->shape[0];
        if (q->shape[1] > widest) widest = q->shape[1];
      }
      per_token += (double)widest; /* the input of the last product */
    }
  }
  return per_token * (double)tokens * (double)wf_dtype_size(m->dtype);
}

/* ---- forward ---- */

static wf_tensor *drop_out(const wf_model *m, const wf_run *r, wf_tensor *x, const char *site) {
  if (!r->train || m->spec.dropout <= 0) return x;
  return wf_dropout(r->c, x, r->rows, m->spec.dropout, wf_rng_key_make(r->seed, "dropout", site), r->step);
}

/* x + r and its norm; r may be NULL. *x becomes the sum. */
static wf_tensor *normed(wf_ctx *c, wf_norm_kind kind, wf_tensor **x, wf_tensor *r, const wf_param *w,
                         const wf_param *b, double eps) {
  if (!r) return wf_norm(c, kind, *x, wf_value(w), wf_value(b), eps);
  return wf_add_norm(c, kind, *x, r, wf_value(w), wf_value(b), eps, x);
}

/* The half's layers on the normed x. */
static wf_tensor *run_half(const wf_model *m, wf_run *r, const half *h, wf_tensor *x) {
  wf_ctx *c = r->c;
  if (h->n == 1) return wf_layer_run(r, h->layer, x);
  wf_tensor *sum = NULL;
  for (int i = 0; i < h->n; i++) {
    const layer *l = &h->layer[i];
    wf_tensor *y = wf_layer_run(r, l, x);
    y = wf_norm(c, WF_NORM_RMS, y, wf_value(l->norm), NULL, m->spec.norm_eps);
    sum = sum ? wf_add(c, sum, y) : y;
  }
  return wf_affine(c, sum, 1.0 / h->n, 0);
}

typedef struct block_arg {
  const wf_model *m;
  const block *b;
  wf_run run;
} block_arg;

/* in: x, r (or NULL), the entering state of the block's slots; out: x, r, the leaving state. */
static wf_status run_block(wf_ctx *c, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                           wf_tensor **out) {
  const block_arg *a = arg;
  const wf_model *m = a->m;
  const block *b = a->b;
  wf_run run = a->run;
  wf_tensor *slots[WF_FN_MAX];
  wf_state local;
  if (run.state) { /* the same state, but with this call's tensors */
    local = *run.state;
    for (int i = 0; i < b->n_slots; i++) {
      slots[i] = in[2 + i] ? in[2 + i] : wf_state_in(run.state, b->first_slot + i);
      out[2 + i] = NULL;
    }
    local.base = b->first_slot;
    local.in = slots;
    local.out = out + 2;
    run.state = &local;
  }
  (void)n_in, (void)n_out;
  wf_tensor *x = in[0], *r = in[1];
  for (int k = 0; k < 2; k++) {
    const half *h = &b->half[k];
    if (!h->n) continue;
    wf_tensor *y = normed(c, b->norm, &x, r, h->norm, h->norm_bias, m->spec.norm_eps);
    r = drop_out(m, &run, run_half(m, &run, h, y), h->site);
  }
  out[0] = x == in[0] ? wf_affine(c, x, 1, 0) : x; /* an output is a tensor of its own */
  out[1] = r == in[1] && r ? wf_affine(c, r, 1, 0) : r;
  return WF_OK;
}

static wf_status forward_block(wf_model *m, wf_run *r, const block *b, wf_tensor **x, wf_tensor **branch) {
  int n = 2 + (r->state ? b->n_slots : 0);
  wf_tensor *in[WF_FN_MAX] = {*x, *branch}, *out[WF_FN_MAX] = {NULL};
  for (int i = 0; i < n - 2; i++) /* caches are leaves; only fixed states travel as inputs */
    in[2 + i] = m->state.slot[b->first_slot + i].grows ? NULL : r->state->in[b->first_slot + i];
  block_arg arg = {m, b, *r};
  wf_scope scope = wf_scope_open(r->c);
  wf_status st = m->spec.recompute ? wf_checkpoint(r->c, run_block, &arg, sizeof arg, n, in, n, out)
                                   : run_block(r->c, &arg, n, in, n, out);
  for (int i = 0; i < n && st == WF_OK; i++) wf_keep(out[i]);
  wf_scope_close(r->c, scope);
  WF_TRY(st);
  for (int i = 0; i < n; i++) out[i] = wf_adopt(out[i]);
  for (int i = 0; i < n - 2; i++)
    if (!m->state.slot[b->first_slot + i].grows) r->state->out[b->first_slot + i] = out[2 + i];
  *x = out[0];
  *branch = out[1];
  return wf_is_poison(*x) ? wf_ctx_check(r->c) : WF_OK;
}

static wf_status check_positions(const wf_model *m, const wf_rows *rows) {
  if (!m->positions) return WF_OK;
  for (int64_t i = 0; i < rows->n; i++)
    if (rows->row[i].pos + rows->row[i].len > m->spec.max_positions)
      return wf_hint(WF_FAIL(WF_EINVAL, "position %lld is beyond the %lld learned ones",
                             (long long)(rows->row[i].pos + rows->row[i].len - 1),
                             (long long)m->spec.max_positions),
                     "raise model.max_positions, or use position: rope");
  return WF_OK;
}

wf_tensor *wf_model_trunk(wf_model *m, wf_run *r, wf_tensor *ids) {
  wf_ctx *c = r->c;
  wf_status s = check_positions(m, r->rows);
  if (s != WF_OK) return wf_poison(c, s);
  wf_tensor *x = wf_embedding(c, wf_value(m->embedding), ids), *branch = NULL;
  if (m->positions) x = wf_add(c, x, wf_embedding(c, wf_value(m->positions), r->rows->index));
  x = drop_out(m, r, x, "embedding");
  for (int i = 0; i < m->spec.n_blocks; i++) {
    s = wf_is_poison(x) ? wf_ctx_check(c) : forward_block(m, r, &m->block[i], &x, &branch);
    if (s != WF_OK) return wf_poison(c, wf_context(s, "block %d", i));
  }
  return normed(c, m->spec.norm, &x, branch, m->norm, m->norm_bias, m->spec.norm_eps);
}

wf_tensor *wf_model_logits(wf_model *m, wf_run *r, wf_tensor *h) {
  wf_tensor *y = wf_linear(r->c, h, wf_value(m->head), NULL);
  double cap = m->spec.logit_softcap;
  return cap > 0 ? wf_affine(r->c, wf_tanh(r->c, wf_affine(r->c, y, 1 / cap, 0)), cap, 0) : y;
}
