"""Makes the golden vectors beside this file: what PyTorch and transformers say, for the C tests to compare with.

    python tests/golden/make_golden.py [FOLDER]

Needs torch, transformers and safetensors; Weft and its tests need none of them, they read the committed files.
Every number that is an input is exact in float32. Optimiser and op vectors are computed in float64, the models in
float32 as transformers runs them. README.md lists names, shapes and conventions.
"""
import math
import os
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = sys.argv[1] if len(sys.argv) > 1 else HERE
F64 = torch.float64


def randn(*shape, scale=1.0):
    """Normal draws that float32 holds exactly, as float64."""
    return (torch.randn(*shape) * scale).to(F64)


def save(name, tensors):
    ready = {}
    for key, t in tensors.items():
        t = t.detach().clone()
        ready[key] = (t.reshape(1) if t.dim() == 0 else t).contiguous()
    path = os.path.join(OUT, name + ".safetensors")
    save_file(ready, path)
    print(f"{name}: {len(ready)} tensors, {os.path.getsize(path)} bytes")


def err2(a, b):
    a, b = a.detach().to(F64), b.detach().to(F64)
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


# --- models -------------------------------------------------------------------------------------------------------


def scatter_parameters(model):
    """Values large enough that every parameter matters: the usual 0.02 would leave the attention flat."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = "ln_" in name or "norm" in name
            if norm and name.endswith("weight"):
                p.copy_(1.0 + 0.2 * torch.randn(p.shape))
            elif name.endswith("bias"):
                p.copy_(0.2 * torch.randn(p.shape))
            elif "wte" in name or "wpe" in name or "embed" in name:
                p.copy_(0.5 * torch.randn(p.shape))
            else:
                p.copy_(0.25 * torch.randn(p.shape))


def run_model(model, ids, labels):
    model.zero_grad(set_to_none=True)
    out = model(input_ids=ids, labels=labels, use_cache=False)
    out.loss.backward()
    grads = {"grad." + n: p.grad for n, p in model.named_parameters()}
    return {"logits": out.logits, "loss": out.loss, **grads}


def model_file(name, model, batch, tokens, config_name, scatter=scatter_parameters):
    model.eval()
    scatter(model)
    vocab = model.config.vocab_size
    ids = torch.randint(0, vocab, (batch, tokens))
    labels = torch.randint(0, vocab, (batch, tokens))
    # the same labels as Weft counts them: target t belongs to logits t, -1 is not counted
    targets = torch.cat([labels[:, 1:], torch.full((batch, 1), -1)], dim=1)
    parameters = {n: p for n, p in model.named_parameters()}
    result = run_model(model, ids, labels)
    save(name, {"input_ids": ids, "labels": labels, "targets": targets, **parameters, **result})
    with open(os.path.join(OUT, config_name), "w", encoding="utf-8") as f:
        f.write(saved_config(model))
    exact = run_model(model.double(), ids, labels)
    worst = max(err2(result[k], exact[k]) for k in exact)
    print(f"  loss {result['loss'].item():.6f}, worst err2 of float32 against float64: {worst:.1e}")


def saved_config(model):
    """config.json as save_pretrained writes it."""
    model.config.architectures = [type(model).__name__]
    return model.config.to_json_string(use_diff=True).rstrip() + "\n"


def gpt2():
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=61, n_positions=16, n_embd=32, n_layer=2, n_head=4, activation_function="gelu_new",
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, layer_norm_epsilon=1e-5,
                        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
    config._attn_implementation = "eager"
    model_file("gpt2", GPT2LMHeadModel(config), 2, 13, "gpt2_config.json")


def llama(name, seed, batch, tokens, **sizes):
    torch.manual_seed(seed)
    config = LlamaConfig(max_position_embeddings=64, hidden_act="silu", attention_bias=False, mlp_bias=False,
                         attention_dropout=0.0, bos_token_id=0, eos_token_id=0, **sizes)
    config._attn_implementation = "eager"
    model_file(name, LlamaForCausalLM(config), batch, tokens, name + "_config.json")


# --- optimisers ---------------------------------------------------------------------------------------------------

STEPS = 10


def gradients(shapes):
    """Start values and one gradient a step for each named tensor; sizes spread over four decades."""
    start = {n: randn(*s) for n, s in shapes.items()}
    grads = {n: [randn(*s, scale=10.0 ** (-(i % 4))) for i in range(STEPS)] for n, s in shapes.items()}
    return start, grads


def optimiser_record(prefix, start, grads, after):
    rec = {}
    for n in start:
        rec[f"{prefix}{n}.start"] = start[n].float()
        for i in range(STEPS):
            rec[f"{prefix}{n}.grad.{i}"] = grads[n][i].float()
            rec[f"{prefix}{n}.step.{i}"] = after[n][i].float()
    return rec


def run_torch_optimiser(make, start, grads):
    params = {n: torch.nn.Parameter(t.clone()) for n, t in start.items()}
    opt = make(list(params.values()))
    after = {n: [] for n in start}
    for i in range(STEPS):
        for n, p in params.items():
            p.grad = grads[n][i].clone()
        opt.step()
        for n, p in params.items():
            after[n].append(p.detach().clone())
    return after, {n: opt.state[p] for n, p in params.items()}


def adamw():
    torch.manual_seed(11)
    start, grads = gradients({"w": (7, 5), "b": (5,)})
    after, state = run_torch_optimiser(
        lambda ps: torch.optim.AdamW(ps, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1), start, grads)
    rec = optimiser_record("", start, grads, after)
    for n in start:
        rec[n + ".exp_avg"] = state[n]["exp_avg"].float()
        rec[n + ".exp_avg_sq"] = state[n]["exp_avg_sq"].float()
    save("adamw", rec)


def sgd():
    torch.manual_seed(12)
    start, grads = gradients({"w": (7, 5), "b": (5,)})
    rec = {}
    for kind, extra in {"momentum": {}, "nesterov": {"nesterov": True}, "l2": {"weight_decay": 0.1}}.items():
        after, _ = run_torch_optimiser(lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, **extra), start, grads)
        for n in start:
            for i in range(STEPS):
                rec[f"{kind}.{n}.step.{i}"] = after[n][i].float()
    for n in start:
        rec[n + ".start"] = start[n].float()
        for i in range(STEPS):
            rec[f"{n}.grad.{i}"] = grads[n][i].float()
    save("sgd", rec)


def lion():
    """Chen et al. 2023, algorithm 2: c = b1 m + (1-b1) g; p -= lr (sign(c) + wd p); m = b2 m + (1-b2) g."""
    torch.manual_seed(13)
    lr, b1, b2, wd = 0.003, 0.9, 0.99, 0.1
    start, grads = gradients({"w": (7, 5), "b": (5,)})
    for i in range(STEPS):  # this element never sees a gradient: sign(0) = 0, so only the decay moves it
        grads["w"][i][3, 2] = 0.0
    after, rec = {n: [] for n in start}, {}
    for n in start:
        p, m = start[n].clone(), torch.zeros_like(start[n])
        for i in range(STEPS):
            g = grads[n][i]
            c = b1 * m + (1 - b1) * g
            near = (c.abs() < 1e-6) & (c != 0)
            assert not near.any(), "a sign that float32 could turn: take another seed"
            p = p - lr * (torch.sign(c) + wd * p)
            m = b2 * m + (1 - b2) * g
            after[n].append(p.clone())
        rec[n + ".exp_avg"] = m.float()
    rec.update(optimiser_record("", start, grads, after))
    save("lion", rec)


def newton_schulz(g, steps=5):
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.mT if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if g.shape[0] > g.shape[1] else x


def muon_steps(start, grads, lr, mu, wd):
    p, m, after = start.clone(), torch.zeros_like(start), []
    for g in grads:
        m = mu * m + (1 - mu) * g
        u = newton_schulz((1 - mu) * g + mu * m) * max(1.0, g.shape[0] / g.shape[1]) ** 0.5
        p = p * (1 - lr * wd) - lr * u
        after.append(p.clone())
    return after, m


def muon():
    """Jordan 2024: Nesterov momentum as a moving average, five quintic Newton-Schulz steps, no bf16 anywhere."""
    torch.manual_seed(14)
    lr, mu, wd = 0.02, 0.95, 0.1
    start, grads = gradients({"tall": (12, 5), "wide": (5, 12), "square": (7, 7)})
    after, rec, worst = {}, {}, 0.0
    for n in start:
        after[n], m = muon_steps(start[n], grads[n], lr, mu, wd)
        rec[n + ".momentum"] = m.float()
        rec[n + ".orthogonal"] = newton_schulz(grads[n][0]).float()
        single, _ = muon_steps(start[n].float(), [g.float() for g in grads[n]], lr, mu, wd)
        worst = max(worst, err2(single[-1] - start[n], after[n][-1] - start[n]))
    rec.update(optimiser_record("", start, grads, after))
    save("muon", rec)
    print(f"  err2 of the whole movement in float32 against float64: {worst:.1e}")


def clip():
    torch.manual_seed(15)
    rec = {}
    grads = {"a": randn(7, 5), "b": randn(5, scale=3.0), "c": randn(3, 2, 4)}
    for kind, limit in {"clipped": 1.0, "untouched": 100.0}.items():
        params = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads.values()]
        for p, g in zip(params, grads.values()):
            p.grad = g.clone()
        norm = torch.nn.utils.clip_grad_norm_(params, limit)
        for n, p in zip(grads, params):
            rec[f"{n}.{kind}"] = p.grad.float()
    for n, g in grads.items():
        rec[n + ".grad"] = g.float()
    rec["norm"] = norm.float()
    save("clip", rec)


# --- ops (float64) ------------------------------------------------------------------------------------------------


def record(rec, prefix, fn, inputs, outputs, keep_inputs=True):
    """Calls fn(**inputs) and notes outputs, random cotangents d<output> and gradients d<input>."""
    assert all(torch.equal(t, t.float().to(t.dtype)) for t in inputs.values())
    leaves = {n: t.detach().clone().requires_grad_(t.is_floating_point()) for n, t in inputs.items()}
    result = fn(**leaves)
    result = result if isinstance(result, tuple) else (result,)
    cotangents = [randn(*r.shape) for r in result]
    wanted = {n: t for n, t in leaves.items() if t.requires_grad}
    grads = torch.autograd.grad(result, list(wanted.values()), cotangents)
    if keep_inputs:
        rec.update({f"{prefix}.{n}": t for n, t in inputs.items()})
    for n, r, d in zip(outputs, result, cotangents):
        rec[f"{prefix}.{n}"] = r
        rec[f"{prefix}.d{n}"] = d
    for n, g in zip(wanted, grads):
        rec[f"{prefix}.d{n}"] = g
    return result


def attention(q, k, v, sink=None, logf=None, alibi=False, window=0, softcap=0.0, sigmoid_n=0):
    """q (B, T, H, D), k and v (B, T, Hk, .): soft cap, then biases, then masks; the sink only in the denominator."""
    heads, length = q.shape[2], q.shape[1]
    k = k.repeat_interleave(heads // k.shape[2], dim=2)
    v = v.repeat_interleave(heads // v.shape[2], dim=2)
    s = torch.einsum("bthd,bjhd->bhtj", q, k) / math.sqrt(q.shape[-1])
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    t = torch.arange(length)
    gap = (t[:, None] - t[None, :]).to(F64)
    if alibi:
        slope = 2.0 ** (-8.0 * (torch.arange(heads, dtype=F64) + 1) / heads)
        s = s - slope[None, :, None, None] * gap
    if logf is not None:
        c = logf.cumsum(dim=1).transpose(1, 2)  # (B, H, T)
        s = s + c[:, :, :, None] - c[:, :, None, :]
    hidden = gap < 0
    if window:
        hidden = hidden | (gap >= window)
    if sigmoid_n:
        p = torch.sigmoid(s - math.log(sigmoid_n)).masked_fill(hidden, 0.0)
    else:
        s = s.masked_fill(hidden, -math.inf)
        lse = torch.logsumexp(s, dim=-1, keepdim=True)
        if sink is not None:
            lse = torch.logaddexp(lse, sink[None, :, None, None].expand_as(lse))
        p = torch.exp(s - lse)
    return torch.einsum("bhtj,bjhd->bthd", p, v)


def attention_ops(rec):
    batch, length, heads, kv, dim, vdim = 2, 13, 6, 2, 6, 5
    base = {"q": randn(batch, length, heads, dim, scale=2.0), "k": randn(batch, length, kv, dim),
            "v": randn(batch, length, kv, vdim)}
    sink = {"sink": randn(heads)}
    logf = {"logf": (-torch.rand(batch, length, heads)).to(F64)}
    rec.update({f"attend.{n}": t for n, t in {**base, **sink, **logf}.items()})

    def case(name, inputs, **options):
        return record(rec, "attend." + name, lambda **kw: attention(**kw, **options), inputs, ["o"], False)[0]

    o = case("causal", base)
    q, k, v = (base[n].transpose(1, 2) for n in "qkv")
    ref = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    assert err2(o, ref) < 1e-14
    case("alibi", base, alibi=True)
    case("window", base, window=5)
    case("softcap", base, softcap=3.0)
    case("sink", {**base, **sink})
    case("forget", {**base, **logf})
    case("sigmoid", base, sigmoid_n=16)
    case("all", {**base, **sink, **logf}, alibi=True, window=5, softcap=3.0)


def rotary(x, fraction=1.0, base=10000.0, first=0):
    """Half-split pairs (i, i + n/2) of the first n = fraction * D channels; the rest pass. x (B, T, H, D)."""
    n = int(x.shape[-1] * fraction)
    pos = torch.arange(first, first + x.shape[1], dtype=F64)
    angle = pos[:, None] * base ** (-torch.arange(0, n, 2, dtype=F64) / n)
    cos, sin = torch.cos(angle)[None, :, None, :], torch.sin(angle)[None, :, None, :]
    a, b, rest = x[..., : n // 2], x[..., n // 2 : n], x[..., n:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def rotary_ops(rec):
    x = {"x": randn(2, 9, 3, 8)}
    rec["rotary.x"] = x["x"]
    record(rec, "rotary.full", rotary, x, ["y"], False)
    record(rec, "rotary.partial", lambda x: rotary(x, fraction=0.5), x, ["y"], False)
    record(rec, "rotary.far", lambda x: rotary(x, first=5000), x, ["y"], False)


def norm_ops(rec):
    x, w, b = (randn(11, 10, scale=2.0) + 0.5).float().to(F64), randn(10), randn(10)
    x[4] *= 2.0**-12  # a row small enough for eps to count
    record(rec, "rmsnorm", lambda x, weight: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight,
           {"x": x, "weight": w}, ["y"])
    record(rec, "layernorm", lambda x, weight, bias: F.layer_norm(x, (10,), weight, bias, 1e-5),
           {"x": x, "weight": w, "bias": b}, ["y"])


def activation_ops(rec):
    x = randn(9, 7, scale=2.0)
    x[0] = torch.tensor([0.0, -20.0, 20.0, -90.0, 90.0, -5.0, 1e-4], dtype=torch.float32).to(F64)
    x = {"x": x}
    rec["act.x"] = x["x"]
    record(rec, "act.gelu_erf", lambda x: F.gelu(x), x, ["y"], False)
    record(rec, "act.gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), x, ["y"], False)
    record(rec, "act.silu", lambda x: F.silu(x), x, ["y"], False)
    record(rec, "act.relu2", lambda x: F.relu(x).square(), x, ["y"], False)
    record(rec, "swiglu", lambda gate, up: F.silu(gate) * up, {"gate": x["x"], "up": randn(9, 7)}, ["y"])


def cross_entropy_ops(rec):
    rows, vocab = 17, 23
    logits = randn(rows, vocab, scale=3.0)
    logits[2] += 512.0  # a large common offset must not matter
    logits[3] -= 512.0
    logits = logits.float().to(F64)
    targets = torch.randint(0, vocab, (rows,))
    targets[torch.tensor([0, 5, 16])] = -1
    counted = targets >= 0

    def losses(x):
        lse = torch.logsumexp(x, dim=-1)
        nll = lse - x.gather(1, targets.clamp_min(0)[:, None])[:, 0]
        return lse, nll * counted, nll[counted].mean(), lse[counted].square().mean()

    x = logits.clone().requires_grad_(True)
    lse, nll, mean, z = losses(x)
    assert err2(mean, F.cross_entropy(logits, targets, ignore_index=-1)) < 1e-14
    rec.update({"ce.logits": logits, "ce.targets": targets, "ce.lse": lse, "ce.nll": nll, "ce.loss": mean})
    (rec["ce.dlogits"],) = torch.autograd.grad(mean, x, retain_graph=True)
    rec["ce.z.loss"] = mean + 0.01 * z
    (rec["ce.z.dlogits"],) = torch.autograd.grad(mean + 0.01 * z, x)


def conv_ops(rec):
    def conv(x, weight, bias):
        pad = F.pad(x.transpose(1, 2), (weight.shape[-1] - 1, 0))
        return F.conv1d(pad, weight, bias, groups=weight.shape[0]).transpose(1, 2)

    record(rec, "conv", conv, {"x": randn(2, 9, 5), "weight": randn(5, 1, 4), "bias": randn(5)}, ["y"])


def gla(q, k, v, g, s0):
    """S_t = e^{g_t} S_{t-1} + k_t^T v_t, o_t = K^{-1/2} q_t S_t, token by token. q, k (B, T, H, K), g (B, T, H)."""
    state, out = s0, []
    for t in range(q.shape[1]):
        state = torch.exp(g[:, t])[..., None, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * q.shape[-1] ** -0.5, state))
    return torch.stack(out, dim=1), state


def gla_ops(rec):
    batch, length, heads, kdim, vdim = 2, 70, 3, 5, 4
    g = F.logsigmoid(torch.randn(batch, length, heads)) / 16
    g[0, 7, 0], g[0, 20, 1], g[1, 33, 2], g[1, 40, :] = 0.0, -5.0, -50.0, -1.0
    g[1, 10:20, 0] = 0.0
    record(rec, "simple_gla", gla,
           {"q": randn(batch, length, heads, kdim), "k": randn(batch, length, heads, kdim),
            "v": randn(batch, length, heads, vdim), "g": g.to(F64), "s0": randn(batch, heads, kdim, vdim)},
           ["o", "s1"])


def ops():
    torch.manual_seed(21)
    rec = {}
    attention_ops(rec)
    rotary_ops(rec)
    norm_ops(rec)
    activation_ops(rec)
    cross_entropy_ops(rec)
    conv_ops(rec)
    gla_ops(rec)
    assert all(t.dtype in (F64, torch.int64) and torch.isfinite(t).all() for t in rec.values())
    save("ops", rec)


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    os.makedirs(OUT, exist_ok=True)
    gpt2()
    llama("llama", 2, 2, 13, vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
          num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=False,
          rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    llama("llama_tied", 3, 3, 7, vocab_size=53, hidden_size=30, intermediate_size=37, num_hidden_layers=3,
          num_attention_heads=3, num_key_value_heads=1, head_dim=10, rms_norm_eps=1e-5, tie_word_embeddings=True,
          rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    adamw()
    sgd()
    lion()
    muon()
    clip()
    ops()


if __name__ == "__main__":
    main()
