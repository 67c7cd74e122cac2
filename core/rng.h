/* rng: counter-based random numbers, Philox 4x32-10 (Salmon et al. 2011, through Random123).
 *
 * A number is a pure function of key and counter, so recomputation, replay, resume and any number of ranks or
 * threads see the same draws. Key = hash(seed, purpose, site); counter = (step, sequence, place in the
 * sequence, element / 4).
 */
#ifndef WF_CORE_RNG_H
#define WF_CORE_RNG_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_rng_key {
  uint32_t k[2];
} wf_rng_key;

/* `purpose` ("dropout", "init", "shuffle") and `site` (a parameter's name, a layer's path) separate streams.
 */
wf_rng_key wf_rng_key_make(uint64_t seed, const char *purpose, const char *site);

/* Four independent 32-bit words. */
void wf_rng_draw(wf_rng_key key, uint32_t step, uint32_t seq, uint32_t place, uint32_t block,
                 uint32_t out[4]);

/* The element-th number of a stream: 32 random bits; uniform in [0, 1) with 53 bits; standard normal. */
uint32_t wf_rng_bits(wf_rng_key key, uint64_t element);
double wf_rng_uniform(wf_rng_key key, uint64_t element);
double wf_rng_normal(wf_rng_key key, uint64_t element);
/* Uniform in 0 .. n-1 without bias worth naming (multiply-shift of 64 bits). */
uint64_t wf_rng_below(wf_rng_key key, uint64_t element, uint64_t n);

#ifdef __cplusplus
}
#endif

#endif
