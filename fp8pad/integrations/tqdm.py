"""Progress with tqdm: a widget in a notebook, a bar on stderr elsewhere."""

import threading
from typing import Any

from tqdm.auto import tqdm

from fp8pad.checkpoint.progress import Progress


class TqdmProgress(Progress):
    """A bar for each step that counts bytes: `fp8pad.convert(model, out_dir, progress=TqdmProgress())`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bar: Any = None

    def start(self, label: str, total_bytes: int, num_files: int = 0) -> None:  # noqa: ARG002
        """Start a bar, below that of the last step."""
        with self._lock:
            self._close()
            self._bar = tqdm(desc=label, total=total_bytes, unit="B", unit_scale=True)

    def advance(self, num_bytes: int) -> None:
        """Advance the bar, and close it when it is full."""
        with self._lock:
            if self._bar is not None:
                self._bar.update(num_bytes)
                if self._bar.n >= self._bar.total:
                    self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
