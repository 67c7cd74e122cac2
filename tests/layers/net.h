/* net: the network inside a test-time memory, one vector at a time: dense layers with tanh-GELU between, and
 * their gradients by the chain rule, for definitions in tests. */
#ifndef WF_TESTS_LAYERS_NET_H
#define WF_TESTS_LAYERS_NET_H

#include <math.h>
#include <string.h>
#include "core/memory.h"

enum { NET_DEPTH = 4, NET_WIDE = 64 };

typedef struct net {
  int depth;
  int64_t wide[NET_DEPTH + 1], size; /* of all weights: w_0 [in, out], b_0 [out], w_1, ... */
  double *at;
} net;

static inline net net_make(int depth, const int64_t *wide) {
  net n = {.depth = depth < NET_DEPTH ? depth : NET_DEPTH};
  for (int i = 0; i <= n.depth; i++) n.wide[i] = wide[i];
  for (int i = 0; i < n.depth; i++) n.size += (wide[i] + 1) * wide[i + 1];
  n.at = wf_calloc("test", (size_t)n.size, sizeof *n.at);
  return n;
}
static inline double *net_w(const net *n, int layer) {
  double *w = n->at;
  for (int i = 0; i < layer; i++) w += (n->wide[i] + 1) * n->wide[i + 1];
  return w;
}
static inline double *net_b(const net *n, int layer) {
  return net_w(n, layer) + n->wide[layer] * n->wide[layer + 1];
}
static inline void net_copy(const net *to, const net *from) {
  memcpy(to->at, from->at, (size_t)to->size * sizeof *to->at);
}
/* to = a to + b from */
static inline void net_blend(const net *to, double a, double b, const net *from) {
  for (int64_t i = 0; i < to->size; i++) to->at[i] = a * to->at[i] + b * from->at[i];
}

static inline double net_gelu(double x) {
  return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static inline double net_gelu_slope(double x) {
  double t = tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

/* The inputs and values of the layers at `in`; z[depth-1] is the network's. */
static inline void net_forward(const net *n, const double *in, double x[NET_DEPTH][NET_WIDE],
                               double z[NET_DEPTH][NET_WIDE]) {
  for (int i = 0; i < n->depth; i++) {
    for (int64_t a = 0; a < n->wide[i]; a++) x[i][a] = i ? net_gelu(z[i - 1][a]) : in[a];
    for (int64_t b = 0; b < n->wide[i + 1]; b++) {
      z[i][b] = net_b(n, i)[b];
      for (int64_t a = 0; a < n->wide[i]; a++) z[i][b] += x[i][a] * net_w(n, i)[a * n->wide[i + 1] + b];
    }
  }
}

/* grad += scale d<dz, value at `in`> / d weights; dz [last width] */
static inline void net_gradient(const net *n, const double *in, const double *dz_last, double scale,
                                const net *grad) {
  double x[NET_DEPTH][NET_WIDE], z[NET_DEPTH][NET_WIDE], dz[NET_WIDE], dx[NET_WIDE];
  net_forward(n, in, x, z);
  memcpy(dz, dz_last, (size_t)n->wide[n->depth] * sizeof *dz);
  for (int i = n->depth - 1; i >= 0; i--) {
    int64_t out = n->wide[i + 1];
    for (int64_t a = 0; a < n->wide[i]; a++) {
      dx[a] = 0;
      for (int64_t b = 0; b < out; b++) {
        net_w(grad, i)[a * out + b] += scale * x[i][a] * dz[b];
        dx[a] += net_w(n, i)[a * out + b] * dz[b];
      }
    }
    for (int64_t b = 0; b < out; b++) net_b(grad, i)[b] += scale * dz[b];
    for (int64_t a = 0; a < n->wide[i] && i; a++) dz[a] = dx[a] * net_gelu_slope(z[i - 1][a]);
  }
}

#endif
