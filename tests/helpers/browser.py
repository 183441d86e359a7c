"""Headless Chromium, driven by its DevTools protocol: opens pages, tells errors, takes pictures."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


@contextlib.contextmanager
def chromium(folder):
    """Start a browser whose files lie in a folder; yields what :func:`look` is given."""
    # Chromium has no sandbox for root.
    flags = [*_FLAGS, f"--user-data-dir={folder}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    process = subprocess.Popen(
        [CHROMIUM, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        told = folder / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (told.exists() and told.read_text().count("\n")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield int(told.read_text().split()[0])
    finally:
        process.terminate()
        process.wait(30)


def look(port, path, picture=None, *, width=1280, height=900, dark=False, scripts=True, ask="null"):
    """Open a page in a tab of its own.

    :param picture: a PNG of the whole page to write
    :param ask: an expression of JavaScript
    :return: its value, and the errors on the console, requests of the page elsewhere included
    """
    return asyncio.run(_look(port, path, picture, width, height, dark, scripts, ask))


async def _look(port, path, picture, width, height, dark, scripts, ask):
    from tornado.websocket import websocket_connect

    request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
    with urllib.request.urlopen(request, timeout=30) as answer:
        tab = json.load(answer)
    socket = await websocket_connect(tab["webSocketDebuggerUrl"], max_message_size=2**28)
    numbers, errors, events = itertools.count(), [], []

    def note(message):
        kind, said = message.get("method"), message.get("params", {})
        events.append(kind)
        if kind == "Runtime.exceptionThrown":
            errors.append(json.dumps(said["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning"):
            errors.append(json.dumps(said["args"]))
        elif kind == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            errors.append(json.dumps(said["entry"]))
        elif kind == "Network.requestWillBeSent" and said["request"]["url"].startswith("http"):
            errors.append(said["request"]["url"])

    async def call(method, **params):
        number = next(numbers)
        await socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(await asyncio.wait_for(socket.read_message(), 60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            note(message)

    async def evaluate(expression):
        answer = await call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    for domain in ("Page", "Runtime", "Log", "Network"):
        await call(f"{domain}.enable")
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await call("Emulation.setEmulatedMedia", features=[scheme])
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    await call("Emulation.setDeviceMetricsOverride", **screen)
    await call("Emulation.setScriptExecutionDisabled", value=not scripts)
    await call("Page.navigate", url=path.resolve().as_uri())
    drawn = "document.documentElement.dataset.drawn" if scripts else "document.readyState == 'complete'"
    deadline = time.monotonic() + 60
    while not await evaluate(drawn):
        assert time.monotonic() < deadline, errors
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)
    value = await evaluate(ask)
    if picture is not None:
        shot = await call("Page.captureScreenshot", captureBeyondViewport=True)
        picture.write_bytes(base64.b64decode(shot["data"]))
    socket.close()
    while await socket.read_message() is not None:
        pass  # until the connection is closed from there
    return value, errors
