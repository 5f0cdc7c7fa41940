"""The process itself: CPU, memory, files, how late its event loop is, its log lines."""

import asyncio
import errno
import resource
from collections.abc import Callable
from pathlib import Path

import psutil

from gateway.telemetry import catalogue
from gateway.telemetry.handles import Series
from gateway.telemetry.logs import LEVELS, Logs

_LOOK_S = 0.1
_MOST_MISSED = 100
"""A loop that was held up for longer, ten seconds, counts as one that was for so long."""

_FDS = Path("/proc/self/fd")


class ProcessMetrics:
    """The series of this process."""

    def __init__(self, series: Series, logs: Logs | None) -> None:
        """`logs` is where the process logs to, if that is ours."""
        self._process = psutil.Process()
        self._logs = logs
        self._cpu = series.counter(catalogue.PROCESS_CPU_SECONDS_TOTAL)
        self._memory = series.gauge(catalogue.PROCESS_RESIDENT_MEMORY_BYTES)
        self._fds = series.gauge(catalogue.PROCESS_OPEN_FDS)
        self._max_fds = series.gauge(catalogue.PROCESS_MAX_FDS)
        series.gauge(catalogue.PROCESS_START_TIME_SECONDS).set(self._process.create_time())
        self._lag = series.histogram(catalogue.EVENT_LOOP_LAG_SECONDS)
        self._lines = {
            level: series.counter(catalogue.LOG_MESSAGES_TOTAL, level) for level in LEVELS
        }
        self._dropped = series.counter(catalogue.LOGS_DROPPED_TOTAL)

    async def watch_loop(self, report: Callable[[str, Exception], None]) -> None:
        """Looks ten times a second how late the loop is, until cancelled.

        The looks that a late one kept from being made count too: they would have been late by the
        rest of it. Else a second's stall would weigh as much as one good look.
        """
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            try:
                late = max(0.0, clock() - due)
                self._lag.observe(late)
                for missed in range(1, min(int(late / _LOOK_S), _MOST_MISSED) + 1):
                    self._lag.observe(max(0.0, late - missed * _LOOK_S))
            except Exception as error:  # noqa: BLE001 - what only looks does not end the node
                report("the event loop could not be looked at", error)

    def refresh(self) -> None:
        """As of now; what cannot be read stays as it was."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_fds.set(most)
        try:
            self._read(self._process)
        except (OSError, psutil.Error) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                self._fds.set(most)  # what is read is a file, too
        if self._logs is not None:
            for level, count in self._logs.lines_by_level.items():
                self._lines[level].reach(count)
            self._dropped.reach(self._logs.logs_dropped)

    def _read(self, process: psutil.Process) -> None:
        self._fds.set(_open_fds(process))
        with process.oneshot():
            times = process.cpu_times()
            self._cpu.reach(times.user + times.system)
            self._memory.set(process.memory_info().rss)


def _open_fds(process: psutil.Process) -> int:
    try:
        # Linux >= 6.2 tells how many there are. Listing them takes 10 ms where there are 20,000.
        count = _FDS.stat().st_size
    except OSError:
        count = 0
    return count or process.num_fds()
