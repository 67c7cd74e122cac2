/* Infini-attention: attention inside a segment, and a compressive memory of those before it (mixers 10).
 *
 *   q = x Wq, k = x Wk, v = x Wv, S segments of `segment` tokens counted from the document's start
 *   local = causal softmax attention inside the segment, rotary positions on its q and k
 *   past_t = s(q_t) M / (s(q_t) z + eps),  s = elu + 1, without positions;  M, z as at the segment's start
 *   y = (sigmoid(beta) . past + (1 - sigmoid(beta)) . local) Wo,  one beta a head
 *
 * At the end of a segment z += sum_j s(k_j), and with update
 *   linear   M += sum_j s(k_j)^T v_j
 *   delta    M += sum_j s(k_j)^T (v_j - s(k_j) M / (s(k_j) z + eps))
 * An empty memory reads 0. z is kept as one more column of M. To stop inside a segment the state has M as it
 * was at its start beside the running sums, and the segment's keys.
 *
 * Munkhdalai et al. 2024.
 */
#include "layers/inner.h"
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>

typedef enum position { ROPE, NONE } position;
static const char *const positions[] = {"rope", "none", NULL};
typedef enum update { LINEAR, DELTA } update;
static const char *const updates[] = {"linear", "delta", NULL};

typedef struct options {
  int64_t heads, head_dim, segment;
  int update, position;
  double rope_base;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads"),
    WF_OPT_I64F(options, head_dim, "auto", 1, 65536, WF_OPT_AUTO, "width of a head; auto: d_model / heads"),
    WF_OPT_I64(options, segment, "2048", 1, INT64_C(1) << 40, "tokens of a segment"),
    WF_OPT_ENUM(options, update, "linear", updates,
                "what a segment adds to the memory: values, or what it lacks of "
                "them"),
    WF_OPT_ENUM(options, position, "rope", positions, "how tokens of a segment know their position"),
    WF_OPT_F64(options, rope_base, "10000", 1, 1e12, "base of the rotary wavelengths"),
    WF_OPT_END};

typedef struct infini {
  int64_t H, K, segment;
  int update, position;
  double rope_base;
  wf_param *w[3], *beta, *out;
  int memory; /* slots: at the segment's start, and the running sums */
  wf_seq_attend_slots slots;
} infini;

static const double eps = 1e-6;

static wf_status declare(wf_build *b, infini *a) {
  static const char *const names[] = {"q", "k", "v"};
  for (int i = 0; i < 3; i++)
    WF_TRY(wf_build_linear(b, names[i], b->d_model, a->H * a->K, b->init_std, &a->w[i], NULL));
  WF_TRY(wf_build_param(b, "beta", WF_PARAM_NO_DECAY, wf_init_const(0), WF_SHAPE(a->H), &a->beta));
  WF_TRY(wf_build_linear(b, "o", a->H * a->K, b->d_model, b->out_std, &a->out, NULL));
  int running;
  WF_TRY(wf_build_state(b, "memory", false, WF_SHAPE(a->H, a->K, a->K + 1), &a->memory));
  WF_TRY(wf_build_state(b, "running", false, WF_SHAPE(a->H, a->K, a->K + 1), &running));
  return wf_seq_attend_state(b, a->H, a->K, a->K, 0, a->segment, &a->slots);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t K = o->head_dim;
  if (K == WF_AUTO_I64) WF_TRY(wf_head_size("queries", b->d_model, 1, o->heads, &K));
  if (o->position == ROPE && K % 2)
    return wf_hint(WF_FAIL(WF_EINVAL, "rotary positions turn pairs; head_dim %lld is odd", (long long)K),
                   "make head_dim even or set position: none");
  infini *a = wf_calloc("model", 1, sizeof *a);
  if (!a) return WF_ENOMEM;
  *self = a;
  *a = (infini){.H = o->heads,
                .K = K,
                .segment = o->segment,
                .update = o->update,
                .position = o->position,
                .rope_base = o->rope_base};
  return declare(b, a);
}

