/* experiments/convert: models go to Hugging Face's layouts and come back bit for bit, their files are read in
 * all the shapes they come in, and what does not fit is refused with the reason. */
#include <sys/wait.h>

#include "experiments/checkpoint.h"
#include "tests/experiments/golden_model.h"
#include "tests/temp_dir.h"

/* ---- models of our own ---- */

#define TAIL                              \
  "data: {store: none.h5, seq_len: 16}\n" \
  "train: {steps: 1, batch_tokens: 32, optimizer: {type: adamw, lr: 1.0e-3}}\n"

static const char *const configs[] = {
    "model: {d_model: 24, vocab: 61, norm: layernorm, max_positions: 20, dropout: 0.1, blocks: [{repeat: 2, "
    "mixer: {type: attention, heads: 3, position: learned, bias: true}, "
    "mlp: {type: gelu, width: 40, bias: true, tanh: true}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, norm: layernorm, norm_eps: 3.0e-4, tie_embeddings: false, "
    "blocks: [{repeat: 3, mixer: {type: attention, heads: 3, position: learned, bias: true}, "
    "mlp: {type: gelu, bias: true}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, tie_embeddings: false, blocks: [{repeat: 2, "
    "mixer: {type: attention, heads: 6, kv_heads: 2, rope_base: 5.0e+5}, mlp: {type: swiglu, width: "
    "37}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, norm_eps: 1.0e-5, max_positions: 64, blocks: [{repeat: 2, "
    "mixer: {type: attention, heads: 4, kv_heads: 1, head_dim: 10, bias: true}, "
    "mlp: {type: swiglu, bias: true}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, blocks: [{repeat: 3, mixer: {type: mamba, state: 5, dt_rank: 3, dt_min: "
    "0.01}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, norm_eps: 1.0e-5, tie_embeddings: false, blocks: [{repeat: 2, "
    "mixer: {type: mamba2, head_dim: 12, state: 5, groups: 2, dt_limit_low: 1.0e-3, conv_width: 3}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, blocks: [{repeat: 2, mixer: {type: mamba2, expand: 3, head_dim: 24, "
    "dt_limit_high: 0.5}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, tie_embeddings: false, blocks: [{repeat: 3, "
    "mixer: {type: retnet, heads: 3, expand_v: 1}, mlp: {type: swiglu, width: 41}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, tie_embeddings: false, blocks: [{repeat: 2, "
    "mixer: {type: gla, heads: 4, kv_heads: 2, conv: true, conv_width: 3}, mlp: {type: swiglu}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, blocks: [{repeat: 3, mixer: {type: hgrn2, expand_ratio: 6}, "
    "mlp: {type: swiglu, expand: 2, multiple: 10}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, tie_embeddings: false, blocks: [{repeat: 2, mixer: {type: deltanet, "
    "heads: 3, "
    "use_gate: true, negative_eigenvalues: true}, mlp: {type: swiglu}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, blocks: [{repeat: 2, mixer: {type: gated_deltanet, heads: 2, v_heads: "
    "4, "
    "expand_v: 1.5}, mlp: {type: swiglu, width: 41}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, blocks: [{repeat: 2, mixer: {type: kda, heads: 2, head_dim: 6}, "
    "mlp: {type: swiglu}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, logit_softcap: 20, tie_embeddings: false, blocks: [{repeat: 2, "
    "mixer: {type: mlstm, form: large, heads: 3, gate_cap: 7}, mlp: {type: swiglu, width: 41}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, norm: layernorm, norm_bias: false, dropout: 0.1, blocks: [{repeat: 2, "
    "mixer: {type: mlstm, heads: 2, expand: 1.5}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, norm: layernorm, norm_bias: false, tie_embeddings: false, blocks: "
    "[{repeat: 2, "
    "blocks: [{repeat: 2, mixer: {type: mlstm}}, {mixer: {type: slstm, heads: 3}, mlp: {type: geglu, width: "
    "33}}]}, "
    "{mixer: {type: mlstm}}]}\n" TAIL,
    "model: {d_model: 24, vocab: 61, norm: layernorm, norm_bias: false, blocks: [{repeat: 2, "
    "mixer: {type: slstm, conv_width: 0}, mlp: {type: geglu, expand: 1.3, multiple: 64}}]}\n" TAIL};
