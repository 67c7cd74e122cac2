/* weft bench mixers and weft bench scan: every mixer is measured, failures are told, the plot's script is one
 * that gnuplot takes.
 */
#define _GNU_SOURCE
#include <jansson.h>
#include <stdlib.h>

#include "core/file.h"
#include "core/memory.h"
#include "experiments/bench_scan.h"
#include "layers/layer.h"
#include "tests/check_main.h"
#include "tests/experiments/run_weft.h"

static const char quick[] = " --seconds 0 --repeats 1 --threads 1 --seq-len 8,33";

static void bench(const char *arguments, int code, const char *text) {
  char line[1000];
  snprintf(line, sizeof line, "bench mixers%s -d 64 %s", quick, arguments);
  expect(line, code, text);
}

START_TEST(a_row_has_its_figures) {
  bench("attention simple_gla --json --heads 2 --batch 3", 0, "");
  char *save = NULL;
  int n = 0;
  for (char *line = strtok_r(output, "\n", &save); line; line = strtok_r(NULL, "\n", &save), n++) {
    json_error_t e;
    json_t *o = json_loads(line, 0, &e);
    ck_assert_msg(o != NULL, "%s", line);
    ck_assert_str_eq(json_string_value(json_object_get(o, "mixer")), n < 2 ? "attention" : "simple_gla");
    ck_assert_int_eq(json_integer_value(json_object_get(o, "T")), n % 2 ? 33 : 8);
    static const char *const positive[] = {"forward_s", "both_s",    "tokens_per_s", "flops_per_token",
                                           "of_sgemm",  "tensor_mb", "peak_rss_mb"};
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++)
      ck_assert_msg(json_number_value(json_object_get(o, positive[i])) > 0, "%s: %s", positive[i], line);
    /* 4 projections of 64 x 64, then 4 x 64 operations for each of (T + 1) / 2 keys in the mean */
    if (n < 2) {
      ck_assert_int_eq(json_integer_value(json_object_get(o, "parameters")), 4 * 64 * 64);
      ck_assert_int_eq((int)json_number_value(json_object_get(o, "flops_per_token")),
                       2 * 4 * 64 * 64 + 2 * 64 * ((n ? 33 : 8) + 1));
    }
    json_decref(o);
  }
  ck_assert_int_eq(n, 4);
}
END_TEST

START_TEST(every_mixer_is_measured) {
  bench("-d 384", 0, "of sgemm"); /* the default: heads and head sizes of all defaults divide it */
  const wf_layer_type *t;
  for (int i = 0; (t = wf_layer_at(i)); i++) {
    if (t->kind != WF_LAYER_MIXER) continue;
    char row[60];
    const char *at = NULL;
    snprintf(row, sizeof row, "\n%-18s %9d ", t->name, 33);
    at = strstr(output, row);
    ck_assert_msg(at != NULL, "%s: %s", t->name, output);
    ck_assert_msg(strcspn(at + strlen(row), "0123456789") < strcspn(at + strlen(row), "-\n"), "%.200s",
                  at + 1);
  }
}
END_TEST

/* A token costs about the same anywhere where the state is fixed: not measured here, where other tests run.
 */
START_TEST(decoding_is_measured) {
  bench("attention simple_gla --generate --batch 2", 0, "a token of each sequence at position T\n");
  ck_assert_ptr_nonnull(strstr(output, "\nsimple_gla                33 "));
  bench("attention --generate --json", 0, "\"decode_s\": ");
  bench("simple_gla --generate --seq-len 0", 1, "\"0\" is no count");
  bench("simple_gla --generate --plot x.svg", 1, "--plot shows training, not --generate");
}
END_TEST

START_TEST(mistakes_are_told) {
  bench("atention", 1, "hint: did you mean attention?");
  bench("attention --set headz=3", 1, "none of these mixers has an option \"headz\"");
  bench("attention simple_gla --set conv=false", 0, "\nsimple_gla ");
  bench("attention simple_gla --set gate_norm=-1", 1, "simple_gla: gate_norm");
  bench("attention --plot x.pdf", 1, "a plot is a .png or .svg file, not x.pdf");
  bench("attention simple_gla --heads 5", 1, "error: none of the mixers could be measured");
  ck_assert_ptr_nonnull(strstr(output, "heads: 5 heads do not divide d_model 64"));
  /* one that fails leaves the others */
  bench("attention gateloop --set kv_heads=3", 0, "kv_heads: 3 do not divide heads: 4");
  ck_assert_ptr_nonnull(strstr(output, "\ngateloop                  33 "));
}
END_TEST

