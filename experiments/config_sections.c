/* The sections of the config: every key with its type, default, range and meaning. */
#include <math.h>

#include "experiments/config.h"

#define HUGE_COUNT 1e15

static const char *const devices[] = {"cpu", "cuda", NULL};
static const char *const precisions[] = {"f32", "f64", NULL};
static const char *const norms[] = /* in the order of wf_norm_kind */ {"rmsnorm", "layernorm", NULL};
static const char *const layouts[] = {"contiguous", "zigzag", NULL};
/* wf_dist_attention */
static const char *const attentions[] = {"auto", "ring", "gather", "all_to_all", "usp", NULL};
/* wf_transport */
static const char *const scans[] = {"auto", "serial", "pipe", "relay", "gather", "log", NULL};
/* wf_dist_relayout */
static const char *const relayouts[] = {"auto", "never", "always", NULL};
/* wf_dist_serial */
static const char *const serials[] = {"auto", "turns", "all_to_all", NULL};
static const char *const transports[] = {"self", "mpi", "nccl", NULL};
static const char *const splits[] = {"validation", "test", NULL};

static const wf_option run_table[] = {
    WF_OPT_STRF(wf_config_run, name, NULL, WF_OPT_AUTO, "name of the run; auto: the config file's name"),
    WF_OPT_STRF(wf_config_run, dir, NULL, WF_OPT_AUTO | WF_OPT_RESUME, "folder of the run; auto: runs/NAME"),
    WF_OPT_I64(wf_config_run, seed, "1", 0, 9e15, "seed of every random draw"),
    WF_OPT_ENUM(wf_config_run, device, "cpu", devices, "where it runs"),
    WF_OPT_ENUM(wf_config_run, precision, "f32", precisions,
                "floating-point type of weights and activations"),
    WF_OPT_I64F(wf_config_run, threads, "auto", 1, 4096, WF_OPT_AUTO | WF_OPT_RESUME,
                "CPU threads; auto: OMP_NUM_THREADS or the cores"),
    WF_OPT_END};

static const wf_option data_table[] = {
    WF_OPT_STRF(wf_config_data, store, NULL, WF_OPT_REQUIRED, "token store made by weft data build"),
    WF_OPT_I64(wf_config_data, seq_len, "256", 1, 1 << 30, "tokens of a sequence"),
    WF_OPT_BOOL(wf_config_data, pack, "true",
                "documents back to back in a sequence, none seeing another; false: one each"),
    WF_OPT_BOOL(wf_config_data, shuffle, "true", "another order in each epoch, decided by the seed"),
    WF_OPT_I64F(wf_config_data, prefetch, "2", 0, 64, WF_OPT_RESUME, "batches prepared ahead on a thread"),
    WF_OPT_END};

static const wf_option model_table[] = {
    WF_OPT_I64F(wf_config_model, d_model, NULL, 1, 1 << 20, WF_OPT_REQUIRED, "width of the residual stream"),
    WF_OPT_I64F(wf_config_model, vocab, "auto", 1, 1 << 28, WF_OPT_AUTO,
                "rows of the embedding; auto: the store's"),
    WF_OPT_BOOL(wf_config_model, tie_embeddings, "true", "the head uses the embedding's weights"),
    WF_OPT_I64F(wf_config_model, max_positions, "auto", 1, 1 << 30, WF_OPT_AUTO,
                "the context: rows of the table of learned positions, where a layer asks for one; auto: "
                "data.seq_len"),
    WF_OPT_ENUM(wf_config_model, norm, "rmsnorm", norms, "normalisation before mixers, MLPs and the head"),
    WF_OPT_F64F(wf_config_model, norm_eps, "auto", 0, 1, WF_OPT_AUTO,
                "added under the root; auto: 1e-6 for rmsnorm, 1e-5 for layernorm"),
    WF_OPT_BOOL(wf_config_model, norm_bias, "true", "layer norms have a bias"),
    WF_OPT_F64(wf_config_model, logit_softcap, "0", 0, 1e6, "cap tanh(logit / cap); 0: none"),
    WF_OPT_F64(wf_config_model, dropout, "0", 0, 0.999,
               "probability of dropping an element of a residual branch"),
    WF_OPT_F64(wf_config_model, init_std, "0.02", 0, 10, "standard deviation of the initial weights"),
    WF_OPT_BOOL(wf_config_model, scale_residual, "true",
                "start the last projection of each branch smaller by 1/sqrt(2 layers), as GPT-2 does"),
    WF_OPT_END};