enum { MAMBA = 4, MIXED_XLSTM = 15, N_CONFIGS = sizeof configs / sizeof *configs };
static const char *const families[N_CONFIGS] = {"gpt2",
                                                "gpt2",
                                                "llama",
                                                "llama",
                                                "mamba",
                                                "mamba2",
                                                "mamba2",
                                                "retnet",
                                                "gla",
                                                "hgrn2",
                                                "delta_net",
                                                "gated_deltanet",
                                                "kda",
                                                "xlstm",
                                                "xlstm_block_stack",
                                                "xlstm_block_stack",
                                                "xlstm_block_stack"};

typedef struct ours {
  wf_config cfg;
  wf_device *dev;
  wf_ctx *c;
  wf_model *m;
} ours;

static void open_ours(ours *o, const char *yaml, size_t n) {
  OK(wf_config_parse(&o->cfg, "test.yaml", yaml, n, NULL, 0, wf_types));
  OK(wf_device_open(WF_CPU, 0, &o->dev));
  OK(wf_ctx_create(o->dev, &o->c));
  OK(wf_assemble_model(o->c, &o->cfg, o->cfg.model.vocab, &o->m));
}

static void close_ours(ours *o) {
  wf_model_free(o->m);
  wf_ctx_free(o->c);
  wf_device_close(o->dev);
  wf_config_free(&o->cfg);
}

static float *values(const wf_param *p) {
  float *x = malloc((size_t)p->numel * sizeof *x);
  OK(wf_to_host(p->value, x));
  return x;
}

/* Random weights, biases and norms too; a norm's factor so near 1 that 1 can be taken from it without
 * rounding. */
static void randomise(wf_params *ps) {
  for (int i = 0; i < ps->n; i++) {
    wf_param *p = ps->param[i];
    float *x = malloc((size_t)p->numel * sizeof *x);
    bool factor = strstr(p->name, "norm") && strstr(p->name, "weight");
    for (int64_t e = 0; e < p->numel; e++) {
      x[e] = (float)wf_rng_normal(wf_rng_key_make(3, "test", p->name), (uint64_t)e) * 0.3f;
      if (factor) x[e] = 1 + 0.3f * tanhf(x[e]);
    }
    OK(wf_tensor_write(p->value, x));
    free(x);
  }
}

static void save_ours(const ours *o, const char *path, const void *blob, size_t n) {
  char *yaml;
  wf_snapshot s = {.params = wf_model_params(o->m)};
  OK(wf_config_print(&o->cfg, &yaml));
  OK(wf_checkpoint_save(path, &s, yaml, blob, n));
  wf_free(yaml);
}

/* A checkpoint of random weights and its export into `out`. */
static void export_random(int config, const char *checkpoint, const char *out) {
  ours o;
  const wf_family *f;
  open_ours(&o, configs[config], strlen(configs[config]));
  randomise(wf_model_params(o.m));
  save_ours(&o, checkpoint, NULL, 0);
  close_ours(&o);
  OK(wf_convert_export(checkpoint, out, true, &f));
  ck_assert_str_eq(wf_family_name(f), families[config]);
}

static void open_checkpoint(ours *o, const char *path) {
  wf_checkpoint_info info;
  OK(wf_checkpoint_read_info(path, &info));
  open_ours(o, info.config, info.config_size);
  OK(wf_checkpoint_load_params(path, wf_model_params(o->m), false));
  wf_checkpoint_info_free(&info);
}

static void assert_same_weights(wf_params *a, wf_params *b) {
  ck_assert_int_eq(a->n, b->n);
  for (int i = 0; i < a->n; i++) {
    const wf_param *p = a->param[i], *q = wf_params_find(b, p->name);
    ck_assert_msg(q && q->numel == p->numel, "%s", p->name);
    float *x = values(p), *y = values(q);
    ck_assert_msg(memcmp(x, y, (size_t)p->numel * sizeof *x) == 0, "%s", p->name);
    free(x);
    free(y);
  }
}

static void assert_same_file(const char *a, const char *b) {
  char *x, *y;
  int64_t n, m;
  OK(wf_file_read(a, INT64_MAX, &x, &n));
  OK(wf_file_read(b, INT64_MAX, &y, &m));
  ck_assert_msg(n == m && memcmp(x, y, (size_t)n) == 0, "%s and %s", a, b);
  wf_free(x);
  wf_free(y);
}

