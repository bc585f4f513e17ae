# SPDX-License-Identifier: MIT
"""What stands between vmfrost and a VM's two sockets, and can do to what passes what a bad day does.

A unit is, towards vmfrost, one line; towards QEMU, whatever came in one piece. Each has a label: the
command that it is, or is the reply to ("event" and "greeting" for what is neither; "}" for the rest of
a request that was sent but for its last byte). A fault of the plan names a link, a direction, a label
and a count; when that unit comes it is held, and the fault's action is done: by the proxy itself where it
is about what passes, else by whoever runs the campaign, who then lets the unit go.

vmfrost asks the kernel who listens on QEMU's monitor (SO_PEERCRED) and looks at what that process has
open. The kernel remembers who called listen(): so that is done by QEMU's process itself, before it
becomes QEMU, on a socket that the proxy has made and goes on to accept from.
"""

import collections
import heapq
import os
import queue
import re
import selectors
import socket
import threading
import time

COMMAND = re.compile(rb'"execute": ?"([\w-]+)"')
JOB = re.compile(rb'"(?:job-id|id)": ?"(vf[\w.-]+)"')


class Stream:
    """One direction of a connection: what has come, and what is to go and when."""

    def __init__(self, pair, direction, source, sink):
        self.pair, self.direction, self.source, self.sink = pair, direction, source, sink
        self.got = b""  # without an end yet
        self.units = collections.deque()  # (label, bytes) that wait behind a held one
        self.out = []  # heap of (due, order, bytes)
        self.pending = b""  # due, but the socket was full
        self.free_at = 0.0  # nothing goes before
        self.held = False
        self.ended = False
        self.order = 0

    def put(self, data, after=0.0):
        """Sends that, behind all that was put before, `after` seconds from now at the earliest."""
        self.free_at = max(self.free_at, time.monotonic() + after)
        self.order += 1
        heapq.heappush(self.out, (self.free_at, self.order, data))

    def idle(self):
        return not (self.out or self.pending or self.units or self.held)


class Pair:
    """A connection of vmfrost's, and the one of the proxy's to QEMU that it is passed on to."""

    def __init__(self, link, client, server):
        self.link, self.client, self.server = link, client, server
        self.to_vm = Stream(self, "req", client, server)
        self.to_us = Stream(self, "rep", server, client)
        self.asked = collections.deque()
        self.closed = False
        self.cut = False  # by a fault

    def streams(self):
        return self.to_vm, self.to_us


class Link:
    def __init__(self, name, front, back):
        self.name, self.front, self.back = name, str(front), str(back)
        self.listener = None


