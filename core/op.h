/* op: one differentiable function of tensors, described once.
 *
 * A description holds the shape rule, the gradient, a kernel for each device, costs and samples. Dispatch
 * (wf_op_apply) reads: validate, infer, allocate, run, record. The gradient of an op is written in terms of
 * other ops run into given tensors (wf_op_run), so it works on every device and knows nothing of the tape.
 *
 * Core's ops are listed in core/ops.def; upper folders and users add theirs with wf_op_register(). Tests,
 * gradcheck, CPU-against-CUDA comparison, bench and the op table of the docs iterate both.
 *
 * CPU kernels. A file under core/ops/ is compiled once as description and again for every pair of real type
 * (float, double) and instruction set, see core/op_def.h. Other code gives one plain function for each real
 * type.
 */
#ifndef WF_CORE_OP_H
#define WF_CORE_OP_H

#include "core/rows.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_MAX_IN = 16, WF_MAX_OUT = 8, WF_MAX_ATTR = 256 };

typedef struct wf_op wf_op;

/* What a kernel sees. Inputs that an op declares optional may be NULL. */
typedef struct wf_call {
  wf_ctx *ctx;
  const wf_op *op;
  const void *attr;
  int n_in, n_out;
  wf_tensor *const *in;
  wf_tensor *const *out;
  uint32_t add; /* bit i: add to out[i] instead of overwriting it (only where op->adds allows) */
} wf_call;

/* Shape and dtype of an output, filled by infer; outputs are made contiguous. */
typedef struct wf_desc {
  wf_dtype dtype;
  int ndim;
  int64_t shape[WF_MAX_DIMS];
} wf_desc;

/* What a gradient sees: fill din[i] for each non-NULL one. */
typedef struct wf_vjp {
  wf_ctx *ctx;
  const wf_op *op;
  const void *attr;
  int n_in, n_out;
  wf_tensor *const *in; /* only those in op->save_in, with data; others have shape and dtype but no storage */
  wf_tensor *const *out;  /* only those in op->save_out, likewise */
  wf_tensor *const *dout; /* gradients of the outputs; NULL where none arrived */
  wf_tensor *const *din;  /* destinations; NULL where none is wanted */
  uint32_t add; /* bit i: add to din[i] (only where op->vjp_adds allows; the engine sees to the rest) */
} wf_vjp;

typedef wf_status (*wf_cpu_fn)(const wf_call *call);

/* How what precedes a run of rows acts on the state S of a lane that they carry on: S -> A S + B. B is what
 * they leave from nothing; A is known by itself. */
typedef enum wf_carry_kind {
  WF_CARRY_ADD,   /* S + B */
  WF_CARRY_PAIR,  /* S + B as pairs (high, low) [.., 2, d] */
  WF_CARRY_SCALE, /* A . S + B, each element of A for a run of S */
  WF_CARRY_DENSE, /* A S + B, A [.., K, K], S [.., K, V] */
  WF_CARRY_MAX    /* max(A + S, B), A as in SCALE */
} wf_carry_kind;

enum { WF_CARRY_HEADS = 64 };

/* What an op with a state tells those who run it on a sequence that is cut (dist/segments.h). Calls have the
 * op's inputs and attr; they read the state given and the rows of the table given. */
typedef struct wf_carry {
  int state, init, table, left; /* the state's places: inputs; the output */
  /* The dimension of heads or channels, which know nothing of each other; HEADS: the last but one; -1: all of
   * it belongs to each. */
  signed char in[WF_MAX_IN], out[WF_MAX_OUT];
  double work;  /* of the forward for a token and element of the state: 8 is what matrix states take */
  double share; /* of it that forming A and B takes */
  wf_carry_kind (*kind)(const wf_call *call, wf_desc *A); /* NULL: no such map, and none of the rest */
  wf_status (*factor)(const wf_call *call);  /* out[0] = A of rows that take and leave; other lanes: I */
  wf_status (*advance)(const wf_call *call); /* out[0] = the state output alone */
} wf_carry;

/* One kernel's entry points by real type and instruction set. */
typedef struct wf_cpu_kernel {
  wf_cpu_fn f32[WF_N_ISA], f64[WF_N_ISA];
} wf_cpu_kernel;

/* Makes inputs for one trial of the op: fill in[] and attr. Values must be generic (no ties, no kinks near).
 */
typedef struct wf_sample {
  wf_ctx *ctx;
  wf_dtype real; /* WF_F32 or WF_F64 */
  int index;     /* 0 .. op->n_samples - 1 */
  int n_in;
  wf_tensor *in[WF_MAX_IN];
  char attr[WF_MAX_ATTR] __attribute__((aligned(16)));
  uint32_t wrt; /* bit i: gradcheck input i (default: every real input) */
  uint64_t seed;
} wf_sample;

/* Uniform in [-1.5, 1.5); in [lo, hi); i32 ids in 0 .. below-1. The same numbers for both real types. */
wf_tensor *wf_sample_real(wf_sample *s, int ndim, const int64_t *shape);
wf_tensor *wf_sample_range(wf_sample *s, int ndim, const int64_t *shape, double lo, double hi);
wf_tensor *wf_sample_ids(wf_sample *s, int ndim, const int64_t *shape, int64_t below);

enum {
  WF_OP_BROADCAST = 1, /* vjp yields gradients in the output's shape; the engine sums them to the input's */
  WF_OP_VIEW = 2,      /* out[0] shares in[0]'s storage: `view` instead of kernels */
  WF_OP_JOINED_OUT =
      4,             /* outputs are column slices of one buffer, and their gradients are laid out likewise */
  WF_OP_INPLACE = 8, /* out[0] is in[0], written in place; they are one variable */
  WF_OP_RANDOM = 16, /* draws random numbers (core/rng.h) from its attr */
  WF_OP_TYPE_OF_FIRST = 32 /* in[0] alone chooses between float and double; others may be float64 by rule */
};

