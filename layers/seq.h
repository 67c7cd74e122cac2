/* seq: the primitives through which alone a layer sees other tokens.
 *
 *   shift   a window of w tokens: convolutions, token shift         seq_shift.c
 *   scan    an affine or max-affine state                           seq_scan.c, seq_diag.c
 *   attend  keys and values                                         seq_attend.c
 *   serial  anything else, segment by segment or token by token     seq_serial.c
 *
 * Each obeys the contract of layers/layer.h: it reads its slots of run->state for rows that take, leaves
 * there for rows that leave, and is differentiable in both. A layer declares the slots with the *_state
 * functions while it is built.
 */
#ifndef WF_LAYERS_SEQ_H
#define WF_LAYERS_SEQ_H

#include "layers/layer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- shift ---- */

/* Slot for a window of w tokens of width d. */
wf_status wf_seq_conv_state(wf_build *b, const char *name, int64_t width, int64_t w, int *slot);
/* Causal depthwise convolution: x [n, d], weight [d, 1, w], bias [d] or NULL -> [n, d]; then SiLU when asked.
 */
wf_tensor *wf_seq_conv(wf_run *r, int slot, wf_tensor *x, wf_tensor *weight, wf_tensor *bias, bool silu);

/* ---- scan ---- */

/* Slot for heads states of K x V. */
wf_status wf_seq_scan_state(wf_build *b, const char *name, int64_t heads, int64_t K, int64_t V, int *slot);
/* The linear recurrence of core/ops.h: wf_scan -> o [n, H, V]. */
wf_tensor *wf_seq_scan(wf_run *r, int slot, const wf_scan_in *in, const wf_scan_options *o);

/* Elementwise scans (core/ops.h: wf_scan_diag, wf_scan_sum, wf_scan_max), seq_diag.c. Slot of d channels for
 * wf_seq_diag and wf_seq_max; of pairs of d for wf_seq_sum. */
wf_status wf_seq_diag_state(wf_build *b, const char *name, int64_t d, int *slot);
wf_status wf_seq_sum_state(wf_build *b, const char *name, int64_t d, int *slot);
/* h_t = e^{g_t} . h_{t-1} + x_t: x [n, d]; g [n, G], G divides d, or NULL (0); init [d] or NULL -> [n, d]. */
wf_tensor *wf_seq_diag(wf_run *r, int slot, wf_tensor *x, wf_tensor *g, wf_tensor *init);
/* c_t = c_{t-1} + x_t as pairs (high, low) whose differences keep their digits: x [n, d] -> [n, 2, d]. */
wf_tensor *wf_seq_sum(wf_run *r, int slot, wf_tensor *x);
/* m_t = max(g_t + m_{t-1}, x_t), without a gradient; g [n, d] or NULL (0); init [d] or NULL (-1e30) -> m [n,
 * d], *drop = m_{t-1} - m_t. */
wf_tensor *wf_seq_max(wf_run *r, int slot, wf_tensor *x, wf_tensor *g, wf_tensor *init, wf_tensor **drop);
/* Slot of d x N states, and Mamba's selective scan over it (core/ops.h: wf_selective_scan) -> [n, d]. */
wf_status wf_seq_selective_state(wf_build *b, const char *name, int64_t d, int64_t N, int *slot);
wf_tensor *wf_seq_selective(wf_run *r, int slot, const wf_selective_in *in);

/* ---- attend ---- */

typedef struct wf_seq_attend_slots {
  int k, v, c;
} wf_seq_attend_slots;

typedef struct wf_seq_attend_in {
  wf_tensor *q, *k, *v; /* [n, H, K], [n, Hk, K], [n, Hk, V] */
  wf_tensor *c;         /* [n, H] f64 or NULL: c_t - c_j is added to the score (a sum of log gates) */
  wf_tensor *sink;      /* [H] or NULL: a logit that takes part in the softmax only */
  const double *slope;  /* [H] on the host or NULL: slope (t - j) is subtracted (ALiBi, Press et al. 2022) */
  wf_tensor **lse;      /* NULL, or receives the log-sum-exp [n, H], for wf_merge with other keys */
} wf_seq_attend_in;

/* Slots for keys and values, and for c of `gates` heads when there are any: the last window-1 of them, or all
 * when window is 0. */
