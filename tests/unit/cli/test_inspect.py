"""`kvstrata inspect`: which namespaces there are, and what keeps them apart."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvstrata.cli.main import app
from tests.unit.cli.roots import Root


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(path: Path) -> Any:
    result = run("inspect", path, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_the_document_of_one_namespace(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.fill(5)
    assert document(tmp_path) == {
        "path": str(tmp_path),
        "namespaces": [
            {
                "directory": root.directory.name,
                "model": "org/tiny",
                "fingerprint": root.namespace.fingerprint.hex(),
                "covers": json.loads(root.namespace.to_json())["covers"],
                "compared_with": None,
                "differs_in": [],
            }
        ],
    }


def test_what_keeps_namespaces_of_a_model_apart(tmp_path: Path) -> None:
    one = Root(tmp_path, kv_cache={"dtype": "auto", "layout": "NHD"}, seed="default")
    other = Root(tmp_path, kv_cache={"dtype": "fp8", "layout": "NHD"})
    Root(tmp_path, model="org/large", weights="xyz")
    found = {namespace["directory"]: namespace for namespace in document(tmp_path)["namespaces"]}
    first, second = sorted((one.directory.name, other.directory.name))
    assert found[second]["compared_with"] == first
    assert found[second]["differs_in"] == ["kv_cache.dtype", "seed"]
    alone = [name for name, namespace in found.items() if namespace["compared_with"] is None]
    assert len(alone) == 2 and second not in alone
    text = run("inspect", tmp_path).stdout
    assert f"differs from {first} in" in text
    assert "kv_cache.dtype: 'fp8'; there 'auto'" in text or "'auto'; there 'fp8'" in text


def test_files_that_are_not_ours_are_no_namespaces(tmp_path: Path) -> None:
    Root(tmp_path)
    (tmp_path / "README.txt").write_text("notes")
    (tmp_path / "other").mkdir()
    assert len(document(tmp_path)["namespaces"]) == 1


def test_an_empty_root(tmp_path: Path) -> None:
    assert document(tmp_path) == {"path": str(tmp_path), "namespaces": []}
    assert "no namespaces" in run("inspect", tmp_path).stdout


@pytest.mark.parametrize("damage", ["missing", "not JSON", "not ours", "a number"])
def test_a_damaged_description(tmp_path: Path, damage: str) -> None:
    root, other = Root(tmp_path), Root(tmp_path, weights="xyz")
    description = root.directory / "namespace.json"
    if damage == "missing":
        description.unlink()
    else:
        texts = {"not JSON": "{", "not ours": "[1, 2]", "a number": '{"covers": 3}'}
        description.write_text(texts[damage])
    found = {one["directory"]: one for one in document(tmp_path)["namespaces"]}
    assert found[root.directory.name]["covers"] is None
    assert found[root.directory.name]["fingerprint"] == root.namespace.fingerprint.hex()
    assert found[other.directory.name]["differs_in"] == []
    result = run("inspect", tmp_path)
    assert result.exit_code == 0
    assert "missing or damaged" in result.stdout


@pytest.mark.parametrize("command", ["inspect", "usage", "verify", "clear"])
def test_a_path_that_is_no_root(tmp_path: Path, command: str) -> None:
    namespace = Root(tmp_path / "root").directory
    (tmp_path / "file").write_text("x")
    for path, why in [
        (tmp_path / "absent", "no such directory"),
        (tmp_path / "file", "not a directory"),
        (namespace, "the directory above it"),
    ]:
        result = run(command, path, "--json")
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith("kvstrata: ")
        assert why in result.stderr
        assert result.stderr.count("\n") == 1


def test_no_command_shows_the_commands() -> None:
    result = run()
    assert all(name in result.output for name in ("inspect", "usage", "verify", "clear", "options"))


def test_version() -> None:
    from kvstrata import __version__

    assert run("--version").stdout.strip() == __version__
