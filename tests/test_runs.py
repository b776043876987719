"""Run folders: reported, resumed, refused, replaced, and put back."""

from pathlib import Path
from typing import IO

import pytest

from ehrr1 import locks, runs
from ehrr1.config.schema import Config
from ehrr1.damage import DamagedError
from ehrr1.errors import UserError
from tests.settings import composed


def settings(root: Path, **changes: object) -> Config:
    given = {"output_root": str(root), "data": {"subjects": 3}, "graph": {"top": 20}}
    return composed(**{"name": "test"} | given | changes)


def make(cfg: Config, stage: str, content: str = "result") -> Path:
    with runs.opened(cfg, stage) as run:
        assert run is not None
        (run.folder / "result.txt").write_text(content)
        runs.finish(run, {"content": len(content)})
    return runs.home(cfg) / stage


def test_finished_run_is_reported_not_made_again(tmp_path: Path) -> None:
    cfg = settings(tmp_path)
    make(cfg, "prepare")
    with runs.opened(cfg, "prepare") as run:
        assert run is None


def test_a_variant_reads_what_it_does_not_change_from_those_above_it(tmp_path: Path) -> None:
    cfg = settings(tmp_path)
    shared = make(cfg, "prepare")
    above = settings(tmp_path, variant="no_graph", graph={"top": 1})
    graph = make(above, "graph")
    below = settings(tmp_path, variant="no_graph/both", graph={"top": 1})
    assert runs.find_inputs(below, "chains") == {"prepare": shared, "graph": graph}
    make(cfg, "graph")
    other = settings(tmp_path, variant="wide/both", graph={"top": 3})
    with pytest.raises(UserError, match="'graph'"):
        runs.find_inputs(other, "chains")


def test_half_done_run_resumes(tmp_path: Path) -> None:
    cfg = settings(tmp_path)
    with pytest.raises(KeyboardInterrupt), runs.opened(cfg, "prepare") as run:
        assert run is not None and not run.resuming
        (run.folder / "half.txt").write_text("half")
        raise KeyboardInterrupt
    with runs.opened(cfg, "prepare") as run:
        assert run is not None and run.resuming
        assert (run.folder / "half.txt").read_text() == "half"


def test_run_stopped_by_a_wrong_setting_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError), runs.opened(settings(tmp_path), "prepare") as run:
        assert run is not None
        raise UserError("data.root=DIR: no such folder")
    assert not list((tmp_path / "test").iterdir())
    with runs.opened(settings(tmp_path, data={"subjects": 4}), "prepare") as run:
        assert run is not None and not run.resuming


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    make(settings(tmp_path), "prepare")
    other = settings(tmp_path, data={"subjects": 4})
    with (
        pytest.raises(UserError, match=r"data\.subjects: 3 there, 4 now.*overwrite=true"),
        runs.opened(other, "prepare"),
    ):
        pass


def test_view_settings_are_not_compared(tmp_path: Path) -> None:
    make(settings(tmp_path, export={"limit": 1}), "prepare")
    with runs.opened(settings(tmp_path, export={"limit": 2}), "prepare") as run:
        assert run is None


def test_changed_input_is_refused(tmp_path: Path) -> None:
    cfg = settings(tmp_path)
    make(cfg, "prepare")
    make(cfg, "graph")
    make(settings(tmp_path, overwrite=True), "prepare", "longer result")
    with pytest.raises(UserError, match="input 'prepare' has changed"), runs.opened(cfg, "graph"):
        pass


def test_overwrite_replaces_only_on_success(tmp_path: Path) -> None:
    folder = make(settings(tmp_path), "prepare", "first")
    again = settings(tmp_path, overwrite=True, data={"subjects": 4})
    with pytest.raises(OSError, match="disk"), runs.opened(again, "prepare") as run:
        assert run is not None
        assert not (run.folder / "result.txt").exists()
        raise OSError("disk")
    assert (folder / "result.txt").read_text() == "first"
    make(again, "prepare", "second")
    assert (folder / "result.txt").read_text() == "second"


def test_missing_predecessors_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'prepare'.*'graph'.*stage=prepare.*inputs\.prepare=DIR"):
        runs.find_inputs(settings(tmp_path), "chains")


