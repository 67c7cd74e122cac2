/* Every mixer over ranks: the gradients of one process, for any number of them and any layout. */
#include "tests/layers/contract.h"
#include "core/memory.h"
#include "tests/dist/ranks.h"

#include <stdio.h>
#include <string.h>

#define RANKS_TEST(name, ...)                                      \
  START_TEST(name) {                                               \
    static const char *const blocks[] = {__VA_ARGS__};             \
    wf_trial_ranks((int)(sizeof blocks / sizeof *blocks), blocks); \
    if (!wf_ranks_launched()) ck_assert_int_eq(wf_mem_live(), 0);  \
  }                                                                \
  END_TEST
/* In the _i-th way of a list. */
#define WAYS_TEST(name, way, ...)                                                 \
  START_TEST(name) {                                                              \
    static const char *const blocks[] = {__VA_ARGS__};                            \
    wf_trial_ranks_by((int)(sizeof blocks / sizeof *blocks), blocks, &(way)[_i]); \
    if (!wf_ranks_launched()) ck_assert_int_eq(wf_mem_live(), 0);                 \
  }                                                                               \
  END_TEST

/* ---- scans: every transport ---- */

static const wf_dist transports[] = {
    {.transport = WF_TRANSPORT_AUTO},
    {.transport = WF_TRANSPORT_SERIAL},
    {.transport = WF_TRANSPORT_PIPE, .blocks = 2},
    {.transport = WF_TRANSPORT_RELAY, .blocks = 3},
    {.transport = WF_TRANSPORT_GATHER},
    {.transport = WF_TRANSPORT_LOG, .blocks = 2},
};
/* Of more heads than there are groups of lanes. */
static const wf_dist pipes[] = {
    {.transport = WF_TRANSPORT_PIPE, .serial = WF_SERIAL_TURNS, .blocks = 3},
    {.serial = WF_SERIAL_TURNS},
    {.transport = WF_TRANSPORT_AUTO},
};
enum { TRANSPORTS = sizeof transports / sizeof *transports };

WAYS_TEST(simple_gla, transports, "simple_gla heads=2 / swiglu width=7",
          "simple_gla heads=3 expand_k=0.5 conv_width=7 gate_norm=1 / -")
WAYS_TEST(delta, transports, "gated_deltanet heads=2 / swiglu width=7", "kda heads=2 / -")
WAYS_TEST(mlstm, transports, "mlstm heads=2 / swiglu width=7", "slstm heads=2 / -")
WAYS_TEST(diagonal, transports, "gateloop heads=2 / swiglu width=7", "mingru / -", "hgrn2 expand_ratio=4 / -")
WAYS_TEST(normalised, transports, "linear_attention heads=2 / -", "aaren / -", "lightning heads=2 / -")
WAYS_TEST(mamba, transports, "mamba / -", "mamba2 head_dim=6 / -")
WAYS_TEST(recur, pipes, "slstm heads=6 / -", "lstm / -")

/* ---- serial mixers: turns, and shards of (head, lane) pairs ---- */

static const wf_dist serials[] = {{.serial = WF_SERIAL_ALL_TO_ALL}, {.serial = WF_SERIAL_TURNS}};
enum { SERIALS = sizeof serials / sizeof *serials };

WAYS_TEST(ttt, serials, "ttt heads=3 mini_batch=5 / -", "ttt heads=2 inner=mlp mini_batch=4 / swiglu width=7")
WAYS_TEST(recurrent, serials, "slstm heads=3 / -", "lstm dropout=0.3 learn_state=true / -",
          "gru width=7 dropout=0.3 dropout_of=candidate / -")
WAYS_TEST(memory, serials, "titans heads=3 variant=lmm segment=5 memory=linear / -",
          "titans heads=2 variant=lmm segment=4 / -")

/* ---- attention: every way ---- */

