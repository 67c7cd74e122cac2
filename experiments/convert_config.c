/* config.json to a Weft config and back. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/convert_impl.h"
#include "experiments/text.h"

enum { SEQ_LEN = 1024 }; /* at most, of the config made for an imported model */

/* ---- reading: keys with defaults, as transformers fills them in ---- */

/* A value that is there and not null, else NULL. */
static const json_t *value_of(const json_t *o, const char *key) {
  const json_t *v = json_object_get(o, key);
  return json_is_null(v) ? NULL : v;
}

static wf_status get_size(const json_t *o, const char *key, int64_t missing, int64_t *out) {
  const json_t *v = value_of(o, key);
  *out = missing;
  if (!v && missing == 0) return WF_FAIL(WF_EFORMAT, "%s is missing", key);
  if (!v) return WF_OK;
  if (!json_is_integer(v) || json_integer_value(v) < 1)
    return WF_FAIL(WF_EFORMAT, "%s is not a positive integer", key);
  *out = json_integer_value(v);
  return WF_OK;
}

static wf_status get_number(const json_t *o, const char *key, double missing, double *out) {
  const json_t *v = value_of(o, key);
  *out = v ? json_number_value(v) : missing;
  return v && !json_is_number(v) ? WF_FAIL(WF_EFORMAT, "%s is not a number", key) : WF_OK;
}

static wf_status get_bool(const json_t *o, const char *key, bool missing, bool *out) {
  const json_t *v = value_of(o, key);
  *out = v ? json_is_true(v) : missing;
  return v && !json_is_boolean(v) ? WF_FAIL(WF_EFORMAT, "%s is not true or false", key) : WF_OK;
}

static wf_status get_text(const json_t *o, const char *key, const char *missing, const char **out) {
  const json_t *v = value_of(o, key);
  *out = v ? json_string_value(v) : missing;
  return *out ? WF_OK : WF_FAIL(WF_EFORMAT, "%s is %s", key, v ? "not a text" : "missing");
}

static wf_status unsupported(const char *key, const char *has, const char *wants) {
  return WF_FAIL(WF_EUNSUPPORTED, "%s is %s; Weft's layers have %s", key, has, wants);
}

static wf_status must_be(const json_t *o, const char *key, bool wanted) {
  bool has;
  WF_TRY(get_bool(o, key, wanted, &has));
  return has == wanted ? WF_OK
                       : unsupported(key, has ? "true" : "false", wanted ? "only true" : "only false");
}

/* The sections beside the model, for a model that was not trained here. */
static void add_rest(wf_text *t, int64_t positions) {
  int64_t seq = positions < SEQ_LEN ? positions : SEQ_LEN;
  wf_text_add(t, "data: {store: store.h5, seq_len: %lld}\n", (long long)seq);
  wf_text_add(t, "train: {steps: 1000, batch_tokens: %lld, optimizer: {type: adamw, lr: 1.0e-4}}\n",
              (long long)(8 * seq));
}

static const char *yes(bool b) {
  return b ? "true" : "false";
}

static wf_status read_gpt2(const json_t *o, wf_text *t) {
  int64_t d, layers, heads, positions, vocab, width;
  double eps, dropout;
  bool tied;
  const char *act;
  WF_TRY(get_size(o, "n_embd", 0, &d));
  WF_TRY(get_size(o, "n_layer", 0, &layers));
  WF_TRY(get_size(o, "n_head", 0, &heads));
  WF_TRY(get_size(o, "n_positions", 0, &positions));
  WF_TRY(get_size(o, "vocab_size", 0, &vocab));
  WF_TRY(get_size(o, "n_inner", 4 * d, &width));
  WF_TRY(get_number(o, "layer_norm_epsilon", 1e-5, &eps));
  WF_TRY(get_number(o, "resid_pdrop", 0, &dropout));
  WF_TRY(get_bool(o, "tie_word_embeddings", true, &tied));
  WF_TRY(get_text(o, "activation_function", "gelu_new", &act));
  WF_TRY(must_be(o, "scale_attn_weights", true));
  WF_TRY(must_be(o, "scale_attn_by_inverse_layer_idx", false));
  WF_TRY(must_be(o, "add_cross_attention", false));
  bool by_tanh = strcmp(act, "gelu_new") == 0 || strcmp(act, "gelu_pytorch_tanh") == 0;
  if (!by_tanh && strcmp(act, "gelu") != 0) return unsupported("activation_function", act, "GELU here");
  wf_text_add(t, "model:\n  d_model: %lld\n  vocab: %lld\n  max_positions: %lld\n", (long long)d,
              (long long)vocab, (long long)positions);
  wf_text_add(t, "  norm: layernorm\n  norm_eps: %.17g\n  dropout: %.17g\n  tie_embeddings: %s\n", eps,
              dropout, yes(tied));
  wf_text_add(t, "  blocks:\n    - repeat: %lld\n", (long long)layers);
  wf_text_add(t, "      mixer: {type: attention, heads: %lld, position: learned, bias: true}\n",
              (long long)heads);
  wf_text_add(t, "      mlp: {type: gelu, width: %lld, bias: true, tanh: %s}\n", (long long)width,
              yes(by_tanh));
  add_rest(t, positions);
  return t->status;
}

