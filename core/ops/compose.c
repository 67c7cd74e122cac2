/* compose: two maps of a state, S -> A S + B (core/op.h: wf_carry_kind), one after the other:
 *     (A2, B2) after (A1, B1) = (A2 A1, A2 B1 + B2)
 * lane by lane, as the later one is linked to what was before:
 *     pass    the state stayed as it was     (A1, B1 + B2); max: (A1, B1)
 *     set     it began anew                  (0, B2)
 *     chain   it went through
 * Backwards (`turned`) gradients go through the transposes: B = A2^T B1 + B2, and A = A1 A2, whose transpose
 * is theirs.
 */
#include "core/ops/rows_impl.h"

enum { A2, B2, A1, B1, LINK, INS };

typedef struct compose_attr {
  int32_t kind, turned;
} compose_attr;

#ifdef WF_KERNEL_PASS

static inline void times(int64_t n, int64_t m, const real *a, bool turned, const real *x, real *restrict y) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < n; k++) {
      real f = turned ? a[k * n + i] : a[i * n + k];
      for (int64_t j = 0; j < m; j++) y[i * m + j] += f * x[k * m + j];
    }
}

/* (high, low) as one number; what does not fit into a real is the low part. */
static inline void add_pair(int64_t d, const real *x, const real *y, real *to) {
  for (int64_t i = 0; i < d; i++) {
    double sum = ((double)x[i] + (double)y[i]) + ((double)x[d + i] + (double)y[d + i]);
    to[i] = (real)sum;
    to[d + i] = (real)(sum - (double)to[i]);
  }
}

/* One lane: `size` elements of B, `n_a` of A; K: of DENSE; d: of PAIR. */
typedef struct lane_size {
  int64_t size, n_a, K, V, d;
} lane_size;

static void chain_b(wf_carry_kind kind, bool turned, const lane_size *z, const real *a2, const real *b2,
                    const real *b1, real *b) {
  int64_t wide = z->n_a ? z->size / z->n_a : 1;
  switch (kind) {
  case WF_CARRY_SCALE:
    for (int64_t i = 0; i < z->n_a; i++)
      for (int64_t j = i * wide; j < (i + 1) * wide; j++) b[j] = a2[i] * b1[j] + b2[j];
    break;
  case WF_CARRY_MAX:
    for (int64_t i = 0; i < z->size; i++) {
      real kept = a2 ? a2[i / wide] + b1[i] : b1[i];
      b[i] = kept > b2[i] ? kept : b2[i];
    }
    break;
  case WF_CARRY_DENSE:
    memcpy(b, b2, (size_t)z->size * sizeof *b);
    for (int64_t i = 0; i * z->K * z->V < z->size; i++)
      times(z->K, z->V, a2 + i * z->K * z->K, turned, b1 + i * z->K * z->V, b + i * z->K * z->V);
    break;
  case WF_CARRY_PAIR:
    if (!turned) {
      for (int64_t i = 0; i < z->size; i += 2 * z->d) add_pair(z->d, b2 + i, b1 + i, b + i);
      break; /* backwards both parts have the gradient of their sum */
    }        /* fallthrough */
  case WF_CARRY_ADD:
    for (int64_t i = 0; i < z->size; i++) b[i] = b1[i] + b2[i];
  }
}

static void chain_a(wf_carry_kind kind, bool turned, const lane_size *z, const real *a2, const real *a1,
                    real *a) {
  if (kind == WF_CARRY_DENSE) {
    memset(a, 0, (size_t)z->n_a * sizeof *a);
    for (int64_t i = 0; i < z->n_a; i += z->K * z->K)
      times(z->K, z->K, (turned ? a1 : a2) + i, false, (turned ? a2 : a1) + i, a + i);
  } else {
    for (int64_t i = 0; i < z->n_a; i++) a[i] = kind == WF_CARRY_MAX ? a2[i] + a1[i] : a2[i] * a1[i];
  }
}

