/* Every mixer, alone and beside attention, decodes token by token in constant memory: a state of fixed size
 * takes as much for the longest text as for the shortest, a growing one its tokens and no more. */
#include <math.h>

#include "core/memory.h"
#include "experiments/generate.h"
#include "tests/check_main.h"
#include "tests/experiments/tiny_model.h"

enum { WIDTH = 384, VOCAB = 40, TOKENS = 300 };

static void open_model(tiny *t, const char *mixer, bool hybrid) {
  char text[1000];
  snprintf(text, sizeof text,
           "data: {store: none.h5, seq_len: 20}\nmodel:\n  d_model: %d\n  vocab: %d\n  max_positions: 2000\n"
           "  blocks:\n    - {mixer: %s}\n%strain: {steps: 1, batch_tokens: 20}\n",
           WIDTH, VOCAB, mixer,
           hybrid
               ? "    - {mixer: {type: attention, heads: 4}}\n    - {mixer: {type: attention, window: 7}}\n"
               : "");
  tiny_ok(wf_config_parse(&t->cfg, "decoding", text, strlen(text), NULL, 0, wf_types));
  tiny_ok(wf_assemble_device(&t->cfg, &t->dev));
  tiny_ok(wf_ctx_create(t->dev, &t->c));
  tiny_ok(wf_assemble_model(t->c, &t->cfg, VOCAB, &t->model));
  tiny_ok(wf_params_init(wf_model_params(t->model), 7));
}

/* Bytes of a decoding with room for so many tokens. */
static int64_t bytes_of_state(tiny *t, int64_t capacity) {
  wf_decoding d;
  const int64_t before = wf_mem_now();
  tiny_ok(wf_decoding_open(t->model, capacity, &d));
  const int64_t after = wf_mem_now();
  wf_decoding_close(&d);
  return after - before;
}

static void decode(const char *mixer, bool hybrid) {
  tiny t = {0};
  double logits[VOCAB];
  int64_t fixed, growing, most[3] = {0};
  open_model(&t, mixer, hybrid);
  wf_state_bytes(wf_model_state_spec(t.model), WF_F32, &fixed, &growing);
  if (growing == 0) {
    const int64_t small = bytes_of_state(&t, 10), large = bytes_of_state(&t, 1000000);
    ck_assert_msg(large <= small, "%s: %lld bytes for 10 tokens, %lld for a million", mixer, (long long)small,
                  (long long)large);
  }
  wf_decoding d;
  tiny_ok(wf_decoding_open(t.model, TOKENS, &d));
  for (int i = 0; i < TOKENS; i++) {
    const int32_t id = (i * 7 + i * i) % VOCAB;
    tiny_ok(wf_decoding_feed(&d, &id, 1, logits));
    for (int v = 0; v < VOCAB; v++) ck_assert_msg(isfinite(logits[v]), "%s: token %d", mixer, i);
    int64_t *m = &most[3 * i / TOKENS];
    if (wf_mem_now() > *m) *m = wf_mem_now();
  }
  ck_assert_msg(most[2] <= most[1], "%s: %lld bytes up to token 200, then %lld", mixer, (long long)most[1],
                (long long)most[2]);
  wf_decoding_close(&d);
  tiny_close(&t);
}

START_TEST(every_mixer_decodes_in_constant_memory) {
  const wf_layer_type *type;
  int n = 0;
  for (int i = 0; (type = wf_layer_at(i)); i++) {
    if (type->kind != WF_LAYER_MIXER) continue;
    decode(type->name, _i);
    n++;
  }
  ck_assert_int_ge(n, 9);
}
END_TEST

/* A block of each kind of state, beside each other and one after the other, with shared weights. */
START_TEST(states_of_all_kinds_are_mixed) {
  tiny t = {0};
  int32_t ids[40];
  static double whole[40 * VOCAB];
  double logits[VOCAB];
  char first[] =
      "{share: a, mixer: [{type: simple_gla}, {type: attention, heads: 2}, {type: attention, window: 5}]}";
  tiny_open(&t, first, first);
  for (int i = 0; i < 40; i++) ids[i] = (i * 7 + i * i) % 30;
  tiny_forward(&t, ids, 40, whole);
  wf_decoding d;
  tiny_ok(wf_decoding_open(t.model, 40, &d));
  for (int i = 0; i < 40; i++) {
    double off = 0, size = 0;
    tiny_ok(wf_decoding_feed(&d, ids + i, 1, logits));
    for (int v = 0; v < VOCAB; v++) {
      off += pow(logits[v] - whole[i * VOCAB + v], 2);
      size += pow(whole[i * VOCAB + v], 2);
    }
    ck_assert_msg(off <= 1e-20 * size, "token %d: %g of %g", i, sqrt(off), sqrt(size));
  }
  wf_decoding_close(&d);
  tiny_close(&t);
}
END_TEST

/* Of a prompt so long that it enters in pieces, the last token sees all, and no piece's memory is kept. */
START_TEST(a_long_prompt_enters_in_pieces) {
  enum { LONG = 8192 + 37, IDS = 40 };
  static int32_t ids[LONG];
  static double whole[LONG * IDS];
  double logits[IDS], off = 0, size = 0;
  int64_t peak[2];
  tiny t = {0};
  tiny_open(&t, "{mixer: [{type: gla, heads: 2, conv: true}, {type: attention, window: 5}]}", tiny_attention);
  for (int i = 0; i < LONG; i++) ids[i] = (i * 7 + i % 11) % 30;
  for (int k = 0; k < 2; k++) {
    wf_decoding d;
    tiny_ok(wf_decoding_open(t.model, LONG, &d));
    wf_mem_reset_peak();
    tiny_ok(wf_decoding_feed(&d, ids, k ? LONG : 4096, logits));
    peak[k] = wf_mem_peak();
    wf_decoding_close(&d);
  }
  ck_assert_msg(peak[1] < peak[0] * 5 / 4, "%lld bytes for one piece, %lld for all", (long long)peak[0],
                (long long)peak[1]);
  tiny_forward(&t, ids, LONG, whole);
  for (int v = 0; v < IDS; v++) {
    const double want = whole[(LONG - 1) * IDS + v];
    off += pow(logits[v] - want, 2);
    size += want * want;
  }
  ck_assert_msg(off <= 1e-20 * size, "%g of %g", sqrt(off), sqrt(size));
  tiny_close(&t);
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("decoding");
  TCase *t = tcase_create("decoding");
  tcase_add_loop_test(t, every_mixer_decodes_in_constant_memory, 0, 2);
  tcase_add_test(t, states_of_all_kinds_are_mixed);
  tcase_add_test(t, a_long_prompt_enters_in_pieces);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
