/* Parts that several mixers share; see parts.h. */
#include "layers/parts.h"

#include <math.h>
#include <stdio.h>

wf_status wf_part_conv(wf_build *b, const char *name, int64_t d, int64_t w, wf_init init, bool bias,
                       bool silu, wf_conv_part *out) {
  *out = (wf_conv_part){.silu = silu};
  char full[64];
  snprintf(full, sizeof full, "%s.weight", name);
  WF_TRY(wf_build_param(b, full, 0, init, WF_SHAPE(d, 1, w), &out->weight));
  snprintf(full, sizeof full, "%s.bias", name);
  if (init.kind != WF_INIT_UNIFORM) init = wf_init_const(0);
  if (bias) WF_TRY(wf_build_param(b, full, WF_PARAM_NO_DECAY, init, WF_SHAPE(d), &out->bias));
  return wf_seq_conv_state(b, name, d, w, &out->slot);
}

wf_tensor *wf_use_conv(wf_run *r, const wf_conv_part *p, wf_tensor *x) {
  if (!p->weight) return x;
  return wf_seq_conv(r, p->slot, x, wf_value(p->weight), wf_value(p->bias), p->silu);
}

wf_tensor *wf_as_heads(wf_tensor *x, int64_t heads) {
  if (wf_is_poison(x)) return x;
  return wf_same_variable(x, WF_SHAPE(x->shape[0], heads, x->shape[1] / heads));
}

wf_status wf_part_qkv(wf_build *b, const int64_t heads[3], const int64_t size[3], int64_t gate, int64_t conv,
                      wf_qkv_part *out) {
  static const char *const names[] = {"q", "k", "v", "g"};
  *out = (wf_qkv_part){.heads = {heads[0], heads[1], heads[2]}};
  for (int i = 0; i < 4; i++) {
    int64_t wide = i < 3 ? heads[i] * size[i] : gate;
    if (wide) WF_TRY(wf_build_linear(b, names[i], b->d_model, wide, b->init_std, &out->w[i], NULL));
  }
  for (int i = 0; i < 3 && conv; i++) {
    char name[16];
    snprintf(name, sizeof name, "%s_conv", names[i]);
    WF_TRY(wf_part_conv(b, name, heads[i] * size[i], conv, wf_init_normal(b->init_std), false, true,
                        &out->conv[i]));
  }
  return WF_OK;
}

void wf_use_qkv(wf_run *r, const wf_qkv_part *p, wf_tensor *x, wf_tensor *y[4]) {
  wf_tensor *w[4];
  int n = p->w[3] ? 4 : 3;
  for (int i = 0; i < n; i++) w[i] = wf_value(p->w[i]);
  y[3] = NULL;
  wf_linear_n(r->c, x, n, w, NULL, y);
  for (int i = 0; i < 3; i++) y[i] = wf_as_heads(wf_use_conv(r, &p->conv[i], y[i]), p->heads[i]);
}

double wf_qkv_weights(const wf_qkv_part *p) {
  double n = 0;
  for (int i = 0; i < 4; i++) n += p->w[i] ? (double)p->w[i]->numel : 0;
  return n;
}

wf_scan_in wf_delta_in(wf_ctx *c, const wf_qkv_part *p, wf_tensor *const y[3], wf_tensor *pre,
                       bool negative) {
  wf_tensor *z[3], *beta = wf_sigmoid(c, pre);
  for (int i = 0; i < 3; i++) z[i] = p->conv[i].weight ? y[i] : wf_silu(c, y[i]);
  return (wf_scan_in){.q = wf_l2norm(c, z[0], 1e-6),
                      .k = wf_l2norm(c, z[1], 1e-6),
                      .v = z[2],
                      .beta = negative ? wf_affine(c, beta, 2, 0) : beta};
}

wf_tensor *wf_turned_heads(wf_ctx *c, wf_tensor *x, wf_tensor *wave) {
  if (wf_is_poison(x)) return x;
  int64_t n = x->shape[0], H = x->shape[1], K = x->shape[2];
  x = wf_mul(c, wf_reshape(c, x, WF_SHAPE(n, H, 1, K)), wave);
  return wf_reshape(c, x, WF_SHAPE(n, H, 2 * K));
}

wf_tensor *wf_repeat_heads(wf_ctx *c, wf_tensor *x, int64_t heads) {
  if (wf_is_poison(x) || x->shape[1] == heads) return x;
  int64_t n = x->shape[0], groups = x->shape[1], width = x->shape[2];
  wf_tensor *apart = wf_reshape(c, x, WF_SHAPE(n, groups, 1, width));
  return wf_reshape(c, wf_expand(c, apart, WF_SHAPE(n, groups, heads / groups, width)),
                    WF_SHAPE(n, heads, width));
}