START_TEST(round_trip) {
  char a[1024], out[1024], b[1024];
  snprintf(a, sizeof a, "%s/a.h5", temp_dir);
  snprintf(b, sizeof b, "%s/b.h5", temp_dir);
  snprintf(out, sizeof out, "%s/out", temp_dir);
  export_random(_i, a, out);
  ck_assert(wf_convert_is_foreign(out) && !wf_convert_is_foreign(a));
  bool speaks = true;
  OK(wf_convert_import(out, b, true, &speaks));
  ck_assert(!speaks);
  ours x, y;
  open_checkpoint(&x, a);
  open_checkpoint(&y, b);
  assert_same_weights(wf_model_params(x.m), wf_model_params(y.m));
  ck_assert(x.cfg.model.dropout == y.cfg.model.dropout);
  ck_assert(wf_config_norm_eps(&x.cfg) == wf_config_norm_eps(&y.cfg));
  golden g = {.batch = 1, .length = 7, .n = 7, .vocab = 61, .ids = (int32_t[]){1, 60, 0, 5, 5, 33, 2}};
  g.row = &(wf_row){.len = 7};
  float *p = golden_logits(&g, x.m), *q = golden_logits(&g, y.m);
  ck_assert(memcmp(p, q, 7 * 61 * sizeof *p) == 0);
  free(p);
  free(q);
  close_ours(&x);
  close_ours(&y);
  OK(wf_convert_export(b, temp_path("again"), true, NULL));
  assert_same_file(temp_path("out/model.safetensors"), temp_path("again/model.safetensors"));
  assert_same_file(temp_path("out/config.json"), temp_path("again/config.json"));
}
END_TEST

/* ---- their files, edited ---- */

typedef struct edit {
  const char *drop, *strip; /* a tensor's name; a prefix */
  const char *cut;          /* the tensor whose last row is left out */
  const char *extra;        /* a tensor more */
  const char *from, *to;    /* another name */
  void (*change)(const char *name, float *x, int64_t n);
  wf_st_dtype dtype; /* F32 or BF16 */
  int part, parts;   /* write every parts-th tensor only */
} edit;

static void copy_tensors(const char *from, const char *to, const edit *e) {
  wf_safetensors *st;
  wf_st_writer *w;
  int id[256];
  OK(wf_st_open(from, &st));
  OK(wf_st_create(to, &w));
  for (int pass = 0; pass < 2; pass++) {
    for (int64_t i = 0; i < wf_st_count(st); i++) {
      const wf_st_info *o = wf_st_at(st, i);
      const char *name = o->name;
      if (e->parts && i % e->parts != e->part) continue;
      if (e->drop && strcmp(name, e->drop) == 0) continue;
      if (e->strip && strncmp(name, e->strip, strlen(e->strip)) == 0) name += strlen(e->strip);
      if (e->from && strcmp(name, e->from) == 0) name = e->to;
      int64_t shape[WF_ST_MAX_DIMS], n = o->count;
      memcpy(shape, o->shape, sizeof shape);
      if (e->cut && strcmp(name, e->cut) == 0) n -= n / shape[0]--;
      if (pass == 0) {
        if (e->change && strstr(name, "_recurrent_kernel_")) shape[1] = o->shape[2], shape[2] = o->shape[1];
        OK(wf_st_define(w, name, e->dtype, o->ndim, shape, &id[i]));
        continue;
      }
      uint32_t *x = malloc((size_t)n * sizeof *x);
      uint16_t *half = malloc((size_t)n * sizeof *half);
      OK(wf_st_read(st, o, 0, n, x));
      if (e->change) e->change(name, (float *)(void *)x, n);
      for (int64_t k = 0; k < n; k++) half[k] = (uint16_t)(x[k] >> 16);
      OK(wf_st_write(w, id[i], 0, n, e->dtype == WF_ST_BF16 ? (const void *)half : x));
      free(x);
      free(half);
    }
    if (pass == 0 && e->extra) OK(wf_st_define(w, e->extra, WF_ST_U8, 2, (int64_t[]){1, 4}, NULL));
    if (pass == 0) OK(wf_st_layout(w));
  }
  OK(wf_st_commit(w));
  wf_st_close(st);
}

static char out_dir[600], in_dir[600], source[700], target[700], checkpoint[600], result[600];

