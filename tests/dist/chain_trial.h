/* chain_trial: an op with a state over the segments of several ranks, beside the same op on the whole
 * sequence.
 *
 * A member is an op of the scan family or its kin; a trial is one of them on one sequence: inputs,
 * cotangents, outputs and gradients of all tokens, in the order of the whole sequence, of which each rank
 * computes its share. Under mpirun every process has what all computed when a run is done.
 */
#ifndef WF_TESTS_DIST_CHAIN_TRIAL_H
#define WF_TESTS_DIST_CHAIN_TRIAL_H

#include "dist/part.h"
#include "tests/dist/ranks.h"

#include <pthread.h>

enum { MAX_X = 6, MAX_W = 3, MAX_ROWS = 16, LANES = 2 };
enum { H = 4, G = 2, K = 3, V = 2, D = 6, N = 5 }; /* heads, of keys, and sizes of the members */

/* ---- the ops: chain_members.c ---- */

typedef struct wf_chain_arg {
  int ndim;
  int64_t shape[2]; /* of a token, or of a weight */
  double lo, hi;
} wf_chain_arg;

typedef struct wf_chain_call {
  wf_ctx *c;
  wf_tensor *x[MAX_X], *w[MAX_W], *state, *out[3]; /* outputs: the tokens', the state */
  const wf_rows *rows;
} wf_chain_call;

typedef struct wf_chain_member {
  const char *name;
  wf_chain_arg x[MAX_X], w[MAX_W]; /* per token; shared by all */
  int state_ndim;
  int64_t state[3];
  int n_y; /* outputs with tokens */
  bool constant;
  bool cut; /* segments of a rank can run one by one: the pipe serves any layout */
  void (*apply)(wf_chain_call *c);
} wf_chain_member;

enum { MEMBERS = 14 };
extern const wf_chain_member wf_chain_members[MEMBERS];

int wf_chain_weight_shape(const wf_chain_arg *a, int64_t shape[3]);
int64_t wf_chain_token_size(const wf_chain_arg *a);
int64_t wf_chain_weight_size(const wf_chain_arg *a);
int64_t wf_chain_state_size(const wf_chain_member *m);

/* ---- sequences and trials: chain_trial.c ---- */

typedef struct wf_chain_sequence {
  const char *name;
  int64_t n_rows, n_tokens, stretch; /* rows are `stretch` times as long as written */
  wf_row row[MAX_ROWS];
} wf_chain_sequence;

enum { SEQUENCES = 3 };
extern const wf_chain_sequence wf_chain_sequences[SEQUENCES];

/* Everything of one case in doubles, in the order of the whole sequence. */
typedef struct wf_chain_numbers {
  double *x[MAX_X], *w[MAX_W], *state, *y[2], *left;
} wf_chain_numbers;

typedef struct wf_chain_trial {
  const wf_chain_member *m;
  wf_chain_sequence seq;
  wf_dtype dtype;
  wf_chain_numbers in, cot, out, grad; /* cot: of y and left; out: y, left; grad: of x, w, state */
  int64_t y_size;                      /* numbers of a token's output */
  wf_dist by;                          /* without its communicator */
  pthread_mutex_t lock;
  wf_comm_counts *forward, *all; /* [ranks]; under mpirun only this rank's is written */
} wf_chain_trial;

void wf_chain_trial_new(const wf_chain_member *m, const wf_chain_sequence *seq, int64_t stretch,
                        wf_dtype dtype, wf_chain_trial *t);
void wf_chain_trial_free(wf_chain_trial *t);
void wf_chain_trial_run(wf_chain_trial *t, int ranks); /* t->by says how */
void wf_chain_trial_whole(wf_chain_trial *t);          /* one rank, as if there were no others */

typedef struct wf_chain_errors {
  double y, left, grad; /* relative, L2; grad: the largest of all inputs' */
} wf_chain_errors;
wf_chain_errors wf_chain_compare(const wf_chain_trial *a, const wf_chain_trial *b);

#endif
