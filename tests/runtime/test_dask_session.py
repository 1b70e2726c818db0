"""The way to a scheduler: security that cannot be used, and addresses where nobody answers."""

import asyncio
import re
import socket
from pathlib import Path

import pytest
import trustme
from distributed import Scheduler, Security

from pipeline.errors import PipelineError, UsageError
from pipeline.runtime import dask_session


@pytest.fixture
def certificate(tmp_path: Path) -> str:
    path = tmp_path / "certificate.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    return str(path)


def refusal(settings: dict[str, object]) -> str:
    with pytest.raises(UsageError) as error:
        dask_session.security_of(settings)
    return str(error.value)


def test_no_settings_are_no_security() -> None:
    assert dask_session.security_of({}) is None


def test_settings_are_those_of_distributed(certificate: str) -> None:
    security = dask_session.security_of({"require_encryption": True, "tls_client_cert": certificate})
    assert isinstance(security, Security)
    assert (security.require_encryption, security.tls_client_cert) == (True, certificate)


def test_certificate_may_be_given_as_text(certificate: str) -> None:
    text = Path(certificate).read_text()
    security = dask_session.security_of({"tls_client_cert": text})
    assert security is not None
    assert security.tls_client_cert == text


@pytest.mark.parametrize("name", ["tls_ca_file", "tls_client_cert", "tls_client_key"])
def test_file_that_is_not_there_is_named(name: str) -> None:
    assert refusal({name: "/none.pem"}) == f"--cluster: security: {name}: /none.pem: there is no such file"


def test_name_that_distributed_does_not_know_is_told(certificate: str) -> None:
    message = "--cluster: security: Unknown parameters: ['tls_cert']; the names are those of distributed.Security"
    assert refusal({"tls_cert": certificate}) == message


def test_scheduler_that_is_there_is_no_error() -> None:
    async def check() -> None:
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0") as scheduler:
            await asyncio.to_thread(dask_session.check_reachable, scheduler.address, None)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        # the last try may end with the time allowed
        ("tcp://127.0.0.1:{}", r"(\[Errno 111\] Connection refused|Timed out trying to connect to .* after 0\.5 s);"),
        ("tls://127.0.0.1:{}", "TLS expects a `ssl_context` argument"),
        ("pigeon://127.0.0.1:{}", "unknown address scheme 'pigeon'"),
    ],
)
def test_scheduler_that_cannot_be_reached_is_told_with_its_address(
    monkeypatch: pytest.MonkeyPatch, address: str, reason: str
) -> None:
    if address.startswith("tcp"):  # Dask tries again until the time is over; other errors are raised at once
        monkeypatch.setattr(dask_session, "CONNECT_TIMEOUT_S", 0.5)
    with socket.socket() as reserved:  # bound, but it does not listen
        reserved.bind(("127.0.0.1", 0))
        address = address.format(reserved.getsockname()[1])
        with pytest.raises(PipelineError) as error:
            dask_session.check_reachable(address, None)
    message = str(error.value)
    assert re.match(f"--cluster: no scheduler can be reached at {address}: {reason}", message)
    assert message.endswith("is it started, and are its address and the profile's security right?")
    assert "\n" not in message
    assert error.value.exit_code == 1
