"""The capacity benchmark's roots are what it says, and the calls that it counts are those on them."""

from pathlib import Path

from lab.bench import capacity, capacity_calls

FILES = 60


def test_several_processes_make_the_files_that_one_would(tmp_path: Path) -> None:
    capacity.fill(tmp_path / "many", FILES)
    for number in range(FILES):
        capacity.put(tmp_path / "one", number, capacity.SIZES[number % 5 == 0])
    many, one = (
        {
            path.relative_to(tmp_path / name): path.stat().st_size
            for path in (tmp_path / name).rglob("*.kv")
        }
        for name in ("many", "one")
    )
    assert many == one
    assert len(one) == FILES
    assert set(one.values()) == set(capacity.SIZES)


def test_calls_on_the_root_are_counted_for_a_look_and_for_a_crawl(tmp_path: Path) -> None:
    base = capacity_calls.base(tmp_path)
    capacity.fill(base, FILES)
    directories = sum(path.is_dir() for path in tmp_path.rglob("*"))
    # Two seconds hold the look at the start, and no other.
    found = capacity_calls.calls(tmp_path, rest=2.0)
    # `os.walk` lists each directory, and asks whether it is a link. The tier adds its description, what is
    # written down of the root, and the lease.
    least = FILES + 2 * directories
    assert least <= found["calls_of_a_crawl"] <= least + 10
    assert found["calls_per_s_at_rest"] * 2.0 >= FILES