/* The rotary base stands at the top, or in rope_parameters since transformers 5. Stretched positions are
 * refused. */
static wf_status read_rope(const json_t *o, double *base) {
  static const char *const places[] = {"rope_scaling", "rope_parameters"};
  const char *type;
  double fraction;
  WF_TRY(get_number(o, "rope_theta", 10000, base));
  WF_TRY(get_number(o, "partial_rotary_factor", 1, &fraction));
  for (int i = 0; i < 2; i++) {
    const json_t *r = value_of(o, places[i]);
    if (!r) continue;
    if (!json_is_object(r)) return WF_FAIL(WF_EFORMAT, "%s is not an object", places[i]);
    WF_TRY(get_text(r, "type", "default", &type));
    WF_TRY(get_text(r, "rope_type", type, &type));
    if (strcmp(type, "default") != 0) return unsupported(places[i], type, "plain rotary positions");
    WF_TRY(get_number(r, "rope_theta", *base, base));
    WF_TRY(get_number(r, "partial_rotary_factor", fraction, &fraction));
  }
  return fraction == 1 ? WF_OK : WF_FAIL(WF_EUNSUPPORTED, "partial_rotary_factor is not 1");
}

static wf_status read_llama(const json_t *o, wf_text *t) {
  int64_t d, layers, heads, kv, dim, positions, vocab, width;
  double eps, base;
  bool tied, attention_bias, mlp_bias;
  const char *act;
  WF_TRY(get_size(o, "hidden_size", 0, &d));
  WF_TRY(get_size(o, "num_hidden_layers", 0, &layers));
  WF_TRY(get_size(o, "num_attention_heads", 0, &heads));
  WF_TRY(get_size(o, "num_key_value_heads", heads, &kv));
  WF_TRY(get_size(o, "head_dim", d / heads > 0 ? d / heads : 1, &dim));
  WF_TRY(get_size(o, "max_position_embeddings", 2048, &positions));
  WF_TRY(get_size(o, "vocab_size", 0, &vocab));
  WF_TRY(get_size(o, "intermediate_size", 0, &width));
  WF_TRY(get_number(o, "rms_norm_eps", 1e-6, &eps));
  WF_TRY(get_bool(o, "tie_word_embeddings", false, &tied));
  WF_TRY(get_bool(o, "attention_bias", false, &attention_bias));
  WF_TRY(get_bool(o, "mlp_bias", false, &mlp_bias));
  WF_TRY(get_text(o, "hidden_act", "silu", &act));
  WF_TRY(read_rope(o, &base));
  if (strcmp(act, "silu") != 0) return unsupported("hidden_act", act, "SiLU here");
  wf_text_add(t, "model:\n  d_model: %lld\n  vocab: %lld\n  max_positions: %lld\n", (long long)d,
              (long long)vocab, (long long)positions);
  wf_text_add(t, "  norm: rmsnorm\n  norm_eps: %.17g\n  tie_embeddings: %s\n", eps, yes(tied));
  wf_text_add(t, "  blocks:\n    - repeat: %lld\n", (long long)layers);
  wf_text_add(t,
              "      mixer: {type: attention, heads: %lld, kv_heads: %lld, head_dim: %lld, position: rope, "
              "rope_base: %.17g, bias: %s}\n",
              (long long)heads, (long long)kv, (long long)dim, base, yes(attention_bias));
  wf_text_add(t, "      mlp: {type: swiglu, width: %lld, bias: %s}\n", (long long)width, yes(mlp_bias));
  add_rest(t, positions);
  return t->status;
}

static wf_status read_root(const json_t *o, const wf_family **f, wf_text *t) {
  const char *type;
  if (!json_is_object(o)) return WF_FAIL(WF_EFORMAT, "not an object");
  WF_TRY(get_text(o, "model_type", NULL, &type));
  if (!(*f = wf_family_find(type)))
    return wf_hint(
        WF_FAIL(WF_EUNSUPPORTED, "model_type is %s, an architecture that Weft does not read", type),
        "gpt2 and llama are read");
  return *f == &wf_family_gpt2 ? read_gpt2(o, t) : read_llama(o, t);
}

