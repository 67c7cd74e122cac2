/* The mesh of a run and the sums over it. */
#include "experiments/parallel.h"
#include "core/memory.h"
#include "data/loader.h"
#include "experiments/link.h"
#include "layers/stream.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

/* ---- opening ---- */

wf_status wf_parallel_processes(const wf_config *cfg, wf_comm **out) {
  int transport = cfg->parallel.transport, ranks = 1;
  bool launched = wf_comm_launched(&ranks);
  if (transport == WF_CARRIER_NCCL)
    return wf_hint(WF_FAIL(WF_EUNSUPPORTED, "parallel.transport: nccl is not in this weft"),
                   "mpi carries tensors of GPUs too, through host memory");
  if (transport == WF_CARRIER_SELF && launched && ranks > 1)
    return wf_hint(WF_FAIL(WF_EINVAL, "parallel.transport is self, but %d ranks were started", ranks),
                   "leave parallel.transport out, or start weft without mpirun");
  if (transport == WF_CARRIER_MPI || (transport < 0 && launched)) return wf_comm_mpi(out);
  return wf_comm_self(out);
}

static wf_status shape_of(const wf_config *cfg, int ranks, int *data, int *sequence) {
  const wf_config_parallel *p = &cfg->parallel;
  int64_t s = p->sequence, d = p->data == WF_AUTO_I64 ? ranks / s : p->data;
  if (s <= ranks && d >= 1 && d * s == ranks) {
    *data = (int)d;
    *sequence = (int)s;
    return WF_OK;
  }
  if (p->data == WF_AUTO_I64)
    return wf_hint(WF_FAIL(WF_EINVAL,
                           "parallel.sequence: %lld ranks for a sequence, which the %d started are no "
                           "multiple of",
                           (long long)s, ranks),
                   "start weft with mpirun -n %lld, or any multiple of it", (long long)s);
  return wf_hint(WF_FAIL(WF_EINVAL, "parallel: data %lld x sequence %lld is %lld ranks, and %d %s started",
                         (long long)d, (long long)s, (long long)(d * s), ranks, ranks == 1 ? "was" : "were"),
                 "start weft with mpirun -n %lld, or leave parallel.data out", (long long)(d * s));
}

wf_status wf_parallel_same(const wf_config *cfg, wf_comm *c) {
  char *text;
  WF_TRY(wf_config_print(cfg, &text));
  uint64_t hash = XXH3_64bits(text, strlen(text));
  wf_free(text);
  wf_status st = wf_agree_on(c, hash, "the config");
  if (st == WF_OK) st = wf_agree_on(c, XXH3_64bits(WEFT_VERSION, sizeof WEFT_VERSION), "the version of weft");
  if (st == WF_EPEER)
    wf_hint(st, "start every rank with the same arguments, from the same files, with the same weft");
  return st;
}

/* Cores over the ranks of this host; a rank that was bound to some uses those. */
static void share_threads(const wf_config *cfg, const wf_comm *world) {
  int local = wf_comm_local_size(world), mine = omp_get_num_procs();
  if (local < 2 || cfg->run.threads != WF_AUTO_I64 || getenv("OMP_NUM_THREADS")) return;
  if (mine >= sysconf(_SC_NPROCESSORS_ONLN)) mine = mine / local;
  omp_set_num_threads(mine > 1 ? mine : 1);
}

wf_status wf_parallel_open(const wf_config *cfg, wf_comm *world, wf_mesh *out) {
  int data = 1, sequence = 1;
  *out = (wf_mesh){0};
  if (!world) WF_TRY(wf_parallel_processes(cfg, &world));
  wf_status st = shape_of(cfg, wf_comm_size(world), &data, &sequence);
  if (st == WF_OK && wf_comm_size(world) > 1) st = wf_parallel_same(cfg, world);
  if (st != WF_OK) {
    wf_comm_free(world);
    return st;
  }
  if (!cfg->parallel.bitwise) share_threads(cfg, world);
  WF_TRY(wf_mesh_open(world, data, sequence, WF_LAYOUT_CONTIGUOUS, out));
  if (sequence == 1) return WF_OK;
  out->dist.cost = &out->cost;
  out->cost = wf_cost_default();
  out->cost.threads = omp_get_max_threads();
  if (strcmp(cfg->parallel.link, "auto") == 0)
    return cfg->parallel.bitwise ? WF_OK : wf_cost_calibrate(out->world, &out->cost);
  return wf_link_read("parallel.link", cfg->parallel.link, &out->cost);
}

wf_status wf_parallel_link(wf_config *cfg, wf_mesh *mesh, bool *measured) {
  char text[120];
  const bool open = strcmp(cfg->parallel.link, "auto") == 0;
  *measured = open && !cfg->parallel.bitwise;
  if (wf_comm_size(mesh->sequence) == 1) return WF_OK;
  if (open) {
    wf_link_print(&mesh->cost, text);
    char *link = wf_strdup("config", text);
    if (!link) return WF_ENOMEM;
    wf_free(cfg->parallel.link);
    cfg->parallel.link = link;
  }
  return wf_link_read("parallel.link", cfg->parallel.link, &mesh->cost);
}

