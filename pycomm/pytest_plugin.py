"""Tests of programs that use pycomm, run by pytest on several ranks.

    mpirun -n 3 python -m pytest --pyargs mypackage        or
    python -m pycomm.launch -n 3 -m pytest --pyargs mypackage

Every rank runs the same tests in the same order, and a test has one outcome: it fails if it fails on any
rank. Rank 0 alone writes (terminal, junit-xml, cache); a failure says on which ranks. Without a launcher, or
on one rank, pytest is as it was.

    def test_ranks_are_summed(comm):                       # comm: a communicator of all ranks
        total = comm.all_reduce(np.array([comm.rank]))
        assert total[0] == comm.size * (comm.size - 1) / 2

Each test has a communicator of its own, the fixture `comm`, and `pycomm.init()` returns that one while the
test runs. When the test fails (or skips) on one rank, that rank breaks it, and all that were split from it:
ranks that wait in a collective are released, with `Aborted`, which is not reported; the next test starts
afresh. Communicators that a fixture of wider scope keeps from an earlier test do not survive its failure.

A test that has not ended on some rank after its limit ends the whole job: every rank that is in it shows
where it is. The limit is that of pytest-timeout, where a test has one, else the ini option `pycomm_timeout`,
seconds (`PYCOMM_TIMEOUT_S`, 300). A rank that leaves (Ctrl-C, `pytest.exit`, a crash) ends the job too.

Ranks must collect equal tests in equal order: random orders need an equal seed. `tmp_path` and the like
differ by rank. The plugin is found by itself where pycomm is installed; else `-p pycomm.pytest_plugin`.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

import pycomm
from pycomm import session as pycomm_session
from pycomm.communicator import Communicator
from pycomm.exchange import exchange

GRACE_S = 10.0  # after its limit, until a test that ended here is no longer waited for
LAST_WORDS_S = 1.0  # between the first rank that says where it hangs, and the end of the job
# Tags of MPI are enough for some hundred communicators (Open MPI: 1024 splits), then the world is made anew.
MOST_CONTEXTS = 200
PHASES = ("setup", "call", "teardown")
_COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")
_WORLD = pytest.StashKey[Communicator]()
# What keeps results for later runs: files that one rank writes.
_KEEPERS = ("lfplugin", "nfplugin", "stepwiseplugin")


@pytest.fixture
def comm() -> Communicator:
    """This test's communicator of all ranks."""
    return pycomm.init()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("pycomm_timeout", "on several ranks, seconds until a test ends the whole job", default="")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    if not _several_processes():
        return
    try:
        world = pycomm.init()
    except pycomm.PycommError as error:
        raise pytest.UsageError(f"pycomm: {error}") from error
    if world.size > 1:
        config.stash[_WORLD] = world
        if world.rank > 0:
            config.option.xmlpath = None


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    world = config.stash.get(_WORLD, None)
    if world is None:
        return
    if world.rank > 0:
        config.pluginmanager.unregister(name="terminalreporter")
        silent = pytest.TerminalReporter(config, open(os.devnull, "w"))  # noqa: SIM115
        config.pluginmanager.register(silent, "terminalreporter")
    config.pluginmanager.register(Ranks(config, world), "pycomm_ranks")


def _several_processes() -> bool:
    # Not SLURM_NTASKS: a batch script has it too, for commands that no launcher starts.
    return "PMIX_RANK" in os.environ or any(int(os.environ.get(name, "1")) > 1 for name in _COUNTS)


