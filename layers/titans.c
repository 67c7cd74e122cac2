/* Titans: a neural memory that learns at test time (mixers 9; layers/neural_memory.h has its equations).
 *
 *   q, k, v = SiLU(conv4(x Wq)), SiLU(conv4(x Wk)), SiLU(conv4(x Wv)), q and k of length 1;
 *   alpha, eta, theta = sigmoid(x Wa + ba), sigmoid(x We + be), theta_max sigmoid(x Wt + bt), one a head;
 *   o_t = M_t(q_t);  y = (RMSNorm(o) . SiLU(x Wg)) Wo
 *
 * With gradients taken at a segment's start, a repeated key is multiplied by 1 - 2 sum theta of the segment
 * (alpha = eta = 0): so theta_max is at most 1 / segment by default.
 *
 * Behrouz, Zhong, Mirrokni 2024.
 */
#include "layers/neural_memory.h"
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>

static const char *const memories[] = {"linear", "deep", NULL};

typedef struct options {
  int64_t heads, segment, depth, expand, conv_width;
  int memory;
  double theta_max;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads, each with a memory of its own"),
    WF_OPT_ENUM(options, memory, "deep", memories, "the memory: a matrix, or an MLP"),
    WF_OPT_I64(options, depth, "2", 1, WF_INNER_DEPTH, "layers of a deep memory; 1 is linear"),
    WF_OPT_I64(options, expand, "4", 1, 64, "width of a deep memory's hidden layers over head_dim"),
    WF_OPT_I64(options, segment, "64", 1, 65536, "tokens whose gradients are taken at the same weights"),
    WF_OPT_F64F(options, theta_max, "auto", 0, 1e6, WF_OPT_AUTO,
                "largest step of a token; auto: 1 / segment, above which the memory can diverge"),
    WF_OPT_I64(options, conv_width, "4", 2, 64, "tokens the short convolutions of q, k and v see"),
    WF_OPT_END};

enum { Q, K, V, GATE };            /* projections */
enum { ALPHA, ETA, THETA, GATES }; /* of the memory */

typedef struct titans {
  int64_t heads, segment;
  double theta_max;
  wf_param *w[4], *gate[GATES], *gate_bias[GATES];
  wf_conv_part conv[3];
  wf_memory_part memory;
  wf_out_part out;
} titans;

static wf_status declare(wf_build *b, titans *t, const options *o, int64_t head) {
  static const char *const names[] = {"q", "k", "v", "g"}, *const gates[] = {"alpha", "eta", "theta"};
  /* At first a token forgets little and steps do not pile up. */
  static const double first[] = {-5, -1, 0};
  int64_t d = b->d_model;
  char name[32];
  for (int i = 0; i < 4; i++) WF_TRY(wf_build_linear(b, names[i], d, d, b->init_std, &t->w[i], NULL));
  for (int i = 0; i < GATES; i++)
    WF_TRY(wf_build_linear(b, gates[i], d, t->heads, b->init_std, &t->gate[i], NULL));
  for (int i = 0; i < GATES; i++) {
    snprintf(name, sizeof name, "%s.bias", gates[i]);
    WF_TRY(wf_build_param(b, name, WF_PARAM_NO_DECAY, wf_init_const(first[i]), WF_SHAPE(t->heads),
                          &t->gate_bias[i]));
  }
  for (int i = 0; i < 3; i++) {
    snprintf(name, sizeof name, "%s_conv", names[i]);
    WF_TRY(wf_part_conv(b, name, d, o->conv_width, wf_init_normal(b->init_std), false, true, &t->conv[i]));
  }
  WF_TRY(
      wf_part_memory(b, t->heads, head, head * o->expand, head, o->memory ? (int)o->depth : 1, &t->memory));
  return wf_part_out(b, t->heads, head, WF_GLU_SWI, b->norm_eps, &t->out);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t head;
  WF_TRY(wf_head_size("q, k and v", b->d_model, 1, o->heads, &head));
  titans *t = wf_calloc("model", 1, sizeof *t);
  if (!t) return WF_ENOMEM;
  *self = t;
  *t = (titans){.heads = o->heads, .segment = o->segment, .theta_max = o->theta_max};
  if (isnan(t->theta_max)) t->theta_max = 1 / (double)o->segment;
  return declare(b, t, o, head);
}

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
  int n = wf_memory_init(r->c, &t->memory, first);
  return wf_seq_serial(r, t->segment, t->memory.slot, n, first, 6, x, memory_piece, t);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const titans *t = self;
  wf_tensor *w[4], *y[4];
  for (int i = 0; i < 4; i++) w[i] = wf_value(t->w[i]);
  wf_linear_n(r->c, x, 4, w, NULL, y);
  wf_memory_in in = memory_in(r, t, x, y);
  return wf_use_out(r, &t->out, remember(r, t, &in), y[GATE]);
}

static double flops(const void *self, int64_t T) {
  const titans *t = self;
  (void)T;
  double d = (double)t->w[Q]->shape[1], weights = 0, rows = 0, C = (double)t->segment;
  for (int i = 0; i < t->memory.depth; i++) {
    const int64_t *s = t->memory.w[i]->shape;
    weights += (double)(s[1] * s[2]); /* once for z, twice to read, twice to write, once back */
    rows += (double)(s[1] + s[2]);
  }
  double memory = (t->memory.depth > 1 ? 6 : 5) * weights + C * rows + C * C;
  return 2 * d * (5 * d + 3 * (double)t->heads) + 2 * (double)t->heads * memory;
}

const wf_layer_type wf_layer_titans = {
    .kind = WF_LAYER_MIXER,
    .name = "titans",
    .help = "neural memory: a matrix or MLP a head learns, with momentum and forgetting, while it reads",
    .paper = "Behrouz et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
