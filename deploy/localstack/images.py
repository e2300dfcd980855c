"""An image as a folder: the Dockerfile's steps, translated.

``COPY`` copies, ``RUN pip install`` installs into a virtual environment of the folder, ``RUN mkdir`` makes folders.
Users do not exist in a folder, so ``useradd``, ``chown`` and ``USER`` are passed over. A step of another kind is an
error: the Dockerfile has outgrown this file.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from localstack.errors import StackError


@dataclass(kw_only=True)
class Image:
    """``root`` stands for ``/`` of the image, and holds its virtual environment."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    folder: str = "/"

    @property
    def python(self) -> Path:
        return self.root / "venv" / "bin" / "python"

    def inside(self, path: str) -> Path:
        """Where a path of the image is on this machine."""
        return self.root / str(Path(self.folder) / path).lstrip("/")


@dataclass(frozen=True, kw_only=True, slots=True)
class Builder:
    """How images are made. ``is_quick``: packages come from the interpreter that runs this, and only Edgefront itself
    is installed; otherwise everything that the Dockerfile installs is fetched."""

    dockerfile: Path
    context: Path
    is_quick: bool
    say: Callable[[str], None] = lambda line: None

    def build(self, target: str, root: Path, arguments: Mapping[str, str]) -> Image:
        """
        Raises:
            StackError: there is no such target, a step is not understood, or it failed.
        """
        steps = _steps_of(self.dockerfile.read_text(encoding="utf-8"), target)
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        # Without pip, which brings an old setuptools of its own on some Pythons: the one that runs this serves all.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True)
        if self.is_quick:
            self._share_packages(root)
        image = Image(root=root)
        variables: dict[str, str] = {}
        for kind, text in steps:
            self._take(image, kind, _filled(text, {**variables, **image.environment}), arguments, variables)
        return image

    def _take(
        self, image: Image, kind: str, text: str, arguments: Mapping[str, str], variables: dict[str, str]
    ) -> None:
        if kind == "ARG":
            name, _, default = text.partition("=")
            variables[name] = arguments.get(name, default)
        elif kind == "ENV":
            name, _, value = text.partition("=")
            image.environment[name] = value
        elif kind == "WORKDIR":
            image.folder = text
            image.inside(text).mkdir(parents=True, exist_ok=True)
        elif kind == "COPY":
            self._copy(image, shlex.split(text))
        elif kind == "RUN":
            for command in text.split("&&"):
                self._run(image, shlex.split(command))
        elif kind in ("ENTRYPOINT", "CMD"):
            chosen = image.entrypoint if kind == "ENTRYPOINT" else image.command
            chosen[:] = json.loads(text)
        elif kind != "USER":
            raise StackError(f"{self.dockerfile}: what to do for {kind} {text!r}? Teach deploy/localstack/images.py")

    def _copy(self, image: Image, words: Sequence[str]) -> None:
        *sources, to = words
        place = image.inside(to)
        for pattern in sources:
            found = sorted(self.context.glob(pattern))
            if not found:
                raise StackError(f"{self.dockerfile}: COPY {pattern}: there is no such file in {self.context}")
            for source in found:
                if source.is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", ".*_cache")
                    shutil.copytree(source, place, ignore=ignored, dirs_exist_ok=True)
                else:
                    goal = place / source.name if to.endswith("/") else place
                    goal.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, goal)

    def _run(self, image: Image, words: Sequence[str]) -> None:
        program, *rest = words
        if program in ("useradd", "chown"):
            return
        if program == "mkdir":
            for path in rest:
                image.inside(path).mkdir(parents=True, exist_ok=True)
            return
        if (program, rest[:1]) != ("pip", ["install"]):
            raise StackError(
                f"{self.dockerfile}: what to do for RUN {shlex.join(words)}? Teach deploy/localstack/images.py"
            )
        self._install(image, rest[1:])

    def _install(self, image: Image, words: Sequence[str]) -> None:
        is_ours = any(word.startswith(".") for word in words)
        if self.is_quick and not is_ours:
            return
        if self.is_quick:
            words = ["--no-deps", "--no-build-isolation", "."]
        self.say(f"pip install {shlex.join(words)}")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(image.python), "install"]
        done = subprocess.run([*command, *words], cwd=image.inside("."), capture_output=True, text=True, check=False)
        if done.returncode:
            raise StackError(f"pip install {shlex.join(words)} failed:\n{(done.stdout + done.stderr)[-2000:]}")

    def _share_packages(self, root: Path) -> None:
        """The packages of the interpreter that runs this, behind the image's own."""
        places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (own,) = (root / "venv" / "lib").glob("python*/site-packages")
        (own / "shared.pth").write_text("\n".join(sorted(places)) + "\n")


def _steps_of(text: str, target: str) -> list[tuple[str, str]]:
    """(instruction, its text) of one stage."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    steps: list[tuple[str, str]] = []
    stage = ""
    for line in filter(str.strip, joined):
        kind, _, rest = line.strip().partition(" ")
        if kind == "FROM":
            stage = rest.rpartition(" AS ")[2]
        elif stage == target:
            steps.append((kind, rest.strip()))
    if not steps:
        raise StackError(f"the Dockerfile has no stage {target!r}")
    return steps


def _filled(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: variables.get(found[1], found[0]), text)
