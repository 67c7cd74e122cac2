"""Runs a reference implementation of one mixer in float64 and writes what the C tests compare with.

Files are mixers/<name>.safetensors, described in README.md; make_mixers.py says which mixers there are.
"""
import os
import re
import zlib

import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

HERE = os.path.dirname(os.path.abspath(__file__))
D, LENGTHS = 16, (5, 67)  # two sequences; the second one crosses the border of a chunk of 64


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


def run(module, call, xs, dys):
    """Outputs and gradients of sum <dy, y> over the sequences, each alone."""
    module.zero_grad(set_to_none=True)
    xs = [x.clone().requires_grad_(True) for x in xs]
    ys = [call(module, x[None])[0] for x in xs]
    sum((y * dy).sum() for y, dy in zip(ys, dys)).backward()
    grads = {n: p.grad for n, p in module.named_parameters()}
    for n, g in grads.items():
        assert g is not None and torch.isfinite(g).all(), f"{n} has no gradient"
    return torch.cat([y.detach() for y in ys]), torch.cat([x.grad for x in xs]), grads


def golden(name, mixer, make, call=lambda module, x: module(x), parts=one_to_one, keep=(), d=D, lengths=LENGTHS,
           layer=0, layers=1, eps=1e-5, prepare=None):
    """mixer: name and options as Weft's tests write them. make(): the reference's module. parts(name, value,
    is_gradient): what a parameter of theirs, or its gradient, is in Weft's names."""
    torch.manual_seed(zlib.crc32(name.encode()))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with Double():
        module = make().double()
        scatter(module, keep)
        if prepare:
            with torch.no_grad():
                prepare(module)
        xs, dys = ([normal(t, d) for t in lengths] for _ in range(2))
        y, dx, grads = run(module, call, xs, dys)
    torch.set_default_dtype(before)
    tensors = {"x": torch.cat(xs), "dy": torch.cat(dys), "y": y, "dx": dx}
    for n, p in module.named_parameters():
        assert torch.equal(p, exact(p)), f"{n} is not exact in float32"
        for prefix, value in (("param.", exact(p)), ("grad.", grads[n])):
            for ours, part in parts(n, value, prefix == "grad.").items():
                assert prefix + ours not in tensors, f"{ours} twice"
                tensors[prefix + ours] = part
    assert all(t.dtype == torch.float64 for t in tensors.values()), "something ran in float32"
    metadata = {"mixer": mixer, "d_model": str(d), "layer": str(layer), "layers": str(layers),
                "norm_eps": repr(eps), "rows": ",".join(map(str, lengths))}
    path = os.path.join(HERE, "mixers", name + ".safetensors")
    save_file({k: t.detach().float().clone().contiguous() for k, t in tensors.items()}, path, metadata)
    print(f"{name}: {len(tensors)} tensors, {os.path.getsize(path)} bytes, |y| {y.square().mean().sqrt():.2g}, "
          f"|dx| {dx.square().mean().sqrt():.2g}", flush=True)
