/* neural_memory: a network whose weights are the memory; each token is a step of gradient descent with
 * momentum and forgetting on how well keys give back values (mixers 9): private to layer files.
 *
 *   l(M; k, v) = ||M(k) - v||^2
 *   P_t = eta_t P_{t-1} - theta_t grad l(M_s; k_t, v_t)
 *   M_t = (1 - alpha_t) M_{t-1} + P_t;   o_t = M_t(q_t)
 *
 * M_s are the weights at the start of the token's segment, so that the gradients of a segment are formed at
 * once. M is linear (depth 1) or an MLP; both recurrences act on each of its weight matrices.
 *
 * With X the inputs of a layer and u_j = -theta_j dz_j its gradients, from one piece of L tokens to the next:
 *   B[t, i] = prod_{i < n <= t} (1 - alpha_n),  N[t, i] likewise of eta,  both with 0 for what entered
 *   [f | G] = B[1.., 1..] N[1.., 0..]           what P and the writes of tokens j <= t have come to at t
 *   x_t M_t = B[t, 0] x_t M + f_t x_t P + sum_j G[t, j] (x_t . X_j) u_j
 *   M' = B[L, 0] M + f_L P + (G[L, :] X)^T u;   P' = N[L, 0] P + (N[L, 1..] X)^T u
 * For a cut inside a segment the state has M_s beside M and P.
 *
 * A linear M does not diverge within a segment while sum theta <= 1 there, as |k| = 1. A deep one's curvature
 * grows with its weights and its residual e = M_s(k) - v; steps larger than it allows make the layers'
 * weights grow with each other's. Bounded, theta becomes theta / max(1, C), C = sum_i |X_i|^2 |J_i|^2 +
 * sum_{i < last} |X_i| |e| |J_{i+1}|,   J_last = I,  J_i = W_{i+1} J_{i+1} with |J_last| = 1 and Frobenius'
 * norm of the others: the Gauss-Newton part of l's Hessian and its cross terms of neighbouring layers are
 * about 2 C at most, GELU's slopes taken as 1. So a step is gradient descent's 1 / curvature where that is
 * the smaller; normalised LMS does the same for a linear M, where C = |k|^2 = 1 changes nothing. C is of the
 * token and of M_s alone, hence causal and the same for every cut, and it is differentiated with the rest.
 * (titans-pytorch can clamp the norms of the gradients instead, to a size that has to be found by trial.)
 */
#ifndef WF_LAYERS_NEURAL_MEMORY_H
#define WF_LAYERS_NEURAL_MEMORY_H

#include "layers/inner.h"
#include "layers/seq.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_MEMORY_STATES = 3 * WF_INNER_DEPTH };

typedef struct wf_memory_part {
  int64_t heads;
  int depth, slot;
  bool bounded;                /* theta / max(1, C); the caller's to set */
  wf_param *w[WF_INNER_DEPTH]; /* the memory of a fresh document, learned: [H, in, out] */
} wf_memory_part;

/* "memory.i" [H, in, out] of `depth` layers from K by `hidden` to V, and 3 depth slots one after the other.
 */
wf_status wf_part_memory(wf_build *b, int64_t heads, int64_t K, int64_t hidden, int64_t V, int depth,
                         wf_memory_part *out);
/* The first values of its slots; -> how many. */
int wf_memory_init(wf_ctx *c, const wf_memory_part *p, wf_tensor **init);

typedef struct wf_memory_in {
  wf_tensor *q, *k, *v;               /* [m L, H, K], [m L, H, V] */
  wf_tensor *keep, *momentum, *theta; /* [m L, H]: log(1 - alpha), log eta, theta */
} wf_memory_in;

/* In a piece of wf_seq_serial over segments, of the span's heads: reads and writes -> o [m L, H, V]. */
wf_tensor *wf_use_memory(wf_run *r, const wf_memory_part *p, const wf_seq_span *span, const wf_memory_in *in);
/* M_s(q), the memory at the segment's start -> [m L, H, V]. */
wf_tensor *wf_recall_memory(wf_run *r, const wf_memory_part *p, const wf_seq_span *span, wf_tensor *q);

#ifdef __cplusplus
}
#endif

#endif