wf_status wf_family_read_config(const char *name, const char *json, size_t n, const wf_family **f,
                                char **yaml) {
  json_error_t where;
  wf_text t = {0};
  *yaml = NULL;
  json_t *root = json_loadb(json, n, JSON_REJECT_DUPLICATES, &where);
  if (!root) return WF_FAIL(WF_EFORMAT, "%s:%d:%d: no JSON: %s", name, where.line, where.column, where.text);
  wf_status s = read_root(root, f, &t);
  json_decref(root);
  if (s == WF_OK) return wf_text_take(&t, yaml);
  wf_text_free(&t);
  return wf_context(s, "%s", name);
}

/* ---- writing ---- */

static json_t *id_or_null(int64_t id) {
  return id < 0 ? json_null() : json_integer(id);
}

/* Rows of a parameter, 0 when the model has none of that name. */
static json_int_t rows_of(const wf_params *ps, const char *name) {
  const wf_param *p = wf_params_find(ps, name);
  return p ? p->shape[0] : 0;
}

static json_t *gpt2_json(const wf_config *cfg, const wf_config_block *b, const wf_params *ps) {
  double dropout = cfg->model.dropout;
  return json_pack("{s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f}", "activation_function",
                   wf_part_bool(&b->mlp, "tanh") ? "gelu_new" : "gelu", "n_embd",
                   (json_int_t)cfg->model.d_model, "n_head", (json_int_t)wf_part_i64(&b->mixer, "heads", 0),
                   "n_inner", rows_of(ps, "blocks.0.mlp.up.weight"), "n_positions",
                   rows_of(ps, "positions.weight"), "layer_norm_epsilon", wf_config_norm_eps(cfg),
                   "resid_pdrop", dropout, "embd_pdrop", dropout, "attn_pdrop", 0.0);
}

static json_t *llama_json(const wf_config *cfg, const wf_config_block *b, const wf_params *ps) {
  json_int_t heads = wf_part_i64(&b->mixer, "heads", 0), positions = cfg->model.max_positions;
  double base = wf_part_f64(&b->mixer, "rope_base");
  if (positions == WF_AUTO_I64) positions = cfg->data.seq_len;
  return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:b, s:b, s:f, s:f, s:{s:f, s:s}}", "hidden_act",
                   "silu", "hidden_size", (json_int_t)cfg->model.d_model, "num_attention_heads", heads,
                   "num_key_value_heads", (json_int_t)wf_part_i64(&b->mixer, "kv_heads", heads), "head_dim",
                   rows_of(ps, "blocks.0.mixer.q.weight") / heads, "intermediate_size",
                   rows_of(ps, "blocks.0.mlp.up.weight"), "max_position_embeddings", positions,
                   "rms_norm_eps", wf_config_norm_eps(cfg), "attention_bias", wf_part_bool(&b->mixer, "bias"),
                   "mlp_bias", wf_part_bool(&b->mlp, "bias"), "attention_dropout", 0.0, "rope_theta", base,
                   "rope_parameters", "rope_theta", base, "rope_type", "default");
}

static json_t *common_json(const wf_family *f, const wf_config *cfg, const wf_params *ps, size_t layers,
                           int64_t bos, int64_t eos) {
  return json_pack("{s:[s], s:s, s:o, s:o, s:f, s:I, s:b, s:s, s:I}", "architectures", f->architecture,
                   "model_type", f->name, "bos_token_id", id_or_null(bos), "eos_token_id", id_or_null(eos),
                   "initializer_range", cfg->model.init_std, "vocab_size", rows_of(ps, "embedding.weight"),
                   "tie_word_embeddings", cfg->model.tie_embeddings, "torch_dtype", "float32",
                   f == &wf_family_gpt2 ? "n_layer" : "num_hidden_layers", (json_int_t)layers);
}

static wf_status dump(json_t *own, const json_t *common, char **out) {
  char *text = own && common && json_object_update(own, (json_t *)(uintptr_t)common) == 0
                   ? json_dumps(own, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(15))
                   : NULL;
  *out = text ? wf_strdup("convert", text) : NULL;
  free(text);
  return *out ? WF_OK : WF_FAIL(WF_ENOMEM, "out of memory: config.json");
}

wf_status wf_family_write_config(const wf_family *f, const wf_config *cfg, const wf_params *params,
                                 int64_t bos, int64_t eos, char **json) {
  const wf_config_block **block;
  size_t n;
  WF_TRY(wf_config_layers(cfg, &block, &n));
  json_t *own = f == &wf_family_gpt2 ? gpt2_json(cfg, block[0], params) : llama_json(cfg, block[0], params);
  json_t *common = common_json(f, cfg, params, n, bos, eos);
  wf_status s = dump(own, common, json);
  json_decref(own);
  json_decref(common);
  wf_free(block);
  return s;
}
