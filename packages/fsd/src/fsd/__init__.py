"""Flow score distillation: diverse text-to-3D from a diffusion prior.

This version holds the name and the version number only; the method is being written.
"""

from importlib.metadata import version as _version

__version__ = _version("fsd")
__all__: list[str] = []
