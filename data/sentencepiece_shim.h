/* sentencepiece_shim: the few functions of the SentencePiece library that Weft uses, as plain C. No exception
 * passes. Private to this folder. Texts of errors are copied into `error`. */
#ifndef WF_DATA_SENTENCEPIECE_SHIM_H
#define WF_DATA_SENTENCEPIECE_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_sp wf_sp;
typedef struct wf_sp_error {
  char text[256];
} wf_sp_error;

/* Copies of library memory that the caller gives to wf_sp_release. */
typedef struct wf_sp_ids {
  int *data;
  size_t n;
} wf_sp_ids;
typedef struct wf_sp_bytes {
  char *data;
  size_t n;
} wf_sp_bytes;
void wf_sp_release(void *p);

wf_sp *wf_sp_load(const char *model, size_t n, wf_sp_error *error); /* NULL on failure */
void wf_sp_free(wf_sp *sp);

int wf_sp_vocab(const wf_sp *sp);
int wf_sp_bos(const wf_sp *sp); /* -1: none */
int wf_sp_eos(const wf_sp *sp);
int wf_sp_is_control(const wf_sp *sp, int id); /* decodes to nothing */
int wf_sp_is_byte(const wf_sp *sp, int id);    /* its piece is "<0xNN>" */
int wf_sp_is_unknown(const wf_sp *sp, int id);

/* 0, or -1 with the error's text. */
int wf_sp_piece(const wf_sp *sp, int id, wf_sp_bytes *out, wf_sp_error *error);
int wf_sp_encode(const wf_sp *sp, const char *text, size_t n, wf_sp_ids *out, wf_sp_error *error);

/* `next` gives one sentence a call: 1, 0 at the end, -1 on failure (training then fails too). */
typedef int (*wf_sp_next)(void *context, const char **text, size_t *n);
int wf_sp_train(const char *type, int64_t vocab, wf_sp_next next, void *context, wf_sp_bytes *model,
                wf_sp_error *error);

#ifdef __cplusplus
}
#endif

#endif
