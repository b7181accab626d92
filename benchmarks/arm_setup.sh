#!/usr/bin/env bash
# An arm64 Python with the wheels that bundles need, and an emulator to run it: about 20 s, 300 MB, nothing installed.
#   benchmarks/arm_setup.sh FOLDER        Debian or Ubuntu on x86-64 with apt-get; needs no root, chroot or mount
# Packages come from this system's own mirror and are checked by its keyring. The emulator is QEMU 10 of Debian trixie:
# 7.2 of bookworm shows programs the host's /proc/cpuinfo and crashes ONNX Runtime.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
sources=/etc/apt/sources.list.d/debian.sources
command -v apt-get > /dev/null && [ -f "$sources" ] ||
  { echo "error: no Debian with $sources; the emulated Arm test is set up from its mirror" >&2; exit 2; }
mkdir -p "$1" && cd "$1"
[ -f finished ] && exit 0
mirror=$(awk 'BEGIN { RS = ""; ORS = "\n\n" } NR == 1' "$sources")
common="-o APT::Sandbox::User= -o Dir::Etc::SourceParts=/dev/null -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache="

mkdir -p emulator/lists/partial
echo "$mirror" | sed 's/^Suites:.*/Suites: trixie/' > emulator/trixie.sources
here="$common -o Dir::Etc::SourceList=$PWD/emulator/trixie.sources -o Dir::State::Lists=$PWD/emulator/lists"
apt-get -qq $here update
(cd emulator && apt-get -qq $here download qemu-user && dpkg -x qemu-user_*.deb x && mv x/usr/bin/qemu-aarch64 . && rm -rf x ./*.deb)

mkdir -p arm64/lists/partial arm64/packages arm64/root
echo "$mirror" | sed 's/^Suites:.*/Suites: bookworm/' > arm64/bookworm.sources
there="$common -o Dir::Etc::SourceList=$PWD/arm64/bookworm.sources -o Dir::State::Lists=$PWD/arm64/lists \
  -o Dir::State::status=/dev/null -o APT::Architecture=arm64 -o APT::Architectures::=arm64"
apt-get -qq $there update
(cd arm64/packages && apt-get -qq $there download python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 \
  libstdc++6 libgcc-s1 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libuuid1 libsqlite3-0 libgomp1
  for package in *.deb; do dpkg -x "$package" ../root; done)

pip="${PYTHON:-$root/.venv/bin/python} -m pip -q -q --disable-pip-version-check"
wheels="--python-version 3.11 --implementation cp --only-binary=:all:"
for tag in manylinux_2_28 manylinux_2_27 manylinux2014 manylinux_2_17; do wheels="$wheels --platform ${tag}_aarch64"; done
pinned=$(grep -E '^(numpy|onnxruntime|tokenizers)==' "$root/constraints.txt")
$pip download $wheels -d wheels $pinned
$pip install $wheels --no-index --find-links wheels --no-deps --target packages numpy onnxruntime tokenizers flatbuffers protobuf packaging
touch finished
