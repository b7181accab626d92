#!/usr/bin/env bash
# Python sources of the packages in packages.txt, below FOLDER: their docstrings are texts to distil on (texts.py --sources).
#
#     benchmarks/packages.sh out/packages        a gigabyte of wheels, of which the .py files are kept; nothing is installed
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/wheels"
"$here/../.venv/bin/pip" download --quiet --no-deps --only-binary=:all: --dest "$1/wheels" --requirement "$here/packages.txt"
for wheel in "$1"/wheels/*.whl; do
  name=$(basename "$wheel"); name=${name%%-*}
  [ ! -d "$1/$name" ] || continue
  unzip -q -o "$wheel" '*.py' -d "$1/.part"
  mv "$1/.part" "$1/$name"
done
rm -r "$1/wheels"
