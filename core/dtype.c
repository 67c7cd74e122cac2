/* Names and sizes of the element types. */
#include "core/dtype.h"

static const struct {
  const char *name;
  size_t size;
} table[WF_N_DTYPES] = {
    [WF_F32] = {"f32", 4}, [WF_BF16] = {"bf16", 2}, [WF_F64] = {"f64", 8}, [WF_I32] = {"i32", 4},
    [WF_I64] = {"i64", 8}, [WF_U8] = {"u8", 1},     [WF_U16] = {"u16", 2}, [WF_U32] = {"u32", 4},
};

static bool valid(wf_dtype d) {
  return (unsigned)d < WF_N_DTYPES;
}

size_t wf_dtype_size(wf_dtype d) {
  return valid(d) ? table[d].size : 0;
}

const char *wf_dtype_name(wf_dtype d) {
  return valid(d) ? table[d].name : "invalid";
}

bool wf_dtype_parse(const char *name, wf_dtype *dtype) {
  for (int i = 0; i < WF_N_DTYPES; i++) {
    if (strcmp(name, table[i].name) == 0) {
      *dtype = (wf_dtype)i;
      return true;
    }
  }
  return false;
}
