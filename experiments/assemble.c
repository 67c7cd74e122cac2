/* Building what a config names; see assemble.h. */
#include "experiments/assemble.h"
#include "core/memory.h"
#include "optim/rules.h"

#include <math.h>
#include <omp.h>
#include <string.h>

wf_status wf_assemble_device(const wf_config *cfg, wf_device **out) {
  if (cfg->run.threads != WF_AUTO_I64) omp_set_num_threads((int)cfg->run.threads);
  return wf_device_open(cfg->run.device == WF_DEVICE_CUDA ? WF_CUDA : WF_CPU, 0, out);
}

/* ---- model ---- */

/* blocks.0.norm1.weight, blocks.0.mixer.q_norm.weight, norm.weight */
static bool is_norm(const char *name) {
  const char *norm = NULL;
  for (const char *p = name; (p = strstr(p, "norm")); p++) norm = p;
  return norm && strchr(norm, '.') && strcmp(strchr(norm, '.'), ".weight") == 0;
}

/* What the rules know a parameter as (optim/rules.h): what does not decay and is none of the others is a gate
 * or its like. */
static const char *kind_of(const wf_param *p) {
  const char *last = strrchr(p->name, '.');
  if (last && strcmp(last, ".bias") == 0) return "bias";
  if (is_norm(p->name)) return "norm";
  if (p->flags & WF_PARAM_TABLE) return strncmp(p->name, "head", 4) == 0 ? "head" : "embedding";
  return p->flags & WF_PARAM_NO_DECAY ? "gate" : NULL;
}

static wf_param_kind kind_by_rules(void *arg, const wf_param *p) {
  wf_opt_treatment t;
  if (wf_opt_rules_apply(arg, p->name, kind_of(p), p->ndim, &t) != WF_OK) /* checked with the config */
    return wf_param_default_kind(p);
  return (wf_param_kind){.decay = t.decay, .matrix = t.matrix, .lr_scale = t.lr_scale};
}

static wf_layer_use use_of(wf_layer_kind kind, const wf_config_part *part) {
  return (wf_layer_use){part->type ? wf_layer_find(kind, part->type) : NULL, part->options};
}

/* `beside` has room for every block's mixers beside the first. */
static wf_status model_of(wf_ctx *c, const wf_config *cfg, int64_t vocab,
                          const wf_config_block *const *layers, size_t n, wf_block_spec *block,
                          wf_layer_use *beside, wf_model **out) {
  for (size_t i = 0; i < n; i++) {
    const wf_config_block *b = layers[i];
    block[i] = (wf_block_spec){.norm = (wf_norm_kind)(b->norm < 0 ? cfg->model.norm : b->norm),
                               .mixer = use_of(WF_LAYER_MIXER, &b->mixer),
                               .mlp = use_of(WF_LAYER_MLP, &b->mlp),
                               .beside = beside,
                               .n_beside = (int)b->n_beside,
                               .share = b->share};
    for (size_t k = 0; k < b->n_beside; k++) *beside++ = use_of(WF_LAYER_MIXER, &b->beside[k]);
  }
  const wf_config_model *m = &cfg->model;
  wf_model_spec spec = {.vocab = vocab,
                        .d_model = m->d_model,
                        .n_blocks = (int)n,
                        .block = block,
                        .norm = (wf_norm_kind)m->norm,
                        .norm_eps = wf_config_norm_eps(cfg),
                        .bare_norms = !m->norm_bias,
                        .logit_softcap = m->logit_softcap,
                        .tie_embeddings = m->tie_embeddings,
                        .max_positions =
                            m->max_positions == WF_AUTO_I64 ? cfg->data.seq_len : m->max_positions,
                        .dropout = m->dropout,
                        .init_std = m->init_std,
                        .scale_residual = m->scale_residual,
                        .z_loss = cfg->train.z_loss,
                        .recompute = cfg->train.recompute};
  wf_dtype dtype = cfg->run.precision == WF_PRECISION_F64 ? WF_F64 : WF_F32;
  return wf_model_create(c, &spec, dtype, kind_by_rules, cfg->train.rules, out);
}

wf_status wf_assemble_model(wf_ctx *c, const wf_config *cfg, int64_t vocab, wf_model **out) {
  int64_t rows = cfg->model.vocab == WF_AUTO_I64 ? vocab : cfg->model.vocab;
  if (rows < vocab)
    return wf_hint(WF_FAIL(WF_EINVAL, "model.vocab is %lld, but the store's ids go up to %lld",
                           (long long)rows, (long long)vocab - 1),
                   "leave model.vocab out, or set it to at least %lld", (long long)vocab);
  WF_TRY(wf_config_check_layers(cfg));
  const wf_config_block **layers;
  size_t n;
  WF_TRY(wf_config_layers(cfg, &layers, &n));
  size_t n_beside = 0;
  for (size_t i = 0; i < n; i++) n_beside += layers[i]->n_beside;
  wf_block_spec *block = wf_calloc("model", n + 1, sizeof *block);
  wf_layer_use *beside = wf_calloc("model", n_beside + 1, sizeof *beside);
  wf_status s = block && beside ? model_of(c, cfg, rows, layers, n, block, beside, out) : WF_ENOMEM;
  wf_free(beside);
  wf_free(block);
  wf_free(layers);
  return s;
}

/* ---- optimiser ---- */

wf_status wf_groups_of(wf_model *m, wf_groups *out) {
  wf_params *ps = wf_model_params(m);
  *out = (wf_groups){0};
  out->group = wf_calloc("optimizer", (size_t)ps->n_groups + 1, sizeof *out->group);
  out->range = wf_calloc("optimizer", (size_t)ps->n + 1, sizeof *out->range);
  if (!out->group || !out->range) {
    wf_groups_free(out);
    return WF_ENOMEM;
  }
  wf_opt_range *r = out->range;
  for (int g = 0; g < ps->n_groups; g++) {
    const wf_param_group *pg = &ps->group[g];
    wf_opt_group *og = &out->group[g];
    *og = (wf_opt_group){.value = pg->value,
                         .grad = pg->grad,
                         .decay = pg->kind.decay,
                         .matrix = pg->kind.matrix,
                         .lr_scale = pg->kind.lr_scale,
                         .range = r};
    for (int i = 0; i < ps->n; i++) {
      const wf_param *p = ps->param[i];
      if (p->group != g) continue;
      *r++ = (wf_opt_range){p->name, p->offset, p->numel, p->ndim, p->shape};
      og->n_ranges++;
    }
  }
  out->n = ps->n_groups;
  return WF_OK;
}

void wf_groups_free(wf_groups *g) {
  wf_free(g->group);
  wf_free(g->range);
  *g = (wf_groups){0};
}

wf_status wf_assemble_optimizer(wf_ctx *c, const wf_config *cfg, const wf_groups *g, wf_optimizer **out) {
  const wf_config_part *part = &cfg->train.optimizer;
  return wf_optimizer_create(c, wf_optimizer_find(part->type), part->options, g->n, g->group, out);
}
