/* The gradient of selective_scan.
 *
 * Tiles of a row are walked from the last to the first. In each the states are formed again from the mark;
 * then, with G the gradient of h_t, a_t the decay and u = dt x, t downwards: G += dy_t C_t,   dC_t = sum_d dy
 * h_t,   dB_t = sum_d G u,   gb = sum_n G B_t, G = a_t G,   Z = G h_{t-1},   ddt = sum_n Z A + x gb,   dx =
 * dt gb + D dy,   dA += Z dt,   dD += dy x A task is some rows and a group of channels. Sums over channels
 * are kept by lanes inside a tile, by group outside, and groups are added in order; sums over rows likewise.
 */
#include "core/ops/scan_selective_impl.h"

#ifdef WF_KERNEL_PASS

typedef struct sel_grad { /* NULL where not wanted */
  real *p;
  int64_t s; /* token stride */
  bool add;
} sel_grad;

/* Where a task works, in vectors: of each of its channel vectors N rates, N values of A and N gradients of
 * the state; of a tile and vector; by lanes, of a tile, [N][TILE]. */
typedef struct sel_work {
  tile_vec *rates, *a, *g;
  tile_vec *h0, *x, *dt, *u, *dy, *ddt, *gb, *before, *decays;
  tile_vec *db, *dc;
  tile_vec *sums; /* [vectors][2 N + 1] of the task: dA, dinit, dD */
  real *bc;       /* [n][2 N] of the group: dB, dC */
} sel_work;

static int64_t sel_carve(const sel_args *a, int64_t vectors, tile_vec *at, sel_work *w) {
  tile_vec *p = at;
  w->rates = p, p += vectors * a->N;
  w->a = p, p += vectors * a->N;
  w->g = p, p += vectors * a->N;
  w->h0 = p, p += a->N;
  w->x = p, p += TILE;
  w->dt = p, p += TILE;
  w->u = p, p += TILE;
  w->dy = p, p += TILE;
  w->ddt = p, p += TILE;
  w->gb = p, p += TILE;
  w->before = p, p += TILE * AT_ONCE;
  w->decays = p, p += TILE * AT_ONCE;
  w->db = p, p += TILE * a->N;
  w->dc = p, p += TILE * a->N;
  return p - at;
}

/* k states, from the i0-th, of one vector over the tile's n tokens. g: the gradients of the states that
 * leave, then of those that enter. */
static inline __attribute__((always_inline)) void
advance_back(const int k, const sel_args *a, int64_t n, const sel_work *w, int64_t i0, const real *b,
             const real *c, const tile_vec *rates, const tile_vec *values, tile_vec *g, tile_vec *da) {
  tile_vec h[AT_ONCE], e[AT_ONCE], sum[AT_ONCE];
  tile_vec *before = w->before, *decays = w->decays, *db = w->db + i0 * TILE, *dc = w->dc + i0 * TILE;
  TILE_UNROLL
  for (int i = 0; i < k; i++) h[i] = w->h0[i0 + i], e[i] = rates[i];
  for (int64_t t = 0; t < n; t++) {
    tile_vec dt = w->dt[t], u = w->u[t], dy = w->dy[t];
    TILE_UNROLL
    for (int i = 0; i < k; i++) {
      tile_vec keep = decay(dt * e[i]);
      before[t * k + i] = h[i];
      decays[t * k + i] = keep;
      h[i] = keep * h[i] + u * b[t * a->bs + i];
      dc[i * TILE + t] += dy * h[i];
    }
  }
  TILE_UNROLL
  for (int i = 0; i < k; i++) h[i] = g[i], e[i] = values[i], sum[i] = da[i];
  for (int64_t t = n - 1; t >= 0; t--) {
    tile_vec dt = w->dt[t], u = w->u[t], dy = w->dy[t], ddt = w->ddt[t], gb = w->gb[t];
    TILE_UNROLL
    for (int i = 0; i < k; i++) {
      h[i] += dy * c[t * a->cs + i];
      gb += h[i] * b[t * a->bs + i];
      db[i * TILE + t] += h[i] * u;
      h[i] *= decays[t * k + i];
      tile_vec z = h[i] * before[t * k + i];
      ddt += z * e[i];
      sum[i] += z * dt;
    }
    w->ddt[t] = ddt, w->gb[t] = gb;
  }
  TILE_UNROLL
  for (int i = 0; i < k; i++) g[i] = h[i], da[i] = sum[i];
}

