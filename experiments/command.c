/* Finding a command, reading its flags, printing help, reporting failures. */
#include "experiments/command.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

static const char TAG[] = "arguments";

typedef struct parsed {
  const char **words, **sets;
  size_t n_words, n_sets;
  void *flags;
  bool help;
} parsed;

/* --- help --- */

/* top_k as it is written on the command line: top-k. */
static const char *dashed(const char *name, char out[static 40]) {
  snprintf(out, 40, "%s", name);
  for (char *p = out; *p; p++)
    if (*p == '_') *p = '-';
  return out;
}

/* The flag that the letter stands for: the only one that begins with it. */
static const wf_option *by_letter(const wf_option *table, char letter) {
  const wf_option *found = NULL;
  for (const wf_option *o = table; o && o->name; o++) {
    if (o->name[0] != letter) continue;
    if (found) return NULL;
    found = o;
  }
  return found;
}

static void print_flag(const wf_option *table, const wf_option *o) {
  char name[40], left[60];
  dashed(o->name, name);
  const char *value = o->type == WF_OPT_TYPE_BOOL ? "" : o->type == WF_OPT_TYPE_STRING ? " TEXT" : " N";
  if (o->type == WF_OPT_TYPE_ENUM) value = " WORD";
  if (by_letter(table, o->name[0]) == o)
    snprintf(left, sizeof left, "-%c, --%s%s", o->name[0], name, value);
  else
    snprintf(left, sizeof left, "    --%s%s", name, value);
  printf("  %-26s %s", left, o->help);
  if (o->type == WF_OPT_TYPE_ENUM)
    for (int i = 0; o->choices[i]; i++) printf("%s%s", i ? ", " : " (", o->choices[i]);
  if (o->type == WF_OPT_TYPE_ENUM) printf(")");
  if (o->flags & WF_OPT_REQUIRED)
    printf(" (required)");
  else if (o->value && o->type != WF_OPT_TYPE_BOOL)
    printf(" [%s]", o->value);
  printf("\n");
}

static void print_help(const wf_command *c) {
  printf("weft %s%s%s%s%s\n\n%s\n", c->name, *c->usage ? " " : "", c->usage, c->flags ? " [FLAGS]" : "",
         c->sets ? " [--set a.b=c]..." : "", c->help);
  if (c->more) printf("\n%s\n", c->more);
  if (!c->flags && !c->sets) return;
  printf("\n");
  for (const wf_option *o = c->flags; o && o->name; o++) print_flag(c->flags, o);
  if (c->sets) printf("  %-26s %s\n", "    --set a.b=c", "override a key of the config, any number of times");
}

static void print_commands(const wf_command *const *commands) {
  printf("weft trains sequence models.\n\n");
  for (; *commands; commands++) {
    char left[80];
    snprintf(left, sizeof left, "weft %s %s", (*commands)->name, (*commands)->usage);
    printf("  %-34s %s\n", left, (*commands)->help);
  }
  printf("\nweft COMMAND --help explains each.\n");
}

/* --- arguments --- */

static wf_status unknown_flag(const wf_command *c, const char *given) {
  const char *names[64];
  static const char set_name[] = "set", help_name[] = "help";
  int n = 0;
  for (const wf_option *o = c->flags; o && o->name && n < 60; o++) names[n++] = o->name;
  if (c->sets) names[n++] = set_name;
  names[n++] = help_name;
  const char *near = wf_nearest_name(given + strspn(given, "-"), names, n);
  const wf_status s = WF_FAIL(WF_EINVAL, "weft %s has no flag %.60s", c->name, given);
  char name[40];
  if (near) return wf_hint(s, "did you mean --%s?", dashed(near, name));
  return wf_hint(s, "weft %s --help lists them", c->name);
}

/* `name` up to = as an option's name: dashes become underscores, a single letter the flag it stands for. */
static const wf_option *find_flag(const wf_command *c, const char *arg) {
  char name[64];
  size_t n = 0;
  if (!c->flags) return NULL;
  const bool is_long = arg[1] == '-';
  for (const char *p = arg + 1 + is_long; *p && *p != '=' && n + 1 < sizeof name; p++)
    name[n++] = *p == '-' ? '_' : *p;
  name[n] = '\0';
  if (!is_long) return n == 1 ? by_letter(c->flags, name[0]) : NULL;
  return wf_options_find(c->flags, name);
}

static bool is_flag(const char *arg) {
  return arg[0] == '-' && arg[1] && !isdigit((unsigned char)arg[1]) && arg[1] != '.';
}

/* Read the flag argv[*i], and its value after = or in the next argument. */
static wf_status read_flag(const wf_command *c, int argc, const char *const *argv, int *i, parsed *p) {
  const char *arg = argv[*i], *equals = strchr(arg, '='), *value = equals ? equals + 1 : NULL;
  if (strcmp(arg, "-h") == 0 || strcmp(arg, "--help") == 0) {
    p->help = true;
    return WF_OK;
  }
  const bool set = c->sets && strncmp(arg, "--set", 5) == 0 && (arg[5] == '=' || !arg[5]);
  const wf_option *o = set ? NULL : find_flag(c, arg);
  if (!set && !o) return unknown_flag(c, arg);
  if (!value && o && o->type == WF_OPT_TYPE_BOOL) value = "true";
  if (!value) {
    if (*i + 1 >= argc)
      return wf_hint(WF_FAIL(WF_EINVAL, "%s needs a value", arg), "weft %s --help explains it", c->name);
    value = argv[++*i];
  }
  if (set) {
    p->sets[p->n_sets++] = value;
    return WF_OK;
  }
  const wf_status s = wf_options_set(c->flags, p->flags, o->name, value);
  return s == WF_OK ? s : wf_context(s, "%.*s", (int)strcspn(arg, "="), arg);
}

