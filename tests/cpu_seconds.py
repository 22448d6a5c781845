"""How many seconds of processors each test takes, those of its ended processes included: `--seconds` shows them."""

import resource
from collections import Counter

import pytest


def seconds_of_this_process() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class CpuSeconds:
    """A plugin that measures, also in the processes of xdist, and at the end prints sums by folder and by file.

    Unlike seconds of a clock they do not depend on what else a machine does.
    """

    def __init__(self):
        self.before = seconds_of_this_process()
        self.by_test: Counter = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        now = seconds_of_this_process()
        report.user_properties.append(("cpu_seconds", now - self.before))
        self.before = now
        return report

    def pytest_runtest_logreport(self, report):
        self.by_test[report.nodeid] += dict(report.user_properties).get("cpu_seconds", 0.0)

    def pytest_terminal_summary(self, terminalreporter):
        by_file: Counter = Counter()
        for test, seconds in self.by_test.items():
            by_file[test.partition("::")[0]] += seconds
        by_folder: Counter = Counter()
        for file, seconds in by_file.items():
            by_folder[file.rpartition("/")[0]] += seconds
        terminalreporter.section("CPU seconds")
        terminalreporter.write_line(
            f"{sum(by_file.values()):8.1f}  all {len(self.by_test)} tests, without their imports"
        )
        for sums in (by_folder, by_file, self.by_test):
            for name, seconds in sums.most_common():
                if seconds >= 1.5:
                    terminalreporter.write_line(f"{seconds:8.1f}  {name}")
