"""Which records a trace session wants: by provider, flag and level.

The grammar is that of the sample's trace script, made readable: `COMPONENT[:FLAG,…][@LEVEL]`, as in
`NOTIFY:client_server,peer_to_peer@info`. Letter case, `-` for `_` and a leading `TRACE_` make no
difference. The script's digits keep their meaning wherever a flag or a level may stand: 0 to 3
choose the flag at that place of the component's list, 9 is every flag, as is the word `all`.

Where no flag is named, every flag but `all_traffic` is meant, which tells each protocol command;
asking for level `verbose` by name includes it. Where no level is named, every level is meant: a
flag that somebody asked for is never thinned out silently.
"""

from collections.abc import Iterable, Sequence

import msgspec

from streamtap.events import LEVELS, PROVIDERS, Place

_ALL = ("all", "9")
_ON_DEMAND = "all_traffic"


class Selection(msgspec.Struct, frozen=True):
    """The chosen places; `place in selection.places` is the test where it must be fast."""

    places: frozenset[Place]

    def wants(self, provider: str, flag: str, level: str) -> bool:
        return (provider, flag, level) in self.places

    def wants_flag(self, provider: str, flag: str) -> bool:
        """Could any record of this flag be wanted? Lets an owner not make them at all."""
        return any((provider, flag, level) in self.places for level in LEVELS)

    def __or__(self, other: "Selection") -> "Selection":
        return Selection(self.places | other.places)

    def __str__(self) -> str:
        """The selection in its own grammar: `parse(str(selection).split())` gives it back."""
        words = []
        for provider, flags in PROVIDERS.items():
            by_level: dict[str, list[str]] = {}
            for flag in flags:
                levels = [level for level in LEVELS if self.wants(provider, flag, level)]
                if levels:
                    by_level.setdefault(levels[-1], []).append(flag)
            words += [f"{provider}:{','.join(names)}@{at}" for at, names in by_level.items()]
        return " ".join(words)


def parse(words: Iterable[str]) -> Selection:
    """What any of the words `COMPONENT[:FLAG,…][@LEVEL]` selects; the default where there is none.

    Raises ValueError that names the words it knows.
    """
    places: set[Place] = set()
    for word in words:
        component, at, level = word.partition("@")
        component, colon, flags = component.partition(":")
        if not word.strip():
            raise ValueError(f"{word!r} chooses nothing: write COMPONENT[:FLAG,...][@LEVEL]")
        if (at and not level.strip()) or (colon and not flags.strip(", ")):
            raise ValueError(f"{word!r} is cut short: write COMPONENT[:FLAG,...][@LEVEL]")
        provider = _plain(component)
        providers = None if provider in _ALL else [provider]
        places |= choose(providers or (), flags.split(",") if colon else (), level or None).places
    return Selection(frozenset(places)) if places else choose()


def choose(
    providers: Sequence[str] = (), flags: Sequence[str] = (), level: str | None = None
) -> Selection:
    """What `--provider`, `--flag` and `--level` select together: records that satisfy each of the
    three, and any of the values where one is given several times (or as a list with commas).

    Raises ValueError that names the words it knows.
    """
    chosen = _split(providers)
    for provider in chosen:
        if provider not in PROVIDERS and provider not in _ALL:
            raise ValueError(f"no provider {provider!r}: there are {', '.join(PROVIDERS)} and all")
    if not chosen or any(provider in _ALL for provider in chosen):
        chosen = list(PROVIDERS)
    wanted = _split(flags)
    depth = len(LEVELS)
    level = _plain(level) if level is not None else None
    if level in LEVELS:
        depth = LEVELS.index(level) + 1
    elif level is not None:
        if level not in _ALL and not _is_digit(level):
            raise ValueError(
                f"no level {level!r}: there are {', '.join(LEVELS)}, all (or 9), "
                "and the digits 0 to 3, which choose a flag by its place"
            )
        wanted.append(level)
    if not wanted:
        wanted = ["all"] if level == "verbose" else []
    by_provider = {provider: _flags_of(provider, wanted) for provider in chosen}
    for flag in wanted:
        if not any(_flags_of(provider, [flag]) for provider in chosen):
            raise ValueError(_unknown_flag(flag, chosen))
    return Selection(
        frozenset(
            (provider, flag, at)
            for provider, names in by_provider.items()
            for flag in names
            for at in LEVELS[:depth]
        )
    )


def _flags_of(provider: str, wanted: Sequence[str]) -> tuple[str, ...]:
    known = PROVIDERS[provider]
    if not wanted:
        return tuple(flag for flag in known if flag != _ON_DEMAND)
    if any(flag in _ALL for flag in wanted):
        return known
    return tuple(flag for place, flag in enumerate(known) if flag in wanted or str(place) in wanted)


def _split(words: Sequence[str]) -> list[str]:
    return [_plain(part) for word in words for part in word.split(",") if part.strip()]


def _plain(word: str) -> str:
    return word.strip().lower().replace("-", "_").removeprefix("trace_")


def _is_digit(word: str) -> bool:
    return len(word) == 1 and word in "0123456789"


def _unknown_flag(flag: str, providers: Sequence[str]) -> str:
    where = "; ".join(
        f"{provider} has "
        + ", ".join(f"{place} {name}" for place, name in enumerate(PROVIDERS[provider]))
        for provider in providers
    )
    return f"no flag {flag!r}: {where}; all (or 9) is every flag"
