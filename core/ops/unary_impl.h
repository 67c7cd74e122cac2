/* unary: the formulas of the elementwise functions, for CPU and CUDA kernels alike.
 *
 * X(name, SAVED, ORDER, value, gradient, lo, hi): `value` of x; `gradient`, given dy and the saved number s,
 * which is the input (SAVED IN) or the output (SAVED OUT); samples lie in lo .. hi. ORDER is ONCE, or TWICE
 * where the gradient is itself an expression that is differentiated (inner losses): then
 * Y(name, curvature) gives, in terms of u, dy and the input s, the gradient of <u, gradient> by s.
 * r_exp, R(1.0) and the type `real` come from the including pass. Private to core.
 */
#ifndef WF_CORE_UNARY_IMPL_H
#define WF_CORE_UNARY_IMPL_H

#define WF_UNARY_SIGMOID(x) (R(1.0) / (R(1.0) + r_exp(-(x))))
/* sqrt(2 / pi) (x + 0.044715 x^3) of GPT-2's GELU */
#define WF_UNARY_GELU_ARG(x)  (R(0.7978845608028654) * ((x) + R(0.044715) * (x) * (x) * (x)))
#define WF_UNARY_GELU_DARG(x) (R(0.7978845608028654) * (R(1.0) + R(0.134145) * (x) * (x)))
#define WF_UNARY_TANH_GRAD(x, t) \
  (R(0.5) * (R(1.0) + (t)) + R(0.5) * (x) * (R(1.0) - (t) * (t)) * WF_UNARY_GELU_DARG(x))

/* The second derivative: (1 - t^2) (a' + x a'' / 2 - x t a'^2), a the argument of tanh */
#define WF_UNARY_GELU_DDARG(x) (R(0.7978845608028654) * R(0.26829) * (x))
#define WF_UNARY_TANH_CURVE(x, t)                                                        \
  ((R(1.0) - (t) * (t)) * (WF_UNARY_GELU_DARG(x) + R(0.5) * (x)*WF_UNARY_GELU_DDARG(x) - \
                           (x) * (t)*WF_UNARY_GELU_DARG(x) * WF_UNARY_GELU_DARG(x)))

/* x Phi(x) and its derivative Phi(x) + x phi(x) */
#define WF_UNARY_GELU(x) (R(0.5) * (x) * (R(1.0) + r_erf(R(0.7071067811865476) * (x))))
#define WF_UNARY_GELU_GRAD(x)                               \
  (R(0.5) * (R(1.0) + r_erf(R(0.7071067811865476) * (x))) + \
   R(0.3989422804014327) * (x)*r_exp(R(-0.5) * (x) * (x)))
#define WF_UNARY_SILU_GRAD(x, sigmoid) ((sigmoid) * (R(1.0) + (x) * (R(1.0) - (sigmoid))))

#define WF_UNARY_OPS(X)                                                                                      \
  X(exp, OUT, ONCE, r_exp(x), dy *s, -1.5, 1.5)                                                              \
  X(log, IN, ONCE, r_log(x), dy / s, 0.2, 3)                                                                 \
  X(sqrt, OUT, ONCE, r_sqrt(x), R(0.5) * dy / s, 0.2, 3)                                                     \
  X(square, IN, ONCE, x *x, R(2.0) * dy * s, -1.5, 1.5)                                                      \
  X(relu, OUT, ONCE, x > R(0.0) ? x : R(0.0), s > R(0.0) ? dy : R(0.0), -1.5, 1.5)                           \
  X(relu2, IN, ONCE, x > R(0.0) ? x * x : R(0.0), s > R(0.0) ? R(2.0) * dy * s : R(0.0), -1.5, 1.5)          \
  X(sigmoid, OUT, ONCE, WF_UNARY_SIGMOID(x), dy *s *(R(1.0) - s), -4, 4)                                     \
  X(logsigmoid, IN, ONCE, (x < R(0.0) ? x : R(0.0)) - r_log1p(r_exp(-r_abs(x))), dy * WF_UNARY_SIGMOID(-s),  \
    -4, 4)                                                                                                   \
  X(softplus, IN, ONCE, (x > R(0.0) ? x : R(0.0)) + r_log1p(r_exp(-r_abs(x))), dy * WF_UNARY_SIGMOID(s), -4, \
    4)                                                                                                       \
  X(tanh, OUT, ONCE, r_tanh(x), dy *(R(1.0) - s * s), -2, 2)                                                 \
  X(elu1, OUT, ONCE, x > R(0.0) ? x + R(1.0) : r_exp(x), s > R(1.0) ? dy : dy * s, -1.5, 1.5)                \
  X(cos, IN, ONCE, r_cos(x), -dy *r_sin(s), -3, 3)                                                           \
  X(sin, IN, ONCE, r_sin(x), dy *r_cos(s), -3, 3)                                                            \
  X(silu, IN, ONCE, x *WF_UNARY_SIGMOID(x), dy *WF_UNARY_SILU_GRAD(s, WF_UNARY_SIGMOID(s)), -4, 4)           \
  X(gelu, IN, ONCE, WF_UNARY_GELU(x), dy *WF_UNARY_GELU_GRAD(s), -3, 3)                                      \
  X(gelu_tanh, IN, TWICE, R(0.5) * x * (R(1.0) + r_tanh(WF_UNARY_GELU_ARG(x))),                              \
    dy * WF_UNARY_TANH_GRAD(s, r_tanh(WF_UNARY_GELU_ARG(s))), -3, 3)

#define WF_UNARY_TWICE_OPS(Y) Y(gelu_tanh, u *dy *WF_UNARY_TANH_CURVE(s, r_tanh(WF_UNARY_GELU_ARG(s))))

#endif