const wf_option wf_config_block_table[] = {
    WF_OPT_I64(wf_config_block, repeat, "1", 1, 4096,
               "how often this block, or group of blocks, follows itself"),
    WF_OPT_ENUMF(wf_config_block, norm, "auto", norms, WF_OPT_AUTO, "normalisation; auto: model.norm"),
    WF_OPT_STR(wf_config_block, share, NULL,
               "blocks of one name, repeated ones too, have one set of weights and each its own state"),
    WF_OPT_END};

static const wf_option train_table[] = {
    WF_OPT_I64F(wf_config_train, steps, NULL, 0, HUGE_COUNT, WF_OPT_REQUIRED | WF_OPT_RESUME,
                "optimiser steps"),
    WF_OPT_I64(wf_config_train, batch_tokens, "4096", 1, 1e12,
               "tokens of a step, a multiple of data.seq_len"),
    WF_OPT_I64(wf_config_train, accumulation, "1", 1, 1e6,
               "parts a step's batch is computed in, one after another"),
    WF_OPT_I64(wf_config_train, stream, "0", 0, 1 << 30,
               "tokens of a sequence computed at once, gradients staying exact; 0: all"),
    WF_OPT_BOOL(wf_config_train, carry_state, "false",
                "the state at a batch's end enters the next one, its gradient cut"),
    WF_OPT_BOOL(wf_config_train, recompute, "false",
                "recompute each block in the backward instead of keeping it"),
    WF_OPT_F64(wf_config_train, clip, "1.0", 0, INFINITY,
               "limit of the gradient's norm over all weights; 0: none"),
    WF_OPT_F64(wf_config_train, z_loss, "0", 0, 1e3, "weight of the squared log-normaliser in the loss"),
    WF_OPT_F64(wf_config_train, ema, "0", 0, 0.9999999,
               "decay of the averaged weights used by eval; 0: none"),
    WF_OPT_BOOL(wf_config_train, ema_warmup, "true",
                "shorter averages at the start: at most (1 + t) / (10 + t)"),
    WF_OPT_STR(wf_config_train, rules, NULL,
               "decay, matrix and lr by parameter, such as \"*.gate.weight no_decay; @embedding lr=0.5\""),
    WF_OPT_I64(wf_config_train, max_skipped, "10", 0, 1e9,
               "steps in a row with a non-finite loss or gradient before the run stops"),
    WF_OPT_STR(wf_config_train, init, NULL,
               "weights to start from: a checkpoint; weft convert makes one of safetensors"),
    WF_OPT_END};

