"""The decision log: what is remembered, what is on disk, and what a crash leaves."""

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from extender import decision_log, log_file
from extender.decision_log import (
    Binding,
    Candidate,
    Decision,
    DecisionLog,
    End,
    Preemption,
    Record,
    as_array,
    decode_record,
    read_log,
)
from tests.extender_world import records_of


def decision(pod: str, time: float = 1.0) -> Decision:
    """A filter call of a pod."""
    return Decision(
        time=time,
        pod=pod,
        uid=f"uid-{pod}",
        offline=True,
        millicpu=1500,
        horizon_hours=6,
        snapshot=3,
        model_version="7",
        offered=2,
        candidates=(Candidate("n1", 0.25, 4000),),
        rejected={"asks 1500m for 6 h, more than is reclaimable": 1},
    )


def binding(pod: str, error: str = "") -> Binding:
    """A bind call of a pod."""
    return Binding(
        time=2.0,
        pod=pod,
        uid=f"uid-{pod}",
        node="n1",
        millicpu=1500,
        horizon_hours=6,
        model_version="7",
        error=error,
    )


def preemption(pod: str) -> Preemption:
    """A preempt call of a pod."""
    return Preemption(
        time=3.0,
        pod=pod,
        uid=f"uid-{pod}",
        offline=True,
        millicpu=1500,
        horizon_hours=6,
        snapshot=3,
        model_version="7",
        proposed=2,
        kept=1,
        nodes=("n1",),
        rejected={"asks 1500m for 6 h, more than is reclaimable": 1},
    )


def test_the_newest_come_first_and_by_pod() -> None:
    log = DecisionLog()
    records: list[Record] = [decision("default/a"), decision("default/b"), binding("default/a")]
    for record in records:
        log.append(record)
    assert records_of(log) == records[::-1]
    assert records_of(log, "default/a") == [records[2], records[0]]
    assert records_of(log, limit=1) == [records[2]]
    assert records_of(log, "default/nobody") == []


def test_memory_is_bounded() -> None:
    log = DecisionLog(keep=3)
    for number in range(10):
        log.append(decision(f"default/{number}"))
    assert [record.pod for record in records_of(log)] == ["default/9", "default/8", "default/7"]


def test_memory_is_bounded_in_bytes_too() -> None:
    log = DecisionLog(keep_bytes=100_000)
    for number in range(100):
        log.append(decision(f"p{number}"))
    assert len(records_of(log)) == 100
    wide = replace(decision("wide"), candidates=(Candidate("n1", 0.25, 4000),) * 1500)
    log.append(wide)  # 1,500 x 44
    assert records_of(log)[0] == wide
    assert 0 < len(records_of(log)) < 100
    for record in (
        binding("x" * 30_000),  # named twice: in the record, and to be found by
        binding("a", error="x" * 30_000),
        replace(preemption("a"), nodes=("x" * 30_000,)),
        replace(decision("a"), rejected={"x" * 30_000: 1}),
    ):
        log.append(record)
    assert [record.pod for record in records_of(log)] == ["a", "a", "a"]  # 3 x 30,000 and no more
    log.append(replace(wide, candidates=(Candidate("n" * 100_000, 0.25, 4000),)))
    assert records_of(log) == []
    log.append(decision("next"))
    assert len(records_of(log)) == 1


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "decisions.jsonl"
    log = DecisionLog(path)
    records: list[Record] = [
        decision("default/a"),
        binding("default/a", 'node "n1"\nis full \u0000'),
        preemption("default/a"),
        End(time=3.0, pod="default/a", uid="uid-default/a", node="n1"),
    ]
    for record in records:
        log.append(record)
    log.close()
    assert list(read_log(path)) == records


def test_a_restart_appends(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    for name in ("default/a", "default/b"):
        log = DecisionLog(path)
        log.append(decision(name))
        log.close()
    assert [record.pod for record in read_log(path)] == ["default/a", "default/b"]


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path)
    log.append(decision("default/a"))
    log.append(decision("default/b"))
    log.close()
    path.write_bytes(path.read_bytes()[:-10])
    assert [record.pod for record in read_log(path)] == ["default/a"]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(b'{"kind":"filter"}\n')
    with pytest.raises(msgspec.DecodeError):
        list(read_log(path))