/* Tile of n tokens from the row's t-th on, vector v, the j-th of the task. */
static void tile_back(const sel_args *a, const sel_grad *out, const wf_row *r, int64_t t, int64_t n,
                      int64_t v, int64_t j, const sel_work *w) {
  int64_t token = r->begin + t;
  if (t)
    load(a, v, a->N, a->marks + (a->mark[r - a->row] + t / TILE - 1) * a->size, a->d, w->h0);
  else
    enter(a, r, v, w->h0);
  load(a, v, n, a->dt + token * a->dts, a->dts, w->dt);
  load(a, v, n, a->x + token * a->xs, a->xs, w->x);
  if (a->dy)
    load(a, v, n, a->dy + token * a->dys, a->dys, w->dy);
  else
    memset(w->dy, 0, (size_t)n * sizeof(tile_vec));
  for (int64_t i = 0; i < n; i++) w->u[i] = w->dt[i] * w->x[i];
  memset(w->ddt, 0, (size_t)n * sizeof(tile_vec));
  memset(w->gb, 0, (size_t)n * sizeof(tile_vec));
  const real *b = a->b + token * a->bs, *c = a->c + token * a->cs;
  const tile_vec *rates = w->rates + j * a->N, *values = w->a + j * a->N;
  tile_vec *g = w->g + j * a->N, *sums = w->sums + j * (2 * a->N + 1);
  int64_t i = 0;
  for (; i + AT_ONCE <= a->N; i += AT_ONCE)
    advance_back(AT_ONCE, a, n, w, i, b + i, c + i, rates + i, values + i, g + i, sums + i);
  for (; i < a->N; i++) advance_back(1, a, n, w, i, b + i, c + i, rates + i, values + i, g + i, sums + i);
  tile_vec skip = {0}, dskip = sums[2 * a->N];
  if (a->skip) load(a, v, 1, a->skip, 0, &skip);
  for (int64_t k = 0; k < n; k++) {
    w->ddt[k] += w->x[k] * w->gb[k];
    w->gb[k] = w->dt[k] * w->gb[k] + skip * w->dy[k];
    dskip += w->dy[k] * w->x[k];
  }
  sums[2 * a->N] = dskip;
  if (out[DT].p) store(a, v, n, w->ddt, out[DT].p + token * out[DT].s, out[DT].s, out[DT].add);
  if (out[X].p) store(a, v, n, w->gb, out[X].p + token * out[X].s, out[X].s, out[X].add);
}

/* Vectors v0 .. v1-1 of a row. */
static void row_back(const sel_args *a, const sel_grad *out, const wf_row *r, int64_t v0, int64_t v1,
                     const sel_work *w) {
  int64_t N = a->N;
  bool comes = a->dleft && wf_row_leaves(r);
  memset(w->g, 0, (size_t)((v1 - v0) * N) * sizeof(tile_vec));
  for (int64_t v = v0; v < v1 && comes; v++) turn(a, v, a->dleft + r->lane * a->size, w->g + (v - v0) * N);
  for (int64_t t = marks_of(r->len) * TILE; t >= 0; t -= TILE) {
    int64_t n = r->len - t < TILE ? r->len - t : TILE;
    memset(w->db, 0, (size_t)(N * TILE) * sizeof(tile_vec));
    memset(w->dc, 0, (size_t)(N * TILE) * sizeof(tile_vec));
    for (int64_t v = v0; v < v1; v++) tile_back(a, out, r, t, n, v, v - v0, w);
    for (int64_t k = 0; k < n; k++)
      for (int64_t i = 0; i < N; i++) {
        real *to = w->bc + (r->begin + t + k) * 2 * N + i;
        to[0] = tile_sum((real *)&w->db[i * TILE + k]);
        to[N] = tile_sum((real *)&w->dc[i * TILE + k]);
      }
  }
  for (int64_t v = v0; v < v1; v++) {
    const tile_vec *g = w->g + (v - v0) * N;
    tile_vec *init = w->sums + (v - v0) * (2 * N + 1) + N;
    real *to = wf_row_takes(r) && out[STATE].p ? out[STATE].p + r->lane * a->size + v * VL * N : NULL;
    for (int64_t i = 0; i < N && !wf_row_takes(r); i++) init[i] += g[i];
    for (int64_t l = 0; l < channels(a, v) && to; l++)
      for (int64_t i = 0; i < N; i++) to[l * N + i] += g[i][l];
  }
}

