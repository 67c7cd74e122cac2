/* A rank's step on paper, and the clock beside it. */
#include "experiments/plan.h"
#include "core/memory.h"
#include "dist/relayout.h"
#include "experiments/human.h"
#include "experiments/parallel.h"
#include "experiments/rehearsal.h"

#include <math.h>
#include <string.h>

const char *const wf_plan_use_name[WF_PLAN_USES] = {"scans",  "halos",    "attention",
                                                    "serial", "relayout", "gradients"};

enum { MOST_ROWS = 1024 }; /* of a profile */

typedef struct trace {
  const wf_plan_rates *rates;
  wf_cost link;
  wf_plan *p;
  wf_ctx *c;
  const wf_dist *dist; /* of a sequence */
  double waited;       /* so far */
  double out, in;      /* when the link is free, each way */
  wf_op_profile *rows; /* [MOST_ROWS] */
} trace;

typedef struct group { /* of ranks, on paper */
  trace *t;
  bool job; /* all ranks, for gradients; else those of a sequence */
} group;

/* ---- the clock ---- */

static double op_seconds(const trace *t, const wf_op_profile *x) {
  for (int i = 0; i < t->rates->n; i++) {
    const struct wf_op_rate *r = &t->rates->op[i];
    if (r->op == x->op) return x->flops > 0 ? r->per_flop * x->flops : r->per_byte * x->bytes;
  }
  return fmax(x->flops / t->rates->flops, x->bytes / t->rates->memory);
}

/* Seconds of what has run under `label`; NULL: of all. */
static double computed(const trace *t, const char *label, double *flops) {
  int n = wf_ctx_profile_read(t->c, t->rows, MOST_ROWS);
  double sum = 0;
  for (int i = 0; i < n; i++) {
    const wf_op_profile *x = &t->rows[i];
    if (label && !(x->label && strcmp(x->label, label) == 0)) continue;
    sum += op_seconds(t, x);
    if (flops) *flops += x->flops;
  }
  return sum;
}

static double now(const trace *t) {
  return computed(t, NULL, NULL) + t->waited;
}

/* ---- exchanges ---- */

/* Is the label that of a relay (layers/seq_relay.c)? Then which primitive's. */
static bool relayed(const char *label, wf_plan_use *use) {
  static const wf_plan_use uses[] = {[WF_STATE_SCAN] = WF_PLAN_SCAN,
                                     [WF_STATE_SHIFT] = WF_PLAN_SHIFT,
                                     [WF_STATE_ATTEND] = WF_PLAN_ATTEND,
                                     [WF_STATE_SERIAL] = WF_PLAN_SERIAL};
  for (int k = 0; label && k < (int)(sizeof uses / sizeof *uses); k++)
    if (strcmp(label, wf_state_kind_name((wf_state_kind)k)) == 0) {
      *use = uses[k];
      return true;
    }
  return false;
}

/* Labels of a sequence's exchanges are the names of dist's ops, or a relay's, or what layers/seq_shards.c
 * says. */
static wf_plan_use use_of(const group *g) {
  const char *label = wf_ctx_label(g->t->c);
  wf_plan_use use = WF_PLAN_SCAN;
  if (g->job) return WF_PLAN_GRADIENTS;
  if (relayed(label, &use)) return use;
  if (label && strcmp(label, "shards") == 0) return WF_PLAN_SERIAL;
  if (label && strcmp(label, WF_RELAYOUT_LABEL) == 0) return WF_PLAN_RELAYOUT;
  if (label && strcmp(label, "dist_halo") == 0) return WF_PLAN_SHIFT;
  return label && (strncmp(label, "scan", 4) == 0 || strcmp(label, "selective_scan") == 0) ? WF_PLAN_SCAN
                                                                                           : WF_PLAN_ATTEND;
}

/* Seconds between the start and the end, where the link is free. */
static double exchange_seconds(const wf_cost *l, const wf_paper_call *x) {
  double bytes = (double)x->moved;
  if (strcmp(x->call, "send") == 0 || strcmp(x->call, "recv") == 0) return wf_cost_messages(l, 1, bytes);
  if (strcmp(x->call, "all_to_all") == 0) return wf_cost_messages(l, x->messages, bytes);
  if (strcmp(x->call, "all_reduce") == 0) return wf_cost_all_reduce(l, x->ranks, bytes);
  if (strcmp(x->call, "broadcast") == 0) return wf_cost_broadcast(l, x->ranks, bytes);
  return wf_cost_gather(l, x->ranks, bytes / x->ranks);
}

/* A state that goes from segment to segment comes after as many hops as there are ranks before, each way. */
static double hops(const group *g, wf_plan_use use, bool recv) {
  wf_transport t = g->t->dist ? g->t->dist->transport : WF_TRANSPORT_AUTO;
  bool along = recv && use == WF_PLAN_SCAN && (t == WF_TRANSPORT_RELAY || t == WF_TRANSPORT_PIPE);
  return along ? g->t->p->sequence - 1 : 1;
}