struct wf_op {
  const char *name;
  int min_in, max_in, n_out; /* n_out < 0: infer says, up to WF_MAX_OUT */
  size_t attr_size;
  unsigned flags;
  uint32_t optional; /* bit i: in[i] may be NULL */
  uint32_t strided;  /* bit i: in[i] may have any strides; otherwise it is made contiguous (a counted copy) */
  uint32_t rowmajor; /* bit i: in[i] needs unit stride in its last dimension only; other strides are free */
  uint32_t
      rowmajor_out;           /* bit i: the kernel can write out[i] with free strides before a unit last one;
                                 otherwise      dispatch gives it contiguous scratch when the destination is a slice */
  uint32_t adds;              /* bit i: the kernel can add to out[i] */
  uint32_t save_in, save_out; /* bits: what vjp reads */
  uint32_t vjp_adds;          /* bit i: vjp can add to din[i] */
  uint32_t nograd_in,
      nograd_out; /* bits: inputs / outputs that never carry a gradient (ids, tables, statistics) */

  wf_status (*infer)(const wf_call *call, wf_desc *out, int *n_out); /* validates too */
  wf_tensor *(*view)(const wf_call *call);
  wf_status (*vjp)(const wf_vjp *g);
  /* Optional: the gradient of in[i] as a view of dout, without any copy; NULL when this case has none. */
  wf_tensor *(*vjp_alias)(const wf_vjp *g, int i);
  const char *nondiff; /* why there is no vjp; WF_NONDIFF("...") */

  /* The kernel is made of messages and of other ops (dist/op_impl.h): it runs on a device on paper too, where
   * a profile counts those alone. */
  bool composed;
  const wf_cpu_kernel *cpu;
  wf_cpu_fn cuda;        /* WF_CUDA_FN(name) */
  const wf_carry *carry; /* NULL: the op has no state along rows, or one that nobody cuts */

  void (*cost)(const wf_call *call, double *flops,
               double *bytes); /* of the kernel; NULL: bytes of in + out */
  wf_status (*sample)(wf_sample *s);
  int n_samples;
};

#define WF_NONDIFF(why) .vjp = NULL, .nondiff = (why)

/* Apply: allocate outputs, run, record on the context's tape. out[] receives n_out tensors of the current
 * scope (poison on failure). Returns out[0]. */
wf_tensor *wf_op_apply(wf_ctx *c, const wf_op *op, int n_in, wf_tensor *const *in, const void *attr,
                       wf_tensor **out);

/* Who applies the ops with a state whose rows go on elsewhere: wf_rows.carrier. */
struct wf_carrier {
  wf_tensor *(*apply)(const wf_carrier *self, wf_ctx *c, const wf_op *op, int n_in, wf_tensor *const *in,
                      const void *attr, wf_tensor **out);
};
/* wf_op_apply by the carrier of `rows`, where they have one. */
wf_tensor *wf_op_apply_rows(wf_ctx *c, const wf_rows *rows, const wf_op *op, int n_in, wf_tensor *const *in,
                            const void *attr, wf_tensor **out);

/* Run into given outputs, never recorded. `add` as in wf_call. Inputs are made contiguous as the op asks. */
wf_status wf_op_run(wf_ctx *c, const wf_op *op, int n_in, wf_tensor *const *in, const void *attr, int n_out,
                    wf_tensor *const *out, uint32_t add);

/* A kernel of the op's beside its own (wf_carry), on the call's tensors as they are: counted as the op's in
 * profiles, and not run on a device on paper. */
wf_status wf_op_run_beside(const wf_call *call, wf_cpu_fn kernel);

/* Tensors with the shapes of `like` that are column slices of one new buffer [rows, sum of widths]. */
wf_status wf_op_alloc_joined(wf_ctx *c, int n, wf_tensor *const *like, wf_tensor **out);

/* ---- core's own descriptions: wf_op_<name> ---- */
#define WF_OP(name) extern const wf_op wf_op_##name;
#include "core/ops.def"
#undef WF_OP

/* ---- registry ---- */
wf_status wf_op_register(const wf_op *op); /* names are unique; the description outlives the program's use */
const wf_op *wf_op_find(const char *name);
int wf_op_count(void);
const wf_op *wf_op_at(int i);

/* ---- what autograd plugs in (core knows nothing else of it) ---- */
typedef struct wf_recorder {
  void *self;
  /* Called after a successful apply. Sets var on outputs where needed. */
  wf_status (*record)(void *self, const wf_call *call);
} wf_recorder;
wf_recorder wf_ctx_set_recorder(wf_ctx *c,
                                wf_recorder r); /* returns the earlier one; {NULL} pauses recording */
wf_recorder wf_ctx_recorder(const wf_ctx *c);

/* ---- profile: time, calls, flops and bytes by op and label ---- */

/* What runs now, by the name of the composed op it belongs to or as the caller says: NULL outside of any. A
 * tape keeps it for the backward. The setter returns the earlier one. */
const char *wf_ctx_set_label(wf_ctx *c, const char *label);
const char *wf_ctx_label(const wf_ctx *c);

typedef struct wf_op_profile {
  const wf_op *op;
  const char *label;
  int64_t calls;
  double seconds, flops, bytes;
} wf_op_profile;
void wf_ctx_profile(wf_ctx *c, bool on);
int wf_ctx_profile_read(const wf_ctx *c, wf_op_profile *out, int max); /* largest time first */
int64_t wf_ctx_copies(const wf_ctx *c); /* copies dispatch had to make for strides */

#ifdef __cplusplus
}
#endif

#endif
