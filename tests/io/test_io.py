"""Lazy reading, writing whole files, checkpoints."""

from __future__ import annotations

import bz2
import gzip
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import Table
from helpers import assert_same, computed, electrons, flags, with_pixels

import gdask
from gdask.engine import checkpoint
from gdask.io import write
from gdask.io.frames import array_headers, with_headers
from gdask.io.lazy_arrays import from_source, is_stored, source_of
from gdask.io.level_changes import changed_scale
from gdask.io.read import lazy_variables, open_frame, stored_arrays
from gdask.io.stored import read_window
from gdask.model import BadFile, GdaskError, host, owner

IO_COUNTS = Path("/proc/self/io")


@pytest.fixture
def path(night: object) -> str:
    return night.science[0]


@pytest.fixture
def copy(path: str, tmp_path: Path) -> Path:
    return Path(shutil.copy(path, tmp_path))


@pytest.fixture
def product(path: str, tmp_path: Path) -> str:
    """Write a SCI/VAR/DQ file with known pixels and give its path."""
    return gdask.write(electrons(path), tmp_path / "S1_product.fits")


def bytes_read() -> int:
    """Count the bytes that this process has asked the system for."""
    return int(IO_COUNTS.read_text().partition("rchar:")[2].split()[0])


def full_size(path: str, target: Path, size: int = 2048) -> int:
    """Write a sparse file with the headers of `path` and arrays of `size` x `size` zeros.

    Returns its length in bytes.
    """
    with fits.open(path) as hdus, open(target, "wb") as file:
        file.write(hdus[0].header.tostring().encode())
        for hdu in hdus[1:]:
            header = hdu.header.copy()
            header["NAXIS1"] = header["NAXIS2"] = size
            file.write(header.tostring().encode())
            file.seek(-(-size * size * 4 // 2880) * 2880, os.SEEK_CUR)
        file.truncate(file.tell())
        return file.tell()


# Reading ---------------------------------------------------------------------------------------


def test_pixels_are_those_of_astropy(path: str) -> None:
    frame = gdask.open(path)
    assert frame.data.dims == ("detector", "y", "x") and frame.data.dtype == np.float32
    with fits.open(path) as hdus:
        expected = np.stack([hdu.data for hdu in hdus[1:]]).astype("f4")
    np.testing.assert_array_equal(frame.data.data.compute(), expected)
    assert np.ptp(expected) > 1000
    assert frame.attrs["name"] == Path(path).name and len(array_headers(frame)) == 4


@pytest.mark.skipif(not IO_COUNTS.exists(), reason="the system does not count what is read")
def test_opening_reads_headers_and_a_band_reads_its_rows(path: str, tmp_path: Path) -> None:
    size = full_size(path, tmp_path / "big.fits")
    gdask.open(path)  # imports
    before = bytes_read()
    frame = open_frame(tmp_path / "big.fits")
    assert bytes_read() - before < 0.01 * size
    banded = from_source(source_of(frame.data.data), "read", 64)
    banded[0, :1, :1].compute()
    before = bytes_read()
    banded[2, 130:140].compute()
    assert bytes_read() - before < 1.1 * 64 * 2048 * 4


@pytest.mark.parametrize("form", ["gz", "bz2", "fz"])
def test_compressed_files_give_the_same_pixels(path: str, tmp_path: Path, form: str) -> None:
    target = tmp_path / f"{Path(path).name}.{form}"
    if form == "fz":
        with fits.open(path) as hdus:
            images = [
                fits.CompImageHDU(
                    hdu.data, hdu.header, compression_type="GZIP_2", quantize_level=0.0
                )
                for hdu in hdus[1:]
            ]
            fits.HDUList([hdus[0].copy(), *images]).writeto(target)
    else:
        target.write_bytes({"gz": gzip, "bz2": bz2}[form].compress(Path(path).read_bytes()))
    plain, packed = gdask.open(path), gdask.open(target)
    assert packed.attrs["name"] == Path(path).name
    assert_same(computed(plain), computed(packed))
    np.testing.assert_array_equal(
        packed.data[1, 7:20, 3:9].data.compute(), plain.data[1, 7:20, 3:9].data.compute()
    )
    for name in ("filter_name", "gain", "detector_section", "ut_datetime"):
        assert gdask.descriptor(packed, name) == gdask.descriptor(plain, name)


def test_graph_names_follow_the_files_identity(copy: Path) -> None:
    def keys(pixels: da.Array) -> set:
        return set(pixels.__dask_graph__())

    first = open_frame(copy).data.data
    assert keys(open_frame(copy).data.data) == keys(first)
    bands, again = (from_source(source_of(first), "read", 64) for _ in range(2))
    assert keys(bands) == keys(again)
    others = [first, bands, from_source(source_of(first), "read", 32)]
    assert len({array.name for array in others}) == len(others)
    code = (
        "import gdask.io.read as r, gdask.io.lazy_arrays as l;"
        f"data = r.open_frame({str(copy)!r}).data.data;"
        "print(l.from_source(l.source_of(data), 'read', 64).name)"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == bands.name
    os.utime(copy, ns=(1, 1))
    assert open_frame(copy).data.data.name != first.name


@pytest.mark.parametrize("rows", [1, 64, 97, 5000])
def test_in_bands_of_rows_the_pixels_are_the_same(product: str, rows: int) -> None:
    whole = gdask.open(product)
    for name, variable in whole.data_vars.items():
        banded = from_source(source_of(variable.data), f"band-{name}", rows)
        assert banded.chunks[1][0] == min(rows, whole.sizes["y"])
        assert banded.name != variable.data.name and is_stored(source_of(banded)), name
        assert banded.dtype == variable.dtype
        assert banded.compute().tobytes() == variable.data.compute().tobytes()


def test_parts_of_rows_are_those_of_whole_rows(product: str, path: str) -> None:
    for file in (product, path):
        for array in stored_arrays(file).values():
            plane = array.planes[0]
            ny, nx = plane.shape
            whole = read_window(plane, 0, ny, 0, nx, np.dtype("f4"))
            for y1, y2, x1, x2 in (
                (3, 40, 5, nx // 3),
                (0, ny, nx - 7, nx),
                (10, 11, 0, 1),
                (5, 5, 3, 9),
                (4, 9, 2, nx - 1),
            ):
                np.testing.assert_array_equal(
                    read_window(plane, y1, y2, x1, x2, np.dtype("f4")), whole[y1:y2, x1:x2]
                )


def test_a_stored_array_is_read_like_an_array(product: str) -> None:
    """It is indexed by numbers, slices with steps, and lists of detectors, as xarray does."""
    stored = stored_arrays(product)["data"]
    whole = gdask.open(product).data.data.compute()
    assert (stored.shape, stored.dtype) == (whole.shape, whole.dtype)
    for key in (
        (slice(None), slice(None), slice(None)),
        (2, slice(3, 40), slice(5, 6)),
        (slice(1, 3), slice(None, None, 7), slice(250, 2, -3)),
        ([0, 3], 17, slice(10, 20)),
        (-1, -1, -1),
        (slice(0), slice(None), slice(None)),
        (slice(None), slice(5, 5), slice(None)),
        1,
        (slice(None), 4),
    ):
        np.testing.assert_array_equal(stored[key], whole[key])


def test_only_pixels_that_nobody_changed_are_read_from_their_file(product: str) -> None:
    frame = open_frame(product)
    assert all(is_stored(source_of(frame[name].data)) for name in frame.data_vars)
    attributes = frame.assign_attrs(note="x").drop_vars("dq")
    assert is_stored(source_of(attributes["data"].data))
    for other in (frame.chunk({"y": 10}), frame.isel(y=slice(10)), frame * 1, frame.compute()):
        assert source_of(other["data"].data) is None


@pytest.mark.parametrize(
    "how",
    [lambda data: data * 2, lambda data: data.copy(data=data.values * 2).chunk({"y": 50})],
    ids=["lazy", "in memory"],
)
def test_pixels_that_were_assigned_are_not_taken_from_the_file(product: str, how: object) -> None:
    frame = open_frame(product)
    expected = 2 * frame.data.values
    changed = frame.assign(data=how(frame["data"]))
    assert source_of(changed["data"].data) is None and is_stored(source_of(changed["dq"].data))
    np.testing.assert_array_equal(changed["data"].data.compute(), expected)


def test_changed_scale_reads_scaled_and_shifted_pixels(product: str) -> None:
    """So it does a second time and in other blocks.

    Pixels that are not on disk get the same bits.
    """
    frame = gdask.open(product)
    scales, offsets = [2.0, 1.0, 0.5, 1.0], [1.5, 0.0, -3.0, 1000.0]
    expected = frame.data.data.compute().astype("f8") * np.reshape(scales, (4, 1, 1)) + np.reshape(
        offsets, (4, 1, 1)
    )
    changed = changed_scale(frame.data.data, scales, offsets)
    assert is_stored(source_of(changed)) and changed.dtype == np.float32
    np.testing.assert_allclose(changed.compute(), expected, rtol=1e-6)
    apart = from_source(source_of(changed), "read", 33)
    assert apart.compute().tobytes() == changed.compute().tobytes()
    again = changed_scale(changed, [0.5, 1.0, 2.0, 1.0], [0.0] * 4)
    expected = expected * np.reshape([0.5, 1.0, 2.0, 1.0], (4, 1, 1))
    np.testing.assert_allclose(again.compute(), expected, rtol=1e-6)
    assert len({frame.data.data.name, changed.name, apart.name, again.name}) == 4
    in_memory = with_pixels(frame, data=frame.data.values)["data"].data
    assert source_of(in_memory) is None
    lazily = changed_scale(in_memory, scales, offsets)
    assert lazily.dtype == np.float32
    assert lazily.compute().tobytes() == changed.compute().tobytes()


def test_lazy_variables_are_those_of_frames(product: str) -> None:
    """Other arrays of a file, such as weights, are no variables."""
    with fits.open(product) as hdus:
        weights = [fits.ImageHDU(hdus["SCI", n].data, name="WEIGHT", ver=n) for n in range(1, 5)]
        fits.HDUList([*hdus, *weights]).writeto(Path(product).with_name("more.fits"))
    stored = stored_arrays(str(Path(product).with_name("more.fits")))
    assert set(stored) == {"data", "variance", "dq", "weight"}
    assert set(lazy_variables(stored)) == {"data", "variance", "dq"}


def test_a_compressed_array_is_no_source(path: str, tmp_path: Path) -> None:
    """Each window of it would cost the whole array, so tasks take its blocks instead."""
    target = tmp_path / f"{Path(path).name}.gz"
    target.write_bytes(gzip.compress(Path(path).read_bytes()))
    (plain, packed) = (stored_arrays(str(file))["data"] for file in (path, target))
    assert plain.is_windowed and not packed.is_windowed
    assert source_of(from_source(plain, "read")) is plain
    assert source_of(from_source(packed, "read")) is None


def test_messages_for_files_that_are_not_whole(copy: Path) -> None:
    with pytest.raises(GdaskError, match=r"nothing_here\.fits: no such file"):
        gdask.open(copy.parent / "nothing_here.fits")
    frame = gdask.open(copy)
    content = copy.read_bytes()
    copy.write_bytes(content[:-300000])
    with pytest.raises(GdaskError, match=f"{copy.name}.*(truncated|cut short)"):
        gdask.open(copy)
    with pytest.raises(GdaskError, match=f"{copy.name}: changed during the run"):
        frame.data.data.compute()
    copy.unlink()
    with pytest.raises(GdaskError, match=f"{copy.name}: vanished during the run"):
        frame.data.data.compute()
    for wrong in (b"", b"SIMPLE nothing of the kind" * 200, content[:1000]):
        copy.write_bytes(wrong)
        with pytest.raises(GdaskError, match=copy.name):
            gdask.open(copy)


def test_arrays_of_different_shape_are_refused(copy: Path) -> None:
    with fits.open(copy) as hdus:
        hdus[3].data = hdus[3].data[:-10]
        hdus.writeto(copy, overwrite=True)
    with pytest.raises(GdaskError, match=f"{copy.name}: arrays of different shapes"):
        gdask.open(copy)


# Writing ---------------------------------------------------------------------------------------


def test_bytes_are_the_same_for_any_chunking(path: str, tmp_path: Path) -> None:
    frame, contents = electrons(path), []
    for number, chunks in enumerate([(1, -1, -1), (4, 40, -1), (1, 97, 51), (2, 16, -1)]):
        chunked = frame.chunk(dict(zip(("detector", "y", "x"), chunks, strict=True)))
        contents.append(Path(gdask.write(chunked, tmp_path / f"{number}" / "S1.fits")).read_bytes())
    assert contents[0] == contents[1] == contents[2] == contents[3]


def test_written_files_verify_and_come_back(path: str, tmp_path: Path) -> None:
    frame = electrons(path)
    every = np.arange(2**16, dtype="u2").reshape(256, 256)  # every 16-bit value
    dq = frame.dq.data.compute()
    dq[2, :256, :256] = every
    frame = with_pixels(frame, rows=50, dq=dq, objects=flags(dq.shape, 5) > 0)
    tables = {
        "OBJCAT": [Table({"X": [1.5 * n], "NAME": ["a"]}) for n in range(4)],
        "NOTES": Table({"N": [1, 2]}),
    }
    output = write.start(frame, tmp_path / "S1.fits")
    dask.compute(*output.arrays)
    written = write.finish(output, tables)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(written, checksum=True) as hdus:
            hdus.verify("exception")
            assert all("CHECKSUM" in hdu.header and "DATASUM" in hdu.header for hdu in hdus)
            assert [(hdu.name, hdu.ver) for hdu in hdus[1:5]] == [
                ("SCI", 1),
                ("VAR", 1),
                ("DQ", 1),
                ("OBJMASK", 1),
            ]
            assert hdus["DQ", 3].data.dtype == np.uint16
            np.testing.assert_array_equal(hdus["DQ", 3].data[:256, :256], every)
            np.testing.assert_array_equal(hdus["SCI", 4].data, frame.data[3].data.compute())
            assert hdus["OBJCAT", 3].data["X"][0] == 3.0 and list(hdus["NOTES"].data["N"]) == [1, 2]
    again = gdask.open(written)
    assert {name: again[name].dtype for name in again.data_vars} == {
        "data": "f4",
        "variance": "f4",
        "dq": "u2",
        "objects": "?",
    }
    assert_same(computed(frame), computed(again))
    found = gdask.tables(gdask.open(gdask.write(again, tmp_path / "S2.fits")))
    assert [table["X"][0] for table in found["OBJCAT"]] == [0.0, 1.5, 3.0, 4.5]
    assert list(found["NOTES"]["N"]) == [1, 2]


@pytest.mark.parametrize("unit", [("SCI", 1), ("VAR", 2), ("DQ", 4), ("ASTROM", 1)])
def test_a_flipped_bit_is_noticed(product: str, unit: tuple[str, int]) -> None:
    with fits.open(product) as hdus:
        place = hdus[unit].fileinfo()["datLoc"] + hdus[unit].size // 2
    with open(product, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with (
        pytest.warns(match="(?i)(datasum|checksum) verification failed"),
        fits.open(product, checksum=True) as hdus,
    ):
        [hdu.data for hdu in hdus]


def test_ccddata_reads_what_is_written(path: str, tmp_path: Path) -> None:
    frame = with_headers(electrons(path), each={"BUNIT": ["electron"] * 4})
    written = gdask.write(frame, tmp_path / "S1.fits")
    ccd = CCDData.read(written, hdu=1)
    assert ccd.unit == "electron" and ccd.wcs is not None
    np.testing.assert_array_equal(ccd.data, frame.data[0].data.compute())
    with fits.open(written) as hdus:
        assert (
            hdus["VAR", 1].header["BUNIT"] == "electron**2" and "BUNIT" not in hdus["DQ", 1].header
        )


def fails_on_the_third(block: np.ndarray, block_id: tuple[int, ...] = ()) -> np.ndarray:
    if block_id[0] == 2:
        raise RuntimeError("as asked")
    return block


def test_no_file_and_no_part_is_left_when_computing_fails(path: str, tmp_path: Path) -> None:
    frame = electrons(path)
    frame["data"] = frame.data.copy(
        data=da.map_blocks(fails_on_the_third, frame.data.data, dtype="f4")
    )
    kept = tmp_path / "S1.fits"
    kept.write_text("an older product")
    with pytest.raises(RuntimeError, match="as asked"):
        gdask.write(frame, kept)
    assert [p.name for p in tmp_path.iterdir()] == [
        "S1.fits"
    ] and kept.read_text() == "an older product"


def test_a_product_is_not_there_before_it_is_whole(path: str, tmp_path: Path) -> None:
    output = write.start(electrons(path), tmp_path / "S1.fits")
    (part,) = tmp_path.iterdir()
    assert part.name.startswith(".S1.fits.") and part.name.endswith(".part")
    write.discard(output.final)
    assert not list(tmp_path.iterdir())


# Checkpoints -----------------------------------------------------------------------------------


def parts_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.part"))


def test_leftovers_of_dead_processes_are_removed_those_of_living_ones_are_not(
    tmp_path: Path,
) -> None:
    """Those of another host are judged by the time when they were written last."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        "stale": f".a.fits.{host()}-{dead.pid}-0a1b2c3d.part",
        "live": f".b.fits.{owner()}.part",
        "other": f".c.fits.elsewhere-00000000-{dead.pid}-0a1b2c3d.part",
        "old": f".d.fits.elsewhere-00000000-{os.getpid()}-0a1b2c3d.part",
    }
    for name in (*names.values(), "e.part", ".f.123.part"):
        (tmp_path / name).touch()
    os.utime(tmp_path / names["old"], (time.time() - 90000,) * 2)
    assert sorted(checkpoint.remove_stale_parts(str(tmp_path))) == sorted(
        [names["stale"], names["old"]]
    )
    assert parts_of(tmp_path) == sorted([names["live"], names["other"], "e.part", ".f.123.part"])


def test_names_of_temporaries_are_one_hosts_and_one_processes(tmp_path: Path) -> None:
    """Two hosts that share a folder, with the same process number, have different names."""
    code = "from gdask.io.write import temporary_name; print(temporary_name('/a/S1.fits'))"
    names = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    mine = write.temporary_name("/a/S1.fits")
    assert len(names | {mine}) == 3 and all(
        name.startswith(f"/a/.S1.fits.{host()}-") for name in names
    )
    assert mine.endswith(f"-{os.getpid()}-{owner()[-8:]}.part")


@pytest.mark.parametrize(
    ("whose", "silent", "taken"),
    [
        ("living", 0, True),
        ("dead", 0, False),
        ("other host", 100, False),
        ("other host", 1, True),
    ],
)
def test_a_run_knows_whether_another_one_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str, silent: float, taken: bool
) -> None:
    """On this host by the process, on another one by the mark that a living run touches."""
    monkeypatch.setattr(checkpoint, "MARK_TOUCH_INTERVAL", 0.3)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    where = "elsewhere-00000000" if whose == "other host" else host()
    other = tmp_path / f"in-use.{where}-{sleeper.pid}-0a1b2c3d"
    other.touch()
    if whose == "dead":
        sleeper.kill(), sleeper.wait()
    os.utime(other, (time.time() - silent,) * 2)
    toucher = threading.Timer(0.2, os.utime, (other,))
    if silent == 1:
        toucher.start()
    try:
        with checkpoint.mark_in_use(str(tmp_path)) as found:
            assert found == taken and other.exists() == taken
            (mine,) = (path for path in tmp_path.iterdir() if path != other)
            first = mine.stat().st_mtime_ns
            time.sleep(0.5)
            assert mine.stat().st_mtime_ns > first
        assert not mine.exists()
    finally:
        sleeper.kill(), sleeper.wait()


def test_a_mark_that_nobody_touches_is_that_of_a_dead_run_of_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "MARK_TOUCH_INTERVAL", 0.1)
    monkeypatch.setattr(checkpoint, "DEAD_MARK_AGE", 0.5)
    (tmp_path / "in-use.elsewhere-00000000-1-0a1b2c3d").touch()
    begun = time.monotonic()
    with checkpoint.mark_in_use(str(tmp_path)) as found:
        assert not found and 0.4 < time.monotonic() - begun < 10


def test_checkpoints_are_kept_for_those_who_come_back(tmp_path: Path) -> None:
    """A reduction that ends well removes its own; those of others stay for a week.

    A second reduction at the same time has checkpoints of its own.
    """
    inputs = ["a.fits", "b.fits"]
    with pytest.raises(RuntimeError), checkpoint.scratch_folder(str(tmp_path), inputs) as first:
        Path(first, "x").mkdir()
        Path(first, "x", ".y.part").touch()
        raise RuntimeError("killed")
    with checkpoint.scratch_folder(str(tmp_path), ["c.fits"]) as other:
        assert other != first
    assert not Path(other).exists() and Path(first, "x").is_dir()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    mark = Path(first, f"in-use.{host()}-{sleeper.pid}-0a1b2c3d")
    mark.touch()
    with checkpoint.scratch_folder(str(tmp_path), inputs) as second:
        assert second != first and Path(first, "x", ".y.part").exists()
        Path(second).mkdir()
    assert not Path(second).exists() and Path(first).is_dir()
    sleeper.kill(), sleeper.wait()
    os.utime(first, (time.time() - 10 * 86400,) * 2)
    with checkpoint.scratch_folder(str(tmp_path), ["c.fits"]):
        pass  # nobody came back for ten days
    assert not (tmp_path / ".gdask").exists()


def test_small_results_survive_in_a_checkpoint(tmp_path: Path) -> None:
    stars = np.array([(1.5, 2)], dtype=[("x", "f8"), ("n", "i4")])
    fetched = {(0, "level"): (np.array([1.5]), np.array([2.5])), (11, "stars"): (stars, stars[:0])}
    checkpoint.complete(str(tmp_path / "c"), fetched)
    assert checkpoint.is_whole(str(tmp_path / "c"))
    again = checkpoint.read_fetched(str(tmp_path / "c"))
    assert again.keys() == fetched.keys()
    for key, arrays in fetched.items():
        assert [a.tobytes() for a in again[key]] == [a.tobytes() for a in arrays]
        assert [a.dtype for a in again[key]] == [a.dtype for a in arrays]


@pytest.fixture
def stored(path: str, tmp_path: Path) -> tuple[Path, Path]:
    """Write a whole checkpoint of one Frame; give its folder and the file in it."""
    output = write.start(electrons(path), tmp_path / "c" / "00000_S1.fits", ["data", "dq"])
    windows = checkpoint.window_records([output], dask.compute(*output.arrays))
    write.finish(output, checksum=False)
    checkpoint.complete(str(tmp_path / "c"), {(0, "level"): (np.array([1.5]),)}, windows)
    return tmp_path / "c", tmp_path / "c" / "00000_S1.fits"


def test_a_checkpoint_is_used_where_each_byte_is_as_it_was_written(
    stored: tuple[Path, Path],
) -> None:
    folder, file = stored
    assert checkpoint.is_whole(str(folder))
    with fits.open(file) as hdus:
        places = [
            (hdu.fileinfo()["hdrLoc"] + 100, hdu.fileinfo()["datLoc"] + hdu.size // 2)
            for hdu in hdus[1:]
        ]
    for place in (0, *places[0], *places[-1]):
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)
        assert not checkpoint.is_whole(str(folder)), place
        content[place] ^= 1
        file.write_bytes(content)
    assert checkpoint.is_whole(str(folder))


@pytest.mark.parametrize("damage", ["short", "zeros", "gone", "results", "sums", "not complete"])
def test_a_damaged_checkpoint_is_not_used(
    stored: tuple[Path, Path], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, file = stored
    size = file.stat().st_size
    if damage == "short":
        os.truncate(file, size - 2880 * 4)
    elif damage == "zeros":  # what a machine that went down may leave
        file.write_bytes(bytes(size))
    elif damage == "gone":
        file.unlink()
    elif damage == "not complete":
        (folder / "complete").unlink()
    else:
        other = folder / {"results": "fetched.npz", "sums": "windows.npz"}[damage]
        other.write_bytes(other.read_bytes()[:-1] + b"x")
    assert not checkpoint.is_whole(str(folder))
    assert ("is damaged" in caplog.text) == (damage != "not complete")


def test_blocks_narrower_than_the_array_are_checked_row_by_row(path: str, tmp_path: Path) -> None:
    frame = electrons(path).chunk({"x": 100, "y": 150})
    output = write.start(frame, tmp_path / "c" / "00000_S1.fits", ["data"])
    windows = checkpoint.window_records([output], dask.compute(*output.arrays))
    assert len({int(window["width"]) for window in windows[output.final]}) > 2
    write.finish(output, checksum=False)
    checkpoint.complete(str(tmp_path / "c"), {}, windows)
    assert checkpoint.is_whole(str(tmp_path / "c"))


def test_another_code_has_other_checkpoints(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = electrons(path)
    first = checkpoint.checkpoint_folder((frame,), ("data",), "s")
    assert checkpoint.checkpoint_folder((frame,), ("data",), "s") == first
    monkeypatch.setattr(checkpoint, "__version__", "0.0")
    checkpoint.code_digest.cache_clear()
    try:
        assert checkpoint.checkpoint_folder((frame,), ("data",), "s") != first
    finally:
        checkpoint.code_digest.cache_clear()


def test_windows_that_are_kept_are_those_of_the_scale_that_was_asked_for(product: str) -> None:
    """A calibration's windows stay in memory; those of a changed scale are others."""
    plain = open_frame(product, keep=True).data.data
    changed = changed_scale(plain, [2.0] * 4, [1.0] * 4)
    pixels = plain.compute()
    np.testing.assert_array_equal(changed.compute(), pixels * 2 + 1)
    np.testing.assert_array_equal(plain.compute(), pixels)


@pytest.mark.parametrize(("x1", "x2"), [(3, 40), (0, None)])
def test_reads_that_end_early_give_the_same_pixels(
    product: str, monkeypatch: pytest.MonkeyPatch, x1: int, x2: int | None
) -> None:
    """A system may give fewer bytes than were asked for; none at all is a file that was cut."""
    preadv = os.preadv
    for name, stored in stored_arrays(product).items():
        window = 5, 25, x1, x2 or stored.shape[2]
        expected = stored.read(1, window, {})
        whole = stored.read(1, (0, *stored.shape[1:2], 0, stored.shape[2]), {})
        assert expected.tobytes() == whole[5:25, x1 : window[3]].tobytes(), name
        with monkeypatch.context() as patched:
            patched.setattr(os, "preadv", lambda f, rooms, at: preadv(f, [rooms[0][:7]], at))
            assert stored.read(1, window, {}).tobytes() == expected.tobytes(), name
            patched.setattr(os, "preadv", lambda f, rooms, at: 0)
            with pytest.raises(BadFile, match="ends before row 25"):
                stored.read(1, window, {})


def test_runs_of_the_same_files_at_once_leave_nothing(tmp_path: Path) -> None:
    """Three of them, in any order of their ends: each takes its own away, the last the folder."""
    program = """
import sys
from pathlib import Path
from gdask.engine import checkpoint
with checkpoint.scratch_folder(sys.argv[1], ["a.fits"]) as scratch:
    folder = Path(scratch, "phase")
    folder.mkdir(parents=True)
    (folder / "pixels").write_bytes(b"x" * 1000)
    print("begun", flush=True)
    sys.stdin.readline()
    assert (folder / "pixels").stat().st_size == 1000
"""
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        runs = []
        for _ in range(3):
            run = subprocess.Popen(
                [sys.executable, "-c", program, str(tmp_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert run.stdout and run.stdout.readline() == "begun\n"
            runs.append(run)
        for left, number in zip((2, 1, 0), order, strict=True):
            runs[number].communicate("end\n")
            assert runs[number].returncode == 0
            pixels = list(tmp_path.glob(".gdask/*/*/pixels"))
            assert len(pixels) == left
        assert not (tmp_path / ".gdask").exists()
