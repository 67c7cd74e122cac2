"""Mixers by their papers' equations, token by token, where no public module can be run."""
import math

import torch
import torch.nn.functional as F
from golden_mixer import D


class Lightning(torch.nn.Module):
    """The layer of TransNormerLLM by its equations, around fla's recurrence."""

    def __init__(self, heads, layer, layers, learned_angles):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.u_proj, self.o_proj = (
            torch.nn.Linear(D, D, bias=False) for _ in range(5))
        self.heads, self.decay = heads, -8 * torch.arange(heads) / heads * (1 - layer / layers)
        if learned_angles:
            self.theta = torch.nn.Parameter(torch.zeros(heads, D // heads))

    def forward(self, x):
        from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
        shape = (*x.shape[:2], self.heads, D // self.heads)
        q, k = F.silu(self.q_proj(x)), F.silu(self.k_proj(x))
        q, k, v = (t.reshape(shape) for t in (q, k, self.v_proj(x)))
        if hasattr(self, "theta"):
            angle = torch.arange(x.shape[1])[:, None, None] * self.theta
            q, k = (torch.cat([t * angle.cos(), t * angle.sin()], dim=-1) for t in (q, k))
        o, _ = naive_recurrent_simple_gla(q, k, v, self.decay.expand(shape[:3]), scale=shape[-1] ** -0.5)
        o = o.reshape(x.shape)
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return self.o_proj(o * self.u_proj(x).sigmoid())


class MinRNN(torch.nn.Module):
    """minGRU (gate z) and minLSTM (gates i, f), Feng et al. 2024; g is the paper's positive candidate."""

    def __init__(self, gates, width):
        super().__init__()
        self.h = torch.nn.Linear(D, width)
        for gate in gates:
            setattr(self, gate, torch.nn.Linear(D, width))
        if width != D:
            self.o = torch.nn.Linear(width, D, bias=False)

    def forward(self, x):
        h = self.h(x)
        h = torch.where(h >= 0, h + 0.5, h.sigmoid())
        if hasattr(self, "z"):
            write = self.z(x).sigmoid()
            keep = 1 - write
        else:
            i, f = self.i(x).sigmoid(), self.f(x).sigmoid()
            write, keep = i / (i + f), f / (i + f)
        y, state = [], torch.zeros_like(h[:, 0])
        for t in range(x.shape[1]):
            state = keep[:, t] * state + write[:, t] * h[:, t]
            y.append(state)
        y = torch.stack(y, dim=1)
        return self.o(y) if hasattr(self, "o") else y


class Aaren(torch.nn.Module):
    """Feng et al. 2024 (Attention as an RNN): softmax attention of one learned query over each prefix."""

    def __init__(self, heads):
        super().__init__()
        self.query = torch.nn.Parameter(torch.zeros(heads, D // heads))
        self.k_proj, self.v_proj, self.o_proj = (torch.nn.Linear(D, D, bias=False) for _ in range(3))

    def forward(self, x):
        heads, width = self.query.shape
        k, v = (f(x).unflatten(-1, (heads, width)) for f in (self.k_proj, self.v_proj))
        score = (k * self.query).sum(-1) * width ** -0.5
        y = [(score[:, :t + 1].softmax(1)[..., None] * v[:, :t + 1]).sum(1) for t in range(x.shape[1])]
        return self.o_proj(torch.stack(y, dim=1).flatten(-2))


class BaseConv(torch.nn.Module):
    """Arora et al. 2023: (x W + b) . (conv(x) + b2)."""

    def __init__(self, width):
        super().__init__()
        self.projection = torch.nn.Linear(D, D)
        self.conv = torch.nn.Conv1d(D, D, width, groups=D, padding=width - 1)

    def forward(self, x):
        return self.projection(x) * self.conv(x.transpose(1, 2))[..., :x.shape[1]].transpose(1, 2)


class GateLoop(torch.nn.Module):
    """Katsch 2023: linear attention with data-controlled decays, complex where `turning`."""

    def __init__(self, heads, turning):
        super().__init__()
        self.heads, self.width = heads, D // 2 // heads
        self.q_proj, self.k_proj = (torch.nn.Linear(D, D // 2, bias=False) for _ in range(2))
        self.v_proj, self.g_proj, self.o_proj = (torch.nn.Linear(D, D, bias=False) for _ in range(3))
        self.a = torch.nn.Linear(D, D // 2)
        if turning:
            self.theta = torch.nn.Linear(D, D // 2, bias=False)
        self.norm = torch.nn.RMSNorm(D // heads, eps=1e-5)

    def forward(self, x):
        q, k, v, a = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q_proj, self.k_proj, self.v_proj, self.a))
        turn = self.theta(x).unflatten(-1, (self.heads, -1)) if hasattr(self, "theta") else torch.zeros_like(a)
        decay = torch.polar(a.sigmoid(), turn)
        state = torch.zeros(x.shape[0], self.heads, self.width, v.shape[-1], dtype=torch.complex128)
        y = []
        for t in range(x.shape[1]):
            state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
            y.append((q[:, t, :, :, None] * state.real).sum(2) * self.width ** -0.5)
        o = self.norm(torch.stack(y, dim=1)).flatten(-2)
        return self.o_proj(o * F.silu(self.g_proj(x)))


# ---- attention's relatives -----------------------------------------------------------------------------------------


def rotary(x, base=10000.0):
    """x (batch, T, heads, K): channels i and i + K/2 are turned by t base^(-2i/K)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None, None] * base ** -(torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def scores(q, k):
    """Scaled products of all heads, (batch, heads, T, T), and where they count: j <= t."""
    t = q.shape[1]
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    return torch.einsum("bthk,bjhk->bhtj", q, k) * q.shape[-1] ** -0.5, torch.ones(t, t, dtype=torch.bool).tril()


def weighted(p, v):
    """Values weighted by p, heads side by side: (batch, T, heads V)."""
    v = v.repeat_interleave(p.shape[1] // v.shape[2], dim=2)
    return torch.einsum("bhtj,bjhv->bthv", p, v).flatten(-2)


class Projected(torch.nn.Module):
    """q, k, v and the output projection of attention."""

    def __init__(self, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, D // heads
        self.q_proj, self.o_proj = (torch.nn.Linear(D, D, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (torch.nn.Linear(D, kv_heads * self.width, bias=False) for _ in range(2))

    def qkv(self, x):
        return (f(x).unflatten(-1, (-1, self.width)) for f in (self.q_proj, self.k_proj, self.v_proj))


class SigmoidAttention(Projected):
    """Ramapuram et al. 2024: sigmoid(q k / sqrt(K) - log n) in place of the softmax."""

    def __init__(self, heads, kv_heads, n):
        super().__init__(heads, kv_heads)
        self.n = n

    def forward(self, x):
        q, k, v = self.qkv(x)
        s, seen = scores(rotary(q), rotary(k))
        return self.o_proj(weighted(torch.sigmoid(s - math.log(self.n)) * seen, v))


class Temper(torch.nn.Module):
    """The temperature of Zhang et al. 2024 (Selective Attention): of what a token says, and of where it stands."""

    def __init__(self, heads, width):
        super().__init__()
        self.weight, self.alpha = torch.nn.Parameter(torch.zeros(heads, width)), torch.nn.Parameter(torch.zeros(heads))

    def forward(self, z):
        says = torch.tanh((F.gelu(z) * self.weight).sum(-1, keepdim=True))
        stands = self.alpha.sigmoid()[:, None] * torch.log(1.0 + torch.arange(z.shape[1]))[:, None, None]
        return z * (1 + says + stands)


class SelectiveAttention(Projected):
    def __init__(self, heads, kv_heads):
        super().__init__(heads, kv_heads)
        self.q_temper, self.v_temper = Temper(heads, self.width), Temper(kv_heads, self.width)

    def forward(self, x):
        q, k, v = self.qkv(x)
        s, seen = scores(rotary(self.q_temper(q)), rotary(k))
        return self.o_proj(weighted(s.masked_fill(~seen, -torch.inf).softmax(-1), self.v_temper(v)))


class Mixed(torch.nn.Module):
    """Keys or values of a group of heads: the sum of theirs, each weighted as a whole (head), by feature (column) or
    with its inputs weighted (row)."""

    def __init__(self, heads, groups, kind):
        super().__init__()
        self.heads, self.groups, self.kind = heads, groups, kind
        self.weight = torch.nn.Parameter(torch.zeros(heads, {"head": 1, "column": D // heads, "row": D}[kind]))

    def forward(self, x, w):
        parts = []
        for m, w_h in zip(self.weight, w.chunk(self.heads)):
            parts.append((x * m) @ w_h.T if self.kind == "row" else x @ w_h.T * m)
        return torch.stack(parts, dim=2).unflatten(2, (self.groups, -1)).sum(3)


class WeightedGQA(torch.nn.Module):
    """Chinnakonduru & Mohapatra 2024."""

    def __init__(self, heads, kv_heads, kind):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (torch.nn.Linear(D, D, bias=False) for _ in range(4))
        self.k_mix, self.v_mix = Mixed(heads, kv_heads, kind), Mixed(heads, kv_heads, kind)

    def forward(self, x):
        q = self.q_proj(x).unflatten(-1, (self.heads, -1))
        k, v = self.k_mix(x, self.k_proj.weight), self.v_mix(x, self.v_proj.weight)
        s, seen = scores(rotary(q), rotary(k))
        return self.o_proj(weighted(s.masked_fill(~seen, -torch.inf).softmax(-1), v))


class LongNet(Projected):
    """Ding et al. 2023: patterns (w, r). Each is a softmax over the tokens that a head keeps of a segment; the patterns
    are weighed by the denominators of their softmax. A token that no pattern keeps gives 0."""

    def __init__(self, heads, patterns):
        super().__init__(heads, heads)
        self.patterns = patterns

    def forward(self, x):
        q, k, v = self.qkv(x)
        s, past = scores(rotary(q), rotary(k))
        place = torch.arange(x.shape[1])
        outputs, sizes = [], []
        for w, r in self.patterns:
            kept = torch.stack([place % w % r == h % r for h in range(self.heads)])
            seen = past & (place[:, None] // w == place // w) & kept[:, :, None] & kept[:, None, :]
            e = s.exp() * seen
            size = e.sum(-1, keepdim=True)
            outputs.append(e / torch.where(size > 0, size, 1.0))
            sizes.append(size)
        total = sum(sizes)
        p = sum(o * size for o, size in zip(outputs, sizes)) / torch.where(total > 0, total, 1.0)
        return self.o_proj(weighted(p, v))


class InfiniAttention(Projected):
    """Munkhdalai et al. 2024: segment by segment, local attention beside what the memory of the past gives."""

    def __init__(self, heads, segment, delta):
        super().__init__(heads, heads)
        self.segment, self.delta = segment, delta
        self.beta = torch.nn.Parameter(torch.zeros(heads))

    def forward(self, x):
        q, k, v = self.qkv(x)
        memory, z, gate = 0.0, 0.0, self.beta.sigmoid()[:, None]
        y = []
        for q_s, k_s, v_s, q_turned, k_turned in zip(*(t.split(self.segment, dim=1) for t in
                                                       (q, k, v, rotary(q), rotary(k)))):
            sq, sk = F.elu(q_s) + 1, F.elu(k_s) + 1

            def read(s):
                if isinstance(z, float):
                    return torch.zeros_like(v_s)
                return torch.einsum("bthk,bhkv->bthv", s, memory) / (torch.einsum("bthk,bhk->bth", s, z) + 1e-6)[..., None]

            s, seen = scores(q_turned, k_turned)
            local = weighted(s.masked_fill(~seen, -torch.inf).softmax(-1), v_s).unflatten(-1, (self.heads, -1))
            y.append((gate * read(sq) + (1 - gate) * local).flatten(-2))
            memory = memory + torch.einsum("bthk,bthv->bhkv", sk, v_s - read(sk) if self.delta else v_s)
            z = z + sk.sum(1)
        return self.o_proj(torch.cat(y, dim=1))


# ---- RetNet as its paper has it ------------------------------------------------------------------------------------


class PaperRetNet(torch.nn.Module):
    """Sun et al. 2023, the parallel form with its three normalisations, GroupNorm, and xPos (Sun et al. 2022)."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = (torch.nn.Linear(D, D, bias=False) for _ in range(2))
        self.v_proj, self.g_proj = (torch.nn.Linear(D, 2 * D, bias=False) for _ in range(2))
        self.o_proj, self.norm = torch.nn.Linear(2 * D, D, bias=False), torch.nn.GroupNorm(heads, 2 * D, eps=1e-5)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q_proj, self.k_proj, self.v_proj))
        half = q.shape[-1] // 2
        place = torch.arange(x.shape[1])
        zeta = ((torch.arange(half) / half + 0.4) / 1.4).repeat(2) ** (place[:, None, None] / 512)
        r, past = scores(rotary(q) * zeta, rotary(k) / zeta)
        gamma = 1 - 2.0 ** (-5 - torch.arange(self.heads))
        decay = gamma[:, None, None] ** (place[:, None] - place).clamp(min=0) * past
        r = r * decay / decay.sum(-1, keepdim=True).sqrt()
        r = r / r.sum(-1, keepdim=True).abs().clamp(min=1)
        o = self.norm(weighted(r, v).flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.o_proj(F.silu(self.g_proj(x)) * o)


# ---- Titans --------------------------------------------------------------------------------------------------------


class TitansLMM(torch.nn.Module):
    """Behrouz et al. 2024, the memory alone: each token is a step of gradient descent with momentum and forgetting, the
    gradient by autograd at the weights with which the token's segment began."""

    def __init__(self, heads, segment, hidden):
        super().__init__()
        self.heads, self.segment, width = heads, segment, D // heads
        for name in "qkv":
            setattr(self, f"{name}_proj", torch.nn.Linear(D, D, bias=False))
            setattr(self, f"{name}_conv1d", torch.nn.Conv1d(D, D, 4, groups=D, padding=3, bias=False))
        self.g_proj, self.o_proj = (torch.nn.Linear(D, D, bias=False) for _ in range(2))
        self.alpha, self.eta, self.theta = (torch.nn.Linear(D, heads) for _ in range(3))
        sizes = [width, *hidden, width]
        self.memory = torch.nn.ParameterList(torch.zeros(heads, a, b) for a, b in zip(sizes, sizes[1:]))
        self.norm = torch.nn.RMSNorm(width, eps=1e-5)

    @staticmethod
    def value(weights, x):
        """x (heads, width) by the network of each head."""
        for i, w in enumerate(weights):
            x = torch.einsum("hk,hkv->hv", F.gelu(x, approximate="tanh") if i else x, w)
        return x

    def one(self, x):
        def convolved(name):
            z = getattr(self, f"{name}_conv1d")(getattr(self, f"{name}_proj")(x).T)[..., :len(x)].T
            return F.silu(z).unflatten(-1, (self.heads, -1))

        q, k, v = (convolved(name) for name in "qkv")
        q, k = (z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt() for z in (q, k))
        alpha, eta, theta = (f(x).sigmoid()[..., None, None] for f in (self.alpha, self.eta, self.theta))
        weights = list(self.memory)
        momentum, y = [torch.zeros_like(w) for w in weights], []
        for t in range(len(x)):
            if t % self.segment == 0:
                start = weights
            loss = (self.value(start, k[t]) - v[t]).square().sum()
            slope = torch.autograd.grad(loss, start, create_graph=True)
            momentum = [eta[t] * p - theta[t] / self.segment * g for p, g in zip(momentum, slope)]
            weights = [(1 - alpha[t]) * w + p for w, p in zip(weights, momentum)]
            y.append(self.value(weights, q[t]))
        return self.o_proj(self.norm(torch.stack(y)).flatten(-2) * F.silu(self.g_proj(x)))

    def forward(self, x):
        return torch.stack([self.one(z) for z in x])