/* An export in `out`, and `in` with its config alone. */
static void prepare(int config) {
  char *json;
  int64_t n;
  snprintf(out_dir, sizeof out_dir, "%s/out", temp_dir);
  snprintf(in_dir, sizeof in_dir, "%s/in", temp_dir);
  snprintf(source, sizeof source, "%s/model.safetensors", out_dir);
  snprintf(target, sizeof target, "%s/model.safetensors", in_dir);
  snprintf(checkpoint, sizeof checkpoint, "%s/a.h5", temp_dir);
  snprintf(result, sizeof result, "%s/b.h5", temp_dir);
  export_random(config, checkpoint, out_dir);
  OK(wf_make_directories(in_dir));
  OK(wf_file_read(temp_path("out/config.json"), 1 << 20, &json, &n));
  OK(wf_file_write(temp_path("in/config.json"), json, n));
  wf_free(json);
}

static void assert_import_equals(const char *from) {
  ours x, y;
  OK(wf_convert_import(from, result, true, NULL));
  open_checkpoint(&x, checkpoint);
  open_checkpoint(&y, result);
  assert_same_weights(wf_model_params(x.m), wf_model_params(y.m));
  close_ours(&x);
  close_ours(&y);
}

/* As GPT-2 lies on the hub: no prefix, the masks beside the weights. */
START_TEST(bare_names) {
  prepare(0);
  copy_tensors(source, target, &(edit){.strip = "transformer.", .extra = "h.0.attn.bias"});
  assert_import_equals(in_dir);
  assert_import_equals(target); /* the file itself, config.json beside it */
}
END_TEST

START_TEST(tied_copy) {
  prepare(3);
  copy_tensors(source, target, &(edit){.extra = "lm_head.weight"});
  assert_import_equals(in_dir);
}
END_TEST

START_TEST(shards) {
  char index[8192] = "{\"metadata\": {}, \"weight_map\": {", *at = index + strlen(index);
  wf_safetensors *st;
  prepare(2);
  copy_tensors(source, temp_path("in/model-00001-of-00002.safetensors"), &(edit){.parts = 2, .part = 0});
  copy_tensors(source, temp_path("in/model-00002-of-00002.safetensors"), &(edit){.parts = 2, .part = 1});
  OK(wf_st_open(source, &st));
  for (int64_t i = 0; i < wf_st_count(st); i++)
    at += sprintf(at, "%s\"%s\": \"model-0000%d-of-00002.safetensors\"", i ? ", " : "", wf_st_at(st, i)->name,
                  (int)(i % 2) + 1);
  at += sprintf(at, "}}");
  OK(wf_file_write(temp_path("in/model.safetensors.index.json"), index, at - index));
  wf_st_close(st);
  assert_import_equals(in_dir);
}
END_TEST

START_TEST(half_precision) {
  ours x, y;
  prepare(2);
  copy_tensors(source, target, &(edit){.dtype = WF_ST_BF16});
  OK(wf_convert_import(in_dir, result, true, NULL));
  open_checkpoint(&x, checkpoint);
  open_checkpoint(&y, result);
  for (int i = 0; i < wf_model_params(x.m)->n; i++) {
    const wf_param *p = wf_model_params(x.m)->param[i];
    float *a = values(p), *b = values(wf_model_params(y.m)->param[i]);
    for (int64_t k = 0; k < p->numel; k++) {
      uint32_t bits;
      memcpy(&bits, &a[k], 4);
      bits &= 0xffff0000u; /* the copy cut the last bits off */
      ck_assert(memcmp(&bits, &b[k], 4) == 0);
    }
    free(a);
    free(b);
  }
  close_ours(&x);
  close_ours(&y);
}
END_TEST

/* Weights to start a run from, also in f64. */
START_TEST(start_from) {
  char yaml[2048];
  ours x, y;
  prepare(2);
  open_checkpoint(&x, checkpoint);
  snprintf(yaml, sizeof yaml, "run: {precision: f64}\n%s", configs[2]);
  open_ours(&y, yaml, strlen(yaml));
  for (int theirs = 0; theirs < 2; theirs++) {
    OK(wf_params_init(wf_model_params(y.m), 1));
    OK(wf_load_weights(theirs ? out_dir : checkpoint, &y.cfg, wf_model_params(y.m)));
    for (int i = 0; i < wf_model_params(x.m)->n; i++) {
      const wf_param *p = wf_model_params(x.m)->param[i];
      float *a = values(p);
      double *b = malloc((size_t)p->numel * sizeof *b);
      OK(wf_to_host(wf_model_params(y.m)->param[i]->value, b));
      for (int64_t k = 0; k < p->numel; k++) ck_assert((double)a[k] == b[k]);
      free(a);
      free(b);
    }
  }
  close_ours(&x);
  close_ours(&y);
}
END_TEST

