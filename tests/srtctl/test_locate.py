"""Where a recipe is looked for, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.core.errors import ConfigError
from launcher.srtctl.locate import OVERLAY, RecipeFinder


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def finder(tmp_path: Path) -> RecipeFinder:
    return RecipeFinder(tmp_path / "ws", [tmp_path / "own"], [tmp_path / "trees"])


def test_the_workspace_then_ours_then_the_tree(finder: RecipeFinder, tmp_path: Path) -> None:
    assert finder.find("recipes/a.yaml", ("v1",)) is None
    finder = RecipeFinder(tmp_path / "ws", [tmp_path / "own"], [tmp_path / "trees"])
    put(tmp_path / "trees/v1/recipes/a.yaml", "name: tree\n")
    put(tmp_path / "own/a.yaml", "name: ours\n")
    put(tmp_path / "ws" / OVERLAY / "a.yaml", "name: workspace\n")
    names = [r.document["name"] for r in finder.find_all("recipes/a.yaml", ("v1",))]
    assert names == ["workspace", "ours", "tree"]
    assert [r.document["name"] for r in finder.find_all("recipes/a.yaml")] == ["workspace", "ours"]


def test_rows_of_one_recipe_share_it_and_each_selector_has_its_own(finder: RecipeFinder, tmp_path: Path) -> None:
    put(tmp_path / "own/f.yaml", "base: {name: f}\noverride_a: {x: 1}\noverride_b: {x: 2}\n")
    names = ["recipes/f.yaml", "recipes/f.yaml:override_a", "recipes/f.yaml:override_b", "recipes/f/a.yaml"]
    found, again = ([finder.find(name) for name in names] for _ in range(2))
    assert all(one is not None and one is other for one, other in zip(found, again, strict=True))
    assert [[v.suffix for v in one.variants[0]] for one in found if one] == [["a", "b"], ["a"], ["b"], [""]]


def test_a_path_that_names_the_overlay_itself(finder: RecipeFinder, tmp_path: Path) -> None:
    put(tmp_path / "ws" / OVERLAY / "x/a.yaml", "name: workspace\n")
    found = finder.find(f"{OVERLAY}/x/a.yaml")
    assert found is not None and found.path == f"{OVERLAY}/x/a.yaml"


def test_whether_the_lanes_tree_is_at_hand(finder: RecipeFinder, tmp_path: Path) -> None:
    assert finder.tree_at_hand(("v1",)) is None
    (tmp_path / "trees/v1").mkdir(parents=True)
    assert finder.tree_at_hand(("sha", "v1")) == tmp_path / "trees/v1"


def test_a_runs_own_checkout_answers_for_every_ref(tmp_path: Path) -> None:
    put(tmp_path / "tree/recipes/a.yaml", "name: tree\n")
    finder = RecipeFinder(None, [], checkout=tmp_path / "tree")
    found = finder.find("recipes/a.yaml", ("whatever",))
    assert found is not None and found.origin == "checkout"


def test_a_file_that_is_no_recipe(finder: RecipeFinder, tmp_path: Path) -> None:
    put(tmp_path / "own/a.yaml", "- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        finder.find("recipes/a.yaml")
    put(tmp_path / "own/b.yaml", "a: [\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        finder.find("recipes/b.yaml")


def test_where_a_set_up_script_lies(finder: RecipeFinder, tmp_path: Path) -> None:
    def directory() -> str | None:
        return finder.setup_script("s.sh", (), None).directory

    assert directory() is None
    put(tmp_path / "own/setup/s.sh", "")
    assert directory() == str(tmp_path / "own/setup")
    put(tmp_path / "ws" / OVERLAY / "configs/s.sh", "")
    assert directory() == str(tmp_path / "ws" / OVERLAY / "configs")


def test_whether_a_set_up_script_is_found(finder: RecipeFinder, tmp_path: Path) -> None:
    def found(listed: bool | None) -> bool | None:
        return finder.setup_script("s.sh", ("v1",), listed).found

    assert (found(True), found(None), found(False)) == (True, None, None), "there is no workspace to look into"
    (tmp_path / "ws" / OVERLAY / "configs").mkdir(parents=True)
    assert (found(True), found(None), found(False)) == (True, None, False)
    (tmp_path / "trees/v1/recipes").mkdir(parents=True)
    assert found(False) is True, "a tree of recipes alone does not speak against it"
    (tmp_path / "trees/v1/configs").mkdir()
    assert found(True) is False
    put(tmp_path / "trees/v1/configs/s.sh", "")
    assert found(False) is True
