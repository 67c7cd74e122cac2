/* The training run. A `run` holds its objects; open_*() make them, the step loop uses them, close_run() frees
 * them. */
#include "experiments/train.h"
#include "core/file.h"
#include "core/memory.h"
#include "core/ops.h"
#include "data/loader.h"
#include "dist/watch.h"
#include "experiments/assemble.h"
#include "experiments/checkpoint.h"
#include "experiments/convert.h"
#include "experiments/evaluate.h"
#include "experiments/human.h"
#include "experiments/metrics.h"
#include "experiments/parallel.h"
#include "experiments/plan.h"
#include "experiments/progress.h"
#include "experiments/rates.h"
#include "experiments/report.h"
#include "experiments/shards.h"
#include "experiments/virtual.h"
#include "layers/stream.h"
#include "optim/schedule.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct run {
  wf_config *cfg;
  wf_train_options *o;
  const wf_seat *seat; /* NULL: the process is the rank */
  wf_watch *watch;
  char *config_text; /* resolved, as stored */
  wf_mesh mesh;
  bool measured; /* its link, now */
  bool leads;    /* rank 0: prints and writes files */
  FILE *out;     /* stdout, or nowhere */
  wf_device *dev;
  wf_ctx *c;
  wf_store *store;
  wf_model *model;
  wf_shards shards;
  wf_optimizer *optimizer;
  wf_ema *ema;
  wf_state *carried;
  wf_lanes lanes; /* of `carried` */
  wf_loader *loader;
  wf_metrics metrics;
  wf_progress progress;
  wf_snapshot snap;
  int64_t last_saved; /* step of the newest checkpoint, -1 for none */
  double matrix_rate, began;
  int stop;             /* WF_STOP... that a rank was asked for before the last step ended */
  int64_t before_steps; /* bytes held when the first step begins */
} run;

/* ---- the folder ---- */

static void join(char out[4096], const run *r, const char *name) {
  snprintf(out, 4096, "%s/%s", r->cfg->run.dir, name);
}

/* Remove what an earlier run left: its checkpoints and its files, nothing else. */
static wf_status clear_folder(const run *r) {
  char path[4096], file[4096 + 300];
  join(path, r, "checkpoints");
  DIR *d = opendir(path);
  wf_status s = WF_OK;
  for (struct dirent *e; d && s == WF_OK && (e = readdir(d));) {
    if (strncmp(e->d_name, "step-", 5) != 0) continue;
    snprintf(file, sizeof file, "%s/%s", path, e->d_name);
    s = wf_remove_file(file);
  }
  if (d) closedir(d);
  WF_TRY(s);
  join(path, r, "metrics.jsonl");
  WF_TRY(wf_remove_file(path));
  join(path, r, "config.yaml");
  return wf_remove_file(path);
}

static void say_refused(void *arg, const char *path, const char *why) {
  fprintf(arg, "refused %s: %s\n", path, why);
}

/* Decides between a new run, an overwritten and a resumed one; *from is the checkpoint to go on from, or
 * NULL. */
static wf_status lead_folder(run *r, char **from) {
  char path[4096];
  *from = NULL;
  if (strlen(r->cfg->run.dir) > sizeof path - 100)
    return WF_FAIL(WF_EINVAL, "run.dir is a path of more than %zu bytes", sizeof path - 100);
  join(path, r, "config.yaml");
  bool exists = wf_file_exists(path);
  if (exists && !r->o->resume && !r->o->overwrite)
    return wf_hint(WF_FAIL(WF_EEXISTS, "the run %s exists already", r->cfg->run.dir),
                   "--resume goes on with it, --overwrite starts it anew, --set run.name=NAME makes another");
  join(path, r, "checkpoints");
  WF_TRY(wf_make_directories(path));
  if (r->o->resume) {
    WF_TRY(wf_checkpoint_latest(path, say_refused, r->out, from));
    if (!*from) fprintf(r->out, "no checkpoint in %s: starting from the beginning\n", path);
  } else if (exists) {
    WF_TRY(clear_folder(r));
  }
  return WF_OK;
}

