"""The profile kubernetes: what is sent to the API server is what the definition of the operator's resource allows.

There is no Kubernetes here: a server on loopback notes the resource that it is asked to create, and refuses.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest
import yaml
from dask_kubernetes.operator import make_cluster_spec

from pipeline.runtime.code_upload import FEATURE_LIBRARIES
from pipeline.runtime.profiles import DEFAULT_FILE
from tests.support.clusters import HOST, free_ports
from tests.support.whole_system import run, write_corpus

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DEFINITION = "operator/deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: test
contexts: [{{name: test, context: {{cluster: test, user: test}}}}]
clusters: [{{name: test, cluster: {{server: "http://{host}:{port}"}}}}]
users: [{{name: test, user: {{token: none}}}}]
"""


class ApiServer(BaseHTTPRequestHandler):
    """Says its version, knows of no resource, and creates none."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        self._answer(200 if self.path.startswith("/version") else 404)

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(404)

    def _answer(self, status: int) -> None:
        body = json.dumps({"major": "1", "minor": "35", "gitVersion": "v1.35.0"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def api_port() -> Iterator[int]:
    with HTTPServer((HOST, 0), ApiServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()
        ApiServer.asked.clear()


def shipped() -> dict[str, Any]:
    """Return the kwargs of this project's profile."""
    kwargs: dict[str, Any] = yaml.safe_load(DEFAULT_FILE.read_text())["kubernetes"]["kwargs"]
    return kwargs


def validate(resource: dict[str, Any]) -> None:
    """Raise where the API server would refuse the resource for its types."""
    definition = yaml.safe_load(resources.files("dask_kubernetes").joinpath(DEFINITION).read_text())
    (version,) = (v for v in definition["spec"]["versions"] if resource["apiVersion"].endswith(f"/{v['name']}"))
    jsonschema.validate(resource, version["schema"]["openAPIV3Schema"])


def rendered(**changes: Any) -> dict[str, Any]:
    """Return the resource of the profile with some arguments changed, without those that stay with the driver."""
    kwargs = {key: value for key, value in shipped().items() if key != "quiet"}
    resource: dict[str, Any] = make_cluster_spec(**kwargs | changes)
    return resource


def scan(folder: Path, port: int | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Scan a corpus on the profile, with the API server at that port; return the line with which that ends."""
    if port is not None:
        (folder / "config").write_text(KUBECONFIG.format(host=HOST, port=port))
    monkeypatch.setenv("KUBECONFIG", str(folder / "config"))
    corpus = write_corpus(folder / "corpus", speakers=1, recordings=1)
    result = run("scan", "--corpus", corpus, "--out", folder / "out", "--cluster", "kubernetes")
    assert result.returncode == 1, result.stderr
    begins, line = result.stderr.splitlines()
    assert begins.endswith("scan: begins")
    return line


def test_the_resource_that_is_sent_is_what_the_definition_allows(
    api_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = scan(tmp_path, api_port, monkeypatch)
    assert "KubeCluster did not start: Client error '404 Not Found' for url" in line
    (sent,) = ApiServer.asked
    validate(sent)
    assert sent["spec"]["worker"]["replicas"] == 4
    (worker,) = sent["spec"]["worker"]["spec"]["containers"]
    assert worker["resources"] == shipped()["resources"]
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in worker["env"]
    assert sent["spec"] == rendered(name=sent["metadata"]["name"])["spec"]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"n_workers": "four"}, "spec.worker.replicas"),
        ({"env": {"OMP_NUM_THREADS": 1}}, "spec.worker.spec.containers.0.env.0.value"),
        ({"resources": {"limits": {"cpu": [1]}}}, "spec.worker.spec.containers.0.resources.limits.cpu"),
        ({"idle_timeout": "1h"}, "spec.idleTimeout"),
    ],
)
def test_an_argument_of_a_wrong_type_is_refused_by_the_definition(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(jsonschema.ValidationError) as error:
        validate(rendered(**changes))
    assert ".".join(map(str, error.value.absolute_path)) in {path, path.replace("worker", "scheduler")}


def test_an_api_server_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = scan(tmp_path, free_ports(1)[0], monkeypatch)
    assert "--cluster: dask_kubernetes.operator.KubeCluster did not start: " in line
    assert "Connect call failed" in line


def test_without_a_kubernetes_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = scan(tmp_path, None, monkeypatch)
    assert line.endswith("KubeCluster did not start: Unable to find valid credentials")


def test_the_image_is_given_the_versions_of_the_constraints() -> None:
    kwargs = shipped()
    pins = kwargs["env"]["EXTRA_PIP_PACKAGES"].split()
    constraints = (ROOT / "constraints.txt").read_text().split()
    assert set(pins) <= set(constraints)
    assert {"distributed", *FEATURE_LIBRARIES} <= {pin.split("==")[0] for pin in pins}
    assert kwargs["image"].split(":")[1] == f"{next(p for p in pins if p.startswith('dask==')).split('==')[1]}-py3.11"
