/* Counts, bytes and times in a few letters. */
#include "experiments/human.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Three digits of x, which is at least 1, before `unit`. */
static const char *three_digits(double x, const char *unit, char out[24]) {
  snprintf(out, 24, "%.*f%s", x < 9.995 ? 2 : x < 99.95 ? 1 : 0, x, unit);
  return out;
}

static const char *scaled(double x, double base, const char *const *units, int n, char out[24]) {
  int i = 0;
  for (; i + 1 < n && fabs(x) >= 0.9995 * base; i++) x /= base;
  if (i > 0 && fabs(x) < 1e6) return three_digits(x, units[i], out);
  snprintf(out, 24, "%.4g%s", x, units[i]);
  return out;
}

const char *wf_human_count(double n, char out[24]) {
  static const char *const units[] = {"", "k", "M", "G", "T"};
  return scaled(n, 1000, units, 5, out);
}

const char *wf_human_bytes(double bytes, char out[24]) {
  static const char *const units[] = {" B", " KiB", " MiB", " GiB", " TiB"};
  return scaled(bytes, 1024, units, 5, out);
}

const char *wf_human_time(double seconds, char out[24]) {
  if (!(seconds >= 0 && seconds < 1e9)) {
    snprintf(out, 24, "?");
    return out;
  }
  const long s = (long)seconds;
  if (s >= 86400)
    snprintf(out, 24, "%ldd %ldh", s / 86400, s / 3600 % 24);
  else if (s >= 3600)
    snprintf(out, 24, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
  else
    snprintf(out, 24, "%ld:%02ld", s / 60, s % 60);
  return out;
}

wf_status wf_human_read(const char *what, const char *text, int64_t *out, int most, int *n) {
  *n = 0;
  for (const char *at = text;;) {
    char *end;
    double x = strtod(at, &end);
    if (end > at && (*end == 'k' || *end == 'K'))
      x *= 1 << 10, end++;
    else if (end > at && *end == 'M')
      x *= 1 << 20, end++;
    if (end == at || !(x >= 1 && x < 0x1p53) || x != floor(x) || (*end && *end != ','))
      return wf_hint(WF_FAIL(WF_EINVAL, "%s: \"%.*s\" is no count", what, (int)strcspn(at, ","), at),
                     "as in 1k,4k,65536");
    if (*n == most) return WF_FAIL(WF_EINVAL, "%s: more than %d numbers", what, most);
    out[(*n)++] = (int64_t)x;
    if (!*end) return WF_OK;
    at = end + 1;
  }
}