class Ranks:
    """The plugin on several ranks. `world` carries what the ranks agree on, and is never a test's."""

    def __init__(self, config: pytest.Config, world: Communicator) -> None:
        self._config = config
        self._world = world
        self._limit_s = _limit(config, world)
        self._watch = Watch(world.rank)
        self._test: Communicator | None = None
        self._consequences: set[str] = set()  # phases that failed only because another rank did
        self._interrupted = ""  # this rank alone: by what
        self._different = False
        self._lost: str | None = None
        self._status = 0
        self._collect_errors: dict[str, str] = {}

    # ---- equal tests everywhere

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._collect_errors[report.nodeid] = report.longreprtext

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        mine = {"tests": [item.nodeid for item in session.items], "errors": self._collect_errors}
        ranks = self._agree(mine, "the tests", GRACE_S + self._limit_s)
        for rank, theirs in enumerate(ranks):
            difference = _difference(ranks[0], theirs, rank)
            if difference:
                self._different = True
                pytest.exit(f"ranks collected different tests: {difference}", pytest.ExitCode.USAGE_ERROR)
        if self._world.rank > 0:
            for name in filter(self._config.pluginmanager.has_plugin, _KEEPERS):
                self._config.pluginmanager.unregister(name=name)

    # ---- a test

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        self._consequences.clear()
        self._renew()
        pycomm_session.lend(self._test)
        if not self._watch.armed:
            self._watch.arm(item.nodeid, self._limit_s, self._config)
        try:
            reports = {report.when: report for report in runtestprotocol(item, log=False, nextitem=nextitem)}
        finally:
            limit_s = self._watch.disarm()
            pycomm_session.lend(None)
        for report in self._merged(item.nodeid, reports, limit_s):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _renew(self) -> None:
        """Makes the next test's communicator. Collective."""
        self._test = self._world.split(0)
        assert self._test is not None
        if self._test._core.context > MOST_CONTEXTS:
            pycomm.shutdown()
            self._world = pycomm.init()
            self._test = self._world.split(0)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if not report.passed and call.excinfo is not None:
            assert self._test is not None
            mark = f"(test {self._test._core.context})"  # before words that may be cut
            if _is_consequence(call.excinfo.value, mark):
                self._consequences.add(report.when)
            self._release(
                self._test, f"{mark} {item.nodeid} on rank {self._world.rank}: {call.excinfo.exconly()}"
            )
        return report

    def _release(self, test: Communicator, why: str) -> None:
        """Breaks the communicators of this test: whoever waits for us waits no more."""
        for group in list(self._world._world.groups):
            if group._core.context >= test._core.context:
                group.abort(why)

    def _merged(
        self, test: str, reports: Mapping[Any, pytest.TestReport], limit_s: float
    ) -> Iterator[pytest.TestReport]:
        """A report for each phase of the test, from those of all ranks; the same failures everywhere."""
        mine = [self._packed(report) for report in reports.values() if _is_news(report)]
        ranks = self._agree({"test": test, "news": mine}, test, limit_s + GRACE_S)
        for rank, theirs in enumerate(ranks):
            if theirs.get("test") != test:
                self._give_up(f"rank {rank} has ended its session while rank {self._world.rank} ran {test}")
        news = [(rank, packed) for rank, theirs in enumerate(ranks) for packed in theirs["news"]]
        for unwanted in ("consequence", "strict pass"):  # where there is anything else to tell
            news = [row for row in news if row[1]["kind"] != unwanted] or news
        told = False
        for phase in PHASES:
            of_phase = [
                (r, self._unpacked(packed)) for r, packed in news if packed["report"]["when"] == phase
            ]
            if of_phase:
                yield _joined(of_phase, self._world.size)
                told |= phase == "setup"
            elif phase in reports and not (told and phase == "call"):
                yield _passed(reports[phase])

    def _packed(self, report: pytest.TestReport) -> dict[str, Any]:
        kind = "other"
        if report.when in self._consequences:
            kind = "consequence"
        elif report.failed and report.longreprtext.startswith("[XPASS(strict)]"):
            kind = "strict pass"
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        return {"kind": kind, "report": data}

    def _unpacked(self, packed: dict[str, Any]) -> pytest.TestReport:
        report: pytest.TestReport = self._config.hook.pytest_report_from_serializable(
            config=self._config, data=packed["report"]
        )
        if isinstance(report.longrepr, list):
            report.longrepr = tuple(report.longrepr)  # as it was before it travelled
        return report

    # ---- limits: pytest-timeout's, if it is there, are kept here

    @pytest.hookimpl(optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool:
        self._watch.arm(item.nodeid, settings.timeout, self._config)
        return True

    @pytest.hookimpl(optionalhook=True)
    def pytest_timeout_cancel_timer(self, item: pytest.Item) -> bool:
        return True

    # ---- the end

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        if not (self._different or isinstance(excinfo.value, pytest.Session.Interrupted)):
            self._interrupted = excinfo.exconly()  # the others end for reasons that were agreed on

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Ends with the same status everywhere. An interrupted rank does not wait long for others."""
        self._watch.disarm()
        timeout = LAST_WORDS_S if self._interrupted else GRACE_S + self._limit_s
        try:
            ranks = exchange(self._world, {"status": int(exitstatus)}, timeout)
            self._status = max(theirs["status"] for theirs in ranks)
            session.exitstatus = self._status
        except (pycomm.PycommError, KeyError) as error:  # KeyError: they are at some test
            self._lost = self._interrupted or str(error)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        if self._lost is not None:
            self._give_up(f"rank {self._world.rank} has ended its session without the others: {self._lost}")
        # pytest leaves a failed test's exception where the interpreter leaves one that ended the program.
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):
            if hasattr(sys, name):
                delattr(sys, name)
        # Tests may have left messages that nobody receives. Should MPI_Finalize wait for those, it ends here.
        pycomm.shutdown()
        pycomm_session.forgive()
        end = threading.Timer(GRACE_S, os._exit, [self._status])
        end.daemon = True
        end.start()

    def _agree(self, value: dict[str, Any], what: str, timeout: float) -> list[dict[str, Any]]:
        try:
            return exchange(self._world, value, timeout)
        except pycomm.PycommError as error:
            self._give_up(f"the ranks could not agree on {what}: {error}")
            raise

    def _give_up(self, why: str) -> None:
        self._watch.say(why)
        pycomm.abort(1)


class Watch:
    """Ends the job when a test takes too long on this rank, whatever its main thread does.

    A thread of Python does, or, if it gets no chance because something holds the interpreter's lock,
    faulthandler.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._stderr = os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2)  # tests capture the other one
        self._timer: threading.Timer | None = None
        self._dumps = False  # by faulthandler
        self._limit_s = 0.0

    @property
    def armed(self) -> bool:
        return self._timer is not None

    def arm(self, test: str, limit_s: float, config: pytest.Config) -> None:
        self.disarm()
        self._limit_s = limit_s
        self._timer = threading.Timer(limit_s, self._expired, [test, limit_s])
        self._timer.daemon = True
        self._timer.start()
        self._dumps = not float(config.getini("faulthandler_timeout") or 0)  # else pytest's would be undone
        if self._dumps:
            faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True, file=self._stderr)

    def disarm(self) -> float:
        """Returns the limit that held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            if self._dumps:
                faulthandler.cancel_dump_traceback_later()
        return self._limit_s

    def say(self, words: str) -> None:
        os.write(self._stderr, f"\npycomm: {words}\n".encode())

    def _expired(self, test: str, limit_s: float) -> None:
        self.say(
            f"{test} has not ended on rank {self._rank} after {limit_s:g} s; it is here:\n{_place_of_test()}"
        )
        time.sleep(LAST_WORDS_S)  # others that hang say so too
        pycomm.abort(1)


def _place_of_test() -> str:
    """The main thread's stack, pytest's part left out."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = traceback.extract_stack(frame)
    pytests = [n for n, each in enumerate(stack) if {"_pytest", "pluggy"} & set(Path(each.filename).parts)]
    return "".join(traceback.format_list(stack[max(pytests, default=-1) + 1 :])).rstrip()


