"""What can be chosen for a `Memory`, and what of it goes together."""

from __future__ import annotations

from typing import Final, TypedDict, cast, get_args

import msgspec

from memkit.background import Background
from memkit.codec import Codec, JsonCodec, check_codec
from memkit.driver import Driver, Trim, capability
from memkit.errors import BudgetError, SummaryError, UnsupportedError
from memkit.messages import SummaryAs
from memkit.strategies import FACTORIES, Strategy, counter_of, last_runs
from memkit.summaries import Summarizer, SummaryPolicy
from memkit.tokens import TokenCounter


class Options(TypedDict, total=False):
    """The options of a `Memory`, for functions that pass them on."""

    strategy: Strategy | None
    counter: TokenCounter | None
    codec: Codec | None
    retain: int | None
    use_summary: bool
    summary_as: SummaryAs
    summarizer: Summarizer | None
    policy: SummaryPolicy | None
    background: Background | None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Options as a handle uses them: with what was left out filled in, and checked.

    What would fail after something was stored is refused when the handle is made.

    Raises:
        TypeError: a driver, strategy, counter, codec or `retain` that is none.
        BudgetError: two counters, or a `retain` that leaves nothing.
        SummaryError: options about summaries that do not go together.
        UnsupportedError: the driver cannot trim, or cannot keep what the codec makes.
    """

    driver: Driver
    strategy: Strategy
    counter: TokenCounter | None
    codec: Codec
    retain: int | None
    use_summary: bool
    summary_as: SummaryAs
    summarizer: Summarizer | None
    policy: SummaryPolicy
    background: Background | None

    def __post_init__(self) -> None:
        _check_types(self)
        _check_kinds(self)
        _check_counters(self)
        _check_retention(self)
        check_codec(self.driver, self.codec)


def settings_of(driver: Driver, options: Options) -> Settings:
    """Return options as settings.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        BudgetError, SummaryError, UnsupportedError: as `Settings` does.
    """
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        known = ", ".join(Options.__annotations__)
        raise TypeError(f"Memory has no option {', '.join(sorted(unknown))}; there are {known}")
    if options.get("summarizer") is None and (options.get("policy") or options.get("background")):
        raise SummaryError("a policy or a Background needs a summariser: give Memory(summarizer=...)")
    strategy = options.get("strategy") or last_runs(100)
    return Settings(
        driver=driver,
        strategy=strategy,
        counter=options.get("counter") or counter_of(strategy),
        codec=options.get("codec") or JsonCodec(),
        retain=options.get("retain"),
        use_summary=options.get("use_summary", True),
        summary_as=options.get("summary_as", "system"),
        summarizer=options.get("summarizer"),
        policy=options.get("policy") or SummaryPolicy(),
        background=options.get("background"),
    )


_PARTS: Final = (
    ("driver", ("load", "append", "commit", "delete"), "FileDriver('folder')"),
    ("counter", ("name", "per_message", "count"), "counters.toktok('gpt-4o')"),
    ("codec", ("encode", "decode", "encode_head", "decode_head"), "JsonCodec()"),
)


def _check_types(settings: Settings) -> None:
    for name, needed, example in _PARTS:
        value = getattr(settings, name)
        if value is not None and not all(hasattr(value, one) for one in needed):
            raise TypeError(f"a {name} has {', '.join(needed)}, as {example} has; {value!r:.80} has not")
    if not callable(settings.strategy):
        raise TypeError(f"a strategy is a function of a View, as last_runs(40) is, not {settings.strategy!r:.80}")
    for name, factory in FACTORIES.items():
        if settings.strategy is factory:
            raise TypeError(f"{name} makes strategies: call it, as in last_runs(40)")
    if settings.retain is not None and type(settings.retain) is not int:
        raise TypeError(f"retain is a number of runs, not {settings.retain!r:.80}")


def _check_kinds(settings: Settings) -> None:
    names = get_args(SummaryAs)
    if settings.summary_as not in names:
        raise SummaryError(f"summary_as is one of {', '.join(names)}, not {settings.summary_as!r}")
    if settings.summarizer is not None and not callable(settings.summarizer):
        raise SummaryError(f"a summariser is a function or an object like one, not {settings.summarizer!r:.80}")
    for value, kind in ((settings.policy, SummaryPolicy), (settings.background, Background)):
        if value is not None and not isinstance(cast("object", value), kind):
            raise SummaryError(f"a {kind.__name__} is needed, not {value!r:.80}")


def _check_counters(settings: Settings) -> None:
    counter, wanted = settings.counter, counter_of(settings.strategy)
    if counter is not None and wanted is not None and counter.name != wanted.name:
        raise BudgetError(f"the handle counts by {counter!r}, its strategy by {wanted!r}; give it one of them")


def _check_retention(settings: Settings) -> None:
    retain, policy = settings.retain, settings.policy
    if retain is None:
        return
    if retain < 1:
        raise BudgetError(f"retain must be at least 1 run, not {retain}; to forget all, call clear()")
    if capability(settings.driver, Trim) is None:
        raise UnsupportedError(f"{type(settings.driver).__name__} cannot trim")
    needed = policy.keep + policy.every
    if settings.summarizer is not None and policy.tokens is None and retain < needed:
        raise BudgetError(
            f"retain={retain} leaves nothing to summarise: the policy keeps {policy.keep} runs and waits for "
            f"{policy.every} more; retain at least {needed}"
        )
