"""Monitors of files and directories.

inotify keeps the order of all that a loop watches: when a change made after an action is reported,
everything that is to be reported of the action has been. So `told` makes a mark after each.
"""

import errno
import os
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from peers import Background, fork_and_check, no_descriptor_left, nothing

import pyasync


@pytest.fixture
def told(run, tmp_path_factory):
    """Give `told(path, *actions)`: watch, perform the actions, and give what each made be told.

    That is a list for each action, of names and R (renamed), C (changed) or RC.
    """
    marks = tmp_path_factory.mktemp("marks")

    def told(path, *actions, buffer_writes=True):
        reports, waiting = [], list(actions)
        folder = marks / f"{len(os.listdir(marks))}"
        folder.mkdir()

        def on_change(monitor, filename, renamed, changed):
            assert monitor is monitors[0]
            reports[-1].append((filename, "R" * renamed + "C" * changed))

        def act(*_):
            if not waiting:
                for monitor in monitors:
                    monitor.close()
                return
            reports.append([])
            waiting.pop(0)()
            (folder / f"{len(waiting)}").mkdir()

        monitors = []
        with run(buffer_writes=buffer_writes):
            monitors.append(pyasync.fs_watch(path, on_change))
            monitors.append(pyasync.fs_watch(folder, act))
            act()
        return reports

    return told


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.fixture
def file(folder):
    path = folder / "file"
    path.touch()
    return path


def append(path):
    def act():
        with open(path, "ab") as file:
            file.write(b"more")

    return act


def replace(path, content=b"new"):
    """Save as most editors do."""

    def act():
        temporary = path.with_name(".temporary")
        temporary.write_bytes(content)
        temporary.replace(path)

    return act


def move_and_write(path):
    """Save as vim does by default: it keeps the old file under another name until it is done."""

    def act():
        backup = path.with_name("file~")
        path.rename(backup)
        path.write_bytes(b"new")
        backup.unlink()

    return act


# Directories


def test_the_entries_of_a_directory_are_reported(told, folder, tmp_path):
    (tmp_path / "outside").touch()
    a, b = folder / "a", folder / "b"
    assert told(
        folder,
        a.touch,
        append(a),
        partial(a.chmod, 0o600),
        partial(a.rename, b),
        partial(b.rename, tmp_path / "moved"),
        partial((tmp_path / "outside").rename, a),
        a.unlink,
        b.mkdir,
        partial(b.chmod, 0o700),
        b.rmdir,
    ) == [
        [("a", "R")],
        [("a", "C")],
        [("a", "C")],
        [("a", "R"), ("b", "R")],
        [("b", "R")],
        [("a", "R")],
        [("a", "R")],
        [("b", "R")],
        [("b", "C")],
        [("b", "R")],
    ]


def test_what_is_below_an_entry_is_not_reported(told, folder):
    (folder / "sub").mkdir()
    assert told(folder, partial((folder / "sub" / "deep").mkdir)) == [[]]


def test_the_directory_itself_is_reported_under_its_name(told, folder):
    assert told(folder, partial(folder.chmod, 0o700)) == [[("folder", "C")]]


@pytest.mark.parametrize("name", ["folder", "", "x" * 255], ids=len)
def test_an_entry_may_have_any_name(told, folder, name):
    entry = folder / (name or os.fsdecode(b"\xff\xfe \n"))
    assert told(folder, entry.mkdir, entry.rmdir) == [[(entry.name, "R")]] * 2


def test_many_changes_of_one_iteration_are_reported_in_order(told, folder):
    names = [f"{number:0200d}" for number in range(3000)]
    assert told(folder, lambda: [(folder / name).mkdir() for name in names]) == [
        [(name, "R") for name in names]
    ]


def test_a_directory_that_is_replaced_is_watched_on(told, folder, tmp_path):
    def swap():
        folder.rename(tmp_path / "old")
        folder.mkdir()

    assert told(
        folder, swap, (folder / "a").mkdir, (tmp_path / "old" / "b").mkdir, (folder / "c").mkdir
    ) == [[("folder", "RC")], [("a", "R")], [], [("c", "R")]]


def test_repeated_changes_of_one_iteration_are_one_report(told, folder, file):
    def write():
        for _ in range(200):
            append(file)()
            append(other)()

    other = folder / "other"
    other.touch()
    assert told(folder, write, write) == [[("file", "C"), ("other", "C")]] * 2
    assert told(file, write, write) == [[("file", "C")]] * 2


