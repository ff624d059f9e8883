"""Conversations added up from records."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import transcripts
from helpers.records import ALICE, BOB, body, message
from streamtap.events import Body, FlowInfo, Record
from streamtap.model import Content
from streamtap.patterns import Message
from streamtap.summary import Conversation, Summary, Transfer
from streamtap.summary.copies import RECENT, RELAY_NS, WATCHED, Copies

GOLDEN = Path(__file__).parent.parent / "golden" / "msnp"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.transcript"))
SECOND = 1_000_000_000


def flow(name: str) -> FlowInfo:
    return FlowInfo(None, name, "10.0.0.1:50000", "1.2.3.4:1863", "client")


A, B, SERVICE = flow("a"), flow("b"), flow("s")


def records_of(name: str) -> Iterator[Record]:
    """What a golden transcript tells, with what was said."""
    transcript = transcripts.read(GOLDEN / f"{name}.transcript")
    flows = {
        each: FlowInfo(known.app, each, str(known.local), str(known.remote), known.role.value)
        for each, known in transcript.flows.items()
    }
    for told in transcripts.play(transcript, Content.FULL):
        yield Record(time_ns=told.time_ns, body=told.body, flow=flows[told.flow])


def summed(*records: Record, **options: bool) -> list[Conversation]:
    summary = Summary(**options)
    for record in records:
        summary.add(record)
    assert summary.left_out == 0
    return summary.conversations()


def golden(name: str) -> Conversation:
    (found,) = summed(*records_of(name), transcript=True)
    return found


def at(second: float, given: Body, on: FlowInfo | None = A) -> Record:
    return Record(time_ns=int(second * SECOND), body=given, flow=on)


def kinds(found: Conversation) -> dict[str | None, dict[str, int]]:
    return {name: sender.kinds for name, sender in found.senders.items()}


# --- what is told of a conversation ---------------------------------------------------------------


def test_a_chat_is_told_with_who_when_and_how_many_of_each_kind() -> None:
    found = golden("chat-caller")
    told = list(records_of("chat-caller"))
    of_it = [record for record in told if getattr(record.body, "conversation", None)]
    assert list(found.participants)[:2] == [ALICE, BOB]
    assert (found.began_ns, found.ended_ns) == (of_it[0].time_ns, of_it[-1].time_ns)
    assert set(found.flows) == {record.flow.flow for record in of_it if record.flow}
    assert kinds(found)[ALICE]["typing"] == 1
    assert {"nudge", "ink"} <= kinds(found)[BOB].keys()


def test_typing_and_control_are_counted_by_kind_and_are_no_messages() -> None:
    found = golden("kinds")
    told = kinds(found)[BOB]
    assert told["control"] == 3
    assert found.messages == sum(told.values()) - told["control"] - told.get("typing", 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_conversation_of_the_records_is_found_and_no_message_of_it_lost(name: str) -> None:
    told = list(records_of(name))
    names = {getattr(record.body, "conversation", None) for record in told} - {None}
    found = summed(*told)
    assert {each.conversation for each in found} - {None} == names
    for each in found:
        senders = {
            record.body.sender
            for record in told
            if isinstance(record.body, Message) and record.body.conversation == each.conversation
        }
        assert senders == set(each.senders)
        assert senders - {None} <= set(each.participants)


def test_a_file_is_told_once_with_what_became_of_it() -> None:
    (transfer,) = golden("file-msnftp").files
    assert transfer == Transfer("file", ALICE, (BOB,), "complete", "notes.txt", 11, 11)


def test_the_same_file_offered_again_after_its_end_is_another() -> None:
    actions = ["offer", "decline", "offer", "offer", "accept", "progress", "complete"]
    told = [
        at(
            second,
            body(
                "im.file",
                action=action,
                sender=ALICE,
                recipients=(BOB,),
                name="a",
                size=9,
                conversation="c1",
                transferred=5 if action == "progress" else None,
            ),
        )
        for second, action in enumerate(actions)
    ]
    (found,) = summed(*told)
    assert [(each.action, each.transferred) for each in found.files] == [
        ("decline", None),
        ("complete", 5),
    ]
    assert found.media == []


def test_pictures_and_calls_are_told_apart_from_files() -> None:
    found = golden("webcam")
    assert {each.kind for each in found.media} == {"webcam"}
    assert found.files == []


def test_errors_are_counted_and_direct_connections_told_once() -> None:
    assert sum(golden("not-delivered").errors.values()) == 2
    direct = list(golden("file-msnftp").direct)
    assert ("10.0.0.2:6891", "msnftp", ALICE) in direct
    assert len(direct) == len(set(direct))


def test_who_was_invited_and_never_came_is_no_participant() -> None:
    invite = {"by": ALICE, "conversation": "c1"}
    (found,) = summed(
        at(0, body("im.invite", account=BOB, **invite)),
        at(1, body("im.invite", account="carol@example.com", **invite)),
        at(2, body("im.join", account=BOB, participants=(ALICE, BOB), conversation="c1")),
        at(3, body("im.invite", account=BOB, **invite)),
    )
    assert list(found.participants) == [ALICE, BOB]
    assert list(found.invited) == ["carol@example.com"]
    assert found.concerns(["carol@example.com"])
    assert not found.concerns(["dave@example.com"])


def test_messages_of_people_without_a_conversation_stand_under_their_flow() -> None:
    found = summed(
        at(0, message(conversation=None)),
        at(1, message(conversation=None), B),
        at(2, message(conversation=None, size=12)),
    )
    assert [(each.conversation, each.messages) for each in found] == [(None, 2), (None, 1)]


def test_what_a_service_says_and_plain_data_are_no_conversation() -> None:
    service = message(conversation=None, pattern="client-to-server", kind="control", sender=None)
    plain = body("data", bytes=9, pattern="client-to-client")
    assert summed(at(0, service), at(1, plain), at(2, body("im.sign_in", account=BOB))) == []


def test_bytes_missing_on_its_flows_are_told_also_when_the_gap_came_first() -> None:
    (found,) = summed(
        at(0, body("stream.gap", cause="lost")),
        at(1, message()),
        at(2, body("stream.gap", cause="midstream")),
        at(3, body("stream.gap", cause="unseen", length=2)),
        at(4, body("stream.gap", cause="lost"), B),
    )
    assert found.missing == 1450


def test_conversations_come_in_the_order_in_which_they_began() -> None:
    told = [at(second, message(conversation=f"c{second}")) for second in (5, 3, 4)]
    assert [each.conversation for each in summed(*told)] == ["c3", "c4", "c5"]


# --- text -----------------------------------------------------------------------------------------


def test_text_is_kept_only_for_a_transcript() -> None:
    said = at(0, message(content="hello"))
    assert summed(said)[0].transcript == []
    (line,) = summed(said, transcript=True)[0].transcript
    assert (line.sender, line.kind, line.size, line.content) == (BOB, "text", 11, "hello")


def test_a_transcript_is_in_the_order_of_time_and_has_no_typing() -> None:
    told = [at(2, message(content="b")), at(1, message(content="a")), at(3, message(kind="typing"))]
    (found,) = summed(*told, transcript=True)
    assert [line.content for line in found.transcript] == ["a", "b"]


# --- once, however many flows carry it ------------------------------------------------------------


def test_a_message_seen_at_both_ends_counts_once() -> None:
    (found,) = summed(at(0, message(), A), at(0.05, message(), B), at(1, message(size=3), B))
    assert (found.messages, found.bytes) == (2, 14)


def test_the_same_said_twice_on_one_flow_counts_twice() -> None:
    (found,) = summed(*(at(second / 10, message(), A) for second in range(3)))
    assert found.messages == 3


def test_others_who_say_the_same_are_not_taken_for_copies() -> None:
    (found,) = summed(at(0, message(), A), at(0.1, message(sender=ALICE), B))
    assert found.messages == 2


def test_the_same_said_again_much_later_on_another_flow_is_a_message_of_its_own() -> None:
    (found,) = summed(at(0, message(), A), at(1 + RELAY_NS / SECOND, message(), B))
    assert found.messages == 2


@given(
    sizes=st.lists(st.integers(1, 3), max_size=30),
    receivers=st.integers(0, 3),
    data=st.data(),
)
def test_a_message_counts_once_however_its_copies_come_between_others(
    sizes: list[int], receivers: int, data: st.DataObject
) -> None:
    """Each flow carries all messages in order; the flows are mixed in any way."""
    left = {flow(str(number)): list(sizes) for number in range(receivers + 1)}
    summary = Summary()
    while any(left.values()):
        on = data.draw(st.sampled_from([each for each in left if left[each]]))
        summary.add(at(1, message(size=left[on].pop(0)), on))
    assert sum(each.messages for each in summary.conversations()) == len(sizes)
    assert sum(each.bytes for each in summary.conversations()) == sum(sizes)


def test_what_is_remembered_of_messages_is_bounded() -> None:
    copies = Copies()
    for number in range(RECENT * 2):
        assert not copies.has(number, "a", 0)
        assert not copies.has("the same", "a", 0)
    for number in range(WATCHED * 2):
        copies.has(RECENT * 2 - 1, str(number), 0)
    assert len(copies._order) <= RECENT
    assert len(copies._said) <= RECENT
    assert max(len(said.seen) for said in copies._said.values()) <= WATCHED
    copies.has("new", "a", 2 * RELAY_NS)
    assert len(copies._said) == 1


# --- bounds ---------------------------------------------------------------------------------------


def test_what_finds_no_room_is_counted_and_the_rest_goes_on() -> None:
    summary = Summary(room=10_000)
    for number in range(100):
        summary.add(at(number, message(conversation=f"c{number}")))
    found = summary.conversations()
    assert 0 < len(found) < 100
    assert summary.left_out >= 100 - len(found)
    summary.add(at(200, message(conversation="c0")))
    assert summary.conversations()[0].messages == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("room", [0, 2000, 4000])
def test_no_lack_of_room_breaks_it(name: str, room: int) -> None:
    summary = Summary(transcript=True, room=room)
    for record in records_of(name):
        summary.add(record)
    summary.conversations()


def test_a_conversation_of_everybody_does_not_grow_without_bound() -> None:
    summary = Summary(room=100_000)
    for number in range(2000):
        summary.add(at(number, message(sender=f"{number}@example.com"), flow(str(number))))
        offer = body(
            "im.file",
            action="offer",
            sender=ALICE,
            recipients=(),
            name=str(number),
            conversation="c1",
        )
        summary.add(at(number, offer))
    (found,) = summary.conversations()
    entries = len(found.participants) + len(found.senders) + len(found.flows)
    assert entries + len(found.transfers) < 400
    assert summary.left_out > 2000