/* Rank 0 decides and tells; the others see the same files. */
static wf_status open_folder(run *r, char **from) {
  *from = NULL;
  WF_TRY(wf_agree(r->mesh.world, r->leads ? lead_folder(r, from) : WF_OK, "opening the run's folder"));
  int64_t size = *from ? (int64_t)strlen(*from) : -1;
  if (wf_comm_size(r->mesh.world) == 1) return WF_OK;
  WF_TRY(wf_comm_broadcast_host(r->mesh.world, &size, sizeof size, 0));
  if (size < 0) return WF_OK;
  if (!*from) WF_CALLOC(*from, "train", size + 1);
  return wf_comm_broadcast_host(r->mesh.world, *from, size, 0);
}

/* ---- opening ---- */

static wf_status resume_config(run *r, const wf_checkpoint_info *info, const char *from) {
  wf_config stored;
  WF_TRY(wf_config_parse(&stored, from, info->config, info->config_size, NULL, 0, wf_types));
  wf_status s = wf_config_resume(&stored, r->cfg);
  wf_config_free(&stored);
  return s;
}

static int64_t sequences(const run *r) { /* in a micro-batch */
  return wf_config_sequences(r->cfg);
}

static int64_t tokens_at_once(const run *r) { /* of a sequence */
  const int64_t piece = r->cfg->train.stream, all = r->cfg->data.seq_len;
  return piece > 0 && piece < all ? piece : all;
}

/* Its slots are of fixed size: wf_config_check_layers has refused others. */
static wf_status open_carried(run *r) {
  WF_TRY(wf_parallel_lanes(&r->mesh, sequences(r), &r->lanes));
  return wf_state_create(r->c, wf_model_state_spec(r->model), wf_model_dtype(r->model), r->lanes.here, 0,
                         true, &r->carried);
}

static wf_status open_model(run *r) {
  const wf_config *cfg = r->cfg;
  WF_TRY(wf_assemble_device(cfg, &r->dev));
  WF_TRY(wf_ctx_create(r->dev, &r->c));
  WF_TRY(wf_store_open(cfg->data.store, &r->store));
  WF_TRY(wf_assemble_model(r->c, cfg, wf_store_vocab(r->store), &r->model));
  WF_TRY(wf_parallel_layout(cfg, r->model, &r->mesh));
  WF_TRY(wf_params_init(wf_model_params(r->model), (uint64_t)cfg->run.seed));
  if (cfg->train.init) WF_TRY(wf_load_weights(cfg->train.init, cfg, wf_model_params(r->model)));
  WF_TRY(wf_shards_open(r->mesh.world, r->model, cfg->parallel.zero, cfg->parallel.bucket, &r->shards));
  WF_TRY(wf_assemble_optimizer(r->c, cfg, &r->shards.own, &r->optimizer));
  if (cfg->train.ema > 0) {
    wf_ema_options eo = {cfg->train.ema, cfg->train.ema_warmup};
    WF_TRY(wf_ema_create(r->c, &eo, r->shards.own.n, r->shards.own.group, &r->ema));
  }
  if (cfg->train.carry_state) WF_TRY(open_carried(r));
  r->snap = (wf_snapshot){.params = wf_model_params(r->model),
                          .shards = &r->shards,
                          .optimizer = r->optimizer,
                          .ema = r->ema,
                          .state = r->carried,
                          .lanes = r->carried ? &r->lanes : NULL,
                          .seed = (uint64_t)cfg->run.seed};
  return WF_OK;
}

static wf_status open_loader(run *r) {
  const wf_config *cfg = r->cfg;
  wf_stream_options so = {.seq_len = cfg->data.seq_len,
                          .pack = cfg->data.pack,
                          .carry = cfg->train.carry_state,
                          .lanes = sequences(r),
                          .shuffle = cfg->data.shuffle,
                          .seed = (uint64_t)cfg->run.seed};
  wf_sequences *source;
  WF_TRY(wf_sequences_store(r->store, WF_TRAIN, &so, &source));
  wf_loader_options lo = {.batch = sequences(r),
                          .rank = wf_comm_rank(r->mesh.data),
                          .n_ranks = wf_comm_size(r->mesh.data),
                          .cursor = r->snap.cursor,
                          .ahead = (int)cfg->data.prefetch};
  return wf_loader_open(source, &lo, &r->loader);
}

