"""What qrap makes of QEMU's command line."""

import ast
import json

import pytest
from load_qrap import PROGRAM, qrap

VIRTIO = "-device virtio-net-pci,netdev=qrap"
Q35_VIRTIO = "-device virtio-net-pci,bus=pcie.0,netdev=qrap"
BACK_END = "-netdev socket,id=qrap,fd=7"
MAC = "52:54:00:00:00:01"


def rewritten(arguments: str, architecture: str = "x86_64") -> str:
    return " ".join(qrap.rewrite(arguments.split(), 7, architecture))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # nothing about a network
        ("", f"{VIRTIO} {BACK_END}"),
        ("disk.img -m 1G", f"disk.img -m 1G {VIRTIO} {BACK_END}"),
        (
            "-m 1G -device virtio-rng-pci",
            f"-m 1G -device virtio-rng-pci {VIRTIO} {BACK_END}",
        ),
        (
            "-device i8042 -device i82374",
            f"-device i8042 -device i82374 {VIRTIO} {BACK_END}",
        ),
        # back-ends without a card
        ("-net none -m 1G", f"-m 1G {VIRTIO} {BACK_END}"),
        ("-nic none -m 1G", f"-m 1G {VIRTIO} {BACK_END}"),
        ("-net user -m 1G", f"-m 1G {VIRTIO} {BACK_END}"),
        ("-netdev tap,id=t,ifname=tap0 -m 1G", f"-m 1G {VIRTIO} {BACK_END}"),
        ("--netdev user,id=u --nic none", f"{VIRTIO} {BACK_END}"),
        # the card of a -device stays where and what it is
        (
            "-device e1000,netdev=u,mac=52:54:00:00:00:01,bus=pci.0,addr=0x9 -netdev user,id=u -m 1G",
            "-device e1000,netdev=u,mac=52:54:00:00:00:01,bus=pci.0,addr=0x9 -m 1G -netdev socket,id=u,fd=7",
        ),
        (
            "-device virtio-net-pci,romfile=",
            f"-device virtio-net-pci,romfile=,netdev=qrap {BACK_END}",
        ),
        (
            "-device driver=rtl8139,x,,y=a,,,b",
            f"-device rtl8139,x,,y=a,,,b,netdev=qrap {BACK_END}",
        ),
        (
            "-device novel-nic,netdev=u",
            "-device novel-nic,netdev=u -netdev socket,id=u,fd=7",
        ),
        (
            "-netdev user,id=u -object filter-dump,id=f,netdev=u,file=x -device e1000,netdev=u",
            "-object filter-dump,id=f,netdev=u,file=x -device e1000,netdev=u -netdev socket,id=u,fd=7",
        ),
        # the card of a -nic or -net nic becomes a -device
        ("-nic user", f"{VIRTIO} {BACK_END}"),
        (
            f"-nic user,model=e1000,mac={MAC} -m 1G",
            f"-device e1000,mac={MAC},netdev=qrap -m 1G {BACK_END}",
        ),
        (
            f"-net nic,macaddr={MAC} -net user",
            f"-device virtio-net-pci,mac={MAC},netdev=qrap {BACK_END}",
        ),
        ("-net nic,model=virtio -net user", f"{VIRTIO} {BACK_END}"),
        (
            "-netdev user,id=u -net nic,netdev=u,model=rtl8139,addr=9",
            "-device rtl8139,netdev=u,addr=9 -netdev socket,id=u,fd=7",
        ),
        # one card only
        (
            "-device e1000 -device rtl8139 -nic user -net nic",
            f"-device e1000,netdev=qrap {BACK_END}",
        ),
        (
            "-device e1000,netdev=a -device e1000,netdev=b -netdev user,id=a -netdev user,id=b",
            "-device e1000,netdev=a -netdev socket,id=a,fd=7",
        ),
        # machines
        ("-M q35", f"-M q35 {Q35_VIRTIO} {BACK_END}"),
        (
            "-machine accel=kvm -machine type=pc-q35-6.2 -M hpet=off",
            f"-machine accel=kvm -machine type=pc-q35-6.2 -M hpet=off {Q35_VIRTIO} {BACK_END}",
        ),
        (
            "-M q35 -nic user,model=e1000",
            f"-M q35 -device e1000,netdev=qrap {BACK_END}",
        ),
        (
            "-M q35 -device virtio-net-pci,addr=9",
            f"-M q35 -device virtio-net-pci,addr=9,netdev=qrap {BACK_END}",
        ),
        ("-M pc", f"-M pc -device virtio-net-pci,bus=pci.0,netdev=qrap {BACK_END}"),
        (
            "-M pc-i440fx-5.2",
            f"-M pc-i440fx-5.2 -device virtio-net-pci,bus=pci.0,netdev=qrap {BACK_END}",
        ),
        (
            "-M microvm,pic=off",
            f"-M microvm,pic=off -device virtio-net-device,netdev=qrap {BACK_END}",
        ),
        ("-M virt", f"-M virt {VIRTIO} {BACK_END}"),
        (
            "-M s390-ccw-virtio",
            f"-M s390-ccw-virtio -device virtio-net-ccw,netdev=qrap {BACK_END}",
        ),
        # for QEMU to complain about
        ("-m 1G -netdev", f"-m 1G -netdev {VIRTIO} {BACK_END}"),
        ("-device {broken", f"-device {{broken {VIRTIO} {BACK_END}"),
        ("-device netdev=u", f"-device netdev=u {VIRTIO} {BACK_END}"),
    ],
)
def test_one_card_on_the_socket(arguments: str, expected: str) -> None:
    assert rewritten(arguments) == expected


