"""Downloads, against a server in the test."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import sthist
from sthist.datasets import _download
from sthist.datasets._download import RemoteFile, Source, fetch, fetch_from_hub
from sthist.datasets._files import unpack

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Handler(BaseHTTPRequestHandler):
    """Serves one content: whole, in parts, broken off, or not at all, as the path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        kind = self.path.split("/")[1]
        if kind in {"404", "403", "500"}:
            self.send_response(int(kind))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", "/whole/data.bin")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, tag = 0, f'"{server.tag}"'
        ranged = self.headers.get("Range")
        if ranged and kind != "noranges" and self.headers.get("If-Range") == tag:
            start = int(ranged.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        if kind != "untagged":
            self.send_header("ETag", tag)
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        stop = len(server.content)
        if kind in {"breaks", "noranges", "untagged"} and server.breaks > 0:
            server.breaks -= 1
            stop = start + 1_200_000
            self.close_connection = True
        self.wfile.write(server.content[start:stop])

    def log_message(self, *_args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(sthist.settings, "cache_dir", tmp_path / "cache")
    monkeypatch.setattr(sthist.settings, "progress", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.breaks, server.content, server.tag = [], 0, CONTENT, "1"
        server.headers = {}
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def source(server, kind, sha256=None):
    file = RemoteFile(f"{server.url}/{kind}/data.bin", len(server.content), sha256)
    return Source("test", "Test data", "CC BY 4.0", "https://example.org/test", (file,), "Nobody 2020")


def test_once(server, caplog):
    """Title, size and licence are said; the second call asks nobody."""
    with caplog.at_level("INFO", "sthist"):
        (path,) = fetch(source(server, "whole", hashlib.sha256(CONTENT).hexdigest()))
    assert path.read_bytes() == CONTENT
    assert path == sthist.settings.cache_dir / "datasets" / "test" / "data.bin"
    assert "Test data: 3.0 MB; licence: CC BY 4.0; https://example.org/test. Please cite Nobody 2020." in caplog.text
    fetch(source(server, "whole"))
    assert len(server.requests) == 1
    assert [file.name for file in path.parent.iterdir()] == ["data.bin"]


def test_a_broken_transfer_goes_on(server):
    server.breaks = 2
    (path,) = fetch(source(server, "breaks"))
    assert path.read_bytes() == CONTENT
    starts = [int(ranged[6:-1]) if ranged else 0 for _, ranged in server.requests]
    assert len(starts) == 3
    assert starts[0] == 0 < 1_100_000 < starts[1] < 1_200_001 < 2_200_000 < starts[2]


def test_in_another_process(server):
    """All attempts fail; the next call goes on from there."""
    server.breaks = 3
    server.content = CONTENT + CONTENT
    with pytest.raises(
        ConnectionError, match=r"cannot be had: .* To go on by hand, get data.bin from https://example.org"
    ):
        fetch(source(server, "breaks"))
    partial = sthist.settings.cache_dir / "datasets" / "test" / "data.bin.part"
    have = partial.stat().st_size
    assert 3_300_000 < have <= 3_600_000
    (path,) = fetch(source(server, "breaks"))
    assert path.read_bytes() == CONTENT + CONTENT
    assert server.requests[-1][1] == f"bytes={have}-"


@pytest.mark.parametrize("kind", ["noranges", "untagged"])
def test_a_host_that_cannot_go_on(server, kind):
    """It begins anew."""
    server.breaks = 1
    (path,) = fetch(source(server, kind))
    assert path.read_bytes() == CONTENT


def test_a_file_that_changes_meanwhile(server):
    """Parts of two files are not put together."""
    server.breaks = 3
    server.content = CONTENT + CONTENT
    with pytest.raises(ConnectionError):
        fetch(source(server, "breaks"))
    server.tag, server.content = "2", CONTENT[::-1]
    (path,) = fetch(source(server, "breaks"))
    assert path.read_bytes() == CONTENT[::-1]


def test_wrong_checksum(server):
    with pytest.raises(ValueError, match=r"has another SHA-256 than it should: [0-9a-f]{64} in place of 00.*not kept"):
        fetch(source(server, "whole", "00"))
    assert list((sthist.settings.cache_dir / "datasets" / "test").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("404", FileNotFoundError, "/404/data.bin answers 404 Not Found. To go on by hand"),
        ("403", ConnectionError, "answers 403 Forbidden"),
        ("500", ConnectionError, "answers 500 Internal Server Error"),
    ],
)
def test_refused(server, kind, error, message):
    with pytest.raises(error, match=message):
        fetch(source(server, kind))


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("text/html; charset=utf-8", b"a page"),
        ("application/octet-stream", b"\n<!DOCTYPE html><p>Log in"),
        ("application/zip", b"\xef\xbb\xbf<HTML><p>No such file"),
    ],
)
def test_a_page_in_place_of_the_file(server, kind, content):
    """As a host shows it to those who are not logged in; what had come of the file before is not touched."""
    server.breaks, server.content = 3, CONTENT + CONTENT
    whole = source(server, "breaks")
    with pytest.raises(ConnectionError):
        fetch(whole)
    server.headers, server.content, server.tag = {"Content-Type": kind}, content, "2"
    with pytest.raises(ConnectionError, match=r"a page of HTML in place of the file.* To go on by hand"):
        fetch(whole)
    assert not (sthist.settings.cache_dir / "datasets" / "test" / "data.bin").exists()
    server.headers, server.content, server.tag = {}, CONTENT + CONTENT, "1"
    assert fetch(whole)[0].read_bytes() == CONTENT + CONTENT


