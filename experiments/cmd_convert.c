/* weft convert: to and from the layouts of the reference implementations. */
#include <stdio.h>

#include "core/file.h"
#include "experiments/command.h"
#include "experiments/convert.h"

typedef struct flags {
  bool averaged, tokenizer, overwrite;
} flags;

static const wf_option table[] = {
    WF_OPT_BOOL(flags, averaged, "true", "out: the averaged weights, where the checkpoint has them"),
    WF_OPT_BOOL(flags, tokenizer, "true", "in: take tokenizer.json or tokenizer.model along"),
    WF_OPT_BOOL(flags, overwrite, "false", "replace what OUT holds"), WF_OPT_END};

static wf_status check_free(const char *out, const flags *f) {
  if (f->overwrite || !wf_file_exists(out)) return WF_OK;
  return wf_hint(WF_FAIL(WF_EEXISTS, "%s exists", out), "name another place, or give --overwrite");
}

static wf_status run(const wf_args *a) {
  const flags *f = a->flags;
  const char *in = a->words[0], *out = a->words[1];
  WF_TRY(check_free(out, f));
  if (wf_convert_is_foreign(in)) {
    bool speaks;
    WF_TRY(wf_convert_import(in, out, f->tokenizer, &speaks));
    printf("%s: a checkpoint for weft generate and train.init%s\n", out,
           speaks ? "" : ", without a tokenizer");
    return WF_OK;
  }
  const wf_family *family;
  WF_TRY(wf_convert_export(in, out, f->averaged, &family));
  printf("%s: model.safetensors and config.json of model type %s\n", out, wf_family_name(family));
  return WF_OK;
}

const wf_command wf_cmd_convert = {
    .name = "convert",
    .help = "to and from the layouts of reference implementations",
    .usage = "IN OUT",
    .more = "IN a folder with config.json and safetensors (or the file itself): OUT becomes a checkpoint.\n"
            "IN a checkpoint, a run's folder or a run's name: OUT becomes such a folder, in float32.\n",
    .flags = table,
    .flags_size = sizeof(flags),
    .least = 2,
    .most = 2,
    .run = run,
};