wf_status wf_seq_attend_state(wf_build *b, int64_t kv_heads, int64_t K, int64_t V, int64_t gates,
                              int64_t window, wf_seq_attend_slots *slots);
/* log(1 + position in the document) of each token, [n, 1]. */
wf_tensor *wf_seq_log_position(wf_run *r, wf_dtype dtype);
/* Causal attention -> o [n, H, V]. */
wf_tensor *wf_seq_attend(wf_run *r, const wf_seq_attend_slots *slots, const wf_seq_attend_in *in,
                         const wf_attend_options *o);

/* One pattern of dilated attention (Ding et al. 2023): segments of `segment` tokens counted from the
 * document's start; of each, head h keeps the tokens h mod dilation, and every dilation-th from there. */
typedef struct wf_seq_pattern {
  int64_t segment, dilation;
} wf_seq_pattern;
enum { WF_SEQ_PATTERNS = 16 }; /* at most */
/* Causal attention inside segments, k and v of as many heads as q: for each head, token and pattern that
 * keeps it, the kept tokens of its segment up to itself. The patterns' results are merged as one softmax over
 * all their keys, a key counting once for each pattern that shows it; a token that no pattern keeps gives 0.
 * Slots of the same window: 0, or at least the longest segment. -> o [n, H, V]. */
wf_tensor *wf_seq_dilated(wf_run *r, const wf_seq_attend_slots *slots, wf_tensor *q, wf_tensor *k,
                          wf_tensor *v, int64_t window, int n, const wf_seq_pattern *pattern, double scale);

/* ---- serial ---- */

/* The batch of one call: m rows, each with `len` tokens that begin `offset` tokens into a segment. */
typedef struct wf_seq_span {
  int64_t m, len, offset;
  int64_t head, heads; /* those given of wf_seq_serial_in.heads: from `head` on */
  bool ends;           /* with the segment */
} wf_seq_span;
/* Anything, as a layer over a small batch: x[i] [m len, ...], row after row; r->rows has the m rows, each its
 * own lane, with positions from the segment's start; reads wf_state_in(r->state, slot) [m, ...] of its slots
 * and leaves wf_state_out. -> y [m len, ...]. Other primitives may be used inside, with slots among its own.
 */
typedef wf_tensor *(*wf_seq_piece)(wf_run *r, const void *self, const wf_seq_span *span, wf_tensor *const *x);
typedef struct wf_seq_serial_in {
  int64_t segment; /* tokens of one, counted from each document's start */
  int64_t heads; /* that see nothing of each other: the second dimension of every x, y and state and the first
                    of every init, of which a piece may be given some; 0: there are no such */
  int slot, n_state;      /* fixed slots slot .. slot+n_state-1, declared one after the other */
  wf_tensor *const *init; /* [n_state] what fresh rows start from, learned or zero, in the slots' shapes */
  int n_x;
  wf_tensor *const *x;
  wf_seq_piece piece;
  const void *self;
} wf_seq_serial_in;
/* Runs `piece` over segments one after the other along the rows and all rows at once; a cut inside a segment
 * gives it in several pieces. */
wf_tensor *wf_seq_serial(wf_run *r, const wf_seq_serial_in *in);
/* The heads that a piece is given of a parameter w [heads, ...]. */
wf_tensor *wf_seq_span_heads(wf_ctx *c, const wf_seq_span *span, wf_tensor *w);

/* Gated recurrences, seq_recur.c: serial as it is, one token after the other, as one op. Slot for the states
 * of heads of width D. */
wf_status wf_seq_recur_state(wf_build *b, const char *name, wf_recur_cell cell, int64_t heads, int64_t D,
                             int *slot);
typedef struct wf_seq_recur_dropout {
  const char *site;    /* of the draws: the layer's path */
  double h, candidate; /* probabilities; while training */
} wf_seq_recur_dropout;
/* core/ops.h: wf_recur -> h [n, H, D]. `in` without masks; they are drawn here (NULL: none): one of h for
 * each document and step (Gal & Ghahramani 2016), one of the candidate for each token (Semeniuta et al.
 * 2016). */
wf_tensor *wf_seq_recur(wf_run *r, int slot, const wf_recur_in *in, const wf_seq_recur_dropout *drop);

#ifdef __cplusplus
}
#endif

#endif
