"""A headless Chromium, driven through pipes: opens a page and tells what is wrong with it.

It speaks the DevTools protocol over two pipes, a JSON message and a zero byte at a time, so that nothing but the
browser is needed.
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
# What of the page sticks out to the right, and which pictures did not load.
LOOK = """(() => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const broken = [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.getAttribute("src"));
  const formulas = [...document.querySelectorAll("mjx-merror")].map(e => e.title || e.innerText);
  return {wide, broken, formulas, words: document.body.innerText.length, title: document.title};
})()"""


def find():
    """Return the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser with one tab."""

    def __init__(self, program, profile):
        below, self._to = os.pipe()
        self._from, above = os.pipe()
        # The browser reads 3 and writes 4. Neither may be one of the two that the shell gives it.
        down, up = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (below, above))
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec 3<&{down} 4>&{up}; exec "$0" "$@"',
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
            ],
            pass_fds=(down, up),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (below, above, down, up):
            os.close(end)
        self._left, self._number, self._events = b"", 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session = None

    def close(self):
        """End the browser."""
        os.close(self._to)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def call(self, method, **params):
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        number = self._number
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._events.append(answer)

    def open(self, url, width, height, scheme):
        """Open a page in a window of a size and a colour scheme; return what is wrong with it once it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._receive())
        self.evaluate("window.MathJax?.startup?.promise.then(() => 0)")  # formulas are set after the page has loaded
        seen = self.evaluate(LOOK)
        wrong = [said for event in self._events if (said := _complaint(event))]
        wrong += [f"picture not shown: {source}" for source in seen["broken"]]
        wrong += [f"formula that is none: {said}" for said in seen["formulas"]]
        if seen["wide"] > 0:
            wrong.append(f"{seen['wide']} pixels wider than the window")
        if seen["words"] < 40:
            wrong.append("hardly any words")
        return wrong

    def evaluate(self, script):
        """Return the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def picture(self, path):
        """Save what the window shows."""
        import base64

        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _receive(self):
        """Return the next message of the browser."""
        limit = time.monotonic() + 60
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._from], [], [], max(0, limit - time.monotonic()))
            part = os.read(self._from, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError("the browser does not answer")
            self._left += part
        message, self._left = self._left.split(b"\0", 1)
        return json.loads(message)


def _complaint(event):
    """Return what an event complains about, or nothing."""
    method, params = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
        return f"exception: {params['exceptionDetails'].get('text')}"
    if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
        return f"console: {[argument.get('value') for argument in params['args']]}"
    if method == "Log.entryAdded" and params["entry"]["level"] == "error":
        return f"log: {params['entry']['text']} {params['entry'].get('url', '')}"
    if method == "Network.requestWillBeSent" and params["request"]["url"].startswith("http"):
        return f"asks the network for {params['request']['url']}"
    return None