static int choose_relayout(const wf_config *cfg, wf_model *m, wf_mesh *mesh, wf_relayout_choice *out,
                           int most) {
  int64_t all = wf_config_sequences(cfg), piece = cfg->train.stream, length = cfg->data.seq_len;
  bool pieces = piece > 0 && piece < length;
  double lanes = ceil((double)all / wf_comm_size(mesh->data));
  double tokens = lanes * (double)(pieces ? piece : length) / wf_comm_size(mesh->sequence);
  return wf_model_relayout(m, wf_mesh_dist(mesh), lanes, tokens, pieces || cfg->train.carry_state, out, most);
}

wf_status wf_parallel_layout(const wf_config *cfg, wf_model *m, wf_mesh *mesh) {
  const wf_state_spec *spec = wf_model_state_spec(m);
  mesh->dist.transport = (wf_transport)cfg->parallel.scan;
  mesh->dist.attention = (wf_dist_attention)cfg->parallel.attention;
  mesh->dist.serial = (wf_dist_serial)cfg->parallel.serial;
  mesh->dist.relayout = (wf_dist_relayout)cfg->parallel.relayout;
  bool zigzag = cfg->parallel.layout == WF_LAYOUT_ZIGZAG;
  for (int i = 0; i < spec->n && cfg->parallel.layout < 0; i++) zigzag |= spec->slot[i].grows;
  if (!zigzag || wf_comm_size(mesh->sequence) == 1) return WF_OK;
  wf_layout *layout;
  WF_TRY(wf_layout_create(WF_LAYOUT_ZIGZAG, wf_comm_size(mesh->sequence), NULL, &layout));
  wf_layout_free(mesh->layout);
  mesh->dist.layout = mesh->layout = layout;
  choose_relayout(cfg, m, mesh, NULL, 0);
  return WF_OK;
}

void wf_parallel_relayout(FILE *out, const wf_config *cfg, wf_model *m, wf_mesh *mesh) {
  wf_relayout_choice choice[16];
  int n = choose_relayout(cfg, m, mesh, choice, 16);
  for (int i = 0; i < n; i++) {
    const wf_relayout_choice *x = &choice[i];
    fprintf(out, "relayout: %d %s %s; exchanges of a step %.3f ms each in place, %.3f ms moved%s\n",
            x->layers, x->name, x->does_move ? "moved to contiguous" : "in place", 1e3 * x->in_place,
            1e3 * x->moved, cfg->parallel.relayout == WF_RELAYOUT_AUTO ? "" : " (as parallel.relayout says)");
  }
}

wf_status wf_parallel_lanes(const wf_mesh *m, int64_t batch, wf_lanes *out) {
  int rank = wf_comm_rank(m->world), groups = wf_comm_size(m->data), each = wf_comm_size(m->sequence);
  const wf_layout *l = m->layout;
  int last = l->n_segments - 1;
  *out = (wf_lanes){.all = batch};
  WF_CALLOC(out->count, "state", groups * each);
  for (int d = 0; d < groups; d++)
    out->count[d * each + l->owner[last]] =
        wf_loader_first(batch, d + 1, groups) - wf_loader_first(batch, d, groups);
  int64_t begin = wf_loader_first(batch, rank / each, groups),
          lanes = wf_loader_first(batch, rank / each + 1, groups) - begin;
  out->here = wf_step_lanes(wf_mesh_dist(m), lanes);
  out->first = begin;
  out->n = out->count[rank];
  out->at = out->n ? l->slot[last] * lanes : 0;
  return WF_OK;
}

/* ---- sums ---- */

wf_status wf_parallel_totals(const wf_mesh *m, wf_totals *t) {
  int rank = wf_comm_rank(m->world), size = wf_comm_size(m->world);
  bool finite = isfinite(t->loss), once = wf_comm_rank(m->sequence) == 0;
  t->bad_rank = finite ? -1 : rank;
  if (size == 1) return WF_OK;
  double sum[] = {t->loss, once ? (double)t->labels : 0, once ? (double)t->tokens : 0};
  double most[] = {t->stop, finite ? 0 : size - rank};
  WF_TRY(wf_comm_all_reduce_host(m->world, WF_F64, sum, 3, WF_REDUCE_SUM));
  WF_TRY(wf_comm_all_reduce_host(m->world, WF_F64, most, 2, WF_REDUCE_MAX));
  *t = (wf_totals){.loss = sum[0],
                   .labels = (int64_t)sum[1],
                   .tokens = (int64_t)sum[2],
                   .stop = (int)most[0],
                   .bad_rank = most[1] > 0 ? size - (int)most[1] : -1};
  return WF_OK;
}

void wf_parallel_describe(const wf_mesh *m, char out[160]) {
  out[0] = '\0';
  if (wf_comm_size(m->world) == 1) return;
  int data = wf_comm_size(m->data), sequence = wf_comm_size(m->sequence);
  snprintf(out, 160, "%d x %d ranks (data x sequence)%s, %s, %d thread%s each", data, sequence,
           sequence == 1                      ? ""
           : m->layout->n_segments > sequence ? ", zigzag"
                                              : ", contiguous",
           wf_comm_name(m->world), omp_get_max_threads(), omp_get_max_threads() == 1 ? "" : "s");
}
