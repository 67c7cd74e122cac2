/* Philox through Random123; keys are hashes (XXH3) of seed, purpose and site. */
#include "core/rng.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>
#if defined(__GNUC__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wconversion"
#endif
#include <Random123/philox.h>
#if defined(__GNUC__)
#  pragma GCC diagnostic pop
#endif

wf_rng_key wf_rng_key_make(uint64_t seed, const char *purpose, const char *site) {
  uint64_t h = XXH3_64bits_withSeed(purpose, strlen(purpose), seed);
  h = XXH3_64bits_withSeed(site, strlen(site), h);
  return (wf_rng_key){{(uint32_t)h, (uint32_t)(h >> 32)}};
}

void wf_rng_draw(wf_rng_key key, uint32_t step, uint32_t seq, uint32_t place, uint32_t block,
                 uint32_t out[4]) {
  philox4x32_ctr_t ctr = {{block, place, seq, step}};
  philox4x32_key_t k = {{key.k[0], key.k[1]}};
  philox4x32_ctr_t r = philox4x32(ctr, k);
  memcpy(out, r.v, sizeof r.v);
}

static uint64_t word64(wf_rng_key key, uint64_t element) {
  uint32_t w[4];
  uint64_t block = element / 2;
  wf_rng_draw(key, 0, 1, (uint32_t)(block >> 32), (uint32_t)block, w);
  return element % 2 ? (uint64_t)w[2] << 32 | w[3] : (uint64_t)w[0] << 32 | w[1];
}

uint32_t wf_rng_bits(wf_rng_key key, uint64_t element) {
  uint32_t w[4];
  uint64_t block = element / 4;
  wf_rng_draw(key, 0, 0, (uint32_t)(block >> 32), (uint32_t)block, w);
  return w[element % 4];
}

double wf_rng_uniform(wf_rng_key key, uint64_t element) {
  return (double)(word64(key, element) >> 11) * 0x1p-53;
}

double wf_rng_normal(wf_rng_key key, uint64_t element) {
  uint32_t w[4];
  uint64_t pair = element / 2; /* Box-Muller: one block gives two */
  wf_rng_draw(key, 0, 2, (uint32_t)(pair >> 32), (uint32_t)pair, w);
  double u = ((double)(((uint64_t)w[0] << 32 | w[1]) >> 11) + 0.5) * 0x1p-53;
  double a = 2 * M_PI * ((double)(((uint64_t)w[2] << 32 | w[3]) >> 11) * 0x1p-53);
  return sqrt(-2 * log(u)) * (element % 2 ? sin(a) : cos(a));
}

uint64_t wf_rng_below(wf_rng_key key, uint64_t element, uint64_t n) {
  return (uint64_t)(((unsigned __int128)word64(key, element) * n) >> 64);
}
