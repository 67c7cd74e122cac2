/* weft layers [NAME]: what a config can name; of one its options, and what a layer costs at a width and a
 * length. */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/command.h"
#include "experiments/config.h"
#include "experiments/human.h"
#include "experiments/single.h"
#include "experiments/text.h"

typedef struct flags {
  int64_t d_model;
  char *seq_len;
} flags;

static const wf_option table[] = {
    WF_OPT_I64(flags, d_model, "768", 1, 1 << 20, "width"),
    WF_OPT_STR(flags, seq_len, "1k,4k,16k,64k", "positions T, a list; k and M are powers of 1024"),
    WF_OPT_END};

static wf_status describe(const wf_config_type *type, wf_config_kind kind) {
  wf_text text = {0};
  char *out;
  wf_text_add(&text, "%s (%s)%s%s\n", type->name, wf_config_kind_name(kind), type->help ? ": " : "",
              type->help ? type->help : "");
  wf_config_describe(&text, type->options, 2);
  WF_TRY(wf_text_take(&text, &out));
  fputs(out, stdout);
  wf_free(out);
  return WF_OK;
}

/* Bytes are those of float32. */
static wf_status print_costs(const wf_single *s, const flags *f) {
  enum { MOST = 64 };
  int64_t T[MOST], fixed, growing;
  int n;
  char a[24], b[24], c[24];
  WF_TRY(wf_human_read("--seq-len", f->seq_len, T, MOST, &n));
  wf_state_bytes(&s->state, WF_F32, &fixed, &growing);
  printf("\nd_model %lld: %s parameters; a sequence's state: %s", (long long)f->d_model,
         wf_human_count((double)s->params.numel, a), fixed + growing == 0 ? "none" : "");
  if (fixed) printf("%s%s", wf_human_bytes((double)fixed, b), growing ? " and " : "");
  if (growing) printf("%s a token", wf_human_bytes((double)growing, b));
  printf("\n%12s %14s %14s %20s\n", "T", "FLOPs a token", "state", "bytes moved decoding");
  for (int i = 0; i < n; i++) {
    double state = (double)fixed + (double)growing * (double)T[i];
    printf("%12lld %14s %14s %20s\n", (long long)T[i], wf_human_count(wf_single_flops(s, T[i]), a),
           wf_human_bytes(state, b), wf_human_bytes(wf_single_bytes(s, T[i]), c));
  }
  return WF_OK;
}

static wf_status analyse(const wf_layer_type *type, const wf_args *a) {
  const flags *f = a->flags;
  const wf_build like = wf_single_build(f->d_model);
  void *options;
  wf_single layer;
  wf_status s = wf_single_options(type, a->sets, a->n_sets, NULL, 0, &options);
  if (s == WF_OK) {
    s = wf_single_open(type, options, &like, &layer);
    if (s != WF_OK) s = wf_context(s, "%s of width %lld", type->name, (long long)f->d_model);
  }
  if (s == WF_OK) {
    s = print_costs(&layer, f);
    wf_single_close(&layer);
  }
  wf_single_options_free(type, options);
  return s;
}

static wf_status list_all(void) {
  for (int kind = 0; kind < WF_CONFIG_KINDS; kind++) {
    wf_config_type type;
    printf("%s%s\n", kind ? "\n" : "", wf_config_kind_name((wf_config_kind)kind));
    for (int i = 0; wf_types((wf_config_kind)kind, i, &type); i++)
      printf("  %-14s %s\n", type.name, type.help ? type.help : "");
  }
  printf("\nweft layers NAME lists the options of one, and what it costs.\n");
  return WF_OK;
}

static wf_status unknown_name(const char *name) {
  const char *names[256];
  wf_config_type type;
  int n = 0;
  for (int kind = 0; kind < WF_CONFIG_KINDS; kind++)
    for (int i = 0; n < 256 && wf_types((wf_config_kind)kind, i, &type); i++) names[n++] = type.name;
  const char *near = wf_nearest_name(name, names, n);
  const wf_status s = WF_FAIL(WF_ENOTFOUND, "there is no \"%.60s\"", name);
  return near ? wf_hint(s, "did you mean %s?", near) : wf_hint(s, "weft layers lists what there is");
}

static wf_status run(const wf_args *a) {
  if (a->n_words == 0) return list_all();
  bool found = false;
  for (int kind = 0; kind < WF_CONFIG_KINDS; kind++) {
    wf_config_type type;
    if (!wf_config_find_type(wf_types, (wf_config_kind)kind, a->words[0], &type)) continue;
    WF_TRY(describe(&type, (wf_config_kind)kind));
    found = true;
    if (kind > WF_CONFIG_MLP) continue;
    WF_TRY(analyse(wf_layer_find(kind == WF_CONFIG_MIXER ? WF_LAYER_MIXER : WF_LAYER_MLP, type.name), a));
  }
  return found ? WF_OK : unknown_name(a->words[0]);
}

const wf_command wf_cmd_layers = {
    .name = "layers",
    .help = "what a config can name; the options of one and what it costs",
    .usage = "[NAME]",
    .more = "--set key=value gives a layer's options. FLOPs are those of a forward pass "
            "for the token at\n"
            "position T; training takes three times.",
    .flags = table,
    .flags_size = sizeof(flags),
    .sets = true,
    .most = 1,
    .run = run};
