#!/usr/bin/env python3
"""Runs Tollgate against a real API server of Kubernetes, and records the server's answers.

It needs root (for a network namespace), and the executables `etcd` and `kube-apiserver`, which tests/kubernetes/build.sh builds
with Go in about seven minutes. Continuous integration does not run it: it uses the recorded answers, and a scripted server.

    tests/kubernetes/build.sh target/kubernetes
    cargo build -p tollgate
    unshare --net tests/kubernetes/run.py target/kubernetes target/debug/tollgate [FOLDER FOR THE RECORDED ANSWERS]
"""

import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time

API, ADMIN = 16443, "admin-token"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"
PODS = [f"10.99.0.{n}" for n in range(1, 4)]


class Server:
    """The API server, with what it needs."""

    def __init__(self, executables, folder):
        self.executables, self.folder, self.processes = executables, folder, {}
        run("openssl", "genrsa", "-out", self.path("sa.key"), "2048")
        run("openssl", "rsa", "-in", self.path("sa.key"), "-pubout", "-out", self.path("sa.pub"))
        with open(self.path("tokens.csv"), "w") as file:
            file.write(f'{ADMIN},admin,1,"system:masters"\n')
        self.spawn("etcd", "--data-dir", self.path("etcd"), "--listen-client-urls", "http://127.0.0.1:2379",
                   "--advertise-client-urls", "http://127.0.0.1:2379", "--listen-peer-urls", "http://127.0.0.1:2380",
                   "--unsafe-no-fsync")
        self.start()

    def path(self, name):
        return os.path.join(self.folder, name)

    def spawn(self, name, *options):
        log = open(self.path(f"{name}.log"), "ab")
        command = [os.path.join(self.executables, name), *options]
        self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def start(self):
        self.spawn("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", f"--secure-port={API}",
                   "--bind-address=127.0.0.1", f"--advertise-address={PODS[0]}", f"--cert-dir={self.path('certificates')}",
                   "--service-cluster-ip-range=10.96.0.0/16",
                   "--service-account-issuer=https://kubernetes.default.svc",
                   f"--service-account-signing-key-file={self.path('sa.key')}",
                   f"--service-account-key-file={self.path('sa.pub')}",
                   f"--token-auth-file={self.path('tokens.csv')}", "--authorization-mode=RBAC",
                   "--disable-admission-plugins=ServiceAccount")
        until("the API server", lambda: self.get("/readyz")[0] == 200, 120)

    def stop(self, name):
        process = self.processes.pop(name)
        process.terminate()
        process.wait()

    def request(self, method, path, body=None, token=ADMIN, kind="application/json"):
        connection = http.client.HTTPSConnection("127.0.0.1", API, context=ssl._create_unverified_context(), timeout=200)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind, "Accept": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse()

    def get(self, path, token=ADMIN):
        try:
            answer = self.request("GET", path, token=token)
            return answer.status, answer.read()
        except OSError:
            return 0, b""

    def post(self, path, body):
        answer = self.request("POST", path, body)
        text = answer.read()
        assert answer.status in (200, 201, 409), (path, answer.status, text)
        return json.loads(text)

    def patch(self, path, body):
        answer = self.request("PATCH", path, body, kind="application/merge-patch+json")
        text = answer.read()
        assert answer.status == 200, (path, answer.status, text)

    def delete(self, path, grace):
        answer = self.request("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": grace})
        answer.read()

    def end(self):
        for process in reversed(self.processes.values()):
            process.terminate()
            process.wait()


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def until(what, look, seconds=60):
    end = time.time() + seconds
    while time.time() < end:
        if look():
            return
        time.sleep(0.1)
    sys.exit(f"timed out waiting for {what}")


