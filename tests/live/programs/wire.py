"""The cable between two network namespaces, with faults: `wire.py PID PID FAULT`.

A TUN device in each namespace, 10.77.0.1 and 10.77.0.2; what one sends goes to the other. Prints a
line when it is ready. FAULT, for segments with payload on their way to 10.77.0.2:

  none      no fault
  lose      every 7th is lost
  swap      each pair comes in the other order
  double    each comes twice
  forge     each comes again with other content, as if sent again
  ahead     a segment from beyond any window comes after each
"""

import ctypes
import fcntl
import os
import select
import socket
import struct
import sys

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 1, 0x1000
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFFLAGS = 0x8916, 0x891C, 0x8914
_CLONE_NEWNET = 0x40000000
MTU = 1500


def plug(pid: int, address: str) -> int:
    """A TUN device in the namespace of a process; its descriptor."""
    with open(f"/proc/{pid}/ns/net") as space:
        if ctypes.CDLL(None).setns(space.fileno(), _CLONE_NEWNET):
            raise OSError("setns")
    tun: int = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"wire", _IFF_TUN | _IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.0")):
            name = struct.pack("16sH2x4s8x", b"wire", socket.AF_INET, socket.inet_aton(value))
            fcntl.ioctl(control, request, name)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"wire", 0x41))
    return tun


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) & 1 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def payload_at(packet: bytes) -> int:
    """Where the payload of a TCP segment over IPv4 begins."""
    header = (packet[0] & 15) * 4
    return header + (packet[header + 12] >> 4) * 4


def changed(packet: bytes, payload: bytes, ahead: int = 0) -> bytes:
    """The segment with another payload, so far ahead in sequence, its checksum right."""
    header = (packet[0] & 15) * 4
    tcp = bytearray(packet[header : payload_at(packet)])
    (sequence,) = struct.unpack_from("!I", tcp, 4)
    struct.pack_into("!I", tcp, 4, (sequence + ahead) & 0xFFFFFFFF)
    tcp[16:18] = b"\0\0"
    segment = bytes(tcp) + payload
    pseudo = packet[12:20] + struct.pack("!HH", 6, len(segment))
    struct.pack_into("!H", tcp, 16, checksum(pseudo + segment))
    return packet[:header] + bytes(tcp) + payload


def deliver(fault: str, packet: bytes, count: int, waiting: list[bytes]) -> list[bytes]:
    """What comes out at the other end for one segment with payload."""
    payload = packet[payload_at(packet) :]
    if fault == "lose":
        return [] if count % 7 == 6 else [packet]
    if fault == "double":
        return [packet, packet]
    if fault == "forge":
        return [packet, changed(packet, bytes(255 - byte for byte in payload))]
    if fault == "ahead":
        return [packet, changed(packet, payload, 1 << 30)]
    if fault == "swap" and not waiting:
        waiting.append(packet)
        return []
    return [packet, *(waiting.pop() for _ in list(waiting))]


def main(first: int, second: int, fault: str) -> None:
    ends = plug(first, "10.77.0.1"), plug(second, "10.77.0.2")
    print("ready", flush=True)
    count, waiting = 0, list[bytes]()
    while True:
        # Soon, for what waits for a successor that does not come.
        ready = select.select([0, *ends], [], [], 0.005 if waiting else None)[0]
        if 0 in ready:
            return  # whoever started us has ended
        if not ready:
            os.write(ends[1], waiting.pop())
        for tun in ready:
            packet = os.read(tun, MTU + 64)
            if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
                continue
            if tun == ends[1] or len(packet) == payload_at(packet):
                os.write(ends[1 - ends.index(tun)], packet)
                continue
            for one in deliver(fault, packet, count, waiting):
                os.write(ends[1], one)
            count += 1


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
