"""The page: self-contained, safe, repeatable, and there whatever state the runs are in."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pscl_hpc.cli.main import main
from pscl_hpc.errors import EXIT_DONE, EXIT_INPUT, EXIT_SKIPPED, UserError
from pscl_hpc.report import write_report
from pscl_hpc.report.page import render
from pscl_hpc.results.runs import collect

from .fabricated_runs import Alloy, make_alloy, make_finetuning, make_pretraining, write_inspection

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """All tags, attributes and visible text; fails on tags that are closed in the wrong order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another tag at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    return render(collect([runs]))


def test_nothing_is_loaded_from_outside(page: str) -> None:
    read = Reader(page)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(read.tags)
    links = [
        value
        for _, name, value in read.attributes
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data")
    ]
    assert links
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in links)
    assert not re.search(r"https?:|//|@import|url\((?!#)", re.sub(r"base64,[\w+/=]+", "", page))
    policy = [value for tag, name, value in read.attributes if tag == "meta" and name == "content"]
    assert any("default-src 'none'" in value for value in policy)


def test_ids_are_unique_and_links_within_the_page_resolve(page: str) -> None:
    attributes = Reader(page).attributes
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, name, value in attributes if name.endswith("href") and value[:1] == "#"]
    assert targets
    assert set(targets) <= set(ids)


def test_the_same_runs_give_the_same_page(runs: Path, page: str) -> None:
    assert render(collect([runs])) == page


def test_all_parts_are_there(page: str) -> None:
    text = Reader(page).text
    for words in (
        "Dice of each class",
        "worst annotated image",
        "Predicted , from scratch",
        "Errors , pretrained by PSCL-SimCLR",
        "annotated image",
        "Features , 1/4 resolution",
        "Purity of sampled patches",
        "pscl-hpc pretrain --config pretrain.yaml",
        "0123abcd" * 5,
        "torch 2.13.0",
        "CPU, 2 threads",
        "in 2 attempts",
    ):
        assert words in text, words
    assert len(page) < 5_000_000


def test_pictures_and_charts_have_words_for_those_who_do_not_see_them(page: str) -> None:
    read = Reader(page)
    assert all(value for tag, name, value in read.attributes if (tag, name) == ("img", "alt"))
    assert sum(tag == "img" for tag in read.tags) == sum(name == "alt" for _, name, _ in read.attributes)
    named = sum(name in ("aria-label", "aria-hidden") for tag, name, _ in read.attributes if tag == "svg")
    assert named == read.tags.count("svg")


def test_what_files_say_is_text_and_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&</style><img src=x onerror=y>"
    name = evil.replace("/", "")
    alloy = make_alloy(
        tmp_path,
        tests=2,
        references=1,
        suffix=name,
        size=(40, 48),
        classes=("m", evil, "<b>{{ 7*7 }}", "$x$"),
    )
    make_pretraining(tmp_path / f"p{name}", alloy, lines=5, status="failed", error=evil, device=evil)
    run = make_finetuning(tmp_path / f"f{name}", alloy, pretrained=evil)
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"note: {json.dumps(evil)}\n")
    with (run / "metrics.jsonl").open("a") as log:
        log.write(
            json.dumps({"step": 301, "time": 0, evil: 1.0, f"val/dice/{evil}": 0.5, "scale0/" + evil: 2.0})
            + "\n"
        )
    write_report([tmp_path], tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    read = Reader(page)
    assert "script" not in read.tags
    assert not any(name.startswith("on") for _, name, _ in read.attributes)
    assert all(
        value.startswith(("data:", "#")) for _, name, value in read.attributes if name in ("src", "href")
    )
    assert read.text.count("<script>alert(1)</script>") > 10
    assert "<b>{{ 7*7 }}" in read.text
    assert read.tags.count("style") == 1


def test_pretraining_alone_and_finetuning_alone_make_a_page(runs: Path) -> None:
    alone = Reader(render(collect([runs / "pretrain"]))).text
    assert "pscl-hpc evaluate RUN" in alone
    assert "Sampled patches" in alone
    other = Reader(render(collect([runs / "scratch-0"]))).text
    assert "no pretraining run with an inspection" in other
    assert "nothing on this page to compare" in other


def test_a_method_that_samples_nothing_shows_its_features_alone(tmp_path: Path, alloy: Alloy) -> None:
    make_pretraining(tmp_path / "p", alloy)
    absent = {f"{key}{scale}": None for key in ("patches", "class", "purity") for scale in range(3)}
    assert "Sampled patches at full resolution" in write_report([tmp_path / "p"]).path.read_text("utf-8")
    write_inspection(tmp_path / "p" / "inspection.npz", alloy, **absent)
    text = write_report([tmp_path / "p"]).path.read_text("utf-8")
    assert "Sampled patches at" not in text
    assert "Features</b>, full resolution" in text


def test_empty_run_folders_make_a_page(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("kind: finetune\n" if name == "a" else "")
    text = Reader(render(collect([tmp_path]))).text
    assert "Incomplete" in text
    assert "Nothing was logged yet" in text
    assert "run.json: not found" in text


def test_many_runs_are_folded(tmp_path: Path, alloy: Alloy) -> None:
    for index in range(10):
        make_finetuning(tmp_path / f"run-{index}", alloy, amount=0.3 + index / 20)
    page = render(collect([tmp_path]))
    assert "2 more runs from scratch" in Reader(page).text
    assert len(page) < 5_000_000


def test_a_report_is_replaced_whole_or_not_at_all(
    tmp_path: Path, alloy: Alloy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_finetuning(tmp_path / "run", alloy)
    done = write_report([run])
    assert done.path == run / "report.html"
    assert (done.runs, done.damage) == (1, ())
    before = done.path.read_bytes()
    write_report([run])
    assert done.path.read_bytes() == before

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    (run / "evaluation.json").unlink()
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match=r"report\.html"):
        write_report([run])
    assert done.path.read_bytes() == before
    assert not list(run.glob(".*tmp"))


def test_a_wrong_out_is_refused_before_any_work(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: is a folder")):
        write_report([runs], tmp_path)
    with pytest.raises(UserError, match="absent"):
        write_report([runs], tmp_path / "absent" / "page.html")
    with pytest.raises(UserError, match="run folder"):
        write_report([])


def test_the_command_names_its_file_last_and_what_it_could_not_read(
    tmp_path: Path, alloy: Alloy, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_finetuning(tmp_path / "run", alloy)
    out = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(out)]) == EXIT_DONE
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    (run / "evaluation.json").write_text("{")
    assert main(["report", str(run)]) == EXIT_SKIPPED
    caught = capsys.readouterr()
    assert caught.out.splitlines()[-1] == str(run / "report.html")
    assert f"{run / 'evaluation.json'}: " in caught.err
    assert main(["report", str(tmp_path / "absent")]) == EXIT_INPUT
    assert str(tmp_path / "absent") in capsys.readouterr().err
