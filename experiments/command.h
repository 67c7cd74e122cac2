/* command: the frame of the `weft` program.
 *
 * A command is one file, experiments/cmd_<name>.c, that defines a wf_command, and one line in
 * experiments/commands.def. Its flags are a table of typed options (core/option.h) over a struct of its own,
 * so that parsing, ranges, defaults, --help and the nearest name of an unknown flag come from the table.
 *
 *     typedef struct generate_flags { int64_t top_k; double temperature; } generate_flags;
 *     static const wf_option flags[] = {WF_OPT_I64(generate_flags, top_k, "0", 0, 1e9, "0: all"), ...,
 * WF_OPT_END}; static wf_status run(const wf_args *a) { const generate_flags *f = a->flags; ... } const
 * wf_command wf_cmd_generate = {.name = "generate", .help = "write text", .usage = "RUN", .flags = flags,
 *                                         .flags_size = sizeof(generate_flags), .least = 1, .most = 1, .run =
 * run};
 *
 * On the command line: --top-k 5, --top-k=5, --top_k 5; a true/false flag needs no value; one letter (-t 0.8)
 * stands for the only flag that begins with it; -- ends the flags. A failed command prints `weft: error: ...`
 * with its hint on stderr and exits with 1.
 */
#ifndef WF_EXPERIMENTS_COMMAND_H
#define WF_EXPERIMENTS_COMMAND_H

#include <stdbool.h>
#include <stddef.h>
#include "core/option.h"
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_args {
  const char *const *words; /* what is not a flag, in order */
  size_t n_words;
  const char *const *sets; /* the texts after --set */
  size_t n_sets;
  const void *flags; /* the command's struct, defaults filled in; NULL when it has none */
} wf_args;

typedef struct wf_command {
  const char *name;  /* "train", or two words: "config check" */
  const char *help;  /* one line */
  const char *usage; /* the words after the name: "CONFIG" */
  const char *more;  /* further lines of --help, or NULL */
  const wf_option *flags;
  size_t flags_size;
  bool sets;          /* takes --set a.b=c, any number of times */
  size_t least, most; /* number of words */
  wf_status (*run)(const wf_args *args);
} wf_command;

enum { WF_EXIT_REQUEUE = 75 }; /* stopped in good order, to be started again (EX_TEMPFAIL of sysexits.h) */

/* The whole program but for the process around it: finds the command among `commands` (ending with NULL),
 * parses, runs it and reports. Returns the exit code: 0, 1, or WF_EXIT_REQUEUE for WF_EINTERRUPTED. */
int wf_program(const wf_command *const *commands, int argc, const char *const *argv);

extern const wf_command *const wf_commands[]; /* all of weft's, ending with NULL */

#ifdef __cplusplus
}
#endif

#endif