def base64_of(name, content):
    return base64.b64encode(hashlib.new(name, content).digest()).decode()


@pytest.mark.parametrize(
    ("header", "name", "form"),
    [
        ("Repr-Digest", "sha256", "sha-512=:{other}:, sha-256=:{}:"),
        ("Digest", "sha256", "SHA-256={}"),
        ("x-goog-hash", "md5", "crc32c=n03x6A==,md5={}"),
        ("x-amz-checksum-sha256", "sha256", "{}"),
    ],
)
def test_a_checksum_that_the_host_states(server, header, name, form):
    for content in (b"another content", CONTENT):
        other = base64_of("sha512", content)
        server.headers = {header: form.format(base64_of(name, content), other=other)}
        if content == CONTENT:
            assert fetch(source(server, "whole"))[0].read_bytes() == CONTENT
        else:
            with pytest.raises(ValueError, match=r"has another (SHA-256|SHA-512|MD5) than it should"):
                fetch(source(server, "whole"))
            assert list((sthist.settings.cache_dir / "datasets" / "test").iterdir()) == []
    server.headers = {"x-amz-checksum-sha256": base64_of("sha256", b"parts") + "-3"}  # of parts, not of the file
    fetch(source(server, "whole"))


def test_another_length(server):
    whole = source(server, "whole")
    for content in (b"", CONTENT[:-1]):
        server.content = content
        with pytest.raises(ValueError, match=f"gave {len(content)} bytes in place of 3000000"):
            fetch(whole)
        assert list((sthist.settings.cache_dir / "datasets" / "test").iterdir()) == []


def test_redirects(server, monkeypatch):
    """They are followed, but not from an encrypted address to one that others can change on the way."""
    import requests

    assert fetch(source(server, "redirect"))[0].read_bytes() == CONTENT
    asked = []

    def send(self, request, **_):
        asked.append(request.url)
        answer = requests.Response()
        answer.status_code, answer.url, answer.request, answer.raw = 302, request.url, request, io.BytesIO()
        answer.headers["Location"] = "http://example.org/data.bin"
        return answer

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    lost = Source("x", "X", "CC0", "https://example.org", (RemoteFile("https://example.org/x.zip"),))
    with pytest.raises(ConnectionError, match="answers 302 and leads to http://example.org/data.bin, which is not enc"):
        fetch(lost)
    assert asked == ["https://example.org/x.zip"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_disk_that_fills_up(server):
    partial = sthist.settings.cache_dir / "datasets" / "test" / "data.bin.part"
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"The disk of .*test is full .* What has come is kept\. Make room"):
        fetch(source(server, "whole"))
    partial.unlink()
    assert fetch(source(server, "whole"))[0].read_bytes() == CONTENT


