"""A person at a terminal: enters a job, changes the size of the window, interrupts a command, leaves."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time

port, key, known = sys.argv[1:]


def resize(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


pid, fd = pty.fork()
if pid == 0:
    command = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]
    command += ["-o", "StrictHostKeyChecking=accept-new", "-o", "UserKnownHostsFile=" + known, "-i", key, "-p", port]
    # The size is set before the client asks for it.
    time.sleep(0.2)
    os.execvp("ssh", command + ["127.0.0.1"])
resize(fd, 33, 91)
seen = b""


def until(wanted):
    """Reads until the text is there, which begins after what was read before."""
    global seen
    end = time.monotonic() + 30
    while wanted not in seen:
        if time.monotonic() > end or not select.select([fd], [], [], 30)[0]:
            sys.exit(f"waited in vain for {wanted!r} in {seen!r}")
        seen += os.read(fd, 4096)
    before, seen = seen.split(wanted, 1)
    return before


def say(text):
    os.write(fd, text)


say(b"stty size; echo o''ne\n")
assert b"33 91\r\n" in until(b"one\r\n"), "the first size"
resize(fd, 44, 122)
# The shell is told after the client: asked until it knows.
say(b"until [ \"$(stty size)\" = '44 122' ]; do sleep 0.05; done; echo t''wo\n")
until(b"two\r\n")
# In the foreground, and says itself that it is.
say(b"sh -c 'echo wai\"\"ts; exec sleep 1000'\n")
until(b"waits\r\n")
say(b"\x03")
say(b"echo c''ode $?.\n")
until(b"code 130.\r\n")
say(b"sleep 1000 & jobs; kill %1; echo t''hree\n")
assert b"Running" in until(b"three\r\n"), "no control of jobs"
say(b"exit 12\n")
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 12, status
