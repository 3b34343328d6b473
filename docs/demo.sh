#!/bin/sh
# Shows commands in a namespace of their own online through trio-pasta, and a QEMU guest online through trio-passt:
# `sh docs/demo.sh`, as root or with sudo. Debian, x86-64.
#
# `sh docs/demo.sh --namespace` shows the first half only. `sh docs/demo.sh --shell` leaves you at the guest's console
# instead of both; it ends when you leave that shell.
#
# The machine's own network is not touched: there are two namespaces, "host", where the daemon runs as a user without
# any privilege, and "remote", its router and the rest of the world, with addresses reserved for documentation.
# Missing Debian packages are installed. Everything else is in a temporary directory, and is removed at the end.
#
#   TRIO_PASST_WORK        where the guest's image is kept between runs, default /var/tmp/trio-passt-UID
#   TRIO_PASST_UNDER_TEST  another program to show, for example passt (then the first half is left out)
set -eu
umask 022

cd "$(dirname "$0")/.."
case ${1-} in
"" | --shell | --namespace) mode=${1-} ;;
*)
    echo "usage: sh docs/demo.sh [--namespace | --shell]" >&2
    exit 2
    ;;
esac
if [ "$(id -u)" != 0 ]; then
    echo "demo: asking sudo, to make network namespaces"
    exec sudo TRIO_PASST_UNDER_TEST="${TRIO_PASST_UNDER_TEST-}" sh "docs/demo.sh" $mode
fi

TRIO_PASST_WORK=${TRIO_PASST_WORK:-/var/tmp/trio-passt-0}
export TRIO_PASST_WORK PYTHONDONTWRITEBYTECODE=1
python=/usr/bin/python3
unprivileged=61124
as_nobody="setpriv --reuid=$unprivileged --regid=$unprivileged --clear-groups --inh-caps=-all --bounding-set=-all
    --no-new-privs"
host=tpdemo$$-host remote=tpdemo$$-remote
temporary=
daemon=
guest=
server=
tun_mode=
failed=0

bold='' plain=''
if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); fi
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '  %s\n' "$*"; }
indent() { sed 's/^/  /'; }
die() {
    echo "demo: $*" >&2
    exit 1
}

# ---- What has been started ends with this script, however that ends. ----

stop() { # PID...: ends processes that this script has started, and waits for them
    for process in "$@"; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
}

