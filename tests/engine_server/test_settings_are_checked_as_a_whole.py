"""The command line: all faults at once, and no start without what security needs."""

from pathlib import Path

import pytest

from triptych_contract.program.flags import SettingsError
from triptych_contract.roles import Role, Stage
from triptych_engine.settings import read_settings


def faults(*arguments: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read_settings(["--sim", *arguments])
    return "\n".join(caught.value.faults)


class TestSettings:
    def test_have_working_defaults(self) -> None:
        settings = read_settings(["--sim"])
        assert (settings.role, settings.served_name, settings.loopback) == (Role.UNASSIGNED, "sim", True)
        assert settings.capable == frozenset(Stage)

    def test_name_all_faults_together(self) -> None:
        found = faults(
            "--port", "70000", "--discovery", "etcd:x", "--sim-profile", "1,2", "--role", "all", "--capable", "decode"
        )
        for flag in ("--port", "--discovery", "--sim-profile", "--role"):
            assert flag in found

    def test_refuse_an_open_bind_without_a_token(self) -> None:
        assert "--token-file" in faults("--host", "0.0.0.0")

    def test_refuse_an_insecure_open_bind(self) -> None:
        assert "--insecure" in faults("--host", "0.0.0.0", "--insecure")

    @pytest.mark.parametrize("text", ["", "short", "two words that are long enough"])
    def test_refuse_a_token_that_is_none(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "token"
        path.write_text(text)
        assert "--token-file" in faults("--token-file", str(path))