static double started(void *arg, const wf_paper_call *x) {
  const group *g = arg;
  trace *t = g->t;
  wf_plan_use use = use_of(g);
  wf_plan_part *part = &t->p->part[use];
  bool send = strcmp(x->call, "send") == 0, recv = strcmp(x->call, "recv") == 0;
  double seconds = exchange_seconds(&t->link, x), busy = seconds - t->link.latency;
  if (send) {
    part->messages++;
    part->bytes += x->bytes;
  } else if (!recv && strcmp(x->call, "barrier") != 0) {
    part->calls++;
    part->call_bytes += x->bytes;
  }
  if (relayed(wf_ctx_label(t->c), &use)) {
    part->seconds += send ? seconds : 0;
    return 0; /* accounted for at the end */
  }
  double at = fmax(now(t), send ? t->out : recv ? t->in : fmax(t->out, t->in));
  if (!recv) t->out = at + busy;
  if (!send) t->in = at + busy;
  part->seconds += recv ? 0 : seconds;
  return at + hops(g, use, recv) * seconds;
}

static void ended(void *arg, double end) {
  const group *g = arg;
  double wait = end - now(g->t);
  if (wait <= 0) return;
  g->t->waited += wait;
  g->t->p->part[use_of(g)].waited += wait;
}

/* What relays add: a rank's turn comes when those before it have had theirs. */
static void add_turns(trace *t, const wf_rehearsal *r) {
  const wf_dist *d = wf_mesh_dist(r->mesh);
  wf_part *part;
  if (!d || wf_part_create(d, r->batch.n_rows, r->batch.row, r->batch.n_lanes, 0, 0, &part) != WF_OK) return;
  double efficiency = wf_part_efficiency(part), hops = t->p->sequence - 1;
  for (int k = WF_STATE_SERIAL; k <= WF_STATE_ATTEND; k++) {
    const char *label = wf_state_kind_name((wf_state_kind)k);
    wf_plan_use use = WF_PLAN_SCAN;
    double run = computed(t, label, NULL);
    if (!relayed(label, &use) || run <= 0) continue;
    wf_plan_part *x = &t->p->part[use];
    t->p->serial = efficiency;
    x->waited += hops * x->seconds / part->n_groups;
    x->idle = run * (1 / efficiency - 1);
    t->waited += x->idle + hops * x->seconds / part->n_groups;
  }
  wf_part_free(part);
}

/* ---- memory ---- */

static int64_t peak_of(const wf_mem_tag *tags, int n, const wf_mem_tag *before, int n_before,
                       const char *name) {
  int64_t peak = 0;
  for (int i = 0; i < n; i++)
    if (strcmp(tags[i].tag, name) == 0) peak = tags[i].peak;
  for (int i = 0; i < n_before; i++)
    if (strcmp(before[i].tag, name) == 0) peak -= before[i].now;
  return peak;
}

enum { TAGS = 64 };
typedef struct memory {
  wf_mem_tag tag[TAGS];
  int n;
  int64_t now;
} memory;

static void memory_begin(memory *m) {
  wf_mem_reset_peak();
  m->now = wf_mem_now();
  m->n = wf_mem_report(m->tag, TAGS);
}

static void memory_end(const memory *m, wf_plan *p) {
  wf_mem_tag tag[TAGS];
  int n = wf_mem_report(tag, TAGS);
#define PEAK(name) peak_of(tag, n, m->tag, m->n, name)
  p->weights = PEAK("parameter");
  p->gradients = PEAK("parameter gradient");
  p->optimizer = PEAK("optimizer") + PEAK("ema");
  p->states = PEAK("state");
  p->exchange = PEAK("dist") + PEAK("communicator");
#undef PEAK
  p->peak = wf_mem_peak() - m->now;
  p->activations = p->peak - p->weights - p->gradients - p->optimizer - p->states - p->exchange;
}

/* ---- a rank ---- */

static wf_status open_mesh(const wf_plan *p, group *job, group *line, wf_mesh *m) {
  wf_paper of_job = {job, started, ended}, of_line = {line, started, ended};
  wf_comm *world = NULL, *data = NULL, *sequence = NULL;
  wf_status s = wf_comm_paper(p->rank, p->data * p->sequence, &of_job, &world);
  if (s == WF_OK) s = wf_comm_paper(p->rank / p->sequence, p->data, &of_job, &data);
  if (s == WF_OK) s = wf_comm_paper(p->rank % p->sequence, p->sequence, &of_line, &sequence);
  if (s == WF_OK)
    s = wf_mesh_join(world, data, sequence, WF_LAYOUT_CONTIGUOUS, m);
  else
    *m = (wf_mesh){.world = world, .data = data, .sequence = sequence};
  m->cost = job->t->link; /* by which scans choose their way */
  m->cost.serial = 0;
  m->dist.cost = &m->cost;
  return s;
}