/* s(x) M / (s(x) z + eps) of s(x) [m, H, L, K] and the memory [m, H, K, K + 1], as tokens [m L, H, K]. */
static wf_tensor *read(wf_ctx *c, wf_tensor *x, wf_tensor *memory) {
  return wf_normalise(c, wf_inner_tokens(c, wf_matmul(c, x, memory)), NULL, eps);
}

/* x: s(q), s(k) and v of one piece of a segment. */
static wf_tensor *piece(wf_run *r, const void *self, const wf_seq_span *span, wf_tensor *const *x) {
  const infini *a = self;
  wf_ctx *c = r->c;
  wf_tensor *memory = wf_state_in(r->state, a->memory), *running = wf_state_in(r->state, a->memory + 1),
            *v = x[2];
  int64_t H = span->heads;
  wf_tensor *q = wf_inner_heads(c, x[0], span->m, H), *k = wf_inner_heads(c, x[1], span->m, H);
  if (a->update == DELTA) v = wf_sub(c, v, read(c, k, memory));
  v = wf_inner_heads(c, wf_append_one(c, v), span->m, H);
  running = wf_add(c, running, wf_matmul(c, wf_transpose(c, k, 2, 3), v));
  *wf_state_out(r->state, a->memory) = span->ends ? running : memory;
  *wf_state_out(r->state, a->memory + 1) = running;
  return read(c, q, memory);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const infini *a = self;
  wf_ctx *c = r->c;
  wf_tensor *w[3], *y[3], *s[3];
  for (int i = 0; i < 3; i++) w[i] = wf_value(a->w[i]);
  wf_linear_n(c, x, 3, w, NULL, y);
  for (int i = 0; i < 3; i++) {
    y[i] = wf_as_heads(y[i], a->H);
    s[i] = i < 2 ? wf_elu1(c, y[i]) : y[i];
    if (i < 2 && a->position == ROPE) y[i] = wf_rotary(c, y[i], r->rows->pos, a->rope_base, a->K);
  }
  wf_tensor *empty = wf_zeros(c, "state", x->dtype, WF_SHAPE(a->H, a->K, a->K + 1));
  wf_seq_serial_in serial = {.segment = a->segment,
                             .heads = a->H,
                             .slot = a->memory,
                             .n_state = 2,
                             .init = (wf_tensor *[]){empty, empty},
                             .n_x = 3,
                             .x = s,
                             .piece = piece,
                             .self = a};
  wf_tensor *past = wf_seq_serial(r, &serial);
  wf_tensor *local = wf_seq_dilated(r, &a->slots, y[0], y[1], y[2], a->segment, 1,
                                    &(wf_seq_pattern){a->segment, 1}, 1 / sqrt((double)a->K));
  wf_tensor *gate = wf_reshape(c, wf_sigmoid(c, wf_value(a->beta)), WF_SHAPE(a->H, 1));
  wf_tensor *o = wf_add(c, local, wf_mul(c, gate, wf_sub(c, past, local)));
  return wf_linear(c, wf_reshape(c, o, WF_SHAPE(-1, a->H * a->K)), wf_value(a->out), NULL);
}

static double flops(const void *self, int64_t T) {
  const infini *a = self;
  double wide = (double)(a->H * a->K), seen = (double)(T < a->segment ? T : a->segment);
  double memory = (a->update == DELTA ? 6 : 4) * wide * (double)(a->K + 1);
  return 8 * (double)a->out->shape[0] * wide + 4 * wide * seen + memory;
}

const wf_layer_type wf_layer_infini_attention = {
    .kind = WF_LAYER_MIXER,
    .name = "infini_attention",
    .help = "attention inside a segment, and a compressive memory of all before it",
    .paper = "Munkhdalai et al. 2024",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
};