static const wf_dist attentions[] = {
    {.attention = WF_ATTENTION_AUTO},   {.attention = WF_ATTENTION_RING},
    {.attention = WF_ATTENTION_GATHER}, {.attention = WF_ATTENTION_ALL_TO_ALL},
    {.attention = WF_ATTENTION_USP},
};
enum { ATTENTIONS = sizeof attentions / sizeof *attentions };

WAYS_TEST(attention, attentions, "attention heads=6 kv_heads=2 qk_norm=true / swiglu width=7",
          "attention heads=6 head_dim=5 kv_heads=1 position=alibi sinks=true softcap=4 / -")
WAYS_TEST(gated, attentions,
          "attention heads=6 kv_heads=3 position=none forget_gate=true output_gate=true sinks=true / -",
          "attention heads=6 position=alibi forget_gate=true / -")
WAYS_TEST(sigmoid, attentions, "attention heads=6 kind=sigmoid sigmoid_length=9 temperature=both / -")
WAYS_TEST(hybrid, attentions, "simple_gla heads=2 / -", "attention heads=6 kv_heads=2 / swiglu width=7",
          "mamba2 head_dim=6 + attention heads=6 / -")
RANKS_TEST(windows, "attention heads=6 kv_heads=2 window=5 sinks=true / -",
           "attention heads=3 window=9 position=alibi forget_gate=true / -", "attention heads=2 window=1 / -")
RANKS_TEST(longnet, "longnet heads=3 segments=4,8,16 dilations=1,2,3 / -",
           "longnet heads=2 segments=3,6 dilations=2,1 fixed_state=true / -")
WAYS_TEST(infini_attention, serials, "infini_attention heads=2 segment=5 / -",
          "infini_attention heads=3 segment=4 update=delta / -")
WAYS_TEST(titans_mac, serials, "titans heads=2 variant=mac segment=5 persistent=2 / -")
WAYS_TEST(titans_beside, serials, "titans heads=2 variant=mag segment=5 window=6 / -",
          "titans heads=2 variant=mal segment=3 window=4 memory=linear / -")

/* ---- recurrences of hybrids whose tokens move to the contiguous layout and back ---- */

static const wf_dist moved[] = {
    {.relayout = WF_RELAYOUT_ALWAYS},
    {.relayout = WF_RELAYOUT_ALWAYS, .transport = WF_TRANSPORT_SERIAL, .attention = WF_ATTENTION_GATHER}};
enum { MOVED = sizeof moved / sizeof *moved };

WAYS_TEST(moved_delta, moved, "attention heads=6 / -", "gated_deltanet heads=2 / swiglu width=7")
WAYS_TEST(moved_mamba, moved, "mamba / -", "attention heads=6 / -",
          "mamba2 head_dim=6 + attention heads=6 / -")
WAYS_TEST(moved_ttt, moved, "attention heads=6 / -", "ttt heads=2 mini_batch=5 / -")
WAYS_TEST(moved_slstm, moved, "slstm heads=2 / -", "attention heads=6 / -")
WAYS_TEST(moved_titans, moved, "attention heads=6 / -",
          "titans heads=2 variant=mac segment=5 persistent=2 / -")

/* ---- every mixer there is, alone ---- */

static const char *const mixers[] = {
    "base_conv / -",
    "deltanet heads=2 / -",
    "gla heads=2 / -",
    "retnet heads=2 / -",
    "minlstm / -",
    "gru / -",
    "attention heads=6 / -",
    "longnet heads=3 segments=4,8 dilations=1,2 / -",
    "infini_attention heads=2 segment=5 / -",
    "lightning heads=2 / -",
    "linear_attention heads=2 / -",
    "simple_gla heads=2 / -",
    "hgrn2 expand_ratio=4 / -",
    "gateloop heads=2 / -",
    "gated_deltanet heads=2 / -",
    "kda heads=2 / -",
    "titans heads=2 variant=lmm segment=5 / -",
    "ttt heads=2 / -",
    "mamba / -",
    "mamba2 head_dim=6 / -",
    "mlstm heads=2 / -",
    "mingru / -",
    "aaren / -",
    "slstm heads=2 / -",
    "lstm / -",
};
enum { MIXERS = sizeof mixers / sizeof *mixers, ELSEWHERE = 6 }; /* from there on the tests above have them */

