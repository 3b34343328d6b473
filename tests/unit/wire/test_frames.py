from codec_checks import moderately
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.wire import frames
from trio_passt.wire.frames import FrameBatch, Offload


@moderately
@given(st.lists(st.binary(max_size=40), max_size=4))
def test_single_frame_is_its_length_then_its_parts(parts: list[bytes]) -> None:
    offload = Offload(checksum_start=34, checksum_offset=16)
    run = frames.single(*parts, offload=offload)
    whole = b"".join(parts)
    assert b"".join(run.parts) == len(whole).to_bytes(4, "big") + whole
    assert (run.count, run.stride, run.offload) == (1, 4 + len(whole), offload)


@moderately
@given(st.lists(st.binary(min_size=1, max_size=40)))
def test_batch_gives_views_of_its_frames(contents: list[bytes]) -> None:
    data, bounds = b"", []
    for content in contents:
        data += len(content).to_bytes(4, "big")
        bounds.append((len(data), len(data) + len(content)))
        data += content
    batch = FrameBatch(data, bounds)
    assert len(batch) == len(contents)
    assert list(batch) == contents
    assert all(view.obj is data for view in batch)
