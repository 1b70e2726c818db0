"""Object stores: what is missing is one line with the remedy, no bucket is created, a busy server is waited for."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import fsspec
import pytest
import s3fs
import xarray as xr
from upath import UPath

from model.data.array_reader import Stored
from model.data.store_reader import Store
from model.predict import Classifier
from pipeline import durable_files, run_lock, storage
from pipeline.corpus.layouts import s3_files, traversal
from pipeline.corpus.layouts.folders import FolderLayout
from pipeline.errors import PipelineError, UsageError
from pipeline.features.audio import AudioError
from pipeline.features.audio_file import open_audio
from pipeline.features.audio_source import AudioSource
from pipeline.object_stores import failure
from pipeline.outputs import OutputFolder
from pipeline.run import main
from pipeline.runtime import preflight
from tests.support import whole_system
from tests.support.clusters import free_ports
from tests.support.manifests import read_table
from tests.support.s3_server import BUCKET, NO_SETTINGS, S3Server, forget_file_systems, serving
from tests.support.scans import listed
from tests.support.whole_system import write_corpus

SERIAL = ("--executor=serial", "--set=store.sequences_per_chunk=64", "--set=store.chunks_per_shard=1")


def run(*arguments: str | Path) -> int:
    """Run a command in this process and return its exit code; errors are raised."""
    return main.main([str(argument) for argument in arguments], standalone_mode=False) or 0


def refusal(*arguments: str | Path, kind: type[PipelineError] = UsageError) -> str:
    """Run a command that ends with an error of this `kind`, and return its one line."""
    with pytest.raises(PipelineError) as error:
        run(*arguments)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with serving() as running:
        yield running


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment without settings of object stores; file systems are opened anew in it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in NO_SETTINGS.items():
        monkeypatch.setenv(name, value)
    forget_file_systems()
    yield monkeypatch
    forget_file_systems()


@pytest.fixture
def s3(server: S3Server, clean: pytest.MonkeyPatch) -> S3Server:
    """The server, which this process uses."""
    for name, value in server.environment.items():
        clean.setenv(name, value)
    return server


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_url_of_a_local_folder_is_its_path(tmp_path: Path, scheme: str) -> None:
    folder = storage.folder_at(f"{scheme}://{tmp_path}/a b%20c")
    assert folder == UPath(f"{tmp_path}/a b%20c")
    assert storage.is_local(folder)


@pytest.mark.parametrize(("name", "what"), [("a//b", "//"), ("[x]", "["), ("a?b", "?"), ("*", "*")])
def test_url_that_would_be_a_pattern_is_no_output_folder(memory_url: str, name: str, what: str) -> None:
    url = f"{memory_url}/{name}"
    assert refusal("scan", "--out", url) == f"--out {url}: {what} is not supported in URLs; name another place"


@pytest.mark.parametrize("url", ["file://data/out", "file://localhost/data/out", "local://data/out"])
def test_url_of_a_path_with_a_host_is_refused(url: str) -> None:
    line = refusal("status", "--out", url)
    assert line.startswith(
        f"{url}: the path of such a URL begins with a slash; write {url.partition(':')[0]}:///data/out"
    )


@pytest.mark.parametrize("url", ["ftp://host/c", "sftp://user@host:22/c", "smb://host/share/c", "github://a:b@main/c"])
def test_server_whose_host_the_path_of_a_recording_would_lose_is_refused(tmp_path: Path, url: str) -> None:
    line = refusal("scan", "--corpus", url, "--out", tmp_path, *SERIAL)
    protocol = url.partition(":")[0]
    assert line == f"{url} cannot be opened: no {protocol} server is supported; mount it as a folder"


def test_url_of_a_file_system_that_needs_further_arguments_is_one_line() -> None:
    line = refusal("status", "--out", "github://folder")
    assert line.startswith(
        "github://folder cannot be opened: GithubFileSystem.__init__() missing 2 required positional"
    )


def test_store_is_extracted_into_a_new_folder_at_a_file_url(tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", recordings=1).as_uri(), (tmp_path / "new" / "out").as_uri()
    assert run("scan", "--corpus", corpus, "--out", out, *SERIAL) == 0
    assert run("extract", "--out", out, *SERIAL) == 0
    with xr.open_zarr(tmp_path / "new" / "out" / "features.zarr") as dataset:
        assert bool(dataset["valid"].all())
    store = Store(f"{out}/features.zarr")
    assert store._arrays["features"]._stored is Stored.RAW  # not read through a URL
    assert sum(map(len, store.blocks("train"))) > 0


@pytest.mark.parametrize("url", ["s3://", "s3:/bucket/out", "s3:bucket/out", "gs:///out"])
def test_url_without_a_bucket_is_refused(url: str) -> None:
    assert refusal("status", "--out", url) == f"{url} names no bucket; write {url[:2]}://BUCKET/FOLDER"


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs"), ("abfs", "adlfs", "azure")]
)
def test_package_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, scheme: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it is an ImportError
    monkeypatch.delitem(fsspec.registry, scheme, raising=False)
    line = refusal("status", "--out", f"{scheme}://bucket/out")
    assert line.startswith(f"{scheme}://bucket/out cannot be opened: ")
    assert f"nstall {package} to access" in line
    assert line.endswith(f"; pip install 'spoken-language-pipeline[{extra}]'")


CREDENTIALS = (
    "Unable to locate credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and "
    "AWS_ENDPOINT_URL for a server outside of Amazon"
)


def test_missing_credentials_are_named_wherever_they_are_needed(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/out"
    assert refusal("status", "--out", url) == f"--out {url} cannot be used: {CREDENTIALS}"
    assert refusal("scan", "--corpus", url, "--out", tmp_path, *SERIAL) == (
        f"--corpus {url}: cannot be read: {CREDENTIALS}"
    )
    with pytest.raises(AudioError, match=r"^cannot be opened: Unable to locate credentials$") as error:
        open_audio(AudioSource(f"{url}/0.wav")).__enter__()
    assert error.value.transient
    assert storage.file_state(f"{url}/0.wav") is None
    report = preflight.inspect_worker(url, "token", None)
    assert report.access_error == f"cannot write to {url}: Unable to locate credentials"


def test_server_that_does_not_answer_is_one_line(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    line = refusal("status", "--out", f"s3://{BUCKET}/out", kind=PipelineError)
    assert line.startswith(f"--out s3://{BUCKET}/out cannot be used: Could not connect to the endpoint URL")
    assert "AWS_ENDPOINT_URL" in line


def test_endpoint_without_a_scheme_is_one_line(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    url = f"s3://{BUCKET}/out"
    for line in (refusal("status", "--out", url), refusal("scan", "--corpus", url, "--out", tmp_path, *SERIAL)):
        assert "Invalid endpoint: localhost:9000; check AWS_ACCESS_KEY_ID" in line
    with pytest.raises(UsageError, match=rf"^MODEL {url} cannot be used: Invalid endpoint: localhost:9000; check "):
        Classifier.load(url)


def test_model_whose_server_does_not_answer_may_be_loaded_later(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(PipelineError, match=rf"^MODEL s3://{BUCKET}/out cannot be used: Could not connect") as error:
        Classifier.load(f"s3://{BUCKET}/out")
    assert error.value.exit_code == 1


def test_name_that_no_bucket_can_have_is_wrong_usage(s3: S3Server) -> None:
    assert 'Invalid bucket name "bad!"' in refusal("status", "--out", "s3://bad!/out")


def test_missing_file_is_named_without_its_name(s3: S3Server) -> None:
    with pytest.raises(AudioError, match=r"^cannot be opened: No such file or directory$"):
        open_audio(AudioSource(f"s3://{BUCKET}/none.wav")).__enter__()


def test_url_of_an_unknown_kind_is_an_error_of_its_recording_alone() -> None:
    with pytest.raises(AudioError, match=r"^cannot be opened: Unsupported filesystem: 'unknown'$"):
        open_audio(AudioSource("unknown://host/0.wav")).__enter__()


def test_web_server_that_does_not_answer_is_named_with_its_option(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}/corpus"
    line = refusal("scan", "--corpus", url, "--out", tmp_path, *SERIAL)
    assert line.startswith(f"--corpus {url}: cannot be read: ")


def test_no_bucket_is_created(s3: S3Server, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", recordings=1)
    line = refusal("scan", "--corpus", corpus, "--out", "s3://mistyped/out", *SERIAL)
    assert line == (
        "--out s3://mistyped/out cannot be written: The specified bucket does not exist; create the bucket first"
    )
    with pytest.raises(FileNotFoundError), durable_files.replacing(UPath("s3://mistyped/out/large")) as file:
        file.write(b"content")
    with pytest.raises(UsageError, match=r"^--corpus s3://mistyped/out: there is no such bucket or folder$"):
        listed("s3://mistyped/out")
    assert s3.files.ls("") == [BUCKET]


def test_store_is_made_in_an_object_store_whose_server_is_busy_now_and_then(s3: S3Server, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", recordings=1), f"s3://{BUCKET}/out"
    s3.files.put(str(corpus), f"{BUCKET}/corpus", recursive=True)
    s3.busy = 1
    assert run("scan", "--corpus", f"s3://{BUCKET}/corpus", "--out", out, *SERIAL) == 0
    s3.protected = "/features/c/"
    with pytest.raises(PipelineError, match=rf"^shard 0 .*cannot be written to {out}: Access Denied; "):
        run("extract", "--out", out, *SERIAL)
    s3.protected, s3.busy = "", 1
    assert run("extract", "--out", out, *SERIAL) == 0
    assert s3.busy == 0
    assert run("verify", "--out", out, *SERIAL) == 0
    found = read_table(OutputFolder.at(out).ledger)
    assert (found["status"] == "ok").all()
    assert len(found) == 6


def test_of_runs_that_begin_at_once_one_has_the_lock(s3: S3Server) -> None:
    output, runs = storage.folder_at(f"s3://{BUCKET}/locked"), 4
    all_tried, holders = threading.Barrier(runs), []

    def work() -> None:
        try:
            with run_lock.held(OutputFolder(output)):
                holders.append(s3.files.cat_file(f"{BUCKET}/locked/run.lock"))
                all_tried.wait()
        except run_lock.BusyError:
            all_tried.wait()

    threads = [threading.Thread(target=work) for _ in range(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(holders) == 1
    assert not s3.files.exists(f"{BUCKET}/locked/run.lock")


def test_what_other_processes_write_is_seen_at_once(s3: S3Server) -> None:
    folder = storage.folder_at(f"s3://{BUCKET}/shared")
    durable_files.write_atomically(folder / "own", b"1")
    assert [path.name for path in folder.iterdir()] == ["own"]
    s3.files.pipe(f"{BUCKET}/shared/other", b"2")
    assert (folder / "other").read_bytes() == b"2"
    assert sorted(path.name for path in folder.iterdir()) == ["other", "own"]


def test_server_that_stays_busy_ends_the_command_with_its_words(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3.busy = 1000
    try:
        line = refusal("status", "--out", f"s3://{BUCKET}/out", kind=PipelineError)
    finally:
        s3.busy = 0
    assert "cannot be used: Service Unavailable; run the same command again later" in line


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        (PermissionError("Access Denied"), UsageError, "check AWS_ACCESS_KEY_ID"),
        (OSError("Forbidden: https://storage.googleapis.com/b"), UsageError, "check AWS_ACCESS_KEY_ID"),
        (FileNotFoundError("The specified bucket does not exist."), UsageError, "create the bucket first"),
        (TimeoutError(), PipelineError, "run the same command again later, or check AWS_ACCESS_KEY_ID"),
        (OSError("Internal\nServer Error"), PipelineError, "run the same command again later, or check AWS_ACCESS"),
    ],
)
def test_remedy_depends_on_the_error(error: OSError, kind: type[PipelineError], advice: str) -> None:
    found = failure("--out X cannot be used", "s3://b/X", error)
    assert type(found) is kind
    cause = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    assert str(found).startswith(f"--out X cannot be used: {cause}; {advice}")
    assert str(failure("--out X cannot be used", "/X", error)) == f"--out X cannot be used: {cause}"


PAGED = [
    *(f"en/anna/{number}.wav" for number in range(5)), "en/bert/monday/1.wav", "en/1.wav", "it/1.wav", "it/x.txt",
    "1.wav", "en/.h/1.wav", "en/.h/2.wav", "en/.h/3.wav", "en/._1.wav", ".h/1.wav", "it/__MACOSX/1.wav",
    "it/a b/\u00e9+%.wav",
]  # fmt: skip


def test_pages_of_a_bucket_add_up_to_what_a_folder_holds(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_files, "PAGE", 2)
    for name in PAGED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        s3.files.touch(f"{BUCKET}/paged/{name}")
    (tmp_path / "fr").mkdir()
    for name in ("", "fr/", "en/anna/"):  # objects that stand for folders
        s3.files.call_s3("put_object", Bucket=BUCKET, Key=f"paged/{name}")
    here, there = listed(tmp_path), listed(f"s3://{BUCKET}/paged")
    assert there.recordings["recording_id"].tolist() == here.recordings["recording_id"].tolist()
    assert len(there.recordings) == 9
    assert there[1:] == here[1:]
    assert there.left_out == (("fr", "is empty, so it is no language"),)


def test_layout_of_a_bucket_is_chosen_from_a_few_of_its_pages(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_files, "PAGE", 1)
    for number in range(100):
        s3.files.touch(f"{BUCKET}/large/{number % 2}/{number}.wav")
    call_s3 = s3fs.S3FileSystem.call_s3
    with mock.patch.object(s3fs.S3FileSystem, "call_s3", autospec=True, side_effect=call_s3) as calls:
        assert FolderLayout().claims(storage.folder_at(f"s3://{BUCKET}/large"))
    assert 2 <= calls.call_count <= 2 * traversal.AHEAD * traversal.THREADS


def test_bucket_that_can_no_longer_be_listed_is_one_line(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_files, "PAGE", 1)
    for name in ("en/1.wav", "it/1.wav"):
        s3.files.touch(f"{BUCKET}/denied/{name}")
    call_s3 = s3fs.S3FileSystem.call_s3

    def first_page(*arguments: object, **named: object) -> object:
        if "ContinuationToken" in named:
            raise PermissionError("Access Denied")
        return call_s3(*arguments, **named)

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", first_page)
    url = f"s3://{BUCKET}/denied"
    with pytest.raises(UsageError, match=rf"^--corpus {url}: cannot be read: Access Denied; check AWS_ACCESS_KEY_ID "):
        listed(url)


@pytest.mark.slow
@pytest.mark.long
def test_whole_run_in_an_object_store_equals_that_on_a_disk(s3: S3Server, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus"), f"s3://{BUCKET}/whole/out"
    s3.files.put(str(corpus), f"{BUCKET}/whole/corpus", recursive=True)
    settings = ("--workers", "2", *whole_system.SMALL)
    done = whole_system.run("--corpus", f"s3://{BUCKET}/whole/corpus", "--out", out, *settings)
    assert done.returncode == 0, done.stderr
    again = whole_system.run("--corpus", f"s3://{BUCKET}/whole/corpus", "--out", out, *settings)
    assert again.stderr.count("unchanged, nothing to do") == 8, again.stderr
    for stage in ("promote", "status"):
        assert whole_system.run(stage, "--out", out, *settings).returncode == 0
    for stage in ("scan", "extract"):
        assert run(stage, "--corpus", corpus, "--out", tmp_path / "out", "--executor=serial", *settings) == 0

    s3.files.get(f"{BUCKET}/whole/out/features.zarr", str(tmp_path / "features.zarr"), recursive=True)
    with xr.open_zarr(tmp_path / "features.zarr") as there, xr.open_zarr(tmp_path / "out" / "features.zarr") as here:
        xr.testing.assert_identical(there.load(), here.load())
    recording = next(corpus.rglob("*.flac"))
    command = [sys.executable, "-m", "model.predict", f"{out}/models/lstm", str(recording), "--json"]
    predicted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert predicted.returncode == 0, predicted.stderr
    assert json.loads(predicted.stdout)[0]["language"] in ("de", "en")
    assert s3.files.exists(f"{BUCKET}/whole/out/registry/registry.json")
