"""tools/crops_from_tracks.py: what it prints, and that a refusal is one sentence and status 2."""

import pytest
from PIL import Image


@pytest.fixture
def line(tmp_path):
    """The command line for two frames and these rows."""
    for number in (1, 2):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.new("RGB", (20, 10)).save(tmp_path / "frames" / f"{number}.png")

    def make(*rows, **changed):
        (tmp_path / "mot.txt").write_text("\n".join(rows))
        given = {"mot": "mot.txt", "frames": "frames", "camera": "c1", "output": "out", **changed}
        paths = {key: tmp_path / value for key, value in given.items() if key != "camera"}
        return [part for key in given for part in (f"--{key}", paths.get(key, given[key]))]

    return make


def test_crops_and_boxes_outside(run_tool, line, tmp_path):
    rows = ["1,1,0,0,5,5", "2,1,0,0,5,5", "2,2,30,0,5,5"]
    code, out, _ = run_tool("crops_from_tracks", *line(*rows), "--every", 1)
    assert (
        code == 0
        and out
        == f"2 crops of 1 tracklets in {tmp_path / 'out'}; 1 boxes without a pixel in their frame left out\n"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "c1_t000001_f000001.jpg", "c1_t000001_f000002.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rows, changed, said",
    [
        (["1,1,0,0,5,5", "1,1"], {}, "mot.txt', row 2: '1,1' is not"),
        (["3,1,0,0,5,5"], {}, "frame 3, of row 1, is not in"),
        (["1,1,0,0,5,5"], {"frames": "mot.txt/x"}, "neither a folder of frames nor a video"),
        (["1,1,0,0,5,5"], {"mot": "none.txt"}, "none.txt"),
        (["1,1,0,0,5,5"], {"output": "frames"}, "is there already"),
    ],
)
def test_refusals(run_tool, line, tmp_path, rows, changed, said):
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run_tool("crops_from_tracks", *line(*rows, **changed))
    assert code == 2 and said in err and err.count("\n") == 1
    assert sorted({*tmp_path.rglob("*")} - {tmp_path / "mot.txt"}) == before
