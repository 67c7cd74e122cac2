/* faulty_weft: weft with a layer that fails on one rank of a sequence at one step, for test_faults.c.
 *
 *     WEFT_FAULT=nan:1:5   rank 1 multiplies by NaN in the 6th step
 *     WEFT_FAULT=sleep:1:5 ... never comes back from it
 *     WEFT_FAULT=error:1:5 ... fails
 *     WEFT_FAULT=drift:1:5 ... has another weight from then on
 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"
#include "dist/part.h"
#include "experiments/command.h"
#include "layers/layer.h"

static const wf_option none[] = {WF_OPT_END};

static wf_status init(wf_build *b, const void *options, void **self) {
  (void)options;
  wf_param **weight;
  WF_CALLOC(weight, "model", 1);
  *self = weight;
  return wf_build_param(b, "weight", 0, (wf_init){WF_INIT_CONST, .a = 1}, 1, (int64_t[]){3}, weight);
}

static wf_tensor *forward(wf_run *r, const void *self, wf_tensor *x) {
  wf_param *const *weight = self;
  const char *fault = getenv("WEFT_FAULT");
  char kind[16];
  int rank, step;
  if (!r->train || !fault || !r->part || sscanf(fault, "%15[a-z]:%d:%d", kind, &rank, &step) != 3) return x;
  if (rank != wf_comm_rank(r->part->dist->comm) || step != r->step) return x;
  if (strcmp(kind, "error") == 0) return wf_poison(r->c, WF_FAIL(WF_ENUMERIC, "the layer fails, as asked"));
  while (strcmp(kind, "sleep") == 0) sleep(1);
  if (strcmp(kind, "drift") != 0) return wf_affine(r->c, x, NAN, 0);
  ((float *)wf_data((*weight)->value))[1] += 1e-3f;
  return x;
}

static const wf_layer_type faulty = {.kind = WF_LAYER_MLP,
                                     .name = "faulty",
                                     .help = "fails where WEFT_FAULT says",
                                     .paper = "",
                                     .options = none,
                                     .options_size = 1,
                                     .init = init,
                                     .forward = forward};

int main(int argc, char **argv) {
  signal(SIGXFSZ, SIG_IGN); /* as weft itself does */
  if (wf_layer_register(&faulty) != WF_OK) return 9;
  return wf_program(wf_commands, argc, (const char *const *)argv);
}
