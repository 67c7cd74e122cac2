/* Whether a stored run may go on with another config: option by option through the tables. */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "experiments/config.h"

/* One value as text, cut to what a message can hold. */
static const char *shown(const wf_option *o, const void *self, char out[static 80]) {
  wf_options_print(o, self, out, 80);
  return out;
}

static wf_status differs(const char *path, const char *key, const char *was, const char *is) {
  return wf_hint(
      WF_FAIL(WF_EINVAL, "%s%s%s was %s when the run began and is %s now", path, *key ? "." : "", key, was,
              is),
      "only steps, lr, eval, checkpoint, log and where the run is computed may change on --resume; start "
      "another run (run.name), or use --overwrite");
}

static wf_status compare(const wf_option *table, const char *path, const void *stored, void *now) {
  for (const wf_option *o = table; o->name; o++) {
    if ((o->flags & WF_OPT_RESUME) || wf_options_equal(o, stored, now)) continue;
    char was[80], is[80];
    shown(o, stored, was);
    shown(o, now, is);
    if (!(o->flags & WF_OPT_AUTO) || strcmp(is, "auto") != 0) return differs(path, o->name, was, is);
    const wf_option only[] = {*o, WF_OPT_END};
    wf_options_free(only, now);
    WF_TRY(wf_options_copy(only, now, stored));
  }
  return WF_OK;
}

static wf_status compare_parts(const char *path, const wf_config_part *stored, wf_config_part *now) {
  const char *was = stored->type ? stored->type : "none", *is = now->type ? now->type : "none";
  if (strcmp(was, is) != 0) return differs(path, "type", was, is);
  return stored->type ? compare(stored->table, path, stored->options, now->options) : WF_OK;
}

static wf_status compare_blocks(const char *path, const wf_config_block *stored, size_t n_stored,
                                wf_config_block *now, size_t n_now) {
  if (n_stored != n_now) {
    char was[32], is[32];
    snprintf(was, sizeof was, "%zu long", n_stored);
    snprintf(is, sizeof is, "%zu long", n_now);
    return differs(path, "", was, is);
  }
  for (size_t i = 0; i < n_now; i++) {
    char here[700], below[760];
    snprintf(here, sizeof here, "%s.%zu", path, i);
    if (!stored[i].n_blocks != !now[i].n_blocks)
      return differs(here, "", stored[i].n_blocks ? "a group" : "a block",
                     now[i].n_blocks ? "a group" : "a block");
    WF_TRY(compare(wf_config_block_table, here, &stored[i], &now[i]));
    snprintf(below, sizeof below, "%s.%s", here, now[i].n_blocks ? "blocks" : "mixer");
    if (now[i].n_blocks) {
      WF_TRY(compare_blocks(below, stored[i].blocks, stored[i].n_blocks, now[i].blocks, now[i].n_blocks));
      continue;
    }
    if (stored[i].n_beside != now[i].n_beside)
      return differs(below, "", stored[i].n_beside ? "a list" : "one mixer",
                     now[i].n_beside ? "another list" : "one mixer");
    WF_TRY(compare_parts(below, &stored[i].mixer, &now[i].mixer));
    for (size_t k = 0; k < now[i].n_beside; k++) {
      snprintf(below, sizeof below, "%s.mixer.%zu", here, k + 1);
      WF_TRY(compare_parts(below, &stored[i].beside[k], &now[i].beside[k]));
    }
    snprintf(below, sizeof below, "%s.mlp", here);
    WF_TRY(compare_parts(below, &stored[i].mlp, &now[i].mlp));
  }
  return WF_OK;
}

/* What the links were measured to be when the run began, on as many ranks of a sequence: its scans go the
 * same way. */
static wf_status keep_link(const wf_config_parallel *stored, wf_config_parallel *now) {
  if (strcmp(now->link, "auto") != 0 || stored->sequence != now->sequence) return WF_OK;
  char *link = wf_strdup("config", stored->link);
  if (!link) return WF_ENOMEM;
  wf_free(now->link);
  now->link = link;
  return WF_OK;
}

/* A bitwise run that goes on as one keeps all by which its ranks compute. */
static wf_status keep_bitwise(const wf_option *table, const wf_config_parallel *stored,
                              const wf_config_parallel *now) {
  static const char *const free_to_change[] = {"transport", "timeout", "step_timeout"};
  if (!stored->bitwise || !now->bitwise) return WF_OK;
  for (const wf_option *o = table; o->name; o++) {
    bool may = wf_options_equal(o, stored, now);
    for (size_t i = 0; i < sizeof free_to_change / sizeof *free_to_change; i++)
      may |= strcmp(o->name, free_to_change[i]) == 0;
    if (may) continue;
    char was[80], is[80];
    return wf_hint(WF_FAIL(WF_EINVAL, "parallel.%s was %s when the run began and is %s now", o->name,
                           shown(o, stored, was), shown(o, now, is)),
                   "a bitwise run keeps its virtual ranks and how they work together; their processes may be "
                   "more or fewer. Without parallel.bitwise it goes on anyhow");
  }
  return WF_OK;
}

wf_status wf_config_resume(const wf_config *stored, wf_config *now) {
  for (const wf_config_section *s = wf_config_sections; s->name; s++)
    WF_TRY(compare(s->table, s->name, (const char *)stored + s->offset, (char *)now + s->offset));
  WF_TRY(keep_link(&stored->parallel, &now->parallel));
  for (const wf_config_section *s = wf_config_sections; s->name; s++)
    if (strcmp(s->name, "parallel") == 0) WF_TRY(keep_bitwise(s->table, &stored->parallel, &now->parallel));
  WF_TRY(compare_blocks("model.blocks", stored->model.blocks, stored->model.n_blocks, now->model.blocks,
                        now->model.n_blocks));
  WF_TRY(compare_parts("train.optimizer", &stored->train.optimizer, &now->train.optimizer));
  return compare_parts("train.schedule", &stored->train.schedule, &now->train.schedule);
}