def test_repeated_changes_of_many_entries_are_one_report_each(told, folder):
    def write():
        for _ in range(2):
            for path in paths:
                append(path)()

    paths = [folder / f"{number}" for number in range(200)]
    for path in paths:
        path.touch()
    assert told(folder, write) == [[(path.name, "C") for path in paths]]


def test_a_change_after_something_else_is_a_report_of_its_own(told, folder, file):
    def change():
        append(file)()
        file.rename(folder / "other")
        (folder / "other").rename(file)
        append(file)()

    assert told(folder, change) == [
        [("file", "C"), ("file", "R"), ("other", "R"), ("other", "R"), ("file", "R"), ("file", "C")]
    ]


# Files


def test_changes_of_a_file_are_reported_and_not_those_of_others(told, file):
    assert told(
        file,
        append(file),
        partial(file.chmod, 0o600),
        file.with_name("other").touch,
        append(file.with_name("other")),
    ) == [[("file", "C")], [("file", "C")], [], []]


@pytest.mark.parametrize("save", [replace, move_and_write])
@pytest.mark.parametrize("held", [False, True], ids=["", "the old one is open still"])
def test_a_file_that_an_editor_replaces_is_watched_on(told, file, save, held):
    with open(file if held else os.devnull, "rb"):
        reports = told(file, save(file), append(file), save(file), append(file), save(file))
    assert reports == [
        [("file", "RC")], [("file", "C")], [("file", "RC")], [("file", "C")], [("file", "RC")],
    ]  # fmt: skip


@pytest.mark.parametrize("linked", [False, True], ids=["", "it has another name"])
def test_a_file_that_is_gone_is_waited_for(told, file, linked):
    other = file.with_name("other")
    if linked:
        os.link(file, other)
    assert told(
        file, file.unlink, other.touch, file.touch, append(file), partial(file.rename, other),
        append(other), append(file),
    ) == [
        [("file", "R")], [], [("file", "RC")], [("file", "C")], [("file", "R")],
        [], [("file", "RC")],
    ]  # fmt: skip


def test_a_file_is_waited_for_with_the_directories_that_it_was_in(told, tmp_path):
    a = tmp_path / "a"
    b, file = a / "b", a / "b" / "c" / "file"

    def make():
        file.parent.mkdir(parents=True)
        file.touch()

    make()
    assert told(
        file,
        partial(shutil.rmtree, a),
        a.mkdir,
        b.mkdir,
        b.rmdir,
        a.rmdir,
        partial(file.parent.mkdir, parents=True),
        (b / "file").touch,
        partial(file.write_bytes, b"content"),
        append(file),
        partial(shutil.rmtree, b),
        make,
        append(file),
    ) == [
        [("file", "R")], [], [], [], [], [], [], [("file", "RC")], [("file", "C")],
        [("file", "R")], [("file", "RC")], [("file", "C")],
    ]  # fmt: skip


def test_a_file_may_be_followed_by_a_directory(told, file):
    assert told(file, file.unlink, file.mkdir, (file / "entry").mkdir, append(file / "x")) == [
        [("file", "R")], [("file", "RC")], [("entry", "R")], [("x", "R"), ("x", "C")],
    ]  # fmt: skip


def read_until(run, path, last, change):
    """Watch the file, and read it at each report, until it has `last`; meanwhile `change()`."""

    def on_change(monitor, filename, renamed, changed):
        try:
            content = path.read_bytes()
        except OSError:
            return
        if content == last:
            monitor.close()

    changing = []
    with run():
        pyasync.fs_watch(path, on_change)
        changing.append(Background(change))
    changing[0].result()


def test_whoever_reads_at_each_report_misses_no_replacement(run, file):
    def change():
        for number in range(1000):
            replace(file, b"%d" % number)()

    read_until(run, file, b"999", change)


def test_whoever_reads_at_each_report_misses_no_return(run, tmp_path):
    def change():
        for number in range(500):
            shutil.rmtree(tmp_path / "a")
            path.parent.mkdir(parents=True)
            path.write_bytes(b"%d" % number)

    path = tmp_path / "a" / "b" / "file"
    path.parent.mkdir(parents=True)
    path.touch()
    read_until(run, path, b"499", change)


# Paths


