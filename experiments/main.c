/* The process around the program. */
#include <signal.h>

#include "experiments/environment.h"
#include "experiments/command.h"

int main(int argc, char **argv) {
  wf_environment_restart(argv);
  signal(SIGXFSZ, SIG_IGN); /* a file-size limit then is an error with a message */
  return wf_program(wf_commands, argc, (const char *const *)argv);
}
