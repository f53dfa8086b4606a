"""Other mail servers out of Debian's packages, each unpacked into a directory tree of its own.

The three conflict as packages, and a test-bed has no business in anybody's ``/etc``: nothing is installed. `install` downloads
a server and those libraries that this machine has not (``apt-get download``, which checks signatures and sums), checks
the files once more by the SHA-256 of the package lists, unpacks them (``dpkg-deb -x``), and puts a tree
in its place in one step. What was downloaded stays, so that a damaged tree can be made again without a network.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from testbed.children import RunError, UsageError

DIRECTORY: Final = Path("var/peers")
"""Where trees are kept unless ``TESTBED_PEERS`` says otherwise."""

PACKAGE_OF: Final[Mapping[str, str]] = {
    "postfix": "postfix",
    "opensmtpd": "opensmtpd",
    "exim": "exim4-daemon-light",
}
"""Which package each server comes in."""

PROGRAM_OF: Final[Mapping[str, str]] = {
    "postfix": "usr/lib/postfix/sbin/master",
    "opensmtpd": "usr/sbin/smtpd",
    "exim": "usr/sbin/exim4",
}
"""Without which there is none; below a tree, or below ``/`` where the machine has the server itself."""

DOWNLOAD_S: Final = 300.0
"""Longest download."""

COMMAND_S: Final = 60.0
"""Longest run of any other command."""

PACKAGES_MAX: Final = 50
"""Packages of one server; more would mean that this is another Debian than we know."""

_MANIFEST: Final = "peer.json"


class Package(NamedTuple):
    """One package, as the machine's package lists have it."""

    name: str
    version: str
    size: int
    """Bytes."""
    sha256: str
    depends: tuple[str, ...]
    """Names, the first of alternatives."""


class Peer(NamedTuple):
    """One server and where it is."""

    name: str
    version: str
    """Of the package; empty if it is not here, or is the machine's own."""
    tree: Path | None
    """Its directory tree; None for the machine's own programs."""
    is_here: bool
    """It can be run."""

    @property
    def how(self) -> str:
        """How to get it."""
        return f"testbed peers install {self.name}"


def default_directory() -> Path:
    """Return where trees are kept."""
    return Path(os.environ.get("TESTBED_PEERS") or DIRECTORY)


def find(name: str, directory: Path | None = None) -> Peer:
    """Return where a server is: its tree, or else the machine's own programs.

    Raises:
        UsageError: there is no server of that name.
    """
    check_name(name)
    tree = (directory or default_directory()) / name
    manifest = _manifest(tree)
    if manifest is not None and (tree / "root" / PROGRAM_OF[name]).is_file():
        return Peer(name, str(manifest["version"]), (tree / "root").resolve(), is_here=True)
    return Peer(name, "", None, is_here=(Path("/") / PROGRAM_OF[name]).is_file())


def check_name(name: str) -> None:
    """Raise UsageError if there is no server of that name."""
    if name not in PACKAGE_OF:
        raise UsageError(f"peers: there is no {name}; there are {', '.join(PACKAGE_OF)}")