clean_up() {
    trap '' INT TERM HUP
    stop $guest $daemon $server
    for namespace in "$host" "$remote"; do
        if [ -e "/run/netns/$namespace" ]; then
            for process in $(ip netns pids "$namespace"); do kill -KILL "$process" 2>/dev/null || true; done
            ip netns delete "$namespace"
        fi
        rm -rf "/etc/netns/$namespace"
    done
    rmdir /etc/netns 2>/dev/null || true
    [ -z "$tun_mode" ] || chmod "$tun_mode" /dev/net/tun
    [ -z "$temporary" ] || rm -rf "$temporary"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---- What is needed ----

install_missing() {
    packages=
    command -v "$python" >/dev/null || packages="$packages python3"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"
    command -v curl >/dev/null || packages="$packages curl"
    command -v ip >/dev/null || packages="$packages iproute2"
    command -v iperf3 >/dev/null || packages="$packages iperf3"
    command -v qemu-system-x86_64 >/dev/null || packages="$packages qemu-system-x86"
    command -v socat >/dev/null || packages="$packages socat"
    if [ -n "$packages" ]; then
        say "installing$packages"
        get="apt-get install --yes --quiet=2 --no-install-recommends"
        export DEBIAN_FRONTEND=noninteractive
        $get $packages </dev/null >/dev/null 2>&1 ||
            { apt-get update --quiet=2 </dev/null && $get $packages </dev/null >/dev/null; }
    fi
}

title "Preparing (the first time takes a minute)"
[ "$(uname -m)" = x86_64 ] || die "the guest is built for x86-64"
install_missing
mkdir -p "$TRIO_PASST_WORK"
[ -O "$TRIO_PASST_WORK" ] || die "$TRIO_PASST_WORK belongs to someone else: set TRIO_PASST_WORK"
temporary=$(mktemp -d /var/tmp/trio-passt-demo.XXXXXX)
chmod 755 "$temporary"
mkdir -m 700 "$temporary/run"
chown "$unprivileged:$unprivileged" "$temporary/run"
program=${TRIO_PASST_UNDER_TEST-}
if [ -z "$program" ]; then
    "$python" -m venv "$temporary/venv"
    "$temporary/venv/bin/pip" install -qq --disable-pip-version-check .
    program=$temporary/venv/bin/trio-passt
    pasta=$temporary/venv/bin/trio-pasta
fi
say "program  $program"
if [ "$mode" != --namespace ]; then
    "$python" -m tests.guest.image >"$temporary/image"
    { read -r kernel && read -r initramfs; } <"$temporary/image"
    say "guest    Debian's kernel and busybox, $(du -h "$initramfs" | cut -f1)"
fi

# ---- The network: [host] uplink ---- uplink [remote] ----

namespace() { # NAME RESOLVER: makes a namespace; its loopback is up
    mkdir -p "/etc/netns/$1"
    echo "${2:+nameserver $2}" >"/etc/netns/$1/resolv.conf"
    ip netns add "$1"
    ip netns exec "$1" sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad'
    ip -n "$1" link set lo up
}

namespace "$host" 198.51.100.53
echo "nameserver 2001:db8:2::53" >>"/etc/netns/$host/resolv.conf"
namespace "$remote" ""
ip -n "$host" link add uplink type veth peer name uplink netns "$remote"
ip -n "$host" link set uplink up
ip -n "$host" address add 192.0.2.2/24 dev uplink
ip -n "$host" address add 2001:db8:1::2/64 dev uplink nodad
ip -n "$remote" link set uplink up
ip -n "$remote" address add 192.0.2.1/24 dev uplink
ip -n "$remote" address add fe80::a:1/64 dev uplink nodad
ip -n "$remote" route add 2001:db8:1::/64 dev uplink
for address in 198.51.100.2 2001:db8:2::2; do ip -n "$remote" address add "$address" dev lo; done
ip -n "$host" route add default via 192.0.2.1
ip -n "$host" -6 route add default via fe80::a:1 dev uplink
ip netns exec "$host" sh -c 'echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range'

title "The host's network"
ip -n "$host" -brief address show dev uplink | indent
ip -n "$host" route | indent
say "a remote machine is at 198.51.100.2 and 2001:db8:2::2, behind the gateway"

# ---- Commands in a namespace of their own ----

in_namespace() { # COMMAND-AS-TYPED COMMAND...: its output and status
    say "\$ trio-pasta --quiet -- $1"
    shift
    if ip netns exec "$host" $as_nobody env -i PATH="$PATH" HOME=/ "$pasta" --quiet -- "$@" \
        </dev/null >"$temporary/output" 2>&1; then
        status=0
    else
        status=$?
    fi
    indent <"$temporary/output"
}

check() { # CONDITION...: of the shell's test
    [ "$@" ] || {
        failed=1
        say "FAILED: $*"
    }
}

await_server() { # NAMESPACE PORT
    tries=0
    until ip netns exec "$1" ss -Hltn "sport = :$2" | grep -q .; do
        [ $((tries += 1)) -lt 100 ] || die "no server at port $2"
        sleep 0.1
    done
}

if [ "$mode" != --shell ] && [ -n "${pasta-}" ]; then
    # udev's usual mode; without udev it may be root's alone
    if [ "$(stat -c %a /dev/net/tun)" != 666 ]; then
        tun_mode=$(stat -c %a /dev/net/tun)
        chmod 666 /dev/net/tun
    fi
    mkdir "$temporary/www"
    echo "hello from the remote machine" >"$temporary/www/index.html"
    ip netns exec "$remote" "$python" -m http.server --directory "$temporary/www" --bind 198.51.100.2 8000 \
        >/dev/null 2>&1 &
    server=$!
    await_server "$remote" 8000

    title "A command in a namespace of its own, as user $unprivileged without capabilities; nothing is configured"
    in_namespace "ip -brief address" ip -brief address
    check "$status" = 0
    in_namespace "curl http://198.51.100.2:8000/" curl --silent --show-error http://198.51.100.2:8000/
    check "$(cat "$temporary/output")" = "hello from the remote machine"
    in_namespace "sh -c 'exit 7'" sh -c 'exit 7'
    say "status $status"
    check "$status" = 7
    stop "$server"
    server=

    title "A server in there: its port is found, and open to the remote machine"
    say "\$ trio-pasta --quiet -- python3 -m http.server 8080"
    ip netns exec "$host" $as_nobody env -i PATH="$PATH" HOME=/ "$pasta" --quiet -- \
        "$python" -m http.server --directory "$temporary/www" 8080 </dev/null >"$temporary/served" 2>&1 &
    server=$!
    await_server "$host" 8080
    say "remote\$ curl http://192.0.2.2:8080/"
    timeout 10 ip netns exec "$remote" curl --silent --show-error --interface 198.51.100.2 http://192.0.2.2:8080/ \
        >"$temporary/output" 2>&1 || true
    indent <"$temporary/output"
    check "$(cat "$temporary/output")" = "hello from the remote machine"
    say "the server's log: $(grep GET "$temporary/served")"
    check -n "$(grep '^198.51.100.2 ' "$temporary/served")"
    stop "$server"
    server=
    [ "$mode" != --namespace ] || {
        title "Done: $([ $failed = 0 ] && echo 'everything worked' || echo 'something FAILED, see above')"
        exit $failed
    }
fi

# ---- The daemon ----

title "The daemon starts, as user $unprivileged without capabilities"
socket=$temporary/run/socket
ip netns exec "$host" $as_nobody $program -f -s "$socket" -t 2222:22 \
    </dev/null >"$temporary/daemon.log" 2>&1 &
daemon=$!
tries=0
until [ -S "$socket" ]; do
    kill -0 "$daemon" 2>/dev/null || { cat "$temporary/daemon.log" >&2 && die "the daemon ended"; }
    [ $((tries += 1)) -lt 100 ] || die "the daemon does not get ready"
    sleep 0.1
done
sleep 0.2
grep -v syslog "$temporary/daemon.log" | indent

# ---- The guest ----

control=$temporary/run/control
netdev=stream,id=n,server=off,addr.type=unix,addr.path=$socket

qemu() { # SERIAL KERNEL-ARGUMENTS: replaces this shell
    "$python" -m tests.guest.machine argv "$kernel" "$initramfs" "$netdev" "$control" "$1" "$2" >"$temporary/argv"
    set --
    while read -r argument; do set -- "$@" "$argument"; done <"$temporary/argv"
    exec $as_nobody "$@"
}

if [ "$mode" = --shell ]; then
    ip netns exec "$remote" iperf3 -s >/dev/null &
    server=$!
    say "try there: ping 198.51.100.2, iperf3 -c 2001:db8:2::2 (-R), ip address; exit ends it"
    title "The guest starts (QEMU as the same user, without KVM): its console is yours"
    (qemu mon:stdio shell)
    exit
fi

in_guest() { "$python" -m tests.guest.machine run "$control" "$1"; }

show() { # TITLE COMMAND: what a command in the guest says; notes it when that fails
    title "$1"
    if ! in_guest "$2" >"$temporary/output" 2>"$temporary/errors"; then
        failed=1
        say "FAILED: $2"
        indent <"$temporary/errors"
    fi
    indent <"$temporary/output"
}

title "The guest boots (QEMU as the same user, without KVM)"
start=$(date +%s.%N)
(qemu "file:$temporary/run/console" "") </dev/null >"$temporary/qemu.log" 2>&1 &
guest=$!
tries=0
until [ -S "$control" ]; do
    kill -0 "$guest" 2>/dev/null || { cat "$temporary/qemu.log" >&2 && die "QEMU ended"; }
    [ $((tries += 1)) -lt 100 ] || die "QEMU does not start"
    sleep 0.1
done
in_guest true || die "the guest does not answer: $(tail -n 20 "$temporary/run/console")"
say "ready after $(awk "BEGIN { printf \"%.1f\", $(date +%s.%N) - $start }") s"

show "The guest asks for its network: DHCP, router advertisement, DHCPv6" \
    'online >/tmp/online 2>&1 || { cat /tmp/online; exit 1; }
     . /run/udhcpc.bound
     echo "lease      $ip/$mask, gateway $router, resolver $dns, MTU $mtu, for $lease s"
     sed -n "s/^ *iaaddr \(.*\) {/DHCPv6     \1/p; s/^ *option dhcp6.name-servers \(.*\);/resolver   \1/p" \
         /run/dhclient6.leases
     ip -brief -4 address show dev eth0
     ip -brief -6 address show dev eth0
     ip route show default; ip -6 route show default'

show "ping: the gateway and the remote machine, IPv4 and IPv6" \
    'status=0
     for address in 192.0.2.1 fe80::a:1%eth0 198.51.100.2 2001:db8:2::2; do
         ping -n -c 2 -i 0.2 -W 2 $address >/tmp/ping || status=1
         printf "%-16s %s\n" $address "$(sed -n "s/ packets transmitted,/ sent,/; s/, time.*//; /received/p" /tmp/ping)"
     done
     exit $status'

show "traceroute, and a closed UDP port: the guest hears what routers and hosts say" \
    'traceroute -n -q 1 -m 4 198.51.100.2 | tail -n +2; traceroute -n -q 1 -m 4 2001:db8:2::2 | tail -n +2
     for remote in 198.51.100.2 "[2001:db8:2::2]"; do
         echo hello | socat -T 2 - "UDP:$remote:9" 2>&1 | sed "s/.*: Conn/UDP port 9 of $remote: conn/"
     done'

# ---- Transfers, each with the sum of what arrived ----

bytes=50000000
head -c $bytes /dev/urandom >"$temporary/file"

remote_socat() { # PORT FROM TO: moves one connection in the remote namespace, at the port
    ip netns exec "$remote" socat -u -b 262144 "$2" "$3" &
    server=$!
    tries=0
    until ip netns exec "$remote" ss -Hltn "sport = :$1" | grep -q .; do
        [ $((tries += 1)) -lt 100 ] || die "no server at port $1"
        sleep 0.1
    done
}

sum() { sha256sum "$1" | cut -d ' ' -f 1; }

show_transfer() { # TITLE COMMAND: a command in the guest that moves the file, timed by the guest's clock
    title "$1"
    if in_guest "read start _ </proc/uptime; $2 || exit; read end _ </proc/uptime; echo \$start \$end; \
        sha256sum /tmp/file" >"$temporary/output" 2>"$temporary/errors"; then
        { read -r start end && read -r guest_sum _; } <"$temporary/output"
        say "$(awk "BEGIN { b = $bytes / 1e6; s = $end - $start; printf \"%d MB in %.2f s: %.0f Mbit/s\", b, s, 8 * b / s }")"
    else
        failed=1 guest_sum=none
        say "FAILED: $2"
        indent <"$temporary/errors"
    fi
}

compare() { # SUM SUM
    if [ "$1" = "$2" ]; then
        say "SHA-256 is the same on both sides"
    else
        failed=1
        say "FAILED: SHA-256 is $1 on one side, $2 on the other"
    fi
}

remote_socat 5001 "OPEN:$temporary/file" TCP4-LISTEN:5001,bind=198.51.100.2
show_transfer "Download from the remote machine, IPv4" \
    "socat -u -b 262144 TCP:198.51.100.2:5001 CREATE:/tmp/file"
compare "$(sum "$temporary/file")" "$guest_sum"
stop "$server"
server=

remote_socat 5002 'TCP6-LISTEN:5002,bind=[2001:db8:2::2]' "CREATE:$temporary/uploaded"
show_transfer "Upload to the remote machine, IPv6" \
    "socat -t 30 -b 262144 OPEN:/tmp/file,rdonly!!OPEN:/dev/null TCP:[2001:db8:2::2]:5002"
wait "$server" || true
server=
compare "$(sum "$temporary/uploaded")" "$guest_sum"

# ---- A forwarded port ----

title "Forwarded port: the remote machine connects to the host's port 2222, the guest's port 22 answers"
for listen in TCP4-LISTEN:22 TCP6-LISTEN:22,ipv6only=1; do
    in_guest "setsid socat $listen,reuseaddr,fork 'SYSTEM:echo \"hello \$SOCAT_PEERADDR, here is \$(hostname)\"' \
        </dev/null >/dev/null 2>&1 &"
done
in_guest "for _ in \$(seq 50); do [ \$(ss -Hltn 'sport = :22' | wc -l) = 2 ] && break; sleep 0.1; done"

greet() { # CLIENT SERVER
    answer=$(timeout 10 ip netns exec "$remote" socat -u "TCP:$2:2222,bind=$1" - 2>&1) || true
    case $answer in
    hello*) ;;
    *) failed=1 answer="FAILED: $answer" ;;
    esac
    printf '  %-20s %s\n' "$2" "$answer"
}
greet 198.51.100.2 192.0.2.2
greet '[2001:db8:2::2]' '[2001:db8:1::2]'

# ---- The end ----

title "The guest is switched off, the daemon gets SIGTERM"
stop "$guest"
guest=
say "daemon: $(grep VmRSS "/proc/$daemon/status" | awk '{ printf "%.0f MiB", $2 / 1024 }') of memory"
kill "$daemon"
status=0
wait "$daemon" || status=$?
daemon=
say "daemon: exit status $status"
[ "$status" = 0 ] || failed=1

title "Done: $([ $failed = 0 ] && echo 'everything worked' || echo 'something FAILED, see above')"
exit $failed
