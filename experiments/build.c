/* The model's spec from the config's blocks, and the treatment of parameters from its rules. */
#include "experiments/build.h"

#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "optim/rules.h"

static const char TAG[] = "config";

static const wf_layer_type *type_of(wf_layer_kind kind, const wf_config_part *part) {
  return part->type ? wf_layer_find(kind, part->type) : NULL;
}

static double eps_of(const wf_config_model *m) {
  if (!isnan(m->norm_eps)) return m->norm_eps;
  return m->norm == WF_NORM_LAYER ? 1e-5 : 1e-6;
}

/* --- checking
 * ------------------------------------------------------------------------------------------------ */

/* Let the layer declare into parameters and states that are thrown away. */
static wf_status try_layer(const wf_config *c, wf_layer_kind kind, const wf_config_part *part) {
  const wf_layer_type *type = type_of(kind, part);
  if (!type) return WF_OK;
  wf_params params = {0};
  wf_state_spec state = {0};
  wf_build b = {.params = &params,
                .state = &state,
                .prefix = wf_config_kind_name(kind == WF_LAYER_MIXER ? WF_CONFIG_MIXER : WF_CONFIG_MLP),
                .d_model = c->model.d_model,
                .n_layers = 1,
                .init_std = c->model.init_std,
                .out_std = c->model.init_std,
                .norm_eps = eps_of(&c->model)};
  void *self = NULL;
  const wf_status s = type->init(&b, part->options, &self);
  wf_free(self); /* set, or not, before a failure */
  wf_params_free(&params);
  wf_state_spec_free(&state);
  return s == WF_OK ? s : wf_context(s, "%s", part->where);
}

static wf_status try_blocks(const wf_config *c, const wf_config_block *blocks, size_t n) {
  for (size_t i = 0; i < n; i++) {
    WF_TRY(try_blocks(c, blocks[i].blocks, blocks[i].n_blocks));
    WF_TRY(try_layer(c, WF_LAYER_MIXER, &blocks[i].mixer));
    WF_TRY(try_layer(c, WF_LAYER_MLP, &blocks[i].mlp));
  }
  return WF_OK;
}

wf_status wf_config_check_layers(const wf_config *c) {
  return try_blocks(c, c->model.blocks, c->model.n_blocks);
}

/* --- building
 * ------------------------------------------------------------------------------------------------ */

static bool ends_with(const char *text, const char *end) {
  const size_t n = strlen(text), m = strlen(end);
  return n >= m && strcmp(text + n - m, end) == 0;
}

/* blocks.0.norm1.weight, blocks.0.mixer.q_norm.weight, norm.weight */
static bool is_norm(const char *name) {
  const char *norm = NULL;
  for (const char *p = name; (p = strstr(p, "norm")); p++) norm = p;
  return norm && strchr(norm, '.') && strcmp(strchr(norm, '.'), ".weight") == 0;
}

/* The kind that rules call @bias, @norm, @head, @embedding and @gate: what does not decay and is none of the
 * others is a gate or its like. */
static const char *kind_of(const wf_param *p) {
  if (ends_with(p->name, ".bias")) return "bias";
  if (is_norm(p->name)) return "norm";
  if (p->flags & WF_PARAM_TABLE) return strstr(p->name, "head") ? "head" : "embedding";
  return p->flags & WF_PARAM_NO_DECAY ? "gate" : NULL;
}

/* The rules were checked with the config, so they parse. */
static wf_param_kind treat(void *rules, const wf_param *p) {
  wf_opt_treatment t;
  if (wf_opt_rules_apply(rules, p->name, kind_of(p), p->ndim, &t) != WF_OK) return wf_param_default_kind(p);
  return (wf_param_kind){.decay = t.decay, .matrix = t.matrix, .lr_scale = t.lr_scale};
}

static wf_status build(const wf_config *c, wf_ctx *ctx, int64_t vocab, const wf_config_block *const *layers,
                       wf_block_spec *blocks, size_t n, wf_model **out) {
  const wf_config_model *m = &c->model;
  for (size_t i = 0; i < n; i++)
    blocks[i] = (wf_block_spec){.norm = (wf_norm_kind)(layers[i]->norm < 0 ? m->norm : layers[i]->norm),
                                .mixer = type_of(WF_LAYER_MIXER, &layers[i]->mixer),
                                .mlp = type_of(WF_LAYER_MLP, &layers[i]->mlp),
                                .mixer_options = layers[i]->mixer.options,
                                .mlp_options = layers[i]->mlp.options};
  const wf_model_spec spec = {.vocab = m->vocab == WF_AUTO_I64 ? vocab : m->vocab,
                              .d_model = m->d_model,
                              .n_blocks = (int)n,
                              .block = blocks,
                              .norm = (wf_norm_kind)m->norm,
                              .norm_eps = eps_of(m),
                              .tie_embeddings = m->tie_embeddings,
                              .max_positions =
                                  m->max_positions == WF_AUTO_I64 ? c->data.seq_len : m->max_positions,
                              .dropout = m->dropout,
                              .init_std = m->init_std,
                              .scale_residual = m->scale_residual,
                              .z_loss = c->train.z_loss,
                              .recompute = c->train.recompute};
  return wf_model_create(ctx, &spec, c->run.precision == WF_PRECISION_F64 ? WF_F64 : WF_F32, treat,
                         c->train.rules, out);
}

wf_status wf_config_build(const wf_config *c, wf_ctx *ctx, int64_t vocab, wf_model **out) {
  if (c->model.vocab != WF_AUTO_I64 && c->model.vocab < vocab)
    return wf_hint(WF_FAIL(WF_EINVAL, "model.vocab %lld is smaller than the store's vocabulary of %lld",
                           (long long)c->model.vocab, (long long)vocab),
                   "leave model.vocab out, or use a store made with a smaller tokenizer");
  if (c->model.vocab == WF_AUTO_I64 && vocab <= 0)
    return WF_FAIL(WF_EINVAL, "model.vocab is auto, but no store says it");
  WF_TRY(wf_config_check_layers(c));
  const wf_config_block **layers;
  size_t n;
  WF_TRY(wf_config_layers(c, &layers, &n));
  wf_block_spec *blocks = wf_alloc(TAG, n * sizeof *blocks);
  wf_status s = blocks ? build(c, ctx, vocab, layers, blocks, n, out)
                       : wf_frame_at(__FILE__, __LINE__, __func__, WF_ENOMEM);
  wf_free(blocks);
  wf_free(layers);
  return s;
}
