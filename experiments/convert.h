/* convert: weights and configs in the layouts of the reference implementations.
 *
 * A family is a table of name patterns, which tensors of theirs are which of ours, a table of the keys of its
 * config.json, and what a config must have that it can express. Reading and writing go over the same tables.
 * The families stand in convert_*.c; one more is a file of tables and a line in convert_families.c.
 */
#ifndef WF_EXPERIMENTS_CONVERT_H
#define WF_EXPERIMENTS_CONVERT_H

#include "core/safetensors.h"
#include "experiments/config.h"
#include "layers/param.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_family wf_family;

const wf_family *wf_family_find(const char *name); /* "gpt2", "llama"; NULL when unknown */
const char *wf_family_name(const wf_family *f);

/* The family that can express the config's model. WF_EUNSUPPORTED with the reason for each when none can. */
wf_status wf_family_of(const wf_config *cfg, const wf_family **out);

/* ---- weights ---- */

/* Fill every parameter from the tensor that the family's table names, `prefix` put before its name: "", or,
 * for a file's gradients, another; they are not shifted as some weights are. F16, BF16 and F64 are converted.
 * Names may lack the family's own prefix ("transformer."). Errors name the first tensor that is missing or of
 * another shape. */
wf_status wf_family_read(const wf_family *f, const wf_safetensors *st, const char *prefix, wf_params *params);

/* WF_EFORMAT naming a tensor of `st` that belongs to no parameter; masks and the copy of a tied head are no
 * matter. */
wf_status wf_family_check_extra(const wf_family *f, const wf_safetensors *st, wf_params *params);

/* Write all parameters to the file `path`, as F32. */
wf_status wf_family_write(const wf_family *f, const char *path, const wf_params *params);

/* ---- configs ---- */

/* From the text of a config.json: the family, and a Weft config as YAML (wf_free). `name` stands in errors.
 */
wf_status wf_family_read_config(const char *name, const char *json, size_t n, const wf_family **f,
                                char **yaml);

/* The config.json of a model with these parameters. Ids of special tokens are -1 where there are none.
 * wf_free(*json). */
wf_status wf_family_write_config(const wf_family *f, const wf_config *cfg, const wf_params *params,
                                 int64_t bos, int64_t eos, char **json);

/* ---- whole models ---- */

/* Is `path` theirs: a safetensors file or index, or a folder with a config.json? */
bool wf_convert_is_foreign(const char *path);

/* A folder of theirs (or its safetensors file, with config.json beside it) into the checkpoint `to`, with its
 * tokenizer.json or tokenizer.model when `tokenizer`. *has_tokenizer (may be NULL): whether one came along.
 */
wf_status wf_convert_import(const char *from, const char *to, bool tokenizer, bool *has_tokenizer);

/* A checkpoint, run or run's name (experiments/assemble.h) into the folder `to`: model.safetensors,
 * config.json and, where the checkpoint has one of theirs, the tokenizer. `averaged`: the moving average's
 * weights where there are any. *family (may be NULL): which one it became. */
wf_status wf_convert_export(const char *from, const char *to, bool averaged, const wf_family **family);

/* Weights to start from, for train.init: a Weft checkpoint, or theirs for a model that a family can express.
 */
wf_status wf_load_weights(const char *path, const wf_config *cfg, wf_params *params);

#ifdef __cplusplus
}
#endif

#endif
