/* documents: a small text of many documents and a config in the temporary folder, for runs over ranks. */
#ifndef WF_TESTS_DOCUMENTS_H
#define WF_TESTS_DOCUMENTS_H

#include <stdlib.h>

#include "core/file.h"
#include "core/rng.h"
#include "tests/experiments/run_weft.h"

/* Makes the folder, text.h5 of so many letters in documents of 1 to a few hundred, and c.yaml. */
static inline void make_documents(uint64_t letters, const char *config) {
  temp_dir_make();
  wf_rng_key key = wf_rng_key_make(1, "test", "text");
  FILE *f = fopen(temp_path("many"), "w");
  if (!f) abort();
  for (uint64_t i = 0; i < letters; i++) {
    fputc((int)('a' + wf_rng_below(key, i, 1 + wf_rng_below(key, i + 4000, 26))), f);
    if (wf_rng_below(key, 9000 + i, 60) == 0 || i % 300 == 299) fputs("\n%\n", f);
  }
  if (fclose(f) != 0) abort();
  if (wf_file_write(temp_path("c.yaml"), config, (int64_t)strlen(config)) != WF_OK) abort();
  run("weft data build many --validation 0.1 --split % -o text.h5");
}

#endif
