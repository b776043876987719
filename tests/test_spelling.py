"""Files, folders and texts as people type them, and which experiment a command means."""

from pathlib import Path

import pytest

from ehrr1.spelling import folder_word, spelled_out
from tests.settings import composed

FOLDERS = [
    *("/data/mimic iv", "/data/mimic (2.2)", "/data/a,b", "/data/a=b", "/data/it's [old]"),
    *("/data/#1", "/data/{x}", "2024", "/data/$HOME", "relative/dir/", "/data/ä ö", "/data/a\\"),
    *("C:\\data", "/data/a: b", "/data/100%", "null_folder", "true/false"),
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_what_was_typed(folder: str) -> None:
    cfg = composed("data=mimic", f"data.root={folder}", f"inputs.prepare={folder}")
    assert cfg.data.root == cfg.inputs.prepare == folder


def test_the_home_folder() -> None:
    cfg = composed("stage=eval", "data=mimic", "data.root=~/mimic", "rescore=~/outputs/eval")
    assert (cfg.data.root, cfg.rescore) == (f"{Path.home()}/mimic", f"{Path.home()}/outputs/eval")
    model = composed("model=~/models/mine").model
    assert (model.path, model.name) == (f"{Path.home()}/models/mine", "mine")


def test_evaluations_side_by_side_are_folders_that_sweeps_make() -> None:
    folders = ["outputs/demo/seed=1-rl.lr=3e-4/eval", "out puts/no_graph/x+y/eval", "~/eval"]
    cfg = composed("stage=eval", f"compare=[{','.join(folders)}]")
    assert cfg.compare == [*folders[:2], f"{Path.home()}/eval"]
    assert composed("stage=eval", f"compare=[ '{folders[0]}' , b ]").compare == [folders[0], "b"]


def test_models_are_folders_or_names_on_the_hub() -> None:
    for typed, name in (
        ("BlueZeros/EHR-R1-8B", "EHR-R1-8B"),
        ("outputs/demo/rl/hf", "demo-rl"),
        ("./my model (2)/", "my model (2)"),
        ("/models/a=b,c", "a=b,c"),
    ):
        model = composed(f"model={typed}").model
        assert (model.name, model.path) == (name, typed.rstrip("/"))


def test_texts_are_what_was_typed() -> None:
    for text in ("Will she die, or not?", "It's [7] days: {x}=1", "5", "a 'quoted' word"):
        assert composed("stage=infer", f"question={text}").question == text
    assert composed("question=null").question is None


def test_numbers_for_texts() -> None:
    cfg = composed("variant=1e3", "data=mimic", "data.root=2024", "name=7")
    assert (cfg.variant, cfg.data.root, cfg.name) == ("1000.0", "2024", "7")


def test_real_models_and_records_mean_the_released_settings() -> None:
    for real in ("model=8b", "model=no/where", "data=mimic", "data=meds", "data=release"):
        cfg = composed(real)
        assert (cfg.name, cfg.adapt.max_tokens, cfg.rl.group_size) == ("released", 8192, 16), real
    for invented in ("model=tiny", "data=synthetic", "eval=ehrshot", "data=benchmark", "seed=1"):
        assert composed(invented).name == "demo", invented
    assert composed("experiment=smoke", "model=8b").name == "smoke"
    # without records of one's own, those of the bare command
    assert composed("model=8b").data.plain() == composed().data.plain()
    assert spelled_out(["model=tiny,8b"], swept=True)[0] == "experiment=released_synthetic"
    # behind the flags, before which argparse takes no override
    assert spelled_out(["-m", "seed=1,2", "model=8b"]) == [
        *("-m", "seed=1,2", "experiment=released_synthetic", "model=8b")
    ]


def test_a_comma_divides_the_values_of_a_sweep() -> None:
    roots = "data.root=/a,/b"
    assert spelled_out([roots], swept=True) == [roots]
    assert spelled_out([roots]) == ["data.root='/a,/b'"]
    assert spelled_out(["model=a/b,c/d"], swept=True)[-1] == "model=a/b,c/d"


def test_a_folder_is_named_by_what_it_was_made_with() -> None:
    assert folder_word("model=8b") == "8b" and folder_word("rl.lr=3e-4") == "rl.lr=3e-4"
    odd = folder_word("data.root=/a b/c")
    assert "/" not in odd and " " not in odd and odd != folder_word("data.root=/a b/d")