class Proxy(threading.Thread):
    """`links`: {name: (the path that vmfrost is told, QEMU's own)}."""

    def __init__(self, links):
        super().__init__(daemon=True)
        self.links = [Link(name, *paths) for name, paths in links.items()]
        self.selector = selectors.DefaultSelector()
        self.pairs = []
        self.waiting = []  # (link, client): there was no room at QEMU's socket
        self.orders = queue.SimpleQueue()
        self.events = queue.SimpleQueue()  # for whoever runs the campaign: (fault, let go)
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        self.selector.register(self.wake_read, selectors.EVENT_READ, None)
        self.faults = []
        self.jobs = []
        self.counts = collections.Counter()
        self.start()

    # --- for the campaign's thread

    def bind(self):
        """New sockets, on which QEMU's process is to call listen() before it becomes QEMU."""
        sockets = []
        for link in self.links:
            if os.path.lexists(link.front):
                os.unlink(link.front)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(link.front)
            sock.setblocking(False)
            sockets.append(sock)
        return sockets

    def serve(self, sockets):
        """QEMU's process was started: accept from now on."""
        self._call(lambda: self._listen(sockets))

    def refuse(self):
        """QEMU is gone: so are the sockets, but for their names."""
        self._call(self._refuse)

    def arm(self, faults):
        """These faults, and nothing of what was before."""
        def do():
            self.faults = list(faults)
            self.counts.clear()
            self.jobs = []
        self._call(do)

    def calm(self):
        """No more faults; whatever is held goes."""
        def do():
            self.faults = []
            for pair in self.pairs:
                for stream in pair.streams():
                    stream.held = False
                    self._advance(stream)
        self._call(do)

    def _call(self, what):
        done = threading.Event()
        self.orders.put((what, done))
        self._wake()
        if not done.wait(30):
            raise RuntimeError("the proxy's thread does not answer")

    def _wake(self):
        try:
            os.write(self.wake_write, b"x")
        except BlockingIOError:
            pass

    # --- its own thread

    def run(self):
        while True:
            timeout = self._pump()
            for key, _ in self.selector.select(timeout):
                if key.data is None:
                    try:
                        os.read(self.wake_read, 4096)
                    except BlockingIOError:
                        pass
                elif isinstance(key.data, Link):
                    self._accept(key.data)
                elif not key.data.pair.closed:
                    self._read(key.data)
            while not self.orders.empty():
                what, done = self.orders.get()
                what()
                if done:
                    done.set()

    def _listen(self, sockets):
        self._refuse()
        for link, sock in zip(self.links, sockets):
            link.listener = sock
            self.selector.register(sock, selectors.EVENT_READ, link)

    def _refuse(self):
        for link in self.links:
            if link.listener:
                self.selector.unregister(link.listener)
                link.listener.close()
                link.listener = None
        for _, client in self.waiting:
            client.close()
        self.waiting.clear()
        for pair in list(self.pairs):
            self._close(pair)

    def _accept(self, link):
        try:
            client, _ = link.listener.accept()
        except OSError:
            return
        self._join(link, client)

    def _join(self, link, client):
        """A connection of its own to QEMU's socket. Where too many wait already, it is tried again: our
        thread must not wait, for it is that one which closes them."""
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.setblocking(False)
        try:
            server.connect(link.back)
        except BlockingIOError:
            server.close()
            self.waiting.append((link, client))
            return
        except OSError:
            client.close()
            server.close()
            return
        pair = Pair(link.name, client, server)
        for stream in pair.streams():
            stream.source.setblocking(False)
            self.selector.register(stream.source, selectors.EVENT_READ, stream)
        self.pairs.append(pair)

    def _close(self, pair):
        if pair.closed:
            return
        pair.closed = True
        self.pairs.remove(pair)
        for stream in pair.streams():
            if not stream.ended:
                self.selector.unregister(stream.source)
        pair.client.close()
        pair.server.close()

    def _read(self, stream):
        try:
            data = stream.source.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data and stream.pair.cut:
            return
        if not data:
            self.selector.unregister(stream.source)
            stream.ended = True
            if stream.got:
                stream.units.append(("rest", stream.got))
                stream.got = b""
        elif stream.direction == "req":
            names = [name.decode() for name in COMMAND.findall(data)]
            self.jobs += [job.decode() for job in JOB.findall(data)]
            stream.pair.asked.extend(names)
            stream.units.append((names[-1] if names else data[-1:].decode("latin1"), data))
        else:
            *lines, stream.got = (stream.got + data).split(b"\n")
            stream.units.extend((self._label(stream.pair, line), line + b"\n") for line in lines)
        self._advance(stream)

    @staticmethod
    def _label(pair, line):
        if b'"QMP"' in line[:12]:
            return "greeting"
        if line.startswith(b'{"timestamp"') or b'"event": "' in line:
            return "event"
        return pair.asked.popleft() if pair.asked else "?"

    def _advance(self, stream):
        while stream.units and not stream.held and not stream.pair.closed:
            label, data = stream.units.popleft()
            fault = self._due(stream, label)
            if not fault:
                stream.put(data)
            elif fault["do"] == "link":
                self._meddle(stream, data, fault)
                self.events.put((fault, None))
            else:
                stream.held = True
                self.events.put((fault, lambda: self._let_go(stream, data)))

    def _let_go(self, stream, data):
        def do():
            if stream.held:
                stream.held = False
                stream.put(data)
                self._advance(stream)
        self.orders.put((do, None))
        self._wake()

    def _due(self, stream, label):
        for fault in self.faults:
            when = fault["when"]
            if (when["link"], when["dir"]) != (stream.pair.link, stream.direction) or (
                    when["label"] not in (label, "*")):
                continue
            self.counts[fault["number"]] += 1
            if self.counts[fault["number"]] == when["nth"]:
                return fault
        return None

    def _meddle(self, stream, data, fault):
        """What can be done to what passes."""
        how = fault["how"]
        pair = stream.pair
        if how == "delay":
            stream.put(data, fault["ms"] / 1000)
        elif how == "drop":
            pass
        elif how == "twice":
            stream.put(data + data)
        elif how == "half":
            stream.put(data[:max(1, len(data) // 2)])
            self._hang_up(pair)
        elif how == "bytes":
            for at in range(min(len(data), 400)):
                stream.put(data[at:at + 1], 0.0005)
            if len(data) > 400:
                stream.put(data[400:])
        elif how == "inject":
            stream.put(self.forge(fault) + data)
        elif how == "close-before":
            self._hang_up(pair)
        elif how == "close-after":
            stream.put(data)
            self._hang_up(pair)
        else:
            raise ValueError(how)

    def _hang_up(self, pair):
        """The connection ends behind what was sent so far."""
        pair.cut = True
        for stream in pair.streams():
            stream.units.clear()
            stream.held = False

    def forge(self, fault):
        """What a fault injects. A job of vmfrost's own is named if there is one."""
        text = fault["text"]
        now = time.time()
        for word, value in (("@JOB@", self.jobs[-1] if self.jobs else "somebody-elses"),
                            ("@NOW@", f'{{"seconds": {int(now)}, "microseconds": 0}}')):
            text = text.replace(word, value)
        return text.encode("latin1")

    def _pump(self):
        """Sends what is due. When is the next?"""
        now = time.monotonic()
        waiting, self.waiting = self.waiting, []
        for link, client in waiting:
            self._join(link, client)
        following = 0.02 if self.waiting else None
        for pair in list(self.pairs):
            for stream in pair.streams():
                while stream.out and stream.out[0][0] <= now:
                    stream.pending += heapq.heappop(stream.out)[2]
                if stream.pending:
                    try:
                        sent = stream.sink.send(stream.pending)
                        stream.pending = stream.pending[sent:]
                    except BlockingIOError:
                        pass
                    except OSError:
                        stream.pending = b""
                        stream.out.clear()
                if stream.pending:
                    following = min(following or 1.0, 0.005)
                elif stream.out:
                    wait = max(stream.out[0][0] - now, 0.0002)
                    following = min(following or wait, wait)
            if pair.closed:
                continue
            idle = all(stream.idle() for stream in pair.streams())
            ended = [stream for stream in pair.streams() if stream.ended]
            if (pair.cut and idle) or (pair.to_vm.ended and pair.to_vm.idle()) or (
                    pair.to_us.ended and pair.to_us.idle()):
                self._close(pair)
            elif ended and following is None:
                following = 0.01
        return following