/* ---- what is refused ---- */

static void assert_import_fails(const char *from, wf_status want, const char *message) {
  wf_status s = wf_convert_import(from, result, true, NULL);
  ck_assert_msg(s == want, "status %d, not %d: %s", (int)s, (int)want, wf_error_message());
  ck_assert_msg(strstr(wf_error_message(), message) != NULL, "'%s' is not in '%s'", message,
                wf_error_message());
  ck_assert_msg(strstr(wf_error_message(), in_dir) != NULL, "%s", wf_error_message());
  ck_assert(!wf_file_exists(result));
}

START_TEST(bad_weights) {
  prepare(0);
  copy_tensors(source, target, &(edit){.drop = "transformer.h.1.mlp.c_fc.bias"});
  assert_import_fails(in_dir, WF_ENOTFOUND, "transformer.h.1.mlp.c_fc.bias");
  copy_tensors(source, target, &(edit){.cut = "transformer.wte.weight"});
  assert_import_fails(in_dir, WF_ESHAPE, "transformer.wte.weight is [60, 24], the model has [61, 24]");
  copy_tensors(source, target, &(edit){.extra = "score.weight"});
  assert_import_fails(in_dir, WF_EFORMAT, "score.weight is in the file");
  copy_tensors(source, target, &(edit){0});
  ck_assert_int_eq(truncate(target, 9000), 0);
  assert_import_fails(in_dir, WF_EFORMAT, "model.safetensors");
  OK(wf_remove_file(target));
  assert_import_fails(in_dir, WF_ENOTFOUND, "holds neither");
}
END_TEST

/* A config.json in which `from` is replaced by `to` is refused. */
static void assert_config_fails(const char *from, const char *to, wf_status want, const char *message) {
  char *json, changed[4096];
  int64_t n;
  OK(wf_file_read(temp_path("out/config.json"), 1 << 20, &json, &n));
  const char *at = strstr(json, from);
  ck_assert_msg(at != NULL, "%s is not in %s", from, json);
  n = snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - json), json, to, at + strlen(from));
  OK(wf_file_write(temp_path("in/config.json"), changed, n));
  wf_free(json);
  assert_import_fails(in_dir, want, message);
}

START_TEST(bad_gpt2_configs) {
  prepare(0);
  copy_tensors(source, target, &(edit){0});
  assert_config_fails("\"gpt2\"", "\"bloom\"", WF_EUNSUPPORTED, "bloom, an architecture");
  assert_config_fails("\"model_type\": ", "\"model\": ", WF_EFORMAT, "model_type is missing");
  assert_config_fails("gelu_new", "relu", WF_EUNSUPPORTED, "activation_function is relu");
  assert_config_fails("\"n_embd\": 24", "\"n_embd\": \"24\"", WF_EFORMAT, "n_embd is not a positive integer");
  assert_config_fails("\"n_head\": 3", "\"n_head\": 0", WF_EFORMAT, "n_head is not a positive integer");
  assert_config_fails("\"n_head\": 3", "\"n_head\": 5", WF_EINVAL, "5 heads");
  assert_config_fails("\"n_layer\": 2", "\"layers\": 2", WF_EFORMAT, "n_layer is missing");
  assert_config_fails("\"n_layer\": 2", "\"n_layer\": 200000", WF_EINVAL, "200000");
  assert_config_fails("\"scale_attn_by_inverse_layer_idx\": false",
                      "\"scale_attn_by_inverse_layer_idx\": true", WF_EUNSUPPORTED,
                      "scale_attn_by_inverse_layer_idx is true");
  assert_config_fails("{", "{,", WF_EFORMAT, "no JSON");
  OK(wf_remove_file(temp_path("in/config.json")));
  assert_import_fails(target, WF_ENOTFOUND, "config.json");
}
END_TEST

START_TEST(bad_llama_configs) {
  prepare(2);
  copy_tensors(source, target, &(edit){0});
  assert_config_fails("\"default\"", "\"llama3\"", WF_EUNSUPPORTED, "rope_parameters.rope_type is llama3");
  assert_config_fails("\"attention_dropout\": 0.0",
                      "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}", WF_EUNSUPPORTED,
                      "rope_scaling.type is linear");
  assert_config_fails("\"silu\"", "\"gelu\"", WF_EUNSUPPORTED, "hidden_act is gelu");
  assert_config_fails("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4", WF_EINVAL, "kv_heads");
  assert_config_fails("\"attention_bias\": false", "\"attention_bias\": true", WF_ENOTFOUND, "q_proj.bias");
  assert_config_fails("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": 0", WF_EFORMAT,
                      "tie_word_embeddings is not true or false");
}
END_TEST

