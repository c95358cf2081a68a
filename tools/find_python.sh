#!/bin/sh
# Print the path of a Python 3.12 that can carry the project, or say on stderr how to get one.
# In sh, because there may be no Python at all. PYTHON names one to use instead of looking.

here=$(cd "$(dirname "$0")/.." && pwd)
tab=$(printf '\t')

# Prints nothing when `$1` will do, else what is wrong with it.
fault() {
  "$1" - 2>/dev/null <<'PYTHON' || echo "does not run"
import os, sys, sysconfig
from importlib.util import find_spec
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
if sys.version_info[:2] != (3, 12):
    print("is Python %d.%d" % sys.version_info[:2])
elif find_spec("ensurepip") is None and os.system("uv --version >/dev/null 2>&1"):
    print("has no ensurepip; on Debian and Ubuntu: sudo apt install python3.12-venv")
elif os.environ.get("ROS_DISTRO") != "jazzy" and not os.path.exists(header):
    print("has no Python.h, which the messages need; on Debian and Ubuntu: sudo apt install python3.12-dev")
PYTHON
}

candidates() {
  if [ -n "$PYTHON" ]; then
    command -v "$PYTHON" || echo "$PYTHON"
    return
  fi
  echo "$here/.venv/bin/python"
  command -v python3.12
  command -v python3
  command -v python
  ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12 2>/dev/null
  ls -d "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}"/cpython-3.12*/bin/python3.12 2>/dev/null
}

rejected=
while read -r candidate; do
  [ -x "$candidate" ] || [ -n "$PYTHON" ] || continue
  wrong=$(fault "$candidate")
  if [ -z "$wrong" ]; then
    echo "$candidate"
    exit 0
  fi
  rejected="$rejected$tab$candidate $wrong
"
done <<LIST
$(candidates)
LIST

{
  echo "no Python 3.12 that will do. Looked at PYTHON, PATH, pyenv and uv:"
  printf '%s' "${rejected:-$tab(there is none)
}"
  echo "Get one with any of these, then run make again:"
  echo "${tab}sudo apt install python3.12 python3.12-venv python3.12-dev    (Ubuntu 24.04)"
  echo "${tab}uv python install 3.12"
  echo "${tab}pyenv install 3.12"
} >&2
exit 1
