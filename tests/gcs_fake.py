"""A Google Cloud Storage on 127.0.0.1 that keeps preconditions and checksums, and misbehaves on demand.

Both real clients reach it through STORAGE_EMULATOR_HOST. `faults` is a queue: a request takes the first fault whose
method and URL text it fits. Unlike the real service it knows no versions, no XML API and no encryption.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c


@dataclass
class Fault:
    """One mishap. kind: an HTTP status as int, or one of these.

    reset: hangs up before anything is done. lost: does it, and hangs up. stall: falls silent. cut_up: hangs up in the
    middle of the request. short_up: keeps half of a chunk and says so. damage_up, damage_down: a bit flips on the way.
    cut_down, stall_down: ends, or falls silent, in the middle of the answer.
    """

    kind: int | str
    method: str = ""  # "" fits any
    text: str = ""  # must occur in the request's URL


@dataclass
class Object:
    """A stored object: its bytes, and what the server tells of them."""

    data: bytes
    generation: int
    extra: dict[str, Any] = field(default_factory=dict)


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


class Refused(Exception):
    """An HTTP error answer."""


class FakeGCS(ThreadingHTTPServer):
    """The server; `with FakeGCS("bucket") as fake:` runs it, `fake.url` is its address."""

    daemon_threads = True

    def __init__(self, *buckets: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.buckets: dict[str, dict[str, Object]] = {name: {} for name in buckets}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.page_size = 1000
        self.generation = 1000
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.lives: int | None = None  # requests until it is down for good
        self.last_words: int | str = "reset"  # the fault of the last of them

    def __enter__(self) -> FakeGCS:
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self.thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up in the middle of answers; that is what some tests are about."""

    def fail(self, kind: int | str, method: str = "", text: str = "", times: int = 1) -> None:
        self.faults += [Fault(kind, method, text) for _ in range(times)]

    def put(self, bucket: str, name: str, data: bytes, **extra: Any) -> Object:
        with self.lock:
            self.generation += 1
            self.buckets[bucket][name] = Object(data, self.generation, extra)
            return self.buckets[bucket][name]

    def data(self, bucket: str) -> dict[str, bytes]:
        return {name: item.data for name, item in self.buckets[bucket].items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server: FakeGCS

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def serve(self) -> None:
        """One request: take a fault, read the body, route, answer."""
        server, length = self.server, int(self.headers.get("content-length") or 0)
        with server.lock:
            self.fault = self.take_fault()
        body = self.rfile.read(length // 2 if self.fault == "cut_up" else length)
        if self.fault == "cut_up":
            key = parse_qs(urlsplit(self.path).query).get("upload_id", [""])[0]
            if key:
                self.keep(server.sessions[key], body)
            return self.hang_up()
        if self.fault == "reset":
            return self.hang_up()
        if self.fault == "stall":
            server.closing.wait(30)
            return self.hang_up()
        if isinstance(self.fault, int):
            return self.tell(self.fault, {"error": {"code": self.fault, "message": f"injected {self.fault}"}})
        if self.fault == "damage_up":
            # Inside the payload: the multipart frame around it must still parse.
            body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :]
        try:
            with server.lock:
                self.route(body)
        except Refused as refused:
            code, message = refused.args
            self.tell(code, {"error": {"code": code, "message": message}})
        if self.fault == "stall_down":
            server.closing.wait(30)
        return None

    def take_fault(self) -> int | str:
        server = self.server
        server.requests.append(f"{self.command} {self.path}")
        if server.lives is not None:
            server.lives -= 1
            if server.lives <= 0:
                return server.last_words if server.lives == 0 else "reset"
        fits = (f for f in server.faults if f.method in ("", self.command) and f.text in unquote(self.path))
        fault = next(fits, None)
        if fault is None:
            return ""
        server.faults.remove(fault)
        return fault.kind

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = serve

    def hang_up(self) -> None:
        """Closes with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def tell(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """Sends an answer, unless this request's fault is to lose or damage it."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.fault == "lost":
            return self.hang_up()
        self.send_response(code)
        for key, value in {"content-length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        if not isinstance(body, bytes):
            self.send_header("content-type", "application/json")
        self.end_headers()
        if self.fault == "damage_down":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.fault in ("cut_down", "stall_down"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            if self.fault == "stall_down":
                return None
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
            return None
        if code != 204:
            self.wfile.write(data)
        return None

    def route(self, body: bytes) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        match = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o)?(?:/([^/]+))?(?:/(.*))?", url.path)
        if match is None:
            raise Refused(404, f"no such path {url.path}")
        kind, bucket, name, rest = (unquote(part or "") if i < 3 else part for i, part in enumerate(match.groups()))
        if bucket not in self.server.buckets:
            raise Refused(404, "The specified bucket does not exist.")
        self.bucket, self.items = bucket, self.server.buckets[bucket]
        if kind == "/upload":
            return self.upload(body)
        if not name:
            return self.list() if url.path.endswith("/o") else self.tell(200, {"name": bucket})
        if rest:
            return self.rewrite(name, rest)
        item = self.items.get(name)
        if item is None:
            raise Refused(404, f"No such object: {bucket}/{name}")
        self.check_generation(name)
        if self.command == "DELETE":
            del self.items[name]
            return self.tell(204, b"")
        return self.send_media(item) if self.query.get("alt") == "media" else self.tell(200, self.describe(name))

    def check_generation(self, name: str, key: str = "ifGenerationMatch") -> None:
        item = self.items.get(name)
        if key in self.query and int(self.query[key]) != (item.generation if item else 0):
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")

    def describe(self, name: str, bucket: str = "") -> dict[str, Any]:
        bucket = bucket or self.bucket
        item = self.server.buckets[bucket][name]
        told = {"kind": "storage#object", "name": name, "bucket": bucket, "size": str(len(item.data))}
        told |= {"generation": str(item.generation), "metageneration": "1", "crc32c": crc32c(item.data)}
        told |= {
            "md5Hash": base64.b64encode(hashlib.md5(item.data).digest()).decode(),
            "id": f"{bucket}/{name}",
        }
        return told | {"timeCreated": "2026-01-01T00:00:00Z", "updated": "2026-01-01T00:00:00Z", **item.extra}

    def list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        names = set()
        for name in self.items:
            if name.startswith(prefix):
                head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name[len(prefix) :], "", "")
                names.add(prefix + head + cut)
        size = min(int(self.query.get("maxResults", 1000)), self.server.page_size)
        rest = sorted(name for name in names if name > self.query.get("pageToken", ""))
        page = rest[:size]
        answer: dict[str, Any] = {"kind": "storage#objects"}
        answer["items"] = [self.describe(name) for name in page if name in self.items]
        answer["prefixes"] = [name for name in page if name not in self.items]
        if len(rest) > size:
            answer["nextPageToken"] = page[-1]
        self.tell(200, answer)

    def send_media(self, item: Object) -> None:
        hashes = f"crc32c={crc32c(item.data)},md5={base64.b64encode(hashlib.md5(item.data).digest()).decode()}"
        headers = {"x-goog-hash": hashes, "x-goog-generation": str(item.generation)}
        headers |= {
            "x-goog-stored-content-length": str(len(item.data)),
            "content-type": "application/octet-stream",
        }
        if encoding := item.extra.get("contentEncoding"):
            headers |= {"content-encoding": encoding, "x-goog-stored-content-encoding": encoding}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if match is None:
            return self.tell(200, item.data, headers)
        first, last = int(match[1]), min(int(match[2] or len(item.data)), len(item.data) - 1)
        if first >= len(item.data):
            raise Refused(416, "The requested range cannot be satisfied.")
        headers["content-range"] = f"bytes {first}-{last}/{len(item.data)}"
        return self.tell(206, item.data[first : last + 1], headers)

    def rewrite(self, name: str, rest: str) -> None:
        verb, _, bucket, _, new = (unquote(part) for part in rest.split("/", 4))
        if bucket not in self.server.buckets or name not in self.items:
            raise Refused(404, f"No such object: {self.bucket}/{name}")
        self.check_generation(name, "ifSourceGenerationMatch")
        data, self.items = self.items[name].data, self.server.buckets[bucket]
        self.check_generation(new)
        self.server.put(bucket, new, data)
        told = self.describe(new, bucket)
        if verb == "rewriteTo":
            told = {"kind": "storage#rewriteResponse", "done": True, "resource": told}
            told |= {"totalBytesRewritten": str(len(data)), "objectSize": str(len(data))}
        self.tell(200, told)

    def upload(self, body: bytes) -> None:
        if "upload_id" in self.query:
            return self.resume(self.server.sessions[self.query["upload_id"]], body)
        if self.query["uploadType"] == "resumable":
            told = json.loads(body or b"{}")
            name = told.get("name") or self.query["name"]
            self.check_generation(name)
            key = str(len(self.server.sessions))
            self.server.sessions[key] = {
                "told": told,
                "name": name,
                "data": b"",
                "query": self.query,
                "done": False,
            }
            place = f"{self.server.url}/upload/storage/v1/b/{self.bucket}/o?uploadType=resumable&upload_id={key}"
            return self.tell(200, {}, {"location": place})
        if self.query["uploadType"] == "media":
            return self.store(self.query["name"], body, {})
        boundary = re.search(r'boundary="?([^";]+)', self.headers["content-type"])
        assert boundary is not None
        _, first, second, _ = body.split(b"--" + boundary[1].encode())
        told = json.loads(first.partition(b"\r\n\r\n")[2])
        return self.store(told["name"], second.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n"), told)

    def keep(self, session: dict[str, Any], body: bytes) -> None:
        """Adds the whole quarter MiBs of a chunk of which no more came."""
        match = re.match(r"bytes (\d+)-", self.headers["content-range"])
        if match and not session["done"]:
            session["data"] = session["data"][: int(match[1])] + body[: len(body) // 2**18 * 2**18]

    def resume(self, session: dict[str, Any], body: bytes) -> None:
        """A chunk or a question about one upload session; a repeated chunk, or part of one, counts once."""
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers["content-range"])
        assert match is not None
        if self.fault == "short_up" and len(body) > 2**18:
            self.keep(session, body[: len(body) // 2])
            return self.tell(308, b"", {"range": f"bytes=0-{len(session['data']) - 1}"} if session["data"] else {})
        if not session["done"]:
            session["data"] = session["data"][: int(match[1])] + body if match[1] else session["data"]
            if match[2] != str(len(session["data"])):
                headers = {"range": f"bytes=0-{len(session['data']) - 1}"} if session["data"] else {}
                return self.tell(308, b"", headers)
            self.query = session["query"]
            hashed = re.search(r"crc32c=([^,]+)", self.headers.get("x-goog-hash", ""))
            told = session["told"] | ({"crc32c": hashed[1]} if hashed else {})
            self.store(session["name"], session["data"], told)
            session["done"] = True
            return None
        return self.tell(200, self.describe(session["name"]))

    def store(self, name: str, data: bytes, told: dict[str, Any]) -> None:
        self.check_generation(name)
        if told.get("crc32c", crc32c(data)) != crc32c(data):
            raise Refused(400, f"Provided CRC32C {told['crc32c']} doesn't match calculated CRC32C {crc32c(data)}.")
        self.server.put(self.bucket, name, data)
        self.tell(200, self.describe(name))
