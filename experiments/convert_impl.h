/* What the files of convert share: a family is tables, of names and of config keys. */
#ifndef WF_EXPERIMENTS_CONVERT_IMPL_H
#define WF_EXPERIMENTS_CONVERT_IMPL_H

#include <jansson.h>

#include "experiments/convert.h"
#include "experiments/text.h"
#include "layers/layer.h"

enum { WF_FAMILY_PARTS = 3, WF_FAMILY_BLOCKS = 2 };

/* ---- weights ---- */

typedef enum wf_family_form {
  WF_FORM_SAME,       /* (out, in, ...), as ours */
  WF_FORM_TRANSPOSED, /* (in, out) */
  WF_FORM_MINUS_ONE,  /* a norm's factor, stored minus 1 */
  WF_FORM_TURNED,     /* (head, in, out) where ours is (head, out, in) */
  WF_FORM_HEADS_FIRST /* (head, 4, .) in one dimension, where ours is (4, head, .); `where` names a tensor of
                         as many heads */
} wf_family_form;

/* One tensor of theirs: our parameters stand side by side along its outputs. # is the number of a block. */
typedef struct wf_family_rule {
  const char *theirs, *ours[WF_FAMILY_PARTS];
  wf_family_form form;
  const char *older; /* another name that is read too; NULL */
  const char *where; /* the rule is for blocks with this parameter of ours; NULL: all */
} wf_family_rule;

#define WF_RULE(form_, theirs_, ...) \
  { .theirs = (theirs_), .ours = {__VA_ARGS__}, .form = (form_) }
#define WF_SAME(theirs_, ...) WF_RULE(WF_FORM_SAME, theirs_, __VA_ARGS__)
#define WF_SAME_WITH_BIAS(theirs_, ours_) \
  WF_SAME(theirs_ ".weight", ours_ ".weight"), WF_SAME(theirs_ ".bias", ours_ ".bias")

/* ---- configs ---- */

/* A model to be described in a config.json. */
typedef struct wf_family_model {
  const wf_family *family;
  const wf_config *cfg;
  const wf_config_block *const *block;
  size_t n_blocks;
  const wf_params *params;
  int64_t bos, eos; /* -1: none */
} wf_family_model;

typedef enum wf_key_use { WF_KEY_BOTH, WF_KEY_READ, WF_KEY_WRITE } wf_key_use;

/* A key of config.json and what it is here. */
typedef struct wf_family_key {
  const char *theirs; /* "a.b": b in the object a */
  /* "model.x", "mixer.x", "mlp.x", "repeat" (the number of blocks); for blocks of the second kind "mixer1.x",
   * "mlp1.x". NULL: it must be `missing`, which is all that Weft has. */
  const char *ours;
  const char *missing; /* its value where the file has none; WF_KEEP: ours keeps its default; NULL: it must be
                          there */
  const char *const *words;                  /* theirs and ours in turn, where they differ; NULL-terminated */
  double (*value)(const wf_family_model *m); /* when written, in place of our option's */
  wf_key_use use;
  bool whole; /* a number of ours that is written without a point */
} wf_family_key;

extern const char WF_KEEP[];
/* WF_KEY("n_layer", "repeat", .missing = "12") */
#define WF_KEY(theirs_, ...) \
  { .theirs = (theirs_), .ours = __VA_ARGS__ }

/* What a config.json says, by our names. The last word counts. */
typedef struct wf_family_values {
  struct {
    const char *ours;
    char text[64];
  } item[64];
  int n;
} wf_family_values;
wf_status wf_values_set(wf_family_values *v, const char *ours, const char *fmt, ...) WF_PRINTF(3, 4);
const char *wf_values_get(const wf_family_values *v, const char *ours); /* NULL when unset */

/* ---- families ---- */

/* A layer's option and the value it must have; NULL: any. Options not listed must have their default. */
typedef struct wf_family_need {
  const char *option, *value;
} wf_family_need;

/* A kind of block; blocks of one kind have equal options. */
typedef struct wf_family_block {
  const char *mixer, *mlp; /* mlp NULL: none */
  const wf_family_need *mixer_needs, *mlp_needs;
} wf_family_block;

struct wf_family {
  const char *name;         /* model_type */
  const char *title;        /* for people */
  const char *architecture; /* the class of transformers' kind that opens it; NULL: it is none of those */
  const char *prefix;       /* of all names but the head's; a file may lack it */
  const wf_family_rule *rules;
  const wf_family_key *keys;
  const char *const *ignored; /* ends of names that carry no weight */
  wf_family_block block[WF_FAMILY_BLOCKS];
  int norm;
  bool bare_norms; /* its layer norms have no bias */
  bool softcap;    /* its logits may be capped */
  bool read_only;  /* another family writes its models */
  /* All but what tables say; each may be NULL. */
  bool (*knows)(const json_t *config);                            /* is it its config? model_type says so */
  int (*kind)(const json_t *config, int64_t block);               /* of a block; 0 */
  wf_status (*derive)(const json_t *config, wf_family_values *v); /* what follows from several keys */
  bool (*finish)(json_t *config,
                 const wf_family_model *m);              /* adds to what is written; false: out of memory */
  void (*check)(const wf_family_model *m, wf_text *why); /* what else it cannot express */
};

extern const wf_family wf_family_gpt2, wf_family_llama, wf_family_mamba, wf_family_mamba2, wf_family_retnet,
    wf_family_gla, wf_family_hgrn2, wf_family_deltanet, wf_family_gated_deltanet, wf_family_kda,
    wf_family_xlstm_large, wf_family_xlstm, wf_family_xlstm_cuda, wf_family_mamba_original,
    wf_family_mamba2_original;
extern const wf_family *const wf_families[]; /* ends with NULL */

/* Values for tables. */
double wf_family_vocab(const wf_family_model *m);
double wf_family_norm_eps(const wf_family_model *m);
double wf_family_mlp_width(const wf_family_model *m);
double wf_family_positions(const wf_family_model *m); /* max_positions, or data.seq_len */
double wf_family_kv_heads(const wf_family_model *m);

/* A key's value, or where it is absent or null NULL; "a.b" is looked up in a. */
const json_t *wf_json_value(const json_t *config, const char *key);
/* Sets "a.b" in the object a of o. Takes v. False: out of memory, or v is NULL. */
bool wf_json_put(json_t *o, const char *key, json_t *v);
wf_status wf_json_size(const json_t *config, const char *key, int64_t missing, int64_t *out);

/* Rows of a parameter, 0 when the model has none of that name. */
int64_t wf_rows_of(const wf_params *ps, const char *name);
/* A layer's option; `automatic` where it says auto. */
int64_t wf_part_i64(const wf_config_part *part, const char *name, int64_t automatic);
double wf_part_f64(const wf_config_part *part, const char *name);

#endif
