/* Titans: a neural memory that learns at test time (layers/neural_memory.h has its equations), alone and in
 * three architectures with attention (mixers 9).
 *
 *   q, k, v = SiLU(conv4(x Wq)), SiLU(conv4(x Wk)), SiLU(conv4(x Wv)), q and k of length 1;
 *   alpha, eta, theta = sigmoid(x Wa + ba), sigmoid(x We + be), theta_max sigmoid(x Wt + bt), one a head;
 *   M_t(q_t) the memory after token t;  S attention over a window and persistent rows, learned keys and
 *   values that every token sees;  a (x) m = RMSNorm(a) . sigmoid(RMSNorm(m))
 *
 *   memory alone (lmm)       y = (RMSNorm(M_t(q_t)) . SiLU(x Wg)) Wo
 *   as a gate (mag)          y = (S(x) (x) M_t(q_t)) Wo
 *   as a layer (mal)         y = S(RMSNorm(M_t(q_t)) . SiLU(x Wg)) Wo
 *   as context (mac)         segment by segment: r_t = M_s(q_t) of the memory at the segment's start; a_t is
 *                            attention over the persistent rows and r_j, x_j with j <= t of the segment; the
 *                            memory learns from a in place of x;  y = (a (x) M_t(q(a_t))) Wo
 *
 * With gradients taken at a segment's start, a repeated key is multiplied by 1 - 2 sum theta of the segment
 * (alpha = eta = 0): so theta_max is 1 / segment by default. A deep memory has no such bound of its own: by
 * default (step: bounded) each token's theta is divided by max(1, C_t), C_t its loss's curvature
 * (layers/neural_memory.h); step: plain is the paper's.
 *
 * Behrouz, Zhong, Mirrokni 2024.
 */
#include "layers/neural_memory.h"
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>

typedef enum variant { LMM, MAG, MAL, MAC } variant;
static const char *const variants[] = {"lmm", "mag", "mal", "mac", NULL};
static const char *const memories[] = {"linear", "deep", NULL};
static const char *const steps[] = {"bounded", "plain", NULL};
static const char *const positions[] = {"none", "rope", NULL};

typedef struct options {
  int64_t heads, segment, depth, expand, conv_width, persistent, window;
  int variant, memory, step, position;
  double theta_max, rope_base;
} options;

