"""A function in a file of the user's, `path/to/file.py:function`, as Python itself would run that file.

Modules beside the file can be imported, also relatively where the folder is a package.  The file is a module of a
name of its own in `sys.modules`, so dataclasses, pickles and two files of one name work.  What it raises names the
file and the line.

>>> build = function_in("mine/net.py", "build")
>>> with naming_lines("mine/net.py"):
...     net = build(num_classes=10)
"""

import contextlib
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


def function_in(path: str | os.PathLike[str], name: str) -> Callable[..., Any]:
    """The function (or class) `name` of a Python file.  A file that did not change is run once in a process.

    Raises ValueError for a file that is not there or does not run, and a name that is not a function in it.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise ValueError(f"there is no file {path} to take the function {name!r} from")
    module = _module(place.resolve())
    found = getattr(module, name, None)
    if not callable(found):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
        has = ", ".join(n for n in own if callable(getattr(module, n))) or "none of its own"
        raise ValueError(f"{path} has no function {name!r}; it has {has}")
    return found


@contextlib.contextmanager
def naming_lines(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside it, the file's neighbours can be imported, and an error raised in the file names file and line.

    Errors that never reached the file's own code pass unchanged.  Raises ValueError.
    """
    place = Path(path).expanduser().resolve()
    with _neighbours(place):
        try:
            yield
        except (Exception, SystemExit) as error:
            line = _line(error, place)
            if line is None:
                raise
            raise ValueError(f"{path}, line {line}: {_said(error)}") from error


def _module(path: Path) -> ModuleType:
    content = path.read_bytes()
    package = _package(path)
    unique = f"{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:12]}"
    name = f"{package}.{unique}" if package else unique
    digest = hashlib.sha256(content).hexdigest()
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__digest__", "") == digest:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses look their module up by its name.
    sys.modules[name] = module
    try:
        with naming_lines(path):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    vars(module)["__digest__"] = digest
    return module


@contextlib.contextmanager
def _neighbours(path: Path) -> Iterator[None]:
    """The file's folder comes first on the path inside, and stays at its end for what is imported later.

    A module of a neighbour's name that another file brought along steps aside meanwhile.
    """
    folder = path.parent
    roots = [folder, _root(path)]
    before = list(sys.path)
    sys.path[:0] = [str(root) for root in dict.fromkeys(roots)]
    importlib.invalidate_caches()
    names = {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or entry.is_dir()}
    aside = {
        name: module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in names and _is_elsewhere(module, folder)
    }
    for name in aside:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update(aside)
        sys.path[:] = before + [str(root) for root in dict.fromkeys(roots) if str(root) not in before]


def _is_elsewhere(module: ModuleType, folder: Path) -> bool:
    """Whether the module is somebody's own file in another folder: neither Python's nor an installed package's."""
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] in {*sys.stdlib_module_names, "__main__"}:
        return False
    place = Path(file)
    return not {"site-packages", "dist-packages"} & set(place.parts) and folder not in place.resolve().parents


def _package(path: Path) -> str:
    """The dotted name of the package that the file's folder is, or nothing."""
    root, folder = _root(path), path.parent
    return ".".join(folder.relative_to(root).parts)


def _root(path: Path) -> Path:
    """The first folder upwards that is no package."""
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        folder = folder.parent
    return folder


def _line(error: BaseException, path: Path) -> int | None:
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == path:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if Path(f.filename) == path), None)


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it ends the process; put what only a script does under `if __name__ == '__main__':`"
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
