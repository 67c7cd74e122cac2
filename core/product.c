/* Recording of matrix products. While recording, operands are the originals' addresses; at the stop the
 * stretches of memory that they cover are joined where they overlap, and laid out anew in one block. */
#include "core/product.h"
#include "core/memory.h"
#include "core/product_impl.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64 };

struct wf_products {
  wf_ctx *ctx; /* while recording */
  wf_product *list;
  size_t n, capacity;
  char *memory;
  wf_status status;
};

wf_status wf_products_record(wf_ctx *c, wf_products **out) {
  if (c->products) return WF_FAIL(WF_EINVAL, "the context's products are recorded already");
  WF_CALLOC(*out, "products", 1);
  (*out)->ctx = c;
  c->products = *out;
  return WF_OK;
}

void wf_product_note(wf_ctx *c, const wf_product *p) {
#pragma omp critical(wf_product_note)
  {
    wf_products *ps = c->products;
    wf_status s = wf_grow("products", (void **)&ps->list, sizeof *ps->list, ps->n, &ps->capacity);
    if (s == WF_OK)
      ps->list[ps->n++] = *p;
    else
      ps->status = s;
  }
}

/* ---- operands ---- */

typedef struct stretch {
  uintptr_t begin, end;
  size_t offset; /* in the new block */
} stretch;

static stretch covered(const float *p, int64_t rows, int64_t cols, int64_t ld) {
  return (stretch){(uintptr_t)p, (uintptr_t)(p + (rows - 1) * ld + cols), 0};
}

static int by_address(const void *a, const void *b) {
  uintptr_t x = ((const stretch *)a)->begin, y = ((const stretch *)b)->begin;
  return (x > y) - (x < y);
}

/* Where an address of the recording lies in the new block. */
static float *moved(const wf_products *p, const stretch *s, size_t n, const float *at) {
  size_t lo = 0;
  for (size_t hi = n; hi - lo > 1;) {
    size_t mid = lo + (hi - lo) / 2;
    if (s[mid].begin <= (uintptr_t)at)
      lo = mid;
    else
      hi = mid;
  }
  return (float *)(void *)(p->memory + s[lo].offset + ((uintptr_t)at - s[lo].begin));
}

static wf_status give_operands(wf_products *p) {
  if (p->n == 0) return WF_OK;
  stretch *s = wf_calloc("products", 3 * p->n, sizeof *s);
  if (!s) return WF_ENOMEM;
  for (size_t i = 0; i < p->n; i++) {
    const wf_product *q = &p->list[i];
    s[3 * i] = covered(q->a, q->at ? q->k : q->m, q->at ? q->m : q->k, q->lda);
    s[3 * i + 1] = covered(q->b, q->bt ? q->n : q->k, q->bt ? q->k : q->n, q->ldb);
    s[3 * i + 2] = covered(q->c, q->m, q->n, q->ldc);
  }
  qsort(s, 3 * p->n, sizeof *s, by_address);
  size_t n = 1;
  for (size_t i = 1; i < 3 * p->n; i++) {
    if (s[i].begin >= s[n - 1].end)
      s[n++] = s[i];
    else if (s[i].end > s[n - 1].end)
      s[n - 1].end = s[i].end;
  }
  size_t bytes = 0;
  for (size_t i = 0; i < n; i++) { /* each as far from a cache line's start as it was */
    s[i].offset = bytes + s[i].begin % ALIGN;
    bytes = (s[i].offset + (s[i].end - s[i].begin) + ALIGN - 1) / ALIGN * ALIGN;
  }
  p->memory = wf_alloc("products", bytes);
  for (size_t i = 0; i < bytes / sizeof(float) && p->memory; i++) /* touched, and far from overflow */
    ((float *)(void *)p->memory)[i] = 0x1p-10f;
  for (size_t i = 0; i < p->n && p->memory; i++) {
    wf_product *q = &p->list[i];
    q->a = moved(p, s, n, q->a);
    q->b = moved(p, s, n, q->b);
    q->c = moved(p, s, n, q->c);
  }
  wf_free(s);
  return p->memory ? WF_OK : WF_ENOMEM;
}

wf_status wf_products_stop(wf_products *p) {
  p->ctx->products = NULL;
  p->ctx = NULL;
  WF_TRY(p->status);
  return give_operands(p);
}

void wf_products_run(const wf_products *p) {
  for (size_t i = 0; i < p->n; i++) {
    const wf_product *q = &p->list[i];
    cblas_sgemm(CblasRowMajor, q->at ? CblasTrans : CblasNoTrans, q->bt ? CblasTrans : CblasNoTrans,
                (int)q->m, (int)q->n, (int)q->k, 1, q->a, (int)q->lda, q->b, (int)q->ldb, q->add ? 1 : 0,
                q->c, (int)q->ldc);
  }
}

void wf_products_free(wf_products *p) {
  if (!p) return;
  if (p->ctx) p->ctx->products = NULL;
  wf_free(p->memory);
  wf_free(p->list);
  wf_free(p);
}

int64_t wf_products_count(const wf_products *p) {
  return (int64_t)p->n;
}

double wf_products_flops(const wf_products *p) {
  double sum = 0;
  for (size_t i = 0; i < p->n; i++)
    sum += 2 * (double)p->list[i].m * (double)p->list[i].n * (double)p->list[i].k;
  return sum;
}