START_TEST(none_is_forgotten) {
  for (int i = 0; wf_layer_at(i); i++) {
    bool found = wf_layer_at(i)->kind != WF_LAYER_MIXER;
    for (int k = 0; k < MIXERS; k++)
      found |= strcspn(mixers[k], " ") == strlen(wf_layer_at(i)->name) &&
               strncmp(mixers[k], wf_layer_at(i)->name, strcspn(mixers[k], " ")) == 0;
    ck_assert_msg(found, "%s is not among the mixers", wf_layer_at(i)->name);
  }
}
END_TEST

START_TEST(every_mixer) {
  wf_trial_ranks_by(1, &mixers[_i / TRANSPORTS], &transports[_i % TRANSPORTS]);
  if (!wf_ranks_launched()) ck_assert_int_eq(wf_mem_live(), 0);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("ranks");
  TCase *t = tcase_create("ranks");
  tcase_set_timeout(t, 3000);
  tcase_add_loop_test(t, simple_gla, 0, TRANSPORTS);
  tcase_add_loop_test(t, delta, 0, TRANSPORTS);
  tcase_add_loop_test(t, mlstm, 0, TRANSPORTS);
  tcase_add_loop_test(t, diagonal, 0, TRANSPORTS);
  tcase_add_loop_test(t, normalised, 0, TRANSPORTS);
  tcase_add_loop_test(t, mamba, 0, TRANSPORTS);
  tcase_add_loop_test(t, recur, 0, 3);
  tcase_add_loop_test(t, ttt, 0, SERIALS);
  tcase_add_loop_test(t, recurrent, 0, SERIALS);
  tcase_add_loop_test(t, memory, 0, SERIALS);
  suite_add_tcase(s, t);

  TCase *a = tcase_create("attention");
  tcase_set_timeout(a, 3000);
  tcase_add_loop_test(a, attention, 0, ATTENTIONS);
  tcase_add_loop_test(a, gated, 0, ATTENTIONS);
  tcase_add_loop_test(a, sigmoid, 0, ATTENTIONS);
  tcase_add_loop_test(a, hybrid, 0, ATTENTIONS);
  tcase_add_test(a, windows);
  tcase_add_test(a, longnet);
  tcase_add_loop_test(a, infini_attention, 0, SERIALS);
  tcase_add_loop_test(a, titans_mac, 0, SERIALS);
  tcase_add_loop_test(a, titans_beside, 0, SERIALS);
  suite_add_tcase(s, a);

  TCase *h = tcase_create("moved");
  tcase_set_timeout(h, 3000);
  tcase_add_loop_test(h, moved_delta, 0, MOVED);
  tcase_add_loop_test(h, moved_mamba, 0, MOVED);
  tcase_add_loop_test(h, moved_ttt, 0, MOVED);
  tcase_add_loop_test(h, moved_slstm, 0, MOVED);
  tcase_add_loop_test(h, moved_titans, 0, MOVED);
  suite_add_tcase(s, h);

  TCase *all = tcase_create("mixers");
  tcase_add_test(all, none_is_forgotten);
  suite_add_tcase(s, all);
  for (int i = 0; i < (wf_matrix_whole() ? MIXERS : ELSEWHERE); i++) { /* CK_RUN_CASE: the mixer's name */
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(mixers[i], " "), mixers[i]);
    TCase *m = tcase_create(wf_layer_find(WF_LAYER_MIXER, name)->name);
    tcase_set_timeout(m, 3000);
    tcase_add_loop_test(m, every_mixer, i * TRANSPORTS,
                        i * TRANSPORTS + (wf_matrix_whole() ? TRANSPORTS : 1));
    suite_add_tcase(s, m);
  }
  return s;
}

WF_RANKS_MAIN(suite)
