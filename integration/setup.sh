#!/bin/sh
# Installs those of the given Debian packages that are missing. A package that cannot be installed is one clear line.
set -eu
missing=
for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "setup: prerequisite: run it as root, or install:$missing" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "setup: prerequisite: no apt-get here; install:$missing" >&2; exit 1; }
echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The package lists may be older than the archive.
# shellcheck disable=SC2086 # a list of words
apt-get install -qq -y --no-install-recommends $missing >"$log" 2>&1 ||
    { apt-get update -qq >>"$log" 2>&1 && apt-get install -qq -y --no-install-recommends $missing >>"$log" 2>&1; } ||
    { tail -n 5 "$log" >&2; echo "setup: prerequisite: apt-get could not install:$missing" >&2; exit 1; }