/* The rotary base where older files have it. */
START_TEST(older_config) {
  static const char json[] = "{\"model_type\": \"llama\", \"hidden_size\": 24, \"num_hidden_layers\": 2, "
                             "\"num_attention_heads\": 6, \"intermediate_size\": 37, \"vocab_size\": 61, "
                             "\"rope_theta\": 12345.0, \"rope_scaling\": null}";
  const wf_family *f;
  char *yaml;
  OK(wf_family_read_config("config.json", json, strlen(json), &f, &yaml));
  ck_assert_str_eq(wf_family_name(f), "llama");
  ck_assert_ptr_nonnull(strstr(yaml, "rope_base: 12345"));
  ck_assert_ptr_null(strstr(yaml, "kv_heads")); /* as many as heads */
  ck_assert_ptr_nonnull(strstr(yaml, "tie_embeddings: false"));
  wf_free(yaml);
}
END_TEST

/* The original Mamba's config: rows are padded, and its one name that differs is read. */
START_TEST(original_mamba) {
  static const char json[] =
      "{\"d_model\": 24, \"n_layer\": 3, \"vocab_size\": 59, \"ssm_cfg\": {\"d_state\": 5, "
      "\"dt_rank\": 3}, \"rms_norm\": true, \"residual_in_fp32\": true, "
      "\"fused_add_norm\": true, \"pad_vocab_size_multiple\": 61}";
  ours x, y;
  prepare(MAMBA);
  OK(wf_file_write(temp_path("in/config.json"), json, (int64_t)strlen(json)));
  copy_tensors(source, target,
               &(edit){.from = "backbone.embeddings.weight", .to = "backbone.embedding.weight"});
  OK(wf_convert_import(in_dir, result, true, NULL));
  open_checkpoint(&x, checkpoint);
  open_checkpoint(&y, result);
  assert_same_weights(wf_model_params(x.m), wf_model_params(y.m));
  close_ours(&x);
  close_ours(&y);
}
END_TEST

/* The same model as the CUDA backend lays it out: of a head, its recurrent kernel (in, gate, out) and its
 * bias (gate, out), where the vanilla one has (gate, out, in), and (gate, head, out). */
static void to_cuda(const char *name, float *x, int64_t n) {
  enum { H = 3, D = 8, G = 4 };
  float *y = malloc((size_t)n * sizeof *y);
  memcpy(y, x, (size_t)n * sizeof *y);
  for (int h = 0; h < H; h++)
    for (int g = 0; g < G; g++)
      for (int o = 0; o < D; o++) {
        if (strstr(name, "_bias_")) x[(h * G + g) * D + o] = y[(g * H + h) * D + o];
        for (int i = 0; i < D && strstr(name, "_recurrent_kernel_"); i++)
          x[((h * D + i) * G + g) * D + o] = y[((h * G + g) * D + o) * D + i];
      }
  free(y);
}

START_TEST(cuda_xlstm) {
  ours x, y;
  char *json;
  int64_t n;
  prepare(MIXED_XLSTM);
  OK(wf_file_read(temp_path("in/config.json"), 1 << 20, &json, &n));
  char *at = strstr(json, "vanilla");
  ck_assert_ptr_nonnull(at);
  memcpy(at, "cuda\"  ", 7); /* and the rest of the word, with its quote, as blanks */
  at[7] = ' ';
  OK(wf_file_write(temp_path("in/config.json"), json, n));
  wf_free(json);
  copy_tensors(source, target, &(edit){.change = to_cuda});
  OK(wf_convert_import(in_dir, result, true, NULL));
  open_checkpoint(&x, checkpoint);
  open_checkpoint(&y, result);
  assert_same_weights(wf_model_params(x.m), wf_model_params(y.m));
  close_ours(&x);
  close_ours(&y);
}
END_TEST

static void assert_inexpressible(const char *model, const char *gpt2, const char *llama) {
  char yaml[2048];
  wf_config cfg;
  const wf_family *f;
  snprintf(yaml, sizeof yaml, "model: {d_model: 24, %s}\n" TAIL, model);
  OK(wf_config_parse(&cfg, "test.yaml", yaml, strlen(yaml), NULL, 0, wf_types));
  ck_assert_int_eq(wf_family_of(&cfg, &f), WF_EUNSUPPORTED);
  ck_assert_msg(strstr(wf_error_message(), gpt2) && strstr(wf_error_message(), llama), "%s",
                wf_error_message());
  ck_assert_str_ne(wf_error_hint(), "");
  wf_config_free(&cfg);
}

