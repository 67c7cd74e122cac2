/* Small models of every family, weights and configs as the references write them: logits, loss and every
 * gradient against PyTorch's, in float32. */
#include "tests/experiments/golden_model.h"

static const char *const models[] = {"gpt2",   "llama", "llama_tied", "mamba",    "mamba2",
                                     "retnet", "gla",   "hgrn2",      "deltanet", "gated_deltanet",
                                     "kda",    "xlstm", "xlstm_large"};
enum { N_MODELS = sizeof models / sizeof *models };
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

/* Gradients that cancel, to nothing or nearly, are measured together with their kin: the key part of a bias
 * under a softmax, which does not see a shift of all scores (GPT-2 holds q, k and v in one); the bias of an
 * mLSTM's input gate, a shift that the normalised read hardly sees. */
static const struct {
  const char *end, *with;
} together[] = {{"mixer.k.bias", "mixer.q.bias"},
                {"mixer.v.bias", "mixer.q.bias"},
                {"mixer.igate.bias", "mixer.igate.weight"},
                {"mixer.igate_preact.bias", "mixer.igate_preact.weight"}};
enum { N_TOGETHER = sizeof together / sizeof *together };

static int kin_of(const char *name) {
  for (int i = 0; i < N_TOGETHER; i++)
    if (strstr(name, together[i].end)) return i;
  return -1;
}

static double gradient_error(const wf_params *ps, const wf_param *p) {
  double d = 0, s = 0;
  char name[128];
  add_error(p, &d, &s);
  for (int i = 0; i < N_TOGETHER; i++) {
    const char *tail = strstr(p->name, together[i].with);
    if (!tail) continue;
    snprintf(name, sizeof name, "%.*s%s", (int)(tail - p->name), p->name, together[i].end);
    const wf_param *kin = wf_params_find(ps, name);
    if (kin) add_error(kin, &d, &s);
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
    if (kin_of(name) >= 0) continue;
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
  tcase_add_loop_test(c, logits, 0, N_MODELS);
  tcase_add_loop_test(c, gradients, 0, N_MODELS);
  suite_add_tcase(s, c);
  return s;
}

WF_CHECK_MAIN(golden_suite)
