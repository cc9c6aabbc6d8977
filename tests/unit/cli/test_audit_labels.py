"""What a report calls a model or adapter that efface did not make, whatever its folder is called."""

from pathlib import Path

import pytest

from efface.cli.audit_checkpoint import label_of


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("adapters/one", "one"),
        ("base", "base (audited)"),
        ("models/before", "before (audited)"),
        ("org/model", "model"),
    ],
)
def test_a_label_is_the_folders_name_and_never_that_of_the_other_side(path: str, label: str) -> None:
    assert label_of(Path(path)) == label


def test_the_folder_one_stands_in_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert label_of(Path()) == tmp_path.name
    assert label_of(Path("/")) == "audited"
