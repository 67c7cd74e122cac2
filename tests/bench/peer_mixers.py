"""Public pure-PyTorch chunk forms of recurrences as the peers of `weft bench scan`: forward and backward at B 1 in
float32, a line of JSON for each.

    python tests/bench/peer_mixers.py [NAME...] [--threads 2] [--tokens 2048] [--heads 4] [--size 64]
                                      [--seconds 4] [--repeats 3]

Needs torch, and for their rows flash-linear-attention (`pip install --no-deps flash-linear-attention fla-core`, einops),
mlstm_kernels and transformers. A row whose package is missing says so. Inputs are [1, T, H, K] as the functions want
them; keys of the delta rule have unit length; the gradient of every input is formed.
"""
import argparse
import importlib
import json
import statistics
import sys
import time


def measure(step, seconds, repeats):
    step()
    times, end = [], time.perf_counter() + seconds
    while len(times) < repeats or (time.perf_counter() < end and len(times) < 1000):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def inputs(a, decay=None, beta=False, heads_first=False):
    import torch
    import torch.nn.functional as F
    generator = torch.Generator().manual_seed(1)
    shape = (1, a.heads, a.tokens, a.size) if heads_first else (1, a.tokens, a.heads, a.size)

    def normal(*s):
        return torch.randn(*s, generator=generator)

    x = [normal(*shape), normal(*shape), normal(*shape)]
    if beta:
        x[1] = F.normalize(x[1], dim=-1)
    if decay == "scalar":
        x.append(F.logsigmoid(normal(*shape[:3])) / 16)
    if decay == "channel":
        x.append(F.logsigmoid(normal(*shape)) / 16)
    if beta:
        x.append(torch.sigmoid(normal(*shape[:3])))
    return [t.requires_grad_() for t in x]


def from_fla(module, function, **what):
    def make(a):
        f = getattr(importlib.import_module("fla.ops." + module), function)
        x = inputs(a, **what)
        return lambda: f(*x), x
    return make


def mlstm(a):
    import torch
    f = importlib.import_module("mlstm_kernels.torch.chunkwise.native.fwbw").mlstm_chunkwise__native_custbw
    x = inputs(a, heads_first=True)
    gates = [torch.randn(1, a.heads, a.tokens).requires_grad_() for _ in range(2)]
    return lambda: f(*x, *gates, chunk_size=64), x + gates


def mamba(a):
    """The scan of transformers' slow path, the form of mamba_ssm's reference: a loop over tokens."""
    import torch
    d, n = a.heads * a.size, 16
    x, dt = torch.randn(1, d, a.tokens), torch.rand(1, d, a.tokens) * 0.1
    big_a = -torch.arange(1, n + 1, dtype=torch.float32).repeat(d, 1)
    b, c = torch.randn(1, a.tokens, n), torch.randn(1, a.tokens, n)
    leaves = [t.requires_grad_() for t in (x, dt, big_a, b, c)]

    def run():
        decay = torch.exp(big_a[None, :, None, :] * dt[:, :, :, None])
        write = dt[:, :, :, None] * b[:, None] * x[..., None]
        state, out = torch.zeros(1, d, n), []
        for keep, new, read in zip(decay.unbind(2), write.unbind(2), c.unbind(1)):
            state = keep * state + new
            out.append(torch.matmul(state, read.unsqueeze(-1))[..., 0])
        return torch.stack(out, dim=-1)
    return run, leaves


# Weft's name of the row: the peer and what it is.
ROWS = {
    "plain": (from_fla("linear_attn.naive", "naive_chunk_linear_attn"), "fla naive_chunk_linear_attn"),
    "scalar": (from_fla("simple_gla.naive", "naive_chunk_simple_gla", decay="scalar"), "fla naive_chunk_simple_gla"),
    "delta": (from_fla("delta_rule.naive", "delta_rule_chunkwise", beta=True, heads_first=True),
              "fla delta_rule_chunkwise"),
    "gated_delta": (from_fla("gated_delta_rule.naive", "naive_chunk_gated_delta_rule", decay="scalar", beta=True),
                    "fla naive_chunk_gated_delta_rule"),
    "channel_delta": (from_fla("kda.naive", "naive_chunk_kda", decay="channel", beta=True), "fla naive_chunk_kda"),
    "mlstm": (mlstm, "mlstm_kernels native chunkwise, its own backward"),
    "selective": (mamba, "the selective scan of transformers' slow path"),
}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("names", nargs="*")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tokens", type=int, default=2048)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--seconds", type=float, default=4)
    p.add_argument("--repeats", type=int, default=3)
    a = p.parse_args()
    for name in a.names:
        if name not in ROWS:
            sys.exit(f"no row {name!r}; there are {', '.join(ROWS)}")
    import torch
    torch.set_num_threads(a.threads)
    for name in a.names or ROWS:
        make, what = ROWS[name]
        line = {"name": name, "peer": what, "tokens": a.tokens, "heads": a.heads, "size": a.size}
        try:
            run, leaves = make(a)

            def step():
                out = run()
                out = out[0] if isinstance(out, tuple) else out
                torch.autograd.grad(out.sum(), leaves)

            times = measure(step, a.seconds, a.repeats)
            median = statistics.median(times)
            line |= {"median_s": median, "min_s": min(times), "tokens_per_s": a.tokens / median, "repeats": len(times)}
        except ImportError as e:
            line["skipped"] = str(e)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