static const wf_option table[] = {
    WF_OPT_ENUM(options, variant, "mac", variants,
                "the memory alone, as a gate of attention, as a layer before it, or as its context"),
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads, each with a memory of its own"),
    WF_OPT_ENUM(options, memory, "deep", memories, "the memory: a matrix, or an MLP"),
    WF_OPT_I64(options, depth, "2", 1, WF_INNER_DEPTH, "layers of a deep memory; 1 is linear"),
    WF_OPT_I64(options, expand, "4", 1, 64, "width of a deep memory's hidden layers over head_dim"),
    WF_OPT_I64(options, segment, "64", 1, 65536, "tokens whose gradients are taken at the same weights"),
    WF_OPT_F64F(options, theta_max, "auto", 0, 1e6, WF_OPT_AUTO,
                "largest step of a token; auto: 1 / segment, above which the memory can diverge"),
    WF_OPT_ENUM(
        options, step, "bounded", steps,
        "a deep memory's step: divided by its loss's curvature where that exceeds 1, or as the paper's"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolutions of q, k and v see"),
    WF_OPT_I64(options, persistent, "4", 0, 65536, "learned rows that attention always sees"),
    WF_OPT_I64(options, window, "256", 1, INT64_C(1) << 40,
               "tokens that attention sees in mag and mal, the own one included; in mac its segment"),
    WF_OPT_ENUM(options, position, "rope", positions, "how attention knows positions"),
    WF_OPT_F64(options, rope_base, "10000", 1, 1e12, "base of the rotary wavelengths"),
    WF_OPT_END};

enum { Q, K, V, GATE };            /* projections */
enum { ALPHA, ETA, THETA, GATES }; /* of the memory */

typedef struct titans {
  variant variant;
  int64_t heads, head, segment, window, conv_width;
  bool rope;
  double theta_max, rope_base, eps;
  wf_param *w[4], *gate[GATES], *gate_bias[GATES];
  wf_conv_part conv[3], recall_conv; /* recall_conv: the one of q with a state of its own */
  wf_memory_part memory;
  wf_param *norm; /* of what the memory says */
  wf_param *attend_w[3], *attend_norm, *persistent;
  wf_seq_attend_slots tokens, recalled; /* keys of x, and in mac of what the memory said to them */
  wf_param *out;
} titans;

/* ---- building ---- */

static wf_status declare_memory(wf_build *b, titans *t, const options *o) {
  static const char *const names[] = {"q", "k", "v", "g"}, *const gates[] = {"alpha", "eta", "theta"};
  /* At first a token forgets little and steps do not pile up. */
  static const double first[] = {-5, -1, 0};
  int64_t d = b->d_model;
  char name[32];
  for (int i = 0; i < (t->variant == LMM || t->variant == MAL ? 4 : 3); i++)
    WF_TRY(wf_build_linear(b, names[i], d, d, b->init_std, &t->w[i], NULL));
  for (int i = 0; i < GATES; i++)
    WF_TRY(wf_build_linear(b, gates[i], d, t->heads, b->init_std, &t->gate[i], NULL));
  for (int i = 0; i < GATES; i++) {
    snprintf(name, sizeof name, "%s.bias", gates[i]);
    WF_TRY(wf_build_param(b, name, WF_PARAM_NO_DECAY, wf_init_const(first[i]), WF_SHAPE(t->heads),
                          &t->gate_bias[i]));
  }
  WF_TRY(wf_part_memory(b, t->heads, t->head, t->head * o->expand, t->head, o->memory ? (int)o->depth : 1,
                        &t->memory));
  t->memory.bounded = !o->step;
  for (int i = 0; i < 3; i++) {
    snprintf(name, sizeof name, "%s_conv", names[i]);
    WF_TRY(wf_part_conv(b, name, d, t->conv_width, wf_init_normal(b->init_std), false, true, &t->conv[i]));
  }
  return wf_build_param(b, "norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(t->head), &t->norm);
}

static wf_status declare_attention(wf_build *b, titans *t, const options *o) {
  static const char *const names[] = {"attn.q", "attn.k", "attn.v"};
  int64_t d = b->d_model, window = t->variant == MAC ? t->segment : t->window;
  for (int i = 0; i < 3; i++) WF_TRY(wf_build_linear(b, names[i], d, d, b->init_std, &t->attend_w[i], NULL));
  if (o->persistent)
    WF_TRY(wf_build_param(b, "persistent", 0, wf_init_normal(b->init_std), WF_SHAPE(o->persistent, d),
                          &t->persistent));
  if (t->variant != MAL)
    WF_TRY(wf_build_param(b, "attn.norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(t->head),
                          &t->attend_norm));
  return wf_seq_attend_state(b, t->heads, t->head, t->head, 0, window, &t->tokens);
}

/* The slots of mac's pieces lie one after the other: the memory, its convolutions, the keys of x, those of r.
 */
static wf_status declare_context(wf_build *b, titans *t) {
  char prefix[160];
  wf_build recalled = *b;
  snprintf(prefix, sizeof prefix, "%s.recalled", b->prefix);
  recalled.prefix = prefix;
  WF_TRY(wf_seq_attend_state(&recalled, t->heads, t->head, t->head, 0, t->segment, &t->recalled));
  t->recall_conv = t->conv[Q];
  return wf_seq_conv_state(&recalled, "q_conv", b->d_model, t->conv_width, &t->recall_conv.slot);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t head;
  WF_TRY(wf_head_size("q, k and v", b->d_model, 1, o->heads, &head));
  if (o->position && o->variant != LMM && head % 2)
    return wf_hint(
        WF_FAIL(WF_EINVAL, "rotary positions turn pairs; heads of %lld features are odd", (long long)head),
        "choose heads so that d_model / heads is even, or set position: none");
  titans *t = wf_calloc("model", 1, sizeof *t);
  if (!t) return WF_ENOMEM;
  *self = t;
  *t = (titans){.variant = (variant)o->variant,
                .heads = o->heads,
                .head = head,
                .segment = o->segment,
                .window = o->window,
                .conv_width = o->conv_width,
                .rope = o->position,
                .rope_base = o->rope_base,
                .theta_max = isnan(o->theta_max) ? 1 / (double)o->segment : o->theta_max,
                .eps = b->norm_eps};
  WF_TRY(declare_memory(b, t, o));
  if (t->variant != LMM) WF_TRY(declare_attention(b, t, o));
  if (t->variant == MAC) WF_TRY(declare_context(b, t));
  return wf_build_linear(b, "o", b->d_model, b->d_model, b->out_std, &t->out, NULL);
}

/* ---- the memory ---- */

/* What the memory takes of projections y [n, d] and of the gates of x. */
static wf_memory_in memory_in(wf_run *r, const titans *t, wf_tensor *x, wf_tensor *const *y) {
  wf_ctx *c = r->c;
  wf_tensor *w[GATES], *b[GATES], *gate[GATES], *z[3];
  for (int i = 0; i < GATES; i++) w[i] = wf_value(t->gate[i]), b[i] = wf_value(t->gate_bias[i]);
  wf_linear_n(c, x, GATES, w, b, gate);
  for (int i = 0; i < 3; i++) {
    z[i] = wf_as_heads(wf_use_conv(r, &t->conv[i], y[i]), t->heads);
    if (i != V) z[i] = wf_l2norm(c, z[i], 1e-6);
  }
  return (wf_memory_in){.q = z[Q],
                        .k = z[K],
                        .v = z[V],
                        .keep = wf_logsigmoid(c, wf_affine(c, gate[ALPHA], -1, 0)),
                        .momentum = wf_logsigmoid(c, gate[ETA]),
                        .theta = wf_affine(c, wf_sigmoid(c, gate[THETA]), t->theta_max, 0)};
}

static wf_tensor *memory_piece(wf_run *r, const void *self, const wf_seq_span *span, wf_tensor *const *x) {
  const titans *t = self;
  return wf_use_memory(r, &t->memory, span, &(wf_memory_in){x[0], x[1], x[2], x[3], x[4], x[5]});
}

/* M_t(q_t) [n, H, V] */
static wf_tensor *remember(wf_run *r, const titans *t, const wf_memory_in *in) {
  wf_tensor *first[WF_MEMORY_STATES];
  wf_tensor *x[] = {in->q, in->k, in->v, in->keep, in->momentum, in->theta};
  wf_seq_serial_in serial = {.segment = t->segment,
                             .heads = t->heads,
                             .slot = t->memory.slot,
                             .n_state = wf_memory_init(r->c, &t->memory, first),
                             .init = first,
                             .n_x = 6,
                             .x = x,
                             .piece = memory_piece,
                             .self = t};
  return wf_seq_serial(r, &serial);
}

/* y[i] = x Wi of the memory's projections. */
static void project(wf_run *r, const titans *t, wf_tensor *x, int n, wf_tensor **y) {
  wf_tensor *w[4];
  for (int i = 0; i < n; i++) w[i] = wf_value(t->w[i]);
  wf_linear_n(r->c, x, n, w, NULL, y);
}

/* Heads normed, side by side [n, d]. */
static wf_tensor *normed(wf_run *r, const titans *t, const wf_param *w, wf_tensor *x) {
  return wf_reshape(r->c, wf_norm(r->c, WF_NORM_RMS, x, wf_value(w), NULL, t->eps),
                    WF_SHAPE(-1, t->heads * t->head));
}

/* RMSNorm(M_t(q_t)) . SiLU(x Wg) */
static wf_tensor *alone(wf_run *r, const titans *t, wf_tensor *x) {
  wf_tensor *y[4];
  project(r, t, x, 4, y);
  wf_memory_in in = memory_in(r, t, x, y);
  return wf_glu(r->c, WF_GLU_SWI, y[GATE], normed(r, t, t->norm, remember(r, t, &in)));
}

/* ---- attention ---- */

/* a (x) m [n, d] */
static wf_tensor *gated(wf_run *r, const titans *t, wf_tensor *a, wf_tensor *m) {
  return wf_glu(r->c, WF_GLU_SIGMOID, normed(r, t, t->norm, m), normed(r, t, t->attend_norm, a));
}

static wf_tensor *turned(wf_run *r, const titans *t, wf_tensor *x) {
  return t->rope ? wf_rotary(r->c, x, r->rows->pos, t->rope_base, t->head) : x;
}

/* Attention over the persistent rows, the same for every token and without a position: o [n, H, K] and its
 * log-sum-exp [n, H]. All tokens are heads of one query. */
static wf_tensor *persistent(wf_run *r, const titans *t, wf_tensor *q, wf_tensor **lse) {
  wf_ctx *c = r->c;
  wf_tensor *w[] = {wf_value(t->attend_w[K]), wf_value(t->attend_w[V])}, *kv[2], *o;
  wf_linear_n(c, wf_value(t->persistent), 2, w, NULL, kv);
  if (wf_is_poison(q)) return *lse = q;
  const int64_t rows = t->persistent->shape[0], n = q->shape[0], H = t->heads;
  const wf_attend_span span = {.queries = 1, .distance = rows - 1, .keys = rows};
  q = wf_reshape(c, wf_transpose(c, q, 0, 1), WF_SHAPE(1, H * n, t->head));
  o = wf_attend_lse(c, q, wf_as_heads(kv[0], H), wf_as_heads(kv[1], H), wf_attend_spans(c, 1, &span), NULL,
                    NULL, NULL, &(wf_attend_options){.scale = 1 / sqrt((double)t->head)}, lse);
  *lse = wf_transpose(c, wf_reshape(c, *lse, WF_SHAPE(H, n)), 0, 1);
  return wf_transpose(c, wf_reshape(c, o, WF_SHAPE(H, n, t->head)), 0, 1);
}

/* Over the tokens of a window: q and k turned. */
static wf_tensor *window(wf_run *r, const titans *t, const wf_seq_attend_slots *slots, int64_t size,
                         wf_tensor *q, wf_tensor *k, wf_tensor *v, wf_tensor **lse) {
  wf_attend_options o = {.scale = 1 / sqrt((double)t->head), .window = size};
  return wf_seq_attend(r, slots, &(wf_seq_attend_in){.q = q, .k = k, .v = v, .lse = lse}, &o);
}

/* q, k and v of attention, [n, H, K] each. */
static void attention_in(wf_run *r, const titans *t, wf_tensor *x, wf_tensor **y) {
  wf_tensor *w[3];
  for (int i = 0; i < 3; i++) w[i] = wf_value(t->attend_w[i]);
  wf_linear_n(r->c, x, 3, w, NULL, y);
  for (int i = 0; i < 3; i++) y[i] = wf_as_heads(y[i], t->heads);
}

/* S(x) [n, H, K] */
static wf_tensor *attend(wf_run *r, const titans *t, wf_tensor *x) {
  wf_tensor *y[3], *o[2], *lse[2];
  attention_in(r, t, x, y);
  o[0] = window(r, t, &t->tokens, t->window, turned(r, t, y[Q]), turned(r, t, y[K]), y[V], &lse[0]);
  if (!t->persistent) return o[0];
  o[1] = persistent(r, t, y[Q], &lse[1]);
  return wf_merge(r->c, 2, o, lse);
}

/* ---- the memory as context ---- */

/* x: the memory's query, attention's q, k and v, and what the persistent rows say with its log-sum-exp. */
static wf_tensor *context_piece(wf_run *r, const void *self, const wf_seq_span *span, wf_tensor *const *x) {
  const titans *t = self;
  wf_ctx *c = r->c;
  int64_t d = t->heads * t->head;
  wf_seq_span all = *span;
  all.heads = t->heads;
  wf_tensor *w[] = {wf_value(t->attend_w[K]), wf_value(t->attend_w[V])}, *kv[2], *y[3];
  wf_tensor *said = wf_reshape(c, wf_recall_memory(r, &t->memory, &all, x[0]), WF_SHAPE(-1, d));
  wf_linear_n(c, said, 2, w, NULL, kv);
  for (int i = 0; i < 2; i++) kv[i] = wf_as_heads(kv[i], t->heads);
  wf_tensor *q = turned(r, t, x[1]), *o[3], *lse[3];
  o[0] = window(r, t, &t->recalled, t->segment, q, turned(r, t, kv[0]), kv[1], &lse[0]);
  o[1] = window(r, t, &t->tokens, t->segment, q, turned(r, t, x[2]), x[3], &lse[1]);
  if (t->persistent) o[2] = x[4], lse[2] = x[5];
  wf_tensor *a = wf_merge(c, t->persistent ? 3 : 2, o, lse), *flat = wf_reshape(c, a, WF_SHAPE(-1, d));
  project(r, t, flat, 3, y);
  wf_memory_in in = memory_in(r, t, flat, y);
  return gated(r, t, a, wf_use_memory(r, &t->memory, &all, &in));
}

static wf_tensor *with_context(wf_run *r, const titans *t, wf_tensor *x) {
  wf_ctx *c = r->c;
  wf_tensor *y[3], *first[WF_MEMORY_STATES + 7], *in[6];
  int n_x = 4, n = wf_memory_init(c, &t->memory, first);
  if (wf_is_poison(x)) return x;
  for (int i = 0; i < 3; i++)
    first[n++] = wf_zeros(c, "state", x->dtype, WF_SHAPE(t->conv_width - 1, t->heads * t->head));
  for (int i = 0; i < 4; i++)
    first[n++] = wf_zeros(c, "state", x->dtype, WF_SHAPE(t->segment - 1, t->heads, t->head));
  attention_in(r, t, x, y);
  in[0] = wf_use_conv(r, &t->recall_conv, wf_linear(c, x, wf_value(t->w[Q]), NULL));
  in[0] = wf_l2norm(c, wf_as_heads(in[0], t->heads), 1e-6);
  for (int i = 0; i < 3; i++) in[1 + i] = y[i];
  if (t->persistent) {
    in[4] = persistent(r, t, y[Q], &in[5]);
    n_x = 6;
  }
  wf_seq_serial_in serial = {.segment = t->segment, /* attention's projections mix the heads: no .heads */
                             .slot = t->memory.slot,
                             .n_state = n,
                             .init = first,
                             .n_x = n_x,
                             .x = in,
                             .piece = context_piece,
                             .self = t};
  return wf_seq_serial(r, &serial);
}

/* ---- the layer ---- */

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const titans *t = self;
  wf_tensor *o = NULL, *y[3];
  switch (t->variant) {
  case LMM: o = alone(r, t, x); break;
  case MAG: {
    project(r, t, x, 3, y);
    wf_memory_in in = memory_in(r, t, x, y);
    o = gated(r, t, attend(r, t, x), remember(r, t, &in));
    break;
  }
  case MAL: o = wf_reshape(r->c, attend(r, t, alone(r, t, x)), WF_SHAPE(-1, t->heads * t->head)); break;
  case MAC: o = with_context(r, t, x); break;
  }
  return wf_linear(r->c, o, wf_value(t->out), NULL);
}

static double flops(const void *self, int64_t T) {
  const titans *t = self;
  double d = (double)t->w[Q]->shape[1], weights = 0, rows = 0, C = (double)t->segment;
  double projections = t->variant == LMM ? 5 : t->variant == MAG ? 7 : t->variant == MAL ? 8 : 10, seen = 0;
  if (t->variant == MAC) seen = 2 * C;
  if (t->variant == MAG || t->variant == MAL) seen = (double)(t->window < T ? t->window : T);
  if (t->persistent) seen += (double)t->persistent->shape[0];
  for (int i = 0; i < t->memory.depth; i++) {
    const int64_t *s = t->memory.w[i]->shape;
    weights += (double)(s[1] * s[2]); /* once for z, twice to read, twice to write, once back */
    rows += (double)(s[1] + s[2]);
  }
  double memory = (t->memory.depth > 1 ? 6 : 5) * weights + C * rows + C * C;
  return 2 * d * (projections * d + 3 * (double)t->heads) + 2 * (double)t->heads * memory + 4 * seen * d;
}

const wf_layer_type wf_layer_titans = {
    .kind = WF_LAYER_MIXER,
    .name = "titans",
    .help = "neural memory: a matrix or MLP that a head learns while it reads, alone or with attention",
    .paper = "Behrouz et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
