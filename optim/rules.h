/* rules: which parameters decay, which are matrices for a matrix optimiser, and whose learning rate differs.
 *
 * Rules are one line of text, read from left to right; of those that match a parameter the last one that says
 * something decides:
 *
 *     "*.gate.weight no_decay; embedding* lr=0.5; @embedding no_matrix decay"
 *
 * A pattern is a parameter's name with * for any run of characters and ? for any one; or @KIND, the kind its
 * layer declared (norm, bias, gate, embedding, head, ...), @vector for at most one dimension, @matrix for
 * two. Settings: decay, no_decay, matrix, no_matrix, lr=FACTOR. They come after WF_OPT_DEFAULT_RULES.
 */
#ifndef WF_OPTIM_RULES_H
#define WF_OPTIM_RULES_H

#include "core/status.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WF_OPT_DEFAULT_RULES                                                                           \
  "@matrix decay matrix; @vector no_decay; @norm no_decay; @bias no_decay; @gate no_decay no_matrix; " \
  "@embedding no_matrix; @head no_matrix"

typedef struct wf_opt_treatment {
  bool decay, matrix;
  double lr_scale;
} wf_opt_treatment;

/* The treatment of one parameter under the default rules and then `rules` (may be NULL). `kind` is what its
 * layer declared, NULL for nothing. Without any matching rule a parameter decays, is no matrix, and has
 * lr_scale 1; one without two dimensions is never a matrix. WF_EINVAL with the offending rule when the text
 * does not parse, whether it would match or not. */
wf_status wf_opt_rules_apply(const char *rules, const char *name, const char *kind, int ndim,
                             wf_opt_treatment *out);

/* Parse only: for a config, before there are parameters. */
wf_status wf_opt_rules_check(const char *rules);

#ifdef __cplusplus
}
#endif

#endif
