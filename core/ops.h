/* ops: the expressions of core, one function for each op of core/ops.def.
 *
 * All return tensors of the current scope, record themselves on the context's tape, and are sticky on errors
 * (see core/tensor.h). Shapes are written as comments; n is the number of tokens, d a width, "..." any
 * leading dimensions. Real tensors are f32 or f64, all of one op alike; ids and labels are i32. The op's
 * description, kernels and gradient stand in core/ops/<file>.c, the file named in each heading.
 */
#ifndef WF_CORE_OPS_H
#define WF_CORE_OPS_H

#include "core/op.h"
#include "core/rng.h"
#include "core/rows.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- copy.c ---- */
wf_tensor *wf_contiguous(wf_ctx *c, wf_tensor *x);           /* x itself when contiguous */
wf_tensor *wf_cast(wf_ctx *c, wf_tensor *x, wf_dtype dtype); /* real to real: f32, f64, bf16 */

/* ---- view.c: no data moves ---- */
wf_tensor *wf_reshape(wf_ctx *c, wf_tensor *x, int ndim,
                      const int64_t *shape); /* one -1 is inferred; copies if it must */
wf_tensor *wf_transpose(wf_ctx *c, wf_tensor *x, int a, int b);
wf_tensor *wf_slice(wf_ctx *c, wf_tensor *x, int dim, int64_t begin, int64_t end);
wf_tensor *wf_expand(wf_ctx *c, wf_tensor *x, int ndim, const int64_t *shape); /* broadcast view */

/* ---- concat.c ---- */
/* n >= 1 tensors [m_i, ...] of equal trailing shape, one after the other -> [sum of m_i, ...]. */
wf_tensor *wf_concat(wf_ctx *c, int n, wf_tensor *const *x);

/* ---- binary.c: with numpy's broadcasting ---- */
wf_tensor *wf_add(wf_ctx *c, wf_tensor *a, wf_tensor *b);
wf_tensor *wf_sub(wf_ctx *c, wf_tensor *a, wf_tensor *b);
wf_tensor *wf_mul(wf_ctx *c, wf_tensor *a, wf_tensor *b);
wf_tensor *wf_div(wf_ctx *c, wf_tensor *a, wf_tensor *b);

