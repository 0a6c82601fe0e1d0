"""What the commands wrote."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def arrays_in(path: Path | str) -> dict[str, NDArray[Any]]:
    """Arrays of an ``.npz``; the file is closed."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
