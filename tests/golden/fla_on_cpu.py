"""flash-linear-attention's layers without Triton: their own code, its kernels replaced by its naive functions.

A layer keeps its projections, gates, norms and shapes; only calls that need a GPU are answered here.
"""
import torch
import torch.nn.functional as F

import fla.modules as M
from fla.layers import delta_net, forgetting_attn, gated_deltanet, gla, hgrn2, kda, linear_attn, multiscale_retention, simple_gla
from fla.modules.norm.layernorm import group_norm_ref, rms_norm_ref
from fla.modules.rotary.ops import rotary_embedding_ref
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.forgetting_attn.naive import naive_forgetting_attn
from fla.ops.gated_delta_rule.gate import naive_gdn_gate
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.kda.gate import naive_kda_gate
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.retention.naive import naive_retention
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

from golden_mixer import BEFORE

# ---- modules -----------------------------------------------------------------------------------------------------


def short_convolution(self, x, cache=None, **_):
    width = self.kernel_size[0]
    seen = F.pad(x.transpose(1, 2), (width, 0)) if cache is None else torch.cat([cache, x.transpose(1, 2)], dim=-1)
    y = F.conv1d(seen[..., 1:], self.weight, self.bias, groups=x.shape[-1]).transpose(1, 2)
    return (F.silu(y) if self.activation else y), seen[..., -width:]


def rms_norm_gated(self, x, g):
    gate = torch.sigmoid(g) if self.activation == "sigmoid" else F.silu(g)
    return rms_norm_ref(x, self.weight, None, eps=self.eps) * gate


def rotary(self, q, k, seqlen_offset=0, **_):
    end = seqlen_offset + q.shape[1]
    self._update_cos_sin_cache(end, device=q.device, dtype=q.dtype)
    cos, sin = self._cos_cached[seqlen_offset:end], self._sin_cached[seqlen_offset:end]
    return rotary_embedding_ref(q, cos, sin, self.interleaved), rotary_embedding_ref(k, cos, sin, self.interleaved)


M.ShortConvolution.forward = short_convolution
M.FusedRMSNormGated.forward = rms_norm_gated
M.RMSNorm.forward = lambda self, x, residual=None, prenorm=False: rms_norm_ref(
    x, self.weight, self.bias, residual, eps=self.eps, prenorm=prenorm)
M.mlp.swiglu_linear = lambda x, y, weight, bias: F.linear(F.silu(x) * y, weight, bias)
M.GroupNorm.forward = lambda self, x: group_norm_ref(x, self.weight, self.bias, self.num_groups, eps=self.eps,
                                                     is_rms_norm=self.is_rms_norm)
M.RotaryEmbedding.forward = rotary

# ---- operations: tensors are (batch, T, heads, .) ----------------------------------------------------------------


def heads_first(f):
    def call(q, k, v, *rest):
        return f(*(t.transpose(1, 2) for t in (q, k, v, *rest)))
    return call


def unit(x):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def stateful(f):
    """f with K x V states, called with what layers say of states: theirs may be V x K."""
    def call(*args, initial_state=None, output_final_state=False, state_v_first=False, **more):
        turned = (lambda s: s if s is None else s.transpose(-1, -2)) if state_v_first else (lambda s: s)
        o, left = f(*args, initial_state=turned(initial_state), output_final_state=output_final_state, **more)
        return o, turned(left)
    return call


def gla_op(q, k, v, gk=None, g=None, initial_state=None, output_final_state=False, **_):
    return naive_recurrent_gla(q, k, v, g if gk is None else gk, initial_state, output_final_state)


def simple_gla_op(q, k, v, g, initial_state=None, output_final_state=False, **_):
    return naive_recurrent_simple_gla(q, k, v, g, initial_state=initial_state, output_final_state=output_final_state)


def retention(q, k, v, initial_state=None, **_):
    if initial_state is None:
        return heads_first(naive_retention)(q, k, v).transpose(1, 2), None
    decay = torch.log1p(-2.0 ** (-5 - torch.arange(q.shape[2])))
    return naive_recurrent_simple_gla(q, k, v, decay.expand(q.shape[:3]), initial_state=initial_state)


