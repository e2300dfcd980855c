"""The user's own functions, named ``module:function`` in the study file.

They are looked for on the ordinary import path, in the folders listed in ``EDGEFRONT_IMPORT_PATH`` (the command line
puts the study file's folder there, and workers inherit it), and in the current folder. Relative data paths are looked
for in the same folders.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.errors import Defect

_OWN_FOLDER = Path(__file__).parents[1]
IMPORT_PATH_VARIABLE = "EDGEFRONT_IMPORT_PATH"


def is_reference(text: str) -> bool:
    """Whether ``text`` has the form ``module:function`` (``C:\\data.npz`` and ``a/b:c`` have not)."""
    module, colon, function = text.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def search_folders() -> list[Path]:
    """Where the user's files are looked for, in this order."""
    listed = os.environ.get(IMPORT_PATH_VARIABLE, "")
    return list(dict.fromkeys([*(Path(part) for part in listed.split(os.pathsep) if part), Path.cwd()]))


def add_search_folder(folder: Path) -> None:
    """Look in ``folder`` too, first of all, in this process and in those it starts."""
    listed = [part for part in os.environ.get(IMPORT_PATH_VARIABLE, "").split(os.pathsep) if part]
    first = str(folder.resolve())
    os.environ[IMPORT_PATH_VARIABLE] = os.pathsep.join([first, *(part for part in listed if part != first)])


def find_file(text: str) -> Path:
    """The file meant by ``text``: absolute, or relative to one of :func:`search_folders`.

    Raises:
        Defect: there is no such file; the text names every place looked at.
    """
    path = Path(text).expanduser()
    candidates = [path] if path.is_absolute() else [folder / path for folder in search_folders()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    places = ", ".join(str(candidate) for candidate in candidates)
    raise Defect("missing_file", f"file {text!r} was not found; looked at {places}")


def load_function(reference: str, what: str) -> Callable[..., Any]:
    """Import the function named ``module:function``; ``what`` says in errors what it is for.

    Raises:
        Defect: the module cannot be imported, has no such function, or the name is no function.
    """
    module_name, _, function_name = reference.partition(":")
    for folder in reversed(search_folders()):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.split(".")[0] == error.name.split(".")[0]:
            places = ", ".join(str(folder) for folder in search_folders())
            raise Defect("bad_user_code", f"{what} {reference!r}: no module {module_name!r} in {places}") from error
        raise Defect("bad_user_code", f"{what} {reference!r}: {error}; install it into this environment") from error
    except (Exception, SystemExit) as error:  # the user's module runs here; whatever it raises is shown to the user
        raise Defect("bad_user_code", f"{what} {reference!r} cannot be imported: {describe_error(error)}") from error
    _remember_code(module)
    function = getattr(module, function_name, None)
    if not callable(function):
        found = "is no function" if function is not None else "does not exist"
        raise Defect("bad_user_code", f"{what} {reference!r}: {function_name!r} {found} in {module.__file__}")
    return function  # type: ignore[no-any-return]


# By module: the object, and the hash of its files when it was imported. Files that change later do not change it.
_code: dict[str, tuple[ModuleType, str]] = {}


def code_sha256(reference: str, what: str) -> str:
    """A hash of the code that ``module:function`` was imported from: the module's file, or all of its package's. What
    it imports from elsewhere is not part of it.

    Raises:
        Defect: as :func:`load_function`.
    """
    load_function(reference, what)
    return _code[reference.partition(":")[0]][1]


def _remember_code(module: ModuleType) -> None:
    if _code.get(module.__name__, (None, ""))[0] is not module:
        _code[module.__name__] = (module, _hash_of_files(module))


def _hash_of_files(module: ModuleType) -> str:
    package = sys.modules[module.__name__.partition(".")[0]]
    folders = [Path(folder) for folder in getattr(package, "__path__", ())]
    files = {path.relative_to(folder).as_posix(): path for folder in folders for path in folder.rglob("*.py")}
    files = files or {module.__name__: Path(module.__file__ or "")}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def describe_error(error: BaseException) -> str:
    """``TypeError: … (mydata.py, line 12)``: the error with the innermost line of code it came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    is_ours = not frames or Path(frames[-1].filename).is_relative_to(_OWN_FOLDER)
    # A call with wrong arguments fails in our own line, and a syntax error tells its line itself.
    is_told = is_ours or isinstance(error, SyntaxError)
    where = "" if is_told else f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return f"{type(error).__name__}: {error}{where}"