def test_a_large_file_is_rotated_and_one_predecessor_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "decisions.jsonl"
    line = len(msgspec.json.encode(decision("default/0"))) + 1
    monkeypatch.setattr(decision_log, "MAX_BYTES", 2 * line)
    log = DecisionLog(path)
    for number in range(7):  # three lines are more than two: rotated after 3 and after 6
        log.append(decision(f"default/{number}"))
    log.close()
    older = path.with_suffix(".jsonl.1")
    assert [record.pod[-1] for record in read_log(older)] == ["3", "4", "5"]
    assert [record.pod[-1] for record in read_log(path)] == ["6"]


def test_a_restart_goes_on_after_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path)
    log.append(decision("a"))
    log.close()
    with path.open("ab") as file:
        file.write(b'{"kind":"filter","pod":"hal')  # it was killed
    log = DecisionLog(path)
    log.append(decision("b"))
    log.close()
    assert [record.pod for record in read_log(path)] == ["a", "b"]


@pytest.mark.parametrize("size", [9, 10, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
@pytest.mark.parametrize("whole", [0, 1])
def test_a_half_written_record_of_any_size_is_cut_off(
    tmp_path: Path, size: int, whole: int
) -> None:
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path)
    for _ in range(whole):
        log.append(decision("a"))
    log.close()
    before = path.read_bytes()
    path.write_bytes(before + b'{"kind":"filter"'.ljust(size, b"x")[:size])
    DecisionLog(path).close()
    assert path.read_bytes() == before


def test_a_line_that_is_longer_than_any_log_is_another_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "_TAIL", 3_000_000)
    path = tmp_path / "precious"
    path.write_bytes(b'{"kind":"filter"'.ljust(4_000_000, b"x"))
    with pytest.raises(OSError, match="it is another file"):
        DecisionLog(path)
    assert path.stat().st_size == 4_000_000


@pytest.mark.parametrize("content", [b"a: 1", b'{"a": 1}', b'{"kind":"bind"}\nmine'])
def test_nothing_is_cut_off_another_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(OSError, match="it is another file"):
        DecisionLog(path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_written_stops_nothing_and_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    lost: list[int] = []
    path = folder / "decisions.jsonl"
    log = DecisionLog(path, lost=lost.append)
    full = Path("/dev/full").open("ab")  # noqa: SIM115 - the log closes it
    assert log._file is not None
    real, log._file._file = log._file._file, full
    for number in range(1000):
        log.append(decision(f"p{number}"))
    log.flush()
    assert sum(lost) == 1000
    assert len(log.recent(limit=2000)) == 1000
    assert real is not None
    real.close()
    log.flush()  # opens the real one
    log.append(decision("after"))
    log.close()
    assert [record.pod for record in read_log(path)] == ["after"]
    assert sum(lost) == 1000


def test_a_file_that_cannot_be_rotated_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "MAX_BYTES", 2000)
    lost: list[int] = []
    (tmp_path / "decisions.jsonl.1" / "in the way").mkdir(parents=True)
    log = DecisionLog(tmp_path / "decisions.jsonl", lost=lost.append)
    for number in range(40):
        log.append(decision(f"p{number}"))
        log.flush()
    log.close()
    read = [record.pod for record in read_log(tmp_path / "decisions.jsonl")]
    assert len(read) + sum(lost) == 40
    assert "p0" in read


def test_flush_shows_what_is_buffered(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path)
    log.append(decision("default/a"))
    log.flush()
    assert len(list(read_log(path))) == 1
    log.close()
    log.close()  # twice is harmless
    DecisionLog().flush()


def test_what_stands_in_few_records_is_written_in_those_only() -> None:
    usual = msgspec.json.encode(decision("a"))
    assert b'"hot"' not in usual  # nor in the lines of earlier versions, which are read
    assert b'"refused"' not in usual
    for rare in (replace(decision("a"), hot=2), replace(decision("a"), refused=("n1",))):
        assert decode_record(msgspec.json.encode(rare)) == rare


def test_lines_make_an_array() -> None:
    records: list[Record] = [decision("default/a"), binding("default/a"), preemption("default/b")]
    for some in ([], records[:1], records):
        assert as_array(map(msgspec.json.encode, some)) == msgspec.json.encode(some)
