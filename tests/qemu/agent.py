# SPDX-License-Identifier: MIT
"""A guest agent without a guest, that answers what it likes. For a Qemu of bare.py."""

import json
import socket
import threading

COMMANDS = ["guest-ping", "guest-sync-delimited", "guest-info", "guest-get-osinfo",
            "guest-get-fsinfo", "guest-fsfreeze-status", "guest-fsfreeze-freeze",
            "guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw"]
REFUSED = object()
SILENT = object()


class Agent(threading.Thread):
    """An agent on a socket of its own. `fsinfo` is its answer to that question, or one of the
    above; `froze` what it was asked to freeze last: a list, "all", or None. `freeze` is what it
    answers to a freeze, None: the count. `frozen`: has it been asked for a freeze, and for no thaw
    since?"""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.fsinfo = []
        self.disabled = ()
        self.windows = False
        self.short = 0  # so many less are frozen
        self.freeze = None
        self.frozen = False
        self.asked = []
        self.froze = None
        self.count = 0
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen()
        self.start()

    def run(self):
        while True:
            client, _ = self.listener.accept()
            with client, client.makefile("rb") as lines:
                try:
                    for line in lines:
                        self.serve(client, json.loads(line.rpartition(b"\xff")[2]))
                except OSError:  # killed, with something unread
                    pass

    def serve(self, client, request):
        """Answer one request, if it is to be answered."""
        answer = self.answer(request["execute"], request.get("arguments", {}))
        if answer is SILENT:
            return
        text = {"return": answer}
        if answer is REFUSED:
            text = {"error": {"class": "GenericError", "desc": "no such luck"}}
        mark = b"\xff" if request["execute"] == "guest-sync-delimited" else b""
        client.sendall(mark + json.dumps(text).encode() + b"\n")

    def answer(self, command, arguments):
        self.asked.append(command)
        if command == "guest-sync-delimited":
            return arguments["id"]
        if command == "guest-info":
            return {"version": "7", "supported_commands": [
                {"name": name, "enabled": name not in self.disabled, "success-response": True}
                for name in COMMANDS]}
        if command == "guest-get-osinfo":
            return {"id": "mswindows" if self.windows else "debian"}
        if command == "guest-fsfreeze-status":
            return "thawed"
        if command == "guest-get-fsinfo":
            return self.fsinfo
        if command == "guest-fsfreeze-thaw":
            self.frozen = False
        if command == "guest-fsfreeze-freeze":
            self.froze, self.count = "all", 9
        if command == "guest-fsfreeze-freeze-list":
            self.froze = arguments["mountpoints"]
            self.count = len(self.froze) - self.short
        if command.startswith("guest-fsfreeze-freeze"):
            self.frozen = True
            if self.freeze is not None:
                return self.freeze
        return self.count if "fsfreeze" in command else {}
