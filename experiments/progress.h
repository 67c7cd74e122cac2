/* progress: what a run shows while it goes: on a terminal one line redrawn in place, elsewhere plain lines.
 *
 *     [=======>        ] 120/300  loss 3.214 (3.301)  12.3k tok/s  0:12 left  lr 0.001  |g| 0.82  61% of peak
 * 312 MiB
 *
 * The number in brackets is the smoothed loss. What does not fit the terminal's width is left out from the
 * end. Times are handed in, so the same calls show the same lines.
 */
#ifndef WF_EXPERIMENTS_PROGRESS_H
#define WF_EXPERIMENTS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of one step; what is not known is NAN and is not shown. */
typedef struct wf_progress_step {
  int64_t step;   /* done so far, from 1 */
  int64_t tokens; /* of this step */
  double loss, lr;
  double grad_norm;
  double matrix_fraction; /* of the machine's measured matrix rate, 0 to 1 */
  double memory;          /* bytes held */
} wf_progress_step;

typedef struct wf_progress {
  FILE *out;
  bool live; /* a terminal */
  int width; /* of it, in letters */
  int64_t steps, every, first;
  double smoothing;
  double start, shown; /* seconds */
  double loss_sum, loss_weight;
  int64_t tokens, window_tokens;
  double window_start, rate; /* tokens a second, over the last seconds */
  bool drawn;                /* a live line stands on the screen */
} wf_progress;

/* A run of `steps` steps that begins after `first` (0 for a new one), a plain line each `every` steps. `out`
 * decides whether it is live; wf_progress_start_as says it instead. `now` in seconds from any beginning. */
void wf_progress_start(wf_progress *p, FILE *out, int64_t first, int64_t steps, int64_t every,
                       double smoothing, double now);
void wf_progress_start_as(wf_progress *p, FILE *out, bool live, int width, int64_t first, int64_t steps,
                          int64_t every, double smoothing, double now);

void wf_progress_step_done(wf_progress *p, const wf_progress_step *s, double now);

/* A line that stays, above the live one: an evaluation, a checkpoint, a warning. No newline at its end. */
void wf_progress_note(wf_progress *p, const char *fmt, ...) WF_PRINTF(2, 3);

/* Time that is not training (evaluation, saving) passed from `since` to `now`: it counts for no rate. */
void wf_progress_pause(wf_progress *p, double since, double now);

/* Ends the live line and prints steps, tokens, time and rate of this run. */
void wf_progress_end(wf_progress *p, int64_t step, double now);

double wf_progress_smoothed(const wf_progress *p); /* the loss; NAN before the first */
double wf_progress_rate(const wf_progress *p);     /* tokens a second lately; NAN before the first step */

#ifdef __cplusplus
}
#endif

#endif
