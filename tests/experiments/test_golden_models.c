/* A GPT-2-like and two Llama-like models, weights and configs as transformers writes them: logits, loss and
 * every gradient against PyTorch's, in float32. */
#include "tests/experiments/golden_model.h"

static const char *const models[] = {"gpt2", "llama", "llama_tied"};
static const double limit = 1e-5;

START_TEST(logits) {
  golden g;
  golden_open(&g, models[_i]);
  float *got = golden_logits(&g, g.m), *want = golden_floats(&g, "logits", g.n * g.vocab);
  double err = golden_err2(g.n * g.vocab, got, want);
  printf("%s: logits err2 %.1e\n", models[_i], err);
  ck_assert_double_lt(err, limit);
  free(got);
  free(want);
  golden_close(&g);
}
END_TEST

static float *to_host(const wf_tensor *t) {
  float *x = malloc((size_t)wf_numel(t) * sizeof *x);
  OK(wf_to_host(t, x));
  return x;
}

static void add_error(const wf_param *p, double *d, double *s) {
  float *want = to_host(p->value), *got = to_host(p->leaf.grad);
  for (int64_t e = 0; e < p->numel; e++) {
    *d += pow((double)got[e] - (double)want[e], 2);
    *s += pow((double)want[e], 2);
  }
  free(want);
  free(got);
}

/* The key part of a bias gradient is zero by mathematics (softmax does not see a shift of all scores), so the
 * biases of q, k and v are measured together, as GPT-2 holds them. */
static double gradient_error(const wf_params *ps, const wf_param *p) {
  double d = 0, s = 0;
  char name[128];
  const char *tail = strstr(p->name, "mixer.q.bias");
  add_error(p, &d, &s);
  for (const char *kv = "kv"; tail && *kv; kv++) {
    snprintf(name, sizeof name, "%.*smixer.%c.bias", (int)(tail - p->name), p->name, *kv);
    add_error(wf_params_find(ps, name), &d, &s);
  }
  return sqrt(d / s);
}

static void check_gradients(const golden *g, int64_t stream) {
  wf_params *ps = wf_model_params(g->m);
  wf_tokens tokens = {g->batch, g->batch, g->n, g->row, g->ids, g->labels};
  wf_step step = {.stream = stream};
  double sum, worst = 0;
  int64_t counted = g->batch * (g->length - 1);
  OK(wf_family_read(g->family, g->st, "", ps));
  wf_params_reset(ps);
  wf_params_hold(ps);
  OK(wf_step_gradient(g->m, &step, &tokens, 1 / (double)counted, true, &sum));
  float *loss = golden_floats(g, "loss", 1);
  double loss_error = fabs(sum / (double)counted / (double)loss[0] - 1);
  ck_assert_double_lt(loss_error, limit);
  free(loss);
  OK(wf_family_read(g->family, g->st, "grad.", ps)); /* the wanted gradients take the weights' place */
  for (int i = 0; i < ps->n; i++) {
    const char *name = ps->param[i]->name;
    if (strstr(name, "mixer.k.bias") || strstr(name, "mixer.v.bias")) continue;
    double err = gradient_error(ps, ps->param[i]);
    ck_assert_msg(err < limit, "%s: err2 %.2e", name, err);
    if (err > worst) worst = err;
  }
  printf("%s%s: loss %.1e, worst of %d gradients err2 %.1e\n", wf_family_name(g->family),
         stream ? " in pieces" : "", loss_error, ps->n, worst);
}

START_TEST(gradients) {
  golden g;
  golden_open(&g, models[_i]);
  check_gradients(&g, 0);
  check_gradients(&g, 5); /* streamed */
  golden_close(&g);
}
END_TEST

static Suite *golden_suite(void) {
  Suite *s = suite_create("golden models");
  TCase *c = tcase_create("golden models");
  tcase_add_loop_test(c, logits, 0, 3);
  tcase_add_loop_test(c, gradients, 0, 3);
  suite_add_tcase(s, c);
  return s;
}

WF_CHECK_MAIN(golden_suite)
