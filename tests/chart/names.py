"""A small DNS server that answers as the DNS of Kubernetes does, from what a function knows at that moment.

Only A records over UDP, no caching allowed (TTL 0). A name that exists without an address of the kind asked for gets an empty
answer, one that does not exist NXDOMAIN: a resolver treats the two differently.
"""

import socket
import struct
import threading

A, AAAA = 1, 28


def question_of(message):
    """The name asked for, its type, and where the question ends."""
    labels, at = [], 12
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode("ascii").lower())
        at += 1 + message[at]
    (kind,) = struct.unpack_from("!H", message, at + 1)
    return ".".join(labels), kind, at + 5


def answer(message, addresses):
    """The reply to a query; `addresses` is a list of IPv4 addresses, or None for a name that does not exist."""
    identifier, flags = struct.unpack_from("!HH", message)
    _, kind, end = question_of(message)
    records = [] if addresses is None or kind != A else addresses
    code = 3 if addresses is None else 0
    # An answer, authoritative, and "recursion desired" as it was asked.
    head = struct.pack("!HHHHHH", identifier, 0x8400 | (flags & 0x0100) | code, 1, len(records), 0, 0)
    body = b"".join(
        struct.pack("!HHHIH", 0xC00C, A, 1, 0, 4) + socket.inet_aton(address) for address in records
    )
    return head + message[12:end] + body


def serve(address, look_up):
    """Serves in the background; `look_up(name, asker)` gives addresses or None."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, 53))

    def loop():
        while True:
            message, asker = udp.recvfrom(4096)
            try:
                name, _, _ = question_of(message)
                udp.sendto(answer(message, look_up(name, asker[0])), asker)
            except (IndexError, UnicodeDecodeError, struct.error):
                continue  # not a query

    threading.Thread(target=loop, daemon=True).start()
