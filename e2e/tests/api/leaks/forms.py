"""The forms in which programs print a value, by Python's own encoders and bash's. Values come from the environment, in the
variables that are named as arguments. Without --needles everything is printed as programs do; with it, what is to be
looked for, in hex: a part of each form that does not depend on what stands around it."""

import base64
import html
import json
import os
import subprocess
import sys
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

WINDOW = 16
printed, needles = [], set()


def form(name, shown, needle=None):
    printed.append(name.encode() + b": " + shown + b"\n")
    needle = shown if needle is None else needle
    if len(needle) > 2 * WINDOW:
        # A part that stays is a leak too.
        middle = len(needle) // 2
        needle = needle[middle - WINDOW // 2 : middle + WINDOW // 2]
    needles.add(needle)


def lower(text):
    parts = text.split("%")
    return "%".join([parts[0]] + [part[:2].lower() + part[2:] for part in parts[1:]])


def base64_forms(name, value):
    for shift in range(3):
        around = b"[" * shift + value + b"]]"
        begin, end = -(-shift * 8 // 6), (shift + len(value)) * 8 // 6
        for alphabet, encode in [("standard", base64.b64encode), ("url", base64.urlsafe_b64encode)]:
            text = encode(around)
            form(f"{name} {alphabet} {shift}", text, text[begin:end])
    return base64.b64encode(value)


def bash(script, value):
    words = ["bash", "-c", script, "bash", value]
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True).stdout.rstrip(b"\n")


def forms(value):
    raw = value.encode()
    form("plain", raw)
    form("colours", raw[:5] + b"\x1b[31m" + raw[5:-5] + b"\x1b[0m" + raw[-5:], raw[5:-5])
    for script in ["printf %q \"$1\"", "echo \"${1@Q}\"", "set -x; : \"$1\""]:
        form(script, bash(script, value))
    for ascii in (True, False):
        text = json.dumps(value, ensure_ascii=ascii)[1:-1]
        form(f"json {ascii}", text.encode())
        form(f"json {ascii} of others", text.replace("/", "\\/").encode())
    form("repr", repr(value)[1:-1].encode())
    form("repr of bytes", repr(raw)[2:-1].encode())
    c = dict(os.environ, LC_ALL="C")
    octal = subprocess.run(["bash", "-c", 'printf %q "$1"', "bash", value], env=c, stdout=subprocess.PIPE, check=True)
    form("printf %q of bytes", octal.stdout)
    form("braces", "".join(f"\\u{{{ord(c):x}}}" if ord(c) > 126 else repr('"' + c)[2:-1] for c in value).encode())
    form("html", html.escape(value).encode())
    form("html in ascii", html.escape(value).encode("ascii", "xmlcharrefreplace"))
    for entity in ("&#{};", "&#x{:x};"):
        special = lambda c: c in "&<>\"'" or ord(c) > 126
        form("entities", "".join(entity.format(ord(c)) if special(c) else c for c in value).encode())
    form("xml", escape(value, {'"': "&quot;", "'": "&apos;"}).encode())
    form("xml numeric", escape(value, {'"': "&#34;", "'": "&#39;"}).encode())
    for encode in (lambda text: quote(text, safe=""), quote_plus):
        for case in (str, lower):
            once = case(encode(value))
            form("url", once.encode())
            form("url twice", case(encode(once)).encode())
    form("hex", raw.hex().encode())
    form("HEX", raw.hex().upper().encode())
    once = base64_forms("base64", raw)
    if len(raw) >= 12:
        base64_forms("base64 of base64", once)
        # As the tool of that name breaks lines.
        form("base64 in lines", b"\n" + base64.encodebytes(raw * 4), once[:-4])
    form("utf-16le", value.encode("utf-16le"))
    form("utf-16be", value.encode("utf-16be"))


names = [argument for argument in sys.argv[1:] if argument != "--needles"]
for name in names:
    value = os.environ[name]
    forms(value)
    for line in value.split("\n"):
        if len(line.strip().encode()) >= 4 and line != value:
            forms(line.strip())
if "--needles" in sys.argv:
    print("\n".join(sorted(needle.hex() for needle in needles)))
else:
    sys.stdout.buffer.write(b"".join(printed))
