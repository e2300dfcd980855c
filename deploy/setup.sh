#!/bin/sh
# Makes the virtual environment and installs Edgefront into it: `make setup` calls this, once.
#
# Whatever is missing is said in one line with the remedy, and the script ends with code 1. Nothing outside the
# virtual environment is touched and no root is needed.
#
#   VENV    folder of the virtual environment                     (default .venv)
#   PYTHON  the interpreter to use; default: the newest that is at least 3.11 and has `venv`
#   TORCH   the PyTorch requirement, installed first               (default torch==2.13.0)
#   EXTRAS  parts of pyproject.toml to install                     (default: all that search, boards and tests need)
set -u

VENV=${VENV:-.venv}
TORCH=${TORCH:-torch==2.13.0}
EXTRAS=${EXTRAS:-search,virtual,boards,joulescope,ina226,dev}
STAMP=$VENV/.edgefront-installed
LOG=$VENV/install.log

die() {
  printf 'edgefront: %s\n' "$1" >&2
  exit 1
}

# Prints "major.minor" of an interpreter that is new enough; false for one that is not or does not start.
new_enough() {
  "$1" -c 'import sys; sys.version_info >= (3, 11) or sys.exit(1); print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# The newest first: later interpreters are faster. A name on the PATH may be a shim that does not start, so each is tried.
find_python() {
  best='' best_minor=0
  for name in python3.14 python3.13 python3.12 python3.11 python3; do
    version=$(new_enough "$name") || continue
    minor=${version#3.}
    if [ "$minor" -gt "$best_minor" ] && [ "$minor" -le 14 ]; then best=$name best_minor=$minor; fi
  done
  [ -n "$best" ] && printf '%s\n' "$best"
}

install() {
  what=$1
  shift
  if ! "$VENV/bin/python" -m pip install --disable-pip-version-check "$@" >>"$LOG" 2>&1; then
    if grep -q 'No matching distribution found' "$LOG"; then
      missing=$(sed -n 's/.*No matching distribution found for \([^ ]*\).*/\1/p' "$LOG" | tail -n 1)
      die "no wheel of $missing for Python $("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') on $(uname -sm); remedy: rm -r $VENV, then make PYTHON=python3.12 (or another Python from 3.11 on)"
    fi
    if grep -q 'No space left on device' "$LOG"; then die "the disk is full; remedy: free 3 GB, or make VENV=/somewhere/with/room"; fi
    die "pip could not install $what; remedy: read $LOG, mend what it names (often the network), then make again"
  fi
}

if [ -n "${PYTHON:-}" ]; then
  new_enough "$PYTHON" >/dev/null || die "PYTHON=$PYTHON is not a Python from 3.11 on; remedy: make PYTHON=/path/to/python3.12"
else
  PYTHON=$(find_python) || die "no Python from 3.11 on was found; remedy: install one (Debian and Ubuntu: apt install python3 python3-venv; macOS: brew install python), then make again"
fi

if [ ! -x "$VENV/bin/python" ]; then
  "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$PYTHON has no venv or ensurepip module; remedy: apt install python3-venv (Debian, Ubuntu), or make PYTHON=/path/to/another/python3"
  printf 'Making %s with %s\n' "$VENV" "$("$PYTHON" --version 2>&1)"
  "$PYTHON" -m venv "$VENV" || die "$PYTHON could not make $VENV; remedy: rm -r $VENV, check the free disk space, then make again"
fi

: >"$LOG" || die "$VENV cannot be written; remedy: check its owner, or make VENV=/another/folder"
printf 'Installing PyTorch (%s); once, a few minutes\n' "$TORCH"
install PyTorch "$TORCH"
printf 'Installing Edgefront and the tools it needs; once, a minute or two\n'
install Edgefront -e ".[$EXTRAS]"
date -u +%Y-%m-%dT%H:%M:%SZ >"$STAMP"
printf 'Ready: %s/bin/edgefront --help\n' "$VENV"