def _limit(config: pytest.Config, world: Communicator) -> float:
    value = str(config.getini("pycomm_timeout")) or str(world._world.engine.timeout_s)
    try:
        limit = float(value)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise pytest.UsageError(f"pycomm_timeout is '{value}'; expected seconds above 0")
    return limit


def _difference(first: dict[str, Any], theirs: dict[str, Any], rank: int) -> str:
    """The first thing that rank 0 and another rank collected differently."""
    for here, there, who in ((first, theirs, rank), (theirs, first, 0)):
        for node, text in there["errors"].items():
            if node not in here["errors"]:
                return f"only rank {who} failed to collect {node}:\n{text}"
    longest = max(len(first["tests"]), len(theirs["tests"]))
    for number in range(longest):
        pair = [
            tests[number] if number < len(tests) else "none" for tests in (first["tests"], theirs["tests"])
        ]
        if pair[0] != pair[1]:
            return f"test {number + 1} is {pair[0]} on rank 0 and {pair[1]} on rank {rank}"
    return ""


def _is_consequence(error: BaseException | None, mark: str) -> bool:
    """Whether a failure that broke this test's communicators made this one."""
    while error is not None:
        if isinstance(error, pycomm.Aborted) and mark in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_news(report: pytest.TestReport) -> bool:
    return not report.passed or hasattr(report, "wasxfail")


