"""``deploy/local-stack``: up, test, exec, down."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from localstack.composefile import chosen, read_services
from localstack.errors import StackError, WrongCommand
from localstack.images import Builder, Image
from localstack.processes import Stack, running, stop

CHECKOUT = Path(__file__).resolve().parents[2]
_STUDY = """\
name: tiny
dataset: {source: digits}
network: {family: mlp, options: {depth: 1}}
space: {network.width: {type: int, low: 4, high: 32}}
board: nrf52840-dk
objectives: {error: {}, rom: {}, latency: {limit: 20 ms}}
budget: {trials: 3}
sampler: {name: random, initial: 2}
training: {epochs: 1}
compression: {finetune_epochs: 0, steps: 1}
"""
_STUDY_S = 240.0


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    root = options.root.resolve()
    try:
        if options.action == "down":
            stop(root, say)
        elif options.action == "exec":
            return _with_images(_stack(root, options)).run(options.service, options.words).returncode
        else:
            _up(root, options)
    except StackError as error:
        print(f"local-stack: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(
            f"local-stack: {error.filename or root}: {error.strerror or error}; --root DIR is another place for all "
            "of it",
            file=sys.stderr,
        )
        return WrongCommand.exit_code
    return 0


def say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy/local-stack", description="The lab of compose.yaml, without containers."
    )
    parser.add_argument("--root", type=Path, default=CHECKOUT / ".local-stack", help="folder for all of it")
    profiles = os.environ.get("COMPOSE_PROFILES") or _default_profiles()
    parser.add_argument("--profiles", default=profiles, help=f"as COMPOSE_PROFILES, here {profiles}")
    parser.add_argument("--compose", type=Path, default=CHECKOUT / "compose.yaml", help="another compose file")
    actions = parser.add_subparsers(dest="action", required=True)
    for name, about in (("up", "build the images and start everything"), ("test", "up, run a tiny study, down")):
        action = actions.add_parser(name, help=about)
        action.add_argument("--quick", action="store_true", help="use this Python's packages instead of fetching them")
    run = actions.add_parser("exec", help="run a command as a service would: exec orchestrator edgefront status")
    run.add_argument("service")
    run.add_argument("words", nargs=argparse.REMAINDER)
    actions.add_parser("down", help="end everything")
    return parser


def _default_profiles() -> str:
    lines = (CHECKOUT / ".env").read_text(encoding="utf-8").splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith("COMPOSE_PROFILES="))


def _stack(root: Path, options: argparse.Namespace) -> Stack:
    services = chosen(read_services(options.compose, os.environ), options.profiles.split(","))
    builder = Builder(
        dockerfile=CHECKOUT / "deploy" / "Dockerfile",
        context=CHECKOUT,
        is_quick=getattr(options, "quick", False),
        say=say,
    )
    return Stack(root=root, checkout=CHECKOUT, services=services, builder=builder, say=say)


def _with_images(stack: Stack) -> Stack:
    """The stack with the images that ``up`` has built."""
    file = stack.root / "images.json"
    if not file.exists():
        raise WrongCommand(f"nothing was built in {stack.root}; deploy/local-stack up")
    for name, about in json.loads(file.read_text(encoding="utf-8")).items():
        stack.images[name] = Image(**{**about, "root": Path(about["root"])})
    return stack


def _up(root: Path, options: argparse.Namespace) -> None:
    if running(root):
        raise WrongCommand(f"something runs in {root} already; deploy/local-stack down")
    stack = _stack(root, options)
    stack.check_addresses()
    root.mkdir(parents=True, exist_ok=True)
    stack.build()
    kept = {name: {**vars(image), "root": str(image.root)} for name, image in stack.images.items()}
    (root / "images.json").write_text(json.dumps(kept), encoding="utf-8")
    stack.start()
    if options.action == "up":
        say(f"live page  http://{stack.addresses['dashboard']}:8450/  token in {root}/volumes/secrets/dashboard")
        say("submit     deploy/local-stack exec orchestrator edgefront submit examples/digits.yaml")
        return
    try:
        _run_study(stack)
        _check_live_page(stack)
        _check_prometheus(stack)
    finally:
        stack.stop()
    say("everything works")


def _run_study(stack: Stack) -> None:
    """Submit the tiny study as a person would, and wait for its end."""
    file = stack.root / "tiny.yaml"
    file.write_text(_STUDY, encoding="utf-8")
    done = stack.run("orchestrator", ["edgefront", "submit", str(file)], capture_output=True)
    if done.returncode:
        raise StackError(f"edgefront submit failed: {done.stderr}{done.stdout}")
    deadline = monotonic() + _STUDY_S
    told = -1
    while monotonic() < deadline:
        found = stack.run("orchestrator", ["edgefront", "status", "tiny", "--json"], capture_output=True)
        if found.returncode == 0 and json.loads(found.stdout)["told"] != told:
            told = json.loads(found.stdout)["told"]
            say(f"tiny: {told} of 3 trials told")
        if told == 3:
            return
        sleep(0.5)
    raise StackError(f"the study has not ended after {_STUDY_S:g} s; its logs are in {stack.root}/logs")


def _check_live_page(stack: Stack) -> None:
    url = f"http://{stack.addresses['dashboard']}:8450/api/study/tiny"
    token = (stack.root / "volumes" / "secrets" / "dashboard").read_text(encoding="utf-8")
    if _status(url) != 401:
        raise StackError(f"{url} answers without its token")
    data = _json(url, {"Authorization": f"Bearer {token}"})
    if data["told"] != 3:
        raise StackError(f"{url} shows {data['told']} of 3 trials")
    boards = _json(url.replace("study/tiny", "boards"), {"Authorization": f"Bearer {token}"})
    say(f"live page: 3 trials, {len(boards['boards'])} boards")


def _check_prometheus(stack: Stack) -> None:
    """Whether every process of ours is scraped, and the study's metrics are there."""
    if "prometheus" not in running(stack.root):
        return
    base = f"http://{stack.addresses['prometheus']}:9090/api/v1/query?query="
    deadline = monotonic() + 30
    while monotonic() < deadline:
        up = _json(base + urllib.parse.quote('up{job=~"edgefront-.*"}'), {})["data"]["result"]
        told = _json(base + urllib.parse.quote('edgefront_trials_told{study="tiny"}'), {})["data"]["result"]
        down = [one["metric"]["instance"] for one in up if one["value"][1] != "1"]
        if up and not down and told:
            say(f"Prometheus: {len(up)} processes up, {told[0]['value'][1]} trials told")
            return
        sleep(0.5)
    raise StackError(f"Prometheus: of {len(up)} processes these are down: {down}; trials told: {told}")


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def _json(url: str, headers: dict[str, str]) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