#define BLOCKS(mixer, mlp) "blocks: [{mixer: {type: " mixer "}, mlp: " mlp "}]"

START_TEST(inexpressible) {
  assert_inexpressible(BLOCKS("lightning", "{type: swiglu}"), "none has the mixer lightning", "");
  assert_inexpressible(BLOCKS("attention, window: 128", "{type: swiglu}"), "GPT-2",
                       "Llama: block 0: mixer.window is 128, not 0");
  assert_inexpressible("logit_softcap: 30, " BLOCKS("attention", "{type: swiglu}"),
                       "GPT-2: the norm is rmsnorm", "Llama: the logits are capped");
  assert_inexpressible("norm: layernorm, norm_bias: false, " BLOCKS("attention", "{type: swiglu}"),
                       "GPT-2: the norms have no bias", "Llama: the norm is layernorm");
  assert_inexpressible(BLOCKS("attention", "none"), "GPT-2", "Llama: block 0: the mlp is none, not swiglu");
  assert_inexpressible("blocks: [{norm: layernorm, mixer: {type: attention}, mlp: {type: swiglu}}]", "GPT-2",
                       "block 0 has another norm");
  assert_inexpressible("norm: layernorm, " BLOCKS("attention, position: learned", "{type: gelu}"),
                       "GPT-2: block 0: mixer.bias is false, not true", "Llama: the norm is layernorm");
  assert_inexpressible("norm: layernorm, " BLOCKS("attention, position: learned, bias: true, kv_heads: 2",
                                                  "{type: gelu, bias: true}"),
                       "GPT-2: 2 key and value heads for 4 heads", "Llama");
  assert_inexpressible("norm: layernorm, " BLOCKS("attention, position: learned, bias: true, head_dim: 8",
                                                  "{type: gelu, bias: true}"),
                       "GPT-2: the heads are 32 wide together, not 24", "Llama");
  assert_inexpressible("blocks: [{mixer: {type: attention}, mlp: {type: swiglu}}, "
                       "{mixer: {type: attention, heads: 2}, mlp: {type: swiglu}}]",
                       "GPT-2", "Llama: blocks 0 and 1 differ in mixer.heads");
  assert_inexpressible("blocks: [{mixer: [{type: attention}, {type: attention}], mlp: {type: swiglu}}]",
                       "GPT-2", "Llama: block 0 has mixers beside each other");
  assert_inexpressible("blocks: [{repeat: 2, share: a, mixer: {type: attention}, mlp: {type: swiglu}}]",
                       "GPT-2", "Llama: block 0 shares its weights");
}
END_TEST

/* ---- tokenizers and the command ---- */

START_TEST(tokenizer_comes_along) {
  char *json;
  int64_t n;
  bool speaks = false;
  wf_tokenizer *t;
  OK(wf_file_read(GOLDEN "tokenizer_gpt2.json", 1 << 26, &json, &n));
  OK(wf_tokenizer_json(json, (size_t)n, &t));
  char yaml[2048];
  snprintf(yaml, sizeof yaml,
           "model: {d_model: 8, vocab: %lld, tie_embeddings: false, blocks: [{mixer: {type: attention}, "
           "mlp: {type: swiglu, width: 8}}]}\n" TAIL,
           (long long)wf_tokenizer_vocab(t));
  ours o;
  open_ours(&o, yaml, strlen(yaml));
  randomise(wf_model_params(o.m));
  save_ours(&o, temp_path("a.h5"), NULL, 0);
  close_ours(&o);
  OK(wf_convert_export(temp_path("a.h5"), temp_path("out"), true, NULL));
  OK(wf_file_write(temp_path("out/tokenizer.json"), json, n));
  OK(wf_convert_import(temp_path("out"), temp_path("b.h5"), true, &speaks));
  ck_assert(speaks);
  wf_loaded l; /* as weft generate opens it */
  OK(wf_loaded_open(temp_path("b.h5"), true, NULL, 0, &l));
  ck_assert_int_eq(wf_tokenizer_vocab(l.tokenizer), wf_tokenizer_vocab(t));
  wf_loaded_close(&l);
  OK(wf_convert_export(temp_path("b.h5"), temp_path("again"), true, NULL));
  assert_same_file(temp_path("again/tokenizer.json"), GOLDEN "tokenizer_gpt2.json");
  OK(wf_convert_import(temp_path("out"), temp_path("b.h5"), false, &speaks));
  ck_assert(!speaks);

  prepare(2); /* 61 rows are not enough for it */
  OK(wf_file_write(temp_path("out/tokenizer.json"), json, n));
  ck_assert_int_eq(wf_convert_import(out_dir, result, true, NULL), WF_EFORMAT);
  ck_assert_ptr_nonnull(strstr(wf_error_message(), "61 rows"));
  ck_assert_ptr_nonnull(strstr(wf_error_hint(), "--tokenizer=false"));
  OK(wf_convert_import(out_dir, result, false, NULL));
  wf_tokenizer_free(t);
  wf_free(json);
}
END_TEST

