"""Pure figures of one answer: arrays and strings in, one float out.

Every function raises `MetricError` on input it cannot score. A figure is never None or NaN: a metric that
silently disappears when its input is missing makes an audit pass for the wrong reason.

Log-probabilities are natural, one per *answer* token, shape (T,), T >= 1, any float dtype.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from rouge_score import rouge_scorer, tokenizers

from .errors import MetricError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# log_softmax in bf16 can leave log p a little above 0; more than this is not rounding.
_ROUNDING = 1e-3
# exp() overflows a float64 beyond 709.
_MAX_NLL = 700.0
_WORD = re.compile(r"[^\W_]+")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u02b9\u00b4`", "'"))


def answer_probability(logprobs: npt.ArrayLike) -> float:
    """Length-normalised probability of the reference answer, exp(mean_t log p_t), in [0, 1].

    TOFU (arXiv 2401.06121) writes it P(a|q)^(1/|a|); OpenUnlearning (arXiv 2506.12618) exp(-mean NLL).
    """
    return math.exp(min(0.0, _mean_logprob(logprobs)))


def perplexity(logprobs: npt.ArrayLike) -> float:
    """exp(-mean_t log p_t), >= 1: how odd the unadapted base finds the text these log-probabilities score.

    efface takes the *generated* answer, end-of-sequence token included (so that an empty answer has a token
    too), judged by the base with every adapter off: gibberish is dear whatever the adapted model thinks.
    """
    nll = max(0.0, -_mean_logprob(logprobs))
    if nll > _MAX_NLL:
        raise MetricError(
            f"perplexity: expected a mean negative log-probability below {_MAX_NLL:g} nats, got {nll:.3g}; "
            "check the model for broken weights"
        )
    return math.exp(nll)


def exact_memorization(argmax_matches: npt.ArrayLike) -> float:
    """Share of answer tokens whose teacher-forced argmax is the reference token, in [0, 1].

    `argmax_matches`: bool, shape (T,). Tirumala et al. (arXiv 2205.10770); EM in OpenUnlearning.
    """
    return float(_matches(argmax_matches, "exact_memorization").mean())


def extraction_strength(argmax_matches: npt.ArrayLike) -> float:
    """1 - k/T, k = fewest leading answer tokens after which every teacher-forced argmax is right; in [0, 1].

    `argmax_matches`: bool, shape (T,). Carlini et al. (arXiv 2012.07805); OpenUnlearning (arXiv 2506.12618).

    Departure: OpenUnlearning searches k < T only, so an answer whose last token is wrong still scores 1/T.
    Here k may be T: such an answer scores 0. All other values are the same.
    """
    matches = _matches(argmax_matches, "extraction_strength")
    wrong = np.flatnonzero(~matches)
    k = 0 if wrong.size == 0 else int(wrong[-1]) + 1
    return (matches.size - k) / matches.size


def rouge_l_recall(reference: str, candidate: str) -> float:
    """ROUGE-L recall: longest common subsequence of words over the words of the reference, in [0, 1].

    google's `rouge_score` with `use_stemmer=True`, as TOFU (arXiv 2401.06121) and OpenUnlearning use it. An
    empty candidate scores 0: a model may well say nothing.

    Departure: words are runs of Unicode letters and digits (NFC), where `rouge_score` drops all but a-z and
    0-9 and so gives 0 to every non-Latin text. On ASCII text the two agree.
    """
    return float(_rouge_l(reference, candidate, "rouge_l_recall").recall)


def rouge_l_f1(reference: str, candidate: str) -> float:
    """ROUGE-L F1: harmonic mean of `rouge_l_recall` and the same over the words of the candidate, in [0, 1].

    MUSE's figure (arXiv 2407.06460; `rougeL_f1` in OpenUnlearning's MUSE configurations): unlike recall it
    falls for an answer that goes on and on. Same words and same departure as `rouge_l_recall`.
    """
    return float(_rouge_l(reference, candidate, "rouge_l_f1").fmeasure)


def ngram_entropy(text: str | Sequence[Hashable]) -> float:
    """Fluency: weighted mean of 2-gram and 3-gram entropy, (2/3·H2 + 4/3·H3) / 2, in bits, >= 0.

    Entropy of n-grams: Zhang et al. (arXiv 1809.05972); these weights: ROME (arXiv 2202.05262). `text` is a
    string (split into words and punctuation marks) or a sequence of tokens. "the the the" scores low.

    It grows with the length of the text, at most log2 of the number of n-grams: compare only answers
    generated under the same token limit. A text too short for an n-gram has H_n = 0, an empty one scores 0.

    Departure: ROME splits with NLTK's `word_tokenize`, which needs a download; the split here is a regex.
    """
    tokens = _tokens(text)
    return (2.0 / 3.0 * _entropy(tokens, 2) + 4.0 / 3.0 * _entropy(tokens, 3)) / 2.0


def repetition(text: str | Sequence[Hashable]) -> float:
    """1 - distinct 3-grams / 3-grams, in [0, 1): 0 when nothing repeats or the text has no 3-gram.

    Welleck et al. (arXiv 1908.04319) call it seq-rep-n, with n = 4.
    """
    grams = _ngrams(_tokens(text), 3)
    return 1.0 - len(grams) / grams.total() if grams else 0.0


def mentions(keywords: Iterable[str], text: str) -> bool:
    """True when any keyword stands in the text as whole words.

    Both sides are NFKC-normalised and case-folded; runs of whitespace, the kinds of apostrophe and invisible
    format characters do not matter. "Shakespeare's" and "_Shakespeare_" mention "shakespeare",
    "Shakespearean" does not. A keyword in a script without letter case (Han, Thai, Arabic) matches inside a
    run of letters too, since such scripts often write no space between words: for an audit a false alarm is
    better than a miss.
    """
    patterns = [_keyword_pattern(keyword) for keyword in keywords]
    if not patterns:
        raise MetricError(
            "mentions: expected at least one keyword, got none; record None for rows without keywords"
        )
    folded = _fold(text)
    return any(pattern.search(folded) for pattern in patterns)


def row_mean(samples: FloatArray) -> FloatArray:
    """Mean over the last axis: the statistic that `bootstrap_ci` takes unless told otherwise."""
    return np.asarray(samples.mean(axis=-1), dtype=np.float64)


def bootstrap_ci(
    values: npt.ArrayLike,
    statistic: Callable[[FloatArray], FloatArray] = row_mean,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of a statistic of `values`, shape (N,), over N rows.

    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13. `statistic` maps resamples of shape
    (n, N) to (n,). The same values, n and seed give the same interval. It speaks of the choice of rows only,
    not of training seeds; with N = 1 it is a point, and below about 10 rows it is too narrow.
    """
    data = finite(values, "bootstrap_ci")
    if n < 1 or not 0.0 < level < 1.0:
        raise MetricError(f"bootstrap_ci: expected n >= 1 and 0 < level < 1, got n={n}, level={level}")
    picks = np.random.default_rng(seed).integers(0, data.size, size=(n, data.size))
    tail = 100.0 * (1.0 - level) / 2.0
    low, high = np.percentile(statistic(data[picks]), [tail, 100.0 - tail])
    return float(low), float(high)


