/* parts: what several mixers are made of, declared and run alike: private to layer files.
 *
 * A part is a small struct in the layer's own, filled by a wf_part_* function in init and used by a wf_use_*
 * function in forward.
 */
#ifndef WF_LAYERS_PARTS_H
#define WF_LAYERS_PARTS_H

#include "layers/seq.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- short convolution ---- */

typedef struct wf_conv_part {
  wf_param *weight, *bias; /* [d, 1, w]; NULL: the convolution is absent; [d] or NULL */
  int slot;
  bool silu;
} wf_conv_part;

/* "name.weight" (and "name.bias"): a causal depthwise convolution of w tokens over d channels, then SiLU when
 * asked (mixers, notation). The bias starts from a uniform `init` too, as the references' do, else from 0. */
wf_status wf_part_conv(wf_build *b, const char *name, int64_t d, int64_t w, wf_init init, bool bias,
                       bool silu, wf_conv_part *out);
/* x [n, d] -> [n, d]; x itself where the convolution is absent. */
wf_tensor *wf_use_conv(wf_run *r, const wf_conv_part *p, wf_tensor *x);

/* ---- heads ---- */

/* x [n, heads width] as [n, heads, width], the same variable. */
wf_tensor *wf_as_heads(wf_tensor *x, int64_t heads);

/* x [n, H, K], wave [n, H, 2, K] -> [x . first half, x . second half], [n, H, 2 K]: a turn of each channel,
 * between queries and keys, as cosine and sine. */
wf_tensor *wf_turned_heads(wf_ctx *c, wf_tensor *x, wf_tensor *wave);
/* x [n, G, width] with each head repeated heads / G times, [n, heads, width]; x itself where G = heads. */
wf_tensor *wf_repeat_heads(wf_ctx *c, wf_tensor *x, int64_t heads);
/* Constants [H], on the host, as [n, H] of real type `dtype`: a view that repeats them, such as fixed log
 * decays. */
wf_tensor *wf_head_constants(wf_ctx *c, const double *value, int64_t H, int64_t n, wf_dtype dtype);

/* ---- queries, keys, values ---- */

typedef struct wf_qkv_part {
  wf_param *w[4]; /* q, k, v and the output gate, adjacent; the last may be NULL */
  wf_conv_part conv[3];
  int64_t heads[3];
} wf_qkv_part;

/* "q", "k" and "v" of heads[i] heads of width size[i], then the output gate "g" of `gate` columns (0: none),
 * and short convolutions "q_conv", ... of `conv` tokens with SiLU (0: none). */
wf_status wf_part_qkv(wf_build *b, const int64_t heads[3], const int64_t size[3], int64_t gate, int64_t conv,
                      wf_qkv_part *out);
/* y[0..2] [n, heads, size], y[3] the gate [n, .] or NULL. */
void wf_use_qkv(wf_run *r, const wf_qkv_part *p, wf_tensor *x, wf_tensor *y[4]);
double wf_qkv_weights(const wf_qkv_part *p); /* elements of the projections */
/* What the delta rule takes of y: SiLU where no convolution had one, q and k of unit length; beta, of `pre`
 * [n, heads of v], is its sigmoid, or twice that where eigenvalues may be negative. */
wf_scan_in wf_delta_in(wf_ctx *c, const wf_qkv_part *p, wf_tensor *const y[3], wf_tensor *pre, bool negative);

/* LayerNorm of each head without a bias: h [n, H, V], weight [H V] -> [n, H V]. */
wf_tensor *wf_head_norm(wf_ctx *c, wf_tensor *h, wf_tensor *weight, double eps);

/* ---- gated output of a linear-attention mixer ---- */

typedef struct wf_out_part {
  wf_param *norm; /* [V], shared by the heads */
  wf_param *out;  /* [d_model, H V] */
  wf_glu_kind gate;
  double eps;
} wf_out_part;

/* "norm.weight" [V] and "o.weight" [d_model, H V]; `gate`: the activation of the gate, where wf_use_out gets
 * one. */
wf_status wf_part_out(wf_build *b, int64_t heads, int64_t V, wf_glu_kind gate, double eps, wf_out_part *out);
/* o [n, H, V] of the recurrence, z [n, H V] or NULL -> (RMSNorm per head of o, . act(z)) Wo [n, d_model]. */
wf_tensor *wf_use_out(wf_run *r, const wf_out_part *p, wf_tensor *o, wf_tensor *z);

/* ---- first values ---- */

wf_init wf_init_uniform(double most); /* U(-most, most) */
/* A_log: log of U(a, b), of at least 1e-4. */
wf_init wf_init_log_uniform(double a, double b);
/* dt_bias: softplus(bias) is e^{U(log a, log b)}, at least 1e-4 (Mamba). */
wf_init wf_init_time_step(double a, double b);

/* ---- sizes ---- */

/* The width of d_model x expand as heads of equal size: *size; an error that names the options otherwise. */
wf_status wf_head_size(const char *what, int64_t d_model, double expand, int64_t heads, int64_t *size);
/* An error unless each key head serves as many query heads. */
wf_status wf_head_groups(int64_t heads, int64_t kv_heads);
/* Heads of values that share `heads` heads of keys of width K: v_heads, or as many (auto), of width K x
 * expand_v. */
wf_status wf_value_heads(int64_t heads, int64_t K, int64_t v_heads, double expand_v, int64_t *Hv, int64_t *V);

#ifdef __cplusplus
}
#endif

#endif
