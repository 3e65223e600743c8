"""`make FILES GIB` makes a folder `tree` of everything that file systems hold; `list` prints what must come back of it."""

import hashlib
import os
import sys

ROOT = b"tree"
BLOCK = 4096


def make(files, gib):
    for n in range(files):
        folder = b"%s/many/%03d" % (ROOT, n % 500)
        os.makedirs(folder, exist_ok=True)
        with open(b"%s/%d" % (folder, n), "wb") as file:
            file.write(b"%d\n" % n * (n % 200))
    odd = ROOT + b"/odd"
    os.makedirs(odd)
    names = [b"two\nlines", b"no \xff\xfe text", b"-rf", b"n" * 255, b"'\"$(x) *?", b"\\", b"\t", "ü漢".encode(), b"...", b" "]
    for n, name in enumerate(names):
        with open(odd + b"/" + name, "wb") as file:
            file.write(b"content of %d\n" % n)
    here = os.getcwd()
    os.chdir(odd)
    for _ in range(20):
        os.mkdir(b"d" * 200)
        os.chdir(b"d" * 200)
    with open(b"at the bottom", "wb") as file:
        file.write(b"deep")
    os.chdir(here)
    links = ROOT + b"/links"
    os.makedirs(links)
    with open(links + b"/one", "wb") as file:
        file.write(b"of three names")
    os.link(links + b"/one", links + b"/two")
    os.link(links + b"/one", odd + b"/three")
    for name, target in [(b"near", b"one"), (b"nowhere", b"no such \xff"), (b"far", b"/etc/passwd"), (b"up", b"../odd/./../odd"), (b"long", b"x/" * 1500 + b"x"), (b"self", b"self")]:
        os.symlink(target, links + b"/" + name)
    os.makedirs(ROOT + b"/empty/in empty")
    open(ROOT + b"/nothing in it", "wb").close()
    with open(ROOT + b"/sparse", "wb") as file:
        for at in (0, gib // 3, gib // 2 + 12345, gib - 70000):
            file.seek(at)
            file.write(os.urandom(65536))
        file.truncate(gib)
    modes = [0o400, 0o444, 0o600, 0o644, 0o640, 0o711, 0o755, 0o777, 0o500]
    times = [0, 1, -300000000123456789, 1234567890987654321, 4102444800000000001, 1700000000000000000]
    for n, mode in enumerate(modes):
        path = b"%s/mode %o" % (ROOT, mode)
        with open(path, "wb") as file:
            file.write(b"x")
        os.chmod(path, mode)
        os.utime(path, ns=(0, times[n % len(times)]))
    os.utime(links + b"/near", ns=(0, 987654321123456789), follow_symlinks=False)
    os.chmod(ROOT + b"/empty", 0o555)
    os.utime(ROOT + b"/empty/in empty", ns=(0, -5000000001))


def content(path, size):
    """Where there is something, and what: a file of holes is not read."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        at = 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // BLOCK * BLOCK
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < end:
                part = os.pread(file.fileno(), BLOCK, at)
                # Zeros may be stored or not.
                if part.strip(b"\0"):
                    total.update(b"%d:" % at + part)
                at += BLOCK
    return total.hexdigest()


def show():
    first = {}
    count = 0
    for folder, folders, names in os.walk(ROOT):
        folders.sort()
        for name in sorted(names + folders) + [b"."]:
            path = os.path.normpath(os.path.join(folder, name))
            if name == b"." and folder != ROOT:
                continue
            stat = os.lstat(path)
            kind = stat.st_mode // 4096
            what = b""
            if kind == 0o12:
                what = os.readlink(path)
            elif kind == 0o10:
                what = content(path, stat.st_size).encode() + b" " + first.setdefault(stat.st_ino, path)
                if stat.st_size > 2**24 and stat.st_blocks * 512 > stat.st_size // 4:
                    what += b" lost its holes"
            size = 0 if kind == 0o4 else stat.st_size
            print(path, "%o" % stat.st_mode, stat.st_mtime_ns, size, what)
            count += 1
    print(count, "entries")


if sys.argv[1] == "make":
    make(int(sys.argv[2]), int(float(sys.argv[3]) * 2**30))
else:
    show()
