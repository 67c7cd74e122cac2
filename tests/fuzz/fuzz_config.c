/* Fuzz target: a config, and after the byte 0x1e one override. What loads must print to a config that loads
 * to the same values, and nothing may be left allocated. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/config.h"
#include "experiments/yaml.h"
#include "tests/experiments/config_types.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int truth, const char *what) {
  if (truth) return;
  fprintf(stderr, "%s: %s\n", what, wf_error_message());
  abort();
}

static void check_round_trip(const wf_config *c) {
  char *first, *second;
  wf_config d;
  must(wf_config_print(c, &first) == WF_OK, "does not print");
  if (strlen(first) <= WF_YAML_MAX_BYTES) { /* escapes can make text longer than a config may be */
    must(wf_config_parse(&d, "printed.yaml", first, strlen(first), NULL, 0, test_types) == WF_OK,
         "does not reload");
    must(wf_config_print(&d, &second) == WF_OK, "does not print again");
    must(strcmp(first, second) == 0, "prints differently");
    must(wf_config_resume(c, &d) == WF_OK, "differs from itself");
    wf_free(second);
    wf_config_free(&d);
  }
  wf_free(first);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const int64_t live = wf_mem_live();
  const uint8_t *mark = size ? memchr(data, 0x1e, size) : NULL;
  const size_t n = mark ? (size_t)(mark - data) : size;
  char *set = NULL;
  if (mark) {
    set = wf_strndup("fuzz", (const char *)mark + 1, size - n - 1);
    must(set != NULL, "out of memory");
  }
  wf_config c;
  const char *const sets[] = {set};
  const wf_status s = wf_config_parse(&c, "fuzz.yaml", (const char *)data, n, sets, set ? 1 : 0, test_types);
  if (s == WF_OK) {
    check_round_trip(&c);
    wf_config_free(&c);
  } else {
    must(*wf_error_message() != '\0', "fails without a message");
  }
  wf_free(set);
  must(wf_mem_live() == live, "leaks");
  return 0;
}
