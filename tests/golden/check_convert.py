"""Opens an exported model in its reference implementation and compares its logits with given ones. For use by hand.

    python tests/golden/check_convert.py EXPORTED_FOLDER LOGITS.safetensors

EXPORTED_FOLDER holds model.safetensors and config.json as `weft convert` writes them: of transformers, of
flash-linear-attention (on the CPU, by fla_on_cpu.py) or of the xlstm package. LOGITS.safetensors holds `input_ids`
(batch, T) and `logits` (batch, T, vocabulary), such as a golden model. Prints err2 = |a-b|_2 / |b|_2 and errmax =
max|a-b| / rms(b), b being the reference; exits with 1 where err2 exceeds 1e-4 or errmax 1e-3.
"""
import dataclasses
import json
import os
import sys
import typing

import torch
from safetensors.torch import load_file


def of_dictionary(cls, values):
    """A dataclass from nested dictionaries; a key it has not is an error."""
    hints = typing.get_type_hints(cls)

    def field(name, value):
        if not isinstance(value, dict):
            return value
        kinds = [k for k in (hints[name], *typing.get_args(hints[name])) if dataclasses.is_dataclass(k)]
        return of_dictionary(kinds[0], value)

    return cls(**{k: field(k, v) for k, v in values.items()})


def open_xlstm(folder, config):
    from xlstm import xLSTMLMModel, xLSTMLMModelConfig
    model = xLSTMLMModel(of_dictionary(xLSTMLMModelConfig, config))
    model.load_state_dict(load_file(os.path.join(folder, "model.safetensors")), strict=True)
    return model.eval()


def open_transformers(folder, kind):
    from transformers import AutoModelForCausalLM
    if kind in ("retnet", "gla", "hgrn2", "delta_net", "gated_deltanet", "kda"):
        import fla.models  # noqa: F401: makes its classes known
        import fla_on_cpu  # noqa: F401
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(trouble):
            sys.exit(f"{trouble}: {sorted(map(str, info[trouble]))}")
    return lambda ids: model.eval()(input_ids=ids, use_cache=False).logits


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, given = sys.argv[1], load_file(sys.argv[2])
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    kind = config.get("model_type")
    model = open_transformers(folder, kind) if kind else open_xlstm(folder, config)
    ids = given["input_ids"].long()
    with torch.no_grad():
        b = model(ids).double()
    a = given["logits"].double().reshape(*ids.shape, -1)
    if a.shape != b.shape:
        sys.exit(f"logits are {tuple(a.shape)}, the reference gives {tuple(b.shape)}")
    err2 = ((a - b).norm() / b.norm()).item()
    errmax = ((a - b).abs().max() / b.square().mean().sqrt()).item()
    print(f"err2 {err2:.3e}  errmax {errmax:.3e}")
    sys.exit(0 if err2 <= 1e-4 and errmax <= 1e-3 else 1)


if __name__ == "__main__":
    main()
