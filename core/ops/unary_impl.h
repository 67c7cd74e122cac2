/* unary: the formulas of the elementwise functions, for CPU and CUDA kernels alike.
 *
 * X(name, SAVED, value, gradient, lo, hi): `value` of x; `gradient`, given dy and the saved number s, which
 * is the input (SAVED IN) or the output (SAVED OUT); samples lie in lo .. hi. r_exp, R(1.0) and the type
 * `real` come from the including pass. Private to core.
 */
#ifndef WF_CORE_UNARY_IMPL_H
#define WF_CORE_UNARY_IMPL_H

#define WF_UNARY_SIGMOID(x) (R(1.0) / (R(1.0) + r_exp(-(x))))
/* sqrt(2 / pi) (x + 0.044715 x^3) of GPT-2's GELU */
#define WF_UNARY_GELU_ARG(x)  (R(0.7978845608028654) * ((x) + R(0.044715) * (x) * (x) * (x)))
#define WF_UNARY_GELU_DARG(x) (R(0.7978845608028654) * (R(1.0) + R(0.134145) * (x) * (x)))
#define WF_UNARY_TANH_GRAD(x, t) \
  (R(0.5) * (R(1.0) + (t)) + R(0.5) * (x) * (R(1.0) - (t) * (t)) * WF_UNARY_GELU_DARG(x))

/* x Phi(x) and its derivative Phi(x) + x phi(x) */
#define WF_UNARY_GELU(x) (R(0.5) * (x) * (R(1.0) + r_erf(R(0.7071067811865476) * (x))))
#define WF_UNARY_GELU_GRAD(x)                               \
  (R(0.5) * (R(1.0) + r_erf(R(0.7071067811865476) * (x))) + \
   R(0.3989422804014327) * (x)*r_exp(R(-0.5) * (x) * (x)))
#define WF_UNARY_SILU_GRAD(x, sigmoid) ((sigmoid) * (R(1.0) + (x) * (R(1.0) - (sigmoid))))

#define WF_UNARY_OPS(X)                                                                                      \
  X(exp, OUT, r_exp(x), dy *s, -1.5, 1.5)                                                                    \
  X(log, IN, r_log(x), dy / s, 0.2, 3)                                                                       \
  X(sqrt, OUT, r_sqrt(x), R(0.5) * dy / s, 0.2, 3)                                                           \
  X(square, IN, x *x, R(2.0) * dy * s, -1.5, 1.5)                                                            \
  X(relu, OUT, x > R(0.0) ? x : R(0.0), s > R(0.0) ? dy : R(0.0), -1.5, 1.5)                                 \
  X(relu2, IN, x > R(0.0) ? x * x : R(0.0), s > R(0.0) ? R(2.0) * dy * s : R(0.0), -1.5, 1.5)                \
  X(sigmoid, OUT, WF_UNARY_SIGMOID(x), dy *s *(R(1.0) - s), -4, 4)                                           \
  X(logsigmoid, IN, (x < R(0.0) ? x : R(0.0)) - r_log1p(r_exp(-r_abs(x))), dy * WF_UNARY_SIGMOID(-s), -4, 4) \
  X(softplus, IN, (x > R(0.0) ? x : R(0.0)) + r_log1p(r_exp(-r_abs(x))), dy * WF_UNARY_SIGMOID(s), -4, 4)    \
  X(tanh, OUT, r_tanh(x), dy *(R(1.0) - s * s), -2, 2)                                                       \
  X(elu1, OUT, x > R(0.0) ? x + R(1.0) : r_exp(x), s > R(1.0) ? dy : dy * s, -1.5, 1.5)                      \
  X(cos, IN, r_cos(x), -dy *r_sin(s), -3, 3)                                                                 \
  X(sin, IN, r_sin(x), dy *r_cos(s), -3, 3)                                                                  \
  X(silu, IN, x *WF_UNARY_SIGMOID(x), dy *WF_UNARY_SILU_GRAD(s, WF_UNARY_SIGMOID(s)), -4, 4)                 \
  X(gelu, IN, WF_UNARY_GELU(x), dy *WF_UNARY_GELU_GRAD(s), -3, 3)                                            \
  X(gelu_tanh, IN, R(0.5) * x * (R(1.0) + r_tanh(WF_UNARY_GELU_ARG(x))),                                     \
    dy * WF_UNARY_TANH_GRAD(s, r_tanh(WF_UNARY_GELU_ARG(s))), -3, 3)

#endif
