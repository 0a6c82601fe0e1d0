"""What the commands make of a saved model."""

from pathlib import Path

import torch

from oddity.app import latent
from oddity.app.report import Connections
from oddity.geometry.spaces import Euclidean
from oddity.models.storage import load_model


def test_frames_are_decoded_at_equal_steps_along_both(model: Path) -> None:
    saved = load_model(model)
    codes = latent.codes_of(saved)
    found = Connections.between(Euclidean(), codes[:2], codes[2:4], [("a", "b"), ("c", "d")])
    along, straight = latent.frames(saved, found, 5)
    assert along.codes.shape == (2, 5, 2)
    assert along.images.shape == (2, 5, 64)
    torch.testing.assert_close(along.codes, straight.codes)
    torch.testing.assert_close(straight.codes.diff(dim=1), ((codes[2:4] - codes[:2]) / 4)[:, None].expand(-1, 4, -1))
    torch.testing.assert_close(straight.images[:, 0], saved.vae.decoder.mean(codes[:2]))
