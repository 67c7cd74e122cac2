/* ranks: runs a test body on several ranks.
 *
 *     static void body(wf_comm *c, void *arg) {
 *       WF_RANK_OK(wf_comm_barrier(c));
 *       WF_RANK_ASSERT(wf_comm_size(c) == 3, "size %d", wf_comm_size(c));
 *     }
 *     START_TEST(threes) { wf_ranks_run(3, body, NULL); } END_TEST
 *     WF_RANKS_MAIN(suite)
 *
 * The ranks are threads of this process, each with one OpenMP thread; under mpirun they are the processes,
 * and runs of another size than mpirun's are left out (a program in which none fits fails). `arg` is shared
 * by the threads: a body only reads it, or writes at its rank.
 *
 * With WEFT_TEST_VIRTUAL=K each process of mpirun has K ranks, its threads (wf_comm_virtual).
 *
 * A body must not use ck_assert: Check leaves a failed test by a longjmp when it does not fork, which may not
 * cross threads, and other ranks would wait for this one. WF_RANK_ASSERT and WF_RANK_OK end the rank; the
 * ranks that wait for it fail too, and wf_ranks_run fails the test in the main thread with the first message
 * (under mpirun: prints it and ends the job). A rank that has failed frees nothing.
 * Outside a rank they are ck_assert, so that helpers may use them everywhere.
 */
#ifndef WF_TESTS_DIST_RANKS_H
#define WF_TESTS_DIST_RANKS_H

#include "dist/comm.h"
#include "tests/check_main.h"

void wf_ranks_run(int n, void (*body)(wf_comm *c, void *arg), void *arg);

/* The ranks of mpirun, or 0 where ranks are threads of one process. */
int wf_ranks_launched(void);
/* Does wf_ranks_run run a body on n ranks here? */
bool wf_ranks_fit(int n);
/* Under mpirun x[n] becomes the sum over the ranks, inside a body; threads add up in their shared memory. */
void wf_ranks_sum(wf_comm *c, int64_t n, double *x);

/* ---- the matrix: tests/dist/matrix.sh ---- */

/* WEFT_MATRIX names a file: run all combinations, not only those of the quick tests, and note each there. */
bool wf_matrix_whole(void);
/* A case that has been run: what (a primitive or a layer), its layout, transport, rows, type and ranks; its
 * error, and in float32 that of one process (else 0). */
void wf_matrix_note(const char *what, const char *layout, const char *transport, const char *rows,
                    const char *type, int ranks, double error, double plain);

_Noreturn void wf_rank_fail(const char *file, int line, const char *fmt, ...) WF_PRINTF(3, 4);

#define WF_RANK_ASSERT(condition, ...)                               \
  do {                                                               \
    if (!(condition)) wf_rank_fail(__FILE__, __LINE__, __VA_ARGS__); \
  } while (0)
#define WF_RANK_OK(expr)                                                                        \
  do {                                                                                          \
    const wf_status wf_rank_ = (expr);                                                          \
    if (wf_rank_ != WF_OK)                                                                      \
      wf_rank_fail(__FILE__, __LINE__, "%s: %s", wf_status_name(wf_rank_), wf_error_message()); \
  } while (0)

int wf_ranks_main(Suite *(*make)(void));
#define WF_RANKS_MAIN(suite_fn)     \
  int main(void) {                  \
    return wf_ranks_main(suite_fn); \
  }

#endif
