/* LongNet: dilated attention (mixers 10).
 *
 *   q = x Wq, k = x Wk, v = x Wv;  [RMS norm of q, k over the head];  [rotary];  y = o Wo
 *
 * Patterns of segment w_i and dilation r_i. In pattern i the document is cut into segments of w_i tokens, and
 * head h keeps the tokens s of a segment with s mod r_i = h mod r_i; a kept token attends to the kept ones of
 * its segment up to itself. With s_i the denominator of its softmax there,
 *     o = sum_i a_i o_i,  a_i = s_i / sum_l s_l,
 * which is one softmax over the keys of all patterns, each counted as often as patterns show it; so are the
 * gradients: those of the a_i included. A segment grid counts from the document's start. With w and r growing
 * alike the cost of a token is bounded while its view grows.
 *
 * Ding et al. 2023.
 */
#include "layers/parts.h"
#include "core/memory.h"

#include <math.h>
#include <stdlib.h>

typedef enum position { ROPE, NONE } position;
static const char *const positions[] = {"rope", "none", NULL};

typedef struct options {
  int64_t heads, head_dim;
  char *segments, *dilations;
  int position;
  double rope_base;
  bool qk_norm, fixed_state;
} options;

static const wf_option table[] = {
    WF_OPT_I64(options, heads, "4", 1, 65536, "heads"),
    WF_OPT_I64F(options, head_dim, "auto", 1, 65536, WF_OPT_AUTO, "width of a head; auto: d_model / heads"),
    WF_OPT_STR(options, segments, "2048,4096,8192,16384,32768", "tokens of a segment, for each pattern"),
    WF_OPT_STR(options, dilations, "1,2,4,6,12",
               "distance of the tokens that a head keeps, for each pattern"),
    WF_OPT_ENUM(options, position, "rope", positions, "how tokens know their position"),
    WF_OPT_F64(options, rope_base, "10000", 1, 1e12, "base of the rotary wavelengths"),
    WF_OPT_BOOL(options, qk_norm, "false", "RMS norm on queries and keys, before the positions"),
    WF_OPT_BOOL(
        options, fixed_state, "false",
        "keep the keys of the longest segment only: a state that does not grow, but is copied at each step"),
    WF_OPT_END};

typedef struct longnet {
  int64_t H, K, window; /* window: as of wf_seq_attend_state */
  int position, n;      /* patterns */
  double rope_base, eps;
  wf_seq_pattern pattern[WF_SEQ_PATTERNS];
  wf_param *w[3], *norm[2], *out;
  wf_seq_attend_slots slots;
} longnet;

/* "1,2,4": the number of numbers, each at least 1; 0 for anything else. */
static int numbers(const char *text, int64_t *x) {
  int n = 0;
  for (;; text++) {
    char *end;
    long long v = strtoll(text, &end, 10);
    if (end == text || v < 1 || v > INT64_C(1) << 40 || n == WF_SEQ_PATTERNS) return 0;
    x[n++] = v;
    text = end;
    if (*text == '\0') return n;
    if (*text != ',') return 0;
  }
}

static wf_status read_patterns(const options *o, longnet *a) {
  int64_t w[WF_SEQ_PATTERNS], r[WF_SEQ_PATTERNS];
  a->n = numbers(o->segments, w);
  if (a->n == 0 || numbers(o->dilations, r) != a->n)
    return wf_hint(WF_FAIL(WF_EINVAL, "segments \"%.200s\" and dilations \"%.200s\" are not as many numbers",
                           o->segments, o->dilations),
                   "give 1 to %d numbers each, as in segments: \"2048,4096\", dilations: \"1,2\"",
                   WF_SEQ_PATTERNS);
  for (int i = 0; i < a->n; i++) a->pattern[i] = (wf_seq_pattern){w[i], r[i]};
  return WF_OK;
}

static wf_status declare(wf_build *b, longnet *a, bool qk_norm) {
  static const char *const names[] = {"q", "k", "v"};
  for (int i = 0; i < 3; i++)
    WF_TRY(wf_build_linear(b, names[i], b->d_model, a->H * a->K, b->init_std, &a->w[i], NULL));
  for (int i = 0; i < 2 && qk_norm; i++)
    WF_TRY(wf_build_param(b, i ? "k_norm.weight" : "q_norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1),
                          WF_SHAPE(a->K), &a->norm[i]));
  WF_TRY(wf_build_linear(b, "o", a->H * a->K, b->d_model, b->out_std, &a->out, NULL));
  return wf_seq_attend_state(b, a->H, a->K, a->K, 0, a->window, &a->slots);
}

static wf_status init(wf_build *b, const void *opts, void **self) {
  const options *o = opts;
  int64_t K = o->head_dim;
  if (K == WF_AUTO_I64) WF_TRY(wf_head_size("queries", b->d_model, 1, o->heads, &K));
  if (o->position == ROPE && K % 2)
    return wf_hint(WF_FAIL(WF_EINVAL, "rotary positions turn pairs; head_dim %lld is odd", (long long)K),
                   "make head_dim even or set position: none");
  longnet *a = wf_calloc("model", 1, sizeof *a);
  if (!a) return WF_ENOMEM;
  *self = a;
  *a = (longnet){
      .H = o->heads, .K = K, .position = o->position, .rope_base = o->rope_base, .eps = b->norm_eps};
  WF_TRY(read_patterns(o, a));
  for (int i = 0; i < a->n && o->fixed_state; i++)
    if (a->pattern[i].segment > a->window) a->window = a->pattern[i].segment;
  return declare(b, a, o->qk_norm);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const longnet *a = self;
  wf_ctx *c = r->c;
  wf_tensor *w[3], *y[3];
  for (int i = 0; i < 3; i++) w[i] = wf_value(a->w[i]);
  wf_linear_n(c, x, 3, w, NULL, y);
  for (int i = 0; i < 3; i++) {
    y[i] = wf_as_heads(y[i], a->H);
    if (i < 2 && a->norm[i]) y[i] = wf_norm(c, WF_NORM_RMS, y[i], wf_value(a->norm[i]), NULL, a->eps);
    if (i < 2 && a->position == ROPE) y[i] = wf_rotary(c, y[i], r->rows->pos, a->rope_base, a->K);
  }
  wf_tensor *o =
      wf_seq_dilated(r, &a->slots, y[0], y[1], y[2], a->window, a->n, a->pattern, 1 / sqrt((double)a->K));
  return wf_linear(c, wf_reshape(c, o, WF_SHAPE(-1, a->H * a->K)), wf_value(a->out), NULL);
}

/* Keys seen by all heads together: one head in r keeps a token, and sees one key in r of its segment. */
static double seen(const longnet *a, int64_t T) {
  double sum = 0;
  for (int i = 0; i < a->n; i++)
    sum += (double)(a->H * (T < a->pattern[i].segment ? T : a->pattern[i].segment)) /
           (double)(a->pattern[i].dilation * a->pattern[i].dilation);
  return sum;
}

static double flops(const void *self, int64_t T) {
  const longnet *a = self;
  return 8 * (double)(a->out->shape[0] * a->H * a->K) + 4 * (double)a->K * seen(a, T);
}

static double reads(const void *self, int64_t T) {
  const longnet *a = self;
  return 2 * (double)a->K * seen(a, T);
}

const wf_layer_type wf_layer_longnet = {
    .kind = WF_LAYER_MIXER,
    .name = "longnet",
    .help = "dilated attention: segments and dilations that grow together",
    .paper = "Ding et al. 2023",
    .options = table,
    .options_size = sizeof(options),
    .init = init,
    .forward = forward,
    .flops = flops,
    .reads = reads,
};