static wf_status open_run(run *r) {
  char *from, path[4096];
  wf_checkpoint_info info = {0};
  WF_TRY(open_folder(r, &from));
  wf_status s = from ? wf_checkpoint_read_info(from, &info) : WF_OK;
  if (s == WF_OK && from) s = resume_config(r, &info, from);
  if (s == WF_OK) s = wf_parallel_link(r->cfg, &r->mesh, &r->measured);
  if (s == WF_OK) s = open_model(r);
  if (s == WF_OK && info.tokenizer) s = wf_check_tokenizer(r->store, info.tokenizer, info.tokenizer_size);
  wf_checkpoint_info_free(&info);
  if (s == WF_OK && from) {
    s = wf_checkpoint_load(from, &r->snap);
    if (s == WF_OK) fprintf(r->out, "resuming after step %lld from %s\n", (long long)r->snap.step, from);
  }
  r->last_saved = from ? r->snap.step : -1;
  wf_free(from);
  WF_TRY(s);
  WF_TRY(open_loader(r));
  WF_TRY(wf_config_print(r->cfg, &r->config_text));
  if (!r->leads) return WF_OK;
  join(path, r, "config.yaml");
  WF_TRY(wf_file_write(path, r->config_text, (int64_t)strlen(r->config_text)));
  join(path, r, "metrics.jsonl");
  if (r->snap.step > 0) return wf_metrics_resume(&r->metrics, path, r->snap.step);
  return wf_metrics_create(&r->metrics, path);
}

static void close_run(run *r) {
  wf_metrics_close(&r->metrics);
  wf_loader_close(r->loader);
  wf_state_free(r->carried);
  wf_free(r->lanes.count);
  wf_ema_free(r->ema);
  wf_optimizer_free(r->optimizer);
  wf_shards_close(&r->shards);
  wf_model_free(r->model);
  wf_store_close(r->store);
  wf_ctx_free(r->c);
  wf_device_close(r->dev);
  wf_free(r->config_text);
  wf_mesh_close(&r->mesh);
  if (r->out && r->out != stdout) fclose(r->out);
}

/* ---- saving and measuring ---- */

static wf_status save(run *r) {
  if (r->last_saved == r->snap.step) return WF_OK;
  wf_watch_phase(r->watch, r->snap.step, "saving a checkpoint");
  char dir[4096];
  join(dir, r, "checkpoints");
  double t0 = wf_now();
  size_t n;
  const void *blob = wf_store_tokenizer_blob(r->store, &n);
  wf_status s = wf_checkpoint_save_step(dir, &r->snap, r->config_text, blob, n, r->cfg->checkpoint.keep);
  WF_TRY(wf_agree(r->mesh.world, s, "saving a checkpoint"));
  wf_progress_pause(&r->progress, t0, wf_now());
  r->last_saved = r->snap.step;
  return WF_OK;
}

static wf_status swap_average(run *r) {
  WF_TRY(wf_ema_swap(r->ema));
  return wf_shards_spread(&r->shards);
}

static wf_status evaluate(run *r, wf_evaluation *e) {
  wf_watch_phase(r->watch, r->snap.step, "an evaluation");
  double t0 = wf_now();
  if (r->ema) WF_TRY(swap_average(r));
  int split = r->cfg->eval.split == WF_SPLIT_TEST ? WF_TEST : WF_VALIDATION;
  wf_status s = wf_evaluate(r->model, r->cfg, &r->mesh, r->store, split, r->cfg->eval.batches, e);
  if (r->ema) {
    wf_status back = swap_average(r);
    if (s == WF_OK) s = back;
  }
  WF_TRY(s);
  wf_progress_pause(&r->progress, t0, wf_now());
  wf_progress_note(&r->progress, "step %lld  validation loss %.4f  perplexity %.2f  %.4f bits per byte",
                   (long long)r->snap.step, e->loss, e->perplexity, e->bits_per_byte);
  return WF_OK;
}

/* ---- a step ---- */

typedef struct step_result {
  double loss, lr;
  wf_grad_norm grad;
  int64_t tokens;
  int bad_rank; /* whose loss is not finite, or -1 */
  double seconds;
} step_result;

static void phase(run *r, const char *what) {
  wf_watch_phase(r->watch, r->snap.step + 1, what);
}

