"""Tiny members of the real classes, hosted once for the whole run."""

from pathlib import Path

import pytest
import torch

from models.family import FAMILIES
from models.hosted import HostedModel
from models.loading import load


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory) -> Path:
    """A Stable Diffusion 1.x toy as `save_pretrained` leaves it, with `clip/` inside."""
    return FAMILIES["stable_diffusion"].tiny(tmp_path_factory.mktemp("tiny") / "sd")


@pytest.fixture(scope="session")
def tiny_sd(tiny_sd_folder) -> HostedModel:
    return load("tiny-sd", tiny_sd_folder)


@pytest.fixture(scope="session")
def tiny_sdxl_folder(tmp_path_factory) -> Path:
    return FAMILIES["stable_diffusion_xl"].tiny(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="session")
def tiny_sdxl(tiny_sdxl_folder) -> HostedModel:
    return load("tiny-sdxl", tiny_sdxl_folder)