static wf_status check_words(const wf_command *c, const parsed *p) {
  if (p->n_words < c->least)
    return wf_hint(WF_FAIL(WF_EINVAL, "weft %s needs %s", c->name, c->usage), "weft %s --help explains it",
                   c->name);
  if (p->n_words > c->most)
    return wf_hint(
        WF_FAIL(WF_EINVAL, "weft %s: \"%.100s\" is one argument too many", c->name, p->words[c->most]),
        "usage: weft %s %s", c->name, c->usage);
  return WF_OK;
}

static wf_status parse(const wf_command *c, int argc, const char *const *argv, parsed *p) {
  bool given[64] = {false}, flags_end = false;
  WF_CALLOC(p->words, TAG, argc + 1);
  WF_CALLOC(p->sets, TAG, argc + 1);
  if (c->flags) {
    WF_ALLOC(p->flags, TAG, c->flags_size);
    memset(p->flags, 0, c->flags_size);
    WF_TRY(wf_options_defaults(c->flags, p->flags));
  }
  for (int i = 0; i < argc && !p->help; i++) {
    if (flags_end || !is_flag(argv[i])) {
      p->words[p->n_words++] = argv[i];
    } else if (strcmp(argv[i], "--") == 0) {
      flags_end = true;
    } else {
      const wf_option *o = find_flag(c, argv[i]);
      if (o && o - c->flags < 64) given[o - c->flags] = true;
      WF_TRY(read_flag(c, argc, argv, &i, p));
    }
  }
  if (p->help) return WF_OK;
  for (const wf_option *o = c->flags; o && o->name; o++) {
    char name[40];
    if ((o->flags & WF_OPT_REQUIRED) && !given[o - c->flags])
      return wf_hint(WF_FAIL(WF_EINVAL, "weft %s needs --%s", c->name, dashed(o->name, name)), "%s", o->help);
  }
  return check_words(c, p);
}

static void release(const wf_command *c, parsed *p) {
  if (p->flags) wf_options_free(c->flags, p->flags);
  wf_free(p->flags);
  wf_free(p->words);
  wf_free(p->sets);
}

/* --- the program --- */

static int report(void) {
  const char *trace = getenv("WEFT_TRACE");
  fflush(stdout);
  fprintf(stderr, "weft: error: %s\n", wf_error_message());
  if (*wf_error_hint()) fprintf(stderr, "  hint: %s\n", wf_error_hint());
  if (trace && strcmp(trace, "1") == 0) fprintf(stderr, "%s", wf_error_trace());
  return 1;
}

static int code_of(wf_status s) {
  if (s == WF_OK) return 0;
  if (s != WF_EINTERRUPTED) return report();
  fflush(stdout); /* it has said so itself */
  return WF_EXIT_REQUEUE;
}

/* How many of the given words are the command's name: 1 or 2, 0 when they are not. */
static int name_length(const wf_command *c, int argc, const char *const *argv) {
  const char *space = strchr(c->name, ' ');
  if (!space) return argc >= 1 && strcmp(c->name, argv[0]) == 0 ? 1 : 0;
  const size_t first = (size_t)(space - c->name);
  if (argc < 2 || strlen(argv[0]) != first || strncmp(c->name, argv[0], first) != 0) return 0;
  return strcmp(space + 1, argv[1]) == 0 ? 2 : 0;
}

static wf_status unknown_command(const wf_command *const *commands, int argc, const char *const *argv) {
  const char *names[64];
  char given[140];
  int n = 0;
  bool first_known = false; /* "config" of "config check" */
  const size_t length = strlen(argv[0]);
  for (; commands[n] && n < 64; n++) {
    names[n] = commands[n]->name;
    if (strncmp(names[n], argv[0], length) == 0 && names[n][length] == ' ') first_known = true;
  }
  const bool two = first_known && argc > 1 && !is_flag(argv[1]);
  snprintf(given, sizeof given, "%.60s%s%.60s", argv[0], two ? " " : "", two ? argv[1] : "");
  const char *near = wf_nearest_name(given, names, n);
  const wf_status s = first_known && !two ? WF_FAIL(WF_EINVAL, "weft %s needs another word", given)
                                          : WF_FAIL(WF_EINVAL, "there is no command \"%s\"", given);
  return near ? wf_hint(s, "did you mean weft %s?", near) : wf_hint(s, "weft --help lists all commands");
}

static wf_status run(const wf_command *c, int argc, const char *const *argv) {
  parsed p = {0};
  wf_status s = parse(c, argc, argv, &p);
  if (s == WF_OK && p.help)
    print_help(c);
  else if (s == WF_OK)
    s = c->run(&(wf_args){p.words, p.n_words, p.sets, p.n_sets, p.flags});
  release(c, &p);
  if (s == WF_OK && (fflush(stdout) != 0 || ferror(stdout)))
    s = WF_FAIL(WF_EIO, "cannot write to the standard output: %s", strerror(errno));
  return s;
}

int wf_program(const wf_command *const *commands, int argc, const char *const *argv) {
  const int n = argc > 0 ? argc - 1 : 0;
  const char *const *words = argv + (argc > 0);
  if (n == 0 || strcmp(words[0], "--help") == 0 || strcmp(words[0], "-h") == 0 ||
      strcmp(words[0], "help") == 0) {
    print_commands(commands);
    return 0;
  }
  for (const wf_command *const *c = commands; *c; c++) {
    const int used = name_length(*c, n, words);
    if (used) return code_of(run(*c, n - used, words + used));
  }
  unknown_command(commands, n, words);
  return report();
}