@pytest.mark.parametrize(
    ("architecture", "card"),
    [
        ("x86_64", "virtio-net-pci"),
        ("aarch64", "virtio-net-pci"),
        ("s390x", "virtio-net-ccw"),
    ],
)
def test_the_default_machines_card(architecture: str, card: str) -> None:
    assert rewritten("", architecture) == f"-device {card},netdev=qrap {BACK_END}"


def test_json_as_libvirt_writes_it() -> None:
    card = {
        "driver": "virtio-net-pci",
        "netdev": "hostnet0",
        "mq": True,
        "addr": "0x3",
        "id": "nét0",
    }
    other = '{"driver":"pcie-root-port","port":8}'
    words = [
        "-netdev",
        '{"type":"tap","fd":"27","id":"hostnet0"}',
        "-device",
        json.dumps(card),
        "-device",
        other,
    ]
    option, device, *rest = qrap.rewrite(words, 7, "x86_64")
    assert option == "-device"
    assert json.loads(device) == card
    assert rest == ["-device", other, "-netdev", "socket,id=hostnet0,fd=7"]


@pytest.mark.parametrize(
    ("arguments", "fd"),
    [
        ("-netdev socket,id=n,fd=5 -device e1000,netdev=n", 5),
        ("-net nic -net socket,fd=12", 12),
        ("-nic socket,model=e1000,fd=5", 5),
        ('-netdev {"type":"socket","id":"n","fd":"5"}', 5),
        ("-netdev socket,id=n,fd=monitors-name", None),
        ("-netdev socket,id=n,connect=127.0.0.1:9", None),
        ("-netdev tap,id=n,fd=5", None),
        ("-chardev socket,fd=5,id=c", None),
        ("", None),
    ],
)
def test_a_descriptor_that_is_expected_already(arguments: str, fd: int | None) -> None:
    assert qrap.expected_fd(arguments.split()) == fd


@pytest.mark.parametrize(
    ("arguments", "informs"),
    [
        ("-help", True),
        ("--version", True),
        ("-M help", True),
        ("-device ?", True),
        ("-device e1000,help", True),
        ("-S -nographic -machine none,accel=kvm:tcg -qmp stdio", True),
        ("-name help", False),
        ("-device e1000", False),
        ("-nic none", False),
        ("", False),
    ],
)
def test_whether_there_is_a_guest_at_all(arguments: str, informs: bool) -> None:
    assert qrap.only_informs(arguments.split()) is informs


def test_it_is_python_3_9() -> None:
    ast.parse(PROGRAM.read_text(), feature_version=(3, 9))