/* Sums of `parts` tasks' sums, in order, to dA, dinit and dD. */
static void sel_sums(const sel_args *a, const sel_grad *out, const tile_vec *sums, int64_t parts) {
  int64_t N = a->N, each = 2 * N + 1;
  for (int64_t v = 0; v < a->vectors; v++)
    for (int64_t i = 0; i < each; i++) {
      const sel_grad *o = &out[i < N ? A : i < 2 * N ? INIT : D];
      if (!o->p) continue;
      tile_vec sum = {0};
      for (int64_t p = 0; p < parts; p++) sum += sums[(p * a->vectors + v) * each + i];
      for (int64_t l = 0; l < channels(a, v); l++) {
        real *to = o->p + (v * VL + l) * (i < 2 * N ? N : 1) + (i < 2 * N ? i % N : 0);
        *to = sum[l] + (o->add ? *to : 0);
      }
    }
}
/* The same of groups' [n][2 N], to dB and dC. */
static void sel_tokens(const sel_args *a, const sel_grad *out, const real *bc, int64_t groups) {
  int64_t N = a->N;
  WF_PARALLEL_FOR(t0, t1, a->n, 2 * N * groups) {
    for (int64_t t = t0; t < t1; t++)
      for (int which = 0; which < 2; which++) {
        const sel_grad *o = &out[which ? C : B];
        for (int64_t i = 0; i < N && o->p; i++) {
          real *to = o->p + t * o->s + i, sum = o->add ? *to : 0;
          for (int64_t g = 0; g < groups; g++) sum += bc[(g * a->n + t) * 2 * N + which * N + i];
          *to = sum;
        }
      }
  }
}

