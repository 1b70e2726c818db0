"""Clusters of dask-jobqueue, whose workers are jobs: what the queue answered, and which jobs it has.

Written against dask-jobqueue 0.9.0: `Job.start` submits a job and raises an exception if that fails. Dask drops the
exception and does not submit the job again.
"""

import asyncio
import logging
import shlex
import shutil
from textwrap import shorten
from typing import Any, Final

from pipeline.errors import UsageError, counted, few, in_one_line
from pipeline.runtime.outlook import START_LIMIT_S, Outlook

MAX_ANSWER: Final = 500
"""Characters shown of what the command that submits jobs printed."""
WARN_AFTER_S: Final = 10
ANSWER_LIMIT_S: Final = 120
"""How long the command that submits a job may take. Dask waits for it, and can neither go on nor end meanwhile."""
TIMED_OUT: Final = "Exit code: 124"
"""In dask-jobqueue's report of a command that coreutils' `timeout` has ended."""

log = logging.getLogger(__name__)


def noting_refusals(cluster_class: Any) -> dict[str, Any]:
    """Return the argument `job_cls`: a class of jobs that keep what the queue answered if it refused them.

    Raises UsageError if the command that submits jobs is not installed here.
    """
    from distributed.core import Status  # noqa: PLC0415 Dask takes a second to load

    job_class = cluster_class.job_cls
    command, *_ = shlex.split(job_class.submit_command or "") or [""]
    if command and not shutil.which(command):
        raise UsageError(
            f"--cluster: {cluster_class.__name__} submits jobs with {command}, which is not on the PATH here; run the "
            "command on a host where jobs can be submitted"
        )

    queue, is_limited = command or "the queue", bool(command and shutil.which("timeout"))
    end = f"; it is ended after {ANSWER_LIMIT_S} s" if is_limited else ""

    async def start(job: Any) -> None:
        slow = "%s has not answered for %d s%s", queue, WARN_AFTER_S, end
        warning = asyncio.get_running_loop().call_later(WARN_AFTER_S, log.warning, *slow)
        try:
            await job_class.start(job)
        except Exception as error:
            job.refusal = _refusal(queue, error)
            job.status = Status.failed
            raise
        finally:
            warning.cancel()

    async def close(job: Any) -> None:
        await job_class.close(job)
        job.status = Status.closed  # Dask asserts it

    changes = {"refusal": "", "start": start, "close": close}
    if is_limited:
        changes["submit_command"] = f"timeout {ANSWER_LIMIT_S} {job_class.submit_command}"
    return {"job_cls": type(job_class.__name__, (job_class,), changes)}


def _refusal(command: str, error: Exception) -> str:
    """Return what the command that submits jobs printed: dask-jobqueue has it in a report of several lines."""
    report, _, printed = str(error).partition("stdout:\n")
    if TIMED_OUT in report:
        return f"{command} has not answered within {ANSWER_LIMIT_S} s"
    answer = shorten(printed.replace("stderr:\n", " "), MAX_ANSWER) or in_one_line(error)
    return f"{command} refused a job: {answer}"


def outlook(cluster: Any) -> Outlook:
    """Return what the queue answered and which jobs it has."""
    jobs = dict(cluster.workers)
    refusals = [job.refusal for job in jobs.values() if job.refusal]
    refusal = refusals[-1] if refusals else ""
    ids = [str(job.job_id) for job in jobs.values() if job.job_id]
    unsent = len(set(cluster.worker_spec) - set(jobs))
    if ids:
        logs = next(job.log_directory for job in jobs.values() if job.job_id)
        queued = f"{counted(len(ids), 'job')} submitted: {few(ids)}"
        return Outlook(refusal, f"{queued}; logs in {logs}" if logs else queued)
    if refusal and not unsent:
        return Outlook(refusal, limit_s=0.0)
    return Outlook(refusal, "no job is in the queue", START_LIMIT_S)
