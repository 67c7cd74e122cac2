/* attr: the arguments of ops whose kernels stand in two files, for the CPU and for CUDA. Private to core. */
#ifndef WF_CORE_ATTR_IMPL_H
#define WF_CORE_ATTR_IMPL_H

#include "core/ops.h"

/* ---- norm ---- */

enum { L2 = WF_NORM_LAYER + 1 }; /* x / sqrt(sum x^2 + eps): RMS without the mean */
enum { GRAD_R = 1, GRAD_W = 2, GRAD_B = 4 };

typedef struct norm_attr {
  double eps;
  int32_t kind;
  int32_t outs; /* norm_grad: its outputs are dx, then those named here: GRAD_R, GRAD_W, GRAD_B */
} norm_attr;

/* ---- rotary ---- */

typedef struct rotary_attr {
  double base, sign; /* -1 turns back */
  int64_t dim;
  int64_t period;   /* positions count modulo it; 0: as they are */
  int64_t adjacent; /* pairs are (2 i, 2 i + 1), not (i, i + dim / 2) */
} rotary_attr;

/* ---- dropout ---- */

typedef struct dropout_attr {
  double p;
  wf_rng_key key;
  int64_t step;
} dropout_attr;

/* ---- conv, halo ---- */

typedef struct conv_attr {
  int64_t lanes;
  int32_t silu, leaves; /* leaves: is there an output state */
  int32_t want;         /* of the gradient: bits 0 x, 1 weight, 2 bias, 3 state */
} conv_attr;

typedef struct halo_attr {
  int64_t w, lanes;
  int32_t leaves;
  int32_t want; /* of the gradient: bits 0 x, 1 state */
} halo_attr;

/* ---- attend ---- */

/* attend itself has wf_attend_options. */
typedef struct attend_grad_attr {
  wf_attend_options o;
  int32_t want; /* bits 0 q, 1 k, 2 v, 3 a, 4 b, 5 sink: the outputs, in this order */
} attend_grad_attr;

/* ---- scan ---- */

enum { WF_STATE_ALONE = 2 }; /* `leaves` of scans: the state that is left is the only output */

typedef struct scan_attr {
  wf_scan_options o;
  int64_t lanes;
  int32_t leaves; /* is there an output state; WF_STATE_ALONE: nothing else */
  int32_t want;   /* of the gradient: bits 0 q, 1 k, 2 v, 3 g, 4 w, 5 state, 6 init */
} scan_attr;

enum {
  SCAN_Q,
  SCAN_K,
  SCAN_V,
  SCAN_G, /* log decays or NULL */
  SCAN_W, /* weights of the writes, or beta of the delta rule, or NULL */
  SCAN_STATE,
  SCAN_INIT,
  SCAN_TABLE,
  SCAN_DO, /* here on: of the gradient */
  SCAN_DSTATE,
  SCAN_INS
};

#endif
