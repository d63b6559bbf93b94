"""What corsd, fsd and calib share: tensor operations, data loading and the run folder.

Three folders: `shared_core.ops` (needs only torch), `shared_core.data` and `shared_core.run`.  Importing
this module imports none of them, and no module under `run` imports torch before it is used, so that a
command line answers `--help` at once.
"""

__version__ = "0.1.0"