wf_tensor *wf_head_constants(wf_ctx *c, const double *value, int64_t H, int64_t n, wf_dtype dtype) {
  wf_tensor *one = wf_cast(c, wf_from_host(c, "constant", WF_F64, WF_SHAPE(1, H), value), dtype);
  return wf_expand(c, one, WF_SHAPE(n, H));
}

wf_tensor *wf_head_norm(wf_ctx *c, wf_tensor *h, wf_tensor *weight, double eps) {
  h = wf_norm(c, WF_NORM_LAYER, h, NULL, NULL, eps);
  return wf_mul(c, wf_reshape(c, h, WF_SHAPE(-1, wf_numel(weight))), weight);
}

wf_status wf_part_out(wf_build *b, int64_t heads, int64_t V, wf_glu_kind gate, double eps, wf_out_part *out) {
  *out = (wf_out_part){.gate = gate, .eps = eps};
  WF_TRY(wf_build_param(b, "norm.weight", WF_PARAM_NO_DECAY, wf_init_const(1), WF_SHAPE(V), &out->norm));
  return wf_build_linear(b, "o", heads * V, b->d_model, b->out_std, &out->out, NULL);
}

wf_tensor *wf_use_out(wf_run *r, const wf_out_part *p, wf_tensor *o, wf_tensor *z) {
  o = wf_norm(r->c, WF_NORM_RMS, o, wf_value(p->norm), NULL, p->eps);
  o = wf_reshape(r->c, o, WF_SHAPE(-1, p->out->shape[1]));
  if (z) o = wf_glu(r->c, p->gate, z, o);
  return wf_linear(r->c, o, wf_value(p->out), NULL);
}

wf_init wf_init_uniform(double most) {
  return (wf_init){.kind = WF_INIT_UNIFORM, .a = -most, .b = most};
}

static double log_uniform(const wf_init *w, wf_rng_key key, int64_t element) {
  return log(fmax(w->a + (w->b - w->a) * wf_rng_uniform(key, (uint64_t)element), 1e-4));
}
wf_init wf_init_log_uniform(double a, double b) {
  return (wf_init){.kind = WF_INIT_FN, .a = a, .b = b, .fn = log_uniform};
}

static double time_step(const wf_init *w, wf_rng_key key, int64_t element) {
  double low = log(w->a), high = log(w->b);
  double dt = fmax(exp(low + (high - low) * wf_rng_uniform(key, (uint64_t)element)), 1e-4);
  return dt + log(-expm1(-dt)); /* the inverse of softplus */
}
wf_init wf_init_time_step(double a, double b) {
  return (wf_init){.kind = WF_INIT_FN, .a = a, .b = b, .fn = time_step};
}

wf_status wf_head_size(const char *what, int64_t d_model, double expand, int64_t heads, int64_t *size) {
  int64_t width = (int64_t)llround((double)d_model * expand);
  if (width < heads || width % heads)
    return wf_hint(WF_FAIL(WF_EINVAL, "heads: %lld heads do not divide the width of %s, %lld",
                           (long long)heads, what, (long long)width),
                   "the width is d_model %lld x %g", (long long)d_model, expand);
  *size = width / heads;
  return WF_OK;
}

wf_status wf_head_groups(int64_t heads, int64_t kv_heads) {
  if (heads % kv_heads == 0) return WF_OK;
  return wf_hint(
      WF_FAIL(WF_EINVAL, "kv_heads: %lld do not divide heads: %lld", (long long)kv_heads, (long long)heads),
      "each key head serves heads / kv_heads query heads");
}

wf_status wf_value_heads(int64_t heads, int64_t K, int64_t v_heads, double expand_v, int64_t *Hv,
                         int64_t *V) {
  *Hv = v_heads == WF_AUTO_I64 ? heads : v_heads;
  *V = (int64_t)llround((double)K * expand_v);
  if (*Hv % heads)
    return wf_hint(
        WF_FAIL(WF_EINVAL, "v_heads: %lld is no multiple of heads: %lld", (long long)*Hv, (long long)heads),
        "v_heads / heads heads of values share queries and keys");
  if (*V < 1)
    return wf_hint(WF_FAIL(WF_EINVAL, "expand_v: %g leaves no width for the values", expand_v), "raise it");
  return WF_OK;
}
