/* What the descriptions of ops with a state share for the carrying of it across cuts (wf_carry). */
#ifndef WF_CORE_OPS_CARRY_IMPL_H
#define WF_CORE_OPS_CARRY_IMPL_H

#include "core/op_def.h"

/* fade.c: out [lanes, ...] = the sums of g [n, ...] over the rows of `table` that take and leave, or e to
 * their power; a lane without such a row has 0, or 1. Where there are rates [d, N] sums of g [n, d] times
 * these, [lanes, d, N]. */
wf_status wf_fade_into(wf_ctx *c, wf_tensor *g, wf_tensor *table, wf_tensor *rates, bool power,
                       wf_tensor *out);

#endif
