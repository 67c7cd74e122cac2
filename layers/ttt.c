/* TTT: a network learns by gradient descent, mini-batch by mini-batch, to map keys to values; the token reads
 * it with its query (mixers 8).
 *
 *   q, k = rope(conv4(x Wq)), rope(conv4'(x Wq));  v = x Wv           positions inside the mini-batch
 *   inner loss of token j: 1/2 ||LN(f(k_j)) - (v_j - k_j)||^2, f(k) = k W + b, or an MLP of width 4
 *   step of token j in the row of token t: eta[t, j] = base_lr max(tok_t + 1/(t+1), 0) sigmoid(x_j w_lr +
 *   b_lr) / head_dim
 *   o_t = q_t + LN(f_t(q_t)), f_t with the steps of tokens j <= t of the mini-batch, whose gradients are all
 *   taken at the weights of its start;  y = (LN(o) . gelu(x Wg)) Wo
 *
 * With dZ the gradient at the start's weights, X the inputs of a layer and u_j = lr_j dz_j the read is
 * Z_t = x_t W + b - tok_t (sum_{j <= t} (x_t . X_j + 1) u_j), so weights are formed once a mini-batch:
 * W' = W - tok_last X^T u. A piece inside a mini-batch carries W at its start and G = sum X_j^T u_j so far.
 *
 * Sun et al. 2024, TTT-Linear and TTT-MLP; parameters as in the authors' JAX code.
 */
#include "layers/inner.h"
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>

static const char *const inners[] = {"linear", "mlp", NULL};

