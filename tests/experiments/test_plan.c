/* Plans: messages and bytes on paper are those of real steps on every rank, memory that of a real step;
 * seconds follow their formulas; `weft plan` up to 4,096 ranks. */
#define _GNU_SOURCE
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/plan.h"
#include "experiments/rehearsal.h"
#include "tests/dist/ranks.h"
#include "tests/experiments/run_weft.h"

/* ---- configs ---- */

enum { VOCAB = 23 };

static const char *const models[] = {
    "{mixer: {type: attention, heads: 4, kv_heads: 2}, mlp: {type: swiglu, width: 24}}\n"
    "    - {mixer: {type: simple_gla, heads: 2}, mlp: {type: gelu, width: 20}}",
    "{mixer: {type: mamba2, head_dim: 8}}\n"
    "    - {mixer: {type: slstm, heads: 2}, mlp: {type: gelu, width: 24}}",
    "{mixer: {type: gated_deltanet, heads: 2}}\n"
    "    - {mixer: {type: attention, heads: 2, window: 9, position: alibi}}",
    "{mixer: {type: mlstm, heads: 2}}\n"
    "    - {mixer: {type: ttt, heads: 2, mini_batch: 4}}",
    "{mixer: {type: mamba}}\n"
    "    - {mixer: {type: gru}}\n    - {mixer: {type: mingru}}\n    - {mixer: {type: kda, heads: 2}}",
};
static const char *const trains[] = {"batch_tokens: 111", "batch_tokens: 222, stream: 16, recompute: true",
                                     "batch_tokens: 148, accumulation: 2, clip: 1, ema: 0.9"};

static void parse(wf_config *cfg, const char *model, const char *train, const char *parallel) {
  char text[2000];
  snprintf(text, sizeof text,
           "data: {store: none.h5, seq_len: 37}\nmodel:\n  d_model: 16\n  blocks:\n    - %s\n"
           "train: {steps: 1, %s, optimizer: {type: adamw, lr: 1.0e-3}, schedule: {type: constant}}\n"
           "run: {threads: 1}\nparallel: {%s}\n",
           model, train, parallel);
  wf_status s = wf_config_parse(cfg, "test", text, strlen(text), NULL, 0, wf_types);
  ck_assert_msg(s == WF_OK, "%s %s", wf_error_message(), wf_error_hint());
}

static const wf_plan_rates rates = {.flops = 1e9, .memory = 1e8};
static const wf_cost slow = {.bandwidth = 1e6, .latency = 1e-3, .combine = 4e9, .flops = 2e10, .threads = 1};

/* ---- counts ---- */

enum { MOST = 4 };
typedef struct course {
  const wf_config *cfg;
  int data, sequence;
  wf_cost link;
  wf_plan plan[MOST];
} course;

static void same(const char *what, int rank, const wf_comm_counts *before, const wf_comm_counts *after,
                 const wf_plan_part *p) {
  long long real[] = {after->messages - before->messages, after->message_bytes - before->message_bytes,
                      after->calls - before->calls, after->call_bytes - before->call_bytes};
  WF_RANK_ASSERT(
      real[0] == p->messages && real[1] == p->bytes && real[2] == p->calls && real[3] == p->call_bytes,
      "%s, rank %d: %lld messages of %lld bytes, %lld calls of %lld; predicted %lld, %lld, %lld, %lld", what,
      rank, real[0], real[1], real[2], real[3], (long long)p->messages, (long long)p->bytes,
      (long long)p->calls, (long long)p->call_bytes);
}