static const wf_option parallel_table[] = {
    WF_OPT_I64F(wf_config_parallel, data, "auto", 1, 1 << 20, WF_OPT_AUTO | WF_OPT_RESUME,
                "ranks that share a batch; auto: all that sequence leaves"),
    WF_OPT_I64F(wf_config_parallel, sequence, "1", 1, 1 << 20, WF_OPT_RESUME, "ranks that share a sequence"),
    WF_OPT_ENUMF(wf_config_parallel, layout, "auto", layouts, WF_OPT_AUTO | WF_OPT_RESUME,
                 "how a sequence lies over its ranks"),
    WF_OPT_ENUMF(
        wf_config_parallel, attention, "auto", attentions, WF_OPT_RESUME,
        "how keys come to queries on other ranks: they go round, all come at once, tokens become heads, "
        "or the last in teams and between them the first; auto: whatever sends least"),
    WF_OPT_ENUMF(wf_config_parallel, scan, "auto", scans, WF_OPT_RESUME,
                 "how the states of scans go from rank to rank; auto: as the link says"),
    WF_OPT_ENUMF(
        wf_config_parallel, serial, "auto", serials, WF_OPT_RESUME,
        "how ranks share recurrences that no scan sums up (TTT, Titans, LSTM, sLSTM): they take turns, "
        "in groups of sequences or heads, or tokens become (head, sequence) pairs, and each rank has "
        "some; auto: that where it promises to keep them twice as busy, turns where scan is serial"),
    WF_OPT_ENUMF(
        wf_config_parallel, relayout, "auto", relayouts, WF_OPT_RESUME,
        "whether the tokens of a recurrence move to the contiguous layout and back, where the layout is "
        "another: its state then makes fewer hops; auto: where link says that this takes less time"),
    WF_OPT_STRF(
        wf_config_parallel, link, "auto", WF_OPT_RESUME,
        "bandwidth and latency between ranks, by which scans choose, as in 10GB/s,2us, and perhaps what "
        "the scans of a rank do, as in 10GB/s,2us,80Gflop/s; auto: measured at the start, stored, and "
        "on --resume with as many ranks of a sequence taken from there"),
    WF_OPT_ENUMF(wf_config_parallel, transport, "auto", transports, WF_OPT_AUTO | WF_OPT_RESUME,
                 "what carries messages between ranks"),
    WF_OPT_I64F(wf_config_parallel, zero, "1", 0, 1, WF_OPT_RESUME,
                "1: optimiser state is divided over all ranks; 0: each has all"),
    WF_OPT_I64F(wf_config_parallel, bucket, "4194304", 1, HUGE_COUNT, WF_OPT_RESUME,
                "bytes of gradients, or more, that are summed over the ranks at once"),
    WF_OPT_BOOLF(
        wf_config_parallel, bitwise, "false", WF_OPT_RESUME,
        "data x sequence counts virtual ranks, threads of any number of processes that divides them: "
        "the same bytes on any"),
    WF_OPT_F64F(wf_config_parallel, timeout, "60", 1, 1e6, WF_OPT_RESUME,
                "seconds without a sign of life from a rank before the job ends"),
    WF_OPT_F64F(wf_config_parallel, step_timeout, "3600", 0, 1e9, WF_OPT_RESUME,
                "seconds a rank may stay in one phase of a step before the job ends; 0: any"),
    WF_OPT_END};

static const wf_option eval_table[] = {
    WF_OPT_I64F(wf_config_eval, every, "100", 0, HUGE_COUNT, WF_OPT_RESUME,
                "steps between evaluations; 0: only at the end"),
    WF_OPT_I64F(wf_config_eval, batches, "auto", 1, HUGE_COUNT, WF_OPT_AUTO | WF_OPT_RESUME,
                "batches of an evaluation; auto: the whole split"),
    WF_OPT_ENUMF(wf_config_eval, split, "validation", splits, WF_OPT_RESUME, "which documents"), WF_OPT_END};

static const wf_option checkpoint_table[] = {
    WF_OPT_I64F(wf_config_checkpoint, every, "100", 0, HUGE_COUNT, WF_OPT_RESUME,
                "steps between checkpoints; 0: only at the end"),
    WF_OPT_I64F(wf_config_checkpoint, keep, "2", 1, 1e6, WF_OPT_RESUME, "how many of the last ones stay"),
    WF_OPT_END};

static const wf_option log_table[] = {WF_OPT_I64F(wf_config_log, every, "10", 1, HUGE_COUNT, WF_OPT_RESUME,
                                                  "steps between lines of metrics.jsonl"),
                                      WF_OPT_F64F(wf_config_log, smoothing, "0.95", 0, 0.9999, WF_OPT_RESUME,
                                                  "share of the past in the smoothed loss on screen"),
                                      WF_OPT_END};

static const char *const model_nested[] = {"blocks", NULL};
static const char *const train_nested[] = {"optimizer", "schedule", NULL};
static const char *const none[] = {NULL};

const wf_config_section wf_config_sections[] = {
    {"run", "the run itself", run_table, offsetof(wf_config, run), none},
    {"data", "what it reads", data_table, offsetof(wf_config, data), none},
    {"model", "the network", model_table, offsetof(wf_config, model), model_nested},
    {"train", "how it learns", train_table, offsetof(wf_config, train), train_nested},
    {"parallel", "how it spreads over ranks", parallel_table, offsetof(wf_config, parallel), none},
    {"eval", "measuring on held-out text", eval_table, offsetof(wf_config, eval), none},
    {"checkpoint", "saving", checkpoint_table, offsetof(wf_config, checkpoint), none},
    {"log", "reporting", log_table, offsetof(wf_config, log), none},
    {0}};
