/* What the files of convert share: a family's tables. */
#ifndef WF_EXPERIMENTS_CONVERT_IMPL_H
#define WF_EXPERIMENTS_CONVERT_IMPL_H

#include "experiments/convert.h"

enum { WF_FAMILY_PARTS = 3 };

/* One tensor of theirs: our parameters stand side by side along its outputs. # is the number of a block. */
typedef struct wf_family_rule {
  const char *theirs, *ours[WF_FAMILY_PARTS];
  bool transposed; /* (in, out) instead of (out, in) */
} wf_family_rule;

/* A layer's option and the value it must have; NULL: any. Options not listed must have their default. */
typedef struct wf_family_need {
  const char *option, *value;
} wf_family_need;

struct wf_family {
  const char *name;         /* model_type */
  const char *title;        /* for people */
  const char *architecture; /* the class that opens it */
  const char *prefix;       /* of all names but the head's; a file may lack it */
  const wf_family_rule *rules;
  const char *const *ignored; /* ends of names that carry no weight */
  int norm;
  bool plain_heads; /* each has its own keys and values, d_model / heads wide */
  const char *mixer, *mlp;
  const wf_family_need *mixer_needs, *mlp_needs;
};

extern const wf_family wf_family_gpt2, wf_family_llama;
extern const wf_family *const wf_families[]; /* ends with NULL */

/* A layer's option of type i64; `automatic` where it says auto. */
int64_t wf_part_i64(const wf_config_part *part, const char *name, int64_t automatic);
double wf_part_f64(const wf_config_part *part, const char *name);
bool wf_part_bool(const wf_config_part *part, const char *name);

#endif
