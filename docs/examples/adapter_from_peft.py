"""Takes over a reflection adapter (HRA) that PEFT has saved: python adapter_from_peft.py

Beside spectral_triton it needs peft, which brings safetensors.
"""

import json
import tempfile
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spectral_triton import SoftplusSpectrum, SVDLinear


def orthogonalised(columns: Tensor) -> Tensor:
    """By Gram and Schmidt, in order: what ``apply_GS`` does to the vectors of an adapter."""
    q, r = torch.linalg.qr(columns)
    return q * r.diagonal().sign()


@torch.no_grad()
def take_over(model: nn.Module, folder: Path) -> nn.Module:
    """Replaces each adapted nn.Linear by an SVDLinear that computes what PEFT's layer computes.

    W₀ H(u₁) ⋯ H(u_r): right reflectors alone, σ frozen. The rows of the layer act in the other
    order, last column first.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    for key, u in load_file(folder / "adapter_model.safetensors").items():
        name = key.removeprefix("base_model.model.").removesuffix(".hra_u")
        linear = model.get_submodule(name)
        layer = SVDLinear.from_linear(
            linear, num_reflectors=(0, u.shape[1]), spectrum=SoftplusSpectrum()
        )
        layer.svd.right.copy_((orthogonalised(u) if config["apply_GS"] else u).mT.flip(0))
        layer.svd.raw_singular_values.requires_grad_(False)
        model.set_submodule(name, layer)
    return model


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 20)
    for gram_schmidt in (False, True):
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
        pretrained = {name: value.clone() for name, value in model.state_dict().items()}
        config = peft.HRAConfig(r=4, target_modules=["0", "2"], apply_GS=gram_schmidt)
        adapted = peft.get_peft_model(model, config)
        optimizer = torch.optim.Adam((p for p in adapted.parameters() if p.requires_grad), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            adapted(x).square().mean().backward()
            optimizer.step()

        with tempfile.TemporaryDirectory() as folder:
            adapted.save_pretrained(folder)
            plain = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
            plain.load_state_dict(pretrained)
            ours = take_over(plain, Path(folder))
        difference = (ours(x) - adapted(x)).abs().max().item()
        print(f"apply_GS={gram_schmidt}: outputs differ by {difference:.1e}")


if __name__ == "__main__":
    main()