def delta_rule(q, k, v, beta, use_qk_l2norm_in_kernel, **_):
    if use_qk_l2norm_in_kernel:
        q, k = unit(q), unit(k)
    return heads_first(delta_rule_recurrence)(q, k, v, beta)[0].transpose(1, 2), None


def repeated(q, k, v):
    return (t.repeat_interleave(v.shape[2] // t.shape[2], dim=2) for t in (q, k))


def gated_delta_rule(q, k, v, g, beta, A_log, dt_bias, allow_neg_eigval, initial_state=None, output_final_state=False, **_):
    q, k = repeated(unit(q), unit(k), v)
    beta = beta.sigmoid() * (2 if allow_neg_eigval else 1)
    return naive_recurrent_gated_delta_rule(q, k, v, beta, naive_gdn_gate(g, A_log, dt_bias), initial_state=initial_state,
                                            output_final_state=output_final_state)


def kda_op(q, k, v, g, beta, A_log, dt_bias, allow_neg_eigval, initial_state=None, output_final_state=False, **_):
    beta = beta.sigmoid() * (2 if allow_neg_eigval else 1)
    return naive_recurrent_kda(unit(q), unit(k), v, naive_kda_gate(g, A_log, dt_bias), beta, initial_state=initial_state,
                               output_final_state=output_final_state)


def linear_attention(q, k, v, normalize, **_):
    return naive_recurrent_linear_attn(q, k, v, normalize=normalize)


simple_gla.chunk_simple_gla = simple_gla.fused_recurrent_simple_gla = stateful(simple_gla_op)
gla.chunk_gla = gla.fused_recurrent_gla = hgrn2.chunk_gla = hgrn2.fused_recurrent_gla = stateful(gla_op)
hgrn2.swish = F.silu
hgrn2.rms_norm_linear = lambda x, w, b, ow, ob: F.linear(rms_norm_ref(x, w, b, eps=1e-5), ow, ob)
multiscale_retention.chunk_retention = multiscale_retention.fused_recurrent_retention = retention
delta_net.chunk_delta_rule = delta_net.fused_recurrent_delta_rule = delta_rule
gated_deltanet.chunk_gated_delta_rule = gated_deltanet.fused_recurrent_gated_delta_rule = stateful(gated_delta_rule)
gated_deltanet.GatedDeltaNet._use_fused_qkv_conv = lambda *_, **__: False
kda.chunk_kda = kda.fused_recurrent_kda = stateful(kda_op)
linear_attn.chunk_linear_attn = linear_attn.fused_recurrent_linear_attn = linear_attention
linear_attn.elu_p1 = lambda x: F.elu(x) + 1
forgetting_attn.parallel_forgetting_attn = lambda q, k, v, g, **_: naive_forgetting_attn(q, k, v, g)

# ---- states ------------------------------------------------------------------------------------------------------


class Carried:
    """The cache of one layer, in their layouts, from and to a state in Weft's names and layouts."""

    def __init__(self, state, v_first):
        self.turned = (lambda s: s.transpose(-1, -2)) if v_first else (lambda s: s)
        self.layer = {"recurrent_state": self.turned(state["s"][None]), "conv_state": None}
        if "q_conv" in state:  # their cache has one token more, which is not read
            self.layer["conv_state"] = tuple(F.pad(state[f"{n}_conv"].T[None], (1, 0)) for n in "qkv")

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return self.layer

    def get_seq_length(self, i):
        return BEFORE

    def update(self, recurrent_state, conv_state, **_):
        self.layer = {"recurrent_state": recurrent_state, "conv_state": conv_state}

    def state(self):
        left = {"s": self.turned(self.layer["recurrent_state"])[0]}
        for n, window in zip("qkv", self.layer["conv_state"] or ()):
            left[f"{n}_conv"] = window[0, :, 1:].T
        return left


def call_with_state(v_first=True):
    def call(layer, x, state):
        cache = Carried(state, v_first)
        return layer(x, past_key_values=cache, use_cache=True)[0], cache.state()
    return call