static int weft(const char *arguments) {
  char line[4096];
  snprintf(line, sizeof line, "cd %s && %s %s >log 2>&1", temp_dir, WEFT_PROGRAM, arguments);
  int status = system(line);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void assert_log(const char *part) {
  char *log;
  OK(wf_file_read(temp_path("log"), 1 << 20, &log, &(int64_t){0}));
  ck_assert_msg(strstr(log, part) != NULL, "'%s' is not in '%s'", part, log);
  wf_free(log);
}

START_TEST(command) {
  prepare(0);
  ck_assert_int_eq(weft("convert a.h5 theirs"), 0);
  assert_log("model type gpt2");
  assert_same_file(temp_path("theirs/model.safetensors"), temp_path("out/model.safetensors"));
  ck_assert_int_eq(weft("convert theirs back.h5"), 0);
  assert_log("without a tokenizer");
  ck_assert_int_eq(weft("convert theirs back.h5"), 1);
  assert_log("--overwrite");
  ck_assert_int_eq(weft("convert theirs back.h5 --overwrite"), 0);
  ck_assert_int_eq(weft("convert nothing out2"), 1);
  assert_log("nothing: no checkpoint there");
  ck_assert_int_eq(truncate(temp_path("back.h5"), 5000), 0);
  ck_assert_int_eq(weft("convert back.h5 out3"), 1);
  assert_log("cut short");
  ck_assert(!wf_file_exists(temp_path("out3")));
}
END_TEST

START_TEST(allocation_failures) {
  prepare(2);
  int64_t live = wf_mem_live(), n = 0;
  wf_status s;
  do {
    wf_mem_fail_at(++n);
    s = wf_convert_import(out_dir, result, true, NULL);
    wf_mem_fail_at(0);
    ck_assert_msg(s == WF_OK || s == WF_ENOMEM, "allocation %lld: %s", (long long)n, wf_error_message());
    ck_assert_int_eq(wf_mem_live(), live);
  } while (s != WF_OK);
  ck_assert_int_gt(n, 200);
  n = 0;
  do {
    wf_mem_fail_at(++n);
    s = wf_convert_export(checkpoint, in_dir, true, NULL);
    wf_mem_fail_at(0);
    ck_assert_msg(s == WF_OK || s == WF_ENOMEM, "allocation %lld: %s", (long long)n, wf_error_message());
    ck_assert_int_eq(wf_mem_live(), live);
  } while (s != WF_OK);
  ck_assert_int_gt(n, 200);
}
END_TEST

static Suite *convert_suite(void) {
  Suite *s = suite_create("convert");
  TCase *c = tcase_create("convert");
  tcase_add_checked_fixture(c, temp_dir_make, temp_dir_remove);
  tcase_add_loop_test(c, round_trip, 0, N_CONFIGS);
  tcase_add_test(c, bare_names);
  tcase_add_test(c, tied_copy);
  tcase_add_test(c, shards);
  tcase_add_test(c, half_precision);
  tcase_add_test(c, start_from);
  tcase_add_test(c, bad_weights);
  tcase_add_test(c, bad_gpt2_configs);
  tcase_add_test(c, bad_llama_configs);
  tcase_add_test(c, older_config);
  tcase_add_test(c, original_mamba);
  tcase_add_test(c, cuda_xlstm);
  tcase_add_test(c, inexpressible);
  tcase_add_test(c, tokenizer_comes_along);
  tcase_add_test(c, command);
  tcase_add_test(c, allocation_failures);
  suite_add_tcase(s, c);
  return s;
}

WF_CHECK_MAIN(convert_suite)
