/* Links and rates as people write them. */
#include "experiments/link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A number, then perhaps k, M, G, T, P: powers of 1000. */
static bool quantity(const char **at, double *x) {
  static const char units[] = "kMGTP";
  char *end;
  *x = strtod(*at, &end);
  if (end == *at || !(*x > 0)) return false;
  const char *unit = *end ? strchr(units, *end) : NULL;
  if (unit) end++;
  for (; unit && unit >= units; unit--) *x *= 1000;
  *at = end;
  return *x < 1e30;
}

static bool skip(const char **at, const char *word) {
  size_t n = strlen(word);
  if (strncmp(*at, word, n) != 0) return false;
  *at += n;
  return true;
}

wf_status wf_rate_read(const char *what, const char *text, double *out) {
  const char *at = text;
  bool ok = quantity(&at, out);
  skip(&at, "/s");
  if (ok && !*at) return WF_OK;
  return wf_hint(WF_FAIL(WF_EINVAL, "%s: \"%.60s\" is no rate", what, text),
                 "as in 40G, 2T or 80e9, a second");
}

static bool seconds(const char **at, double *x) {
  char *end;
  *x = strtod(*at, &end);
  if (end == *at || !(*x >= 0 && *x < 1e6)) return false;
  *at = end;
  if (skip(at, "ns"))
    *x *= 1e-9;
  else if (skip(at, "us"))
    *x *= 1e-6;
  else if (skip(at, "ms"))
    *x *= 1e-3;
  else
    return skip(at, "s");
  return true;
}

wf_status wf_link_read(const char *what, const char *text, wf_cost *out) {
  const char *at = text;
  double bandwidth, latency = 0, flops = 0;
  bool ok = quantity(&at, &bandwidth), bits = false;
  if (ok) bits = skip(&at, "b/s") || skip(&at, "bit/s");
  ok = ok && (bits || skip(&at, "B/s")) && skip(&at, ",") && seconds(&at, &latency);
  if (ok && skip(&at, ",")) ok = quantity(&at, &flops) && skip(&at, "flop/s");
  ok = ok && !*at;
  if (!ok)
    return wf_hint(WF_FAIL(WF_EINVAL, "%s: \"%.60s\" is no link", what, text),
                   "its bandwidth, in bits (b) or bytes (B), and its latency: 100Gb/s,10us or 1GB/s,50us; a "
                   "rank's scans "
                   "may follow: 1GB/s,50us,80Gflop/s");
  out->bandwidth = bits ? bandwidth / 8 : bandwidth;
  out->latency = latency;
  if (flops > 0) out->flops = flops;
  return WF_OK;
}

void wf_link_print(const wf_cost *c, char out[120]) {
  snprintf(out, 120, "%.17gB/s,%.17gus,%.17gflop/s", c->bandwidth, 1e6 * c->latency, c->flops);
}