def install(name: str, directory: Path | None = None, *, say: Callable[[str], None]) -> Peer:
    """Download and unpack a server. Idempotent: what is there and whole is left alone.

    Args:
        name: of `PACKAGE_OF`.
        directory: where trees are kept; None for `default_directory`.
        say: is told what happens, a line at a time.

    Raises:
        UsageError: there is no such server, or this is no Debian.
        RunError: it can't be downloaded, or what came is not what should have come.
    """
    check_name(name)
    for tool in ("apt-get", "apt-cache", "dpkg-query", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UsageError(f"peers: {tool} is not here: this works on Debian and its relatives")
    home = (directory or default_directory()) / name
    try:
        return _install(name, home, say)
    except OSError as error:
        raise RunError(f"{name}: {error.filename or home}: {error.strerror}") from error


def _install(name: str, home: Path, say: Callable[[str], None]) -> Peer:
    before = _manifest(home)
    if before is not None and _is_whole(home, before):
        say(f"{name}: {before['version']} is there")
        return find(name, home.parent)
    debs = home / "deb"
    debs.mkdir(parents=True, exist_ok=True)
    if before is not None and _are_whole(debs, before["files"]):
        say(f"{name}: the tree is damaged and is made again")
        return _unpack(name, home, before, say)
    wanted = list(_missing(PACKAGE_OF[name]))
    total = sum(each.size for each in wanted)
    what = ", ".join(f"{each.name} {each.version}" for each in wanted)
    say(f"{name}: downloading {what} ({total / 1e6:.1f} MB)")
    files: dict[str, str] = {}
    for each in wanted:
        file = _download(each, debs)
        files[file.name] = each.sha256
    manifest = {"name": name, "version": wanted[0].version, "files": files}
    return _unpack(name, home, manifest, say)


def _unpack(name: str, home: Path, manifest: dict[str, Any], say: Callable[[str], None]) -> Peer:
    """Make the tree beside the old one, and put it in its place."""
    fresh = home / f"root.{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        for file in manifest["files"]:
            _run("dpkg-deb", "-x", str(home / "deb" / file), str(fresh))
        _merge_usr(fresh)
        if not (fresh / PROGRAM_OF[name]).is_file():
            raise RunError(f"{name}: there is no {PROGRAM_OF[name]} in its packages")
        manifest = {**manifest, "programs": {PROGRAM_OF[name]: _sha256(fresh / PROGRAM_OF[name])}}
        old = home / "root"
        (home / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        fresh.rename(old)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    (home / f"{_MANIFEST}.new").write_text(json.dumps(manifest, indent=1) + "\n", encoding="ascii")
    (home / f"{_MANIFEST}.new").replace(home / _MANIFEST)
    say(f"{name}: {manifest['version']} is in {home / 'root'}")
    return find(name, home.parent)


def _merge_usr(tree: Path) -> None:
    """Move what is in /bin, /sbin and /lib to where Debian has it today: such trees are laid over ``/usr``."""
    for each in ("bin", "sbin", "lib"):
        if (tree / each).is_dir() and not (tree / each).is_symlink():
            shutil.copytree(tree / each, tree / "usr" / each, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(tree / each)


def _missing(root: str) -> Iterator[Package]:
    """Yield a package, and of the libraries below it those that this machine has not."""
    seen = {root}
    waiting = [root]
    while waiting:
        package = _look_up(waiting.pop(0))
        yield package
        for name in package.depends:
            if name in seen or not name.startswith("lib") or _is_installed(name):
                continue
            seen.add(name)
            waiting.append(name)
            if len(seen) > PACKAGES_MAX:
                raise RunError(f"{root}: needs more than {PACKAGES_MAX} packages")


def _look_up(name: str) -> Package:
    done = _run("apt-cache", "show", "--no-all-versions", name, may_fail=True)
    fields = {
        key: value.strip()
        for key, colon, value in (line.partition(":") for line in done.splitlines())
        if colon and not key.startswith(" ")
    }
    if "SHA256" not in fields:
        raise RunError(f"{name}: not in this machine's package lists: apt-get update makes them")
    depends = ", ".join(fields[key] for key in ("Pre-Depends", "Depends") if key in fields)
    names = tuple(
        each.split("|")[0].split("(")[0].split(":")[0].strip() for each in depends.split(",")
    )
    return Package(name, fields["Version"], int(fields["Size"]), fields["SHA256"], names)


def _is_installed(name: str) -> bool:
    done = _run("dpkg-query", "-W", "-f", "${db:Status-Status} ", name, may_fail=True)
    return "installed" in done.split()


def _download(package: Package, debs: Path) -> Path:
    """Return the package's file, downloaded unless it is there."""
    found = _with_sum(debs, package)
    if found is None:
        # Root's files can't be written by the user whom apt-get likes to download as.
        options = ("-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else ()
        wanted = f"{package.name}={package.version}"
        _run("apt-get", "-qq", *options, "download", wanted, cwd=debs, timeout_s=DOWNLOAD_S)
        found = _with_sum(debs, package)
    if found is None:
        raise RunError(f"{package.name}: what was downloaded has another checksum")
    return found


def _with_sum(debs: Path, package: Package) -> Path | None:
    for file in sorted(debs.glob(f"{package.name}_*.deb")):
        if _sha256(file) == package.sha256:
            return file
        file.unlink()
    return None


def _manifest(home: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((home / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "version" in content else None


def _is_whole(home: Path, manifest: Mapping[str, Any]) -> bool:
    return _are_whole(home / "root", manifest.get("programs", {"": ""}))


def _are_whole(directory: Path, sums: Mapping[str, str]) -> bool:
    try:
        return all(_sha256(directory / name) == sum_ for name, sum_ in sums.items())
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(
    *command: str, cwd: Path | None = None, timeout_s: float = COMMAND_S, may_fail: bool = False
) -> str:
    """Run a command and return what it printed.

    Raises:
        RunError: it failed, with the first line that it complained in.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"{' '.join(command[:2])}: not done within {timeout_s:.0f} s") from None
    if done.returncode != 0 and not may_fail:
        lines = [line.strip() for line in done.stderr.splitlines() if line.startswith("E:")]
        said = lines[0] if lines else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RunError(f"{command[0]}: {said}")
    return done.stdout
