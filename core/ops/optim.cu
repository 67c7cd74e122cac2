/* CUDA kernels of the optimisers' steps: a thread for each parameter. The control values are read on the
 * device; where GO is 0, outputs are their inputs. */
#include "core/cuda_impl.cuh"
#include "core/ops_optim.h"

/* 1 - LR decay, which needs the digits of a double before it is rounded once. */
template <class real> __device__ static real kept(real lr, double decay) {
  return (real)(1 - (double)lr * decay);
}

WF_CUDA_KERNEL(adamw) {
  const wf_adamw_attr a = *(const wf_adamw_attr *)call->attr;
  const real *ctl = wf_cuda_in<real>(call, 0), *p = wf_cuda_in<real>(call, 1), *g = wf_cuda_in<real>(call, 2),
             *m = wf_cuda_in<real>(call, 3), *v = wf_cuda_in<real>(call, 4);
  real *p1 = wf_cuda_ptr<real>(call->out[0]), *m1 = wf_cuda_ptr<real>(call->out[1]),
       *v1 = wf_cuda_ptr<real>(call->out[2]);
  const real w1 = (real)(1 - a.beta1), b2 = (real)a.beta2, w2 = (real)(1 - a.beta2), eps = (real)a.eps;
  return wf_cuda_each(call, wf_numel(call->in[1]), [=] __device__(int64_t i) {
    real pi = p[i], mi = m[i], vi = v[i];
    if (ctl[WF_CTL_GO] != 0) {
      const real gi = ctl[WF_CTL_GRAD] * g[i], lr = ctl[WF_CTL_LR] * ctl[WF_CTL_BIAS1];
      mi = mi + w1 * (gi - mi);
      vi = b2 * vi + w2 * gi * gi;
      pi = pi * kept(ctl[WF_CTL_LR], a.decay) - lr * mi / (ctl[WF_CTL_BIAS2] * sqrt(vi) + eps);
    }
    p1[i] = pi;
    m1[i] = mi;
    v1[i] = vi;
  });
}

WF_CUDA_KERNEL(sgd) {
  const wf_sgd_attr a = *(const wf_sgd_attr *)call->attr;
  const bool moving = call->n_out > 1;
  const real *ctl = wf_cuda_in<real>(call, 0), *p = wf_cuda_in<real>(call, 1), *g = wf_cuda_in<real>(call, 2),
             *m = moving ? wf_cuda_in<real>(call, 3) : NULL;
  real *p1 = wf_cuda_ptr<real>(call->out[0]), *m1 = moving ? wf_cuda_ptr<real>(call->out[1]) : NULL;
  const real decay = (real)a.decay, mu = (real)a.momentum;
  return wf_cuda_each(call, wf_numel(call->in[1]), [=] __device__(int64_t i) {
    real pi = p[i], mi = m ? m[i] : (real)0;
    if (ctl[WF_CTL_GO] != 0) {
      const real gi = ctl[WF_CTL_GRAD] * g[i] + decay * pi;
      mi = mu * mi + gi;
      pi -= ctl[WF_CTL_LR] * (!m ? gi : a.nesterov ? gi + mu * mi : mi);
    }
    p1[i] = pi;
    if (m1) m1[i] = mi;
  });
}

WF_CUDA_KERNEL(lion) {
  const wf_lion_attr a = *(const wf_lion_attr *)call->attr;
  const real *ctl = wf_cuda_in<real>(call, 0), *p = wf_cuda_in<real>(call, 1), *g = wf_cuda_in<real>(call, 2),
             *m = wf_cuda_in<real>(call, 3);
  real *p1 = wf_cuda_ptr<real>(call->out[0]), *m1 = wf_cuda_ptr<real>(call->out[1]);
  const real b1 = (real)a.beta1, w1 = (real)(1 - a.beta1), b2 = (real)a.beta2, w2 = (real)(1 - a.beta2);
  return wf_cuda_each(call, wf_numel(call->in[1]), [=] __device__(int64_t i) {
    real pi = p[i], mi = m[i];
    if (ctl[WF_CTL_GO] != 0) {
      const real gi = ctl[WF_CTL_GRAD] * g[i], lr = ctl[WF_CTL_LR], c = b1 * mi + w1 * gi;
      pi = pi * kept(lr, a.decay) - (c > 0 ? lr : (real)0) + (c < 0 ? lr : (real)0);
      mi = b2 * mi + w2 * gi;
    }
    p1[i] = pi;
    m1[i] = mi;
  });
}

