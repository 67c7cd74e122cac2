/* Aaren: attention as a recurrent network (Feng et al. 2024). Each head has one query, learned and the same
 * for all tokens, and output t is its attention over tokens 0 .. t:
 *
 *   s_j = K^{-1/2} q (x_j Wk)^T,   v = x Wv;   o_t = sum_{j <= t} e^{s_j} v_j / sum_{j <= t} e^{s_j};   y = o
 * Wo
 *
 * a scan of (m, sum e^{s - m} [v, 1]) in constant memory, with m_t = max(m_{t-1}, s_t). No query depends on a
 * token, so the scores are one product, x (q Wk)^T, and the keys are never formed.
 *
 * The paper leaves positions to the input (`position: learned`, `none`). ALiBi (Press et al. 2022), which
 * adds -slope (t - j) to the score of token j, is a decay of the sums and of m by e^{-slope} a token.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef enum position { ALIBI, LEARNED, NONE } position;
static const char *const positions[] = {"alibi", "learned", "none", NULL};

typedef struct options {
  int64_t heads;
  int position;
  bool bias;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads; they divide d_model"),
    WF_OPT_ENUM(options, position, "alibi", positions, "how tokens know their position"),
    WF_OPT_BOOL(options, bias, "false", "biases on values and output"), WF_OPT_END};

typedef struct aaren {
  int64_t H, K;
  wf_param *query, *k, *v, *v_bias, *out, *out_bias;
  int max_slot, sum_slot;
  double *decay; /* [H] log decays, NULL for none; in the same allocation */
} aaren;

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t d = b->d_model, H = o->heads, K;
  WF_TRY(wf_head_size("keys and values", d, 1, H, &K));
  aaren *a = wf_calloc("model", 1, sizeof *a + (size_t)H * sizeof(double));
  if (!a) return WF_ENOMEM;
  *self = a;
  *a = (aaren){.H = H, .K = K};
  if (o->position == LEARNED) b->learned_positions = true;
  if (o->position == ALIBI) {
    a->decay = (double *)(void *)(a + 1);
    for (int64_t h = 0; h < H; h++) a->decay[h] = -exp2(-8.0 * (double)(h + 1) / (double)H);
  }
  WF_TRY(wf_build_param(b, "query", WF_PARAM_NO_DECAY, wf_init_normal(1), WF_SHAPE(H, K), &a->query));
  WF_TRY(wf_build_linear(b, "k", d, d, b->init_std, &a->k, NULL));
  WF_TRY(wf_build_linear(b, "v", d, d, b->init_std, &a->v, o->bias ? &a->v_bias : NULL));
  WF_TRY(wf_build_linear(b, "o", d, d, b->out_std, &a->out, o->bias ? &a->out_bias : NULL));
  WF_TRY(wf_seq_diag_state(b, "m", H, &a->max_slot));
  return wf_seq_diag_state(b, "sums", H * (K + 1), &a->sum_slot);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const aaren *a = self;
  wf_ctx *c = r->c;
  int64_t H = a->H, K = a->K, d = a->out->shape[0];
  wf_tensor *q = wf_reshape(c, wf_affine(c, wf_value(a->query), 1 / sqrt((double)K), 0), WF_SHAPE(H, 1, K));
  wf_tensor *qk = wf_matmul(c, q, wf_reshape(c, wf_value(a->k), WF_SHAPE(H, K, d)));
  wf_tensor *s = wf_linear(c, x, wf_reshape(c, qk, WF_SHAPE(H, d)), NULL), *drop, *decay, *weight, *floor;
  if (wf_is_poison(s)) return s;
  wf_tensor *g = a->decay ? wf_head_constants(c, a->decay, H, s->shape[0], s->dtype) : NULL;
  wf_tensor *m = wf_seq_max(r, a->max_slot, s, g, NULL, &drop);
  wf_exp_gates(c, g, s, m, drop, &decay, &weight, &floor);
  wf_tensor *v = wf_append_one(c, wf_as_heads(wf_linear(c, x, wf_value(a->v), wf_value(a->v_bias)), H));
  v = wf_mul(c, v, wf_reshape(c, weight, WF_SHAPE(-1, H, 1)));
  wf_tensor *sums = wf_seq_diag(r, a->sum_slot, wf_reshape(c, v, WF_SHAPE(-1, H * (K + 1))), decay, NULL);
  wf_tensor *o = wf_normalise(c, wf_reshape(c, sums, WF_SHAPE(-1, H, K + 1)), NULL, 0);
  return wf_linear(c, wf_reshape(c, o, WF_SHAPE(-1, d)), wf_value(a->out), wf_value(a->out_bias));
}

static double flops(const void *self, int64_t T) {
  const aaren *a = self;
  (void)T;
  return 2 * (double)(a->v->numel + a->out->numel + a->H * a->out->shape[0]) +
         4 * (double)(a->H * (a->K + 1));
}

const wf_layer_type wf_layer_aaren = {
    .kind = WF_LAYER_MIXER,
    .name = "aaren",
    .help = "attention with a learned query for each head, as a recurrence of constant memory",
    .paper = "Feng et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
