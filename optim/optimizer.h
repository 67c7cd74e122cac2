/* optimizer: updates flat groups of parameters from flat gradients.
 *
 * A group is one tensor of values [N], one of gradients [N] and the ranges of the parameters inside; an
 * optimiser keeps flat buffers of its own beside them ("m", "v") and updates a group in one fused pass that
 * reads and writes each buffer once. Clipping and the division by a count are a factor of the gradient inside
 * that pass. The kinds stand in a table, each with the options that parse, validate and document themselves.
 *
 *     const wf_optimizer_type *type = wf_optimizer_find("adamw");
 *     wf_optimizer_create(ctx, type, options, n_groups, groups, &opt);
 *     wf_grad_measure(ctx, n_groups, groups, 1 / count, clip, &measured);        // optim/clip.h
 *     wf_optimizer_step(opt, wf_schedule_factor(...), measured.scale);           // optim/schedule.h
 */
#ifndef WF_OPTIM_OPTIMIZER_H
#define WF_OPTIM_OPTIMIZER_H

#include "core/option.h"
#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One parameter inside its group. */
typedef struct wf_opt_range {
  const char *name;
  int64_t offset, numel; /* elements from the group's start */
  int ndim;
  const int64_t *shape;
} wf_opt_range;

/* Values and gradients: contiguous, one size and dtype, f32 or f64. Elements outside all ranges (padding) are
 * updated by the elementwise optimisers and left alone by Muon; they must be finite, zero at best. */
typedef struct wf_opt_group {
  wf_tensor *value, *grad;
  bool decay;      /* takes part in weight decay */
  bool matrix;     /* matrices for a matrix optimiser; ranges have two dimensions */
  double lr_scale; /* multiplies the learning rate */
  int n_ranges;
  const wf_opt_range *range;
} wf_opt_group;

enum { WF_OPT_MAX_STATES = 4 };

/* What a kind's step sees. */
typedef struct wf_opt_step {
  wf_ctx *ctx;
  const void *options;
  const wf_opt_group *group;
  wf_tensor *ctl;          /* [WF_CTL_N], see core/ops_optim.h */
  wf_tensor *const *state; /* one for each name */
} wf_opt_step;

typedef struct wf_optimizer_type {
  const char *name, *help;
  const wf_option *options; /* of a struct that begins with `double lr` */
  size_t options_size;
  /* NULL-terminated names of the group's flat state buffers [N], at most WF_OPT_MAX_STATES. */
  const char *const *(*states)(const void *options, const wf_opt_group *group);
  /* Fill the control values for the t-th update of a group, t from 1; `factor` is the schedule's. */
  void (*control)(const void *options, const wf_opt_group *group, double factor, int64_t t, double *ctl);
  wf_status (*step)(const wf_opt_step *s);
} wf_optimizer_type;

int wf_optimizer_type_count(void);
const wf_optimizer_type *wf_optimizer_at(int i);
const wf_optimizer_type *wf_optimizer_find(const char *name); /* NULL when unknown */

typedef struct wf_optimizer wf_optimizer;

/* Options are copied; the groups' tensors are kept; names, ranges and shapes must outlive the optimiser. The
 * state starts at zero, in the dtype of the values, tag "optimizer". WF_ESHAPE naming the group's first
 * parameter when a group is not as described above. Free with wf_optimizer_free(). */
wf_status wf_optimizer_create(wf_ctx *c, const wf_optimizer_type *type, const void *options, int n_groups,
                              const wf_opt_group *groups, wf_optimizer **out);
void wf_optimizer_free(wf_optimizer *opt); /* NULL is allowed */

/* One update of all groups. `factor` multiplies the option lr (a schedule's value), `grad_scale` every
 * gradient. A grad_scale that is not finite skips: nothing changes but the count of skipped steps. On an
 * error (a device failed, no memory) some groups may have been updated already. Reads the gradients only; the
 * first writer of the next step overwrites them. */
wf_status wf_optimizer_step(wf_optimizer *opt, double factor, double grad_scale);

double wf_optimizer_lr(const wf_optimizer *opt); /* the option lr: the rate at factor 1 */
const wf_optimizer_type *wf_optimizer_kind(const wf_optimizer *opt);
int64_t wf_optimizer_steps(const wf_optimizer *opt);          /* updates made, skipped ones not counted */
int64_t wf_optimizer_skipped(const wf_optimizer *opt);        /* skipped in all */
int64_t wf_optimizer_skipped_in_row(const wf_optimizer *opt); /* skipped since the last update */
int64_t wf_optimizer_bytes(const wf_optimizer *opt);          /* of its state */

/* For checkpoints. `steps` and the states are all there is to save. State i of a group: its name, and the
 * flat buffer [N] (borrowed from the optimiser; write into it to resume). */
void wf_optimizer_set_steps(wf_optimizer *opt, int64_t steps, int64_t skipped);
int wf_optimizer_n_groups(const wf_optimizer *opt);
const wf_opt_group *wf_optimizer_group(const wf_optimizer *opt, int group);
int wf_optimizer_n_states(const wf_optimizer *opt, int group);
const char *wf_optimizer_state_name(const wf_optimizer *opt, int group, int i);
wf_tensor *wf_optimizer_state(const wf_optimizer *opt, int group, int i);

/* The part of a flat buffer that belongs to one parameter, in its shape; a view in the current scope. */
wf_tensor *wf_opt_slice(wf_tensor *flat, const wf_opt_range *range);

#ifdef __cplusplus
}
#endif

#endif
