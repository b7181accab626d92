#!/usr/bin/env bash
# Programs that tests start, from Debian's packages where they lack and may be installed: by root, with apt-get.
# Elsewhere one line says what lacks and the run goes on: the tests that need it are skipped.
set -euo pipefail
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" # where sshd, ip and tc are, for users other than root too
missing=()
lacks() { missing+=("$1"); }
command -v chromium chromium-browser google-chrome > /dev/null || lacks chromium
command -v ssh > /dev/null || lacks openssh-client
command -v ip > /dev/null || lacks iproute2
command -v cc gcc clang > /dev/null || lacks gcc
command -v npm > /dev/null || lacks npm
if ! command -v sshd > /dev/null; then
  # There its installation would start a server that the whole network can reach, which nobody asked for.
  [ -d /run/systemd/system ] && echo "tests of boards need sshd: install openssh-server" || lacks openssh-server
fi
[ ${#missing[@]} = 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "not installed, so tests that need them are skipped (root with apt-get would install them): ${missing[*]}"
  exit 0
fi
echo "installing for tests: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update && apt-get -qq install --no-install-recommends "${missing[@]}" > /dev/null ||
  echo "apt-get could not install ${missing[*]}, so tests that need them are skipped"