WF_KERNEL(selective_scan_grad) {
  sel_args a;
  WF_TRY(sel_read(call, &a));
  const selective_attr *at = call->attr;
  const wf_tensor *dy = call->in[DY], *dleft = call->in[DSTATE];
  if (at->marks) a.marks = wf_data(call->in[MARKS]);
  if (dy) a.dy = wf_data(dy), a.dys = dy->stride[0];
  if (dleft) a.dleft = wf_data(dleft);
  sel_grad out[WANTS] = {{NULL, 0, false}};
  for (int i = 0, n = 0; i < WANTS; i++)
    if (at->want >> i & 1) {
      out[i] = (sel_grad){wf_data(call->out[n]), call->out[n]->stride[0], call->add >> n & 1};
      n++;
    }
  if (out[STATE].p) wf_keep_lanes(a.row, a.rows, a.lanes, a.size, a.dleft, out[STATE].p, out[STATE].add);

  int threads = wf_threads_for(a.rows * a.vectors, 2 * sel_cost(&a));
  int64_t parts = threads == 1 ? 1 : 4 * threads < a.rows ? 4 * threads : a.rows;
  int64_t groups = threads == 1 || !parts ? 1 : (4 * threads + parts - 1) / parts;
  if (groups > a.vectors) groups = a.vectors;
  sel_work probe;
  int64_t most = groups ? (a.vectors + groups - 1) / groups : 0;
  size_t each = (size_t)sel_carve(&a, most, NULL, &probe) * sizeof(tile_vec) + 64;
  size_t sums = (size_t)(parts * a.vectors * (2 * a.N + 1)) * sizeof(tile_vec) + 64;
  size_t tokens = (size_t)(groups * a.n * 2 * a.N) * sizeof(real),
         space = each * (size_t)threads + sums + tokens;
  wf_device *dev = wf_ctx_device(call->ctx);
  char *work;
  WF_TRY(sel_marks(call, &a));
  wf_status st = wf_device_alloc(dev, "scan", space, (void **)&work);
  if (st == WF_OK) {
    tile_vec *all = (tile_vec *)(void *)(work + each * (size_t)threads);
    real *bc = (real *)(void *)(work + each * (size_t)threads + sums);
    memset(all, 0, sums);
    WF_PRAGMA(omp parallel num_threads(threads)) {
      sel_work w;
      sel_carve(&a, most, wf_thread_space(work, each), &w);
      WF_PRAGMA(omp for schedule(dynamic, 1))
      for (int64_t task = 0; task < parts * groups; task++) {
        int part = (int)(task / groups), group = (int)(task % groups);
        int64_t v0 = wf_range_begin(a.vectors, group, (int)groups);
        int64_t v1 = wf_range_begin(a.vectors, group + 1, (int)groups);
        w.sums = all + (part * a.vectors + v0) * (2 * a.N + 1);
        w.bc = bc + group * a.n * 2 * a.N;
        for (int64_t v = v0; v < v1; v++) {
          turn(&a, v, a.a, w.a + (v - v0) * a.N);
          exponents(&a, v, w.rates + (v - v0) * a.N);
        }
        for (int64_t r = wf_range_begin(a.rows, part, (int)parts);
             r < wf_range_begin(a.rows, part + 1, (int)parts); r++)
          row_back(&a, out, &a.row[r], v0, v1, &w);
      }
    }
    sel_sums(&a, out, all, parts);
    sel_tokens(&a, out, bc, groups);
    wf_device_free(dev, "scan", work, space);
  }
  sel_free_marks(call, &a);
  return st;
}

#else

WF_CPU(selective_scan_grad)

static wf_status grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  wf_desc like[3];
  WF_TRY(wf_selective_check(call, like));
  return wf_infer_wanted(call, ((const selective_attr *)call->attr)->want, WANTS, out, n_out);
}

static void cost(const wf_call *call, double *flops, double *bytes) {
  wf_op_selective_scan.cost(call, flops, bytes);
  *flops *= 2;
  *bytes *= 2;
}

static wf_status grad_sample(wf_sample *s) {
  WF_TRY(wf_selective_sample(s));
  selective_attr *a = (selective_attr *)(void *)s->attr;
  for (int i = 0; i < WANTS; i++) a->want |= s->in[i] ? 1 << i : 0;
  int64_t n = s->in[X]->shape[0], d = s->in[X]->shape[1], N = s->in[B]->shape[1];
  s->in[MARKS] = wf_sample_real(s, WF_SHAPE(a->marks, N, d));
  s->in[DY] = wf_sample_real(s, WF_SHAPE(n, d));
  s->in[DSTATE] = a->leaves ? wf_sample_real(s, 3, s->in[STATE]->shape) : NULL;
  s->n_in = GRAD_INS;
  return WF_OK;
}

const wf_op wf_op_selective_scan_grad = {
    .name = "selective_scan_grad",
    .min_in = GRAD_INS,
    .max_in = GRAD_INS,
    .n_out = -1,
    .attr_size = sizeof(selective_attr),
    .optional = 1 << D | 1 << STATE | 1 << INIT | 1 << DY | 1 << DSTATE,
    .rowmajor = 1 << X | 1 << DT | 1 << B | 1 << C | 1 << DY,
    .rowmajor_out = 3, /* x and dt */
    .adds = (1 << WANTS) - 1,
    .infer = grad_infer,
    WF_NONDIFF("gradient of selective_scan; first order only"),
    .cpu = &selective_scan_grad_cpu,
    .cost = cost,
    .sample = grad_sample,
    .n_samples = 5,
};

#endif
