"""A scripted MSN client: alice or bob, who meet, talk and send each other files.

    python -m streamtap.demo.client alice|bob --port N

Exit 0 when the script ran to its end, with one JSON line on stdout: `account`, and `sent` and
`received`, the transferred files as `[name, size, SHA-256]`. Exit 1 with one line on stderr when
anything went otherwise.
"""

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from streamtap.demo import TIMEOUT_S, seconds
from streamtap.demo.credentials import PASSWORD
from streamtap.demo.messenger import Messenger, ScriptFailed
from streamtap.demo.processes import take_name
from streamtap.demo.transfer import File, Peer
from streamtap.demo.wire import ProtocolError, Transcript

ALICE, BOB, CAROL = (f"{name}@example.com" for name in ("alice", "bob", "carol"))

GREETING = "Hi Bob, are you there?"
REPLY = "Grüße aus Köln! ☕ 你好, Alice"
LINES = "Shopping list:\r\n- tea\r\n- hats\r\nBYE bob@example.com\r\n- and no more lines"
THANKS = "Got it, thank you!"
LAST_WORDS = "See you later"

# names, and sizes in bytes
UNWANTED = ("party.exe", 70_000)
PHOTO = ("Kölner Dom.jpg", 40_000)
NOTES = ("notes.txt", 3_000)


class Cast(NamedTuple):
    """What a script is given to play with."""

    account: str
    password: str
    address: str  # host:port of the dispatch server
    transcript: Transcript
    pause: Callable[[], Awaitable[None]]

    async def sign_in(self) -> Messenger:
        return await Messenger.sign_in(self.account, self.password, self.address, self.transcript)


class Outcome(NamedTuple):
    sent: list[File]
    received: list[File]


def file(name: str, size: int) -> File:
    """A file that is the same in every run."""
    return File(name, hashlib.shake_256(name.encode()).digest(size))


async def alice(cast: Cast) -> Outcome:
    """Calls bob, and has the first and the last word."""
    pause = cast.pause
    messenger = await cast.sign_in()
    await messenger.appear("down the rabbit hole")
    await messenger.see(BOB, "NLN")
    await pause()
    await messenger.change_status("BSY")
    await pause()
    await messenger.change_status("NLN")
    await messenger.see(BOB, "AWY")
    await messenger.see(BOB, "NLN")
    await pause()

    chat = await messenger.open_switchboard()
    await chat.invite_in_vain(CAROL)
    await chat.invite(BOB)
    await chat.type()
    await pause()
    await chat.say(GREETING, acknowledged=True)
    await chat.see_typing(BOB)
    await chat.hear(BOB, REPLY)
    await pause()
    await chat.say(LINES, acknowledged=True)
    await chat.feel_nudge(BOB)
    await pause()

    peer = Peer(BOB, chat, cast.transcript)
    if await peer.offer(file(*UNWANTED), direct=True):
        raise ScriptFailed("bob took a file that he should decline")
    await pause()
    photo = file(*PHOTO)
    if not await peer.offer(photo, direct=True):
        raise ScriptFailed("bob declined a file that he should take")
    await chat.hear(BOB, THANKS)
    notes = await peer.take(NOTES[0])
    await pause()

    await chat.say(LAST_WORDS, acknowledged=True)
    await pause()
    await chat.leave()
    await pause()
    await messenger.sign_out()
    return Outcome([photo], [notes])


async def bob(cast: Cast) -> Outcome:
    """Is called by alice, and leaves after her."""
    pause = cast.pause
    messenger = await cast.sign_in()
    await messenger.appear("at work &amp; busy")
    await messenger.see(ALICE, "NLN")
    await messenger.see(ALICE, "BSY")
    await messenger.see(ALICE, "NLN")
    await pause()
    await messenger.change_status("AWY")
    await pause()
    await messenger.change_status("NLN")

    chat = await messenger.answer_call(ALICE)
    await chat.see_typing(ALICE)
    await chat.hear(ALICE, GREETING)
    await chat.type()
    await pause()
    await chat.say(REPLY)
    await chat.hear(ALICE, LINES)
    await pause()
    await chat.nudge()

    peer = Peer(ALICE, chat, cast.transcript)
    await peer.decline(UNWANTED[0])
    photo = await peer.take(PHOTO[0])
    await pause()
    await chat.say(THANKS)
    await pause()
    notes = file(*NOTES)
    if not await peer.offer(notes):
        raise ScriptFailed("alice declined a file that she should take")
    await chat.hear(ALICE, LAST_WORDS)
    await chat.see_leave(ALICE)
    await pause()
    await chat.leave()
    await messenger.see(ALICE, "FLN")
    await pause()
    await messenger.sign_out()
    return Outcome([notes], [photo])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="streamtap.demo.client", description=__doc__)
    parser.add_argument("who", choices=("alice", "bob"))
    parser.add_argument("--port", type=int, required=True, help="of the notification server")
    parser.add_argument("--pace", type=seconds, default=0.0, help="seconds between the steps")
    parser.add_argument("--timeout", type=seconds, default=TIMEOUT_S, help="give up after SECONDS")
    parser.add_argument("--password", default=PASSWORD)
    parser.add_argument("--transcript", type=Path, help="write what passes, as JSON lines")
    arguments = parser.parse_args(argv)
    script = alice if arguments.who == "alice" else bob
    account = f"{arguments.who}@example.com"
    take_name(arguments.who)

    async def pause() -> None:
        if arguments.pace > 0:
            await asyncio.sleep(arguments.pace)

    async def play(transcript: Transcript) -> Outcome:
        address = f"127.0.0.1:{arguments.port}"
        cast = Cast(account, arguments.password, address, transcript, pause)
        async with asyncio.timeout(arguments.timeout):
            return await script(cast)

    try:
        transcript = Transcript(arguments.transcript)
        try:
            outcome = asyncio.run(play(transcript))
        finally:
            transcript.close()
    except TimeoutError:
        return _fail(arguments.who, f"not finished after {arguments.timeout:g} s")
    except (ScriptFailed, ProtocolError, OSError) as error:
        return _fail(arguments.who, str(error))
    except (ValueError, LookupError) as error:
        # the other side sent a number, field or packet that the script could not read
        return _fail(arguments.who, f"something unreadable came: {error!r}")
    except KeyboardInterrupt:
        return 130
    report = {"account": account, "sent": _digests(outcome.sent)}
    print(json.dumps({**report, "received": _digests(outcome.received)}))
    return 0


def _digests(files: list[File]) -> list[tuple[str, int, str]]:
    return [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files]


def _fail(who: str, reason: str) -> int:
    line = " ".join(reason.split())
    print(f"demo client {who}: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
