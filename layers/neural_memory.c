/* A network as memory; see neural_memory.h. */
#include "layers/neural_memory.h"

#include <math.h>
#include <stdio.h>

enum { START, M, P, PER_LAYER }; /* the state of a layer */

wf_status wf_part_memory(wf_build *b, int64_t heads, int64_t K, int64_t hidden, int64_t V, int depth,
                         wf_memory_part *out) {
  static const char *const kinds[] = {"start", "memory", "momentum"};
  *out = (wf_memory_part){.heads = heads, .depth = depth};
  char name[32];
  for (int i = 0; i < depth; i++) {
    const int64_t shape[] = {heads, i ? hidden : K, i + 1 < depth ? hidden : V};
    /* The last layer begins small: a fresh memory says little. Those before it keep the size of the keys. */
    wf_init init = wf_init_normal(i + 1 < depth ? 1 / sqrt((double)shape[1]) : b->init_std);
    snprintf(name, sizeof name, "memory.%d", i);
    WF_TRY(wf_build_param(b, name, 0, init, 3, shape, &out->w[i]));
    for (int k = 0; k < PER_LAYER; k++) {
      int slot;
      snprintf(name, sizeof name, "%s%d", kinds[k], i);
      WF_TRY(wf_build_state(b, name, false, 3, shape, &slot));
      if (i == 0 && k == 0) out->slot = slot;
    }
  }
  return WF_OK;
}

int wf_memory_init(wf_ctx *c, const wf_memory_part *p, wf_tensor **init) {
  for (int i = 0; i < p->depth; i++, init += PER_LAYER) {
    init[START] = init[M] = wf_value(p->w[i]);
    init[P] = wf_zeros(c, "state", init[M]->dtype, init[M]->ndim, init[M]->shape);
  }
  return p->depth * PER_LAYER;
}

static wf_tensor *state(wf_run *r, const wf_memory_part *p, int layer, int which) {
  return wf_state_in(r->state, p->slot + layer * PER_LAYER + which);
}

/* The network at the segment's start. */
static wf_inner start_of(wf_run *r, const wf_memory_part *p, const wf_seq_span *span) {
  wf_inner n = {.depth = p->depth};
  for (int i = 0; i < p->depth; i++) n.w[i] = state(r, p, i, span->offset ? START : M);
  return n;
}

wf_tensor *wf_recall_memory(wf_run *r, const wf_memory_part *p, const wf_seq_span *span, wf_tensor *q) {
  wf_inner n = start_of(r, p, span);
  wf_inner_run run;
  return wf_inner_tokens(r->c,
                         wf_inner_forward(r->c, &n, wf_inner_heads(r->c, q, span->m, span->heads), &run));
}

/* D [m, H, rows, columns]: its part from (i, j) to (i1, j1). */
static wf_tensor *part(wf_ctx *c, wf_tensor *D, int64_t i, int64_t i1, int64_t j, int64_t j1) {
  return wf_slice(c, wf_slice(c, D, 2, i, i1), 3, j, j1);
}

/* [m L, H] of log decays -> decays [m, H, L+1, L+1] */
static wf_tensor *decays(wf_ctx *c, wf_tensor *log, const wf_seq_span *span) {
  wf_tensor *g = wf_inner_heads(c, log, span->m, span->heads);
  return wf_decays(c, wf_reshape(c, g, WF_SHAPE(span->m, span->heads, span->len)));
}

/* w a + p b [+ x^T (scale . u)]: the state of a layer after the piece. scale [m, H, 1, L+1] = [b | of tokens]
 */
static wf_tensor *moved(wf_ctx *c, wf_tensor *w, wf_tensor *a, wf_tensor *p, wf_tensor *scale, wf_tensor *x,
                        wf_tensor *u) {
  int64_t L = u->shape[2];
  wf_tensor *of_tokens = wf_transpose(c, wf_slice(c, scale, 3, 1, L + 1), 2, 3);
  wf_tensor *y = wf_matmul(c, wf_transpose(c, x, 2, 3), wf_mul(c, u, of_tokens));
  y = wf_add(c, y, wf_mul(c, p, wf_slice(c, scale, 3, 0, 1)));
  return w ? wf_add(c, y, wf_mul(c, w, a)) : y;
}

