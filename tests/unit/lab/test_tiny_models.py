"""Models are made once, whole, and again after a change; most tests stub the slow checkpoint."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab import checkpoint, models

SMALL = dataclasses.replace(models.RECIPES["gemma3-5to1"], layers=2, full_every=2, hidden=64)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[models.Recipe]:
    """Recipes that were built, in order, by a writer that only leaves a file."""
    built: list[models.Recipe] = []

    def write(recipe: models.Recipe, directory: Path) -> None:
        built.append(recipe)
        (directory / "weights").write_text(str(recipe.seed))

    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    return built


def test_a_model_is_made_once(builds: list[models.Recipe], tmp_path: Path) -> None:
    first = models.ensure("llama", tmp_path)
    second = models.ensure("llama", tmp_path)
    assert first == second == tmp_path / "llama"
    assert builds == [models.RECIPES["llama"]]
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path != first]


def test_a_changed_recipe_is_made_again(
    builds: list[models.Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models.ensure("llama", tmp_path)
    changed = dataclasses.replace(models.RECIPES["llama"], seed=99)
    monkeypatch.setitem(models.RECIPES, "llama", changed)
    assert models.ensure("llama", tmp_path) == path
    assert [recipe.seed for recipe in builds] == [1, 99]
    assert (path / "weights").read_text() == "99"


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}"])
def test_a_damaged_record_is_made_again(
    builds: list[models.Recipe], tmp_path: Path, damage: str
) -> None:
    path = models.ensure("llama", tmp_path)
    (path / models.RECIPE_FILE).write_text(damage)
    models.ensure("llama", tmp_path)
    assert len(builds) == 2
    assert json.loads((path / models.RECIPE_FILE).read_text())["recipe"]["layers"] == 4


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(recipe: models.Recipe, directory: Path) -> None:
        (directory / "half").write_text(recipe.family)
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "write_checkpoint", fail)
    with pytest.raises(OSError, match="disk full"):
        models.ensure("llama", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="gemma3-bench"):
        models.ensure("gemma", tmp_path)


def test_equal_recipes_give_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        checkpoint.write_checkpoint(SMALL, tmp_path / name)
        contents.append(
            {file.name: file.read_bytes() for file in sorted((tmp_path / name).iterdir())}
        )
    assert contents[0] == contents[1]
    assert {"config.json", "generation_config.json", "model.safetensors"} <= set(contents[0])


def test_layer_patterns() -> None:
    kinds = {name: recipe.layer_types for name, recipe in models.RECIPES.items()}
    assert set(kinds["llama"]) == {"full_attention"}
    assert kinds["gemma3-1to1"] == ["sliding_attention", "full_attention"] * 3
    assert kinds["gemma3-5to1"] == (["sliding_attention"] * 5 + ["full_attention"]) * 2
    assert all(recipe.max_position >= 40960 for recipe in models.RECIPES.values())


def test_prompts_are_deterministic_text() -> None:
    prompt = models.prompt_ids(500, seed=3)
    assert len(prompt) == 500
    assert prompt == models.prompt_ids(500, seed=3)
    assert prompt[:200] == models.prompt_ids(200, seed=3)
    assert prompt[:32] != models.prompt_ids(500, seed=4)[:32]
    assert bytes(prompt).decode("ascii").isprintable()


def test_prompts_do_not_import_an_engine() -> None:
    code = "import sys, lab.models; sys.exit('torch' in sys.modules)"
    root = Path(models.__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
