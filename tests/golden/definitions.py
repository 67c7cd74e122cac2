"""Mixers by their papers' equations, token by token, where no public module can be run."""
import torch
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
        q, k = torch.nn.functional.silu(self.q_proj(x)), torch.nn.functional.silu(self.k_proj(x))
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
        return self.o_proj(o * torch.nn.functional.silu(self.g_proj(x)))