static void real_step(wf_comm *c, void *arg) {
  const course *k = arg;
  int rank = wf_comm_rank(c);
  const wf_plan *p = &k->plan[rank];
  wf_comm *world;
  wf_device *dev;
  wf_mesh mesh;
  wf_rehearsal r;
  WF_RANK_OK(wf_comm_split(c, 0, rank, &world));
  WF_RANK_OK(wf_mesh_open(world, k->data, k->sequence, WF_LAYOUT_CONTIGUOUS, &mesh));
  mesh.cost = k->link;
  mesh.dist.cost = &mesh.cost;
  WF_RANK_OK(wf_device_open(WF_CPU, 0, &dev));
  WF_RANK_OK(wf_rehearsal_open(k->cfg, VOCAB, dev, &mesh, &r));
  WF_RANK_OK(wf_params_init(wf_model_params(r.model), 1));
  for (int step = 0; step < 2; step++) {
    wf_comm_counts job = wf_comm_count(mesh.world), data = wf_comm_count(mesh.data),
                   line = wf_comm_count(mesh.sequence);
    WF_RANK_OK(wf_rehearsal_step(&r));
    wf_comm_counts job_after = wf_comm_count(mesh.world), data_after = wf_comm_count(mesh.data),
                   line_after = wf_comm_count(mesh.sequence);
    wf_plan_part along = {0};
    for (int u = 0; u < WF_PLAN_GRADIENTS; u++) {
      along.messages += p->part[u].messages, along.bytes += p->part[u].bytes;
      along.calls += p->part[u].calls, along.call_bytes += p->part[u].call_bytes;
    }
    same("the sequence", rank, &line, &line_after, &along);
    same("the job", rank, &job, &job_after, &p->part[WF_PLAN_GRADIENTS]);
    same("data", rank, &data, &data_after, &(wf_plan_part){0});
  }
  wf_rehearsal_close(&r);
  wf_device_close(dev);
  wf_mesh_close(&mesh);
}

START_TEST(counts) {
  static const int meshes[][2] = {{1, 2}, {1, 3}, {2, 1}, {2, 2}, {1, 4}, {3, 1}};
  static const char *const layouts[] = {"layout: contiguous", "layout: zigzag"};
  for (size_t m = 0; m < sizeof meshes / sizeof *meshes; m++) {
    wf_config cfg;
    int zigzag = ((int)m + _i) % 2;
    parse(&cfg, models[_i], trains[(m + (size_t)_i) % 3], layouts[zigzag]);
    course k = {.cfg = &cfg, .data = meshes[m][0], .sequence = meshes[m][1], .link = slow};
    int64_t sent = 0;
    for (int r = 0; r < k.data * k.sequence; r++) {
      ck_assert_msg(wf_plan_rank(&cfg, VOCAB, k.data, k.sequence, r, &rates, &k.link, &k.plan[r]) == WF_OK,
                    "%s", wf_error_message());
      ck_assert_int_eq(k.plan[r].zigzag, zigzag && k.sequence > 1);
      for (int u = 0; u < WF_PLAN_GRADIENTS; u++)
        sent += k.plan[r].part[u].bytes + k.plan[r].part[u].call_bytes;
      ck_assert_int_gt(k.plan[r].part[WF_PLAN_GRADIENTS].call_bytes, 0);
    }
    ck_assert(k.sequence == 1 ? sent == 0 : sent > 0);
    wf_ranks_run(k.data * k.sequence, real_step, &k);
    wf_config_free(&cfg);
  }
}
END_TEST

/* The way of a scan's states follows the link, on paper as in fact: where messages are slow to come few of
 * them with maps beside the states are faster, where they are slow to pass many without. */
START_TEST(ways) {
  wf_config cfg;
  int64_t sent[2];
  parse(&cfg, "{mixer: {type: gated_deltanet, heads: 2}}", trains[0], "layout: zigzag");
  for (int i = 0; i < 2; i++) {
    course k = {.cfg = &cfg, .data = 1, .sequence = 4, .link = slow};
    k.link.latency = i ? 1e-2 : 1e-7;
    for (int r = 0; r < 4; r++)
      ck_assert_int_eq(wf_plan_rank(&cfg, VOCAB, 1, 4, r, &rates, &k.link, &k.plan[r]), WF_OK);
    sent[i] = 0;
    for (int r = 0; r < 4; r++)
      sent[i] += k.plan[r].part[WF_PLAN_SCAN].bytes + k.plan[r].part[WF_PLAN_SCAN].call_bytes;
    wf_ranks_run(4, real_step, &k);
  }
  ck_assert_msg(sent[0] < sent[1], "%lld bytes where messages come at once, %lld where late",
                (long long)sent[0], (long long)sent[1]);
  wf_config_free(&cfg);
}
END_TEST

