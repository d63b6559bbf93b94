"""A light-weight calibrator that adapts the input of a frozen classifier to a new domain.

This version holds the name and the version number only; the method is being written.
The distribution is called ``calib-uda``, because ``calib`` on the package index is another project.
"""

from importlib.metadata import version as _version

__version__ = _version("calib-uda")
__all__: list[str] = []
