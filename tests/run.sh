#!/bin/sh
# Runs every check of the project on a Debian machine: `sh tests/run.sh [NOX ARGUMENT]...`.
#
# What is missing is installed with apt-get (that needs root; so do the integration tests). Everything else goes
# to one directory outside the checkout, because the integration tests run the daemon as an unprivileged user, who
# may not be allowed to enter the directory that the checkout is in:
#
#   TRIO_PASST_WORK   default /var/tmp/trio-passt-UID: virtual environments, the guest image, packages. Safe to delete.
#
# Examples:  sh tests/run.sh               all sessions
#            sh tests/run.sh -s lint types
#            sh tests/run.sh -s integration -- -k dhcp
set -eu
umask 022

cd "$(dirname "$0")/.."
TRIO_PASST_WORK=${TRIO_PASST_WORK:-/var/tmp/trio-passt-$(id -u)}
export TRIO_PASST_WORK
python=/usr/bin/python3 # not a pyenv's: an unprivileged user must be able to execute it

die() {
    echo "tests/run.sh: $*" >&2
    exit 1
}

# missing: names of the Debian packages whose command is not there, one a line.
missing() {
    while read -r command package; do
        command -v "$command" >/dev/null || echo "$package"
    done <<-COMMANDS
	$python python3
	gcc gcc
	groff groff-base
	ip iproute2
	iperf3 iperf3
	ping iputils-ping
	qemu-system-x86_64 qemu-system-x86
	setpriv util-linux
	slirp4netns slirp4netns
	strace strace
	traceroute traceroute
	tshark tshark
	COMMANDS
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    echo '#include <Python.h>' | gcc "-I$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
        -E -o /dev/null - 2>/dev/null || echo python3-dev
    echo '#include <linux/if_tun.h>' | gcc -E -o /dev/null - 2>/dev/null || echo libc6-dev
}

install_packages() {
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends "$@" </dev/null >/dev/null
}

packages=$(missing)
if [ -n "$packages" ]; then
    packages=$(echo "$packages" | tr '\n' ' ')
    [ "$(id -u)" = 0 ] || die "as root, first: apt-get install --no-install-recommends $packages"
    echo "tests/run.sh: installing $packages"
    # shellcheck disable=SC2086 # a list of words
    install_packages $packages 2>/dev/null || { apt-get update --quiet=2 && install_packages $packages; }
fi

mkdir -p "$TRIO_PASST_WORK"
[ -O "$TRIO_PASST_WORK" ] || die "$TRIO_PASST_WORK belongs to someone else: set TRIO_PASST_WORK to another directory"
if ! "$TRIO_PASST_WORK/runner/bin/python" -m nox --version >/dev/null 2>&1; then
    "$python" -m venv --clear "$TRIO_PASST_WORK/runner"
    "$TRIO_PASST_WORK/runner/bin/pip" install -qq --disable-pip-version-check 'nox>=2024.4.15'
fi
exec "$TRIO_PASST_WORK/runner/bin/python" -m nox --envdir "$TRIO_PASST_WORK/nox" "$@" </dev/null