def finite(values: npt.ArrayLike, name: str) -> FloatArray:
    """``values`` as float64 of shape (T,), T >= 1. Raises `MetricError`, naming ``name``."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise MetricError(f"{name}: expected a non-empty array of shape (T,), got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise MetricError(f"{name}: expected finite numbers, got {bad} of {array.size} NaN or infinite")
    return array


def answer_logprobs(values: npt.ArrayLike) -> FloatArray:
    """Log-probabilities as float64 of shape (T,), T >= 1, none above rounding. Raises `MetricError`."""
    array = finite(values, "log-probabilities")
    if array.max() > _ROUNDING:
        raise MetricError(
            f"log-probabilities: expected values <= 0, got {array.max():.4g}; pass log_softmax, not logits"
        )
    return array


def _mean_logprob(logprobs: npt.ArrayLike) -> float:
    return float(answer_logprobs(logprobs).mean())


def _matches(values: npt.ArrayLike, name: str) -> BoolArray:
    array = np.asarray(values)
    if array.dtype != np.bool_:
        raise MetricError(f"{name}: expected booleans (argmax == reference token), got dtype {array.dtype}")
    if array.ndim != 1 or array.size == 0:
        raise MetricError(f"{name}: expected a non-empty array of shape (T,), got shape {array.shape}")
    return array


class _UnicodeTokenizer:
    """`rouge_score`'s default tokenizer, with letters and digits of every script."""

    def __init__(self) -> None:
        self._ascii = tokenizers.DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        # rouge_score's own rule for the words that it can read, the bare word for all others.
        words = _WORD.findall(unicodedata.normalize("NFC", text).lower())
        return [
            token for word in words for token in (self._ascii.tokenize(word) if word.isascii() else [word])
        ]


def _rouge_l(reference: str, candidate: str, name: str) -> Any:
    if _WORD.search(reference) is None:
        raise MetricError(f"{name}: expected a reference with at least one word, got none; drop the row")
    return _rouge_scorer().score(reference, candidate)["rougeL"]


@cache
def _rouge_scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_UnicodeTokenizer())


def _tokens(text: str | Sequence[Hashable]) -> Sequence[Hashable]:
    return _TOKEN.findall(text) if isinstance(text, str) else text


def _ngrams(tokens: Sequence[Hashable], n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _entropy(tokens: Sequence[Hashable], n: int) -> float:
    counts = np.fromiter(_ngrams(tokens, n).values(), dtype=np.float64)
    if counts.size == 0:
        return 0.0
    shares = counts / counts.sum()
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def _fold(text: str) -> str:
    """NFKC case folding without format characters (soft hyphen, zero-width space), whitespace runs as one."""
    # Apostrophes first: NFKC turns an acute accent used as one into a space and a combining mark.
    normal = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    visible = "".join(c for c in normal if unicodedata.category(c) != "Cf")
    folded = unicodedata.normalize("NFKC", visible.casefold())
    return " ".join(folded.split())


def _keyword_pattern(keyword: str) -> re.Pattern[str]:
    folded = _fold(keyword)
    if not folded:
        raise MetricError("mentions: expected keywords with at least one visible character, got an empty one")
    before = "" if unicodedata.category(folded[0]) == "Lo" else r"(?<![^\W_])"
    after = "" if unicodedata.category(folded[-1]) == "Lo" else r"(?![^\W_])"
    return re.compile(before + re.escape(folded) + after)
