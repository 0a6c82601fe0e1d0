"""One small model, trained once by the command itself."""

from pathlib import Path

import pytest
import torch

from oddity.app.cli import main

QUICK = ["--epochs", "80", "--variance-epochs", "20", "--centres", "12", "--hidden", "32,16"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small models are slower on several threads, the more so beside other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "digits.model"
    assert main(["train", "digits", "-o", str(path), "--classes", "0,1,2", *QUICK]) == 0
    return path