def test_inputs_may_come_from_elsewhere(tmp_path: Path) -> None:
    cfg = settings(tmp_path)
    folder = make(cfg, "prepare")
    other = settings(tmp_path, variant="other", inputs={"prepare": str(folder)})
    assert runs.find_inputs(other, "graph") == {"prepare": folder}


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    cfg = settings(tmp_path)
    in_use = pytest.raises(UserError, match="in use by another process")
    with runs.opened(cfg, "prepare"), in_use, runs.opened(cfg, "prepare"):
        pass


def test_a_lock_file_that_is_deleted_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = tmp_path / ".lock", locks.flock

    def late(file: IO[str], **how: bool) -> None:
        monkeypatch.undo()
        path.unlink()  # another process was refused between opening and locking
        lock(file, **how)

    monkeypatch.setattr(locks, "flock", late)
    with locks.open_locked(path), pytest.raises(BlockingIOError):
        locks.open_locked(path)
    with locks.open_locked(path, shared=True) as one, locks.open_locked(path, shared=True) as two:
        locks.discard(one, path)
        assert path.exists()
        one.close()
        locks.discard(two, path)
        assert not path.exists()


def test_a_share_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    prepare = make(settings(tmp_path), "prepare")
    (prepare / "config.yaml").write_text("changed")
    with pytest.raises(DamagedError), runs.joined(settings(tmp_path), "graph", 0):
        pass
    assert {path.name for path in prepare.parent.iterdir()} == {"prepare", ".prepare.lock"}


def test_a_variant_shares_what_it_does_not_change(tmp_path: Path) -> None:
    plain = settings(tmp_path)
    for stage in ("prepare", "graph", "chains"):
        make(plain, stage)
    other = settings(tmp_path, variant="other", graph={"top": 5})
    assert runs.find_inputs(other, "graph") == {"prepare": tmp_path / "test/prepare"}
    with pytest.raises(UserError, match="needs the finished stage 'graph'"):
        runs.find_inputs(other, "chains")
    own = make(other, "graph", "another result")
    assert runs.find_inputs(other, "chains")["graph"] == own
    # the experiment's chains have the settings asked for, but were written from another graph
    with pytest.raises(UserError, match="needs the finished stages 'chains'"):
        runs.find_inputs(other, "reason")
    same = settings(tmp_path, variant="same")
    assert runs.find_inputs(same, "chains")["graph"] == tmp_path / "test/graph"


def test_what_was_made_with_the_same_settings_is_found_anywhere(tmp_path: Path) -> None:
    sibling = make(settings(tmp_path, variant="8b"), "prepare")
    assert runs.find_inputs(settings(tmp_path, variant="1.7b"), "graph") == {"prepare": sibling}
    assert runs.find_inputs(settings(tmp_path, name="another"), "graph") == {"prepare": sibling}
    with pytest.raises(runs.MissingRunError, match=r"8b/prepare was made with other .*3 there, 4"):
        runs.find_inputs(settings(tmp_path, data={"subjects": 4}), "graph")


def test_records_elsewhere_are_of_the_same_folder(tmp_path: Path) -> None:
    def asked(root: str | None, **changes: object) -> Config:
        return settings(tmp_path, data={"name": "mimic", "subjects": None, "root": root}, **changes)

    found = make(asked("tables", variant="mimic"), "prepare")
    assert runs.find_inputs(asked("tables", variant="x"), "graph") == {"prepare": found}
    # below it the folder may be left out, and elsewhere it may not
    assert runs.find_inputs(asked(None, variant="mimic/x"), "graph") == {"prepare": found}
    for root in (None, "others"):
        with pytest.raises(runs.MissingRunError):
            runs.find_inputs(asked(root, variant="x"), "graph")


def test_models_of_another_experiment_are_not_evaluated(tmp_path: Path) -> None:
    real = {"model": {"path": "some/model"}}
    first = settings(tmp_path, name="first", **real)
    prepared = make(first, "prepare")
    adapted = make(first, "adapt")
    assert runs.find_inputs(settings(tmp_path, **real), "eval") == {"prepare": prepared}
    assert runs.find_inputs(settings(tmp_path, name="first", variant="modes", **real), "eval") == {
        "prepare": prepared,
        "adapt": adapted,
    }
