/* weft version */
#include <stdio.h>

#include "experiments/command.h"

static wf_status run(const wf_args *args) {
  (void)args;
  printf("weft %s\n", WEFT_VERSION);
  return WF_OK;
}

const wf_command wf_cmd_version = {.name = "version", .help = "print the version", .usage = "", .run = run};
