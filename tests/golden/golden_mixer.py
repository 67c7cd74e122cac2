"""Runs a reference implementation of one mixer in float64 and writes what the C tests compare with.

Files are mixers/<name>.safetensors, described in README.md; make_mixers.py says which mixers there are.
"""
import json
import os
import re
import zlib

import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mixers")
D, LENGTHS = 16, (5, 67)  # two sequences; the second one crosses the border of a chunk of 64
BEFORE = 7  # tokens before those of sequences that go on from a state


class Double(TorchFunctionMode):
    """References say float32 where they mean "precise enough": here that is float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        swap = lambda a: torch.float64 if a is torch.float32 else a
        return func(*map(swap, args), **{k: swap(a) for k, a in (kwargs or {}).items()})


def exact(t):
    """The nearest numbers that float32 holds, as float64; by numpy, which Double leaves alone."""
    return torch.from_numpy(t.detach().numpy().astype("float32").astype("float64"))


def normal(*shape, scale=1.0):
    return exact(torch.randn(*shape, dtype=torch.float64) * scale)


def scatter(module, keep=()):
    """Values at which every parameter matters. Those in `keep` stay near their initial ones."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            last = name.rsplit(".", 1)[-1]
            if any(k in name for k in keep):
                new = p + normal(*p.shape, scale=0.2)
            elif "norm" in name and last == "weight":
                new = p + normal(*p.shape, scale=0.2)
            elif last == "bias" or p.dim() < 2:
                new = normal(*p.shape, scale=0.3)
            elif "conv" in name:
                new = normal(*p.shape, scale=0.5)
            else:
                new = normal(*p.shape, scale=p.shape[-1] ** -0.5)
            p.copy_(exact(new))


def weft_name(name):
    """The brief rule: no _proj, conv for conv1d, norm for the norm of the output."""
    name = re.sub(r"(^|\.)(g_norm_swish_gate|g_norm|o_norm)\.weight$", r"\1norm.weight", name)
    name = re.sub(r"_proj(?=\.|$)", "", name)
    return name.replace("conv1d", "conv")


def one_to_one(name, value, is_gradient):
    return {weft_name(name): value}


def run(module, call, xs, dys, states=None, dlefts=None):
    """Outputs and gradients of sum <dy, y> over the sequences, each alone; with states that of sum <dleft, left> too,
    the states they left, and the gradients of those they began with."""
    module.zero_grad(set_to_none=True)
    xs = [x.clone().requires_grad_(True) for x in xs]
    lefts, dstates = [], []
    if states:
        states = [{k: t.clone().requires_grad_(True) for k, t in s.items()} for s in states]
        ys, lefts = zip(*((y[0], left) for y, left in (call(module, x[None], s) for x, s in zip(xs, states))))
    else:
        ys = [call(module, x[None])[0] for x in xs]
    ends = [(left[k] * dleft[k]).sum() for left, dleft in zip(lefts, dlefts or ()) for k in dleft]
    (sum((y * dy).sum() for y, dy in zip(ys, dys)) + sum(ends)).backward()
    grads = {n: p.grad for n, p in module.named_parameters()}
    if states:
        dstates = [{k: torch.zeros_like(t) if t.grad is None else t.grad for k, t in s.items()} for s in states]
    return torch.cat([y.detach() for y in ys]), torch.cat([x.grad for x in xs]), grads, lefts, dstates


def sort_metadata(path):
    """save_file writes them in any order; the same run shall give the same bytes."""
    with open(path, "r+b") as f:
        n = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(n))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= n
        f.seek(8)
        f.write(text.ljust(n))


def watch_terms(module, names):
    """For parameters of linear layers whose gradient is a sum over tokens that nearly cancels: the sum of the terms'
    sizes, filled by the backward."""
    terms = {}

    def add(key, value):
        terms[key] = terms.get(key, 0) + value.detach()

    def look(name):
        def hook(layer, inputs, output):
            x = inputs[0].detach().abs().flatten(0, -2)

            def at_backward(g):
                g = g.abs().flatten(0, -2)
                add(name + ".weight", g.T @ x)
                add(name + ".bias", g.sum(0))
            output.register_hook(at_backward)
        return hook

    for name in {n.rpartition(".")[0] for n in names}:
        module.get_submodule(name).register_forward_hook(look(name))
    return terms


def golden(name, mixer, make, call=lambda module, x: module(x), parts=one_to_one, keep=(), d=D, lengths=LENGTHS,
           layer=0, layers=1, eps=1e-5, prepare=None, unused=(), cancelling=(), state=None, constant=(), first=None):
    """mixer: name and options as Weft's tests write them. make(): the reference's module. parts(name, value,
    is_gradient): what a parameter of theirs, or its gradient, is in Weft's names. `cancelling`: see watch_terms.
    state: shapes of the state's slots in Weft's names; then each sequence goes on after BEFORE tokens from such a state,
    which first(state) may change, and call(module, x, state) returns y and the state after it. Of `constant`, (slot,
    index) each, no gradient is taken or given."""
    torch.manual_seed(zlib.crc32(name.encode()))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with Double():
        module = make().double()
        scatter(module, keep)
        if prepare:
            with torch.no_grad():
                prepare(module)
        terms = watch_terms(module, cancelling)
        xs, dys = ([normal(t, d) for t in lengths] for _ in range(2))
        states, dlefts = ([{k: normal(*s) for k, s in (state or {}).items()} for _ in lengths] for _ in range(2))
        for s in states if first else ():
            first(s)
        for slot, at in constant:
            for dleft in dlefts:
                dleft[slot][at] = 0
        y, dx, grads, lefts, dstates = run(module, call, xs, dys, state and states, dlefts)
        for slot, at in constant:
            for dstate in dstates:
                dstate[slot][at] = 0
    for n, p in module.named_parameters():
        assert (grads[n] is None) == (n in unused), f"{n}: gradient {grads[n]}"
        if n in unused:
            grads[n] = torch.zeros_like(p)
        assert grads[n].isfinite().all(), n
    torch.set_default_dtype(before)
    tensors = {"x": torch.cat(xs), "dy": torch.cat(dys), "y": y, "dx": dx}
    for n, p in module.named_parameters():
        assert torch.equal(p, exact(p)), f"{n} is not exact in float32"
        for prefix, value in (("param.", exact(p)), ("grad.", grads[n])):
            for ours, part in parts(n, value, prefix == "grad.").items():
                assert prefix + ours not in tensors, f"{ours} twice"
                tensors[prefix + ours] = part
    for slot in state or ():
        for what, each in (("state", states), ("dleft", dlefts), ("left", lefts), ("dstate", dstates)):
            tensors[f"{what}.{slot}"] = torch.stack([s[slot].detach() for s in each])
    assert all(t.dtype == torch.float64 for t in tensors.values()), "something ran in float32"
    metadata = {"mixer": mixer, "d_model": str(d), "layer": str(layer), "layers": str(layers),
                "norm_eps": repr(eps), "rows": ",".join(map(str, lengths))}
    if state:
        metadata["before"] = str(BEFORE)
    for n in cancelling:
        metadata |= {"terms." + ours: repr(part.norm().item()) for ours, part in parts(n, terms[n], True).items()}
    path = os.path.join(OUT, name + ".safetensors")
    save_file({k: t.detach().float().clone().contiguous() for k, t in tensors.items()}, path, metadata)
    sort_metadata(path)
    print(f"{name}: {len(tensors)} tensors, {os.path.getsize(path)} bytes, |y| {y.square().mean().sqrt():.2g}, "
          f"|dx| {dx.square().mean().sqrt():.2g}", flush=True)
