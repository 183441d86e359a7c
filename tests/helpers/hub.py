"""A stand-in of the Hugging Face Hub on loopback: as much of its API as pushing and pulling asks for."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

import yaml

TOKEN, OWNER = "hf_of_a_test", "someone"
_LARGE = (".zip", ".mp4", ".png")


class Hub:
    """What the stand-in holds, and what it is to do wrong.

    :param address: where it answers
    """

    def __init__(self, address):
        self.address = address
        self.repos = {}  # by "ORG/NAME": files by path
        self.public = {}
        self.stored = {}  # large files by their digest
        self.commits = []
        self.lies = {}  # by path: a size that is told in the place of the true one
        self.cut = set()  # paths whose content breaks off
        self.refuses = {}  # by a part of a request's path: the status of its answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def _answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        headers.setdefault("Content-Length", str(len(content)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _any(self):
        body = self._body()
        path = unquote(urlparse(self.path).path)
        for part, status in self.hub.refuses.items():
            if part in path:
                return self._answer(status, {"error": "it does not want to"})
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body))
        if path.startswith("/lfs/"):
            self.hub.stored[path.removeprefix("/lfs/")] = body
            return self._answer(200)
        writes = path == "/api/whoami-v2" or (self.command == "POST" and "/paths-info/" not in path)
        if writes and not authorised:
            return self._answer(401, {"error": "Invalid credentials"})
        if path == "/api/whoami-v2":
            return self._answer(200, {"type": "user", "name": OWNER})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        return self._of_repo(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = _any

    def _validate(self, asked):
        front = asked["content"].split("---")[1]
        known = yaml.safe_load(front)
        errors = [] if known.get("library_name") else [{"message": "no library_name"}]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _create(self, asked):
        repo = f"{asked['organization'] or OWNER}/{asked['name']}"
        if not repo.startswith(f"{OWNER}/"):
            return self._answer(403, {"error": "You don't have the rights"})
        if repo in self.hub.repos:
            return self._answer(409, {"error": "exists", "url": f"{self.hub.address}/{repo}"})
        self.hub.repos[repo] = {}
        self.hub.public[repo] = asked.get("visibility") != "private" and not asked.get("private")
        return self._answer(200, {"url": f"{self.hub.address}/{repo}", "name": repo, "id": repo})

    def _of_repo(self, path, body):
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repo = "/".join(parts[:2]).removesuffix(".git")
        if repo not in self.hub.repos:
            return self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        files, rest = self.hub.repos[repo], parts[2:]
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": name} for name in files]
            private = not self.hub.public.get(repo, True)
            return self._answer(
                200, {"id": repo, "sha": "0" * 40, "siblings": siblings, "private": private}
            )
        if rest[0] == "paths-info":
            asked = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            return self._answer(200, [self._about(name, files) for name in asked if name in files])
        if rest[0] == "preupload":
            return self._answer(200, {"files": [_mode(file) for file in json.loads(body)["files"]]})
        if rest[0] == "info":
            return self._batch(json.loads(body))
        if rest[0] == "commit":
            return self._commit(repo, body)
        assert rest[0] == "resolve", path
        return self._resolve("/".join(rest[2:]), files)

    def _about(self, name, files):
        size = self.hub.lies.get(name, len(files[name]))
        return {"type": "file", "path": name, "size": size, "oid": _digest(files[name])}

    def _batch(self, asked):
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{entry['oid']}"}}}
            for entry in asked["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo, body):
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(self.hub.repos[repo])
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        self.hub.repos[repo] = files
        self.hub.commits.append(lines[0]["value"]["summary"])
        url = f"{self.hub.address}/{repo}/commit/{'0' * 40}"
        self._answer(200, {"success": True, "commitUrl": url, "commitOid": "0" * 40})

    def _resolve(self, name, files):
        content = files[name]
        about = {"X_Repo_Commit": "0" * 40, "ETag": f'"{_digest(content)}"'}
        if name not in self.hub.cut or self.command == "HEAD":
            return self._answer(200, content, **about)
        self._answer(200, content[: len(content) // 2], Content_Length=str(len(content)), **about)
        self.close_connection = True
        return None


def _mode(file):
    mode = "lfs" if file["path"].endswith(_LARGE) else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


def _digest(content):
    return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def serving():
    """Serve a stand-in from a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {}))
    server.daemon_threads = True
    hub = server.RequestHandlerClass.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
