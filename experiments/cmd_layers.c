/* weft layers [NAME]: what a config can name, with options, defaults and help from the tables. */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/command.h"
#include "experiments/config.h"
#include "experiments/text.h"

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

static wf_status list_all(void) {
  for (int kind = 0; kind < WF_CONFIG_KINDS; kind++) {
    wf_config_type type;
    printf("%s%s\n", kind ? "\n" : "", wf_config_kind_name((wf_config_kind)kind));
    for (int i = 0; wf_types((wf_config_kind)kind, i, &type); i++)
      printf("  %-14s %s\n", type.name, type.help ? type.help : "");
  }
  printf("\nweft layers NAME lists the options of one.\n");
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
  }
  return found ? WF_OK : unknown_name(a->words[0]);
}

const wf_command wf_cmd_layers = {.name = "layers",
                                  .help = "what a config can name, or the options of one",
                                  .usage = "[NAME]",
                                  .most = 1,
                                  .run = run};
