/* config: what a run is, read from YAML into plain structs.
 *
 * Each section below is one struct with one table of typed options (experiments/config_sections.c); its keys,
 * defaults, ranges and help are written there and nowhere else. Mixers, MLPs, optimisers and schedules bring
 * their own tables, found by name through wf_config_types, so a new layer needs no line here.
 *
 *     wf_config c;
 *     WF_TRY(wf_config_load(&c, "nano.yaml", sets, n_sets, wf_types));
 *     ...
 *     wf_config_free(&c);
 *
 * Overrides (--set a.b=c) change the tree before it is read, so that they are checked like the file. Every
 * error names file:line:column (or the override) and, for an unknown name, the nearest valid one.
 */
#ifndef WF_EXPERIMENTS_CONFIG_H
#define WF_EXPERIMENTS_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/option.h"
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- parts with tables of their own --- */

typedef enum wf_config_kind {
  WF_CONFIG_MIXER,
  WF_CONFIG_MLP,
  WF_CONFIG_OPTIMIZER,
  WF_CONFIG_SCHEDULE,
  WF_CONFIG_KINDS
} wf_config_kind;

typedef struct wf_config_type {
  const char *name, *help;
  const wf_option *options;
  size_t options_size; /* bytes of the struct the table describes */
} wf_config_type;

/* The index-th type of a kind, counted from 0; false beyond the last. What it gives lives for ever. */
typedef bool (*wf_config_types)(wf_config_kind kind, int index, wf_config_type *out);

/* What exists in this build: layers, optimisers and schedules from their registries. */
bool wf_types(wf_config_kind kind, int index, wf_config_type *out);

bool wf_config_find_type(wf_config_types types, wf_config_kind kind, const char *name, wf_config_type *out);
const char *wf_config_kind_name(wf_config_kind kind); /* "mixer", ... as in the config */

/* An unknown name: WF_EINVAL with the nearest one, or all, as hint. */
wf_status wf_config_unknown_type(wf_config_types types, wf_config_kind kind, const char *name);

typedef struct wf_config_part {
  const char *type; /* NULL: none (a mixer or MLP) */
  const wf_option *table;
  void *options; /* the struct of `table`, owned */
  char *where;   /* "file:line:column", for errors found later */
} wf_config_part;

/* --- sections --- */

enum { WF_DEVICE_CPU, WF_DEVICE_CUDA };
enum { WF_PRECISION_F32, WF_PRECISION_F64 };
enum { WF_SPLIT_VALIDATION, WF_SPLIT_TEST };
enum { WF_CARRIER_SELF, WF_CARRIER_MPI, WF_CARRIER_NCCL }; /* parallel.transport */

typedef struct wf_config_run {
  char *name, *dir; /* never NULL after loading: the file's name, runs/NAME */
  int64_t seed, threads;
  int device, precision;
} wf_config_run;

typedef struct wf_config_data {
  char *store;
  int64_t seq_len, prefetch;
  bool pack, shuffle;
} wf_config_data;

/* A block, or (n_blocks > 0) a group of blocks that `repeat` repeats in turn. */
typedef struct wf_config_block {
  int64_t repeat;
  int norm;    /* wf_norm_kind, or -1: the model's */
  char *share; /* or NULL */
  wf_config_part mixer, mlp;
  wf_config_part *beside; /* further mixers, in parallel with `mixer` */
  size_t n_beside;
  struct wf_config_block *blocks;
  size_t n_blocks;
  char *where;
} wf_config_block;

typedef struct wf_config_model {
  int64_t d_model, vocab, max_positions;
  int norm; /* wf_norm_kind */
  double norm_eps, dropout, init_std, logit_softcap;
  bool tie_embeddings, scale_residual, norm_bias;
  wf_config_block *blocks;
  size_t n_blocks;
} wf_config_model;

typedef struct wf_config_train {
  int64_t steps, batch_tokens, accumulation, stream, max_skipped;
  double clip, z_loss, ema;
  bool carry_state, recompute, ema_warmup;
  char *init, *rules; /* or NULL */
  wf_config_part optimizer, schedule;
} wf_config_train;

typedef struct wf_config_parallel {
  int64_t data, sequence, zero, bucket;
  int layout, attention, scan, serial, relayout, transport;
  bool bitwise;
  char *link; /* "auto", or as experiments/link.h reads it */
  double timeout, step_timeout;
} wf_config_parallel;

typedef struct wf_config_eval {
  int64_t every, batches;
  int split;
} wf_config_eval;

typedef struct wf_config_checkpoint {
  int64_t every, keep;
} wf_config_checkpoint;

typedef struct wf_config_log {
  int64_t every;
  double smoothing;
} wf_config_log;

typedef struct wf_config {
  wf_config_run run;
  wf_config_data data;
  wf_config_model model;
  wf_config_train train;
  wf_config_parallel parallel;
  wf_config_eval eval;
  wf_config_checkpoint checkpoint;
  wf_config_log log;
} wf_config;

typedef struct wf_config_section {
  const char *name, *help;
  const wf_option *table;
  size_t offset;             /* of its struct in wf_config */
  const char *const *nested; /* keys that are not options, NULL-terminated: blocks; optimizer, schedule */
} wf_config_section;

extern const wf_config_section wf_config_sections[]; /* ends with a NULL name */
extern const wf_option wf_config_block_table[];      /* repeat, norm, share */

/* --- reading --- */

/* Read, override, check. `sets` are n_sets texts "a.b=value". On failure *out holds nothing to free. */
wf_status wf_config_load(wf_config *out, const char *path, const char *const *sets, size_t n_sets,
                         wf_config_types types);

/* The same for n bytes at hand (a checkpoint's stored config); `name` stands in messages. */
wf_status wf_config_parse(wf_config *out, const char *name, const char *bytes, size_t n,
                          const char *const *sets, size_t n_sets, wf_config_types types);

void wf_config_free(wf_config *c);

/* The model's layers in order, groups and repeats written out: n pointers into c. wf_free(*out). */
wf_status wf_config_layers(const wf_config *c, const wf_config_block ***out, size_t *n);

/* Every layer's own check of its options against the width and each other. An error stands at the layer's
 * place in the file. (config_layers.c) */
wf_status wf_config_check_layers(const wf_config *c);

double wf_config_norm_eps(const wf_config *c); /* model.norm_eps, or what auto means */

/* --- writing and comparing (config_print.c, config_resume.c) --- */

/* Every value, defaults included, as YAML that loads to the identical config. wf_free(*text). */
wf_status wf_config_print(const wf_config *c, char **text);

/* The reference of all keys, in Markdown. wf_free(*text). */
wf_status wf_config_docs(wf_config_types types, char **text);

/* A table of options, a line each with type, default, range and help, indented by `indent`. For `weft
 * layers`. */
struct wf_text;
wf_status wf_config_describe(struct wf_text *out, const wf_option *table, int indent);

/* Whether a run stored as `stored` may go on as `now`: only keys marked resumable may differ, others are
 * refused naming both values. Where `now` says auto and `stored` holds what auto became, `now` takes that. */
wf_status wf_config_resume(const wf_config *stored, wf_config *now);

/* Sequences of a micro-batch, over all ranks of data. */
static inline int64_t wf_config_sequences(const wf_config *cfg) {
  return cfg->train.batch_tokens / cfg->data.seq_len / cfg->train.accumulation;
}

#ifdef __cplusplus
}
#endif

#endif
