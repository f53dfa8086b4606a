"""Servers out of packages: a real package, unpacked by the real dpkg-deb, from a store that is played."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from testbed import packages
from testbed.children import RunError, UsageError

pytestmark = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None or shutil.which("dpkg-query") is None, reason="needs dpkg"
)

APT_CACHE = """#!/bin/sh
[ -f "{store}/$3.txt" ] && cat "{store}/$3.txt" || exit 100
"""
APT_GET = """#!/bin/sh
echo "$@" >> {store}/asked
for last; do :; done
[ -f "{store}/${{last%%=*}}.deb" ] || {{ echo "E: Could not resolve 'deb.test'" >&2; exit 100; }}
cp "{store}/${{last%%=*}}.deb" "${{last%%=*}}_1.0_all.deb"
"""


class Store:
    """Plays apt-get and apt-cache over a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir(parents=True)
        for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET)):
            (self.bin / name).write_text(text.format(store=directory))
            (self.bin / name).chmod(0o755)

    def add(self, name: str, files: dict[str, str], depends: str = "") -> Path:
        """Make a package, and let it be known."""
        tree = self.directory / f"{name}.tree"
        for path, text in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@x.test>\nDescription: x\n"
        )
        deb = self.directory / f"{name}.deb"
        subprocess.run(["dpkg-deb", "-b", str(tree), str(deb)], check=True, capture_output=True)
        self.know(name, hashlib.sha256(deb.read_bytes()).hexdigest(), depends)
        return deb

    def know(self, name: str, sha256: str, depends: str = "") -> None:
        (self.directory / f"{name}.txt").write_text(
            f"Package: {name}\nVersion: 1.0\nDepends: {depends}\nSize: 1000\nSHA256: {sha256}\n"
        )

    @property
    def asked(self) -> list[str]:
        file = self.directory / "asked"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store(tmp_path / "store")
    monkeypatch.setenv("PATH", f"{store.bin}:{os.environ['PATH']}")
    return store


def install(home: Path, said: list[str] | None = None) -> packages.Peer:
    return packages.install("opensmtpd", home, say=(said if said is not None else []).append)


def test_a_server_and_the_libraries_that_are_missing_are_unpacked(
    store: Store, tmp_path: Path
) -> None:
    """Files of /lib go below /usr; packages that are no libraries are left out; nothing is asked twice."""
    store.add(
        "opensmtpd",
        {"usr/sbin/smtpd": "program", "lib/systemd/x": "unit"},
        "libtestbed-missing1 (>= 1) | other, debconf, libc6",
    )
    store.add("libtestbed-missing1", {"usr/lib/libmissing.so.1": "library"})
    said: list[str] = []
    peer = install(tmp_path / "peers", said)
    assert peer.tree is not None
    assert (peer.version, peer.is_here) == ("1.0", True)
    assert (peer.tree / "usr/sbin/smtpd").read_text() == "program"
    assert (peer.tree / "usr/lib/libmissing.so.1").read_text() == "library"
    assert (peer.tree / "usr/lib/systemd/x").read_text() == "unit"
    assert not (peer.tree / "lib").exists()
    assert len(store.asked) == 2
    assert "downloading opensmtpd 1.0, libtestbed-missing1 1.0" in said[0]
    again: list[str] = []
    assert install(tmp_path / "peers", again) == peer
    assert (again, len(store.asked)) == (["opensmtpd: 1.0 is there"], 2)


def test_a_damaged_tree_is_made_again_without_a_network(store: Store, tmp_path: Path) -> None:
    deb = store.add("opensmtpd", {"usr/sbin/smtpd": "program"})
    peer = install(tmp_path / "peers")
    assert peer.tree is not None
    (peer.tree / "usr/sbin/smtpd").write_text("damaged")
    deb.unlink()
    assert install(tmp_path / "peers") == peer
    assert (peer.tree / "usr/sbin/smtpd").read_text() == "program"


def test_what_has_another_checksum_is_not_unpacked(store: Store, tmp_path: Path) -> None:
    store.add("opensmtpd", {"usr/sbin/smtpd": "program"})
    store.know("opensmtpd", "0" * 64)
    with pytest.raises(RunError, match="opensmtpd: what was downloaded has another checksum"):
        install(tmp_path / "peers")
    assert not packages.find("opensmtpd", tmp_path / "peers").tree


def test_without_a_network_it_says_so(store: Store, tmp_path: Path) -> None:
    store.know("opensmtpd", "0" * 64)
    with pytest.raises(RunError, match=r"apt-get: E: Could not resolve 'deb\.test'"):
        install(tmp_path / "peers")


def test_without_package_lists_it_says_how_to_get_them(store: Store, tmp_path: Path) -> None:
    assert store.asked == []
    with pytest.raises(RunError, match="opensmtpd: not in this machine's package lists: apt-get"):
        install(tmp_path / "peers")


def test_a_package_without_its_program_is_no_server(store: Store, tmp_path: Path) -> None:
    store.add("opensmtpd", {"usr/share/doc/x": "nothing"})
    with pytest.raises(RunError, match="there is no usr/sbin/smtpd in its packages"):
        install(tmp_path / "peers")
    assert list((tmp_path / "peers/opensmtpd").glob("root*")) == []


def test_elsewhere_than_on_debian_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="peers: apt-get is not here: this works on Debian"):
        install(tmp_path)
    with pytest.raises(UsageError, match="there is no qmail; there are postfix, opensmtpd, exim"):
        packages.install("qmail", tmp_path, say=[].append)


def test_a_directory_that_cannot_be_written_is_one_line(store: Store, tmp_path: Path) -> None:
    store.add("opensmtpd", {"usr/sbin/smtpd": "program"})
    (tmp_path / "peers").write_text("a file")
    with pytest.raises(RunError, match=r"opensmtpd: .*peers.*: Not a directory"):
        install(tmp_path / "peers")