/* ---- unary.c ---- */
wf_tensor *wf_affine(wf_ctx *c, wf_tensor *x, double mul, double add); /* mul x + add */
wf_tensor *wf_exp(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_log(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_sqrt(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_square(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_relu(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_relu2(wf_ctx *c, wf_tensor *x); /* relu(x)^2 */
wf_tensor *wf_sigmoid(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_logsigmoid(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_softplus(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_tanh(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_elu1(wf_ctx *c,
                   wf_tensor *x); /* elu(x) + 1: x + 1 above 0, e^x below (Katharopoulos et al. 2020) */
wf_tensor *wf_cos(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_sin(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_silu(wf_ctx *c, wf_tensor *x);
wf_tensor *wf_gelu(wf_ctx *c, wf_tensor *x);                          /* x Phi(x), by erf */
wf_tensor *wf_gelu_tanh(wf_ctx *c, wf_tensor *x);                     /* GPT-2's approximation by tanh */
wf_tensor *wf_gelu_tanh_grad(wf_ctx *c, wf_tensor *dy, wf_tensor *x); /* dy gelu'(x), for inner losses */

/* ---- reduce.c ---- */
wf_tensor *wf_sum(wf_ctx *c, wf_tensor *x, int dim, bool keep); /* dim < 0 counts from the end */
wf_tensor *wf_mean(wf_ctx *c, wf_tensor *x, int dim, bool keep);
wf_tensor *wf_sum_all(wf_ctx *c, wf_tensor *x); /* scalar [] */
/* Sum to a shape that broadcasts to x's (what gradients of broadcast inputs need). */
wf_tensor *wf_sum_to(wf_ctx *c, wf_tensor *x, int ndim, const int64_t *shape);

/* ---- matmul.c: products through BLAS ---- */
wf_tensor *wf_matmul(wf_ctx *c, wf_tensor *a,
                     wf_tensor *b); /* [..., m, k] x [..., k, n]; equal leading dims */
/* y = x W^T + b: x [..., d], w [out, d], b [out] or NULL. */
wf_tensor *wf_linear(wf_ctx *c, wf_tensor *x, wf_tensor *w, wf_tensor *b);
/* count <= 4 projections of one x: y[i] = x w[i]^T + b[i]; b, or any b[i], may be NULL. Weights that lie
 * adjacent in memory are one product; the outputs are column slices of one buffer. */
void wf_linear_n(wf_ctx *c, wf_tensor *x, int count, wf_tensor *const *w, wf_tensor *const *b, wf_tensor **y);

/* ---- block.c ---- */
/* y[n, b, o] = sum_i w[b, o, i] x[n, b, i]: x [n, B s], w [B, s, s] block-diagonal with small blocks -> [n, B
 * s]. */
wf_tensor *wf_block_linear(wf_ctx *c, wf_tensor *x, wf_tensor *w);

/* ---- embedding.c ---- */
wf_tensor *wf_embedding(wf_ctx *c, wf_tensor *table, wf_tensor *ids); /* [V, d], i32 [n] -> [n, d] */
wf_tensor *wf_gather_rows(wf_ctx *c, wf_tensor *x, wf_tensor *index); /* [n, d], i32 [m] distinct -> [m, d] */

/* ---- norm.c ---- */
typedef enum wf_norm_kind { WF_NORM_RMS, WF_NORM_LAYER } wf_norm_kind;
/* Over the last dimension, in float32 at least. w [d] or NULL (1), b [d] or NULL. RMS: x / sqrt(mean x^2 +
 * eps) * w (Zhang & Sennrich 2019); LAYER: (x - mean) / sqrt(var + eps) * w + b (Ba et al. 2016). x may be
 * row-strided. */
wf_tensor *wf_norm(wf_ctx *c, wf_norm_kind kind, wf_tensor *x, wf_tensor *w, wf_tensor *b, double eps);
/* h = x + r, then the norm of h: one pass over memory. *h receives the sum. */
wf_tensor *wf_add_norm(wf_ctx *c, wf_norm_kind kind, wf_tensor *x, wf_tensor *r, wf_tensor *w, wf_tensor *b,
                       double eps, wf_tensor **h);
wf_tensor *wf_l2norm(wf_ctx *c, wf_tensor *x, double eps); /* x / sqrt(sum x^2 + eps), last dimension */

/* ---- norm_pull.c ---- */
/* dy pulled back through a norm of x without weights: J(x)^T dy. An expression that is differentiated in
 * turn, for inner losses. */
wf_tensor *wf_norm_pull(wf_ctx *c, wf_norm_kind kind, wf_tensor *dy, wf_tensor *x, double eps);

/* ---- decays.c ---- */
/* Decays between tokens: log decays g [..., L] <= 0 -> D [..., L+1, L+1], D[t, j] = exp(g_{j+1} + .. + g_t)
 * for j <= t, else 0. Row and column 0 stand for what is there before the first token: D[t, 0] decays it. */
wf_tensor *wf_decays(wf_ctx *c, wf_tensor *g);

/* ---- glu.c ---- */
typedef enum wf_glu_kind { WF_GLU_SWI, WF_GLU_GE, WF_GLU_SIGMOID } wf_glu_kind;
wf_tensor *wf_glu(wf_ctx *c, wf_glu_kind kind, wf_tensor *gate,
                  wf_tensor *up); /* act(gate) . up (Shazeer 2020) */

/* ---- rotary.c ---- */
/* Rotary positions (Su et al. 2021), half-split pairs: x [n, h, k], pos [n] i64; the first `dim` of k
 * features turn by pos * base^(-2 i / dim). */
wf_tensor *wf_rotary(wf_ctx *c, wf_tensor *x, wf_tensor *pos, double base, int64_t dim);
/* The same for pairs (2 i, 2 i + 1), with positions modulo `period` (0: as they are). */
wf_tensor *wf_rotary_adjacent(wf_ctx *c, wf_tensor *x, wf_tensor *pos, double base, int64_t dim,
                              int64_t period);

/* ---- dropout.c ---- */
/* Inverted dropout with draws keyed by (key, step, sequence, place, column): x [n, d], rows->key [n, 2]. */
wf_tensor *wf_dropout(wf_ctx *c, wf_tensor *x, const wf_rows *rows, double p, wf_rng_key key, int64_t step);
/* The same for one line a row, x [rows, d], keyed by the place where the row's document starts: rows that are
 * cuts of one document draw alike. */
wf_tensor *wf_dropout_documents(wf_ctx *c, wf_tensor *x, const wf_rows *rows, double p, wf_rng_key key,
                                int64_t step);

/* ---- xent.c ---- */
/* Loss of each token, in f32 (f64 for f64): -log softmax(logits)[label] + z (log-sum-exp)^2; 0 where label <
 * 0. logits [n, V], labels i32 [n] -> [n]. The gradient is formed in the storage of the logits when nothing
 * else holds it. z: PaLM's z-loss (Chowdhery et al. 2022), 0 for none. */
wf_tensor *wf_xent(wf_ctx *c, wf_tensor *logits, wf_tensor *labels, double z);

/* ---- attend.c ---- */
typedef enum wf_attend_kind { WF_ATTEND_SOFTMAX, WF_ATTEND_SIGMOID } wf_attend_kind;
typedef struct wf_attend_options {
  double scale;     /* s; applied to q k^T */
  double softcap;   /* cap tanh(x / cap); 0 for none */
  int64_t window;   /* keys t-window+1 .. t; 0 for all */
  int64_t len_bias; /* sigmoid: n of the bias -log n */
  int64_t stride;   /* tokens of a row stand so far apart in q and in the keys' pool; 0 as 1: adjacent */
  wf_attend_kind kind;
} wf_attend_options;
/* A row of attention: its key j is at position j, its query t at position distance + t, which sees
 *     max(0, distance + t - window + 1) <= j <= min(distance + t, keys - 1)
 * (no window: 0 <= j). Where the last query's own key is the last one, keys = distance + queries. A block of
 * the keys of a longer row has fewer: it may end before the first query, with a gap between, or hold none.
 */
typedef struct wf_attend_span {
  int64_t query, queries; /* its first query among n; how many */
  int64_t key;            /* its first key in the pool */
  int64_t distance;       /* at least 0: from the first key to the first query */
  int64_t keys;           /* how many */
} wf_attend_span;
/* The columns of the span tensor are the fields of wf_attend_span in their order. */
enum { WF_ATTEND_SPAN_COLS = sizeof(wf_attend_span) / sizeof(int64_t) };
wf_tensor *wf_attend_spans(wf_ctx *c, int64_t n, const wf_attend_span *span); /* -> [n, COLS] i64 */
/* Causal attention, blockwise with online softmax, no T x T buffer.
 *   q [n, H, K]; k, v [m, Hk, K], [m, Hk, V]: the keys' pool; Hk divides H, query head h reads key head h Hk
 * / H. span [n_rows, 5] i64: the rows (wf_attend_spans). a [n, H], b [m, H] f64 (or NULL both): a_t - b_j is
 * added to the scores (ALiBi, forget gates), their difference formed in double. sink [H] or NULL: a logit
 * that enters the log-sum-exp only.
 * -> o [n, H, V]. Queries without a visible key give 0. Saves q, k, v, o and the log-sum-exp, and the
 * gradient takes these as they are: with o and the log-sum-exp over all keys, that over some of them is their
 * share. (Dao 2023; Su et al.) */
wf_tensor *wf_attend(wf_ctx *c, wf_tensor *q, wf_tensor *k, wf_tensor *v, wf_tensor *span, wf_tensor *a,
                     wf_tensor *b, wf_tensor *sink, const wf_attend_options *o);
/* The same; *lse [n, H] receives the log-sum-exp of the scores, differentiable too (softmax; -inf for queries
 * of no row, or with neither a visible key nor a sink). Attention over keys in parts is their mean by the
 * softmax of these. */
wf_tensor *wf_attend_lse(wf_ctx *c, wf_tensor *q, wf_tensor *k, wf_tensor *v, wf_tensor *span, wf_tensor *a,
                         wf_tensor *b, wf_tensor *sink, const wf_attend_options *o, wf_tensor **lse);
/* merge.c: attention over keys in n <= 16 parts, each with its output [..., V] and log-sum-exp [...]: the
 * mean of the outputs by the softmax of the log-sum-exps, which is attention over all keys at once. -inf
 * counts nothing. */
wf_tensor *wf_merge(wf_ctx *c, int n, wf_tensor *const *o, wf_tensor *const *lse);
/* Write x [n, ...] into cache [lanes, capacity, ...] at each row's lane and place; in place: the result is
 * the cache, as one variable. Its gradient is the slice that was written, taken out of the cache's gradient
 * (and zeroed there). Errors: a row beyond the capacity. */
wf_tensor *wf_cache_append(wf_ctx *c, wf_tensor *cache, wf_tensor *x, const wf_rows *rows);

/* ---- shift.c ---- */
/* Causal depthwise convolution inside each row: x [n, d], weight [d, 1, w], bias [d] or NULL;
 * y_t = b + sum_i W[:, 0, i] x_{t-w+1+i}. state [lanes, w-1, d] or NULL (all rows fresh): the last w-1 inputs
 * of a lane, oldest first; rows that take continue it, *state_out (may be NULL) receives the next. silu
 * applies x sigmoid(x). */
wf_tensor *wf_conv(wf_ctx *c, wf_tensor *x, wf_tensor *weight, wf_tensor *bias, wf_tensor *state,
                   const wf_rows *rows, bool silu, wf_tensor **state_out);
/* Each row's tokens with the w-1 before them in front: x [n, ...] -> [n + rows (w-1), ...], row i's part
 * starting at begin_i + i (w-1); fresh rows have zeros in front. The keys of sliding-window attention. */
wf_tensor *wf_halo(wf_ctx *c, wf_tensor *x, int64_t w, wf_tensor *state, const wf_rows *rows,
                   wf_tensor **state_out);

/* ---- scan.c: the linear-recurrence family ---- */
typedef struct wf_scan_options {
  double scale; /* of q */
  int64_t
      chunk; /* 0: chosen by the kernel; 1: the plain recurrence. Never changes a result beyond rounding */
  bool ones; /* a column of ones beside the values: the states' last column is n, the sum of the keys, and o's
                q n (not with beta) */
} wf_scan_options;
typedef struct wf_scan_in {
  wf_tensor *q, *k; /* [n, G, K], G divides H: head h reads group floor(h G / H) */
  wf_tensor *v;     /* [n, H, V] */
  wf_tensor *g;     /* log decays <= 0: [n, H] one a head, [n, H, K] one a channel of the keys; NULL: none. A
                       constant is an expanded view */
  wf_tensor *w;     /* [n, H] weights of the writes, or NULL (1) */
  wf_tensor *beta;  /* [n, H] the delta rule's, or NULL: S_t = P + beta k^T (v - k P), P = e^g S_{t-1} */
  wf_tensor *init;  /* [H, K, V] or NULL (zero): the learned state of a fresh row */
} wf_scan_in;
/* Linear recurrence S_t = diag(e^{g_t}) S_{t-1} + w_t k_t^T v_t, o_t = scale q_t S_t (mixers 0 to 2); what is
 * given chooses the kernel. state [lanes, H, K, V] or NULL (all rows fresh) -> o [n, H, V], *state_out
 * [lanes, H, K, V] (may be NULL); with `ones` V + 1 for V in these and in init. State in f32 at least. */
wf_tensor *wf_scan(wf_ctx *c, const wf_scan_in *in, wf_tensor *state, const wf_rows *rows,
                   const wf_scan_options *o, wf_tensor **state_out);

/* ---- compose.c: not recorded ---- */
/* The state maps (a2, b2) after (a1, b1) of one kind (core/op.h), lanes first, linked as `link` [lanes] u8
 * (core/rows.h) says of the later -> b, and a where it is not NULL. `turned`: those of gradients. */
wf_status wf_compose_into(wf_ctx *c, wf_carry_kind kind, bool turned, wf_tensor *link, wf_tensor *a2,
                          wf_tensor *b2, wf_tensor *a1, wf_tensor *b1, wf_tensor *a, wf_tensor *b);

/* ---- gates.c, normalise.c: exponential gates and the normalised read around a recurrence (mixers 7) ---- */
/* The gates of a recurrence whose state is stored times e^{-m}, m the stabiliser and drop = m_{t-1} - m_t
 * (scan_max; both constant in the backward): g = f + drop <= 0, the log decay; w = e^{i - m} <= 1, the weight
 * of the write; floor = e^{-m} (no gradient). i, m, drop [n, H]; f [n, H] or NULL (0). */
void wf_exp_gates(wf_ctx *c, wf_tensor *f, wf_tensor *i, wf_tensor *m, wf_tensor *drop, wf_tensor **g,
                  wf_tensor **w, wf_tensor **floor);
/* x [n, H, V] -> [n, H, V + 1]: the last column is 1, so that a recurrence over it sums keys beside values.
 */
wf_tensor *wf_append_one(wf_ctx *c, wf_tensor *x);
/* o [n, H, V + 1], floor [n, H] or NULL (0; no gradient) -> o[..V] / (max(|o[V]|, floor) + eps), [n, H, V].
 */
wf_tensor *wf_normalise(wf_ctx *c, wf_tensor *o, wf_tensor *floor, double eps);

/* ---- feature.c: feature maps of linear attention, over the last dimension ---- */
/* x [..., K] -> softmax of [2 x, -2 x], [..., 2 K] (Zhang et al. 2024, Hedgehog, on a learned projection). */
wf_tensor *wf_hedgehog(wf_ctx *c, wf_tensor *x);
/* x [..., K] -> [1, x K^{-1/4}, x x^T (2 K)^{-1/2}], [..., 1 + K + K^2]: products of two are the second-order
 * Taylor series of e^{<x, y> / sqrt K} (Arora et al. 2024, Based). */
wf_tensor *wf_taylor(wf_ctx *c, wf_tensor *x);

/* ---- scan_diag.c, scan_sum.c, scan_max.c: elementwise scans over the tokens of each row ---- */
/* h_t = e^{g_t} . h_{t-1} + x_t: x [n, d]; g [n, G] log decays <= 0, G divides d: channel c reads g[c G / d];
 * NULL: a running sum, formed in double and rounded. state [lanes, d] or NULL (all rows fresh), init [d] or
 * NULL (zero) -> h [n, d], *state_out [lanes, d] (may be NULL). */
wf_tensor *wf_scan_diag(wf_ctx *c, wf_tensor *x, wf_tensor *g, wf_tensor *state, wf_tensor *init,
                        const wf_rows *rows, wf_tensor **state_out);
/* Running sums c_t = c_{t-1} + x_t. A float c has an absolute error of |c| 2^-24, which c_t - c_j inherits
 * whole: 1e-3 where c is 1e4. As a `pair` c is the sum of two parts of twice the digits, high and low:
 * -> [n, 2, d], state [lanes, 2, d]; init [d] or NULL. Then
 *     c_t - c_j = (high_t - high_j) + (low_t - low_j)
 * is right to about 2^-23 |c_t - c_j| + 2^-47 |c_t|. Whoever reads a pair gives the gradient of c to the
 * high part; that of the low part is ignored. In f64 low is 0. */
wf_tensor *wf_scan_sum(wf_ctx *c, wf_tensor *x, bool pair, wf_tensor *state, wf_tensor *init,
                       const wf_rows *rows, wf_tensor **state_out);
/* m_t = max(g_t + m_{t-1}, x_t): x [n, d], g [n, d] or NULL (0), state [lanes, d], init [d] or NULL (-1e30)
 * -> m [n, d], *drop [n, d] = m_{t-1} - m_t exactly as stored. A stabiliser, constant in the backward: for
 * sums kept times e^{-m} the decay is e^{g + drop} and the weight of x is e^{x - m}, and the gradients of g
 * and x go through those. Neither outputs nor state carry a gradient. */
wf_tensor *wf_scan_max(wf_ctx *c, wf_tensor *x, wf_tensor *g, wf_tensor *state, wf_tensor *init,
                       const wf_rows *rows, wf_tensor **drop, wf_tensor **state_out);

/* ---- scan_selective.c ---- */
typedef struct wf_selective_in {
  wf_tensor *x, *dt; /* [n, d]; dt >= 0 */
  wf_tensor *A;      /* [d, N], negative */
  wf_tensor *B, *C;  /* [n, N] */
  wf_tensor *D;      /* [d] or NULL (0) */
  wf_tensor *init;   /* [d, N] or NULL (zero): the learned state of a fresh row */
} wf_selective_in;
/* Mamba's selective scan (mixers 5): h_t[d,n] = e^{dt_t[d] A[d,n]} h_{t-1}[d,n] + dt_t[d] B_t[n] x_t[d],
 * y_t[d] = sum_n C_t[n] h_t[d,n] + D[d] x_t[d]. state [lanes, d, N] or NULL (all rows fresh) -> y [n, d],
 * *state_out [lanes, d, N] (may be NULL). */
wf_tensor *wf_selective_scan(wf_ctx *c, const wf_selective_in *in, wf_tensor *state, const wf_rows *rows,
                             wf_tensor **state_out);

/* ---- recur.c ---- */
typedef enum wf_recur_cell { WF_RECUR_LSTM, WF_RECUR_GRU, WF_RECUR_SLSTM } wf_recur_cell;
static inline int wf_recur_gates(wf_recur_cell cell) {
  return cell == WF_RECUR_GRU ? 3 : 4;
}
static inline int wf_recur_states(wf_recur_cell cell) {
  return cell == WF_RECUR_LSTM ? 2 : cell == WF_RECUR_GRU ? 1 : 4;
}
typedef struct wf_recur_in {
  wf_recur_cell cell;
  wf_tensor *x[4];   /* the gates' inputs: one [n, gates, H, D], or one [n, H, D] for each gate */
  wf_tensor *r, *b;  /* [H, gates, D, D] (out, in); [gates, H, D] or NULL */
  wf_tensor *init;   /* [states, H, D] or NULL (zero): what a fresh row starts from */
  wf_tensor *h_mask; /* [rows, H, D] or NULL: multiplies a row's h where r reads it */
  wf_tensor *c_mask; /* [n, H, D] or NULL: multiplies a token's candidate (LSTM g, GRU n; not sLSTM) */
} wf_recur_in;
/* Gated recurrence, token by token, of heads that see their own channels: the cell of x and r h_{t-1} + b.
 * Gates and states, h first: LSTM i f g o; h c.  GRU r z n; h.  sLSTM i f z o; h c n m (Beck et al. 2024).
 * state [lanes, states, H, D] or NULL (all rows fresh) -> h [n, H, D], *state_out (may be NULL). */
wf_tensor *wf_recur(wf_ctx *c, const wf_recur_in *in, wf_tensor *state, const wf_rows *rows,
                    wf_tensor **state_out);

#ifdef __cplusplus
}
#endif

#endif
