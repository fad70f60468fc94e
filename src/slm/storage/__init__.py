"""Files, local or remote alike, written whole or not at all; knows no model."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slm.storage.checkpoint import load_file, save_file

__all__ = ["load_file", "save_file"]


def __getattr__(name: str) -> object:
    """Loads torch only when tensors are to be read or written: paths are checked long before."""
    if name in __all__:
        from slm.storage import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module 'slm.storage' has no attribute {name!r}")
