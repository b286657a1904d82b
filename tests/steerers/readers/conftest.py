"""Toy SAEs as plain tensors, and what a reader must make of them: codes in float64."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

D, F = 6, 20


@pytest.fixture
def raw() -> dict[str, torch.Tensor]:
    """Tensors by the names of the definition; rows of W_dec are not of unit length."""
    torch.manual_seed(3)
    return {
        "W_enc": torch.randn(D, F),
        "b_enc": torch.randn(F),
        "W_dec": torch.randn(F, D) * (torch.rand(F, 1) + 0.5),
        "b_dec": torch.randn(D),
        "threshold": torch.rand(F) * 3,
    }


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(4)
    return torch.randn(40, D)


@pytest.fixture
def put() -> Callable[..., Path]:
    """Write files into a folder by their endings, and give the folder back."""

    def write(folder: Path, **files: dict) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, contents in files.items():
            path = folder / name.replace("__", ".")
            if path.suffix == ".json":
                path.write_text(json.dumps(contents))
            elif path.suffix == ".npz":
                np.savez(path, **{k: v.numpy() for k, v in contents.items()})
            elif path.suffix == ".safetensors":
                save_file({k: v.contiguous() for k, v in contents.items()}, path)
            else:
                torch.save(contents, path)
        return folder

    return write


@pytest.fixture
def top_k() -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Per row, everything below the k-th largest is 0, then ReLU."""

    def keep(z: torch.Tensor, k: int) -> torch.Tensor:
        least = z.sort(dim=-1, descending=True).values[..., k - 1 : k]
        return torch.relu(z) * (z >= least)

    return keep


@pytest.fixture
def agree() -> Callable[..., None]:
    """A dictionary gives these codes and this reconstruction."""

    def check(dictionary, x, codes, decoded) -> None:
        assert 0.02 < (codes > 0).double().mean() < 0.98
        found = dictionary.encode(x)
        torch.testing.assert_close(found.double(), codes.double(), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(
            dictionary.decode(found, x).double(), decoded.double(), atol=1e-4, rtol=1e-4
        )

    return check
