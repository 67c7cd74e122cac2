/* What the files of segments share: one call of an op over the segments of a rank, divided into blocks of
 * heads or channels.
 *
 *     segments.c         the op that wraps another one: its kernel and its gradient
 *     segments_blocks.c  a call and its blocks
 *     segments_ways.c    the states that enter, by maps and a chain or by the pipe
 *     segments_plan.c    which way, and how many blocks
 *
 * Private to dist.
 */
#ifndef WF_DIST_SEGMENTS_IMPL_H
#define WF_DIST_SEGMENTS_IMPL_H

#include "dist/op_impl.h"
#include "dist/segments.h"

enum { WF_SEG_ATTR = 160 };

typedef struct wf_seg_attr {
  wf_part *part;
  const wf_op *base;
  int32_t transport, blocks;
  double seconds; /* by the cost model; negative: no way serves */
  char attr[WF_SEG_ATTR] __attribute__((aligned(16)));
} wf_seg_attr;
_Static_assert(sizeof(wf_seg_attr) <= WF_MAX_ATTR, "an op's attr holds it");

typedef struct wf_seg_block {
  wf_chain *chain;
  wf_tensor *in[WF_MAX_IN], *out[WF_MAX_OUT], *dout[WF_MAX_OUT], *din[WF_MAX_IN];
  wf_tensor *A, *B; /* maps of the own segments */
  wf_tensor *came;  /* [own lanes]: the states that enter or, backwards, gradients of those that leave */
} wf_seg_block;

typedef struct wf_seg_work {
  wf_ctx *c;
  const wf_seg_attr *a;
  const wf_op *base;
  const wf_carry *carry;
  const wf_part *p;
  int n_in, n_out; /* of the base */
  int64_t K, u;    /* blocks; what is divided into them: heads */
  bool turned;
  wf_tensor *A; /* dense ones that the forward forms and the backward reads; NULL: none is kept */
  wf_seg_block *b;
  wf_pending **wait; /* [own segments, K]: for what enters, by the pipe */
  wf_pending **sent;
  size_t n_sent, cap_sent;
} wf_seg_work;

/* ---- segments_blocks.c ---- */

/* The most blocks that the call can be divided into, up to K; with their heads in *u. */
int64_t wf_seg_blocks(const wf_op *base, int n_in, wf_tensor *const *in, int64_t K, int64_t *u);
/* Block b of x, whose heads are along `dim`; x itself where there is nothing to divide. */
wf_tensor *wf_seg_block_of(const wf_seg_work *w, wf_tensor *x, int dim, int64_t b);
/* Does block b share its head of x with the block before it? */
bool wf_seg_shares(const wf_seg_work *w, const wf_tensor *x, int dim, int64_t b);
/* Lanes of the k-th own segment. */
wf_tensor *wf_seg_lanes(const wf_part *p, wf_tensor *x, int k);

/* Close also after a failed open; the first failure of st and of what is waited for. */
wf_status wf_seg_open(wf_ctx *c, const wf_seg_attr *a, int n_in, wf_tensor *const *in, int n_out,
                      wf_tensor *const *out, bool turned, wf_seg_work *w);
wf_status wf_seg_close(wf_seg_work *w, wf_status st);
/* Block b's inputs and outputs. */
wf_status wf_seg_divide(wf_seg_work *w, int64_t b, wf_tensor *const *in, wf_tensor *const *out);
/* The table of all own rows, or (only >= 0) of those of the only-th own segment among its tokens. Rows of
 * segment k have flags[k] at most; `through`: flags only for rows that take and leave. flags NULL: all. */
wf_tensor *wf_seg_table(wf_ctx *c, const wf_part *p, const int *flags, bool through, int only);
/* A block's tensors, cut to the tokens and rows of the k-th own segment: of an op whose segments can run one
 * by one. */
wf_status wf_seg_cut(const wf_seg_work *w, const wf_seg_block *x, int k, wf_seg_block *cut);
wf_call wf_seg_call(const wf_seg_work *w, wf_tensor *const *in, int n_out, wf_tensor *const *out);
wf_vjp wf_seg_vjp(const wf_seg_work *w, const wf_seg_block *x, wf_tensor *const *in, wf_tensor *const *dout,
                  wf_tensor *const *din, uint32_t add);
/* A tensor of the lanes of `segments` segments of the block's state. */
wf_tensor *wf_seg_state(const wf_seg_work *w, const wf_seg_block *x, int64_t segments);
wf_status wf_seg_post(wf_seg_work *w, wf_tensor *x, int to);

/* ---- segments_ways.c ---- */

/* Runs a block with what enters it in `came`, of the k-th own segment alone or (-1) of all; what leaves goes
 * to the same lanes of gone[b]. */
typedef wf_status (*wf_seg_run)(wf_seg_work *w, int64_t b, int k, void *arg);

/* `start`: what enters the first segment, at the owner of the last one. */
wf_status wf_seg_exchange(wf_seg_work *w, wf_tensor *start, int start_dim, wf_seg_run run, void *arg,
                          wf_tensor **gone);

/* ---- segments_plan.c ---- */

/* Fills in transport, blocks and seconds, by what all ranks know alike. */
void wf_seg_choose(const wf_part *p, const wf_call *call, wf_seg_attr *a);

#endif
