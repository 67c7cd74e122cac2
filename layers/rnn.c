/* The classical gated recurrences, one head over the whole width (cells: core/ops/recur.c).
 *
 *   LSTM  h = lstm(x Wih^T, h Whh^T + b), gates i f g o     Hochreiter & Schmidhuber 1997; Gers et al. 2000
 *   GRU   h = gru(x Wih^T + bih, h Whh^T + bhh), gates r z n  Cho et al. 2014
 *   y = h, or h Wout^T where the width is not d_model
 *
 * Recurrent dropout: of h where the recurrent weights read it, one mask a document (Gal & Ghahramani 2016),
 * or of the candidate g or n, one a token (Semeniuta et al. 2016).
 *
 * Parameters are those of torch.nn.LSTM and GRU without "_l0"; the LSTM's two biases act as their sum and are
 * one: bias = bias_ih + bias_hh. Weights and biases begin U(+-width^{-1/2}) as there, the LSTM's forget bias
 * `forget_bias` higher (Jozefowicz et al. 2015).
 */
#include "layers/seq.h"
#include "core/memory.h"

#include <math.h>
#include <string.h>

typedef enum drop_kind { HIDDEN, CANDIDATE } drop_kind;
static const char *const drop_kinds[] = {"hidden", "candidate", NULL};

typedef struct options {
  int64_t width;
  double dropout, forget_bias;
  int dropout_of;
  bool project, learn_state;
} options;

#define WIDTH WF_OPT_I64F(options, width, "auto", 1, 1 << 20, WF_OPT_AUTO, "of h; auto: d_model")
#define COMMON                                                                                           \
  WF_OPT_BOOL(options, project, "false", "an output projection even where width is d_model"),            \
      WF_OPT_BOOL(options, learn_state, "false",                                                         \
                  "the state that documents start from is learned, else zero"),                          \
      WF_OPT_F64(options, dropout, "0", 0, 0.999, "recurrent dropout"),                                  \
      WF_OPT_ENUM(options, dropout_of, "hidden", drop_kinds,                                             \
                  "hidden: h between steps, one mask a document; candidate: what a step would write, a " \
                  "mask a token")

static const wf_option lstm_table[] = {
    WIDTH,
    WF_OPT_F64(options, forget_bias, "1", -100, 100, "added to the first values of the forget gate's bias"),
    COMMON, WF_OPT_END};
static const wf_option gru_table[] = {WIDTH, COMMON, WF_OPT_END};

typedef struct rnn {
  wf_recur_cell cell;
  int64_t D;
  wf_param *w, *r, *bias, *bias_r, *first, *out; /* bias: beside w, NULL in an LSTM; bias_r: beside r */
  wf_seq_recur_dropout drop;
  int slot;
  char site[]; /* of drop */
} rnn;

/* U(+-a), and in the second of the gates' parts, of c elements, b higher. */
static double lstm_bias(const wf_init *w, wf_rng_key key, int64_t element) {
  double u = w->a * (2 * wf_rng_uniform(key, (uint64_t)element) - 1);
  return element / (int64_t)w->c == 1 ? u + w->b : u;
}

static wf_status declare(wf_build *b, rnn *m, const options *o) {
  int64_t D = m->D, G = wf_recur_gates(m->cell);
  double a = 1 / sqrt((double)D);
  wf_init uniform = {.kind = WF_INIT_UNIFORM, .a = -a, .b = a},
          forget = {.kind = WF_INIT_FN, .a = a, .b = o->forget_bias, .c = (double)D, .fn = lstm_bias};
  WF_TRY(wf_build_param(b, "weight_ih", 0, uniform, WF_SHAPE(G * D, b->d_model), &m->w));
  WF_TRY(wf_build_param(b, "weight_hh", 0, uniform, WF_SHAPE(G * D, D), &m->r));
  if (m->cell == WF_RECUR_LSTM) {
    WF_TRY(wf_build_param(b, "bias", WF_PARAM_NO_DECAY, forget, WF_SHAPE(G * D), &m->bias_r));
  } else {
    WF_TRY(wf_build_param(b, "bias_ih", WF_PARAM_NO_DECAY, uniform, WF_SHAPE(G * D), &m->bias));
    WF_TRY(wf_build_param(b, "bias_hh", WF_PARAM_NO_DECAY, uniform, WF_SHAPE(G * D), &m->bias_r));
  }
  if (o->learn_state)
    WF_TRY(wf_build_param(b, "state", WF_PARAM_NO_DECAY, wf_init_const(0),
                          WF_SHAPE(wf_recur_states(m->cell), 1, D), &m->first));
  if (o->project || D != b->d_model)
    WF_TRY(wf_build_linear(b, "out", D, b->d_model, b->out_std, &m->out, NULL));
  return wf_seq_recur_state(b, "h", m->cell, 1, D, &m->slot);
}

static wf_status init(wf_build *b, const options *o, wf_recur_cell cell, void **self) {
  size_t n = strlen(b->prefix) + 1;
  rnn *m = wf_calloc("model", 1, sizeof *m + n);
  if (!m) return WF_ENOMEM;
  *self = m;
  memcpy(m->site, b->prefix, n);
  m->cell = cell;
  m->D = o->width == WF_AUTO_I64 ? b->d_model : o->width;
  m->drop.site = m->site;
  *(o->dropout_of == HIDDEN ? &m->drop.h : &m->drop.candidate) = o->dropout;
  return declare(b, m, o);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  const rnn *m = self;
  wf_ctx *c = r->c;
  int64_t D = m->D, G = wf_recur_gates(m->cell);
  x = wf_linear(c, x, wf_value(m->w), wf_value(m->bias));
  if (wf_is_poison(x)) return x;
  wf_recur_in in = {.cell = m->cell,
                    .x = {wf_same_variable(x, WF_SHAPE(x->shape[0], G, 1, D))},
                    .r = wf_same_variable(wf_value(m->r), WF_SHAPE(1, G, D, D)),
                    .b = wf_same_variable(wf_value(m->bias_r), WF_SHAPE(G, 1, D)),
                    .init = wf_value(m->first)};
  wf_tensor *h = wf_reshape(c, wf_seq_recur(r, m->slot, &in, &m->drop), WF_SHAPE(-1, D));
  return m->out ? wf_linear(c, h, wf_value(m->out), NULL) : h;
}

static wf_status init_lstm(wf_build *b, const void *o, void **self) {
  return init(b, o, WF_RECUR_LSTM, self);
}
static wf_status init_gru(wf_build *b, const void *o, void **self) {
  return init(b, o, WF_RECUR_GRU, self);
}

const wf_layer_type wf_layer_lstm = {
    .kind = WF_LAYER_MIXER,
    .name = "lstm",
    .help = "long short-term memory, as torch.nn.LSTM; recurrent dropout",
    .paper = "Hochreiter & Schmidhuber 1997; Gers et al. 2000",
    .options = lstm_table,
    .options_size = sizeof(options),
    .init = init_lstm,
    .forward = forward,
};
const wf_layer_type wf_layer_gru = {
    .kind = WF_LAYER_MIXER,
    .name = "gru",
    .help = "gated recurrent unit, as torch.nn.GRU; recurrent dropout",
    .paper = "Cho et al. 2014",
    .options = gru_table,
    .options_size = sizeof(options),
    .init = init_gru,
    .forward = forward,
};