/* Messages are put down to what they are for. */
START_TEST(uses) {
  static const char *const block[] = {"{mixer: {type: retnet, heads: 2}}", "{mixer: {type: base_conv}}",
                                      "{mixer: {type: attention, heads: 2}}", "{mixer: {type: gru}}",
                                      "{mixer: {type: slstm, heads: 2, conv_width: 0}}"};
  for (int k = 0; k < 5; k++) {
    wf_config cfg;
    wf_plan p;
    parse(&cfg, block[k], trains[0], k < 4 ? "layout: contiguous, serial: turns" : "serial: all_to_all");
    ck_assert_int_eq(wf_plan_rank(&cfg, VOCAB, 1, 3, 1, &rates, &slow, &p), WF_OK);
    for (int u = 0; u < WF_PLAN_GRADIENTS; u++)
      ck_assert_msg((p.part[u].bytes + p.part[u].call_bytes > 0) == (u == (k < 4 ? k : WF_PLAN_SERIAL)),
                    "%s: %lld bytes of %s", block[k], (long long)p.part[u].bytes, wf_plan_use_name[u]);
    double idle = 0;
    for (int u = 0; u < WF_PLAN_USES; u++) idle += p.part[u].idle;
    ck_assert((p.serial < 1 && !p.shards) == (idle > 0));
    ck_assert((k == WF_PLAN_SERIAL) == (idle > 0));
    ck_assert((k == 4) == (p.shards > 0));
    wf_config_free(&cfg);
  }
}
END_TEST

/* ---- memory ---- */

START_TEST(memory) {
  wf_config cfg;
  wf_plan p;
  wf_device *dev;
  wf_comm *self;
  wf_mesh mesh;
  wf_rehearsal r;
  parse(&cfg, models[_i], "batch_tokens: 1480, ema: 0.9", "");
  ck_assert_int_eq(wf_plan_rank(&cfg, VOCAB, 1, 1, 0, &rates, &slow, &p), WF_OK);
  int64_t now = wf_mem_now();
  wf_mem_reset_peak();
  WF_RANK_OK(wf_comm_self(&self));
  WF_RANK_OK(wf_mesh_open(self, 1, 1, WF_LAYOUT_CONTIGUOUS, &mesh));
  WF_RANK_OK(wf_device_open(WF_CPU, 0, &dev));
  WF_RANK_OK(wf_rehearsal_open(&cfg, VOCAB, dev, &mesh, &r));
  WF_RANK_OK(wf_params_init(wf_model_params(r.model), 1));
  WF_RANK_OK(wf_rehearsal_step(&r));
  double real = (double)(wf_mem_peak() - now);
  int64_t numel = wf_model_params(r.model)->numel;
  /* but for what kernels take while they run */
  ck_assert_msg((double)p.peak < 1.02 * real && (double)p.peak > 0.9 * real,
                "%.0f bytes in fact, predicted %lld", real, (long long)p.peak);
  ck_assert_int_ge(p.weights, 4 * numel);
  ck_assert_int_ge(p.gradients, 4 * numel);
  ck_assert_int_ge(p.optimizer, 12 * numel); /* two moments and the average */
  ck_assert_int_lt(p.optimizer, 20 * numel);
  ck_assert_int_gt(p.activations, 0);
  ck_assert_int_eq(p.peak, p.weights + p.gradients + p.optimizer + p.activations + p.states + p.exchange);
  wf_rehearsal_close(&r);
  wf_device_close(dev);
  wf_mesh_close(&mesh);
  wf_config_free(&cfg);
}
END_TEST

/* ---- seconds ---- */

