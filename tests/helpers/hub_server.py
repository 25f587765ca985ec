"""As much of the Hugging Face hub as pushing and loading a model take, on loopback: repositories in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


TOKEN = "hf_" + "a" * 34
USER = "someone"


class Repository:
    """Commits of one repository, oldest first: `[(commit id, {path: content})]`."""

    def __init__(self, private=False):
        self.private, self.commits = private, []
        self.commit({})

    def commit(self, changes):
        files = {**(self.commits[-1][1] if self.commits else {}), **changes}
        files = {path: content for path, content in files.items() if content is not None}
        number = hashlib.sha1(f"{len(self.commits)}{id(self)}".encode()).hexdigest()
        self.commits.append((number, files))
        return number

    def at(self, revision):
        """`(commit id, files)`, or `None` for a revision that is not there."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class HubServer:
    """
    Serves at `endpoint` until the `with` block ends. `repositories` is by name; `requests` is what was asked;
    requests whose line matches the regular expression `fails` get a 500.
    """

    def __init__(self):
        self.repositories, self.objects, self.requests, self.fails = {}, {}, [], None
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _serve(self):
        hub, path = self.server_hub, unquote(self.path.split("?")[0])
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self._chunks())
        line = f"{self.command} {path}"
        hub.requests.append(line)
        if hub.fails and re.search(hub.fails, line):
            return self._reply(500, {"error": "the disk of the server is full"})
        for pattern, answer in ROUTES:
            found = re.fullmatch(pattern, line)
            if found:
                return answer(self, hub, **found.groupdict())
        return self._reply(404, {"error": f"no such page: {line}"})

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _reply(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def _is_known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, hub, name):
        """The repository, or `None` after the hub's answer for one that the caller may not see."""
        found = hub.repositories.get(name)
        if found is None or (found.private and not self._is_known):
            headers = {"X_Error_Code": "RepoNotFound", "X_Error_Message": "Repository not found"}
            self._reply(404 if self._is_known else 401, {"error": "Repository not found"}, **headers)
            return None
        return found

    def _whoami(self, hub):
        if not self._is_known:
            return self._reply(401, {"error": "Invalid credentials"})
        return self._reply(200, {"type": "user", "name": USER, "auth": {"accessToken": {"role": "write"}}})

    def _create(self, hub):
        if not self._is_known:
            return self._reply(401, {"error": "Invalid credentials"})
        options = json.loads(self.body)
        name = f"{options.get('organization') or USER}/{options['name']}"
        if name in hub.repositories:
            return self._reply(409, {"error": "You already created this model repo", "url": name})
        hub.repositories[name] = Repository(options.get("private") or options.get("visibility") == "private")
        return self._reply(200, {"url": f"{hub.endpoint}/{name}", "name": name, "id": name})

    def _validate(self, hub):
        self._reply(200, {"warnings": [], "errors": []})

    def _preupload(self, hub, name):
        if self._repository(hub, name) is None:
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".model")) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._reply(200, {"files": files})

    def _lfs_batch(self, hub, name):
        objects = [
            {**item, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{item['oid']}", "header": {}}}}
            for item in json.loads(self.body)["objects"]
        ]
        self._reply(200, {"transfer": "basic", "objects": objects})

    def _lfs_upload(self, hub, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._reply(400, {"error": "another content than announced"})
        hub.objects[oid] = self.body
        return self._reply(200)

    def _commit(self, hub, name):
        repository, changes = self._repository(hub, name), {}
        if repository is None:
            return None
        if not self._is_known:
            return self._reply(403, {"error": "You may not write here"})
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                changes[value["path"]] = hub.objects[value["oid"]]
        number = repository.commit(changes)
        url = f"{hub.endpoint}/{name}/commit/{number}"
        return self._reply(200, {"success": True, "commitOid": number, "commitUrl": url, "hookOutput": ""})

    def _info(self, hub, name, revision="main"):
        repository = self._repository(hub, name)
        if repository is None:
            return None
        found = repository.at(revision)
        if found is None:
            return self._no_revision()
        files = [{"rfilename": path} for path in found[1]]
        details = {"id": name, "modelId": name, "sha": found[0], "private": repository.private, "siblings": files}
        return self._reply(200, {**details, "tags": [], "downloads": 0, "likes": 0, "gated": False})

    def _tree(self, hub, name, revision, folder=None):
        repository = self._repository(hub, name)
        if repository is None:
            return None
        found = repository.at(revision)
        if found is None:
            return self._no_revision()
        files = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in found[1].items()
            if path.startswith(f"{folder}/" if folder else "")
        ]
        if folder and not files:
            return self._reply(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
        return self._reply(200, files)

    def _no_revision(self):
        self._reply(
            404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id"
        )

    def _resolve(self, hub, name, revision, path):
        repository = self._repository(hub, name)
        if repository is None:
            return None
        found = repository.at(revision)
        if found is None:
            return self._no_revision()
        number, files = found
        headers = {"X_Repo_Commit": number}
        if path not in files:
            missing = {"X_Error_Code": "EntryNotFound", "X_Error_Message": "Entry not found"}
            return self._reply(404, {"error": "Entry not found"}, **headers, **missing)
        content = files[path]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self._reply(200, content, ETag=etag, Accept_Ranges="bytes", **headers)


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
ROUTES = (
    (r"GET /api/whoami-v2", _Handler._whoami),
    (r"POST /api/repos/create", _Handler._create),
    (r"POST /api/validate-yaml", _Handler._validate),
    (rf"POST /api/models/{NAME}/preupload/main", _Handler._preupload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    (r"PUT /lfs/(?P<oid>\w+)", _Handler._lfs_upload),
    (rf"POST /api/models/{NAME}/commit/main", _Handler._commit),
    (rf"GET /api/models/{NAME}", _Handler._info),
    (rf"GET /api/models/{NAME}/revision/(?P<revision>\w+)", _Handler._info),
    (rf"GET /api/models/{NAME}/tree/(?P<revision>\w+)(/(?P<folder>.+))?", _Handler._tree),
    (rf"(GET|HEAD) /{NAME}/resolve/(?P<revision>\w+)/(?P<path>.+)", _Handler._resolve),
)
