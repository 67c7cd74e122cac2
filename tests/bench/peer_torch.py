"""PyTorch as the peer of `weft bench`: the same work in float32, eager and compiled, a line of JSON for each.

    python tests/bench/peer_torch.py [nano small gpt2 attention decode] [--mode eager|compile|both]
                                     [--threads 2] [--seconds 8] [--repeats 5]

Each row and mode runs in a process of its own, so that peak RSS is its own. A training row is one whole step:
forward, mean cross-entropy, backward, fused AdamW. All models are GPT-2: pre-norm LayerNorm, fused q/k/v with bias,
F.scaled_dot_product_attention, tanh GELU of 4 d, learned positions, tied head, no dropout. The fields:
median_s, min_s, max_s (seconds per step, or per token for decode), peak_rss_mb, import_rss_mb (of that, PyTorch
itself before the model), repeats, and tokens_per_s. Where torch.compile does not work the row says so.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

# name: layers, width, heads, T, batch, vocabulary
MODELS = {
    "nano": (4, 128, 4, 64, 12, 256),
    "small": (6, 384, 6, 256, 8, 256),
    "gpt2": (12, 768, 12, 64, 4, 50257),
}
ROWS = [*MODELS, "attention", "decode"]
PROMPT, DECODED = 64, 128  # tokens of the decode row


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(step, seconds, repeats):
    """Three calls to warm up, then at least `repeats` and as many as fit in `seconds` (at most 1000)."""
    for _ in range(3):
        step()
    times, end = [], time.perf_counter() + seconds
    while len(times) < repeats or (time.perf_counter() < end and len(times) < 1000):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def build(layers, d, heads, length, vocab):
    import torch
    import torch.nn as nn
    import torch.nn.functional as F

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
            self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

        def forward(self, x, cache, at):
            b, t, _ = x.shape
            q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
            if cache is not None:
                cache[0][:, :, at : at + t] = k
                cache[1][:, :, at : at + t] = v
                k, v = cache[0][:, :, : at + t], cache[1][:, :, : at + t]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)  # t > 1 only where the cache is empty
            x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
            return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocab, d), nn.Embedding(length, d)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.LayerNorm(d)
            self.apply(self.start)

        @staticmethod
        def start(m):
            if isinstance(m, (nn.Linear, nn.Embedding)):
                nn.init.normal_(m.weight, std=0.02)
            if isinstance(m, nn.Linear):
                nn.init.zeros_(m.bias)

        def forward(self, ids, caches=None, at=0):
            x = self.wte(ids) + self.wpe.weight[at : at + ids.shape[1]]
            for i, block in enumerate(self.blocks):
                x = block(x, None if caches is None else caches[i], at)
            if caches is not None:
                x = x[:, -1:]
            return F.linear(self.norm(x), self.wte.weight)

        def loss(self, ids, targets):
            return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())

    torch.manual_seed(1)
    return Model()


def training(name, compiled, args):
    import torch

    layers, d, heads, length, batch, vocab = MODELS[name]
    model = build(layers, d, heads, length, vocab)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    loss_of = torch.compile(model.loss) if compiled else model.loss
    ids = torch.randint(0, vocab, (batch, length + 1))
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss_of(x, y).backward()
        optimizer.step()

    return measure(step, args.seconds, args.repeats), batch * length


def attention(compiled, args):
    import torch
    import torch.nn.functional as F

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    call = torch.compile(attend) if compiled else attend
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 8, 4096, 64, requires_grad=True) for _ in range(3))
    cotangent = torch.randn(1, 8, 4096, 64)

    def step():
        q.grad = k.grad = v.grad = None
        call(q, k, v).backward(cotangent)

    return measure(step, args.seconds, args.repeats), 4096


def decode(compiled, args):
    import torch

    layers, d, heads, _, _, vocab = MODELS["gpt2"]
    model = build(layers, d, heads, 1024, vocab).eval()
    call = torch.compile(model, dynamic=True) if compiled else model
    times = []
    with torch.no_grad():
        shape = (1, heads, PROMPT + DECODED, d // heads)
        caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(layers)]
        prompt = torch.randint(0, vocab, (1, PROMPT))
        for _ in range(2):  # the first round warms up (and compiles)
            token, times = model(prompt, caches, 0).argmax(-1), []
            for at in range(PROMPT, PROMPT + DECODED):
                start = time.perf_counter()
                token = call(token, caches, at).argmax(-1)
                times.append(time.perf_counter() - start)
    return times, 1


def child(args):
    import torch

    torch.set_num_threads(args.threads)
    before = peak_mb()
    name, compiled = args.rows[0], args.mode == "compile"
    row = {"name": name, "mode": args.mode}
    try:
        if name in MODELS:
            times, tokens = training(name, compiled, args)
        else:
            times, tokens = (attention if name == "attention" else decode)(compiled, args)
    except Exception as error:  # torch.compile fails in many ways where no compiler is found
        if not compiled:
            raise
        reason = str(error).strip().splitlines()[0]
        print(f"*** {name}: torch.compile does not work here, row skipped: {reason}", file=sys.stderr)
        print(json.dumps({**row, "skipped": reason}), flush=True)
        return
    median = statistics.median(times)
    row.update(median_s=median, min_s=min(times), max_s=max(times), repeats=len(times), tokens_per_s=tokens / median,
               peak_rss_mb=peak_mb(), import_rss_mb=before, threads=torch.get_num_threads(), torch=torch.__version__)
    print(json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=" ".join(ROWS) + " (default: all)")
    parser.add_argument("--mode", choices=["eager", "compile", "both"], default="both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="time each row for about this long")
    parser.add_argument("--repeats", type=int, default=5, help="but at least so many times")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in args.rows:
        if name not in ROWS:
            parser.error(f"no row {name}: choose from {' '.join(ROWS)}")
    if args.child:
        return child(args)
    failed = False
    for name in args.rows or ROWS:
        for mode in ["eager", "compile"] if args.mode == "both" else [args.mode]:
            command = [sys.executable, os.path.abspath(__file__), name, "--child", "--mode", mode, "--threads",
                       str(args.threads), "--seconds", str(args.seconds), "--repeats", str(args.repeats)]
            failed |= subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(args.threads)}).returncode != 0
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
