/* A few mixers, MLPs, optimisers and schedules of the tests' own, so that the config is tested apart from
 * them. */
#ifndef WF_TESTS_CONFIG_TYPES_H
#define WF_TESTS_CONFIG_TYPES_H

#include <math.h>

#include "experiments/config.h"

typedef struct test_attention {
  int64_t heads, kv_heads, window;
  int position;
  double softcap;
  bool qk_norm;
} test_attention;

typedef struct test_gla {
  int64_t heads;
  double gate_norm;
} test_gla;

typedef struct test_mlp {
  int64_t width;
} test_mlp;

typedef struct test_adamw {
  double lr, beta1, weight_decay;
} test_adamw;

typedef struct test_schedule {
  int64_t warmup;
  char *note;
} test_schedule;

static const char *const test_positions[] = {"rope", "none", "alibi", NULL};

static const wf_option test_attention_table[] = {
    WF_OPT_I64(test_attention, heads, "4", 1, 1024, "query heads"),
    WF_OPT_I64F(test_attention, kv_heads, "auto", 1, 1024, WF_OPT_AUTO, "key and value heads; auto: heads"),
    WF_OPT_I64F(test_attention, window, "auto", 1, 1e9, WF_OPT_AUTO, "keys seen"),
    WF_OPT_ENUM(test_attention, position, "rope", test_positions, "positions"),
    WF_OPT_F64(test_attention, softcap, "0", 0, INFINITY, "soft cap of the scores"),
    WF_OPT_BOOL(test_attention, qk_norm, "false", "normalise q and k"),
    WF_OPT_END};
static const wf_option test_gla_table[] = {
    WF_OPT_I64F(test_gla, heads, NULL, 1, 1024, WF_OPT_REQUIRED, "heads"),
    WF_OPT_F64(test_gla, gate_norm, "16", 1e-3, 1e3, "divides the log gate"), WF_OPT_END};
static const wf_option test_mlp_table[] = {WF_OPT_I64F(test_mlp, width, "auto", 1, 1e9, WF_OPT_AUTO, "width"),
                                           WF_OPT_END};
static const wf_option test_adamw_table[] = {
    WF_OPT_F64F(test_adamw, lr, "1.0e-3", 0, 10, WF_OPT_RESUME, "learning rate"),
    WF_OPT_F64(test_adamw, beta1, "0.9", 0, 1, "decay of the mean"),
    WF_OPT_F64(test_adamw, weight_decay, "0.1", 0, 10, "decay of weights"), WF_OPT_END};
static const wf_option test_schedule_table[] = {
    WF_OPT_I64(test_schedule, warmup, "0", 0, 1e12, "steps of warm-up"),
    WF_OPT_STR(test_schedule, note, NULL, "a remark"), WF_OPT_END};
static const wf_option test_no_table[] = {WF_OPT_END};

static inline bool test_types(wf_config_kind kind, int index, wf_config_type *out) {
  static const wf_config_type all[WF_CONFIG_KINDS][4] = {
      {{"attention", "softmax attention", test_attention_table, sizeof(test_attention)},
       {"gla", "gated linear attention", test_gla_table, sizeof(test_gla)},
       {"identity", NULL, test_no_table, 0}},
      {{"swiglu", "gated", test_mlp_table, sizeof(test_mlp)},
       {"gelu", NULL, test_mlp_table, sizeof(test_mlp)}},
      {{"adamw", NULL, test_adamw_table, sizeof(test_adamw)},
       {"sgd", NULL, test_adamw_table, sizeof(test_adamw)}},
      {{"constant", NULL, test_schedule_table, sizeof(test_schedule)},
       {"cosine", NULL, test_schedule_table, sizeof(test_schedule)}}};
  if (index >= 4 || !all[kind][index].name) return false;
  *out = all[kind][index];
  return true;
}

#endif