/* sqrt(sum x^2) of rows, or of whole matrices [m, H, 1, 1] */
static wf_tensor *length(wf_ctx *c, wf_tensor *x, bool matrix) {
  wf_tensor *s = wf_sum(c, wf_square(c, x), -1, true);
  if (matrix) s = wf_sum(c, s, -2, true);
  return wf_sqrt(c, wf_affine(c, s, 1, 1e-12));
}

/* theta / max(1, C) [m, H, len, 1], given the residuals of a run. */
static wf_tensor *bounded(wf_ctx *c, const wf_inner *n, const wf_inner_run *run, wf_tensor *residual,
                          wf_tensor *theta) {
  wf_tensor *e = length(c, residual, false), *J = NULL, *gain = NULL;
  wf_tensor *C = wf_square(c, length(c, run->x[n->depth - 1], false));
  for (int i = n->depth - 2; i >= 0; i--) {
    wf_tensor *x = length(c, run->x[i], false);
    C = wf_add(c, C, wf_mul(c, x, gain ? wf_mul(c, e, gain) : e));
    J = J ? wf_matmul(c, n->w[i + 1], J) : n->w[i + 1];
    gain = length(c, J, true);
    C = wf_add(c, C, wf_square(c, wf_mul(c, x, gain)));
  }
  return wf_div(c, theta, wf_affine(c, wf_relu(c, wf_affine(c, C, 1, -1)), 1, 1));
}

wf_tensor *wf_use_memory(wf_run *r, const wf_memory_part *p, const wf_seq_span *span,
                         const wf_memory_in *in) {
  wf_ctx *c = r->c;
  int64_t L = span->len;
  wf_tensor *const token[] = {in->q, in->k, in->v, in->theta};
  wf_tensor *x[4];
  for (int i = 0; i < 4; i++) x[i] = wf_inner_heads(c, token[i], span->m, span->heads);
  wf_tensor *B = decays(c, in->keep, span), *N = decays(c, in->momentum, span);
  wf_tensor *G = wf_matmul(c, part(c, B, 1, L + 1, 1, L + 1), wf_slice(c, N, 2, 1, L + 1));
  wf_tensor *kept = part(c, B, 1, L + 1, 0, 1), *f = wf_slice(c, G, 3, 0, 1);
  wf_tensor *writes = wf_slice(c, G, 3, 1, L + 1);
  wf_tensor *last_kept = wf_slice(c, kept, 2, L - 1, L), *last = wf_slice(c, G, 2, L - 1, L);
  wf_tensor *last_momentum = wf_slice(c, N, 2, L, L + 1);

  wf_inner start = start_of(r, p, span);
  wf_inner_run run;
  wf_tensor *e = wf_sub(c, wf_inner_forward(c, &start, x[1], &run), x[2]), *y = x[0];
  wf_tensor *theta = p->bounded && p->depth > 1 ? bounded(c, &start, &run, e, x[3]) : x[3];
  wf_inner_backward(c, &start, wf_mul(c, e, wf_affine(c, theta, -2, 0)), &run);
  for (int i = 0; i < p->depth; i++) {
    wf_tensor *w = state(r, p, i, M), *momentum = state(r, p, i, P), *X = run.x[i], *u = run.dz[i];
    if (wf_is_poison(u) || wf_is_poison(y)) return wf_poison(c, WF_OK);
    if (i) y = wf_gelu_tanh(c, y);
    wf_tensor *seen = wf_mul(c, wf_matmul(c, y, wf_transpose(c, X, 2, 3)), writes);
    wf_tensor *old = wf_add(c, wf_mul(c, wf_matmul(c, y, w), kept), wf_mul(c, wf_matmul(c, y, momentum), f));
    y = wf_add(c, old, wf_matmul(c, seen, u));
    wf_tensor **next = wf_state_out(r->state, p->slot + i * PER_LAYER);
    next[START] = start.w[i];
    next[M] = moved(c, w, last_kept, momentum, last, X, u);
    next[P] = moved(c, NULL, NULL, momentum, last_momentum, X, u);
  }
  return wf_inner_tokens(c, y);
}