@pytest.mark.parametrize("large", [True, False])
def test_files_of_the_hub_are_compared_with_its_checksums(server, monkeypatch, large):
    """The cache of the hub keeps files under them: SHA-256, or git's SHA-1 of small files."""
    import huggingface_hub

    content = b"what was published"
    name = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content) + content)
    cache = sthist.settings.cache_dir / "hub" / "datasets--owner--name"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    came = []

    def download(*_, **__):
        (cache / "blobs" / name.hexdigest()).write_bytes(came[-1])
        link = cache / "snapshots" / "a.h5ad"
        link.unlink(missing_ok=True)
        link.symlink_to(cache / "blobs" / name.hexdigest())
        return str(cache / "snapshots")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    came.append(content[:-1])
    with pytest.raises(ValueError, match="a.h5ad was damaged on the way"):
        fetch_from_hub("owner/name", ["*"], source(server, "whole"))
    assert not list((cache / "blobs").iterdir())
    came.append(content)
    folder = fetch_from_hub("owner/name", ["*"], source(server, "whole"))
    assert (folder / "a.h5ad").read_bytes() == content


def test_no_host(server):
    lost = Source("x", "X", "CC0", "https://example.org", (RemoteFile("http://127.0.0.1:9/x.zip"),))
    with pytest.raises(ConnectionError, match=r"127.0.0.1:9/x.zip cannot be had"):
        fetch(lost)


def test_offline(server, monkeypatch):
    """What is in the cache is there, and nothing else."""
    (path,) = fetch(source(server, "whole"))
    monkeypatch.setattr(sthist.settings, "offline", True)
    assert fetch(source(server, "whole")) == [path]
    path.unlink()
    with pytest.raises(
        ConnectionError, match=r"settings.offline is set. To go on by hand, get data.bin from .* put it into"
    ):
        fetch(source(server, "whole"))
    assert len(server.requests) == 1


def test_no_space(server, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(_download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="needs 0.0 GB in .*; set sthist.settings.cache_dir"):
        fetch(source(server, "whole"))
    assert server.requests == []


def zip_of(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, name * 3)
    return path


def test_unpack(tmp_path):
    archive = zip_of(tmp_path / "a.zip", "outs/a.txt", "outs/b/c.txt", "rest.txt")
    folder = unpack(archive, tmp_path / "a", lambda name: name.startswith("outs/"))
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*.txt")) == ["outs/a.txt", "outs/b/c.txt"]
    archive.unlink()
    assert unpack(archive, tmp_path / "a") == folder


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt"])
def test_unpack_outside(tmp_path, name):
    archive = zip_of(tmp_path / "a.zip", "good.txt", name)
    with pytest.raises(ValueError, match="leads outside of its folder"):
        unpack(archive, tmp_path / "sub" / "a")
    assert not (tmp_path / "sub").exists()


def test_unpack_damaged(tmp_path):
    archive = zip_of(tmp_path / "a.zip", "a.txt")
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"a.zip is no whole zip archive: .*download it again"):
        unpack(archive, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("GatedRepoError", PermissionError, "Test data is given on request: accept its terms .*hf auth login"),
        ("RepositoryNotFoundError", FileNotFoundError, "The hub has no data set owner/name"),
        ("LocalEntryNotFoundError", ConnectionError, "cannot be had from https://huggingface.co/datasets/owner/name"),
    ],
)
def test_hub_errors(server, monkeypatch, name, error, message):
    import huggingface_hub
    from huggingface_hub import errors

    def fails(*_args, **_kwargs):
        kind = getattr(errors, name)
        raise kind.__new__(kind, "no")  # its arguments are an answer of the hub, which changes with its version

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(error, match=message):
        fetch_from_hub("owner/name", ["a/*"], source(server, "whole"))


def test_hub(server, monkeypatch, tmp_path):
    """The files that are asked for, into our cache, offline if so set."""
    import huggingface_hub

    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        (tmp_path / "hub").mkdir(exist_ok=True)
        if options["allow_patterns"] == ["st/*"]:
            (tmp_path / "hub" / "a.h5ad").touch()
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(FileNotFoundError, match=r"owner/name has no file like \['none'\]"):
        fetch_from_hub("owner/name", ["none"], source(server, "whole"))
    assert fetch_from_hub("owner/name", ["st/*"], source(server, "whole"), revision="abc") == tmp_path / "hub"
    assert asked["revision"] == "abc"
    assert asked["repo_type"] == "dataset"
    assert asked["cache_dir"] == sthist.settings.cache_dir / "hub"
    assert not asked["local_files_only"]
