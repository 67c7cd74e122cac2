/* weft config check | print | docs: a config without running it. */
#include <stdio.h>

#include "core/memory.h"
#include "experiments/command.h"
#include "experiments/config.h"

static wf_status load(const wf_args *a, wf_config *c) {
  return wf_config_load(c, a->words[0], a->sets, a->n_sets, wf_types);
}

static wf_status check(const wf_args *a) {
  wf_config c;
  WF_TRY(load(a, &c));
  const wf_config_block **layers = NULL;
  size_t n = 0;
  wf_status s = wf_config_check_layers(&c);
  if (s == WF_OK) s = wf_config_layers(&c, &layers, &n);
  if (s == WF_OK)
    printf("%s is fine: %zu layers of width %lld, %lld steps of %lld tokens, run in %s\n", a->words[0], n,
           (long long)c.model.d_model, (long long)c.train.steps, (long long)c.train.batch_tokens, c.run.dir);
  wf_free(layers);
  wf_config_free(&c);
  return s;
}

static wf_status print(const wf_args *a) {
  wf_config c;
  WF_TRY(load(a, &c));
  char *text;
  const wf_status s = wf_config_print(&c, &text);
  if (s == WF_OK) fputs(text, stdout);
  wf_free(text);
  wf_config_free(&c);
  return s;
}

static wf_status docs(const wf_args *a) {
  (void)a;
  char *text;
  WF_TRY(wf_config_docs(wf_types, &text));
  fputs(text, stdout);
  wf_free(text);
  return WF_OK;
}

const wf_command wf_cmd_config_check = {.name = "config check",
                                        .help = "read a config and say what is wrong with it",
                                        .usage = "CONFIG",
                                        .sets = true,
                                        .least = 1,
                                        .most = 1,
                                        .run = check};
const wf_command wf_cmd_config_print = {.name = "config print",
                                        .help = "every value of a config, defaults included, as YAML",
                                        .usage = "CONFIG",
                                        .sets = true,
                                        .least = 1,
                                        .most = 1,
                                        .run = print};
const wf_command wf_cmd_config_docs = {
    .name = "config docs", .help = "the reference of all keys, in Markdown", .usage = "", .run = docs};
