"""Which stream of a folder serves as what."""

from cmsbert_fast.data.streams.assignment import kind_of


def test_names_say_what_a_stream_is() -> None:
    assert {kind_of(n) for n in ("CMU_MOSI_Visual_Facet_41", "OpenFace_2", "FACET 4.2")} == {"visual"}
    assert {kind_of(n) for n in ("CMU_MOSI_COVAREP", "openSMILE_IS09", "CMU_MOSEI_openSMILE_IS09")} == {"acoustic"}
    assert {kind_of(n) for n in ("CMU_MOSEI_TimestampedWords", "CMU_MOSI_ModifiedTimestampedWords")} == {"words"}
    assert {kind_of(n) for n in ("CMU_MOSEI_TimestampedWordVectors", "CMU_MOSI_TimestampedPhones")} == {"ignored"}
    assert kind_of("CMU_MOSEI_Labels") == "labels"
    assert kind_of("features") is None