WF_CUDA_KERNEL(muon_momentum) {
  const wf_muon_attr a = *(const wf_muon_attr *)call->attr;
  const real *ctl = wf_cuda_in<real>(call, 0), *g = wf_cuda_in<real>(call, 1), *m = wf_cuda_in<real>(call, 2);
  real *u = wf_cuda_ptr<real>(call->out[0]), *m1 = wf_cuda_ptr<real>(call->out[1]);
  const real mu = (real)a.momentum;
  return wf_cuda_each(call, wf_numel(call->in[1]), [=] __device__(int64_t i) {
    real ui = g[i], mi = m[i];
    if (ctl[WF_CTL_GO] != 0) {
      const real gi = (real)((1 - a.momentum) * (double)ctl[WF_CTL_GRAD]) * g[i];
      mi = mu * mi + gi;
      ui = a.nesterov ? gi + mu * mi : mi;
    }
    u[i] = ui;
    m1[i] = mi;
  });
}

WF_CUDA_KERNEL(muon_poly) {
  const wf_muon_poly_attr f = *(const wf_muon_poly_attr *)call->attr;
  const real *s = wf_cuda_in<real>(call, 0), *ss = wf_cuda_in<real>(call, 1);
  real *y = wf_cuda_ptr<real>(call->out[0]);
  const int64_t n = call->in[0]->shape[0];
  const real a = (real)f.a, b = (real)f.b, c = (real)f.c;
  return wf_cuda_each(call, n * n, [=] __device__(int64_t i) {
    y[i] = b * s[i] + c * ss[i] + (i / n == i % n ? a : (real)0);
  });
}

WF_CUDA_KERNEL(muon_apply) {
  const wf_muon_apply_attr a = *(const wf_muon_apply_attr *)call->attr;
  const real *ctl = wf_cuda_in<real>(call, 0), *p = wf_cuda_in<real>(call, 1), *u = wf_cuda_in<real>(call, 2);
  real *p1 = wf_cuda_ptr<real>(call->out[0]);
  return wf_cuda_each(call, wf_numel(call->in[1]), [=] __device__(int64_t i) {
    const real lr = ctl[WF_CTL_LR], by = (real)((double)lr * a.scale);
    p1[i] = ctl[WF_CTL_GO] != 0 ? p[i] * kept(lr, a.decay) - by * u[i] : p[i];
  });
}

WF_CUDA_KERNEL(ema) {
  const real *ctl = wf_cuda_in<real>(call, 0), *a = wf_cuda_in<real>(call, 1), *p = wf_cuda_in<real>(call, 2);
  real *a1 = wf_cuda_ptr<real>(call->out[0]);
  return wf_cuda_each(call, wf_numel(call->in[1]), [=] __device__(int64_t i) {
    a1[i] = ctl[WF_CTL_GO] != 0 ? a[i] + ctl[WF_CTL_MIX] * (p[i] - a[i]) : a[i];
  });
}

WF_CUDA_KERNEL(swap) {
  const real *a = wf_cuda_in<real>(call, 0), *b = wf_cuda_in<real>(call, 1);
  real *a1 = wf_cuda_ptr<real>(call->out[0]), *b1 = wf_cuda_ptr<real>(call->out[1]);
  return wf_cuda_each(call, wf_numel(call->in[0]), [=] __device__(int64_t i) {
    const real x = a[i], y = b[i];
    a1[i] = y;
    b1[i] = x;
  });
}
