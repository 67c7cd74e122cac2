/* The table of all commands, from commands.def. */
#include "experiments/command.h"

#define WF_COMMAND(x) extern const wf_command wf_cmd_##x;
#include "experiments/commands.def"
#undef WF_COMMAND

#define WF_COMMAND(x) &wf_cmd_##x,
const wf_command *const wf_commands[] = {
#include "experiments/commands.def"
    NULL};