static wf_status run(trace *t, const wf_config *cfg, int64_t vocab, wf_device *dev, wf_mesh *mesh,
                     wf_rehearsal *r) {
  WF_TRY(wf_rehearsal_open(cfg, vocab, dev, mesh, r));
  t->c = r->c;
  t->dist = wf_mesh_dist(mesh);
  t->p->zigzag = mesh->layout->n_segments > t->p->sequence;
  wf_ctx_profile(r->c, true);
  WF_TRY(wf_rehearsal_step(r));
  add_turns(t, r);
  if (mesh->cost.serial >
      0) { /* of shards nothing is to be added: the rank that has most is one of those run */
    t->p->serial = mesh->cost.serial;
    t->p->shards = mesh->cost.shards;
  }
  t->p->compute = computed(t, NULL, &t->p->flops);
  t->p->step = t->p->compute + t->waited;
  return WF_OK;
}

wf_status wf_plan_rank(const wf_config *cfg, int64_t vocab, int data, int sequence, int rank,
                       const wf_plan_rates *rates, const wf_cost *link, wf_plan *out) {
  *out = (wf_plan){.data = data,
                   .sequence = sequence,
                   .rank = rank,
                   .serial = 1,
                   .tokens = wf_config_sequences(cfg) * cfg->data.seq_len * cfg->train.accumulation};
  trace t = {.rates = rates, .link = *link, .p = out};
  group job = {&t, true}, line = {&t, false};
  wf_device *dev;
  wf_mesh mesh = {0};
  wf_rehearsal r = {0};
  memory before;
  WF_TRY(wf_device_open_paper(&dev));
  t.rows = wf_alloc("plan", MOST_ROWS * sizeof *t.rows);
  memory_begin(&before);
  wf_status s = t.rows ? open_mesh(out, &job, &line, &mesh) : WF_ENOMEM;
  if (s == WF_OK) s = run(&t, cfg, vocab, dev, &mesh, &r);
  memory_end(&before, out);
  wf_rehearsal_close(&r);
  wf_mesh_close(&mesh);
  wf_device_close(dev);
  wf_free(t.rows);
  wf_mem_reset_peak();
  return s;
}

wf_status wf_plan_job(const wf_config *cfg, int64_t vocab, int data, int sequence, const wf_plan_rates *rates,
                      const wf_cost *link, wf_plan *out) {
  int last = -1;
  /* Of a sequence the ranks at 0, 1/3, 2/3 and the end; of data the last, which has most. */
  for (int k = 0; k < 4; k++) {
    int rank = (data - 1) * sequence + (sequence - 1) * k / 3;
    wf_plan p;
    if (rank == last) continue;
    WF_TRY(wf_plan_rank(cfg, vocab, data, sequence, rank, rates, link, &p));
    wf_plan slow = last < 0 || p.step > out->step ? p : *out,
            large = last < 0 || p.peak > out->peak ? p : *out;
    *out = slow;
    out->weights = large.weights, out->gradients = large.gradients, out->optimizer = large.optimizer;
    out->states = large.states, out->activations = large.activations, out->exchange = large.exchange;
    out->peak = large.peak;
    last = rank;
  }
  return WF_OK;
}

wf_status wf_plan_announce(FILE *out, const wf_config *cfg, int64_t vocab, const wf_mesh *mesh) {
  const wf_plan_rates rates = {.flops = 1e9, .memory = 1e9}; /* bytes do not depend on it */
  const wf_cost link = mesh->cost.bandwidth > 0 ? mesh->cost : wf_cost_default();
  char a[24];
  int64_t sum = 0, messages = 0;
  wf_plan p;
  WF_TRY(wf_plan_rank(cfg, vocab, wf_comm_size(mesh->data), wf_comm_size(mesh->sequence),
                      wf_comm_rank(mesh->world), &rates, &link, &p));
  for (int u = 0; u < WF_PLAN_USES; u++) {
    sum += p.part[u].bytes + p.part[u].call_bytes;
    messages += p.part[u].messages + p.part[u].calls;
  }
  fprintf(out, "predicted a step: rank %d sends %s in %lld messages and calls", p.rank,
          wf_human_bytes((double)sum, a), (long long)messages);
  const char *between = ": ";
  for (int u = 0; u < WF_PLAN_USES; u++) {
    int64_t bytes = p.part[u].bytes + p.part[u].call_bytes;
    if (!bytes) continue;
    fprintf(out, "%s%s %s", between, wf_plan_use_name[u], wf_human_bytes((double)bytes, a));
    between = ", ";
  }
  if (p.shards)
    fprintf(out, "; serial mixers: all-to-all over %lld shards, efficiency %.2f", (long long)p.shards,
            p.serial);
  else if (p.serial < 1)
    fprintf(out, "; serial mixers: ranks take turns, efficiency %.2f", p.serial);
  fprintf(out, "\n");
  return WF_OK;
}
