#!/bin/sh
# Makes a folder with Wine and Inno Setup's compiler, in which the tests of packaging/windows compile and run an
# installer:
#
#   tests/packaging/wine_root.sh /var/tmp/wine-root && REFIT_AGENT_WINE_ROOT=/var/tmp/wine-root python -m pytest tests/packaging
#
# Needs root, debootstrap, npm and a network; takes a minute and 1.2 GB. A root of its own, since the compiler is a 32-bit
# program: Wine for it would bring a second architecture into this system.
set -eu
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
root=$1
mirror=http://deb.debian.org/debian
[ ! -e "$root/done" ] || exit 0
debootstrap --arch=i386 --variant=minbase bookworm "$root" "$mirror" >/dev/null
echo "deb $mirror bookworm main" >"$root/etc/apt/sources.list"
cp /etc/resolv.conf "$root/etc/resolv.conf"
chroot "$root" sh -ec '
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends wine wine32 xvfb xauth </dev/null
  apt-get clean
  rm -rf /var/lib/apt/lists
' >/dev/null 2>&1
# Carries ISCC.exe with everything that it needs; npm compares the archive with the registry's hash.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && npm pack --silent innosetup-compiler@6.3.1 >/dev/null && tar xzf innosetup-compiler-6.3.1.tgz)
mkdir "$root/inno"
cp -r "$work/package/bin" "$root/inno/"
touch "$root/done"
