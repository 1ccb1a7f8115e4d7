"""Answers the names of Services for the pods of the test cluster: `dns.py ADDRESS PORT KUBECONFIG`.

Stands in for CoreDNS, which has no package here: A records of `NAME.NAMESPACE.svc.cluster.local`, read from the API
every second; everything else does not exist.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.request
from pathlib import Path

import yaml  # type: ignore[import-untyped]

NXDOMAIN, A, IN = 3, 1, 1


def watch(kubeconfig: Path, addresses: dict[str, str]) -> None:
    """Keep `addresses` equal to the cluster's Services."""
    config = yaml.safe_load(kubeconfig.read_text())
    server = config["clusters"][0]["cluster"]["server"]
    token = config["users"][0]["user"]["token"]
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE  # a throw-away cluster on this machine
    request = urllib.request.Request(f"{server}/api/v1/services", headers={"authorization": f"Bearer {token}"})
    while True:
        try:
            with urllib.request.urlopen(request, context=trust, timeout=5) as answer:
                found = json.load(answer)["items"]
        except OSError as error:
            sys.stderr.write(f"{error}\n")
        else:
            names = {
                f"{each['metadata']['name']}.{each['metadata']['namespace']}.svc.cluster.local": each["spec"][
                    "clusterIP"
                ]
                for each in found
            }
            addresses.clear()
            addresses.update(names)
        time.sleep(1)


def answer(query: bytes, addresses: dict[str, str]) -> bytes:
    """Make the reply to one query (RFC 1035, 4.1)."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    question = query[12 : at + 5]
    (kind,) = struct.unpack("!H", query[at + 1 : at + 3])
    address = addresses.get(".".join(labels).lower())
    records = b""
    if address and kind == A:
        records = struct.pack("!HHHIH", 0xC00C, A, IN, 1, 4) + socket.inet_aton(address)
    flags = 0x8580 | (0 if address else NXDOMAIN)
    return query[:2] + struct.pack("!HHHHH", flags, 1, 1 if records else 0, 0, 0) + question + records


def main(address: str, port: str, kubeconfig: str) -> None:
    """Serve for ever."""
    addresses: dict[str, str] = {}
    threading.Thread(target=watch, args=(Path(kubeconfig), addresses), daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, int(port)))
        while True:
            query, peer = server.recvfrom(512)
            server.sendto(answer(query, addresses), peer)


if __name__ == "__main__":
    main(*sys.argv[1:])
