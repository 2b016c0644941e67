"""Requests that are none, or say two things at a time: each has an answer of HTTP, and the server goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.core.inference.serving import connect, png, serving, trained

if TYPE_CHECKING:
    from pathlib import Path

PICTURE = png(7)
LENGTH = str(len(PICTURE)).encode()
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def post(
    *headers: bytes, first: bytes = b"POST /predict HTTP/1.1", length: bytes | None = LENGTH, body: bytes = PICTURE
) -> bytes:
    lines = [first, b"Host: localhost", b"Content-Type: image/png", b"Connection: close", *headers]
    lines += [] if length is None else [b"Content-Length: " + length]
    return b"\r\n".join([*lines, b"", b""]) + body


def chunked(body: bytes, *headers: bytes) -> bytes:
    return post(*(headers or (b"Transfer-Encoding: chunked",)), length=None, body=body)


def picture(content: bytes) -> bytes:
    return post(length=str(len(content)).encode(), body=content)


def health(*lines: bytes) -> bytes:
    return b"\r\n".join([b"GET /health HTTP/1.1", *lines, b"Connection: close", b"", b""])


REQUESTS: dict[str, tuple[bytes, int]] = {
    "a negative length": (post(length=b"-1"), 400),
    "a length with a sign": (post(length=b"+5"), 400),
    "a length in hexadecimal": (post(length=b"0x10"), 400),
    "a length as a float": (post(length=b"1e3"), 400),
    "a length of 31 digits": (post(length=b"1" + b"0" * 30), 400),
    "a length of 5000 digits": (post(length=b"9" * 5000), 400),
    "two lengths": (post(b"Content-Length: 3"), 400),
    "one length twice": (post(length=LENGTH + b", " + LENGTH), 200),
    "a length in Arabic digits": (post(length="٣".encode()), 400),
    "a length of nothing": (post(length=b""), 400),
    "no bytes": (post(length=b"0", body=b""), 422),
    "two hosts": (post(b"Host: evil.example"), 400),
    "an empty host": (health(b"Host: "), 421),
    "no host": (health(), 400),
    "a host with a user": (health(b"Host: localhost@evil"), 421),
    "a host that is no ASCII": (health(b"Host: \xe9vil"), 421),
    "another host in its first line": (b"GET http://evil.example" + HEALTH[4:], 404),
    "a chunk with a sign": (chunked(b"+5\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk with 200 kB beside its size": (chunked(b"5;" + b"a" * 200_000 + b"\r\nhello\r\n0\r\n\r\n"), 400),
    "30,000 trailers": (chunked(b"0\r\n" + b"a: b\r\n" * 30_000 + b"\r\n"), 400),
    "two encodings": (chunked(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked"), 400),
    "one encoding twice": (chunked(b"0\r\n\r\n", *[b"Transfer-Encoding: chunked"] * 2), 400),
    "an expectation that is none": (post(b"Expect: 200-ok"), 200),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
    "TRACE": (post(first=b"TRACE /predict HTTP/1.1"), 405),
    "a method of 70 kB": (post(first=b"A" * 70_000 + b" / HTTP/1.1"), 400),
    "a path with NUL": (post(first=b"POST /predict%00 HTTP/1.1"), 404),
    "a path of dots": (post(first=b"GET /../../etc/passwd HTTP/1.1"), 404),
    "a path that is no UTF-8": (post(first=b"POST /predict%zz%ff HTTP/1.1"), 404),
    "a query that is no UTF-8": (post(first=b"POST /predict?top=%ff HTTP/1.1"), 400),
    "a query of 5000 values": (post(first=b"POST /predict?" + b"top=1&" * 5000 + b" HTTP/1.1"), 200),
    "top twice": (post(first=b"POST /predict?top=1&top=x HTTP/1.1"), 400),
    "an empty top": (post(first=b"POST /predict?top= HTTP/1.1"), 400),
    "top in Arabic digits": (post(first=b"POST /predict?top=%D9%A3 HTTP/1.1"), 400),
    "a raised top": (post(first=b"POST /predict?top=%C2%B2 HTTP/1.1"), 400),
    "a header with a carriage return": (post(b"X: a\rb"), 400),
    "a header with NUL": (post(b"X: a\0b"), 400),
    "a header with a space before its colon": (post(b"Content-Length : 3"), 400),
    "2000 headers": (post(*[b"A%d: b" % place for place in range(2000)]), 200),
    "a token that is no ASCII": (post(b"Authorization: Bearer \xff"), 200),
    "500 requests at a time": (HEALTH.replace(b"close", b"keep-alive") * 500 + HEALTH, 200),
    "50,000 empty lines": (b"\r\n" * 50_000 + HEALTH, 400),
    "SVG": (picture(b"<svg/>"), 422),
    "EPS": (picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 422),
    "an archive": (picture(b"PK\3\4" + bytes(100)), 422),
    "bytes behind a picture": (picture(PICTURE + bytes(1000)), 200),
    "a TIFF whose pages are a circle": (picture(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"), 422),
    "the beginning of a GIF": (picture(b"GIF89a\xff\xff\xff\xff\0\0\0"), 422),
    "the beginning of a WebP": (picture(b"RIFF\xff\xff\xff\x7fWEBPVP8L"), 422),
}
"""What is sent, and the status of its first answer."""


def test_whatever_is_sent_has_an_answer_and_the_server_goes_on(tmp_path: Path) -> None:
    found = {}
    with serving(trained(tmp_path / "run")) as server:
        for name, (request, _) in REQUESTS.items():
            with connect(server) as connection:
                connection.sendall(request)
                content = connection.recv(65536)
            found[name] = int(content.split()[1])
        is_there = server.predict(PICTURE)[0]

    right = sum(found[name] == status for name, (_, status) in REQUESTS.items())
    print(f"{right} of {len(REQUESTS)} strange requests were answered as they should be")  # noqa: T201
    assert found == {name: status for name, (_, status) in REQUESTS.items()}
    assert is_there == 200
    assert "Traceback" not in (tmp_path / "run.log").read_text()