START_TEST(seconds) {
  wf_config cfg;
  wf_plan p, q, fast;
  parse(&cfg, models[0], trains[0], "zero: 0");
  wf_cost none = slow;
  none.bandwidth = 1e18, none.latency = 0;
  ck_assert_int_eq(wf_plan_rank(&cfg, VOCAB, 4, 1, 3, &rates, &slow, &p), WF_OK);
  const wf_plan_part *g = &p.part[WF_PLAN_GRADIENTS]; /* all-reduces, one after the other */
  double expected = 2 * (2 * 1e-3 * (double)g->calls + 0.75 * (double)g->call_bytes / 1e6);
  ck_assert_double_eq_tol(g->seconds, expected, 1e-12);
  ck_assert(g->waited > 0 && g->waited <= g->seconds);
  ck_assert_double_eq_tol(p.step, p.compute + g->waited, 1e-9);
  ck_assert_int_eq(wf_plan_rank(&cfg, VOCAB, 4, 1, 3, &rates, &none, &fast), WF_OK);
  ck_assert_double_eq_tol(fast.step, fast.compute, 1e-9);
  ck_assert_double_eq(fast.compute, p.compute);
  const wf_plan_rates twice = {.flops = 2e9, .memory = 2e8};
  ck_assert_int_eq(wf_plan_rank(&cfg, VOCAB, 4, 1, 3, &twice, &none, &q), WF_OK);
  ck_assert_double_eq_tol(2 * q.compute, p.compute, 1e-9);
  ck_assert_double_eq(q.flops, p.flops);
  ck_assert_int_eq(wf_plan_job(&cfg, VOCAB, 1, 3, &rates, &slow, &q), WF_OK);
  for (int r = 0; r < 3; r++) {
    ck_assert_int_eq(wf_plan_rank(&cfg, VOCAB, 1, 3, r, &rates, &slow, &p), WF_OK);
    ck_assert(p.step <= q.step && p.peak <= q.peak);
  }
  wf_config_free(&cfg);
}
END_TEST

START_TEST(links) {
  wf_cost l, back;
  char text[120];
  double x;
  ck_assert(wf_link_read("--link", "100Gb/s,10us", &l) == WF_OK && fabs(l.bandwidth - 12.5e9) < 1 &&
            fabs(l.latency - 1e-5) < 1e-12);
  ck_assert(wf_link_read("--link", "1GB/s,50us", &l) == WF_OK && fabs(l.bandwidth - 1e9) < 1 &&
            fabs(l.latency - 5e-5) < 1e-12);
  ck_assert(wf_link_read("--link", "800Mbit/s,1ms", &l) == WF_OK && fabs(l.bandwidth - 1e8) < 1 &&
            fabs(l.latency - 1e-3) < 1e-12);
  ck_assert(wf_link_read("--link", "2.5e9B/s,0s", &l) == WF_OK && l.bandwidth == 2.5e9 && l.latency == 0);
  l.flops = 3;
  ck_assert(wf_link_read("--link", "1GB/s,50us", &l) == WF_OK && l.flops == 3);
  ck_assert(wf_link_read("--link", "1GB/s,50us,80Gflop/s", &l) == WF_OK && fabs(l.flops - 8e10) < 1);
  static const char *const bad[] = {"",           "100",           "100Gb/s",          "100Gb/s,",
                                    "100Gb/s,10", "100Gb,10us",    "-1GB/s,1us",       "0B/s,1us",
                                    "1GB/s,1us,", "1XB/s,1us",     "nanB/s,1us",       "1GB/s;1us",
                                    "1GB/s,-1us", "1GB/s,1us,80G", "1GB/s,1us,flop/s", "1GB/s,1us,8Gflop/s,"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    ck_assert_msg(wf_link_read("--link", bad[i], &l) == WF_EINVAL, "%s", bad[i]);
    ck_assert_ptr_nonnull(strstr(wf_error_hint(), "100Gb/s,10us"));
  }
  for (int i = 11; i < 40; i++) {
    l = (wf_cost){.bandwidth = exp2(i), .latency = exp2(10 - i), .flops = exp2(2 * i)};
    wf_link_print(&l, text);
    ck_assert_int_eq(wf_link_read("--link", text, &back), WF_OK);
    ck_assert_msg(back.bandwidth == l.bandwidth && back.flops == l.flops, "%s", text);
    ck_assert_double_eq_tol(back.latency, l.latency, 1e-15 * l.latency);
  }
  ck_assert(wf_rate_read("--flops", "2T", &x) == WF_OK && x == 2e12);
  ck_assert(wf_rate_read("--flops", "150G/s", &x) == WF_OK && x == 150e9);
  ck_assert(wf_rate_read("--flops", "8e10", &x) == WF_OK && x == 8e10);
  ck_assert_int_eq(wf_rate_read("--flops", "fast", &x), WF_EINVAL);
  ck_assert_int_eq(wf_rate_read("--flops", "2Tb", &x), WF_EINVAL);
}
END_TEST

