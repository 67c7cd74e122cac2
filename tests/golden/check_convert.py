"""Opens an exported model in transformers and compares its logits with those Weft computed. For use by hand.

    python tests/golden/check_convert.py EXPORTED_FOLDER LOGITS.safetensors

EXPORTED_FOLDER holds model.safetensors and config.json as `weft convert` writes them. LOGITS.safetensors holds
`input_ids` (batch, T) and `logits` (batch, T, vocabulary). Prints err2 = |a-b|_2 / |b|_2 and
errmax = max|a-b| / rms(b), b being transformers; exits with 1 where err2 exceeds 1e-4 or errmax 1e-3.
"""
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    given = load_file(sys.argv[2])
    model, info = AutoModelForCausalLM.from_pretrained(
        sys.argv[1], dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            sys.exit(f"{kind}: {sorted(map(str, info[kind]))}")
    ids = given["input_ids"].long()
    with torch.no_grad():
        b = model.eval()(input_ids=ids, use_cache=False).logits.double()
    a = given["logits"].double().reshape(*ids.shape, -1)
    if a.shape != b.shape:
        sys.exit(f"logits are {tuple(a.shape)}, transformers gives {tuple(b.shape)}")
    err2 = ((a - b).norm() / b.norm()).item()
    errmax = ((a - b).abs().max() / b.square().mean().sqrt()).item()
    print(f"err2 {err2:.3e}  errmax {errmax:.3e}")
    sys.exit(0 if err2 <= 1e-4 and errmax <= 1e-3 else 1)


if __name__ == "__main__":
    main()
