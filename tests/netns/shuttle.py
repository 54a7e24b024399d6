#!/usr/bin/env python3
"""The link between two network namespaces: carries packets between two TUN devices, late, and some of them not.

Usage: shuttle.py NAMESPACE_A DEVICE_A NAMESPACE_B DEVICE_B CONTROL

Makes the devices, moves each into its namespace, says "ready", and obeys lines from the named pipe CONTROL:

    delay MS        every packet takes so long, in either direction
    loss PERCENT    so many packets of either direction are lost, at random
    drop a|b|none   packets that come from A (or B) are all lost

A kernel with tc netem would do the same; this needs none.
"""
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
# Packets on their way; a real link has a queue that ends too.
MAX_QUEUED = 20000


def open_device(namespace, device):
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN_NO_PI))
    subprocess.check_call(["ip", "link", "set", device, "netns", namespace])
    return descriptor


def main():
    namespace_a, device_a, namespace_b, device_b, control = sys.argv[1:]
    a, b = open_device(namespace_a, device_a), open_device(namespace_b, device_b)
    # Both ends are kept open, so that it never ends when a writer is done.
    pipe = os.open(control, os.O_RDWR | os.O_NONBLOCK)
    print("ready", flush=True)
    delay, loss, dropped = 0.0, 0.0, None
    queue, count, commands = [], 0, b""
    while True:
        timeout = max(0.0, queue[0][0] - time.monotonic()) if queue else 1.0
        for descriptor in select.select([a, b, pipe], [], [], timeout)[0]:
            if descriptor == pipe:
                commands += os.read(pipe, 4096)
                *lines, commands = commands.split(b"\n")
                for word, value in (line.decode().split() for line in lines):
                    if word == "delay":
                        delay = float(value) / 1000
                    elif word == "loss":
                        loss = float(value) / 100
                    elif word == "drop":
                        dropped = {"a": a, "b": b}.get(value)
                continue
            try:
                packet = os.read(descriptor, 65536)
            except OSError:
                continue  # The device is down.
            if descriptor == dropped or random.random() < loss or len(queue) >= MAX_QUEUED:
                continue
            count += 1
            heapq.heappush(queue, (time.monotonic() + delay, count, b if descriptor == a else a, packet))
        while queue and queue[0][0] <= time.monotonic():
            _, _, descriptor, packet = heapq.heappop(queue)
            try:
                os.write(descriptor, packet)
            except OSError:
                pass  # The device is down: the packet is lost.


if __name__ == "__main__":
    main()