START_TEST(a_plot_needs_gnuplot) {
  char line[600];
  run("mkdir -p none with; printf '#!/bin/sh\\ncat > got\\n' > with/gnuplot; chmod +x with/gnuplot");
  setenv("PATH", "/nowhere", 1);
  bench("simple_gla --plot x.svg", 0, "weft: gnuplot is not installed: no plot is written\n");
  ck_assert_ptr_nonnull(strstr(output, "\nsimple_gla                33 "));
  snprintf(line, sizeof line, "%s/with:/usr/bin:/bin", temp_dir);
  setenv("PATH", line, 1);
  bench("simple_gla attention --plot \"it's.svg\"", 0, "plot: it's.svg\n");
  run("cat got");
  static const char *const parts[] = {"$d0 << E\n8 ",     "\n33 ",
                                      "$d1 << E\n",       "set output 'it''s.svg'\n",
                                      "set terminal svg", "$d1 using 1:3 with linespoints title 'attention'"};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    ck_assert_msg(strstr(output, parts[i]), "%s: %s", parts[i], output);
  run("printf '#!/bin/sh\\ncat > got; exit 3\\n' > with/gnuplot");
  bench("simple_gla --plot x.png", 1, "gnuplot failed with code 3");
  /* the real one */
  setenv("PATH", "/usr/local/bin:/usr/bin:/bin", 1);
  if (shell("command -v gnuplot > where") != 0) return;
  bench("simple_gla attention --plot x.png", 0, "plot: x.png\n");
  run("test $(wc -c < x.png) -gt 5000 && head -c 4 x.png | grep -q PNG");
}
END_TEST

START_TEST(the_family_is_measured) {
  expect("bench scan --seconds 0 --repeats 1 --threads 1 --size 5,16 --seq-len 7,70 --heads 3 --batch 2 "
         "--attention 10 "
         "--json",
         0, "");
  char *save = NULL;
  int n = 0, beside = 0, members = 0, refused = 0;
  for (const wf_bench_member *m = wf_bench_members; m->name; m++) members++;
  for (char *line = strtok_r(output, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
    if (strncmp(line, "weft: ", 6) == 0) { /* a member that has no kernel yet says so */
      ck_assert_msg(strstr(line, ": scan: no kernel for this decay and write"), "%s", line);
      refused++;
      continue;
    }
    json_error_t e;
    json_t *o = json_loads(line, 0, &e);
    ck_assert_msg(o != NULL, "%s", line);
    const wf_bench_member *m = wf_bench_members;
    while (m->name && strcmp(m->name, json_string_value(json_object_get(o, "member"))) != 0) m++;
    ck_assert_msg(m->name != NULL, "%s", line);
    const int64_t size = json_integer_value(json_object_get(o, "size")),
                  T = json_integer_value(json_object_get(o, "T"));
    ck_assert((size == 5 || size == 16) && (T == 7 || (T == 70 && m != wf_bench_members)));
    const double both = json_number_value(json_object_get(o, "both_s"));
    ck_assert_double_gt(both, 0);
    ck_assert_double_eq_tol(json_number_value(json_object_get(o, "ns_per_token")),
                            1e9 * both / (double)(2 * T), 1e6 * both);
    beside += json_object_get(o, "attention_s") != NULL;
    json_decref(o);
    n++;
  }
  ck_assert_int_eq(n + refused, 2 * (2 * members - 1)); /* attention at 7 alone */
  ck_assert_int_le(refused, members / 2);
  ck_assert_int_eq(beside, 2 * (members - 1) - refused / 2);
  expect("bench scan scaler", 1, "hint: did you mean scalar?");
  expect("bench scan scalar --size 0", 1, "--size: \"0\" is no count");
  expect("bench scan scalar --seconds 0 --repeats 1 --threads 1 --size 4 --seq-len 9 --chunk 1", 0,
         "\nscalar ");
  expect("bench scan channel --seconds 0 --repeats 1 --threads 1 --size 4 --seq-len 9 --against 1 --decay -5",
         0, "against: the time of chunks of 1 over this one's");
}
END_TEST

static Suite *suite(void) {
  Suite *s = suite_create("bench");
  TCase *t = tcase_create("bench");
  tcase_add_unchecked_fixture(t, temp_dir_make, temp_dir_remove);
  tcase_add_test(t, a_row_has_its_figures);
  tcase_add_test(t, every_mixer_is_measured);
  tcase_add_test(t, decoding_is_measured);
  tcase_add_test(t, mistakes_are_told);
  tcase_add_test(t, a_plot_needs_gnuplot);
  tcase_add_test(t, the_family_is_measured);
  suite_add_tcase(s, t);
  return s;
}

WF_CHECK_MAIN(suite)