@pytest.mark.parametrize("kind", [str, os.fsencode, Path], ids=["str", "bytes", "PathLike"])
def test_a_path_may_be_of_any_type(told, run, file, kind):
    assert told(kind(file), append(file)) == [[("file", "C")]]

    with run():
        monitor = pyasync.fs_watch(kind(file), nothing)
        assert monitor.path == os.fspath(kind(file))
        monitor.close()


def test_a_relative_path_is_one_from_where_the_process_was(told, file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert told(
        "folder/file", partial(os.chdir, "/"), replace(file), file.unlink, file.touch, append(file)
    ) == [[], [("file", "RC")], [("file", "R")], [("file", "RC")], [("file", "C")]]


@pytest.mark.parametrize(
    ("path", "name"),
    [("folder/", "folder"), ("folder//.", "."), ("folder/../folder", "folder"), ("folder/./", ".")],
)
def test_a_path_may_be_written_in_several_ways(told, folder, monkeypatch, tmp_path, path, name):
    monkeypatch.chdir(tmp_path)
    assert told(
        path, partial(folder.chmod, 0o700), folder.rmdir, folder.mkdir, (folder / "entry").mkdir
    ) == [[(name, "C")], [(name, "R")], [(name, "RC")], [("entry", "R")]]


def test_symbolic_links_are_followed(told, folder, file):
    def switch():
        (folder / "new").symlink_to("other")
        (folder / "new").rename(link)

    link, other = folder / "link", folder / "other"
    link.symlink_to("file")
    other.touch()
    assert told(
        link, append(file), replace(file), append(file), switch, append(file), append(other),
        other.unlink, switch, other.touch, switch, append(other),
    ) == [
        [("link", "C")], [("link", "RC")], [("link", "C")], [], [("link", "RC")], [("link", "C")],
        [("link", "R")], [], [], [("link", "RC")], [("link", "C")],
    ]  # fmt: skip


def test_several_monitors_of_one_file_are_independent(run, file):
    hard, soft = file.with_name("hard"), file.with_name("soft")
    os.link(file, hard)
    soft.symlink_to(file)
    reports = []

    def on_change(number, monitor, *report):
        reports.append((number, *report))
        if len(reports) == 4:
            assert sorted(reports) == [
                (0, "file", False, True),
                (1, "file", False, True),
                (2, "hard", False, True),
                (3, "soft", False, True),
            ]
            monitors[0].close()
            replace(file)()
        if len(reports) == 7:
            # The link count of what has the name still has changed.
            assert sorted(reports[4:]) == [
                (1, "file", True, True),
                (2, "hard", False, True),
                (3, "soft", True, True),
            ]
            for monitor in monitors:
                monitor.close()

    monitors = []
    with run():
        for number, path in enumerate([file, file, hard, soft]):
            monitors.append(pyasync.fs_watch(path, partial(on_change, number)))
        append(hard)()
    assert len(reports) == 7


def test_a_thousand_files_are_watched_at_once(run, folder):
    paths = [folder / f"{number}" for number in range(1000)]
    reports = []

    def on_change(monitor, filename, renamed, changed):
        reports.append(filename)
        monitor.close()

    with run():
        for path in paths:
            path.touch()
            pyasync.fs_watch(path, on_change)
        assert pyasync.stats().handles["fs-monitor"] == 1000
        for path in paths:
            append(path)()
    assert reports == [path.name for path in paths]


# Floods


def test_an_iteration_takes_only_some_of_very_many_changes(run, folder):
    count, reports = 1200, []

    def on_change(monitor, filename, renamed, changed):
        reports.append((filename, pyasync.stats().iterations))
        if len(reports) == 2 * count:
            monitor.close()

    with run():
        pyasync.fs_watch(folder, on_change)
        for number in range(count):
            (folder / f"{number}").mkdir()
        for number in range(count):
            (folder / f"{number}").rmdir()
    assert [name for name, _ in reports] == [f"{number}" for number in range(count)] * 2
    assert max(Counter(iteration for _, iteration in reports).values()) <= 1024


MAX_QUEUED = Path("/proc/sys/fs/inotify/max_queued_events")


@pytest.mark.skipif(
    not MAX_QUEUED.exists() or int(MAX_QUEUED.read_text()) > 100_000,
    reason="needs a system that keeps few changes",
)
@pytest.mark.parametrize("closes", [False, True], ids=["goes-on", "closes"])
def test_changes_that_were_lost_are_reported_and_the_monitors_go_on(run, tmp_path, closes):
    files = [tmp_path / "watched" / name for name in ("one", "two")]
    alone = tmp_path / "elsewhere" / "alone"
    for file in [*files, alone]:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    lost, reports = [], []

    def tell(error):
        assert isinstance(error, pyasync.FilesystemError)
        assert error.errno == errno.EOVERFLOW
        assert "max_queued_events" in str(error)
        lost.append(error.filename)
        if len(lost) == 2 and closes:
            for monitor in monitors:
                monitor.close()
        elif len(lost) == 2:
            append(alone)()

    def on_change(monitor, filename, renamed, changed):
        if monitor is monitors[1]:
            reports.append((len(lost), renamed))
            if len(lost) == 2 and not renamed:  # the new file is watched, and was written to
                for monitor in monitors:
                    monitor.close()

    with run():
        monitors = [
            pyasync.fs_watch(path, on_change, event_cb=tell) for path in (files[0].parent, alone)
        ]
        with open(files[0]) as one, open(files[1]) as two:
            for number in range(int(MAX_QUEUED.read_text())):  # in turn, or they would be merged
                os.fchmod((one, two)[number % 2].fileno(), 0o600 + number // 2 % 2)
            replace(alone)()  # this is lost too
            os.fchmod(one.fileno(), 0o600)
    assert sorted(lost) == sorted(map(str, [files[0].parent, alone]))
    if not closes:
        assert [renamed for _, renamed in reports] == [True, False]
        assert reports[1][0] == 2


# The loop


def test_a_change_wakes_the_loop(run, wait_until_asleep, file):
    reports = []

    def change(loop):
        wait_until_asleep(loop)
        append(file)()

    def on_change(monitor, *report):
        reports.append(report)
        monitor.close()

    changing = []
    with run():
        pyasync.fs_watch(file, on_change)
        changing.append(Background(change, pyasync.current_loop()))
    changing[0].result()
    assert reports == [("file", False, True)]


def test_a_monitor_that_has_begun_anew_is_referenced_as_before(run, file):
    def on_change(monitor, *report):
        seen.append(monitor.has_ref)
        if len(seen) == 2:
            timer.close()
        else:
            pyasync.call_soon(replace(file))

    seen = []
    with run():
        timer = pyasync.delay(nothing, time=3600)
        pyasync.fs_watch(file, on_change).unref()
        pyasync.delay(replace(file))
    assert seen == [False, False]


def test_unbuffered_loops_have_monitors_too(told, file):
    assert told(file, append(file), replace(file), buffer_writes=False) == [
        [("file", "C")],
        [("file", "RC")],
    ]


# The end of a monitor


@pytest.mark.parametrize(
    "close",
    [pyasync.fs_unwatch, pyasync.fs_monitor_close, pyasync.FsMonitor.close],
    ids=lambda close: close.__name__,
)
@pytest.mark.parametrize("save", [append, replace, lambda file: file.unlink])
def test_a_monitor_that_its_callback_closes_is_not_called_again(run, file, close, save):
    def on_change(monitor, filename, renamed, changed):
        calls.append(filename)
        close(monitor)
        assert monitor.closed
        close(monitor)

    calls = []
    with run():
        for path in (file, file.parent, file):
            pyasync.fs_watch(path, on_change)
        (file.parent / "another").mkdir()
        save(file)()
        append(file)()
    assert sorted(calls) == ["another", "file", "file"]


def test_a_monitor_can_be_closed_while_it_waits(run, file):
    run(lambda: pyasync.fs_watch(file, lambda monitor, *report: monitor.close()) and file.unlink())


def test_a_monitor_can_be_made_by_the_callback_of_one_that_closes(run, file):
    def on_change(left, monitor, *report):
        calls.append(left)
        monitor.close()
        if left:
            pyasync.fs_watch(file, partial(on_change, left - 1))
            replace(file)()

    calls = []
    run(lambda: pyasync.fs_watch(file, partial(on_change, 9)) and append(file)())
    assert calls == list(range(9, -1, -1))


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_leaves_the_monitor_to_the_parent(run, file):
    def check(monitor):
        with pytest.raises(pyasync.EventLoopNotRunning, match="left to the parent by a fork"):
            monitor.ref()
        monitor.close()
        calls = []

        def start():
            pyasync.fs_watch(file, partial(on_change, calls))
            append(file)()

        pyasync.start_event_loop(start)
        assert calls == [("file", False, True)]

    def on_change(reports, monitor, *report):
        reports.append(report)
        monitor.close()

    def start():
        monitor = pyasync.fs_watch(file, partial(on_change, reports))
        fork_and_check(partial(check, monitor))

    reports = []
    run(start)
    assert reports == [("file", False, True)]


# Errors


def test_what_is_not_there_cannot_be_watched(run, tmp_path):
    with run():
        for path in (tmp_path / "missing", str(tmp_path / "missing" / "below"), b""):
            with pytest.raises(pyasync.FilesystemNotFound) as raised:
                pyasync.fs_watch(path, nothing)
            assert raised.value.filename == os.fspath(path)
            assert raised.value.errno == errno.ENOENT
        (tmp_path / "file").touch()
        with pytest.raises(pyasync.FilesystemError, match="Not a directory"):
            pyasync.fs_watch(tmp_path / "file" / "below", nothing)


def test_a_relative_path_needs_a_working_directory(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()

    with run():
        with pytest.raises(pyasync.FilesystemNotFound) as raised:
            pyasync.fs_watch("file", nothing)
        assert raised.value.filename == "file"


def test_running_out_of_descriptors_is_an_error_of_the_call(run, file):
    with run():
        error = pytest.raises(pyasync.FilesystemError, match="no descriptor is left")
        with no_descriptor_left(), error as raised:
            pyasync.fs_watch(file, nothing)
        assert raised.value.errno == errno.EMFILE
        assert raised.value.filename == str(file)
        pyasync.fs_watch(file, lambda monitor, *report: monitor.close())
        append(file)()


def run_with_a_limit(limit, number, program, folder):
    """Run the Python program as a user who has so many of user_namespaces(7)' resource."""
    shell = f'echo {number} > /proc/sys/user/{limit} && exec "$@"'
    arguments = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    try:
        possible = subprocess.run([*arguments, shell, "-", "true"], capture_output=True).returncode
    except OSError:
        possible = 1
    if possible != 0:
        pytest.skip("needs a user namespace")
    finished = subprocess.run(
        [*arguments, shell, "-", sys.executable, "-c", program, folder],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert finished.stderr == ""
    return finished.stdout.splitlines()


def test_running_out_of_watches_is_an_error_of_the_call(folder):
    program = """
import sys, pyasync
with pyasync.event_loop():
    monitors = [pyasync.fs_watch(path, print) for path in (sys.argv[1], "/")]
    try:
        pyasync.fs_watch("/proc", print)
    except pyasync.FilesystemError as error:
        print(error.errno, error.filename, error)
    monitors.pop().close()
    monitors.append(pyasync.fs_watch("/proc", print))
    for monitor in monitors:
        monitor.close()
"""
    text = (
        f"[Errno {errno.ENOSPC}] No space left on device: this user has no inotify watch left "
        "(fs.inotify.max_user_watches): '/proc'"
    )
    assert run_with_a_limit("max_inotify_watches", 2, program, folder) == [
        f"{errno.ENOSPC} /proc {text}"
    ]


def test_a_monitor_that_gets_no_watch_for_a_replacement_says_so_and_is_closed(folder):
    program = """
import os, sys, pyasync
def on_error(error):
    print(type(error).__name__, error.filename == path, "max_user_watches" in str(error))
    print(monitor.closed)
    another.close()
path = sys.argv[1] + "/file"
for name in (path, path + "new"):
    open(name, "w").close()
with pyasync.event_loop():
    monitor = pyasync.fs_watch(path, print, event_cb=on_error)
    os.replace(path + "new", path)
    another = pyasync.fs_watch("/", print)
"""
    assert run_with_a_limit("max_inotify_watches", 1, program, folder) == [
        "FilesystemError True True",
        "True",
    ]


def test_running_out_of_instances_is_an_error_of_the_call(folder):
    program = """
import sys, pyasync
with pyasync.event_loop():
    try:
        pyasync.fs_watch(sys.argv[1], print)
    except pyasync.FilesystemError as error:
        print(error.errno, "fs.inotify.max_user_instances" in str(error))
"""
    assert run_with_a_limit("max_inotify_instances", 0, program, folder) == [f"{errno.EMFILE} True"]