/* Gradients of the sum of losses over all parts of the batch. */
static wf_status gradients(run *r, wf_totals *total) {
  wf_params *ps = wf_model_params(r->model);
  int64_t parts = r->cfg->train.accumulation;
  *total = (wf_totals){.stop = r->o->stop ? *r->o->stop : 0};
  wf_params_reset(ps);
  wf_params_hold(ps);
  for (int64_t k = 0; k < parts; k++) {
    const wf_batch *b;
    WF_TRY(wf_loader_next(r->loader, &b));
    wf_tokens t = {b->n_rows, b->n_lanes, b->n_tokens, b->rows, b->inputs, b->labels};
    wf_step step = {.stream = r->cfg->train.stream,
                    .train = true,
                    .seed = (uint64_t)r->cfg->run.seed,
                    .step = r->snap.step * parts + k,
                    .state = r->carried,
                    .dist = wf_mesh_dist(&r->mesh)};
    double part;
    WF_TRY(wf_step_gradient(r->model, &step, &t, 1, k == parts - 1, &part));
    total->loss += part;
    total->labels += b->n_labels;
    total->tokens += b->n_tokens;
    r->snap.cursor = b->cursor;
  }
  phase(r, "the sum of losses");
  WF_TRY(wf_parallel_totals(&r->mesh, total));
  phase(r, "the sum of gradients");
  return wf_shards_sum(&r->shards);
}

static wf_status bad_step(run *r, const step_result *s) {
  const char *bad;
  char rank[40] = "";
  WF_TRY(wf_shards_find_bad(&r->shards, &bad));
  if (!bad) bad = "the loss";
  if (s->bad_rank >= 0 && wf_comm_size(r->mesh.world) > 1)
    snprintf(rank, sizeof rank, "; first on rank %d", s->bad_rank);
  wf_progress_note(&r->progress, "step %lld skipped: loss %g, gradient norm %g; first bad: %s%s",
                   (long long)r->snap.step + 1, s->loss, s->grad.norm, bad, rank);
  if (wf_optimizer_skipped_in_row(r->optimizer) <= r->cfg->train.max_skipped) return WF_OK;
  return wf_hint(WF_FAIL(WF_ENUMERIC,
                         "%lld steps in a row had a loss or gradient that is not finite; first bad: %s",
                         (long long)wf_optimizer_skipped_in_row(r->optimizer), bad),
                 "lower the learning rate or lengthen the warm-up; train.max_skipped is %lld",
                 (long long)r->cfg->train.max_skipped);
}

/* Where memory ran out in a step: a batch that would fit in what the step had reached. */
static wf_status fitting(run *r, wf_status s) {
  if (s != WF_ENOMEM) return s;
  int64_t seq_len = r->cfg->data.seq_len, now = sequences(r), fits = now / 2;
  double had = (double)(wf_mem_peak() - r->before_steps) / (r->seat ? r->seat->each : 1),
         needs = wf_model_activation_bytes(r->model, tokens_at_once(r));
  if (had / needs < (double)fits) fits = (int64_t)(had / needs);
  if (fits >= 1)
    return wf_hint(
        s,
        "about %lld sequences at once would fit, of %lld now: train.batch_tokens %lld, or train.accumulation "
        "%lld for the same batch; train.recompute and train.stream need less memory too",
        (long long)fits, (long long)now, (long long)(fits * seq_len * r->cfg->train.accumulation),
        (long long)(r->cfg->train.accumulation * ((now + fits - 1) / fits)));
  return wf_hint(
      s,
      "one sequence of %lld tokens does not fit: shorten data.seq_len, or set train.stream to a part of it "
      "(the same gradients, piece by piece) or train.recompute",
      (long long)seq_len);
}