typedef struct options {
  int64_t heads, mini_batch, conv_width;
  int inner;
  double base_lr, rope_base;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads, each with a network of its own"),
    WF_OPT_ENUM(options, inner, "linear", inners, "the network: linear, or an MLP of width 4 head_dim"),
    WF_OPT_I64(options, mini_batch, "16", 1, 65536, "tokens whose gradients are taken at the same weights"),
    WF_OPT_F64F(options, base_lr, "auto", 0, 1e6, WF_OPT_AUTO,
                "inner learning rate; auto: 1 for linear, 0.1 for mlp"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolutions of q and k see"),
    WF_OPT_F64(options, rope_base, "10000", 1, 1e12, "base of the rotary wavelengths"),
    WF_OPT_END};

enum { W, B, G, DB, PER_LAYER }; /* the state of an inner layer; G and DB are sums so far */

typedef struct ttt {
  int64_t H, K, C;
  int depth;
  double base_lr, rope_base;
  wf_param *w[4]; /* q, v, the gate, the learning rate */
  wf_param *lr_bias, *token, *norm, *norm_bias, *post, *post_bias, *out;
  wf_param *dense[2], *bias[2];
  wf_conv_part conv[2]; /* of q and k */
  int slot;
} ttt;

static const double eps = 1e-6; /* of the public models, everywhere */

/* ---- building ---- */

static wf_status declare_inner(wf_build *b, ttt *t) {
  static const char *const kinds[] = {"w", "b", "w_sum", "b_sum"};
  int64_t wide[] = {t->K, t->depth == 1 ? t->K : 4 * t->K, t->K};
  char name[32];
  for (int i = 0; i < t->depth; i++) {
    int64_t w[] = {t->H, wide[i], wide[i + 1]}, row[] = {t->H, 1, wide[i + 1]};
    snprintf(name, sizeof name, "ttt_dense_%d", i);
    WF_TRY(wf_build_param(b, name, 0, wf_init_normal(b->init_std), 3, w, &t->dense[i]));
    snprintf(name, sizeof name, "ttt_bias_%d", i);
    WF_TRY(wf_build_param(b, name, WF_PARAM_NO_DECAY, wf_init_const(0), 3, row, &t->bias[i]));
    for (int k = 0; k < PER_LAYER; k++) {
      int slot;
      snprintf(name, sizeof name, "%s%d", kinds[k], i);
      WF_TRY(wf_build_state(b, name, false, 3, k == W || k == G ? w : row, &slot));
      if (i == 0 && k == 0) t->slot = slot;
    }
  }
  return WF_OK;
}

static wf_status declare(wf_build *b, ttt *t, int64_t conv_width) {
  static const char *const names[] = {"q", "v", "g"};
  int64_t d = b->d_model;
  const unsigned gate = WF_PARAM_NO_DECAY;
  for (int i = 0; i < 3; i++) WF_TRY(wf_build_linear(b, names[i], d, d, b->init_std, &t->w[i], NULL));
  WF_TRY(wf_build_param(b, "learnable_ttt_lr.weight", gate, wf_init_normal(b->init_std), WF_SHAPE(t->H, d),
                        &t->w[3]));
  WF_TRY(wf_build_param(b, "learnable_ttt_lr.bias", gate, wf_init_const(0), WF_SHAPE(t->H), &t->lr_bias));
  WF_TRY(wf_build_param(b, "learnable_token_idx", gate, wf_init_const(0), WF_SHAPE(t->C), &t->token));
  for (int i = 0; i < 2; i++)
    WF_TRY(wf_part_conv(b, i ? "k_conv" : "q_conv", d, conv_width, wf_init_normal(b->init_std), true, false,
                        &t->conv[i]));
  WF_TRY(declare_inner(b, t));
  WF_TRY(wf_build_param(b, "ttt_norm.weight", gate, wf_init_const(1), WF_SHAPE(t->H, t->K), &t->norm));
  WF_TRY(wf_build_param(b, "ttt_norm.bias", gate, wf_init_const(0), WF_SHAPE(t->H, t->K), &t->norm_bias));
  WF_TRY(wf_build_param(b, "post_norm.weight", gate, wf_init_const(1), WF_SHAPE(d), &t->post));
  WF_TRY(wf_build_param(b, "post_norm.bias", gate, wf_init_const(0), WF_SHAPE(d), &t->post_bias));
  return wf_build_linear(b, "o", d, d, b->out_std, &t->out, NULL);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t K;
  WF_TRY(wf_head_size("q, k and v", b->d_model, 1, o->heads, &K));
  if (K % 2)
    return wf_hint(
        WF_FAIL(WF_EINVAL, "rotary positions turn pairs; heads of %lld features are odd", (long long)K),
        "choose heads so that d_model / heads is even");
  ttt *t = wf_calloc("model", 1, sizeof *t);
  if (!t) return WF_ENOMEM;
  *self = t;
  *t = (ttt){.H = o->heads, .K = K, .C = o->mini_batch, .depth = 1 + o->inner, .rope_base = o->rope_base};
  t->base_lr = isnan(o->base_lr) ? (o->inner ? 0.1 : 1) : o->base_lr;
  return declare(b, t, o->conv_width);
}

/* ---- a piece of a mini-batch ---- */

typedef struct call {
  const ttt *t;
  wf_tensor *factor; /* [C, C]: row t is tok_t for j <= t, then 0 */
  wf_tensor *norm;   /* [H, 1, K], of all heads */
} call;

/* u = lr . dZ of the inner loss, for the last layer. target: v - k - the norm's bias. */
static wf_tensor *loss_gradient(wf_ctx *c, wf_tensor *norm, wf_tensor *z, wf_tensor *target, wf_tensor *lr) {
  wf_tensor *r = wf_sub(c, wf_mul(c, wf_norm(c, WF_NORM_LAYER, z, NULL, NULL, eps), norm), target);
  return wf_mul(c, wf_norm_pull(c, WF_NORM_LAYER, wf_mul(c, r, norm), z, eps), lr);
}

/* What layer i says to x with the steps of this piece's earlier tokens, and those before it. */
static wf_tensor *read(wf_ctx *c, wf_tensor *const *state, const wf_inner_run *r, int i, wf_tensor *x,
                       wf_tensor *factor, wf_tensor *before) {
  wf_tensor *seen = wf_affine(c, wf_matmul(c, x, wf_transpose(c, r->x[i], 2, 3)), 1, 1);
  wf_tensor *steps = wf_matmul(c, wf_mul(c, seen, factor), r->dz[i]);
  if (before) {
    wf_tensor *more = wf_add(c, wf_matmul(c, x, state[G]), state[DB]);
    steps = wf_add(c, steps, wf_mul(c, more, before));
  }
  return wf_sub(c, wf_add(c, wf_matmul(c, x, state[W]), state[B]), steps);
}

/* The state of layer i after the piece: sums, or at the mini-batch's end the new weights and nothing. */
static void learn(wf_run *run, wf_tensor *const *state, const wf_inner_run *r, int i, const wf_seq_span *span,
                  wf_tensor *last, int slot) {
  wf_ctx *c = run->c;
  wf_tensor *sum[] = {wf_matmul(c, wf_transpose(c, r->x[i], 2, 3), r->dz[i]), wf_sum(c, r->dz[i], 2, true)};
  for (int k = 0; k < 2; k++) {
    wf_tensor **next = wf_state_out(run->state, slot + k),
              **next_sum = wf_state_out(run->state, slot + G + k);
    if (span->offset) sum[k] = wf_add(c, state[G + k], sum[k]);
    *next = span->ends ? wf_sub(c, state[k], wf_mul(c, sum[k], last)) : state[k];
    *next_sum = span->ends ? wf_zeros(c, "state", sum[k]->dtype, sum[k]->ndim, sum[k]->shape) : sum[k];
  }
}

/* x: q, k, v - k - bias [m L, H, K], lr [m L, H] -> the network's value at q [m L, H, K]. */
static wf_tensor *piece(wf_run *run, const void *self, const wf_seq_span *span, wf_tensor *const *x) {
  const call *k = self;
  const ttt *t = k->t;
  wf_ctx *c = run->c;
  wf_tensor *state[2][PER_LAYER], *in[4];
  wf_inner n = {.depth = t->depth};
  wf_inner_run r;
  for (int i = 0; i < 4; i++) in[i] = wf_inner_heads(c, x[i], span->m, span->heads);
  for (int i = 0; i < t->depth; i++) {
    for (int j = 0; j < PER_LAYER; j++) state[i][j] = wf_state_in(run->state, t->slot + i * PER_LAYER + j);
    n.w[i] = state[i][W];
    n.b[i] = state[i][B];
  }
  int64_t end = span->offset + span->len;
  wf_tensor *rows = wf_slice(c, k->factor, 0, span->offset, end);
  wf_tensor *factor = wf_slice(c, rows, 1, span->offset, end), *before = wf_slice(c, rows, 1, 0, 1);
  wf_tensor *last = wf_slice(c, before, 0, span->len - 1, span->len);
  wf_tensor *z = wf_inner_forward(c, &n, in[1], &r), *q = in[0];
  wf_tensor *norm = wf_seq_span_heads(c, span, k->norm);
  wf_inner_backward(c, &n, loss_gradient(c, norm, z, in[2], in[3]), &r);
  for (int i = 0; i < t->depth; i++) {
    if (i) q = wf_gelu_tanh(c, q);
    q = read(c, state[i], &r, i, q, factor, span->offset ? before : NULL);
    if (wf_is_poison(q)) return q;
    learn(run, state[i], &r, i, span, last, t->slot + i * PER_LAYER);
  }
  return wf_inner_tokens(c, q);
}

/* ---- the layer ---- */

/* factor[t, j] = max(tok_t + 1/(t+1), 0) for j <= t */
static wf_tensor *row_factors(wf_ctx *c, const ttt *t, wf_dtype dtype) {
  int64_t C = t->C;
  double *host = wf_calloc("model", (size_t)(C * C + C), sizeof *host), *mask = host + C;
  if (!host) return wf_poison(c, WF_ENOMEM);
  for (int64_t i = 0; i < C; i++) {
    host[i] = 1 / (double)(i + 1);
    for (int64_t j = 0; j <= i; j++) mask[i * C + j] = 1;
  }
  wf_tensor *first = wf_cast(c, wf_from_host(c, "model", WF_F64, WF_SHAPE(C), host), dtype);
  wf_tensor *lower = wf_cast(c, wf_from_host(c, "model", WF_F64, WF_SHAPE(C, C), mask), dtype);
  wf_free(host);
  wf_tensor *tok = wf_relu(c, wf_add(c, wf_value(t->token), first));
  return wf_mul(c, lower, wf_reshape(c, tok, WF_SHAPE(C, 1)));
}

static wf_tensor *forward(wf_run *run, const void *self, wf_tensor *x) {
  const ttt *t = self;
  wf_ctx *c = run->c;
  wf_tensor *w[4], *b[4] = {NULL, NULL, NULL, wf_value(t->lr_bias)}, *y[4], *qk[2], *init[2 * PER_LAYER];
  for (int i = 0; i < 4; i++) w[i] = wf_value(t->w[i]);
  wf_linear_n(c, x, 4, w, b, y);
  if (wf_is_poison(y[0])) return y[0];
  for (int i = 0; i < 2; i++)
    qk[i] = wf_rotary_adjacent(c, wf_as_heads(wf_use_conv(run, &t->conv[i], y[0]), t->H), run->rows->pos,
                               t->rope_base, t->K, t->C);
  wf_tensor *target = wf_sub(c, wf_sub(c, wf_as_heads(y[1], t->H), qk[1]), wf_value(t->norm_bias));
  wf_tensor *lr = wf_affine(c, wf_sigmoid(c, y[3]), t->base_lr / (double)t->K, 0);
  call k = {.t = t, .factor = row_factors(c, t, x->dtype)};
  k.norm = wf_reshape(c, wf_value(t->norm), WF_SHAPE(t->H, 1, t->K));
  for (int i = 0; i < t->depth; i++) {
    wf_tensor **s = init + i * PER_LAYER;
    s[W] = wf_value(t->dense[i]);
    s[B] = wf_value(t->bias[i]);
    for (int j = 0; j < 2; j++) s[G + j] = wf_zeros(c, "state", x->dtype, 3, s[j]->shape);
  }
  wf_seq_serial_in in = {.segment = t->C,
                         .heads = t->H,
                         .slot = t->slot,
                         .n_state = t->depth * PER_LAYER,
                         .init = init,
                         .n_x = 4,
                         .x = (wf_tensor *[]){qk[0], qk[1], target, lr},
                         .piece = piece,
                         .self = &k};
  wf_tensor *z = wf_seq_serial(run, &in);
  z = wf_mul(c, wf_norm(c, WF_NORM_LAYER, z, NULL, NULL, eps), wf_value(t->norm));
  wf_tensor *o = wf_add(c, qk[0], wf_add(c, z, wf_value(t->norm_bias)));
  o = wf_norm(c, WF_NORM_LAYER, wf_reshape(c, o, WF_SHAPE(-1, t->H * t->K)), wf_value(t->post),
              wf_value(t->post_bias), eps);
  return wf_linear(c, wf_mul(c, wf_gelu_tanh(c, y[2]), o), wf_value(t->out), NULL);
}

static double flops(const void *self, int64_t T) {
  const ttt *t = self;
  (void)T;
  double d = (double)(t->H * t->K), K = (double)t->K, C = (double)t->C, wide = t->depth == 1 ? 1 : 4;
  double products = (t->depth == 1 ? 3 : 7) * K * wide * K + C * (1 + wide) * (t->depth == 1 ? 1 : 2) * K;
  return 2 * d * (4 * d + (double)t->H) + 2 * (double)t->H * products;
}

const wf_layer_type wf_layer_ttt = {
    .kind = WF_LAYER_MIXER,
    .name = "ttt",
    .help = "test-time training: a linear map or an MLP a head learns keys to values while it reads",
    .paper = "Sun et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