WF_KERNEL(compose) {
  const compose_attr *at = call->attr;
  const wf_tensor *out = call->out[0];
  int64_t lanes = out->shape[0], last = out->ndim - 1;
  if (!wf_numel(out)) return WF_OK;
  const real *a2 = call->in[A2] ? wf_data(call->in[A2]) : NULL, *b2 = wf_data(call->in[B2]);
  const real *a1 = call->in[A1] ? wf_data(call->in[A1]) : NULL, *b1 = wf_data(call->in[B1]);
  const unsigned char *link = wf_data(call->in[LINK]);
  real *b = wf_data(out), *a = call->n_out > 1 ? wf_data(call->out[1]) : NULL;
  lane_size z = {.size = wf_numel(out) / lanes, .n_a = a2 ? wf_numel(call->in[A2]) / lanes : 0};
  z.V = z.d = out->shape[last];
  if (at->kind == WF_CARRY_DENSE) z.K = out->shape[last - 1];
  WF_PARALLEL_FOR(l0, l1, lanes, z.size * (z.K ? z.K : 2)) {
    for (int64_t l = l0; l < l1; l++) {
      const real *x2 = b2 + l * z.size, *x1 = b1 + l * z.size, *f2 = a2 ? a2 + l * z.n_a : NULL;
      real *to = b + l * z.size;
      if (link[l] == WF_LINK_CHAIN)
        chain_b(at->kind, at->turned, &z, f2, x2, x1, to);
      else if (link[l] == WF_LINK_SET)
        memcpy(to, x2, (size_t)z.size * sizeof *to);
      else if (at->kind == WF_CARRY_MAX)
        memcpy(to, x1, (size_t)z.size * sizeof *to);
      else
        chain_b(at->kind == WF_CARRY_PAIR ? WF_CARRY_PAIR : WF_CARRY_ADD, at->turned, &z, NULL, x2, x1, to);
      if (!a) continue;
      if (link[l] == WF_LINK_CHAIN)
        chain_a(at->kind, at->turned, &z, f2, a1 + l * z.n_a, a + l * z.n_a);
      else if (link[l] == WF_LINK_SET)
        memset(a + l * z.n_a, 0, (size_t)z.n_a * sizeof *a);
      else
        memcpy(a + l * z.n_a, a1 + l * z.n_a, (size_t)z.n_a * sizeof *a);
    }
  }
  return WF_OK;
}

#else

WF_CPU(compose)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  const compose_attr *at = call->attr;
  const wf_tensor *b = call->in[B2], *a = call->in[A2], *link = call->in[LINK];
  char t[3][96];
  WF_SHAPE_CHECK(b->ndim >= 2 && wf_same_shape(b, call->in[B1]) && b->dtype == call->in[B1]->dtype,
                 "compose: %s after %s", wf_shape_text(b, t[0]), wf_shape_text(call->in[B1], t[1]));
  WF_SHAPE_CHECK(link->ndim == 1 && link->shape[0] == b->shape[0] && link->dtype == WF_U8,
                 "compose: links %s for %s", wf_shape_text(link, t[0]), wf_shape_text(b, t[1]));
  bool needs = at->kind == WF_CARRY_SCALE || at->kind == WF_CARRY_DENSE;
  WF_SHAPE_CHECK(a ? a->ndim >= 2 && a->dtype == b->dtype && a->shape[0] == b->shape[0] &&
                         (at->kind == WF_CARRY_DENSE || wf_numel(b) % (wf_numel(a) ? wf_numel(a) : 1) == 0)
                   : !needs,
                 "compose: factors %s for %s", wf_shape_text(a, t[0]), wf_shape_text(b, t[1]));
  WF_SHAPE_CHECK(!call->in[A1] || (a && wf_same_shape(a, call->in[A1])), "compose: factors %s after %s",
                 wf_shape_text(a, t[0]), wf_shape_text(call->in[A1], t[1]));
  wf_desc_like(&out[0], b);
  *n_out = 1;
  if (call->in[A1]) wf_desc_like(&out[(*n_out)++], a);
  return WF_OK;
}

/* Of each kind forwards and backwards, with and without the first one's factor. */
static wf_status sample(wf_sample *s) {
  static const unsigned char link[] = {WF_LINK_CHAIN, WF_LINK_PASS, WF_LINK_SET, WF_LINK_CHAIN};
  int kind = s->index % 5;
  bool factor = kind >= WF_CARRY_SCALE, first = factor && s->index < 15;
  int64_t b[] = {4, 2, 3, 5}, a[] = {4, 2, 3, 3};
  int ndim = kind == WF_CARRY_DENSE ? 4 : 3, na = kind == WF_CARRY_DENSE ? 4 : kind == WF_CARRY_MAX ? 3 : 2;
  s->in[B2] = wf_sample_real(s, ndim, b);
  s->in[B1] = wf_sample_real(s, ndim, b);
  if (factor) s->in[A2] = wf_sample_real(s, na, a);
  if (first) s->in[A1] = wf_sample_real(s, na, a);
  s->in[LINK] = wf_from_host(s->ctx, "sample", WF_U8, WF_SHAPE(4), link);
  s->n_in = INS;
  *(compose_attr *)(void *)s->attr = (compose_attr){.kind = kind, .turned = s->index / 5 % 2};
  return WF_OK;
}

const wf_op wf_op_compose = {
    .name = "compose",
    .min_in = INS,
    .max_in = INS,
    .n_out = -1,
    .attr_size = sizeof(compose_attr),
    .optional = 1 << A2 | 1 << A1,
    .infer = infer,
    WF_NONDIFF("of a scan over segments, which has its own gradient"),
    .cpu = &compose_cpu,
    .sample = sample,
    .n_samples = 20,
};

wf_status wf_compose_into(wf_ctx *c, wf_carry_kind kind, bool turned, wf_tensor *link, wf_tensor *a2,
                          wf_tensor *b2, wf_tensor *a1, wf_tensor *b1, wf_tensor *a, wf_tensor *b) {
  return wf_op_run(c, &wf_op_compose, INS, (wf_tensor *[]){a2, b2, a1, b1, link},
                   &(compose_attr){kind, turned}, a ? 2 : 1, (wf_tensor *[]){b, a}, 0);
}

#endif