static wf_status one_step(run *r, step_result *out) {
  const wf_config_train *t = &r->cfg->train;
  phase(r, "the gradients");
  wf_totals total;
  wf_status s = gradients(r, &total);
  if (s != WF_OK) return fitting(r, s);
  double per_label = total.labels ? 1 / (double)total.labels : 0;
  out->tokens = total.tokens;
  out->loss = total.loss * per_label;
  out->bad_rank = total.bad_rank;
  r->stop = total.stop;
  phase(r, "the update");
  WF_TRY(wf_shards_measure(r->c, &r->shards, per_label, t->clip, &out->grad));
  if (!isfinite(total.loss)) out->grad.scale = NAN;
  double factor =
      wf_schedule_factor(wf_schedule_find(t->schedule.type), t->schedule.options, t->steps, r->snap.step);
  out->lr = factor * wf_optimizer_lr(r->optimizer);
  WF_TRY(wf_optimizer_step(r->optimizer, factor, out->grad.scale));
  WF_TRY(wf_shards_spread(&r->shards));
  if (r->carried && !isfinite(total.loss))
    WF_TRY(wf_state_reset(r->carried)); /* what is not finite would stay */
  if (!isfinite(out->grad.scale))
    WF_TRY(bad_step(r, out));
  else if (r->ema)
    WF_TRY(wf_ema_update(r->ema));
  r->snap.step++;
  r->snap.tokens += out->tokens;
  return wf_shards_agree(&r->shards, r->snap.step, out->loss, out->grad.norm);
}

static wf_status report(run *r, const step_result *s, const wf_evaluation *e) {
  wf_metric m[16];
  size_t n = 0;
  m[n++] = (wf_metric){"tokens", (double)r->snap.tokens};
  m[n++] = (wf_metric){"loss", s->loss};
  m[n++] = (wf_metric){"lr", s->lr};
  m[n++] = (wf_metric){"grad_norm", s->grad.norm};
  m[n++] = (wf_metric){"tokens_per_s", wf_progress_rate(&r->progress)};
  m[n++] = (wf_metric){"wall_s", wf_now() - r->began};
  m[n++] = (wf_metric){"step_s", s->seconds};
  m[n++] = (wf_metric){"held_bytes", (double)r->before_steps};
  m[n++] = (wf_metric){"peak_bytes", (double)wf_mem_peak()};
  if (e) {
    m[n++] = (wf_metric){"val_loss", e->loss};
    m[n++] = (wf_metric){"val_ppl", e->perplexity};
    m[n++] = (wf_metric){"val_bpb", e->bits_per_byte};
  }
  return r->leads ? wf_metrics_write(&r->metrics, r->snap.step, m, n) : WF_OK;
}

static void show(run *r, const step_result *s, double before) {
  double now = wf_now(), flops = 3 * wf_model_flops(r->model, r->cfg->data.seq_len / 2) * (double)s->tokens;
  wf_progress_step p = {.step = r->snap.step,
                        .tokens = s->tokens,
                        .loss = s->loss,
                        .lr = s->lr,
                        .grad_norm = s->grad.norm,
                        .matrix_fraction = flops / (now - before) / r->matrix_rate,
                        .memory = (double)wf_mem_now()};
  wf_progress_step_done(&r->progress, &p, now);
}

static bool due(int64_t step, int64_t every, bool last) {
  return last || (every > 0 && step % every == 0);
}

static wf_status loop(run *r) {
  const wf_config *cfg = r->cfg;
  while (r->snap.step < cfg->train.steps) {
    if (r->stop) {
      WF_TRY(save(r));
      r->o->requeue = r->stop == WF_STOP_REQUEUE;
      return WF_FAIL(WF_EINTERRUPTED, "stopped by a signal after step %lld; the checkpoint is saved",
                     (long long)r->snap.step);
    }
    double before = wf_now();
    step_result s = {0};
    WF_TRY(one_step(r, &s));
    s.seconds = wf_now() - before;
    show(r, &s, before);
    bool last = r->snap.step == cfg->train.steps, eval = due(r->snap.step, cfg->eval.every, last);
    wf_evaluation e;
    if (eval) WF_TRY(evaluate(r, &e));
    if (eval || due(r->snap.step, cfg->log.every, last)) WF_TRY(report(r, &s, eval ? &e : NULL));
    if (due(r->snap.step, cfg->checkpoint.every, last)) WF_TRY(save(r));
  }
  return save(r);
}

