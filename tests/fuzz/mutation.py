"""Seeds out of the hostile corpus, and a seeded mutator: where two readers disagree is near what is hostile already."""

from __future__ import annotations

import random

from tests.hostile.bodies import BODIES
from tests.hostile.framing import FRAMING
from tests.hostile.heads import HEADS
from tests.hostile.pipelines import PIPELINES
from tests.hostile.wire import Case, chat, ident

_TOKENS = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b"\x0b", b":", b";", b",", b"0", b"1", b"5", b"ffffffff", b"-1", b"+5",
    b"0x5", b"content-length: 5\r\n", b"content-length: 0\r\n", b"transfer-encoding: chunked\r\n",
    b"transfer-encoding: identity\r\n", b"connection: close\r\n", b"upgrade: h2c\r\n", b"connection: upgrade\r\n",
    b"host: g\r\n", b"expect: 100-continue\r\n", b"HTTP/1.0", b"HTTP/1.1", b"GET / HTTP/1.1\r\nhost: g\r\n\r\n",
    b"0\r\n\r\n", b"5\r\nhello\r\n", b"\r\n\r\n", b"\x80", b"\xff", b'"model":"n",', b'"mod\\u0065l"', b"{", b"}", b"[",
    b'"', b"\\", b"--x\r\n", b"--x--\r\n", b'content-disposition: form-data; name="model"\r\n\r\n',
)  # fmt: skip
_ANSWERS = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nt: v\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\nhello",
    b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n",
)
_MODEL = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n'
_FILE = b'--x\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nabc\r\n'
_FORMS = (
    _MODEL + _FILE + b"--x--\r\n",
    _FILE + _MODEL + b"--x--\r\n",
    b"--x\r\nContent-Type: text/plain\r\nContent-Disposition: form-data; name=model\r\n\r\nwhisper-1\r\n--x--",
)


def _first(case: Case) -> bytes:
    return b"".join(step for step in case.script if isinstance(step, bytes))[:3000]


SEEDS: dict[str, tuple[bytes, ...]] = {
    "caller": tuple(_first(case) for case in [*FRAMING, *HEADS, *BODIES, *PIPELINES]),
    "upstream": _ANSWERS,
    "json": (chat(ident("seed"), b',"max_tokens":5,"stream":true'), b'{"model":"a\\u00e9","a":[1,{"model":"n"}]}'),
    "form": _FORMS,
}


def mutated(target: str, rng: random.Random) -> bytes:
    """Return a seed of `target` with a few changes."""
    data = bytearray(rng.choice(SEEDS[target]))
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[at:at] = rng.choice(_TOKENS)
            case 1:
                del data[at : at + rng.randrange(1, 12)]
            case 2:
                data[at : at + 1] = bytes((rng.randrange(256),))
            case 3:
                end = min(len(data), at + rng.randrange(1, 40))
                data[at:at] = data[at:end]
            case _:
                other = rng.choice(SEEDS[target])
                data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data)
