"""The viewer as it is called and served: who is let in, what is refused, and what it does when things change."""

from __future__ import annotations

import html
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import spatialdata as sd
from PIL import Image

import sthist
from sthist.pl._view import watch


def ask(viewer, path, *, method="GET", host=None, token=None):
    """Status, headers and content of a path below the token."""
    parts = urlsplit(viewer.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.putrequest(method, f"/{token}/{path}" if token is not None else parts.path + path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or parts.netloc)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


@pytest.fixture(scope="module")
def viewer(_toy):
    with sthist.pl.view(sd.deepcopy(_toy), open_browser=False) as opened:
        yield opened


class TestServer:
    def test_the_page_and_all_that_it_needs_come_from_here(self, viewer):
        status, headers, content = ask(viewer, "")
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        pages = Path(sthist.__file__).parent / "pl" / "_view" / "page"
        named = set(re.findall(r'(?:src|href)="([^"]+)"', content.decode())) - {"data:,"}
        for script in pages.glob("*.js"):
            if not script.name.endswith(".min.js"):
                named |= {each[2:] for each in re.findall(r'from "([^"]+)"', script.read_text())}
                assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", script.read_text())
                assert "innerHTML" not in script.read_text()
        assert len(named) > 5
        for name in named:
            status, headers, _ = ask(viewer, name)
            assert (status, headers["Content-Type"].split(";")[0]) == (
                200,
                "text/css" if name.endswith(".css") else "text/javascript",
            )
        assert b"Redistribution and use" in ask(viewer, "openseadragon.LICENSE.txt")[2]

    @pytest.mark.parametrize("path", ["", "slide", "image/he/0/0/0", "view.css"])
    def test_without_the_token(self, viewer, path):
        for token in ("", "wrong", viewer.url.split("/")[3][:-1]):
            status, _, content = ask(viewer, path, token=token)
            assert status == 403
            assert b"token" in content
            assert b"plane" not in content

    def test_names_of_others_that_lead_here(self, viewer):
        for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", ""):
            assert ask(viewer, "slide", host=host)[0] == 403
        for host in ("localhost:9999", "127.0.0.1", "[::1]:8765"):  # as through a tunnel of ssh
            assert ask(viewer, "slide", host=host)[0] == 200

    @pytest.mark.parametrize(
        "path",
        [
            "nothing",
            "../server.py",
            "..%2fserver.py",
            "%2e%2e/%2e%2e/__init__.py",
            "page/index.html",
            "/etc/passwd",
            "image/he/0/0",
            "image/he/0/0/0/0",
            "image/nothing/0/0/0",
            "image/he/99/0/0",
            "image/he/0/7/0",
            "image/he/-1/0/0",
            "image/he/0/0/1e3",
            "image/he/0/0/%D9%A3",
            "image/he/0/0/99999999999999999999",
            "image/morphology_focus/0/0/0?c=5:ffffff",
            "regions/nothing/0/0/0",
            "regions/table/0/0/0?kind=gene&name=NOTHING",
            "molecules/0/0/0?g=ff0000:NOTHING",
            "colours/nothing",
            "limits/he/0",
            "limits/morphology_focus/7",
            "at?x=1&y=1&mpp=1&group=nothing",
        ],
    )
    def test_what_there_is_not(self, viewer, path):
        status, _, content = ask(viewer, path)
        assert status == 404
        assert json.loads(content)["error"]

    @pytest.mark.parametrize(
        "path",
        [
            "regions/table/0/0/0?kind=what&name=x",
            "regions/table/0/0/0?style=what",
            "regions/table/0/0/0?kind=gene&name=EPCAM&vmin=nan",
            "molecules/0/0/0",
            "molecules/0/0/0?" + "&".join(["g=ff0000:EPCAM"] * 41),
            "molecules/0/0/0?g=red:EPCAM",
            "image/morphology_focus/0/0/0?c=0:ffffff:a~b",
            "at?x=1&y=inf&mpp=1",
            "at?x=1",
        ],
    )
    def test_what_cannot_be_understood(self, viewer, path):
        status, _, content = ask(viewer, path)
        assert status == 400
        assert json.loads(content)["error"]

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
    def test_it_is_read_only(self, viewer, method):
        status, headers, _ = ask(viewer, "slide", method=method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")

    def test_head(self, viewer):
        status, headers, content = ask(viewer, "slide", method="HEAD")
        assert (status, content) == (200, b"")
        assert int(headers["Content-Length"]) == len(ask(viewer, "slide")[2])

    def test_tiles_and_answers(self, viewer):
        status, headers, content = ask(viewer, "image/he/0/0/0")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        found = json.loads(ask(viewer, "slide")[2])
        shape = found["plane"]["width"], found["plane"]["height"]
        assert Image.open(io.BytesIO(content)).size == shape
        assert [each["key"] for each in found["pictures"]] == ["morphology_focus", "he"]
        (gene,) = json.loads(ask(viewer, "find?q=epcam")[2])
        assert gene == {"group": "table", "kind": "gene", "name": "EPCAM", "layer": None}
        assert "EPCAM" in json.loads(ask(viewer, "find/molecules?q=EP")[2])
        colours = json.loads(ask(viewer, "colours/table?kind=gene&name=EPCAM&vmax=3")[2])
        assert (colours["vmin"], colours["vmax"]) == (0, 3)
        limits = json.loads(ask(viewer, "limits/morphology_focus/0")[2])
        assert limits["low"] < limits["high"]

    def test_it_listens_at_the_loopback_address_alone(self, viewer):
        assert viewer._server.server_address[0] == "127.0.0.1"


class TestCall:
    def test_what_is_shown_at_first(self, toy):
        with sthist.pl.view(
            toy, "EPCAM", genes="COL1A1", images="he", vmax=4, cmap="magma", open_browser=False
        ) as viewer:
            found = json.loads(ask(viewer, "slide")[2])
        assert found["start"] == {
            "genes": ["COL1A1"],
            "color": {
                "group": "table",
                "kind": "gene",
                "name": "EPCAM",
                "layer": None,
                "cmap": "magma",
                "vmin": None,
                "vmax": 4,
            },
        }
        assert [each["key"] for each in found["pictures"]] == ["he"]

    def test_a_part_that_is_in_view_at_first(self, toy):
        with sthist.pl.view(toy, within="regions", open_browser=False) as viewer:
            found = json.loads(ask(viewer, "slide")[2])["start"]["within"]
        np.testing.assert_allclose(found, toy["regions"].total_bounds, atol=1e-6)  # the toy's are in µm

    @pytest.mark.parametrize(
        ("arguments", "error", "says"),
        [
            ({"color": "EPCM"}, KeyError, "Did you mean 'EPCAM'"),
            ({"color": "EPCAM", "table": "tabel"}, KeyError, "Did you mean 'table'"),
            ({"color": "EPCAM", "layer": "counts"}, KeyError, "no layer 'counts'"),
            ({"genes": ["EPCM"]}, KeyError, "Did you mean 'EPCAM'"),
            ({"images": ["hee"]}, KeyError, "Did you mean 'he'"),
            ({"cmap": "virids"}, KeyError, "Did you mean 'viridis'"),
            ({"table": "table"}, ValueError, "pass color="),
            ({"color": "EPCAM", "vmin": 3, "vmax": 1}, ValueError, "vmin is 3, and vmax 1"),
            ({"port": 70000}, ValueError, "0 to 65535"),
            ({"port": "80"}, ValueError, "0 to 65535"),
        ],
    )
    def test_what_cannot_be_meant(self, toy, arguments, error, says):
        with pytest.raises(error, match=says):
            sthist.pl.view(toy, open_browser=False, **arguments)

    def test_no_sample(self, toy, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nothing\.zarr"):
            sthist.pl.view(tmp_path / "nothing.zarr", open_browser=False)
        with pytest.raises(TypeError, match="not its table"):
            sthist.pl.view(toy["table"], open_browser=False)
        with pytest.raises(TypeError, match="one sample, not a mapping of 1"):
            sthist.pl.view({"a": toy}, open_browser=False)

    def test_a_port_that_is_taken(self, toy):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(OSError, match=f"Port {port} cannot be had.*another port="):
                sthist.pl.view(toy, port=port, open_browser=False)
        with sthist.pl.view(toy, port=port, open_browser=False) as viewer:
            assert viewer.port == port

    def test_the_next_port_where_none_is_asked_for(self, toy):
        with sthist.pl.view(toy, open_browser=False) as one, sthist.pl.view(toy, open_browser=False) as other:
            assert one.port != other.port
            assert one.url.split("/")[3] != other.url.split("/")[3]

    def test_closed(self, toy):
        viewer = sthist.pl.view(toy, open_browser=False)
        assert viewer.url in repr(viewer)
        assert f'src="{html.escape(viewer.url)}"' in viewer._repr_html_()
        viewer.close()
        viewer.close()
        assert repr(viewer) == "View of a sample in memory, closed"
        assert "iframe" not in viewer._repr_html_()
        with pytest.raises(ConnectionError):
            ask(viewer, "slide")

    def test_a_browser_is_opened_where_there_is_a_screen(self, toy, monkeypatch):
        opened = []
        monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
        monkeypatch.setattr(sys, "platform", "linux")
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        with sthist.pl.view(toy):
            assert not opened
        monkeypatch.setenv("DISPLAY", ":0")
        with sthist.pl.view(toy) as viewer:
            assert opened == [viewer.url]


class TestChanges:
    @pytest.fixture(autouse=True)
    def _often(self, monkeypatch):
        monkeypatch.setattr(watch, "LOOK_EVERY", 0.0)

    def test_a_store_that_changes(self, backed):
        with sthist.pl.view(backed.path, "cell_type", open_browser=False) as viewer:
            assert json.loads(ask(viewer, "state")[2]) == {"version": 1, "changed": False}
            first = ask(viewer, "image/he/0/0/0")[2]
            other = sd.read_zarr(backed.path)
            other["table"].obs["score"] = np.arange(other["table"].n_obs, dtype=float)
            other["more"] = other["table"].copy()
            other.write_element("more")
            assert json.loads(ask(viewer, "state")[2]) == {"version": 1, "changed": True}
            assert ask(viewer, "image/he/0/0/0")[2] == first
            assert ask(viewer, "colours/more")[0] == 404
            assert json.loads(ask(viewer, "reload")[2]) == {"version": 2, "changed": False}
            assert ask(viewer, "colours/more?kind=obs&name=score")[0] == 200

    def test_a_store_that_goes(self, backed):
        with sthist.pl.view(backed.path, open_browser=False) as viewer:
            ask(viewer, "image/he/0/0/0")
            shutil.rmtree(backed.path)
            assert json.loads(ask(viewer, "state")[2])["changed"]
            status, _, content = ask(viewer, "reload")
            assert status == 503
            assert "There is no" in json.loads(content)["error"]
            assert ask(viewer, "image/he/0/0/0")[0] == 200  # what it has
            assert ask(viewer, "regions/table/0/0/0?kind=gene&name=EPCAM")[0] == 200
            assert json.loads(ask(viewer, "state")[2])["version"] == 1

    def test_a_chunk_that_is_damaged(self, backed):
        for chunk in (backed.path / "images" / "he").rglob("*"):
            if chunk.is_file() and chunk.name != "zarr.json":
                chunk.write_bytes(b"no chunk")
        with sthist.pl.view(backed.path, open_browser=False) as viewer:
            status, _, content = ask(viewer, "image/he/1/0/0")
            assert status == 503
            assert "cannot be read" in json.loads(content)["error"]
            assert ask(viewer, "image/morphology_focus/1/0/0?c=0:ffffff")[0] == 200

    def test_an_object_that_changes(self, toy):
        with sthist.pl.view(toy, open_browser=False) as viewer:
            toy["table"].obs["score"] = np.arange(toy["table"].n_obs, dtype=float)
            viewer.refresh()
            assert json.loads(ask(viewer, "state")[2])["version"] == 2
            assert json.loads(ask(viewer, "colours/table?kind=obs&name=score")[2])["lowest"] == 0


class TestCommand:
    @pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
    def test_it_prints_the_address_and_ends_with_ctrl_c(self, backed):
        command = [sys.executable, "-m", "sthist", "view", str(backed.path), "--color", "EPCAM", "--no-browser"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A shell lets what it starts in the background ignore Ctrl-C, and so what that starts.
        process = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes)
        try:
            lines = [process.stdout.readline() for _ in range(5)]
            (url,) = re.findall(r"http://127\.0\.0\.1:\d+/\S+/", "".join(lines))
            parts = urlsplit(url)
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
            connection.request("GET", f"{parts.path}slide")
            assert json.loads(connection.getresponse().read())["name"] == backed.path.name
            connection.close()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 0
        assert out.endswith("The viewer has ended.\n")
        assert "Traceback" not in err

    def test_what_is_wrong_is_said_in_a_sentence(self, backed, capsys):
        from sthist.cli import commands

        assert commands.main(["view", str(backed.path), "--color", "EPCM", "--no-browser"]) == 1
        assert "Did you mean 'EPCAM'" in capsys.readouterr().err
        started = time.monotonic()
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = str(other.getsockname()[1])
            assert commands.main(["view", str(backed.path), "--port", port, "--no-browser"]) == 1
        assert time.monotonic() - started < 60
        assert f"Port {port} cannot be had" in capsys.readouterr().err