/* The other ranks may wait for this one for ever: say why, and end the job. */
static void fail_alone(const run *r) {
  if (wf_comm_size(r->mesh.world) == 1) return;
  fprintf(stderr, "weft: error: rank %d, step %lld: %s\n", wf_comm_rank(r->mesh.world),
          (long long)r->snap.step + 1, wf_error_message());
  if (*wf_error_hint()) fprintf(stderr, "hint: %s\n", wf_error_hint());
  fflush(NULL);
  wf_comm_abort(r->mesh.world, 1);
}

static wf_status open_ranks(run *r) {
  const wf_config_parallel *p = &r->cfg->parallel;
  const char *warning;
  WF_TRY(wf_parallel_open(r->cfg, r->seat ? r->seat->world : NULL, &r->mesh));
  r->leads = r->o->leads = wf_parallel_leads(&r->mesh);
  r->out = r->leads ? stdout : fopen("/dev/null", "w");
  if (!r->out) return WF_FAIL(WF_EIO, "cannot write to /dev/null");
  if (r->seat) {
    r->watch = r->seat->watch;
    return WF_OK;
  }
  WF_TRY(wf_watch_start(r->mesh.world, &(wf_watch_options){p->timeout, p->step_timeout, NULL}, &r->watch,
                        &warning));
  if (warning) fprintf(r->out, "warning: %s\n", warning);
  return WF_OK;
}

static wf_status train(run *r) {
  char ranks[160], sums[100];
  WF_TRY(open_ranks(r));
  WF_TRY(wf_agree(r->mesh.world, open_run(r), "opening the run"));
  WF_TRY(wf_rate_matrix(r->c, 512, 0.03, &r->matrix_rate));
  wf_parallel_describe(&r->mesh, ranks);
  wf_shards_describe(&r->shards, sums);
  if (ranks[0]) fprintf(r->out, "%s%s\n", ranks, sums);
  if (wf_comm_size(r->mesh.sequence) > 1)
    fprintf(r->out, "parallel.link: %s%s\n", r->cfg->parallel.link,
            r->measured ? " (measured; given, or resumed, scans go the same way)" : "");
  wf_parallel_relayout(r->out, r->cfg, r->model, &r->mesh);
  wf_status plan = WF_OK;
  if (ranks[0] && r->leads) plan = wf_plan_announce(r->out, r->cfg, wf_store_vocab(r->store), &r->mesh);
  WF_TRY(wf_agree(r->mesh.world, plan, "rehearsing a step"));
  wf_report_model(r->out, r->model, &r->shards, r->optimizer, r->ema,
                  (sequences(r) * tokens_at_once(r) - 1) / wf_comm_size(r->mesh.world) + 1);
  r->began = wf_now();
  r->before_steps = wf_mem_now();
  if (r->o->profile) wf_ctx_profile(r->c, true);
  wf_progress_start(&r->progress, r->out, r->snap.step, r->cfg->train.steps, r->cfg->log.every,
                    r->cfg->log.smoothing, r->began);
  wf_status s = loop(r);
  if (s != WF_OK && s != WF_EINTERRUPTED && s != WF_EPEER) fail_alone(r);
  wf_progress_end(&r->progress, r->snap.step, wf_now());
  if (s != WF_OK && s != WF_EINTERRUPTED) return s;
  const wf_cost *cost = &r->mesh.cost;
  if (cost->scans)
    fprintf(r->out, "%lld scans over ranks: %.3f ms predicted for each, %.3f ms waited\n",
            (long long)cost->scans, 1e3 * cost->predicted / (double)cost->scans,
            1e3 * cost->waited / (double)cost->scans);
  fprintf(r->out, "waited for data %.2f s; run in %s\n", wf_loader_waited(r->loader), r->cfg->run.dir);
  wf_report_memory(r->out);
  if (r->o->profile) wf_report_profile(r->out, r->c);
  return s;
}

static wf_status train_rank(wf_config *cfg, wf_train_options *o, const wf_seat *seat) {
  run r = {.cfg = cfg, .o = o, .seat = seat, .last_saved = -1};
  r.metrics.fd = -1;
  wf_status s = train(&r);
  if (r.watch && !seat) wf_watch_stop(r.mesh.world, r.watch);
  close_run(&r);
  return s;
}

wf_status wf_train(wf_config *cfg, wf_train_options *o) {
  return cfg->parallel.bitwise ? wf_virtual_run(cfg, o, train_rank) : train_rank(cfg, o, NULL);
}