/* ---- the program ---- */

static json_t *last_row(const char *line, int rows) {
  char *at = output;
  json_t *row = NULL;
  run(line);
  for (int i = 0; i < rows; i++) {
    json_decref(row);
    row = json_loads(at, JSON_DISABLE_EOF_CHECK, NULL);
    ck_assert_msg(row != NULL, "row %d of %s: %s", i, line, output);
    ck_assert(json_is_true(json_object_get(row, "predicted")));
    at = strchr(at, '\n') + 1;
  }
  ck_assert_str_eq(at, "");
  return row;
}

START_TEST(program) {
  temp_dir_make();
  FILE *f = fopen(temp_path("c.yaml"), "w");
  ck_assert_ptr_nonnull(f);
  fprintf(f,
          "data: {store: none.h5, seq_len: 2048}\nmodel:\n  d_model: 16\n  blocks:\n    - %s\n"
          "train: {steps: 1, batch_tokens: 2048, optimizer: {type: adamw, lr: 1.0e-3}, schedule: {type: "
          "constant}}\n",
          models[0]);
  ck_assert_int_eq(fclose(f), 0);
  json_t *row = last_row("weft plan c.yaml --vocab 40 --json --flops 20G --ranks 4096 --sequence 4096", 13);
  ck_assert_int_eq(json_integer_value(json_object_get(row, "ranks")), 4096);
  ck_assert_int_eq(json_integer_value(json_object_get(row, "sequence")), 4096);
  ck_assert(json_real_value(json_object_get(row, "efficiency")) < 1);
  json_decref(row);
  row = last_row("weft plan c.yaml --vocab 40 --json --flops 20G --memory 1G --ranks 6 --sequence 2",
                 4); /* 1 2 4 6 */
  ck_assert_int_eq(json_integer_value(json_object_get(row, "data")), 3);
  json_decref(row);
  expect("plan c.yaml --vocab 40 --ranks 2 --tokens 64", 0, "predicted, not measured");
  expect("plan c.yaml --vocab 40 --link fast", 1, "100Gb/s,10us");
  expect("plan c.yaml --vocab 40 --ranks 2 --flops 1G", 0, "link 12.5GB/s, 10 us");
  expect("plan c.yaml --vocab 40 --ranks 2 --flops 1G --set parallel.link=1GB/s,3us", 0,
         "link 1.00GB/s, 3 us");
  expect("plan c.yaml --vocab 40 --flops 1G --link 2GB/s,4us --set parallel.link=fast", 0,
         "link 2.00GB/s, 4 us");
  expect("plan c.yaml --vocab 40 --flops 1G --set parallel.link=fast", 1, "parallel.link");
  expect("plan c.yaml --ranks 2", 1, "--vocab");
  expect("plan c.yaml --vocab 40 --memory 1G", 1, "--flops");
  expect("plan c.yaml --vocab 40 --flops 1G --ranks 3 --sequence 2", 1, "multiple");
  temp_dir_remove();
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("plan");
  TCase *t = tcase_create("plan");
  tcase_set_timeout(t, 240);
  tcase_add_loop_test(t, counts, 0, sizeof models / sizeof *models);
  tcase_add_loop_test(t, memory, 0, sizeof models / sizeof *models);
  tcase_add_test(t, ways);
  tcase_add_test(t, uses);
  tcase_add_test(t, seconds);
  tcase_add_test(t, links);
  tcase_add_test(t, program);
  suite_add_tcase(s, t);
  return s;
}

WF_RANKS_MAIN(suite)
