#!/usr/bin/env bash
# One virtual environment per peer, outside the repository: setup.sh NAME... | all
# Environments lie in $FMOPT_PEERS, by default ${XDG_CACHE_HOME:-~/.cache}/fmopt-peers. A peer that cannot be installed is a
# result too: the installer's last lines are kept in NAME/install-error.txt, and the table shows them.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=${FMOPT_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/fmopt-peers}
python=${PYTHON:-python3}

[ $# -gt 0 ] || { echo "usage: setup.sh NAME... | all   (names: $(cd "$here/requirements" && echo *.txt | sed 's/\.txt//g'))" >&2; exit 2; }
[ "$1" != all ] || set -- $(cd "$here/requirements" && echo *.txt | sed 's/\.txt//g')

failed=0
for name in "$@"; do
  requirements=$here/requirements/$name.txt
  [ -f "$requirements" ] || { echo "no peer named $name: there is no $requirements" >&2; exit 2; }
  home=$root/$name
  mkdir -p "$home"
  if [ -f "$home/.ready" ] && cmp -s "$requirements" "$home/.ready"; then echo "$name: ready"; continue; fi
  rm -rf "$home/env" "$home/.ready" "$home/install-error.txt"
  "$python" -m venv "$home/env"
  # torch comes first and pinned: left to the resolver it would pull gigabytes of CUDA packages
  torch=$(grep '^torch==' "$requirements")
  if { [ -z "$torch" ] || nice "$home/env/bin/pip" install --quiet "$torch" 2>"$home/install.log"; } &&
     nice "$home/env/bin/pip" install --quiet -r "$requirements" 2>>"$home/install.log"; then
    "$home/env/bin/pip" freeze > "$home/freeze.txt"
    cp "$requirements" "$home/.ready"
    echo "$name: installed"
  else
    grep -E "ERROR|error" "$home/install.log" | tail -5 > "$home/install-error.txt"
    echo "$name: NOT installed; see $home/install.log" >&2
    failed=1
  fi
done
exit $failed