def serve(address):
    """A pod: answers with its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(address)))
            self.end_headers()
            self.wfile.write(address.encode())

        def log_message(self, *_):
            pass

    class Pod(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

    threading.Thread(target=Pod((address, 8080), Handler).serve_forever, daemon=True).start()


READY = {"ready": True, "serving": True, "terminating": False}
NOT_READY = {"ready": False, "serving": False, "terminating": False}
TERMINATING = {"ready": False, "serving": True, "terminating": True}


def put(server, name, pods):
    """Writes a slice of the service by hand: the number of each pod, which has a zone of its own, and its conditions."""
    slice = {
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{
            "addresses": [PODS[n - 1]], "conditions": conditions, "zone": f"eu-1{'abc'[n - 1]}", "nodeName": f"node-{n}",
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": f"web-{n}"},
        } for n, conditions in pods.items()],
    }
    answer = server.request("PUT", f"{SLICES}/{name}", slice)
    text = answer.read()
    if answer.status == 404:
        server.post(SLICES, slice)
    else:
        assert answer.status in (200, 201), (answer.status, text)


class Proxy:
    def __init__(self, executable, server):
        self.log = server.path("tollgate.log")
        config = server.path("tollgate.yaml")
        with open(config, "w") as file:
            json.dump({
                "admin": {"address": "127.0.0.1:9901"},
                "node": {"region": "eu-1", "zone": "eu-1a"},
                "kubernetes": {
                    "url": f"https://127.0.0.1:{API}", "region": "eu-1", "token_file": server.path("token"),
                    "tls": {"ca": [server.path("certificates/apiserver.crt")]},
                },
                "listeners": [{"name": "main", "address": "127.0.0.1:8080", "cluster": "web"}],
                "clusters": [{"name": "web", "discovery": {
                    "kubernetes": {"service": "web", "namespace": "shop", "port": "http"}}}],
            }, file)
        self.process = subprocess.Popen([executable, "run", config], stdout=subprocess.DEVNULL, stderr=open(self.log, "ab"))

    def shown(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", 9901, timeout=10)
            connection.request("GET", "/clusters")
            return json.loads(connection.getresponse().read())["clusters"][0]
        except (OSError, IndexError):
            return {"endpoints": [], "discovery": {}}

    def endpoints(self):
        return [endpoint["address"].split(":")[0] for endpoint in self.shown()["endpoints"]]

    def error(self):
        error = (self.shown()["discovery"] or {}).get("last_error")
        return error["error"] if error else ""

    def get(self):
        connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=10)
        connection.request("GET", "/")
        return connection.getresponse().read().decode()

    def expect(self, what, addresses):
        began = time.time()
        until(f"{what}: {addresses}, not {self.endpoints()}", lambda: self.endpoints() == addresses)
        print(f"{what}: {' '.join(addresses) or 'none'} ({(time.time() - began) * 1000:.0f} ms)", flush=True)
        if addresses:
            until("a request", lambda: self.get() in addresses, 5)


def small(text):
    """An answer without what only makes it long."""
    return re.sub(rb'"managedFields":\[.*?\}\}\}\],?|,"managedFields":\[.*?\}\}\}\]', b"", text)


def main():
    executables, tollgate = (os.path.abspath(path) for path in sys.argv[1:3])
    recorded = os.path.abspath(sys.argv[3]) if len(sys.argv) > 3 else None
    run("ip", "link", "set", "lo", "up")
    for address in PODS:
        run("ip", "address", "add", f"{address}/32", "dev", "lo")
        serve(address)
    folder = tempfile.mkdtemp()
    server = Server(executables, folder)
    proxy = None

    def record(name, content):
        if recorded:
            with open(os.path.join(recorded, name), "wb") as file:
                file.write(content)

    try:
        for name in ("shop", "tollgate"):
            server.post("/api/v1/namespaces", {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}})
        account = {"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "tollgate"}}
        server.post("/api/v1/namespaces/tollgate/serviceaccounts", account)
        request = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"expirationSeconds": 3600}}
        token = server.post("/api/v1/namespaces/tollgate/serviceaccounts/tollgate/token", request)["status"]["token"]
        with open(server.path("token"), "w") as file:
            file.write("not-a-token")
        server.post("/api/v1/namespaces/shop/services", {
            "kind": "Service", "apiVersion": "v1", "metadata": {"name": "web"},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": "http"}]}})
        put(server, "web-a", {1: READY})

        # The token is replaced, and then the permissions are given.
        proxy = Proxy(tollgate, server)
        until("the token to be refused", lambda: "401 Unauthorized" in proxy.error())
        record("unauthorized.json", server.get(SLICES, token="not-a-token")[1])
        with open(server.path("token"), "w") as file:
            file.write(token)
        until("the permission to be missing", lambda: "403 Forbidden" in proxy.error())
        print(proxy.error())
        record("forbidden.json", server.get(SLICES, token=token)[1])
        rules = [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}]
        group, metadata = "rbac.authorization.k8s.io", {"name": "tollgate-discovery"}
        server.post(f"/apis/{group}/v1/namespaces/shop/roles",
                    {"kind": "Role", "apiVersion": f"{group}/v1", "metadata": metadata, "rules": rules})
        server.post(f"/apis/{group}/v1/namespaces/shop/rolebindings", {
            "kind": "RoleBinding", "apiVersion": f"{group}/v1", "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "tollgate-discovery"},
            "subjects": [{"kind": "ServiceAccount", "name": "tollgate", "namespace": "tollgate"}]})
        proxy.expect("one pod", PODS[:1])
        record("list.json", small(server.get(SLICES)[1]))
        version = json.loads(server.get(SLICES)[1])["metadata"]["resourceVersion"]
        watch = server.request("GET", f"{SLICES}?watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds=100")

        put(server, "web-a", {1: READY, 2: READY, 3: NOT_READY})
        proxy.expect("a second pod", PODS[:2])
        put(server, "web-a", {1: NOT_READY, 2: READY, 3: NOT_READY})
        proxy.expect("the first one is not ready", PODS[1:2])
        put(server, "web-a", {1: NOT_READY, 2: TERMINATING, 3: NOT_READY})
        until("the states", lambda: proxy.shown()["discovery"]["states"] == {"ready": 0, "terminating": 1, "not_ready": 2})
        assert proxy.endpoints() == PODS[1:2] and proxy.get() == PODS[1]
        print("the only one terminates, and still serves")
        put(server, "web-b", {3: READY})
        proxy.expect("a third pod, in another slice", PODS[2:])
        put(server, "web-b", {3: READY, 1: READY})
        proxy.expect("the first one again", [PODS[0], PODS[2]])
        endpoint = proxy.shown()["endpoints"][0]
        assert endpoint["locality"] == {"region": "eu-1", "zone": "eu-1a"}, endpoint
        assert endpoint["metadata"] == {"node": "node-1", "pod": "web-1"}, endpoint

        # The server is stopped and started again; the watch continues.
        server.stop("kube-apiserver")
        until("the failure", lambda: proxy.shown()["discovery"]["attempts"] > 2)
        assert proxy.endpoints() == [PODS[0], PODS[2]] and proxy.get() in PODS
        record("watch.jsonl", small(watch.read()))
        server.start()
        put(server, "web-b", {3: READY})
        proxy.expect("a change after a restart", PODS[2:])
        until("a working watch", lambda: proxy.shown()["discovery"]["attempts"] == 0)

        # The token is replaced, and the old one is not valid any more. Watches continue with the new one.
        again = server.post("/api/v1/namespaces/tollgate/serviceaccounts/tollgate/token", request)["status"]["token"]
        with open(server.path("next"), "w") as file:
            file.write(again)
        os.replace(server.path("next"), server.path("token"))
        server.stop("kube-apiserver")
        server.start()
        put(server, "web-b", {3: READY, 2: READY})
        proxy.expect("a change with another token", PODS[1:])

        # While the proxy sleeps, the server is started again, and the version that the proxy knows is compacted.
        for n in range(3):
            server.post(SLICES, {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
                                 "metadata": {"name": f"other-{n}"}, "endpoints": []})
        page = json.loads(server.get(f"{SLICES}?limit=2")[1])
        until("the events", lambda: proxy.shown()["discovery"]["attempts"] == 0)
        proxy.process.send_signal(signal.SIGSTOP)
        server.stop("kube-apiserver")
        server.start()
        server.delete(f"{SLICES}/web-b", 0)
        put(server, "web-c", {1: READY, 2: READY, 3: READY})
        for n in range(3):
            server.delete(f"{SLICES}/other-{n}", 0)
        body = json.dumps({"revision": json.loads(server.get(SLICES)[1])["metadata"]["resourceVersion"]})
        connection = http.client.HTTPConnection("127.0.0.1", 2379)
        connection.request("POST", "/v3/kv/compaction", body)
        connection.getresponse().read()
        server.stop("kube-apiserver")
        server.start()
        proxy.process.send_signal(signal.SIGCONT)
        proxy.expect("a list after the version has expired", PODS)

        token = page["metadata"]["continue"]
        until("the token to expire", lambda: server.get(f"{SLICES}?limit=2&continue={token}")[0] == 410)
        record("continue_gone.json", server.get(f"{SLICES}?limit=2&continue={token}")[1])
        status, text = server.get(f"{SLICES}?watch=true&resourceVersion=1&timeoutSeconds=2")
        print("a watch from version 1:", status, text[:200])
        record("watch_gone.json", text)

        # The end of the service.
        server.delete(f"{SLICES}/web-a", 0)
        server.delete(f"{SLICES}/web-c", 0)
        until("the end of the service", lambda: "has no EndpointSlices" in proxy.error())
        proxy.expect("the last endpoints go after half a minute", [])
        print("done")
    finally:
        if proxy:
            proxy.process.send_signal(signal.SIGTERM)
            proxy.process.wait()
            with open(proxy.log) as file:
                print(file.read())
        server.end()
        shutil.rmtree(folder, ignore_errors=True)


main()
