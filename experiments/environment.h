/* environment: what libraries read from the environment while they load, and what Weft prefers there.
 *
 * OpenBLAS picks kernels by the processor's model and falls back to very old ones for models newer than
 * itself, which costs a factor of 2 to 10. libgomp's threads spin for milliseconds at the end of every
 * parallel region, which is ruinous where other programs want the same cores. Both are decided before main()
 * runs.
 */
#ifndef WF_EXPERIMENTS_ENVIRONMENT_H
#define WF_EXPERIMENTS_ENVIRONMENT_H

#ifdef __cplusplus
extern "C" {
#endif

/* The kernels OpenBLAS uses ("SkylakeX", "Haswell", "Prescott", ...). */
const char *wf_blas_core(void);

/* The name of kernels that use the processor's vector instructions when those in use do not; NULL when all is
 * well. */
const char *wf_blas_better_core(void);

/* Start this program again with better settings where the user has made none: OPENBLAS_CORETYPE where
 * OpenBLAS fell back, GOMP_SPINCOUNT where nothing says how threads wait. Returns when there is nothing to do
 * or it cannot be done. For the first line of a main(). */
void wf_environment_restart(char **argv);

#ifdef __cplusplus
}
#endif

#endif
