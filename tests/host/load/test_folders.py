"""The plugin's folders among ComfyUI's."""

from pathlib import Path
from typing import Any

import folder_paths
import pytest
from comfy.cli_args import args
from utils.extra_config import load_extra_path_config

from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.load import folders


class TestFolders:
    def test_the_mini_restorer_comes_first_and_other_files_are_found(
        self, base_directory: Path
    ) -> None:
        folders.register_folders()
        folder = base_directory / "models" / "pfstorer_restorers"
        assert folder.is_dir()
        (folder / "mine.ckpt").touch()
        (folder / "readme.txt").touch()
        names = folders.restorer_names()  # other tests may have left files there
        assert names[0] == "mini (bundled)"
        assert "mine.ckpt" in names and "readme.txt" not in names
        assert folders.restorer_path("mine.ckpt") == folder / "mine.ckpt"

    def test_registering_twice_changes_nothing_and_keeps_the_users_folders(
        self, tmp_path: Path
    ) -> None:
        folder_paths.add_model_folder_path("pfstorer_identities", str(tmp_path))
        folders.register_folders()
        folders.register_folders()
        paths, extensions = folder_paths.folder_names_and_paths["pfstorer_identities"]
        assert paths.count(str(tmp_path)) == 1
        assert len(paths) == 2
        assert extensions == {".safetensors"}
        _, extensions = folder_paths.folder_names_and_paths["pfstorer_restorers"]
        assert extensions == {".safetensors", ".ckpt", ".pt", ".pth"}

    def test_a_missing_file_is_named_with_its_folder(self) -> None:
        folders.register_folders()
        with pytest.raises(PFStorerError, match=r"no restorer 'gone.pt'; put .*pfstorer_restorers"):
            folders.restorer_path("gone.pt")
        with pytest.raises(PFStorerError, match=r"no checkpoint 'gone.pt'; put .*checkpoints"):
            folders.checkpoint_path("gone.pt")


def test_the_users_default_folder_stays_the_first(monkeypatch, tmp_path) -> None:
    """ComfyUI reads extra_model_paths.yaml before it loads custom nodes."""
    known = {name: (list(paths), set(kinds)) for name, (paths, kinds) in _known_folders().items()}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    config = tmp_path / "paths.yaml"
    config.write_text(
        f"studio:\n  is_default: true\n  pfstorer_identities: {tmp_path / 'people'}\n"
        f"other:\n  base_path: {tmp_path}\n  pfstorer_restorers: files\n"
    )
    monkeypatch.setattr(args, "extra_model_paths_config", [[str(config)]])
    load_extra_path_config(str(config))
    folders.register_folders()
    own = {name: str(tmp_path / "models" / name) for name in folders.EXTENSIONS}
    people, _ = known["pfstorer_identities"]
    assert people == [str(tmp_path / "people"), own["pfstorer_identities"]]
    restorers, _ = known["pfstorer_restorers"]
    assert restorers == [own["pfstorer_restorers"], str(tmp_path / "files")]


def _known_folders() -> dict[str, Any]:
    """ComfyUI's folders without the plugin's."""
    found = folder_paths.folder_names_and_paths
    return {name: found[name] for name in found if name not in folders.EXTENSIONS}