def _passed(report: pytest.TestReport) -> pytest.TestReport:
    """This rank's report of a phase in which no rank has anything to tell: it may have been released late."""
    report.outcome = "passed"
    report.longrepr = None
    return report


def _joined(news: list[tuple[int, pytest.TestReport]], size: int) -> pytest.TestReport:
    """The report of a phase that did not just pass: the worst outcome, and on which ranks. What happened at
    the same place is shown once."""
    outcomes = [report.outcome for _, report in news]
    worst = next(outcome for outcome in ("failed", "skipped", "passed") if outcome in outcomes)
    places: dict[str, list[tuple[int, pytest.TestReport]]] = {}
    for rank, report in news:
        if report.outcome == worst:
            places.setdefault(_place(report), []).append((rank, report))
    (first, *others) = places.values()
    report = first[0][1]
    if worst == "failed" or len(first) < size:
        _name_ranks(report, first, size)
    for group in others:
        _add_text(report, _ranks_text(group, size), group[0][1].longreprtext)
    return report


def _place(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return f"{crash.path}:{crash.lineno}" if crash else str(report.longrepr)


def _ranks_text(group: list[tuple[int, pytest.TestReport]], size: int) -> str:
    if len(group) == size:
        return f"all {size} ranks"
    return f"rank{'s' * (len(group) > 1)} {', '.join(str(rank) for rank, _ in group)}"


def _name_ranks(report: pytest.TestReport, group: list[tuple[int, pytest.TestReport]], size: int) -> None:
    """Says on which ranks it happened, in the report of the first of them."""
    longrepr: Any = report.longrepr
    ranks = _ranks_text(group, size)
    if isinstance(longrepr, tuple):  # a skip
        path, line, reason = longrepr
        report.longrepr = (path, line, f"[{ranks}] {reason}")
    elif isinstance(longrepr, str):
        report.longrepr = f"[{ranks}] {longrepr}"
    elif longrepr is not None:
        longrepr.addsection(ranks, "\n".join(f"rank {rank}: {_message(each)}" for rank, each in group))
        if longrepr.reprcrash is not None:
            longrepr.reprcrash.message = f"[{ranks}] {longrepr.reprcrash.message}"


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).partition("\n")[0]


def _add_text(report: pytest.TestReport, title: str, text: str) -> None:
    longrepr: Any = report.longrepr
    if hasattr(longrepr, "addsection"):
        longrepr.addsection(title, text)
    elif isinstance(longrepr, str):
        report.longrepr = f"{longrepr}\n---- {title}\n{text}"
