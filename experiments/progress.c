/* The live line and its plain counterpart. */
#include "experiments/progress.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "experiments/human.h"

enum { LINE = 400, PARTS = 10 };
static const double redraw_s = 0.1, rate_window_s = 2.0;

void wf_progress_start_as(wf_progress *p, FILE *out, bool live, int width, int64_t first, int64_t steps,
                          int64_t every, double smoothing, double now) {
  *p = (wf_progress){.out = out,
                     .live = live,
                     .width = width,
                     .steps = steps,
                     .every = every,
                     .first = first,
                     .smoothing = smoothing,
                     .start = now,
                     .shown = now - 1,
                     .window_start = now,
                     .rate = (double)NAN};
}

void wf_progress_start(wf_progress *p, FILE *out, int64_t first, int64_t steps, int64_t every,
                       double smoothing, double now) {
  struct winsize size = {0};
  const int fd = fileno(out);
  const bool live = isatty(fd) == 1;
  const bool known = live && ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  wf_progress_start_as(p, out, live, known ? size.ws_col : 80, first, steps, every, smoothing, now);
}

/* --- the line --- */

typedef struct parts {
  char text[PARTS][48];
  int n;
} parts;

static void add(parts *p, const char *fmt, ...) WF_PRINTF(2, 3);
static void add(parts *p, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(p->text[p->n++], sizeof p->text[0], fmt, ap);
  va_end(ap);
}

/* The parts of a line, what matters most first. */
static void describe(const wf_progress *p, const wf_progress_step *s, double now, parts *out) {
  char human[24];
  const double done = (double)(s->step - p->first), left = (double)(p->steps - s->step);
  add(out, "%" PRId64 "/%" PRId64, s->step, p->steps);
  const double loss = isnan(s->loss) ? (double)NAN : s->loss; /* without a sign */
  add(out, "loss %.4g (%.4g)", loss, wf_progress_smoothed(p));
  if (isfinite(p->rate)) add(out, "%s tok/s", wf_human_count(p->rate, human));
  if (left > 0 && done > 0) add(out, "%s left", wf_human_time((now - p->start) / done * left, human));
  add(out, "lr %.3g", s->lr);
  if (!isnan(s->grad_norm)) add(out, "|g| %.3g", s->grad_norm);
  if (!isnan(s->matrix_fraction)) add(out, "%.0f%% of peak", 100 * s->matrix_fraction);
  if (!isnan(s->memory)) add(out, "%s", wf_human_bytes(s->memory, human));
}

static void append(char line[static LINE], const char *text) {
  const size_t n = strlen(line);
  snprintf(line + n, LINE - n, "%s", text);
}

/* [====>   ] with `inner` letters between the brackets. */
static void append_bar(char line[static LINE], int inner, double fraction) {
  char bar[64];
  const int full = (int)(fraction * inner);
  int n = 0;
  bar[n++] = '[';
  for (int i = 0; i < inner; i++) bar[n++] = i < full ? '=' : i == full ? '>' : ' ';
  bar[n++] = ']';
  bar[n++] = ' ';
  bar[n] = '\0';
  append(line, bar);
}

static void draw(wf_progress *p, const wf_progress_step *s, double now) {
  parts all = {0};
  char line[LINE] = "";
  describe(p, s, now, &all);
  size_t room = (size_t)(p->width > 1 ? p->width - 1 : 0);
  if (room >= LINE) room = LINE - 1;
  if (room >= 60)
    append_bar(line, room >= 110 ? 24 : 12, p->steps > 0 ? (double)s->step / (double)p->steps : 1);
  for (int i = 0; i < all.n; i++) {
    if (strlen(line) + strlen(all.text[i]) + (i ? 2 : 0) > room) break;
    if (i) append(line, "  ");
    append(line, all.text[i]);
  }
  fprintf(p->out, "\r\033[K%s", line);
  fflush(p->out);
  p->drawn = true;
  p->shown = now;
}

static void print_plain(wf_progress *p, const wf_progress_step *s, double now) {
  parts all = {0};
  describe(p, s, now, &all);
  for (int i = 0; i < all.n; i++) fprintf(p->out, "%s%s", i ? "  " : "step ", all.text[i]);
  fprintf(p->out, "\n");
  fflush(p->out);
  p->shown = now;
}

static void clear(wf_progress *p) {
  if (p->drawn) fprintf(p->out, "\r\033[K");
  p->drawn = false;
}

/* --- steps --- */

double wf_progress_smoothed(const wf_progress *p) {
  return p->loss_weight > 0 ? p->loss_sum / p->loss_weight : (double)NAN;
}

double wf_progress_rate(const wf_progress *p) {
  return p->rate;
}

static void count(wf_progress *p, const wf_progress_step *s, double now) {
  if (isfinite(s->loss)) { /* an average whose weights sum to one from the first step on */
    p->loss_sum = p->smoothing * p->loss_sum + (1 - p->smoothing) * s->loss;
    p->loss_weight = p->smoothing * p->loss_weight + (1 - p->smoothing);
  }
  p->tokens += s->tokens;
  p->window_tokens += s->tokens;
  const double passed = now - p->window_start;
  if (passed > 0 && (passed >= rate_window_s || isnan(p->rate))) p->rate = (double)p->window_tokens / passed;
  if (passed >= rate_window_s) {
    p->window_start = now;
    p->window_tokens = 0;
  }
}

void wf_progress_step_done(wf_progress *p, const wf_progress_step *s, double now) {
  count(p, s, now);
  const bool last = s->step == p->steps;
  if (p->live && (last || now - p->shown >= redraw_s)) draw(p, s, now);
  if (!p->live && (last || s->step == p->first + 1 || s->step % p->every == 0)) print_plain(p, s, now);
}

void wf_progress_note(wf_progress *p, const char *fmt, ...) {
  va_list ap;
  clear(p);
  va_start(ap, fmt);
  vfprintf(p->out, fmt, ap);
  va_end(ap);
  fprintf(p->out, "\n");
  fflush(p->out);
  p->shown = -INFINITY; /* the live line comes back with the next step */
}

void wf_progress_pause(wf_progress *p, double since, double now) {
  p->start += now - since;
  p->window_start += now - since;
}

void wf_progress_end(wf_progress *p, int64_t step, double now) {
  char tokens[24], time[24], rate[24];
  const double passed = now - p->start;
  if (p->drawn) fprintf(p->out, "\n");
  p->drawn = false;
  fprintf(p->out, "%" PRId64 " steps, %s tokens in %s", step - p->first,
          wf_human_count((double)p->tokens, tokens), wf_human_time(passed, time));
  if (passed > 0) fprintf(p->out, ", %s tokens/s", wf_human_count((double)p->tokens / passed, rate));
  if (p->loss_weight > 0) fprintf(p->out, ", smoothed loss %.4g", wf_progress_smoothed(p));
  fprintf(p->out, "\n");
  fflush(p->out);
}
